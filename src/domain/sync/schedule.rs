//! When Consul is looked at, and what has succeeded so far.
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::backoff::jittered;
use crate::domain::map::{HashMap, HashSet};

/// The next resync starts this many times the last one's duration later at the earliest, so that
/// resyncs take one hundredth of Consul's time at most.
const RESYNC_SHARE: u32 = 100;
/// A resync that failed is tried again after this: long enough not to load a Consul in trouble.
const RETRY: Duration = Duration::from_secs(5);
/// Resyncs that fail in a row before that counts as not doing the work: half a minute, in which an
/// election or a restarted agent is over.
const FAILURES: u32 = 5;
/// While the catalog lacks records, it is asked again after this, or this many times what the
/// last answer took: asking takes a tenth of Consul's time at most.
const CATALOG_RETRY: Duration = Duration::from_millis(250);
const CATALOG_SHARE: u32 = 10;
/// What the catalog lacks for this long, the agent was refused: its own anti-entropy runs every
/// minute in a small cluster, and a failed write is repeated within half a minute.
pub(super) const CATALOG_DELAY: Duration = Duration::from_secs(90);

/// When Consul is looked at.
#[derive(Debug)]
pub(super) struct Schedule {
    min_interval: Duration,
    seed: u64,
    /// How many resyncs have succeeded.
    resyncs: u32,
    /// All that is ours.
    resync: Periodic,
    /// How many have failed since.
    resync_failures: u32,
    /// The names that others hold.
    names: Periodic,
    /// What the catalog shows.
    catalog: Periodic,
    progress: Progress,
    /// Until when a write that got no answer may still be applied: a resync has to look then.
    uncertain_until: Option<Moment>,
    /// What the catalog lacks, since when.
    lacking: HashMap<Box<str>, Moment>,
}

/// What has succeeded in this term, each needing the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// Nothing yet.
    Begun,
    /// Consul was read.
    Resynced,
    /// The names that others hold are known.
    NamesKnown,
    /// The catalog has shown all our records.
    Shown,
}

/// Something that is done again and again, once at a time.
#[derive(Debug)]
enum Periodic {
    Due(Moment),
    UnderWay {
        began: Moment,
        /// Whether it has to be done at once again when it ends.
        again: bool,
    },
}

// === impl Periodic ===

impl Periodic {
    fn begin(&mut self, now: Moment) {
        *self = Periodic::UnderWay { began: now, again: false };
    }

    /// How long it has been under way.
    fn took(&self, now: Moment) -> Duration {
        match self {
            Periodic::Due(_) => Duration::ZERO,
            Periodic::UnderWay { began, .. } => now.saturating_sub(*began),
        }
    }

    /// Ends it.
    fn end(&mut self, pause: Duration, now: Moment) {
        let again = matches!(self, Periodic::UnderWay { again: true, .. });
        *self = Periodic::Due(if again { now } else { now + pause });
    }

    /// Makes it due now, or again when the one under way has ended.
    fn hurry(&mut self, now: Moment) {
        match self {
            Periodic::Due(due) => *due = now,
            Periodic::UnderWay { again, .. } => *again = true,
        }
    }

    /// Makes it due then at the latest, unless it is under way.
    fn due_by(&mut self, latest: Moment) {
        if let Periodic::Due(due) = self {
            *due = latest.min(*due);
        }
    }

    /// When it is due, unless it is under way.
    fn due(&self) -> Option<Moment> {
        match self {
            Periodic::Due(due) => Some(*due),
            Periodic::UnderWay { .. } => None,
        }
    }

    /// How long until it is due.
    fn remains(&self, now: Moment) -> Duration {
        self.due().map_or(Duration::ZERO, |due| due.saturating_sub(now))
    }
}

// === impl Schedule ===

impl Schedule {
    /// Everything is due. `min_interval`: between two resyncs.
    pub(super) fn new(min_interval: Duration, seed: u64, now: Moment) -> Self {
        Self {
            min_interval,
            seed,
            resyncs: 0,
            resync: Periodic::Due(now),
            resync_failures: 0,
            names: Periodic::Due(now),
            catalog: Periodic::Due(now),
            progress: Progress::Begun,
            uncertain_until: None,
            lacking: HashMap::default(),
        }
    }

