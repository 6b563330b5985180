//! What an outage costs: all is listed anew, or a server of Consul is lost; and the memory of clusters
//! of other sizes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube_consul_stack::{Consul, ConsulCluster, Data, eventually};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::bridge::Bridge;
use super::figure::{Figure, Goal};
use super::floor::CLUSTER;
use super::load::WRITTEN;
use super::prober::Prober;
use super::simulated::Simulated;
use super::{Bench, PROBES, Scenario, consul, in_turn, objects};

/// Of a relist, and of an election.
const DEADLINE: Duration = Duration::from_mins(2);
/// Between two looks while a server is lost.
const POLL: Duration = Duration::from_millis(5);
/// Of a request to a server that may have no leader.
const REQUEST: Duration = Duration::from_secs(2);
/// Services of the largest cluster.
const LARGEST: usize = 100_000;

/// Each of them.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "relist",
            "after the watches have expired, on a simulated API server; the floor reads the same pages",
            3,
            |bench, figures| Box::pin(relist(bench, figures)),
        ),
        Scenario::new(
            "loss of Consul's leader",
            "from its end until another server shows a change of Kubernetes; the floor is a write to \
             that server that is tried until it succeeds, in the same outage",
            5,
            |bench, figures| Box::pin(async move { Box::pin(failover(bench, figures)).await }),
        ),
        Scenario::new(
            "memory",
            "of the bridge with --sink catalog --address cluster-ip; the largest cluster is a simulated \
             API server with 1,000,000 endpoints",
            6,
            |bench, figures| Box::pin(memory(bench, figures)),
        ),
    ]
}

async fn relist(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let server = Simulated::start(bench.scale.services).await?;
    let consul = consul().await?;
    let url = format!("--kube-url={}", server.url());
    let bridge = Bridge::start_at(bench, url, consul.url(), &["--sink=catalog"]).await?;
    bridge.wait_in_sync(bench.scale.services).await?;
    let written = bridge.metric(WRITTEN).await?;
    let (mut floors, mut ours, mut cpu) = (Vec::new(), Vec::new(), Vec::new());
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let took = || {
        let reads = server.reads();
        let last = reads.last.zip(reads.first);
        last.map(|(last, first)| (last - first).as_secs_f64()).unwrap_or_default()
    };
    for round in 0..bench.scale.rounds {
        let floor = async {
            server.forget();
            let lists = ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"];
            let [services, slices] = lists.map(|path| read(&client, server.url(), path));
            tokio::try_join!(services, slices)?;
            Ok(took())
        };
        let subject = async {
            let before = bridge.cpu()?;
            server.expire();
            eventually(DEADLINE, async || {
                let complete = server.reads().complete;
                ensure!(complete >= 2, "{complete} of both lists are complete");
                Ok(())
            })
            .await?;
            let took = took();
            sleep(Duration::from_millis(200)).await;
            cpu.push((bridge.cpu()? - before) * 1e3);
            Ok(took)
        };
        let (floor, our) = in_turn(round, floor, subject).await?;
        floors.push(floor);
        ours.push(our);
    }
    bridge.wait_idle().await?;
    ensure!(bridge.metric(WRITTEN).await? <= written, "a relist without changes wrote something");
    let row = format!("{} Services, 0 writes: all pages", bench.scale.services);
    figures.push(Figure::new(row, "s", ours).floor(floors));
    figures.push(Figure::new("CPU of the bridge", "ms", cpu));
    figures.push(Figure::new("resident at the peak", "MiB", [bridge.memory()?.most]));
    bridge.stop().await?;
    consul.stop().await
}

/// Reads all pages of a list.
async fn read(client: &reqwest::Client, url: &str, path: &str) -> Result<()> {
    let mut next = String::new();
    loop {
        let page = client.get(format!("{url}{path}?limit=500&continue={next}")).send().await?;
        let text = page.error_for_status()?.text().await?;
        // It stands in front of the items.
        let more = text.split_once("\"continue\":\"").and_then(|(_, rest)| rest.split_once('"'));
        match more.filter(|(before, _)| before.parse::<usize>().is_ok()) {
            Some((more, _)) => more.clone_into(&mut next),
            None => return Ok(()),
        }
    }
}

