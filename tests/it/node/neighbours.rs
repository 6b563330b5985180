//! What others have on the same agent, and an agent that is not the node's.

use std::time::Duration;

use anyhow::{Result, ensure};
use kube_consul_stack::{Port, eventually};
use serde_json::json;

use super::support::{Site, WISH};
use crate::support::{Bridge, DEADLINE, ends_with, kube_consul};

/// Their checks on our services, maintenance mode among them, outlive whatever we do.
#[tokio::test]
async fn checks_of_others_and_maintenance_mode_are_never_removed() -> Result<()> {
    let site = Site::new("node-checks").await?;
    site.many(1).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    let (api, id) = (site.agent.api(), site.id("web", "web-0"));
    let check = json!({"ID": "others", "Name": "others", "ServiceID": id, "TTL": "1h",
        "Status": "warning"});
    api.put("/v1/agent/check/register", &check).await?;
    let maintenance = format!("/v1/agent/service/maintenance/{id}?enable=true&reason=test");
    api.put(&maintenance, &json!(null)).await?;
    let are_there = async |what: &str| {
        let checks = api.get("/v1/agent/checks").await?;
        for (check, status) in
            [("others".to_owned(), "warning"), (format!("_service_maintenance:{id}"), "critical")]
        {
            ensure!(checks[&check]["Status"] == status, "{what}: {check} in {checks}");
        }
        anyhow::Ok(())
    };
    are_there("before").await?;
    site.annotate("web-0", json!({format!("{WISH}/service-tags"): "a"})).await?;
    eventually(DEADLINE, || async {
        let found = site.in_agent("web", "web-0").await?;
        ensure!(found["Tags"] == json!(["a"]), "{found}");
        Ok(())
    })
    .await?;
    are_there("registered again").await?;
    site.ready("web-0", false).await?;
    site.wait_for("web", &["web-0:8080 critical"]).await?;
    site.ready("web-0", true).await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    are_there("readiness changed").await?;
    daemon.program.kill().await?;
    let daemon = site.daemon().await?;
    site.annotate("web-0", json!({format!("{WISH}/service-port"): "81"})).await?;
    site.wait_for("web", &["web-0:81 passing"]).await?;
    are_there("after a restart").await?;
    daemon.stop().await
}

/// Somebody puts a check of another kind in the place of ours.
#[tokio::test]
async fn p10_a_check_that_is_not_ours_any_more_is_registered_again() -> Result<()> {
    let site = Site::new("node-foreign").await?;
    site.many(1).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    let (api, id) = (site.agent.api(), site.id("web", "web-0"));
    let nobody = Port::pick()?;
    api.put(&format!("/v1/agent/check/deregister/{id}"), &json!(null)).await?;
    let check = json!({"ID": id, "Name": "another", "ServiceID": id, "Interval": "1s",
        "TCP": format!("127.0.0.1:{}", nobody.number())});
    api.put("/v1/agent/check/register", &check).await?;
    eventually(DEADLINE, || async {
        let check = site.check("web", "web-0").await?;
        ensure!(check["Type"] == "ttl" && check["Name"] == "Service 'web' check", "{check}");
        Ok(())
    })
    .await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    // The other one does not go on beside it.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let check = site.check("web", "web-0").await?;
    ensure!(check["Type"] == "ttl" && check["Status"] == "passing", "{check}");
    ensure!(daemon.program.has_written("changed by others"), "nobody is told");
    daemon.stop().await
}

/// The name of no node: nothing is removed. And an agent that is not there.
#[tokio::test]
async fn p12_a_wrong_node_or_agent_removes_nothing_and_says_what_is_expected() -> Result<()> {
    let site = Site::new("node-wrong").await?;
    site.many(2).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing", "web-1:8080 passing"]).await?;
    daemon.stop().await?;
    let wrong = Bridge::start(site.command_of("no-such-node")).await?;
    site.wait_for("web", &["web-0:8080 critical", "web-1:8080 critical"]).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(wrong.program.has_written("is it the right node"), "{}", wrong.program.stderr());
    wrong.stop().await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing", "web-1:8080 passing"]).await?;
    daemon.stop().await?;

    let nobody = Port::pick()?;
    let address = format!("127.0.0.1:{}", nobody.number());
    let lonely = Bridge::start(site.command().env("CONSUL_HTTP_ADDR", &address)).await?;
    for way in ["hostPort", "hostNetwork", "unix:///PATH", &address] {
        lonely.wait_unready(way).await?;
    }
    lonely.stop().await?;
    let said = ends_with(2, kube_consul().arg("node")).await?;
    ensure!(said.contains("--node") && said.contains("NODE_NAME"), "{said}");
    Ok(())
}

/// The token of katalog-sync's users.
#[tokio::test]
async fn rights_on_services_alone_register_and_keep_alive() -> Result<()> {
    let rules = "service_prefix \"\" { policy = \"write\" }";
    let site = Site::with_rules("node-rights", rules).await?;
    site.many(2).await?;
    let daemon = site.daemon().await?;
    site.wait_for("web", &["web-0:8080 passing", "web-1:8080 passing"]).await?;
    tokio::time::sleep(Duration::from_secs(13)).await;
    site.delete("web-1").await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    daemon.stop().await
}
