//! Faults and safety: what the bridge does when processes die, links break, answers lie, rights
//! are missing. The built program runs with the shipped rights beside a Consul of the test's own.

mod api_server;
mod burst;
mod guard;
mod outage;
mod restart;
mod rights;
mod signals;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube_consul_stack::{
    Consul, ConsulApi, ConsulOptions, HttpRecorder, Kubernetes, Port, Program, ProgramOptions,
    eventually, install_provider,
};
use serde_json::{Value, json};
use tokio::sync::{OnceCell, oneshot};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::support::shipped_token;

/// What takes milliseconds alone takes seconds beside a build.
const DEADLINE: Duration = Duration::from_secs(30);

/// Requests at a time when many objects are made.
const AT_A_TIME: usize = 16;

/// Between two looks of a [`Lookout`].
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The shipped service account's token.
async fn shared_token(cluster: &Kubernetes) -> Result<&'static str> {
    static SHARED: OnceCell<String> = OnceCell::const_new();
    Ok(SHARED.get_or_try_init(|| shipped_token(cluster)).await?)
}

/// The shipped service account's kubeconfig.
async fn shipped_kubeconfig(cluster: &Kubernetes) -> Result<&'static Path> {
    static SHARED: OnceCell<PathBuf> = OnceCell::const_new();
    let path =
        SHARED.get_or_try_init(|| async { cluster.kubeconfig_for(shared_token(cluster).await?) });
    Ok(path.await?)
}

/// `kube-consul bridge` beside the Consul at this URL.
fn bridge_command(consul: &str) -> ProgramOptions {
    ProgramOptions::new(env!("CARGO_BIN_EXE_kube-consul")).args([
        "bridge",
        "--log-level",
        "info,kube_consul=debug",
        "--consul-addr",
        consul,
    ])
}

/// One namespace of the shared cluster, one Consul, and a recorder between it and the bridge.
struct Site {
    kubernetes: &'static Kubernetes,
    client: kube::Client,
    namespace: String,
    consul: Consul,
    recorder: HttpRecorder,
}

// === impl Site ===

impl Site {
    async fn new(prefix: &str) -> Result<Self> {
        let (kubernetes, consul) =
            tokio::try_join!(Kubernetes::shared(), Consul::start(ConsulOptions::dev()))?;
        Ok(Self {
            kubernetes,
            client: kubernetes.client()?,
            namespace: kubernetes.namespace(prefix).await?,
            recorder: HttpRecorder::start(consul.url()).await?,
            consul,
        })
    }

    /// The bridge with the shipped rights.
    async fn command_of(&self, namespace: &str) -> Result<ProgramOptions> {
        let kubeconfig = shipped_kubeconfig(self.kubernetes).await?;
        Ok(bridge_command(&self.recorder.url())
            .args(["--namespace", namespace, "--kubeconfig"])
            .arg(kubeconfig))
    }

    /// The bridge of this site's namespace.
    async fn command(&self) -> Result<ProgramOptions> {
        self.command_of(&self.namespace).await
    }

    /// A bridge that is ready.
    async fn bridge(&self) -> Result<Bridge> {
        let bridge = Bridge::start(self.command().await?).await?;
        bridge.wait_ready().await?;
        Ok(bridge)
    }

    fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates Services with a `ClusterIP`, port 80 and one ready endpoint.
    async fn create(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), &self.namespace);
        let services = self.services();
        let create = |name: String| {
            let (services, slices) = (services.clone(), slices.clone());
            async move {
                let service = serde_json::from_value(service(&name))?;
                let slice = serde_json::from_value(slice(&name))?;
                services.create(&PostParams::default(), &service).await?;
                slices.create(&PostParams::default(), &slice).await?;
                anyhow::Ok(())
            }
        };
        stream::iter(names).map(create).buffer_unordered(AT_A_TIME).try_collect::<()>().await
    }

    async fn patch(&self, name: &str, patch: Value) -> Result<()> {
        self.services().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    async fn delete(&self, name: &str) -> Result<()> {
        self.services().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits until the catalog shows exactly these Consul names, and a reverse record for each.
    async fn wait_for_names(&self, names: &BTreeSet<String>) -> Result<Shown> {
        wait_for_names(&self.consul, names).await
    }
}

/// A Service as the API server takes it.
fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80}]}})
}

