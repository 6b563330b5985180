//! The daemon of a node, and the import.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube_consul_stack::{Consul, ConsulOptions, eventually};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::bridge::Bridge;
use super::figure::{Figure, Goal, quantile};
use super::prober::Prober;
use super::replay::blocking;
use super::{Bench, PROBES, Scenario, consul};

/// Of one change.
const DEADLINE: Duration = Duration::from_mins(1);
/// Changes in a round.
const CHANGES: usize = 20;
/// The import writes what changes all the time once a second: its changes are fewer, with this between
/// them.
const CHANGES_OF_IMPORT: usize = 5;
const BETWEEN: Duration = Duration::from_millis(700);
/// The node, in both.
const NODE: &str = "bench-node";
/// The label of the import's slices.
const OURS: &str = "endpointslice.kubernetes.io/managed-by=import.kube-consul.io";

/// Both.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "node",
            "from the API server's answer to a container's readiness until the catalog shows it; the \
             floor is a bare update of a TTL check, from its request on",
            4,
            |bench, figures| Box::pin(async move { Box::pin(node(bench, figures)).await }),
        ),
        Scenario::new(
            "import",
            "from Consul's answer to a registration until the EndpointSlice has it; the floor is a bare \
             blocking query that answers with a bare patch",
            4,
            |bench, figures| Box::pin(async move { Box::pin(import(bench, figures)).await }),
        ),
    ]
}

/// The rows of both: p50 and p99 of each round.
fn rows(what: &str, ours: &[Vec<f64>], floors: &[Vec<f64>]) -> [Figure; 2] {
    [("p50", 0.5), ("p99", 0.99)].map(|(name, at)| {
        let of = |rounds: &[Vec<f64>]| -> Vec<f64> {
            rounds.iter().map(|round| quantile(round, at)).collect()
        };
        let figure = Figure::new(format!("{what}: {name}"), "ms", of(ours)).floor(of(floors));
        if name == "p99" { figure.goal(Goal::Most(50.0)) } else { figure }
    })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn client() -> Result<reqwest::Client> {
    Ok(reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?)
}

/// Waits until Consul's answer about a service says so.
async fn until(consul: &Consul, service: &str, is_so: impl Fn(&str) -> bool) -> Result<()> {
    let client = client()?;
    let url = format!("{}/v1/health/service/{service}", consul.url());
    let mut index = 1;
    let seen = async {
        loop {
            let (next, text) = blocking(&client, &url, index).await?;
            if is_so(&text) {
                return anyhow::Ok(());
            }
            index = next.max(1);
        }
    };
    timeout(DEADLINE, seen).await.with_context(|| format!("{service} has not changed"))?
}

async fn node(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev().node(NODE)).await?;
    bench.kubernetes.node(NODE).await?;
    let pods = Api::<Pod>::namespaced(bench.kubernetes.client()?, PROBES);
    let pod = json!({
        "metadata": {"name": "web", "annotations": {"kube-consul.io/service-names": "web"}},
        "spec": {
            "nodeName": NODE,
            "containers": [{
                "name": "app", "image": "example.invalid/app", "ports": [{"containerPort": 8080}],
            }],
        },
    });
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    let options = ["--node", NODE];
    let daemon = Bridge::start_command(bench, "node", consul.url(), &options).await?;
    let statuses = eventually(DEADLINE, async || {
        let status = pods.get("web").await?.status.context("no status")?;
        let statuses = status.container_statuses.context("no containers")?;
        ensure!(statuses.iter().all(|it| it.ready), "not ready");
        Ok(serde_json::to_value(statuses)?)
    })
    .await?;
    until(&consul, "web", |text| text.contains("passing")).await?;
    let check = json!({
        "Name": "bare", "ID": "bare", "Port": 8080, "Check": {"CheckID": "bare", "TTL": "10m"},
    });
    consul.api().put("/v1/agent/service/register", &check).await?;
    let ready = async |ready: bool| {
        let mut statuses = statuses.clone();
        for status in statuses.as_array_mut().into_iter().flatten() {
            status["ready"] = ready.into();
        }
        let patch = Patch::Merge(json!({"status": {"containerStatuses": statuses}}));
        pods.patch_status("web", &PatchParams::default(), &patch).await?;
        let acknowledged = Instant::now();
        shows(&consul, "web", ready).await?;
        anyhow::Ok(milliseconds(acknowledged))
    };
    let bare = async |ready: bool| {
        let began = Instant::now();
        let status = json!({"Status": if ready { "passing" } else { "critical" }});
        consul.api().put("/v1/agent/check/update/bare", &status).await?;
        shows(&consul, "bare", ready).await?;
        anyhow::Ok(milliseconds(began))
    };
    bare(true).await?;
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    for _ in 0..bench.scale.rounds {
        let (mut our, mut floor) = (Vec::new(), Vec::new());
        // Each of them turns, so the two are as near to each other as can be.
        for change in 0..bench.scale.or(CHANGES, 2) {
            floor.push(bare(change % 2 == 1).await?);
            our.push(ready(change % 2 == 1).await?);
        }
        ours.push(our);
        floors.push(floor);
    }
    figures.extend(rows("readiness of a pod", &ours, &floors));
    daemon.stop().await?;
    pods.delete("web", &DeleteParams::default().grace_period(0)).await?;
    consul.stop().await
}

