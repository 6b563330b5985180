//! What is merely missing from a list is not removed on one list's word.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::{Consul, ConsulOptions, HttpRecorder, ProgramOptions, eventually};
use serde_json::{Value, json};

use super::api_server::{ApiServer, End, Script};
use super::{Shown, look_after, numbered, shown, wait_for_names};
use crate::support::{
    Bridge, DEADLINE, Fixture, InvariantMonitor, ends_with, kube_consul, recorded_command, says,
    service, shipped_kubeconfig, slice,
};

const UID: &str = "2e8c5a1e-0000-4000-8000-000000000001";

/// The confirmation comes no sooner, and so does what it allows.
const CONFIRM_AFTER: Duration = Duration::from_secs(10);

/// A scripted API server with 30 Services, and a Consul.
struct Scripted {
    api: ApiServer,
    consul: Consul,
    recorder: HttpRecorder,
    names: BTreeSet<String>,
}

fn ready_slice(name: &str) -> Value {
    slice(name, &(vec!["10.1.0.1".to_owned()], true))
}

fn placed(mut object: Value, number: usize) -> Value {
    object["metadata"]["namespace"] = json!("shop");
    object["metadata"]["resourceVersion"] = json!("1");
    object["metadata"]["creationTimestamp"] = json!("2026-01-01T00:00:00Z");
    object["metadata"]["uid"] = json!(format!("2e8c5a1e-0000-4000-9000-{number:012}"));
    if object["spec"].is_object() {
        let address = format!("10.96.1.{}", number + 1);
        object["spec"]["type"] = json!("ClusterIP");
        object["spec"]["clusterIP"] = json!(address);
        object["spec"]["clusterIPs"] = json!([address]);
    }
    object
}

fn all_of(make: fn(&str) -> Value, names: &BTreeSet<String>) -> Vec<Value> {
    names.iter().enumerate().map(|(number, name)| placed(make(name), number)).collect()
}

/// What `explain` says of a Service has each of these texts.
async fn explained(bridge: &Bridge, texts: &[&str]) -> Result<()> {
    let command = kube_consul().args(["explain", "shop/svc-007", "--admin-url", &bridge.url("")]);
    let said = says(0, command).await?;
    for text in texts {
        ensure!(said.contains(text), "want '{text}' in: {said}");
    }
    Ok(())
}

// === impl Scripted ===

impl Scripted {
    async fn new() -> Result<Self> {
        let names = numbered("svc", 0..30);
        let script = Script {
            uid: UID.to_owned(),
            services: all_of(service, &names),
            slices: all_of(ready_slice, &names),
        };
        let consul = Consul::start(ConsulOptions::dev()).await?;
        let recorder = HttpRecorder::start(consul.url()).await?;
        Ok(Self { api: ApiServer::start(script).await?, consul, recorder, names })
    }

    fn command(&self) -> ProgramOptions {
        recorded_command("bridge", &self.recorder.url()).args(["--kube-url", self.api.url()])
    }

    /// A bridge that has registered all.
    async fn bridge(&self) -> Result<(Bridge, Shown)> {
        let bridge = Bridge::start(self.command()).await?;
        bridge.wait_ready().await?;
        let shown = wait_for_names(&self.consul, &self.names).await?;
        ensure!(shown.instances.values().all(|it| !it.critical), "{shown:?}");
        self.recorder.clear();
        Ok((bridge, shown))
    }

    fn monitor(&self) -> InvariantMonitor {
        look_after(&self.consul, self.names.clone())
    }

    fn list_all(&self) {
        let mut script = self.api.script();
        script.services = all_of(service, &self.names);
        script.slices = all_of(ready_slice, &self.names);
    }

    /// Waits until it is held, lists all again, and waits until it is released: nothing may have
    /// happened.
    async fn expect_nothing(
        &self,
        bridge: &Bridge,
        before: &Shown,
        monitor: InvariantMonitor,
    ) -> Result<()> {
        bridge.wait_holding(true).await?;
        self.list_all();
        bridge.wait_holding(false).await?;
        bridge.wait_ready().await?;
        monitor.finish("the Services").await?;
        ensure!(shown(&self.consul).await? == *before, "something changed");
        ensure!(self.recorder.writes().is_empty(), "{:#?}", self.recorder.writes());
        Ok(())
    }

