//! `plan`: what a bridge would change, beside what it then does.

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{HttpRecorder, Port};
use serde_json::{Value, json};

use crate::support::{Fixture, ends_with, kube_consul, kubeconfig_with, says, shipped_rules};

const OWNER: &str = "kube-consul/kubernetes/owner";
const OTHER_UID: &str = "00000000-0000-0000-0000-00000000abcd";

/// `plan` with these flags, through a recorder that sees it write nothing; it ends with `code`.
async fn plan(fixture: &Fixture, code: i32, flags: &[&str]) -> Result<String> {
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let command = fixture.subcommand("plan").await?.args(flags);
    let said = says(code, command.env("CONSUL_HTTP_ADDR", recorder.url())).await?;
    let writes = recorder.writes();
    ensure!(writes.is_empty(), "a plan writes: {writes:?}");
    Ok(said)
}

async fn json_plan(fixture: &Fixture, code: i32, flags: &[&str]) -> Result<Value> {
    let flags = [flags, &["--output", "json"]].concat();
    Ok(serde_json::from_str(&plan(fixture, code, &flags).await?)?)
}

async fn sync(fixture: &Fixture, flags: &[&str]) -> Result<()> {
    ends_with(0, fixture.command().await?.arg("--once").args(flags)).await.map(drop)
}

/// The text with the namespace, and with each address and its PTR key, replaced by words.
fn anonymous(fixture: &Fixture, text: &str, addresses: &[(&str, &str)]) -> String {
    let mut text = text.replace(&fixture.namespace, "NS");
    // One address may be the beginning of another.
    let mut addresses = addresses.to_vec();
    addresses.sort_by_key(|(address, _)| std::cmp::Reverse(address.len()));
    for (address, word) in addresses {
        let network: Vec<&str> = address.rsplit('.').skip(1).collect();
        let key = format!("0.{}.IN-ADDR.ARPA/{address}", network.join("."));
        text = text.replace(&key, &format!("{word}-KEY")).replace(address, word);
    }
    text
}

/// The plan of the way back.
fn reversed(plan: &Value) -> Value {
    let mut plan = plan.clone();
    let summary = plan["summary"].clone();
    plan["summary"]["add"] = summary["remove"].clone();
    plan["summary"]["remove"] = summary["add"].clone();
    for service in plan["services"].as_array_mut().into_iter().flatten() {
        for change in service["changes"].as_array_mut().into_iter().flatten() {
            let action = match change["action"].as_str() {
                Some("add") => "remove",
                Some("remove") => "add",
                _ => "change",
            };
            change["action"] = json!(action);
            for field in change["fields"].as_array_mut().into_iter().flatten() {
                let old = field["old"].take();
                field["old"] = field["new"].take();
                field["new"] = old;
            }
        }
    }
    plan
}

/// A Service goes, one comes, one changes; and the way back.
async fn there_and_back(fixture: &Fixture, flags: &[&str]) -> Result<()> {
    let state_a = async || {
        fixture.web("api", &[("http", 80)]).await?;
        fixture.annotate("web", json!({"kube-consul.io/service-tags": null})).await
    };
    fixture.web("web", &[("http", 80), ("metrics", 9090)]).await?;
    state_a().await?;
    let first = json_plan(fixture, 2, flags).await?;
    // Five records, the owner key and the sentinel, or the two nodes.
    let sink = if flags.contains(&"catalog") { "catalog" } else { "agent" };
    let wanted = if sink == "agent" { 7 } else { 8 };
    ensure!(first["state"] == "new" && first["summary"]["add"] == wanted, "{first}");
    ensure!(fixture.consul.api().key(OWNER).await?.is_none(), "the plan took the name");
    sync(fixture, flags).await?;
    let empty = json_plan(fixture, 0, flags).await?;
    ensure!(empty["state"] == "known" && empty["services"] == json!([]), "{empty}");
    ensure!(plan(fixture, 0, flags).await?.contains("nothing to change"));

    let (web, api) = (fixture.cluster_ip("web").await?, fixture.cluster_ip("api").await?);
    fixture.delete("api").await?;
    fixture.web("new", &[("http", 80)]).await?;
    fixture.annotate("web", json!({"kube-consul.io/service-tags": "blue"})).await?;
    let new = fixture.cluster_ip("new").await?;
    let words = [(&*web, "WEB"), (&*api, "API"), (&*new, "NEW")];
    let json = [flags, &["--output", "json"]].concat();
    let there = anonymous(fixture, &plan(fixture, 2, &json).await?, &words);
    let there: Value = serde_json::from_str(&there)?;
    let text = anonymous(fixture, &plan(fixture, 2, flags).await?, &words);
    ensure!(text == golden(sink), "found:\n{text}\nexpected:\n{}", golden(sink));
    sync(fixture, flags).await?;
    json_plan(fixture, 0, flags).await?;

    fixture.delete("new").await?;
    state_a().await?;
    let api = fixture.cluster_ip("api").await?;
    let words = [(&*web, "WEB"), (&*api, "API"), (&*new, "NEW")];
    let back = anonymous(fixture, &plan(fixture, 2, &json).await?, &words);
    let back: Value = serde_json::from_str(&back)?;
    ensure!(back == reversed(&there), "there: {there:#}\nback: {back:#}");
    sync(fixture, flags).await?;
    json_plan(fixture, 0, flags).await.map(drop)
}

