//! What `consul-k8s sync-catalog` registers, and `bridge` with the flags that `migrate` prints for it,
//! of the same objects on the same API server.
//!
//! `cases.json` has the objects, and where ours is to differ why. `recorded.json` has what sync-catalog
//! 1.8.13 registered: per run its instances by name. Neither has anything of its code. IDs, nodes and
//! the texts of checks are not compared; ours may have further tags and meta.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, PostParams};
use kube_consul_stack::{
    Consul, ConsulApi, ConsulOptions, Port, Program, ProgramOptions, eventually,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{Bridge, DEADLINE, Fixture, kube_consul, manifest, shipped_token, translated};

/// The command lines of sync-catalog, each a run. `{ns}` is the namespace.
const RUNS: [(&str, &[&str]); 6] = [
    ("ExternalOnly", &["-node-port-sync-type=ExternalOnly"]),
    ("InternalOnly", &["-node-port-sync-type=InternalOnly"]),
    ("ExternalFirst", &["-node-port-sync-type=ExternalFirst"]),
    ("no ClusterIP", &["-sync-clusterip-services=false"]),
    ("on request", &["-k8s-default-sync=false"]),
    ("names", &["-consul-service-prefix=p-", "-add-k8s-namespace-suffix", "-consul-k8s-tag=kube"]),
];

/// Twenty rounds of sync-catalog.
const REST: Duration = Duration::from_secs(20);

/// A Service, its slices, and what is registered of it.
#[derive(Debug, Deserialize)]
struct Case {
    name: String,
    /// The Consul name, where an annotation changes it.
    consul: Option<String>,
    spec: Value,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// `status.loadBalancer.ingress`.
    status: Option<Value>,
    #[serde(default)]
    slices: Vec<Slice>,
    /// What ours registers, where it differs: in all runs, or in those that are named.
    ours: Option<Ours>,
    because: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ours {
    Everywhere(Vec<String>),
    In(BTreeMap<String, Vec<String>>),
}

#[derive(Debug, Deserialize)]
struct Slice {
    #[serde(rename = "type", default = "ipv4")]
    family: String,
    /// Name, number and protocol.
    #[serde(default)]
    ports: Vec<Vec<Value>>,
    /// Addresses; then `!` for not ready, `?` for unknown, `~` for terminating, `@NODE`.
    endpoints: Vec<String>,
}

fn ipv4() -> String {
    "IPv4".to_owned()
}

#[derive(Debug, Deserialize)]
struct Cases {
    nodes: BTreeMap<String, Vec<(String, String)>>,
    cases: Vec<Case>,
}

/// An instance; `at` with the name of a node port in the place of its number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Instance {
    at: String,
    #[serde(default, skip_serializing_if = "is_false")]
    critical: bool,
    #[serde(default = "one", skip_serializing_if = "is_one")]
    weight: u64,
    tags: Vec<String>,
    meta: BTreeMap<String, String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn is_false(value: &bool) -> bool {
    !value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde asks for")]
fn is_one(value: &u64) -> bool {
    *value == one()
}

fn one() -> u64 {
    1
}

/// The instances of each Consul name.
type Registered = BTreeMap<String, Vec<Instance>>;

fn cases() -> Result<Cases> {
    Ok(serde_json::from_str(include_str!("cases.json"))?)
}

fn recorded_path() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/sync_catalog/recorded.json"))
}

fn recorded() -> Result<BTreeMap<String, Registered>> {
    Ok(serde_json::from_str(&std::fs::read_to_string(recorded_path())?)?)
}

/// The objects of the cases on the API server.
struct Objects {
    fixture: Fixture,
    cases: Vec<Case>,
    nodes: Vec<String>,
    /// The number of each node port, with the name that stands for it.
    node_ports: BTreeMap<u64, String>,
}

impl Objects {
    async fn create() -> Result<Self> {
        let Cases { nodes, cases } = cases()?;
        let fixture = Fixture::new("sync-catalog").await?;
        shipped_token(fixture.kubernetes).await?;
        fixture.kubernetes.apply_file(&manifest("optional/nodes-rbac.yaml")).await?;
        let mut names = Vec::new();
        for (name, addresses) in &nodes {
            names.push(create_node(&fixture, name, addresses).await?);
        }
        let mut objects =
            Self { fixture, cases: Vec::new(), nodes: names, node_ports: BTreeMap::new() };
        for case in cases {
            objects.create_case(&case).await.with_context(|| case.name.clone())?;
            objects.cases.push(case);
        }
        Ok(objects)
    }

    async fn create_case(&mut self, case: &Case) -> Result<()> {
        let (kubernetes, namespace) = (self.fixture.kubernetes, &self.fixture.namespace);
        for (number, slice) in case.slices.iter().enumerate() {
            let object = slice_object(namespace, &case.name, number, slice);
            let _: EndpointSlice = kubernetes.create(namespace, object).await?;
        }
        let annotations: BTreeMap<String, &String> = case
            .annotations
            .iter()
            .map(|(key, value)| (format!("consul.hashicorp.com/{key}"), value))
            .collect();
        let object = json!({
            "metadata": {"name": case.name, "annotations": annotations}, "spec": case.spec,
        });
        let made: Service = kubernetes.create(namespace, object).await?;
        for port in made.spec.unwrap_or_default().ports.unwrap_or_default() {
            if let (Some(number), Some(name)) = (port.node_port, port.name) {
                self.node_ports.insert(number.try_into()?, name);
            }
        }
        if let Some(ingress) = &case.status {
            self.fixture.set_load_balancer(&case.name, ingress.clone()).await?;
        }
        Ok(())
    }

    /// What a Consul has of the namespace.
    async fn registered(&self, consul: &ConsulApi) -> Result<Registered> {
        let names = consul.get("/v1/catalog/services").await?;
        let mut all = Registered::new();
        for name in names.as_object().context("no names")?.keys().filter(|name| *name != "consul") {
            let found = consul.get(&format!("/v1/health/service/{name}")).await?;
            let found = found.as_array().context("no instances")?;
            let mut instances: Vec<Instance> = found.iter().map(|it| self.instance(it)).collect();
            instances.sort_by(|one, other| one.at.cmp(&other.at));
            all.insert(self.plain(name), instances);
        }
        Ok(all)
    }

    /// A text in which the namespace, which is of this run alone, is `NAMESPACE`.
    fn plain(&self, text: &str) -> String {
        text.replace(&self.fixture.namespace, "NAMESPACE")
    }

    fn instance(&self, found: &Value) -> Instance {
        let service = &found["Service"];
        let number = service["Port"].as_u64().unwrap_or_default();
        let port = self.node_ports.get(&number).cloned().unwrap_or_else(|| number.to_string());
        let checks = found["Checks"].as_array().into_iter().flatten();
        let meta = service["Meta"].as_object().into_iter().flatten();
        let tags = service["Tags"].as_array().into_iter().flatten();
        Instance {
            at: format!("{}:{port}", service["Address"].as_str().unwrap_or_default()),
            critical: checks.into_iter().any(|check| check["Status"] == "critical"),
            weight: service["Weights"]["Passing"].as_u64().unwrap_or_default(),
            tags: tags.filter_map(|tag| Some(self.plain(tag.as_str()?))).collect(),
            meta: meta
                .filter_map(|(key, value)| Some((key.clone(), self.plain(value.as_str()?))))
                .collect(),
        }
    }

    /// What ours is to be in a run, given what theirs was: the instances by name in short.
    fn expected(&self, run: &str, theirs: &Registered) -> Result<BTreeMap<String, Vec<String>>> {
        let mut expected: BTreeMap<String, Vec<String>> = theirs
            .iter()
            .map(|(name, instances)| {
                (name.clone(), instances.iter().map(Instance::short).collect())
            })
            .collect();
        for case in &self.cases {
            let differing = match &case.ours {
                None => continue,
                Some(Ours::Everywhere(ours)) => ours,
                Some(Ours::In(runs)) => match runs.get(run).or_else(|| runs.get("*")) {
                    None => continue,
                    Some(ours) => ours,
                },
            };
            ensure!(case.because.is_some(), "{}: no reason", case.name);
            let name = match run {
                "names" => format!("p-{}-NAMESPACE", case.name),
                _ => case.consul.clone().unwrap_or_else(|| case.name.clone()),
            };
            // What a run leaves out, it leaves out.
            if theirs.contains_key(&name) {
                expected.insert(name, differing.clone());
            }
        }
        // A node port is one instance a node, whatever runs there.
        for instances in expected.values_mut() {
            instances.sort();
            instances.dedup();
        }
        expected.retain(|_, instances| !instances.is_empty());
        Ok(expected)
    }

    async fn delete(self) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.fixture.kubernetes.client()?);
        for name in &self.nodes {
            nodes.delete(name, &DeleteParams::default()).await?;
        }
        Ok(())
    }
}

