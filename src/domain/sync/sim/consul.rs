//! A Consul: what stands in it, how it takes writes, and who holds the lock.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::consul::names::{ForeignNames, Found, Holder, Holders, lookup_form};
use crate::domain::consul::record::{
    Answer, Check, NamespaceNodeAnswer, Observation, ObservedPtr, ObservedRegistration, PtrOwner,
    PtrRecord, RecordKey, Registration, Write,
};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::ClusterName;
use crate::domain::kube::names::ObjectKey;
use crate::domain::sync::sim::kubernetes::MACHINES;

/// The tag for which Consul refuses a registration.
pub(super) const REFUSED_TAG: &str = "t3";
/// The tag of a registration that fails each time although others do not.
pub(super) const FAILING_TAG: &str = "t4";

/// A Consul with one cluster's records.
#[derive(Clone, Debug)]
pub(super) struct Consul {
    cluster: ClusterName,
    pub(super) is_catalog: bool,
    pub(super) registrations: BTreeMap<Box<str>, Registered>,
    pub(super) kv: BTreeMap<Box<str>, ObservedPtr>,
    /// Namespaces that have a node of ours.
    pub(super) nodes: BTreeSet<Box<str>>,
    /// Those on whose node others have a service.
    pub(super) others_on: BTreeSet<Box<str>>,
    /// Those whose node is somebody else's.
    pub(super) nodes_of_others: BTreeSet<Box<str>>,
    /// PTR keys that the bridge of another cluster claims, too.
    pub(super) claimed_by_others: BTreeSet<Box<str>>,
    /// Names under which machines are registered, and since which index.
    machines: BTreeMap<Box<str>, u64>,
    /// Those of them under which nothing of ours was then, nor has been: should something of ours come at
    /// the same moment it is the second, and leaves.
    pub(super) first_theirs: BTreeSet<Box<str>>,
    /// Whether something of ours was removed: what is written again is no new claim to a name.
    pub(super) has_lost: bool,
    /// Whether the marker is there: the sentinel, the base node.
    pub(super) marker: bool,
    /// The token that is in use.
    pub(super) token: u32,
    /// The session that holds the lock.
    pub(super) lock: Option<u32>,
    sessions: u32,
    index: u64,
    /// How often each record was changed.
    versions: BTreeMap<RecordKey, u64>,
    /// How often any PTR record was.
    pub(super) ptr_changes: u64,
    /// PTR records of others that a write of ours has changed: what must never be.
    pub(super) overwritten: Option<String>,
}

/// A registration, and the token with which it was written.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Registered {
    pub(super) registration: Registration,
    pub(super) token: u32,
    /// The index at which it was registered.
    created: u64,
    /// Whether somebody else has a check on it: maintenance mode, say.
    pub(super) has_check_of_others: bool,
}

// === impl Consul ===

impl Consul {
    pub(super) fn new(cluster: ClusterName, is_catalog: bool) -> Self {
        Self {
            cluster,
            is_catalog,
            registrations: BTreeMap::new(),
            kv: BTreeMap::new(),
            nodes: BTreeSet::new(),
            others_on: BTreeSet::new(),
            nodes_of_others: BTreeSet::new(),
            claimed_by_others: BTreeSet::new(),
            machines: BTreeMap::new(),
            first_theirs: BTreeSet::new(),
            has_lost: false,
            marker: true,
            token: 0,
            lock: None,
            sessions: 0,
            index: 0,
            versions: BTreeMap::new(),
            ptr_changes: 0,
            overwritten: None,
        }
    }

    /// One in which only others have anything: what they have in `consul`.
    pub(super) fn without_ours(consul: &Self) -> Self {
        let mut new = Self::new(consul.cluster.clone(), consul.is_catalog);
        let of_others = consul.kv.iter().filter(|(_, entry)| consul.owner(entry) != PtrOwner::Ours);
        new.kv = of_others.map(|(key, entry)| (key.clone(), entry.clone())).collect();
        new.index = consul.index;
        new.others_on.clone_from(&consul.others_on);
        let are_theirs =
            |node: &str| consul.others_on.contains(node) || consul.nodes_of_others.contains(node);
        new.nodes = consul.nodes.iter().filter(|node| are_theirs(node)).cloned().collect();
        new.nodes_of_others.clone_from(&consul.nodes_of_others);
        new.claimed_by_others.clone_from(&consul.claimed_by_others);
        new.machines.clone_from(&consul.machines);
        new.token = consul.token;
        new
    }

