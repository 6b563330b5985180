//! How many blocking queries an import has at a time, and who has them: each holds a connection, of
//! which Consul gives one client address a limited number.
//!
//! Kept here: **everything is bounded**. What Consul refuses lowers the number at once, by a
//! quarter; time without a refusal raises it one by one. What has no query is read in turn.
//!
//! And **one namespace does not starve another**: queries and reads are shared by
//! [max-min fairness](https://en.wikipedia.org/wiki/Max-min_fairness), so that who asks for little has
//! all of it, whatever others ask for.

use std::time::Duration;

use crate::domain::map::HashMap;

use super::core::Moment;

/// Blocking queries at a time: Consul's `http_max_conns_per_client` is 200 for one address, which
/// others on the same machine share.
const MAX_QUERIES: usize = 150;
/// However often Consul refuses, so many stay: with fewer the services that are read in turn would
/// wait no less.
const MIN_QUERIES: usize = 10;
/// Reads at a time of services for which there is no query, which come on top of the queries.
pub const MAX_READS: usize = 16;
/// Those of one namespace: others do not wait behind more.
pub const MAX_READS_OF_NAMESPACE: usize = MAX_READS / 4;
/// The same where Consul refused: one for so many queries. A quarter less and a sixth of that more
/// is less than what was refused, by what the other requests of an import need.
const QUERIES_A_READ: usize = 6;
/// Least time between two reads of a service for which there is no query.
pub const TURN: Duration = Duration::from_secs(5);
/// Reads within that time, 100 a second: Consul answers a consistent read in about a millisecond, and
/// is there for others too.
const READS_A_TURN: usize = 500;
/// Refusals within this time after one have the same cause: what was sent before the number was
/// lowered is answered within it.
const SETTLE: Duration = Duration::from_secs(2);
/// Between two raises: what a query waits at most, so that each has been made anew in between.
const RAISE: Duration = Duration::from_mins(1);

/// How many queries and reads there may be at a time, and of which namespaces they are.
#[derive(Debug)]
pub struct Share {
    limit: usize,
    /// When Consul refused last, and when the number was raised last after that.
    lowered: Option<Moment>,
    raised: Moment,
    namespaces: HashMap<Box<str>, Used>,
    /// Of all namespaces together.
    queries: usize,
    most: Most,
    /// How often `most` was asked for since it was computed.
    asked: usize,
}

/// What is followed for a namespace.
#[derive(Debug, Default)]
struct Used {
    sources: usize,
    /// Those of them that have a query. One that several namespaces share counts for one of them.
    queries: usize,
}

/// What a namespace has at most that wants more.
#[derive(Clone, Copy, Debug)]
struct Most {
    queries: usize,
    reads_a_turn: usize,
}

// === impl Share ===

impl Default for Share {
    fn default() -> Self {
        Self {
            limit: MAX_QUERIES,
            lowered: None,
            raised: Moment::ZERO,
            namespaces: HashMap::default(),
            queries: 0,
            most: Most { queries: MAX_QUERIES, reads_a_turn: READS_A_TURN },
            asked: 0,
        }
    }
}

impl Share {
    /// How many blocking queries there may be.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// How many there are.
    pub fn queries(&self) -> usize {
        self.queries
    }

    /// How many of [`MAX_READS`] places each read takes beside the queries.
    pub fn places_of_a_read(&self) -> usize {
        if self.is_whole() { 1 } else { MAX_READS.div_ceil((self.limit / QUERIES_A_READ).max(1)) }
    }

    /// Whether Consul has refused nothing for long.
    pub fn is_whole(&self) -> bool {
        self.limit == MAX_QUERIES
    }

    /// A source of the namespace is followed.
    pub fn follow(&mut self, namespace: &str) {
        if let Some(used) = self.namespaces.get_mut(namespace) {
            used.sources += 1;
        } else {
            let used = Used { sources: 1, queries: 0 };
            self.namespaces.insert(namespace.into(), used);
        }
    }

    /// It is followed no longer, nor has a query. Gives how many are left of the namespace.
    pub fn unfollow(&mut self, namespace: &str) -> usize {
        let Some(used) = self.namespaces.get_mut(namespace) else { return 0 };
        used.sources -= 1;
        let left = used.sources;
        if left == 0 {
            self.namespaces.remove(namespace);
        }
        left
    }

    /// Whether a source of the namespace has a query from now on: if there may be one more.
    pub fn begin_query(&mut self, namespace: &str) -> bool {
        let most = self.most().queries;
        let Some(used) = self.namespaces.get_mut(namespace) else { return false };
        let has_query = self.queries < self.limit && used.queries < most;
        self.queries += usize::from(has_query);
        used.queries += usize::from(has_query);
        has_query
    }

    /// A query of the namespace has ended.
    pub fn end_query(&mut self, namespace: &str) {
        let Some(used) = self.namespaces.get_mut(namespace) else { return };
        self.queries -= 1;
        used.queries -= 1;
    }

    /// Between two reads of a source of the namespace that has no query.
    pub fn turn(&mut self, namespace: &str) -> Duration {
        let most = self.most();
        let wanted = self.namespaces.get(namespace).map_or(0, |used| in_turn(used, most.queries));
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        TURN.max(TURN * count(wanted) / count(most.reads_a_turn))
    }

    /// Is computed anew after as many questions as there are namespaces, so that a question costs
    /// the same however many there are.
    fn most(&mut self) -> Most {
        self.asked += 1;
        if self.asked >= self.namespaces.len() {
            self.asked = 0;
            let wanted = self.namespaces.values().map(|used| used.sources);
            let queries = most_of_each(wanted, self.limit);
            let wanted = self.namespaces.values().map(|used| in_turn(used, queries));
            let reads_a_turn = most_of_each(wanted, READS_A_TURN);
            self.most = Most { queries, reads_a_turn };
        }
        self.most
    }

