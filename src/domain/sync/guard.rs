//! Holds back removals that a list's silence would cause, when they are many (invariant 1).
//!
//! What a watch reports as deleted never comes here. What a complete list merely lacks does: a
//! restored etcd, a broken aggregation layer or a changed flag look the same as a mass
//! deletion, and only one of them is meant.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use crate::domain::consul::record::Check;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::services::desired::{Desired, wanted};
use crate::domain::services::settings::{AddressMode, PtrScope};
use crate::domain::sync::ledger::{KnownRegistration, PtrState};
use crate::domain::sync::{Moment, Phase, Reconciler, Report};

/// With fewer records than this, losing most of them is everyday life.
const FEW: usize = 20;
/// How much later than the first the confirming list begins at the earliest.
const CONFIRM_AFTER: Duration = Duration::from_secs(10);

/// Why removals are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Objects are missing from a list: released when a second list agrees.
    Absence,
    /// Objects exist and are no longer selected: released by `--allow-removals`.
    Selection,
}

/// What is held back.
#[derive(Debug, Default)]
pub(super) struct Guard {
    /// Services whose records are neither removed nor turned critical.
    held: HashMap<ObjectKey, Cause>,
    /// Objects missing from a list that are taken to exist all the same.
    suspects: BTreeSet<(Kind, ObjectKey)>,
    confirmation: Option<Confirmation>,
}

/// Progress of the second look.
#[derive(Debug)]
struct Confirmation {
    due: Moment,
    /// Whether the lists were asked for.
    asked: bool,
    /// Kinds whose second list has begun.
    begun: BTreeSet<Kind>,
    /// Kinds whose second list is complete.
    listed: BTreeSet<Kind>,
    /// Whether it still is the same cluster.
    same_cluster: bool,
}

// === impl Guard ===

impl Guard {
    pub(super) fn holds(&self, service: &ObjectKey) -> bool {
        self.held.contains_key(service)
    }

    pub(super) fn is_holding(&self) -> bool {
        !self.held.is_empty() || !self.suspects.is_empty()
    }

    /// Holds back what these Services would lose, until a second look agrees.
    pub(super) fn hold(&mut self, services: impl Iterator<Item = ObjectKey>, now: Moment) {
        for service in services {
            self.held.entry(service).or_insert(Cause::Absence);
        }
        self.confirm_later(now);
    }

    /// Nodes are watched no longer: none is missing.
    pub(super) fn forget_nodes(&mut self) {
        self.suspects.retain(|(kind, _)| *kind != Kind::Node);
    }

    pub(super) fn unsuspect(&mut self, kind: Kind, key: &ObjectKey) {
        self.suspects.remove(&(kind, key.clone()));
    }

    /// Nothing is held for this Service any more: it is known not to exist, or it loses nothing.
    pub(super) fn forget(&mut self, service: &ObjectKey) {
        self.held.remove(service);
    }

    /// The next first reconciliation decides anew what is held.
    pub(super) fn start_over(&mut self) {
        self.held.clear();
    }

    pub(super) fn list_started(&mut self, kind: Kind) {
        if let Some(confirmation) = self.confirmation.as_mut().filter(|c| c.asked) {
            confirmation.begun.insert(kind);
        }
    }

    pub(super) fn list_completed(&mut self, kind: Kind) {
        if let Some(confirmation) = &mut self.confirmation
            && confirmation.begun.contains(&kind)
        {
            confirmation.listed.insert(kind);
        }
    }

    fn confirm_later(&mut self, now: Moment) {
        self.confirmation = Some(Confirmation {
            due: now + CONFIRM_AFTER,
            asked: false,
            begun: BTreeSet::new(),
            listed: BTreeSet::new(),
            same_cluster: false,
        });
    }
}

// === impl Reconciler ===

impl Reconciler {
    /// When the second look is due that confirms what is missing; `None`: nothing waits for it.
    pub fn confirmation_due(&self) -> Option<Moment> {
        self.guard.confirmation.as_ref().filter(|confirmation| !confirmation.asked).map(|c| c.due)
    }

    /// Whether the second look has to be made now: every kind has to be listed again, and the
    /// cluster's identity read ([`Reconciler::cluster_confirmed`]). True once for each look.
    pub fn begin_confirmation(&mut self, now: Moment) -> bool {
        match &mut self.guard.confirmation {
            Some(confirmation) if !confirmation.asked && confirmation.due <= now => {
                confirmation.asked = true;
                true
            }
            _ => false,
        }
    }

    /// The cluster still is the one whose records these are. Counts only for a second look that
    /// has begun.
    pub fn cluster_confirmed(&mut self) {
        if let Some(confirmation) = self.guard.confirmation.as_mut().filter(|c| c.asked) {
            confirmation.same_cluster = true;
        }
        self.release_if_confirmed();
    }

