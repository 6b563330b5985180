//! `status` and `explain`, and each reason that these give, on the real servers.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use http::StatusCode;
use kube_consul_stack::{ConsulOptions, Endpoint, Fault, ProgramOptions, eventually};
use serde_json::{Value, json};

use crate::acl::{MANAGEMENT, policy, token};
use crate::addresses::OwnNode;
use crate::support::{
    Bridge, DEADLINE, Fixture, ends_with, kube_consul, kubeconfig_with, says, shipped_rules,
};

const HTTP: [(&str, u16); 1] = [("http", 80)];

fn explain(bridge: &Bridge, namespace: &str, name: &str) -> ProgramOptions {
    let service = format!("{namespace}/{name}");
    kube_consul().args(["explain", &service, "--admin-url", &bridge.url("")])
}

/// Waits until a Service is explained with each of these texts.
async fn wait_explained(
    fixture: &Fixture,
    bridge: &Bridge,
    name: &str,
    texts: &[&str],
) -> Result<()> {
    eventually(DEADLINE, || async {
        let said = says(0, explain(bridge, &fixture.namespace, name)).await?;
        for text in texts {
            ensure!(said.contains(text), "want '{text}' in: {said}");
        }
        Ok(())
    })
    .await
}

fn failure(code: StatusCode, text: &str) -> Fault {
    Fault::Answer(code, text.to_owned())
}

/// Writes of what belongs to this Service.
fn fault_writes(fixture: &Fixture, name: &str, fault: Fault) {
    let own = format!("kubernetes_{}_{name}_", fixture.namespace);
    fixture.recorder().fault(fault, move |it| {
        it.is_write()
            && (String::from_utf8_lossy(&it.body).contains(&own) || it.path.contains(&own))
    });
}

#[tokio::test]
async fn each_reason_not_to_be_selected() -> Result<()> {
    let fixture = Fixture::new("explain").await?;
    let object = |name: &str, metadata: Value, spec: Value| {
        let mut metadata = metadata;
        metadata["name"] = json!(name);
        metadata["namespace"] = json!(fixture.namespace);
        json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec})
            .to_string()
    };
    let wanted = |more: Value| {
        let mut annotations = json!({"kube-consul.io/sync": "true"});
        for (key, value) in more.as_object().into_iter().flatten() {
            annotations[key] = value.clone();
        }
        annotations
    };
    let ports = json!({"ports": [{"name": "http", "port": 80}]});
    let external = json!({"type": "ExternalName", "externalName": "example.com"});
    for (name, metadata, spec) in [
        ("external", json!({"annotations": wanted(json!({}))}), external),
        (
            "hidden",
            json!({"annotations": wanted(json!({})), "labels": {"tier": "hidden"}}),
            ports.clone(),
        ),
        (
            "imported",
            json!({"annotations": wanted(json!({"kube-consul.io/import": "db"}))}),
            ports.clone(),
        ),
        ("off", json!({"annotations": {"kube-consul.io/sync": "false"}}), ports.clone()),
        ("silent", json!({}), ports.clone()),
        (
            "mirror",
            json!({"annotations": wanted(json!({})), "labels": {"consul": "true"}}),
            ports.clone(),
        ),
    ] {
        fixture.kubernetes.apply_yaml(&object(name, metadata, spec)).await?;
    }
    let flags = ["--default-sync", "false", "--selector", "tier!=hidden"];
    let bridge = Bridge::start(fixture.command().await?.args(flags)).await?;
    bridge.wait_ready().await?;
    for (name, text) in [
        ("external", "its type is ExternalName"),
        ("hidden", "do not match --selector"),
        ("imported", "imported from Consul"),
        ("off", "sync: \"false\""),
        ("silent", "--default-sync is false"),
        ("mirror", "consul: true"),
    ] {
        wait_explained(&fixture, &bridge, name, &["not selected: ", text, "0 instances"]).await?;
    }
    // A namespace that is left out is not watched.
    let said = ends_with(1, explain(&bridge, "default", "kubernetes")).await?;
    ensure!(said.contains("left out by --namespace or --deny-namespace"), "{said}");
    bridge.stop().await
}

