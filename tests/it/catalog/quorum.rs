//! The Consul server that leads is killed, again and again.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::{ConsulOptions, Data};

use super::support::{Changes, any_tag, removes, wait_for_registered, watch_names};
use crate::support::{Bridge, DEADLINE, Fixture, numbered};

const CLUSTER: &str = "quorum";
/// Changes a second meanwhile.
const RATE: u32 = 20;
/// What got no answer is tried again after seconds and read back after 30 s.
const CONVERGED: Duration = Duration::from_secs(90);

#[tokio::test]
async fn the_leading_server_is_killed_three_times() -> Result<()> {
    let mut servers = Fixture::servers(ConsulOptions::server()).await?;
    let objects = servers.objects("quorum").await?;
    let names = numbered("svc", 60);
    objects.create_all(&names).await?;
    let command = servers.command(CLUSTER, &objects.namespace).await?.arg("--leader-elect");
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let fixture = (CLUSTER, objects.namespace.as_str());
    wait_for_registered(servers.api(), fixture, &any_tag(&names), DEADLINE).await?;

    servers.recorder().clear();
    let changes = Changes::start(&objects, &names, RATE);
    let mut restarted = None;
    for _ in 0..3 {
        servers.consul.wait_until_one_may_fail().await?;
        let leader = servers.consul.wait_for_leader().await?;
        // One that runs through, and that does not still catch up.
        let survivor = (0..3).find(|index| *index != leader && Some(*index) != restarted);
        let survivor = servers.consul.servers[survivor.unwrap_or_default()].api();
        let monitor = watch_names(survivor, fixture, &names).await?;
        let server = &mut servers.consul.servers[leader];
        server.kill().await?;
        let killed = Instant::now();
        let next = servers.consul.wait_for_leader().await?;
        println!("server {leader} killed, {next} leads after {:?}", killed.elapsed());
        let server = &mut servers.consul.servers[leader];
        server.restart(Data::Kept).await?;
        server.wait_ready().await?;
        restarted = Some(leader);
        monitor.finish_with_gaps("the leading server killed").await?;
    }
    let wanted = changes.finish().await?;
    ensure!(wanted.len() == names.len(), "{} were changed", wanted.len());
    let began = Instant::now();
    wait_for_registered(servers.api(), fixture, &wanted, CONVERGED).await?;
    println!("the last of the changes is there after {:?}", began.elapsed());
    let removals: Vec<_> = servers.recorder().writes().into_iter().filter(removes).collect();
    ensure!(removals.is_empty(), "{removals:#?}");
    bridge.wait_ready().await?;
    bridge.stop().await
}
