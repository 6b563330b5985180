//! HTTPRoutes and Gateways of the Gateway API.
//!
//! Of the Gateway API only v1 is read, by own types. A crate with all of it exists; it would decode
//! each object whole (filters, matches, conditions) to have most of it dropped, and ties the version
//! of the API's types to that of the client library.

use std::collections::{BTreeSet, HashSet};

use serde::Deserialize;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, SeenObject};
use crate::domain::kube::route::{Backend, BackendPort, Gateway, HttpRoute, Listener, Parent};
use crate::domain::text::one_line;
use crate::kubernetes::routes::kept::{Kept, is_host, parts, usable};
use crate::kubernetes::slim::{Content, Identity, LeftOut, QUOTED_BYTES, Watched, port_number};
use crate::kubernetes::wire::Text;

/// Listeners of a Gateway: the API allows 64.
const MAX_LISTENERS: usize = 64;
/// Host names of an HTTPRoute: the API allows 16.
const MAX_HOSTNAMES: usize = 16;
/// Parents of an HTTPRoute: the API allows 32.
const MAX_PARENTS: usize = 32;

/// `gateway.networking.k8s.io/v1` HTTPRoutes.
#[derive(Clone, Copy, Debug)]
pub struct HttpRoutes;

/// `gateway.networking.k8s.io/v1` Gateways. Those of all namespaces, since a route may be attached
/// to another one's.
#[derive(Clone, Copy, Debug)]
pub struct Gateways;

pub(super) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
const GATEWAY_RBAC: &str = "manifests/optional/gateway-rbac.yaml";

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpRouteSpec<'a> {
    #[serde(borrow)]
    parent_refs: Option<Vec<ParentRef<'a>>>,
    #[serde(borrow)]
    hostnames: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    rules: Option<Vec<HttpRouteRule<'a>>>,
}

#[derive(Default, Deserialize)]
struct HttpRouteStatus<'a> {
    #[serde(borrow)]
    parents: Option<Vec<ParentStatus<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParentStatus<'a> {
    #[serde(borrow)]
    parent_ref: ParentRef<'a>,
    #[serde(borrow)]
    conditions: Option<Vec<Condition<'a>>>,
}

#[derive(Deserialize)]
struct Condition<'a> {
    #[serde(borrow)]
    r#type: Text<'a>,
    #[serde(borrow)]
    status: Text<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParentRef<'a> {
    #[serde(borrow)]
    group: Option<Text<'a>>,
    #[serde(borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    namespace: Option<Text<'a>>,
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    section_name: Option<Text<'a>>,
    port: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct HttpRouteRule<'a> {
    #[serde(borrow)]
    backend_refs: Option<Vec<BackendRef<'a>>>,
}

#[derive(Deserialize)]
struct BackendRef<'a> {
    #[serde(borrow)]
    group: Option<Text<'a>>,
    #[serde(borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    namespace: Option<Text<'a>>,
    #[serde(borrow)]
    name: Text<'a>,
    port: Option<i64>,
    weight: Option<i64>,
}

#[derive(Default, Deserialize)]
struct GatewaySpec<'a> {
    #[serde(borrow)]
    listeners: Option<Vec<WireListener<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireListener<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    hostname: Option<Text<'a>>,
    port: i64,
    #[serde(borrow)]
    protocol: Text<'a>,
    #[serde(borrow)]
    allowed_routes: Option<AllowedRoutes<'a>>,
}

#[derive(Deserialize)]
struct AllowedRoutes<'a> {
    #[serde(borrow)]
    namespaces: Option<RouteNamespaces<'a>>,
}

#[derive(Deserialize)]
struct RouteNamespaces<'a> {
    #[serde(borrow)]
    from: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
struct GatewayStatus<'a> {
    #[serde(borrow)]
    addresses: Option<Vec<GatewayAddress<'a>>>,
    #[serde(borrow)]
    listeners: Option<Vec<ListenerStatus<'a>>>,
}

