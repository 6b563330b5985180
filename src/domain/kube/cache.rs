//! What is known of the Kubernetes cluster.
//!
//! A list is merged into what is there as it comes; what it did not show is reported once the
//! list is complete, and removed only by [`ClusterCache::remove`]: absence is evidence only then
//! (invariant 1).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{EndpointSlice, Kind, Node, SeenObject, Service};
use crate::domain::kube::packed::PackedSlice;

/// Services and their EndpointSlices, and the nodes where they are asked for.
#[derive(Debug, Default)]
pub struct ClusterCache {
    /// Boxed: a node of the tree has room for eleven, and half of that stays empty.
    services: BTreeMap<ObjectKey, Box<Listed<Service>>>,
    /// Slices by their Service (which may not exist, or not yet), sorted by their own keys. A
    /// list: most Services have one slice, for which the node of a B-tree has ten times the size.
    slices: HashMap<ObjectKey, Vec<NamedSlice>>,
    /// The Service of each slice.
    service_of: HashMap<ObjectKey, ObjectKey>,
    nodes: BTreeMap<Box<str>, Listed<Node>>,
    /// The Services that use node ports: a node that changes concerns them and no others.
    node_users: BTreeSet<ObjectKey>,
    /// Objects that could not be read, and why.
    undecodable: BTreeMap<(Kind, ObjectKey), (u32, String)>,
    lists: BTreeMap<Kind, ListState>,
}

/// An object, and the number of the list that showed it last.
#[derive(Debug)]
struct Listed<T> {
    object: T,
    list: u32,
}

type NamedSlice = (ObjectKey, Listed<PackedSlice>);

#[derive(Debug, Default)]
struct ListState {
    /// Number of the list that is under way or was the last.
    current: u32,
    /// Whether one was ever complete.
    complete: bool,
}

/// The kinds that are always watched, and have to be listed before anything is decided.
pub const WATCHED: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];

// === impl ClusterCache ===

impl ClusterCache {
    /// Whether every kind that is always watched has been listed completely.
    pub fn is_complete(&self) -> bool {
        WATCHED.iter().all(|kind| self.is_listed(*kind))
    }

