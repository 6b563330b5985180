//! The long tests of this folder spend their time waiting for Consul's own times. One after the
//! other, on as many threads as there are cores, they would take ten minutes of two cores, so the
//! first one to run starts the others too; each test then takes what has become of its own.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex};

use anyhow::{Context as _, Result};
use futures::future::{BoxFuture, FutureExt as _};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::{
    acl, agents, cert_manager, dns, install, lifecycle, node, overlays, rotation, snapshots,
};

/// At once: three servers each, which take a fifth of a core.
const AT_ONCE: usize = 5;

type Scenario = fn() -> BoxFuture<'static, Result<()>>;

/// The longest first, so that none is left alone at the end.
const ALL: [(&str, Scenario); 14] = [
    ("restarts", || lifecycle::restarts().boxed()),
    ("agents", || agents::on_nodes().boxed()),
    ("node", || node::pods_of_a_node().boxed()),
    ("scaling", || lifecycle::scaling().boxed()),
    ("gossip", || rotation::gossip_keys().boxed()),
    ("losses", || lifecycle::losses().boxed()),
    ("certificates", || rotation::certificates().boxed()),
    ("snapshots", || snapshots::snapshots().boxed()),
    ("acl", || acl::job().boxed()),
    ("cert-manager", || cert_manager::certificates().boxed()),
    ("install", || install::both_commands().boxed()),
    ("overlays", || overlays::overlays().boxed()),
    ("dns", || dns::forwarded().boxed()),
    ("outside", || agents::outside().boxed()),
];

/// Each test has a runtime that ends with it; these outlive the one that started them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(2).enable_all().build().expect("two more threads")
});

type Started = HashMap<&'static str, JoinHandle<Result<()>>>;

static STARTED: LazyLock<Mutex<Started>> = LazyLock::new(|| {
    static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);
    let start = |(name, scenario): (&'static str, Scenario)| {
        let turn = async move {
            let _turn = TURNS.acquire().await?;
            scenario().await
        };
        (name, RUNTIME.spawn(turn))
    };
    Mutex::new(ALL.into_iter().map(start).collect())
});

/// Whether somebody wants certain tests: then only those are run.
fn is_filtered() -> bool {
    std::env::args().skip(1).any(|it| !it.starts_with('-') && it != "servers::")
}

/// Runs a scenario, or waits for the one that was started before.
pub async fn run(name: &'static str) -> Result<()> {
    if is_filtered() {
        let found = ALL.into_iter().find(|(it, _)| *it == name);
        let (_, scenario) = found.context("no such scenario")?;
        return RUNTIME.spawn(scenario()).await?;
    }
    let started = STARTED.lock().expect("nobody panics").remove(name);
    started.context("no such scenario, or it is run twice")?.await?
}
