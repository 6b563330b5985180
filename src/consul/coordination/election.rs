//! Which of several processes writes: the one whose session holds the lock (invariant: fencing).
//!
//! The session is on a node of ours, without checks and without lock delay: it ends with its
//! time alone, and every transaction is fenced. A leader counts its own time from before it
//! asked for the renewal, so it stops writing before Consul can give the lock to another.

use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use crate::consul::coordination::lock::lock_key;
use crate::consul::coordination::session::Session;
use crate::consul::http::client::Client;
use crate::consul::http::error::{Error, Reach};
use crate::consul::read::blocking::BlockingQuery;
use crate::consul::read::evidence::{Consistency, Unknown};
use crate::consul::write::fence::{Fence, SessionId};
use crate::domain::consul::record::Answer;
use crate::domain::kube::names::ClusterName;
use crate::domain::text::{chain, one_line};

/// Between two renewals: two may fail, or get no answer, before the session's time is over.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// When a renewal that has no answer yet gets another beside it: an answer takes milliseconds, and
/// whoever waits for a connection that is dead loses the lock with it. A late answer counts, from when
/// it was asked for: Consul may be slow.
const RENEW_AGAIN: Duration = Duration::from_secs(2);
/// Renewals under way: what is sent within the time of the shortest session.
const MAX_RENEWALS: usize = 5;
/// How much earlier than its session a leader gives up the lead: what a write that is
/// sent at the last moment takes on its way.
const MARGIN: Duration = Duration::from_secs(1);
/// After a renewal without an answer.
const RENEW_RETRY: Duration = Duration::from_millis(500);
/// After a failed try to become the leader: an election is rare, a Consul in trouble is not
/// helped by haste.
const CANDIDATE_RETRY: Duration = Duration::from_secs(1);
/// Longest name of a holder that is shown: ours are pods' names with a process ID.
const HOLDER_BYTES: usize = 80;

/// The election among the processes of one cluster.
#[derive(Clone, Debug)]
pub struct Election {
    client: Client,
    cluster: ClusterName,
    /// The node that sessions are on.
    node: Box<str>,
    key: Box<str>,
    /// What the lock says of its holder.
    candidate: Box<str>,
    holder: watch::Sender<Holder>,
    /// The session of the last try, until it is known to be over: it may hold the lock.
    session: watch::Sender<Option<SessionId>>,
}

/// The current holder of the lock, as a candidate sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Holder {
    /// None, or none that is known.
    #[default]
    Unknown,
    /// Another process, by its name.
    Other(Box<str>),
    /// The lock cannot be asked for, and why.
    Unreachable(String),
}

/// A lock that is held.
#[derive(Clone, Debug)]
pub struct Lease {
    session: Session,
    key: Box<str>,
    /// Until when, unless it is renewed.
    until: watch::Sender<Instant>,
}

/// How one try to acquire the lock ended.
enum Attempt {
    Acquired(Lease),
    /// Another one holds the lock, by its name.
    Held(Box<str>),
    /// Another one was faster, or the lock is kept shut by the delay of a former one.
    Missed,
}

// === impl Election ===

impl Election {
    /// The election of this cluster; `node`: what sessions are on, which is created where it is not
    /// there; `candidate`: this process's name.
    pub fn new(client: Client, cluster: ClusterName, node: &str, candidate: &str) -> Self {
        Self {
            client,
            key: lock_key(&cluster).into(),
            cluster,
            node: node.into(),
            candidate: candidate.into(),
            holder: watch::Sender::default(),
            session: watch::Sender::default(),
        }
    }

    /// Wakes up whenever the lock has another holder.
    pub fn holder(&self) -> watch::Receiver<Holder> {
        self.holder.subscribe()
    }

    /// Waits until the lock is ours, as long as it takes.
    pub async fn campaign(self) -> Lease {
        let mut query = BlockingQuery::by_index(Consistency::Consistent.of_key(&self.key));
        loop {
            match self.try_to_acquire(&mut query).await {
                Ok(Attempt::Acquired(lease)) => {
                    // Should the lock be lost, nobody is known to have it.
                    self.holder.send_replace(Holder::Unknown);
                    return lease;
                }
                Ok(Attempt::Held(holder)) => {
                    self.holder.send_replace(Holder::Other(holder));
                    // The query waits.
                    continue;
                }
                Ok(Attempt::Missed) => {}
                Err(error) => self.is_unreachable(chain(&*error)),
            }
            query.reset();
            sleep(CANDIDATE_RETRY).await;
        }
    }

    /// Told once for each reason.
    fn is_unreachable(&self, why: String) {
        let unreachable = Holder::Unreachable(why);
        self.holder.send_if_modified(|holder| {
            let is_new = *holder != unreachable;
            if let (true, Holder::Unreachable(why)) = (is_new, &unreachable) {
                tracing::warn!(why, "the leader's lock cannot be asked for");
            }
            *holder = unreachable;
            is_new
        });
    }

