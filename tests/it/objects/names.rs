//! Who holds a name, and what a tenant may do.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hickory_resolver::proto::rr::RecordType::A;
use kube_consul_stack::{
    Consul, ConsulOptions, Endpoint, Kubernetes, KubernetesOptions, ServiceKind, eventually,
};
use serde_json::{Value, json};

use super::support::{endpoint, headless, http};
use crate::support::{Bridge, DEADLINE, Dns, Fixture, InvariantMonitor, kube_consul, says};

const NAME: &str = "kube-consul.io/service-name";
const TAGS: &str = "kube-consul.io/service-tags";
const JOIN: &str = "kube-consul.io/join";

/// Somebody's machine under a name.
async fn machine(fixture: &Fixture, name: &str, address: &str) -> Result<()> {
    let service = json!({"Name": name, "ID": format!("machine-{name}"), "Address": address});
    fixture.consul.api().put("/v1/agent/service/register", &service).await?;
    fixture.wait_for_instances(name, 1).await
}

/// The spec of a Service with one port.
fn http_80() -> Value {
    json!({"ports": [{"name": "http", "port": 80}]})
}

/// A cluster with an API server of its own, and its bridge's command.
struct Cluster {
    kubernetes: Kubernetes,
    name: &'static str,
}

impl Cluster {
    async fn start(name: &'static str) -> Result<Self> {
        let kubernetes = Kubernetes::start(KubernetesOptions::default()).await?;
        Ok(Self { kubernetes, name })
    }

    /// A Service `web` in the namespace `shop`; gives its address.
    async fn web(&self) -> Result<String> {
        let ports = [("http", 80)];
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "shop"}});
        self.kubernetes.apply_yaml(&namespace.to_string()).await?;
        let ready = [Endpoint::ready("10.1.0.1")];
        self.kubernetes.endpoint_slice("shop", "web", "web-1", &ready, &ports).await?;
        let kind = ServiceKind::Selectorless;
        let made = self.kubernetes.service("shop", "web", kind, &ports).await?;
        Ok(made.spec.and_then(|spec| spec.cluster_ip).unwrap_or_default())
    }

    async fn bridge(&self, consul: &Consul, flags: &[&str]) -> Result<Bridge> {
        let command = kube_consul()
            .args(["bridge", "--sink", "catalog", "--cluster", self.name, "--namespace", "shop"])
            .arg("--kubeconfig")
            .arg(self.kubernetes.kubeconfig())
            .env("CONSUL_HTTP_ADDR", consul.url());
        let bridge = Bridge::start(command.args(flags)).await?;
        bridge.wait_ready().await?;
        Ok(bridge)
    }
}

#[tokio::test]
async fn n1_two_clusters_do_not_share_a_name_unasked() -> Result<()> {
    let (eu, us, consul) = tokio::try_join!(
        Cluster::start("eu"),
        Cluster::start("us"),
        Consul::start(ConsulOptions::dev())
    )?;
    let (in_eu, in_us) = tokio::try_join!(eu.web(), us.web())?;
    // The same range of addresses: so that they differ, which DNS answers once.
    ensure!(in_eu != in_us, "{in_eu}");
    let dns = Dns::new(consul.dns_address())?;
    let name = "web.service.consul";
    let first = eu.bridge(&consul, &["--resync", "1s"]).await?;
    dns.wait_for(name, A, &[&in_eu]).await?;
    let second = us.bridge(&consul, &[]).await?;
    let told = second.wait_for_problem("shop", "web", "ForeignName").await?;
    ensure!(told.contains("another cluster's bridge") || told.contains("\"eu\""), "{told}");
    ensure!(dns.ask(name, A).await? == [in_eu.as_str()]);
    // The one that has it is told nothing.
    first.wait_for_no_problem("shop", "web").await?;
    second.stop().await?;

    // Clusters that share names on purpose.
    let second = us.bridge(&consul, &["--join-existing", "kubernetes"]).await?;
    let mut both = [in_eu.as_str(), &in_us];
    both.sort_unstable();
    dns.wait_for(name, A, &both).await?;
    second.wait_for_no_problem("shop", "web").await?;
    // To the first the other one has come later: its own stays.
    let told = first.wait_for_problem("shop", "web", "ForeignName").await?;
    ensure!(told.contains("stays"), "{told}");
    dns.wait_for(name, A, &both).await?;
    second.stop().await?;
    first.stop().await?;
    eu.kubernetes.stop().await?;
    us.kubernetes.stop().await
}

