//! Ports, protocols, host names, readiness: one object after the other, by real DNS answers, in
//! the agent and in the catalog.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::{A, SRV};
use kube_consul::domain::consul::names::resolves;
use kube_consul_stack::eventually;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::support::{endpoint, headless, http};
use crate::addresses::OwnNode;
use crate::support::{Bridge, DEADLINE, Dns, Fixture, InvariantMonitor, manifest, shipped_token};

/// The flags of the catalog's sink.
const CATALOG: [&str; 2] = ["--sink", "catalog"];

#[tokio::test]
async fn each_object_is_registered_as_clients_need_it_in_the_agent() -> Result<()> {
    each_object(&[]).await
}

#[tokio::test]
async fn each_object_is_registered_as_clients_need_it_in_the_catalog() -> Result<()> {
    each_object(&CATALOG).await
}

/// One bridge, and an object after the other.
async fn each_object(flags: &[&str]) -> Result<()> {
    let fixture = Fixture::new("objects").await?;
    let bridge = fixture.bridge_with(flags).await?;
    let dns = fixture.dns()?;
    o1_an_endpoint_is_an_address_and_a_port(&fixture, &dns).await.context("O1")?;
    o2_a_protocol_is_a_tag(&fixture, &dns).await.context("O2")?;
    o3_any_number_is_registered_as_it_is(&fixture, &bridge, &dns).await.context("O3")?;
    o4_a_headless_service_needs_no_port(&fixture, &dns).await.context("O4")?;
    o5_ready_endpoints_that_serve_no_port_are_told(&fixture, &bridge).await.context("O5")?;
    o9_a_host_name_is_a_tag(&fixture, &dns).await.context("O9")?;
    o11_what_kube_proxy_does_decides_health(&fixture, &dns).await.context("O11")?;
    o13_what_is_not_registered_is_told(&fixture, &bridge).await.context("O13")?;
    o14_meta_of_consuls_own_is_left_out(&fixture, &bridge, &dns).await.context("O14")?;
    n9_control_characters_are_refused(&fixture, &bridge).await.context("N9")?;
    bridge.stop().await
}

fn srv(ports: &[u16]) -> Vec<String> {
    ports.iter().map(|port| format!("port {port} weight 1")).collect()
}

impl Dns {
    /// Waits until SRV answers have these ports.
    async fn wait_for_ports(&self, name: &str, ports: &[u16]) -> Result<()> {
        let wanted = srv(ports);
        let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
        self.wait_for(name, SRV, &wanted).await
    }
}

async fn o1_an_endpoint_is_an_address_and_a_port(fixture: &Fixture, dns: &Dns) -> Result<()> {
    let name = "game.service.consul";
    fixture.slice("game", 1, http(8080), json!([endpoint("10.1.0.1", true)])).await?;
    fixture.slice("game", 2, http(8081), json!([endpoint("10.1.0.1", true)])).await?;
    let spec = headless(&json!([{"name": "http", "port": 80}]));
    fixture.service("game", json!({}), spec).await?;
    dns.wait_for_ports(name, &[8080, 8081]).await?;
    fixture.slice("game", 2, http(8081), json!([endpoint("10.1.0.1", false)])).await?;
    dns.wait_for_ports(name, &[8080]).await?;
    // A changed targetPort: what is new comes before what is old goes.
    let asked = fixture.dns()?;
    let gap = InvariantMonitor::start(move || {
        let asked = asked.clone();
        async move {
            let found = asked.ask(name, A).await?;
            Ok(if found == ["10.1.0.1"] { vec![] } else { vec![format!("{found:?}")] })
        }
    });
    fixture.slice("game", 1, http(9090), json!([endpoint("10.1.0.1", true)])).await?;
    dns.wait_for_ports(name, &[9090]).await?;
    gap.finish("a changed targetPort").await
}

async fn o2_a_protocol_is_a_tag(fixture: &Fixture, dns: &Dns) -> Result<()> {
    let ports = |udp: u16, tcp: u16| {
        json!([
            {"name": "dns", "port": udp, "protocol": "UDP"},
            {"name": "dns-tcp", "port": tcp, "protocol": "TCP"},
        ])
    };
    let spec = json!({"ports": ports(53, 54)});
    fixture.slice("kube-dns", 1, ports(5353, 5354), json!([endpoint("10.1.0.2", true)])).await?;
    fixture.service("kube-dns", json!({}), spec).await?;
    dns.wait_for_ports("_kube-dns._udp.service.consul", &[53]).await?;
    dns.wait_for_ports("_kube-dns-dns-tcp._tcp.service.consul", &[54]).await?;
    dns.wait_for_ports("_kube-dns-dns-tcp._udp.service.consul", &[]).await?;
    // Of `_tcp` Consul ignores the tag: documented.
    dns.wait_for_ports("_kube-dns._tcp.service.consul", &[53]).await
}

