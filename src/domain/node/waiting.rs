//! Who waits for the catalog: sidecars that asked, and readiness gates.
//!
//! What the catalog shows is believed where it shows something: an entry with our ID, address and port,
//! and our check's status. That an entry is gone comes from a plain read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::core::{Action, Core};
use crate::domain::node::pod::Pod;
use crate::domain::node::sidecar::Sidecar;
use crate::domain::node::wanted::{CheckStatus, Registration, State};
use crate::domain::problem::{Problem, Reason};
use crate::domain::sidecar::{SyncError, SyncKind};

/// Between two tries of a patch: a recovery of the API server costs this much more at most.
const PATCH_RETRY: Backoff =
    Backoff::new(std::time::Duration::from_millis(200), std::time::Duration::from_secs(10));
/// Where a right is missing: people grant it.
const PATCH_DENIED_RETRY: Backoff =
    Backoff::new(std::time::Duration::from_secs(10), std::time::Duration::from_mins(1));

/// An instance in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its service ID.
    pub id: Box<str>,
    /// Its address.
    pub address: Box<str>,
    /// Its port.
    pub port: u16,
    /// The status of the check of the same ID; none: there is none.
    pub status: Option<CheckStatus>,
}

/// A change of a pod's conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatePatch {
    /// The pod.
    pub pod: ObjectKey,
    /// Only if it still has this uid.
    pub uid: Box<str>,
    /// The conditions.
    pub gates: Vec<&'static str>,
    /// Their status.
    pub status: bool,
    /// A word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Why a patch was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatchError {
    /// There is no such pod any more.
    Gone,
    /// A right is missing, or an admission policy refuses it.
    Denied(String),
    /// It passes.
    Failed(String),
}

/// The gates of one pod, by its uid.
#[derive(Debug, Default)]
pub(super) struct Gates {
    /// What was patched last.
    done: Option<bool>,
    /// A patch is under way.
    is_patching: bool,
    attempt: u32,
    until: Moment,
    /// What people see of it.
    pub(super) problem: Option<Problem>,
}

/// What is waited for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Pods to look at.
    pods: BTreeSet<ObjectKey>,
    /// Pods to look at, at that moment.
    later: BTreeSet<(Moment, ObjectKey)>,
    requests: BTreeMap<u64, (SyncKind, ObjectKey)>,
    gates: BTreeMap<ObjectKey, (Box<str>, Gates)>,
    /// What the catalog showed of the services that are followed.
    shown: BTreeMap<Box<str>, Option<Vec<Entry>>>,
    /// Who needs which service.
    needs: BTreeMap<ObjectKey, BTreeSet<Box<str>>>,
    actions: VecDeque<Action>,
}

// === impl Waiting ===

impl Waiting {
    /// Something of this pod changed.
    pub(super) fn touch(&mut self, pod: &ObjectKey) {
        self.pods.insert(pod.clone());
    }

    pub(super) fn next_timeout(&self) -> Option<Moment> {
        self.later.first().map(|(at, _)| *at)
    }

    /// The problem of a pod's gates.
    pub(super) fn problem(&self, pod: &ObjectKey) -> Option<&Problem> {
        self.gates.get(pod).and_then(|(_, gates)| gates.problem.as_ref())
    }

    fn set_needs(&mut self, pod: &ObjectKey, names: BTreeSet<Box<str>>) {
        for name in &names {
            if !self.shown.contains_key(name) {
                self.shown.insert(name.clone(), None);
                self.actions.push_back(Action::Follow(name.clone()));
            }
        }
        let before = self.needs.remove(pod).unwrap_or_default();
        if !names.is_empty() {
            self.needs.insert(pod.clone(), names);
        }
        for name in before {
            if !self.needs.values().any(|names| names.contains(&name)) {
                self.shown.remove(&name);
                self.actions.push_back(Action::Unfollow(name));
            }
        }
    }

    fn entry(&self, registration: &Registration) -> Option<&Entry> {
        let entries = self.shown.get(&registration.name)?.as_ref()?;
        entries.iter().find(|entry| entry.id == registration.id)
    }

    /// Whether the catalog has it as it is wanted.
    fn has(&self, registration: &Registration, state: &State) -> bool {
        self.entry(registration).is_some_and(|entry| {
            entry.address == registration.address
                && entry.port == registration.port
                && entry.status == Some(state.status)
        })
    }

    /// Whether nobody is sent there any more.
    fn is_out(&self, registration: &Registration, state: &State) -> bool {
        let was_read = self.shown.get(&registration.name).is_some_and(Option::is_some);
        let entry = self.entry(registration);
        state.is_fixed
            || was_read && entry.is_none_or(|it| it.status == Some(CheckStatus::Critical))
    }
}

