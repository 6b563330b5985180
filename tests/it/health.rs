//! Readiness and scale, as clients of Consul see them.

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::{A, ANY};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube_consul_stack::{Endpoint, HttpRecorder, ServiceKind, eventually};
use serde_json::json;

use crate::support::{Bridge, DEADLINE, Fixture};

#[tokio::test]
async fn a_name_resolves_while_an_endpoint_is_ready() -> Result<()> {
    let fixture = Fixture::new("ready").await?;
    let ports = [("http", 80)];
    fixture.web("web", &ports).await?;
    let _bridge = fixture.bridge().await?;
    let (dns, address) = (fixture.dns()?, fixture.cluster_ip("web").await?);
    let web = "web.service.consul";
    dns.wait_for(web, A, &[&address]).await?;

    let (one, two) = ("10.1.0.1", "10.1.0.2");
    fixture.endpoints("web", &[Endpoint::unready(one), Endpoint::unready(two)], &ports).await?;
    dns.wait_for(web, ANY, &[]).await?;
    // Not ready is not gone.
    let instances = fixture.instances("web").await?;
    let checks = &instances.first().context("web has no instance")?["Checks"];
    let ours = checks.as_array().into_iter().flatten();
    let ours: Vec<_> = ours.filter(|check| check["Name"] == "Kubernetes readiness").collect();
    ensure!(ours.len() == 1 && ours[0]["Status"] == "critical", "{checks}");

    fixture.endpoints("web", &[Endpoint::unready(one), Endpoint::ready(two)], &ports).await?;
    dns.wait_for(web, A, &[&address]).await?;
    fixture.endpoints("web", &[], &ports).await?;
    dns.wait_for(web, ANY, &[]).await?;
    // A condition that is not there means ready.
    let unknown = Endpoint { address: one.to_owned(), ready: None };
    fixture.endpoints("web", &[unknown], &ports).await?;
    dns.wait_for(web, A, &[&address]).await
}

