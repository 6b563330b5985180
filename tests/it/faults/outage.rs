//! One of the two sides is away for a while.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Data, TcpLink, eventually};
use serde_json::{Value, json};

use super::{look_after, numbered, wait_for_names};
use crate::support::{Bridge, DEADLINE, Fixture, shared_token};

/// What is waited for is said no more often than this, less what a log line may be late.
const SAID_EVERY: Duration = Duration::from_millis(9_500);

/// The bridge with a link of its own to the API server.
async fn start_behind(fixture: &Fixture, link: &TcpLink) -> Result<Bridge> {
    let url = format!("https://{}", link.address());
    let kubeconfig = fixture.kubernetes.kubeconfig_at(&url, shared_token().await?)?;
    Bridge::start(fixture.command_with("bridge", &kubeconfig)).await
}

#[tokio::test]
async fn an_agent_that_lost_everything_is_filled_again() -> Result<()> {
    let mut fixture = Fixture::recorded("lost").await?;
    let names = numbered("svc", 0..50);
    fixture.create(names.clone()).await?;
    // No reading of Consul comes for an hour: only the sentinel can tell.
    let bridge = Bridge::start(fixture.command().await?.args(["--resync", "1h"])).await?;
    bridge.wait_ready().await?;
    let before = wait_for_names(&fixture.consul, &names).await?;
    fixture.consul.restart(Data::Lost).await?;
    fixture.consul.wait_ready().await?;
    let began = Instant::now();
    let after = wait_for_names(&fixture.consul, &names).await?;
    println!("filled again {:?} after the agent was ready", began.elapsed());
    ensure!(after == before, "{after:#?}\nbut before\n{before:#?}");
    ensure!(bridge.program.exit_status().is_none(), "it was restarted");
    bridge.wait_ready().await
}

/// What a broken link to the API server may not do.
async fn survives(prefix: &str, blackhole: bool) -> Result<()> {
    let fixture = Fixture::recorded(prefix).await?;
    let names = numbered("svc", 0..30);
    fixture.create(names.clone()).await?;
    let link = TcpLink::start(fixture.kubernetes.address()).await?;
    let bridge = start_behind(&fixture, &link).await?;
    bridge.wait_ready().await?;
    wait_for_names(&fixture.consul, &names).await?;

    let gone = numbered("svc", 7..8);
    let rest = names.difference(&gone).cloned().collect();
    let monitor = look_after(&fixture.consul, rest);
    fixture.recorder().clear();
    link.cut().await?;
    if blackhole {
        link.blackhole().await?;
    }
    fixture.delete("svc-007").await?;
    bridge
        .program
        .wait_for_line("that the watch fails", DEADLINE, |line| {
            let silent = line.contains("deadline has elapsed");
            line.contains("waiting for the Kubernetes API") && (silent || !blackhole)
        })
        .await?;
    let trouble = bridge.status().await?["kubernetes"]["trouble"].clone();
    ensure!(trouble.is_string(), "the trouble is not shown");
    link.restore().await?;
    let rest = names.difference(&gone).cloned().collect();
    wait_for_names(&fixture.consul, &rest).await?;
    ensure!(fixture.recorder().writes().len() == 2, "{:#?}", fixture.recorder().writes());

    fixture.create(numbered("later", 0..1)).await?;
    wait_for_names(&fixture.consul, &rest.union(&numbered("later", 0..1)).cloned().collect())
        .await?;
    monitor.finish("the other Services").await
}

#[tokio::test]
async fn a_deletion_while_the_api_server_was_away_is_made_up_for() -> Result<()> {
    survives("cut", false).await
}

#[tokio::test]
async fn a_deletion_while_the_api_server_was_silent_is_made_up_for() -> Result<()> {
    survives("silent", true).await
}

/// Seconds of the log lines' times that have this text.
fn times(bridge: &Bridge, text: &str) -> Result<Vec<jiff::Timestamp>> {
    let stderr = bridge.program.stderr();
    stderr
        .lines()
        .filter(|line| line.contains(text))
        .map(|line| {
            let line: Value = serde_json::from_str(line)?;
            Ok(line["timestamp"].as_str().context("no timestamp")?.parse()?)
        })
        .collect()
}

