//! A real Kubernetes: etcd, API server with RBAC, controller manager,
//! scheduler, and kwok in place of nodes.

use std::collections::BTreeSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::certificates::{self, Authority};
use crate::folder;
use crate::poll::eventually;
use crate::port::Port;
use crate::program::{Program, ProgramOptions};
use crate::{background, tools};

mod backup;
mod objects;
mod proxy;

pub use objects::{Endpoint, ServiceKind};
pub use proxy::KubectlProxy;

/// The start takes about 4 s alone on two cores; a debug build beside it makes
/// that several times as long.
const START_DEADLINE: Duration = Duration::from_secs(90);

/// A port that was free may be taken by a program that does not pick its ports
/// here; twice in a row is no longer chance.
const ATTEMPTS: usize = 3;

/// Long against a loopback answer of the API server, short against a test.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

const STAGES: &str = include_str!("kubernetes/stages.yaml");

/// What can be different from the usual cluster.
#[derive(Debug, Clone, Default)]
pub struct KubernetesOptions {
    /// Further flags of the API server.
    pub apiserver_flags: Vec<String>,
    /// Checks of its `/readyz` that will never be good with those flags.
    pub unready_checks: Vec<String>,
}

impl KubernetesOptions {
    /// A cluster as it was before Kubernetes had `EndpointSlices`. The API
    /// server itself looks for them, and never says that it is ready.
    pub fn without_endpoint_slices() -> Self {
        Self {
            apiserver_flags: vec!["--runtime-config=discovery.k8s.io/v1=false".to_owned()],
            unready_checks: vec!["informer-sync".to_owned()],
        }
    }
}

/// A running cluster; dropped, it is gone.
#[derive(Debug)]
pub struct Kubernetes {
    ca: String,
    token: String,
    folder: PathBuf,
    kubeconfig: PathBuf,
    /// etcd, the API server, and the controllers.
    programs: Vec<Program>,
    ports: Ports,
    files: Files,
}

#[derive(Debug)]
struct Ports {
    etcd: Port,
    etcd_peer: Port,
    apiserver: Port,
}

impl Kubernetes {
    /// Starts a cluster with one ready node and waits until it answers.
    pub async fn start(options: KubernetesOptions) -> Result<Self> {
        certificates::install_provider();
        let mut attempt = 1;
        loop {
            // Boxed: a start holds much that no caller's future should.
            match Box::pin(Self::try_start(&options)).await {
                Err(error) if attempt < ATTEMPTS && is_port_taken(&error) => attempt += 1,
                outcome => return outcome.context("start a local Kubernetes"),
            }
        }
    }

