//! What is known and under way on Consul's side while this bridge leads.
//!
//! It is made when leadership is acquired and dropped whole when it is lost: others write from
//! then on. That is safe because the session of the lead that was lost is ended before the next
//! campaign, every transaction checks its session, and the first resync of a term is consistent: a
//! write of a former term was applied before that resync or can never be.
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::Moment;
use crate::domain::consul::names::{ForeignNames, Found};
use crate::domain::consul::record::{Fingerprint, RecordKey};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::flights::{FlightId, Flights, InFlight};
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::map::{HashMap, HashSet};
use crate::domain::retries::Retries;
use crate::domain::services::claims::PtrClaims;
use crate::domain::sync::action::Planned;
use crate::domain::sync::awaited_ptr::AwaitedPtr;
use crate::domain::sync::cluster::{Changes, Cluster};
use crate::domain::sync::config::Config;
use crate::domain::sync::contention::Contention;
use crate::domain::sync::grace::{BALANCER_APPEARS, Grace, SLICES_FOLLOW};
use crate::domain::sync::hold::{Holds, Kept};
use crate::domain::sync::ledger::{Ledger, PtrState};
use crate::domain::sync::names::Names;
use crate::domain::sync::namespace_nodes::NamespaceNodes;
use crate::domain::sync::problems::Problems;
use crate::domain::sync::queue::Queue;
use crate::domain::sync::report::Written;
use crate::domain::sync::resync::{Drift, Resync};
use crate::domain::sync::schedule::Schedule;

/// Everything that is dropped with the lead.
#[derive(Debug)]
pub(super) struct Term {
    pub(super) stage: Stage,
    pub(super) known: Ledger,
    pub(super) ptr: PtrKeys,
    pub(super) names: Names,
    /// Services with a port that nothing serves.
    pub(super) unserved: Grace,
    /// Services whose load balancer has no address.
    pub(super) balancers: Grace,
    pub(super) work: Work,
    pub(super) flights: Flights<RecordKey, ObjectKey, Sent>,
    pub(super) retries: Retries<RecordKey, ObjectKey, Fingerprint>,
    pub(super) holds: Holds,
    pub(super) kept: Kept,
    pub(super) namespace_nodes: NamespaceNodes,
    /// The resync under way.
    pub(super) resync: Option<Resync>,
    /// Whether the token changed before Consul was read: with which one what it shows was written is
    /// not known.
    pub(super) resends_shown: bool,
    pub(super) schedule: Schedule,
    pub(super) contention: Contention,
    /// Whether Consul lost its state since the last resync began.
    pub(super) state_lost: bool,
    /// What the resync under way found changed and is not reported yet.
    pub(super) drift: Vec<Drift>,
    /// Service IDs that the agent has and the catalog lacks, for longer than the agent needs to pass
    /// them on.
    pub(super) missing_in_catalog: HashSet<Box<str>>,
    /// What is found by planning and writing.
    pub(super) problems: Problems,
    /// How many plans were made.
    #[cfg(test)]
    pub(super) plans: usize,
    /// How many of them were of some slices only.
    #[cfg(test)]
    pub(super) slice_plans: usize,
}

/// Whether writes may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// No: not everything is listed, or Consul was not read.
    Starting {
        /// Whether Consul was read.
        resynced: bool,
    },
    /// Yes.
    Running,
}

/// Who has which PTR key.
#[derive(Debug, Default)]
pub(super) struct PtrKeys {
    pub(super) claims: PtrClaims,
    /// Keys that a Service no longer claims and no other does.
    pub(super) released: HashMap<ObjectKey, BTreeSet<Box<str>>>,
    /// Which Services had instances at the address of a released key, where several did at the start.
    pub(super) shared: BTreeMap<Box<str>, BTreeSet<ObjectKey>>,
    /// Keys that a Service holds and others have.
    pub(super) awaited: AwaitedPtr,
}

/// The Services that have something to be done.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Those that have to be planned.
    pub(super) queue: Queue<ObjectKey>,
    /// What is left to send of the Service that was planned last.
    pub(super) planned: Option<(ObjectKey, VecDeque<Planned>)>,
    /// Those with something planned, in flight or to be retried soon.
    pub(super) services: HashMap<ObjectKey, ServiceState>,
    /// Those of which a changed slice can be planned alone.
    pub(super) by_slice: HashMap<ObjectKey, BySlice>,
    /// When the first change of Kubernetes was seen of each that is to be brought in sync for one.
    pub(super) changed: HashMap<ObjectKey, Moment>,
}

/// A Service with several slices that was planned as a whole, with nothing left to do but what is sent;
/// since then nothing has changed that concerns it but, in these slices, what they say of the same
/// endpoints.
#[derive(Debug, Default)]
pub(super) struct BySlice {
    pub(super) slices: BTreeSet<ObjectKey>,
}

/// What is under way for one Service.
#[derive(Debug, Default)]
pub(super) struct ServiceState {
    pub(super) written: Written,
    /// Whether it has to be planned again once all that is in flight is answered.
    pub(super) follow_up: bool,
    /// Whether that is only the next step of what is to be written.
    pub(super) is_step: bool,
}

