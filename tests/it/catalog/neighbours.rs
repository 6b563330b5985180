//! Several clusters in one Consul, and names that change.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use kube_consul_stack::{
    Consul, ConsulApi, ConsulCluster, ConsulOptions, Fault, HttpRecorder, Kubernetes,
    ProgramOptions, Recorded, eventually,
};
use serde_json::Value;

use super::support::{any_tag, nodes, operations, wait_for_registered};
use crate::support::{
    Bridge, DEADLINE, Dns, Fixture, InvariantMonitor, Objects, catalog_bridge, ends_with,
    kube_consul, kubeconfig_without, numbered,
};

/// One begins as the other does.
const CLUSTERS: [&str; 2] = ["eu", "eu-2"];
/// The identity of a cluster that there is not.
const OTHER: &str = "00000000-aaaa-bbbb-cccc-000000000000";

async fn ready(command: ProgramOptions) -> Result<Bridge> {
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    Ok(bridge)
}

async fn instances(consul: &ConsulApi, name: &str) -> Result<Vec<String>> {
    let found = consul.get(&format!("/v1/health/service/{name}")).await?;
    let nodes = found.as_array().into_iter().flatten();
    let mut nodes: Vec<String> =
        nodes.filter_map(|it| Some(it["Node"]["Node"].as_str()?.to_owned())).collect();
    nodes.sort();
    Ok(nodes)
}

async fn wait_for_nodes_of(consul: &ConsulApi, name: &str, wanted: &[&str]) -> Result<()> {
    eventually(DEADLINE, || async {
        let found = instances(consul, name).await?;
        ensure!(found == wanted, "{name} is on {found:?}, want {wanted:?}");
        Ok(())
    })
    .await
}

/// A write that registers something under the name.
fn registers(request: &Recorded, name: &str) -> bool {
    let registers = |operation: &Value| operation["Service"]["Service"]["Service"] == name;
    request.is_write() && operations(request).iter().any(registers)
}

#[tokio::test]
async fn a6_of_two_clusters_that_take_a_name_at_once_one_leaves() -> Result<()> {
    let servers = Fixture::servers(ConsulOptions::server()).await?;
    let mut sites = Vec::new();
    for cluster in CLUSTERS {
        let objects = servers.objects(cluster).await?;
        let recorder = HttpRecorder::start(servers.consul.servers[0].url()).await?;
        let command = catalog_bridge(&recorder.url(), cluster, &objects.namespace).await?;
        let bridge = ready(command.args(["--resync", "1s"])).await?;
        // It is looked up by both before either has written.
        recorder.fault(Fault::Delay(Duration::from_secs(2)), |it| registers(it, "api"));
        sites.push((objects, recorder, bridge));
    }
    let create = async |(objects, ..): &(Objects, HttpRecorder, Bridge)| {
        objects.create_all(&["api".to_owned()]).await
    };
    tokio::try_join!(create(&sites[0]), create(&sites[1]))?;
    let has_written = |(_, recorder, _): &(Objects, HttpRecorder, Bridge)| {
        recorder.requests().iter().any(|it| registers(it, "api") && it.status.is_some())
    };
    eventually(DEADLINE, || async {
        ensure!(sites.iter().all(has_written), "one has not written");
        let found = instances(servers.api(), "api").await?;
        ensure!(found.len() == 1, "api is on {found:?}");
        Ok(())
    })
    .await?;
    let found = instances(servers.api(), "api").await?;
    let node = |(cluster, (objects, ..)): (&&str, &(Objects, HttpRecorder, Bridge))| {
        format!("k8s-{cluster}.{}", objects.namespace)
    };
    let mut nodes = CLUSTERS.iter().zip(&sites).map(node);
    let stays = nodes.position(|node| found == [node]).context("whose is it?")?;
    let (staying, leaving) = (&sites[stays], &sites[1 - stays]);
    let told = leaving.2.wait_for_problem(&leaving.0.namespace, "api", "ForeignName").await?;
    ensure!(told.contains("it is not registered under it"), "{told}");
    staying.2.wait_for_no_problem(&staying.0.namespace, "api").await?;
    // Neither comes back nor goes.
    for _ in 0..20 {
        ensure!(instances(servers.api(), "api").await? == found);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Once the one that has it is gone, the other one may have the name.
    staying.0.delete("api").await?;
    wait_for_nodes_of(
        servers.api(),
        "api",
        &[&format!("k8s-{}.{}", CLUSTERS[1 - stays], leaving.0.namespace)],
    )
    .await?;
    leaving.2.wait_for_no_problem(&leaving.0.namespace, "api").await?;
    tokio::try_join!(staying.2.stop(), leaving.2.stop())?;
    Ok(())
}

#[tokio::test]
async fn two_clusters_with_equal_names_each_keep_their_own() -> Result<()> {
    let servers = Fixture::servers(ConsulOptions::server()).await?;
    let names = ["web".to_owned(), "api".to_owned()];
    let mut sites = Vec::new();
    for cluster in CLUSTERS {
        let objects = servers.objects(cluster).await?;
        objects.create_all(&names).await?;
        let recorder = HttpRecorder::start(servers.consul.servers[0].url()).await?;
        let command = catalog_bridge(&recorder.url(), cluster, &objects.namespace).await?;
        // They share names on purpose.
        let command = command.args(["--join-existing", "kubernetes"]);
        sites.push((objects, recorder, command));
    }
    let [(ours, our_recorder, our_command), (theirs, their_recorder, their_command)] = &sites[..]
    else {
        anyhow::bail!("two sites")
    };
    let start = async || {
        let ours = ready(our_command.clone());
        tokio::try_join!(ours, ready(their_command.clone()))
    };
    let (our_bridge, their_bridge) = start().await?;
    let node = |cluster: &str, objects: &Objects| format!("k8s-{cluster}.{}", objects.namespace);
    let (our_node, their_node) = (node(CLUSTERS[0], ours), node(CLUSTERS[1], theirs));
    for name in &names {
        // A dash comes before a dot.
        wait_for_nodes_of(servers.api(), name, &[&their_node, &our_node]).await?;
    }
    ensure!(our_bridge.status().await?["counts"]["problems"] == 0);
    ensure!(their_bridge.status().await?["counts"]["problems"] == 0);

    our_recorder.clear();
    their_recorder.clear();
    ours.delete("web").await?;
    wait_for_nodes_of(servers.api(), "web", &[&their_node]).await?;
    theirs.delete("api").await?;
    wait_for_nodes_of(servers.api(), "api", &[&our_node]).await?;
    // Both look at everything again and leave what is the other's alone.
    tokio::try_join!(our_bridge.stop(), their_bridge.stop())?;
    let (our_bridge, _their_bridge) = start().await?;
    for (recorder, node) in [(our_recorder, &our_node), (their_recorder, &their_node)] {
        let writes: Vec<Value> = recorder.writes().iter().flat_map(operations).collect();
        ensure!(writes.len() == 2, "a service and its PTR record: {writes:#?}");
        ensure!(writes[0]["Service"]["Node"] == **node, "{writes:#?}");
    }
    wait_for_nodes_of(servers.api(), "web", &[&their_node]).await?;
    wait_for_nodes_of(servers.api(), "api", &[&our_node]).await?;

    our_bridge.stop().await?;
    ours.delete("api").await?;
    let bridge = ready(our_command.clone()).await?;
    // All that it has is missing from the list, so a second one has to agree.
    eventually(DEADLINE, || async {
        let nodes = nodes(servers.api(), CLUSTERS[0]).await?;
        ensure!(nodes == ["k8s-eu"], "its namespace is empty: {nodes:?}");
        Ok(())
    })
    .await?;
    ensure!(instances(servers.api(), "web").await? == [their_node]);
    another_cluster_of_that_name(&servers, &bridge, ours).await
}

/// One of another identity and the same name writes nothing and says both.
async fn another_cluster_of_that_name(
    servers: &Fixture<ConsulCluster>,
    bridge: &Bridge,
    objects: &Objects,
) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(servers.kubernetes.client()?);
    let uid = namespaces.get("kube-system").await?.metadata.uid.context("no uid")?;
    // Where the identity may not be read, the operator gives it.
    let kubeconfig = kubeconfig_without(servers.kubernetes, "namespaces", "get").await?;
    servers.recorder().clear();
    let command = kube_consul()
        .args(["bridge", "--sink", "catalog", "--cluster", CLUSTERS[0], "--cluster-uid", OTHER])
        .args(["--namespace", &objects.namespace, "--admin-addr", "127.0.0.1:0", "--kubeconfig"])
        .arg(&kubeconfig)
        .env("CONSUL_HTTP_ADDR", servers.recorder().url());
    let told = ends_with(3, command).await?;
    ensure!(told.contains(&uid) && told.contains(OTHER), "{told}");
    ensure!(servers.recorder().writes().is_empty(), "{:#?}", servers.recorder().writes());
    bridge.stop().await
}

