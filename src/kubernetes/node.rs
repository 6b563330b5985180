//! The pods of one node, as far as its daemon reads them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Container as ApiContainer, ContainerStatus, Pod as ApiPod, PodStatus,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, Error as KubeError};
use serde::de::Error as _;
use serde_json::json;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::node::annotations::MAX_BYTES;
use crate::domain::node::exchange::{GatePatch, PatchError};
use crate::domain::node::pod::{Container, GATES, PREFIXES, Phase, Pod, Seen, Status};
use crate::kubernetes::errors::failure;
use crate::kubernetes::slim::{Content, Identity, Undecodable, Watched};

/// Pods, as far as the daemon of their node reads them.
#[derive(Clone, Copy, Debug)]
pub struct NodePods;

// === impl NodePods ===

impl Watched for NodePods {
    type Object = Pod;
    type Seen = Seen;
    const KIND: Kind = Kind::Pod;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Pod";
    const PLURAL: &'static str = "pods";
    const GRANTED_BY: &'static str = "manifests/node/rbac.yaml";

    fn decode(json: &str) -> Result<(Identity, Content<Pod>), serde_json::Error> {
        let object: ApiPod = serde_json::from_str(json)?;
        let resource_version = object.metadata.resource_version.clone().unwrap_or_default();
        let key = key_of(&object.metadata);
        let pod = project(object).map_err(serde_json::Error::custom)?;
        Ok((Identity { key, resource_version }, Content::Object(pod)))
    }

    fn seen(key: ObjectKey, object: Pod) -> Seen {
        Seen::Pod(key, object)
    }
}

// === impl Undecodable ===

impl Undecodable for Seen {
    fn undecodable(_: Kind, key: ObjectKey, why: String) -> Self {
        Seen::Undecodable(key, why)
    }
}

/// Whose it is.
pub(super) fn key_of(metadata: &ObjectMeta) -> ObjectKey {
    ObjectKey::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// What is kept of a pod, or why it cannot be.
pub(super) fn project(object: ApiPod) -> Result<Pod, String> {
    let (metadata, spec) = (object.metadata, object.spec.unwrap_or_default());
    let status = object.status.unwrap_or_default();
    let annotations = metadata.annotations.unwrap_or_default().into_iter();
    let is_read = |key: &str| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
    let annotations: BTreeMap<Box<str>, Box<str>> = annotations
        .filter(|(key, _)| is_read(key))
        .map(|(key, value)| (key.into(), value.into()))
        .collect();
    let bytes: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_BYTES {
        return Err(format!(
            "annotations of {} and {}: expected at most {MAX_BYTES} bytes together, found {bytes}",
            PREFIXES[0], PREFIXES[1]
        ));
    }
    let gates = spec.readiness_gates.unwrap_or_default();
    let gates = gates.iter().filter_map(|gate| {
        GATES
            .into_iter()
            .find(|it| *it == gate.condition_type)
            .map(|it| (it, condition(&status, it)))
    });
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let of_init = status.init_container_statuses.as_deref().unwrap_or_default();
    let native = spec.init_containers.unwrap_or_default().into_iter();
    let native = native.filter(|it| it.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.into_iter().map(|it| container(it, false, statuses));
    Ok(Pod {
        uid: metadata.uid.unwrap_or_default().into(),
        annotations,
        phase: match status.phase.as_deref() {
            Some("Running") => Phase::Running,
            Some("Succeeded" | "Failed") => Phase::Ended,
            _ => Phase::Pending,
        },
        is_terminating: metadata.deletion_timestamp.is_some(),
        gates: gates.collect(),
        containers: containers.chain(native.map(|it| container(it, true, of_init))).collect(),
        ip: status.pod_ip.filter(|ip| !ip.is_empty()).map(Into::into),
    })
}

fn container(object: ApiContainer, is_native_sidecar: bool, all: &[ContainerStatus]) -> Container {
    let status = all.iter().find(|status| status.name == object.name);
    let ports = object.ports.unwrap_or_default().into_iter().filter_map(|port| {
        Some((port.name.unwrap_or_default().into(), u16::try_from(port.container_port).ok()?))
    });
    Container {
        name: object.name.into(),
        is_native_sidecar,
        ports: ports.collect(),
        status: status.map(|it| Status { is_ready: it.ready, restarts: it.restart_count }),
    }
}

fn condition(status: &PodStatus, gate: &str) -> Option<bool> {
    let mut conditions = status.conditions.iter().flatten();
    conditions.find(|it| it.type_ == gate).map(|it| it.status == "True")
}

/// Sets conditions of a pod, if it still has the uid that is meant.
pub async fn patch_gates(client: &Client, patch: &GatePatch) -> Result<(), PatchError> {
    let api: Api<ApiPod> = Api::namespaced(client.clone(), &patch.pod.namespace);
    let now = k8s_openapi::jiff::Timestamp::now();
    let condition = |gate: &&str| {
        json!({
            "type": gate,
            "status": if patch.status { "True" } else { "False" },
            "reason": patch.reason,
            "message": patch.message,
            "lastTransitionTime": Time(now),
        })
    };
    // Strategic: conditions are merged by their type, and those of others stay as they are.
    let body = Patch::Strategic(json!({
        "metadata": {"uid": patch.uid},
        "status": {"conditions": patch.gates.iter().map(condition).collect::<Vec<_>>()},
    }));
    let patched = api.patch_status(&patch.pod.name, &PatchParams::default(), &body).await;
    let Err(error) = patched else { return Ok(()) };
    match &error {
        // Another uid is an invalid change. A conflict comes of others who write at the same time.
        KubeError::Api(status) if matches!(status.code, 404 | 422) => Err(PatchError::Gone),
        KubeError::Api(status) if matches!(status.code, 401 | 403) => {
            Err(PatchError::Denied(format!(
                "readiness gate: expected the right to patch pods/status of pods of this node, found \
                 none ({}); {} grants it, and the admission policy beside it wants a token that names \
                 the node: one of a pod, on Kubernetes 1.30 and newer",
                failure(&error),
                NodePods::GRANTED_BY
            )))
        }
        _ => Err(PatchError::Failed(failure(&error))),
    }
}
