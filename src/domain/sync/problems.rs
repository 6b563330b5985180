//! The problems of all objects.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::problem::Problem;

/// The problems of all objects, by kind, namespace and name.
#[derive(Debug, Default)]
pub struct Problems(BTreeMap<(Kind, ObjectKey), BTreeSet<Problem>>);

// === impl Problems ===

impl Problems {
    /// Replaces the problems of one object. Returns those that are new and those that are gone.
    pub(super) fn set(
        &mut self,
        kind: Kind,
        key: &ObjectKey,
        problems: BTreeSet<Problem>,
    ) -> (Vec<Problem>, Vec<Problem>) {
        let place = (kind, key.clone());
        let before = self.0.remove(&place).unwrap_or_default();
        let new = problems.difference(&before).cloned().collect();
        let solved = before.difference(&problems).cloned().collect();
        if !problems.is_empty() {
            self.0.insert(place, problems);
        }
        (new, solved)
    }

    /// The problems of one object.
    pub fn of(&self, kind: Kind, key: &ObjectKey) -> impl Iterator<Item = &Problem> {
        self.0.get(&(kind, key.clone())).into_iter().flatten()
    }

    /// All of them, by object.
    pub fn iter(&self) -> impl Iterator<Item = (Kind, &ObjectKey, &Problem)> {
        self.0.iter().flat_map(|((kind, key), problems)| {
            problems.iter().map(move |problem| (*kind, key, problem))
        })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.values().map(BTreeSet::len).sum()
    }
}
