//! The reasons for which a record is not written now.
use crate::domain::Moment;
use crate::domain::consul::record::Fingerprint;
use crate::domain::problem::Reason;
use crate::domain::retries::Failure;
use crate::domain::sync::hold::Cause;

/// Why a record is not as it ought to be, and not written now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Its removal, or its turning critical, is held back.
    Held(Cause),
    /// A write of it is in flight.
    InFlight,
    /// Its write failed for a reason that passes: tried again at that moment, or as soon as Consul
    /// answers after an outage.
    Backoff {
        /// When.
        until: Moment,
    },
    /// A permission is missing: tried again at that moment.
    Denied {
        /// When.
        until: Moment,
    },
    /// Its write alone fails again and again: tried again at that moment.
    Failing {
        /// When.
        until: Moment,
    },
    /// Somebody else keeps changing it, or has something in its place.
    Contested {
        /// When it is written again.
        until: Moment,
    },
    /// Consul does not take this content.
    Refused,
    /// It is not known yet whether others hold its Consul name.
    NameUnknown,
    /// Its Consul name is new, and it is being looked up whether others hold it.
    NameNotLookedUp,
    /// Another Service comes first for its Consul name, or keeps it.
    NameConflict,
    /// Others hold its Consul name.
    NameForeign,
    /// The nodes of the cluster are not known.
    NodesUnknown,
    /// What routes to its Service is not known: the API server does not serve it.
    RoutesUnknown,
    /// Endpoints are ready and none serves its port, which most often was renamed a moment ago: its
    /// EndpointSlices are waited for.
    SlicesBehind {
        /// Until then at the latest.
        until: Moment,
    },
    /// An object that it follows from could not be read.
    Unread,
    /// The node of its namespace is being removed from the catalog.
    NodeGoing,
    /// Its Service has much to be written: others have their turn in between.
    Turn,
    /// It is removed once what takes its place is written.
    AfterReplacement,
    /// It is written together with its PTR record, which has to be read or retried first.
    WithPtr,
    /// This PTR record is written with its instance, or goes with it.
    WithInstance,
    /// This PTR record needs the Consul datacenter and the DNS domain.
    DomainUnknown,
    /// Another bridge or somebody else has this PTR record.
    PtrForeign,
}

/// What an open question means for what else is to be written of the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// It comes soon: what depends on it waits.
    Soon,
    /// It may never come.
    Open,
}

// === impl Wait ===

impl Wait {
    pub(super) fn of_failure(failure: &Failure<Fingerprint>) -> Self {
        match failure {
            Failure::Passing { until } => Wait::Backoff { until: *until },
            Failure::Paused { until, .. } => Wait::Contested { until: *until },
            Failure::Refused { .. } => Wait::Refused,
            Failure::Lasting { until, problem } => match problem.reason {
                Reason::Denied => Wait::Denied { until: *until },
                Reason::Contested => Wait::Contested { until: *until },
                _ => Wait::Failing { until: *until },
            },
        }
    }

    pub(super) fn outlook(&self) -> Outlook {
        match self {
            Wait::InFlight | Wait::Backoff { .. } | Wait::Turn => Outlook::Soon,
            _ => Outlook::Open,
        }
    }
}
