//! The daemon of a node: pods on kwok, a client agent, and a server that has the catalog. The daemon has
//! the shipped role, admission policy and ACL policy.

mod basics;
mod bugs;
mod bursts;
mod flood;
mod gates;
mod kubelet;
mod neighbours;
mod odd;
mod page;
mod replaced;
mod support;
mod timing;