    /// Whether this kind has been listed completely.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.lists.get(&kind).is_some_and(|list| list.complete)
    }

    /// The kinds of which a complete list is evidence of absence: those that are always watched,
    /// and nodes once they were listed.
    pub fn evidence(&self) -> impl Iterator<Item = Kind> {
        WATCHED.into_iter().chain(self.is_listed(Kind::Node).then_some(Kind::Node))
    }

    /// A list of this kind begins.
    pub fn list_started(&mut self, kind: Kind) {
        self.lists.entry(kind).or_default().current += 1;
    }

    /// The list is complete: returns the objects of this kind that it did not show.
    pub fn list_completed(&mut self, kind: Kind) -> Vec<ObjectKey> {
        let list = self.lists.entry(kind).or_default();
        list.complete = true;
        let current = list.current;
        let unread = self.undecodable.iter();
        let mut missing: BTreeSet<ObjectKey> = unread
            .filter(|((of, _), (shown, _))| *of == kind && *shown != current)
            .map(|((_, key), _)| key.clone())
            .collect();
        match kind {
            Kind::Service => missing.extend(
                self.services
                    .iter()
                    .filter(|(_, service)| service.list != current)
                    .map(|(key, _)| key.clone()),
            ),
            Kind::EndpointSlice => missing.extend(
                self.slices
                    .values()
                    .flatten()
                    .filter(|(_, slice)| slice.list != current)
                    .map(|(key, _)| key.clone()),
            ),
            Kind::Namespace => {}
            Kind::Node => missing.extend(
                self.nodes
                    .iter()
                    .filter(|(_, node)| node.list != current)
                    .map(|(name, _)| ObjectKey::new("", name.clone())),
            ),
        }
        missing.into_iter().collect()
    }

    /// Takes an object as it is now. Returns the Services whose registrations may change by it.
    pub fn seen(&mut self, seen: SeenObject) -> BTreeSet<ObjectKey> {
        match seen {
            SeenObject::Service(key, service) => {
                self.undecodable.remove(&(Kind::Service, key.clone()));
                let list = self.current(Kind::Service);
                let key = self.shared(key);
                let service = Box::new(Listed { object: service, list });
                let before = self.services.insert(key.clone(), service);
                let changed =
                    before.is_none_or(|before| before.object != self.services[&key].object);
                changed.then_some(key).into_iter().collect()
            }
            SeenObject::EndpointSlice(key, slice) => self.slice_seen(key, &slice),
            SeenObject::Node(key, node) => {
                let was_unread = self.undecodable.remove(&(Kind::Node, key.clone())).is_some();
                let list = self.current(Kind::Node);
                let before = self.nodes.get(&key.name).map(|listed| &listed.object);
                let changed = was_unread || before != Some(&node);
                self.nodes.insert(key.name.clone(), Listed { object: node, list });
                // Before the list is complete nothing follows from any of them.
                let matters = changed && self.is_listed(Kind::Node);
                if matters { self.node_users.clone() } else { BTreeSet::new() }
            }
            SeenObject::Undecodable(kind, key, reason) => {
                let list = self.current(kind);
                self.undecodable.insert((kind, key.clone()), (list, reason));
                self.touch(kind, &key, list);
                self.services_concerned(kind, &key)
            }
        }
    }

    fn slice_seen(&mut self, key: ObjectKey, slice: &EndpointSlice) -> BTreeSet<ObjectKey> {
        let mut changed = BTreeSet::new();
        self.undecodable.remove(&(Kind::EndpointSlice, key.clone()));
        let service = ObjectKey::new(key.namespace.clone(), &*slice.service);
        let service = self.shared(service);
        if self.service_of.get(&key).is_some_and(|before| *before != service) {
            changed.extend(self.remove(Kind::EndpointSlice, &key));
        }
        let list = self.current(Kind::EndpointSlice);
        let slice = Listed { object: PackedSlice::new(slice), list };
        let slices = self.slices.entry(service.clone()).or_default();
        let same = match place(slices, &key) {
            Ok(place) => {
                std::mem::replace(&mut slices[place].1, slice).object == slices[place].1.object
            }
            Err(place) => {
                self.service_of.insert(key.clone(), service.clone());
                slices.reserve_exact(1);
                slices.insert(place, (key, slice));
                false
            }
        };
        if !same {
            changed.insert(service);
        }
        changed
    }

    /// Forgets an object. Returns the Services whose registrations may change by it.
    pub fn remove(&mut self, kind: Kind, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let services = self.services_concerned(kind, key);
        self.undecodable.remove(&(kind, key.clone()));
        match kind {
            Kind::Service => {
                self.services.remove(key);
            }
            Kind::EndpointSlice => self.forget_slice(key),
            Kind::Node => {
                self.nodes.remove(&*key.name);
            }
            Kind::Namespace => {}
        }
        services
    }

    fn forget_slice(&mut self, key: &ObjectKey) {
        let Some(service) = self.service_of.remove(key) else { return };
        let Some(slices) = self.slices.get_mut(&service) else { return };
        if let Ok(place) = place(slices, key) {
            slices.remove(place);
        }
        if slices.is_empty() {
            self.slices.remove(&service);
        }
    }

    /// The Services that an object is, belongs to or serves.
    pub fn services_concerned(&self, kind: Kind, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        match kind {
            Kind::Service => [key.clone()].into(),
            Kind::EndpointSlice => self.service_of_slice(key).into_iter().collect(),
            Kind::Node => self.node_users.clone(),
            Kind::Namespace => BTreeSet::new(),
        }
    }

    fn service_of_slice(&self, slice: &ObjectKey) -> Option<ObjectKey> {
        self.service_of.get(slice).cloned()
    }

    /// Notes whether the Service uses node ports.
    pub fn set_node_user(&mut self, service: &ObjectKey, uses: bool) {
        if !uses {
            self.node_users.remove(service);
        } else if !self.node_users.contains(service) {
            self.node_users.insert(service.clone());
        }
    }

    /// The Services that use node ports.
    pub fn node_users(&self) -> &BTreeSet<ObjectKey> {
        &self.node_users
    }

    /// The nodes by name; `None` while they have not been listed completely.
    pub fn nodes(&self) -> Option<impl Iterator<Item = (&str, &Node)> + Clone> {
        let nodes = self.nodes.iter().map(|(name, listed)| (&**name, &listed.object));
        self.is_listed(Kind::Node).then_some(nodes)
    }

    /// Nodes are watched no longer: nothing is known of them.
    pub fn forget_nodes(&mut self) {
        self.nodes.clear();
        self.lists.remove(&Kind::Node);
        self.undecodable.retain(|(kind, _), _| *kind != Kind::Node);
    }

    /// Whether an instance of the Service may be on a node of which nothing could ever be read.
    pub fn may_miss_node(&self, service: &ObjectKey) -> bool {
        let mut unread = self.undecodable.range((Kind::Node, ObjectKey::orphaned())..);
        self.node_users.contains(service)
            && unread
                .any(|((kind, key), _)| *kind == Kind::Node && !self.nodes.contains_key(&key.name))
    }

    /// The Service of this name.
    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key).map(|listed| &listed.object)
    }

    /// All Services by namespace and name, those after `after` only.
    pub fn services_after(
        &self,
        after: Option<&ObjectKey>,
    ) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        use std::ops::Bound::{Excluded, Unbounded};
        self.services
            .range((after.map_or(Unbounded, Excluded), Unbounded))
            .map(|(key, listed)| (key, &listed.object))
    }

    /// How many Services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The slices of a Service, with their own keys.
    pub fn slices(&self, service: &ObjectKey) -> impl Iterator<Item = (&ObjectKey, EndpointSlice)> {
        let slices = self.slices.get(service).into_iter().flatten();
        slices.map(|(key, listed)| (key, listed.object.unpack(&service.name)))
    }

    /// Why the object could not be read, if it could not: what is known of it may be outdated.
    pub fn undecodable(&self, kind: Kind, key: &ObjectKey) -> Option<&str> {
        self.undecodable.get(&(kind, key.clone())).map(|(_, reason)| reason.as_str())
    }

    /// Whether there are Services of which nothing could ever be read.
    pub fn has_unread_service(&self) -> bool {
        self.undecodable
            .keys()
            .any(|(kind, key)| *kind == Kind::Service && !self.services.contains_key(key))
    }

    /// Whether endpoints of the Service may be in a slice of which nothing could ever be read. Its
    /// label is unread too, so that its name has to tell: `<service>-<random>` as the endpoint
    /// slice controller makes it, `<service>` for Endpoints.
    pub fn has_unread_slice(&self, service: &ObjectKey) -> bool {
        self.undecodable
            .range((Kind::EndpointSlice, service.clone())..)
            .map(|((kind, key), _)| (kind, key))
            .take_while(|(kind, key)| {
                **kind == Kind::EndpointSlice
                    && key.namespace == service.namespace
                    && key.name.starts_with(&*service.name)
            })
            .any(|(_, key)| {
                let rest = &key.name[service.name.len()..];
                (rest.is_empty() || rest.starts_with('-')) && !self.service_of.contains_key(key)
            })
    }

    /// The Services for which [`ClusterCache::has_unread_slice`] may hold because of this slice.
    pub fn concerned_by_unread(&self, slice: &ObjectKey) -> Vec<ObjectKey> {
        if self.service_of.contains_key(slice) {
            return Vec::new();
        }
        let ends = slice.name.match_indices('-').map(|(end, _)| end).chain([slice.name.len()]);
        ends.map(|end| ObjectKey::new(slice.namespace.clone(), &slice.name[..end]))
            .filter(|service| self.services.contains_key(service))
            .collect()
    }

    /// The key of this Service that is kept already, so that there is one of it in memory.
    pub fn kept_key(&self, service: &ObjectKey) -> Option<ObjectKey> {
        let known = self.services.get_key_value(service).map(|(key, _)| key);
        known.or_else(|| Some(self.slices.get_key_value(service)?.0)).cloned()
    }

    fn shared(&self, service: ObjectKey) -> ObjectKey {
        self.kept_key(&service).unwrap_or(service)
    }

    fn current(&self, kind: Kind) -> u32 {
        self.lists.get(&kind).map_or(0, |list| list.current)
    }

    /// Notes that a list has shown the object.
    fn touch(&mut self, kind: Kind, key: &ObjectKey, list: u32) {
        match kind {
            Kind::Service => {
                if let Some(service) = self.services.get_mut(key) {
                    service.list = list;
                }
            }
            Kind::EndpointSlice => {
                let Some(service) = self.service_of_slice(key) else { return };
                if let Some(slices) = self.slices.get_mut(&service)
                    && let Ok(place) = place(slices, key)
                {
                    slices[place].1.list = list;
                }
            }
            Kind::Namespace => {}
            Kind::Node => {
                if let Some(node) = self.nodes.get_mut(&key.name) {
                    node.list = list;
                }
            }
        }
    }
}

