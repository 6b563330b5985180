//! The processes of `make run`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube_consul_stack::{
    Consul, ConsulOptions, KubectlProxy, Kubernetes, KubernetesOptions, Port, Program,
    ProgramOptions, eventually,
};

use crate::steps::{self, Places, Step};
use crate::{Screen, dns};

const SAMPLE: &str = include_str!("sample.yaml");

/// The bridge is ready in a second, and the sample's names soon after.
const READY_DEADLINE: Duration = Duration::from_mins(1);

/// The bridge finishes its writes within 5 s of SIGTERM.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// Everything that runs; dropped, it is killed.
pub struct LocalCluster {
    kubernetes: Kubernetes,
    proxy: KubectlProxy,
    consul: Consul,
    bridge: Program,
    program: PathBuf,
    admin: Port,
    /// The `ClusterIP` of the sample's Service `web`.
    address: String,
}

impl LocalCluster {
    /// Starts it all and waits until the sample's names resolve.
    pub async fn start(program: &Path, manifests: &Path, screen: &Screen) -> Result<Self> {
        if !program.is_file() {
            bail!(
                "there is no kube-consul at {}: build it ('make run' does), or name it with \
                 --bridge",
                program.display()
            );
        }
        let options = KubernetesOptions::default();
        let kubernetes = screen.doing("Kubernetes runs", Kubernetes::start(options)).await?;
        let consul = screen.doing("Consul runs", Consul::start(ConsulOptions::dev())).await?;
        let proxy = screen.doing("kubectl proxy runs", proxy(&kubernetes, manifests)).await?;
        let admin = Port::pick()?;
        let options = ProgramOptions::new(program)
            .args(["bridge", "--sink", "agent", "--cluster", "local"])
            .args(["--kube-url", &proxy.url()])
            .arg(format!("--admin-addr=127.0.0.1:{}", admin.number()))
            .env("CONSUL_HTTP_ADDR", consul.url());
        let bridge = Program::start("kube-consul", options).await?;
        let program = program.to_owned();
        let mut cluster =
            Self { kubernetes, proxy, consul, bridge, program, admin, address: String::new() };
        screen.doing("kube-consul bridge is ready", cluster.wait_ready()).await?;
        cluster.address = screen.doing("the sample resolves", cluster.deploy_sample()).await?;
        Ok(cluster)
    }

    async fn wait_ready(&self) -> Result<()> {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
        let url = format!("http://127.0.0.1:{}/readyz", self.admin.number());
        let ready = eventually(READY_DEADLINE, || async {
            let answer = client.get(&url).send().await?;
            let status = answer.status();
            ensure!(status.is_success(), "{url} answers {status}: {}", answer.text().await?);
            anyhow::Ok(())
        });
        self.while_running(async {
            ready.await.map_err(|error| self.bridge.failure(&format!("is not ready: {error:#}")))
        })
        .await
    }

    /// Gives the `ClusterIP` of `web`.
    async fn deploy_sample(&self) -> Result<String> {
        self.kubernetes.apply_yaml(SAMPLE).await?;
        for (name, instances) in [("web", 1), ("web-metrics", 1), ("db", 2)] {
            let name = format!("{name}.service.consul");
            let resolves = eventually(READY_DEADLINE, || async {
                let found = dns::addresses(self.consul.dns_address(), &name).await?;
                ensure!(found == instances, "{name} has {found} addresses, want {instances}");
                Ok(())
            });
            self.while_running(resolves).await?;
        }
        let services = Api::<Service>::namespaced(self.kubernetes.client()?, "default");
        let spec = services.get("web").await?.spec.unwrap_or_default();
        spec.cluster_ip.context("the sample's Service has no ClusterIP")
    }

    /// What to try.
    pub fn steps(&self) -> Result<Vec<Step>> {
        steps::steps(&Places {
            program: self.program.clone(),
            kubectl: kube_consul_stack::program_path("kubectl")?,
            kubeconfig: self.kubernetes.kubeconfig().to_owned(),
            consul: self.consul.url().to_owned(),
            dns: self.consul.dns_address(),
            admin: format!("http://127.0.0.1:{}", self.admin.number()),
            address: self.address.clone(),
        })
    }

    /// Waits for something, but not longer than the three processes run.
    pub async fn while_running<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        /// For ever: a cluster that is left alone over a long weekend.
        const EVER: Duration = Duration::from_hours(30 * 24);
        tokio::select! {
            outcome = work => outcome,
            _ = self.bridge.wait(EVER) => Err(self.bridge.failure("ended by itself")),
            _ = self.proxy.program().wait(EVER) => {
                Err(self.proxy.program().failure("ended by itself"))
            }
            _ = self.consul.program().wait(EVER) => {
                Err(self.consul.program().failure("ended by itself"))
            }
        }
    }

    /// Ends the bridge in order, and then everything else.
    pub async fn stop(self) -> Result<()> {
        self.bridge.stop(STOP_GRACE).await?;
        self.proxy.program().kill().await?;
        self.consul.kill().await?;
        self.kubernetes.stop().await
    }
}

/// A proxy with the rights of the shipped service account and no others.
async fn proxy(kubernetes: &Kubernetes, manifests: &Path) -> Result<KubectlProxy> {
    let file = manifests.join("base/rbac.yaml");
    let objects = kubernetes
        .apply_file(&file)
        .await
        .with_context(|| format!("apply {} (--manifests names its folder)", file.display()))?;
    let account = objects
        .iter()
        .find(|object| object["kind"] == "ServiceAccount")
        .with_context(|| format!("{} has no ServiceAccount", file.display()))?;
    let part = |name: &str| account["metadata"][name].as_str().unwrap_or("default");
    let token = kubernetes.service_account_token(part("namespace"), part("name")).await?;
    KubectlProxy::start(&kubernetes.kubeconfig_for(&token)?).await
}
