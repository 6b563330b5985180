//! Who may be registered under a Consul name that several Services want.
//!
//! Claims say who comes first for it. What is registered says who has it, after a restart of the bridge
//! too: of a catalog, and of an agent that outlives the bridge. (An agent that starts with its bridge is
//! empty, and nobody has anything: the second rule holds for nobody then.) By that, in this order:
//!
//! 1. the one that comes first may take the name at any time, but with `--policy upsert-only`;
//! 2. whoever has it keeps it until one that comes before has something registered under it: a name is
//!    left only once it is taken. One that has nothing to register (no endpoint, no address of its load
//!    balancer, writes that Consul refuses, a name of others) takes it from nobody;
//! 3. nobody else gets it, not even while the first has nothing there: who waits behind that one must not
//!    take the name in its place.
//!
//! Nobody waits for anybody: each decides by what is there, and is planned again when that changes.
//!
//! With `--policy upsert-only` nothing leaves a name, so not even the first takes one that another
//! Service has, or a registration without one. (While the first write of the other one is under way nobody
//! has it: both stay then.) So it is with one whose records stay because a list lacks it, or because it could
//! not be read: what it claims is not known. With `--on-conflict merge` all have it.

use crate::domain::consul::names::lookup_form;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::services::claims::TOLD;
use crate::domain::services::desired::{First, Keeps, Permit};
use crate::domain::services::settings::OnConflict;
use crate::domain::sync::cluster::Cluster;
use crate::domain::sync::config::Config;
use crate::domain::sync::order::takers_first;
use crate::domain::sync::term::Term;
use crate::domain::sync::view::View;

// === impl View ===

impl View<'_> {
    /// Why the Service may not have the name, as [`lookup_form`] has it, for the sake of another one.
    /// `has`: whether something of it is registered under the name.
    ///
    /// [`lookup_form`]: crate::domain::consul::names::lookup_form
    pub(super) fn precedence(&self, service: &ObjectKey, name: &str, has: bool) -> Option<Permit> {
        if has {
            return self.is_behind(service, name).then(|| Permit::Taken(self.told_first(name)));
        }
        if let Some(first) = self.comes_first(service, name) {
            return Some(Permit::Taken(first));
        }
        if self.shares_names() {
            return None;
        }
        let mut others = self.term.known.holders(name).filter(|other| *other != service);
        others.find_map(|other| Some(Permit::Kept(other.clone(), self.keeps_names(other)?)))
    }

    /// Why the Service leaves no name now, whoever comes first there.
    fn keeps_names(&self, service: &ObjectKey) -> Option<Keeps> {
        let cache = &self.cluster.cache;
        let is_unseen = || {
            cache.service(service).is_none()
                && (self.term.holds.of(service).is_some()
                    || cache.undecodable(Kind::Service, service).is_some())
        };
        if self.settings.never_removes() {
            Some(Keeps::Policy)
        } else {
            is_unseen().then_some(Keeps::Unseen)
        }
    }

    /// Whether one that comes before the Service has the name.
    pub(super) fn is_behind(&self, service: &ObjectKey, name: &str) -> bool {
        let (known, claims) = (&self.term.known, &self.cluster.name_claims);
        match claims.holder(name) {
            Some(first) if first != service && !self.shares_names() => {
                known.certainly_holds(first, name)
                    || known.certain_holders(name).any(|it| claims.is_before(name, it, service))
            }
            _ => false,
        }
    }

    /// The Service that comes first for the name, if another one does.
    pub(super) fn comes_first(&self, service: &ObjectKey, name: &str) -> Option<First> {
        let first = self.cluster.name_claims.holder(name);
        let first = first.filter(|first| *first != service && !self.shares_names());
        first.map(|_| self.told_first(name))
    }

    /// Who comes first for the name, if those that do not are few enough to be told.
    fn told_first(&self, name: &str) -> First {
        let claims = &self.cluster.name_claims;
        let first = claims.holder(name).filter(|_| claims.count(name) <= TOLD);
        first.map_or(First::Untold, |first| First::Told(first.clone()))
    }

    fn shares_names(&self) -> bool {
        self.settings.on_conflict == OnConflict::Merge
    }
}