impl Cluster {
    /// A Service at the external IP, which every cluster may give itself.
    async fn at(&self, name: &str, address: &str) -> Result<()> {
        let object = json!({"apiVersion": "v1", "kind": "Service",
            "metadata": {"name": name, "namespace": "shop",
                "annotations": {"kube-consul.io/address": "external-ip"}},
            "spec": {"externalIPs": [address], "ports": [{"name": "http", "port": 80}]}});
        let (ready, slice) = ([Endpoint::ready("10.1.0.2")], format!("{name}-1"));
        self.kubernetes.endpoint_slice("shop", name, &slice, &ready, &[("http", 80)]).await?;
        self.kubernetes.apply_yaml(&object.to_string()).await.map(drop)
    }
}

/// N2: a PTR record goes to another cluster's Service as soon as its holder gives it up.
#[tokio::test]
async fn n2_a_shared_ptr_record_is_handed_over_at_once() -> Result<()> {
    let (eu, us, consul) = tokio::try_join!(
        Cluster::start("eu"),
        Cluster::start("us"),
        Consul::start(ConsulOptions::dev())
    )?;
    tokio::try_join!(eu.web(), us.web())?;
    let address = "198.51.100.7";
    let key = format!("0.100.51.198.IN-ADDR.ARPA/{address}");
    let mut flags = vec!["--name-template", "{cluster}-{service}"];
    flags.extend(["--annotations", "none", "--trusted-namespace", "shop"]);
    let first = eu.bridge(&consul, &flags).await?;
    eu.at("in-eu", address).await?;
    let wait_for = async |wanted: &str| {
        eventually(DEADLINE, || async {
            let found = consul.api().key(&key).await?;
            ensure!(found.as_deref() == Some(wanted), "{found:?}, want {wanted}");
            Ok(())
        })
        .await
    };
    wait_for("eu-in-eu.service.dc1.consul").await?;
    let second = us.bridge(&consul, &flags).await?;
    us.at("in-us", address).await?;
    let dns = Dns::new(consul.dns_address())?;
    dns.wait_for("us-in-us.service.consul", A, &[address]).await?;
    wait_for("eu-in-eu.service.dc1.consul").await?;
    // The least time between two resyncs is a minute.
    let began = Instant::now();
    eu.kubernetes.kubectl(&["delete", "service", "in-eu", "--namespace", "shop"]).await?;
    wait_for("us-in-us.service.dc1.consul").await?;
    let took = began.elapsed();
    println!("handed over {took:?} after the deletion was asked for");
    ensure!(took < Duration::from_secs(20), "handed over after {took:?}");
    let log = second.program.stderr();
    ensure!(log.contains("took over a PTR record"), "{log}");
    // The other way round, once the bridge of the holder is gone for good.
    eu.at("back-in-eu", address).await?;
    dns.wait_for("eu-back-in-eu.service.consul", A, &[address]).await?;
    second.stop().await?;
    let purge = kube_consul().args(["purge", "--cluster", "us", "--sink", "catalog", "--yes"]);
    says(0, purge.env("CONSUL_HTTP_ADDR", consul.url())).await?;
    wait_for("eu-back-in-eu.service.dc1.consul").await?;
    first.stop().await?;
    eu.kubernetes.stop().await?;
    us.kubernetes.stop().await
}

/// N3: who took a name a moment ago is not joined, although the last listing did not show them.
#[tokio::test]
async fn n3_a_new_name_is_looked_up_before_its_first_write() -> Result<()> {
    for flags in [&[][..], &["--sink", "catalog"]] {
        let fixture = Fixture::new("new").await?;
        let namespace = fixture.namespace.as_str();
        fixture.web("web", &[("http", 80)]).await?;
        let bridge = fixture.bridge_with(flags).await?;
        let dns = fixture.dns()?;
        machine(&fixture, "postgres", "192.0.2.7").await?;
        let asked = fixture.dns()?;
        let joined = InvariantMonitor::start(move || {
            let asked = asked.clone();
            async move {
                let found = asked.ask("postgres.service.consul", A).await?;
                Ok(if found == ["192.0.2.7"] { vec![] } else { vec![format!("{found:?}")] })
            }
        });
        fixture.web("postgres", &[("sql", 5432)]).await?;
        bridge.wait_for_problem(namespace, "postgres", "ForeignName").await?;
        // One that nobody has is there at once.
        fixture.web("free", &[("http", 80)]).await?;
        dns.wait_for("free.service.consul", A, &[&fixture.cluster_ip("free").await?]).await?;
        joined.finish("a name of others").await?;
        bridge.stop().await?;
    }
    Ok(())
}