    /// The cluster that all tests of this process share, started by the first
    /// that asks. Its tasks are on a runtime of its own, so it serves tests on
    /// any other.
    pub async fn shared() -> Result<&'static Self> {
        static SHARED: OnceCell<Kubernetes> = OnceCell::const_new();
        SHARED
            .get_or_try_init(|| async {
                background::runtime().spawn(Self::start(KubernetesOptions::default())).await?
            })
            .await
    }

    async fn try_start(options: &KubernetesOptions) -> Result<Self> {
        let folder = folder::data_folder("kubernetes")?;
        let ports =
            Ports { etcd: Port::pick()?, etcd_peer: Port::pick()?, apiserver: Port::pick()? };
        let authority = Authority::new("kube-consul local cluster")?;
        let token = format!("admin-{}", folder::random_name());
        let files = Files::write(&folder, &authority, &token)?;
        let mut cluster = Self {
            ca: authority.pem().to_owned(),
            kubeconfig: folder.join("admin.kubeconfig"),
            folder,
            token,
            programs: Vec::new(),
            ports,
            files,
        };
        cluster.write_kubeconfig(&cluster.kubeconfig, &cluster.url(), &cluster.token)?;
        let etcd = cluster.start_etcd().await?;
        cluster.programs.push(etcd);
        let apiserver = cluster.start_apiserver(&options.apiserver_flags).await?;
        cluster.programs.push(apiserver);
        cluster.wait_ready(&options.unready_checks).await?;
        cluster.start_controllers().await?;
        cluster
            .while_running(cluster.wait_controllers())
            .await
            .context("wait for the controllers")?;
        Ok(cluster)
    }

    fn etcd_data(&self) -> PathBuf {
        self.folder.join("etcd")
    }

    async fn start_etcd(&self) -> Result<Program> {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd.number());
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer.number());
        let options = ProgramOptions::new(tools::program("etcd")?)
            .args(["--unsafe-no-fsync", "--log-level=warn"])
            .arg(format!("--data-dir={}", self.etcd_data().display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"));
        Program::start("etcd", options).await
    }

    async fn start_apiserver(&self, extra: &[String]) -> Result<Program> {
        let files = &self.files;
        let options = ProgramOptions::new(tools::program("kube-apiserver")?)
            .arg(format!("--etcd-servers=http://127.0.0.1:{}", self.ports.etcd.number()))
            .arg("--bind-address=127.0.0.1")
            .arg(format!("--secure-port={}", self.ports.apiserver.number()))
            .arg(format!("--tls-cert-file={}", files.certificate.display()))
            .arg(format!("--tls-private-key-file={}", files.key.display()))
            .arg(format!("--cert-dir={}", self.folder.display()))
            .arg(format!("--token-auth-file={}", files.tokens.display()))
            .arg("--authorization-mode=RBAC")
            .arg(format!("--service-account-key-file={}", files.accounts_public.display()))
            .arg(format!("--service-account-signing-key-file={}", files.accounts.display()))
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg("--service-cluster-ip-range=10.96.0.0/12")
            .args(extra);
        Program::start("kube-apiserver", options).await
    }

    async fn start_controllers(&mut self) -> Result<()> {
        let files = &self.files;
        let kubeconfig = format!("--kubeconfig={}", self.kubeconfig.display());
        let manager = ProgramOptions::new(tools::program("kube-controller-manager")?)
            .arg(&kubeconfig)
            .arg(format!("--service-account-private-key-file={}", files.accounts.display()))
            .arg(format!("--root-ca-file={}", files.ca.display()))
            .args(["--leader-elect=false", "--secure-port=0"]);
        let scheduler = ProgramOptions::new(tools::program("kube-scheduler")?)
            .arg(&kubeconfig)
            .args(["--leader-elect=false", "--secure-port=0"]);
        let kwok = ProgramOptions::new(tools::program("kwok")?)
            .arg(&kubeconfig)
            .arg(format!("--config={}", files.stages.display()))
            .args(["--manage-all-nodes=true", "--cidr=10.244.0.0/16"])
            // Without a lease there is no heartbeat: after 50 s the controller manager takes the
            // nodes for dead, and the endpoints of their pods turn not ready.
            .arg("--node-lease-duration-seconds=40");
        for (name, options) in
            [("kube-controller-manager", manager), ("kube-scheduler", scheduler), ("kwok", kwok)]
        {
            self.programs.push(Program::start(name, options).await?);
        }
        Ok(())
    }

    async fn wait_ready(&self, unready: &[String]) -> Result<()> {
        let ca = reqwest::Certificate::from_pem(self.ca.as_bytes())?;
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([ca])
            .timeout(REQUEST_DEADLINE)
            .build()?;
        let excluded = unready.iter().map(|check| format!("&exclude={check}"));
        let url = format!("{}/readyz?verbose{}", self.url(), excluded.collect::<String>());
        self.while_running(eventually(START_DEADLINE, || async {
            let answer = client.get(&url).bearer_auth(&self.token).send().await?;
            let status = answer.status();
            let text = answer.text().await?;
            let failed: Vec<_> = text.lines().filter(|line| line.starts_with("[-]")).collect();
            ensure!(status.is_success(), "/readyz answers {status}: {}", failed.join(", "));
            anyhow::Ok(())
        }))
        .await
        .context("wait for the API server")
    }

    /// The controllers work once a node is schedulable and the default namespace
    /// has what pods need.
    async fn wait_controllers(&self) -> Result<()> {
        self.node("node-1").await?;
        self.wait_namespace("default").await
    }

    /// Waits for something, but not longer than every program runs.
    async fn while_running<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let ended = async {
            loop {
                if let Some(program) = self.programs.iter().find(|p| p.exit_status().is_some()) {
                    return program.failure("ended at its start");
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::select! {
            outcome = work => outcome,
            error = ended => Err(error),
        }
    }

    /// The API server's URL, `https://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("https://{}", self.address())
    }

    /// The API server's address, for a [`crate::TcpLink`] in front of it.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.ports.apiserver.number()).into()
    }

    /// The authority that signed the API server's certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca
    }

    /// The file with that authority.
    pub fn ca_path(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// The token of an administrator.
    pub fn admin_token(&self) -> &str {
        &self.token
    }

    /// A kubeconfig file of an administrator.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The folder with the cluster's data.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a kubeconfig file for a token.
    pub fn kubeconfig_for(&self, token: &str) -> Result<PathBuf> {
        self.kubeconfig_at(&self.url(), token)
    }

    /// Writes a kubeconfig file for a token that reaches the API server by
    /// another URL: through a [`crate::TcpLink`], whose host is 127.0.0.1 too.
    pub fn kubeconfig_at(&self, url: &str, token: &str) -> Result<PathBuf> {
        let path = self.folder.join(folder::unique("kubeconfig"));
        self.write_kubeconfig(&path, url, token)?;
        Ok(path)
    }

    fn write_kubeconfig(&self, path: &Path, url: &str, token: &str) -> Result<()> {
        // JSON is YAML.
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{
                "name": "local",
                "cluster": {"server": url, "certificate-authority": self.ca_path()},
            }],
            "users": [{"name": "local", "user": {"token": token}}],
            "contexts": [{"name": "local", "context": {"cluster": "local", "user": "local"}}],
            "current-context": "local",
        });
        fs::write(path, format!("{text:#}")).with_context(|| format!("write {}", path.display()))
    }

    /// A new client of an administrator. A client belongs to the runtime that
    /// it was made on, so each test makes its own.
    pub fn client(&self) -> Result<kube::Client> {
        self.client_with_token(&self.token)
    }

    /// A new client with another token.
    pub fn client_with_token(&self, token: &str) -> Result<kube::Client> {
        certificates::install_provider();
        let authority = reqwest_der(&self.ca)?;
        let mut config = kube::Config::new(self.url().parse()?);
        config.root_cert = Some(vec![authority]);
        config.auth_info.token = Some(token.to_owned().into());
        Ok(kube::Client::try_from(config)?)
    }

    /// Applies the manifests of a file as `kubectl apply` does, their namespaces
    /// first, and gives the objects.
    pub async fn apply_file(&self, path: &Path) -> Result<Vec<Value>> {
        let path = path.to_str().context("a path that is not Unicode")?;
        // What the file says, without asking the API server about it.
        let flags = ["--dry-run=client", "--validate=false"];
        let planned = self.apply(path, &flags).await?;
        let namespaces = planned.iter().filter_map(|object| {
            let name = if object["kind"] == "Namespace" { "name" } else { "namespace" };
            object["metadata"][name].as_str()
        });
        for name in namespaces.collect::<BTreeSet<_>>() {
            self.ensure_namespace(name).await?;
        }
        self.apply(path, &["--server-side", "--force-conflicts"]).await
    }

    /// Applies manifests as `kubectl apply` does, and gives the objects.
    pub async fn apply_yaml(&self, text: &str) -> Result<Vec<Value>> {
        let path = self.folder.join(folder::unique("manifest"));
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        self.apply_file(&path).await
    }

    async fn apply(&self, path: &str, flags: &[&str]) -> Result<Vec<Value>> {
        let arguments = [&["apply", "--output=json", "--filename", path], flags].concat();
        let text = self.kubectl(&arguments).await?;
        // One JSON value for a single object, a list of several.
        let mut answer: Value = serde_json::from_str(&text)
            .with_context(|| format!("kubectl apply printed no JSON: {text}"))?;
        Ok(match answer["items"].take() {
            Value::Array(items) => items,
            _ => vec![answer],
        })
    }

    /// Runs kubectl as an administrator and gives its output.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let options = ProgramOptions::new(tools::program("kubectl")?)
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .args(arguments);
        let kubectl = Program::start("kubectl", options).await?;
        let status = kubectl.wait(START_DEADLINE).await?;
        if !status.success() {
            bail!("kubectl {} ended with {status}: {}", arguments.join(" "), kubectl.stderr());
        }
        Ok(kubectl.stdout())
    }

    /// Ends all of it, the API server's clients first.
    pub async fn stop(self) -> Result<()> {
        for program in self.programs.iter().rev() {
            program.kill().await?;
        }
        Ok(())
    }
}

