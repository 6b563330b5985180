//! The handshake with both sides before the first write: who they are, and whose records these
//! may be (invariant 3).

use kube::Client as KubeClient;

use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::owner::{Owner, OwnerKey};
use crate::consul::coordination::sentinel::ContentHash;
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::http::error::Error as ConsulError;
use crate::consul::read::AgentInfo;
use crate::domain::consul::ptr::ConsulDomain;
use crate::domain::kube::names::ClusterName;
use crate::kubernetes::client::{ClusterUid, kube_system_uid, server_version};
use crate::run::Error;
use crate::run::bridge::Options;
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
    /// What PTR records end with, if that is known.
    pub(in crate::run) zone: Option<ConsulDomain>,
    /// The sentinel as the agent has it, where that is the marker.
    pub(in crate::run) sentinel: Option<ContentHash>,
}

/// Everything that the handshake needs.
pub(in crate::run) struct Handshake {
    pub(in crate::run) kubernetes: KubeClient,
    pub(in crate::run) kubernetes_url: String,
    pub(in crate::run) consul: ConsulClient,
    pub(in crate::run) owner: OwnerKey,
    pub(in crate::run) marker: Marker,
    pub(in crate::run) cluster: ClusterName,
    pub(in crate::run) cluster_uid: Option<String>,
    pub(in crate::run) adopt: Option<String>,
    pub(in crate::run) datacenter: Option<String>,
    pub(in crate::run) dns_domain: Option<String>,
    pub(in crate::run) waits: PendingDependencies,
}

// === impl Handshake ===

impl Handshake {
    pub(in crate::run) fn new(
        options: &Options,
        kubernetes: (KubeClient, String),
        consul: ConsulClient,
        owner: OwnerKey,
        marker: Marker,
        waits: PendingDependencies,
    ) -> Self {
        Self {
            kubernetes: kubernetes.0,
            kubernetes_url: kubernetes.1,
            consul,
            owner,
            marker,
            cluster: options.settings.cluster.clone(),
            cluster_uid: options.cluster_uid.clone(),
            adopt: options.adopt.clone(),
            datacenter: options.datacenter.clone(),
            dns_domain: options.dns_domain.clone(),
            waits,
        }
    }

    /// Waits for both sides as long as it takes. An error is final.
    pub(in crate::run) async fn run(self) -> Result<PeerInfo, Error> {
        let token = self.consul.token_generation();
        let ((kubernetes_version, uid), mut agent) = self.meet_both().await?;
        self.claim(&uid).await?;
        if agent.is_none() && self.consul.token_generation() != token {
            // The right to ask may have come with the other token.
            agent = self.meet_consul().await;
        }
        let sentinel = self.mark().await;
        let zone = self.zone(agent.as_ref());
        Ok(PeerInfo { uid, kubernetes_version, agent, zone, sentinel })
    }

    /// As [`Handshake::run`], without writing anything: also gives the holder of the owner
    /// key, if there is one.
    pub(in crate::run) async fn look(self) -> Result<(PeerInfo, Option<Owner>), Error> {
        let ((kubernetes_version, uid), agent) = self.meet_both().await?;
        let ask = || self.owner.check(&uid);
        let owner = retry_forever("for Consul to tell the owner key", &self.waits, ask).await;
        if let Some(Owner::Other(other)) = &owner
            && self.adopt.as_ref() != Some(other)
        {
            return Err(other_owner(&self.owner, &self.cluster, &uid, other));
        }
        let zone = self.zone(agent.as_ref());
        Ok((PeerInfo { uid, kubernetes_version, agent, zone, sentinel: None }, owner))
    }

    /// The wrong cluster is noticed without waiting for Consul.
    async fn meet_both(&self) -> Result<((String, String), Option<AgentInfo>), Error> {
        tokio::try_join!(self.meet_kubernetes(), async { Ok(self.meet_consul().await) })
    }

    /// Its version and the cluster's identity.
    async fn meet_kubernetes(&self) -> Result<(String, String), Error> {
        let ask = || server_version(&self.kubernetes);
        let version = retry_forever("for the Kubernetes API", &self.waits, ask).await;
        tracing::info!(url = self.kubernetes_url, version, "Kubernetes API");
        let ask = || kube_system_uid(&self.kubernetes);
        let found = retry_forever("for the cluster's identity", &self.waits, ask).await;
        let uid = match (&self.cluster_uid, found) {
            (Some(given), ClusterUid::Known(uid)) if *given != uid => {
                return Err(Error::Refused(format!(
                    "--cluster-uid: expected {given}, found a cluster whose kube-system has the uid {uid}: \
                     check which cluster the Kubernetes flags lead to, or give this uid"
                )));
            }
            (Some(given), _) => given.clone(),
            (None, ClusterUid::Known(uid)) => uid,
            (None, ClusterUid::Denied(why)) => {
                return Err(Error::Usage(format!(
                    "the namespace kube-system may not be read ({why}): allow it, or give its uid with --cluster-uid"
                )));
            }
        };
        Ok((version, uid))
    }

    async fn meet_consul(&self) -> Option<AgentInfo> {
        let ask = || async {
            match self.consul.agent_self().await {
                Ok(info) => Ok(Some(info)),
                // A token that Consul does not know lets nothing be done: another has to come.
                Err(error) if error.is_unknown_token() => Err(error),
                // The right to ask may be missing, but an agent that answers so is there.
                Err(ConsulError::Denied { message, .. }) => {
                    self.consul.leader().await?;
                    tracing::warn!(
                        "the token may not read the agent itself ({message}): \
                         give it agent read, or set --datacenter and --dns-domain"
                    );
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        };
        let agent = retry_forever("for the Consul agent", &self.waits, ask).await;
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

    /// Makes sure that the marker is there.
    async fn mark(&self) -> Option<ContentHash> {
        let what = match &self.marker {
            Marker::Sentinel(_) => "for the agent to take the sentinel",
            Marker::BaseNode(_) => "for Consul to take the base node",
        };
        let ensure = || self.marker.ensure(&self.consul, &self.cluster);
        retry_forever(what, &self.waits, ensure).await
    }

    fn zone(&self, agent: Option<&AgentInfo>) -> Option<ConsulDomain> {
        let of_agent = |field: fn(&AgentInfo) -> &String| agent.map(|agent| field(agent).clone());
        let datacenter = self.datacenter.clone().or_else(|| of_agent(|agent| &agent.datacenter))?;
        let domain = self.dns_domain.clone().or_else(|| of_agent(|agent| &agent.dns_domain))?;
        Some(ConsulDomain { datacenter: datacenter.into(), domain: domain.into() })
    }
}

/// The refusal to touch the records of another cluster.
pub(in crate::run) fn other_owner(
    key: &OwnerKey,
    cluster: &ClusterName,
    ours: &str,
    other: &str,
) -> Error {
    Error::Refused(format!(
        "the records of cluster {cluster:?} belong to the cluster with uid {other} (KV key {}), and this one has uid {ours}: \
         choose another --cluster, or take them over with --adopt {other}",
        key.key(),
        cluster = cluster.as_str(),
    ))
}
