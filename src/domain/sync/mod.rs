//! The state of a bridge, as a machine without I/O: what Kubernetes shows and what Consul answers
//! go in, what is to be done next comes out. It decides everything; whoever owns it obeys.
//!
//! | file | what it is |
//! |---|---|
//! | `mod` | [`Core`]: events in, actions out; it routes between the two owners of state |
//! | `cluster` | what is known of Kubernetes, whoever leads |
//! | `confirm` | objects that a list lacked, and the second list |
//! | `node_watch` | the watch of nodes, which goes on only at times |
//! | `term` | what is known and under way on Consul's side, dropped with the lead |
//! | `start` | the first reconciliation of a term |
//! | `hold` | holds back removals that the silence of a list would cause |
//! | `plan` | from a Service that may have changed to what is written of it now |
//! | `ptr` | its PTR records |
//! | `wait` | the reasons for which a record is not written now |
//! | `apply` | takes plans, and gives what is sent next |
//! | `answers` | what Consul's answers mean |
//! | `resync` | all that is ours in Consul is compared with what is known |
//! | `contention` | records that somebody else keeps changing |
//! | `namespace_nodes` | the catalog's nodes for namespaces |
//! | `schedule` | when Consul is looked at, and what has succeeded so far |
//! | `contact` | when Consul was heard |
//! | `readiness` | whether the work is being done, and why not |
//! | `ledger` | what Consul is known to have |
//! | `problems` | the problems of objects |
//! | `queue` | each Service once, in the order in which they came |
//! | `target` | what the agent and the catalog want differently |
//!
//! Kept here:
//! - **Nothing is removed out of ignorance**: nothing is written before every kind is listed and
//!   Consul is read (`start`); what a list no longer shows is confirmed or held (`confirm`, `hold`);
//!   only a complete resync says that a record is gone (`resync`); of Services whose nodes are not
//!   listed, or that cannot be read, nothing is taken (`plan`, `node_watch`).
//! - **Only our own records are touched**: foreign names and PTR keys stay as they are (`plan`,
//!   `ptr`), a namespace node with something foreign too (`namespace_nodes`).
//! - **It converges**: whatever a write's fate, its Service is planned again (`answers`).
//! - **Equal means silent**: writes are the difference between what is desired and known (`plan`).
//! - **Newer wins**: a record with a write in flight is left alone until its answer (`plan`), a
//!   namespace node while anything is (`namespace_nodes`), and a resync does not speak of a record
//!   that was written since it began.
//! - **One bad object harms only itself**: refusals and waits are per record (`retries`), problems
//!   per object.
//! - **A deposed leader plans nothing**: its term is gone (`term`). That what it has sent does not get
//!   in any more is the transactions' to see to.

mod answers;
mod apply;
mod cluster;
mod confirm;
mod contact;
mod contention;
mod hold;
mod ledger;
mod namespace_nodes;
mod node_watch;
mod plan;
mod problems;
mod ptr;
mod queue;
mod readiness;
mod resync;
mod schedule;
mod start;
mod target;
mod term;
mod wait;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use self::cluster::{Changes, Cluster};
use self::confirm::Ask;
use self::contact::Contact;
pub use self::hold::Cause;
use self::hold::is_most;
pub use self::ledger::KnownRegistration;
use self::plan::View;
pub use self::plan::{Plan, Planned};
pub use self::readiness::{NotReady, Once, Readiness};
use self::resync::Drift;
pub use self::target::{Capacity, Target};
use self::term::Term;
pub use self::wait::Wait;
pub use super::Moment;
use super::consul::names::ForeignNames;
use super::consul::ptr::ConsulDomain;
use super::consul::record::{
    Answer, NamespaceNodeAnswer, Observation, ObservedPtr, RecordKey, Write,
};
use super::flights::FlightId;
use super::kube::cache::ClusterCache;
use super::kube::names::ObjectKey;
use super::kube::object::{Kind, Subject, WatchEvent};
use super::problem::Problem;
use super::report::difference::{FieldChange, registration_difference};
use super::services::settings::Settings;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is registered.
    pub settings: Settings,
    /// Where the records go.
    pub target: Target,
    /// How much may be sent at a time.
    pub capacity: Capacity,
    /// Least time between two resyncs.
    pub resync: Duration,
    /// Any number that differs between replicas, so that their resyncs drift apart.
    pub seed: u64,
    /// For one that synchronizes once: see [`Core::once`].
    pub once: Option<Duration>,
}

