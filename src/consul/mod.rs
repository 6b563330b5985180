//! The edge to Consul. Each folder uses those above it and none below.
//!
//! | folder | what it is |
//! |---|---|
//! | [`http`] | requests to Consul's HTTP API: configuration, TLS, tokens, deadlines, bounded bodies, errors |
//! | [`read`] | reads that say how certain they are (invariant: evidence) |
//! | [`write`] | what changes Consul: transactions and the two sinks |
//! | [`coordination`] | who may write (invariants: identity, fencing), and the reading of all that is ours, with the marker that makes it evidence (invariant: evidence) |

pub mod coordination;
pub mod http;
pub mod read;
pub mod write;
