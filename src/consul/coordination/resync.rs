//! Reading back all that is ours, and repairing the marker (invariant: evidence): the one place in
//! which a reading becomes evidence of absence.
//!
//! A reading that lacks our marker is unknown: this Consul lost its state, or it is another one.
//! Then the marker is written, and everything is read once more. If that shows the marker, the rest
//! of it is true, and what is not in it is absent.

use tokio::sync::mpsc;

use crate::consul::coordination::marker::{Marker, MarkerError};
use crate::consul::coordination::owner::{ClaimError, Owner, OwnerKey};
use crate::consul::http::client::Client;
use crate::consul::read::evidence::{Consistency, Unknown};
use crate::consul::write::nodes::Stray;
use crate::consul::write::txn::Encoded;
use crate::domain::consul::node_names::NodeNames;
use crate::domain::consul::record::{Observation, ObservedRegistration};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::ClusterName;
use crate::domain::text::chain;

/// Everything that a reading needs.
#[derive(Clone, Debug)]
pub struct Reader {
    /// How Consul is asked.
    pub client: Client,
    /// Whose records are read.
    pub cluster: ClusterName,
    /// What a true reading shows.
    pub marker: Marker,
    /// How fresh the servers' answers have to be.
    pub consistency: Consistency,
    /// The lock that what is put right asks for.
    pub fence: Option<Encoded>,
    /// Whether what is ours where no bridge registers anything is removed.
    pub removes_strays: bool,
    /// Takes what is shown, while the reading goes on. Who listens polls the reading too: what
    /// waits is at most what one poll can parse.
    pub seen: mpsc::UnboundedSender<Observation>,
}

/// What a reading shows that is not as a bridge leaves it.
#[derive(Debug, Default)]
struct Odd {
    /// Nodes of ours that have lost their mark.
    unmarked: Vec<Box<str>>,
    /// What is ours on the base node.
    strays: Vec<Stray>,
}

