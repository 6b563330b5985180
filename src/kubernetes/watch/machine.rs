//! The protocol of a list and its watch as a state machine.
//!
//! [`State`] is the position in the protocol; it owns the request that is under way, so that
//! leaving a state gives the request up. [`Machine::handle`] is the only place where it changes.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::WatchEvent;
use crate::kubernetes::endpoints::subset_key;
use crate::kubernetes::pool::Pool;
use crate::kubernetes::slim::{Content, Slim, Watched};
use crate::kubernetes::watch::health::Health;
use crate::kubernetes::watch::notice::{
    Error, LIST_TIMEOUT, NOT_SERVED_RETRY, Notice, Target, Trouble,
};
use crate::kubernetes::watch::relist::Relist;
use crate::kubernetes::watch::requests::{Event, Events, Failure, Page, Pending, Requests};

/// Objects in one page of a list. An EndpointSlice has up to 100 endpoints, 30 KB of text: 3 MB,
/// where client-go's 500 would be 15 MB.
const PAGE_SIZE: u32 = 100;

/// The position in the protocol.
enum State<P: Watched> {
    /// Nothing is asked until then.
    Paused { until: Instant, next: Next },
    /// The pages of a list come.
    Listing { list: List, page: Pending<Page<P>> },
    /// Before a watch is resumed: is the server's storage as new as what it has shown before?
    Comparing { version: String, newest: Pending<Option<String>> },
    /// A watch was asked for.
    Opening { version: String, events: Pending<Events> },
    /// Changes come.
    Watching { version: String, events: Events, since: Instant, had_event: bool },
}

/// What follows a pause.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// A relist.
    List,
    /// A watch from this version.
    Resume { version: String },
}

/// A list that is under way.
#[derive(Clone, Debug, Default)]
struct List {
    /// Where the page begins that is asked for.
    next: Option<String>,
    /// How long the server was waited for.
    waited: Duration,
    /// Whether its first page came, and `ListStarted` was said.
    begun: bool,
}

/// What was waited for.
enum Answer<P: Watched> {
    Resumed,
    Page(Result<Page<P>, Failure>),
    Newest(Result<Option<String>, Failure>),
    Opened(Result<Events, Failure>),
    /// None: the server has ended the watch.
    Event(Option<Result<Event<P>, Failure>>),
}

/// What happens next.
enum Step<P: Watched> {
    Relist,
    Answer(Answer<P>),
    ListTimeout,
    Healed,
}

/// The objects that one object counts as.
#[derive(Debug)]
struct Parts {
    count: usize,
    /// The list that showed it last, or that preceded the watch which did.
    list_number: u64,
}

/// One watch.
pub struct Machine<P: Watched> {
    requests: Requests,
    target: Target,
    relist: Relist,
    state: State<P>,
    health: Health,
    /// Objects asked for in a page.
    page_size: u32,
    names: Pool,
    /// Of each object that counts as several, how many.
    parts: HashMap<ObjectKey, Parts>,
    list_number: u64,
    said: VecDeque<Notice<P::Seen>>,
}

// === impl State ===

impl<P: Watched> State<P> {
    /// At once.
    fn now(next: Next) -> Self {
        Self::Paused { until: Instant::now(), next }
    }

    /// Waits for what has to come in this state. Whoever stops waiting loses nothing; whoever gets
    /// an answer has to leave the state or, of an event, take it.
    async fn answer(&mut self) -> Answer<P> {
        match self {
            State::Paused { until, .. } => {
                sleep_until(*until).await;
                Answer::Resumed
            }
            State::Listing { page, .. } => Answer::Page(page.await),
            State::Comparing { newest, .. } => Answer::Newest(newest.await),
            State::Opening { events, .. } => Answer::Opened(events.await),
            State::Watching { events, .. } => Answer::Event(events.next().await),
        }
    }

    fn listing(&mut self) -> Option<&mut List> {
        match self {
            State::Listing { list, .. } => Some(list),
            _ => None,
        }
    }
}

// === impl Machine ===

