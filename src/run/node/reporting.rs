//! What the daemon tells people: logs, Events, metrics, readiness, `/status`.

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Reading, Written};
use crate::admin::status::Readiness;
use crate::admin::{Question, Render};
use crate::domain::Moment;
use crate::domain::kube::object::{Subject, WatchEvent};
use crate::domain::node::core::Core;
use crate::domain::node::exchange::{Action, Answer, GatePatch, PatchError, Report};
use crate::domain::node::pod::Seen;
use crate::domain::node::wanted::CheckStatus;
use crate::kubernetes::events::{Regarding, Reporter};
use crate::kubernetes::watch::Notice;
use crate::run::daemon::retry::LogThrottle;

/// An agent that has not answered for this long makes the daemon unready.
const SILENCE: Duration = Duration::from_mins(1);

/// How a pod reaches the agent of its node, for those that do not.
const REACHED_BY: &str = "; a pod reaches its node's agent at $(HOST_IP):8500 where the agent's pod \
                          has a hostPort or the agent listens on the host's network (hostNetwork), \
                          or by a socket (unix:///PATH) that both mount";

type Labels = [(&'static str, &'static str); 1];

/// The metrics: ours, and those that katalog-sync had.
pub(super) struct Metrics {
    registry: Registry,
    writes: Family<[(&'static str, &'static str); 2], Counter>,
    pods: Gauge,
    registrations: Gauge,
    problems: Gauge,
    held: Gauge,
    kubelet_syncs: Family<Labels, Counter>,
    kubelet_seconds: Family<Labels, Histogram>,
    consul_syncs: Family<Labels, Counter>,
    consul_seconds: Family<Labels, Histogram>,
}

/// One page of `/status`.
#[derive(Debug, Serialize)]
pub(super) struct NodePage {
    version: &'static str,
    ready: bool,
    reason: Option<String>,
    /// Whether removals are held back until they are confirmed.
    holding: bool,
    /// How long ago the agent answered last, in seconds.
    last_sync_seconds: Option<f64>,
    pods: Vec<PodStatus>,
    /// `namespace/name` with which the next page is asked for; none on the last.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct PodStatus {
    namespace: String,
    name: String,
    ready: bool,
    /// What its sidecar said last, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecar: Option<String>,
    services: Vec<ServiceStatus>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ServiceStatus {
    id: String,
    /// The check's status in the agent; none: it is not registered.
    status: Option<&'static str>,
    /// In how many seconds the check is refreshed; a critical one never is.
    next_heartbeat_seconds: Option<f64>,
}

/// Tells people.
pub(super) struct Reporting {
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    reporter: Reporter,
    watch_failure: Option<String>,
    list_began: Instant,
    read_began: Instant,
    throttle: LogThrottle,
    was_in_sync: bool,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        // From a tenth of a millisecond, doubling to three seconds.
        let seconds = || Histogram::new(exponential_buckets(0.0001, 2.0, 16));
        let mut metrics = Self {
            registry: Registry::default(),
            writes: Family::default(),
            pods: Gauge::default(),
            registrations: Gauge::default(),
            problems: Gauge::default(),
            held: Gauge::default(),
            kubelet_syncs: Family::default(),
            kubelet_seconds: Family::new_with_constructor(seconds),
            consul_syncs: Family::default(),
            consul_seconds: Family::new_with_constructor(seconds),
        };
        let r = metrics.registry.sub_registry_with_prefix("kube_consul_node");
        r.register("writes", "Requests that change the agent", metrics.writes.clone());
        r.register("pods", "Pods that ask to be registered", metrics.pods.clone());
        r.register("registrations", "Registrations in the agent", metrics.registrations.clone());
        r.register("problems", "Problems of pods", metrics.problems.clone());
        r.register("removals_held", "Whether removals are held back", metrics.held.clone());
        let r = metrics.registry.sub_registry_with_prefix("katalog_sync");
        r.register("kubelet_sync_count", "Lists of the pods", metrics.kubelet_syncs.clone());
        r.register(
            "kubelet_sync_duration_seconds",
            "How long a list of the pods took",
            metrics.kubelet_seconds.clone(),
        );
        r.register("consul_sync_count", "Readings of the agent", metrics.consul_syncs.clone());
        r.register(
            "consul_sync_duration_seconds",
            "How long a reading of the agent took",
            metrics.consul_seconds.clone(),
        );
        metrics
    }
}

