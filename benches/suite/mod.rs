//! What the program costs on a real API server and a real Consul.
//!
//! Times are shown as a ratio to a floor that is measured in the same run, in turns with it: what else
//! the machine does harms both alike. The floor of a change is a bare watch that answers each event
//! with a bare request, that of a load sends what the bridge sent as fast as it can; both send the same
//! records, recorded from the bridge. What does not depend on the machine is counted in instructions.
//!
//! | file | what it is |
//! |---|---|
//! | `figure`, `report`, `plot` | a row, the table, JSON and SVG |
//! | `bridge` | a running program, its CPU and memory |
//! | `replay`, `floor` | what the bridge sent, sent again; the bare watch |
//! | `change`, `prober`, `propagation` | from a change until Consul shows it |
//! | `load`, `memory` | the first sync, a restart; memory of other sizes |
//! | `cost` | CPU at rest, under changes, by what is resident, and in instructions |
//! | `crowds` | much at once: a large Service, deletions, a lost node |
//! | `faults` | a relist, a server that is lost |
//! | `simulated` | an API server that has any number of Services |
//! | `tools` | the hook, `plan` and `purge`, the program's size |
//! | `daemons` | `node` and `import` |
//!
//! In its smallest form each scenario only shows that it works: the integration tests run it, so that
//! it cannot rot. Nothing follows from its figures.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use futures::future::LocalBoxFuture;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use kube_consul_stack::{Consul, ConsulOptions, Kubernetes, KubernetesOptions};

mod bridge;
mod change;
mod cost;
mod crowds;
mod daemons;
mod faults;
pub mod figure;
mod floor;
mod load;
#[path = "../objects/mod.rs"]
mod objects;
mod plot;
mod prober;
mod propagation;
mod replay;
pub mod report;
mod simulated;
mod tools;

use self::figure::Figure;
use self::report::Report;

/// Of a whole run. What is not begun by then is reported as not measured: half an hour is promised.
const BUDGET: Duration = Duration::from_mins(30);
/// Requests at once while the cluster is made: more do not make an API server on two cores faster.
const AT_ONCE: usize = 32;

/// The namespace of what is changed for the bridge.
const PROBES: &str = "probe-ours";
/// The namespace of what is changed for the floor.
const FLOOR: &str = "probe-base";
/// What keeps both out.
const SCOPE: [&str; 4] = ["--deny-namespace", PROBES, "--deny-namespace", FLOOR];

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Scale {
    /// Rounds of each figure.
    pub rounds: usize,
    /// Services of the cluster.
    pub services: usize,
    /// Namespaces that they are in.
    pub namespaces: usize,
    /// Whether only that it works is of interest.
    pub smallest: bool,
    /// The program that is measured.
    pub program: PathBuf,
}

/// What is measured of one thing: it gives rows of the table.
pub struct Scenario {
    /// By which it is selected, and the heading of its rows.
    pub name: String,
    /// What it measures, and its floor.
    pub about: &'static str,
    /// How long it may take.
    pub limit: Duration,
    measure: Box<Measure>,
}

type Measure = dyn for<'a> Fn(&'a Bench, &'a mut Vec<Figure>) -> LocalBoxFuture<'a, Result<()>>;

/// What scenarios share.
pub struct Bench {
    /// With the Services of [`objects`].
    pub kubernetes: Kubernetes,
    /// How much is measured.
    pub scale: Scale,
}

/// The scenarios that are asked for.
pub struct Suite {
    scale: Scale,
    scenarios: Vec<Scenario>,
    whole: bool,
}

// === impl Scale ===

impl Scale {
    /// What the documentation has.
    pub fn whole(program: PathBuf) -> Self {
        let (services, namespaces) = (objects::SERVICES, objects::NAMESPACES);
        Self { rounds: 5, services, namespaces, smallest: false, program }
    }

    /// What shows that it works.
    pub fn smallest(program: PathBuf) -> Self {
        Self { rounds: 1, services: 20, namespaces: 20, smallest: true, program }
    }

    /// One number in whole runs, another in the smallest.
    pub fn or<T>(&self, whole: T, smallest: T) -> T {
        if self.smallest { smallest } else { whole }
    }

    /// Services of one namespace.
    pub fn per_namespace(&self) -> usize {
        self.services / self.namespaces
    }
}

// === impl Scenario ===

