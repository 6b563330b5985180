//! Where it hurts: much at once, or a Service with very many endpoints.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube_consul_stack::{Consul, eventually};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use super::bridge::Bridge;
use super::cost::flip;
use super::figure::{Figure, Goal};
use super::floor::CLUSTER;
use super::prober::Prober;
use super::{AT_ONCE, Bench, PROBES, Scenario, consul, objects};

/// Of an EndpointSlice, as the controller makes them.
const PER_SLICE: usize = 100;
/// Slices of the large Service, and how many of them are switched.
const SLICES: usize = 50;
const SWITCHED: usize = 9;
/// Of its endpoints, a second.
const FLIPS: u32 = 10;
/// Of one of these until Consul shows it.
const DEADLINE: Duration = Duration::from_mins(2);
/// The node on which a namespace's instances are.
const NODE: &str = "k8s-bench-ours.probe-ours";

/// Each of them.
pub fn scenarios() -> Vec<Scenario> {
    let large = "5,000 endpoints, with --sink catalog --address endpoints: CPU of the bridge for one \
                 that flips; and 900 of them that are replaced at once";
    let many = "with --sink catalog, from the first request until Consul shows all; the floor is the \
                last answer of the API server";
    vec![
        Scenario::new("large Service", large, 5, |bench, figures| {
            Box::pin(large_service(bench, figures))
        }),
        Scenario::new("1,000 Services deleted", many, 6, |bench, figures| {
            Box::pin(deleted(bench, figures))
        }),
        Scenario::new("node with 250 pods lost", many, 5, |bench, figures| {
            Box::pin(lost_node(bench, figures))
        }),
    ]
}