impl<P: Watched> Machine<P> {
    /// A watch that begins with a list.
    pub fn new(requests: Requests, target: Target, relist: Relist) -> Self {
        Self {
            requests,
            target,
            relist,
            state: State::now(Next::List),
            health: Health::new(Instant::now()),
            page_size: PAGE_SIZE,
            names: Pool::default(),
            parts: HashMap::new(),
            list_number: 0,
            said: VecDeque::new(),
        }
    }

    /// What is to be said next.
    pub async fn next(&mut self) -> Notice<P::Seen> {
        loop {
            // Before what is already there: it is older than the request.
            if self.relist.take() {
                self.begin_anew();
            }
            if let Some(notice) = self.said.pop_front() {
                return notice;
            }
            match self.step().await {
                Step::Relist => self.begin_anew(),
                Step::Answer(answer) => self.handle(answer),
                Step::ListTimeout => self.fail(Error::ListTimeout(self.target.clone()), Next::List),
                Step::Healed => {
                    self.health.healed();
                    self.said.push_back(Notice::Recovered(P::KIND));
                }
            }
        }
    }

    /// Waits for what comes first. A request for a relist precedes an answer, and timers come
    /// last: they are looked at only when nothing else is there.
    async fn step(&mut self) -> Step<P> {
        let asked = Instant::now();
        let list_left = self.state.listing().map(|list| LIST_TIMEOUT.saturating_sub(list.waited));
        let heals_at = self.health.heals_at();
        let step = tokio::select! {
            biased;
            () = self.relist.requested() => Step::Relist,
            answer = self.state.answer() => Step::Answer(answer),
            () = sleep_until(asked + list_left.unwrap_or_default()), if list_left.is_some() =>
                Step::ListTimeout,
            () = sleep_until(heals_at.unwrap_or(asked)), if heals_at.is_some() => Step::Healed,
        };
        if let Some(list) = self.state.listing() {
            list.waited += asked.elapsed();
        }
        step
    }

    /// A relist was asked for. It does not pass the back-off.
    fn begin_anew(&mut self) {
        self.said.retain(|notice| !matches!(notice, Notice::Event(_)));
        match &mut self.state {
            State::Paused { next, .. } => *next = Next::List,
            state => *state = State::now(Next::List),
        }
    }

    /// Takes an answer, and goes on to the next state.
    fn handle(&mut self, answer: Answer<P>) {
        let state = std::mem::replace(&mut self.state, State::now(Next::List));
        match (state, answer) {
            (State::Paused { next, .. }, Answer::Resumed) => self.state = self.begin(next),
            (State::Listing { list, .. }, Answer::Page(page)) => self.handle_page(list, page),
            (State::Comparing { version, .. }, Answer::Newest(newest)) => {
                self.handle_newest(version, newest);
            }
            (State::Opening { version, .. }, Answer::Opened(Ok(events))) => {
                self.said.push_back(Notice::Heard(P::KIND));
                let since = Instant::now();
                self.state = State::Watching { version, events, since, had_event: false };
            }
            (State::Opening { version, .. }, Answer::Opened(Err(failure))) => {
                self.start_failed(version, &failure);
            }
            (State::Watching { version, events, since, had_event }, Answer::Event(event)) => {
                match event {
                    Some(Ok(event)) => self.handle_event(version, events, since, event),
                    Some(Err(failure)) => self.watch_failed(version, &failure),
                    None => self.watch_ended(version, since, had_event),
                }
            }
            // An answer belongs to the state that waited for it.
            (state, _) => self.state = state,
        }
    }

    fn begin(&self, next: Next) -> State<P> {
        match next {
            Next::List => self.ask_page(List::default()),
            Next::Resume { version } => {
                State::Comparing { version, newest: self.requests.newest_version() }
            }
        }
    }

    fn ask_page(&self, list: List) -> State<P> {
        let page = self.requests.page(list.next.clone(), self.page_size);
        State::Listing { list, page }
    }

