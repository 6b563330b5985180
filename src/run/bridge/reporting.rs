//! What people see of the bridge: logs, Events, metrics, readiness.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::admin::history::{History, Series};
use crate::admin::metrics::{self, Metrics, Words};
use crate::admin::status::{Readiness, WatchStatus};
use crate::consul::http::operation::Operation;
use crate::domain::Moment;
use crate::domain::consul::record::{Answer, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, Subject, WatchEvent};
use crate::domain::problem::{Problem, Reason};
use crate::domain::report::difference::{FieldChange, FieldValue};
use crate::domain::sync::{Cause, Core, NotReady, Report, Target, Written};
use crate::kubernetes::events::{Regarding, Reporter};
use crate::kubernetes::watch::{NOT_SERVED_RETRY, Trouble};
use crate::run::daemon::checks::NOTHING_SELECTED;
use crate::run::daemon::retry::LogThrottle;
use crate::run::daemon::watch_health::WatchHealth;

/// Strays that are remembered: a screen's worth; whoever has more has read about the first.
const MAX_STRAYS: usize = 50;

/// Instances that an agent holds well: each registration walks all that it has. Measured on Consul
/// 1.8.7 with 16 requests at a time: 2,100 a second beside 500, 1,150 beside 2,000 and 320 beside
/// 10,000; a TTL check on each makes it four times slower.
const CROWDED: usize = 1_000;

/// The metrics of a bridge.
pub(super) fn bridge_metrics(is_elected: bool) -> Metrics {
    Metrics::new(&Words {
        reasons: &Reason::ALL.map(Reason::as_str),
        operations: &Operation::ALL.map(Operation::as_str),
        is_elected,
    })
}

/// Where the bridge reports what it does, and what is remembered only for that.
pub(super) struct Reporting {
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    events: Reporter,
    watches: WatchHealth,
    history: History,
    /// Kinds that were listed: a further list is a relist.
    listed: BTreeSet<Kind>,
    /// Kinds that the API server does not serve.
    not_served: BTreeSet<Kind>,
    /// Whether it was said that an agent is crowded.
    said_crowded: bool,
    /// What was found in places where nothing of ours belongs.
    strays: BTreeSet<String>,
    /// For what Consul does not do, which may be every write.
    failures: LogThrottle,
}

// === impl Reporting ===

impl Reporting {
    pub(super) fn new(
        metrics: Arc<Metrics>,
        readiness: watch::Sender<Readiness>,
        events: Reporter,
    ) -> Self {
        Self {
            watches: WatchHealth::new(metrics.daemon.clone()),
            metrics,
            readiness,
            events,
            history: History::with_propagation(),
            listed: BTreeSet::new(),
            not_served: BTreeSet::new(),
            said_crowded: false,
            strays: BTreeSet::new(),
            failures: LogThrottle::default(),
        }
    }

    /// Reports what happened since the last time.
    pub(super) fn update(
        &mut self,
        core: &Core,
        reports: Vec<Report>,
        target: Target,
        now: Moment,
    ) {
        for report in reports {
            self.report(core, report, now);
        }
        let (counts, metrics) = (core.counts(), &self.metrics);
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.services.set(gauge(counts.services));
        let passing = counts.registrations - counts.critical;
        for (health, count) in [("passing", passing), ("critical", counts.critical)] {
            metrics.registrations.get_or_create(&[("health", health)]).set(gauge(count));
        }
        metrics.ptr_records.set(gauge(counts.ptr_records));
        metrics.backlog.set(gauge(counts.backlog));
        metrics.removals_held.set(gauge(core.removals_held()));
        metrics.records_kept.set(gauge(counts.kept));
        metrics.nothing_selected.set((!core.selects_any()).into());
        if core.is_in_sync(now) {
            metrics::now(&metrics.synced);
        }
        if target == Target::Agent {
            self.report_crowd(counts.registrations);
        }
    }

