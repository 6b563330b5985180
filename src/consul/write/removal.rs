//! Removing many records at once.

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::write::txn::{Encoded, MAX_OPERATIONS, Operation};

/// What could not be removed: what it is, and why.
pub type Left = (String, String);

// === impl Client ===

impl Client {
    /// Makes these operations, at most [`MAX_OPERATIONS`]: all but those that Consul refuses,
    /// each of which is reported by its name.
    pub async fn remove_all(
        &self,
        operations: Vec<(String, Operation<'_>)>,
    ) -> Result<Vec<Left>, Error> {
        debug_assert!(operations.len() <= MAX_OPERATIONS, "the caller makes the batches");
        let encoded = operations.into_iter().map(|(name, operation)| (name, operation.encode()));
        let (mut waiting, mut left): (Vec<(String, Encoded)>, _) = (encoded.collect(), Vec::new());
        while !waiting.is_empty() {
            let errors = match self.transaction(waiting.iter().map(|(_, it)| it)).await {
                Ok(_) => break,
                Err(Error::RolledBack { errors, .. }) if !errors.is_empty() => errors,
                Err(error) => return Err(error),
            };
            let before = waiting.len();
            let mut index = 0;
            waiting.retain(|(name, _)| {
                let error = errors.iter().find(|error| error.index == index);
                index += 1;
                left.extend(error.map(|error| (name.clone(), error.message.clone())));
                error.is_none()
            });
            if waiting.len() == before {
                // None of them is at fault, by what Consul says: not to be sent for ever.
                let why = errors.first().map(|error| error.message.clone()).unwrap_or_default();
                left.extend(waiting.drain(..).map(|(name, _)| (name, why.clone())));
            }
        }
        Ok(left)
    }
}
