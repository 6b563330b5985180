//! `make run`: kube-consul on a real local cluster, as it runs in its pod.

mod cluster;
mod dns;
mod steps;

use std::fmt::Display;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::Parser;
use kube_consul_stack::{remove_run_folder, run_folder};
use tokio::signal::unix::{SignalKind, signal};

use cluster::LocalCluster;

/// Starts Kubernetes without nodes (kwok), `kubectl proxy`, a Consul agent and
/// `kube-consul bridge`, deploys a sample application, and says what to try.
#[derive(Debug, Parser)]
#[command(name = "local-cluster")]
struct Arguments {
    /// The kube-consul program [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    bridge: Option<PathBuf>,
    /// The folder with the manifests whose service account the bridge gets
    #[arg(long, value_name = "DIR", default_value = "manifests")]
    manifests: PathBuf,
    /// Run each printed command and check its answer, again when it has all run for this many
    /// seconds, and exit
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "90")]
    exit_after_ready: Option<u64>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let screen = Screen::new();
    let outcome = Box::pin(run(&arguments, &screen)).await;
    match outcome {
        Ok(()) => {
            // What is left there belongs to programs that have just been killed.
            let _ = remove_run_folder();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("local-cluster: {error:#}");
            eprintln!("logs are in {}", run_folder().display());
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C or SIGTERM. The children are in groups of their own, so this is the
/// only process that a terminal tells; they end with it.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    eprintln!();
    Ok(())
}

async fn run(arguments: &Arguments, screen: &Screen) -> Result<()> {
    let bridge = match &arguments.bridge {
        Some(path) => path.clone(),
        None => std::env::current_exe()
            .context("find the folder of this program")?
            .with_file_name("kube-consul"),
    };
    let starting = LocalCluster::start(&bridge, &arguments.manifests, screen);
    let cluster = tokio::select! {
        cluster = starting => cluster?,
        outcome = interrupted() => return outcome,
    };
    let started = Instant::now();
    let steps = cluster.steps()?;
    println!("\n{}\n", screen.heading("Kubernetes and Consul are in sync. Try, in another shell:"));
    for step in &steps {
        step.print(screen);
    }
    println!("The sample is in tests/stack/src/bin/local-cluster/sample.yaml.");
    println!("Logs: {}", run_folder().display());
    let outcome = if let Some(age) = arguments.exit_after_ready.map(Duration::from_secs) {
        let checked = async {
            steps::check(&steps).await?;
            // What was to fail only after a while has had its time: a node without heartbeats is
            // taken for dead after 50 s.
            tokio::time::sleep(age.saturating_sub(started.elapsed())).await;
            println!("{} s later:", started.elapsed().as_secs());
            steps::check(&steps).await
        };
        tokio::select! {
            outcome = cluster.while_running(checked) => outcome,
            outcome = interrupted() => outcome,
        }
    } else {
        println!("{}", screen.heading("Ctrl-C ends all of it."));
        cluster.while_running(interrupted()).await
    };
    cluster.stop().await?;
    outcome
}

/// What is written to the terminal, in colours only there.
struct Screen {
    colours: bool,
}

impl Screen {
    fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colours: wanted && std::io::stdout().is_terminal() }
    }

    fn styled(&self, code: &str, text: impl Display) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn heading(&self, text: impl Display) -> String {
        self.styled("1", text)
    }

    fn comment(&self, text: impl Display) -> String {
        self.styled("2", text)
    }

    fn command(&self, text: impl Display) -> String {
        self.styled("36", text)
    }

    /// Does something that takes seconds and says so, with its time.
    async fn doing<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let outcome = work.await?;
        println!(
            "{what} {}",
            self.comment(format_args!("({:.1} s)", started.elapsed().as_secs_f64()))
        );
        Ok(outcome)
    }
}
