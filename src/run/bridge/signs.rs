//! Signs that something is another than it was: the token, the sentinel, Consul's leader, the
//! cluster's identity.

use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::sleep;

use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::sentinel::{ContentHash, Lost, Sentinel};
use crate::run::Error;
use crate::run::bridge::Bridge;
use crate::run::bridge::drift::{HEARTBEAT, READ_BACK_RETRY};
use crate::run::bridge::jobs;

/// Between two tries to read the cluster's identity for a confirmation.
const IDENTITY_RETRY: Duration = Duration::from_secs(2);

// === impl Bridge ===

impl Bridge {
    /// An agent keeps the token of each registration; the catalog does not.
    pub(super) fn use_other_token(&mut self) {
        if let Marker::Sentinel(sentinel) = &self.marker {
            tracing::info!("another token is in use: registrations are sent once more");
            self.sentinel_job = Some(jobs::restore_sentinel(sentinel.clone()).boxed());
            self.state.token_changed();
        }
    }

    fn sentinel(&self) -> Option<Sentinel> {
        match &self.marker {
            Marker::Sentinel(sentinel) => Some(sentinel.clone()),
            Marker::BaseNode(_) => None,
        }
    }

    pub(super) fn watch_sentinel(&mut self, hash: Option<ContentHash>) {
        let watch = self.sentinel().zip(hash);
        self.sentinel_job =
            watch.map(|(sentinel, hash)| jobs::watch_sentinel(sentinel, hash).boxed());
    }

    pub(super) fn sentinel_lost(&mut self, lost: Lost) {
        match lost {
            Lost::Vanished => {
                tracing::warn!("the agent lost what was registered: filling it again");
            }
            Lost::Changed => {
                tracing::warn!("somebody changed the sentinel: looking at everything again");
            }
        }
        if let Some(sentinel) = self.sentinel() {
            self.sentinel_job = Some(jobs::restore_sentinel(sentinel).boxed());
        }
        self.drift.hurry_reading();
    }

    pub(super) fn sentinel_back(&mut self, result: Result<ContentHash, String>) {
        match result {
            Ok(hash) => {
                self.drift.heard();
                self.watch_sentinel(Some(hash));
            }
            Err(why) => {
                self.drift.failed("the sentinel cannot be written", why);
                let Some(sentinel) = self.sentinel() else { return };
                let later = async move {
                    sleep(READ_BACK_RETRY).await;
                    jobs::restore_sentinel(sentinel).await
                };
                self.sentinel_job = Some(later.boxed());
            }
        }
    }

    pub(super) fn heard(&mut self, alive: Result<(), String>) {
        match alive {
            Ok(()) => self.drift.heard(),
            Err(why) => self.drift.failed("no sign of life from Consul", why),
        }
        self.jobs.push(jobs::heartbeat(self.consul.clone(), HEARTBEAT).boxed());
    }

    pub(super) fn read_identity(&mut self, delay: Duration) {
        let client = self.kubernetes.client.clone();
        self.identity_job = Some(jobs::identity(client, delay).boxed());
    }

    pub(super) fn identified(
        &mut self,
        result: Result<Option<String>, String>,
    ) -> Result<(), Error> {
        let ours = self.peers.as_ref().map_or("", |met| &met.uid).to_owned();
        match result {
            // Where it may not be read, the operator vouches for it (`--cluster-uid`).
            Ok(None) => self.state.cluster_confirmed(),
            Ok(Some(uid)) if uid == ours => self.state.cluster_confirmed(),
            Ok(Some(uid)) => {
                return Err(Error::Refused(format!(
                    "expected the cluster with uid {ours}, found one with uid {uid}: the Kubernetes API's address \
                     leads to another cluster; nothing was removed"
                )));
            }
            Err(why) => {
                tracing::warn!("the cluster's identity cannot be read, removals wait: {why}");
                self.read_identity(IDENTITY_RETRY);
            }
        }
        Ok(())
    }
}
