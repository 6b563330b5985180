//! `register mesos` and `deregister mesos`.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::support::{catalog, consul, ended, hook, serve, services};

/// A state as Mesos 1.11 writes it.
fn mesos_state() -> Value {
    let label = |key: &str, value: &str| json!({"key": key, "value": value});
    let task = |id: &str, discovery: Value| {
        json!({
            "id": id, "name": "web.shop", "framework_id": "f-0001", "executor_id": "web.1",
            "slave_id": "s-1", "state": "TASK_RUNNING",
            "resources": {"disk": 0.0, "mem": 256.0, "gpus": 0.0, "cpus": 0.5, "ports": "[31000-31001]"},
            "role": "*", "statuses": [{"state": "TASK_RUNNING", "timestamp": 1_600_000_000.123_45}],
            "labels": [label("team:shop", "tag"), label("owner", "shop")],
            "discovery": discovery,
        })
    };
    let discovery = json!({
        "visibility": "FRAMEWORK", "name": "web.shop",
        "ports": {"ports": [
            {"number": 31000, "name": "http", "protocol": "tcp", "labels": {"labels": [
                label("consul", "web"), label("admin-port:{port:admin}", "tag"), label("VIP_0", "/web:80"),
            ]}},
            {"number": 31001, "name": "admin", "protocol": "tcp"},
        ]},
    });
    let executor = |id: &str, tasks: Value| {
        json!({"id": id, "name": "", "source": "", "container": "c", "directory": "/d",
            "resources": {"cpus": 0.1}, "tasks": tasks, "queued_tasks": [],
            "completed_tasks": [task("old", json!({}))]})
    };
    json!({
        "version": "1.11.0", "id": "s-1", "hostname": "10.1.1.1", "flags": {"port": "5051"},
        "frameworks": [
            {"id": "f-0000", "name": "chronos", "executors": [executor("web.1", json!([task("x", json!({}))]))],
             "completed_executors": []},
            {"id": "f-0001", "name": "marathon", "executors": [
                executor("web.0", json!([])), executor("web.1", json!([task("web.1", discovery)])),
             ], "completed_executors": [executor("web.1", json!([]))]},
        ],
        "completed_frameworks": [],
    })
}

#[tokio::test]
async fn a_mesos_task_registers_and_deregisters_itself() -> Result<()> {
    let consul = consul().await?;
    let mesos = serve(([127, 0, 0, 1], 0).into(), 200, mesos_state().to_string()).await?;
    let hook = |arguments: &str| {
        hook(consul.url(), &format!("{arguments} --mesos-agent-url http://{mesos}"))
            .env("MESOS_EXECUTOR_ID", "web.1")
            .env("MESOS_FRAMEWORK_ID", "f-0001")
            .env("HOST", "10.1.1.1")
    };
    ended(hook("register mesos"), 0).await?;
    let [instance] = &catalog(&consul, "web").await?[..] else { panic!("not one") };
    ensure!(instance["ServiceID"] == "10.1.1.1_31000", "{instance:#}");
    let tags = json!(["admin-port:31001", "team:shop", "marathon-task:web.1"]);
    ensure!(instance["ServiceTags"] == tags, "{instance:#}");
    ended(hook("deregister mesos"), 0).await?;
    ensure!(services(&consul).await?.is_empty());

    let told = ended(hook("register mesos").env("MESOS_EXECUTOR_ID", "web.0"), 1).await?.stderr();
    ensure!(told.contains("the executor without a task"), "{told}");
    for (status, body, named) in
        [(200, "<html>", "expected the JSON"), (403, "", "HTTP 403"), (503, "", "HTTP 503")]
    {
        let other = serve(([127, 0, 0, 1], 0).into(), status, body.to_owned()).await?;
        let options = super::support::hook(consul.url(), "register mesos --timeout 1s")
            .env("MESOS_AGENT_ENDPOINT", other.to_string())
            .env("MESOS_EXECUTOR_ID", "web.1")
            .env("MESOS_FRAMEWORK_ID", "f-0001")
            .env("HOST", "10.1.1.1");
        let told = ended(options, 1).await?.stderr();
        ensure!(told.contains(named), "{told}");
    }
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}