/// O15: what a Service that was renamed to a name of others has stays under its former name, new
/// pods too.
#[tokio::test]
async fn o15_pods_of_a_service_renamed_to_a_name_of_others_have_its_former_name() -> Result<()> {
    let fixture = Fixture::new("renamed").await?;
    machine(&fixture, "postgres", "192.0.2.7").await?;
    let namespace = fixture.namespace.as_str();
    let pods = async |addresses: &[&str]| {
        let endpoints: Vec<Value> = addresses.iter().map(|it| endpoint(it, true)).collect();
        fixture.slice("db", 1, http(5432), json!(endpoints)).await
    };
    pods(&["10.1.0.1", "10.1.0.2"]).await?;
    let spec = headless(&json!([{"name": "http", "port": 5432}]));
    fixture.service("db", json!({}), spec).await?;
    let bridge = fixture.bridge_with(&["--sink", "catalog"]).await?;
    let dns = fixture.dns()?;
    let name = "db.service.consul";
    dns.wait_for(name, A, &["10.1.0.1", "10.1.0.2"]).await?;
    fixture.annotate("db", json!({NAME: "postgres"})).await?;
    bridge.wait_for_problem(namespace, "db", "ForeignName").await?;
    for addresses in [["10.1.0.2", "10.1.0.3"], ["10.1.0.3", "10.1.0.4"]] {
        pods(&addresses).await?;
        dns.wait_for(name, A, &addresses).await?;
    }
    ensure!(dns.ask("postgres.service.consul", A).await? == ["192.0.2.7"]);
    bridge.stop().await
}

/// N11, N12: a node of ours that somebody registered anew, which takes our mark from it.
#[tokio::test]
async fn n11_n12_what_is_on_a_node_that_lost_its_mark_is_followed() -> Result<()> {
    let fixture = Fixture::new("overwritten").await?;
    let (api, namespace) = (fixture.consul.api(), fixture.namespace.as_str());
    fixture.web("web", &[("http", 80)]).await?;
    fixture.web("api", &[("http", 80)]).await?;
    let flags = ["--sink", "catalog", "--resync", "1s"];
    let bridge = fixture.bridge_with(&flags).await?;
    let dns = fixture.dns()?;
    let node = format!("k8s-kubernetes.{namespace}");
    for overwritten in [&*node, "k8s-kubernetes"] {
        let body = json!({"Node": overwritten, "Address": "192.0.2.9"});
        api.put("/v1/catalog/register", &body).await?;
    }
    // What others change on it is still found, and what goes, goes.
    let id = format!("kubernetes_{namespace}_web_http_{}", fixture.cluster_ip("web").await?);
    let gone = json!({"Node": node, "ServiceID": id});
    api.put("/v1/catalog/deregister", &gone).await?;
    dns.wait_for("web.service.consul", A, &[&fixture.cluster_ip("web").await?]).await?;
    bridge.stop().await?;
    let bridge = fixture.bridge_with(&flags).await?;
    fixture.delete("web").await?;
    dns.wait_for("web.service.consul", A, &[]).await?;
    // N12: what carries our mark on the base node, where no bridge registers anything.
    let meta = json!({"kube-consul-cluster": "kubernetes", "external-source": "kubernetes"});
    let stray = json!({"Node": "k8s-kubernetes", "SkipNodeUpdate": true, "Address": "192.0.2.1",
        "Service": {"ID": "stray", "Service": "stray", "Address": "192.0.2.8", "Meta": meta}});
    api.put("/v1/catalog/register", &stray).await?;
    // A service of somebody else's there is none of our business.
    let theirs = json!({"Node": "k8s-kubernetes", "SkipNodeUpdate": true, "Address": "192.0.2.1",
        "Service": {"ID": "theirs", "Service": "theirs", "Address": "192.0.2.7"}});
    api.put("/v1/catalog/register", &theirs).await?;
    fixture.wait_for_instances("stray", 0).await?;
    let log = bridge.program.stderr();
    ensure!(log.contains("service ID stray on base node k8s-kubernetes: it is removed"), "{log}");
    fixture.wait_for_instances("theirs", 1).await?;
    // Somebody's check of the node keeps it.
    let check = json!({"Node": node, "SkipNodeUpdate": true, "Address": "192.0.2.1",
        "Check": {"CheckID": "theirs", "Name": "theirs", "Status": "passing"}});
    api.put("/v1/catalog/register", &check).await?;
    fixture.delete("api").await?;
    dns.wait_for("api.service.consul", A, &[]).await?;
    eventually(DEADLINE, || async {
        let problems = bridge.status().await?["problems"].clone();
        let told = problems[0]["message"].as_str().unwrap_or_default();
        let is_it = problems[0]["reason"] == "ForeignOnNode" && told.contains("check theirs");
        ensure!(is_it, "{problems}");
        Ok(())
    })
    .await?;
    let nodes = async || -> Result<bool> {
        let nodes = api.get("/v1/catalog/nodes").await?;
        let nodes = nodes.as_array().into_iter().flatten();
        Ok(nodes.into_iter().any(|it| it["Node"] == *node))
    };
    ensure!(nodes().await?, "a check of somebody's went with the node");
    api.put("/v1/catalog/deregister", &json!({"Node": node, "CheckID": "theirs"})).await?;
    eventually(DEADLINE, || async {
        ensure!(!nodes().await?, "the empty node is still there");
        Ok(())
    })
    .await?;
    bridge.stop().await
}

