//! One registration: what the agent has of it, what is wanted, and what is to be done next.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::exchange::Answer;
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
#[expect(clippy::struct_excessive_bools, reason = "each is known or not by itself")]
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
    /// Whether something else may have the ID of its check: Consul would run both.
    pub(super) is_replaced: bool,
    /// Whether a request is under way.
    pub(super) in_flight: bool,
    /// Number of the last write that was sent or answered.
    pub(super) written: u64,
    /// Since when something is to be written of it because its pod changed.
    pub(super) changed: Option<Moment>,
    /// What became of registering and removing it.
    pub(super) whole: Tries,
    /// What became of telling its check, which goes on while a registration is refused.
    pub(super) beats: Tries,
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

/// The tries of one kind of write.
#[derive(Clone, Debug, Default)]
pub(super) struct Tries {
    /// How often in a row it failed.
    attempt: u32,
    /// After a failure.
    pub(super) pause: Option<Pause>,
}

/// Why a record waits, and until when.
#[derive(Clone, Debug)]
pub(super) struct Pause {
    until: Moment,
    /// Only this content waits.
    content: Option<Registration>,
    /// What people see of it.
    pub(super) problem: Option<Problem>,
    /// Whether it ends as soon as the agent answers.
    pub(super) passes: bool,
}

/// What becomes of a record that is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    /// It is removed.
    Due,
    /// Nothing proves that it may be: it stays as it is, and its check does not run out.
    Kept,
    /// It stays, and is critical.
    Critical,
}

/// What is to be done for a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing before that moment, if ever.
    Wait(Option<Moment>),
    Register,
    RemoveCheck,
    Update(State),
    Deregister,
    /// Register or deregister it as soon as that is possible.
    Crowded,
    /// The agent does not have it, and it is not wanted.
    Forget,
}

// === impl Tries ===

