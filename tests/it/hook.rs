//! The registration hook against a real API server, with the rights that are shipped, and real
//! Consul agents.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_consul_stack::{
    Authority, Consul, ConsulOptions, Data, Fault, HttpRecorder, Kubernetes, Port, Program,
    ProgramOptions, Recorded, eventually,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::time::Instant;

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const LIMITED: &str = "22222222-2222-2222-2222-222222222222";
const UNKNOWN: &str = "33333333-3333-3333-3333-333333333333";
const PATIENCE: Duration = Duration::from_secs(20);

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_kube-consul")
}

fn manifest(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests/hook").join(name)
}

/// The hook with the variables that a pod's container has.
fn hook(consul: &str, arguments: &str) -> ProgramOptions {
    ProgramOptions::new(binary()).args(arguments.split_whitespace()).env("CONSUL_HTTP_ADDR", consul)
}

async fn ended(options: ProgramOptions, code: i32) -> Result<Program> {
    let program = Program::start("hook", options).await?;
    program.wait_for_code(code, PATIENCE).await?;
    Ok(program)
}

async fn services(consul: &Consul) -> Result<Vec<String>> {
    let services = consul.api().get("/v1/agent/services").await?;
    Ok(services.as_object().context("no object")?.keys().cloned().collect())
}

/// The instances of a service in the catalog, by ID.
async fn catalog(consul: &Consul, name: &str) -> Result<Vec<Value>> {
    let instances = consul.api().get(&format!("/v1/catalog/service/{name}")).await?;
    Ok(instances.as_array().context("no array")?.clone())
}

/// A namespace with the shipped Role, and a kubeconfig with its service account's token.
struct Shop {
    cluster: &'static Kubernetes,
    namespace: String,
    kubeconfig: PathBuf,
}

impl Shop {
    async fn open() -> Result<Self> {
        let cluster = Kubernetes::shared().await?;
        let namespace = cluster.namespace("hook").await?;
        let shop = Self { cluster, namespace, kubeconfig: PathBuf::new() };
        shop.apply("rbac.yaml").await?;
        let token = cluster.service_account_token(&shop.namespace, "web").await?;
        Ok(Self { kubeconfig: cluster.kubeconfig_for(&token)?, ..shop })
    }

    async fn apply(&self, name: &str) -> Result<()> {
        let text = std::fs::read_to_string(manifest(name))?;
        let ours = text.replace("namespace: shop", &format!("namespace: {}", self.namespace));
        self.cluster.apply_yaml(&ours).await.map(drop)
    }

    /// The hook as the pod `web` has it.
    fn hook(&self, consul: &str, arguments: &str) -> ProgramOptions {
        self.in_pod(hook(consul, arguments))
    }

    fn in_pod(&self, options: ProgramOptions) -> ProgramOptions {
        options
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBERNETES_POD_NAME", "web")
            .env("KUBERNETES_POD_NAMESPACE", &self.namespace)
    }

    fn pods(&self) -> Result<Api<Pod>> {
        Ok(Api::namespaced(self.cluster.client()?, &self.namespace))
    }

    /// The pod `web` with a port and a probe, on a node (empty: on none).
    async fn pod(&self, port: u16, node: &str, probe: bool) -> Result<()> {
        let mut container = json!({
            "name": "app", "image": "example.invalid/app",
            "ports": [{"name": "http", "containerPort": port}],
        });
        if probe {
            container["readinessProbe"] =
                json!({"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 1});
        }
        let mut spec = json!({
            "serviceAccountName": "web", "containers": [container],
            // Nobody's: it stays without a node unless it has one.
            "schedulerName": "none",
        });
        if !node.is_empty() {
            spec["nodeName"] = json!(node);
        }
        let pod = json!({
            "metadata": {
                "name": "web", "labels": {"consul": "web"},
                "annotations": {"CONSUL_TAG_0": "team: shop"},
            },
            "spec": spec,
        });
        self.cluster.create::<Pod>(&self.namespace, pod).await.map(drop)
    }

    /// Gives the pod its address, as its kubelet would.
    async fn address(&self, ip: &str) -> Result<()> {
        let patch = json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}});
        let patch = Patch::Merge(patch);
        self.pods()?.patch_status("web", &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Deletes the pod, which a finalizer keeps there.
    async fn terminate(&self) -> Result<()> {
        let patch = Patch::Merge(json!({"metadata": {"finalizers": ["example.com/kept"]}}));
        self.pods()?.patch("web", &PatchParams::default(), &patch).await?;
        self.pods()?.delete("web", &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A pod `web` as the API server writes it, with a readiness probe.
fn pod_at(address: SocketAddr, probe: &Value) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "ns", "labels": {"consul": "web"}},
        "spec": {"containers": [{
            "name": "app", "ports": [{"name": "main", "containerPort": address.port()}],
            "readinessProbe": probe,
        }]},
        "status": {"podIP": address.ip()},
    });
    pod.to_string()
}