/// A slice of the large Service.
fn slice(place: usize, network: usize, unready: bool) -> Value {
    let endpoint = |number: usize| {
        let ready = !(unready && number == 0);
        json!({
            "addresses": [format!("10.{network}.{place}.{}", number + 1)],
            "conditions": {"ready": ready},
        })
    };
    json!({
        "metadata": {
            "name": format!("large-{place}"),
            "labels": {"kubernetes.io/service-name": "large"},
        },
        "addressType": "IPv4",
        "endpoints": (0..PER_SLICE).map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

async fn large_service(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let client = bench.kubernetes.client()?;
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), PROBES);
    let services = Api::<Service>::namespaced(client, PROBES);
    let consul = consul().await?;
    Prober::new(&bench.kubernetes, &consul, PROBES)?.clean().await?;
    let count = bench.scale.or(SLICES, 2);
    for place in 0..count {
        let object = serde_json::from_value(slice(place, 20, false))?;
        slices.create(&PostParams::default(), &object).await?;
    }
    let object = json!({
        "metadata": {"name": "large"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    services.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    let options =
        ["--sink=catalog", "--address=endpoints", "--cluster", CLUSTER, "--namespace", PROBES];
    let bridge = Bridge::start(bench, consul.url(), &options).await?;
    bridge.wait_in_sync(count * PER_SLICE).await?;
    let patch = async |place: usize, network: usize, unready: bool| {
        let patch = Patch::Merge(json!({"endpoints": slice(place, network, unready)["endpoints"]}));
        slices.patch(&format!("large-{place}"), &PatchParams::default(), &patch).await
    };
    let (mut cpu, mut switched, mut answered) = (Vec::new(), Vec::new(), Vec::new());
    let flips = bench.scale.or(30, 2);
    for round in 0..bench.scale.rounds {
        bridge.wait_idle().await?;
        let (before, began) = (bridge.cpu()?, Instant::now());
        for flip in 0..flips {
            sleep_until(began + Duration::from_secs(1) * flip / FLIPS).await;
            let place = usize::try_from(flip / 2)? % count;
            patch(place, 20 + round, flip % 2 == 0).await?;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        cpu.push((bridge.cpu()? - before) * 1e3 / f64::from(flips));

        let began = Instant::now();
        let some = bench.scale.or(SWITCHED, 1);
        for place in 0..some {
            patch(place, 21 + round, false).await?;
        }
        answered.push(began.elapsed().as_secs_f64());
        let shown = async |slices: usize| {
            let new = format!("10.{}.", 21 + round);
            eventually(DEADLINE, async || {
                let found = on_node(&consul).await?;
                let addresses = found.iter().filter_map(|it| it["Address"].as_str());
                let switched = addresses.filter(|it| it.starts_with(&new)).count();
                let (wanted, all) = (slices * PER_SLICE, count * PER_SLICE);
                ensure!(switched == wanted && found.len() == all, "{switched} of {wanted} are new");
                Ok(())
            })
            .await
        };
        shown(some).await?;
        switched.push(began.elapsed().as_secs_f64());
        for place in some..count {
            patch(place, 21 + round, false).await?;
        }
        // Else the next round would begin with it.
        shown(count).await?;
    }
    let row = format!("one of {} endpoints: CPU of the bridge", count * PER_SLICE);
    figures.push(Figure::new(row, "ms", cpu).goal(Goal::Most(0.5)));
    let row = format!("{} endpoints replaced at once: until all are there", 9 * PER_SLICE);
    figures.push(Figure::new(row, "s", switched).floor(answered));
    bridge.stop().await?;
    consul.stop().await
}

/// The services of the node in the catalog.
async fn on_node(consul: &Consul) -> Result<Vec<Value>> {
    let mut found = consul.api().get(&format!("/v1/catalog/node-services/{NODE}")).await?;
    Ok(found["Services"].as_array_mut().map(std::mem::take).unwrap_or_default())
}

async fn deleted(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let services = Api::<Service>::namespaced(bench.kubernetes.client()?, PROBES);
    let consul = consul().await?;
    Prober::new(&bench.kubernetes, &consul, PROBES)?.clean().await?;
    let options = ["--sink=catalog", "--cluster", CLUSTER, "--namespace", PROBES];
    let bridge = Bridge::start(bench, consul.url(), &options).await?;
    let count = bench.scale.or(1_000, 10);
    let (mut ours, mut answered) = (Vec::new(), Vec::new());
    for round in 0..bench.scale.rounds {
        let name = |number: usize| format!("gone-{round}-{number}");
        let create = async |number: usize| {
            let object = json!({
                "metadata": {"name": name(number)},
                "spec": {"ports": [{"name": "http", "port": 80}]},
            });
            let object = serde_json::from_value(object)?;
            services.create(&PostParams::default(), &object).await?;
            anyhow::Ok(())
        };
        stream::iter((0..count).map(create)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        bridge.wait_in_sync(count).await?;
        let began = Instant::now();
        let delete = async |number: usize| {
            services.delete(&name(number), &DeleteParams::default()).await?;
            anyhow::Ok(())
        };
        stream::iter((0..count).map(delete)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
        answered.push(began.elapsed().as_secs_f64());
        eventually(DEADLINE, async || {
            let left = on_node(&consul).await?.len();
            ensure!(left == 0, "{left} Services are left");
            Ok(())
        })
        .await?;
        ours.push(began.elapsed().as_secs_f64());
    }
    figures.push(Figure::new("until Consul has none", "s", ours).floor(answered));
    bridge.stop().await?;
    consul.stop().await
}

/// An endpoint of each of 250 Services turns unready, as the node controller makes it.
async fn lost_node(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let pods: usize = bench.scale.or(250, 2);
    let namespaces = pods.div_ceil(bench.scale.per_namespace());
    let seen = (0..namespaces).map(|it| format!("--namespace={}", objects::namespace(it)));
    let seen: Vec<String> = seen.collect();
    let mut options = vec!["--sink=catalog", "--address=endpoints"];
    options.extend(seen.iter().map(String::as_str));
    let consul = consul().await?;
    let bridge = Bridge::start(bench, consul.url(), &options).await?;
    let services = namespaces * bench.scale.per_namespace();
    bridge.wait_in_sync(services * objects::ENDPOINTS).await?;
    let (mut ours, mut answered) = (Vec::new(), Vec::new());
    for _ in 0..bench.scale.rounds {
        for (ready, critical) in [(false, pods), (true, 0)] {
            let began = Instant::now();
            let turn = async |pod: usize| {
                let number = pod / namespaces * bench.scale.namespaces + pod % namespaces;
                flip(bench, number, 1, ready).await
            };
            stream::iter((0..pods).map(turn)).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
            let last = began.elapsed().as_secs_f64();
            eventually(DEADLINE, async || {
                let found = consul.api().get("/v1/health/state/critical").await?;
                let found = found.as_array().context("a list")?.len();
                ensure!(found == critical, "{found} are critical, not {critical}");
                Ok(())
            })
            .await?;
            if !ready {
                answered.push(last);
                ours.push(began.elapsed().as_secs_f64());
            }
        }
    }
    figures.push(Figure::new("until all are critical", "s", ours).floor(answered));
    bridge.stop().await?;
    consul.stop().await
}