    /// Waits until the second lists are asked for, while nothing is removed; they wait for
    /// [`ApiServer::answer_lists`].
    async fn wait_for_the_second_lists(
        &self,
        bridge: &Bridge,
        monitor: InvariantMonitor,
    ) -> Result<()> {
        bridge.wait_holding(true).await?;
        let held = Instant::now();
        self.api.hold_lists();
        let before = self.api.lists_asked();
        eventually(DEADLINE, || async {
            let more = self.api.lists_asked() - before;
            ensure!(more >= 2, "{more} lists were asked for");
            Ok(())
        })
        .await?;
        // The test saw it held a little later than it was.
        let waited = held.elapsed() + Duration::from_secs(1);
        ensure!(waited >= CONFIRM_AFTER, "the second lists came {waited:?} after the first");
        ensure!(self.recorder.writes().is_empty(), "{:#?}", self.recorder.writes());
        monitor.finish("the Services").await
    }
}

/// All Services are missing at the start, beside full EndpointSlices; then they are back.
async fn contradicted_at_the_start() -> Result<()> {
    let scripted = Scripted::new().await?;
    let (bridge, before) = scripted.bridge().await?;
    bridge.stop().await?;
    scripted.api.script().services = Vec::new();
    let monitor = scripted.monitor();
    let bridge = Bridge::start(scripted.command()).await?;
    scripted.expect_nothing(&bridge, &before, monitor).await
}

/// All EndpointSlices are missing from a new list, beside full Services; then they are back.
async fn contradicted_later() -> Result<()> {
    let scripted = Scripted::new().await?;
    let (bridge, before) = scripted.bridge().await?;
    scripted.api.script().slices = Vec::new();
    let monitor = scripted.monitor();
    scripted.api.end_watches(End::Closed);
    scripted.expect_nothing(&bridge, &before, monitor).await
}

#[tokio::test]
async fn what_a_second_list_contradicts_never_happened() -> Result<()> {
    // Each of them waits for most of its time.
    tokio::try_join!(contradicted_at_the_start(), contradicted_later()).map(drop)
}

async fn confirmed_at_the_start() -> Result<()> {
    let scripted = Scripted::new().await?;
    let (bridge, _) = scripted.bridge().await?;
    bridge.stop().await?;
    scripted.api.script().services = Vec::new();
    let monitor = scripted.monitor();
    let bridge = Bridge::start(scripted.command()).await?;
    bridge.wait_holding(true).await?;
    // Whoever asks for one of them is told, though Kubernetes shows none.
    let texts = ["Kubernetes shows no such Service", "held back until a second list agrees"];
    explained(&bridge, &texts).await?;
    scripted.wait_for_the_second_lists(&bridge, monitor).await?;
    scripted.api.answer_lists();
    wait_for_names(&scripted.consul, &BTreeSet::new()).await?;
    bridge.wait_holding(false).await
}

