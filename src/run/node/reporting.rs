//! What the daemon tells people: logs, Events, metrics, readiness.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::agent::{Reading, Written};
use super::metrics::Metrics;
use crate::admin::history::{History, Series};
use crate::admin::status::{PageHead, Peer, Readiness};
use crate::domain::Moment;
use crate::domain::kube::object::{Kind, Subject, WatchEvent};
use crate::domain::node::core::Core;
use crate::domain::node::exchange::{Answer, GatePatch, PatchError, Report};
use crate::domain::node::pod::Seen;
use crate::kubernetes::events::{Regarding, Reporter};
use crate::kubernetes::watch::Notice;
use crate::run::daemon::retry::LogThrottle;
use crate::run::daemon::watch_health::WatchHealth;

/// An agent that has not answered for this long makes the daemon unready.
const SILENCE: Duration = Duration::from_mins(1);

/// How a pod reaches the agent of its node, for those that do not.
const REACHED_BY: &str = "; a pod reaches its node's agent at $(HOST_IP):8500 where the agent's pod \
                          has a hostPort or the agent listens on the host's network (hostNetwork), \
                          or by a socket (unix:///PATH) that both mount";

/// Tells people.
pub(super) struct Reporting {
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    reporter: Reporter,
    /// Where the pods come from.
    pods_from: String,
    /// Where Consul is, and what it says of itself where it may be asked.
    consul: Peer,
    watches: WatchHealth,
    history: History,
    list_began: Instant,
    read_began: Instant,
    throttle: LogThrottle,
    was_in_sync: bool,
}

// === impl Reporting ===

