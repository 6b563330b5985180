//! Where records go: one interface for both sinks.

use crate::consul::write::agent::AgentSink;
use crate::consul::write::catalog::CatalogSink;
use crate::consul::write::fence::Fence;
use crate::consul::write::txn::Encoded;
use crate::domain::consul::record::{Answer, NamespaceNodeAnswer, RecordKey, Write};

/// Requests to an agent under way at a time: measured at three to four times the rate of one,
/// and far below the 200 connections that an agent allows a client.
const AGENT_REQUESTS: usize = 16;
/// Transactions under way at a time: the fastest on a Consul with time to spare (measured on 1.8.7:
/// 1.7 times the rate of one, and 16 gave 1.4 times). On one without, more at a time is no faster
/// than one, and no slower.
const CATALOG_REQUESTS: usize = 4;
/// Groups for one request. One without check and PTR record is one operation: with its nodes
/// and the fence that fills a transaction of 64; larger ones are split. On busy servers 60 were
/// measured to go in 1.2 to 2 times as fast as 20. What is alone does not wait for others.
const CATALOG_GROUPS: usize = 60;

/// Takes writes and says what became of each.
#[derive(Clone, Debug)]
pub enum Sink {
    /// The co-located agent.
    Agent(AgentSink),
    /// The catalog.
    Catalog(CatalogSink),
}

// === impl Sink ===

impl Sink {
    /// How many requests may be under way at a time.
    pub fn requests(&self) -> usize {
        match self {
            Sink::Agent(_) => AGENT_REQUESTS,
            Sink::Catalog(_) => CATALOG_REQUESTS,
        }
    }

    /// How many groups one request takes.
    pub fn groups(&self) -> usize {
        match self {
            Sink::Agent(_) => 1,
            Sink::Catalog(_) => CATALOG_GROUPS,
        }
    }

    /// Sets the lock that writes ask for.
    pub fn set_fence(&mut self, fence: Option<Fence>) {
        if let Sink::Catalog(sink) = self {
            *sink = sink.clone().fenced(fence);
        }
    }

    /// The lock that writes ask for.
    pub fn fence(&self) -> Option<&Encoded> {
        match self {
            Sink::Agent(_) => None,
            Sink::Catalog(sink) => sink.fence(),
        }
    }

    /// Makes these changes. Those of one group belong together: if one fails, those after it
    /// are not made, and with the catalog none is.
    pub async fn write(&self, groups: Vec<Vec<Write>>) -> Vec<(RecordKey, Answer)> {
        match self {
            Sink::Catalog(sink) => sink.write(groups).await,
            Sink::Agent(sink) => {
                let mut answers = Vec::new();
                for group in groups {
                    sink.write_group(group, &mut answers).await;
                }
                answers
            }
        }
    }

    /// Removes the node of a namespace on which nothing stands any more. An agent has none.
    pub async fn remove_namespace_node(&self, namespace: &str) -> NamespaceNodeAnswer {
        match self {
            Sink::Agent(_) => NamespaceNodeAnswer::Removed,
            Sink::Catalog(sink) => sink.remove_namespace_node(namespace).await,
        }
    }
}
