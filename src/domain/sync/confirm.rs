//! Objects that a list lacked, and the second list that confirms it.
//!
//! A restored etcd, a broken aggregation layer or a changed flag look the same as a mass deletion,
//! and only one of them is meant: nothing is removed out of ignorance.
use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;

/// How much later than the first the confirming list begins at the earliest.
const CONFIRM_AFTER: Duration = Duration::from_secs(10);
/// Between two tries to read the cluster's identity.
const IDENTITY_RETRY: Duration = Duration::from_secs(2);

/// Objects that a list lacked and that are taken to exist all the same.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    pub(super) objects: BTreeSet<(Kind, ObjectKey)>,
    confirmation: Option<Confirmation>,
}

/// Progress of the second list.
#[derive(Debug)]
enum Confirmation {
    /// It is made then.
    Due(Moment),
    /// It was asked for.
    Asked {
        /// Kinds whose second list has begun.
        begun: BTreeSet<Kind>,
        /// Kinds whose second list is complete.
        listed: BTreeSet<Kind>,
        identity: Identity,
    },
}

/// Whether it still is the same cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Asked,
    /// It could not be read, and is read again then.
    Again(Moment),
    Confirmed,
}

/// What has to be asked now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Both lists and the identity.
    All,
    /// The identity once more.
    Identity,
}

// === impl Suspects ===

impl Suspects {
    pub(super) fn remove(&mut self, kind: Kind, key: &ObjectKey) {
        self.objects.remove(&(kind, key.clone()));
    }

    /// Objects of this kind are watched no longer: none is missing.
    pub(super) fn forget(&mut self, kind: Kind) {
        self.objects.retain(|(other, _)| *other != kind);
    }

    /// Whatever is missing or held now wants a second list of its own.
    pub(super) fn confirm_later(&mut self, now: Moment) {
        self.confirmation = Some(Confirmation::Due(now + CONFIRM_AFTER));
    }

    /// Nothing waits for a second list any more.
    pub(super) fn no_confirmation(&mut self) {
        self.confirmation = None;
    }

    /// Whether something waits for a second list.
    pub(super) fn awaits_confirmation(&self) -> bool {
        self.confirmation.is_some()
    }

    pub(super) fn list_started(&mut self, kind: Kind) {
        if let Some(Confirmation::Asked { begun, .. }) = &mut self.confirmation {
            begun.insert(kind);
        }
    }

    pub(super) fn list_completed(&mut self, kind: Kind) {
        if let Some(Confirmation::Asked { begun, listed, .. }) = &mut self.confirmation
            && begun.contains(&kind)
        {
            listed.insert(kind);
        }
    }

    /// Takes whether the cluster still is the one whose records these are. Counts only for a second
    /// list that was asked for.
    pub(super) fn identified(&mut self, is_confirmed: bool, now: Moment) {
        if let Some(Confirmation::Asked { identity, .. }) = &mut self.confirmation {
            *identity = if is_confirmed {
                Identity::Confirmed
            } else {
                Identity::Again(now + IDENTITY_RETRY)
            };
        }
    }

    /// Whether the second list of all these kinds is complete, of the same cluster.
    pub(super) fn is_confirmed(&self, mut kinds: impl Iterator<Item = Kind>) -> bool {
        match &self.confirmation {
            Some(Confirmation::Asked { listed, identity: Identity::Confirmed, .. }) => {
                kinds.all(|kind| listed.contains(&kind))
            }
            _ => false,
        }
    }

    /// When [`Suspects::due`] has something to ask.
    pub(super) fn next(&self) -> Option<Moment> {
        match &self.confirmation {
            Some(
                Confirmation::Due(due) | Confirmation::Asked { identity: Identity::Again(due), .. },
            ) => Some(*due),
            _ => None,
        }
    }

    /// What has to be asked now; it is asked for once.
    pub(super) fn due(&mut self, now: Moment) -> Option<Ask> {
        if self.next().is_none_or(|due| due > now) {
            return None;
        }
        if let Some(Confirmation::Asked { identity, .. }) = &mut self.confirmation {
            *identity = Identity::Asked;
            return Some(Ask::Identity);
        }
        self.confirmation = Some(Confirmation::Asked {
            begun: BTreeSet::new(),
            listed: BTreeSet::new(),
            identity: Identity::Asked,
        });
        Some(Ask::All)
    }
}
