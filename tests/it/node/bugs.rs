//! Bugs of katalog-sync that are not copied, each on the real servers. Those that are decided by a pod's
//! annotations alone are in `odd`; those of a kubelet's answers in `kubelet`.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::{Port, Program, ProgramOptions, eventually};
use serde_json::json;
use tokio::time::sleep;

use super::support::{Site, WISH, old_program};
use crate::support::{Bridge, DEADLINE, kube_consul};

/// A registration as katalog-sync left it, with a check that passes.
async fn left_behind(site: &Site, service: &str, pod: &str) -> Result<String> {
    let id = format!("katalog-sync_{service}_{}_{pod}", site.namespace);
    let registration = json!({"ID": id, "Name": service, "Port": 8080, "Address": "10.1.0.1",
        "Meta": {"external-source": "kubernetes", "external-sync-source": "katalog-sync",
            "external-k8s-link": format!("{}/{pod}", site.namespace)},
        "Check": {"CheckID": id, "TTL": "1h", "Status": "passing"}});
    site.agent.api().put("/v1/agent/service/register", &registration).await?;
    Ok(id)
}

/// A pod with a sidecar, which is ready but for that.
async fn with_sidecar(site: &Site, name: &str, annotations: &[(&str, &str)]) -> Result<()> {
    let mut all = json!({format!("{WISH}/sidecar"): "sync"});
    for (key, value) in annotations {
        all[format!("{WISH}/{key}")] = json!(value);
    }
    let object = json!({
        "metadata": {"name": name, "annotations": all},
        "spec": {"readinessGates": [{"conditionType": format!("{WISH}/synced")}],
            "containers": [{"name": "app", "ports": [{"containerPort": 8080}]}, {"name": "sync"}]},
    });
    site.object(object).await?;
    site.ip(name).await.map(drop)
}

/// A sidecar that has registered, for which the gate of its pod was set.
async fn registers(site: &Site, daemon: &str, pod: &str) -> Result<Program> {
    let port = Port::pick()?;
    let options = kube_consul()
        .args(["sidecar", "--daemon", daemon, "--namespace", &site.namespace])
        .args(["--pod-name", pod, "--container-name", "sync"])
        .arg(format!("--bind-address=127.0.0.1:{}", port.number()));
    let sidecar = Program::start("sidecar", options).await?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let url = format!("http://127.0.0.1:{}/ready", port.number());
    eventually(DEADLINE, || async {
        let answer = client.get(&url).send().await?;
        let (status, why) = (answer.status(), answer.text().await?);
        ensure!(status == 200, "{pod} is not registered: {why}");
        let status = site.pods()?.get(pod).await?.status.unwrap_or_default();
        let mut gates = status.conditions.unwrap_or_default().into_iter();
        let gate = gates.find(|it| it.type_ == format!("{WISH}/synced"));
        ensure!(gate.as_ref().is_some_and(|it| it.status == "True"), "{pod}: {gate:?}");
        Ok(())
    })
    .await?;
    Ok(sidecar)
}

fn with_sidecars(site: &Site) -> Result<(String, ProgramOptions)> {
    let address = format!("127.0.0.1:{}", Port::pick()?.number());
    let command = site.command().args(["--bind-address", &address]);
    Ok((address, command))
}

/// There a name with a blank stayed, and one with a newline, which no request can name, stopped every
/// removal and every sidecar of the node.
#[tokio::test]
async fn names_with_blanks_or_newlines_harm_nobody_and_are_removed_where_consul_lets_them()
-> Result<()> {
    let site = Site::new("node-names").await?;
    with_sidecar(&site, "web-0", &[("service-names", "web, api,\n db\n")]).await?;
    let blank = left_behind(&site, " api", "web-0").await?;
    let newline = left_behind(&site, "db\n", "web-0").await?;
    let orphan = left_behind(&site, "orphan", "web-9").await?;
    let (address, command) = with_sidecars(&site)?;
    let daemon = Bridge::start(command).await?;
    daemon.wait_ready().await?;
    let sidecar = registers(&site, &address, "web-0").await?;
    for service in ["web", "api", "db"] {
        site.wait_for(service, &["web-0:8080 passing"]).await?;
    }
    eventually(DEADLINE, || async {
        let all = site.agent.api().get("/v1/agent/services").await?;
        for gone in [&blank, &orphan] {
            ensure!(all[gone].is_null(), "{gone:?} stays: {}", all[gone]);
        }
        Ok(())
    })
    .await?;
    // Consul may refuse to remove it; then that is a number, and no more.
    let all = site.agent.api().get("/v1/agent/services").await?;
    println!(
        "the one with a newline: {}",
        if all[&newline].is_null() { "removed" } else { "stays" }
    );
    drop(sidecar);
    daemon.stop().await
}

