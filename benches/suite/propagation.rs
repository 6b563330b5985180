//! From the API server's acknowledgement of a change until Consul shows it, beside a bare watch that
//! sends the same requests, in turns.

use anyhow::{Result, ensure};
use kube_consul_stack::HttpRecorder;

use super::bridge::Bridge;
use super::change::{Change, SETUP};
use super::figure::{Figure, Goal, quantile};
use super::floor::{CLUSTER, Floor, Template, Templates};
use super::prober::{Pace, Prober, Via};
use super::replay::Request;
use super::{Bench, FLOOR, PROBES, Scenario, consul, in_turn, objects};

/// Instances in the agent beside the probes: more are not for an agent.
const IN_AGENT: usize = 500;
/// Rounds that the templates were recorded in; the measured ones come after them.
const RECORDED: usize = 2;

/// Where changes are made.
#[derive(Clone, Copy)]
struct Setting {
    sink: &'static str,
    resident: usize,
    phases: &'static [Phase],
}

/// Some changes at one pace.
#[derive(Clone, Copy)]
struct Phase {
    pace: Pace,
    changes: &'static [Change],
}

const fn phase(rate: u32, changes: usize, kinds: &'static [Change]) -> Phase {
    Phase { pace: Pace { rate, changes, via: Via::Health }, changes: kinds }
}

/// Most of what is asked, with all Services resident.
const PHASES: [Phase; 4] = [
    phase(50, 100, &Change::ALL),
    phase(200, 200, &Change::ALL),
    phase(1, 3, &[Change::Ready, Change::TurnsUnready, Change::Delete]),
    Phase {
        pace: Pace { rate: 20, changes: 20, via: Via::Dns },
        changes: &[Change::Ready, Change::TurnsUnready, Change::TurnsReady, Change::Delete],
    },
];

const SETTINGS: [Setting; 3] = [
    Setting { sink: "catalog", resident: objects::SERVICES, phases: &PHASES },
    Setting {
        sink: "catalog",
        resident: objects::SERVICES / objects::NAMESPACES,
        phases: &[phase(50, 50, &Change::ALL)],
    },
    Setting { sink: "agent", resident: IN_AGENT, phases: &[phase(50, 50, &Change::ALL)] },
];

/// One for each setting.
pub fn scenarios() -> Vec<Scenario> {
    let scenario = |setting: Setting| {
        let Setting { sink, resident, .. } = setting;
        let name = format!("propagation, {sink} sink, {resident} Services resident");
        let about = "from the API server's answer to a change until Consul shows it; the floor is a \
                     bare watch that answers each event with the same request";
        Scenario::new(name, about, 10, move |bench, figures| {
            Box::pin(async move { setting.measure(bench, figures).await })
        })
    };
    SETTINGS.map(scenario).into()
}

// === impl Setting ===

impl Setting {
    /// Services that the bridge sees besides the probes.
    fn resident(&self, bench: &Bench) -> usize {
        self.resident.min(bench.scale.services)
    }

    /// Which namespaces the bridge sees.
    fn options(&self, bench: &Bench) -> Vec<String> {
        let mut options = vec![format!("--sink={}", self.sink), format!("--cluster={CLUSTER}")];
        let resident = self.resident(bench);
        if resident == bench.scale.services {
            options.push(format!("--deny-namespace={FLOOR}"));
            return options;
        }
        let seen = (0..resident / bench.scale.per_namespace()).map(objects::namespace);
        let seen = seen.chain([PROBES.to_owned()]);
        options.extend(seen.map(|name| format!("--namespace={name}")));
        options
    }

    async fn measure(&self, bench: &Bench, figures: &mut Vec<Figure>) -> Result<()> {
        let options = self.options(bench);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let resident = self.resident(bench);
        let consul = consul().await?;
        for namespace in [FLOOR, PROBES] {
            Prober::new(&bench.kubernetes, &consul, namespace)?.clean().await?;
        }
        let recorder = HttpRecorder::start(consul.url()).await?;
        let bridge = Bridge::start(bench, &recorder.url(), &options).await?;
        bridge.wait_in_sync(resident).await?;
        let ours = Prober::new(&bench.kubernetes, &consul, PROBES)?;
        let templates = templates(&ours, &recorder, &bridge).await?;
        bridge.stop().await?;

        let bridge = Bridge::start(bench, consul.url(), &options).await?;
        bridge.wait_in_sync(resident).await?;
        let floor = Floor::start(bench.kubernetes.client()?, consul.url(), templates).await?;
        let floors = Prober::new(&bench.kubernetes, &consul, FLOOR)?;
        let mut first = RECORDED;
        for phase in self.phases {
            phase.measure(self, bench, &bridge, [&floors, &ours], first, figures).await?;
            first += bench.scale.rounds;
        }
        drop(floor);
        bridge.stop().await?;
        consul.stop().await
    }
}

