//! The metrics of a node daemon: ours, and those that katalog-sync had. All are there from the start,
//! at 0.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::admin::metrics::{DaemonMetrics, PREFIX, Timestamp, now, registry, set};
use crate::admin::render::Render;
use crate::consul::http::operation::Operation;
use crate::domain::kube::object::Kind;
use crate::domain::node::core::Counts;
use crate::domain::node::exchange::{Action, Answer};
use crate::domain::problem::Reason;

/// Requests that change the agent, as the label `kind` names them.
const WRITES: [&str; 4] = ["register", "check", "remove_check", "deregister"];
/// What became of one, as the label `result` names it.
const RESULTS: [&str; 6] = ["done", "unknown_check", "refused", "denied", "failed", "unanswered"];
/// What became of a list or reading, as katalog-sync named it.
const STATUSES: [&str; 2] = ["success", "error"];

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics of a node daemon.
pub(super) struct Metrics {
    registry: Registry,
    pub(super) daemon: DaemonMetrics,
    writes: Family<Labels<2>, Counter>,
    pub(super) propagation: Histogram,
    pods: Gauge,
    registrations: Family<Labels<1>, Gauge>,
    backlog: Gauge,
    problems: Family<Labels<1>, Gauge>,
    held: Gauge,
    synced: Timestamp,
    kubelet_syncs: Family<Labels<1>, Counter>,
    kubelet_seconds: Family<Labels<1>, Histogram>,
    consul_syncs: Family<Labels<1>, Counter>,
    consul_seconds: Family<Labels<1>, Histogram>,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        // From a tenth of a millisecond, doubling to three seconds.
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let metrics = Self {
            registry: registry(),
            daemon: DaemonMetrics::new(&[Kind::Pod], &Operation::ALL.map(Operation::as_str)),
            writes: Family::default(),
            // From a millisecond, doubling to half a minute: a write that is tried again counts whole.
            propagation: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            pods: Gauge::default(),
            registrations: Family::default(),
            backlog: Gauge::default(),
            problems: Family::default(),
            held: Gauge::default(),
            synced: Timestamp::default(),
            kubelet_syncs: Family::default(),
            kubelet_seconds: Family::new_with_constructor(seconds),
            consul_syncs: Family::default(),
            consul_seconds: Family::new_with_constructor(seconds),
        };
        metrics.begin();
        metrics.registered()
    }
}

impl Metrics {
    /// Makes every series.
    fn begin(&self) {
        for kind in WRITES {
            for result in RESULTS {
                drop(self.writes.get_or_create(&[("kind", kind), ("result", result)]));
            }
        }
        for health in ["passing", "warning", "critical"] {
            drop(self.registrations.get_or_create(&[("health", health)]));
        }
        for reason in Reason::ALL {
            drop(self.problems.get_or_create(&[("reason", reason.as_str())]));
        }
        for status in STATUSES {
            let label = [("status", status)];
            for counts in [&self.kubelet_syncs, &self.consul_syncs] {
                drop(counts.get_or_create(&label));
            }
            for seconds in [&self.kubelet_seconds, &self.consul_seconds] {
                drop(seconds.get_or_create(&label));
            }
        }
    }

    fn registered(mut self) -> Self {
        let r = self.registry.sub_registry_with_prefix(PREFIX);
        self.daemon.register(r);
        let r = r.sub_registry_with_prefix("node");
        r.register(
            "writes",
            "Requests that change the agent, by kind and result",
            self.writes.clone(),
        );
        r.register(
            "propagation_seconds",
            "Seconds from a change of a pod to the agent's answer to the last write for it",
            self.propagation.clone(),
        );
        r.register("pods", "Pods that ask to be registered", self.pods.clone());
        r.register(
            "registrations",
            "Registrations in the agent, by health",
            self.registrations.clone(),
        );
        r.register("backlog", "Registrations that are being written", self.backlog.clone());
        r.register("problems", "Problems of pods, by reason", self.problems.clone());
        r.register("removals_held", "1 while removals are held back", self.held.clone());
        r.register(
            "last_sync_timestamp_seconds",
            "When the agent last had all as it ought to be",
            self.synced.clone(),
        );
        let r = self.registry.sub_registry_with_prefix("katalog_sync");
        r.register("kubelet_sync_count", "Lists of the pods", self.kubelet_syncs.clone());
        r.register(
            "kubelet_sync_duration_seconds",
            "How long a list of the pods took",
            self.kubelet_seconds.clone(),
        );
        r.register("consul_sync_count", "Readings of the agent", self.consul_syncs.clone());
        r.register(
            "consul_sync_duration_seconds",
            "How long a reading of the agent took",
            self.consul_seconds.clone(),
        );
        self
    }

    /// The pods were listed, or could not be, in so many seconds.
    pub(super) fn listed(&self, is_done: bool, seconds: f64) {
        let label = [("status", STATUSES[usize::from(!is_done)])];
        self.kubelet_syncs.get_or_create(&label).inc();
        self.kubelet_seconds.get_or_create(&label).observe(seconds);
    }

