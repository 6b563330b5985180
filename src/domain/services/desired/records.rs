//! What ought to be in Consul for one Service.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::consul::record::Registration;
use crate::domain::problem::Problem;
use crate::domain::services::claims::PtrRank;

/// An instance that may not have the name that it wants.
#[derive(Debug)]
pub struct Blocked {
    /// The instance, under the name that it wants.
    pub registration: Registration,
    /// The PTR key of its address, where that has one, and how strong the claim to it is.
    pub reverse: Option<(Box<str>, PtrRank)>,
}

/// A PTR record that a Service wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPtr {
    /// The Consul service name that it points to.
    pub service: Box<str>,
    /// How strong the claim to the key is.
    pub rank: PtrRank,
}

/// What has to be known before it can be told what ought to be in Consul for a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The nodes of the cluster.
    Nodes,
    /// What routes to it: something is registered that may be there.
    Routes,
}

/// What ought to be in Consul for one Service.
#[derive(Debug, Default)]
pub struct Desired {
    /// Its instances, by ID.
    pub registrations: BTreeMap<Box<str>, Registration>,
    /// Instances that wait until it is known whether others hold their name: neither written
    /// nor removed.
    pub undecided: BTreeSet<Box<str>>,
    /// The names of those, as [`lookup_form`] has them.
    pub unknown_names: BTreeSet<Box<str>>,
    /// Instances whose name another Service comes first for, or keeps: they are not to be registered.
    pub taken: BTreeSet<Box<str>>,
    /// Instances whose name others hold. What is registered of them already stays under the name
    /// that it has.
    pub blocked: Vec<Blocked>,
    /// Instances that are to be renamed, and keep their name by `--policy upsert-only`.
    pub keep_their_name: BTreeSet<Box<str>>,
    /// Its PTR records, by KV key.
    pub reverse: BTreeMap<Box<str>, WantedPtr>,
    /// Ports that no endpoint serves although some are ready, by their labels: the slices may not
    /// have followed the Service yet.
    pub unserved: BTreeSet<Box<str>>,
    /// The other ports, while there are such.
    pub served: BTreeSet<Box<str>>,
    /// What it cannot be told without: until then nothing is written, and nothing that is there
    /// removed.
    pub awaits: Option<Awaited>,
    /// Whether its load balancer has no address yet: somebody is making it.
    pub awaits_balancer: bool,
    /// Whether each instance follows from its own slice and the Service alone, whatever other slices
    /// show.
    pub by_slice: bool,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

// === impl Desired ===

impl Desired {
    /// Whether a registration of this ID is wanted, or may turn out to be.
    pub fn keeps(&self, id: &str) -> bool {
        self.is_unknown() || self.registrations.contains_key(id) || self.undecided.contains(id)
    }

    /// Whether it cannot be told yet: nothing is written, and nothing that is there removed.
    pub fn is_unknown(&self) -> bool {
        self.awaits.is_some()
    }

    /// How many instances are wanted, or may turn out to be.
    pub fn instances(&self) -> usize {
        self.registrations.len() + self.undecided.len()
    }
}
