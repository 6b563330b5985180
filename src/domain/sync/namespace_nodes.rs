//! Namespace nodes, which are the catalog's: each goes with the last record on it.
//!
//! Deleting one deletes all that stands on it, so it is a record of its own (invariant 6):
//! it is removed only while no write to it is in flight or uncertain, and nothing is written to
//! it meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::consul::record::NamespaceNodeAnswer;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::problem::{Problem, Reason};
use crate::domain::sync::answers::MAY_STILL_APPLY;
use crate::domain::sync::{Action, Moment, Phase, Reconciler};
use crate::domain::text::excerpt;

/// After a removal that failed: an empty namespace node harms nobody.
const RETRY: Duration = Duration::from_secs(30);

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct NamespaceNodes {
    /// Namespaces whose node may be there with nothing of ours on it, and when it may be tried.
    empty: BTreeMap<Box<str>, Moment>,
    /// Namespaces whose node is being removed.
    removing: BTreeSet<Box<str>>,
    /// Services that wait for that.
    waiting: BTreeSet<ObjectKey>,
    /// Namespaces whose node the reading under way has shown.
    shown: BTreeSet<Box<str>>,
}

// === impl NamespaceNodes ===

impl NamespaceNodes {
    pub(super) fn emptied(&mut self, namespace: &str) {
        self.empty.entry(namespace.into()).or_default();
    }

    /// Has a Service wait if the node it belongs on is being removed.
    pub(super) fn makes_wait(&mut self, service: &ObjectKey) -> bool {
        let waits = self.removing.contains(&*service.namespace);
        if waits {
            self.waiting.insert(service.clone());
        }
        waits
    }

    pub(super) fn is_removing(&self) -> bool {
        !self.removing.is_empty()
    }

    pub(super) fn reading_begins(&mut self) {
        self.shown.clear();
    }
}

// === impl Reconciler ===

impl Reconciler {
    /// The reading shows the node of this namespace.
    pub fn observed_namespace_node(&mut self, namespace: &str) {
        self.namespace_nodes.shown.insert(namespace.into());
    }

    /// Takes the answer to [`Action::RemoveNamespaceNode`].
    pub fn namespace_node_answered(
        &mut self,
        namespace: &str,
        answer: NamespaceNodeAnswer,
        now: Moment,
    ) {
        if !self.namespace_nodes.removing.remove(namespace) {
            return;
        }
        self.in_flight = self.in_flight.saturating_sub(1);
        if !matches!(answer, NamespaceNodeAnswer::Failed(_) | NamespaceNodeAnswer::Unanswered(_)) {
            self.consul_answered(now);
        }
        let mut problems = BTreeSet::new();
        match answer {
            // What a reading under way has shown was there before.
            NamespaceNodeAnswer::Removed => {
                self.namespace_nodes.shown.remove(namespace);
            }
            // What is on it is shown by the next reading.
            NamespaceNodeAnswer::InUse => {}
            // Whoever leads now finds it, and tells it.
            NamespaceNodeAnswer::Foreign { .. } if self.stands_by() => {}
            NamespaceNodeAnswer::Foreign { node, ids } => {
                let ids = ids.join(", ");
                problems.insert(Problem::new(
                    Reason::ForeignOnNode,
                    format!(
                        "node {node}: expected nothing on it any more, found {} that no bridge \
                         made; the node stays as long as they do",
                        excerpt(&ids)
                    ),
                ));
            }
            // This one may lead again, and its reading have passed the node over meanwhile.
            NamespaceNodeAnswer::Failed(_) | NamespaceNodeAnswer::Fenced => {
                self.namespace_nodes.empty.insert(namespace.into(), now + RETRY);
            }
            // It may still take along what is written to the node from now on: that is read back.
            NamespaceNodeAnswer::Unanswered(_) => {
                self.uncertain_until = Some(now + MAY_STILL_APPLY);
                self.namespace_nodes.empty.insert(namespace.into(), now + RETRY);
            }
        }
        self.set_problems(Kind::Namespace, &ObjectKey::new("", namespace), problems);
        let (back, waiting) = std::mem::take(&mut self.namespace_nodes.waiting)
            .into_iter()
            .partition(|service| *service.namespace == *namespace);
        self.namespace_nodes.waiting = waiting;
        let back: BTreeSet<ObjectKey> = back;
        for service in back {
            self.mark_dirty(service);
        }
    }

    /// A complete reading is over: namespace nodes that it showed and on which nothing of ours
    /// stands.
    pub(super) fn collect_empty_namespace_nodes(&mut self) {
        let shown = std::mem::take(&mut self.namespace_nodes.shown);
        // What stood in the way of removing a node matters no more once it is gone or needed.
        let solved: Vec<ObjectKey> = self
            .problems
            .iter()
            .filter(|(kind, ..)| *kind == Kind::Namespace)
            .map(|(_, key, _)| key)
            .filter(|key| !shown.contains(&*key.name) || self.ledger.count_in(&key.name) > 0)
            .cloned()
            .collect();
        for key in solved {
            self.set_problems(Kind::Namespace, &key, BTreeSet::new());
        }
        for namespace in shown {
            if self.ledger.count_in(&namespace) == 0
                && !self.namespace_nodes.removing.contains(&namespace)
            {
                self.namespace_nodes.emptied(&namespace);
            }
        }
    }

    /// When the next namespace node may be removed. While something is in flight, its answer is waited for.
    pub(super) fn next_namespace_node_timer(&self) -> Option<Moment> {
        if self.phase != Phase::Running || self.in_flight > 0 {
            return None;
        }
        let next = self.removable_namespace_nodes().map(|(_, due)| due).min()?;
        Some(if self.outage.is_on() { next.max(self.outage.next_probe()) } else { next })
    }

    /// The next namespace node to remove. To be asked only while nothing else can be sent.
    pub(super) fn next_empty_namespace_node(&mut self, now: Moment) -> Option<Action> {
        self.namespace_nodes.empty.retain(|namespace, _| self.ledger.count_in(namespace) == 0);
        let due = self.removable_namespace_nodes().find(|(_, due)| *due <= now);
        let namespace = due.map(|(namespace, _)| namespace.clone())?;
        self.namespace_nodes.empty.remove(&namespace);
        self.namespace_nodes.removing.insert(namespace.clone());
        self.in_flight += 1;
        Some(Action::RemoveNamespaceNode(namespace))
    }

    /// Namespaces on whose node nothing stands, nothing is being written and nothing may yet be.
    fn removable_namespace_nodes(&self) -> impl Iterator<Item = (&Box<str>, Moment)> {
        let certain = self.uncertain_until.is_none();
        let written_to = self.units.iter().filter(|(_, unit)| unit.in_flight > 0);
        let written_to: BTreeSet<&str> = written_to.map(|(key, _)| &*key.namespace).collect();
        let empty = self.namespace_nodes.empty.iter().map(|(namespace, due)| (namespace, *due));
        empty.filter(move |(namespace, _)| {
            certain
                && self.ledger.count_in(namespace) == 0
                && !written_to.contains(&***namespace)
                && !self.namespace_nodes.removing.contains(*namespace)
        })
    }
}
