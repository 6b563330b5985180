//! What a bridge takes of the processor: at rest, under changes, by what is resident, and in
//! instructions, which are the same on any machine and however busy it is.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube_consul_stack::{ProgramOptions, eventually};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use super::bridge::Bridge;
use super::figure::{Figure, Goal};
use super::objects::{self, ENDPOINTS};
use super::{Bench, SCOPE, Scenario, consul};

/// Changes a second of which the share of a core is asked.
const RATE: u32 = 100;
/// How long a bridge at rest is looked at in a round, and one under changes.
const WATCHED: Duration = Duration::from_secs(5);
/// Until Consul shows a change to a bridge under valgrind, fifty times as slow.
const DEADLINE: Duration = Duration::from_mins(2);
/// Counts instructions; packages of every distribution put it there.
const VALGRIND: &str = "/usr/bin/valgrind";
/// Changes under valgrind.
const COUNTED: u32 = 200;

/// All of them.
pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "CPU of the bridge",
            "of one core, by its threads' time, with --sink catalog",
            5,
            |bench, figures| Box::pin(processor(bench, figures)),
        ),
        Scenario::new(
            "CPU by what is resident",
            "of an event that changes one endpoint, with --address endpoints: it does not depend on the \
             cluster",
            6,
            |bench, figures| Box::pin(by_resident(bench, figures)),
        ),
        Scenario::new(
            "instructions of the bridge",
            "counted by valgrind, as the difference of two runs: the same on any machine",
            8,
            |bench, figures| Box::pin(instructions(bench, figures)),
        ),
    ]
}

/// In shares of a core, with all Services resident.
async fn processor(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    let options = [&SCOPE[..], &["--sink", "catalog"]].concat();
    let consul = consul().await?;
    let bridge = Bridge::start(bench, consul.url(), &options).await?;
    bridge.wait_in_sync(bench.scale.services).await?;
    let watched = bench.scale.or(WATCHED, Duration::from_millis(200));
    let changes = bench.scale.or(400, 10);
    let (mut rest, mut busy) = (Vec::new(), Vec::new());
    for _ in 0..bench.scale.rounds {
        let before = bridge.cpu()?;
        sleep(watched).await;
        rest.push((bridge.cpu()? - before) / watched.as_secs_f64() * 1e2);
        // One event at the given rate, were each to take as long as on average.
        busy.push(flips(bench, &bridge, changes, ENDPOINTS).await? * f64::from(RATE) * 1e2);
    }
    ensure!(bridge.program.exit_status().is_none(), bridge.program.failure("has ended"));
    let row = "at rest (a resync falls into some rounds)";
    figures.push(Figure::new(row, "% of a core", rest).goal(Goal::Most(0.1)));
    let row = format!("at {RATE} changes a second");
    figures.push(Figure::new(row, "% of a core", busy).goal(Goal::Most(4.0)));
    bridge.stop().await?;
    consul.stop().await
}

/// Makes so many changes, an even number, at [`RATE`]: what one takes of the bridge, in seconds of
/// CPU. At the end all is as it was.
async fn flips(bench: &Bench, bridge: &Bridge, changes: u32, endpoints: usize) -> Result<f64> {
    bridge.wait_idle().await?;
    // All in one namespace, that each bridge sees.
    let each = u32::try_from(bench.scale.per_namespace())?.min(changes / 2);
    ensure!(changes.is_multiple_of(2 * each), "{changes} changes would leave something unready");
    let (before, began) = (bridge.cpu()?, Instant::now());
    for change in 0..changes {
        sleep_until(began + Duration::from_secs(1) * change / RATE).await;
        let number = usize::try_from(change % each)? * bench.scale.namespaces;
        flip(bench, number, endpoints, (change / each) % 2 == 1).await?;
    }
    // What is under way is less than a hundredth of it.
    sleep(Duration::from_millis(50)).await;
    Ok((bridge.cpu()? - before) / f64::from(changes))
}