    /// Releases what was held for absence once the second look agrees.
    pub(super) fn release_if_confirmed(&mut self) {
        let confirmed = self.guard.confirmation.as_ref().is_some_and(|confirmation| {
            confirmation.same_cluster
                && self.cache.evidence().all(|kind| confirmation.listed.contains(&kind))
        });
        if !confirmed {
            return;
        }
        self.guard.confirmation = None;
        let mut confirmed = !self.guard.suspects.is_empty();
        for (kind, key) in std::mem::take(&mut self.guard.suspects) {
            self.remove(kind, &key);
        }
        let (released, still_held) = std::mem::take(&mut self.guard.held)
            .into_iter()
            .partition(|(_, cause)| *cause == Cause::Absence);
        self.guard.held = still_held;
        let released: HashMap<ObjectKey, Cause> = released;
        for service in released.into_keys() {
            confirmed |= self.loses(&service);
            self.mark_dirty(service);
        }
        self.reports.push(Report::Released { confirmed });
    }

    /// Whether records of the Service, or of nobody, would be removed or turn critical now.
    fn loses(&self, service: &ObjectKey) -> bool {
        let desired = self.desired_of(service, &|_, _| false);
        let mut released = self.released.get(service).into_iter().flatten();
        self.lost(service, &desired).next().is_some()
            || released.any(|key| self.reverse.holder(key).is_none())
    }

    /// Lets go of all that the first reconciliation holds back, and says what and why: only a
    /// plan may, which shows it and writes nothing.
    pub fn let_all_go(&mut self) -> BTreeMap<ObjectKey, Cause> {
        self.guard.confirmation = None;
        let held: BTreeMap<ObjectKey, Cause> =
            std::mem::take(&mut self.guard.held).into_iter().collect();
        for service in held.keys() {
            self.mark_dirty(service.clone());
        }
        held
    }

    /// Takes what a complete list of one kind did not show.
    pub(super) fn absent(&mut self, kind: Kind, missing: Vec<ObjectKey>, now: Moment) {
        if missing.is_empty() {
            return;
        }
        let mut all = self.guard.suspects.clone();
        all.extend(missing.iter().map(|key| (kind, key.clone())));
        let lost = if self.phase == Phase::Running { self.loss_without(&all) } else { 0 };
        let total = self.ledger.registration_count();
        if !is_most(lost, total) {
            for key in missing {
                self.guard.unsuspect(kind, &key);
                self.remove(kind, &key);
            }
            return;
        }
        if all.len() > self.guard.suspects.len() {
            // What is newly missing wants a second look of its own.
            self.guard.confirm_later(now);
            self.reports.push(Report::Held { cause: Cause::Absence, lost, total });
        }
        self.guard.suspects = all;
    }

    /// Ends the hold of a Service that would lose nothing any more: what its watch says from now
    /// on is as true as what it says of any other.
    pub(super) fn let_go(&mut self, key: &ObjectKey, desired: &Desired) {
        if self.guard.holds(key)
            && self.cache.service(key).is_some()
            && self.lost(key, desired).next().is_none()
        {
            self.guard.forget(key);
        }
    }

    /// How many known records would be removed or turn critical without these objects, together
    /// with what is held for absence already.
    fn loss_without(&self, absent: &BTreeSet<(Kind, ObjectKey)>) -> usize {
        let held = self.guard.held.iter().filter(|(_, cause)| **cause == Cause::Absence);
        let services: BTreeSet<ObjectKey> = absent
            .iter()
            .flat_map(|(kind, key)| self.cache.services_concerned(*kind, key))
            .chain(held.map(|(service, _)| service.clone()))
            .collect();
        services
            .iter()
            .map(|service| {
                let without = if absent.contains(&(Kind::Service, service.clone())) {
                    Desired::default()
                } else {
                    self.desired_of(service, &|kind, name| absent.contains(&(kind, name.clone())))
                };
                self.lost(service, &without).count()
            })
            .sum()
    }

    /// Makes the first reconciliation once everything is listed and Consul is read.
    pub(super) fn start_if_loaded(&mut self, now: Moment) {
        if self.phase != (Phase::Loading { read_back: true }) || !self.may_start() {
            return;
        }
        self.phase = Phase::Running;
        // Those that the reading made from IDs: it most often comes before the lists.
        self.ledger.share_keys(|key| self.cache.kept_key(key));
        let mut losses: HashMap<ObjectKey, (Cause, usize)> = HashMap::new();
        let services: Vec<ObjectKey> =
            self.cache.services_after(None).map(|(key, _)| key.clone()).collect();
        for key in services {
            let desired = self.desired_of(&key, &|_, _| false);
            if let Some(loss) = self.first_loss(&key, &desired) {
                losses.insert(key.clone(), loss);
            }
            self.claim_ptr(&key, &desired);
        }
        for (key, known) in self.ledger.services() {
            let unread = self.cache.undecodable(Kind::Service, key).is_some();
            if self.cache.service(key).is_none() && !unread {
                // Of a namespace that is not selected nothing is asked: its objects may still exist.
                let selected = self.settings.includes_namespace(&key.namespace);
                let cause = if selected { Cause::Absence } else { Cause::Selection };
                losses.insert(key.clone(), (cause, known.len()));
            }
        }
        self.collect_orphans();
        self.hold_first_losses(losses, now);
        self.mark_all_dirty();
        self.mark_dirty(ObjectKey::orphaned());
    }