async fn o3_any_number_is_registered_as_it_is(
    fixture: &Fixture,
    bridge: &Bridge,
    dns: &Dns,
) -> Result<()> {
    let annotations = json!({"consul.hashicorp.com/service-port": "4141"});
    let spec = json!({"ports": [{"name": "http", "port": 80}]});
    fixture.slice("numbered", 1, http(8080), json!([endpoint("10.1.0.3", true)])).await?;
    fixture.service("numbered", annotations, spec).await?;
    dns.wait_for_ports("numbered.service.consul", &[4141]).await?;
    bridge.wait_for_no_problem(&fixture.namespace, "numbered").await
}

async fn o4_a_headless_service_needs_no_port(fixture: &Fixture, dns: &Dns) -> Result<()> {
    let endpoints = json!([endpoint("10.1.0.4", true), endpoint("10.1.0.5", false)]);
    fixture.slice("portless", 1, Value::Null, endpoints.clone()).await?;
    fixture.service("portless", json!({}), json!({"clusterIP": "None"})).await?;
    dns.wait_for("portless.service.consul", A, &["10.1.0.4"]).await?;
    let index = async || {
        let found = fixture.instances("portless").await?;
        let all: Vec<Value> = found.iter().map(|it| it["Service"]["ModifyIndex"].clone()).collect();
        ensure!(all.len() == 2, "{found:?}");
        anyhow::Ok(all)
    };
    let before = index().await?;
    fixture.slice("portless", 1, json!([]), endpoints).await?;
    // What came after it is there.
    fixture.slice("after", 1, Value::Null, json!([endpoint("10.1.0.6", true)])).await?;
    fixture.service("after", json!({}), json!({"clusterIP": "None"})).await?;
    dns.wait_for("after.service.consul", A, &["10.1.0.6"]).await?;
    ensure!(index().await? == before, "null and [] are not the same");
    Ok(())
}

async fn o5_ready_endpoints_that_serve_no_port_are_told(
    fixture: &Fixture,
    bridge: &Bridge,
) -> Result<()> {
    fixture.slice("unserved", 1, Value::Null, json!([endpoint("10.1.0.7", true)])).await?;
    let spec = json!({"ports": [{"name": "http", "port": 80}]});
    fixture.service("unserved", json!({}), spec).await?;
    let namespace = fixture.namespace.as_str();
    let told = bridge.wait_for_problem(namespace, "unserved", "Incomplete").await?;
    ensure!(told.contains("http TCP 80") && told.contains("found none"), "{told}");
    fixture.slice("unserved", 1, http(8080), json!([endpoint("10.1.0.7", true)])).await?;
    bridge.wait_for_no_problem(namespace, "unserved").await
}

async fn o9_a_host_name_is_a_tag(fixture: &Fixture, dns: &Dns) -> Result<()> {
    let named = |name: &str, address: &str| json!({"addresses": [address], "hostname": name, "conditions": {"ready": true}});
    let endpoints = json!([named("db-0", "10.1.0.8"), named("db-1", "10.1.0.9")]);
    fixture.slice("db", 1, http(5432), endpoints).await?;
    let spec = headless(&json!([{"name": "http", "port": 5432}]));
    fixture.service("db", json!({}), spec).await?;
    dns.wait_for("db-0.db.service.consul", A, &["10.1.0.8"]).await?;
    dns.wait_for("db-1.db.service.consul", A, &["10.1.0.9"]).await
}

async fn o11_what_kube_proxy_does_decides_health(fixture: &Fixture, dns: &Dns) -> Result<()> {
    let draining = json!([{"addresses": ["10.1.0.10"],
        "conditions": {"ready": false, "serving": true, "terminating": true}}]);
    let ports = json!([{"name": "http", "port": 80}]);
    for (name, spec) in [("draining", json!({"ports": ports})), ("draining-pods", headless(&ports))]
    {
        fixture.slice(name, 1, http(8080), draining.clone()).await?;
        fixture.service(name, json!({}), spec).await?;
        fixture.wait_for_instances(name, 1).await?;
    }
    let address = fixture.cluster_ip("draining").await?;
    dns.wait_for("draining.service.consul", A, &[&address]).await?;
    dns.wait_for("draining-pods.service.consul", A, &[]).await
}

