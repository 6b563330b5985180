//! How many blocking queries an import has at a time, and who has them: each holds a connection, of
//! which Consul gives one client address a limited number.
//!
//! Kept here: **everything is bounded**. What Consul refuses lowers the number at once, by a
//! quarter; time without a refusal raises it one by one. What has no query is read in turn.
//!
//! And **one namespace does not starve another**: queries and reads are shared by
//! [max-min fairness](https://en.wikipedia.org/wiki/Max-min_fairness), so that who asks for little has
//! all of it, whatever others ask for. A source that several namespaces ask for is served as one of
//! theirs, which changes: as many as ask for the same take no more than one of them would.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::import::core::Namespace;
use crate::domain::map::HashMap;

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
/// Reads are shared in so many parts: there may be more namespaces than reads.
const PARTS: usize = 1_000;
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
    namespaces: HashMap<Namespace, Used>,
    /// Of all namespaces together.
    queries: usize,
    most: Most,
    /// Namespaces that have more queries than the most of each.
    above: usize,
    /// How often `most` was asked for since it was computed.
    asked: usize,
}

/// What is followed for a namespace.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    sources: usize,
    /// Those of them that are served as its.
    served: usize,
    /// Those of these that have a query.
    queries: usize,
}

/// What a namespace has at most that wants more.
#[derive(Clone, Copy, Debug)]
struct Most {
    queries: Level,
    /// In [`PARTS`].
    reads_a_turn: usize,
}

/// What each has at most, and how many may have one more: what is left over of a division.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Level {
    each: usize,
    one_more: usize,
}

