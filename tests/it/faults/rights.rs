//! The shipped rights are what every test runs with; here, one of them is missing.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use kube_consul_stack::{Kubernetes, ProgramOptions, eventually};
use serde_json::json;

use super::{Shown, look_after, numbered, shown, wait_for_names};
use crate::support::{Bridge, DEADLINE, Fixture, Objects, kubeconfig_without, manifest};

/// The bridge with the shipped rights but for one verb on one resource.
async fn command_without(fixture: &Fixture, resource: &str, verb: &str) -> Result<ProgramOptions> {
    let kubeconfig = kubeconfig_without(fixture.kubernetes, resource, verb).await?;
    Ok(fixture.command_with("bridge", &kubeconfig))
}

#[tokio::test]
async fn what_may_not_be_listed_is_not_taken_for_empty() -> Result<()> {
    let fixture = Fixture::recorded("no-list").await?;
    let names = numbered("svc", 0..5);
    fixture.create(names.clone()).await?;
    let bridge = fixture.bridge().await?;
    wait_for_names(&fixture.consul, &names).await?;
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, DEADLINE).await?;
    fixture.recorder().clear();
    let monitor = look_after(&fixture.consul, names);
    for resource in ["services", "endpointslices"] {
        let bridge = Bridge::start(command_without(&fixture, resource, "list").await?).await?;
        let why = format!("expected the right to list and watch {resource} in namespace");
        bridge.wait_unready(&why).await?;
        bridge.wait_unready(&format!("cannot list resource \"{resource}\"")).await?;
        bridge.wait_unready("manifests/base/rbac.yaml grants it").await?;
    }
    ensure!(fixture.recorder().writes().is_empty(), "{:#?}", fixture.recorder().writes());
    monitor.finish("the Services").await
}

#[tokio::test]
async fn what_may_not_be_watched_is_shown() -> Result<()> {
    let fixture = Fixture::recorded("no-watch").await?;
    fixture.create(numbered("svc", 0..1)).await?;
    for resource in ["services", "endpointslices"] {
        let bridge = Bridge::start(command_without(&fixture, resource, "watch").await?).await?;
        let why = format!("expected the right to list and watch {resource} in namespace");
        eventually(DEADLINE, || async {
            let status = bridge.status().await?;
            let trouble = status["kubernetes"]["trouble"].as_str().unwrap_or_default();
            ensure!(trouble.contains(&why), "the trouble is {trouble:?}, want {why:?}");
            Ok(())
        })
        .await?;
        ensure!(bridge.program.has_written(&why), "it is not in the log");
        // What was listed is registered all the same.
        wait_for_names(&fixture.consul, &numbered("svc", 0..1)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn without_the_clusters_identity_nothing_is_written() -> Result<()> {
    let fixture = Fixture::recorded("no-uid").await?;
    fixture.create(numbered("svc", 0..1)).await?;
    let command = command_without(&fixture, "namespaces", "get").await?;
    let bridge = Bridge::start(command.clone()).await?;
    bridge.program.wait_for_code(2, DEADLINE).await?;
    let told = bridge.program.stderr();
    ensure!(told.contains("--cluster-uid") && told.contains("kube-system"), "{told}");
    ensure!(fixture.recorder().writes().is_empty(), "{:#?}", fixture.recorder().writes());
    ensure!(shown(&fixture.consul).await? == Shown::default(), "something is registered");

    let namespaces: Api<Namespace> = Api::all(fixture.kubernetes.client()?);
    let uid = namespaces.get("kube-system").await?.metadata.uid.context("no uid")?;
    let bridge = Bridge::start(command.args(["--cluster-uid", &uid])).await?;
    bridge.wait_ready().await?;
    wait_for_names(&fixture.consul, &numbered("svc", 0..1)).await.map(drop)
}

#[tokio::test]
async fn without_events_everything_else_goes_on() -> Result<()> {
    let fixture = Fixture::recorded("no-events").await?;
    let names = numbered("svc", 0..3);
    fixture.create(names.clone()).await?;
    let bridge = Bridge::start(command_without(&fixture, "events", "create").await?).await?;
    bridge.wait_ready().await?;
    for name in &names {
        let weight = json!({"metadata": {"annotations": {"kube-consul.io/service-weight": "x"}}});
        fixture.patch(name, &weight).await?;
    }
    eventually(DEADLINE, || async {
        let status = bridge.status().await?;
        ensure!(status["counts"]["problems"] == names.len(), "{status}");
        Ok(())
    })
    .await?;
    let denial = "expected the right to create and patch events";
    bridge
        .program
        .wait_for_line("that Events are denied", DEADLINE, |it| it.contains(denial))
        .await?;
    bridge
        .program
        .wait_for_line("two more Events that are denied", DEADLINE, |line| {
            line.contains("no Event written")
                && line.contains(names.last().map_or("", String::as_str))
        })
        .await?;
    let log = bridge.program.stderr();
    ensure!(log.matches(denial).count() == 1, "it is said more than once: {log}");
    bridge.wait_ready().await?;
    fixture.create(numbered("new", 0..1)).await?;
    wait_for_names(&fixture.consul, &names.union(&numbered("new", 0..1)).cloned().collect())
        .await
        .map(drop)
}

/// A kubeconfig whose only permissions are the shipped Role's in these namespaces.
async fn kubeconfig_of_roles(cluster: &Kubernetes, namespaces: &[&str]) -> Result<PathBuf> {
    let home = cluster.namespace("roles").await?;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "limited", "namespace": home}});
    cluster.apply_yaml(&account.to_string()).await?;
    let shipped = fs::read_to_string(manifest("namespaces/role.yaml"))?;
    let subject = "name: kube-consul\n    namespace: kube-consul";
    ensure!(shipped.contains(subject) && shipped.contains("namespace: shop"), "{shipped}");
    let shipped = shipped.replace(subject, &format!("name: limited\n    namespace: {home}"));
    for namespace in namespaces {
        let role = shipped.replace("namespace: shop", &format!("namespace: {namespace}"));
        cluster.apply_yaml(&role).await?;
    }
    cluster.kubeconfig_for(&cluster.service_account_token(&home, "limited").await?)
}

