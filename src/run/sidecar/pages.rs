//! What the sidecar answers over HTTP: the readiness of its container, and the application's preStop
//! hook.

use axum::Router;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tokio::sync::{mpsc, oneshot, watch};

/// Whether the container is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The pod is registered.
    Ready,
    /// It is not, and why.
    NotReady(String),
}

type Asks = mpsc::Sender<oneshot::Sender<()>>;

/// What katalog-sync-sidecar answers: `/ready`, by any method.
pub(super) fn old(state: watch::Receiver<State>) -> Router {
    let answer = move || async move {
        match &*state.borrow() {
            State::Ready => StatusCode::OK.into_response(),
            State::NotReady(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error\n").into_response()
            }
        }
    };
    Router::new().route("/ready", any(answer))
}

/// `/ready`, with the reason, and `/deregister`, which is answered once that is done.
pub(super) fn own(state: watch::Receiver<State>, asks: Asks) -> Router {
    let answer = move || async move {
        match &*state.borrow() {
            State::Ready => "ok\n".into_response(),
            State::NotReady(why) => {
                (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")).into_response()
            }
        }
    };
    Router::new()
        .route("/ready", any(answer))
        .route("/deregister", get(deregister).with_state(asks))
}

async fn deregister(Shared(asks): Shared<Asks>) -> Response {
    let (done, is_done) = oneshot::channel();
    if asks.send(done).await.is_ok() && is_done.await.is_ok() {
        return "ok\n".into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, "the sidecar ended before it was deregistered\n")
        .into_response()
}
