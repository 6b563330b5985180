//! The owner key: which Kubernetes cluster a cluster's name belongs to (invariant: identity).

use crate::consul::http::client::Client;
use crate::consul::http::error::{Error, Reach};
use crate::consul::read::evidence::{Consistency, Unknown};
use crate::consul::write::txn::Operation;
use crate::domain::consul::record::Answer;
use crate::domain::kube::names::ClusterName;

/// How often a claim is decided anew after somebody else changed the key in between: two
/// bridges that start together need two, a third is for an adoption at the same time.
const MAX_ATTEMPTS: usize = 3;

const WHAT: &str = "the owner key";

/// The KV key that says which Kubernetes cluster this name belongs to.
pub fn owner_key(cluster: &ClusterName) -> String {
    format!("kube-consul/{cluster}/owner")
}

/// The owner key of one cluster's name.
#[derive(Clone, Debug)]
pub struct OwnerKey {
    client: Client,
    key: String,
}

/// Who holds the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The cluster that asks.
    Ours,
    /// The cluster of this uid.
    Other(String),
}

/// Why it is not known who holds the name. Nothing may be written then.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// The key could not be read.
    #[error("cannot tell which cluster the records belong to")]
    Read(#[source] Unknown),
    /// The key could not be written.
    #[error("cannot write the owner key {key}")]
    Write {
        /// The key.
        key: String,
        /// Why.
        source: Error,
    },
    /// Others keep changing it.
    #[error(
        "owner key {key}: expected it to stand still, found it changed {MAX_ATTEMPTS} times; is another bridge of the same cluster name starting?"
    )]
    Contended {
        /// The key.
        key: String,
    },
}

impl OwnerKey {
    /// The owner key of this name.
    pub fn new(client: Client, cluster: &ClusterName) -> Self {
        Self { client, key: owner_key(cluster) }
    }

    /// The KV key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Who holds the name; none: nobody yet, or nobody any more.
    pub async fn check(&self, uid: &str) -> Result<Option<Owner>, Unknown> {
        Ok(self.read().await?.map(|(holder, _)| owner(holder, uid)))
    }

    /// The uid of the cluster that holds the name; none: nobody.
    pub async fn holder(&self) -> Result<Option<String>, Unknown> {
        Ok(self.read().await?.map(|(holder, _)| holder))
    }

    /// Takes the name for the cluster `uid` if nobody holds it, or if `adopt` does. Whoever
    /// holds it otherwise keeps it.
    pub async fn claim(&self, uid: &str, adopt: Option<&str>) -> Result<Owner, ClaimError> {
        for _ in 0..MAX_ATTEMPTS {
            let index = match self.read().await.map_err(ClaimError::Read)? {
                None => 0,
                Some((holder, index)) if holder != uid && adopt == Some(holder.as_str()) => index,
                Some((holder, _)) => return Ok(owner(holder, uid)),
            };
            let write = Operation::SetKey {
                key: self.key.as_str().into(),
                value: uid.into(),
                flags: 0,
                index,
            };
            match self.client.transaction(&[write.encode()]).await {
                Ok(_) => return Ok(Owner::Ours),
                Err(error) => match error.answer(Reach::Servers) {
                    // Another was faster, or this attempt was applied all the same: read it.
                    Answer::Conflict => {}
                    _ => return Err(ClaimError::Write { key: self.key.clone(), source: error }),
                },
            }
        }
        Err(ClaimError::Contended { key: self.key.clone() })
    }

    /// Removes the key if it is still that of `uid`; whether it was.
    pub async fn release(&self, uid: &str) -> Result<bool, ClaimError> {
        let Some((holder, index)) = self.read().await.map_err(ClaimError::Read)? else {
            return Ok(false);
        };
        if holder != uid {
            return Ok(false);
        }
        let delete = Operation::DeleteKey { key: self.key.as_str().into(), index };
        match self.client.transaction(&[delete.encode()]).await {
            Ok(_) => Ok(true),
            Err(source) => Err(ClaimError::Write { key: self.key.clone(), source }),
        }
    }

    async fn read(&self) -> Result<Option<(String, u64)>, Unknown> {
        let entry = self.client.kv(&Consistency::Consistent.of_key(&self.key), WHAT).await?;
        Ok(entry.map(|entry| (entry.value.trim().to_owned(), entry.modify_index)))
    }
}

fn owner(holder: String, uid: &str) -> Owner {
    if holder == uid { Owner::Ours } else { Owner::Other(holder) }
}