// === impl Core ===

impl Core {
    /// A sidecar asks, under a number that is its own.
    pub fn handle_request(&mut self, number: u64, kind: SyncKind, pod: &ObjectKey, now: Moment) {
        if let Some(refusal) = self.refusal(pod) {
            self.waiting.actions.push_back(Action::Reply(number, Err(refusal)));
            return;
        }
        self.set_sidecar(pod, kind, now);
        self.waiting.requests.insert(number, (kind, pod.clone()));
        self.waiting.touch(pod);
    }

    /// Nobody waits for the answer any more.
    pub fn handle_request_gone(&mut self, number: u64) {
        if let Some((_, pod)) = self.waiting.requests.remove(&number) {
            self.waiting.touch(&pod);
        }
    }

    /// What the catalog has of a service that is followed.
    pub fn handle_catalog(&mut self, name: &str, entries: Vec<Entry>) {
        let Some(shown) = self.waiting.shown.get_mut(name) else { return };
        *shown = Some(entries);
        let needs = self.waiting.needs.iter();
        let concerned = needs.filter(|(_, names)| names.contains(name)).map(|(pod, _)| pod.clone());
        self.waiting.pods.extend(concerned.collect::<Vec<_>>());
    }

    /// What became of a patch.
    pub fn handle_patched(
        &mut self,
        patch: &GatePatch,
        result: Result<(), PatchError>,
        now: Moment,
    ) {
        let Some((_, gates)) = self.waiting.gates.get_mut(&patch.pod) else { return };
        gates.is_patching = false;
        let attempt = gates.attempt;
        gates.attempt = attempt.saturating_add(1);
        let retry = |backoff: Backoff| now + backoff.delay(attempt, &patch.pod);
        match result {
            Ok(()) => {
                gates.done = Some(patch.status);
                gates.attempt = 0;
                gates.problem = None;
            }
            // Whoever comes next of this name begins anew.
            Err(PatchError::Gone) => gates.done = Some(true),
            Err(PatchError::Denied(why)) => {
                gates.until = retry(PATCH_DENIED_RETRY);
                gates.problem = Some(Problem::new(Reason::Denied, why));
            }
            Err(PatchError::Failed(_)) => gates.until = retry(PATCH_RETRY),
        }
        let gates_until = gates.until;
        self.waiting.later.insert((gates_until, patch.pod.clone()));
        self.waiting.touch(&patch.pod);
        self.touched.insert(patch.pod.clone());
    }

    /// Answers, patches and what has to be followed, if there is any.
    pub(super) fn poll_waiting(&mut self, now: Moment) -> Option<Action> {
        while let Some((at, _)) = self.waiting.later.first()
            && *at <= now
            && let Some((_, pod)) = self.waiting.later.pop_first()
        {
            self.waiting.pods.insert(pod);
        }
        if self.is_started() {
            while let Some(pod) = self.waiting.pods.pop_first() {
                self.settle(&pod, now);
            }
        }
        self.waiting.actions.pop_front()
    }

    /// Why a request of this pod's sidecar is refused at once, if it is.
    fn refusal(&self, pod: &ObjectKey) -> Option<SyncError> {
        if !self.is_started() {
            let why = "the daemon is starting: it does not know the pods of its node yet";
            return Some(SyncError::Unavailable(why.to_owned()));
        }
        let Some(state) = self.states.get(pod).filter(|state| state.wanted.is_ours) else {
            return Some(SyncError::UnknownPod(format!(
                "Unable to find pod with katalog-sync annotation \
                 (katalog-sync.wish.com/service-names): {pod}"
            )));
        };
        state.wanted.sidecar.is_none().then(|| {
            SyncError::NoSidecar(
                "Pod is missing annotation katalog-sync.wish.com/sidecar for sidecar".to_owned(),
            )
        })
    }

    fn set_sidecar(&mut self, key: &ObjectKey, kind: SyncKind, now: Moment) {
        let (Some(state), Some(pod)) = (self.states.get_mut(key), self.pods.get(key)) else {
            return;
        };
        let Some(container) = &state.wanted.sidecar else { return };
        state.sidecar = match kind {
            SyncKind::Register => Sidecar::Registered,
            SyncKind::Deregister => Sidecar::deregistered(pod, container),
        };
        self.plan(key, now);
    }

