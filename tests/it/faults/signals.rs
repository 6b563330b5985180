//! The bridge is asked to end.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Fault, Recorded, eventually};

use super::{Site, numbered, shown};
use crate::support::{Bridge, DEADLINE};

/// Five seconds for the writes in flight, and one for what the process itself takes.
const END: Duration = Duration::from_secs(6);

async fn wait_for_a_write(site: &Site) -> Result<()> {
    eventually(DEADLINE, || async {
        ensure!(!site.recorder.writes().is_empty(), "nothing is written");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sigterm_lets_writes_in_flight_finish_and_keeps_what_is_registered() -> Result<()> {
    let site = Site::new("term").await?;
    site.create(numbered("svc", 0..3)).await?;
    let bridge = site.bridge().await?;
    site.wait_for_names(&numbered("svc", 0..3)).await?;
    site.recorder.clear();
    // Of a registration and its PTR record: two seconds in all.
    site.recorder.fault(Fault::Delay(Duration::from_secs(1)), Recorded::is_write);
    site.create(numbered("svc", 3..4)).await?;
    wait_for_a_write(&site).await?;
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, END).await?;
    ensure!(bridge.program.has_written("what is registered stays"), "it does not say so");
    site.wait_for_names(&numbered("svc", 0..4)).await.map(drop)
}

#[tokio::test]
async fn sigterm_does_not_wait_for_an_answer_that_does_not_come() -> Result<()> {
    let site = Site::new("hang").await?;
    site.create(numbered("svc", 0..3)).await?;
    let bridge = site.bridge().await?;
    let before = site.wait_for_names(&numbered("svc", 0..3)).await?;
    site.recorder.clear();
    site.recorder.fault(Fault::Delay(2 * END), Recorded::is_write);
    site.create(numbered("svc", 3..4)).await?;
    wait_for_a_write(&site).await?;
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, END).await?;
    ensure!(bridge.program.has_written("1 writes were not answered in time"), "it does not say so");
    ensure!(shown(&site.place.consul).await? == before, "it changed what is registered");
    // The next one makes it good.
    site.recorder.mend();
    let bridge = Bridge::start(site.command().await?).await?;
    bridge.wait_ready().await?;
    site.wait_for_names(&numbered("svc", 0..4)).await.map(drop)
}

#[tokio::test]
async fn sigint_is_told_apart() -> Result<()> {
    let site = Site::new("int").await?;
    site.create(numbered("svc", 0..3)).await?;
    let bridge = site.bridge().await?;
    let before = site.wait_for_names(&numbered("svc", 0..3)).await?;
    bridge.program.interrupt().await;
    bridge.program.wait_for_code(130, END).await?;
    ensure!(shown(&site.place.consul).await? == before, "it changed what is registered");
    Ok(())
}
