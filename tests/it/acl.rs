//! The shipped ACL policies are what the bridge and its agent work with, and no more than that:
//! Consul denies by default here, and each right is taken away once.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kube_consul_stack::{Consul, ConsulApi, ConsulOptions, Data, HttpRecorder, eventually};
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Fixture, manifest};

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const AGENT: &str = "22222222-2222-2222-2222-222222222222";
const BRIDGE: &str = "33333333-3333-3333-3333-333333333333";
/// What the catalog lacks for 90 s is a problem.
const CATALOG_DEADLINE: Duration = Duration::from_mins(3);

const PTR_KEYS: &str = "/v1/kv/0.?keys";

/// A shipped policy.
fn policy(name: &str) -> Result<String> {
    let path = manifest("consul").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// A policy without one of its rules, which is a line.
fn without(rules: &str, rule: &str) -> Result<String> {
    let kept: Vec<&str> = rules.lines().filter(|line| *line != rule).collect();
    ensure!(kept.len() + 1 == rules.lines().count(), "the policy has no line {rule}");
    Ok(kept.join("\n"))
}

/// The rules of a policy: its lines without comments.
fn rules_of(policy: &str) -> BTreeSet<&str> {
    policy.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Makes a token that may do exactly this.
async fn token(consul: &ConsulApi, secret: &str, rules: &str) -> Result<()> {
    let name = format!("policy-{secret}");
    consul.put("/v1/acl/policy", &json!({"Name": name, "Rules": rules})).await?;
    let token = json!({"SecretID": secret, "AccessorID": secret, "Policies": [{"Name": name}]});
    consul.put("/v1/acl/token", &token).await.map(drop)
}

/// The agent of a bridge's pod, with a token of these rules.
async fn agent_of(fixture: &Fixture, rules: &str) -> Result<Consul> {
    token(fixture.consul.api(), AGENT, rules).await?;
    let acl = json!({"acl": {"enabled": true, "tokens": {"agent": AGENT}}});
    let options = ConsulOptions::client([&fixture.consul])
        .node(&format!("kube-consul-{}", fixture.namespace))
        .configuration(acl.to_string());
    Consul::start(options).await
}

/// A server that denies by default.
async fn fixture(prefix: &str) -> Result<Fixture> {
    let server = ConsulOptions::dev().node("kube-consul-server").acl(MANAGEMENT);
    Fixture::with_consul(prefix, server).await
}

/// Starts a bridge with a token of its own beside the agent at this URL.
async fn bridge_at(fixture: &Fixture, url: &str, secret: &str) -> Result<Bridge> {
    let command = fixture.command().await?.env("CONSUL_HTTP_ADDR", url);
    Bridge::start(command.env("CONSUL_HTTP_TOKEN", secret)).await
}

async fn wait_for_ptr_keys(fixture: &Fixture, wanted: usize) -> Result<()> {
    eventually(DEADLINE, || async {
        let keys = fixture.consul.api().get(PTR_KEYS).await?;
        let found = keys.as_array().map_or(0, Vec::len);
        ensure!(found == wanted, "{found} PTR records, want {wanted}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn the_shipped_policies_suffice() -> Result<()> {
    let fixture = fixture("acl").await?;
    fixture.web("web", &[("http", 80)]).await?;
    fixture.web("api", &[("http", 80), ("metrics", 9090)]).await?;
    token(fixture.consul.api(), BRIDGE, &policy("bridge-agent.hcl")?).await?;
    let mut agent = agent_of(&fixture, &policy("agent.hcl")?).await?;
    agent.wait_ready().await?;
    let bridge = bridge_at(&fixture, agent.url(), BRIDGE).await?;
    bridge.wait_ready().await?;
    for name in ["web", "api", "api-metrics"] {
        fixture.wait_for_instances(name, 1).await?;
    }
    wait_for_ptr_keys(&fixture, 2).await?;
    fixture.delete("web").await?;
    fixture.wait_for_instances("web", 0).await?;
    wait_for_ptr_keys(&fixture, 1).await?;

    // Not even an agent that forgot everything leaves what was deleted meanwhile.
    forgets_api(&fixture, &mut agent, &bridge).await?;
    let bridge = bridge_at(&fixture, agent.url(), BRIDGE).await?;
    bridge.wait_ready().await?;
    for (name, wanted) in [("new", 1), ("api", 0), ("api-metrics", 0)] {
        fixture.wait_for_instances(name, wanted).await?;
    }
    wait_for_ptr_keys(&fixture, 1).await?;
    let status = bridge.status().await?;
    ensure!(status["counts"]["problems"] == 0, "{status}");
    ensure!(status["consul"]["trouble"].is_null(), "{status}");
    let log = agent.program().stdout();
    ensure!(!log.contains("ermission denied"), "the agent was denied something: {log}");
    Ok(())
}

/// Rules of the bridge's policy, and what it says without each.
const NEEDED: [(&str, &str); 5] = [
    (r#"service_prefix "" { policy = "write" }"#, "sentinel"),
    (r#"node_prefix "" { policy = "read" }"#, "rights hide a part of the catalog"),
    (r#"agent_prefix "kube-consul-" { policy = "read" }"#, "give it agent read"),
    (r#"key_prefix "0." { policy = "write" }"#, "rights hide a part of the PTR records"),
    (r#"key "kube-consul/kubernetes/owner" { policy = "write" }"#, "owner key"),
];

#[tokio::test]
async fn each_right_of_the_bridge_is_needed_and_nothing_is_removed_without_it() -> Result<()> {
    let fixture = fixture("rights").await?;
    let shipped = policy("bridge-agent.hcl")?;
    ensure!(rules_of(&shipped) == NEEDED.map(|(rule, _)| rule).into(), "{shipped}");
    for name in ["web", "api"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    token(fixture.consul.api(), BRIDGE, &shipped).await?;
    let bridge = bridge_at(&fixture, fixture.consul.url(), BRIDGE).await?;
    bridge.wait_ready().await?;
    bridge.program.kill().await?;

    // Something new, so that each of them has something to write.
    fixture.web("new", &[("http", 80)]).await?;
    let lacking = NEEDED.iter().enumerate().map(|(number, (rule, told))| {
        let rules = without(&shipped, rule);
        let fixture = &fixture;
        async move {
            let secret = format!("44444444-4444-4444-4444-{number:012}");
            token(fixture.consul.api(), &secret, &rules?).await?;
            tells_what_it_lacks(fixture, &secret, told)
                .await
                .with_context(|| format!("without {rule}"))
        }
    });
    try_join_all(lacking).await?;
    for name in ["web", "api"] {
        ensure!(fixture.instances(name).await?.len() == 1, "{name} is gone");
    }
    let keys = fixture.consul.api().get(PTR_KEYS).await?;
    ensure!(keys.as_array().map_or(0, Vec::len) >= 2, "PTR records are gone: {keys}");
    Ok(())
}

/// Runs a bridge until it says this, and sees that it removes nothing.
async fn tells_what_it_lacks(fixture: &Fixture, secret: &str, told: &str) -> Result<()> {
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let bridge = bridge_at(fixture, &recorder.url(), secret).await?;
    eventually(DEADLINE, || async {
        let (status, readiness) = bridge.get("/readyz").await?;
        let problems = bridge.status().await?["problems"].to_string();
        // What does not keep it from working is only in the log.
        let said = if status == 503 { readiness } else { bridge.program.stderr() };
        ensure!(said.contains(told) || problems.contains(told), "{said}, and {problems}");
        Ok(())
    })
    .await?;
    bridge.stop().await?;
    let removals: Vec<String> = recorder
        .writes()
        .iter()
        .map(|it| format!("{} {} {}", it.method, it.path, String::from_utf8_lossy(&it.body)))
        .filter(|it| it.contains("/deregister/") || it.contains("delete"))
        .collect();
    ensure!(removals.is_empty(), "{removals:#?}");
    Ok(())
}

/// A bridge beside an agent whose token lacks a rule; two Services are registered.
async fn beside_an_agent_without(fixture: &Fixture, rule: &str) -> Result<(Consul, Bridge)> {
    for name in ["web", "api"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    token(fixture.consul.api(), BRIDGE, &policy("bridge-agent.hcl")?).await?;
    let agent = agent_of(fixture, &without(&policy("agent.hcl")?, rule)?).await?;
    let bridge = bridge_at(fixture, agent.url(), BRIDGE).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("api", 1).await?;
    Ok((agent, bridge))
}

#[tokio::test]
async fn an_agent_that_may_not_write_its_node_removes_nothing_from_the_catalog() -> Result<()> {
    let fixture = fixture("node").await?;
    let rule = r#"node_prefix "kube-consul-" { policy = "write" }"#;
    let (agent, _bridge) = beside_an_agent_without(&fixture, rule).await?;
    fixture.delete("api").await?;
    let denied = "Service deregistration blocked by ACLs";
    let written = agent.program().wait_for_line(denied, DEADLINE, |line| line.contains(denied));
    written.await?;
    ensure!(fixture.instances("api").await?.len() == 1, "it could be removed");
    Ok(())
}

#[tokio::test]
async fn an_agent_that_may_not_read_services_leaves_what_it_forgot() -> Result<()> {
    let fixture = fixture("forgot").await?;
    let rule = r#"service_prefix "" { policy = "read" }"#;
    let (mut agent, bridge) = beside_an_agent_without(&fixture, rule).await?;
    forgets_api(&fixture, &mut agent, &bridge).await?;
    ensure!(fixture.instances("api").await?.len() == 1, "it could be removed");
    Ok(())
}

/// The agent loses its state while the Service `api` is deleted and `new` is made.
async fn forgets_api(fixture: &Fixture, agent: &mut Consul, bridge: &Bridge) -> Result<()> {
    agent.kill().await?;
    bridge.program.kill().await?;
    fixture.delete("api").await?;
    fixture.web("new", &[("http", 80)]).await?;
    agent.restart(Data::Lost).await?;
    agent.wait_ready().await?;
    let bridge = bridge_at(fixture, agent.url(), BRIDGE).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("new", 1).await
}

#[tokio::test]
async fn what_the_servers_refuse_from_the_agent_is_a_problem() -> Result<()> {
    let fixture = fixture("refused").await?;
    fixture.web("web", &[("http", 80)]).await?;
    // An agent that does not check rights itself and has a token for all that is asked of it: a
    // bridge without one registers, and what the agent makes of it has no right to services.
    let write = r#"service_prefix "" { policy = "write" }"#;
    let rules =
        policy("bridge-agent.hcl")?.replace(write, r#"service_prefix "" { policy = "read" }"#);
    token(fixture.consul.api(), AGENT, &rules).await?;
    let acl = json!({"acl": {"enabled": false, "tokens": {"default": AGENT}}});
    let options = ConsulOptions::client([&fixture.consul])
        .node("kube-consul-unchecked")
        .configuration(acl.to_string());
    let agent = Consul::start(options).await?;
    let command = fixture.command().await?.env("CONSUL_HTTP_ADDR", agent.url());
    let bridge = Bridge::start(command).await?;
    let reasons = |status: &Value| {
        let problems = status["problems"].as_array().into_iter().flatten();
        problems.map(|it| format!("{} {}", it["name"], it["reason"])).collect::<Vec<_>>()
    };
    eventually(CATALOG_DEADLINE, || async {
        let status = bridge.status().await?;
        ensure!(reasons(&status) == [r#""web" "NotInCatalog""#], "{status}");
        Ok(())
    })
    .await?;
    ensure!(fixture.instances("web").await?.is_empty(), "it is in the catalog");
    // It is known, and nothing else keeps the bridge from working.
    bridge.wait_ready().await
}