#[tokio::test]
async fn names_and_ptr_records_that_others_have() -> Result<()> {
    let fixture = Fixture::recorded("explain").await?;
    let api = fixture.consul.api();
    let foreign = json!({"Name": "db", "ID": "db-1", "Address": "192.0.2.7", "Port": 1});
    api.put("/v1/agent/service/register", &foreign).await?;
    api.put_text("/v1/kv/0.100.51.198.IN-ADDR.ARPA/198.51.100.7", "else.service.dc1.consul")
        .await?;
    for name in ["first", "db", "second"] {
        fixture.web(name, &HTTP).await?;
    }
    let same = json!({"kube-consul.io/service-name": "first"});
    fixture.annotate("second", same).await?;
    let external = json!({"kube-consul.io/address": "external-ip"});
    fixture.web("public", &HTTP).await?;
    fixture.patch("public", &json!({"spec": {"externalIPs": ["198.51.100.7"]}})).await?;
    fixture.annotate("public", external).await?;
    let trusted = ["--annotations", "none", "--trusted-namespace", &fixture.namespace];
    let bridge = Bridge::start(fixture.command().await?.args(trusted)).await?;
    bridge.wait_ready().await?;
    let conflict = ["another Service comes first for its Consul name", "NameConflict: "];
    wait_explained(&fixture, &bridge, "second", &conflict).await?;
    wait_explained(&fixture, &bridge, "db", &["others hold its Consul name", "ForeignName: "])
        .await?;
    let ptr = ["somebody else has this PTR record", "ForeignPtrRecord: "];
    wait_explained(&fixture, &bridge, "public", &ptr).await?;

    // Names that nobody asked for before.
    let fault = failure(StatusCode::INTERNAL_SERVER_ERROR, "a fault of the test");
    fixture.recorder().fault(fault, |it| it.path.contains("unknown-name"));
    let slow = Fault::Delay(Duration::from_secs(8));
    fixture.recorder().fault(slow, |it| it.path.contains("slow-name"));
    fixture.web("slow-name", &HTTP).await?;
    let text = "it is being looked up whether others hold its Consul name";
    wait_explained(&fixture, &bridge, "slow-name", &[text]).await?;
    fixture.web("unknown-name", &HTTP).await?;
    let text = "it is not known yet whether others hold its Consul name";
    wait_explained(&fixture, &bridge, "unknown-name", &[text]).await?;
    bridge.stop().await
}

#[tokio::test]
async fn writes_that_are_under_way_or_fail() -> Result<()> {
    let fixture = Fixture::recorded("explain").await?;
    fixture.web("good", &HTTP).await?;
    let endpoints = json!({"kube-consul.io/address": "endpoints"});
    fixture.web("moves", &HTTP).await?;
    fixture.annotate("moves", endpoints).await?;
    let bridge = fixture.bridge().await?;
    fixture.wait_for_instances("moves", 1).await?;

    fault_writes(&fixture, "slow", Fault::Delay(Duration::from_secs(8)));
    fault_writes(
        &fixture,
        "refused",
        failure(StatusCode::BAD_REQUEST, "Invalid service address\u{1b}[31m"),
    );
    let fault = failure(StatusCode::INTERNAL_SERVER_ERROR, "a fault of the test");
    fixture.recorder().fault(fault, |it| {
        it.is_write() && String::from_utf8_lossy(&it.body).contains("10.1.0.99")
    });
    fixture.web("slow", &HTTP).await?;
    wait_explained(&fixture, &bridge, "slow", &["a write of it is in flight"]).await?;
    // Consul's words reach the terminal as text.
    fixture.web("refused", &HTTP).await?;
    wait_explained(&fixture, &bridge, "refused", &["Consul refuses its content", "Refused: "])
        .await?;
    let said = says(0, explain(&bridge, &fixture.namespace, "refused")).await?;
    ensure!(!said.contains('\u{1b}'), "{said:?}");

    let moved = [Endpoint::ready("10.1.0.99")];
    fixture.endpoints("moves", &moved, &HTTP).await?;
    let text = "it goes once what takes its place is written";
    wait_explained(&fixture, &bridge, "moves", &[text]).await?;

    // What waits for nothing has no such line.
    let said = says(0, explain(&bridge, &fixture.namespace, "good")).await?;
    ensure!(!said.contains("waiting"), "{said}");
    bridge.stop().await
}

