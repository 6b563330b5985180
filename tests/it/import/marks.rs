//! Marks that come, change and go.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::ListParams;
use kube_consul_stack::eventually;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::support::{OURS, Site, problems};
use crate::support::{DEADLINE, acts_on_terminals};

const IMPORT: &str = "kube-consul.io/import";

async fn slices_of(site: &Site, labels: &str) -> Result<Vec<EndpointSlice>> {
    Ok(site.slices()?.list(&ListParams::default().labels(labels)).await?.items)
}

/// Slices of a selector that is gone stay for ever, and serve beside ours: they are told with the
/// command. Ours go when a selector comes.
#[tokio::test]
async fn i7_a_selector_goes_and_comes_back() -> Result<()> {
    let site = Site::new("import-selector").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    let (kubernetes, namespace) = (site.fixture.kubernetes, &site.fixture.namespace);
    kubernetes.deployment(namespace, "db", 1).await?;
    let selecting = json!({"selector": {"app": "db"}, "ports": [{"name": "pg", "port": 5432}]});
    site.object(json!({"metadata": {"name": "db"}, "spec": selecting})).await?;
    let theirs = "kubernetes.io/service-name=db,\
                  endpointslice.kubernetes.io/managed-by=endpointslice-controller.k8s.io";
    eventually(3 * DEADLINE, || async {
        let found = slices_of(&site, theirs).await?;
        let endpoints: usize =
            found.iter().filter_map(|it| Some(it.endpoints.as_ref()?.len())).sum();
        ensure!(endpoints == 1, "{endpoints} endpoints of the pod");
        Ok(())
    })
    .await?;
    let import = site.import().await?;
    ensure!(site.endpoints("db").await?.is_empty());

    // The selector goes, and the mark comes: ours beside theirs, which is told.
    site.service("db", json!({IMPORT: "pg"})).await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    site.wait_for_problem(&import, "db", "kubectl delete endpointslice db-").await?;
    // The cluster mirrors the Endpoints that its controller left behind, too.
    site.wait_for_problem(&import, "db", "kubectl delete endpoints db").await?;
    let version = |slices: &[EndpointSlice]| slices[0].metadata.resource_version.clone();
    let before = version(&slices_of(&site, theirs).await?);
    site.register("pg", "10.1.0.2", "passing").await?;
    site.wait_for("db", &["10.1.0.1:5432", "10.1.0.2:5432"]).await?;
    ensure!(version(&slices_of(&site, theirs).await?) == before, "theirs was written");

    // And back: ours go, theirs are the controller's again.
    let spec = json!({"selector": {"app": "db"}, "ports": [{"name": "pg", "port": 5432}]});
    site.object(json!({"metadata": {"name": "db", "annotations": {IMPORT: "pg"}}, "spec": spec}))
        .await?;
    site.wait_for("db", &[]).await?;
    ensure!(slices_of(&site, theirs).await?.len() == 1, "theirs went too");
    site.wait_for_problem(&import, "db", "without a selector").await
}

/// Tools that prune what carries their marks would delete a slice that copied them.
#[tokio::test]
async fn i9_no_label_or_annotation_of_the_service_is_copied() -> Result<()> {
    let site = Site::new("import-gitops").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.object(json!({
        "metadata": {
            "name": "db",
            "labels": {"app.kubernetes.io/instance": "shop", "app.kubernetes.io/managed-by": "Helm"},
            "annotations": {
                IMPORT: "pg", "argocd.argoproj.io/tracking-id": "shop:/Service:shop/db",
                "kustomize.toolkit.fluxcd.io/checksum": "1", "meta.helm.sh/release-name": "shop",
            },
        },
        "spec": {"ports": [{"name": "pg", "port": 5432}]},
    }))
    .await?;
    let _import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    for slice in slices_of(&site, OURS).await? {
        let labels: Vec<String> = slice.metadata.labels.unwrap_or_default().into_keys().collect();
        let wanted = ["endpointslice.kubernetes.io/managed-by", "kubernetes.io/service-name"];
        ensure!(labels == wanted, "{labels:?}");
        let annotations = slice.metadata.annotations.unwrap_or_default();
        ensure!(annotations.is_empty(), "{annotations:?}");
    }
    Ok(())
}

/// Another Consul service is named: its endpoints are there before the old ones go.
#[tokio::test]
async fn i11_another_name_is_in_place_before_the_old_one_goes() -> Result<()> {
    let site = Site::new("import-rename").await?;
    for n in 1..=3 {
        site.register("old", &format!("10.1.0.{n}"), "passing").await?;
        site.register_at("new", &format!("10.1.1.{n}"), 6432, "passing").await?;
    }
    site.service("db", json!({IMPORT: "old"})).await?;
    let import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432", "10.1.0.2:5432", "10.1.0.3:5432"]).await?;
    let monitor = site.never_empty("db")?;
    let new = ["10.1.1.1:6432", "10.1.1.2:6432", "10.1.1.3:6432"];
    for _ in 0..3 {
        site.service("db", json!({IMPORT: "new"})).await?;
        site.wait_for("db", &new).await?;
        site.service("db", json!({IMPORT: "old"})).await?;
        site.wait_for("db", &["10.1.0.1:5432", "10.1.0.2:5432", "10.1.0.3:5432"]).await?;
    }
    monitor.finish("the endpoints").await?;
    import.stop().await
}

