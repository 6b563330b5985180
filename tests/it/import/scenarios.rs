//! The tests of this folder that wait: for a query's minute, for the minute after which silence
//! counts, for half a minute without Consul, for removals that are confirmed.

use anyhow::Result;
use futures::future::FutureExt as _;

use super::{create, faults, unusual};
use crate::support::Scenarios;

/// All at once: they wait, and nine more Consuls that nobody asks are a few percent of a core.
const AT_ONCE: usize = 8;

/// The longest first, so that none is left alone at the end.
static ALL: Scenarios = Scenarios::new(
    "import::",
    &[
        ("agent", || faults::agent_without_servers().boxed()),
        ("narrowed", || faults::policy_narrowed().boxed()),
        ("restored", || unusual::snapshot_restored().boxed()),
        ("leaderless", || faults::leaderless().boxed()),
        ("away", || faults::consul_away().boxed()),
        ("created", || create::made_and_removed().boxed()),
        ("clusters", || create::two_clusters().boxed()),
        ("revoked", || faults::token_revoked().boxed()),
    ],
    AT_ONCE,
);

/// Runs a scenario, or waits for the one that was started before.
pub async fn run(name: &'static str) -> Result<()> {
    ALL.run(name).await
}