/// The state of a bridge.
///
/// Events come in by `handle_*`, at any time, with a `now` that never decreases: events of
/// Kubernetes, of the process and of the election, and the answers to actions. What is to be done
/// comes out by `poll_action`. After any of the former, in this order:
///
/// 1. [`poll_action`](Self::poll_action) until it gives nothing, starting each action;
/// 2. [`take_reports`](Self::take_reports);
/// 3. [`readiness`](Self::readiness), and the other getters, as one likes;
/// 4. wait for the next event, and until [`next_timeout`](Self::next_timeout) at the latest; then
///    [`handle_timeout`](Self::handle_timeout).
///
/// Once `poll_action` has given nothing, `next_timeout` is later than its `now`, or there is none.
///
/// The first event is [`handle_connected`](Self::handle_connected), but for those of Kubernetes.
/// With [`handle_acquired`](Self::handle_acquired) a term begins: from then on Consul is read and
/// written. With [`handle_lost`](Self::handle_lost) it ends, and the answers to all that was asked of
/// Consul in it must not be handed in any more: whoever owns this drops the requests.
#[derive(Debug)]
pub struct Core {
    config: Config,
    cluster: Cluster,
    /// What is known of the other side; `None` until the handshake is over.
    peer: Option<Peer>,
    contact: Contact,
    term: Option<Term>,
    /// The first flight of the next term.
    next_flight: FlightId,
    /// While this one does not lead: whether another one is known to.
    other_leads: bool,
    /// Whether everything was ever in sync.
    was_in_sync: bool,
    /// When a write was applied last, or Consul was read for the first time in a term.
    last_step: Moment,
    /// The newest `now`.
    now: Moment,
    /// What has to be done whoever leads.
    due: VecDeque<Action>,
    reports: Vec<Report>,
}

/// What the handshake found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What PTR records end with; `None`: none can be written.
    pub domain: Option<ConsulDomain>,
    /// Whether the catalog can be asked for what the agent should have passed on.
    pub shows_catalog: bool,
}

/// What the owner of the state has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send these groups in one request; wants [`Core::handle_answers`].
    Write {
        /// The number to answer with.
        flight: FlightId,
        /// What is sent, in order.
        groups: Vec<Group>,
    },
    /// Read this PTR key; wants [`Core::handle_ptr_read`].
    ReadPtr {
        /// The number to answer with.
        flight: FlightId,
        /// The KV key.
        key: Box<str>,
    },
    /// Remove the catalog's node of this namespace, on which nothing is registered any more; wants
    /// [`Core::handle_namespace_node`]. Only with [`Target::Catalog`].
    RemoveNamespaceNode {
        /// The number to answer with.
        flight: FlightId,
        /// The namespace.
        namespace: Box<str>,
    },
    /// Read all that is ours; wants each record in [`Core::handle_observation`], and then
    /// [`Core::handle_resync`]. One at a time.
    Resync {
        /// Whether it must show all that a former leader has written.
        consistent: bool,
    },
    /// Read the names under which others than bridges hold instances; wants
    /// [`Core::handle_names`]. Those of [`Core::held_names`] need no answer.
    ReadNames,
    /// Read which service IDs the catalog shows on the agent's node; wants
    /// [`Core::handle_catalog`]. Only with [`Target::Agent`].
    ReadCatalog,
    /// List all kinds again, by a quorum.
    Relist,
    /// Read the cluster's identity; wants [`Core::handle_identity`].
    ReadIdentity,
    /// Watch nodes.
    WatchNodes,
    /// Watch nodes no longer.
    StopWatchingNodes,
    /// Write the agent's marker, with the token in use now, and watch it; wants
    /// [`Core::handle_marker_written`]. Only with [`Target::Agent`].
    WriteMarker,
    /// Ask Consul for a sign of life; wants [`Core::handle_heartbeat`].
    Heartbeat,
}

