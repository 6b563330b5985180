//! The leader's lock: a KV key that a session holds (invariant 9).

use serde::Deserialize;

use super::client::{Client, Request, encode_key};
use super::error::Error;
use super::read::{Consistency, Unknown, certain, failed};
use super::session::SessionId;
use super::stream::Layout;
use super::txn::Operation;
use super::wire::{decode, text_of};
use crate::domain::names::ClusterName;

const LOCK: &str = "the leader's lock";

/// The lock as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// What its holder calls itself, as it was written; none: nobody holds it.
    pub holder: Option<Box<str>>,
    /// Its `ModifyIndex`.
    index: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct LockEntry {
    session: Option<Box<str>>,
    value: Option<Box<str>>,
    modify_index: u64,
}

/// The KV key of a cluster's lock.
pub(super) fn lock_key(cluster: &ClusterName) -> String {
    format!("kube-consul/{cluster}/leader")
}

// === impl Client ===

impl Client {
    /// The lock of the cluster as the leader has it now, if there is one.
    pub async fn lock_of(&self, cluster: &ClusterName) -> Result<Option<Lock>, Unknown> {
        let path = format!("/v1/kv/{}", lock_key(cluster));
        self.read_lock(&Consistency::Consistent.of_path(path)).await.map(|(lock, _)| lock)
    }

    /// The lock that this request reads, if there is one, and the index of the answer, with which
    /// the next request waits for a change (0: it has none).
    pub(super) async fn read_lock(
        &self,
        request: &Request,
    ) -> Result<(Option<Lock>, u64), Unknown> {
        let (reply, evidence) = self.open(request, LOCK).await?;
        let index = reply.header("X-Consul-Index").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut lock = None;
        if reply.is_found() {
            let entries = reply.items(Layout::Elements, |item| {
                let LockEntry { session, value, modify_index } = decode("a KV entry", item.value)?;
                let name = || value.as_deref().map(text_of).unwrap_or_default();
                let holder = session.filter(|session| !session.is_empty()).map(|_| name());
                lock = Some(Lock { holder, index: modify_index });
                Ok(())
            });
            entries.await.map_err(failed(LOCK))?;
        }
        certain(evidence, lock.is_none(), LOCK).map(|()| (lock, index))
    }

    /// Takes the lock `key` with the session; false: another session holds it. `value` tells
    /// people who the holder is.
    pub async fn acquire_lock(
        &self,
        key: &str,
        session: &SessionId,
        value: &str,
    ) -> Result<bool, Error> {
        let request = Request::put(format!("/v1/kv/{}", encode_key(key)))
            .parameter("acquire", session.as_str())
            .text(value);
        self.send(&request).await?.into_found().await?.json().await
    }

    /// Removes the lock, unless it was changed since it was read.
    pub async fn remove_lock(&self, cluster: &ClusterName, lock: &Lock) -> Result<(), Error> {
        let key = lock_key(cluster).into();
        self.transaction(&[Operation::DeleteKey { key, index: lock.index }]).await.map(drop)
    }
}