/// Waits until a service is passing, or critical.
async fn shows(consul: &Consul, service: &str, passing: bool) -> Result<()> {
    until(consul, service, |text| text.contains("\"critical\"") != passing).await
}

async fn import(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let consul = consul().await?;
    Prober::new(&bench.kubernetes, &consul, PROBES)?.clean().await?;
    let client = bench.kubernetes.client()?;
    let services = Api::<Service>::namespaced(client.clone(), PROBES);
    let slices = Api::<EndpointSlice>::namespaced(client, PROBES);
    let object = json!({
        "metadata": {"name": "imported", "annotations": {"kube-consul.io/import": "imported"}},
        "spec": {"ports": [{"name": "pg", "port": 5432}]},
    });
    services.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    register(&consul, "imported", 0).await?;
    register(&consul, "bare", 0).await?;
    let options = ["--namespace", PROBES];
    let daemon = Bridge::start_command(bench, "import", consul.url(), &options).await?;
    let bare = json!({
        "metadata": {"name": "bare"},
        "addressType": "IPv4",
        "endpoints": [],
        "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}],
    });
    slices.create(&PostParams::default(), &serde_json::from_value(bare)?).await?;
    let floor = follow(&consul, &slices);
    let measured = async {
        let list = ListParams::default().labels(OURS);
        let list_of_bare = ListParams::default().fields("metadata.name=bare");
        let change = async |service: &str, number: usize, list: &ListParams| {
            sleep(bench.scale.or(BETWEEN, Duration::ZERO)).await;
            register(&consul, service, number).await?;
            let began = Instant::now();
            let address = format!("10.40.0.{number}");
            let found = async {
                // A list costs the API server a millisecond: it is not asked more often than it answers.
                while !serde_json::to_string(&slices.list(list).await?.items)?.contains(&address) {}
                anyhow::Ok(())
            };
            timeout(DEADLINE, found).await.with_context(|| format!("{service} {address}"))??;
            anyhow::Ok(milliseconds(began))
        };
        change("imported", 1, &list).await?;
        change("bare", 1, &list_of_bare).await?;
        let (mut ours, mut floors) = (Vec::new(), Vec::new());
        let mut number = 1;
        for _ in 0..bench.scale.rounds {
            let (mut our, mut floor) = (Vec::new(), Vec::new());
            for _ in 0..bench.scale.or(CHANGES_OF_IMPORT, 2) {
                number += 1;
                floor.push(change("bare", number, &list_of_bare).await?);
                our.push(change("imported", number, &list).await?);
            }
            ours.push(our);
            floors.push(floor);
        }
        anyhow::Ok((ours, floors))
    };
    let (ours, floors) = tokio::select! {
        measured = measured => measured?,
        ended = floor => anyhow::bail!("the floor has ended: {ended:?}"),
    };
    figures.extend(rows("an instance has another address", &ours, &floors));
    daemon.stop().await?;
    consul.stop().await
}

/// The instance of a service, whose address says how often it has changed.
async fn register(consul: &Consul, service: &str, number: usize) -> Result<Value> {
    let address = format!("10.40.0.{number}");
    let body = json!({
        "Node": "outside", "Address": "10.200.0.1",
        "Service": {"ID": service, "Service": service, "Address": address, "Port": 5432},
        "Check": {"CheckID": service, "ServiceID": service, "Name": "up", "Status": "passing"},
    });
    consul.api().put("/v1/catalog/register", &body).await
}

/// The floor: a blocking query that answers with a patch.
async fn follow(consul: &Consul, slices: &Api<EndpointSlice>) -> Result<()> {
    let (client, mut index) = (client()?, 1);
    let url = format!("{}/v1/health/service/bare", consul.url());
    loop {
        let (next, text) = blocking(&client, &url, index).await?;
        index = next.max(1);
        let found: Value = serde_json::from_str(&text)?;
        let address = found[0]["Service"]["Address"].as_str().context("no instance")?;
        let endpoints = json!([{"addresses": [address], "conditions": {"ready": true}}]);
        let patch = Patch::Merge(json!({"endpoints": endpoints}));
        slices.patch("bare", &PatchParams::default(), &patch).await?;
    }
}
