//! A Consul service that an import follows.
//!
//! A blocking query says when to look, and a plain read says what there is: the blocking one is
//! answered by the streaming backend, which goes on answering with what it had while a policy is
//! narrowed or all servers are gone, and proves no absence.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode};
use crate::consul::http::stream::{Layout, Malformed};
use crate::consul::read::blocking::BlockingQuery;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed};
use crate::consul::read::registrations::CATALOG_SERVICES;
use crate::consul::read::wire::decode;
use crate::domain::consul::record::{
    CLUSTER_META, NAMESPACE_META, SERVICE_META, SOURCE, SOURCE_META,
};
use crate::domain::import::instance::{Health, Instance, MAX_INSTANCES};
use crate::domain::import::source::Source;
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::kube::object::Protocol;

/// Names that are taken from the catalog: a hundred bytes each at the most that is usual make some
/// megabytes, and [`Create`](crate::domain::import::create::Create) makes far fewer Services.
const MAX_LISTED: usize = 50_000;

const INSTANCES: &str = "the instances of the service";

/// Meta key by which consul-k8s names the object that a registration is from.
const REFERENCE_META: &str = "external-k8s-ref-name";

/// The names of the catalog's services, asked for again and again.
#[derive(Debug)]
pub struct FollowedNames {
    changes: BlockingQuery,
}

/// A source that is asked for again and again.
#[derive(Debug)]
pub struct Followed {
    source: Source,
    changes: BlockingQuery,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    node: Node<'a>,
    #[serde(borrow)]
    service: Service<'a>,
    checks: Option<Vec<Check<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Node<'a> {
    #[serde(borrow)]
    address: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service<'a> {
    #[serde(borrow)]
    address: Option<Cow<'a, str>>,
    port: Option<i64>,
    #[serde(borrow)]
    kind: Option<Cow<'a, str>>,
    #[serde(rename = "Service", borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    tags: Option<Vec<Cow<'a, str>>>,
    #[serde(borrow)]
    meta: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check<'a> {
    #[serde(borrow)]
    status: Cow<'a, str>,
}

// === impl Followed ===

impl Followed {
    /// Nothing is asked yet; the first answer comes at once.
    pub fn new(source: Source) -> Self {
        let changes = BlockingQuery::by_index(request(&source, None));
        Self { source, changes }
    }

    /// Waits until the instances may have changed, a minute at most, and reads them.
    pub async fn next(&mut self, client: &Client) -> Result<Vec<Instance>, Unknown> {
        if let Err(error) = self.changed(client).await {
            self.changes.reset();
            return Err(failed(INSTANCES)(error));
        }
        self.read(client).await
    }

    /// Reads the instances. After a failure the next query comes at once: whatever made it fail may
    /// be over without any change of theirs.
    pub async fn read(&mut self, client: &Client) -> Result<Vec<Instance>, Unknown> {
        let read = self.read_once(client).await;
        if read.is_err() {
            self.changes.reset();
        }
        read
    }

    /// Consistently: a server that has just been elected answers other reads before it has applied
    /// its log, and then knows of no instance.
    async fn read_once(&self, client: &Client) -> Result<Vec<Instance>, Unknown> {
        let request = request(&self.source, Some(Consistency::Consistent)).listing();
        let (reply, evidence) = client.open(&request, INSTANCES).await?;
        let mut found = Vec::new();
        let entries =
            reply.into_found().await.map_err(failed(INSTANCES))?.items(Layout::Elements, |item| {
                if item.is_cut {
                    // Its checks may be among what is missing.
                    return Err(Malformed::Item {
                        expected: "an instance of at most 1 MiB",
                        reason: "it is larger".to_owned(),
                    });
                }
                let instance = decode::<Entry>("an instance", item.value)?.instance();
                // One more says that there are too many.
                if found.len() <= MAX_INSTANCES {
                    found.push(instance);
                }
                Ok(())
            });
        entries.await.map_err(failed(INSTANCES))?;
        certain(evidence, found.is_empty(), INSTANCES)?;
        Ok(found)
    }

