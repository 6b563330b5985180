//! Never empty by mistake.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Consul, ConsulCluster, ConsulOptions, eventually};
use serde_json::json;
use tokio::time::sleep;

use super::scenarios;
use super::support::Site;
use crate::support::{Bridge, DEADLINE, manifest};

const IMPORT: &str = "kube-consul.io/import";
/// Faults last up to a minute: looking as often as one can would cost the API server half a core.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";

#[tokio::test]
async fn endpoints_stay_while_consul_is_away_and_follow_again_after() -> Result<()> {
    scenarios::run("away").await
}

pub async fn consul_away() -> Result<()> {
    let site = Site::with_consul("import-away", ConsulOptions::server()).await?;
    site.fixture.consul.wait_ready().await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let monitor = site.never_empty_within("db", LOOK_EVERY)?;
    let mut site = site;
    site.fixture.consul.kill().await?;
    for _ in 0..30 {
        sleep(Duration::from_secs(1)).await;
        ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with Consul");
    }
    site.fixture.consul.restart(kube_consul_stack::Data::Kept).await?;
    site.fixture.consul.wait_ready().await?;
    site.register("pg", "10.1.0.2", "passing").await?;
    site.wait_for("db", &["10.1.0.1:5432", "10.1.0.2:5432"]).await?;
    monitor.finish("the endpoints").await?;
    import.stop().await
}

/// A policy is narrowed to nothing, and the token is revoked, while a query waits.
#[tokio::test]
async fn i1_endpoints_stay_where_the_token_may_not_look() -> Result<()> {
    scenarios::run("narrowed").await
}

pub async fn policy_narrowed() -> Result<()> {
    let server = ConsulOptions::dev().node("import-server").acl(MANAGEMENT);
    let site = Site::with_consul("import-acl", server).await?;
    let api = site.fixture.consul.api();
    let rules = std::fs::read_to_string(manifest("consul/import.hcl"))?;
    let policy = json!({"Name": "import", "Rules": rules});
    let policy = api.put("/v1/acl/policy", &policy).await?["ID"].clone();
    let token = api.put("/v1/acl/token", &json!({"Policies": [{"ID": policy}]})).await?;
    let secret = token["SecretID"].as_str().unwrap_or_default().to_owned();
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let command = site.command().await?.env("CONSUL_HTTP_TOKEN", &secret);
    let import = Bridge::start(command).await?;
    import.wait_ready().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;

    let monitor = site.never_empty_within("db", LOOK_EVERY)?;
    let path = format!("/v1/acl/policy/{}", policy.as_str().unwrap_or_default());
    let narrowed = json!({"ID": policy, "Name": "import", "Rules": ""});
    api.put(&path, &narrowed).await?;
    // A change wakes whoever waits.
    site.register("pg", "10.1.0.2", "passing").await?;
    site.deregister("pg", "10.1.0.1").await?;
    // At the latest when the query has waited for its minute.
    eventually(3 * DEADLINE, || async {
        let unknown = import.metric("kube_consul_import_answers_total{result=\"unknown\"}").await?;
        ensure!(unknown.unwrap_or_default() >= 2.0, "{unknown:?} unknown answers");
        Ok(())
    })
    .await?;
    ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with the rights");
    let widened = json!({"ID": policy, "Name": "import", "Rules": rules});
    api.put(&path, &widened).await?;
    site.wait_for("db", &["10.1.0.2:5432"]).await?;
    monitor.finish("the endpoints").await
}

/// The token is revoked while a query waits; another one comes with its file.
#[tokio::test]
async fn endpoints_stay_when_the_token_is_revoked_and_follow_with_the_next() -> Result<()> {
    scenarios::run("revoked").await
}