/// One that fails alone; several would be an outage.
#[tokio::test]
async fn a_write_that_fails_again_and_again() -> Result<()> {
    let fixture = Fixture::recorded("explain").await?;
    fixture.web("good", &HTTP).await?;
    let bridge = fixture.bridge().await?;
    let fault = failure(StatusCode::INTERNAL_SERVER_ERROR, "a fault of the test");
    fault_writes(&fixture, "broken", fault);
    fixture.web("broken", &HTTP).await?;
    let text = ["its write failed, tried again in ", "it is written with its instance"];
    wait_explained(&fixture, &bridge, "broken", &text).await?;
    // It is alone: what else is written is answered.
    let objects = fixture.objects()?;
    let mut round = 0;
    eventually(DEADLINE, || {
        round += 1;
        let (objects, tag) = (&objects, format!("round-{round}"));
        let (fixture, bridge) = (&fixture, &bridge);
        async move {
            objects.tag("good", &tag).await?;
            let said = says(0, explain(bridge, &fixture.namespace, "broken")).await?;
            let text = "its write fails again and again, tried again in ";
            ensure!(said.contains(text) && said.contains("Failing: "), "{said}");
            Ok(())
        }
    })
    .await?;
    bridge.stop().await
}

#[tokio::test]
async fn rights_that_are_missing_in_consul_and_in_kubernetes() -> Result<()> {
    const SECRET: &str = "55555555-5555-5555-5555-555555555555";
    let fixture = Fixture::with_consul("explain", ConsulOptions::dev().acl(MANAGEMENT)).await?;
    let rules = policy("bridge-agent.hcl")?
        .replace("agent_prefix \"kube-consul-\" { policy = \"read\" }", "")
        + "\nservice \"denied\" { policy = \"read\" }\n";
    token(fixture.consul.api(), SECRET, &rules).await?;
    fixture.web("denied", &HTTP).await?;
    fixture.web("web", &HTTP).await?;
    fixture.web("nodes", &HTTP).await?;
    fixture.annotate("nodes", json!({"kube-consul.io/address": "node-port"})).await?;
    let rules = shipped_rules(fixture.kubernetes).await?;
    let account = fixture.kubernetes.namespace("no-nodes").await?;
    let kubeconfig: PathBuf = kubeconfig_with(fixture.kubernetes, &account, &rules).await?;
    let command = fixture.command_with("bridge", &kubeconfig).env("CONSUL_HTTP_TOKEN", SECRET);
    let bridge = Bridge::start(command).await?;
    let text = ["its write was denied, tried again in ", "Denied: ", "service:write"];
    wait_explained(&fixture, &bridge, "denied", &text).await?;
    let text = ["the Consul datacenter or DNS domain is not known", "NoDnsDomain: "];
    wait_explained(&fixture, &bridge, "web", &text).await?;
    // Nothing of it is registered: the problem alone says why.
    wait_explained(&fixture, &bridge, "nodes", &["Denied: node ports cannot be registered"])
        .await?;
    bridge.stop().await
}

