//! A bridge with the catalog sink, three servers for it, and much for it to do.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{ConsulApi, ProgramOptions, Recorded, eventually};
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::support::{Bridge, DEADLINE, Fixture, InvariantMonitor, Objects};

/// `bridge --sink catalog` for the namespace, with the shipped rights; the cluster is called as
/// the namespace.
pub async fn command(fixture: &Fixture) -> Result<ProgramOptions> {
    Ok(fixture.command().await?.args(["--sink", "catalog", "--cluster", &fixture.namespace]))
}

/// A bridge that is ready.
pub async fn bridge(fixture: &Fixture, flags: &[&str]) -> Result<Bridge> {
    let bridge = Bridge::start(command(fixture).await?.args(flags)).await?;
    bridge.wait_ready().await?;
    Ok(bridge)
}

/// The synthetic nodes of a cluster, by name.
pub async fn nodes(consul: &ConsulApi, cluster: &str) -> Result<Vec<String>> {
    let filter =
        format!("/v1/catalog/nodes?filter=Meta[%22kube-consul-cluster%22]%3D%3D%22{cluster}%22");
    let found = consul.get(&filter).await?;
    let nodes = found.as_array().context("a list of nodes")?.iter();
    Ok(nodes.filter_map(|node| Some(node["Node"].as_str()?.to_owned())).collect())
}

/// Waits until a cluster has these nodes.
pub async fn wait_for_nodes(consul: &ConsulApi, cluster: &str, wanted: &[&str]) -> Result<()> {
    eventually(DEADLINE, || async {
        let found = nodes(consul, cluster).await?;
        ensure!(found == wanted, "nodes {found:?}, want {wanted:?}");
        Ok(())
    })
    .await
}

/// The checks of an instance that `/v1/health/service` shows, but for those of the node.
pub fn checks(instance: &Value) -> Vec<&str> {
    let checks = instance["Checks"].as_array().into_iter().flatten();
    checks.filter_map(|check| check["Status"].as_str()).collect()
}

/// Who leads, by `/status`.
pub async fn leads(bridge: &Bridge) -> Result<bool> {
    Ok(bridge.status().await?["leadership"] == "leader")
}

/// The services on the node of a namespace: their tags by their name.
pub async fn registered(
    consul: &ConsulApi,
    cluster: &str,
    namespace: &str,
) -> Result<BTreeMap<String, String>> {
    let found = consul.get(&format!("/v1/catalog/node-services/k8s-{cluster}.{namespace}")).await?;
    Ok(named(&found))
}

/// The tags of each service in an answer of `/v1/catalog/node-services`, by its name.
fn named(answer: &Value) -> BTreeMap<String, String> {
    let services = answer["Services"].as_array().into_iter().flatten();
    let named = |it: &Value| Some((it["Service"].as_str()?.to_owned(), it["Tags"].to_string()));
    services.filter_map(named).collect()
}

/// What is registered on a node and is not as it ought to be: each of these names with its tag,
/// and no other. An empty tag is any.
pub fn differences(
    found: &BTreeMap<String, String>,
    wanted: &BTreeMap<String, String>,
) -> Vec<String> {
    let missing = wanted.iter().filter_map(|(name, tag)| match found.get(name) {
        None => Some(format!("{name} is missing")),
        Some(tags) if !tags.contains(tag.as_str()) => Some(format!("{name} has {tags}, not {tag}")),
        Some(_) => None,
    });
    let extra = found.keys().filter(|name| !wanted.contains_key(*name));
    missing.chain(extra.map(|name| format!("{name} is too much"))).collect()
}

/// Waits until exactly these are registered.
pub async fn wait_for_registered(
    consul: &ConsulApi,
    (cluster, namespace): (&str, &str),
    wanted: &BTreeMap<String, String>,
    deadline: Duration,
) -> Result<()> {
    eventually(deadline, || async {
        let found = differences(&registered(consul, cluster, namespace).await?, wanted);
        ensure!(found.is_empty(), "{} differences, such as {:?}", found.len(), found.first());
        Ok(())
    })
    .await
}

