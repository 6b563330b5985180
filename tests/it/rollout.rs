//! The pod's bridge and agent come and go, and no name is missed for a moment: the agents run
//! with the shipped configuration, and somebody asks the server's DNS all the time.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::A;
use kube_consul_stack::{Consul, ConsulOptions, Endpoint, ServiceKind, eventually};
use tokio::time::sleep;

use crate::support::{Bridge, DEADLINE, Dns, Fixture, InvariantMonitor, manifest};

/// How long it goes on after what was done: longer than gossip and the servers take for it.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// Leaving takes the agent seconds. A sync of its that falls into them brings its records back,
/// until the servers compare the catalog with their members, every minute.
const LEAVE_DEADLINE: Duration = Duration::from_secs(90);

/// What runs in one pod.
struct Pair {
    agent: Consul,
    bridge: Bridge,
}

impl Pair {
    /// Starts it and waits until the pod would be ready.
    async fn start(fixture: &Fixture) -> Result<Self> {
        let path = manifest("base/agent.json");
        let shipped = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let options = ConsulOptions::client([&fixture.consul]).configuration(shipped);
        let agent = Consul::start(options).await?;
        let command = fixture.command().await?.env("CONSUL_HTTP_ADDR", agent.url());
        let bridge = Bridge::start(command).await?;
        bridge.wait_ready().await?;
        Ok(Self { agent, bridge })
    }

    /// The end of a pod: sidecars are told after the container beside them has ended.
    async fn end(self) -> Result<()> {
        self.bridge.stop().await?;
        self.agent.stop().await
    }

    /// SIGKILL for both at once, as when the machine is gone.
    async fn kill(self) -> Result<()> {
        tokio::try_join!(self.bridge.program.kill(), self.agent.kill()).map(drop)
    }
}

/// Asks for names all the time, whose answers must stay as they are.
fn ask_for(dns: Dns, wanted: BTreeMap<String, Vec<String>>) -> InvariantMonitor {
    let asked = Arc::new((dns, wanted));
    InvariantMonitor::start(move || {
        let asked = Arc::clone(&asked);
        async move {
            let (dns, wanted) = &*asked;
            let mut wrong = Vec::new();
            for (name, wanted) in wanted {
                let found = dns.ask(name, A).await?;
                if found != *wanted {
                    wrong.push(format!("{name}: {found:?}, want {wanted:?}"));
                }
            }
            Ok(wrong)
        }
    })
}

/// Ends it a while later; an error if any answer was another.
async fn finish(monitor: InvariantMonitor) -> Result<()> {
    sleep(AFTERWARDS).await;
    monitor.finish("who asks for names").await
}

/// A Service with a `ClusterIP` and a headless one, and the answers for them.
async fn services(fixture: &Fixture) -> Result<BTreeMap<String, Vec<String>>> {
    fixture.web("web", &[("http", 80)]).await?;
    let addresses = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
    let endpoints = addresses.map(Endpoint::ready);
    fixture.endpoints("db", &endpoints, &[("sql", 5432)]).await?;
    let kind = ServiceKind::HeadlessSelectorless;
    fixture.kubernetes.service(&fixture.namespace, "db", kind, &[("sql", 5432)]).await?;
    Ok(BTreeMap::from([
        ("web.service.consul".to_owned(), vec![fixture.cluster_ip("web").await?]),
        ("db.service.consul".to_owned(), addresses.map(ToOwned::to_owned).to_vec()),
    ]))
}

/// Waits until the catalog has this many agents that are not the server.
async fn wait_for_agents(fixture: &Fixture, wanted: usize) -> Result<()> {
    eventually(LEAVE_DEADLINE, || async {
        let nodes = fixture.consul.api().get("/v1/catalog/nodes").await?;
        let found = nodes.as_array().map_or(0, Vec::len).saturating_sub(1);
        ensure!(found == wanted, "{found} agents, want {wanted}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_rollout_misses_no_name() -> Result<()> {
    let fixture = Fixture::new("rollout").await?;
    let wanted = services(&fixture).await?;
    let old = Pair::start(&fixture).await?;
    let monitor = ask_for(fixture.dns()?, wanted);
    let _new = Pair::start(&fixture).await?;
    old.end().await?;
    // It has left: its records are gone already, not only after it has been missed for long.
    wait_for_agents(&fixture, 1).await?;
    finish(monitor).await
}

#[tokio::test]
async fn a_pair_that_is_gone_without_a_word_is_not_missed() -> Result<()> {
    let fixture = Fixture::new("gone").await?;
    let wanted = services(&fixture).await?;
    let (gone, _stays) = tokio::try_join!(Pair::start(&fixture), Pair::start(&fixture))?;
    fixture.wait_for_instances("web", 2).await?;
    let monitor = ask_for(fixture.dns()?, wanted);
    let health = format!("/v1/health/node/{}", gone.agent.node());
    gone.kill().await?;
    eventually(DEADLINE, || async {
        let checks = fixture.consul.api().get(&health).await?;
        let critical = checks.as_array().into_iter().flatten().any(|it| it["Status"] == "critical");
        ensure!(critical, "nobody noticed: {checks}");
        Ok(())
    })
    .await?;
    finish(monitor).await
}
