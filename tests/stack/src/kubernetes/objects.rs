//! Short ways to the objects that tests need.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Kubernetes;
use crate::folder;
use crate::poll::eventually;

/// Controllers answer within a second; a busy machine makes that longer.
const CONTROLLER_DEADLINE: Duration = Duration::from_mins(1);

/// Who the API server says has written what the test applied.
const FIELD_MANAGER: &str = "kube-consul-tests";

/// The kinds of Service that tests make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceKind {
    /// With a `ClusterIP`, selecting the pods of the Deployment of its name.
    ClusterIp,
    /// Headless, selecting the pods of the Deployment of its name.
    Headless,
    /// With a `ClusterIP` and without a selector: the test writes its endpoints.
    Selectorless,
    /// Headless and without a selector.
    HeadlessSelectorless,
}

/// One endpoint of a written `EndpointSlice`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Its IP address.
    pub address: String,
    /// Its `ready` condition; none leaves the field out, which means ready.
    pub ready: Option<bool>,
}

impl Endpoint {
    /// A ready endpoint.
    pub fn ready(address: &str) -> Self {
        Self { address: address.to_owned(), ready: Some(true) }
    }

    /// An endpoint that is not ready.
    pub fn unready(address: &str) -> Self {
        Self { address: address.to_owned(), ready: Some(false) }
    }
}

impl Kubernetes {
    /// Creates a namespaced object from JSON.
    pub async fn create<K>(&self, namespace: &str, object: Value) -> Result<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize,
    {
        let kind = K::kind(&());
        let object: K = serde_json::from_value(object)
            .with_context(|| format!("the test's {kind} is not one"))?;
        Api::<K>::namespaced(self.client()?, namespace)
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("create a {kind} in {namespace}"))
    }

    /// Creates a fresh namespace, ready for pods, whose name begins with `prefix`.
    pub async fn namespace(&self, prefix: &str) -> Result<String> {
        let name = format!("{prefix}-{}", folder::random_name());
        self.ensure_namespace(&name).await?;
        Ok(name)
    }

    /// Creates a namespace unless it is there, and waits until it is ready for
    /// pods.
    pub(super) async fn ensure_namespace(&self, name: &str) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        Api::<Namespace>::all(self.client()?)
            .patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(object))
            .await
            .with_context(|| format!("create namespace {name}"))?;
        self.wait_namespace(name).await
    }

    /// Waits until pods can be created in a namespace.
    pub(super) async fn wait_namespace(&self, name: &str) -> Result<()> {
        let accounts = Api::<ServiceAccount>::namespaced(self.client()?, name);
        eventually(CONTROLLER_DEADLINE, || accounts.get("default"))
            .await
            .with_context(|| format!("wait for the default service account of {name}"))?;
        Ok(())
    }

    /// Creates a node that kwok keeps ready, and waits until pods can run there.
    pub async fn node(&self, name: &str) -> Result<()> {
        let resources = json!({"cpu": "1000", "memory": "1Ti", "pods": "10000"});
        let object = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"allocatable": resources, "capacity": resources},
        }))?;
        Api::<Node>::all(self.client()?)
            .create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("create node {name}"))?;
        self.wait_schedulable(name).await
    }

    async fn wait_schedulable(&self, name: &str) -> Result<()> {
        let nodes = Api::<Node>::all(self.client()?);
        eventually(CONTROLLER_DEADLINE, || async {
            let spec = nodes.get(name).await?.spec.unwrap_or_default();
            let taints = spec.taints.unwrap_or_default();
            ensure!(taints.is_empty(), "it has the taints {taints:?}");
            Ok(())
        })
        .await
        .with_context(|| format!("wait for node {name}"))
    }

    /// Creates a Deployment whose pods carry `app: <name>` and run on kwok.
    pub async fn deployment(&self, namespace: &str, name: &str, replicas: u32) -> Result<()> {
        let labels = json!({"app": name});
        let object = json!({
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "app", "image": "example.invalid/app"}]},
                },
            },
        });
        self.create::<Deployment>(namespace, object).await.map(drop)
    }

    /// Sets how many pods a Deployment has, without waiting for them.
    pub async fn scale(&self, namespace: &str, name: &str, replicas: u32) -> Result<()> {
        let patch = json!({"spec": {"replicas": replicas}});
        Api::<Deployment>::namespaced(self.client()?, namespace)
            .patch_scale(name, &PatchParams::default(), &Patch::Merge(patch))
            .await
            .with_context(|| format!("scale {namespace}/{name} to {replicas}"))?;
        Ok(())
    }

    /// Sets the readiness of a running pod, as its kubelet would.
    pub async fn set_pod_ready(&self, namespace: &str, name: &str, ready: bool) -> Result<()> {
        let status = if ready { "True" } else { "False" };
        let patch = json!({"status": {"conditions": [
            {"type": "Ready", "status": status},
            {"type": "ContainersReady", "status": status},
        ]}});
        Api::<Pod>::namespaced(self.client()?, namespace)
            .patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
            .await
            .with_context(|| format!("make {namespace}/{name} ready: {ready}"))?;
        Ok(())
    }

    /// Creates a Service with these ports (name and number).
    pub async fn service(
        &self,
        namespace: &str,
        name: &str,
        kind: ServiceKind,
        ports: &[(&str, u16)],
    ) -> Result<Service> {
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"}))
            .collect();
        let mut spec = json!({"ports": ports});
        if matches!(kind, ServiceKind::ClusterIp | ServiceKind::Headless) {
            spec["selector"] = json!({"app": name});
        }
        if matches!(kind, ServiceKind::Headless | ServiceKind::HeadlessSelectorless) {
            spec["clusterIP"] = json!("None");
        }
        let object = json!({"metadata": {"name": name}, "spec": spec});
        self.create(namespace, object).await
    }

    /// Creates an `EndpointSlice` of a Service, or replaces the one of that name.
    pub async fn endpoint_slice(
        &self,
        namespace: &str,
        service: &str,
        name: &str,
        endpoints: &[Endpoint],
        ports: &[(&str, u16)],
    ) -> Result<EndpointSlice> {
        let ipv6 = endpoints.iter().any(|endpoint| endpoint.address.contains(':'));
        let endpoints: Vec<Value> = endpoints
            .iter()
            .map(|endpoint| {
                let conditions = endpoint.ready.map_or(json!({}), |ready| json!({"ready": ready}));
                json!({"addresses": [endpoint.address], "conditions": conditions})
            })
            .collect();
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port)| json!({"name": name, "port": port, "protocol": "TCP"}))
            .collect();
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": {
                "kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": FIELD_MANAGER,
            }},
            "addressType": if ipv6 { "IPv6" } else { "IPv4" },
            "endpoints": endpoints,
            "ports": ports,
        });
        Api::<EndpointSlice>::namespaced(self.client()?, namespace)
            .patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object))
            .await
            .with_context(|| format!("write EndpointSlice {namespace}/{name}"))
    }

    /// A token of a service account, by `TokenRequest`.
    pub async fn service_account_token(&self, namespace: &str, name: &str) -> Result<String> {
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                // Longer than any test runs.
                expiration_seconds: Some(24 * 60 * 60),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = Api::<ServiceAccount>::namespaced(self.client()?, namespace)
            .create_token_request(name, &PostParams::default(), &request)
            .await
            .with_context(|| format!("request a token of service account {namespace}/{name}"))?;
        let token = answer.status.and_then(|status| status.token);
        token.context("the API server gave no token")
    }
}
