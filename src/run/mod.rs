//! One subcommand each: the loop that joins the core and the edges.

pub mod bridge;
pub mod hook;
pub mod install;
mod patience;

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