// === impl Term ===

impl Term {
    /// Has planned whom it concerns that a Service has taken a name, or has left it.
    pub(super) fn mark_moved(&mut self, config: &Config, cluster: &Cluster) {
        for (name, mover) in self.known.take_moved() {
            if cluster.shares_names {
                continue;
            }
            if self.known.certainly_holds(&mover, &name) {
                self.mark_gain(&name, mover);
            } else {
                self.mark_loss(config, cluster, &name, &mover);
            }
        }
    }

    /// The mover has taken the name: nobody else keeps it who comes later.
    fn mark_gain(&mut self, name: &str, mover: ObjectKey) {
        let mut others = self.names.taken_from_all(name);
        others.extend(self.known.holders(name).cloned());
        others.remove(&mover);
        if !others.is_empty() {
            self.mark_each(others);
            // One that comes before may have taken it while this one's write was under way.
            self.mark(mover);
        }
    }

    /// The mover has nothing under the name any more, or nothing that is there for certain.
    fn mark_loss(&mut self, config: &Config, cluster: &Cluster, name: &str, mover: &ObjectKey) {
        let (known, claims) = (&self.known, &cluster.name_claims);
        let first = claims.holder(name);
        // All others are behind that one. Asked first: thousands may leave a name one after the other.
        if first.is_some_and(|first| known.certainly_holds(first, name)) {
            return;
        }
        // It has had the name, and waits behind another one from now on.
        let waits = (claims.claims(name, mover) && first != Some(mover)).then(|| mover.clone());
        // Those behind it are behind such a one as well. Where a mover was that has given up its claim is
        // not known.
        let is_before = |other: &ObjectKey| claims.is_before(name, other, mover);
        let was_behind = claims.claims(name, mover) && known.certain_holders(name).any(is_before);
        if !was_behind {
            let others: Vec<ObjectKey> =
                known.holders(name).filter(|other| *other != mover).cloned().collect();
            self.mark_each(others);
        }
        self.mark_each(waits);
        // One that comes first waits for whoever keeps the name.
        if config.settings.never_removes() || !claims.claims(name, mover) {
            self.mark_each(first.cloned());
        }
    }

    /// Has these planned, each after whoever takes over what it leaves, even if it has waited for longer.
    pub(super) fn mark_leaving(
        &mut self,
        services: impl IntoIterator<Item = ObjectKey>,
        cluster: &Cluster,
    ) {
        let services: Vec<ObjectKey> = services.into_iter().collect();
        let count = services.len();
        let order = self.takers_first(services, cluster);
        let is_taken_over = order.len() > count;
        for service in order {
            self.mark(service.clone());
            if is_taken_over {
                self.work.queue.move_to_end(&service);
            }
        }
    }

    /// These, each after those that come first for names that it has, and does not claim.
    pub(super) fn takers_first(
        &self,
        services: impl IntoIterator<Item = ObjectKey>,
        cluster: &Cluster,
    ) -> Vec<ObjectKey> {
        let claims = &cluster.name_claims;
        takers_first(services, |service| {
            let (mut takers, mut before) = (Vec::new(), None);
            for known in self.known.of(service) {
                // Most have one name.
                if before.replace(&known.service) == Some(&known.service) {
                    continue;
                }
                let name = lookup_form(&known.service);
                if !claims.claims(&name, service) {
                    takers.extend(claims.holder(&name).cloned());
                }
            }
            takers
        })
    }

    /// Has planned who may be registered under the name, and who is.
    pub(super) fn mark_contenders(&mut self, name: &str, cluster: &Cluster) {
        self.mark_each(cluster.contenders(name));
        self.mark_holders(name);
    }

    /// Has planned who is registered under the name.
    pub(super) fn mark_holders(&mut self, name: &str) {
        let holders: Vec<ObjectKey> = self.known.holders(name).cloned().collect();
        self.mark_each(holders);
    }
}
