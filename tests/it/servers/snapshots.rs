//! Snapshots, and what they bring back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Kubernetes, Pod, Program, eventually, program_path};
use serde_json::json;

use super::scenarios;
use super::support::{START_DEADLINE, Servers, installed, make_secrets, object, rendered};

/// Runs the real program, and cuts off the end of what it has saved.
const TRUNCATES: &str = r#"#!/bin/sh
@CONSUL@ "$@" || exit
[ "$2" != save ] || truncate -s -200 "$3"
"#;

/// The pod of the `CronJob`, keeping two snapshots.
async fn snapshot_pod(servers: &Servers) -> Result<Pod> {
    let objects = rendered("consul-servers").await?;
    let job = object(&objects, "CronJob", "consul-snapshot")?;
    let mut spec = job["spec"]["jobTemplate"]["spec"]["template"]["spec"].clone();
    let variables = spec["containers"][0]["env"].as_array_mut().context("no variables")?;
    let keep = variables.iter_mut().find(|it| it["name"] == "KEEP").context("no KEEP")?;
    keep["value"] = json!("2");
    servers.pod(&spec, "consul-snapshot", servers.network.address(253))
}

fn saved(pod: &Pod) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(pod.volume("snapshots")?)? {
        found.push(entry?.path());
    }
    found.sort();
    Ok(found)
}

async fn restore(servers: &Servers, snapshot: &Path) -> Result<()> {
    let token = servers.objects.secret("consul-acl-management", "token")?;
    let pod = snapshot_pod(servers).await?;
    // As the documentation says, with the management token.
    let file = snapshot.display().to_string();
    let token = format!("-token={token}");
    let command = pod.command_in("snapshot", &["consul", "snapshot", "restore", &token, &file])?;
    let program = Program::start("consul-restore", command).await?;
    program.wait_for_code(0, START_DEADLINE).await
}

async fn is_back(servers: &Servers) -> Result<()> {
    let api = servers.api(0)?;
    ensure!(api.key("a/key").await?.as_deref() == Some("its value"), "the key is not back");
    let found = api.get("/v1/catalog/service/billing").await?;
    ensure!(found[0]["ServiceAddress"] == "192.0.2.7", "the service is not back: {found}");
    Ok(())
}

/// How many servers there are.
const SERVERS: u8 = 3;

/// A new installation: no data.
async fn fresh(servers: &mut Servers) -> Result<()> {
    for ordinal in 0..SERVERS {
        servers.lose(ordinal).await?;
        servers.wipe(ordinal)?;
    }
    servers.boot_all(0..SERVERS).await?;
    eventually(START_DEADLINE, || servers.leader_seen_by(0)).await?;
    // Once the leader has made the management token.
    let api = servers.api(0)?;
    let nothing = eventually(START_DEADLINE, || api.key("a/key")).await?;
    ensure!(nothing.is_none(), "it is not fresh");
    Ok(())
}

async fn all_started(servers: &Servers) -> Result<()> {
    for ordinal in 0..SERVERS {
        servers.wait_started(ordinal, START_DEADLINE).await?;
    }
    Ok(())
}

#[tokio::test]
async fn s9_a_verified_snapshot_brings_all_back_with_the_secrets_kept_and_with_them_lost()
-> Result<()> {
    scenarios::run("snapshots").await
}

pub async fn snapshots() -> Result<()> {
    let mut servers = Servers::started(SERVERS).await?;
    let api = servers.api(0)?;
    api.put_text("/v1/kv/a/key", "its value").await?;
    let billing = json!({"Node": "machine", "Address": "192.0.2.1",
        "Service": {"Service": "billing", "Address": "192.0.2.7", "Port": 80}});
    api.put("/v1/catalog/register", &billing).await?;

    let pod = snapshot_pod(&servers).await?;
    pod.start("snapshot").await?.wait_for_code(0, START_DEADLINE).await?;
    let first = saved(&pod)?;
    ensure!(first.len() == 1, "{first:?}");
    // What cannot be read back does not count, and removes nothing.
    let broken = snapshot_pod(&servers).await?;
    let consul = broken.bin().join("consul");
    fs::remove_file(&consul)?;
    let real = program_path("consul")?.display().to_string();
    fs::write(&consul, TRUNCATES.replace("@CONSUL@", &real))?;
    fs::set_permissions(&consul, fs::Permissions::from_mode(0o755))?;
    let program = broken.start("snapshot").await?;
    program.wait_for_code(1, START_DEADLINE).await?;
    let counted = |it: &&PathBuf| it.extension().is_some_and(|it| it == "snap");
    let named =
        |it: &&PathBuf| !it.file_name().is_some_and(|it| it.to_string_lossy().starts_with('.'));
    let after = saved(&pod)?;
    let after: Vec<_> = after.iter().filter(counted).filter(named).collect();
    ensure!(after == [&first[0]], "{after:?}");
    // The last two are kept.
    let folder = pod.volume("snapshots")?;
    for name in ["consul-20200101T000000Z.snap", "consul-20200102T000000Z.snap"] {
        fs::copy(&first[0], folder.join(name))?;
    }
    pod.start("snapshot").await?.wait_for_code(0, START_DEADLINE).await?;
    let kept = saved(&pod)?;
    ensure!(
        kept.len() == 2 && kept.iter().all(|it| !it.ends_with("0101T000000Z.snap")),
        "{kept:?}"
    );
    ensure!(kept[0] == first[0] || kept[0].ends_with("consul-20200102T000000Z.snap"), "{kept:?}");
    let snapshot = kept[1].clone();

    // All data is lost, the Secrets are kept.
    fresh(&mut servers).await?;
    restore(&servers, &snapshot).await?;
    all_started(&servers).await?;
    is_back(&servers).await?;

    // Both are lost: other Secrets, another CA. The snapshot's tokens are not theirs.
    let cluster = Kubernetes::shared().await?;
    let namespace = cluster.namespace("secrets").await?;
    make_secrets(cluster, &namespace).await?;
    servers.objects = installed(&namespace, &["consul-servers"]).await?;
    fresh(&mut servers).await?;
    restore(&servers, &snapshot).await?;
    servers.run_acl_job().await?;
    all_started(&servers).await?;
    is_back(&servers).await
}
