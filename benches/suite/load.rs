//! The first sync into an empty Consul beside a loader of the same records, what it takes of the
//! machine, and a restart that finds everything in place.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use kube::Client;
use kube_consul_stack::{HttpRecorder, Recorded};
use serde::Deserialize;

use super::bridge::{Bridge, cpu};
use super::figure::{Figure, Goal};
use super::objects::ENDPOINTS;
use super::replay::{Request, Sender};
use super::{Bench, SCOPE, Scenario, consul, in_turn};

/// Requests of the loader at a time: more do not make a Consul on two cores faster.
pub const AT_A_TIME: usize = 8;
/// What is written, if anything is.
pub const WRITTEN: &str = "kube_consul_writes_total{record=\"registration\",result=\"applied\"}";
/// Of a page of a list, as the bridge asks for it.
const PAGE: usize = 500;

/// An address mode, which says how many registrations there are.
#[derive(Clone, Copy)]
struct Load {
    mode: &'static str,
    /// Registrations of each Service.
    each: usize,
    /// Goal of the memory at the peak, in MiB.
    peak: f64,
}

const LOADS: [Load; 2] = [
    Load { mode: "cluster-ip", each: 1, peak: 40.0 },
    Load { mode: "endpoints", each: ENDPOINTS, peak: 50.0 },
];

/// What the bridge did through a recorder.
struct Record {
    /// What it wrote into an empty Consul.
    writes: Vec<Request>,
    /// What it read when it was started again.
    reads: Vec<Request>,
}

/// What one side has shown in a round.
struct Shown {
    seconds: f64,
    cpu: f64,
    consul_cpu: f64,
    restart: f64,
}

/// Both address modes.
pub fn scenarios() -> Vec<Scenario> {
    let scenario = |load: Load| {
        let name = format!("first sync, --address {}", load.mode);
        let about = "into an empty Consul; the floor is a loader that sends the same transactions. \
                     Then a restart that finds all in place; its floor reads the same of both sides";
        Scenario::new(name, about, 12, move |bench, figures| {
            Box::pin(async move { Box::pin(load.measure(bench, figures)).await })
        })
    };
    LOADS.map(scenario).into()
}

// === impl Load ===

impl Load {
    fn count(&self, bench: &Bench) -> usize {
        bench.scale.services * self.each
    }

