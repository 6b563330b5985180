//! Readiness gates and sidecars.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Port, Program, eventually};
use serde_json::{Value, json};

use super::support::{DAEMON, Site, WISH};
use super::timing::StatusWatch;
use crate::support::{Bridge, DEADLINE, for_each, kube_consul};

const GATES: [&str; 2] = ["kube-consul.io/synced", "katalog-sync.wish.com/synced"];

/// The status of a pod's condition, by its type.
async fn condition(site: &Site, pod: &str, kind: &str) -> Result<Vec<String>> {
    let status = site.pods()?.get(pod).await?.status.unwrap_or_default();
    let of = status.conditions.unwrap_or_default().into_iter().filter(|it| it.type_ == kind);
    Ok(of.map(|it| format!("{} {}", it.status, it.reason.unwrap_or_default())).collect())
}

async fn wait_for_condition(site: &Site, pod: &str, kind: &str, wanted: &str) -> Result<()> {
    eventually(DEADLINE, || async {
        let found = condition(site, pod, kind).await?;
        ensure!(found == [wanted], "{kind} is {found:?}, want {wanted}");
        Ok(())
    })
    .await
}

fn gated(name: &str, annotations: &Value) -> Value {
    let gates = [GATES[0], GATES[1], "example.com/lb"].map(|it| json!({"conditionType": it}));
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            "readinessGates": gates,
            "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}],
        },
    })
}

/// Another gate that nobody sets does not matter, and both of ours are set once.
#[tokio::test]
async fn p4_p5_gates_are_set_from_the_catalog_and_stay() -> Result<()> {
    let site = Site::new("node-gate").await?;
    site.object(gated("web-0", &json!({format!("{WISH}/service-names"): "web"}))).await?;
    site.ip("web-0").await?;
    site.ready("web-0", false).await?;
    let daemon = site.daemon().await?;
    for gate in GATES {
        wait_for_condition(&site, "web-0", gate, "False ContainersNotReady").await?;
    }
    site.ready("web-0", true).await?;
    for gate in GATES {
        wait_for_condition(&site, "web-0", gate, "True Done").await?;
    }
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    site.ready("web-0", false).await?;
    site.wait_for("web", &["web-0:8080 critical"]).await?;
    ensure!(condition(&site, "web-0", GATES[0]).await? == ["True Done"], "it is True no more");
    ensure!(condition(&site, "web-0", "example.com/lb").await?.is_empty(), "another's gate is set");
    // Whatever the next daemon does, it sets nothing.
    let version = site.pods()?.get("web-0").await?.metadata.resource_version;
    daemon.stop().await?;
    let daemon = site.daemon().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(
        site.pods()?.get("web-0").await?.metadata.resource_version == version,
        "it was patched"
    );
    daemon.stop().await
}

