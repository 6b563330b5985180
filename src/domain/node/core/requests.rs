//! Sidecars that ask and readiness gates: both wait for the catalog.

use std::collections::BTreeSet;

use super::Core;
use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::exchange::{Action, Entry, GatePatch, PatchError};
use crate::domain::node::pod::Phase;
use crate::domain::node::sidecar::Sidecar;
use crate::domain::node::wanted::{Registration, State};
use crate::domain::sidecar::{SyncError, SyncKind};

/// Calls of one pod that wait at a time: a sidecar has one, and one more after its client restarted.
/// Whoever calls in the name of one pod keeps no other pod's calls out.
const MAX_OF_POD: usize = 4;

// === impl Core ===

impl Core {
    /// A sidecar asks, under a number that is its own.
    pub fn handle_request(&mut self, number: u64, kind: SyncKind, pod: &ObjectKey, now: Moment) {
        if let Some(refusal) = self.refusal(pod) {
            self.waiting.actions.push_back(Action::Reply(number, Err(refusal)));
            return;
        }
        self.make_room(pod);
        self.set_sidecar(pod, kind, now);
        self.waiting.requests.insert(number, (kind, pod.clone()));
        self.waiting.touch(pod);
    }

    /// The oldest call of a pod that has too many is answered: whoever made it asks again.
    fn make_room(&mut self, pod: &ObjectKey) {
        let of_pod = self.waiting.requests.iter().filter(|(_, (_, it))| it == pod);
        let mut oldest = of_pod.clone().map(|(number, _)| *number);
        if of_pod.clone().count() >= MAX_OF_POD
            && let Some(number) = oldest.next()
        {
            self.waiting.requests.remove(&number);
            let why = format!("{MAX_OF_POD} newer calls for the pod {pod} wait, ask again later");
            self.waiting.actions.push_back(Action::Reply(number, Err(SyncError::Exhausted(why))));
        }
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
        self.waiting.patched(patch, result, now);
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
            self.waiting.forget(key);
            for (number, _) in numbers {
                self.waiting.requests.remove(&number);
                let why = format!("the pod {key} is gone");
                let reply = Action::Reply(number, Err(SyncError::UnknownPod(why)));
                self.waiting.actions.push_back(reply);
            }
            return;
        };
        let (wanted, waiting) = (&state.wanted, &self.waiting);
        let mut all = wanted.registrations.iter();
        let is_in = all.all(|(it, state)| self.is_written(it, state) && waiting.has(it, state));
        let mut all = wanted.registrations.iter();
        let is_out = all.all(|(it, state)| waiting.is_out(it, state));
        let is_registered = wanted.sidecar.is_none() || state.sidecar == Sidecar::Registered;
        // Without an address nothing is registered, which is not the same as all of it.
        let has_begun = pod.phase == Phase::Running && pod.ip.is_some();
        let is_ready = wanted.is_ready && is_registered && has_begun;
        let patch = waiting.gate_patch(key, pod, is_ready, is_in, now);
        let mut answered = Vec::new();
        for (number, kind) in numbers {
            let answer = match kind {
                SyncKind::Register if !wanted.is_ready => {
                    Err(SyncError::NotReady("not all containers are ready".to_owned()))
                }
                SyncKind::Register if !has_begun => {
                    Err(SyncError::NotReady("the pod has no address yet".to_owned()))
                }
                SyncKind::Register if is_in => Ok(()),
                SyncKind::Deregister if is_out => Ok(()),
                _ => continue,
            };
            answered.push((number, answer));
        }
        let has_gates = waiting.has_open_gates(key, pod);
        let names = wanted.registrations.iter().map(|(it, _)| it.name.clone()).collect();
        for (number, answer) in answered {
            self.waiting.requests.remove(&number);
            self.waiting.actions.push_back(Action::Reply(number, answer));
        }
        let is_asked = self.waiting.requests.values().any(|(_, pod)| pod == key);
        let patches = patch.is_some();
        if let Some(patch) = patch {
            self.waiting.patching(&patch);
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
}
