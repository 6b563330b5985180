//! One pod and its node, read once: what the registration hook needs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{
    Container as ApiContainer, Node, Pod as ApiPod, Probe as ApiProbe,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Client;
use kube::api::{Api, PartialObjectMeta};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::pod::{Action, Container, ContainerPort, Pod, Port, Probe};
use crate::kubernetes::errors::failure;

/// Kubernetes' defaults of a probe, in seconds.
const DEFAULT_PERIOD: i32 = 10;
const DEFAULT_TIMEOUT: i32 = 1;

/// Why an object could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot get {object}: {cause}{}", hint(*code, right))]
pub struct Error {
    object: String,
    cause: String,
    code: Option<u16>,
    right: &'static str,
}

// === impl Error ===

impl Error {
    fn new(object: String, right: &'static str, error: &kube::Error) -> Self {
        let code = match error {
            kube::Error::Api(status) => Some(status.code),
            _ => None,
        };
        Self { object, cause: failure(error), code, right }
    }

    /// Whether trying again is of no use: there is no such object.
    pub fn is_absent(&self) -> bool {
        self.code == Some(404)
    }

    /// Whether a right is missing. It may still come: roles reach the API server's memory some
    /// moments after they were made.
    pub fn is_denied(&self) -> bool {
        self.code == Some(403)
    }
}

fn hint(code: Option<u16>, right: &str) -> String {
    match code {
        Some(401 | 403) => format!("; expected the right to {right}, found none"),
        _ => String::new(),
    }
}

/// A pod as it is now.
pub async fn pod(client: &Client, key: &ObjectKey) -> Result<Pod, Error> {
    let pods: Api<ApiPod> = Api::namespaced(client.clone(), &key.namespace);
    pods.get(&key.name)
        .await
        .map(|pod| project(key, pod))
        .map_err(|error| Error::new(format!("pod {key}"), "get pods", &error))
}

/// The labels of a node.
pub async fn node_labels(client: &Client, name: &str) -> Result<BTreeMap<String, String>, Error> {
    let nodes: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
    nodes
        .get(name)
        .await
        .map(|node| node.metadata.labels.unwrap_or_default())
        .map_err(|error| Error::new(format!("node {name}"), "get nodes", &error))
}

fn project(key: &ObjectKey, pod: ApiPod) -> Pod {
    let spec = pod.spec.unwrap_or_default();
    let ip = pod.status.and_then(|status| status.pod_ip);
    Pod {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        ip: ip.and_then(|ip| ip.parse::<IpAddr>().ok()),
        node: spec.node_name.filter(|name| !name.is_empty()),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        host_network: spec.host_network.unwrap_or_default(),
        labels: pod.metadata.labels.unwrap_or_default(),
        annotations: pod.metadata.annotations.unwrap_or_default(),
        containers: spec.containers.into_iter().map(container).collect(),
        sidecars: spec
            .init_containers
            .unwrap_or_default()
            .into_iter()
            .filter(|container| container.restart_policy.as_deref() == Some("Always"))
            .map(container)
            .collect(),
    }
}

fn container(container: ApiContainer) -> Container {
    let ports = container.ports.unwrap_or_default().into_iter().filter_map(|port| {
        Some(ContainerPort { name: port.name, port: number(port.container_port)? })
    });
    Container {
        name: container.name,
        ports: ports.collect(),
        startup: container.startup_probe.map(probe),
        readiness: container.readiness_probe.map(probe),
        liveness: container.liveness_probe.map(probe),
    }
}

fn probe(probe: ApiProbe) -> Probe {
    // The API server fills in the defaults; 0 stands for the default too.
    let seconds = |value: Option<i32>, default: i32| {
        let value = value.filter(|seconds| *seconds > 0).unwrap_or(default);
        Duration::from_secs(u64::from(value.unsigned_abs()))
    };
    Probe {
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, DEFAULT_PERIOD),
        timeout: seconds(probe.timeout_seconds, DEFAULT_TIMEOUT),
        action: action(probe),
    }
}

