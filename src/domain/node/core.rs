//! The core of the node daemon: no I/O, no clock, no log.
//!
//! Events go in by `handle_…`; then [`Core::poll_action`] gives what is to be done until there is
//! nothing left, [`Core::poll_report`] what people are told, and [`Core::next_timeout`] when to call
//! again at the latest. An action that is a request is answered by the `handle_…` that is named there.
//!
//! Nothing is removed out of ignorance (invariant: evidence): only what the agent shows with our mark,
//! after a complete list of the pods, and not while a list that lost more than half is not confirmed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::WatchEvent;
use crate::domain::kube::store::Store;
use crate::domain::node::pod::{Phase, Pod, Seen};
use crate::domain::node::record::{Known, Record, Step, fraction};
use crate::domain::node::sidecar::Sidecar;
use crate::domain::node::waiting::{GatePatch, Waiting};
use crate::domain::node::wanted::{
    CheckStatus, Defaults, LINK, MARK, Registration, State, Wanted, deregistered, wanted,
};
use crate::domain::problem::{Problem, Reason};
use crate::domain::sidecar::SyncError;

/// Requests to the agent at a time: an agent takes 200 connections of one client, and 250 checks of
/// which every fifth takes a quarter of 11 s keep 25 busy.
pub const MAX_FLIGHTS: usize = 64;
/// Between two readings of the agent: what others changed there is noticed within it.
const RESYNC: Duration = Duration::from_mins(1);
/// Between two attempts to read an agent that does not answer. All is back within 2 s of its answer.
const REREAD: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
/// How long a list that lost more than half is not believed: the second one is another quorum read.
const HOLD: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read what the agent has: [`Core::handle_agent`].
    ReadAgent,
    /// List the pods again: a list follows.
    Relist,
    /// Register this, with this status if its check is new: [`Core::handle_answer`].
    Register(Box<Registration>, State),
    /// Tell the check of this ID: [`Core::handle_answer`].
    Update {
        /// The check.
        id: Box<str>,
        /// Its status and output.
        state: State,
        /// How long the agent may take: a quarter of the TTL.
        deadline: Duration,
    },
    /// Remove this from the agent: [`Core::handle_answer`].
    Deregister(Box<str>),
    /// Follow this service in the catalog: [`Core::handle_catalog`].
    Follow(Box<str>),
    /// Follow it no longer.
    Unfollow(Box<str>),
    /// Set conditions of a pod: [`Core::handle_patched`].
    Patch(Box<GatePatch>),
    /// Answer the request of this number.
    Reply(u64, Result<(), SyncError>),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// The agent has no such check, or one that is not ours.
    UnknownCheck(String),
    /// Consul refuses the content.
    Refused(String),
    /// The token may not.
    Denied(String),
    /// It failed, or nobody answered: it may be done or not.
    Failed(String),
}

/// A service in the agent that is ours, or in our way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub registration: Registration,
    /// The check of the same ID: its status and output. None where there is no TTL check.
    pub check: Option<(CheckStatus, Box<str>)>,
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A pod's registration was written; whether it passes.
    Registered(ObjectKey, Box<str>, CheckStatus),
    /// Its status changed.
    Changed(ObjectKey, Box<str>, CheckStatus),
    /// It was removed.
    Deregistered(ObjectKey, Box<str>),
    /// A pod has a problem.
    Problem(ObjectKey, Problem),
    /// It has it no longer.
    Solved(ObjectKey, Problem),
    /// Others changed, replaced or removed this in the agent.
    Drifted(Box<str>, String),
    /// So many registrations of so many would be removed: held back.
    Held(usize, usize),
    /// What was held back is confirmed, or has come again.
    Released,
}

/// What is known of a pod beside what Kubernetes shows.
#[derive(Debug)]
pub(super) struct PodState {
    uid: Box<str>,
    pub(super) sidecar: Sidecar,
    pub(super) wanted: Wanted,
    /// What was reported.
    problems: BTreeSet<Problem>,
}

