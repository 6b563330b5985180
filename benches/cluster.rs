//! `make bench`: the suite of `suite/` from the command line.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Parser;
use kube_consul_stack::install_provider;

mod suite;

use self::suite::{Scale, Suite};

/// What is measured, and how much of it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Only scenarios whose name contains this.
    #[arg(default_value = "")]
    scenarios: String,
    /// The smallest form of each scenario: it shows that the scenario works, no more.
    #[arg(long)]
    smallest: bool,
    /// Rounds of each figure.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Services of the cluster, a multiple of 100.
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// List the scenarios, measure nothing.
    #[arg(long)]
    list: bool,
    /// Where the table, JSON and plots go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Write the figures of a whole run into the documentation in this folder, too.
    #[arg(long)]
    docs: Option<PathBuf>,
    /// The program that is measured.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_kube-consul"))]
    program: PathBuf,
    /// Given by `cargo bench`; without it everything is in its smallest form.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    install_provider();
    let arguments = Arguments::parse();
    let mut scale = Scale::whole(arguments.program);
    if arguments.smallest || !arguments.bench {
        scale = Scale::smallest(scale.program);
    } else {
        scale.rounds = arguments.rounds;
        scale.services = arguments.services;
    }
    let suite = Suite::new(scale, &arguments.scenarios);
    if arguments.list {
        suite.list();
        return Ok(());
    }
    let report = suite.run().await?;
    report.write(&arguments.out)?;
    if let Some(docs) = arguments.docs.filter(|_| suite.is_whole()) {
        report.document(&docs)?;
    }
    ensure!(report.failures.is_empty(), "{} scenarios failed", report.failures.len());
    Ok(())
}
