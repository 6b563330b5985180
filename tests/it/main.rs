//! The tests against real Consul agents and a real Kubernetes API server.

mod consul_edge;
mod faults;
mod kubernetes_edge;