/// Writes that belong together: one record, or an instance with its PTR record. If one fails, those
/// after it are not sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The Service.
    pub service: ObjectKey,
    /// The writes, in order.
    pub writes: Vec<Write>,
}

/// Something that people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A Service's records in Consul are as they ought to be again.
    InSync {
        /// The Service.
        service: ObjectKey,
        /// How many records were written.
        written: usize,
        /// How many were removed.
        removed: usize,
        /// How many instances it has now.
        instances: usize,
    },
    /// An object has a problem that it did not have before.
    Problem(Subject, ObjectKey, Problem),
    /// An object no longer has this problem.
    Solved(Subject, ObjectKey, Problem),
    /// It is no longer known here whether the object has this problem: another one leads.
    Withdrawn(Subject, ObjectKey, Problem),
    /// Removals are held back.
    Held {
        /// Why.
        cause: Cause,
        /// How many records would be removed or turn critical.
        lost: usize,
        /// Of how many.
        total: usize,
    },
    /// Held removals are confirmed, or the second list showed again what was missing.
    Released {
        /// Whether there is something to remove.
        confirmed: bool,
    },
    /// A resync found that a record was not as we had left it. Of many only the first are told.
    Drifted {
        /// The Service that it belongs to.
        service: ObjectKey,
        /// Which.
        record: RecordKey,
        /// The fields that are not as they ought to be. None of a record that is gone.
        fields: Vec<FieldChange>,
        /// What is known of who changed it.
        found: String,
    },
    /// A resync found that this many records were not as we had left them.
    Fixed(usize),
    /// Something with our mark is in a place where no bridge with these options writes.
    Stray(String),
    /// A side did not do what it was asked for; what follows, and why.
    Failed(&'static str, String),
}

/// How many of what there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services in the cluster.
    pub services: usize,
    /// Our registrations in Consul.
    pub registrations: usize,
    /// Our PTR records in Consul.
    pub ptr_records: usize,
    /// Services that have to be planned or have something under way.
    pub backlog: usize,
    /// Problems.
    pub problems: usize,
}

// === impl Config ===

impl Config {
    /// These settings, with a capacity and a period that fit tests and tools.
    pub fn new(settings: Settings, target: Target) -> Self {
        let capacity = match target {
            Target::Agent => Capacity { flights: 16, groups: 1 },
            Target::Catalog => Capacity { flights: 4, groups: 60 },
        };
        Self { settings, target, capacity, resync: Duration::from_mins(1), seed: 0, once: None }
    }

    fn view<'a>(
        &'a self,
        cluster: &'a Cluster,
        term: &'a Term,
        domain: Option<&'a ConsulDomain>,
    ) -> View<'a> {
        View { settings: &self.settings, target: self.target, domain, cluster, term }
    }
}

// === impl Core ===