/// There an empty name or meta that Consul refuses made sidecar and gate wait for ever.
#[tokio::test]
async fn what_consul_refuses_of_a_pod_holds_up_neither_its_sidecar_nor_its_gate() -> Result<()> {
    let site = Site::new("node-parts").await?;
    let meta =
        format!("a b:1,a.b:1,consul-x:1,:1,{}:1,long:{},k:v", "k".repeat(129), "v".repeat(513));
    let many: Vec<_> = (0..80).map(|number| format!("m{number}:1")).collect();
    with_sidecar(&site, "web-0", &[("service-names", "web,"), ("service-meta", &meta)]).await?;
    with_sidecar(&site, "web-1", &[("service-names", "web"), ("service-meta", &many.join(","))])
        .await?;
    let (address, command) = with_sidecars(&site)?;
    let daemon = Bridge::start(command).await?;
    daemon.wait_ready().await?;
    let sidecars =
        (registers(&site, &address, "web-0").await?, registers(&site, &address, "web-1").await?);
    site.wait_for("web", &["web-0:8080 passing", "web-1:8080 passing"]).await?;
    ensure!(site.in_agent("web", "web-0").await?["Meta"]["k"] == "v");
    let status = daemon.status().await?;
    ensure!(status["counts"]["problems"] == 2, "{}", status["problems"]);
    drop(sidecars);
    daemon.stop().await
}

/// There one removal that was refused failed every sync and every sidecar of the node.
#[tokio::test]
async fn a_removal_that_is_denied_harms_nobody_else() -> Result<()> {
    let rules = "service_prefix \"\" { policy = \"write\" } service \"locked\" { policy = \"read\" } \
                 node_prefix \"\" { policy = \"read\" } agent_prefix \"\" { policy = \"read\" }";
    let site = Site::with_rules("node-denied", rules).await?;
    let locked = left_behind(&site, "locked", "web-9").await?;
    site.many(1).await?;
    with_sidecar(&site, "with", &[("service-names", "with")]).await?;
    let (address, command) = with_sidecars(&site)?;
    let daemon = Bridge::start(command).await?;
    daemon.wait_ready().await?;
    let sidecar = registers(&site, &address, "with").await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    site.wait_for("with", &["with:8080 passing"]).await?;
    let series = "kube_consul_node_writes_total{kind=\"deregister\",result=\"denied\"}";
    eventually(DEADLINE, || async {
        let denied = daemon.metric(series).await?.unwrap_or_default();
        ensure!(denied >= 1.0, "nothing was denied");
        Ok(())
    })
    .await?;
    site.delete("web-0").await?;
    site.wait_for("web", &[]).await?;
    sidecar.terminate().await;
    sidecar.wait_for_code(0, DEADLINE).await?;
    site.wait_for("with", &["with:8080 critical"]).await?;
    let all = site.agent.api().get("/v1/agent/services").await?;
    ensure!(!all[&locked].is_null(), "it was not denied");
    daemon.stop().await
}

