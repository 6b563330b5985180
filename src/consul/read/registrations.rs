//! The cluster's registrations, with their readiness checks.

use std::collections::HashMap;

use crate::consul::http::client::Client;
use crate::consul::http::request::{Request, encode};
use crate::consul::http::stream::{Item, Layout};
use crate::consul::http::transport::Reply;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed};
use crate::consul::read::wire::{CheckEntry, ServiceEntry, decode};
use crate::domain::consul::record::{CLUSTER_META, Check, ObservedRegistration, READINESS_CHECK};
use crate::domain::consul::registration_id::sentinel_id;
use crate::domain::kube::names::ClusterName;

/// What a complete listing of registrations showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listing {
    /// How many registrations of the cluster it held, the sentinel not counted.
    pub registrations: usize,
    /// Whether the sentinel was among them. Only then is a registration absent that the callback
    /// was not given: see [`crate::consul::coordination::marker`].
    pub marker: bool,
}

/// The checks of ours by service ID: only what is not ready has one, so this is small.
type Checks = HashMap<Box<str>, Check>;

pub(in crate::consul) const AGENT_SERVICES: &str = "the agent's services";
pub(in crate::consul) const CATALOG_SERVICES: &str = "the catalog's services";
const CHECKS: &str = "the readiness checks";

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

    /// The checks of a node itself, by ID: an agent's own, or somebody's.
    pub(in crate::consul) async fn node_checks(
        &self,
        node: &str,
    ) -> Result<Vec<Box<str>>, Unknown> {
        let path = format!("/v1/health/node/{}", encode(node));
        // That none is visible without rights is told by the services, which need the same.
        let (reply, _) = self.open(&Consistency::Consistent.of_path(path), CHECKS).await?;
        let mut checks = Vec::new();
        let entries = reply.items(Layout::Elements, |item| {
            let entry: CheckEntry = decode("a check", item.value)?;
            if entry.service_id.is_empty() {
                checks.push((&*entry.check_id).into());
            }
            Ok(())
        });
        entries.await.map_err(failed(CHECKS))?;
        Ok(checks)
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
    let marker_id = sentinel_id(cluster);
    let mut listing = Listing { registrations: 0, marker: false };
    let items = reply.items(layout, |item: Item<'_>| {
        let mut entry: ServiceEntry = decode("a service", item.value)?;
        if item.is_cut {
            tracing::warn!(id = entry.id, "a registration in Consul is too large to be read whole");
            entry.mark_cut(cluster);
        }
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
