//! What is asked of Consul, as one of a few words: for metrics.

use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use http::Method;

/// What a request asks for. Paths hold names, and are without bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// A transaction.
    Transaction,
    /// Registering with the agent.
    AgentRegister,
    /// Deregistering from the agent.
    AgentDeregister,
    /// Updating a check of the agent's.
    AgentCheck,
    /// Reading what the agent has.
    AgentRead,
    /// Reading the catalog.
    CatalogRead,
    /// Reading instances with their checks.
    HealthRead,
    /// Reading KV.
    KvRead,
    /// Writing KV outside of a transaction: the lock.
    KvWrite,
    /// Sessions.
    Session,
    /// Logging in and out.
    Login,
    /// Asking who leads.
    Status,
    /// Anything else.
    Other,
}

/// Told of every request that was answered or failed, but for blocking queries, whose time is that
/// of the next change: what was asked, how long the answer took, and whether it was one.
pub type Observer = Box<dyn Fn(Operation, Duration, bool) + Send + Sync>;

/// The observer, once there is one.
#[derive(Default)]
pub(in crate::consul) struct Observed(pub OnceLock<Observer>);

// === impl Operation ===

impl Operation {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Transaction,
        Self::AgentRegister,
        Self::AgentDeregister,
        Self::AgentCheck,
        Self::AgentRead,
        Self::CatalogRead,
        Self::HealthRead,
        Self::KvRead,
        Self::KvWrite,
        Self::Session,
        Self::Login,
        Self::Status,
        Self::Other,
    ];

    /// The word by which metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::AgentRegister => "agent_register",
            Self::AgentDeregister => "agent_deregister",
            Self::AgentCheck => "agent_check",
            Self::AgentRead => "agent_read",
            Self::CatalogRead => "catalog_read",
            Self::HealthRead => "health_read",
            Self::KvRead => "kv_read",
            Self::KvWrite => "kv_write",
            Self::Session => "session",
            Self::Login => "login",
            Self::Status => "status",
            Self::Other => "other",
        }
    }

    /// That of a request.
    pub(in crate::consul) fn of(method: &Method, path: &str) -> Self {
        let is_read = *method == Method::GET;
        let Some(path) = path.strip_prefix("/v1/") else { return Self::Other };
        let beginnings = [
            ("txn", Self::Transaction),
            ("agent/service/register", Self::AgentRegister),
            ("agent/service/deregister/", Self::AgentDeregister),
            ("agent/check/", Self::AgentCheck),
            ("agent/", if is_read { Self::AgentRead } else { Self::Other }),
            ("catalog/", if is_read { Self::CatalogRead } else { Self::Other }),
            ("health/", Self::HealthRead),
            ("kv/", if is_read { Self::KvRead } else { Self::KvWrite }),
            ("session/", Self::Session),
            ("acl/", Self::Login),
            ("status/", Self::Status),
        ];
        let of_path = beginnings.into_iter().find(|(beginning, _)| path.starts_with(beginning));
        of_path.map_or(Self::Other, |(_, operation)| operation)
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_one_of_a_few() {
        for (method, path, word) in [
            (Method::PUT, "/v1/txn", "transaction"),
            (Method::PUT, "/v1/agent/service/register", "agent_register"),
            (Method::PUT, "/v1/agent/service/deregister/a%2Fb", "agent_deregister"),
            (Method::PUT, "/v1/agent/check/update/service:a", "agent_check"),
            (Method::GET, "/v1/agent/service/register", "agent_register"),
            (Method::GET, "/v1/agent/services", "agent_read"),
            (Method::GET, "/v1/catalog/services", "catalog_read"),
            (Method::GET, "/v1/health/service/x", "health_read"),
            (Method::GET, "/v1/kv/a/b", "kv_read"),
            (Method::PUT, "/v1/kv/a/b", "kv_write"),
            (Method::PUT, "/v1/session/create", "session"),
            (Method::POST, "/v1/acl/login", "login"),
            (Method::GET, "/v1/status/leader", "status"),
            (Method::GET, "/v2/anything", "other"),
        ] {
            assert_eq!(Operation::of(&method, path).as_str(), word, "{method} {path}");
        }
        let words: std::collections::BTreeSet<_> = Operation::ALL.map(Operation::as_str).into();
        assert_eq!(words.len(), Operation::ALL.len());
    }
}
