//! Applies plans, and gives what is sent next.
use std::collections::BTreeSet;

use crate::domain::Moment;
use crate::domain::consul::ptr::ConsulDomain;
use crate::domain::consul::record::{Check, RecordKey, Write};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::sync::action::{Action, Group, Planned};
use crate::domain::sync::cluster::Cluster;
use crate::domain::sync::config::Config;
use crate::domain::sync::hold::Cause;
use crate::domain::sync::plan::{Outcome, Plan};
use crate::domain::sync::report::Report;
use crate::domain::sync::term::{BySlice, Content, ServiceState, Term};
use crate::domain::sync::view::View;
use crate::domain::sync::wait::Wait;

/// So much text one request carries, about; one more group than fits is always taken. It is what
/// Consul takes in a transaction, and bounds what waits for answers: sixteen requests to an agent,
/// four to the catalog.
const MAX_TEXT: usize = 512 << 10;

// === impl Term ===

impl Term {
    /// What is sent next: a write takes as many groups as one request may carry and as there are.
    pub(super) fn next_write(
        &mut self,
        config: &Config,
        domain: Option<&ConsulDomain>,
        cluster: &Cluster,
        now: Moment,
        reports: &mut Vec<Report>,
    ) -> Option<Action> {
        self.mark_moved(config, cluster);
        if !self.is_running() || self.flights.len() >= config.capacity.flights {
            return None;
        }
        let is_probe = self.retries.is_outage();
        if is_probe && (!self.flights.is_empty() || now < self.retries.next_probe()) {
            return None;
        }
        let most = if is_probe { 1 } else { config.capacity.groups };
        let mut flight = None;
        let mut groups = Vec::new();
        let mut text = 0;
        while groups.len() < most && text < MAX_TEXT {
            match self.next_planned(groups.is_empty()) {
                Some((service, Planned::Write(writes))) => {
                    let flight = *flight.get_or_insert_with(|| self.flights.begin());
                    for write in &writes {
                        text += write.text();
                        self.send(flight, service.clone(), write.key(), content(write));
                    }
                    groups.push(Group { service, writes });
                }
                Some((service, Planned::ReadPtr(key))) => {
                    let flight = self.flights.begin();
                    self.send(flight, service, RecordKey::Ptr(key.clone()), Content::Read);
                    return Some(Action::ReadPtr { flight, key });
                }
                // A key that has to be read next is a request of its own.
                None if self.work.planned.is_some() => break,
                None => {
                    let Some(service) = self.next_to_plan(is_probe, now) else { break };
                    #[cfg(test)]
                    {
                        self.plans += 1;
                    }
                    let slices = self.take_slices(&service);
                    let view = View::new(config, domain, cluster, self);
                    let part = slices.and_then(|it| view.plan_slices(&service, &it, now));
                    if let Some(actions) = part {
                        #[cfg(test)]
                        {
                            view.assert_is_whole_plan(&service, &actions, now);
                            self.slice_plans += 1;
                        }
                        self.apply_slices(service, actions, reports);
                    } else {
                        let plan = view.plan(&service, now);
                        self.apply(config, service, plan, now, reports);
                    }
                }
            }
        }
        if let Some(flight) = flight {
            return Some(Action::Write { flight, groups });
        }
        self.remove_namespace_node(now)
    }

    /// Begins the next removal of a namespace node. Nothing else is left to send.
    fn remove_namespace_node(&mut self, now: Moment) -> Option<Action> {
        if self.schedule.is_uncertain() {
            return None;
        }
        let namespace = self.namespace_nodes.take(&self.known, &self.flights, now)?;
        let flight = self.flights.begin();
        let owner = ObjectKey::new("", namespace.clone());
        self.send(flight, owner, RecordKey::NamespaceNode(namespace.clone()), Content::Nothing);
        Some(Action::RemoveNamespaceNode { flight, namespace })
    }

