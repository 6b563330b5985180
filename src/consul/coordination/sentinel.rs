//! The sentinel: a service of our own in the agent. When it vanishes the agent lost its state,
//! and a listing that lacks it proves no absence.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use tokio::time::Instant;

use crate::consul::http::client::{Client, Request, encode};
use crate::consul::http::error::Error;
use crate::consul::http::wire::ServiceEntry;
use crate::consul::write::agent::{done, register_request};
use crate::domain::consul::record::CLUSTER_META;
use crate::domain::kube::names::ClusterName;

/// Name of the sentinel's service. The underscore keeps it out of DNS and apart from every
/// Kubernetes Service: one named `kube-consul` must not get a share of its answers.
pub const SERVICE: &str = "_kube-consul";

/// How long one blocking query may wait: a vanished service is told at once whatever this is;
/// it bounds how long a peer that is gone without a word is taken for a quiet one.
const WAIT: Duration = Duration::from_mins(1);

/// Consul answers a blocking query up to a sixteenth late; the rest is for the way.
const WAIT_DEADLINE: Duration = Duration::from_secs(75);

/// Least time between two queries: an agent that answers at once instead of waiting (its hash
/// changed and changed back) would be asked without pause.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The sentinel of one cluster in the agent that the client speaks to.
#[derive(Clone, Debug)]
pub struct Sentinel {
    client: Client,
    cluster: ClusterName,
    id: String,
}

/// The sentinel's content as the agent told it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContentHash(String);

/// What a watch saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The agent does not have the sentinel: it lost its state.
    Vanished,
    /// It is there with another content: somebody wrote to it.
    Changed,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Body<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    name: &'static str,
    meta: BTreeMap<&'static str, &'a str>,
}

/// ID of the cluster's sentinel. No registration's ID begins with an underscore: those begin
/// with the cluster's name.
pub(in crate::consul) fn id(cluster: &ClusterName) -> String {
    format!("_kube-consul_{cluster}")
}

impl Sentinel {
    /// The sentinel of this cluster.
    pub fn new(client: Client, cluster: ClusterName) -> Self {
        let id = id(&cluster);
        Self { client, cluster, id }
    }

    /// Its service ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Registers it unless it is there as it should be.
    pub async fn ensure(&self) -> Result<ContentHash, Error> {
        match self.read(None).await? {
            Some(hash) => Ok(hash),
            None => self.register().await,
        }
    }

    /// Registers it whatever is there: with a new token.
    pub async fn register(&self) -> Result<ContentHash, Error> {
        let meta = BTreeMap::from([(CLUSTER_META, self.cluster.as_str())]);
        let body = Body { id: &self.id, name: SERVICE, meta };
        done(&self.client, &register_request(&body)).await?;
        self.read(None).await?.ok_or_else(|| Error::Garbled {
            request: "PUT /v1/agent/service/register".to_owned(),
            reason: format!("expected service {} in the agent afterwards, found none", self.id),
        })
    }

    /// Waits until the agent's sentinel is not the one of `hash` any more. A failed request is
    /// an error, never [`Lost`]: an agent that cannot be asked lost nothing so far.
    pub async fn watch(&self, hash: &ContentHash) -> Result<Lost, Error> {
        loop {
            let asked = Instant::now();
            match self.read(Some(hash)).await? {
                None if self.is_present().await? => return Ok(Lost::Changed),
                None => return Ok(Lost::Vanished),
                Some(found) if found != *hash => return Ok(Lost::Changed),
                Some(_) => tokio::time::sleep_until(asked + MIN_INTERVAL).await,
            }
        }
    }

    /// The hash of the sentinel if it is there and ours; with `known` as soon as it is another.
    async fn read(&self, known: Option<&ContentHash>) -> Result<Option<ContentHash>, Error> {
        let mut request = self.request();
        if let Some(ContentHash(hash)) = known {
            let wait = format!("{}s", WAIT.as_secs());
            request = request.parameter("hash", hash).parameter("wait", &wait);
            request = request.deadline(WAIT_DEADLINE);
        }
        let reply = self.client.send(&request).await?;
        if !reply.is_found() {
            return gone(reply.into_error().await).map(|()| None);
        }
        let hash = reply.header("X-Consul-ContentHash").unwrap_or_default().to_owned();
        let entry: ServiceEntry = reply.json().await?;
        let ours = *entry.service == *SERVICE && entry.is_of(self.cluster.as_str());
        Ok(ours.then_some(ContentHash(hash)))
    }

    async fn is_present(&self) -> Result<bool, Error> {
        let reply = self.client.send(&self.request()).await?;
        if reply.is_found() {
            return Ok(true);
        }
        gone(reply.into_error().await).map(|()| false)
    }

    fn request(&self) -> Request {
        Request::get(format!("/v1/agent/service/{}", encode(&self.id)))
    }
}

fn gone(error: Error) -> Result<(), Error> {
    if error.is_unknown_service() { Ok(()) } else { Err(error) }
}
