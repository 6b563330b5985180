//! What is followed.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, PostParams};
use kube_consul_stack::eventually;
use serde_json::json;

use super::support::{OURS, Site};
use crate::support::{Bridge, DEADLINE};

const IMPORT: &str = "kube-consul.io/import";

#[tokio::test]
async fn the_endpoints_follow_consul() -> Result<()> {
    let site = Site::new("import").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    let mut latencies = Vec::new();
    for (status, wanted) in
        [("passing", "10.1.0.1:5432"), ("critical", "!10.1.0.1:5432"), ("passing", "10.1.0.1:5432")]
    {
        let began = Instant::now();
        site.register("pg", "10.1.0.1", status).await?;
        site.wait_for("db", &[wanted]).await?;
        latencies.push(began.elapsed());
    }
    println!("registered, critical, passing: in the slice after {latencies:?}");
    site.register("pg", "10.1.0.2", "passing").await?;
    site.wait_for("db", &["10.1.0.1:5432", "10.1.0.2:5432"]).await?;
    let began = Instant::now();
    site.deregister("pg", "10.1.0.1").await?;
    site.wait_for("db", &["10.1.0.2:5432"]).await?;
    println!("deregistered: gone after {:?}", began.elapsed());
    site.deregister("pg", "10.1.0.2").await?;
    site.wait_for("db", &[]).await?;

    // Nothing of it blocks the Service, and it goes with it.
    site.register("pg", "10.1.0.3", "passing").await?;
    site.wait_for("db", &["10.1.0.3:5432"]).await?;
    site.fixture.delete("db").await?;
    site.wait_for("db", &[]).await?;
    import.stop().await
}

#[tokio::test]
async fn one_change_of_a_thousand_instances_writes_one_slice() -> Result<()> {
    let site = Site::new("import-many").await?;
    let ops: Vec<_> = (0..1000)
        .map(|n| {
            let address = format!("10.2.{}.{}", n / 250, 1 + n % 250);
            json!({"Service": {"Verb": "set", "Node": "many", "Service": {
                "ID": format!("web-{n}"), "Service": "web", "Address": address, "Port": 80,
            }}})
        })
        .collect();
    let api = site.fixture.consul.api();
    let node = json!({"Node": "many", "Address": "10.200.0.2"});
    api.put("/v1/catalog/register", &node).await?;
    for ops in ops.chunks(100) {
        api.put("/v1/txn", &json!(ops)).await?;
    }
    site.service("web", json!({IMPORT: "web"})).await?;
    let import = site.import().await?;
    let versions = || async {
        let slices = site.slices()?.list(&ListParams::default().labels(OURS)).await?;
        let of = |it: EndpointSlice| {
            (it.metadata.name.unwrap_or_default(), it.metadata.resource_version)
        };
        anyhow::Ok(slices.into_iter().map(of).collect::<Vec<_>>())
    };
    eventually(DEADLINE, || async {
        ensure!(site.endpoints("web").await?.len() == 1000);
        Ok(())
    })
    .await?;
    let before = versions().await?;
    ensure!(before.len() == 10, "{} slices", before.len());
    let began = Instant::now();
    api.put("/v1/catalog/deregister", &json!({"Node": "many", "ServiceID": "web-500"})).await?;
    eventually(DEADLINE, || async {
        ensure!(site.endpoints("web").await?.len() == 999);
        Ok(())
    })
    .await?;
    println!("one of 1,000 gone: out of its slice after {:?}", began.elapsed());
    let after = versions().await?;
    let changed = after.iter().filter(|it| !before.contains(it)).count();
    ensure!(changed == 1 && after.len() == 10, "{changed} slices of {} were written", after.len());

    // A restart writes nothing.
    import.stop().await?;
    let import = site.import().await?;
    ensure!(versions().await? == after, "the restart wrote slices");
    let written =
        import.metric("kube_consul_import_writes_total{verb=\"write\",result=\"done\"}").await?;
    ensure!(written.unwrap_or_default() < 1.0, "{written:?} writes");
    Ok(())
}

#[tokio::test]
async fn the_ports_of_the_service_are_followed_and_never_without_endpoints() -> Result<()> {
    let site = Site::new("import-ports").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    let _import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let monitor = site.never_empty("db")?;
    let ports = |ports: serde_json::Value| json!({"metadata": {"name": "db", "annotations": {IMPORT: "pg"}}, "spec": {"ports": ports}});
    let names = || async {
        let slices = site.slices()?.list(&ListParams::default().labels(OURS)).await?;
        let ports = slices.into_iter().flat_map(|it| it.ports.unwrap_or_default());
        let mut names: Vec<_> = ports.map(|it| it.name.unwrap_or_default()).collect();
        names.sort();
        anyhow::Ok(names)
    };
    for (what, object, wanted) in [
        ("renumbered", json!([{"name": "pg", "port": 6432}]), vec!["pg"]),
        ("renamed", json!([{"name": "postgres", "port": 6432}]), vec!["postgres"]),
        (
            "a second",
            json!([{"name": "postgres", "port": 6432}, {"name": "metrics", "port": 9187}]),
            vec!["metrics", "postgres"],
        ),
    ] {
        site.object(ports(object)).await?;
        eventually(DEADLINE, || async {
            let found = names().await?;
            ensure!(found == wanted, "{what}: {found:?}, want {wanted:?}");
            Ok(())
        })
        .await?;
    }
    // Another port of the instances: the new endpoint comes before the old one goes.
    site.register_at("pg", "10.1.0.1", 6000, "passing").await?;
    site.deregister("pg", "10.1.0.1").await?;
    site.wait_for("db", &["10.1.0.1:6000"]).await?;
    monitor.finish("the endpoints").await
}

