//! The single checks of the handshake. Each asks once and returns what it found; whether that is
//! good enough, and whether to ask again, is the caller's to decide.

use kube::Client as KubeClient;

use crate::consul::coordination::owner::OwnerKey;
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::http::error::Error as ConsulError;
use crate::consul::read::agent::AgentInfo;
use crate::domain::kube::names::ClusterName;
use crate::kubernetes::client::{ClusterUid, Error as KubernetesError, kube_system_uid};
use crate::run::Error;

/// What is said where options leave out every Service.
pub(in crate::run) const NOTHING_SELECTED: &str = "no Service is selected: look at --namespace, \
    --deny-namespace, --selector, --namespace-selector, --service-type and --default-sync";

/// What is known of the cluster's identity, beside what `--cluster-uid` says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::run) enum Identity {
    /// The cluster is the one of this uid.
    Known(String),
    /// `--cluster-uid` names another cluster than the API shows.
    Differs {
        /// What was given.
        given: String,
        /// What the API shows.
        found: String,
    },
    /// It may not be read and was not given; with the API's words.
    Denied(String),
}

/// What the agent lets us know of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::run) enum Agent {
    /// All that it says.
    Known(AgentInfo),
    /// That it is there: the token may not ask for more; with Consul's words.
    Hidden(String),
}

/// The cluster's identity. `given`: by `--cluster-uid`.
pub(in crate::run) async fn identity(
    kubernetes: &KubeClient,
    given: Option<&str>,
) -> Result<Identity, KubernetesError> {
    Ok(match (given, kube_system_uid(kubernetes).await?) {
        (Some(given), ClusterUid::Known(found)) if given != found => {
            Identity::Differs { given: given.to_owned(), found }
        }
        // Where it may not be read, the operator vouches for it.
        (Some(given), _) => Identity::Known(given.to_owned()),
        (None, ClusterUid::Known(uid)) => Identity::Known(uid),
        (None, ClusterUid::Denied(why)) => Identity::Denied(why),
    })
}

/// What the agent says of itself. A token that Consul does not know is an error: it lets nothing
/// be done, and another may come.
pub(in crate::run) async fn agent(consul: &ConsulClient) -> Result<Agent, ConsulError> {
    match consul.agent_self().await {
        Ok(info) => Ok(Agent::Known(info)),
        Err(error) if error.is_unknown_token() => Err(error),
        // The right to ask may be missing, but an agent that answers so is there.
        Err(ConsulError::Denied { message, .. }) => {
            consul.leader().await?;
            Ok(Agent::Hidden(message))
        }
        Err(error) => Err(error),
    }
}

/// The refusal to touch the records of another cluster (invariant: identity).
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

// === impl Identity ===

impl Identity {
    /// The uid, where there is one to work with.
    pub(in crate::run) fn uid(self) -> Result<String, Error> {
        match self {
            Identity::Known(uid) => Ok(uid),
            Identity::Differs { given, found } => Err(Error::Refused(format!(
                "--cluster-uid: expected {given}, found a cluster whose kube-system has the uid {found}: \
                 check which cluster the Kubernetes flags lead to, or give this uid"
            ))),
            Identity::Denied(why) => Err(Error::Usage(format!(
                "the namespace kube-system may not be read ({why}): allow it, or give its uid with --cluster-uid"
            ))),
        }
    }
}

// === impl Agent ===

impl Agent {
    /// What it says of itself, if it does.
    pub(in crate::run) fn info(self) -> Option<AgentInfo> {
        match self {
            Agent::Known(info) => Some(info),
            Agent::Hidden(_) => None,
        }
    }
}