/// Another writer patches the same pod's conditions all the time, and 30 pods became ready while nobody
/// looked.
#[tokio::test]
async fn p5_gates_are_set_beside_another_writer_and_for_what_became_ready_meanwhile() -> Result<()>
{
    let site = Site::new("node-writers").await?;
    let names: Vec<_> = (0..30).map(|n| format!("web-{n}")).collect();
    for_each(&names, |name| async {
        site.object(gated(name, &json!({format!("{WISH}/service-names"): "web"}))).await?;
        site.ip(name).await.map(drop)
    })
    .await?;
    let pods = site.pods()?;
    let writer = tokio::spawn(async move {
        for number in 0_u64.. {
            let condition = json!({"type": "example.com/other", "status": "True",
                "message": number.to_string()});
            let patch = kube::api::Patch::Strategic(json!({"status": {"conditions": [condition]}}));
            // It ends with the test.
            let _ = pods.patch_status("web-0", &kube::api::PatchParams::default(), &patch).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let catalog = StatusWatch::catalog(&site.server, "web");
    let gates = StatusWatch::gates(&site, "web", GATES[1])?;
    let daemon = site.daemon().await?;
    eventually(DEADLINE, || async {
        let passing =
            site.catalog("web").await?.iter().filter(|it| it.ends_with("passing")).count();
        ensure!(passing == 30, "{passing} pass");
        Ok(())
    })
    .await?;
    for name in &names {
        wait_for_condition(&site, name, GATES[1], "True Done").await?;
        wait_for_condition(&site, name, GATES[0], "True Done").await?;
    }
    eventually(DEADLINE, || async {
        let times = catalog.times("passing");
        ensure!(times.len() == 30, "{} of 30 were seen", times.len());
        gates.print("from the catalog to the gate", &times, &["True"]).await
    })
    .await?;
    let other = condition(&site, "web-0", "example.com/other").await?;
    ensure!(other.len() == 1, "{other:?}");
    writer.abort();
    let _ = writer.await;
    let version = site.pods()?.get("web-0").await?.metadata.resource_version;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let later = site.pods()?.get("web-0").await?.metadata.resource_version;
    ensure!(version == later, "it goes on being patched");
    daemon.stop().await
}

/// A sidecar beside a pod: its daemon, and where it answers.
struct Sidecar {
    program: Program,
    port: Port,
}

impl Sidecar {
    async fn start(site: &Site, daemon: &str, pod: &str) -> Result<Self> {
        let port = Port::pick()?;
        let options = kube_consul()
            .args(["sidecar", "--daemon", daemon, "--namespace", &site.namespace])
            .args(["--pod-name", pod, "--container-name", "sync"])
            .arg(format!("--bind-address=127.0.0.1:{}", port.number()));
        Ok(Self { program: Program::start("sidecar", options).await?, port })
    }

    async fn ready(&self) -> Result<u16> {
        let url = format!("http://127.0.0.1:{}/ready", self.port.number());
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
        Ok(client.get(url).send().await?.status().as_u16())
    }
}

fn with_sidecar(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {
            format!("{WISH}/service-names"): "web", format!("{WISH}/sidecar"): "sync",
        }},
        "spec": {"containers": [
            {"name": "app", "ports": [{"containerPort": 8080}]}, {"name": "sync"},
        ]},
    })
}

/// The status of containers, as the kubelet says it.
async fn statuses(site: &Site, pod: &str, ready: &[(&str, bool)]) -> Result<()> {
    let status = |(name, ready): &(&str, bool)| json!({"name": name, "ready": ready, "restartCount": 0, "image": "a", "imageID": "a"});
    let all: Vec<_> = ready.iter().map(status).collect();
    site.status(pod, json!({"containerStatuses": all})).await
}

#[tokio::test]
async fn p1_p6_a_sidecar_holds_its_pod_and_takes_it_out_before_it_ends() -> Result<()> {
    let site = Site::new("node-sidecar").await?;
    let folder = tempfile::tempdir()?;
    let socket = format!("unix://{}", folder.path().join("node.sock").display());
    let command = || site.command().args(["--bind-address", &socket]);
    site.object(with_sidecar("web-0")).await?;
    site.ip("web-0").await?;
    statuses(&site, "web-0", &[("app", false), ("sync", false)]).await?;
    let daemon = Bridge::start(command()).await?;
    daemon.wait_ready().await?;
    site.wait_for("web", &["web-0:8080 critical"]).await?;
    let sidecar = Sidecar::start(&site, &socket, "web-0").await?;
    eventually(DEADLINE, || async {
        ensure!(sidecar.ready().await? == 500, "ready before the pod is");
        Ok(())
    })
    .await?;
    statuses(&site, "web-0", &[("app", true), ("sync", false)]).await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    eventually(DEADLINE, || async {
        ensure!(sidecar.ready().await? == 200, "not ready though it is in the catalog");
        Ok(())
    })
    .await?;
    statuses(&site, "web-0", &[("app", true), ("sync", true)]).await?;
    // The daemon restarts in between.
    daemon.stop().await?;
    let daemon = Bridge::start(command()).await?;
    daemon.wait_ready().await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;

    // As at a node's shutdown: no deletion timestamp, all ready.
    let began = Instant::now();
    sidecar.program.terminate().await;
    sidecar.program.wait_for_code(0, DEADLINE).await?;
    println!("deregistered within {:?}", began.elapsed());
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    ensure!(
        site.catalog("web").await? == ["web-0:8080 critical"],
        "{:?}",
        site.catalog("web").await?
    );
    site.annotate("web-0", json!({"example.com/another": "event"})).await?;
    daemon.stop().await?;
    let daemon = Bridge::start(command()).await?;
    daemon.wait_ready().await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    ensure!(
        site.catalog("web").await? == ["web-0:8080 critical"],
        "{:?}",
        site.catalog("web").await?
    );
    site.status("web-0", json!({"phase": "Failed"})).await?;
    site.wait_for("web", &[]).await?;
    daemon.stop().await
}

