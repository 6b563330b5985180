//! What the jobs found out: who leads, what Consul answered, whose records and which cluster it is.

use std::time::Duration;

use futures::FutureExt as _;

use super::Bridge;
use crate::consul::coordination::election::Lease;
use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::owner::{Owner, OwnerKey};
use crate::consul::coordination::sentinel::{ContentHash, Lost, Sentinel};
use crate::consul::read::agent::AgentInfo;
use crate::consul::write::sink::Sink;
use crate::domain::consul::record::{Answer, NamespaceNodeAnswer, RecordKey};
use crate::domain::flights::FlightId;
use crate::domain::sync::Peer;
use crate::run::Error;
use crate::run::bridge::jobs::{self, Done};
use crate::run::bridge::leadership::Leadership;
use crate::run::bridge::work::Records;
use crate::run::daemon::checks::other_owner;
use crate::run::daemon::handshake::PeerInfo;

// === impl Bridge ===

impl Bridge {
    /// Takes what a job found out. An error ends the process.
    pub(super) fn handle(&mut self, done: Done) -> Result<(), Error> {
        let now = self.now();
        match done {
            Done::Connected(peers) => self.connected(peers?),
            Done::Acquired(lease) => self.acquired(lease),
            Done::Lost(why) => self.lose(&why),
            Done::HolderChanged => self.core.handle_candidacy(self.leadership.other_leads()),
            Done::Wrote(flight, answers, took) => self.wrote(flight, answers, took),
            Done::PtrRead(flight, found) => self.core.handle_ptr_read(flight, &found, now),
            Done::NamespaceNodeRemoved(_, NamespaceNodeAnswer::Fenced) => self.fenced(),
            Done::NamespaceNodeRemoved(flight, answer) => {
                self.core.handle_namespace_node(flight, answer, now);
            }
            Done::Observed(seen) => {
                for seen in seen {
                    self.core.handle_observation(seen);
                }
            }
            Done::Resynced(owner, took) => return self.resynced(owner, took),
            Done::Names(names) => self.core.handle_names(names, now),
            Done::PtrKeys(keys, shown) => {
                if let Some(work) = self.leadership.work() {
                    work.follow_further(keys);
                }
                self.core.handle_ptr_keys(&|key: &str| shown.contains(key), now);
            }
            Done::Name(name, found) => self.core.handle_name(&name, found, now),
            Done::Catalog(Ok(shown)) => {
                self.core.handle_catalog(Ok(&|id: &str| shown.contains(id)), now);
            }
            Done::Catalog(Err(why)) => self.core.handle_catalog(Err(why), now),
            Done::SentinelLost(lost) => self.sentinel_lost(lost),
            Done::SentinelWritten(Ok(hash)) => {
                self.watch_sentinel(hash);
                self.core.handle_marker_written(Ok(()), now);
            }
            Done::SentinelWritten(Err(why)) => self.core.handle_marker_written(Err(why), now),
            Done::Heartbeat(alive) => self.core.handle_heartbeat(alive, now),
            Done::Agent(Some(agent)) => self.agent_found(agent),
            Done::Agent(None) => {}
            Done::Identity(identity) => return self.identified(identity),
        }
        Ok(())
    }

    fn connected(&mut self, peers: PeerInfo) {
        let domain = self.options.sync.consul_domain(peers.agent.as_ref());
        if domain.is_none() {
            tracing::warn!(
                "no PTR record can be written: the datacenter or the DNS domain is not known; \
                 set --datacenter and --dns-domain"
            );
        }
        if let Some(hash) = peers.sentinel.clone() {
            self.watch_sentinel(hash);
        }
        let peer = Peer { domain, shows_catalog: peers.agent.is_some() };
        self.peers = Some(peers);
        let now = self.now();
        self.core.handle_connected(peer, now);
        self.change_leadership(Leadership::connected);
        if self.leadership.work().is_some() {
            self.core.handle_acquired(now);
        }
    }

    /// The agent may be read by now.
    fn agent_found(&mut self, agent: AgentInfo) {
        tracing::info!(
            version = agent.version,
            datacenter = agent.datacenter,
            "the agent may be read now"
        );
        let domain = self.options.sync.consul_domain(Some(&agent));
        if let Some(work) = self.leadership.work() {
            work.set_agent_node(agent.node.clone());
        }
        if let Some(peers) = &mut self.peers {
            peers.agent = Some(agent);
        }
        let now = self.now();
        self.core.handle_connected(Peer { domain, shows_catalog: true }, now);
    }

