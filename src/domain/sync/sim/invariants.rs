//! What must hold at each step, seen from outside the core.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::consul::names::{ForeignNames, lookup_form};
use crate::domain::consul::ptr::ptr_key;
use crate::domain::consul::record::{Check, PtrOwner, PtrRecord, RecordKey, Registration, Write};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::flights::FlightId;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Endpoint, EndpointSlice, Kind, Node, SeenObject, Service};
use crate::domain::services::claims::Rank;
use crate::domain::services::desired::{Desired, Neighbours, Permit, desired, wanted};
use crate::domain::services::settings::Settings;
use crate::domain::sync::sim::consul::{
    Consul, FAILING_TAG, REFUSED_TAG, Registered, registered_by,
};
use crate::domain::sync::sim::kubernetes::{JOIN, View, service_of, service_of_slice};
use crate::domain::sync::{Group, Moment, Plan, Planned, Wait};

/// How long a write without an answer may still be applied.
pub(super) const MAY_STILL_APPLY: Duration = Duration::from_secs(30);
/// A reading that is due begins within this, also after one that failed.
const READS_WITHIN: Duration = Duration::from_secs(6);
/// With fewer records than this, losing most of them may be everyday life.
const MANY: usize = 24;

pub(super) type Checked = Result<(), String>;

/// What a process has to go by in one term, and what it has done.
#[derive(Debug, Default)]
pub(super) struct Term {
    /// Records that a request is under way for.
    pub(super) in_flight: BTreeMap<RecordKey, FlightId>,
    /// Namespaces whose node is being removed.
    pub(super) removing: BTreeSet<Box<str>>,
    /// Namespaces to which a write got no answer, and until when it may be applied.
    pub(super) uncertain: Vec<(Moment, Box<str>)>,
    /// What this term has written last, and how often the record had been changed by then.
    pub(super) certain: BTreeMap<RecordKey, (Write, u64, u32)>,
    /// Until when a request that got no answer may still be applied: a reading has to begin then.
    pub(super) unanswered: Option<Moment>,
    /// When the last reading ended.
    pub(super) reading_ended: Moment,
    /// Whether anything has failed: what waits for a better time may be overtaken.
    pub(super) has_failures: bool,
    /// How many readings have begun.
    pub(super) readings: usize,
    /// How many readings have ended well.
    pub(super) read: usize,
    /// The names that others hold, as they were read last.
    pub(super) names: Option<ForeignNames>,
    /// Names that each Service has had since the term began.
    pub(super) held: BTreeSet<(ObjectKey, Box<str>)>,
    /// Whether the first reconciliation has been made.
    pub(super) is_started: bool,
    /// Services that exist and were no longer selected then, if that would have removed most of what
    /// was registered: what they have stays until people say otherwise.
    pub(super) deselected: BTreeSet<ObjectKey>,
}

/// What follows from a view if every name may be had.
pub(super) struct Wanted<'v> {
    settings: &'v Settings,
    view: &'v View,
    /// Who wants each name.
    claimants: BTreeMap<Box<str>, BTreeMap<ObjectKey, Rank>>,
    /// Names that machines have ever had.
    machines: &'v BTreeSet<Box<str>>,
    /// Services of which an incomplete list was rightly believed.
    excused: &'v BTreeSet<ObjectKey>,
}

// === impl Wanted ===

impl<'v> Wanted<'v> {
    pub(super) fn new(
        settings: &'v Settings,
        view: &'v View,
        machines: &'v BTreeSet<Box<str>>,
        excused: &'v BTreeSet<ObjectKey>,
    ) -> Self {
        let mut claimants: BTreeMap<Box<str>, BTreeMap<ObjectKey, Rank>> = BTreeMap::new();
        for (key, service) in services(view) {
            for (name, rank) in wanted(settings, key, service).claims(settings, key, service) {
                claimants.entry((&*name).into()).or_default().insert(key.clone(), rank);
            }
        }
        Self { settings, view, claimants, machines, excused }
    }

