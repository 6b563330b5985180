//! Problems as Kubernetes Events on the objects that have them, where `kubectl describe` shows
//! them.
//!
//! Best effort, by design: a report that finds the queue full, or an Event that is refused, is
//! counted and forgotten. It never disturbs the rest; `/status` has every problem anyway.
//!
//! kube's own `Recorder` is not used: it takes a second problem of the same reason for a
//! repetition of the first and never shows its message.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::problem::Problem;
use crate::domain::text::one_line;
use crate::kubernetes::errors::failure;
use crate::kubernetes::routes::{Gateways, HttpRoutes, Ingresses};
use crate::kubernetes::slim::{EndpointSlices, Nodes, Services, Watched as _};

/// `reportingController` of the Events.
pub const CONTROLLER: &str = "kube-consul.io/bridge";

/// Reports that wait to be written. At the lasting rate that is four minutes: what would come
/// later is better read in `/status`.
const QUEUE: usize = 256;

/// Events written at once, as many as client-go allows for one object.
const BURST: u32 = 25;

/// Time between Events once the burst is used up. The API server keeps each for an hour: 3,600
/// of about 1 kB are 4 MB of its storage at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Least time between two writes of one repeated Event; repetitions in between are counted by the
/// next.
const REPEAT_INTERVAL: Duration = Duration::from_mins(1);

/// Quiet time after which a repetition is a new Event: what client-go takes.
const SERIES_TIMEOUT: Duration = Duration::from_mins(6);

/// Repeated Events that are remembered: more than can be new within [`SERIES_TIMEOUT`].
const SERIES: usize = 512;

/// Longest `note` that the API takes, in bytes; an ellipsis takes three of them.
const NOTE_BYTES: usize = 1024 - 3;

/// Longest `reportingInstance` that the API takes.
const INSTANCE_BYTES: usize = 128 - 3;

/// Longest part of an Event's name that is the object's: with a dot and 16 digits it stays below
/// the 253 of the API.
const NAME_CHARS: usize = 230;

/// The object that an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// Its kind.
    pub kind: Subject,
    /// Its namespace and name.
    pub key: ObjectKey,
    /// Its uid; without it `kubectl describe` does not show the Event, `kubectl get events` does.
    pub uid: Option<Arc<str>>,
}

/// Takes reports; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    queue: mpsc::Sender<Report>,
    counts: Arc<Counts>,
}

/// What became of the reports.
#[derive(Debug, Default)]
pub struct Counts {
    /// Written as a new Event or counted in one.
    pub written: AtomicU64,
    /// Not taken, since the queue was full.
    pub dropped: AtomicU64,
    /// Refused by the API server, or not answered.
    pub failed: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Report {
    regarding: Regarding,
    problem: Problem,
}

/// An Event that may be repeated.
#[derive(Debug)]
struct Series {
    name: String,
    count: i32,
    seen: Instant,
    written: Instant,
}

/// Lets [`BURST`] through and then one each [`INTERVAL`].
#[derive(Debug)]
struct TokenBucket {
    /// When the bucket is full again.
    full_at: Instant,
}

struct Writer {
    client: Client,
    instance: String,
    counts: Arc<Counts>,
    series: HashMap<Report, Series>,
    bucket: TokenBucket,
    denial_said: bool,
}

/// A reporter and the work behind it, which the caller polls until all reporters are dropped (or
/// drops, with what is still queued). `instance` is the name of the pod or host.
pub fn reporter(
    client: Client,
    instance: &str,
) -> (Reporter, impl Future<Output = ()> + Send + use<>) {
    let (queue, mut reports) = mpsc::channel(QUEUE);
    let counts = Arc::new(Counts::default());
    let reporter = Reporter { queue, counts: Arc::clone(&counts) };
    let instance = one_line(instance, INSTANCE_BYTES);
    let work = async move {
        let mut writer = Writer {
            client,
            instance,
            counts,
            series: HashMap::new(),
            bucket: TokenBucket { full_at: Instant::now() },
            denial_said: false,
        };
        while let Some(report) = reports.recv().await {
            writer.write(report).await;
        }
    };
    (reporter, work)
}

// === impl Reporter ===

impl Reporter {
    /// A reporter that writes nothing, where there is no Kubernetes API to write to.
    pub fn to_nobody() -> Self {
        Self { queue: mpsc::channel(1).0, counts: Arc::default() }
    }

