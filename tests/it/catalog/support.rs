//! A bridge with the catalog sink.

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{ConsulApi, ProgramOptions, eventually};
use serde_json::Value;

use crate::support::{Bridge, DEADLINE, Place};

/// `bridge --sink catalog` for the namespace, with the shipped rights; the cluster is called as
/// the namespace.
pub async fn command(place: &Place) -> Result<ProgramOptions> {
    Ok(place.command().await?.args(["--sink", "catalog", "--cluster", &place.namespace]))
}

/// A bridge that is ready.
pub async fn bridge(place: &Place, flags: &[&str]) -> Result<Bridge> {
    let bridge = Bridge::start(command(place).await?.args(flags)).await?;
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
