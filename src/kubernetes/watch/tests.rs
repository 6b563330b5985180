//! Each fault that kube's client and watcher do not survive by themselves, against a scripted API
//! server under a paused clock. Every test counts requests and sees the stream recover.

use std::collections::{BTreeSet, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use kube::client::Body;
use tokio::time::{Instant, Sleep, timeout};

use super::health::BACKOFF;
use super::requests::OBJECT_BYTES;
use super::*;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, SeenObject, WatchEvent};
use crate::kubernetes::limits::{WATCH_SECONDS, with_limits};
use crate::kubernetes::slim::{Content, Identity};

mod bounds;
mod faults;
mod objects;

/// How the server answers a list.
#[derive(Clone)]
enum Lists {
    /// These pages, one after the other.
    Pages(Vec<String>),
    NeverAnswered,
    Status(u16),
    /// The first page, and 500 for the second.
    BrokenOff(String),
    /// Headers and half of a page.
    Stalled,
    /// A page with a next one, for ever, each after this time.
    Endless(Duration),
    /// These objects, as many a page as are asked for.
    Objects(Vec<String>),
}

/// How the server answers a watch.
#[derive(Clone)]
enum Watches {
    /// These events, then silence until the time that was asked for.
    Healthy(Vec<String>),
    NoHeaders,
    /// Headers, these events, and never anything more.
    Silent(Vec<String>),
    Status(u16),
    /// These events, then the end.
    Ended(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    List,
    Watch,
    /// For the newest version.
    Newest,
}

struct Script {
    lists: Lists,
    watches: Watches,
    /// The version that lists have.
    version: u64,
    requests: Vec<(Instant, Asked)>,
}

#[derive(Clone)]
struct Server(Arc<Mutex<Script>>);

struct ScriptBody {
    chunks: VecDeque<Bytes>,
    end: End,
}

enum End {
    Now,
    At(Pin<Box<Sleep>>),
    Never,
}

impl http_body::Body for ScriptBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        if let Some(chunk) = self.chunks.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        match &mut self.end {
            End::Now => Poll::Ready(None),
            End::At(sleep) => sleep.as_mut().poll(cx).map(|()| None),
            End::Never => Poll::Pending,
        }
    }
}

fn body(code: u16, chunks: &[String], end: End) -> Response<ScriptBody> {
    // As large as those of a connection.
    let chunks = chunks
        .iter()
        .flat_map(|text| text.as_bytes().chunks(64 << 10))
        .map(Bytes::copy_from_slice)
        .collect();
    let mut response = Response::new(ScriptBody { chunks, end });
    *response.status_mut() = code.try_into().unwrap();
    response
}

fn status(code: u16) -> Response<ScriptBody> {
    let text = format!(
        r#"{{"kind":"Status","status":"Failure","reason":"Scripted","message":"scripted {code}","code":{code}}}"#
    );
    body(code, &[text], End::Now)
}

impl Server {
    fn new(lists: Lists, watches: Watches) -> Self {
        Self(Arc::new(Mutex::new(Script { lists, watches, version: 10, requests: Vec::new() })))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, std::io::Error>(server.answer(request.uri().query()).await) }
        });
        with_limits(Client::new(service, "default"))
    }

    async fn answer(&self, query: Option<&str>) -> Response<ScriptBody> {
        let query = query.unwrap_or_default();
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find_map(|(key, value)| (key == name).then_some(value))
        };
        let limit: usize = value("limit").map_or(0, |limit| limit.parse().unwrap());
        let next = value("continue");
        let asked = match (value("watch"), limit, next) {
            (Some(_), ..) => Asked::Watch,
            (None, 1, None) => Asked::Newest,
            _ => Asked::List,
        };
        let (lists, watches, version) = {
            let mut script = self.0.lock().unwrap();
            script.requests.push((Instant::now(), asked));
            (script.lists.clone(), script.watches.clone(), script.version)
        };
        if asked == Asked::Watch {
            assert!(query.contains("timeoutSeconds=190"), "{query}");
            assert!(query.contains("allowWatchBookmarks=true"), "{query}");
            return answer_watch(watches).await;
        }
        assert!(!query.contains("resourceVersion"), "not a quorum read: {query}");
        let page = next.map_or(0, |token| token.parse().unwrap());
        answer_list(lists, page, limit, version).await
    }

    fn set(&self, lists: Lists, watches: Watches) {
        let mut script = self.0.lock().unwrap();
        (script.lists, script.watches) = (lists, watches);
    }

    fn set_version(&self, version: u64) {
        self.0.lock().unwrap().version = version;
    }

    fn count(&self, asked: Asked) -> usize {
        self.0.lock().unwrap().requests.iter().filter(|(_, it)| *it == asked).count()
    }

    /// The seconds between requests of this sort.
    fn gaps(&self, asked: Asked) -> Vec<u64> {
        let script = self.0.lock().unwrap();
        let times: Vec<_> =
            script.requests.iter().filter(|(_, it)| *it == asked).map(|(at, _)| *at).collect();
        times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs()).collect()
    }
}

