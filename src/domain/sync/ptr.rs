//! The PTR records of a Service: which it claims, and the writes that follow.
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::Moment;
use crate::domain::consul::names::lookup_form;
use crate::domain::consul::record::{PtrRecord, RecordKey, Write};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::PtrRank;
use crate::domain::services::desired::{Desired, WantedPtr};
use crate::domain::sync::ledger::PtrState;
use crate::domain::sync::plan::Draft;
use crate::domain::sync::view::View;
use crate::domain::sync::wait::{Outlook, Wait};
use crate::domain::text::excerpt;

// === impl View ===

impl View<'_> {
    /// The PTR keys that the Service claims.
    pub(super) fn ptr_claims(desired: &Desired) -> BTreeMap<Arc<str>, PtrRank> {
        desired.reverse.iter().map(|(key, wanted)| ((&**key).into(), wanted.rank)).collect()
    }

    /// Whether the Service has this PTR key once its plan is applied.
    pub(super) fn holds_ptr(&self, key: &ObjectKey, ptr: &str, draft: &Draft) -> bool {
        let claim = draft.outcome.ptr_claims.get(ptr);
        self.term.ptr.claims.holder_if(ptr, key, claim) == Some(key)
    }

    /// PTR records are collected first: each goes with the first instance of its address, and none
    /// goes without an instance.
    pub(super) fn draft_ptr(
        &self,
        key: &ObjectKey,
        desired: &Desired,
        now: Moment,
        draft: &mut Draft,
    ) {
        if self.domain.is_none() && !desired.reverse.is_empty() {
            draft.outcome.problems.insert(no_dns_domain());
        }
        for (ptr, WantedPtr { service, .. }) in &desired.reverse {
            if !self.holds_ptr(key, ptr, draft) {
                continue;
            }
            let wait = match self.domain {
                None => Some(Wait::DomainUnknown),
                // A record must not lead to a name that is not registered yet.
                Some(_) if desired.unknown_names.contains(&*lookup_form(service)) => {
                    if self.term.names.comes_soon(&lookup_form(service)) {
                        // Its instances come with it, those under other names too.
                        draft.awaited.insert(ptr.clone());
                    }
                    Some(self.wait_for_names(desired))
                }
                Some(domain) => {
                    let value = domain.name_of(service).into();
                    self.draft_put(key, PtrRecord { key: ptr.clone(), value }, now, draft)
                }
            };
            if let Some(wait) = wait {
                draft.outcome.cleared.push(RecordKey::Ptr(ptr.clone()));
                draft.wait(RecordKey::Ptr(ptr.clone()), wait);
            }
        }
    }

    /// Drafts the write of a PTR record that the Service holds. Gives why it is not to be written at
    /// all, if so.
    fn draft_put(
        &self,
        key: &ObjectKey,
        record: PtrRecord,
        now: Moment,
        draft: &mut Draft,
    ) -> Option<Wait> {
        let fingerprint = record.fingerprint();
        let ptr = record.key.clone();
        let known = self.term.known.ptr(&ptr);
        let awaited = &mut draft.outcome.awaited_ptr;
        // Its former holder may be removing it.
        let changes = self.term.flights.carries(&RecordKey::Ptr(ptr.clone()));
        let cas = match known.map(|known| &known.state) {
            Some(PtrState::Ours(there)) if *there == fingerprint && !changes => {
                draft.outcome.cleared.push(RecordKey::Ptr(ptr));
                return None;
            }
            Some(PtrState::Foreign(value)) if *value == record.value => {
                draft.outcome.cleared.push(RecordKey::Ptr(ptr));
                return None;
            }
            Some(PtrState::Foreign(value)) => {
                awaited.insert(ptr);
                draft.outcome.problems.insert(foreign_ptr(&record, value));
                return Some(Wait::PtrForeign);
            }
            Some(PtrState::OtherCluster) => {
                awaited.insert(ptr);
                return Some(Wait::PtrForeign);
            }
            Some(PtrState::Unknown) => {
                // Until it is read, it may still be theirs.
                if self.term.ptr.awaited.has(key, &ptr) {
                    awaited.insert(ptr.clone());
                }
                None
            }
            Some(PtrState::Ours(_)) | None => Some(known.map_or(0, |known| known.index)),
        };
        match (self.gate(&RecordKey::Ptr(ptr.clone()), Some(fingerprint), now), cas) {
            (None, Some(cas)) => {
                draft.puts.insert(ptr, Write::PutPtr { record, cas });
            }
            (None, None) => draft.read(ptr),
            (Some(wait), _) => self.wait_for_ptr(&ptr, wait, draft),
        }
        None
    }

    /// The removals of the PTR records of the Service that nobody claims any more. Services that wait
    /// for their turn may: what the Service gives up now is removed once they have been planned.
    pub(super) fn ptr_deletes(
        &self,
        key: &ObjectKey,
        now: Moment,
        draft: &mut Draft,
    ) -> BTreeMap<Box<str>, Write> {
        let mut deletes = BTreeMap::new();
        let kept = if key.is_orphaned() { self.ptr_keys_kept() } else { BTreeMap::new() };
        let mut released = std::mem::take(&mut draft.outcome.released);
        let before = self.term.ptr.released.get(key);
        let may_be_claimed = |ptr: &str| {
            !self.term.work.queue.is_empty() && !before.is_some_and(|it| it.contains(ptr))
        };
        released.retain(|ptr| {
            let record = RecordKey::Ptr(ptr.clone());
            if let Some(wait) = kept.get(&**ptr) {
                draft.wait(record, wait.clone());
                return true;
            }
            let wait = self.gate(&record, None, now);
            let known = self.term.known.ptr(ptr);
            match (known.map(|known| &known.state), wait) {
                // One that is being written may exist in a moment.
                (None, Some(wait)) if wait.outlook() == Outlook::Soon => draft.wait(record, wait),
                (None, _) => return false,
                (Some(PtrState::OtherCluster | PtrState::Foreign(_)), _) => {
                    draft.outcome.forgotten.push(ptr.clone());
                    return false;
                }
                (_, Some(wait)) => self.wait_for_ptr(ptr, wait, draft),
                (Some(PtrState::Ours(_) | PtrState::Unknown), None) if may_be_claimed(ptr) => {
                    draft.again = true;
                    // Its instance goes with it.
                    draft.awaited.insert(ptr.clone());
                    draft.wait(record, Wait::AfterReplacement);
                }
                (Some(PtrState::Unknown), None) => draft.read(ptr.clone()),
                (Some(PtrState::Ours(_)), None) => {
                    let cas = known.map_or(0, |known| known.index);
                    deletes.insert(ptr.clone(), Write::DeletePtr { key: ptr.clone(), cas });
                }
            }
            true
        });
        draft.outcome.released = released;
        deletes
    }

    /// A PTR record waits, and what goes with it too if it comes soon: in the catalog an instance
    /// and its PTR record are written together, but a key that keeps failing must not hold it up.
    fn wait_for_ptr(&self, ptr: &str, wait: Wait, draft: &mut Draft) {
        let record = RecordKey::Ptr(ptr.into());
        if wait.outlook() == Outlook::Soon && self.term.retries.comes_soon(&record) {
            draft.awaited.insert(ptr.into());
        }
        draft.wait(record, wait);
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

fn no_dns_domain() -> Problem {
    Problem::new(
        Reason::NoDnsDomain,
        "no PTR record is written: expected the Consul datacenter and the DNS domain, found \
         them unknown; set --datacenter and --dns-domain, or --reverse-dns off",
    )
}
