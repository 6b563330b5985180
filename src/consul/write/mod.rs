//! What changes Consul.
//!
//! | file | what it is |
//! |---|---|
//! | [`sink`] | where a bridge's records go: one interface for both sinks |
//! | [`agent`] | the agent sink: one record a request |
//! | [`catalog`] | the catalog sink: synthetic nodes, written in transactions |
//! | [`registration`] | a registration as it is sent |
//! | [`txn`] | transactions |
//! | [`fence`] | what rolls a transaction back unless the lock is held |
//! | [`nodes`] | creating the catalog sink's nodes |
//! | [`removal`] | removing many records at once |

pub mod agent;
pub mod catalog;
pub mod fence;
pub mod nodes;
pub mod pods;
pub mod registration;
pub mod removal;
pub mod sink;
pub mod txn;
