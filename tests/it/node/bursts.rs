//! Many pods at once, counted in requests to the agent.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{HttpRecorder, Recorded, eventually};
use serde_json::{Value, json};

use super::support::Site;
use super::timing::{Latencies, StatusWatch};
use crate::support::{Bridge, DEADLINE, for_each};

const PODS: usize = 250;
/// Half of the default TTL of 11 s.
const PERIOD: Duration = Duration::from_millis(5500);

/// Waits until so many instances in the catalog have this status.
async fn wait_for_count(site: &Site, status: &str, wanted: usize) -> Result<()> {
    eventually(DEADLINE, || async {
        let found = site.catalog("web").await?;
        let count = found.iter().filter(|it| it.ends_with(status)).count();
        ensure!(count == wanted, "{count} of {} are {status}, want {wanted}", found.len());
        Ok(())
    })
    .await
}

/// How often each check was told this status.
fn told(requests: &[Recorded], status: &str) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for request in requests.iter().filter(|it| it.path.contains("/agent/check/update/")) {
        let body: Value = serde_json::from_slice(&request.body)?;
        if body["Status"] == status {
            *counts.entry(request.path.clone()).or_default() += 1;
        }
    }
    Ok(counts)
}

fn count(requests: &[Recorded], part: &str) -> usize {
    requests.iter().filter(|it| it.path.contains(part)).count()
}

/// CPU time of a process so far, in hundredths of a second, and its memory.
fn used(pid: i32) -> Result<(u64, String)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<_> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    // utime and stime are the 14th and 15th of all.
    Ok((fields[11].parse::<u64>()? + fields[12].parse::<u64>()?, memory.to_owned()))
}

