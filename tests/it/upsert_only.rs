//! `--policy upsert-only` removes nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::eventually;
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Fixture, says};

#[tokio::test]
async fn what_is_deleted_stays_and_is_shown() -> Result<()> {
    for sink in ["--sink=agent", "--sink=catalog"] {
        stays(sink).await?;
    }
    Ok(())
}

async fn stays(sink: &str) -> Result<()> {
    let fixture = Fixture::new("upsert-only").await?;
    let options = [sink, "--policy=upsert-only"];
    for name in ["web", "db"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    let bridge = Bridge::start(fixture.command().await?.args(options)).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("web", 1).await?;
    let registered = fixture.instances("web").await?;

    fixture.delete("web").await?;
    eventually(DEADLINE, || async {
        // The instance and its PTR record.
        let kept = bridge.metric("kube_consul_records_kept").await?;
        ensure!(kept == Some(2.0), "{kept:?}");
        Ok(())
    })
    .await?;
    // What is added comes after it, so it would be gone by then.
    fixture.web("next", &[("http", 80)]).await?;
    fixture.wait_for_instances("next", 1).await?;
    ensure!(fixture.instances("web").await? == registered);
    let (status, why) = bridge.get("/status").await?;
    ensure!(status == 200 && why.contains("kept by --policy upsert-only"), "{why}");

    // A plan shows it, and nothing that would be changed.
    let text = says(0, fixture.subcommand("plan").await?.args(options)).await?;
    ensure!(text.contains("--policy upsert-only keeps 2"), "{text}");
    let json = fixture.subcommand("plan").await?.args(options).args(["-o", "json"]);
    let plan: Value = serde_json::from_str(&says(0, json).await?)?;
    ensure!(plan["summary"]["kept"] == json!(2), "{plan}");

    // After a restart as well, and for a selection that matches nothing.
    bridge.stop().await?;
    let command = fixture.command().await?.args(options).arg("--default-sync=false");
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(fixture.instances("web").await? == registered);
    fixture.wait_for_instances("db", 1).await?;
    bridge.stop().await
}