/// Nodes can no longer be listed: what is registered stays, and says so.
#[tokio::test]
async fn nodes_that_are_not_known_any_more() -> Result<()> {
    let fixture = Fixture::new("explain").await?;
    fixture.web("web", &HTTP).await?;
    fixture.patch("web", &json!({"spec": {"type": "NodePort"}})).await?;
    fixture.annotate("web", json!({"kube-consul.io/address": "node-port"})).await?;
    let _node = OwnNode::create(&fixture, "n", &[("InternalIP", "192.0.2.11")]).await?;
    let mut rules = shipped_rules(fixture.kubernetes).await?;
    let nodes = json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]});
    let account = fixture.kubernetes.namespace("nodes").await?;
    let all = [&rules[..], &[nodes]].concat();
    let kubeconfig = kubeconfig_with(fixture.kubernetes, &account, &all).await?;
    let bridge = Bridge::start(fixture.command_with("bridge", &kubeconfig)).await?;
    bridge.wait_ready().await?;
    eventually(DEADLINE, || async {
        ensure!(!fixture.instances("web").await?.is_empty(), "nothing is registered");
        Ok(())
    })
    .await?;
    bridge.stop().await?;
    rules.retain(|rule| rule["resources"] != json!(["nodes"]));
    let kubeconfig = kubeconfig_with(fixture.kubernetes, &account, &rules).await?;
    let bridge = Bridge::start(fixture.command_with("bridge", &kubeconfig)).await?;
    let text = ["the nodes of the cluster are not known", "node ports cannot be registered"];
    wait_explained(&fixture, &bridge, "web", &text).await?;
    ensure!(!fixture.instances("web").await?.is_empty(), "it was removed");
    bridge.stop().await
}

#[tokio::test]
async fn removals_that_are_held_back() -> Result<()> {
    let fixture = Fixture::new("explain").await?;
    let names: Vec<String> = (0..3).map(|number| format!("web-{number}")).collect();
    for name in &names {
        fixture.web(name, &HTTP).await?;
    }
    let bridge = fixture.bridge().await?;
    fixture.wait_for_instances("web-2", 1).await?;
    bridge.stop().await?;
    // All of them turn critical while nobody looks: a second list has to agree.
    for name in &names {
        fixture.endpoints(name, &[], &HTTP).await?;
        let slice = format!("{name}-1");
        let words = ["delete", "endpointslice", &slice, "--namespace", &fixture.namespace];
        fixture.kubernetes.kubectl(&words).await?;
    }
    let bridge = Bridge::start(fixture.command().await?).await?;
    wait_explained(&fixture, &bridge, "web-0", &["held back until a second list agrees"]).await?;
    let table = says(0, kube_consul().args(["status", "--admin-url", &bridge.url("")])).await?;
    ensure!(!table.contains(" 0 removals held"), "{table}");
    for name in &names {
        fixture.endpoints(name, &[Endpoint::ready("10.1.0.1")], &HTTP).await?;
    }
    bridge.wait_holding(false).await?;
    // Said once the second list has shown it.
    let text = "shown again: nothing is removed";
    eventually(DEADLINE, || async {
        let log = bridge.program.stderr();
        ensure!(log.contains(text) && !log.contains("a second list agrees:"), "{log}");
        Ok(())
    })
    .await?;
    bridge.stop().await?;
    // They exist and are not selected any more: an option, perhaps by mistake.
    let command = fixture.command().await?.args(["--selector", "tier=none"]);
    let bridge = Bridge::start(command).await?;
    let text = ["not selected: ", "held back until --allow-removals"];
    wait_explained(&fixture, &bridge, "web-0", &text).await?;
    bridge.stop().await?;
    let flags = ["--selector", "tier=none", "--policy", "upsert-only"];
    let bridge = Bridge::start(fixture.command().await?.args(flags)).await?;
    wait_explained(&fixture, &bridge, "web-0", &["not selected: ", "upsert-only"]).await?;
    bridge.stop().await
}

