//! The PTR records of a Service: which it claims, and the writes that follow.

use std::collections::BTreeMap;

use crate::domain::consul::record::{PtrRecord, RecordKey, Write};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::desired::{Desired, WantedPtr};
use crate::domain::sync::ledger::PtrState;
use crate::domain::sync::plan::{Draft, Gate};
use crate::domain::sync::{Moment, Reconciler};
use crate::domain::text::excerpt;

// === impl Reconciler ===

impl Reconciler {
    /// Notes which PTR keys the Service claims, and who is concerned by the difference.
    pub(super) fn claim_ptr(&mut self, key: &ObjectKey, desired: &Desired) {
        let claims = desired.reverse.iter();
        let claims = claims.map(|(key, wanted)| ((&**key).into(), wanted.rank)).collect();
        for handover in self.reverse.set(key, claims) {
            if handover.to.is_none() {
                self.released.entry(key.clone()).or_default().insert((&*handover.thing).into());
            }
            for other in [handover.from, handover.to].into_iter().flatten() {
                if other != *key {
                    self.mark_dirty(other);
                }
            }
        }
    }

    /// PTR records are collected first: each goes with the first instance of its address,
    /// and none goes without an instance.
    pub(super) fn draft_ptr(
        &mut self,
        key: &ObjectKey,
        desired: &Desired,
        now: Moment,
        draft: &mut Draft,
    ) {
        let Some(zone) = self.zone.clone() else {
            if !desired.reverse.is_empty() {
                draft.problems.push(no_ptr_zone());
            }
            return self.forget_ptr_troubles(desired.reverse.keys());
        };
        if !desired.undecided.is_empty() {
            // A record must not lead to a name that is not registered yet.
            return self.forget_ptr_troubles(desired.reverse.keys());
        }
        for (reverse, WantedPtr { service, .. }) in &desired.reverse {
            if self.reverse.holder(reverse) != Some(key) {
                continue;
            }
            let record = PtrRecord { key: reverse.clone(), value: zone.name_of(service).into() };
            let fingerprint = record.fingerprint();
            let known = self.ledger.reverse(reverse);
            let cas = match known.map(|known| &known.state) {
                Some(PtrState::Ours(there)) if *there == fingerprint => {
                    self.forget_trouble(&RecordKey::Ptr(reverse.clone()));
                    continue;
                }
                Some(PtrState::OtherCluster) => {
                    self.forget_trouble(&RecordKey::Ptr(reverse.clone()));
                    continue;
                }
                Some(PtrState::Foreign(value)) => {
                    if *value != record.value {
                        draft.problems.push(foreign_ptr(&record, value));
                    }
                    self.forget_trouble(&RecordKey::Ptr(reverse.clone()));
                    continue;
                }
                Some(PtrState::Unknown) => None,
                Some(PtrState::Ours(_)) | None => Some(known.map_or(0, |known| known.index)),
            };
            let track = RecordKey::Ptr(reverse.clone());
            match (self.gate(key, &track, Some(fingerprint), now), cas) {
                (Gate::Open, Some(cas)) => {
                    draft.puts.insert(reverse.clone(), Write::PutPtr { record, cas });
                }
                (Gate::Open, None) => draft.read(reverse.clone()),
                (Gate::Later, _) if self.comes_soon(&track) => {
                    draft.awaited.insert(reverse.clone());
                }
                (Gate::Later | Gate::Shut, _) => {}
            }
        }
    }

    /// The PTR records of the Service that nobody claims any more.
    pub(super) fn ptr_deletes(
        &mut self,
        key: &ObjectKey,
        now: Moment,
        draft: &mut Draft,
    ) -> BTreeMap<Box<str>, Write> {
        let mut deletes = BTreeMap::new();
        let Some(mut released) = self.released.remove(key) else { return deletes };
        released.retain(|reverse| {
            if self.reverse.holder(reverse).is_some() {
                return false;
            }
            let (cas, unknown) = match self.ledger.reverse(reverse) {
                Some(known) if matches!(known.state, PtrState::Ours(_)) => (known.index, false),
                Some(known) if known.state == PtrState::Unknown => (0, true),
                Some(_) => {
                    self.ledger.forget_ptr(reverse);
                    return false;
                }
                None => {
                    // One that is being written may exist in a moment.
                    let record = RecordKey::Ptr(reverse.clone());
                    return self.gate(key, &record, None, now) == Gate::Later;
                }
            };
            let track = RecordKey::Ptr(reverse.clone());
            match self.gate(key, &track, None, now) {
                Gate::Open if unknown => draft.read(reverse.clone()),
                Gate::Open => {
                    let delete = Write::DeletePtr { key: reverse.clone(), cas };
                    deletes.insert(reverse.clone(), delete);
                }
                Gate::Later if self.comes_soon(&track) => {
                    draft.awaited.insert(reverse.clone());
                }
                Gate::Later | Gate::Shut => {}
            }
            true
        });
        if !released.is_empty() {
            self.released.insert(key.clone(), released);
        }
        deletes
    }
}

fn foreign_ptr(wanted: &PtrRecord, found: &str) -> Problem {
    Problem::new(
        Reason::ForeignPtrRecord,
        format!(
            "KV key {}: expected {:?} or nothing, found {:?}, which no bridge wrote; \
             it is left as it is: delete it to have it written",
            wanted.key,
            wanted.value,
            excerpt(found),
        ),
    )
}

fn no_ptr_zone() -> Problem {
    Problem::new(
        Reason::NoDnsDomain,
        "no PTR record is written: expected the Consul datacenter and the DNS domain, found \
         them unknown; set --datacenter and --dns-domain, or --reverse-dns off",
    )
}
