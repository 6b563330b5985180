//! The pods of one node in that node's agent: what is registered, when, and what a sidecar is told.
//!
//! | file | what it is |
//! |---|---|
//! | [`pod`] | what is read of a pod |
//! | [`annotations`] | its annotations, in both dialects |
//! | [`wanted`] | from a pod to its registrations, and whether it is ready |
//! | [`exchange`] | what goes into the core and comes out of it |
//! | [`core`] | what is written when: events in by `handle_…`, actions out by `poll_action`, one timer |
//! | `record` | one registration: what the agent has, what is wanted, the next heartbeat |
//! | `waiting` | who waits for the catalog: sidecars that asked, readiness gates |
//! | `sidecar` | what is known of a pod's sidecar |

pub mod annotations;
pub mod core;
pub mod exchange;
pub mod pod;
mod record;
mod sidecar;
mod waiting;
pub mod wanted;

#[cfg(test)]
mod tests;