/// The owner of the state.
#[derive(Debug)]
pub struct Core {
    defaults: Defaults,
    pub(super) pods: Store<Pod>,
    pub(super) states: BTreeMap<ObjectKey, PodState>,
    pub(super) records: BTreeMap<Box<str>, Record>,
    /// When each record is looked at.
    queue: BTreeSet<(Moment, Box<str>)>,
    flights: usize,
    /// Counts writes: what a reading shows of a record that was written since it began is old.
    writes: u64,
    agent: Agent,
    /// Pods whose problems may have changed.
    pub(super) touched: BTreeSet<ObjectKey>,
    pub(super) waiting: Waiting,
    hold: Option<Hold>,
    is_relist_wanted: bool,
    /// When the list that is under way began.
    list_began: Moment,
    reports: VecDeque<Report>,
}

/// The agent as it answers.
#[derive(Debug)]
struct Agent {
    /// Whether it was ever read.
    is_read: bool,
    /// A reading is under way; it began after so many writes.
    reading: Option<u64>,
    /// When it is read next.
    next: Moment,
    attempt: u32,
    /// Why it does not answer, while it does not.
    failure: Option<String>,
    answered: Option<Moment>,
    /// IDs of ours that others have, each with why.
    foreign: BTreeMap<Box<str>, Problem>,
    /// Pods whose sidecars deregistered with the daemon that was here before, each with the restarts
    /// of its container then.
    deregistered: BTreeMap<ObjectKey, i32>,
    /// Its node's name.
    node: Option<Box<str>>,
    /// The name that it had before, if it is another agent now.
    other: Option<Problem>,
}

