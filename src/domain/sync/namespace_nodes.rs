//! Namespace nodes, which are the catalog's: each goes with the last record on it.
//!
//! Deleting one deletes all that is registered on it, so it is a record of its own (newer wins): it
//! is removed only while no write to it is in flight or uncertain, and nothing is written to it
//! meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::resync::Resync;
use super::term::{Content, Term};
use super::{Moment, Report};
use crate::domain::consul::record::{NamespaceNodeAnswer, RecordKey};
use crate::domain::flights::FlightId;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::excerpt;

/// After a removal that failed: an empty namespace node harms nobody.
const RETRY: Duration = Duration::from_secs(30);

/// Namespaces whose node may be there with nothing of ours on it, and when it may be removed.
#[derive(Debug, Default)]
pub(super) struct NamespaceNodes(BTreeMap<Box<str>, Moment>);

// === impl NamespaceNodes ===

impl NamespaceNodes {
    /// Nothing of ours is left on the node of this namespace.
    pub(super) fn emptied(&mut self, namespace: &str) {
        self.0.entry(namespace.into()).or_default();
    }

    fn retry(&mut self, namespace: &str, now: Moment) {
        self.0.insert(namespace.into(), now + RETRY);
    }
}

// === impl Term ===

impl Term {
    /// Takes what became of the removal of a namespace's node.
    pub(super) fn namespace_node_answered(
        &mut self,
        flight: FlightId,
        answer: NamespaceNodeAnswer,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        let mut removed = None;
        self.land(flight, reports, |_, write| {
            if let RecordKey::NamespaceNode(namespace) = &write.record {
                removed = Some(namespace.clone());
            }
        });
        let Some(namespace) = removed else { return };
        if !matches!(answer, NamespaceNodeAnswer::Failed(_) | NamespaceNodeAnswer::Unanswered(_)) {
            let waiting = self.retries.answered(now);
            self.mark_each(waiting);
        }
        self.node_answered(&namespace, answer, now, reports);
    }

    fn node_answered(
        &mut self,
        namespace: &str,
        answer: NamespaceNodeAnswer,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        let mut problems = BTreeSet::new();
        match answer {
            // What a resync under way has shown was there before.
            NamespaceNodeAnswer::Removed => {
                if let Some(resync) = &mut self.resync {
                    resync.namespace_nodes.remove(namespace);
                }
            }
            // What is on it is shown by the next resync.
            NamespaceNodeAnswer::InUse => {}
            NamespaceNodeAnswer::Foreign { node, ids } => {
                problems.insert(foreign_on_node(&node, &ids));
            }
            NamespaceNodeAnswer::Failed(_) | NamespaceNodeAnswer::Fenced => {
                self.namespace_nodes.retry(namespace, now);
            }
            // It may still take along what is written to the node from now on: that is read back.
            NamespaceNodeAnswer::Unanswered(_) => {
                self.uncertain(now);
                self.namespace_nodes.retry(namespace, now);
            }
        }
        let key = ObjectKey::new("", namespace);
        self.problems.set(Subject::Namespace, &key, problems, reports);
    }

    /// A complete resync is over: namespace nodes that it showed and on which nothing of ours is
    /// registered.
    pub(super) fn collect_empty_namespace_nodes(
        &mut self,
        resync: &Resync,
        reports: &mut Vec<Report>,
    ) {
        let shown = &resync.namespace_nodes;
        // What stood in the way of removing a node matters no more once it is gone or needed.
        let solved: Vec<ObjectKey> = self
            .problems
            .subjects(Subject::Namespace)
            .filter(|key| !shown.contains(&*key.name) || self.known.count_in(&key.name) > 0)
            .cloned()
            .collect();
        for key in solved {
            self.problems.set(Subject::Namespace, &key, BTreeSet::new(), reports);
        }
        for namespace in shown {
            let node = RecordKey::NamespaceNode(namespace.clone());
            if self.known.count_in(namespace) == 0 && !self.flights.carries(&node) {
                self.namespace_nodes.emptied(namespace);
            }
        }
    }

    /// When the next namespace node may be removed. While something is in flight, its answer is
    /// waited for.
    pub(super) fn next_namespace_node(&self) -> Option<Moment> {
        if !self.is_running() || !self.flights.is_empty() {
            return None;
        }
        let next = self.removable_namespace_nodes().map(|(_, due)| due).min()?;
        Some(if self.retries.is_outage() { next.max(self.retries.next_probe()) } else { next })
    }

    /// Begins the next removal of a namespace node. To be asked only while nothing else can be sent.
    pub(super) fn remove_namespace_node(&mut self, now: Moment) -> Option<(FlightId, Box<str>)> {
        self.namespace_nodes.0.retain(|namespace, _| self.known.count_in(namespace) == 0);
        let due = self.removable_namespace_nodes().find(|(_, due)| *due <= now);
        let namespace = due.map(|(namespace, _)| namespace.clone())?;
        self.namespace_nodes.0.remove(&namespace);
        let flight = self.flights.begin();
        let owner = ObjectKey::new("", namespace.clone());
        self.send(flight, owner, RecordKey::NamespaceNode(namespace.clone()), Content::Nothing);
        Some((flight, namespace))
    }

    /// Namespaces on whose node nothing is registered, being written or may yet be.
    fn removable_namespace_nodes(&self) -> impl Iterator<Item = (&Box<str>, Moment)> {
        let certain = !self.schedule.is_uncertain();
        let written_to: BTreeSet<&str> = self.flights.owners().map(|key| &*key.namespace).collect();
        let empty = self.namespace_nodes.0.iter().map(|(namespace, due)| (namespace, *due));
        empty.filter(move |(namespace, _)| {
            certain
                && self.known.count_in(namespace) == 0
                && !written_to.contains(&***namespace)
                && !self.flights.carries(&RecordKey::NamespaceNode((*namespace).clone()))
        })
    }
}

fn foreign_on_node(node: &str, ids: &[Box<str>]) -> Problem {
    Problem::new(
        Reason::ForeignOnNode,
        format!(
            "node {node}: expected nothing on it any more, found {} that no bridge made; the node \
             stays as long as they do",
            excerpt(&ids.join(", "))
        ),
    )
}
