//! The edge to Kubernetes against a real API server, with the rights that are shipped.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use futures::StreamExt;
use futures::stream::BoxStream;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_consul::domain::kube::names::ObjectKey;
use kube_consul::domain::kube::object::{Kind, SeenObject, Subject, WatchEvent};
use kube_consul::domain::problem::{Problem, Reason};
use kube_consul::kubernetes::client::{
    Access, ClusterUid, Connected, EndpointSource, Environment, connect, endpoint_source,
    kube_system_uid, server_version,
};
use kube_consul::kubernetes::events::{Regarding, reporter};
use kube_consul::kubernetes::watch::{Notice, Relist, Watcher};
use kube_consul_stack::{
    Endpoint, KubectlProxy, Kubernetes, KubernetesOptions, ServiceKind, TcpLink, eventually,
    install_provider,
};
use serde_json::{Value, json};

use crate::support::{kubeconfig_without, manifest, shipped_token};

const DEADLINE: Duration = Duration::from_secs(20);

async fn connect_with(kubeconfig: PathBuf) -> Result<Connected> {
    install_provider();
    let access = Access { kubeconfig: Some(kubeconfig), ..Access::default() };
    Ok(connect(&access, &Environment::default()).await?)
}

async fn connect_as(cluster: &Kubernetes, token: &str) -> Result<Client> {
    Ok(connect_with(cluster.kubeconfig_for(token)?).await?.client)
}

/// The first of what `stream` says that `find` finds something in.
async fn find<T>(
    stream: &mut BoxStream<'static, Notice>,
    what: &str,
    mut find: impl FnMut(&Notice) -> Option<T>,
) -> Result<T> {
    let search = async {
        while let Some(notice) = stream.next().await {
            if let Some(found) = find(&notice) {
                return Ok(found);
            }
        }
        bail!("the stream ended")
    };
    tokio::time::timeout(DEADLINE, search).await.with_context(|| format!("no {what} came"))?
}

async fn find_event(stream: &mut BoxStream<'static, Notice>, wanted: WatchEvent) -> Result<()> {
    let what = format!("{wanted:?}");
    find(stream, &what, |notice| (*notice == Notice::Event(wanted.clone())).then_some(())).await
}

/// The first Service of this key that fulfils `is`.
async fn find_service(
    stream: &mut BoxStream<'static, Notice>,
    key: &ObjectKey,
    is: impl Fn(&kube_consul::domain::kube::object::Service) -> bool,
) -> Result<kube_consul::domain::kube::object::Service> {
    find(stream, &format!("Service {key}"), |notice| match notice {
        Notice::Event(WatchEvent::Seen(SeenObject::Service(found, service)))
            if found == key && is(service) =>
        {
            Some(service.clone())
        }
        _ => None,
    })
    .await
}

async fn trouble(stream: &mut BoxStream<'static, Notice>) -> Result<String> {
    find(stream, "trouble", |notice| match notice {
        Notice::Trouble(trouble) => Some(trouble.error.to_string()),
        _ => None,
    })
    .await
}

async fn annotate(cluster: &Kubernetes, key: &ObjectKey, name: &str, value: &str) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {name: value, "example.com/other": "x"}}});
    let services: Api<Service> = Api::namespaced(cluster.client()?, &key.namespace);
    services.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

async fn delete_service(cluster: &Kubernetes, key: &ObjectKey) -> Result<()> {
    let services: Api<Service> = Api::namespaced(cluster.client()?, &key.namespace);
    services.delete(&key.name, &DeleteParams::default()).await?;
    Ok(())
}

