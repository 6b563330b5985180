//! The options that several commands take.

use std::net::SocketAddr;

use crate::consul::coordination::election::Election;
use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::sentinel::Sentinel;
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::http::config::Config;
use crate::consul::read::agent::AgentInfo;
use crate::consul::write::agent::AgentSink;
use crate::consul::write::catalog::CatalogSink;
use crate::consul::write::sink::Sink;
use crate::domain::consul::node_names::NodeNames;
use crate::domain::consul::ptr::ConsulDomain;
use crate::domain::services::settings::Settings;
use crate::domain::sync::Target;
use crate::kubernetes::client::{Access, Environment};

/// How both sides are reached, and what the process shows of itself: of every daemon.
#[derive(Debug)]
pub struct Common {
    /// How Kubernetes is reached.
    pub access: Access,
    /// What the process found around itself.
    pub environment: Environment,
    /// How Consul is reached.
    pub consul: Config,
    /// The cluster's identity, where it may not be read.
    pub cluster_uid: Option<String>,
    /// The cluster whose records are taken over.
    pub adopt: Option<String>,
    /// Where the admin server listens.
    pub admin_addr: Option<SocketAddr>,
}

/// What is registered, and where: of `bridge`, and of whatever tells what `bridge` would do.
#[derive(Debug)]
pub struct SyncOptions {
    /// What is registered.
    pub settings: Settings,
    /// Where registrations are kept.
    pub sink: SinkOptions,
    /// Datacenter in PTR records, if not the agent's.
    pub datacenter: Option<String>,
    /// Domain in PTR records, if not the agent's.
    pub dns_domain: Option<String>,
}

/// Where registrations are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkOptions {
    /// In the co-located agent. It goes on using the token of each registration, so a login is
    /// not ended with the process.
    Agent,
    /// In the catalog.
    Catalog {
        /// Name of the base node, if not `k8s-<cluster>`.
        node_name: Option<String>,
        /// Whether several processes elect the one that writes.
        leader_elect: bool,
    },
}

// === impl SyncOptions ===

impl SyncOptions {
    /// What takes the writes.
    pub(in crate::run) fn sink(&self, consul: &ConsulClient) -> Sink {
        let cluster = &self.settings.cluster;
        match self.nodes() {
            None => Sink::Agent(AgentSink::new(consul.clone(), cluster)),
            Some(nodes) => Sink::Catalog(CatalogSink::new(consul.clone(), cluster.clone(), nodes)),
        }
    }

    /// What marks a reading as true (invariant: evidence).
    pub(in crate::run) fn marker(&self, consul: &ConsulClient) -> Marker {
        match self.nodes() {
            None => {
                let cluster = self.settings.cluster.clone();
                Marker::Sentinel(Sentinel::new(consul.clone(), cluster))
            }
            Some(nodes) => Marker::BaseNode(nodes),
        }
    }

    /// The election of the process that writes, where there is one; `candidate`: this process's
    /// name.
    pub(in crate::run) fn election(
        &self,
        consul: &ConsulClient,
        candidate: &str,
    ) -> Option<Election> {
        let SinkOptions::Catalog { leader_elect: true, .. } = self.sink else { return None };
        let cluster = self.settings.cluster.clone();
        Some(Election::new(consul.clone(), cluster, self.nodes()?.base(), candidate))
    }

    /// Whether several processes elect the one that writes.
    pub(in crate::run) fn is_elected(&self) -> bool {
        matches!(self.sink, SinkOptions::Catalog { leader_elect: true, .. })
    }

    /// What PTR records end with: by the options, else by the agent.
    pub(in crate::run) fn consul_domain(&self, agent: Option<&AgentInfo>) -> Option<ConsulDomain> {
        let of_agent = |field: fn(&AgentInfo) -> &String| agent.map(|agent| field(agent).clone());
        let datacenter = self.datacenter.clone().or_else(|| of_agent(|agent| &agent.datacenter))?;
        let domain = self.dns_domain.clone().or_else(|| of_agent(|agent| &agent.dns_domain))?;
        Some(ConsulDomain { datacenter: datacenter.into(), domain: domain.into() })
    }

    /// The catalog's nodes that are ours; none with an agent.
    fn nodes(&self) -> Option<NodeNames> {
        match &self.sink {
            SinkOptions::Agent => None,
            SinkOptions::Catalog { node_name, .. } => {
                Some(NodeNames::new(&self.settings.cluster, node_name.as_deref()))
            }
        }
    }
}

// === impl SinkOptions ===

impl SinkOptions {
    /// What the core has to know of it.
    pub(in crate::run) fn target(&self) -> Target {
        match self {
            SinkOptions::Agent => Target::Agent,
            SinkOptions::Catalog { .. } => Target::Catalog,
        }
    }
}
