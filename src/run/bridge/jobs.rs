//! What is under way beside the loop: each job ends with what it found out.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

use crate::consul::coordination::election::Lease;
use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::owner::{ClaimError, Owner, OwnerKey};
use crate::consul::coordination::sentinel::{ContentHash, Lost, Sentinel};
use crate::consul::http::client::Client;
use crate::consul::read::{Consistency, Unknown};
use crate::consul::write::nodes::NodeNames;
use crate::consul::write::sink::Sink;
use crate::domain::consul::names::{ForeignNames, lookup_form};
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, ObservedPtr, ObservedRegistration, RecordKey, Write,
};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::ClusterName;
use crate::domain::text::chain;
use crate::run::Error;
use crate::run::bridge::handshake::PeerInfo;
use crate::run::bridge::leadership::Term;
use crate::run::bridge::seen_ids::SeenIds;

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

/// What a reading shows, while it goes on.
pub(in crate::run) enum Observation {
    Registration(ObservedRegistration),
    Ptr(ObservedPtr),
    /// The node of this namespace is there.
    NamespaceNode(Box<str>),
    /// Something with our mark in a place where no bridge with these options writes.
    Stray(String),
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

/// Everything that a reading needs.
#[derive(Clone)]
pub(in crate::run) struct ReadBack {
    pub(in crate::run) client: Client,
    pub(in crate::run) cluster: ClusterName,
    pub(in crate::run) marker: Marker,
    pub(in crate::run) consistency: Consistency,
    pub(in crate::run) owner: OwnerKey,
    pub(in crate::run) uid: String,
    pub(in crate::run) seen: mpsc::UnboundedSender<Observation>,
}

// === impl ReadBack ===

impl ReadBack {
    /// Reads all that is ours. What it shows goes to `seen` before it ends.
    pub(super) async fn run(self) -> Done {
        Done::ReadBack(self.read().await)
    }

    async fn read(&self) -> Result<Owner, String> {
        let owner =
            self.owner.claim(&self.uid, None).await.map_err(|error: ClaimError| chain(&error))?;
        if owner != Owner::Ours {
            return Ok(owner);
        }
        if !self.registrations().await.map_err(|error| chain(&error))? {
            // Consul lost its state. Once the marker is written and shows again, the rest of
            // that reading is true (invariant 1).
            let made = self.marker.ensure(&self.client, &self.cluster).await;
            made.map_err(|error| chain(&error))?;
            if !self.registrations().await.map_err(|error| chain(&error))? {
                return Err(chain(&self.marker.missing()));
            }
        }
        self.ptr_records().await.map_err(|error| chain(&error))?;
        Ok(owner)
    }

    /// Reads all that is ours and writes nothing, whosever the records are. Whether our marker
    /// is there.
    pub(in crate::run) async fn look(&self) -> Result<bool, Unknown> {
        let marked = self.registrations().await?;
        self.ptr_records().await?;
        Ok(marked)
    }

    async fn ptr_records(&self) -> Result<(), Unknown> {
        let seen = self.seen.clone();
        let each = move |observed| drop(seen.send(Observation::Ptr(observed)));
        self.client.ptr_records(self.consistency, each).await.map(drop)
    }

    /// Whether our marker is there: only then is absent what was not shown.
    async fn registrations(&self) -> Result<bool, Unknown> {
        match &self.marker {
            Marker::Sentinel(_) => {
                let seen = self.seen.clone();
                let each = move |observed| drop(seen.send(Observation::Registration(observed)));
                Ok(self.client.agent_registrations(&self.cluster, each).await?.marker)
            }
            Marker::BaseNode(names) => self.catalog(names).await,
        }
    }

    /// Node by node: what stands on one that is not there is nothing.
    async fn catalog(&self, names: &NodeNames) -> Result<bool, Unknown> {
        let nodes = self.client.nodes(names, &self.cluster, self.consistency).await?;
        for node in &nodes.others {
            let stray = format!("node {node} with the mark of this cluster: purge removes it");
            self.show(Observation::Stray(stray));
        }
        for namespace in &nodes.namespaces {
            self.show(Observation::NamespaceNode(namespace.clone()));
            let node = names.of_namespace(namespace);
            let each = |observed: ObservedRegistration| {
                let id = &observed.registration.id;
                let of = service_of_id(&self.cluster, id);
                if of.is_some_and(|service| service.namespace == *namespace) {
                    self.show(Observation::Registration(observed));
                } else {
                    let stray = format!("service ID {id} on node {node}: purge removes it");
                    self.show(Observation::Stray(stray));
                }
            };
            let (cluster, consistency) = (&self.cluster, self.consistency);
            self.client.catalog_registrations(&node, cluster, consistency, each).await?;
        }
        Ok(nodes.marker)
    }

    fn show(&self, seen: Observation) {
        // Nobody listens any more only when the whole reading is given up.
        drop(self.seen.send(seen));
    }
}

/// Reads the names under which others hold instances.
pub(super) async fn foreign_names(
    client: Client,
    cluster: ClusterName,
    held: HashSet<Arc<str>>,
) -> Done {
    Done::ForeignNames(names_of_others(client, cluster, held).await)
}

/// The names under which others hold instances; `held` need no answer.
pub(in crate::run) async fn names_of_others(
    client: Client,
    cluster: ClusterName,
    held: HashSet<Arc<str>>,
) -> Result<ForeignNames, String> {
    let is_held = |name: &str| held.contains(&*lookup_form(name));
    client.foreign_names(&cluster, is_held).await.map_err(|error| chain(&error))
}

/// Reads which of our service IDs the catalog shows on the agent's node.
pub(super) async fn catalog(client: Client, cluster: ClusterName, node: String) -> Done {
    let mut ids = SeenIds::default();
    let each = |observed: ObservedRegistration| ids.insert(&observed.registration.id);
    let result = client.catalog_registrations(&node, &cluster, Consistency::Default, each).await;
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
