//! What is waited for before a pod is registered, and what clients see meanwhile.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use kube_consul_stack::{Consul, Port, Program, ProgramOptions, eventually, program_path};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

use super::support::{PATIENCE, consul, ended, hook_at, pod_at, serve, serve_in_turn, services};

const LOCAL: [u8; 4] = [127, 0, 0, 1];

/// Answers as the API server does for this pod.
async fn api_with(pod: &Value) -> Result<SocketAddr> {
    serve((LOCAL, 0).into(), 200, pod.to_string()).await
}

/// The checks of a service, each as the agent has it.
async fn checks(consul: &Consul) -> Result<Vec<Value>> {
    let checks = consul.api().get("/v1/agent/checks").await?;
    Ok(checks.as_object().context("no object")?.values().cloned().collect())
}

#[tokio::test]
async fn h1_h2_an_initial_delay_is_kept_and_the_timeout_begins_after_it() -> Result<()> {
    let consul = consul().await?;
    let app = serve((LOCAL, 0).into(), 200, String::new()).await?;
    let exec = json!({"exec": {"command": ["true"]}, "initialDelaySeconds": 2});
    let http = json!({"httpGet": {"port": "main"}, "initialDelaySeconds": 2});
    for (kind, probe) in
        [("readinessProbe", &exec), ("startupProbe", &exec), ("readinessProbe", &http)]
    {
        let mut pod: Value = serde_json::from_str(&pod_at(app, &Value::Null))?;
        pod["spec"]["containers"][0][kind] = probe.clone();
        let api = api_with(&pod).await?;
        let start = Instant::now();
        ended(hook_at(api, &consul, "register k8s --health-check-timeout 1s"), 0).await?;
        let took = start.elapsed();
        ensure!((2_000..5_000).contains(&took.as_millis()), "{kind} {probe}: {took:?}");
        ensure!(services(&consul).await? == [format!("127.0.0.1_{}", app.port())]);
        ended(hook_at(api, &consul, "deregister k8s"), 0).await?;
    }
    Ok(())
}

#[tokio::test]
async fn h11_an_application_that_answers_is_registered_as_critical_at_the_deadline() -> Result<()> {
    let consul = consul().await?;
    let app = serve((LOCAL, 0).into(), 503, String::new()).await?;
    let pod = pod_at(app, &json!({"httpGet": {"port": "main"}, "periodSeconds": 1}));
    let api = serve((LOCAL, 0).into(), 200, pod).await?;
    let start = Instant::now();
    let told = ended(hook_at(api, &consul, "register k8s --health-check-timeout 2s"), 0).await?;
    ensure!(start.elapsed() >= Duration::from_secs(2), "{:?}", start.elapsed());
    let told = told.stderr();
    ensure!(told.contains("WARN") && told.contains("found 503"), "{told}");
    let [check] = &checks(&consul).await?[..] else { panic!("not one check") };
    ensure!(check["Status"] == "critical", "{check:#}");
    Ok(())
}

/// It was there when it was last seen, and ready: that the API server has gone says nothing else.
#[tokio::test]
async fn a_ready_pod_is_registered_although_it_cannot_be_read_again() -> Result<()> {
    let consul = consul().await?;
    let app = serve((LOCAL, 0).into(), 200, String::new()).await?;
    let pod = pod_at(app, &json!({"httpGet": {"port": "main"}}));
    let answers = vec![(200, pod), (503, String::new())];
    let api = serve_in_turn((LOCAL, 0).into(), answers).await?;
    let told = ended(hook_at(api, &consul, "register k8s --get-pod-timeout 1s"), 0).await?.stderr();
    ensure!(told.contains("cannot tell whether the pod terminates"), "{told}");
    ensure!(services(&consul).await?.len() == 1);
    Ok(())
}

/// A pod of an old Deployment answers until the new one's hook has ended, as a rollout with
/// `maxUnavailable: 0` has it; a client that asks every 5 ms never finds nobody.
struct Rollout<'a> {
    consul: &'a Consul,
    service: &'static str,
    pod: Value,
    flags: &'static str,
}