    fn handle_page(&mut self, mut list: List, page: Result<Page<P>, Failure>) {
        let page = match page {
            Ok(page) => page,
            Err(Failure::TooLarge) if self.page_size > 1 => {
                self.page_size /= 2;
                self.state = self.ask_page(list);
                return;
            }
            Err(failure) if is_not_served::<P>(&failure) => {
                self.said.push_back(Notice::NotServed(P::KIND));
                let until = Instant::now() + NOT_SERVED_RETRY;
                self.state = State::Paused { until, next: Next::List };
                return;
            }
            Err(failure) => {
                if let Failure::Slow(_) = failure {
                    self.page_size = (self.page_size / 2).max(1);
                }
                let cause = failure.to_string();
                let build = |target| Error::List { target, cause };
                return self.fail_with(&failure, build, Next::List);
            }
        };
        if !list.begun {
            list.begun = true;
            self.list_number += 1;
            self.say(WatchEvent::ListStarted(P::KIND));
        }
        for object in page.items {
            self.see(object, true);
        }
        self.page_size = (self.page_size * 2).min(PAGE_SIZE);
        if page.next.is_some() {
            list.next = page.next;
            self.state = self.ask_page(list);
            return;
        }
        let Some(version) = page.version else {
            let cause = "expected a resourceVersion in the answer, found none".to_owned();
            return self.fail(Error::List { target: self.target.clone(), cause }, Next::List);
        };
        self.parts.retain(|_, parts| parts.list_number == self.list_number);
        self.say(WatchEvent::ListCompleted(P::KIND));
        self.state = self.open(version);
    }

    fn open(&self, version: String) -> State<P> {
        let events = self.requests.watch(&version);
        State::Opening { version, events }
    }

    /// Resumes the watch unless the server's storage was set back: a watch at a version from the
    /// future is accepted and shows nothing until the server has caught up.
    fn handle_newest(&mut self, version: String, newest: Result<Option<String>, Failure>) {
        match newest {
            Ok(Some(newest)) if is_older(&newest, &version) => {
                let target = self.target.clone();
                self.fail(Error::SetBack { target, expected: version, found: newest }, Next::List);
            }
            Ok(_) => self.state = self.open(version),
            Err(failure) => self.start_failed(version, &failure),
        }
    }

    fn start_failed(&mut self, version: String, failure: &Failure) {
        if is_not_served::<P>(failure) {
            // The list says so.
            self.state = State::now(Next::List);
            return;
        }
        let next = if may_resume(failure) { Next::Resume { version } } else { Next::List };
        let cause = failure.to_string();
        self.fail_with(failure, |target| Error::Start { target, cause }, next);
    }

    fn handle_event(&mut self, version: String, events: Events, since: Instant, event: Event<P>) {
        let watching = |version| State::Watching { version, events, since, had_event: true };
        match event {
            Event::Bookmark(newest) => {
                self.said.push_back(Notice::Heard(P::KIND));
                self.state = watching(newer(version, newest));
            }
            Event::Seen(object) => {
                self.state = watching(newer(version, object.identity.resource_version.clone()));
                self.see(object, false);
            }
            Event::Deleted(object) => {
                let identity = object.identity;
                self.state = watching(newer(version, identity.resource_version));
                let parts = self.parts.remove(&identity.key).map_or(1, |parts| parts.count);
                self.delete_parts(&identity.key, 0..parts);
            }
            Event::Error(cause) => {
                let target = self.target.clone();
                self.fail(Error::Watch { target, cause }, Next::List);
            }
        }
    }

    fn watch_failed(&mut self, version: String, failure: &Failure) {
        // A broken connection is taken up where it broke; an event that cannot be read is lost.
        let next = match failure {
            Failure::Connection(_) | Failure::Slow(_) => Next::Resume { version },
            _ => Next::List,
        };
        let cause = failure.to_string();
        self.fail_with(failure, |target| Error::Watch { target, cause }, next);
    }

    fn watch_ended(&mut self, version: String, since: Instant, had_event: bool) {
        match self.health.ended(since.elapsed(), had_event) {
            None => self.state = self.begin(Next::Resume { version }),
            Some(count) => {
                let target = self.target.clone();
                self.fail(Error::EndedAtOnce { target, count }, Next::List);
            }
        }
    }

