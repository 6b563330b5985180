//! The flags of `bridge`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::cli::connections::{ConsulArgs, KubernetesArgs};
use crate::cli::registered::RegisteredArgs;
use crate::cli::values::{duration, word};
use crate::consul::http::config::Config;
use crate::domain::kube::names::ClusterName;
use crate::domain::services::settings::{HealthMode, Policy};
use crate::kubernetes::client::Environment;
use crate::run::bridge::Options;
use crate::run::daemon::options::{Common, SinkOptions, SyncOptions};
use crate::run::plan;

pub(super) const EXAMPLES: &str = "Examples:
  # beside a kubectl proxy and a Consul agent, as in the pod
  kube-consul bridge --kube-url http://127.0.0.1:8001

  # one namespace, names such as web-shop, once, from a workstation
  kube-consul bridge --namespace shop --name-template '{service}-{namespace}' --once

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused for safety,
130 interrupted.";

/// `bridge`.
#[derive(Clone, Debug, Args)]
pub struct BridgeArgs {
    /// Name of this cluster: marks its records in Consul
    #[arg(long, env = "KUBE_CONSUL_CLUSTER", default_value = "kubernetes", value_name = "NAME")]
    cluster: ClusterName,
    /// Identity of the cluster, where the namespace kube-system may not be read
    #[arg(long, env = "KUBE_CONSUL_CLUSTER_UID", value_name = "UID")]
    cluster_uid: Option<String>,
    /// Take over the records of the cluster of this uid (and of no other)
    #[arg(long, env = "KUBE_CONSUL_ADOPT", value_name = "UID")]
    adopt: Option<String>,
    /// Where registrations are kept
    #[arg(long, env = "KUBE_CONSUL_SINK", default_value = "agent", value_enum)]
    sink: SinkKind,
    /// With --sink catalog: several processes elect the one that writes
    #[arg(long, env = "KUBE_CONSUL_LEADER_ELECT")]
    leader_elect: bool,
    /// With --sink catalog: name of the base node [default: k8s-<cluster>]
    #[arg(long, env = "KUBE_CONSUL_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,

    #[command(flatten)]
    registered: RegisteredArgs,
    #[command(flatten)]
    running: RunningArgs,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    consul: ConsulArgs,
}

/// How it runs. Under no heading: that of the flags before would go on.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = None::<&'static str>)]
pub struct RunningArgs {
    /// Make removals at the start that options ask for, however many (no variable consents to this)
    #[arg(long)]
    allow_removals: bool,
    /// Whether records that are no longer wanted are removed (sync) or stay (upsert-only)
    #[arg(
        long,
        env = "KUBE_CONSUL_POLICY",
        default_value_t = Policy::Sync,
        value_parser = word::<Policy>(Policy::WORDS),
        value_name = "POLICY"
    )]
    policy: Policy,
    /// Least time between two resyncs, which read Consul back and fix what drifted
    #[arg(long, env = "KUBE_CONSUL_RESYNC", default_value = "60s", value_parser = duration, value_name = "DURATION")]
    resync: Duration,
    /// Synchronize once and exit: 0 when all is in sync, 1 when not
    #[arg(long, env = "KUBE_CONSUL_ONCE")]
    once: bool,
    /// With --once: how long each side may take to be reached
    #[arg(long, env = "KUBE_CONSUL_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
    /// Where /livez, /readyz, /metrics and /status are served
    /// [default: [::]:9655, or 0.0.0.0:9655 without IPv6]
    #[arg(long, env = "KUBE_CONSUL_ADMIN_ADDR", value_name = "ADDRESS")]
    admin_addr: Option<SocketAddr>,
}

/// Where registrations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SinkKind {
    /// In the co-located Consul agent: they live as long as it
    Agent,
    /// In the catalog, on nodes of their own: for large clusters, without an agent
    Catalog,
}

/// Options that do not go together.
#[derive(Debug, thiserror::Error)]
enum Conflict {
    #[error(
        "--health always: expected unready or none with --sink agent, where a passing check would have to be refreshed for ever"
    )]
    PassingCheckInAgent,
    #[error(
        "{0}: expected --sink catalog beside it, found --sink agent: an agent's registrations are \
         its own, so every bridge fills its own agent"
    )]
    OnlyWithCatalog(&'static str),
    #[error(
        "--allow-removals: expected --policy sync beside it, found upsert-only, which removes nothing"
    )]
    RemovesNothing,
    #[error("--leader-elect: expected a long-running bridge, found --once; leave one of them out")]
    ElectedOnce,
    #[error(
        "--node-name: expected 1 to 128 letters, digits, dots, dashes or underscores, found {0:?}"
    )]
    NodeName(String),
}

// === impl BridgeArgs ===

impl BridgeArgs {
    /// What a one-shot command that takes the bridge's flags needs to know, and how long each
    /// side may take to be reached.
    pub(super) fn options_for_plan(mut self) -> Result<plan::Options, Box<dyn std::error::Error>> {
        // A plan takes the bridge's command line as it is, and is made once whatever that says.
        self.running.once = false;
        let timeout = self.running.timeout;
        let Options { common, sync, .. } = self.options()?;
        Ok(plan::Options { common, sync, timeout })
    }

    /// What the bridge needs to know.
    pub(super) fn options(self) -> Result<Options, Box<dyn std::error::Error>> {
        if self.running.policy == Policy::UpsertOnly && self.running.allow_removals {
            return Err(Conflict::RemovesNothing.into());
        }
        if self.registered.health == HealthMode::Always && self.sink == SinkKind::Agent {
            return Err(Conflict::PassingCheckInAgent.into());
        }
        let sink = self.sink_options()?;
        let consul = match self.sink {
            SinkKind::Agent => self.consul.config_of_agent()?,
            // An agent answers for its own datacenter only.
            SinkKind::Catalog => {
                let datacenter = self.registered.datacenter.clone();
                Config { datacenter, ..self.consul.config()? }
            }
        };
        let datacenter = self.registered.datacenter.clone();
        let dns_domain = self.registered.dns_domain.clone();
        let mut settings = self.registered.settings(self.cluster)?;
        settings.policy = self.running.policy;
        settings.allow_removals = self.running.allow_removals;
        Ok(Options {
            common: Common {
                access: self.kubernetes.access(),
                environment: Environment::read(),
                consul,
                cluster_uid: self.cluster_uid,
                adopt: self.adopt,
                admin_addr: self.running.admin_addr,
            },
            sync: SyncOptions { settings, sink, datacenter, dns_domain },
            resync: self.running.resync,
            once: self.running.once.then_some(self.running.timeout),
        })
    }

    fn sink_options(&self) -> Result<SinkOptions, Conflict> {
        if self.sink == SinkKind::Agent {
            if self.leader_elect {
                return Err(Conflict::OnlyWithCatalog("--leader-elect"));
            }
            if self.node_name.is_some() {
                return Err(Conflict::OnlyWithCatalog("--node-name"));
            }
            return Ok(SinkOptions::Agent);
        }
        if self.leader_elect && self.running.once {
            return Err(Conflict::ElectedOnce);
        }
        if let Some(name) = self.node_name.as_ref().filter(|name| !is_node_name(name)) {
            return Err(Conflict::NodeName(name.clone()));
        }
        let (node_name, leader_elect) = (self.node_name.clone(), self.leader_elect);
        Ok(SinkOptions::Catalog { node_name, leader_elect })
    }
}

/// What an ACL rule and a path can name without surprise.
fn is_node_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed)
}
