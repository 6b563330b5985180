//! Which of several bridges writes: the one whose session holds the lock (invariant 9).
//!
//! The session stands on the base node, without checks and without lock delay: it ends with its
//! time alone, and every transaction is fenced. A leader counts its own time from before it
//! asked for the renewal, so it stops writing before Consul can give the lock to another.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::consul::coordination::lock::lock_key;
use crate::consul::coordination::session::{SessionId, TTL_SECONDS};
use crate::consul::http::client::Client;
use crate::consul::http::error::{Error, Reach};
use crate::consul::read::{Consistency, Unknown};
use crate::consul::write::catalog::Fence;
use crate::consul::write::nodes::NodeNames;
use crate::domain::consul::record::Answer;
use crate::domain::kube::names::ClusterName;
use crate::domain::text::{chain, one_line};

/// The session's time to live.
const TTL: Duration = Duration::from_secs(TTL_SECONDS);
/// Between two renewals: two may fail, or get no answer, before the session's time is over.
const RENEW_EVERY: Duration = Duration::from_secs(3);
/// How long the answer to a renewal is waited for: it takes milliseconds, and whoever waits for a
/// connection that is dead loses the lock with it.
const RENEW_DEADLINE: Duration = Duration::from_secs(2);
/// How much earlier than its session a leader takes itself for deposed: what a write that is
/// sent at the last moment takes on its way.
const MARGIN: Duration = Duration::from_secs(1);
/// After a renewal without an answer.
const RENEW_RETRY: Duration = Duration::from_millis(500);
/// After a failed try to become the leader: an election is rare, a Consul in trouble is not
/// helped by haste.
const CANDIDATE_RETRY: Duration = Duration::from_secs(1);
/// Between two questions for the lock: a key that is changed again and again, an answer without an
/// index or a lock that another one's delay keeps shut must not make a candidate ask without end.
const CANDIDATE_PAUSE: Duration = Duration::from_millis(200);
/// How long one wait for the lock may last: it bounds how long a peer that is gone without a
/// word is taken for a quiet one.
const WAIT: Duration = Duration::from_mins(1);
/// Consul answers a blocking query up to a sixteenth late; the rest is for the way.
const WAIT_DEADLINE: Duration = Duration::from_secs(75);

/// Longest name of a holder that is shown: ours are pods' names with a process ID.
const HOLDER_BYTES: usize = 80;

/// The election among the bridges of one cluster.
#[derive(Clone, Debug)]
pub struct Election {
    client: Client,
    cluster: ClusterName,
    nodes: NodeNames,
    key: Box<str>,
    /// What the lock says of its holder.
    candidate: Box<str>,
    rival: watch::Sender<Rival>,
    /// The session of the last try, until it is known to be over: it may hold the lock.
    session: watch::Sender<Option<SessionId>>,
}

/// Whom a candidate waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Rival {
    /// Nobody yet.
    #[default]
    Unknown,
    /// The holder of the lock, by its name.
    Leads(Box<str>),
    /// Nobody: the lock cannot be asked for, and why.
    Unreachable(String),
}

/// A lock that is held.
#[derive(Clone, Debug)]
pub struct Lease {
    session: SessionId,
    key: Box<str>,
    /// Until when, unless it is renewed.
    until: watch::Sender<Instant>,
}

/// How one try to become the leader ended.
enum Attempt {
    Won(Lease),
    /// Another one holds the lock, by its name.
    Held(Box<str>),
    /// Another one was faster, or the lock is kept shut by the delay of a former one.
    Missed,
}

// === impl Election ===

impl Election {
    /// The election of this cluster; `candidate` is this process's name.
    pub fn new(client: Client, cluster: ClusterName, nodes: NodeNames, candidate: &str) -> Self {
        let key = lock_key(&cluster).into();
        let (rival, session) = (watch::Sender::default(), watch::Sender::default());
        Self { client, cluster, nodes, key, candidate: candidate.into(), rival, session }
    }

    /// Wakes up whenever somebody else is waited for.
    pub fn rival(&self) -> watch::Receiver<Rival> {
        self.rival.subscribe()
    }

