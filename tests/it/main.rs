//! The tests against real Consul agents and a real Kubernetes API server.

mod kubernetes_edge;