impl Instance {
    fn short(&self) -> String {
        let critical = if self.critical { " critical" } else { "" };
        let weight =
            if is_one(&self.weight) { String::new() } else { format!(" weight {}", self.weight) };
        format!("{}{critical}{weight}", self.at)
    }
}

/// A node that kwok keeps ready and no pod is scheduled to.
async fn create_node(
    fixture: &Fixture,
    name: &str,
    addresses: &[(String, String)],
) -> Result<String> {
    let object_name = format!("{}-{name}", fixture.namespace);
    let mut labels = json!({});
    if name == "excluded" {
        labels["node.kubernetes.io/exclude-from-external-load-balancers"] = json!("");
    }
    let addresses: Vec<Value> =
        addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
    let object = serde_json::from_value(json!({
        "metadata": {"name": object_name, "labels": labels},
        "spec": {"unschedulable": true},
        "status": {"addresses": addresses},
    }))?;
    let nodes: Api<Node> = Api::all(fixture.kubernetes.client()?);
    nodes.create(&PostParams::default(), &object).await?;
    Ok(object_name)
}

fn slice_object(namespace: &str, service: &str, number: usize, slice: &Slice) -> Value {
    let endpoint = |text: &String| {
        let (address, node) = match text.split_once('@') {
            Some((address, node)) => (address.to_owned(), Some(node)),
            None => (text.clone(), None),
        };
        let (text, node) = match node {
            Some(node) => match node.strip_suffix('!') {
                Some(node) => (format!("{address}!"), Some(node)),
                None => (address, Some(node)),
            },
            None => (address, None),
        };
        let address = text.trim_end_matches(['!', '?', '~']);
        let conditions = match text.chars().last() {
            Some('?') => json!({}),
            Some('!') => json!({"ready": false, "serving": false}),
            Some('~') => json!({"ready": false, "serving": true, "terminating": true}),
            _ => json!({"ready": true}),
        };
        let mut endpoint = json!({"addresses": [address], "conditions": conditions});
        if let Some(node) = node {
            endpoint["nodeName"] = json!(format!("{namespace}-{node}"));
        }
        endpoint
    };
    let port = |port: &Vec<Value>| {
        let protocol = port.get(2).cloned().unwrap_or_else(|| json!("TCP"));
        json!({"name": port[0], "port": port[1], "protocol": protocol})
    };
    json!({
        "metadata": {
            "name": format!("{service}-{number}"),
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": slice.family,
        "endpoints": slice.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": slice.ports.iter().map(port).collect::<Vec<_>>(),
    })
}

/// Ours beside what theirs was, in each run.
#[tokio::test]
async fn the_flags_of_migrate_register_what_sync_catalog_registers() -> Result<()> {
    let recorded = recorded()?;
    let objects = Objects::create().await?;
    try_join_all(RUNS.iter().map(|(run, flags)| {
        let (objects, recorded) = (&objects, &recorded);
        async move {
            let theirs = recorded.get(*run).with_context(|| format!("no run {run}"))?;
            let compared = compare(objects, run, flags, theirs).await;
            compared.with_context(|| format!("run {run}"))
        }
    }))
    .await?;
    objects.delete().await
}

async fn compare(objects: &Objects, run: &str, flags: &[&str], theirs: &Registered) -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev()).await?;
    let bridge = bridge(objects, &consul, flags).await?;
    let expected = objects.expected(run, theirs)?;
    eventually(DEADLINE, || async {
        let found = objects.registered(consul.api()).await?;
        let short: BTreeMap<String, Vec<String>> = found
            .iter()
            .map(|(name, instances)| {
                (name.clone(), instances.iter().map(Instance::short).collect())
            })
            .collect();
        let differing: Vec<_> = expected
            .keys()
            .chain(short.keys())
            .filter(|name| expected.get(*name) != short.get(*name))
            .map(|name| (name, expected.get(name), short.get(name)))
            .collect();
        ensure!(differing.is_empty(), "(name, expected, found): {differing:#?}");
        for (name, theirs) in theirs {
            for instance in theirs {
                let ours = found.get(name).into_iter().flatten().find(|it| it.at == instance.at);
                // What is not there is a difference, or was told above.
                let Some(ours) = ours else { continue };
                let tags = instance.tags.iter().all(|tag| ours.tags.contains(tag));
                // An unnamed port has no name to stand under; ours names pods by another key.
                let mut meta = instance.meta.iter().filter(|(key, _)| *key != "port-");
                ensure!(tags, "{name}: {ours:?}, want the tags {:?}", instance.tags);
                let has = |(key, value)| ours.meta.get(key) == Some(value);
                ensure!(meta.all(has), "{name}: {ours:?}, want the meta {:?}", instance.meta);
            }
        }
        Ok(())
    })
    .await?;
    bridge.stop().await
}

