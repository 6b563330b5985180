//! What people want to know of the state.

use crate::domain::import::source::Source;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::Problem;

/// Something that people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A Service's endpoints are as Consul has them.
    InSync {
        /// The Service.
        service: ObjectKey,
        /// How many endpoints are ready.
        ready: usize,
        /// How many there are.
        endpoints: usize,
    },
    /// A Service has a problem that it did not have before.
    Problem(ObjectKey, Problem),
    /// A Service no longer has this problem.
    Solved(ObjectKey, Problem),
    /// A Service was made for a Consul service.
    Created(ObjectKey, Box<str>),
    /// The Endpoints that consul8s had left for a Service were deleted.
    EndpointsDeleted(ObjectKey),
    /// A Service of consul-k8s was taken over.
    Adopted(ObjectKey, Box<str>),
    /// A Service was deleted, because its Consul service is gone.
    Deleted(ObjectKey, Box<str>),
}

/// What a Service has at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The Consul services that it asks for, in order of preference.
    pub sources: Vec<Source>,
    /// How many endpoints its slices have.
    pub endpoints: usize,
    /// How many of them are ready.
    pub ready: usize,
    /// How many slices there are.
    pub slices: usize,
}
