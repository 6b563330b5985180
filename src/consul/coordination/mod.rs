//! Who may write, and whether a reading is true.
//!
//! | file | what it is |
//! |---|---|
//! | [`owner`] | the owner key: which Kubernetes cluster a name belongs to (invariant: identity) |
//! | [`session`], [`lock`], [`election`] | which of several processes writes (invariant: fencing) |
//! | [`sentinel`], [`marker`] | what a true reading shows (invariant: evidence) |
//! | [`resync`] | the reading of all that is ours, and the repair of the marker (invariant: evidence) |

pub mod election;
pub mod lock;
pub mod marker;
pub mod owner;
pub mod resync;
pub mod sentinel;
pub mod session;
