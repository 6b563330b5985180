//! The agents of the `DaemonSet`, and those who use them: the hook and the node daemon, with the
//! shipped CA, policies and tokens.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType;
use kube_consul_stack::documentation::blocks;
use kube_consul_stack::{
    Authority, ConsulApi, Kubernetes, Pod, PodOptions, Program, ProgramOptions, data_folder,
    eventually, install_provider, program_path,
};
use serde_json::{Value, json};

use super::scenarios;
use super::support::{REFUSED_DEADLINE, START_DEADLINE, Servers, object, options, rendered, run};
use crate::support::{Dns, kube_consul};

/// A node's agent.
pub(super) struct Agent {
    pub(super) pod: Pod,
    pub(super) program: Program,
}

/// The Node whose agent it is: its uid, and a token as the kubelet projects it.
pub(super) struct Node {
    pub(super) name: &'static str,
    uid: String,
    token: String,
}

impl Node {
    /// A pod that is bound to the node has a token that names it.
    pub(super) async fn of_the_cluster(name: &'static str) -> Result<Self> {
        let cluster = Kubernetes::shared().await?;
        let namespace = cluster.namespace("agents").await?;
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "agent", "namespace": namespace},
            "spec": {"nodeName": name, "containers": [{"name": "a", "image": "example.invalid/a"}]}});
        let pod = cluster.apply_yaml(&pod.to_string()).await?;
        let uid = pod[0]["metadata"]["uid"].as_str().context("a pod has a uid")?;
        let bound = ["--bound-object-kind=Pod", "--bound-object-name=agent"];
        let token = ["kubectl", "create", "token", "default", "--namespace", &namespace];
        let uid = format!("--bound-object-uid={uid}");
        let audience = "--audience=kube-consul-node-id";
        let token = run(&[&token[..], &bound, &[&uid, audience]].concat()).await?;
        let node = ["kubectl", "get", "node", name, "--output=jsonpath={.metadata.uid}"];
        Ok(Self { name, uid: run(&node).await?.trim().to_owned(), token: token.trim().to_owned() })
    }
}

/// Starts the `DaemonSet`'s pod on a node, with the node's folder.
pub(super) async fn start(servers: &mut Servers, node: &Node, storage: &Path) -> Result<Agent> {
    let rendered = rendered("consul-agents").await?;
    let set = object(&rendered, "DaemonSet", "consul-agent")?;
    let address = servers.new_address();
    let options = PodOptions {
        node: node.name.to_owned(),
        token: node.token.clone(),
        storage: storage.to_owned(),
        names: servers.names(&[]),
        ..options("consul-agent", address)
    };
    let pod = Pod::new(&set["spec"]["template"]["spec"], &servers.objects, options)?;
    pod.init().await?;
    let program = pod.start("consul").await?;
    Ok(Agent { pod, program })
}

/// Waits until the catalog has the node at the agent's address, and gives how long that took.
pub(super) async fn wait_joined(
    servers: &Servers,
    by: u8,
    node: &Node,
    agent: &Agent,
) -> Result<()> {
    let api = servers.api(by)?;
    eventually(REFUSED_DEADLINE, || async {
        let found = api.get(&format!("/v1/catalog/node/{}", node.name)).await?;
        let found = &found["Node"];
        ensure!(found["Address"] == agent.pod.address().to_string(), "it is not there: {found}");
        ensure!(found["ID"] == node.uid, "another node ID than the Node's uid: {found}");
        Ok(())
    })
    .await
}

