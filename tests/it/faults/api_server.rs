//! A Kubernetes API server that says what the test wants: lists and watches of Services and
//! `EndpointSlices`, and the cluster's identity.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::{get, post};
use futures::stream;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The scripted server. It ends with its handle.
pub(super) struct ApiServer {
    shared: Arc<Shared>,
    url: String,
    task: AbortHandle,
}

/// What it says.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// Uid of the namespace `kube-system`.
    pub(super) uid: String,
    /// What a list of Services has.
    pub(super) services: Vec<Value>,
    /// What a list of `EndpointSlices` has.
    pub(super) slices: Vec<Value>,
}

/// How a watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// By an event that says 410.
    Expired,
    /// Without a word; the next one is refused with 410.
    Closed,
}

struct Shared {
    script: Mutex<Script>,
    /// The resource version, and how the watches of older ones ended.
    version: watch::Sender<(u64, End)>,
    /// Whether lists are answered.
    open: watch::Sender<bool>,
    /// Lists that were asked for.
    asked: watch::Sender<usize>,
}

#[derive(Deserialize)]
struct ListQuery {
    watch: Option<bool>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
}

// === impl ApiServer ===

impl ApiServer {
    pub(super) async fn start(script: Script) -> Result<Self> {
        let shared = Arc::new(Shared {
            script: Mutex::new(script),
            version: watch::Sender::new((1, End::Expired)),
            open: watch::Sender::new(true),
            asked: watch::Sender::new(0),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = Router::new()
            .route("/version", get(version))
            .route("/apis/discovery.k8s.io/v1", get(discovery))
            .route("/api/v1/namespaces/kube-system", get(kube_system))
            .route("/api/v1/services", get(services))
            .route("/apis/discovery.k8s.io/v1/endpointslices", get(slices))
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
            .with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, router).await }).abort_handle();
        Ok(Self { shared, url, task })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn script(&self) -> MutexGuard<'_, Script> {
        self.shared.script()
    }

    /// Ends every watch; what was changed since is in no event.
    pub(super) fn end_watches(&self, how: End) {
        self.shared.version.send_modify(|(version, end)| {
            *version += 1;
            *end = how;
        });
    }

    /// Lists wait for their answers from now on.
    pub(super) fn hold_lists(&self) {
        self.shared.open.send_replace(false);
    }

    /// Lists are answered again.
    pub(super) fn answer_lists(&self) {
        self.shared.open.send_replace(true);
    }

    /// How many lists were asked for.
    pub(super) fn lists_asked(&self) -> usize {
        *self.shared.asked.borrow()
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// === impl Shared ===

impl Shared {
    fn script(&self) -> MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn version() -> Json<Value> {
    Json(json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.0", "gitCommit": "", "goVersion": "",
        "gitTreeState": "", "buildDate": "", "compiler": "", "platform": "",
    }))
}

async fn discovery() -> Json<Value> {
    Json(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": "discovery.k8s.io/v1", "resources": [],
    }))
}

async fn kube_system(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let uid = shared.script().uid.clone();
    Json(json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"name": "kube-system", "uid": uid},
    }))
}

async fn event(Json(event): Json<Value>) -> (StatusCode, Json<Value>) {
    (StatusCode::CREATED, Json(event))
}

async fn services(State(shared): State<Arc<Shared>>, Query(query): Query<ListQuery>) -> Response {
    answer(&shared, &query, "v1", "ServiceList", |script| script.services.clone()).await
}

async fn slices(State(shared): State<Arc<Shared>>, Query(query): Query<ListQuery>) -> Response {
    let group = "discovery.k8s.io/v1";
    answer(&shared, &query, group, "EndpointSliceList", |script| script.slices.clone()).await
}

async fn answer(
    shared: &Shared,
    query: &ListQuery,
    group: &str,
    kind: &str,
    items: impl Fn(&Script) -> Vec<Value>,
) -> Response {
    if query.watch == Some(true) {
        return watch(shared, query.resource_version.as_deref());
    }
    shared.asked.send_modify(|asked| *asked += 1);
    // It fails only when the server is gone.
    let _ = shared.open.subscribe().wait_for(|open| *open).await;
    let version = shared.version.borrow().0.to_string();
    let items = items(&shared.script());
    Json(json!({
        "apiVersion": group, "kind": kind,
        "metadata": {"resourceVersion": version}, "items": items,
    }))
    .into_response()
}

/// What a watch of a version says that is too old.
fn gone() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    })
}

/// Nothing, until it ends.
fn watch(shared: &Shared, from: Option<&str>) -> Response {
    let mut version = shared.version.subscribe();
    let now = version.borrow_and_update().0;
    if from != Some(now.to_string().as_str()) {
        return (StatusCode::GONE, Json(gone())).into_response();
    }
    let events = stream::once(async move {
        // It fails only when the server is gone.
        let _ = version.wait_for(|(newer, _)| *newer > now).await;
        let line = match version.borrow().1 {
            End::Expired => format!("{}\n", json!({"type": "ERROR", "object": gone()})),
            End::Closed => String::new(),
        };
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(events)).into_response()
}
