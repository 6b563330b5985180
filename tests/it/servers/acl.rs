//! Policies and tokens, and what may be asked without one.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType;
use kube_consul_stack::{eventually, program_path};
use serde_json::Value;

use super::scenarios;
use super::support::{START_DEADLINE, Servers, object, rendered, shared_secrets};
use crate::support::{Dns, manifest};

/// The tokens that the job makes, each with its one policy, and which Secret has it.
const TOKENS: [(&str, &str, &str); 10] = [
    ("consul-server-acl", "token", "consul-server"),
    ("consul-server-acl", "dns-token", "consul-dns"),
    ("consul-agent-acl", "token", "consul-node-agent"),
    ("consul-snapshot-acl", "token", "consul-snapshot"),
    ("kube-consul-acl", "agent-token", "kube-consul-agent"),
    ("kube-consul-acl", "token", "kube-consul-bridge-agent"),
    ("kube-consul-acl", "catalog-token", "kube-consul-bridge-catalog"),
    ("kube-consul-node-acl", "token", "kube-consul-node"),
    ("kube-consul-import-acl", "token", "kube-consul-import"),
    ("consul-acl", "agent-token", "kube-consul-hook"),
];

/// Calls of Consul after which the job is killed: the first, in the middle of the policies, at
/// their end, and after each of a token's three.
const KILLED_AFTER: [u32; 8] = [1, 2, 7, 21, 22, 23, 24, 25];

/// Runs the real program and then kills the job, whose processes are a group, after so many calls.
const KILLER: &str = r#"#!/bin/sh
calls=$(($(cat "$0.calls") + 1))
echo "$calls" >"$0.calls"
@CONSUL@ "$@"
status=$?
[ "$calls" -lt "$(cat "$0.limit")" ] || kill -9 0
exit "$status"
"#;

#[tokio::test]
async fn s7_the_acl_job_may_be_killed_anywhere_and_run_twice_and_s13_dns_has_a_token() -> Result<()>
{
    scenarios::run("acl").await
}

pub async fn job() -> Result<()> {
    let mut servers = Servers::new("consul-servers-single", shared_secrets().await?).await?;
    servers.boot(0).await?;
    eventually(START_DEADLINE, || servers.leader_seen_by(0)).await?;
    // S13: under default deny DNS answers nothing without a token.
    let address = servers.member(0)?.pod.address();
    let dns = Dns::new(SocketAddr::from((address, 8600)))?;
    let found = dns.ask("consul.service.consul", RecordType::A).await.unwrap_or_default();
    ensure!(found.is_empty(), "it answers without a token: {found:?}");

    for limit in KILLED_AFTER {
        let job = servers.acl_pod().await?;
        let consul = job.bin().join("consul");
        fs::remove_file(&consul)?;
        let real = program_path("consul")?.display().to_string();
        fs::write(&consul, KILLER.replace("@CONSUL@", &real))?;
        fs::set_permissions(&consul, fs::Permissions::from_mode(0o755))?;
        fs::write(job.bin().join("consul.calls"), "0")?;
        fs::write(job.bin().join("consul.limit"), limit.to_string())?;
        let status = job.start("acl").await?.wait(START_DEADLINE).await?;
        ensure!(status.code().is_none(), "not killed after {limit} calls: {status}");
    }
    tokio::try_join!(servers.run_acl_job(), servers.run_acl_job())?;

    let api = servers.api(0)?;
    for (secret, key, policy) in TOKENS {
        let token = servers.objects.secret(secret, key)?;
        let found = api.with_token(Some(&token)).get("/v1/acl/token/self").await?;
        let policies = found["Policies"].as_array().context("no policies")?;
        ensure!(policies.len() == 1 && policies[0]["Name"] == policy, "{secret} {key}: {found}");
    }
    let all = api.get("/v1/acl/tokens").await?;
    // And the anonymous one and that of management.
    ensure!(all.as_array().map(Vec::len) == Some(TOKENS.len() + 2), "{all}");

    // One replica becomes ready (S4), without anybody else to ask.
    servers.wait_started(0, START_DEADLINE).await?;
    dns.wait_for("consul.service.consul", RecordType::A, &[&address.to_string()]).await?;
    // S14: what is not Consul's is nowhere asked for, and an unknown address has no name.
    let other = dns.ask("example.test", RecordType::A).await.unwrap_or_default();
    let unknown = dns.ask("1.2.0.192.in-addr.arpa", RecordType::PTR).await.unwrap_or_default();
    ensure!(other.is_empty() && unknown.is_empty(), "{other:?} {unknown:?}");
    Ok(())
}

#[tokio::test]
async fn the_policies_of_the_job_are_the_shipped_ones() -> Result<()> {
    let objects = rendered("consul-servers").await?;
    let map = object(&objects, "ConfigMap", "consul-acl-policies")?;
    let copies = map["data"].as_object().context("no data")?;
    let mut shipped = BTreeSet::new();
    for entry in fs::read_dir(manifest("consul"))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|it| it.to_str()).unwrap_or_default().to_owned();
        // Its token is for an operator's own hands.
        let is_policy = path.extension().is_some_and(|it| it == "hcl");
        if !is_policy || name == "purge.hcl" {
            continue;
        }
        let copy = copies.get(&name).and_then(Value::as_str);
        ensure!(copy == Some(&fs::read_to_string(&path)?), "{name} and its copy differ");
        shipped.insert(name);
    }
    ensure!(copies.keys().cloned().collect::<BTreeSet<_>>() == shipped, "{shipped:?}");
    Ok(())
}
