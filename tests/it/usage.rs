//! How the program is started, what it says when that goes wrong, and how it ends.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::A;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::Api;
use kube_consul_stack::{
    Authority, ConsulOptions, KubectlProxy, Kubernetes, Port, data_folder, eventually,
};
use serde_json::{Value, json};

use crate::support::{
    Bridge, DEADLINE, Fixture, ends_with, kube_consul, kubeconfig_without, shipped_kubeconfig,
};

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const UNKNOWN: &str = "99999999-9999-9999-9999-999999999999";
const POWERLESS: &str = "22222222-2222-2222-2222-222222222222";
const OWNER: &str = "kube-consul/kubernetes/owner";
const OTHER_UID: &str = "00000000-0000-0000-0000-00000000abcd";

fn contains(text: &str, parts: &[&str]) -> Result<()> {
    for part in parts {
        ensure!(text.contains(part), "expected {part:?} in: {text}");
    }
    Ok(())
}

/// The uid that identifies the shared cluster.
async fn uid() -> Result<String> {
    let namespaces: Api<Namespace> = Api::all(Kubernetes::shared().await?.client()?);
    let uid = namespaces.get("kube-system").await?.metadata.uid;
    uid.context("kube-system has no uid")
}

#[tokio::test]
async fn wrong_usage_ends_with_2_and_says_what_was_expected() -> Result<()> {
    let folder = data_folder("usage")?;
    let garbage = folder.join("kubeconfig");
    fs::write(&garbage, "{not yaml")?;
    let (garbage, missing) = (garbage.display().to_string(), folder.join("missing"));
    let missing = missing.display().to_string();
    let proxy = "--kube-url=http://127.0.0.1:1";
    let cases: [(&[&str], &[&str]); 9] = [
        (&["--nonsense"], &["--nonsense", "Usage"]),
        (&["--cluster", "Not_A_Label"], &["--cluster", "Not_A_Label"]),
        (&[proxy, "--health", "always"], &["--health always", "--sink agent", "unready"]),
        (&["--kubeconfig", &missing], &[&missing, "check the file"]),
        (&["--kubeconfig", &garbage], &[&garbage, "check the file"]),
        (&[proxy, "--consul-addr", "ftp://x"], &["--consul-addr", "host:port"]),
        (&["--kube-url", "ftp://x"], &["--kube-url", "http://HOST:PORT"]),
        (&[proxy, "--admin-addr", "192.0.2.1:1"], &["--admin-addr", "choose another"]),
        (
            &[],
            &[
                "--kube-url",
                "--kubeconfig",
                "--kube-context",
                "KUBECONFIG",
                "~/.kube/config",
                "pod",
            ],
        ),
    ];
    for (arguments, expected) in cases {
        let admin = format!("127.0.0.1:{}", Port::pick()?.number());
        let command = kube_consul().arg("bridge").args(arguments);
        let said = ends_with(2, command.env("KUBE_CONSUL_ADMIN_ADDR", admin)).await;
        let said = said.with_context(|| format!("{arguments:?}"))?;
        contains(&said, expected).with_context(|| format!("{arguments:?}"))?;
    }
    let unreadable = kube_consul().args(["bridge", proxy]).env("CONSUL_HTTP_SSL", "maybe");
    contains(&ends_with(2, unreadable).await?, &["CONSUL_HTTP_SSL", "maybe", "true or false"])
}

