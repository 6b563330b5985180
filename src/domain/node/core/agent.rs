//! What the agent has beside what is known of it: readings, taking over, drift.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Core;
use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::exchange::{Found, Report};
use crate::domain::node::record::{Known, Record, fraction};
use crate::domain::node::sidecar::Sidecar;
use crate::domain::node::wanted::{CheckStatus, LINK, MARK, Registration, deregistered};
use crate::domain::problem::{Problem, Reason};

/// Between two readings of the agent: what others changed there is noticed within it.
const RESYNC: Duration = Duration::from_mins(1);
/// Between two attempts to read an agent that does not answer. All is back within 2 s of its answer.
const REREAD: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
/// Between two readings because writes got no answer: a reading costs what a hundred writes do.
const READ_GAP: Duration = Duration::from_secs(1);

// === impl Core ===

impl Core {
    /// What the agent has, with its node's name if it says so. `Err`: it is not known, and why.
    pub fn handle_agent(
        &mut self,
        read: Result<(Vec<Found>, Option<Box<str>>), String>,
        now: Moment,
    ) {
        let began = self.agent.reading.take().unwrap_or(u64::MAX);
        self.agent.last = now;
        self.touch_removed(now);
        let (found, node) = match read {
            Ok(read) => read,
            Err(why) => {
                self.agent.failure = Some(why);
                self.agent.next = now + REREAD.delay(self.agent.attempt, &"agent");
                self.agent.attempt = self.agent.attempt.saturating_add(1);
                return;
            }
        };
        self.agent.next = now + RESYNC;
        self.answered(now);
        if self.is_other_agent(node) {
            return;
        }
        self.observe(found, began, now);
        let was_started = std::mem::replace(&mut self.agent.is_read, true);
        if !was_started && self.pods.is_complete() {
            self.start(now);
        } else if self.is_started() {
            self.evaluate_hold(now);
        }
    }