    fn acquired(&mut self, lease: Lease) {
        tracing::info!("acquired leadership");
        self.change_leadership(|leadership, records, sink| {
            leadership.acquired(lease, records, sink)
        });
        self.reporting.leads(true);
        self.core.handle_acquired(self.began.elapsed());
    }

    /// Another one may lead from now on: all that is under way is given up.
    pub(super) fn lose(&mut self, why: &str) {
        tracing::warn!(why, "lost leadership");
        self.change_leadership(|leadership, _, _| leadership.lost());
        self.reporting.leads(false);
        self.core.handle_lost(self.began.elapsed());
        self.core.handle_candidacy(self.leadership.other_leads());
    }

    /// A write found the lock in other hands.
    fn fenced(&mut self) {
        self.lose("the lock is no longer its session's");
    }

    fn change_leadership(&mut self, change: impl FnOnce(Leadership, Records, Sink) -> Leadership) {
        let Some(records) = self.records() else { return };
        let sink = self.options.sync.sink(&self.consul);
        let before = std::mem::replace(&mut self.leadership, Leadership::Connecting(None));
        self.leadership = change(before, records, sink);
    }

    /// Whom and what Consul is asked for, once both sides are known.
    fn records(&self) -> Option<Records> {
        let peers = self.peers.as_ref()?;
        let cluster = self.options.sync.settings.cluster.clone();
        Some(Records {
            removes_strays: !self.options.sync.settings.never_removes(),
            client: self.consul.clone(),
            owner: OwnerKey::new(self.consul.clone(), &cluster),
            cluster,
            marker: self.options.sync.marker(&self.consul),
            uid: peers.uid.clone(),
            agent_node: peers.agent.as_ref().map(|agent| agent.node.clone()),
        })
    }

    fn wrote(&mut self, flight: FlightId, answers: Vec<(RecordKey, Answer)>, took: Duration) {
        for (record, answer) in &answers {
            self.reporting.wrote(record, answer, took);
        }
        if answers.iter().any(|(_, answer)| *answer == Answer::Fenced) {
            return self.fenced();
        }
        self.core.handle_answers(flight, answers, self.began.elapsed());
    }

    fn resynced(&mut self, owner: Result<Owner, String>, took: Duration) -> Result<(), Error> {
        self.reporting.resynced(owner.is_ok(), took);
        let now = self.now();
        match owner {
            Ok(Owner::Ours) => self.core.handle_resync(Ok(()), now),
            Err(why) => self.core.handle_resync(Err(why), now),
            Ok(Owner::Other(other)) => {
                let cluster = &self.options.sync.settings.cluster;
                let key = OwnerKey::new(self.consul.clone(), cluster);
                return Err(other_owner(&key, cluster, self.uid(), &other));
            }
        }
        Ok(())
    }

    fn identified(&mut self, found: Result<Option<String>, String>) -> Result<(), Error> {
        let now = self.now();
        match found {
            // Where it may not be read, the operator vouches for it (`--cluster-uid`).
            Ok(None) => self.core.handle_identity(Ok(()), now),
            Ok(Some(uid)) if uid == self.uid() => self.core.handle_identity(Ok(()), now),
            Ok(Some(uid)) => {
                return Err(Error::Refused(format!(
                    "expected the cluster with uid {}, found one with uid {uid}: the Kubernetes API's \
                     address leads to another cluster; nothing was removed",
                    self.uid()
                )));
            }
            Err(why) => self.core.handle_identity(Err(why), now),
        }
        Ok(())
    }

    fn uid(&self) -> &str {
        self.peers.as_ref().map_or("", |peers| &peers.uid)
    }

    pub(super) fn sentinel(&self) -> Option<Sentinel> {
        match self.options.sync.marker(&self.consul) {
            Marker::Sentinel(sentinel) => Some(sentinel),
            Marker::BaseNode(_) => None,
        }
    }

    fn watch_sentinel(&mut self, hash: ContentHash) {
        let sentinel = self.sentinel();
        self.jobs.sentinel = sentinel.map(|sentinel| jobs::watch_sentinel(sentinel, hash).boxed());
    }

    fn sentinel_lost(&mut self, lost: Lost) {
        match lost {
            Lost::Vanished => {
                tracing::warn!(
                    "the agent has restarted without its state: registering everything again"
                );
            }
            Lost::Changed => {
                tracing::warn!("somebody changed the sentinel: resyncing");
            }
        }
        self.core.handle_marker_lost(self.began.elapsed());
    }
}
