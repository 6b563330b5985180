//! One subcommand each: the loop that joins the core and the edges.
//!
//! | module | what it does |
//! |---|---|
//! | [`bridge`] | keeps Consul in sync with the Services of the cluster |
//! | [`plan`] | shows what `bridge` would change now, and changes nothing |
//! | [`purge`] | removes everything that one cluster owns in Consul |
//! | [`hook`] | `register` and `deregister`: one instance, from a lifecycle hook |
//! | [`install`] | copies the program into a volume |
//! | `daemon` | what all long-running commands share |

pub mod bridge;
mod daemon;
pub mod hook;
pub mod install;
pub mod plan;
pub mod purge;

use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

use crate::consul::http::client::Client as ConsulClient;

/// How long ending the login may take at the end: one write of the servers', which takes
/// milliseconds. After that the token stays until it runs out or somebody deletes it.
const LOGOUT: Duration = Duration::from_secs(1);

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

/// Ends the login, where there was one: its token must not outlive the process. The caller sees to
/// it that nothing is asked of Consul any more, which would log in again.
async fn log_out(consul: &ConsulClient) {
    match timeout(LOGOUT, consul.logout()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = error.chain(), "cannot log out of Consul: the token stays");
        }
        Err(_) => tracing::warn!("no answer to logging out of Consul: the token stays"),
    }
}

/// The runtime, and TLS. One thread: the state of a bridge is one task's anyway, and what others
/// would do beside it (connections, the admin server) is little, while each would have a heap of
/// its own: with 10,000 Services that was 5 MiB. What a probe may wait for is the loop's longest
/// turn, the first reconciliation: a second with 100,000 endpoints.
fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("another TLS provider is installed already");
    }
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::Failed(format!("cannot start: {error}")))
}
