//! `purge`: what it shows, what it removes, and what it leaves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{
    ConsulApi, ConsulOptions, Endpoint, Fault, HttpRecorder, Program, ProgramOptions, ServiceKind,
    eventually,
};
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Fixture, ends_with, kube_consul, says};

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";

/// `purge` of this cluster.
fn purge(fixture: &Fixture, cluster: &str) -> ProgramOptions {
    let command = kube_consul().args(["purge", "--cluster", cluster]);
    command.env("CONSUL_HTTP_ADDR", fixture.consul.url())
}

async fn sync(fixture: &Fixture, flags: &[&str]) -> Result<()> {
    ends_with(0, fixture.command().await?.arg("--once").args(flags)).await.map(drop)
}

/// The IDs of all services in the agent.
async fn in_agent(consul: &ConsulApi) -> Result<Vec<String>> {
    let services = consul.get("/v1/agent/services").await?;
    Ok(services.as_object().context("no services")?.keys().cloned().collect())
}

/// All keys.
async fn keys(consul: &ConsulApi) -> Result<Vec<String>> {
    let keys = consul.get("/v1/kv/?keys").await?;
    let keys = keys.as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok(keys.map(ToOwned::to_owned).collect())
}

/// The names of the catalog's nodes but for the agent's own.
async fn nodes(fixture: &Fixture) -> Result<Vec<String>> {
    let nodes = fixture.consul.api().get("/v1/catalog/nodes").await?;
    let names = nodes.as_array().into_iter().flatten().filter_map(|node| node["Node"].as_str());
    Ok(names.filter(|name| *name != fixture.consul.node()).map(ToOwned::to_owned).collect())
}

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "expected {part:?} in: {text}");
    }
    Ok(())
}

#[tokio::test]
async fn everything_goes_once_it_is_confirmed() -> Result<()> {
    let fixture = Fixture::new("purge").await?;
    fixture.web("web", &[("http", 80), ("metrics", 9090)]).await?;
    let consul = fixture.consul.api();
    let foreign = json!({"ID": "theirs", "Name": "theirs"});
    consul.put("/v1/agent/service/register", &foreign).await?;
    consul.put_text("/v1/kv/theirs", "x").await?;
    let bridge = fixture.bridge().await?;
    let before = in_agent(consul).await?;
    ensure!(before.len() == 4, "{before:?}");

    // Without a terminal and without --yes it only shows.
    let program = Program::start("kube-consul", purge(&fixture, "kubernetes")).await?;
    program.wait_for_code(2, DEADLINE).await?;
    contains(&program.stderr(), &["--yes", "terminal"])?;
    let shown = program.stdout();
    let namespace = format!("namespace {}: 2", fixture.namespace);
    contains(&shown, &["2 registrations and the sentinel", &namespace, "uid "])?;
    contains(&shown, &["1 PTR record and the owner key", "A BRIDGE MAY BE RUNNING"])?;
    ensure!(in_agent(consul).await? == before, "it removed something");

    bridge.stop().await?;
    let said = says(0, purge(&fixture, "kubernetes").arg("--yes")).await?;
    contains(&said, &["Removed: 5."])?;
    ensure!(in_agent(consul).await? == ["theirs"]);
    ensure!(keys(consul).await? == ["theirs"], "{:?}", keys(consul).await?);
    let said = says(0, purge(&fixture, "kubernetes")).await?;
    contains(&said, &["Nothing of it"])
}

#[tokio::test]
async fn a_bridge_that_runs_writes_again_what_it_owns() -> Result<()> {
    let fixture = Fixture::new("purge").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let bridge = Bridge::start(fixture.command().await?.arg("--resync=1s")).await?;
    bridge.wait_ready().await?;
    let consul = fixture.consul.api();
    let (services, all) = (in_agent(consul).await?, keys(consul).await?);
    let program = Program::start("kube-consul", purge(&fixture, "kubernetes").arg("--yes")).await?;
    // Whether it sees what the bridge has written by then is a matter of milliseconds.
    let status = program.wait(DEADLINE).await?;
    ensure!([Some(0), Some(1)].contains(&status.code()), "{status}");
    contains(&program.stdout(), &["A BRIDGE MAY BE RUNNING", "Removed: "])?;
    eventually(DEADLINE, || async {
        let found = (in_agent(consul).await?, keys(consul).await?);
        ensure!(found == (services.clone(), all.clone()), "{found:?}");
        Ok(())
    })
    .await?;
    fixture.wait_for_instances("web", 1).await
}

