//! What people want to know of the state.

use std::net::IpAddr;

use super::Importer;
use crate::domain::import::layout::Slice;
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

// === impl Importer ===

impl Importer {
    /// All problems, by Service.
    pub fn problems(&self) -> impl Iterator<Item = (&ObjectKey, &Problem)> {
        self.problems.iter().flat_map(|(key, all)| all.iter().map(move |it| (key, it)))
    }

    /// The problems of one Service.
    pub fn problems_of(&self, key: &ObjectKey) -> impl Iterator<Item = &Problem> {
        self.problems.get(key).into_iter().flatten()
    }

    /// How many Services ask for an import.
    pub fn imported_count(&self) -> usize {
        self.states.len()
    }

    /// How many Services ask to be registered, by the label of consul8s: they are the bridge's.
    pub fn exported_count(&self) -> usize {
        self.exported.len()
    }

    /// The endpoints in our slices of a Service: address, port, and whether each is ready.
    pub fn endpoints_of(&self, key: &ObjectKey) -> impl Iterator<Item = (IpAddr, u16, bool)> {
        self.named_slices(key).flat_map(|(_, owned)| {
            let port = owned.slice.ports.first().map_or(0, |it| it.port);
            owned.slice.endpoints.iter().map(move |(address, ready)| (*address, port, *ready))
        })
    }

    /// The Services that ask for an import, those after `after`, with what they have.
    pub fn summaries(
        &self,
        after: Option<&ObjectKey>,
    ) -> impl Iterator<Item = (&ObjectKey, Summary)> {
        let after = after.cloned();
        self.states
            .iter()
            .filter(move |(key, _)| after.as_ref().is_none_or(|after| *key > after))
            .map(|(key, state)| {
                let slices = self.own_slices(key);
                let ready = |slice: &Slice| slice.endpoints.values().filter(|it| **it).count();
                let summary = Summary {
                    sources: state.sources.clone(),
                    endpoints: slices.values().map(|slice| slice.endpoints.len()).sum(),
                    ready: slices.values().map(ready).sum(),
                    slices: slices.len(),
                };
                (key, summary)
            })
    }
}
