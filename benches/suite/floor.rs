//! The floor of a change: a bare watch that answers each event with the requests that the bridge was
//! recorded to send for such a change. It runs on a thread of its own, as the bridge does in a process
//! of its own, and knows only what is needed to put in names and addresses.

use std::collections::HashMap;
use std::thread;

use anyhow::{Context as _, Result};
use futures::stream::{FuturesUnordered, StreamExt as _};
use futures::{AsyncBufReadExt as _, pin_mut};
use kube::Client;
use serde::Deserialize;
use tokio::sync::oneshot;

use super::replay::{Request, Sender};
use super::{FLOOR, PROBES};
use kube_consul::domain::consul::record::PtrOwner;
use kube_consul::domain::kube::names::ClusterName;

/// Annotations by which an object says what was done to it.
pub const CHANGE: &str = "probe/change";
pub const ADDRESSES: &str = "probe/addresses";
pub const SERVICE: &str = "probe/service";

/// The cluster whose records the bridge writes, and the one whose the floor does.
pub const CLUSTER: &str = "bench-ours";
const FLOOR_CLUSTER: &str = "bench-base";

/// What the bridge sends for one kind of change, and the texts in it that differ.
#[derive(Clone, Debug)]
pub struct Template {
    pub requests: Vec<Request>,
    pub service: String,
    pub addresses: Vec<String>,
}

/// The templates, by the name of the change.
pub type Templates = HashMap<String, Template>;

/// Requests at a time. On a machine that keeps up there are two or three.
const AT_ONCE: usize = 64;

/// A running floor. Dropped, it ends.
pub struct Floor {
    _end: oneshot::Sender<()>,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
    spec: Option<Spec>,
}

#[derive(Deserialize)]
struct Metadata {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
}

// === impl Floor ===

impl Floor {
    /// Watches its namespace from now on.
    pub async fn start(client: Client, consul: &str, templates: Templates) -> Result<Self> {
        let sender = Sender::new(consul)?;
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = oneshot::channel();
        thread::Builder::new().name("floor".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            // A floor that fails shows itself by changes that never come.
            runtime.block_on(async {
                tokio::select! {
                    result = watch(client, &sender, &templates, ready) => {
                        eprintln!("the floor has ended: {result:?}");
                    }
                    _ = ended => {}
                }
            });
        })?;
        is_ready.await.context("the floor does not watch")?;
        Ok(Self { _end: end })
    }
}

/// Both kinds, in the order in which their events come.
async fn watch(
    client: Client,
    sender: &Sender,
    templates: &Templates,
    ready: oneshot::Sender<()>,
) -> Result<()> {
    let services = stream(&client, "/api/v1", "services").await?;
    let slices = stream(&client, "/apis/discovery.k8s.io/v1", "endpointslices").await?;
    pin_mut!(services, slices);
    let (mut services, mut slices) = (services.lines(), slices.lines());
    let mut under_way = FuturesUnordered::new();
    let _ = ready.send(());
    loop {
        let line = tokio::select! {
            Some(line) = services.next(), if under_way.len() < AT_ONCE => line?,
            Some(line) = slices.next(), if under_way.len() < AT_ONCE => line?,
            Some(sent) = under_way.next() => {
                let () = sent?;
                continue;
            }
        };
        let event: Event = serde_json::from_str(&line)?;
        let requests = answer(&event, templates);
        under_way.push(async move {
            for request in &requests {
                sender.send(request).await?;
            }
            anyhow::Ok(())
        });
    }
}

/// A watch of its namespace from the newest state on.
async fn stream(
    client: &Client,
    api: &str,
    kind: &str,
) -> Result<impl futures::AsyncBufRead + use<>> {
    let path = format!("{api}/namespaces/{FLOOR}/{kind}");
    let list = http::Request::get(format!("{path}?limit=1")).body(Vec::new())?;
    let list: serde_json::Value = client.request(list).await?;
    let version = list["metadata"]["resourceVersion"].as_str().context("no resourceVersion")?;
    let path = format!("{path}?watch=true&resourceVersion={version}");
    Ok(client.request_stream(http::Request::get(path).body(Vec::new())?).await?)
}

/// What is sent for an event.
fn answer(Event { kind, object }: &Event, templates: &Templates) -> Vec<Request> {
    let said = |name: &str| object.metadata.annotations.get(name).map_or("", String::as_str);
    let of_service = object.spec.is_some();
    let change = match (of_service, kind.as_str()) {
        (true, "DELETED") => "delete",
        (true, "ADDED") | (false, "MODIFIED") => said(CHANGE),
        _ => return Vec::new(),
    };
    let Some(Template { requests, service, addresses }) = templates.get(change) else {
        return Vec::new();
    };
    let cluster_ip = object.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref());
    let now: Vec<&str> = match (said(ADDRESSES), cluster_ip) {
        ("", Some(address)) => vec![address],
        (addresses, _) => addresses.split(',').collect(),
    };
    let [flags_before, flags_now] = [CLUSTER, FLOOR_CLUSTER].map(flags);
    let mut texts = vec![
        // Else the bridge would take the records for its own, and remove them.
        (CLUSTER.to_owned(), FLOOR_CLUSTER.to_owned()),
        (flags_before, flags_now),
        (service.clone(), said(SERVICE).to_owned()),
        (PROBES.to_owned(), FLOOR.to_owned()),
    ];
    for (before, now) in addresses.iter().zip(now) {
        texts.push((ptr_key(before), ptr_key(now)));
        texts.push((before.clone(), now.to_owned()));
    }
    requests.iter().map(|request| request.about(&texts)).collect()
}

/// Those of a cluster's PTR records.
fn flags(cluster: &str) -> String {
    let cluster: ClusterName = cluster.parse().expect("a valid name");
    PtrOwner::flags(&cluster).to_string()
}

/// The part of a PTR record's key that does not hold the address as it is written.
fn ptr_key(address: &str) -> String {
    let mut parts: Vec<&str> = address.split('.').take(3).collect();
    parts.reverse();
    format!("0.{}.IN-ADDR", parts.join("."))
}
