//! Which Ingresses and HTTPRoutes lead to which Service.
//!
//! A Service looks at those alone that lead to it, and one that changes concerns those Services
//! alone whose part of it did.

use std::collections::BTreeSet;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::kube::route::{Gateway, HTTP, HTTPS, HttpRoute, Ingress, Parent, Route};
use crate::domain::kube::store::{Listing, Store};
use crate::domain::map::HashMap;

/// Ways by which one Service is reached that are looked at: twice its instances, since one host may
/// be that of several listeners. Without a bound the objects of one tenant, of a thousand hosts
/// each, would be in memory at once.
pub const MAX_ROUTES: usize = 10_000;

/// Which kinds of routes are watched.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteKinds {
    /// Ingresses.
    pub ingress: bool,
    /// HTTPRoutes and Gateways.
    pub gateway: bool,
}

/// Ingresses, HTTPRoutes and Gateways, by the Services that they lead to.
#[derive(Debug)]
pub struct Routes {
    kinds: RouteKinds,
    ingresses: Store<Ingress>,
    http: Store<HttpRoute>,
    gateways: Store<Gateway>,
    /// Of each Service what leads to it, sorted.
    of_service: HashMap<ObjectKey, Vec<(Kind, ObjectKey)>>,
    /// Of each Gateway the HTTPRoutes that it accepts.
    of_gateway: HashMap<ObjectKey, BTreeSet<ObjectKey>>,
    /// Kinds that the API server does not serve.
    not_served: BTreeSet<Kind>,
}

// === impl RouteKinds ===

impl RouteKinds {
    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = Kind> {
        let gateway = [Kind::HttpRoute, Kind::Gateway].into_iter().filter(move |_| self.gateway);
        self.ingress.then_some(Kind::Ingress).into_iter().chain(gateway)
    }
}

// === impl Routes ===

impl Routes {
    /// Those of these kinds; nothing is known yet.
    pub fn new(kinds: RouteKinds) -> Self {
        Self {
            kinds,
            ingresses: Store::default(),
            http: Store::default(),
            gateways: Store::default(),
            of_service: HashMap::default(),
            of_gateway: HashMap::default(),
            not_served: BTreeSet::new(),
        }
    }

    /// Whether each kind was listed completely, or is not served.
    pub fn is_complete(&self) -> bool {
        self.kinds.iter().all(|kind| self.is_settled(kind))
    }

    /// Whether some kind was never listed completely: what of it there is nobody knows.
    pub fn are_unknown(&self) -> bool {
        self.kinds.iter().any(|kind| !self.listing(kind).is_some_and(Listing::is_complete))
    }

    /// The kinds of which a complete list is evidence of absence.
    pub fn evidence(&self) -> impl Iterator<Item = Kind> {
        self.kinds.iter().filter(|kind| !self.not_served.contains(kind))
    }

    /// Whether nothing leads to any Service, or of some kind no object is shown: what others say of
    /// theirs tells nothing of it.
    pub fn lack_a_kind(&self) -> bool {
        let is_empty = |kind| match kind {
            Kind::Ingress => self.ingresses.is_empty(),
            Kind::HttpRoute => self.http.is_empty(),
            Kind::Gateway => self.gateways.is_empty(),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Namespace | Kind::Pod => false,
        };
        self.of_service.is_empty() || self.kinds.iter().any(is_empty)
    }

    fn is_settled(&self, kind: Kind) -> bool {
        self.not_served.contains(&kind) || self.listing(kind).is_some_and(Listing::is_complete)
    }

    /// How far the lists of a kind are; none for those of others.
    pub fn listing(&self, kind: Kind) -> Option<&Listing> {
        match kind {
            Kind::Ingress => Some(self.ingresses.listing()),
            Kind::HttpRoute => Some(self.http.listing()),
            Kind::Gateway => Some(self.gateways.listing()),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Namespace | Kind::Pod => None,
        }
    }

    /// A list begins.
    pub fn list_started(&mut self, kind: Kind) {
        self.not_served.remove(&kind);
        match kind {
            Kind::Ingress => self.ingresses.list_started(),
            Kind::HttpRoute => self.http.list_started(),
            Kind::Gateway => self.gateways.list_started(),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Namespace | Kind::Pod => {}
        }
    }

    /// The list is complete: returns the objects that it did not show.
    pub fn list_completed(&mut self, kind: Kind) -> Vec<ObjectKey> {
        match kind {
            Kind::Ingress => self.ingresses.list_completed(),
            Kind::HttpRoute => self.http.list_completed(),
            Kind::Gateway => self.gateways.list_completed(),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Namespace | Kind::Pod => {
                Vec::new()
            }
        }
    }

