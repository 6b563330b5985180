//! The bridge is asked to end.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Fault, ProgramOptions, Recorded, eventually};

use super::{numbered, shown, wait_for_names};
use crate::support::{Bridge, DEADLINE, Fixture, shipped_kubeconfig};

/// Five seconds for the writes in flight, and one for what the process itself takes.
const END: Duration = Duration::from_secs(6);

async fn wait_for_a_write(fixture: &Fixture) -> Result<()> {
    eventually(DEADLINE, || async {
        ensure!(!fixture.recorder().writes().is_empty(), "nothing is written");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn sigterm_lets_writes_in_flight_finish_and_keeps_what_is_registered() -> Result<()> {
    let fixture = Fixture::recorded("term").await?;
    fixture.create(numbered("svc", 0..3)).await?;
    let bridge = fixture.bridge().await?;
    wait_for_names(&fixture.consul, &numbered("svc", 0..3)).await?;
    fixture.recorder().clear();
    // Of a registration and its PTR record: two seconds in all.
    fixture.recorder().fault(Fault::Delay(Duration::from_secs(1)), Recorded::is_write);
    fixture.create(numbered("svc", 3..4)).await?;
    wait_for_a_write(&fixture).await?;
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, END).await?;
    ensure!(bridge.program.has_written("what is registered stays"), "it does not say so");
    wait_for_names(&fixture.consul, &numbered("svc", 0..4)).await.map(drop)
}

#[tokio::test]
async fn sigterm_does_not_wait_for_an_answer_that_does_not_come() -> Result<()> {
    let fixture = Fixture::recorded("hang").await?;
    fixture.create(numbered("svc", 0..3)).await?;
    let bridge = fixture.bridge().await?;
    let before = wait_for_names(&fixture.consul, &numbered("svc", 0..3)).await?;
    fixture.recorder().clear();
    fixture.recorder().fault(Fault::Delay(2 * END), Recorded::is_write);
    fixture.create(numbered("svc", 3..4)).await?;
    wait_for_a_write(&fixture).await?;
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, END).await?;
    ensure!(bridge.program.has_written("1 writes were not answered in time"), "it does not say so");
    ensure!(shown(&fixture.consul).await? == before, "it changed what is registered");
    // The next one makes it good.
    fixture.recorder().mend();
    let bridge = Bridge::start(fixture.command().await?).await?;
    bridge.wait_ready().await?;
    wait_for_names(&fixture.consul, &numbered("svc", 0..4)).await.map(drop)
}

/// Whoever reads its log ends after the first line: it goes on, and gives the lock back at its end.
#[tokio::test]
async fn l17_a_log_that_nobody_reads_any_more_ends_nothing() -> Result<()> {
    let fixture = Fixture::new("deaf").await?;
    fixture.create(numbered("svc", 0..3)).await?;
    let command = ProgramOptions::new("/bin/bash")
        .args(["-c", r#"exec "$@" 2> >(head -n 1 >/dev/null)"#, "bash"])
        .arg(env!("CARGO_BIN_EXE_kube-consul"))
        .args(["bridge", "--sink", "catalog", "--leader-elect", "--namespace", &fixture.namespace])
        .args([Path::new("--kubeconfig"), shipped_kubeconfig().await?])
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    // Each change is a line of the log.
    for number in 3..6 {
        fixture.create(numbered("svc", number..number + 1)).await?;
    }
    for name in numbered("svc", 3..6) {
        fixture.wait_for_instances(&name, 1).await?;
    }
    let api = fixture.consul.api();
    let lock = || async { api.get("/v1/kv/kube-consul/kubernetes/leader").await };
    ensure!(lock().await?[0]["Session"].is_string(), "it holds no lock: {}", lock().await?);
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, END).await?;
    let left = lock().await.unwrap_or_default();
    ensure!(left[0]["Session"].is_null(), "the lock is kept: {left}");
    ensure!(bridge.program.stderr().is_empty(), "the log was read: {}", bridge.program.stderr());
    Ok(())
}

#[tokio::test]
async fn sigint_is_told_apart() -> Result<()> {
    let fixture = Fixture::recorded("int").await?;
    fixture.create(numbered("svc", 0..3)).await?;
    let bridge = fixture.bridge().await?;
    let before = wait_for_names(&fixture.consul, &numbered("svc", 0..3)).await?;
    bridge.program.interrupt().await;
    bridge.program.wait_for_code(130, END).await?;
    ensure!(shown(&fixture.consul).await? == before, "it changed what is registered");
    Ok(())
}
