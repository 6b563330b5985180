//! One registration: what the agent has of it, what is wanted, and what is to be done next.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::core::Answer;
use crate::domain::node::wanted::{CheckStatus, Registration, State};
use crate::domain::problem::{Problem, Reason};

/// Between two tries of a write: a check of 11 s has been tried five times before it runs out.
const RETRY: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
/// When a right is missing: people grant it.
const DENIED_RETRY: Backoff = Backoff::new(Duration::from_secs(5), Duration::from_mins(1));
/// When content is refused.
const REFUSED_RETRY: Backoff = Backoff::new(Duration::from_mins(1), Duration::from_mins(30));

/// A registration with everything that is known of it.
#[derive(Debug)]
pub(super) struct Record {
    /// Whose it is.
    pub(super) pod: ObjectKey,
    /// What the agent has.
    pub(super) known: Option<Known>,
    /// What it ought to have; none: it is to be removed.
    pub(super) wanted: Option<(Registration, State)>,
    /// Whether it is to be removed because a list did not show its pod, rather than because the pod
    /// was seen to go.
    pub(super) is_missing: bool,
    /// Whether a write that may have been done got no answer: the agent may have a check of it.
    pub(super) is_uncertain: bool,
    /// Whether a request is under way.
    pub(super) in_flight: bool,
    /// Number of the last write that was sent or answered.
    pub(super) written: u64,
    /// How often in a row it failed.
    pub(super) attempt: u32,
    /// Not before this, after a failure; of a refusal, only this content.
    pub(super) pause: Option<Pause>,
    /// When the core looks at it.
    pub(super) due: Option<Moment>,
    /// When the check has to be refreshed next.
    pub(super) beat: Moment,
}

/// What the agent has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    /// The registration.
    pub(super) registration: Registration,
    /// Its check's status, and the output if it is known; none: not known.
    pub(super) check: Option<(CheckStatus, Option<Arc<str>>)>,
}

/// Why a record waits, and until when.
#[derive(Clone, Debug)]
pub(super) struct Pause {
    pub(super) until: Moment,
    /// Only this content waits.
    pub(super) content: Option<Registration>,
    /// What people see of it.
    pub(super) problem: Option<Problem>,
    /// Whether it ends as soon as the agent answers.
    pub(super) passes: bool,
}

/// What is to be done for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before that moment, if ever.
    Wait(Option<Moment>),
    Register,
    Update(State),
    Deregister,
    /// The agent does not have it, and it is not wanted.
    Forget,
}

// === impl Record ===

impl Record {
    pub(super) fn new(pod: ObjectKey) -> Self {
        Self {
            pod,
            known: None,
            wanted: None,
            is_missing: false,
            is_uncertain: false,
            in_flight: false,
            written: 0,
            attempt: 0,
            pause: None,
            due: None,
            beat: Moment::ZERO,
        }
    }

    /// What is to be done now. `held`: nothing is removed that a list did not show.
    pub(super) fn step(&self, held: bool, now: Moment) -> Step {
        if self.in_flight {
            return Step::Wait(None);
        }
        let Some((registration, state)) = &self.wanted else { return self.removal(held, now) };
        if let Some(pause) = &self.pause
            && pause.until > now
            && pause.content.as_ref().is_none_or(|content| content == registration)
        {
            return Step::Wait(Some(pause.until));
        }
        let Some(known) = &self.known else { return Step::Register };
        if !registration.equals(&known.registration) {
            return Step::Register;
        }
        let is_so = known.check.as_ref().is_some_and(|(status, output)| {
            *status == state.status && output.as_ref().is_none_or(|output| *output == state.output)
        });
        if !is_so || self.is_beat_due(state.status, now) {
            return Step::Update(state.clone());
        }
        Step::Wait(self.next_beat(state.status))
    }

    /// The agent did not do it. `whole`: it was more than the check's state.
    pub(super) fn failed(&mut self, id: &str, whole: bool, answer: Answer, now: Moment) {
        let attempt = self.attempt;
        self.attempt = attempt.saturating_add(1);
        let content = || self.wanted.as_ref().map(|(registration, _)| registration.clone());
        let pause = |backoff: Backoff, content, problem: Option<Problem>| {
            let (until, passes) = (now + backoff.delay(attempt, &id), problem.is_none());
            Some(Pause { until, content, problem, passes })
        };
        match answer {
            Answer::Refused(why) => {
                let problem = Problem::new(Reason::Refused, format!("Consul refuses {id}: {why}"));
                self.pause = pause(REFUSED_RETRY, content(), Some(problem));
            }
            Answer::Denied(why) => {
                let problem = Problem::new(Reason::Denied, format!("{id}: {why}"));
                self.pause = pause(DENIED_RETRY, None, Some(problem));
            }
            Answer::Done | Answer::UnknownCheck(_) | Answer::Failed(_) => {
                // Whether it was done is not known.
                self.pause = pause(RETRY, None, None);
                self.is_uncertain = true;
                if let Some(known) = self.known.as_mut().filter(|_| whole) {
                    known.check = None;
                }
            }
        }
    }

    fn removal(&self, held: bool, now: Moment) -> Step {
        let Some(known) = &self.known else { return Step::Forget };
        if let Some(pause) = self.pause.as_ref().filter(|pause| pause.until > now) {
            return Step::Wait(Some(pause.until));
        }
        if !(held && self.is_missing) {
            return Step::Deregister;
        }
        // While it is not sure that its pod is gone its check must not run out.
        match &known.check {
            Some((status, output)) if self.is_beat_due(*status, now) => Step::Update(State {
                status: *status,
                is_fixed: false,
                output: output.clone().unwrap_or_else(|| "".into()),
            }),
            Some((status, _)) => Step::Wait(self.next_beat(*status)),
            None => Step::Wait(None),
        }
    }

    /// A critical check stays so when its TTL runs out: it needs no heartbeat.
    fn is_beat_due(&self, status: CheckStatus, now: Moment) -> bool {
        status != CheckStatus::Critical && self.beat <= now
    }

    fn next_beat(&self, status: CheckStatus) -> Option<Moment> {
        (status != CheckStatus::Critical).then_some(self.beat)
    }

    /// The time between two heartbeats: half the TTL.
    pub(super) fn period(&self, default: Duration) -> Duration {
        let wanted = self.wanted.as_ref().and_then(|(registration, _)| registration.ttl);
        wanted.unwrap_or(default) / 2
    }

    /// The check was refreshed at `now`. Each record has its own phase within the period, so that the
    /// heartbeats of a node are spread over it however they began.
    pub(super) fn refreshed(&mut self, id: &str, default: Duration, now: Moment) {
        let period = self.period(default);
        let phase = period.mul_f64(fraction(id));
        let since = now.saturating_sub(phase).as_nanos() % period.as_nanos().max(1);
        let rest = period.as_nanos() - since;
        self.beat = now + Duration::from_nanos(u64::try_from(rest).unwrap_or(u64::MAX));
    }
}

/// A number from 0 up to 1, always the same for an ID.
pub(super) fn fraction(id: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    f64::from(u32::try_from(hasher.finish() % 4096).unwrap_or(0)) / 4096.0
}