    /// The API server does not serve the kind. That shows nothing of the objects: what is known of
    /// them stays.
    pub fn not_served(&mut self, kind: Kind) {
        self.not_served.insert(kind);
    }

    /// Takes an Ingress. Returns the Services whose part of it changed.
    pub fn seen_ingress(&mut self, key: &ObjectKey, ingress: Ingress) -> BTreeSet<ObjectKey> {
        let unread = self.ingresses.listing().reason(key).is_some();
        let before = self.ingresses.get(key).cloned().unwrap_or_default();
        let moves = unread || before.addresses != ingress.addresses;
        let all: BTreeSet<&str> = before.services().chain(ingress.services()).collect();
        let changed = all
            .into_iter()
            .filter(|service| moves || before.rules_of(service) != ingress.rules_of(service))
            .map(|service| beside(key, service))
            .collect();
        let led_to = self.services_of(Kind::Ingress, key);
        self.ingresses.seen(key.clone(), ingress);
        self.reindex(Kind::Ingress, key, &led_to);
        changed
    }

    /// Takes an HTTPRoute. Returns the Services that it leads or led to, if it changed.
    pub fn seen_http_route(&mut self, key: &ObjectKey, route: HttpRoute) -> BTreeSet<ObjectKey> {
        let led_to = self.services_of(Kind::HttpRoute, key);
        self.unindex_parents(key);
        for parent in &route.parents {
            let routes = self.of_gateway.entry(parent.gateway.clone()).or_default();
            routes.insert(key.clone());
        }
        let changed = self.http.seen(key.clone(), route);
        self.reindex(Kind::HttpRoute, key, &led_to);
        if !changed {
            return BTreeSet::new();
        }
        led_to.into_iter().chain(self.services_of(Kind::HttpRoute, key)).collect()
    }

    /// Takes a Gateway. Returns the Services that its routes lead to, if it changed.
    pub fn seen_gateway(&mut self, key: &ObjectKey, gateway: Gateway) -> BTreeSet<ObjectKey> {
        let changed = self.gateways.seen(key.clone(), gateway);
        if changed { self.services_concerned(Kind::Gateway, key) } else { BTreeSet::new() }
    }

    /// The object exists but could not be read: what was known of it stays.
    pub fn undecodable(&mut self, kind: Kind, key: ObjectKey, reason: String) {
        match kind {
            Kind::Ingress => self.ingresses.undecodable(key, reason),
            Kind::HttpRoute => self.http.undecodable(key, reason),
            Kind::Gateway => self.gateways.undecodable(key, reason),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Namespace | Kind::Pod => {}
        }
    }

