//! Lists and watches as one stream of [`WatchEvent`]s, which mends itself.
//!
//! The protocol is kube's `watcher`: a list in pages, read from the API server's storage by quorum,
//! then a watch from where the list ended. On top of it and of [`super::limits`], here is:
//!
//! - a back-off that grows with every failure and heals by quiet time only. kube's own resets with
//!   each item, and the start of a list is one;
//! - a new list wherever an event may have been lost, or a watch cannot be started from where the
//!   last one ended. A watcher that is only asked again would repeat the same request for ever;
//! - a deadline on the whole list;
//! - a handle that asks for a new list ([`Relist`]).
//!
//! What is kept: `ListCompleted` is never said of a list that broke off, and a list that was asked
//! for begins after it was asked for. Nothing is buffered but one page and the parts of one object,
//! and nothing is spawned: whoever polls the stream does the work.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt};
use kube::runtime::watcher::{self, Event, ListSemantic, watcher};
use kube::{Api, Client};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::domain::backoff::{Backoff, Delays};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{EndpointSlice, Kind, SeenObject, WatchEvent};
use crate::domain::text::one_line;
use crate::kubernetes::client::EndpointSource;
use crate::kubernetes::endpoints::{Endpoints, subset_key};
use crate::kubernetes::errors::failure;
use crate::kubernetes::limits::WATCH_SECONDS;
use crate::kubernetes::slim::{EndpointSlices, Nodes, Projected, Services, Slim, View};

/// Objects in one page of a list. An EndpointSlice has up to 100 endpoints, 30 KB of text, and a page
/// is in memory twice while it is decoded: 6 MB at most, where client-go's 500 would be 30 MB.
const PAGE_SIZE: u32 = 100;

/// Time that a whole list may wait for the server: etcd compacts every five minutes, after which
/// a list's later pages cannot be had anyway.
const LIST_TIMEOUT: Duration = Duration::from_mins(5);

/// From a second, which an API server is not hurt by, to what a cluster that is back is seen again
/// within: half a minute.
const BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));

/// Quiet time after which the back-off begins again at its least: twice its longest delay, and
/// more than six times what it takes to notice that no headers come.
const BACKOFF_HEAL: Duration = Duration::from_mins(1);

/// Failures without a quiet time in between after which everything is listed anew, whatever they
/// were: by then half a minute has passed, so this costs at most one list in that time. It heals
/// watches that cannot be resumed for a reason nobody thought of.
const LIST_AFTER_FAILURES: u32 = 5;

/// Least time between two [`Notice::Trouble`]s of one watch.
const TROUBLE_SPACING: Duration = Duration::from_secs(10);

/// Names that the pool holds before it first looks for unused ones.
const POOL_MIN: usize = 64;

/// What the stream says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Something was seen in the cluster.
    Event(WatchEvent),
    /// The watch fails, and is tried again.
    Trouble(Trouble),
    /// The watch that was in trouble has not failed for [`BACKOFF_HEAL`].
    Recovered(Kind),
}

/// A watch that fails. Told at the first failure and then at most every ten seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is watched.
    pub kind: Kind,
    /// The newest failure.
    pub error: Error,
    /// How many there were since the watch was last without trouble.
    pub failures: u32,
    /// When it is tried again.
    pub retry_in: Duration,
}

/// Why a watch failed. All of these are tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No right to list or watch.
    #[error(
        "expected the right to list and watch {resource}, found none ({cause}); \
         {manifest} grants it"
    )]
    Denied {
        /// The resource, as RBAC rules name it.
        resource: &'static str,
        /// The file that grants the right.
        manifest: &'static str,
        /// The API server's words.
        cause: String,
    },
    /// A page of the list could not be read.
    #[error("cannot list {resource}: {cause}")]
    List {
        /// The resource.
        resource: &'static str,
        /// What failed.
        cause: String,
    },
    /// The list took too long.
    #[error("expected the whole list of {0} within {LIST_TIMEOUT:?}, found it unfinished")]
    ListTimeout(&'static str),
    /// The watch could not be started.
    #[error("cannot watch {resource}: {cause}")]
    Start {
        /// The resource.
        resource: &'static str,
        /// What failed.
        cause: String,
    },
    /// The watch was ended by the server or the connection.
    #[error("the watch of {resource} broke off: {cause}")]
    Watch {
        /// The resource.
        resource: &'static str,
        /// What failed.
        cause: String,
    },
}

