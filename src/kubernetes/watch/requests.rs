//! The requests of a watch: a page of a list, the server's newest version, the events.
//!
//! What they bring is bounded before it is in memory. A page that exceeds [`OBJECT_BYTES`] is asked
//! for again with fewer objects; a single object or event that does is taken by its name only, from
//! the beginning of its text, and the rest of it is skipped.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _};
use http::header::{ACCEPT, ACCEPT_ENCODING, HeaderValue, RETRY_AFTER};
use http::{Request, Response};
use http_body::Body as _;
use kube::Client;
use kube::client::Body;
use kube::core::Request as Resource;
use kube::core::params::{ListParams, WatchParams};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::domain::backoff::retry_after;
use crate::domain::text::{chain, one_line};
use crate::kubernetes::errors::{failure, status_line};
use crate::kubernetes::limits::{self, BODY_TIMEOUT, WATCH_SECONDS};
use crate::kubernetes::slim::{Content, Slim, Watched};
use crate::kubernetes::watch::beginning::Beginning;
use crate::kubernetes::watch::scope::Scope;

/// Largest text of a page, an object or an event that is kept in memory. etcd takes requests of up
/// to 1.5 MiB; as JSON a slice of 1,000 endpoints with 100 addresses each has 4.5 MB, and
/// annotations (256 KiB) of `<`, which Go writes as six bytes, have 1.5 MiB more.
pub const OBJECT_BYTES: usize = 6 << 20;

/// Text that any number of requests may have in memory: 32 watches (16 namespaces of two kinds)
/// hold 8 MiB. A page of 100 Services, or of 8 slices with 100 endpoints, fits.
const SMALL_BYTES: usize = 256 << 10;

/// How many requests may have more than [`SMALL_BYTES`] in memory at a time: 12 MiB, which leaves a
/// process of 50 MiB as much for what is decoded as for what it keeps.
const LARGE_AT_ONCE: usize = 2;

/// Text of an oversized object that is looked at for its name: metadata comes first, and the name
/// in it (253 bytes) before labels and annotations.
const BEGINNING_BYTES: usize = 4 << 10;

/// Text of an error that is read: a `Status` has less than 1 KiB, a page of HTML does not matter.
const ERROR_BYTES: usize = 16 << 10;

/// Why a request failed.
#[derive(Debug)]
pub enum Failure {
    /// The server answered with an error.
    Status {
        /// The HTTP status.
        code: u16,
        /// The server's words.
        text: String,
        /// How long it asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// There was no answer, or it broke off.
    Connection(String),
    /// The answer did not arrive in time.
    Slow(String),
    /// A page exceeds [`OBJECT_BYTES`].
    TooLarge,
    /// The answer is not what was expected: what it said is lost.
    Malformed(String),
}

/// One page of a list.
#[derive(Debug)]
pub struct Page<P: Watched> {
    /// The list's version.
    pub version: Option<String>,
    /// Asks for the next page; none after the last.
    pub next: Option<String>,
    /// The objects.
    pub items: Vec<Slim<P>>,
}

/// One event of a watch.
#[derive(Debug)]
pub enum Event<P: Watched> {
    /// The object as it is now.
    Seen(Slim<P>),
    /// The object is gone.
    Deleted(Slim<P>),
    /// Nothing happened up to this version.
    Bookmark(String),
    /// The server ends the watch with an error.
    Error(String),
}

/// A request that is under way.
pub type Pending<T> = BoxFuture<'static, Result<T, Failure>>;

/// Bounds what all watches of a process have in memory while it is read.
#[derive(Clone, Debug)]
pub struct Memory(Arc<Semaphore>);

/// Where the objects of one watch are asked for.
#[derive(Clone)]
pub struct Requests {
    client: Client,
    resource: Resource,
    scope: Scope,
    memory: Memory,
}

/// Text that is being read.
struct Text {
    bytes: Vec<u8>,
    memory: Memory,
    permit: Option<OwnedSemaphorePermit>,
}

/// The events of a watch as they arrive.
pub struct Events {
    body: Body,
    /// What arrived and was not looked at.
    chunk: Bytes,
    /// The beginning of a line whose end did not arrive.
    line: Text,
    /// Bytes of the line that were skipped.
    skipped: usize,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "P: Watched"))]
