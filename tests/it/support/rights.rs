//! What users apply, and the rights that it grants.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::Api;
use kube_consul_stack::Kubernetes;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// A file of what users apply.
pub fn manifest(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("manifests").join(path)
}

/// The token of the shipped service account, after `kubectl apply` of what is shipped.
pub async fn shipped_token(cluster: &Kubernetes) -> Result<String> {
    cluster.apply_file(&manifest("base/namespace.yaml")).await?;
    cluster.apply_file(&manifest("base/rbac.yaml")).await?;
    cluster.service_account_token("kube-consul", "kube-consul").await
}

/// The same of the shared cluster, asked for once.
pub async fn shared_token() -> Result<&'static str> {
    static SHARED: OnceCell<String> = OnceCell::const_new();
    let token =
        SHARED.get_or_try_init(|| async { shipped_token(Kubernetes::shared().await?).await });
    Ok(token.await?)
}

/// A kubeconfig with the shipped rights on the shared cluster.
pub async fn shipped_kubeconfig() -> Result<&'static Path> {
    static SHARED: OnceCell<PathBuf> = OnceCell::const_new();
    let path = SHARED.get_or_try_init(|| async {
        Kubernetes::shared().await?.kubeconfig_for(shared_token().await?)
    });
    Ok(path.await?)
}

/// The rules of the shipped role.
pub async fn shipped_rules(cluster: &Kubernetes) -> Result<Vec<Value>> {
    shipped_token(cluster).await?;
    let cluster_roles: Api<ClusterRole> = Api::all(cluster.client()?);
    let shipped = serde_json::to_value(cluster_roles.get("kube-consul-bridge").await?.rules)?;
    Ok(serde_json::from_value(shipped)?)
}

/// A kubeconfig with the shipped rights but for one verb on one resource.
pub async fn kubeconfig_without(
    cluster: &Kubernetes,
    resource: &str,
    verb: &str,
) -> Result<PathBuf> {
    let mut rules = shipped_rules(cluster).await?;
    let mut removed = 0;
    for rule in &mut rules {
        if rule["resources"] == json!([resource]) {
            let allowed = rule["verbs"].as_array_mut().context("no verbs")?;
            let before = allowed.len();
            allowed.retain(|it| it != verb);
            removed += before - allowed.len();
        }
    }
    ensure!(removed == 1, "the shipped role has {verb} {resource} {removed} times");
    rules.retain(|rule| rule["verbs"] != json!([]));
    let namespace = cluster.namespace("without").await?;
    kubeconfig_with(cluster, &namespace, &rules).await
}

/// A kubeconfig with these rights, of the service account `limited` in a namespace without one.
pub async fn kubeconfig_with(
    cluster: &Kubernetes,
    namespace: &str,
    rules: &[Value],
) -> Result<PathBuf> {
    let subject = json!([{"kind": "ServiceAccount", "name": "limited", "namespace": namespace}]);
    let group = "rbac.authorization.k8s.io";
    for object in [
        json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": "limited", "namespace": namespace}}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole",
            "metadata": {"name": namespace}, "rules": rules}),
        json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding",
            "metadata": {"name": namespace}, "subjects": subject,
            "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": namespace}}),
    ] {
        cluster.apply_yaml(&object.to_string()).await?;
    }
    cluster.kubeconfig_for(&cluster.service_account_token(namespace, "limited").await?)
}
