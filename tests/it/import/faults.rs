//! Never empty by mistake.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Consul, ConsulOptions, eventually};
use serde_json::json;
use tokio::time::sleep;

use super::support::Site;
use crate::support::{Bridge, DEADLINE, manifest};

const IMPORT: &str = "kube-consul.io/import";
const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";

#[tokio::test]
async fn endpoints_stay_while_consul_is_away_and_follow_again_after() -> Result<()> {
    let site = Site::with_consul("import-away", ConsulOptions::server()).await?;
    site.fixture.consul.wait_ready().await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let mut site = site;
    site.fixture.consul.kill().await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with Consul");
    site.fixture.consul.restart(kube_consul_stack::Data::Kept).await?;
    site.fixture.consul.wait_ready().await?;
    site.register("pg", "10.1.0.2", "passing").await?;
    site.wait_for("db", &["10.1.0.1:5432", "10.1.0.2:5432"]).await?;
    import.stop().await
}

/// A policy is narrowed to nothing, and the token is revoked, while a query waits.
#[tokio::test]
async fn i1_endpoints_stay_where_the_token_may_not_look() -> Result<()> {
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
    site.wait_for("db", &["10.1.0.2:5432"]).await
}

#[tokio::test]
async fn i2_an_agent_without_servers_says_nothing() -> Result<()> {
    let server = Consul::start(ConsulOptions::server().node("import-only-server")).await?;
    server.wait_ready().await?;
    let client = ConsulOptions::client([&server]).node("import-client");
    let site = Site::with_consul("import-client", client).await?;
    site.fixture.consul.wait_ready().await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    server.kill().await?;
    // A streamed 200 is no contact: three heartbeats later it is not ready.
    eventually(Duration::from_secs(90), || async {
        let (status, text) = import.get("/readyz").await?;
        ensure!(status == 503 && text.contains("waiting for Consul"), "{status} {text}");
        Ok(())
    })
    .await?;
    ensure!(site.endpoints("db").await? == ["10.1.0.1:5432"], "they went with the servers");
    Ok(())
}
