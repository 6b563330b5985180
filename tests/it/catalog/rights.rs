//! Consul denies by default: the shipped policy suffices, what it does not allow harms only
//! itself, and rights that are taken away remove nothing.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::{ConsulApi, ConsulOptions, data_folder, eventually};
use serde_json::json;
use tokio::time::sleep;

use super::support::{any_tag, wait_for_registered, watch_names};
use crate::support::{Bridge, DEADLINE, Fixture, manifest, numbered};

/// The name for which the shipped policy is.
const CLUSTER: &str = "kubernetes";
const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const FIRST: &str = "22222222-2222-2222-2222-222222222222";
const SECOND: &str = "33333333-3333-3333-3333-333333333333";
/// For so long it goes on trying, every second, after it has said that it may not.
const WITHOUT: Duration = Duration::from_secs(5);
/// A denied write is tried again within a minute.
const HEALED: Duration = Duration::from_secs(90);

async fn set_policy(consul: &ConsulApi, rules: &str) -> Result<()> {
    let policy = consul.get("/v1/acl/policy/name/bridge").await?;
    let path = policy["ID"].as_str().map(|id| format!("/v1/acl/policy/{id}"));
    let path = path.unwrap_or_else(|| "/v1/acl/policy".to_owned());
    let body = json!({"Name": "bridge", "ID": policy["ID"], "Rules": rules});
    consul.put(&path, &body).await.map(drop)
}

async fn make_token(consul: &ConsulApi, secret: &str) -> Result<()> {
    let policies = json!([{"Name": "bridge"}]);
    let token = json!({"SecretID": secret, "AccessorID": secret, "Policies": policies});
    consul.put("/v1/acl/token", &token).await.map(drop)
}

/// Waits until it says that it can, or cannot, work with Consul.
async fn wait_for_work(bridge: &Bridge, works: bool) -> Result<()> {
    eventually(HEALED, || async {
        let status = bridge.status().await?;
        let told = &status["leadership"];
        // It may not even ask for the lock.
        let denied = told.as_str().is_some_and(|it| it.contains("cannot be asked for"));
        ensure!((told == "leader", denied) == (works, !works), "{told}");
        ensure!(!works || status["consul"]["trouble"].is_null(), "{}", status["consul"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_denied_name_harms_only_itself_and_lost_rights_remove_nothing() -> Result<()> {
    let servers = Fixture::servers(ConsulOptions::server().acl(MANAGEMENT)).await?;
    let objects = servers.objects("rights").await?;
    let namespace = objects.namespace.as_str();
    let shipped = fs::read_to_string(manifest("consul/bridge-catalog.hcl"))?;
    let allowed = format!("{shipped}\nservice \"svc-250\" {{ policy = \"read\" }}\n");
    set_policy(servers.api(), &allowed).await?;
    make_token(servers.api(), FIRST).await?;
    let token_file = data_folder("token")?.join("token");
    fs::write(&token_file, FIRST)?;
    let command = servers.command(CLUSTER, namespace).await?;
    let command = command.env("CONSUL_HTTP_TOKEN_FILE", &token_file);
    let bridge = Bridge::start(command.args(["--leader-elect", "--resync", "1s"])).await?;
    bridge.wait_ready().await?;

    // One refused among many.
    let names = numbered("svc", 500);
    let began = Instant::now();
    objects.create_all(&names).await?;
    println!("500 Services are made after {:?}", began.elapsed());
    let mut wanted = any_tag(&names);
    wanted.remove("svc-250");
    let fixture = (CLUSTER, namespace);
    wait_for_registered(servers.api(), fixture, &wanted, DEADLINE).await?;
    println!("499 are registered after {:?}", began.elapsed());
    let why = bridge.wait_for_problem(namespace, "svc-250", "Denied").await?;
    ensure!(why.contains("Permission denied") && why.contains("service:write"), "{why}");
    let status = bridge.status().await?;
    ensure!(status["counts"]["problems"] == 1, "{}", status["problems"]);
    wait_for_work(&bridge, true).await?;

    let kept: Vec<String> = wanted.keys().cloned().collect();
    let monitor = watch_names(servers.api(), fixture, &kept).await?;
    let changed = |tag: &str| {
        let mut changed: BTreeMap<_, _> = wanted.clone();
        changed.insert("svc-001".to_owned(), tag.to_owned());
        changed
    };

    // The policy is changed: nothing but the keys may be read or written.
    let keys: Vec<&str> = shipped.lines().filter(|line| line.starts_with("key_prefix")).collect();
    set_policy(servers.api(), &keys.join("\n")).await?;
    objects.tag("svc-001", "without-rights").await?;
    let why = bridge.wait_for_problem(namespace, "svc-001", "Denied").await?;
    ensure!(why.contains("Permission denied"), "{why}");
    wait_for_work(&bridge, false).await?;
    sleep(WITHOUT).await;
    set_policy(servers.api(), &allowed).await?;
    let healed = changed("without-rights");
    wait_for_registered(servers.api(), fixture, &healed, HEALED).await?;
    wait_for_work(&bridge, true).await?;
    bridge.wait_for_no_problem(namespace, "svc-001").await?;

    // The token is deleted, and its file is blank: from then on nothing is visible.
    fs::write(&token_file, "\n")?;
    servers.api().delete(&format!("/v1/acl/token/{FIRST}")).await?;
    objects.tag("svc-001", "without-token").await?;
    wait_for_work(&bridge, false).await?;
    sleep(WITHOUT).await;
    make_token(servers.api(), SECOND).await?;
    fs::write(&token_file, SECOND)?;
    let healed = changed("without-token");
    wait_for_registered(servers.api(), fixture, &healed, HEALED).await?;
    wait_for_work(&bridge, true).await?;
    bridge.wait_for_no_problem(namespace, "svc-001").await?;
    monitor.finish_with_gaps("rights and token taken away").await?;
    bridge.stop().await
}
