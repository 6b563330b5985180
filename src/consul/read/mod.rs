//! Reads that say how certain they are (invariant 1): a failed, denied or filtered read is
//! [`Unknown`], never empty.
//!
//! Listings are handed on item by item while they arrive. What a callback was given exists; what
//! it was not given is absent only if the whole call succeeded.

use std::collections::HashMap;

use serde::Deserialize;

use crate::consul::coordination::sentinel;
use crate::consul::http::client::{Client, Evidence, Reply, Request, encode, encode_key};
use crate::consul::http::error::Error;
use crate::consul::http::stream::{Item, Layout};
use crate::consul::http::wire::{CheckEntry, KeyEntry, NamedInstance, ServiceEntry, decode};
use crate::domain::consul::names::{ForeignNames, Holder, Holders, lookup_form};
use crate::domain::consul::record::{
    CLUSTER_META, Check, ObservedPtr, ObservedRegistration, READINESS_CHECK, SOURCE, SOURCE_META,
};
use crate::domain::kube::names::ClusterName;

/// Every PTR key begins with this: the host part of an IPv4 key and of an IPv6 key.
const REVERSE_PREFIX: &str = "0.";

/// Why a read does not tell what there is. It removes nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unknown {
    /// The request failed, or its answer was not whole.
    #[error("cannot read {what}")]
    Failed {
        /// What was read.
        what: &'static str,
        /// Why.
        source: Error,
    },
    /// The token's rights hide a part.
    #[error(
        "the token's rights hide a part of {what}: give it the rights of the policy for its sink in manifests/consul"
    )]
    Filtered {
        /// What was read.
        what: &'static str,
    },
    /// Empty, to a request without a token, where Consul denies by default: it would look the
    /// same if there were something.
    #[error(
        "{what}: expected a token, because Consul denies by default, found none; an empty answer \
         proves nothing then: give a token"
    )]
    NotAuthoritative {
        /// What was read.
        what: &'static str,
    },
    /// Our marker is not among what was read: Consul lost its state, or this is another Consul.
    #[error("our marker is not among {what}: it has to be written and read again first")]
    MarkerMissing {
        /// What was read.
        what: &'static str,
    },
}

/// What a complete listing of registrations showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// How many registrations of the cluster it held, the sentinel not counted.
    pub registrations: usize,
    /// Whether the sentinel was among them. Only then is a registration absent that the callback
    /// was not given: see [`crate::consul::coordination::marker`].
    pub marker: bool,
}

