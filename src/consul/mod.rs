//! The edge to Consul.
//!
//! | folder | what it is |
//! |---|---|
//! | [`http`] | requests to Consul's HTTP API: configuration, TLS, tokens, deadlines, bounded bodies, errors |
//! | [`read`] | reads that say how certain they are (invariant 1) |
//! | [`write`] | what changes Consul: transactions and the two sinks |
//! | [`coordination`] | who may write (invariants 3 and 9), and what shows that a reading is true (invariant 1) |

pub mod coordination;
pub mod http;
pub mod read;
pub mod write;
