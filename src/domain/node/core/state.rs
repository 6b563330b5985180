//! What the core holds of the agent, and the removals that it holds back.

use std::collections::BTreeMap;

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::Problem;

/// The agent as it answers.
#[derive(Debug, Default)]
pub(super) struct Agent {
    /// Whether it was ever read.
    pub(super) is_read: bool,
    /// A reading is under way; it began after so many writes.
    pub(super) reading: Option<u64>,
    /// When it is read next.
    pub(super) next: Moment,
    /// When it was read last.
    pub(super) last: Moment,
    pub(super) attempt: u32,
    /// Why it does not answer, while it does not.
    pub(super) failure: Option<String>,
    pub(super) answered: Option<Moment>,
    /// IDs of ours that others have, each with why.
    pub(super) foreign: BTreeMap<Box<str>, Problem>,
    /// Pods whose sidecars deregistered with the daemon that was here before, each with the restarts
    /// of its container then.
    pub(super) deregistered: BTreeMap<ObjectKey, i32>,
    /// Its node's name.
    pub(super) node: Option<Box<str>>,
    /// The name that it had before, if it is another agent now.
    pub(super) other: Option<Problem>,
}

/// Removals that are not believed yet.
#[derive(Debug)]
pub(super) struct Hold {
    pub(super) since: Moment,
    /// When the second list is asked for next.
    pub(super) ask: Moment,
}