struct WirePage<P: Watched> {
    metadata: WireListMeta,
    items: Option<Vec<Slim<P>>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireListMeta {
    resource_version: Option<String>,
    r#continue: Option<String>,
}

#[derive(Deserialize)]
struct WireEvent<'a> {
    r#type: &'a str,
    #[serde(borrow)]
    object: &'a RawValue,
}

#[derive(Deserialize)]
struct WireBookmark {
    metadata: WireListMeta,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireStatus {
    code: u16,
    reason: String,
    message: String,
}

// === impl Failure ===

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status { text, .. }
            | Self::Connection(text)
            | Self::Slow(text)
            | Self::Malformed(text) => f.write_str(text),
            Self::TooLarge => write!(f, "expected at most {OBJECT_BYTES} bytes, found more"),
        }
    }
}

// === impl Requests ===

impl Requests {
    /// The requests for the objects of the kind `P` in `scope`.
    pub fn new<P: Watched>(client: Client, scope: Scope, memory: Memory) -> Self {
        let group = match P::GROUP {
            "" => "/api/v1".to_owned(),
            group => format!("/apis/{group}/v1"),
        };
        let path = match &scope.namespace {
            Some(namespace) if P::NAMESPACED => format!("{group}/namespaces/{namespace}"),
            _ => group,
        };
        let resource = Resource::new(format!("{path}/{}", P::PLURAL));
        Self { client, resource, scope, memory }
    }

    /// A page of at most `limit` objects, read from the storage by quorum.
    pub fn page<P: Watched>(&self, next: Option<String>, limit: u32) -> Pending<Page<P>> {
        let params = ListParams {
            label_selector: self.scope.labels.clone(),
            field_selector: self.scope.fields.clone(),
            limit: Some(limit),
            continue_token: next,
            ..ListParams::default()
        };
        let (client, memory) = (self.client.clone(), self.memory.clone());
        let request = self.resource.list(&params);
        async move {
            let response = send(&client, request).await?;
            let mut text = Text::new(memory);
            let whole = text.read(response.into_body(), OBJECT_BYTES).await?;
            if whole {
                parse_page(&text.bytes)
            } else if limit > 1 {
                Err(Failure::TooLarge)
            } else {
                beginning_of_page(&text.bytes)
            }
        }
        .boxed()
    }

    /// The newest version that the storage has, of a list of one object without any selector.
    pub fn newest_version(&self) -> Pending<Option<String>> {
        let params = ListParams { limit: Some(1), ..ListParams::default() };
        let (client, memory) = (self.client.clone(), self.memory.clone());
        let request = self.resource.list(&params);
        async move {
            let response = send(&client, request).await?;
            let mut text = Text::new(memory);
            // The version stands in front of the object, of which nothing is needed.
            text.read(response.into_body(), BEGINNING_BYTES).await?;
            Ok(Beginning::of(&text.bytes).list_version)
        }
        .boxed()
    }

    /// The events after `version`.
    pub fn watch(&self, version: &str) -> Pending<Events> {
        let params = WatchParams {
            label_selector: self.scope.labels.clone(),
            field_selector: self.scope.fields.clone(),
            timeout: Some(WATCH_SECONDS),
            ..WatchParams::default()
        };
        let (client, memory) = (self.client.clone(), self.memory.clone());
        let request = self.resource.watch(&params, version);
        async move {
            let body = send(&client, request).await?.into_body();
            Ok(Events { body, chunk: Bytes::new(), line: Text::new(memory), skipped: 0 })
        }
        .boxed()
    }
}

async fn send(
    client: &Client,
    request: Result<Request<Vec<u8>>, kube::core::request::Error>,
) -> Result<Response<Body>, Failure> {
    let mut request = request.map_err(|error| Failure::Malformed(chain(&error)))?;
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    // Events would come as one gzip member each, which few proxies and clients can read.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    let sent = client.send(request.map(Body::from)).await;
    let response = sent.map_err(|error| Failure::Connection(failure(&error)))?;
    if response.status().is_success() { Ok(response) } else { Err(refused(response).await) }
}