    /// What was removed while a reading was under way can be forgotten once that is looked at.
    fn touch_removed(&mut self, now: Moment) {
        let is_removed = |record: &Record| record.known.is_none() && record.wanted.is_none();
        let removed = self.records.iter().filter(|(_, record)| is_removed(record));
        for id in removed.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.touch(&id, now);
        }
    }

    /// The agent answers again, or may have lost what it had: it is read at once.
    pub fn handle_agent_changed(&mut self, now: Moment) {
        self.agent.next = now;
    }

    /// Nobody answered a write: perhaps nobody is there.
    pub(super) fn unanswered(&mut self, why: &str, now: Moment) {
        self.agent.failure = Some(why.to_owned());
        let soon = (now + REREAD.first).max(self.agent.last + READ_GAP);
        self.agent.next = self.agent.next.min(soon);
    }

    /// When the agent answered last, and why it does not, if it does not.
    pub fn agent(&self) -> (Option<Moment>, Option<&str>) {
        let other = self.agent.other.as_ref().map(|problem| &*problem.message);
        (self.agent.answered, other.or(self.agent.failure.as_deref()))
    }

    /// The agent answers: what waited for it is tried at once.
    pub(super) fn answered(&mut self, now: Moment) {
        self.agent.answered = Some(now);
        self.agent.attempt = 0;
        if self.agent.failure.take().is_none() {
            return;
        }
        let waiting = self.records.iter_mut();
        let waiting = waiting.filter_map(|(id, record)| record.answered().then(|| id.clone()));
        for id in waiting.collect::<Vec<_>>() {
            self.touch(&id, now);
        }
    }

    /// Whether this is another agent than before: nothing of one is removed for what the other has.
    pub(super) fn is_other_agent(&mut self, node: Option<Box<str>>) -> bool {
        let Some(node) = node else { return false };
        let first = self.agent.node.get_or_insert_with(|| node.clone());
        self.agent.other = (*first != node).then(|| {
            Problem::new(
                Reason::Contested,
                format!(
                    "the agent was that of node {first:?} and is that of {node:?} now: several agents \
                     answer at this address; nothing is changed until the first answers again. Give \
                     the address of this node's own agent, or restart the daemon"
                ),
            )
        });
        self.agent.other.is_some()
    }

    /// Both sides are known: what the agent has is taken over.
    pub(super) fn start(&mut self, now: Moment) {
        let keys: Vec<_> = self.pods.iter_after(None).map(|(key, _)| key.clone()).collect();
        for (key, restarts) in std::mem::take(&mut self.agent.deregistered) {
            if let (Some(state), Some(pod)) = (self.states.get_mut(&key), self.pods.get(&key))
                && let Some(container) = &state.wanted.sidecar
            {
                state.sidecar = Sidecar::Deregistered { restarts }.seen(pod, container);
            }
        }
        for key in keys {
            self.plan(&key, now);
        }
        let others = self.records.iter().filter(|(_, record)| {
            let found = record.known.as_ref().map(|known| &known.registration);
            let is_wanted = found.is_some_and(|found| self.is_wanted_name(&record.pod, found));
            record.wanted.is_none() && is_wanted
        });
        for id in others.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.records.remove(&id);
        }
        let default_ttl = self.default_ttl();
        for (id, record) in &mut self.records {
            // What is written now changed before anybody looked.
            record.changed = None;
            record.is_missing = record.wanted.is_none() && !self.states.contains_key(&record.pod);
            // When it was refreshed last is not known: soon, and not all at once.
            let quarter = record.period(default_ttl) / 2;
            record.beat = now + quarter.mul_f64(fraction(id));
        }
        self.evaluate_hold(now);
        self.touch_all(now);
    }

    /// Compares what the agent shows with what is known.
    pub(super) fn observe(&mut self, found: Vec<Found>, began: u64, now: Moment) {
        let mut shown = BTreeSet::new();
        self.agent.foreign.clear();
        for Found { registration, check } in found {
            let id = registration.id.clone();
            if registration.meta.get(MARK.0).is_none_or(|it| it != MARK.1) {
                let message = format!(
                    "service {id:?} in the agent is not ours: expected meta {}={}, found none; \
                     remove it, and it is registered",
                    MARK.0, MARK.1
                );
                self.agent.foreign.insert(id, Problem::new(Reason::ForeignName, message));
                continue;
            }
            let link = registration.meta.get(LINK).and_then(|link| link.split_once('/'));
            let pod = link.map_or_else(ObjectKey::orphaned, |(namespace, name)| {
                ObjectKey::new(namespace, name)
            });
            shown.insert(id.clone());
            if !self.records.contains_key(&id) && self.is_wanted_name(&pod, &registration) {
                // Katalog-sync leaves such alone under any ID.
                continue;
            }
            let record = self.records.entry(id.clone()).or_insert_with(|| {
                let mut record = Record::new(pod.clone());
                // Its pod is not there, or does not want it.
                record.is_missing = !self.states.contains_key(&pod);
                record
            });
            if record.in_flight || record.written > began {
                continue;
            }
            if let Some(why) = drift(record.known.as_ref(), &registration, check.as_ref()) {
                self.reports.push_back(Report::Drifted(id.clone(), why));
            }
            if let Some((_, output)) = &check
                && let Some(restarts) = deregistered(output)
                && !self.agent.is_read
            {
                self.agent.deregistered.insert(pod.clone(), restarts);
            }
            let record = self.records.entry(id.clone()).or_insert_with(|| Record::new(pod));
            take_up(record, registration, check.map(|(status, _)| status));
            self.touch(&id, now);
        }
        let gone = self.records.iter_mut().filter(|(id, record)| {
            !shown.contains(*id)
                && record.known.is_some()
                && !record.in_flight
                && record.written <= began
        });
        let mut lost = Vec::new();
        for (id, record) in gone {
            record.known = None;
            record.succeeded(true);
            record.succeeded(false);
            if record.wanted.is_some() {
                self.reports
                    .push_back(Report::Drifted(id.clone(), "the agent has it no more".into()));
            }
            lost.push(id.clone());
        }
        for id in lost {
            self.touch(&id, now);
        }
        self.touched.extend(self.records.values().map(|record| record.pod.clone()));
    }

    /// Whether the agent's registration stands for a pod and a name of it, though under another ID.
    fn is_wanted_name(&self, pod: &ObjectKey, found: &Registration) -> bool {
        self.states.get(pod).is_some_and(|state| {
            let mut wanted = state.wanted.registrations.iter();
            wanted.any(|(it, _)| it.name == found.name && it.id != found.id)
        })
    }
}

/// The agent has this.
fn take_up(record: &mut Record, mut registration: Registration, status: Option<CheckStatus>) {
    let Some(status) = status else {
        // Without its check it has to be registered again.
        record.known = None;
        record.is_replaced = true;
        return;
    };
    // One that is as it ought to be is kept once.
    if let Some((wanted, _)) = record.wanted.as_ref().filter(|(it, _)| it.equals(&registration)) {
        registration = Registration { ttl: registration.ttl, ..wanted.clone() };
    }
    let Some(known) = &mut record.known else {
        record.known = Some(Known { registration, check: Some((status, None)) });
        return;
    };
    // What the agent does not show is as it was sent.
    registration.ttl = registration.ttl.or(known.registration.ttl);
    registration.deregister_critical_after = known.registration.deregister_critical_after;
    known.registration = registration;
    // A status that is another than was told ran out, or others changed it.
    if known.check.as_ref().is_none_or(|known| known.0 != status) {
        known.check = Some((status, None));
        if known.registration.ttl.is_none() {
            // Its TTL is not ours to know, and may be too short: with ours it lasts.
            record.known = None;
            record.is_uncertain = true;
        }
    }
}

/// What others changed, in words.
fn drift(
    known: Option<&Known>,
    found: &Registration,
    check: Option<&(CheckStatus, Box<str>)>,
) -> Option<String> {
    let known = known?;
    if check.is_none() {
        return Some("its check is gone".to_owned());
    }
    if !known.registration.equals(found) {
        return Some("others changed it".to_owned());
    }
    let (was, is) = (known.check.as_ref()?.0, check?.0);
    (was != is).then(|| format!("its check is {}, expected {}", is.as_str(), was.as_str()))
}