/// The hook of that pod, where this is all of its API server.
fn hook_at(api: SocketAddr, consul: &Consul, arguments: &str) -> ProgramOptions {
    hook(consul.url(), &format!("{arguments} --kube-url http://{api}"))
        .env("KUBERNETES_POD_NAME", "web")
        .env("KUBERNETES_POD_NAMESPACE", "ns")
}

async fn consul() -> Result<Consul> {
    Consul::start(ConsulOptions::dev()).await
}

/// Answers each request with this status and body, from now on.
async fn serve(address: SocketAddr, status: u16, body: String) -> Result<SocketAddr> {
    serve_in_turn(address, vec![(status, body)]).await
}

/// The same, with an answer for each request; the last for all that follow.
async fn serve_in_turn(address: SocketAddr, answers: Vec<(u16, String)>) -> Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        let mut turn = 0;
        while let Ok((mut stream, _)) = listener.accept().await {
            let (status, body) = &answers[turn.min(answers.len() - 1)];
            turn += 1;
            let answer = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok(address)
}

#[tokio::test]
async fn a_pod_registers_and_deregisters_itself_with_the_shipped_role() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let node = format!("zoned-{}", shop.namespace);
    shop.cluster.node(&node).await?;
    let labels = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z1"}}});
    Api::<Node>::all(shop.cluster.client()?)
        .patch(&node, &PatchParams::default(), &Patch::Merge(labels))
        .await?;
    shop.pod(8080, &node, false).await?;
    let pods = shop.pods()?;
    let ip = eventually(PATIENCE, || async {
        let pod = pods.get("web").await?;
        pod.status.and_then(|status| status.pod_ip).context("no address yet")
    })
    .await?;
    let id = format!("{ip}_8080");
    for zone in [false, true] {
        if zone {
            shop.apply("node-rbac.yaml").await?;
        }
        let program = ended(shop.hook(consul.url(), "register k8s"), 0).await?;
        // It is there once the hook has ended, without waiting.
        let [instance] = &catalog(&consul, "web").await?[..] else { panic!("not one") };
        ensure!(instance["ServiceID"] == json!(id), "{instance:#}");
        ensure!(instance["ServiceAddress"] == json!(ip) && instance["ServicePort"] == 8080);
        let mut tags = vec![
            "k8sPodName: web".to_owned(),
            format!("k8sPodNamespace: {}", shop.namespace),
            "zone:z1".to_owned(),
            "team: shop".to_owned(),
            "instance:web_8080".to_owned(),
        ];
        if !zone {
            tags.remove(2);
        }
        ensure!(instance["ServiceTags"] == json!(tags), "{instance:#}");
        let told = program.stderr();
        ensure!(told.contains("expected the right to get nodes, found none") != zone, "{told}");
    }
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    ensure!(catalog(&consul, "web").await?.is_empty(), "it is still in the catalog");
    // Again: there is nothing, and nothing fails.
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    Ok(())
}

#[tokio::test]
async fn the_examples_are_accepted_by_the_api_server() -> Result<()> {
    let shop = Shop::open().await?;
    for name in ["agent-on-host.yaml", "agent-on-host-acl.yaml", "agent-in-pod.yaml"] {
        shop.apply(name).await.with_context(|| name.to_owned())?;
    }
    let application = std::fs::read_to_string(manifest("marathon-app.json"))?;
    serde_json::from_str::<Value>(&application)?;
    Ok(())
}

#[tokio::test]
async fn a_pod_without_the_label_or_the_right_is_not_registered() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    shop.pod(8080, "", false).await?;
    let patch = Patch::Merge(json!({"metadata": {"labels": {"consul": null}}}));
    shop.pods()?.patch("web", &PatchParams::default(), &patch).await?;
    // Not even an address is waited for.
    ended(shop.hook(consul.url(), "register k8s"), 0).await?;
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;

    let other = shop.cluster.service_account_token(&shop.namespace, "default").await?;
    let kubeconfig = shop.cluster.kubeconfig_for(&other)?;
    let denied = shop.hook(consul.url(), "register k8s --get-pod-timeout 1s");
    let told = ended(denied.env("KUBECONFIG", kubeconfig), 1).await?.stderr();
    ensure!(told.contains("expected the right to get pods, found none"), "{told}");
    let absent = shop.hook(consul.url(), "register k8s").env("KUBERNETES_POD_NAME", "nope");
    let told = ended(absent, 1).await?.stderr();
    ensure!(told.contains("HTTP 404"), "{told}");

    let empty = Patch::Merge(json!({"metadata": {"labels": {"consul": ""}}}));
    shop.pods()?.patch("web", &PatchParams::default(), &empty).await?;
    let told = ended(shop.hook(consul.url(), "register k8s"), 2).await?.stderr();
    ensure!(told.contains("label consul of pod"), "{told}");
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_pod_that_lost_its_label_deregisters_what_it_registered() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    shop.pod(8080, "", false).await?;
    shop.address("10.9.9.9").await?;
    ended(shop.hook(consul.url(), "register k8s"), 0).await?;
    // Another pod's at the same address, this pod's from another, and one that is no hook's.
    let tags = |pod: &str| {
        json!([format!("k8sPodName: {pod}"), format!("k8sPodNamespace: {}", shop.namespace)])
    };
    let others = [
        ("10.9.9.8_8080", "10.9.9.8", "web"),
        ("10.9.9.9_1", "10.9.9.9", "web-2"),
        ("web-1", "10.9.9.9", "web"),
    ];
    for (id, address, pod) in others {
        let body = json!({"ID": id, "Name": "web", "Address": address, "Tags": tags(pod)});
        consul.api().put("/v1/agent/service/register", &body).await?;
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": {"consul": null}}}));
    shop.pods()?.patch("web", &PatchParams::default(), &patch).await?;
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    ensure!(services(&consul).await? == others.map(|(id, _, _)| id));
    ensure!(catalog(&consul, "web").await?.len() == others.len(), "the catalog still shows it");
    // Whoever has nothing to remove does not need an agent for it.
    let nowhere = shop.hook("http://127.0.0.1:1", "deregister k8s");
    let told = ended(nowhere, 0).await?.stderr();
    ensure!(told.contains("WARN") && told.contains("refused"), "{told}");
    Ok(())
}

