//! Whether the work is being done, and why not.

use std::time::Duration;

use crate::domain::Moment;
use crate::domain::sync::schedule::{CATALOG_DELAY, Progress};

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
    /// Consul answers, and what is registered there could not be read five times in a row.
    ResyncsFail,
    /// Services are being brought in sync.
    Syncing {
        /// How many.
        services: usize,
    },
    /// The catalog does not show all records yet that the agent has.
    WaitingForCatalog,
    /// A second list has yet to confirm what the first lacked.
    WaitingForConfirmation,
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

/// What readiness follows from.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent")]
pub(super) struct Standing {
    /// Whether the handshake is over.
    pub(super) is_connected: bool,
    /// Whether all that can be listed is.
    pub(super) is_listed: bool,
    /// Whether this one could take over at once from the one that is known to lead.
    pub(super) is_warm: bool,
    /// What has succeeded; `None` while this one does not lead.
    pub(super) progress: Option<Progress>,
    /// Whether Consul answered lately.
    pub(super) is_heard: bool,
    /// Whether it cannot be read, again and again.
    pub(super) resyncs_fail: bool,
    /// Whether all is planned and answered.
    pub(super) is_settled: bool,
    /// Whether the catalog has to show all that the agent has. Where the agent's name may not be
    /// read, nobody can tell.
    pub(super) awaits_catalog: bool,
    /// Whether a second list is still to confirm what the first lacked.
    pub(super) awaits_confirmation: bool,
    /// How many Services have something to be done.
    pub(super) backlog: usize,
    /// Whether everything was ever in sync in this term.
    pub(super) was_in_sync: bool,
    /// When something was achieved last.
    pub(super) last_step: Moment,
}

// === impl Standing ===

impl Standing {
    pub(super) fn readiness(&self) -> Readiness {
        let works = match self.progress {
            Some(_) => self.was_in_sync,
            None => self.is_connected && self.is_warm,
        };
        if works && self.is_heard && !self.resyncs_fail {
            Readiness::Ready
        } else {
            Readiness::NotReady(self.obstacle())
        }
    }

    /// Whether all that can be is registered, as far as the agent goes.
    pub(super) fn is_in_sync(&self) -> bool {
        self.is_connected
            && self.is_listed
            && self.progress >= Some(Progress::NamesKnown)
            && self.is_settled
            && (!self.awaits_catalog || self.progress >= Some(Progress::Shown))
    }

    pub(super) fn once(&self, limit: Duration, now: Moment) -> Once {
        if self.is_in_sync() && !self.awaits_confirmation {
            return Once::InSync;
        }
        let is_reached = self.is_connected
            && self.is_listed
            && self.progress >= Some(Progress::NamesKnown)
            && self.is_heard;
        match (now >= limit, is_reached, now >= self.patience_ends(limit)) {
            (true, false, _) => Once::NotReached(self.obstacle()),
            (true, true, true) => Once::Stuck(self.obstacle()),
            _ => Once::Pending,
        }
    }

    /// When one that synchronizes once has waited too long for the next step. That the catalog lacks
    /// a record for good takes its time to be known.
    pub(super) fn patience_ends(&self, limit: Duration) -> Moment {
        let catalog = if self.is_settled { CATALOG_DELAY } else { Duration::ZERO };
        self.last_step + limit + catalog
    }

    fn obstacle(&self) -> NotReady {
        if !self.is_connected {
            NotReady::Connecting
        } else if !self.is_listed {
            NotReady::Listing
        } else if self.progress.is_none() {
            NotReady::Standby
        } else if self.progress < Some(Progress::NamesKnown) || !self.is_heard {
            NotReady::WaitingForConsul
        } else if self.resyncs_fail {
            NotReady::ResyncsFail
        } else if !self.is_settled {
            NotReady::Syncing { services: self.backlog }
        } else if self.is_in_sync() {
            NotReady::WaitingForConfirmation
        } else {
            NotReady::WaitingForCatalog
        }
    }
}
