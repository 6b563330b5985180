//! Objects that are large on purpose: what one tenant writes must not cost another a relist, and
//! the process not more memory than it may have.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube_consul_stack::{
    Consul, ConsulApi, ConsulOptions, Kubernetes, KubernetesOptions, ProgramOptions, eventually,
};
use serde_json::{Value, json};

use super::{instances, numbered, shown};
use crate::support::{Bridge, DEADLINE, Objects, shipped_token};

/// The limit of the shipped manifest.
const MEMORY: u64 = 50 << 20;

/// A Service of 2.7 MB: Go writes each `<` as six bytes.
fn large_service(number: usize) -> Value {
    let address = |n: usize| format!("10.{}.{}.{}", 100 + n / 65_536, n / 256 % 256, n % 256);
    let addresses: Vec<_> = (0..82_000).map(address).collect();
    json!({
        "metadata": {"name": format!("large-{number}"), "annotations": {"note": "<".repeat(240_000)}},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}], "externalIPs": addresses},
    })
}

/// A slice with so many endpoints, which bears `bytes` times six bytes of text.
fn large_slice(name: &str, endpoints: usize, bytes: usize) -> Value {
    let endpoint = |n: usize| {
        json!({"addresses": [format!("10.2.{}.{}", n / 250, n % 250 + 1)],
            "targetRef": {"kind": "Pod", "name": format!("web-6c5d8f7b9-{n:05}"),
                "fieldPath": "<".repeat(bytes / endpoints)}})
    };
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": "large-0"}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

/// A value of `/proc/<pid>/status`, bytes.
pub fn memory(bridge: &Bridge, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", bridge.program.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
    let kibibytes: u64 = line.trim_matches([':', ' ', '\t', 'k', 'B']).parse()?;
    Ok(kibibytes << 10)
}

/// A bridge of the built program that may have [`MEMORY`] and no more.
fn limited(consul: &Consul) -> ProgramOptions {
    ProgramOptions::new("/usr/bin/prlimit")
        .arg(format!("--data={MEMORY}"))
        .arg(env!("CARGO_BIN_EXE_kube-consul"))
        .arg("bridge")
        .env("CONSUL_HTTP_ADDR", consul.url())
}

/// Twenty small Services, a limited bridge that is ready though large ones are there, and how long
/// the change of a small one takes meanwhile.
struct Victims {
    objects: Objects,
    names: BTreeSet<String>,
}

impl Victims {
    async fn create(cluster: &Kubernetes) -> Result<Self> {
        let namespace = cluster.namespace("victims").await?;
        let objects = Objects::new(&cluster.client()?, &namespace);
        let names = numbered("svc", 0..20);
        objects.create_all(&Vec::from_iter(names.clone())).await?;
        Ok(Self { objects, names })
    }

    /// Each is registered.
    async fn wait_until_served(&self, api: &ConsulApi, node: &str) -> Result<()> {
        let node = format!("{node}{}", self.objects.namespace);
        eventually(DEADLINE, || async {
            let found = instances(api, &node).await?;
            let found: BTreeSet<_> = found.into_values().map(|it| it.service).collect();
            ensure!(found.is_superset(&self.names), "{found:?}");
            Ok(())
        })
        .await
    }

    /// A change of one is in Consul within five seconds.
    async fn change(&self, api: &ConsulApi, node: &str, tag: &str) -> Result<()> {
        let node = format!("{node}{}", self.objects.namespace);
        let began = Instant::now();
        self.objects.tag("svc-000", tag).await?;
        eventually(DEADLINE, || async {
            let found = instances(api, &node).await?;
            let is_tagged = found.values().any(|it| it.tags.iter().any(|found| found == tag));
            ensure!(is_tagged, "the change is not there");
            Ok(())
        })
        .await?;
        let took = began.elapsed();
        println!("{tag}: another's change took {took:?}");
        ensure!(took < Duration::from_secs(15), "another's change waited {took:?}");
        Ok(())
    }
}

/// It lives, within its limit.
fn check_memory(bridge: &Bridge, when: &str) -> Result<()> {
    let (peak, own) = (memory(bridge, "VmHWM")?, memory(bridge, "RssAnon")?);
    let program = memory(bridge, "RssFile")?;
    println!(
        "{when}: peak {} KiB, of which the program itself is {} KiB; now {} KiB without it",
        peak >> 10,
        program >> 10,
        own >> 10
    );
    // An unoptimized program is large, and nobody pays for its pages.
    ensure!(peak.saturating_sub(program) < MEMORY, "{when}: {peak} bytes");
    ensure!(bridge.program.exit_status().is_none(), "{when}: it was ended");
    Ok(())
}

/// Without a cluster IP, so that many are made quickly.
fn headless(name: &str, annotations: &Value, spec: &Value) -> Value {
    let mut object = json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"clusterIP": "None", "ports": [{"name": "http", "port": 80}]},
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    object
}

