//! Services whose writes failed, and when each is tried again.

use std::time::Duration;

use super::action::Failure;
use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::Problem;
use crate::domain::retries::Retries;

/// Between two tries of a Service whose write failed: from what the API server takes to start a
/// request again, to what somebody who gives a right waits for.
pub(super) const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_mins(1));

/// What failed, by Service: its writes fail and are tried again together.
#[derive(Debug, Default)]
pub(super) struct Failures(Retries<ObjectKey, ObjectKey, ()>);

// === impl Failures ===

impl Failures {
    /// A write of the Service failed.
    pub(super) fn failed(&mut self, key: &ObjectKey, failure: Failure, now: Moment) {
        let Failure { problem, retry_after } = failure;
        if self.waits(key, now) && retry_after.is_zero() {
            // The writes of one round fail together.
            return;
        }
        let delay = RETRY.delay(self.0.attempts(key), key).max(retry_after);
        self.0.lasting(key, key, problem, now + delay);
    }

    /// Whether nothing is written because a write failed.
    pub(super) fn waits(&self, key: &ObjectKey, now: Moment) -> bool {
        self.0.failure(key, None, now).is_some()
    }

    /// What people are told.
    pub(super) fn problem(&self, key: &ObjectKey) -> Option<&Problem> {
        self.0.problems(key).next().map(|(_, problem)| problem)
    }

    /// All of the Service is as it ought to be.
    pub(super) fn clear(&mut self, key: &ObjectKey) {
        self.0.clear(key);
    }

    /// Whether nothing failed.
    pub(super) fn is_empty(&self) -> bool {
        self.0.owners().next().is_none()
    }

    /// When the next Service is tried again.
    pub(super) fn next(&self) -> Option<Moment> {
        let (soon, late) = self.0.next();
        [soon, late].into_iter().flatten().min()
    }

    /// The Services that are tried again now.
    pub(super) fn due(&mut self, now: Moment) -> Vec<ObjectKey> {
        self.0.due(now)
    }
}
