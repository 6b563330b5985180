//! The Consul services that are followed. Each has a blocking query of its own while there is room
//! for its connection; the others are read in turn. What there is of both the namespaces share.

use std::collections::{BTreeSet, HashMap};
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
use crate::domain::import::core::Namespace;
use crate::domain::import::instance::Instance;
use crate::domain::import::share::{MAX_READS, MAX_READS_OF_NAMESPACE, Served, Share, TURN};
use crate::domain::import::source::Source;

/// A query waits a minute, and Consul answers up to a sixteenth of that late.
const QUERY: Duration = Duration::from_secs(75);
/// After a failure: what a recovery costs at most beyond Consul's own.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));

/// After a refusal for what is asked, such as a filter: that stays so until it is asked otherwise,
/// which is another source, or until Consul is a newer one.
const REFUSED: Duration = Duration::from_mins(1);
/// A connection that Consul refuses it closes at once; one that breaks later broke with Consul.
const AT_ONCE: Duration = Duration::from_secs(1);
/// Refusals in a row that are not told: there is a place soon, once there are fewer queries.
const PATIENCE: u32 = 3;
/// Whoever waits for its turn looks this often whether it comes sooner by now: as long as a query waits.
const REVIEW: Duration = Duration::from_mins(1);

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
    began: Instant,
    followed: HashMap<Source, Following>,
    number: u64,
    under_way: FuturesUnordered<BoxFuture<'static, Result<Step, Aborted>>>,
    share: Share,
    /// Places for reads: how many each takes says the share.
    reads: Arc<Semaphore>,
    /// Reads of each namespace that are waiting for a place, or have one.
    reads_of: HashMap<Namespace, Arc<Semaphore>>,
    note: Option<String>,
    /// Whether it was told that some are read in turn.
    is_told: bool,
    hasher: RandomState,
}

/// A source that is followed.
struct Following {
    /// Where Services ask for it.
    namespaces: BTreeSet<Namespace>,
    /// Tells the answers of an earlier following apart.
    number: u64,
    /// Ends what is under way for it.
    under_way: AbortHandle,
    /// As which namespace's, and how.
    served: Served,
}

/// How the next step of a source is made.
#[derive(Clone, Copy)]
struct Next {
    number: u64,
    delay: Duration,
    failures: u32,
    /// Since when it waits for its turn, where it has to.
    waits_since: Option<Instant>,
}

/// What one step gave.
struct Step {
    next: Next,
    followed: Followed,
    source: Source,
    /// What was asked for when; none where its turn has not come.
    answer: Option<(Instant, Result<Vec<Instance>, Unknown>)>,
}

// === impl Follower ===

impl Follower {
    pub(super) fn new(client: Client, resync: Duration) -> Self {
        Self {
            client,
            resync,
            began: Instant::now(),
            followed: HashMap::new(),
            number: 0,
            under_way: FuturesUnordered::new(),
            share: Share::default(),
            reads: Arc::new(Semaphore::new(MAX_READS)),
            reads_of: HashMap::new(),
            note: None,
            is_told: false,
            hasher: RandomState::new(),
        }
    }

    /// Follows a source for the Services of a namespace; its first answer comes as soon as Consul
    /// gives it.
    pub(super) fn follow(&mut self, source: Source, namespace: Namespace) {
        self.share.follow(&namespace);
        if let Some(following) = self.followed.get_mut(&source) {
            let is_sooner = self.share.is_sooner(&namespace, &following.served);
            following.namespaces.insert(namespace);
            if is_sooner {
                self.begin_again(source);
            }
            return;
        }
        self.begin(source, BTreeSet::from([namespace]));
        if self.in_turn() > 0 && !std::mem::replace(&mut self.is_told, true) {
            self.note = Some(format!(
                "more than {} Consul services are followed: the others are read every {} s or \
                 more seldom",
                self.share.queries(),
                TURN.as_secs(),
            ));
        }
    }

    /// Follows it no longer for those of the namespace.
    pub(super) fn unfollow(&mut self, source: &Source, namespace: &str) {
        let Some(following) = self.followed.get_mut(source) else { return };
        following.namespaces.remove(namespace);
        if following.namespaces.is_empty() {
            self.end(source);
        } else if *following.served.namespace == *namespace {
            self.share.transfer(&mut following.served, &following.namespaces);
        }
        if self.share.unfollow(namespace) == 0 {
            self.reads_of.remove(namespace);
        }
        self.is_told &= self.in_turn() > 0;
    }

    /// Asks a source anew, at once.
    pub(super) fn confirm(&mut self, source: &Source) {
        if self.followed.contains_key(source) {
            self.begin_again(source.clone());
        }
    }

    fn begin(&mut self, source: Source, namespaces: BTreeSet<Namespace>) {
        self.number += 1;
        let next =
            Next { number: self.number, delay: Duration::ZERO, failures: 0, waits_since: None };
        self.step(next, namespaces, Followed::new(source.clone()), source);
    }