#[tokio::test]
async fn l3_texts_without_end_harm_nobody_else_within_the_memory_of_the_manifests() -> Result<()> {
    let cluster = Kubernetes::start(KubernetesOptions::default()).await?;
    let kubeconfig = cluster.kubeconfig_for(&shipped_token(&cluster).await?)?;
    let (victims, consul) =
        tokio::try_join!(Victims::create(&cluster), Consul::start(ConsulOptions::dev()))?;
    // In Consul already: of others under one name, and of ours as an older bridge wrote it.
    let many: Vec<String> =
        (0..11_000).map(|number| format!("{number:05}{}", "<".repeat(20))).collect();
    let foreign = json!({"ID": "f", "Name": "postgres", "Tags": many});
    consul.api().put("/v1/agent/service/register", &foreign).await?;
    let meta = json!({"kube-consul-cluster": "kubernetes", "external-k8s-ns": "shop"});
    let ours = json!({"ID": "kubernetes_shop_gone_http_10.9.9.9", "Name": "gone", "Port": 80,
        "Address": "10.9.9.9", "Tags": ["<".repeat(180_000)], "Meta": meta});
    consul.api().put("/v1/agent/service/register", &ours).await?;
    let attacker = cluster.namespace("large").await?;
    for (name, tags) in [
        ("postgres", many.join(",")[..240_000].to_owned()),
        ("one", "<".repeat(180_000)),
        ("all", (0..40_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",")),
    ] {
        let annotations =
            json!({"kube-consul.io/service-tags": tags, "kube-consul.io/join": "true"});
        let spec = json!({"externalIPs": ["192.0.2.1"]});
        let mut object = headless(name, &annotations, &spec);
        object["metadata"]["annotations"]["kube-consul.io/address"] = "external-ip".into();
        cluster.create::<k8s_openapi::api::core::v1::Service>(&attacker, object).await?;
    }
    let node = consul.node();
    for round in 0..2 {
        let bridge = Bridge::start(limited(&consul).arg("--kubeconfig").arg(&kubeconfig)).await?;
        bridge.wait_ready().await?;
        let shown = shown(&consul).await?.names();
        ensure!(shown.is_superset(&victims.names), "{shown:?}");
        eventually(DEADLINE, || async {
            let gone = consul.api().get(&format!("/v1/catalog/node-services/{node}")).await?;
            ensure!(!gone.to_string().contains("10.9.9.9"), "what nobody has is still there");
            Ok(())
        })
        .await?;
        for name in ["one", "all"] {
            bridge.wait_for_problem(&attacker, name, "TooLarge").await?;
        }
        let began = Instant::now();
        let tag = format!("round-{round}");
        victims.objects.tag("svc-000", &tag).await?;
        eventually(DEADLINE, || async {
            let shown = super::shown(&consul).await?;
            ensure!(shown.instances.values().any(|it| it.tags.contains(&tag)), "not there");
            Ok(())
        })
        .await?;
        ensure!(began.elapsed() < Duration::from_secs(15), "waited {:?}", began.elapsed());
        check_memory(&bridge, &format!("L3, start {round}"))?;
        bridge.stop().await?;
    }
    cluster.stop().await
}