    /// Reports a problem. Never waits.
    pub fn report(&self, regarding: Regarding, problem: Problem) {
        if self.queue.try_send(Report { regarding, problem }).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of the reports so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

// === impl Regarding ===

impl Regarding {
    fn reference(&self) -> ObjectReference {
        let (api_version, kind) = match self.kind {
            Subject::Service => (Services::api_version(), Services::NAME),
            Subject::EndpointSlice => (EndpointSlices::api_version(), EndpointSlices::NAME),
            Subject::Namespace => ("v1".to_owned(), "Namespace"),
            Subject::Node => (Nodes::api_version(), Nodes::NAME),
            Subject::Pod => ("v1".to_owned(), "Pod"),
            Subject::Ingress => (Ingresses::api_version(), Ingresses::NAME),
            Subject::HttpRoute => (HttpRoutes::api_version(), HttpRoutes::NAME),
            Subject::Gateway => (Gateways::api_version(), Gateways::NAME),
        };
        let namespace = Some(self.key.namespace.to_string()).filter(|it| !it.is_empty());
        ObjectReference {
            api_version: Some(api_version),
            kind: Some(kind.to_owned()),
            namespace,
            name: Some(self.key.name.to_string()),
            uid: self.uid.as_deref().map(str::to_owned),
            ..ObjectReference::default()
        }
    }
}

// === impl Report ===

impl Report {
    /// Where its Event goes: beside the object, and for one without a namespace where the API
    /// wants it.
    fn namespace(&self) -> &str {
        let namespace = &*self.regarding.key.namespace;
        if namespace.is_empty() { "default" } else { namespace }
    }
}

// === impl Writer ===

impl Writer {
    async fn write(&mut self, report: Report) {
        let now = Instant::now();
        self.series.retain(|_, series| now - series.seen < SERIES_TIMEOUT);
        let repeated = match self.series.get_mut(&report) {
            Some(series) => {
                series.count = series.count.saturating_add(1);
                series.seen = now;
                if now - series.written < REPEAT_INTERVAL {
                    return;
                }
                series.written = now;
                Some((series.name.clone(), series.count))
            }
            None => None,
        };
        self.bucket.take().await;
        let events: Api<Event> = Api::namespaced(self.client.clone(), report.namespace());
        let mut result = match &repeated {
            Some((name, count)) => repeat(&events, name, *count).await,
            None => self.create(&events, &report).await,
        };
        if repeated.is_some() && matches!(&result, Err(kube::Error::Api(it)) if it.code == 404) {
            // The API server forgets Events after an hour.
            self.series.remove(&report);
            result = self.create(&events, &report).await;
        }
        match result {
            Ok(()) => {
                self.counts.written.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => self.fail(&report, &error),
        }
    }

    async fn create(&mut self, events: &Api<Event>, report: &Report) -> kube::Result<()> {
        let event = self.event(report);
        events.create(&PostParams::default(), &event).await?;
        let now = Instant::now();
        if self.series.len() < SERIES {
            let name = event.metadata.name.unwrap_or_default();
            let series = Series { name, count: 1, seen: now, written: now };
            self.series.insert(report.clone(), series);
        }
        Ok(())
    }

    fn event(&self, report: &Report) -> Event {
        let now = Timestamp::now();
        let Report { regarding, problem } = report;
        let base: String = regarding.key.name.chars().take(NAME_CHARS).collect();
        let name = format!("{}.{:016x}", base.trim_end_matches(['-', '.']), now.as_nanosecond());
        Event {
            metadata: ObjectMeta {
                name: Some(name),
                namespace: Some(report.namespace().to_owned()),
                ..ObjectMeta::default()
            },
            action: Some("Register".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(one_line(&problem.message, NOTE_BYTES)),
            reason: Some(problem.reason.to_string()),
            regarding: Some(regarding.reference()),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        }
    }

    fn fail(&mut self, report: &Report, error: &kube::Error) {
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        let key = &report.regarding.key;
        let cause = failure(error);
        // A namespace that is going away refuses new objects with 403, too.
        let denied = matches!(error, kube::Error::Api(status)
            if status.code == 403 && !status.message.contains("being terminated"));
        if denied && !self.denial_said {
            self.denial_said = true;
            tracing::warn!(
                %cause,
                "expected the right to create and patch events in events.k8s.io, found none; \
                 problems are not shown on their objects (said once)"
            );
        } else {
            tracing::debug!(namespace = %key.namespace, name = %key.name, %cause, "no Event written");
        }
    }
}

async fn repeat(events: &Api<Event>, name: &str, count: i32) -> kube::Result<()> {
    let series = EventSeries { count, last_observed_time: MicroTime(Timestamp::now()) };
    let patch = Patch::Merge(json!({ "series": series }));
    events.patch(name, &PatchParams::default(), &patch).await.map(|_| ())
}

// === impl TokenBucket ===

impl TokenBucket {
    async fn take(&mut self) {
        let now = Instant::now();
        // With the bucket empty it takes the whole burst's intervals until it is full.
        let taken_at = (self.full_at + INTERVAL).max(now + INTERVAL) - INTERVAL * BURST;
        sleep_until(taken_at).await;
        self.full_at = self.full_at.max(now) + INTERVAL;
    }
}

#[cfg(test)]
mod tests;