/// Events.
impl Core {
    /// A bridge that has seen nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            cluster: Cluster::default(),
            peer: None,
            contact: Contact::default(),
            term: None,
            next_flight: FlightId::FIRST,
            other_leads: false,
            was_in_sync: false,
            last_step: Moment::ZERO,
            now: Moment::ZERO,
            due: VecDeque::new(),
            reports: Vec::new(),
        }
    }

    /// Takes what a watch says.
    pub fn handle_watch(&mut self, event: WatchEvent, now: Moment) {
        self.now = self.now.max(now);
        match event {
            WatchEvent::ListStarted(kind) => {
                self.cluster.cache.list_started(kind);
                self.cluster.suspects.list_started(kind);
            }
            WatchEvent::Seen(seen) => {
                let changes = self.cluster.seen(&self.config.settings, seen, &mut self.reports);
                self.mark(changes);
            }
            WatchEvent::ListCompleted(kind) => self.list_completed(kind, now),
            WatchEvent::Deleted(kind, key) => self.remove(kind, &key),
        }
        self.start_if_loaded(now);
    }

    /// A watch fails; `denied`: because a permission is missing, in these words.
    pub fn handle_watch_failure(&mut self, kind: Kind, denied: Option<String>, now: Moment) {
        self.now = self.now.max(now);
        if self.cluster.watch_failed(kind, denied) {
            self.mark_node_users();
        }
        self.start_if_loaded(now);
    }

    /// The handshake is over.
    pub fn handle_connected(&mut self, peer: Peer, now: Moment) {
        self.now = self.now.max(now);
        let changes = self.peer.as_ref().map(|peer| &peer.domain) != Some(&peer.domain);
        self.peer = Some(peer);
        self.contact.connected(now);
        if let Some(term) = self.term.as_mut().filter(|_| changes) {
            term.mark_all(&self.cluster);
        }
    }

    /// Leadership is acquired, or there is no election: from now on this one reads and writes.
    pub fn handle_acquired(&mut self, now: Moment) {
        self.now = self.now.max(now);
        self.term = Some(Term::new(&self.config, self.next_flight, now));
        self.other_leads = false;
    }

    /// Leadership is lost: another one may write from now on, and what is registered and what is
    /// wrong with it is that one's to tell. What Kubernetes shows is followed further on.
    pub fn handle_lost(&mut self, now: Moment) {
        self.now = self.now.max(now);
        if let Some(term) = self.term.take() {
            self.next_flight = term.flights.next_id();
            term.problems.withdraw(&mut self.reports);
        }
    }

    /// Takes, while this one does not lead, whether another one is known to.
    pub fn handle_candidacy(&mut self, other_leads: bool) {
        self.other_leads = other_leads;
    }

    /// The token changed: an agent keeps that of each registration.
    pub fn handle_token_changed(&mut self, now: Moment) {
        self.now = self.now.max(now);
        if !self.config.target.keeps_tokens() {
            return;
        }
        self.contact.write_marker(now);
        if let Some(term) = &mut self.term {
            term.resend_registrations(&self.cluster);
        }
    }

    /// The agent's marker is gone, or was changed: everything may be.
    pub fn handle_marker_lost(&mut self, now: Moment) {
        self.now = self.now.max(now);
        self.contact.write_marker(now);
        if let Some(term) = &mut self.term {
            term.marker_lost(now);
        }
    }
}

/// Answers to actions.
impl Core {
    /// Takes the answers to the writes of a flight; one that is missing counts as no answer.
    pub fn handle_answers(
        &mut self,
        flight: FlightId,
        answers: Vec<(RecordKey, Answer)>,
        now: Moment,
    ) {
        self.now = self.now.max(now);
        for (_, answer) in &answers {
            match answer {
                Answer::Failed(why) | Answer::Unanswered(why) => {
                    self.failed("a write failed and is tried again", why.clone());
                }
                Answer::NotSent => {}
                _ => self.contact.heard(now),
            }
            if matches!(answer, Answer::Applied { .. }) {
                self.last_step = now;
            }
        }
        if let Some(term) = &mut self.term {
            term.answers(self.config.target, flight, answers, now, &mut self.reports);
        }
    }

    /// Takes the answer to [`Action::ReadPtr`]: the entry, or why it could not be read.
    pub fn handle_ptr_read(
        &mut self,
        flight: FlightId,
        found: &Result<Option<ObservedPtr>, String>,
        now: Moment,
    ) {
        self.now = self.now.max(now);
        if let Some(term) = &mut self.term {
            term.ptr_read(&self.config.settings.cluster, flight, found, now, &mut self.reports);
        }
    }

