//! `migrate`: from the command line of a replaced tool to ours.

mod sync_catalog;
mod translation;

use clap::{Args, Subcommand};

use self::sync_catalog::{SyncCatalog, UnknownArgument};

pub(super) const EXAMPLES: &str = "Examples:
  kube-consul migrate from-sync-catalog -- -k8s-default-sync=false -consul-k8s-tag=k8s

  # as the chart's Deployment has it, its variables before it
  kube-consul migrate from-sync-catalog -- CONSUL_USE_TLS=true sync-catalog -to-k8s=false

Exit codes: 0 translated, 2 wrong usage. What has no counterpart is told, in comments.";

/// `migrate`.
#[derive(Clone, Debug, Args)]
pub struct MigrateArgs {
    #[command(subcommand)]
    from: From,
}

#[derive(Clone, Debug, Subcommand)]
enum From {
    /// From `consul-k8s-control-plane sync-catalog` (1.8)
    FromSyncCatalog {
        /// Its command line; variables of its environment may stand before it
        #[arg(last = true, value_name = "ARGUMENT", allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

// === impl MigrateArgs ===

impl MigrateArgs {
    /// The commands, and what there is to know, as a shell reads it.
    pub(super) fn text(&self) -> Result<String, UnknownArgument> {
        let From::FromSyncCatalog { arguments } = &self.from;
        Ok(SyncCatalog::parse(arguments)?.translate().text())
    }
}

#[cfg(test)]
mod tests;
