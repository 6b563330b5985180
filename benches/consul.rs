//! The catalog sink on a real Consul, one in memory and three servers with disks: how many
//! transactions at a time and how large are the fastest, and how soon a change of Kubernetes is in
//! Consul, beside the time that the API server takes to answer the change itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt as _};
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, Patch, PatchParams};
use kube_consul::consul::http::client::Client;
use kube_consul::consul::http::config::Config;
use kube_consul::consul::write::catalog::CatalogSink;
use kube_consul::domain::consul::node_names::NodeNames;
use kube_consul::domain::consul::record::{Answer, Check, Write};
use kube_consul::domain::kube::names::ClusterName;
use kube_consul_stack::{
    Consul, ConsulApi, ConsulCluster, ConsulOptions, Endpoint, Kubernetes, KubernetesOptions,
    Program, ProgramOptions, ServiceKind, eventually, install_provider,
};
use serde_json::json;

#[path = "../tests/it/catalog/registration.rs"]
mod registration;

use self::registration::registration;

const INSTANCES: usize = 10_000;
/// Transactions at a time, and groups in each.
const WAYS: [(usize, usize); 7] = [(1, 20), (4, 20), (8, 20), (16, 20), (1, 60), (4, 60), (8, 60)];
/// Services beside the one that changes, and how often it does.
const SERVICES: usize = 100;
const CHANGES: usize = 50;
const PORTS: [(&str, u16); 1] = [("http", 80)];
const DEADLINE: Duration = Duration::from_mins(1);

#[tokio::main]
async fn main() -> Result<()> {
    install_provider();
    let one = Consul::start(ConsulOptions::dev()).await?;
    let three = ConsulCluster::start().await?;
    let all = [("in memory", one.url()), ("three servers", three.servers[0].url())];
    for (what, url) in all {
        for (at_a_time, groups) in WAYS {
            let mut rates = Vec::new();
            for nodes in [2, 50] {
                rates.push(throughput(url, nodes, at_a_time, groups).await?);
            }
            println!(
                "{what}, {at_a_time} at a time, {groups} groups: {rates:.0?} instances a second on \
                 2 and on 50 nodes"
            );
        }
    }
    let kubernetes = Kubernetes::start(KubernetesOptions::default()).await?;
    for (what, url) in all {
        latency(&kubernetes, what, url).await?;
    }
    Ok(())
}

/// Instances a second, from nothing: what is there already costs less.
async fn throughput(url: &str, nodes: usize, at_a_time: usize, groups: usize) -> Result<f64> {
    let cluster: ClusterName = "c".parse()?;
    let api = ConsulApi::new(url, None, None)?;
    for node in 0..nodes {
        api.put("/v1/catalog/deregister", &json!({"Node": format!("k8s-c.ns{node}")})).await?;
    }
    let client = Client::new(&Config { address: url.parse()?, ..Config::default() })?;
    let sink = CatalogSink::new(client, cluster.clone(), NodeNames::new(&cluster, None));
    let write = |number: usize| {
        vec![Write::Register(registration(
            &format!("ns{}", number * nodes / INSTANCES),
            number,
            Check::None,
        ))]
    };
    let all: Vec<Vec<Write>> = (0..INSTANCES).map(write).collect();
    let began = Instant::now();
    let requests = all.chunks(groups).map(|some| sink.write(some.to_vec()));
    let answers = stream::iter(requests).buffer_unordered(at_a_time);
    let answers: Vec<_> = answers.flat_map(stream::iter).collect().await;
    let seconds = began.elapsed().as_secs_f64();
    let applied = |answer: &Answer| matches!(answer, Answer::Applied { .. });
    ensure!(answers.iter().all(|(_, answer)| applied(answer)), "not all were applied");
    #[expect(clippy::cast_precision_loss, reason = "ten thousand")]
    Ok(INSTANCES as f64 / seconds)
}

/// From a change in Kubernetes to its effect in Consul.
async fn latency(kubernetes: &Kubernetes, what: &str, consul: &str) -> Result<()> {
    let namespace = kubernetes.namespace("latency").await?;
    for number in 0..SERVICES {
        let name = format!("svc-{number}");
        let endpoints = [Endpoint::ready("10.1.0.1")];
        kubernetes.endpoint_slice(&namespace, &name, &name, &endpoints, &PORTS).await?;
        kubernetes.service(&namespace, &name, ServiceKind::Selectorless, &PORTS).await?;
    }
    let options = ProgramOptions::new(env!("CARGO_BIN_EXE_kube-consul"))
        .args(["bridge", "--sink", "catalog", "--admin-addr=127.0.0.1:0"])
        .args(["--namespace", &namespace])
        .arg(format!("--kubeconfig={}", kubernetes.kubeconfig().display()))
        .env("CONSUL_HTTP_ADDR", consul);
    let bridge = Program::start("kube-consul", options).await?;
    let api = ConsulApi::new(consul, None, None)?;
    let services = Api::<Service>::namespaced(kubernetes.client()?, &namespace);
    let path = "/v1/health/service/svc-50";
    eventually(DEADLINE, || async {
        ensure!(api.get(path).await?[0].is_object(), "it is not registered");
        Ok(())
    })
    .await?;
    let mut times = Vec::new();
    for number in 0..CHANGES {
        let tag = format!("change-{number}-");
        let annotations = json!({"kube-consul.io/service-tags": tag});
        let change = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        let began = Instant::now();
        services.patch("svc-50", &PatchParams::default(), &change).await?;
        let answered = began.elapsed();
        while !api.get(path).await?.to_string().contains(&tag) {}
        times.push((began.elapsed(), answered));
    }
    times.sort();
    let (all, answered) = times[times.len() / 2];
    println!("{what}: visible after {all:?} at the median, {answered:?} of it the API server's");
    println!("{what}: fastest {:?}, slowest {:?}", times[0].0, times[times.len() - 1].0);
    bridge.stop(DEADLINE).await
}
