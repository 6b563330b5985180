//! The first line of the log: which program this is, and what it works on.

use crate::run::daemon::options::SinkOptions;

/// What the first line says beside the version and the command. What a command does not have is left
/// out.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::run) struct FirstLine<'a> {
    /// The name of the cluster in Consul.
    pub(in crate::run) cluster: Option<&'a str>,
    /// Where registrations are kept.
    pub(in crate::run) sink: Option<&'a SinkOptions>,
    /// The node whose pods are registered.
    pub(in crate::run) node: Option<&'a str>,
    /// The kubelet's address, where pods come from it.
    pub(in crate::run) kubelet: Option<&'a str>,
    /// The API server's URL.
    pub(in crate::run) kubernetes: Option<&'a str>,
    /// Consul's URL.
    pub(in crate::run) consul: &'a str,
    /// Where the admin server listens.
    pub(in crate::run) admin: Option<&'a str>,
}

// === impl FirstLine ===

impl FirstLine<'_> {
    /// Writes it.
    pub(in crate::run) fn log(self, command: &'static str) {
        let Self { cluster, sink, node, kubelet, kubernetes, consul, admin } = self;
        let (sink, leader_election) = match sink {
            None => (None, None),
            Some(SinkOptions::Agent) => (Some("agent"), None),
            Some(SinkOptions::Catalog { leader_elect, .. }) => {
                (Some("catalog"), Some(*leader_elect))
            }
        };
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            cluster,
            sink,
            leader_election,
            node,
            kubelet,
            kubernetes,
            consul,
            admin,
            "starting kube-consul {command}"
        );
    }
}