async fn refused(response: Response<Body>) -> Failure {
    let code = response.status().as_u16();
    let header = response.headers().get(RETRY_AFTER);
    let retry_after = header.and_then(|value| retry_after(value.to_str().ok()?));
    let mut text = Text::new(Memory::default());
    // Half an error says enough.
    let _ = text.read(response.into_body(), ERROR_BYTES).await;
    let text = match serde_json::from_slice::<WireStatus>(&text.bytes) {
        Ok(status) => status_line(code, &status.reason, &status.message),
        Err(_) => status_line(code, "", &String::from_utf8_lossy(&text.bytes)),
    };
    Failure::Status { code, text, retry_after }
}

fn parse_page<P: Watched>(text: &[u8]) -> Result<Page<P>, Failure> {
    let page: WirePage<P> = serde_json::from_slice(text).map_err(|error| malformed(&error))?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(Page {
        version: given(page.metadata.resource_version),
        next: given(page.metadata.r#continue),
        items: page.items.unwrap_or_default(),
    })
}

/// A page whose only object is too large.
fn beginning_of_page<P: Watched>(text: &[u8]) -> Result<Page<P>, Failure> {
    let beginning = Beginning::of(&text[..text.len().min(BEGINNING_BYTES)]);
    let (version, next) = (beginning.list_version.clone(), beginning.next.clone());
    Ok(Page { version, next, items: vec![oversized(beginning)?] })
}

fn oversized<P: Watched>(beginning: Beginning) -> Result<Slim<P>, Failure> {
    let why = format!("expected at most {OBJECT_BYTES} bytes of JSON, found more");
    let identity = beginning.identity::<P>().ok_or_else(|| {
        Failure::Malformed(format!(
            "a {} without a name, of more than {OBJECT_BYTES} bytes",
            P::NAME
        ))
    })?;
    Ok(Slim::new(identity, Content::Undecodable(why)))
}

fn malformed(error: &serde_json::Error) -> Failure {
    // Its message may quote the text: only where it went wrong is reported, and our own words.
    let text = error.to_string();
    let own = text.starts_with("a ").then_some(text);
    let place = format!(
        "the response is not the JSON that was expected (line {}, column {})",
        error.line(),
        error.column()
    );
    Failure::Malformed(own.map_or(place, |own| one_line(&own, 256)))
}

// === impl Memory ===

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_AT_ONCE)))
    }
}

// === impl Text ===

impl Text {
    fn new(memory: Memory) -> Self {
        Self { bytes: Vec::new(), memory, permit: None }
    }

