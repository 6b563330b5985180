//! One subcommand each: the loop that joins the core and the edges.
//!
//! | module | what it does |
//! |---|---|
//! | [`bridge`] | keeps Consul in sync with the Services of the cluster |
//! | [`plan`] | shows what `bridge` would change now, and changes nothing |
//! | [`check`] | whether each thing holds that `bridge` needs |
//! | [`status`] | what a running bridge says of itself and of a Service |
//! | [`purge`] | removes everything that one cluster owns in Consul |
//! | [`hook`] | `register` and `deregister`: one instance, from a lifecycle hook |
//! | [`import`] | keeps the endpoints of Services as Consul has the instances |
//! | [`sidecar`] | holds a pod unready until it is in the catalog, and deregisters it first |
//! | [`node`] | keeps the pods of one node registered with that node's agent |
//! | [`install`] | copies the program into a volume |
//! | [`daemon`] | the frame of a daemon: what the long-running commands share |

pub mod bridge;
pub mod check;
pub mod daemon;
pub mod hook;
pub mod import;
pub mod install;
pub mod node;
pub mod plan;
pub mod purge;
pub mod sidecar;
pub mod status;

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
