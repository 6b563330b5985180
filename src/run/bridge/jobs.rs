//! What is under way beside the loop: each job ends with what it found out.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::consul::coordination::election::Lease;
use crate::consul::coordination::owner::{Owner, OwnerKey};
use crate::consul::coordination::resync::Reader;
use crate::consul::coordination::sentinel::{ContentHash, Lost, Sentinel};
use crate::consul::http::client::Client;
use crate::consul::read::agent::AgentInfo;
use crate::consul::read::evidence::Consistency;
use crate::consul::read::keys::FollowedKeys;
use crate::consul::write::sink::Sink;
use crate::domain::consul::names::{ForeignNames, Found, lookup_form};
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, Observation, ObservedPtr, ObservedRegistration, RecordKey, Write,
};
use crate::domain::flights::FlightId;
use crate::domain::kube::names::ClusterName;
use crate::domain::map::HashSet;
use crate::domain::text::chain;
use crate::kubernetes::client::{ClusterUid, kube_system_uid};
use crate::run::Error;
use crate::run::bridge::seen_ids::SeenIds;
use crate::run::daemon::checks::{self, Agent};
use crate::run::daemon::handshake::PeerInfo;

/// Between two tries to watch the sentinel of an agent that cannot be asked: no longer than its
/// restart takes.
const SENTINEL_RETRY: Duration = Duration::from_secs(1);

/// Between two tries to follow PTR keys: the next resync shows them, too.
const FOLLOW_RETRY: Duration = Duration::from_secs(5);

/// A job under way.
pub(super) type Job = BoxFuture<'static, Done>;

/// What a job found out.
pub(super) enum Done {
    /// The handshake is over.
    Connected(Result<PeerInfo, Error>),
    /// Leadership is acquired.
    Acquired(Lease),
    /// It is lost, and why.
    Lost(String),
    /// Another holder of the lock is waited for.
    HolderChanged,
    /// The writes of a flight were answered, within this time.
    Wrote(FlightId, Vec<(RecordKey, Answer)>, Duration),
    /// A PTR key was read.
    PtrRead(FlightId, Result<Option<ObservedPtr>, String>),
    /// The removal of a namespace's node was answered.
    NamespaceNodeRemoved(FlightId, NamespaceNodeAnswer),
    /// The resync under way has shown this.
    Observed(Vec<Observation>),
    /// It is over, within this time: whose the records are, or why that is not known.
    Resynced(Result<Owner, String>, Duration),
    /// The names that others hold were read.
    Names(Result<ForeignNames, String>),
    /// A name was looked up: who else holds it.
    Name(Arc<str>, Result<Option<Found>, String>),
    /// PTR keys that are followed changed: which there are.
    PtrKeys(FollowedKeys, SeenIds),
    /// The IDs that the catalog shows on the agent's node were read.
    Catalog(Result<SeenIds, String>),
    /// The agent lost the sentinel, or somebody changed it.
    SentinelLost(Lost),
    /// The sentinel was written.
    SentinelWritten(Result<ContentHash, String>),
    /// Consul was asked for a sign of life.
    Heartbeat(Result<(), String>),
    /// The agent, which could not be read at the handshake, was asked for itself again.
    Agent(Option<AgentInfo>),
    /// The cluster's identity was read again; `None`: it may not be read.
    Identity(Result<Option<String>, String>),
}

/// Waits for the end of the job, if there is one, and takes it away. Without one it never ends.
pub(super) async fn end_of(job: &mut Option<Job>) -> Done {
    let Some(running) = job else { return std::future::pending().await };
    let done = running.await;
    *job = None;
    done
}

/// Sends groups of writes that belong together.
pub(super) async fn write(flight: FlightId, sink: Sink, groups: Vec<Vec<Write>>) -> Done {
    let began = Instant::now();
    let answers = sink.write(groups).await;
    Done::Wrote(flight, answers, began.elapsed())
}

/// Removes the node of a namespace on which nothing is registered any more.
pub(super) async fn remove_namespace_node(
    flight: FlightId,
    sink: Sink,
    namespace: Box<str>,
) -> Done {
    Done::NamespaceNodeRemoved(flight, sink.remove_namespace_node(&namespace).await)
}