/// A file with a text.
fn file(name: &str, text: &str) -> Result<PathBuf> {
    let path = data_folder("agents")?.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

/// The hook, as the examples have it, beside the agent of its node.
fn hook(servers: &Servers, verb: &str, consul: &str, ca: Option<&str>) -> Result<ProgramOptions> {
    let token = servers.objects.secret("consul-acl", "agent-token")?;
    let command = kube_consul()
        .arg("--consul-acl-file")
        .arg(file("token", &token)?)
        .args([verb, "cli"])
        .env("CONSUL_HTTP_ADDR", consul);
    let command = match verb {
        "register" => command.args(["--service-name", "web", "--pod-ip", "127.0.0.1"]).args([
            "--container-port",
            "80",
            "--check-path",
            "/",
        ]),
        _ => command.args(["--service-id", "127.0.0.1_80"]),
    };
    Ok(match ca {
        Some(ca) => command
            .env("CONSUL_CACERT", file("ca.crt", ca)?)
            .env("CONSUL_TLS_SERVER_NAME", "client.dc1.consul"),
        None => command,
    })
}

async fn runs(command: ProgramOptions, code: i32) -> Result<Program> {
    let program = Program::start("kube-consul-hook", command).await?;
    program.wait_for_code(code, START_DEADLINE).await?;
    Ok(program)
}

async fn instances(api: &ConsulApi, name: &str) -> Result<usize> {
    let found = api.get(&format!("/v1/catalog/service/{name}")).await?;
    Ok(found.as_array().map_or(0, Vec::len))
}

async fn wait_for_instances(api: &ConsulApi, name: &str, wanted: usize) -> Result<()> {
    eventually(START_DEADLINE, || async {
        let found = instances(api, name).await?;
        ensure!(found == wanted, "{name} has {found} instances, want {wanted}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn s12_hook_and_agent_trust_one_ca_s13_answer_dns_and_s15_an_agent_is_always_its_node()
-> Result<()> {
    scenarios::run("agents").await
}

pub async fn on_nodes() -> Result<()> {
    let mut servers = Servers::started(3).await?;
    let node = Node::of_the_cluster("node-1").await?;
    let storage = data_folder("node")?;
    let agent = start(&mut servers, &node, &storage).await?;
    wait_joined(&servers, 0, &node, &agent).await?;

    // S13.
    let dns = Dns::new(SocketAddr::from((agent.pod.address(), 8600)))?;
    let found = dns.ask("consul.service.consul", RecordType::A).await?;
    ensure!(found.len() == 3, "{found:?}");

    // S12: by HTTP as the examples have it, and by HTTPS with the same CA as the servers.
    let ca = servers.objects.secret("consul-ca", "ca.crt")?;
    let http = format!("http://{}:8500", agent.pod.address());
    let https = format!("https://{}:8501", agent.pod.address());
    let api = servers.api(0)?;
    runs(hook(&servers, "register", &https, Some(&ca))?, 0).await?;
    ensure!(instances(&api, "web").await? == 1, "the hook has ended and the catalog lacks it");
    runs(hook(&servers, "deregister", &http, None)?, 0).await?;
    wait_for_instances(&api, "web", 0).await?;
    install_provider();
    let wrong = Authority::new("another authority")?;
    let failed = runs(hook(&servers, "register", &https, Some(wrong.pem()))?, 1).await?;
    // The servers' CA as `consul tls ca create` names it, and the one that was given.
    let said = failed.stderr();
    println!("a wrong CA: {said}");
    ensure!(said.contains("was issued by") && said.contains("Consul Agent CA"), "{said}");
    ensure!(said.contains("trusted: ") && said.contains("another authority"), "{said}");
    runs(hook(&servers, "register", &http, None)?, 0).await?;

    nodes_requests(&servers, &http).await?;

    // A pod of the DaemonSet is replaced: it leaves, and comes back with what it had.
    let began = Instant::now();
    agent.program.stop(std::time::Duration::from_secs(30)).await?;
    println!("the agent has left after {:.1?}", began.elapsed());
    let again = start(&mut servers, &node, &storage).await?;
    wait_joined(&servers, 0, &node, &again).await?;
    wait_for_instances(&api, "web", 1).await?;
    println!("its services are back after {:.1?}", began.elapsed());

    // A server is lost: the agent asks another one.
    let lost = servers.leader_seen_by(0).await?;
    servers.lose(lost).await?;
    let by = (lost + 1) % 3;
    let token = servers.objects.secret("consul-acl", "agent-token")?;
    let at = format!("http://{}:8500", again.pod.address());
    let at_agent = ConsulApi::new(&at, Some(&token), None)?;
    eventually(START_DEADLINE, || at_agent.get("/v1/catalog/nodes?consistent")).await?;
    runs(hook(&servers, "deregister", &at, None)?, 0).await?;
    wait_for_instances(&servers.api(by)?, "web", 0).await?;

    // S15: killed without a leave, back without data at another address.
    again.program.kill().await?;
    fs::remove_dir_all(&storage)?;
    let began = Instant::now();
    let back = start(&mut servers, &node, &storage).await?;
    wait_joined(&servers, by, &node, &back).await?;
    println!("killed, back without data elsewhere after {:.1?}", began.elapsed());
    for log in [back.program.stdout(), servers.member(by)?.program.stdout()] {
        ensure!(!log.contains("is reserved"), "its name was reserved: {log}");
    }
    Ok(())
}

/// What the node daemon asks of its node's agent: all of it is allowed with its token, and nothing
/// of it without one.
async fn nodes_requests(servers: &Servers, at: &str) -> Result<()> {
    let token = servers.objects.secret("kube-consul-node-acl", "token")?;
    let nobody = ConsulApi::new(at, None, None)?;
    let daemon = nobody.with_token(Some(&token));
    let registration = json!({"ID": "pod-1", "Name": "api", "Address": "10.1.0.1", "Port": 80,
        "Check": {"CheckID": "pod-1", "Name": "Kubernetes readiness", "TTL": "30s",
            "Status": "critical"}});
    let register = "/v1/agent/service/register?replace-existing-checks";
    ensure!(nobody.put(register, &registration).await.is_err(), "anybody may register");
    let itself = daemon.get("/v1/agent/self").await?;
    ensure!(itself["Config"]["NodeName"] == "node-1", "{itself}");
    daemon.put(register, &registration).await?;
    let beat = "/v1/agent/check/update/pod-1";
    let passing = json!({"Status": "passing", "Output": "ready"});
    ensure!(nobody.put(beat, &passing).await.is_err(), "anybody may beat");
    daemon.put(beat, &passing).await?;
    let own = daemon.get("/v1/agent/service/pod-1").await?;
    let hash = own["ContentHash"].as_str().context("no hash to wait by")?;
    daemon.get(&format!("/v1/agent/service/pod-1?hash={hash}&wait=1ms")).await?;
    for list in ["/v1/agent/services", "/v1/agent/checks"] {
        let found = daemon.get(list).await?;
        ensure!(found["pod-1"].is_object(), "{list}: {found}");
        let hidden = nobody.get(list).await?;
        ensure!(hidden["pod-1"].is_null(), "{list}: anybody sees it: {hidden}");
    }
    // The catalog, by which it says that a pod is registered.
    eventually(START_DEADLINE, || async {
        let found = daemon.get("/v1/health/service/api?passing").await?;
        ensure!(found.as_array().is_some_and(|it| it.len() == 1), "{found}");
        let on_node = daemon.get("/v1/catalog/node-services/node-1").await?;
        ensure!(on_node.to_string().contains("pod-1"), "{on_node}");
        Ok(())
    })
    .await?;
    daemon.put("/v1/agent/service/deregister/pod-1", &Value::Null).await?;
    wait_for_instances(&servers.api(0)?, "api", 0).await
}

/// The configuration that the documentation has for machines outside the cluster.
fn documented(servers: &Servers, folder: &Path) -> Result<String> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/consul/agents.md"))?;
    let blocks = blocks(&page)?;
    let block = blocks.iter().find(|it| it.language == "hcl").context("no configuration")?;
    let objects = &servers.objects;
    let keyring: Vec<String> = serde_json::from_str(&objects.secret("consul-gossip", "keyring")?)?;
    fs::write(folder.join("ca.crt"), objects.secret("consul-ca", "ca.crt")?)?;
    let addresses: Vec<_> = servers.addresses().iter().map(|it| format!("\"{it}\"")).collect();
    let mut text = block.lines.join("\n");
    for (from, to) in [
        ("/etc/consul.d", folder.display().to_string()),
        ("/var/lib/consul", folder.join("data").display().to_string()),
        ("\"consul-server\"", addresses.join(", ")),
        ("@GOSSIP@", keyring[0].clone()),
        ("@TOKEN@", objects.secret("consul-agent-acl", "token")?),
        ("@DNS@", objects.secret("consul-server-acl", "dns-token")?),
    ] {
        ensure!(text.contains(from), "the page has no {from}");
        text = text.replace(from, &to);
    }
    Ok(text)
}

#[tokio::test]
async fn an_agent_outside_the_cluster_joins_as_documented() -> Result<()> {
    scenarios::run("outside").await
}

pub async fn outside() -> Result<()> {
    let mut servers = Servers::started(3).await?;
    let folder = data_folder("outside")?;
    fs::write(folder.join("agent.hcl"), documented(&servers, &folder)?)?;
    let address = servers.new_address();
    let flags = [format!("-bind={address}"), format!("-client={address}")];
    let file = format!("-config-file={}", folder.join("agent.hcl").display());
    let command = ProgramOptions::new(program_path("consul")?)
        .args(["agent", "-node=machine-1", "-grpc-tls-port=-1", &file])
        .args(&flags);
    let program = Program::start("outside", command).await?;
    let api = servers.api(0)?;
    eventually(START_DEADLINE, || async {
        let found = api.get("/v1/health/node/machine-1").await?;
        ensure!(found[0]["Status"] == "passing", "{found}");
        Ok(())
    })
    .await?;
    // Not only gossip: its answers come from the servers.
    let dns = Dns::new(SocketAddr::from((address, 8600)))?;
    let found = dns.ask("consul.service.consul", RecordType::A).await?;
    ensure!(found.len() == 3 && program.exit_status().is_none(), "{found:?}");
    Ok(())
}
