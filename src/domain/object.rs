//! The parts of Kubernetes objects that can change a registration.
//!
//! The edge projects each object to one of these and lets the full object go. An object that is
//! equal to the one before changes nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

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
    /// `status.loadBalancer.ingress`: each an IP address or a host name, in their order.
    pub load_balancer: Vec<Box<str>>,
    /// `spec.ports`, in their order: the first is the primary one.
    pub ports: Vec<ServicePort>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.externalTrafficPolicy` is `Local`.
    pub external_traffic_local: bool,
    /// What the edge left out since its value cannot be, one sentence each: a port 0, an address
    /// that does not parse. The rest of the object is as if it were not there.
    pub left_out: Box<[Box<str>]>,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// `ClusterIP`, headless ones too.
    ClusterIp,
    /// `NodePort`.
    NodePort,
    /// `LoadBalancer`.
    LoadBalancer,
    /// `ExternalName`: never registered.
    ExternalName,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Its name; only the single port of a Service may have none.
    pub name: Option<Box<str>>,
    /// The port number of the Service.
    pub port: u16,
    /// The port number on each node, of node-port and load-balancer Services.
    pub node_port: Option<u16>,
}

/// A `discovery.k8s.io/v1` EndpointSlice (or the equal part of an `Endpoints` object).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// The Service it belongs to: label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: Box<str>,
    /// Its ports. One without a number has `None` there: "all ports" by the API, not usable here.
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
    pub port: Option<u16>,
}

/// One of an EndpointSlice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The address. The API allows several but asks clients to use the first only. An address
    /// of a slice of type FQDN does not parse and is left out by the edge.
    pub address: IpAddr,
    /// `conditions.ready`; absent means ready, by the API's guidance.
    pub ready: bool,
    /// `targetRef.name` where `targetRef.kind` is `Pod`.
    pub pod: Option<Box<str>>,
    /// `nodeName`. Shared: many endpoints name the same node.
    pub node: Option<Arc<str>>,
    /// `zone`. Shared, as the node.
    pub zone: Option<Arc<str>>,
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice, or `v1` Endpoints on an API server without them.
    EndpointSlice,
    /// `v1` Namespace: not watched, but problems of its node in the catalog are told of it.
    Namespace,
}

/// What one watch says, in the order of the API's protocol: a list (`ListStarted`, each object
/// as `Seen`, `ListCompleted`), then changes. A list that breaks off is started again without
/// having been completed; what it had shown is then no evidence of absence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// A list begins.
    ListStarted(Kind),
    /// An object as it is now, from a list or a change.
    Seen(SeenObject),
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
    /// An object of this kind that could not be read, and why. It exists: what was known of it
    /// stays.
    Undecodable(Kind, super::names::ObjectKey, String),
}

/// Prefixes of the annotations that are read, in the order of their precedence.
pub const ANNOTATION_PREFIXES: [&str; 2] = ["kube-consul.io/", "consul.hashicorp.com/"];

/// Whether the annotation may change a registration; the edge drops all others.
pub fn is_read_annotation(key: &str) -> bool {
    ANNOTATION_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
}

impl Kind {
    /// The name by which users know it.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Namespace => "Namespace",
        }
    }
}
