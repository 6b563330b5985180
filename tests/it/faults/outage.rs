//! One of the two sides is away for a while.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Data, TcpLink, eventually};
use serde_json::{Value, json};

use super::{Site, bridge_command, look_after, numbered};
use crate::support::{Bridge, DEADLINE, shared_token};

/// What is waited for is said no more often than this, less what a log line may be late.
const SAID_EVERY: Duration = Duration::from_millis(9_500);

/// The site's bridge with a link of its own to the API server.
async fn start_behind(site: &Site, link: &TcpLink) -> Result<Bridge> {
    let url = format!("https://{}", link.address());
    let kubeconfig = site.place.kubernetes.kubeconfig_at(&url, shared_token().await?)?;
    let command = bridge_command(&site.recorder.url())
        .args(["--namespace", &site.place.namespace, "--kubeconfig"])
        .arg(kubeconfig);
    Bridge::start(command).await
}

#[tokio::test]
async fn an_agent_that_lost_everything_is_filled_again() -> Result<()> {
    let mut site = Site::new("lost").await?;
    let names = numbered("svc", 0..50);
    site.create(names.clone()).await?;
    // No reading of Consul comes for an hour: only the sentinel can tell.
    let bridge = Bridge::start(site.command().await?.args(["--resync", "1h"])).await?;
    bridge.wait_ready().await?;
    let before = site.wait_for_names(&names).await?;
    site.place.consul.restart(Data::Lost).await?;
    site.place.consul.wait_ready().await?;
    let began = Instant::now();
    let after = site.wait_for_names(&names).await?;
    println!("filled again {:?} after the agent was ready", began.elapsed());
    ensure!(after == before, "{after:#?}\nbut before\n{before:#?}");
    ensure!(bridge.program.exit_status().is_none(), "it was restarted");
    bridge.wait_ready().await
}

/// What a broken link to the API server may not do.
async fn survives(prefix: &str, blackhole: bool) -> Result<()> {
    let site = Site::new(prefix).await?;
    let names = numbered("svc", 0..30);
    site.create(names.clone()).await?;
    let link = TcpLink::start(site.place.kubernetes.address()).await?;
    let bridge = start_behind(&site, &link).await?;
    bridge.wait_ready().await?;
    site.wait_for_names(&names).await?;

    let gone = numbered("svc", 7..8);
    let rest = names.difference(&gone).cloned().collect();
    let lookout = look_after(&site.place.consul, rest);
    site.recorder.clear();
    link.cut().await?;
    if blackhole {
        link.blackhole().await?;
    }
    site.place.delete("svc-007").await?;
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
    site.wait_for_names(&rest).await?;
    ensure!(site.recorder.writes().len() == 2, "{:#?}", site.recorder.writes());

    site.create(numbered("later", 0..1)).await?;
    site.wait_for_names(&rest.union(&numbered("later", 0..1)).cloned().collect()).await?;
    lookout.finish("the other Services").await
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
    let site = Site::new("start").await?;
    let names = numbered("svc", 0..3);
    site.create(names.clone()).await?;
    let api = TcpLink::start(site.place.kubernetes.address()).await?;
    let agent = TcpLink::start(site.recorder.address()).await?;
    api.cut().await?;
    agent.cut().await?;
    let url = format!("https://{}", api.address());
    let kubeconfig = site.place.kubernetes.kubeconfig_at(&url, shared_token().await?)?;
    let command = bridge_command(&format!("http://{}", agent.address()))
        .args(["--namespace", &site.place.namespace, "--kubeconfig"])
        .arg(kubeconfig);
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
    ensure!(site.recorder.requests().is_empty(), "Consul was reached");

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
    site.wait_for_names(&names).await.map(drop)
}

#[tokio::test]
async fn a_consul_that_stood_still_gets_what_changed_meanwhile() -> Result<()> {
    let site = Site::new("still").await?;
    let names = numbered("svc", 0..30);
    site.create(names.clone()).await?;
    let bridge = site.bridge().await?;
    site.wait_for_names(&names).await?;
    site.place.consul.pause().await;
    let gone = numbered("svc", 0..5);
    for name in &gone {
        site.place.delete(name).await?;
    }
    let moved = numbered("svc", 5..10);
    for name in &moved {
        site.place.patch(name, &json!({"spec": {"ports": [{"name": "http", "port": 81}]}})).await?;
    }
    site.create(numbered("new", 0..5)).await?;
    // As many as are ever sent at a time, none of them answered.
    let unanswered = || {
        let writes = site.recorder.writes();
        writes.iter().filter(|write| write.status.is_none()).count()
    };
    eventually(DEADLINE, || async {
        ensure!(unanswered() >= 15, "{} writes are under way", unanswered());
        Ok(())
    })
    .await?;
    // Newer than what is under way.
    for name in &moved {
        site.place.patch(name, &json!({"spec": {"ports": [{"name": "http", "port": 82}]}})).await?;
    }
    site.place.consul.resume().await;
    let wanted = names.difference(&gone).cloned().chain(numbered("new", 0..5)).collect();
    eventually(DEADLINE, || async {
        let shown = site.wait_for_names(&wanted).await?;
        for instance in shown.instances.values() {
            let port = if moved.contains(&instance.service) { 82 } else { 80 };
            ensure!(instance.port == port && !instance.critical, "{instance:?}");
        }
        Ok(())
    })
    .await?;
    bridge.wait_ready().await
}
