//! From one way to register to another: no name is without a reachable instance in between.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use hickory_resolver::proto::rr::RecordType::A;
use k8s_openapi::api::core::v1::Service;
use kube_consul_stack::eventually;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::addresses::OwnNode;
use crate::support::{
    Bridge, DEADLINE, Fixture, InvariantMonitor, catalog_bridge, kube_consul, manifest, numbered,
    says, shipped_token, translated,
};

/// Services of each type.
const EACH: usize = 50;
/// Names that are asked for at a time.
const AT_A_TIME: usize = 8;
/// The node on which the catalog sync registers everything.
const NODE: &str = "k8s-sync";

/// Where each name may lead.
type Reachable = BTreeMap<String, BTreeSet<String>>;

impl Fixture {
    /// Services of four types with what the catalog sync has registered for them.
    async fn synchronized(&self, node: &OwnNode) -> Result<Reachable> {
        let mut reachable = Reachable::new();
        let objects = self.objects()?;
        let made = stream::iter(0..EACH).map(|n| {
            let objects = objects.clone();
            async move {
                let pod = |kind: usize| format!("10.{}.0.{n}", 20 + kind);
                let ready = |address: String| (vec![address], true);
                let plain = format!("plain-{n}");
                objects.create(&plain, &ready(pod(0)), Value::Null).await?;
                let external = format!("external-{n}");
                let outside = format!("192.0.2.{n}");
                objects
                    .create(&external, &ready(pod(1)), json!({"externalIPs": [outside]}))
                    .await?;
                let balanced = format!("balanced-{n}");
                let spec = json!({"type": "LoadBalancer"});
                objects.create(&balanced, &ready(pod(2)), spec).await?;
                let noded = format!("noded-{n}");
                let spec = json!({"type": "NodePort"});
                let service = objects.create(&noded, &ready(pod(3)), spec).await?;
                let endpoint = json!({"addresses": [pod(3)], "nodeName": node.name});
                objects.set_endpoints(&noded, &[endpoint]).await?;
                anyhow::Ok([
                    (plain, pod(0), 80),
                    (external, outside, 80),
                    (balanced, format!("203.0.113.{n}"), 80),
                    (noded, node.address.clone(), node_port(&service)?),
                ])
            }
        });
        let all: Vec<_> = made.buffer_unordered(AT_A_TIME).try_collect().await?;
        for (name, address, port) in all.into_iter().flatten() {
            if name.starts_with("balanced") {
                self.set_load_balancer(&name, json!([{"ip": address}])).await?;
            }
            let record = json!({
                "Node": NODE, "Address": "127.0.0.1", "SkipNodeUpdate": true,
                "NodeMeta": {"external-source": "kubernetes"},
                "Service": {
                    "ID": format!("{name}-{:08x}", reachable.len()), "Service": name,
                    "Address": address, "Port": port, "Tags": ["k8s"],
                    "Meta": {"external-source": "kubernetes", "external-k8s-ns": self.namespace,
                             "port-http": "80"},
                },
            });
            self.consul.api().put("/v1/catalog/register", &record).await?;
            reachable.insert(name, [address].into());
        }
        Ok(reachable)
    }
}

fn node_port(service: &Service) -> Result<i32> {
    let spec = service.spec.as_ref().context("no spec")?;
    let port = spec.ports.iter().flatten().next().and_then(|port| port.node_port);
    port.context("no node port")
}

/// Asks for all names, again and again, until it is told to stop: each has to lead somewhere, and
/// nowhere else. Gives how often it asked.
async fn poll(
    fixture: &Fixture,
    reachable: &Reachable,
    stop: watch::Receiver<bool>,
) -> Result<usize> {
    let (dns, mut asked) = (fixture.dns()?, 0);
    while !*stop.borrow() {
        let asking = stream::iter(reachable.iter()).map(|(name, reachable)| {
            let dns = &dns;
            async move {
                let found = dns.ask(&format!("{name}.service.consul"), A).await?;
                let known = found.iter().all(|address| reachable.contains(address));
                ensure!(known && !found.is_empty(), "{name}: {found:?}, want {reachable:?}");
                Ok(())
            }
        });
        let asking = asking.buffer_unordered(AT_A_TIME);
        asked += asking.try_collect::<Vec<()>>().await?.len();
    }
    Ok(asked)
}

