//! What people see of the bridge: logs, Events, metrics, readiness.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::admin::history::{History, Series};
use crate::admin::metrics::Metrics;
use crate::admin::status::Readiness;
use crate::domain::consul::record::{Answer, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, Subject, WatchEvent};
use crate::domain::problem::Problem;
use crate::domain::report::difference::{FieldChange, FieldValue};
use crate::domain::sync::{Cause, Core, NotReady, Report, Target};
use crate::kubernetes::events::{Regarding, Reporter};
use crate::kubernetes::watch::Trouble;
use crate::run::daemon::retry::LogThrottle;

/// Strays that are remembered: a screen's worth; whoever has more has read about the first.
const MAX_STRAYS: usize = 50;

/// Instances that an agent holds well: each registration walks all that it has. Measured on Consul
/// 1.8.7 with 16 requests at a time: 2,100 a second beside 500, 1,150 beside 2,000 and 320 beside
/// 10,000; a TTL check on each makes it four times slower.
const CROWDED: usize = 1_000;

/// Where the bridge reports what it does, and what is remembered only for that.
pub(super) struct Reporting {
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    events: Reporter,
    /// Watches that fail, with the newest failure.
    watch_failures: BTreeMap<Kind, String>,
    history: History,
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
            metrics,
            readiness,
            events,
            watch_failures: BTreeMap::new(),
            history: History::default(),
            said_crowded: false,
            strays: BTreeSet::new(),
            failures: LogThrottle::default(),
        }
    }

    /// Reports what happened since the last time.
    pub(super) fn update(&mut self, core: &Core, reports: Vec<Report>, target: Target) {
        for report in reports {
            self.report(core, report);
        }
        let (counts, metrics) = (core.counts(), &self.metrics);
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.services.set(gauge(counts.services));
        metrics.registrations.set(gauge(counts.registrations));
        metrics.ptr_records.set(gauge(counts.ptr_records));
        metrics.backlog.set(gauge(counts.backlog));
        metrics.holding.set(i64::from(core.is_holding()));
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
        let changed = self.readiness.send_if_modified(|reported| {
            let changes = *reported != readiness;
            *reported = readiness;
            changes
        });
        if changed && *self.readiness.borrow() == Readiness::Ready {
            let counts = core.counts();
            tracing::info!(
                services = counts.services,
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
            WatchEvent::ListStarted(_) => return,
            WatchEvent::ListCompleted(kind) => {
                tracing::debug!(kind = kind.as_str(), "listed completely");
                self.watch_failures.remove(kind);
                return;
            }
        };
        self.history.changed();
        self.metrics.watch_events.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    pub(super) fn watch_failed(&mut self, trouble: &Trouble) {
        let kind = trouble.kind.as_str();
        self.metrics.watch_failures.get_or_create(&[("kind", kind)]).inc();
        tracing::warn!(
            kind,
            failures = trouble.failures,
            "waiting for the Kubernetes API: {}",
            trouble.error
        );
        self.watch_failures.insert(trouble.kind, trouble.error.to_string());
    }

    pub(super) fn watch_recovered(&mut self, kind: Kind) {
        if self.watch_failures.remove(&kind).is_some() {
            tracing::info!(kind = kind.as_str(), "the watch works again");
        }
    }

    /// What is watched no longer does not fail.
    pub(super) fn watch_ended(&mut self, kind: Kind) {
        self.watch_failures.remove(&kind);
    }

    /// The newest failure of a watch that fails.
    pub(super) fn watch_failure(&self) -> Option<String> {
        self.watch_failures.iter().next().map(|(kind, why)| format!("{}: {why}", kind.as_str()))
    }

    pub(super) fn wrote(&mut self, record: &RecordKey, answer: &Answer, took: Duration) {
        let kind = match record {
            RecordKey::Registration(_) => "registration",
            RecordKey::Ptr(_) => "reverse",
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
        self.metrics.wrote(kind, result, took);
    }

    pub(super) fn resynced(&self, complete: bool, took: Duration) {
        let result = if complete { "complete" } else { "failed" };
        self.metrics.read_backs.get_or_create(&[("result", result)]).inc();
        self.metrics.read_back_seconds.set(took.as_secs_f64());
    }

    fn report(&mut self, core: &Core, report: Report) {
        match report {
            Report::InSync { service, removed, .. } if service.is_orphaned() => {
                tracing::info!(removed, "removed records of no Service");
            }
            Report::InSync { service, written, removed, instances } => {
                let (namespace, name) = (&service.namespace, &service.name);
                let what = if written == 0 { "deregistered" } else { "registered" };
                tracing::info!(%namespace, service = %name, instances, written, removed, "{what}");
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
                }
            ),
            Report::Released { confirmed: true } => {
                tracing::info!("what was held back is confirmed");
            }
            Report::Released { confirmed: false } => {
                tracing::info!("what was missing is there again: nothing is removed");
            }
            Report::Fixed(records) => {
                self.metrics.repaired.inc_by(records as u64);
                tracing::warn!(records, "others changed our records in Consul: fixing them");
            }
            Report::Drifted { service, record, fields, found } => {
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
            Subject::EndpointSlice | Subject::Node | Subject::Namespace => None,
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
            tracing::warn!("left alone: {what}");
            self.strays.insert(what);
        }
    }
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
        NotReady::Syncing { services } => {
            format!("{services} Services are being brought in sync{consul}")
        }
        NotReady::WaitingForCatalog => {
            format!("waiting for the catalog to show all records{consul}")
        }
    }
}
