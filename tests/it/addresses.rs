//! Which addresses are registered, in each mode.

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::{A, ANY, CNAME, SRV};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube_consul_stack::eventually;
use serde_json::{Value, json};

use crate::support::{
    Bridge, DEADLINE, Fixture, kubeconfig_with, manifest, shipped_rules, shipped_token,
};

const MODE: &str = "kube-consul.io/address";

/// A node whose kubelet is the test, which no pod is scheduled to.
pub struct OwnNode {
    api: Api<Node>,
    pub name: String,
    /// The first of its addresses.
    pub address: String,
}

impl OwnNode {
    pub async fn create(fixture: &Fixture, name: &str, addresses: &[(&str, &str)]) -> Result<Self> {
        let name = format!("{}-{name}", fixture.namespace);
        let address = addresses.first().map_or_else(String::new, |(_, first)| (*first).to_owned());
        let addresses: Vec<Value> = addresses
            .iter()
            .map(|(kind, address)| json!({"type": kind, "address": address}))
            .collect();
        let object = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kube-consul-tests/kubelet": "test"}},
            "spec": {"unschedulable": true},
            "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
        }))?;
        let api: Api<Node> = Api::all(fixture.kubernetes.client()?);
        api.create(&PostParams::default(), &object).await?;
        Ok(Self { api, name, address })
    }

    async fn set_ready(&self, ready: &str) -> Result<()> {
        let patch = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let patch = Patch::Strategic(patch);
        self.api.patch_status(&self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Sets a label; null removes it.
    pub async fn label(&self, label: &str, value: impl Into<Value>) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"labels": {label: value.into()}}}));
        self.api.patch(&self.name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    pub async fn delete(&self) -> Result<()> {
        self.api.delete(&self.name, &DeleteParams::default()).await?;
        Ok(())
    }
}

impl Fixture {
    /// A Service of type `NodePort` without a selector; gives its node port.
    async fn node_port_service(&self, name: &str, annotations: Value) -> Result<u16> {
        let object = json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"type": "NodePort", "ports": [{"name": "http", "port": 80}]},
        });
        let made: Service = self.kubernetes.create(&self.namespace, object).await?;
        let ports = made.spec.unwrap_or_default().ports.unwrap_or_default();
        let port = ports.first().and_then(|port| port.node_port).context("no node port")?;
        Ok(port.try_into()?)
    }

    /// Ready endpoints of a Service, each on a node.
    async fn endpoints_on(&self, name: &str, nodes: &[&OwnNode], ready: bool) -> Result<()> {
        let endpoint = |(index, node): (usize, &&OwnNode)| {
            let address = format!("10.1.0.{}", index + 1);
            json!({"addresses": [address], "conditions": {"ready": ready}, "nodeName": node.name})
        };
        let endpoints: Vec<Value> = nodes.iter().enumerate().map(endpoint).collect();
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-1"),
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
        });
        let api: Api<EndpointSlice> = Api::namespaced(self.kubernetes.client()?, &self.namespace);
        let patch = PatchParams::apply("kube-consul-tests").force();
        api.patch(&format!("{name}-1"), &patch, &Patch::Apply(object)).await?;
        Ok(())
    }

    pub async fn set_load_balancer(&self, name: &str, ingress: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        self.services()?.patch_status(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits until a name has these instances, as `address:port` with `!` for a critical one. Of
    /// other addresses than those that begin with `prefix` nothing is wanted: all tests share the
    /// cluster's nodes.
    async fn wait_for_addresses(&self, name: &str, prefix: &str, wanted: &[&str]) -> Result<()> {
        eventually(DEADLINE, || async {
            let mut found: Vec<String> = self.instances(name).await?.iter().map(shown).collect();
            found.retain(|address| address.starts_with(prefix));
            found.sort();
            ensure!(found == wanted, "{name}: {found:?}, want {wanted:?}");
            Ok(())
        })
        .await
    }
}

fn shown(instance: &Value) -> String {
    let service = &instance["Service"];
    let checks = instance["Checks"].as_array().into_iter().flatten();
    let critical = checks.into_iter().any(|check| check["Status"] == "critical");
    let (address, mark) =
        (service["Address"].as_str().unwrap_or_default(), if critical { "!" } else { "" });
    format!("{address}:{}{mark}", service["Port"])
}

/// The Event on a node, which has no namespace.
async fn shown_as_event(fixture: &Fixture, node: &OwnNode) -> Result<()> {
    let events: Api<Event> = Api::namespaced(fixture.kubernetes.client()?, "default");
    eventually(DEADLINE, || async {
        let list = events.list(&ListParams::default()).await?.items;
        let about = |event: &&Event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            regarding.kind.as_deref() == Some("Node")
                && regarding.name.as_ref() == Some(&node.name)
                && event.reason.as_deref() == Some("Incomplete")
        };
        list.iter()
            .find(about)
            .map(drop)
            .ok_or_else(|| anyhow::anyhow!("no Event on {}", node.name))
    })
    .await
}

