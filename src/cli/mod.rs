//! Every flag of every subcommand, with its environment variable.

#![allow(clippy::doc_markdown, reason = "doc comments are help texts here")]

mod connections;
pub mod hook;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub use self::connections::{ConsulArgs, KubernetesArgs};
use self::hook::{AclFileArgs, DeregisterArgs, RegisterArgs};

/// Keeps Kubernetes and Consul in step, both ways, event by event.
#[derive(Debug, Parser)]
#[command(name = "kube-consul", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    acl_file: AclFileArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register an instance with Consul's agent, from a lifecycle hook
    Register(RegisterArgs),
    /// Remove an instance from Consul's agent, from a lifecycle hook
    Deregister(DeregisterArgs),
}

/// Parses the command line, runs it, and says how it ended.
pub fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    if hook::is_invoked_as_hook() {
        return ExitCode::from(hook::HookCli::parse().run());
    }
    let Cli { command, acl_file } = Cli::parse();
    ExitCode::from(match command {
        Command::Register(args) => args.run(&acl_file),
        Command::Deregister(args) => args.run(&acl_file),
    })
}

/// A duration as people write it: `500ms`, `10s`, `1m30s`.
fn duration(text: &str) -> Result<Duration, String> {
    let found = || format!("expected a duration such as 500ms, 10s or 1m30s, found {text:?}");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let signed: jiff::SignedDuration = text.parse().map_err(|_| found())?;
    signed.try_into().map_err(|_| found())
}
