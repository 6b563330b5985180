//! What the bridge tells people: logs, Events, metrics, readiness, `/status`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::admin::Question;
use crate::admin::metrics::Metrics;
use crate::admin::status::{
    Counts, InstanceStatus, ObjectProblem, PAGE, Page, Peer, Readiness, ServiceStatus,
};
use crate::consul::write::sink::Sink;
use crate::domain::consul::record::{Answer, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, WatchEvent};
use crate::domain::problem::Problem;
use crate::domain::sync::{Cause, Report};
use crate::kubernetes::events::Regarding;
use crate::kubernetes::watch::Trouble;
use crate::run::bridge::Bridge;
use crate::run::bridge::drift::Progress;

/// Strays that are remembered: a screen's worth; whoever has more has read about the first.
const MAX_STRAYS: usize = 50;

/// Instances that an agent holds well: each registration walks all that it has. Measured on Consul
/// 1.8.7 with 16 requests at a time: 2,100 a second beside 500, 1,150 beside 2,000 and 320 beside
/// 10,000; a TTL check on each makes it four times slower.
const CROWDED: usize = 1_000;

/// What is remembered only to be told.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Watches that fail, with the newest failure.
    watch_troubles: BTreeMap<Kind, String>,
    /// Whether the first reconciliation was ever done.
    was_in_sync: bool,
    /// Whether it was said that an agent is crowded.
    said_crowded: bool,
    /// What was found in places where nothing of ours belongs.
    strays: BTreeSet<String>,
}

// === impl Tally ===

impl Tally {
    pub(super) fn watched(&mut self, metrics: &Metrics, event: &WatchEvent) {
        let kind = match event {
            WatchEvent::Seen(seen) => seen.kind(),
            WatchEvent::Deleted(kind, _) => *kind,
            WatchEvent::ListStarted(_) => return,
            WatchEvent::ListCompleted(kind) => {
                tracing::debug!(kind = kind.as_str(), "listed completely");
                self.watch_troubles.remove(kind);
                return;
            }
        };
        metrics.watch_events.get_or_create(&[("kind", kind.as_str())]).inc();
    }

    pub(super) fn watch_failed(&mut self, metrics: &Metrics, trouble: &Trouble) {
        let kind = trouble.kind.as_str();
        metrics.watch_failures.get_or_create(&[("kind", kind)]).inc();
        tracing::warn!(
            kind,
            failures = trouble.failures,
            "waiting for the Kubernetes API: {}",
            trouble.error
        );
        self.watch_troubles.insert(trouble.kind, trouble.error.to_string());
    }

    pub(super) fn watch_recovered(&mut self, kind: Kind) {
        if self.watch_troubles.remove(&kind).is_some() {
            tracing::info!(kind = kind.as_str(), "the watch works again");
        }
    }

    fn tell_crowd(&mut self, registrations: usize) {
        if registrations > CROWDED && !std::mem::replace(&mut self.said_crowded, true) {
            tracing::warn!(
                registrations,
                "an agent is meant for up to {CROWDED} instances: it walks all of them for each \
                 change, and they come and go with it; --sink catalog is for more"
            );
        }
    }

    /// Says once what is found where nothing of ours belongs.
    pub(super) fn stray(&mut self, what: String) {
        if self.strays.len() < MAX_STRAYS && !self.strays.contains(&what) {
            tracing::warn!("left alone: {what}");
            self.strays.insert(what);
        }
    }

    /// What is watched no longer is in no trouble.
    pub(super) fn watch_ended(&mut self, kind: Kind) {
        self.watch_troubles.remove(&kind);
    }

    fn watch_trouble(&self) -> Option<String> {
        self.watch_troubles.iter().next().map(|(kind, why)| format!("{}: {why}", kind.as_str()))
    }
}

// === impl Bridge ===

