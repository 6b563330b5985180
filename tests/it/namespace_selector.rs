//! `--namespace-selector`: Services come and go with the labels of their namespace.

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, Patch, PatchParams};
use kube_consul_stack::{ProgramOptions, eventually};
use serde_json::{Value, json};

use crate::support::{
    Bridge, DEADLINE, Fixture, kube_consul, kubeconfig_with, manifest, says, shipped_kubeconfig,
    shipped_rules,
};

/// Of the test's own namespace alone: all of the cluster are asked.
fn flags(fixture: &Fixture) -> [String; 3] {
    let name = format!("kubernetes.io/metadata.name={}", fixture.namespace);
    ["--sink=catalog".to_owned(), "--namespace-selector".to_owned(), format!("{name},consul=sync")]
}

async fn label(fixture: &Fixture, value: impl Into<Value>) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(fixture.kubernetes.client()?);
    let patch = Patch::Merge(json!({"metadata": {"labels": {"consul": value.into()}}}));
    namespaces.patch(&fixture.namespace, &PatchParams::default(), &patch).await?;
    Ok(())
}

/// A subcommand for all namespaces, with the shipped rights.
async fn command(fixture: &Fixture, name: &str) -> Result<ProgramOptions> {
    fixture.kubernetes.apply_file(&manifest("optional/namespaces-rbac.yaml")).await?;
    Ok(kube_consul()
        .arg(name)
        .args([std::path::Path::new("--kubeconfig"), shipped_kubeconfig().await?])
        .env("CONSUL_HTTP_ADDR", fixture.consul.url())
        .args(flags(fixture)))
}

#[tokio::test]
async fn services_come_and_go_with_the_label() -> Result<()> {
    let fixture = Fixture::new("by-label").await?;
    for name in ["web", "db"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    let bridge = Bridge::start(command(&fixture, "bridge").await?).await?;
    bridge.wait_ready().await?;
    let log = bridge.program.stderr();
    ensure!(log.contains("no Service is selected"), "{log}");
    ensure!(bridge.metric("kube_consul_nothing_selected").await? == Some(1.0));
    let checked = says(0, command(&fixture, "check").await?).await?;
    let line = checked.lines().find(|line| line.contains("selection"));
    ensure!(line.is_some_and(|line| line.contains("no Service is selected")), "{checked}");
    ensure!(fixture.instances("web").await?.is_empty());
    let explained = says(0, explain(&bridge, &fixture)).await?;
    ensure!(explained.contains("--namespace-selector"), "{explained}");

    label(&fixture, "sync").await?;
    fixture.wait_for_instances("web", 1).await?;
    fixture.wait_for_instances("db", 1).await?;
    // A restart changes nothing, and neither does a plan find anything to change.
    ensure!(bridge.metric("kube_consul_nothing_selected").await? == Some(0.0));
    says(0, command(&fixture, "plan").await?).await?;
    let registered = fixture.instances("web").await?;
    bridge.stop().await?;
    let bridge = Bridge::start(command(&fixture, "bridge").await?).await?;
    bridge.wait_ready().await?;
    ensure!(fixture.instances("web").await? == registered);

    label(&fixture, Value::Null).await?;
    fixture.wait_for_instances("web", 0).await?;
    fixture.wait_for_instances("db", 0).await?;
    bridge.stop().await
}

fn explain(bridge: &Bridge, fixture: &Fixture) -> ProgramOptions {
    let service = format!("{}/web", fixture.namespace);
    kube_consul().args(["explain", &service, "--admin-url", &bridge.url("")])
}

#[tokio::test]
async fn namespaces_that_may_not_be_listed_remove_nothing() -> Result<()> {
    let fixture = Fixture::new("by-label").await?;
    fixture.web("web", &[("http", 80)]).await?;
    label(&fixture, "sync").await?;
    let bridge = Bridge::start(command(&fixture, "bridge").await?).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("web", 1).await?;
    bridge.stop().await?;

    let namespace = fixture.kubernetes.namespace("no-list").await?;
    let rules = shipped_rules(fixture.kubernetes).await?;
    let kubeconfig = kubeconfig_with(fixture.kubernetes, &namespace, &rules).await?;
    let limited = |name: &str| {
        kube_consul()
            .arg(name)
            .args([std::path::Path::new("--kubeconfig"), &kubeconfig])
            .env("CONSUL_HTTP_ADDR", fixture.consul.url())
            .args(flags(&fixture))
    };
    let bridge = Bridge::start(limited("bridge")).await?;
    bridge.wait_unready("namespaces").await?;
    let told = eventually(DEADLINE, || async {
        let log = bridge.program.stderr();
        ensure!(log.contains("manifests/optional/namespaces-rbac.yaml"), "{log}");
        Ok(())
    });
    told.await?;
    ensure!(fixture.instances("web").await?.len() == 1);
    let checked = says(1, limited("check")).await?;
    let line = checked.lines().find(|line| line.contains("list namespaces"));
    ensure!(line.is_some_and(|line| line.contains("not granted")), "{checked}");
    bridge.stop().await
}
