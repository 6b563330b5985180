//! What a sidecar asks the daemon of its node for, and why it may be refused: said once for the
//! server, the client and whoever decides.

pub mod machine;

use std::time::Duration;

use thiserror::Error;

use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;

/// The namespace of a query that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// What a sidecar asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SyncKind {
    /// To be told when the pod is in the catalog.
    Register,
    /// To be made critical, and to be told when the catalog shows it.
    Deregister,
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The pod.
    pub pod: ObjectKey,
    /// The sidecar's container, as it calls itself; may be empty. The pod's annotation decides.
    pub container: Box<str>,
}

/// Why a daemon does not do what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SyncError {
    /// No pod of this name on this node is to be registered.
    #[error("{0}")]
    UnknownPod(String),
    /// The pod names no sidecar, or another one.
    #[error("{0}")]
    NoSidecar(String),
    /// The other containers of the pod are not ready.
    #[error("{0}")]
    NotReady(String),
    /// The daemon cannot say or do it yet: it is starting, or does not reach Consul.
    #[error("{0}")]
    Unavailable(String),
    /// More requests are under way than are taken at a time.
    #[error("{0}")]
    Exhausted(String),
    /// It took too long. What was asked for goes on.
    #[error("{0}")]
    DeadlineExceeded(String),
    /// Anything else: the other side is no daemon, or one that says no more.
    #[error("{0}")]
    Other(String),
}

/// How a refusal is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same call again after a delay that grows from call to call.
    After(Backoff),
    /// There is nothing to be done: what was asked for holds already.
    Done,
}

/// Between two calls while the daemon cannot be reached: that is a restart, which takes a second.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Between two calls that something outside has to change in between, at most: somebody edits the pod,
/// or the daemon gets rid of its load. In times of the ordinary longest delay.
const PATIENCE: u32 = 10;

// === impl Caller ===

impl Caller {
    /// The pod of a query.
    pub fn new(namespace: &str, pod: &str, container: &str) -> Self {
        let namespace = if namespace.is_empty() { DEFAULT_NAMESPACE } else { namespace };
        Self { pod: ObjectKey::new(namespace, pod), container: container.into() }
    }
}

// === impl SyncError ===

impl SyncError {
    /// What a sidecar does about it. `longest`: between two calls, as the user wants it.
    pub fn retry(&self, kind: SyncKind, longest: Duration) -> Retry {
        let growing = |longest| Retry::After(Backoff::new(FIRST_DELAY.min(longest), longest));
        match (self, kind) {
            // What is not there, or never was the sidecar's to hold, is not in the catalog through it.
            (Self::UnknownPod(_) | Self::NoSidecar(_), SyncKind::Deregister) => Retry::Done,
            (Self::NoSidecar(_) | Self::Exhausted(_), _) => growing(longest * PATIENCE),
            (Self::NotReady(_), _) => Retry::After(Backoff::new(longest, longest)),
            (
                Self::UnknownPod(_)
                | Self::Unavailable(_)
                | Self::DeadlineExceeded(_)
                | Self::Other(_),
                _,
            ) => growing(longest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: Duration = Duration::from_secs(1);

    #[test]
    fn a_query_without_a_namespace_is_about_the_default_one() {
        assert_eq!(Caller::new("", "web-0", "c").pod, ObjectKey::new("default", "web-0"));
        assert_eq!(Caller::new("shop", "web-0", "c").pod, ObjectKey::new("shop", "web-0"));
    }

    #[test]
    fn a_pod_that_is_not_held_needs_no_deregistration() {
        for error in [SyncError::UnknownPod(String::new()), SyncError::NoSidecar(String::new())] {
            assert_eq!(error.retry(SyncKind::Deregister, LONGEST), Retry::Done);
            assert_ne!(error.retry(SyncKind::Register, LONGEST), Retry::Done);
        }
    }

    #[test]
    fn every_other_refusal_is_followed_by_another_try() {
        let longest = |error: SyncError, kind| match error.retry(kind, LONGEST) {
            Retry::After(backoff) => backoff.longest,
            Retry::Done => panic!("{error:?} ends it"),
        };
        for kind in [SyncKind::Register, SyncKind::Deregister] {
            let text = String::new;
            assert_eq!(longest(SyncError::Unavailable(text()), kind), LONGEST);
            assert_eq!(longest(SyncError::NotReady(text()), kind), LONGEST);
            assert_eq!(longest(SyncError::DeadlineExceeded(text()), kind), LONGEST);
            assert_eq!(longest(SyncError::Other(text()), kind), LONGEST);
            assert_eq!(longest(SyncError::Exhausted(text()), kind), LONGEST * PATIENCE);
        }
    }
}