impl Reporting {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        readiness: watch::Sender<Readiness>,
        reporter: Reporter,
        pods_from: String,
        consul: String,
    ) -> Self {
        Self {
            watches: WatchHealth::new(metrics.daemon.clone()),
            metrics,
            readiness,
            reporter,
            pods_from,
            consul: Peer { url: consul, ..Peer::default() },
            history: History::with_propagation(),
            list_began: Instant::now(),
            read_began: Instant::now(),
            throttle: LogThrottle::default(),
            was_in_sync: false,
        }
    }

    pub(super) fn watch(&mut self, notice: &Notice<Seen>) {
        match notice {
            Notice::Event(WatchEvent::ListStarted(_)) => self.list_began = Instant::now(),
            Notice::Event(WatchEvent::ListCompleted(_)) => {
                self.metrics.listed(true, self.list_began.elapsed().as_secs_f64());
                if self.watches.listed(Kind::Pod) {
                    tracing::info!("the pods are shown again");
                }
            }
            Notice::Trouble(trouble) => {
                self.metrics.listed(false, self.list_began.elapsed().as_secs_f64());
                tracing::warn!(
                    failures = trouble.failures,
                    "waiting for the pods; what is registered stays: {}",
                    trouble.error
                );
                self.watches.failed(trouble);
            }
            Notice::Recovered(kind) => drop(self.watches.recovered(*kind)),
            Notice::Event(_) | Notice::Heard(_) => self.watches.heard(Kind::Pod),
            Notice::NotServed(_) => {}
        }
    }

    /// A pod is another than before.
    pub(super) fn changed(&mut self) {
        self.history.changed();
    }

    pub(super) fn reading_agent(&mut self) {
        self.read_began = Instant::now();
    }

    pub(super) fn read_agent(&mut self, read: &Reading) {
        self.metrics.read(read.is_ok(), self.read_began.elapsed().as_secs_f64());
        match read {
            Ok((_, Some(info))) => {
                self.consul.version = Some(info.version.clone());
                self.consul.datacenter = Some(info.datacenter.clone());
            }
            Err(why) if self.throttle.should_log() => {
                tracing::warn!(error = why, "waiting for the Consul agent{}", REACHED_BY);
            }
            Ok((_, None)) | Err(_) => {}
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
        let Written { id, action, answer, took } = written;
        let (kind, result, why) = self.metrics.wrote(action, answer);
        self.history.wrote(*answer == Answer::Done, *took);
        tracing::debug!(%id, kind, result, why, took_ms = took.as_millis(), "write");
        if matches!(answer, Answer::Failed(_) | Answer::Unanswered(_)) && self.throttle.should_log()
        {
            tracing::warn!(%id, error = why, "the agent did not take it: it is tried again");
        }
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
                Report::Propagated(took) => {
                    self.metrics.propagation.observe(took.as_secs_f64());
                    self.history.propagated(took);
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
        let counts = core.counts();
        self.metrics.set(&counts, core.is_holding());
        if counts.backlog == 0 && core.is_started() {
            self.metrics.in_sync();
        }
        let why = self.why_not_ready(core, now);
        if why.is_none() && !std::mem::replace(&mut self.was_in_sync, true) {
            let problems: usize = counts.problems.values().sum();
            let (pods, registrations) = (counts.pods, counts.registrations);
            tracing::info!(pods, registrations, problems, "in sync");
        }
        let readiness = why.map_or(Readiness::Ready, Readiness::NotReady);
        self.metrics.daemon.set_readiness(&self.readiness, readiness);
    }

    fn why_not_ready(&self, core: &Core, now: Moment) -> Option<String> {
        if !core.is_listed() {
            let why = self.watches.failure().map_or("no list yet", |(_, why)| why);
            return Some(format!("waiting for the pods: {why}"));
        }
        if let Some(why) = self.watches.silence() {
            return Some(why);
        }
        let (answered, failure) = core.agent();
        if answered.is_none_or(|at| now.saturating_sub(at) >= SILENCE) {
            let why = failure.unwrap_or("no answer yet");
            return Some(format!("waiting for the Consul agent: {why}{REACHED_BY}"));
        }
        if self.was_in_sync {
            return None;
        }
        let backlog = core.counts().backlog;
        (backlog > 0).then(|| format!("{backlog} registrations are being written"))
    }

    /// The charts of the page.
    pub(super) fn history(&mut self) -> Vec<Series> {
        self.history.series()
    }

    /// What a page of `/status` begins with.
    pub(super) fn head(&self, core: &Core, now: Moment) -> PageHead {
        let trouble = self.watches.failure().map(|(_, why)| why.to_owned());
        let kubernetes = Peer { url: self.pods_from.clone(), trouble, ..Peer::default() };
        let trouble = core.agent().1.map(ToOwned::to_owned);
        let consul = Peer { trouble, ..self.consul.clone() };
        let reason = self.why_not_ready(core, now);
        PageHead::new("node", reason, kubernetes, consul, self.watches.status())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::node::wanted::Defaults;
    use crate::run::daemon::watch_health::SILENCE as WATCH_SILENCE;

    /// What a daemon whose agent answers says when the pods were heard of last so long ago.
    fn after(silence: Duration, reporting: &Reporting, core: &mut Core) -> Option<String> {
        core.handle_agent(Ok((Vec::new(), None)), silence);
        reporting.why_not_ready(core, silence)
    }

    #[tokio::test(start_paused = true)]
    async fn pods_that_nothing_was_heard_of_for_five_minutes_are_not_health() {
        let (readiness, _ready) = watch::channel(Readiness::NotReady(String::new()));
        let nobody = Reporter::to_nobody();
        let (pods, consul) = ("the API".to_owned(), "the agent".to_owned());
        let mut reporting = Reporting::new(Arc::default(), readiness, nobody, pods, consul);
        let mut core = Core::new(Defaults {
            sync_interval: Duration::from_secs(1),
            check_ttl: Duration::from_secs(10),
            ttl_buffer: Duration::from_secs(10),
            deregister_critical_after: None,
        });
        assert!(reporting.watches.status().is_empty());
        for event in [WatchEvent::ListStarted(Kind::Pod), WatchEvent::ListCompleted(Kind::Pod)] {
            reporting.watch(&Notice::Event(event.clone()));
            core.handle_watch(event, Moment::ZERO);
        }
        assert_eq!(after(Moment::ZERO, &reporting, &mut core), None);
        tokio::time::advance(WATCH_SILENCE).await;
        assert_eq!(after(WATCH_SILENCE, &reporting, &mut core), None);
        tokio::time::advance(Duration::from_secs(1)).await;
        let silent = WATCH_SILENCE + Duration::from_secs(1);
        let why = after(silent, &reporting, &mut core).unwrap();
        assert!(why.contains("more than 5 minutes"), "{why}");
        assert_eq!(reporting.watches.status()[0].seconds_since_heard, silent.as_secs());
        reporting.watch(&Notice::Heard(Kind::Pod));
        assert_eq!(after(silent, &reporting, &mut core), None, "a bookmark is enough");
        // Nor is an agent that has not answered for a minute.
        let later = silent + SILENCE;
        let why = reporting.why_not_ready(&core, later).unwrap();
        assert!(why.contains("waiting for the Consul agent"), "{why}");
    }
}