    /// Takes the answer to [`Action::RemoveNamespaceNode`].
    pub fn handle_namespace_node(
        &mut self,
        flight: FlightId,
        answer: NamespaceNodeAnswer,
        now: Moment,
    ) {
        self.now = self.now.max(now);
        match &answer {
            NamespaceNodeAnswer::Failed(why) | NamespaceNodeAnswer::Unanswered(why) => {
                self.failed("the empty node of a namespace is not removed", why.clone());
            }
            NamespaceNodeAnswer::Fenced => {}
            _ => self.contact.heard(now),
        }
        if let Some(term) = &mut self.term {
            term.namespace_node_answered(flight, answer, now, &mut self.reports);
        }
    }

    /// Takes what the resync under way shows; without one it is nothing.
    pub fn handle_observation(&mut self, seen: Observation) {
        let Some(term) = &mut self.term else { return };
        term.observe(&self.config.settings.cluster, &seen);
        self.tell_drift(Some(&seen));
        if let Observation::Stray(what) = seen {
            self.reports.push(Report::Stray(what));
        }
    }

    /// Tells what was found changed: the record, and the fields where it is still there.
    fn tell_drift(&mut self, seen: Option<&Observation>) {
        let Some(mut term) = self.term.take() else { return };
        for Drift { service, record, found } in std::mem::take(&mut term.drift) {
            let fields = match seen {
                Some(Observation::Registration(observed)) => {
                    let desired = self.view(&term).desired(&service, &|_, _| false);
                    let wanted = desired.registrations.get(&observed.registration.id);
                    registration_difference(Some(&observed.registration), wanted)
                }
                _ => Vec::new(),
            };
            self.reports.push(Report::Drifted { service, record, fields, found });
        }
        self.term = Some(term);
    }

    /// The resync is over: it has shown all that is ours, or broke off or cannot be trusted.
    pub fn handle_resync(&mut self, result: Result<(), String>, now: Moment) {
        self.now = self.now.max(now);
        let Some(term) = &mut self.term else { return };
        if let Err(why) = result {
            term.give_up_resync(now);
            return self.failed("Consul cannot be read", why);
        }
        if term.schedule.is_first() {
            self.last_step = now;
        }
        self.contact.heard(now);
        term.finish_resync(&self.config, &mut self.cluster, now, &mut self.reports);
        self.tell_drift(None);
    }

    /// Takes the names under which others than bridges hold instances.
    pub fn handle_names(&mut self, result: Result<ForeignNames, String>, now: Moment) {
        self.now = self.now.max(now);
        let Some(term) = &mut self.term else { return };
        match result {
            Ok(names) => {
                self.contact.heard(now);
                term.schedule.names_succeeded(now);
                term.set_names(names, &self.cluster);
            }
            Err(why) => {
                term.schedule.names_failed(now);
                self.failed(
                    "the names that others hold cannot be read; no new name is registered",
                    why,
                );
            }
        }
    }

    /// Takes which service IDs the catalog shows.
    pub fn handle_catalog(&mut self, shown: Result<&dyn Fn(&str) -> bool, String>, now: Moment) {
        self.now = self.now.max(now);
        let Some(term) = &mut self.term else { return };
        match shown {
            Ok(shown) => {
                self.contact.heard(now);
                term.catalog_shows(&self.config.settings.cluster, shown, now);
            }
            Err(why) => {
                term.schedule.catalog_failed(now);
                self.failed("the catalog cannot be read", why);
            }
        }
    }

    /// Takes whether the cluster still is the one whose records these are, or why that cannot be
    /// told. Counts only for a second list that was asked for.
    pub fn handle_identity(&mut self, result: Result<(), String>, now: Moment) {
        self.now = self.now.max(now);
        self.cluster.suspects.identified(result.is_ok(), now);
        if let Err(why) = result {
            let what = "the cluster's identity cannot be read; removals wait";
            self.reports.push(Report::Failed(what, why));
        }
        self.release_if_confirmed();
    }

    /// Takes whether the agent's marker was written.
    pub fn handle_marker_written(&mut self, result: Result<(), String>, now: Moment) {
        self.now = self.now.max(now);
        match result {
            Ok(()) => self.contact.heard(now),
            Err(why) => {
                self.contact.marker_failed(now);
                self.failed("the sentinel cannot be written", why);
            }
        }
    }