#[tokio::test]
async fn services_and_their_endpoints_are_seen_with_the_shipped_role() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let client = connect_as(cluster, &shipped_token(cluster).await?).await?;
    let namespace = cluster.namespace("seen").await?;
    let key = ObjectKey::new(namespace.as_str(), "web");
    let kind = ServiceKind::Selectorless;
    let made = cluster.service(&namespace, "web", kind, &[("http", 80)]).await?;

    let relist = Relist::default();
    let mut services = Watcher::new(client.clone()).services(relist.clone());
    find_event(&mut services, WatchEvent::ListStarted(Kind::Service)).await?;
    let seen = find_service(&mut services, &key, |_| true).await?;
    ensure!(Some(&*seen.uid) == made.metadata.uid.as_deref() && seen.created > 0, "{seen:?}");
    ensure!(seen.cluster_ips.len() == 1 && seen.ports[0].port == 80, "{seen:?}");
    find_event(&mut services, WatchEvent::ListCompleted(Kind::Service)).await?;

    annotate(cluster, &key, "kube-consul.io/service-name", "shop").await?;
    let seen = find_service(&mut services, &key, |it| !it.annotations.is_empty()).await?;
    ensure!(seen.annotations.len() == 1, "{seen:?}");

    let source = endpoint_source(&client).await?;
    ensure!(source == EndpointSource::EndpointSlices);
    let mut slices = Watcher::new(client).endpoints(source, Relist::default());
    find_event(&mut slices, WatchEvent::ListCompleted(Kind::EndpointSlice)).await?;
    let both = [Endpoint::ready("10.1.0.1"), Endpoint::unready("10.1.0.2")];
    cluster.endpoint_slice(&namespace, "web", "web-1", &both, &[("http", 8080)]).await?;
    let slice_key = ObjectKey::new(namespace.as_str(), "web-1");
    let slice = find(&mut slices, "slice", |notice| match notice {
        Notice::Event(WatchEvent::Seen(SeenObject::EndpointSlice(key, slice)))
            if *key == slice_key =>
        {
            Some(slice.clone())
        }
        _ => None,
    })
    .await?;
    let ready: Vec<_> = slice.endpoints.iter().map(|it| it.ready).collect();
    ensure!(&*slice.service == "web" && ready == [true, false], "{slice:?}");

    delete_service(cluster, &key).await?;
    find_event(&mut services, WatchEvent::Deleted(Kind::Service, key.clone())).await?;
    relist.request();
    find_event(&mut services, WatchEvent::ListStarted(Kind::Service)).await?;
    ensure!(!is_listed(&mut services, &key).await?, "a deleted Service was listed");
    Ok(())
}

#[tokio::test]
async fn the_cluster_is_known_by_its_uid_and_version() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let client = connect_as(cluster, &shipped_token(cluster).await?).await?;
    let namespaces: Api<Namespace> = Api::all(cluster.client()?);
    let uid = namespaces.get("kube-system").await?.metadata.uid.context("no uid")?;
    ensure!(kube_system_uid(&client).await? == ClusterUid::Known(uid));
    ensure!(server_version(&client).await?.starts_with("v1."));
    Ok(())
}

#[tokio::test]
async fn a_kubectl_proxy_is_enough() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let token = shipped_token(cluster).await?;
    let proxy = KubectlProxy::start(&cluster.kubeconfig_for(&token)?).await?;
    let access = Access { kube_url: Some(proxy.url().parse()?), ..Access::default() };
    install_provider();
    let client = connect(&access, &Environment::default()).await?.client;
    ensure!(matches!(kube_system_uid(&client).await?, ClusterUid::Known(_)));
    let mut services = Watcher::new(client).services(Relist::default());
    find_event(&mut services, WatchEvent::ListCompleted(Kind::Service)).await?;
    let namespace = cluster.namespace("proxy").await?;
    let kind = ServiceKind::Selectorless;
    cluster.service(&namespace, "web", kind, &[("http", 80)]).await?;
    find_service(&mut services, &ObjectKey::new(namespace, "web"), |_| true).await?;
    Ok(())
}

#[tokio::test]
async fn l1_what_happened_during_an_outage_is_relisted() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let token = shipped_token(cluster).await?;
    let link = TcpLink::start(cluster.address()).await?;
    let url = format!("https://{}", link.address());
    let client = connect_with(cluster.kubeconfig_at(&url, &token)?).await?.client;
    let namespace = cluster.namespace("cut").await?;
    let key = ObjectKey::new(namespace.as_str(), "web");
    let kind = ServiceKind::Selectorless;
    cluster.service(&namespace, "web", kind, &[("http", 80)]).await?;
    let mut services = Watcher::new(client).services(Relist::default());
    find_event(&mut services, WatchEvent::ListCompleted(Kind::Service)).await?;
    link.cut().await?;
    delete_service(cluster, &key).await?;
    let told = trouble(&mut services).await?;
    ensure!(told.contains("services"), "{told}");
    // The second attempt is refused too: the server is away.
    tokio::time::timeout(Duration::from_secs(3), services.next()).await.ok();
    link.restore().await?;
    find_event(&mut services, WatchEvent::ListStarted(Kind::Service)).await?;
    is_listed(&mut services, &key).await.and_then(|listed| {
        ensure!(!listed, "a deleted Service was listed");
        Ok(())
    })
}