impl Rollout<'_> {
    async fn run(self) -> Result<()> {
        let Self { consul, service, pod, flags } = self;
        let old = json!({"ID": format!("old-{service}"), "Name": service});
        consul.api().put("/v1/agent/service/register", &old).await?;
        let path = format!("/v1/health/service/{service}?passing");
        eventually(PATIENCE, || async {
            let found = consul.api().get(&path).await?;
            ensure!(found.as_array().is_some_and(|it| it.len() == 1), "{found}");
            anyhow::Ok(())
        })
        .await?;
        let api = api_with(&pod).await?;
        let (done, polls) = (AtomicBool::new(false), AtomicUsize::new(0));
        let poll = async {
            while !done.load(Ordering::Relaxed) {
                let found = consul.api().get(&path).await?;
                let count = found.as_array().map_or(0, Vec::len);
                ensure!(count > 0, "{service}: nobody passes after {polls:?} polls");
                polls.fetch_add(1, Ordering::Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
            anyhow::Ok(())
        };
        let roll = async {
            ended(hook_at(api, consul, &format!("register k8s {flags}")), 0).await?;
            let path = format!("/v1/agent/service/deregister/old-{service}");
            consul.api().put(&path, &Value::Null).await?;
            // The agent has run each check once by then.
            sleep(Duration::from_secs(3)).await;
            while polls.load(Ordering::Relaxed) <= 100 {
                sleep(Duration::from_millis(5)).await;
            }
            done.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        tokio::try_join!(poll, roll)?;
        Ok(())
    }
}

/// An etcd, which speaks gRPC's health protocol.
async fn grpc_application() -> Result<(Program, u16, tempfile::TempDir)> {
    let folder = tempfile::tempdir()?;
    let [client, peer] = [Port::pick()?, Port::pick()?];
    let [client_url, peer_url] =
        [&client, &peer].map(|port| format!("http://127.0.0.1:{}", port.number()));
    let options = ProgramOptions::new(program_path("etcd")?)
        .args(["--unsafe-no-fsync", "--log-level=error"])
        .arg(format!("--data-dir={}", folder.path().display()))
        .arg(format!("--listen-client-urls={client_url}"))
        .arg(format!("--advertise-client-urls={client_url}"))
        .arg(format!("--listen-peer-urls={peer_url}"))
        .arg(format!("--initial-advertise-peer-urls={peer_url}"))
        .arg(format!("--initial-cluster=default={peer_url}"));
    Ok((Program::start("etcd", options).await?, client.number(), folder))
}

#[tokio::test]
async fn h14_a_rollout_never_leaves_a_service_without_a_passing_instance() -> Result<()> {
    let (consul, grpc) = tokio::try_join!(consul(), grpc_application())?;
    let (_etcd, grpc_port, _folder) = &grpc;
    // An application each: what they register is named by address and port.
    let mut ports = Vec::new();
    for _ in 0..4 {
        ports.push(serve((LOCAL, 0).into(), 200, String::new()).await?.port());
    }
    // Slow to be ready once it has started.
    let warming = vec![(503, String::new()), (503, String::new()), (200, String::new())];
    let slow = serve_in_turn((LOCAL, 0).into(), warming).await?.port();
    let listening = TcpListener::bind(SocketAddr::from((LOCAL, 0))).await?;
    let started = listening.local_addr()?.port();
    let http = |port: u16| json!({"httpGet": {"port": port, "path": "/"}, "periodSeconds": 3});
    let tcp = |port: u16| json!({"tcpSocket": {"port": port}, "periodSeconds": 3});
    let container = |port: u16, probes: Value| {
        let mut container = json!({"name": "app", "ports": [{"containerPort": port}]});
        for (kind, probe) in probes.as_object().into_iter().flatten() {
            container[kind] = probe.clone();
        }
        container
    };
    let rollout = |service, containers: Value, flags| {
        let metadata = json!({"name": "web", "namespace": "ns",
            "labels": {"consul": service, "consulContainer": "app"}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"containers": containers}, "status": {"podIP": "127.0.0.1"}});
        Rollout { consul: &consul, service, pod, flags }
    };
    let grpc_probe = json!({"grpc": {"port": grpc_port}, "periodSeconds": 2, "timeoutSeconds": 5});
    let started_and = |port: u16, startup: u16| {
        container(port, json!({"startupProbe": tcp(startup), "readinessProbe": http(port)}))
    };
    let first = json!({"name": "first", "ports": [{"containerPort": 1}]});
    let side = container(ports[2], json!({"readinessProbe": http(ports[2])}));
    let rollouts = [
        rollout("startup", json!([started_and(ports[0], ports[0])]), ""),
        rollout("slow", json!([started_and(slow, started)]), ""),
        rollout(
            "liveness",
            json!([container(ports[1], json!({"livenessProbe": http(ports[1])}))]),
            "",
        ),
        rollout("side", json!([first, side]), ""),
        rollout("none", json!([container(ports[3], json!({}))]), "--default-check tcp"),
        rollout("grpc", json!([container(*grpc_port, json!({"readinessProbe": grpc_probe}))]), ""),
    ];
    try_join_all(rollouts.map(Rollout::run)).await?;
    Ok(())
}

/// What never succeeds does not hold a pod for longer than is asked for.
#[tokio::test]
async fn h14_a_check_that_does_not_pass_is_waited_for_no_longer_than_that() -> Result<()> {
    let consul = consul().await?;
    let app = serve((LOCAL, 0).into(), 503, String::new()).await?;
    let mut pod: Value = serde_json::from_str(&pod_at(app, &Value::Null))?;
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"httpGet": {"port": "main"}, "periodSeconds": 1});
    let api = api_with(&pod).await?;
    for (wait, least, most) in [("2s", 2_000, 5_000), ("0s", 0, 2_000)] {
        let start = Instant::now();
        let line = format!("register k8s --wait-check {wait}");
        ended(hook_at(api, &consul, &line), 0).await?;
        let took = start.elapsed().as_millis();
        ensure!((least..most).contains(&took), "{line}: {took} ms");
        let [check] = &checks(&consul).await?[..] else { panic!("not one check") };
        ensure!(check["Status"] == "critical", "{check:#}");
    }
    Ok(())
}

