//! What the import tells people: logs, Events, metrics, readiness, `/status`.

use std::collections::BTreeMap;
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

use super::apply::Applied;
use crate::admin::status::Readiness;
use crate::admin::{Question, Render};
use crate::consul::read::evidence::Unknown;
use crate::domain::import::core::{Importer, Report};
use crate::domain::import::object::Seen;
use crate::domain::import::source::Source;
use crate::domain::kube::object::Kind;
use crate::domain::text::{chain, excerpt};
use crate::kubernetes::events::{Regarding, Reporter};
use crate::kubernetes::watch::Notice;
use crate::run::daemon::retry::LogThrottle;

/// Consul that has not answered for this long makes the import unready.
const SILENCE: Duration = Duration::from_mins(1);

/// The metrics: ours, and those that consul8s had.
pub(super) struct Metrics {
    registry: Registry,
    writes: Family<[(&'static str, &'static str); 2], Counter>,
    answers: Family<[(&'static str, &'static str); 1], Counter>,
    services: Gauge,
    created: Gauge,
    sources: Gauge,
    problems: Family<[(&'static str, &'static str); 1], Gauge>,
    /// Consul8s counted what it found each time; ours is what is followed.
    consul_sourced: Gauge,
    /// What consul8s wrote the other way is the bridge's: none here.
    kubernetes_sourced: Gauge,
    loop_seconds: Histogram,
}

/// One page of `/status`.
#[derive(Debug, Serialize)]
pub(super) struct ImportPage {
    command: &'static str,
    version: &'static str,
    ready: bool,
    reason: Option<String>,
    services: Vec<ServiceStatus>,
    /// `namespace/name` with which the next page is asked for; none on the last.
    next: Option<String>,
}

#[derive(Debug, Serialize)]
struct ServiceStatus {
    namespace: String,
    name: String,
    /// Consul services, in order of preference.
    sources: Vec<String>,
    endpoints: usize,
    ready: usize,
    slices: usize,
    problems: Vec<String>,
}

/// Tells people.
pub(super) struct Reporting {
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    reporter: Reporter,
    heard: Option<Instant>,
    /// Why Consul did not answer last.
    silence: Option<String>,
    watch_failures: BTreeMap<Kind, String>,
    throttle: LogThrottle,
    was_in_sync: bool,
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let metrics = Self {
            registry: Registry::default(),
            writes: Family::default(),
            answers: Family::default(),
            services: Gauge::default(),
            created: Gauge::default(),
            sources: Gauge::default(),
            problems: Family::default(),
            consul_sourced: Gauge::default(),
            kubernetes_sourced: Gauge::default(),
            // From a tenth of a millisecond, doubling to three seconds.
            loop_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, 16)),
        };
        metrics.registered()
    }
}

