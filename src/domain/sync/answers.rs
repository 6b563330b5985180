//! What Consul's answers mean for the records that were written.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::consul::record::{Answer, ObservedPtr, PtrOwner, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::sync::ledger::PtrState;
use crate::domain::sync::outage::{LONELY_FAILURES, denied_delay, retry_delay};
use crate::domain::sync::track::{Sent, Track, Trouble};
use crate::domain::sync::{Moment, Reconciler};

/// A write that got no answer may still be applied this much later: measured on Consul 1.8.7, the
/// longest that a server holds on to a request.
pub(super) const MAY_STILL_APPLY: Duration = Duration::from_secs(30);

// === impl Reconciler ===

impl Reconciler {
    /// Takes the answer to one write.
    pub fn answered(&mut self, record: &RecordKey, answer: Answer, now: Moment) {
        let Some((mut track, sent)) = self.take_track(record) else { return };
        if self.stands_by() {
            if matches!(answer, Answer::Unanswered(_)) {
                self.uncertain_until = Some(now + MAY_STILL_APPLY);
            }
            return self.forget_answered(&track.service, record);
        }
        if track.is_former {
            return self.put_track(record, track.anew());
        }
        let is_consuls = !matches!(
            answer,
            Answer::Failed(_) | Answer::Unanswered(_) | Answer::NotSent | Answer::Fenced
        );
        if is_consuls {
            self.consul_answered(now);
        }
        let attempt = match &answer {
            Answer::Applied { .. } => 0,
            // The write that it belongs to failed; the Service is planned again because of that.
            Answer::NotSent => track.attempt,
            _ => track.attempt.saturating_add(1),
        };
        let until = now + denied_delay(track.attempt, record);
        match answer {
            Answer::Applied { index } => {
                self.applied(&track, record, sent, index);
                track.trouble = None;
                track.lonely = 0;
            }
            Answer::Conflict => {
                self.doubt_ptr(record);
                // The first conflict is settled by reading; whoever goes on writing is not
                // outpaced by writing faster.
                track.trouble = (track.attempt > 0).then(|| Self::later(&track, record, now));
            }
            Answer::Refused(why) => {
                track.trouble = Some(match sent {
                    Sent::Register { fingerprint, .. } | Sent::PutPtr(fingerprint) => {
                        Trouble::refused(fingerprint, record, &why)
                    }
                    _ => Trouble::denied(until, record, &why),
                });
            }
            Answer::Denied(why) => track.trouble = Some(Trouble::denied(until, record, &why)),
            Answer::Failed(why) => self.failed(&mut track, record, &why, now),
            Answer::Unanswered(why) => {
                self.doubt(&track, record, sent);
                self.uncertain_until = Some(now + MAY_STILL_APPLY);
                self.failed(&mut track, record, &why, now);
            }
            Answer::Foreign(why) => track.trouble = Some(Trouble::contested(until, record, &why)),
            Answer::NotSent => {}
            Answer::Fenced => track.trouble = Some(Self::later(&track, record, now)),
        }
        track.attempt = attempt;
        self.put_track(record, track);
    }

    /// Takes the answer to [`super::Action::ReadPtr`]: the entry, or why it could not be
    /// read.
    pub fn ptr_read(&mut self, key: &str, found: Result<Option<ObservedPtr>, String>, now: Moment) {
        let record = RecordKey::Ptr(key.into());
        let Some((mut track, _)) = self.take_track(&record) else { return };
        if self.stands_by() {
            return self.forget_answered(&track.service, &record);
        }
        if track.is_former {
            return self.put_track(&record, track.anew());
        }
        if let Ok(found) = found {
            self.note_ptr(key, found.as_ref());
            // A track that only waited for this reading is done with.
            if !matches!(track.trouble, Some(Trouble::Refused { .. })) {
                track.trouble = None;
            }
        } else {
            track.trouble = Some(Self::later(&track, &record, now));
            track.attempt = track.attempt.saturating_add(1);
        }
        self.put_track(&record, track);
    }

    /// When a read-back has to look at the writes that got no answer; `None`: there are none.
    pub fn uncertain_until(&self) -> Option<Moment> {
        self.uncertain_until
    }

    /// Notes what a PTR key holds.
    pub(super) fn note_ptr(&mut self, key: &str, found: Option<&ObservedPtr>) {
        let Some(found) = found else { return self.ledger.forget_ptr(key) };
        let state = match PtrOwner::of(found.flags, &self.settings.cluster) {
            PtrOwner::Ours => PtrState::Ours(found.record.fingerprint()),
            PtrOwner::OtherCluster => PtrState::OtherCluster,
            PtrOwner::Foreign => PtrState::Foreign(found.record.value.clone()),
        };
        self.ledger.put_ptr(key, state, found.index);
    }

    /// A write failed for a reason that passes, or that is the record's own.
    fn failed(&mut self, track: &mut Track, record: &RecordKey, why: &str, now: Moment) {
        if track.answers != self.outage.answers() {
            track.answers = self.outage.answers();
            track.lonely = track.lonely.saturating_add(1);
        }
        track.trouble = Some(if let Some(attempt) = track.lonely.checked_sub(LONELY_FAILURES) {
            Trouble::failing(now + denied_delay(attempt, record), record, why)
        } else {
            self.outage.failed(record, now);
            Self::later(track, record, now)
        });
    }

