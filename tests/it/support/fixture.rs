//! The servers that a test talks to.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube_consul_stack::{
    Consul, ConsulApi, ConsulCluster, ConsulOptions, Endpoint, HttpRecorder, Kubernetes,
    ProgramOptions, ServiceKind, eventually,
};
use serde_json::Value;

use super::{Bridge, DEADLINE, Dns, Objects, kube_consul, shipped_kubeconfig};

/// A namespace of the shared cluster, a Consul of the test's own (one agent, or three servers),
/// and on wish a recorder between that and the bridge.
pub struct Fixture<C = Consul> {
    pub kubernetes: &'static Kubernetes,
    pub consul: C,
    pub namespace: String,
    recorder: Option<HttpRecorder>,
}

impl Fixture {
    /// An agent in development mode.
    pub async fn new(prefix: &str) -> Result<Self> {
        Self::with_consul(prefix, ConsulOptions::dev()).await
    }

    pub async fn with_consul(prefix: &str, options: ConsulOptions) -> Result<Self> {
        let (kubernetes, consul) = tokio::try_join!(Kubernetes::shared(), Consul::start(options))?;
        let namespace = kubernetes.namespace(prefix).await?;
        Ok(Self { kubernetes, consul, namespace, recorder: None })
    }

    /// An agent in development mode behind a recorder.
    pub async fn recorded(prefix: &str) -> Result<Self> {
        let fixture = Self::new(prefix).await?;
        let recorder = HttpRecorder::start(fixture.consul.url()).await?;
        Ok(Self { recorder: Some(recorder), ..fixture })
    }

    /// `bridge` for the namespace, with the shipped rights.
    pub async fn command(&self) -> Result<ProgramOptions> {
        self.subcommand("bridge").await
    }

    /// A subcommand that takes the flags of `bridge`, likewise.
    pub async fn subcommand(&self, name: &str) -> Result<ProgramOptions> {
        Ok(self.command_with(name, shipped_kubeconfig().await?))
    }

    /// The same with other rights, or another way to the API server.
    pub fn command_with(&self, name: &str, kubeconfig: &Path) -> ProgramOptions {
        let command = match &self.recorder {
            Some(recorder) => recorded_command(name, &recorder.url()),
            None => kube_consul().arg(name).env("CONSUL_HTTP_ADDR", self.consul.url()),
        };
        command.args(["--namespace", &self.namespace]).args([Path::new("--kubeconfig"), kubeconfig])
    }

    /// A bridge that is ready.
    pub async fn bridge(&self) -> Result<Bridge> {
        let bridge = Bridge::start(self.command().await?).await?;
        bridge.wait_ready().await?;
        Ok(bridge)
    }

    /// The objects of the namespace.
    pub fn objects(&self) -> Result<Objects> {
        Ok(Objects::new(&self.kubernetes.client()?, &self.namespace))
    }

    /// Creates Services with a `ClusterIP`, port 80 and one ready endpoint.
    pub async fn create(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        self.objects()?.create_all(&Vec::from_iter(names)).await
    }

    /// A Service without a selector and a slice with one ready endpoint.
    pub async fn web(&self, name: &str, ports: &[(&str, u16)]) -> Result<()> {
        // In this order, so that it is ready when it is first seen.
        self.endpoints(name, &[Endpoint::ready("10.1.0.1")], ports).await?;
        let kind = ServiceKind::Selectorless;
        self.kubernetes.service(&self.namespace, name, kind, ports).await.map(drop)
    }

    /// Replaces the endpoints of a Service.
    pub async fn endpoints(
        &self,
        name: &str,
        endpoints: &[Endpoint],
        ports: &[(&str, u16)],
    ) -> Result<()> {
        let slice = format!("{name}-1");
        let written =
            self.kubernetes.endpoint_slice(&self.namespace, name, &slice, endpoints, ports);
        written.await.map(drop)
    }

    pub fn services(&self) -> Result<Api<Service>> {
        Ok(Api::namespaced(self.kubernetes.client()?, &self.namespace))
    }

    /// Changes a Service by a merge patch.
    pub async fn patch(&self, name: &str, patch: &Value) -> Result<()> {
        self.objects()?.patch(name, patch).await
    }

