//! Logs: text on a terminal, JSON otherwise.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::kubernetes::LOG_DIRECTIVES;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON otherwise.
    Auto,
    /// One line of text each.
    Text,
    /// One JSON object each.
    Json,
}

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "--log-level: expected a level (error, warn, info, debug, trace) or a filter such as info,kube_consul=debug, found {0:?}"
)]
pub struct InvalidFilter(String);

/// Starts logging to standard error.
pub fn start(level: &str, format: LogFormat) -> Result<(), InvalidFilter> {
    let mut filter = EnvFilter::try_new(level).map_err(|_| InvalidFilter(level.to_owned()))?;
    for directive in LOG_DIRECTIVES {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(terminal);
    let text = format == LogFormat::Text || (format == LogFormat::Auto && terminal);
    if text {
        builder.with_timer(SystemTime).with_target(false).init();
    } else {
        builder.json().flatten_event(true).init();
    }
    Ok(())
}