async fn o13_what_is_not_registered_is_told(fixture: &Fixture, bridge: &Bridge) -> Result<()> {
    let namespace = fixture.namespace.as_str();
    let ports = json!([{"name": "http", "port": 80}]);
    let host = json!([{"addresses": ["web.example.org"], "conditions": {"ready": true}}]);
    fixture.slice_of("fqdn", 1, "FQDN", http(80), host).await?;
    fixture.service("fqdn", json!({}), headless(&ports)).await?;
    let told = bridge.wait_for_problem(namespace, "fqdn", "Incomplete").await?;
    ensure!(told.contains("FQDN"), "{told}");
    fixture.web("readme", &[("http", 80)]).await?;
    fixture.wait_for_instances("readme", 1).await?;
    let label = json!({"metadata": {"labels": {"registration": "consul"}}});
    fixture.patch("readme", &label).await?;
    bridge.wait_for_problem(namespace, "readme", "ImportLabel").await?;
    fixture.wait_for_instances("readme", 0).await
}

async fn o14_meta_of_consuls_own_is_left_out(
    fixture: &Fixture,
    bridge: &Bridge,
    dns: &Dns,
) -> Result<()> {
    fixture.web("meta", &[("http", 80)]).await?;
    let meta = json!({"kube-consul.io/service-meta-consul-x": "1",
        "kube-consul.io/service-meta-team": "a"});
    fixture.annotate("meta", meta).await?;
    let address = fixture.cluster_ip("meta").await?;
    dns.wait_for("meta.service.consul", A, &[&address]).await?;
    let namespace = fixture.namespace.as_str();
    let told = bridge.wait_for_problem(namespace, "meta", "InvalidAnnotation").await?;
    ensure!(told.contains("consul-x"), "{told}");
    eventually(DEADLINE, || async {
        let found = &fixture.instances("meta").await?[0]["Service"]["Meta"];
        ensure!(found["team"] == "a", "{found}");
        Ok(())
    })
    .await
}

async fn n9_control_characters_are_refused(fixture: &Fixture, bridge: &Bridge) -> Result<()> {
    let name = json!({"kube-consul.io/service-name": "a\n\"b\u{1b}[31m"});
    let spec = json!({"ports": [{"name": "http", "port": 80}]});
    fixture.service("control", name, spec).await?;
    let namespace = fixture.namespace.as_str();
    let told = bridge.wait_for_problem(namespace, "control", "InvalidAnnotation").await?;
    ensure!(!told.contains(char::is_control), "{told:?}");
    let tags = json!({"kube-consul.io/service-name": null,
        "kube-consul.io/service-tags": "fine,not\u{7}"});
    fixture.annotate("control", tags).await?;
    fixture.wait_for_instances("control", 1).await?;
    let found = &fixture.instances("control").await?[0]["Service"]["Tags"];
    ensure!(*found == json!([namespace, "http", "fine"]), "{found}");
    Ok(())
}

/// O6: what a name has to be for Consul's DNS to answer, character by character.
#[tokio::test]
async fn o6_names_that_resolve_are_known() -> Result<()> {
    let fixture = Fixture::new("resolve").await?;
    let long = ["x".repeat(63), "x".repeat(64)];
    let whole = ["redis_cache", "_srv", "UP", "-a-", "a.b", " a", "a ", &long[0], &long[1]];
    let odd = (' '..='~').chain(['\t', '\n', '\u{1b}', '\u{7f}', 'ä', '\u{a0}', 'İ']);
    let names: Vec<String> = odd
        .enumerate()
        .map(|(number, c)| format!("n{number}{c}x"))
        .chain(whole.map(str::to_owned))
        .collect();
    for (number, name) in names.iter().enumerate() {
        let service = json!({"ID": format!("id-{number}"), "Service": name, "Address": "10.9.9.9"});
        let node = json!({"Node": "names", "Address": "192.0.2.9", "Service": service});
        fixture.consul.api().put("/v1/catalog/register", &node).await?;
    }
    for name in &names {
        let answers = has_answer(fixture.consul.dns_address(), name).await?;
        ensure!(answers == resolves(name), "{name:?}: Consul answers {answers}");
    }
    Ok(())
}

/// Whether there is an answer to a question for `<name>.service.consul`, sent as it is: resolver
/// libraries refuse some of the names.
async fn has_answer(server: SocketAddr, name: &str) -> Result<bool> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    let mut question = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in [name, "service", "consul", ""] {
        question.push(u8::try_from(label.len())?);
        question.extend(label.as_bytes());
    }
    question.extend([0, 1, 0, 1]);
    socket.send_to(&question, server).await?;
    let mut answer = [0; 512];
    let length = timeout(DEADLINE, socket.recv(&mut answer)).await??;
    ensure!(length >= 12, "a short answer to {name:?}");
    Ok(answer[6..8] != [0, 0])
}

/// O12: a port is renamed and its slice follows a second later: a poller misses no answer.
#[tokio::test]
async fn o12_a_renamed_port_leaves_no_gap() -> Result<()> {
    for sink in [&[][..], &CATALOG] {
        for mode in ["auto", "endpoints", "external-ip", "load-balancer", "node-port"] {
            renamed_port(sink, mode).await.with_context(|| format!("{sink:?}, {mode}"))?;
        }
    }
    Ok(())
}