/// Asks a watch for a new list.
#[derive(Clone, Debug, Default)]
pub struct Relist(Arc<Notify>);

/// A back-off that only quiet time heals.
#[derive(Debug)]
struct SlowHealing {
    delays: Delays,
    /// When the last delay is over.
    resumed: Instant,
}

/// Shares the text of equal names.
#[derive(Debug, Default)]
struct Pool {
    names: HashSet<Arc<str>>,
    /// At how many names unused ones are looked for.
    sweep_at: usize,
}

/// The slices that an Endpoints object is.
#[derive(Debug)]
struct Parts {
    count: usize,
    /// The list that showed it last, or that preceded the watch which did.
    list_number: u64,
}

type Objects<P> = BoxStream<'static, watcher::Result<Event<Slim<P>>>>;

/// The state of one watch.
struct Watch<P: Projected> {
    api: Api<Slim<P>>,
    relist: Relist,
    objects: Objects<P>,
    /// How long the list that goes on has waited for the server; `None` while watching.
    listing: Option<Duration>,
    /// A new list is due.
    list_due: bool,
    backoff: SlowHealing,
    /// Until when nothing is asked.
    paused_until: Option<Instant>,
    failures: u32,
    trouble_told: Option<Instant>,
    pool: Pool,
    /// Of each Endpoints object, how many slices it is.
    parts: HashMap<ObjectKey, Parts>,
    list_number: u64,
    said: VecDeque<Notice>,
}

/// What happens next.
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, on the stack; a box would cost each event"
)]
enum Step<P> {
    Relist,
    Item(Option<watcher::Result<Event<Slim<P>>>>),
    ListTimeout,
    Resume,
    Healed,
}

// === impl Relist ===

impl Relist {
    /// Asks for a new list: the next `ListCompleted` of this watch is that of a list which began
    /// after this call. One that is going on is broken off. Asked twice, it is one list.
    pub fn request(&self) {
        self.0.notify_one();
    }
}

/// Watches all Services.
pub fn services(client: Client, relist: Relist) -> BoxStream<'static, Notice> {
    watch::<Services>(client, relist)
}

/// Watches the endpoints of all Services.
pub fn endpoints(
    client: Client,
    source: EndpointSource,
    relist: Relist,
) -> BoxStream<'static, Notice> {
    match source {
        EndpointSource::EndpointSlices => watch::<EndpointSlices>(client, relist),
        EndpointSource::Endpoints => watch::<Endpoints>(client, relist),
    }
}

/// Watches all nodes.
pub fn nodes(client: Client, relist: Relist) -> BoxStream<'static, Notice> {
    watch::<Nodes>(client, relist)
}

fn watch<P: Projected>(client: Client, relist: Relist) -> BoxStream<'static, Notice> {
    let watch = Watch::<P>::new(Api::all(client), relist);
    stream::unfold(watch, |mut watch| async move {
        let notice = watch.next().await;
        Some((notice, watch))
    })
    .boxed()
}

// === impl Watch ===

impl<P: Projected> Watch<P> {
    fn new(api: Api<Slim<P>>, relist: Relist) -> Self {
        Self {
            objects: Self::start(&api),
            api,
            relist,
            listing: None,
            list_due: false,
            backoff: SlowHealing::new(Instant::now()),
            paused_until: None,
            failures: 0,
            trouble_told: None,
            pool: Pool::default(),
            parts: HashMap::new(),
            list_number: 0,
            said: VecDeque::new(),
        }
    }

    fn start(api: &Api<Slim<P>>) -> Objects<P> {
        let config = watcher::Config::default()
            .timeout(WATCH_SECONDS)
            .list_semantic(ListSemantic::MostRecent)
            .page_size(PAGE_SIZE);
        watcher(api.clone(), config).boxed()
    }