    /// What the first look at everything would take from a Service that exists.
    pub(super) fn first_loss(&self, key: &ObjectKey, desired: &Desired) -> Option<(Cause, usize)> {
        let known = self.ledger.of(key);
        let lost = self.lost(key, desired).count();
        let unread = self.cache.has_unread_slice(key) || self.cache.may_miss_node(key);
        let service = self.cache.service(key).filter(|_| !unread && !desired.awaits_nodes)?;
        let wanted = wanted(&self.settings, key, service);
        let mode = (!wanted.ports.is_empty()).then_some(wanted.address);
        if desired.instances() == 0 {
            // With the list of what it is made from empty, a selected Service has no instance.
            let no_slices = || self.cache.slices(key).next().is_none();
            let no_nodes = || self.cache.nodes().is_none_or(|mut nodes| nodes.next().is_none());
            let absent = match mode {
                Some(AddressMode::Endpoints) => no_slices(),
                Some(AddressMode::NodePort) => {
                    no_nodes() || (service.external_traffic_local && no_slices())
                }
                _ => false,
            };
            let cause = if absent { Cause::Absence } else { Cause::Selection };
            return (lost > 0).then_some((cause, lost));
        }
        // A Service that keeps a record and has new ones is a move: what counts is how many
        // fewer there are, and how many turn critical.
        let turning = known.iter().filter(|known| self.turns_critical(key, known, desired)).count();
        let made_of_others = matches!(mode, Some(AddressMode::Endpoints | AddressMode::NodePort));
        let fewer =
            if made_of_others { known.len().saturating_sub(desired.instances()) } else { 0 };
        (turning + fewer > 0).then_some((Cause::Absence, turning + fewer))
    }

    /// The known records of the Service that would be removed or turn critical.
    fn lost(&self, key: &ObjectKey, desired: &Desired) -> impl Iterator<Item = &KnownRegistration> {
        self.ledger.of(key).iter().filter(move |known| {
            !desired.keeps(&known.id(&self.settings.cluster, key))
                || self.turns_critical(key, known, desired)
        })
    }

    fn turns_critical(
        &self,
        key: &ObjectKey,
        known: &KnownRegistration,
        desired: &Desired,
    ) -> bool {
        let wanted = || desired.registrations.get(&known.id(&self.settings.cluster, key));
        !known.critical && wanted().is_some_and(|wanted| wanted.check == Check::Critical)
    }

    /// PTR records that no Service claims and that are ours, or may be.
    fn collect_orphans(&mut self) {
        let may_be_ours = |state: &PtrState| matches!(state, PtrState::Ours(_) | PtrState::Unknown);
        let unclaimed: Vec<(Box<str>, bool)> = self
            .ledger
            .ptr_keys()
            .filter(|(key, _)| self.reverse.holder(key).is_none())
            .map(|(key, known)| (key.clone(), may_be_ours(&known.state)))
            .collect();
        for (key, may_be_ours) in unclaimed {
            if may_be_ours {
                self.released.entry(ObjectKey::orphaned()).or_default().insert(key);
            } else {
                self.ledger.forget_ptr(&key);
            }
        }
    }

    fn hold_first_losses(&mut self, mut losses: HashMap<ObjectKey, (Cause, usize)>, now: Moment) {
        let allowed = self.settings.allow_removals;
        losses.retain(|_, (cause, _)| !(allowed && *cause == Cause::Selection));
        let mut lost_by_cause: BTreeMap<Cause, usize> = BTreeMap::new();
        for (cause, lost) in losses.values() {
            *lost_by_cause.entry(*cause).or_default() += lost;
        }
        let total = self.ledger.registration_count();
        if is_most(lost_by_cause.values().sum(), total) {
            self.guard.held.extend(losses.into_iter().map(|(key, (cause, _))| (key, cause)));
        }
        let orphans = self.released.get(&ObjectKey::orphaned()).map_or(0, BTreeSet::len);
        let of_scope = self.settings.reverse == PtrScope::Off && !allowed;
        if !self.guard.held.is_empty() || is_most(orphans, self.ledger.ptr_count()) {
            let worst = self.guard.held.values().max().copied();
            let cause = if of_scope { Some(Cause::Selection) } else { worst };
            self.guard.held.insert(ObjectKey::orphaned(), cause.unwrap_or(Cause::Absence));
        }
        let causes: BTreeSet<Cause> = self.guard.held.values().copied().collect();
        for cause in causes {
            let lost = lost_by_cause.get(&cause).copied().unwrap_or(0);
            let (lost, total) =
                if lost > 0 { (lost, total) } else { (orphans, self.ledger.ptr_count()) };
            self.reports.push(Report::Held { cause, lost, total });
            if cause == Cause::Absence {
                self.guard.confirm_later(now);
            }
        }
    }
}

/// Whether so many records are lost that it wants a second look.
pub(super) fn is_most(lost: usize, total: usize) -> bool {
    total >= FEW && lost * 2 > total
}
