//! `migrate`: from the command line of a replaced tool to ours.

mod sync_catalog;

use std::fmt::Write as _;

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

/// What is run in the place of the other tool.
#[derive(Debug, Default)]
struct Translation {
    /// What else there is to know, each about a flag of theirs.
    notes: Vec<String>,
    /// In the order in which they are run.
    commands: Vec<Step>,
}

/// A command with its flags, and when it is run, if that is not at once.
#[derive(Debug)]
struct Step {
    when: &'static str,
    command: Vec<String>,
}

// === impl MigrateArgs ===

impl MigrateArgs {
    /// The commands, and what there is to know, as a shell reads it.
    pub(super) fn text(&self) -> Result<String, UnknownArgument> {
        let From::FromSyncCatalog { arguments } = &self.from;
        Ok(SyncCatalog::parse(arguments)?.translate().text())
    }
}

// === impl Translation ===

impl Translation {
    fn text(&self) -> String {
        let mut text = String::new();
        for note in &self.notes {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "# {note}");
        }
        for Step { when, command } in &self.commands {
            let when = if when.is_empty() { String::new() } else { format!("# {when}\n") };
            let _ = writeln!(text, "\n{when}{}", shell(command));
        }
        text
    }
}

/// A command as a shell reads it, one flag a line.
fn shell(command: &[String]) -> String {
    let mut text = String::new();
    for word in command {
        if word.starts_with("--") {
            text.push_str(" \\\n  ");
        } else if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(&quoted(word));
    }
    text
}

fn quoted(word: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,:/@%+=".contains(&byte);
    if !word.is_empty() && word.bytes().all(is_plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests;
