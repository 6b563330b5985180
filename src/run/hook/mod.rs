//! `register` and `deregister`: the registration hook.
//!
//! A hook is run by whoever starts and ends the instance, which waits for it: so `register` ends
//! when the catalog shows the instance, `deregister` when it no longer does. Every phase has a
//! deadline that holds over all of it, name lookups and connecting included; within it,
//! transient failures are tried again.
//!
//! | file | phase |
//! |---|---|
//! | [`pod`] | what Kubernetes says |
//! | [`health`] | the probe and the checks' own targets, before registering |
//! | [`instances`] | the agent and the catalog |
//! | [`retry`] | trying again until a deadline |

mod health;
mod instances;
mod pod;
mod retry;

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::Instant;

pub use self::health::HealthOptions;
use self::instances::{Instance, Instances};
pub use self::pod::PodOptions;
use self::retry::{Unsettled, retry};
use crate::consul::http::config::{Config, ConfigError};
use crate::consul::http::error as consul;
use crate::consul::http::setup::BuildError;
use crate::domain::hook::mesos::{Place, decide};
use crate::domain::hook::{HookRegistration, Invalid};
use crate::kubernetes::{client, pods};
use crate::tls::install_provider;
use crate::{mesos, probe};

/// What a hook needs to know.
#[derive(Debug)]
pub struct Options {
    /// The agent.
    pub consul: ConsulOptions,
    /// What to do.
    pub job: Job,
}

/// Consul's agent, and how long it is waited for.
#[derive(Debug)]
pub struct ConsulOptions {
    /// How it is reached, or why the environment does not tell.
    pub config: Result<Config, ConfigError>,
    /// File with the ACL token, before what `config` has.
    pub acl_file: Option<PathBuf>,
    /// How long the agent, and with Mesos its agent too, is tried.
    pub timeout: Duration,
    /// How long the catalog is waited for; zero: not at all.
    pub wait_catalog: Duration,
}

/// What to do, from which source.
#[derive(Debug)]
pub enum Job {
    /// Register what a pod's labels say.
    RegisterPod(Box<PodOptions>, HealthOptions),
    /// Remove it.
    DeregisterPod(Box<PodOptions>),
    /// Register what a Mesos task's labels say.
    RegisterTask(TaskOptions),
    /// Remove it.
    DeregisterTask(TaskOptions),
    /// Register this.
    Register(HookRegistration),
    /// Remove the instance of this ID.
    Deregister(String),
}

/// A Mesos task.
#[derive(Clone, Debug)]
pub struct TaskOptions {
    /// The Mesos agent.
    pub agent: mesos::AgentUrl,
    /// Which task, on which host.
    pub place: Place,
}

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

/// Runs one hook to its end, on a runtime of its own: one thread is enough and starts fastest.
pub fn main(options: Options) -> Result<(), Error> {
    install_provider();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Runtime)?;
    let result = runtime.block_on(run(options));
    // A name lookup that hangs must not hold up an end by deadline.
    runtime.shutdown_background();
    result
}

async fn run(options: Options) -> Result<(), Error> {
    let Options { consul, job } = options;
    match job {
        Job::RegisterPod(pod, health) => pod::register(consul, &pod, &health).await,
        Job::DeregisterPod(pod) => pod::deregister(consul, &pod).await,
        Job::RegisterTask(task) => {
            let registrations = task.registrations(consul.timeout).await?;
            register(consul, &registrations).await
        }
        Job::DeregisterTask(task) => {
            let registrations = task.registrations(consul.timeout).await?;
            deregister(consul, registrations.iter().map(Instance::of).collect()).await
        }
        Job::Register(registration) => register(consul, &[registration]).await,
        Job::Deregister(id) => deregister(consul, vec![Instance { id, name: None }]).await,
    }
}

async fn register(consul: ConsulOptions, registrations: &[HookRegistration]) -> Result<(), Error> {
    if registrations.is_empty() {
        tracing::info!("nothing to register");
        return Ok(());
    }
    Instances::new(consul).await?.register(registrations).await
}

async fn deregister(consul: ConsulOptions, instances: Vec<Instance>) -> Result<(), Error> {
    if instances.is_empty() {
        tracing::info!("nothing to deregister");
        return Ok(());
    }
    Instances::new(consul).await?.deregister(instances).await
}

// === impl TaskOptions ===

impl TaskOptions {
    async fn registrations(&self, timeout: Duration) -> Result<Vec<HookRegistration>, Error> {
        let deadline = Instant::now() + timeout;
        let agent = mesos::Agent::new(&self.agent).map_err(Error::MesosConfiguration)?;
        let state = retry(deadline, || agent.state(), mesos::Error::is_transient)
            .await
            .map_err(Error::ReadTask)?;
        let decision = decide(&state, &self.place)?;
        for warning in &decision.warnings {
            tracing::warn!("{warning}");
        }
        Ok(decision.registrations)
    }
}
