//! The metrics, all of which begin with `kube_consul_`.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::admin::Render;

/// The content type of the text format that [`Metrics::render`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of a bridge.
pub struct Metrics {
    registry: Registry,
    /// Writes by record (`registration`, `reverse`) and what became of them.
    pub writes: Family<Labels<2>, Counter>,
    /// Seconds that a write took, by record.
    pub write_seconds: Family<Labels<1>, Histogram>,
    /// Objects that watches showed or reported as deleted, by kind.
    pub watch_events: Family<Labels<1>, Counter>,
    /// Failures of watches, by kind.
    pub watch_failures: Family<Labels<1>, Counter>,
    /// Readings of Consul, by what became of them.
    pub read_backs: Family<Labels<1>, Counter>,
    /// Seconds that the last reading took.
    pub read_back_seconds: Seconds,
    /// Records that were not as they had been left.
    pub repaired: Counter,
    /// Services in the cluster.
    pub services: Gauge,
    /// Our registrations.
    pub registrations: Gauge,
    /// Our PTR records.
    pub ptr_records: Gauge,
    /// Services that are being brought in sync.
    pub backlog: Gauge,
    /// Problems, by reason.
    pub problems: Family<Labels<1>, Gauge>,
    /// 1 while removals are held back.
    pub holding: Gauge,
    /// 1 while this process leads; always 0 without an election.
    pub leader: Gauge,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        // From half a millisecond, an idle agent's answer, doubling to 16 s, past every deadline.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let mut metrics = Self {
            registry: Registry::with_prefix("kube_consul"),
            writes: Family::default(),
            write_seconds: Family::new_with_constructor(seconds),
            watch_events: Family::default(),
            watch_failures: Family::default(),
            read_backs: Family::default(),
            read_back_seconds: Seconds::default(),
            repaired: Counter::default(),
            services: Gauge::default(),
            registrations: Gauge::default(),
            ptr_records: Gauge::default(),
            backlog: Gauge::default(),
            problems: Family::default(),
            holding: Gauge::default(),
            leader: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("writes", "Writes to Consul by record and result", self.writes.clone());
        r.register("write_seconds", "Seconds that a write took", self.write_seconds.clone());
        r.register(
            "watch_events",
            "Objects that watches showed, by kind",
            self.watch_events.clone(),
        );
        r.register("watch_failures", "Failures of watches, by kind", self.watch_failures.clone());
        r.register("read_backs", "Readings of Consul by result", self.read_backs.clone());
        r.register(
            "read_back_seconds",
            "Seconds that the last reading took",
            self.read_back_seconds.clone(),
        );
        r.register(
            "repaired",
            "Records that were not as they had been left",
            self.repaired.clone(),
        );
        r.register("services", "Services in the cluster", self.services.clone());
        r.register("registrations", "Our registrations in Consul", self.registrations.clone());
        r.register("ptr_records", "Our PTR records in Consul", self.ptr_records.clone());
        r.register("backlog", "Services that are being brought in sync", self.backlog.clone());
        r.register("problems", "Problems of objects, by reason", self.problems.clone());
        r.register("holding", "1 while removals are held back", self.holding.clone());
        r.register("leader", "1 while this process leads", self.leader.clone());
    }

    /// Notes a write and how long it took.
    pub fn wrote(&self, record: &'static str, result: &'static str, took: Duration) {
        self.writes.get_or_create(&[("record", record), ("result", result)]).inc();
        self.write_seconds.get_or_create(&[("record", record)]).observe(took.as_secs_f64());
    }
}

impl Render for Metrics {
    fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    /// What a word in `source` stands between, each time.
    fn between<'a>(source: &'a str, before: &'a str, after: &'a str) -> Vec<&'a str> {
        let rest = source.split(before).skip(1);
        rest.filter_map(|rest| Some(rest.trim_start().split_once(after)?.0)).collect()
    }

    #[test]
    fn the_documentation_explains_every_metric_and_problem() {
        let (page, problems) =
            (include_str!("../../docs/metrics.md"), include_str!("../../docs/problems.md"));
        let metrics = between(include_str!("metrics.rs"), "r.register(", ",");
        assert!(metrics.len() > 10, "{metrics:?}");
        for metric in metrics {
            let name = format!("`kube_consul_{}", metric.trim_matches('"'));
            assert!(page.contains(&name), "{name}");
        }
        let reasons = between(include_str!("../domain/problem.rs"), "=> \"", "\"");
        assert!(reasons.len() > 10, "{reasons:?}");
        for reason in reasons {
            assert!(problems.contains(&format!("\n| `{reason}` |")), "{reason}");
        }
    }
}
