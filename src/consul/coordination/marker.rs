//! What shows that a reading is of the Consul that was written to (invariant: evidence): a record
//! of our own that each reading has to show. Without it Consul lost its state, or is another one,
//! and what is missing was not removed by anybody.

use crate::consul::coordination::sentinel::{ContentHash, Sentinel};
use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::read::evidence::Unknown;
use crate::consul::read::nodes::NODES;
use crate::consul::read::registrations::AGENT_SERVICES;
use crate::consul::write::nodes::NodeError;
use crate::domain::consul::node_names::NodeNames;
use crate::domain::kube::names::ClusterName;

/// What marks the readings of a sink.
#[derive(Clone, Debug)]
pub enum Marker {
    /// The sentinel, in the agent.
    Sentinel(Sentinel),
    /// The base node, in the catalog.
    BaseNode(NodeNames),
}

/// Why the marker is not there.
#[derive(Debug, thiserror::Error)]
pub enum MarkerError {
    /// The agent did not take the sentinel.
    #[error(transparent)]
    Sentinel(#[from] Error),
    /// There is no base node of ours.
    #[error(transparent)]
    BaseNode(#[from] NodeError),
}

// === impl Marker ===

impl Marker {
    /// Makes sure that it is there. Gives the sentinel as the agent has it, where that is the
    /// marker.
    pub async fn ensure(
        &self,
        client: &Client,
        cluster: &ClusterName,
    ) -> Result<Option<ContentHash>, MarkerError> {
        Ok(match self {
            Marker::Sentinel(sentinel) => Some(sentinel.ensure().await?),
            Marker::BaseNode(nodes) => {
                client.ensure_node(nodes.base(), cluster, None).await?;
                None
            }
        })
    }

    /// Why a reading that does not show it is not known to be true.
    pub fn missing(&self) -> Unknown {
        Unknown::MarkerMissing {
            what: match self {
                Marker::Sentinel(_) => AGENT_SERVICES,
                Marker::BaseNode(_) => NODES,
            },
        }
    }
}
