//! The metrics of a bridge, and in `common` those that every daemon has.
//!
//! Names and units are by the conventions of Prometheus: seconds, `_total` for what only grows, the
//! time at which something happened instead of how long ago that is. Every series is there from the
//! start, at 0, so that a rate sees the first failure; labels take only the words of enumerations.

mod common;

use std::fmt;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use self::common::seconds;
pub use self::common::{ConsulRequests, DaemonMetrics, PREFIX, Timestamp, now, registry, set};
use crate::admin::render::Render;
use crate::domain::kube::object::Kind;

type Label = [(&'static str, &'static str); 1];
type Labels<const N: usize> = [(&'static str, &'static str); N];

/// What Kubernetes is watched for, as the label `kind` names it. Nodes only while they are watched.
const KINDS: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];
/// What is written, as the label `record` names it.
const RECORDS: [&str; 3] = ["registration", "ptr", "node"];
/// What became of a write, as the label `result` names it.
const RESULTS: [&str; 8] =
    ["applied", "conflict", "refused", "denied", "failed", "unanswered", "fenced", "foreign"];

/// The words that labels take and that only others know.
#[derive(Clone, Copy, Debug)]
pub struct Words<'a> {
    /// Reasons of problems.
    pub reasons: &'a [&'static str],
    /// Operations of Consul.
    pub operations: &'a [&'static str],
    /// Whether there is an election: only then is there `leader`.
    pub is_elected: bool,
}

/// All metrics of a bridge.
pub struct Metrics {
    registry: Registry,
    /// What every daemon counts.
    pub daemon: DaemonMetrics,
    /// Writes by record and by what became of them.
    pub writes: Family<Labels<2>, Counter>,
    /// Seconds from a change seen in Kubernetes to Consul's answer to the last write for it.
    pub propagation: Histogram,
    /// Objects that watches showed or reported as deleted, by kind.
    pub watch_events: Family<Label, Counter>,
    /// Lists beyond the first, by kind.
    pub relists: Family<Label, Counter>,
    /// Resyncs, by what became of them.
    pub resyncs: Family<Label, Counter>,
    /// Seconds that a resync took.
    pub resync_seconds: Histogram,
    /// When the last complete one ended.
    pub resynced: Timestamp,
    /// Records that were not as they had been left.
    pub drifted: Counter,
    /// When Consul last had all that can be registered.
    pub synced: Timestamp,
    /// Services in the cluster.
    pub services: Gauge,
    /// Our registrations, by health.
    pub registrations: Family<Label, Gauge>,
    /// Our PTR records.
    pub ptr_records: Gauge,
    /// Services that are being brought in sync.
    pub backlog: Gauge,
    /// Problems, by reason.
    pub problems: Family<Label, Gauge>,
    /// Objects and Services of which removals are held back.
    pub removals_held: Gauge,
    /// Records that would be removed but for `--policy upsert-only`.
    pub records_kept: Gauge,
    /// 1 while options limit which Services are registered and none is.
    pub nothing_selected: Gauge,
    /// 1 while this process leads.
    pub leader: Gauge,
}

/// From 4 ms, doubling to two minutes: a listing may take that long.
fn long_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.004, 2.0, 16))
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        Self::new(&Words { reasons: &[], operations: &[], is_elected: false })
    }
}

impl Metrics {
    /// All at 0.
    pub fn new(words: &Words<'_>) -> Self {
        let mut metrics = Self {
            registry: registry(),
            daemon: DaemonMetrics::new(&KINDS, words.operations),
            writes: Family::default(),
            propagation: seconds(),
            watch_events: Family::default(),
            relists: Family::default(),
            resyncs: Family::default(),
            resync_seconds: long_seconds(),
            resynced: Timestamp::default(),
            drifted: Counter::default(),
            synced: Timestamp::default(),
            services: Gauge::default(),
            registrations: Family::default(),
            ptr_records: Gauge::default(),
            backlog: Gauge::default(),
            problems: Family::default(),
            removals_held: Gauge::default(),
            records_kept: Gauge::default(),
            nothing_selected: Gauge::default(),
            leader: Gauge::default(),
        };
        metrics.start_at_zero(words.reasons);
        metrics.register(words.is_elected);
        metrics
    }

    fn start_at_zero(&self, reasons: &[&'static str]) {
        for record in RECORDS {
            for result in RESULTS {
                drop(self.writes.get_or_create(&[("record", record), ("result", result)]));
            }
        }
        for kind in KINDS {
            let label = [("kind", kind.as_str())];
            for counters in [&self.watch_events, &self.relists] {
                drop(counters.get_or_create(&label));
            }
        }
        for result in ["complete", "failed"] {
            drop(self.resyncs.get_or_create(&[("result", result)]));
        }
        for health in ["passing", "critical"] {
            drop(self.registrations.get_or_create(&[("health", health)]));
        }
        for reason in reasons {
            drop(self.problems.get_or_create(&[("reason", *reason)]));
        }
    }

    fn register(&mut self, is_elected: bool) {
        let r = self.registry.sub_registry_with_prefix(PREFIX);
        self.daemon.register(r);
        r.register(
            "writes",
            "Records written to Consul, by record and result",
            self.writes.clone(),
        );
        r.register(
            "propagation_seconds",
            "Seconds from a change seen in Kubernetes to Consul's answer to the last write for it",
            self.propagation.clone(),
        );
        r.register(
            "watch_events",
            "Objects that watches showed, by kind",
            self.watch_events.clone(),
        );
        r.register("relists", "Lists beyond the first, by kind", self.relists.clone());
        r.register("resyncs", "Resyncs with Consul, by result", self.resyncs.clone());
        r.register(
            "resync_duration_seconds",
            "Seconds that a resync took",
            self.resync_seconds.clone(),
        );
        r.register(
            "last_resync_timestamp_seconds",
            "When the last complete resync ended",
            self.resynced.clone(),
        );
        r.register(
            "drifted_records",
            "Records that a resync found changed or removed by others",
            self.drifted.clone(),
        );
        r.register(
            "last_sync_timestamp_seconds",
            "When Consul last had all that can be registered",
            self.synced.clone(),
        );
        self.register_gauges(is_elected);
    }

    fn register_gauges(&mut self, is_elected: bool) {
        let r = self.registry.sub_registry_with_prefix(PREFIX);
        r.register("services", "Services in the cluster", self.services.clone());
        r.register(
            "registrations",
            "Our registrations in Consul, by health",
            self.registrations.clone(),
        );
        r.register("ptr_records", "Our PTR records in Consul", self.ptr_records.clone());
        r.register("backlog", "Services that are being brought in sync", self.backlog.clone());
        r.register("problems", "Problems of objects, by reason", self.problems.clone());
        r.register(
            "removals_held",
            "Objects and Services of which removals are held back",
            self.removals_held.clone(),
        );
        r.register(
            "records_kept",
            "Records that would be removed but for --policy upsert-only",
            self.records_kept.clone(),
        );
        r.register(
            "nothing_selected",
            "1 while options limit which Services are registered and none is",
            self.nothing_selected.clone(),
        );
        if is_elected {
            r.register("leader", "1 while this process leads", self.leader.clone());
        }
    }

    /// Notes the write of a record.
    pub fn wrote(&self, record: &'static str, result: &'static str) {
        debug_assert!(RECORDS.contains(&record) && RESULTS.contains(&result));
        self.writes.get_or_create(&[("record", record), ("result", result)]).inc();
    }
}

impl Render for Metrics {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