fn reqwest_der(pem: &str) -> Result<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    Ok(CertificateDer::from_pem_slice(pem.as_bytes())?.to_vec())
}

/// etcd and the API server both say it in these words (Go's `EADDRINUSE`).
fn is_port_taken(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("address already in use")
}

/// The files that the programs are started with.
#[derive(Debug)]
struct Files {
    ca: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    accounts: PathBuf,
    accounts_public: PathBuf,
    tokens: PathBuf,
    stages: PathBuf,
}

impl Files {
    fn write(folder: &Path, authority: &Authority, token: &str) -> Result<Self> {
        let server = authority.issue(&[
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
            "127.0.0.1",
            "10.96.0.1",
        ])?;
        let (accounts, accounts_public) = certificates::signing_keys()?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
            anyhow::Ok(path)
        };
        Ok(Self {
            ca: write("ca.pem", authority.pem())?,
            certificate: write("server.pem", &server.certificate)?,
            key: write("server.key", &server.key)?,
            accounts: write("service-accounts.key", &accounts)?,
            accounts_public: write("service-accounts.pub", &accounts_public)?,
            tokens: write("tokens.csv", &format!("{token},admin,admin,\"system:masters\"\n"))?,
            stages: write("stages.yaml", STAGES)?,
        })
    }
}
