//! The flags of `node`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;

use crate::cli::{ConsulArgs, KubernetesArgs, duration};
use crate::domain::node::wanted::Defaults;
use crate::kubernetes::client::Environment;
use crate::run::daemon::options::Common;
use crate::run::node::{Options, PodSource};

pub(super) const EXAMPLES: &str = "Examples:
  # the pods of one node, from the API server, in the agent at 127.0.0.1:8500
  kube-consul node --node node-1

  # in a DaemonSet: NODE_NAME by the downward API, the agent on the host
  kube-consul node --consul-addr $(HOST_IP):8500

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted.";

/// `node`.
#[derive(Clone, Debug, Args)]
pub struct NodeArgs {
    /// Name of the node whose pods are registered [default: $NODE_NAME]
    #[arg(long, env = "KUBE_CONSUL_NODE", value_name = "NAME")]
    node: Option<String>,
    /// Sync interval of pods that name none: the TTL of a check is longer by --sync-ttl-buffer-duration
    #[arg(long, env = "KUBE_CONSUL_DEFAULT_SYNC_INTERVAL", default_value = "1s", value_parser = duration, value_name = "DURATION")]
    default_sync_interval: Duration,
    /// TTL of the checks of pods that name none
    #[arg(long, env = "KUBE_CONSUL_DEFAULT_CHECK_TTL", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    default_check_ttl: Duration,
    /// How much longer than the sync interval a TTL is at least
    #[arg(long, env = "KUBE_CONSUL_SYNC_TTL_BUFFER_DURATION", default_value = "10s", value_parser = duration, value_name = "DURATION")]
    sync_ttl_buffer_duration: Duration,
    /// Let the agent remove what has been critical for so long, at least a minute: for nodes that never
    /// come back [default: never]
    #[arg(long, env = "KUBE_CONSUL_DEREGISTER_CRITICAL_AFTER", value_parser = duration, value_name = "DURATION")]
    deregister_critical_after: Option<Duration>,
    /// Serve the metrics at this address too, as katalog-sync did
    #[arg(long, env = "KUBE_CONSUL_METRICS_BIND_ADDRESS", value_name = "ADDRESS")]
    metrics_bind_address: Option<String>,
    /// Where /livez, /readyz, /metrics and /status are served
    /// [default: [::]:9655, or 0.0.0.0:9655 without IPv6]
    #[arg(long, env = "KUBE_CONSUL_ADMIN_ADDR", value_name = "ADDRESS")]
    admin_addr: Option<SocketAddr>,

    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    consul: ConsulArgs,
}

/// There is no node to register pods of.
#[derive(Debug, thiserror::Error)]
#[error(
    "--node: expected the name of a node, found none: give it, or set NODE_NAME by the downward API \
     (fieldRef spec.nodeName)"
)]
struct NoNode;

// === impl NodeArgs ===

impl NodeArgs {
    /// What they say.
    pub(super) fn options(self) -> Result<Options, Box<dyn std::error::Error>> {
        let of_environment = || std::env::var("NODE_NAME").ok();
        let node = self.node.or_else(of_environment).filter(|name| !name.is_empty());
        Ok(Options {
            common: Common {
                access: self.kubernetes.access(),
                environment: Environment::read(),
                consul: self.consul.config()?,
                cluster_uid: None,
                adopt: None,
                admin_addr: self.admin_addr,
            },
            pods: PodSource::Node(node.ok_or(NoNode)?),
            defaults: Defaults {
                sync_interval: self.default_sync_interval,
                check_ttl: self.default_check_ttl,
                ttl_buffer: self.sync_ttl_buffer_duration,
                deregister_critical_after: self.deregister_critical_after,
            },
            serves_admin: true,
            metrics_address: self.metrics_bind_address.filter(|address| !address.is_empty()),
        })
    }
}
