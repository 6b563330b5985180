//! HTTP for probes, metrics and people: `/livez`, `/readyz`, `/metrics`, `/status`, and a page at `/`.
//!
//! Nothing here touches the state: counters are atomics, readiness is a watched value, and a page
//! of `/status` is asked of the loop that owns the state.

pub mod history;
pub mod metrics;
mod page;
mod process;
pub mod render;
mod server;
pub mod status;

use std::convert::Infallible;
use std::future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc, oneshot, watch};
use tokio::time::timeout;

use self::render::{CONTENT_TYPE, Render};
use self::status::{Page, Readiness};
use crate::domain::kube::names::ObjectKey;
use crate::domain::text::escape_unseen;

/// The port of the admin server.
pub const PORT: u16 = 9655;
/// Questions that are with the loop at a time: it answers each within a turn. Further ones wait for
/// their place, within [`LOOP_DEADLINE`].
pub const QUESTIONS: usize = 4;
/// Pages of `/status` that are made or sent at a time: fewer than [`QUESTIONS`], so that a probe finds a
/// place, and as much memory as the biggest two take.
static PAGES: Semaphore = Semaphore::const_new(2);
/// Objects that are looked through for one page: a millisecond of the loop's time.
const SEARCHED: usize = 5_000;
/// In which pieces a page is sent, in bytes: less than a socket takes at once.
const PIECE: usize = 16 << 10;
/// A loop that does not answer for this long hangs: it has no step that long.
const LOOP_DEADLINE: Duration = Duration::from_secs(10);

/// What the loop is asked; `P` is a page of its `/status`.
#[derive(Debug)]
pub enum Question<P = Page> {
    /// Whether it turns.
    Alive(oneshot::Sender<()>),
    /// For one page of Services.
    Page(Selection, oneshot::Sender<P>),
}

/// Which Services a page shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Those after this one, by namespace and name.
    pub after: Option<ObjectKey>,
    /// Those with this in `namespace/name`; empty: all.
    pub matching: String,
}

// === impl Selection ===

impl Selection {
    /// The next page of what this selects among `objects`, which are those after [`Self::after`] in
    /// the order of their keys: at most [`status::PAGE`] of them, found among at most [`SEARCHED`];
    /// and where the page after it begins.
    pub fn page<'a, T>(
        &self,
        objects: impl Iterator<Item = (&'a ObjectKey, T)>,
    ) -> (Vec<(&'a ObjectKey, T)>, Option<String>) {
        let (mut page, mut last) = (Vec::new(), None);
        for (searched, (key, object)) in objects.enumerate() {
            if searched == SEARCHED || page.len() == status::PAGE {
                return (page, last.map(ToString::to_string));
            }
            last = Some(key);
            if self.matching.is_empty() || key.to_string().contains(&self.matching) {
                page.push((key, object));
            }
        }
        (page, None)
    }
}

/// What the handlers need.
pub struct Admin<P = Page> {
    /// The counters.
    pub metrics: Arc<dyn Render>,
    /// Whether the work is being done.
    pub readiness: watch::Receiver<Readiness>,
    /// Asks the loop.
    pub questions: mpsc::Sender<Question<P>>,
}

impl<P> Clone for Admin<P> {
    fn clone(&self) -> Self {
        Self {
            metrics: Arc::clone(&self.metrics),
            readiness: self.readiness.clone(),
            questions: self.questions.clone(),
        }
    }
}

/// Listens at `address`, or at port [`PORT`] of all addresses.
pub async fn listen(address: Option<SocketAddr>) -> io::Result<TcpListener> {
    if let Some(address) = address {
        return TcpListener::bind(address).await;
    }
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, PORT)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).await
        }
        other => other,
    }
}

/// Serves until `shutdown`.
pub async fn serve<P: Serialize + Send + 'static>(
    listener: TcpListener,
    admin: Admin<P>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez::<P>))
        .route("/readyz", get(readyz::<P>))
        .route("/metrics", get(render_metrics::<P>))
        .route("/status", get(show_status::<P>))
        .merge(page::routes())
        .with_state(admin);
    server::serve(listener, router, server::LIFETIME, shutdown).await;
    Ok(())
}

/// Serves pages of another kind, as bounded as these but for the `lifetime` of a connection, until
/// `shutdown`.
pub async fn serve_router(
    listener: TcpListener,
    router: Router,
    lifetime: Duration,
    shutdown: impl Future<Output = ()>,
) {
    server::serve(listener, router, lifetime, shutdown).await;
}

