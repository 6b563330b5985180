//! The agent and the catalog: instances are written to the one and waited for in the other.

use std::cell::RefCell;
use std::hash::{BuildHasher as _, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::consul::http::client::Client;
use crate::consul::http::config::{Config, ConfigError, TokenSource};
use crate::consul::http::{error, token};
use crate::consul::read::evidence::Unknown;
use crate::consul::read::instances;
use crate::consul::write::registration::AgentService;
use crate::domain::backoff::Backoff;
use crate::domain::hook::HookRegistration;
use crate::domain::hook::k8s::is_of_another_pod;
use crate::domain::text::chain;
use crate::run::hook::error::Error;
use crate::run::hook::retry::{Unsettled, retry};

/// Between two looks at the catalog: an agent's write is there within some milliseconds, and the
/// longest delay is what waiting costs at most beyond the catalog's own time.
const LOOKS: Backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(250));

/// Time for a question to the agent that a removal does not depend on: it answers from memory, in
/// a millisecond; a lost SYN is sent again after one second.
const ASIDE: Duration = Duration::from_secs(2);

/// How long an instance that may be hidden is looked for: its removal is in the catalog within
/// milliseconds.
const HIDDEN: Duration = Duration::from_millis(300);

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

/// Why the catalog was not seen to show a change.
#[derive(Debug)]
enum Unseen {
    /// It did not in time.
    Late(String),
    /// The token may not see it.
    Hidden(String),
}

/// What a removal found.
#[derive(Debug)]
enum Removed {
    /// The instance, of this name as far as it is known: it is gone.
    Gone(Option<String>),
    /// No instance of the ID.
    Unknown,
}

/// The agent's instances and what the catalog shows of them.
pub(super) struct Instances {
    client: Client,
    timeout: Duration,
    wait_catalog: Duration,
}

/// Writes them to the agent, and waits until the catalog shows them.
pub(super) async fn register(
    consul: ConsulOptions,
    registrations: &[HookRegistration],
) -> Result<(), Error> {
    if registrations.is_empty() {
        tracing::info!("nothing to register");
        return Ok(());
    }
    Instances::new(consul).await?.register(registrations).await
}

/// Removes them, and waits until the catalog shows them no longer.
pub(super) async fn deregister(
    consul: ConsulOptions,
    instances: Vec<Instance>,
) -> Result<(), Error> {
    if instances.is_empty() {
        tracing::info!("nothing to deregister");
        return Ok(());
    }
    Instances::new(consul).await?.deregister(instances).await
}

// === impl Instance ===

impl Instance {
    pub(super) fn of(registration: &HookRegistration) -> Self {
        Self { id: registration.id.clone(), name: Some(registration.name.clone()) }
    }
}

// === impl Instances ===

impl Instances {
    /// The agent that the options name. Their errors are reported only here: whoever has nothing to
    /// register needs no agent.
    pub(super) async fn new(options: ConsulOptions) -> Result<Self, Error> {
        let ConsulOptions { config, acl_file, timeout, wait_catalog } = options;
        let mut config = config.map_err(Error::ConsulVariable)?;
        config.token = first_token(acl_file, config.token).await;
        let client = Client::new(&config).map_err(Error::ConsulConfiguration)?;
        Ok(Self { client, timeout, wait_catalog })
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.timeout
    }

