//! Plans no more of a large Service than the slices that changed.
//!
//! What is registered of an endpoint most often follows from its slice and the Service alone. Once such a
//! Service is planned, and all of that is written, a slice that says something else of the same endpoints
//! concerns the instances of these endpoints and nothing else: the plan of that slice is the plan of the
//! Service. Whatever else may have changed has the whole Service planned: that is the rule, and this the
//! exception.

use std::collections::BTreeSet;

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
#[cfg(test)]
use crate::domain::kube::object::Subject;
use crate::domain::services::desired::Desired;
use crate::domain::services::settings::PtrScope;
use crate::domain::sync::action::Planned;
use crate::domain::sync::plan::{Draft, Plan};
use crate::domain::sync::term::Term;
use crate::domain::sync::view::View;

// === impl Term ===

impl Term {
    /// Has planned what changes by a slice of the Service that says something else of the same endpoints.
    pub(super) fn mark_slice(&mut self, service: ObjectKey, slice: &ObjectKey) {
        let is_being_sent = self.work.planned.as_ref().is_some_and(|(it, _)| *it == service);
        match self.work.by_slice.get_mut(&service).filter(|_| !is_being_sent) {
            Some(by_slice) => {
                by_slice.slices.insert(slice.clone());
                self.work.queue.push(service);
            }
            None => self.mark(service),
        }
    }

    /// The slices that are all that is to be planned of a Service, if it is no more than some.
    pub(super) fn take_slices(&mut self, service: &ObjectKey) -> Option<BTreeSet<ObjectKey>> {
        let by_slice = self.work.by_slice.remove(service)?;
        Some(by_slice.slices).filter(|slices| !slices.is_empty())
    }
}

// === impl View ===

impl View<'_> {
    /// Whether what is registered of each slice of the Service follows from that slice.
    pub(super) fn is_by_slice(&self, key: &ObjectKey, desired: &Desired) -> bool {
        desired.by_slice
            && desired.problems.is_empty()
            && desired.undecided.is_empty()
            && desired.taken.is_empty()
            && desired.blocked.is_empty()
            // Their PTR records concern other Services.
            && self.settings.reverse != PtrScope::All
            // How many are kept is counted over all.
            && !self.settings.never_removes()
            && self.cluster.cache.has_slices(key)
    }

    /// What is sent when nothing but these slices has changed; `None`: the whole Service has to be
    /// planned.
    pub(super) fn plan_slices(
        &self,
        key: &ObjectKey,
        slices: &BTreeSet<ObjectKey>,
        now: Moment,
    ) -> Option<Vec<Planned>> {
        let is_at_rest = !self.term.flights.has(key)
            && self.term.retries.of(key).next().is_none()
            && self.term.holds.of(key).is_none();
        if !is_at_rest {
            return None;
        }
        let is_other =
            |kind, name: &ObjectKey| kind == Kind::EndpointSlice && !slices.contains(name);
        let desired = self.desired(key, &is_other);
        if !self.is_by_slice(key, &desired) {
            return None;
        }
        let mut draft = Draft { step: self.step, ..Draft::default() };
        self.draft_registrations(key, &desired, now, &mut draft);
        let plan = draft.finish();
        plan.leaves_nothing().then_some(plan.actions)
    }
}

#[cfg(test)]
impl View<'_> {
    /// The plan of some slices has to be that of the Service.
    pub(super) fn assert_is_whole_plan(&self, key: &ObjectKey, actions: &[Planned], now: Moment) {
        let whole = self.plan(key, now);
        assert!(whole.by_slice, "{key}: {whole:?}");
        assert_eq!(whole.actions, actions, "{key}");
        let problems = self.term.problems.of(Subject::Service, key).count();
        assert_eq!(problems, 0, "{key}: those of the last plan are kept");
    }
}

// === impl Plan ===

impl Plan {
    /// Whether its actions leave the Service in sync.
    pub(super) fn leaves_nothing(&self) -> bool {
        let Some(outcome) = &self.outcome else { return false };
        self.waits.is_empty()
            && !self.again
            && !outcome.is_step
            && !outcome.follow_up
            && outcome.problems.is_empty()
            && outcome.released.is_empty()
            && outcome.unserved.is_empty()
    }
}