/// Each with any tag.
pub fn any_tag(names: &[String]) -> BTreeMap<String, String> {
    names.iter().map(|name| (name.clone(), String::new())).collect()
}

/// Changes Services one after the other at a steady pace, until it is stopped.
pub struct Changes {
    workers: Vec<JoinHandle<Result<BTreeMap<String, String>>>>,
    stop: Vec<oneshot::Sender<()>>,
}

/// Each has its own Services, so that their changes come in order.
const WORKERS: usize = 5;

// === impl Changes ===

impl Changes {
    /// `rate`: so many changes a second, of all of these Services in turn.
    pub fn start(objects: &Objects, names: &[String], rate: u32) -> Self {
        let pause = Duration::from_secs(1) * u32::try_from(WORKERS).unwrap_or(1) / rate;
        let (mut workers, mut stop) = (Vec::new(), Vec::new());
        for names in names.chunks(names.len().div_ceil(WORKERS)) {
            let (objects, names) = (objects.clone(), names.to_vec());
            let (sender, mut stopped) = oneshot::channel();
            stop.push(sender);
            workers.push(tokio::spawn(async move {
                let mut last = BTreeMap::new();
                let mut ticks = tokio::time::interval(pause);
                for number in 0_usize.. {
                    tokio::select! {
                        _ = ticks.tick() => {}
                        _ = &mut stopped => break,
                    }
                    let (name, tag) = (&names[number % names.len()], format!("change-{number}-"));
                    objects.tag(name, &tag).await?;
                    last.insert(name.clone(), tag);
                }
                Ok(last)
            }));
        }
        Self { workers, stop }
    }

    /// Ends them, and gives the last tag of each Service that was changed.
    pub async fn finish(self) -> Result<BTreeMap<String, String>> {
        drop(self.stop);
        let mut last = BTreeMap::new();
        for worker in self.workers {
            last.append(&mut worker.await??);
        }
        Ok(last)
    }
}

/// Sees to it that these names stay registered, as one server has it: what it has seen once it
/// does not lose, whoever leads. Waits until it has seen all of them.
pub async fn watch_names(
    server: &ConsulApi,
    (cluster, namespace): (&str, &str),
    names: &[String],
) -> Result<InvariantMonitor> {
    let path = format!("/v1/catalog/node-services/k8s-{cluster}.{namespace}?stale");
    let names = any_tag(names);
    let api = server.clone();
    eventually(DEADLINE, || async {
        let missing = missing_on(&api, &path, &names).await?;
        ensure!(missing.is_empty(), "{missing:?}");
        Ok(())
    })
    .await?;
    Ok(InvariantMonitor::start(move || {
        let (api, path, names) = (api.clone(), path.clone(), names.clone());
        async move { missing_on(&api, &path, &names).await }
    }))
}

/// Which of these names an answer of `/v1/catalog/node-services` lacks.
async fn missing_on(
    api: &ConsulApi,
    path: &str,
    names: &BTreeMap<String, String>,
) -> Result<Vec<String>> {
    let found = named(&api.get(path).await?);
    let missing = names.keys().filter(|name| !found.contains_key(*name));
    Ok(missing.map(|name| format!("{name} is missing")).collect())
}

/// The operations of a transaction.
pub fn operations(request: &Recorded) -> Vec<Value> {
    serde_json::from_slice(&request.body).unwrap_or_default()
}

/// Whether a transaction removes a service, a node or a key.
pub fn removes(request: &Recorded) -> bool {
    let is_delete = |it: &Value| {
        ["Service", "Node", "KV"]
            .iter()
            .any(|kind| it[*kind]["Verb"].as_str().is_some_and(|verb| verb.starts_with("delete")))
    };
    operations(request).iter().any(is_delete)
}
