//! The page at `/`, in a real browser, and what programs read there.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::support::{Site, WISH};
use crate::support::Browser;

/// It shows what a daemon keeps: connections, the watch, numbers, charts, each pod with its
/// registrations; and follows without a reload.
#[tokio::test]
async fn the_page_shows_what_a_node_daemon_keeps() -> Result<()> {
    let site = Site::new("node-page").await?;
    site.many(2).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing", "web-1:8080 passing"]).await?;
    let Some(browser) = Browser::start().await? else { return Ok(()) };
    browser.appear(1_200, false).await?;
    browser.open(&daemon.url("/")).await?;
    browser.wait_for("document.getElementById('state').textContent === 'Ready'").await?;
    browser.run("window.loadedOnce = true; return true").await?;
    let pod = |name: &str| {
        let key = format!("{}/{name}", site.namespace);
        format!("document.querySelector('#list > [data-key=\"{key}\"]').textContent")
    };
    let text = |id: &str, text: &str| {
        format!("document.getElementById('{id}').textContent.includes('{text}')")
    };
    for condition in [
        format!("{}.includes('containers ready; 1 of 1 passing')", pod("web-0")),
        format!("{}.includes('{}passingin ')", pod("web-0"), site.id("web", "web-0")),
        text("command", "node"),
        text("objects-title", "Pods"),
        text("connections", "Watch of Pod"),
        text("connections", " ago"),
        text("connections", site.agent.url()),
        text("connections", "dc1"),
        text("counts", "backlog"),
        text("charts", "Changes"),
        text("charts", "Writes"),
        text("charts", "Errors"),
        text("charts", "Slowest propagation, ms"),
        "document.querySelectorAll('#charts rect').length >= 450".to_owned(),
    ] {
        browser.wait_for(&condition).await?;
    }
    site.ready("web-0", false).await?;
    let critical = format!("{}.includes('containers not ready; 0 of 1 passing')", pod("web-0"));
    browser.wait_for(&critical).await?;
    site.delete("web-1").await?;
    let gone = "document.querySelectorAll('#list > li').length === 1";
    browser.wait_for(gone).await?;

    // What pods say stays text, and a problem goes with its pod.
    let markup = "<img src=x onerror=window.caught=1>";
    let annotations = json!({
        format!("{WISH}/service-names"): "web", format!("{WISH}/service-port"): markup,
    });
    site.pod("bad", annotations).await?;
    browser.wait_for(&text("problems", "onerror=window.caught=1")).await?;
    browser.wait_for(&format!("{}.includes('onerror')", pod("bad"))).await?;
    println!("{}", browser.screenshot("node").await?.display());
    let found = browser
        .run("return [document.images.length, typeof window.caught, window.loadedOnce]")
        .await?;
    ensure!(found == json!([0, "undefined", true]), "{found}");
    site.delete("bad").await?;
    browser.wait_for("!document.getElementById('no-problems').hidden").await?;
    let shown = "document.body.textContent.includes('[object') || document.body.textContent.includes('undefined')";
    ensure!(browser.run(&format!("return {shown}")).await? == false, "it shows no values");
    ensure!(browser.complaints().await? == [""; 0], "{:?}", browser.complaints().await?);
    browser.stop().await?;
    daemon.stop().await
}

/// `/status` has the same for programs, and the metrics count what happened.
#[tokio::test]
async fn the_status_and_the_metrics_of_a_node_daemon_say_what_happened() -> Result<()> {
    let site = Site::new("node-status").await?;
    site.many(1).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    site.ready("web-0", false).await?;
    site.wait_for("web", &["web-0:8080 critical"]).await?;
    let status = daemon.status().await?;
    ensure!(status["command"] == "node" && status["ready"] == true, "{status}");
    ensure!(status["consul"]["version"].is_string(), "{status}");
    ensure!(status["counts"]["registrations"] == 1 && status["counts"]["passing"] == 0, "{status}");
    ensure!(status["watches"][0]["kind"] == "Pod", "{status}");
    let pod = &status["pods"][0];
    ensure!(pod["registrations"][0]["status"] == "critical", "{pod}");
    ensure!(pod["registrations"][0]["next_heartbeat_seconds"] == Value::Null, "{pod}");
    let charts = status["history"].as_array().context("charts")?;
    let sum = |name: &str| -> Option<u64> {
        let chart = charts.iter().find(|it| it["name"] == name)?;
        chart["values"].as_array()?.iter().map(Value::as_u64).sum()
    };
    ensure!(sum("Changes").is_some_and(|it| it >= 2), "{charts:?}");
    ensure!(sum("Writes").is_some_and(|it| it >= 2), "{charts:?}");
    ensure!(sum("Errors") == Some(0), "{charts:?}");
    for (series, least) in [
        ("kube_consul_node_propagation_seconds_count", 1.0),
        ("kube_consul_node_writes_total{kind=\"register\",result=\"done\"}", 1.0),
        ("kube_consul_node_writes_total{kind=\"check\",result=\"done\"}", 1.0),
        ("kube_consul_node_registrations{health=\"critical\"}", 1.0),
        ("kube_consul_ready", 1.0),
        ("kube_consul_watch_last_heard_timestamp_seconds{kind=\"Pod\"}", 1.0),
        ("kube_consul_node_last_sync_timestamp_seconds", 1.0),
        ("kube_consul_consul_request_duration_seconds_count{operation=\"agent_check\"}", 1.0),
    ] {
        let found = daemon.metric(series).await?;
        ensure!(found.is_some_and(|it| it >= least), "{series} is {found:?}");
    }
    // The first line of the log says what it works on.
    let log = daemon.program.stderr();
    let first = log.lines().next().context("no log")?;
    for part in
        ["starting kube-consul node", env!("CARGO_PKG_VERSION"), &site.node, site.agent.url()]
    {
        ensure!(first.contains(part), "{part} is not in {first}");
    }
    daemon.stop().await
}
