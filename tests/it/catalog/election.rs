//! The lock is lost while its session goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::eventually;

use super::support::{bridge, leads};
use crate::support::{Bridge, DEADLINE, Place};

const PORTS: [(&str, u16); 1] = [("http", 80)];

/// A session of 10 s runs out within 20 s; the rest is for a machine with other work.
const TAKE_OVER: Duration = Duration::from_secs(40);

async fn wait_for_lead(bridge: &Bridge) -> Result<()> {
    eventually(TAKE_OVER, || async {
        ensure!(leads(bridge).await?, "it does not lead: {}", bridge.status().await?["leadership"]);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_leader_whose_lock_is_taken_from_it_lets_go_without_a_write() -> Result<()> {
    let place = Place::new("lock").await?;
    let first = bridge(&place, &["--leader-elect"]).await?;
    wait_for_lead(&first).await?;
    let second = bridge(&place, &["--leader-elect"]).await?;
    let (consul, cluster) = (place.consul.api(), &place.namespace);
    // With the key goes the lock, but not the session; with the base node both.
    consul.delete(&format!("/v1/kv/kube-consul/{cluster}/leader")).await?;
    wait_for_lead(&second).await?;
    eventually(DEADLINE, || async {
        ensure!(!leads(&first).await?, "two lead");
        Ok(())
    })
    .await?;
    let base = serde_json::json!({"Node": format!("k8s-{cluster}"), "Datacenter": "dc1"});
    consul.put("/v1/catalog/deregister", &base).await?;
    wait_for_lead(&first).await?;
    eventually(DEADLINE, || async {
        ensure!(!leads(&second).await?, "two lead");
        Ok(())
    })
    .await?;
    place.web("web", &PORTS).await?;
    place.wait_for_instances("web", 1).await?;
    first.stop().await?;
    second.stop().await
}
