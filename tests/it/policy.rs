//! What the token of a node's daemon may do at a real API server, with the shipped role and policy.

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube_consul_stack::{Kubernetes, eventually};
use serde_json::{Value, json};

use crate::support::{DEADLINE, manifest};

pub(crate) const SYSTEM: &str = "kube-consul";
pub(crate) const ACCOUNT: &str = "kube-consul-node";

/// Makes a pod of a service account on a node, and gives its uid.
pub(crate) async fn pod(namespace: &str, name: &str, node: &str, account: &str) -> Result<String> {
    let cluster = Kubernetes::shared().await?;
    let locked = json!({"allowPrivilegeEscalation": false, "runAsNonRoot": true, "runAsUser": 65532,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"nodeName": node, "serviceAccountName": account,
            "containers": [{"name": "a", "image": "example.invalid/a", "securityContext": locked}]}});
    let made = cluster.apply_yaml(&pod.to_string()).await?;
    Ok(made[0]["metadata"]["uid"].as_str().context("a pod has a uid")?.to_owned())
}

/// Applies the role and the policy of the daemon.
pub(crate) async fn apply_shipped() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    for file in ["namespace.yaml", "rbac.yaml", "policy.yaml"] {
        cluster.apply_file(&manifest("node").join(file)).await?;
    }
    Ok(())
}

/// A token as the kubelet projects it into the daemon's pod; without one, of nobody's pod.
pub(crate) async fn token(bound: Option<(&str, &str)>) -> Result<String> {
    let (name, uid) = bound.unwrap_or_default();
    let name = format!("--bound-object-name={name}");
    let uid = format!("--bound-object-uid={uid}");
    let mut words = vec!["create", "token", ACCOUNT, "--namespace", SYSTEM];
    if bound.is_some() {
        words.extend(["--bound-object-kind=Pod", &name, &uid]);
    }
    Ok(Kubernetes::shared().await?.kubectl(&words).await?.trim().to_owned())
}

/// Patches the status of a pod; gives what the API server says where it refuses.
async fn patch(token: &str, namespace: &str, name: &str, patch: &Value) -> Result<Option<String>> {
    let client = Kubernetes::shared().await?.client_with_token(token)?;
    let pods: Api<Pod> = Api::namespaced(client, namespace);
    match pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        Ok(_) => Ok(None),
        Err(kube::Error::Api(status)) => Ok(Some(status.message.clone())),
        Err(error) => Err(error.into()),
    }
}

fn condition(kind: &str, status: &str) -> Value {
    json!({"status": {"conditions": [{"type": kind, "status": status, "reason": "Test"}]}})
}

#[tokio::test]
async fn p14_a_daemon_patches_its_own_conditions_of_the_pods_of_its_own_node_only() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    apply_shipped().await?;
    cluster.node("policy-node-2").await?;
    let shop = cluster.namespace("policy").await?;
    let uid = pod(SYSTEM, "policy-daemon", "node-1", ACCOUNT).await?;
    pod(&shop, "here", "node-1", "default").await?;
    pod(&shop, "there", "policy-node-2", "default").await?;
    let bound = token(Some(("policy-daemon", &uid))).await?;
    let own = condition("kube-consul.io/synced", "True");

    // A policy counts some time after it was made.
    eventually(DEADLINE, || async {
        let refusal = patch(&bound, &shop, "there", &own).await?.context("it is not refused")?;
        ensure!(refusal.contains("this daemon is that of node node-1"), "{refusal}");
        Ok(())
    })
    .await?;
    for (what, change, why) in [
        ("its condition", own.clone(), None),
        ("katalog-sync's", condition("katalog-sync.wish.com/synced", "False"), None),
        ("a condition of others", condition("Ready", "False"), Some("no other conditions")),
        ("an address", json!({"status": {"podIP": "10.9.9.9"}}), Some("but its conditions")),
        ("the phase", json!({"status": {"phase": "Failed"}}), Some("but its conditions")),
        ("a label", json!({"metadata": {"labels": {"app": "web"}}}), Some("no labels")),
    ] {
        let found = patch(&bound, &shop, "here", &change).await?;
        let is_right = match (&found, why) {
            (None, None) => true,
            (Some(found), Some(why)) => found.contains(why),
            _ => false,
        };
        ensure!(is_right, "{what}: expected {why:?}, found {found:?}");
    }
    // A token that is bound to no pod, as one that was made by hand or before Kubernetes 1.30.
    let unbound = token(None).await?;
    let refusal = patch(&unbound, &shop, "here", &own).await?.context("it is not refused")?;
    ensure!(refusal.contains("names no node"), "{refusal}");
    // Others are not concerned.
    let admin = cluster.set_pod_ready(&shop, "there", false).await;
    admin.context("the policy concerns others")
}