/// What has to be remembered of a write in flight.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) content: Content,
    /// Whether the token changed since it was sent.
    pub(super) old_token: bool,
    /// [`Retries::answers`] when it was sent.
    pub(super) answers: u64,
}

/// What a write in flight makes of its record.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Registration {
        name: Box<str>,
        fingerprint: Fingerprint,
        critical: bool,
    },
    Ptr(Fingerprint),
    /// It is removed.
    Nothing,
    /// It is only read.
    Read,
}

// === impl PtrKeys ===

impl PtrKeys {
    /// Whether another Service has to remove the key, too, and does so with its last instance there.
    pub(super) fn is_anothers_too(&self, key: &str, service: &ObjectKey) -> bool {
        let mut others = self.shared.get(key).into_iter().flatten().filter(|it| *it != service);
        others.any(|it| self.released.get(it).is_some_and(|released| released.contains(key)))
    }
}

// === impl Term ===

impl Term {
    /// Nothing is known of Consul yet.
    pub(super) fn new(config: &Config, next_flight: FlightId, now: Moment) -> Self {
        Self {
            stage: Stage::Starting { resynced: false },
            known: Ledger::new(config.settings.cluster.clone()),
            ptr: PtrKeys::default(),
            names: Names::default(),
            unserved: Grace::new(SLICES_FOLLOW),
            balancers: Grace::new(BALANCER_APPEARS),
            work: Work::default(),
            flights: Flights::starting_at(next_flight),
            retries: Retries::default(),
            holds: Holds::default(),
            kept: Kept::default(),
            namespace_nodes: NamespaceNodes::new(config.settings.never_removes()),
            resync: None,
            resends_shown: false,
            schedule: Schedule::new(config.resync, config.seed, now),
            contention: Contention::default(),
            state_lost: false,
            drift: Vec::new(),
            missing_in_catalog: HashSet::default(),
            problems: Problems::default(),
            #[cfg(test)]
            plans: 0,
            #[cfg(test)]
            slice_plans: 0,
        }
    }

    pub(super) fn is_running(&self) -> bool {
        self.stage == Stage::Running
    }

    /// Has the Service planned. The first reconciliation takes all there is: what comes and goes
    /// before it does not heap up.
    pub(super) fn mark(&mut self, service: ObjectKey) {
        if !self.is_running() {
            return;
        }
        if self.work.planned.as_ref().is_some_and(|(planned, _)| *planned == service) {
            self.work.planned = None;
        }
        self.work.by_slice.remove(&service);
        self.work.queue.push(service);
    }

    pub(super) fn mark_each(&mut self, services: impl IntoIterator<Item = ObjectKey>) {
        for service in services {
            self.mark(service);
        }
    }

    /// Has planned what a change in Kubernetes concerns.
    pub(super) fn mark_changes(&mut self, changes: Changes, cluster: &Cluster, now: Moment) {
        if !self.is_running() {
            return;
        }
        for service in &changes.services {
            self.work.changed.entry(service.clone()).or_insert(now);
        }
        self.mark_each(changes.claimants);
        for name in changes.names {
            let holders: Vec<ObjectKey> = self.known.holders(&name).cloned().collect();
            self.mark_leaving(holders, cluster);
        }
        match &changes.same_endpoints {
            Some(slice) => changes.services.into_iter().for_each(|it| self.mark_slice(it, slice)),
            None => self.mark_leaving(changes.services, cluster),
        }
        // What would pass for orphaned may be claimed by any of these: that comes after them.
        let orphaned = ObjectKey::orphaned();
        if self.work.planned.as_ref().is_some_and(|(planned, _)| *planned == orphaned) {
            self.mark(orphaned.clone());
        }
        self.work.queue.move_to_end(&orphaned);
    }

    /// Has everything planned: whoever takes a name over comes before whoever leaves it.
    pub(super) fn mark_all(&mut self, cluster: &Cluster) {
        if !self.is_running() {
            return;
        }
        self.work.by_slice.clear();
        let planned = self.work.planned.take().map(|(service, _)| service);
        let registered = self.known.services().map(|(key, _)| key);
        // Of those that are neither here nor there something may be left to be ended.
        let left = self.work.services.keys().chain(self.retries.owners());
        let left = left.chain(self.ptr.released.keys()).chain(self.ptr.claims.owners());
        let cached = cluster.cache.services_after(None).map(|(key, _)| key);
        let all = planned.iter().chain(cached).chain(registered).chain(left).cloned();
        for key in self.takers_first(all, cluster) {
            self.work.queue.push(key);
        }
    }

    /// Whether all is read, planned and answered.
    pub(super) fn is_settled(&self) -> bool {
        self.is_running()
            && self.work.queue.is_empty()
            && self.work.planned.is_none()
            && self.flights.is_empty()
            && !self.retries.has_retries()
            && self.names.are_settled()
    }

    /// How many Services have to be planned or have something under way.
    pub(super) fn backlog(&self) -> usize {
        self.work.queue.len() + self.work.services.len()
    }