#[tokio::test]
async fn no_name_is_lost_on_the_way_from_consul_k8s() -> Result<()> {
    let fixture = Fixture::new("migration").await?;
    shipped_token(fixture.kubernetes).await?;
    fixture.kubernetes.apply_file(&manifest("optional/nodes-rbac.yaml")).await?;
    let node = OwnNode::create(&fixture, "one", &[("InternalIP", "198.51.100.31")]).await?;
    let reachable = fixture.synchronized(&node).await?;
    ensure!(reachable.len() == 4 * EACH);
    let machine = json!({"Node": "machine", "Address": "10.7.0.1", "Service": {
        "ID": "postgres-1", "Service": "postgres", "Address": "10.7.0.1", "Port": 5432}});
    fixture.consul.api().put("/v1/catalog/register", &machine).await?;
    let (stop, stopped) = watch::channel(false);
    let moving = async {
        let moved = migrate(&fixture, &reachable).await;
        stop.send(true)?;
        moved
    };
    let (asked, ()) = tokio::try_join!(poll(&fixture, &reachable, stopped), moving)?;
    println!("{asked} DNS queries, each answered with a reachable address");
    ensure!(asked >= reachable.len(), "{asked}");
    let left = fixture.consul.api().get("/v1/catalog/node/machine").await?;
    ensure!(left["Services"]["postgres-1"]["Port"] == 5432, "{left}");
    ensure!(fixture.consul.api().get(&format!("/v1/catalog/node/{NODE}")).await?.is_null());
    node.delete().await
}

/// The steps of `docs/migration.md`.
async fn migrate(fixture: &Fixture, reachable: &Reachable) -> Result<()> {
    // 1 and 2: beside it, without its tag.
    let [beside, alone] = translated(&[
        "-to-k8s=false",
        "-allow-k8s-namespace=*",
        "-node-port-sync-type=ExternalFirst",
    ])
    .await?;
    let bridge = start(fixture, &beside).await?;
    for name in reachable.keys() {
        let instances = fixture.instances(name).await?;
        ensure!(instances.len() == 2, "{name}: {instances:?}");
    }
    // 3 and 4: it has stopped; what it left goes.
    let purge = ["purge", "--owner", "consul-k8s", "--node", NODE, "--yes"];
    let purge = kube_consul().args(purge).env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let said = says(0, purge).await?;
    // The node, too.
    ensure!(said.contains("Removed: 201"), "{said}");
    // 5: alone, with the tag.
    bridge.stop().await?;
    let bridge = start(fixture, &alone).await?;
    eventually(DEADLINE, || async {
        for (name, reachable) in reachable {
            let instances = fixture.instances(name).await?;
            let found: BTreeSet<_> =
                instances.iter().filter_map(|it| it["Service"]["Address"].as_str()).collect();
            let tags = instances.iter().all(|it| it["Service"]["Tags"].to_string().contains("k8s"));
            ensure!(instances.len() == 1 && tags, "{name}: {instances:?}");
            ensure!(found.iter().all(|it| reachable.contains(*it)), "{name}: {found:?}");
        }
        Ok(())
    })
    .await?;
    let status = bridge.status().await?;
    let problems = status["problems"].as_array().into_iter().flatten();
    let of_services = problems.filter(|it| it["kind"] == "Service").count();
    ensure!(of_services == 0, "{}", status["problems"]);
    bridge.stop().await
}

/// A bridge for the Services of the test with these flags.
async fn start(fixture: &Fixture, flags: &[String]) -> Result<Bridge> {
    let flags = flags.iter().skip_while(|flag| *flag != "--address");
    let command = catalog_bridge(fixture.consul.url(), "eu", &fixture.namespace).await?;
    let bridge = Bridge::start(command.arg("--leader-elect").args(flags)).await?;
    bridge.wait_ready().await?;
    Ok(bridge)
}

/// Names that a template changes: whoever asks for the old one, and for the new one where that is gone,
/// has an answer at any moment. Two bridges have both for as long as it takes.
#[tokio::test]
async fn names_move_to_another_template_without_a_gap() -> Result<()> {
    for sink in ["agent", "catalog"] {
        let fixture = Fixture::new("names").await?;
        let names = numbered("web", 20);
        fixture.create(names.iter().cloned()).await?;
        let bridge = |cluster: &'static str, template: &'static str| {
            let fixture = &fixture;
            async move {
                let flags = ["--sink", sink, "--cluster", cluster, "--name-template", template];
                let bridge = Bridge::start(fixture.command().await?.args(flags)).await?;
                bridge.wait_ready().await?;
                anyhow::Ok(bridge)
            }
        };
        let first = bridge("old", "{service}").await?;
        let other = |name: &str| format!("p-{name}-{}", fixture.namespace);
        let others: Vec<String> = names.iter().map(|name| other(name)).collect();
        let either: Vec<Vec<String>> =
            names.iter().zip(&others).map(|(old, new)| vec![old.clone(), new.clone()]).collect();
        let watched = watch_any(&fixture, either);
        // A prefix and a suffix: each instance moves.
        first.stop().await?;
        let second = bridge("old", "p-{service}-{namespace}").await?;
        wait_for_each(&fixture, &others, 1).await?;
        wait_for_each(&fixture, &names, 0).await?;
        watched.finish("either name").await?;
        // Both at once, until clients have moved.
        let watched = watch_any(&fixture, others.iter().map(|name| vec![name.clone()]).collect());
        let both = bridge("new", "{service}").await?;
        wait_for_each(&fixture, &names, 1).await?;
        watched.finish("the names of the first").await?;
        let watched = watch_any(&fixture, names.iter().map(|name| vec![name.clone()]).collect());
        second.stop().await?;
        let purge = ["purge", "--cluster", "old", "--sink", sink, "--yes"];
        let purge = kube_consul().args(purge).env("CONSUL_HTTP_ADDR", fixture.consul.url());
        says(0, purge).await?;
        wait_for_each(&fixture, &others, 0).await?;
        watched.finish("the names of the second").await?;
        both.stop().await?;
    }
    Ok(())
}

