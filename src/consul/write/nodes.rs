//! Creating the synthetic nodes of the catalog sink. The base node also carries the lock's session
//! (invariant: fencing).

use crate::consul::http::client::Client;
use crate::consul::http::error::{Error, OperationFailure};
use crate::consul::read::evidence::{Consistency, Unknown};
use crate::consul::read::nodes::ADDRESS;
use crate::consul::write::txn::{Encoded, MAX_OPERATIONS, NodeBody, Operation};
use crate::domain::consul::record::{CLUSTER_META, SOURCE, SOURCE_META};
use crate::domain::kube::names::ClusterName;

/// Something of ours in a place where no bridge registers anything.
#[derive(Clone, Debug)]
pub struct Stray {
    /// The node that it is on.
    pub node: Box<str>,
    /// Its service ID.
    pub id: Box<str>,
    /// Its service name.
    pub name: Box<str>,
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
    /// Creates a node unless it is there, in a transaction with `fence`. An error also when a node
    /// of that name is there that this cluster did not make: it is never overwritten (invariant:
    /// ownership). The base node goes without a fence: it is what the lock's session is on.
    pub async fn ensure_node(
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

    /// Marks a node of the cluster again from which somebody took the mark: registering anything on a
    /// node replaces its meta and its address.
    pub async fn mark_node(
        &self,
        node: &str,
        cluster: &ClusterName,
        fence: Option<&Encoded>,
    ) -> Result<(), Error> {
        let mark = Operation::SetNode(body(node, cluster)).encode();
        self.transaction(fence.into_iter().chain([&mark])).await?;
        tracing::warn!(node, "somebody registered this node of ours anew: its mark is back");
        Ok(())
    }

    /// Removes these, as many as one transaction takes: the next resync shows the others.
    pub async fn remove_strays(
        &self,
        strays: &[Stray],
        fence: Option<&Encoded>,
    ) -> Result<(), Error> {
        if strays.is_empty() {
            return Ok(());
        }
        let removal = |Stray { node, id, name }: &Stray| {
            let (node, id, name) = (node.clone(), id.clone(), name.clone());
            Operation::DeleteService { node, id, name }.encode()
        };
        let most = MAX_OPERATIONS - usize::from(fence.is_some());
        let removals: Vec<Encoded> = strays.iter().take(most).map(removal).collect();
        self.transaction(fence.into_iter().chain(&removals)).await.map(drop)
    }

    async fn holds_ours(&self, node: &str, cluster: &ClusterName) -> Result<bool, NodeError> {
        let listing = self.catalog_registrations(node, cluster, Consistency::Consistent, drop);
        Ok(listing.await.map_err(NodeError::Read)?.registrations > 0)
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
