//! What a Service asks for by annotations.

use anyhow::{Result, ensure};
use kube_consul_stack::{Consul, ConsulOptions, eventually};
use serde_json::{Value, json};

use super::support::Site;
use crate::support::DEADLINE;

/// An instance with a check, in the catalog of this Consul.
async fn register(consul: &Consul, address: &str, status: &str, differs: &Value) -> Result<()> {
    let mut service = json!({"ID": address, "Service": "pg", "Address": address, "Port": 5432});
    let all = service.as_object_mut().expect("an object");
    all.extend(differs.as_object().cloned().unwrap_or_default());
    let body = json!({
        "Node": format!("node-{address}"), "Address": "10.200.0.1", "Service": service,
        "Check": {"CheckID": address, "ServiceID": address, "Name": "up", "Status": status},
    });
    consul.api().put("/v1/catalog/register", &body).await.map(drop)
}

/// The three instances here, the last but one with this status and the others with that.
async fn register_all(consul: &Consul, warning: &str, passing: &str) -> Result<()> {
    let (tags, meta) = (json!({"Tags": ["blue", "eu"]}), json!({"Meta": {"env": "production"}}));
    register(consul, "10.1.0.1", passing, &tags).await?;
    register(consul, "10.1.0.2", warning, &json!({"Tags": ["blue"]})).await?;
    register(consul, "10.1.0.3", passing, &meta).await
}

/// A Service, its annotations after `kube-consul.io/import-`, the endpoints that it has at first,
/// and those once all instances here are critical.
type Row = (
    &'static str,
    &'static [(&'static str, &'static str)],
    &'static [&'static str],
    &'static [&'static str],
);

const ALL: &[&str] = &["10.1.0.1:5432", "!10.1.0.2:5432", "10.1.0.3:5432"];
const CRITICAL: &[&str] = &["!10.1.0.1:5432", "!10.1.0.2:5432", "!10.1.0.3:5432"];
const FIRST: &[&str] = &["10.1.0.1:5432"];

const ROWS: [Row; 10] = [
    ("plain", &[], ALL, CRITICAL),
    (
        "one-tag",
        &[("tags", "blue")],
        &["10.1.0.1:5432", "!10.1.0.2:5432"],
        &["!10.1.0.1:5432", "!10.1.0.2:5432"],
    ),
    ("two-tags", &[("tags", "blue, eu")], FIRST, &["!10.1.0.1:5432"]),
    (
        "filter",
        &[("filter", "Service.Meta.env == production")],
        &["10.1.0.3:5432"],
        &["!10.1.0.3:5432"],
    ),
    (
        "warning",
        &[("health", "warning")],
        &["10.1.0.1:5432", "10.1.0.2:5432", "10.1.0.3:5432"],
        CRITICAL,
    ),
    ("last-resort", &[("last-resort", "true"), ("tags", "eu")], FIRST, FIRST),
    ("keep", &[("keep", "1h"), ("tags", "eu")], FIRST, FIRST),
    ("failover", &[("failover", "standby")], ALL, &["10.1.1.1:5432"]),
    ("datacenters", &[("datacenters", "dc1,dc2")], ALL, &["10.2.0.1:5432"]),
    ("elsewhere", &[("datacenters", "dc2,dc1")], &["10.2.0.1:5432"], &["10.2.0.1:5432"]),
];

/// Tags, a filter, what is ready, the last endpoints kept, another service and another datacenter
/// while none here is usable, and back again.
#[tokio::test]
async fn a_service_chooses_among_instances_services_and_datacenters() -> Result<()> {
    let site =
        Site::with_consul("import-options", ConsulOptions::dev().node("import-here")).await?;
    let here = &site.fixture.consul;
    let there = ConsulOptions::dev().node("import-there").datacenter("dc2").federated_with(here);
    let there = Consul::start(there).await?;
    eventually(DEADLINE, || async {
        let leader = here.api().get("/v1/status/leader?dc=dc2").await?;
        ensure!(leader.as_str().is_some_and(|it| !it.is_empty()), "{leader}");
        Ok(())
    })
    .await?;
    register_all(here, "warning", "passing").await?;
    register(here, "10.1.1.1", "passing", &json!({"Service": "standby"})).await?;
    register(&there, "10.2.0.1", "passing", &json!({})).await?;
    for (name, options, ..) in ROWS {
        let mut annotations = json!({"kube-consul.io/import": "pg"});
        for (option, value) in options {
            annotations[format!("kube-consul.io/import-{option}")] = json!(value);
        }
        site.service(name, annotations).await?;
    }
    // As consul8s put it into a URL.
    site.object(json!({
        "metadata": {"name": "old", "labels": {"consul8s_source": "consul"},
                     "annotations": {"consul8s/service.name": "pg?dc=dc2&x="}},
        "spec": {"ports": [{"name": "pg", "port": 5432}]},
    }))
    .await?;
    let import = site.import().await?;
    for (name, _, wanted, _) in ROWS {
        site.wait_for(name, wanted).await?;
    }
    site.wait_for("old", &["10.2.0.1:5432"]).await?;
    register_all(here, "critical", "critical").await?;
    for (name, _, _, wanted) in ROWS {
        site.wait_for(name, wanted).await?;
    }
    register_all(here, "warning", "passing").await?;
    for (name, _, wanted, _) in ROWS {
        site.wait_for(name, wanted).await?;
    }
    // What is kept is followed as long as it is usable, and goes once it is asked for no longer.
    let deregister = json!({"Node": "node-10.1.0.1"});
    here.api().put("/v1/catalog/deregister", &deregister).await?;
    site.wait_for("two-tags", &[]).await?;
    site.wait_for("keep", FIRST).await?;
    let keep = json!({"kube-consul.io/import": "pg", "kube-consul.io/import-tags": "eu"});
    site.service("keep", keep).await?;
    site.wait_for("keep", &[]).await?;
    import.stop().await
}
