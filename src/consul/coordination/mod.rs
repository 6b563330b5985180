//! Who may write, and whether a reading is true: the leader's lock, the owner key, the markers.

pub mod election;
pub mod lock;
pub mod marker;
pub mod owner;
pub mod resync;
pub mod sentinel;
pub mod session;
