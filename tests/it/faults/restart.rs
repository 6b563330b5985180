//! The bridge ends and starts again.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use kube_consul_stack::Recorded;
use serde_json::{Value, json};

use super::{look_after, numbered, wait_for_names};
use crate::support::{Bridge, Fixture};

/// IDs and keys that a write changes; what is neither a registration nor a PTR record of
/// ours is told as it is.
fn written(request: &Recorded) -> Vec<String> {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/v1/agent/service/register" {
        return vec![format!("register {}", body["ID"].as_str().unwrap_or_default())];
    }
    if let Some(id) = path.strip_prefix("/v1/agent/service/deregister/") {
        return vec![format!("deregister {id}")];
    }
    let Some(operations) = body.as_array().filter(|_| path == "/v1/txn") else {
        return vec![format!("{} {path}", request.method)];
    };
    let told = |it: &Value| format!("{} {}", it["KV"]["Verb"], it["KV"]["Key"]).replace('"', "");
    operations.iter().map(told).collect()
}

#[tokio::test]
async fn what_changed_while_it_was_dead_is_all_that_is_written() -> Result<()> {
    let fixture = Fixture::recorded("restart").await?;
    let names = numbered("svc", 0..100);
    fixture.create(names.clone()).await?;
    let bridge = fixture.bridge().await?;
    let before = wait_for_names(&fixture.consul, &names).await?;
    bridge.program.kill().await?;
    fixture.recorder().clear();

    let tags = json!({"metadata": {"annotations": {"kube-consul.io/service-tags": "new"}}});
    let port = json!({"spec": {"ports": [{"name": "http", "port": 81}]}});
    let tagged = numbered("svc", 0..3);
    let moved = numbered("svc", 3..5);
    let gone = numbered("svc", 5..8);
    let added = numbered("new", 0..4);
    for name in &tagged {
        fixture.patch(name, &tags).await?;
    }
    for name in &moved {
        fixture.patch(name, &port).await?;
    }
    for name in &gone {
        fixture.delete(name).await?;
    }
    fixture.create(added.clone()).await?;

    let monitor = look_after(&fixture.consul, numbered("svc", 8..100));
    let bridge = Bridge::start(fixture.command().await?).await?;
    bridge.wait_ready().await?;
    let wanted: BTreeSet<String> = names.difference(&gone).chain(&added).cloned().collect();
    let after = wait_for_names(&fixture.consul, &wanted).await?;
    monitor.finish("the Services that stay").await?;

    for (id, instance) in &after.instances {
        let is_tagged = instance.tags.iter().any(|tag| tag == "new");
        ensure!(is_tagged == tagged.contains(&instance.service), "{id}: {instance:?}");
        let port = if moved.contains(&instance.service) { 81 } else { 80 };
        ensure!(instance.port == port, "{id}: {instance:?}");
        ensure!(!instance.critical, "{id}: {instance:?}");
    }
    let changed = |names: &BTreeSet<String>, verb: &str, shown: &super::Shown| -> Vec<String> {
        shown.ids(names).into_iter().map(|id| format!("{verb} {id}")).collect()
    };
    let mut expected: Vec<String> = [&tagged, &moved, &added]
        .into_iter()
        .flat_map(|names| changed(names, "register", &after))
        .chain(changed(&gone, "deregister", &before))
        .chain(before.reverse.difference(&after.reverse).map(|key| format!("delete-cas {key}")))
        .chain(after.reverse.difference(&before.reverse).map(|key| format!("cas {key}")))
        .collect();
    let writes = fixture.recorder().writes();
    let mut found: Vec<String> = writes.iter().flat_map(written).collect();
    expected.sort();
    found.sort();
    ensure!(found == expected, "{found:#?}\nbut expected\n{expected:#?}");
    ensure!(writes.len() == expected.len(), "{} requests", writes.len());
    Ok(())
}
