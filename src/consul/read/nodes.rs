//! The cluster's nodes in the catalog. The base node is the marker of a reading (invariant:
//! evidence).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::consul::http::client::Client;
use crate::consul::http::request::Request;
use crate::consul::http::stream::Layout;
use crate::consul::http::transport::Evidence;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed};
use crate::consul::read::registrations::marked;
use crate::consul::read::wire::decode;
use crate::domain::consul::node_names::NodeNames;
use crate::domain::consul::record::CLUSTER_META;
use crate::domain::kube::names::ClusterName;

/// Address of every synthetic node: one for documentation (RFC 5737), never a service's, because
/// reverse lookups prefer nodes.
pub(in crate::consul) const ADDRESS: &str = "192.0.2.1";

pub(in crate::consul) const NODES: &str = "the catalog's nodes";

const NODES_PATH: &str = "/v1/catalog/nodes";

/// The nodes of one cluster as the catalog has them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Whether the base node is there: without it absence proves nothing.
    pub marker: bool,
    /// The namespaces that have a node.
    pub namespaces: Vec<Box<str>>,
    /// Nodes that carry the cluster's mark under other names, as another `--node-name` leaves.
    pub others: Vec<Box<str>>,
    /// Whether there is a node of the base node's name without any mark: whoever registers something
    /// on a node replaces its meta.
    pub unmarked_base: bool,
    /// The namespaces whose node's name one without any mark has: ours if something of ours is on
    /// it.
    pub unmarked: Vec<Box<str>>,
}

/// Nodes with names as the cluster's have them, and no cluster's mark.
fn unmarked_filter(names: &NodeNames) -> String {
    let base = regex_literal(names.base());
    format!("Node matches `^{base}([.][^.]*)?$` and {CLUSTER_META:?} not in Meta")
}

/// A text as a regular expression that matches nothing else. One with a backquote, which a filter
/// cannot hold, matches nothing.
fn regex_literal(text: &str) -> String {
    let escaped = |c: char| {
        if c.is_ascii_alphanumeric() || c == '-' || c == '_' {
            c.to_string()
        } else if c.is_ascii() && c != '`' {
            format!("\\{c}")
        } else {
            ".".to_owned()
        }
    };
    text.chars().map(escaped).collect()
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
            _ if *node == *names.base() => nodes.marker = true,
            Some(namespace) => nodes.namespaces.push(namespace.into()),
            None => nodes.others.push(node),
        };
        self.marked_entries(cluster, consistency, each).await?;
        let unmarked = |entry: &NodeEntry| entry.mark().is_none();
        let request = consistency.of_path(NODES_PATH.to_owned());
        let request = request.parameter("filter", &unmarked_filter(names));
        let each = |NodeEntry { node, .. }| match names.namespace_of(&node) {
            _ if *node == *names.base() => nodes.unmarked_base = true,
            Some(namespace) => nodes.unmarked.push(namespace.into()),
            // A Consul that does not know the filter ignores it.
            None => {}
        };
        self.entries_where(request, unmarked, each).await?;
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
        each: impl FnMut(NodeEntry) + Send,
    ) -> Result<(), Unknown> {
        let (evidence, empty) = self.entries_where(request, passes, each).await?;
        certain(evidence, empty, NODES)
    }

    /// The same, for one that concludes nothing from absence: gives whether there was none, too.
    async fn entries_where(
        &self,
        request: Request,
        passes: impl Fn(&NodeEntry) -> bool + Send + Sync,
        mut each: impl FnMut(NodeEntry) + Send,
    ) -> Result<(Evidence, bool), Unknown> {
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
        Ok((evidence, empty))
    }

    /// Which cluster a node is marked as one of, as the leader has it now: empty without a mark,
    /// none where there is no such node.
    pub(in crate::consul) async fn node_mark(&self, node: &str) -> Result<Option<String>, Unknown> {
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
