//! What a reading of Consul says about the records that are thought to be there.
//!
//! Only a reading that was complete and authoritative may be finished (invariant 1); the edge
//! that reads decides that. A record written since the reading began is passed over.

use std::collections::HashSet;

use crate::domain::consul::record::{
    Check, ObservedPtr, ObservedRegistration, PtrOwner, RecordKey,
};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::ObjectKey;
use crate::domain::sync::ledger::PtrState;
use crate::domain::sync::repairs::as_found;
use crate::domain::sync::{Moment, Phase, Reconciler, Report};

// === impl Reconciler ===

impl Reconciler {
    /// A reading of Consul begins: call before the request is sent.
    pub fn begin_read_back(&mut self, now: Moment) {
        self.read_back_began = now;
        self.ledger.read_back += 1;
        let in_flight = self.tracks.iter().filter(|(_, track)| track.sent.is_some());
        self.touched = Some(in_flight.map(|(record, _)| record.clone()).collect());
        self.drift = 0;
        self.namespace_nodes.reading_begins();
        self.repairs.forget_old(now);
    }

    /// The reading shows this registration of ours.
    pub fn observed_registration(&mut self, observed: &ObservedRegistration) {
        let registration = &observed.registration;
        if self.is_touched(&RecordKey::Registration(registration.id.clone())) {
            return;
        }
        let service = service_of_id(&self.settings.cluster, &registration.id)
            .unwrap_or_else(ObjectKey::orphaned);
        let fingerprint = registration.fingerprint();
        let known = self.ledger.registration(&service, &registration.id);
        let (same, certain, resend) = known.map_or((false, true, false), |known| {
            (known.fingerprint == Some(fingerprint), known.fingerprint.is_some(), known.resend)
        });
        let critical = registration.check == Check::Critical;
        self.ledger.put(
            &service,
            &registration.id,
            &registration.service,
            Some(fingerprint),
            critical,
        );
        if resend {
            // What it says does not tell with which token it was written.
            self.ledger.resend(&service, &registration.id);
        }
        if !same {
            let record = RecordKey::Registration(registration.id.clone());
            self.drifted(service, record, certain, || as_found(observed));
        }
    }

    /// The reading shows this PTR key.
    pub fn observed_ptr(&mut self, observed: &ObservedPtr) {
        let key = &observed.record.key;
        if self.is_touched(&RecordKey::Ptr(key.clone())) {
            return;
        }
        let holder = self.reverse.holder(key).cloned();
        let ours = PtrOwner::of(observed.flags, &self.settings.cluster) == PtrOwner::Ours;
        // Before the first reconciliation nobody has claimed anything.
        let concerns_us = ours || holder.is_some() || self.phase != Phase::Running;
        if !concerns_us {
            return self.ledger.forget_ptr(key);
        }
        let before = self.ledger.reverse(key).map(|known| known.state.clone());
        self.note_ptr(key, Some(observed));
        let after = self.ledger.reverse(key).map(|known| known.state.clone());
        if before == after || self.phase != Phase::Running {
            return;
        }
        let certain = before != Some(PtrState::Unknown);
        match holder {
            Some(holder) => {
                let record = RecordKey::Ptr(key.clone());
                let value = &observed.record.value;
                self.drifted(holder, record, certain, || format!("its value is now {value:?}"));
            }
            None => self.orphaned(key.clone(), certain),
        }
    }

    /// The reading was complete and true: what it did not show is not there.
    pub fn finish_read_back(&mut self, now: Moment) {
        let touched = self.touched.take().unwrap_or_default();
        // A Consul that reads and does not write is no reason to stop trying others.
        self.consul_answered(now);
        self.forget_unseen_registrations(&touched);
        self.forget_unseen_ptr(&touched);
        self.collect_empty_namespace_nodes();
        self.uncertain_until = self.uncertain_until.filter(|until| *until > self.read_back_began);
        match &mut self.phase {
            Phase::Loading { read_back } => *read_back = true,
            Phase::Running if self.drift > 0 => self.reports.push(Report::Repaired(self.drift)),
            Phase::Running => {}
        }
        self.start_if_loaded(now);
    }

    /// The reading broke off or cannot be trusted: what it did not show is unknown.
    pub fn abort_read_back(&mut self) {
        self.touched = None;
    }

    fn forget_unseen_registrations(&mut self, touched: &HashSet<RecordKey>) {
        let current = self.ledger.read_back;
        let cluster = &self.settings.cluster;
        let unseen: Vec<(ObjectKey, Box<str>, bool)> = self
            .ledger
            .services()
            .flat_map(|(service, known)| known.iter().map(move |known| (service, known)))
            .filter(|(_, known)| known.read_back != current)
            .map(|(service, known)| {
                (service.clone(), known.id(cluster, service), known.fingerprint.is_some())
            })
            .filter(|(_, id, _)| !touched.contains(&RecordKey::Registration(id.clone())))
            .collect();
        for (service, id, certain) in unseen {
            self.ledger.deregistered(&service, &id);
            self.drifted(service, RecordKey::Registration(id), certain, removed);
        }
    }

    fn forget_unseen_ptr(&mut self, touched: &HashSet<RecordKey>) {
        let current = self.ledger.read_back;
        let unseen: Vec<(Box<str>, bool)> = self
            .ledger
            .ptr_keys()
            .filter(|(_, known)| known.read_back != current)
            .filter(|(key, _)| !touched.contains(&RecordKey::Ptr((*key).clone())))
            .map(|(key, known)| (key.clone(), matches!(known.state, PtrState::Ours(_))))
            .collect();
        for (key, ours) in unseen {
            self.ledger.forget_ptr(&key);
            if let Some(holder) = self.reverse.holder(&key).cloned() {
                self.drifted(holder, RecordKey::Ptr(key), ours, removed);
            }
        }
    }

    fn is_touched(&self, record: &RecordKey) -> bool {
        self.touched.as_ref().is_some_and(|touched| touched.contains(record))
    }

    /// A record is not as it was left, unless it was not `certain` how it was left.
    fn drifted(
        &mut self,
        service: ObjectKey,
        record: RecordKey,
        certain: bool,
        writer: impl FnOnce() -> String,
    ) {
        self.drift += usize::from(certain);
        // Before the first reconciliation it is a former self that left it so.
        if certain && self.phase == Phase::Running {
            self.changed_by_others(&service, record, writer);
        }
        self.mark_dirty(service);
    }

    fn orphaned(&mut self, key: Box<str>, certain: bool) {
        self.drift += usize::from(certain);
        self.released.entry(ObjectKey::orphaned()).or_default().insert(key);
        self.mark_dirty(ObjectKey::orphaned());
    }
}

fn removed() -> String {
    "it was removed".to_owned()
}