    /// What ought to be there for the Service; none: it does not exist.
    fn of(&self, key: &ObjectKey) -> Option<Desired> {
        let object = self.view.objects.get(&(Kind::Service, key.clone()))?;
        let SeenObject::Service(_, service) = object else { return None };
        let slices = self.view.objects.values().filter_map(|object| match object {
            SeenObject::EndpointSlice(of, slice)
                if of.namespace == key.namespace && *slice.service == *key.name =>
            {
                Some(slice)
            }
            _ => None,
        });
        let slices: Vec<&EndpointSlice> = slices.collect();
        let nodes = self.view.objects.values().filter_map(|object| match object {
            SeenObject::Node(key, node) => Some((&*key.name, node)),
            _ => None,
        });
        let nodes: Vec<(&str, &Node)> = nodes.collect();
        let nodes = self.view.listed.contains(&Kind::Node).then_some(nodes.iter().copied());
        let granted = |_: &str, _| Permit::Granted(Neighbours::default());
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        let on_host: Vec<String> = endpoints
            .filter(|it| self.is_on_host_network(it))
            .map(|it| ptr_key(it.address))
            .collect();
        let slices = slices.iter().copied();
        let mut desired = desired(self.settings, key, service, slices, nodes, &[], &granted);
        desired.reverse.retain(|key, _| !on_host.iter().any(|on_host| **on_host == **key));
        Some(desired)
    }

    /// Whether the endpoint has an address of its node, which then gets no PTR record.
    fn is_on_host_network(&self, endpoint: &Endpoint) -> bool {
        let Some(name) = &endpoint.node else { return false };
        let node = self.view.objects.get(&(Kind::Node, ObjectKey::new("", &**name)));
        let Some(SeenObject::Node(_, node)) = node else { return false };
        node.addresses.iter().any(|(_, address)| *address == endpoint.address)
    }

    /// Whether a name that the Service wants is wanted by others, or had by machines.
    pub(super) fn is_disputed(&self, key: &ObjectKey) -> bool {
        let mut wanted = self.claimants.iter().filter(|(_, of)| of.contains_key(key));
        wanted.any(|(name, of)| of.len() > 1 || self.machines.contains(name))
    }

    /// Whether objects that make the Service's instances could never be read.
    fn is_unread(&self, key: &ObjectKey) -> bool {
        self.view.unread.iter().any(|(kind, unread)| {
            let never_read = !self.view.objects.contains_key(&(*kind, unread.clone()));
            match kind {
                Kind::Service => unread == key && never_read,
                // What is left of a Service that is gone says nothing of it.
                Kind::EndpointSlice => {
                    never_read && service_of_slice(unread) == *key && self.view.has_service(key)
                }
                _ => false,
            }
        })
    }

    /// A registration is written: it must say what is wanted now.
    pub(super) fn check_register(
        &self,
        registration: &Registration,
        stands: Option<&Registered>,
    ) -> Checked {
        let Some(service) = service_of_id(&self.settings.cluster, &registration.id) else {
            return Err(format!("a registration without a Service is written: {registration:?}"));
        };
        if self.excused.contains(&service) {
            return Ok(());
        }
        let wanted = self.of(&service).unwrap_or_default();
        let Some(wanted) = wanted.registrations.get(&registration.id) else {
            return Err(format!("what nobody wants is written: {registration:?}"));
        };
        // An instance whose new name others have keeps the one that it has.
        let mut named = Registration { service: registration.service.clone(), ..wanted.clone() };
        if self.joins(&service) && *registration.tags == [service.namespace.to_string()] {
            named.tags.clone_from(&registration.tags);
        }
        if named != *registration || !self.is_disputed(&service) && wanted != registration {
            return Err(format!(
                "an older state is written: wanted {wanted:?}, written {registration:?}"
            ));
        }
        let turns_critical = registration.check == Check::Critical
            && stands.is_some_and(|it| it.registration.check != Check::Critical);
        if turns_critical && self.is_unread(&service) {
            return Err(format!("{} turns critical out of ignorance", registration.id));
        }
        Ok(())
    }

    /// A registration is removed: nothing may want it.
    pub(super) fn check_deregister(&self, id: &str, stands: Option<&Registered>) -> Checked {
        let Some(service) = service_of_id(&self.settings.cluster, id) else { return Ok(()) };
        if self.excused.contains(&service) {
            return Ok(());
        }
        if self.is_unread(&service) {
            return Err(format!("{id} is removed though its Service could not be read"));
        }
        // The name under which it stands may be another Service's by now.
        let name = stands.map(|it| lookup_form(&it.registration.service));
        let claimants = name.and_then(|name| self.claimants.get(&*name));
        let is_lost = claimants.is_some_and(|of| of.keys().any(|other| *other != service));
        let wanted = self.of(&service).unwrap_or_default();
        if wanted.keeps(id) && !self.is_disputed(&service) && !is_lost {
            return Err(format!("{id} is removed although it is wanted"));
        }
        Ok(())
    }