#[tokio::test]
async fn records_of_another_cluster_are_refused_unless_they_are_adopted() -> Result<()> {
    let fixture = Fixture::new("owner").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let (uid, consul) = (uid().await?, fixture.consul.api());
    consul.put_text(&format!("/v1/kv/{OWNER}"), OTHER_UID).await?;
    let once = || async { anyhow::Ok(fixture.command().await?.arg("--once")) };
    let said = ends_with(3, once().await?).await?;
    contains(&said, &[&uid, OTHER_UID, OWNER, "--adopt"])?;
    let said = ends_with(3, once().await?.args(["--adopt", "another"])).await?;
    contains(&said, &[&uid, OTHER_UID])?;
    let said = ends_with(3, once().await?.args(["--cluster-uid", OTHER_UID])).await?;
    contains(&said, &[&uid, OTHER_UID, "--cluster-uid"])?;
    // Also while nothing answers for Consul.
    let nobody = Port::pick()?;
    let silent = format!("127.0.0.1:{}", nobody.number());
    let command = fixture.command().await?.args(["--cluster-uid", OTHER_UID]);
    let command = command.args(["--consul-addr", &silent, "--once", "--timeout", "1h"]);
    contains(&ends_with(3, command).await?, &[&uid, OTHER_UID, "--cluster-uid"])?;
    ensure!(fixture.instances("web").await?.is_empty(), "it was registered all the same");
    ensure!(consul.key(OWNER).await?.as_deref() == Some(OTHER_UID), "the key was changed");

    ends_with(0, once().await?.args(["--adopt", OTHER_UID])).await?;
    fixture.wait_for_instances("web", 1).await?;
    ensure!(consul.key(OWNER).await? == Some(uid.clone()), "the key was not taken over");
    // One that runs notices that it was taken over.
    let bridge = Bridge::start(fixture.command().await?.arg("--resync=1s")).await?;
    bridge.wait_ready().await?;
    consul.put_text(&format!("/v1/kv/{OWNER}"), OTHER_UID).await?;
    bridge.program.wait_for_code(3, DEADLINE).await?;
    contains(&bridge.program.stderr(), &[&uid, OTHER_UID])?;
    fixture.wait_for_instances("web", 1).await
}

#[tokio::test]
async fn where_kube_system_may_not_be_read_its_uid_has_to_be_given() -> Result<()> {
    let fixture = Fixture::new("blind").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let kubeconfig = kubeconfig_without(fixture.kubernetes, "namespaces", "get").await?;
    let command = || {
        kube_consul()
            .args(["bridge", "--once", "--namespace", &fixture.namespace])
            .args([Path::new("--kubeconfig"), &kubeconfig])
            .env("CONSUL_HTTP_ADDR", fixture.consul.url())
    };
    contains(&ends_with(2, command()).await?, &["kube-system", "--cluster-uid", "403"])?;
    ensure!(fixture.consul.api().key(OWNER).await?.is_none(), "an owner was written");
    ends_with(0, command().args(["--cluster-uid", "given"])).await?;
    ensure!(fixture.consul.api().key(OWNER).await?.as_deref() == Some("given"));
    fixture.wait_for_instances("web", 1).await
}

#[tokio::test]
async fn once_ends_in_step_or_says_why_not() -> Result<()> {
    let fixture = Fixture::new("once").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let once = || async { anyhow::Ok(fixture.command().await?.arg("--once")) };
    ends_with(0, once().await?).await?;
    // In sync means in the catalog.
    ensure!(fixture.instances("web").await?.len() == 1, "web is not registered");
    fixture.delete("web").await?;
    ends_with(0, once().await?).await?;
    fixture.wait_for_instances("web", 0).await?;

    fixture.web("bad", &[("http", 80)]).await?;
    fixture.annotate("bad", json!({"kube-consul.io/service-weight": "heavy"})).await?;
    contains(&ends_with(1, once().await?).await?, &["1 problem", "service-weight", "heavy"])?;
    ensure!(fixture.instances("bad").await?.len() == 1, "bad is not registered");

    let nobody = format!("http://127.0.0.1:{}", Port::pick()?.number());
    let quick = once().await?.arg("--timeout=2s");
    let said = ends_with(1, quick.clone().env("CONSUL_HTTP_ADDR", &nobody)).await?;
    contains(&said, &["--timeout", "Consul", nobody.trim_start_matches("http://")])?;
    let command = kube_consul().args(["bridge", "--once", "--timeout=2s", "--kube-url", &nobody]);
    let said = ends_with(1, command.env("CONSUL_HTTP_ADDR", fixture.consul.url())).await?;
    contains(&said, &["--timeout", "Kubernetes"])
}

/// The fields of the line of the log with this message.
fn log_line(bridge: &Bridge, message: &str) -> Result<Value> {
    let log = bridge.program.stderr();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let found = lines.into_iter().find(|line| line["message"] == message);
    found.with_context(|| format!("no line {message:?} in: {log}"))
}

