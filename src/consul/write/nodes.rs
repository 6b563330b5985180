//! The synthetic nodes of the catalog sink: a base node, `k8s-<cluster>`, and one node for each
//! namespace that has registrations, `k8s-<cluster>.<namespace>`.
//!
//! The base node is the marker of a reading (invariant 1) and carries the lock's session
//! (invariant 9). A dot joins the two names because no label contains one: the names are
//! injective.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::consul::http::client::{Client, Request};
use crate::consul::http::error::{Error, OperationFailure};
use crate::consul::http::stream::Layout;
use crate::consul::http::wire::decode;
use crate::consul::read::{Consistency, Unknown, certain, failed, marked};
use crate::consul::write::txn::{Encoded, NodeBody, Operation};
use crate::domain::consul::record::{CLUSTER_META, SOURCE, SOURCE_META};
use crate::domain::kube::names::ClusterName;

/// Address of every synthetic node: one for documentation (RFC 5737), never a service's, because
/// reverse lookups prefer nodes.
pub(in crate::consul) const ADDRESS: &str = "192.0.2.1";

pub(in crate::consul) const NODES: &str = "the catalog's nodes";

const NODES_PATH: &str = "/v1/catalog/nodes";

/// What the nodes of one cluster are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNames {
    base: Box<str>,
}

/// The nodes of one cluster as the catalog has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Whether the base node is there: without it absence proves nothing.
    pub marker: bool,
    /// The namespaces that have a node.
    pub namespaces: Vec<Box<str>>,
    /// Nodes that carry the cluster's mark under other names, as another `--node-name` leaves.
    pub others: Vec<Box<str>>,
}

/// A node as the catalog shows it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::consul) struct NodeEntry {
    pub node: Box<str>,
    pub address: Box<str>,
    meta: Option<BTreeMap<String, String>>,
}

// === impl NodeEntry ===

impl NodeEntry {
    /// The cluster that it is marked as one of.
    pub(in crate::consul) fn mark(&self) -> Option<&str> {
        self.meta.as_ref()?.get(CLUSTER_META).map(String::as_str)
    }
}

// === impl NodeNames ===

impl NodeNames {
    /// The names for this cluster, or those that begin with `base` where the operator gave it.
    pub fn new(cluster: &ClusterName, base: Option<&str>) -> Self {
        Self { base: base.map_or_else(|| format!("k8s-{cluster}").into(), Into::into) }
    }

    /// The base node.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The node of a namespace.
    pub fn of_namespace(&self, namespace: &str) -> Box<str> {
        format!("{}.{namespace}", self.base).into()
    }

    /// The namespace whose node this is.
    pub fn namespace_of<'a>(&self, node: &'a str) -> Option<&'a str> {
        node.strip_prefix(&*self.base)?.strip_prefix('.').filter(|rest| !rest.contains('.'))
    }
}

/// A synthetic node of the cluster.
pub(in crate::consul) fn body(node: &str, cluster: &ClusterName) -> NodeBody {
    let meta = [(CLUSTER_META, cluster.as_str()), (SOURCE_META, SOURCE)];
    NodeBody {
        node: node.into(),
        address: ADDRESS.into(),
        meta: meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
    }
}

// === impl Client ===

impl Client {
    /// The cluster's synthetic nodes.
    pub async fn nodes(
        &self,
        names: &NodeNames,
        cluster: &ClusterName,
        consistency: Consistency,
    ) -> Result<Nodes, Unknown> {
        let mut nodes = Nodes::default();
        let each = |NodeEntry { node, .. }| match names.namespace_of(&node) {
            _ if *node == *names.base => nodes.marker = true,
            Some(namespace) => nodes.namespaces.push(namespace.into()),
            None => nodes.others.push(node),
        };
        self.marked_entries(cluster, consistency, each).await?;
        Ok(nodes)
    }

    /// The catalog's nodes with the cluster's mark, whatever they are called.
    pub(in crate::consul) async fn marked_entries(
        &self,
        cluster: &ClusterName,
        consistency: Consistency,
        each: impl FnMut(NodeEntry) + Send,
    ) -> Result<(), Unknown> {
        let request = marked(consistency.of_path(NODES_PATH.to_owned()), "Meta", cluster);
        self.nodes_where(request, |entry| entry.mark() == Some(cluster.as_str()), each).await
    }