#[tokio::test]
async fn kubernetes_may_fail_at_first_but_not_for_ever() -> Result<()> {
    let consul = consul().await?;
    let hook = |api, arguments: &str| hook_at(api, &consul, arguments);
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    for verb in ["register", "deregister"] {
        let start = Instant::now();
        let hung = hook(silent.local_addr()?, &format!("{verb} k8s --get-pod-timeout 1s"));
        let told = ended(hung, 1).await?.stderr();
        ensure!(told.contains("expected an answer by the deadline, found none"), "{told}");
        ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    }
    let pod = pod_at("127.0.0.1:8080".parse()?, &Value::Null);
    let answers = [(500, String::new()), (429, String::new()), (200, pod)];
    let api = serve_in_turn(([127, 0, 0, 1], 0).into(), answers.to_vec()).await?;
    ended(hook(api, "deregister k8s"), 0).await?;

    // A probe that takes the connection and says nothing.
    let address = silent.local_addr()?;
    for (timeout, delay, found) in [
        ("1s", 0, "found: no answer"),
        ("3s", 0, "operation timed out"),
        ("1s", 2, "no try: the initial delay is longer"),
    ] {
        let probe = json!({"httpGet": {"port": "main"}, "initialDelaySeconds": delay});
        let pod = pod_at(address, &probe);
        let api = serve(([127, 0, 0, 1], 0).into(), 200, pod).await?;
        let start = Instant::now();
        let hung = hook(api, &format!("register k8s --health-check-timeout {timeout}"));
        let told = ended(hung, 1).await?.stderr();
        ensure!(told.contains(found), "{told}");
        ensure!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    }
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_late_address_is_waited_for() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    shop.pod(8080, "", false).await?;
    let start = Instant::now();
    let timeout = shop.hook(consul.url(), "register k8s").env("KUBERNETES_GET_POD_TIMEOUT", "1s");
    let told = ended(timeout, 1).await?.stderr();
    ensure!(told.contains("expected an IP address within 1s, found none"), "{told}");
    ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    let program = Program::start("hook", shop.hook(consul.url(), "register k8s")).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(program.exit_status().is_none());
    shop.address("10.9.9.9").await?;
    program.wait_for_code(0, PATIENCE).await?;
    ensure!(services(&consul).await? == ["10.9.9.9_8080"]);
    Ok(())
}

#[tokio::test]
async fn a_terminating_pod_is_not_registered() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let port = Port::pick()?;
    shop.pod(port.number(), "", true).await?;
    shop.address("127.0.0.1").await?;
    // It was not yet when the hook began to wait for its probe.
    let program = Program::start("hook", shop.hook(consul.url(), "register k8s")).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    shop.terminate().await?;
    serve(([127, 0, 0, 1], port.number()).into(), 200, String::new()).await?;
    program.wait_for_code(0, PATIENCE).await?;
    // It is from the beginning.
    let told = ended(shop.hook(consul.url(), "register k8s"), 0).await?.stderr();
    ensure!(told.contains("the pod is terminating"), "{told}");
    ensure!(services(&consul).await?.is_empty());
    // The end still deregisters.
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    Ok(())
}

