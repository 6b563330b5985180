//! The state of a bridge, as a machine without I/O: what Kubernetes shows and what Consul
//! answers go in, the next writes come out.
//!
//! | file | what it is |
//! |---|---|
//! | `mod` | the state, and what comes from Kubernetes and from the operator |
//! | `plan` | from a Service that may have changed to its writes |
//! | `ptr` | its PTR records |
//! | `track` | what is under way, and what is wrong with a record |
//! | `answers` | what Consul's answers mean |
//! | `outage` | when writes are tried again, and whether Consul takes any |
//! | `read_back` | what a reading of Consul says of the ledger |
//! | `repairs` | records that somebody else keeps changing |
//! | `guard` | holds back removals that a list's silence would cause |
//! | `nodes` | Kubernetes' nodes, which are watched only at times |
//! | `namespace_nodes` | the catalog's nodes for namespaces |
//! | `standby` | a leader that is deposed |
//! | `target` | what the agent and the catalog want differently |
//! | `problems` | the problems of all objects |
//! | `queue` | each Service once, in the order in which they came |
//!
//! Kept here:
//! - Nothing is removed out of ignorance (invariant 1): nothing is written before every kind is
//!   listed and Consul is read back (`Phase`); what a list no longer shows passes the `guard`; only
//!   a complete reading says that a record is gone (`read_back`); of Services whose nodes are not
//!   listed, or that cannot be read, nothing is taken (`plan`, `nodes`).
//! - Only our own records are touched (invariant 2): foreign names and PTR keys stay as they
//!   are (`permit`, `ptr`), a namespace node with something foreign too (`namespace_nodes`).
//! - It converges (invariant 4): whatever a write's fate, its Service is planned again (`answers`).
//! - Equal means silent (invariant 5): writes are the difference between what is desired and
//!   what is known (`plan`).
//! - Newer wins (invariant 6): a record with a write in flight is left alone until its answer
//!   (`gate` in `plan`), a namespace node while anything is (`namespace_nodes`), and a reading does
//!   not speak of a record that was written since it began (`read_back`).
//! - One bad object harms only itself (invariant 7): refusals and waits are per record (`track`),
//!   problems per object.
//! - A deposed leader plans nothing (`standby`): that what it has sent does not get in any more
//!   (invariant 9) is the transactions' to see to.
//!
//! Time is a [`Moment`]: how long the process has been running.

mod answers;
mod guard;
pub mod ledger;
mod namespace_nodes;
mod nodes;
mod outage;
mod plan;
mod problems;
mod ptr;
mod queue;
mod read_back;
mod repairs;
mod standby;
mod target;
mod track;

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::time::Duration;

pub use self::guard::Cause;
use self::guard::Guard;
use self::namespace_nodes::NamespaceNodes;
use self::nodes::NodeWatch;
use self::outage::Outage;
pub use self::problems::Problems;
use self::queue::Queue;
use self::repairs::Repairs;
pub use self::target::Target;
use self::track::{Track, Trouble, Unit};
use crate::domain::consul::names::{ForeignNames, Holder, Holders, lookup_form};
use crate::domain::consul::ptr::ConsulDomain;
use crate::domain::consul::record::{RecordKey, Write};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::cache::ClusterCache;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{EndpointSlice, Kind, SeenObject, WatchEvent};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::{Handover, NameClaims, PtrClaims};
use crate::domain::services::desired::{
    Blocked, Desired, Neighbours, Permit, WantedPtr, desired, is_read_label, left_out, wanted,
};
use crate::domain::services::settings::{JoinExisting, OnConflict, Settings};
use crate::domain::sync::ledger::Ledger;

/// A point in time: how long the process has been running.
pub type Moment = Duration;

