//! Keeps Kubernetes and Consul in step, both ways, event by event.

pub mod consul;
pub mod domain;
pub mod kubernetes;