    /// The next thing to send of the Service that was planned last; the reading of a key only if `may_read`.
    fn next_planned(&mut self, may_read: bool) -> Option<(ObjectKey, Planned)> {
        let (service, actions) = self.work.planned.as_mut()?;
        if !may_read && matches!(actions.front(), Some(Planned::ReadPtr(_))) {
            return None;
        }
        let next = actions.pop_front()?;
        let service = service.clone();
        if actions.is_empty() {
            self.work.planned = None;
        }
        Some((service, next))
    }

    /// The next Service to plan. While Consul is out, any write will do as a probe, however long it
    /// would have waited.
    fn next_to_plan(&mut self, is_probe: bool, now: Moment) -> Option<ObjectKey> {
        let next = self.work.queue.pop();
        next.or_else(|| if is_probe { self.retries.probe(now) } else { None })
    }

    /// Takes a plan: what it sends is sent by [`Term::next_write`].
    fn apply(
        &mut self,
        config: &Config,
        service: ObjectKey,
        plan: Plan,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        for (record, wait) in &plan.waits {
            self.wait(&service, record, wait);
        }
        if config.settings.never_removes() {
            let kept = plan.waits.values().filter(|wait| **wait == Wait::Held(Cause::Policy));
            self.kept.set(&service, kept.count());
        }
        let Some(mut outcome) = plan.outcome else {
            // Of one that cannot be read nothing is to be done; a node that goes is waited for.
            let waits_for_node = plan.waits.values().any(|wait| *wait == Wait::NodeGoing);
            if !waits_for_node {
                self.settle(&service, reports);
            }
            return;
        };
        let follow_up = outcome.follow_up || plan.again || self.flights.has(&service);
        if plan.by_slice && !follow_up {
            self.work.by_slice.insert(service.clone(), BySlice::default());
        }
        let is_step = outcome.is_step;
        if plan.again {
            self.work.queue.push(service.clone());
        }
        self.unserved.note(&service, std::mem::take(&mut outcome.unserved), now);
        self.balancers.note(&service, std::mem::take(&mut outcome.awaited_balancer), now);
        let puts = if self.ptr.awaited.is_empty() { BTreeSet::new() } else { puts(&plan.actions) };
        self.apply_outcome(&service, outcome, &puts, reports);
        if plan.actions.is_empty() {
            if let Some(state) = self.work.services.get_mut(&service) {
                state.follow_up = follow_up;
            }
            return self.settle(&service, reports);
        }
        let state = self.work.services.entry(service.clone()).or_default();
        (state.follow_up, state.is_step) = (follow_up, is_step);
        self.work.planned = Some((service, plan.actions.into()));
    }

    /// Takes what is sent for some slices of a Service: it is in sync then, as it was before.
    fn apply_slices(
        &mut self,
        service: ObjectKey,
        actions: Vec<Planned>,
        reports: &mut Vec<Report>,
    ) {
        self.work.by_slice.insert(service.clone(), BySlice::default());
        if actions.is_empty() {
            return self.settle(&service, reports);
        }
        self.work.services.entry(service.clone()).or_default();
        self.work.planned = Some((service, actions.into()));
    }

    /// Has the Service planned again when the wait is over, where something ends it that is no event
    /// of its own.
    fn wait(&mut self, service: &ObjectKey, record: &RecordKey, wait: &Wait) {
        match wait {
            Wait::InFlight | Wait::NodeGoing => self.flights.wait_for(record, service.clone()),
            Wait::Backoff { .. }
            | Wait::Denied { .. }
            | Wait::Failing { .. }
            | Wait::Refused
            | Wait::Contested { .. } => self.retries.wait_for(record, service.clone()),
            Wait::Held(_)
            | Wait::Turn
            | Wait::NameUnknown
            | Wait::NameNotLookedUp
            | Wait::NameConflict
            | Wait::NameForeign
            | Wait::NodesUnknown
            | Wait::RoutesUnknown
            | Wait::SlicesBehind { .. }
            | Wait::Unread
            | Wait::AfterReplacement
            | Wait::WithPtr
            | Wait::WithInstance
            | Wait::DomainUnknown
            | Wait::PtrForeign => {}
        }
    }

