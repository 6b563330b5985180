//! What an import does where Consul or the API server is not as usual.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams};
use kube_consul_stack::{ConsulOptions, HttpRecorder, Kubernetes, KubernetesOptions, eventually};
use serde_json::json;
use tokio::time::sleep;

use super::scenarios;
use super::support::{OURS, Site};
use crate::support::{Bridge, DEADLINE, ends_with, kube_consul, manifest};

const IMPORT: &str = "kube-consul.io/import";

/// A snapshot is restored: the index goes back, and what it holds is what there is.
#[tokio::test]
async fn i3_a_restored_snapshot_is_followed() -> Result<()> {
    scenarios::run("restored").await
}

pub async fn snapshot_restored() -> Result<()> {
    let site = Site::new("import-restore").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let url = format!("{}/v1/snapshot", site.fixture.consul.url());
    let snapshot = client.get(&url).send().await?.error_for_status()?.bytes().await?;
    for n in 2..6 {
        site.register("pg", &format!("10.1.0.{n}"), "passing").await?;
    }
    site.deregister("pg", "10.1.0.1").await?;
    site.wait_for("db", &["10.1.0.2:5432", "10.1.0.3:5432", "10.1.0.4:5432", "10.1.0.5:5432"])
        .await?;
    let began = Instant::now();
    client.put(&url).body(snapshot).send().await?.error_for_status()?;
    // At the latest when the query, whose index is from the future, has waited for its minute.
    eventually(Duration::from_secs(90), || async {
        let found = site.endpoints("db").await?;
        ensure!(!found.is_empty(), "empty after the restore");
        ensure!(found == ["10.1.0.1:5432"], "{found:?}");
        Ok(())
    })
    .await?;
    println!("snapshot restored: in the slice after {:?}", began.elapsed());
    let began = Instant::now();
    site.register("pg", "10.1.0.9", "passing").await?;
    site.wait_for("db", &["10.1.0.1:5432", "10.1.0.9:5432"]).await?;
    println!("registered after that: in the slice after {:?}", began.elapsed());
    import.stop().await
}

/// The query of an absent service wakes whenever another one loses its last instance.
#[tokio::test]
async fn i4_a_service_that_does_not_exist_yet_costs_a_few_requests() -> Result<()> {
    let site = Site::new("import-absent").await?;
    let recorder = HttpRecorder::start(site.fixture.consul.url()).await?;
    site.service("zzz", json!({IMPORT: "zzz"})).await?;
    let command = site.command().await?.env("CONSUL_HTTP_ADDR", recorder.url());
    let import = Bridge::start(command).await?;
    import.wait_ready().await?;
    let reads = || {
        let all = recorder.requests();
        all.iter().filter(|it| it.path.starts_with("/v1/health/service/")).count()
    };
    let (before, began) = (reads(), Instant::now());
    for round in 0..100 {
        let name = format!("other-{}", round % 50);
        site.register(&name, "10.1.0.8", "passing").await?;
        site.deregister(&name, "10.1.0.8").await?;
        sleep(Duration::from_millis(40)).await;
    }
    let (read, seconds) = (reads() - before, began.elapsed().as_secs_f64());
    println!("{read} reads in {seconds:.1} s while others came and went");
    let began = Instant::now();
    site.register("zzz", "10.1.0.1", "passing").await?;
    site.wait_for("zzz", &["10.1.0.1:5432"]).await?;
    println!("its first instance: in the slice after {:?}", began.elapsed());
    ensure!(began.elapsed() < Duration::from_secs(4), "after {:?}", began.elapsed());
    // Two of each wake: the query and the plain read.
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let rate = read as f64 / seconds;
    ensure!(rate < 6.0, "{rate} reads a second");
    import.stop().await
}

