//! The handshake with both sides before the first write: who they are, and whose records these
//! may be (invariant: identity). Each check of [`checks`] is repeated until it succeeds.

use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::owner::{Owner, OwnerKey};
use crate::consul::coordination::sentinel::ContentHash;
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::read::agent::AgentInfo;
use crate::domain::kube::names::ClusterName;
use crate::kubernetes::client::{Connected, server_version};
use crate::run::Error;
use crate::run::daemon::checks::{self, Agent, other_owner};
use crate::run::daemon::options::{Common, SyncOptions};
use crate::run::daemon::retry::{PendingDependencies, retry_forever};

/// What the handshake found.
#[derive(Debug)]
pub(in crate::run) struct PeerInfo {
    /// The cluster's identity.
    pub(in crate::run) uid: String,
    /// Version of the Kubernetes API.
    pub(in crate::run) kubernetes_version: String,
    /// What the agent says of itself; none where the token may not ask.
    pub(in crate::run) agent: Option<AgentInfo>,
    /// The sentinel as the agent has it, where that is the marker.
    pub(in crate::run) sentinel: Option<ContentHash>,
}

/// The handshake: a value of its own, because a loop polls it beside changing its state.
pub(in crate::run) struct Handshake {
    kubernetes: Connected,
    consul: ConsulClient,
    owner: OwnerKey,
    marker: Marker,
    cluster: ClusterName,
    cluster_uid: Option<String>,
    adopt: Option<String>,
    waits: PendingDependencies,
}

// === impl Handshake ===

impl Handshake {
    pub(in crate::run) fn new(
        common: &Common,
        sync: &SyncOptions,
        kubernetes: &Connected,
        consul: &ConsulClient,
        waits: &PendingDependencies,
    ) -> Self {
        let cluster = sync.settings.cluster.clone();
        Self {
            kubernetes: kubernetes.clone(),
            consul: consul.clone(),
            owner: OwnerKey::new(consul.clone(), &cluster),
            marker: sync.marker(consul),
            cluster,
            cluster_uid: common.cluster_uid.clone(),
            adopt: common.adopt.clone(),
            waits: waits.clone(),
        }
    }

    /// Waits for both sides as long as it takes, and makes sure of owner key and marker. An error
    /// is final.
    pub(in crate::run) async fn run(self) -> Result<PeerInfo, Error> {
        let token = self.consul.token_generation();
        let ((kubernetes_version, uid), mut agent) = self.find_both().await?;
        self.claim(&uid).await?;
        if agent.is_none() && self.consul.token_generation() != token {
            // The permission to ask may have come with the other token.
            agent = self.find_consul().await;
        }
        let sentinel = self.ensure_marker().await;
        Ok(PeerInfo { uid, kubernetes_version, agent, sentinel })
    }

    /// As [`Handshake::run`], without writing anything: also gives the holder of the owner
    /// key, if there is one.
    pub(in crate::run) async fn look(self) -> Result<(PeerInfo, Option<Owner>), Error> {
        let ((kubernetes_version, uid), agent) = self.find_both().await?;
        let ask = || self.owner.check(&uid);
        let owner = retry_forever("for Consul to tell the owner key", &self.waits, ask).await;
        if let Some(Owner::Other(other)) = &owner
            && self.adopt.as_ref() != Some(other)
        {
            return Err(other_owner(&self.owner, &self.cluster, &uid, other));
        }
        Ok((PeerInfo { uid, kubernetes_version, agent, sentinel: None }, owner))
    }

    /// The wrong cluster is noticed without waiting for Consul.
    async fn find_both(&self) -> Result<((String, String), Option<AgentInfo>), Error> {
        tokio::try_join!(self.find_kubernetes(), async { Ok(self.find_consul().await) })
    }

    /// Its version and the cluster's identity.
    async fn find_kubernetes(&self) -> Result<(String, String), Error> {
        let Connected { client, url, .. } = &self.kubernetes;
        let ask = || server_version(client);
        let version = retry_forever("for the Kubernetes API", &self.waits, ask).await;
        tracing::info!(url, version, "Kubernetes API");
        let ask = || checks::identity(client, self.cluster_uid.as_deref());
        let identity = retry_forever("for the cluster's identity", &self.waits, ask).await;
        Ok((version, identity.uid()?))
    }

    async fn find_consul(&self) -> Option<AgentInfo> {
        let ask = || checks::agent(&self.consul);
        let agent = retry_forever("for the Consul agent", &self.waits, ask).await;
        if let Agent::Hidden(message) = &agent {
            tracing::warn!(
                "the token may not read the agent itself ({message}): \
                 give it agent read, or set --datacenter and --dns-domain"
            );
        }
        let agent = agent.info();
        let (version, datacenter) = agent
            .as_ref()
            .map_or(("unknown", "unknown"), |agent| (&agent.version, &agent.datacenter));
        tracing::info!(url = self.consul.url(), version, datacenter, "Consul agent");
        agent
    }

    /// Makes sure that the records of this name are this cluster's.
    async fn claim(&self, uid: &str) -> Result<(), Error> {
        let claim = || self.owner.claim(uid, self.adopt.as_deref());
        match retry_forever("for Consul to take the owner key", &self.waits, claim).await {
            Owner::Ours => Ok(()),
            Owner::Other(other) => Err(other_owner(&self.owner, &self.cluster, uid, &other)),
        }
    }

    async fn ensure_marker(&self) -> Option<ContentHash> {
        let what = match &self.marker {
            Marker::Sentinel(_) => "for the agent to take the sentinel",
            Marker::BaseNode(_) => "for Consul to take the base node",
        };
        let ensure = || self.marker.ensure(&self.consul, &self.cluster);
        retry_forever(what, &self.waits, ensure).await
    }
}
