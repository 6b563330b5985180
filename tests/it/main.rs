//! The tests against real Consul agents and a real Kubernetes API server.

mod acl;
mod addresses;
mod catalog;
mod conflicts;
mod consul_edge;
mod documentation;
mod faults;
mod health;
mod hook;
mod image;
mod import;
mod kubernetes_edge;
mod login;
mod manifests;
mod objects;
mod page;
mod plan;
mod problems;
mod ptr;
mod purge;
mod registration;
mod rollout;
mod servers;
mod support;
mod terminal;
mod usage;