/// With a hundred and a thousand Services, and with all of them.
async fn by_resident(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    for namespaces in bench.scale.or(vec![1, 10, objects::NAMESPACES], vec![1]) {
        let services = namespaces * bench.scale.per_namespace();
        let mut options = vec!["--sink=catalog".to_owned(), "--address=endpoints".to_owned()];
        if namespaces == bench.scale.namespaces {
            options.extend(SCOPE.map(str::to_owned));
        } else {
            let seen = (0..namespaces).map(objects::namespace);
            options.extend(seen.map(|name| format!("--namespace={name}")));
        }
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let consul = consul().await?;
        let bridge = Bridge::start(bench, consul.url(), &options).await?;
        bridge.wait_in_sync(services * ENDPOINTS).await?;
        let mut each = Vec::new();
        for _ in 0..bench.scale.rounds {
            each.push(flips(bench, &bridge, bench.scale.or(200, 4), 1).await? * 1e3);
        }
        let row = format!("{services} Services, {} registrations", services * ENDPOINTS);
        #[expect(clippy::cast_precision_loss, reason = "10,000 at most")]
        figures.push(Figure::new(row, "ms", each).at(services as f64));
        bridge.stop().await?;
        consul.stop().await?;
    }
    Ok(())
}

/// So many endpoints of a Service turn ready or not.
pub async fn flip(bench: &Bench, number: usize, endpoints: usize, ready: bool) -> Result<()> {
    let mut slice = objects::slice(number);
    for endpoint in slice["endpoints"].as_array_mut().into_iter().flatten().take(endpoints) {
        endpoint["conditions"]["ready"] = ready.into();
    }
    let name = slice["metadata"]["name"].as_str().context("a slice without a name")?.to_owned();
    let client = bench.kubernetes.client()?;
    let slices = Api::<EndpointSlice>::namespaced(client, &objects::namespace(number));
    let patch = Patch::Merge(json!({ "endpoints": slice["endpoints"] }));
    slices.patch(&name, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Of one registration and of one event.
async fn instructions(bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
    if bench.scale.smallest && !Path::new(VALGRIND).exists() {
        // Tests run without it, too.
        figures.push(Figure::new("valgrind is not installed", "", [0.0]));
        return Ok(());
    }
    let each = bench.scale.per_namespace() * ENDPOINTS;
    let changes = bench.scale.or(COUNTED, 2);
    let few = under_callgrind(bench, 1, 0).await?;
    if !bench.scale.smallest {
        let more = under_callgrind(bench, 4, 0).await?;
        #[expect(clippy::cast_precision_loss, reason = "thousands")]
        let of_registration = (more - few) / (3 * each) as f64 / 1e3;
        figures.push(Figure::new(
            "a registration of the first sync",
            "thousand",
            [of_registration],
        ));
    }
    let with_changes = under_callgrind(bench, 1, changes).await?;
    let of_event = (with_changes - few) / f64::from(changes) / 1e3;
    let row = "an event that changes one endpoint of ten";
    figures.push(Figure::new(row, "thousand", [of_event]));
    Ok(())
}

/// How many instructions a bridge takes that registers what is in so many namespaces, each endpoint
/// for itself, and then sees so many changes. Only Consul is asked how far it is: to ask the bridge
/// would cost it instructions.
async fn under_callgrind(bench: &Bench, namespaces: usize, changes: u32) -> Result<f64> {
    let consul = consul().await?;
    let command =
        ProgramOptions::new(VALGRIND).args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    let seen = (0..namespaces).map(|it| format!("--namespace={}", objects::namespace(it)));
    let seen: Vec<String> = seen.collect();
    let mut options = vec!["--sink=catalog", "--address=endpoints"];
    options.extend(seen.iter().map(String::as_str));
    let bridge = Bridge::start_under(bench, command, consul.url(), &options).await?;
    let each = bench.scale.per_namespace() * ENDPOINTS;
    for namespace in (0..namespaces).map(objects::namespace) {
        let path = format!("/v1/catalog/node-services/k8s-kubernetes.{namespace}");
        eventually(DEADLINE, async || {
            let found = consul.api().get(&path).await?;
            let found = found["Services"].as_array().map_or(0, Vec::len);
            ensure!(found == each, "{path} has {found} of {each}");
            Ok(())
        })
        .await?;
    }
    for change in 0..changes {
        let ready = change % 2 == 1;
        let number = usize::try_from(change / 2)? % bench.scale.per_namespace();
        let number = number * bench.scale.namespaces;
        flip(bench, number, 1, ready).await?;
        let path = format!("/v1/health/service/{}", objects::name(number));
        eventually(DEADLINE, async || {
            let critical = consul.api().get(&path).await?.to_string().contains("\"critical\"");
            ensure!(critical != ready, "{path} does not show the change");
            Ok(())
        })
        .await?;
    }
    bridge.stop().await?;
    let said = bridge.program.stderr();
    let line = said.lines().rev().find_map(|line| line.split_once("Collected :"));
    let (_, count) = line.context("callgrind did not say what it has counted")?;
    consul.stop().await?;
    Ok(count.trim().parse()?)
}