    fn fail_with(&mut self, failure: &Failure, build: impl FnOnce(Target) -> Error, next: Next) {
        let target = self.target.clone();
        match failure {
            Failure::Status { code: 403, text, .. } => {
                let (manifest, cause) = (P::GRANTED_BY, text.clone());
                self.pause(Error::Denied { target, manifest, cause }, next, None);
            }
            Failure::Status { retry_after, .. } => self.pause(build(target), next, *retry_after),
            _ => self.pause(build(target), next, None),
        }
    }

    fn fail(&mut self, error: Error, next: Next) {
        self.pause(error, next, None);
    }

    fn pause(&mut self, error: Error, next: Next, retry_after: Option<Duration>) {
        let now = Instant::now();
        let verdict = self.health.failed(now, retry_after);
        let next = if verdict.relist { Next::List } else { next };
        self.state = State::Paused { until: now + verdict.retry_in, next };
        if let Some(failures) = verdict.report {
            let (kind, retry_in) = (P::KIND, verdict.retry_in);
            self.said.push_back(Notice::Trouble(Trouble { kind, error, failures, retry_in }));
        }
    }

    /// Says what an object of a list or of a change is.
    fn see(&mut self, object: Slim<P>, in_list: bool) {
        let key = object.identity.key;
        match object.content {
            Content::Object(object) => self.say_seen(key, object),
            // It may have been of interest before. In a list, what is not shown is gone anyway.
            Content::Nothing if in_list => {}
            Content::Nothing => self.say(WatchEvent::Deleted(P::KIND, key)),
            Content::Parts(parts) => self.see_parts(key, parts, in_list),
            Content::Undecodable(why) => {
                // The parts that it had before stay.
                let count = match self.parts.get_mut(&key) {
                    Some(parts) => {
                        parts.list_number = self.list_number;
                        parts.count.max(1)
                    }
                    None => 1,
                };
                for index in 0..count {
                    let part = subset_key(&key, index);
                    self.say(WatchEvent::Seen(P::undecodable(part, why.clone())));
                }
            }
        }
    }

    fn see_parts(&mut self, key: ObjectKey, parts: Vec<P::Object>, in_list: bool) {
        let count = parts.len();
        for (index, part) in parts.into_iter().enumerate() {
            self.say_seen(subset_key(&key, index), part);
        }
        if !in_list {
            let before = self.parts.get(&key).map_or(1, |parts| parts.count);
            self.delete_parts(&key, count..before);
        }
        self.parts.insert(key, Parts { count, list_number: self.list_number });
    }

    fn say_seen(&mut self, key: ObjectKey, mut object: P::Object) {
        P::share(&mut object, &mut self.names);
        self.say(WatchEvent::Seen(P::seen(key, object)));
    }

    fn delete_parts(&mut self, key: &ObjectKey, indices: Range<usize>) {
        for index in indices {
            self.say(WatchEvent::Deleted(P::KIND, subset_key(key, index)));
        }
    }

    fn say(&mut self, event: WatchEvent<P::Seen>) {
        self.said.push_back(Notice::Event(event));
    }
}

/// Whether a watch that could not be started may be resumed later. A server that was away or not
/// well may come back with another state; one that answers may say that the version cannot be
/// served (410 above all, and 400, 504); one that is busy or refuses us is where it was.
fn may_resume(failure: &Failure) -> bool {
    matches!(failure, Failure::Status { code: 401 | 403 | 408 | 429, .. })
}

/// Whether the server does not have the kind, and need not.
fn is_not_served<P: Watched>(failure: &Failure) -> bool {
    P::MAY_BE_ABSENT && matches!(failure, Failure::Status { code: 404, .. })
}

/// Whether `newest`, the storage's version, is older than `version`. Versions of one storage are
/// numbers that grow; of those that are none nothing is known.
fn is_older(newest: &str, version: &str) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    matches!((number(newest), number(version)), (Some(newest), Some(version)) if newest < version)
}

/// The version after an event; an event without one leaves it.
fn newer(version: String, found: String) -> String {
    if found.is_empty() { version } else { found }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l1_versions_are_compared_as_numbers() {
        assert!(is_older("99", "100") && is_older("0", "18446744073709551615"));
        assert!(!is_older("100", "100") && !is_older("101", "100"));
        assert!(!is_older("a", "100") && !is_older("99", "b") && !is_older("", "1"));
    }
}
