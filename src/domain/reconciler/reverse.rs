//! The reverse records of a Service: which it claims, and the writes that follow.

use std::collections::BTreeMap;

use super::plan::{Draft, Gate};
use super::{Moment, Reconciler};
use crate::domain::desired::Desired;
use crate::domain::ledger::ReverseState;
use crate::domain::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::record::{RecordKey, ReverseRecord, Write};
use crate::domain::text::excerpt;

// === impl Reconciler ===

impl Reconciler {
    /// Notes which reverse keys the Service claims, and who is concerned by the difference.
    pub(super) fn claim_reverse(&mut self, key: &ObjectKey, desired: &Desired) {
        let claims = desired.reverse.iter();
        let claims = claims.map(|(key, name)| ((&**key).into(), (&**name).into())).collect();
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

    /// Reverse records are collected first: each goes with the first instance of its address,
    /// and none goes without an instance.
    pub(super) fn draft_reverse(
        &mut self,
        key: &ObjectKey,
        desired: &Desired,
        now: Moment,
        draft: &mut Draft,
    ) {
        let Some(zone) = self.zone.clone() else {
            if !desired.reverse.is_empty() {
                draft.problems.push(no_reverse_zone());
            }
            return self.forget_reverse_troubles(desired.reverse.keys());
        };
        if !desired.undecided.is_empty() {
            // A record must not lead to a name that is not registered yet.
            return self.forget_reverse_troubles(desired.reverse.keys());
        }
        for (reverse, service) in &desired.reverse {
            if self.reverse.holder(reverse) != Some(key) {
                continue;
            }
            let record =
                ReverseRecord { key: reverse.clone(), value: zone.name_of(service).into() };
            let fingerprint = record.fingerprint();
            let known = self.ledger.reverse(reverse);
            let cas = match known.map(|known| &known.state) {
                Some(ReverseState::Ours(there)) if *there == fingerprint => {
                    self.forget_trouble(&RecordKey::Reverse(reverse.clone()));
                    continue;
                }
                Some(ReverseState::OtherCluster) => {
                    self.forget_trouble(&RecordKey::Reverse(reverse.clone()));
                    continue;
                }
                Some(ReverseState::Foreign(value)) => {
                    if *value != record.value {
                        draft.problems.push(foreign_reverse(&record, value));
                    }
                    self.forget_trouble(&RecordKey::Reverse(reverse.clone()));
                    continue;
                }
                Some(ReverseState::Unknown) => None,
                Some(ReverseState::Ours(_)) | None => Some(known.map_or(0, |known| known.index)),
            };
            let track = RecordKey::Reverse(reverse.clone());
            match (self.gate(key, &track, Some(fingerprint), now), cas) {
                (Gate::Open, Some(cas)) => {
                    draft.puts.insert(reverse.clone(), Write::PutReverse { record, cas });
                }
                (Gate::Open, None) => draft.read(reverse.clone()),
                (Gate::Later, _) if self.comes_soon(&track) => {
                    draft.awaited.insert(reverse.clone());
                }
                (Gate::Later | Gate::Shut, _) => {}
            }
        }
    }

    /// The reverse records of the Service that nobody claims any more.
    pub(super) fn reverse_deletes(
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
                Some(known) if matches!(known.state, ReverseState::Ours(_)) => (known.index, false),
                Some(known) if known.state == ReverseState::Unknown => (0, true),
                Some(_) => {
                    self.ledger.forget_reverse(reverse);
                    return false;
                }
                None => {
                    // One that is being written may exist in a moment.
                    let record = RecordKey::Reverse(reverse.clone());
                    return self.gate(key, &record, None, now) == Gate::Later;
                }
            };
            let track = RecordKey::Reverse(reverse.clone());
            match self.gate(key, &track, None, now) {
                Gate::Open if unknown => draft.read(reverse.clone()),
                Gate::Open => {
                    let delete = Write::DeleteReverse { key: reverse.clone(), cas };
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

fn foreign_reverse(wanted: &ReverseRecord, found: &str) -> Problem {
    Problem::new(
        Reason::ForeignReverseRecord,
        format!(
            "KV key {}: expected {:?} or nothing, found {:?}, which no bridge wrote; \
             it is left as it is: delete it to have it written",
            wanted.key,
            wanted.value,
            excerpt(found),
        ),
    )
}

fn no_reverse_zone() -> Problem {
    Problem::new(
        Reason::NoReverseZone,
        "no reverse record is written: expected the Consul datacenter and the DNS domain, found \
         them unknown; set --datacenter and --dns-domain, or --reverse-dns off",
    )
}
