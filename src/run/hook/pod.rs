//! What Kubernetes says about the pod, and the probe before registering.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::domain::hook::k8s::{Attempt, Decision, Pod, Variables, decide};
use crate::domain::kube::names::ObjectKey;
use crate::kubernetes::client::{Access, Environment, connect};
use crate::kubernetes::pods;
use crate::probe::Prober;
use crate::run::hook::instances::{Instance, Instances};
use crate::run::hook::retry::retry;
use crate::run::hook::{Error, Unsettled};

/// Time between two looks at a pod without an address: its sandbox takes some tenths of a
/// second.
const ADDRESS_INTERVAL: Duration = Duration::from_millis(200);

/// A pod, and how its cluster is reached.
#[derive(Debug)]
pub struct PodOptions {
    /// How Kubernetes is reached.
    pub access: Access,
    /// What the process found around itself.
    pub environment: Environment,
    /// Namespace and name.
    pub key: ObjectKey,
    /// What the environment adds to its tags and ports.
    pub variables: Variables,
    /// How long the pod is tried to be read, until it has an address.
    pub get_pod_timeout: Duration,
    /// How long its probe is tried.
    pub health_check_timeout: Duration,
}

/// Waits for the pod's address and its probe, and registers it. One that is not to be registered,
/// or no longer, is a success.
pub(super) async fn register(instances: &Instances, options: &PodOptions) -> Result<(), Error> {
    let client = options.connect().await?;
    let deadline = Instant::now() + options.get_pod_timeout;
    let pod = options.find(&client, deadline).await?;
    if pod.service_name()?.is_none() {
        tracing::info!(pod = %options.key, "no label consul: nothing to do");
        return Ok(());
    }
    let Some(ip) = pod.ip else { return Ok(()) };
    let node_labels = node_labels(&client, &pod, deadline).await;
    let decision = decide(&pod, ip, &node_labels, &options.variables)?;
    let Decision { registrations, stale, probe, warnings } = decision;
    for warning in &warnings {
        tracing::warn!(pod = %options.key, "{warning}");
    }
    instances.remove_stale(&stale).await?;
    let mut terminating = pod.terminating;
    if let Some(probe) = probe.filter(|_| !terminating) {
        options.wait_healthy(&probe).await?;
        // It may have taken minutes.
        let deadline = Instant::now() + options.get_pod_timeout;
        terminating = match options.read(&client, deadline).await {
            Ok(pod) => pod.terminating,
            Err(Unsettled::Failed(error)) if error.is_absent() => true,
            Err(error) => return Err(Error::ReadPod(error)),
        };
    }
    if terminating {
        tracing::info!(pod = %options.key, "the pod is terminating: nothing is registered");
        return Ok(());
    }
    instances.register(&registrations).await
}

/// Removes what [`register`] registers. Of a pod that lost its label since, which is how people
/// take one out of service, the agent tells what was registered.
pub(super) async fn deregister(instances: &Instances, options: &PodOptions) -> Result<(), Error> {
    let client = options.connect().await?;
    let deadline = Instant::now() + options.get_pod_timeout;
    let pod = options.find(&client, deadline).await?;
    let Some(ip) = pod.ip else { return Ok(()) };
    if !pod.is_labelled() {
        tracing::info!(pod = %options.key, "no label consul: what is left behind is removed");
        return instances.deregister_tagged(&pod.identity_tags(), &ip.to_string()).await;
    }
    // Neither tags nor warnings matter now.
    let decision = decide(&pod, ip, &BTreeMap::new(), &options.variables)?;
    instances.deregister(decision.registrations.iter().map(Instance::of).collect()).await
}

// === impl PodOptions ===

impl PodOptions {
    async fn connect(&self) -> Result<Client, Error> {
        let connected = connect(&self.access, &self.environment)
            .await
            .map_err(Error::KubernetesConfiguration)?;
        tracing::debug!(url = connected.url, source = connected.source, "Kubernetes");
        Ok(connected.client)
    }

    /// The pod once it has its address; without one if it is not to be registered, or goes
    /// without having had one.
    async fn find(&self, client: &Client, deadline: Instant) -> Result<Pod, Error> {
        loop {
            let pod = self.read(client, deadline).await.map_err(Error::ReadPod)?;
            if pod.ip.is_some() || !pod.is_labelled() {
                return Ok(pod);
            }
            if pod.terminating {
                tracing::info!(pod = %self.key, "terminating without an address: nothing to do");
                return Ok(pod);
            }
            if Instant::now() + ADDRESS_INTERVAL >= deadline {
                let pod = self.key.to_string();
                return Err(Error::NoAddress { pod, timeout: self.get_pod_timeout });
            }
            sleep(ADDRESS_INTERVAL).await;
        }
    }

    async fn read(
        &self,
        client: &Client,
        deadline: Instant,
    ) -> Result<Pod, Unsettled<pods::Error>> {
        // A missing right too: roles that were made with the pod may take a moment.
        retry(deadline, || pods::pod(client, &self.key), |error| !error.is_absent()).await
    }

    /// Tries the probe each period until it succeeds.
    async fn wait_healthy(&self, probe: &Attempt) -> Result<(), Error> {
        let timeout = self.health_check_timeout;
        let deadline = Instant::now() + timeout;
        let prober = Prober::new().map_err(Error::ProbeConfiguration)?;
        let mut next = Instant::now() + probe.initial_delay;
        let mut last = None;
        let unhealthy = |last: Option<String>, otherwise: &str| Error::Unhealthy {
            timeout,
            last: last.unwrap_or_else(|| otherwise.to_owned()),
        };
        loop {
            if next >= deadline {
                sleep_until(deadline).await;
                return Err(unhealthy(last, "no try: the initial delay is longer"));
            }
            sleep_until(next).await;
            match timeout_at(deadline, prober.attempt(&probe.target)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(failed)) => {
                    tracing::debug!(pod = %self.key, %failed, "the probe is tried again");
                    last = Some(failed.to_string());
                }
                Err(_) => return Err(unhealthy(last, "no answer")),
            }
            next = (next + probe.period).max(Instant::now());
        }
    }
}

/// For the tags of zone and region: that they cannot be read stops nothing.
async fn node_labels(client: &Client, pod: &Pod, deadline: Instant) -> BTreeMap<String, String> {
    let Some(node) = &pod.node else { return BTreeMap::new() };
    let attempt = || pods::node_labels(client, node);
    let is_transient = |error: &pods::Error| !error.is_denied() && !error.is_absent();
    retry(deadline, attempt, is_transient).await.unwrap_or_else(|error| {
        tracing::warn!(node, %error, "no tags of zone and region");
        BTreeMap::new()
    })
}