impl Tries {
    /// Until when such a write of this content has to wait, if it has to.
    fn until(&self, content: Option<&Registration>, now: Moment) -> Option<Moment> {
        let pause = self.pause.as_ref().filter(|pause| pause.until > now)?;
        let is_this = match (&pause.content, content) {
            (Some(refused), Some(content)) => refused == content,
            (Some(_), None) => false,
            (None, _) => true,
        };
        is_this.then_some(pause.until)
    }
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
            is_replaced: false,
            in_flight: false,
            written: 0,
            changed: None,
            whole: Tries::default(),
            beats: Tries::default(),
            due: None,
            beat: Moment::ZERO,
        }
    }

    /// What is to be done now, if it is not wanted by `removal`. `crowded`: nothing is registered or
    /// removed.
    pub(super) fn step(&self, removal: Removal, crowded: bool, now: Moment) -> Step {
        if self.in_flight {
            return Step::Wait(None);
        }
        let Some((registration, state)) = &self.wanted else {
            return self.removal(removal, crowded, now);
        };
        let registered = self.known.as_ref().filter(|it| registration.equals(&it.registration));
        if registered.is_some() {
            return self.beat(state, now);
        }
        let wait = match self.whole.until(Some(registration), now) {
            None if crowded => Step::Crowded,
            None if self.is_replaced => return Step::RemoveCheck,
            None => return Step::Register,
            Some(until) => Step::Wait(Some(until)),
        };
        // Until it can be registered, the check of what the agent has says what it can.
        match (self.known.as_ref().map(|_| self.beat(state, now)), wait) {
            (Some(Step::Wait(Some(beat))), Step::Wait(Some(until))) => {
                Step::Wait(Some(beat.min(until)))
            }
            (Some(beat @ Step::Update(_)), _) => beat,
            (_, wait) => wait,
        }
    }

    /// What its check needs.
    fn beat(&self, state: &State, now: Moment) -> Step {
        let check = self.known.as_ref().and_then(|known| known.check.as_ref());
        let is_so = check.is_some_and(|(status, output)| {
            *status == state.status && output.as_ref().is_none_or(|output| *output == state.output)
        });
        if is_so && !self.is_beat_due(state.status, now) {
            return Step::Wait(self.next_beat(state.status));
        }
        match self.beats.until(None, now) {
            Some(until) => Step::Wait(Some(until)),
            None => Step::Update(state.clone()),
        }
    }

    /// The agent did it.
    pub(super) fn succeeded(&mut self, whole: bool) {
        *self.tries(whole) = Tries::default();
    }

    /// The agent did not do it. `whole`: it was more than the check's state.
    pub(super) fn failed(&mut self, id: &str, whole: bool, answer: &Answer, now: Moment) {
        let content = self.wanted.as_ref().map(|(registration, _)| registration.clone());
        let tries = self.tries(whole);
        let attempt = tries.attempt;
        tries.attempt = attempt.saturating_add(1);
        let pause = |backoff: Backoff, content, problem| Pause {
            until: now + backoff.delay(attempt, &id),
            content,
            problem,
            passes: matches!(answer, Answer::Unanswered(_)),
        };
        tries.pause = Some(match answer {
            Answer::Refused(why) => {
                let problem = Problem::new(Reason::Refused, format!("Consul refuses {id}: {why}"));
                pause(REFUSED_RETRY, content, Some(problem))
            }
            Answer::Denied(why) => {
                let problem = Problem::new(Reason::Denied, format!("{id}: {why}"));
                pause(DENIED_RETRY, None, Some(problem))
            }
            _ => pause(RETRY, None, None),
        });
        if matches!(answer, Answer::Failed(_) | Answer::Unanswered(_)) {
            // Whether it was done is not known.
            self.is_uncertain = true;
            if let Some(known) = self.known.as_mut().filter(|_| whole) {
                known.check = None;
            }
        }
    }

    /// The agent has no check of it: it is registered again, at once but for one that is lost again and
    /// again, as where several agents answer in turn.
    pub(super) fn lost(&mut self, id: &str, now: Moment) {
        self.known = None;
        self.is_uncertain = true;
        self.is_replaced = true;
        let again = self.beats.attempt.checked_sub(1);
        self.beats.attempt = self.beats.attempt.saturating_add(1);
        self.whole.pause = again.map(|attempt| Pause {
            until: now + RETRY.delay(attempt, &id),
            content: None,
            problem: None,
            passes: false,
        });
    }

    fn tries(&mut self, whole: bool) -> &mut Tries {
        if whole { &mut self.whole } else { &mut self.beats }
    }

    /// Somebody answers again: what waited for that waits no longer. Whether it did.
    pub(super) fn answered(&mut self) -> bool {
        let mut waited = false;
        for tries in [&mut self.whole, &mut self.beats] {
            waited |= tries.pause.take_if(|pause| pause.passes).is_some();
        }
        waited
    }

    /// Whether a write of it failed and waits.
    pub(super) fn is_paused(&self, now: Moment) -> bool {
        let pauses = [&self.whole, &self.beats].into_iter().filter_map(|it| it.pause.as_ref());
        pauses.into_iter().any(|pause| pause.until > now)
    }

    /// What people see of its failures.
    pub(super) fn problems(&self) -> impl Iterator<Item = &Problem> {
        let pauses = [&self.whole, &self.beats].into_iter().filter_map(|it| it.pause.as_ref());
        pauses.filter_map(|pause| pause.problem.as_ref())
    }

    fn removal(&self, removal: Removal, crowded: bool, now: Moment) -> Step {
        let Some(known) = &self.known else { return Step::Forget };
        if removal == Removal::Due {
            return match self.whole.until(None, now) {
                Some(until) => Step::Wait(Some(until)),
                None if crowded => Step::Crowded,
                None => Step::Deregister,
            };
        }
        // While it is not sure that its pod is gone its check must not run out.
        let Some((status, output)) = &known.check else { return Step::Wait(None) };
        let status = if removal == Removal::Critical { CheckStatus::Critical } else { *status };
        self.beat(
            &State { status, is_fixed: false, output: output.clone().unwrap_or_else(|| "".into()) },
            now,
        )
    }

    /// A critical check stays so when its TTL runs out: it needs no heartbeat.
    fn is_beat_due(&self, status: CheckStatus, now: Moment) -> bool {
        status != CheckStatus::Critical && self.beat <= now
    }

    fn next_beat(&self, status: CheckStatus) -> Option<Moment> {
        (status != CheckStatus::Critical).then_some(self.beat)
    }

    /// Within which the check has to be told something: as is wanted, or as it was registered if that
    /// is less. Of what others registered it is not known, and then not longer than the default.
    pub(super) fn ttl(&self, default: Duration) -> Duration {
        let wanted = self.wanted.as_ref().and_then(|(registration, _)| registration.ttl);
        let known = self.known.as_ref().map(|known| known.registration.ttl.unwrap_or(default));
        wanted.into_iter().chain(known).min().unwrap_or(default)
    }

    /// The time between two heartbeats: half the TTL.
    pub(super) fn period(&self, default: Duration) -> Duration {
        self.ttl(default) / 2
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