    /// A registration is removed that is wanted under another name. While others hold that, it stays under
    /// the one that it has, unless that is wanted, too.
    pub(super) fn check_former_name(
        &self,
        id: &str,
        consul: &Consul,
        names: Option<&ForeignNames>,
    ) -> Checked {
        let service = service_of_id(&self.settings.cluster, id);
        let Some(service) = service.filter(|it| !self.excused.contains(it)) else { return Ok(()) };
        let wanted = self.of(&service).unwrap_or_default();
        let (Some(wanted), Some(stands)) =
            (wanted.registrations.get(id), consul.registrations.get(id))
        else {
            return Ok(());
        };
        let former = lookup_form(&stands.registration.service);
        let name = lookup_form(&wanted.service);
        let are_there = names.is_some_and(|names| names.contains_key(&*name));
        let is_its_own = self.claimants.get(&*former).is_none_or(BTreeMap::is_empty)
            && !self.machines.contains(&*former);
        let is_first = self.first(&name) == Some(&service);
        if former != name && are_there && is_its_own && is_first && !self.joins(&service) {
            return Err(format!("{id} leaves {former} for {name}, which others hold"));
        }
        Ok(())
    }

    /// Whether the Service may join a name that others hold.
    pub(super) fn joins(&self, service: &ObjectKey) -> bool {
        let object = self.view.objects.get(&(Kind::Service, service.clone()));
        matches!(object, Some(SeenObject::Service(_, it)) if it.annotations.contains_key(JOIN))
    }

    /// Who comes first for the name.
    fn first(&self, name: &str) -> Option<&ObjectKey> {
        let claimants = self.claimants.get(name)?.iter();
        claimants.min_by_key(|(service, rank)| (**rank, *service)).map(|(service, _)| service)
    }

    /// A registration is written under a name. `has`: its Service has something there. One that has
    /// nothing gets none while another one comes first.
    pub(super) fn check_taken(&self, service: &ObjectKey, name: &str, has: bool) -> Checked {
        match self.first(name) {
            Some(first) if !has && first != service && !self.excused.contains(first) => {
                Err(format!("{service} takes {name}, for which {first} comes first"))
            }
            _ => Ok(()),
        }
    }

    /// A registration is removed from a name. One that is wanted there stays until a Service that comes
    /// before has the name.
    pub(super) fn check_evicted(
        &self,
        service: &ObjectKey,
        id: &str,
        name: &str,
        has: impl Fn(&ObjectKey) -> bool,
    ) -> Checked {
        let wanted = self.of(service).unwrap_or_default();
        let is_wanted =
            wanted.registrations.get(id).is_some_and(|it| lookup_form(&it.service) == name);
        let claimants = self.claimants.get(name);
        let Some(rank) = claimants.and_then(|of| of.get(service)).filter(|_| is_wanted) else {
            return Ok(());
        };
        if self.excused.contains(service) || self.machines.contains(name) {
            return Ok(());
        }
        let mut claimants = claimants.into_iter().flatten();
        if claimants.any(|(other, its)| (its, other) < (rank, service) && has(other)) {
            return Ok(());
        }
        Err(format!("{service} leaves {name}, which nobody has that comes before"))
    }

    /// Those that want a name for which one comes first that cannot register anything there: they have
    /// it if they had it before.
    pub(super) fn behind_idle(&self, consul: &Consul) -> BTreeSet<ObjectKey> {
        let is_idle = |name: &str, first: &ObjectKey| {
            let is_taken = |it: &Registration| {
                let is_odd = |tag: &String| [REFUSED_TAG, FAILING_TAG].contains(&&**tag);
                lookup_form(&it.service) == name && !it.tags.iter().any(is_odd)
            };
            let wanted = self.of(first).unwrap_or_default();
            consul.nodes_of_others.contains(&first.namespace)
                || !wanted.registrations.values().any(is_taken)
        };
        let names = self.claimants.iter().filter(|(_, of)| of.len() > 1);
        let behind = names.filter_map(|(name, of)| {
            let first = self.first(name)?;
            is_idle(name, first).then(|| of.keys().filter(move |it| *it != first))
        });
        behind.flatten().cloned().collect()
    }

