//! A running bridge on a real API server and a real Consul with the cluster that the memory budget
//! speaks of: how long it takes, and what it has resident.
//!
//! Of each address mode: the first sync into an empty Consul, a read-back, and a second bridge that
//! finds everything written. The sink is the catalog: an agent is not for so many instances. It
//! takes a quarter of an hour, most of which is making the cluster and waiting for the read-back.
//!
//! An argument names another program to measure than the one that was just built.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use kube_consul_stack::{
    Consul, ConsulOptions, Kubernetes, KubernetesOptions, Port, Program, ProgramOptions,
    install_provider,
};

mod objects;

use objects::{ENDPOINTS, Memory, SERVICES, TARGET_MIB};

/// Requests at once while the cluster is made: more do not make an API server on two cores faster.
const AT_ONCE: usize = 32;
/// Of each wait. A reading comes a hundred times its own duration after the one before, and one of
/// 100,000 registrations takes about 3 s: five minutes, thrice that on a busy machine.
const DEADLINE: Duration = Duration::from_mins(15);
/// Between two looks at the metrics.
const POLL: Duration = Duration::from_millis(250);

#[tokio::main]
async fn main() -> Result<()> {
    install_provider();
    println!("{SERVICES} Services, {} endpoints; target {TARGET_MIB} MiB", SERVICES * ENDPOINTS);
    let kubernetes = Kubernetes::start(KubernetesOptions::default()).await?;
    let began = Instant::now();
    populate(&kubernetes).await?;
    println!("the cluster was made in {:.0?}", began.elapsed());
    for (mode, registrations) in [("cluster-ip", SERVICES), ("endpoints", SERVICES * ENDPOINTS)] {
        measure(&kubernetes, mode, registrations).await?;
    }
    Ok(())
}

async fn measure(kubernetes: &Kubernetes, mode: &str, registrations: usize) -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev()).await?;
    let bridge = Bridge::start(kubernetes.kubeconfig(), &consul, mode).await?;
    bridge.wait_in_sync(registrations).await?;
    bridge.tell(mode, "first sync")?;
    let readings = bridge.readings().await?;
    bridge.wait("another reading", async || Ok(bridge.readings().await? > readings)).await?;
    bridge.tell(mode, "read back")?;
    bridge.stop().await?;
    let bridge = Bridge::start(kubernetes.kubeconfig(), &consul, mode).await?;
    bridge.wait_in_sync(registrations).await?;
    bridge.tell(mode, "started again, nothing to write")?;
    ensure!(
        bridge
            .metric("kube_consul_writes_total{record=\"registration\",result=\"applied\"}")
            .await?
            < 1.0,
        "it wrote something"
    );
    bridge.stop().await?;
    consul.stop().await
}

async fn populate(kubernetes: &Kubernetes) -> Result<()> {
    let client = kubernetes.client()?;
    let post = PostParams::default();
    let namespaces = Api::<Namespace>::all(client.clone());
    for name in (0..objects::NAMESPACES).map(objects::namespace) {
        let object = serde_json::from_value(serde_json::json!({"metadata": {"name": name}}))?;
        namespaces.create(&post, &object).await?;
    }
    let create = async |number: usize| {
        let namespace = objects::namespace(number);
        let slice = serde_json::from_value(objects::slice(number))?;
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
        slices.create(&post, &slice).await?;
        let service = serde_json::from_value(objects::service(number))?;
        Api::<Service>::namespaced(client.clone(), &namespace).create(&post, &service).await?;
        anyhow::Ok(())
    };
    stream::iter((0..SERVICES).map(create)).buffer_unordered(AT_ONCE).try_collect().await
}

/// A running bridge.
struct Bridge {
    program: Program,
    admin: Port,
    client: reqwest::Client,
    began: Instant,
}

impl Bridge {
    async fn start(kubeconfig: &Path, consul: &Consul, mode: &str) -> Result<Self> {
        let admin = Port::pick()?;
        // Cargo passes `--bench`.
        let other = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
        let program = other.unwrap_or_else(|| env!("CARGO_BIN_EXE_kube-consul").to_owned());
        let options = ProgramOptions::new(program)
            .args(["bridge", "--sink", "catalog", "--address", mode])
            .arg(format!("--admin-addr=127.0.0.1:{}", admin.number()))
            .args([Path::new("--kubeconfig"), kubeconfig])
            .env("CONSUL_HTTP_ADDR", consul.url());
        let program = Program::start("kube-consul", options).await?;
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
        Ok(Self { program, admin, client, began: Instant::now() })
    }

    /// What the admin server answers, if that is a success.
    async fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin.number());
        Ok(self.client.get(url).send().await?.error_for_status()?.text().await?)
    }

    /// The sum over all series of a metric that begin like this.
    async fn metric(&self, series: &str) -> Result<f64> {
        let text = self.get("/metrics").await?;
        let lines = text.lines().filter(|line| line.starts_with(series));
        let values = lines.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
        values.sum::<Result<f64, _>>().with_context(|| format!("the value of {series}"))
    }

    async fn readings(&self) -> Result<f64> {
        self.metric("kube_consul_resyncs_total{result=\"complete\"}").await
    }

    /// Waits until at least so much is registered, and nothing is left to write.
    async fn wait_in_sync(&self, registrations: usize) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "100,000 at most")]
        let wanted = registrations as f64;
        self.wait("all registrations", async || {
            // Else what is read back may be all there, and the cluster not yet listed.
            self.get("/readyz").await?;
            let found = self.metric("kube_consul_registrations{health=\"passing\"} ").await?;
            Ok(found >= wanted && self.metric("kube_consul_backlog ").await? < 1.0)
        })
        .await
    }

    async fn wait(&self, what: &str, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        // Its admin server listens a moment after it has started.
        while !done().await.unwrap_or(false) {
            let running = self.program.exit_status().is_none() && Instant::now() < end;
            ensure!(running, self.program.failure(&format!("has not come to {what}")));
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn tell(&self, mode: &str, what: &str) -> Result<()> {
        let memory = Memory::of(&self.program.pid().to_string())?;
        println!("{mode}: {what} after {:.1?}: {memory}", self.began.elapsed());
        ensure!(memory.most <= TARGET_MIB, "expected at most {TARGET_MIB} MiB");
        Ok(())
    }

    async fn stop(&self) -> Result<()> {
        self.program.terminate().await;
        self.program.wait_for_code(0, DEADLINE).await
    }
}