async fn confirmed_later() -> Result<()> {
    let scripted = Scripted::new().await?;
    let (bridge, before) = scripted.bridge().await?;
    scripted.api.script().slices = Vec::new();
    let monitor = scripted.monitor();
    scripted.api.end_watches(End::Expired);
    scripted.wait_for_the_second_lists(&bridge, monitor).await?;
    scripted.api.answer_lists();
    bridge.wait_holding(false).await?;
    eventually(DEADLINE, || async {
        let shown = wait_for_names(&scripted.consul, &scripted.names).await?;
        let passing = shown.instances.iter().find(|(_, instance)| !instance.critical);
        ensure!(passing.is_none(), "not critical: {passing:?}");
        Ok(())
    })
    .await?;
    // And back again.
    scripted.list_all();
    scripted.api.end_watches(End::Expired);
    eventually(DEADLINE, || async {
        ensure!(shown(&scripted.consul).await? == before, "not as before");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn what_a_second_list_confirms_is_done() -> Result<()> {
    tokio::try_join!(confirmed_at_the_start(), confirmed_later()).map(drop)
}

#[tokio::test]
async fn what_another_clusters_list_confirms_ends_the_bridge() -> Result<()> {
    let scripted = Scripted::new().await?;
    let (bridge, before) = scripted.bridge().await?;
    scripted.api.script().services = Vec::new();
    let monitor = scripted.monitor();
    scripted.api.end_watches(End::Expired);
    bridge.wait_holding(true).await?;
    explained(&bridge, &["1 instance", "a list of Kubernetes lacks it"]).await?;
    scripted.api.script().uid = "another".to_owned();
    bridge.program.wait_for_code(3, DEADLINE).await?;
    let told = bridge.program.stderr();
    ensure!(told.contains(&format!("expected the cluster with uid {UID}")), "{told}");
    ensure!(told.contains("found one with uid another"), "{told}");
    ensure!(scripted.recorder.writes().is_empty(), "{:#?}", scripted.recorder.writes());
    monitor.finish("the Services").await?;
    ensure!(shown(&scripted.consul).await? == before, "something changed");
    Ok(())
}

#[tokio::test]
async fn what_options_no_longer_select_is_held_until_it_is_allowed() -> Result<()> {
    let fixture = Fixture::recorded("selected").await?;
    let names = numbered("svc", 0..30);
    fixture.create(names.clone()).await?;
    let bridge = fixture.bridge().await?;
    let before = wait_for_names(&fixture.consul, &names).await?;
    bridge.stop().await?;
    fixture.recorder().clear();

    let unselected = fixture.command().await?.args(["--selector", "app=none"]);
    let elsewhere = recorded_command("bridge", &fixture.recorder().url())
        .args(["--namespace", "elsewhere", "--kubeconfig"])
        .arg(shipped_kubeconfig().await?);
    let monitor = look_after(&fixture.consul, names);
    for command in [&unselected, &elsewhere] {
        let bridge = Bridge::start(command.clone()).await?;
        bridge.wait_holding(true).await?;
        bridge.wait_ready().await?;
        let said = "30 of 30 records would be removed or turn critical: held back";
        ensure!(bridge.program.has_written(said), "it is not in the log");
        ensure!(bridge.program.has_written("--allow-removals"), "what helps is not in the log");
        let holding = bridge.metric("kube_consul_removals_held").await?;
        // Thirty Services; what belongs to none counts as one more.
        let is_held = [Some(30.0), Some(31.0)].contains(&holding);
        ensure!(is_held, "it is not in the metrics: {holding:?}");
        bridge.stop().await?;
    }
    monitor.finish("the Services").await?;
    ensure!(shown(&fixture.consul).await? == before, "something changed");
    ensure!(fixture.recorder().writes().is_empty(), "{:#?}", fixture.recorder().writes());

    let bridge = Bridge::start(elsewhere.arg("--allow-removals")).await?;
    bridge.wait_ready().await?;
    wait_for_names(&fixture.consul, &BTreeSet::new()).await?;
    bridge.wait_holding(false).await
}

#[tokio::test]
async fn l10_a_mistyped_namespace_removes_nothing_of_a_few_records() -> Result<()> {
    let fixture = Fixture::new("few").await?;
    fixture.create(numbered("svc", 0..7)).await?;
    ends_with(0, fixture.command().await?.arg("--once")).await?;
    let before = shown(&fixture.consul).await?;
    ensure!(before.instances.len() == 7, "{before:?}");
    let mistyped = || async {
        let command = kube_consul().args(["bridge", "--once", "--namespace", "typo"]);
        let command = command.env("CONSUL_HTTP_ADDR", fixture.consul.url());
        anyhow::Ok(command.arg("--kubeconfig").arg(shipped_kubeconfig().await?))
    };
    let said = ends_with(1, mistyped().await?).await?;
    ensure!(said.contains("removals that are held back"), "{said}");
    ensure!(said.contains("no Service is selected"), "{said}");
    ensure!(shown(&fixture.consul).await? == before, "something was removed:\n{said}");
    ends_with(0, mistyped().await?.arg("--allow-removals")).await?;
    let left = shown(&fixture.consul).await?;
    ensure!(left.instances.is_empty(), "{left:?}");
    Ok(())
}

/// A Service that is there and cannot be read: what is registered of it stays, and explain says why.
#[tokio::test]
async fn what_cannot_be_read_any_more_stays_and_is_explained() -> Result<()> {
    let scripted = Scripted::new().await?;
    let (bridge, before) = scripted.bridge().await?;
    bridge.stop().await?;
    scripted.api.script().services[7]["spec"]["ports"] = json!("none");
    let bridge = Bridge::start(scripted.command()).await?;
    let texts = ["1 instance", "it could not be read", "an object that it follows from"];
    eventually(DEADLINE, || explained(&bridge, &texts)).await?;
    ensure!(shown(&scripted.consul).await? == before, "something changed");
    bridge.stop().await
}
