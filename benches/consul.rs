//! The catalog sink on a real Consul, one in memory and three servers with disks: how many
//! transactions at a time and how large are the fastest.

use std::time::Instant;

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt as _};
use kube_consul::consul::http::client::Client;
use kube_consul::consul::http::config::Config;
use kube_consul::consul::write::catalog::CatalogSink;
use kube_consul::domain::consul::node_names::NodeNames;
use kube_consul::domain::consul::record::{Answer, Check, Write};
use kube_consul::domain::kube::names::ClusterName;
use kube_consul_stack::{Consul, ConsulApi, ConsulCluster, ConsulOptions, install_provider};
use serde_json::json;

#[path = "../tests/it/catalog/registration.rs"]
mod registration;

use self::registration::registration;

const INSTANCES: usize = 10_000;
/// Transactions at a time, and groups in each.
const WAYS: [(usize, usize); 7] = [(1, 20), (4, 20), (8, 20), (16, 20), (1, 60), (4, 60), (8, 60)];

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
