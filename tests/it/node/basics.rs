//! From pods to the agent and the catalog.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Data, HttpRecorder, eventually};
use serde_json::json;
use tokio::time::sleep;

use super::support::{Site, WISH};
use crate::support::{Bridge, DEADLINE};

fn names(names: &str) -> serde_json::Value {
    json!({format!("{WISH}/service-names"): names})
}

#[tokio::test]
async fn each_change_of_a_pod_reaches_the_catalog_at_once() -> Result<()> {
    let site = Site::new("node").await?;
    site.pod("web-0", names("web")).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    let ip = site.ip("web-0").await?;
    let found = site.in_agent("web", "web-0").await?;
    ensure!(found["Address"] == ip.as_str() && found["Port"] == 8080, "{found}");
    let meta = json!({
        "external-source": "kubernetes", "external-sync-source": "katalog-sync",
        "external-k8s-link": format!("{}/web-0", site.namespace),
        "external-k8s-namespace": site.namespace, "external-k8s-pod": "web-0",
    });
    ensure!(found["Meta"] == meta, "{found}");
    let check = site.check("web", "web-0").await?;
    ensure!(check["Notes"] == "{\n  \"app\": true\n}" && check["Type"] == "ttl", "{check}");
    ensure!(check["Name"] == "Service 'web' check", "{check}");

    site.ready("web-0", false).await?;
    let took = site.wait_for("web", &["web-0:8080 critical"]).await?;
    println!("readiness in the catalog after {took:?}");
    site.ready("web-0", true).await?;
    let took = site.wait_for("web", &["web-0:8080 passing"]).await?;
    println!("readiness in the catalog after {took:?}");
    site.annotate("web-0", json!({format!("{WISH}/service-port"): "9090"})).await?;
    site.wait_for("web", &["web-0:9090 passing"]).await?;
    site.annotate("web-0", json!({format!("{WISH}/service-health"): "warning"})).await?;
    site.wait_for("web", &["web-0:9090 warning"]).await?;
    site.annotate("web-0", json!({format!("{WISH}/service-health"): null})).await?;
    site.wait_for("web", &["web-0:9090 passing"]).await?;
    site.annotate(
        "web-0",
        json!({
            format!("{WISH}/service-tags"): "a, b", format!("{WISH}/service-meta"): "k:v",
        }),
    )
    .await?;
    eventually(DEADLINE, || async {
        let found = site.in_agent("web", "web-0").await?;
        ensure!(found["Tags"] == json!(["a", " b"]) && found["Meta"]["k"] == "v", "{found}");
        Ok(())
    })
    .await?;
    site.wait_for("web", &["web-0:9090 passing"]).await?;
    site.annotate("web-0", names("web,api")).await?;
    site.wait_for("api", &["web-0:9090 passing"]).await?;
    site.annotate("web-0", names("api")).await?;
    site.wait_for("web", &[]).await?;
    site.delete("web-0").await?;
    site.wait_for("api", &[]).await?;
    daemon.stop().await
}

/// Longer than the TTL, so that heartbeats are seen to matter.
#[tokio::test]
async fn what_is_there_is_taken_over_without_a_write_and_kept_alive() -> Result<()> {
    let site = Site::new("node-restart").await?;
    site.many(4).await?;
    let all: Vec<_> = (0..4).map(|n| format!("web-{n}:8080 passing")).collect();
    let passing: Vec<_> = all.iter().map(String::as_str).collect();
    let daemon = site.daemon().await?;
    site.wait_for("web", &passing).await?;
    // Foreign, and an orphan of ours.
    let api = site.agent.api();
    let other = json!({"ID": "other", "Name": "other", "Port": 1});
    api.put("/v1/agent/service/register", &other).await?;
    daemon.stop().await?;
    site.wait_for("web", &passing).await?;
    site.delete("web-3").await?;

    let recorder = HttpRecorder::start(site.agent.url()).await?;
    let daemon = Bridge::start(site.command().env("CONSUL_HTTP_ADDR", recorder.url())).await?;
    daemon.wait_ready().await?;
    site.wait_for("web", &passing[..3]).await?;
    // More than a TTL of 11 s.
    sleep(Duration::from_secs(14)).await;
    ensure!(site.catalog("web").await? == passing[..3], "{:?}", site.catalog("web").await?);
    let requests = recorder.requests();
    let written: Vec<_> = requests.iter().filter(|it| it.path.contains("/register")).collect();
    ensure!(written.is_empty(), "it wrote what was there: {written:?}");
    let beats = requests.iter().filter(|it| it.path.contains("/check/update/")).count();
    // Three checks, each 5.5 s, in some 15 s; the first within a quarter of the TTL.
    ensure!((6..=12).contains(&beats), "{beats} heartbeats");
    let services = api.get("/v1/agent/services").await?;
    ensure!(!services["other"].is_null(), "a foreign service is gone: {services}");
    daemon.stop().await
}

/// Gone for longer than the TTL: critical, nothing removed; back: passing.
#[tokio::test]
async fn while_the_daemon_is_gone_checks_turn_critical_and_nothing_is_removed() -> Result<()> {
    let site = Site::new("node-gone").await?;
    site.many(2).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing", "web-1:8080 passing"]).await?;
    daemon.program.kill().await?;
    site.wait_for("web", &["web-0:8080 critical", "web-1:8080 critical"]).await?;
    let daemon = site.daemon().await?;
    let took = site.wait_for("web", &["web-0:8080 passing", "web-1:8080 passing"]).await?;
    ensure!(took < Duration::from_secs(15), "{took:?}");
    daemon.stop().await
}

#[tokio::test]
async fn p11_an_agent_that_lost_its_data_has_all_back() -> Result<()> {
    let mut site = Site::new("node-lost").await?;
    site.many(10).await?;
    site.pod(
        "down",
        json!({
            format!("{WISH}/service-names"): "down", format!("{WISH}/service-health"): "critical",
        }),
    )
    .await?;
    let daemon = site.daemon().await?;
    let all: Vec<_> = (0..10).map(|n| format!("web-{n}:8080 passing")).collect();
    let mut passing: Vec<_> = all.iter().map(String::as_str).collect();
    passing.sort_unstable();
    site.wait_for("web", &passing).await?;
    site.wait_for("down", &["down:8080 critical"]).await?;
    site.agent.kill().await?;
    site.agent.restart(Data::Lost).await?;
    site.agent.wait_ready().await?;
    let took = site.wait_for("web", &passing).await?;
    println!("all back {took:?} after the agent");
    site.wait_for("down", &["down:8080 critical"]).await?;
    daemon.stop().await
}