// === impl Phase ===

impl Phase {
    async fn measure(
        &self,
        setting: &Setting,
        bench: &Bench,
        bridge: &Bridge,
        [floors, ours]: [&Prober; 2],
        first: usize,
        figures: &mut Vec<Figure>,
    ) -> Result<()> {
        let mut pace = self.pace;
        if bench.scale.smallest {
            pace = Pace { rate: 50, changes: 4, ..pace };
        }
        // Each change follows the one before on both sides, so a round is one of all of them.
        let mut of_floor = vec![Vec::new(); self.changes.len()];
        let mut of_ours = of_floor.clone();
        let mut cpu = Vec::new();
        for round in 0..bench.scale.rounds {
            for (place, change) in self.changes.iter().enumerate() {
                let number = first + round;
                let before = bridge.cpu()?;
                let (floor, our) = in_turn(
                    round + place,
                    floors.round(*change, number, pace),
                    ours.round(*change, number, pace),
                )
                .await?;
                of_floor[place].push(floor);
                of_ours[place].push(our);
                if *change == Change::Endpoint {
                    #[expect(clippy::cast_precision_loss, reason = "hundreds")]
                    cpu.push((bridge.cpu()? - before) * 1e3 / pace.changes as f64);
                }
                for side in [floors, ours] {
                    side.tidy(*change, number, pace).await?;
                }
            }
        }
        for (change, (floor, ours)) in self.changes.iter().zip(of_floor.iter().zip(&of_ours)) {
            for (name, at) in [("p50", 0.5), ("p99", 0.99)] {
                figures.push(self.figure(setting, *change, (name, at), floor, ours));
            }
        }
        if !cpu.is_empty() {
            let row = format!("another endpoint, {} a second: CPU of the bridge", self.pace.rate);
            figures.push(Figure::new(row, "ms", cpu));
        }
        Ok(())
    }

    fn figure(
        &self,
        setting: &Setting,
        change: Change,
        (name, at): (&str, f64),
        floor: &[Vec<f64>],
        ours: &[Vec<f64>],
    ) -> Figure {
        let Pace { rate, via, .. } = self.pace;
        let dns = if via == Via::Dns { ", DNS" } else { "" };
        let row = format!("{}, {rate} a second{dns}: {name}", change.words());
        let of = |rounds: &[Vec<f64>]| -> Vec<f64> {
            rounds.iter().map(|round| quantile(round, at)).collect()
        };
        let figure = Figure::new(row, "ms", of(ours)).floor(of(floor));
        match goal(setting.sink, change, name) {
            Some(goal) if rate == 50 => figure.goal(Goal::Ratio(goal)),
            _ => figure,
        }
    }
}

/// What the ratio is to be.
fn goal(sink: &str, change: Change, quantile: &str) -> Option<f64> {
    let is_plain = matches!(change, Change::Ready | Change::Endpoint);
    match (sink, quantile) {
        ("agent", "p50") => Some(1.5),
        ("catalog", "p50") if is_plain => Some(1.15),
        ("catalog", "p99") if is_plain => Some(1.5),
        ("catalog", "p50") if change != Change::Delete => Some(1.3),
        _ => None,
    }
}

/// What the bridge sends for each kind of change.
async fn templates(prober: &Prober, recorder: &HttpRecorder, bridge: &Bridge) -> Result<Templates> {
    let pace = Pace { rate: 50, changes: 1, via: Via::Health };
    // The first makes the node of the namespace too, which the others find. It stays: with its last
    // instance a node would go.
    prober.round(Change::Ready, 0, pace).await?;
    let mut templates = Templates::new();
    for change in Change::ALL {
        let probe = prober.probe(change, 1, 0);
        let sent = async |addresses| {
            bridge.wait_idle().await?;
            let writes = recorder.writes();
            recorder.clear();
            let requests = writes.iter().map(Request::from);
            let requests: Vec<_> = requests.filter(|it| it.names(&probe.service)).collect();
            ensure!(!requests.is_empty(), "the bridge sent nothing for {change:?}");
            anyhow::Ok(Template { requests, service: probe.service.clone(), addresses })
        };
        recorder.clear();
        if change == Change::Endpoint {
            // What it begins with is not what is asked.
            prober.prepare(change, &probe).await?;
            let all = probe.addresses(&probe.endpoint(200));
            templates.insert(SETUP.to_owned(), sent(all).await?);
        }
        let addresses = prober.addresses(change, &probe);
        prober.round(change, 1, pace).await?;
        let addresses = addresses.or_else(|_| prober.addresses(change, &probe))?;
        templates.insert(change.name().to_owned(), sent(addresses).await?);
    }
    Ok(templates)
}
