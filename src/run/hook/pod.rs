//! What Kubernetes says about the pod, and what becomes of it.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::Client;
use tokio::time::{Instant, sleep};

use crate::domain::hook::k8s::{Variables, decide, registered};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::pod::Pod;
use crate::domain::text::chain;
use crate::kubernetes::client::{Access, Environment, connect};
use crate::kubernetes::pods;
use crate::run::hook::error::Error;
use crate::run::hook::health::HealthOptions;
use crate::run::hook::instances::{self, ConsulOptions, Instance, Instances};
use crate::run::hook::retry::{Unsettled, retry};

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
}

/// Waits for the pod's address and its probe, and registers it. One that is not to be registered,
/// or no longer, is a success.
pub(super) async fn register(
    consul: ConsulOptions,
    options: &PodOptions,
    health: &HealthOptions,
) -> Result<(), Error> {
    let client = options.connect().await?;
    let deadline = Instant::now() + options.get_pod_timeout;
    let pod = options.find(&client, deadline, Absent::MayCome).await?;
    if pod.service_name().is_none() {
        tracing::info!(pod = %options.key, "no label consul: nothing to do");
        return Ok(());
    }
    let Some(ip) = pod.ip else { return Ok(()) };
    let node_labels = node_labels(&client, &pod, deadline).await;
    let mut decision = decide(&pod, ip, &node_labels, &options.variables)?;
    for warning in &decision.warnings {
        tracing::warn!(pod = %options.key, "{warning}");
    }
    if decision.registrations.is_empty() {
        return Ok(());
    }
    let instances = Instances::new(consul).await?;
    let address = ip.to_string();
    let own_address = Some(&*address).filter(|_| !pod.host_network);
    let identity = pod.identity_tags();
    let stale = std::mem::take(&mut decision.stale);
    let clean_up = instances.clean_up(&stale, own_address, &identity);
    if pod.terminating {
        clean_up.await;
    } else {
        let ((), healthy) = tokio::join!(clean_up, health.wait(&options.key, &mut decision));
        healthy?;
    }
    if pod.terminating || options.terminates(&client).await {
        tracing::info!(pod = %options.key, "the pod is terminating: nothing is registered");
        return Ok(());
    }
    instances.register(&decision.registrations).await?;
    instances.wait_passing(&decision.unproven(), health.wait_check).await;
    Ok(())
}

/// Removes what [`register`] registers. Of a pod that lost its label since, which is how people
/// take one out of service, the agent tells what was registered.
pub(super) async fn deregister(consul: ConsulOptions, options: &PodOptions) -> Result<(), Error> {
    let client = options.connect().await?;
    let deadline = Instant::now() + options.get_pod_timeout;
    let pod = options.find(&client, deadline, Absent::IsFinal).await?;
    let Some(ip) = pod.ip else { return Ok(()) };
    if pod.service_name().is_none() {
        tracing::info!(pod = %options.key, "no label consul: what is left behind is removed");
        return match Instances::new(consul).await {
            Ok(instances) => {
                instances.deregister_tagged(&pod.identity_tags(), &ip.to_string()).await
            }
            // It may never have had one.
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(error, "cannot tell whether an instance is left behind");
                Ok(())
            }
        };
    }
    let registered = registered(&pod, ip, &options.variables)?;
    instances::deregister(consul, registered.iter().map(Instance::of).collect()).await
}

/// What it means that the API server has no such pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absent {
    /// The kubelet makes the object of a static pod after it has started it.
    MayCome,
    /// It was deleted.
    IsFinal,
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
    async fn find(&self, client: &Client, deadline: Instant, absent: Absent) -> Result<Pod, Error> {
        loop {
            let pod = self.read(client, deadline, absent).await.map_err(Error::ReadPod)?;
            if pod.ip.is_some() || pod.service_name().is_none() {
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
        absent: Absent,
    ) -> Result<Pod, Unsettled<pods::Error>> {
        // A missing right too: roles that were made with the pod may take a moment.
        let is_transient = |error: &pods::Error| absent == Absent::MayCome || !error.is_absent();
        retry(deadline, || pods::pod(client, &self.key), is_transient).await
    }

    /// Whether the pod is going meanwhile; getting here may have taken minutes. That it cannot be
    /// read is no sign of it: a pod that was ready is registered.
    async fn terminates(&self, client: &Client) -> bool {
        let deadline = Instant::now() + self.get_pod_timeout;
        match self.read(client, deadline, Absent::IsFinal).await {
            Ok(pod) => pod.terminating,
            Err(Unsettled::Failed(error)) if error.is_absent() => true,
            Err(error) => {
                tracing::warn!(pod = %self.key, %error, "cannot tell whether the pod terminates");
                false
            }
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