/// Ours, with the flags that `migrate` prints for theirs.
async fn bridge(objects: &Objects, consul: &Consul, flags: &[&str]) -> Result<Bridge> {
    let namespace = &objects.fixture.namespace;
    let theirs = ["-to-k8s=false", "-listen=127.0.0.1:0", "-allow-k8s-namespace", namespace];
    let [_, flags] = translated(&[&theirs, flags].concat()).await?;
    let bridge = kube_consul()
        .arg("bridge")
        .args(flags.iter().filter(|it| *it != "--admin-addr" && *it != "127.0.0.1:0"))
        .args([Path::new("--kubeconfig"), crate::support::shipped_kubeconfig().await?])
        .env("CONSUL_HTTP_ADDR", consul.url());
    let bridge = Bridge::start(bridge).await?;
    bridge.wait_ready().await?;
    Ok(bridge)
}

/// Runs the program that `SYNC_CATALOG` names on the same objects: what it registers is what is
/// recorded, or with `UPDATE_RECORDED=1` becomes so.
#[tokio::test]
#[ignore = "needs consul-k8s' sync-catalog, as the variable SYNC_CATALOG"]
async fn sync_catalog_registers_what_is_recorded() -> Result<()> {
    let program = std::env::var("SYNC_CATALOG").context("SYNC_CATALOG: expected a program")?;
    let update = std::env::var_os("UPDATE_RECORDED").is_some();
    let objects = Objects::create().await?;
    let all = try_join_all(RUNS.iter().map(|(run, flags)| {
        let (objects, program) = (&objects, &program);
        async move {
            let grpc = Port::pick()?;
            let consul = Consul::start(ConsulOptions::dev().grpc(grpc.number())).await?;
            let _running = theirs(objects, program, &consul, grpc.number(), flags).await?;
            anyhow::Ok(((*run).to_owned(), at_rest(objects, consul.api()).await?))
        }
    }))
    .await?;
    objects.delete().await?;
    let found: BTreeMap<String, Registered> = all.into_iter().collect();
    if update {
        return Ok(std::fs::write(recorded_path(), one_line_a_name(&found)?)?);
    }
    ensure!(found == recorded()?, "{found:#?}");
    Ok(())
}

