//! How writes are retried.

use std::hash::Hash;
use std::time::Duration;

use crate::domain::backoff::Backoff;
use crate::domain::consul::record::RecordKey;
use crate::domain::sync::Moment;

/// Between two tries of a write that failed for a reason that passes, and between two probes of a
/// Consul that does not answer.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// When a permission is missing: people grant that, not time.
const DENIED_RETRY: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(1));
/// So many records that fail, and none that does not, are Consul's fault and not theirs. Fewer
/// cost less to try than their neighbours would lose by waiting.
const OUTAGE_RECORDS: usize = 3;
/// A record that failed so often in a row while Consul answered others is at fault itself.
pub(super) const LONELY_FAILURES: u32 = 5;

/// Whether Consul takes writes. While it does not, a single one at a time probes it.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Records that failed since Consul answered last, [`OUTAGE_RECORDS`] at most.
    failing: Vec<RecordKey>,
    probes: u32,
    next_probe: Moment,
    /// How often Consul answered.
    answers: u64,
}

// === impl Outage ===

impl Outage {
    pub(super) fn is_on(&self) -> bool {
        self.failing.len() >= OUTAGE_RECORDS
    }

    /// A number that grows with each answer of Consul's.
    pub(super) fn answers(&self) -> u64 {
        self.answers
    }

    /// When the next write may be sent.
    pub(super) fn next_probe(&self) -> Moment {
        self.next_probe
    }

    pub(super) fn failed(&mut self, record: &RecordKey, now: Moment) {
        if !self.is_on() && !self.failing.contains(record) {
            self.failing.push(record.clone());
        }
        if self.is_on() {
            self.next_probe = now + RETRY.delay(self.probes, &"outage");
            self.probes = self.probes.saturating_add(1);
        }
    }

    /// Consul answered. Returns whether that ends an outage.
    pub(super) fn answered(&mut self) -> bool {
        self.answers += 1;
        let ended = self.is_on();
        self.failing.clear();
        self.probes = 0;
        ended
    }
}

/// Delay before try number `attempt` (from 0) of a write that failed.
pub(super) fn retry_delay(attempt: u32, seed: &impl Hash) -> Duration {
    RETRY.delay(attempt, seed)
}

/// Delay before try number `attempt` (from 0) of a write that was denied.
pub(super) fn denied_delay(attempt: u32, seed: &impl Hash) -> Duration {
    DENIED_RETRY.delay(attempt, seed)
}