#[tokio::test]
async fn the_probe_is_waited_for_and_stale_twins_are_removed() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let port = Port::pick()?;
    shop.pod(port.number(), "", true).await?;
    shop.address("127.0.0.1").await?;
    let id = format!("127.0.0.1_{}", port.number());
    for stale in [format!("{id}-secured"), "127.0.0.1_1-secured".to_owned()] {
        let body = json!({"ID": stale, "Name": "old-secured"});
        consul.api().put("/v1/agent/service/register", &body).await?;
    }

    let start = Instant::now();
    let never =
        shop.hook(consul.url(), "register k8s").env("KUBERNETES_HEALTH_CHECK_TIMEOUT", "1s500ms");
    let told = ended(never, 1).await?.stderr();
    ensure!(told.contains("expected the pod's probe to succeed within 1.5s"), "{told}");
    ensure!(told.contains("refused"), "{told}");
    ensure!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    ensure!(services(&consul).await? == ["127.0.0.1_1-secured"], "another's was touched");

    let program = Program::start("hook", shop.hook(consul.url(), "register k8s")).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(program.exit_status().is_none() && services(&consul).await?.len() == 1);
    serve(([127, 0, 0, 1], port.number()).into(), 200, String::new()).await?;
    program.wait_for_code(0, PATIENCE).await?;
    ensure!(services(&consul).await?.contains(&id));
    let definition = consul.api().get("/v1/health/checks/web").await?[0].clone();
    ensure!(definition["Type"] == "http", "{definition:#}");
    // Clients see it at once: what the check asks was just asked with success.
    let path = format!("/v1/health/service/web?passing&filter=Service.ID==\"{id}\"");
    let passing = consul.api().get(&path).await?;
    ensure!(passing.as_array().is_some_and(|it| it.len() == 1), "{passing}");
    // From then on Consul itself asks the probe's path.
    eventually(PATIENCE, || async {
        // The catalog's copy takes up what a check says minutes later.
        let checks = consul.api().get("/v1/agent/checks").await?;
        let check = &checks[format!("service:{id}")];
        let asked = check["Output"].as_str().is_some_and(|output| output.contains("/ready"));
        ensure!(asked && check["Status"] == "passing", "{check:#}");
        anyhow::Ok(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn every_instance_is_tried_to_be_removed() -> Result<()> {
    let consul = consul().await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let pod = pod_at("10.9.9.9:80".parse()?, &Value::Null);
    let api = serve(([127, 0, 0, 1], 0).into(), 200, pod).await?;
    let definitions =
        json!([1, 2, 3].map(|port| json!({"port": port, "labels": {"service": "true"}})));
    let hook = |arguments: &str| {
        hook_at(api, &consul, arguments)
            .env("CONSUL_HTTP_ADDR", recorder.url())
            .env("PORT_DEFINITIONS", definitions.to_string())
    };
    let denied = || Fault::Answer(StatusCode::FORBIDDEN, "Permission denied".into());
    ended(hook("register k8s"), 0).await?;
    for (kept, told_last) in [
        (&["_1", "_3"][..], "cannot deregister 2 of 3 instances: 10.9.9.9_1, 10.9.9.9_3"),
        (&["_1"][..], "cannot deregister 10.9.9.9_1: "),
    ] {
        recorder.fault(denied(), move |it| kept.iter().any(|end| it.path.ends_with(end)));
        let told = ended(hook("deregister k8s"), 1).await?.stderr();
        ensure!(told.contains(told_last) && told.contains("Permission denied"), "{told}");
        let left: Vec<_> = kept.iter().map(|end| format!("10.9.9.9{end}")).collect();
        ensure!(services(&consul).await? == left, "{told}");
        recorder.mend();
    }
    // One that cannot be registered is an error, whatever became of the others.
    recorder.fault(denied(), |it| it.body.windows(12).any(|text| text == b"\"10.9.9.9_2\""));
    let told = ended(hook("register k8s"), 1).await?.stderr();
    ensure!(told.contains("cannot register 10.9.9.9_2: ") && told.contains("denied"), "{told}");
    Ok(())
}

/// The application is a Consul too, with a certificate that nobody else trusts.
#[tokio::test]
async fn a_probe_by_https_takes_any_certificate() -> Result<()> {
    let application = ConsulOptions::dev().tls(&Authority::new("the application's")?, false)?;
    let (consul, application) = tokio::try_join!(consul(), Consul::start(application))?;
    let get = json!({"path": "/v1/status/leader", "port": "main", "scheme": "HTTPS"});
    let pod = pod_at(application.address(), &json!({"httpGet": get, "periodSeconds": 1}));
    let api = serve(([127, 0, 0, 1], 0).into(), 200, pod).await?;
    ended(hook_at(api, &consul, "register k8s --health-check-timeout 5s"), 0).await?;
    eventually(PATIENCE, || async {
        let passing = consul.api().get("/v1/health/service/web?passing").await?;
        ensure!(passing.as_array().is_some_and(|it| it.len() == 1), "{passing}");
        anyhow::Ok(())
    })
    .await
}

#[tokio::test]
async fn consul_may_be_down_at_first_but_not_for_ever() -> Result<()> {
    let mut consul = consul().await?;
    consul.kill().await?;
    let flags = "--service-name web --pod-ip 10.0.0.1 --container-port 80";
    let start = Instant::now();
    let short = hook(consul.url(), &format!("register cli {flags} --timeout 1s"));
    let told = ended(short, 1).await?.stderr();
    ensure!(told.contains("given up at the deadline") && told.contains("refused"), "{told}");
    ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    let program =
        Program::start("hook", hook(consul.url(), &format!("register cli {flags}"))).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(program.exit_status().is_none());
    consul.restart(Data::Lost).await?;
    program.wait_for_code(0, PATIENCE).await?;
    consul.wait_ready().await?;
    ensure!(services(&consul).await? == ["10.0.0.1_80"]);

    // One that takes the connection and says nothing.
    consul.pause().await;
    let start = Instant::now();
    let hung = hook(consul.url(), "deregister cli --service-id 10.0.0.1_80 --timeout 1s");
    ended(hung, 1).await?;
    ensure!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    consul.resume().await;
    Ok(())
}

#[tokio::test]
async fn an_instance_whose_name_cannot_be_told_is_removed() -> Result<()> {
    let consul = consul().await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let failure = Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "rpc error".into());
    for fault in [failure, Fault::Delay(PATIENCE), Fault::DropBefore] {
        let body = json!({"ID": "10.0.0.1_80", "Name": "web"});
        consul.api().put("/v1/agent/service/register", &body).await?;
        recorder.fault(fault, |it| it.path.starts_with("/v1/agent/service/10.0.0.1_80"));
        let arguments = "deregister cli --service-id 10.0.0.1_80 --timeout 4s";
        let told = ended(hook(&recorder.url(), arguments), 0).await?.stderr();
        ensure!(told.contains("cannot tell when the catalog no longer has it"), "{told}");
        ensure!(services(&consul).await?.is_empty());
        recorder.mend();
    }
    Ok(())
}

#[tokio::test]
async fn a_hook_ends_when_the_catalog_shows_the_change() -> Result<()> {
    let consul = consul().await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let looks = |it: &Recorded| it.path.starts_with("/v1/catalog/service/web");
    let elsewhere = json!([{"Node": "other", "ServiceID": "10.0.0.1_80"}]).to_string();
    let here = json!([{"Node": consul.node(), "ServiceID": "10.0.0.1_80"}]).to_string();
    for (arguments, stale, expected) in [
        (
            "register cli --service-name web --pod-ip 10.0.0.1 --container-port 80",
            elsewhere,
            "expected the catalog to show it within 1s",
        ),
        (
            "deregister cli --service-id 10.0.0.1_80",
            here,
            "expected the catalog to no longer show it within 1s",
        ),
    ] {
        let outdated = Fault::Answer(StatusCode::OK, stale);
        recorder.fault(outdated.clone(), looks);
        let late = format!("{arguments} --wait-catalog 1s");
        let told = ended(hook(&recorder.url(), &late), 0).await?.stderr();
        ensure!(told.contains(expected), "{told}");
        // Whoever does not want to wait does not.
        recorder.mend();
        recorder.clear();
        ended(hook(&recorder.url(), &format!("{arguments} --wait-catalog 0s")), 0).await?;
        ensure!(!recorder.requests().iter().any(looks));

        recorder.clear();
        let failure = || Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "rpc error".into());
        if arguments.starts_with("deregister") {
            // It is gone already; the name, by which the catalog is asked, would be unknown.
            let name = Fault::Answer(StatusCode::OK, json!({"Service": "web"}).to_string());
            recorder.fault(name, |it| it.path.starts_with("/v1/agent/service/10.0.0.1_80"));
        }
        recorder.fault_times(2, failure(), |it| it.method == Method::PUT);
        recorder.fault_times(2, failure(), looks);
        recorder.fault_times(2, outdated, looks);
        let told = ended(hook(&recorder.url(), arguments), 0).await?.stderr();
        ensure!(!told.contains("WARN"), "{told}");
        let requests = recorder.requests();
        let count = |of: &dyn Fn(&Recorded) -> bool| requests.iter().filter(|it| of(it)).count();
        ensure!(count(&looks) == 5 && count(&|it| it.method == Method::PUT) == 3, "{requests:?}");
        recorder.mend();
    }
    Ok(())
}

#[tokio::test]
async fn the_token_file_is_used_and_a_wrong_token_says_consuls_reason() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev().acl(MANAGEMENT)).await?;
    // What the example asks for.
    let rules = "service \"web\" { policy = \"write\" } agent_prefix \"\" { policy = \"read\" } \
                 node_prefix \"\" { policy = \"read\" }";
    let policy = json!({"Name": "hook", "Rules": rules});
    consul.api().put("/v1/acl/policy", &policy).await?;
    let token = json!({"SecretID": LIMITED, "Policies": [{"Name": "hook"}]});
    consul.api().put("/v1/acl/token", &token).await?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let [good, wrong] =
        [file("good", &format!("{LIMITED}\n"))?, file("wrong", &format!("{UNKNOWN}\n"))?];
    let flags = "--pod-ip 10.0.0.1 --container-port 80 --service-name";
    let register = |file: &str, name: &str| {
        hook(consul.url(), &format!("--consul-acl-file {file} register cli {flags} {name}"))
    };

    let told = ended(register(&wrong, "web"), 1).await?.stderr();
    ensure!(told.contains("ACL not found") && !told.contains(UNKNOWN), "{told}");
    let told = ended(register(&good, "other"), 1).await?.stderr();
    ensure!(told.contains("service:write"), "{told}");
    let told = ended(register("/nope/token", "web"), 2).await?.stderr();
    ensure!(told.contains("/nope/token"), "{told}");
    ensure!(services(&consul).await?.is_empty());

    // The file wins over the variable.
    let told = ended(register(&good, "web").env("CONSUL_HTTP_TOKEN", UNKNOWN), 0).await?.stderr();
    ensure!(!told.contains("WARN"), "{told}");
    ensure!(catalog(&consul, "web").await?.len() == 1);
    let deregister = hook(consul.url(), "deregister cli --service-id 10.0.0.1_80");
    ended(deregister.clone().env("CONSUL_HTTP_TOKEN", UNKNOWN), 1).await?;
    let told = ended(deregister.env("CONSUL_HTTP_TOKEN", LIMITED), 0).await?.stderr();
    ensure!(!told.contains("WARN"), "{told}");
    ensure!(catalog(&consul, "web").await?.is_empty());
    Ok(())
}

