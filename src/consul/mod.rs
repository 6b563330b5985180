//! The edge to Consul. Each folder uses those above it and none below.
//!
//! | folder | what it is |
//! |---|---|
//! | [`http`] | requests to Consul's HTTP API: configuration, TLS, tokens, deadlines, bounded bodies, errors |
//! | [`read`] | reads that say how certain they are (invariant 1) |
//! | [`write`] | what changes Consul: transactions and the two sinks |
//! | [`coordination`] | who may write (invariants 3 and 9), and the reading of all that is ours, with the marker that makes it evidence (invariant 1) |

pub mod coordination;
pub mod http;
pub mod read;
pub mod write;
