//! Namespace nodes, which are the catalog's: each goes with the last record on it.
//!
//! Deleting one deletes all that is registered on it, so it is a record of its own (newer wins): it
//! is removed only while no write to it is in flight or uncertain, and nothing is written to it
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::consul::record::RecordKey;
use crate::domain::flights::Flights;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::sync::ledger::Ledger;
use crate::domain::text::excerpt;

/// After a removal that failed: an empty namespace node harms nobody.
const RETRY: Duration = Duration::from_secs(30);

/// Namespaces whose node may be there with nothing of ours on it, and when it may be removed.
#[derive(Debug)]
pub(super) struct NamespaceNodes {
    empty: BTreeMap<Box<str>, Moment>,
    /// Whether they stay, empty or not.
    stay: bool,
}

// === impl NamespaceNodes ===

impl NamespaceNodes {
    /// None is empty; `stay`: none is ever removed.
    pub(super) fn new(stay: bool) -> Self {
        Self { empty: BTreeMap::new(), stay }
    }

    /// Nothing of ours is left on the node of this namespace.
    pub(super) fn emptied(&mut self, namespace: &str) {
        if !self.stay {
            self.empty.entry(namespace.into()).or_default();
        }
    }

    /// Its removal failed.
    pub(super) fn retry(&mut self, namespace: &str, now: Moment) {
        self.empty.insert(namespace.into(), now + RETRY);
    }

    /// Takes the next one that may be removed.
    pub(super) fn take<T>(
        &mut self,
        known: &Ledger,
        flights: &Flights<RecordKey, ObjectKey, T>,
        now: Moment,
    ) -> Option<Box<str>> {
        self.empty.retain(|namespace, _| known.count_in(namespace) == 0);
        let due = self.removable(known, flights).find(|(_, due)| *due <= now);
        let namespace = due.map(|(namespace, _)| namespace.clone())?;
        self.empty.remove(&namespace);
        Some(namespace)
    }

    /// When the next one may be removed.
    pub(super) fn next<T>(
        &self,
        known: &Ledger,
        flights: &Flights<RecordKey, ObjectKey, T>,
    ) -> Option<Moment> {
        self.removable(known, flights).map(|(_, due)| due).min()
    }

    /// Those on which nothing is registered or being written.
    fn removable<T>(
        &self,
        known: &Ledger,
        flights: &Flights<RecordKey, ObjectKey, T>,
    ) -> impl Iterator<Item = (&Box<str>, Moment)> {
        let written_to: BTreeSet<&str> = flights.owners().map(|key| &*key.namespace).collect();
        let empty = self.empty.iter().map(|(namespace, due)| (namespace, *due));
        empty.filter(move |(namespace, _)| {
            known.count_in(namespace) == 0
                && !written_to.contains(&***namespace)
                && !flights.carries(&RecordKey::NamespaceNode((*namespace).clone()))
        })
    }
}

/// The problem of a namespace whose node keeps what no bridge made.
pub(super) fn foreign_on_node(node: &str, ids: &[Box<str>]) -> Problem {
    Problem::new(
        Reason::ForeignOnNode,
        format!(
            "node {node}: expected nothing on it any more, found {} that no bridge made; the node \
             stays as long as they do",
            excerpt(&ids.join(", "))
        ),
    )
}
