//! Records whose writes failed, and when each is tried again.
//!
//! A failure that passes is tried again soon, one that people have to fix slowly, content that the
//! other side refuses only once it is another. While several records fail and none is answered the
//! other side is taken to be out, and one write at a time probes it; a record that fails while
//! others are answered is at fault itself (an isolated failure) and keeps nobody waiting.

use std::collections::BTreeSet;
use std::hash::Hash;
use std::time::Duration;

use crate::domain::map::HashMap;

use super::Moment;
use super::backoff::Backoff;
use super::problem::Problem;

/// Between two tries of a write that failed for a reason that passes, and between two probes of a
/// side that does not answer.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
/// When a permission is missing: people grant that, not time.
const DENIED_RETRY: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(1));
/// When content is refused: mostly for good, until it is another. But what refuses may be a proxy,
/// or a limit that somebody raises.
const REFUSED_RETRY: Backoff = Backoff::new(Duration::from_mins(1), Duration::from_mins(30));
/// So many records that fail, and none that does not, are the other side's fault and not theirs.
/// Fewer cost less to try than their neighbours would lose by waiting.
const OUTAGE_RECORDS: usize = 3;
/// A record that failed so often in a row while others were answered is at fault itself.
pub const ISOLATED_FAILURES: u32 = 5;

/// Why a record is not as it ought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure<C> {
    /// It passes: tried again at that moment, or as soon as the other side answers after an outage.
    Passing {
        /// When it is tried again.
        until: Moment,
    },
    /// It lasts until somebody fixes it.
    Lasting {
        /// When it is tried again.
        until: Moment,
        /// What people see of it.
        problem: Problem,
    },
    /// This content waits until that moment: another one is written at once, and so is a removal.
    Paused {
        /// When it is written.
        until: Moment,
        /// What waits.
        content: C,
    },
    /// This content is refused until that moment: another one is written at once.
    Refused {
        /// When it is tried again.
        until: Moment,
        /// What was refused.
        content: C,
        /// What people see of it.
        problem: Problem,
    },
}

/// Records `K` of owners `O` whose writes of content `C` failed.
#[derive(Debug)]
pub struct Retries<K, O, C> {
    records: HashMap<K, Failed<O, C>>,
    /// The records of each owner in `records`.
    of: HashMap<O, BTreeSet<K>>,
    /// Who waits for a [`Failure::Passing`], by the moment of the next try.
    soon: BTreeSet<(Moment, O, K)>,
    /// Who waits for a [`Failure::Lasting`], likewise.
    late: BTreeSet<(Moment, O)>,
    outage: Outage<K>,
}

/// What is remembered of a record that failed.
#[derive(Debug)]
struct Failed<O, C> {
    /// Who wrote it last.
    owner: O,
    /// How often in a row it failed.
    attempt: u32,
    /// How often in a row it failed although others were answered.
    isolated: u32,
    /// [`Retries::answers`] when it was sent or failed last.
    answers: u64,
    failure: Option<Failure<C>>,
}

/// Whether the other side takes writes. While it does not, a single one at a time probes it.
#[derive(Debug)]
struct Outage<K> {
    /// Records that failed since the last answer, [`OUTAGE_RECORDS`] at most.
    failing: Vec<K>,
    probes: u32,
    next_probe: Moment,
    /// How often the other side answered.
    answers: u64,
}

// === impl Retries ===

impl<K: Clone + Hash + Ord, O: Clone + Hash + Ord, C: PartialEq> Default for Retries<K, O, C> {
    fn default() -> Self {
        Self {
            records: HashMap::default(),
            of: HashMap::default(),
            soon: BTreeSet::new(),
            late: BTreeSet::new(),
            outage: Outage { failing: Vec::new(), probes: 0, next_probe: Moment::ZERO, answers: 0 },
        }
    }
}

impl<K: Clone + Hash + Ord, O: Clone + Hash + Ord, C: PartialEq> Retries<K, O, C> {
    /// What keeps this content of a record from being written now; `None` as content: its removal.
    pub fn failure(&self, record: &K, content: Option<&C>, now: Moment) -> Option<&Failure<C>> {
        let failure = self.records.get(record)?.failure.as_ref()?;
        let holds = match failure {
            Failure::Passing { until } | Failure::Lasting { until, .. } => *until > now,
            Failure::Paused { until, content: paused } => *until > now && content == Some(paused),
            Failure::Refused { until, content: refused, .. } => {
                *until > now && content == Some(refused)
            }
        };
        holds.then_some(failure)
    }

    /// Whether nothing failed that is not past.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// How often in a row the record failed.
    pub fn attempts(&self, record: &K) -> u32 {
        self.records.get(record).map_or(0, |failed| failed.attempt)
    }

