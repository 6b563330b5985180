//! What does not change while the process runs, and what the handshake finds.

use std::time::Duration;

use crate::domain::consul::ptr::ConsulDomain;
use crate::domain::services::settings::Settings;
use crate::domain::sync::ledger::KnownRegistration;

/// What does not change while the process runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is registered.
    pub settings: Settings,
    /// Where the records go.
    pub target: Target,
    /// How much may be sent at a time.
    pub capacity: Capacity,
    /// Least time between two resyncs.
    pub resync: Duration,
    /// Any number that differs between replicas, so that their resyncs drift apart.
    pub seed: u64,
    /// For one that synchronizes once: see [`Core::once`].
    pub once: Option<Duration>,
}

/// What the handshake found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What PTR records end with; `None`: none can be written.
    pub domain: Option<ConsulDomain>,
    /// Whether the catalog can be asked for what the agent should have passed on.
    pub shows_catalog: bool,
}

/// Where the records go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Target {
    /// The API of an agent: each record is a request of its own.
    #[default]
    Agent,
    /// The catalog, by transactions.
    Catalog,
}

/// How much may be sent at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Requests under way.
    pub flights: usize,
    /// Groups of writes that one request carries.
    pub groups: usize,
}

// === impl Capacity ===

impl Capacity {
    /// How many groups of one Service are planned and sent before others have their turn: one full
    /// request, or where each carries little four rounds of them.
    pub(super) fn step(self) -> usize {
        self.groups.max(4 * self.flights)
    }
}

// === impl Config ===

impl Config {
    /// These settings, with a capacity and a period that fit tests and tools.
    pub fn new(settings: Settings, target: Target) -> Self {
        let capacity = match target {
            Target::Agent => Capacity { flights: 16, groups: 1 },
            Target::Catalog => Capacity { flights: 4, groups: 60 },
        };
        Self { settings, target, capacity, resync: Duration::from_mins(1), seed: 0, once: None }
    }
}

// === impl Target ===

impl Target {
    /// Whether each namespace has a node of its own, which goes with the last record on it.
    pub(super) fn has_namespace_nodes(self) -> bool {
        self == Target::Catalog
    }

    /// Whether an instance and its PTR record are applied together or not at all.
    pub(super) fn writes_groups_whole(self) -> bool {
        self == Target::Catalog
    }

    /// Whether a check of ours may be there that has to go when an instance is ready. In an agent
    /// only the critical one can be; in the catalog a passing one too, of a bridge with other
    /// options.
    pub(super) fn may_have_check(self, known: &KnownRegistration) -> bool {
        self == Target::Catalog || known.critical || known.fingerprint.is_none()
    }

    /// Whether it keeps the token of each registration, and is marked by a registration of its own.
    pub(super) fn keeps_tokens(self) -> bool {
        self == Target::Agent
    }
}