fn action(probe: ApiProbe) -> Action {
    let host = |host: Option<String>| host.filter(|host| !host.is_empty());
    if let Some(http) = probe.http_get {
        let Some(port) = port(http.port) else { return Action::Unknown };
        let headers = http.http_headers.unwrap_or_default();
        Action::Http {
            https: http.scheme.as_deref() == Some("HTTPS"),
            host: host(http.host),
            port,
            path: http.path.unwrap_or_default(),
            headers: headers.into_iter().map(|header| (header.name, header.value)).collect(),
        }
    } else if let Some(tcp) = probe.tcp_socket {
        match port(tcp.port) {
            Some(port) => Action::Tcp { host: host(tcp.host), port },
            None => Action::Unknown,
        }
    } else if let Some(grpc) = probe.grpc {
        match number(grpc.port) {
            Some(port) => Action::Grpc { port, service: grpc.service },
            None => Action::Unknown,
        }
    } else if probe.exec.is_some() {
        Action::Exec
    } else {
        Action::Unknown
    }
}

/// A number out of range cannot come from an API server, which refuses it.
fn port(port: IntOrString) -> Option<Port> {
    match port {
        IntOrString::Int(port) => number(port).map(Port::Number),
        IntOrString::String(name) => Some(Port::Name(name)),
    }
}

fn number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn projected(pod: Value) -> Pod {
        project(&ObjectKey::new("ns", "pod"), serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_is_projected() {
        let pod = projected(json!({
            "metadata": {"labels": {"consul": "web"}, "annotations": {"a": "b"},
                "deletionTimestamp": "2026-11-01T00:00:00Z"},
            "spec": {"nodeName": "n", "hostNetwork": true, "containers": [
                {"name": "app", "ports": [
                    {"containerPort": 80, "name": "http"}, {"containerPort": 81},
                ]},
            ], "initContainers": [
                {"name": "setup"}, {"name": "once", "restartPolicy": "Never"},
                {"name": "proxy", "restartPolicy": "Always", "ports": [{"containerPort": 70}]},
            ]},
            "status": {"podIP": "10.0.0.1"},
        }));
        assert_eq!(pod.ip, Some("10.0.0.1".parse().unwrap()));
        assert_eq!((pod.node.as_deref(), pod.terminating), (Some("n"), true));
        assert!(pod.host_network);
        assert_eq!((pod.labels["consul"].as_str(), pod.annotations["a"].as_str()), ("web", "b"));
        let ports = &pod.containers[0].ports;
        assert_eq!((ports[0].name.as_deref(), ports[0].port), (Some("http"), 80));
        assert_eq!((&ports[1].name, ports[1].port), (&None, 81));
        let [proxy] = &pod.sidecars[..] else { panic!("{:?}", pod.sidecars) };
        assert_eq!((proxy.name.as_str(), proxy.ports[0].port), ("proxy", 70));
    }

    #[test]
    fn a_pod_that_was_just_made_has_no_address() {
        for status in [json!(null), json!({}), json!({"podIP": ""})] {
            let pod = projected(json!({"spec": {"containers": []}, "status": status}));
            assert_eq!((pod.ip, pod.terminating, pod.host_network), (None, false, false));
        }
    }

    #[test]
    fn each_kind_of_probe_is_told() {
        let number = Port::Number(80);
        for (wire, expected) in [
            (
                json!({"httpGet": {"port": 80, "path": "/p", "scheme": "HTTPS", "host": "h",
                    "httpHeaders": [{"name": "a", "value": "b"}]}}),
                Action::Http {
                    https: true,
                    host: Some("h".into()),
                    port: number.clone(),
                    path: "/p".into(),
                    headers: vec![("a".into(), "b".into())],
                },
            ),
            (
                json!({"httpGet": {"port": "http", "scheme": "HTTP"}}),
                Action::Http {
                    https: false,
                    host: None,
                    port: Port::Name("http".into()),
                    path: String::new(),
                    headers: vec![],
                },
            ),
            (json!({"tcpSocket": {"port": 80}}), Action::Tcp { host: None, port: number }),
            (
                json!({"grpc": {"port": 80, "service": "s"}}),
                Action::Grpc { port: 80, service: Some("s".into()) },
            ),
            (json!({"exec": {"command": ["true"]}}), Action::Exec),
            (json!({}), Action::Unknown),
        ] {
            let probe = probe(serde_json::from_value(wire).unwrap());
            assert_eq!(probe.action, expected);
            let times = [probe.initial_delay, probe.period, probe.timeout];
            assert_eq!(times, [0, 10, 1].map(Duration::from_secs));
        }
        let times = json!({"initialDelaySeconds": 5, "periodSeconds": 2, "timeoutSeconds": 7});
        let probe = probe(serde_json::from_value(times).unwrap());
        let times = [probe.initial_delay, probe.period, probe.timeout];
        assert_eq!(times, [5, 2, 7].map(Duration::from_secs));
    }
}