#[tokio::test]
async fn l4_services_without_end_take_turns_within_the_memory_of_the_manifests() -> Result<()> {
    let cluster = Kubernetes::start(KubernetesOptions::default()).await?;
    let kubeconfig = cluster.kubeconfig_for(&shipped_token(&cluster).await?)?;
    let (victims, consul) =
        tokio::try_join!(Victims::create(&cluster), Consul::start(ConsulOptions::dev()))?;
    let attacker = cluster.namespace("large").await?;
    let tags: Vec<String> = (0..40_000).map(|n| n.to_string()).collect();
    let ports = |count: u16| -> Vec<Value> {
        (0..count).map(|n| json!({"name": format!("p{n}"), "port": 1_000 + n})).collect()
    };
    let address = |n: usize| format!("10.{}.{}.{}", 100 + n / 65_536, n / 256 % 256, n % 256);
    let addresses: Vec<_> = (0..80_000).map(address).collect();
    for (name, annotations, spec) in [
        (
            "tags",
            json!({"kube-consul.io/service-tags": tags.join(",")}),
            json!({"clusterIP": null, "ports": ports(20)}),
        ),
        (
            "addresses",
            json!({"kube-consul.io/address": "external-ip"}),
            json!({"externalIPs": addresses}),
        ),
        ("pods", Value::Null, json!({"ports": ports(64)})),
    ] {
        let object = headless(name, &annotations, &spec);
        cluster.create::<k8s_openapi::api::core::v1::Service>(&attacker, object).await?;
    }
    let endpoint = |n: usize| json!({"addresses": [format!("10.2.0.{n}")]});
    let slice = json!({
        "metadata": {"name": "pods-1", "labels": {"kubernetes.io/service-name": "pods"}},
        "addressType": "IPv4", "ports": ports(64),
        "endpoints": (1..=250).map(endpoint).collect::<Vec<_>>(),
    });
    cluster.create::<EndpointSlice>(&attacker, slice).await?;
    let node = "k8s-kubernetes.";
    for round in 0..2 {
        let command = limited(&consul).args(["--sink", "catalog", "--kubeconfig"]).arg(&kubeconfig);
        let bridge = Bridge::start(command).await?;
        // While the large ones are being written.
        victims.wait_until_served(consul.api(), node).await?;
        victims.change(consul.api(), node, &format!("early-{round}")).await?;
        bridge.wait_ready().await?;
        victims.change(consul.api(), node, &format!("late-{round}")).await?;
        let found = instances(consul.api(), &format!("{node}{attacker}")).await?;
        // 20 ports, 1,000 addresses, and of 16,000 instances of pods 5,000.
        ensure!(found.len() == 6_020, "{} instances", found.len());
        for name in ["tags", "pods"] {
            bridge.wait_for_problem(&attacker, name, "TooLarge").await?;
        }
        bridge.wait_for_problem(&attacker, "addresses", "Incomplete").await?;
        check_memory(&bridge, &format!("L4, start {round}"))?;
        bridge.stop().await?;
    }
    cluster.stop().await
}

/// What one tenant may write into a namespace without being refused by the API server.
fn hostile() -> Vec<(String, Value, Value)> {
    let text = |key: &str, value: &str| json!({format!("kube-consul.io/{key}"): value});
    let flood: serde_json::Map<String, Value> = (0..1_500)
        .map(|n| (format!("kube-consul.io/service-meta-k{n}"), "x".repeat(100).into()))
        .collect();
    let ports: Vec<Value> = (0..3_000)
        .map(|n| json!({"name": format!("p{n}"), "port": 1 + n, "protocol": "UDP"}))
        .collect();
    let named = |name: &str, annotations: Value| (name.to_owned(), annotations, json!({}));
    vec![
        named(&"n".repeat(63), json!({})),
        named("long-name", text("service-name", &"é".repeat(255))),
        named("dotted", text("service-name", &"a.".repeat(126))),
        named("control", text("service-name", "a\n\u{1b}[31mb")),
        named("tags", text("service-tags", "a\tb,\u{7f},\u{202e}x,\r\n,ok")),
        named("note", json!({"note": "<".repeat(250_000)})),
        named("meta", Value::Object(flood)),
        ("ports".to_owned(), json!({}), json!({"ports": ports})),
        named("flips", json!({})),
    ]
}

#[tokio::test]
async fn a_hostile_tenant_has_problems_and_harms_nobody_else() -> Result<()> {
    let cluster = Kubernetes::start(KubernetesOptions::default()).await?;
    let kubeconfig = cluster.kubeconfig_for(&shipped_token(&cluster).await?)?;
    let (victims, consul) =
        tokio::try_join!(Victims::create(&cluster), Consul::start(ConsulOptions::dev()))?;
    let attacker = cluster.namespace("hostile").await?;
    let objects = Objects::new(&cluster.client()?, &attacker);
    let names: Vec<String> = hostile().into_iter().map(|(name, ..)| name).collect();
    objects.create_all(&names).await?;
    for (name, annotations, spec) in hostile() {
        objects
            .patch(&name, &json!({"metadata": {"annotations": annotations}, "spec": spec}))
            .await?;
    }
    let command = limited(&consul).args(["--sink", "catalog", "--kubeconfig"]).arg(&kubeconfig);
    let bridge = Bridge::start(command).await?;
    victims.wait_until_served(consul.api(), "k8s-kubernetes.").await?;
    bridge.wait_ready().await?;
    for name in ["long-name", "control", "tags", "meta"] {
        eventually(DEADLINE, || async {
            let found = bridge.problems_of(&attacker, name).await?;
            ensure!(!found.is_empty(), "{name} has no problem");
            Ok(())
        })
        .await?;
    }
    let flips = async {
        for round in 0..300_u32 {
            let addresses = vec![format!("10.1.0.{}", round % 2 + 1)];
            objects.set_ready("flips", &(addresses, round % 3 != 0)).await?;
        }
        anyhow::Ok(())
    };
    let changes = async {
        for round in 0..3 {
            victims.change(consul.api(), "k8s-kubernetes.", &format!("flip-{round}")).await?;
        }
        Ok(())
    };
    tokio::try_join!(flips, changes)?;
    // What it wrote breaks no line of the log, nor of what people read.
    let log = bridge.program.stderr();
    ensure!(!log.contains('\u{1b}') && !log.contains('\u{7f}'), "control characters in the log");
    let catalog = consul.api().get("/v1/catalog/services").await?.to_string();
    ensure!(!catalog.contains("\\u001b") && !catalog.contains("\\n"), "{catalog}");
    check_memory(&bridge, "a hostile tenant")?;
    bridge.stop().await?;
    cluster.stop().await
}

