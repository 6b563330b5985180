//! The long tests of this folder, which wait for Consul's own times.

use anyhow::Result;
use futures::future::FutureExt as _;

use super::{
    acl, agents, cert_manager, dns, install, lifecycle, node, overlays, rotation, snapshots,
};
use crate::support::Scenarios;

/// At once: three servers each, which take a fifth of a core.
const AT_ONCE: usize = 5;

/// The longest first, so that none is left alone at the end.
static ALL: Scenarios = Scenarios::new(
    "servers::",
    &[
        ("restarts", || lifecycle::restarts().boxed()),
        ("agents", || agents::on_nodes().boxed()),
        ("node", || node::pods_of_a_node().boxed()),
        ("scaling", || lifecycle::scaling().boxed()),
        ("gossip", || rotation::gossip_keys().boxed()),
        ("losses", || lifecycle::losses().boxed()),
        ("certificates", || rotation::certificates().boxed()),
        ("snapshots", || snapshots::snapshots().boxed()),
        ("acl", || acl::job().boxed()),
        ("cert-manager", || cert_manager::certificates().boxed()),
        ("install", || install::both_commands().boxed()),
        ("overlays", || overlays::overlays().boxed()),
        ("dns", || dns::forwarded().boxed()),
        ("outside", || agents::outside().boxed()),
    ],
    AT_ONCE,
);

/// Runs a scenario, or waits for the one that was started before.
pub async fn run(name: &'static str) -> Result<()> {
    ALL.run(name).await
}