    /// Forgets an object.
    pub fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        let led_to = self.services_of(kind, key);
        match kind {
            Kind::Ingress => drop(self.ingresses.remove(key)),
            Kind::HttpRoute => {
                self.unindex_parents(key);
                self.http.remove(key);
            }
            Kind::Gateway => drop(self.gateways.remove(key)),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Namespace | Kind::Pod => {}
        }
        self.reindex(kind, key, &led_to);
    }

    /// The Services that an object leads to, as far as it was read.
    pub fn services_concerned(&self, kind: Kind, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        if kind != Kind::Gateway {
            return self.services_of(kind, key);
        }
        let routes = self.of_gateway.get(key).into_iter().flatten();
        routes.flat_map(|route| self.services_of(Kind::HttpRoute, route)).collect()
    }

    /// Whether what leads to the Service may be in an object of which nothing could ever be read.
    /// Such an Ingress or HTTPRoute may lead to any Service of its namespace.
    pub fn may_miss(&self, service: &ObjectKey) -> bool {
        let mut unread = self.ingresses.never_read().chain(self.http.never_read());
        if unread.any(|key| key.namespace == service.namespace) {
            return true;
        }
        let unread: BTreeSet<&ObjectKey> = self.gateways.never_read().collect();
        if unread.is_empty() {
            return false;
        }
        let leads = self.of_service.get(service).into_iter().flatten();
        let routes = leads.filter(|(kind, _)| *kind == Kind::HttpRoute);
        let mut routes = routes.filter_map(|(_, key)| self.http.get(key));
        routes.any(|route| route.parents.iter().any(|it| unread.contains(&it.gateway)))
    }

    /// Whether nothing could ever be read of some object.
    pub fn has_never_read(&self) -> bool {
        let unread = self.ingresses.never_read().chain(self.http.never_read());
        unread.chain(self.gateways.never_read()).next().is_some()
    }

    /// Whether the object is an Ingress or HTTPRoute of which nothing could ever be read.
    pub fn is_never_read(&self, kind: Kind, key: &ObjectKey) -> bool {
        match kind {
            Kind::Ingress => self.ingresses.is_never_read(key),
            Kind::HttpRoute => self.http.is_never_read(key),
            Kind::Service
            | Kind::EndpointSlice
            | Kind::Node
            | Kind::Namespace
            | Kind::Pod
            | Kind::Gateway => false,
        }
    }

    /// The ways by which the Service is reached, but for those by objects of which `absent` is true,
    /// and whether there are more than are looked at.
    pub fn of<'a>(
        &'a self,
        service: &'a ObjectKey,
        absent: &impl Fn(Kind, &ObjectKey) -> bool,
    ) -> (Vec<Route<'a>>, bool) {
        let mut routes = Vec::new();
        for (kind, key) in self.of_service.get(service).into_iter().flatten() {
            if absent(*kind, key) {
                continue;
            }
            if *kind == Kind::Ingress {
                routes.extend(self.by_ingress(service, key).take(MAX_ROUTES - routes.len()));
            } else {
                let found = self.by_gateway(service, key, absent);
                routes.extend(found.take(MAX_ROUTES - routes.len()));
            }
            if routes.len() == MAX_ROUTES {
                return (routes, true);
            }
        }
        (routes, false)
    }

    fn by_ingress<'a>(
        &'a self,
        service: &'a ObjectKey,
        key: &ObjectKey,
    ) -> impl Iterator<Item = Route<'a>> {
        self.ingresses.get(key).into_iter().flat_map(|ingress| {
            ingress.rules_of(&service.name).iter().map(|rule| Route {
                backend: &rule.backend.port,
                host: rule.host.as_deref(),
                addresses: &ingress.addresses,
                port: if rule.tls { HTTPS } else { HTTP },
                tls: rule.tls,
            })
        })
    }

    fn by_gateway<'a>(
        &'a self,
        service: &'a ObjectKey,
        key: &ObjectKey,
        absent: &impl Fn(Kind, &ObjectKey) -> bool,
    ) -> impl Iterator<Item = Route<'a>> {
        let route = self.http.get(key);
        let backends = route.map_or(&[][..], |it| it.backends_of(&service.name));
        let parents = route
            .into_iter()
            .flat_map(|route| route.parents.iter().map(move |parent| (&route.hostnames, parent)));
        parents
            .filter(move |(_, parent)| !absent(Kind::Gateway, &parent.gateway))
            .filter_map(|(hosts, parent)| {
                Some((hosts, parent, self.gateways.get(&parent.gateway)?))
            })
            .flat_map(move |(hosts, parent, gateway)| {
                let attached = gateway.attached(&service.namespace, parent, hosts);
                attached.map(move |(listener, host)| (gateway, listener, host))
            })
            .flat_map(move |(gateway, listener, host)| {
                backends.iter().map(move |backend| Route {
                    backend: &backend.port,
                    host,
                    addresses: &gateway.addresses,
                    port: listener.port,
                    tls: listener.tls,
                })
            })
    }

    fn services_of(&self, kind: Kind, key: &ObjectKey) -> BTreeSet<ObjectKey> {
        let ingress = (kind == Kind::Ingress).then(|| self.ingresses.get(key)).flatten();
        let route = (kind == Kind::HttpRoute).then(|| self.http.get(key)).flatten();
        let of_ingress = ingress.into_iter().flat_map(Ingress::services);
        let all = of_ingress.chain(route.into_iter().flat_map(HttpRoute::services));
        all.map(|service| beside(key, service)).collect()
    }

    /// The object led to the Services `before`, and may lead to others now.
    fn reindex(&mut self, kind: Kind, key: &ObjectKey, before: &BTreeSet<ObjectKey>) {
        let now = self.services_of(kind, key);
        let what = (kind, key.clone());
        for service in before.difference(&now) {
            let Some(all) = self.of_service.get_mut(service) else { continue };
            if let Ok(place) = all.binary_search(&what) {
                all.remove(place);
            }
            if all.is_empty() {
                self.of_service.remove(service);
            }
        }
        for service in now.difference(before) {
            let all = self.of_service.entry(service.clone()).or_default();
            if let Err(place) = all.binary_search(&what) {
                all.reserve_exact(1);
                all.insert(place, what.clone());
            }
        }
    }

    fn unindex_parents(&mut self, key: &ObjectKey) {
        let route = self.http.get(key);
        for Parent { gateway, .. } in route.iter().flat_map(|route| &route.parents) {
            let Some(routes) = self.of_gateway.get_mut(gateway) else { continue };
            routes.remove(key);
            if routes.is_empty() {
                self.of_gateway.remove(gateway);
            }
        }
    }
}

/// The object of this name in the namespace of `key`.
fn beside(key: &ObjectKey, name: &str) -> ObjectKey {
    ObjectKey::new(key.namespace.clone(), name)
}

#[cfg(test)]
mod tests;
