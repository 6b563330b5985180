//! A reverse HTTP proxy in front of Consul that remembers every request, and
//! can spoil some of them.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, ready};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Full, Limited, combinators::BoxBody};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderValue, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::background;
use crate::certificates;
use crate::port::Port;

/// The largest request body that Consul takes by default is 512 KiB; a test may
/// well send too much, so that Consul is the one to refuse it.
const BODY_LIMIT: usize = 16 * 1024 * 1024;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// One request as it came in.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Its method.
    pub method: Method,
    /// Path and query, as sent.
    pub path: String,
    /// Its headers, tokens included.
    pub headers: HeaderMap,
    /// Its whole body.
    pub body: Bytes,
    /// When its body was complete.
    pub at: Instant,
    /// The answer's status; none while there is no answer, or if it got none.
    pub status: Option<StatusCode>,
}

impl Recorded {
    /// Whether it changes something in Consul. Renewing a session does not: it
    /// is the heartbeat of a lock. Nor does a transaction that only reads.
    pub fn is_write(&self) -> bool {
        match self.method {
            Method::PUT | Method::POST | Method::DELETE => {
                let path = self.path.split('?').next().unwrap_or_default();
                let renews = path.starts_with("/v1/session/renew/");
                let reads = path == "/v1/txn" && reads_only(&self.body);
                !renews && !reads
            }
            _ => false,
        }
    }
}

/// Whether each operation of a transaction's body is a read or a check.
fn reads_only(body: &[u8]) -> bool {
    let Ok(serde_json::Value::Array(operations)) = serde_json::from_slice(body) else {
        return false;
    };
    operations.iter().all(|operation| {
        let kinds = operation.as_object().into_iter().flatten();
        kinds.into_iter().all(|(_, operation)| {
            operation["Verb"]
                .as_str()
                .is_some_and(|verb| verb.starts_with("get") || verb.starts_with("check-"))
        })
    })
}

/// What happens to a request instead of being forwarded as it is.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Answered with this, Consul never sees it.
    Answer(StatusCode, String),
    /// Forwarded after this time.
    Delay(Duration),
    /// Forwarded once this is true, or its sender is gone.
    Hold(watch::Receiver<bool>),
    /// Consul's answer has this header in place of its own.
    Header(&'static str, String),
    /// The connection is closed without an answer, Consul never sees it.
    DropBefore,
    /// Consul gets it and answers, the answer is lost with its connection.
    DropAfter,
}

type Predicate = Box<dyn Fn(&Recorded) -> bool + Send + Sync>;

struct Rule {
    matches: Predicate,
    fault: Fault,
    /// How often it applies; without a limit until the rules are cleared.
    left: Option<usize>,
}

#[derive(Default)]
struct Inner {
    requests: Vec<Recorded>,
    rules: Vec<Rule>,
    /// How many requests were forgotten, so that a late answer finds its own.
    forgotten: usize,
}

struct Shared {
    upstream: String,
    client: reqwest::Client,
    inner: Mutex<Inner>,
}

/// The proxy: give its [`HttpRecorder::url`] to the program under test.
pub struct HttpRecorder {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: AbortHandle,
    _port: Port,
}

