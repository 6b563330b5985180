//! `kubectl proxy`: the way to the API server without TLS and tokens.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::port::Port;
use crate::program::{Program, ProgramOptions};
use crate::tools;

/// It listens within 100 ms; a busy machine makes that longer.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A running `kubectl proxy`.
#[derive(Debug)]
pub struct KubectlProxy {
    program: Program,
    port: Port,
}

impl KubectlProxy {
    /// Starts one that reaches the API server as this kubeconfig says.
    pub async fn start(kubeconfig: &Path) -> Result<Self> {
        let port = Port::pick()?;
        let options = ProgramOptions::new(tools::program("kubectl")?)
            .arg(format!("--kubeconfig={}", kubeconfig.display()))
            .arg("proxy")
            .arg(format!("--port={}", port.number()));
        let program = Program::start("kubectl-proxy", options).await?;
        program
            .wait_for_line("its address", START_DEADLINE, |line| {
                line.starts_with("Starting to serve on")
            })
            .await
            .context("start kubectl proxy")?;
        Ok(Self { program, port })
    }

    /// Its URL, `http://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port.number())
    }

    /// The process.
    pub fn program(&self) -> &Program {
        &self.program
    }
}
