//! The catalog sink: synthetic nodes, transactions, a fenced leader.

mod addresses;
mod atomic;
mod basics;
mod datacenters;
mod edge;
mod election;
mod failover;
mod large;
mod neighbours;
mod quorum;
mod registration;
mod rights;
mod support;