    /// Takes whether Consul gave a sign of life.
    pub fn handle_heartbeat(&mut self, result: Result<(), String>, now: Moment) {
        self.now = self.now.max(now);
        self.contact.heartbeat_over(now);
        match result {
            Ok(()) => self.contact.heard(now),
            Err(why) => self.failed("no sign of life from Consul", why),
        }
    }
}

/// Time, and what comes out.
impl Core {
    /// When [`Core::handle_timeout`] has something to do, or [`Core::readiness`] may change.
    pub fn next_timeout(&self) -> Option<Moment> {
        let connected = self.peer.as_ref().map(|_| self.contact.next());
        let once =
            self.config.once.into_iter().flat_map(|limit| [limit, self.patience_ends(limit)]);
        let term = self.term.as_ref().map(|term| term.next_timeouts(self.asks_catalog(term)));
        let term = term.into_iter().flatten();
        let passing = connected.into_iter().flatten().chain(once).filter(|due| *due > self.now);
        passing.chain(self.cluster.next_timeout()).chain(term).min()
    }

    /// Takes up what is due.
    pub fn handle_timeout(&mut self, now: Moment) {
        self.now = self.now.max(now);
        match self.cluster.suspects.due(now) {
            Some(Ask::All) => self.due.extend([Action::Relist, Action::ReadIdentity]),
            Some(Ask::Identity) => self.due.push_back(Action::ReadIdentity),
            None => {}
        }
        if self.peer.is_some() {
            let heartbeat = self.contact.takes_heartbeat(now).then_some(Action::Heartbeat);
            let marker = self.contact.takes_marker(now).then_some(Action::WriteMarker);
            self.due.extend(heartbeat.into_iter().chain(marker));
        }
        if let Some(term) = &mut self.term {
            let due = term.retries.due(now);
            term.mark_each(due);
        }
    }

    /// What is to be done next; `None`: nothing now.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action> {
        let next = self.poll_look(now).or_else(|| {
            let domain = self.peer.as_ref().and_then(|peer| peer.domain.as_ref());
            let term = self.term.as_mut()?;
            term.next_write(&self.config, domain, &self.cluster, now, &mut self.reports)
        });
        // What follows from the last write may be that the catalog has to be asked.
        let next = next.or_else(|| self.next_look(now));
        if next.is_none() {
            self.was_in_sync |= self.is_in_sync();
        }
        next
    }

    /// As [`Core::poll_action`], without what is written: for one that has to know everything before
    /// it asks what would be.
    pub fn poll_look(&mut self, now: Moment) -> Option<Action> {
        self.handle_timeout(now);
        self.watch_nodes_if_wanted(now);
        self.due.pop_front().or_else(|| self.next_look(now))
    }

    /// What people want to know, since the last call.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    /// What is to be asked of Consul beside writing.
    fn next_look(&mut self, now: Moment) -> Option<Action> {
        let asks_catalog = self.term.as_ref().is_some_and(|term| self.asks_catalog(term));
        let term = self.term.as_mut()?;
        let is_due = |due: Option<Moment>| due.is_some_and(|due| due <= now);
        if is_due(term.schedule.next_resync()) {
            let consistent = term.schedule.is_first();
            term.begin_resync(now);
            return Some(Action::Resync { consistent });
        }
        if is_due(term.schedule.next_names()) {
            term.schedule.names_begin(now);
            return Some(Action::ReadNames);
        }
        if asks_catalog && is_due(term.schedule.next_catalog()) {
            term.schedule.catalog_begins(now);
            return Some(Action::ReadCatalog);
        }
        None
    }

    /// Whether the catalog can be asked for what the agent should have passed on.
    fn asks_catalog(&self, term: &Term) -> bool {
        self.config.target == Target::Agent
            && self.peer.as_ref().is_some_and(|peer| peer.shows_catalog)
            && term.is_settled()
    }

    /// Has nodes watched while a Service uses node ports, and only then.
    fn watch_nodes_if_wanted(&mut self, now: Moment) {
        let wanted = self.cluster.wants_nodes();
        if !self.cluster.node_watch.set(wanted) {
            return;
        }
        self.due.push_back(if wanted { Action::WatchNodes } else { Action::StopWatchingNodes });
        if !wanted {
            self.cluster.forget_nodes(&mut self.reports);
            if let Some(term) = &mut self.term {
                term.mark(ObjectKey::orphaned());
            }
            self.release_if_confirmed();
            self.start_if_loaded(now);
        }
    }
}

