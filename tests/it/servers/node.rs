//! What registers the pods of a node: the node daemon of the overlay and the hook of the shipped example,
//! with the agent of that node.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::api::{Api, Patch, PatchParams};
use kube_consul_stack::{
    ConsulApi, Kubernetes, Pod, PodOptions, Program, data_folder, eventually, install_provider,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::agents::{Agent, Node, start, wait_joined};
use super::scenarios;
use super::support::{
    Forwarded, HTTPS, START_DEADLINE, Servers, command, object, options, rendered,
};
use crate::policy;
use crate::support::{Bridge, manifest};

const NODE: &str = "node-of-agent";
const GATE: &str = "kube-consul.io/synced";
/// HTTP of an agent, for the hook of the example.
const HTTP: u16 = 8500;

#[tokio::test]
async fn s12_the_node_daemon_and_the_hook_register_pods_as_shipped_and_outlive_server_and_agent()
-> Result<()> {
    scenarios::run("node").await
}

/// The namespace of the pods.
struct Shop {
    cluster: &'static Kubernetes,
    namespace: String,
}

// === impl Shop ===

impl Shop {
    fn pods(&self) -> Result<Api<ApiPod>> {
        Ok(Api::namespaced(self.cluster.client()?, &self.namespace))
    }

    /// A pod of the node that asks to be registered, with a readiness gate.
    async fn pod(&self, name: &str) -> Result<()> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": self.namespace,
                "annotations": {"kube-consul.io/service-names": name}},
            "spec": {"nodeName": NODE, "readinessGates": [{"conditionType": GATE}],
                "containers": [{"name": "app", "image": "example.invalid/app",
                    "ports": [{"containerPort": 8080}]}]}});
        self.cluster.apply_yaml(&pod.to_string()).await.map(drop)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let words = ["delete", "pod", name, "--now", "--namespace", &self.namespace];
        self.cluster.kubectl(&words).await.map(drop)
    }

    /// Changes a pod's status, as its kubelet would.
    async fn patch(&self, name: &str, status: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        self.pods()?.patch_status(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    async fn ready(&self, name: &str, ready: bool) -> Result<()> {
        let pod = self.pods()?.get(name).await?;
        let mut statuses = serde_json::to_value(pod.status.and_then(|it| it.container_statuses))?;
        for status in statuses.as_array_mut().into_iter().flatten() {
            status["ready"] = json!(ready);
        }
        self.patch(name, json!({"containerStatuses": statuses})).await
    }

    /// Waits until the daemon has set the pod's gate.
    async fn wait_for_gate(&self, name: &str) -> Result<()> {
        eventually(START_DEADLINE, || async {
            let status = self.pods()?.get(name).await?.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let set = conditions.iter().any(|it| it.type_ == GATE && it.status == "True");
            ensure!(set, "{name}: {conditions:?}");
            Ok(())
        })
        .await
    }
}

/// Waits until the catalog has one instance of a service in this state, or none at all.
async fn wait_for(api: &ConsulApi, service: &str, wanted: Option<&str>) -> Result<Duration> {
    let began = Instant::now();
    eventually(START_DEADLINE, || async {
        let found = api.get(&format!("/v1/health/service/{service}")).await?;
        let instances = found.as_array().context("no list")?;
        let mut states = Vec::new();
        for instance in instances {
            let checks = instance["Checks"].as_array().into_iter().flatten();
            let own = checks.into_iter().find(|it| it["ServiceName"] == service);
            states.push(own.map_or("", |it| it["Status"].as_str().unwrap_or("")).to_owned());
        }
        let wanted: Vec<_> = wanted.into_iter().collect();
        ensure!(states == wanted, "{service} is {states:?}, want {wanted:?}: {found}");
        Ok(())
    })
    .await?;
    Ok(began.elapsed())
}

/// A kubeconfig with the token that the kubelet would project into the daemon's pod.
async fn daemons_kubeconfig(cluster: &Kubernetes) -> Result<PathBuf> {
    policy::apply_shipped().await?;
    let name = "daemon-of-agent";
    let uid = policy::pod(policy::SYSTEM, name, NODE, policy::ACCOUNT).await?;
    cluster.kubeconfig_for(&policy::token(Some((name, &uid))).await?)
}

/// The daemon of the overlay on the node of this address.
async fn daemon(servers: &Servers, address: Ipv4Addr) -> Result<Bridge> {
    let objects = rendered("with-consul-servers-node").await?;
    let spec =
        object(&objects, "DaemonSet", "kube-consul-node")?["spec"]["template"]["spec"].clone();
    let options = PodOptions {
        node: NODE.to_owned(),
        storage: data_folder("node-daemon")?,
        ..options("kube-consul-node", address)
    };
    let pod = Pod::new(&spec, &servers.objects, options)?;
    let kubeconfig = daemons_kubeconfig(Kubernetes::shared().await?).await?;
    Bridge::start(command(&pod, "node")?.arg("--kubeconfig").arg(kubeconfig)).await
}

/// The daemon and what it does with pods, while what it needs comes and goes.
pub async fn pods_of_a_node() -> Result<()> {
    install_provider();
    let mut servers = Servers::started(3).await?;
    let cluster = Kubernetes::shared().await?;
    cluster.node(NODE).await?;
    let shop = Shop { cluster, namespace: cluster.namespace("shop").await? };
    let node = Node::of_the_cluster(NODE).await?;
    let storage = data_folder("node-of-agent")?;
    let agent = start(&mut servers, &node, &storage).await?;
    wait_joined(&servers, 0, &node, &agent).await?;
    // The node's address stays, whatever that of its agent's pod is.
    let target = Arc::new(Mutex::new(vec![agent.pod.address()]));
    let host = servers.network.address(249);
    let _node = Forwarded::start(host, &[HTTP, HTTPS], Arc::clone(&target)).await?;

    let daemon = daemon(&servers, host).await?;
    daemon.wait_ready_within(START_DEADLINE).await?;
    shop.pod("billing").await?;
    let api = servers.api(0)?;
    println!(
        "a pod is in the catalog after {:.1?}",
        wait_for(&api, "billing", Some("passing")).await?
    );
    shop.wait_for_gate("billing").await?;
    shop.ready("billing", false).await?;
    wait_for(&api, "billing", Some("critical")).await?;
    shop.ready("billing", true).await?;
    wait_for(&api, "billing", Some("passing")).await?;

    the_hook(&servers, &shop, host, &api).await?;

    // The leader is lost. The agent asks another server, and nothing is restarted.
    let lost = servers.leader_seen_by(0).await?;
    servers.lose(lost).await?;
    let api = servers.api((lost + 1) % 3)?;
    shop.pod("orders").await?;
    println!(
        "one after the loss of the leader: {:.1?}",
        wait_for(&api, "orders", Some("passing")).await?
    );
    shop.wait_for_gate("orders").await?;

    // The agent's pod is replaced, and what happens meanwhile is not missed.
    let Agent { program, .. } = agent;
    program.stop(Duration::from_secs(30)).await?;
    target.lock().expect("nobody panics").clear();
    shop.delete("billing").await?;
    let agent = start(&mut servers, &node, &storage).await?;
    *target.lock().expect("nobody panics") = vec![agent.pod.address()];
    let began = Instant::now();
    wait_for(&api, "orders", Some("passing")).await?;
    wait_for(&api, "billing", None).await?;
    println!("another agent: the catalog is as it should be after {:.1?}", began.elapsed());

    // The agent is lost with its data.
    agent.program.kill().await?;
    fs::remove_dir_all(&storage)?;
    let agent = start(&mut servers, &node, &storage).await?;
    *target.lock().expect("nobody panics") = vec![agent.pod.address()];
    wait_joined(&servers, (lost + 1) % 3, &node, &agent).await?;
    // The servers go on showing what it had until it says otherwise: ask the agent.
    let token = servers.objects.secret("kube-consul-node-acl", "token")?;
    let at = ConsulApi::new(&format!("http://{host}:{HTTP}"), Some(&token), None)?;
    let began = Instant::now();
    eventually(START_DEADLINE, || async {
        let found = at.get("/v1/agent/checks").await?;
        let mut checks = found.as_object().into_iter().flatten();
        let own = checks.find(|(_, it)| it["ServiceName"] == "orders");
        ensure!(own.is_some_and(|(_, it)| it["Status"] == "passing"), "{found}");
        Ok(())
    })
    .await?;
    println!("an agent without data: filled {:.1?} after it joined", began.elapsed());
    daemon.wait_ready_within(START_DEADLINE).await?;
    let status = daemon.status().await?;
    let pods = status["pods"].as_array().context("no pods")?;
    ensure!(pods.len() == 1 && pods.iter().all(|it| it["problems"] == json!([])), "{status}");
    ensure!(!daemon.program.stderr().contains("ermission denied"), "{}", daemon.program.stderr());
    daemon.stop().await?;
    // Its end removes nothing.
    wait_for(&api, "orders", Some("passing")).await.map(drop)
}

/// Answers each connection with 200.
async fn application(address: Ipv4Addr, port: u16) -> Result<JoinHandle<()>> {
    let listener = TcpListener::bind((address, port)).await?;
    Ok(tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let _ = connection.read(&mut [0; 1024]).await;
            let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        }
    }))
}

