//! Whether the work is being done, and why not.

use std::time::Duration;

use super::schedule::{CATALOG_DELAY, Progress};
use super::target::Target;
use super::{Core, Moment};

/// Whether the work is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is, or somebody else leads and this one could take over at once.
    Ready,
    /// It is not, and why.
    NotReady(NotReady),
}

/// Why the work is not being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// The handshake with both sides is not over.
    Connecting,
    /// Not everything is listed.
    Listing,
    /// Another one leads, or it is not known who.
    Standby,
    /// Consul was not read yet, or has not answered lately.
    WaitingForConsul,
    /// Services are being brought in sync.
    Syncing {
        /// How many.
        services: usize,
    },
    /// The catalog does not show all records yet that the agent has.
    WaitingForCatalog,
}

/// How far one that synchronizes once has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Once {
    /// It goes on.
    Pending,
    /// Everything is in sync but for problems and what is held back.
    InSync,
    /// A side was not reached in time.
    NotReached(NotReady),
    /// Nothing has changed for too long.
    Stuck(NotReady),
}

// === impl Core ===

impl Core {
    /// Whether the work is being done. To be asked once [`Core::poll_action`] has given all.
    pub fn readiness(&self, now: Moment) -> Readiness {
        let heard = self.contact.is_heard(now);
        let does = match &self.term {
            Some(_) => self.was_in_sync,
            None => self.peer.is_some() && self.other_leads && self.cluster.cache.is_complete(),
        };
        if does && heard { Readiness::Ready } else { Readiness::NotReady(self.obstacle(now)) }
    }

    /// How far this one has come that has `limit` to reach both sides, and as long for each step.
    pub fn once(&self, limit: Duration, now: Moment) -> Once {
        if self.is_in_sync() {
            return Once::InSync;
        }
        let reached = self.peer.is_some()
            && self.cluster.is_listed()
            && self.progress() >= Some(Progress::NamesKnown)
            && self.contact.is_heard(now);
        let stuck = now >= self.patience_ends(limit);
        match (now >= limit, reached, stuck) {
            (true, false, _) => Once::NotReached(self.obstacle(now)),
            (true, true, true) => Once::Stuck(self.obstacle(now)),
            _ => Once::Pending,
        }
    }

    /// When one that synchronizes once has waited too long for the next step. That the catalog lacks
    /// a record for good takes its time to be known.
    pub(super) fn patience_ends(&self, limit: Duration) -> Moment {
        let catalog = if self.is_settled() { CATALOG_DELAY } else { Duration::ZERO };
        self.last_step + limit + catalog
    }

    /// Whether all that can be is registered, as far as the agent goes.
    pub(super) fn is_in_sync(&self) -> bool {
        self.peer.is_some()
            && self.cluster.is_listed()
            && self.progress() >= Some(Progress::NamesKnown)
            && self.is_settled()
            && self.is_shown()
    }

    /// Whether the catalog has shown our records; where the agent's name may not be read, nobody
    /// can tell.
    fn is_shown(&self) -> bool {
        self.config.target == Target::Catalog
            || self.progress() >= Some(Progress::Shown)
            || self.peer.as_ref().is_some_and(|peer| !peer.shows_catalog)
    }

    fn progress(&self) -> Option<Progress> {
        self.term.as_ref().map(|term| term.schedule.progress())
    }

    fn obstacle(&self, now: Moment) -> NotReady {
        if self.peer.is_none() {
            NotReady::Connecting
        } else if !self.cluster.is_listed() {
            NotReady::Listing
        } else if self.term.is_none() {
            NotReady::Standby
        } else if self.progress() < Some(Progress::NamesKnown) || !self.contact.is_heard(now) {
            NotReady::WaitingForConsul
        } else if !self.is_settled() {
            NotReady::Syncing { services: self.counts().backlog }
        } else {
            NotReady::WaitingForCatalog
        }
    }
}
