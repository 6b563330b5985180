//! What there is to remove, and how it is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use crate::consul::coordination::lock::Lock;
use crate::consul::coordination::owner::OwnerKey;
use crate::consul::coordination::sentinel::Sentinel;
use crate::consul::http::client::Client;
use crate::consul::read::evidence::Unknown;
use crate::consul::read::marks::{Mark, MarkedKey, MarkedService, OnNode};
use crate::domain::consul::node_names::NodeNames;
use crate::domain::kube::names::ClusterName;
use crate::domain::text::{counted, one_line};

/// Namespaces that are shown for one place: a screen's worth.
const MAX_NAMESPACES: usize = 20;
/// Longest text of others on one line, in bytes: Consul's own names are below 256.
const MAX_TEXT: usize = 256;

/// The records of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Its name.
    pub name: ClusterName,
    /// Those in the agent.
    pub agent: bool,
    /// Those in the catalog.
    pub catalog: bool,
    /// Of these only what is on the node of this name and on its namespaces' nodes.
    pub node_name: Option<String>,
}

/// Everything of one cluster.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// Who holds the name.
    pub(super) uid: Option<String>,
    pub(super) agent: Option<AgentPart>,
    /// The catalog's nodes that are to be removed, the base node last.
    pub(super) nodes: Vec<NodePart>,
    /// Nodes with the mark that no bridge made.
    pub(super) odd_nodes: Vec<Box<str>>,
    /// Other nodes of the catalog with records of the cluster.
    pub(super) others: BTreeSet<Box<str>>,
    pub(super) lock: Option<Lock>,
    pub(super) keys: Vec<MarkedKey>,
}

/// What is in the agent.
#[derive(Debug, Default)]
pub(super) struct AgentPart {
    /// The name of its node, where the token may ask for it.
    pub(super) node: Option<Box<str>>,
    /// The sentinel not among them.
    pub(super) services: Vec<MarkedService>,
    pub(super) sentinel: Option<Box<str>>,
}

/// What is on a node of the catalog.
#[derive(Debug)]
pub(super) struct NodePart {
    pub(super) name: Box<str>,
    pub(super) on: OnNode,
}

// === impl Inventory ===

impl Inventory {
    /// Reads all of it; an error means that it is not known, and nothing may be removed.
    pub(super) async fn read(client: &Client, of: &Cluster) -> Result<Self, Unknown> {
        let mark = Mark::Cluster(of.name.clone());
        let mut inventory = Self {
            uid: OwnerKey::new(client.clone(), &of.name).holder().await?,
            keys: client.marked_keys(&of.name).await?,
            ..Self::default()
        };
        let mut known = BTreeSet::new();
        if of.agent {
            let part = AgentPart::read(client, of, &mark).await?;
            known.extend(part.node.clone());
            inventory.agent = Some(part);
        }
        if of.catalog {
            inventory.lock = client.lock_of(&of.name).await?;
            let only = of.node_name.as_deref().map(|base| NodeNames::new(&of.name, Some(base)));
            let is_meant = |node: &str| {
                only.as_ref()
                    .is_none_or(|names| names.base() == node || names.namespace_of(node).is_some())
            };
            for node in client.marked_nodes(&of.name).await? {
                if !is_meant(&node.name) {
                    continue;
                }
                if !node.synthetic {
                    inventory.odd_nodes.push(node.name);
                    continue;
                }
                let on = client.on_node(&node.name, &mark).await?;
                known.insert(node.name.clone());
                inventory.nodes.push(NodePart { name: node.name, on });
            }
            // A base node's name is the beginning of its namespaces' names.
            inventory.nodes.sort_by_key(|node| std::cmp::Reverse(node.name.len()));
        }
        inventory.others = client.other_nodes(&of.name, &known).await?;
        Ok(inventory)
    }

