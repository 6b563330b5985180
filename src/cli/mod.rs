//! Every flag of every subcommand, with its environment variable.
//!
//! A flag `--some-flag` has the variable `KUBE_CONSUL_SOME_FLAG`, but for consent to what destroys
//! (`--yes`, `--allow-removals`), which a variable would go on giving; Consul's own variables are
//! read by [`crate::consul::http::config::Config::from_env`].

#![allow(clippy::doc_markdown, reason = "doc comments are help texts here")]

mod bridge;
mod check;
mod connections;
mod exit;
mod hook;
mod import;
mod katalog;
mod log;
mod migrate;
mod node;
mod pages;
mod plan;
mod purge;
mod registered;
mod sidecar;
mod status;
mod values;
mod variables;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;

pub use self::bridge::BridgeArgs;
pub use self::connections::{ConsulArgs, KubernetesArgs};
pub use self::exit::{EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_REFUSED, EXIT_USAGE};
use self::exit::{failed, finish, print, usage};
use self::hook::{AclFileArgs, DeregisterArgs, HookCli, RegisterArgs, is_invoked_as_hook};
use self::log::LogArgs;
pub use self::plan::PlanArgs;
pub use self::purge::PurgeArgs;
use self::variables::without_variables;
use crate::run;

/// A token's file that another command would not read: its requests would be denied for no visible reason.
const ONLY_OF_HOOK: &str = "--consul-acl-file (KUBE_CONSUL_CONSUL_ACL_FILE): expected register or \
    deregister, found another command; name the file by --consul-token-file";

/// Keeps Kubernetes and Consul in sync, event by event.
#[derive(Debug, Parser)]
#[command(name = "kube-consul", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    log: LogArgs,
    #[command(flatten)]
    acl_file: AclFileArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keep Consul in sync with the Services of the cluster
    #[command(after_help = bridge::EXAMPLES)]
    Bridge(Box<BridgeArgs>),
    /// Show what bridge would change now, and change nothing
    #[command(after_help = plan::EXAMPLES, mut_args = plan::of_plan)]
    Plan(Box<PlanArgs>),
    /// Check each thing that the bridge needs, and say what to do about what does not hold
    #[command(after_help = check::EXAMPLES, mut_args = check::of_check, visible_alias = "doctor")]
    Check(Box<check::CheckArgs>),
    /// Show what a running bridge does, and each Service
    #[command(after_help = status::STATUS_EXAMPLES)]
    Status(status::StatusArgs),
    /// Show what of a Service is in Consul, and why the rest is not
    #[command(after_help = status::EXPLAIN_EXAMPLES)]
    Explain(status::ExplainArgs),
    /// Remove everything that one cluster owns in Consul, after showing it
    #[command(after_help = purge::EXAMPLES)]
    Purge(Box<PurgeArgs>),
    /// Keep the endpoints of Services as Consul has the instances
    #[command(after_help = import::EXAMPLES)]
    Import(Box<import::ImportArgs>),
    /// Hold a pod unready until it is in Consul's catalog, and deregister it before it ends
    #[command(after_help = sidecar::EXAMPLES)]
    Sidecar(sidecar::SidecarArgs),
    /// Keep the pods of one node registered with that node's agent
    #[command(after_help = node::EXAMPLES)]
    Node(Box<node::NodeArgs>),
    /// Register an instance with Consul's agent, from a lifecycle hook
    Register(RegisterArgs),
    /// Remove an instance from Consul's agent, from a lifecycle hook
    Deregister(DeregisterArgs),
    /// Copy this program into a directory, for init containers
    Install {
        /// The directory, a volume that the application's container shares
        #[arg(long, env = "KUBE_CONSUL_TO", value_name = "DIR")]
        to: PathBuf,
    },
    /// Print our command line for that of a tool that is replaced, and what has no counterpart
    #[command(after_help = migrate::EXAMPLES)]
    Migrate(migrate::MigrateArgs),
    /// Print the completions of a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print a man page, or write all of them
    Man(pages::ManArgs),
}

