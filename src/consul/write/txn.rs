//! Transactions: several operations that are applied together or not at all.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::Request;
use crate::consul::write::registration::{CheckBody, ServiceBody};

/// Most operations in one transaction: Consul before 1.14 refuses more with 413.
pub const MAX_OPERATIONS: usize = 64;

/// Largest body of a transaction, in bytes: Consul's default limit (`txn_max_req_len` and
/// `kv_max_value_size`, whichever is larger), over which it answers 413.
pub const MAX_BODY: usize = 512 << 10;

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Writes a KV key if its `ModifyIndex` still is `index` (0: it must not exist).
    SetKey {
        /// The key.
        key: Box<str>,
        /// The value.
        value: Box<str>,
        /// Its flags.
        flags: u64,
        /// The `ModifyIndex` that it must have.
        index: u64,
    },
    /// Removes a KV key if its `ModifyIndex` still is `index`; an absent one is no failure.
    DeleteKey {
        /// The key.
        key: Box<str>,
        /// The `ModifyIndex` that it must have.
        index: u64,
    },
    /// Rolls back unless `session` holds the lock `key` (invariant: fencing).
    CheckSession {
        /// The lock.
        key: Box<str>,
        /// The session.
        session: Box<str>,
    },
    /// Creates or updates a node.
    SetNode(NodeBody),
    /// Creates a node; fails as stale if it exists.
    CreateNode(NodeBody),
    /// Removes a node with everything on it; an absent one is no failure.
    DeleteNode {
        /// Its name.
        node: Box<str>,
    },
    /// Creates or replaces a service. The node must exist, or be set earlier in the transaction.
    SetService {
        /// The node's name.
        node: Box<str>,
        /// The service.
        service: ServiceBody,
    },
    /// Removes a service with its checks; an absent one is no failure.
    DeleteService {
        /// The node's name.
        node: Box<str>,
        /// The service ID.
        id: Box<str>,
        /// The service's name: Consul needs it for the ACL.
        name: Box<str>,
    },
    /// Creates or replaces a check.
    SetCheck(CheckBody),
    /// Removes a check; an absent one is no failure.
    DeleteCheck {
        /// The node's name.
        node: Box<str>,
        /// The check ID.
        id: Box<str>,
        /// Name of the service that it belongs to: without it ACLs ask for rights on the node.
        service: Box<str>,
    },
}

/// An [`Operation`] in the form in which it is sent.
#[derive(Clone, Debug, Serialize)]
#[serde(transparent)]
pub struct Encoded(Box<RawValue>);

/// A catalog node as we set it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NodeBody {
    /// Its name.
    pub node: Box<str>,
    /// Its address.
    pub address: Box<str>,
    /// Its meta.
    pub meta: std::collections::BTreeMap<String, String>,
}

/// What an applied transaction says of its KV writes: key and new `ModifyIndex`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenKey {
    /// The key.
    pub key: Box<str>,
    /// Its `ModifyIndex` now.
    pub index: u64,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Results")]
    results: Option<Vec<AnswerItem>>,
}

#[derive(Deserialize)]
struct AnswerItem {
    #[serde(rename = "KV")]
    kv: Option<AnswerKey>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct AnswerKey {
    key: Box<str>,
    modify_index: u64,
}

impl Client {
    /// Applies all operations or none, through the servers' log. A rollback is
    /// [`Error::RolledBack`] with the operations that caused it. At most [`MAX_OPERATIONS`],
    /// and at most [`MAX_BODY`] bytes as JSON ([`Encoded::json_len`]); over that Consul
    /// answers [`Error::TooLarge`] and applies none.
    pub async fn transaction(
        &self,
        operations: impl IntoIterator<Item = &Encoded>,
    ) -> Result<Vec<WrittenKey>, Error> {
        let request = Request::put("/v1/txn").json(&operations.into_iter().collect::<Vec<_>>());
        let reply = self.send(&request).await?.into_found().await?;
        let answer: Answer = reply.json().await?;
        let keys = answer.results.into_iter().flatten().filter_map(|item| item.kv);
        Ok(keys.map(|kv| WrittenKey { key: kv.key, index: kv.modify_index }).collect())
    }
}

// === impl Encoded ===

impl Encoded {
    fn of_json(value: &serde_json::Value) -> Self {
        let raw = to_raw_value(value);
        Self(raw.expect("a JSON value has string keys and no failing Serialize"))
    }

    /// Its size in a transaction's body, in bytes, the comma included: to fill a body up to
    /// [`MAX_BODY`].
    pub fn json_len(&self) -> usize {
        self.0.get().len() + 1
    }
}

// === impl Operation ===

impl Operation {
    /// In the form in which it is sent.
    pub fn encode(&self) -> Encoded {
        Encoded::of_json(&self.wire())
    }

    fn wire(&self) -> serde_json::Value {
        use serde_json::json;
        match self {
            Operation::SetKey { key, value, flags, index } => json!({ "KV": {
                "Verb": "cas", "Key": key, "Value": STANDARD.encode(&**value), "Flags": flags,
                "Index": index
            }}),
            Operation::DeleteKey { key, index } => json!({ "KV": {
                "Verb": "delete-cas", "Key": key, "Index": index
            }}),
            Operation::CheckSession { key, session } => json!({ "KV": {
                "Verb": "check-session", "Key": key, "Session": session
            }}),
            Operation::SetNode(node) => json!({ "Node": { "Verb": "set", "Node": node } }),
            // A body without `ModifyIndex` is one with 0: it must not exist.
            Operation::CreateNode(node) => json!({ "Node": { "Verb": "cas", "Node": node } }),
            Operation::DeleteNode { node } => json!({ "Node": {
                "Verb": "delete", "Node": { "Node": node }
            }}),
            Operation::SetService { node, service } => json!({ "Service": {
                "Verb": "set", "Node": node, "Service": service
            }}),
            Operation::DeleteService { node, id, name } => json!({ "Service": {
                "Verb": "delete", "Node": node, "Service": { "ID": id, "Service": name }
            }}),
            Operation::SetCheck(check) => json!({ "Check": { "Verb": "set", "Check": check } }),
            Operation::DeleteCheck { node, id, service } => json!({ "Check": {
                "Verb": "delete",
                "Check": { "Node": node, "CheckID": id, "ServiceName": service }
            }}),
        }
    }
}
