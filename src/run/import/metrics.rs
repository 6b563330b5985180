//! The metrics of an import: ours, and those that consul8s had. All are there from the start, at 0.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::apply::VERBS;
use crate::admin::metrics::{DaemonMetrics, PREFIX, Timestamp, registry, set};
use crate::admin::render::Render;
use crate::consul::http::operation::Operation;
use crate::domain::import::core::Importer;
use crate::domain::kube::object::Kind;
use crate::domain::problem::Reason;

/// What is watched.
const KINDS: [Kind; 2] = [Kind::Service, Kind::EndpointSlice];

type Label = [(&'static str, &'static str); 1];

/// The metrics of an import.
pub(super) struct Metrics {
    registry: Registry,
    pub(super) daemon: DaemonMetrics,
    pub(super) synced: Timestamp,
    writes: Family<[(&'static str, &'static str); 2], Counter>,
    answers: Family<Label, Counter>,
    services: Gauge,
    created: Gauge,
    sources: Gauge,
    polled: Gauge,
    problems: Family<Label, Gauge>,
    /// Consul8s counted what it found each time; ours is what is there.
    consul_sourced: Gauge,
    kubernetes_sourced: Gauge,
    pub(super) loop_seconds: Histogram,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: registry(),
            daemon: DaemonMetrics::new(&KINDS, &Operation::ALL.map(Operation::as_str)),
            synced: Timestamp::default(),
            writes: Family::default(),
            answers: Family::default(),
            services: Gauge::default(),
            created: Gauge::default(),
            sources: Gauge::default(),
            polled: Gauge::default(),
            problems: Family::default(),
            consul_sourced: Gauge::default(),
            kubernetes_sourced: Gauge::default(),
            // From a tenth of a millisecond, doubling to three seconds.
            loop_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
        };
        metrics.begin();
        metrics.registered()
    }
}

impl Metrics {
    /// Makes every series.
    fn begin(&self) {
        for verb in VERBS {
            for result in ["done", "failed"] {
                drop(self.writes.get_or_create(&[("verb", verb), ("result", result)]));
            }
        }
        for result in ["true", "unknown"] {
            drop(self.answers.get_or_create(&[("result", result)]));
        }
        for reason in Reason::ALL {
            drop(self.problems.get_or_create(&[("reason", reason.as_str())]));
        }
    }

    fn registered(mut self) -> Self {
        let r = self.registry.sub_registry_with_prefix(PREFIX);
        self.daemon.register(r);
        let r = r.sub_registry_with_prefix("import");
        r.register(
            "writes",
            "EndpointSlices and Services written, by verb and result",
            self.writes.clone(),
        );
        r.register("answers", "Answers of Consul, by result", self.answers.clone());
        r.register("services", "Services that ask for an import", self.services.clone());
        r.register("created_services", "Services that were made here", self.created.clone());
        r.register("sources", "Consul services that are followed", self.sources.clone());
        r.register(
            "polled_sources",
            "Those of them that are read in turn, for want of a connection",
            self.polled.clone(),
        );
        r.register("problems", "Problems of Services, by reason", self.problems.clone());
        r.register(
            "last_sync_timestamp_seconds",
            "When all endpoints were last as Consul has them",
            self.synced.clone(),
        );
        let r = &mut self.registry;
        r.register(
            "number_of_consul_sourced_services",
            "Services whose endpoints come from Consul",
            self.consul_sourced.clone(),
        );
        r.register(
            "number_of_kubernetes_sourced_services",
            "Services that ask the bridge to register them, by the label of consul8s",
            self.kubernetes_sourced.clone(),
        );
        r.register("loop_time_seconds", "Seconds that a turn took", self.loop_seconds.clone());
        self
    }

    /// Consul gave an answer: one that counts, or not.
    pub(super) fn answered(&self, is_true: bool) {
        let result = if is_true { "true" } else { "unknown" };
        self.answers.get_or_create(&[("result", result)]).inc();
    }

    /// A write was answered.
    pub(super) fn wrote(&self, verb: &'static str, is_done: bool) {
        debug_assert!(VERBS.contains(&verb));
        let result = if is_done { "done" } else { "failed" };
        self.writes.get_or_create(&[("verb", verb), ("result", result)]).inc();
    }

    /// A Service has a problem, or has it no longer.
    pub(super) fn problem(&self, reason: Reason, is_new: bool) {
        let gauge = self.problems.get_or_create(&[("reason", reason.as_str())]);
        if is_new {
            gauge.inc()
        } else {
            gauge.dec()
        };
    }

    /// How much there is; `polled`: sources that are read in turn.
    pub(super) fn set(&self, state: &Importer, polled: usize) {
        set(&self.services, state.imported_count());
        set(&self.consul_sourced, state.imported_count());
        set(&self.kubernetes_sourced, state.exported_count());
        set(&self.created, state.created_count());
        set(&self.sources, state.followed());
        set(&self.polled, polled);
    }
}

impl Render for Metrics {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::metrics::testing::{documented, served, words};

    #[test]
    fn the_documented_table_is_what_is_served_with_its_labels() {
        let page = include_str!("../../../docs/import.md");
        let section = page.split("\n## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
        let mut expected = documented(section);
        // What every daemon has is named before the table, and explained with the bridge's.
        let (named, explained) =
            (words(section), documented(include_str!("../../../docs/metrics.md")));
        expected.extend(
            explained
                .into_iter()
                .filter(|(name, _)| named.contains(name) || name.starts_with("process_")),
        );
        assert_eq!(expected, served(&Metrics::default().render().unwrap()));
    }

    #[test]
    fn every_series_is_there_from_the_start_at_0() {
        let text = Metrics::default().render().unwrap();
        for series in [
            "kube_consul_build_info{version=",
            "kube_consul_ready 0",
            "kube_consul_consul_request_failures_total{operation=\"health_read\"} 0",
            "kube_consul_watch_failures_total{kind=\"EndpointSlice\"} 0",
            "kube_consul_watch_last_heard_timestamp_seconds{kind=\"Service\"} 0",
            "kube_consul_import_writes_total{verb=\"write\",result=\"failed\"} 0",
            "kube_consul_import_writes_total{verb=\"delete_service\",result=\"done\"} 0",
            "kube_consul_import_answers_total{result=\"true\"} 0",
            "kube_consul_import_answers_total{result=\"unknown\"} 0",
            "kube_consul_import_services 0",
            "kube_consul_import_created_services 0",
            "kube_consul_import_sources 0",
            "kube_consul_import_polled_sources 0",
            "kube_consul_import_problems{reason=\"Denied\"} 0",
            "kube_consul_import_last_sync_timestamp_seconds 0",
            "process_resident_memory_bytes ",
            // Those of consul8s, by their names there.
            "number_of_consul_sourced_services 0",
            "number_of_kubernetes_sourced_services 0",
            "loop_time_seconds_count 0",
            "loop_time_seconds_sum 0",
        ] {
            assert!(text.contains(&format!("\n{series}")), "{series} in\n{text}");
        }
    }
}