    /// The agent was read, or could not be, in so many seconds.
    pub(super) fn read(&self, is_done: bool, seconds: f64) {
        let label = [("status", STATUSES[usize::from(!is_done)])];
        self.consul_syncs.get_or_create(&label).inc();
        self.consul_seconds.get_or_create(&label).observe(seconds);
    }

    /// A write was answered. Gives its kind, what became of it and why, as metrics and logs name them.
    pub(super) fn wrote<'a>(
        &self,
        action: &Action,
        answer: &'a Answer,
    ) -> (&'static str, &'static str, &'a str) {
        let kind = match action {
            Action::Register(..) => WRITES[0],
            Action::Update { .. } => WRITES[1],
            Action::RemoveCheck(_) => WRITES[2],
            _ => WRITES[3],
        };
        let (result, why) = match answer {
            Answer::Done => (RESULTS[0], ""),
            Answer::UnknownCheck(why) => (RESULTS[1], why.as_str()),
            Answer::Refused(why) => (RESULTS[2], why.as_str()),
            Answer::Denied(why) => (RESULTS[3], why.as_str()),
            Answer::Failed(why) => (RESULTS[4], why.as_str()),
            Answer::Unanswered(why) => (RESULTS[5], why.as_str()),
        };
        self.writes.get_or_create(&[("kind", kind), ("result", result)]).inc();
        (kind, result, why)
    }

    /// How much there is.
    pub(super) fn set(&self, counts: &Counts, is_holding: bool) {
        set(&self.pods, counts.pods);
        set(&self.backlog, counts.backlog);
        for (health, count) in [
            ("passing", counts.passing),
            ("warning", counts.warning),
            ("critical", counts.registrations - counts.passing - counts.warning),
        ] {
            set(&self.registrations.get_or_create(&[("health", health)]), count);
        }
        for reason in Reason::ALL {
            let count = counts.problems.get(&reason).copied().unwrap_or_default();
            set(&self.problems.get_or_create(&[("reason", reason.as_str())]), count);
        }
        self.held.set(i64::from(is_holding));
    }

    /// The agent has all as it ought to be.
    pub(super) fn in_sync(&self) {
        now(&self.synced);
    }
}

impl Render for Metrics {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::admin::metrics::testing::{documented, served};

    #[test]
    fn the_documented_table_is_what_is_served_with_its_labels() {
        let page = include_str!("../../../docs/node.md");
        let section = page.split("\n## Metrics").nth(1).unwrap().split("\n## ").next().unwrap();
        let mut expected = documented(section);
        // Explained one by one with the bridge's.
        assert!(expected.remove("process_*").is_some());
        let explained = documented(include_str!("../../../docs/metrics.md"));
        expected.extend(explained.into_iter().filter(|(name, _)| name.starts_with("process_")));
        assert_eq!(expected, served(&Metrics::default().render().unwrap()));
    }

    #[test]
    fn every_series_is_there_from_the_start_and_no_other_comes() {
        let metrics = Metrics::default();
        let series = |text: &str| -> BTreeSet<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.filter_map(|line| line.rsplit_once(' ')).map(|it| it.0.to_owned()).collect()
        };
        let before = metrics.render().unwrap();
        for line in [
            "kube_consul_ready 0",
            "kube_consul_watch_failures_total{kind=\"Pod\"} 0",
            "kube_consul_watch_last_heard_timestamp_seconds{kind=\"Pod\"} 0",
            "kube_consul_consul_request_failures_total{operation=\"agent_check\"} 0",
            "kube_consul_node_writes_total{kind=\"register\",result=\"done\"} 0",
            "kube_consul_node_writes_total{kind=\"deregister\",result=\"unanswered\"} 0",
            "kube_consul_node_registrations{health=\"warning\"} 0",
            "kube_consul_node_problems{reason=\"Denied\"} 0",
            "kube_consul_node_propagation_seconds_count 0",
            "katalog_sync_kubelet_sync_count_total{status=\"error\"} 0",
            "katalog_sync_consul_sync_duration_seconds_count{status=\"success\"} 0",
        ] {
            assert!(before.contains(&format!("\n{line}")), "{line} in\n{before}");
        }
        for answer in [
            Answer::Done,
            Answer::UnknownCheck(String::new()),
            Answer::Refused(String::new()),
            Answer::Denied(String::new()),
            Answer::Failed(String::new()),
            Answer::Unanswered(String::new()),
        ] {
            for action in [Action::RemoveCheck("a".into()), Action::Deregister("a".into())] {
                metrics.wrote(&action, &answer);
            }
        }
        for is_done in [true, false] {
            metrics.listed(is_done, 0.1);
            metrics.read(is_done, 0.1);
        }
        metrics.daemon.heard(Kind::Pod);
        metrics.daemon.watch_failed(Kind::Pod, 1);
        metrics.set(&Counts::default(), false);
        assert_eq!(series(&before), series(&metrics.render().unwrap()), "labels are bounded");
    }
}
