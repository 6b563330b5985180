//! The shipped ACL policies are what the bridge and its agent work with, and no more than that:
//! Consul denies by default here, and each right is taken away once.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kube_consul_stack::{
    Consul, ConsulApi, ConsulOptions, Data, HttpRecorder, Program, eventually,
};
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Fixture, kube_consul, manifest, says};

pub(crate) const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const AGENT: &str = "22222222-2222-2222-2222-222222222222";
const BRIDGE: &str = "33333333-3333-3333-3333-333333333333";
/// What the catalog lacks for 90 s is a problem.
const CATALOG_DEADLINE: Duration = Duration::from_mins(3);

const PTR_KEYS: &str = "/v1/kv/0.?keys";

/// A shipped policy.
pub(crate) fn policy(name: &str) -> Result<String> {
    let path = manifest("consul").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// A policy without one of its rules, which is a line.
pub(crate) fn without(rules: &str, rule: &str) -> Result<String> {
    let kept: Vec<&str> = rules.lines().filter(|line| *line != rule).collect();
    ensure!(kept.len() + 1 == rules.lines().count(), "the policy has no line {rule}");
    Ok(kept.join("\n"))
}

/// The rules of a policy: its lines without comments.
fn rules_of(policy: &str) -> BTreeSet<&str> {
    policy.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Makes a token that may do exactly this.
pub(crate) async fn token(consul: &ConsulApi, secret: &str, rules: &str) -> Result<()> {
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

/// Rules of the policy of `purge`, and what it says without each.
const NEEDED_TO_PURGE: [(&str, i32, &str); 7] = [
    (r#"service_prefix "" { policy = "write" }"#, 1, ""),
    (r#"node_prefix "" { policy = "read" }"#, 1, "rights hide a part"),
    (r#"node "k8s-kubernetes" { policy = "write" }"#, 1, "node k8s-kubernetes"),
    (r#"node_prefix "k8s-kubernetes." { policy = "write" }"#, 1, "node k8s-kubernetes."),
    (r#"agent_prefix "" { policy = "read" }"#, 2, "Other nodes"),
    (r#"key_prefix "0." { policy = "write" }"#, 1, ""),
    (r#"key_prefix "kube-consul/kubernetes/" { policy = "write" }"#, 1, "owner"),
];

#[tokio::test]
async fn the_policy_of_purge_suffices_and_each_of_its_rules_is_needed() -> Result<()> {
    let fixture = fixture("purge").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let shipped = policy("purge.hcl")?;
    ensure!(rules_of(&shipped) == NEEDED_TO_PURGE.map(|(rule, ..)| rule).into(), "{shipped}");
    let consul = fixture.consul.api();
    // Both sinks, and the lock of a leader that has ended.
    for flags in [&["--sink=agent"][..], &["--sink=catalog", "--leader-elect"]] {
        let command = fixture.command().await?.args(flags);
        let bridge = Bridge::start(command.env("CONSUL_HTTP_TOKEN", MANAGEMENT)).await?;
        bridge.wait_ready().await?;
        bridge.stop().await?;
    }
    let purge = |secret: &str, flags: &[&str]| {
        let command = kube_consul()
            .args(["purge", "--cluster=kubernetes"])
            .args(flags)
            .env("CONSUL_HTTP_TOKEN", secret);
        command.env("CONSUL_HTTP_ADDR", fixture.consul.url())
    };
    // What must not be overlooked: with it the owner key stays.
    let elsewhere = json!({"Node": "elsewhere", "Address": "192.0.2.1", "Service":
        {"Service": "web", "ID": "web", "Meta": {"kube-consul-cluster": "kubernetes"}}});
    consul.put("/v1/catalog/register", &elsewhere).await?;
    let nodes = consul.get("/v1/catalog/nodes").await?;
    for (number, (rule, code, told)) in NEEDED_TO_PURGE.into_iter().enumerate() {
        // Those before may have removed them.
        for node in nodes.as_array().into_iter().flatten() {
            let name = node["Node"].as_str().unwrap_or_default();
            if name.starts_with("k8s-") {
                let body =
                    json!({"Node": name, "Address": node["Address"], "NodeMeta": node["Meta"]});
                consul.put("/v1/catalog/register", &body).await?;
            }
        }
        let secret = format!("55555555-5555-5555-5555-{number:012}");
        token(consul, &secret, &without(&shipped, rule)?).await?;
        // Without --yes it only shows, and ends with 2.
        let flags: &[&str] = if code == 2 { &[] } else { &["--yes"] };
        let program = Program::start("kube-consul", purge(&secret, flags)).await?;
        program.wait_for_code(code, DEADLINE).await.with_context(|| format!("without {rule}"))?;
        let said = program.stdout() + &program.stderr();
        ensure!(said.contains(told), "without {rule}: {said}");
    }
    consul.put("/v1/catalog/deregister", &json!({"Node": "elsewhere"})).await?;
    token(consul, AGENT, &shipped).await?;
    let said = says(0, purge(AGENT, &["--yes"])).await?;
    ensure!(!said.contains("Left:") && !said.contains("stay"), "{said}");
    for path in ["/v1/kv/?keys", "/v1/catalog/service/web"] {
        let left = consul.get(path).await.unwrap_or(Value::Null);
        ensure!(left.as_array().is_none_or(Vec::is_empty), "{path}: {left}");
    }
    let nodes = consul.get("/v1/catalog/nodes").await?;
    ensure!(nodes.as_array().is_some_and(|nodes| nodes.len() == 1), "{nodes}");
    Ok(())
}

/// Gives a token of [`token`] these rules instead.
async fn change_rules(consul: &ConsulApi, secret: &str, rules: &str) -> Result<()> {
    let name = format!("policy-{secret}");
    let policy = consul.get(&format!("/v1/acl/policy/name/{name}")).await?;
    let id = policy["ID"].as_str().context("no such policy")?;
    let changed = json!({"ID": id, "Name": name, "Rules": rules});
    consul.put(&format!("/v1/acl/policy/{id}"), &changed).await.map(drop)
}

#[tokio::test]
async fn l16_a_permission_to_read_the_agent_that_comes_later_needs_no_restart() -> Result<()> {
    let fixture = fixture("later").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let rules = policy("bridge-agent.hcl")?;
    let may_read = r#"agent_prefix "kube-consul-" { policy = "read" }"#;
    token(fixture.consul.api(), BRIDGE, &without(&rules, may_read)?).await?;
    let bridge = bridge_at(&fixture, fixture.consul.url(), BRIDGE).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("web", 1).await?;
    bridge.wait_for_problem(&fixture.namespace, "web", "NoDnsDomain").await?;
    wait_for_ptr_keys(&fixture, 0).await?;
    change_rules(fixture.consul.api(), BRIDGE, &rules).await?;
    wait_for_ptr_keys(&fixture, 1).await?;
    bridge.wait_for_no_problem(&fixture.namespace, "web").await?;
    let status = bridge.status().await?;
    ensure!(status["consul"]["datacenter"] == "dc1", "{status}");
    bridge.stop().await
}
