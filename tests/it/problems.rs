//! Problems of one object: shown to people, and harmless to all others.

use anyhow::{Result, ensure};
use hickory_resolver::proto::rr::RecordType::{A, SRV};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams};
use kube_consul_stack::eventually;
use serde_json::json;

use crate::support::{Bridge, DEADLINE, Fixture};

/// Annotations that cannot be meant, and a word of what was expected.
const INVALID: [(&str, &str, &str); 4] = [
    ("service-name", " ", "1 to 255 characters"),
    ("service-port", "nonsense", "http, metrics"),
    ("service-weight", "-3", "from 2 to 65535"),
    ("address", "moon", "cluster-ip"),
];

const GAUGE: &str = "kube_consul_problems{reason=\"InvalidAnnotation\"}";

#[tokio::test]
async fn invalid_annotations_are_told_and_harm_only_their_service() -> Result<()> {
    let fixture = Fixture::new("invalid").await?;
    let bridge = fixture.bridge().await?;
    for (annotation, value, _) in INVALID {
        let name = format!("bad-{annotation}");
        fixture.web(&name, &[("http", 80), ("metrics", 9090)]).await?;
        fixture.annotate(&name, json!({format!("kube-consul.io/{annotation}"): value})).await?;
    }
    fixture.web("good", &[("http", 80)]).await?;
    fixture.wait_for_instances("good", 1).await?;
    for (annotation, _, expected) in INVALID {
        let name = format!("bad-{annotation}");
        let message =
            bridge.wait_for_problem(&fixture.namespace, &name, "InvalidAnnotation").await?;
        ensure!(message.contains(annotation) && message.contains(expected), "{message}");
        shown_as_event(&fixture, &name, expected).await?;
    }
    ensure!(bridge.metric(GAUGE).await? == Some(4.0), "{:?}", bridge.metric(GAUGE).await?);
    let (dns, address) = (fixture.dns()?, fixture.cluster_ip("bad-service-port").await?);
    // What was invalid has no effect; without a name there is nothing to register.
    dns.wait_for("bad-service-port.service.consul", A, &[&address]).await?;
    dns.wait_for("bad-service-weight.service.consul", SRV, &["port 80 weight 1"]).await?;
    fixture.wait_for_instances("bad-address", 1).await?;
    fixture.wait_for_instances("bad-service-name", 0).await?;

    said_once(&fixture, &bridge).await?;
    healed(&fixture, &bridge).await
}

/// The Event is on the Service.
async fn shown_as_event(fixture: &Fixture, name: &str, expected: &str) -> Result<()> {
    let events: Api<Event> = Api::namespaced(fixture.kubernetes.client()?, &fixture.namespace);
    let uid = fixture.services()?.get(name).await?.metadata.uid;
    eventually(DEADLINE, || async {
        let list = events.list(&ListParams::default()).await?.items;
        let about = |event: &&Event| {
            let regarding = event.regarding.clone().unwrap_or_default();
            regarding.kind.as_deref() == Some("Service")
                && regarding.name.as_deref() == Some(name)
                && regarding.uid == uid
        };
        let event = list.iter().find(about).ok_or_else(|| anyhow::anyhow!("no Event on {name}"))?;
        let note = event.note.clone().unwrap_or_default();
        ensure!(note.contains(expected), "{note}");
        ensure!(event.reason.as_deref() == Some("InvalidAnnotation"), "{event:?}");
        ensure!(event.type_.as_deref() == Some("Warning"), "{event:?}");
        Ok(())
    })
    .await
}

/// However often the Service is looked at, the log says it once.
async fn said_once(fixture: &Fixture, bridge: &Bridge) -> Result<()> {
    let name = "bad-service-weight";
    for round in ["a", "b"] {
        fixture.annotate(name, json!({"kube-consul.io/service-tags": round})).await?;
        let tagged = format!("{round}.{name}.service.consul");
        fixture.dns()?.wait_for(&tagged, SRV, &["port 80 weight 1"]).await?;
    }
    let log = bridge.program.stderr();
    let told = |line: &&str| line.contains("InvalidAnnotation") && line.contains(name);
    let told: Vec<_> = log.lines().filter(told).collect();
    ensure!(told.len() == 1 && told[0].contains(&fixture.namespace), "{told:?}");
    Ok(())
}

async fn healed(fixture: &Fixture, bridge: &Bridge) -> Result<()> {
    for ((annotation, ..), value) in INVALID.into_iter().zip(["fixed", "metrics", "5", "auto"]) {
        let name = format!("bad-{annotation}");
        fixture.annotate(&name, json!({format!("kube-consul.io/{annotation}"): value})).await?;
        bridge.wait_for_no_problem(&fixture.namespace, &name).await?;
    }
    ensure!(bridge.metric(GAUGE).await? == Some(0.0), "{:?}", bridge.metric(GAUGE).await?);
    let dns = fixture.dns()?;
    let address = fixture.cluster_ip("bad-service-name").await?;
    dns.wait_for("fixed.service.consul", A, &[&address]).await?;
    dns.wait_for("bad-service-port.service.consul", SRV, &["port 9090 weight 1"]).await?;
    dns.wait_for("bad-service-weight.service.consul", SRV, &["port 80 weight 5"]).await
}
