//! What the import tells people: logs, Events, metrics, readiness.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::apply::Applied;
use super::metrics::Metrics;
use crate::admin::history::{History, Series};
use crate::admin::metrics::now;
use crate::admin::status::{PageHead, Peer, Readiness};
use crate::consul::read::evidence::Unknown;
use crate::domain::import::core::{Importer, Report};
use crate::domain::import::object::Seen;
use crate::domain::import::source::Source;
use crate::domain::kube::object::Kind;
use crate::domain::text::{chain, excerpt};
use crate::kubernetes::events::{Regarding, Reporter};
use crate::kubernetes::watch::Notice;
use crate::run::daemon::retry::LogThrottle;
use crate::run::daemon::watch_health::WatchHealth;

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
    watches: WatchHealth,
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
            watches: WatchHealth::new(metrics.daemon.clone()),
            metrics,
            readiness,
            reporter,
            heard: None,
            silence: None,
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
        self.watches.heard(kind);
    }

    pub(super) fn watch(&mut self, notice: Notice<Seen>) {
        match notice {
            // Both kinds are the API's own: they are served.
            Notice::Event(_) | Notice::NotServed(_) => {}
            Notice::Heard(kind) => self.shown(kind),
            Notice::Trouble(trouble) => {
                tracing::warn!(failures = trouble.failures, "{}", trouble.error);
                self.watches.failed(&trouble);
            }
            Notice::Recovered(kind) => drop(self.watches.recovered(kind)),
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
        let readiness = why.map_or(Readiness::Ready, Readiness::NotReady);
        self.metrics.daemon.set_readiness(&self.readiness, readiness);
        self.metrics.loop_seconds.observe(began.elapsed().as_secs_f64());
    }

    /// The charts of the page.
    pub(super) fn history(&mut self) -> Vec<Series> {
        self.history.series()
    }

    /// What a page of `/status` begins with; both sides are at these URLs.
    pub(super) fn head(&self, state: &Importer, kubernetes: String, consul: String) -> PageHead {
        let peer = |url, trouble| Peer { url, trouble, ..Peer::default() };
        let failure = self.watches.failure().map(|(_, why)| why.to_owned());
        let (kubernetes, consul) = (peer(kubernetes, failure), peer(consul, self.silence.clone()));
        let reason = self.why_not_ready(state);
        PageHead::new("import", reason, kubernetes, consul, self.watches.status())
    }

    /// Why the import is not ready, if it is not.
    pub(super) fn why_not_ready(&self, state: &Importer) -> Option<String> {
        if !state.is_listed() {
            let why = self.watches.failure().map_or("listing Services and slices", |(_, why)| why);
            return Some(why.to_owned());
        }
        if let Some(why) = self.watches.silence() {
            return Some(why);
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

/// A source for people: its service, and the datacenter where one is named.
pub(super) fn name_of(source: &Source) -> String {
    let service = format!("{:?}", excerpt(&source.service));
    match &source.datacenter {
        Some(datacenter) => format!("{service} in datacenter {:?}", excerpt(datacenter)),
        None => service,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::daemon::watch_health::SILENCE as WATCH_SILENCE;

    #[tokio::test(start_paused = true)]
    async fn l1_services_that_nothing_was_heard_of_for_five_minutes_are_not_health() {
        let (readiness, _ready) = watch::channel(Readiness::NotReady(String::new()));
        let mut reporting = Reporting::new(Arc::default(), readiness, Reporter::to_nobody());
        let mut state = Importer::new(None, None);
        state.handle_services_list();
        state.handle_services_listed();
        state.handle_slices_list();
        state.handle_slices_listed();
        for kind in [Kind::Service, Kind::EndpointSlice] {
            reporting.shown(kind);
        }
        tokio::time::advance(WATCH_SILENCE).await;
        reporting.heartbeat(Ok(()));
        assert_eq!(reporting.why_not_ready(&state), None);
        reporting.watch(Notice::Heard(Kind::Service));
        tokio::time::advance(Duration::from_secs(1)).await;
        let why = reporting.why_not_ready(&state).unwrap();
        assert!(why.contains("watch of EndpointSlice for more than 5 minutes"), "{why}");
        assert_eq!(reporting.watches.status()[1].seconds_since_heard, WATCH_SILENCE.as_secs() + 1);
        reporting.watch(Notice::Heard(Kind::EndpointSlice));
        assert_eq!(reporting.why_not_ready(&state), None, "a bookmark is enough");
    }
}
