//! From a Service that may have changed to its next requests.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::create::Step;
use super::{Action, Importer, MAX_SOURCES_OF_NAMESPACE, OldEndpoints, Report, State, Write};
use crate::domain::Moment;
use crate::domain::import::instance::{Endpoints, Group, Imported};
use crate::domain::import::layout::{Changes, Slice, Slices, lay_out};
use crate::domain::import::object::{Form, OwnedSlice, Service};
use crate::domain::import::source::{Import, SERVICE_SYNC};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::parse_bool;

/// The manager of slices that the cluster mirrors from Endpoints, such as consul8s wrote.
const MIRRORED_BY: &str = "endpointslicemirroring-controller.k8s.io";
/// Slices of others that a problem names: a line's worth.
const MAX_NAMED: usize = 3;

// === impl Importer ===

impl Importer {
    /// Plans what the Service wants next.
    pub(super) fn plan(&mut self, key: &ObjectKey, now: Moment) {
        if self.states.get(key).is_some_and(|state| state.in_flight > 0) {
            // Planned again once that is answered.
            return;
        }
        if let Some(state) = self.states.get_mut(key) {
            state.remove_at = None;
        }
        let service = self.services.get(key).cloned();
        let mut problems = Vec::new();
        let step = self.plan_service(key, service.as_ref(), &mut problems, now);
        match (step, service) {
            (Step::Done, _) => {}
            (Step::Other | Step::Endpoints, Some(service)) => {
                self.plan_marked(key, &service, &mut problems, now);
            }
            (Step::Adopt(service, import), Some(_)) => {
                self.plan_import(key, &service, &import, &mut problems, now);
                self.plan_adoption(key, &service, now);
            }
            (_, None) => return self.forget(key),
        }
        if let Some(why) = self.services.listing().reason(key) {
            problems.push(Problem::new(Reason::Undecodable, why));
        }
        problems.extend(self.failures.problem(key).cloned());
        if !problems.is_empty() {
            // It asks for an import, though it gets none.
            self.states.entry(key.clone()).or_default();
        }
        let timers = self
            .states
            .get(key)
            .map(|it| [it.keep_until, it.adopt_at, it.remove_at, it.mirrored_until]);
        let due = timers.into_iter().flatten().flatten().filter(|at| *at > now).min();
        self.set_timer(key, due);
        self.set_problems(key, problems);
    }

    /// Plans the slices of a Service by what it asks for.
    fn plan_marked(
        &mut self,
        key: &ObjectKey,
        service: &Service,
        problems: &mut Vec<Problem>,
        now: Moment,
    ) {
        let (import, mut found) = Import::of(&service.labels, &service.annotations);
        let import = import.filter(|_| match Self::obstacle(service) {
            Some(problem) => {
                found.push(problem);
                false
            }
            None => true,
        });
        let is_readable = found.is_empty();
        problems.append(&mut found);
        match import {
            Some(_) if service.is_going => {}
            Some(import) if !self.has_room(key, &import.sources) => {
                self.without_room.insert(key.clone());
                problems.push(no_room(key));
            }
            Some(import) => {
                self.without_room.remove(key);
                self.follow(key, &import.sources);
                self.plan_import(key, service, &import, problems, now);
            }
            // A mark that cannot be read says nothing about what is there.
            None if !is_readable && !service.has_selector => {}
            None => self.plan_removal(key, service, now),
        }
    }

    /// Why a Service that asks for it cannot have imported endpoints.
    fn obstacle(service: &Service) -> Option<Problem> {
        let message = if service.has_selector {
            "expected a Service without a selector, found one: the endpoints that it selects are \
             the cluster's; remove spec.selector, or the mark of the import"
                .to_owned()
        } else if matches!(service.form, Form::ExternalName(_)) {
            "expected a Service with endpoints, found type ExternalName; give it another type"
                .to_owned()
        } else if service.ports.is_empty() {
            "expected a port, found none: name those that the endpoints are reached by in spec.ports"
                .to_owned()
        } else {
            return None;
        };
        Some(Problem::new(Reason::Incomplete, message))
    }

    /// A Service that exists and asks for nothing (any more): our slices go.
    fn plan_removal(&mut self, key: &ObjectKey, service: &Service, now: Moment) {
        if let Some(state) = self.states.get_mut(key) {
            let sources = std::mem::take(&mut state.sources);
            self.unfollow(key, sources);
        }
        let own: Vec<(Box<str>, Box<str>)> = self
            .named_slices(key)
            .filter(|_| !service.is_going)
            .map(|(name, slice)| (name.clone(), slice.uid.clone()))
            .collect();
        if own.is_empty() {
            return self.forget(key);
        }
        if !self.failures.waits(key, now) {
            self.delete(key, service, own);
        }
    }

    fn delete(&mut self, key: &ObjectKey, service: &Service, slices: Vec<(Box<str>, Box<str>)>) {
        let state = self.states.entry(key.clone()).or_default();
        state.in_flight += slices.len();
        for (name, uid) in slices {
            let (service, owner) = (key.clone(), Arc::clone(&service.uid));
            self.actions.push(Action::Write(Write::Delete { service, owner, name, uid }));
        }
    }