    async fn next(&mut self) -> Notice {
        loop {
            if let Some(notice) = self.said.pop_front() {
                return notice;
            }
            if self.list_due && self.paused_until.is_none() {
                self.list_due = false;
                self.listing = None;
                self.objects = Self::start(&self.api);
            }
            match self.step().await {
                // kube's watcher does not end; should it, a new one takes its place.
                Step::Relist | Step::Item(None) => self.list_due = true,
                Step::Resume => self.paused_until = None,
                Step::ListTimeout => {
                    self.list_due = true;
                    self.fail(Error::ListTimeout(P::PLURAL));
                }
                Step::Healed => {
                    self.failures = 0;
                    self.trouble_told = None;
                    self.said.push_back(Notice::Recovered(P::KIND));
                }
                Step::Item(Some(Ok(event))) => self.take(event),
                Step::Item(Some(Err(error))) => {
                    self.list_due |= must_list(&error);
                    self.fail(describe::<P>(&error));
                }
            }
        }
    }

    /// Waits for what comes first. A request for a new list precedes an object, and timers come
    /// last: they are looked at only when nothing else is there.
    async fn step(&mut self) -> Step<P> {
        if let Some(until) = self.paused_until {
            return tokio::select! {
                biased;
                () = self.relist.0.notified() => Step::Relist,
                () = sleep_until(until) => Step::Resume,
            };
        }
        let asked = Instant::now();
        let list_left = self.listing.map(|waited| LIST_TIMEOUT.saturating_sub(waited));
        let step = tokio::select! {
            biased;
            () = self.relist.0.notified() => Step::Relist,
            item = self.objects.next() => Step::Item(item),
            () = sleep_until(asked + list_left.unwrap_or_default()), if list_left.is_some() =>
                Step::ListTimeout,
            () = sleep_until(self.backoff.resumed + BACKOFF_HEAL), if self.failures > 0 =>
                Step::Healed,
        };
        if let Some(waited) = &mut self.listing {
            *waited += asked.elapsed();
        }
        step
    }

    fn fail(&mut self, error: Error) {
        let now = Instant::now();
        if self.backoff.heal(now) {
            self.failures = 0;
        }
        self.failures += 1;
        self.listing = None;
        self.list_due |= self.failures.is_multiple_of(LIST_AFTER_FAILURES);
        let delay = self.backoff.fail(now);
        self.paused_until = Some(now + delay);
        if self.trouble_told.is_none_or(|told| now - told >= TROUBLE_SPACING) {
            self.trouble_told = Some(now);
            let (kind, failures) = (P::KIND, self.failures);
            self.said.push_back(Notice::Trouble(Trouble {
                kind,
                error,
                failures,
                retry_in: delay,
            }));
        }
    }

    fn take(&mut self, event: Event<Slim<P>>) {
        match event {
            Event::Init => {
                self.listing = Some(Duration::ZERO);
                self.list_number += 1;
                self.say(WatchEvent::ListStarted(P::KIND));
            }
            Event::InitDone => {
                self.listing = None;
                self.parts.retain(|_, parts| parts.list_number == self.list_number);
                self.say(WatchEvent::ListCompleted(P::KIND));
            }
            Event::InitApply(object) | Event::Apply(object) => self.see(object.key, object.view),
            Event::Delete(object) => {
                let parts = self.parts.remove(&object.key).map_or(1, |parts| parts.count);
                self.delete_parts(&object.key, 0..parts);
            }
        }
    }

    fn see(&mut self, key: ObjectKey, view: View) {
        match view {
            View::Service(service) => {
                self.say(WatchEvent::Seen(SeenObject::Service(key, service)));
            }
            View::Slice(Some(mut slice)) => {
                self.pool.share(&mut slice);
                self.say(WatchEvent::Seen(SeenObject::EndpointSlice(key, slice)));
            }
            // It may have had its label before. In a list, what is not shown is gone anyway.
            View::Slice(None) if self.listing.is_none() => {
                self.say(WatchEvent::Deleted(P::KIND, key));
            }
            View::Slice(None) => {}
            View::Node(node) => self.say(WatchEvent::Seen(SeenObject::Node(key, node))),
            View::Subsets(slices) => self.see_parts(key, slices),
            View::Undecodable(why) => {
                // It exists, so all that was known of it stays.
                let list_number = self.list_number;
                let count = self.parts.get_mut(&key).map_or(1, |parts| {
                    parts.list_number = list_number;
                    parts.count.max(1)
                });
                for part in (0..count).map(|index| subset_key(&key, index)) {
                    let seen = SeenObject::Undecodable(P::KIND, part, why.clone());
                    self.say(WatchEvent::Seen(seen));
                }
            }
        }
    }

