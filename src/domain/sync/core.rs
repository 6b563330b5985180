//! The state of a bridge: events in, actions out. It routes between the two owners of state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::consul::names::{ForeignNames, Found};
use crate::domain::consul::ptr::ConsulDomain;
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, Observation, ObservedPtr, RecordKey,
};
use crate::domain::flights::FlightId;
use crate::domain::kube::cache::ClusterCache;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, Subject, WatchEvent};
use crate::domain::map::HashSet;
use crate::domain::problem::Problem;
use crate::domain::report::difference::registration_difference;
use crate::domain::services::desired::Desired;
use crate::domain::services::settings::PtrScope;
use crate::domain::sync::action::Action;
use crate::domain::sync::cluster::{Changes, Cluster};
use crate::domain::sync::config::{Config, Peer, Target};
use crate::domain::sync::confirm::Ask;
use crate::domain::sync::contact::Contact;
use crate::domain::sync::hold::Cause;
use crate::domain::sync::ledger::KnownRegistration;
use crate::domain::sync::plan::Plan;
use crate::domain::sync::readiness::{Once, Readiness, Standing};
use crate::domain::sync::report::{Counts, Report};
use crate::domain::sync::resync::Drift;
use crate::domain::sync::term::Term;
use crate::domain::sync::view::View;

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
    pub(super) config: Config,
    pub(super) cluster: Cluster,
    /// What is known of the other side; `None` until the handshake is over.
    peer: Option<Peer>,
    contact: Contact,
    pub(super) term: Option<Term>,
    /// The first flight of the next term.
    next_flight: FlightId,
    /// While this one does not lead: whether another one is known to.
    other_leads: bool,
    /// Whether everything was ever in sync in this term.
    was_in_sync: bool,
    /// When a write was applied last, or Consul was read for the first time in a term.
    last_step: Moment,
    /// The newest `now`.
    now: Moment,
    /// What has to be done whoever leads.
    due: VecDeque<Action>,
    pub(super) reports: Vec<Report>,
}

// === impl Core ===