    fn plan_import(
        &mut self,
        key: &ObjectKey,
        service: &Service,
        import: &Import,
        problems: &mut Vec<Problem>,
        now: Moment,
    ) {
        if let Some(OldEndpoints::Asked(why)) = self.states.get(key).map(|it| &it.old_endpoints) {
            problems.extend(why.clone());
        }
        let unknown = |source| self.sources.get(source).and_then(|it| it.unknown.clone());
        problems.extend(import.sources.iter().filter_map(unknown));
        let imported = self.imported(import);
        let is_replaced = imported.as_ref().is_some_and(|it| !it.endpoints.is_empty());
        let goes = self.mirror_goes(key, import.node_address_counts && is_replaced, now);
        problems.extend(self.foreign_slices_of(key, goes));
        let Some(imported) = imported else { return };
        problems.extend(imported.problems.iter().cloned());
        let usable_before = self.usable_endpoints(key, &service.uid);
        let Some(state) = self.states.get_mut(key) else { return };
        if self.failures.waits(key, now) {
            return;
        }
        if !std::mem::replace(&mut state.looked_back, true) {
            // Those of a former process.
            state.last_usable = usable_before;
        }
        let endpoints = state.kept(import, imported, now);
        let owned = |slice: &OwnedSlice| *slice.owner == *service.uid;
        let existing: Slices = self
            .named_slices(key)
            .filter(|(_, slice)| owned(slice) && slice.is_canonical)
            .map(|(name, slice)| (name.clone(), slice.slice.clone()))
            .collect();
        let wanted = lay_out((&key.name, &service.uid), &service.ports, &endpoints, &existing);
        let changes = Changes::between(&existing, &wanted);
        if !changes.write.is_empty() {
            return self.write(key, service, &changes.write, wanted);
        }
        // Those of an earlier Service of this name go too, and those that somebody changed so that
        // nothing of them can be kept.
        let strays: Vec<(Box<str>, Box<str>)> = self
            .named_slices(key)
            .filter(|(name, _)| !wanted.contains_key(*name))
            .map(|(name, slice)| (name.clone(), slice.uid.clone()))
            .collect();
        if !strays.is_empty() {
            return self.delete(key, service, strays);
        }
        let is_mirrored = import.node_address_counts && self.has_mirrored_slice(key);
        let Some(state) = self.states.get_mut(key) else { return };
        let is_unknown = matches!(state.old_endpoints, OldEndpoints::Unknown);
        if is_mirrored && is_unknown && !wanted.is_empty() {
            state.in_flight += 1;
            let (service, uid) = (key.clone(), Arc::clone(&service.uid));
            return self.actions.push(Action::Write(Write::DeleteEndpoints { service, uid }));
        }
        self.failures.clear(key);
        let Some(state) = self.states.get_mut(key) else { return };
        if std::mem::take(&mut state.wrote) {
            let ready = endpoints.values().flat_map(BTreeMap::values).filter(|it| **it).count();
            let count = endpoints.values().map(BTreeMap::len).sum();
            self.reports.push_back(Report::InSync {
                service: key.clone(),
                ready,
                endpoints: count,
            });
        }
    }

    fn write(
        &mut self,
        key: &ObjectKey,
        service: &Service,
        names: &BTreeSet<Box<str>>,
        mut wanted: Slices,
    ) {
        let state = self.states.entry(key.clone()).or_default();
        for name in names {
            let Some(slice) = wanted.remove(name) else { continue };
            state.in_flight += 1;
            let (service, uid) = (key.clone(), Arc::clone(&service.uid));
            self.actions.push(Action::Write(Write::Put {
                service,
                uid,
                name: name.clone(),
                slice,
            }));
        }
    }

    /// What the first usable source in the order of preference has; none while that is unknown.
    fn imported(&self, import: &Import) -> Option<Imported> {
        let (mut first, mut is_known) = (None, true);
        for source in &import.sources {
            let followed = self.sources.get(source)?;
            let Some(instances) = followed.instances.as_deref() else {
                // One that did not answer yet may be the one that is preferred; one that fails is
                // passed over where the next is usable, and proves nothing.
                followed.unknown.as_ref()?;
                is_known = false;
                continue;
            };
            let is_import = |key: &ObjectKey| self.is_echoed(key);
            let imported = {
                let cluster = self.cluster.as_ref();
                Imported::of(import, cluster, &self.addresses, is_import, instances)
            };
            if imported.is_usable {
                return Some(imported);
            }
            first = first.or(Some(imported));
        }
        first.filter(|_| is_known)
    }

    /// Whether what another sync of Kubernetes says that it made of this Service came from Consul.
    fn is_echoed(&self, key: &ObjectKey) -> bool {
        let Some(service) = self.services.get(key) else { return false };
        let is_kept_from_consul_k8s =
            service.annotations.get(SERVICE_SYNC).and_then(|it| parse_bool(it)) == Some(false);
        !is_kept_from_consul_k8s && Import::of(&service.labels, &service.annotations).0.is_some()
    }

