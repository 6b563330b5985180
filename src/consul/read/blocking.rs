//! Blocking queries: waiting for the next change.
//!
//! An answer wakes whoever waits. Whether it proves that something is absent depends on what is
//! asked: see [`crate::consul::read::evidence`].

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::Request;
use crate::consul::http::transport::Reply;

/// How long one query may wait. A change is answered at once whatever this is: it bounds how long a
/// peer that is gone without a word is taken for a quiet one.
const WAIT: Duration = Duration::from_mins(1);
/// Consul answers up to a sixteenth of [`WAIT`] late; the rest is for the way.
const WAIT_DEADLINE: Duration = Duration::from_secs(75);
/// Queries that may follow each other without a pause, and how soon the right to one comes back. A
/// record that changes all the time, or an answer without an index, must not make us ask without
/// end; a few changes in a row are still seen at once.
const BURST: u32 = 5;
const REFILL: Duration = Duration::from_secs(1);

/// A query that is repeated, each time for what is newer than the answer before.
#[derive(Debug)]
pub(in crate::consul) struct BlockingQuery {
    request: Request,
    position: Position,
    pace: Pace,
}

/// What the next query waits beyond.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    /// The index of the last answer; 0: the next one comes at once.
    Index(u64),
    /// The hash of the last answer's content, which is how an agent tells of its own state; none: the
    /// next one comes at once.
    Hash(Option<String>),
}

/// A token bucket.
#[derive(Debug)]
struct Pace {
    /// How many tokens it holds.
    burst: u32,
    /// When the bucket is full again.
    full: Option<Instant>,
}

// === impl BlockingQuery ===

impl BlockingQuery {
    /// A query of the servers' state. The first answer comes at once.
    pub(in crate::consul) fn by_index(request: Request) -> Self {
        Self { request, position: Position::Index(0), pace: Pace::new(BURST) }
    }

    /// A query of an agent's own state. The first answer comes once its hash is another than
    /// `known`.
    pub(in crate::consul) fn by_hash(request: Request, known: &str) -> Self {
        let position = Position::Hash(Some(known.to_owned()));
        Self { request, position, pace: Pace::new(BURST) }
    }

    /// At most one query a second, for what changes all the time.
    pub(in crate::consul) fn without_burst(self) -> Self {
        Self { pace: Pace::new(1), ..self }
    }

    /// The next answer: that of a change, or the same again after [`WAIT`]. After an error the next
    /// one comes at once, whatever it is.
    pub(in crate::consul) async fn next(&mut self, client: &Client) -> Result<Reply, Error> {
        sleep_until(self.pace.reserve(Instant::now())).await;
        // Should this future be dropped, the next query asks anew.
        let position = self.position.take();
        let reply = client.send_read(&position.of(self.request.clone())).await?;
        self.position = position.after(&reply);
        Ok(reply)
    }

    /// The next answer comes at once.
    pub(in crate::consul) fn reset(&mut self) {
        self.position.take();
    }
}

// === impl Position ===

impl Position {
    fn take(&mut self) -> Self {
        let start = match self {
            Position::Index(_) => Position::Index(0),
            Position::Hash(_) => Position::Hash(None),
        };
        std::mem::replace(self, start)
    }

    fn of(&self, request: Request) -> Request {
        let request = match self {
            Position::Index(0) | Position::Hash(None) => return request,
            Position::Index(index) => request.parameter("index", &index.to_string()),
            Position::Hash(Some(hash)) => request.parameter("hash", hash),
        };
        request.parameter("wait", &format!("{}s", WAIT.as_secs())).deadline(WAIT_DEADLINE)
    }

    fn after(self, reply: &Reply) -> Self {
        match self {
            Position::Index(before) => {
                let index = reply.header("X-Consul-Index").and_then(|text| text.parse().ok());
                Position::Index(next_index(before, index))
            }
            Position::Hash(_) => {
                Position::Hash(reply.header("X-Consul-ContentHash").map(ToOwned::to_owned))
            }
        }
    }
}

/// What the next query waits beyond, by the rules of Consul's documentation: an index that goes
/// backwards belongs to another state of the servers (a restored snapshot), so it begins anew; one
/// below 1 would not wait at all.
fn next_index(before: u64, found: Option<u64>) -> u64 {
    match found {
        None => 0,
        Some(index) if index < before => 0,
        Some(index) => index.max(1),
    }
}

// === impl Pace ===

impl Pace {
    fn new(burst: u32) -> Self {
        Self { burst, full: None }
    }

    /// Takes a token: when the query may be sent.
    fn reserve(&mut self, now: Instant) -> Instant {
        let full = self.full.map_or(now, |full| full.max(now)) + REFILL;
        self.full = Some(full);
        full.checked_sub(REFILL * self.burst).map_or(now, |at| at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_goes_forwards_or_begins_anew() {
        for (before, found, next) in [
            (0, Some(7), 7),
            (7, Some(7), 7),
            (7, Some(9), 9),
            (9, Some(7), 0),
            (0, Some(0), 1),
            (7, None, 0),
        ] {
            assert_eq!(next_index(before, found), next, "{before} {found:?}");
        }
    }

    #[test]
    fn a_few_queries_follow_at_once_and_no_more_than_one_a_second_for_long() {
        let (mut pace, now) = (Pace::new(BURST), Instant::now());
        let delays: Vec<_> = (0..8).map(|_| (pace.reserve(now) - now).as_secs()).collect();
        assert_eq!(delays, [0, 0, 0, 0, 0, 1, 2, 3]);
        // What was reserved has to be waited for first; then a quiet time fills it again.
        let later = now + Duration::from_mins(1);
        let delays: Vec<_> = (0..6).map(|_| (pace.reserve(later) - later).as_secs()).collect();
        assert_eq!(delays, [0, 0, 0, 0, 0, 1]);
        let mut pace = Pace::new(1);
        let delays: Vec<_> = (0..3).map(|_| (pace.reserve(now) - now).as_secs()).collect();
        assert_eq!(delays, [0, 1, 2]);
    }
}
