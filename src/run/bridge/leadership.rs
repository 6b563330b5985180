//! Which of several bridges writes. Without an election there is only this one.

use std::time::Duration;

use futures::FutureExt as _;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::consul::coordination::election::{Election, Holder, Lease};
use crate::run::bridge::Bridge;
use crate::run::bridge::jobs::{Done, Job};

/// How long giving the lock back may take at the end: after that its session runs out.
const RESIGN: Duration = Duration::from_secs(1);
/// Which of its times as a leader a write is of: how often it has been elected.
pub(super) type Term = u32;

/// Whether this process leads.
pub(super) enum Leadership {
    /// There is no election.
    Alone,
    /// Another one leads, or nobody yet.
    Standby(Election),
    /// This one leads.
    Leading(Election, Lease),
}

// === impl Leadership ===

impl Leadership {
    pub(super) fn new(election: Option<Election>) -> Self {
        election.map_or(Leadership::Alone, Leadership::Standby)
    }

    /// Whether writes may be sent.
    pub(super) fn may_write(&self) -> bool {
        match self {
            Leadership::Alone => true,
            Leadership::Standby(_) => false,
            Leadership::Leading(_, lease) => lease.is_valid(),
        }
    }

    /// Whether Consul is this one's to read back: one that cannot write need not know.
    pub(super) fn may_read(&self) -> bool {
        !matches!(self, Leadership::Standby(_))
    }

    /// Whom this one waits for.
    pub(super) fn holder(&self) -> Option<Holder> {
        self.holders().map(|holder| holder.borrow().clone())
    }

    /// Wakes up whenever somebody else is waited for.
    pub(super) fn holders(&self) -> Option<watch::Receiver<Holder>> {
        match self {
            Leadership::Standby(election) => Some(election.holder()),
            Leadership::Alone | Leadership::Leading(..) => None,
        }
    }

    /// For `/status`.
    pub(super) fn describe(&self) -> Option<String> {
        match self {
            Leadership::Alone => None,
            Leadership::Leading(..) => Some("leader".to_owned()),
            Leadership::Standby(election) => Some(match &*election.holder().borrow() {
                Holder::Unknown => "standby".to_owned(),
                Holder::Other(holder) => format!("standby, {holder} leads"),
                Holder::Unreachable(why) => format!("standby, the lock cannot be asked for: {why}"),
            }),
        }
    }

    /// Gives the lock back, one too whose try is not yet known to have succeeded.
    pub(super) async fn resign(&self) {
        let (Leadership::Leading(election, _) | Leadership::Standby(election)) = self else {
            return;
        };
        match timeout(RESIGN, election.release()).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => tracing::info!("gave the lock back"),
            Ok(Err(error)) => {
                tracing::warn!(error = error.chain(), "cannot give the lock back: it runs out");
            }
            Err(_) => tracing::warn!("no answer to giving the lock back: it runs out"),
        }
    }
}

// === impl Bridge ===

impl Bridge {
    /// Takes part in the election, if there is one.
    pub(super) fn stand(&mut self) {
        if let Leadership::Standby(election) = &self.leadership {
            self.election_job = Some(win(election.clone()));
        }
    }

    pub(super) fn elected(&mut self, lease: Lease) {
        let Leadership::Standby(election) = &self.leadership else { return };
        tracing::info!("this one leads now");
        let keep = election.clone().keep(lease.clone()).map(Done::Deposed);
        self.election_job = Some(keep.boxed());
        self.sink.set_fence(Some(lease.fence()));
        self.term += 1;
        self.leadership = Leadership::Leading(election.clone(), lease);
        self.told.metrics.leader.set(1);
        self.begin_read_back();
    }

    /// A write of this term found the lock in other hands. One of an earlier term says nothing of
    /// the lock that is held now.
    pub(super) fn fenced(&mut self, term: Term) {
        if term == self.term {
            self.deposed("the lock is lost");
        }
    }

    /// Another one may lead from now on: nothing more is written.
    pub(super) fn deposed(&mut self, why: &str) {
        let Leadership::Leading(election, _) = &self.leadership else { return };
        tracing::warn!(why, "this one no longer leads");
        let election = election.clone();
        // The session that is lost is ended first, whoever holds the lock.
        self.election_job = Some(win(election.clone()));
        self.leadership = Leadership::Standby(election);
        self.sink.set_fence(None);
        self.told.metrics.leader.set(0);
        // With the reading that is under way goes what it has shown so far.
        self.reading_job = None;
        while self.observations.try_recv().is_ok() {}
        self.drift.reading_ends(Duration::ZERO);
        self.state.step_down();
    }

    /// Whether a standby could take over at once, while somebody else does the work.
    pub(super) fn is_warm(&self, holder: &Holder) -> bool {
        matches!(holder, Holder::Other(_))
            && self.peers.is_some()
            && self.state.cache().is_complete()
    }
}

/// Waits until somebody else is waited for; never ends where there is no election.
pub(super) async fn changed(holders: &mut Option<watch::Receiver<Holder>>) -> Option<()> {
    holders.as_mut()?.changed().await.ok()
}

fn win(election: Election) -> Job {
    election.campaign().map(Done::Elected).boxed()
}
