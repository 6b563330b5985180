//! A bridge on the real cluster: the built program with the shipped rights, beside a Consul of
//! the test's own, in a namespace of the test's own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_consul_stack::{
    Consul, ConsulOptions, Endpoint, Kubernetes, Port, Program, ProgramOptions, ServiceKind,
    eventually, install_provider,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// What happens within milliseconds alone takes seconds beside a build.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A file of what users apply.
pub fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(path)
}

/// The token of the shipped service account, after `kubectl apply` of what is shipped.
pub async fn shipped_token(cluster: &Kubernetes) -> Result<String> {
    cluster.apply_file(&manifest("base/namespace.yaml")).await?;
    cluster.apply_file(&manifest("base/rbac.yaml")).await?;
    cluster.service_account_token("kube-consul", "kube-consul").await
}

/// A kubeconfig with the shipped rights on the shared cluster.
pub async fn shipped_kubeconfig() -> Result<&'static Path> {
    static SHARED: OnceCell<PathBuf> = OnceCell::const_new();
    let path = SHARED.get_or_try_init(|| async {
        let cluster = Kubernetes::shared().await?;
        cluster.kubeconfig_for(&shipped_token(cluster).await?)
    });
    Ok(path.await?)
}

/// The rules of the shipped role.
pub async fn shipped_rules(cluster: &Kubernetes) -> Result<Vec<Value>> {
    shipped_token(cluster).await?;
    let cluster_roles: Api<ClusterRole> = Api::all(cluster.client()?);
    let shipped = serde_json::to_value(cluster_roles.get("kube-consul-bridge").await?.rules)?;
    Ok(serde_json::from_value(shipped)?)
}

/// A kubeconfig with the shipped rights but for one verb on one resource.
pub async fn kubeconfig_without(
    cluster: &Kubernetes,
    resource: &str,
    verb: &str,
) -> Result<PathBuf> {
    let mut rules = shipped_rules(cluster).await?;
    let mut removed = 0;
    for rule in &mut rules {
        if rule["resources"] == json!([resource]) {
            let allowed = rule["verbs"].as_array_mut().context("no verbs")?;
            let before = allowed.len();
            allowed.retain(|it| it != verb);
            removed += before - allowed.len();
        }
    }
    ensure!(removed == 1, "the shipped role has {verb} {resource} {removed} times");
    rules.retain(|rule| rule["verbs"] != json!([]));
    let namespace = cluster.namespace("without").await?;
    kubeconfig_with(cluster, &namespace, &rules).await
}

/// A kubeconfig with these rights, of the service account `limited` in a namespace without one.
pub async fn kubeconfig_with(
    cluster: &Kubernetes,
    namespace: &str,
    rules: &[Value],
) -> Result<PathBuf> {
    let subject = json!([{"kind": "ServiceAccount", "name": "limited", "namespace": namespace}]);
    let group = "rbac.authorization.k8s.io";
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "limited", "namespace": namespace}}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole",
            "metadata": {"name": namespace}, "rules": rules}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": namespace}, "subjects": subject,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": namespace}}),
    ] {
        cluster.apply_yaml(&object.to_string()).await?;
    }
    cluster.kubeconfig_for(&cluster.service_account_token(namespace, "limited").await?)
}

/// The command line's beginning.
pub fn kube_consul() -> ProgramOptions {
    ProgramOptions::new(env!("CARGO_BIN_EXE_kube-consul"))
}

/// Runs the program to its end and gives what it wrote to standard error.
pub async fn ends_with(code: i32, options: ProgramOptions) -> Result<String> {
    let program = Program::start("kube-consul", options).await?;
    program.wait_for_code(code, DEADLINE).await?;
    Ok(program.stderr())
}

/// Runs the program to its end and gives what it wrote to standard output.
pub async fn says(code: i32, options: ProgramOptions) -> Result<String> {
    let program = Program::start("kube-consul", options).await?;
    program.wait_for_code(code, DEADLINE).await?;
    Ok(program.stdout())
}

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

/// A running bridge.
pub struct Bridge {
    pub program: Program,
    admin: Port,
    client: reqwest::Client,
}

impl Bridge {
    /// Starts it with an admin server and does not wait.
    pub async fn start(options: ProgramOptions) -> Result<Self> {
        install_provider();
        let admin = Port::pick()?;
        let options = options.arg(format!("--admin-addr=127.0.0.1:{}", admin.number()));
        let program = Program::start("kube-consul", options).await?;
        let client =
            reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(DEADLINE).build()?;
        Ok(Self { program, admin, client })
    }

