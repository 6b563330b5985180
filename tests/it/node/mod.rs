//! The daemon of a node: pods on kwok, a client agent, and a server that has the catalog. The daemon has
//! the shipped role, admission policy and ACL policy.

mod basics;
mod bursts;
mod gates;
mod kubelet;
mod neighbours;
mod replaced;
mod support;