#[tokio::test]
async fn an_interrupted_purge_is_completed_by_the_next() -> Result<()> {
    let fixture = Fixture::new("purge").await?;
    let endpoints: Vec<String> = (1..=150).map(|number| format!("10.1.0.{number}")).collect();
    let endpoints: Vec<Endpoint> =
        endpoints.iter().map(|address| Endpoint::ready(address)).collect();
    fixture.endpoints("many", &endpoints, &[("http", 80)]).await?;
    let kind = ServiceKind::HeadlessSelectorless;
    fixture.kubernetes.service(&fixture.namespace, "many", kind, &[("http", 80)]).await?;
    sync(&fixture, &[]).await?;
    let consul = fixture.consul.api();
    let before = in_agent(consul).await?.len();
    ensure!(before == 151, "{before} services");

    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    recorder.fault(Fault::Delay(Duration::from_millis(250)), |it| it.path.contains("deregister"));
    let command = purge(&fixture, "kubernetes").arg("--yes");
    let program =
        Program::start("kube-consul", command.env("CONSUL_HTTP_ADDR", recorder.url())).await?;
    eventually(DEADLINE, || async {
        ensure!(recorder.writes().len() > 64, "only {} writes", recorder.writes().len());
        Ok(())
    })
    .await?;
    program.interrupt().await;
    program.wait_for_code(130, DEADLINE).await?;
    contains(&program.stdout(), &["Interrupted", "the same command"])?;
    let between = in_agent(consul).await?;
    ensure!(between.len() < before && between.len() > 1, "{} are left", between.len());
    // The marker and the owner are the last to go.
    ensure!(between.contains(&"_kube-consul_kubernetes".to_owned()), "{between:?}");
    ensure!(consul.key("kube-consul/kubernetes/owner").await?.is_some());

    says(0, purge(&fixture, "kubernetes").arg("--yes")).await?;
    ensure!(in_agent(consul).await?.is_empty());
    ensure!(keys(consul).await?.is_empty(), "{:?}", keys(consul).await?);
    Ok(())
}

