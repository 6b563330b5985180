//! The pure core: what ought to be in Consul for what is in Kubernetes.
//!
//! No I/O, no clock, no randomness, no logging, no async: time and configuration come in as
//! arguments, and the same input gives the same output whatever the order it arrives in.
//!
//! | module | what it is |
//! |---|---|
//! | [`address`] | which addresses may stand in a registration or an endpoint |
//! | [`backoff`] | how long to wait before another try |
//! | [`retries`] | records whose writes failed, and when each is tried again |
//! | [`flights`] | writes under way |
//! | [`kube`] | what Kubernetes shows: objects, slices packed into little room, the cluster cache |
//! | [`consul`] | what is registered in Consul: records, their IDs and ownership marks, names |
//! | [`services`] | from a Service to its registrations: annotations, settings, names, instances, claims |
//! | [`sync`] | the state of a bridge: from events and answers to the next writes |
//! | [`hook`] | what the registration hook registers |
//! | [`import`] | from Consul to Kubernetes: what a Service asks for, and the slices that make it |
//! | [`node`] | which pods of a node stand in its agent, and with which health |
//! | [`sidecar`] | what a sidecar asks the daemon of its node for |
//! | [`report`] | what people are shown: differences between records, the forecast of `plan` |
//! | [`problem`] | what is wrong with an object, for those who can fix it |
//! | [`hash`] | a hash that is the same in each process |
//! | [`map`] | hash maps whose order a test sees again |
//! | [`text`] | text that others wrote, made fit to be shown |
//! | `words` | enumerations that users write as words |
//!
//! # Glossary
//!
//! - *Service*: the Kubernetes object; what Consul calls a service is a *Consul name*. *Orphaned*
//!   is what is ours and belongs to no Service.
//! - *Node*: the Kubernetes object. A *namespace node* is the catalog's node on which the
//!   registrations of one namespace are, the *base node* the one that carries the cluster's mark.
//! - *Record*: one thing in Consul that is written and answered by itself: a registration or a
//!   PTR record.
//! - *Registration*: one instance of a Service, an address with a port, under a Consul name.
//! - *PTR record*: a KV entry that leads from an address to a Consul name; its *holder* writes
//!   it.
//! - *Desired*: what ought to be in Consul; *known*: what is, by the ledger.
//! - *Fingerprint*: a hash of all of a record that we set. Two that are equal cost no write.
//! - *Claim*: that a Service wants a Consul name or a PTR key. The first in rank has it; it
//!   *changes hands* when that becomes another one.
//! - *Dirty*: a Service that has to be planned again. *Plan*: what is written of it now; *wait*: why
//!   a record is not. *Flight*: one request with the records that it writes.
//! - *Term*: from acquiring leadership to losing it; what is known of Consul ends with it.
//! - *Resync*: all that is ours in Consul is read and compared with the ledger.
//! - *Marker*: what of ours a true resync must show, or it is no evidence of absence: the sentinel
//!   of an agent, the base node of the catalog.
//! - *Unknown*: what was not read, or not with certainty. It is never taken for absent.
//! - *Uncertain*: a write that got no answer and may still be applied.
//! - *Held*: a removal that waits for a second list or for `--allow-removals`. *Suspect*: an object
//!   that a list lacks and that is taken to exist until that list.
//! - *Foreign*: in Consul, and not by any bridge.

pub mod address;
pub mod backoff;
pub mod consul;
pub mod flights;
pub mod hash;
pub mod hook;
pub mod import;
pub mod kube;
pub mod map;
pub mod node;
pub mod problem;
pub mod report;
pub mod retries;
pub mod services;
pub mod sidecar;
pub mod sync;
#[cfg(test)]
mod testing;
pub mod text;
mod words;

/// A point in time: how long the process has been running.
pub type Moment = std::time::Duration;