    /// Registers all, and waits until the catalog shows them.
    pub(super) async fn register(&self, registrations: &[HookRegistration]) -> Result<(), Error> {
        let deadline = self.deadline();
        for registration in registrations {
            let HookRegistration { id, name, address, port, .. } = registration;
            let service = AgentService::from(registration);
            let attempt = || self.client.register(&service);
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
        let deadline = self.deadline();
        let count = instances.len();
        let mut removed = Vec::with_capacity(count);
        let mut failures = Vec::new();
        for Instance { id, name } in instances {
            let result = match name {
                None if self.wait_catalog > Duration::ZERO => {
                    self.remove_unnamed(&id, deadline).await
                }
                name => self.remove(&id, deadline).await.map(|()| Removed::Gone(name)),
            };
            match result {
                Ok(Removed::Gone(name)) => {
                    tracing::info!(service = name, id, "deregistered");
                    removed.push(Instance { id, name });
                }
                Ok(Removed::Unknown) => {
                    tracing::info!(
                        id,
                        "nothing to deregister: the agent has no instance of this ID"
                    );
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
        let has_all = |has: &[String]| tags.iter().all(|tag| has.contains(tag));
        match self.at_address(address, has_all).await {
            Some(found) => self.deregister(found).await,
            None => Ok(()),
        }
    }

    /// The instances at an address whose tags are such; none where the agent does not tell them.
    async fn at_address(
        &self,
        address: &str,
        is_wanted: impl FnMut(&[String]) -> bool + Send,
    ) -> Option<Vec<Instance>> {
        let error =
            match timeout(ASIDE, instances::at_address(&self.client, address, is_wanted)).await {
                Ok(Ok(found)) => {
                    let instance = |(id, name)| Instance { id, name: Some(name) };
                    return Some(found.into_iter().map(instance).collect());
                }
                Ok(Err(error)) => chain(&error),
                Err(_) => format!("no answer within {ASIDE:?}"),
            };
        tracing::warn!(address, error, "cannot tell whether an instance is left behind");
        None
    }

    /// Removes what earlier pods left at the address of the pod with these identity tags, where
    /// the address is its own: `stale`, which may not be there, and what says that it is another
    /// pod's. Nothing that goes wrong here keeps a pod from registering beside it.
    pub(super) async fn clean_up(
        &self,
        stale: &[String],
        own_address: Option<&str>,
        identity: &[String; 2],
    ) {
        let deadline = self.deadline();
        let mut ids = stale.to_vec();
        if let Some(address) = own_address {
            let is_former = |tags: &[String]| is_of_another_pod(tags, identity);
            let former = self.at_address(address, is_former).await.unwrap_or_default();
            for Instance { id, name } in former {
                tracing::info!(
                    service = name,
                    id,
                    "an earlier pod of this address left it: removing"
                );
                if !ids.contains(&id) {
                    ids.push(id);
                }
            }
        }
        for id in &ids {
            if let Err(error) = self.remove(id, deadline).await {
                let error = chain(&error);
                tracing::warn!(id, error, "a stale instance of the pod's address stays");
            }
        }
    }

    /// Waits, for `bound` at most, until the agent has run the check of each with success. That
    /// it has not in time is only logged.
    pub(super) async fn wait_passing(&self, ids: &[&str], bound: Duration) {
        let deadline = Instant::now() + bound;
        for id in ids {
            let mut delays = LOOKS.delays(RandomState::new().hash_one(()));
            loop {
                let found =
                    match timeout_at(deadline, instances::is_passing(&self.client, id)).await {
                        // Without a check the token may not read it, which waiting does not change.
                        Ok(Ok(Some(true) | None)) => break,
                        Ok(Ok(Some(false))) => "not yet".to_owned(),
                        Ok(Err(error)) => chain(&error),
                        Err(_) => "no answer".to_owned(),
                    };
                let delay = delays.advance();
                if Instant::now() + delay >= deadline {
                    tracing::warn!(
                        id,
                        found,
                        "expected the agent's check to pass within {bound:?}: clients do not see \
                         the instance before it does (--wait-check waits longer)"
                    );
                    break;
                }
                sleep(delay).await;
            }
        }
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
    ) -> Result<Removed, Unsettled<error::Error>> {
        let name = RefCell::new(Err("no answer".to_owned()));
        let attempt = || async {
            // Once it is known the removal may be done, and only its answer be lost.
            if !matches!(*name.borrow(), Ok(Some(_))) {
                let said = timeout(ASIDE, instances::service_name(&self.client, id)).await;
                *name.borrow_mut() = match said {
                    Ok(answer) => answer.map_err(|error| chain(&error)),
                    Err(_) => Err(format!("no answer within {ASIDE:?}")),
                };
            }
            self.client.deregister(id).await
        };
        retry(deadline, attempt, error::Error::is_transient).await?;
        Ok(match name.into_inner() {
            Ok(Some(name)) => Removed::Gone(Some(name)),
            Ok(None) => Removed::Unknown,
            Err(error) => {
                tracing::warn!(id, error, "cannot tell when the catalog no longer has it");
                Removed::Gone(None)
            }
        })
    }

    /// Waits until the catalog shows all of `instances`, or none. That it does not in time is
    /// only logged: the agent has done what was asked, and goes on trying.
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
            let wait = self.wait_catalog;
            match self.wait_for(name, id, node.as_deref(), wanted, deadline).await {
                Ok(()) => {}
                Err(Unseen::Hidden(why)) => tracing::info!(
                    service = name,
                    id,
                    why,
                    "the token may not see this in the catalog: the change is not waited for \
                     (manifests/consul/hook.hcl has the rules that let it)"
                ),
                Err(Unseen::Late(found)) => tracing::warn!(
                    service = name,
                    id,
                    "expected the catalog {} it within {wait:?}, found: {found}; clients may see \
                     the change later (--wait-catalog waits longer)",
                    match wanted {
                        Wanted::Present => "to show",
                        Wanted::Absent => "to no longer show",
                    },
                ),
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
    ) -> Result<(), Unseen> {
        let mut deadline = deadline;
        let mut found = Unseen::Late("no answer".to_owned());
        let mut delays = LOOKS.delays(RandomState::new().hash_one(()));
        loop {
            let look = instances::is_in_catalog(&self.client, name, id, node);
            match timeout_at(deadline, look).await {
                Ok(Ok(present)) if present == (wanted == Wanted::Present) => return Ok(()),
                Ok(Ok(true)) => found = Unseen::Late("it is there".to_owned()),
                Ok(Ok(false)) => found = Unseen::Late("it is not there".to_owned()),
                Ok(Err(unknown)) if is_hidden(&unknown) => {
                    // What is hidden may be the instance itself: there is one, then, and once
                    // there is nothing to hide it has gone.
                    found = Unseen::Hidden(chain(&unknown));
                    if wanted == Wanted::Present {
                        return Err(found);
                    }
                    deadline = deadline.min(Instant::now() + HIDDEN);
                }
                Ok(Err(unknown)) => found = Unseen::Late(chain(&unknown)),
                Err(_) => return Err(found),
            }
            let delay = delays.advance();
            if Instant::now() + delay >= deadline {
                return Err(found);
            }
            sleep(delay).await;
        }
    }
}

/// Whether the token's rights keep the answer from being known, which waiting does not change.
fn is_hidden(unknown: &Unknown) -> bool {
    match unknown {
        Unknown::Filtered { .. } | Unknown::NotAuthoritative { .. } => true,
        Unknown::Failed { source, .. } => matches!(source, error::Error::Denied { .. }),
        Unknown::MarkerMissing { .. } => false,
    }
}

/// The token of the flag's file, else of the environment. A file that gives none is logged and
/// passed over, as there: whether a token is needed is the agent's to say.
async fn first_token(acl_file: Option<PathBuf>, environment: TokenSource) -> TokenSource {
    for source in acl_file.map(TokenSource::File).into_iter().chain([environment]) {
        let TokenSource::File(path) = &source else { return source };
        let found = match token::is_in_file(path).await {
            Ok(true) => return source,
            Ok(false) => format!("token file {}: expected a token, found none", path.display()),
            Err(error) => chain(&error),
        };
        tracing::warn!("{found}; it is passed over");
    }
    TokenSource::Anonymous
}

/// Each is logged, the error counts them.
fn several(failures: &[(String, Unsettled<error::Error>)], of: usize) -> Error {
    let mut ids = Vec::with_capacity(failures.len());
    for (id, error) in failures {
        tracing::error!(id, error = chain(error), "cannot deregister");
        ids.push(id.as_str());
    }
    Error::DeregisterSome { count: failures.len(), of, ids: ids.join(", ") }
}
