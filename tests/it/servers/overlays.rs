//! What is applied after the servers, with nothing in between: the bridge with either sink and the
//! import, each with the CA, the policy and the token that are shipped for it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::{
    ConsulApi, Endpoint, KubectlProxy, Kubernetes, Pod, PodOptions, Program, ProgramOptions,
    ServiceKind, data_folder, eventually,
};
use serde_json::{Value, json};

use super::scenarios;
use super::support::{
    Forwarded, HTTPS, START_DEADLINE, Servers, command, object, options, rendered,
};
use crate::import::support::shipped_kubeconfig;
use crate::support::{Bridge, shared_token};

const PORTS: [(&str, u16); 1] = [("http", 80)];

/// A Kubernetes namespace, and the way that the bridge's pod has to the API server.
struct Cluster {
    kubernetes: &'static Kubernetes,
    namespace: String,
    proxy: KubectlProxy,
}

// === impl Cluster ===

impl Cluster {
    async fn new() -> Result<Self> {
        let kubernetes = Kubernetes::shared().await?;
        let namespace = kubernetes.namespace("overlay").await?;
        let proxy = KubectlProxy::start(&kubernetes.kubeconfig_for(shared_token().await?)?).await?;
        Ok(Self { kubernetes, namespace, proxy })
    }

    /// A Service with one ready endpoint.
    async fn service(&self, name: &str, address: &str) -> Result<()> {
        let endpoints = [Endpoint::ready(address)];
        let slice = format!("{name}-1");
        let (kubernetes, namespace) = (self.kubernetes, &self.namespace);
        kubernetes.endpoint_slice(namespace, name, &slice, &endpoints, &PORTS).await?;
        kubernetes.service(namespace, name, ServiceKind::Selectorless, &PORTS).await?;
        Ok(())
    }

    /// A Service whose endpoints are those of a Consul service.
    async fn imported(&self, name: &str, service: &str) -> Result<()> {
        let annotations = json!({"kube-consul.io/import": service});
        let service = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": self.namespace, "annotations": annotations},
            "spec": {"ports": [{"name": "pg", "port": 5432}]}});
        self.kubernetes.apply_yaml(&service.to_string()).await.map(drop)
    }

    /// The addresses in the slices that the import has made.
    async fn wait_for_endpoints(&self, name: &str, wanted: &[&str]) -> Result<()> {
        let label = format!("--selector=kubernetes.io/service-name={name}");
        let path = "--output=jsonpath={.items[*].endpoints[*].addresses[*]}";
        let list = ["get", "endpointslices", "--namespace", &self.namespace, &label, path];
        eventually(START_DEADLINE, || async {
            let found = self.kubernetes.kubectl(&list).await?;
            let mut found: Vec<_> = found.split_whitespace().collect();
            found.sort_unstable();
            ensure!(found == wanted, "{name} has {found:?}, want {wanted:?}");
            Ok(())
        })
        .await
    }
}

/// The pod of an overlay's Deployment: the servers' Service has an address that stays, as has what
/// is beside the container on the loopback address.
async fn pod(
    servers: &mut Servers,
    (folder, deployment): (&str, &str),
    service: &Forwarded,
    cluster: &Cluster,
) -> Result<Pod> {
    let objects = rendered(folder).await?;
    let spec = object(&objects, "Deployment", deployment)?["spec"]["template"]["spec"].clone();
    // The agent's policy is for nodes of this name.
    let name = format!("{deployment}-{folder}");
    let address = servers.new_address();
    let mut names = servers.names(&[]);
    names.retain(|(name, _)| name != "consul");
    names.push(("consul".to_owned(), vec![service.address]));
    let options = PodOptions {
        storage: data_folder(&name)?,
        names,
        replacements: vec![
            ("127.0.0.1:8500".to_owned(), format!("{address}:8500")),
            ("http://127.0.0.1:8001".to_owned(), cluster.proxy.url()),
        ],
        ..options(&name, address)
    };
    Pod::new(&spec, &servers.objects, options)
}

/// The command of a container of ours, for one namespace of a cluster that other tests use too.
fn in_namespace(pod: &Pod, container: &str, cluster: &Cluster) -> Result<ProgramOptions> {
    Ok(command(pod, container)?.args(["--namespace", &cluster.namespace]))
}

