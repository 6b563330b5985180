//! What stands where, and that it stays as it was left.

use anyhow::{Result, ensure};
use hickory_resolver::proto::rr::RecordType;
use kube_consul_stack::{Endpoint, eventually};
use serde_json::json;

use super::support::{bridge, checks, command, nodes, wait_for_nodes};
use crate::support::{DEADLINE, Fixture, ends_with, kube_consul};

const PORTS: [(&str, u16); 1] = [("http", 80)];

#[tokio::test]
async fn a_service_stands_on_the_node_of_its_namespace_and_goes_with_it() -> Result<()> {
    let fixture = Fixture::new("catalog").await?;
    let cluster = fixture.namespace.clone();
    let (base, node) = (format!("k8s-{cluster}"), format!("k8s-{cluster}.{cluster}"));
    fixture.web("web", &PORTS).await?;
    let bridge = bridge(&fixture, &[]).await?;
    let address = fixture.cluster_ip("web").await?;
    fixture.dns()?.wait_for("web.service.consul", RecordType::A, &[&address]).await?;
    let instance = &fixture.instances("web").await?[0];
    ensure!(instance["Node"]["Node"] == *node, "{instance}");
    ensure!(instance["Node"]["Address"] == "192.0.2.1", "{instance}");
    ensure!(checks(instance).is_empty(), "{instance}");
    ensure!(nodes(fixture.consul.api(), &cluster).await? == [base.clone(), node.clone()]);
    let last = address.rsplit('.').next().unwrap_or_default();
    let network = address.strip_suffix(&format!(".{last}")).unwrap_or_default();
    let zone: Vec<&str> = network.rsplit('.').collect();
    let key = format!("0.{}.IN-ADDR.ARPA/{address}", zone.join("."));
    let value = fixture.consul.api().key(&key).await?;
    ensure!(value.as_deref() == Some("web.service.dc1.consul"), "{key}: {value:?}");

    fixture.endpoints("web", &[Endpoint::unready("10.1.0.1")], &PORTS).await?;
    fixture.dns()?.wait_for("web.service.consul", RecordType::A, &[]).await?;
    ensure!(checks(&fixture.instances("web").await?[0]) == ["critical"]);
    fixture.endpoints("web", &[Endpoint::ready("10.1.0.1")], &PORTS).await?;
    fixture.dns()?.wait_for("web.service.consul", RecordType::A, &[&address]).await?;
    ensure!(checks(&fixture.instances("web").await?[0]).is_empty());

    fixture.delete("web").await?;
    wait_for_nodes(fixture.consul.api(), &cluster, &[&base]).await?;
    ensure!(fixture.consul.api().key(&key).await?.is_none());
    bridge.stop().await
}

#[tokio::test]
async fn what_others_remove_is_put_back() -> Result<()> {
    let fixture = Fixture::new("drift").await?;
    let cluster = fixture.namespace.clone();
    let (base, node) = (format!("k8s-{cluster}"), format!("k8s-{cluster}.{cluster}"));
    fixture.web("web", &PORTS).await?;
    let bridge = bridge(&fixture, &["--resync", "1s"]).await?;
    for removed in [&node, &base] {
        let gone = json!({"Node": removed, "Datacenter": "dc1"});
        fixture.consul.api().put("/v1/catalog/deregister", &gone).await?;
        fixture.wait_for_instances("web", 1).await?;
        wait_for_nodes(fixture.consul.api(), &cluster, &[&base, &node]).await?;
    }
    // Nobody else's: an empty node that carries the mark.
    let left = format!("k8s-{cluster}.gone");
    let empty = json!({"Node": left, "Address": "192.0.2.1",
        "NodeMeta": {"kube-consul-cluster": cluster}});
    fixture.consul.api().put("/v1/catalog/register", &empty).await?;
    wait_for_nodes(fixture.consul.api(), &cluster, &[&base, &node]).await?;
    // Somebody else's: it stays, and is told.
    let foreign = json!({"Node": left, "Address": "192.0.2.1",
        "NodeMeta": {"kube-consul-cluster": cluster}, "Service": {"ID": "db", "Service": "db"}});
    fixture.consul.api().put("/v1/catalog/register", &foreign).await?;
    eventually(DEADLINE, || async {
        let status = bridge.status().await?;
        let told =
            status["problems"].as_array().into_iter().flatten().any(|problem| {
                problem["reason"] == "ForeignOnNode" && problem["kind"] == "Namespace"
            });
        ensure!(told, "{status}");
        Ok(())
    })
    .await?;
    ensure!(nodes(fixture.consul.api(), &cluster).await?.len() == 3);
    bridge.stop().await
}

#[tokio::test]
async fn a_node_whose_mark_was_replaced_is_ours_while_our_records_stand_on_it() -> Result<()> {
    let fixture = Fixture::new("mark").await?;
    let cluster = fixture.namespace.clone();
    let (base, node) = (format!("k8s-{cluster}"), format!("k8s-{cluster}.{cluster}"));
    fixture.web("web", &PORTS).await?;
    bridge(&fixture, &[]).await?.stop().await?;
    // It replaces the node's meta.
    let guest = json!({"Node": node, "Address": "192.0.2.1",
        "Service": {"ID": "guest", "Service": "guest"}});
    fixture.consul.api().put("/v1/catalog/register", &guest).await?;
    ensure!(
        nodes(fixture.consul.api(), &cluster).await? == [base.clone()],
        "the mark is still there"
    );
    let bridge = bridge(&fixture, &[]).await?;
    wait_for_nodes(fixture.consul.api(), &cluster, &[&base, &node]).await?;
    fixture.wait_for_instances("web", 1).await?;
    fixture.wait_for_instances("guest", 1).await?;
    bridge.stop().await
}

#[tokio::test]
async fn options_that_need_the_other_sink_are_refused() -> Result<()> {
    for (flags, expected) in [
        (&["--leader-elect"][..], "--leader-elect: expected --sink catalog"),
        (&["--node-name", "n"], "--node-name: expected --sink catalog"),
        (&["--sink", "catalog", "--leader-elect", "--once"], "expected a long-running bridge"),
        (&["--sink", "catalog", "--node-name", "a/b"], "expected 1 to 128 letters"),
    ] {
        let told = ends_with(2, kube_consul().arg("bridge").args(flags)).await?;
        ensure!(told.contains(expected), "{told}");
    }
    Ok(())
}

#[tokio::test]
async fn passing_checks_are_written_where_they_are_asked_for() -> Result<()> {
    let fixture = Fixture::new("always").await?;
    fixture.web("web", &PORTS).await?;
    let once = command(&fixture).await?.args(["--health", "always", "--once"]);
    ends_with(0, once).await?;
    ensure!(checks(&fixture.instances("web").await?[0]) == ["passing"]);
    ends_with(0, command(&fixture).await?.args(["--health", "none", "--once"])).await?;
    ensure!(checks(&fixture.instances("web").await?[0]).is_empty());
    Ok(())
}