async fn answer_list(
    lists: Lists,
    page: usize,
    limit: usize,
    version: u64,
) -> Response<ScriptBody> {
    match lists {
        Lists::Pages(pages) if page >= pages.len() => status(410),
        Lists::Pages(pages) => {
            let next = if page + 1 < pages.len() { (page + 1).to_string() } else { String::new() };
            body(200, &[list_page(&pages[page], &next, version)], End::Now)
        }
        Lists::NeverAnswered => std::future::pending().await,
        Lists::Status(code) => status(code),
        Lists::BrokenOff(items) if page == 0 => {
            body(200, &[list_page(&items, "1", version)], End::Now)
        }
        Lists::BrokenOff(_) => status(500),
        Lists::Stalled => body(200, &[r#"{"kind":"#.to_owned()], End::Never),
        Lists::Objects(objects) => {
            let end = objects.len().min(page + limit);
            let next = if end < objects.len() { end.to_string() } else { String::new() };
            body(200, &[list_page(&objects[page..end].join(","), &next, version)], End::Now)
        }
        Lists::Endless(delay) => {
            tokio::time::sleep(delay).await;
            body(200, &[list_page("", "1", version)], End::Now)
        }
    }
}

async fn answer_watch(watches: Watches) -> Response<ScriptBody> {
    match watches {
        Watches::Healthy(events) => {
            let asked_for = Duration::from_secs(u64::from(WATCH_SECONDS));
            body(200, &events, End::At(Box::pin(tokio::time::sleep(asked_for))))
        }
        Watches::NoHeaders => std::future::pending().await,
        Watches::Silent(events) => body(200, &events, End::Never),
        Watches::Status(code) => status(code),
        Watches::Ended(events) => body(200, &events, End::Now),
    }
}

fn list_page(items: &str, next: &str, version: u64) -> String {
    format!(
        r#"{{"kind":"List","apiVersion":"v1","metadata":{{"resourceVersion":"{version}","continue":"{next}"}},"items":[{items}]}}"#
    )
}

fn service(name: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"11"}},"spec":{{"clusterIP":"10.0.0.1"}}}}"#
    )
}

fn event(kind: &str, object: &str) -> String {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n")
}

fn gone() -> String {
    event("ERROR", r#"{"kind":"Status","status":"Failure","message":"too old","code":410}"#)
}

fn one_page() -> Lists {
    Lists::Pages(vec![service("web")])
}

/// What the stream says within `seconds`.
async fn collect(stream: &mut BoxStream<'static, Notice>, seconds: u64) -> Vec<Notice> {
    let mut notices = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while let Ok(notice) = tokio::time::timeout_at(end, stream.next()).await {
        notices.push(notice.expect("the stream ended"));
    }
    notices
}

fn troubles(notices: &[Notice]) -> Vec<&Trouble> {
    notices
        .iter()
        .filter_map(|notice| match notice {
            Notice::Trouble(trouble) => Some(trouble),
            _ => None,
        })
        .collect()
}

fn completed(notices: &[Notice]) -> usize {
    let done = Notice::Event(WatchEvent::ListCompleted(Kind::Service));
    notices.iter().filter(|notice| **notice == done).count()
}

/// The events, as `started`, `+name`, `?name` (undecodable), `completed`, `-name`.
fn events(notices: &[Notice]) -> Vec<String> {
    notices
        .iter()
        .filter_map(|notice| match notice {
            Notice::Event(event) => Some(event),
            _ => None,
        })
        .map(|event| match event {
            WatchEvent::ListStarted(_) => "started".to_owned(),
            WatchEvent::ListCompleted(_) => "completed".to_owned(),
            WatchEvent::Deleted(_, key) => format!("-{}", key.name),
            WatchEvent::Seen(SeenObject::Undecodable(_, key, _)) => format!("?{}", key.name),
            WatchEvent::Seen(seen) => format!("+{}", seen.key().name),
        })
        .collect()
}

fn sees(notices: &[Notice], name: &str) -> bool {
    events(notices).contains(&format!("+{name}"))
}

fn start(server: &Server) -> BoxStream<'static, Notice> {
    Watcher::new(server.client()).services(Relist::default())
}

/// Makes the server well and asserts that a change is seen within the longest delay and what the
/// fault may take to be noticed.
async fn recovers(server: &Server, stream: &mut BoxStream<'static, Notice>, seconds: u64) {
    let change = event("ADDED", &service("new"));
    server.set(one_page(), Watches::Healthy(vec![change]));
    let notices = collect(stream, seconds).await;
    assert!(sees(&notices, "new"), "{notices:?}");
}

fn assert_within(what: &str, found: usize, expected: std::ops::RangeInclusive<usize>) {
    assert!(expected.contains(&found), "{what}: expected {expected:?}, found {found}");
}