    /// The charts of the page.
    pub(super) fn history(&mut self) -> Vec<Series> {
        self.history.series()
    }

    pub(super) fn readiness(&self) -> Readiness {
        self.readiness.borrow().clone()
    }

    pub(super) fn set_readiness(&self, readiness: Readiness, core: &Core) {
        let changed = self.metrics.daemon.set_readiness(&self.readiness, readiness);
        if changed && *self.readiness.borrow() == Readiness::Ready {
            let counts = core.counts();
            tracing::info!(
                services = counts.registered,
                registrations = counts.registrations,
                problems = counts.problems,
                "in sync"
            );
        }
    }

    pub(super) fn leads(&self, leads: bool) {
        self.metrics.leader.set(i64::from(leads));
    }

    pub(super) fn watched(&mut self, event: &WatchEvent) {
        let kind = match event {
            WatchEvent::Seen(seen) => seen.kind(),
            WatchEvent::Deleted(kind, _) => *kind,
            WatchEvent::ListStarted(kind) => {
                if self.listed.contains(kind) {
                    self.metrics.relists.get_or_create(&[("kind", kind.as_str())]).inc();
                }
                return;
            }
            WatchEvent::ListCompleted(kind) => {
                tracing::debug!(kind = kind.as_str(), "listed completely");
                self.listed.insert(*kind);
                if self.not_served.remove(kind) {
                    tracing::info!(kind = kind.as_str(), "the Kubernetes API serves this kind now");
                }
                self.watches.listed(*kind);
                return;
            }
        };
        self.history.changed();
        self.heard(kind);
        self.metrics.watch_events.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    /// The API server was heard of on the watch of this kind.
    pub(super) fn heard(&mut self, kind: Kind) {
        self.watches.heard(kind);
    }

    /// The watches for `/status`.
    pub(super) fn watches(&self) -> Vec<WatchStatus> {
        self.watches.status()
    }

    pub(super) fn watch_failed(&mut self, trouble: &Trouble) {
        self.watches.failed(trouble);
        tracing::warn!(
            kind = trouble.kind.as_str(),
            failures = trouble.failures,
            "waiting for the Kubernetes API: {}",
            trouble.error
        );
    }

    pub(super) fn watch_recovered(&mut self, kind: Kind) {
        if self.watches.recovered(kind) {
            tracing::info!(kind = kind.as_str(), "the watch works again");
        }
    }

    /// The API server does not serve this kind, which is no failure.
    pub(super) fn not_served(&mut self, kind: Kind) {
        self.watch_ended(kind);
        if self.not_served.insert(kind) {
            tracing::info!(
                kind = kind.as_str(),
                "the Kubernetes API does not serve this kind; it is looked for every {} s",
                NOT_SERVED_RETRY.as_secs()
            );
        }
    }

    /// What is watched no longer does not fail.
    pub(super) fn watch_ended(&mut self, kind: Kind) {
        self.watches.ended(kind);
        self.listed.remove(&kind);
    }

    /// Which watch has been silent for too long, in words.
    pub(super) fn silence(&self) -> Option<String> {
        self.watches.silence()
    }

    /// The newest failure of a watch that fails.
    pub(super) fn watch_failure(&self) -> Option<String> {
        self.watches.failure().map(|(kind, why)| format!("{}: {why}", kind.as_str()))
    }

    pub(super) fn wrote(&mut self, record: &RecordKey, answer: &Answer, took: Duration) {
        let kind = match record {
            RecordKey::Registration(_) => "registration",
            RecordKey::Ptr(_) => "ptr",
            RecordKey::NamespaceNode(_) => "node",
        };
        let (result, why) = match answer {
            Answer::NotSent => return,
            Answer::Applied { .. } => ("applied", ""),
            Answer::Conflict => ("conflict", "somebody else changed the key"),
            Answer::Refused(why) => ("refused", why.as_str()),
            Answer::Denied(why) => ("denied", why.as_str()),
            Answer::Failed(why) => ("failed", why.as_str()),
            Answer::Unanswered(why) => ("unanswered", why.as_str()),
            Answer::Fenced => ("fenced", "the lock is lost"),
            Answer::Foreign(why) => ("foreign", why.as_str()),
        };
        tracing::debug!(%record, result, why, "write");
        self.history.wrote(matches!(answer, Answer::Applied { .. }), took);
        self.metrics.wrote(kind, result);
    }

    pub(super) fn resynced(&self, complete: bool, took: Duration) {
        let result = if complete { "complete" } else { "failed" };
        self.metrics.resyncs.get_or_create(&[("result", result)]).inc();
        self.metrics.resync_seconds.observe(took.as_secs_f64());
        if complete {
            metrics::now(&self.metrics.resynced);
        }
    }

    fn report(&mut self, core: &Core, report: Report, now: Moment) {
        match report {
            Report::InSync { service, written, critical, passing, since } => {
                if let Some(since) = since {
                    let took = now.saturating_sub(since);
                    self.metrics.propagation.observe(took.as_secs_f64());
                    self.history.propagated(took);
                }
                report_synced(&service, written, passing, critical);
            }
            Report::Problem(subject, key, problem) => {
                self.report_problem(core, subject, key, problem);
            }
            Report::Solved(subject, key, problem) => {
                self.problem_gauge(&problem, -1);
                let (namespace, name) = (namespace(&key), &key.name);
                tracing::info!(kind = subject.as_str(), namespace, %name, "solved: {problem}");
            }
            Report::Withdrawn(subject, key, problem) => {
                self.problem_gauge(&problem, -1);
                let (namespace, name) = (namespace(&key), &key.name);
                tracing::debug!(kind = subject.as_str(), namespace, %name, "withdrawn: {problem}");
            }
            Report::Held { cause, lost, total } => tracing::warn!(
                "{lost} of {total} records would be removed or turn critical: held back, {}",
                match cause {
                    Cause::Absence => "until a second list agrees",
                    Cause::Selection =>
                        "because their objects still exist; --allow-removals lets it happen",
                    Cause::Policy => "by --policy upsert-only",
                }
            ),
            Report::NothingSelected => tracing::warn!("{NOTHING_SELECTED}"),
            Report::SelectedAgain => tracing::info!("a Service is selected again"),
            Report::Released { confirmed: true } => {
                tracing::info!("a second list agrees: what was held back is removed");
            }
            Report::Released { confirmed: false } => {
                tracing::info!("all that was missing is shown again: nothing is removed");
            }
            Report::Fixed { records, state_lost: true } => {
                self.metrics.drifted.inc_by(records as u64);
                tracing::info!(records, "writing again what Consul has lost");
            }
            Report::Fixed { records, state_lost: false } => {
                self.metrics.drifted.inc_by(records as u64);
                tracing::warn!(
                    drifted = records,
                    "the resync found records that were changed or removed by others, and fixes them"
                );
            }
            Report::Drifted { service, record, fields, found } => {
                report_drifted(&service, &record, &fields, &found);
            }
            Report::PtrTakenOver(service, key) => {
                let (namespace, name) = (&service.namespace, &service.name);
                tracing::info!(%namespace, %name, %key, "took over a PTR record that others had");
            }
            Report::Stray(what) => self.report_stray(what),
            Report::Failed(what, why) => {
                if self.failures.should_log() {
                    tracing::warn!("{what}: {why}");
                }
            }
        }
    }

    fn report_problem(&self, core: &Core, subject: Subject, key: ObjectKey, problem: Problem) {
        self.problem_gauge(&problem, 1);
        let (namespace, name) = (namespace(&key), &key.name);
        tracing::warn!(kind = subject.as_str(), namespace, %name, "{problem}");
        let uid = match subject {
            Subject::Service => core.cache().service(&key).map(|service| service.uid.clone()),
            _ => None,
        };
        self.events.report(Regarding { kind: subject, key, uid }, problem);
    }

    fn problem_gauge(&self, problem: &Problem, by: i64) {
        self.metrics.problems.get_or_create(&[("reason", problem.reason.as_str())]).inc_by(by);
    }

    fn report_crowd(&mut self, registrations: usize) {
        if registrations > CROWDED && !std::mem::replace(&mut self.said_crowded, true) {
            tracing::warn!(
                registrations,
                "an agent is meant for up to {CROWDED} instances: it walks all of them for each \
                 change, and they come and go with it; --sink catalog is for more"
            );
        }
    }

    /// Says once what is found where nothing of ours belongs.
    fn report_stray(&mut self, what: String) {
        if self.strays.len() < MAX_STRAYS && !self.strays.contains(&what) {
            tracing::warn!("{what}");
            self.strays.insert(what);
        }
    }
}

/// Tells which fields of a record others have changed.
fn report_drifted(service: &ObjectKey, record: &RecordKey, fields: &[FieldChange], found: &str) {
    let (namespace, name) = (&service.namespace, &service.name);
    let show = |value: &Option<FieldValue>| {
        value.as_ref().map_or_else(|| "nothing".to_owned(), ToString::to_string)
    };
    let field = |it: &FieldChange| {
        format!("{}: expected {}, found {}", it.field, show(&it.new), show(&it.old))
    };
    let fields = fields.iter().map(field).collect::<Vec<_>>().join("; ");
    tracing::warn!(%namespace, %name, %record, fields, "changed by others: {found}");
}

/// One line for what was written of a Service.
fn report_synced(service: &ObjectKey, written: Written, passing: usize, critical: usize) {
    let Written { added, updated, removed, ptr_records } = written;
    if service.is_orphaned() {
        tracing::info!(removed, ptr_records, "removed records that belong to no Service");
        return;
    }
    let (namespace, name) = (&service.namespace, &service.name);
    if added + updated + removed == 0 {
        tracing::info!(%namespace, service = %name, ptr_records, "synced PTR records");
        return;
    }
    let what = match (passing, critical) {
        (0, 0) => "synced: nothing is registered any more",
        (0, _) => "synced: no ready endpoints, marked critical",
        _ => "synced",
    };
    tracing::info!(
        %namespace, service = %name, passing, critical, added, updated, removed, ptr_records, "{what}"
    );
}

/// The namespace of an object that has one.
fn namespace(key: &ObjectKey) -> Option<&str> {
    Some(&*key.namespace).filter(|namespace| !namespace.is_empty())
}

/// Why the bridge is not ready, in words. `pending`: what the handshake waits for; `watch`: the
/// failure of a watch; `leadership`: who leads.
pub(super) fn reason(
    why: NotReady,
    core: &Core,
    pending: Option<String>,
    watch: Option<String>,
    leadership: Option<String>,
) -> String {
    let because = |why: Option<String>| why.map(|why| format!(" ({why})")).unwrap_or_default();
    let consul = because(core.consul_failure().map(str::to_owned));
    match why {
        NotReady::Connecting => {
            pending.unwrap_or_else(|| "waiting for Kubernetes and Consul".to_owned())
        }
        NotReady::Listing => {
            format!("waiting for the lists of the Kubernetes API{}", because(watch))
        }
        NotReady::Standby => leadership.unwrap_or_else(|| "standby".to_owned()),
        NotReady::WaitingForConsul => format!("waiting for Consul{consul}"),
        NotReady::ResyncsFail => format!("what is in Consul cannot be read{consul}"),
        NotReady::Syncing { services } => {
            format!("{services} Services are being brought in sync{consul}")
        }
        NotReady::WaitingForConfirmation => {
            "waiting for a second list to confirm what the first lacked".to_owned()
        }
        NotReady::WaitingForCatalog => {
            format!("waiting for the catalog to show all records{consul}")
        }
    }
}
