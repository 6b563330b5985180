//! How long to wait before another try: the one back-off and the one jitter.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};

/// Longest `Retry-After` that is respected: servers say a few seconds, and a mistake must not stop
/// us.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(1);

/// Retries after which every delay has long been the longest: 2^32 times the first.
const GROWING: u32 = 32;

/// Delays that double from the first to the longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first retry.
    pub first: Duration,
    /// The upper limit: what a recovery takes at most beyond the other side's own.
    pub longest: Duration,
}

/// The delays of one thing that is tried again and again: an iterator without end.
#[derive(Clone, Debug)]
pub struct Delays {
    backoff: Backoff,
    attempt: u32,
    seed: u64,
}

// === impl Backoff ===

impl Backoff {
    /// Doubling from `first` to `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest }
    }

    /// Delay before retry number `attempt` (from 0) of what `seed` names: between three quarters
    /// and the whole of what is due, so that it still grows with each retry.
    pub fn delay(&self, attempt: u32, seed: &impl Hash) -> Duration {
        let growing = ExponentialBuilder::new()
            .with_min_delay(self.first)
            .with_max_delay(self.longest)
            .without_max_times();
        // Without backon's own jitter, which goes beyond the longest delay.
        let whole = growing.build().nth(attempt.min(GROWING) as usize).unwrap_or(self.longest);
        jittered(whole, &(seed, attempt))
    }

    /// The delays of what `seed` names, one after the other.
    pub fn delays(self, seed: u64) -> Delays {
        Delays { backoff: self, attempt: 0, seed }
    }
}

// === impl Delays ===

impl Delays {
    /// The next delay.
    pub fn advance(&mut self) -> Duration {
        let delay = self.backoff.delay(self.attempt, &self.seed);
        self.attempt = self.attempt.saturating_add(1);
        delay
    }

    /// It worked: the next delay is the first again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// Between three quarters and the whole of `delay`. It comes from a hash: what matters is that those who
/// wait for the same thing differ, not that it cannot be foretold.
pub fn jittered(delay: Duration, seed: &impl Hash) -> Duration {
    let mut hasher = DefaultHasher::new();
    seed.hash(&mut hasher);
    let thousandths = u32::try_from(750 + hasher.finish() % 250).unwrap_or(1000);
    delay * thousandths / 1000
}

/// How long a header `Retry-After` asks to wait, as far as that is respected; none where it is no
/// number of seconds.
pub fn retry_after(header: &str) -> Option<Duration> {
    header.trim().parse().ok().map(respected)
}

/// As much of the seconds that a server asks to wait as is respected.
pub fn respected(seconds: u64) -> Duration {
    Duration::from_secs(seconds).min(MAX_RETRY_AFTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));

    #[test]
    fn delays_grow_to_their_limit_and_no_further() {
        let Backoff { first, longest } = BACKOFF;
        let mut last = Duration::ZERO;
        for attempt in 0..40 {
            let delay = BACKOFF.delay(attempt, &"a");
            assert!(delay >= first * 3 / 4 && delay <= longest, "{attempt}: {delay:?}");
            assert!(delay > last || last >= longest * 3 / 4, "{attempt}: {delay:?} after {last:?}");
            last = delay;
        }
        assert!(BACKOFF.delay(u32::MAX, &"a") >= longest * 3 / 4);
        assert_ne!(BACKOFF.delay(3, &"a"), BACKOFF.delay(3, &"b"));
    }

    #[test]
    fn a_retry_after_is_respected_for_a_minute_at_most() {
        for (header, wanted) in [
            ("0", Some(0)),
            (" 7 ", Some(7)),
            ("3600", Some(60)),
            ("18446744073709551615", Some(60)),
            ("18446744073709551616", None),
            ("-1", None),
            ("1.5", None),
            ("Fri, 27 Nov 2026 04:00:00 GMT", None),
            ("", None),
        ] {
            assert_eq!(retry_after(header), wanted.map(Duration::from_secs), "{header:?}");
        }
    }

    #[test]
    fn a_success_begins_anew() {
        let mut delays = BACKOFF.delays(7);
        let first = delays.advance();
        assert!(delays.advance() > first);
        delays.reset();
        assert_eq!(delays.advance(), first);
    }
}
