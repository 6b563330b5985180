//! The pure core: what ought to be in Consul for what is in Kubernetes.
//!
//! No I/O, no clock, no randomness, no logging, no async: time and configuration come in as
//! arguments, and the same input gives the same output whatever the order it arrives in.

pub mod annotations;
pub mod claims;
pub mod desired;
pub mod difference;
pub mod forecast;
pub mod hook;
pub mod ledger;
pub mod names;
pub mod object;
pub mod packed;
pub mod problem;
pub mod reconciler;
pub mod record;
pub mod registration_id;
pub mod reverse_dns;
pub mod selector;
pub mod settings;
pub mod template;
#[cfg(test)]
mod testing;
pub mod text;
pub mod world;
