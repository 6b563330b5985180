//! The flags of `purge`.

use clap::{Args, ValueEnum};

use crate::cli::bridge::SinkKind;
use crate::cli::connections::ConsulArgs;
use crate::consul::http::config::Config;
use crate::domain::kube::names::ClusterName;
use crate::run::purge::{Cluster, Options, Owner};

pub(super) const EXAMPLES: &str = "Examples:
  # everything of one cluster, after showing it and asking
  kube-consul purge --cluster eu

  # after a bridge moved from its agent to the catalog
  CONSUL_HTTP_ADDR=http://10.0.0.5:8500 kube-consul purge --cluster eu --sink agent --yes

  # what consul-k8s's catalog sync left behind
  kube-consul purge --owner consul-k8s --node k8s-sync

Exit codes: 0 done, 1 failed or something is left, 2 wrong usage, or no terminal to ask on and
no --yes, 130 interrupted: the same command removes the rest.";

/// `purge`.
#[derive(Clone, Debug, Args)]
pub struct PurgeArgs {
    /// Name of the cluster whose records are removed
    #[arg(
        long,
        env = "KUBE_CONSUL_CLUSTER",
        value_name = "NAME",
        required_unless_present = "owner"
    )]
    cluster: Option<ClusterName>,
    /// Only what is kept there [default: both]
    #[arg(long, env = "KUBE_CONSUL_SINK", value_enum)]
    sink: Option<SinkKind>,
    /// In the catalog only what is on this base node and its namespaces' nodes [default: on all
    /// nodes of the cluster]
    #[arg(long, env = "KUBE_CONSUL_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,
    /// Datacenter of the catalog [default: the agent's]
    #[arg(long, env = "KUBE_CONSUL_DATACENTER", value_name = "NAME")]
    datacenter: Option<String>,
    /// Do not ask (no variable consents to this)
    #[arg(long)]
    yes: bool,
    /// Remove the records of another program instead, on the node that --node names
    #[arg(long, env = "KUBE_CONSUL_OWNER", value_enum, requires = "node")]
    owner: Option<OwnerKind>,
    /// With --owner: the node, for example k8s-sync
    #[arg(long, env = "KUBE_CONSUL_NODE", value_name = "NAME", requires = "owner")]
    node: Option<String>,

    #[command(flatten)]
    consul: ConsulArgs,
}

/// A program whose records can be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OwnerKind {
    /// The catalog sync of consul-k8s
    ConsulK8s,
}

// === impl PurgeArgs ===

impl PurgeArgs {
    /// What they say.
    pub(super) fn options(self) -> Result<Options, Box<dyn std::error::Error>> {
        let is_of_agent = self.owner.is_none() && self.sink != Some(SinkKind::Catalog);
        let consul =
            if is_of_agent { self.consul.config_of_agent()? } else { self.consul.config()? };
        let consul = Config { datacenter: self.datacenter, ..consul };
        let owner = match (self.owner, self.node, self.cluster) {
            (Some(OwnerKind::ConsulK8s), Some(node), _) => Owner::ConsulK8s { node },
            (None, _, Some(name)) => Owner::Cluster(Cluster {
                name,
                agent: self.sink != Some(SinkKind::Catalog),
                catalog: self.sink != Some(SinkKind::Agent),
                node_name: self.node_name,
            }),
            _ => return Err("expected --cluster NAME, or --owner and --node".into()),
        };
        Ok(Options { consul, owner, yes: self.yes })
    }
}
