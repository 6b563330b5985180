//! What is known of the Kubernetes cluster.
//!
//! A list is merged into what is there as it comes; what it did not show is reported once the
//! list is complete, and removed only by [`ClusterCache::remove`]: absence is evidence only then
//! (invariant: evidence).

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{
    Endpoint, EndpointSlice, Kind, Node, NodeAddressType, SeenObject, Service,
};
use crate::domain::kube::route::Route;
use crate::domain::kube::routes::{RouteKinds, Routes};
use crate::domain::kube::slices::Slices;
use crate::domain::kube::store::{Listing, Store};

/// Services and their EndpointSlices, and where they are asked for the nodes and what routes to
/// Services.
#[derive(Debug, Default)]
pub struct ClusterCache {
    services: Store<Service>,
    slices: Slices,
    /// Their keys have no namespace.
    nodes: Store<Node>,
    /// Whether each namespace is selected, where that depends on its labels. The keys have no namespace
    /// themselves.
    namespaces: Option<Store<bool>>,
    /// The Services that use node ports: a node that changes concerns them.
    node_users: BTreeSet<ObjectKey>,
    /// Whether a node's addresses concern the Services that have endpoints on it, too.
    tells_nodes_from_pods: bool,
    /// Ingresses and the Gateway API's objects, where they are watched. Boxed: elsewhere this is one
    /// word.
    routes: Option<Box<Routes>>,
}

/// The kinds that are always watched, and have to be listed before anything is decided.
pub const WATCHED: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];

// === impl ClusterCache ===

impl ClusterCache {
    /// An empty one. `tells_nodes_from_pods`: whether it matters which endpoints have the address of
    /// their node, as pods with `hostNetwork` do; `selects_namespaces`: whether their labels matter;
    /// `routes`: what of it is watched.
    pub fn new(tells_nodes_from_pods: bool, selects_namespaces: bool, routes: RouteKinds) -> Self {
        let namespaces = selects_namespaces.then(Store::default);
        let routes = (routes != RouteKinds::default()).then(|| Routes::new(routes).into());
        Self { namespaces, tells_nodes_from_pods, routes, ..Self::default() }
    }

    /// Whether every kind that is always watched has been listed completely, and namespaces where they
    /// are, too. A list of no namespace is none: there is no cluster without.
    pub fn is_complete(&self) -> bool {
        let namespaces = self.namespaces.as_ref();
        WATCHED.iter().all(|kind| self.is_listed(*kind))
            && self.routes.as_ref().is_none_or(|routes| routes.is_complete())
            && namespaces.is_none_or(|all| all.is_complete() && !all.is_empty())
    }

    /// Whether this kind has been listed completely.
    pub fn is_listed(&self, kind: Kind) -> bool {
        self.listing(kind).is_some_and(Listing::is_complete)
    }

    /// The kinds of which a complete list is evidence of absence: those that are always watched,
    /// nodes once they were listed, and of what routes to Services the kinds that are served.
    pub fn evidence(&self) -> impl Iterator<Item = Kind> {
        let routes = self.routes.iter().flat_map(|routes| routes.evidence());
        WATCHED.into_iter().chain(self.is_listed(Kind::Node).then_some(Kind::Node)).chain(routes)
    }

    /// The API server does not serve this kind: what is known of its objects stays.
    pub fn not_served(&mut self, kind: Kind) {
        if let Some(routes) = &mut self.routes {
            routes.not_served(kind);
        }
    }

