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
            Notice::Event(_) | Notice::Recovered(_) | Notice::Heard(_) => None,
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
            Notice::Trouble(_) | Notice::Recovered(_) | Notice::Heard(_) => None,
        })
        .map(|event| match event {
            WatchEvent::ListStarted(_) => "started".to_owned(),
            WatchEvent::ListCompleted(_) => "completed".to_owned(),
            WatchEvent::Deleted(_, key) => format!("-{}", key.name),
            WatchEvent::Seen(SeenObject::Undecodable(_, key, _)) => format!("?{}", key.name),
            WatchEvent::Seen(
                SeenObject::Service(key, _)
                | SeenObject::EndpointSlice(key, _)
                | SeenObject::Node(key, _),
            ) => format!("+{}", key.name),
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

#[tokio::test(start_paused = true)]
async fn a_healthy_watch_lists_once_and_is_silent() {
    let pages = vec![service("a"), format!("{},{}", service("b"), service("c"))];
    let server =
        Server::new(Lists::Pages(pages), Watches::Healthy(vec![event("DELETED", &service("b"))]));
    let mut stream = start(&server);
    let first = collect(&mut stream, 1).await;
    assert_eq!(events(&first), ["started", "+a", "+b", "+c", "completed", "-b"]);
    server.set_version(11);
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let later = collect(&mut stream, 3600).await;
    assert!(later.iter().all(|notice| *notice == Notice::Heard(Kind::Service)), "{later:?}");
    assert_eq!(server.count(Asked::List), 2);
    assert_within("questions for the version", server.count(Asked::Newest), 18..=20);
    assert_within("watches in an hour", server.count(Asked::Watch), 18..=20);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_never_answered() {
    let server = Server::new(Lists::NeverAnswered, Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 120).await;
    assert_within("lists in 120 s", server.count(Asked::List), 5..=8);
    assert_eq!(completed(&notices), 0);
    let first = troubles(&notices)[0];
    assert_eq!(
        first.error.to_string(),
        "cannot list services: expected an answer within 10s, found none; is the Kubernetes API reachable and well?"
    );
    recovers(&server, &mut stream, 55).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_body_stops() {
    let server = Server::new(Lists::Stalled, Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 120).await;
    assert_within("lists in 120 s", server.count(Asked::List), 3..=5);
    let first = troubles(&notices)[0].error.to_string();
    assert!(first.contains("found it stopped after 8 bytes"), "{first}");
    recovers(&server, &mut stream, 75).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_without_end() {
    let server = Server::new(Lists::Endless(Duration::from_secs(9)), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    assert_eq!(troubles(&collect(&mut stream, 299).await).len(), 0);
    let notices = collect(&mut stream, 5).await;
    assert_eq!(
        troubles(&notices)[0].error,
        Error::ListTimeout(Target { resource: "services", namespace: None })
    );
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_sends_no_headers() {
    let server = Server::new(one_page(), Watches::NoHeaders);
    let mut stream = start(&server);
    let notices = collect(&mut stream, 120).await;
    assert_within("watches in 120 s", server.count(Asked::Watch), 5..=8);
    // A server that was away may have been set back.
    assert_within("lists in 120 s", server.count(Asked::List), 5..=8);
    let first = troubles(&notices)[0].error.to_string();
    assert!(first.starts_with("cannot watch services: expected an answer within 10s"), "{first}");
    recovers(&server, &mut stream, 55).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_goes_silent() {
    let server = Server::new(one_page(), Watches::Silent(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 600).await;
    assert_within("watches in 600 s", server.count(Asked::Watch), 4..=4);
    assert_eq!(server.count(Asked::List), 1);
    assert_eq!(
        troubles(&notices)[0].error.to_string(),
        "the watch of services broke off: the watch was silent for \
         194s and was not ended in time: its connection is broken"
    );
    recovers(&server, &mut stream, 200).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_refused_as_too_old_is_listed_anew() {
    let server = Server::new(one_page(), Watches::Status(410));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 60).await;
    assert_within("watches in 60 s", server.count(Asked::Watch), 5..=8);
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
    assert!(completed(&notices) >= 5, "{notices:?}");
    assert!(server.gaps(Asked::List).windows(2).all(|gap| gap[0] < gap[1] || gap[0] >= 30));
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn a_watch_told_again_and_again_that_it_is_too_old() {
    let server = Server::new(one_page(), Watches::Ended(vec![gone()]));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 60).await;
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
    assert_within("watches in 60 s", server.count(Asked::Watch), 5..=8);
    assert!(completed(&notices) >= 5, "{notices:?}");
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_always_refused_as_too_many() {
    let server = Server::new(Lists::Status(429), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 60).await;
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
    let first = troubles(&notices)[0];
    assert_eq!(first.error.to_string(), "cannot list services: HTTP 429 Scripted: scripted 429");
    assert_eq!(first.failures, 1);
    assert!(first.retry_in <= BACKOFF.first, "{:?}", first.retry_in);
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn l2_a_server_that_ends_each_watch_at_once_is_reported_and_relisted() {
    let server = Server::new(one_page(), Watches::Ended(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 20).await;
    let first = troubles(&notices)[0];
    assert_eq!(
        first.error.to_string(),
        "expected watches of services that last, found 5 in a row that ended at once without an \
         event; is a proxy in between that cuts long responses?"
    );
    assert!(completed(&notices) >= 2, "{notices:?}");
    collect(&mut stream, 580).await;
    assert_within("lists in ten minutes", server.count(Asked::List), 15..=25);
    assert_within("watches in ten minutes", server.count(Asked::Watch), 75..=125);
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn l2_a_few_short_watches_are_no_fault() {
    let server = Server::new(one_page(), Watches::Ended(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 3).await;
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let later = collect(&mut stream, 600).await;
    assert_eq!((troubles(&notices).len(), troubles(&later).len()), (0, 0));
    assert_eq!(server.count(Asked::List), 1);
}

#[tokio::test(start_paused = true)]
async fn l1_a_storage_that_was_set_back_is_relisted() {
    let server = Server::new(one_page(), Watches::Healthy(vec![event("ADDED", &service("new"))]));
    let mut stream = start(&server);
    assert!(sees(&collect(&mut stream, 100).await, "new"));
    // The watch is at version 11: to list at 10 again is to have lost what came after.
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let notices = collect(&mut stream, 100).await;
    let error = troubles(&notices)[0].error.to_string();
    assert!(
        error.starts_with("expected services at version 11 or newer, found 10: the storage"),
        "{error}"
    );
    assert_eq!(events(&notices), ["started", "+web", "completed"]);
    // From then on the version is that of the list.
    let later = collect(&mut stream, 600).await;
    assert_eq!((events(&later).len(), troubles(&later).len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn l1_servers_at_different_versions_cause_a_bounded_number_of_relists() {
    let server = Server::new(one_page(), Watches::Ended(vec![event("ADDED", &service("new"))]));
    let mut stream = start(&server);
    let end = Instant::now() + Duration::from_mins(10);
    let mut versions = [10, 9, 12].into_iter().cycle();
    while Instant::now() < end {
        server.set_version(versions.next().unwrap());
        collect(&mut stream, 1).await;
    }
    assert_within("lists in ten minutes", server.count(Asked::List), 10..=30);
}

#[tokio::test(start_paused = true)]
async fn l1_a_server_that_was_away_is_relisted_whatever_its_version() {
    for fault in [Watches::Status(503), Watches::NoHeaders] {
        let server = Server::new(one_page(), Watches::Ended(vec![event("ADDED", &service("new"))]));
        let mut stream = start(&server);
        collect(&mut stream, 1).await;
        server.set_version(1_000);
        server.set(one_page(), fault);
        collect(&mut stream, 12).await;
        let lists = server.count(Asked::List);
        server.set(one_page(), Watches::Healthy(Vec::new()));
        let notices = collect(&mut stream, 20).await;
        assert_eq!(completed(&notices), 1, "{notices:?}");
        assert_eq!(server.count(Asked::List), lists + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_in_time_is_resumed() {
    let server = Server::new(one_page(), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    collect(&mut stream, 100).await;
    server.set(one_page(), Watches::Healthy(vec![event("DELETED", &service("web"))]));
    server.set_version(11);
    assert_eq!(events(&collect(&mut stream, 100).await), ["-web"]);
    assert_eq!(server.count(Asked::List), 1);
}

/// A Service of about as many bytes.
fn sized(name: &str, bytes: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"11","annotations":{{"a":"{}"}}}}}}"#,
        "x".repeat(bytes)
    )
}

#[tokio::test(start_paused = true)]
async fn l6_a_page_that_is_too_large_is_halved() {
    let mut objects: Vec<_> = (0..13).map(|n| sized(&format!("l{n}"), 2_700_000)).collect();
    objects.extend((0..200).map(|n| service(&format!("s{n}"))));
    let server = Server::new(Lists::Objects(objects), Watches::Healthy(Vec::new()));
    let notices = collect(&mut start(&server), 10).await;
    assert_eq!(events(&notices).len(), 215, "{:?}", troubles(&notices));
    assert_eq!((completed(&notices), troubles(&notices).len()), (1, 0));
    assert_within("pages", server.count(Asked::List), 15..=30);
}

#[tokio::test(start_paused = true)]
async fn l6_an_object_that_is_too_large_is_undecodable_by_name_and_costs_nobody_a_relist() {
    let huge = || sized("huge", OBJECT_BYTES);
    let objects = vec![service("a"), huge(), service("b"), service("c")];
    let changes = vec![
        event("MODIFIED", &huge()),
        event("MODIFIED", &service("a")),
        event("DELETED", &huge()),
        event("ADDED", &service("d")),
    ];
    let server = Server::new(Lists::Objects(objects), Watches::Healthy(changes));
    let notices = collect(&mut start(&server), 10).await;
    let expected =
        ["started", "+a", "?huge", "+b", "+c", "completed", "?huge", "+a", "-huge", "+d"];
    assert_eq!(events(&notices), expected, "{:?}", troubles(&notices));
    let why = notices.iter().find_map(|notice| match notice {
        Notice::Event(WatchEvent::Seen(SeenObject::Undecodable(_, _, why))) => Some(why.as_str()),
        _ => None,
    });
    assert_eq!(why, Some("expected at most 6291456 bytes of JSON, found more"));
}

#[tokio::test(start_paused = true)]
async fn l6_a_slow_page_is_asked_for_with_fewer_objects() {
    let server = Server::new(Lists::Stalled, Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    collect(&mut stream, 100).await;
    let objects: Vec<_> = (0..40).map(|n| service(&format!("s{n}"))).collect();
    server.set(Lists::Objects(objects), Watches::Healthy(Vec::new()));
    let before = server.count(Asked::List);
    assert_eq!(completed(&collect(&mut stream, 70).await), 1);
    assert_within("pages", server.count(Asked::List) - before, 2..=3);
}

#[tokio::test(start_paused = true)]
async fn l7_each_namespace_is_asked_for_by_itself() {
    let paths = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&paths);
    let server = Server::new(one_page(), Watches::Healthy(Vec::new()));
    let answering = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().unwrap().insert(request.uri().path().to_owned());
        let server = answering.clone();
        async move { Ok::<_, std::io::Error>(server.answer(request.uri().query()).await) }
    });
    let client = with_limits(Client::new(service, "default"));
    let set = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
    let watcher = Watcher::within(client, Scope::of(&set(&["a", "b", "c"]), &set(&["c"])));
    let mut services = watcher.services(Relist::default());
    let notices = collect(&mut services, 10).await;
    assert_eq!(completed(&notices), 1);
    assert_eq!(events(&notices).len(), 4, "{notices:?}");
    collect(&mut watcher.nodes(Relist::default()), 1).await;
    let expected =
        ["/api/v1/namespaces/a/services", "/api/v1/namespaces/b/services", "/api/v1/nodes"];
    assert!(paths.lock().unwrap().iter().eq(expected), "{paths:?}");
}

#[test]
fn l7_up_to_sixteen_namespaces_are_watched_each_by_itself() {
    let set = |names: std::ops::Range<usize>| -> BTreeSet<Box<str>> {
        names.map(|n| format!("n{n:02}").into()).collect()
    };
    let none = BTreeSet::new();
    assert_eq!(Scope::of(&none, &none), [Scope::default()]);
    let of_16 = Scope::of(&set(0..16), &none);
    assert!(of_16.len() == 16 && of_16.iter().all(|scope| scope.namespace.is_some()));
    assert_eq!(Scope::of(&set(0..17), &none), [Scope::default()]);
    assert_eq!(Scope::of(&set(0..1), &set(0..1)), [Scope::default()], "nothing is selected");
    let denied = Scope::of(&none, &set(0..2));
    let fields = Some("metadata.namespace!=n00,metadata.namespace!=n01".to_owned());
    assert_eq!(denied, [Scope { fields, ..Scope::default() }]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_is_not_completed() {
    let server = Server::new(Lists::BrokenOff(service("web")), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 20).await;
    assert_eq!(events(&notices)[..4], ["started", "+web", "started", "+web"]);
    assert_eq!(completed(&notices), 0);
    assert_within("lists in 20 s", server.count(Asked::List), 8..=12);
    server.set(Lists::Pages(vec![service("a"), service("b")]), Watches::Healthy(Vec::new()));
    let notices = collect(&mut stream, 31).await;
    assert_eq!(events(&notices), ["started", "+a", "+b", "completed"]);
}

#[tokio::test(start_paused = true)]
async fn a_right_that_is_missing_is_named() {
    let server = Server::new(Lists::Status(403), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 1).await;
    assert_eq!(
        troubles(&notices)[0].error.to_string(),
        "expected the right to list and watch services, found none (HTTP 403 Scripted: scripted \
         403); manifests/base/rbac.yaml grants it"
    );
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn trouble_is_told_at_a_bounded_rate_and_its_end_once() {
    let server = Server::new(Lists::Status(500), Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 600).await;
    // Delays of 22 to 30 s after the first minute, each failure reported but for the first few.
    assert_within("reported in 600 s", troubles(&notices).len(), 15..=27);
    let failures: Vec<_> = troubles(&notices).iter().map(|it| it.failures).collect();
    assert!(failures[0] == 1 && failures[1] > 3, "{failures:?}");
    server.set(one_page(), Watches::Healthy(Vec::new()));
    let notices = collect(&mut stream, 600).await;
    let mut reports = notices.iter().filter(|notice| !matches!(notice, Notice::Heard(_)));
    assert_eq!(reports.next_back(), Some(&Notice::Recovered(Kind::Service)));
    assert_eq!(notices.iter().filter(|it| matches!(it, Notice::Recovered(_))).count(), 1);
    // Healed: the next fault is reported at once and tried again within a second.
    server.set(one_page(), Watches::Status(500));
    let notices = collect(&mut stream, 200).await;
    let first = troubles(&notices)[0];
    assert_eq!(first.failures, 1);
    assert!(first.retry_in <= BACKOFF.first, "{:?}", first.retry_in);
}

#[tokio::test(start_paused = true)]
async fn an_undecodable_object_harms_no_other() {
    let odd = |name: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"12"}},"spec":{{"ports":7}}}}"#
        )
    };
    let items = [service("a"), odd("b"), service("c")].join(",");
    let changes = vec![event("MODIFIED", &odd("d")), event("ADDED", &service("e"))];
    let server = Server::new(Lists::Pages(vec![items]), Watches::Healthy(changes));
    let notices = collect(&mut start(&server), 1).await;
    let expected = ["started", "+a", "?b", "+c", "completed", "?d", "+e"];
    assert_eq!(events(&notices), expected);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_is_made_good_by_a_list() {
    let nameless = event("ADDED", r#"{"metadata":{"resourceVersion":"12"}}"#);
    let server = Server::new(one_page(), Watches::Silent(vec![nameless]));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 10).await;
    assert!(completed(&notices) >= 3, "{notices:?}");
    assert_within("lists in 10 s", server.count(Asked::List), 3..=5);
    recovers(&server, &mut stream, 45).await;
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_asked_for_begins_after_that() {
    let server = Server::new(one_page(), Watches::Healthy(Vec::new()));
    let relist = Relist::default();
    let mut stream = Watcher::new(server.client()).services(relist.clone());
    collect(&mut stream, 20).await;
    relist.request();
    relist.request();
    assert_eq!(events(&collect(&mut stream, 20).await), ["started", "+web", "completed"]);
    assert_eq!(server.count(Asked::List), 2);

    // In the middle of a list: what is left of it is not reported.
    relist.request();
    assert_eq!(events(&[stream.next().await.unwrap()]), ["started"]);
    assert_eq!(events(&[stream.next().await.unwrap()]), ["+web"]);
    relist.request();
    assert_eq!(events(&collect(&mut stream, 20).await), ["started", "+web", "completed"]);
    assert_eq!(server.count(Asked::List), 4);
}

#[tokio::test(start_paused = true)]
async fn asking_for_a_list_does_not_pass_the_back_off() {
    let server = Server::new(Lists::Status(500), Watches::Healthy(Vec::new()));
    let relist = Relist::default();
    let mut stream = Watcher::new(server.client()).services(relist.clone());
    for _ in 0..600 {
        relist.request();
        let wait = async { while stream.next().await.is_some() {} };
        let _ = timeout(Duration::from_millis(100), wait).await;
    }
    assert_within("lists in 60 s", server.count(Asked::List), 5..=8);
}

fn slice(name: &str, labels: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"12","labels":{labels}}},
        "endpoints":[{{"addresses":["10.0.0.1"],"nodeName":"node-1","zone":"zone-1"}}]}}"#
    )
    .replace('\n', "")
}

#[tokio::test(start_paused = true)]
async fn a_slice_that_loses_its_label_is_gone() {
    let labelled = r#"{"kubernetes.io/service-name":"web"}"#;
    let items = [slice("a", labelled), slice("b", "{}")].join(",");
    let changes = vec![event("MODIFIED", &slice("a", "{}"))];
    let server = Server::new(Lists::Pages(vec![items]), Watches::Healthy(changes));
    let source = EndpointSource::EndpointSlices;
    let mut stream = Watcher::new(server.client()).endpoints(source, Relist::default());
    let notices = collect(&mut stream, 1).await;
    assert_eq!(events(&notices), ["started", "+a", "completed", "-a"]);
}

fn subsets(name: &str, subsets: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"12"}},"subsets":{subsets}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_endpoints_come_and_go_together() {
    let two = subsets("web", r#"[{"addresses":[{"ip":"10.0.0.1"}]},{"addresses":[]}]"#);
    let changes = vec![
        event("MODIFIED", &subsets("web", "7")),
        event("MODIFIED", &subsets("web", "[{}]")),
        event("MODIFIED", &two),
        event("DELETED", &two),
        event("ADDED", &two),
    ];
    let server = Server::new(Lists::Pages(vec![two.clone()]), Watches::Healthy(changes));
    let relist = Relist::default();
    let mut stream =
        Watcher::new(server.client()).endpoints(EndpointSource::Endpoints, relist.clone());
    let listed = ["started", "+web", "+web/1", "completed"];
    let after =
        ["?web", "?web/1", "+web", "-web/1", "+web", "+web/1", "-web", "-web/1", "+web", "+web/1"];
    let notices = collect(&mut stream, 1).await;
    assert_eq!(events(&notices), [&listed[..], &after[..]].concat());
    // In a new list an undecodable one keeps the parts that it had before.
    server.set(Lists::Pages(vec![subsets("web", "7")]), Watches::Healthy(Vec::new()));
    relist.request();
    let notices = collect(&mut stream, 2).await;
    assert_eq!(events(&notices), ["started", "?web", "?web/1", "completed"]);
    server.set(Lists::Pages(vec![String::new()]), Watches::Healthy(Vec::new()));
    relist.request();
    assert_eq!(events(&collect(&mut stream, 2).await), ["started", "completed"]);
}

/// A kind whose objects are no Services.
#[derive(Debug)]
struct Names;

impl Watched for Names {
    type Object = usize;
    type Seen = (String, Result<usize, String>);
    const KIND: Kind = Kind::Node;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Pod";
    const PLURAL: &'static str = "pods";

    fn decode(json: &str) -> Result<(Identity, Content<usize>), serde_json::Error> {
        let object: serde_json::Value = serde_json::from_str(json)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let identity =
            Identity { key: ObjectKey::new("shop", name), resource_version: "11".to_owned() };
        Ok((identity, Content::Object(name.len())))
    }

    fn seen(key: ObjectKey, length: usize) -> Self::Seen {
        (key.to_string(), Ok(length))
    }

    fn undecodable(key: ObjectKey, why: String) -> Self::Seen {
        (key.to_string(), Err(why))
    }
}

#[tokio::test(start_paused = true)]
async fn any_kind_is_watched_by_selectors_with_objects_of_its_own() {
    let server = Server::new(one_page(), Watches::Healthy(vec![event("ADDED", &service("a"))]));
    let queries = Arc::new(Mutex::new(Vec::new()));
    let (seen, answering) = (Arc::clone(&queries), server.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().unwrap().push(request.uri().to_string());
        let server = answering.clone();
        async move { Ok::<_, std::io::Error>(server.answer(request.uri().query()).await) }
    });
    let scope = Scope { fields: Some("spec.nodeName=n1".to_owned()), ..Scope::default() };
    let client = with_limits(Client::new(service, "default"));
    let mut stream = Watcher::within(client, vec![scope]).watch::<Names>(Relist::default());
    let mut found = Vec::new();
    while found.len() < 2 {
        if let Notice::Event(WatchEvent::Seen(seen)) = stream.next().await.unwrap() {
            found.push(seen);
        }
    }
    assert_eq!(found, [("shop/web".to_owned(), Ok(3)), ("shop/a".to_owned(), Ok(1))]);
    let queries = queries.lock().unwrap();
    let wanted = |uri: &String| {
        uri.starts_with("/api/v1/pods?") && uri.contains("fieldSelector=spec.nodeName%3Dn1")
    };
    assert!(queries.len() == 2 && queries.iter().all(wanted), "{queries:?}");
}