#[derive(Deserialize)]
struct GatewayAddress<'a> {
    #[serde(borrow)]
    r#type: Option<Text<'a>>,
    #[serde(borrow)]
    value: Text<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListenerStatus<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    attached_routes: Option<i64>,
}

// === impl Watched ===

impl Watched for HttpRoutes {
    type Object = HttpRoute;
    type Seen = SeenObject;
    const KIND: Kind = Kind::HttpRoute;
    const GROUP: &'static str = GATEWAY_GROUP;
    const NAME: &'static str = "HTTPRoute";
    const PLURAL: &'static str = "httproutes";
    const GRANTED_BY: &'static str = GATEWAY_RBAC;
    const MAY_BE_ABSENT: bool = true;

    fn decode(json: &str) -> Result<(Identity, Content<HttpRoute>), serde_json::Error> {
        let (identity, spec, status) = parts::<HttpRouteSpec<'_>, HttpRouteStatus<'_>>(json)?;
        let namespace = &*identity.key.namespace;
        let mut left_out = LeftOut::default();
        let accepted = status.accepted(namespace);
        let asked = spec.parent_refs.unwrap_or_default().into_iter();
        let asked = asked.filter_map(|it| it.parent(namespace)).take(MAX_PARENTS);
        let parents: BTreeSet<Parent> = asked.filter(|it| accepted.contains(it)).collect();
        let hostnames = hostnames(spec.hostnames.unwrap_or_default(), &mut left_out);
        let backends = backends(spec.rules.unwrap_or_default(), namespace, &mut left_out);
        let route = HttpRoute {
            hostnames,
            parents: parents.into_iter().collect(),
            backends,
            left_out: left_out.into_box(),
        };
        Ok((identity, Content::Object(route)))
    }

    fn seen(key: ObjectKey, object: HttpRoute) -> SeenObject {
        SeenObject::HttpRoute(key, object)
    }
}

impl Watched for Gateways {
    type Object = Gateway;
    type Seen = SeenObject;
    const KIND: Kind = Kind::Gateway;
    const GROUP: &'static str = GATEWAY_GROUP;
    const NAME: &'static str = "Gateway";
    const PLURAL: &'static str = "gateways";
    const OF_ALL_NAMESPACES: bool = true;
    const GRANTED_BY: &'static str = GATEWAY_RBAC;
    const MAY_BE_ABSENT: bool = true;

    fn decode(json: &str) -> Result<(Identity, Content<Gateway>), serde_json::Error> {
        let (identity, spec, status) = parts::<GatewaySpec<'_>, GatewayStatus<'_>>(json)?;
        let mut left_out = LeftOut::default();
        let idle = status.listeners.unwrap_or_default();
        let idle = idle.into_iter().filter(|it| it.attached_routes == Some(0)).map(|it| it.name.0);
        let idle: HashSet<_> = idle.collect();
        let listeners = spec.listeners.unwrap_or_default();
        let listeners = listeners.into_iter().take(MAX_LISTENERS).map(|it| {
            let is_idle = idle.contains(&it.name.0);
            (it, is_idle)
        });
        // Other types of addresses are an implementation's own.
        let of_type = |it: GatewayAddress<'_>| match it.r#type.as_ref().map(|it| &*it.0) {
            None | Some("IPAddress" | "Hostname") => Some(it.value.into_box()),
            Some(_) => None,
        };
        let addresses = status.addresses.unwrap_or_default().into_iter().filter_map(of_type);
        let gateway = Gateway {
            listeners: listeners
                .filter_map(|(it, is_idle)| it.listener(is_idle, &mut left_out))
                .collect(),
            addresses: usable(addresses, "status.addresses", &mut left_out),
            left_out: left_out.into_box(),
        };
        Ok((identity, Content::Object(gateway)))
    }

    fn seen(key: ObjectKey, object: Gateway) -> SeenObject {
        SeenObject::Gateway(key, object)
    }
}