    fn later(track: &Track, record: &RecordKey, now: Moment) -> Trouble {
        Trouble::Transient { until: now + retry_delay(track.attempt, record) }
    }

    /// Takes the track of a record whose write was answered.
    fn take_track(&mut self, record: &RecordKey) -> Option<(Track, Sent)> {
        let mut track = self.tracks.remove(record)?;
        let Some(sent) = track.sent.take() else {
            self.tracks.insert(record.clone(), track);
            return None;
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        if let Some(unit) = self.units.get_mut(&track.service) {
            unit.in_flight = unit.in_flight.saturating_sub(1);
            unit.troubled.remove(record);
            if unit.troubled.is_empty() {
                // An emptied set keeps a node of 280 bytes, and in a burst all Services have one.
                unit.troubled = BTreeSet::new();
            }
        }
        Some((track, sent))
    }

    /// Keeps the track while it says something, and has its Service planned again when the
    /// last of its writes is answered.
    fn put_track(&mut self, record: &RecordKey, mut track: Track) {
        let again = std::mem::take(&mut track.again);
        let service = track.service.clone();
        if track.trouble.is_some() || track.attempt > 0 {
            match &track.trouble {
                Some(Trouble::Transient { until }) => {
                    self.retry_soon.insert((*until, service.clone()));
                }
                Some(Trouble::Lasting { until, .. }) => {
                    self.retry_late.insert((*until, service.clone()));
                }
                Some(Trouble::Refused { .. }) | None => {}
            }
            let unit = self.units.entry(service.clone()).or_default();
            unit.troubled.insert(record.clone());
            self.tracks.insert(record.clone(), track);
        }
        let more_to_come = self.planned.as_ref().is_some_and(|(planned, _)| *planned == service);
        let all_answered = self.units.get(&service).is_none_or(|unit| unit.in_flight == 0);
        if all_answered && !more_to_come {
            self.mark_dirty(service.clone());
        }
        for waiting in again {
            self.mark_dirty(waiting);
        }
        if let RecordKey::Ptr(key) = record
            && let Some(holder) = self.reverse.holder(key)
            && *holder != service
        {
            self.mark_dirty(holder.clone());
        }
    }

    fn applied(&mut self, track: &Track, record: &RecordKey, sent: Sent, index: u64) {
        let unit = self.units.entry(track.service.clone()).or_default();
        match sent {
            Sent::Register { .. } | Sent::PutPtr(_) => unit.written += 1,
            Sent::Deregister | Sent::DeletePtr => unit.removed += 1,
            Sent::Read => {}
        }
        match (record, sent) {
            (RecordKey::Registration(id), Sent::Register { name, fingerprint, critical }) => {
                self.ledger.put(&track.service, id, &name, Some(fingerprint), critical);
                if track.old_token {
                    self.ledger.resend(&track.service, id);
                }
            }
            (RecordKey::Registration(id), _) => self.registration_gone(&track.service, id),
            (RecordKey::Ptr(key), Sent::PutPtr(fingerprint)) => {
                self.ledger.put_ptr(key, PtrState::Ours(fingerprint), index);
            }
            (RecordKey::Ptr(key), _) => self.ledger.forget_ptr(key),
        }
    }

    fn registration_gone(&mut self, service: &ObjectKey, id: &str) {
        self.ledger.deregistered(service, id);
        if self.target.has_namespace_nodes() && self.ledger.count_in(&service.namespace) == 0 {
            self.namespace_nodes.emptied(&service.namespace);
        }
    }

    /// A write that got no answer may have been applied or not.
    pub(super) fn doubt(&mut self, track: &Track, record: &RecordKey, sent: Sent) {
        match (record, sent) {
            (RecordKey::Registration(id), Sent::Register { name, critical, .. }) => {
                let known = self.ledger.registration(&track.service, id);
                let resend = track.old_token || known.is_some_and(|known| known.resend);
                self.ledger.put(&track.service, id, &name, None, critical);
                if resend {
                    self.ledger.resend(&track.service, id);
                }
            }
            (RecordKey::Registration(id), _) => {
                if let Some(known) = self.ledger.registration(&track.service, id).cloned() {
                    self.ledger.put(&track.service, id, &known.service, None, known.critical);
                }
            }
            (RecordKey::Ptr(_), _) => self.doubt_ptr(record),
        }
    }

    fn doubt_ptr(&mut self, record: &RecordKey) {
        if let RecordKey::Ptr(key) = record {
            self.ledger.put_ptr(key, PtrState::Unknown, 0);
        }
    }

    /// Consul takes writes again: what waited for that waits no longer.
    pub(super) fn consul_answered(&mut self, now: Moment) {
        if !self.outage.answered() {
            return;
        }
        for (_, service) in std::mem::take(&mut self.retry_soon) {
            self.forgive(&service, now);
            self.mark_dirty(service);
        }
    }
}
