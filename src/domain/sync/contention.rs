//! Records that somebody else keeps changing back: fixed a few times, then left to people.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::Moment;
use super::term::Term;
use crate::domain::consul::record::{CLUSTER_META, ObservedRegistration, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::excerpt;

/// Fixes of one record within [`WINDOW`]: one more is a fight.
const MANY: usize = 5;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_mins(10);

/// When records were found changed.
#[derive(Debug, Default)]
pub(super) struct Contention(HashMap<RecordKey, VecDeque<Moment>>);

// === impl Contention ===

impl Contention {
    /// Forgets what is too long ago to count.
    pub(super) fn forget_old(&mut self, now: Moment) {
        self.0.retain(|_, fixes| fixes.back().is_some_and(|last| *last + WINDOW > now));
    }

    /// A record is found changed: until when it is to be left alone, if it is a fight.
    fn note(&mut self, record: &RecordKey, now: Moment) -> Option<Moment> {
        let fixes = self.0.entry(record.clone()).or_default();
        while fixes.front().is_some_and(|first| *first + WINDOW <= now) {
            fixes.pop_front();
        }
        if fixes.len() < MANY {
            fixes.push_back(now);
            return None;
        }
        fixes.front().map(|first| *first + WINDOW)
    }
}

// === impl Term ===

impl Term {
    /// A record was not as it was left when it was read: `writer` says what is known of who changed
    /// it.
    pub(super) fn changed_by_others(
        &mut self,
        service: &ObjectKey,
        record: &RecordKey,
        read: Moment,
        writer: impl FnOnce() -> String,
    ) {
        let Some(until) = self.contention.note(record, read) else { return };
        if self.flights.carries(record) {
            return;
        }
        let why = format!(
            "{record}: fixed {MANY} times in {} minutes, each time changed again by somebody else: \
             {}. It is left alone until the next fix is due; find the other writer",
            WINDOW.as_secs() / 60,
            writer(),
        );
        let problem = Problem::new(Reason::Contested, why);
        self.retries.left_alone(record, service, problem, until);
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