/// How fresh a read of the servers' state has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// The leader's own state, by its lease: stale for a moment after it was cut off.
    Default,
    /// The leader asks the others first.
    Consistent,
}

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentInfo {
    /// Consul's version, for example `1.20.1`.
    pub version: String,
    /// Its datacenter.
    pub datacenter: String,
    /// Its node's name.
    pub node: String,
    /// The domain that its DNS answers for, without the dot at the end.
    pub dns_domain: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentSelf {
    config: AgentConfig,
    debug_config: AgentDebugConfig,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AgentConfig {
    version: String,
    datacenter: String,
    node_name: String,
}

#[derive(Deserialize)]
struct AgentDebugConfig {
    #[serde(rename = "DNSDomain")]
    dns_domain: String,
}

/// The checks of ours by service ID: only what is not ready has one, so this is small.
type Checks = HashMap<Box<str>, Check>;

pub(in crate::consul) const AGENT_SERVICES: &str = "the agent's services";
pub(in crate::consul) const CATALOG_SERVICES: &str = "the catalog's services";
const CHECKS: &str = "the readiness checks";
const REVERSE_RECORDS: &str = "the PTR records";

// === impl Client ===

impl Client {
    /// The cluster's registrations in the agent. They equal what we wrote, unless somebody
    /// changed them.
    pub async fn agent_registrations(
        &self,
        cluster: &ClusterName,
        each: impl FnMut(ObservedRegistration) + Send,
    ) -> Result<Listing, Unknown> {
        let checks = self.checks("/v1/agent/checks", Layout::Members).await?;
        let request = marked(Request::get("/v1/agent/services"), "Meta", cluster).listing();
        let (reply, evidence) = self.open(&request, AGENT_SERVICES).await?;
        let listing =
            registrations(reply, Layout::Members, AGENT_SERVICES, cluster, checks, each).await?;
        let empty = listing.registrations == 0 && !listing.marker;
        certain(evidence, empty, AGENT_SERVICES).map(|()| listing)
    }

    /// The cluster's registrations on one node of the catalog; none on a node that is not
    /// there. The sentinel on it is told apart as in the agent.
    pub async fn catalog_registrations(
        &self,
        node: &str,
        cluster: &ClusterName,
        consistency: Consistency,
        each: impl FnMut(ObservedRegistration) + Send,
    ) -> Result<Listing, Unknown> {
        let node = encode(node);
        let checks = consistency.of_path(format!("/v1/health/node/{node}"));
        let checks = self.checks_of(checks, Layout::Elements).await?;
        let services = consistency.of_path(format!("/v1/catalog/node-services/{node}"));
        let request = marked(services, "Meta", cluster).listing();
        let (reply, evidence) = self.open(&request, CATALOG_SERVICES).await?;
        let layout = Layout::ElementsOf("Services");
        let listing = registrations(reply, layout, CATALOG_SERVICES, cluster, checks, each).await?;
        let empty = listing.registrations == 0 && !listing.marker;
        certain(evidence, empty, CATALOG_SERVICES).map(|()| listing)
    }

    /// All KV entries that may be PTR records, foreign ones too.
    pub async fn ptr_records(
        &self,
        consistency: Consistency,
        mut each: impl FnMut(ObservedPtr) + Send,
    ) -> Result<usize, Unknown> {
        let path = format!("/v1/kv/{REVERSE_PREFIX}");
        let request = consistency.of_path(path).flag("recurse").listing();
        let (reply, evidence) = self.open(&request, REVERSE_RECORDS).await?;
        let mut count = 0;
        // 404 is how the KV store says that there is none.
        if reply.is_found() {
            let entries = reply.items(Layout::Elements, |item| {
                each(decode::<KeyEntry>("a KV entry", item.value)?.observed());
                count += 1;
                Ok(())
            });
            entries.await.map_err(failed(REVERSE_RECORDS))?;
        }
        certain(evidence, count == 0, REVERSE_RECORDS).map(|()| count)
    }

    /// One PTR record as the leader has it now, after a failed check-and-set.
    pub async fn ptr_record(&self, key: &str) -> Result<Option<ObservedPtr>, Unknown> {
        let (entry, _) = self.kv(&Consistency::Consistent.of_key(key), REVERSE_RECORDS).await?;
        Ok(entry.map(KeyEntry::observed))
    }

    /// The KV entry that this request reads, if there is one, and the index of the answer, with
    /// which the next request waits for a change (0: it has none).
    pub(in crate::consul) async fn kv(
        &self,
        request: &Request,
        what: &'static str,
    ) -> Result<(Option<KeyEntry>, u64), Unknown> {
        let (reply, evidence) = self.open(request, what).await?;
        let index = reply.header("X-Consul-Index").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut entry = None;
        // 404 is how the KV store says that there is none.
        if reply.is_found() {
            let entries = reply.items(Layout::Elements, |item| {
                entry = Some(decode("a KV entry", item.value)?);
                Ok(())
            });
            entries.await.map_err(failed(what))?;
        }
        certain(evidence, entry.is_none(), what).map(|()| (entry, index))
    }

    /// The names under which others than the bridges of `cluster` hold instances, and whether
    /// these hold some there too. `is_held` are the names that need no answer: those that we hold
    /// already.
    ///
    /// A Consul that does not know the filter ignores it and lists all names: these are then
    /// looked up one by one, but for those held.
    pub async fn foreign_names(
        &self,
        cluster: &ClusterName,
        is_held: impl Fn(&str) -> bool + Send + Sync,
    ) -> Result<ForeignNames, Unknown> {
        let mut foreign = ForeignNames::new();
        if self.heeds_filters().await? {
            let evidence = self
                .service_names(&others_filter(cluster), |name| {
                    let others = Holder::Kubernetes { cluster: None };
                    foreign.insert(lookup_form(name).into(), Holders { others, ours: false });
                })
                .await?;
            certain(evidence, foreign.is_empty(), CATALOG_SERVICES)?;
            let mut note = |name: &str, change: fn(&mut Holders)| {
                if let Some(holders) = foreign.get_mut(&*lookup_form(name)) {
                    change(holders);
                }
            };
            let not_kubernetes = |name: &str| note(name, |it| it.others = Holder::Other);
            self.service_names(&not_kubernetes_filter(), not_kubernetes).await?;
            let ours = |name: &str| note(name, |it| it.ours = true);
            self.service_names(&cluster_filter("ServiceMeta", cluster), ours).await?;
            return Ok(foreign);
        }
        let mut names: Vec<String> = Vec::new();
        self.service_names("", |name| {
            if !is_held(name) {
                names.push(name.to_owned());
            }
        })
        .await?;
        for name in names {
            if let Some(holders) = self.holders(&name, cluster).await? {
                foreign.insert(lookup_form(&name).into(), holders);
            }
        }
        Ok(foreign)
    }

    /// Who else than the bridges of `cluster` holds instances under a name.
    pub async fn holders(
        &self,
        name: &str,
        cluster: &ClusterName,
    ) -> Result<Option<Holders>, Unknown> {
        let path = format!("/v1/catalog/service/{}", encode(name));
        let (reply, evidence) = self.open(&Request::get(path).listing(), CATALOG_SERVICES).await?;
        let (mut others, mut ours) = (None, false);
        let mut count = 0;
        let instances = reply.items(Layout::Elements, |item| {
            let instance: NamedInstance = decode("an instance", item.value)?;
            count += 1;
            match instance.holder(cluster) {
                None => ours = true,
                holder => others = others.take().max(holder),
            }
            Ok(())
        });
        instances.await.map_err(failed(CATALOG_SERVICES))?;
        certain(evidence, count == 0, CATALOG_SERVICES)?;
        Ok(others.map(|others| Holders { others, ours }))
    }

    /// Whether Consul filters the names of services: a filter that no service passes shows it.
    pub(in crate::consul) async fn heeds_filters(&self) -> Result<bool, Unknown> {
        let mut heeded = true;
        self.service_names(r#"ServiceName == """#, |_| heeded = false).await?;
        Ok(heeded)
    }

    /// Service names that pass the filter.
    pub(in crate::consul) async fn service_names(
        &self,
        filter: &str,
        mut each: impl FnMut(&str) + Send,
    ) -> Result<Evidence, Unknown> {
        let mut request = Request::get("/v1/catalog/services").listing();
        if !filter.is_empty() {
            request = request.parameter("filter", filter);
        }
        let (reply, evidence) = self.open(&request, CATALOG_SERVICES).await?;
        let names = reply.items(Layout::Members, |item| {
            let name: std::borrow::Cow<str> =
                decode("a service name", item.name.unwrap_or_default())?;
            each(&name);
            Ok(())
        });
        names.await.map_err(failed(CATALOG_SERVICES))?;
        Ok(evidence)
    }

    /// What the agent says of itself. Needs the right `agent:read`.
    pub async fn agent_self(&self) -> Result<AgentInfo, Error> {
        let reply = self.send(&Request::get("/v1/agent/self")).await?.into_found().await?;
        let AgentSelf { config, debug_config } = reply.json().await?;
        Ok(AgentInfo {
            version: config.version,
            datacenter: config.datacenter,
            node: config.node_name,
            dns_domain: debug_config.dns_domain.trim_end_matches('.').to_owned(),
        })
    }

    /// Address of the servers' leader; none while there is none. Needs no right.
    pub async fn leader(&self) -> Result<Option<String>, Error> {
        let reply = self.send(&Request::get("/v1/status/leader")).await?.into_found().await?;
        let leader: String = reply.json().await?;
        Ok(Some(leader).filter(|leader| !leader.is_empty()))
    }

    async fn checks(&self, path: &str, layout: Layout) -> Result<Checks, Unknown> {
        self.checks_of(Request::get(path), layout).await
    }

    async fn checks_of(&self, request: Request, layout: Layout) -> Result<Checks, Unknown> {
        let filter = format!("Name == {READINESS_CHECK:?}");
        let request = request.parameter("filter", &filter).listing();
        // That none is visible without rights is told by the services, which need the same.
        let (reply, _) = self.open(&request, CHECKS).await?;
        let mut checks = Checks::new();
        let entries = reply.items(layout, |item| {
            let entry: CheckEntry = decode("a check", item.value)?;
            if let Some(check) = entry.readiness() {
                checks.insert((&*entry.service_id).into(), check);
            }
            Ok(())
        });
        entries.await.map_err(failed(CHECKS))?;
        Ok(checks)
    }

    /// Sends a read and takes what its headers say. A filtered answer ends here.
    pub(in crate::consul) async fn open(
        &self,
        request: &Request,
        what: &'static str,
    ) -> Result<(Reply, Evidence), Unknown> {
        let reply = self.send_read(request).await.map_err(failed(what))?;
        let evidence = reply.evidence();
        if evidence.filtered { Err(Unknown::Filtered { what }) } else { Ok((reply, evidence)) }
    }
}

/// The services of a listing, with their checks.
async fn registrations(
    reply: Reply,
    layout: Layout,
    what: &'static str,
    cluster: &ClusterName,
    mut checks: Checks,
    mut each: impl FnMut(ObservedRegistration) + Send,
) -> Result<Listing, Unknown> {
    let reply = reply.into_found().await.map_err(failed(what))?;
    let marker_id = sentinel::id(cluster);
    let mut listing = Listing { registrations: 0, marker: false };
    let items = reply.items(layout, |item: Item<'_>| {
        let entry: ServiceEntry = decode("a service", item.value)?;
        // Filtered here too: a Consul that does not know the filter ignores it.
        if !entry.is_of(cluster.as_str()) {
            return Ok(());
        }
        if *entry.id == *marker_id {
            listing.marker = true;
        } else {
            let check = checks.remove(&entry.id).unwrap_or(Check::None);
            listing.registrations += 1;
            each(entry.observed(check));
        }
        Ok(())
    });
    items.await.map_err(failed(what))?;
    Ok(listing)
}

// === impl Consistency ===

impl Consistency {
    pub(in crate::consul) fn of_path(self, path: String) -> Request {
        match self {
            Consistency::Default => Request::get(path),
            Consistency::Consistent => Request::get(path).flag("consistent"),
        }
    }

    /// The request of one KV key.
    pub(in crate::consul) fn of_key(self, key: &str) -> Request {
        self.of_path(format!("/v1/kv/{}", encode_key(key)))
    }
}

/// Only what carries the cluster's mark.
pub(in crate::consul) fn marked(request: Request, field: &str, cluster: &ClusterName) -> Request {
    request.parameter("filter", &cluster_filter(field, cluster))
}

/// The filter that what carries the cluster's mark passes; `field` is what the endpoint calls its
/// meta.
pub(in crate::consul) fn cluster_filter(field: &str, cluster: &ClusterName) -> String {
    // A cluster's name is a label: nothing in it needs quoting.
    format!("{field}[{CLUSTER_META:?}] == \"{cluster}\"")
}

/// Instances that no bridge of the cluster made.
fn others_filter(cluster: &ClusterName) -> String {
    format!("ServiceMeta[{CLUSTER_META:?}] != \"{cluster}\"")
}

/// Instances that no sync of Kubernetes made: neither a bridge nor consul-k8s.
fn not_kubernetes_filter() -> String {
    format!("{CLUSTER_META:?} not in ServiceMeta and ServiceMeta[{SOURCE_META:?}] != {SOURCE:?}")
}

/// Invariant 1 for an answer that came whole.
pub(in crate::consul) fn certain(
    evidence: Evidence,
    empty: bool,
    what: &'static str,
) -> Result<(), Unknown> {
    if empty && !evidence.empty_is_true() {
        Err(Unknown::NotAuthoritative { what })
    } else {
        Ok(())
    }
}

pub(in crate::consul) fn failed(what: &'static str) -> impl Fn(Error) -> Unknown {
    move |source| Unknown::Failed { what, source }
}
