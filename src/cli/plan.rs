//! The flags of `plan`.

use clap::{Arg, Args};

use crate::cli::bridge::BridgeArgs;
use crate::cli::exit::{EXIT_DONE, EXIT_FAILED, EXIT_USAGE, failed, finish};
use crate::run::plan::{self, Output};

/// There is something to change.
const EXIT_CHANGES: u8 = 2;

pub(super) const EXAMPLES: &str = "Examples:
  # what would the bridge change?
  kube-consul plan --kube-url http://127.0.0.1:8001

  # with other options than it has now, for a program to read
  kube-consul plan --namespace shop --address endpoints --output json

Exit codes: 0 nothing to change, 2 changes, 3 refused for safety, 130 interrupted,
1 anything else, wrong usage too.";

/// `plan`: the flags of `bridge`, and how to print.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// How it is printed
    #[arg(short = 'o', long, env = "KUBE_CONSUL_OUTPUT", default_value = "text", value_enum)]
    output: Output,
    #[command(flatten)]
    bridge: BridgeArgs,
}

// === impl PlanArgs ===

impl PlanArgs {
    /// Runs it and gives the exit code; an error is reported on standard error.
    pub(super) fn run(self) -> u8 {
        let options = match self.bridge.options_for_plan() {
            Ok(options) => options,
            Err(error) => return failed(&*error),
        };
        match plan::main(&options, self.output) {
            Ok(false) => EXIT_DONE,
            Ok(true) => EXIT_CHANGES,
            Err(error) => without_usage(finish(Err(error))),
        }
    }
}

/// Flags of a process that goes on running: `plan` takes them, so that the bridge's command line
/// can be used as it is, and they mean nothing to it.
const OF_RUNNING: [&str; 4] = ["leader_elect", "resync", "once", "admin_addr"];

/// A flag of the bridge as `plan` shows it.
pub(super) fn of_plan(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        id if OF_RUNNING.contains(&id) => arg.hide(true),
        "timeout" => arg.help("How long each side may take to be reached"),
        "allow_removals" => {
            arg.help("Show removals that options ask for as made, however many, instead of held")
        }
        _ => arg,
    }
}

/// 2 means changes here: wrong usage is a failure.
pub(super) fn without_usage(code: u8) -> u8 {
    if code == EXIT_USAGE { EXIT_FAILED } else { code }
}