/// An earlier owner of the address left it, under a name that is not the pod's.
#[tokio::test]
async fn a_stale_twin_that_may_not_be_removed_keeps_no_pod_from_registering() -> Result<()> {
    let (shop, consul) =
        tokio::try_join!(Shop::open(), Consul::start(ConsulOptions::dev().acl(MANAGEMENT)))?;
    let rules = "service \"web\" { policy = \"write\" }";
    consul.api().put("/v1/acl/policy", &json!({"Name": "hook", "Rules": rules})).await?;
    let token = json!({"SecretID": LIMITED, "Policies": [{"Name": "hook"}]});
    consul.api().put("/v1/acl/token", &token).await?;
    let stale = json!({"ID": "10.9.9.9_8080-secured", "Name": "other-secured"});
    consul.api().put("/v1/agent/service/register", &stale).await?;
    shop.pod(8080, "", false).await?;
    shop.address("10.9.9.9").await?;
    let register = shop.hook(consul.url(), "register k8s --wait-catalog 0s");
    let told = ended(register.clone().env("CONSUL_HTTP_TOKEN", LIMITED), 0).await?.stderr();
    ensure!(told.contains("10.9.9.9_8080-secured") && told.contains("service:write"), "{told}");
    ensure!(services(&consul).await? == ["10.9.9.9_8080", "10.9.9.9_8080-secured"]);
    // A token that Consul does not know is told before the probe is waited for.
    let told = ended(register.env("CONSUL_HTTP_TOKEN", UNKNOWN), 1).await?.stderr();
    ensure!(told.contains("cannot deregister 10.9.9.9_8080-secured"), "{told}");
    Ok(())
}

