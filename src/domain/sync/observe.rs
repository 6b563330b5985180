//! What a resync says of what is known.

use std::collections::BTreeSet;

use crate::domain::Moment;
use crate::domain::consul::names::lookup_form;
use crate::domain::consul::record::{
    Check, Fingerprint, Observation, ObservedPtr, ObservedRegistration, PtrOwner, RecordKey,
};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::kube::object::Subject;
use crate::domain::sync::cluster::Cluster;
use crate::domain::sync::config::Config;
use crate::domain::sync::contention::as_found;
use crate::domain::sync::ledger::PtrState;
use crate::domain::sync::report::Report;
use crate::domain::sync::resync::{Drift, Resync};
use crate::domain::sync::term::{Stage, Term};

/// So many records that a resync found changed are reported one by one: enough to find the writer.
const MAX_REPORTED: usize = 8;

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

// === impl Term ===

impl Term {
    /// A resync begins: before its request is sent.
    pub(super) fn begin_resync(&mut self, now: Moment) {
        self.known.resync += 1;
        let over = self.contention.forget_old(now);
        self.mark_each(over);
        self.schedule.resync_begins(now);
        let state_lost = std::mem::take(&mut self.state_lost);
        let in_flight = self.flights.records().cloned();
        self.resync = Some(Resync::begin(in_flight, state_lost, now));
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
        self.resends_shown = false;
        self.schedule.certain_since(resync.began);
        self.schedule.resync_succeeded(now);
        match &mut self.stage {
            Stage::Starting { resynced } => *resynced = true,
            Stage::Running if resync.fixed > 0 => {
                let (records, state_lost) = (resync.fixed, resync.state_lost);
                reports.push(Report::Fixed { records, state_lost });
            }
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
        if resync.passes_over(&record) {
            return;
        }
        let service = service_of_id(cluster, &registration.id).unwrap_or_else(ObjectKey::orphaned);
        let fingerprint = registration.fingerprint();
        let known = self.known.registration(&service, &registration.id);
        let before = known.and_then(|known| known.fingerprint);
        let (same, certain, resend) = known.map_or((false, true, false), |known| {
            (before == Some(fingerprint), before.is_some(), known.resend)
        });
        let resend = resend || self.resends_shown;
        let critical = registration.check == Check::Critical;
        self.known.put(
            &service,
            &registration.id,
            &registration.service,
            Some(fingerprint),
            critical,
        );
        if before.is_none() {
            // By a write that got no answer.
            self.names.taken(&lookup_form(&registration.service), &service);
        }
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
        if resync.passes_over(&RecordKey::Ptr(key.clone())) {
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
            .filter(|(_, id, _)| !resync.passes_over(&RecordKey::Registration(id.clone())))
            .collect();
        for (service, id, before) in unseen {
            if let Some(known) = self.known.registration(&service, &id) {
                self.names.lost((&*lookup_form(&known.service)).into(), &service);
            }
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
            .filter(|(key, _)| !resync.passes_over(&RecordKey::Ptr((*key).clone())))
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
            if resync.reported < MAX_REPORTED {
                resync.reported += 1;
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

    /// A complete resync is over: namespace nodes that it showed and on which nothing of ours is
    /// registered.
    pub(super) fn collect_empty_namespace_nodes(
        &mut self,
        resync: &Resync,
        reports: &mut Vec<Report>,
    ) {
        let shown = &resync.namespace_nodes;
        // What stood in the way of removing a node matters no more once it is gone or needed.
        let solved: Vec<ObjectKey> = self
            .problems
            .subjects(Subject::Namespace)
            .filter(|key| !shown.contains(&*key.name) || self.known.count_in(&key.name) > 0)
            .cloned()
            .collect();
        for key in solved {
            self.problems.set(Subject::Namespace, &key, BTreeSet::new(), reports);
        }
        for namespace in shown {
            let node = RecordKey::NamespaceNode(namespace.clone());
            if self.known.count_in(namespace) == 0 && !self.flights.carries(&node) {
                self.namespace_nodes.emptied(namespace);
            }
        }
    }

    /// A record was found changed when it was read: `found` says into what, and what is known of who
    /// did it; `content` is what it was.
    fn changed_by_others(
        &mut self,
        service: &ObjectKey,
        record: &RecordKey,
        content: Option<Fingerprint>,
        found: String,
        read: Moment,
    ) {
        let until = self.contention.note(service, record, found, read);
        if let (Some(until), Some(content)) = (until, content)
            && !self.flights.carries(record)
        {
            self.retries.pause(record, service, content, until);
        }
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