impl Scenario {
    fn new<F>(name: impl Into<String>, about: &'static str, minutes: u64, measure: F) -> Self
    where
        F: for<'a> Fn(&'a Bench, &'a mut Vec<Figure>) -> LocalBoxFuture<'a, Result<()>> + 'static,
    {
        let limit = Duration::from_mins(minutes);
        Self { name: name.into(), about, limit, measure: Box::new(measure) }
    }

    /// Its rows; those that it had before it failed, with the reason.
    async fn run(&self, bench: &Bench) -> (Vec<Figure>, Result<()>) {
        let mut figures = Vec::new();
        let measured = tokio::time::timeout(self.limit, (self.measure)(bench, &mut figures)).await;
        let mut measured =
            measured.unwrap_or_else(|_| Err(anyhow!("not done within {:?}", self.limit)));
        if measured.is_ok() && figures.is_empty() {
            measured = Err(anyhow!("it has given no rows"));
        }
        for figure in &mut figures {
            figure.group.clone_from(&self.name);
        }
        (figures, measured)
    }
}

/// All of them, what matters most first.
fn scenarios() -> Vec<Scenario> {
    let mut all = propagation::scenarios();
    all.extend(load::scenarios());
    all.extend(cost::scenarios());
    all.extend(tools::scenarios());
    all.extend(crowds::scenarios());
    all.extend(daemons::scenarios());
    all.extend(faults::scenarios());
    all
}

// === impl Suite ===

impl Suite {
    /// Those whose name contains the text.
    pub fn new(scale: Scale, selected: &str) -> Self {
        let mut scenarios = scenarios();
        scenarios.retain(|it| it.name.contains(selected));
        let whole = selected.is_empty() && !scale.smallest;
        Self { scale, scenarios, whole }
    }

    /// Whether this measures everything.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Prints their names.
    pub fn list(&self) {
        for Scenario { name, about, .. } in &self.scenarios {
            println!("{name}: {about}");
        }
    }

    /// Measures them one after the other. One that fails does not end the run.
    pub async fn run(&self) -> Result<Report> {
        let began = Instant::now();
        let progress = progress(self.scenarios.len());
        progress.set_message("the cluster is made");
        let kubernetes = Kubernetes::start(KubernetesOptions::default()).await?;
        populate(&kubernetes, &self.scale).await?;
        let bench = Bench { kubernetes, scale: self.scale.clone() };
        let mut report = Report::new(&self.scale);
        for scenario in &self.scenarios {
            progress.set_message(scenario.name.clone());
            let measured = if began.elapsed() < BUDGET {
                scenario.run(&bench).await
            } else {
                (Vec::new(), Err(anyhow!("not measured: {BUDGET:?} had passed")))
            };
            progress.suspend(|| report.add(scenario, measured));
            progress.inc(1);
        }
        progress.finish_and_clear();
        report.took = began.elapsed();
        bench.kubernetes.stop().await?;
        Ok(report)
    }
}

/// An empty one in memory. Each blocking query is a connection, of which it takes 200 by default.
async fn consul() -> Result<Consul> {
    let limits = "limits { http_max_conns_per_client = 4096 }";
    Consul::start(ConsulOptions::dev().configuration(limits)).await
}

/// It shows itself on a terminal only.
fn progress(scenarios: usize) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(scenarios).unwrap_or(u64::MAX));
    let style = ProgressStyle::with_template("{elapsed} {bar:20} {pos}/{len} {wide_msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

/// The Services of the cluster, each with its endpoints.
async fn populate(kubernetes: &Kubernetes, scale: &Scale) -> Result<()> {
    let client = kubernetes.client()?;
    let post = PostParams::default();
    let namespaces = Api::<Namespace>::all(client.clone());
    let teams = (0..scale.namespaces).map(objects::namespace);
    for name in teams.chain([PROBES.to_owned(), FLOOR.to_owned()]) {
        let object = serde_json::from_value(serde_json::json!({"metadata": {"name": name}}))?;
        namespaces.create(&post, &object).await?;
    }
    let create = async |number: usize| {
        let namespace = objects::namespace(number);
        let slice = serde_json::from_value(objects::slice(number))?;
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
        slices.create(&post, &slice).await?;
        let service = serde_json::from_value(objects::service(number))?;
        Api::<Service>::namespaced(client.clone(), &namespace).create(&post, &service).await?;
        anyhow::Ok(())
    };
    stream::iter((0..scale.services).map(create)).buffer_unordered(AT_ONCE).try_collect().await
}

/// The floor and ours one after the other, each first in every other turn.
async fn in_turn<T>(
    turn: usize,
    floor: impl Future<Output = Result<T>>,
    ours: impl Future<Output = Result<T>>,
) -> Result<(T, T)> {
    if turn.is_multiple_of(2) {
        let floor = floor.await?;
        Ok((floor, ours.await?))
    } else {
        let ours = ours.await?;
        Ok((floor.await?, ours))
    }
}
