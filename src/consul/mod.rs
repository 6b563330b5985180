//! The edge to Consul.