    /// Takes what follows from a plan that writes the PTR records `puts`.
    fn apply_outcome(
        &mut self,
        service: &ObjectKey,
        outcome: Outcome,
        puts: &BTreeSet<Box<str>>,
        reports: &mut Vec<Report>,
    ) {
        for name in outcome.unknown_names {
            self.names.ask(name.into());
        }
        let no_longer = self.ptr.awaited.set(service, outcome.awaited_ptr);
        let written = no_longer.into_iter().filter(|key| puts.contains(key));
        reports.extend(written.map(|key| Report::PtrTakenOver(service.clone(), key)));
        if outcome.releases_hold {
            // What its watch says from now on is as true as what it says of any other.
            self.holds.release(service);
        }
        let orphaned = ObjectKey::orphaned();
        for handover in self.ptr.claims.set(service, outcome.ptr_claims) {
            let released = self.ptr.released.get(&orphaned);
            if released.is_some_and(|released| released.contains(&*handover.thing)) {
                // Held for nobody, maybe: it is somebody's now.
                self.mark(orphaned.clone());
            }
            let concerned: BTreeSet<ObjectKey> =
                [handover.from, handover.to].into_iter().flatten().collect();
            self.mark_each(concerned.into_iter().filter(|other| other != service));
        }
        if outcome.released.is_empty() {
            self.ptr.released.remove(service);
        } else {
            self.ptr.released.insert(service.clone(), outcome.released);
        }
        for key in &outcome.forgotten {
            self.known.forget_ptr(key);
        }
        for record in &outcome.cleared {
            self.retries.clear(record);
        }
        self.problems.set(Subject::Service, service, outcome.problems, reports);
    }

    /// All of a Service's writes are answered: it is in sync, unless something is left to do.
    pub(super) fn answered(&mut self, service: &ObjectKey, reports: &mut Vec<Report>) {
        let more_to_come = self.work.planned.as_ref().is_some_and(|(other, _)| other == service);
        if self.flights.has(service) || more_to_come {
            return;
        }
        match self.work.services.get(service) {
            Some(state) if !state.follow_up => self.settle(service, reports),
            Some(state) if state.is_step => self.work.queue.push_large(service.clone()),
            _ => self.mark(service.clone()),
        }
    }

    /// Nothing of the Service is left to send: it is in sync, unless something waits.
    fn settle(&mut self, service: &ObjectKey, reports: &mut Vec<Report>) {
        if self.flights.has(service) {
            return;
        }
        self.retries.settled(service);
        let services = &mut self.work.services;
        let state = services.remove(service).unwrap_or_default();
        let mut since = None;
        if self.retries.has_passing(service) {
            // It still is one of those with something to be done.
            services.insert(service.clone(), ServiceState::default());
        } else {
            since = self.work.changed.remove(service);
            if services.is_empty() {
                // A burst must not leave its memory behind.
                services.shrink_to(0);
                self.work.changed.shrink_to(0);
            }
        }
        if state.written.is_any() {
            let known = self.known.of(service);
            let critical = known.iter().filter(|known| known.critical).count();
            reports.push(Report::InSync {
                service: service.clone(),
                written: state.written,
                critical,
                passing: known.len() - critical,
                since,
            });
        }
    }
}

/// The PTR records that are written.
fn puts(actions: &[Planned]) -> BTreeSet<Box<str>> {
    let writes = actions.iter().flat_map(|action| match action {
        Planned::Write(writes) => writes.as_slice(),
        Planned::ReadPtr(_) => &[],
    });
    let puts = writes.filter_map(|write| match write {
        Write::PutPtr { record, .. } => Some(record.key.clone()),
        _ => None,
    });
    puts.collect()
}

fn content(write: &Write) -> Content {
    match write {
        Write::Register(registration) | Write::Replace(registration) => Content::Registration {
            name: registration.service.clone(),
            fingerprint: registration.fingerprint(),
            critical: registration.check == Check::Critical,
        },
        Write::PutPtr { record, .. } => Content::Ptr(record.fingerprint()),
        Write::Deregister { .. } | Write::DeletePtr { .. } => Content::Nothing,
    }
}
