//! A leader that is deposed: from then on it knows no more of Consul than one that has never led.

use std::collections::BTreeSet;

use crate::domain::consul::record::RecordKey;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::problem::{Problem, Reason};
use crate::domain::sync::queue::Queue;
use crate::domain::sync::{Phase, Reconciler, Report};

// === impl Reconciler ===

impl Reconciler {
    /// Nothing more is written until Consul is read back again: another one leads, and what stands
    /// in Consul and what is wrong with it is that one's to tell. What Kubernetes shows is taken
    /// further on.
    pub fn step_down(&mut self) {
        self.phase = Phase::Loading { read_back: false };
        self.abort_read_back();
        self.guard.start_over();
        // Others may hold a name by the time this one leads again: it must be asked for anew.
        self.foreign = None;
        self.forget_work();
        self.withdraw_problems();
    }

    /// Whether nothing of Consul is known nor being read: another one leads.
    pub(super) fn stands_by(&self) -> bool {
        self.phase == (Phase::Loading { read_back: false }) && self.touched.is_none()
    }

    /// The first reconciliation plans everything anew. Only what is in flight is kept, and that it
    /// may be there: a reading that begins before the answer passes these records over.
    fn forget_work(&mut self) {
        self.dirty = Queue::default();
        self.planned = None;
        self.retry_soon.clear();
        self.retry_late.clear();
        self.tracks.retain(|_, track| track.sent.is_some());
        self.tracks.shrink_to_fit();
        self.doubt_in_flight();
        let tracks = &self.tracks;
        self.units.retain(|_, unit| {
            unit.troubled.retain(|record| tracks.contains_key(record));
            unit.in_flight > 0
        });
        self.units.shrink_to_fit();
        self.ledger.forget_all_but(tracks.iter().map(|(record, track)| (&track.service, record)));
    }

    /// Whatever becomes of a write in flight, others may write the same record after it.
    fn doubt_in_flight(&mut self) {
        let mut tracks = std::mem::take(&mut self.tracks);
        for (record, track) in &mut tracks {
            track.is_former = true;
            if let Some(sent) = track.sent.clone() {
                self.doubt(track, record, sent);
            }
        }
        self.tracks = tracks;
    }

    /// A write is answered that was sent before this one was deposed: the next reading shows what
    /// has become of it.
    pub(super) fn forget_answered(&mut self, service: &ObjectKey, record: &RecordKey) {
        match record {
            RecordKey::Registration(id) => self.ledger.deregistered(service, id),
            RecordKey::Ptr(key) => self.ledger.forget_ptr(key),
        }
        if self.units.get(service).is_some_and(|unit| unit.in_flight == 0) {
            self.units.remove(service);
        }
    }

    /// Withdraws the problems that are found by planning or writing.
    fn withdraw_problems(&mut self) {
        let told: BTreeSet<(Kind, ObjectKey)> = self
            .problems
            .iter()
            .filter(|(kind, ..)| matches!(kind, Kind::Service | Kind::Namespace))
            .map(|(kind, key, _)| (kind, key.clone()))
            .collect();
        for (kind, key) in told {
            let unread = self.cache.undecodable(kind, &key);
            let kept = unread.map(|why| Problem::new(Reason::Undecodable, why));
            let (_, withdrawn) = self.problems.set(kind, &key, kept.into_iter().collect());
            let withdrawn = withdrawn.into_iter();
            self.reports.extend(withdrawn.map(|it| Report::Withdrawn(kind, key.clone(), it)));
        }
    }
}