#[tokio::test]
async fn a_connection_that_breaks_and_is_back_at_once_is_taken_up_where_it_broke() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let token = shipped_token(cluster).await?;
    let link = TcpLink::start(cluster.address()).await?;
    let url = format!("https://{}", link.address());
    let client = connect_with(cluster.kubeconfig_at(&url, &token)?).await?.client;
    let namespace = cluster.namespace("blink").await?;
    let key = ObjectKey::new(namespace.as_str(), "web");
    let kind = ServiceKind::Selectorless;
    cluster.service(&namespace, "web", kind, &[("http", 80)]).await?;
    let mut services = Watcher::new(client).services(Relist::default());
    find_event(&mut services, WatchEvent::ListCompleted(Kind::Service)).await?;
    link.cut().await?;
    delete_service(cluster, &key).await?;
    link.restore().await?;
    find_event(&mut services, WatchEvent::Deleted(Kind::Service, key)).await
}

/// Whether the rest of the list shows the Service.
async fn is_listed(stream: &mut BoxStream<'static, Notice>, key: &ObjectKey) -> Result<bool> {
    find(stream, "end of the list", |notice| match notice {
        Notice::Event(WatchEvent::Seen(SeenObject::Service(found, _))) if found == key => {
            Some(true)
        }
        Notice::Event(WatchEvent::ListCompleted(_)) => Some(false),
        _ => None,
    })
    .await
}

fn problem(message: &str) -> Problem {
    Problem::new(Reason::InvalidAnnotation, message)
}

async fn regarding(cluster: &Kubernetes, prefix: &str) -> Result<Regarding> {
    let namespace = cluster.namespace(prefix).await?;
    let kind = ServiceKind::Selectorless;
    let service = cluster.service(&namespace, "web", kind, &[("http", 80)]).await?;
    let uid = service.metadata.uid.map(Into::into);
    Ok(Regarding { kind: Subject::Service, key: ObjectKey::new(namespace, "web"), uid })
}

async fn counted(count: &AtomicU64, wanted: u64) -> Result<()> {
    eventually(DEADLINE, || async {
        let found = count.load(Ordering::Relaxed);
        ensure!(found == wanted, "counted {found}, want {wanted}");
        Ok(())
    })
    .await
}

/// Lets the time pass after which a repeated Event is written again.
async fn repeat_interval() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
}

#[tokio::test]
async fn problems_are_shown_by_kubectl_describe() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let client = connect_as(cluster, &shipped_token(cluster).await?).await?;
    let about = regarding(cluster, "events").await?;
    let (reporter, work) = reporter(client, "pod-1");
    let work = tokio::spawn(work);
    reporter.report(about.clone(), problem("expected a port, found \"first\""));
    reporter.report(about.clone(), problem("expected a weight, found \"second\""));
    counted(&reporter.counts().written, 2).await?;
    repeat_interval().await;
    reporter.report(about.clone(), problem("expected a port, found \"first\""));
    counted(&reporter.counts().written, 3).await?;
    let arguments = ["describe", "service", "web", "--namespace", &about.key.namespace];
    eventually(DEADLINE, || async {
        let text = cluster.kubectl(&arguments).await?;
        let row = |message: &str| text.lines().find(|line| line.contains(message));
        let first = row("expected a port, found \"first\"").unwrap_or_default();
        ensure!(first.contains("InvalidAnnotation") && first.contains("x2 over"), "{text}");
        ensure!(first.contains("Warning") && first.contains("kube-consul.io/bridge"), "{text}");
        ensure!(row("expected a weight, found \"second\"").is_some(), "{text}");
        Ok(())
    })
    .await?;
    drop(reporter);
    work.await?;
    Ok(())
}