/// Changes each pod, and says when the API server took it, by the ID of its registration.
async fn acknowledged(
    site: &Site,
    names: &[String],
    change: impl AsyncFn(&str) -> Result<()>,
) -> Result<HashMap<String, Instant>> {
    let since = Mutex::new(HashMap::new());
    for_each(names, |name| async {
        change(name).await?;
        let mut since = since.lock().unwrap_or_else(PoisonError::into_inner);
        since.insert(site.id("web", name), Instant::now());
        Ok(())
    })
    .await?;
    Ok(since.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// How long after these moments the agent had the first such request for each.
fn sent(since: &HashMap<String, Instant>, requests: &[Recorded], part: &str) -> Latencies {
    let first = |id: &str| {
        let mut of = requests.iter().filter(|it| it.path.ends_with(id));
        of.find(|it| it.path.contains(part)).map(|it| it.at)
    };
    let took = since.iter().filter_map(|(id, at)| Some(first(id)?.saturating_duration_since(*at)));
    Latencies::new(took.collect())
}

#[tokio::test]
async fn p9_bursts_of_250_pods_cost_one_request_each_and_heartbeats_one_each_half_ttl() -> Result<()>
{
    let site = Site::new("node-burst").await?;
    let names: Vec<_> = (0..PODS).map(|n| format!("web-{n}")).collect();
    site.many(PODS).await?;
    for_each(&names, |name| async { site.ip(name).await.map(drop) }).await?;
    // When the API server took each pod's change, by the ID of its registration.
    let ready = async |is_ready: bool| {
        let status = json!({"containerStatuses": [
            {"name": "app", "ready": is_ready, "restartCount": 0, "image": "a", "imageID": "a"},
        ]});
        acknowledged(&site, &names, async |name| site.status(name, status.clone()).await).await
    };
    drop(ready(false).await?);
    let recorder = HttpRecorder::start(site.agent.url()).await?;
    let daemon = Bridge::start(site.command().env("CONSUL_HTTP_ADDR", recorder.url())).await?;
    daemon.wait_ready_within(DEADLINE * 2).await?;
    wait_for_count(&site, "critical", PODS).await?;
    ensure!(count(&recorder.requests(), "/agent/service/register") == PODS);

    // Critical checks need no heartbeat, so all that follows is of the burst.
    let watch = StatusWatch::catalog(&site.server, "web");
    recorder.clear();
    let (cpu, _) = used(daemon.program.pid())?;
    let began = Instant::now();
    let since = ready(true).await?;
    let changed = began.elapsed();
    wait_for_count(&site, "passing", PODS).await?;
    let took = began.elapsed();
    let requests = recorder.requests();
    let passing = told(&requests, "passing")?;
    let cost = used(daemon.program.pid())?.0 - cpu;
    println!(
        "{PODS} pods became ready within {changed:?}, all in the catalog {:?} later; \
         {} updates; CPU {cost}0 ms",
        took.saturating_sub(changed),
        passing.values().sum::<usize>()
    );
    println!("  to the agent: {}", sent(&since, &requests, "/check/update/"));
    watch.print("to the catalog", &since, &["passing"]).await?;
    ensure!(passing.len() == PODS, "{} of {PODS} checks were told", passing.len());
    let beats = usize::try_from(took.as_millis() / PERIOD.as_millis())? + 1;
    let most = passing.values().max().copied().unwrap_or_default();
    ensure!(most <= 1 + beats, "a check was told {most} times");
    ensure!(count(&recorder.requests(), "/agent/service/register") == 0, "registered again");

    // Two half TTLs: two heartbeats of each check, spread over the time.
    recorder.clear();
    let (cpu, _) = used(daemon.program.pid())?;
    let began = Instant::now();
    tokio::time::sleep(PERIOD * 2).await;
    let requests = recorder.requests();
    let beats = told(&requests, "passing")?;
    let mut seconds = [0_usize; 11];
    for request in requests.iter().filter(|it| it.path.contains("/check/update/")) {
        let second = request.at.saturating_duration_since(began).as_secs();
        seconds[usize::try_from(second)?.min(10)] += 1;
    }
    let (total, memory) = used(daemon.program.pid())?;
    println!("heartbeats a second {seconds:?}; CPU {}0 ms in 11 s; {memory}", total - cpu);
    ensure!(beats.len() == PODS && beats.values().all(|it| (1..=3).contains(it)), "{beats:?}");
    // A machine that is busy delays some; 45 a second are even.
    let busiest = seconds.iter().max().copied().unwrap_or_default();
    ensure!(busiest < PODS * 3 / 4, "most of all within one second: {seconds:?}");

    // All terminate, and are gone some moments later.
    recorder.clear();
    let began = Instant::now();
    watch.clear();
    let pods = StatusWatch::pods(&site, "web").await?;
    let since = acknowledged(&site, &names, async |name| site.terminate(name).await).await?;
    let changed = began.elapsed();
    wait_for_count(&site, "", 0).await?;
    let requests = recorder.requests();
    let critical = told(&requests, "critical")?;
    println!(
        "{PODS} pods terminated within {changed:?}, the last gone from the catalog {:?} later; \
         {} were critical before",
        began.elapsed().saturating_sub(changed),
        critical.len()
    );
    watch.print("to the catalog, critical or gone", &since, &["critical", "gone"]).await?;
    let deleted = pods.times("gone");
    ensure!(deleted.len() == PODS, "{} deletions of {PODS} were seen", deleted.len());
    println!("  from the pod's end to the agent: {}", sent(&deleted, &requests, "/deregister/"));
    watch.print("from the pod's end to the catalog", &deleted, &["gone"]).await?;
    let removals = requests.iter().filter(|it| it.path.contains("/agent/service/deregister/"));
    let mut removed = BTreeMap::<_, usize>::new();
    removals.for_each(|it| *removed.entry(it.path.as_str()).or_default() += 1);
    ensure!(removed.len() == PODS, "{} of {PODS} were removed", removed.len());
    // One that a busy agent does not answer in time is asked for again.
    let most = removed.values().max().copied().unwrap_or_default();
    let repeats = usize::try_from(began.elapsed().as_secs() / 5)?;
    ensure!(most <= 1 + repeats, "one was removed {most} times");
    ensure!(critical.values().all(|it| *it == 1), "{critical:?}");
    ensure!(count(&requests, "/agent/service/register") == 0, "registered again");
    let status = daemon.status().await?;
    ensure!(status["pods"] == json!([]), "{status}");
    daemon.stop().await?;
    bare(&site, &watch).await
}

/// The same without a daemon, to see what is the agent's: as many checks of its own, each told to pass as
/// soon as a place among as many requests as the daemon has is free.
async fn bare(site: &Site, watch: &StatusWatch) -> Result<()> {
    let api = site.agent.api();
    let ids: Vec<_> = (0..PODS).map(|number| format!("bare-{number}")).collect();
    for_each(&ids, |id| async move {
        let service = json!({"ID": id, "Name": "web", "Port": 8080, "Address": "10.1.0.1",
            "Check": {"CheckID": id, "TTL": "1h", "Status": "critical"}});
        api.put("/v1/agent/service/register", &service).await.map(drop)
    })
    .await?;
    wait_for_count(site, "critical", PODS).await?;
    let since = Mutex::new(HashMap::new());
    let took = &since;
    for_each(&ids, |id| async move {
        let began = Instant::now();
        let body = json!({"Status": "passing", "Output": "ok"});
        api.put(&format!("/v1/agent/check/update/{id}"), &body).await?;
        took.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), began);
        Ok(())
    })
    .await?;
    wait_for_count(site, "passing", PODS).await?;
    let since = since.into_inner().unwrap_or_else(PoisonError::into_inner);
    watch.print("the agent alone, from request to catalog", &since, &["passing"]).await?;
    let since = Mutex::new(HashMap::new());
    let took = &since;
    for_each(&ids, |id| async move {
        let began = Instant::now();
        api.put(&format!("/v1/agent/service/deregister/{id}"), &json!(null)).await?;
        took.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), began);
        Ok(())
    })
    .await?;
    wait_for_count(site, "", 0).await?;
    let since = since.into_inner().unwrap_or_else(PoisonError::into_inner);
    watch.print("the agent alone, from removal to catalog", &since, &["gone"]).await
}