#[tokio::test]
async fn three_processes_as_in_the_pod() -> Result<()> {
    let fixture = Fixture::new("pod").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let proxy = KubectlProxy::start(shipped_kubeconfig().await?).await?;
    let command = kube_consul()
        .args(["bridge", "--namespace", &fixture.namespace, "--kube-url", &proxy.url()])
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let address = fixture.cluster_ip("web").await?;
    ensure!(fixture.dns()?.ask("web.service.consul", A).await? == [address]);

    let kubernetes = log_line(&bridge, "Kubernetes API")?;
    let url = kubernetes["url"].as_str().unwrap_or_default();
    ensure!(url.trim_end_matches('/') == proxy.url(), "{kubernetes}");
    ensure!(kubernetes["version"].as_str().is_some_and(|it| it.starts_with('v')), "{kubernetes}");
    let consul = log_line(&bridge, "Consul agent")?;
    let agent = fixture.consul.api().get("/v1/agent/self").await?;
    ensure!(consul["url"] == fixture.consul.url() && consul["datacenter"] == "dc1", "{consul}");
    ensure!(consul["version"] == agent["Config"]["Version"], "{consul}");
    let line = log_line(&bridge, "synced")?;
    ensure!(line["namespace"] == fixture.namespace && line["service"] == "web", "{line}");
    let counted = ["passing", "critical", "added", "updated", "removed", "ptr_records"];
    let counted = counted.map(|field| line[field].as_u64());
    ensure!(counted == [1, 0, 1, 0, 0, 1].map(Some), "{line}");

    ensure!(bridge.get("/livez").await?.0 == 200);
    let writes = "kube_consul_writes_total{record=\"registration\",result=\"applied\"}";
    ensure!(bridge.metric(writes).await? == Some(1.0), "{}", bridge.get("/metrics").await?.1);
    let passing = "kube_consul_registrations{health=\"passing\"}";
    ensure!(bridge.metric(passing).await? == Some(1.0));
    for (series, least) in [
        ("kube_consul_ready", 1.0),
        ("kube_consul_last_sync_timestamp_seconds", 1e9),
        ("kube_consul_last_resync_timestamp_seconds", 1e9),
        ("kube_consul_watch_last_heard_timestamp_seconds{kind=\"Service\"}", 1e9),
        ("kube_consul_consul_request_duration_seconds_count{operation=\"agent_register\"}", 2.0),
        ("process_resident_memory_bytes", 1e6),
    ] {
        let found = bridge.metric(series).await?;
        ensure!(found.is_some_and(|found| found >= least), "{series}: {found:?}");
    }
    ensure!(bridge.metric("kube_consul_leader").await?.is_none(), "there is no election");
    let status = bridge.status().await?;
    let services = status["services"].as_array().into_iter().flatten();
    let ours = services.into_iter().find(|it| it["namespace"] == *fixture.namespace);
    let instance = &ours.context("the Service is not shown")?["instances"][0];
    for (found, wanted) in [
        (&status["cluster"], json!("kubernetes")),
        (&status["cluster_uid"], json!(uid().await?)),
        (&status["version"], json!(env!("CARGO_PKG_VERSION"))),
        (&status["ready"], json!(true)),
        (&status["reason"], Value::Null),
        (&status["kubernetes"]["version"], kubernetes["version"].clone()),
        (&status["consul"]["version"], consul["version"].clone()),
        (&status["consul"]["trouble"], Value::Null),
        (&status["counts"]["registrations"], json!(1)),
        (&status["counts"]["ptr_records"], json!(1)),
        (&status["counts"]["problems"], json!(0)),
        (&status["holding"], json!(false)),
        (&status["problems"], json!([])),
        (&instance["service"], json!("web")),
        (&instance["critical"], json!(false)),
    ] {
        ensure!(*found == wanted, "found {found}, want {wanted} in {status}");
    }
    Ok(())
}

#[tokio::test]
async fn a_token_that_consul_does_not_know_is_told_and_the_right_one_taken_up() -> Result<()> {
    let fixture = Fixture::with_consul("token", ConsulOptions::dev().acl(MANAGEMENT)).await?;
    takes_up_the_right_token(&fixture, UNKNOWN, "ACL not found").await?;
    let once = fixture.command().await?.args(["--once", "--timeout=2s"]);
    let said = ends_with(1, once.env("CONSUL_HTTP_TOKEN", UNKNOWN)).await?;
    contains(&said, &["ACL not found"])
}