/// The shipped example of a Deployment with the hook, its commands as they stand there.
async fn the_hook(servers: &Servers, shop: &Shop, host: Ipv4Addr, api: &ConsulApi) -> Result<()> {
    let example = fs::read_to_string(manifest("hook/agent-on-host-acl.yaml"))?;
    let rbac = fs::read_to_string(manifest("hook/rbac.yaml"))?;
    let ours = format!("namespace: {}", shop.namespace);
    shop.cluster.apply_yaml(&rbac.replace("namespace: shop", &ours)).await?;
    let words = ["create", "--dry-run=client", "--validate=false", "--output=json", "--filename"];
    let path = manifest("hook/agent-on-host-acl.yaml").display().to_string();
    let deployment = shop.cluster.kubectl(&[&words[..], &[&path]].concat()).await?;
    let deployment: Value = serde_json::from_str(&deployment).with_context(|| example.clone())?;
    let template = &deployment["spec"]["template"];

    // The pod in the API, at an address that the agent's check reaches. Nobody schedules it.
    let address = servers.network.address(248);
    let mut spec = template["spec"].clone();
    spec["schedulerName"] = json!("none");
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": "web-1", "namespace": shop.namespace,
            "labels": template["metadata"]["labels"]}});
    shop.cluster.apply_yaml(&pod.to_string()).await?;
    let ip = address.to_string();
    shop.patch("web-1", json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]})).await?;
    let _application = application(address, 8080).await?;

    let options = PodOptions {
        namespace: shop.namespace.clone(),
        storage: data_folder("hook")?,
        replacements: vec![(
            "/hooks/kube-consul".to_owned(),
            env!("CARGO_BIN_EXE_kube-consul").to_owned(),
        )],
        ..options("web-1", host)
    };
    let pod = Pod::new(&template["spec"], &servers.objects, options)?;
    let token = shop.cluster.service_account_token(&shop.namespace, "web").await?;
    let kubeconfig = shop.cluster.kubeconfig_for(&token)?;
    let lifecycle = pod.container("web")?["lifecycle"].clone();
    for (hook, wanted) in [("postStart", Some("passing")), ("preStop", None)] {
        let words = lifecycle[hook]["exec"]["command"].as_array().context("no command")?;
        let mut words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
        ensure!(words.first() == Some(&"/hooks/kube-consul"), "{words:?}");
        words[0] = env!("CARGO_BIN_EXE_kube-consul");
        let command = pod.command_in("web", &words)?.env("KUBECONFIG", &kubeconfig);
        let program = Program::start(&format!("hook-{hook}"), command).await?;
        program.wait_for_code(0, START_DEADLINE).await?;
        wait_for(api, "web", wanted).await?;
    }
    Ok(())
}
