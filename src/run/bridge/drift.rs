//! When Consul was heard, and when it is looked at again.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::run::daemon::retry::LogThrottle;

/// Between two signs of life: three fit into the minute after which the bridge is not ready.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(20);
/// Consul that has not answered for this long makes the bridge unready.
const SILENCE: Duration = Duration::from_mins(1);
/// The next reading starts this many times the last one's duration later at the earliest, so
/// that reading takes one hundredth of Consul's time at most.
const READ_BACK_SHARE: u32 = 100;
/// A reading that failed is tried again after this: long enough not to load a Consul in trouble.
pub(super) const READ_BACK_RETRY: Duration = Duration::from_secs(5);
/// While the catalog lacks records, it is asked again after this, or this many times what the
/// last answer took: asking takes a tenth of Consul's time at most.
const CATALOG_RETRY: Duration = Duration::from_millis(250);
const CATALOG_SHARE: u32 = 10;
/// What the catalog lacks for this long, the agent was refused: its own anti-entropy runs every
/// minute in a small cluster, and a failed write is repeated within half a minute.
pub(super) const CATALOG_DELAY: Duration = Duration::from_secs(90);

/// When Consul was heard and when it is looked at again.
pub(super) struct Drift {
    resync: Duration,
    /// Reading of all that is ours.
    reading: Periodic,
    /// Whether the last one failed.
    reading_failed: bool,
    /// Reading of the names that others hold.
    foreign: Periodic,
    /// Reading of what the catalog shows.
    catalog: Periodic,
    last_heard: Option<Instant>,
    token_generation: u64,
    progress: Progress,
    /// What the catalog lacks, since when.
    lacking: HashMap<Box<str>, Instant>,
    /// Newest failure, while it fails.
    trouble: Option<String>,
    throttle: LogThrottle,
}

/// What has succeeded since the start, each needing the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Progress {
    /// Nothing yet.
    Begun,
    /// Consul was read back.
    Read,
    /// The names that others hold are known.
    NamesKnown,
    /// The catalog has shown all our records.
    Shown,
}

/// Something that is done again and again, once at a time.
struct Periodic {
    began: Option<Instant>,
    next: Instant,
    /// Whether it has to be done at once again when it ends.
    again: bool,
}

// === impl Periodic ===

impl Periodic {
    fn new() -> Self {
        Self { began: None, next: Instant::now(), again: false }
    }

    fn is_due(&self) -> bool {
        self.began.is_none() && Instant::now() >= self.next
    }

    fn is_under_way(&self) -> bool {
        self.began.is_some()
    }

    fn begin(&mut self) {
        self.began = Some(Instant::now());
    }

    /// How long it has been under way.
    fn took(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }

    /// Ends it.
    fn end(&mut self, pause: Duration) {
        let pause = if std::mem::take(&mut self.again) { Duration::ZERO } else { pause };
        self.next = Instant::now() + pause;
        self.began = None;
    }

    /// Makes it due now, or again when the one under way has ended.
    fn hurry(&mut self) {
        self.again = self.is_under_way();
        self.next = Instant::now();
    }

    /// Makes it due then and no sooner.
    fn put_off(&mut self, until: Instant) {
        self.next = until;
    }

    /// When it is due, unless it is under way.
    fn due(&self) -> Option<Instant> {
        self.began.is_none().then_some(self.next)
    }
}

// === impl Drift ===

impl Drift {
    pub(super) fn new(resync: Duration, token_generation: u64) -> Self {
        Self {
            resync,
            reading: Periodic::new(),
            reading_failed: false,
            foreign: Periodic::new(),
            catalog: Periodic::new(),
            last_heard: None,
            token_generation,
            progress: Progress::Begun,
            lacking: HashMap::new(),
            trouble: None,
            throttle: LogThrottle::default(),
        }
    }

    /// What has succeeded since the start.
    pub(super) fn progress(&self) -> Progress {
        self.progress
    }

    /// Notes a success, if what it needs has succeeded too: an answer may come to a question of
    /// before a new start.
    fn reached(&mut self, progress: Progress) {
        let before = match progress {
            Progress::Begun | Progress::Read => Progress::Begun,
            Progress::NamesKnown => Progress::Read,
            Progress::Shown => Progress::NamesKnown,
        };
        if self.progress >= before {
            self.progress = self.progress.max(progress);
        }
    }