#[tokio::test]
async fn a_token_without_rights_is_told_and_the_right_one_taken_up() -> Result<()> {
    let fixture = Fixture::with_consul("rights", ConsulOptions::dev().acl(MANAGEMENT)).await?;
    let token = json!({"SecretID": POWERLESS});
    fixture.consul.api().put("/v1/acl/token", &token).await?;
    takes_up_the_right_token(&fixture, POWERLESS, "Permission denied").await
}

/// Starts a bridge with a wrong token in its file, and writes the right one there.
async fn takes_up_the_right_token(fixture: &Fixture, wrong: &str, why: &str) -> Result<()> {
    fixture.web("web", &[("http", 80)]).await?;
    let file = data_folder("token")?.join("token");
    fs::write(&file, format!("{wrong}\n"))?;
    let command = fixture.command().await?.env("CONSUL_HTTP_TOKEN_FILE", &file);
    let bridge = Bridge::start(command).await?;
    eventually(DEADLINE, || async {
        let (status, text) = bridge.get("/readyz").await?;
        ensure!(status == 503 && text.contains(why), "{status}: {text}");
        Ok(())
    })
    .await?;
    ensure!(bridge.get("/livez").await?.0 == 200);
    fs::write(&file, format!("{MANAGEMENT}\n"))?;
    bridge.wait_ready().await?;
    fixture.wait_for_instances("web", 1).await?;
    // Nothing is missing that it could not know at first.
    let status = bridge.status().await?;
    ensure!(status["consul"]["datacenter"] == "dc1", "{status}");
    ensure!(status["counts"]["ptr_records"] == 1, "{status}");
    let log = bridge.program.stderr();
    for secret in [MANAGEMENT, wrong] {
        ensure!(!log.contains(secret), "a token is in the log: {log}");
        ensure!(!status.to_string().contains(secret), "a token is in {status}");
    }
    Ok(())
}

#[tokio::test]
async fn consul_is_reached_over_tls() -> Result<()> {
    let authority = Authority::new("the test's authority")?;
    let options = ConsulOptions::dev().tls(&authority, false)?;
    let fixture = Fixture::with_consul("tls", options).await?;
    fixture.web("web", &[("http", 80)]).await?;
    let ca = data_folder("tls")?.join("ca.pem");
    fs::write(&ca, authority.pem())?;
    let command = fixture.command().await?;
    let bridge = Bridge::start(command.clone().env("CONSUL_CACERT", &ca)).await?;
    bridge.wait_ready().await?;
    ensure!(fixture.instances("web").await?.len() == 1);
    ensure!(bridge.status().await?["consul"]["url"] == fixture.consul.url());
    // Without the authority it does not talk to it.
    let said = ends_with(1, command.args(["--once", "--timeout=2s"])).await?;
    contains(&said, &["ertificate"])
}

/// The first line says which program this is and what it works on: whoever reads a log from its middle
/// looks there.
#[tokio::test]
async fn the_first_line_of_the_log_names_version_cluster_sink_and_addresses() -> Result<()> {
    let fixture = Fixture::new("first-line").await?;
    let bridge = fixture.command().await?.args(["--sink", "catalog", "--cluster", "east"]);
    let import = kube_consul()
        .args(["import", "--namespace", &fixture.namespace])
        .arg("--kubeconfig")
        .arg(fixture.kubernetes.kubeconfig())
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    for (command, name) in [(bridge, "bridge"), (import, "import")] {
        let daemon = Bridge::start(command).await?;
        daemon.wait_ready().await?;
        let log = daemon.program.stderr();
        let first = log.lines().next().unwrap_or_default();
        let first: serde_json::Value = serde_json::from_str(first)?;
        ensure!(first["message"] == format!("starting kube-consul {name}"), "{first}");
        ensure!(first["version"] == env!("CARGO_PKG_VERSION"), "{first}");
        ensure!(first["consul"] == fixture.consul.url(), "{first}");
        let admin = daemon.url("");
        ensure!(first["admin"] == admin.trim_start_matches("http://"), "{first}");
        ensure!(
            first["kubernetes"].as_str().is_some_and(|it| it.starts_with("https://")),
            "{first}"
        );
        if name == "bridge" {
            ensure!(first["cluster"] == "east" && first["sink"] == "catalog", "{first}");
            ensure!(first["leader_election"] == false, "{first}");
        }
        daemon.stop().await?;
    }
    Ok(())
}
