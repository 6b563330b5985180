//! Reverse-DNS records in the KV store.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use kube_consul_stack::{Endpoint, ServiceKind, eventually};
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Place};

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
async fn record(place: &Place, key: &str) -> Result<Option<(String, u64)>> {
    let Some(value) = place.consul.api().key(key).await? else { return Ok(None) };
    let entry = place.consul.api().get(&format!("/v1/kv/{key}")).await?;
    Ok(Some((value, entry[0]["Flags"].as_u64().unwrap_or_default())))
}

async fn wait_for_record(place: &Place, key: &str, wanted: Option<(&str, u64)>) -> Result<()> {
    let wanted = wanted.map(|(value, flags)| (value.to_owned(), flags));
    eventually(DEADLINE, || async {
        let found = record(place, key).await?;
        ensure!(found == wanted, "{key} is {found:?}, want {wanted:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_ptr_record_follows_its_service() -> Result<()> {
    let place = Place::new("reverse").await?;
    let bridge = place.bridge().await?;
    place.web("web", &[("http", 80), ("metrics", 9090)]).await?;
    let first = key_of(&place.cluster_ip("web").await?)?;
    wait_for_record(&place, &first, Some(("web.service.dc1.consul", OURS))).await?;
    place.annotate("web", json!({"kube-consul.io/service-name": "shop"})).await?;
    wait_for_record(&place, &first, Some(("shop.service.dc1.consul", OURS))).await?;

    place.delete("web").await?;
    place.web("web", &[("http", 80)]).await?;
    let second = key_of(&place.cluster_ip("web").await?)?;
    wait_for_record(&place, &second, Some(("web.service.dc1.consul", OURS))).await?;
    wait_for_record(&place, &first, None).await?;

    place.annotate("web", json!({"kube-consul.io/sync": "false"})).await?;
    wait_for_record(&place, &second, None).await?;
    place.annotate("web", json!({"kube-consul.io/sync": null})).await?;
    wait_for_record(&place, &second, Some(("web.service.dc1.consul", OURS))).await?;
    place.delete("web").await?;
    wait_for_record(&place, &second, None).await?;
    ensure!(bridge.status().await?["counts"]["ptr_records"] == 0);
    Ok(())
}

#[tokio::test]
async fn only_services_have_ptr_records_unless_all_are_asked_for() -> Result<()> {
    let place = Place::new("pods").await?;
    let (kind, ports) = (ServiceKind::HeadlessSelectorless, [("sql", 5432)]);
    place.kubernetes.service(&place.namespace, "db", kind, &ports).await?;
    place.endpoints("db", &[Endpoint::ready("10.9.8.7")], &ports).await?;
    let key = "0.8.9.10.IN-ADDR.ARPA/10.9.8.7";
    for (scope, wanted) in
        [("services", None), ("all", Some(("db.service.dc1.consul", OURS))), ("off", None)]
    {
        let command = place.command().await?.args(["--reverse-dns", scope]);
        let bridge = Bridge::start(command).await?;
        bridge.wait_ready().await?;
        place.wait_for_instances("db", 1).await?;
        wait_for_record(&place, key, wanted).await?;
        bridge.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_datacenter_and_the_domain_come_from_flags_where_they_are_given() -> Result<()> {
    let place = Place::new("zone").await?;
    place.web("web", &[("http", 80)]).await?;
    let flags = ["--datacenter=east", "--dns-domain=example.com"];
    let bridge = Bridge::start(place.command().await?.args(flags)).await?;
    bridge.wait_ready().await?;
    let key = key_of(&place.cluster_ip("web").await?)?;
    let found = record(&place, &key).await?;
    ensure!(found == Some(("web.service.east.example.com".to_owned(), OURS)), "{found:?}");
    Ok(())
}

#[tokio::test]
async fn keys_of_others_are_left_as_they_are() -> Result<()> {
    let place = Place::new("foreign").await?;
    let consul = place.consul.api();
    let names = ["equal", "other", "cluster", "marked", "free"];
    let mut keys = Vec::new();
    for name in names {
        place.web(name, &[("http", 80)]).await?;
        keys.push(key_of(&place.cluster_ip(name).await?)?);
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

    let command = place.command().await?.arg("--resync=1s");
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let after = consul.get("/v1/kv/0.?recurse").await?;
    for key in &keys[..3] {
        let entry = |all: &Value| all.as_array()?.iter().find(|it| it["Key"] == **key).cloned();
        ensure!(entry(&before) == entry(&after), "{key} was {before}, is {after}");
    }
    wait_for_record(&place, &keys[3], Some(("marked.service.dc1.consul", OURS))).await?;
    wait_for_record(&place, &keys[4], Some(("free.service.dc1.consul", OURS))).await?;
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
        place.wait_for_instances(name, 1).await?;
    }

    // The next reading sees that the key is free.
    consul.delete(&format!("/v1/kv/{}", keys[1])).await?;
    wait_for_record(&place, &keys[1], Some(("other.service.dc1.consul", OURS))).await?;
    eventually(DEADLINE, || async {
        let status = bridge.status().await?;
        ensure!(status["problems"] == json!([]), "{status}");
        Ok(())
    })
    .await?;

    // What is not ours outlives the Service.
    place.delete("equal").await?;
    place.delete("cluster").await?;
    place.delete("marked").await?;
    wait_for_record(&place, &keys[3], None).await?;
    wait_for_record(&place, &keys[0], Some(("equal.service.dc1.consul", 0))).await?;
    wait_for_record(&place, &keys[2], Some(("web.service.dc1.consul", OF_CLUSTER_A))).await
}