async fn renamed_port(sink: &[&str], mode: &str) -> Result<()> {
    let fixture = Fixture::new("port").await?;
    shipped_token(fixture.kubernetes).await?;
    fixture.kubernetes.apply_file(&manifest("optional/nodes-rbac.yaml")).await?;
    let node = OwnNode::create(&fixture, "port", &[("InternalIP", "10.78.0.1")]).await?;
    let slice = async |name: &str| {
        let ports = json!([{"name": name, "port": 8080, "protocol": "TCP"}]);
        let mut endpoint = endpoint("10.1.0.1", true);
        endpoint["nodeName"] = json!(node.name);
        fixture.slice("web", 1, ports, json!([endpoint])).await
    };
    slice("http").await?;
    let port = json!({"name": "http", "port": 80, "protocol": "TCP"});
    // With the policy only the node that has the endpoint is registered, and no other test's.
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "externalIPs": ["198.51.100.9"], "ports": [port]});
    let service = fixture.service("web", json!({}), spec).await?;
    fixture.set_load_balancer("web", json!([{"ip": "192.0.2.33"}])).await?;
    let bridge = fixture.bridge_with(&[&["--address", mode], sink].concat()).await?;
    let asked = fixture.dns()?;
    let name = "web.service.consul";
    let before = asked.ask(name, A).await?;
    ensure!(before.len() == 1, "{before:?}");
    let gap = InvariantMonitor::start(move || {
        let (asked, before) = (asked.clone(), before.clone());
        async move {
            let found = asked.ask(name, A).await?;
            Ok(if found == before { vec![] } else { vec![format!("{found:?}")] })
        }
    });
    let mut port = serde_json::to_value(&service)?["spec"]["ports"][0].clone();
    port["name"] = json!("web");
    fixture.patch("web", &json!({"spec": {"ports": [port]}})).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    slice("web").await?;
    eventually(DEADLINE, || async {
        let found = fixture.instances("web").await?;
        let ids: Vec<_> = found.iter().filter_map(|it| it["Service"]["ID"].as_str()).collect();
        ensure!(ids.len() == 1 && ids[0].contains("_web_web_"), "{ids:?}");
        Ok(())
    })
    .await?;
    gap.finish("a renamed port").await?;
    node.delete().await?;
    bridge.stop().await
}

/// O10: which nodes are registered, and at which address.
#[tokio::test]
async fn o10_nodes_are_registered_at_the_address_that_is_asked_for() -> Result<()> {
    let fixture = Fixture::new("excluded").await?;
    shipped_token(fixture.kubernetes).await?;
    fixture.kubernetes.apply_file(&manifest("optional/nodes-rbac.yaml")).await?;
    let both = [("InternalIP", "10.77.0.1"), ("ExternalIP", "10.77.1.1")];
    let node = OwnNode::create(&fixture, "both", &both).await?;
    let excluded = OwnNode::create(&fixture, "excluded", &[("InternalIP", "10.77.0.2")]).await?;
    excluded.label("node.kubernetes.io/exclude-from-external-load-balancers", "").await?;
    fixture.slice("web", 1, http(8080), json!([endpoint("10.1.0.1", true)])).await?;
    let spec = json!({"type": "NodePort", "ports": [{"name": "http", "port": 80}]});
    let internal = json!({"kube-consul.io/node-address": "internal"});
    fixture.service("web", internal, spec).await?;
    let bridge = fixture.bridge_with(&["--address=node-port"]).await?;
    // All tests share the cluster's nodes: only these are looked at.
    let wait_for = async |wanted: &[&str]| {
        eventually(DEADLINE, || async {
            let found = fixture.instances("web").await?;
            let addresses = found.iter().filter_map(|it| it["Service"]["Address"].as_str());
            let found: BTreeSet<&str> = addresses.filter(|it| it.starts_with("10.77.")).collect();
            ensure!(found.iter().eq(wanted), "{found:?}, want {wanted:?}");
            Ok(())
        })
        .await
    };
    wait_for(&["10.77.0.1"]).await?;
    fixture.annotate("web", json!({"kube-consul.io/node-address": null})).await?;
    wait_for(&["10.77.1.1"]).await?;
    excluded.label("node.kubernetes.io/exclude-from-external-load-balancers", Value::Null).await?;
    wait_for(&["10.77.0.2", "10.77.1.1"]).await?;
    bridge.stop().await?;
    let flags = ["--address=node-port", "--node-address=external"];
    let bridge = fixture.bridge_with(&flags).await?;
    wait_for(&["10.77.1.1"]).await?;
    node.delete().await?;
    excluded.delete().await?;
    bridge.stop().await
}
