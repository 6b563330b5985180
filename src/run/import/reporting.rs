//! What the import tells people: logs, Events, metrics, readiness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::Applied;
use super::metrics::Metrics;
use crate::admin::history::{History, Series};
use crate::admin::metrics::now;
use crate::admin::status::{Peer, Readiness, WatchStatus};
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

/// Tells people.
pub(super) struct Reporting {
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    reporter: Reporter,
    heard: Option<Instant>,
    /// Why Consul did not answer last.
    silence: Option<String>,
    watch_failures: BTreeMap<Kind, String>,
    /// When the API server was last heard of on each watch.
    watch_heard: BTreeMap<Kind, Instant>,
    history: History,
    throttle: LogThrottle,
    was_in_sync: bool,
    /// Whether it was told that some Services are the bridge's.
    told_of_exports: bool,
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
            watch_heard: BTreeMap::new(),
            history: History::default(),
            throttle: LogThrottle::default(),
            was_in_sync: false,
            told_of_exports: false,
        }
    }

    /// Consul gave an answer that counts.
    pub(super) fn heard(&mut self) {
        self.metrics.answered(true);
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
        self.metrics.answered(false);
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

    /// Consul's answer is another than before.
    pub(super) fn changed(&mut self) {
        self.history.changed();
    }

    /// The API server shows something, or that it is there.
    pub(super) fn shown(&mut self, kind: Kind) {
        self.watch_heard.insert(kind, Instant::now());
    }

    pub(super) fn watch(&mut self, notice: Notice<Seen>) {
        match notice {
            // Both kinds are the API's own: they are served.
            Notice::Event(_) | Notice::NotServed(_) => {}
            Notice::Heard(kind) => self.shown(kind),
            Notice::Trouble(trouble) => {
                let kind = [("kind", trouble.kind.as_str())];
                self.metrics.watch_failures.get_or_create(&kind).inc();
                tracing::warn!(failures = trouble.failures, "{}", trouble.error);
                self.watch_failures.insert(trouble.kind, trouble.error.to_string());
            }
            Notice::Recovered(kind) => drop(self.watch_failures.remove(&kind)),
        }
    }

    pub(super) fn applied(&mut self, applied: &Applied) {
        self.metrics.wrote(applied.verb, applied.is_done());
        self.history.wrote(applied.is_done(), applied.took);
    }

    /// Tells what is new, and how long the turn took so far.
    pub(super) fn report(&mut self, state: &mut Importer, polled: usize) {
        let began = Instant::now();
        while let Some(report) = state.poll_report() {
            match report {
                Report::InSync { service, ready, endpoints } => {
                    tracing::info!(%service, ready, endpoints, "synced endpoints");
                }
                Report::Problem(service, problem) => {
                    tracing::warn!(%service, reason = %problem.reason, "{}", problem.message);
                    self.metrics.problem(problem.reason, true);
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
                    self.metrics.problem(problem.reason, false);
                }
            }
        }
        self.metrics.set(state, polled);
        if state.is_settled() {
            now(&self.metrics.synced);
        }
        let why = self.why_not_ready(state);
        if why.is_none() && !self.was_in_sync {
            self.was_in_sync = true;
            tracing::info!(services = state.imported_count(), "in sync");
        }
        let exports = state.exported_count();
        if exports > 0 && !std::mem::replace(&mut self.told_of_exports, true) {
            tracing::warn!(
                services = exports,
                "label consul8s_source: kubernetes asks to be registered in Consul, which \
                 kube-consul bridge does"
            );
        }
        self.metrics.ready.set(i64::from(why.is_none()));
        let readiness = why.map_or(Readiness::Ready, Readiness::NotReady);
        self.readiness.send_if_modified(|before| {
            let is_new = *before != readiness;
            *before = readiness;
            is_new
        });
        self.metrics.loop_seconds.observe(began.elapsed().as_secs_f64());
    }

    /// The charts of the page.
    pub(super) fn history(&mut self) -> Vec<Series> {
        self.history.series()
    }

    /// Consul at this URL.
    pub(super) fn consul(&self, url: String) -> Peer {
        peer(url, self.silence.clone())
    }

    /// The API server at this URL.
    pub(super) fn kubernetes(&self, url: String) -> Peer {
        peer(url, self.watch_failures.values().next().cloned())
    }

    /// The watches of the API server.
    pub(super) fn watches(&self) -> Vec<WatchStatus> {
        let status = |(kind, heard): (&Kind, &Instant)| WatchStatus {
            kind: kind.as_str(),
            seconds_since_heard: heard.elapsed().as_secs(),
            trouble: self.watch_failures.get(kind).cloned(),
        };
        self.watch_heard.iter().map(status).collect()
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
}

fn peer(url: String, trouble: Option<String>) -> Peer {
    Peer { url, trouble, ..Peer::default() }
}

/// A source for people: its service, and the datacenter where one is named.
pub(super) fn name_of(source: &Source) -> String {
    let service = format!("{:?}", excerpt(&source.service));
    match &source.datacenter {
        Some(datacenter) => format!("{service} in datacenter {:?}", excerpt(datacenter)),
        None => service,
    }
}