#[tokio::test]
async fn an_annotation_chooses_the_addresses() -> Result<()> {
    let fixture = Fixture::new("addresses").await?;
    for mode in ["cluster-ip", "endpoints", "load-balancer", "external-ip"] {
        fixture.web(mode, &[("http", 80)]).await?;
        fixture.annotate(mode, json!({MODE: mode})).await?;
    }
    fixture.patch("external-ip", &json!({"spec": {"externalIPs": ["192.0.2.30"]}})).await?;
    fixture.patch("load-balancer", &json!({"spec": {"type": "LoadBalancer"}})).await?;
    let ingress = json!([{"ip": "192.0.2.31"}, {"hostname": "lb.example.org"}]);
    fixture.set_load_balancer("load-balancer", ingress).await?;
    let bridge = fixture.bridge().await?;
    let address = fixture.cluster_ip("cluster-ip").await?;
    fixture.wait_for_addresses("cluster-ip", "", &[&format!("{address}:80")]).await?;
    fixture.wait_for_addresses("endpoints", "", &["10.1.0.1:80"]).await?;
    fixture.wait_for_addresses("external-ip", "", &["192.0.2.30:80"]).await?;
    fixture.wait_for_addresses("load-balancer", "", &["192.0.2.31:80"]).await?;
    let dns = fixture.dns()?;
    // O7: DNS answers with the address, and not with a CNAME beside it.
    let told = bridge.wait_for_problem(&fixture.namespace, "load-balancer", "Incomplete").await?;
    ensure!(told.contains("lb.example.org"), "{told}");
    dns.wait_for("load-balancer.service.consul", ANY, &["192.0.2.31"]).await?;
    dns.wait_for("external-ip.service.consul", A, &["192.0.2.30"]).await?;

    fixture.set_load_balancer("load-balancer", json!([{"ip": "192.0.2.32"}])).await?;
    dns.wait_for("load-balancer.service.consul", A, &["192.0.2.32"]).await?;
    fixture.set_load_balancer("load-balancer", Value::Null).await?;
    fixture.wait_for_instances("load-balancer", 0).await?;
    // One that has no address yet is no problem: it is told when it lasts.
    let namespace = fixture.namespace.as_str();
    bridge.wait_for_no_problem(namespace, "load-balancer").await?;
    fixture.annotate("load-balancer", json!({MODE: null})).await?;
    let address = fixture.cluster_ip("load-balancer").await?;
    fixture.wait_for_addresses("load-balancer", "", &[&format!("{address}:80")]).await?;
    bridge.wait_for_no_problem(namespace, "load-balancer").await
}

