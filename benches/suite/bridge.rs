//! A running bridge, and what it takes of the machine.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Port, Program, ProgramOptions};

use super::Bench;
use super::objects::Memory;

/// Of each wait: the longest load takes half a minute, twenty times that.
const DEADLINE: Duration = Duration::from_mins(10);
/// Between two looks at the metrics, which cost the bridge a fraction of a millisecond.
const POLL: Duration = Duration::from_millis(20);

/// A running bridge.
pub struct Bridge {
    pub program: Program,
    admin: Port,
    client: reqwest::Client,
    began: Instant,
}

/// The processor time that a process has had, in seconds: that of its threads, which is counted in
/// nanoseconds where `stat` has hundredths of a second.
pub fn cpu(pid: i32) -> Result<f64> {
    let mut nanoseconds = 0.0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split_whitespace().next().context("an empty schedstat")?;
        nanoseconds += first.parse::<f64>()?;
    }
    Ok(nanoseconds / 1e9)
}

fn kubeconfig(bench: &Bench) -> String {
    format!("--kubeconfig={}", bench.kubernetes.kubeconfig().display())
}

// === impl Bridge ===

impl Bridge {
    /// Starts one that writes to the Consul at this URL, with these further options.
    pub async fn start(bench: &Bench, consul: &str, options: &[&str]) -> Result<Self> {
        Self::start_command(bench, "bridge", consul, options).await
    }

    /// Starts another long-running command in its place.
    pub async fn start_command(
        bench: &Bench,
        command: &str,
        consul: &str,
        options: &[&str],
    ) -> Result<Self> {
        let program = ProgramOptions::new(&bench.scale.program).arg(command);
        Self::spawn(program, kubeconfig(bench), consul, options).await
    }

    /// Starts a bridge by a program that is given its command line.
    pub async fn start_under(
        bench: &Bench,
        program: ProgramOptions,
        consul: &str,
        options: &[&str],
    ) -> Result<Self> {
        let program = program.arg(&bench.scale.program).arg("bridge");
        Self::spawn(program, kubeconfig(bench), consul, options).await
    }

    /// Starts a bridge that reaches its API server by these flags.
    pub async fn start_at(
        bench: &Bench,
        api_server: String,
        consul: &str,
        options: &[&str],
    ) -> Result<Self> {
        let program = ProgramOptions::new(&bench.scale.program).arg("bridge");
        Self::spawn(program, api_server, consul, options).await
    }

    async fn spawn(
        program: ProgramOptions,
        api_server: String,
        consul: &str,
        options: &[&str],
    ) -> Result<Self> {
        let admin = Port::pick()?;
        let program = program
            .arg(format!("--admin-addr=127.0.0.1:{}", admin.number()))
            .arg(api_server)
            .args(options)
            .env("CONSUL_HTTP_ADDR", consul);
        let began = Instant::now();
        let program = Program::start("kube-consul", program).await?;
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
        Ok(Self { program, admin, client, began })
    }

    /// How long ago it was started.
    pub fn age(&self) -> Duration {
        self.began.elapsed()
    }

    /// The processor time that it has had, in seconds.
    pub fn cpu(&self) -> Result<f64> {
        cpu(self.program.pid())
    }

    /// What it has in memory.
    pub fn memory(&self) -> Result<Memory> {
        Memory::of(&self.program.pid().to_string())
    }

    /// The sum over all series of a metric that begin like this.
    pub async fn metric(&self, series: &str) -> Result<f64> {
        let text = self.get("/metrics").await?;
        let lines = text.lines().filter(|line| line.starts_with(series));
        let values = lines.map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<f64>());
        values.sum::<Result<f64, _>>().with_context(|| format!("the value of {series}"))
    }

    /// Waits until nothing is left to write.
    pub async fn wait_idle(&self) -> Result<()> {
        self.wait("rest", async || Ok(self.metric("kube_consul_backlog ").await? < 1.0)).await
    }

    /// Waits until so much is registered, and nothing is left to write.
    pub async fn wait_in_sync(&self, registrations: usize) -> Result<()> {
        #[expect(clippy::cast_precision_loss, reason = "100,000 at most")]
        let wanted = registrations as f64;
        self.wait("all registrations", async || {
            // Else what is read back may be all there, and the cluster not yet listed.
            self.get("/readyz").await?;
            let found = self.metric("kube_consul_registrations{").await?;
            Ok(found >= wanted && self.metric("kube_consul_backlog ").await? < 1.0)
        })
        .await
    }

    /// Waits for something, for as long as it runs.
    pub async fn wait(&self, what: &str, done: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let end = Instant::now() + DEADLINE;
        // Its admin server listens a moment after it has started.
        while !done().await.unwrap_or(false) {
            let running = self.program.exit_status().is_none() && Instant::now() < end;
            ensure!(running, self.program.failure(&format!("has not come to {what}")));
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Ends it as an operator does.
    pub async fn stop(&self) -> Result<()> {
        self.program.terminate().await;
        self.program.wait_for_code(0, DEADLINE).await
    }

    /// What the admin server answers, if that is a success.
    async fn get(&self, path: &str) -> Result<String> {
        let url = format!("http://127.0.0.1:{}{path}", self.admin.number());
        Ok(self.client.get(url).send().await?.error_for_status()?.text().await?)
    }
}
