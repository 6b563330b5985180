//! What is asked of Consul by the one that writes. Dropping it cancels all of it: with the lead goes
//! everything that was under way.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::owner::OwnerKey;
use crate::consul::coordination::resync::Reader;
use crate::consul::http::client::Client;
use crate::consul::read::evidence::Consistency;
use crate::consul::read::keys::FollowedKeys;
use crate::consul::write::sink::Sink;
use crate::domain::consul::record::{Observation, Write};
use crate::domain::flights::FlightId;
use crate::domain::kube::names::ClusterName;
use crate::domain::map::HashSet;
use crate::run::bridge::jobs::{self, Done, Job};

/// How long writes in flight may take to finish at the end: an exit keeps registrations.
const FINISH: Duration = Duration::from_secs(5);

/// Whom and what Consul is asked for.
#[derive(Clone)]
pub(super) struct Records {
    pub(super) client: Client,
    pub(super) cluster: ClusterName,
    pub(super) marker: Marker,
    pub(super) owner: OwnerKey,
    /// The cluster's identity.
    pub(super) uid: String,
    /// The agent's node in the catalog, where it is known.
    pub(super) agent_node: Option<String>,
    /// As [`Reader::removes_strays`].
    pub(super) removes_strays: bool,
}

/// What the one that writes has under way.
pub(super) struct Work {
    records: Records,
    sink: Sink,
    /// Flights that are not answered.
    requests: FuturesUnordered<Job>,
    /// Names and what the catalog shows, being read.
    looks: FuturesUnordered<Job>,
    resync: Option<Resync>,
    /// Waits for a change of the PTR keys that are followed.
    ptr_keys: Option<Job>,
}

/// A resync under way.
struct Resync {
    job: Job,
    /// What one poll of the job parses waits here, and is taken before the next.
    seen: mpsc::UnboundedReceiver<Observation>,
    /// How it ended, while what it has shown last is not taken yet.
    ended: Option<Done>,
}

// === impl Work ===

impl Work {
    pub(super) fn new(records: Records, sink: Sink) -> Self {
        let (requests, looks) = (FuturesUnordered::new(), FuturesUnordered::new());
        Self { records, sink, requests, looks, resync: None, ptr_keys: None }
    }

    /// The agent's node in the catalog turned out to be this one.
    pub(super) fn set_agent_node(&mut self, node: String) {
        self.records.agent_node = Some(node);
    }

    pub(super) fn write(&self, flight: FlightId, groups: Vec<Vec<Write>>) {
        self.requests.push(jobs::write(flight, self.sink.clone(), groups).boxed());
    }

    pub(super) fn read_ptr(&self, flight: FlightId, key: Box<str>) {
        self.requests.push(jobs::read_ptr(flight, self.records.client.clone(), key).boxed());
    }

    pub(super) fn remove_namespace_node(&self, flight: FlightId, namespace: Box<str>) {
        let removal = jobs::remove_namespace_node(flight, self.sink.clone(), namespace);
        self.requests.push(removal.boxed());
    }

    pub(super) fn resync(&mut self, is_consistent: bool) {
        let Records { client, cluster, marker, owner, uid, removes_strays, .. } =
            self.records.clone();
        let fence = self.sink.fence().cloned();
        let consistency = if is_consistent { Consistency::Consistent } else { Consistency::Leader };
        let (shows, seen) = mpsc::unbounded_channel();
        let reader =
            Reader { client, cluster, marker, consistency, fence, removes_strays, seen: shows };
        let job = jobs::resync(reader, owner, uid).boxed();
        self.resync = Some(Resync { job, seen, ended: None });
    }

    pub(super) fn read_names(&self, held: HashSet<Arc<str>>) {
        let Records { client, cluster, .. } = self.records.clone();
        self.looks.push(jobs::names(client, cluster, held).boxed());
    }

