//! What is under way beside the loop: each job ends with what it found out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::time::{Instant, sleep};

use crate::consul::coordination::election::Lease;
use crate::consul::coordination::owner::{Owner, OwnerKey};
use crate::consul::coordination::resync::Reader;
use crate::consul::coordination::sentinel::{ContentHash, Lost, Sentinel};
use crate::consul::http::client::Client;
use crate::consul::read::evidence::Consistency;
use crate::consul::write::sink::Sink;
use crate::domain::consul::names::{ForeignNames, lookup_form};
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, ObservedPtr, ObservedRegistration, RecordKey, Write,
};
use crate::domain::kube::names::ClusterName;
use crate::domain::text::chain;
use crate::run::Error;
use crate::run::bridge::leadership::Term;
use crate::run::bridge::seen_ids::SeenIds;
use crate::run::daemon::handshake::PeerInfo;

/// Between two tries to watch the sentinel of an agent that cannot be asked: no longer than its
/// restart takes.
const SENTINEL_RETRY: Duration = Duration::from_secs(1);

/// A job under way.
pub(super) type Job = BoxFuture<'static, Done>;

/// What a job found out.
pub(super) enum Done {
    /// The handshake is over.
    PeerInfo(Result<PeerInfo, Error>),
    /// Writes of this term were answered, within this time.
    Wrote(Term, Vec<(RecordKey, Answer)>, Duration),
    /// The removal of a namespace's node in this term was answered.
    NamespaceNodeRemoved(Term, Box<str>, NamespaceNodeAnswer),
    /// This process leads.
    Elected(Lease),
    /// It does no longer, and why.
    Deposed(String),
    /// A PTR key was read.
    PtrRead(Box<str>, Result<Option<ObservedPtr>, String>),
    /// Consul was read back.
    ReadBack(Result<Owner, String>),
    /// The names that others hold were read.
    ForeignNames(Result<ForeignNames, String>),
    /// The IDs that the catalog shows on the agent's node were read.
    Catalog(Result<SeenIds, String>),
    /// The agent lost the sentinel, or somebody changed it.
    SentinelLost(Lost),
    /// The sentinel was written again.
    SentinelBack(Result<ContentHash, String>),
    /// Consul was asked for a sign of life.
    Heartbeat(Result<(), String>),
    /// The cluster's identity was read again.
    Identity(Result<Option<String>, String>),
}

/// Waits for the end of the job that stands there, and takes it away. Without one it never ends.
pub(super) async fn end_of(job: &mut Option<Job>) -> Done {
    let Some(running) = job else { return std::future::pending().await };
    let done = running.await;
    *job = None;
    done
}

/// Sends groups of writes that belong together.
pub(super) async fn write(term: Term, sink: Sink, groups: Vec<Vec<Write>>) -> Done {
    let began = Instant::now();
    let answers = sink.write(groups).await;
    Done::Wrote(term, answers, began.elapsed())
}

/// Removes the node of a namespace on which nothing stands any more.
pub(super) async fn remove_namespace_node(term: Term, sink: Sink, namespace: Box<str>) -> Done {
    let answer = sink.remove_namespace_node(&namespace).await;
    Done::NamespaceNodeRemoved(term, namespace, answer)
}

/// Reads one PTR key.
pub(super) async fn read_ptr(client: Client, key: Box<str>) -> Done {
    let found = client.ptr_record(&key).await.map_err(|error| chain(&error));
    Done::PtrRead(key, found)
}

/// Reads all that is ours, for the cluster of this uid.
pub(super) async fn read_back(reader: Reader, owner: OwnerKey, uid: String) -> Done {
    Done::ReadBack(reader.read(&owner, &uid).await.map_err(|error| chain(&error)))
}

/// Reads the names under which others hold instances; `held` need no answer.
pub(super) async fn foreign_names(
    client: Client,
    cluster: ClusterName,
    held: HashSet<Arc<str>>,
) -> Done {
    let is_held = |name: &str| held.contains(&*lookup_form(name));
    let found = client.foreign_names(&cluster, is_held).await;
    Done::ForeignNames(found.map_err(|error| chain(&error)))
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

/// Writes the sentinel again, with the token in use now.
pub(super) async fn restore_sentinel(sentinel: Sentinel) -> Done {
    Done::SentinelBack(sentinel.register().await.map_err(|error| error.chain()))
}

/// Asks Consul for a sign of life after `delay`.
pub(super) async fn heartbeat(client: Client, delay: Duration) -> Done {
    sleep(delay).await;
    let alive = match client.leader().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("Consul has no leader".to_owned()),
        Err(error) => Err(error.chain()),
    };
    Done::Heartbeat(alive)
}

/// Reads the cluster's identity after `delay`; `None`: it may not be read.
pub(super) async fn identity(client: kube::Client, delay: Duration) -> Done {
    use crate::kubernetes::client::{ClusterUid, kube_system_uid};
    sleep(delay).await;
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