/// Reads one PTR key.
pub(super) async fn read_ptr(flight: FlightId, client: Client, key: Box<str>) -> Done {
    let found = client.ptr_record(&key).await.map_err(|error| chain(&error));
    if let Err(why) = &found {
        tracing::debug!(key, why, "a PTR record cannot be read");
    }
    Done::PtrRead(flight, found)
}

/// Reads all that is ours, for the cluster of this uid.
pub(super) async fn resync(reader: Reader, owner: OwnerKey, uid: String) -> Done {
    let began = Instant::now();
    let owner = reader.read(&owner, &uid).await.map_err(|error| chain(&error));
    Done::Resynced(owner, began.elapsed())
}

/// Reads the names under which others hold instances; `held` need no answer.
pub(super) async fn names(client: Client, cluster: ClusterName, held: HashSet<Arc<str>>) -> Done {
    let is_held = |name: &str| held.contains(&*lookup_form(name));
    let found = client.foreign_names(&cluster, is_held).await;
    Done::Names(found.map_err(|error| chain(&error)))
}

/// Waits for the next change of the keys that are followed.
pub(super) async fn ptr_keys(mut keys: FollowedKeys) -> Done {
    loop {
        let mut seen = SeenIds::default();
        match keys.next(|key| seen.insert(key)).await {
            Ok(()) => return Done::PtrKeys(keys, seen),
            Err(error) => {
                tracing::debug!(error = chain(&error), "PTR keys cannot be followed");
                sleep(FOLLOW_RETRY).await;
            }
        }
    }
}

/// Looks up who else holds a name.
pub(super) async fn name(client: Client, cluster: ClusterName, name: Arc<str>) -> Done {
    let found = client.holders(&name, &cluster).await.map_err(|error| chain(&error));
    Done::Name(name, found)
}

/// Reads which of our service IDs the catalog shows on the agent's node.
pub(super) async fn catalog(client: Client, cluster: ClusterName, node: String) -> Done {
    let mut ids = SeenIds::default();
    let each = |observed: ObservedRegistration| ids.insert(&observed.registration.id);
    let result = client.catalog_registrations(&node, &cluster, Consistency::Leader, each).await;
    Done::Catalog(result.map(|_| ids).map_err(|error| chain(&error)))
}

/// Waits until the agent's sentinel is not that of `hash`.
pub(super) async fn watch_sentinel(sentinel: Sentinel, hash: ContentHash) -> Done {
    loop {
        match sentinel.watch(&hash).await {
            Ok(lost) => return Done::SentinelLost(lost),
            Err(error) => {
                tracing::debug!(error = error.chain(), "the sentinel cannot be asked for");
                sleep(SENTINEL_RETRY).await;
            }
        }
    }
}

/// Writes the sentinel, with the token in use now.
pub(super) async fn write_sentinel(sentinel: Sentinel) -> Done {
    Done::SentinelWritten(sentinel.register().await.map_err(|error| error.chain()))
}

/// Asks Consul for a sign of life.
pub(super) async fn heartbeat(client: Client) -> Done {
    Done::Heartbeat(match client.leader().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("Consul has no leader".to_owned()),
        Err(error) => Err(error.chain()),
    })
}

/// Asks the agent for itself once more: the permission may have been granted meanwhile.
pub(super) async fn agent(client: Client) -> Done {
    Done::Agent(checks::agent(&client).await.ok().and_then(Agent::info))
}

/// Reads the cluster's identity.
pub(super) async fn identity(client: kube::Client) -> Done {
    Done::Identity(match kube_system_uid(&client).await {
        Ok(ClusterUid::Known(uid)) => Ok(Some(uid)),
        Ok(ClusterUid::Denied(_)) => Ok(None),
        Err(error) => Err(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn one_job_at_a_time_that_nobodys_impatience_ends() {
        let (end, ended) = oneshot::channel::<()>();
        let job = ended.map(|ended| Done::Heartbeat(ended.map_err(|_| "dropped".to_owned())));
        let mut job: Option<Job> = Some(job.boxed());
        assert!(end_of(&mut job).now_or_never().is_none(), "it goes on");
        assert!(!end.is_closed(), "and is kept");
        end.send(()).unwrap();
        assert!(matches!(end_of(&mut job).await, Done::Heartbeat(Ok(()))));
        assert!(job.is_none(), "it ends once");
        assert!(end_of(&mut job).now_or_never().is_none());
    }
}
