//! How long the loop of a bridge is busy with one answer to `/status`, which the page at `/` asks for
//! every two seconds, with 10,000 Services: while it is, no event is handled. What an answer takes to be
//! written as JSON is not the loop's time.
//!
//! The floor is the same answer of a cluster without Services.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul::admin::Selection;
use kube_consul::admin::status::{Peer, Readiness};
use kube_consul::domain::kube::names::ObjectKey;
use kube_consul::domain::services::settings::{AddressMode, Settings};
use kube_consul::run::bridge::status::{Surroundings, page};

mod in_process;
mod objects;

use in_process::Bridge;
use objects::SERVICES;

const ROUNDS: usize = 50;
/// Nobody sees that in a change's latency, which is that of a write to Consul. Without optimization
/// everything takes about ten times as long.
const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 250 } else { 25 });

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut settings = Settings::new("kubernetes".parse()?);
    settings.address = AddressMode::Endpoints;
    let empty = Bridge::new(settings.clone());
    measure("no Services (the floor)", &empty, &Selection::default())?;
    let mut bridge = Bridge::new(settings.clone());
    bridge.list().await?;
    bridge.resync(false)?;
    bridge.write()?;
    let after = |namespace: &str| Selection {
        after: Some(ObjectKey::new(namespace, "a")),
        ..Selection::default()
    };
    let search = |text: &str| Selection { matching: text.to_owned(), ..Selection::default() };
    for (what, selection) in [
        ("the first page", Selection::default()),
        ("one in the middle", after("team-50")),
        ("a search for one of them", search("checkout-api-9999")),
        ("a search that finds nothing", search("nothing")),
    ] {
        measure(what, &bridge, &selection)?;
    }
    // Each Service has a problem: DNS cannot answer for its name.
    settings.name_template = "{service}.{namespace}".parse()?;
    let mut bridge = Bridge::new(settings);
    bridge.list().await?;
    bridge.resync(false)?;
    bridge.write()?;
    let problems = bridge.core.counts().problems;
    ensure!(problems >= SERVICES, "expected a problem of each, found {problems}");
    measure(&format!("the first page, {problems} problems"), &bridge, &Selection::default())
}

fn measure(what: &str, bridge: &Bridge, selection: &Selection) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..ROUNDS {
        let surroundings = surroundings(bridge);
        let began = Instant::now();
        let page = page(&bridge.core, &bridge.settings, selection, surroundings);
        took.push(began.elapsed());
        drop(page);
    }
    took.sort();
    let (median, longest) = (took[ROUNDS / 2], took[ROUNDS - 1]);
    println!("{what}: {median:.1?}, at most {longest:.1?}");
    // The longest is the machine's.
    ensure!(median < LIMIT, "{what}: {median:?}, expected less than {LIMIT:?}");
    Ok(())
}

fn surroundings(bridge: &Bridge) -> Surroundings {
    let peer = || Peer { url: String::new(), version: None, datacenter: None, trouble: None };
    Surroundings {
        cluster_uid: None,
        leadership: None,
        readiness: Readiness::Ready,
        history: Vec::new(),
        kubernetes: peer(),
        consul: peer(),
        watches: Vec::new(),
        now: bridge.now,
    }
}