    /// Whether its next try is worth waiting for.
    pub fn comes_soon(&self, record: &K) -> bool {
        self.attempts(record) < ISOLATED_FAILURES
    }

    /// The records of an owner that failed.
    pub fn of(&self, owner: &O) -> impl Iterator<Item = &K> {
        self.of.get(owner).into_iter().flatten()
    }

    /// Whether a failure of an owner's records passes: something is still to be done.
    pub fn has_passing(&self, owner: &O) -> bool {
        let passes = |it: &Failed<O, C>| matches!(it.failure, Some(Failure::Passing { .. }));
        self.of(owner).any(|record| self.records.get(record).is_some_and(passes))
    }

    /// What people see of the failures of an owner's records: nothing of what passes.
    pub fn problems(&self, owner: &O) -> impl Iterator<Item = (&K, &Problem)> {
        self.of(owner).filter_map(|record| match self.records.get(record)?.failure.as_ref()? {
            Failure::Passing { .. } | Failure::Paused { .. } => None,
            Failure::Lasting { problem, .. } | Failure::Refused { problem, .. } => {
                Some((record, problem))
            }
        })
    }

    /// Everyone who has a record that failed.
    pub fn owners(&self) -> impl Iterator<Item = &O> {
        self.of.keys()
    }

    /// Whether a write that failed waits for its next try. One that nobody waits for does not
    /// count: what it was to bring is not wanted at the moment.
    pub fn has_retries(&self) -> bool {
        let passes = |it: &Failed<O, C>| matches!(it.failure, Some(Failure::Passing { .. }));
        !self.soon.is_empty() && self.records.values().any(passes)
    }

    /// A number that grows with each answer: see [`Retries::failed`].
    pub fn answers(&self) -> u64 {
        self.outage.answers
    }

    /// The other side failed the write, for a reason that passes or that is the record's own.
    /// `answers`: [`Retries::answers`] when it was sent. `problem` is shown once the failure is
    /// isolated.
    pub fn failed(
        &mut self,
        record: &K,
        owner: &O,
        answers: u64,
        problem: impl FnOnce() -> Problem,
        now: Moment,
    ) {
        let current = self.outage.answers;
        let failed = self.entry(record, owner);
        if failed.attempt == 0 {
            failed.answers = answers;
        }
        if failed.answers != current {
            failed.answers = current;
            failed.isolated = failed.isolated.saturating_add(1);
        }
        if let Some(attempt) = failed.isolated.checked_sub(ISOLATED_FAILURES) {
            let until = now + DENIED_RETRY.delay(attempt, record);
            self.set(record, owner, Failure::Lasting { until, problem: problem() });
        } else {
            self.outage.failed(record, now);
            self.retry(record, owner, now);
        }
    }

    /// It is tried again soon.
    pub fn retry(&mut self, record: &K, owner: &O, now: Moment) {
        let until = now + RETRY.delay(self.entry(record, owner).attempt, record);
        self.set(record, owner, Failure::Passing { until });
    }

    /// It could not be read, and is tried again soon: during an outage no sooner than the next probe.
    pub fn not_read(&mut self, record: &K, owner: &O, now: Moment) {
        if self.outage.is_on() {
            self.outage.failed(record, now);
        }
        self.retry(record, owner, now);
    }

    /// It has to be fixed by people, and is tried again slowly.
    pub fn denied(&mut self, record: &K, owner: &O, problem: Problem, now: Moment) {
        let until = now + DENIED_RETRY.delay(self.entry(record, owner).attempt, record);
        self.set(record, owner, Failure::Lasting { until, problem });
    }

    /// It has to be fixed by people, and is tried again at that moment.
    pub fn lasting(&mut self, record: &K, owner: &O, problem: Problem, until: Moment) {
        self.set(record, owner, Failure::Lasting { until, problem });
    }

    /// This content waits until that moment, although nothing failed.
    pub fn pause(&mut self, record: &K, owner: &O, content: C, until: Moment) {
        let attempt = self.entry(record, owner).attempt;
        self.set(record, owner, Failure::Paused { until, content });
        self.entry(record, owner).attempt = attempt;
    }

    /// This content is not taken. It is tried again, ever more seldom.
    pub fn refused(&mut self, record: &K, owner: &O, content: C, problem: Problem, now: Moment) {
        let until = now + REFUSED_RETRY.delay(self.entry(record, owner).attempt, record);
        self.set(record, owner, Failure::Refused { until, content, problem });
    }

    /// It failed, and may be tried again at once.
    pub fn failed_once(&mut self, record: &K, owner: &O) {
        let failed = self.entry(record, owner);
        failed.attempt = failed.attempt.saturating_add(1);
        failed.failure = None;
    }

