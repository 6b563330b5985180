//! The agent and the catalog: instances are written to the one and waited for in the other.

use std::cell::RefCell;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::consul::http::client::Client;
use crate::consul::http::config::Config;
use crate::consul::http::error;
use crate::consul::write::hook;
use crate::domain::hook::HookRegistration;
use crate::domain::text::chain;
use crate::run::hook::Error;
use crate::run::hook::retry::{Unsettled, retry};

/// Time between two looks at the catalog, at first: an agent's write is there within some
/// milliseconds.
const FIRST_LOOK: Duration = Duration::from_millis(10);

/// The same later on: what waiting costs at most beyond the catalog's own time.
const LATER_LOOKS: Duration = Duration::from_millis(250);

/// Time for a question to the agent that a removal does not depend on: it answers from memory, in
/// a millisecond; a lost SYN is sent again after one second.
const ASIDE: Duration = Duration::from_secs(2);

/// An instance by what finds it in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Instance {
    pub id: String,
    /// The service's name; none: the agent has to be asked.
    pub name: Option<String>,
}

/// Where a wait for the catalog leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Present,
    Absent,
}

/// The agent's instances and what the catalog shows of them.
pub(super) struct Instances {
    client: Client,
    timeout: Duration,
    wait_catalog: Duration,
}

// === impl Instance ===

impl Instance {
    pub(super) fn of(registration: &HookRegistration) -> Self {
        Self { id: registration.id.clone(), name: Some(registration.name.clone()) }
    }
}

// === impl Instances ===

