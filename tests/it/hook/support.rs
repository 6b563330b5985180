//! The hook, its pod with the shipped Role, and what answers it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_consul_stack::{Consul, ConsulOptions, Kubernetes, Program, ProgramOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

pub const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
pub const LIMITED: &str = "22222222-2222-2222-2222-222222222222";
pub const UNKNOWN: &str = "33333333-3333-3333-3333-333333333333";
pub const PATIENCE: Duration = Duration::from_secs(20);
/// What ends by the deadline of a second or two that it was given, even on a busy machine: the
/// defaults are 10 s and more.
pub const BEFORE_DEFAULTS: Duration = Duration::from_secs(9);

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_kube-consul")
}

pub fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/hook").join(name)
}

/// The hook with the variables that a pod's container has.
pub fn hook(consul: &str, arguments: &str) -> ProgramOptions {
    ProgramOptions::new(binary()).args(arguments.split_whitespace()).env("CONSUL_HTTP_ADDR", consul)
}

pub async fn ended(options: ProgramOptions, code: i32) -> Result<Program> {
    let program = Program::start("hook", options).await?;
    program.wait_for_code(code, PATIENCE).await?;
    Ok(program)
}

pub async fn services(consul: &Consul) -> Result<Vec<String>> {
    let services = consul.api().get("/v1/agent/services").await?;
    Ok(services.as_object().context("no object")?.keys().cloned().collect())
}

/// The instances of a service in the catalog, by ID.
pub async fn catalog(consul: &Consul, name: &str) -> Result<Vec<Value>> {
    let instances = consul.api().get(&format!("/v1/catalog/service/{name}")).await?;
    Ok(instances.as_array().context("no array")?.clone())
}

/// A namespace with the shipped Role, and a kubeconfig with its service account's token.
pub struct Shop {
    pub cluster: &'static Kubernetes,
    pub namespace: String,
    kubeconfig: PathBuf,
}

impl Shop {
    pub async fn open() -> Result<Self> {
        let cluster = Kubernetes::shared().await?;
        let namespace = cluster.namespace("hook").await?;
        let shop = Self { cluster, namespace, kubeconfig: PathBuf::new() };
        shop.apply("rbac.yaml").await?;
        let token = cluster.service_account_token(&shop.namespace, "web").await?;
        Ok(Self { kubeconfig: cluster.kubeconfig_for(&token)?, ..shop })
    }

    pub async fn apply(&self, name: &str) -> Result<()> {
        let text = std::fs::read_to_string(manifest(name))?;
        let ours = text.replace("namespace: shop", &format!("namespace: {}", self.namespace));
        self.cluster.apply_yaml(&ours).await.map(drop)
    }

    /// The hook as the pod `web` has it.
    pub fn hook(&self, consul: &str, arguments: &str) -> ProgramOptions {
        self.in_pod(hook(consul, arguments))
    }

    pub fn in_pod(&self, options: ProgramOptions) -> ProgramOptions {
        options
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBERNETES_POD_NAME", "web")
            .env("KUBERNETES_POD_NAMESPACE", &self.namespace)
    }

    pub fn pods(&self) -> Result<Api<Pod>> {
        Ok(Api::namespaced(self.cluster.client()?, &self.namespace))
    }

    /// The pod `web` with a port and a probe, on a node (empty: on none).
    pub async fn pod(&self, port: u16, node: &str, probe: bool) -> Result<()> {
        let mut container = json!({
            "name": "app", "image": "example.invalid/app",
            "ports": [{"name": "http", "containerPort": port}],
        });
        if probe {
            container["readinessProbe"] =
                json!({"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1});
        }
        let mut spec = json!({
            "serviceAccountName": "web", "containers": [container],
            // Nobody's: it stays without a node unless it has one.
            "schedulerName": "none",
        });
        if !node.is_empty() {
            spec["nodeName"] = json!(node);
        }
        let pod = json!({
            "metadata": {
                "name": "web", "labels": {"consul": "web"},
                "annotations": {"CONSUL_TAG_0": "team: shop"},
            },
            "spec": spec,
        });
        self.cluster.create::<Pod>(&self.namespace, pod).await.map(drop)
    }

    /// Gives the pod its address, as its kubelet would.
    pub async fn address(&self, ip: &str) -> Result<()> {
        let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        let patch = Patch::Merge(patch);
        self.pods()?.patch_status("web", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Deletes the pod, which a finalizer keeps there.
    pub async fn terminate(&self) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/kept"]}}));
        self.pods()?.patch("web", &PatchParams::default(), &patch).await?;
        self.pods()?.delete("web", &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A pod `web` as the API server writes it, with a readiness probe.
pub fn pod_at(address: SocketAddr, probe: &Value) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "ns", "labels": {"consul": "web"}},
        "spec": {"containers": [{
            "name": "app", "ports": [{"name": "main", "containerPort": address.port()}],
            "readinessProbe": probe,
        }]},
        "status": {"podIP": address.ip()},
    });
    pod.to_string()
}

/// The hook of that pod, where this is all of its API server.
pub fn hook_at(api: SocketAddr, consul: &Consul, arguments: &str) -> ProgramOptions {
    hook(consul.url(), &format!("{arguments} --kube-url http://{api}"))
        .env("KUBERNETES_POD_NAME", "web")
        .env("KUBERNETES_POD_NAMESPACE", "ns")
}

pub async fn consul() -> Result<Consul> {
    Consul::start(ConsulOptions::dev()).await
}

/// Answers each request with this status and body, from now on.
pub async fn serve(address: SocketAddr, status: u16, body: String) -> Result<SocketAddr> {
    serve_in_turn(address, vec![(status, body)]).await
}

/// The same, with an answer for each request; the last for all that follow.
pub async fn serve_in_turn(address: SocketAddr, answers: Vec<(u16, String)>) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let (status, body) = &answers[turn.min(answers.len() - 1)];
            turn += 1;
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok(address)
}