    pub(super) fn owner(&self, entry: &ObservedPtr) -> PtrOwner {
        PtrOwner::of(entry.flags, &self.cluster)
    }

    /// How often the record was changed.
    pub(super) fn version(&self, record: &RecordKey) -> u64 {
        self.versions.get(record).copied().unwrap_or(0)
    }

    pub(super) fn new_session(&mut self) -> u32 {
        self.sessions += 1;
        self.sessions
    }

    /// The session is over, and with it its hold of the lock.
    pub(super) fn end_session(&mut self, session: u32) {
        if self.lock == Some(session) {
            self.lock = None;
        }
    }

    /// Whether a write with this session gets in; one without asks for nothing.
    pub(super) fn admits(&self, session: Option<u32>) -> bool {
        session.is_none() || session == self.lock
    }

    /// Makes these changes. In the catalog a group is applied whole or not at all; to an agent its
    /// writes go one after the other, up to the first that fails.
    pub(super) fn write(&mut self, group: &[Write], token: u32) -> Vec<(RecordKey, Answer)> {
        let at_fault = group.iter().enumerate().find_map(|(place, write)| {
            let fault = self.fault(write)?;
            Some((place, fault))
        });
        let applied = match &at_fault {
            None => group.len(),
            Some(_) if self.is_catalog => 0,
            Some((place, _)) => *place,
        };
        let mut answers = Vec::new();
        for (place, write) in group.iter().enumerate() {
            let answer = match &at_fault {
                _ if place < applied => Answer::Applied { index: self.apply(write, token) },
                Some((fault, answer)) if *fault == place => answer.clone(),
                _ => Answer::NotSent,
            };
            answers.push((write.key(), answer));
        }
        answers
    }

    /// Why the write is not applied.
    fn fault(&self, write: &Write) -> Option<Answer> {
        let index = |key: &str| self.kv.get(key).map_or(0, |entry| entry.index);
        match write {
            Write::Register(registration) | Write::Replace(registration) => {
                if self.is_catalog && self.nodes_of_others.contains(&registration.namespace) {
                    return Some(Answer::Foreign("node is somebody else's".to_owned()));
                }
                let has = |odd: &str| registration.tags.iter().any(|tag| tag == odd);
                let is_refused = has(REFUSED_TAG).then(|| Answer::Refused("odd tag".to_owned()));
                is_refused.or(has(FAILING_TAG).then(|| Answer::Failed("odd tag".to_owned())))
            }
            Write::Deregister { .. } => None,
            Write::PutPtr { record, cas } => {
                (index(&record.key) != *cas).then_some(Answer::Conflict)
            }
            Write::DeletePtr { key, cas } => (index(key) != *cas).then_some(Answer::Conflict),
        }
    }

    fn apply(&mut self, write: &Write, token: u32) -> u64 {
        self.changed(write.key());
        let index = self.index;
        match write {
            Write::Register(registration) | Write::Replace(registration) => {
                if self.is_catalog {
                    self.nodes.insert(registration.namespace.clone());
                }
                let before = self.registrations.get(&registration.id);
                let mut registration = registration.clone();
                let had_check = before.map_or(Check::None, |it| it.registration.check);
                // Only a write that says so takes a check of ours away, and none one of others.
                if registration.check == Check::None && matches!(write, Write::Register(_)) {
                    registration.check = had_check;
                }
                let has_check_of_others = before.is_some_and(|it| it.has_check_of_others);
                let created = before.map_or(index, |it| it.created);
                let name = lookup_form(&registration.service);
                if self.machines.get(&*name).is_some_and(|theirs| created < *theirs) {
                    // It was there before, under another name, and counts as the older one.
                    self.first_theirs.remove(&*name);
                }
                let registered = Registered { registration, token, created, has_check_of_others };
                self.registrations.insert(registered.registration.id.clone(), registered);
            }
            Write::Deregister { id, .. } => drop(self.registrations.remove(id)),
            Write::PutPtr { record, .. } => {
                self.mind_others(&record.key);
                let flags = PtrOwner::flags(&self.cluster);
                let entry = ObservedPtr { record: record.clone(), flags, index };
                self.kv.insert(record.key.clone(), entry);
            }
            Write::DeletePtr { key, .. } => {
                self.mind_others(key);
                self.kv.remove(key);
                self.others_take(key);
            }
        }
        index
    }

