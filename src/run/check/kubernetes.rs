//! The Kubernetes API: whether it answers, who the cluster is, what may be done.

use std::collections::BTreeSet;

use crate::domain::kube::object::Kind;
use crate::domain::kube::routes::RouteKinds;
use crate::domain::services::settings::{AddressMode, Settings};
use crate::kubernetes::client::{Connected, server_version};
use crate::kubernetes::permissions::{Permission, is_permitted};
use crate::kubernetes::watch::Scope;
use crate::run::check::ask::Ask;
use crate::run::check::report::{Finding, failed, ok, skipped, warning};
use crate::run::daemon::checks::{self, Identity};
use crate::run::daemon::options::{Common, SyncOptions};

pub(super) const KUBERNETES: &str = "kubernetes";
const CLUSTER: &str = "cluster identity";
const PERMISSION: &str = "permission";
const REMEDY: &str = "apply manifests/base/rbac.yaml, or manifests/namespaces with --namespace, for this \
    service account";
const ROUTES_REMEDY: &str = "apply manifests/optional/ingress-rbac.yaml for --ingress, and \
    manifests/optional/gateway-rbac.yaml for --gateway";

/// What was found, and the cluster's uid.
pub(super) async fn check(
    common: &Common,
    sync: &SyncOptions,
    kubernetes: &Connected,
    ask: Ask,
) -> (Vec<Finding>, Option<String>) {
    let Connected { client, url, source } = kubernetes;
    let version = ask.of(server_version(client)).await;
    let mut findings = match &version {
        Ok(version) => vec![ok(KUBERNETES, format!("{version} at {url}, by {source}"))],
        Err(why) => vec![failed(
            KUBERNETES,
            format!("{url}, by {source}: {why}"),
            "check --kube-url, --kubeconfig or the pod's service account, and the network in between",
        )],
    };
    if version.is_err() {
        let why = "the Kubernetes API does not answer";
        findings.extend([skipped(PERMISSION, why), skipped(CLUSTER, why)]);
        return (findings, None);
    }
    for (permission, is_needed) in needed(&sync.settings, common.cluster_uid.is_some()) {
        findings.push(permitted(kubernetes, &permission, is_needed, ask).await);
    }
    let (finding, uid) = identity(common, kubernetes, ask).await;
    findings.push(finding);
    (findings, uid)
}

/// The permissions of the shipped roles that these options need, and whether nothing works without.
fn needed(settings: &Settings, knows_uid: bool) -> Vec<(Permission, bool)> {
    let mut all = Vec::new();
    for scope in Scope::of(&settings.namespaces, &settings.deny_namespaces) {
        for (group, resource) in [("", "services"), ("discovery.k8s.io", "endpointslices")] {
            for verb in ["list", "watch"] {
                let namespace = scope.namespace.clone();
                all.push((Permission { group, resource, verb, namespace, name: None }, true));
            }
        }
    }
    let cluster_wide = |group, resource, verb| {
        let (namespace, name) = (None, None);
        Permission { group, resource, verb, namespace, name }
    };
    if matches!(settings.address, AddressMode::NodePort | AddressMode::ByType) {
        // Without nodes every Service lacks its instances, or only those of type NodePort.
        let is_needed = settings.address == AddressMode::NodePort;
        all.extend(["list", "watch"].map(|verb| (cluster_wide("", "nodes", verb), is_needed)));
    }
    for (group, resource, is_namespaced) in routes(settings.routes) {
        let scopes = Scope::of(&settings.namespaces, &settings.deny_namespaces).into_iter();
        let namespaces: BTreeSet<_> =
            scopes.map(|it| it.namespace.filter(|_| is_namespaced)).collect();
        for namespace in namespaces {
            let of = |verb| Permission {
                namespace: namespace.clone(),
                ..cluster_wide(group, resource, verb)
            };
            all.extend(["list", "watch"].map(|verb| (of(verb), true)));
        }
    }
    if !settings.namespace_selector.is_empty() {
        all.extend(["list", "watch"].map(|verb| (cluster_wide("", "namespaces", verb), true)));
    }
    if !knows_uid {
        let name = Some("kube-system");
        all.push((Permission { name, ..cluster_wide("", "namespaces", "get") }, true));
    }
    // In a namespace of those that are registered, where only these may be written to.
    let namespace = settings.namespaces.iter().next().cloned();
    let events = cluster_wide("events.k8s.io", "events", "create");
    all.push((Permission { namespace, ..events }, false));
    all
}

/// What is read of what routes to Services, and whether only in the namespaces that are registered:
/// a route may be attached to another namespace's Gateway.
fn routes(kinds: RouteKinds) -> impl Iterator<Item = (&'static str, &'static str, bool)> {
    kinds.iter().map(|kind| match kind {
        Kind::HttpRoute => ("gateway.networking.k8s.io", "httproutes", true),
        Kind::Gateway => ("gateway.networking.k8s.io", "gateways", false),
        _ => ("networking.k8s.io", "ingresses", true),
    })
}

async fn permitted(
    kubernetes: &Connected,
    permission: &Permission,
    is_needed: bool,
    ask: Ask,
) -> Finding {
    let check = format!("{PERMISSION} {permission}");
    match ask.of_text(is_permitted(&kubernetes.client, permission)).await {
        Ok(true) => ok(check, "granted"),
        Ok(false) if permission.group.contains("networking") => {
            failed(check, "not granted", ROUTES_REMEDY)
        }
        Ok(false) if is_needed => failed(check, "not granted", REMEDY),
        Ok(false) => warning(check, "not granted: problems are not written as Events", REMEDY),
        Err(why) => warning(check, format!("cannot be asked for: {why}"), REMEDY),
    }
}

async fn identity(common: &Common, kubernetes: &Connected, ask: Ask) -> (Finding, Option<String>) {
    let given = common.cluster_uid.as_deref();
    match ask.of(checks::identity(&kubernetes.client, given)).await {
        Ok(Identity::Known(uid)) => (ok(CLUSTER, format!("uid {uid}")), Some(uid)),
        Ok(Identity::Differs { given, found }) => {
            let what = format!("--cluster-uid says {given}, kube-system has {found}");
            let remedy = "check which cluster the Kubernetes flags lead to, or give this uid";
            (failed(CLUSTER, what, remedy), None)
        }
        Ok(Identity::Denied(why)) => {
            let remedy =
                "allow reading the namespace kube-system, or give its uid with --cluster-uid";
            (failed(CLUSTER, why, remedy), None)
        }
        Err(why) => (failed(CLUSTER, why, "check the API server"), None),
    }
}