impl HttpRecorder {
    /// Listens in front of `upstream`, an `http://host:port` without a path.
    pub async fn start(upstream: &str) -> Result<Self> {
        certificates::install_provider();
        let port = Port::pick()?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .build()
            .context("make the recorder's HTTP client")?;
        let shared = Arc::new(Shared {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client,
            inner: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let runtime = background::runtime();
        let listener = runtime
            .spawn(TcpListener::bind(address))
            .await?
            .with_context(|| format!("listen on {address}"))?;
        let task = runtime.spawn(serve(listener, serving)).abort_handle();
        Ok(Self { address, shared, task, _port: port })
    }

    /// Where it listens, `127.0.0.1:port`.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL, `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.inner().requests.clone()
    }

    /// The requests so far that change something in Consul.
    pub fn writes(&self) -> Vec<Recorded> {
        let inner = self.shared.inner();
        let writes = inner.requests.iter().filter(|request| request.is_write());
        writes.cloned().collect()
    }

    /// Forgets the requests so far.
    pub fn clear(&self) {
        let mut inner = self.shared.inner();
        inner.forgotten += inner.requests.len();
        inner.requests.clear();
    }

    /// Spoils every request that matches, until [`HttpRecorder::mend`].
    pub fn fault(&self, fault: Fault, matches: impl Fn(&Recorded) -> bool + Send + Sync + 'static) {
        self.add(fault, None, Box::new(matches));
    }

    /// Spoils the next `times` requests that match.
    pub fn fault_times(
        &self,
        times: usize,
        fault: Fault,
        matches: impl Fn(&Recorded) -> bool + Send + Sync + 'static,
    ) {
        self.add(fault, Some(times), Box::new(matches));
    }

    fn add(&self, fault: Fault, left: Option<usize>, matches: Predicate) {
        self.shared.inner().rules.push(Rule { matches, fault, left });
    }

    /// Ends all faults.
    pub fn mend(&self) {
        self.shared.inner().rules.clear();
    }
}

impl Drop for HttpRecorder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    // Dropped with this task, which ends the connections too.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    connections.spawn(connection(stream, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| handle(request, Arc::clone(&shared)));
    // An error here is a fault of ours or a client that left.
    let _ = hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

/// An error closes the connection without an answer, which is what both a lost
/// answer and an unreachable Consul look like.
async fn handle(
    request: Request<Incoming>,
    shared: Arc<Shared>,
) -> Result<Response<BoxBody<Bytes, Error>>, Error> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_LIMIT).collect().await?.to_bytes();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let recorded = Recorded {
        method: head.method.clone(),
        path: path.to_owned(),
        headers: head.headers.clone(),
        body: body.clone(),
        at: Instant::now(),
        status: None,
    };
    let (number, fault) = shared.record(recorded);
    match &fault {
        Some(Fault::Answer(status, text)) => {
            shared.answered(number, *status);
            let body = Full::new(Bytes::from(text.clone()));
            let mut response = Response::new(body.map_err(from_infallible).boxed());
            *response.status_mut() = *status;
            return Ok(response);
        }
        Some(Fault::DropBefore) => return Err("dropped before it was forwarded".into()),
        Some(Fault::Delay(time)) => tokio::time::sleep(*time).await,
        Some(Fault::Hold(released)) => {
            let _ = released.clone().wait_for(|it| *it).await;
        }
        Some(Fault::DropAfter | Fault::Header(..)) | None => {}
    }
    let mut headers = head.headers;
    headers.remove(HOST);
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    let answer = shared
        .client
        .request(head.method, format!("{}{path}", shared.upstream))
        .headers(headers)
        .body(body)
        .send()
        .await?;
    if matches!(fault, Some(Fault::DropAfter)) {
        // The whole answer, so that the request was certainly carried out.
        answer.bytes().await?;
        return Err("dropped after it was answered".into());
    }
    shared.answered(number, answer.status());
    let mut response = Response::new(());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    response.headers_mut().remove(CONNECTION);
    response.headers_mut().remove(TRANSFER_ENCODING);
    if let Some(Fault::Header(name, value)) = fault {
        response.headers_mut().insert(name, HeaderValue::from_str(&value)?);
    }
    let body = BoxBody::new(Streamed(reqwest::Body::from(answer)));
    Ok(response.map(|()| body))
}

fn from_infallible(never: Infallible) -> Error {
    match never {}
}

/// Consul's answer, passed on as it comes.
struct Streamed(reqwest::Body);

impl Body for Streamed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.0).poll_frame(context));
        Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Each change under the lock is one step, so a panic leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a request; gives its number and what is to happen to it.
    fn record(&self, request: Recorded) -> (usize, Option<Fault>) {
        let mut inner = self.inner();
        let rule =
            inner.rules.iter_mut().find(|rule| rule.left != Some(0) && (rule.matches)(&request));
        let fault = rule.map(|rule| {
            rule.left = rule.left.map(|left| left - 1);
            rule.fault.clone()
        });
        inner.requests.push(request);
        (inner.forgotten + inner.requests.len() - 1, fault)
    }

    fn answered(&self, number: usize, status: StatusCode) {
        let mut inner = self.inner();
        let index = number.checked_sub(inner.forgotten);
        if let Some(request) = index.and_then(|index| inner.requests.get_mut(index)) {
            request.status = Some(status);
        }
    }
}
