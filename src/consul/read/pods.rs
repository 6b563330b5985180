//! A node daemon's registrations, in its agent and in the catalog.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use serde::Deserialize;

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode};
use crate::consul::http::stream::{Layout, Malformed};
use crate::consul::read::blocking::BlockingQuery;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed};
use crate::consul::read::registrations::AGENT_SERVICES;
use crate::consul::read::wire::decode;
use crate::domain::hook::duration;
use crate::domain::node::exchange::{Entry, Found};
use crate::domain::node::wanted::{CheckStatus, Registration};

/// What is ours, and what has an ID of ours without being so.
const FILTER: &str =
    "Meta[\"external-sync-source\"] == \"katalog-sync\" or ID matches \"^katalog-sync_\"";
/// Beginning of our IDs.
const PREFIX: &str = "katalog-sync_";
const CHECKS: &str = "the agent's checks";
/// Of a service in the catalog, what is ours.
const OURS_IN_CATALOG: &str = "Service.Meta[\"external-sync-source\"] == \"katalog-sync\"";
const CATALOG: &str = "the service in the catalog";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: Box<str>,
    #[serde(rename = "Service")]
    name: Box<str>,
    tags: Option<Vec<String>>,
    meta: Option<BTreeMap<String, String>>,
    #[serde(default)]
    port: i64,
    #[serde(default)]
    address: Box<str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check<'a> {
    #[serde(rename = "CheckID", borrow)]
    id: Cow<'a, str>,
    #[serde(rename = "ServiceID", borrow)]
    service: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(borrow)]
    output: Cow<'a, str>,
    #[serde(borrow, default)]
    r#type: Option<Cow<'a, str>>,
    /// Of our own checks the TTL.
    #[serde(borrow, default)]
    timeout: Option<Cow<'a, str>>,
}

/// A TTL check of a service.
struct TtlCheck {
    status: CheckStatus,
    output: Box<str>,
    ttl: Option<Duration>,
}

/// Reads what the agent has of ours, and what has an ID of ours.
pub async fn agent(client: &Client) -> Result<Vec<Found>, Unknown> {
    let request = Request::get("/v1/agent/services").parameter("filter", FILTER).listing();
    let (reply, evidence) = client.open(&request, AGENT_SERVICES).await?;
    let mut services = Vec::new();
    let reply = reply.into_found().await.map_err(failed(AGENT_SERVICES))?;
    let items = reply.items(Layout::Members, |item| {
        if item.is_cut {
            return Err(too_large());
        }
        let service: Service = decode("a service", item.value)?;
        // A Consul that does not know the filter ignores it.
        let is_ours = |meta: &BTreeMap<String, String>| {
            meta.get("external-sync-source").is_some_and(|it| it == "katalog-sync")
        };
        if service.id.starts_with(PREFIX) || service.meta.as_ref().is_some_and(is_ours) {
            services.push(service);
        }
        Ok(())
    });
    items.await.map_err(failed(AGENT_SERVICES))?;
    certain(evidence, services.is_empty(), AGENT_SERVICES)?;
    let mut checks = if services.is_empty() { HashMap::new() } else { checks(client).await? };
    let found = services.into_iter().map(|service| {
        let check = checks.remove(&service.id);
        let ttl = check.as_ref().and_then(|check| check.ttl);
        let registration = Registration {
            id: service.id,
            name: service.name,
            address: service.address,
            port: u16::try_from(service.port).unwrap_or_default(),
            tags: service.tags.unwrap_or_default().into(),
            meta: service.meta.unwrap_or_default().into(),
            ttl,
            deregister_critical_after: None,
        };
        Found { registration, check: check.map(|check| (check.status, check.output)) }
    });
    Ok(found.collect())
}

