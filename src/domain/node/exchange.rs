//! What goes into the core and what comes out of it, beside what a watch shows.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::wanted::{CheckStatus, Registration, State};
use crate::domain::problem::Problem;
use crate::domain::sidecar::SyncError;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read what the agent has: `handle_agent`.
    ReadAgent,
    /// List the pods again: a list follows.
    Relist,
    /// Register this, with this status if its check is new: `handle_answer`.
    Register(Box<Registration>, State),
    /// Remove the check of this ID, which others have put in the place of ours: `handle_answer`.
    RemoveCheck(Box<str>),
    /// Tell the check of this ID: `handle_answer`.
    Update {
        /// The check.
        id: Box<str>,
        /// Its status and output.
        state: State,
        /// How long the agent may take: a quarter of the TTL.
        deadline: Duration,
    },
    /// Remove this from the agent: `handle_answer`.
    Deregister(Box<str>),
    /// Follow this service in the catalog: `handle_catalog`.
    Follow(Box<str>),
    /// Follow it no longer.
    Unfollow(Box<str>),
    /// Set conditions of a pod: `handle_patched`.
    Patch(Box<GatePatch>),
    /// Answer the request of this number.
    Reply(u64, Result<(), SyncError>),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done.
    Done,
    /// The agent has no such check, or one that is not ours.
    UnknownCheck(String),
    /// Consul refuses the content.
    Refused(String),
    /// The token may not.
    Denied(String),
    /// The agent fails: its disk is full, it is busy. It may be done or not.
    Failed(String),
    /// Nobody answered: it may be done or not.
    Unanswered(String),
}

/// A service in the agent that is ours, or in our way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub registration: Registration,
    /// The check of the same ID: its status and output. None where there is no TTL check.
    pub check: Option<(CheckStatus, Box<str>)>,
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A pod's registration was written; whether it passes.
    Registered(ObjectKey, Box<str>, CheckStatus),
    /// Its status changed.
    Changed(ObjectKey, Box<str>, CheckStatus),
    /// It was removed.
    Deregistered(ObjectKey, Box<str>),
    /// So long after a change of a pod the agent has all of a registration that followed from it.
    Propagated(Duration),
    /// A pod has a problem.
    Problem(ObjectKey, Problem),
    /// It has it no longer.
    Solved(ObjectKey, Problem),
    /// Others changed, replaced or removed this in the agent.
    Drifted(Box<str>, String),
    /// So many registrations of so many would be removed: held back.
    Held(usize, usize),
    /// What was held back is confirmed, or has come again.
    Released,
    /// The lists agree that there is no pod at all: nothing is removed, all is critical.
    Empty,
}

/// An instance in the catalog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its service ID.
    pub id: Box<str>,
    /// Its address.
    pub address: Box<str>,
    /// Its port.
    pub port: u16,
    /// The status of the check of the same ID; none: there is none.
    pub status: Option<CheckStatus>,
}

/// A change of a pod's conditions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatePatch {
    /// The pod.
    pub pod: ObjectKey,
    /// Only if it still has this uid.
    pub uid: Box<str>,
    /// The conditions.
    pub gates: Vec<&'static str>,
    /// Their status.
    pub status: bool,
    /// A word.
    pub reason: &'static str,
    /// A sentence.
    pub message: String,
}

/// Why a patch was not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PatchError {
    /// There is no such pod any more.
    Gone,
    /// A right is missing, or an admission policy refuses it.
    Denied(String),
    /// It passes.
    Failed(String),
}

/// What `/status` shows of a pod.
#[derive(Debug)]
pub struct PodView<'a> {
    /// Whether its containers are ready.
    pub is_ready: bool,
    /// What its sidecar said, in a word, if it has one.
    pub sidecar: Option<&'static str>,
    /// Its registrations: ID, status in the agent, next heartbeat.
    pub registrations: Vec<(&'a str, Option<CheckStatus>, Option<Moment>)>,
    /// What is wrong with it.
    pub problems: &'a BTreeSet<Problem>,
}
