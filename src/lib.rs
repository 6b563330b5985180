//! Keeps Kubernetes and Consul in step, both ways, event by event.

pub mod cli;
pub mod consul;
pub mod domain;
pub mod kubernetes;
pub mod mesos;
pub mod probe;
pub mod run;
