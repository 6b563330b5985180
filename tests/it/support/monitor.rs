//! Looking again and again at what must never be.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Between the beginnings of two looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// As many violations as are worth reading.
const MAX_VIOLATIONS: usize = 20;
/// Who has had fewer answers has hardly seen anything.
const MIN_LOOKS: usize = 20;

/// Looks every 10 ms at what must never be.
pub struct InvariantMonitor {
    task: JoinHandle<Seen>,
    stop: oneshot::Sender<()>,
}

#[derive(Debug, Default)]
struct Seen {
    looks: usize,
    longest: Duration,
    /// Looks that were not answered.
    blind: usize,
    why: Option<String>,
    violations: Vec<String>,
}

// === impl InvariantMonitor ===

impl InvariantMonitor {
    /// `look` gives what is wrong; an error means that it could not be seen.
    pub fn start<F>(mut look: impl FnMut() -> F + Send + 'static) -> Self
    where
        F: Future<Output = Result<Vec<String>>> + Send,
    {
        let (stop, mut stopped) = oneshot::channel();
        let task = tokio::spawn(async move {
            let mut seen = Seen::default();
            loop {
                let began = Instant::now();
                // The last look comes after the end was asked for, and enough of them before it:
                // what is watched may take less time than they do.
                let last = stopped.try_recv() != Err(oneshot::error::TryRecvError::Empty);
                match look().await {
                    Ok(violations) => {
                        seen.looks += 1;
                        seen.violations.extend(violations);
                        seen.violations.truncate(MAX_VIOLATIONS);
                    }
                    Err(error) => {
                        seen.blind += 1;
                        seen.why = Some(format!("{error:#}"));
                    }
                }
                seen.longest = seen.longest.max(began.elapsed());
                if last && seen.looks.max(seen.blind) >= MIN_LOOKS {
                    return seen;
                }
                sleep(LOOK_EVERY.saturating_sub(began.elapsed())).await;
            }
        });
        Self { task, stop }
    }

    /// Ends it; an error if anything was wrong, or if a look had no answer.
    pub async fn finish(self, what: &str) -> Result<()> {
        let seen = self.end(what).await?;
        ensure!(seen.blind == 0, "{what}: not always answered: {seen:?}");
        Ok(())
    }

    /// The same where what is looked at may be away for a while, as long as it has answered often enough.
    pub async fn finish_with_gaps(self, what: &str) -> Result<()> {
        let seen = self.end(what).await?;
        ensure!(seen.looks >= MIN_LOOKS, "{what}: it has hardly seen anything: {seen:?}");
        Ok(())
    }

    async fn end(self, what: &str) -> Result<Seen> {
        drop(self.stop);
        let seen = self.task.await?;
        let Seen { looks, longest, blind, .. } = &seen;
        println!("{what}: {looks} looks, {blind} without an answer, the longest took {longest:?}");
        ensure!(seen.violations.is_empty(), "{what}: {seen:#?}");
        Ok(seen)
    }
}
