//! A pod and the probes of its containers, as far as they say what is registered for it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

/// The parts of a pod that a registration is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its first address, once it has one.
    pub ip: Option<IpAddr>,
    /// The node that it was assigned to.
    pub node: Option<String>,
    /// Whether it has a deletion timestamp.
    pub terminating: bool,
    /// Whether its address is its node's, which other pods and programs share.
    pub host_network: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its containers, in their order.
    pub containers: Vec<Container>,
    /// Its init containers that run beside them (`restartPolicy: Always`). They are registered
    /// only where they are named: the first container is an application's.
    pub sidecars: Vec<Container>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its declared ports, in their order.
    pub ports: Vec<ContainerPort>,
    /// Whether it has started.
    pub startup: Option<Probe>,
    /// Whether it is to get traffic.
    pub readiness: Option<Probe>,
    /// Whether it is to be restarted.
    pub liveness: Option<Probe>,
}

/// A declared port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its number.
    pub port: u16,
}

/// A probe, with Kubernetes' defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What it does.
    pub action: Action,
    /// Time from the container's start to the first try.
    pub initial_delay: Duration,
    /// Time from one try to the next.
    pub period: Duration,
    /// Time that an answer may take.
    pub timeout: Duration,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// GET.
    Http {
        /// Whether by HTTPS.
        https: bool,
        /// Another host than the pod's address.
        host: Option<String>,
        /// The port.
        port: Port,
        /// Path and query.
        path: String,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// A connection.
    Tcp {
        /// Another host than the pod's address.
        host: Option<String>,
        /// The port.
        port: Port,
    },
    /// gRPC's health protocol.
    Grpc {
        /// The port.
        port: u16,
        /// The service to ask about.
        service: Option<String>,
    },
    /// A command in the container.
    Exec,
    /// Nothing that this program knows.
    Unknown,
}

/// A probe's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Its number.
    Number(u16),
    /// The name of a port of the probe's container.
    Name(String),
}