/// The state of a bridge.
#[derive(Debug)]
pub struct Reconciler {
    settings: Settings,
    zone: Option<ConsulDomain>,
    target: Target,
    /// Consul names that others than a bridge hold; `None` while that is not known.
    foreign: Option<ForeignNames>,
    cache: ClusterCache,
    node_watch: NodeWatch,
    ledger: Ledger,
    names: NameClaims,
    /// Services that keep a name which they no longer claim, because others hold the new one.
    keeping: BTreeSet<ObjectKey>,
    reverse: PtrClaims,
    phase: Phase,
    /// Services that have to be planned.
    dirty: Queue<ObjectKey>,
    /// What is left to send of the Service that was planned last.
    planned: Option<(ObjectKey, VecDeque<Action>)>,
    /// Services with something under way.
    units: HashMap<ObjectKey, Unit>,
    /// Records with a write in flight or in trouble.
    tracks: HashMap<RecordKey, Track>,
    /// Services with records in a [`Trouble::Transient`], by the moment of the next try.
    retry_soon: BTreeSet<(Moment, ObjectKey)>,
    /// Services with records in a [`Trouble::Lasting`], likewise.
    retry_late: BTreeSet<(Moment, ObjectKey)>,
    /// PTR keys that a Service no longer claims and no other does.
    released: HashMap<ObjectKey, BTreeSet<Box<str>>>,
    guard: Guard,
    namespace_nodes: NamespaceNodes,
    repairs: Repairs,
    outage: Outage,
    in_flight: usize,
    /// Records written since the read-back under way began; `None` when there is none.
    touched: Option<HashSet<RecordKey>>,
    /// When it began.
    read_back_began: Moment,
    /// Records that the read-back under way found changed.
    drift: usize,
    uncertain_until: Option<Moment>,
    missing_in_catalog: HashSet<Box<str>>,
    problems: Problems,
    reports: Vec<Report>,
}

/// Whether writes may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No: not everything is listed, or Consul was not read.
    Loading {
        /// Whether Consul was read.
        read_back: bool,
    },
    /// Yes.
    Running,
}

/// What the owner of the state has to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send these writes: one record, or an instance with its PTR record, which belong
    /// together. If one fails, those after it are not sent. Each wants
    /// [`Reconciler::answered`].
    Write(Vec<Write>),
    /// Read this PTR key; wants [`Reconciler::ptr_read`].
    ReadPtr(Box<str>),
    /// Remove the catalog's node of this namespace, on which nothing stands any more; wants
    /// [`Reconciler::namespace_node_answered`]. Only with [`Target::Catalog`].
    RemoveNamespaceNode(Box<str>),
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
    Problem(Kind, ObjectKey, Problem),
    /// An object no longer has this problem.
    Solved(Kind, ObjectKey, Problem),
    /// It is no longer known here whether the object has this problem: another one leads.
    Withdrawn(Kind, ObjectKey, Problem),
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
    /// A read-back found that this many records were not as we had left them.
    Repaired(usize),
}

// === impl Reconciler ===

