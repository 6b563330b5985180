//! The flags that say how a process logs.

use clap::Args;

use crate::logging::{self, InvalidFilter, LogFormat};

/// Heading of the flags that several subcommands share.
pub(super) const COMMON: &str = "Common options";

/// Logging.
#[derive(Clone, Debug, Args)]
pub(super) struct LogArgs {
    /// Which log lines are written: error, warn, info, debug, trace, off, or a filter such as
    /// info,kube_consul=debug
    #[arg(
        long,
        env = "KUBE_CONSUL_LOG_LEVEL",
        default_value = logging::DEFAULT_LEVEL,
        global = true,
        value_name = "FILTER",
        help_heading = COMMON
    )]
    pub(super) log_level: String,
    /// How they look
    #[arg(
        long,
        env = "KUBE_CONSUL_LOG_FORMAT",
        default_value = "auto",
        global = true,
        value_enum,
        help_heading = COMMON
    )]
    pub(super) log_format: LogFormat,
}

// === impl LogArgs ===

impl LogArgs {
    /// Logs are written from here on.
    pub(super) fn start(&self) -> Result<(), InvalidFilter> {
        logging::start(&self.log_level, self.log_format)
    }
}
