//! What a watch says, and why it fails.

use std::fmt;
use std::time::Duration;

use crate::domain::kube::object::{Kind, SeenObject, WatchEvent};

/// Time that a whole list may wait for the server: etcd compacts every five minutes, after which
/// a list's later pages cannot be had anyway.
pub const LIST_TIMEOUT: Duration = Duration::from_mins(5);

/// Between two looks for a kind that the server does not serve: as soon as people expect something of
/// what they have just installed, at the cost of an answer of a few bytes.
pub const NOT_SERVED_RETRY: Duration = Duration::from_secs(10);

/// What the stream says. `T` is an object with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice<T = SeenObject> {
    /// Something was seen in the cluster.
    Event(WatchEvent<T>),
    /// The server showed that it is there: it accepted a watch, or sent a bookmark.
    Heard(Kind),
    /// The watch fails, and is tried again.
    Trouble(Trouble),
    /// The server does not serve this kind, which is a custom resource: it is asked again every
    /// [`NOT_SERVED_RETRY`]. That shows nothing of the objects.
    NotServed(Kind),
    /// The watch that was in trouble has not failed for a minute.
    Recovered(Kind),
}

/// A watch that fails. Reported at the first failure and then at most every ten seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is watched.
    pub kind: Kind,
    /// The newest failure.
    pub error: Error,
    /// How many there were since the watch was last without trouble.
    pub failures: u32,
    /// When it is tried again.
    pub retry_in: Duration,
}

/// What is watched: the resource as RBAC rules name it, and the namespace if it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The resource.
    pub resource: &'static str,
    /// The namespace; none for all.
    pub namespace: Option<Box<str>>,
}

/// Why a watch failed. All of these are tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No permission to list or watch.
    #[error(
        "expected the right to list and watch {target}, found none ({cause}); \
         {manifest} grants it"
    )]
    Denied {
        /// What is watched.
        target: Target,
        /// The file that grants the permission.
        manifest: &'static str,
        /// The API server's words.
        cause: String,
    },
    /// A page of the list could not be read.
    #[error("cannot list {target}: {cause}")]
    List {
        /// What is watched.
        target: Target,
        /// What failed.
        cause: String,
    },
    /// The list took too long.
    #[error("expected the whole list of {0} within {LIST_TIMEOUT:?}, found it unfinished")]
    ListTimeout(Target),
    /// The watch could not be started.
    #[error("cannot watch {target}: {cause}")]
    Start {
        /// What is watched.
        target: Target,
        /// What failed.
        cause: String,
    },
    /// The watch was ended by the server or the connection.
    #[error("the watch of {target} broke off: {cause}")]
    Watch {
        /// What is watched.
        target: Target,
        /// What failed.
        cause: String,
    },
    /// The server ends each watch at once.
    #[error(
        "expected watches of {target} that last, found {count} in a row that ended at once \
         without an event; is a proxy in between that cuts long responses?"
    )]
    EndedAtOnce {
        /// What is watched.
        target: Target,
        /// How many.
        count: u32,
    },
    /// The kubelet did not give the list of its pods.
    #[error("cannot list the pods of the kubelet at {url}: {cause}")]
    Kubelet {
        /// Where it was asked.
        url: String,
        /// What failed.
        cause: String,
    },
    /// The server's storage is older than what it has shown before.
    #[error(
        "expected {target} at version {expected} or newer, found {found}: the storage of the \
         Kubernetes API was set back, as by restoring etcd from a backup; relisting"
    )]
    SetBack {
        /// What is watched.
        target: Target,
        /// Our version.
        expected: String,
        /// The server's newest.
        found: String,
    },
}

// === impl Target ===

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}