    /// The endpoints that its slices have and may have, if one of them is ready.
    pub(super) fn usable_endpoints(&self, key: &ObjectKey, uid: &str) -> Option<Endpoints> {
        let mut found = Endpoints::new();
        for (_, owned) in self.named_slices(key).filter(|(_, slice)| *slice.owner == *uid) {
            let Slice { is_ipv6, ports, endpoints } = &owned.slice;
            let Some(port) = ports.first() else { continue };
            let group = Group { is_ipv6: *is_ipv6, port: port.port };
            let permitted = endpoints.iter().filter(|(it, _)| self.addresses.permit(**it));
            found.entry(group).or_default().extend(permitted);
        }
        found.values().any(|all| all.values().any(|ready| *ready)).then_some(found)
    }

    /// Whether the cluster mirrors Endpoints of the Service, such as consul8s wrote.
    fn has_mirrored_slice(&self, key: &ObjectKey) -> bool {
        self.slices_of.get(key).into_iter().flatten().any(|name| {
            let slice = ObjectKey::new(key.namespace.clone(), name.clone());
            self.slices.get(&slice).is_some_and(|it| &*it.managed_by == MIRRORED_BY)
        })
    }

    /// Whether slices that mirror Endpoints are about to go: those that consul8s left are deleted
    /// once ours stand (`is_replaced`: they will), and the mirror follows.
    fn mirror_goes(&mut self, key: &ObjectKey, is_replaced: bool, now: Moment) -> bool {
        let is_mirrored = self.has_mirrored_slice(key);
        let Some(state) = self.states.get_mut(key) else { return false };
        state.mirrored_until = match state.old_endpoints {
            OldEndpoints::Deleted(until) if is_mirrored && until > now => Some(until),
            _ => None,
        };
        let is_next = is_replaced && matches!(state.old_endpoints, OldEndpoints::Unknown);
        is_next || state.mirrored_until.is_some()
    }

    /// Slices that others made for the Service serve it beside ours; `mirror_goes`: those that mirror
    /// Endpoints not for long.
    fn foreign_slices_of(&self, key: &ObjectKey, mirror_goes: bool) -> Option<Problem> {
        let names = self.slices_of.get(key).into_iter().flatten();
        let foreign = names.filter_map(|name| {
            let slice = self.slices.get(&ObjectKey::new(key.namespace.clone(), name.clone()))?;
            let goes = mirror_goes && &*slice.managed_by == MIRRORED_BY;
            (!slice.is_ours() && !goes).then_some((&**name, &*slice.managed_by))
        });
        let foreign: Vec<(&str, &str)> = foreign.collect();
        (!foreign.is_empty()).then(|| foreign_slices(key, &foreign))
    }
}

// === impl State ===

impl State {
    /// The endpoints to write: where none is usable any more, those that were last stay for as long
    /// as the Service asks for.
    fn kept(&mut self, import: &Import, imported: Imported, now: Moment) -> Endpoints {
        self.keep_until = None;
        if imported.is_usable {
            self.unusable_since = None;
            self.last_usable = (!import.keep.is_zero()).then(|| imported.endpoints.clone());
            return imported.endpoints;
        }
        let until = *self.unusable_since.get_or_insert(now) + import.keep;
        match &self.last_usable {
            Some(last) if until > now => {
                self.keep_until = Some(until);
                last.clone()
            }
            _ => {
                self.last_usable = None;
                imported.endpoints
            }
        }
    }
}

fn no_room(key: &ObjectKey) -> Problem {
    Problem::new(
        Reason::Refused,
        format!(
            "expected at most {MAX_SOURCES_OF_NAMESPACE} pairs of Consul service and datacenter in \
             namespace {}, found more: what this Service asks for is left out",
            key.namespace,
        ),
    )
}

/// Slices by name and manager. Those that the cluster mirrors from Endpoints come again while these
/// are there.
fn foreign_slices(key: &ObjectKey, slices: &[(&str, &str)]) -> Problem {
    let (mirrored, others): (Vec<_>, Vec<_>) =
        slices.iter().partition(|(_, managed_by)| *managed_by == MIRRORED_BY);
    let named = |slices: &[&(&str, &str)], separator: &str| {
        let named: Vec<&str> = slices.iter().take(MAX_NAMED).map(|(name, _)| *name).collect();
        named.join(separator)
    };
    let more = slices.len().saturating_sub(MAX_NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let delete = |kind: &str, names: &str| {
        format!("kubectl delete {kind} {names} --namespace {}", key.namespace)
    };
    let commands = [
        (!mirrored.is_empty()).then(|| delete("endpoints", &key.name)),
        (!others.is_empty()).then(|| delete("endpointslice", &named(&others, " "))),
    ];
    let commands: Vec<String> = commands.into_iter().flatten().collect();
    let all: Vec<_> = slices.iter().collect();
    Problem::new(
        Reason::Contested,
        format!(
            "EndpointSlice {}{more} of this Service is not ours and serves it beside the imported \
             endpoints; if that is not meant: {}",
            named(&all, ", "),
            commands.join("; "),
        ),
    )
}