// === impl ParentRef ===

impl ParentRef<'_> {
    /// The Gateway that is meant, by a route of this namespace.
    fn parent(self, namespace: &str) -> Option<Parent> {
        let is = |text: Option<Text<'_>>, expected| text.is_none_or(|text| text.0 == expected);
        if !is(self.group, GATEWAY_GROUP) || !is(self.kind, Gateways::NAME) {
            return None;
        }
        let namespace = self.namespace.map_or_else(|| namespace.into(), Text::into_box);
        Some(Parent {
            gateway: ObjectKey::new(namespace, self.name.into_box()),
            section: self.section_name.map(Text::into_box),
            port: self.port.and_then(port_number),
        })
    }
}

// === impl HttpRouteStatus ===

impl HttpRouteStatus<'_> {
    /// The parents that accept the route.
    fn accepted(self, namespace: &str) -> BTreeSet<Parent> {
        let is_accepted = |it: &ParentStatus<'_>| {
            let mut conditions = it.conditions.iter().flatten();
            conditions.any(|it| it.r#type.0 == "Accepted" && it.status.0 == "True")
        };
        let parents = self.parents.unwrap_or_default().into_iter().filter(is_accepted);
        parents.filter_map(|it| it.parent_ref.parent(namespace)).collect()
    }
}

fn hostnames(texts: Vec<Text<'_>>, left_out: &mut LeftOut) -> Box<[Box<str>]> {
    let hosts = texts.into_iter().take(MAX_HOSTNAMES).enumerate();
    hosts
        .filter_map(|(index, host)| {
            if is_host(&host.0) {
                return Some(host.into_box());
            }
            left_out.host(|| format!("spec.hostnames[{index}]"), &host.0);
            None
        })
        .collect()
}

/// The Services of the route's own namespace that take its traffic.
fn backends(
    rules: Vec<HttpRouteRule<'_>>,
    namespace: &str,
    left_out: &mut LeftOut,
) -> Box<[Backend]> {
    let mut kept = Kept::default();
    for backend in rules.into_iter().flat_map(|rule| rule.backend_refs.unwrap_or_default()) {
        let is_service = backend.group.is_none_or(|it| it.0.is_empty())
            && backend.kind.is_none_or(|it| it.0 == "Service");
        if !is_service || backend.weight == Some(0) {
            continue;
        }
        if let Some(other) = backend.namespace.filter(|it| it.0 != namespace) {
            left_out.tell(|| {
                let (other, name) =
                    (one_line(&other.0, QUOTED_BYTES), one_line(&backend.name.0, QUOTED_BYTES));
                format!(
                    "spec.rules: the backend {other}/{name} is in another namespace, where no \
                     Service is registered by this route (ReferenceGrants are not read)"
                )
            });
            continue;
        }
        let Some(port) = backend.port.and_then(port_number) else { continue };
        let service = backend.name.into_box();
        kept.add(Backend { service, port: BackendPort::Number(port) });
    }
    kept.into_box("backends in spec.rules", left_out)
}

// === impl WireListener ===

impl WireListener<'_> {
    /// One that HTTPRoutes attach to.
    fn listener(self, is_idle: bool, left_out: &mut LeftOut) -> Option<Listener> {
        let tls = match &*self.protocol.0 {
            "HTTP" => false,
            "HTTPS" => true,
            _ => return None,
        };
        let hostname = self.hostname.filter(|it| !it.0.is_empty());
        if let Some(host) = hostname.as_ref().filter(|host| !is_host(&host.0)) {
            left_out.host(|| "the hostname of one of spec.listeners".to_owned(), &host.0);
            return None;
        }
        let from = self.allowed_routes.and_then(|it| it.namespaces?.from);
        Some(Listener {
            name: self.name.into_box(),
            hostname: hostname.map(Text::into_box),
            port: port_number(self.port)?,
            tls,
            same_namespace: from.is_none_or(|from| from.0 == "Same"),
            is_idle,
        })
    }
}