    /// How many operations it takes to remove it.
    pub(super) fn operations(&self) -> usize {
        let agent = self.agent.as_ref();
        let agent = agent.map_or(0, |it| it.services.len() + usize::from(it.sentinel.is_some()));
        let nodes = self.nodes.iter().map(|node| node.on.marked.len() + 1).sum::<usize>();
        // They go last of all, and only if no registration of the cluster is left.
        let last = self.keys.len() + usize::from(self.uid.is_some());
        let last = if self.others.is_empty() { last } else { 0 };
        agent + nodes + usize::from(self.lock.is_some()) + last
    }

    /// Whether nothing can be removed.
    pub(super) fn is_empty(&self) -> bool {
        self.operations() == 0
    }

    /// For people.
    pub(super) fn text(&self, cluster: &Cluster, url: &str) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text, cluster, url);
        text
    }

    fn write(&self, text: &mut String, cluster: &Cluster, url: &str) -> fmt::Result {
        let name = &cluster.name;
        match &self.uid {
            Some(uid) => writeln!(text, "cluster {name} (uid {}) in {url}", clean(uid))?,
            None => writeln!(text, "cluster {name} (no owner key) in {url}")?,
        }
        if self.is_empty() {
            writeln!(text, "Nothing of it can be removed here.")?;
        } else {
            writeln!(text, "To be removed:")?;
        }
        if let Some(agent) = &self.agent {
            agent.write(text)?;
        }
        for node in &self.nodes {
            let NodePart { name, on } = node;
            writeln!(text, "  catalog, node {}: {}", clean(name), registrations(&on.marked))?;
            write_namespaces(text, &on.marked)?;
            if !on.others.is_empty() {
                let ids = clean(&on.others.join(", "));
                writeln!(text, "    it stays, with what no bridge made: {ids}")?;
            }
        }
        if self.lock.is_some() {
            writeln!(text, "  the leader's lock")?;
        }
        let owner = if self.uid.is_some() { " and the owner key" } else { "" };
        if self.uid.is_some() || !self.keys.is_empty() {
            writeln!(
                text,
                "  {}{owner}, {}",
                counted(self.keys.len(), "PTR record"),
                if self.others.is_empty() {
                    "last of all"
                } else {
                    "which stay as long as other nodes have registrations of the cluster"
                }
            )?;
        }
        self.write_remarks(text)
    }

    fn write_remarks(&self, text: &mut String) -> fmt::Result {
        for node in &self.odd_nodes {
            let node = clean(node);
            writeln!(
                text,
                "Node {node} has the cluster's mark and no bridge made it: it is left alone."
            )?;
        }
        if !self.others.is_empty() {
            let others: Vec<String> = self.others.iter().map(|node| clean(node)).collect();
            writeln!(
                text,
                "Other nodes with registrations of the cluster: {}. An agent's are removed with \
                 CONSUL_HTTP_ADDR set to that agent, the catalog's with --sink catalog.",
                others.join(", ")
            )?;
        }
        for sign in self.signs_of_life() {
            writeln!(text, "{sign}")?;
        }
        Ok(())
    }

    /// What tells that a bridge runs, which would write again what is removed.
    fn signs_of_life(&self) -> Vec<String> {
        let mut signs = Vec::new();
        if let Some(holder) = self.lock.as_ref().and_then(|lock| lock.holder.as_deref()) {
            signs.push(format!(
                "A BRIDGE IS RUNNING: {} holds the leader's lock. It writes again what is removed: \
                 stop it first.",
                clean(holder)
            ));
        } else if !self.nodes.is_empty() {
            signs.push(
                "Nothing tells whether a bridge with --sink catalog and without --leader-elect \
                 runs: make sure that none does, it would write again what is removed."
                    .to_owned(),
            );
        }
        if self.agent.as_ref().is_some_and(|agent| agent.sentinel.is_some()) {
            signs.push(
                "A BRIDGE MAY BE RUNNING: its sentinel is in the agent. One that runs writes again \
                 what is removed: stop it first."
                    .to_owned(),
            );
        }
        signs
    }
}

// === impl AgentPart ===