impl Reconciler {
    /// A bridge that has seen nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            ledger: Ledger::new(settings.cluster.clone()),
            settings,
            zone: None,
            target: Target::default(),
            foreign: None,
            cache: ClusterCache::default(),
            node_watch: NodeWatch::default(),
            names: NameClaims::default(),
            keeping: BTreeSet::new(),
            reverse: PtrClaims::default(),
            phase: Phase::Loading { read_back: false },
            dirty: Queue::default(),
            planned: None,
            units: HashMap::new(),
            tracks: HashMap::new(),
            retry_soon: BTreeSet::new(),
            retry_late: BTreeSet::new(),
            released: HashMap::new(),
            guard: Guard::default(),
            namespace_nodes: NamespaceNodes::default(),
            repairs: Repairs::default(),
            outage: Outage::default(),
            in_flight: 0,
            touched: None,
            read_back_began: Moment::ZERO,
            drift: 0,
            uncertain_until: None,
            missing_in_catalog: HashSet::new(),
            problems: Problems::default(),
            reports: Vec::new(),
        }
    }

    /// Takes what a watch says.
    pub fn watch(&mut self, event: WatchEvent, now: Moment) {
        match event {
            WatchEvent::ListStarted(kind) => {
                self.cache.list_started(kind);
                self.guard.list_started(kind);
            }
            WatchEvent::Seen(seen) => self.seen(seen),
            WatchEvent::ListCompleted(kind) => {
                let first = !self.cache.is_listed(kind);
                let missing = self.cache.list_completed(kind);
                self.absent(kind, missing, now);
                if kind == Kind::Node {
                    self.nodes_listed(first, now);
                }
                self.guard.list_completed(kind);
                self.release_if_confirmed();
            }
            WatchEvent::Deleted(kind, key) => {
                self.guard.unsuspect(kind, &key);
                self.remove(kind, &key);
            }
        }
        self.start_if_loaded(now);
    }

    fn seen(&mut self, mut seen: SeenObject) {
        if let SeenObject::Service(_, service) = &mut seen {
            // The others would be most of what is kept of a Service, and changes of theirs would
            // have it planned. Collected anew: a map that was emptied keeps a node of 368 bytes.
            let labels = std::mem::take(&mut service.labels).into_iter();
            service.labels = labels.filter(|(key, _)| is_read_label(&self.settings, key)).collect();
        }
        let kind = seen.kind();
        let (key, problems) = match &seen {
            SeenObject::Service(key, _) | SeenObject::EndpointSlice(key, _) => {
                (key.clone(), BTreeSet::new())
            }
            SeenObject::Node(key, node) => {
                (key.clone(), left_out(&node.left_out).collect::<BTreeSet<_>>())
            }
            SeenObject::Undecodable(_, key, why) => {
                (key.clone(), [Problem::new(Reason::Undecodable, why.clone())].into())
            }
        };
        self.guard.unsuspect(kind, &key);
        // The problems of a Service are told when it is planned, which a standby never does.
        if kind != Kind::Service || !problems.is_empty() || self.phase != Phase::Running {
            self.set_problems(kind, &key, problems);
        }
        let concerned = self.concerned_by_unread(kind, &key);
        let changed = self.cache.seen(seen);
        if kind == Kind::Service
            && let Some(key) = changed.get(&key)
        {
            self.claim_names(key);
        }
        // The object's own Service first: it claims what would pass for nobody's.
        for service in changed.into_iter().chain(concerned) {
            self.mark_dirty(service);
        }
    }

    /// Forgets an object of which it is known that it no longer exists.
    fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        let concerned = self.concerned_by_unread(kind, key);
        let services = self.cache.remove(kind, key);
        if kind == Kind::Service {
            self.guard.forget(key);
            self.claim_names(key);
        }
        self.set_problems(kind, key, BTreeSet::new());
        for service in services.into_iter().chain(concerned) {
            self.mark_dirty(service);
        }
    }

    /// Who else is concerned when an object is read, or goes, that could not be read before:
    /// PTR records that nobody claims may belong to such a Service, and endpoints that no
    /// slice has to such a slice.
    fn concerned_by_unread(&self, kind: Kind, key: &ObjectKey) -> Vec<ObjectKey> {
        match kind {
            _ if self.cache.undecodable(kind, key).is_none() => Vec::new(),
            Kind::Service => vec![ObjectKey::orphaned()],
            Kind::EndpointSlice => self.cache.concerned_by_unread(key),
            // Whoever uses nodes is concerned by any change of one.
            Kind::Node | Kind::Namespace => Vec::new(),
        }
    }

    /// One whose records go there; without this, to an agent.
    #[must_use]
    pub fn with_target(self, target: Target) -> Self {
        Self { target, ..self }
    }

    /// Sets what PTR records end with; `None`: none can be written.
    pub fn set_ptr_zone(&mut self, zone: Option<ConsulDomain>) {
        if self.zone != zone {
            self.zone = zone;
            self.mark_all_dirty();
        }
    }

    /// Sets the Consul names under which others than a bridge hold instances.
    pub fn set_foreign_names(&mut self, names: ForeignNames) {
        let Some(before) = self.foreign.take() else {
            self.foreign = Some(names);
            return self.mark_all_dirty();
        };
        let all = before.keys().chain(names.keys());
        let changed = all.filter(|name| before.get(*name) != names.get(*name));
        let concerned: Vec<ObjectKey> =
            changed.flat_map(|name| self.names.claimants(name)).collect();
        self.foreign = Some(names);
        for claimant in concerned {
            self.mark_dirty(claimant);
        }
    }

    /// Sets the service IDs that the agent has and the catalog lacks, for longer than the agent
    /// needs to pass them on.
    pub fn set_missing_in_catalog(&mut self, missing: HashSet<Box<str>>) {
        let before = std::mem::replace(&mut self.missing_in_catalog, missing);
        let changed: Vec<ObjectKey> = before
            .symmetric_difference(&self.missing_in_catalog)
            .filter_map(|id| service_of_id(&self.settings.cluster, id))
            .collect();
        for service in changed {
            self.mark_dirty(service);
        }
    }

    /// The token changed: an agent keeps that of each registration, so each is sent once more.
    pub fn token_changed(&mut self) {
        self.ledger.resend_registrations();
        for track in self.tracks.values_mut().filter(|track| track.sent.is_some()) {
            track.old_token = true;
        }
        self.mark_all_dirty();
    }

    /// Whether all is listed, read, planned and answered.
    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Running
            && self.dirty.is_empty()
            && self.planned.is_none()
            && self.in_flight == 0
            && !self.namespace_nodes.is_removing()
            && !self.has_retries()
    }

    /// Whether a write that failed waits for its next try. One that nobody waits for does not
    /// count: what it was to bring is not wanted at the moment.
    fn has_retries(&self) -> bool {
        let waits = |track: &Track| matches!(track.trouble, Some(Trouble::Transient { .. }));
        !self.retry_soon.is_empty() && self.tracks.values().any(waits)
    }

    /// Whether removals are held back.
    pub fn is_holding(&self) -> bool {
        self.guard.is_holding()
    }

    /// The problems of all objects.
    pub fn problems(&self) -> &Problems {
        &self.problems
    }

    /// What Kubernetes shows.
    pub fn cache(&self) -> &ClusterCache {
        &self.cache
    }

    /// What Consul is known to have.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The Service for which a write of this record is in flight.
    pub fn in_flight_for(&self, record: &RecordKey) -> Option<&ObjectKey> {
        let track = self.tracks.get(record).filter(|track| track.sent.is_some());
        track.map(|track| &track.service)
    }

    /// How many Services have to be planned or have something under way.
    pub fn backlog(&self) -> usize {
        self.dirty.len() + self.units.len()
    }

    /// What happened since the last call.
    pub fn take_reports(&mut self) -> Vec<Report> {
        std::mem::take(&mut self.reports)
    }

    fn claim_names(&mut self, key: &ObjectKey) {
        let (claims, uses_nodes) =
            self.cache.service(key).map_or_else(Default::default, |service| {
                let wanted = wanted(&self.settings, key, service);
                (wanted.claims(service), wanted.uses_nodes())
            });
        self.cache.set_node_user(key, uses_nodes);
        for handover in self.names.set(key, claims) {
            self.handed_over(handover);
        }
    }

    fn handed_over(&mut self, handover: Handover) {
        // The new holder first: the name must not stand empty in between. The others are told who
        // has it.
        let claimants: Vec<ObjectKey> = self.names.claimants(&handover.thing).collect();
        let keeping = std::mem::take(&mut self.keeping);
        for service in claimants.into_iter().chain(handover.from).chain(keeping) {
            self.mark_dirty(service);
        }
    }

    fn mark_dirty(&mut self, service: ObjectKey) {
        if self.phase != Phase::Running {
            // The first reconciliation takes all there is. What comes and goes before it must not
            // heap up: a standby may wait for months.
            return;
        }
        if self.planned.as_ref().is_some_and(|(planned, _)| *planned == service) {
            self.planned = None;
        }
        self.dirty.push(service);
    }

    fn mark_all_dirty(&mut self) {
        if self.phase != Phase::Running {
            return;
        }
        if let Some((service, _)) = self.planned.take() {
            self.dirty.push(service);
        }
        for (key, _) in self.cache.services_after(None) {
            self.dirty.push(key.clone());
        }
        for (key, _) in self.ledger.services() {
            self.dirty.push(key.clone());
        }
        // Of those that are neither here nor there something may be left to be ended.
        let left = self.units.keys().chain(self.released.keys()).chain(self.reverse.owners());
        for key in left {
            self.dirty.push(key.clone());
        }
    }

    /// What ought to be registered for the Service; slices and nodes of which `absent` is true
    /// are left out.
    fn desired_of(&self, key: &ObjectKey, absent: &impl Fn(Kind, &ObjectKey) -> bool) -> Desired {
        let Some(service) = self.cache.service(key) else { return Desired::default() };
        let slices = self.cache.slices(key);
        let slices = slices.filter(|(slice, _)| !absent(Kind::EndpointSlice, slice));
        let slices: Vec<EndpointSlice> = slices.map(|(_, slice)| slice).collect();
        let nodes = self.cache.nodes().map(|nodes| {
            nodes.filter(|(name, _)| !absent(Kind::Node, &ObjectKey::new("", &**name)))
        });
        let permit = |name: &str, join| self.permit(key, name, join);
        let mut desired = desired(&self.settings, key, service, slices.iter(), nodes, &permit);
        self.keep_former_names(key, &mut desired);
        desired
    }

    /// Instances of a Service whose new name others hold stay under the name that they have,
    /// while no other Service wants that: nothing is removed for a move that cannot be made.
    fn keep_former_names(&self, key: &ObjectKey, desired: &mut Desired) {
        for Blocked { mut registration, reverse } in std::mem::take(&mut desired.blocked) {
            let Some(known) = self.ledger.registration(key, &registration.id) else { continue };
            let form = lookup_form(&known.service);
            let is_free = self.names.holder(&form).is_none_or(|holder| holder == key);
            if is_free || self.settings.on_conflict == OnConflict::Merge {
                registration.service = (&*known.service).into();
                if let Some((reverse, rank)) = reverse {
                    let service = registration.service.clone();
                    desired.reverse.entry(reverse).or_insert(WantedPtr { service, rank });
                }
                desired.registrations.insert(registration.id.clone(), registration);
                desired.keeps_former_name = true;
            }
        }
    }

    fn permit(&self, service: &ObjectKey, name: &str, join: JoinExisting) -> Permit {
        let name = &*lookup_form(name);
        if self.settings.on_conflict != OnConflict::Merge
            && let Some(holder) = self.names.holder(name)
            && holder != service
        {
            return Permit::Taken(holder.clone());
        }
        // By this Service: another one's right to the name is no reason to join it.
        let mut known = self.ledger.of(service).iter();
        let held = known.any(|known| *lookup_form(&known.service) == *name);
        let neighbours = |joined| {
            let others = self.names.claimants(name).filter(|other| other != service);
            Neighbours { joined, namespaces: others.map(|it| it.namespace.clone()).collect() }
        };
        let Some(foreign) = &self.foreign else {
            // Which tags one that is joined may have depends on who the others are.
            let stays = held && join != JoinExisting::Always;
            return if stays { Permit::Granted(neighbours(false)) } else { Permit::Unknown };
        };
        match foreign.get(name) {
            None => Permit::Granted(neighbours(false)),
            Some(Holders { others, .. }) if join.joins(others) => {
                Permit::Granted(neighbours(*others == Holder::Other))
            }
            // What is ours and of no Service here is another replica's.
            Some(Holders { others, ours }) if held || (*ours && !self.ledger.holds_name(name)) => {
                Permit::ForeignToo(others.clone(), neighbours(false))
            }
            Some(Holders { others, .. }) => Permit::Foreign(others.clone()),
        }
    }

    fn set_problems(&mut self, kind: Kind, key: &ObjectKey, problems: BTreeSet<Problem>) {
        let (new, solved) = self.problems.set(kind, key, problems);
        let report = |report: fn(Kind, ObjectKey, Problem) -> Report| {
            move |problem| report(kind, key.clone(), problem)
        };
        self.reports.extend(new.into_iter().map(report(Report::Problem)));
        self.reports.extend(solved.into_iter().map(report(Report::Solved)));
    }
}

#[cfg(test)]
mod tests;