    async fn changed(&mut self, client: &Client) -> Result<(), Error> {
        let reply = self.changes.next(client).await?.into_found().await?;
        // To its end, so that the connection can be used again.
        reply.items(Layout::Elements, |_| Ok(())).await
    }
}

fn request(source: &Source, consistency: Option<Consistency>) -> Request {
    let path = format!("/v1/health/service/{}", encode(&source.service));
    let mut request = match consistency {
        Some(consistency) => consistency.of_path(path),
        None => Request::get(path),
    };
    if let Some(datacenter) = &source.datacenter {
        request = request.parameter("dc", datacenter);
    }
    for tag in &source.tags {
        request = request.parameter("tag", tag);
    }
    if let Some(filter) = &source.filter {
        request = request.parameter("filter", filter);
    }
    request
}

// === impl Entry ===

impl Entry<'_> {
    fn instance(self) -> Instance {
        let statuses = self.checks.unwrap_or_default();
        let health = statuses.iter().map(|check| match &*check.status {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            _ => Health::Critical,
        });
        let service = self.service;
        let mut meta = service.meta.unwrap_or_default();
        let tags = service.tags.unwrap_or_default();
        let cluster: Option<Box<str>> = meta.remove(CLUSTER_META).map(Into::into);
        let is_tagged = |it: &Protocol| {
            cluster.is_some() && it.tag().is_some_and(|tag| tags.iter().any(|it| *it == tag))
        };
        let protocol = [Protocol::Udp, Protocol::Sctp].into_iter().find(is_tagged);
        let origin = cluster.is_none().then(|| origin(&meta, &service.name)).flatten();
        Instance {
            address: service.address.unwrap_or_default().into(),
            node_address: self.node.address.into(),
            port: service.port.and_then(|port| port.try_into().ok()).unwrap_or(0),
            health: health.max().unwrap_or(Health::Passing),
            cluster,
            protocol: protocol.unwrap_or_default(),
            is_proxy: service.kind.is_some_and(|kind| !kind.is_empty()),
            origin,
        }
    }
}

/// The Service from which consul-k8s made an instance of `name`, if it did. Older ones name only the
/// namespace, and may add that to the name.
fn origin(meta: &BTreeMap<Cow<str>, Cow<str>>, name: &str) -> Option<ObjectKey> {
    if meta.get(SOURCE_META).is_none_or(|source| *source != SOURCE) {
        return None;
    }
    let namespace = &**meta.get(NAMESPACE_META)?;
    let named = meta.get(REFERENCE_META).or_else(|| meta.get(SERVICE_META));
    let suffix = format!("-{namespace}");
    let name = named.map_or_else(|| name.strip_suffix(&suffix).unwrap_or(name), |it| &**it);
    Some(ObjectKey::new(namespace, name))
}

// === impl FollowedNames ===

impl FollowedNames {
    /// Of services that have an instance which no bridge of `cluster` made, that is no proxy (with
    /// `takes_proxies`: that may be one), has all of `tags` and passes `filter`. A Consul that does
    /// not know the filter gives all names.
    pub fn new(
        cluster: Option<&ClusterName>,
        takes_proxies: bool,
        tags: &[Box<str>],
        filter: Option<&str>,
    ) -> Self {
        let mut all: Vec<String> = Vec::new();
        all.extend(cluster.map(|it| format!("ServiceMeta[{CLUSTER_META:?}] != \"{it}\"")));
        if !takes_proxies {
            all.push("ServiceKind == \"\"".to_owned());
        }
        all.extend(tags.iter().map(|tag| format!("{tag:?} in ServiceTags")));
        all.extend(filter.map(|filter| format!("({filter})")));
        let mut request = Request::get("/v1/catalog/services");
        if !all.is_empty() {
            request = request.parameter("filter", &all.join(" and "));
        }
        Self { changes: BlockingQuery::by_index(request).without_burst() }
    }

    /// The names, once they may have changed; at most once a second, since Consul answers whenever
    /// any instance changes. What is missing may be hidden by the token's rights.
    pub async fn next(&mut self, client: &Client) -> Result<BTreeSet<Box<str>>, Unknown> {
        let read = self.read(client).await;
        if read.is_err() {
            self.changes.reset();
        }
        read.map_err(failed(CATALOG_SERVICES))
    }

