//! The Consul services that are followed. Each has a blocking query of its own while there is room
//! for its connection; the others are read in turn.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{AbortHandle, Abortable, Aborted, BoxFuture};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::consul::http::client::Client;
use crate::consul::read::evidence::Unknown;
use crate::consul::read::followed::Followed;
use crate::domain::backoff::{Backoff, jittered};
use crate::domain::import::instance::Instance;
use crate::domain::import::source::Source;

/// Blocking queries at a time: Consul's `http_max_conns_per_client` is 200 for one address, which
/// others on the same machine share.
const MAX_QUERIES: usize = 150;
/// However often Consul closes connections, so many stay: with fewer the services that are read in
/// turn would wait no less.
const MIN_QUERIES: usize = 10;
/// Reads at a time of services for which there is no query, which come on top of the queries.
const MAX_READS: usize = 16;
/// A query waits a minute, and Consul answers up to a sixteenth of that late.
const QUERY: Duration = Duration::from_secs(75);
/// Least time between two reads of a service for which there is no query.
const TURN: Duration = Duration::from_secs(5);
/// Reads a second of services for which there is no query: Consul answers a consistent read in about
/// a millisecond, and is there for others too.
const READS_A_SECOND: u32 = 100;
/// After a failure: what a recovery costs at most beyond Consul's own.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// What a source has answered.
pub(super) struct Answer {
    /// When it was asked for.
    pub(super) asked: Instant,
    pub(super) source: Source,
    pub(super) result: Result<Vec<Instance>, Unknown>,
}

/// Follows sources.
pub(super) struct Follower {
    client: Client,
    resync: Duration,
    followed: HashMap<Source, Following>,
    number: u64,
    under_way: FuturesUnordered<BoxFuture<'static, Result<Step, Aborted>>>,
    /// How many queries there are, and how many there may be.
    queries: usize,
    limit: usize,
    reads: Arc<Semaphore>,
    note: Option<String>,
    hasher: RandomState,
}

/// A source that is followed.
struct Following {
    /// Tells the answers of an earlier following apart.
    number: u64,
    /// Ends what is under way for it.
    under_way: AbortHandle,
    has_query: bool,
}

/// How the next step of a source is made.
#[derive(Clone, Copy)]
struct Next {
    number: u64,
    delay: Duration,
    failures: u32,
    is_first: bool,
}

/// What one step gave.
struct Step {
    number: u64,
    followed: Followed,
    failures: u32,
    answer: Answer,
}

// === impl Follower ===

impl Follower {
    pub(super) fn new(client: Client, resync: Duration) -> Self {
        Self {
            client,
            resync,
            followed: HashMap::new(),
            number: 0,
            under_way: FuturesUnordered::new(),
            queries: 0,
            limit: MAX_QUERIES,
            reads: Arc::new(Semaphore::new(MAX_READS)),
            note: None,
            hasher: RandomState::new(),
        }
    }

    /// Begins to follow a source; its first answer comes as soon as Consul gives it.
    pub(super) fn follow(&mut self, source: Source) {
        self.number += 1;
        if self.followed.len() == self.limit {
            self.note = Some(format!(
                "more than {} Consul services are followed: the others are read every {} s or \
                 more seldom",
                self.limit,
                TURN.as_secs(),
            ));
        }
        let next = Next { number: self.number, delay: Duration::ZERO, failures: 0, is_first: true };
        self.step(next, Followed::new(source.clone()), source);
    }

    pub(super) fn unfollow(&mut self, source: &Source) {
        if let Some(following) = self.followed.remove(source) {
            following.under_way.abort();
            self.queries -= usize::from(following.has_query);
        }
    }

    /// Asks a source anew, at once.
    pub(super) fn confirm(&mut self, source: &Source) {
        if self.followed.contains_key(source) {
            self.unfollow(source);
            self.follow(source.clone());
        }
    }

    /// What people should know of it, once.
    pub(super) fn note(&mut self) -> Option<String> {
        self.note.take()
    }

    /// The next answer; none while nothing is followed.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        while let Some(step) = self.under_way.next().await {
            // What was aborted is followed no longer.
            let Ok(step) = step else { continue };
            let Step { number, followed, answer, mut failures } = step;
            let Some(following) = self.followed.get(&answer.source) else { continue };
            if following.number != number {
                continue;
            }
            self.queries -= usize::from(following.has_query);
            let delay = match &answer.result {
                Ok(_) => {
                    failures = 0;
                    // What closed connections may be over: one more at a time finds out.
                    self.limit = (self.limit + 1).min(MAX_QUERIES);
                    Duration::ZERO
                }
                Err(why) => {
                    self.heed(why);
                    failures += 1;
                    RETRY.delay(failures - 1, &self.hasher.hash_one(&answer.source))
                }
            };
            let next = Next { number, delay, failures, is_first: false };
            self.step(next, followed, answer.source.clone());
            return Some(answer);
        }
        None
    }

    /// Consul that refuses connections, or answers 429, gets fewer at a time: others share the
    /// address.
    fn heed(&mut self, why: &Unknown) {
        let Unknown::Failed { source, .. } = why else { return };
        if source.is_overload() && self.queries > MIN_QUERIES {
            let was_full = self.limit == MAX_QUERIES;
            self.limit = (self.queries / 2).max(MIN_QUERIES);
            if !was_full {
                return;
            }
            self.note = Some(format!(
                "Consul closes connections or answers 429: {} services are followed at a time, the \
                 others are read every {} s; if that goes on, raise http_max_conns_per_client",
                self.limit,
                TURN.as_secs(),
            ));
        }
    }

    /// Between two reads of a service for which there is no query.
    fn turn(&self) -> Duration {
        let in_turn = u32::try_from(self.followed.len().saturating_sub(self.limit));
        TURN.max(Duration::from_secs(1) * in_turn.unwrap_or(u32::MAX) / READS_A_SECOND)
    }

    fn step(&mut self, next: Next, mut followed: Followed, source: Source) {
        let Next { number, delay, failures, is_first } = next;
        let has_query = self.queries < self.limit;
        self.queries += usize::from(has_query);
        let (under_way, registration) = AbortHandle::new_pair();
        self.followed.insert(source.clone(), Following { number, under_way, has_query });
        let (client, reads) = (self.client.clone(), Arc::clone(&self.reads));
        // A query that is cut short before its time would be a poll.
        let resync = self.resync.max(QUERY);
        let turn = if is_first { Duration::ZERO } else { jittered(self.turn(), &source) };
        let work = async move {
            sleep(delay).await;
            let mut asked = Instant::now();
            let result = if has_query {
                match tokio::time::timeout(resync, followed.next(&client)).await {
                    Ok(result) => result,
                    Err(_) => followed.read(&client).await,
                }
            } else {
                sleep(turn).await;
                let _place = reads.acquire().await;
                asked = Instant::now();
                followed.read(&client).await
            };
            Step { number, followed, failures, answer: Answer { asked, source, result } }
        };
        self.under_way.push(Abortable::new(work, registration).boxed());
    }
}
