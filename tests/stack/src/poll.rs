//! Waiting for a state by looking at it until it is there.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

use crate::folder;

/// Short against anything that is waited for here (tens of milliseconds and
/// more), long enough to leave two cores to the programs that are waited for.
const INTERVAL: Duration = Duration::from_millis(20);

/// Calls `probe` until it succeeds, every 20 ms, and gives its value. The error
/// after the deadline has the last failure: why it is still not as it should be.
pub async fn eventually<T, E, F, P>(deadline: Duration, mut probe: P) -> Result<T>
where
    E: Display,
    F: Future<Output = Result<T, E>>,
    P: FnMut() -> F,
{
    let end = Instant::now() + deadline;
    let mut last = None;
    loop {
        match timeout_at(end, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => last = Some(format!("{failure:#}")),
            Err(_) if last.is_none() => last = Some("the probe itself did not answer".to_owned()),
            Err(_) => {}
        }
        if Instant::now() + INTERVAL >= end {
            bail!(
                "not so after {deadline:?}, last: {}{}",
                last.unwrap_or_default(),
                folder::logs_hint()
            );
        }
        sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn gives_the_first_success() {
        let mut calls = 0;
        let value = eventually(Duration::from_secs(1), || {
            calls += 1;
            let call = calls;
            async move { if call == 3 { Ok(call) } else { Err("not yet") } }
        })
        .await;
        assert_eq!(value.unwrap(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn names_the_last_failure() {
        let outcome: Result<()> =
            eventually(Duration::from_secs(1), || async { Err("two instances, want three") }).await;
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("two instances, want three"), "{message}");
    }

    #[tokio::test(start_paused = true)]
    async fn ends_when_the_probe_hangs() {
        let outcome: Result<()> =
            eventually(Duration::from_secs(1), std::future::pending::<Result<(), String>>).await;
        let message = outcome.unwrap_err().to_string();
        assert!(message.contains("did not answer"), "{message}");
    }
}