/// What is known.
impl Core {
    /// What Kubernetes shows.
    pub fn cache(&self) -> &ClusterCache {
        &self.cluster.cache
    }

    /// Whether all that can be listed is.
    pub fn is_listed(&self) -> bool {
        self.cluster.is_listed()
    }

    /// Whether this one reads and writes.
    pub fn is_leading(&self) -> bool {
        self.term.is_some()
    }

    /// Whether all is listed, read, planned and answered.
    pub fn is_settled(&self) -> bool {
        self.term.as_ref().is_some_and(Term::is_settled)
    }

    /// Whether removals are held back.
    pub fn is_holding(&self) -> bool {
        !self.cluster.suspects.objects.is_empty()
            || self.term.as_ref().is_some_and(|term| !term.holds.is_empty())
    }

    /// How many of what there are.
    pub fn counts(&self) -> Counts {
        let (cluster, term) = (&self.cluster, self.term.as_ref());
        Counts {
            services: cluster.cache.service_count(),
            registrations: term.map_or(0, |term| term.known.registration_count()),
            ptr_records: term.map_or(0, |term| term.known.ptr_count()),
            backlog: term.map_or(0, Term::backlog),
            problems: cluster.problems.count() + term.map_or(0, |term| term.problems.count()),
        }
    }

    /// The problems of all objects, by object.
    pub fn problems(&self) -> Vec<(Subject, &ObjectKey, &Problem)> {
        let term = self.term.iter().flat_map(|term| term.problems.iter());
        let mut all: Vec<_> = self.cluster.problems.iter().chain(term).collect();
        all.sort();
        all
    }

    /// The registrations that Consul is known to have of a Service, by ID.
    pub fn registrations_of(&self, service: &ObjectKey) -> &[KnownRegistration] {
        self.term.as_ref().map_or(&[], |term| term.known.of(service))
    }

    /// The Consul names that our registrations are under, as Consul looks them up.
    pub fn held_names(&self) -> HashSet<Arc<str>> {
        self.term.iter().flat_map(|term| term.known.names()).collect()
    }

    /// What would be done for a Service now, and why what is not as it ought to be waits. Nothing is
    /// known of that while this one does not lead, or has not made its first reconciliation.
    pub fn plan_of(&self, service: &ObjectKey, now: Moment) -> Option<Plan> {
        let term = self.term.as_ref().filter(|term| term.is_running())?;
        Some(self.view(term).plan(service, now))
    }

    /// Why Consul does not do what it is asked for, while it does not.
    pub fn consul_failure(&self) -> Option<&str> {
        self.contact.failure()
    }

    /// Lets go of all that the first reconciliation holds back, and says what and why: only a
    /// plan may, which shows it and writes nothing.
    pub fn release_holds(&mut self) -> BTreeMap<ObjectKey, Cause> {
        self.cluster.suspects.no_confirmation();
        let Some(term) = &mut self.term else { return BTreeMap::new() };
        let held = term.holds.release_all();
        term.mark_each(held.keys().cloned());
        held
    }
}

impl Core {
    fn view<'a>(&'a self, term: &'a Term) -> View<'a> {
        let domain = self.peer.as_ref().and_then(|peer| peer.domain.as_ref());
        self.config.view(&self.cluster, term, domain)
    }

    fn mark(&mut self, changes: Changes) {
        if let Some(term) = &mut self.term {
            term.mark_changes(changes);
        }
    }

