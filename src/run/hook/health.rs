//! The pod's probe and what its checks ask, tried before registering.

use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

use crate::domain::hook::Target;
use crate::domain::hook::k8s::Decision;
use crate::domain::hook::k8s::probes::Attempt;
use crate::domain::kube::names::ObjectKey;
use crate::probe::{Failed, Prober};
use crate::run::hook::error::Error;

/// Longest time between two tries of what a check asks: what the wait costs at most beyond the
/// application's own time. One request a second is what a probe may do as well.
const CHECK_PERIOD: Duration = Duration::from_secs(1);

/// How long a pod's health is waited for.
#[derive(Clone, Copy, Debug)]
pub struct HealthOptions {
    /// How long its startup or readiness probe is tried, from its initial delay on.
    pub health_check_timeout: Duration,
    /// How long what a check asks is tried, where that is something else, and how long the agent's
    /// first run of a check is waited for that cannot be tried from here; zero: not at all.
    pub wait_check: Duration,
}

/// What became of tries until a deadline.
#[derive(Debug)]
enum Outcome {
    Healthy,
    /// There was an answer, but none of success.
    Answered(Failed),
    /// There was none; what the last try failed with.
    Unreachable(Option<Failed>),
}

// === impl HealthOptions ===

impl HealthOptions {
    /// Waits until the probe succeeds, then, for a while, until what the checks ask does; notes
    /// in the decision which of them begin as passing.
    pub(super) async fn wait(&self, pod: &ObjectKey, decision: &mut Decision) -> Result<(), Error> {
        let prober = Prober::new().map_err(Error::ProbeConfiguration)?;
        let tried = match decision.probe.take() {
            Some(probe) => self.probe(&prober, pod, probe, decision).await?,
            None => None,
        };
        if self.wait_check.is_zero() {
            return Ok(());
        }
        let deadline = Instant::now() + self.wait_check;
        for (target, period) in decision.targets_to_try(tried.as_ref()) {
            let period = period.min(CHECK_PERIOD);
            match attempt(&prober, &target, Instant::now(), period, deadline).await {
                Outcome::Healthy => decision.mark_passing(&target),
                Outcome::Answered(failed) | Outcome::Unreachable(Some(failed)) => tracing::warn!(
                    %pod, %failed,
                    "what the check asks does not succeed: the instance is registered as critical \
                     (--wait-check waits longer)"
                ),
                Outcome::Unreachable(None) => {}
            }
        }
        Ok(())
    }

    /// Waits for the probe; gives what was asked.
    async fn probe(
        &self,
        prober: &Prober,
        pod: &ObjectKey,
        probe: Attempt,
        decision: &mut Decision,
    ) -> Result<Option<Target>, Error> {
        let first = Instant::now() + probe.initial_delay;
        let Some(target) = probe.target else {
            sleep_until(first).await;
            return Ok(None);
        };
        let timeout = self.health_check_timeout;
        match attempt(prober, &target, first, probe.period, first + timeout).await {
            Outcome::Healthy => decision.mark_passing(&target),
            // It lives, and may warm up slowly: that must not kill it.
            Outcome::Answered(failed) => tracing::warn!(
                %pod, %failed,
                "the probe did not succeed within {timeout:?}: the instance is registered as \
                 critical"
            ),
            Outcome::Unreachable(last) => {
                let last = last.map_or_else(|| "no answer".to_owned(), |last| last.to_string());
                return Err(Error::Unhealthy { timeout, last });
            }
        }
        Ok(Some(target))
    }
}

/// Tries each period, from `first` on, until it succeeds or the deadline passes.
async fn attempt(
    prober: &Prober,
    target: &Target,
    first: Instant,
    period: Duration,
    deadline: Instant,
) -> Outcome {
    let mut next = first;
    let mut answered = None;
    let mut last = None;
    while next <= deadline {
        sleep_until(next).await;
        match timeout_at(deadline, prober.attempt(target)).await {
            Ok(Ok(())) => return Outcome::Healthy,
            Ok(Err(failed)) => {
                tracing::debug!(%failed, "tried again in {period:?}");
                if matches!(failed, Failed::Status(_)) {
                    answered = Some(failed);
                } else {
                    last = Some(failed);
                }
            }
            Err(_) => break,
        }
        next = (next + period).max(Instant::now());
    }
    sleep_until(deadline).await;
    answered.map_or(Outcome::Unreachable(last), Outcome::Answered)
}