#[tokio::test]
async fn what_is_not_ours_is_left_alone() -> Result<()> {
    let site = Site::new("import-others").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    // One with a selector, one without a mark, and a slice that somebody made for a marked one.
    site.object(json!({
        "metadata": {"name": "selects", "annotations": {IMPORT: "pg"}},
        "spec": {"selector": {"app": "x"}, "ports": [{"name": "pg", "port": 5432}]},
    }))
    .await?;
    site.object(json!({
        "metadata": {"name": "alias", "annotations": {IMPORT: "pg"}},
        "spec": {"type": "ExternalName", "externalName": "x.example.org"},
    }))
    .await?;
    site.service("plain", json!({})).await?;
    site.service("marked", json!({IMPORT: "pg"})).await?;
    let foreign = json!({
        "metadata": {"name": "marked-own", "labels": {"kubernetes.io/service-name": "marked"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.9.0.1"]}],
        "ports": [{"name": "pg", "port": 5432, "protocol": "TCP"}],
    });
    let foreign: EndpointSlice = serde_json::from_value(foreign)?;
    let before = site.slices()?.create(&PostParams::default(), &foreign).await?;
    let import = site.import().await?;
    site.wait_for("marked", &["10.1.0.1:5432"]).await?;
    for name in ["selects", "alias", "plain"] {
        ensure!(site.endpoints(name).await?.is_empty(), "{name} has endpoints");
    }
    site.wait_for_problem(&import, "alias", "found type ExternalName").await?;
    site.wait_for_problem(&import, "marked", "kubectl delete endpointslice marked-own").await?;
    site.wait_for_problem(&import, "selects", "without a selector").await?;
    // The mark goes, and with it our slices, but not the other one.
    site.service("marked", json!({})).await?;
    site.wait_for("marked", &[]).await?;
    let after = site.slices()?.get("marked-own").await?;
    ensure!(after.metadata.resource_version == before.metadata.resource_version);
    Ok(())
}

#[tokio::test]
async fn i6_addresses_that_the_api_refuses_cost_nobody_else_anything() -> Result<()> {
    let site = Site::new("import-bad").await?;
    for address in ["10.1.0.1", "169.254.0.2", "127.0.0.1", "224.0.0.5", "db.example", "FD00::1"] {
        site.register("mixed", address, "passing").await?;
    }
    site.register("mixed", "::ffff:10.0.0.9", "passing").await?;
    site.service("mixed", json!({IMPORT: "mixed"})).await?;
    let import = site.import().await?;
    site.wait_for("mixed", &["10.0.0.9:5432", "10.1.0.1:5432", "fd00::1:5432"]).await?;
    site.wait_for_problem(&import, "mixed", "4 instances are left out").await
}

/// Whoever may register in Consul leads nobody's pods to the API server or a metadata service.
#[tokio::test]
async fn i6_an_import_leads_only_where_the_operator_lets_it() -> Result<()> {
    let site = Site::new("import-ranges").await?;
    let metadata = ["fd00:ec2::254", "100.100.100.200", "168.63.129.16", "64:ff9b::a9fe:a9fe"];
    for address in ["10.1.0.1", "10.96.0.1", "::ffff:10.96.0.2", "192.168.1.1", "fd00::1"] {
        site.register("pg", address, "passing").await?;
    }
    for address in metadata {
        site.register("pg", address, "passing").await?;
    }
    site.service("db", json!({IMPORT: "pg", "kube-consul.io/import-keep": "1h"})).await?;
    // A metadata service is never led to.
    let import = site.import().await?;
    let all = ["10.1.0.1:5432", "10.96.0.1:5432", "10.96.0.2:5432", "192.168.1.1:5432"];
    site.wait_for("db", &[&all[..], &["fd00::1:5432"]].concat()).await?;
    site.wait_for_problem(&import, "db", "4 instances are left out: expected IP addresses").await?;
    import.stop().await?;
    let flags = ["--allow-cidr=10.0.0.0/8,fd00::/8", "--deny-cidr=10.96.0.0/12"];
    let import = Bridge::start(site.command().await?.args(flags)).await?;
    site.wait_for("db", &["10.1.0.1:5432", "fd00::1:5432"]).await?;
    let told = "3 instances are left out: expected addresses that --allow-cidr and --deny-cidr";
    site.wait_for_problem(&import, "db", told).await?;
    import.stop().await?;
    // What was there before it was forbidden is not kept either.
    let import = Bridge::start(site.command().await?.arg("--allow-cidr=10.2.0.0/16")).await?;
    site.wait_for("db", &[]).await?;
    import.stop().await
}

#[tokio::test]
async fn i10_a_service_that_is_made_again_and_again_ends_with_its_own_slices() -> Result<()> {
    let site = Site::new("import-again").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    let _import = site.import().await?;
    for _ in 0..20 {
        site.service("db", json!({IMPORT: "pg"})).await?;
        tokio::time::sleep(Duration::from_millis(50)).await;
        site.fixture.delete("db").await?;
    }
    site.service("db", json!({IMPORT: "pg"})).await?;
    let uid = site.fixture.services()?.get("db").await?.metadata.uid;
    eventually(DEADLINE, || async {
        let slices = site.slices()?.list(&ListParams::default().labels(OURS)).await?;
        let owners: Vec<_> = slices
            .into_iter()
            .flat_map(|it| it.metadata.owner_references.unwrap_or_default())
            .map(|it| Some(it.uid))
            .collect();
        ensure!(owners == [uid.clone()], "{owners:?}, want {uid:?}");
        Ok(())
    })
    .await
}