#[tokio::test]
async fn a_changed_name_template_leaves_no_gap() -> Result<()> {
    let (kubernetes, consul) =
        tokio::try_join!(Kubernetes::shared(), Consul::start(ConsulOptions::dev()))?;
    let objects = Objects::new(&kubernetes.client()?, &kubernetes.namespace("named").await?);
    let (cluster, names) = (objects.namespace.clone(), numbered("svc", 100));
    objects.create_all(&names).await?;
    let command = catalog_bridge(consul.url(), &cluster, &cluster).await?;
    let bridge = Bridge::start(command.clone()).await?;
    bridge.wait_ready().await?;
    let fixture = (cluster.as_str(), cluster.as_str());
    wait_for_registered(consul.api(), fixture, &any_tag(&names), DEADLINE).await?;

    let (address, suffix, watched) = (consul.dns_address(), cluster.clone(), names.clone());
    let mut turn = 0;
    let monitor = InvariantMonitor::start(move || {
        turn += 1;
        let (name, suffix) = (watched[turn % watched.len()].clone(), suffix.clone());
        async move {
            let dns = Dns::new(address)?;
            let old = dns.ask(&format!("{name}.service.consul"), RecordType::A).await?;
            if !old.is_empty() {
                return Ok(Vec::new());
            }
            // It is no longer there: so the new one has to be.
            let new = format!("{name}-{suffix}.service.consul");
            let found = dns.ask(&new, RecordType::A).await?;
            Ok(if found.is_empty() { vec![format!("{name} has neither name")] } else { vec![] })
        }
    });
    bridge.stop().await?;
    let bridge = Bridge::start(command.args(["--name-template", "{service}-{namespace}"])).await?;
    bridge.wait_ready().await?;
    let renamed: BTreeMap<_, _> =
        names.iter().map(|name| (format!("{name}-{cluster}"), String::new())).collect();
    wait_for_registered(consul.api(), fixture, &renamed, DEADLINE).await?;
    monitor.finish_with_gaps("a changed template").await?;
    let reverse = consul.api().get("/v1/kv/0.?recurse").await?;
    let reverse = reverse.as_array().map_or(0, Vec::len);
    ensure!(reverse == names.len(), "{reverse} PTR records");
    bridge.stop().await
}
