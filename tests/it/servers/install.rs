//! What `kubectl` makes of the manifests on a real API server, with its controllers.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams};
use kube_consul_stack::{
    Kubernetes, KubernetesOptions, Program, ProgramOptions, eventually, program_path,
};
use serde_json::json;

use super::scenarios;
use super::support::{START_DEADLINE, make_secrets, run_with};
use crate::support::manifest;

/// A cluster of the test's own: it gets nodes and volumes.
struct Cluster(Kubernetes);

// === impl Cluster ===

impl Cluster {
    async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let options = ProgramOptions::new(program_path("kubectl")?)
            .arg(format!("--kubeconfig={}", self.0.kubeconfig().display()))
            .args(arguments);
        let program = Program::start("kubectl", options).await?;
        program.wait_for_code(0, START_DEADLINE).await?;
        ensure!(!program.stderr().contains("Warning"), "{arguments:?}: {}", program.stderr());
        Ok(program.stdout())
    }

    async fn nodes(&self, numbers: impl IntoIterator<Item = u8>) -> Result<()> {
        for number in numbers {
            self.0.node(&format!("node-{number}")).await?;
        }
        Ok(())
    }

    /// Volumes of no class, as a test has no provisioner.
    async fn volumes(&self, count: u8) -> Result<()> {
        let volume = |number| {
            json!({"apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {"name": format!("volume-{number}")},
            "spec": {"capacity": {"storage": "10Gi"}, "accessModes": ["ReadWriteOnce"],
                "hostPath": {"path": "/nowhere"}}})
        };
        let volumes: Vec<_> = (0..count).map(volume).collect();
        let list = json!({"apiVersion": "v1", "kind": "List", "items": volumes});
        self.0.apply_yaml(&list.to_string()).await.map(drop)
    }

    /// A namespace that warns of what `restricted` would refuse, and refuses it.
    async fn namespace(&self, name: &str, level: &str) -> Result<()> {
        let labels = json!({"pod-security.kubernetes.io/enforce": level,
            "pod-security.kubernetes.io/warn": level});
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": labels}});
        self.0.apply_yaml(&namespace.to_string()).await.map(drop)
    }

    /// What `restricted` would refuse of a folder's objects, by the words before each colon or
    /// bracket. Nothing is made.
    async fn pod_security_warnings(
        &self,
        folder: &str,
        namespace: &str,
    ) -> Result<BTreeSet<String>> {
        let warn = "pod-security.kubernetes.io/warn=restricted";
        self.kubectl(&["label", "--overwrite", "namespace", namespace, warn]).await?;
        let folder = path(folder);
        let flags = ["--dry-run=server", "--namespace", namespace];
        let options = ProgramOptions::new(program_path("kubectl")?)
            .arg(format!("--kubeconfig={}", self.0.kubeconfig().display()))
            .args(["apply", "-k", &folder])
            .args(flags);
        let program = Program::start("kubectl", options).await?;
        program.wait_for_code(0, START_DEADLINE).await?;
        let said = program.stderr();
        let mut warned = BTreeSet::new();
        for line in said.lines().filter(|it| it.contains("would violate PodSecurity")) {
            let (_, list) = line.split_once("latest\": ").context("no list of what is violated")?;
            // Each begins with its name: `hostPort (container "consul" uses …), …`.
            for violation in list.split("), ") {
                let name = violation.split(" (").next().unwrap_or_default();
                warned.insert(name.trim_end_matches(" != true").to_owned());
            }
        }
        let former = "pod-security.kubernetes.io/warn=privileged";
        self.kubectl(&["label", "--overwrite", "namespace", namespace, former]).await?;
        Ok(warned)
    }

    /// Waits until every pod of a namespace runs or has ended well, and gives how many there are.
    async fn wait_for_all_pods(&self, namespace: &str) -> Result<usize> {
        eventually(START_DEADLINE, || async {
            let pods = self.pods(namespace)?.list(&ListParams::default()).await?;
            let phase = |it: &Pod| it.status.clone().and_then(|it| it.phase).unwrap_or_default();
            let phases: Vec<_> = pods.iter().map(phase).collect();
            let run = phases.iter().all(|it| it == "Running" || it == "Succeeded");
            ensure!(run && !phases.is_empty(), "{phases:?}");
            Ok(phases.len())
        })
        .await
    }

    fn pods(&self, namespace: &str) -> Result<Api<Pod>> {
        Ok(Api::namespaced(self.0.client()?, namespace))
    }

    /// The phases of the servers' pods, by name.
    async fn servers(&self, namespace: &str) -> Result<Vec<(String, String)>> {
        let which = ListParams::default().labels("app.kubernetes.io/component=server");
        let pods = self.pods(namespace)?.list(&which).await?;
        let mut phases: Vec<_> = pods
            .into_iter()
            .map(|it| {
                let status = it.status.unwrap_or_default();
                let conditions = status.conditions.unwrap_or_default();
                let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
                let phase = status.phase.unwrap_or_default();
                let phase = if ready { format!("{phase} ready") } else { phase };
                (it.metadata.name.unwrap_or_default(), phase)
            })
            .collect();
        phases.sort();
        Ok(phases)
    }

    async fn wait_for_servers(&self, namespace: &str, phase: &str, wanted: usize) -> Result<()> {
        eventually(START_DEADLINE, || async {
            let found = self.servers(namespace).await?;
            let count = found.iter().filter(|(_, it)| it == phase).count();
            ensure!(count == wanted, "{count} are {phase}, want {wanted}: {found:?}");
            Ok(())
        })
        .await
    }

    /// Waits until asking whether a pod may be evicted is answered so. Clients of Kubernetes would
    /// wait and ask again.
    async fn wait_for_eviction(&self, namespace: &str, pod: &str, wanted: u16) -> Result<()> {
        let authority = reqwest::Certificate::from_pem(self.0.ca_pem().as_bytes())?;
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([authority]).build()?;
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}/eviction?dryRun=All");
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction",
            "metadata": {"name": pod, "namespace": namespace}});
        eventually(START_DEADLINE, || async {
            let request = client.post(format!("{}{path}", self.0.url()));
            let request = request.bearer_auth(self.0.admin_token());
            let request = request.header("Content-Type", "application/json");
            let answer = request.body(eviction.to_string()).send().await?;
            let status = answer.status().as_u16();
            ensure!(status == wanted, "{status}, want {wanted}: {}", answer.text().await?);
            Ok(())
        })
        .await
    }

    async fn scale(&self, namespace: &str, replicas: u8) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        let scale = ["scale", "statefulset/consul-server", &replicas, "--namespace", namespace];
        self.kubectl(&scale).await.map(drop)
    }

    async fn claims(&self, namespace: &str) -> Result<usize> {
        let list = ["get", "pvc", "--namespace", namespace, "--output=name"];
        let names = self.kubectl(&list).await?;
        Ok(names.lines().filter(|it| it.contains("data-consul-server-")).count())
    }
}