#[tokio::test]
async fn p13_a_dead_socket_is_replaced_and_a_live_one_or_another_file_is_left() -> Result<()> {
    let site = Site::new("node-socket").await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("node.sock");
    let socket = format!("unix://{}", path.display());
    let start = || Bridge::start(site.command().args(["--bind-address", &socket]));
    let first = start().await?;
    first.wait_ready().await?;
    let second = start().await?;
    second.program.wait_for_code(2, DEADLINE).await?;
    first.program.kill().await?;
    ensure!(path.exists(), "a killed daemon leaves its socket");
    let third = start().await?;
    third.wait_ready().await?;
    third.stop().await?;
    let _ = std::fs::remove_file(&path);
    std::fs::write(&path, "a file").context("write a file")?;
    start().await?.program.wait_for_code(2, DEADLINE).await
}

/// Under the old name, with the API server's own list of pods in the kubelet's place.
#[tokio::test]
async fn the_kubelets_list_is_polled_and_a_failed_one_removes_nothing() -> Result<()> {
    let site = Site::new("node-kubelet").await?;
    site.pod("web-0", json!({format!("{WISH}/service-names"): "web"})).await?;
    site.pod("web-1", json!({format!("{WISH}/service-names"): "web"})).await?;
    let proxy = kube_consul_stack::KubectlProxy::start(site.kubernetes.kubeconfig()).await?;
    let list = format!("{}/api/v1/namespaces/{}/pods", proxy.url(), site.namespace);
    let folder = tempfile::tempdir()?;
    let old_name = folder.path().join("katalog-sync-daemon");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kube-consul"), &old_name)?;
    let metrics = Port::pick()?;
    let options = kube_consul_stack::ProgramOptions::new(&old_name)
        .arg(format!("--metrics-bind-address=127.0.0.1:{}", metrics.number()))
        .args(["--kubelet-api", &list])
        .env("CONSUL_HTTP_ADDR", site.agent.url())
        .env("CONSUL_HTTP_TOKEN", DAEMON);
    let daemon = Program::start("katalog-sync-daemon", options).await?;
    let both = ["web-0:8080 passing", "web-1:8080 passing"];
    site.wait_for("web", &both).await?;
    site.delete("web-1").await?;
    site.wait_for("web", &both[..1]).await?;
    proxy.program().kill().await?;
    tokio::time::sleep(Duration::from_secs(15)).await;
    ensure!(site.catalog("web").await? == both[..1], "{:?}", site.catalog("web").await?);
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let url = format!("http://127.0.0.1:{}/metrics", metrics.number());
    let text = client.get(url).send().await?.text().await?;
    for series in [
        "katalog_sync_kubelet_sync_count_total{status=\"success\"}",
        "katalog_sync_kubelet_sync_count_total{status=\"error\"}",
        "katalog_sync_consul_sync_count_total{status=\"success\"}",
        "katalog_sync_kubelet_sync_duration_seconds_count{status=\"success\"}",
    ] {
        ensure!(text.contains(series), "no {series} in {text}");
    }
    daemon.terminate().await;
    daemon.wait_for_code(0, DEADLINE).await
}
