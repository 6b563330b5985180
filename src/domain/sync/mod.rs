//! The state of a bridge, as a machine without I/O: what Kubernetes shows and what Consul answers
//! go in, what is to be done next comes out. It decides everything; whoever owns it obeys.
//!
//! | file | what it is |
//! |---|---|
//! | `core` | [`Core`]: events in, actions out; it routes between the two owners of state |
//! | `config`, `action`, `report` | what goes in once, and what comes out |
//! | `cluster` | what is known of Kubernetes, whoever leads |
//! | `absence`, `confirm` | objects that are gone or that a list lacked, and the second list |
//! | `node_watch` | the watch of nodes, which goes on only at times |
//! | `term` | what is known and under way on Consul's side, dropped with the lead |
//! | `ledger` | what Consul is known to have |
//! | `start` | the first reconciliation of a term |
//! | `loss`, `hold` | what a Service would lose, and removals that are held back |
//! | `view` | what planning looks at, and what ought to be registered in view of it |
//! | `plan`, `ptr` | from a Service that may have changed to what is written of it now |
//! | `by_slice` | the same for no more than the slices that changed, where that is enough |
//! | `wait` | the reasons for which a record is not written now |
//! | `apply` | takes plans, and gives what is sent next |
//! | `answers` | what Consul's answers mean |
//! | `awaited_ptr` | PTR keys that we want and others have |
//! | `grace` | what a Service may lack for a while: EndpointSlices that follow, a load balancer |
//! | `resync`, `observe` | all that is ours in Consul is compared with what is known |
//! | `contention` | records that somebody else keeps changing |
//! | `names` | who else holds the Consul names that we want |
//! | `namespace_nodes` | the catalog's nodes for namespaces |
//! | `schedule`, `contact` | when Consul is looked at, and when it was heard |
//! | `readiness` | whether the work is being done, and why not |
//! | `problems` | the problems of objects |
//! | `queue`, `order` | each Service once; who takes a name over before who leaves it |
//!
//! Kept here:
//! - **Nothing is removed out of ignorance**: nothing is written before every kind is listed and
//!   Consul is read (`start`); what a list no longer shows is confirmed or held (`absence`, `hold`);
//!   only a complete resync says that a record is gone (`observe`); of Services whose nodes are not
//!   listed, or that cannot be read, nothing is taken (`plan`, `node_watch`).
//! - **Only our own records are touched**: foreign names and PTR keys stay as they are (`plan`,
//!   `ptr`), a namespace node with something foreign too (`namespace_nodes`).
//! - **It converges**: whatever a write's fate, its Service is planned again (`answers`).
//! - **Equal means silent**: writes are the difference between what is desired and known (`plan`).
//! - **Newer wins**: a record with a write in flight is left alone until its answer (`plan`), a
//!   namespace node while anything is (`namespace_nodes`), and a resync does not speak of a record
//!   that was written since it began.
//! - **One bad object harms only itself**: refusals and waits are per record (`retries`), problems
//!   per object.
//! - **A deposed leader plans nothing**: its term is gone (`term`). That what it has sent does not get
//!   in any more is the transactions' to see to.

mod absence;
mod action;
mod answers;
mod apply;
mod awaited_ptr;
mod by_slice;
mod cluster;
mod config;
mod confirm;
mod contact;
mod contention;
mod core;
mod grace;
mod hold;
mod ledger;
mod loss;
mod names;
mod namespace_nodes;
mod node_watch;
mod observe;
mod order;
mod plan;
mod precedence;
mod problems;
mod ptr;
mod queue;
mod readiness;
mod report;
mod resync;
mod schedule;
mod start;
mod term;
mod view;
mod wait;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use self::action::{Action, Group, Planned};
pub use self::config::{Capacity, Config, Peer, Target};
pub use self::core::Core;
pub use self::hold::Cause;
pub use self::ledger::KnownRegistration;
pub use self::plan::Plan;
pub use self::readiness::{NotReady, Once, Readiness};
pub use self::report::{Counts, Report, Written};
pub use self::wait::Wait;
pub use crate::domain::Moment;
