//! Noticing that Consul is not as it was left: readings, the sentinel, signs of life, and what
//! the catalog shows of the agent's records.

use std::collections::HashMap;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use super::Bridge;
use super::introduction::other_owner;
use super::jobs::{self, ReadBack};
use super::shown::ShownIds;
use crate::consul::marker::Marker;
use crate::consul::owner::Owner;
use crate::consul::read::Consistency;
use crate::consul::sentinel::{ContentHash, Lost, Sentinel};
use crate::consul::sink::Sink;
use crate::domain::names::ForeignNames;
use crate::domain::reconciler::Moment;
use crate::run::Error;
use crate::run::patience::Hush;

/// Between two signs of life: three fit into the minute after which the bridge is not ready.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(20);
/// Consul that has not answered for this long makes the bridge unready.
pub(super) const SILENCE: Duration = Duration::from_mins(1);
/// The next reading starts this many times the last one's duration later at the earliest, so
/// that reading takes one hundredth of Consul's time at most.
const READ_BACK_SHARE: u32 = 100;
/// A reading that failed is tried again after this: long enough not to load a Consul in trouble.
const READ_BACK_RETRY: Duration = Duration::from_secs(5);
/// While the catalog lacks records, it is asked again after this, or this many times what the
/// last answer took: asking takes a tenth of Consul's time at most.
const CATALOG_RETRY: Duration = Duration::from_millis(250);
const CATALOG_SHARE: u32 = 10;
/// What the catalog lacks for this long, the agent was refused: its own anti-entropy runs every
/// minute in a small cluster, and a failed write is repeated within half a minute.
pub(super) const CATALOG_DELAY: Duration = Duration::from_secs(90);
/// Between two tries to read the cluster's identity for a confirmation.
const IDENTITY_RETRY: Duration = Duration::from_secs(2);

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
    pub(super) trouble: Option<String>,
    hush: Hush,
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
            hush: Hush::default(),
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

    /// The reading under way is given up; the next may start after `pause`.
    pub(super) fn reading_ends(&mut self, pause: Duration) {
        self.reading.end(pause);
        self.progress = Progress::Begun;
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
        if self.hush.may_say() {
            tracing::warn!("{what}: {why}");
        }
        self.trouble = Some(why);
    }

    /// Whether a reading may be made sooner for what writes without an answer left uncertain. One
    /// that just failed is repeated soon enough.
    fn may_hurry(&self) -> bool {
        !self.reading.is_under_way() && !self.reading_failed
    }

    /// The next moment at which something is due; `asks_catalog`: whether the catalog may be
    /// asked now.
    fn next(&self, asks_catalog: bool) -> Instant {
        let heard_until = self.last_heard.map(|last| last + SILENCE);
        let foreign = self.foreign.due().filter(|_| self.progress >= Progress::Read);
        let catalog = self.catalog.due().filter(|_| asks_catalog);
        let silence = heard_until.filter(|until| *until > Instant::now());
        let due = [self.reading.due(), foreign, catalog, silence];
        due.into_iter().flatten().min().unwrap_or_else(|| Instant::now() + HEARTBEAT)
    }
}

// === impl Bridge ===

impl Bridge {
    /// Starts what is due.
    pub(super) fn keep_up(&mut self, now: Moment) {
        if self.introduced.is_none() {
            return;
        }
        if self.state.begin_confirmation(now) {
            tracing::info!("looking a second time at what is missing");
            self.relists.values().for_each(crate::kubernetes::watch::Relist::request);
            self.read_identity(Duration::ZERO);
        }
        let generation = self.consul.token_generation();
        if generation != self.drift.token_generation {
            self.drift.token_generation = generation;
            self.use_other_token();
        }
        let uncertain = self.state.uncertain_until().is_some_and(|until| until <= now);
        if !self.leadership.may_read() {
            return;
        }
        if self.drift.reading.is_due() || (uncertain && self.drift.may_hurry()) {
            self.begin_read_back();
        }
        if self.drift.progress >= Progress::Read && self.drift.foreign.is_due() {
            self.drift.foreign.begin();
            let held = self.state.ledger().names().collect();
            let cluster = self.options.settings.cluster.clone();
            self.jobs.push(jobs::foreign_names(self.consul.clone(), cluster, held).boxed());
        }
        if self.may_ask_catalog() && self.drift.catalog.is_due() {
            self.ask_catalog();
        }
    }

    /// An agent keeps the token of each registration; the catalog does not.
    fn use_other_token(&mut self) {
        if let Marker::Sentinel(sentinel) = &self.marker {
            tracing::info!("another token is in use: registrations are sent once more");
            self.sentinel_job = Some(jobs::restore_sentinel(sentinel.clone()).boxed());
            self.state.token_changed();
        }
    }