    /// A write of this record goes with that flight.
    pub(super) fn send(
        &mut self,
        flight: FlightId,
        owner: ObjectKey,
        record: RecordKey,
        content: Content,
    ) {
        if let Some(resync) = &mut self.resync {
            resync.touch(record.clone());
        }
        let sent = Sent { content, old_token: false, answers: self.retries.answers() };
        self.flights.add(flight, InFlight { record, owner, sent });
    }

    /// Sets the Consul names under which others than bridges hold instances.
    pub(super) fn set_names(&mut self, names: ForeignNames, cluster: &Cluster) {
        let (known, claims) = (&self.known, &cluster.name_claims);
        let news = self.names.listed(names, |name| known.holds_name(name));
        self.names.retain(
            // A write without an answer has not taken it yet.
            |name| claims.holder(name).is_some() && known.certain_holders(name).next().is_none(),
            |name, service| claims.claims(name, service),
        );
        let Some(news) = news else { return self.mark_all(cluster) };
        for name in news {
            self.mark_contenders(&name, cluster);
        }
    }

    /// The names that others hold cannot be listed.
    pub(super) fn names_failed(&mut self, why: &str, cluster: &Cluster, now: Moment) {
        self.schedule.names_failed(now);
        for name in self.names.listing_failed(why) {
            self.mark_contenders(&name, cluster);
        }
    }

    /// Takes who else holds a name that was looked up.
    pub(super) fn name_looked_up(
        &mut self,
        name: &str,
        found: Result<Option<Found>, String>,
        cluster: &Cluster,
        now: Moment,
    ) {
        if found.is_err() {
            self.schedule.names_wanted(now);
        }
        if self.names.looked_up(name, found) {
            self.mark_contenders(name, cluster);
        }
    }

    /// When the names that others hold have to be listed: not before it is known which are wanted.
    pub(super) fn next_names(&self) -> Option<Moment> {
        self.schedule.next_names().filter(|_| self.is_running())
    }

    /// The token changed: an agent keeps that of each registration, so each is sent once more.
    pub(super) fn resend_registrations(&mut self, cluster: &Cluster) {
        self.known.resend_registrations();
        self.resends_shown |= self.stage == Stage::Starting { resynced: false };
        for sent in self.flights.sent_mut() {
            sent.old_token = true;
        }
        self.mark_all(cluster);
    }

    /// Takes which PTR keys there are, of those that are followed. That shows nothing for sure: what
    /// seems to be gone is read.
    pub(super) fn ptr_keys_shown(&mut self, is_shown: &dyn Fn(&str) -> bool) {
        for (key, service) in self.ptr.awaited.missing(is_shown) {
            let state = self.known.ptr(&key).map(|known| &known.state);
            if matches!(state, Some(PtrState::OtherCluster | PtrState::Foreign(_))) {
                self.known.put_ptr(&key, PtrState::Unknown, 0);
                self.mark(service);
            }
        }
    }

    /// Takes which service IDs the catalog shows.
    pub(super) fn catalog_shows(
        &mut self,
        cluster: &ClusterName,
        shown: &dyn Fn(&str) -> bool,
        now: Moment,
    ) {
        let known = self.known.services();
        let ids =
            known.flat_map(|(service, all)| all.iter().map(move |it| it.id(cluster, service)));
        let (refused, no_others) = self.schedule.catalog_lacks(ids.filter(|id| !shown(id)), now);
        let before = std::mem::replace(&mut self.missing_in_catalog, refused);
        let changed: Vec<ObjectKey> = before
            .symmetric_difference(&self.missing_in_catalog)
            .filter_map(|id| service_of_id(cluster, id))
            .collect();
        self.mark_each(changed);
        if no_others {
            // What it lacks for good was just made a problem: once that is reported, all is settled.
            self.schedule.catalog_shows_all(self.is_settled(), now);
        }
    }

    /// When something is due that is no event; `asks_catalog`: whether the catalog may be asked now.
    pub(super) fn next_timeouts(&self, asks_catalog: bool) -> impl Iterator<Item = Moment> {
        let (soon, late) = self.retries.next();
        let soon = if self.retries.is_outage() {
            let queue = &self.work.queue;
            let has_work = soon.is_some() || !queue.is_empty() || self.work.planned.is_some();
            let may_probe = self.is_running() && self.flights.is_empty();
            (has_work && may_probe).then_some(self.retries.next_probe())
        } else {
            soon
        };
        let look = [self.schedule.next_resync(), self.next_names()];
        let catalog = self.schedule.next_catalog().filter(|_| asks_catalog);
        let (slices, balancers) = (self.unserved.next(), self.balancers.next());
        let work = [soon, late, catalog, slices, balancers, self.next_namespace_node()];
        look.into_iter().chain(work).flatten()
    }

    /// When the next namespace node may be removed. While something is in flight, its answer is
    /// waited for.
    fn next_namespace_node(&self) -> Option<Moment> {
        if !self.is_running() || !self.flights.is_empty() || self.schedule.is_uncertain() {
            return None;
        }
        let next = self.namespace_nodes.next(&self.known, &self.flights)?;
        Some(if self.retries.is_outage() { next.max(self.retries.next_probe()) } else { next })
    }
}
