//! Consul itself on Kubernetes: what the manifests would run is run, on addresses of this machine,
//! and treated as a cluster treats its pods.

mod acl;
mod agents;
mod dns;
mod documents;
mod install;
mod lifecycle;
mod overlays;
mod rotation;
mod scenarios;
mod snapshots;
mod support;
