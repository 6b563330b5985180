//! Keeps Kubernetes and Consul in step, both ways, event by event.
//!
//! The map of the crate:
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | every flag of every subcommand |
//! | [`domain`] | the pure core: what ought to be in Consul, and which writes bring it there |
//! | [`kubernetes`] | the edge to the Kubernetes API |
//! | [`consul`] | the edge to Consul |
//! | [`mesos`] | the edge to a Mesos agent |
//! | [`probe`] | tries the probe of a pod, as the kubelet does |
//! | [`run`] | one subcommand each: the loop that joins the core and the edges |
//! | [`admin`] | HTTP: probes, metrics, status |
//!
//! Dependencies point one way: `run` to the edges, the edges to `domain`. An edge never imports
//! another edge, and `domain` imports nothing of ours.

pub mod admin;
pub mod cli;
pub mod consul;
pub mod domain;
pub mod kubernetes;
pub mod logging;
pub mod mesos;
pub mod probe;
pub mod run;
