//! Reverse-DNS records in the KV store.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use kube_consul_stack::{Endpoint, ServiceKind, eventually};
use serde_json::{Value, json};

use crate::addresses::OwnNode;
use crate::support::{Bridge, DEADLINE, Fixture, manifest, shipped_token};

/// 0x6b63 x 2^32 + FNV-1a-32 of "kubernetes", the default of `--cluster`.
const OURS: u64 = 0x6b63_0000_0000 + 0x74af_b95d;
/// Likewise of "a", by the published test vector.
const OF_CLUSTER_A: u64 = 0x6b63_0000_0000 + 0xe40c_292c;

/// The key as the users of kube2consul wrote it by hand.
fn key_of(address: &str) -> Result<String> {
    let [a, b, c, d] = address.parse::<Ipv4Addr>()?.octets();
    Ok(format!("0.{c}.{b}.{a}.IN-ADDR.ARPA/{a}.{b}.{c}.{d}"))
}

/// Value and flags of a key.
async fn record(fixture: &Fixture, key: &str) -> Result<Option<(String, u64)>> {
    let Some(value) = fixture.consul.api().key(key).await? else { return Ok(None) };
    let entry = fixture.consul.api().get(&format!("/v1/kv/{key}")).await?;
    Ok(Some((value, entry[0]["Flags"].as_u64().unwrap_or_default())))
}

