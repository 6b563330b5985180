//! Bounds that kube's client does not have: the time to a response's headers, the time and size
//! of its body, and the rate at which watches are started again.
//!
//! [`with_limits`] wraps a client; every request of the wrapped one keeps these bounds. A watch's body
//! lives as long as the watch: it ends when the server should have ended it and did not, and an
//! error says so if the connection had been silent.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use kube::Client;
use kube::client::Body;
use tokio::time::{Instant, Sleep, sleep_until, timeout};
use tower::BoxError;

/// Time from a request to its response's headers. The API server answers a page of 100 within
/// a second; it gives up on its own storage after some seconds. Past this the connection
/// is taken for dead.
pub const HEADERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Time from the headers of a response that is no watch to the end of its body. A page of
/// 100 EndpointSlices with 100 endpoints each is about 3 MB: 1.2 seconds at 20 Mbit/s; this allows
/// a 25th of that rate.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a watch is asked to last, in seconds. The server ends it then, so a connection that
/// broke without a sign is noticed at the latest then; below 240 s, when some load balancers drop
/// idle connections.
pub const WATCH_SECONDS: u32 = 190;

/// How much later than asked the server may end a watch: a round trip and its scheduling. Less
/// than the 5 s of kube's watcher, which ends such a watch without a word.
const WATCH_GRACE: Duration = Duration::from_secs(4);

/// Silence that is reported as a fault when an overdue watch is ended. Servers send a bookmark about
/// every minute; one and a half of that is not silence yet.
const SILENCE: Duration = Duration::from_secs(90);

/// Least time between two starts of a watch of the same resource: a server or proxy that ends
/// each watch at once gets one request a second, not thousands.
pub const WATCH_SPACING: Duration = Duration::from_secs(1);

/// Largest body of a response that is no watch, whose reader may have a lower bound: an object of
/// 6 MiB (see [`super::watch`]) and what is around it.
const BODY_BYTES: usize = 8 << 20;

/// Why a request was given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No headers came.
    #[error(
        "expected an answer within {HEADERS_TIMEOUT:?}, found none; is the Kubernetes API reachable and well?"
    )]
    Headers,
    /// The body did not end.
    #[error("expected the whole answer within {BODY_TIMEOUT:?}, found it stopped after {0} bytes")]
    Body(usize),
    /// A watch went silent and was not ended by the server.
    #[error("the watch was silent for {0:?} and was not ended in time: its connection is broken")]
    Silent(Duration),
    /// The body is larger than the bound.
    #[error("expected at most {BODY_BYTES} bytes in one response, found more")]
    Size,
}

/// When watches of each resource may start again.
#[derive(Default)]
struct Gate(Mutex<HashMap<String, Instant>>);

/// A body that keeps its bounds.
struct GuardedBody {
    inner: Body,
    bounds: Bounds,
    /// When the body has to have ended.
    overdue: Pin<Box<Sleep>>,
    last_byte: Instant,
    /// How many came, unless it is a watch, which may bring any number.
    bytes: usize,
    ended: bool,
}

#[derive(Clone, Copy)]
enum Bounds {
    Whole,
    Watch,
}

/// A client whose every request goes through `inner` and keeps the bounds of this module.
///
/// It has to be made within a tokio runtime.
pub fn with_limits(inner: Client) -> Client {
    let gate = Arc::new(Gate::default());
    let namespace = inner.default_namespace().to_owned();
    let service = tower::service_fn(move |request: Request<Body>| {
        send(inner.clone(), Arc::clone(&gate), request)
    });
    Client::new(service, namespace)
}

async fn send(
    inner: Client,
    gate: Arc<Gate>,
    request: Request<Body>,
) -> Result<Response<GuardedBody>, BoxError> {
    let watch = watch_duration(request.uri());
    if watch.is_some() {
        sleep_until(gate.reserve(request.uri().path())).await;
    }
    let response = timeout(HEADERS_TIMEOUT, inner.send(request))
        .await
        .map_err(|_| Error::Headers)?
        .map_err(BoxError::from)?;
    Ok(response.map(|body| match watch {
        Some(duration) => GuardedBody::new(body, Bounds::Watch, duration + WATCH_GRACE),
        None => GuardedBody::new(body, Bounds::Whole, BODY_TIMEOUT),
    }))
}