    /// Sets annotations of a Service; null removes one.
    pub async fn annotate(&self, name: &str, annotations: Value) -> Result<()> {
        self.objects()?.annotate(name, annotations).await
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        self.objects()?.delete(name).await
    }

    pub async fn cluster_ip(&self, name: &str) -> Result<String> {
        let spec = self.services()?.get(name).await?.spec.unwrap_or_default();
        spec.cluster_ip.context("the Service has no ClusterIP")
    }

    /// The instances that the catalog has of a name.
    pub async fn instances(&self, name: &str) -> Result<Vec<Value>> {
        let found = self.consul.api().get(&format!("/v1/health/service/{name}")).await?;
        Ok(found.as_array().cloned().unwrap_or_default())
    }

    /// Waits until a name has this many instances.
    pub async fn wait_for_instances(&self, name: &str, wanted: usize) -> Result<()> {
        eventually(DEADLINE, || async {
            let found = self.instances(name).await?.len();
            if found != wanted {
                let endpoints = self.endpoint_count(name).await?;
                bail!("{name} has {found} instances, want {wanted}; its slices: {endpoints}");
            }
            Ok(())
        })
        .await
    }

    /// How many endpoints the slices of a Service of this name have, in its namespace: who reads of
    /// missing instances wants to know which side lacks them.
    async fn endpoint_count(&self, name: &str) -> Result<usize> {
        let slices: Api<EndpointSlice> =
            Api::namespaced(self.kubernetes.client()?, &self.namespace);
        let of_service =
            ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        let slices = slices.list(&of_service).await?;
        Ok(slices.items.iter().map(|it| it.endpoints.as_ref().map_or(0, Vec::len)).sum())
    }

    /// A resolver that asks this Consul and keeps nothing.
    pub fn dns(&self) -> Result<Dns> {
        Dns::new(self.consul.dns_address())
    }
}

impl Fixture<ConsulCluster> {
    /// Three servers with a recorder in front of the first.
    pub async fn servers(options: ConsulOptions) -> Result<Self> {
        let (kubernetes, consul) =
            tokio::try_join!(Kubernetes::shared(), ConsulCluster::start_with(options))?;
        let recorder = HttpRecorder::start(consul.servers[0].url()).await?;
        let namespace = kubernetes.namespace("servers").await?;
        Ok(Self { kubernetes, consul, namespace, recorder: Some(recorder) })
    }

    /// `bridge --sink catalog` for a namespace behind the recorder.
    pub async fn command(&self, cluster: &str, namespace: &str) -> Result<ProgramOptions> {
        catalog_bridge(&self.recorder().url(), cluster, namespace).await
    }

    /// The API of the first server.
    pub fn api(&self) -> &ConsulApi {
        self.consul.servers[0].api()
    }

    /// The objects of a new namespace.
    pub async fn objects(&self, prefix: &str) -> Result<Objects> {
        let namespace = self.kubernetes.namespace(prefix).await?;
        Ok(Objects::new(&self.kubernetes.client()?, &namespace))
    }
}

impl<C> Fixture<C> {
    /// What was sent to Consul, and the faults on the way to it.
    pub fn recorder(&self) -> &HttpRecorder {
        self.recorder.as_ref().expect("a fixture that records")
    }
}

/// A subcommand beside a Consul behind a recorder, where faults are: what they do is logged at
/// this level.
pub fn recorded_command(name: &str, consul: &str) -> ProgramOptions {
    kube_consul()
        .args([name, "--log-level", "info,kube_consul=debug"])
        .env("CONSUL_HTTP_ADDR", consul)
}

/// `bridge --sink catalog` for a namespace, with the shipped rights, beside this Consul.
pub async fn catalog_bridge(
    consul: &str,
    cluster: &str,
    namespace: &str,
) -> Result<ProgramOptions> {
    Ok(kube_consul()
        .args(["bridge", "--sink", "catalog", "--cluster", cluster, "--namespace", namespace])
        .args([Path::new("--kubeconfig"), shipped_kubeconfig().await?])
        .env("CONSUL_HTTP_ADDR", consul))
}