    /// Reads a body. Returns whether it was whole: no more than `limit` bytes are kept, and what
    /// exceeds them is not waited for.
    async fn read(&mut self, mut body: Body, limit: usize) -> Result<bool, Failure> {
        while let Some(chunk) = next_chunk(&mut body).await {
            let chunk = chunk?;
            let room = limit - self.bytes.len();
            self.push(&chunk[..chunk.len().min(room)]).await;
            if chunk.len() > room {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn push(&mut self, bytes: &[u8]) {
        if self.bytes.len() + bytes.len() > SMALL_BYTES && self.permit.is_none() {
            let permit = Arc::clone(&self.memory.0).acquire_owned().await;
            // The semaphore is never closed.
            self.permit = permit.ok();
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn clear(&mut self) {
        if self.permit.take().is_some() {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
    }
}

async fn next_chunk(body: &mut Body) -> Option<Result<Bytes, Failure>> {
    loop {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame {
            // Trailers are of no interest.
            Ok(frame) => {
                if let Ok(data) = frame.into_data() {
                    return Some(Ok(data));
                }
            }
            Err(error) => return Some(Err(broken(&error))),
        }
    }
}

fn broken(error: &kube::Error) -> Failure {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = source {
        match cause.downcast_ref() {
            Some(limits::Error::Body(_)) => return Failure::Slow(cause.to_string()),
            Some(limits::Error::Size) => return Failure::TooLarge,
            _ => {}
        }
        source = cause.source();
    }
    Failure::Connection(failure(error))
}

// === impl Events ===

impl Events {
    /// The next event; none once the server has ended the watch. Whoever stops waiting loses
    /// nothing.
    pub async fn next<P: Watched>(&mut self) -> Option<Result<Event<P>, Failure>> {
        loop {
            if let Some(end) = self.chunk.iter().position(|byte| *byte == b'\n') {
                let event = self.complete(end);
                self.chunk = self.chunk.slice(end + 1..);
                self.line.clear();
                self.skipped = 0;
                match event {
                    None => continue,
                    Some(event) => return Some(event),
                }
            }
            self.keep_rest().await;
            let next = next_chunk(&mut self.body);
            let chunk = if self.line.permit.is_some() {
                let Ok(chunk) = timeout(BODY_TIMEOUT, next).await else {
                    let error = limits::Error::Body(self.line.bytes.len() + self.skipped);
                    return Some(Err(Failure::Connection(error.to_string())));
                };
                chunk
            } else {
                next.await
            };
            match chunk {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(failure)) => return Some(Err(failure)),
                None if self.line.bytes.is_empty() => return None,
                None => {
                    self.line.clear();
                    let why = "the watch ended within an event".to_owned();
                    return Some(Err(Failure::Connection(why)));
                }
            }
        }
    }

    /// Takes the line that ends at `end` of the chunk; none of an empty line.
    fn complete<P: Watched>(&mut self, end: usize) -> Option<Result<Event<P>, Failure>> {
        let rest = &self.chunk[..end];
        if self.line.bytes.is_empty() {
            return (!rest.is_empty()).then(|| parse_event(rest));
        }
        if self.skipped > 0 || self.line.bytes.len() + rest.len() > OBJECT_BYTES {
            let kept = self.line.bytes.len().min(BEGINNING_BYTES);
            return Some(oversized_event(&self.line.bytes[..kept]));
        }
        self.line.bytes.extend_from_slice(rest);
        Some(parse_event(&self.line.bytes))
    }

    /// Keeps what of a line has arrived, up to the bound.
    async fn keep_rest(&mut self) {
        let chunk = std::mem::take(&mut self.chunk);
        if self.skipped > 0 || self.line.bytes.len() + chunk.len() > OBJECT_BYTES {
            if self.skipped == 0 {
                // Only its beginning is of use any more.
                let mut kept = std::mem::take(&mut self.line.bytes);
                self.line.clear();
                kept.truncate(BEGINNING_BYTES);
                kept.shrink_to_fit();
                self.line.bytes = kept;
            }
            self.skipped += chunk.len();
        } else {
            self.line.push(&chunk).await;
        }
    }
}

fn parse_event<P: Watched>(line: &[u8]) -> Result<Event<P>, Failure> {
    let event: WireEvent<'_> = serde_json::from_slice(line).map_err(|error| malformed(&error))?;
    let object = event.object.get();
    let slim = || Slim::of_text(object).map_err(|error| malformed(&error));
    match event.r#type {
        "ADDED" | "MODIFIED" => Ok(Event::Seen(slim()?)),
        "DELETED" => Ok(Event::Deleted(slim()?)),
        "BOOKMARK" => {
            let bookmark: WireBookmark =
                serde_json::from_str(object).map_err(|error| malformed(&error))?;
            let version = bookmark.metadata.resource_version.unwrap_or_default();
            Ok(Event::Bookmark(version))
        }
        "ERROR" => {
            let status: WireStatus = serde_json::from_str(object).unwrap_or_default();
            Ok(Event::Error(status_line(status.code, &status.reason, &status.message)))
        }
        other => Err(Failure::Malformed(format!(
            "expected ADDED, MODIFIED, DELETED, BOOKMARK or ERROR, found {:?}",
            one_line(other, 64)
        ))),
    }
}

/// An event whose object is too large: what happened to it stands in front of it.
fn oversized_event<P: Watched>(beginning: &[u8]) -> Result<Event<P>, Failure> {
    let beginning = Beginning::of(beginning);
    let deleted = beginning.event_type.as_deref() == Some("DELETED");
    let slim = oversized(beginning)?;
    Ok(if deleted { Event::Deleted(slim) } else { Event::Seen(slim) })
}
