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
pub enum Operation<'a> {
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
        service: ServiceBody<'a>,
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
    SetCheck(CheckBody<'a>),
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
    fn new(operation: &Wire<'_>) -> Self {
        let raw = to_raw_value(operation);
        Self(raw.expect("our own types have string keys and no failing Serialize"))
    }

    /// Its size in a transaction's body, in bytes, the comma included: to fill a body up to
    /// [`MAX_BODY`].
    pub fn json_len(&self) -> usize {
        self.0.get().len() + 1
    }
}

/// An operation as Consul reads it.
#[derive(Serialize)]
enum Wire<'a> {
    #[serde(rename = "KV")]
    Key(KeyVerb<'a>),
    Node {
        #[serde(rename = "Verb")]
        verb: &'static str,
        #[serde(rename = "Node")]
        node: NodeRef<'a>,
    },
    Service {
        #[serde(rename = "Verb")]
        verb: &'static str,
        #[serde(rename = "Node")]
        node: &'a str,
        #[serde(rename = "Service")]
        service: ServiceRef<'a>,
    },
    Check {
        #[serde(rename = "Verb")]
        verb: &'static str,
        #[serde(rename = "Check")]
        check: CheckRef<'a>,
    },
}

#[derive(Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeyVerb<'a> {
    verb: &'static str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flags: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum NodeRef<'a> {
    Whole(&'a NodeBody),
    #[serde(rename_all = "PascalCase")]
    Named {
        node: &'a str,
    },
}

#[derive(Serialize)]
#[serde(untagged)]
enum ServiceRef<'a> {
    Whole(&'a ServiceBody<'a>),
    #[serde(rename_all = "PascalCase")]
    Named {
        #[serde(rename = "ID")]
        id: &'a str,
        service: &'a str,
    },
}

#[derive(Serialize)]
#[serde(untagged)]
enum CheckRef<'a> {
    Whole(&'a CheckBody<'a>),
    #[serde(rename_all = "PascalCase")]
    Named {
        node: &'a str,
        #[serde(rename = "CheckID")]
        check_id: &'a str,
        service_name: &'a str,
    },
}

// === impl Operation ===

impl Operation<'_> {
    /// In the form in which it is sent.
    pub fn encode(&self) -> Encoded {
        Encoded::new(&self.wire())
    }

    fn wire(&self) -> Wire<'_> {
        match self {
            Operation::SetKey { key, value, flags, index } => Wire::Key(KeyVerb {
                verb: "cas",
                key,
                value: Some(STANDARD.encode(&**value)),
                flags: Some(*flags),
                index: Some(*index),
                session: None,
            }),
            Operation::DeleteKey { key, index } => Wire::Key(KeyVerb {
                verb: "delete-cas",
                key,
                index: Some(*index),
                ..KeyVerb::default()
            }),
            Operation::CheckSession { key, session } => Wire::Key(KeyVerb {
                verb: "check-session",
                key,
                session: Some(session),
                ..KeyVerb::default()
            }),
            Operation::SetNode(node) => Wire::Node { verb: "set", node: NodeRef::Whole(node) },
            // A body without `ModifyIndex` is one with 0: it must not exist.
            Operation::CreateNode(node) => Wire::Node { verb: "cas", node: NodeRef::Whole(node) },
            Operation::DeleteNode { node } => {
                Wire::Node { verb: "delete", node: NodeRef::Named { node } }
            }
            Operation::SetService { node, service } => {
                Wire::Service { verb: "set", node, service: ServiceRef::Whole(service) }
            }
            Operation::DeleteService { node, id, name } => Wire::Service {
                verb: "delete",
                node,
                service: ServiceRef::Named { id, service: name },
            },
            Operation::SetCheck(check) => {
                Wire::Check { verb: "set", check: CheckRef::Whole(check) }
            }
            Operation::DeleteCheck { node, id, service } => Wire::Check {
                verb: "delete",
                check: CheckRef::Named { node, check_id: id, service_name: service },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn operations_are_sent_as_consul_reads_them() {
        let node = || NodeBody {
            node: "k8s-c.ns".into(),
            address: "192.0.2.1".into(),
            meta: [("kube-consul-cluster".to_owned(), "c".to_owned())].into(),
        };
        let whole = json!({
            "Node": "k8s-c.ns", "Address": "192.0.2.1", "Meta": {"kube-consul-cluster": "c"}
        });
        let (key, session): (Box<str>, Box<str>) = ("a/b".into(), "s".into());
        let (id, name): (Box<str>, Box<str>) = ("c_ns_web".into(), "web".into());
        for (operation, wanted) in [
            (
                Operation::SetKey { key: key.clone(), value: "v".into(), flags: 7, index: 0 },
                json!({"KV": {
                    "Verb": "cas", "Key": "a/b", "Value": "dg==", "Flags": 7, "Index": 0
                }}),
            ),
            (
                Operation::DeleteKey { key: key.clone(), index: 3 },
                json!({"KV": {"Verb": "delete-cas", "Key": "a/b", "Index": 3}}),
            ),
            (
                Operation::CheckSession { key, session },
                json!({"KV": {"Verb": "check-session", "Key": "a/b", "Session": "s"}}),
            ),
            (Operation::SetNode(node()), json!({"Node": {"Verb": "set", "Node": whole}})),
            (Operation::CreateNode(node()), json!({"Node": {"Verb": "cas", "Node": whole}})),
            (
                Operation::DeleteNode { node: "n".into() },
                json!({"Node": {"Verb": "delete", "Node": {"Node": "n"}}}),
            ),
            (
                Operation::DeleteService { node: "n".into(), id: id.clone(), name: name.clone() },
                json!({"Service": {
                    "Verb": "delete", "Node": "n", "Service": {"ID": "c_ns_web", "Service": "web"}
                }}),
            ),
            (
                Operation::DeleteCheck { node: "n".into(), id, service: name },
                json!({"Check": {"Verb": "delete", "Check": {
                    "Node": "n", "CheckID": "c_ns_web", "ServiceName": "web"
                }}}),
            ),
        ] {
            let sent: Value = serde_json::to_value(operation.encode()).unwrap();
            assert_eq!(sent, wanted);
        }
    }
}