fn golden(sink: &str) -> String {
    format!(
        "\
kubernetes, sink {sink}: 2 to add, 2 to change, 2 to remove

NS/api
  - kubernetes_NS_api_http_API  api
      address: API
      port: 80
      tags: NS,http
      meta.external-k8s-ns: NS
      meta.external-k8s-service: api
      meta.external-source: kubernetes
      meta.kube-consul-cluster: kubernetes
      meta.port-http: 80
  - API-KEY
      value: api.service.dc1.consul

NS/new
  + kubernetes_NS_new_http_NEW  new
      address: NEW
      port: 80
      tags: NS,http
      meta.external-k8s-ns: NS
      meta.external-k8s-service: new
      meta.external-source: kubernetes
      meta.kube-consul-cluster: kubernetes
      meta.port-http: 80
  + NEW-KEY
      value: new.service.dc1.consul

NS/web
  ~ kubernetes_NS_web_http_WEB  web
      tags: NS,http -> NS,http,blue
  ~ kubernetes_NS_web_metrics_WEB  web-metrics
      tags: NS,metrics -> NS,metrics,blue
"
    )
}

#[tokio::test]
async fn a_plan_for_the_agent_and_its_way_back() -> Result<()> {
    let fixture = Fixture::new("plan").await?;
    there_and_back(&fixture, &[]).await?;
    // Without the sentinel the agent's state is lost.
    let sentinel = "/v1/agent/service/deregister/_kube-consul_kubernetes";
    fixture.consul.api().put(sentinel, &Value::Null).await?;
    let lost = json_plan(&fixture, 2, &[]).await?;
    ensure!(lost["state"] == "lost" && lost["services"] == json!([]), "{lost}");
    let what = lost["own"][0]["what"].as_str().context("no sentinel")?;
    ensure!(what.contains("_kube-consul_kubernetes"), "{lost}");
    Ok(())
}

#[tokio::test]
async fn a_plan_for_the_catalog_and_its_way_back() -> Result<()> {
    let fixture = Fixture::new("plan").await?;
    let catalog = ["--sink", "catalog"];
    there_and_back(&fixture, &catalog).await?;
    // A node goes with the last record on it, unless others have something there.
    let without = [&catalog[..], &["--selector", "app=none"]].concat();
    let node = format!("k8s-kubernetes.{}", fixture.namespace);
    let held = json_plan(&fixture, 2, &without).await?;
    ensure!(held["own"][0]["held"] == "selection", "everything would go: {held}");
    let without = [&without[..], &["--allow-removals"]].concat();
    let plan = json_plan(&fixture, 2, &without).await?;
    let removed = json!([{"action": "remove", "what": format!("node {node}"), "held": null}]);
    ensure!(plan["own"] == removed, "{plan}");
    let foreign = json!({"Node": node, "SkipNodeUpdate": true,
        "Service": {"ID": "theirs", "Service": "theirs"}});
    fixture.consul.api().put("/v1/catalog/register", &foreign).await?;
    let plan = json_plan(&fixture, 2, &without).await?;
    ensure!(plan["own"] == json!([]), "{plan}");
    ensure!(plan["problems"][0]["reason"] == "ForeignOnNode", "{plan}");
    Ok(())
}

