//! An API server that has any number of Services, each with ten endpoints, and that can end its watches
//! so that they have to be listed anew. It runs on a thread of its own, and makes each page as it is
//! asked for.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context as _, Result};
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
use tokio::sync::{oneshot, watch};

use super::objects;

/// Of a page that names no limit.
const PAGE: usize = 500;

/// A running server. Dropped, it ends.
pub struct Simulated {
    shared: Arc<Shared>,
    url: String,
    _end: oneshot::Sender<()>,
}

struct Shared {
    services: usize,
    /// The resource version: watches of an older one end.
    version: watch::Sender<u64>,
    reads: Mutex<Reads>,
}

/// What was listed since the last look.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reads {
    /// The first request for a page.
    pub first: Option<Instant>,
    /// The last page.
    pub last: Option<Instant>,
    /// Lists that were read to their end.
    pub complete: usize,
}

#[derive(Deserialize)]
struct ListQuery {
    watch: Option<bool>,
    limit: Option<usize>,
    #[serde(rename = "continue")]
    next: Option<String>,
    #[serde(rename = "resourceVersion")]
    resource_version: Option<String>,
}

// === impl Simulated ===

impl Simulated {
    /// With so many Services.
    pub async fn start(services: usize) -> Result<Self> {
        let (version, reads) = (watch::Sender::new(1), Mutex::default());
        let shared = Arc::new(Shared { services, version, reads });
        let router = Router::new()
            .route("/version", get(version_of))
            .route("/apis/discovery.k8s.io/v1", get(discovery))
            .route("/api/v1/namespaces/kube-system", get(kube_system))
            .route("/api/v1/services", get(list_services))
            .route("/apis/discovery.k8s.io/v1/endpointslices", get(list_slices))
            .route("/apis/events.k8s.io/v1/namespaces/{namespace}/events", post(event))
            .with_state(Arc::clone(&shared));
        let (end, ended) = oneshot::channel::<()>();
        let (listening, address) = oneshot::channel::<SocketAddr>();
        thread::Builder::new().name("simulated".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
                let _ = listening.send(listener.local_addr()?);
                tokio::select! {
                    result = async { axum::serve(listener, router).await } => result,
                    _ = ended => Ok(()),
                }
            })
        })?;
        let url = format!("http://{}", address.await.context("the simulated API server")?);
        Ok(Self { shared, url, _end: end })
    }

    /// For `--kube-url`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Ends every watch, so that all is listed anew, and forgets what was read.
    pub fn expire(&self) {
        self.forget();
        self.shared.version.send_modify(|version| *version += 1);
    }

    /// Forgets what was read.
    pub fn forget(&self) {
        *self.shared.reads() = Reads::default();
    }

    /// What was read since.
    pub fn reads(&self) -> Reads {
        *self.shared.reads()
    }
}

// === impl Shared ===

impl Shared {
    fn reads(&self) -> MutexGuard<'_, Reads> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn version_of() -> Json<Value> {
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

async fn kube_system() -> Json<Value> {
    Json(json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"name": "kube-system", "uid": "6a0c2f0e-57f8-4f0c-8a44-000000000001"},
    }))
}

async fn event(Json(event): Json<Value>) -> (StatusCode, Json<Value>) {
    (StatusCode::CREATED, Json(event))
}

async fn list_services(State(shared): State<Arc<Shared>>, query: Query<ListQuery>) -> Response {
    answer(&shared, &query, "v1", "ServiceList", objects::served_service)
}

async fn list_slices(State(shared): State<Arc<Shared>>, query: Query<ListQuery>) -> Response {
    answer(&shared, &query, "discovery.k8s.io/v1", "EndpointSliceList", objects::served_slice)
}

fn answer(
    shared: &Shared,
    query: &ListQuery,
    group: &str,
    kind: &str,
    object: fn(usize) -> Value,
) -> Response {
    if query.watch == Some(true) {
        return watched(shared, query.resource_version.as_deref());
    }
    shared.reads().first.get_or_insert_with(Instant::now);
    let version = *shared.version.borrow();
    let begin = query.next.as_deref().and_then(|next| next.parse().ok()).unwrap_or(0);
    let end = shared.services.min(begin + query.limit.unwrap_or(PAGE));
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if end < shared.services {
        metadata["continue"] = end.to_string().into();
    }
    let items: Vec<String> = (begin..end).map(|number| object(number).to_string()).collect();
    let page = format!(
        "{{\"apiVersion\":\"{group}\",\"kind\":\"{kind}\",\"metadata\":{metadata},\"items\":[{}]}}",
        items.join(",")
    );
    let mut reads = shared.reads();
    reads.last = Some(Instant::now());
    reads.complete += usize::from(end == shared.services);
    ([(header::CONTENT_TYPE, "application/json")], page).into_response()
}

/// What a watch of a version says that is too old.
fn gone() -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "too old resource version", "reason": "Expired", "code": 410,
    })
}

/// Nothing, until it ends.
fn watched(shared: &Shared, from: Option<&str>) -> Response {
    let mut version = shared.version.subscribe();
    let now = *version.borrow_and_update();
    if from != Some(now.to_string().as_str()) {
        return (StatusCode::GONE, Json(gone())).into_response();
    }
    let events = stream::once(async move {
        // It fails only when the server is gone.
        let _ = version.wait_for(|newer| *newer > now).await;
        let line = format!("{}\n", json!({"type": "ERROR", "object": gone()}));
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(events)).into_response()
}
