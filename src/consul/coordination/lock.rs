//! The leader's lock: a KV key that a session holds (invariant: fencing).

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode_key};
use crate::consul::read::blocking::BlockingQuery;
use crate::consul::read::evidence::{Consistency, Unknown};
use crate::consul::read::wire::KeyEntry;
use crate::consul::write::fence::SessionId;
use crate::consul::write::txn::Operation;
use crate::domain::kube::names::ClusterName;

const LOCK: &str = "the leader's lock";

/// The lock as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// What its holder calls itself, as it was written; none: nobody holds it.
    pub holder: Option<Box<str>>,
    /// Its `ModifyIndex`.
    index: u64,
}

/// The KV key of a cluster's lock.
pub fn lock_key(cluster: &ClusterName) -> String {
    format!("kube-consul/{cluster}/leader")
}

// === impl Lock ===

impl Lock {
    fn of_entry(entry: KeyEntry) -> Self {
        let (is_held, index) = (entry.is_held(), entry.modify_index);
        Self { holder: is_held.then_some(entry.value), index }
    }
}

// === impl Client ===

impl Client {
    /// The lock of the cluster as the leader has it now, if there is one.
    pub async fn lock_of(&self, cluster: &ClusterName) -> Result<Option<Lock>, Unknown> {
        let request = Consistency::Consistent.of_key(&lock_key(cluster));
        Ok(self.kv(&request, LOCK).await?.map(Lock::of_entry))
    }

    /// The lock that this query waits for, as soon as it is another one.
    pub(in crate::consul) async fn next_lock(
        &self,
        query: &mut BlockingQuery,
    ) -> Result<Option<Lock>, Unknown> {
        Ok(self.next_kv(query, LOCK).await?.map(Lock::of_entry))
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
        let delete = Operation::DeleteKey { key, index: lock.index };
        self.transaction(&[delete.encode()]).await.map(drop)
    }
}
