//! Somebody else keeps changing what is ours, or an agent keeps losing it.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hickory_resolver::proto::rr::RecordType::A;
use kube_consul_stack::{Data, eventually};
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Fixture};

/// Longer than a resync and a write take.
const PROMPT: Duration = Duration::from_secs(4);
/// No pause of a fight is longer, and a little more.
const LONGEST_PAUSE: Duration = Duration::from_secs(65);

/// N6: somebody deregisters an instance again and again.
#[tokio::test]
async fn n6_a_fight_delays_nothing_else_and_ends_by_itself() -> Result<()> {
    let fixture = Fixture::new("fight").await?;
    let (api, namespace) = (fixture.consul.api(), fixture.namespace.as_str());
    fixture.web("web", &[("http", 80)]).await?;
    let bridge = fixture.bridge_with(&["--sink", "catalog", "--resync", "1s"]).await?;
    let id = format!("kubernetes_{namespace}_web_http_{}", fixture.cluster_ip("web").await?);
    let node = format!("k8s-kubernetes.{namespace}");
    let deregister = async || {
        fixture.wait_for_instances("web", 1).await?;
        let body = json!({"Node": node, "ServiceID": id});
        api.put("/v1/catalog/deregister", &body).await.map(drop)
    };
    for _ in 0..4 {
        deregister().await?;
    }
    // Each fix names the record, and the problem says that it is a fight.
    let told = bridge.wait_for_problem(namespace, "web", "Contested").await?;
    ensure!(told.contains(&id) && told.contains("it was removed"), "{told}");
    let log = bridge.program.stderr();
    let fixes = log.lines().filter(|it| it.contains(&id) && it.contains("changed by others"));
    ensure!(fixes.count() >= 3, "{log}");

    // The next pause is eight seconds: a newer state does not wait for its end.
    deregister().await?;
    tokio::time::sleep(PROMPT / 2).await;
    let began = Instant::now();
    fixture.annotate("web", json!({"kube-consul.io/service-tags": "newer"})).await?;
    fixture.wait_for_instances("web", 1).await?;
    ensure!(began.elapsed() < PROMPT, "a newer state took {:?}", began.elapsed());
    // Nor does another Service's.
    deregister().await?;
    let began = Instant::now();
    fixture.web("other", &[("http", 80)]).await?;
    fixture.wait_for_instances("other", 1).await?;
    ensure!(began.elapsed() < PROMPT, "another Service took {:?}", began.elapsed());

    // The other has stopped: the record is back, soon, and a removal goes through.
    let began = Instant::now();
    let is_back = async || {
        let found = fixture.instances("web").await?;
        ensure!(found.len() == 1, "absent for {:?}", began.elapsed());
        Ok(())
    };
    eventually(LONGEST_PAUSE, is_back).await?;
    println!("back after {:?}", began.elapsed());
    fixture.delete("web").await?;
    fixture.wait_for_instances("web", 0).await?;
    bridge.stop().await
}

/// N7: an agent that loses its data again and again is nobody's fight.
#[tokio::test]
async fn n7_an_agent_that_loses_its_data_six_times_is_filled_each_time() -> Result<()> {
    let mut fixture = Fixture::recorded("loses").await?;
    let namespace = fixture.namespace.clone();
    for name in ["web", "api"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    let bridge = Bridge::start(fixture.command().await?).await?;
    bridge.wait_ready().await?;
    let address = fixture.cluster_ip("web").await?;
    for round in 1..=6 {
        fixture.consul.restart(Data::Lost).await?;
        fixture.consul.wait_ready().await?;
        let began = Instant::now();
        let dns = fixture.dns()?;
        dns.wait_for("web.service.consul", A, &[&address]).await?;
        fixture.wait_for_instances("api", 1).await?;
        let took = began.elapsed();
        ensure!(took < DEADLINE / 2, "round {round}: filled after {took:?}");
        let problems = bridge.status().await?["problems"].clone();
        ensure!(problems.as_array().is_none_or(Vec::is_empty), "round {round}: {problems}");
    }
    bridge.wait_for_no_problem(&namespace, "web").await?;
    ensure!(bridge.status().await?["ready"] != Value::Bool(false));
    bridge.stop().await
}