/// N4, N5, N10 and N13, beside machines.
#[tokio::test]
async fn beside_machines_a_tenant_gets_what_is_not_theirs() -> Result<()> {
    let fixture = Fixture::new("tenants").await?;
    machine(&fixture, "postgres", "192.0.2.7").await?;
    machine(&fixture, "billing", "192.0.2.8").await?;
    let namespace = fixture.namespace.as_str();
    let dns = fixture.dns()?;
    fixture.web("db", &[("sql", 5432)]).await?;
    let joined = json!({NAME: "postgres", JOIN: "true", TAGS: "primary"});
    fixture.annotate("db", joined).await?;
    let bridge = fixture.bridge_with(&["--on-conflict", "merge"]).await?;
    let address = fixture.cluster_ip("db").await?;
    let own = format!("{namespace}.postgres.service.consul");
    dns.wait_for(&own, A, &[&address]).await?;
    // N10: neither the annotation's tag nor the port's name leads there.
    for tag in ["primary", "sql"] {
        ensure!(dns.ask(&format!("{tag}.postgres.service.consul"), A).await?.is_empty(), "{tag}");
    }
    let told = bridge.wait_for_problem(namespace, "db", "Incomplete").await?;
    ensure!(told.contains("primary"), "{told}");

    // N4: that `db` has joined it gives `postgres` no right to.
    fixture.web("postgres", &[("sql", 5432)]).await?;
    bridge.wait_for_problem(namespace, "postgres", "ForeignName").await?;
    let mut two = ["192.0.2.7", address.as_str()];
    two.sort_unstable();
    dns.wait_for("postgres.service.consul", A, &two).await?;

    // N5: `bİlling` is `billing` to Consul.
    fixture.service("other", json!({NAME: "b\u{130}lling"}), http_80()).await?;
    eventually(DEADLINE, || async {
        let problems = bridge.problems_of(namespace, "other").await?;
        let is_foreign = |it: &Value| it["reason"] == "ForeignName";
        ensure!(problems.iter().any(is_foreign), "{problems:?}");
        Ok(())
    })
    .await?;
    ensure!(dns.ask("billing.service.consul", A).await? == ["192.0.2.8"]);
    bridge.stop().await?;

    // N13: no tenant joins where the operator does not let them. What is registered stays.
    let flags = ["--on-conflict", "merge", "--annotations", "service-name"];
    let bridge = fixture.bridge_with(&flags).await?;
    dns.wait_for("postgres.service.consul", A, &two).await?;
    fixture.service("late", json!({NAME: "billing", JOIN: "true"}), http_80()).await?;
    eventually(DEADLINE, || async {
        let problems = bridge.problems_of(namespace, "db").await?;
        let ignored = problems.iter().filter(|it| it["reason"] == "IgnoredAnnotation").count();
        ensure!(ignored == 2, "{problems:?}");
        let problems = bridge.problems_of(namespace, "late").await?;
        let reasons: Vec<_> = problems.iter().filter_map(|it| it["reason"].as_str()).collect();
        ensure!(reasons == ["IgnoredAnnotation", "ForeignName"], "{problems:?}");
        Ok(())
    })
    .await?;
    ensure!(dns.ask("billing.service.consul", A).await? == ["192.0.2.8"]);
    bridge.stop().await
}