    /// Whether the catalog can be asked for what the agent should have passed on.
    fn may_ask_catalog(&self) -> bool {
        matches!(self.sink, Sink::Agent(_))
            && self.introduced.as_ref().is_some_and(|met| met.agent.is_some())
            && self.drift.progress >= Progress::NamesKnown
            && self.state.is_settled()
    }

    /// When something is due at the latest.
    pub(super) fn next_turn(&self, deadline: Option<Instant>) -> Instant {
        let state = [
            self.state.next_timer(),
            self.state.confirmation_due(),
            // Who may not read has to wait for that, not to ask for it again and again.
            self.state
                .uncertain_until()
                .filter(|_| self.leadership.may_read() && self.drift.may_hurry()),
        ];
        let state = state.into_iter().flatten().map(|moment| self.began + moment);
        let reads = self.introduced.is_some() && self.leadership.may_read();
        let drift = reads.then(|| self.drift.next(self.may_ask_catalog()));
        wake_at(Instant::now(), state.min(), drift, deadline)
    }

    pub(super) fn begin_read_back(&mut self) {
        let Some(met) = &self.introduced else { return };
        let reading = ReadBack {
            client: self.consul.clone(),
            cluster: self.options.settings.cluster.clone(),
            marker: self.marker.clone(),
            // Whoever has just got the lock must see all that its holder before has written.
            consistency: match self.drift.progress {
                Progress::Begun => Consistency::Consistent,
                _ => Consistency::Default,
            },
            owner: self.owner.clone(),
            uid: met.uid.clone(),
            seen: self.observe.clone(),
        };
        let now = self.now();
        self.state.begin_read_back(now);
        self.drift.reading.begin();
        self.reading_job = Some(reading.run().boxed());
    }

    pub(super) fn was_read_back(&mut self, result: Result<Owner, String>) -> Result<(), Error> {
        // What was seen last may still be waiting.
        self.observe_waiting();
        let took = self.drift.reading.took();
        self.tell_read_back(result.is_ok(), took);
        self.drift.reading_failed = result.is_err();
        match result {
            Ok(Owner::Ours) => {
                let now = self.now();
                self.state.finish_read_back(now);
                self.drift.heard();
                if self.drift.progress < Progress::Read {
                    self.last_step = Instant::now();
                }
                self.drift.reached(Progress::Read);
                self.drift.foreign.hurry();
                self.drift.catalog.hurry();
                let pause = self.drift.resync.max(took * READ_BACK_SHARE);
                self.drift.reading.end(pause.mul_f64(1.0 + jitter()));
                Ok(())
            }
            Ok(Owner::Other(other)) => {
                let ours = self.introduced.as_ref().map_or("", |met| &met.uid);
                Err(other_owner(&self.owner, &self.options.settings.cluster, ours, &other))
            }
            Err(why) => {
                self.state.abort_read_back();
                self.drift.failed("Consul cannot be read back", why);
                self.drift.reading.end(READ_BACK_RETRY);
                Ok(())
            }
        }
    }

    pub(super) fn foreign_names(&mut self, result: Result<ForeignNames, String>) {
        // The next reading of all hurries the next one of names.
        let until_reading = self.drift.reading.next.saturating_duration_since(Instant::now());
        let pause = if result.is_ok() { until_reading + READ_BACK_RETRY } else { READ_BACK_RETRY };
        self.drift.foreign.end(pause);
        match result {
            // An answer from before a new start may be outdated.
            Ok(_) if self.drift.progress < Progress::Read => {}
            Ok(names) => {
                self.state.set_foreign_names(names);
                self.drift.reached(Progress::NamesKnown);
                self.drift.heard();
            }
            Err(why) => {
                self.drift.failed(
                    "the names that others hold cannot be read; no new name is registered",
                    why,
                );
            }
        }
    }

    fn ask_catalog(&mut self) {
        let Some(agent) = self.introduced.as_ref().and_then(|met| met.agent.as_ref()) else {
            return;
        };
        let cluster = self.options.settings.cluster.clone();
        self.drift.catalog.begin();
        self.jobs.push(jobs::catalog(self.consul.clone(), cluster, agent.node.clone()).boxed());
    }

    pub(super) fn catalog_shows(&mut self, result: Result<ShownIds, String>) {
        let now = Instant::now();
        let took = self.drift.catalog.took();
        self.drift.catalog.end(CATALOG_RETRY.max(took * CATALOG_SHARE));
        let shown = match result {
            Ok(shown) => shown,
            Err(why) => {
                self.drift.catalog.next = now + READ_BACK_RETRY;
                return self.drift.failed("the catalog cannot be read", why);
            }
        };
        self.drift.heard();
        let before = std::mem::take(&mut self.drift.lacking);
        let cluster = &self.options.settings.cluster;
        for (service, known) in self.state.ledger().services() {
            let ids = known.iter().map(|known| known.id(cluster, service));
            for id in ids.filter(|id| !shown.contains(id)) {
                let since = before.get(&id).copied().unwrap_or(now);
                self.drift.lacking.insert(id, since);
            }
        }
        let refused = |since: &Instant| now.duration_since(*since) >= CATALOG_DELAY;
        let missing = self.drift.lacking.iter().filter(|(_, since)| refused(since));
        self.state.set_missing_in_catalog(missing.map(|(id, _)| id.clone()).collect());
        if self.drift.lacking.values().all(refused) {
            // What it lacks for good was just made a problem: once that is told, all is settled.
            if self.state.is_settled() {
                self.drift.reached(Progress::Shown);
            }
            if self.drift.progress == Progress::Shown {
                self.drift.catalog.next = self.drift.reading.next + READ_BACK_RETRY;
            }
        }
    }

