//! A resync: all that is ours in Consul is read and compared with what is known.
//!
//! It is one value from its beginning to its end: nothing can be observed without it, finishing
//! consumes it, and dropping it gives it up. Only one that was complete and authoritative may be
//! finished (nothing is removed out of ignorance); the edge that reads decides that. A record
//! written since it began is passed over: newer wins.

use std::collections::{BTreeSet, HashSet};

use super::cluster::Cluster;
use super::contention::as_found;
use super::ledger::PtrState;
use super::term::{Stage, Term};
use super::{Config, Moment, Report};
use crate::domain::consul::record::{
    Check, Fingerprint, Observation, ObservedPtr, ObservedRegistration, PtrOwner, RecordKey,
};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::{ClusterName, ObjectKey};

/// A resync under way.
#[derive(Debug)]
pub(super) struct Resync {
    began: Moment,
    /// Records written since it began, or in flight then.
    touched: HashSet<RecordKey>,
    /// Namespaces whose node it has shown.
    pub(super) namespace_nodes: BTreeSet<Box<str>>,
    /// Records that it found changed.
    fixed: usize,
    /// Whether Consul lost what was registered, and the marker with it: nobody has changed what is
    /// missing.
    state_lost: bool,
    /// How many of them were told one by one.
    told: usize,
}

/// So many records that a resync found changed are told one by one: enough to find the writer.
const MAX_TOLD: usize = 8;

/// How a record was left.
#[derive(Clone, Copy)]
enum Before {
    /// That is not certain: a write of it got no answer.
    Uncertain,
    /// There was none.
    Nothing,
    /// With this content.
    Content(Fingerprint),
}

/// A record that was found changed.
#[derive(Debug)]
pub(super) struct Drift {
    pub(super) service: ObjectKey,
    pub(super) record: RecordKey,
    pub(super) found: String,
}

// === impl Resync ===

impl Resync {
    pub(super) fn touch(&mut self, record: RecordKey) {
        self.touched.insert(record);
    }
}

// === impl Term ===

impl Term {
    /// A resync begins: before its request is sent.
    pub(super) fn begin_resync(&mut self, now: Moment) {
        self.known.resync += 1;
        let over = self.contention.forget_old(now);
        self.mark_each(over);
        self.schedule.resync_begins(now);
        self.resync = Some(Resync {
            began: now,
            touched: self.flights.records().cloned().collect(),
            namespace_nodes: BTreeSet::new(),
            fixed: 0,
            state_lost: std::mem::take(&mut self.state_lost),
            told: 0,
        });
    }

    /// The marker is gone, and whatever else Consul has lost with it.
    pub(super) fn marker_lost(&mut self, now: Moment) {
        self.schedule.hurry_resync(now);
        self.state_lost = true;
        if let Some(resync) = &mut self.resync {
            resync.state_lost = true;
        }
    }

    /// Takes what the resync under way shows; nothing without one.
    pub(super) fn observe(&mut self, cluster: &ClusterName, seen: &Observation) {
        let Some(mut resync) = self.resync.take() else { return };
        match seen {
            Observation::Registration(observed) => {
                self.observe_registration(&mut resync, cluster, observed);
            }
            Observation::Ptr(observed) => self.observe_ptr(&mut resync, cluster, observed),
            Observation::NamespaceNode(namespace) => {
                resync.namespace_nodes.insert(namespace.clone());
            }
            Observation::MarkerMissing => resync.state_lost = true,
            Observation::Stray(_) => {}
        }
        self.resync = Some(resync);
    }

    /// The resync was complete and true: what it did not show is not there.
    pub(super) fn finish_resync(
        &mut self,
        config: &Config,
        cluster: &mut Cluster,
        now: Moment,
        reports: &mut Vec<Report>,
    ) {
        let Some(mut resync) = self.resync.take() else { return };
        // A Consul that reads and does not write is no reason to stop trying others.
        let waiting = self.retries.answered(now);
        self.mark_each(waiting);
        self.forget_unseen_registrations(&mut resync, &config.settings.cluster);
        self.forget_unseen_ptr(&mut resync);
        self.collect_empty_namespace_nodes(&resync, reports);
        self.schedule.certain_since(resync.began);
        self.schedule.resync_succeeded(now);
        match &mut self.stage {
            Stage::Starting { resynced } => *resynced = true,
            Stage::Running if resync.fixed > 0 => reports.push(Report::Fixed(resync.fixed)),
            Stage::Running => {}
        }
        self.start_if_loaded(config, cluster, now, reports);
    }

    /// The resync under way broke off or cannot be trusted: what it did not show is unknown.
    pub(super) fn give_up_resync(&mut self, now: Moment) {
        // The next one finds what this one has lost.
        self.state_lost |= self.resync.take().is_some_and(|resync| resync.state_lost);
        self.schedule.resync_failed(now);
    }

