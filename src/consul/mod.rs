//! The edge to Consul.
//!
//! | file | what it is |
//! |---|---|
//! | [`config`] | the variables of Consul's own command |
//! | [`setup`] | what a client is made from: certificates, server name, HTTP authentication |
//! | [`client`] | requests: deadlines, bounded bodies, token |
//! | [`token`] | the token in use: file, login, renewal |
//! | [`error`] | what a failed request means for a write |
//! | [`stream`] | cuts a long listing into its items while it arrives |
//! | [`wire`] | services, checks and keys as JSON has them |
//! | [`read`] | reads that say how certain they are (invariant 1) |
//! | [`marker`] | what shows that a reading is true (invariant 1) |
//! | [`sink`] | where records go: one interface for both sinks |
//! | [`agent`] | the agent sink |
//! | [`catalog`] | the catalog sink |
//! | [`nodes`] | the synthetic nodes of the catalog sink |
//! | [`purge`] | everything with a cluster's mark, and its removal |
//! | [`hook`] | what the registration hook asks of the agent and the catalog |
//! | [`txn`] | transactions |
//! | [`session`], [`lock`] | the leader's lock and what holds it (invariant 9) |
//! | [`election`] | which of several bridges writes (invariant 9) |
//! | [`sentinel`] | notices that the agent lost its state |
//! | [`owner`] | which cluster a name belongs to (invariant 3) |

pub mod agent;
pub mod catalog;
pub mod client;
pub mod config;
pub mod election;
pub mod error;
pub mod hook;
pub mod lock;
pub mod marker;
pub mod nodes;
pub mod owner;
pub mod purge;
pub mod read;
pub mod sentinel;
pub mod session;
pub mod setup;
pub mod sink;
pub mod stream;
pub mod token;
pub mod txn;
pub mod wire;