/// N9: an external IP that somebody writes takes no address's record away.
#[tokio::test]
async fn n9_a_cluster_ip_keeps_its_ptr_record() -> Result<()> {
    let fixture = Fixture::new("rank").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let address = fixture.cluster_ip("web").await?;
    let parts: Vec<&str> = address.rsplit('.').skip(1).collect();
    let key = format!("0.{}.IN-ADDR.ARPA/{address}", parts.join("."));
    // Elsewhere an external IP that an annotation asks for has no PTR record at all.
    let trusted = ["--annotations", "none", "--trusted-namespace", &fixture.namespace];
    let bridge = Bridge::start(fixture.command().await?.args(trusted)).await?;
    bridge.wait_ready().await?;
    let record = async || fixture.consul.api().key(&key).await;
    ensure!(record().await?.as_deref() == Some("web.service.dc1.consul"));
    fixture.web("a", &[("http", 80)]).await?;
    fixture.patch("a", &json!({"spec": {"externalIPs": [address]}})).await?;
    fixture.annotate("a", json!({"kube-consul.io/address": "external-ip"})).await?;
    fixture.dns()?.wait_for("a.service.consul", A, &[&address]).await?;
    ensure!(record().await?.as_deref() == Some("web.service.dc1.consul"));
    fixture.delete("web").await?;
    eventually(DEADLINE, || async {
        let found = record().await?;
        ensure!(found.as_deref() == Some("a.service.dc1.consul"), "{found:?}");
        Ok(())
    })
    .await?;
    bridge.stop().await
}

/// N8: what an operator puts on an instance in the agent stays there.
#[tokio::test]
async fn n8_maintenance_mode_outlives_our_writes() -> Result<()> {
    let fixture = Fixture::new("maintenance").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let bridge = fixture.bridge().await?;
    let instance = fixture.instances("web").await?[0].clone();
    let id = instance["Service"]["ID"].as_str().unwrap_or_default();
    let path = format!("/v1/agent/service/maintenance/{id}?enable=true&reason=tests");
    fixture.consul.api().put(&path, &Value::Null).await?;
    let wait_for_checks = async |wanted: &[&str]| {
        eventually(DEADLINE, || async {
            let found = fixture.consul.api().get("/v1/agent/checks").await?;
            let of_it = found.as_object().into_iter().flatten();
            let of_it = of_it.filter(|(_, check)| check["ServiceID"] == id);
            let mut names: Vec<&str> = of_it.filter_map(|(_, it)| it["Name"].as_str()).collect();
            names.sort_unstable();
            ensure!(names == wanted, "{names:?}, want {wanted:?}");
            Ok(())
        })
        .await
    };
    let maintenance = "Service Maintenance Mode";
    wait_for_checks(&[maintenance]).await?;
    fixture.annotate("web", json!({TAGS: "blue"})).await?;
    let dns = fixture.dns()?;
    eventually(DEADLINE, || async {
        let tags = fixture.instances("web").await?[0]["Service"]["Tags"].clone();
        ensure!(tags.to_string().contains("blue"), "{tags}");
        Ok(())
    })
    .await?;
    wait_for_checks(&[maintenance]).await?;
    // Only our own check comes and goes.
    fixture.endpoints("web", &[Endpoint::unready("10.1.0.1")], &[("http", 80)]).await?;
    wait_for_checks(&["Kubernetes readiness", maintenance]).await?;
    fixture.endpoints("web", &[Endpoint::ready("10.1.0.1")], &[("http", 80)]).await?;
    wait_for_checks(&[maintenance]).await?;
    ensure!(dns.ask("web.service.consul", A).await?.is_empty());
    let path = path.replace("enable=true", "enable=false");
    fixture.consul.api().put(&path, &Value::Null).await?;
    let address = fixture.cluster_ip("web").await?;
    dns.wait_for("web.service.consul", A, &[&address]).await?;
    bridge.stop().await
}
