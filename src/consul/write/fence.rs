//! What rolls a transaction back unless the lock is held (invariant: fencing).

use crate::consul::write::txn::Operation;

/// A session on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionId(pub(in crate::consul) Box<str>);

/// The lock that every transaction asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Its KV key.
    pub key: Box<str>,
    /// The session that has to hold it.
    pub session: SessionId,
}

// === impl SessionId ===

impl SessionId {
    /// The ID as text, for [`Operation::CheckSession`].
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// === impl Fence ===

impl Fence {
    /// The operation that rolls a transaction back unless the fence holds.
    pub(in crate::consul) fn operation(&self) -> Operation<'static> {
        Operation::CheckSession { key: self.key.clone(), session: self.session.as_str().into() }
    }
}
