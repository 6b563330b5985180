//! Much at once, then nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::eventually;

use super::{numbered, wait_for_names};
use crate::support::{Bridge, Fixture};

/// A reading comes every hundred times its duration at most: for 500 Services, half a minute on
/// a machine that is busy with other tests.
const READINGS: Duration = Duration::from_mins(3);

#[tokio::test]
async fn five_hundred_services_at_once_appear_and_then_cost_nothing() -> Result<()> {
    let fixture = Fixture::recorded("burst").await?;
    let bridge = Bridge::start(fixture.command().await?.args(["--resync", "1s"])).await?;
    bridge.wait_ready().await?;
    let names = numbered("svc", 0..500);
    let began = Instant::now();
    fixture.create(names.clone()).await?;
    println!("created after {:?}", began.elapsed());
    let shown = wait_for_names(&fixture.consul, &names).await?;
    println!("in the catalog after {:?}", began.elapsed());
    ensure!(shown.instances.values().all(|instance| !instance.critical), "{shown:?}");
    bridge.wait_ready().await?;

    fixture.recorder().clear();
    let readings = || async {
        let series = "kube_consul_resyncs_total{result=\"complete\"}";
        anyhow::Ok(bridge.metric(series).await?.unwrap_or_default())
    };
    let before = readings().await?;
    eventually(READINGS, || async {
        let more = readings().await? - before;
        ensure!(more >= 2.0, "{more} readings");
        Ok(())
    })
    .await?;
    println!("two readings after {:?}", began.elapsed());
    ensure!(fixture.recorder().writes().is_empty(), "{:#?}", fixture.recorder().writes());
    let repaired = bridge.metric("kube_consul_drifted_records_total").await?;
    ensure!(repaired.unwrap_or_default() < 1.0, "something was repaired");
    Ok(())
}