impl Bridge {
    /// Tells what happened since the last turn.
    pub(super) fn tell(&mut self) {
        for report in self.state.take_reports() {
            self.tell_report(report);
        }
        let metrics = &self.told.metrics;
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        metrics.services.set(gauge(self.state.cache().service_count()));
        metrics.registrations.set(gauge(self.state.ledger().registration_count()));
        metrics.ptr_records.set(gauge(self.state.ledger().ptr_count()));
        if matches!(self.sink, Sink::Agent(_)) {
            self.tally.tell_crowd(self.state.ledger().registration_count());
        }
        metrics.backlog.set(gauge(self.state.backlog()));
        metrics.holding.set(i64::from(self.state.is_holding()));
        let readiness = if self.is_ready() {
            Readiness::Ready
        } else {
            Readiness::NotReady(self.not_ready_reason())
        };
        let changed = self.told.readiness.send_if_modified(|told| {
            let changes = *told != readiness;
            *told = readiness;
            changes
        });
        if changed && *self.told.readiness.borrow() == Readiness::Ready {
            tracing::info!(
                services = self.state.cache().service_count(),
                registrations = self.state.ledger().registration_count(),
                problems = self.state.problems().count(),
                "in sync"
            );
        }
    }

    fn tell_report(&mut self, report: Report) {
        match report {
            Report::InSync { service, written, removed, instances } => {
                let (namespace, name) = (&service.namespace, &service.name);
                let what = if written == 0 { "deregistered" } else { "registered" };
                tracing::info!(%namespace, service = %name, instances, written, removed, "{what}");
            }
            Report::Problem(kind, key, problem) => self.tell_problem(kind, key, problem),
            Report::Solved(kind, key, problem) => {
                self.problem_gauge(&problem, -1);
                let (namespace, name) = (&key.namespace, &key.name);
                tracing::info!(kind = kind.as_str(), %namespace, %name, "solved: {problem}");
            }
            Report::Withdrawn(kind, key, problem) => {
                self.problem_gauge(&problem, -1);
                let (namespace, name) = (&key.namespace, &key.name);
                tracing::debug!(kind = kind.as_str(), %namespace, %name, "withdrawn: {problem}");
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
            Report::Repaired(records) => {
                self.told.metrics.repaired.inc_by(records as u64);
                tracing::warn!(records, "others changed our records in Consul: repairing them");
            }
        }
    }

    fn tell_problem(&mut self, kind: Kind, key: ObjectKey, problem: Problem) {
        self.problem_gauge(&problem, 1);
        tracing::warn!(kind = kind.as_str(), namespace = %key.namespace, name = %key.name, "{problem}");
        let uid = match kind {
            Kind::Service => self.state.cache().service(&key).map(|service| service.uid.clone()),
            Kind::EndpointSlice | Kind::Node | Kind::Namespace => None,
        };
        self.told.reporter.report(Regarding { kind, key, uid }, problem);
    }

    pub(super) fn tell_write(&self, record: &RecordKey, answer: &Answer, took: Duration) {
        let kind = match record {
            RecordKey::Registration(_) => "registration",
            RecordKey::Ptr(_) => "reverse",
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
        self.told.metrics.wrote(kind, result, took);
    }

    pub(super) fn tell_read_back(&self, complete: bool, took: Duration) {
        let result = if complete { "complete" } else { "failed" };
        self.told.metrics.read_backs.get_or_create(&[("result", result)]).inc();
        self.told.metrics.read_back_seconds.set(took.as_secs_f64());
    }

    fn problem_gauge(&self, problem: &Problem, by: i64) {
        self.told.metrics.problems.get_or_create(&[("reason", problem.reason.as_str())]).inc_by(by);
    }

    /// Whether both sides were reached and read.
    pub(super) fn is_connected(&self) -> bool {
        self.peers.is_some() && self.state.is_listed() && self.drift.progress() >= Progress::Read
    }

    /// Whether all that can be is registered, as far as the agent goes.
    pub(super) fn in_sync(&self) -> bool {
        self.is_connected()
            && self.drift.progress() >= Progress::NamesKnown
            && self.state.is_settled()
            && self.is_shown()
    }

    /// Whether the catalog has shown our records; where the agent's name may not be read, nobody
    /// can tell.
    fn is_shown(&self) -> bool {
        matches!(self.sink, Sink::Catalog(_))
            || self.drift.progress() >= Progress::Shown
            || self.peers.as_ref().is_some_and(|met| met.agent.is_none())
    }

    fn is_ready(&mut self) -> bool {
        if let Some(holder) = self.leadership.holder() {
            return self.is_warm(&holder) && self.drift.is_heard();
        }
        self.tally.was_in_sync |= self.in_sync();
        self.tally.was_in_sync && self.drift.is_heard()
    }

    pub(super) fn not_ready_reason(&self) -> String {
        if self.peers.is_none() {
            let waits = self.waits.reason();
            return waits.unwrap_or_else(|| "waiting for Kubernetes and Consul".to_owned());
        }
        if !self.state.is_listed() {
            let trouble =
                self.tally.watch_trouble().map(|why| format!(" ({why})")).unwrap_or_default();
            return format!("waiting for the lists of the Kubernetes API{trouble}");
        }
        if let Some(standby) = self.leadership.describe().filter(|_| !self.leadership.may_read()) {
            return standby;
        }
        let trouble = self.drift.trouble().map(|why| format!(" ({why})")).unwrap_or_default();
        if self.drift.progress() < Progress::NamesKnown || !self.drift.is_heard() {
            return format!("waiting for Consul{trouble}");
        }
        if !self.state.is_settled() {
            return format!("{} Services are being brought in sync{trouble}", self.state.backlog());
        }
        format!("waiting for the catalog to show all records{trouble}")
    }

    /// Answers; whoever asked may have gone.
    pub(super) fn answer(&self, question: Question) {
        match question {
            Question::Alive(reply) => drop(reply.send(())),
            Question::Page(after, reply) => drop(reply.send(self.page(after.as_ref()))),
        }
    }

    fn page(&self, after: Option<&ObjectKey>) -> Page {
        let readiness = self.told.readiness.borrow().clone();
        let settings = &self.options.sync.settings;
        let services = self.state.cache().services_after(after);
        let mut rest = services.filter(|(key, _)| settings.includes_namespace(&key.namespace));
        let services: Vec<ServiceStatus> =
            rest.by_ref().take(PAGE).map(|(key, _)| self.service(key)).collect();
        let last = services.last().map(|last| format!("{}/{}", last.namespace, last.name));
        let next = rest.next().and(last);
        let met = self.peers.as_ref();
        let agent = met.and_then(|met| met.agent.as_ref());
        Page {
            cluster: self.options.sync.settings.cluster.to_string(),
            cluster_uid: met.map(|met| met.uid.clone()),
            version: env!("CARGO_PKG_VERSION"),
            leadership: self.leadership.describe(),
            ready: readiness == Readiness::Ready,
            reason: match readiness {
                Readiness::Ready => None,
                Readiness::NotReady(why) => Some(why),
            },
            kubernetes: Peer {
                url: self.kubernetes.url.clone(),
                version: met.map(|met| met.kubernetes_version.clone()),
                datacenter: None,
                trouble: self.tally.watch_trouble(),
            },
            consul: Peer {
                url: self.consul.url().to_owned(),
                version: agent.map(|agent| agent.version.clone()),
                datacenter: agent.map(|agent| agent.datacenter.clone()),
                trouble: self.drift.trouble().map(ToOwned::to_owned),
            },
            counts: Counts {
                services: self.state.cache().service_count(),
                registrations: self.state.ledger().registration_count(),
                ptr_records: self.state.ledger().ptr_count(),
                backlog: self.state.backlog(),
                problems: self.state.problems().count(),
            },
            holding: self.state.is_holding(),
            problems: self.state.problems().iter().take(PAGE).map(ObjectProblem::new).collect(),
            services,
            next,
        }
    }

    fn service(&self, key: &ObjectKey) -> ServiceStatus {
        let cluster = &self.options.sync.settings.cluster;
        let instances = self.state.ledger().of(key).iter().take(PAGE).map(|known| InstanceStatus {
            id: known.id(cluster, key).into(),
            service: known.service.to_string(),
            critical: known.critical,
        });
        ServiceStatus {
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            instances: instances.collect(),
        }
    }
}
