//! Waiting for a side that cannot be reached yet.

use std::fmt::Display;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio::time::Instant;

/// Delay before the first retry.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Longest delay: what a recovery costs at most beyond the other side's own.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// What is waited for is said no more often than this.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Tries until it works or the error is one that `hopeless` calls final. Says what it waits for.
pub(super) async fn patiently<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    attempt: impl FnMut() -> F,
    hopeless: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let backoff = ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_jitter()
        .without_max_times();
    let mut hush = Hush::default();
    attempt
        .retry(backoff)
        .when(|error| !hopeless(error))
        .notify(|error, _| {
            if hush.may_say() {
                tracing::warn!(%error, "waiting: {what}");
            }
        })
        .await
}

/// Lets something be said once in a while.
#[derive(Debug, Default)]
pub(super) struct Hush(Option<Instant>);

// === impl Hush ===

impl Hush {
    /// Whether enough time has passed since it was last said.
    pub(super) fn may_say(&mut self) -> bool {
        let now = Instant::now();
        let may = self.0.is_none_or(|last| now.duration_since(last) >= SAY_EVERY);
        if may {
            self.0 = Some(now);
        }
        may
    }
}