    /// Looks whether what a pod waits for has come.
    fn settle(&mut self, key: &ObjectKey, now: Moment) {
        let numbers = self.waiting.requests.iter().filter(|(_, (_, pod))| pod == key);
        let numbers: Vec<_> = numbers.map(|(number, (kind, _))| (*number, *kind)).collect();
        let (Some(state), Some(pod)) = (self.states.get(key), self.pods.get(key)) else {
            self.waiting.gates.remove(key);
            for (number, _) in numbers {
                self.waiting.requests.remove(&number);
                let why = format!("the pod {key} is gone");
                let reply = Action::Reply(number, Err(SyncError::UnknownPod(why)));
                self.waiting.actions.push_back(reply);
            }
            return self.waiting.set_needs(key, BTreeSet::new());
        };
        let (wanted, waiting) = (&state.wanted, &self.waiting);
        let mut all = wanted.registrations.iter();
        let is_in = all.all(|(it, state)| self.is_written(it, state) && waiting.has(it, state));
        let mut all = wanted.registrations.iter();
        let is_out = all.all(|(it, state)| waiting.is_out(it, state));
        let is_registered = wanted.sidecar.is_none() || state.sidecar == Sidecar::Registered;
        let is_ready = wanted.is_ready && is_registered && pod.ip.is_some();
        let patch = self.gate_patch(key, pod, is_ready, is_in, now);
        let mut answered = Vec::new();
        for (number, kind) in numbers {
            let answer = match kind {
                SyncKind::Register if !wanted.is_ready => {
                    Err(SyncError::NotReady("not all containers are ready".to_owned()))
                }
                SyncKind::Register if is_in => Ok(()),
                SyncKind::Deregister if is_out => Ok(()),
                _ => continue,
            };
            answered.push((number, answer));
        }
        let has_gates = pod.gates.iter().any(|(_, status)| *status != Some(true))
            && waiting.gates.get(key).is_none_or(|(_, gates)| gates.done != Some(true));
        let names = wanted.registrations.iter().map(|(it, _)| it.name.clone()).collect();
        for (number, answer) in answered {
            self.waiting.requests.remove(&number);
            self.waiting.actions.push_back(Action::Reply(number, answer));
        }
        let is_asked = self.waiting.requests.values().any(|(_, pod)| pod == key);
        let patches = patch.is_some();
        if let Some(patch) = patch {
            self.patching(&patch);
            self.waiting.actions.push_back(Action::Patch(Box::new(patch)));
        }
        let needs_catalog = is_asked || has_gates && is_ready && !patches;
        self.waiting.set_needs(key, if needs_catalog { names } else { BTreeSet::new() });
    }

    /// Whether the agent has a registration as it is wanted.
    fn is_written(&self, registration: &Registration, state: &State) -> bool {
        self.records.get(&registration.id).is_some_and(|record| {
            let known = record.known.as_ref();
            !record.in_flight
                && known.is_some_and(|known| {
                    registration.equals(&known.registration)
                        && known.check.as_ref().is_some_and(|(status, _)| *status == state.status)
                })
        })
    }

    /// The patch that a pod's gates need now. At most two in a pod's life: `True` stays.
    fn gate_patch(
        &self,
        key: &ObjectKey,
        pod: &Pod,
        is_ready: bool,
        is_in: bool,
        now: Moment,
    ) -> Option<GatePatch> {
        if pod.gates.is_empty() || pod.is_terminating {
            return None;
        }
        let status = is_ready && is_in;
        let known = self.waiting.gates.get(key).filter(|(uid, _)| *uid == pod.uid);
        if let Some((_, gates)) = known
            && (gates.is_patching
                || gates.until > now
                || gates.done == Some(true)
                || gates.done == Some(status))
        {
            return None;
        }
        let is_to_set = |found: &Option<bool>| *found != Some(true) && (status || found.is_none());
        let gates = pod.gates.iter().filter(|(_, found)| is_to_set(found));
        let gates: Vec<_> = gates.map(|(gate, _)| *gate).collect();
        if gates.is_empty() {
            return None;
        }
        let (reason, message) = match (is_ready, status) {
            (_, true) => ("Done", "Done"),
            (false, _) => ("ContainersNotReady", "Not all containers are ready"),
            (true, false) => {
                ("NotSynced", "State synced to local consul, waiting on sync to remote consul")
            }
        };
        let (pod, uid) = (key.clone(), pod.uid.clone());
        Some(GatePatch { pod, uid, gates, status, reason, message: message.to_owned() })
    }

    /// A patch is about to be sent.
    fn patching(&mut self, patch: &GatePatch) {
        let fresh = || (patch.uid.clone(), Gates::default());
        let entry = self.waiting.gates.entry(patch.pod.clone()).or_insert_with(fresh);
        if entry.0 != patch.uid {
            *entry = fresh();
        }
        entry.1.is_patching = true;
    }
}
