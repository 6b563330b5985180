//! The manifests that users of katalog-sync have, unchanged but for the image: its role, its command
//! lines, its user, its example application. Addresses are the test's, so that several can run on one machine.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{KubectlProxy, Port, Program, eventually};
use serde_json::{Value, json};

use super::support::{DAEMON, Site, USER, WISH, is_root, old_program, readable};
use crate::support::{DEADLINE, kubeconfig_with};

/// The rules of its ClusterRole.
fn role() -> Vec<Value> {
    vec![
        json!({"apiGroups": [""], "resources": ["nodes/proxy", "nodes/metrics"], "verbs": ["get"]}),
        json!({"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}),
        json!({"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "get"]}),
    ]
}

/// The ports at which a process listens.
fn listens_at(pid: i32) -> Result<BTreeSet<u16>> {
    let mut sockets = BTreeSet::new();
    for file in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let Ok(link) = fs::read_link(file?.path()) else { continue };
        let link = link.to_string_lossy().into_owned();
        if let Some(inode) = link.strip_prefix("socket:[").and_then(|it| it.strip_suffix(']')) {
            sockets.insert(inode.to_owned());
        }
    }
    let mut ports = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            // 0A: it listens.
            if fields[3] == "0A" && sockets.contains(fields[9]) {
                let port = fields[1].rsplit(':').next().context("an address has a port")?;
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

/// Who runs a process, and whether it may do what root may.
fn user(pid: i32) -> Result<(u32, bool)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> Option<&str> {
        let mut lines = status.lines();
        lines.find_map(|line| line.strip_prefix(name))?.split_whitespace().next()
    };
    let uid = field("Uid:").context("a uid")?.parse()?;
    Ok((uid, u64::from_str_radix(field("CapEff:").context("capabilities")?, 16)? != 0))
}

#[tokio::test]
async fn its_manifests_work_with_another_image() -> Result<()> {
    let site = Site::new("node-old").await?;
    // The example application, and one with its readiness gate.
    site.object(json!({
        "metadata": {"name": "hw", "annotations": {
            format!("{WISH}/sidecar"): "katalog-sync-sidecar",
            format!("{WISH}/service-names"): "hw-service-name,servicename2",
            format!("{WISH}/service-port"): "8080",
            format!("{WISH}/service-port-servicename2"): "12345",
            format!("{WISH}/service-meta"): "a:1,b:2",
            format!("{WISH}/service-meta-servicename2"): "b:1,c:2",
            format!("{WISH}/service-tags"): "a,b",
            format!("{WISH}/sync-interval"): "2s",
        }},
        "spec": {"containers": [
            {"name": "hw", "ports": [{"containerPort": 8080}]}, {"name": "katalog-sync-sidecar"}]},
    }))
    .await?;
    site.object(json!({
        "metadata": {"name": "gated", "annotations": {format!("{WISH}/service-names"): "gated"}},
        "spec": {"readinessGates": [{"conditionType": format!("{WISH}/synced")}],
            "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}]},
    }))
    .await?;
    site.ip("hw").await?;
    site.ip("gated").await?;
    let containers = |sidecar: bool| {
        let status = |name, ready: bool| json!({"name": name, "ready": ready, "restartCount": 0, "image": "a", "imageID": "a"});
        json!({"containerStatuses": [status("hw", true), status("katalog-sync-sidecar", sidecar)]})
    };
    site.status("hw", containers(false)).await?;

    // The API server's list in the kubelet's place.
    let kubelet = KubectlProxy::start(site.kubernetes.kubeconfig()).await?;
    let list = format!("{}/api/v1/namespaces/{}/pods", kubelet.url(), site.namespace);
    let folder = tempfile::tempdir()?;
    let kubeconfig = kubeconfig_with(site.kubernetes, &site.namespace, &role()).await?;
    let kubeconfig = readable(folder.path(), &kubeconfig)?;
    let (grpc, http) = (Port::pick()?, Port::pick()?);
    let daemon = old_program(folder.path(), "katalog-sync-daemon")?
        .arg(format!("--bind-address=:{}", grpc.number()))
        .env("KUBELET_API", &list)
        .env("KUBECONFIG", &kubeconfig)
        .env("CONSUL_HTTP_ADDR", site.agent.url())
        .env("CONSUL_HTTP_TOKEN", DAEMON);
    let daemon = Program::start("katalog-sync-daemon", daemon).await?;
    site.wait_for("hw-service-name", &["hw:8080 critical"]).await?;
    let sidecar = old_program(folder.path(), "katalog-sync-sidecar")?
        .arg(format!("--katalog-sync-daemon=127.0.0.1:{}", grpc.number()))
        .arg(format!("--namespace={}", site.namespace))
        .args(["--pod-name=hw", "--container-name=katalog-sync-sidecar"])
        .arg(format!("--bind-address=:{}", http.number()));
    let sidecar = Program::start("katalog-sync-sidecar", sidecar).await?;
    site.wait_for("hw-service-name", &["hw:8080 passing"]).await?;
    site.wait_for("servicename2", &["hw:12345 passing"]).await?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let url = format!("http://127.0.0.1:{}/ready", http.number());
    eventually(DEADLINE, || async {
        let status = client.get(&url).send().await?.status();
        ensure!(status == 200, "/ready is {status}");
        Ok(())
    })
    .await?;
    site.status("hw", containers(true)).await?;
    for (service, tags, meta) in [
        ("hw-service-name", json!(["a", "b"]), [("a", "1"), ("b", "2")]),
        ("servicename2", json!(["a", "b"]), [("b", "1"), ("c", "2")]),
    ] {
        let found = site.in_agent(service, "hw").await?;
        ensure!(found["Tags"] == tags, "{found}");
        ensure!(meta.iter().all(|(key, value)| found["Meta"][key] == *value), "{found}");
    }
    // The interval of 2 s makes a TTL of 12 s.
    let check = site.check("servicename2", "hw").await?;
    ensure!(
        check["Timeout"] == "12s" && check["Name"] == "Service 'servicename2' check",
        "{check}"
    );
    eventually(DEADLINE, || async {
        let status = site.pods()?.get("gated").await?.status.unwrap_or_default();
        let mut conditions = status.conditions.unwrap_or_default().into_iter();
        let gate = conditions.find(|it| it.type_ == format!("{WISH}/synced"));
        ensure!(gate.as_ref().is_some_and(|it| it.status == "True"), "{gate:?}");
        Ok(())
    })
    .await?;

    // Both run as the user of the original's image, who may do nothing.
    for program in [&daemon, &sidecar] {
        let found = user(program.pid())?;
        ensure!(!is_root()? || found == (USER, false), "{found:?}");
    }
    // Nothing listens that was not asked for.
    ensure!(
        listens_at(daemon.pid())? == BTreeSet::from([grpc.number()]),
        "{:?}",
        listens_at(daemon.pid())?
    );
    ensure!(listens_at(sidecar.pid())? == BTreeSet::from([http.number()]));
    sidecar.terminate().await;
    sidecar.wait_for_code(0, DEADLINE).await?;
    ensure!(site.catalog("servicename2").await? == ["hw:12345 critical"]);
    daemon.terminate().await;
    daemon.wait_for_code(0, DEADLINE).await?;
    ensure!(site.catalog("gated").await? == ["gated:8080 passing"], "its end removes something");
    Ok(())
}