/// Events.
impl Core {
    /// A bridge that has seen nothing yet.
    pub fn new(config: Config) -> Self {
        let cluster = Cluster::new(&config.settings);
        Self {
            config,
            cluster,
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
        if self.term.as_ref().is_some_and(Term::is_running) {
            self.cluster.report_selection(&self.config.settings, &mut self.reports);
        }
    }

    /// A watch fails; `denied`: because a permission is missing, in these words.
    pub fn handle_watch_failure(&mut self, kind: Kind, denied: Option<String>, now: Moment) {
        self.now = self.now.max(now);
        if self.cluster.watch_failed(kind, denied) {
            self.mark_node_users();
        }
        self.start_if_loaded(now);
    }

    /// The API server does not serve this kind, which is watched where it is there.
    pub fn handle_not_served(&mut self, kind: Kind, now: Moment) {
        self.now = self.now.max(now);
        self.cluster.not_served(kind);
        // Nobody waits for its second list any more.
        self.release_if_confirmed();
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
        // Others write meanwhile.
        self.was_in_sync = false;
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

    /// Consul is asked at another address from now on: whose records are there, and which, is read at
    /// once.
    pub fn handle_address_changed(&mut self, now: Moment) {
        self.now = self.now.max(now);
        if let Some(term) = &mut self.term {
            term.schedule.hurry_resync(now);
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
        self.report_drift(Some(&seen));
        if let Observation::Stray(what) = seen {
            self.reports.push(Report::Stray(what));
        }
    }

    /// Reports what was found changed: the record, and the fields where it is still there.
    fn report_drift(&mut self, seen: Option<&Observation>) {
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
        self.report_drift(None);
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
                term.names_failed(&why, &self.cluster, now);
                self.failed(
                    "the names that others hold cannot be read; no new name is registered",
                    why,
                );
            }
        }
    }

    /// Takes the answer to [`Action::ReadName`]: who else holds the name, or why that cannot be read.
    pub fn handle_name(&mut self, name: &str, result: Result<Option<Found>, String>, now: Moment) {
        self.now = self.now.max(now);
        let Some(term) = &mut self.term else { return };
        let failure = result.as_ref().err().cloned();
        term.name_looked_up(name, result, &self.cluster, now);
        match failure {
            None => self.contact.heard(now),
            Some(why) => self.failed("a new name cannot be looked up", why),
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

    /// Takes which of the PTR keys that are followed there are.
    pub fn handle_ptr_keys(&mut self, is_shown: &dyn Fn(&str) -> bool, now: Moment) {
        self.now = self.now.max(now);
        if let Some(term) = &mut self.term {
            term.ptr_keys_shown(is_shown);
        }
    }

    /// Takes whether the cluster still is the one whose records these are, or why that is not
    /// known. Counts only for a second list that was asked for.
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
        let once = self.config.once.into_iter();
        let once = once.flat_map(|limit| [limit, self.standing(self.now).patience_ends(limit)]);
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
            let unserved = term.unserved.due(now);
            let balancers = term.balancers.due(now);
            term.mark_each(due.into_iter().chain(unserved).chain(balancers));
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
            self.was_in_sync |= self.standing(now).is_in_sync();
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
        if term.names.want_listing() {
            term.schedule.hurry_names(now);
        }
        if is_due(term.next_names()) {
            term.schedule.names_begin(now);
            term.names.begin_listing();
            return Some(Action::ReadNames);
        }
        if let Some(follow) = term.ptr.awaited.next_action() {
            return Some(follow);
        }
        if let Some(name) = term.names.next_look_up() {
            return Some(Action::ReadName(name));
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
        let wanted = self.cluster.cache.wants_nodes();
        if !self.cluster.node_watch.set(wanted) {
            return;
        }
        self.due.push_back(if wanted { Action::WatchNodes } else { Action::StopWatchingNodes });
        if !wanted {
            self.cluster.forget_nodes(&mut self.reports);
            if let Some(term) = &mut self.term {
                term.mark(ObjectKey::orphaned());
                if self.config.settings.reverse != PtrScope::Off {
                    // Those at a node's address had no PTR record.
                    term.mark_all(&self.cluster);
                }
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

    /// Whether all is listed, read, planned and answered.
    pub fn is_settled(&self) -> bool {
        self.term.as_ref().is_some_and(Term::is_settled)
    }

    /// Whether the work is being done. To be asked once [`Core::poll_action`] has given all.
    pub fn readiness(&self, now: Moment) -> Readiness {
        self.standing(now).readiness()
    }

    /// How far this one has come that has `limit` to reach both sides, and as long for each step.
    pub fn once(&self, limit: Duration, now: Moment) -> Once {
        self.standing(now).once(limit, now)
    }

    fn standing(&self, now: Moment) -> Standing {
        let shows_catalog = self.peer.as_ref().is_some_and(|peer| peer.shows_catalog);
        Standing {
            is_connected: self.peer.is_some(),
            is_listed: self.cluster.is_listed(),
            is_warm: self.other_leads && self.cluster.cache.is_complete(),
            progress: self.term.as_ref().map(|term| term.schedule.progress()),
            is_heard: self.contact.is_heard(now),
            resyncs_fail: self.term.as_ref().is_some_and(|term| term.schedule.resyncs_fail()),
            is_settled: self.is_settled(),
            awaits_catalog: shows_catalog && self.config.target == Target::Agent,
            awaits_confirmation: self.cluster.suspects.awaits_confirmation() && self.is_holding(),
            backlog: self.term.as_ref().map_or(0, Term::backlog),
            was_in_sync: self.was_in_sync,
            last_step: self.last_step,
        }
    }

    /// Whether removals are held back.
    pub fn is_holding(&self) -> bool {
        !self.cluster.suspects.objects.is_empty()
            || self.term.as_ref().is_some_and(|term| !term.holds.is_empty())
    }

    /// How many objects and Services there are of which removals are held back.
    pub fn removals_held(&self) -> usize {
        let holds = self.term.as_ref().map_or(0, |term| term.holds.len());
        self.cluster.suspects.objects.len() + holds
    }

    /// Services that the cluster cache lacks and of which records stay: they are held, or kept by the
    /// policy, or could never be read.
    pub fn departed(&self) -> BTreeSet<&ObjectKey> {
        let term = self.term.iter();
        let stay = term.flat_map(|term| term.holds.services().chain(term.kept.services()));
        let gone =
            |key: &&ObjectKey| !key.is_orphaned() && self.cluster.cache.service(key).is_none();
        stay.filter(gone).chain(self.cluster.cache.unread_services()).collect()
    }

    /// Whether a list lacks a Service, and no second one has confirmed it yet.
    pub fn is_missing(&self, service: &ObjectKey) -> bool {
        self.cluster.suspects.objects.contains(&(Kind::Service, service.clone()))
    }

    /// Whether Consul answers, and has all that can be registered.
    pub fn is_in_sync(&self, now: Moment) -> bool {
        self.contact.is_heard(now) && self.standing(now).is_in_sync()
    }

    /// Whether a Service is to be registered, or no option limits which are.
    pub fn selects_any(&self) -> bool {
        self.cluster.selects_any(&self.config.settings)
    }

    /// How many of what there are.
    pub fn counts(&self) -> Counts {
        let (cluster, term) = (&self.cluster, self.term.as_ref());
        Counts {
            services: cluster.cache.service_count(),
            registered: term.map_or(0, |term| term.known.service_count()),
            registrations: term.map_or(0, |term| term.known.registration_count()),
            critical: term.map_or(0, |term| term.known.critical_count()),
            ptr_records: term.map_or(0, |term| term.known.ptr_count()),
            backlog: term.map_or(0, Term::backlog),
            problems: cluster.problems.count() + term.map_or(0, |term| term.problems.count()),
            kept: term.map_or(0, |term| term.kept.total()),
        }
    }

    /// The problems of all objects, by object.
    pub fn problems(&self) -> Vec<(Subject, &ObjectKey, &Problem)> {
        self.first_problems(usize::MAX)
    }

    /// The first of [`Core::problems`], however many there are.
    pub fn first_problems(&self, count: usize) -> Vec<(Subject, &ObjectKey, &Problem)> {
        let term = self.term.iter().flat_map(|term| term.problems.iter().take(count));
        let mut all: Vec<_> = self.cluster.problems.iter().take(count).chain(term).collect();
        all.sort();
        all.truncate(count);
        all
    }

    /// The problems of one Service.
    pub fn problems_of(&self, service: &ObjectKey) -> impl Iterator<Item = &Problem> {
        let term = self.term.iter().flat_map(|term| term.problems.of(Subject::Service, service));
        self.cluster.problems.of(Subject::Service, service).chain(term)
    }

    /// The registrations that Consul is known to have of a Service, by ID.
    pub fn registrations_of(&self, service: &ObjectKey) -> &[KnownRegistration] {
        self.term.as_ref().map_or(&[], |term| term.known.of(service))
    }

    /// The Consul names that our registrations are under, as Consul looks them up, except those that
    /// somebody else may have taken at the same moment.
    pub fn held_names(&self) -> HashSet<Arc<str>> {
        let names = |term: &Term| {
            let held = term.known.names();
            held.filter(|name| !term.names.are_in_doubt(name)).collect::<Vec<_>>()
        };
        self.term.as_ref().map(names).into_iter().flatten().collect()
    }

    /// What would be done for a Service now, and why what is not as it ought to be waits. Nothing is
    /// known of that while this one does not lead, or has not made its first reconciliation.
    pub fn plan_of(&self, service: &ObjectKey, now: Moment) -> Option<Plan> {
        let term = self.term.as_ref().filter(|term| term.is_running())?;
        Some(self.view(term).plan(service, now))
    }

    /// What ought to be in Consul for a Service. Unknown while this one does not lead, or has not made
    /// its first reconciliation.
    pub fn desired_of(&self, service: &ObjectKey) -> Option<Desired> {
        let term = self.term.as_ref().filter(|term| term.is_running())?;
        Some(self.view(term).desired(service, &|_, _| false))
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
        term.mark_leaving(held.keys().cloned(), &self.cluster);
        held
    }
}

impl Core {
    pub(super) fn view<'a>(&'a self, term: &'a Term) -> View<'a> {
        View::new(&self.config, self.domain(), &self.cluster, term)
    }

    fn domain(&self) -> Option<&ConsulDomain> {
        self.peer.as_ref().and_then(|peer| peer.domain.as_ref())
    }

    pub(super) fn mark(&mut self, changes: Changes) {
        if let Some(term) = &mut self.term {
            term.mark_changes(changes, &self.cluster, self.now);
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
}
