//! Everything that carries the mark of one program (invariant: ownership), for its removal.
//!
//! Kept here: what is not shown by a complete and authoritative reading counts as there
//! (invariant: evidence).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode};
use crate::consul::http::stream::Layout;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed};
use crate::consul::read::nodes::{ADDRESS, NodeEntry};
use crate::consul::read::registrations::{CATALOG_SERVICES, cluster_filter, marked};
use crate::consul::read::wire::{ServiceEntry, decode};
use crate::domain::consul::record::{CLUSTER_META, NAMESPACE_META, PtrOwner, SOURCE, SOURCE_META};
use crate::domain::kube::names::ClusterName;

/// Other nodes that are reported one by one; a cluster has as many as bridges were ever run beside
/// an agent.
const MAX_OTHER_NODES: usize = 100;

/// How often a name may be listed and have no instance a moment later: each is a service that
/// went just then.
const MAX_VANISHED: usize = 10;

/// A synthetic node with the cluster's mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedNode {
    /// Its name.
    pub name: Box<str>,
    /// Whether a bridge made it. One with another address is some agent's, whose operator gave
    /// it our mark.
    pub synthetic: bool,
}

/// What is registered on a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OnNode {
    /// What is to be removed.
    pub marked: Vec<MarkedService>,
    /// What is not: service IDs, and checks of the node itself where those were asked for.
    pub others: Vec<Box<str>>,
}

/// A service that is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedService {
    /// The service ID.
    pub id: Box<str>,
    /// The service name, which the ACL asks for.
    pub name: Box<str>,
    /// The Kubernetes namespace that it is from, as its meta says.
    pub namespace: Box<str>,
}

/// What marks the services that are to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// That of this cluster's bridge.
    Cluster(ClusterName),
    /// That of consul-k8s's catalog sync: `external-source` is `kubernetes`, and no bridge's
    /// mark beside it.
    ConsulK8s,
}

/// A KV entry that is to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkedKey {
    /// The key.
    pub key: Box<str>,
    /// Its `ModifyIndex`.
    pub index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceEntry {
    node: Box<str>,
    service_meta: Option<BTreeMap<String, String>>,
}

// === impl Mark ===

impl Mark {
    fn filter(&self) -> String {
        match self {
            Mark::Cluster(cluster) => cluster_filter("Meta", cluster),
            Mark::ConsulK8s => {
                format!("Meta[{SOURCE_META:?}] == {SOURCE:?} and {CLUSTER_META:?} not in Meta")
            }
        }
    }

    fn is_on(&self, entry: &ServiceEntry) -> bool {
        match self {
            Mark::Cluster(cluster) => entry.is_of(cluster.as_str()),
            Mark::ConsulK8s => {
                entry.meta(SOURCE_META) == Some(SOURCE) && entry.meta(CLUSTER_META).is_none()
            }
        }
    }
}

// === impl Client ===