    /// Waits until the lock is ours, as long as it takes.
    pub async fn win(self) -> Lease {
        let mut index = 0;
        loop {
            let pause = match self.try_to_win(&mut index).await {
                Ok(Attempt::Won(lease)) => {
                    // Should the lock be lost, nobody is known to have it.
                    self.rival.send_replace(Rival::Unknown);
                    return lease;
                }
                Ok(Attempt::Held(holder)) => {
                    self.rival.send_replace(Rival::Leads(holder));
                    CANDIDATE_PAUSE
                }
                Ok(Attempt::Missed) => {
                    index = 0;
                    CANDIDATE_RETRY
                }
                Err(error) => {
                    index = 0;
                    let why = chain(&*error);
                    tracing::debug!(why, "the lock cannot be asked for");
                    self.rival.send_replace(Rival::Unreachable(why));
                    CANDIDATE_RETRY
                }
            };
            sleep(pause).await;
        }
    }

    async fn try_to_win(
        &self,
        index: &mut u64,
    ) -> Result<Attempt, Box<dyn std::error::Error + Send + Sync>> {
        self.give_back().await?;
        if let Some(holder) = self.holder(index).await? {
            return Ok(Attempt::Held(holder));
        }
        self.client.ensure_base_node(&self.nodes, &self.cluster).await?;
        let asked = Instant::now();
        let session = self.client.create_session(self.nodes.base()).await?;
        self.session.send_replace(Some(session.clone()));
        let won = self.client.acquire_lock(&self.key, &session, &self.candidate).await;
        if let Ok(true) = won {
            let until = watch::Sender::new(asked + TTL - MARGIN);
            return Ok(Attempt::Won(Lease { session, key: self.key.clone(), until }));
        }
        // Also when it is not known: a session that holds the lock must not stay.
        self.give_back().await?;
        won?;
        Ok(Attempt::Missed)
    }

    /// Keeps the lock. Returns when it is lost, and why.
    pub async fn keep(self, lease: Lease) -> String {
        let mut pause = RENEW_EVERY;
        loop {
            let until = *lease.until.borrow();
            tokio::select! {
                () = sleep_until(until) => {
                    return format!("the lock could not be renewed within {TTL_SECONDS} s");
                }
                () = sleep(pause) => {}
            }
            let asked = Instant::now();
            let renewed = timeout_at(until.min(asked + RENEW_DEADLINE), self.renew(&lease));
            match renewed.await {
                Ok(Ok(None)) => {
                    lease.until.send_replace(asked + TTL - MARGIN);
                    pause = RENEW_EVERY;
                }
                Ok(Ok(Some(lost))) => return lost.to_owned(),
                Ok(Err(error)) => {
                    tracing::debug!(error = error.chain(), "the session could not be renewed");
                    pause = RENEW_RETRY;
                }
                Err(_) => pause = RENEW_RETRY,
            }
        }
    }

    /// Renews the session. Tells how the lock is lost, if it is: somebody may have deleted its key
    /// while the session goes on.
    async fn renew(&self, lease: &Lease) -> Result<Option<&'static str>, Error> {
        if !self.client.renew_session(&lease.session).await? {
            return Ok(Some("its session is over"));
        }
        // A transaction that only asks costs the servers' log nothing.
        match self.client.transaction(&[lease.fence().operation().encode()]).await {
            Err(error) if error.answer(Reach::Servers) == Answer::Fenced => {
                Ok(Some("the lock is no longer its session's"))
            }
            _ => Ok(None),
        }
    }

    /// Gives back the lock, or whatever a try has left of it, so that nobody has to wait for the
    /// session's end. Tells whether there was something to give back.
    pub async fn give_back(&self) -> Result<bool, Error> {
        let Some(session) = self.session.borrow().clone() else { return Ok(false) };
        self.client.destroy_session(&session).await?;
        self.session.send_replace(None);
        Ok(true)
    }

    /// Who holds the lock; none: nobody. Waits for a change while `index` is the newest.
    async fn holder(&self, index: &mut u64) -> Result<Option<Box<str>>, Unknown> {
        let request = if *index > 0 {
            Consistency::Default
                .of_key(&self.key)
                .parameter("index", &index.to_string())
                .parameter("wait", &format!("{}s", WAIT.as_secs()))
                .deadline(WAIT_DEADLINE)
        } else {
            Consistency::Consistent.of_key(&self.key)
        };
        let (lock, newest) = self.client.read_lock(&request).await?;
        // One that goes backwards belongs to a restored Consul: begin anew.
        *index = if newest < *index { 0 } else { newest };
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
        Fence { key: self.key.clone(), session: self.session.clone() }
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