#[tokio::test]
async fn node_ports_follow_the_nodes() -> Result<()> {
    let fixture = Fixture::new("node-port").await?;
    shipped_token(fixture.kubernetes).await?;
    fixture.kubernetes.apply_file(&manifest("optional/nodes-rbac.yaml")).await?;
    let one = [("InternalIP", "10.9.0.1"), ("ExternalIP", "198.51.100.1"), ("Hostname", "one")];
    let one = OwnNode::create(&fixture, "one", &one).await?;
    let two = [("InternalIP", "198.51.100.2"), ("InternalIP", "fd00::2")];
    let two = OwnNode::create(&fixture, "two", &two).await?;
    let odd = OwnNode::create(&fixture, "odd", &[("InternalIP", "nowhere")]).await?;
    let port = fixture.node_port_service("web", json!({})).await?;
    fixture.endpoints_on("web", &[&one], true).await?;
    let command = fixture.command().await?.arg("--address=node-port");
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    // Ready means registered; and only in the families of the Service.
    let ours = "198.51.100.";
    let (first, second) = (format!("198.51.100.1:{port}"), format!("198.51.100.2:{port}"));
    fixture.wait_for_addresses("web", ours, &[&first, &second]).await?;
    fixture.wait_for_addresses("web", "fd00", &[]).await?;
    let instances = fixture.instances("web").await?;
    let at_one = instances.iter().find(|it| it["Service"]["Address"] == "198.51.100.1");
    let node = &at_one.context("no instance at one")?["Service"]["Meta"]["external-k8s-node-name"];
    ensure!(*node == json!(one.name), "{node}");

    let told = bridge.problems_of("", &odd.name).await?;
    ensure!(told.len() == 1 && told[0]["kind"] == "Node", "{told:?}");
    ensure!(told[0]["message"].as_str().is_some_and(|it| it.contains("nowhere")), "{told:?}");
    shown_as_event(&fixture, &odd).await?;
    odd.delete().await?;

    fixture.patch("web", &json!({"spec": {"externalTrafficPolicy": "Local"}})).await?;
    fixture.wait_for_addresses("web", "", &[&first]).await?;
    let dns = fixture.dns()?;
    dns.wait_for("web.service.consul", SRV, &[&format!("port {port} weight 1")]).await?;
    fixture.endpoints_on("web", &[&one, &two], true).await?;
    fixture.wait_for_addresses("web", "", &[&first, &second]).await?;
    fixture.endpoints_on("web", &[&two], true).await?;
    fixture.wait_for_addresses("web", "", &[&second]).await?;
    two.set_ready("Unknown").await?;
    fixture.wait_for_addresses("web", "", &[&format!("{second}!")]).await?;
    dns.wait_for("web.service.consul", ANY, &[]).await?;
    two.set_ready("True").await?;
    dns.wait_for("web.service.consul", A, &["198.51.100.2"]).await?;
    two.delete().await?;
    fixture.wait_for_instances("web", 0).await?;
    fixture.patch("web", &json!({"spec": {"externalTrafficPolicy": "Cluster"}})).await?;
    fixture.wait_for_addresses("web", ours, &[&first]).await?;
    fixture.endpoints_on("web", &[&two], false).await?;
    fixture.wait_for_addresses("web", ours, &[&format!("{first}!")]).await?;
    // A node's address is not the Service's.
    let keys = fixture.consul.api().get("/v1/kv/?keys").await?;
    ensure!(!keys.to_string().contains("198.51.100."), "{keys}");
    one.delete().await?;
    fixture.wait_for_addresses("web", ours, &[]).await?;
    bridge.stop().await
}

#[tokio::test]
async fn without_the_right_to_nodes_only_their_services_wait() -> Result<()> {
    let fixture = Fixture::new("no-nodes").await?;
    let (cluster, namespace) = (fixture.kubernetes, fixture.namespace.as_str());
    let limited = cluster.namespace("limited").await?;
    let kubeconfig = kubeconfig_with(cluster, &limited, &shipped_rules(cluster).await?).await?;
    fixture.web("web", &[("http", 80)]).await?;
    fixture.node_port_service("ports", json!({})).await?;
    let command = crate::support::kube_consul()
        .args(["bridge", "--namespace", namespace, "--kubeconfig"])
        .arg(kubeconfig)
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let bridge = Bridge::start(command.clone()).await?;
    bridge.wait_ready().await?;
    let address = format!("{}:80!", fixture.cluster_ip("ports").await?);
    fixture.wait_for_addresses("ports", "", &[&address]).await?;
    ensure!(!bridge.program.stderr().contains("watching nodes"), "{}", bridge.program.stderr());

    // Asked for while it runs, and again by one that starts.
    fixture.annotate("ports", json!({MODE: "node-port"})).await?;
    let told = bridge.wait_for_problem(namespace, "ports", "Denied").await?;
    for part in ["list and watch nodes", "manifests/optional/nodes-rbac.yaml"] {
        ensure!(told.contains(part), "{told}");
    }
    bridge.stop().await?;
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    bridge.wait_for_problem(namespace, "ports", "Denied").await?;
    fixture.wait_for_addresses("ports", "", &[&address]).await?;
    fixture.web("next", &[("http", 80)]).await?;
    fixture.wait_for_instances("next", 1).await?;

    let node = OwnNode::create(&fixture, "one", &[("InternalIP", "203.0.113.1")]).await?;
    let mut rules = shipped_rules(cluster).await?;
    rules.push(json!({"apiGroups": [""], "resources": ["nodes"], "verbs": ["list", "watch"]}));
    let group = "rbac.authorization.k8s.io";
    let role = json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole",
        "metadata": {"name": limited}, "rules": rules});
    cluster.apply_yaml(&role.to_string()).await?;
    bridge.wait_for_no_problem(namespace, "ports").await?;
    // The problem is over once the nodes are known; the records follow.
    eventually(DEADLINE, || async {
        let found: Vec<String> = fixture.instances("ports").await?.iter().map(shown).collect();
        ensure!(!found.contains(&address), "{found:?}");
        ensure!(found.iter().any(|it| it.starts_with("203.0.113.1:")), "{found:?}");
        Ok(())
    })
    .await?;
    node.delete().await
}