    /// The bridge of another cluster writes the record where it claims the key and there is none.
    pub(super) fn others_take(&mut self, key: &str) {
        if self.claimed_by_others.contains(key) && !self.kv.contains_key(key) {
            let flags = PtrOwner::flags(&"other".parse().expect("it is a label"));
            self.put_ptr(key, "web.service.dc1.consul", flags);
        }
    }

    /// The bridge of another cluster claims the key no longer.
    pub(super) fn others_leave(&mut self, key: &str) {
        let entry = self.kv.get(key);
        if entry.is_some_and(|entry| self.owner(entry) == PtrOwner::OtherCluster) {
            self.remove_ptr(key);
        }
    }

    /// A write of ours changes this key.
    fn mind_others(&mut self, key: &str) {
        let entry = self.kv.get(key);
        if let Some(entry) = entry.filter(|entry| self.owner(entry) != PtrOwner::Ours) {
            self.overwritten = Some(format!("{entry:?}"));
        }
    }

    /// Removes the node of a namespace unless something stands on it.
    pub(super) fn look_at_node(&self, namespace: &str) -> Option<NamespaceNodeAnswer> {
        if self.others_on.contains(namespace) || self.nodes_of_others.contains(namespace) {
            let node = format!("k8s-kubernetes.{namespace}").into();
            return Some(NamespaceNodeAnswer::Foreign { node, ids: vec!["db".into()] });
        }
        let is_used = !self.ids_on(namespace).is_empty();
        is_used.then_some(NamespaceNodeAnswer::InUse)
    }

    /// The node goes, with all that is on it.
    pub(super) fn remove_node(&mut self, namespace: &str) {
        self.nodes.remove(namespace);
        self.others_on.remove(namespace);
        for id in self.ids_on(namespace) {
            self.deregister(&id);
        }
    }

    pub(super) fn has_instances_of(&self, service: &ObjectKey) -> bool {
        let mut owners =
            self.registrations.keys().filter_map(|id| service_of_id(&self.cluster, id));
        owners.any(|owner| owner == *service)
    }

    fn ids_on(&self, namespace: &str) -> Vec<Box<str>> {
        let of_namespace = self
            .registrations
            .values()
            .filter(|registered| &*registered.registration.namespace == namespace);
        of_namespace.map(|registered| registered.registration.id.clone()).collect()
    }

    pub(super) fn deregister(&mut self, id: &str) {
        if self.registrations.remove(id).is_some() {
            self.changed(RecordKey::Registration(id.into()));
        }
    }

    /// Somebody else changes this registration.
    pub(super) fn tamper(&mut self, id: &str) {
        if let Some(registered) = self.registrations.get_mut(id) {
            registered.registration.port += 1;
            self.changed(RecordKey::Registration(id.into()));
        }
    }

    /// A registration like `model`, of a Service that there is not.
    pub(super) fn add_stray(&mut self, model: &str) {
        let Some(registered) = self.registrations.get(model).cloned() else { return };
        let Some(service) = service_of_id(&self.cluster, model) else { return };
        let id: Box<str> =
            format!("{}_{}_gone_http_10.9.9.9", self.cluster, service.namespace).into();
        let registration = Registration { id: id.clone(), ..registered.registration };
        let stray = Registered { registration, has_check_of_others: false, ..registered };
        self.registrations.insert(id.clone(), stray);
        self.changed(RecordKey::Registration(id));
    }