    /// A list of this kind begins.
    pub fn list_started(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.services.list_started(),
            Kind::EndpointSlice => self.slices.listing.start(),
            Kind::Node => self.nodes.list_started(),
            Kind::Namespace => self.namespaces.iter_mut().for_each(Store::list_started),
            Kind::Pod => {}
            Kind::Ingress | Kind::HttpRoute | Kind::Gateway => {
                if let Some(routes) = &mut self.routes {
                    routes.list_started(kind);
                }
            }
        }
    }

    /// The list is complete: returns the objects of this kind that it did not show.
    pub fn list_completed(&mut self, kind: Kind) -> Vec<ObjectKey> {
        match kind {
            Kind::Service => self.services.list_completed(),
            Kind::EndpointSlice => self.slices.list_completed(),
            Kind::Node => self.nodes.list_completed(),
            Kind::Namespace => {
                self.namespaces.as_mut().map(Store::list_completed).unwrap_or_default()
            }
            Kind::Pod => Vec::new(),
            Kind::Ingress | Kind::HttpRoute | Kind::Gateway => {
                self.routes.as_mut().map_or_else(Vec::new, |routes| routes.list_completed(kind))
            }
        }
    }

    /// Takes an object as it is now. Returns the Services whose registrations may change by it.
    pub fn seen(&mut self, seen: SeenObject) -> BTreeSet<ObjectKey> {
        match seen {
            SeenObject::Service(key, mut service) => {
                let key = self.shared(key);
                service.namespace_selected = self.selects_namespace(&key.namespace) == Some(true);
                let changed = self.services.seen(key.clone(), service);
                changed.then_some(key).into_iter().collect()
            }
            SeenObject::EndpointSlice(key, slice) => {
                let service = ObjectKey::new(key.namespace.clone(), &*slice.service);
                let service = self.shared(service);
                self.slices.seen(key, service, &slice)
            }
            SeenObject::Node(key, node) => {
                let before = self.nodes.get(&key).map(|node| node.addresses.clone());
                let moves = before.as_ref() != Some(&node.addresses);
                let changed = self.nodes.seen(key.clone(), node);
                // Before the list is complete nothing follows from any of them.
                match changed && self.is_listed(Kind::Node) {
                    true if moves => {
                        let mut services = self.services_concerned(Kind::Node, &key);
                        let before = before.as_deref().unwrap_or_default();
                        services.extend(self.services_at(before).cloned());
                        services
                    }
                    true => self.node_users.clone(),
                    false => BTreeSet::new(),
                }
            }
            SeenObject::Ingress(key, ingress) => {
                self.seen_route(Kind::Ingress, &key, |routes| routes.seen_ingress(&key, ingress))
            }
            SeenObject::HttpRoute(key, route) => {
                self.seen_route(Kind::HttpRoute, &key, |it| it.seen_http_route(&key, route))
            }
            SeenObject::Gateway(key, gateway) => {
                self.seen_route(Kind::Gateway, &key, |it| it.seen_gateway(&key, gateway))
            }
            SeenObject::Namespace(..) => BTreeSet::new(),
            SeenObject::Undecodable(kind, key, reason) => {
                let services = self.services_concerned(kind, &key);
                match kind {
                    Kind::Service => self.services.undecodable(key, reason),
                    Kind::EndpointSlice => self.slices.undecodable(key, reason),
                    Kind::Node => self.nodes.undecodable(key, reason),
                    Kind::Ingress | Kind::HttpRoute | Kind::Gateway => {
                        if let Some(routes) = &mut self.routes {
                            routes.undecodable(kind, key, reason);
                        }
                    }
                    // What was known of it stays, and nothing depends on more.
                    Kind::Namespace | Kind::Pod => {}
                }
                services
            }
        }
    }

    /// Forgets an object. Returns the Services whose registrations may change by it.
    pub fn remove(&mut self, kind: Kind, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let services = self.services_concerned(kind, key);
        match kind {
            Kind::Service => drop(self.services.remove(key)),
            Kind::EndpointSlice => self.slices.remove(key),
            Kind::Node => drop(self.nodes.remove(key)),
            Kind::Namespace => self.forget_namespace(key),
            Kind::Pod => {}
            Kind::Ingress | Kind::HttpRoute | Kind::Gateway => {
                if let Some(routes) = &mut self.routes {
                    routes.remove(kind, key);
                }
            }
        }
        services
    }

    /// Takes an object that routes to Services. One that could never be read before may have led to
    /// any of its namespace, which waited for it.
    fn seen_route(
        &mut self,
        kind: Kind,
        key: &ObjectKey,
        seen: impl FnOnce(&mut Routes) -> BTreeSet<ObjectKey>,
    ) -> BTreeSet<ObjectKey> {
        let waited = self.waited_for_route(kind, key);
        let changed = self.routes.as_mut().map(|routes| seen(routes)).unwrap_or_default();
        changed.into_iter().map(|service| self.shared(service)).chain(waited).collect()
    }

    /// The Services of which nothing is removed because this object could never be read.
    fn waited_for_route(&self, kind: Kind, key: &ObjectKey) -> Vec<ObjectKey> {
        let never_read = |routes: &Routes| routes.is_never_read(kind, key);
        if !self.routes.as_ref().is_some_and(|routes| never_read(routes)) {
            return Vec::new();
        }
        let first = ObjectKey::new(key.namespace.clone(), "");
        let after = self.services.iter_after(Some(&first)).map(|(service, _)| service);
        after.take_while(|service| service.namespace == key.namespace).cloned().collect()
    }

    /// Whether this namespace is selected by its labels; `None`: not known.
    pub fn selects_namespace(&self, namespace: &str) -> Option<bool> {
        let Some(namespaces) = &self.namespaces else { return Some(true) };
        namespaces.get(&ObjectKey::new("", namespace)).copied()
    }

    /// Takes whether a namespace is selected. Returns its Services, if that is news.
    pub fn namespace_seen(&mut self, key: &ObjectKey, is_selected: bool) -> BTreeSet<ObjectKey> {
        let Some(namespaces) = &mut self.namespaces else { return BTreeSet::new() };
        if !namespaces.seen(key.clone(), is_selected) {
            return BTreeSet::new();
        }
        let services: BTreeSet<ObjectKey> =
            self.services.of_namespace(&key.name).cloned().collect();
        for service in &services {
            if let Some(service) = self.services.get_mut(service) {
                service.namespace_selected = is_selected;
            }
        }
        services
    }

    /// A namespace is gone, or a list lacks it. Its Services say themselves when they go: as long as
    /// there are any, what was known of it stays.
    fn forget_namespace(&mut self, key: &ObjectKey) {
        if self.services.of_namespace(&key.name).next().is_none()
            && let Some(namespaces) = &mut self.namespaces
        {
            namespaces.remove(key);
        }
    }

    /// The Services that an object is, belongs to or serves.
    pub fn services_concerned(&self, kind: Kind, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        match kind {
            Kind::Service => [key.clone()].into(),
            Kind::EndpointSlice => match self.slices.service_of.get(key) {
                Some(service) => [service.clone()].into(),
                None => self.concerned_by_unread(key).into_iter().collect(),
            },
            Kind::Node => {
                let of_pods =
                    self.tells_nodes_from_pods.then(|| self.slices.services_on(&key.name));
                let addresses = self.nodes.get(key).map_or(&[][..], |node| &*node.addresses);
                let of_pods = of_pods.into_iter().flatten();
                of_pods
                    .chain(self.services_at(addresses))
                    .chain(&self.node_users)
                    .cloned()
                    .collect()
            }
            Kind::Ingress | Kind::HttpRoute | Kind::Gateway => {
                let Some(routes) = &self.routes else { return BTreeSet::new() };
                let waited = self.waited_for_route(kind, key);
                routes.services_concerned(kind, key).into_iter().chain(waited).collect()
            }
            // Its absence says nothing of any.
            Kind::Namespace | Kind::Pod => BTreeSet::new(),
        }
    }

    /// Whether an endpoint has one of the addresses of the node that it is on: a pod with
    /// `hostNetwork`. Known only while nodes are.
    pub fn is_on_host_network(&self, endpoint: &Endpoint) -> bool {
        let node = endpoint.node.as_ref().filter(|_| self.tells_nodes_from_pods);
        let node = node.and_then(|name| self.nodes.get(&ObjectKey::new("", &**name)));
        node.is_some_and(|node| node.addresses.iter().any(|(_, it)| *it == endpoint.address))
    }

    /// Whether it is an address of a node. Known only while nodes are.
    pub fn is_nodes(&self, address: IpAddr) -> bool {
        let mut nodes = self.nodes().into_iter().flatten();
        nodes.any(|(_, node)| node.addresses.iter().any(|(_, it)| *it == address))
    }

    /// The Services that say that they are reached at one of these addresses: where that is a node's,
    /// it is no Service's.
    fn services_at<'a>(
        &'a self,
        addresses: &'a [(NodeAddressType, IpAddr)],
    ) -> impl Iterator<Item = &'a ObjectKey> {
        let is_one = |it: &IpAddr| addresses.iter().any(|(_, address)| address == it);
        let all = self.services.iter_after(None);
        let at = all.filter(move |(_, service)| {
            let balancers = service.load_balancer.iter().filter_map(|it| it.parse().ok());
            service.external_ips.iter().any(is_one) || balancers.into_iter().any(|it| is_one(&it))
        });
        at.map(|(key, _)| key)
    }

    /// Whether anything depends on nodes.
    pub fn wants_nodes(&self) -> bool {
        self.tells_nodes_from_pods || !self.node_users.is_empty()
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
        let nodes = self.nodes.iter_after(None).map(|(key, node)| (&*key.name, node));
        self.is_listed(Kind::Node).then_some(nodes)
    }

    /// Nodes are watched no longer: nothing is known of them.
    pub fn forget_nodes(&mut self) {
        self.nodes.clear();
    }

    /// Whether an instance of the Service may be on a node of which nothing could ever be read.
    pub fn may_miss_node(&self, service: &ObjectKey) -> bool {
        self.node_users.contains(service) && self.nodes.never_read().next().is_some()
    }

    /// The ways by which the Service is reached through Ingresses and Gateways, but for those by
    /// objects of which `absent` is true, and whether there are more than are looked at.
    pub fn routes<'a>(
        &'a self,
        service: &'a ObjectKey,
        absent: &impl Fn(Kind, &ObjectKey) -> bool,
    ) -> (Vec<Route<'a>>, bool) {
        self.routes.as_ref().map_or_else(Default::default, |routes| routes.of(service, absent))
    }

    /// Whether what routes to Services is watched, and was never listed: the API server does not serve it.
    pub fn lacks_routes(&self) -> bool {
        self.routes.as_ref().is_some_and(|routes| routes.are_unknown())
    }

    /// Whether what routes to Services is watched, and nothing is shown that does, or none of a kind.
    pub fn shows_too_few_routes(&self) -> bool {
        self.routes.as_ref().is_some_and(|routes| routes.lack_a_kind())
    }

    /// The Services for which [`ClusterCache::may_miss_route`] holds.
    pub fn services_with_unread_routes(&self) -> Vec<ObjectKey> {
        let Some(routes) = self.routes.as_ref().filter(|routes| routes.has_never_read()) else {
            return Vec::new();
        };
        let services = self.services.iter_after(None).map(|(service, _)| service);
        services.filter(|service| routes.may_miss(service)).cloned().collect()
    }

    /// Whether an object that may route to the Service could never be read.
    pub fn may_miss_route(&self, service: &ObjectKey) -> bool {
        self.routes.as_ref().is_some_and(|routes| routes.may_miss(service))
    }

    /// The Service of this name.
    pub fn service(&self, key: &ObjectKey) -> Option<&Service> {
        self.services.get(key)
    }

    /// All Services by namespace and name, those after `after` only.
    pub fn services_after(
        &self,
        after: Option<&ObjectKey>,
    ) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        self.services.iter_after(after)
    }

    /// How many Services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The slices of a Service, with their own keys.
    pub fn slices(&self, service: &ObjectKey) -> impl Iterator<Item = (&ObjectKey, EndpointSlice)> {
        self.slices_where(service, |_| true)
    }

    /// Those of [`ClusterCache::slices`] whose own keys are wanted: the others are not unpacked.
    pub fn slices_where(
        &self,
        service: &ObjectKey,
        is_wanted: impl Fn(&ObjectKey) -> bool,
    ) -> impl Iterator<Item = (&ObjectKey, EndpointSlice)> {
        let slices = self.slices.of_service.get(service).into_iter().flatten();
        let wanted = slices.filter(move |(key, _)| is_wanted(key));
        wanted.map(|(key, listed)| (key, listed.object.unpack(&service.name)))
    }

    /// Whether the Service has more than one slice.
    pub fn has_slices(&self, service: &ObjectKey) -> bool {
        self.slices.of_service.get(service).is_some_and(|slices| slices.len() > 1)
    }

    /// Whether the slice is one of several of the Service that it names, and is about to change in
    /// nothing but what it says of the same endpoints and ports.
    pub fn has_same_endpoints(&self, key: &ObjectKey, slice: &EndpointSlice) -> bool {
        let service = self.slices.service_of.get(key).filter(|it| *it.name == *slice.service);
        let Some(service) = service.filter(|service| self.has_slices(service)) else {
            return false;
        };
        let before = self.slices_where(service, |other| other == key).next();
        before.is_some_and(|(_, before)| {
            let addresses = |slice: &EndpointSlice| -> Vec<IpAddr> {
                slice.endpoints.iter().map(|endpoint| endpoint.address).collect()
            };
            before.ports == slice.ports
                && before.left_out == slice.left_out
                && addresses(&before) == addresses(slice)
        })
    }

    /// Why the object could not be read, if it could not: what is known of it may be outdated.
    pub fn undecodable(&self, kind: Kind, key: &ObjectKey) -> Option<&str> {
        self.listing(kind)?.reason(key)
    }

    /// Services of which nothing could ever be read.
    pub fn unread_services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.never_read()
    }

    /// Whether there are Services of which nothing could ever be read.
    pub fn has_unread_service(&self) -> bool {
        self.services.never_read().next().is_some()
    }

    /// Whether endpoints of the Service may be in a slice of which nothing could ever be read. Its
    /// label is unread too, so that its name has to tell: `<service>-<random>` as the endpoint
    /// slice controller makes it, `<service>` for Endpoints.
    pub fn has_unread_slice(&self, service: &ObjectKey) -> bool {
        self.slices
            .listing
            .undecodable_from(service)
            .take_while(|key| {
                key.namespace == service.namespace && key.name.starts_with(&*service.name)
            })
            .any(|key| {
                let rest = &key.name[service.name.len()..];
                (rest.is_empty() || rest.starts_with('-')) && !self.slices.is_known(key)
            })
    }

    /// The Services for which [`ClusterCache::has_unread_slice`] holds.
    pub fn services_with_unread_slices(&self) -> BTreeSet<ObjectKey> {
        let unread = self.slices.listing.all_undecodable();
        unread.flat_map(|slice| self.concerned_by_unread(slice)).collect()
    }

    /// The Services for which [`ClusterCache::has_unread_slice`] may hold because of this slice.
    pub fn concerned_by_unread(&self, slice: &ObjectKey) -> Vec<ObjectKey> {
        if self.slices.is_known(slice) {
            return Vec::new();
        }
        let ends = slice.name.match_indices('-').map(|(end, _)| end).chain([slice.name.len()]);
        ends.map(|end| ObjectKey::new(slice.namespace.clone(), &slice.name[..end]))
            .filter(|service| self.services.get(service).is_some())
            .collect()
    }

    /// The key of this Service that is kept already, so that there is one of it in memory.
    pub fn kept_key(&self, service: &ObjectKey) -> Option<ObjectKey> {
        let known = self.services.kept_key(service);
        known.or_else(|| Some(self.slices.of_service.get_key_value(service)?.0)).cloned()
    }

    fn shared(&self, service: ObjectKey) -> ObjectKey {
        self.kept_key(&service).unwrap_or(service)
    }

    /// How far the lists of a kind are; none for one that is not here.
    fn listing(&self, kind: Kind) -> Option<&Listing> {
        match kind {
            Kind::Service => Some(self.services.listing()),
            Kind::EndpointSlice => Some(&self.slices.listing),
            Kind::Node => Some(self.nodes.listing()),
            // No Service depends on a pod, and only `namespace_seen` on a namespace.
            Kind::Namespace | Kind::Pod => None,
            Kind::Ingress | Kind::HttpRoute | Kind::Gateway => self.routes.as_ref()?.listing(kind),
        }
    }
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
    fn n9_addresses_of_a_node_concern_the_services_with_endpoints_on_it() {
        let n1 = ObjectKey::new("", "n1");
        for tells in [false, true] {
            let mut cache = ClusterCache::new(tells, false, RouteKinds::default());
            let mut slice = slice("a", &[("http", 80)], &[("10.0.0.1", true), ("10.1.0.1", true)]);
            for endpoint in &mut slice.endpoints {
                endpoint.node = Some("n1".into());
            }
            cache.seen(SeenObject::EndpointSlice(key("a-1"), slice.clone()));
            cache.list_started(Kind::Node);
            cache.list_completed(Kind::Node);
            let concerned: BTreeSet<_> = tells.then(|| key("a")).into_iter().collect();
            let seen = |ready| SeenObject::Node(n1.clone(), node(&["10.0.0.1"], ready));
            assert_eq!(cache.seen(seen(true)), concerned);
            assert!(cache.seen(seen(false)).is_empty(), "its addresses are the same");
            let on_host = slice.endpoints.iter().map(|it| cache.is_on_host_network(it));
            assert_eq!(on_host.collect::<Vec<_>>(), [tells, false]);
            assert_eq!(cache.remove(Kind::Node, &n1), concerned);
        }
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
