//! etcd restored from a backup: the cluster is again what it was then, and its version is older
//! than what every watch has seen.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{
    Consul, ConsulOptions, KubectlProxy, Kubernetes, KubernetesOptions, ProgramOptions, eventually,
};

use super::{Instance, Shown, instances, numbered, shown};
use crate::support::{Bridge, DEADLINE, Objects, kube_consul, shipped_token};

/// How soon Consul has to be right after the API server's return.
const RIGHT_WITHIN: Duration = Duration::from_secs(10);

const NAMESPACE: &str = "default";

/// A bridge and its Consul.
struct Pair {
    what: &'static str,
    consul: Consul,
    bridge: Bridge,
}

impl Pair {
    async fn start(what: &'static str, flags: &[&str], access: [&Path; 2]) -> Result<Self> {
        let consul = Consul::start(ConsulOptions::dev()).await?;
        let command: ProgramOptions = kube_consul()
            .args(["bridge", "--namespace", NAMESPACE])
            .args(flags)
            .args(access)
            .env("CONSUL_HTTP_ADDR", consul.url());
        let bridge = Bridge::start(command).await?;
        bridge.wait_ready().await?;
        Ok(Self { what, consul, bridge })
    }

    /// What Consul shows of the Services; the bridge has one node there, or one for the namespace.
    async fn shown(&self) -> Result<Shown> {
        let mut shown = shown(&self.consul).await?;
        let api = self.consul.api();
        shown.instances.extend(instances(api, &format!("k8s-kubernetes.{NAMESPACE}")).await?);
        Ok(shown)
    }

    /// What it shows once as many instances as these were changed or added.
    async fn changed_from(&self, before: &Shown, changes: usize) -> Result<Shown> {
        eventually(DEADLINE, || async {
            let now = self.shown().await?;
            let is_new = |(id, it): &(&String, &Instance)| before.instances.get(*id) != Some(*it);
            let found = now.instances.iter().filter(is_new).count();
            ensure!(found == changes, "{}: {found} changes, want {changes}", self.what);
            Ok(now)
        })
        .await
    }
}

/// What Consul shows of the Services: name, port, tags, health.
fn values(shown: &Shown) -> BTreeSet<String> {
    shown.instances.values().map(|instance| format!("{instance:?}")).collect()
}

/// Waits until each Consul shows what it did at the time of the backup.
async fn wait_until_right(pairs: &[Pair], before: &[Shown], back: Instant) -> Result<()> {
    let waits = pairs.iter().zip(before).map(|(pair, before)| async move {
        eventually(DEADLINE, || async {
            let found = pair.shown().await?;
            ensure!(
                values(&found) == values(before) && found.reverse == before.reverse,
                "{}: {found:#?}, want {before:#?}",
                pair.what
            );
            Ok(())
        })
        .await?;
        let took = back.elapsed();
        println!("{}: right {took:?} after the API server's return", pair.what);
        ensure!(took <= RIGHT_WITHIN, "{}: right only after {took:?}", pair.what);
        Ok(())
    });
    futures::future::try_join_all(waits).await.map(drop)
}

#[tokio::test]
async fn l1_a_restored_etcd_is_noticed_with_both_sinks_and_through_kubectl_proxy() -> Result<()> {
    let mut cluster = Kubernetes::start(KubernetesOptions::default()).await?;
    let kubeconfig = cluster.kubeconfig_for(&shipped_token(&cluster).await?)?;
    let proxy = KubectlProxy::start(&kubeconfig).await?;
    let objects = Objects::new(&cluster.client()?, NAMESPACE);
    objects.create_all(&Vec::from_iter(numbered("svc", 0..30))).await?;
    for name in numbered("svc", 0..5) {
        objects.tag(&name, "saved").await?;
    }

    let by_file = [Path::new("--kubeconfig"), &kubeconfig];
    let url = proxy.url();
    let by_proxy = [Path::new("--kube-url"), Path::new(&url)];
    let pairs = [
        Pair::start("agent sink", &[], by_file).await?,
        Pair::start("catalog sink", &["--sink", "catalog"], by_file).await?,
        Pair::start("agent sink, kubectl proxy", &[], by_proxy).await?,
    ];
    let mut saved = Vec::new();
    for pair in &pairs {
        saved.push(pair.shown().await?);
    }
    let backup = cluster.back_up().await?;

    // What the backup does not know: Services deleted, made, and changed in tags and readiness.
    for name in numbered("svc", 25..30) {
        objects.delete(&name).await?;
    }
    objects.create_all(&Vec::from_iter(numbered("new", 0..5))).await?;
    for name in numbered("svc", 0..10) {
        objects.tag(&name, "later").await?;
    }
    for name in numbered("svc", 10..12) {
        objects.set_ready(&name, &(vec!["10.1.0.1".to_owned()], false)).await?;
    }
    let changed = values(&pairs[0].changed_from(&saved[0], 17).await?);
    for (pair, saved) in pairs.iter().zip(&saved) {
        let found = values(&pair.changed_from(saved, 17).await?);
        ensure!(found == changed, "{}: {found:#?}, want {changed:#?}", pair.what);
    }

    let gone = Instant::now();
    let back = cluster.restore(&backup).await?;
    println!("the API server was away for {:?}", back - gone);
    ensure!(back - gone < Duration::from_secs(15), "away for {:?}", back - gone);
    wait_until_right(&pairs, &saved, back).await?;
    for pair in &pairs {
        pair.bridge.wait_ready().await?;
        ensure!(pair.bridge.program.exit_status().is_none(), "{} ended", pair.what);
    }
    cluster.stop().await
}

#[tokio::test]
async fn l1_what_most_of_a_restored_etcd_lacks_is_confirmed_before_it_is_removed() -> Result<()> {
    let mut cluster = Kubernetes::start(KubernetesOptions::default()).await?;
    let kubeconfig = cluster.kubeconfig_for(&shipped_token(&cluster).await?)?;
    let objects = Objects::new(&cluster.client()?, NAMESPACE);
    objects.create_all(&Vec::from_iter(numbered("old", 0..3))).await?;
    let by_file = [Path::new("--kubeconfig"), &kubeconfig];
    let pair = Pair::start("agent sink", &[], by_file).await?;
    let saved = pair.shown().await?;
    let backup = cluster.back_up().await?;
    objects.create_all(&Vec::from_iter(numbered("new", 0..30))).await?;
    pair.changed_from(&saved, 30).await?;

    cluster.restore(&backup).await?;
    eventually(DEADLINE, || async {
        let found = pair.shown().await?;
        ensure!(found == saved, "{found:#?}, want {saved:#?}");
        Ok(())
    })
    .await?;
    // The log has it in its order, however late anybody looks.
    let log = pair.bridge.program.stderr();
    let place = |text: &str| {
        log.find(text).with_context(|| pair.bridge.program.failure(&format!("no line {text:?}")))
    };
    let steps = [
        place("held back, until a second list agrees")?,
        place("looking a second time")?,
        place("what was held back is removed")?,
        place("nothing is registered any more")?,
    ];
    ensure!(steps.is_sorted(), "in another order: {steps:?}");
    cluster.stop().await
}