    /// A registration is removed: what takes its place must be there, unless the name that it is to have
    /// cannot be looked up. No write has failed, and nobody else has changed anything that was not read.
    pub(super) fn check_replaced(
        &self,
        id: &str,
        consul: &Consul,
        plan_of: impl Fn(&ObjectKey) -> Option<Plan>,
    ) -> Checked {
        let Some(service) = service_of_id(&self.settings.cluster, id) else { return Ok(()) };
        if !self.is_certain(&service) || self.is_unread(&service) {
            return Ok(());
        }
        let wanted = self.of(&service).unwrap_or_default();
        let mut missing =
            wanted.registrations.keys().filter(|it| !consul.registrations.contains_key(*it));
        let waits = || plan_of(&service).unwrap_or_default().waits;
        let is_unnamed =
            |it: &str| waits().get(&RecordKey::Registration(it.into())) == Some(&Wait::NameUnknown);
        match missing.find(|it| !is_unnamed(it)) {
            Some(missing) => Err(format!("{id} is removed before {missing} is there")),
            None => Ok(()),
        }
    }

    /// The last registration under a name is removed, or gets another one: whoever is to have the
    /// name, and can take it now, must have done so. `sent`: what is under way, and what goes before it.
    pub(super) fn check_name_left(
        &self,
        id: &str,
        consul: &Consul,
        sent: &[&Registration],
        plan_of: impl Fn(&ObjectKey) -> Option<Plan>,
    ) -> Checked {
        let Some(left) = consul.registrations.get(id) else { return Ok(()) };
        let name = lookup_form(&left.registration.service);
        let has_name = |it: &Registration| &*it.id != id && lookup_form(&it.service) == name;
        let standing = consul.registrations.values().map(|it| &it.registration);
        if self.machines.contains(&*name) || standing.chain(sent.iter().copied()).any(has_name) {
            return Ok(());
        }
        let claimants = self.claimants.get(&*name).into_iter().flatten();
        let holder = claimants.min_by_key(|(service, rank)| (**rank, *service));
        let holder = holder.map(|(service, _)| service).filter(|it| !self.excused.contains(*it));
        let Some(holder) = holder else { return Ok(()) };
        let plan = plan_of(holder).unwrap_or_default();
        let mut writes = plan.actions.into_iter().flat_map(|planned| match planned {
            Planned::Write(writes) => writes,
            Planned::ReadPtr(_) => Vec::new(),
        });
        let takes_it = writes.any(|write| registered_by(&write).is_some_and(has_name));
        // One that stays, but for its name, keeps that until it is known whether it can be taken.
        let service = service_of_id(&self.settings.cluster, id);
        let stays = || service.and_then(|it| self.of(&it)).is_some_and(|wanted| wanted.keeps(id));
        let is_unknown = plan.waits.values().any(|wait| *wait == Wait::NameUnknown);
        if takes_it || is_unknown && stays() {
            return Err(format!("{name} is left before {holder} has taken it"));
        }
        Ok(())
    }

    fn claimants_of_ptr(&self, key: &str) -> impl Iterator<Item = &ObjectKey> {
        services(self.view)
            .map(|(service, _)| service)
            .filter(move |it| self.of(it).is_some_and(|wanted| wanted.reverse.contains_key(key)))
    }

    /// A PTR record is written for a Service: it must be the one that it wants.
    pub(super) fn check_put_ptr(&self, record: &PtrRecord, service: &ObjectKey) -> Checked {
        if self.excused.contains(service) {
            return Ok(());
        }
        let wanted = self.of(service).unwrap_or_default();
        let Some(wanted) = wanted.reverse.get(&record.key) else {
            return Err(format!("{service} claims no PTR record, and it is written: {record:?}"));
        };
        let is_named = record.value.split('.').next() == Some(&*wanted.service);
        // What cannot be read may have the first of its names.
        if !is_named && !self.is_disputed(service) && self.view.unread.is_empty() {
            return Err(format!("a PTR record leads to another name: {record:?}, {wanted:?}"));
        }
        Ok(())
    }

