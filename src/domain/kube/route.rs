//! The parts of Ingresses, HTTPRoutes and Gateways that say where a Service is reached.
//!
//! Own types and not those of a crate: of the thousands of fields of the Gateway API these few are
//! used, and an object that is decoded whole only to be thrown away costs its size in memory.

use crate::domain::kube::names::ObjectKey;

/// A `networking.k8s.io/v1` Ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// Where its rules lead, each once, sorted: those of one Service stand together.
    pub rules: Box<[IngressRule]>,
    /// `status.loadBalancer.ingress`: each an IP address or a host name, in their order.
    pub addresses: Box<[Box<str>]>,
    /// What the edge left out since its value cannot be, one sentence each.
    pub left_out: Box<[Box<str>]>,
}

/// Where one host leads to. Derived `Ord`: by the Service first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IngressRule {
    /// The Service, and its port.
    pub backend: Backend,
    /// The host, which may be a wildcard; none: all that no other rule has.
    pub host: Option<Box<str>>,
    /// Whether `spec.tls` covers the host.
    pub tls: bool,
}

/// A Service that traffic is routed to, in the namespace of the route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Its name.
    pub service: Box<str>,
    /// Which of its ports.
    pub port: BackendPort,
}

/// How a route names a port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BackendPort {
    /// By its name.
    Name(Box<str>),
    /// By its number.
    Number(u16),
}

/// A `gateway.networking.k8s.io/v1` HTTPRoute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpRoute {
    /// `spec.hostnames`; none: those of the listeners.
    pub hostnames: Box<[Box<str>]>,
    /// The Gateways that accept it: of `spec.parentRefs` those with the condition `Accepted` in
    /// `status.parents`.
    pub parents: Box<[Parent]>,
    /// Where its rules lead, each once, sorted.
    pub backends: Box<[Backend]>,
    /// What the edge left out, as in [`Ingress::left_out`].
    pub left_out: Box<[Box<str>]>,
}

/// A Gateway that accepts a route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Parent {
    /// Which.
    pub gateway: ObjectKey,
    /// Only the listener of this name.
    pub section: Option<Box<str>>,
    /// Only listeners at this port.
    pub port: Option<u16>,
}

/// A `gateway.networking.k8s.io/v1` Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gateway {
    /// Its listeners that HTTPRoutes attach to.
    pub listeners: Box<[Listener]>,
    /// `status.addresses`: each an IP address or a host name, in their order.
    pub addresses: Box<[Box<str>]>,
    /// What the edge left out, as in [`Ingress::left_out`].
    pub left_out: Box<[Box<str>]>,
}

/// One of a Gateway's `spec.listeners`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Its name.
    pub name: Box<str>,
    /// The host names that it takes, a wildcard or one; none: all.
    pub hostname: Option<Box<str>>,
    /// The port it listens at.
    pub port: u16,
    /// Whether it speaks HTTPS.
    pub tls: bool,
    /// Whether it takes routes of the Gateway's namespace only. A selector of namespaces is left to
    /// the condition `Accepted`.
    pub same_namespace: bool,
    /// Whether its status says that no route is attached to it.
    pub is_idle: bool,
}

/// One way by which a port of a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route<'a> {
    /// The port of the Service.
    pub backend: &'a BackendPort,
    /// The host, which may be a wildcard; none: any.
    pub host: Option<&'a str>,
    /// The addresses of what takes the traffic.
    pub addresses: &'a [Box<str>],
    /// The port there.
    pub port: u16,
    /// Whether it is reached by HTTPS.
    pub tls: bool,
}

/// The port of an Ingress at which hosts without TLS are reached.
pub const HTTP: u16 = 80;
/// The port of an Ingress at which hosts with TLS are reached.
pub const HTTPS: u16 = 443;

/// What a wildcard host begins with.
const WILDCARD: &str = "*.";

/// Whether the host stands for many.
pub fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

/// The hosts that both mean, by the Gateway API: a wildcard has all names that end with the rest of
/// it. None in place of a host is all; `None` if there is no such host.
pub fn intersection<'a>(one: Option<&'a str>, other: Option<&'a str>) -> Option<Option<&'a str>> {
    let (Some(one), Some(other)) = (one, other) else { return Some(one.or(other)) };
    let covers = |wide: &str, narrow: &str| {
        let rest = wide.strip_prefix(WILDCARD);
        rest.is_some_and(|rest| narrow.strip_suffix(rest).is_some_and(|it| it.ends_with('.')))
    };
    if one == other || covers(other, one) {
        Some(Some(one))
    } else {
        covers(one, other).then_some(Some(other))
    }
}

// === impl Ingress ===

impl Ingress {
    /// The rules that lead to the Service of this name.
    pub fn rules_of(&self, service: &str) -> &[IngressRule] {
        let first = self.rules.partition_point(|rule| *rule.backend.service < *service);
        let after = self.rules.partition_point(|rule| *rule.backend.service <= *service);
        &self.rules[first..after]
    }