    pub(super) fn put_ptr(&mut self, key: &str, value: &str, flags: u64) {
        self.changed(RecordKey::Ptr(key.into()));
        let record = PtrRecord { key: key.into(), value: value.into() };
        self.kv.insert(key.into(), ObservedPtr { record, flags, index: self.index });
    }

    pub(super) fn remove_ptr(&mut self, key: &str) {
        if self.kv.remove(key).is_some() {
            self.changed(RecordKey::Ptr(key.into()));
        }
    }

    /// All is gone, as from an agent that starts without its data, or from servers.
    pub(super) fn lose_all(&mut self) {
        let ids: Vec<Box<str>> = self.registrations.keys().cloned().collect();
        for id in &ids {
            self.deregister(id);
        }
        self.marker = false;
        if self.is_catalog {
            let keys: Vec<Box<str>> = self.kv.keys().cloned().collect();
            for key in &keys {
                self.remove_ptr(key);
            }
            self.nodes.clear();
            self.others_on.clear();
            self.nodes_of_others.clear();
            self.machines.clear();
            self.lock = None;
        }
    }

    fn changed(&mut self, record: RecordKey) {
        self.index += 1;
        self.ptr_changes += u64::from(matches!(record, RecordKey::Ptr(_)));
        *self.versions.entry(record).or_default() += 1;
    }

    /// The namespaces whose nodes carry our mark.
    pub(super) fn marked_nodes(&self) -> Vec<Box<str>> {
        self.nodes.iter().filter(|it| !self.nodes_of_others.contains(*it)).cloned().collect()
    }

    /// Our registrations, those of one namespace's node or all.
    pub(super) fn show_registrations(&self, namespace: Option<&str>) -> Vec<Observation> {
        let registrations = self.registrations.values().map(|it| &it.registration);
        registrations
            .filter(|it| namespace.is_none_or(|namespace| *it.namespace == *namespace))
            .map(|it| ObservedRegistration { registration: it.clone(), index: 0 })
            .map(Observation::Registration)
            .collect()
    }

    pub(super) fn show_kv(&self) -> Vec<Observation> {
        self.kv.values().cloned().map(Observation::Ptr).collect()
    }

    /// Machines come under this name, or go.
    pub(super) fn toggle_machines(&mut self, name: &str) {
        self.index += 1;
        self.first_theirs.remove(name);
        if self.machines.remove(name).is_none() {
            if self.look_up_ours(name).next().is_none() && !self.has_lost {
                self.first_theirs.insert(name.into());
            }
            self.machines.insert(name.into(), self.index);
        }
    }

    /// What a look-up of the name shows of others.
    pub(super) fn look_up(&self, name: &str) -> Option<Found> {
        let holders = self.foreign_names().remove(name)?;
        let first = self.look_up_ours(name).map(|it| it.created).min();
        let came_first = first.is_none_or(|first| self.machines[name] < first);
        Some(Found { holders, came_first })
    }

    /// The names that others hold.
    pub(super) fn foreign_names(&self) -> ForeignNames {
        let of = |name: &str| {
            let ours = self.look_up_ours(name).next().is_some();
            // Those under a Service's own name are another cluster's.
            let other_cluster = || Holder::Kubernetes { cluster: Some("other".into()) };
            let others = if name == MACHINES { Holder::Other } else { other_cluster() };
            (name.into(), Holders { others, ours })
        };
        self.machines.keys().map(|name| of(name)).collect()
    }

    /// What is there of ours under the name.
    fn look_up_ours(&self, name: &str) -> impl Iterator<Item = &Registered> {
        let ours = self.registrations.values();
        ours.filter(move |it| *lookup_form(&it.registration.service) == *name)
    }
}

/// What the write registers.
pub(super) fn registered_by(write: &Write) -> Option<&Registration> {
    match write {
        Write::Register(registration) | Write::Replace(registration) => Some(registration),
        _ => None,
    }
}