    async fn read(&mut self, client: &Client) -> Result<BTreeSet<Box<str>>, Error> {
        let reply = self.changes.next(client).await?.into_found().await?;
        let mut found = BTreeSet::new();
        let names = reply.items(Layout::Members, |item| {
            let name: Cow<str> = decode("a service name", item.name.unwrap_or_default())?;
            // Those of its own are so many at most; what is missing proves nothing.
            if found.len() < MAX_LISTED {
                found.insert(name.into());
            }
            Ok(())
        });
        names.await?;
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::Router;
    use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
    use axum::routing::get;

    use super::*;
    use crate::consul::http::config::Config;

    const INSTANCE: &str = r#"{"Node": {"Address": "10.9.0.1"}, "Service": {"Service": "pg",
        "Address": "10.1.0.1", "Port": 5432}, "Checks": [{"Status": "warning"}]}"#;

    /// What an import makes of an answer: how many instances, or why there is none.
    async fn read(
        status: u16,
        headers: &[(&'static str, &'static str)],
        body: &str,
    ) -> Result<usize, Unknown> {
        crate::tls::install_provider();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let header =
            |&(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let headers: HeaderMap = headers.iter().map(header).collect();
        let answer = (StatusCode::from_u16(status).unwrap(), headers, body.to_owned());
        let answer = move || std::future::ready(answer.clone());
        let router = Router::new().route("/v1/health/service/pg", get(answer));
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let config = Config { address: address.parse().unwrap(), ..Config::default() };
        let client = Client::new(&config).unwrap();
        let source =
            Source { service: "pg".into(), datacenter: None, tags: [].into(), filter: None };
        let found = Followed::new(source).next(&client).await;
        server.abort();
        found.map(|it| it.len())
    }

    #[tokio::test]
    async fn a_busy_consul_says_how_long_it_wants_to_be_left_alone() {
        let asked = async |status, header| match read(status, &[("retry-after", header)], "").await
        {
            Err(Unknown::Failed { source, .. }) => source.retry_after(),
            other => panic!("{other:?}"),
        };
        assert_eq!(asked(429, "7").await, Some(Duration::from_secs(7)));
        assert_eq!(asked(503, "86400").await, Some(Duration::from_mins(1)));
        assert_eq!(asked(429, "soon").await, None);
        assert_eq!(asked(500, "7").await, None, "nobody sends it with that");
    }

    #[tokio::test]
    async fn a_broken_consul_shows_no_absence() {
        let index = ("x-consul-index", "7");
        let whole = format!("[{INSTANCE}]");
        let port = INSTANCE.replace("5432", "70000");
        for (status, headers, body) in [
            (200, &[index][..], ""),
            (200, &[index], "null"),
            (200, &[index], "{}"),
            (200, &[index], "[{}]"),
            (200, &[index], "[null]"),
            (200, &[index], &whole[..whole.len() - 1]),
            (200, &[index], &whole[..whole.len() / 2]),
            (200, &[index], "<html>no</html>"),
            (200, &[index, ("x-consul-default-acl-policy", "deny")], "[]"),
            (200, &[index, ("x-consul-results-filtered-by-acls", "true")], "[]"),
            (200, &[index, ("x-consul-results-filtered-by-acls", "true")], &whole),
            (403, &[], "ACL not found"),
            (404, &[], "[]"),
            (429, &[("retry-after", "30")], "[]"),
            (500, &[], "No cluster leader"),
            (503, &[], "[]"),
        ] {
            let found = read(status, headers, body).await;
            assert!(found.is_err(), "{status} {headers:?} {body:?}: {found:?}");
        }
        for (headers, body, wanted) in [
            (&[index][..], "[]", 0),
            (&[], "[]", 0),
            (&[("x-consul-index", "0")], &whole, 1),
            (&[("x-consul-index", "-3")], &whole, 1),
            (&[index], &format!("[{INSTANCE},{port}]"), 2),
        ] {
            let found = read(200, headers, body).await;
            assert_eq!(found.ok(), Some(wanted), "{headers:?} {body:?}");
        }
    }
}
