//! The parts of Kubernetes objects that an import reads.

use std::sync::Arc;

use crate::domain::import::layout::{ServicePort, Slice};
use crate::domain::import::source::Pairs;
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
    /// Whether `spec.selector` is set: then the cluster itself makes the endpoints.
    pub has_selector: bool,
    /// Whether `spec.type` is `ExternalName`, which has no endpoints.
    pub is_external_name: bool,
    /// Whether it has a deletion timestamp.
    pub is_going: bool,
}

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
    /// What is in it.
    pub slice: Slice,
    /// Whether it is exactly as we write it: one address an endpoint, no condition that we do not
    /// set. If not, it is written again.
    pub is_canonical: bool,
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
