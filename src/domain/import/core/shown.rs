//! What the state is for people: problems, counts, and what each Service has.

use std::net::IpAddr;

use super::Importer;
use super::report::Summary;
use crate::domain::import::layout::Slice;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::Problem;

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
