//! Waiting for a side that cannot be reached yet.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::domain::backoff::Backoff;
use crate::domain::text::chain;

/// From what a restart on the same machine takes at least to what a recovery may cost beyond the
/// other side's own.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// What is waited for is said no more often than this.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// What is waited for, each with the newest failure.
#[derive(Clone, Debug, Default)]
pub(in crate::run) struct PendingDependencies(watch::Sender<BTreeMap<&'static str, String>>);

/// Tries until it works, as long as it takes. Says what it waits for, in the log and in `waits`.
pub(in crate::run) async fn retry_forever<
    T,
    E: StdError + 'static,
    F: Future<Output = Result<T, E>>,
>(
    what: &'static str,
    waits: &PendingDependencies,
    mut attempt: impl FnMut() -> F,
) -> T {
    let mut delays = BACKOFF.delays(RandomState::new().hash_one(()));
    let mut throttle = LogThrottle::default();
    loop {
        match attempt().await {
            Ok(found) => {
                waits.over(what);
                return found;
            }
            Err(error) => {
                let why = chain(&error);
                if throttle.should_log() {
                    tracing::warn!(error = why, "waiting: {what}");
                }
                waits.failed(what, why);
            }
        }
        sleep(delays.advance()).await;
    }
}

// === impl Waits ===

impl PendingDependencies {
    /// Wakes up whenever a wait fails or ends.
    pub(in crate::run) fn subscribe(&self) -> watch::Receiver<BTreeMap<&'static str, String>> {
        self.0.subscribe()
    }

    fn failed(&self, what: &'static str, why: String) {
        self.0.send_modify(|waits| drop(waits.insert(what, why)));
    }

    fn over(&self, what: &'static str) {
        self.0.send_modify(|waits| drop(waits.remove(what)));
    }

    /// All that is waited for and why; none: nothing has failed yet.
    pub(in crate::run) fn reason(&self) -> Option<String> {
        let waits = self.0.borrow();
        let reasons: Vec<String> =
            waits.iter().map(|(what, why)| format!("waiting {what}: {why}")).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }
}

/// Lets something be said once in a while.
#[derive(Debug, Default)]
pub(in crate::run) struct LogThrottle(Option<Instant>);

// === impl LogThrottle ===

impl LogThrottle {
    /// Whether enough time has passed since it was last said.
    pub(in crate::run) fn should_log(&mut self) -> bool {
        let now = Instant::now();
        let may = self.0.is_none_or(|last| now.duration_since(last) >= SAY_EVERY);
        if may {
            self.0 = Some(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;
    use std::pin::pin;

    use futures::FutureExt as _;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("nobody there")]
    struct Away(#[source] io::Error);

    #[tokio::test(start_paused = true)]
    async fn it_tries_until_it_works_and_says_why_it_waits() {
        let (waits, failures) = (PendingDependencies::default(), Cell::new(0));
        let attempt = || async {
            if failures.get() == 10 {
                return Ok("there");
            }
            failures.set(failures.get() + 1);
            Err(Away(io::Error::other("refused")))
        };
        let mut wait = pin!(retry_forever("for it", &waits, attempt));
        assert!(wait.as_mut().now_or_never().is_none());
        assert_eq!(waits.reason().as_deref(), Some("waiting for it: nobody there: refused"));
        let began = Instant::now();
        assert_eq!(wait.await, "there");
        assert!(began.elapsed() < 10 * BACKOFF.longest, "{:?}", began.elapsed());
        assert_eq!((failures.get(), waits.reason()), (10, None));
    }
}
