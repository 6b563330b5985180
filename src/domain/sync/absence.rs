//! Objects that are gone, or that a list lacks.

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::services::settings::PtrScope;
use crate::domain::sync::core::Core;
use crate::domain::sync::hold::Cause;
use crate::domain::sync::loss::is_most;
use crate::domain::sync::report::Report;
use crate::domain::sync::term::Term;

// === impl Core ===

impl Core {
    /// Forgets an object of which it is known that it no longer exists.
    pub(super) fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        if kind == Kind::Service
            && let Some(term) = &mut self.term
        {
            term.holds.release(key);
        }
        let changes = self.cluster.remove(&self.config.settings, kind, key, &mut self.reports);
        self.mark(changes);
    }

    pub(super) fn list_completed(&mut self, kind: Kind, now: Moment) {
        let first = !self.cluster.cache.is_listed(kind);
        let lacked_routes = self.cluster.cache.lacks_routes();
        let missing = self.cluster.cache.list_completed(kind);
        self.absent(kind, missing, now);
        if kind == Kind::Node {
            self.cluster.node_watch.listed();
            if first {
                self.nodes_listed(now);
            }
        }
        if lacked_routes && !self.cluster.cache.lacks_routes() {
            self.routes_listed(now);
        }
        self.cluster.suspects.list_completed(kind);
        self.release_if_confirmed();
    }

    /// Takes what a complete list of one kind did not show.
    fn absent(&mut self, kind: Kind, missing: Vec<ObjectKey>, now: Moment) {
        let is_running = self.term.as_ref().is_some_and(Term::is_running);
        if !is_running {
            let cache = &self.cluster.cache;
            let concerned = missing.iter().flat_map(|key| cache.services_concerned(kind, key));
            self.cluster.unweighed.insert(kind, concerned.collect());
        }
        if missing.is_empty() {
            return;
        }
        let before = self.cluster.suspects.objects.len();
        let mut all = self.cluster.suspects.objects.clone();
        all.extend(missing.iter().map(|key| (kind, key.clone())));
        let running = self.term.as_ref().filter(|term| term.is_running());
        let (lost, total) =
            running.map_or((0, 0), |term: &Term| self.view(term).loss_without(&all));
        if !is_most(lost, total) {
            for key in missing {
                self.remove(kind, &key);
            }
            return;
        }
        if all.len() > before {
            // What is newly missing wants a second list of its own.
            self.cluster.suspects.confirm_later(now);
            self.reports.push(Report::Held { cause: Cause::Absence, lost, total });
        }
        self.cluster.suspects.objects = all;
    }

    /// The first list of nodes is complete. What they would take away after the first
    /// reconciliation is weighed now.
    fn nodes_listed(&mut self, now: Moment) {
        if !self.term.as_ref().is_some_and(Term::is_running) {
            return;
        }
        let users: Vec<ObjectKey> = self.cluster.cache.node_users().iter().cloned().collect();
        let losses = self.losses_of(&users);
        self.mark_node_users();
        let Some(term) = &mut self.term else { return };
        if self.config.settings.reverse != PtrScope::Off {
            // Any of them may have the address of a node.
            term.mark_all(&self.cluster);
        }
        term.mark(ObjectKey::orphaned());
        self.hold_most(losses, now);
    }

    /// What routes to Services is listed for the first time after the first reconciliation: it was not
    /// served before. A list that comes back empty removes no more than one at the start.
    fn routes_listed(&mut self, now: Moment) {
        let Some(term) = self.term.as_ref().filter(|term| term.is_running()) else { return };
        let known: Vec<ObjectKey> = term.known.services().map(|(key, _)| key.clone()).collect();
        let losses = self.losses_of(&known);
        if let Some(term) = &mut self.term {
            term.mark_all(&self.cluster);
            term.mark(ObjectKey::orphaned());
        }
        self.hold_most(losses, now);
    }

    /// How many records each of these Services would lose by what it is now known to be made of.
    fn losses_of(&self, services: &[ObjectKey]) -> Vec<(ObjectKey, usize)> {
        let Some(term) = self.term.as_ref().filter(|term| term.is_running()) else {
            return Vec::new();
        };
        let view = self.view(term);
        let loss = |key: &ObjectKey| view.first_loss(key, &view.desired(key, &|_, _| false));
        services.iter().filter_map(|key| Some((key.clone(), loss(key)?.records))).collect()
    }

    /// Holds these losses until a second list agrees, if they are most of what is registered.
    fn hold_most(&mut self, losses: Vec<(ObjectKey, usize)>, now: Moment) {
        let Some(term) = &mut self.term else { return };
        let lost = losses.iter().map(|(_, lost)| lost).sum();
        let total = term.known.registration_count();
        if is_most(lost, total) {
            for (service, _) in losses {
                term.holds.hold(service, Cause::Absence);
            }
            self.cluster.suspects.confirm_later(now);
            self.reports.push(Report::Held { cause: Cause::Absence, lost, total });
        }
    }

    pub(super) fn mark_node_users(&mut self) {
        if let Some(term) = &mut self.term {
            term.mark_each(self.cluster.cache.node_users().clone());
        }
    }

    /// Releases what was held for absence once the second list agrees.
    pub(super) fn release_if_confirmed(&mut self) {
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
            let released = term.holds.release_absent();
            let view = self.view(&term);
            confirmed |= released.iter().any(|service| view.loses(service));
            term.mark_leaving(released, &self.cluster);
            self.term = Some(term);
        }
        self.reports.push(Report::Released { confirmed });
    }
}