    /// Whether Consul was not read yet in this term: what the first resync shows must include all
    /// that former leaders wrote.
    pub(super) fn is_first(&self) -> bool {
        self.progress == Progress::Begun
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// A write got no answer, and may still be applied until then.
    pub(super) fn uncertain(&mut self, until: Moment) {
        self.uncertain_until = Some(until);
    }

    /// Whether a write may still be applied that got no answer.
    pub(super) fn is_uncertain(&self) -> bool {
        self.uncertain_until.is_some()
    }

    /// A resync that began then has shown what became of writes without an answer.
    pub(super) fn certain_since(&mut self, began: Moment) {
        self.uncertain_until = self.uncertain_until.filter(|until| *until > began);
    }

    /// When all that is ours has to be read. What is uncertain hurries it, unless the last one
    /// failed: the next comes soon enough.
    pub(super) fn next_resync(&self) -> Option<Moment> {
        let due = self.resync.due()?;
        let uncertain = self.uncertain_until.filter(|_| self.resync_failures == 0);
        Some(uncertain.map_or(due, |until| until.min(due)))
    }

    pub(super) fn resync_begins(&mut self, now: Moment) {
        self.resync.begin(now);
    }

    /// The resync has shown all that is ours. What others hold and what the catalog shows is
    /// looked at next.
    pub(super) fn resync_succeeded(&mut self, now: Moment) {
        self.resync_failures = 0;
        self.resyncs = self.resyncs.wrapping_add(1);
        self.progress = self.progress.max(Progress::Resynced);
        self.names.hurry(now);
        self.catalog.hurry(now);
        let pause = self.min_interval.max(self.resync.took(now) * RESYNC_SHARE);
        // Up to a quarter longer: resyncs of several replicas drift apart.
        let pause = pause / 4 + jittered(pause, &(self.seed, self.resyncs));
        self.resync.end(pause, now);
    }

    pub(super) fn resync_failed(&mut self, now: Moment) {
        self.resync_failures = self.resync_failures.saturating_add(1);
        self.resync.end(RETRY, now);
    }

    /// Whether resyncs fail again and again: what others change is not noticed.
    pub(super) fn resyncs_fail(&self) -> bool {
        self.resync_failures >= FAILURES
    }

    /// What a resync under way began with may be what was lost: another comes at once.
    pub(super) fn hurry_resync(&mut self, now: Moment) {
        self.resync.hurry(now);
    }

    /// When the names that others hold have to be read.
    pub(super) fn next_names(&self) -> Option<Moment> {
        self.names.due().filter(|_| self.progress >= Progress::Resynced)
    }

    pub(super) fn names_begin(&mut self, now: Moment) {
        self.names.begin(now);
    }

    pub(super) fn names_succeeded(&mut self, now: Moment) {
        // The next resync hurries the names, too.
        self.names.end(self.resync.remains(now) + RETRY, now);
        if self.progress == Progress::Resynced {
            self.progress = Progress::NamesKnown;
        }
    }

    pub(super) fn names_failed(&mut self, now: Moment) {
        self.names.end(RETRY, now);
    }

    /// The names that others hold are to be read soon: one of them could not be looked up.
    pub(super) fn names_wanted(&mut self, now: Moment) {
        self.names.due_by(now + RETRY);
    }

    /// The names that others hold are to be read now.
    pub(super) fn hurry_names(&mut self, now: Moment) {
        self.names.hurry(now);
    }

    /// When the catalog has to be asked what it shows.
    pub(super) fn next_catalog(&self) -> Option<Moment> {
        self.catalog.due().filter(|_| self.progress >= Progress::NamesKnown)
    }

    pub(super) fn catalog_begins(&mut self, now: Moment) {
        self.catalog.begin(now);
    }

    /// The catalog answered and lacks these. Gives those that it has lacked for so long that the
    /// agent must have been refused, and whether it lacks no others.
    pub(super) fn catalog_lacks(
        &mut self,
        ids: impl Iterator<Item = Box<str>>,
        now: Moment,
    ) -> (HashSet<Box<str>>, bool) {
        self.catalog.end(CATALOG_RETRY.max(self.catalog.took(now) * CATALOG_SHARE), now);
        let before = std::mem::take(&mut self.lacking);
        let since = |id: Box<str>| {
            let since = before.get(&id).copied().unwrap_or(now);
            (id, since)
        };
        self.lacking = ids.map(since).collect();
        let long =
            self.lacking.iter().filter(|(_, since)| now.saturating_sub(**since) >= CATALOG_DELAY);
        let refused: HashSet<_> = long.map(|(id, _)| id.clone()).collect();
        let no_others = refused.len() == self.lacking.len();
        (refused, no_others)
    }

    /// The catalog shows all that it ever will: once nothing is left to do either (`settled`), it
    /// is asked again only after the next resync.
    pub(super) fn catalog_shows_all(&mut self, settled: bool, now: Moment) {
        if settled {
            self.progress = self.progress.max(Progress::Shown);
        }
        if self.progress == Progress::Shown {
            self.catalog = Periodic::Due(now + self.resync.remains(now) + RETRY);
        }
    }

    pub(super) fn catalog_failed(&mut self, now: Moment) {
        self.catalog = Periodic::Due(now + RETRY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> Schedule {
        Schedule::new(Duration::from_mins(1), 0, Moment::ZERO)
    }

    #[test]
    fn a_consul_that_cannot_be_read_is_not_read_again_at_once() {
        let mut schedule = schedule();
        let (soon, late) = (Moment::from_secs(1), Moment::from_secs(9));
        schedule.uncertain(soon);
        assert_eq!(schedule.next_resync(), Some(Moment::ZERO));
        schedule.resync_begins(Moment::ZERO);
        assert_eq!(schedule.next_resync(), None, "one at a time");
        schedule.resync_failed(late);
        assert_eq!(schedule.next_resync(), Some(late + RETRY));
        schedule.resync_begins(late + RETRY);
        schedule.resync_succeeded(late + RETRY);
        assert_eq!(schedule.next_resync(), Some(soon), "what is uncertain hurries it");
        schedule.certain_since(late + RETRY);
        let next = schedule.next_resync().unwrap();
        assert!(next >= late + RETRY + schedule.min_interval, "{next:?}");
        assert!(next < late + RETRY + schedule.min_interval * 5 / 4, "{next:?}");
    }

    #[test]
    fn a_resync_that_takes_long_comes_seldom() {
        let mut schedule = schedule();
        schedule.resync_begins(Moment::ZERO);
        let now = Moment::from_secs(3);
        schedule.resync_succeeded(now);
        assert!(schedule.next_resync().unwrap() >= now + Duration::from_mins(5));
        schedule.hurry_resync(now);
        assert_eq!(schedule.next_resync(), Some(now));
        schedule.resync_begins(now);
        schedule.hurry_resync(now);
        schedule.resync_succeeded(now);
        assert_eq!(schedule.next_resync(), Some(now), "what was lost may be what it began with");
    }

    #[test]
    fn what_the_catalog_lacks_for_long_the_agent_was_refused() {
        let mut schedule = schedule();
        let mut now = Moment::ZERO;
        let mut lacks = |ids: &[&str], later: Duration| {
            now += later;
            let (refused, no_others) = schedule.catalog_lacks(ids.iter().map(|&id| id.into()), now);
            (refused.iter().map(|id| &**id).collect::<String>(), no_others)
        };
        assert_eq!(lacks(&["a", "b"], Duration::ZERO), (String::new(), false));
        assert_eq!(lacks(&["a", "c"], CATALOG_DELAY), ("a".to_owned(), false), "c only since now");
        assert_eq!(lacks(&["a"], Duration::ZERO), ("a".to_owned(), true));
        assert_eq!(lacks(&[], Duration::ZERO), (String::new(), true));
        let there_in_between = lacks(&["a"], Duration::ZERO);
        assert_eq!(there_in_between, (String::new(), false));
    }
}