/// Where the slice is in a sorted list, or has to go.
fn place(slices: &[NamedSlice], key: &ObjectKey) -> Result<usize, usize> {
    slices.binary_search_by(|(other, _)| other.cmp(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::{node, service, slice};

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    fn listed(names: &[&str]) -> ClusterCache {
        let mut cache = ClusterCache::default();
        for kind in WATCHED {
            cache.list_started(kind);
        }
        for name in names {
            cache.seen(SeenObject::Service(key(name), service().build()));
        }
        for kind in WATCHED {
            assert_eq!(cache.list_completed(kind), []);
        }
        cache
    }

    #[test]
    fn it_is_complete_when_every_kind_is() {
        let mut cache = ClusterCache::default();
        for kind in WATCHED {
            assert!(!cache.is_complete());
            cache.list_started(kind);
            assert!(!cache.is_complete());
            cache.list_completed(kind);
        }
        assert!(cache.is_complete());
    }

    #[test]
    fn a_complete_list_tells_what_is_missing_and_removes_nothing() {
        let mut cache = listed(&["a", "b", "c"]);
        cache.list_started(Kind::Service);
        cache.seen(SeenObject::Service(key("b"), service().build()));
        // The list breaks off and begins again: what it had shown counts no more.
        cache.list_started(Kind::Service);
        cache.seen(SeenObject::Service(key("a"), service().build()));
        assert_eq!(cache.list_completed(Kind::Service), [key("b"), key("c")]);
        assert!(cache.service(&key("b")).is_some());
    }

    #[test]
    fn an_object_that_is_equal_changes_nothing() {
        let mut cache = listed(&["a"]);
        assert!(cache.seen(SeenObject::Service(key("a"), service().build())).is_empty());
        let ports = [("http", 80)];
        let first = slice("a", &ports, &[("10.0.0.1", true)]);
        assert_eq!(
            cache.seen(SeenObject::EndpointSlice(key("a-1"), first.clone())),
            [key("a")].into()
        );
        assert!(cache.seen(SeenObject::EndpointSlice(key("a-1"), first)).is_empty());
    }

    #[test]
    fn a_slice_that_moves_to_another_service_changes_both() {
        let mut cache = listed(&["a", "b"]);
        cache.seen(SeenObject::EndpointSlice(key("s"), slice("a", &[], &[])));
        let moved = cache.seen(SeenObject::EndpointSlice(key("s"), slice("b", &[], &[])));
        assert_eq!(moved, [key("a"), key("b")].into());
        assert_eq!(cache.slices(&key("a")).count(), 0);
        assert_eq!(cache.remove(Kind::EndpointSlice, &key("s")), [key("b")].into());
        assert_eq!(cache.slices(&key("b")).count(), 0);
    }

    #[test]
    fn an_object_that_cannot_be_read_exists() {
        let mut cache = listed(&["a"]);
        cache.list_started(Kind::Service);
        cache.seen(SeenObject::Undecodable(Kind::Service, key("a"), "no spec".to_owned()));
        assert_eq!(cache.list_completed(Kind::Service), []);
        assert_eq!(cache.undecodable(Kind::Service, &key("a")), Some("no spec"));
        assert!(cache.service(&key("a")).is_some());
        cache.seen(SeenObject::Service(key("a"), service().build()));
        assert_eq!(cache.undecodable(Kind::Service, &key("a")), None);
    }

    #[test]
    fn nodes_concern_the_services_that_use_node_ports() {
        let mut cache = listed(&["a", "b"]);
        cache.set_node_user(&key("a"), true);
        let seen =
            |ready: bool| SeenObject::Node(ObjectKey::new("", "n1"), node(&["10.0.0.1"], ready));
        cache.list_started(Kind::Node);
        assert!(cache.seen(seen(true)).is_empty() && cache.nodes().is_none(), "not complete");
        assert_eq!(cache.list_completed(Kind::Node), []);
        assert_eq!(cache.nodes().map(Iterator::count), Some(1));
        assert!(cache.seen(seen(true)).is_empty(), "a heartbeat");
        assert_eq!(cache.seen(seen(false)), [key("a")].into());
        cache.list_started(Kind::Node);
        assert_eq!(cache.list_completed(Kind::Node), [ObjectKey::new("", "n1")]);
        assert_eq!(cache.remove(Kind::Node, &ObjectKey::new("", "n1")), [key("a")].into());
        cache.set_node_user(&key("a"), false);
        assert!(cache.seen(seen(true)).is_empty());
        cache.forget_nodes();
        assert!(cache.nodes().is_none());
    }

    #[test]
    fn a_node_that_was_never_read_may_be_anywhere() {
        let mut cache = listed(&["a", "b"]);
        cache.set_node_user(&key("a"), true);
        cache.list_started(Kind::Node);
        cache.list_completed(Kind::Node);
        let n1 = ObjectKey::new("", "n1");
        let unread = SeenObject::Undecodable(Kind::Node, n1.clone(), "no".to_owned());
        assert_eq!(cache.seen(unread), [key("a")].into());
        assert!(cache.may_miss_node(&key("a")) && !cache.may_miss_node(&key("b")));
        assert_eq!(cache.seen(SeenObject::Node(n1, node(&[], true))), [key("a")].into());
        assert!(!cache.may_miss_node(&key("a")));
    }
}