fn one_line_a_name(found: &BTreeMap<String, Registered>) -> Result<String> {
    let mut runs = Vec::new();
    for (run, registered) in found {
        let mut lines = Vec::new();
        for (name, instances) in registered {
            let instances = serde_json::to_string(instances)?;
            lines.push(format!("    {}: {instances}", json!(name)));
        }
        runs.push(format!("  {}: {{\n{}\n  }}", json!(run), lines.join(",\n")));
    }
    Ok(format!("{{\n{}\n}}\n", runs.join(",\n")))
}

/// What is registered once nothing has changed for a while: it writes once a second.
async fn at_rest(objects: &Objects, consul: &ConsulApi) -> Result<Registered> {
    let (mut last, mut since) = (objects.registered(consul).await?, Instant::now());
    while since.elapsed() < REST {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let found = objects.registered(consul).await?;
        if found != last || found.is_empty() {
            (last, since) = (found, Instant::now());
        }
    }
    Ok(last)
}

async fn theirs(
    objects: &Objects,
    program: &str,
    consul: &Consul,
    grpc: u16,
    flags: &[&str],
) -> Result<Program> {
    let fixture = &objects.fixture;
    let (health, metrics) = (Port::pick()?, Port::pick()?);
    let options = ProgramOptions::new(program)
        .args(["-to-k8s=false", "-consul-write-interval=1s", "-addresses=127.0.0.1"])
        .arg(format!("-http-port={}", consul.address().port()))
        .arg(format!("-grpc-port={grpc}"))
        .arg(format!("-listen=127.0.0.1:{}", health.number()))
        .arg(format!("-metrics-port={}", metrics.number()))
        .arg(format!("-allow-k8s-namespace={}", fixture.namespace))
        .args([Path::new("-kubeconfig"), fixture.kubernetes.kubeconfig()])
        .args(flags);
    Program::start("sync-catalog", options).await
}
