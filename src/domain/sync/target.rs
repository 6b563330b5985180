//! Where the records go, as far as it matters for what is written and when.

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

    /// Whether it keeps the token of each registration, and is marked by a registration of its own.
    pub(super) fn keeps_tokens(self) -> bool {
        self == Target::Agent
    }
}