#[tokio::test]
async fn sides_that_cannot_be_reached_at_the_start_are_waited_for() -> Result<()> {
    let fixture = Fixture::recorded("start").await?;
    let names = numbered("svc", 0..3);
    fixture.create(names.clone()).await?;
    let api = TcpLink::start(fixture.kubernetes.address()).await?;
    let agent = TcpLink::start(fixture.recorder().address()).await?;
    api.cut().await?;
    agent.cut().await?;
    let url = format!("https://{}", api.address());
    let kubeconfig = fixture.kubernetes.kubeconfig_at(&url, shared_token().await?)?;
    let command = fixture
        .command_with("bridge", &kubeconfig)
        .env("CONSUL_HTTP_ADDR", format!("http://{}", agent.address()));
    let bridge = Bridge::start(command).await?;
    // Both are named, each with why.
    bridge.wait_unready("Kubernetes API").await?;
    bridge.wait_unready("Consul agent").await?;
    bridge.wait_unready("refused").await?;
    let waits = ["waiting: for the Kubernetes API\"", "waiting: for the Consul agent\""];
    for wait in waits {
        eventually(DEADLINE, || async {
            let said = times(&bridge, wait)?;
            ensure!(said.len() >= 2, "{wait} was said {} times", said.len());
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let said = times(&bridge, wait)?;
        let close = said.windows(2).find(|pair| {
            pair[1].duration_since(pair[0])
                < jiff::SignedDuration::try_from(SAID_EVERY).unwrap_or_default()
        });
        ensure!(close.is_none(), "{wait} was said at {said:?}");
    }
    let (code, text) = bridge.get("/livez").await?;
    ensure!(code == 200, "/livez answers {code} {text}");
    ensure!(fixture.recorder().requests().is_empty(), "Consul was reached");

    api.restore().await?;
    let reason = eventually(DEADLINE, || async {
        let (code, text) = bridge.get("/readyz").await?;
        ensure!(code == 503 && !text.contains("Kubernetes API"), "{code} {text}");
        Ok::<_, anyhow::Error>(text)
    })
    .await?;
    ensure!(reason.contains("Consul agent"), "{reason}");
    agent.restore().await?;
    bridge.wait_ready().await?;
    wait_for_names(&fixture.consul, &names).await.map(drop)
}

#[tokio::test]
async fn a_consul_that_stood_still_gets_what_changed_meanwhile() -> Result<()> {
    let fixture = Fixture::recorded("still").await?;
    let names = numbered("svc", 0..30);
    fixture.create(names.clone()).await?;
    let bridge = fixture.bridge().await?;
    wait_for_names(&fixture.consul, &names).await?;
    fixture.consul.pause().await;
    let gone = numbered("svc", 0..5);
    for name in &gone {
        fixture.delete(name).await?;
    }
    let moved = numbered("svc", 5..10);
    for name in &moved {
        fixture.patch(name, &json!({"spec": {"ports": [{"name": "http", "port": 81}]}})).await?;
    }
    fixture.create(numbered("new", 0..5)).await?;
    // All that may be sent, none of it answered: new names are looked up first.
    let unanswered = || {
        let writes = fixture.recorder().writes();
        writes.iter().filter(|write| write.status.is_none()).count()
    };
    eventually(DEADLINE, || async {
        ensure!(unanswered() >= 10, "{} writes are under way", unanswered());
        Ok(())
    })
    .await?;
    // Newer than what is under way.
    for name in &moved {
        fixture.patch(name, &json!({"spec": {"ports": [{"name": "http", "port": 82}]}})).await?;
    }
    fixture.consul.resume().await;
    let wanted = names.difference(&gone).cloned().chain(numbered("new", 0..5)).collect();
    eventually(DEADLINE, || async {
        let shown = wait_for_names(&fixture.consul, &wanted).await?;
        for instance in shown.instances.values() {
            let port = if moved.contains(&instance.service) { 82 } else { 80 };
            ensure!(instance.port == port && !instance.critical, "{instance:?}");
        }
        Ok(())
    })
    .await?;
    bridge.wait_ready().await
}