/// Others share the address, and Consul closes what is too much.
#[tokio::test]
async fn i15_more_services_than_connections_are_all_followed() -> Result<()> {
    let options = ConsulOptions::dev().configuration("limits { http_max_conns_per_client = 40 }");
    let site = Site::with_consul("import-limit", options).await?;
    for n in 0..60 {
        let name = format!("s-{n}");
        site.register(&name, "10.1.0.1", "passing").await?;
        site.service(&name, json!({IMPORT: name})).await?;
    }
    let import = Bridge::start(site.command().await?).await?;
    import.wait_ready_within(Duration::from_secs(90)).await?;
    let all_have = |wanted: usize| {
        let site = &site;
        eventually(Duration::from_secs(90), move || async move {
            let labels = ListParams::default().labels(OURS);
            let slices = site.slices()?.list(&labels).await?;
            let found = slices.items.iter().flat_map(|it| it.endpoints.iter().flatten()).count();
            ensure!(found == wanted, "{found} endpoints, want {wanted}");
            Ok(())
        })
    };
    all_have(60).await?;
    let began = Instant::now();
    for n in 0..60 {
        site.register(&format!("s-{n}"), "10.1.0.2", "passing").await?;
    }
    all_have(120).await?;
    println!("60 services over at most 40 connections: all changed after {:?}", began.elapsed());
    let is_told = import.program.has_written("raise http_max_conns_per_client");
    ensure!(is_told, "it is not told");
    import.stop().await
}

/// The API server lets only those block an owner's deletion who may update its finalizers.
#[tokio::test]
async fn i8_slices_are_written_where_owner_references_are_enforced() -> Result<()> {
    let plugin = "--enable-admission-plugins=OwnerReferencesPermissionEnforcement";
    let cluster = Kubernetes::start(KubernetesOptions {
        apiserver_flags: vec![plugin.to_owned()],
        ..KubernetesOptions::default()
    })
    .await?;
    let site = Site::new("import-plugin").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    cluster.apply_file(&manifest("import/namespace.yaml")).await?;
    cluster.apply_file(&manifest("import/rbac.yaml")).await?;
    let token = cluster.service_account_token("kube-consul", "kube-consul-import").await?;
    let namespace = cluster.namespace("import").await?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "db", "annotations": {IMPORT: "pg"}},
        "spec": {"ports": [{"port": 5432}]},
    });
    let _: Service = cluster.create(&namespace, service).await?;
    let once = kube_consul()
        .args(["import", "--run-once", "--namespace", &namespace])
        .args([Path::new("--kubeconfig"), &cluster.kubeconfig_for(&token)?])
        .env("CONSUL_HTTP_ADDR", site.fixture.consul.url());
    ends_with(0, once).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(cluster.client()?, &namespace);
    let found = slices.list(&ListParams::default().labels(OURS)).await?;
    ensure!(found.items.len() == 1, "{} slices", found.items.len());
    Ok(())
}

/// The Endpoints that consul8s left are removed once ours stands; those of anybody else stay.
#[tokio::test]
async fn what_consul8s_left_goes_and_what_others_made_stays() -> Result<()> {
    let site = Site::new("import-left").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    let endpoints: Api<Endpoints> =
        Api::namespaced(site.fixture.kubernetes.client()?, &site.fixture.namespace);
    for (name, manager) in [("old", "python-requests"), ("own", "kubectl")] {
        let object = json!({
            "metadata": {"name": name, "labels": {"consul8s_source": "consul"},
                         "annotations": {"consul8s/service.name": "pg"}},
            "spec": {"ports": [{"name": "pg", "port": 5432}]},
        });
        site.object(object).await?;
        let left = json!({
            "metadata": {"name": name, "labels": {"name": name}},
            "subsets": [{"addresses": [{"ip": "10.200.0.1"}], "ports": [{"name": "pg", "port": 5432}]}],
        });
        let params =
            PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() };
        endpoints.create(&params, &serde_json::from_value(left)?).await?;
    }
    let import = site.import().await?;
    site.wait_for("old", &["10.1.0.1:5432"]).await?;
    site.wait_for("own", &["10.1.0.1:5432"]).await?;
    eventually(DEADLINE, || async {
        ensure!(endpoints.get_opt("old").await?.is_none(), "those of consul8s are still there");
        Ok(())
    })
    .await?;
    site.wait_for_problem(&import, "own", "kubectl delete endpoints own").await?;
    ensure!(endpoints.get_opt("own").await?.is_some(), "those of somebody else are gone");
    import.stop().await
}