    /// A PTR record is removed: nothing may claim it, and its instance may not stay for want of
    /// knowledge.
    ///
    /// `is_prompt`: nothing has failed, so that whoever claims it has been planned by now.
    pub(super) fn check_delete_ptr(
        &self,
        key: &str,
        writer: &ObjectKey,
        consul: &Consul,
        is_prompt: bool,
    ) -> Checked {
        let of_address = consul.registrations.values().map(|it| &it.registration);
        let mut of_address = of_address.filter(|it| key.rsplit('/').next() == Some(&*it.address));
        let is_unknown = |service: &ObjectKey| {
            let awaits_nodes = self.of(service).is_some_and(|it| it.is_unknown());
            // One that another Service gives up is not compared with what may be left there.
            writer.is_orphaned()
                && !self.excused.contains(service)
                && (awaits_nodes || self.is_unread(service))
        };
        let of_unknown = of_address.find(|it| {
            service_of_id(&self.settings.cluster, &it.id).is_some_and(|it| is_unknown(&it))
        });
        if let Some(instance) = of_unknown {
            return Err(format!("the PTR record {key} is removed, and {} stays", instance.id));
        }
        let mut claimants = self.claimants_of_ptr(key);
        let undisputed = claimants.find(|it| !self.is_disputed(it) && !self.excused.contains(it));
        match undisputed {
            Some(service) if is_prompt => {
                Err(format!("the PTR record {key} is removed, {service} claims it"))
            }
            _ => Ok(()),
        }
    }

    /// In the catalog no group of a request takes an instance and its PTR record apart. `addresses`: with
    /// what is under way.
    pub(super) fn check_groups(
        &self,
        groups: &[Group],
        mut addresses: Addresses,
        consul: &Consul,
        are_named: bool,
        plan_of: impl Fn(&ObjectKey) -> Option<Plan>,
    ) -> Checked {
        for group in groups {
            let before = addresses.clone();
            for ptr in addresses.apply(&group.writes) {
                let (before, after) = (before.at(&ptr), addresses.at(&ptr));
                let record = RecordKey::Ptr(ptr.clone());
                let is_contested = |service: &ObjectKey| {
                    let plan = plan_of(service).unwrap_or_default();
                    matches!(plan.waits.get(&record), Some(Wait::Contested { .. }))
                };
                self.check_together(&ptr, before, after, consul, are_named, is_contested)?;
            }
        }
        Ok(())
    }

    /// In the catalog a transaction leaves no instance without its PTR record that had both or
    /// neither, and no record without its instance. `are_named`: the names that others hold are known,
    /// for which a record waits, and no instance of another name.
    pub(super) fn check_together(
        &self,
        ptr: &str,
        before: Together,
        after: Together,
        consul: &Consul,
        are_named: bool,
        is_contested: impl Fn(&ObjectKey) -> bool,
    ) -> Checked {
        let of_others = consul.kv.get(ptr).is_some_and(|it| consul.owner(it) != PtrOwner::Ours);
        if before.is_apart()
            || !after.is_apart()
            || of_others
            || self.may_be_of_unknown(ptr, consul)
        {
            return Ok(());
        }
        let claimants: Vec<&ObjectKey> = self.claimants_of_ptr(ptr).collect();
        match *claimants {
            [] if after.has_ptr => Err(format!("the PTR record {ptr} stands without an instance")),
            // Who has it may wait for a name, or be told wrongly; of a fight no instance waits for the end.
            [service]
                if after.has_instance
                    && are_named
                    && self.is_certain(service)
                    && !is_contested(service) =>
            {
                Err(format!("an instance of {service} stands without the PTR record {ptr}"))
            }
            _ => Ok(()),
        }
    }

    fn is_certain(&self, service: &ObjectKey) -> bool {
        !self.is_disputed(service) && !self.excused.contains(service)
    }

    /// Whether something at this address may be of what is not known, or another cluster's.
    fn may_be_of_unknown(&self, ptr: &str, consul: &Consul) -> bool {
        let mut of_view = services(self.view);
        !self.view.unread.is_empty()
            || of_view.any(|(key, _)| self.of(key).is_some_and(|it| it.is_unknown()))
            || consul.claimed_by_others.contains(ptr)
    }