    fn failed(&mut self, what: &'static str, why: String) {
        self.contact.failed(&why);
        self.reports.push(Report::Failed(what, why));
    }

    fn start_if_loaded(&mut self, now: Moment) {
        if let Some(term) = &mut self.term {
            term.start_if_loaded(&self.config, &mut self.cluster, now, &mut self.reports);
        }
    }

    /// Forgets an object of which it is known that it no longer exists.
    fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        if kind == Kind::Service
            && let Some(term) = &mut self.term
        {
            term.holds.release(key);
        }
        let changes = self.cluster.remove(&self.config.settings, kind, key, &mut self.reports);
        self.mark(changes);
    }

    fn list_completed(&mut self, kind: Kind, now: Moment) {
        let first = !self.cluster.cache.is_listed(kind);
        let missing = self.cluster.cache.list_completed(kind);
        self.absent(kind, missing, now);
        if kind == Kind::Node {
            self.cluster.node_watch.listed();
            if first {
                self.nodes_listed(now);
            }
        }
        self.cluster.suspects.list_completed(kind);
        self.release_if_confirmed();
    }

    /// Takes what a complete list of one kind did not show.
    fn absent(&mut self, kind: Kind, missing: Vec<ObjectKey>, now: Moment) {
        if missing.is_empty() {
            return;
        }
        let before = self.cluster.suspects.objects.len();
        let mut all = self.cluster.suspects.objects.clone();
        all.extend(missing.iter().map(|key| (kind, key.clone())));
        let running = self.term.as_ref().filter(|term| term.is_running());
        let (lost, total) = running.map_or((0, 0), |term| {
            (self.view(term).loss_without(&all), term.known.registration_count())
        });
        if !is_most(lost, total) {
            for key in missing {
                self.remove(kind, &key);
            }
            return;
        }
        if all.len() > before {
            // What is newly missing wants a second look of its own.
            self.cluster.suspects.confirm_later(now);
            self.reports.push(Report::Held { cause: Cause::Absence, lost, total });
        }
        self.cluster.suspects.objects = all;
    }

    /// The first list of nodes is complete. What they would take away after the first
    /// reconciliation is weighed now.
    fn nodes_listed(&mut self, now: Moment) {
        let Some(term) = self.term.as_ref().filter(|term| term.is_running()) else { return };
        let view = self.view(term);
        let users = self.cluster.cache.node_users().iter();
        let losses: Vec<(ObjectKey, usize)> = users
            .filter_map(|key| {
                let (_, lost) = view.first_loss(key, &view.desired(key, &|_, _| false))?;
                Some((key.clone(), lost))
            })
            .collect();
        let lost = losses.iter().map(|(_, lost)| lost).sum();
        let total = term.known.registration_count();
        self.mark_node_users();
        let Some(term) = &mut self.term else { return };
        term.mark(ObjectKey::orphaned());
        if is_most(lost, total) {
            for (service, _) in losses {
                term.holds.hold(service, Cause::Absence);
            }
            self.cluster.suspects.confirm_later(now);
            self.reports.push(Report::Held { cause: Cause::Absence, lost, total });
        }
    }

    fn mark_node_users(&mut self) {
        if let Some(term) = &mut self.term {
            term.mark_each(self.cluster.cache.node_users().clone());
        }
    }

    /// Releases what was held for absence once the second list agrees.
    fn release_if_confirmed(&mut self) {
        if !self.cluster.suspects.is_confirmed(self.cluster.cache.evidence()) {
            return;
        }
        self.cluster.suspects.no_confirmation();
        let suspects = std::mem::take(&mut self.cluster.suspects.objects);
        let mut confirmed = !suspects.is_empty();
        for (kind, key) in suspects {
            self.remove(kind, &key);
        }
        if let Some(mut term) = self.term.take() {
            for service in term.holds.release_absent() {
                confirmed |= self.view(&term).loses(&service);
                term.mark(service);
            }
            self.term = Some(term);
        }
        self.reports.push(Report::Released { confirmed });
    }
}

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;
