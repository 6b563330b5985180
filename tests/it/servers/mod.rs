//! Consul itself on Kubernetes: what the manifests would run is run, on addresses of this machine,
//! and treated as a cluster treats its pods.

mod acl;
mod agents;
mod cert_manager;
mod dns;
mod documents;
mod install;
mod lifecycle;
mod node;
mod overlays;
mod rotation;
mod scenarios;
mod snapshots;
mod support;
