//! Which of several bridges writes. Without an election there is only this one.

use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::consul::coordination::election::{Election, Holder, Lease};
use crate::consul::write::sink::Sink;
use crate::run::bridge::jobs::Done;
use crate::run::bridge::work::{Records, Work};

/// How long releasing the lock may take at the end: after that its session runs out.
const RELEASE: Duration = Duration::from_secs(1);

/// Whether this process leads. Only one that does has anything to write with: a deposed leader
/// cannot write.
pub(super) enum Leadership {
    /// The handshake is not over.
    Connecting(Option<Election>),
    /// There is no election.
    Alone(Work),
    /// Another one leads, or nobody yet.
    Standby {
        election: Election,
        /// Ends once leadership is acquired.
        campaign: BoxFuture<'static, Lease>,
        /// Who holds the lock.
        holder: watch::Receiver<Holder>,
    },
    /// This one leads.
    Leading {
        election: Election,
        lease: Lease,
        /// Keeps the lock, and ends once it is lost.
        keeping: BoxFuture<'static, String>,
        work: Work,
    },
}

// === impl Leadership ===

impl Leadership {
    /// The handshake is over: takes part in the election, if there is one.
    pub(super) fn connected(self, records: Records, sink: Sink) -> Self {
        match self {
            Leadership::Connecting(None) => Leadership::Alone(Work::new(records, sink)),
            Leadership::Connecting(Some(election)) => Leadership::campaign(election),
            other => other,
        }
    }

    /// Leadership is acquired: what is written from now on asks for the lock.
    pub(super) fn acquired(self, lease: Lease, records: Records, mut sink: Sink) -> Self {
        let Leadership::Standby { election, .. } = self else { return self };
        sink.set_fence(Some(lease.fence()));
        let keeping = election.clone().keep(lease.clone()).boxed();
        Leadership::Leading { election, lease, keeping, work: Work::new(records, sink) }
    }

    /// Leadership is lost. The session is ended before the next campaign, whoever holds the lock.
    pub(super) fn lost(self) -> Self {
        match self {
            Leadership::Leading { election, .. } => Leadership::campaign(election),
            other => other,
        }
    }

    fn campaign(election: Election) -> Self {
        let (campaign, holder) = (election.clone().campaign().boxed(), election.holder());
        Leadership::Standby { election, campaign, holder }
    }

    /// What this one may write with.
    pub(super) fn work(&mut self) -> Option<&mut Work> {
        match self {
            Leadership::Alone(work) | Leadership::Leading { work, .. } => Some(work),
            Leadership::Connecting(_) | Leadership::Standby { .. } => None,
        }
    }

    /// Whether this one still takes itself for the leader although its time is over.
    pub(super) fn is_expired(&self) -> bool {
        matches!(self, Leadership::Leading { lease, .. } if !lease.is_valid())
    }

    /// Whether another one is known to lead.
    pub(super) fn other_leads(&self) -> bool {
        let Leadership::Standby { holder, .. } = self else { return false };
        matches!(*holder.borrow(), Holder::Other(_))
    }

    /// For `/status`.
    pub(super) fn describe(&self) -> Option<String> {
        let holder = match self {
            Leadership::Connecting(None) | Leadership::Alone(_) => return None,
            Leadership::Leading { .. } => return Some("leader".to_owned()),
            Leadership::Connecting(Some(election)) => election.holder(),
            Leadership::Standby { holder, .. } => holder.clone(),
        };
        let holder = holder.borrow();
        Some(match &*holder {
            Holder::Unknown => "standby".to_owned(),
            Holder::Other(holder) => format!("standby, {holder} leads"),
            Holder::Unreachable(why) => format!("standby, the lock cannot be asked for: {why}"),
        })
    }

    /// The next thing that happened or was found out.
    pub(super) async fn next(&mut self) -> Done {
        match self {
            Leadership::Connecting(_) => std::future::pending().await,
            Leadership::Alone(work) => work.next().await,
            Leadership::Standby { campaign, holder, .. } => tokio::select! {
                lease = campaign => Done::Acquired(lease),
                Ok(()) = holder.changed() => Done::HolderChanged,
            },
            Leadership::Leading { keeping, work, .. } => tokio::select! {
                why = keeping => Done::Lost(why),
                done = work.next() => done,
            },
        }
    }

    /// Gives up all that is under way and releases the lock, also one whose campaign is not yet
    /// known to have succeeded.
    pub(super) async fn resign(self) {
        // No further campaign goes out after the lock is released.
        let election = match self {
            Leadership::Connecting(election) => election,
            Leadership::Alone(_) => None,
            Leadership::Standby { election, .. } | Leadership::Leading { election, .. } => {
                Some(election)
            }
        };
        let Some(election) = election else { return };
        match timeout(RELEASE, election.release()).await {
            Ok(Ok(false)) => {}
            Ok(Ok(true)) => tracing::info!("released the lock"),
            Ok(Err(error)) => {
                tracing::warn!(error = error.chain(), "cannot release the lock: it runs out");
            }
            Err(_) => tracing::warn!("no answer to releasing the lock: it runs out"),
        }
    }
}
