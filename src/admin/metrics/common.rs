//! The metrics that every daemon has, and what its own are made with.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::admin::process::Process;
use crate::admin::status::Readiness;
use crate::domain::kube::object::Kind;

/// The prefix of all metrics but `process_*`.
pub const PREFIX: &str = "kube_consul";

type Label = [(&'static str, &'static str); 1];

/// A point in time, in seconds since 1970; 0: never.
pub type Timestamp = Gauge<f64, AtomicU64>;

/// The metrics that every daemon has. A clone counts in the same place.
#[derive(Clone)]
pub struct DaemonMetrics {
    ready: Gauge,
    /// Requests to Consul.
    pub requests: ConsulRequests,
    watch_failures: Family<Label, Counter>,
    watch_heard: Family<Label, Timestamp>,
}

/// Requests to Consul by operation, but for blocking queries.
#[derive(Clone)]
pub struct ConsulRequests {
    seconds: Family<Label, Histogram, fn() -> Histogram>,
    failures: Family<Label, Counter>,
}

/// The time now.
pub fn now(timestamp: &Timestamp) {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    timestamp.set(since.as_secs_f64());
}

/// How many there are.
pub fn set(gauge: &Gauge, count: usize) {
    gauge.set(count.try_into().unwrap_or(i64::MAX));
}

/// The registry of a daemon, with what every one tells of itself.
pub fn registry() -> Registry {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Process));
    let info = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.sub_registry_with_prefix(PREFIX).register("build", "This program", info);
    registry
}

/// From half a millisecond, an idle agent's answer, doubling to 16 s, past every deadline.
pub(super) fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0005, 2.0, 16))
}

// === impl DaemonMetrics ===

impl DaemonMetrics {
    /// All at 0, of a daemon that watches these kinds and asks Consul this.
    pub fn new(kinds: &[Kind], operations: &[&'static str]) -> Self {
        let metrics = Self {
            ready: Gauge::default(),
            requests: ConsulRequests::new(operations),
            watch_failures: Family::default(),
            watch_heard: Family::default(),
        };
        for kind in kinds {
            let label = [("kind", kind.as_str())];
            drop(metrics.watch_failures.get_or_create(&label));
            drop(metrics.watch_heard.get_or_create(&label));
        }
        metrics
    }

    /// Has them shown.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("ready", "1 while /readyz answers 200", self.ready.clone());
        self.requests.register(registry);
        registry.register(
            "watch_failures",
            "Failures of watches, by kind",
            self.watch_failures.clone(),
        );
        registry.register(
            "watch_last_heard_timestamp_seconds",
            "When the API server, or the kubelet, was last heard of on a watch, by kind",
            self.watch_heard.clone(),
        );
    }

    /// Says what `/readyz` says from now on, there and as a metric. Gives whether that is news.
    pub fn set_readiness(&self, said: &watch::Sender<Readiness>, readiness: Readiness) -> bool {
        self.ready.set(i64::from(readiness == Readiness::Ready));
        said.send_if_modified(|before| {
            let is_new = *before != readiness;
            *before = readiness;
            is_new
        })
    }

    /// The API server, or the kubelet, was heard of on the watch of this kind.
    pub fn heard(&self, kind: Kind) {
        now(&self.watch_heard.get_or_create(&[("kind", kind.as_str())]));
    }

    /// The watch of this kind failed so many times more.
    pub fn watch_failed(&self, kind: Kind, failures: u64) {
        self.watch_failures.get_or_create(&[("kind", kind.as_str())]).inc_by(failures);
    }

    /// This kind is watched no longer: its age would be mistaken for a silence.
    pub fn unwatched(&self, kind: Kind) {
        self.watch_heard.remove(&[("kind", kind.as_str())]);
    }
}

// === impl ConsulRequests ===

impl ConsulRequests {
    /// None yet, of these operations.
    pub fn new(operations: &[&'static str]) -> Self {
        let seconds = Family::new_with_constructor(seconds as fn() -> Histogram);
        let requests = Self { seconds, failures: Family::default() };
        for operation in operations {
            drop(requests.seconds.get_or_create(&[("operation", *operation)]));
            drop(requests.failures.get_or_create(&[("operation", *operation)]));
        }
        requests
    }

    /// Has them shown.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "consul_request_duration_seconds",
            "Seconds until Consul answered a request, by operation",
            self.seconds.clone(),
        );
        registry.register(
            "consul_request_failures",
            "Requests that Consul refused or did not answer, by operation",
            self.failures.clone(),
        );
    }

    /// Notes a request.
    pub fn asked(&self, operation: &'static str, took: Duration, is_answered: bool) {
        let label = [("operation", operation)];
        self.seconds.get_or_create(&label).observe(took.as_secs_f64());
        if !is_answered {
            self.failures.get_or_create(&label).inc();
        }
    }
}