#[tokio::test]
async fn a_plan_tells_by_its_exit_code() -> Result<()> {
    let fixture = Fixture::new("plan").await?;
    let proxy = "--kube-url=http://127.0.0.1:1";
    // 2 means changes: wrong usage is 1.
    for (arguments, expected) in [
        (&["plan", "--nonsense"][..], "--nonsense"),
        (&["--log-level", "info", "plan", "--cluster", "Not_A_Label"], "Not_A_Label"),
        (&["plan", proxy, "--health", "always"], "--health always"),
        (&["plan", proxy, "--log-level", "a=b=c"], "--log-level"),
        (&["plan", "--kubeconfig", "/nowhere"], "/nowhere"),
    ] {
        let said = ends_with(1, kube_consul().args(arguments)).await?;
        ensure!(said.contains(expected), "{arguments:?}: {said}");
    }
    ensure!(says(0, kube_consul().args(["plan", "--help"])).await?.contains("--output"));
    let nobody = format!("http://127.0.0.1:{}", Port::pick()?.number());
    let silent = fixture.subcommand("plan").await?.arg("--timeout=1s");
    let said = ends_with(1, silent.env("CONSUL_HTTP_ADDR", nobody)).await?;
    ensure!(said.contains("--timeout") && said.contains("Consul"), "{said}");

    let consul = fixture.consul.api();
    consul.put_text(&format!("/v1/kv/{OWNER}"), OTHER_UID).await?;
    let said = ends_with(3, fixture.subcommand("plan").await?).await?;
    ensure!(said.contains(OTHER_UID) && said.contains("--adopt"), "{said}");
    let adopted = json_plan(&fixture, 2, &["--adopt", OTHER_UID]).await?;
    let what = adopted["own"][0]["what"].as_str().unwrap_or_default();
    ensure!(what.contains(&format!("{OTHER_UID} -> ")), "{adopted}");
    ensure!(consul.key(OWNER).await?.as_deref() == Some(OTHER_UID), "the plan adopted");
    Ok(())
}

#[tokio::test]
async fn a_plan_shows_what_is_held_back_and_what_is_wrong() -> Result<()> {
    let fixture = Fixture::new("plan").await?;
    let names: Vec<String> = (0..20).map(|number| format!("p{number}")).collect();
    let ports: Vec<(&str, u16)> = names.iter().map(String::as_str).zip(80..).collect();
    fixture.web("web", &ports).await?;
    sync(&fixture, &[]).await?;
    let none = ["--selector", "app=none"];
    let held = json_plan(&fixture, 2, &none).await?;
    let counts = json!({"add": 0, "change": 0, "remove": 0, "held": 21, "kept": 0});
    ensure!(held["summary"] == counts, "{held}");
    let changes = held["services"][0]["changes"].as_array().context("no changes")?;
    ensure!(changes.iter().all(|it| it["held"] == "selection"), "{held}");
    ensure!(plan(&fixture, 2, &none).await?.contains("held back until --allow-removals"));
    let allowed = json_plan(&fixture, 2, &["--selector=app=none", "--allow-removals"]).await?;
    // The PTR record goes with its instances.
    let counts = json!({"add": 0, "change": 0, "remove": 21, "held": 0, "kept": 0});
    ensure!(allowed["summary"] == counts, "{allowed}");
    // Nodes are asked for when a Service needs them; another test may have given the shipped
    // account the right to them.
    let rights = shipped_rules(fixture.kubernetes).await?;
    let limited = fixture.kubernetes.namespace("limited").await?;
    let kubeconfig = kubeconfig_with(fixture.kubernetes, &limited, &rights).await?;
    let by_node_port = kube_consul()
        .args(["plan", "--address=node-port", "--allow-removals"])
        .args(["--namespace", &fixture.namespace, "--kubeconfig"])
        .arg(kubeconfig)
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let denied = says(0, by_node_port).await?;
    ensure!(denied.contains("Denied: node ports cannot be registered"), "{denied}");
    ensure!(denied.contains("nothing to change"), "something would go: {denied}");

    let theirs = json!({"Node": "theirs", "Address": "10.9.9.9", "Service": {"Service": "db"}});
    fixture.consul.api().put("/v1/catalog/register", &theirs).await?;
    fixture.web("db", &[("sql", 5432)]).await?;
    fixture.annotate("web", json!({"kube-consul.io/service-weight": "heavy"})).await?;
    let plan = json_plan(&fixture, 0, &[]).await?;
    let problems = plan["problems"].as_array().context("no problems")?;
    let problems: Vec<_> = problems.iter().map(|it| (&it["name"], &it["reason"])).collect();
    let wanted =
        [(&json!("db"), &json!("ForeignName")), (&json!("web"), &json!("InvalidAnnotation"))];
    ensure!(problems == wanted, "{plan}");
    Ok(())
}
