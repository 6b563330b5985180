//! From consul-k8s' catalog sync to a bridge: no name is without a reachable instance in between.

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
    Bridge, DEADLINE, Fixture, catalog_bridge, kube_consul, manifest, says, shipped_token,
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

/// The flags of the bridge that `migrate` prints.
async fn migrated() -> Result<Vec<String>> {
    let theirs = ["-to-k8s=false", "-allow-k8s-namespace=*", "-node-port-sync-type=ExternalFirst"];
    let command = kube_consul().args(["migrate", "from-sync-catalog", "--"]).args(theirs);
    let text = says(0, command).await?.replace(" \\\n", "");
    let line = text.lines().find(|line| line.starts_with("kube-consul bridge"));
    let words = line.context("no bridge")?.split_whitespace().skip(2);
    Ok(words.map(|word| word.trim_matches('\'').to_owned()).collect())
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
    let mut flags = migrated().await?;
    let tag = take(&mut flags, "--tag")?;
    let bridge = start(fixture, &flags).await?;
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
    take(&mut flags, "--join-existing")?;
    flags.extend(tag);
    let bridge = start(fixture, &flags).await?;
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

/// Takes a flag with its value out of a command line.
fn take(flags: &mut Vec<String>, name: &str) -> Result<Vec<String>> {
    let at = flags.iter().position(|flag| flag == name).with_context(|| format!("no {name}"))?;
    Ok(flags.drain(at..at + 2).collect())
}

/// A bridge for the Services of the test with these flags.
async fn start(fixture: &Fixture, flags: &[String]) -> Result<Bridge> {
    let flags = flags.iter().skip_while(|flag| *flag != "--address");
    let command = catalog_bridge(fixture.consul.url(), "eu", &fixture.namespace).await?;
    let bridge = Bridge::start(command.arg("--leader-elect").args(flags)).await?;
    bridge.wait_ready().await?;
    Ok(bridge)
}
