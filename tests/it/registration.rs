//! What is registered, as clients of Consul see it.

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::{A, AAAA, ANY, SRV};
use kube_consul_stack::{Endpoint, HttpRecorder, Recorded, ServiceKind};
use serde_json::json;

use crate::support::{Bridge, Fixture};

#[tokio::test]
async fn every_form_of_a_name_resolves() -> Result<()> {
    let fixture = Fixture::new("names").await?;
    fixture.web("web", &[("http", 80), ("metrics", 9090)]).await?;
    let bridge = fixture.bridge().await?;
    let (dns, address) = (fixture.dns()?, fixture.cluster_ip("web").await?);
    let namespace = &fixture.namespace;
    // Ready means registered: no waiting from here on.
    for (name, port) in [("web", 80), ("web-metrics", 9090)] {
        let srv = format!("port {port} weight 1");
        for name in [
            format!("{name}.service.consul"),
            format!("{name}.service.dc1.consul"),
            format!("{namespace}.{name}.service.consul"),
        ] {
            ensure!(dns.ask(&name, A).await? == [address.as_str()], "A {name}");
            ensure!(dns.ask(&name, ANY).await? == [address.as_str()], "ANY {name}");
            ensure!(dns.ask(&name, SRV).await? == [srv.as_str()], "SRV {name}");
            ensure!(dns.ask(&name, AAAA).await?.is_empty(), "AAAA {name}");
        }
    }
    for (name, port) in [("_web._http", 80), ("_web-metrics._metrics", 9090)] {
        let found = dns.ask(&format!("{name}.service.consul"), SRV).await?;
        ensure!(found == [format!("port {port} weight 1")], "{name}: {found:?}");
    }
    for other in ["elsewhere.web", "_web._metrics", "web-http"] {
        let found = dns.ask(&format!("{other}.service.consul"), ANY).await?;
        ensure!(found.is_empty(), "{other}: {found:?}");
    }
    bridge.stop().await?;
    ensure!(dns.ask("web.service.consul", A).await? == [address], "it is gone with the bridge");
    Ok(())
}

#[tokio::test]
async fn a_service_is_followed_from_its_creation_to_its_end() -> Result<()> {
    let fixture = Fixture::new("follow").await?;
    let bridge = fixture.bridge().await?;
    let dns = fixture.dns()?;
    let web = "web.service.consul";
    fixture.web("web", &[("http", 80), ("metrics", 9090)]).await?;
    let first = fixture.cluster_ip("web").await?;
    dns.wait_for(web, A, &[&first]).await?;
    dns.wait_for("web-metrics.service.consul", SRV, &["port 9090 weight 1"]).await?;

    let ports = json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9091}]);
    fixture.patch("web", &json!({"spec": {"ports": ports}})).await?;
    fixture.endpoints("web", &[Endpoint::ready("10.1.0.1")], &[("http", 1), ("admin", 2)]).await?;
    dns.wait_for(web, SRV, &["port 8080 weight 1"]).await?;
    dns.wait_for("web-admin.service.consul", SRV, &["port 9091 weight 1"]).await?;
    dns.wait_for("web-metrics.service.consul", ANY, &[]).await?;

    let annotations = json!({
        "kube-consul.io/service-tags": "blue,a\\,b",
        "kube-consul.io/service-meta-team": "shop",
        "kube-consul.io/service-weight": "7",
    });
    fixture.annotate("web", annotations).await?;
    dns.wait_for(web, SRV, &["port 8080 weight 7"]).await?;
    let instances = fixture.instances("web").await?;
    let service = &instances.first().context("web has no instance")?["Service"];
    let namespace = fixture.namespace.as_str();
    ensure!(service["Tags"] == json!([namespace, "http", "blue", "a,b"]), "{service}");
    let meta = json!({
        "external-source": "kubernetes", "external-k8s-ns": namespace,
        "external-k8s-service": "web", "kube-consul-cluster": "kubernetes",
        "port-http": "8080", "port-admin": "9091", "team": "shop",
    });
    ensure!(service["Meta"] == meta, "{service}");
    dns.wait_for("blue.web.service.consul", A, &[&first]).await?;

    fixture.annotate("web", json!({"kube-consul.io/service-name": "shop"})).await?;
    dns.wait_for("shop.service.consul", A, &[&first]).await?;
    dns.wait_for("shop-admin.service.consul", A, &[&first]).await?;
    dns.wait_for(web, ANY, &[]).await?;
    fixture.annotate("web", json!({"kube-consul.io/service-name": null})).await?;
    dns.wait_for(web, A, &[&first]).await?;
    dns.wait_for("shop.service.consul", ANY, &[]).await?;

    fixture.patch("web", &json!({"metadata": {"labels": {"consul": "true"}}})).await?;
    dns.wait_for(web, ANY, &[]).await?;
    fixture.patch("web", &json!({"metadata": {"labels": {"consul": null}}})).await?;
    dns.wait_for(web, A, &[&first]).await?;

    fixture.delete("web").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let second = fixture.cluster_ip("web").await?;
    ensure!(first != second, "the API server gave the same ClusterIP again");
    dns.wait_for(web, A, &[&second]).await?;
    dns.wait_for("web-admin.service.consul", ANY, &[]).await?;
    fixture.delete("web").await?;
    dns.wait_for(web, ANY, &[]).await?;
    let left = fixture.consul.api().get("/v1/agent/services").await?;
    let ours = |id: &&String| id.starts_with("kubernetes_");
    let left = left.as_object().context("no object")?.keys().find(ours);
    ensure!(left.is_none(), "{left:?} is left");
    ensure!(bridge.status().await?["problems"] == json!([]), "{}", bridge.status().await?);
    Ok(())
}

