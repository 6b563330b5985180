//! The flags of `check`.

use clap::{Arg, Args};

use crate::cli::bridge::BridgeArgs;
use crate::cli::exit::{EXIT_DONE, EXIT_FAILED, finish, usage};
use crate::run::check::{self, Options};
use crate::run::plan::Output;

pub(super) const EXAMPLES: &str = "Examples:
  # does everything hold that the bridge needs?
  kube-consul check --kube-url http://127.0.0.1:8001

  # in an init container: wait until nothing fails
  kube-consul check --sink catalog --wait

Exit codes: 0 nothing failed, 1 something failed, 2 wrong usage, 130 interrupted.";

/// `check`: the flags of `bridge`, and how to print.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// How it is printed
    #[arg(short = 'o', long, env = "KUBE_CONSUL_OUTPUT", default_value = "text", value_enum)]
    output: Output,
    /// Check again until nothing fails
    #[arg(long, env = "KUBE_CONSUL_WAIT")]
    wait: bool,
    #[command(flatten)]
    bridge: BridgeArgs,
}

// === impl CheckArgs ===

impl CheckArgs {
    /// Runs it and gives the exit code; an error is told on standard error.
    pub(super) fn run(self) -> u8 {
        let plan = match self.bridge.options_for_plan() {
            Ok(plan) => plan,
            Err(error) => return usage(&*error),
        };
        match check::main(&Options { plan, wait: self.wait }, self.output) {
            Ok(true) => EXIT_DONE,
            Ok(false) => EXIT_FAILED,
            Err(error) => finish(Err(error)),
        }
    }
}

/// Flags of a process that goes on running or writes, which mean nothing to a check.
const OF_RUNNING: [&str; 4] = ["resync", "once", "admin_addr", "allow_removals"];

/// A flag of the bridge as `check` shows it.
pub(super) fn of_check(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        id if OF_RUNNING.contains(&id) => arg.hide(true),
        "timeout" => arg.help("How long each answer may take"),
        _ => arg,
    }
}
