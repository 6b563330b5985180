//! The cluster that the budget speaks of, and what a process has in memory.

use std::fmt;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

pub const SERVICES: usize = 10_000;
/// Of each Service.
pub const ENDPOINTS: usize = 10;
#[allow(dead_code, reason = "what measures time has no use for it")]
/// What the whole bridge may have, its own program included.
pub const TARGET_MIB: f64 = 50.0;
pub const NAMESPACES: usize = 100;
/// At 50 pods a node.
const NODES: usize = SERVICES * ENDPOINTS / 50;

pub fn namespace(number: usize) -> String {
    format!("team-{}", number % NAMESPACES)
}

#[allow(dead_code, reason = "some know it by its object")]
pub fn name(number: usize) -> String {
    format!("checkout-api-{number}")
}

fn metadata(number: usize, name: &str) -> Value {
    json!({
        "name": name,
        "namespace": namespace(number),
        "labels": {
            "app.kubernetes.io/name": self::name(number),
            "app.kubernetes.io/managed-by": "Helm",
            "kubernetes.io/service-name": self::name(number),
        },
        "annotations": { "meta.helm.sh/release-name": self::name(number) },
    })
}

/// A Service without a selector, so that no controller minds its slice.
pub fn service(number: usize) -> Value {
    json!({
        "metadata": metadata(number, &name(number)),
        "spec": {
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP" }],
        },
    })
}

pub fn slice(number: usize) -> Value {
    let endpoints: Vec<Value> = (0..ENDPOINTS).map(|pod| endpoint(number, pod)).collect();
    json!({
        "metadata": metadata(number, &format!("{}-x7k2p", name(number))),
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}

fn endpoint(number: usize, pod: usize) -> Value {
    let all = number * ENDPOINTS + pod;
    let node = all % NODES;
    json!({
        "addresses": [format!("10.{}.{}.{}", 128 + all / 65536, all / 256 % 256, all % 256)],
        "conditions": { "ready": true, "serving": true, "terminating": false },
        "targetRef": {
            "kind": "Pod",
            "name": format!("{}-7d4b9c6f5d-{pod:05}", name(number)),
            "namespace": namespace(number),
            "uid": format!("0b7c9d1e-6a3e-4a55-9d0b-{all:012x}"),
        },
        "nodeName": format!("ip-10-0-{}-{}.eu-central-1.compute.internal", node / 256, node % 256),
        "zone": format!("eu-central-1{}", ["a", "b", "c"][node % 3]),
    })
}

fn served(mut object: Value, number: usize) -> Value {
    let metadata = &mut object["metadata"];
    metadata["uid"] = format!("8c1f5a52-6a3e-4a55-9d0b-{number:012x}").into();
    metadata["resourceVersion"] = "123456789".into();
    metadata["creationTimestamp"] = "2026-01-02T03:04:05Z".into();
    metadata["managedFields"] =
        json!([{ "manager": "helm", "fieldsV1": { "f:spec": { "f:ports": {} } } }]);
    object
}

/// A Service as the API server gives it.
pub fn served_service(number: usize) -> Value {
    let mut service = served(service(number), number);
    let ip = format!("10.{}.{}.{}", 96 + number / 65536, number / 256 % 256, number % 256);
    service["spec"]["type"] = "ClusterIP".into();
    service["spec"]["clusterIPs"] = json!([ip]);
    service["spec"]["clusterIP"] = ip.into();
    service["status"] = json!({ "loadBalancer": {} });
    service
}

/// A slice as the API server gives it.
pub fn served_slice(number: usize) -> Value {
    served(slice(number), number)
}

/// What a process has resident, in MiB: now, and at the most so far.
pub struct Memory {
    #[allow(dead_code, reason = "some only show it")]
    pub now: f64,
    pub most: f64,
}

impl Memory {
    /// `process` as `/proc` names it: a number, or `self`.
    pub fn of(process: &str) -> Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let mebibytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number =
                line.and_then(|line| line.trim_start_matches(':').split_whitespace().next());
            let kibibytes: f64 = number.with_context(|| format!("no {field}"))?.parse()?;
            Ok::<_, anyhow::Error>(kibibytes / 1024.0)
        };
        Ok(Self { now: mebibytes("VmRSS")?, most: mebibytes("VmHWM")? })
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MiB (at most {:.1})", self.now, self.most)
    }
}
