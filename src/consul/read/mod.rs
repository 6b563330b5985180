//! Reads that say how certain they are (invariant: evidence).
//!
//! Listings are handed on item by item while they arrive. What a callback was given exists; what
//! it was not given is absent only if the whole call succeeded.
//!
//! | file | what it is |
//! |---|---|
//! | [`evidence`] | what an answer proves |
//! | `blocking` | waiting for the next change |
//! | [`registrations`] | the cluster's registrations, in an agent or on a node of the catalog |
//! | [`nodes`] | the cluster's nodes in the catalog |
//! | [`names`] | names of services, and which of them others hold |
//! | [`keys`] | entries of the KV store |
//! | [`marks`] | everything with the mark of one program, for its removal |
//! | [`instances`] | single instances, for the registration hook |
//! | [`followed`] | a service that an import follows |
//! | [`agent`] | what the agent and the servers say of themselves |
//! | [`pods`] | a node daemon's registrations in its agent and in the catalog |
//! | [`permissions`] | what the token may do |
//! | `wire` | services, checks and keys as Consul's JSON has them |

pub mod agent;
pub(in crate::consul) mod blocking;
pub mod evidence;
pub mod followed;
pub mod instances;
pub mod keys;
pub mod marks;
pub mod names;
pub mod nodes;
pub mod permissions;
pub mod pods;
pub mod registrations;
pub(in crate::consul) mod wire;
