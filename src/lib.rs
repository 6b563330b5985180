//! Keeps Kubernetes and Consul in sync, event by event.
//!
//! The map of the crate:
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | every flag of every subcommand |
//! | [`domain`] | the pure core: what ought to be in Consul, and which writes bring it there |
//! | [`kubernetes`] | the edge to the Kubernetes API |
//! | [`consul`] | the edge to Consul |
//! | [`grpc`] | the edge between a sidecar and the daemon of its node |
//! | [`mesos`] | the edge to a Mesos agent |
//! | [`probe`] | tries the probe of a pod, as the kubelet does |
//! | [`run`] | one subcommand each: the loop that joins the core and the edges |
//! | [`admin`] | HTTP: probes, metrics, status |
//! | [`logging`] | logs: text on a terminal, JSON elsewhere |
//! | [`tls`] | which library encrypts |
//!
//! Dependencies point one way: `run` to the edges, the edges to `domain`. An edge never imports
//! another edge, and `domain` imports nothing of ours.
//!
//! # The invariants
//!
//! Comments name them by their word where they are kept; `docs/dev/invariants.md` says them in
//! full.
//!
//! 1. *Evidence*: **Nothing is removed out of ignorance.** A record goes because its object was
//!    seen to be deleted, or is absent from a complete and authoritative listing. A read that
//!    failed, was denied, filtered or cut short is unknown, and unknown removes nothing.
//! 2. *Ownership*: **Only our own records are touched.** A foreign one that stands in the way is a
//!    problem on the object that wants its place.
//! 3. *Identity*: **The wrong cluster cannot take over.** The owner key holds the uid of the
//!    cluster's `kube-system`; with another uid there nothing is written.
//! 4. *Convergence*: **It converges.** After any finite series of faults what is in Consul is what
//!    ought to be, without a restart.
//! 5. *Silence*: **Equal means silent.** A record that is as it should be is not written, neither
//!    by a resync nor after a restart.
//! 6. *Order*: **Newer wins.** No older state of a record is written after a newer one: a record
//!    with a write under way waits for its answer, and one whose write got no answer is read back
//!    later.
//! 7. *Isolation*: **One bad object harms only itself.** It becomes a problem, everything else goes
//!    on.
//! 8. *Bounds*: **Everything is bounded**: queues, requests under way, delays, bodies, deadlines,
//!    each by a named constant that says where its number comes from.
//! 9. *Fencing*: **A deposed leader cannot write.** With leader election, which only the catalog sink
//!    has, each transaction checks the lock. Nothing else is fenced: an agent belongs to one bridge.
//! 10. *Persistence*: **An exit keeps registrations** in whatever outlives the process. Removing
//!     them is `purge`.
//! 11. *Secrecy*: **Secrets stay secret**: no token in a log, an error, a page or an argument.

pub mod admin;
pub mod cli;
pub mod consul;
pub mod domain;
pub mod grpc;
pub mod kubernetes;
pub mod logging;
pub mod mesos;
pub mod probe;
pub mod run;
pub mod tls;

#[cfg(test)]
mod structure;