/// Serves the metrics at every path, until it is dropped: what scrapes an older program's port may
/// ask for any. Its connections are bounded as those of the admin server are.
pub async fn serve_metrics(listener: TcpListener, metrics: Arc<dyn Render>) -> io::Result<()> {
    let router = Router::new().fallback(move || async move { rendered(&*metrics) });
    server::serve(listener, router, server::LIFETIME, future::pending()).await;
    Ok(())
}

/// Alive: the loop answers.
async fn livez<P>(State(admin): State<Admin<P>>) -> Response {
    match ask(&admin, Question::Alive).await {
        Some(()) => "ok\n".into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n").into_response(),
    }
}

async fn readyz<P>(State(admin): State<Admin<P>>) -> Response {
    let readiness = admin.readiness.borrow().clone();
    match readiness {
        Readiness::Ready => "ok\n".into_response(),
        Readiness::NotReady(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
        }
    }
}

async fn render_metrics<P>(State(admin): State<Admin<P>>) -> Response {
    rendered(&*admin.metrics)
}

fn rendered(metrics: &dyn Render) -> Response {
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[derive(Deserialize)]
struct StatusQuery {
    /// `namespace/name` of the last Service of the page before.
    after: Option<String>,
    /// Part of `namespace/name`.
    #[serde(default, rename = "match")]
    matching: String,
}

async fn show_status<P: Serialize>(
    State(admin): State<Admin<P>>,
    Query(query): Query<StatusQuery>,
) -> Response {
    let after = match query.after.as_deref().map(|after| after.split_once('/')) {
        None => None,
        Some(Some((namespace, name))) => Some(ObjectKey::new(namespace, name)),
        Some(None) => {
            return (StatusCode::BAD_REQUEST, "after: expected namespace/name\n").into_response();
        }
    };
    // Whoever reads slowly holds a page: only so many are made at a time.
    let Ok(Ok(turn)) = timeout(LOOP_DEADLINE, PAGES.acquire()).await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many ask for the status\n").into_response();
    };
    let selection = Selection { after, matching: query.matching };
    match ask(&admin, |reply| Question::Page(selection, reply)).await {
        Some(page) => held(json(&page), turn).await,
        None => (StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n").into_response(),
    }
}

/// An answer that people look at on terminals, too.
fn json(page: &impl Serialize) -> Response {
    match serde_json::to_string(page) {
        Ok(text) => {
            let text = escape_unseen(&text).into_owned();
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// Gives the turn back once the answer has been read, piece by piece.
async fn held(response: Response, turn: SemaphorePermit<'static>) -> Response {
    let (parts, body) = response.into_parts();
    // It is in memory already.
    let Ok(whole) = axum::body::to_bytes(body, usize::MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let pieces = stream::unfold((whole, turn), |(mut rest, turn)| async move {
        let piece = rest.split_to(rest.len().min(PIECE));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (rest, turn)))
    });
    Response::from_parts(parts, Body::from_stream(pieces))
}

/// The loop's answer, if it gives one in time.
async fn ask<T, P>(
    admin: &Admin<P>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question<P>,
) -> Option<T> {
    let (reply, answer) = oneshot::channel();
    let question = question(reply);
    let asked = async {
        admin.questions.send(question).await.ok()?;
        answer.await.ok()
    };
    timeout(LOOP_DEADLINE, asked).await.ok()?
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn admin() -> (Admin, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(QUESTIONS);
        let readiness = watch::channel(Readiness::Ready).1;
        (Admin { metrics: Arc::new(metrics::Metrics::default()), readiness, questions }, asked)
    }

    #[tokio::test]
    async fn who_asks_for_the_status_does_not_make_liveness_fail() {
        let (admin, mut asked) = admin();
        let open = (0..2 * QUESTIONS).map(|_| {
            let query = StatusQuery { after: None, matching: String::new() };
            tokio::spawn(show_status(State(admin.clone()), Query(query)))
        });
        let open: Vec<_> = open.collect();
        tokio::task::yield_now().await;
        assert!(asked.len() < QUESTIONS, "there is a place left: {}", asked.len());

        let alive = tokio::spawn(livez(State(admin)));
        tokio::task::yield_now().await;
        while let Some(question) = asked.recv().await {
            match question {
                Question::Alive(reply) => reply.send(()).unwrap(),
                Question::Page(_, reply) => drop(reply),
            }
        }
        assert_eq!(alive.await.unwrap().status(), StatusCode::OK);
        assert!(open.into_iter().all(|it| it.now_or_never().is_some()), "each had its answer");
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_hangs_is_not_alive() {
        let (admin, _asked) = admin();
        let began = tokio::time::Instant::now();
        assert_eq!(livez(State(admin)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(began.elapsed(), LOOP_DEADLINE);
    }
}