#[tokio::test]
async fn without_the_right_to_look_the_catalog_is_not_known() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev().acl(MANAGEMENT)).await?;
    let policy = json!({"Name": "hook", "Rules": "service \"web\" { policy = \"write\" }"});
    consul.api().put("/v1/acl/policy", &policy).await?;
    let token = json!({"SecretID": LIMITED, "Policies": [{"Name": "hook"}]});
    consul.api().put("/v1/acl/token", &token).await?;
    let hook = |arguments| hook(consul.url(), arguments).env("CONSUL_HTTP_TOKEN", LIMITED);
    let register =
        "register cli --pod-ip 10.0.0.1 --container-port 80 --service-name web --wait-catalog 1s";
    let told = ended(hook(register), 0).await?.stderr();
    ensure!(told.contains("WARN") && told.contains("hide a part"), "{told}");
    // Once it is gone nothing is hidden any more.
    ended(hook("deregister cli --service-id 10.0.0.1_80"), 0).await?;
    ensure!(catalog(&consul, "web").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn wrong_usage_names_its_variable_and_registers_nothing() -> Result<()> {
    let consul = consul().await?;
    let pod = [("KUBERNETES_POD_NAME", "web"), ("KUBERNETES_POD_NAMESPACE", "ns")];
    let with = |name, value| [&pod[..], &[(name, value)]].concat();
    let task = [("MESOS_EXECUTOR_ID", "e"), ("MESOS_FRAMEWORK_ID", "f"), ("HOST", "h")];
    let flags = [
        ("KUBERNETES_SERVICE_NAME", "web"),
        ("KUBERNETES_POD_IP", "10.0.0.1"),
        ("KUBERNETES_CONTAINER_PORT", "80"),
    ];
    let without = |all: &[(&'static str, &'static str)], name: &str| {
        all.iter().copied().filter(|(it, _)| *it != name).collect::<Vec<_>>()
    };
    let changed = |name: &'static str, value| [without(&flags, name), vec![(name, value)]].concat();
    for (arguments, variables, named) in [
        ("register k8s", without(&pod, "KUBERNETES_POD_NAME"), "KUBERNETES_POD_NAME"),
        ("deregister k8s", without(&pod, "KUBERNETES_POD_NAMESPACE"), "KUBERNETES_POD_NAMESPACE"),
        ("register k8s", with("PORT_DEFINITIONS", "[{]"), "PORT_DEFINITIONS"),
        ("deregister k8s", with("PORT_DEFINITIONS", "{}"), "PORT_DEFINITIONS"),
        ("register k8s", with("PORT_DEFINITIONS", r#"[{"port": 65536}]"#), "PORT_DEFINITIONS"),
        (
            "register k8s",
            with("PORT_DEFINITIONS", r#"[{"port": 1, "labels": {"consul": ""}}]"#),
            "PORT_DEFINITIONS",
        ),
        ("register k8s", with("KUBERNETES_GET_POD_TIMEOUT", "soon"), "--get-pod-timeout"),
        ("register k8s", with("HOME", "/nowhere"), "KUBECONFIG"),
        ("register k8s", with("CONSUL_HTTP_ADDR", "ftp://x"), "CONSUL_HTTP_ADDR"),
        ("register mesos", without(&task, "MESOS_EXECUTOR_ID"), "MESOS_EXECUTOR_ID"),
        ("register mesos", without(&task, "MESOS_FRAMEWORK_ID"), "MESOS_FRAMEWORK_ID"),
        ("deregister mesos", without(&task, "HOST"), "HOST"),
        ("register cli", without(&flags, "KUBERNETES_SERVICE_NAME"), "KUBERNETES_SERVICE_NAME"),
        ("register cli", without(&flags, "KUBERNETES_POD_IP"), "KUBERNETES_POD_IP"),
        ("register cli", without(&flags, "KUBERNETES_CONTAINER_PORT"), "KUBERNETES_CONTAINER_PORT"),
        ("register cli", changed("KUBERNETES_SERVICE_NAME", ""), "KUBERNETES_SERVICE_NAME"),
        (
            "register cli",
            changed("KUBERNETES_CONTAINER_PORT", "65536"),
            "KUBERNETES_CONTAINER_PORT",
        ),
        ("register cli", changed("KUBERNETES_CONTAINER_PORT", "0"), "KUBERNETES_CONTAINER_PORT"),
        ("deregister cli", vec![], "KUBERNETES_SERVICE_ID"),
        ("register", vec![], "k8s"),
    ] {
        let mut options = hook(consul.url(), arguments);
        for (name, value) in variables {
            options = options.env(name, value);
        }
        let told = ended(options, 2).await?.stderr();
        ensure!(told.contains(named), "{arguments}: {told}");
    }
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}

/// The lines that are in manifests today, `sh -c` included, with the program under its old name.
#[tokio::test]
async fn the_old_command_lines_work_word_for_word() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink(binary(), folder.path().join("consul-registration-hook"))?;
    std::fs::write(folder.path().join("token"), "")?;
    let state = json!({"frameworks": [{"id": "f", "executors": [{"id": "e", "tasks": [
        {"id": "t", "labels": [{"key": "consul", "value": "job"}],
         "discovery": {"ports": {"ports": [{"number": 31_000}]}}},
    ]}]}]});
    let mesos = serve(([127, 0, 0, 1], 0).into(), 200, state.to_string()).await?;
    shop.pod(8080, "", false).await?;
    shop.address("10.9.9.9").await?;
    let line = |line: &str| {
        let line = line.replace("/hooks/", &format!("{}/", folder.path().display()));
        let line = line.replace("/consul-acl/", &format!("{}/", folder.path().display()));
        let shell = ProgramOptions::new("/bin/sh").args(["-c", &line]);
        shop.in_pod(shell)
            .env("CONSUL_HTTP_ADDR", consul.url().trim_start_matches("http://"))
            .env("MESOS_AGENT_ENDPOINT", mesos.to_string())
            .env("MESOS_EXECUTOR_ID", "e")
            .env("MESOS_FRAMEWORK_ID", "f")
            .env("HOST", "10.8.8.8")
            .env("KUBERNETES_SERVICE_TAGS", "a,b")
            .env("KUBERNETES_CHECK_PATH", "/ping")
            // Set and empty is unset.
            .env("KUBERNETES_GET_POD_TIMEOUT", "")
            .env("PORT_DEFINITIONS", "")
    };
    for (register, deregister, id) in [
        (
            "/hooks/consul-registration-hook register k8s",
            "/hooks/consul-registration-hook deregister k8s",
            "10.9.9.9_8080",
        ),
        (
            "/hooks/consul-registration-hook --consul-acl-file /consul-acl/token register k8s",
            "/hooks/consul-registration-hook --consul-acl-file /consul-acl/token deregister k8s",
            "10.9.9.9_8080",
        ),
        (
            "/hooks/consul-registration-hook register k8s --get-pod-timeout 20s --health-check-timeout 5m0s",
            "/hooks/consul-registration-hook deregister k8s --get-pod-timeout=20s",
            "10.9.9.9_8080",
        ),
        (
            // As its library for flags allows.
            "/hooks/consul-registration-hook -consul-acl-file /consul-acl/token register k8s -get-pod-timeout 20s -health-check-timeout=5m0s",
            "/hooks/consul-registration-hook deregister k8s -get-pod-timeout=20s",
            "10.9.9.9_8080",
        ),
        (
            "/hooks/consul-registration-hook register mesos",
            "/hooks/consul-registration-hook deregister mesos",
            "10.8.8.8_31000",
        ),
        (
            "/hooks/consul-registration-hook register cli --service-name web --pod-ip 10.7.7.7 --container-port 80",
            "/hooks/consul-registration-hook deregister cli --service-id 10.7.7.7_80",
            "10.7.7.7_80",
        ),
    ] {
        ended(line(register), 0).await?;
        ensure!(services(&consul).await? == [id], "{register}");
        ended(line(deregister), 0).await?;
        ensure!(services(&consul).await?.is_empty(), "{deregister}");
    }
    // Under this name it is the hook and nothing else.
    ended(line("/hooks/consul-registration-hook bridge"), 2).await?;
    ended(line("/hooks/consul-registration-hook -v"), 0).await?;
    Ok(())
}

/// A state as Mesos 1.11 writes it.
fn mesos_state() -> Value {
    let label = |key: &str, value: &str| json!({"key": key, "value": value});
    let task = |id: &str, discovery: Value| {
        json!({
            "id": id, "name": "web.shop", "framework_id": "f-0001", "executor_id": "web.1",
            "slave_id": "s-1", "state": "TASK_RUNNING",
            "resources": {"disk": 0.0, "mem": 256.0, "gpus": 0.0, "cpus": 0.5, "ports": "[31000-31001]"},
            "role": "*", "statuses": [{"state": "TASK_RUNNING", "timestamp": 1_600_000_000.123_45}],
            "labels": [label("team:shop", "tag"), label("owner", "shop")],
            "discovery": discovery,
        })
    };
    let discovery = json!({
        "visibility": "FRAMEWORK", "name": "web.shop",
        "ports": {"ports": [
            {"number": 31000, "name": "http", "protocol": "tcp", "labels": {"labels": [
                label("consul", "web"), label("admin-port:{port:admin}", "tag"), label("VIP_0", "/web:80"),
            ]}},
            {"number": 31001, "name": "admin", "protocol": "tcp"},
        ]},
    });
    let executor = |id: &str, tasks: Value| {
        json!({"id": id, "name": "", "source": "", "container": "c", "directory": "/d",
            "resources": {"cpus": 0.1}, "tasks": tasks, "queued_tasks": [],
            "completed_tasks": [task("old", json!({}))]})
    };
    json!({
        "version": "1.11.0", "id": "s-1", "hostname": "10.1.1.1", "flags": {"port": "5051"},
        "frameworks": [
            {"id": "f-0000", "name": "chronos", "executors": [executor("web.1", json!([task("x", json!({}))]))],
             "completed_executors": []},
            {"id": "f-0001", "name": "marathon", "executors": [
                executor("web.0", json!([])), executor("web.1", json!([task("web.1", discovery)])),
             ], "completed_executors": [executor("web.1", json!([]))]},
        ],
        "completed_frameworks": [],
    })
}

#[tokio::test]
async fn a_mesos_task_registers_and_deregisters_itself() -> Result<()> {
    let consul = consul().await?;
    let mesos = serve(([127, 0, 0, 1], 0).into(), 200, mesos_state().to_string()).await?;
    let hook = |arguments: &str| {
        hook(consul.url(), &format!("{arguments} --mesos-agent-url http://{mesos}"))
            .env("MESOS_EXECUTOR_ID", "web.1")
            .env("MESOS_FRAMEWORK_ID", "f-0001")
            .env("HOST", "10.1.1.1")
    };
    ended(hook("register mesos"), 0).await?;
    let [instance] = &catalog(&consul, "web").await?[..] else { panic!("not one") };
    ensure!(instance["ServiceID"] == "10.1.1.1_31000", "{instance:#}");
    let tags = json!(["admin-port:31001", "team:shop", "marathon-task:web.1"]);
    ensure!(instance["ServiceTags"] == tags, "{instance:#}");
    ended(hook("deregister mesos"), 0).await?;
    ensure!(services(&consul).await?.is_empty());

    let told = ended(hook("register mesos").env("MESOS_EXECUTOR_ID", "web.0"), 1).await?.stderr();
    ensure!(told.contains("the executor without a task"), "{told}");
    for (status, body, named) in
        [(200, "<html>", "expected the JSON"), (403, "", "HTTP 403"), (503, "", "HTTP 503")]
    {
        let other = serve(([127, 0, 0, 1], 0).into(), status, body.to_owned()).await?;
        let options = self::hook(consul.url(), "register mesos --timeout 1s")
            .env("MESOS_AGENT_ENDPOINT", other.to_string())
            .env("MESOS_EXECUTOR_ID", "web.1")
            .env("MESOS_FRAMEWORK_ID", "f-0001")
            .env("HOST", "10.1.1.1");
        let told = ended(options, 1).await?.stderr();
        ensure!(told.contains(named), "{told}");
    }
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}
