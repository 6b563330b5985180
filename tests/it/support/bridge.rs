//! A bridge and its admin server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use kube_consul_stack::{Port, Program, ProgramOptions, eventually, install_provider};
use serde_json::Value;

use super::DEADLINE;

/// A running bridge.
pub struct Bridge {
    pub program: Program,
    admin: Port,
    client: reqwest::Client,
}

impl Bridge {
    /// Starts it with an admin server and does not wait.
    pub async fn start(options: ProgramOptions) -> Result<Self> {
        install_provider();
        let admin = Port::pick()?;
        let options = options.arg(format!("--admin-addr=127.0.0.1:{}", admin.number()));
        let program = Program::start("kube-consul", options).await?;
        let client =
            reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(DEADLINE).build()?;
        Ok(Self { program, admin, client })
    }

    /// Where its admin server listens.
    pub fn admin_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.admin.number()).into()
    }

    /// Waits until `/readyz` says 200.
    pub async fn wait_ready(&self) -> Result<()> {
        self.wait_ready_within(DEADLINE).await
    }

    /// The same, for as long as it may take.
    pub async fn wait_ready_within(&self, deadline: Duration) -> Result<()> {
        let ready = eventually(deadline, || async {
            let (status, text) = self.get("/readyz").await?;
            ensure!(status == 200, "/readyz answers {status}: {text}");
            Ok(())
        });
        tokio::select! {
            outcome = ready => outcome.map_err(|error| self.program.failure(&format!("{error:#}"))),
            _ = self.program.wait(deadline * 2) => Err(self.program.failure("ended before it was ready")),
        }
    }

    /// Waits until `/readyz` says 503 with a reason that has this text.
    pub async fn wait_unready(&self, reason: &str) -> Result<()> {
        eventually(DEADLINE, || async {
            let (status, text) = self.get("/readyz").await?;
            ensure!(status == 503 && text.contains(reason), "{status} {text}, want {reason}");
            Ok(())
        })
        .await
    }

    /// Waits until removals are held back, or no longer.
    pub async fn wait_holding(&self, holding: bool) -> Result<()> {
        eventually(DEADLINE, || async {
            let status = self.status().await?;
            ensure!(status["holding"] == holding, "want holding {holding}: {status}");
            Ok(())
        })
        .await
    }

    /// The address of a page of the admin server.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.admin.number())
    }

    /// A page of the admin server: its status and its text.
    pub async fn get(&self, path: &str) -> Result<(u16, String)> {
        if self.program.exit_status().is_some() {
            bail!(self.program.failure("has ended"));
        }
        let url = format!("http://127.0.0.1:{}{path}", self.admin.number());
        let answer = self.client.get(url).send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    /// The problems of one Service.
    pub async fn problems_of(&self, namespace: &str, name: &str) -> Result<Vec<Value>> {
        let status = self.status().await?;
        let all = status["problems"].as_array().cloned().unwrap_or_default();
        let is_of = |it: &Value| it["namespace"] == namespace && it["name"] == name;
        Ok(all.into_iter().filter(is_of).collect())
    }

    /// Waits until a Service has one problem, and gives its message.
    pub async fn wait_for_problem(
        &self,
        namespace: &str,
        name: &str,
        reason: &str,
    ) -> Result<String> {
        eventually(DEADLINE, || async {
            let problems = self.problems_of(namespace, name).await?;
            let [problem] = problems.as_slice() else { bail!("{name}: {problems:?}") };
            ensure!(problem["kind"] == "Service" && problem["reason"] == reason, "{problem}");
            Ok(problem["message"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// Waits until a Service has no problem.
    pub async fn wait_for_no_problem(&self, namespace: &str, name: &str) -> Result<()> {
        eventually(DEADLINE, || async {
            let problems = self.problems_of(namespace, name).await?;
            ensure!(problems.is_empty(), "{name}: {problems:?}");
            Ok(())
        })
        .await
    }

    pub async fn status(&self) -> Result<Value> {
        let (status, text) = self.get("/status").await?;
        ensure!(status == 200, "/status answers {status}: {text}");
        Ok(serde_json::from_str(&text)?)
    }

    /// The value of a metric, by its name and labels as they are shown.
    pub async fn metric(&self, series: &str) -> Result<Option<f64>> {
        let (_, text) = self.get("/metrics").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(line.map(str::parse).transpose()?)
    }

    /// SIGTERM; it has to end with 0.
    pub async fn stop(&self) -> Result<()> {
        self.program.terminate().await;
        self.program.wait_for_code(0, DEADLINE).await
    }
}
