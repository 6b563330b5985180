//! The records that are kept in Consul, the writes that change them, and what Consul answers.

use std::fmt;
use std::hash::{BuildHasher as _, Hash};
use std::num::NonZeroU64;
use std::sync::Arc;

use foldhash::quality::FixedState;

use crate::domain::consul::pairs::Meta;
use crate::domain::consul::registration_id::is_of_endpoint;
use crate::domain::hash::fnv1a_32;
use crate::domain::kube::names::ClusterName;

/// Meta key that marks a registration as a bridge's, with the cluster's name as value
/// (invariant: ownership).
pub const CLUSTER_META: &str = "kube-consul-cluster";

/// Meta key that says which system a registration comes from.
pub const SOURCE_META: &str = "external-source";

/// The value of [`SOURCE_META`] that bridges set, and consul-k8s's catalog sync too.
pub const SOURCE: &str = "kubernetes";

/// Meta key that says which Kubernetes namespace a registration is from.
pub const NAMESPACE_META: &str = "external-k8s-ns";

/// Meta key that says which Kubernetes Service a registration is from.
pub const SERVICE_META: &str = "external-k8s-service";

/// Meta key that says which pod an endpoint is, where it is one.
pub const POD_META: &str = "external-k8s-ref-name";

/// Meta key that marks a registration as katalog-sync's, or our node daemon's.
pub const KATALOG_SYNC_META: &str = "external-sync-source";

/// Meta key that says which node an instance is on.
pub const NODE_META: &str = "external-k8s-node-name";

/// Name of the check that an instance has while it is not ready.
pub const READINESS_CHECK: &str = "Kubernetes readiness";

/// One service instance in Consul, with all the fields that we set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Registration {
    /// The service ID; see [`RecordKey`].
    pub id: Box<str>,
    /// The name by which clients look it up.
    pub service: Box<str>,
    /// Namespace of the Kubernetes Service: the catalog sink has a node for each.
    pub namespace: Box<str>,
    /// An IP address, or the host name of a load balancer.
    pub address: Box<str>,
    /// The port that clients connect to.
    pub port: u16,
    /// Tags in the order in which Consul shows them.
    pub tags: Arc<Vec<String>>,
    /// Meta, our marks included.
    pub meta: Meta,
    /// Weight in DNS SRV answers and load balancing while it passes (Consul's default is 1).
    pub weight: u16,
    /// Which check it has.
    pub check: Check,
}

/// The readiness check of an instance. A Consul service without checks counts as passing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// None: ready (or health is not mirrored).
    None,
    /// Passing: ready, with `--health always`.
    Passing,
    /// Critical: not ready, left out of DNS answers.
    Critical,
}

// === impl Registration ===

impl Registration {
    /// Why it is critical, for whoever sees its check in Consul. It follows from what a registration
    /// is and not from how many endpoints there are, which would be a write whenever that changes.
    pub fn why_critical(&self) -> String {
        let of = |key: &str| self.meta.get(key).unwrap_or("?");
        let service = format!("{}/{}", of(NAMESPACE_META), of(SERVICE_META));
        match (self.meta.get(POD_META), self.meta.get(NODE_META)) {
            (Some(pod), _) => format!("pod {pod}, an endpoint of {service}, is not ready"),
            _ if is_of_endpoint(&self.id) => format!("this endpoint of {service} is not ready"),
            (None, Some(node)) => {
                format!("node {node} is not ready, or leads to no ready endpoints of {service}")
            }
            (None, None) => format!("no ready endpoints of {service}"),
        }
    }
}

/// A reverse-DNS record in the KV store.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PtrRecord {
    /// The KV key, for example `0.70.254.10.IN-ADDR.ARPA/10.254.70.176`.
    pub key: Box<str>,
    /// The name, for example `web.service.dc1.consul`.
    pub value: Box<str>,
}

/// What identifies a record: the service ID of a registration, the KV key of a PTR record, or the
/// namespace of a node that the catalog sink keeps.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordKey {
    /// A registration, by its service ID.
    Registration(Box<str>),
    /// A PTR record, by its KV key.
    Ptr(Box<str>),
    /// The catalog's node for a namespace, by the namespace.
    NamespaceNode(Box<str>),
}

/// Hash of all fields that we set: equal records have equal fingerprints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(NonZeroU64);