/// Removals that are not believed yet.
#[derive(Debug)]
struct Hold {
    since: Moment,
    /// When the second list is asked for next.
    ask: Moment,
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
            writes: 0,
            agent: Agent {
                is_read: false,
                reading: None,
                next: Moment::ZERO,
                attempt: 0,
                failure: None,
                answered: None,
                foreign: BTreeMap::new(),
                deregistered: BTreeMap::new(),
                node: None,
                other: None,
            },
            touched: BTreeSet::new(),
            waiting: Waiting::default(),
            hold: None,
            is_relist_wanted: false,
            list_began: Moment::ZERO,
            reports: VecDeque::new(),
        }
    }

    /// A watch of the pods, or a poll of the kubelet, shows this.
    pub fn handle_watch(&mut self, event: WatchEvent<Seen>, now: Moment) {
        match event {
            WatchEvent::ListStarted(_) => {
                self.list_began = now;
                self.pods.list_started();
            }
            WatchEvent::Seen(Seen::Pod(key, pod)) => {
                if self.pods.seen(key.clone(), pod) {
                    self.plan(&key, now);
                }
            }
            WatchEvent::Seen(Seen::Undecodable(key, why)) => {
                self.pods.undecodable(key.clone(), why);
                self.touched.insert(key);
            }
            WatchEvent::Deleted(_, key) => self.pod_gone(&key, false, now),
            WatchEvent::ListCompleted(_) => self.listed(now),
        }
    }

    /// What the agent has, with its node's name if it says so. `Err`: it is not known, and why.
    pub fn handle_agent(
        &mut self,
        read: Result<(Vec<Found>, Option<Box<str>>), String>,
        now: Moment,
    ) {
        let began = self.agent.reading.take().unwrap_or(u64::MAX);
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

    /// The agent answers again, or may have lost what it had: it is read at once.
    pub fn handle_agent_changed(&mut self, now: Moment) {
        self.agent.next = now;
    }

    /// What became of the write of this ID.
    pub fn handle_answer(&mut self, id: &str, action: &Action, answer: Answer, now: Moment) {
        self.flights -= 1;
        self.writes += 1;
        if let Answer::Failed(why) = &answer {
            self.agent.failure = Some(why.clone());
            self.agent.next = self.agent.next.min(now + REREAD.first);
        } else {
            self.answered(now);
        }
        let default_ttl = self.default_ttl();
        let Some(record) = self.records.get_mut(id) else { return };
        record.in_flight = false;
        record.written = self.writes;
        let pod = record.pod.clone();
        let report = match answer {
            Answer::Done => {
                record.attempt = 0;
                record.pause = None;
                done(record, id, action, default_ttl, now)
            }
            Answer::UnknownCheck(why) => {
                record.known = None;
                record.is_uncertain = true;
                Some(Report::Drifted(id.into(), why))
            }
            failed => {
                record.failed(id, !matches!(action, Action::Update { .. }), failed, now);
                None
            }
        };
        self.reports.extend(report);
        self.waiting.touch(&pod);
        self.touched.insert(pod);
        self.touch(id, now);
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

    /// When the agent answered last, and why it does not, if it does not.
    pub fn agent(&self) -> (Option<Moment>, Option<&str>) {
        let other = self.agent.other.as_ref().map(|problem| &*problem.message);
        (self.agent.answered, other.or(self.agent.failure.as_deref()))
    }

    /// Registrations that are not as they ought to be.
    pub fn backlog(&self) -> usize {
        let is_so = |it: &&Record| {
            it.in_flight || !matches!(it.step(self.hold.is_some(), Moment::ZERO), Step::Wait(_))
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

    /// How many pods ask to be registered, how many registrations the agent has, how many problems
    /// there are.
    pub fn counts(&self) -> (usize, usize, usize) {
        let pods = self.states.values().filter(|state| state.wanted.is_ours).count();
        let known = self.records.values().filter(|record| record.known.is_some()).count();
        (pods, known, self.states.values().map(|state| state.problems.len()).sum())
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
                sidecar: state.wanted.sidecar.as_deref().map(|_| state.sidecar),
                registrations: registrations.collect(),
                problems: &state.problems,
            };
            (key, view)
        })
    }

    fn default_ttl(&self) -> Duration {
        self.defaults.check_ttl.max(self.defaults.sync_interval + self.defaults.ttl_buffer)
    }

    /// The agent answers: what waited for it is tried at once.
    fn answered(&mut self, now: Moment) {
        self.agent.answered = Some(now);
        self.agent.attempt = 0;
        if self.agent.failure.take().is_none() {
            return;
        }
        let waiting = self.records.iter_mut().filter_map(|(id, record)| {
            record.pause.take_if(|pause| pause.passes).map(|_| id.clone())
        });
        for id in waiting.collect::<Vec<_>>() {
            self.touch(&id, now);
        }
    }

    /// Whether this is another agent than before: nothing of one is removed for what the other has.
    fn is_other_agent(&mut self, node: Option<Box<str>>) -> bool {
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
    fn start(&mut self, now: Moment) {
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
        for (id, record) in &mut self.records {
            record.is_missing = record.wanted.is_none() && !self.states.contains_key(&record.pod);
            // When it was refreshed last is not known: soon, and not all at once.
            let quarter = record.period(self.defaults.check_ttl) / 2;
            record.beat = now + quarter.mul_f64(fraction(id));
        }
        self.evaluate_hold(now);
        self.touch_all(now);
    }

    /// The pods are listed completely.
    fn listed(&mut self, now: Moment) {
        let was_started = self.is_started();
        for key in self.pods.list_completed() {
            // One that was going when it was seen last has gone.
            let was_going = self.pods.get(&key).is_some_and(|pod| pod.is_terminating);
            self.pod_gone(&key, !was_going, now);
        }
        if !was_started && self.is_started() {
            self.start(now);
        }
        if !self.is_started() {
            return;
        }
        if self.hold.as_ref().is_some_and(|hold| self.list_began >= hold.since + HOLD) {
            self.hold = None;
            for record in self.records.values_mut() {
                record.is_missing = false;
            }
            self.reports.push_back(Report::Released);
            self.touch_all(now);
        }
        self.evaluate_hold(now);
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
                self.touch(&id, now);
            }
        }
    }

    fn ids_of(&self, key: &ObjectKey) -> Vec<Box<str>> {
        let of = self.records.iter().filter(|(_, record)| record.pod == *key);
        of.map(|(id, _)| id.clone()).collect()
    }

    /// Holds removals back where a list lost more than half of what the agent has.
    fn evaluate_hold(&mut self, now: Moment) {
        let known = self.records.values().filter(|record| record.known.is_some());
        let total = known.clone().count();
        let missing = known.filter(|it| it.wanted.is_none() && it.is_missing).count();
        if missing * 2 > total {
            if self.hold.is_none() {
                self.hold = Some(Hold { since: now, ask: now + HOLD });
                self.reports.push_back(Report::Held(missing, total));
            }
        } else if self.hold.take().is_some() {
            self.reports.push_back(Report::Released);
            self.touch_all(now);
        }
    }

    /// Asks for the second list once enough time has passed.
    fn ask_again(&mut self, now: Moment) {
        if let Some(hold) = &mut self.hold
            && hold.ask <= now
        {
            // Should the list not come it is asked for again.
            hold.ask = now + HOLD;
            self.is_relist_wanted = true;
        }
    }

    /// Compares what the agent shows with what is known.
    fn observe(&mut self, found: Vec<Found>, began: u64, now: Moment) {
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
            record.pause = None;
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

    /// What a pod wants now.
    pub(super) fn plan(&mut self, key: &ObjectKey, now: Moment) {
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
                self.touch(&id, now);
            }
        }
    }

    /// The next request for a record, or nothing for now.
    fn next_step(&mut self, id: &str, now: Moment) -> Option<Action> {
        let held = self.hold.is_some();
        let is_foreign = self.agent.foreign.contains_key(id);
        let record = self.records.get_mut(id)?;
        record.due = None;
        let step = if is_foreign { Step::Wait(None) } else { record.step(held, now) };
        let ttl = record.wanted.as_ref().and_then(|(registration, _)| registration.ttl);
        let action = match step {
            Step::Wait(until) => {
                if let Some(until) = until {
                    self.touch(id, until);
                }
                return None;
            }
            Step::Forget => {
                self.records.remove(id);
                return None;
            }
            Step::Register => {
                let (registration, state) = record.wanted.clone()?;
                Action::Register(Box::new(registration), state)
            }
            Step::Update(state) => {
                let deadline = ttl.unwrap_or(self.defaults.check_ttl) / 4;
                Action::Update { id: id.into(), state, deadline }
            }
            Step::Deregister => Action::Deregister(id.into()),
        };
        self.writes += 1;
        self.flights += 1;
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
            now.extend(record.and_then(|it| it.pause.as_ref()?.problem.clone()));
        }
        let new = now.difference(&state.problems).cloned();
        self.reports.extend(new.map(|problem| Report::Problem(key.clone(), problem)));
        let solved = state.problems.difference(&now).cloned();
        self.reports.extend(solved.map(|problem| Report::Solved(key.clone(), problem)));
        state.problems = now;
    }
}