fn path(folder: &str) -> String {
    manifest(folder).display().to_string()
}

#[tokio::test]
async fn s3_s6_s16_both_commands_install_servers_that_scale_and_roll_on_a_real_api_server()
-> Result<()> {
    scenarios::run("install").await
}

pub async fn both_commands() -> Result<()> {
    let cluster = Cluster(Kubernetes::start(KubernetesOptions::default()).await?);
    cluster.volumes(16).await?;
    for namespace in ["consul-applied", "consul-created"] {
        cluster.namespace(namespace, "restricted").await?;
        make_secrets(&cluster.0, namespace).await?;
    }
    // Again, it makes nothing and changes nothing.
    let again = make_secrets(&cluster.0, "consul-applied").await?;
    ensure!(!again.contains("created") && !again.contains("configured"), "{again}");

    let folder = path("consul-servers");
    cluster.kubectl(&["apply", "-k", &folder, "--namespace=consul-applied"]).await?;
    let created = format!("{folder}/");
    cluster.kubectl(&["create", "-f", &created, "--namespace=consul-created"]).await?;

    // S6: on one node one of three runs, and the others say why they do not.
    cluster.wait_for_servers("consul-applied", "Running ready", 1).await?;
    cluster.wait_for_servers("consul-applied", "Pending", 2).await?;
    eventually(START_DEADLINE, || async {
        let pods = cluster.pods("consul-applied")?.list(&ListParams::default()).await?;
        let conditions = pods.into_iter().filter_map(|it| it.status?.conditions).flatten();
        let messages: Vec<_> = conditions.filter_map(|it| it.message).collect();
        ensure!(messages.iter().any(|it| it.contains("anti-affinity")), "{messages:?}");
        Ok(())
    })
    .await?;
    cluster.nodes(2..=5).await?;
    for namespace in ["consul-applied", "consul-created"] {
        cluster.wait_for_servers(namespace, "Running ready", 3).await?;
        // With the job's.
        ensure!(cluster.wait_for_all_pods(namespace).await? >= 4, "the job has no pod");
    }

    // The budget lets one go, and no second one while that is not back.
    cluster.0.set_pod_ready("consul-applied", "consul-server-1", false).await?;
    cluster.wait_for_eviction("consul-applied", "consul-server-2", 429).await?;
    cluster.0.set_pod_ready("consul-applied", "consul-server-1", true).await?;
    cluster.wait_for_eviction("consul-applied", "consul-server-2", 201).await?;

    // S3: 3 -> 5 -> 3, and the volumes are kept.
    cluster.scale("consul-applied", 5).await?;
    cluster.wait_for_servers("consul-applied", "Running ready", 5).await?;
    cluster.scale("consul-applied", 3).await?;
    cluster.wait_for_servers("consul-applied", "Running ready", 3).await?;
    ensure!(cluster.claims("consul-applied").await? == 5, "volumes are not kept");

    s16_a_typo_costs_one_pod(&cluster).await
}

