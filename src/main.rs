//! Arguments, logging, exit codes: nothing else.

use std::process::ExitCode;

fn main() -> ExitCode {
    kube_consul::cli::main()
}
