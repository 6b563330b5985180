//! What an import does where Consul or the API server is not as usual.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, PostParams};
use kube_consul_stack::{
    ConsulOptions, Fault, HttpRecorder, KubectlProxy, Kubernetes, KubernetesOptions, Recorded,
    eventually,
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::scenarios;
use super::support::{OURS, Site, problems, shipped_kubeconfig};
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

/// A Status as the API server answers it.
fn failure(code: u16, reason: &str, details: &Value) -> String {
    json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "not now",
        "reason": reason, "code": code, "details": details,
    })
    .to_string()
}

/// Writes are refused, garbled and lost, lists fail at the start: the endpoints stay, the API server is
/// left alone for as long as it asks, and all is right after.
#[tokio::test]
async fn a_broken_api_server_takes_no_endpoints_and_is_left_alone() -> Result<()> {
    let site = Site::new("import-api").await?;
    let proxy = KubectlProxy::start(shipped_kubeconfig().await?).await?;
    let recorder = HttpRecorder::start(&proxy.url()).await?;
    let command = || {
        Bridge::start(
            kube_consul()
                .args(["import", "--namespace", &site.fixture.namespace])
                .arg(format!("--kube-url={}", recorder.url()))
                .env("CONSUL_HTTP_ADDR", site.fixture.consul.url()),
        )
    };
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = command().await?;
    import.wait_ready().await?;
    let mut wanted = vec!["10.1.0.1:5432".to_owned()];
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let monitor = site.never_empty("db")?;
    let is_write = |it: &Recorded| it.method == "PATCH" && it.path.contains("/endpointslices/");
    let writes = || recorder.requests().into_iter().filter(is_write).map(|it| it.at);
    for (n, (status, body, told)) in [
        (429, failure(429, "TooManyRequests", &json!({"retryAfterSeconds": 3})), "TooManyRequests"),
        (500, "etcd is on fire".to_owned(), "HTTP 500, not in the API server's own words"),
        (503, "<html>503</html>".to_owned(), "HTTP 503"),
        (409, failure(409, "Conflict", &json!({})), "somebody else writes EndpointSlice db-"),
        (403, failure(403, "Forbidden", &json!({})), "manifests/import/rbac.yaml grants it"),
        (200, "{}".to_owned(), "found it changed"),
        (200, "not JSON".to_owned(), "the response is not the JSON that was expected"),
    ]
    .into_iter()
    .enumerate()
    {
        let before = wanted.clone();
        recorder.clear();
        recorder.fault(Fault::Answer(status.try_into()?, body), is_write);
        let address = format!("10.1.0.{}", n + 2);
        site.register("pg", &address, "passing").await?;
        site.wait_for_problem(&import, "db", told).await?;
        ensure!(site.endpoints("db").await? == before, "{status}: they changed");
        if status == 429 {
            eventually(DEADLINE, || async {
                ensure!(writes().count() >= 2, "no second try");
                Ok(())
            })
            .await?;
            let [first, second, ..] = writes().collect::<Vec<_>>()[..] else { bail!("no writes") };
            let pause = second.duration_since(first);
            println!("asked for 3 s, tried again after {pause:?}");
            ensure!(pause >= Duration::from_secs(3), "tried again after {pause:?}");
        }
        recorder.mend();
        wanted.push(format!("{address}:5432"));
        let all: Vec<&str> = wanted.iter().map(String::as_str).collect();
        site.wait_for("db", &all).await?;
        eventually(DEADLINE, || async {
            let found = problems(&import, "db").await?;
            ensure!(found == "[]", "{status}: {found}");
            Ok(())
        })
        .await?;
    }
    // An answer that is lost was a write all the same.
    recorder.fault_times(1, Fault::DropAfter, is_write);
    site.deregister("pg", "10.1.0.8").await?;
    wanted.pop();
    let all: Vec<&str> = wanted.iter().map(String::as_str).collect();
    site.wait_for("db", &all).await?;
    import.stop().await?;

    // A start that is shown no slices, or no Services, takes and makes none.
    recorder.fault(Fault::Answer(500.try_into()?, "no".to_owned()), |it| {
        it.method == "GET" && it.path.contains("/endpointslices?")
    });
    recorder.clear();
    let import = command().await?;
    import.wait_unready("HTTP 500").await?;
    site.register("pg", "10.1.0.9", "passing").await?;
    sleep(Duration::from_secs(1)).await;
    ensure!(writes().count() == 0 && site.endpoints("db").await? == all, "written without a list");
    recorder.mend();
    wanted.push("10.1.0.9:5432".to_owned());
    let all: Vec<&str> = wanted.iter().map(String::as_str).collect();
    site.wait_for("db", &all).await?;
    monitor.finish("the endpoints").await?;
    import.stop().await
}