impl AgentPart {
    async fn read(client: &Client, of: &Cluster, mark: &Mark) -> Result<Self, Unknown> {
        let sentinel = Sentinel::new(client.clone(), of.name.clone());
        // Without the right to ask for it, its node counts among the others.
        let node = client.agent_self().await.ok().map(|agent| agent.node.into());
        let mut part = Self { node, ..Self::default() };
        for service in client.in_agent(mark).await? {
            if *service.id == *sentinel.id() {
                part.sentinel = Some(service.id);
            } else {
                part.services.push(service);
            }
        }
        Ok(part)
    }

    fn write(&self, text: &mut String) -> fmt::Result {
        let node = self.node.as_deref().map(|node| format!(" {}", clean(node)));
        let sentinel = if self.sentinel.is_some() { " and the sentinel" } else { "" };
        let node = node.unwrap_or_default();
        writeln!(text, "  agent{node}: {}{sentinel}", registrations(&self.services))?;
        write_namespaces(text, &self.services)
    }
}

pub(super) fn registrations(services: &[MarkedService]) -> String {
    counted(services.len(), "registration")
}

/// How many there are of each namespace.
pub(super) fn write_namespaces(text: &mut String, services: &[MarkedService]) -> fmt::Result {
    let mut namespaces: BTreeMap<&str, usize> = BTreeMap::new();
    for service in services {
        *namespaces.entry(&service.namespace).or_default() += 1;
    }
    for (namespace, count) in namespaces.iter().take(MAX_NAMESPACES) {
        writeln!(text, "    namespace {}: {count}", clean(namespace))?;
    }
    if namespaces.len() > MAX_NAMESPACES {
        writeln!(text, "    and {} more namespaces", namespaces.len() - MAX_NAMESPACES)?;
    }
    Ok(())
}

/// What comes from Consul may hold anything, escape sequences for a terminal too.
pub(super) fn clean(text: &str) -> String {
    one_line(text, MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(id: &str, namespace: &str) -> MarkedService {
        MarkedService { id: id.into(), name: "web".into(), namespace: namespace.into() }
    }

    fn cluster() -> Cluster {
        Cluster { name: "eu".parse().unwrap(), agent: true, catalog: true, node_name: None }
    }

    #[test]
    fn all_that_goes_is_shown_and_what_speaks_against_it() {
        let inventory = Inventory {
            uid: Some("1234".into()),
            agent: Some(AgentPart {
                node: Some("a\u{1b}1".into()),
                services: vec![service("1", "shop"), service("2", "shop"), service("3", "prod")],
                sentinel: Some("_kube-consul_eu".into()),
            }),
            nodes: vec![NodePart {
                name: "k8s-eu.shop".into(),
                on: OnNode { marked: vec![service("1", "shop")], others: vec!["x".into()] },
            }],
            odd_nodes: vec!["odd".into()],
            others: ["b".into(), "c".into()].into(),
            lock: None,
            keys: vec![],
        };
        let expected = "\
cluster eu (uid 1234) in http://consul
To be removed:
  agent a 1: 3 registrations and the sentinel
    namespace prod: 1
    namespace shop: 2
  catalog, node k8s-eu.shop: 1 registration
    namespace shop: 1
    it stays, with what no bridge made: x
  0 PTR records and the owner key, which stay as long as other nodes have registrations of the cluster
Node odd has the cluster's mark and no bridge made it: it is left alone.
Other nodes with registrations of the cluster: b, c. An agent's are removed with CONSUL_HTTP_ADDR set to that agent, the catalog's with --sink catalog.
Nothing tells whether a bridge with --sink catalog and without --leader-elect runs: make sure that none does, it would write again what is removed.
A BRIDGE MAY BE RUNNING: its sentinel is in the agent. One that runs writes again what is removed: stop it first.
";
        assert_eq!(inventory.text(&cluster(), "http://consul"), expected);
        assert_eq!(inventory.operations(), 6);
    }

    #[test]
    fn what_goes_last_is_something_only_if_it_can_go() {
        let last = Inventory { uid: Some("1234".into()), ..Inventory::default() };
        assert!(!last.is_empty());
        let kept = Inventory { others: ["b".into()].into(), ..last };
        assert!(kept.is_empty());
        assert!(Inventory::default().is_empty());
    }
}