/// A revision that never starts takes one pod, and the right one replaces it without help.
async fn s16_a_typo_costs_one_pod(cluster: &Cluster) -> Result<()> {
    let namespace = "consul-created";
    let selector = |value: &str| json!({"spec": {"template": {"spec": {"nodeSelector": {"kubernetes.io/hostname": value}}}}});
    let patch = |patch: String| async move {
        let arguments = ["patch", "statefulset/consul-server", "--namespace", namespace];
        let merge = ["--type=merge", "--patch", &patch];
        cluster.kubectl(&[&arguments[..], &merge].concat()).await.map(drop)
    };
    patch(selector("no-such-node").to_string()).await?;
    cluster.wait_for_servers(namespace, "Pending", 1).await?;
    // As long as a kubelet would take to say that an image is not there.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let stands = cluster.servers(namespace).await?;
    let ready = stands.iter().filter(|(_, phase)| phase == "Running ready").count();
    ensure!(ready == 2, "a typo has cost more than one: {stands:?}");
    patch(json!({"spec": {"template": {"spec": {"nodeSelector": null}}}}).to_string()).await?;
    cluster.wait_for_servers(namespace, "Running ready", 3).await?;
    let revision = ["rollout", "status", "statefulset/consul-server", "--timeout=60s"];
    cluster.kubectl(&[&revision[..], &["--namespace", namespace]].concat()).await.map(drop)
}

#[tokio::test]
async fn agents_and_overlays_are_taken_by_a_real_api_server() -> Result<()> {
    let cluster = Cluster(Kubernetes::start(KubernetesOptions::default()).await?);
    cluster.volumes(4).await?;
    // As docs/consul has it: servers beside the bridge, agents apart.
    cluster.0.apply_file(&manifest("base/namespace.yaml")).await?;
    make_secrets(&cluster.0, "kube-consul").await?;
    let single = path("consul-servers-single");
    cluster.kubectl(&["apply", "-k", &single, "--namespace=kube-consul"]).await?;
    let budgets = ["get", "pdb", "--namespace=kube-consul", "--output=name"];
    ensure!(cluster.kubectl(&budgets).await?.is_empty(), "one server has a budget");
    for (folder, deployment) in [
        ("with-consul-servers", "deployment/kube-consul"),
        ("with-consul-servers-catalog", "deployment/kube-consul"),
        ("with-consul-servers-import", "deployment/kube-consul-import"),
        ("with-consul-servers-node", "daemonset/kube-consul-node"),
    ] {
        let path = path(folder);
        let apply = ["apply", "--server-side", "--force-conflicts", "-k", &path];
        cluster.kubectl(&apply).await?;
        let status = ["rollout", "status", deployment, "--timeout=60s"];
        cluster.kubectl(&[&status[..], &["--namespace=kube-consul"]].concat()).await?;
    }
    cluster.wait_for_servers("kube-consul", "Running ready", 1).await?;
    cluster.wait_for_all_pods("kube-consul").await?;

    // Agents need what `restricted` refuses, which docs/consul/agents.md says, and their own Secrets.
    cluster.namespace("consul-agents", "privileged").await?;
    let warned = cluster.pod_security_warnings("consul-agents", "consul-agents").await?;
    let explained: BTreeSet<String> = ["hostPort", "restricted volume types", "runAsNonRoot"]
        .into_iter()
        .chain(["runAsUser=0", "unrestricted capabilities"])
        .map(str::to_owned)
        .collect();
    ensure!(warned == explained, "warned of {warned:?}, explained are {explained:?}");
    let script = path("consul/secrets");
    let copied = ["consul-ca", "consul-gossip", "consul-agent-acl", "consul-agent-tls"];
    let copy =
        [&["NAMESPACE=kube-consul", &script[..], "copy", "consul-agents"], &copied[..]].concat();
    run_with(&cluster.0, &copy).await?;
    let key =
        ["get", "secret", "consul-ca", "--namespace=consul-agents", "--output=jsonpath={.data}"];
    let data = cluster.kubectl(&key).await?;
    ensure!(data.contains("ca.crt") && !data.contains("tls.key"), "the CA's key is copied");
    let agents = path("consul-agents");
    cluster.kubectl(&["apply", "-k", &agents, "--namespace=consul-agents"]).await?;
    let status = ["rollout", "status", "daemonset/consul-agent", "--timeout=60s"];
    cluster.kubectl(&[&status[..], &["--namespace=consul-agents"]].concat()).await?;

    // S14: the DNS Service keeps its address when it was deleted and made again.
    let dns = path("consul-dns");
    let mut addresses = BTreeSet::new();
    for _ in 0..2 {
        cluster.kubectl(&["apply", "-k", &dns, "--namespace=kube-consul"]).await?;
        let of = ["get", "service", "consul-dns", "--namespace=kube-consul"];
        let address = [&of[..], &["--output=jsonpath={.spec.clusterIP}"]].concat();
        addresses.insert(cluster.kubectl(&address).await?.trim().to_owned());
        let delete = ["delete", "service", "consul-dns", "--namespace=kube-consul"];
        cluster.kubectl(&delete).await?;
    }
    ensure!(addresses == ["10.96.0.53".to_owned()].into(), "{addresses:?}");
    Ok(())
}
