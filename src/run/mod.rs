//! One subcommand each: the loop that joins the core and the edges.

pub mod bridge;
pub mod hook;
pub mod install;
mod patience;
pub mod plan;
pub mod purge;

use thiserror::Error;

/// How a subcommand ends when it does not end well.
#[derive(Debug, Error)]
pub enum Error {
    /// Wrong usage or configuration: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// Refused for safety: exit code 3.
    #[error("{0}")]
    Refused(String),
    /// It failed: exit code 1.
    #[error("{0}")]
    Failed(String),
    /// The user interrupted it: exit code 130.
    #[error("interrupted")]
    Interrupted,
}

/// A runtime with this many threads for what runs beside the main one, and TLS.
fn runtime(threads: usize) -> Result<tokio::runtime::Runtime, Error> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("another TLS provider is installed already");
    }
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(|error| Error::Failed(format!("cannot start: {error}")))
}
