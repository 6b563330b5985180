//! Tests that spend their time waiting for the times of Consul and of the program. One after the
//! other, on as many threads as there are cores, they would take many minutes of idle cores, so the
//! first one of a group to run starts the others of it too; each test then takes what has become of
//! its own.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, OnceLock};

use anyhow::{Context as _, Result};
use futures::future::BoxFuture;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// What one test does, by its name in the group.
type Scenario = (&'static str, fn() -> BoxFuture<'static, Result<()>>);

/// Those that run, by name.
type Started = HashMap<&'static str, JoinHandle<Result<()>>>;

/// The waiting tests of one folder.
pub struct Scenarios {
    /// The folder as a filter of tests names it.
    group: &'static str,
    /// The longest first, so that none is left alone at the end.
    all: &'static [Scenario],
    turns: Semaphore,
    started: OnceLock<Mutex<Started>>,
}

/// Each test has a runtime that ends with it; these outlive the one that started them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("two more threads")
});

// === impl Scenarios ===

impl Scenarios {
    /// Of which `at_once` run at a time.
    pub const fn new(group: &'static str, all: &'static [Scenario], at_once: usize) -> Self {
        Self { group, all, turns: Semaphore::const_new(at_once), started: OnceLock::new() }
    }

    /// Runs a scenario, or waits for the one that was started before.
    pub async fn run(&'static self, name: &'static str) -> Result<()> {
        if self.is_filtered() {
            let found = self.all.iter().find(|(it, _)| *it == name);
            let (_, scenario) = found.context("no such scenario")?;
            return RUNTIME.spawn(scenario()).await?;
        }
        let started = self.started.get_or_init(|| Mutex::new(self.start()));
        let started = started.lock().expect("nobody panics").remove(name);
        started.context("no such scenario, or it is run twice")?.await?
    }

    fn start(&'static self) -> Started {
        let start = |&(name, scenario): &'static Scenario| {
            let turn = async move {
                let _turn = self.turns.acquire().await?;
                scenario().await
            };
            (name, RUNTIME.spawn(turn))
        };
        self.all.iter().map(start).collect()
    }

    /// Whether somebody wants certain tests: then only those are run.
    fn is_filtered(&self) -> bool {
        std::env::args().skip(1).any(|it| !it.starts_with('-') && it != self.group)
    }
}
