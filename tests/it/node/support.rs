//! A node with pods of the test's own, its agent, and a daemon.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube_consul_stack::{Consul, ConsulOptions, Kubernetes, ProgramOptions, eventually};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::policy::{ACCOUNT, SYSTEM, apply_shipped, pod, token as account_token};
use crate::support::{Bridge, DEADLINE, for_each, kube_consul, manifest};

/// Annotations of katalog-sync.
pub const WISH: &str = "katalog-sync.wish.com";

/// A node, a namespace, the node's agent, and a server apart from it.
pub struct Site {
    pub kubernetes: &'static Kubernetes,
    pub server: Consul,
    pub agent: Consul,
    pub node: String,
    pub namespace: String,
    kubeconfig: PathBuf,
}

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const AGENT: &str = "22222222-2222-2222-2222-222222222222";
/// The daemon's token.
pub const DAEMON: &str = "33333333-3333-3333-3333-333333333333";

/// The kubeconfig of the daemon of a node, with the shipped role and admission policy: its token is
/// that of a pod on this node.
async fn node_kubeconfig(node: &str) -> Result<PathBuf> {
    static APPLIED: OnceCell<()> = OnceCell::const_new();
    APPLIED.get_or_try_init(apply_shipped).await?;
    let name = format!("daemon-{node}");
    let uid = pod(SYSTEM, &name, node, ACCOUNT).await?;
    Kubernetes::shared().await?.kubeconfig_for(&account_token(Some((&name, &uid))).await?)
}

/// The user of katalog-sync's image.
pub const USER: u32 = 12345;

/// Whether this test may change users; otherwise it is unprivileged itself.
pub fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

/// The program where every user may run it: the folder of a build may be closed to others.
fn installed(folder: &Path) -> Result<PathBuf> {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    let path = folder.join("kube-consul");
    if !path.exists() {
        fs::copy(env!("CARGO_BIN_EXE_kube-consul"), &path)?;
    }
    Ok(path)
}

/// A program that [`USER`] runs, without any capability.
fn unprivileged(program: &Path) -> Result<ProgramOptions> {
    if !is_root()? {
        return Ok(ProgramOptions::new(program));
    }
    let user = [format!("--reuid={USER}"), format!("--regid={USER}")];
    let setpriv = ProgramOptions::new("/usr/bin/setpriv").args(user);
    // A change of users would let the program outlive this one.
    let flags = ["--clear-groups", "--bounding-set=-all", "--no-new-privs", "--pdeathsig=KILL"];
    Ok(setpriv.args(flags).arg(program))
}

/// This program under a name of katalog-sync's, as the user of its image runs it.
pub fn old_program(folder: &Path, name: &str) -> Result<ProgramOptions> {
    let path = folder.join(name);
    std::os::unix::fs::symlink(installed(folder)?, &path)?;
    unprivileged(&path)
}

/// A copy of a kubeconfig that every user may read, with the authority inside.
pub fn readable(folder: &Path, kubeconfig: &Path) -> Result<PathBuf> {
    let mut config: Value = serde_json::from_slice(&fs::read(kubeconfig)?)?;
    let cluster = &mut config["clusters"][0]["cluster"];
    let authority = cluster["certificate-authority"].take();
    let pem = fs::read(authority.as_str().context("an authority")?)?;
    cluster.as_object_mut().context("a cluster")?.remove("certificate-authority");
    cluster["certificate-authority-data"] = json!(BASE64_STANDARD.encode(pem));
    let path = folder.join("kubeconfig");
    fs::write(&path, config.to_string())?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(path)
}

/// Makes a token that may do what these rules say.
async fn token(consul: &Consul, secret: &str, rules: &str) -> Result<()> {
    let name = format!("policy-{secret}");
    let api = consul.api();
    api.put("/v1/acl/policy", &json!({"Name": name, "Rules": rules})).await?;
    let token = json!({"SecretID": secret, "AccessorID": secret, "Policies": [{"Name": name}]});
    api.put("/v1/acl/token", &token).await?;
    Ok(())
}

