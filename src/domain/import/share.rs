//! How many blocking queries an import has at a time: each holds a connection, of which Consul gives
//! one client address a limited number.
//!
//! Kept here: **everything is bounded**. What Consul refuses lowers the number at once, by a
//! quarter; time without a refusal raises it one by one. What has no query is read in turn.

use std::time::Duration;

use super::core::Moment;

/// Blocking queries at a time: Consul's `http_max_conns_per_client` is 200 for one address, which
/// others on the same machine share.
const MAX_QUERIES: usize = 150;
/// However often Consul refuses, so many stay: with fewer the services that are read in turn would
/// wait no less.
const MIN_QUERIES: usize = 10;
/// Reads at a time of services for which there is no query, which come on top of the queries.
pub const MAX_READS: usize = 16;
/// The same where Consul refused: one for so many queries. A quarter less and a sixth of that more
/// is less than what was refused, by what the other requests of an import need.
const QUERIES_A_READ: usize = 6;
/// Refusals within this time after one have the same cause: what was sent before the number was
/// lowered is answered within it.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two raises: what a query waits at most, so that each has been made anew in between.
const RAISE: Duration = Duration::from_mins(1);

/// How many queries and reads there may be at a time.
#[derive(Debug)]
pub struct Share {
    queries: usize,
    /// When Consul refused last, and when the number was raised last after that.
    lowered: Option<Moment>,
    raised: Moment,
}

// === impl Share ===

impl Default for Share {
    fn default() -> Self {
        Self { queries: MAX_QUERIES, lowered: None, raised: Moment::ZERO }
    }
}

impl Share {
    /// How many blocking queries there may be.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// How many of [`MAX_READS`] places each read takes beside the queries.
    pub fn places_of_a_read(&self) -> usize {
        if self.is_whole() { 1 } else { MAX_READS.div_ceil((self.queries / QUERIES_A_READ).max(1)) }
    }

    /// Whether Consul has refused nothing for long.
    pub fn is_whole(&self) -> bool {
        self.queries == MAX_QUERIES
    }

    /// Consul refused a connection, or a request as one too many, while so many queries waited. Gives
    /// whether that lowers the number.
    pub fn refused(&mut self, waiting: usize, now: Moment) -> bool {
        if self.lowered.is_some_and(|at| now < at + SETTLE) {
            return false;
        }
        self.lowered = Some(now);
        self.raised = now;
        let before = self.queries;
        self.queries = (waiting.min(before) * 3 / 4).clamp(MIN_QUERIES, before.max(MIN_QUERIES));
        self.queries < before
    }

    /// Time has passed: one more finds out whether that is over.
    pub fn handle_timeout(&mut self, now: Moment) {
        if !self.is_whole() && now >= self.raised + RAISE {
            self.raised = now;
            self.queries += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i15_what_is_refused_lowers_the_number_once_and_for_long() {
        let mut share = Share::default();
        assert_eq!((share.queries(), share.places_of_a_read(), share.is_whole()), (150, 1, true));
        let second = Duration::from_secs;
        assert!(share.refused(37, second(10)), "the 38th was refused");
        assert_eq!((share.queries(), share.places_of_a_read()), (27, 4));
        assert!(!share.refused(36, second(11)), "what was sent before that is refused too");
        share.handle_timeout(second(69));
        assert_eq!(share.queries(), 27);
        for minute in 1..4 {
            share.handle_timeout(second(10 + 60 * minute));
        }
        assert_eq!(share.queries(), 30);
        assert!(share.refused(30, second(300)));
        assert_eq!(share.queries(), 22);
    }

    #[test]
    fn i15_some_stay_and_all_come_back() {
        let mut share = Share::default();
        for n in 0..20_u64 {
            share.refused(share.queries(), Duration::from_secs(10 * n));
        }
        assert_eq!((share.queries(), share.places_of_a_read()), (MIN_QUERIES, MAX_READS));
        assert!(!share.refused(0, Duration::from_mins(10)), "there is nothing to lower");
        for minute in 11..200 {
            share.handle_timeout(Duration::from_mins(minute));
        }
        assert!(share.is_whole());
    }
}