async fn wait_for_each(fixture: &Fixture, names: &[String], wanted: usize) -> Result<()> {
    for name in names {
        fixture.wait_for_instances(name, wanted).await?;
    }
    Ok(())
}

/// Sees to it that of each of these groups of names one has an instance, asked for in their order.
fn watch_any(fixture: &Fixture, groups: Vec<Vec<String>>) -> InvariantMonitor {
    let api = fixture.consul.api().clone();
    InvariantMonitor::start(move || {
        let (api, groups) = (api.clone(), groups.clone());
        async move {
            let mut missing = Vec::new();
            'groups: for group in groups {
                for name in &group {
                    let found = api.get(&format!("/v1/catalog/service/{name}")).await?;
                    if found.as_array().is_some_and(|all| !all.is_empty()) {
                        continue 'groups;
                    }
                }
                missing.push(format!("none of {group:?}"));
            }
            Ok(missing)
        }
    })
}

/// A PTR record that somebody set by hand is handed over by its flags: it is there all along.
#[tokio::test]
async fn ptr_records_set_by_hand_are_handed_over_without_a_gap() -> Result<()> {
    // What `docs/migration.md` shows for the cluster `kubernetes`.
    const FLAGS: u64 = 0x6b63_74af_b95d;
    let fixture = Fixture::new("by-hand").await?;
    let (same, other) = ("web", "api");
    let mut keys = Vec::new();
    for (name, value) in [(same, "web.service.dc1.consul"), (other, "api.example.org")] {
        fixture.web(name, &[("http", 80)]).await?;
        let address = fixture.cluster_ip(name).await?;
        let mut octets = address.split('.').collect::<Vec<_>>();
        octets.reverse();
        octets[0] = "0";
        let key = format!("{}.IN-ADDR.ARPA/{address}", octets.join("."));
        fixture.consul.api().put_text(&format!("/v1/kv/{key}"), value).await?;
        keys.push((key, value));
    }
    let api = fixture.consul.api().clone();
    let looked_at = keys.clone();
    let watched = InvariantMonitor::start(move || {
        let (api, keys) = (api.clone(), looked_at.clone());
        async move {
            let mut missing = Vec::new();
            for (key, _) in keys {
                if api.key(&key).await?.is_none() {
                    missing.push(key);
                }
            }
            Ok(missing)
        }
    });
    // What is given up is noticed at once, and by a resync at the latest.
    let bridge = Bridge::start(fixture.command().await?.arg("--resync=1s")).await?;
    bridge.wait_ready().await?;
    let namespace = fixture.namespace.as_str();
    // One that says the same is left alone; another one is a problem.
    bridge.wait_for_problem(namespace, other, "ForeignPtrRecord").await?;
    bridge.wait_for_no_problem(namespace, same).await?;
    for (key, value) in &keys {
        ensure!(fixture.consul.api().key(key).await?.as_deref() == Some(*value), "{key}");
        let path = format!("/v1/kv/{key}?flags={FLAGS}");
        fixture.consul.api().put_text(&path, value).await?;
    }
    let wanted = [(same, "web.service.dc1.consul"), (other, "api.service.dc1.consul")];
    eventually(DEADLINE * 4, || async {
        for ((key, _), (name, wanted)) in keys.iter().zip(wanted) {
            let found = fixture.consul.api().key(key).await?;
            ensure!(found.as_deref() == Some(wanted), "{name}: {found:?}");
        }
        bridge.wait_for_no_problem(namespace, other).await
    })
    .await?;
    watched.finish("PTR records").await?;
    // They are the bridge's now, and go with their Services.
    for (name, (key, _)) in [same, other].iter().zip(&keys) {
        fixture.delete(name).await?;
        eventually(DEADLINE * 4, || async {
            ensure!(fixture.consul.api().key(key).await?.is_none(), "{key} is left");
            Ok(())
        })
        .await?;
    }
    bridge.stop().await
}