#[tokio::test]
async fn l7_a_role_in_each_namespace_is_enough() -> Result<()> {
    let first = Fixture::new("role-a").await?;
    let cluster = first.kubernetes;
    let second = Objects::new(&cluster.client()?, &cluster.namespace("role-b").await?);
    let forgotten = cluster.namespace("role-c").await?;
    let names = ["web-a", "web-b"].map(ToOwned::to_owned);
    first.create(names[..1].to_vec()).await?;
    second.create_all(&names[1..]).await?;
    let kubeconfig = kubeconfig_of_roles(cluster, &[&first.namespace, &second.namespace]).await?;
    let command = || {
        first.command_with("bridge", &kubeconfig).args([
            "--namespace",
            &second.namespace,
            "--cluster-uid",
            "uid-of-the-test",
        ])
    };
    let bridge = Bridge::start(command()).await?;
    bridge.wait_ready().await?;
    wait_for_names(&first.consul, &names.iter().cloned().collect()).await?;
    // Events and deletions of both come, and a problem is shown where only a Role permits it.
    second.delete("web-b").await?;
    first.create(numbered("later", 0..1)).await?;
    let later = ["web-a", "later-000"].map(ToOwned::to_owned).into();
    wait_for_names(&first.consul, &later).await?;
    first.annotate("web-a", json!({"kube-consul.io/service-weight": "heavy"})).await?;
    bridge.wait_for_problem(&first.namespace, "web-a", "InvalidAnnotation").await?;
    let failures = bridge.metric("kube_consul_watch_failures_total{kind=\"Service\"}").await?;
    ensure!(failures == Some(0.0), "{failures:?} watches failed");
    bridge.stop().await?;

    // One that was forgotten is named, and nothing is decided without its list.
    let bridge = Bridge::start(command().args(["--namespace", &forgotten])).await?;
    bridge.wait_unready(&format!("services in namespace {forgotten}")).await?;
    wait_for_names(&first.consul, &later).await.map(drop)
}