/// Why a reading proves nothing.
#[derive(Debug, thiserror::Error)]
pub enum ResyncError {
    /// Whose the records are is not known.
    #[error(transparent)]
    Owner(#[from] ClaimError),
    /// A part could not be read, or the marker did not show.
    #[error(transparent)]
    Unknown(#[from] Unknown),
    /// The marker could not be written.
    #[error(transparent)]
    Marker(#[from] MarkerError),
}

// === impl Reader ===

impl Reader {
    /// Reads all that is ours if the owner key is that of cluster `uid`, and says whose it is. What
    /// it shows goes to `seen` before it ends.
    pub async fn read(&self, owner: &OwnerKey, uid: &str) -> Result<Owner, ResyncError> {
        let owner = owner.claim(uid, None).await?;
        if owner != Owner::Ours {
            return Ok(owner);
        }
        let mut odd = Odd::default();
        if !self.registrations(&mut odd).await? {
            self.show(Observation::MarkerMissing);
            self.marker.ensure(&self.client, &self.cluster).await?;
            if !self.registrations(&mut odd).await? {
                return Err(self.marker.missing().into());
            }
        }
        self.ptr_records().await?;
        self.put_right(&odd).await;
        Ok(owner)
    }

    /// Reads all that is ours and writes nothing, whosever the records are. Whether our marker
    /// is there.
    pub async fn look(&self) -> Result<bool, Unknown> {
        let marked = self.registrations(&mut Odd::default()).await?;
        self.ptr_records().await?;
        Ok(marked)
    }

    async fn ptr_records(&self) -> Result<(), Unknown> {
        let seen = self.seen.clone();
        let each = move |observed| drop(seen.send(Observation::Ptr(observed)));
        self.client.ptr_records(self.consistency, each).await.map(drop)
    }

    /// Whether our marker is there: only then is absent what was not shown. Notes what is odd.
    async fn registrations(&self, odd: &mut Odd) -> Result<bool, Unknown> {
        match &self.marker {
            Marker::Sentinel(_) => {
                let seen = self.seen.clone();
                let each = move |observed| drop(seen.send(Observation::Registration(observed)));
                Ok(self.client.agent_registrations(&self.cluster, each).await?.marker)
            }
            Marker::BaseNode(names) => self.catalog(names, odd).await,
        }
    }

    /// Node by node: what is registered on one that is not there is nothing.
    async fn catalog(&self, names: &NodeNames, odd: &mut Odd) -> Result<bool, Unknown> {
        *odd = Odd::default();
        let nodes = self.client.nodes(names, &self.cluster, self.consistency).await?;
        for node in &nodes.others {
            let stray = format!("node {node} with the mark of this cluster: purge removes it");
            self.show(Observation::Stray(stray));
        }
        for namespace in &nodes.namespaces {
            self.show(Observation::NamespaceNode(namespace.clone()));
            self.namespace_node(names, namespace).await?;
        }
        // Somebody's registration took the mark from these: one that has something of ours is ours.
        let mut has_ours = false;
        for namespace in &nodes.unmarked {
            if self.namespace_node(names, namespace).await? {
                has_ours = true;
                self.show(Observation::NamespaceNode(namespace.clone()));
                odd.unmarked.push(names.of_namespace(namespace));
            }
        }
        if nodes.marker || nodes.unmarked_base {
            self.base_node(names.base(), odd).await;
        }
        // What we have written shows that this is the Consul to which we wrote, as the mark would.
        if nodes.unmarked_base && (has_ours || !nodes.namespaces.is_empty()) {
            odd.unmarked.push(names.base().into());
            return Ok(true);
        }
        Ok(nodes.marker)
    }

    /// Reads the base node, on which no bridge registers anything. What has our mark there is nobody's:
    /// a copy by hand, or what a tool moved.
    ///
    /// Nothing else depends on it: where it cannot be read, say because somebody has put a service
    /// there that our token may not see, the rest of the reading is as true.
    async fn base_node(&self, base: &str, odd: &mut Odd) {
        // One whose name has a dot may be a namespace's node to a bridge with another --node-name.
        let removes = self.removes_strays && !base.contains('.');
        let each = |ObservedRegistration { registration, .. }: ObservedRegistration| {
            let id = &registration.id;
            let then = if removes { "it is removed" } else { "purge removes it" };
            self.show(Observation::Stray(format!("service ID {id} on base node {base}: {then}")));
            if removes {
                let (id, name) = (registration.id, registration.service);
                odd.strays.push(Stray { node: base.into(), id, name });
            }
        };
        let listing =
            self.client.catalog_registrations(base, &self.cluster, self.consistency, each);
        if let Err(error) = listing.await {
            odd.strays.clear();
            let why = chain(&error);
            self.show(Observation::Stray(format!("base node {base} cannot be read: {why}")));
        }
    }

    /// Marks nodes of ours again, and removes what is ours where no bridge registers anything. What
    /// fails is tried again with the next resync, and is read all the same.
    async fn put_right(&self, odd: &Odd) {
        let fence = self.fence.as_ref();
        for node in &odd.unmarked {
            if let Err(error) = self.client.mark_node(node, &self.cluster, fence).await {
                let error = error.chain();
                tracing::warn!(%node, error, "a node of ours cannot be marked again");
            }
        }
        if let Err(error) = self.client.remove_strays(&odd.strays, fence).await {
            let error = error.chain();
            tracing::warn!(error, "what is ours on the base node cannot be removed");
        }
    }

    /// Reads the node of a namespace. Whether something of ours is on it.
    async fn namespace_node(&self, names: &NodeNames, namespace: &str) -> Result<bool, Unknown> {
        let node = names.of_namespace(namespace);
        let each = |observed: ObservedRegistration| {
            let id = &observed.registration.id;
            let of = service_of_id(&self.cluster, id);
            if of.is_some_and(|service| *service.namespace == *namespace) {
                self.show(Observation::Registration(observed));
            } else {
                let stray = format!("service ID {id} on node {node}: purge removes it");
                self.show(Observation::Stray(stray));
            }
        };
        let (cluster, consistency) = (&self.cluster, self.consistency);
        let listing = self.client.catalog_registrations(&node, cluster, consistency, each).await?;
        Ok(listing.registrations > 0)
    }

    fn show(&self, seen: Observation) {
        // Nobody listens any more only when the whole reading is given up.
        drop(self.seen.send(seen));
    }
}