/// A client with the shipped rights but for one verb on one resource.
async fn without(cluster: &Kubernetes, resource: &str, verb: &str) -> Result<Client> {
    Ok(connect_with(kubeconfig_without(cluster, resource, verb).await?).await?.client)
}

#[tokio::test]
async fn each_right_of_the_shipped_role_is_needed_to_watch() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    for (resource, kind) in [("services", Kind::Service), ("endpointslices", Kind::EndpointSlice)] {
        for verb in ["list", "watch"] {
            let client = without(cluster, resource, verb).await?;
            let mut stream = match kind {
                Kind::Service => Watcher::new(client).services(Relist::default()),
                Kind::EndpointSlice => Watcher::new(client)
                    .endpoints(EndpointSource::EndpointSlices, Relist::default()),
                _ => Watcher::new(client).nodes(Relist::default()),
            };
            if verb == "watch" {
                find_event(&mut stream, WatchEvent::ListCompleted(kind)).await?;
            }
            let told = trouble(&mut stream).await?;
            let expected = format!("expected the right to list and watch {resource}, found none");
            ensure!(told.starts_with(&expected), "{told}");
            ensure!(told.contains(&format!("cannot {verb} resource")), "{told}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn without_the_right_the_uid_is_denied() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let client = without(cluster, "namespaces", "get").await?;
    let ClusterUid::Denied(why) = kube_system_uid(&client).await? else { bail!("it was read") };
    ensure!(why.contains("HTTP 403"), "{why}");
    Ok(())
}

#[tokio::test]
async fn without_their_rights_events_are_counted_as_failed() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    for (verb, written) in [("create", 0), ("patch", 1)] {
        let about = regarding(cluster, "no-events").await?;
        let (reporter, work) = reporter(without(cluster, "events", verb).await?, "pod-1");
        let work = tokio::spawn(work);
        reporter.report(about.clone(), problem("first"));
        if written == 1 {
            counted(&reporter.counts().written, 1).await?;
            repeat_interval().await;
            reporter.report(about, problem("first"));
        }
        counted(&reporter.counts().failed, 1).await?;
        counted(&reporter.counts().written, written).await?;
        drop(reporter);
        work.await?;
    }
    Ok(())
}

#[tokio::test]
async fn endpoints_take_the_place_of_slices_that_the_api_does_not_have() -> Result<()> {
    let cluster = Kubernetes::start(KubernetesOptions::without_endpoint_slices()).await?;
    let token = shipped_token(&cluster).await?;
    cluster.apply_file(&manifest("optional/endpoints-rbac.yaml")).await?;
    let client = connect_as(&cluster, &token).await?;
    let source = endpoint_source(&client).await?;
    ensure!(source == EndpointSource::Endpoints);
    let mut endpoints = Watcher::new(client).endpoints(source, Relist::default());
    find_event(&mut endpoints, WatchEvent::ListCompleted(Kind::EndpointSlice)).await?;
    let object = |subsets: &Value| {
        json!({"apiVersion": "v1", "kind": "Endpoints", "subsets": subsets,
            "metadata": {"name": "db", "namespace": "default"}})
        .to_string()
    };
    let subset = |address: &str, port: u16| json!({"addresses": [{"ip": address}], "ports": [{"name": "sql", "port": port}]});
    cluster
        .apply_yaml(&object(&json!([subset("10.1.0.1", 5432), subset("10.1.0.2", 5433)])))
        .await?;
    let part = ObjectKey::new("default", "db/1");
    let seen = find(&mut endpoints, "second subset", |notice| match notice {
        Notice::Event(WatchEvent::Seen(SeenObject::EndpointSlice(key, slice))) if *key == part => {
            Some(slice.clone())
        }
        _ => None,
    })
    .await?;
    ensure!(&*seen.service == "db" && seen.ports[0].port == 5433, "{seen:?}");
    cluster.apply_yaml(&object(&json!([subset("10.1.0.1", 5432)]))).await?;
    find_event(&mut endpoints, WatchEvent::Deleted(Kind::EndpointSlice, part)).await?;
    cluster.stop().await
}