    /// Waits until `/readyz` says 200.
    pub async fn wait_ready(&self) -> Result<()> {
        self.wait_ready_within(DEADLINE).await
    }

    /// The same, for as long as it may take.
    pub async fn wait_ready_within(&self, deadline: Duration) -> Result<()> {
        let ready = eventually(deadline, || async {
            let (status, text) = self.get("/readyz").await?;
            ensure!(status == 200, "/readyz answers {status}: {text}");
            Ok(())
        });
        tokio::select! {
            outcome = ready => outcome.map_err(|error| self.program.failure(&format!("{error:#}"))),
            _ = self.program.wait(deadline * 2) => Err(self.program.failure("ended before it was ready")),
        }
    }

    /// A page of the admin server: its status and its text.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin.number());
        let answer = self.client.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// The problems of one Service.
    pub async fn problems_of(&self, namespace: &str, name: &str) -> Result<Vec<Value>> {
        let status = self.status().await?;
        let all = status["problems"].as_array().cloned().unwrap_or_default();
        let is_of = |it: &Value| it["namespace"] == namespace && it["name"] == name;
        Ok(all.into_iter().filter(is_of).collect())
    }

    /// Waits until a Service has one problem, and gives its message.
    pub async fn wait_for_problem(
        &self,
        namespace: &str,
        name: &str,
        reason: &str,
    ) -> Result<String> {
        eventually(DEADLINE, || async {
            let problems = self.problems_of(namespace, name).await?;
            let [problem] = problems.as_slice() else { anyhow::bail!("{name}: {problems:?}") };
            ensure!(problem["kind"] == "Service" && problem["reason"] == reason, "{problem}");
            Ok(problem["message"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// Waits until a Service has no problem.
    pub async fn wait_for_no_problem(&self, namespace: &str, name: &str) -> Result<()> {
        eventually(DEADLINE, || async {
            let problems = self.problems_of(namespace, name).await?;
            ensure!(problems.is_empty(), "{name}: {problems:?}");
            Ok(())
        })
        .await
    }

    pub async fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.get("/status").await?.1)?)
    }

    /// The value of a metric, by its name and labels as they are shown.
    pub async fn metric(&self, series: &str) -> Result<Option<f64>> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?)
    }

    /// SIGTERM; it has to end with 0.
    pub async fn stop(&self) -> Result<()> {
        self.program.terminate().await;
        self.program.wait_for_code(0, DEADLINE).await
    }
}

/// What a resolver library finds in Consul's DNS.
pub struct Dns(TokioResolver);

impl Dns {
    /// A resolver that asks the Consul at this address.
    pub fn new(server: SocketAddr) -> Result<Self> {
        let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = server.port();
            connection
        });
        let server = NameServerConfig::new(server.ip(), true, connections.into());
        let config = ResolverConfig::from_name_servers(vec![server]);
        let mut builder =
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.cache_size = 0;
        options.use_hosts_file = ResolveHosts::Never;
        Ok(Self(builder.build()?))
    }

    /// The answers, sorted: addresses, and ports with their weights of SRV records. Empty for a
    /// name that does not exist or has no such record.
    pub async fn ask(&self, name: &str, kind: RecordType) -> Result<Vec<String>> {
        let lookup = match self.0.lookup(format!("{name}."), kind).await {
            Ok(lookup) => lookup,
            Err(error) if error.is_nx_domain() || error.is_no_records_found() => return Ok(vec![]),
            Err(error) => return Err(error).with_context(|| format!("{kind} {name}")),
        };
        let texts = lookup.answers().iter().map(|record| match &record.data {
            RData::A(address) => address.to_string(),
            RData::AAAA(address) => address.to_string(),
            RData::SRV(srv) => format!("port {} weight {}", srv.port, srv.weight),
            other => format!("{other:?}"),
        });
        let mut texts: Vec<String> = texts.collect();
        texts.sort();
        Ok(texts)
    }

    /// Waits until the answers are these.
    pub async fn wait_for(&self, name: &str, kind: RecordType, wanted: &[&str]) -> Result<()> {
        eventually(DEADLINE, || async {
            let found = self.ask(name, kind).await?;
            ensure!(found == wanted, "{kind} {name}: {found:?}, want {wanted:?}");
            Ok(())
        })
        .await
    }
}
