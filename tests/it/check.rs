//! `check`, `status` and `explain`: one test for each line of a check, made to fail, and a bridge that
//! is asked.

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{HttpRecorder, Port, ProgramOptions};
use serde_json::{Value, json};

use crate::support::{Fixture, ends_with, kube_consul, kubeconfig_without, says};

/// What a check says, in JSON; it ends with `code`.
async fn check(code: i32, command: ProgramOptions) -> Result<Vec<Value>> {
    let said = says(code, command.args(["--output", "json", "--timeout", "5s"])).await?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(said["ok"] == (code == 0), "{said:#}");
    said["checks"].as_array().cloned().context("no checks")
}

/// The lines of this name, or that begin with it.
fn lines<'a>(checks: &'a [Value], name: &str) -> Vec<&'a Value> {
    let exact: Vec<&Value> = checks.iter().filter(|it| it["check"] == name).collect();
    let begins = |it: &&Value| it["check"].as_str().is_some_and(|it| it.starts_with(name));
    if exact.is_empty() { checks.iter().filter(begins).collect() } else { exact }
}

fn ensure_status(checks: &[Value], name: &str, status: &str) -> Result<Value> {
    let found = lines(checks, name);
    let [line] = found.as_slice() else { anyhow::bail!("{name}: {checks:#?}") };
    ensure!(line["status"] == status, "{name}: want {status}: {line}");
    let has_remedy = line["remedy"].is_string();
    ensure!(has_remedy == ["failed", "warning"].contains(&status), "{line}");
    Ok((*line).clone())
}

#[tokio::test]
async fn with_all_well_nothing_fails_and_nothing_is_written() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let command = fixture.subcommand("check").await?.env("CONSUL_HTTP_ADDR", recorder.url());
    let checks = check(0, command).await?;
    for name in ["kubernetes", "cluster identity", "consul leader", "owner key", "acl", "names"] {
        ensure_status(&checks, name, "ok")?;
    }
    ensure!(lines(&checks, "permission").len() == 6, "{checks:#?}");
    ensure!(lines(&checks, "permission").iter().all(|it| it["status"] == "ok"), "{checks:#?}");
    ensure!(lines(&checks, "clock").iter().all(|it| it["status"] == "ok"), "{checks:#?}");
    // What is asked of the ACLs is asked by POST.
    let mut writes = recorder.writes();
    writes.retain(|it| !it.path.starts_with("/v1/internal/acl/authorize"));
    ensure!(writes.is_empty(), "{writes:?}");
    // The alias, for people.
    let text = says(0, fixture.subcommand("doctor").await?).await?;
    ensure!(text.lines().any(|line| line.starts_with("ok       kubernetes")), "{text}");
    Ok(())
}

#[tokio::test]
async fn each_side_that_does_not_answer_is_named_with_what_to_do() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    let nobody = format!("http://127.0.0.1:{}", Port::pick()?.number());
    let command = fixture.subcommand("check").await?.env("CONSUL_HTTP_ADDR", &nobody);
    let checks = check(1, command).await?;
    ensure_status(&checks, "consul", "failed")?;
    ensure_status(&checks, "consul leader", "skipped")?;
    ensure_status(&checks, "names", "skipped")?;
    let command = kube_consul()
        .args(["check", "--kube-url", &nobody])
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let checks = check(1, command).await?;
    ensure_status(&checks, "kubernetes", "failed")?;
    ensure_status(&checks, "cluster identity", "skipped")?;
    ensure_status(&checks, "consul leader", "ok").map(drop)
}

#[tokio::test]
async fn a_missing_permission_is_named() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    let kubeconfig = kubeconfig_without(fixture.kubernetes, "endpointslices", "watch").await?;
    let checks = check(1, fixture.command_with("check", &kubeconfig)).await?;
    let failed: Vec<&Value> = checks.iter().filter(|it| it["status"] == "failed").collect();
    let named = |it: &&Value| it["check"].as_str().is_some_and(|it| it.contains("endpointslices"));
    ensure!(failed.len() == 1 && failed.iter().all(named), "{failed:#?}");
    Ok(())
}

#[tokio::test]
async fn a_name_of_another_cluster_and_names_that_others_hold_are_told() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    fixture.web("db", &[("http", 80)]).await?;
    let api = fixture.consul.api();
    let service = json!({"Name": "db", "ID": "db-1", "Address": "192.0.2.7", "Port": 1});
    api.put("/v1/agent/service/register", &service).await?;
    let checks = check(0, fixture.subcommand("check").await?).await?;
    let line = ensure_status(&checks, "names", "warning")?;
    let db = format!("{}/db", fixture.namespace);
    ensure!(line["found"].as_str().is_some_and(|it| it.contains(&db)), "{line}");

    api.put_text("/v1/kv/kube-consul/kubernetes/owner", "another-uid").await?;
    let checks = check(1, fixture.subcommand("check").await?).await?;
    let line = ensure_status(&checks, "owner key", "failed")?;
    ensure!(line["remedy"].as_str().is_some_and(|it| it.contains("--adopt")), "{line}");
    ensure_status(&checks, "names", "skipped").map(drop)
}

#[tokio::test]
async fn wrong_usage_is_no_failed_check() -> Result<()> {
    let command = kube_consul().args(["check", "--leader-elect"]);
    let said = ends_with(2, command).await?;
    ensure!(said.contains("--sink catalog"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_running_bridge_explains_its_services() -> Result<()> {
    let fixture = Fixture::new("explain").await?;
    fixture.web("web", &[("http", 80)]).await?;
    fixture.web("left-out", &[("http", 80)]).await?;
    fixture.annotate("left-out", json!({"kube-consul.io/sync": "false"})).await?;
    fixture.annotate("web", json!({"kube-consul.io/addres": "endpoints"})).await?;
    let bridge = fixture.bridge().await?;
    bridge.wait_for_problem(&fixture.namespace, "web", "InvalidAnnotation").await?;
    let url = bridge.url("");
    let explain = |name: &str| {
        let service = format!("{}/{name}", fixture.namespace);
        kube_consul().args(["explain", &service, "--admin-url", &url])
    };
    let text = says(0, explain("web")).await?;
    let address = fixture.cluster_ip("web").await?;
    ensure!(text.contains(&format!("web  {address}  passing")), "{text}");
    ensure!(text.contains("did you mean kube-consul.io/address?"), "{text}");
    let text = says(0, explain("left-out")).await?;
    ensure!(text.contains("not selected: an annotation says"), "{text}");
    let said = ends_with(1, explain("nothing")).await?;
    ensure!(said.contains("has no Service"), "{said}");

    let table = says(0, kube_consul().args(["status", "--admin-url", &url])).await?;
    ensure!(table.contains("NAMESPACE") && table.contains("(not selected)"), "{table}");
    ensure!(table.contains("ready") && table.contains("InvalidAnnotation"), "{table}");
    bridge.stop().await?;
    let said = ends_with(1, explain("web")).await?;
    ensure!(said.contains("no bridge answers") && said.contains("kube-consul plan"), "{said}");
    Ok(())
}
