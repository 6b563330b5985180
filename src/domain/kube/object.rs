//! The parts of Kubernetes objects that can change a registration.
//!
//! The edge projects each object to one of these and lets the full object go. An object that is
//! equal to the one before changes nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::domain::kube::route::{Gateway, HttpRoute, Ingress};
use crate::domain::words::words;

/// A `v1` Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `metadata.uid`: tells a Service from a later one of the same name.
    pub uid: Arc<str>,
    /// `metadata.creationTimestamp`, seconds since 1970 (0 when absent).
    pub created: i64,
    /// `metadata.labels`.
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// `metadata.annotations`, only those of [`is_read_annotation`].
    pub annotations: BTreeMap<Box<str>, Box<str>>,
    /// `spec.type`.
    pub kind: ServiceType,
    /// `spec.clusterIPs` (or `clusterIP`) in their order; empty when headless.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs`, in their order.
    pub external_ips: Vec<IpAddr>,
    /// `spec.externalName`, of the type that has one.
    pub external_name: Option<Box<str>>,
    /// `status.loadBalancer.ingress`: each an IP address or a host name, in their order.
    pub load_balancer: Box<[Box<str>]>,
    /// `spec.ports`, in their order: the first is the primary one.
    pub ports: Vec<ServicePort>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.externalTrafficPolicy` is `Local`.
    pub external_traffic_local: bool,
    /// Whether its namespace matches `--namespace-selector`. Noted by the cluster cache: the edge says
    /// that it does, and that is so without such a selector.
    pub namespace_selected: bool,
    /// What the edge left out since its value cannot be, one sentence each: a port 0, an address
    /// that does not parse. The rest of the object is as if it were not there.
    pub left_out: Box<[Box<str>]>,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceType {
    /// `ClusterIP`, headless ones too.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`.
    ExternalName,
}

words!(ServiceType {
    "ClusterIP" => ClusterIp,
    "NodePort" => NodePort,
    "LoadBalancer" => LoadBalancer,
    "ExternalName" => ExternalName,
});

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; only the single port of a Service may have none.
    pub name: Option<Box<str>>,
    /// The port number of the Service.
    pub port: u16,
    /// The port number on each node, of node-port and load-balancer Services.
    pub node_port: Option<u16>,
    /// `protocol`.
    pub protocol: Protocol,
}

/// What a port speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// `TCP`, the API's default.
    #[default]
    Tcp,
    /// `UDP`.
    Udp,
    /// `SCTP`.
    Sctp,
}

/// A `discovery.k8s.io/v1` EndpointSlice (or the equal part of an `Endpoints` object).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service it belongs to: label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: Box<str>,
    /// Its ports. One without a number means "all ports" by the API; kube-proxy does not route to
    /// it, and the edge leaves it out.
    pub ports: Box<[EndpointPort]>,
    /// Its endpoints, in their order.
    pub endpoints: Box<[Endpoint]>,
    /// What the edge left out since its value cannot be, as in [`Service::left_out`].
    pub left_out: Box<[Box<str>]>,
}

/// One of an EndpointSlice's `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// The Service port's name; empty for the unnamed port.
    pub name: Box<str>,
    /// The number on the pod.
    pub port: u16,
    /// `protocol`.
    pub protocol: Protocol,
}

/// One of an EndpointSlice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address. The API allows several but asks clients to use the first only. An address
    /// of a slice of type FQDN does not parse and is left out by the edge.
    pub address: IpAddr,
    /// `conditions.ready`; absent means ready, by the API's guidance.
    pub ready: bool,
    /// Not ready, but `conditions.serving` and `conditions.terminating`: kube-proxy sends traffic
    /// there while no endpoint is ready.
    pub draining: bool,
    /// `targetRef.name` where `targetRef.kind` is `Pod`.
    pub pod: Option<Box<str>>,
    /// `hostname`: that of a `StatefulSet`'s pod is its name.
    pub hostname: Option<Box<str>>,
    /// `nodeName`. Shared: many endpoints name the same node.
    pub node: Option<Arc<str>>,
    /// `zone`. Shared, as the node.
    pub zone: Option<Arc<str>>,
}

/// A `v1` Node. Of what a kubelet reports every few minutes, only this matters: a heartbeat leaves
/// it equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Of each type and family the first of `status.addresses`, in their order.
    pub addresses: Vec<(NodeAddressType, IpAddr)>,
    /// Whether its condition `Ready` is `True`.
    pub ready: bool,
    /// Whether it has the label `node.kubernetes.io/exclude-from-external-load-balancers`.
    pub excluded: bool,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Box<str>>,
    /// What the edge left out since its value cannot be, as in [`Service::left_out`].
    pub left_out: Box<[Box<str>]>,
}

/// A `v1` Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.labels`.
    pub labels: BTreeMap<Box<str>, Box<str>>,
}

/// `type` of one of a Node's `status.addresses`, as far as ports are reached there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAddressType {
    /// `ExternalIP`.
    External,
    /// `InternalIP`.
    Internal,
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice, or `v1` Endpoints on an API server without them.
    EndpointSlice,
    /// `v1` Node: watched only while a Service uses node ports. Its key has no namespace.
    Node,
    /// `v1` Namespace: watched only for `--namespace-selector`. Its key has no namespace.
    Namespace,
    /// `v1` Pod: watched by the daemon of its node only.
    Pod,
    /// `networking.k8s.io/v1` Ingress: watched only with `--ingress`.
    Ingress,
    /// `gateway.networking.k8s.io/v1` HTTPRoute: watched only with `--gateway`.
    HttpRoute,
    /// `gateway.networking.k8s.io/v1` Gateway: likewise.
    Gateway,
}