    fn begin_again(&mut self, source: Source) {
        let namespaces = self.end(&source);
        self.begin(source, namespaces);
    }

    /// Ends what is under way for it. Gives the namespaces that ask for it.
    fn end(&mut self, source: &Source) -> BTreeSet<Namespace> {
        let Some(following) = self.followed.remove(source) else { return BTreeSet::new() };
        following.under_way.abort();
        self.share.end(&following.served);
        following.namespaces
    }

    /// How many sources are read in turn, for want of a connection.
    pub(super) fn in_turn(&self) -> usize {
        self.followed.len() - self.share.queries()
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
            let Step { mut next, followed, source, answer } = step;
            if self.followed.get(&source).is_none_or(|it| it.number != next.number) {
                continue;
            }
            self.share.handle_timeout(self.began.elapsed());
            let Some((asked, result)) = answer else {
                let namespaces = self.end(&source);
                self.step(next, namespaces, followed, source);
                continue;
            };
            let mut is_refused = false;
            next.delay = Duration::ZERO;
            match &result {
                Ok(_) => next.failures = 0,
                Err(why) => {
                    is_refused = is_refusal(why, asked.elapsed());
                    next.failures += 1;
                    next.delay = pause(why, next.failures, self.hasher.hash_one(&source));
                }
            }
            let namespaces = self.end(&source);
            if is_refused && self.share.refused(self.began.elapsed()) {
                self.shed();
            }
            next.waits_since = (!is_refused).then(|| Instant::now() + next.delay);
            self.step(next, namespaces, followed, source.clone());
            if !is_refused || next.failures >= PATIENCE {
                return Some(Answer { asked, source, result });
            }
        }
        None
    }

    /// Ends the queries that are more than there may be: others share the address, and what waits
    /// keeps its connection. Their services are read in turn.
    fn shed(&mut self) {
        let excess = self.share.queries().saturating_sub(self.share.limit());
        let has_query =
            |(source, it): (&Source, &Following)| it.served.has_query.then(|| source.clone());
        let shed: Vec<Source> = self.followed.iter().filter_map(has_query).take(excess).collect();
        // All end before the first is followed again, so that none has a query.
        let shed: Vec<_> = shed.into_iter().map(|source| (self.end(&source), source)).collect();
        for (namespaces, source) in shed {
            self.begin(source, namespaces);
        }
        self.is_told = true;
        self.note = Some(format!(
            "Consul closes connections or answers 429: {} services are followed at a time, the \
             others are read every {} s; if that goes on, raise http_max_conns_per_client",
            self.share.limit(),
            TURN.as_secs(),
        ));
    }

    fn step(
        &mut self,
        mut next: Next,
        namespaces: BTreeSet<Namespace>,
        mut followed: Followed,
        source: Source,
    ) {
        let served = self.share.serve(&namespaces);
        let has_query = served.has_query;
        let now = Instant::now();
        let turn = jittered(served.turn, &source);
        let wait = next.waits_since.map_or(now, |since| since + turn);
        let wait = wait.saturating_duration_since(now + next.delay);
        let own_reads = self.own_reads(&served.namespace);
        let (under_way, registration) = AbortHandle::new_pair();
        let following = Following { namespaces, number: next.number, under_way, served };
        self.followed.insert(source.clone(), following);
        let (client, reads) = (self.client.clone(), Arc::clone(&self.reads));
        let places = u32::try_from(self.share.places_of_a_read()).unwrap_or(1);
        // A query that is cut short before its time would be a poll.
        let resync = self.resync.max(QUERY);
        let work = async move {
            sleep(std::mem::take(&mut next.delay)).await;
            let mut asked = Instant::now();
            let result = if has_query {
                match tokio::time::timeout(resync, followed.next(&client)).await {
                    Ok(result) => result,
                    Err(_) => followed.read(&client).await,
                }
            } else {
                sleep(wait.min(REVIEW)).await;
                if wait > REVIEW {
                    return Step { next, followed, source, answer: None };
                }
                // First among its own, so that few of a namespace stand in the way of others.
                let _place = own_reads.acquire().await;
                let _places = reads.acquire_many(places).await;
                asked = Instant::now();
                followed.read(&client).await
            };
            Step { next, followed, source, answer: Some((asked, result)) }
        };
        self.under_way.push(Abortable::new(work, registration).boxed());
    }

    /// The places for reads that a namespace has.
    fn own_reads(&mut self, namespace: &str) -> Arc<Semaphore> {
        if let Some(reads) = self.reads_of.get(namespace) {
            return Arc::clone(reads);
        }
        let reads = Arc::new(Semaphore::new(MAX_READS_OF_NAMESPACE));
        self.reads_of.insert(namespace.into(), Arc::clone(&reads));
        reads
    }
}

