//! Waiting for a side that cannot be reached yet.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio::sync::watch;
use tokio::time::Instant;

/// Delay before the first retry.
const FIRST_DELAY: Duration = Duration::from_millis(200);
/// Longest delay: what a recovery costs at most beyond the other side's own.
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// What is waited for is said no more often than this.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Whom something is waited for from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Side {
    Kubernetes,
    Consul,
}

/// What is waited for now, each with its newest failure.
#[derive(Clone, Debug, Default)]
pub(super) struct Waits(watch::Sender<BTreeMap<(Side, &'static str), String>>);

// === impl Waits ===

impl Waits {
    /// Wakes up whenever a wait begins, fails in another way or ends.
    pub(super) fn subscribe(&self) -> watch::Receiver<BTreeMap<(Side, &'static str), String>> {
        self.0.subscribe()
    }

    /// What is waited for from this side, and why: the first of several.
    pub(super) fn on(&self, side: Side) -> Option<String> {
        let waits = self.0.borrow();
        waits
            .iter()
            .find(|((of, _), _)| *of == side)
            .map(|((_, what), why)| format!("{what}: {why}"))
    }

    fn failed(&self, side: Side, what: &'static str, why: String) {
        self.0.send_if_modified(|waits| waits.insert((side, what), why.clone()) != Some(why));
    }

    fn over(&self, side: Side, what: &'static str) {
        self.0.send_if_modified(|waits| waits.remove(&(side, what)).is_some());
    }
}

/// Tries until it works or the error is one that `hopeless` calls final. Says what it waits for,
/// and notes it in `waits`.
pub(super) async fn patiently<T, E: Display, F: Future<Output = Result<T, E>>>(
    waits: &Waits,
    side: Side,
    what: &'static str,
    attempt: impl FnMut() -> F,
    hopeless: impl Fn(&E) -> bool,
) -> Result<T, E> {
    let backoff = ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(LONGEST_DELAY)
        .with_jitter()
        .without_max_times();
    let mut hush = Hush::default();
    let result = attempt
        .retry(backoff)
        .when(|error| !hopeless(error))
        .notify(|error, _| {
            waits.failed(side, what, error.to_string());
            if hush.may_say() {
                tracing::warn!(%error, "waiting: {what}");
            }
        })
        .await;
    waits.over(side, what);
    result
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