    async fn try_to_acquire(
        &self,
        query: &mut BlockingQuery,
    ) -> Result<Attempt, Box<dyn std::error::Error + Send + Sync>> {
        self.release().await?;
        if let Some(holder) = self.read_holder(query).await? {
            return Ok(Attempt::Held(holder));
        }
        self.client.ensure_node(&self.node, &self.cluster, None).await?;
        let asked = Instant::now();
        let session = self.client.create_session(&self.node).await?;
        self.session.send_replace(Some(session.id.clone()));
        let created = Instant::now();
        let acquire = self.client.acquire_lock(&self.key, &session.id, &self.candidate);
        // Where answers take seconds, most of the session's time would be over with this one.
        let renew = async {
            let is_slow = created - asked >= RENEW_RETRY;
            is_slow && matches!(self.client.renew_session(&session.id).await, Ok(true))
        };
        let (acquired, renewed) = tokio::join!(acquire, renew);
        if let Ok(true) = acquired {
            let since = if renewed { created } else { asked };
            let until = watch::Sender::new(since + session.ttl - MARGIN);
            return Ok(Attempt::Acquired(Lease { session, key: self.key.clone(), until }));
        }
        // Also when it is not known: a session that holds the lock must not stay.
        self.release().await?;
        acquired?;
        Ok(Attempt::Missed)
    }

    /// Keeps the lock. Returns when it is lost, and why.
    pub async fn keep(self, lease: Lease) -> String {
        let ttl = lease.session.ttl;
        let mut renewals = FuturesUnordered::new();
        let mut sent = *lease.until.borrow() + MARGIN - ttl;
        let mut next = sent + RENEW_EVERY;
        loop {
            let until = *lease.until.borrow();
            tokio::select! {
                () = sleep_until(until) => {
                    return format!("the lock could not be renewed within {} s", ttl.as_secs());
                }
                () = sleep_until(next), if renewals.len() < MAX_RENEWALS => {
                    sent = Instant::now();
                    next = sent + RENEW_AGAIN;
                    let asked = sent;
                    let renewal = self.renew(&lease);
                    renewals.push(async move { (asked, renewal.await) });
                }
                Some((asked, renewed)) = renewals.next() => match renewed {
                    Ok(None) => {
                        // An earlier one may be answered later.
                        lease.until.send_replace(until.max(asked + ttl - MARGIN));
                        if renewals.is_empty() {
                            next = next.max(sent + RENEW_EVERY);
                        }
                    }
                    Ok(Some(lost)) => return lost.to_owned(),
                    Err(error) => {
                        tracing::debug!(error = error.chain(), "the session could not be renewed");
                        next = next.min(Instant::now() + RENEW_RETRY);
                    }
                }
            }
        }
    }

    /// Renews the session. Tells how the lock is lost, if it is: somebody may have deleted its key
    /// while the session goes on.
    async fn renew(&self, lease: &Lease) -> Result<Option<&'static str>, Error> {
        // A transaction that only asks costs the servers' log nothing. Both are asked at once: where
        // answers take seconds, one after the other would take the session's time.
        let check = [lease.fence().operation().encode()];
        let (renewed, checked) = tokio::join!(
            self.client.renew_session(&lease.session.id),
            self.client.transaction(&check)
        );
        if !renewed? {
            return Ok(Some("its session is over"));
        }
        match checked {
            Err(error) if error.answer(Reach::Servers) == Answer::Fenced => {
                Ok(Some("the lock is no longer its session's"))
            }
            _ => Ok(None),
        }
    }

    /// Releases the lock, or whatever a try has left of it, so that nobody has to wait for the
    /// session's end. Tells whether there was something to release.
    pub async fn release(&self) -> Result<bool, Error> {
        let Some(session) = self.session.borrow().clone() else { return Ok(false) };
        self.client.destroy_session(&session).await?;
        self.session.send_replace(None);
        Ok(true)
    }

    /// The current holder of the lock; none: nobody.
    async fn read_holder(&self, query: &mut BlockingQuery) -> Result<Option<Box<str>>, Unknown> {
        let lock = self.client.next_lock(query).await?;
        Ok(lock.and_then(|lock| lock.holder).map(|name| shown(&name)))
    }
}

// === impl Lease ===

impl Lease {
    /// Whether the lock is surely still ours.
    pub fn is_valid(&self) -> bool {
        Instant::now() < *self.until.borrow()
    }

    /// What transactions carry.
    pub fn fence(&self) -> Fence {
        Fence { key: self.key.clone(), session: self.session.id.clone() }
    }
}

/// The lock's value as a name that fits a line: anybody may have written it.
fn shown(name: &str) -> Box<str> {
    one_line(name, HOLDER_BYTES).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_writes_the_lock_fills_no_page() {
        assert_eq!(&*shown("bridge-0"), "bridge-0");
        assert_eq!(&*shown("a\x1b[31m\nb"), "a [31m b");
        assert_eq!(shown(&"x".repeat(9_000)).chars().count(), 81);
    }
}
