//! Logs: text on a terminal, JSON otherwise.

use std::io::{IsTerminal, Write as _};
use std::sync::OnceLock;

use anstream::{AutoStream, ColorChoice};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::domain::text::escape_unseen;
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
    "--log-level: expected a level (error, warn, info, debug, trace, off) or a filter such as info,kube_consul=debug, found {0:?}"
)]
pub struct InvalidFilter(String);

/// The level of the log, unless another is asked for.
pub const DEFAULT_LEVEL: &str = "info";

/// Whether log lines are JSON, once logging has started.
static IS_JSON: OnceLock<bool> = OnceLock::new();

/// Starts logging to standard error.
pub fn start(level: &str, format: LogFormat) -> Result<(), InvalidFilter> {
    let filter = filter(level)?;
    let stderr = std::io::stderr();
    // What `NO_COLOR`, `CLICOLOR_FORCE` and `TERM` say, as for all other output.
    let colours = AutoStream::choice(&stderr) != ColorChoice::Never;
    let is_json = match format {
        LogFormat::Auto => !stderr.is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Escaping(std::io::stderr()))
        .with_ansi(colours)
        // They would go to standard error, too, and panic where that is closed.
        .log_internal_errors(false);
    if is_json {
        builder.json().flatten_event(true).init();
    } else {
        builder.with_timer(SystemTime).with_target(false).init();
    }
    // It is set once: logging starts once.
    let _ = IS_JSON.set(is_json);
    Ok(())
}

/// Writes the error that ends the process, whatever the filter is: `error: ...`, or among JSON
/// lines one like them.
pub fn final_error(message: &str) {
    let line = if IS_JSON.get() == Some(&true) {
        let timestamp = jiff::Timestamp::now();
        serde_json::json!({"timestamp": timestamp.to_string(), "level": "ERROR", "message": message, "target": env!("CARGO_CRATE_NAME")})
            .to_string()
    } else {
        format!("error: {message}")
    };
    // Where nobody reads it any more, the exit code is all that is left.
    let _ = writeln!(std::io::stderr().lock(), "{}", escape_unseen(&line));
}

/// Takes lines as they are logged, each in one piece, and escapes what others put in them that a
/// terminal would act on: logs are read there, whatever they were written to.
struct Escaping<W>(W);

// === impl Escaping ===

impl<W: std::io::Write> std::io::Write for Escaping<W> {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.write_all(escape_unseen(&String::from_utf8_lossy(line)).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// Each part has to be a level, or to give one to something. Alone, a word that is no level would
/// be taken for a target's name, and silence all others. An empty variable counts as unset.
fn filter(text: &str) -> Result<EnvFilter, InvalidFilter> {
    let text = if text.trim().is_empty() { DEFAULT_LEVEL } else { text };
    let invalid = || InvalidFilter(text.to_owned());
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    if !text.split(',').all(|part| part.contains(['=', '[']) || is_level(part)) {
        return Err(invalid());
    }
    let mut filter = EnvFilter::try_new(text).map_err(|_| invalid())?;
    for directive in LOG_DIRECTIVES {
        if let Ok(directive) = directive.parse() {
            filter = filter.add_directive(directive);
        }
    }
    Ok(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_put_in_a_line_does_nothing_to_a_terminal() {
        let mut written = Vec::new();
        let line = "{\"message\":\"a\u{9b}31m\u{202e}\"}\n";
        Escaping(&mut written).write_all(line.as_bytes()).unwrap();
        assert_eq!(written, b"{\"message\":\"a\\u009b31m\\u202e\"}\n");
    }

    #[test]
    fn a_filter_names_levels() {
        for accepted in [
            "info",
            "WARN",
            "off",
            "info,kube_consul=debug",
            "warn,kube_consul::run=trace",
            "kube_consul[write{service=\"web\"}]=debug",
            "[write]",
            "",
            " ",
        ] {
            assert!(filter(accepted).is_ok(), "{accepted}");
        }
        for refused in ["debg", "info,debg", "info,kube_consul=debg", "kube_consul", "info,"] {
            let error = filter(refused).map(drop).expect_err(refused).to_string();
            assert!(error.contains("--log-level") && error.contains("debug"), "{error}");
        }
    }
}
