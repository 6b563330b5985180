//! The tests against real Consul agents and a real Kubernetes API server.

mod consul_edge;
mod hook;
mod kubernetes_edge;