    fn observe_registration(
        &mut self,
        resync: &mut Resync,
        cluster: &ClusterName,
        observed: &ObservedRegistration,
    ) {
        let registration = &observed.registration;
        let record = RecordKey::Registration(registration.id.clone());
        if resync.touched.contains(&record) {
            return;
        }
        let service = service_of_id(cluster, &registration.id).unwrap_or_else(ObjectKey::orphaned);
        let fingerprint = registration.fingerprint();
        let known = self.known.registration(&service, &registration.id);
        let before = known.and_then(|known| known.fingerprint);
        let (same, certain, resend) = known.map_or((false, true, false), |known| {
            (before == Some(fingerprint), before.is_some(), known.resend)
        });
        let critical = registration.check == Check::Critical;
        self.known.put(
            &service,
            &registration.id,
            &registration.service,
            Some(fingerprint),
            critical,
        );
        if resend {
            // What it says does not tell with which token it was written.
            self.known.resend(&service, &registration.id);
        }
        if !same {
            let before = match before {
                Some(content) => Before::Content(content),
                None if certain => Before::Nothing,
                None => Before::Uncertain,
            };
            self.drifted(resync, service, &record, before, as_found(observed));
        }
    }

    fn observe_ptr(&mut self, resync: &mut Resync, cluster: &ClusterName, observed: &ObservedPtr) {
        let key = &observed.record.key;
        if resync.touched.contains(&RecordKey::Ptr(key.clone())) {
            return;
        }
        let holder = self.ptr.claims.holder(key).cloned();
        let ours = PtrOwner::of(observed.flags, cluster) == PtrOwner::Ours;
        // Before the first reconciliation nobody has claimed anything.
        if !ours && holder.is_none() && self.is_running() {
            return self.known.forget_ptr(key);
        }
        let before = self.known.ptr(key).map(|known| known.state.clone());
        self.note_ptr(cluster, key, Some(observed));
        let after = self.known.ptr(key).map(|known| known.state.clone());
        if before == after || !self.is_running() {
            return;
        }
        let certain = before != Some(PtrState::Unknown);
        let before = match before {
            Some(PtrState::Ours(content)) => Before::Content(content),
            Some(PtrState::Unknown) => Before::Uncertain,
            _ => Before::Nothing,
        };
        let Some(holder) = holder else {
            resync.fixed += usize::from(certain);
            return self.orphan_ptr(key.clone());
        };
        let found = format!("its value is now {:?}", observed.record.value);
        self.drifted(resync, holder, &RecordKey::Ptr(key.clone()), before, found);
    }

    fn forget_unseen_registrations(&mut self, resync: &mut Resync, cluster: &ClusterName) {
        let current = self.known.resync;
        let unseen: Vec<(ObjectKey, Box<str>, Option<Fingerprint>)> = self
            .known
            .services()
            .flat_map(|(service, known)| known.iter().map(move |known| (service, known)))
            .filter(|(_, known)| known.resync != current)
            .map(|(service, known)| {
                (service.clone(), known.id(cluster, service), known.fingerprint)
            })
            .filter(|(_, id, _)| !resync.touched.contains(&RecordKey::Registration(id.clone())))
            .collect();
        for (service, id, before) in unseen {
            self.known.deregistered(&service, &id);
            let before = before.map_or(Before::Uncertain, Before::Content);
            self.drifted(resync, service, &RecordKey::Registration(id), before, removed());
        }
    }

    fn forget_unseen_ptr(&mut self, resync: &mut Resync) {
        let current = self.known.resync;
        let unseen: Vec<(Box<str>, Option<Fingerprint>)> = self
            .known
            .ptr_keys()
            .filter(|(_, known)| known.resync != current)
            .filter(|(key, _)| !resync.touched.contains(&RecordKey::Ptr((*key).clone())))
            .map(|(key, known)| match known.state {
                PtrState::Ours(content) => (key.clone(), Some(content)),
                _ => (key.clone(), None),
            })
            .collect();
        for (key, before) in unseen {
            self.known.forget_ptr(&key);
            if let Some(holder) = self.ptr.claims.holder(&key).cloned() {
                let before = before.map_or(Before::Uncertain, Before::Content);
                self.drifted(resync, holder, &RecordKey::Ptr(key), before, removed());
            }
        }
    }

    /// A record is not as it was left.
    fn drifted(
        &mut self,
        resync: &mut Resync,
        service: ObjectKey,
        record: &RecordKey,
        before: Before,
        found: String,
    ) {
        let content = match before {
            Before::Uncertain => return self.mark(service),
            Before::Nothing => None,
            Before::Content(content) => Some(content),
        };
        resync.fixed += 1;
        // Before the first reconciliation it is a former self that left it so.
        if self.is_running() && !resync.state_lost {
            if resync.told < MAX_TOLD {
                resync.told += 1;
                self.drift.push(Drift {
                    service: service.clone(),
                    record: record.clone(),
                    found: found.clone(),
                });
            }
            self.changed_by_others(&service, record, content, found, resync.began);
        }
        self.mark(service);
    }

    /// A PTR record of ours that no Service claims.
    pub(super) fn orphan_ptr(&mut self, key: Box<str>) {
        self.ptr.released.entry(ObjectKey::orphaned()).or_default().insert(key);
        self.mark(ObjectKey::orphaned());
    }
}

fn removed() -> String {
    "it was removed".to_owned()
}
