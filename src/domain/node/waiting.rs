//! Who waits for the catalog: sidecars that asked, and readiness gates.
//!
//! What the catalog shows is believed where it shows something: an entry with our ID, address and port,
//! and our check's status. That an entry is gone comes from a plain read.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::exchange::{Action, Entry, GatePatch, PatchError};
use crate::domain::node::pod::Pod;
use crate::domain::node::wanted::{CheckStatus, Registration, State};
use crate::domain::problem::{Problem, Reason};
use crate::domain::sidecar::SyncKind;

/// Between two tries of a patch: a recovery of the API server costs this much more at most.
const PATCH_RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
/// Where a right is missing, which people grant, or the pod.
const PATCH_DENIED_RETRY: Backoff = Backoff::new(Duration::from_secs(10), Duration::from_mins(1));

/// The gates of one pod, by its uid.
#[derive(Debug, Default)]
struct Gates {
    /// What was patched last.
    done: Option<bool>,
    /// A patch is under way.
    is_patching: bool,
    attempt: u32,
    until: Moment,
    /// What people see of it.
    problem: Option<Problem>,
}

/// What is waited for.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// Pods to look at.
    pub(super) pods: BTreeSet<ObjectKey>,
    /// Pods to look at, at that moment.
    pub(super) later: BTreeSet<(Moment, ObjectKey)>,
    pub(super) requests: BTreeMap<u64, (SyncKind, ObjectKey)>,
    gates: BTreeMap<ObjectKey, (Box<str>, Gates)>,
    /// What the catalog showed of the services that are followed.
    pub(super) shown: BTreeMap<Box<str>, Option<Vec<Entry>>>,
    /// Who needs which service.
    pub(super) needs: BTreeMap<ObjectKey, BTreeSet<Box<str>>>,
    pub(super) actions: VecDeque<Action>,
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

    /// The pod is gone.
    pub(super) fn forget(&mut self, pod: &ObjectKey) {
        self.gates.remove(pod);
        self.set_needs(pod, BTreeSet::new());
    }

    /// The problem of a pod's gates.
    pub(super) fn problem(&self, pod: &ObjectKey) -> Option<&Problem> {
        self.gates.get(pod).and_then(|(_, gates)| gates.problem.as_ref())
    }

    pub(super) fn set_needs(&mut self, pod: &ObjectKey, names: BTreeSet<Box<str>>) {
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
    pub(super) fn has(&self, registration: &Registration, state: &State) -> bool {
        self.entry(registration).is_some_and(|entry| {
            entry.address == registration.address
                && entry.port == registration.port
                && entry.status == Some(state.status)
        })
    }

    /// Whether nobody is sent there any more.
    pub(super) fn is_out(&self, registration: &Registration, state: &State) -> bool {
        let was_read = self.shown.get(&registration.name).is_some_and(Option::is_some);
        let entry = self.entry(registration);
        state.is_fixed
            || was_read && entry.is_none_or(|it| it.status == Some(CheckStatus::Critical))
    }

    /// The patch that a pod's gates need now. At most two in a pod's life: `True` stays.
    pub(super) fn gate_patch(
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
        let known = self.gates.get(key).filter(|(uid, _)| *uid == pod.uid);
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

    /// Whether a pod has gates that nobody has set to true.
    pub(super) fn has_open_gates(&self, key: &ObjectKey, pod: &Pod) -> bool {
        let known = self.gates.get(key).filter(|(uid, _)| *uid == pod.uid);
        pod.gates.iter().any(|(_, status)| *status != Some(true))
            && known.is_none_or(|(_, gates)| gates.done != Some(true))
    }

    /// What became of a patch.
    pub(super) fn patched(
        &mut self,
        patch: &GatePatch,
        result: Result<(), PatchError>,
        now: Moment,
    ) {
        // One of a pod that is gone says nothing of the next pod of its name.
        let known = self.gates.get_mut(&patch.pod).filter(|(uid, _)| *uid == patch.uid);
        let Some((_, gates)) = known else { return };
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
            // The watch is about to say so; until it does the pod may be there after all.
            Err(PatchError::Gone) => gates.until = retry(PATCH_DENIED_RETRY),
            Err(PatchError::Denied(why)) => {
                gates.until = retry(PATCH_DENIED_RETRY);
                gates.problem = Some(Problem::new(Reason::Denied, why));
            }
            Err(PatchError::Failed(_)) => gates.until = retry(PATCH_RETRY),
        }
        self.later.insert((gates.until, patch.pod.clone()));
        self.pods.insert(patch.pod.clone());
    }

    /// A patch is about to be sent.
    pub(super) fn patching(&mut self, patch: &GatePatch) {
        let fresh = || (patch.uid.clone(), Gates::default());
        let entry = self.gates.entry(patch.pod.clone()).or_insert_with(fresh);
        if entry.0 != patch.uid {
            *entry = fresh();
        }
        entry.1.is_patching = true;
    }
}