impl Render for Metrics {
    fn registry(&self) -> &Registry {
        &self.registry
    }
}

// === impl Reporting ===

impl Reporting {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        readiness: watch::Sender<Readiness>,
        reporter: Reporter,
    ) -> Self {
        Self {
            metrics,
            readiness,
            reporter,
            watch_failure: None,
            list_began: Instant::now(),
            read_began: Instant::now(),
            throttle: LogThrottle::default(),
            was_in_sync: false,
        }
    }

    pub(super) fn watch(&mut self, notice: &Notice<Seen>) {
        let listed = |status, began: Instant, metrics: &Metrics| {
            metrics.kubelet_syncs.get_or_create(&[("status", status)]).inc();
            let took = began.elapsed().as_secs_f64();
            metrics.kubelet_seconds.get_or_create(&[("status", status)]).observe(took);
        };
        match notice {
            Notice::Event(WatchEvent::ListStarted(_)) => self.list_began = Instant::now(),
            Notice::Event(WatchEvent::ListCompleted(_)) => {
                listed("success", self.list_began, &self.metrics);
                if self.watch_failure.take().is_some() {
                    tracing::info!("the pods are shown again");
                }
            }
            Notice::Trouble(trouble) => {
                listed("error", self.list_began, &self.metrics);
                tracing::warn!(
                    failures = trouble.failures,
                    "waiting for the pods; what is registered stays: {}",
                    trouble.error
                );
                self.watch_failure = Some(trouble.error.to_string());
            }
            Notice::Recovered(_) => self.watch_failure = None,
            Notice::Event(_) | Notice::Heard(_) | Notice::NotServed(_) => {}
        }
    }

    pub(super) fn reading_agent(&mut self) {
        self.read_began = Instant::now();
    }

    pub(super) fn read_agent(&mut self, read: &Reading) {
        let status = if read.is_ok() { "success" } else { "error" };
        self.metrics.consul_syncs.get_or_create(&[("status", status)]).inc();
        let took = self.read_began.elapsed().as_secs_f64();
        self.metrics.consul_seconds.get_or_create(&[("status", status)]).observe(took);
        if let Err(why) = read
            && self.throttle.should_log()
        {
            tracing::warn!(error = why, "waiting for the Consul agent{}", REACHED_BY);
        }
    }

    pub(super) fn catalog_failed(&mut self, service: &str, why: &str) {
        if self.throttle.should_log() {
            tracing::warn!(
                service,
                error = why,
                "the catalog does not show what sidecars and gates wait for"
            );
        }
    }

    pub(super) fn patched(patch: &GatePatch, result: &Result<(), PatchError>) {
        match result {
            Ok(()) => tracing::info!(
                pod = %patch.pod,
                gates = ?patch.gates,
                status = patch.status,
                "readiness gate set"
            ),
            Err(why) => tracing::debug!(pod = %patch.pod, ?why, "readiness gate not set"),
        }
    }

    pub(super) fn wrote(&mut self, written: &Written) {
        let kind = match written.action {
            Action::Register(..) => "register",
            Action::Update { .. } => "check",
            _ => "deregister",
        };
        let (result, why) = match &written.answer {
            Answer::Done => ("done", ""),
            Answer::UnknownCheck(why) => ("unknown_check", why.as_str()),
            Answer::Refused(why) => ("refused", why.as_str()),
            Answer::Denied(why) => ("denied", why.as_str()),
            Answer::Failed(why) => ("failed", why.as_str()),
            Answer::Unanswered(why) => ("unanswered", why.as_str()),
        };
        let took = written.took.as_millis();
        tracing::debug!(id = %written.id, kind, result, why, took_ms = took, "write");
        if matches!(result, "failed" | "unanswered") && self.throttle.should_log() {
            tracing::warn!(id = %written.id, error = why, "the agent did not take it: it is tried again");
        }
        self.metrics.writes.get_or_create(&[("kind", kind), ("result", result)]).inc();
    }

    /// Tells what is new.
    pub(super) fn report(&mut self, core: &mut Core, now: Moment) {
        while let Some(report) = core.poll_report() {
            match report {
                Report::Registered(pod, id, status) => {
                    tracing::info!(%pod, %id, status = status.as_str(), "registered");
                }
                Report::Changed(pod, id, status) => {
                    tracing::info!(%pod, %id, status = status.as_str(), "status changed");
                }
                Report::Deregistered(pod, id) => tracing::info!(%pod, %id, "deregistered"),
                Report::Problem(key, problem) => {
                    tracing::warn!(pod = %key, reason = %problem.reason, "{}", problem.message);
                    let uid = core.uid(&key);
                    let regarding = Regarding { kind: Subject::Pod, key, uid };
                    self.reporter.report(regarding, problem);
                }
                Report::Solved(pod, problem) => {
                    tracing::info!(%pod, reason = %problem.reason, "solved");
                }
                Report::Drifted(id, why) => {
                    tracing::warn!(%id, "changed by others: {why}; registering it again");
                }
                Report::Held(lost, total) => tracing::warn!(
                    "{lost} of {total} registrations have no pod any more: held back until a second \
                     list agrees"
                ),
                Report::Released => tracing::info!("removals are held back no longer"),
                Report::Empty => tracing::warn!(
                    "expected at least one pod on this node, found none in two lists: nothing is \
                     removed, its checks are critical; is it the right node, or kubelet?"
                ),
            }
        }
        let (pods, registrations, problems) = core.counts();
        let set = |gauge: &Gauge, value: usize| gauge.set(value.try_into().unwrap_or(i64::MAX));
        set(&self.metrics.pods, pods);
        set(&self.metrics.registrations, registrations);
        set(&self.metrics.problems, problems);
        self.metrics.held.set(i64::from(core.is_holding()));
        let why = self.why_not_ready(core, now);
        if why.is_none() && !std::mem::replace(&mut self.was_in_sync, true) {
            tracing::info!(pods, registrations, problems, "in sync");
        }
        let readiness = why.map_or(Readiness::Ready, Readiness::NotReady);
        self.readiness.send_if_modified(|before| {
            let is_new = *before != readiness;
            *before = readiness;
            is_new
        });
    }

    fn why_not_ready(&self, core: &Core, now: Moment) -> Option<String> {
        if !core.is_listed() {
            let why = self.watch_failure.as_deref().unwrap_or("no list yet");
            return Some(format!("waiting for the pods: {why}"));
        }
        let (answered, failure) = core.agent();
        if answered.is_none_or(|at| now.saturating_sub(at) >= SILENCE) {
            let why = failure.unwrap_or("no answer yet");
            return Some(format!("waiting for the Consul agent: {why}{REACHED_BY}"));
        }
        if self.was_in_sync {
            return None;
        }
        let backlog = core.backlog();
        (backlog > 0).then(|| format!("{backlog} registrations are being written"))
    }

    /// Answers what the admin server asks.
    pub(super) fn answer(&self, core: &Core, question: Question<NodePage>, now: Moment) {
        let (selection, reply) = match question {
            Question::Page(selection, reply) => (selection, reply),
            Question::Alive(reply) => return reply.send(()).unwrap_or_default(),
        };
        let reason = self.why_not_ready(core, now);
        let mut pods: Vec<PodStatus> = Vec::new();
        let (page, next) = selection.page(core.pods(selection.after.as_ref()));
        for (key, view) in page {
            let services = view.registrations.iter().map(|(id, status, beat)| ServiceStatus {
                id: (*id).to_owned(),
                status: status.map(CheckStatus::as_str),
                next_heartbeat_seconds: beat.map(|at| at.saturating_sub(now).as_secs_f64()),
            });
            pods.push(PodStatus {
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                ready: view.is_ready,
                sidecar: view.sidecar.map(|sidecar| format!("{sidecar:?}")),
                services: services.collect(),
                problems: view.problems.iter().map(ToString::to_string).collect(),
            });
        }
        let page = NodePage {
            version: env!("CARGO_PKG_VERSION"),
            ready: reason.is_none(),
            reason,
            holding: core.is_holding(),
            last_sync_seconds: core.agent().0.map(|at| now.saturating_sub(at).as_secs_f64()),
            pods,
            next,
        };
        drop(reply.send(page));
    }
}
