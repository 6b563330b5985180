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
//! | [`error`] | why it did not succeed |
//! | [`retry`] | trying again until a deadline |

mod error;
mod health;
mod instances;
mod pod;
mod retry;

use std::time::Duration;

use tokio::time::Instant;

pub use self::error::Error;
pub use self::health::HealthOptions;
pub use self::instances::ConsulOptions;
use self::instances::{Instance, deregister, register};
pub use self::pod::PodOptions;
use self::retry::retry;
use crate::domain::hook::HookRegistration;
use crate::domain::hook::mesos::{Place, decide};
use crate::mesos;
use crate::tls::install_provider;

/// What a hook needs to know.
#[derive(Debug)]
pub struct Options {
    /// The agent.
    pub consul: ConsulOptions,
    /// What to do.
    pub job: Job,
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
