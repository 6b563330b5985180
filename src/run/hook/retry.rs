//! Trying again until a deadline.

use std::error::Error;
use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use crate::domain::backoff::Backoff;

/// An agent or API server that restarts takes about a second. An instance waits for its hook, so
/// the longest delay is shorter than a daemon's.
const BACKOFF: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));

/// Time that the last try gets at least: an answer takes milliseconds.
const LAST_TRY: Duration = Duration::from_millis(100);

/// How it ended without success.
#[derive(Debug)]
pub enum Unsettled<E> {
    /// By an error that trying again does not fix.
    Failed(E),
    /// By the deadline, after these tries; the last error, if one came.
    TimedOut {
        /// How many tries were begun.
        tries: u32,
        /// Why the last that ended failed.
        last: Option<E>,
    },
}

/// Calls `attempt` until it succeeds, fails for good, or the deadline passes.
pub(super) async fn retry<T, E: fmt::Display, F: Future<Output = Result<T, E>>>(
    deadline: Instant,
    mut attempt: impl FnMut() -> F,
    is_transient: impl Fn(&E) -> bool,
) -> Result<T, Unsettled<E>> {
    let mut delays = BACKOFF.delays(RandomState::new().hash_one(()));
    let mut tries = 0;
    let mut last = None;
    loop {
        tries += 1;
        match timeout_at(deadline, attempt()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) if !is_transient(&error) => return Err(Unsettled::Failed(error)),
            Ok(Err(error)) => {
                tracing::debug!(%error, tries, "trying again");
                last = Some(error);
            }
            Err(_) => return Err(Unsettled::TimedOut { tries, last }),
        }
        // The last try begins just before the deadline, however long the delay would be.
        let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(LAST_TRY);
        if left.is_zero() {
            return Err(Unsettled::TimedOut { tries, last });
        }
        sleep(delays.advance().min(left)).await;
    }
}

// === impl Unsettled ===

impl<E> Unsettled<E> {
    /// The error that it ended by, if one came.
    pub fn error(&self) -> Option<&E> {
        match self {
            Self::Failed(error) => Some(error),
            Self::TimedOut { last, .. } => last.as_ref(),
        }
    }
}

impl<E: fmt::Display> fmt::Display for Unsettled<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::TimedOut { tries, last: Some(error) } => {
                write!(f, "given up at the deadline after {tries} tries, the last: {error}")
            }
            Self::TimedOut { last: None, .. } => {
                write!(f, "expected an answer by the deadline, found none")
            }
        }
    }
}

impl<E: Error + 'static> Error for Unsettled<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        // The error itself is in the Display: what comes next is its source.
        self.error().and_then(Error::source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn run(
        seconds: u64,
        answers: &[Result<u8, &'static str>],
    ) -> Result<u8, Unsettled<&'static str>> {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        let mut answers = answers.iter().copied();
        let attempt = || {
            let answer = answers.next();
            async move {
                match answer {
                    Some(answer) => answer,
                    None => std::future::pending().await,
                }
            }
        };
        retry(deadline, attempt, |error| *error != "final").await
    }

    #[tokio::test(start_paused = true)]
    async fn transient_failures_are_tried_again_until_the_deadline() {
        assert_eq!(run(10, &[Err("a"), Err("b"), Ok(7)]).await.unwrap(), 7);
        let failed = run(10, &[Err("a"), Err("final"), Ok(7)]).await.unwrap_err();
        assert!(matches!(failed, Unsettled::Failed("final")), "{failed:?}");
        let hung = run(10, &[Err("a"), Err("b")]).await.unwrap_err();
        assert!(matches!(hung, Unsettled::TimedOut { tries: 3, last: Some("b") }), "{hung:?}");
        assert!(matches!(run(10, &[]).await, Err(Unsettled::TimedOut { last: None, .. })));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds_and_delays_are_bounded() {
        let start = Instant::now();
        let result = run(30, &[Err("a"); 1000]).await.unwrap_err();
        assert!(start.elapsed() <= Duration::from_secs(30), "{:?}", start.elapsed());
        let Unsettled::TimedOut { tries, .. } = result else { panic!("{result:?}") };
        // 0.75 to 1 s a try, after the first few, and one just before the deadline.
        assert!(start.elapsed() + 2 * LAST_TRY >= Duration::from_secs(30), "{:?}", start.elapsed());
        assert!((30..=48).contains(&tries), "{tries}");
    }
}