/// The TTL checks that have the ID of their service.
async fn checks(client: &Client) -> Result<HashMap<Box<str>, TtlCheck>, Unknown> {
    let request = Request::get("/v1/agent/checks").listing();
    let (reply, _) = client.open(&request, CHECKS).await?;
    let mut checks = HashMap::new();
    let reply = reply.into_found().await.map_err(failed(CHECKS))?;
    let items = reply.items(Layout::Members, |item| {
        if item.is_cut {
            return Err(too_large());
        }
        let check: Check<'_> = decode("a check", item.value)?;
        // Older agents do not say of which type a check is.
        let is_ttl = check.r#type.as_deref().is_none_or(|it| it.is_empty() || it == "ttl");
        if check.id == check.service
            && is_ttl
            && let Some(status) = CheckStatus::parse(&check.status)
        {
            let ttl = check.timeout.as_deref().and_then(duration::parse).filter(|it| !it.is_zero());
            let output = (&*check.output).into();
            checks.insert((&*check.id).into(), TtlCheck { status, output, ttl });
        }
        Ok(())
    });
    items.await.map_err(failed(CHECKS))?;
    Ok(checks)
}

fn too_large() -> Malformed {
    let reason = "it is larger".to_owned();
    Malformed::Item { expected: "an item of at most 1 MiB", reason }
}

/// Waits until the agent's service of this ID is another one, or gone: it may have lost its state.
/// A minute at most. A failed request is an error: an agent that cannot be asked lost nothing so far.
pub async fn agent_changed(client: &Client, id: &str) -> Result<(), Error> {
    let request = Request::get(format!("/v1/agent/service/{}", encode(id)));
    let reply = client.send(&request).await?;
    if !reply.is_found() {
        return Ok(());
    }
    let hash = reply.header("X-Consul-ContentHash").unwrap_or_default().to_owned();
    let mut query = BlockingQuery::by_hash(request, &hash);
    query.next(client).await.map(drop)
}

/// A Consul service whose entries in the catalog are followed.
#[derive(Debug)]
pub struct CatalogService {
    client: Client,
    request: Request,
    changes: BlockingQuery,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthEntry {
    service: InCatalog,
    checks: Option<Vec<HealthCheck>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InCatalog {
    #[serde(rename = "ID")]
    id: Box<str>,
    #[serde(default)]
    address: Box<str>,
    #[serde(default)]
    port: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthCheck {
    #[serde(rename = "CheckID")]
    id: Box<str>,
    status: Box<str>,
}

// === impl CatalogService ===

impl CatalogService {
    /// Nothing is asked yet; the first answer comes at once.
    pub fn new(client: Client, name: &str) -> Self {
        let path = format!("/v1/health/service/{}", encode(name));
        let request =
            Consistency::Leader.of_path(path).parameter("filter", OURS_IN_CATALOG).listing();
        let path = format!("/v1/health/service/{}", encode(name));
        let changes = Request::get(path).parameter("filter", OURS_IN_CATALOG);
        Self { client, request, changes: BlockingQuery::by_index(changes) }
    }

    /// Waits until the service may have changed, a minute at most, and reads it: a streamed answer
    /// wakes and proves nothing.
    pub async fn next(&mut self) -> Result<Vec<Entry>, Unknown> {
        let changed = async {
            let reply = self.changes.next(&self.client).await?.into_found().await?;
            reply.items(Layout::Elements, |_| Ok(())).await
        };
        if let Err(error) = changed.await {
            self.changes.reset();
            return Err(failed(CATALOG)(error));
        }
        self.read().await
    }

    /// Reads it.
    pub async fn read(&mut self) -> Result<Vec<Entry>, Unknown> {
        let read = self.read_once().await;
        if read.is_err() {
            self.changes.reset();
        }
        read
    }

    async fn read_once(&self) -> Result<Vec<Entry>, Unknown> {
        let (reply, evidence) = self.client.open(&self.request, CATALOG).await?;
        let mut found = Vec::new();
        let reply = reply.into_found().await.map_err(failed(CATALOG))?;
        let items = reply.items(Layout::Elements, |item| {
            if item.is_cut {
                return Err(too_large());
            }
            let HealthEntry { service, checks } = decode("an instance", item.value)?;
            let mut checks = checks.unwrap_or_default().into_iter();
            let own = checks.find(|check| check.id == service.id);
            found.push(Entry {
                status: own.and_then(|check| CheckStatus::parse(&check.status)),
                id: service.id,
                address: service.address,
                port: u16::try_from(service.port).unwrap_or_default(),
            });
            Ok(())
        });
        items.await.map_err(failed(CATALOG))?;
        certain(evidence, found.is_empty(), CATALOG)?;
        Ok(found)
    }
}