    /// Whether the token is another one than when this was asked last.
    pub(super) fn has_other_token(&mut self, generation: u64) -> bool {
        std::mem::replace(&mut self.token_generation, generation) != generation
    }

    /// Consul answered.
    pub(super) fn heard(&mut self) {
        self.last_heard = Some(Instant::now());
        self.trouble = None;
    }

    /// Whether Consul answered lately.
    pub(super) fn is_heard(&self) -> bool {
        self.last_heard.is_some_and(|last| last.elapsed() < SILENCE)
    }

    /// Consul did not do what it was asked for.
    pub(super) fn failed(&mut self, what: &str, why: String) {
        if self.throttle.should_log() {
            tracing::warn!("{what}: {why}");
        }
        self.trouble = Some(why);
    }

    /// The newest failure, while it fails.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    /// Whether all that is ours is to be read now; `uncertain`: what writes without an answer left
    /// uncertain can be read.
    pub(super) fn wants_reading(&self, uncertain: bool) -> bool {
        self.reading.is_due() || (uncertain && self.may_hurry())
    }

    /// Whether a reading may be made sooner for what writes without an answer left uncertain. One
    /// that just failed is repeated soon enough.
    pub(super) fn may_hurry(&self) -> bool {
        !self.reading.is_under_way() && !self.reading_failed
    }

    /// A reading begins.
    pub(super) fn reading_begins(&mut self) {
        self.reading.begin();
    }

    /// How long the one under way has taken.
    pub(super) fn reading_took(&self) -> Duration {
        self.reading.took()
    }

    /// The reading has shown all that is ours. What others hold and what the catalog shows is
    /// looked at next.
    pub(super) fn reading_succeeded(&mut self) {
        self.heard();
        self.reading_failed = false;
        self.reached(Progress::Read);
        self.foreign.hurry();
        self.catalog.hurry();
        let pause = self.resync.max(self.reading.took() * READ_BACK_SHARE);
        self.reading.end(pause.mul_f64(1.0 + jitter()));
    }

    pub(super) fn reading_failed(&mut self, why: String) {
        self.failed("Consul cannot be read back", why);
        self.reading_failed = true;
        self.reading.end(READ_BACK_RETRY);
    }

    /// The reading under way is given up; the next may start after `pause`.
    pub(super) fn reading_ends(&mut self, pause: Duration) {
        self.reading.end(pause);
        self.progress = Progress::Begun;
    }

    /// What a reading under way began with may be what was lost: another comes at once.
    pub(super) fn hurry_reading(&mut self) {
        self.reading.hurry();
    }

    /// Whether the names that others hold are to be read now.
    pub(super) fn wants_names(&self) -> bool {
        self.progress >= Progress::Read && self.foreign.is_due()
    }

    /// Their reading begins.
    pub(super) fn names_begin(&mut self) {
        self.foreign.begin();
    }

    /// They were read. Whether that still counts: an answer from before a new start may be
    /// outdated.
    pub(super) fn names_succeeded(&mut self) -> bool {
        // The next reading of all hurries the next one of names.
        let until_reading = self.reading.next.saturating_duration_since(Instant::now());
        self.foreign.end(until_reading + READ_BACK_RETRY);
        let counts = self.progress >= Progress::Read;
        if counts {
            self.reached(Progress::NamesKnown);
            self.heard();
        }
        counts
    }

    pub(super) fn names_failed(&mut self, why: String) {
        self.foreign.end(READ_BACK_RETRY);
        self.failed("the names that others hold cannot be read; no new name is registered", why);
    }

    /// Whether it is time to ask the catalog again.
    pub(super) fn wants_catalog(&self) -> bool {
        self.catalog.is_due()
    }

    /// The catalog is asked.
    pub(super) fn catalog_begins(&mut self) {
        self.catalog.begin();
    }

