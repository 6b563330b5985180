//! What is under way: for a Service, and for each record of it.

use std::collections::BTreeSet;

use crate::domain::consul::record::{Fingerprint, RecordKey};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::sync::Moment;

/// What is under way for one Service.
#[derive(Debug, Default)]
pub(super) struct Unit {
    pub(super) in_flight: usize,
    pub(super) written: usize,
    pub(super) removed: usize,
    /// Its records that have a [`Track`].
    pub(super) troubled: BTreeSet<RecordKey>,
}

/// A record with a write in flight or in trouble.
#[derive(Debug)]
pub(super) struct Track {
    pub(super) service: ObjectKey,
    /// What was sent and not yet answered.
    pub(super) sent: Option<Sent>,
    /// Services that passed it over because a write was in flight: its own, or others that
    /// share a PTR key.
    pub(super) again: BTreeSet<ObjectKey>,
    /// Whether the token changed while a write was in flight.
    pub(super) old_token: bool,
    /// Whether this one was deposed since it was sent: others may have written the record since it
    /// was applied.
    pub(super) is_former: bool,
    /// How often in a row it failed.
    pub(super) attempt: u32,
    /// How often in a row it failed although Consul answered others.
    pub(super) lonely: u32,
    /// [`super::outage::Outage::answers`] when it was sent or failed last.
    pub(super) answers: u64,
    pub(super) trouble: Option<Trouble>,
}

/// A write in flight: what the ledger has to note once it is answered.
#[derive(Clone, Debug)]
pub(super) enum Sent {
    Register { name: Box<str>, fingerprint: Fingerprint, critical: bool },
    Deregister,
    PutPtr(Fingerprint),
    DeletePtr,
    Read,
}

/// Why a record is not as it ought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// It passes: tried again at that moment, or as soon as Consul answers after an outage.
    Transient { until: Moment },
    /// It lasts until somebody mends it: tried again at that moment.
    Lasting { until: Moment, problem: Problem },
    /// Consul does not take this content: another one is tried at once.
    Refused { content: Fingerprint, problem: Problem },
}

// === impl Track ===

impl Track {
    pub(super) fn new(service: &ObjectKey) -> Self {
        Self {
            service: service.clone(),
            sent: None,
            again: BTreeSet::new(),
            old_token: false,
            is_former: false,
            attempt: 0,
            lonely: 0,
            answers: 0,
            trouble: None,
        }
    }

    /// The track of a record of which nothing is known any more, but who waits for it.
    pub(super) fn anew(self) -> Self {
        Self { again: self.again, ..Self::new(&self.service) }
    }
}

// === impl Trouble ===

impl Trouble {
    /// A right is missing.
    pub(super) fn denied(until: Moment, record: &RecordKey, why: &str) -> Self {
        let message =
            format!("Consul denied the write of {record}: {why}. Give the token the missing right");
        Self::Lasting { until, problem: Problem::new(Reason::Denied, message) }
    }

    /// It should pass, and does not for this record alone.
    pub(super) fn failing(until: Moment, record: &RecordKey, why: &str) -> Self {
        let message = format!(
            "Consul answers, and fails the write of {record} again and again: {why}. \
             It is tried again every minute",
        );
        Self::Lasting { until, problem: Problem::new(Reason::Failing, message) }
    }

    /// Somebody else keeps changing it, or has something in its place: left alone until then.
    pub(super) fn contested(until: Moment, record: &RecordKey, why: &str) -> Self {
        let problem = Problem::new(Reason::Contested, format!("{record}: {why}"));
        Self::Lasting { until, problem }
    }

    pub(super) fn refused(content: Fingerprint, record: &RecordKey, why: &str) -> Self {
        let message = format!("Consul refused {record}: {why}");
        Self::Refused { content, problem: Problem::new(Reason::Refused, message) }
    }

    /// What people are told of it: nothing of what passes.
    pub(super) fn problem(&self) -> Option<&Problem> {
        match self {
            Trouble::Transient { .. } => None,
            Trouble::Lasting { problem, .. } | Trouble::Refused { problem, .. } => Some(problem),
        }
    }
}