/// What consul-k8s' catalog sync registers of each type.
#[tokio::test]
async fn by_type_registers_what_each_type_has() -> Result<()> {
    let fixture = Fixture::new("by-type").await?;
    shipped_token(fixture.kubernetes).await?;
    fixture.kubernetes.apply_file(&manifest("optional/nodes-rbac.yaml")).await?;
    let one = OwnNode::create(&fixture, "one", &[("InternalIP", "198.51.100.21")]).await?;
    let two = OwnNode::create(&fixture, "two", &[("InternalIP", "198.51.100.22")]).await?;
    for name in ["plain", "external", "balanced"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    fixture.patch("external", &json!({"spec": {"externalIPs": ["192.0.2.40"]}})).await?;
    fixture.patch("balanced", &json!({"spec": {"type": "LoadBalancer"}})).await?;
    fixture.set_load_balancer("balanced", json!([{"ip": "192.0.2.41"}])).await?;
    let port = fixture.node_port_service("noded", json!({})).await?;
    fixture.endpoints_on("noded", &[&one], true).await?;
    let alias = json!({
        "metadata": {"name": "alias", "labels": {"team": "payments"}},
        "spec": {"type": "ExternalName", "externalName": "db.example.org",
                 "ports": [{"name": "sql", "port": 5432}]},
    });
    let _: Service = fixture.kubernetes.create(&fixture.namespace, alias).await?;
    let options = ["--address=by-type", "--external-name", "--tag=k8s", "--tag-from-label=team"];
    let bridge = Bridge::start(fixture.command().await?.args(options)).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_addresses("plain", "", &["10.1.0.1:80"]).await?;
    fixture.wait_for_addresses("external", "", &["192.0.2.40:80"]).await?;
    fixture.wait_for_addresses("balanced", "", &["192.0.2.41:80"]).await?;
    fixture.wait_for_addresses("alias", "", &["db.example.org:5432"]).await?;
    // The node with the endpoint, and not the other one.
    let (first, second) = (format!("198.51.100.21:{port}"), format!("198.51.100.22:{port}"));
    fixture.wait_for_addresses("noded", "", &[&first]).await?;
    fixture.endpoints_on("noded", &[&two], true).await?;
    fixture.wait_for_addresses("noded", "", &[&second]).await?;
    let dns = fixture.dns()?;
    dns.wait_for("alias.service.consul", CNAME, &["db.example.org."]).await?;
    dns.wait_for("payments.alias.service.consul", CNAME, &["db.example.org."]).await?;
    dns.wait_for("k8s.external.service.consul", A, &["192.0.2.40"]).await?;
    // A type that changes moves its record.
    fixture.set_load_balancer("balanced", Value::Null).await?;
    fixture.patch("balanced", &json!({"spec": {"type": "ClusterIP"}})).await?;
    fixture.wait_for_addresses("balanced", "", &["10.1.0.1:80"]).await?;
    one.delete().await?;
    two.delete().await?;
    bridge.stop().await
}