    /// The nodes that pass the request's filter. `passes` says the same: a Consul that does not
    /// know the filter ignores it.
    async fn nodes_where(
        &self,
        request: Request,
        passes: impl Fn(&NodeEntry) -> bool + Send + Sync,
        mut each: impl FnMut(NodeEntry) + Send,
    ) -> Result<(), Unknown> {
        let (reply, evidence) = self.open(&request.listing(), NODES).await?;
        let reply = reply.into_found().await.map_err(failed(NODES))?;
        let mut empty = true;
        let entries = reply.items(Layout::Elements, |item| {
            let entry: NodeEntry = decode("a node", item.value)?;
            if passes(&entry) {
                empty = false;
                each(entry);
            }
            Ok(())
        });
        entries.await.map_err(failed(NODES))?;
        certain(evidence, empty, NODES)
    }

    /// Creates the base node unless it is there. An error also when a node of that name is there
    /// that this cluster did not make. Not fenced: it is what the lock's session stands on.
    pub async fn ensure_base_node(
        &self,
        names: &NodeNames,
        cluster: &ClusterName,
    ) -> Result<(), NodeError> {
        self.ensure_node(names.base(), cluster, None).await
    }

    /// Creates a node unless it is there, in a transaction with `fence`. An error also when a
    /// node of that name is there that this cluster did not make: it is never overwritten
    /// (invariant 2).
    pub(in crate::consul) async fn ensure_node(
        &self,
        node: &str,
        cluster: &ClusterName,
        fence: Option<&Encoded>,
    ) -> Result<(), NodeError> {
        let foreign = || NodeError::Foreign { node: node.into() };
        // Read first: a write that changes nothing costs the servers as much as one that does.
        match self.node_mark(node).await.map_err(NodeError::Read)? {
            Some(mark) if mark == cluster.as_str() => return Ok(()),
            // Whoever registers something on a node replaces its meta, our mark with it.
            Some(mark) if mark.is_empty() && self.holds_ours(node, cluster).await? => {
                return Ok(());
            }
            Some(_) => return Err(foreign()),
            None => {}
        }
        let create = Operation::CreateNode(body(node, cluster)).encode();
        match self.transaction(fence.into_iter().chain([&create])).await {
            Ok(_) => return Ok(()),
            // Another of this cluster may have been faster.
            Err(Error::RolledBack { errors, .. })
                if errors.iter().any(|error| error.failure() == OperationFailure::Stale) => {}
            Err(error) => return Err(NodeError::Write(error)),
        }
        match self.node_mark(node).await.map_err(NodeError::Read)? {
            Some(mark) if mark == cluster.as_str() => Ok(()),
            _ => Err(foreign()),
        }
    }

    async fn holds_ours(&self, node: &str, cluster: &ClusterName) -> Result<bool, NodeError> {
        let listing = self.catalog_registrations(node, cluster, Consistency::Consistent, drop);
        Ok(listing.await.map_err(NodeError::Read)?.registrations > 0)
    }

    /// Which cluster a node is marked as one of, as the leader has it now: empty without a mark,
    /// none where there is no such node.
    async fn node_mark(&self, node: &str) -> Result<Option<String>, Unknown> {
        // Nothing in a node's name needs quoting but what no node's name has.
        let filter = format!("Node == {node:?}");
        let request = Consistency::Consistent.of_path(NODES_PATH.to_owned());
        let request = request.parameter("filter", &filter);
        let mut found = None;
        let each = |entry: NodeEntry| found = Some(entry.mark().unwrap_or_default().to_owned());
        self.nodes_where(request, |entry| *entry.node == *node, each).await?;
        Ok(found)
    }
}

/// Why there is no node of ours.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It could not be written.
    #[error("cannot create the node")]
    Write(#[source] Error),
    /// Whether it is there could not be read.
    #[error("cannot tell whether the node is there")]
    Read(#[source] Unknown),
    /// Somebody else has a node of that name.
    #[error(
        "node {node}: expected none or one with this cluster's mark, found one of somebody else; remove it, or choose another --node-name or --cluster"
    )]
    Foreign {
        /// The node's name.
        node: Box<str>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_tell_their_namespace() {
        let cluster: ClusterName = "eu".parse().unwrap();
        for (names, base) in [
            (NodeNames::new(&cluster, None), "k8s-eu"),
            (NodeNames::new(&cluster, Some("my.node")), "my.node"),
        ] {
            assert_eq!(names.base(), base);
            let node = names.of_namespace("shop");
            assert_eq!(*node, format!("{base}.shop"));
            assert_eq!(names.namespace_of(&node), Some("shop"));
            for other in [base.to_owned(), format!("{base}x"), format!("{base}.a.b"), "x".into()] {
                assert_eq!(names.namespace_of(&other), None, "{other}");
            }
        }
    }
}