#[tokio::test]
async fn both_families_of_a_headless_service_resolve() -> Result<()> {
    let fixture = Fixture::new("dual").await?;
    let bridge = fixture.bridge().await?;
    let ports = [("sql", 5432)];
    let (kubernetes, namespace) = (fixture.kubernetes, fixture.namespace.as_str());
    let kind = ServiceKind::HeadlessSelectorless;
    kubernetes.service(namespace, "db", kind, &ports).await?;
    for (slice, address) in [("db-4", "10.1.0.1"), ("db-6", "fd00::1")] {
        let endpoints = [Endpoint::ready(address)];
        kubernetes.endpoint_slice(namespace, "db", slice, &endpoints, &ports).await?;
    }
    let dns = fixture.dns()?;
    for name in ["db.service.consul".to_owned(), format!("{namespace}.db.service.consul")] {
        dns.wait_for(&name, A, &["10.1.0.1"]).await?;
        dns.wait_for(&name, AAAA, &["fd00::1"]).await?;
        dns.wait_for(&name, ANY, &["10.1.0.1", "fd00::1"]).await?;
        dns.wait_for(&name, SRV, &["port 5432 weight 1", "port 5432 weight 1"]).await?;
    }
    let endpoints = [Endpoint::ready("fd00::2")];
    kubernetes.endpoint_slice(namespace, "db", "db-6", &endpoints, &ports).await?;
    dns.wait_for("db.service.consul", AAAA, &["fd00::2"]).await?;
    dns.wait_for("db.service.consul", A, &["10.1.0.1"]).await?;
    bridge.stop().await
}

#[tokio::test]
async fn what_changes_nothing_in_consul_costs_no_write() -> Result<()> {
    let fixture = Fixture::new("silent").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let command =
        || async { anyhow::Ok(fixture.command().await?.env("CONSUL_HTTP_ADDR", recorder.url())) };
    let bridge = Bridge::start(command().await?.arg("--resync=1s")).await?;
    bridge.wait_ready().await?;
    recorder.clear();
    fixture.patch("web", &json!({"metadata": {"labels": {"tier": "front"}}})).await?;
    fixture.annotate("web", json!({"example.com/note": "x"})).await?;
    // What comes after them has been seen: so were they.
    fixture.web("last", &[("http", 80)]).await?;
    fixture.wait_for_instances("last", 1).await?;
    wait_for_resync(&bridge).await?;
    let writes = said(&recorder.writes());
    let about_last = |write: &&String| write.contains("_last_http_");
    let registered = writes.iter().filter(about_last).count();
    ensure!(registered == 1 && writes.len() == 2, "want last and its PTR record: {writes:?}");
    bridge.stop().await?;

    // Nor does a restart.
    recorder.clear();
    let bridge = Bridge::start(command().await?).await?;
    bridge.wait_ready().await?;
    let writes = said(&recorder.writes());
    ensure!(writes.is_empty(), "a restart writes {writes:?}");
    Ok(())
}

/// Waits until Consul was read back twice more.
async fn wait_for_resync(bridge: &Bridge) -> Result<()> {
    let series = "kube_consul_resyncs_total{result=\"complete\"}";
    let before = bridge.metric(series).await?.unwrap_or_default();
    kube_consul_stack::eventually(crate::support::DEADLINE, || async {
        let now = bridge.metric(series).await?.unwrap_or_default();
        ensure!(now >= before + 2.0, "{now} readings, want {}", before + 2.0);
        Ok(())
    })
    .await
}

fn said(requests: &[Recorded]) -> Vec<String> {
    let text = |request: &Recorded| {
        format!("{} {} {}", request.method, request.path, String::from_utf8_lossy(&request.body))
    };
    requests.iter().map(text).collect()
}
