//! The core of the node daemon: no I/O, no clock, no log.
//!
//! Events go in by `handle_…`; then [`Core::poll_action`] gives what is to be done until there is
//! nothing left, [`Core::poll_report`] what people are told, and [`Core::next_timeout`] when to call
//! again at the latest. An action that is a request is answered by the `handle_…` that is named there.
//!
//! Nothing is removed out of ignorance (invariant: evidence): only what the agent shows with our mark,
//! after a complete list of the pods, and not while a list that lost more than half is not confirmed.

mod agent;
mod hold;
mod requests;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::state::{Agent, Hold};
use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::WatchEvent;
use crate::domain::kube::store::Store;
use crate::domain::node::exchange::{Action, Answer, PodView, Report};
use crate::domain::node::pod::{Phase, Pod, Seen};
use crate::domain::node::record::{Known, Record, Removal, Step};
use crate::domain::node::sidecar::Sidecar;
use crate::domain::node::waiting::Waiting;
use crate::domain::node::wanted::{CheckStatus, Defaults, Wanted, wanted};
use crate::domain::problem::{Problem, Reason};

/// Requests to the agent at a time: an agent takes 200 connections of one client, and 250 checks of
/// which every fifth takes a quarter of 11 s keep 25 busy.
pub const MAX_FLIGHTS: usize = 64;
/// Registrations and removals among them: an agent that does not answer these must not keep the
/// heartbeats of others from it.
const MAX_WHOLE: usize = MAX_FLIGHTS / 2;

/// What is known of a pod beside what Kubernetes shows; nothing yet of one that cannot be read.
#[derive(Debug, Default)]
struct PodState {
    uid: Box<str>,
    sidecar: Sidecar,
    wanted: Wanted,
    /// What was reported.
    problems: BTreeSet<Problem>,
}

/// How many of what there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Pods that ask to be registered.
    pub pods: usize,
    /// Registrations that the agent has.
    pub registrations: usize,
    /// Those of them whose check is passing.
    pub passing: usize,
    /// Those of them whose check is warning; the rest is critical.
    pub warning: usize,
    /// Registrations that are not as they ought to be.
    pub backlog: usize,
    /// Problems of pods, by reason.
    pub problems: BTreeMap<Reason, usize>,
}

/// The owner of the state.
#[derive(Debug)]
pub struct Core {
    defaults: Defaults,
    pods: Store<Pod>,
    states: BTreeMap<ObjectKey, PodState>,
    records: BTreeMap<Box<str>, Record>,
    /// When each record is looked at.
    queue: BTreeSet<(Moment, Box<str>)>,
    flights: usize,
    /// Those of them that are more than a heartbeat.
    whole: usize,
    /// Records for which one more of these is too many.
    crowded: BTreeSet<Box<str>>,
    /// Counts writes: what a reading shows of a record that was written since it began is old.
    writes: u64,
    agent: Agent,
    /// Pods whose problems may have changed.
    touched: BTreeSet<ObjectKey>,
    waiting: Waiting,
    hold: Option<Hold>,
    /// Whether lists agree that there is no pod at all.
    is_empty: bool,
    is_relist_wanted: bool,
    /// When the list that is under way began.
    list_began: Moment,
    reports: VecDeque<Report>,
}

// === impl Core ===

impl Core {
    /// Nothing is known.
    pub fn new(defaults: Defaults) -> Self {
        Self {
            defaults,
            pods: Store::default(),
            states: BTreeMap::new(),
            records: BTreeMap::new(),
            queue: BTreeSet::new(),
            flights: 0,
            whole: 0,
            crowded: BTreeSet::new(),
            writes: 0,
            agent: Agent::default(),
            touched: BTreeSet::new(),
            waiting: Waiting::default(),
            hold: None,
            is_empty: false,
            is_relist_wanted: false,
            list_began: Moment::ZERO,
            reports: VecDeque::new(),
        }
    }

