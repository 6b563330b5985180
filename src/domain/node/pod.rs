//! What is read of a pod: the parts that can change its registrations.

use std::collections::BTreeMap;

use crate::domain::kube::names::ObjectKey;

/// Prefixes of the annotations, in the order of their precedence.
pub const PREFIXES: [&str; 2] = ["kube-consul.io/", "katalog-sync.wish.com/"];

/// Types of the readiness gates: ours, and katalog-sync's.
pub const GATES: [&str; 2] = ["kube-consul.io/synced", "katalog-sync.wish.com/synced"];

/// A pod of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Tells it from a later one of the same name.
    pub uid: Box<str>,
    /// Those that begin with one of [`PREFIXES`].
    pub annotations: BTreeMap<Box<str>, Box<str>>,
    /// How far it is.
    pub phase: Phase,
    /// Whether it has a deletion timestamp.
    pub is_terminating: bool,
    /// Its first address.
    pub ip: Option<Box<str>>,
    /// The containers of its spec, then its native sidecars.
    pub containers: Vec<Container>,
    /// The readiness gates of [`GATES`] that it has, each with the condition's status if it has one.
    pub gates: Vec<(&'static str, Option<bool>)>,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Not begun, or not known.
    #[default]
    Pending,
    /// It runs.
    Running,
    /// It ended: `Succeeded` or `Failed`.
    Ended,
}

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: Box<str>,
    /// Whether it is an init container that is restarted always, as a sidecar is.
    pub is_native_sidecar: bool,
    /// Its ports with their names (empty: none).
    pub ports: Vec<(Box<str>, u16)>,
    /// Whether it is ready, and how often it was restarted; none before its first status.
    pub status: Option<Status>,
}

/// What the kubelet says of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether it is ready.
    pub is_ready: bool,
    /// How often it was restarted.
    pub restarts: i32,
}

/// What a watch, or the kubelet, shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A pod.
    Pod(ObjectKey, Pod),
    /// One that could not be read, and why: what was known of it stays.
    Undecodable(ObjectKey, String),
}

// === impl Pod ===

impl Pod {
    /// The container of this name.
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers.iter().find(|container| &*container.name == name)
    }
}

// === impl Seen ===

impl Seen {
    /// Whose it is.
    pub fn key(&self) -> &ObjectKey {
        match self {
            Seen::Pod(key, _) | Seen::Undecodable(key, _) => key,
        }
    }
}
