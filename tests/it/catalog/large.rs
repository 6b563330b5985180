//! Ten thousand instances: the first synchronization, silence after it, one change, an outage of
//! many, and the end of a namespace.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::{ConsulApi, ConsulCluster, ConsulOptions, ProgramOptions, eventually};
use serde_json::json;

use super::support::{nodes, operations};
use crate::support::{Addresses, Bridge, Fixture, Objects, for_each, numbered};

/// Of a debug build on two cores that other tests use too: seconds otherwise.
const LONG: Duration = Duration::from_mins(3);
const CLUSTER: &str = "large";
/// Services in the namespace that stays and in the one that is deleted.
const SERVICES: [usize; 2] = [700, 300];
const ENDPOINTS: usize = 10;
/// Services whose endpoints fail all at once.
const FAILING: usize = 200;

fn addresses(name: &str, ready: bool) -> Addresses {
    let number: usize = name.rsplit('-').next().and_then(|it| it.parse().ok()).unwrap_or_default();
    // The two namespaces have different ones.
    let net = 16 + number / 250 + if name.starts_with("gone") { 100 } else { 0 };
    let host = |last| format!("10.{net}.{}.{last}", number % 250);
    ((1..=ENDPOINTS).map(host).collect(), ready)
}

async fn load(objects: &Objects, names: &[String]) -> Result<()> {
    for_each(names, |name| async move {
        let headless = json!({"clusterIP": "None"});
        objects.create(name, &addresses(name, true), headless).await.map(drop)
    })
    .await
}

async fn ready(command: ProgramOptions) -> Result<Bridge> {
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready_within(LONG).await?;
    Ok(bridge)
}

async fn count_on(consul: &ConsulApi, namespace: &str) -> Result<usize> {
    let found = consul.get(&format!("/v1/catalog/node-services/k8s-{CLUSTER}.{namespace}")).await?;
    Ok(found["Services"].as_array().map_or(0, Vec::len))
}

async fn wait_for_critical(consul: &ConsulApi, namespace: &str, wanted: usize) -> Result<()> {
    let path = format!("/v1/health/node/k8s-{CLUSTER}.{namespace}");
    eventually(LONG, || async {
        let found = consul.get(&path).await?.as_array().map_or(0, Vec::len);
        ensure!(found == wanted, "{found} are critical, want {wanted}");
        Ok(())
    })
    .await
}

/// From the first write to the last answer, as the recorder saw them.
fn writing_took(servers: &Fixture<ConsulCluster>) -> Duration {
    let writes = servers.recorder().writes();
    let times = writes.iter().map(|write| write.at);
    times.clone().max().zip(times.min()).map_or(Duration::ZERO, |(last, first)| last - first)
}

#[tokio::test]
async fn ten_thousand_instances() -> Result<()> {
    let servers = Fixture::servers(ConsulOptions::server()).await?;
    let (stays, goes) = tokio::try_join!(servers.objects("stays"), servers.objects("goes"))?;
    let names = numbered("stays", SERVICES[0]);
    let gone = numbered("gone", SERVICES[1]);
    let began = Instant::now();
    tokio::try_join!(load(&stays, &names), load(&goes, &gone))?;
    println!("1,000 Services and slices are made after {:?}", began.elapsed());

    let command = servers.command(CLUSTER, &stays.namespace).await?;
    let command = command.args(["--namespace", &goes.namespace, "--address", "endpoints"]);
    let began = Instant::now();
    let bridge = ready(command.clone()).await?;
    let writes = servers.recorder().writes().len();
    let took = writing_took(&servers);
    println!("10,000 instances in sync after {:?}; {writes} writes in {took:?}", began.elapsed());
    for (objects, services) in [&stays, &goes].into_iter().zip(SERVICES) {
        let found = count_on(servers.api(), &objects.namespace).await?;
        ensure!(found == services * ENDPOINTS, "{found} in {}", objects.namespace);
    }
    bridge.stop().await?;

    // Each reads back all at its start. A running one does so every hundred times as long as a
    // reading takes: too seldom to be waited for here.
    servers.recorder().clear();
    let began = Instant::now();
    ready(command.clone()).await?.stop().await?;
    println!("read back and in sync after {:?}", began.elapsed());
    let bridge = ready(command).await?;
    ensure!(servers.recorder().writes().is_empty(), "{:#?}", servers.recorder().writes());

    one_endpoint_costs_one_record(&servers, &stays, &names[500]).await?;
    all_fail_and_recover(&servers, &stays, &names[..FAILING]).await?;

    let began = Instant::now();
    goes.delete_namespace(&servers.kubernetes.client()?).await?;
    let (base, node) = (format!("k8s-{CLUSTER}"), format!("k8s-{CLUSTER}.{}", stays.namespace));
    eventually(LONG, || async {
        let found = nodes(servers.api(), CLUSTER).await?;
        ensure!(found == [base.clone(), node.clone()], "{found:?}");
        Ok(())
    })
    .await?;
    println!("a namespace of 3,000 instances is gone after {:?}", began.elapsed());
    let left = count_on(servers.api(), &stays.namespace).await?;
    ensure!(left == SERVICES[0] * ENDPOINTS, "{left} instances");
    bridge.stop().await
}

async fn one_endpoint_costs_one_record(
    servers: &Fixture<ConsulCluster>,
    objects: &Objects,
    name: &str,
) -> Result<()> {
    let (all, _) = addresses(name, true);
    let mut endpoints: Vec<_> = all.iter().map(|it| json!({"addresses": [it]})).collect();
    endpoints[3]["conditions"] = json!({"ready": false});
    let began = Instant::now();
    objects.set_endpoints(name, &endpoints).await?;
    wait_for_critical(servers.api(), &objects.namespace, 1).await?;
    println!("one endpoint is critical after {:?}", began.elapsed());
    let writes = servers.recorder().writes();
    ensure!(writes.len() == 1, "{writes:#?}");
    let operations = operations(&writes[0]);
    let id = format!("{CLUSTER}_{}_{name}_http_8080_{}", objects.namespace, all[3]);
    let verbs: Vec<String> = operations
        .iter()
        .flat_map(|it| it.as_object().into_iter().flatten())
        .map(|(kind, it)| format!("{kind} {}", it["Verb"].as_str().unwrap_or_default()))
        .collect();
    ensure!(verbs == ["Node set", "Service set", "Check set"], "{verbs:?}");
    ensure!(operations[1]["Service"]["Service"]["ID"] == *id, "{operations:#?}");
    ensure!(operations[2]["Check"]["Check"]["ServiceID"] == *id, "{operations:#?}");
    objects.set_ready(name, &addresses(name, true)).await?;
    wait_for_critical(servers.api(), &objects.namespace, 0).await
}

async fn all_fail_and_recover(
    servers: &Fixture<ConsulCluster>,
    objects: &Objects,
    names: &[String],
) -> Result<()> {
    for (ready, wanted) in [(false, FAILING * ENDPOINTS), (true, 0)] {
        let began = Instant::now();
        for_each(
            names,
            |name| async move { objects.set_ready(name, &addresses(name, ready)).await },
        )
        .await?;
        let (took, told) = (began.elapsed(), Instant::now());
        wait_for_critical(servers.api(), &objects.namespace, wanted).await?;
        println!("{wanted} critical {:?} after the last was told of ({took:?})", told.elapsed());
    }
    Ok(())
}
