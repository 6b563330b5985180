//! When something takes up what changed, for each registration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube_consul_stack::{Consul, eventually};
use serde::Deserialize;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::support::Site;
use crate::support::DEADLINE;

/// Between two looks: what is measured is that much too long at most.
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// Of what is not there.
const GONE: &str = "gone";

/// Since when each has its status, by the ID of the registration.
type Seen = HashMap<String, Vec<(String, Instant)>>;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(rename = "CheckID")]
    id: String,
    status: String,
}

/// Looks again and again at the status of each registration, beside the test.
pub struct StatusWatch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

/// How long each of many changes took.
#[derive(Debug)]
pub struct Latencies(Vec<Duration>);

// === impl StatusWatch ===

impl StatusWatch {
    /// The checks of a service in the catalog of `server`.
    pub fn catalog(server: &Consul, service: &str) -> Self {
        let (api, path) = (server.api().clone(), format!("/v1/health/checks/{service}"));
        Self::start(move || {
            let (api, path) = (api.clone(), path.clone());
            async move {
                let checks: Vec<Check> = serde_json::from_value(api.get(&path).await?)?;
                Ok(checks.into_iter().map(|it| (it.id, it.status)).collect())
            }
        })
    }

    /// A readiness gate of each pod of a site, under the ID of its registration as `service`.
    pub fn gates(site: &Site, service: &str, gate: &'static str) -> Result<Self> {
        let (pods, prefix) = (site.pods()?, site.id(service, ""));
        Ok(Self::start(move || {
            let (pods, prefix) = (pods.clone(), prefix.clone());
            async move {
                let all = pods.list(&ListParams::default()).await?;
                let status = |pod: Pod| {
                    let conditions = pod.status.and_then(|it| it.conditions).unwrap_or_default();
                    let gate = conditions.into_iter().find(|it| it.type_ == gate)?;
                    Some((format!("{prefix}{}", pod.metadata.name?), gate.status))
                };
                Ok(all.items.into_iter().filter_map(status).collect())
            }
        }))
    }

    /// Whether each pod of a site is there, as a watch sees it, under the ID of its registration.
    pub async fn pods(site: &Site, service: &str) -> Result<Self> {
        let prefix = site.id(service, "");
        let mut events = site.pods()?.watch(&WatchParams::default(), "0").await?.boxed();
        let seen = Arc::<Mutex<Seen>>::default();
        let all = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            while let Some(event) = events.next().await {
                let Ok(WatchEvent::Deleted(pod)) = event else { continue };
                let id = format!("{prefix}{}", pod.metadata.name.unwrap_or_default());
                locked(&all).insert(id, vec![(GONE.to_owned(), Instant::now())]);
            }
        });
        Ok(Self { seen, task })
    }

    fn start<F>(look: impl Fn() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<HashMap<String, String>>> + Send,
    {
        let seen = Arc::<Mutex<Seen>>::default();
        let all = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                // What it does not see the test's own deadlines notice.
                if let Ok(shown) = look().await {
                    note(&mut locked(&all), shown);
                }
                sleep(LOOK_EVERY).await;
            }
        });
        Self { seen, task }
    }

    /// Prints how long after `since` each had first one of these statuses, once all had.
    pub async fn print(
        &self,
        what: &str,
        since: &HashMap<String, Instant>,
        statuses: &[&str],
    ) -> Result<()> {
        eventually(DEADLINE, || async {
            println!("  {what}: {}", self.latencies(since, statuses)?);
            anyhow::Ok(())
        })
        .await
    }

    /// How long after `since` each had first one of these statuses, since [`Self::clear`]: no time where
    /// it was so before the test heard of the change itself.
    fn latencies(&self, since: &HashMap<String, Instant>, statuses: &[&str]) -> Result<Latencies> {
        let seen = locked(&self.seen);
        let took = since.iter().map(|(id, since)| {
            let at = first(&seen, id, statuses)
                .with_context(|| format!("{id} was never {statuses:?}: {:?}", seen.get(id)))?;
            Ok(at.saturating_duration_since(*since))
        });
        Ok(Latencies::new(took.collect::<Result<_>>()?))
    }

    /// When each had first this status.
    pub fn times(&self, status: &str) -> HashMap<String, Instant> {
        let seen = locked(&self.seen);
        let times = seen.keys().filter_map(|id| Some((id.clone(), first(&seen, id, &[status])?)));
        times.collect()
    }

    /// Forgets what was before now.
    pub fn clear(&self) {
        for states in locked(&self.seen).values_mut() {
            states.drain(..states.len().saturating_sub(1));
        }
    }
}

impl Drop for StatusWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn locked(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn first(seen: &Seen, id: &str, statuses: &[&str]) -> Option<Instant> {
    let mut states = seen.get(id)?.iter();
    states.find(|(it, _)| statuses.contains(&it.as_str())).map(|(_, at)| *at)
}

/// Notes what is new.
fn note(seen: &mut Seen, mut shown: HashMap<String, String>) {
    let now = Instant::now();
    for (id, states) in seen.iter_mut() {
        let status = shown.remove(id).unwrap_or_else(|| GONE.to_owned());
        if states.last().is_none_or(|(last, _)| *last != status) {
            states.push((status, now));
        }
    }
    seen.extend(shown.into_iter().map(|(id, status)| (id, vec![(status, now)])));
}

// === impl Latencies ===

impl Latencies {
    pub fn new(mut took: Vec<Duration>) -> Self {
        took.sort();
        Self(took)
    }

    /// So many of a hundred took no longer than this.
    fn percentile(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get(last * percent / 100).copied().unwrap_or_default()
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [half, most, all] = [50, 99, 100].map(|percent| self.percentile(percent).as_millis());
        write!(f, "p50 {half} ms, p99 {most} ms, max {all} ms of {}", self.0.len())
    }
}