    /// The Services that exist and want nothing, if most of what is registered is theirs.
    pub(super) fn deselected(&self, consul: &Consul) -> BTreeSet<ObjectKey> {
        let is_deselected = |key: &ObjectKey| {
            let object = self.view.objects.get(&(Kind::Service, key.clone()));
            let Some(SeenObject::Service(_, service)) = object else { return false };
            wanted(self.settings, key, service).ports.is_empty()
        };
        let registered = consul.registrations.keys();
        let services = registered.filter_map(|id| service_of_id(&self.settings.cluster, id));
        let lost: Vec<ObjectKey> = services.filter(is_deselected).collect();
        let total = consul.registrations.len();
        let is_most = total >= MANY && lost.len() * 10 > total * 6;
        if is_most { lost.into_iter().collect() } else { BTreeSet::new() }
    }

    /// Whether what a list of `kind`, maybe an empty one, hides is so much that it may not be believed.
    pub(super) fn loses_most(
        settings: &Settings,
        consul: &Consul,
        term: &Term,
        (kind, is_empty): (Kind, bool),
        hidden: &[SeenObject],
    ) -> bool {
        let services: BTreeSet<ObjectKey> = hidden.iter().filter_map(service_of).collect();
        // What is under way is not known to be there.
        let is_known = |registered: &&Registered| {
            let record = RecordKey::Registration(registered.registration.id.clone());
            !term.in_flight.contains_key(&record)
        };
        let total = consul.registrations.values().filter(is_known).count();
        let lost = consul.registrations.values().filter(is_known).filter(|it| {
            let service = service_of_id(&settings.cluster, &it.registration.id);
            let is_up = kind == Kind::Service || it.registration.check != Check::Critical;
            is_up && service.is_some_and(|service| services.contains(&service))
        });
        let lost = lost.count();
        is_empty && lost > 0 && lost == total || total >= MANY && lost * 10 > total * 7
    }
}

/// What there is at one address, once all that is under way is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Together {
    has_instance: bool,
    has_ptr: bool,
}

/// Where there are instances and PTR records of ours, once all that is under way is applied.
#[derive(Clone)]
pub(super) struct Addresses {
    /// The PTR keys of the addresses of registrations, by ID.
    instances: BTreeMap<Box<str>, String>,
    ptr: BTreeSet<Box<str>>,
}

// === impl Together ===

impl Together {
    fn is_apart(self) -> bool {
        self.has_instance != self.has_ptr
    }
}

// === impl Addresses ===

impl Addresses {
    pub(super) fn of(consul: &Consul) -> Self {
        let registrations = consul.registrations.values().map(|it| &it.registration);
        let instances = registrations.filter_map(|it| Some((it.id.clone(), ptr_key_of(it)?)));
        let ptr = consul.kv.iter().filter(|(_, entry)| consul.owner(entry) == PtrOwner::Ours);
        Self { instances: instances.collect(), ptr: ptr.map(|(key, _)| key.clone()).collect() }
    }

    pub(super) fn at(&self, ptr: &str) -> Together {
        let has_instance = self.instances.values().any(|of| of == ptr);
        Together { has_instance, has_ptr: self.ptr.contains(ptr) }
    }

    /// Applies one transaction; gives the PTR keys of the addresses that it is about.
    pub(super) fn apply(&mut self, group: &[Write]) -> BTreeSet<Box<str>> {
        let mut concerned: BTreeSet<Box<str>> = BTreeSet::new();
        for write in group {
            match write {
                Write::Register(it) | Write::Replace(it) => {
                    if let Some(ptr) = ptr_key_of(it) {
                        concerned.insert((&*ptr).into());
                        self.instances.insert(it.id.clone(), ptr);
                    }
                }
                Write::Deregister { id, .. } => {
                    concerned.extend(self.instances.remove(id).map(|ptr| (&*ptr).into()));
                }
                Write::PutPtr { record, .. } => {
                    concerned.insert(record.key.clone());
                    self.ptr.insert(record.key.clone());
                }
                Write::DeletePtr { key, .. } => {
                    concerned.insert(key.clone());
                    self.ptr.remove(key);
                }
            }
        }
        concerned
    }
}

fn ptr_key_of(registration: &Registration) -> Option<String> {
    registration.address.parse().ok().map(ptr_key)
}

