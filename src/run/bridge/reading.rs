//! Looking whether Consul is as it was left: readings of all that is ours, of the names that others
//! hold, and of what the catalog shows of the agent's records.

use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::Instant;

use crate::consul::coordination::owner::Owner;
use crate::consul::coordination::resync::Reader;
use crate::consul::read::evidence::Consistency;
use crate::consul::write::sink::Sink;
use crate::domain::consul::names::ForeignNames;
use crate::domain::sync::Moment;
use crate::kubernetes::watch::Relist;
use crate::run::Error;
use crate::run::bridge::Bridge;
use crate::run::bridge::drift::{HEARTBEAT, Progress};
use crate::run::bridge::jobs;
use crate::run::bridge::seen_ids::SeenIds;
use crate::run::daemon::checks::other_owner;

/// The loop turns no sooner for what the state has to do: a clock that is a little behind must not
/// make it spin.
const SHORTEST_TURN: Duration = Duration::from_millis(1);
/// Nor for what is to be asked of Consul: what is due may have to wait for something else, and
/// nobody misses a twentieth of a second.
const SHORTEST_WAIT_FOR_DRIFT: Duration = Duration::from_millis(50);

// === impl Bridge ===

impl Bridge {
    /// Starts what is due.
    pub(super) fn keep_up(&mut self, now: Moment) {
        if self.peers.is_none() {
            return;
        }
        if self.state.begin_confirmation(now) {
            tracing::info!("looking a second time at what is missing");
            self.relists.values().for_each(Relist::request);
            self.read_identity(Duration::ZERO);
        }
        if self.drift.has_other_token(self.consul.token_generation()) {
            self.use_other_token();
        }
        if !self.leadership.may_read() {
            return;
        }
        let uncertain = self.state.uncertain_until().is_some_and(|until| until <= now);
        if self.drift.wants_reading(uncertain) {
            self.begin_read_back();
        }
        if self.drift.wants_names() {
            self.drift.names_begin();
            let held = self.state.ledger().names().collect();
            let cluster = self.options.sync.settings.cluster.clone();
            self.jobs.push(jobs::foreign_names(self.consul.clone(), cluster, held).boxed());
        }
        if self.may_ask_catalog() && self.drift.wants_catalog() {
            self.ask_catalog();
        }
    }

    /// Whether the catalog can be asked for what the agent should have passed on.
    fn may_ask_catalog(&self) -> bool {
        matches!(self.sink, Sink::Agent(_))
            && self.peers.as_ref().is_some_and(|met| met.agent.is_some())
            && self.drift.progress() >= Progress::NamesKnown
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
        let reads = self.peers.is_some() && self.leadership.may_read();
        let drift = reads.then(|| self.drift.next(self.may_ask_catalog()));
        wake_at(Instant::now(), state.min(), drift, deadline)
    }

    pub(super) fn begin_read_back(&mut self) {
        let Some(met) = &self.peers else { return };
        let reader = Reader {
            client: self.consul.clone(),
            cluster: self.options.sync.settings.cluster.clone(),
            marker: self.marker.clone(),
            // Whoever has just got the lock must see all that its holder before has written.
            consistency: match self.drift.progress() {
                Progress::Begun => Consistency::Consistent,
                _ => Consistency::Leader,
            },
            seen: self.observe.clone(),
        };
        let reading = jobs::read_back(reader, self.owner.clone(), met.uid.clone());
        let now = self.now();
        self.state.begin_read_back(now);
        self.drift.reading_begins();
        self.reading_job = Some(reading.boxed());
    }

    pub(super) fn was_read_back(&mut self, result: Result<Owner, String>) -> Result<(), Error> {
        // What was seen last may still be waiting.
        self.observe_waiting();
        self.tell_read_back(result.is_ok(), self.drift.reading_took());
        match result {
            Ok(Owner::Ours) => {
                let now = self.now();
                self.state.finish_read_back(now);
                if self.drift.progress() < Progress::Read {
                    self.last_step = Instant::now();
                }
                self.drift.reading_succeeded();
                Ok(())
            }
            Ok(Owner::Other(other)) => {
                let ours = self.peers.as_ref().map_or("", |met| &met.uid);
                Err(other_owner(&self.owner, &self.options.sync.settings.cluster, ours, &other))
            }
            Err(why) => {
                self.state.abort_read_back();
                self.drift.reading_failed(why);
                Ok(())
            }
        }
    }

    pub(super) fn foreign_names(&mut self, result: Result<ForeignNames, String>) {
        match result {
            Ok(names) => {
                if self.drift.names_succeeded() {
                    self.state.set_foreign_names(names);
                }
            }
            Err(why) => self.drift.names_failed(why),
        }
    }

    fn ask_catalog(&mut self) {
        let Some(agent) = self.peers.as_ref().and_then(|met| met.agent.as_ref()) else {
            return;
        };
        let cluster = self.options.sync.settings.cluster.clone();
        self.drift.catalog_begins();
        self.jobs.push(jobs::catalog(self.consul.clone(), cluster, agent.node.clone()).boxed());
    }

    pub(super) fn catalog_shows(&mut self, result: Result<SeenIds, String>) {
        let shown = match result {
            Ok(shown) => shown,
            Err(why) => return self.drift.catalog_failed(why),
        };
        let cluster = &self.options.sync.settings.cluster;
        let ids =
            self.state.ledger().services().flat_map(|(service, known)| {
                known.iter().map(move |known| known.id(cluster, service))
            });
        let (refused, no_others) = self.drift.catalog_lacks(ids.filter(|id| !shown.contains(id)));
        self.state.set_missing_in_catalog(refused);
        if no_others {
            // What it lacks for good was just made a problem: once that is told, all is settled.
            self.drift.catalog_shows_all(self.state.is_settled());
        }
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
    let state = state.map(|at| at.max(now + SHORTEST_TURN));
    let drift = drift.map(|at| at.max(now + SHORTEST_WAIT_FOR_DRIFT));
    let deadline = deadline.filter(|deadline| *deadline > now);
    [state, drift, deadline].into_iter().flatten().min().unwrap_or(now + HEARTBEAT)
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
        assert!(wake_at(now, None, past, None) >= now + SHORTEST_WAIT_FOR_DRIFT);
        let soon = now + Duration::from_secs(1);
        assert_eq!(wake_at(now, None, None, Some(soon)), soon);
    }
}
