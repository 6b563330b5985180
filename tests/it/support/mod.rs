//! A bridge on the real cluster: the built program with the shipped rights, beside a Consul of
//! the test's own, in a namespace of the test's own.

mod bridge;
mod browser;
mod dns;
mod fixture;
mod monitor;
mod objects;
mod rights;
mod scenarios;

use std::time::Duration;

use anyhow::{Result, anyhow};
use kube_consul_stack::{Program, ProgramOptions};

pub use self::bridge::Bridge;
pub use self::browser::Browser;
pub use self::dns::Dns;
pub use self::fixture::{Fixture, catalog_bridge, recorded_command};
pub use self::monitor::InvariantMonitor;
pub use self::objects::{Addresses, Objects, for_each, numbered, service, slice};
pub use self::rights::{
    kubeconfig_with, kubeconfig_without, manifest, shared_token, shipped_kubeconfig, shipped_rules,
    shipped_token,
};
pub use self::scenarios::Scenarios;

/// What happens within milliseconds alone takes seconds beside a build.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The command line's beginning.
pub fn kube_consul() -> ProgramOptions {
    ProgramOptions::new(env!("CARGO_BIN_EXE_kube-consul"))
}

/// Whether a terminal does more than to show it, or shows other text than it is.
pub fn acts_on_terminals(c: char) -> bool {
    (c.is_control() && c != '\n') || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Runs the program to its end and gives what it wrote to standard error.
pub async fn ends_with(code: i32, options: ProgramOptions) -> Result<String> {
    let program = Program::start("kube-consul", options).await?;
    program.wait_for_code(code, DEADLINE).await?;
    Ok(program.stderr())
}

/// Runs the program to its end and gives what it wrote to standard output.
pub async fn says(code: i32, options: ProgramOptions) -> Result<String> {
    let program = Program::start("kube-consul", options).await?;
    program.wait_for_code(code, DEADLINE).await?;
    Ok(program.stdout())
}

/// The flags of the two bridges that `migrate` prints for a command line of sync-catalog: of that which
/// runs beside it, and of that which takes its place.
pub async fn translated(theirs: &[&str]) -> Result<[Vec<String>; 2]> {
    let command = kube_consul().args(["migrate", "from-sync-catalog", "--"]).args(theirs);
    let text = says(0, command).await?.replace(" \\\n", "");
    let lines = text.lines().filter(|line| line.starts_with("kube-consul bridge"));
    let bridges: Vec<Vec<String>> = lines
        .map(|line| {
            let words = line.split_whitespace().skip(2);
            words.map(|word| word.trim_matches('\'').to_owned()).collect()
        })
        .collect();
    bridges.try_into().map_err(|found| anyhow!("expected two bridges, found {found:?}"))
}
