//! Objects that are large on purpose: what one tenant writes must not cost another a relist, and
//! the process not more memory than it may have.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use kube_consul_stack::{
    Consul, ConsulOptions, Kubernetes, KubernetesOptions, ProgramOptions, eventually,
};
use serde_json::{Value, json};

use super::{numbered, shown};
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
        ensure!(took < Duration::from_secs(5), "another's change waited {took:?}");
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
