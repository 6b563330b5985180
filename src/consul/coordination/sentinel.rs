//! The sentinel: a service of our own in the agent. When it vanishes the agent lost its state,
//! and a listing that lacks it proves no absence.

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode};
use crate::consul::http::transport::Reply;
use crate::consul::read::blocking::BlockingQuery;
use crate::consul::read::wire::ServiceEntry;
use crate::consul::write::registration::{AgentService, MetaBody};
use crate::domain::consul::names::SENTINEL_NAME;
use crate::domain::consul::record::CLUSTER_META;
use crate::domain::consul::registration_id::sentinel_id;
use crate::domain::kube::names::ClusterName;

/// Name of the sentinel's service.
pub const SERVICE: &str = SENTINEL_NAME;

/// The sentinel of one cluster in the agent that the client speaks to.
#[derive(Clone, Debug)]
pub struct Sentinel {
    client: Client,
    cluster: ClusterName,
    id: String,
}

/// The sentinel's content as the agent has it.
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

/// What the agent has under the sentinel's ID.
enum Found {
    Nothing,
    /// Something that no bridge of this cluster wrote.
    Foreign,
    Ours(ContentHash),
}

// === impl Sentinel ===

impl Sentinel {
    /// The sentinel of this cluster.
    pub fn new(client: Client, cluster: ClusterName) -> Self {
        let id = sentinel_id(&cluster);
        Self { client, cluster, id }
    }

    /// Its service ID.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Registers it unless it is there as it should be.
    pub async fn ensure(&self) -> Result<ContentHash, Error> {
        match self.read().await? {
            Found::Ours(hash) => Ok(hash),
            Found::Nothing | Found::Foreign => self.register().await,
        }
    }

    /// Registers it whatever is there: with a new token.
    pub async fn register(&self) -> Result<ContentHash, Error> {
        let meta = [(CLUSTER_META.to_owned(), self.cluster.to_string())].into();
        let service = AgentService {
            id: &self.id,
            name: SERVICE,
            address: "",
            port: 0,
            tags: &[],
            meta: Some(MetaBody::Own(&meta)),
            weights: None,
            check: None,
        };
        self.client.register(&service).await?;
        match self.read().await? {
            Found::Ours(hash) => Ok(hash),
            Found::Nothing | Found::Foreign => Err(Error::Garbled {
                request: "PUT /v1/agent/service/register".to_owned(),
                reason: format!("expected service {} in the agent afterwards, found none", self.id),
            }),
        }
    }

    /// Waits until the agent's sentinel is not the one of `hash` any more. A failed request is
    /// an error, never [`Lost`]: an agent that cannot be asked lost nothing so far.
    pub async fn watch(&self, hash: &ContentHash) -> Result<Lost, Error> {
        let mut query = BlockingQuery::by_hash(self.request(), &hash.0);
        loop {
            let reply = query.next(&self.client).await?;
            match self.found(reply).await? {
                Found::Nothing => return Ok(Lost::Vanished),
                Found::Ours(found) if found == *hash => {}
                Found::Ours(_) | Found::Foreign => return Ok(Lost::Changed),
            }
        }
    }

    async fn read(&self) -> Result<Found, Error> {
        self.found(self.client.send(&self.request()).await?).await
    }

    async fn found(&self, reply: Reply) -> Result<Found, Error> {
        if !reply.is_found() {
            let error = reply.into_error().await;
            return if error.is_unknown_service() { Ok(Found::Nothing) } else { Err(error) };
        }
        let hash = reply.header("X-Consul-ContentHash").unwrap_or_default().to_owned();
        let entry: ServiceEntry = reply.json().await?;
        let ours = *entry.service == *SERVICE && entry.is_of(self.cluster.as_str());
        Ok(if ours { Found::Ours(ContentHash(hash)) } else { Found::Foreign })
    }

    fn request(&self) -> Request {
        Request::get(format!("/v1/agent/service/{}", encode(&self.id)))
    }
}
