//! From the IDs before an endpoint was an address and a port to those of today.

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::SRV;
use kube_consul_stack::eventually;
use serde_json::{Value, json};

use super::support::{endpoint, headless, http};
use crate::support::{DEADLINE, Fixture, InvariantMonitor, ends_with, says};

const OLD: [&str; 3] = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];

#[tokio::test]
async fn an_upgrade_moves_endpoints_without_a_gap_in_the_agent() -> Result<()> {
    upgrade(&[], "").await
}

#[tokio::test]
async fn an_upgrade_moves_endpoints_without_a_gap_in_the_catalog() -> Result<()> {
    upgrade(&["--sink", "catalog"], "k8s-kubernetes.").await
}

async fn upgrade(flags: &[&str], node: &str) -> Result<()> {
    let fixture = Fixture::new("upgrade").await?;
    let endpoints = OLD.map(|address| endpoint(address, address != OLD[2]));
    fixture.slice("web", 1, http(8080), json!(endpoints)).await?;
    let spec = headless(&json!([{"name": "http", "port": 80}]));
    fixture.service("web", json!({}), spec).await?;
    let once = fixture.command().await?.args(flags).arg("--once");
    ends_with(0, once).await?;
    let namespace = fixture.namespace.as_str();
    let node = if node.is_empty() { String::new() } else { format!("{node}{namespace}") };
    for instance in fixture.instances("web").await? {
        as_before(&fixture, &node, &instance).await?;
    }
    let ids = async |wanted: &dyn Fn(&str) -> String| {
        let wanted: Vec<String> = OLD.iter().map(|address| wanted(address)).collect();
        eventually(DEADLINE, || async {
            let found = fixture.instances("web").await?;
            let ids = found.iter().filter_map(|it| it["Service"]["ID"].as_str());
            let mut ids: Vec<&str> = ids.collect();
            ids.sort_unstable();
            ensure!(ids == wanted, "{ids:?}, want {wanted:?}");
            Ok(())
        })
        .await
    };
    let old = |address: &str| format!("kubernetes_{namespace}_web_http_{address}");
    let new = |address: &str| format!("kubernetes_{namespace}_web_http_8080_{address}");
    ids(&old).await?;

    let plan = fixture.subcommand("plan").await?.args(flags);
    let plan: Value = serde_json::from_str(&says(2, plan.args(["--output", "json"])).await?)?;
    let summary = json!({"add": 3, "change": 0, "remove": 3, "held": 0, "kept": 0});
    ensure!(plan["summary"] == summary, "{plan}");
    let shown = plan["services"][0]["changes"].as_array().context("no changes")?;
    for address in OLD {
        for (action, id) in [("add", new(address)), ("remove", old(address))] {
            let is_it = |it: &&Value| it["action"] == action && it["key"] == *id;
            ensure!(shown.iter().any(|it| is_it(&it)), "no {action} {id}: {plan}");
        }
    }

    let dns = fixture.dns()?;
    let monitor = InvariantMonitor::start(move || {
        let dns = dns.clone();
        async move {
            let mut found = dns.ask("web.service.consul", SRV).await?;
            found.dedup();
            Ok(if found == ["port 8080 weight 1"] { vec![] } else { vec![format!("{found:?}")] })
        }
    });
    let addresses = fixture.dns()?;
    let both = InvariantMonitor::start(move || {
        let dns = addresses.clone();
        async move {
            let name = "web.service.consul";
            let found = dns.ask(name, hickory_resolver::proto::rr::RecordType::A).await?;
            Ok(if found == OLD[..2] { vec![] } else { vec![format!("{found:?}")] })
        }
    });
    let bridge = fixture.bridge_with(flags).await?;
    ids(&new).await?;
    monitor.finish("ports during an upgrade").await?;
    both.finish("addresses during an upgrade").await?;
    bridge.stop().await
}

/// Gives an instance the ID that it had before.
async fn as_before(fixture: &Fixture, node: &str, instance: &Value) -> Result<()> {
    let service = &instance["Service"];
    let new = service["ID"].as_str().context("no ID")?;
    let old = new.replace("_8080_", "_");
    let critical = instance["Checks"].to_string().contains("critical");
    let api = fixture.consul.api();
    let check = "Kubernetes readiness";
    if node.is_empty() {
        let mut body = json!({"ID": old, "Name": "web", "Address": service["Address"],
            "Port": service["Port"], "Tags": service["Tags"], "Meta": service["Meta"]});
        if critical {
            body["Check"] = json!({"CheckID": format!("{old}:readiness"), "Name": check,
                "TTL": "24h", "Status": "critical"});
        }
        api.put("/v1/agent/service/register", &body).await?;
        api.put(&format!("/v1/agent/service/deregister/{new}"), &Value::Null).await?;
        return Ok(());
    }
    let mut body = json!({"Node": node, "SkipNodeUpdate": true, "Service": {
        "ID": old, "Service": "web", "Address": service["Address"], "Port": service["Port"],
        "Tags": service["Tags"], "Meta": service["Meta"]}});
    if critical {
        body["Check"] = json!({"CheckID": format!("{old}:readiness"), "Name": check,
            "ServiceID": old, "ServiceName": "web", "Status": "critical"});
    }
    api.put("/v1/catalog/register", &body).await?;
    api.put("/v1/catalog/deregister", &json!({"Node": node, "ServiceID": new})).await?;
    Ok(())
}