    /// A watch of the pods, or a poll of the kubelet, shows this. Whether it shows another state of a
    /// pod than before.
    pub fn handle_watch(&mut self, event: WatchEvent<Seen>, now: Moment) -> bool {
        match event {
            WatchEvent::ListStarted(_) => {
                self.list_began = now;
                self.pods.list_started();
            }
            WatchEvent::Seen(Seen::Pod(key, pod)) => {
                let is_new = self.pods.seen(key.clone(), pod);
                if is_new {
                    self.plan(&key, now);
                }
                return is_new;
            }
            WatchEvent::Seen(Seen::Undecodable(key, why)) => {
                self.pods.undecodable(key.clone(), why);
                self.states.entry(key.clone()).or_default();
                self.touched.insert(key);
            }
            WatchEvent::Deleted(_, key) => {
                self.pod_gone(&key, false, now);
                return true;
            }
            WatchEvent::ListCompleted(_) => self.listed(now),
        }
        false
    }

    /// What became of the write of this ID.
    pub fn handle_answer(&mut self, id: &str, action: &Action, answer: Answer, now: Moment) {
        let is_whole = !matches!(action, Action::Update { .. });
        self.landed(is_whole, now);
        match &answer {
            Answer::Unanswered(why) => self.unanswered(why, now),
            _ => self.answered(now),
        }
        let default_ttl = self.default_ttl();
        let Some(record) = self.records.get_mut(id) else { return };
        record.in_flight = false;
        record.written = self.writes;
        let pod = record.pod.clone();
        let report = match answer {
            Answer::Done => {
                record.succeeded(is_whole);
                done(record, id, action, default_ttl, now)
            }
            Answer::UnknownCheck(why) => {
                record.lost(id, now);
                Some(Report::Drifted(id.into(), why))
            }
            failed => {
                record.failed(id, is_whole, &failed, now);
                None
            }
        };
        self.reports.extend(report);
        self.propagated(id, now);
        self.waiting.touch(&pod);
        self.touched.insert(pod);
        self.touch(id, now);
    }

    /// A write was answered: was it the last one that followed from a change?
    fn propagated(&mut self, id: &str, now: Moment) {
        let Some(record) = self.records.get(id) else { return };
        let is_settled = match record.step(self.removal(record), false, now) {
            Step::Wait(_) => !record.is_paused(now),
            Step::Forget => true,
            _ => false,
        };
        if is_settled
            && let Some(record) = self.records.get_mut(id)
            && let Some(since) = record.changed.take()
        {
            self.reports.push_back(Report::Propagated(now.saturating_sub(since)));
        }
    }

    /// Notes since when something is to be written because of a change, if anything is.
    fn note_change(&mut self, id: &str, now: Moment) {
        let Some(record) = self.records.get(id) else { return };
        let step = record.step(self.removal(record), false, now);
        let follows = record.in_flight || !matches!(step, Step::Wait(_) | Step::Forget);
        let follows = follows && self.is_started();
        if let Some(record) = self.records.get_mut(id) {
            record.changed = follows.then(|| record.changed.unwrap_or(now));
        }
    }

    /// A write is under way no longer.
    fn landed(&mut self, is_whole: bool, now: Moment) {
        self.flights -= 1;
        self.writes += 1;
        if is_whole {
            self.whole -= 1;
            if let Some(id) = self.crowded.pop_first() {
                self.touch(&id, now);
            }
        }
    }