/// Why an instance is critical stands in Consul with either sink, and says nothing that scaling changes.
#[tokio::test]
async fn a_critical_check_says_why_and_scaling_writes_nothing() -> Result<()> {
    let fixture = Fixture::recorded("why").await?;
    let ports = [("http", 80)];
    fixture.web("web", &ports).await?;
    let (one, two) = (Endpoint::unready("10.1.0.1"), Endpoint::unready("10.1.0.2"));
    fixture.endpoints("web", std::slice::from_ref(&one), &ports).await?;
    let why = format!("no ready endpoints of {}/web", fixture.namespace);
    for (sink, field) in [("agent", "Notes"), ("catalog", "Output")] {
        let command = fixture.command().await?.args(["--sink", sink]);
        let bridge = Bridge::start(command).await?;
        bridge.wait_ready().await?;
        let instances = fixture.instances("web").await?;
        let checks = instances.iter().filter_map(|it| it["Checks"].as_array()).flatten();
        let ours: Vec<_> =
            checks.filter(|it| it["Name"] == "Kubernetes readiness" && it[field] == *why).collect();
        ensure!(ours.len() == 1, "{sink}: {instances:?}");
        fixture.recorder().clear();
        fixture.endpoints("web", &[one.clone(), two.clone()], &ports).await?;
        // Something that is written, so that the change before it was seen.
        fixture.web(&format!("marker-{sink}"), &ports).await?;
        fixture.wait_for_instances(&format!("marker-{sink}"), 1).await?;
        fixture.endpoints("web", std::slice::from_ref(&one), &ports).await?;
        let writes = fixture.recorder().writes();
        let of_web = writes.iter().filter(|it| String::from_utf8_lossy(&it.body).contains("_web_"));
        ensure!(of_web.count() == 0, "{sink}: {writes:?}");
        bridge.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn each_pod_of_a_headless_service_resolves_while_it_is_ready() -> Result<()> {
    let fixture = Fixture::new("headless").await?;
    let (kubernetes, namespace) = (fixture.kubernetes, fixture.namespace.as_str());
    kubernetes.service(namespace, "db", ServiceKind::Headless, &[("sql", 5432)]).await?;
    kubernetes.deployment(namespace, "db", 2).await?;
    let _bridge = fixture.bridge().await?;
    fixture.wait_for_instances("db", 2).await?;
    let dns = fixture.dns()?;
    let db = "db.service.consul";
    let pods = running(&fixture, 2).await?;
    let [(first, one), (second, two)] = pods.as_slice() else { anyhow::bail!("{pods:?}") };
    dns.wait_for(db, A, &sorted([one, two])).await?;
    kubernetes.set_pod_ready(namespace, first, false).await?;
    dns.wait_for(db, A, &[two]).await?;
    kubernetes.set_pod_ready(namespace, second, false).await?;
    dns.wait_for(db, ANY, &[]).await?;
    kubernetes.set_pod_ready(namespace, first, true).await?;
    dns.wait_for(db, A, &[one]).await?;
    let of_first = |instance: &serde_json::Value| instance["Service"]["Address"] == one.as_str();
    let instances = fixture.instances("db").await?;
    let instance = instances.into_iter().find(of_first).context("the first pod is gone")?;
    let meta = &instance["Service"]["Meta"];
    ensure!(meta["external-k8s-ref-name"] == first.as_str(), "{meta}");
    ensure!(meta["external-k8s-node-name"] == "node-1", "{meta}");
    Ok(())
}

fn sorted(addresses: [&String; 2]) -> [&str; 2] {
    let mut addresses = addresses.map(String::as_str);
    addresses.sort_unstable();
    addresses
}

/// Names and addresses of the pods, once that many have one.
async fn running(fixture: &Fixture, wanted: usize) -> Result<Vec<(String, String)>> {
    let pods: Api<Pod> = Api::namespaced(fixture.kubernetes.client()?, &fixture.namespace);
    eventually(DEADLINE, || async {
        let list = pods.list(&ListParams::default()).await?;
        let address = |pod: Pod| Some((pod.metadata.name?, pod.status?.pod_ip?));
        let found: Vec<_> = list.items.into_iter().filter_map(address).collect();
        ensure!(found.len() == wanted, "{} pods have an address, want {wanted}", found.len());
        Ok(found)
    })
    .await
}

#[tokio::test]
async fn scaling_writes_the_instances_that_change_and_no_others() -> Result<()> {
    let fixture = Fixture::new("scale").await?;
    let (kubernetes, namespace) = (fixture.kubernetes, fixture.namespace.as_str());
    kubernetes.deployment(namespace, "app", 1).await?;
    for (name, kind) in [("app", ServiceKind::ClusterIp), ("pods", ServiceKind::Headless)] {
        kubernetes.service(namespace, name, kind, &[("http", 80)]).await?;
    }
    // Both Services select the same pods.
    fixture.patch("pods", &json!({"spec": {"selector": {"app": "app"}}})).await?;
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let command = fixture.command().await?.env("CONSUL_HTTP_ADDR", recorder.url());
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let (dns, address) = (fixture.dns()?, fixture.cluster_ip("app").await?);
    let (app, pods) = ("app.service.consul", "pods.service.consul");
    dns.wait_for(app, A, &[&address]).await?;
    fixture.wait_for_instances("pods", 1).await?;

    recorder.clear();
    for replicas in [5, 2] {
        kubernetes.scale(namespace, "app", replicas).await?;
        fixture.wait_for_instances("pods", replicas as usize).await?;
        eventually(DEADLINE, || async {
            let found = dns.ask(pods, A).await?.len();
            ensure!(found == replicas as usize, "{found} pods resolve, want {replicas}");
            Ok(())
        })
        .await?;
    }
    let writes = recorder.writes();
    let about = |service: &str| {
        let id = format!("{namespace}_{service}_");
        let text = |body: &[u8]| String::from_utf8_lossy(body).contains(&id);
        writes.iter().filter(|write| write.path.contains(&id) || text(&write.body)).count()
    };
    ensure!(about("app") == 0, "scaling between 1 and 5 wrote the ClusterIP: {writes:?}");
    // Four pods came and three left, each in one request or, seen while it was not ready, three:
    // registered, its check failed, and then ready or gone.
    ensure!((7..=21).contains(&about("pods")), "{} writes", about("pods"));
    ensure!(about("pods") == writes.len(), "{writes:?}");
    ensure!(dns.ask(app, A).await? == [address.as_str()], "the ClusterIP does not resolve");

    kubernetes.scale(namespace, "app", 0).await?;
    fixture.wait_for_instances("pods", 0).await?;
    dns.wait_for(pods, ANY, &[]).await?;
    dns.wait_for(app, ANY, &[]).await?;
    fixture.wait_for_instances("app", 1).await
}