/// What `/status` shows of a pod.
#[derive(Debug)]
pub struct PodView<'a> {
    /// Whether its containers are ready.
    pub is_ready: bool,
    /// What its sidecar said, if it has one.
    pub sidecar: Option<Sidecar>,
    /// Its registrations: ID, status in the agent, next heartbeat.
    pub registrations: Vec<(&'a str, Option<CheckStatus>, Option<Moment>)>,
    /// What is wrong with it.
    pub problems: &'a BTreeSet<Problem>,
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
        _ => {
            record.known = None;
            Some(Report::Deregistered(pod, id.into()))
        }
    }
}

/// The agent has this.
fn take_up(record: &mut Record, mut registration: Registration, status: Option<CheckStatus>) {
    let Some(status) = status else {
        // Without its check it has to be registered again.
        record.known = None;
        return;
    };
    match &mut record.known {
        Some(known) => {
            // What the agent does not show is as it was sent.
            registration.ttl = known.registration.ttl;
            registration.deregister_critical_after = known.registration.deregister_critical_after;
            known.registration = registration;
            // A status that is another than was told ran out, or others changed it.
            if known.check.as_ref().is_none_or(|known| known.0 != status) {
                known.check = Some((status, None));
            }
        }
        None => record.known = Some(Known { registration, check: Some((status, None)) }),
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
    if !known.registration.equals(&Registration { ttl: None, ..found.clone() }) {
        return Some("others changed it".to_owned());
    }
    let (was, is) = (known.check.as_ref()?.0, check?.0);
    (was != is).then(|| format!("its check is {}, expected {}", is.as_str(), was.as_str()))
}