/// Before the next query of a source that failed this often in a row.
fn pause(why: &Unknown, failures: u32, seed: u64) -> Duration {
    let delay = match why {
        Unknown::Failed { source, .. } if source.is_refusal() => REFUSED,
        _ => RETRY.delay(failures.saturating_sub(1), &seed),
    };
    delay.max(asked_to_wait(why))
}

/// How long Consul asks to be left alone.
pub(super) fn asked_to_wait(why: &Unknown) -> Duration {
    let Unknown::Failed { source, .. } = why else { return Duration::ZERO };
    source.retry_after().unwrap_or_default()
}

/// Whether Consul refuses what is one too many, after this time.
fn is_refusal(why: &Unknown, after: Duration) -> bool {
    let Unknown::Failed { source, .. } = why else { return false };
    source.is_busy() || (source.is_unanswered() && after < AT_ONCE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consul::http::config::Config;
    use crate::consul::http::error::Error;

    #[test]
    fn a_source_that_fails_is_left_alone_for_as_long_as_consul_asks() {
        let failed = |source| Unknown::Failed { what: "the instances of the service", source };
        let busy = |retry_after| {
            let (request, message) = ("GET /".to_owned(), "no".to_owned());
            failed(Error::Busy { request, status: 429, message, retry_after })
        };
        let seven = Some(Duration::from_secs(7));
        assert_eq!(pause(&busy(seven), 1, 0), Duration::from_secs(7));
        assert_eq!(pause(&busy(seven), 30, 0), Duration::from_secs(7), "longer than the longest");
        assert!(pause(&busy(None), 1, 0) <= RETRY.first);
        assert!(pause(&busy(Some(Duration::ZERO)), 30, 0) >= RETRY.longest * 3 / 4);
        let (request, message) = ("GET /".to_owned(), "no".to_owned());
        let refused = failed(Error::Refused { request, status: 400, message });
        assert_eq!(pause(&refused, 1, 0), REFUSED);
    }

    /// Nobody listens at its Consul.
    fn follower() -> Follower {
        crate::tls::install_provider();
        let address = "http://127.0.0.1:1".parse().unwrap();
        let client = Client::new(&Config { address, ..Config::default() }).unwrap();
        Follower::new(client, QUERY)
    }

    fn source(name: &str) -> Source {
        Source { service: name.into(), datacenter: None, tags: [].into(), filter: None }
    }

    #[test]
    fn few_sources_all_have_a_query_however_many_namespaces_ask_for_them() {
        let mut follower = follower();
        for n in 0..200 {
            follower.follow(source("postgres"), format!("n{n}").into());
        }
        for n in 0..140 {
            follower.follow(source(&format!("own-{n}")), "n7".into());
        }
        assert_eq!((follower.followed.len(), follower.in_turn()), (141, 0));
    }

    /// How the source is served, as one that has answered before.
    fn answered<'f>(follower: &'f mut Follower, source: &Source) -> &'f Served {
        let namespaces = follower.end(source);
        follower.number += 1;
        let (number, waits_since) = (follower.number, Some(Instant::now()));
        let next = Next { number, delay: Duration::ZERO, failures: 0, waits_since };
        follower.step(next, namespaces, Followed::new(source.clone()), source.clone());
        &follower.followed[source].served
    }

    #[tokio::test]
    async fn a_source_of_a_long_line_is_read_at_once_for_a_namespace_with_room() {
        let mut follower = follower();
        for n in 0..3_000 {
            follower.follow(source(&n.to_string()), "greedy".into());
        }
        let last = source("2999");
        let before = answered(&mut follower, &last).clone();
        assert!(!before.has_query && before.turn > 4 * TURN, "{before:?}");
        follower.follow(last.clone(), "modest".into());
        let Following { served, number, .. } = &follower.followed[&last];
        assert!(&*served.namespace == "modest" && served.turn == TURN, "{served:?}");
        // Whoever comes and goes keeps nobody from an answer: it is not asked anew each time.
        let number = *number;
        for _ in 0..3 {
            follower.unfollow(&last, "modest");
            follower.follow(last.clone(), "modest".into());
        }
        assert_eq!(follower.followed[&last].number, number);
        follower.unfollow(&last, "modest");
        follower.unfollow(&last, "greedy");
        assert!(!follower.followed.contains_key(&last));
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_comes_sooner_by_now_is_taken() {
        let mut follower = follower();
        for n in 0..60_000 {
            follower.follow(source(&n.to_string()), "greedy".into());
        }
        let last = source("59999");
        let before = answered(&mut follower, &last).turn;
        assert!(before > 8 * REVIEW, "{before:?}");
        for n in 0..59_999 {
            follower.unfollow(&source(&n.to_string()), "greedy");
        }
        let began = Instant::now();
        while follower.followed[&last].served.turn > TURN {
            let _ = tokio::time::timeout(Duration::from_secs(1), follower.next()).await;
            assert!(began.elapsed() < 2 * REVIEW);
        }
    }
}