    pub(super) fn read_name(&self, name: Arc<str>) {
        let Records { client, cluster, .. } = self.records.clone();
        self.looks.push(jobs::name(client, cluster, name).boxed());
    }

    /// Follows the PTR keys that begin with this, and no others.
    pub(super) fn follow_ptr(&mut self, prefix: Option<&str>) {
        let keys = prefix.map(|prefix| self.records.client.follow_keys(prefix));
        self.ptr_keys = keys.map(|keys| jobs::ptr_keys(keys).boxed());
    }

    /// Waits for the next change of those.
    pub(super) fn follow_further(&mut self, keys: FollowedKeys) {
        self.ptr_keys = Some(jobs::ptr_keys(keys).boxed());
    }

    pub(super) fn read_catalog(&self) {
        let Records { client, cluster, agent_node, .. } = self.records.clone();
        if let Some(node) = agent_node {
            self.looks.push(jobs::catalog(client, cluster, node).boxed());
        }
    }

    /// The next thing that was found out.
    pub(super) async fn next(&mut self) -> Done {
        tokio::select! {
            Some(done) = self.requests.next() => done,
            Some(done) = self.looks.next() => done,
            done = next_of(&mut self.resync) => done,
            done = jobs::end_of(&mut self.ptr_keys) => done,
        }
    }

    /// Lets the writes in flight finish.
    pub(super) async fn finish(&mut self) {
        let finished = timeout(FINISH, async { while self.requests.next().await.is_some() {} });
        if finished.await.is_err() {
            tracing::warn!("{} writes were not answered in time", self.requests.len());
        }
    }
}

/// What the resync has shown, and how it ended.
async fn next_of(resync: &mut Option<Resync>) -> Done {
    let Some(Resync { job, seen, ended }) = resync else { return std::future::pending().await };
    if ended.is_none() {
        tokio::select! {
            biased;
            Some(first) = seen.recv() => return observed(first, seen),
            done = job => *ended = Some(done),
        }
    }
    // What was shown last is taken before the end.
    if let Ok(first) = seen.try_recv() {
        return observed(first, seen);
    }
    match ended.take() {
        Some(done) => {
            *resync = None;
            done
        }
        None => std::future::pending().await,
    }
}

fn observed(first: Observation, seen: &mut mpsc::UnboundedReceiver<Observation>) -> Done {
    let rest = std::iter::from_fn(|| seen.try_recv().ok());
    Done::Observed(std::iter::once(first).chain(rest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_resync_shows_all_before_it_ends() {
        let (shows, seen) = mpsc::unbounded_channel();
        let job = async move {
            for number in 0..10 {
                shows.send(Observation::Stray(number.to_string())).unwrap();
                if number % 4 == 3 {
                    tokio::task::yield_now().await;
                }
            }
            Done::Resynced(Err("broken off".to_owned()), Duration::ZERO)
        };
        let mut resync = Some(Resync { job: job.boxed(), seen, ended: None });
        let mut count = 0;
        while let Done::Observed(seen) = next_of(&mut resync).await {
            assert!(seen.len() <= 4, "one poll's worth");
            count += seen.len();
        }
        assert_eq!(count, 10);
        assert!(resync.is_none(), "it ends once");
        assert!(next_of(&mut resync).now_or_never().is_none());
    }

    #[test]
    fn what_is_dropped_is_cancelled() {
        let (shows, seen) = mpsc::unbounded_channel::<Observation>();
        let asked = shows.clone();
        let job = async move {
            shows.send(Observation::Stray(String::new())).unwrap();
            std::future::pending().await
        };
        let mut resync = Some(Resync { job: job.boxed(), seen, ended: None });
        assert!(next_of(&mut resync).now_or_never().is_none(), "it has only begun");
        assert!(matches!(next_of(&mut resync).now_or_never(), Some(Done::Observed(_))));
        assert!(!asked.is_closed());
        drop(resync);
        assert!(asked.is_closed());
    }
}