/// There the daemon crashed at each `Register` where the token may not read nodes.
#[tokio::test]
async fn a_sidecar_without_a_catalog_to_read_waits_and_the_daemon_goes_on() -> Result<()> {
    let rules = "service_prefix \"\" { policy = \"write\" }";
    let site = Site::with_rules("node-read", rules).await?;
    site.many(1).await?;
    with_sidecar(&site, "with", &[("service-names", "with")]).await?;
    let (address, command) = with_sidecars(&site)?;
    let daemon = Bridge::start(command).await?;
    daemon.wait_ready().await?;
    let port = Port::pick()?;
    let folder = tempfile::tempdir()?;
    let sidecar = old_program(folder.path(), "katalog-sync-sidecar")?
        .arg(format!("--katalog-sync-daemon={address}"))
        .args([format!("--namespace={}", site.namespace), "--pod-name=with".to_owned()])
        .args([
            "--container-name=sync".to_owned(),
            format!("--bind-address=127.0.0.1:{}", port.number()),
        ]);
    let sidecar = Program::start("katalog-sync-sidecar", sidecar).await?;
    // The agent has what it asked for; only the catalog cannot be read.
    site.wait_for("with", &["with:8080 passing"]).await?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let url = format!("http://127.0.0.1:{}/ready", port.number());
    sleep(Duration::from_secs(3)).await;
    ensure!(client.get(&url).send().await?.status() == 500, "what the catalog has is not known");
    ensure!(daemon.program.exit_status().is_none(), "{}", daemon.program.stderr());
    site.ready("web-0", false).await?;
    site.wait_for("web", &["web-0:8080 critical"]).await?;

    // A hang-up and then SIGTERM while it registers: there the SIGTERM was lost.
    let hang_up = ["-HUP", &sidecar.pid().to_string()];
    ensure!(std::process::Command::new("kill").args(hang_up).status()?.success());
    sleep(Duration::from_millis(200)).await;
    ensure!(sidecar.exit_status().is_none(), "a hang-up ends it");
    let began = Instant::now();
    sidecar.terminate().await;
    sidecar.wait_for_code(0, DEADLINE).await?;
    println!("a signal while it registers ends it within {:?}", began.elapsed());
    daemon.stop().await
}

/// There a variable that is no duration made the daemon spin, and one that is no boolean turned the
/// verification of certificates off.
#[tokio::test]
async fn variables_that_are_wrong_neither_spin_nor_turn_verification_off() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let daemon = old_program(folder.path(), "katalog-sync-daemon")?
        .env("MAX_SYNC_INTERVAL", "soon")
        .env("KUBELET_API", "http://127.0.0.1:1/pods")
        .env("CONSUL_HTTP_ADDR", "127.0.0.1:1");
    let daemon = Program::start("katalog-sync-daemon", daemon).await?;
    sleep(Duration::from_secs(3)).await;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid()))?;
    let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let hundredths = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    ensure!(hundredths < 150, "it used {hundredths}0 ms of 3 s");
    daemon.terminate().await;
    daemon.wait_for_code(0, DEADLINE).await?;

    let folder = tempfile::tempdir()?;
    let daemon = old_program(folder.path(), "katalog-sync-daemon")?
        .env("CONSUL_HTTP_SSL_VERIFY", "nah")
        .env("CONSUL_HTTP_ADDR", "https://127.0.0.1:1");
    let daemon = Program::start("katalog-sync-daemon", daemon).await?;
    daemon.wait_for_code(2, DEADLINE).await?;
    ensure!(daemon.stderr().contains("CONSUL_HTTP_SSL_VERIFY"), "{}", daemon.stderr());
    Ok(())
}

/// There a pod that was made again between two looks was taken for the one before: its gate was never
/// set, and its sidecar counted as registered.
#[tokio::test]
async fn p7_a_pod_that_is_made_again_between_two_lists_begins_anew() -> Result<()> {
    let site = Site::new("node-again").await?;
    let annotations: &[(&str, &str)] = &[("service-names", "web")];
    with_sidecar(&site, "web-0", annotations).await?;
    let proxy = kube_consul_stack::KubectlProxy::start(site.kubernetes.kubeconfig()).await?;
    let list = format!("{}/api/v1/namespaces/{}/pods", proxy.url(), site.namespace);
    let address = format!("127.0.0.1:{}", Port::pick()?.number());
    let command = site
        .command()
        .args(["--bind-address", &address, "--kubelet-api", &list])
        .args(["--default-sync-interval=5s"]);
    let daemon = Bridge::start(command).await?;
    daemon.wait_ready().await?;
    let sidecar = registers(&site, &address, "web-0").await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    sidecar.kill().await?;
    site.delete("web-0").await?;
    with_sidecar(&site, "web-0", annotations).await?;
    // Its own containers are ready, and its own sidecar has not registered: not as the one before.
    let not_ready = json!([
        {"name": "app", "ready": true, "restartCount": 0, "image": "a", "imageID": "a"},
        {"name": "sync", "ready": false, "restartCount": 0, "image": "a", "imageID": "a"}]);
    site.status("web-0", json!({"containerStatuses": not_ready})).await?;
    site.wait_for("web", &["web-0:8080 critical"]).await?;
    let sidecar = registers(&site, &address, "web-0").await?;
    site.wait_for("web", &["web-0:8080 passing"]).await?;
    sidecar.kill().await?;
    daemon.stop().await
}