#[tokio::test]
async fn h15_a_pod_without_a_probe_is_told_and_may_have_a_check_of_its_port() -> Result<()> {
    let consul = consul().await?;
    let app = serve((LOCAL, 0).into(), 200, String::new()).await?;
    let api = serve((LOCAL, 0).into(), 200, pod_at(app, &Value::Null)).await?;
    let told = ended(hook_at(api, &consul, "register k8s"), 0).await?.stderr();
    ensure!(told.contains("WARN") && told.contains("--default-check tcp"), "{told}");
    ensure!(checks(&consul).await?.is_empty());
    let told = ended(hook_at(api, &consul, "register k8s --default-check tcp"), 0).await?.stderr();
    ensure!(!told.contains("WARN"), "{told}");
    let [check] = &checks(&consul).await?[..] else { panic!("not one check") };
    ensure!(check["Type"] == "tcp" && check["Status"] == "passing", "{check:#}");
    Ok(())
}

/// What an earlier pod of the address left goes, whoever has the address alone; a node's address
/// is everybody's.
#[tokio::test]
async fn h15_what_an_earlier_pod_of_the_address_left_is_removed() -> Result<()> {
    let consul = consul().await?;
    let tags = |pod: &str, namespace: &str| {
        json!([format!("k8sPodName: {pod}"), format!("k8sPodNamespace: {namespace}")])
    };
    let others = [
        // Of earlier pods.
        json!({"ID": "10.9.9.9_1", "Name": "old", "Address": "10.9.9.9", "Tags": tags("old", "ns")}),
        json!({"ID": "10.9.9.9_2", "Name": "old", "Address": "10.9.9.9", "Tags": tags("web", "ns-2")}),
        // The pod's own, another address's, another tool's, one that does not say whose it is.
        json!({"ID": "10.9.9.9_3", "Name": "x", "Address": "10.9.9.9", "Tags": tags("web", "ns")}),
        json!({"ID": "10.9.9.90_1", "Name": "x", "Address": "10.9.9.90", "Tags": tags("old", "ns")}),
        json!({"ID": "mine", "Name": "x", "Address": "10.9.9.9", "Tags": tags("old", "ns")}),
        json!({"ID": "10.9.9.9_4", "Name": "x", "Address": "10.9.9.9", "Tags": ["a"]}),
    ];
    let mut pod: Value = serde_json::from_str(&pod_at("10.9.9.9:80".parse()?, &Value::Null))?;
    for (host_network, left) in [
        (
            true,
            vec![
                "10.9.9.90_1",
                "10.9.9.9_1",
                "10.9.9.9_2",
                "10.9.9.9_3",
                "10.9.9.9_4",
                "10.9.9.9_80",
                "mine",
            ],
        ),
        (false, vec!["10.9.9.90_1", "10.9.9.9_3", "10.9.9.9_4", "10.9.9.9_80", "mine"]),
    ] {
        for body in &others {
            consul.api().put("/v1/agent/service/register", body).await?;
        }
        pod["spec"]["hostNetwork"] = json!(host_network);
        ended(hook_at(api_with(&pod).await?, &consul, "register k8s"), 0).await?;
        let mut found = services(&consul).await?;
        found.sort();
        ensure!(found == left, "{host_network}: {found:?}");
    }
    Ok(())
}
