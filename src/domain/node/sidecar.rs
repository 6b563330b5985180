//! What is known of a pod's sidecar. It belongs to the pod's uid.

use crate::domain::node::pod::Pod;

/// What a sidecar said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sidecar {
    /// Nothing yet: the pod is not in sync.
    #[default]
    Silent,
    /// It registered: the pod is in sync once its containers are ready.
    Registered,
    /// It deregistered: the pod is critical until the container has started again and registers.
    Deregistered {
        /// How often the container had been restarted then.
        restarts: i32,
    },
}

// === impl Sidecar ===

impl Sidecar {
    /// What is known of the sidecar of a pod that is seen for the first time: its container is ready
    /// once it registered with whoever was here before.
    pub fn found(pod: &Pod, container: &str) -> Self {
        let status = pod.container(container).and_then(|container| container.status);
        match status {
            Some(status) if status.is_ready => Sidecar::Registered,
            _ => Sidecar::Silent,
        }
    }

    /// It deregisters now.
    pub fn deregistered(pod: &Pod, container: &str) -> Self {
        let status = pod.container(container).and_then(|container| container.status);
        Sidecar::Deregistered { restarts: status.unwrap_or_default().restarts }
    }

    /// The pod is seen as it is now. A container that has started again begins anew.
    pub fn seen(self, pod: &Pod, container: &str) -> Self {
        let status = pod.container(container).and_then(|container| container.status);
        match (self, status) {
            (Sidecar::Deregistered { restarts }, Some(status)) if status.restarts != restarts => {
                Sidecar::Silent
            }
            (known, _) => known,
        }
    }

    /// What it said, in a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Sidecar::Silent => "silent",
            Sidecar::Registered => "registered",
            Sidecar::Deregistered { .. } => "deregistered",
        }
    }
}
