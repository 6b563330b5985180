//! What a Service would lose.

use std::collections::BTreeSet;

use crate::domain::consul::record::Check;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::services::desired::{AddressSource, Desired, wanted};
use crate::domain::sync::hold::Cause;
use crate::domain::sync::ledger::KnownRegistration;
use crate::domain::sync::view::View;

/// With fewer records than this, that most of them are no longer selected is everyday life.
pub(super) const FEW: usize = 20;

/// What the first look at everything would take from a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Loss {
    pub(super) cause: Cause,
    /// Records that would be removed or turn critical.
    pub(super) records: usize,
    /// Whether an object that is there says so, and not the silence of a list.
    pub(super) is_shown: bool,
}

// === impl View ===

impl View<'_> {
    /// The known records of the Service that would be removed or turn critical.
    pub(super) fn lost<'v>(
        &'v self,
        key: &'v ObjectKey,
        desired: &'v Desired,
    ) -> impl Iterator<Item = &'v KnownRegistration> {
        let removes = !self.settings.never_removes();
        self.term.known.of(key).iter().filter(move |known| {
            (removes && !desired.keeps(&known.id(&self.settings.cluster, key)))
                || self.turns_critical(key, known, desired)
        })
    }

    /// Whether records of the Service, or orphaned ones, would be removed or turn critical now.
    pub(super) fn loses(&self, service: &ObjectKey) -> bool {
        let desired = self.desired(service, &|_, _| false);
        if self.lost(service, &desired).next().is_some() {
            return true;
        }
        if self.settings.never_removes() {
            return false;
        }
        let released = self.term.ptr.released.get(service).into_iter().flatten();
        let unclaimed = released.filter(|key| self.term.ptr.claims.holder(key).is_none());
        let unclaimed: BTreeSet<&str> = unclaimed.map(|key| &**key).collect();
        !unclaimed.is_empty() && {
            // Services that were shown again and are not planned yet are about to claim theirs.
            let claims = |it: &ObjectKey| View::ptr_claims(&self.desired(it, &|_, _| false));
            let waiting = self.term.work.queue.iter().flat_map(claims);
            let claimed: BTreeSet<_> = waiting.map(|(key, _)| key).collect();
            unclaimed.iter().any(|key| !claimed.contains(*key))
        }
    }

    /// How many known records would be removed or turn critical without these objects, together
    /// with what is held for absence already; and of how many. Those of Services that are gone are
    /// on their way out: several lists that each lack a part must not take most together.
    pub(super) fn loss_without(&self, absent: &BTreeSet<(Kind, ObjectKey)>) -> (usize, usize) {
        let cache = &self.cluster.cache;
        let stays = |service: &ObjectKey| {
            cache.service(service).is_some()
                || cache.undecodable(Kind::Service, service).is_some()
                || self.term.holds.of(service).is_some()
        };
        let known = self.term.known.services().filter(|(service, _)| stays(service));
        let total = known.map(|(_, known)| known.len()).sum();
        let services: BTreeSet<ObjectKey> = absent
            .iter()
            .flat_map(|(kind, key)| self.cluster.cache.services_concerned(*kind, key))
            .chain(self.term.holds.by(Cause::Absence).cloned())
            .collect();
        let lost = services
            .iter()
            .filter(|service| stays(service))
            .map(|service| {
                let without = if absent.contains(&(Kind::Service, service.clone())) {
                    Desired::default()
                } else {
                    self.desired(service, &|kind, name| absent.contains(&(kind, name.clone())))
                };
                self.lost(service, &without).count()
            })
            .sum();
        (lost, total)
    }

    /// What the first look at everything would take from a Service that exists.
    pub(super) fn first_loss(&self, key: &ObjectKey, desired: &Desired) -> Option<Loss> {
        let known = self.term.known.of(key);
        let cache = &self.cluster.cache;
        let unread =
            cache.has_unread_slice(key) || cache.may_miss_node(key) || cache.may_miss_route(key);
        let service = cache.service(key)?;
        let wanted = wanted(self.settings, key, service);
        // Of one that is not selected all goes, whatever could not be read.
        if !wanted.ports.is_empty() && (unread || desired.is_unknown()) {
            return None;
        }
        let addresses = (!wanted.ports.is_empty()).then_some(wanted.addresses);
        if desired.instances() == 0 {
            // With the list of what it is made from empty, a selected Service has no instance.
            let no_slices = || cache.slices(key).next().is_none();
            let no_nodes = || cache.nodes().is_none_or(|mut nodes| nodes.next().is_none());
            let absent = match addresses {
                Some(AddressSource::Endpoints) => no_slices(),
                Some(AddressSource::Nodes { with_endpoints }) => {
                    no_nodes() || (with_endpoints && no_slices())
                }
                _ => false,
            };
            let records = self.lost(key, desired).count();
            let cause = if absent { Cause::Absence } else { Cause::Selection };
            return (records > 0).then_some(Loss { cause, records, is_shown: false });
        }
        // A Service that keeps a record and has new ones is a move: what counts is how many
        // fewer there are, and how many turn critical.
        let turning = known.iter().filter(|known| self.turns_critical(key, known, desired)).count();
        let made_of_others =
            matches!(addresses, Some(AddressSource::Endpoints | AddressSource::Nodes { .. }));
        let fewer = if made_of_others && !self.settings.never_removes() {
            known.len().saturating_sub(desired.instances())
        } else {
            0
        };
        // Where no object of a kind routes to any Service, those that go may have been at such an address.
        let unrouted = if cache.shows_too_few_routes() && !self.settings.never_removes() {
            let id = |known: &KnownRegistration| known.id(&self.settings.cluster, key);
            known.iter().filter(|known| !desired.keeps(&id(known))).count()
        } else {
            0
        };
        let is_shown = unrouted == 0
            && match addresses {
                Some(AddressSource::Nodes { .. }) => {
                    cache.nodes().is_some_and(|mut it| it.next().is_some())
                }
                _ => cache.slices(key).next().is_some(),
            };
        let records = turning + fewer.max(unrouted);
        (records > 0).then_some(Loss { cause: Cause::Absence, records, is_shown })
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
}

/// Whether so many records are lost that a second list has to confirm it. That costs ten seconds, so
/// it does not matter how few there are.
pub(super) fn is_most(lost: usize, total: usize) -> bool {
    lost * 2 > total
}

/// Whether so many records are lost, of objects that exist, that people have to allow it: most of
/// more than a few, or all of any number.
pub(super) fn must_be_allowed(lost: usize, total: usize) -> bool {
    is_most(lost, total) && (total >= FEW || lost >= total)
}