/// One change to one record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Creates a registration, its check included.
    Register(Registration),
    /// Replaces a registration, and the check that it may have had.
    Replace(Registration),
    /// Removes a registration with its checks. The name and the namespace are what it was
    /// registered with.
    Deregister {
        /// The service ID.
        id: Box<str>,
        /// The Consul service name.
        service: Box<str>,
        /// The Kubernetes namespace.
        namespace: Box<str>,
    },
    /// Writes a PTR record if its ModifyIndex still is `cas` (0: it must not exist).
    PutPtr {
        /// The record.
        record: PtrRecord,
        /// ModifyIndex of what is replaced.
        cas: u64,
    },
    /// Removes a PTR record if its ModifyIndex still is `cas`.
    DeletePtr {
        /// The KV key.
        key: Box<str>,
        /// ModifyIndex of what is removed.
        cas: u64,
    },
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done. `index` is the ModifyIndex of a KV key where the answer tells it, else 0.
    Applied {
        /// ModifyIndex, for the next check-and-set.
        index: u64,
    },
    /// Compare-and-set failed: somebody else changed the key. Read it and decide again.
    Conflict,
    /// Consul refuses this record for what is in it; sending it again is of no use.
    Refused(String),
    /// The token lacks a right. Worth trying again, slowly.
    Denied(String),
    /// Not applied, for a reason that passes: no leader, a rate limit, no connection.
    Failed(String),
    /// No answer came: it may still be applied, up to 30 s later.
    Unanswered(String),
    /// Not sent, because the write that it goes with failed.
    NotSent,
    /// The lock is no longer ours (invariant: fencing).
    Fenced,
    /// Something of somebody else's stands in the way and is left alone (invariant: ownership).
    /// Worth trying again, slowly: people may move it.
    Foreign(String),
}

/// What became of the removal of a namespace's node in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamespaceNodeAnswer {
    /// It is gone.
    Removed,
    /// Registrations of ours stand on it: a reading has to show them first.
    InUse,
    /// Services that no bridge made stand on it: it stays.
    Foreign {
        /// The node's name.
        node: Box<str>,
        /// Their IDs.
        ids: Vec<Box<str>>,
    },
    /// It could not be read or removed.
    Failed(String),
    /// The removal got no answer: it may still be made, up to 30 s later.
    Unanswered(String),
    /// The lock is no longer ours (invariant: fencing).
    Fenced,
}

/// A registration as Consul has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedRegistration {
    /// In our form, so that its fingerprint can be compared. What Consul adds by itself is
    /// left out; what others changed in it makes it differ.
    pub registration: Registration,
    /// Its ModifyIndex (0 from an agent, which has none).
    pub index: u64,
}

/// A KV entry under a PTR key as Consul has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedPtr {
    /// Key and value. A value that is not UTF-8 is shown with replacement characters.
    pub record: PtrRecord,
    /// The KV flags, which say whose it is: see [`PtrOwner`].
    pub flags: u64,
    /// Its ModifyIndex.
    pub index: u64,
}

/// What a resync shows, while it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A registration of ours.
    Registration(ObservedRegistration),
    /// A KV entry that may be a PTR record, foreign ones too.
    Ptr(ObservedPtr),
    /// The node of this namespace is there.
    NamespaceNode(Box<str>),
    /// The marker was not there: Consul lost its state. Everything is shown once more.
    MarkerMissing,
    /// Something with our mark in a place where no bridge with these options writes, in words.
    Stray(String),
}

/// Whose a PTR record is, by its KV flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PtrOwner {
    /// This cluster's bridge.
    Ours,
    /// The bridge of a cluster of another name.
    OtherCluster,
    /// Nobody we know.
    Foreign,
}

// === impl Registration ===

impl Registration {
    /// Hash of all its fields.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(self)
    }
}

// === impl PtrRecord ===

impl PtrRecord {
    /// Hash of key and value.
    pub fn fingerprint(&self) -> Fingerprint {
        fingerprint(self)
    }
}

/// With fixed keys the result is the same within one build of the program, and fingerprints never
/// leave the process.
fn fingerprint(value: &impl Hash) -> Fingerprint {
    let hash = FixedState::default().hash_one(value);
    // That 0 and 1 count as one costs nothing; that an Option of it needs no room is worth much.
    Fingerprint(NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN))
}

// === impl RecordKey ===

impl fmt::Display for RecordKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordKey::Registration(id) => write!(f, "service ID {id}"),
            RecordKey::Ptr(key) => write!(f, "KV key {key}"),
            RecordKey::NamespaceNode(namespace) => write!(f, "node of namespace {namespace}"),
        }
    }
}

