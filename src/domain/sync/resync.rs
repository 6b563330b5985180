//! A resync: all that is ours in Consul is read and compared with what is known.
//!
//! It is one value from its beginning to its end: nothing can be observed without it, finishing
//! consumes it, and dropping it gives it up. Only one that was complete and authoritative may be
//! finished (nothing is removed out of ignorance); the edge that reads decides that. A record
//! written since it began is passed over: newer wins.

use std::collections::BTreeSet;

use crate::domain::Moment;
use crate::domain::consul::record::RecordKey;
use crate::domain::kube::names::ObjectKey;
use crate::domain::map::HashSet;

/// A resync under way.
#[derive(Debug)]
pub(super) struct Resync {
    pub(super) began: Moment,
    /// Records written since it began, or in flight then.
    touched: HashSet<RecordKey>,
    /// Namespaces whose node it has shown.
    pub(super) namespace_nodes: BTreeSet<Box<str>>,
    /// Records that it found changed.
    pub(super) fixed: usize,
    /// Whether Consul lost what was registered, and the marker with it: nobody has changed what is
    /// missing.
    pub(super) state_lost: bool,
    /// How many of them were reported one by one.
    pub(super) reported: usize,
}

/// A record that was found changed.
#[derive(Debug)]
pub(super) struct Drift {
    pub(super) service: ObjectKey,
    pub(super) record: RecordKey,
    pub(super) found: String,
}

// === impl Resync ===

impl Resync {
    /// Before its request is sent, while writes of these records are in flight. `state_lost`:
    /// whether Consul is known to have lost what was registered.
    pub(super) fn begin(
        in_flight: impl Iterator<Item = RecordKey>,
        state_lost: bool,
        now: Moment,
    ) -> Self {
        Self {
            began: now,
            touched: in_flight.collect(),
            namespace_nodes: BTreeSet::new(),
            fixed: 0,
            state_lost,
            reported: 0,
        }
    }

    /// The record is written.
    pub(super) fn touch(&mut self, record: RecordKey) {
        self.touched.insert(record);
    }

    /// Whether what it shows of the record, or does not, may be outdated.
    pub(super) fn passes_over(&self, record: &RecordKey) -> bool {
        self.touched.contains(record)
    }
}