fn services(view: &View) -> impl Iterator<Item = (&ObjectKey, &Service)> {
    view.objects.values().filter_map(|object| match object {
        SeenObject::Service(key, service) => Some((key, service)),
        _ => None,
    })
}

// === impl Term ===

impl Term {
    /// A request for this record is sent.
    pub(super) fn begin(&mut self, record: &RecordKey, flight: FlightId) -> Checked {
        match self.in_flight.insert(record.clone(), flight) {
            Some(_) => Err(format!("{record}: a second request while one is under way")),
            None => Ok(()),
        }
    }

    pub(super) fn end(&mut self, flight: FlightId) {
        self.in_flight.retain(|_, of| *of != flight);
    }

    /// A write to the node of this namespace is sent.
    pub(super) fn check_node(&self, namespace: &str) -> Checked {
        if self.removing.contains(namespace) {
            return Err(format!("a write to namespace {namespace} while its node is removed"));
        }
        Ok(())
    }

    /// The node of this namespace is to be removed.
    pub(super) fn check_node_removal(
        &self,
        namespace: &str,
        settings: &Settings,
        now: Moment,
    ) -> Checked {
        let on_it = |record: &RecordKey| match record {
            RecordKey::Registration(id) => service_of_id(&settings.cluster, id)
                .is_some_and(|service| &*service.namespace == namespace),
            RecordKey::Ptr(_) | RecordKey::NamespaceNode(_) => false,
        };
        if self.removing.contains(namespace) {
            return Err(format!("the node of {namespace} is removed while it is being removed"));
        }
        if let Some(record) = self.in_flight.keys().find(|record| on_it(record)) {
            return Err(format!("the node of {namespace} is removed while {record} is written"));
        }
        if self.uncertain.iter().any(|(until, of)| &**of == namespace && *until > now) {
            return Err(format!("the node of {namespace} is removed while a write is uncertain"));
        }
        Ok(())
    }

    /// A reading begins: what got no answer must not have waited longer for it than it had to.
    pub(super) fn begin_reading(&mut self, now: Moment) -> Checked {
        let due = self.unanswered.map(|until| until.max(self.reading_ended) + READS_WITHIN);
        if due.is_some_and(|due| now > due) {
            return Err("what got no answer was not looked at as soon as it was certain".to_owned());
        }
        self.unanswered = self.unanswered.filter(|until| *until > now);
        Ok(())
    }

    /// A write that changes nothing, of a record that this term wrote last.
    pub(super) fn check_silent(&self, write: &Write, consul: &Consul) -> Checked {
        let record = write.key();
        let Some((last, version, token)) = self.certain.get(&record) else { return Ok(()) };
        let same = match (last, write) {
            (Write::Register(a) | Write::Replace(a), Write::Register(b) | Write::Replace(b)) => {
                // One that takes no check away may have left one of a former process.
                let stands = consul.registrations.get(&b.id);
                let is_there = stands.is_some_and(|it| it.registration == *b);
                a == b && is_there && (consul.is_catalog || *token == consul.token)
            }
            (Write::PutPtr { record: a, .. }, Write::PutPtr { record: b, .. }) => a == b,
            (Write::Deregister { .. }, Write::Deregister { .. })
            | (Write::DeletePtr { .. }, Write::DeletePtr { .. }) => true,
            _ => false,
        };
        if same && *version == consul.version(&record) {
            return Err(format!("{record} is written although it is as it should be: {write:?}"));
        }
        Ok(())
    }

    /// A name under which the Service has nothing is only taken once it is known to be free.
    /// `joins`: beside others, too.
    pub(super) fn check_name(&self, service: &ObjectKey, name: &str, joins: bool) -> Checked {
        let form = lookup_form(name);
        if self.held.contains(&(service.clone(), (&*form).into())) {
            return Ok(());
        }
        let is_held = || self.held.iter().any(|(_, held)| **held == *form);
        match self.names.as_ref().map(|names| names.get(&*form)) {
            None => Err(format!("{name} is taken before it is known who has it")),
            // Another replica's.
            Some(Some(holders)) if !joins && (!holders.ours || is_held()) => {
                Err(format!("{name} is joined, which others hold"))
            }
            Some(_) => Ok(()),
        }
    }
}