    fn see_parts(&mut self, key: ObjectKey, slices: Vec<EndpointSlice>) {
        let count = slices.len();
        for (index, mut slice) in slices.into_iter().enumerate() {
            self.pool.share(&mut slice);
            let part = subset_key(&key, index);
            self.say(WatchEvent::Seen(SeenObject::EndpointSlice(part, slice)));
        }
        let parts = Parts { count, list_number: self.list_number };
        if self.listing.is_none() {
            let before = self.parts.get(&key).map_or(1, |parts| parts.count);
            self.delete_parts(&key, count..before);
        }
        self.parts.insert(key, parts);
    }

    fn delete_parts(&mut self, key: &ObjectKey, indices: Range<usize>) {
        for index in indices {
            self.say(WatchEvent::Deleted(P::KIND, subset_key(key, index)));
        }
    }

    fn say(&mut self, event: WatchEvent) {
        self.said.push_back(Notice::Event(event));
    }
}

/// Whether only a new list helps. A list that failed is begun anew by kube's watcher itself.
fn must_list(error: &watcher::Error) -> bool {
    match error {
        // The server answered, and not that it is busy or that we may not: 410 above all, and
        // what else it says of a version that it cannot serve (400, 504).
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => {
            !matches!(status.code, 401 | 403 | 408 | 429 | 500 | 502 | 503)
        }
        watcher::Error::WatchStartFailed(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::NoResourceVersion => false,
        watcher::Error::WatchError(_) => true,
        // A broken connection is taken up where it broke; an event that cannot be read is lost.
        watcher::Error::WatchFailed(error) => !matches!(error, kube::Error::ReadEvents(_)),
    }
}

fn describe<P: Projected>(error: &watcher::Error) -> Error {
    let resource = P::PLURAL;
    let (kube_error, build): (_, fn(&'static str, String) -> Error) = match error {
        watcher::Error::InitialListFailed(error) => {
            (error, |resource, cause| Error::List { resource, cause })
        }
        watcher::Error::WatchStartFailed(error) => {
            (error, |resource, cause| Error::Start { resource, cause })
        }
        watcher::Error::WatchFailed(error) => {
            (error, |resource, cause| Error::Watch { resource, cause })
        }
        watcher::Error::WatchError(status) => {
            let cause = one_line(&format!("{} {}", status.code, status.message), 512);
            return Error::Watch { resource, cause };
        }
        watcher::Error::NoResourceVersion => {
            let cause = "expected a resourceVersion in the answer, found none".to_owned();
            return Error::Watch { resource, cause };
        }
    };
    let cause = failure(kube_error);
    match kube_error {
        kube::Error::Api(status) if status.code == 403 => {
            Error::Denied { resource, manifest: P::GRANTED_BY, cause }
        }
        _ => build(resource, cause),
    }
}

// === impl SlowHealing ===

impl SlowHealing {
    fn new(now: Instant) -> Self {
        // The standard library seeds each hasher anew: many bridges must not come at once.
        Self { delays: BACKOFF.delays(RandomState::new().hash_one(())), resumed: now }
    }

    /// Whether it was quiet for long enough to begin anew.
    fn heal(&mut self, now: Instant) -> bool {
        let healed = now >= self.resumed + BACKOFF_HEAL;
        if healed {
            self.delays.reset();
        }
        healed
    }

    /// The delay after a failure.
    fn fail(&mut self, now: Instant) -> Duration {
        let delay = self.delays.advance();
        self.resumed = now + delay;
        delay
    }
}

// === impl Pool ===

impl Pool {
    /// Replaces the names in `slice` by those of earlier slices that are equal.
    fn share(&mut self, slice: &mut EndpointSlice) {
        for endpoint in &mut slice.endpoints {
            for name in [&mut endpoint.node, &mut endpoint.zone].into_iter().flatten() {
                if let Some(known) = self.names.get(name) {
                    *name = Arc::clone(known);
                } else {
                    self.names.insert(Arc::clone(name));
                }
            }
        }
        if self.names.len() >= self.sweep_at.max(POOL_MIN) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            // Twice what is in use, so that the sweeps cost a constant a name.
            self.sweep_at = self.names.len() * 2;
        }
    }
}

#[cfg(test)]
mod tests;