/// The mark goes while instances come and go: so do the slices, once, and for good.
#[tokio::test]
async fn i11_a_mark_that_goes_while_instances_flap_takes_the_slices_for_good() -> Result<()> {
    let site = Site::new("import-unmark").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    let flap = async {
        for n in 0.. {
            let address = format!("10.1.0.{}", 2 + n % 5);
            site.register("pg", &address, "passing").await?;
            sleep(Duration::from_millis(20)).await;
            site.deregister("pg", &address).await?;
        }
        anyhow::Ok(())
    };
    let unmark = async {
        sleep(Duration::from_millis(500)).await;
        site.service("db", json!({})).await?;
        site.wait_for("db", &[]).await?;
        for _ in 0..100 {
            let found = slices_of(&site, OURS).await?;
            ensure!(found.is_empty(), "they came back: {}", found.len());
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        flapped = flap => flapped?,
        done = unmark => done?,
    }
    ensure!(problems(&import, "db").await?.is_empty(), "a Service without a mark is listed");
    import.stop().await
}

/// What a hostile tenant, or a hostile service, gives: nobody else's endpoints change, and the
/// program goes on.
#[tokio::test]
async fn i6_hostile_services_and_instances_harm_only_themselves() -> Result<()> {
    let site = Site::new("import-hostile").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("good", json!({IMPORT: "pg"})).await?;
    let import = site.import().await?;
    let long = "x".repeat(200_000);
    let deep = "(".repeat(1_500) + "Service.Port == 1" + &")".repeat(1_500);
    let wide = vec!["Service.Port matches \"(a|a)*b\""; 100].join(" or ");
    let many = (0..5_000).map(|n| format!("s{n}")).collect::<Vec<_>>().join(",");
    let markup = "<img src=x>\u{7}\u{202e}../../v1/kv/x?recurse#";
    let cases: [(&str, Value); 12] = [
        ("long", json!({IMPORT: long})),
        ("long-filter", json!({IMPORT: "pg", "kube-consul.io/import-filter": long})),
        (
            "broken-filter",
            json!({IMPORT: "pg", "kube-consul.io/import-filter": "Service.Port ==="}),
        ),
        ("deep-filter", json!({IMPORT: "pg", "kube-consul.io/import-filter": deep})),
        ("wide-filter", json!({IMPORT: "pg", "kube-consul.io/import-filter": wide})),
        ("many", json!({IMPORT: "pg", "kube-consul.io/import-failover": many})),
        ("no-datacenter", json!({IMPORT: "pg", "kube-consul.io/import-datacenters": "moon,sun"})),
        ("markup", json!({IMPORT: markup})),
        ("path", json!({IMPORT: "../../catalog/services"})),
        ("dots", json!({IMPORT: ".."})),
        ("query", json!({IMPORT: "pg?stale&filter=x"})),
        ("keep", json!({IMPORT: "pg", "kube-consul.io/import-keep": "P999999999Y"})),
    ];
    for (name, annotations) in cases {
        site.service(name, annotations).await?;
    }
    // The API takes what YAML does not.
    let markup = json!({IMPORT: format!("{markup}\u{9b}31m")});
    site.fixture.annotate("markup", markup).await?;
    for (n, name) in ["ev il/..%2f", "EV\u{1f4a5}IL", &"n".repeat(300)].iter().enumerate() {
        site.register(name, &format!("10.1.9.{n}"), "passing").await?;
    }
    for (address, port) in
        [("10.1.2.1", 0), ("169.254.169.254", 80), ("::1", 80), ("localhost", 80)]
    {
        site.register_at("pg", address, port, "passing").await?;
    }
    // A port that no u16 holds, as the catalog takes it.
    let body = json!({"Node": "big", "Address": "10.200.0.9", "Service": {
        "ID": "big", "Service": "pg", "Address": "10.1.2.9", "Port": 70_000}});
    site.fixture.consul.api().put("/v1/catalog/register", &body).await?;
    site.wait_for_problem(&import, "good", "left out").await?;
    for (name, problem) in [
        ("long", "at most 255 bytes"),
        ("long-filter", "at most 4096 bytes"),
        ("broken-filter", "pg"),
        ("many", "at most 4096 bytes"),
        ("no-datacenter", "moon"),
        ("keep", "import-keep"),
    ] {
        site.wait_for_problem(&import, name, problem).await?;
    }
    site.register("pg", "10.1.0.2", "passing").await?;
    site.wait_for("good", &["10.1.0.1:5432", "10.1.0.2:5432"]).await?;
    for name in ["markup", "path", "dots", "query", "deep-filter", "broken-filter"] {
        println!("{name}: {:?} {}", site.endpoints(name).await?, problems(&import, name).await?);
        ensure!(site.endpoints(name).await?.is_empty(), "{name} has endpoints");
    }
    // Whoever reads the log or `/status` does so on a terminal.
    for text in [import.get("/status").await?.1, import.program.stderr()] {
        ensure!(text.contains("<img src=x>"), "it does not name it");
        ensure!(!text.contains(acts_on_terminals), "{text:?}");
    }
    let memory = import.metric("process_resident_memory_bytes").await?.unwrap_or_default();
    println!("{:.1} MiB resident", memory / f64::from(1 << 20));
    import.stop().await
}