    /// The Services of its rules, in their order.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|rule| &*rule.backend.service)
    }

    /// The hosts of its rules.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().filter_map(|rule| rule.host.as_deref())
    }
}

// === impl HttpRoute ===

impl HttpRoute {
    /// The Services that it leads to, in their order.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.backends.iter().map(|backend| &*backend.service)
    }

    /// The ports of the Service of this name that it leads to.
    pub fn backends_of(&self, service: &str) -> &[Backend] {
        let first = self.backends.partition_point(|it| *it.service < *service);
        let after = self.backends.partition_point(|it| *it.service <= *service);
        &self.backends[first..after]
    }
}

// === impl Gateway ===

impl Gateway {
    /// The listeners to which a route of `namespace` that the Gateway accepts is attached by this parent,
    /// and the host of each that both have. One that says that no route is attached to it has another
    /// selector, unless all say so: that comes before or after the route's own status.
    pub fn attached<'a>(
        &'a self,
        namespace: &'a str,
        parent: &'a Parent,
        hostnames: &'a [Box<str>],
    ) -> impl Iterator<Item = (&'a Listener, Option<&'a str>)> {
        let takes = move |it: &&Listener| {
            parent.section.as_ref().is_none_or(|section| *section == it.name)
                && parent.port.is_none_or(|port| port == it.port)
                && (!it.same_namespace || *namespace == *parent.gateway.namespace)
        };
        let all = hostnames.is_empty().then_some(None);
        let both = move |listener: &'a Listener| {
            let wanted = hostnames.iter().map(|host| Some(&**host)).chain(all);
            let both = move |host| intersection(host, listener.hostname.as_deref());
            wanted.filter_map(both).map(move |host| (listener, host))
        };
        let taking = move || self.listeners.iter().filter(takes).flat_map(both);
        let all_idle = taking().all(|(listener, _)| listener.is_idle);
        taking().filter(move |(listener, _)| all_idle || !listener.is_idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_a_route_and_a_listener_are_those_that_both_mean() {
        for (route, listener, expected) in [
            ("", "", Some("")),
            ("a.example", "", Some("a.example")),
            ("", "a.example", Some("a.example")),
            ("", "*.example", Some("*.example")),
            ("a.example", "a.example", Some("a.example")),
            ("a.example", "b.example", None),
            ("a.example", "*.example", Some("a.example")),
            ("a.b.example", "*.example", Some("a.b.example")),
            ("*.example", "a.example", Some("a.example")),
            ("*.b.example", "*.example", Some("*.b.example")),
            ("*.example", "*.b.example", Some("*.b.example")),
            ("example", "*.example", None),
            ("aexample", "*.example", None),
        ] {
            let host = |text: &'static str| (!text.is_empty()).then_some(text);
            let found = intersection(host(route), host(listener));
            assert_eq!(found, expected.map(host), "{route:?} and {listener:?}");
        }
    }

    #[test]
    fn an_idle_listener_counts_while_all_that_take_the_route_are() {
        let listener = |name: &str, hostname: &str, is_idle| Listener {
            name: name.into(),
            hostname: Some(hostname.into()),
            port: 80,
            tls: false,
            same_namespace: false,
            is_idle,
        };
        let of = |section: Option<&str>, one_idle, other_idle| {
            let listeners = [
                listener("one", "*.example", one_idle),
                listener("other", "*.example", other_idle),
                listener("busy elsewhere", "*.org", false),
            ];
            let gateway = Gateway { listeners: listeners.into(), ..Gateway::default() };
            let key = ObjectKey::new("infra", "gate");
            let parent = Parent { gateway: key, section: section.map(Into::into), port: None };
            let hosts = ["a.example".into()];
            let found = gateway.attached("ns", &parent, &hosts);
            found.map(|(listener, _)| listener.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(None, false, false), ["one", "other"]);
        assert_eq!(of(None, false, true), ["one"]);
        assert_eq!(of(None, true, true), ["one", "other"], "the route is accepted");
        assert_eq!(of(Some("other"), false, true), ["other"]);
    }

    #[test]
    fn the_rules_of_a_service_stand_together() {
        let rule = |service: &str, host: &str| IngressRule {
            backend: Backend { service: service.into(), port: BackendPort::Number(80) },
            host: Some(host.into()),
            tls: false,
        };
        let rules = [rule("a", "1"), rule("b", "1"), rule("b", "2"), rule("ba", "1")];
        let ingress = Ingress { rules: rules.into(), ..Ingress::default() };
        let hosts = |service| ingress.rules_of(service).len();
        assert_eq!(["", "a", "b", "ba", "c"].map(hosts), [0, 1, 2, 1, 0]);
    }
}
