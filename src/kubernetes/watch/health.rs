//! Whether a watch fails, how often that is reported, and when it is tried again.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::domain::backoff::{Backoff, Delays};

/// From a second, which an API server is not hurt by, to what a cluster that is back is seen again
/// within: half a minute.
pub const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Quiet time after which the back-off begins again at its least: twice its longest delay, and
/// more than six times what it takes to notice that no headers come.
const BACKOFF_HEAL: Duration = Duration::from_mins(1);

/// Failures without a quiet time in between after which everything is relisted, whatever they
/// were: by then half a minute has passed, so this costs at most one list in that time. It heals
/// watches that cannot be resumed for a reason nobody thought of.
const LIST_AFTER_FAILURES: u32 = 5;

/// Least time between two reports of one watch.
const TROUBLE_SPACING: Duration = Duration::from_secs(10);

/// A watch that ends sooner, without an event, is a short one: healthy ones last minutes.
const SHORT_WATCH: Duration = Duration::from_secs(5);

/// Short watches in a row that are taken for a server or proxy that ends each at once: a rolling
/// update of three API servers may end three.
const SHORT_WATCHES: u32 = 5;

/// How one watch fares.
#[derive(Debug)]
pub struct Health {
    delays: Delays,
    /// When the last delay is over.
    resumed: Instant,
    failures: u32,
    reported: Option<Instant>,
    short_watches: u32,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// When it is tried again.
    pub retry_in: Duration,
    /// Whether only a relist helps.
    pub relist: bool,
    /// How many failures there were since there was no trouble; none if it is not to be reported.
    pub report: Option<u32>,
}

// === impl Health ===

impl Health {
    /// A watch that has not failed.
    pub fn new(now: Instant) -> Self {
        // The standard library seeds each hasher anew: many bridges must not come at once.
        let delays = BACKOFF.delays(RandomState::new().hash_one(()));
        Self { delays, resumed: now, failures: 0, reported: None, short_watches: 0 }
    }

    /// The watch failed, and the server asked to be left alone for `retry_after`.
    pub fn failed(&mut self, now: Instant, retry_after: Option<Duration>) -> Verdict {
        if now >= self.resumed + BACKOFF_HEAL {
            self.delays.reset();
            self.failures = 0;
        }
        self.failures += 1;
        let retry_in = self.delays.advance().max(retry_after.unwrap_or_default());
        self.resumed = now + retry_in;
        let due = self.reported.is_none_or(|told| now - told >= TROUBLE_SPACING);
        if due {
            self.reported = Some(now);
        }
        Verdict {
            retry_in,
            relist: self.failures.is_multiple_of(LIST_AFTER_FAILURES),
            report: due.then_some(self.failures),
        }
    }

    /// When the trouble is over, if there is no further failure; none without trouble.
    pub fn heals_at(&self) -> Option<Instant> {
        (self.failures > 0).then(|| self.resumed + BACKOFF_HEAL)
    }

    /// The trouble is over.
    pub fn healed(&mut self) {
        self.failures = 0;
        self.reported = None;
    }

    /// The server has ended a watch. Returns how many in a row ended at once, once they are too many.
    pub fn ended(&mut self, lasted: Duration, had_event: bool) -> Option<u32> {
        if had_event || lasted >= SHORT_WATCH {
            self.short_watches = 0;
            return None;
        }
        self.short_watches += 1;
        (self.short_watches >= SHORT_WATCHES).then(|| std::mem::take(&mut self.short_watches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_back_off_grows_and_only_quiet_time_heals_it() {
        let mut at = Instant::now();
        let mut health = Health::new(at);
        for whole in [1, 2, 4, 8, 16, 30, 30, 30] {
            let delay = health.failed(at, None).retry_in;
            let whole = Duration::from_secs(whole);
            assert!(delay >= whole * 3 / 4 && delay <= whole, "{delay:?}, due {whole:?}");
            at += delay + BACKOFF_HEAL / 2;
        }
        at += BACKOFF_HEAL / 2;
        let verdict = health.failed(at, None);
        assert!(verdict.retry_in <= BACKOFF.first && verdict.report == Some(1), "{verdict:?}");
        let asked = Duration::from_secs(7);
        assert_eq!(health.failed(at, Some(asked)).retry_in, asked, "Retry-After");
    }

    #[tokio::test]
    async fn l2_only_watches_that_end_at_once_in_a_row_are_a_fault() {
        let mut health = Health::new(Instant::now());
        let mut ended = |lasted, had_event| health.ended(Duration::from_millis(lasted), had_event);
        for _ in 0..2 {
            assert_eq!([(); 4].map(|()| ended(10, false)), [None; 4]);
            assert_eq!(ended(10, true), None, "it brought something");
            assert_eq!([(); 4].map(|()| ended(10, false)), [None; 4]);
            assert_eq!(ended(5_000, false), None, "it lasted");
        }
        assert_eq!([(); 4].map(|()| ended(10, false)), [None; 4]);
        assert_eq!(ended(10, false), Some(5));
        assert_eq!(ended(10, false), None, "counted anew");
    }
}