    /// The record is as it ought to be, or is not to be written: whatever a write ran into is past.
    pub fn clear(&mut self, record: &K) {
        if let Some(failed) = self.records.remove(record) {
            self.leave(&failed.owner, record);
        }
    }

    /// What kept the record from being written is past; how often it failed is remembered until
    /// [`Retries::settled`].
    pub fn lift(&mut self, record: &K) {
        if let Some(failed) = self.records.get_mut(record)
            && !matches!(failed.failure, Some(Failure::Refused { .. }))
        {
            failed.failure = None;
        }
    }

    /// All is as it ought to be for this owner, but for what still has a failure.
    pub fn settled(&mut self, owner: &O) {
        let over = |record: &&K| self.records.get(*record).is_some_and(|it| it.failure.is_none());
        let over: Vec<K> = self.of(owner).filter(over).cloned().collect();
        for record in over {
            self.clear(&record);
        }
    }

    /// Notes that `owner` waits until the record may be tried again: see [`Retries::due`].
    pub fn wait_for(&mut self, record: &K, owner: O) {
        match self.records.get(record).and_then(|failed| failed.failure.as_ref()) {
            Some(Failure::Passing { until }) => {
                self.soon.insert((*until, owner, record.clone()));
            }
            Some(
                Failure::Lasting { until, .. }
                | Failure::Paused { until, .. }
                | Failure::Refused { until, .. },
            ) => {
                self.late.insert((*until, owner));
            }
            None => {}
        }
    }

    /// The other side answered: that ends an outage. Gives those who need not wait any longer.
    pub fn answered(&mut self, now: Moment) -> Vec<O> {
        if !self.outage.answered() {
            return Vec::new();
        }
        let waiting = std::mem::take(&mut self.soon);
        for (_, owner, record) in &waiting {
            self.hurry(owner, record, now);
        }
        waiting.into_iter().map(|(_, owner, _)| owner).collect()
    }

    /// Whether the other side is out: see [`Retries::next_probe`].
    pub fn is_outage(&self) -> bool {
        self.outage.is_on()
    }

    /// When the next write may be sent during an outage.
    pub fn next_probe(&self) -> Moment {
        self.outage.next_probe
    }

    /// Who may try again now.
    pub fn due(&mut self, now: Moment) -> Vec<O> {
        let mut due = Vec::new();
        while self.soon.first().is_some_and(|(until, ..)| *until <= now) {
            due.extend(self.soon.pop_first().map(|(_, owner, _)| owner));
        }
        while self.late.first().is_some_and(|(until, _)| *until <= now) {
            due.extend(self.late.pop_first().map(|(_, owner)| owner));
        }
        due
    }

    /// Somebody whose write probes a side that is out: any will do, however long it would have
    /// waited.
    pub fn probe(&mut self, now: Moment) -> Option<O> {
        let (_, owner, record) = self.soon.pop_first()?;
        self.hurry(&owner, &record, now);
        Some(owner)
    }

    /// When somebody may try again: what passes, and what lasts.
    pub fn next(&self) -> (Option<Moment>, Option<Moment>) {
        let soon = self.soon.first().map(|(until, ..)| *until);
        (soon, self.late.first().map(|(until, _)| *until))
    }

    /// Lets what failed of `owner` be tried at once, and the record that it waits for, whoever wrote
    /// that last: else it would wait for the same again.
    fn hurry(&mut self, owner: &O, waits_for: &K, now: Moment) {
        let own = self.of.get(owner).into_iter().flatten();
        for record in own.chain([waits_for]) {
            if let Some(Failure::Passing { until }) =
                self.records.get_mut(record).and_then(|failed| failed.failure.as_mut())
            {
                *until = now;
            }
        }
    }

    fn set(&mut self, record: &K, owner: &O, failure: Failure<C>) {
        let failed = self.entry(record, owner);
        failed.attempt = failed.attempt.saturating_add(1);
        failed.failure = Some(failure);
        self.wait_for(record, owner.clone());
    }

    /// What is remembered of the record, which from now on is this owner's.
    fn entry(&mut self, record: &K, owner: &O) -> &mut Failed<O, C> {
        let before = self.records.get(record).map(|failed| failed.owner.clone());
        if before.as_ref() != Some(owner) {
            if let Some(before) = before {
                self.leave(&before, record);
            }
            self.of.entry(owner.clone()).or_default().insert(record.clone());
        }
        let failed = self.records.entry(record.clone()).or_insert_with(|| Failed {
            owner: owner.clone(),
            attempt: 0,
            isolated: 0,
            answers: 0,
            failure: None,
        });
        failed.owner.clone_from(owner);
        failed
    }

