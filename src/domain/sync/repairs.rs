//! Records that somebody else keeps changing back: repaired a few times, then left to people.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::domain::consul::record::{CLUSTER_META, ObservedRegistration, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::sync::track::{Track, Trouble};
use crate::domain::sync::{Moment, Reconciler};
use crate::domain::text::excerpt;

/// Repairs of one record within [`WINDOW`]: one more is a fight.
const MANY: usize = 5;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_mins(10);

/// When records were found changed.
#[derive(Debug, Default)]
pub(super) struct Repairs(HashMap<RecordKey, VecDeque<Moment>>);

// === impl Repairs ===

impl Repairs {
    /// Forgets what is too long ago to count.
    pub(super) fn forget_old(&mut self, now: Moment) {
        self.0.retain(|_, repairs| repairs.back().is_some_and(|last| *last + WINDOW > now));
    }

    /// A record is found changed: until when it is to be left alone, if it is a fight.
    fn note(&mut self, record: &RecordKey, now: Moment) -> Option<Moment> {
        let repairs = self.0.entry(record.clone()).or_default();
        while repairs.front().is_some_and(|first| *first + WINDOW <= now) {
            repairs.pop_front();
        }
        if repairs.len() < MANY {
            repairs.push_back(now);
            return None;
        }
        repairs.front().map(|first| *first + WINDOW)
    }
}

// === impl Reconciler ===

impl Reconciler {
    /// A record is not as it was left: `writer` says what is known of who changed it.
    pub(super) fn changed_by_others(
        &mut self,
        service: &ObjectKey,
        record: RecordKey,
        writer: impl FnOnce() -> String,
    ) {
        let now = self.read_back_began;
        let Some(until) = self.repairs.note(&record, now) else { return };
        let why = format!(
            "repaired {MANY} times in {} minutes, each time changed again by somebody else: {}. \
             It is left alone until the next repair is due; find the other writer",
            WINDOW.as_secs() / 60,
            writer(),
        );
        let track = self.tracks.entry(record.clone()).or_insert_with(|| Track::new(service));
        if track.sent.is_none() {
            track.trouble = Some(Trouble::contested(until, &record, &why));
            self.units.entry(service.clone()).or_default().troubled.insert(record);
        }
    }
}

/// What the record's meta says beside ours, which tells who wrote it.
pub(super) fn as_found(observed: &ObservedRegistration) -> String {
    let ours =
        |key: &str| key.starts_with("external-") || key.starts_with("port-") || key == CLUSTER_META;
    let meta = observed.registration.meta.iter().filter(|(key, _)| !ours(key));
    let meta: Vec<String> = meta.map(|(key, value)| format!("{key}={value}")).collect();
    if meta.is_empty() {
        return "its meta names no writer".to_owned();
    }
    format!("its meta now has {}", excerpt(&meta.join(", ")))
}