// === impl Write ===

impl Write {
    /// The record that it changes.
    pub fn key(&self) -> RecordKey {
        match self {
            Write::Register(registration) | Write::Replace(registration) => {
                RecordKey::Registration(registration.id.clone())
            }
            Write::Deregister { id, .. } => RecordKey::Registration(id.clone()),
            Write::PutPtr { record, .. } => RecordKey::Ptr(record.key.clone()),
            Write::DeletePtr { key, .. } => RecordKey::Ptr(key.clone()),
        }
    }
}

impl Write {
    /// How many bytes its tags and meta have: what may be much in a write.
    pub fn text(&self) -> usize {
        match self {
            Write::Register(registration) | Write::Replace(registration) => {
                let tags = registration.tags.iter().map(String::len);
                let meta = registration.meta.pairs().map(|(key, value)| key.len() + value.len());
                tags.chain(meta).sum()
            }
            Write::Deregister { .. } | Write::PutPtr { .. } | Write::DeletePtr { .. } => 0,
        }
    }
}

// === impl Answer ===

impl Answer {
    /// Whether it says that Consul takes writes, this one or others.
    pub fn shows_that_consul_writes(&self) -> bool {
        !matches!(
            self,
            Answer::Failed(_) | Answer::Unanswered(_) | Answer::NotSent | Answer::Fenced
        )
    }
}

// === impl PtrOwner ===

impl PtrOwner {
    /// Upper half of the flags of every PTR record that a bridge wrote: "kc".
    const MARK: u64 = 0x6b63;

    /// The KV flags of this cluster's PTR records: the mark, and FNV-1a-32 of its name.
    pub fn flags(cluster: &ClusterName) -> u64 {
        (Self::MARK << 32) | u64::from(fnv1a_32(cluster.as_str().bytes()))
    }

    /// Whose a KV entry with these flags is, seen from `cluster`.
    pub fn of(flags: u64, cluster: &ClusterName) -> Self {
        if flags == Self::flags(cluster) {
            PtrOwner::Ours
        } else if flags >> 32 == Self::MARK {
            PtrOwner::OtherCluster
        } else {
            PtrOwner::Foreign
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_an_instance_is_critical_follows_from_what_it_is() {
        let of = |id: &str, meta: &[(&str, &str)]| {
            let meta = [(NAMESPACE_META, "shop"), (SERVICE_META, "web")].iter().chain(meta);
            let meta = meta.map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            let meta = meta.collect::<std::collections::BTreeMap<_, _>>().into();
            let registration = Registration {
                id: id.into(),
                service: "web".into(),
                namespace: "shop".into(),
                address: "10.0.0.1".into(),
                port: 80,
                tags: Arc::default(),
                meta,
                weight: 1,
                check: Check::Critical,
            };
            registration.why_critical()
        };
        assert_eq!(of("k_shop_web_http_10.0.0.1", &[]), "no ready endpoints of shop/web");
        let endpoint = "k_shop_web_http_8080_10.0.0.1";
        assert_eq!(of(endpoint, &[]), "this endpoint of shop/web is not ready");
        let (pod, node) = ((POD_META, "web-1"), (NODE_META, "n1"));
        let text = "pod web-1, an endpoint of shop/web, is not ready";
        assert_eq!(of(endpoint, &[pod, node]), text);
        let text = "node n1 is not ready, or leads to no ready endpoints of shop/web";
        assert_eq!(of("k_shop_web_http_192.0.2.1", &[node]), text);
    }

    #[test]
    fn flags_tell_the_owner() {
        let ours: ClusterName = "kubernetes".parse().unwrap();
        let other: ClusterName = "other".parse().unwrap();
        // The published FNV-1a-32 test vector of "a".
        assert_eq!(PtrOwner::flags(&"a".parse().unwrap()), 0x6b63_e40c_292c);
        assert_eq!(PtrOwner::of(PtrOwner::flags(&ours), &ours), PtrOwner::Ours);
        assert_eq!(PtrOwner::of(PtrOwner::flags(&other), &ours), PtrOwner::OtherCluster);
        for foreign in [0, 42, u64::MAX, 0x6b62_0000_0000] {
            assert_eq!(PtrOwner::of(foreign, &ours), PtrOwner::Foreign);
        }
    }
}
