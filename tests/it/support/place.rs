//! Where a bridge works.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_consul_stack::{
    Consul, ConsulOptions, Endpoint, Kubernetes, ProgramOptions, ServiceKind, eventually,
};
use serde_json::{Value, json};

use super::{Bridge, DEADLINE, Dns, kube_consul, shipped_kubeconfig};

/// A Consul, and a namespace of the shared cluster.
pub struct Place {
    pub kubernetes: &'static Kubernetes,
    pub consul: Consul,
    pub namespace: String,
}

impl Place {
    pub async fn new(prefix: &str) -> Result<Self> {
        Self::with_consul(prefix, ConsulOptions::dev()).await
    }

    pub async fn with_consul(prefix: &str, options: ConsulOptions) -> Result<Self> {
        let consul = Consul::start(options);
        let kubernetes = Kubernetes::shared();
        let (consul, kubernetes) = tokio::try_join!(consul, kubernetes)?;
        let namespace = kubernetes.namespace(prefix).await?;
        Ok(Self { kubernetes, consul, namespace })
    }

    /// `bridge` for the namespace, with the shipped rights.
    pub async fn command(&self) -> Result<ProgramOptions> {
        self.subcommand("bridge").await
    }

    /// A subcommand that takes the flags of `bridge`, likewise.
    pub async fn subcommand(&self, name: &str) -> Result<ProgramOptions> {
        Ok(kube_consul()
            .args([name, "--namespace", &self.namespace])
            .args([Path::new("--kubeconfig"), shipped_kubeconfig().await?])
            .env("CONSUL_HTTP_ADDR", self.consul.url()))
    }

    /// A bridge that is ready.
    pub async fn bridge(&self) -> Result<Bridge> {
        let bridge = Bridge::start(self.command().await?).await?;
        bridge.wait_ready().await?;
        Ok(bridge)
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
        let patch = Patch::Merge(patch);
        self.services()?.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Sets annotations of a Service; null removes one.
    pub async fn annotate(&self, name: &str, annotations: Value) -> Result<()> {
        self.patch(name, &json!({"metadata": {"annotations": annotations}})).await
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        self.services()?.delete(name, &DeleteParams::default()).await?;
        Ok(())
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
            ensure!(found == wanted, "{name} has {found} instances, want {wanted}");
            Ok(())
        })
        .await
    }

    /// A resolver that asks this Consul and keeps nothing.
    pub fn dns(&self) -> Result<Dns> {
        Dns::new(self.consul.dns_address())
    }
}