impl Instances {
    pub(super) fn new(
        config: &Config,
        timeout: Duration,
        wait_catalog: Duration,
    ) -> Result<Self, Error> {
        let client = Client::new(config).map_err(Error::ConsulConfiguration)?;
        Ok(Self { client, timeout, wait_catalog })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Registers all, and waits until the catalog shows them.
    pub(super) async fn register(&self, registrations: &[HookRegistration]) -> Result<(), Error> {
        if registrations.is_empty() {
            tracing::info!("nothing to register");
        }
        let deadline = self.deadline();
        for registration in registrations {
            let HookRegistration { id, name, address, port, .. } = registration;
            let attempt = || hook::register(&self.client, registration);
            retry(deadline, attempt, error::Error::is_transient)
                .await
                .map_err(|source| Error::Register { id: id.clone(), source })?;
            tracing::info!(service = name, id, address, port, "registered");
        }
        self.wait(registrations.iter().map(Instance::of).collect(), Wanted::Present).await;
        Ok(())
    }

    /// Removes all, tries each whatever becomes of the others, and waits until the catalog no
    /// longer shows those that are removed.
    pub(super) async fn deregister(&self, instances: Vec<Instance>) -> Result<(), Error> {
        if instances.is_empty() {
            tracing::info!("nothing to deregister");
        }
        let deadline = self.deadline();
        let count = instances.len();
        let mut removed = Vec::with_capacity(count);
        let mut failures = Vec::new();
        for Instance { id, name } in instances {
            let result = match name {
                None if self.wait_catalog > Duration::ZERO => {
                    self.remove_unnamed(&id, deadline).await
                }
                name => self.remove(&id, deadline).await.map(|()| name),
            };
            match result {
                Ok(name) => {
                    tracing::info!(service = name, id, "deregistered");
                    removed.push(Instance { id, name });
                }
                Err(source) => failures.push((id, source)),
            }
        }
        self.wait(removed, Wanted::Absent).await;
        match <[_; 1]>::try_from(failures) {
            Ok([(id, source)]) => Err(Error::Deregister { id, source }),
            Err(none) if none.is_empty() => Ok(()),
            Err(failures) => Err(several(&failures, count)),
        }
    }

    /// Removes those at an address that carry these tags, as far as the agent tells them.
    pub(super) async fn deregister_tagged(
        &self,
        tags: &[String],
        address: &str,
    ) -> Result<(), Error> {
        let error = match timeout(ASIDE, hook::tagged(&self.client, tags, address)).await {
            Ok(Ok(found)) => {
                let instance = |(id, name)| Instance { id, name: Some(name) };
                return self.deregister(found.into_iter().map(instance).collect()).await;
            }
            Ok(Err(error)) => chain(&error),
            Err(_) => format!("no answer within {ASIDE:?}"),
        };
        tracing::warn!(address, error, "cannot tell whether an instance is left behind");
        Ok(())
    }

    /// Removes instances that may not be there, without waiting for the catalog. One that Consul
    /// does not let go, which may be another service's, keeps nobody from registering beside it.
    pub(super) async fn remove_stale(&self, ids: &[String]) -> Result<(), Error> {
        let deadline = self.deadline();
        for id in ids {
            match self.remove(id, deadline).await {
                Err(Unsettled::Failed(error)) if is_refused_alone(&error) => {
                    let error = chain(&error);
                    tracing::warn!(id, error, "a stale instance of the pod's address stays");
                }
                result => result.map_err(|source| Error::Deregister { id: id.clone(), source })?,
            }
        }
        Ok(())
    }

    async fn remove(&self, id: &str, deadline: Instant) -> Result<(), Unsettled<error::Error>> {
        retry(deadline, || self.client.deregister(id), error::Error::is_transient).await
    }

    /// Removes an instance and gives its name, by which the catalog is asked and which the agent
    /// tells only as long as it has the instance. That it cannot be told stops nothing.
    async fn remove_unnamed(
        &self,
        id: &str,
        deadline: Instant,
    ) -> Result<Option<String>, Unsettled<error::Error>> {
        let name = RefCell::new(Err("no answer".to_owned()));
        let attempt = || async {
            // Once it is known the removal may be done, and only its answer be lost.
            if !matches!(*name.borrow(), Ok(Some(_))) {
                let said = timeout(ASIDE, hook::service_name(&self.client, id)).await;
                *name.borrow_mut() = match said {
                    Ok(answer) => answer.map_err(|error| chain(&error)),
                    Err(_) => Err(format!("no answer within {ASIDE:?}")),
                };
            }
            self.client.deregister(id).await
        };
        retry(deadline, attempt, error::Error::is_transient).await?;
        Ok(match name.into_inner() {
            Ok(Some(name)) => Some(name),
            Ok(None) => {
                tracing::info!(id, "the agent has no instance of this ID");
                None
            }
            Err(error) => {
                tracing::warn!(id, error, "cannot tell when the catalog no longer has it");
                None
            }
        })
    }

    /// Waits until the catalog shows all of `instances`, or none. That it does not in time is
    /// only told: the agent has done what was asked, and goes on trying.
    async fn wait(&self, instances: Vec<Instance>, wanted: Wanted) {
        if self.wait_catalog == Duration::ZERO || instances.is_empty() {
            return;
        }
        let deadline = Instant::now() + self.wait_catalog;
        // Without the right to ask, instances of this ID on any node count.
        let node = match timeout_at(deadline, self.client.agent_self()).await {
            Ok(Ok(agent)) => Some(agent.node),
            Ok(Err(_)) | Err(_) => None,
        };
        for Instance { id, name } in &instances {
            let Some(name) = name else { continue };
            if let Err(found) = self.wait_for(name, id, node.as_deref(), wanted, deadline).await {
                let wait = self.wait_catalog;
                tracing::warn!(
                    service = name,
                    id,
                    "expected the catalog {} it within {wait:?}, found: {found}; clients may see \
                     the change later (--wait-catalog waits longer)",
                    match wanted {
                        Wanted::Present => "to show",
                        Wanted::Absent => "to no longer show",
                    },
                );
            }
        }
    }

    async fn wait_for(
        &self,
        name: &str,
        id: &str,
        node: Option<&str>,
        wanted: Wanted,
        deadline: Instant,
    ) -> Result<(), String> {
        let mut found = "no answer".to_owned();
        let mut delay = FIRST_LOOK;
        loop {
            let look = hook::is_in_catalog(&self.client, name, id, node);
            match timeout_at(deadline, look).await {
                Ok(Ok(present)) if present == (wanted == Wanted::Present) => return Ok(()),
                Ok(Ok(true)) => "it is there".clone_into(&mut found),
                Ok(Ok(false)) => "it is not there".clone_into(&mut found),
                Ok(Err(unknown)) => found = chain(&unknown),
                Err(_) => return Err(found),
            }
            if Instant::now() + delay >= deadline {
                return Err(found);
            }
            sleep(delay).await;
            delay = (delay * 2).min(LATER_LOOKS);
        }
    }
}

/// Whether Consul refuses the change of this instance, and not whoever asks.
fn is_refused_alone(error: &error::Error) -> bool {
    use error::Error::{Denied, Refused};
    matches!(error, Denied { .. } | Refused { .. }) && !error.is_unknown_token()
}

/// Each is told, the error counts them.
fn several(failures: &[(String, Unsettled<error::Error>)], of: usize) -> Error {
    let mut ids = Vec::with_capacity(failures.len());
    for (id, error) in failures {
        tracing::error!(id, error = chain(error), "cannot deregister");
        ids.push(id.as_str());
    }
    Error::DeregisterSome { count: failures.len(), of, ids: ids.join(", ") }
}