impl Metrics {
    fn registered(mut self) -> Self {
        let r = self.registry.sub_registry_with_prefix("kube_consul_import");
        r.register(
            "writes",
            "EndpointSlices and Services written, by verb and result",
            self.writes.clone(),
        );
        r.register("answers", "Answers of Consul, by result", self.answers.clone());
        r.register("services", "Services that ask for an import", self.services.clone());
        r.register("created_services", "Services that were made here", self.created.clone());
        r.register("sources", "Consul services that are followed", self.sources.clone());
        r.register("problems", "Problems of Services, by reason", self.problems.clone());
        let r = &mut self.registry;
        r.register(
            "number_of_consul_sourced_services",
            "Services whose endpoints come from Consul",
            self.consul_sourced.clone(),
        );
        r.register(
            "number_of_kubernetes_sourced_services",
            "Always 0: these are the bridge's",
            self.kubernetes_sourced.clone(),
        );
        r.register("loop_time_seconds", "Seconds that a turn took", self.loop_seconds.clone());
        self
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
            heard: None,
            silence: None,
            watch_failures: BTreeMap::new(),
            throttle: LogThrottle::default(),
            was_in_sync: false,
        }
    }

    /// Consul gave an answer that counts.
    pub(super) fn heard(&mut self) {
        self.metrics.answers.get_or_create(&[("result", "true")]).inc();
        self.heard = Some(Instant::now());
        self.silence = None;
    }

    pub(super) fn heartbeat(&mut self, alive: Result<(), String>) {
        match alive {
            Ok(()) => {
                self.heard = Some(Instant::now());
                self.silence = None;
            }
            Err(why) => self.failed("no sign of life from Consul", why),
        }
    }

    /// A source gave no answer that counts: its endpoints stay as they are.
    pub(super) fn unanswered(&mut self, source: &Source, why: &Unknown) {
        self.metrics.answers.get_or_create(&[("result", "unknown")]).inc();
        let service = name_of(source);
        self.failed(&format!("Consul service {service}: the endpoints stay"), chain(why));
    }

    /// The names of Consul's services could not be read: no Service is made meanwhile.
    pub(super) fn no_names(&mut self, why: &Unknown) {
        self.failed("the names of Consul's services are not known", chain(why));
    }

    fn failed(&mut self, what: &str, why: String) {
        if self.throttle.should_log() {
            tracing::warn!(error = why, "{what}");
        }
        self.silence = Some(why);
    }

    pub(super) fn watch(&mut self, notice: Notice<Seen>) {
        match notice {
            Notice::Event(_) | Notice::Heard(_) => {}
            Notice::Trouble(trouble) => {
                tracing::warn!(failures = trouble.failures, "{}", trouble.error);
                self.watch_failures.insert(trouble.kind, trouble.error.to_string());
            }
            Notice::Recovered(kind) => drop(self.watch_failures.remove(&kind)),
        }
    }

    pub(super) fn applied(&mut self, applied: &Applied) {
        let result = if applied.is_done() { "done" } else { "failed" };
        self.metrics.writes.get_or_create(&[("verb", applied.verb), ("result", result)]).inc();
    }

    /// Tells what is new, and how long the turn took so far.
    pub(super) fn report(&mut self, state: &mut Importer) {
        let began = Instant::now();
        while let Some(report) = state.poll_report() {
            match report {
                Report::InSync { service, ready, endpoints } => {
                    tracing::info!(%service, ready, endpoints, "synced endpoints");
                }
                Report::Problem(service, problem) => {
                    tracing::warn!(%service, reason = %problem.reason, "{}", problem.message);
                    let reason = [("reason", problem.reason.as_str())];
                    self.metrics.problems.get_or_create(&reason).inc();
                    let uid = state.uid(&service);
                    let regarding = Regarding { kind: Kind::Service.into(), key: service, uid };
                    self.reporter.report(regarding, problem);
                }
                Report::Created(service, name) => {
                    tracing::info!(%service, consul_service = %name, "created Service");
                }
                Report::EndpointsDeleted(service) => {
                    tracing::info!(%service, "deleted the Endpoints that consul8s left");
                }
                Report::Adopted(service, name) => {
                    tracing::info!(%service, consul_service = %name, "adopted Service of consul-k8s");
                }
                Report::Deleted(service, name) => {
                    tracing::info!(%service, consul_service = %name, "deleted Service: its Consul service is gone");
                }
                Report::Solved(service, problem) => {
                    tracing::info!(%service, reason = %problem.reason, "solved");
                    let reason = [("reason", problem.reason.as_str())];
                    self.metrics.problems.get_or_create(&reason).dec();
                }
            }
        }
        self.gauges(state);
        let why = self.why_not_ready(state);
        if why.is_none() && !self.was_in_sync {
            self.was_in_sync = true;
            tracing::info!(services = state.imported_count(), "in sync");
        }
        let readiness = why.map_or(Readiness::Ready, Readiness::NotReady);
        self.readiness.send_if_modified(|before| {
            let is_new = *before != readiness;
            *before = readiness;
            is_new
        });
        self.metrics.loop_seconds.observe(began.elapsed().as_secs_f64());
    }

    fn gauges(&self, state: &Importer) {
        let set = |gauge: &Gauge, value: usize| gauge.set(value.try_into().unwrap_or(i64::MAX));
        set(&self.metrics.services, state.imported_count());
        set(&self.metrics.consul_sourced, state.imported_count());
        set(&self.metrics.created, state.created_count());
        set(&self.metrics.sources, state.followed());
    }

    /// Why the import is not ready, if it is not.
    pub(super) fn why_not_ready(&self, state: &Importer) -> Option<String> {
        if !state.is_listed() {
            let failed = self.watch_failures.values().next();
            return Some(
                failed.cloned().unwrap_or_else(|| "listing Services and slices".to_owned()),
            );
        }
        if self.heard.is_none_or(|heard| heard.elapsed() >= SILENCE) {
            let why = self.silence.as_deref().unwrap_or("no answer yet");
            return Some(format!("waiting for Consul: {why}"));
        }
        if self.was_in_sync {
            return None;
        }
        if state.waits_for_names() {
            let why = self.silence.as_deref().map_or(String::new(), |why| format!(": {why}"));
            return Some(format!("the names of Consul's services are not known yet{why}"));
        }
        let unanswered = state.unanswered().next()?;
        let why = self.silence.as_deref().map_or(String::new(), |why| format!(": {why}"));
        Some(format!("no answer yet for Consul service {}{why}", name_of(unanswered)))
    }

    /// Answers what the admin server asks.
    pub(super) fn answer(&self, state: &Importer, question: Question<ImportPage>) {
        match question {
            Question::Alive(reply) => drop(reply.send(())),
            Question::Page(selection, reply) => {
                let reason = self.why_not_ready(state);
                let summaries = state.summaries(selection.after.as_ref());
                let (services, next) = selection.page(summaries);
                let services = services.into_iter().map(|(key, summary)| ServiceStatus {
                    namespace: key.namespace.to_string(),
                    name: key.name.to_string(),
                    sources: summary.sources.iter().map(name_of).collect(),
                    endpoints: summary.endpoints,
                    ready: summary.ready,
                    slices: summary.slices,
                    problems: state.problems_of(key).map(ToString::to_string).collect(),
                });
                let page = ImportPage {
                    command: "import",
                    version: env!("CARGO_PKG_VERSION"),
                    ready: reason.is_none(),
                    reason,
                    services: services.collect(),
                    next,
                };
                drop(reply.send(page));
            }
        }
    }
}

/// A source for people: its service, and the datacenter where one is named.
pub(super) fn name_of(source: &Source) -> String {
    let service = format!("{:?}", excerpt(&source.service));
    match &source.datacenter {
        Some(datacenter) => format!("{service} in datacenter {:?}", excerpt(datacenter)),
        None => service,
    }
}