    fn leave(&mut self, owner: &O, record: &K) {
        if let Some(records) = self.of.get_mut(owner) {
            records.remove(record);
            if records.is_empty() {
                self.of.remove(owner);
            }
        }
    }
}

// === impl Outage ===

impl<K: Clone + PartialEq> Outage<K> {
    fn is_on(&self) -> bool {
        self.failing.len() >= OUTAGE_RECORDS
    }

    fn failed(&mut self, record: &K, now: Moment) {
        if !self.is_on() && !self.failing.contains(record) {
            self.failing.push(record.clone());
        }
        if self.is_on() {
            self.next_probe = now + RETRY.delay(self.probes, &"outage");
            self.probes = self.probes.saturating_add(1);
        }
    }

    /// Returns whether that ends an outage.
    fn answered(&mut self) -> bool {
        self.answers += 1;
        let ended = self.is_on();
        self.failing.clear();
        self.probes = 0;
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::problem::Reason;

    fn problem() -> Problem {
        Problem::new(Reason::Failing, "it fails")
    }

    type Records = Retries<&'static str, &'static str, u8>;

    #[test]
    fn several_that_fail_are_an_outage_which_an_answer_ends_for_all() {
        let mut retries = Records::default();
        for record in ["a", "b", "c"] {
            assert!(!retries.is_outage());
            retries.failed(&record, &record, retries.answers(), problem, Moment::ZERO);
        }
        assert!(retries.is_outage() && retries.next_probe() > Moment::ZERO);
        assert_eq!(retries.answered(Moment::ZERO).len(), 3);
        assert!(!retries.is_outage() && retries.failure(&"a", None, Moment::ZERO).is_none());
        assert_eq!(retries.attempts(&"a"), 1);
    }

    #[test]
    fn one_that_fails_while_others_are_answered_keeps_nobody_waiting() {
        let mut retries = Records::default();
        for _ in 0..ISOLATED_FAILURES {
            let sent = retries.answers();
            assert_eq!(retries.problems(&"x").count(), 0);
            retries.answered(Moment::ZERO);
            retries.failed(&"a", &"x", sent, problem, Moment::ZERO);
        }
        assert_eq!(retries.problems(&"x").count(), 1);
        assert!(!retries.has_retries() && !retries.is_outage());
        retries.clear(&"a");
        assert_eq!((retries.problems(&"x").count(), retries.owners().count()), (0, 0));
    }

    #[test]
    fn l5_refused_content_waits_for_another_or_for_its_next_try() {
        let mut retries = Records::default();
        retries.refused(&"a", &"x", 7, problem(), Moment::ZERO);
        let now = Moment::from_secs(40);
        assert!(retries.failure(&"a", Some(&7), now).is_some());
        assert!(retries.failure(&"a", Some(&8), now).is_none());
        assert!(retries.failure(&"a", None, now).is_none(), "it may be removed");
        let mut now = Moment::from_mins(1);
        assert_eq!(retries.due(now), ["x"]);
        assert!(retries.failure(&"a", Some(&7), now).is_none(), "tried again");
        for _ in 0..10 {
            retries.refused(&"a", &"x", 7, problem(), now);
            retries.due(now);
            let next = retries.next().1.unwrap();
            assert!(next > now && next <= now + Moment::from_mins(30));
            now = next;
        }
        assert!(now > Moment::from_hours(2), "ever more seldom: {now:?}");
    }

    /// A Service that waits for a record which another one wrote last must not be planned again and
    /// again to probe.
    #[test]
    fn a_probe_for_somebody_elses_record_does_not_wait_for_it_again() {
        let mut retries = Records::default();
        for record in ["r", "s", "t"] {
            retries.failed(&record, &"z", retries.answers(), problem, Moment::ZERO);
        }
        retries.wait_for(&"r", "a");
        let probes: Vec<_> = std::iter::from_fn(|| {
            let owner = retries.probe(Moment::ZERO)?;
            if retries.failure(&"r", None, Moment::ZERO).is_some() {
                retries.wait_for(&"r", owner);
            }
            Some(owner)
        })
        .take(20)
        .collect();
        assert!(probes.len() < 20, "{probes:?}");
    }

    #[test]
    fn a_record_that_another_takes_over_is_that_ones() {
        let mut retries = Records::default();
        retries.denied(&"a", &"x", problem(), Moment::ZERO);
        retries.denied(&"a", &"y", problem(), Moment::ZERO);
        assert_eq!((retries.problems(&"x").count(), retries.problems(&"y").count()), (0, 1));
        assert_eq!(retries.attempts(&"a"), 2);
        assert_eq!(retries.due(Moment::from_mins(2)).len(), 2);
    }
}