#[tokio::test]
async fn slices_and_load_balancers_that_are_behind() -> Result<()> {
    let fixture = Fixture::new("explain").await?;
    fixture.web("web", &HTTP).await?;
    fixture.web("public", &HTTP).await?;
    fixture.patch("public", &json!({"spec": {"type": "LoadBalancer"}})).await?;
    fixture.annotate("public", json!({"kube-consul.io/address": "load-balancer"})).await?;
    let bridge = fixture.bridge().await?;
    fixture.wait_for_instances("web", 1).await?;
    let ports = json!({"spec": {"ports": [{"name": "web", "port": 80, "protocol": "TCP"}]}});
    fixture.patch("web", &ports).await?;
    let text = "the EndpointSlices have not followed the Service's ports yet";
    wait_explained(&fixture, &bridge, "web", &[text]).await?;

    // Normal at first, so no problem.
    let text = ["load balancer: it has no address yet", "0 instances"];
    wait_explained(&fixture, &bridge, "public", &text).await?;
    ensure!(bridge.problems_of(&fixture.namespace, "public").await?.is_empty(), "it is a problem");
    let status =
        json!({"status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}}).to_string();
    let patch = ["patch", "service", "public", "--subresource=status", "--type=merge"];
    let words = [&patch[..], &["--namespace", &fixture.namespace, "--patch", &status]].concat();
    fixture.kubernetes.kubectl(&words).await?;
    wait_explained(&fixture, &bridge, "public", &["203.0.113.9", "1 instance"]).await?;
    bridge.stop().await
}

/// Nothing is written to the node of a namespace while it goes with its last record.
#[tokio::test]
async fn a_namespace_node_that_is_being_removed() -> Result<()> {
    let fixture = Fixture::recorded("explain").await?;
    fixture.web("last", &HTTP).await?;
    let bridge = Bridge::start(fixture.command().await?.args(["--sink", "catalog"])).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("last", 1).await?;
    fixture.recorder().fault(Fault::Delay(Duration::from_secs(8)), |it| {
        let body: Value = serde_json::from_slice(&it.body).unwrap_or_default();
        let operations = body.as_array();
        operations.is_some_and(|all| all.iter().any(|it| it["Node"]["Verb"] == "delete"))
    });
    fixture.delete("last").await?;
    fixture.wait_for_instances("last", 0).await?;
    fixture.web("next", &HTTP).await?;
    wait_explained(&fixture, &bridge, "next", &["it is being removed from the catalog"]).await?;
    fixture.wait_for_instances("next", 1).await?;
    bridge.stop().await
}

#[tokio::test]
async fn what_stands_in_the_way_in_the_catalog() -> Result<()> {
    let fixture = Fixture::recorded("explain").await?;
    let api = fixture.consul.api();
    // The node of the namespace is somebody else's.
    let node = format!("k8s-kubernetes.{}", fixture.namespace);
    api.put("/v1/catalog/register", &json!({"Node": node, "Address": "192.0.2.9"})).await?;
    fixture.web("web", &HTTP).await?;
    let command = fixture.command().await?.args([
        "--sink",
        "catalog",
        "--annotations",
        "none",
        "--trusted-namespace",
        &fixture.namespace,
    ]);
    let bridge = Bridge::start(command).await?;
    let text = ["somebody else keeps it otherwise, tried again in ", "Contested: "];
    wait_explained(&fixture, &bridge, "web", &text).await?;
    api.put("/v1/catalog/deregister", &json!({"Node": node})).await?;
    fixture.wait_for_instances("web", 1).await?;
    bridge.wait_ready().await?;

    // The PTR record of a new one turns out to be there, and cannot be read: both wait.
    api.put_text("/v1/kv/0.100.51.198.IN-ADDR.ARPA/198.51.100.8", "else.service.dc1.consul")
        .await?;
    let fault = failure(StatusCode::INTERNAL_SERVER_ERROR, "a fault of the test");
    fixture.recorder().fault(fault, |it| {
        !it.is_write() && it.path.starts_with("/v1/kv/0.")
            || String::from_utf8_lossy(&it.body).contains("\"get")
    });
    fixture.web("public", &HTTP).await?;
    fixture.annotate("public", json!({"kube-consul.io/address": "external-ip"})).await?;
    fixture.patch("public", &json!({"spec": {"externalIPs": ["198.51.100.8"]}})).await?;
    wait_explained(&fixture, &bridge, "public", &["it waits for its PTR record"]).await?;
    bridge.stop().await
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