/// Parses the command line, runs it, and says how it ended.
pub fn main() -> ExitCode {
    if is_invoked_as_hook() {
        return ExitCode::from(HookCli::read().run());
    }
    if import::is_invoked_as_consul8s(std::env::args_os().next()) {
        return ExitCode::from(import::Consul8sCli::parse().run());
    }
    if katalog::is_invoked_as(node::OLD_NAME) {
        return ExitCode::from(katalog::main(node::OldCli::run));
    }
    if katalog::is_invoked_as(sidecar::OLD_NAME) {
        return ExitCode::from(katalog::main(sidecar::OldCli::run));
    }
    let empty = |variable: &OsStr| std::env::var_os(variable).is_some_and(|it| it.is_empty());
    let command = without_variables(Cli::command(), &empty);
    let parsed = command.try_get_matches().and_then(|found| Cli::from_arg_matches(&found));
    ExitCode::from(match parsed {
        Ok(cli) => cli.run(),
        Err(error) => misused(&error),
    })
}

/// Tells what is wrong with the command line, or the help that it asks for.
fn misused(error: &clap::Error) -> u8 {
    // Nobody is left to tell it to when this fails.
    let _ = error.print();
    let code = u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE);
    let lenient = Cli::command().ignore_errors(true).try_get_matches();
    match lenient.as_ref().map(clap::ArgMatches::subcommand_name) {
        Ok(Some("plan")) => plan::without_usage(code),
        _ => code,
    }
}

// === impl Command ===

impl Command {
    /// Whether it has the options of [`ConsulArgs`], one of which names the token's file.
    fn takes_consul_options(&self) -> bool {
        matches!(
            self,
            Self::Bridge(_)
                | Self::Plan(_)
                | Self::Check(_)
                | Self::Purge(_)
                | Self::Import(_)
                | Self::Node(_)
        )
    }
}

// === impl Cli ===

impl Cli {
    fn run(self) -> u8 {
        if let Err(error) = self.log.start() {
            return match self.command {
                Command::Plan(_) => failed(&error),
                _ => usage(&error),
            };
        }
        if self.acl_file.is_given() && self.command.takes_consul_options() {
            let error = run::Error::Usage(ONLY_OF_HOOK.to_owned());
            return match self.command {
                Command::Plan(_) => failed(&error),
                _ => usage(&error),
            };
        }
        match self.command {
            Command::Bridge(args) => match args.options() {
                Err(error) => usage(&*error),
                Ok(options) => finish(run::bridge::main(options)),
            },
            Command::Plan(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Status(args) => {
                finish(run::status::status(&args.admin_url.to_string(), args.output))
            }
            Command::Explain(status::ExplainArgs { service, status }) => {
                let url = status.admin_url.to_string();
                finish(run::status::explain(&url, &service, status.output))
            }
            Command::Purge(args) => match args.options() {
                Err(error) => usage(&*error),
                Ok(options) => finish(run::purge::main(options)),
            },
            Command::Import(args) => match args.options() {
                Err(error) => usage(&*error),
                Ok(options) => finish(run::import::main(options)),
            },
            Command::Sidecar(args) => match args.options(&katalog::environment) {
                Err(error) => usage(&error),
                Ok(options) => finish(run::sidecar::main(options)),
            },
            Command::Node(args) => match args.options(&katalog::environment) {
                Err(error) => usage(&error),
                Ok(options) => finish(run::node::main(options)),
            },
            Command::Register(args) => args.run(&self.acl_file),
            Command::Deregister(args) => args.run(&self.acl_file),
            Command::Install { to } => finish(run::install::main(&to)),
            Command::Migrate(args) => match args.text() {
                Err(error) => usage(&error),
                Ok(text) => print(text.as_bytes()),
            },
            Command::Completions { shell } => print(&pages::completions(shell, Self::command())),
            Command::Man(args) => args.run(Self::command()).unwrap_or_else(|error| match &error {
                pages::Error::UnknownCommand { .. } => usage(&error),
                pages::Error::Write { .. } => failed(&error),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