/// Its `EndpointSlice`, with one ready endpoint.
fn slice(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.0.1"], "conditions": {"ready": true}}],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

/// `<prefix>-000` and so on.
fn numbered(prefix: &str, numbers: std::ops::Range<usize>) -> BTreeSet<String> {
    numbers.map(|number| format!("{prefix}-{number:03}")).collect()
}

/// A running bridge and its admin server.
struct Bridge {
    program: Program,
    http: reqwest::Client,
    admin: String,
    _port: Port,
}

// === impl Bridge ===

impl Bridge {
    async fn start(command: ProgramOptions) -> Result<Self> {
        install_provider();
        let port = Port::pick()?;
        let address = format!("127.0.0.1:{}", port.number());
        let program =
            Program::start("bridge", command.args(["--admin-addr", address.as_str()])).await?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .timeout(DEADLINE)
            .build()
            .context("make a client for the admin server")?;
        Ok(Self { program, http, admin: format!("http://{address}"), _port: port })
    }

    /// Status code and text of a page.
    async fn page(&self, path: &str) -> Result<(u16, String)> {
        if self.program.exit_status().is_some() {
            bail!(self.program.failure("has ended"));
        }
        let answer = self.http.get(format!("{}{path}", self.admin)).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    async fn wait_ready(&self) -> Result<()> {
        let ready = eventually(DEADLINE, || async {
            let (code, text) = self.page("/readyz").await?;
            ensure!(code == 200, "{code} {text}");
            Ok(())
        });
        ready.await.map_err(|error| self.program.failure(&format!("is not ready: {error:#}")))
    }

    /// Waits until `/readyz` says 503 with a reason that has this text.
    async fn wait_unready(&self, reason: &str) -> Result<()> {
        eventually(DEADLINE, || async {
            let (code, text) = self.page("/readyz").await?;
            ensure!(code == 503 && text.contains(reason), "{code} {text}, want {reason}");
            Ok(())
        })
        .await
    }

    async fn status(&self) -> Result<Value> {
        let (code, text) = self.page("/status").await?;
        ensure!(code == 200, "/status answers {code}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// The value of a metric, with its labels as they are written; 0 before it is there.
    async fn metric(&self, name: &str) -> Result<f64> {
        let (_, text) = self.page("/metrics").await?;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?.unwrap_or_default())
    }

    async fn wait_holding(&self, holding: bool) -> Result<()> {
        eventually(DEADLINE, || async {
            let status = self.status().await?;
            ensure!(status["holding"] == holding, "want holding {holding}: {status}");
            Ok(())
        })
        .await
    }
}

/// What Consul has of the bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    /// Registrations in the catalog, by their ID.
    instances: BTreeMap<String, Instance>,
    /// Keys of reverse records.
    reverse: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Instance {
    service: String,
    port: u64,
    tags: Vec<String>,
    critical: bool,
}

// === impl Shown ===

impl Shown {
    fn names(&self) -> BTreeSet<String> {
        self.instances.values().map(|instance| instance.service.clone()).collect()
    }

    /// IDs of the instances of these names.
    fn ids(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        let of_names = self.instances.iter().filter(|(_, it)| names.contains(&it.service));
        of_names.map(|(id, _)| id.clone()).collect()
    }
}

/// The bridge's registrations as the catalog shows them: that is what DNS answers from.
async fn instances(api: &ConsulApi, node: &str) -> Result<BTreeMap<String, Instance>> {
    let services = api.get(&format!("/v1/catalog/node-services/{node}")).await?;
    let critical = api.get("/v1/health/state/critical").await?;
    let critical: BTreeSet<&str> = critical
        .as_array()
        .context("/v1/health/state/critical answered no list")?
        .iter()
        .filter_map(|check| check["ServiceID"].as_str())
        .collect();
    let mut found = BTreeMap::new();
    for service in services["Services"].as_array().into_iter().flatten() {
        let id = service["ID"].as_str().unwrap_or_default();
        // The sentinel begins with an underscore.
        if service["Meta"]["kube-consul-cluster"].is_null() || id.starts_with('_') {
            continue;
        }
        let tags = service["Tags"].as_array().into_iter().flatten();
        let instance = Instance {
            service: service["Service"].as_str().unwrap_or_default().to_owned(),
            port: service["Port"].as_u64().unwrap_or_default(),
            tags: tags.filter_map(|tag| tag.as_str().map(ToOwned::to_owned)).collect(),
            critical: critical.contains(id),
        };
        found.insert(id.to_owned(), instance);
    }
    Ok(found)
}

async fn shown(consul: &Consul) -> Result<Shown> {
    let keys = consul.api().get("/v1/kv/?keys").await?;
    let keys = keys.as_array().into_iter().flatten().filter_map(Value::as_str);
    let reverse = keys.filter(|key| key.contains(".ARPA/")).map(ToOwned::to_owned).collect();
    Ok(Shown { instances: instances(consul.api(), consul.node()).await?, reverse })
}

async fn wait_for_names(consul: &Consul, names: &BTreeSet<String>) -> Result<Shown> {
    eventually(DEADLINE, || async {
        let shown = shown(consul).await?;
        let found = shown.names();
        ensure!(
            found == *names && shown.reverse.len() == names.len(),
            "missing {:?}, too many {:?}, {} reverse records",
            names.difference(&found).collect::<Vec<_>>(),
            found.difference(names).collect::<Vec<_>>(),
            shown.reverse.len()
        );
        Ok(shown)
    })
    .await
}

/// Looks at the catalog every 10 ms, for names that must neither vanish nor turn critical.
struct Lookout {
    task: JoinHandle<Result<Report>>,
    stop: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Report {
    looks: usize,
    longest: Duration,
    vanished: BTreeSet<String>,
    critical: BTreeSet<String>,
}

// === impl Lookout ===

impl Lookout {
    fn start(consul: &Consul, names: BTreeSet<String>) -> Self {
        let api = consul.api().clone();
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut report = Report::default();
            loop {
                let began = Instant::now();
                // The last look comes after the end was asked for.
                let last = stopped.try_recv().is_ok();
                // Two small answers, so that a look takes less than the time between two.
                let (services, checks) = tokio::try_join!(
                    api.get("/v1/catalog/services"),
                    api.get("/v1/health/state/critical"),
                )?;
                let vanished = names.iter().filter(|name| services[name.as_str()].is_null());
                report.vanished.extend(vanished.cloned());
                let checks = checks.as_array().into_iter().flatten();
                let critical = checks.filter_map(|check| check["ServiceName"].as_str());
                let critical = critical.filter(|name| names.contains(*name));
                report.critical.extend(critical.map(ToOwned::to_owned));
                report.looks += 1;
                report.longest = report.longest.max(began.elapsed());
                if last {
                    return Ok(report);
                }
                sleep(LOOK_EVERY.saturating_sub(began.elapsed())).await;
            }
        });
        Self { task, stop }
    }

    /// Ends it; an error if anything vanished or turned critical.
    async fn finish(self) -> Result<()> {
        ensure!(self.stop.send(()).is_ok(), "the lookout ended early: {:?}", self.task.await?);
        let report = self.task.await??;
        println!("{} looks, the longest took {:?}", report.looks, report.longest);
        ensure!(report.vanished.is_empty() && report.critical.is_empty(), "{report:?}");
        Ok(())
    }
}