/// The kind of the object that a problem is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A Service.
    Service,
    /// An EndpointSlice.
    EndpointSlice,
    /// A Namespace, for its node in the catalog.
    Namespace,
    /// A Node.
    Node,
    /// A Pod.
    Pod,
    /// An Ingress.
    Ingress,
    /// An HTTPRoute.
    HttpRoute,
    /// A Gateway.
    Gateway,
}

/// What one watch says, in the order of the API's protocol: a list (`ListStarted`, each object
/// as `Seen`, `ListCompleted`), then changes. A list that breaks off is started again without
/// having been completed; what it had shown is then no evidence of absence.
///
/// `T` is an object with its identity: [`SeenObject`] for what makes a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent<T = SeenObject> {
    /// A list begins.
    ListStarted(Kind),
    /// An object as it is now, from a list or a change.
    Seen(T),
    /// The list is complete and was a quorum read: what it did not show does not exist.
    ListCompleted(Kind),
    /// The API server said that the object was deleted.
    Deleted(Kind, super::names::ObjectKey),
}

/// An object with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SeenObject {
    /// A Service.
    Service(super::names::ObjectKey, Service),
    /// A slice, under its own name (not the Service's).
    EndpointSlice(super::names::ObjectKey, EndpointSlice),
    /// A node.
    Node(super::names::ObjectKey, Node),
    /// An Ingress.
    Ingress(super::names::ObjectKey, Ingress),
    /// An HTTPRoute.
    HttpRoute(super::names::ObjectKey, HttpRoute),
    /// A Gateway.
    Gateway(super::names::ObjectKey, Gateway),
    /// A namespace.
    Namespace(super::names::ObjectKey, Namespace),
    /// An object of this kind that could not be read, and why. It exists: what was known of it
    /// stays.
    Undecodable(Kind, super::names::ObjectKey, String),
}

/// Prefixes of the annotations that are read, in the order of their precedence.
pub const ANNOTATION_PREFIXES: [&str; 2] = ["kube-consul.io/", "consul.hashicorp.com/"];

/// Names the Consul service whose instances are the endpoints of the Service that has it (`import`).
pub const IMPORT_ANNOTATION: &str = "kube-consul.io/import";

/// What the annotations of consul8s begin with, but for [`DOMAIN_NAME`].
pub const CONSUL8S_PREFIX: &str = "consul8s/service.";
/// The annotation of consul8s that names where a Service is reached.
pub const DOMAIN_NAME: &str = "domainName";

/// Whether the annotation may change a registration; the edge drops all others.
pub fn is_read_annotation(key: &str) -> bool {
    ANNOTATION_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        || key.starts_with(CONSUL8S_PREFIX)
        || key == DOMAIN_NAME
}

impl Service {
    /// Whether it has no address of its own.
    pub fn is_headless(&self) -> bool {
        self.cluster_ips.is_empty()
    }
}

impl Protocol {
    /// The word by which the API knows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        }
    }

    /// The tag under which Consul's DNS finds such a port: `_<name>._udp`. None for TCP, of which
    /// it ignores the tag.
    pub fn tag(self) -> Option<&'static str> {
        match self {
            Protocol::Tcp => None,
            Protocol::Udp => Some("udp"),
            Protocol::Sctp => Some("sctp"),
        }
    }
}

impl Kind {
    /// The name by which users know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::Namespace => "Namespace",
            Kind::Pod => "Pod",
            Kind::Ingress => "Ingress",
            Kind::HttpRoute => "HTTPRoute",
            Kind::Gateway => "Gateway",
        }
    }
}

impl Subject {
    /// Its name, as Kubernetes writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Subject::Service => "Service",
            Subject::EndpointSlice => "EndpointSlice",
            Subject::Namespace => "Namespace",
            Subject::Node => "Node",
            Subject::Pod => "Pod",
            Subject::Ingress => "Ingress",
            Subject::HttpRoute => "HTTPRoute",
            Subject::Gateway => "Gateway",
        }
    }
}

impl From<Kind> for Subject {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Service => Subject::Service,
            Kind::EndpointSlice => Subject::EndpointSlice,
            Kind::Node => Subject::Node,
            Kind::Namespace => Subject::Namespace,
            Kind::Pod => Subject::Pod,
            Kind::Ingress => Subject::Ingress,
            Kind::HttpRoute => Subject::HttpRoute,
            Kind::Gateway => Subject::Gateway,
        }
    }
}

impl SeenObject {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            SeenObject::Service(..) => Kind::Service,
            SeenObject::EndpointSlice(..) => Kind::EndpointSlice,
            SeenObject::Node(..) => Kind::Node,
            SeenObject::Ingress(..) => Kind::Ingress,
            SeenObject::HttpRoute(..) => Kind::HttpRoute,
            SeenObject::Gateway(..) => Kind::Gateway,
            SeenObject::Namespace(..) => Kind::Namespace,
            SeenObject::Undecodable(kind, ..) => *kind,
        }
    }

    /// Its namespace (empty where there is none) and name.
    pub fn key(&self) -> &super::names::ObjectKey {
        match self {
            SeenObject::Service(key, _)
            | SeenObject::EndpointSlice(key, _)
            | SeenObject::Node(key, _)
            | SeenObject::Namespace(key, _)
            | SeenObject::Ingress(key, _)
            | SeenObject::HttpRoute(key, _)
            | SeenObject::Gateway(key, _)
            | SeenObject::Undecodable(_, key, _) => key,
        }
    }
}
