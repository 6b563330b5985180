//! The lock is lost while its session goes on.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Fault, HttpRecorder, eventually};

use super::support::{bridge, command, leads};
use crate::support::{Bridge, DEADLINE, Place};

const PORTS: [(&str, u16); 1] = [("http", 80)];

/// A session of 10 s runs out within 20 s; the rest is for a machine with other work.
const TAKE_OVER: Duration = Duration::from_secs(40);

/// Longer than a bridge takes to end.
const ENDS: Duration = Duration::from_secs(8);

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

#[tokio::test]
async fn a_candidate_that_ends_while_it_takes_the_lock_leaves_it_to_others() -> Result<()> {
    let place = Place::new("candidate").await?;
    let recorder = HttpRecorder::start(place.consul.url()).await?;
    let takes = |path: &str| path.contains("acquire=");
    recorder.fault_times(1, Fault::DropAfter, move |it| takes(&it.path));
    recorder.fault_times(1, Fault::Delay(ENDS), |it| it.path.contains("/v1/session/destroy"));
    let command = command(&place).await?.args(["--leader-elect"]);
    let candidate = Bridge::start(command.env("CONSUL_HTTP_ADDR", recorder.url())).await?;
    let lock = format!("/v1/kv/kube-consul/{}/leader", place.namespace);
    let is_held =
        || async { anyhow::Ok(!place.consul.api().get(&lock).await?[0]["Session"].is_null()) };
    // The lock is its own, and it does not know.
    eventually(DEADLINE, || async {
        ensure!(is_held().await?, "it is not asked for yet");
        Ok(())
    })
    .await?;
    candidate.stop().await?;
    ensure!(!is_held().await?, "whoever comes next has to wait");
    Ok(())
}