async fn failover(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let mut servers = ConsulCluster::start().await?;
    Prober::new(&bench.kubernetes, &servers.servers[0], PROBES)?.clean().await?;
    let client = bench.kubernetes.client()?;
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), PROBES);
    let services = Api::<Service>::namespaced(client, PROBES);
    slices.create(&PostParams::default(), &serde_json::from_value(endpoint(0))?).await?;
    let object = json!({
        "metadata": {"name": "moved"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    services.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    let options =
        ["--sink=catalog", "--address=endpoints", "--cluster", CLUSTER, "--namespace", PROBES];
    let (mut ours, mut floors) = (Vec::new(), Vec::new());
    let rounds = bench.scale.rounds.min(5);
    for round in 1..=rounds {
        servers.wait_until_one_may_fail().await?;
        let leader = servers.wait_for_leader().await?;
        let other = &servers.servers[(leader + 1) % servers.servers.len()];
        let bridge = Bridge::start(bench, other.url(), &options).await?;
        bridge.wait_in_sync(1).await?;
        let began = Instant::now();
        servers.servers[leader].kill().await?;
        let patch = Patch::Merge(json!({"endpoints": endpoint(round)["endpoints"]}));
        slices.patch("moved", &PatchParams::default(), &patch).await?;
        let shown = async {
            let address = format!("\"10.30.0.{}\"", round + 1);
            until(async || shows(other, &address).await).await?;
            anyhow::Ok(began.elapsed().as_secs_f64())
        };
        let written = async {
            let kv = async || Ok(other.api().put_text("/v1/kv/bench", "x").await.is_ok());
            until(kv).await?;
            anyhow::Ok(began.elapsed().as_secs_f64())
        };
        let (shown, written) = tokio::try_join!(shown, written)?;
        ours.push(shown);
        floors.push(written);
        bridge.stop().await?;
        if round < rounds {
            servers.servers[leader].restart(Data::Kept).await?;
            servers.servers[leader].wait_ready().await?;
        }
    }
    figures.push(Figure::new("until the change is there", "s", ours).floor(floors));
    Ok(())
}

fn endpoint(round: usize) -> Value {
    json!({
        "metadata": {"name": "moved", "labels": {"kubernetes.io/service-name": "moved"}},
        "addressType": "IPv4",
        "endpoints": [{
            "addresses": [format!("10.30.0.{}", round + 1)],
            "conditions": {"ready": true},
        }],
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

async fn shows(consul: &Consul, address: &str) -> Result<bool> {
    let found = consul.api().get("/v1/health/service/moved").await;
    Ok(found.is_ok_and(|found| found.to_string().contains(address)))
}

/// Asks again and again, each time for a while only.
async fn until(done: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + DEADLINE;
    while !timeout(REQUEST, done()).await.unwrap_or(Ok(false))? {
        ensure!(Instant::now() < end, "not so within {DEADLINE:?}");
        sleep(POLL).await;
    }
    Ok(())
}

async fn memory(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let seen = (0..bench.scale.namespaces.div_ceil(10)).map(objects::namespace);
    let seen: Vec<String> = seen.map(|name| format!("--namespace={name}")).collect();
    let count = seen.len() * bench.scale.per_namespace();
    let mut options = vec!["--sink=catalog"];
    options.extend(seen.iter().map(String::as_str));
    let (mut peak, mut steady) = (Vec::new(), Vec::new());
    for _ in 0..bench.scale.rounds {
        let consul = consul().await?;
        let bridge = Bridge::start(bench, consul.url(), &options).await?;
        bridge.wait_in_sync(count).await?;
        peak.push(bridge.memory()?.most);
        steady.push(bridge.memory()?.now);
        bridge.stop().await?;
        consul.stop().await?;
    }
    let row = |what: &str, values| Figure::new(format!("{count} Services: {what}"), "MiB", values);
    figures.push(row("resident at the peak", peak).goal(Goal::Most(20.0)));
    figures.push(row("resident after it", steady));

    let count = bench.scale.or(LARGEST, 100);
    let server = Simulated::start(count).await?;
    let consul = consul().await?;
    let url = format!("--kube-url={}", server.url());
    let bridge = Bridge::start_at(bench, url, consul.url(), &["--sink=catalog"]).await?;
    bridge.wait_in_sync(count).await?;
    let memory = bridge.memory()?;
    let row = |what: &str, value| Figure::new(format!("{count} Services: {what}"), "MiB", [value]);
    figures.push(row("resident at the peak", memory.most).goal(Goal::Most(350.0)));
    figures.push(row("resident after it", memory.now));
    let seconds = bridge.age().as_secs_f64();
    let row = format!("{count} Services: from exec until all are there");
    figures.push(Figure::new(row, "s", [seconds]));
    bridge.stop().await?;
    consul.stop().await
}