    fn sentinel(&self) -> Option<Sentinel> {
        match &self.marker {
            Marker::Sentinel(sentinel) => Some(sentinel.clone()),
            Marker::BaseNode(_) => None,
        }
    }

    pub(super) fn watch_sentinel(&mut self, hash: Option<ContentHash>) {
        let watch = self.sentinel().zip(hash);
        self.sentinel_job =
            watch.map(|(sentinel, hash)| jobs::watch_sentinel(sentinel, hash).boxed());
    }

    pub(super) fn sentinel_lost(&mut self, lost: Lost) {
        match lost {
            Lost::Vanished => {
                tracing::warn!("the agent lost what was registered: filling it again");
            }
            Lost::Changed => {
                tracing::warn!("somebody changed the sentinel: looking at everything again");
            }
        }
        if let Some(sentinel) = self.sentinel() {
            self.sentinel_job = Some(jobs::restore_sentinel(sentinel).boxed());
        }
        // What a reading under way began with may be what was lost.
        self.drift.reading.hurry();
    }

    pub(super) fn sentinel_back(&mut self, result: Result<ContentHash, String>) {
        match result {
            Ok(hash) => {
                self.drift.heard();
                self.watch_sentinel(Some(hash));
            }
            Err(why) => {
                self.drift.failed("the sentinel cannot be written", why);
                let Some(sentinel) = self.sentinel() else { return };
                let later = async move {
                    tokio::time::sleep(READ_BACK_RETRY).await;
                    jobs::restore_sentinel(sentinel).await
                };
                self.sentinel_job = Some(later.boxed());
            }
        }
    }

    pub(super) fn heard(&mut self, alive: Result<(), String>) {
        match alive {
            Ok(()) => self.drift.heard(),
            Err(why) => self.drift.failed("no sign of life from Consul", why),
        }
        self.jobs.push(jobs::heartbeat(self.consul.clone(), HEARTBEAT).boxed());
    }

    fn read_identity(&mut self, delay: Duration) {
        let client = self.kubernetes.client.clone();
        self.identity_job = Some(jobs::identity(client, delay).boxed());
    }

    pub(super) fn identified(
        &mut self,
        result: Result<Option<String>, String>,
    ) -> Result<(), Error> {
        let ours = self.introduced.as_ref().map_or("", |met| &met.uid).to_owned();
        match result {
            // Where it may not be read, the operator vouches for it (`--cluster-uid`).
            Ok(None) => self.state.cluster_confirmed(),
            Ok(Some(uid)) if uid == ours => self.state.cluster_confirmed(),
            Ok(Some(uid)) => {
                return Err(Error::Refused(format!(
                    "expected the cluster with uid {ours}, found one with uid {uid}: the Kubernetes API's address \
                     leads to another cluster; nothing was removed"
                )));
            }
            Err(why) => {
                tracing::warn!("the cluster's identity cannot be read, removals wait: {why}");
                self.read_identity(IDENTITY_RETRY);
            }
        }
        Ok(())
    }
}

/// When the loop has to turn again. What is due and may not start yet must not make it spin, nor
/// a deadline that is over.
fn wake_at(
    now: Instant,
    state: Option<Instant>,
    drift: Option<Instant>,
    deadline: Option<Instant>,
) -> Instant {
    let soonest = now + Duration::from_millis(1);
    let state = state.map(|at| at.max(soonest));
    let drift = drift.map(|next| next.max(soonest + Duration::from_millis(49)));
    let deadline = deadline.filter(|deadline| *deadline > now);
    [state, drift, deadline].into_iter().flatten().min().unwrap_or(now + HEARTBEAT)
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
    fn the_loop_never_spins() {
        let now = Instant::now();
        let past = Some(now.checked_sub(Duration::from_secs(1)).unwrap());
        assert_eq!(wake_at(now, None, None, past), now + HEARTBEAT, "a deadline that is over");
        assert!(wake_at(now, past, None, None) > now);
        assert!(wake_at(now, None, past, None) >= now + Duration::from_millis(50));
        let soon = now + Duration::from_secs(1);
        assert_eq!(wake_at(now, None, None, Some(soon)), soon);
    }

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
}