#[tokio::test]
async fn one_of_two_clusters_goes_from_the_catalog() -> Result<()> {
    let fixture = Fixture::new("purge").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let of = |cluster| ["--sink", "catalog", "--join-existing", "kubernetes", "--cluster", cluster];
    // The other first, so that the PTR record is its.
    sync(&fixture, &of("stays")).await?;
    sync(&fixture, &of("goes")).await?;
    let (consul, namespace) = (fixture.consul.api(), &fixture.namespace);
    let (stays, goes) = (format!("k8s-stays.{namespace}"), format!("k8s-goes.{namespace}"));
    ensure!(nodes(&fixture).await? == ["k8s-goes", &goes, "k8s-stays", &stays]);
    let on_stays = format!("/v1/catalog/node-services/{stays}");
    let (before, keys_before) = (consul.get(&on_stays).await?, keys(consul).await?);
    ensure!(keys_before.len() == 3, "{keys_before:?}");

    let said = says(0, purge(&fixture, "goes").arg("--yes")).await?;
    contains(&said, &[&format!("node {goes}: 1 registration"), "Nothing tells whether"])?;
    ensure!(nodes(&fixture).await? == ["k8s-stays", &stays], "{:?}", nodes(&fixture).await?);
    ensure!(consul.get(&on_stays).await? == before, "the other cluster's records changed");
    let mut wanted = keys_before;
    wanted.retain(|key| key != "kube-consul/goes/owner");
    ensure!(keys(consul).await? == wanted, "{:?}", keys(consul).await?);

    // What no bridge made keeps its node.
    let theirs = json!({"Node": stays, "SkipNodeUpdate": true, "Service": {"Service": "theirs"}});
    consul.put("/v1/catalog/register", &theirs).await?;
    let said = says(1, purge(&fixture, "stays").arg("--yes")).await?;
    contains(&said, &[&format!("Left: node {stays}"), "theirs"])?;
    ensure!(nodes(&fixture).await? == [stays], "{:?}", nodes(&fixture).await?);
    ensure!(fixture.instances("web").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_leader_is_told_and_the_other_sink_is_left() -> Result<()> {
    let fixture = Fixture::new("purge").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let command = fixture.command().await?.args(["--sink", "catalog", "--leader-elect"]);
    let bridge = Bridge::start(command.env("POD_NAME", "the-leader")).await?;
    bridge.wait_ready().await?;
    sync(&fixture, &[]).await?;
    let said = says(2, purge(&fixture, "kubernetes")).await?;
    contains(&said, &["A BRIDGE IS RUNNING: the-leader", "A BRIDGE MAY BE RUNNING"])?;

    let said = says(0, purge(&fixture, "kubernetes").args(["--sink=agent", "--yes"])).await?;
    let node = format!("k8s-kubernetes.{}", fixture.namespace);
    contains(&said, &["Other nodes", &node, "PTR records and the owner key stay"])?;
    fixture.wait_for_instances("web", 1).await?;
    ensure!(in_agent(fixture.consul.api()).await?.is_empty());

    bridge.stop().await?;
    says(0, purge(&fixture, "kubernetes").args(["--sink=catalog", "--yes"])).await?;
    ensure!(nodes(&fixture).await?.is_empty(), "{:?}", nodes(&fixture).await?);
    let left = keys(fixture.consul.api()).await?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn what_consul_k8s_left_goes_from_one_node() -> Result<()> {
    let fixture = Fixture::new("purge").await?;
    let consul = fixture.consul.api();
    let register = async |id: &str, meta: Value| {
        let body = json!({"Node": "k8s-sync", "Address": "127.0.0.1",
            "Service": {"ID": id, "Service": "web", "Meta": meta}});
        consul.put("/v1/catalog/register", &body).await
    };
    register("sync", json!({"external-source": "kubernetes", "external-k8s-ns": "shop"})).await?;
    let ours = json!({"external-source": "kubernetes", "kube-consul-cluster": "eu"});
    register("ours", ours).await?;
    register("theirs", json!({"external-source": "nomad"})).await?;
    let command = |flags: &[&str]| {
        let command = kube_consul().args(["purge", "--owner", "consul-k8s"]).args(flags);
        command.env("CONSUL_HTTP_ADDR", fixture.consul.url())
    };
    contains(&ends_with(2, command(&["--yes"])).await?, &["--node"])?;
    let said = says(0, command(&["--node", "k8s-sync", "--yes"])).await?;
    contains(&said, &["1 registration", "namespace shop: 1", "2 other services", "Removed: 1."])?;
    let instances = fixture.instances("web").await?;
    let ids: Vec<_> = instances.iter().map(|it| it["Service"]["ID"].as_str()).collect();
    ensure!(ids == [Some("ours"), Some("theirs")], "{ids:?}");

    // N14: a node on which nothing is left goes, and one that has a check of its own stays.
    for (node, stays) in [("k8s-empty", false), ("k8s-checked", true)] {
        let meta = json!({"external-source": "kubernetes"});
        let mut body = json!({"Node": node, "Address": "127.0.0.1",
            "Service": {"ID": node, "Service": "old", "Meta": meta}});
        if stays {
            body["Check"] = json!({"CheckID": "alive", "Name": "alive", "Status": "passing"});
        }
        consul.put("/v1/catalog/register", &body).await?;
        let said = says(0, command(&["--node", node, "--yes"])).await?;
        if stays {
            contains(&said, &["k8s-checked stays, with check alive", "Removed: 1."])?;
        } else {
            contains(&said, &["Removed: 2."])?;
        }
        let nodes = consul.get("/v1/catalog/nodes").await?;
        let mut nodes = nodes.as_array().into_iter().flatten();
        ensure!(nodes.any(|it| it["Node"] == node) == stays, "{node}");
    }
    Ok(())
}

#[tokio::test]
async fn who_may_not_read_removes_nothing() -> Result<()> {
    let fixture = Fixture::with_consul("purge", ConsulOptions::dev().acl(MANAGEMENT)).await?;
    fixture.web("web", &[("http", 80)]).await?;
    let bridge = fixture.command().await?.args(["--once", "--sink", "catalog"]);
    ends_with(0, bridge.env("CONSUL_HTTP_TOKEN", MANAGEMENT)).await?;
    let before = (nodes(&fixture).await?, keys(fixture.consul.api()).await?);
    let powerless = json!({"SecretID": "22222222-2222-2222-2222-222222222222"});
    fixture.consul.api().put("/v1/acl/token", &powerless).await?;
    for token in [None, powerless["SecretID"].as_str()] {
        for flags in [&["--yes"][..], &["--yes", "--sink=catalog"]] {
            let mut command = purge(&fixture, "kubernetes").args(flags);
            if let Some(token) = token {
                command = command.env("CONSUL_HTTP_TOKEN", token);
            }
            contains(&ends_with(1, command).await?, &["cannot be read"])?;
        }
    }
    ensure!((nodes(&fixture).await?, keys(fixture.consul.api()).await?) == before);
    Ok(())
}

/// A terminal, with an answer typed on it.
fn on_a_terminal(fixture: &Fixture, answer: &str) -> ProgramOptions {
    let line = format!("{} purge --cluster kubernetes", env!("CARGO_BIN_EXE_kube-consul"));
    let typed = format!("(sleep 2; echo {answer}) | script -qec '{line}' /dev/null");
    let command = ProgramOptions::new("/bin/sh").args(["-c", &typed]);
    command.env("CONSUL_HTTP_ADDR", fixture.consul.url())
}

#[tokio::test]
async fn the_question_is_answered_on_a_terminal() -> Result<()> {
    let fixture = Fixture::new("purge").await?;
    fixture.web("web", &[("http", 80)]).await?;
    sync(&fixture, &[]).await?;
    let said = says(1, on_a_terminal(&fixture, "n")).await?;
    contains(&said, &["Remove all of this?", "not confirmed"])?;
    ensure!(fixture.instances("web").await?.len() == 1, "it was removed");
    contains(&says(0, on_a_terminal(&fixture, "y")).await?, &["Removed: 4."])?;
    ensure!(in_agent(fixture.consul.api()).await?.is_empty());
    Ok(())
}
