//! The pod's bridge and agent come and go, and no name is missed for a moment: the agents run
//! with the shipped configuration, and somebody asks the server's DNS all the time.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::A;
use kube_consul_stack::{Consul, ConsulOptions, Endpoint, ServiceKind, eventually};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::support::{Bridge, DEADLINE, Dns, Place, manifest};

/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(10);
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
    async fn start(place: &Place) -> Result<Self> {
        let path = manifest("base/agent.json");
        let shipped = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let options = ConsulOptions::client([&place.consul]).configuration(shipped);
        let agent = Consul::start(options).await?;
        let command = place.command().await?.env("CONSUL_HTTP_ADDR", agent.url());
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

/// Asks for names every 10 ms, whose answers must stay as they are.
struct Poller {
    task: JoinHandle<Result<Asked>>,
    stop: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Asked {
    questions: usize,
    longest: Duration,
    wrong: Vec<String>,
}

impl Poller {
    fn start(dns: Dns, wanted: BTreeMap<String, Vec<String>>) -> Self {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut asked = Asked::default();
            loop {
                let last = stopped.try_recv().is_ok();
                let began = Instant::now();
                for (name, wanted) in &wanted {
                    let found = dns.ask(name, A).await?;
                    if found != *wanted {
                        asked.wrong.push(format!("{name}: {found:?}, want {wanted:?}"));
                    }
                    asked.questions += 1;
                }
                asked.longest = asked.longest.max(began.elapsed());
                if last {
                    return Ok(asked);
                }
                sleep(ASK_EVERY.saturating_sub(began.elapsed())).await;
            }
        });
        Self { task, stop }
    }

    /// Ends it a while later; an error if any answer was another.
    async fn finish(self) -> Result<()> {
        sleep(AFTERWARDS).await;
        ensure!(self.stop.send(()).is_ok(), "the poller ended early: {:?}", self.task.await?);
        let asked = self.task.await??;
        println!("{} questions, a round took {:?} at most", asked.questions, asked.longest);
        ensure!(asked.wrong.is_empty(), "{} of {}: {asked:?}", asked.wrong.len(), asked.questions);
        Ok(())
    }
}

/// A Service with a `ClusterIP` and a headless one, and the answers for them.
async fn services(place: &Place) -> Result<BTreeMap<String, Vec<String>>> {
    place.web("web", &[("http", 80)]).await?;
    let addresses = ["10.1.0.1", "10.1.0.2", "10.1.0.3"];
    let endpoints = addresses.map(Endpoint::ready);
    place.endpoints("db", &endpoints, &[("sql", 5432)]).await?;
    let kind = ServiceKind::HeadlessSelectorless;
    place.kubernetes.service(&place.namespace, "db", kind, &[("sql", 5432)]).await?;
    Ok(BTreeMap::from([
        ("web.service.consul".to_owned(), vec![place.cluster_ip("web").await?]),
        ("db.service.consul".to_owned(), addresses.map(ToOwned::to_owned).to_vec()),
    ]))
}

/// Waits until the catalog has this many agents that are not the server.
async fn wait_for_agents(place: &Place, wanted: usize) -> Result<()> {
    eventually(LEAVE_DEADLINE, || async {
        let nodes = place.consul.api().get("/v1/catalog/nodes").await?;
        let found = nodes.as_array().map_or(0, Vec::len).saturating_sub(1);
        ensure!(found == wanted, "{found} agents, want {wanted}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_rollout_misses_no_name() -> Result<()> {
    let place = Place::new("rollout").await?;
    let wanted = services(&place).await?;
    let old = Pair::start(&place).await?;
    let poller = Poller::start(place.dns()?, wanted);
    let _new = Pair::start(&place).await?;
    old.end().await?;
    // It has left: its records are gone already, not only after it has been missed for long.
    wait_for_agents(&place, 1).await?;
    poller.finish().await
}

#[tokio::test]
async fn a_pair_that_is_gone_without_a_word_is_not_missed() -> Result<()> {
    let place = Place::new("gone").await?;
    let wanted = services(&place).await?;
    let (gone, _stays) = tokio::try_join!(Pair::start(&place), Pair::start(&place))?;
    place.wait_for_instances("web", 2).await?;
    let poller = Poller::start(place.dns()?, wanted);
    let health = format!("/v1/health/node/{}", gone.agent.node());
    gone.kill().await?;
    eventually(DEADLINE, || async {
        let checks = place.consul.api().get(&health).await?;
        let critical = checks.as_array().into_iter().flatten().any(|it| it["Status"] == "critical");
        ensure!(critical, "nobody noticed: {checks}");
        Ok(())
    })
    .await?;
    poller.finish().await
}
