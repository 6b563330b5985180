//! Nodes, which are Kubernetes': watched only while a Service uses node ports.
//!
//! Nothing is decided for such a Service before the nodes are known (invariant 1), and nothing
//! else waits for them once it turns out that they cannot be listed (invariant 7).

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::desired::Desired;
use crate::domain::sync::guard::is_most;
use crate::domain::sync::{Cause, Moment, Phase, Reconciler, Report};

/// How the first list of nodes goes.
#[derive(Debug, Default)]
pub(super) enum NodeWatch {
    /// Well, or nobody asked for it.
    #[default]
    Going,
    /// It fails for a reason that may pass.
    Failing,
    /// They may not be listed; what the watch said.
    Denied(String),
}

// === impl Reconciler ===

impl Reconciler {
    /// Whether a Service uses node ports: nodes have to be watched, and only then.
    pub fn wants_nodes(&self) -> bool {
        !self.cache.node_users().is_empty()
    }

    /// The watch of nodes fails; `denied`: because a right is missing, in these words.
    pub fn nodes_failed(&mut self, denied: Option<String>, now: Moment) {
        if self.cache.is_listed(Kind::Node) {
            return;
        }
        match (denied, &self.node_watch) {
            (Some(why), NodeWatch::Denied(before)) if why == *before => {}
            (Some(why), _) => self.set_node_watch(NodeWatch::Denied(why)),
            // A right that was missing a moment ago is still missing.
            (None, NodeWatch::Denied(_)) => {}
            (None, _) => self.set_node_watch(NodeWatch::Failing),
        }
        self.start_if_loaded(now);
    }

    /// Nodes are watched no longer.
    pub fn forget_nodes(&mut self, now: Moment) {
        self.cache.forget_nodes();
        self.guard.forget_nodes();
        let troubled: Vec<ObjectKey> = self
            .problems
            .iter()
            .filter(|(kind, ..)| *kind == Kind::Node)
            .map(|(_, key, _)| key.clone())
            .collect();
        for key in troubled {
            self.set_problems(Kind::Node, &key, [].into());
        }
        self.node_watch = NodeWatch::Going;
        self.mark_dirty(ObjectKey::orphaned());
        self.release_if_confirmed();
        self.start_if_loaded(now);
    }

    /// Whether all that can be listed is: everything, but for nodes that may not be.
    pub fn is_listed(&self) -> bool {
        let denied = matches!(self.node_watch, NodeWatch::Denied(_));
        self.cache.is_complete() && (self.needed_nodes_are_listed() || denied)
    }

    /// Whether the first reconciliation may be made. It waits for nodes, so that what they take
    /// away is weighed together with all else, unless it turns out that they do not come.
    pub(super) fn may_start(&self) -> bool {
        let comes = matches!(self.node_watch, NodeWatch::Going);
        self.cache.is_complete() && (self.needed_nodes_are_listed() || !comes)
    }

    /// A list of nodes is complete.
    pub(super) fn nodes_listed(&mut self, first: bool, now: Moment) {
        self.node_watch = NodeWatch::Going;
        if first {
            self.hold_losses_by_nodes(now);
            self.mark_node_users_dirty();
            self.mark_dirty(ObjectKey::orphaned());
        }
    }

    /// The problem of a Service that waits for nodes which may not be listed.
    pub(super) fn nodes_denied(&self, desired: &Desired) -> Option<Problem> {
        match &self.node_watch {
            NodeWatch::Denied(why) if desired.awaits_nodes => Some(Problem::new(
                Reason::Denied,
                format!("node ports cannot be registered: {why}; what is registered stays"),
            )),
            _ => None,
        }
    }

    pub(super) fn needed_nodes_are_listed(&self) -> bool {
        !self.wants_nodes() || self.cache.is_listed(Kind::Node)
    }

    fn set_node_watch(&mut self, node_watch: NodeWatch) {
        self.node_watch = node_watch;
        self.mark_node_users_dirty();
    }

    fn mark_node_users_dirty(&mut self) {
        for service in self.cache.node_users().clone() {
            self.mark_dirty(service);
        }
    }

    /// Nodes that were listed after the first reconciliation: what they would take away then is
    /// weighed now.
    fn hold_losses_by_nodes(&mut self, now: Moment) {
        if self.phase != Phase::Running {
            return;
        }
        let losses: Vec<(ObjectKey, usize)> = self
            .cache
            .node_users()
            .iter()
            .filter_map(|key| {
                let (_, lost) = self.first_loss(key, &self.desired_of(key, &|_, _| false))?;
                Some((key.clone(), lost))
            })
            .collect();
        let lost = losses.iter().map(|(_, lost)| lost).sum();
        let total = self.ledger.registration_count();
        if is_most(lost, total) {
            self.guard.hold(losses.into_iter().map(|(service, _)| service), now);
            self.reports.push(Report::Held { cause: Cause::Absence, lost, total });
        }
    }
}