/// How long a watch is asked to last; `None` for any other request.
fn watch_duration(uri: &Uri) -> Option<Duration> {
    let query = uri.query()?;
    let value =
        |name: &str| query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='));
    matches!(value("watch"), Some("true" | "1")).then(|| {
        let seconds = value("timeoutSeconds").and_then(|text| text.parse().ok());
        Duration::from_secs(seconds.unwrap_or(u64::from(WATCH_SECONDS)))
    })
}

// === impl Gate ===

impl Gate {
    /// When a watch of `path` may start; the next may start [`WATCH_SPACING`] later.
    fn reserve(&self, path: &str) -> Instant {
        let now = Instant::now();
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // What is past delays nothing; dropping it keeps the map to the watches of this second.
        free.retain(|_, at| *at > now);
        let at = free.get(path).copied().unwrap_or(now);
        free.insert(path.to_owned(), at + WATCH_SPACING);
        at
    }
}

// === impl GuardedBody ===

impl GuardedBody {
    fn new(inner: Body, bounds: Bounds, limit: Duration) -> Self {
        let now = Instant::now();
        let overdue = Box::pin(sleep_until(now + limit));
        Self { inner, bounds, overdue, last_byte: now, bytes: 0, ended: false }
    }

    fn count(&mut self, data: &Bytes) -> Result<(), Error> {
        self.last_byte = Instant::now();
        if let Bounds::Whole = self.bounds {
            self.bytes += data.len();
        }
        if self.bytes > BODY_BYTES { Err(Error::Size) } else { Ok(()) }
    }

    /// How an overdue body ends. A watch that was alive all the time ends as if by the server.
    fn overdue(&self) -> Option<Error> {
        match self.bounds {
            Bounds::Whole => Some(Error::Body(self.bytes)),
            Bounds::Watch => {
                let silent = self.last_byte.elapsed();
                (silent >= SILENCE).then_some(Error::Silent(silent))
            }
        }
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(Err(error)) = frame.data_ref().map(|data| this.count(data)) {
                    this.ended = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(end) => {
                this.ended = true;
                Poll::Ready(end.map(|failed| failed.map_err(BoxError::from)))
            }
            Poll::Pending => {
                if this.overdue.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                this.ended = true;
                Poll::Ready(this.overdue().map(|error| Err(error.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_is_known_by_its_query() {
        let duration = |uri: &str| watch_duration(&uri.parse().unwrap());
        let secs = |n| Some(Duration::from_secs(n));
        assert_eq!(duration("/api/v1/services?watch=true&timeoutSeconds=60"), secs(60));
        assert_eq!(duration("/api/v1/services?timeoutSeconds=60&watch=1"), secs(60));
        assert_eq!(duration("/api/v1/services?watch=true"), secs(190));
        assert_eq!(duration("/api/v1/services?limit=100"), None);
        assert_eq!(duration("/api/v1/services?rewatch=true"), None);
        assert_eq!(duration("/api/v1/services"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn watches_of_one_resource_are_spaced() {
        let gate = Gate::default();
        let start = Instant::now();
        let delays: Vec<_> = ["a", "a", "b", "a"].map(|path| gate.reserve(path) - start).into();
        assert_eq!(delays, [0, 1, 0, 2].map(Duration::from_secs));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(gate.reserve("a"), Instant::now());
        assert_eq!(gate.0.lock().unwrap().len(), 1);
    }

    fn body_of(chunks: &[usize], byte: u8) -> Body {
        let chunks: Vec<_> = chunks.iter().map(|len| vec![byte; *len]).collect();
        Body::from(chunks.concat())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_past_its_size_fails() {
        async fn first(body: Body, bounds: Bounds) -> Result<(), String> {
            let mut body = Box::pin(GuardedBody::new(body, bounds, BODY_TIMEOUT));
            let frame = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
            frame.unwrap().map(|_| ()).map_err(|error| error.to_string())
        }
        assert!(first(body_of(&[BODY_BYTES], b'x'), Bounds::Whole).await.is_ok());
        let error = first(body_of(&[BODY_BYTES, 1], b'x'), Bounds::Whole).await.unwrap_err();
        assert_eq!(error, "expected at most 8388608 bytes in one response, found more");
        // A watch may bring any number: whoever reads it bounds each event.
        assert!(first(body_of(&[BODY_BYTES, 1], b'x'), Bounds::Watch).await.is_ok());
    }
}
