//! How writes are retried.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::domain::consul::record::RecordKey;
use crate::domain::sync::Moment;

/// Delay before the first retry of a write that failed for a reason that passes.
const FIRST_RETRY: Duration = Duration::from_millis(100);
/// Longest delay between two tries of a record, and between two probes of a Consul that does not
/// answer: what recovery costs at most beyond Consul's own.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Delays when a right is missing: people mend that, not time.
const FIRST_DENIED_RETRY: Duration = Duration::from_secs(5);
const LONGEST_DENIED_RETRY: Duration = Duration::from_mins(1);
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
            self.next_probe = now + delay(FIRST_RETRY, LONGEST_RETRY, self.probes, &"outage");
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
    delay(FIRST_RETRY, LONGEST_RETRY, attempt, seed)
}

/// Delay before try number `attempt` (from 0) of a write that was denied.
pub(super) fn denied_delay(attempt: u32, seed: &impl Hash) -> Duration {
    delay(FIRST_DENIED_RETRY, LONGEST_DENIED_RETRY, attempt, seed)
}

/// Doubles with each attempt. The jitter, between a half and the whole, comes from a hash:
/// what matters is that records differ, not that it cannot be foretold.
fn delay(first: Duration, longest: Duration, attempt: u32, seed: &impl Hash) -> Duration {
    let whole = first.saturating_mul(2_u32.saturating_pow(attempt)).min(longest);
    let mut hasher = DefaultHasher::new();
    (seed, attempt).hash(&mut hasher);
    let thousandths = u32::try_from(500 + hasher.finish() % 500).unwrap_or(1000);
    whole * thousandths / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_their_limit_and_no_further() {
        let mut last = Duration::ZERO;
        for attempt in 0..40 {
            let delay = retry_delay(attempt, &"a");
            assert!(delay >= FIRST_RETRY / 2 && delay <= LONGEST_RETRY, "{attempt}: {delay:?}");
            if attempt % 2 == 0 && last < LONGEST_RETRY / 2 {
                assert!(delay > last, "{attempt}: {delay:?} after {last:?}");
                last = delay;
            }
        }
        assert!(retry_delay(40, &"a") >= LONGEST_RETRY / 2);
        assert_ne!(retry_delay(3, &"a"), retry_delay(3, &"b"));
    }
}
