//! What changes Consul: transactions, the two sinks, the nodes of the catalog sink, the hook's calls.

pub mod agent;
pub mod catalog;
pub mod hook;
pub mod nodes;
pub mod purge;
pub mod sink;
pub mod txn;
