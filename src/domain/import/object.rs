//! The parts of Kubernetes objects that an import reads.

use std::sync::Arc;

use crate::domain::import::layout::{ServicePort, Slice};
use crate::domain::import::source::{CREATED, OF_CONSUL_K8S, Pairs, TO_CONSUL};
use crate::domain::kube::names::ObjectKey;

/// The value of label `endpointslice.kubernetes.io/managed-by` on our slices.
pub const MANAGED_BY: &str = "import.kube-consul.io";

/// A `v1` Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.labels`, those that mark an import.
    pub labels: Pairs,
    /// `metadata.annotations`, those that ask for an import.
    pub annotations: Pairs,
    /// Name and protocol of each of `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.ports[0].port`.
    pub port: Option<u16>,
    /// Whether `spec.selector` is set: then the cluster itself makes the endpoints.
    pub has_selector: bool,
    /// How it is reached.
    pub form: Form,
    /// Whether it has a deletion timestamp.
    pub is_going: bool,
    /// Its version.
    pub version: Version,
}

/// How a Service is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// By a CNAME record to this name; it has no endpoints.
    ExternalName(Box<str>),
    /// By the addresses of its endpoints.
    Headless,
    /// By a cluster IP.
    ClusterIp,
}

/// `metadata.resourceVersion`. Two objects that differ in it only are equal: nothing that is used
/// of them changed.
#[derive(Clone, Debug, Default)]
pub struct Version(pub Box<str>);

/// A `discovery.k8s.io/v1` EndpointSlice of a Service that may be imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedSlice {
    /// Label `kubernetes.io/service-name`.
    pub service: Box<str>,
    /// Who manages it: label `endpointslice.kubernetes.io/managed-by`.
    pub managed_by: Box<str>,
    /// The uid of the Service in its owner references; empty without one.
    pub owner: Box<str>,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// Its version.
    pub version: Version,
    /// What is in it.
    pub slice: Slice,
    /// Whether it is exactly as we write it: one address an endpoint, no condition that we do not
    /// set. If not, it is written again.
    pub is_canonical: bool,
}

impl PartialEq for Version {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Version {}

impl Version {
    /// As a number, which grows with each change of any object (the API's documentation since
    /// 1.35); none where the server counts in another way.
    pub fn number(&self) -> Option<u64> {
        self.0.parse().ok()
    }
}

impl Service {
    /// Whether it was made here.
    pub fn is_created(&self) -> bool {
        self.has_label(CREATED)
    }

    /// Whether it asks the bridge to register it, in the dialect of consul8s.
    pub fn is_exported(&self) -> bool {
        self.has_label(TO_CONSUL)
    }

    /// Whether consul-k8s made it from a Consul service.
    pub fn is_of_consul_k8s(&self) -> bool {
        self.has_label(OF_CONSUL_K8S)
    }

    fn has_label(&self, (key, value): (&str, &str)) -> bool {
        self.labels.get(key).is_some_and(|found| **found == *value)
    }
}

impl OwnedSlice {
    /// Whether it is of an import: by its label, and by a Service that owns it. What somebody made by
    /// hand with that label is theirs.
    pub fn is_ours(&self) -> bool {
        &*self.managed_by == MANAGED_BY && !self.owner.is_empty()
    }
}

impl Seen {
    /// Namespace and name of the object.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Seen::Service(key, _)
            | Seen::Slice(key, _)
            | Seen::UndecodableService(key, _)
            | Seen::UndecodableSlice(key) => key,
        }
    }
}

/// An object with its identity, as a watch shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A Service.
    Service(ObjectKey, Service),
    /// An EndpointSlice, under its own name.
    Slice(ObjectKey, OwnedSlice),
    /// A Service that could not be read, and why.
    UndecodableService(ObjectKey, String),
    /// A slice that could not be read: what was known of it stays.
    UndecodableSlice(ObjectKey),
}