    /// What is to be done next, if anything.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action> {
        self.ask_again(now);
        if self.agent.reading.is_none() && self.agent.next <= now {
            self.agent.reading = Some(self.writes);
            return Some(Action::ReadAgent);
        }
        if std::mem::take(&mut self.is_relist_wanted) {
            return Some(Action::Relist);
        }
        if let Some(action) = self.poll_waiting(now) {
            return Some(action);
        }
        if !self.is_started() || self.agent.other.is_some() {
            return None;
        }
        while self.flights < MAX_FLIGHTS {
            let (due, id) = self.queue.first()?;
            if *due > now {
                return None;
            }
            let id = id.clone();
            self.queue.pop_first();
            if let Some(action) = self.next_step(&id, now) {
                return Some(action);
            }
        }
        None
    }

    /// When [`Core::poll_action`] has to be asked again at the latest.
    pub fn next_timeout(&self) -> Option<Moment> {
        let read = self.agent.reading.is_none().then_some(self.agent.next);
        let may_write =
            self.is_started() && self.flights < MAX_FLIGHTS && self.agent.other.is_none();
        let record = self.queue.first().map(|(due, _)| *due).filter(|_| may_write);
        let hold = self.hold.as_ref().map(|hold| hold.ask);
        [read, record, hold, self.waiting.next_timeout()].into_iter().flatten().min()
    }

    /// What is to be told next.
    pub fn poll_report(&mut self) -> Option<Report> {
        while let Some(key) = self.touched.pop_first() {
            self.report_problems(&key);
        }
        self.reports.pop_front()
    }

    /// Whether the lists are complete and the agent was read.
    pub fn is_started(&self) -> bool {
        self.pods.is_complete() && self.agent.is_read
    }

    /// Whether the pods were listed.
    pub fn is_listed(&self) -> bool {
        self.pods.is_complete()
    }

    /// Whether removals are held back.
    pub fn is_holding(&self) -> bool {
        self.hold.is_some()
    }

    /// Registrations that are not as they ought to be.
    fn backlog(&self) -> usize {
        let is_so = |it: &&Record| {
            it.in_flight || !matches!(it.step(self.removal(it), false, Moment::ZERO), Step::Wait(_))
        };
        self.records.values().filter(is_so).count()
    }

    /// One of the registrations that the agent has, to notice when it loses them.
    pub fn canary(&self) -> Option<&str> {
        let mut known = self.records.iter().filter(|(_, record)| record.known.is_some());
        known.next().map(|(id, _)| &**id)
    }

    /// The uid of a pod.
    pub fn uid(&self, key: &ObjectKey) -> Option<Arc<str>> {
        self.pods.get(key).map(|pod| Arc::from(&*pod.uid))
    }

    /// How many of what there are.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { backlog: self.backlog(), ..Counts::default() };
        for state in self.states.values() {
            counts.pods += usize::from(state.wanted.is_ours);
            for problem in &state.problems {
                *counts.problems.entry(problem.reason).or_default() += 1;
            }
        }
        for known in self.records.values().filter_map(|record| record.known.as_ref()) {
            counts.registrations += 1;
            match known.check.as_ref().map(|(status, _)| *status) {
                Some(CheckStatus::Passing) => counts.passing += 1,
                Some(CheckStatus::Warning) => counts.warning += 1,
                Some(CheckStatus::Critical) | None => {}
            }
        }
        counts
    }

    /// The problems of all pods.
    pub fn problems(&self) -> impl Iterator<Item = (&ObjectKey, &Problem)> {
        let states = self.states.iter();
        states.flat_map(|(key, state)| state.problems.iter().map(move |problem| (key, problem)))
    }

    /// The pods that ask to be registered, those after `after` only: for `/status`.
    pub fn pods(
        &self,
        after: Option<&ObjectKey>,
    ) -> impl Iterator<Item = (&ObjectKey, PodView<'_>)> {
        let ours = self.states.iter().filter(move |(key, state)| {
            state.wanted.is_ours && after.is_none_or(|after| *key > after)
        });
        ours.map(|(key, state)| {
            let registrations = state.wanted.registrations.iter().map(|(registration, _)| {
                let record = self.records.get(&registration.id);
                let known = record.and_then(|record| record.known.as_ref());
                let status = known.and_then(|it| it.check.as_ref()).map(|(status, _)| *status);
                let beats = status.is_some_and(|status| status != CheckStatus::Critical);
                (&*registration.id, status, record.filter(|_| beats).map(|record| record.beat))
            });
            let view = PodView {
                is_ready: state.wanted.is_ready,
                sidecar: state.wanted.sidecar.as_deref().map(|_| state.sidecar.as_str()),
                registrations: registrations.collect(),
                problems: &state.problems,
            };
            (key, view)
        })
    }

    fn default_ttl(&self) -> Duration {
        self.defaults.check_ttl.max(self.defaults.sync_interval + self.defaults.ttl_buffer)
    }

    fn pod_gone(&mut self, key: &ObjectKey, is_missing: bool, now: Moment) {
        self.pods.remove(key);
        self.waiting.touch(key);
        if let Some(state) = self.states.remove(key) {
            let solved = state.problems.into_iter();
            self.reports.extend(solved.map(|problem| Report::Solved(key.clone(), problem)));
        }
        for id in self.ids_of(key) {
            if let Some(record) = self.records.get_mut(&id) {
                record.wanted = None;
                record.is_missing = is_missing;
                self.note_change(&id, now);
                self.touch(&id, now);
            }
        }
    }

    fn ids_of(&self, key: &ObjectKey) -> Vec<Box<str>> {
        let of = self.records.iter().filter(|(_, record)| record.pod == *key);
        of.map(|(id, _)| id.clone()).collect()
    }

    /// What a pod wants now.
    fn plan(&mut self, key: &ObjectKey, now: Moment) {
        let Some(pod) = self.pods.get(key) else { return };
        let before = self.states.remove(key).filter(|state| state.uid == pod.uid);
        let mut state = before.unwrap_or_else(|| PodState {
            uid: pod.uid.clone(),
            sidecar: Sidecar::Silent,
            wanted: Wanted::default(),
            problems: BTreeSet::new(),
        });
        let is_new = state.wanted == Wanted::default();
        let first = wanted(key, pod, state.sidecar, &self.defaults);
        if let Some(container) = &first.sidecar {
            state.sidecar = match state.sidecar {
                Sidecar::Silent if is_new => Sidecar::found(pod, container),
                known => known.seen(pod, container),
            };
        }
        state.wanted = wanted(key, pod, state.sidecar, &self.defaults);
        let wanted = state.wanted.registrations.clone();
        let has_no_address = pod.phase == Phase::Running && pod.ip.is_none();
        self.states.insert(key.clone(), state);
        self.touched.insert(key.clone());
        self.waiting.touch(key);
        let mut left: BTreeSet<_> = self.ids_of(key).into_iter().collect();
        for (registration, state) in wanted {
            let id = registration.id.clone();
            left.remove(&id);
            let record = self.records.entry(id.clone()).or_insert_with(|| Record::new(key.clone()));
            record.pod = key.clone();
            record.is_missing = false;
            record.wanted = Some((registration, state));
            self.note_change(&id, now);
            self.touch(&id, now);
        }
        for id in left {
            if let Some(record) = self.records.get_mut(&id) {
                record.is_missing = false;
                match &mut record.wanted {
                    // It is about to have another one: until then its check says enough.
                    Some((_, state)) if has_no_address => {
                        if !state.is_fixed {
                            state.status = CheckStatus::Critical;
                        }
                    }
                    wanted => *wanted = None,
                }
                self.note_change(&id, now);
                self.touch(&id, now);
            }
        }
    }

    /// What becomes of a record that is not wanted.
    fn removal(&self, record: &Record) -> Removal {
        if self.is_empty && record.is_missing {
            Removal::Critical
        } else if self.hold.is_some() && record.is_missing
            || self.pods.listing().reason(&record.pod).is_some()
        {
            Removal::Kept
        } else {
            Removal::Due
        }
    }

    /// The next request for a record, or nothing for now.
    fn next_step(&mut self, id: &str, now: Moment) -> Option<Action> {
        let removal = self.removal(self.records.get(id)?);
        let is_foreign = self.agent.foreign.contains_key(id);
        let is_crowded = self.whole >= MAX_WHOLE;
        let default_ttl = self.default_ttl();
        let record = self.records.get_mut(id)?;
        record.due = None;
        let step =
            if is_foreign { Step::Wait(None) } else { record.step(removal, is_crowded, now) };
        let action = match step {
            Step::Wait(until) => {
                if let Some(until) = until {
                    self.touch(id, until);
                }
                return None;
            }
            // A reading that began before its removal may still show it.
            Step::Forget if self.agent.reading.is_some_and(|began| record.written > began) => {
                return None;
            }
            Step::Forget => {
                self.records.remove(id);
                return None;
            }
            Step::Crowded => {
                self.crowded.insert(id.into());
                return None;
            }
            Step::Register => {
                let (registration, state) = record.wanted.clone()?;
                Action::Register(Box::new(registration), state)
            }
            Step::RemoveCheck => Action::RemoveCheck(id.into()),
            Step::Update(state) => {
                let deadline = record.ttl(default_ttl) / 4;
                Action::Update { id: id.into(), state, deadline }
            }
            Step::Deregister => Action::Deregister(id.into()),
        };
        self.writes += 1;
        self.flights += 1;
        self.whole += usize::from(!matches!(action, Action::Update { .. }));
        record.in_flight = true;
        record.written = self.writes;
        Some(action)
    }

    /// The record is looked at at that moment, or sooner.
    fn touch(&mut self, id: &str, at: Moment) {
        let Some(record) = self.records.get_mut(id) else { return };
        if record.due.is_some_and(|due| due <= at) {
            return;
        }
        if let Some(due) = record.due.replace(at) {
            self.queue.remove(&(due, id.into()));
        }
        self.queue.insert((at, id.into()));
    }

    fn touch_all(&mut self, now: Moment) {
        for id in self.records.keys().cloned().collect::<Vec<_>>() {
            self.touch(&id, now);
        }
    }

    fn report_problems(&mut self, key: &ObjectKey) {
        let Some(state) = self.states.get_mut(key) else { return };
        let mut now: BTreeSet<_> = state.wanted.problems.iter().cloned().collect();
        if let Some(why) = self.pods.listing().reason(key) {
            now.insert(Problem::new(Reason::Undecodable, why));
        }
        now.extend(self.waiting.problem(key).cloned());
        for (registration, _) in &state.wanted.registrations {
            now.extend(self.agent.foreign.get(&registration.id).cloned());
            let record = self.records.get(&registration.id);
            now.extend(record.into_iter().flat_map(Record::problems).cloned());
        }
        let new = now.difference(&state.problems).cloned();
        self.reports.extend(new.map(|problem| Report::Problem(key.clone(), problem)));
        let solved = state.problems.difference(&now).cloned();
        self.reports.extend(solved.map(|problem| Report::Solved(key.clone(), problem)));
        state.problems = now;
    }
}

/// The agent did it.
fn done(
    record: &mut Record,
    id: &str,
    action: &Action,
    default_ttl: Duration,
    now: Moment,
) -> Option<Report> {
    let pod = record.pod.clone();
    match action {
        Action::Register(registration, state) => {
            // The agent keeps the status of a check that it has already.
            let is_new = record.known.is_none() && !record.is_uncertain;
            let check = is_new.then_some((state.status, None));
            record.is_uncertain = false;
            record.known = Some(Known { registration: (**registration).clone(), check });
            record.refreshed(id, default_ttl, now);
            Some(Report::Registered(pod, id.into(), state.status))
        }
        Action::Update { state, .. } => {
            record.refreshed(id, default_ttl, now);
            let known = record.known.as_mut()?;
            let before = known.check.replace((state.status, Some(state.output.clone())));
            let changed = before.is_none_or(|(status, _)| status != state.status);
            changed.then(|| Report::Changed(pod, id.into(), state.status))
        }
        Action::RemoveCheck(_) => {
            record.is_replaced = false;
            None
        }
        _ => {
            record.known = None;
            Some(Report::Deregistered(pod, id.into()))
        }
    }
}