#[tokio::test]
async fn l6_large_objects_of_others_cost_no_relist_and_little_memory() -> Result<()> {
    let cluster = Kubernetes::start(KubernetesOptions::default()).await?;
    let client = cluster.client()?;
    let kubeconfig = cluster.kubeconfig_for(&shipped_token(&cluster).await?)?;
    let attacker = cluster.namespace("large").await?;
    for number in 0..13 {
        cluster
            .create::<k8s_openapi::api::core::v1::Service>(&attacker, large_service(number))
            .await?;
    }
    for (name, endpoints, bytes) in [
        ("s-0", 1_000, 0),
        ("s-1", 1_000, 0),
        ("s-2", 1_000, 0),
        ("mb-4", 1_000, 700_000),
        ("mb-8", 1_000, 1_300_000),
    ] {
        cluster.create::<EndpointSlice>(&attacker, large_slice(name, endpoints, bytes)).await?;
    }
    let victim = cluster.namespace("shop").await?;
    let objects = Objects::new(&client, &victim);
    let names = numbered("svc", 0..20);
    objects.create_all(&Vec::from_iter(names.clone())).await?;

    // All namespaces are asked for, and the others are not selected.
    let consul = Consul::start(ConsulOptions::dev()).await?;
    let command =
        limited(&consul).args(["--default-sync", "false", "--kubeconfig"]).arg(&kubeconfig);
    for name in &names {
        objects.annotate(name, json!({"kube-consul.io/sync": "true"})).await?;
    }
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let found = shown(&consul).await?.names();
    ensure!(found == names, "{found:?}");
    println!("peak at the start: {} KiB", memory(&bridge, "VmHWM")? >> 10);

    // The large ones are touched, and another's change does not wait.
    let slices: Api<EndpointSlice> = Api::namespaced(client, &attacker);
    for round in 0..5 {
        for name in ["mb-4", "mb-8"] {
            let patch = json!({"metadata": {"labels": {"round": round.to_string()}}});
            slices.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        let tag = format!("round-{round}");
        objects.tag("svc-000", &tag).await?;
        let began = Instant::now();
        eventually(DEADLINE, || async {
            let shown = shown(&consul).await?;
            let tagged = shown.instances.values().any(|it| it.tags.contains(&tag));
            ensure!(tagged, "the change is not there");
            Ok(())
        })
        .await?;
        let took = began.elapsed();
        ensure!(took < Duration::from_secs(15), "another's change waited {took:?}");
    }
    eventually(DEADLINE, || async {
        let problems = bridge.problems_of(&attacker, "mb-8").await?;
        ensure!(problems.len() == 1 && problems[0]["reason"] == "Undecodable", "{problems:?}");
        ensure!(bridge.problems_of(&attacker, "mb-4").await?.is_empty(), "mb-4 has a problem");
        Ok(())
    })
    .await?;
    let failures =
        bridge.metric("kube_consul_watch_failures_total{kind=\"EndpointSlice\"}").await?;
    ensure!(failures.unwrap_or_default() == 0.0, "{failures:?} watches failed");
    let peak = memory(&bridge, "VmHWM")?;
    let (now, own) = (memory(&bridge, "VmRSS")?, memory(&bridge, "RssAnon")?);
    // The rest of an unoptimized program's memory is the program itself.
    println!(
        "peak {} KiB; now {} KiB, {} KiB without the program; limited to {} KiB of data",
        peak >> 10,
        now >> 10,
        own >> 10,
        MEMORY >> 10
    );
    ensure!(own < MEMORY, "{own} bytes");
    ensure!(bridge.program.exit_status().is_none(), "it was ended");
    cluster.stop().await
}