impl Site {
    /// With the shipped rights of daemon and agent, in Kubernetes and in a Consul that denies by
    /// default.
    pub async fn new(prefix: &str) -> Result<Self> {
        let rules = fs::read_to_string(manifest("consul/node.hcl"))?;
        Self::with_rules(prefix, &rules).await
    }

    /// With a daemon's token of these rules.
    pub async fn with_rules(prefix: &str, rules: &str) -> Result<Self> {
        let server = ConsulOptions::server().acl(MANAGEMENT);
        let (kubernetes, server) = tokio::try_join!(Kubernetes::shared(), Consul::start(server))?;
        token(&server, AGENT, &fs::read_to_string(manifest("consul/node-agent.hcl"))?).await?;
        token(&server, DAEMON, rules).await?;
        let acl = json!({"acl": {"enabled": true, "tokens": {"agent": AGENT}}});
        let agent = ConsulOptions::client([&server]).configuration(acl.to_string());
        let (agent, namespace) =
            tokio::try_join!(Consul::start(agent), kubernetes.namespace(prefix))?;
        // One name in both, as on a real node.
        let node = namespace.clone();
        kubernetes.node(&node).await?;
        let kubeconfig = node_kubeconfig(&node).await?;
        Ok(Self { kubernetes, server, agent, node, namespace, kubeconfig })
    }

    /// The daemon of the node.
    pub fn command(&self) -> ProgramOptions {
        self.command_of(&self.node)
    }

    /// The daemon of a node of this name.
    pub fn command_of(&self, node: &str) -> ProgramOptions {
        self.command_with(kube_consul(), node, &self.kubeconfig)
    }

    /// The daemon of the node as an unprivileged user, for whom `folder` has what it reads.
    pub fn unprivileged_command(&self, folder: &Path) -> Result<ProgramOptions> {
        let program = unprivileged(&installed(folder)?)?;
        Ok(self.command_with(program, &self.node, &readable(folder, &self.kubeconfig)?))
    }

    fn command_with(
        &self,
        program: ProgramOptions,
        node: &str,
        kubeconfig: &Path,
    ) -> ProgramOptions {
        program
            .args(["node", "--node", node, "--log-level", "info,kube_consul=debug"])
            .args(["--kubeconfig".as_ref(), kubeconfig])
            .env("CONSUL_HTTP_ADDR", self.agent.url())
            .env("CONSUL_HTTP_TOKEN", DAEMON)
    }

    /// A daemon that is ready.
    pub async fn daemon(&self) -> Result<Bridge> {
        let daemon = Bridge::start(self.command()).await?;
        daemon.wait_ready().await?;
        Ok(daemon)
    }

    pub fn pods(&self) -> Result<Api<Pod>> {
        Ok(Api::namespaced(self.kubernetes.client()?, &self.namespace))
    }

