//! The registration hook against a real API server, with the rights that are shipped, and real
//! Consul agents.

mod agent;
mod health;
mod mesos;
mod pods;
mod support;
mod usage;