/// The agent beside the bridge, on the address of its pod instead of on the loopback address.
async fn sidecar_agent(pod: &Pod) -> Result<Program> {
    let client = format!("-client={}", pod.address());
    let agent = pod.container("consul")?.clone();
    let words: Vec<&str> = ["command", "args"]
        .iter()
        .flat_map(|it| agent[it].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .chain([client.as_str()])
        .collect();
    Program::start("bridge-agent", pod.command_in("consul", &words)?).await
}

async fn instances(api: &ConsulApi, name: &str) -> Result<usize> {
    let found = api.get(&format!("/v1/catalog/service/{name}")).await?;
    Ok(found.as_array().map_or(0, Vec::len))
}

async fn wait_for_instances(api: &ConsulApi, name: &str, wanted: usize) -> Result<Duration> {
    let began = Instant::now();
    eventually(START_DEADLINE, || async {
        let found = instances(api, name).await?;
        ensure!(found == wanted, "{name} has {found} instances, want {wanted}");
        Ok(())
    })
    .await?;
    Ok(began.elapsed())
}

/// An instance of `db`, which no bridge has made.
async fn register(api: &ConsulApi, address: &str) -> Result<()> {
    let body = json!({"Node": format!("machine-{address}"), "Address": address,
        "Service": {"Service": "db", "Address": address, "Port": 5432}});
    eventually(START_DEADLINE, || api.put("/v1/catalog/register", &body)).await.map(drop)
}

/// Each is ready and has no problem.
async fn all_is_well(bridges: &[&Bridge]) -> Result<()> {
    for bridge in bridges {
        bridge.wait_ready_within(START_DEADLINE).await?;
        let status = bridge.status().await?;
        let services = status["services"].as_array().cloned().unwrap_or_default();
        let of_services = services.iter().filter_map(|it| it["problems"].as_array()).flatten();
        let problems = of_services.chain(status["problems"].as_array().into_iter().flatten());
        ensure!(problems.count() == 0 && !services.is_empty(), "{status}");
    }
    Ok(())
}

#[tokio::test]
async fn bridge_and_import_with_the_shipped_policies_are_ready_and_outlive_the_leader() -> Result<()>
{
    scenarios::run("overlays").await
}

pub async fn overlays() -> Result<()> {
    let mut servers = Servers::started(3).await?;
    let address = servers.network.address(252);
    let service = Forwarded::start(address, &[HTTPS], servers.ready()).await?;
    let cluster = Cluster::new().await?;
    cluster.service("shop", "10.1.0.1").await?;
    cluster.imported("orders-db", "db").await?;

    // The bridge with an agent of its own; without one, over HTTPS; and the import. Both bridges
    // are of one cluster, as while an operator changes the sink: each has an instance.
    let with_agent = ("with-consul-servers", "kube-consul");
    let pod_with_agent = pod(&mut servers, with_agent, &service, &cluster).await?;
    pod_with_agent.init().await?;
    let agent = sidecar_agent(&pod_with_agent).await?;
    let by_agent = Bridge::start(in_namespace(&pod_with_agent, "bridge", &cluster)?).await?;
    let without = ("with-consul-servers-catalog", "kube-consul");
    let pod_without = pod(&mut servers, without, &service, &cluster).await?;
    let by_catalog = Bridge::start(in_namespace(&pod_without, "bridge", &cluster)?).await?;
    let import = ("with-consul-servers-import", "kube-consul-import");
    let pod_of_import = pod(&mut servers, import, &service, &cluster).await?;
    let import = in_namespace(&pod_of_import, "import", &cluster)?;
    let import = import.arg("--kubeconfig").arg(shipped_kubeconfig().await?);
    let import = Bridge::start(import).await?;
    all_is_well(&[&by_agent, &by_catalog, &import]).await?;
    let api = servers.api(0)?;
    wait_for_instances(&api, "shop", 2).await?;
    register(&api, "192.0.2.7").await?;
    cluster.wait_for_endpoints("orders-db", &["192.0.2.7"]).await?;
    ensure!(!agent.stdout().contains("ermission denied"), "{}", agent.stdout());

    // The leader is lost. What comes and what goes while another one is elected is in Consul, and
    // in Kubernetes, without a restart of anything.
    let lost = servers.leader_seen_by(0).await?;
    servers.lose(lost).await?;
    let api = servers.api((lost + 1) % 3)?;
    cluster.service("later", "10.1.0.2").await?;
    cluster
        .kubernetes
        .kubectl(&["delete", "service/shop", "--namespace", &cluster.namespace])
        .await?;
    println!("a Service after the loss: {:.1?}", wait_for_instances(&api, "later", 2).await?);
    println!("one that went: {:.1?}", wait_for_instances(&api, "shop", 0).await?);
    register(&api, "192.0.2.8").await?;
    cluster.wait_for_endpoints("orders-db", &["192.0.2.7", "192.0.2.8"]).await?;
    all_is_well(&[&by_agent, &by_catalog, &import]).await?;

    import.stop().await?;
    by_agent.stop().await?;
    agent.stop(Duration::from_secs(30)).await?;
    by_catalog.stop().await?;
    // Its records outlive it, those of an agent that has left do not.
    wait_for_instances(&api, "later", 1).await?;
    Ok(())
}