pub async fn token_revoked() -> Result<()> {
    let server = ConsulOptions::dev().node("import-revoked").acl(MANAGEMENT);
    let site = Site::with_consul("import-revoked", server).await?;
    let api = site.fixture.consul.api();
    let rules = std::fs::read_to_string(manifest("consul/import.hcl"))?;
    let policy = json!({"Name": "import", "Rules": rules});
    let policy = api.put("/v1/acl/policy", &policy).await?["ID"].clone();
    let token = || async {
        let token = api.put("/v1/acl/token", &json!({"Policies": [{"ID": policy}]})).await?;
        let text = |key: &str| token[key].as_str().unwrap_or_default().to_owned();
        anyhow::Ok((text("AccessorID"), text("SecretID")))
    };
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("token");
    let (accessor, secret) = token().await?;
    std::fs::write(&file, &secret)?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let command = site.command().await?.env("CONSUL_HTTP_TOKEN_FILE", &file);
    let import = Bridge::start(command).await?;
    import.wait_ready().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;

    let monitor = site.never_empty_within("db", LOOK_EVERY)?;
    api.delete(&format!("/v1/acl/token/{accessor}")).await?;
    site.register("pg", "10.1.0.2", "passing").await?;
    site.deregister("pg", "10.1.0.1").await?;
    site.wait_for_problem(&import, "db", "ACL not found").await?;
    sleep(Duration::from_secs(1)).await;
    ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with the token");
    let (_, secret) = token().await?;
    std::fs::write(&file, &secret)?;
    site.wait_for("db", &["10.1.0.2:5432"]).await?;
    monitor.finish("the endpoints").await?;
    import.stop().await
}

/// Two of three servers go: the third has no leader. The endpoints stay, also those of an import
/// that starts meanwhile, and follow again once there is one.
#[tokio::test]
async fn endpoints_stay_without_a_leader_and_follow_again_after() -> Result<()> {
    scenarios::run("leaderless").await
}

pub async fn leaderless() -> Result<()> {
    let mut cluster = ConsulCluster::start().await?;
    let site = Site::new("import-leaderless").await?;
    let register = |address: &str| {
        let body = json!({"Node": format!("node-{address}"), "Address": address, "Service": {
            "ID": address, "Service": "pg", "Address": address, "Port": 5432}});
        let api = cluster.servers[0].api().clone();
        async move { api.put("/v1/catalog/register", &body).await.map(drop) }
    };
    register("10.1.0.1").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let command =
        || async { Ok(site.command().await?.env("CONSUL_HTTP_ADDR", cluster.servers[0].url())) };
    let import = Bridge::start(command().await.map_err(|it: anyhow::Error| it)?).await?;
    import.wait_ready().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let monitor = site.never_empty_within("db", LOOK_EVERY)?;
    for server in &cluster.servers[1..] {
        server.kill().await?;
    }
    let leader = "no Consul server could serve it";
    eventually(3 * DEADLINE, || async {
        let found = super::support::problems(&import, "db").await?;
        ensure!(found.contains(leader), "the problems are {found:?}");
        Ok(())
    })
    .await?;
    ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with the leader");
    import.stop().await?;
    let import = Bridge::start(command().await.map_err(|it: anyhow::Error| it)?).await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with the start");
    for server in &mut cluster.servers[1..] {
        server.restart(kube_consul_stack::Data::Kept).await?;
    }
    cluster.wait_for_leader().await?;
    let body = json!({"Node": "n2", "Address": "10.1.0.2", "Service": {
        "ID": "2", "Service": "pg", "Address": "10.1.0.2", "Port": 5432}});
    eventually(3 * DEADLINE, || cluster.servers[0].api().put("/v1/catalog/register", &body))
        .await?;
    let began = std::time::Instant::now();
    site.wait_for("db", &["10.1.0.1:5432", "10.1.0.2:5432"]).await?;
    println!("followed again {:?} after the first write", began.elapsed());
    monitor.finish("the endpoints").await?;
    import.stop().await
}

#[tokio::test]
async fn i2_an_agent_without_servers_says_nothing() -> Result<()> {
    scenarios::run("agent").await
}

pub async fn agent_without_servers() -> Result<()> {
    let server = Consul::start(ConsulOptions::server().node("import-only-server")).await?;
    server.wait_ready().await?;
    let client = ConsulOptions::client([&server]).node("import-client");
    let site = Site::with_consul("import-client", client).await?;
    site.fixture.consul.wait_ready().await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let monitor = site.never_empty_within("db", LOOK_EVERY)?;
    server.kill().await?;
    // A streamed 200 is no contact: three heartbeats later it is not ready.
    eventually(Duration::from_secs(90), || async {
        let (status, text) = import.get("/readyz").await?;
        ensure!(status == 503 && text.contains("waiting for Consul"), "{status} {text}");
        Ok(())
    })
    .await?;
    ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with the servers");
    monitor.finish("the endpoints").await
}