impl Client {
    /// The catalog's nodes with the cluster's mark, by name.
    pub async fn marked_nodes(&self, cluster: &ClusterName) -> Result<Vec<MarkedNode>, Unknown> {
        let mut nodes = Vec::new();
        let each = |NodeEntry { node, address, .. }| {
            nodes.push(MarkedNode { name: node, synthetic: *address == *ADDRESS });
        };
        self.marked_entries(cluster, Consistency::Consistent, each).await?;
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    /// What is registered on a node of the catalog, as the leader has it now; nothing on one that
    /// is not there.
    pub async fn on_node(&self, node: &str, mark: &Mark) -> Result<OnNode, Unknown> {
        let request = node_services(node).listing();
        self.services(&request, Layout::ElementsOf("Services"), mark).await
    }

    /// The same of a node that is to be removed if nothing is left on it. No listing, so it has the
    /// deadline of a short answer: others wait for it.
    pub async fn left_on_node(&self, node: &str, mark: &Mark) -> Result<OnNode, Unknown> {
        let services = node_services(node);
        let mut found = self.services(&services, Layout::ElementsOf("Services"), mark).await?;
        let checks = self.node_checks(node).await?.into_iter();
        found.others.extend(checks.map(|id| format!("check {id}").into()));
        Ok(found)
    }

    /// What a Consul agent has with the mark.
    pub async fn in_agent(&self, mark: &Mark) -> Result<Vec<MarkedService>, Unknown> {
        let request = Request::get("/v1/agent/services").parameter("filter", &mark.filter());
        let found = self.services(&request.listing(), Layout::Members, mark).await?;
        Ok(found.marked)
    }

    async fn services(
        &self,
        request: &Request,
        layout: Layout,
        mark: &Mark,
    ) -> Result<OnNode, Unknown> {
        let (reply, evidence) = self.open(request, CATALOG_SERVICES).await?;
        let reply = reply.into_found().await.map_err(failed(CATALOG_SERVICES))?;
        let mut found = OnNode::default();
        let entries = reply.items(layout, |item| {
            let mut entry: ServiceEntry = decode("a service", item.value)?;
            if let (true, Mark::Cluster(cluster)) = (item.is_cut, mark) {
                entry.mark_cut(cluster);
            }
            if mark.is_on(&entry) {
                let namespace = entry.meta(NAMESPACE_META).unwrap_or_default().into();
                found.marked.push(MarkedService { id: entry.id, name: entry.service, namespace });
            } else {
                found.others.push(entry.id);
            }
            Ok(())
        });
        entries.await.map_err(failed(CATALOG_SERVICES))?;
        let empty = found.marked.is_empty() && found.others.is_empty();
        certain(evidence, empty, CATALOG_SERVICES)?;
        found.marked.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(found)
    }

    /// The nodes of the catalog, but for `known`, on which the cluster has services: at most
    /// [`MAX_OTHER_NODES`] of them. None only if there is none.
    ///
    /// Each request for the names leaves out the nodes that are found already, so the cost goes
    /// with the number of nodes, not with that of services.
    pub async fn other_nodes(
        &self,
        cluster: &ClusterName,
        known: &BTreeSet<Box<str>>,
    ) -> Result<BTreeSet<Box<str>>, Unknown> {
        let mut found = BTreeSet::new();
        if !self.heeds_filters().await? {
            // All names, one by one, as long as it takes.
            let mut names = Vec::new();
            let evidence = self.service_names("", |name| names.push(name.to_owned())).await?;
            certain(evidence, names.is_empty(), CATALOG_SERVICES)?;
            for name in names {
                found.extend(self.nodes_of(&name, cluster).await?);
            }
            found.retain(|node| !known.contains(node));
            return Ok(found);
        }
        let mut vanished = 0;
        while found.len() < MAX_OTHER_NODES {
            let mut filter = cluster_filter("ServiceMeta", cluster);
            for node in known.iter().chain(&found) {
                filter.push_str(" and Node != ");
                filter.push_str(&quoted(node));
            }
            let mut first = None;
            let note = |name: &str| {
                first.get_or_insert_with(|| name.to_owned());
            };
            let evidence = self.service_names(&filter, note).await?;
            certain(evidence, first.is_none(), CATALOG_SERVICES)?;
            let Some(name) = first else { break };
            let nodes = self.nodes_of(&name, cluster).await?;
            let before = found.len();
            found.extend(nodes.into_iter().filter(|node| !known.contains(node)));
            if found.len() > before {
                continue;
            }
            // It went between the two requests; if it did not, the two contradict each other.
            vanished += 1;
            if vanished == MAX_VANISHED {
                let reason = format!("expected an instance of {name:?}, found none");
                let source = Error::Garbled { request: "GET /v1/catalog/service".into(), reason };
                return Err(Unknown::Failed { what: CATALOG_SERVICES, source });
            }
        }
        Ok(found)
    }

    async fn nodes_of(
        &self,
        name: &str,
        cluster: &ClusterName,
    ) -> Result<BTreeSet<Box<str>>, Unknown> {
        let path = format!("/v1/catalog/service/{}", encode(name));
        let request = Consistency::Leader.of_path(path);
        let request = marked(request, "ServiceMeta", cluster).listing();
        let (reply, _) = self.open(&request, CATALOG_SERVICES).await?;
        let reply = reply.into_found().await.map_err(failed(CATALOG_SERVICES))?;
        let mut nodes = BTreeSet::new();
        let entries = reply.items(Layout::Elements, |item| {
            let InstanceEntry { node, service_meta } = decode("an instance", item.value)?;
            let mark = service_meta.as_ref().and_then(|meta| meta.get(CLUSTER_META));
            // The listing was of marked ones; one too large to be read as far as its mark is one.
            if item.is_cut || mark.map(String::as_str) == Some(cluster.as_str()) {
                nodes.insert(node);
            }
            Ok(())
        });
        entries.await.map_err(failed(CATALOG_SERVICES))?;
        Ok(nodes)
    }

    /// The cluster's PTR records, by key.
    pub async fn marked_keys(&self, cluster: &ClusterName) -> Result<Vec<MarkedKey>, Unknown> {
        let mut keys = Vec::new();
        let each = |observed: crate::domain::consul::record::ObservedPtr| {
            if PtrOwner::of(observed.flags, cluster) == PtrOwner::Ours {
                keys.push(MarkedKey { key: observed.record.key, index: observed.index });
            }
        };
        self.ptr_records(Consistency::Consistent, each).await?;
        Ok(keys)
    }
}

fn node_services(node: &str) -> Request {
    Consistency::Consistent.of_path(format!("/v1/catalog/node-services/{}", encode(node)))
}

/// A node's name as a literal of a filter, which knows no escapes. One with both quotes is shut
/// out by no filter: it is found again, and that is an error.
fn quoted(name: &str) -> String {
    if name.contains(['"', '\\']) { format!("`{name}`") } else { format!("\"{name}\"") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_name_is_quoted_as_filters_want_it() {
        for (name, literal) in [("n1", "\"n1\""), ("n \"1", "`n \"1`"), ("a\\b", "`a\\b`")] {
            assert_eq!(quoted(name), literal);
        }
    }

    #[test]
    fn a_mark_is_that_of_its_program_alone() {
        let entry = |meta: &str| {
            let json = format!(r#"{{"ID": "1", "Service": "web", "Meta": {meta}}}"#);
            decode::<ServiceEntry>("a service", json.as_bytes()).unwrap()
        };
        let eu = Mark::Cluster("eu".parse().unwrap());
        for (meta, ours, consul_k8s) in [
            ("null", false, false),
            (r#"{"external-source": "kubernetes"}"#, false, true),
            (r#"{"external-source": "nomad"}"#, false, false),
            (r#"{"external-source": "kubernetes", "kube-consul-cluster": "eu"}"#, true, false),
            (r#"{"external-source": "kubernetes", "kube-consul-cluster": "us"}"#, false, false),
            (r#"{"kube-consul-cluster": "eu"}"#, true, false),
        ] {
            assert_eq!(eu.is_on(&entry(meta)), ours, "{meta}");
            assert_eq!(Mark::ConsulK8s.is_on(&entry(meta)), consul_k8s, "{meta}");
        }
    }
}