    /// Consul refused a connection, or a request as one too many, while so many queries waited. Gives
    /// whether that lowers the number.
    pub fn refused(&mut self, now: Moment) -> bool {
        if self.lowered.is_some_and(|at| now < at + SETTLE) {
            return false;
        }
        self.lowered = Some(now);
        self.raised = now;
        let before = self.limit;
        let waiting = self.queries.min(before);
        self.limit = (waiting * 3 / 4).clamp(MIN_QUERIES, before.max(MIN_QUERIES));
        self.limit < before
    }

    /// Time has passed: one more finds out whether that is over.
    pub fn handle_timeout(&mut self, now: Moment) {
        if !self.is_whole() && now >= self.raised + RAISE {
            self.raised = now;
            self.limit += 1;
        }
    }
}

/// How many sources of a namespace have no query, where each has so many at most.
fn in_turn(used: &Used, queries: usize) -> usize {
    used.sources.saturating_sub(queries)
}

/// What each has at most, so that who wants less has all of it, and all together no more than there
/// is: but one each, however many they are.
fn most_of_each(wanted: impl Iterator<Item = usize>, available: usize) -> usize {
    let mut wanted: Vec<usize> = wanted.collect();
    wanted.sort_unstable();
    let (mut left, mut others) = (available, wanted.len());
    for wanted in wanted {
        if wanted > left / others {
            return (left / others).max(1);
        }
        left -= wanted;
        others -= 1;
    }
    available
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What follows so many sources of one namespace, and has queries for those that may.
    fn following(share: &mut Share, namespace: &str, count: usize) -> usize {
        (0..count).for_each(|_| share.follow(namespace));
        (0..count).filter(|_| share.begin_query(namespace)).count()
    }

    #[test]
    fn i15_what_is_refused_lowers_the_number_once_and_for_long() {
        let mut share = Share::default();
        assert_eq!((share.limit(), share.places_of_a_read(), share.is_whole()), (150, 1, true));
        let second = Duration::from_secs;
        following(&mut share, "shop", 37);
        assert!(share.refused(second(10)), "the 38th was refused");
        assert_eq!((share.limit(), share.places_of_a_read()), (27, 4));
        assert!(!share.refused(second(11)), "what was sent before that is refused too");
        (0..10).for_each(|_| share.end_query("shop"));
        share.handle_timeout(second(69));
        assert_eq!(share.limit(), 27);
        for minute in 1..4 {
            share.handle_timeout(second(10 + 60 * minute));
        }
        assert_eq!(share.limit(), 30);
        while share.begin_query("shop") {}
        assert!(share.refused(second(300)));
        assert_eq!(share.limit(), 22);
    }

    #[test]
    fn i15_some_stay_and_all_come_back() {
        let mut share = Share::default();
        following(&mut share, "shop", 200);
        for n in 0..20_u64 {
            share.refused(Duration::from_secs(10 * n));
            while share.queries() > share.limit() {
                share.end_query("shop");
            }
        }
        assert_eq!((share.limit(), share.places_of_a_read()), (MIN_QUERIES, MAX_READS));
        (0..MIN_QUERIES).for_each(|_| share.end_query("shop"));
        assert!(!share.refused(Duration::from_mins(10)), "there is nothing to lower");
        for minute in 11..200 {
            share.handle_timeout(Duration::from_mins(minute));
        }
        assert!(share.is_whole());
    }

    #[test]
    fn who_asks_for_little_has_all_of_it() {
        let most = |wanted: &[usize], available| most_of_each(wanted.iter().copied(), available);
        assert_eq!(most(&[], 150), 150);
        assert_eq!(most(&[150], 150), 150);
        assert_eq!(most(&[160_000], 150), 150);
        assert_eq!(most(&[160_000, 10], 150), 140);
        assert_eq!(most(&[160_000, 10, 100], 150), 70);
        assert_eq!(most(&[1; 200], 150), 1);
        assert_eq!(most(&[2; 200], 150), 1);
    }

    #[test]
    fn a_namespace_with_many_sources_delays_no_other() {
        let mut share = Share::default();
        assert_eq!(following(&mut share, "greedy", 160_000), 150, "while it is alone");
        // Its queries end sooner or later, and go to whoever has fewer.
        assert_eq!(following(&mut share, "modest", 20), 0);
        assert_eq!(share.turn("modest"), TURN);
        for n in 0..150 {
            share.end_query("greedy");
            assert!(n >= 20 || share.begin_query("modest"));
            share.begin_query("greedy");
        }
        let queries = |share: &Share, namespace| share.namespaces[namespace].queries;
        assert_eq!((queries(&share, "greedy"), queries(&share, "modest")), (130, 20));
        assert!(!share.begin_query("greedy"));
        // The other reads are all its own: 100 a second.
        let alone: u64 = (160_000 - 130) / 100;
        assert!(share.turn("greedy").as_secs().abs_diff(alone) <= 1, "{:?}", share.turn("greedy"));
        // What two want in turn, each has half of.
        following(&mut share, "other", 160_000);
        assert!(share.turn("greedy").as_secs() > 2 * alone - 10, "{:?}", share.turn("greedy"));
        (0..20).for_each(|_| share.end_query("modest"));
        assert_eq!((0..20).map(|_| share.unfollow("modest")).last(), Some(0));
        assert!(!share.namespaces.contains_key("modest"));
    }
}