    async fn measure(&self, bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
        let options = [&SCOPE[..], &["--sink", "catalog", "--address", self.mode]].concat();
        let record = self.record(bench, &options).await?;
        let (mut floors, mut ours, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..bench.scale.rounds {
            let (floor, our) = in_turn(
                round,
                Box::pin(floor(bench, &record)),
                Box::pin(self.subject(bench, &options, &mut memory)),
            )
            .await?;
            floors.push(floor);
            ours.push(our);
        }
        self.report(bench, &floors, &ours, &memory, figures);
        Ok(())
    }

    /// The bridge: a first sync, and a restart.
    async fn subject(
        &self,
        bench: &Bench,
        options: &[&str],
        memory: &mut Vec<[f64; 3]>,
    ) -> Result<Shown> {
        let consul = consul().await?;
        let pid = consul.program().pid();
        let before = cpu(pid)?;
        let bridge = Bridge::start(bench, consul.url(), options).await?;
        bridge.wait_in_sync(self.count(bench)).await?;
        let (seconds, cpu_of_bridge) = (bridge.age().as_secs_f64(), bridge.cpu()?);
        let consul_cpu = cpu(pid)? - before;
        let first = bridge.memory()?;
        bridge.stop().await?;

        let bridge = Bridge::start(bench, consul.url(), options).await?;
        bridge.wait_in_sync(self.count(bench)).await?;
        let restart = bridge.age().as_secs_f64();
        ensure!(bridge.metric(WRITTEN).await? < 1.0, "it wrote something after a restart");
        memory.push([first.most, first.now, bridge.memory()?.most]);
        bridge.stop().await?;
        consul.stop().await?;
        Ok(Shown { seconds, cpu: cpu_of_bridge, consul_cpu, restart })
    }

    /// What the bridge sends in a first sync, and in a restart.
    async fn record(&self, bench: &Bench, options: &[&str]) -> Result<Record> {
        let consul = consul().await?;
        let recorder = HttpRecorder::start(consul.url()).await?;
        let bridge = Bridge::start(bench, &recorder.url(), options).await?;
        bridge.wait_in_sync(self.count(bench)).await?;
        bridge.stop().await?;
        let mut writes = recorder.writes();
        writes.retain(is_applied);
        // Without those that make nodes alone: each transaction sets its own.
        let writes = writes.iter().map(Request::from);
        let writes = writes.filter(|it| it.is_transaction() && it.names("\"Service\":")).collect();
        recorder.clear();
        let bridge = Bridge::start(bench, &recorder.url(), options).await?;
        bridge.wait_in_sync(self.count(bench)).await?;
        bridge.stop().await?;
        consul.stop().await?;
        let reads = recorder.requests();
        let reads = reads.iter().filter(|it| !it.is_write()).map(Request::from);
        Ok(Record { writes, reads: reads.filter(|it| !it.names("index=")).collect() })
    }

    fn report(
        &self,
        bench: &Bench,
        floors: &[Shown],
        ours: &[Shown],
        memory: &[[f64; 3]],
        figures: &mut Vec<Figure>,
    ) {
        let count = self.count(bench);
        let both = |row: &str, unit: &str, value: fn(&Shown) -> f64| {
            Figure::new(row, unit, ours.iter().map(value)).floor(floors.iter().map(value))
        };
        let row = format!("{count} registrations: from exec until all are there");
        figures.push(both(&row, "s", |it| it.seconds).goal(Goal::Ratio(1.2)));
        #[expect(clippy::cast_precision_loss, reason = "100,000 at most")]
        let each = ours.iter().map(|it| it.cpu * 1e6 / count as f64);
        figures.push(Figure::new("CPU of the bridge for one", "µs", each).goal(Goal::Most(15.0)));
        figures.push(both("CPU of Consul", "s", |it| it.consul_cpu));
        figures.push(
            both("restart, 0 writes: from exec until ready", "s", |it| it.restart)
                .goal(Goal::Ratio(1.3)),
        );
        let row = |row, place: usize| Figure::new(row, "MiB", memory.iter().map(|it| it[place]));
        figures.push(row("resident at the peak", 0).goal(Goal::Most(self.peak)));
        figures.push(row("resident after it", 1));
        figures.push(row("resident at the peak of a restart", 2).goal(Goal::Most(self.peak)));
    }
}

/// What was refused was sent again: two transactions may both make a node.
pub fn is_applied(request: &Recorded) -> bool {
    request.status.is_some_and(|status| status.is_success())
}

/// The loader, and a program that only reads what there is.
async fn floor(bench: &Bench, record: &Record) -> Result<Shown> {
    let consul = consul().await?;
    let (sender, pid) = (Sender::new(consul.url())?, consul.program().pid());
    let (before, began) = (cpu(pid)?, Instant::now());
    sender.send_all(&record.writes, AT_A_TIME).await?;
    let seconds = began.elapsed().as_secs_f64();
    let consul_cpu = cpu(pid)? - before;
    let client = bench.kubernetes.client()?;
    let began = Instant::now();
    tokio::try_join!(sender.send_all(&record.reads, AT_A_TIME), list_both(&client))?;
    let restart = began.elapsed().as_secs_f64();
    consul.stop().await?;
    Ok(Shown { seconds, cpu: 0.0, consul_cpu, restart })
}

/// Reads what the bridge lists.
pub async fn list_both(client: &Client) -> Result<()> {
    tokio::try_join!(
        list(client, "/api/v1/services"),
        list(client, "/apis/discovery.k8s.io/v1/endpointslices"),
    )?;
    Ok(())
}

/// Reads all pages of a list.
async fn list(client: &Client, path: &str) -> Result<()> {
    #[derive(Deserialize)]
    struct Page {
        metadata: Metadata,
    }
    #[derive(Deserialize)]
    struct Metadata {
        #[serde(rename = "continue")]
        more: Option<String>,
    }
    let mut next = String::new();
    loop {
        let uri = format!("{path}?limit={PAGE}&continue={next}");
        let text = client.request_text(http::Request::get(uri).body(Vec::new())?).await?;
        let page: Page =
            serde_json::from_str(&text).with_context(|| format!("a list of {path}"))?;
        match page.metadata.more.filter(|more| !more.is_empty()) {
            Some(more) => next = more,
            None => return Ok(()),
        }
    }
}