    /// Creates a pod of the node with these annotations and one container `app` with port 8080.
    pub async fn pod(&self, name: &str, annotations: Value) -> Result<()> {
        self.object(json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
        }))
        .await
    }

    /// Creates a pod of the node.
    pub async fn object(&self, mut object: Value) -> Result<()> {
        object["spec"]["nodeName"] = json!(self.node);
        for kind in ["containers", "initContainers"] {
            for container in object["spec"][kind].as_array_mut().into_iter().flatten() {
                container["image"] = json!("example.invalid/app");
            }
        }
        if object["spec"]["initContainers"].is_null() {
            object["spec"].as_object_mut().context("a spec")?.remove("initContainers");
        }
        self.pods()?.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// Creates pods `web-0` and so on that are registered as `web`.
    pub async fn many(&self, count: usize) -> Result<()> {
        let names: Vec<_> = (0..count).map(|n| format!("web-{n}")).collect();
        for_each(&names, |name| async move {
            self.pod(name, json!({format!("{WISH}/service-names"): "web"})).await
        })
        .await
    }

    /// Says of a pod's containers whether they are ready, as its kubelet would.
    pub async fn ready(&self, name: &str, ready: bool) -> Result<()> {
        let pod = self.pods()?.get(name).await?;
        let mut statuses = serde_json::to_value(pod.status.and_then(|it| it.container_statuses))?;
        for status in statuses.as_array_mut().into_iter().flatten() {
            status["ready"] = json!(ready);
        }
        self.status(name, json!({"containerStatuses": statuses})).await
    }

    /// Changes the status of a pod, as its kubelet would.
    pub async fn status(&self, name: &str, status: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        self.pods()?.patch_status(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    pub async fn annotate(&self, name: &str, annotations: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        self.pods()?.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Deletes a pod at once, as its kubelet does once its containers have ended.
    pub async fn delete(&self, name: &str) -> Result<()> {
        self.pods()?.delete(name, &DeleteParams::default().grace_period(0)).await?;
        Ok(())
    }

    /// Deletes a pod as users do; its kubelet (kwok) ends it some moments later.
    pub async fn terminate(&self, name: &str) -> Result<()> {
        self.pods()?.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Keeps a pod from going when it is deleted, until it is released.
    pub async fn hold(&self, name: &str) -> Result<()> {
        self.finalizers(name, &["example.com/hold"]).await
    }

    /// Lets it go.
    pub async fn release(&self, name: &str) -> Result<()> {
        self.finalizers(name, &[]).await
    }

    async fn finalizers(&self, name: &str, all: &[&str]) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": all}}));
        self.pods()?.patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// The instances of a service in the catalog: `address:port status`, by ID.
    pub async fn catalog(&self, service: &str) -> Result<Vec<String>> {
        let found = self.server.api().get(&format!("/v1/health/service/{service}")).await?;
        let mut shown: Vec<_> = found.as_array().into_iter().flatten().map(instance).collect();
        shown.sort();
        Ok(shown)
    }

    /// Waits until the catalog has exactly these instances of a service, and says how long it took.
    pub async fn wait_for(&self, service: &str, wanted: &[&str]) -> Result<Duration> {
        let began = Instant::now();
        eventually(DEADLINE, || async {
            let found = self.catalog(service).await?;
            ensure!(found == wanted, "{service} is {found:?}, want {wanted:?}");
            Ok(())
        })
        .await?;
        Ok(began.elapsed())
    }

    /// The service that the agent has under the ID of a pod's registration.
    pub async fn in_agent(&self, service: &str, pod: &str) -> Result<Value> {
        let all = self.agent.api().get("/v1/agent/services").await?;
        Ok(all[self.id(service, pod)].clone())
    }

    /// The check of a pod's registration in the agent.
    pub async fn check(&self, service: &str, pod: &str) -> Result<Value> {
        let all = self.agent.api().get("/v1/agent/checks").await?;
        Ok(all[self.id(service, pod)].clone())
    }

    pub fn id(&self, service: &str, pod: &str) -> String {
        format!("katalog-sync_{service}_{}_{pod}", self.namespace)
    }

    /// The address of a pod.
    pub async fn ip(&self, name: &str) -> Result<String> {
        eventually(DEADLINE, || async {
            let status = self.pods()?.get(name).await?.status.unwrap_or_default();
            let ip = status.pod_ip.filter(|ip| !ip.is_empty()).context("no address yet");
            ensure!(status.phase.as_deref() == Some("Running"), "it does not run yet");
            ip
        })
        .await
    }
}

/// `pod:port status` of an instance, where the status is that of its own check.
fn instance(entry: &Value) -> String {
    let service = &entry["Service"];
    let pod = service["Meta"]["external-k8s-pod"].as_str().unwrap_or("?");
    let checks = entry["Checks"].as_array().into_iter().flatten();
    let own = checks.into_iter().find(|check| check["CheckID"] == service["ID"]);
    let status = own.map_or("-", |check| check["Status"].as_str().unwrap_or("?"));
    format!("{pod}:{} {status}", service["Port"])
}