    /// The catalog answered and lacks these. Gives those that it has lacked for so long that the
    /// agent must have been refused, and whether it lacks no others.
    pub(super) fn catalog_lacks(
        &mut self,
        ids: impl Iterator<Item = Box<str>>,
    ) -> (HashSet<Box<str>>, bool) {
        let now = Instant::now();
        self.catalog.end(CATALOG_RETRY.max(self.catalog.took() * CATALOG_SHARE));
        self.heard();
        let before = std::mem::take(&mut self.lacking);
        let since = |id: Box<str>| {
            let since = before.get(&id).copied().unwrap_or(now);
            (id, since)
        };
        self.lacking = ids.map(since).collect();
        let long = self.lacking.iter().filter(|(_, since)| now - **since >= CATALOG_DELAY);
        let refused: HashSet<_> = long.map(|(id, _)| id.clone()).collect();
        let no_others = refused.len() == self.lacking.len();
        (refused, no_others)
    }

    /// The catalog shows all that it ever will: once nothing is left to do either (`settled`), it
    /// is asked again only after the next reading.
    pub(super) fn catalog_shows_all(&mut self, settled: bool) {
        if settled {
            self.reached(Progress::Shown);
        }
        if self.progress == Progress::Shown {
            self.catalog.put_off(self.reading.next + READ_BACK_RETRY);
        }
    }

    pub(super) fn catalog_failed(&mut self, why: String) {
        self.catalog.end(READ_BACK_RETRY);
        self.catalog.put_off(Instant::now() + READ_BACK_RETRY);
        self.failed("the catalog cannot be read", why);
    }

    /// The next moment at which something is due; `asks_catalog`: whether the catalog may be
    /// asked now.
    pub(super) fn next(&self, asks_catalog: bool) -> Instant {
        let heard_until = self.last_heard.map(|last| last + SILENCE);
        let foreign = self.foreign.due().filter(|_| self.progress >= Progress::Read);
        let catalog = self.catalog.due().filter(|_| asks_catalog);
        let silence = heard_until.filter(|until| *until > Instant::now());
        let due = [self.reading.due(), foreign, catalog, silence];
        due.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + HEARTBEAT)
    }
}

/// Between 0 and a quarter, by the clock's finest digits: readings of several replicas drift
/// apart.
fn jitter() -> f64 {
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.subsec_nanos());
    f64::from(nanoseconds % 1000) / 4000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_a_question_of_before_says_nothing_after_a_new_start() {
        let mut drift = Drift::new(Duration::from_mins(1), 0);
        drift.reached(Progress::Read);
        drift.reached(Progress::NamesKnown);
        assert_eq!(drift.progress(), Progress::NamesKnown);
        drift.reading_ends(Duration::ZERO);
        drift.reached(Progress::NamesKnown);
        assert_eq!(drift.progress(), Progress::Begun, "so that Consul is read consistently");
    }

    #[test]
    fn a_consul_that_cannot_be_read_is_not_read_again_at_once() {
        let mut drift = Drift::new(Duration::from_mins(1), 0);
        assert!(drift.may_hurry());
        drift.reading.begin();
        assert!(!drift.may_hurry(), "one at a time");
        drift.reading_failed = true;
        drift.reading.end(READ_BACK_RETRY);
        assert!(!drift.may_hurry() && !drift.reading.is_due());
        drift.reading_failed = false;
        assert!(drift.may_hurry());
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_catalog_lacks_for_long_the_agent_was_refused() {
        let mut drift = Drift::new(Duration::from_mins(1), 0);
        let mut lacks = |ids: &[&str]| {
            let (refused, no_others) = drift.catalog_lacks(ids.iter().map(|&id| id.into()));
            (refused.iter().map(|id| &**id).collect::<String>(), no_others)
        };
        assert_eq!(lacks(&["a", "b"]), (String::new(), false));
        tokio::time::advance(CATALOG_DELAY).await;
        assert_eq!(lacks(&["a", "c"]), ("a".to_owned(), false), "c only since now");
        assert_eq!(lacks(&["a"]), ("a".to_owned(), true));
        assert_eq!(lacks(&[]), (String::new(), true));
        assert_eq!(lacks(&["a"]), (String::new(), false), "it was there in between");
    }
}
