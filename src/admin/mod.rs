//! HTTP for probes, metrics and people: `/livez`, `/readyz`, `/metrics`, `/status`.
//!
//! Nothing here touches the state: counters are atomics, readiness is a watched value, and a page
//! of `/status` is asked of the loop that owns the state.

pub mod metrics;
pub mod status;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use self::metrics::Metrics;
use self::status::{Page, Readiness};
use crate::domain::names::ObjectKey;

/// The port of the admin server.
pub const PORT: u16 = 9655;
/// Requests for a page that may wait: the loop answers each within a turn, so more than a few
/// only wait when it is stuck, and then they are better refused.
pub const PAGE_QUEUE: usize = 4;
/// A loop that does not answer for this long hangs: it has no step that long.
const LOOP_DEADLINE: Duration = Duration::from_secs(10);

/// A request for one page of Services.
#[derive(Debug)]
pub struct PageRequest {
    /// Only Services after this one, by namespace and name.
    pub after: Option<ObjectKey>,
    /// Takes the page.
    pub reply: oneshot::Sender<Page>,
}

/// What the handlers need.
#[derive(Clone, Debug)]
pub struct Admin {
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Whether the work is being done.
    pub readiness: watch::Receiver<Readiness>,
    /// Asks the loop for a page.
    pub pages: mpsc::Sender<PageRequest>,
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
pub async fn serve(
    listener: TcpListener,
    admin: Admin,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render_metrics))
        .route("/status", get(show_status))
        .with_state(admin);
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// Alive: the loop answers.
async fn livez(State(admin): State<Admin>) -> Response {
    match page(&admin, None).await {
        Some(_) => "ok\n".into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n").into_response(),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let readiness = admin.readiness.borrow().clone();
    match readiness {
        Readiness::Ready => "ok\n".into_response(),
        Readiness::NotReady(why) => {
            (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response()
        }
    }
}

async fn render_metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[derive(Deserialize)]
struct StatusQuery {
    /// `namespace/name` of the last Service of the page before.
    after: Option<String>,
}

async fn show_status(State(admin): State<Admin>, Query(query): Query<StatusQuery>) -> Response {
    let after = match query.after.as_deref().map(|after| after.split_once('/')) {
        None => None,
        Some(Some((namespace, name))) => Some(ObjectKey::new(namespace, name)),
        Some(None) => {
            return (StatusCode::BAD_REQUEST, "after: expected namespace/name\n").into_response();
        }
    };
    match page(&admin, after).await {
        Some(page) => Json(page).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer\n").into_response(),
    }
}

async fn page(admin: &Admin, after: Option<ObjectKey>) -> Option<Page> {
    let (reply, answer) = oneshot::channel();
    admin.pages.try_send(PageRequest { after, reply }).ok()?;
    timeout(LOOP_DEADLINE, answer).await.ok()?.ok()
}