/// How a source is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// As one of this namespace's.
    pub namespace: Namespace,
    /// Whether it has a query.
    pub has_query: bool,
    /// Between two reads, where it has none.
    pub turn: Duration,
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
            most: Most { queries: Level::all(MAX_QUERIES), reads_a_turn: READS_A_TURN * PARTS },
            above: 0,
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

    /// A source is followed for the namespace.
    pub fn follow(&mut self, namespace: &str) {
        if let Some(used) = self.namespaces.get_mut(namespace) {
            used.sources += 1;
        } else {
            self.namespaces.insert(namespace.into(), Used { sources: 1, ..Used::default() });
        }
    }

    /// It is followed no longer for the namespace, nor served as its. Gives how many are left of the
    /// namespace.
    pub fn unfollow(&mut self, namespace: &str) -> usize {
        let Some(used) = self.namespaces.get_mut(namespace) else { return 0 };
        used.sources -= 1;
        let left = used.sources;
        if left == 0 {
            self.namespaces.remove(namespace);
        }
        left
    }

    /// Has a source served that is followed for these namespaces: as one of that which has the fewest
    /// queries and may have one more, or else of that in which its turn comes soonest.
    pub fn serve(&mut self, namespaces: &BTreeSet<Namespace>) -> Served {
        let most = self.most();
        let all = namespaces.iter().filter_map(|it| Some((it, self.namespaces.get(it)?)));
        let with_room = all.clone().filter(|(_, used)| self.has_room(used, most.queries));
        let with_query = with_room.min_by_key(|(_, used)| used.queries);
        let has_query = with_query.is_some();
        let soonest = || all.min_by_key(|(_, used)| (most.turn(used), used.served));
        let chosen = with_query.or_else(soonest).map(|(namespace, _)| namespace.clone());
        let mut served = Served { namespace: chosen.unwrap_or_default(), has_query, turn: TURN };
        self.begin(&served);
        served.turn = self.namespaces.get(&served.namespace).map_or(TURN, |used| most.turn(used));
        served
    }

    /// The source is followed no longer for the namespace as whose it is served: until it is served anew
    /// it is one of these.
    pub fn transfer(&mut self, served: &mut Served, namespaces: &BTreeSet<Namespace>) {
        self.end(served);
        let all = namespaces.iter().filter_map(|it| Some((it, self.namespaces.get(it)?)));
        let fewest = all.min_by_key(|(_, used)| (used.queries, used.served));
        served.namespace = fewest.map(|(namespace, _)| namespace.clone()).unwrap_or_default();
        self.begin(served);
    }

    fn begin(&mut self, served: &Served) {
        let Some(used) = self.namespaces.get_mut(&served.namespace) else { return };
        used.served += 1;
        if served.has_query {
            self.above += usize::from(used.queries == self.most.queries.each);
            used.queries += 1;
            self.queries += 1;
        }
    }

    /// A source is no longer served like that.
    pub fn end(&mut self, served: &Served) {
        let Some(used) = self.namespaces.get_mut(&served.namespace) else { return };
        used.served -= 1;
        if served.has_query {
            used.queries -= 1;
            self.queries -= 1;
            self.above -= usize::from(used.queries == self.most.queries.each);
        }
    }

    /// Whether one more source of the namespace would be read sooner than one that is served like this.
    pub fn is_sooner(&mut self, namespace: &str, served: &Served) -> bool {
        let most = self.most();
        let used = self.namespaces.get(namespace);
        !served.has_query && used.is_some_and(|used| most.turn(used) < served.turn)
    }

    fn has_room(&self, used: &Used, level: Level) -> bool {
        let is_below =
            used.queries < level.each || used.queries == level.each && self.above < level.one_more;
        is_below && self.queries < self.limit
    }

    /// Is computed anew after as many questions as there are namespaces, so that a question costs
    /// the same however many there are.
    fn most(&mut self) -> Most {
        self.asked += 1;
        if self.asked >= self.namespaces.len() {
            self.asked = 0;
            let all = || self.namespaces.values();
            let queries = Level::of(all().map(|used| used.served), self.limit);
            let in_turn = all().map(|used| in_turn(used, queries.each) * PARTS);
            let reads_a_turn = Level::of(in_turn, READS_A_TURN * PARTS).each.max(1);
            self.above = all().filter(|used| used.queries > queries.each).count();
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

// === impl Most ===

impl Most {
    /// Between two reads of a source of the namespace that has no query.
    fn turn(&self, used: &Used) -> Duration {
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        let parts = in_turn(used, self.queries.each).saturating_mul(PARTS);
        TURN.max(TURN * count(parts) / count(self.reads_a_turn))
    }
}

/// How many sources of a namespace have no query, where each has so many at most.
fn in_turn(used: &Used, queries: usize) -> usize {
    used.served.saturating_sub(queries)
}

// === impl Level ===

impl Level {
    /// Nobody wants more than there is.
    fn all(available: usize) -> Self {
        Self { each: available, one_more: 0 }
    }

    /// So that who wants less has all of it, and all together what there is.
    fn of(wanted: impl Iterator<Item = usize>, available: usize) -> Self {
        let mut wanted: Vec<usize> = wanted.collect();
        wanted.sort_unstable();
        let (mut left, mut others) = (available, wanted.len());
        for wanted in wanted {
            if wanted > left / others {
                return Self { each: left / others, one_more: left % others };
            }
            left -= wanted;
            others -= 1;
        }
        Self::all(available)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(share: &mut Share, namespaces: &[&str]) -> Served {
        share.serve(&namespaces.iter().map(|&it| it.into()).collect())
    }

    /// What follows so many sources of one namespace, and how they are served.
    fn following(share: &mut Share, namespace: &str, count: usize) -> Vec<Served> {
        (0..count).for_each(|_| share.follow(namespace));
        (0..count).map(|_| served(share, &[namespace])).collect()
    }

    /// Each of these is over, and made anew.
    fn again(share: &mut Share, all: &mut [(Vec<&str>, Served)]) {
        for (namespaces, how) in all {
            share.end(how);
            *how = served(share, namespaces);
        }
    }

    fn queries(share: &Share, namespace: &str) -> usize {
        share.namespaces[namespace].queries
    }

    #[test]
    fn i15_what_is_refused_lowers_the_number_once_and_for_long() {
        let mut share = Share::default();
        assert_eq!((share.limit(), share.places_of_a_read(), share.is_whole()), (150, 1, true));
        let second = Duration::from_secs;
        let mut all = following(&mut share, "shop", 37);
        assert!(share.refused(second(10)), "the 38th was refused");
        assert_eq!((share.limit(), share.places_of_a_read()), (27, 4));
        assert!(!share.refused(second(11)), "what was sent before that is refused too");
        all.drain(..10).for_each(|it| share.end(&it));
        share.handle_timeout(second(69));
        assert_eq!(share.limit(), 27);
        for minute in 1..4 {
            share.handle_timeout(second(10 + 60 * minute));
        }
        assert_eq!(share.limit(), 30);
        while served(&mut share, &["shop"]).has_query {}
        assert!(share.refused(second(300)));
        assert_eq!(share.limit(), 22);
    }

    #[test]
    fn i15_some_stay_and_all_come_back() {
        let mut share = Share::default();
        let mut all = following(&mut share, "shop", 150);
        for n in 0..20_u64 {
            share.refused(Duration::from_secs(10 * n));
            let excess = share.queries() - share.limit();
            all.drain(..excess).for_each(|it| share.end(&it));
        }
        assert_eq!((share.limit(), share.places_of_a_read()), (MIN_QUERIES, MAX_READS));
        all.drain(..).for_each(|it| share.end(&it));
        assert!(!share.refused(Duration::from_mins(10)), "there is nothing to lower");
        for minute in 11..200 {
            share.handle_timeout(Duration::from_mins(minute));
        }
        assert!(share.is_whole());
    }

    #[test]
    fn who_asks_for_little_has_all_of_it() {
        let level = |wanted: &[usize], available| {
            let Level { each, one_more } = Level::of(wanted.iter().copied(), available);
            (each, one_more)
        };
        assert_eq!(level(&[], 150), (150, 0));
        assert_eq!(level(&[150], 150), (150, 0));
        assert_eq!(level(&[160_000], 150), (150, 0));
        assert_eq!(level(&[160_000, 10], 150), (140, 0));
        assert_eq!(level(&[160_000, 10, 100], 150), (70, 0));
        assert_eq!(level(&[160_000, 10, 100], 151), (70, 1));
        assert_eq!(level(&[2; 100], 150), (1, 50));
        assert_eq!(level(&[1; 200], 150), (0, 150));
    }

    #[test]
    fn a_namespace_with_many_sources_delays_no_other() {
        let mut share = Share::default();
        let mut greedy = following(&mut share, "greedy", 160_000);
        assert_eq!(queries(&share, "greedy"), 150, "while it is alone");
        // Its queries end sooner or later, and go to whoever has fewer.
        let mut modest = following(&mut share, "modest", 20);
        assert!(modest.iter().all(|it| !it.has_query && it.turn == TURN), "{modest:?}");
        for n in 0..150 {
            share.end(&greedy[n]);
            if n < 20 {
                share.end(&modest[n]);
                modest[n] = served(&mut share, &["modest"]);
                assert!(modest[n].has_query);
            }
            greedy[n] = served(&mut share, &["greedy"]);
        }
        assert_eq!((queries(&share, "greedy"), queries(&share, "modest")), (130, 20));
        // The other reads are all its own: 100 a second.
        let alone: u64 = (160_000 - 130) / 100;
        let turn = |share: &mut Share| {
            let how = served(share, &["greedy"]);
            share.end(&how);
            (how.has_query, how.turn.as_secs())
        };
        let (has_query, of_greedy) = turn(&mut share);
        assert!(!has_query && of_greedy.abs_diff(alone) <= 1, "{of_greedy}");
        // What two want in turn, each has half of.
        following(&mut share, "other", 160_000);
        let (_, of_greedy) = turn(&mut share);
        assert!(of_greedy > 2 * alone - 10, "{of_greedy}");
        for it in &modest {
            share.end(it);
        }
        assert_eq!((0..20).map(|_| share.unfollow("modest")).last(), Some(0));
        assert!(!share.namespaces.contains_key("modest"));
    }

    #[test]
    fn what_is_left_over_of_a_division_is_used_too() {
        let mut share = Share::default();
        let names: Vec<String> = (0..100).map(|n| format!("n{n:02}")).collect();
        let mut all = Vec::new();
        for name in &names {
            let two = following(&mut share, name, 2);
            all.extend(two.into_iter().map(|how| (vec![name.as_str()], how)));
        }
        for _ in 0..5 {
            again(&mut share, &mut all);
            assert_eq!(share.queries(), MAX_QUERIES);
        }
        let two = names.iter().filter(|name| queries(&share, name) == 2).count();
        assert_eq!(two, 50);
    }

    #[test]
    fn a_source_of_many_namespaces_takes_what_one_source_takes() {
        let mut share = Share::default();
        let names: Vec<String> = (0..200).map(|n| format!("n{n:03}")).collect();
        for name in &names {
            share.follow(name);
        }
        let shared: Vec<&str> = names.iter().map(String::as_str).collect();
        let how = served(&mut share, &shared);
        let mut all = vec![(shared, how)];
        let own = following(&mut share, "n007", 140);
        all.extend(own.into_iter().map(|how| (vec!["n007"], how)));
        for _ in 0..5 {
            again(&mut share, &mut all);
            assert_eq!(share.queries(), 141);
        }
        // Nor does whoever asks for more than there is lose one for it.
        let more = following(&mut share, "n008", 140);
        all.extend(more.into_iter().map(|how| (vec!["n008"], how)));
        for _ in 0..5 {
            again(&mut share, &mut all);
        }
        let of_both = [queries(&share, "n007"), queries(&share, "n008")];
        assert!(of_both.iter().all(|it| [74, 75].contains(it)), "{of_both:?}");
        assert_eq!(share.queries(), MAX_QUERIES);
    }

    #[test]
    fn more_namespaces_than_reads_share_them_too() {
        let mut share = Share::default();
        let mut all = following(&mut share, "first", 150);
        for n in 0..5_000 {
            all.extend(following(&mut share, &format!("n{n}"), 1));
        }
        let turns = (0..5_000).map(|n| {
            let name = format!("n{n}");
            let how = served(&mut share, &[&name]);
            share.end(&how);
            how
        });
        let a_second: f64 =
            turns.filter(|it| !it.has_query).map(|it| 1.0 / it.turn.as_secs_f64()).sum();
        assert!(a_second <= 101.0, "{a_second}");
    }

    #[test]
    fn a_source_is_read_as_that_of_whoever_is_soonest() {
        let mut share = Share::default();
        let greedy = following(&mut share, "greedy", 20_000);
        let last = greedy.last().unwrap();
        assert!(!last.has_query && last.turn > 10 * TURN, "{last:?}");
        share.follow("modest");
        assert!(share.is_sooner("modest", last) && !share.is_sooner("greedy", last));
        share.end(last);
        let how = served(&mut share, &["greedy", "modest"]);
        assert_eq!((&*how.namespace, how.turn), ("modest", TURN));
        assert!(!share.is_sooner("modest", &how));
        let mut how = how;
        share.transfer(&mut how, &["greedy".into()].into());
        assert_eq!((&*how.namespace, share.unfollow("modest")), ("greedy", 0));
        let mut how = greedy[0].clone();
        share.follow("modest");
        share.transfer(&mut how, &["modest".into()].into());
        assert_eq!((queries(&share, "modest"), queries(&share, "greedy")), (1, 149));
        assert!(how.has_query && share.queries() == MAX_QUERIES);
    }
}
