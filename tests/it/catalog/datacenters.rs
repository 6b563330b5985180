//! Two datacenters, joined over WAN: the catalog of one is written through the servers of the other.

use anyhow::{Result, ensure};
use kube_consul_stack::{Consul, ConsulOptions, Endpoint, eventually};

use crate::support::{Bridge, DEADLINE, Fixture, catalog_bridge, kube_consul, says};

/// How many instances of `web` a datacenter has, asked in that datacenter.
async fn instances(consul: &Consul) -> Result<usize> {
    let found = consul.api().get("/v1/health/service/web").await?;
    Ok(found.as_array().map_or(0, Vec::len))
}

#[tokio::test]
async fn the_catalog_of_another_datacenter_is_written() -> Result<()> {
    let here = Fixture::with_consul("datacenters", ConsulOptions::dev().node("here")).await?;
    let there = ConsulOptions::dev().node("there").datacenter("dc2").federated_with(&here.consul);
    let there = Consul::start(there).await?;
    eventually(DEADLINE, || async {
        // Asked through the one about the other.
        let leader = here.consul.api().get("/v1/status/leader?dc=dc2").await?;
        ensure!(leader.as_str().is_some_and(|it| !it.is_empty()), "{leader}");
        Ok(())
    })
    .await?;
    here.web("web", &[("http", 80)]).await?;
    let flags = ["--datacenter=dc2", "--leader-elect"];
    let command = || async {
        let command = catalog_bridge(here.consul.url(), "eu", &here.namespace).await?;
        anyhow::Ok(command.args(flags))
    };
    let bridge = Bridge::start(command().await?).await?;
    bridge.wait_ready().await?;
    ensure!(instances(&there).await? == 1);
    ensure!(instances(&here.consul).await? == 0, "nothing belongs here");
    // The marks, the lock and the PTR record, too.
    let there_keys = there.api().get("/v1/kv/?keys").await?.to_string();
    for key in ["kube-consul/eu/owner", "kube-consul/eu/leader", "IN-ADDR.ARPA"] {
        ensure!(there_keys.contains(key), "{key}: {there_keys}");
    }
    let here_keys = here.consul.api().get("/v1/kv/?keys").await?;
    ensure!(here_keys.as_array().is_none_or(Vec::is_empty), "{here_keys}");
    let address = here.cluster_ip("web").await?;
    let reversed: Vec<&str> = address.split('.').rev().skip(1).collect();
    let key = format!("0.{}.IN-ADDR.ARPA/{address}", reversed.join("."));
    let target = there.api().key(&key).await?;
    ensure!(target.as_deref() == Some("web.service.dc2.consul"), "{target:?}");
    // What changes and goes follows; a plan reads the same place.
    here.endpoints("web", &[Endpoint::unready("10.1.0.9")], &[("http", 80)]).await?;
    eventually(DEADLINE, || async {
        let found = there.api().get("/v1/health/service/web?passing").await?;
        ensure!(found.as_array().is_some_and(Vec::is_empty), "{found}");
        Ok(())
    })
    .await?;
    here.delete("web").await?;
    eventually(DEADLINE, || async {
        ensure!(instances(&there).await? == 0);
        Ok(())
    })
    .await?;
    bridge.stop().await?;
    let purge = kube_consul()
        .args(["purge", "--cluster", "eu", "--sink", "catalog", "--datacenter=dc2", "--yes"])
        .env("CONSUL_HTTP_ADDR", here.consul.url());
    says(0, purge).await?;
    let there_keys = there.api().get("/v1/kv/?keys").await?;
    ensure!(there_keys.as_array().is_none_or(Vec::is_empty), "{there_keys}");
    Ok(())
}
