//! Why a hook did not succeed, and which exit code that is.

use std::time::Duration;

use crate::consul::http::config::ConfigError;
use crate::consul::http::error as consul;
use crate::consul::http::setup::BuildError;
use crate::domain::hook::Invalid;
use crate::kubernetes::{client, pods};
use crate::run::hook::retry::Unsettled;
use crate::{mesos, probe};

/// Why a hook did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is to be registered cannot be.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// A variable of Consul's cannot be used.
    #[error(transparent)]
    ConsulVariable(ConfigError),
    /// No client for Consul can be made.
    #[error("cannot use the configuration of Consul")]
    ConsulConfiguration(#[source] BuildError),
    /// No client for Kubernetes can be made.
    #[error("cannot use the configuration of Kubernetes")]
    KubernetesConfiguration(#[source] client::Error),
    /// No client for probes can be made.
    #[error("cannot try the probe of the pod")]
    ProbeConfiguration(#[source] probe::BuildError),
    /// No client for the Mesos agent can be made.
    #[error("cannot ask the Mesos agent")]
    MesosConfiguration(#[source] mesos::Error),
    /// No runtime can be made.
    #[error("cannot start")]
    Runtime(#[source] std::io::Error),
    /// The pod could not be read.
    #[error("the pod could not be read")]
    ReadPod(#[source] Unsettled<pods::Error>),
    /// The pod got no address.
    #[error(
        "pod {pod}: expected an IP address within {timeout:?}, found none; \
         --get-pod-timeout (KUBERNETES_GET_POD_TIMEOUT) waits longer"
    )]
    NoAddress {
        /// The pod.
        pod: String,
        /// How long was waited.
        timeout: Duration,
    },
    /// The probe did not succeed.
    #[error(
        "expected the pod's probe to succeed within {timeout:?}, found: {last}; nothing is \
         registered; --health-check-timeout (KUBERNETES_HEALTH_CHECK_TIMEOUT) waits longer"
    )]
    Unhealthy {
        /// How long was tried.
        timeout: Duration,
        /// Of the last try.
        last: String,
    },
    /// The Mesos agent's state could not be read.
    #[error("the task could not be read")]
    ReadTask(#[source] Unsettled<mesos::Error>),
    /// The agent did not take an instance.
    #[error("cannot register {id}")]
    Register {
        /// The instance's ID.
        id: String,
        /// Why.
        source: Unsettled<consul::Error>,
    },
    /// The agent did not remove an instance.
    #[error("cannot deregister {id}")]
    Deregister {
        /// The instance's ID.
        id: String,
        /// Why.
        source: Unsettled<consul::Error>,
    },
    /// The agent did not remove several; each was logged.
    #[error("cannot deregister {count} of {of} instances: {ids}")]
    DeregisterSome {
        /// How many are left.
        count: usize,
        /// Of how many.
        of: usize,
        /// Their IDs.
        ids: String,
    },
}

// === impl Error ===

impl Error {
    /// 2 for what the user has to correct, 1 for what failed.
    pub fn exit_code(&self) -> u8 {
        if self.is_configuration() { 2 } else { 1 }
    }

    fn is_configuration(&self) -> bool {
        match self {
            Self::Invalid(error) => !matches!(error, Invalid::NoTask { .. }),
            Self::ConsulVariable(_)
            | Self::ConsulConfiguration(_)
            | Self::KubernetesConfiguration(_) => true,
            Self::Register { .. }
            | Self::Deregister { .. }
            | Self::ProbeConfiguration(_)
            | Self::MesosConfiguration(_)
            | Self::Runtime(_)
            | Self::ReadPod(_)
            | Self::NoAddress { .. }
            | Self::Unhealthy { .. }
            | Self::ReadTask(_)
            | Self::DeregisterSome { .. } => false,
        }
    }
}
