//! What comes out of the core for people.

use crate::domain::Moment;
use crate::domain::consul::record::RecordKey;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::problem::Problem;
use crate::domain::report::difference::FieldChange;
use crate::domain::sync::hold::Cause;

/// Something that people want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A Service's records in Consul are as they ought to be again.
    InSync {
        /// The Service.
        service: ObjectKey,
        /// What was written of it.
        written: Written,
        /// How many instances it has now whose check is critical.
        critical: usize,
        /// How many it has whose check is not.
        passing: usize,
        /// When the first change was seen in Kubernetes that this was written for; none where a
        /// resync, a retry or the beginning of a term asked for it.
        since: Option<Moment>,
    },
    /// An object has a problem that it did not have before.
    Problem(Subject, ObjectKey, Problem),
    /// An object no longer has this problem.
    Solved(Subject, ObjectKey, Problem),
    /// It is no longer known here whether the object has this problem: another one leads.
    Withdrawn(Subject, ObjectKey, Problem),
    /// Options limit which Services are registered, and no Service is.
    NothingSelected,
    /// One is again.
    SelectedAgain,
    /// Removals are held back.
    Held {
        /// Why.
        cause: Cause,
        /// How many records would be removed or turn critical.
        lost: usize,
        /// Of how many.
        total: usize,
    },
    /// Held removals are confirmed, or the second list showed again what was missing.
    Released {
        /// Whether there is something to remove.
        confirmed: bool,
    },
    /// A resync found that a record was not as we had left it. Of many only the first are reported.
    Drifted {
        /// The Service that it belongs to.
        service: ObjectKey,
        /// Which.
        record: RecordKey,
        /// The fields that are not as they ought to be. None of a record that is gone.
        fields: Vec<FieldChange>,
        /// What is known of who changed it.
        found: String,
    },
    /// A resync found that records were not as we had left them.
    Fixed {
        /// How many.
        records: usize,
        /// Whether Consul had lost what was registered, so that nobody changed them.
        state_lost: bool,
    },
    /// A PTR record that another cluster or somebody else had is gone, and is written for this
    /// Service.
    PtrTakenOver(ObjectKey, Box<str>),
    /// Something with our mark is in a place where no bridge with these options writes.
    Stray(String),
    /// A side did not do what it was asked for; what follows, and why.
    Failed(&'static str, String),
}

/// How many records of a Service were written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Registrations that Consul did not have.
    pub added: usize,
    /// Registrations that it had with another content.
    pub updated: usize,
    /// Registrations that were removed.
    pub removed: usize,
    /// PTR records that were written or removed.
    pub ptr_records: usize,
}

// === impl Written ===

impl Written {
    /// Whether anything was written.
    pub fn is_any(self) -> bool {
        self != Self::default()
    }
}

/// How many of what there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services in the cluster.
    pub services: usize,
    /// Those of them that have registrations in Consul.
    pub registered: usize,
    /// Our registrations in Consul.
    pub registrations: usize,
    /// Those of them whose check is critical.
    pub critical: usize,
    /// Our PTR records in Consul.
    pub ptr_records: usize,
    /// Services that have to be planned or have something under way.
    pub backlog: usize,
    /// Problems.
    pub problems: usize,
    /// Records that would be removed but for `--policy upsert-only`.
    pub kept: usize,
}