async fn wait_for_record(fixture: &Fixture, key: &str, wanted: Option<(&str, u64)>) -> Result<()> {
    let wanted = wanted.map(|(value, flags)| (value.to_owned(), flags));
    eventually(DEADLINE, || async {
        let found = record(fixture, key).await?;
        ensure!(found == wanted, "{key} is {found:?}, want {wanted:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_ptr_record_follows_its_service() -> Result<()> {
    let fixture = Fixture::new("reverse").await?;
    let bridge = fixture.bridge().await?;
    fixture.web("web", &[("http", 80), ("metrics", 9090)]).await?;
    let first = key_of(&fixture.cluster_ip("web").await?)?;
    wait_for_record(&fixture, &first, Some(("web.service.dc1.consul", OURS))).await?;
    fixture.annotate("web", json!({"kube-consul.io/service-name": "shop"})).await?;
    wait_for_record(&fixture, &first, Some(("shop.service.dc1.consul", OURS))).await?;

    fixture.delete("web").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let second = key_of(&fixture.cluster_ip("web").await?)?;
    wait_for_record(&fixture, &second, Some(("web.service.dc1.consul", OURS))).await?;
    wait_for_record(&fixture, &first, None).await?;

    fixture.annotate("web", json!({"kube-consul.io/sync": "false"})).await?;
    wait_for_record(&fixture, &second, None).await?;
    fixture.annotate("web", json!({"kube-consul.io/sync": null})).await?;
    wait_for_record(&fixture, &second, Some(("web.service.dc1.consul", OURS))).await?;
    fixture.delete("web").await?;
    wait_for_record(&fixture, &second, None).await?;
    ensure!(bridge.status().await?["counts"]["ptr_records"] == 0);
    Ok(())
}

#[tokio::test]
async fn only_services_have_ptr_records_unless_all_are_asked_for() -> Result<()> {
    let fixture = Fixture::new("pods").await?;
    let (kind, ports) = (ServiceKind::HeadlessSelectorless, [("sql", 5432)]);
    fixture.kubernetes.service(&fixture.namespace, "db", kind, &ports).await?;
    fixture.endpoints("db", &[Endpoint::ready("10.9.8.7")], &ports).await?;
    let key = "0.8.9.10.IN-ADDR.ARPA/10.9.8.7";
    for (scope, wanted) in
        [("services", None), ("all", Some(("db.service.dc1.consul", OURS))), ("off", None)]
    {
        let command = fixture.command().await?.args(["--reverse-dns", scope]);
        let bridge = Bridge::start(command).await?;
        bridge.wait_ready().await?;
        fixture.wait_for_instances("db", 1).await?;
        wait_for_record(&fixture, key, wanted).await?;
        bridge.stop().await?;
    }
    Ok(())
}

/// N9: a pod with `hostNetwork` has its node's address, which is no Service's.
#[tokio::test]
async fn n9_a_host_network_pod_has_no_ptr_record() -> Result<()> {
    let fixture = Fixture::new("host").await?;
    shipped_token(fixture.kubernetes).await?;
    fixture.kubernetes.apply_file(&manifest("optional/nodes-rbac.yaml")).await?;
    let node = OwnNode::create(&fixture, "host", &[("InternalIP", "10.66.0.1")]).await?;
    let kind = ServiceKind::HeadlessSelectorless;
    fixture.kubernetes.service(&fixture.namespace, "db", kind, &[("sql", 5432)]).await?;
    let on = |node: &OwnNode, address: &str| {
        let ready = json!({"ready": true});
        json!({"addresses": [address], "nodeName": node.name, "conditions": ready})
    };
    let sql = || json!([{"name": "sql", "port": 5432, "protocol": "TCP"}]);
    let both = json!([on(&node, "10.66.0.1"), on(&node, "10.66.1.1")]);
    fixture.slice("db", 1, sql(), both).await?;
    let (of_node, of_pod) = (key_of("10.66.0.1")?, key_of("10.66.1.1")?);
    let wanted = Some(("db.service.dc1.consul", OURS));
    let bridge = Bridge::start(fixture.command().await?.arg("--reverse-dns=all")).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("db", 2).await?;
    wait_for_record(&fixture, &of_pod, wanted).await?;
    ensure!(record(&fixture, &of_node).await?.is_none(), "a node's address has a record");
    // A node that comes later, and one that goes.
    let later = OwnNode::create(&fixture, "later", &[("InternalIP", "10.66.0.2")]).await?;
    let both = json!([on(&node, "10.66.0.1"), on(&later, "10.66.0.2")]);
    fixture.slice("db", 1, sql(), both).await?;
    wait_for_record(&fixture, &of_pod, None).await?;
    ensure!(record(&fixture, &key_of("10.66.0.2")?).await?.is_none());
    node.delete().await?;
    wait_for_record(&fixture, &of_node, wanted).await?;
    later.delete().await?;
    bridge.stop().await
}

#[tokio::test]
async fn the_datacenter_and_the_domain_come_from_flags_where_they_are_given() -> Result<()> {
    let fixture = Fixture::new("zone").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let flags = ["--datacenter=east", "--dns-domain=example.com"];
    let bridge = Bridge::start(fixture.command().await?.args(flags)).await?;
    bridge.wait_ready().await?;
    let key = key_of(&fixture.cluster_ip("web").await?)?;
    let found = record(&fixture, &key).await?;
    ensure!(found == Some(("web.service.east.example.com".to_owned(), OURS)), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn keys_of_others_are_left_as_they_are() -> Result<()> {
    let fixture = Fixture::new("foreign").await?;
    let consul = fixture.consul.api();
    let names = ["equal", "other", "cluster", "marked", "free"];
    let mut keys = Vec::new();
    for name in names {
        fixture.web(name, &[("http", 80)]).await?;
        keys.push(key_of(&fixture.cluster_ip(name).await?)?);
    }
    let put = |index: usize, value: &'static str, flags: u64| {
        let path = format!("/v1/kv/{}?flags={flags}", keys[index]);
        async move { consul.put_text(&path, value).await }
    };
    put(0, "equal.service.dc1.consul", 0).await?;
    put(1, "printer.example.com", 42).await?;
    put(2, "web.service.dc1.consul", OF_CLUSTER_A).await?;
    put(3, "stale.service.dc1.consul", OURS).await?;
    let before = consul.get("/v1/kv/0.?recurse").await?;

    let command = fixture.command().await?.arg("--resync=1s");
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let after = consul.get("/v1/kv/0.?recurse").await?;
    for key in &keys[..3] {
        let entry = |all: &Value| all.as_array()?.iter().find(|it| it["Key"] == **key).cloned();
        ensure!(entry(&before) == entry(&after), "{key} was {before}, is {after}");
    }
    wait_for_record(&fixture, &keys[3], Some(("marked.service.dc1.consul", OURS))).await?;
    wait_for_record(&fixture, &keys[4], Some(("free.service.dc1.consul", OURS))).await?;
    let status = bridge.status().await?;
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    ensure!(problems.len() == 1, "{problems:?}");
    let problem = &problems[0];
    ensure!(problem["name"] == "other" && problem["reason"] == "ForeignPtrRecord");
    let message = problem["message"].as_str().unwrap_or_default();
    for part in [keys[1].as_str(), "printer.example.com", "other.service.dc1.consul"] {
        ensure!(message.contains(part), "{message}");
    }
    // All of them are registered nonetheless.
    for name in names {
        fixture.wait_for_instances(name, 1).await?;
    }

    // The next reading sees that the key is free.
    consul.delete(&format!("/v1/kv/{}", keys[1])).await?;
    wait_for_record(&fixture, &keys[1], Some(("other.service.dc1.consul", OURS))).await?;
    eventually(DEADLINE, || async {
        let status = bridge.status().await?;
        ensure!(status["problems"] == json!([]), "{status}");
        Ok(())
    })
    .await?;

    // What is not ours outlives the Service.
    fixture.delete("equal").await?;
    fixture.delete("cluster").await?;
    fixture.delete("marked").await?;
    wait_for_record(&fixture, &keys[3], None).await?;
    wait_for_record(&fixture, &keys[0], Some(("equal.service.dc1.consul", 0))).await?;
    wait_for_record(&fixture, &keys[2], Some(("web.service.dc1.consul", OF_CLUSTER_A))).await
}
