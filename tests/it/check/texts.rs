//! Texts that once misled those who read them, in the faults that they come from.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{ConsulOptions, Data, eventually};
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Fixture, kube_consul, says};

const HTTP: [(&str, u16); 1] = [("http", 80)];

/// The lines of a log that have this text in their message.
fn told(bridge: &Bridge, text: &str) -> Vec<Value> {
    let log = bridge.program.stderr();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|it| it["message"].as_str().is_some_and(|it| it.contains(text))).collect()
}

/// Which record, which of its fields, what was found: whoever did it can be looked for.
#[tokio::test]
async fn what_others_changed_is_named_with_its_fields() -> Result<()> {
    let fixture = Fixture::new("texts").await?;
    fixture.web("web", &HTTP).await?;
    fixture.web("other", &HTTP).await?;
    fixture.annotate("other", json!({"kube-consul.io/sync": "false"})).await?;
    let bridge = Bridge::start(fixture.command().await?.arg("--resync=1s")).await?;
    bridge.wait_ready().await?;
    // Counted are those that are registered, and not all of the cluster.
    let line = told(&bridge, "in sync");
    ensure!(line.len() == 1 && line[0]["services"] == 1, "{line:?}");

    let api = fixture.consul.api();
    let instances = fixture.instances("web").await?;
    let service = &instances[0]["Service"];
    let id = service["ID"].as_str().unwrap_or_default().to_owned();
    let changed = json!({"ID": id, "Name": "web", "Address": service["Address"], "Port": 81,
    "Tags": service["Tags"],
    "Meta": service["Meta"].as_object().map(|meta| {
        let mut meta = meta.clone();
        meta.insert("deployed-by".to_owned(), json!("someone"));
        meta
    })});
    api.put("/v1/agent/service/register", &changed).await?;
    eventually(DEADLINE, || async {
        let lines = told(&bridge, "changed by others");
        let line = lines.first().cloned().unwrap_or_default();
        let fields = line["fields"].as_str().unwrap_or_default();
        ensure!(line["record"].as_str().is_some_and(|it| it.contains(&id)), "{lines:?}");
        ensure!(fields.contains("port: expected 80, found 81"), "{line}");
        ensure!(
            line["message"].as_str().is_some_and(|it| it.contains("deployed-by=someone")),
            "{line}"
        );
        Ok(())
    })
    .await?;
    bridge.stop().await
}

/// An agent that lost all is no other writer.
#[tokio::test]
async fn an_agent_that_lost_all_is_not_told_as_a_fight() -> Result<()> {
    let mut fixture = Fixture::new("texts").await?;
    fixture.web("web", &HTTP).await?;
    let bridge = fixture.bridge().await?;
    for _ in 0..3 {
        fixture.consul.restart(Data::Lost).await?;
        fixture.wait_for_instances("web", 1).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let log = bridge.program.stderr();
    for text in ["Contested", "other writer", "by others"] {
        ensure!(!log.contains(text), "{text} in {log}");
    }
    bridge.stop().await
}

/// What stays is what is there: of a name that was never had nothing is.
#[tokio::test]
async fn only_what_is_registered_is_said_to_stay() -> Result<()> {
    let fixture = Fixture::new("texts").await?;
    let api = fixture.consul.api();
    let foreign = |name: &str| json!({"Name": name, "ID": format!("{name}-1"), "Port": 1});
    api.put("/v1/agent/service/register", &foreign("never")).await?;
    fixture.web("never", &HTTP).await?;
    fixture.web("had", &HTTP).await?;
    let bridge = Bridge::start(fixture.command().await?.arg("--resync=1s")).await?;
    let message = bridge.wait_for_problem(&fixture.namespace, "never", "ForeignName").await?;
    ensure!(!message.contains("stays"), "{message}");
    fixture.wait_for_instances("had", 1).await?;
    api.put("/v1/agent/service/register", &foreign("had")).await?;
    let message = bridge.wait_for_problem(&fixture.namespace, "had", "ForeignName").await?;
    ensure!(message.contains("what this Service has registered stays"), "{message}");
    bridge.stop().await
}

/// HTTPS with a port that speaks HTTP: the TLS library's words name no cause.
#[tokio::test]
async fn a_port_that_does_not_speak_tls_is_told_as_one() -> Result<()> {
    let fixture = Fixture::with_consul("texts", ConsulOptions::dev()).await?;
    let https = fixture.consul.url().replace("http://", "https://");
    let command = fixture.subcommand("check").await?.env("CONSUL_HTTP_ADDR", https);
    let said = says(1, command.args(["--output", "text", "--timeout", "5s"])).await?;
    let line = said.lines().find(|line| line.starts_with("failed   consul ")).unwrap_or_default();
    ensure!(line.contains("is it that of plain HTTP?"), "{said}");
    Ok(())
}

/// The API server is away behind a proxy that still answers, in words that are no API server's.
#[tokio::test]
async fn a_proxy_without_an_api_server_is_told_as_one() -> Result<()> {
    let fixture = Fixture::new("texts").await?;
    let proxy = kube_consul_stack::HttpRecorder::start(fixture.consul.url()).await?;
    let words = "dial tcp 10.0.0.1:443: connect: connection refused";
    let fault = kube_consul_stack::Fault::Answer(http::StatusCode::BAD_GATEWAY, words.to_owned());
    proxy.fault(fault, |_| true);
    let command = kube_consul()
        .args(["check", "--kube-url", &proxy.url()])
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let said = says(1, command).await?;
    let line =
        said.lines().find(|line| line.starts_with("failed   kubernetes")).unwrap_or_default();
    ensure!(line.contains("502") && line.contains(words), "{said}");
    ensure!(line.contains("not in the API server's own words"), "{said}");
    Ok(())
}
