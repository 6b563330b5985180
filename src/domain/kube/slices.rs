//! The EndpointSlices of the cluster cache.

use std::collections::BTreeSet;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::EndpointSlice;
use crate::domain::kube::packed::PackedSlice;
use crate::domain::kube::store::{Listed, Listing};
use crate::domain::map::HashMap;

/// EndpointSlices by their Service (which may not exist, or not yet), sorted by their own keys.
#[derive(Debug, Default)]
pub(super) struct Slices {
    /// Lists: most Services have one slice, for which the node of a B-tree has ten times the size.
    pub(super) of_service: HashMap<ObjectKey, Vec<NamedSlice>>,
    /// The Service of each slice.
    pub(super) service_of: HashMap<ObjectKey, ObjectKey>,
    pub(super) listing: Listing,
}

pub(super) type NamedSlice = (ObjectKey, Listed<PackedSlice>);

// === impl Slices ===

impl Slices {
    /// Whether there is a slice of this key.
    pub(super) fn is_known(&self, key: &ObjectKey) -> bool {
        self.service_of.contains_key(key)
    }

    /// The Services with endpoints on this node.
    pub(super) fn services_on(&self, node: &str) -> impl Iterator<Item = &ObjectKey> {
        let on_it = move |(_, slice): &NamedSlice| slice.object.names(node);
        let all = self.of_service.iter().filter(move |(_, slices)| slices.iter().any(on_it));
        all.map(|(service, _)| service)
    }

    /// A list is complete: returns the slices that it did not show.
    pub(super) fn list_completed(&mut self) -> Vec<ObjectKey> {
        let slices = self.of_service.values().flatten();
        self.listing.complete(slices.map(|(key, slice)| (key, slice.list)))
    }

    /// Takes a slice of `service`. Returns the Services that change by it.
    pub(super) fn seen(
        &mut self,
        key: ObjectKey,
        service: ObjectKey,
        slice: &EndpointSlice,
    ) -> BTreeSet<ObjectKey> {
        let mut changed = BTreeSet::new();
        let was_undecodable = self.listing.decoded(&key);
        if let Some(before) = self.service_of.get(&key).filter(|before| **before != service) {
            changed.insert(before.clone());
            self.remove(&key);
        }
        let slice = Listed { object: PackedSlice::new(slice), list: self.listing.current() };
        let slices = self.of_service.entry(service.clone()).or_default();
        let differs = match place(slices, &key) {
            Ok(place) => {
                let before = std::mem::replace(&mut slices[place].1, slice);
                before.object != slices[place].1.object
            }
            Err(place) => {
                self.service_of.insert(key.clone(), service.clone());
                slices.reserve_exact(1);
                slices.insert(place, (key, slice));
                true
            }
        };
        if differs || was_undecodable {
            changed.insert(service);
        }
        changed
    }

    /// One that cannot be read: what was known of it stays.
    pub(super) fn undecodable(&mut self, key: ObjectKey, reason: String) {
        let list = self.listing.current();
        if let Some(service) = self.service_of.get(&key)
            && let Some(slices) = self.of_service.get_mut(service)
            && let Ok(place) = place(slices, &key)
        {
            slices[place].1.list = list;
        }
        self.listing.undecodable(key, reason);
    }

    /// Forgets a slice.
    pub(super) fn remove(&mut self, key: &ObjectKey) {
        self.listing.decoded(key);
        let Some(service) = self.service_of.remove(key) else { return };
        let Some(slices) = self.of_service.get_mut(&service) else { return };
        if let Ok(place) = place(slices, key) {
            slices.remove(place);
        }
        if slices.is_empty() {
            self.of_service.remove(&service);
        }
    }
}

/// Where the slice is in a sorted list, or has to go.
fn place(slices: &[NamedSlice], key: &ObjectKey) -> Result<usize, usize> {
    slices.binary_search_by(|(other, _)| other.cmp(key))
}
