//! Holds back removals that the silence of a list or a changed option would cause, when they are
//! many: nothing is removed out of ignorance.
//!
//! What a watch reports as deleted never comes here. What a complete list merely lacks does (see
//! `confirm`), and what the first reconciliation of a term would take away.
use std::collections::{BTreeMap, BTreeSet};

use crate::domain::kube::names::ObjectKey;
use crate::domain::map::HashMap;

/// Why removals are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// Objects are missing from a list: released when a second list agrees.
    Absence,
    /// Objects exist and are no longer selected: released by `--allow-removals`.
    Selection,
    /// The operator wants nothing removed (`--policy upsert-only`): never released.
    Policy,
}

/// How many records of each Service `--policy upsert-only` keeps.
#[derive(Debug, Default)]
pub(super) struct Kept {
    services: HashMap<ObjectKey, usize>,
    total: usize,
}

// === impl Kept ===

impl Kept {
    /// How many there are.
    pub(super) fn total(&self) -> usize {
        self.total
    }

    /// The Services of which some are kept.
    pub(super) fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.services.keys()
    }

    /// So many are kept of this Service now.
    pub(super) fn set(&mut self, service: &ObjectKey, kept: usize) {
        let before = match kept {
            0 => self.services.remove(service),
            _ => self.services.insert(service.clone(), kept),
        };
        self.total = self.total + kept - before.unwrap_or(0);
    }
}

/// Services whose records are neither removed nor turned critical.
#[derive(Debug, Default)]
pub(super) struct Holds(HashMap<ObjectKey, Cause>);

// === impl Holds ===

impl Holds {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Why what this Service would lose is held back, if it is.
    pub(super) fn of(&self, service: &ObjectKey) -> Option<Cause> {
        self.0.get(service).copied()
    }

    /// Everything that is held.
    pub(super) fn services(&self) -> impl Iterator<Item = &ObjectKey> {
        self.0.keys()
    }

    /// What is held for this reason.
    pub(super) fn by(&self, cause: Cause) -> impl Iterator<Item = &ObjectKey> {
        self.0.iter().filter(move |(_, other)| **other == cause).map(|(service, _)| service)
    }

    /// The reasons for which something is held.
    pub(super) fn causes(&self) -> BTreeSet<Cause> {
        self.0.values().copied().collect()
    }

    /// Holds back what this Service would lose, unless it is held already.
    pub(super) fn hold(&mut self, service: ObjectKey, cause: Cause) {
        self.0.entry(service).or_insert(cause);
    }

    /// Nothing is held for this Service any more: it is known not to exist, or it loses nothing.
    pub(super) fn release(&mut self, service: &ObjectKey) {
        self.0.remove(service);
    }

    /// Releases all that was held for absence.
    pub(super) fn release_absent(&mut self) -> Vec<ObjectKey> {
        let absent: Vec<ObjectKey> = self.by(Cause::Absence).cloned().collect();
        self.0.retain(|_, cause| *cause != Cause::Absence);
        absent
    }

    /// Releases everything.
    pub(super) fn release_all(&mut self) -> BTreeMap<ObjectKey, Cause> {
        std::mem::take(&mut self.0).into_iter().collect()
    }
}
