//! The state of a sidecar: what it asks the daemon for next, and whether its pod may be ready.
//!
//! The loop gives it every event (`handle_*`), then takes what is to be done: [`Machine::ended`],
//! [`Machine::poll_call`], [`Machine::next_timeout`]. A call that [`Machine::handle_deregister`] or
//! [`Machine::handle_stop`] has overtaken is dropped by the loop, and its answer given to nobody.

use std::time::Duration;

use crate::domain::Moment;
use crate::domain::sidecar::{Retry, SyncError, SyncKind};

/// How long the deregistration is tried of a pod that was never seen registered: the daemon may have
/// taken the last call, and what it did is undone within this by one that works.
const UNSEEN: Duration = Duration::from_secs(5);

/// The state of one sidecar.
#[derive(Debug)]
pub struct Machine {
    phase: Phase,
    wait: Wait,
    /// Calls since the phase began.
    attempt: u32,
    /// Whether the daemon may have taken a call.
    is_heard: bool,
    stop: Stop,
    /// Between two calls.
    longest: Duration,
    /// After which it registers again where no signal came.
    again: Option<Duration>,
    seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Registering,
    Registered,
    Deregistering,
    /// Until it registers again, if it does.
    Deregistered(Option<Moment>),
}

/// Whether the process is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    No,
    OnceDeregistered,
    /// At this time at the latest.
    By(Moment),
}

/// What the next call waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    Until(Moment),
    InFlight,
}

// === impl Machine ===

impl Machine {
    /// One that registers at once. `longest`: between two calls. `again`: how long after a
    /// deregistration that no signal follows it registers again; none: never. `seed`: tells its
    /// delays from others'.
    pub fn new(longest: Duration, again: Option<Duration>, seed: u64) -> Self {
        Self {
            phase: Phase::Registering,
            wait: Wait::Until(Moment::ZERO),
            attempt: 0,
            is_heard: false,
            stop: Stop::No,
            longest,
            again,
            seed,
        }
    }

    /// Whether the pod may be ready: it is in the catalog and nobody wants it out.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Registered
    }

    /// Whether it has been taken out.
    pub fn is_deregistered(&self) -> bool {
        matches!(self.phase, Phase::Deregistered(_))
    }

    /// The daemon's answer to the call under way.
    pub fn handle_answer(&mut self, now: Moment, answer: &Result<(), SyncError>) {
        self.is_heard |= !matches!(answer, Err(SyncError::Unavailable(_)));
        let (kind, next) = match self.phase {
            Phase::Registering => (SyncKind::Register, Phase::Registered),
            Phase::Deregistering => (SyncKind::Deregister, self.deregistered(now)),
            Phase::Registered | Phase::Deregistered(_) => return,
        };
        let retry = match answer {
            Ok(()) => Retry::Done,
            Err(error) => error.retry(kind, self.longest),
        };
        match retry {
            Retry::Done => self.enter(next, now),
            Retry::After(backoff) => {
                self.wait = Wait::Until(now + backoff.delay(self.attempt, &self.seed));
                self.attempt += 1;
            }
        }
    }

    /// The application is about to end.
    pub fn handle_deregister(&mut self, now: Moment) {
        match self.phase {
            Phase::Registering | Phase::Registered => self.enter(Phase::Deregistering, now),
            Phase::Deregistering => {}
            Phase::Deregistered(_) => self.phase = self.deregistered(now),
        }
    }

    /// The process is to end.
    pub fn handle_stop(&mut self, now: Moment) {
        self.stop = Stop::OnceDeregistered;
        match self.phase {
            Phase::Registering if self.is_heard || self.wait == Wait::InFlight => {
                self.stop = Stop::By(now + UNSEEN);
                self.enter(Phase::Deregistering, now);
            }
            // Nobody knows of it.
            Phase::Registering => self.enter(Phase::Deregistered(None), now),
            Phase::Registered => self.enter(Phase::Deregistering, now),
            Phase::Deregistering | Phase::Deregistered(_) => {}
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        if let Phase::Deregistered(Some(again)) = self.phase
            && again <= now
        {
            self.enter(Phase::Registering, now);
        }
    }

    /// The call to make now, which is under way from then on.
    pub fn poll_call(&mut self, now: Moment) -> Option<SyncKind> {
        let kind = match self.phase {
            Phase::Registering => SyncKind::Register,
            Phase::Deregistering => SyncKind::Deregister,
            Phase::Registered | Phase::Deregistered(_) => return None,
        };
        match self.wait {
            Wait::Until(due) if due <= now => {
                self.wait = Wait::InFlight;
                Some(kind)
            }
            Wait::Until(_) | Wait::InFlight => None,
        }
    }

    /// Whether the process may end.
    pub fn ended(&self, now: Moment) -> bool {
        match self.stop {
            Stop::No => false,
            Stop::OnceDeregistered => self.is_deregistered(),
            Stop::By(latest) => self.is_deregistered() || latest <= now,
        }
    }

    /// When to look again, without an event.
    pub fn next_timeout(&self) -> Option<Moment> {
        let own = match (self.phase, self.wait) {
            (Phase::Registering | Phase::Deregistering, Wait::Until(due)) => Some(due),
            (Phase::Deregistered(again), _) => again,
            _ => None,
        };
        match self.stop {
            Stop::By(latest) => Some(own.map_or(latest, |own| own.min(latest))),
            Stop::No | Stop::OnceDeregistered => own,
        }
    }

    fn deregistered(&self, now: Moment) -> Phase {
        Phase::Deregistered(self.again.map(|again| now + again))
    }

    fn enter(&mut self, phase: Phase, now: Moment) {
        self.phase = phase;
        self.attempt = 0;
        self.wait = Wait::Until(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const AGAIN: Duration = Duration::from_mins(2);

    fn machine() -> Machine {
        Machine::new(SECOND, Some(AGAIN), 7)
    }

    fn unavailable() -> Result<(), SyncError> {
        Err(SyncError::Unavailable("refused".to_owned()))
    }

    fn not_ready() -> Result<(), SyncError> {
        Err(SyncError::NotReady("web".to_owned()))
    }

    fn registered() -> Machine {
        let mut machine = machine();
        assert_eq!(machine.poll_call(Moment::ZERO), Some(SyncKind::Register));
        machine.handle_answer(Moment::ZERO, &Ok(()));
        assert!(machine.is_ready());
        machine
    }

    /// Lets time pass until the next call, at most this long.
    fn next_call(machine: &mut Machine, now: &mut Moment, limit: Duration) -> SyncKind {
        let until = *now + limit;
        loop {
            if let Some(kind) = machine.poll_call(*now) {
                return kind;
            }
            let next = machine.next_timeout().expect("it waits for something");
            assert!(next <= until, "nothing until {next:?}");
            *now = (*now).max(next);
            machine.handle_timeout(*now);
        }
    }

    #[test]
    fn it_asks_until_the_daemon_has_registered_it() {
        let (mut machine, mut now) = (machine(), Moment::ZERO);
        for answer in [unavailable(), unavailable(), not_ready(), not_ready(), Ok(())] {
            assert!(!machine.is_ready());
            assert_eq!(next_call(&mut machine, &mut now, SECOND), SyncKind::Register);
            assert_eq!(machine.poll_call(now), None, "one call at a time");
            machine.handle_answer(now, &answer);
        }
        assert!(machine.is_ready());
        assert_eq!((machine.poll_call(now), machine.next_timeout()), (None, None));
    }

    #[test]
    fn a_daemon_that_is_away_for_20_s_is_asked_each_second_and_no_more() {
        let (mut machine, mut now, mut calls) = (machine(), Moment::ZERO, 0);
        while now < 20 * SECOND {
            next_call(&mut machine, &mut now, SECOND);
            machine.handle_answer(now, &unavailable());
            calls += 1;
        }
        assert!((20..35).contains(&calls), "{calls}");
    }

    #[test]
    fn a_signal_deregisters_it_first() {
        let (mut machine, mut now) = (registered(), SECOND);
        machine.handle_stop(now);
        assert!(!machine.is_ready() && !machine.ended(now));
        // As long as it takes: the pod's grace period ends it.
        for _ in 0..100 {
            assert_eq!(next_call(&mut machine, &mut now, SECOND), SyncKind::Deregister);
            machine.handle_answer(now, &unavailable());
        }
        assert!(!machine.ended(now));
        next_call(&mut machine, &mut now, SECOND);
        machine.handle_answer(now, &Ok(()));
        assert!(machine.ended(now));
    }

    #[test]
    fn p1_a_signal_after_it_was_deregistered_ends_it_at_once() {
        let (mut machine, now) = (registered(), SECOND);
        machine.handle_deregister(now);
        assert!(!machine.is_ready());
        assert_eq!(machine.poll_call(now), Some(SyncKind::Deregister));
        // A second one asks for nothing else.
        machine.handle_deregister(now);
        assert_eq!(machine.poll_call(now), None);
        machine.handle_answer(now, &Ok(()));
        assert!(machine.is_deregistered() && !machine.ended(now));
        machine.handle_stop(now);
        assert!(machine.ended(now));
    }

    /// A liveness probe restarts an application in its pod: its preStop is called and no signal comes.
    #[test]
    fn p6_without_a_signal_it_registers_again() {
        let (mut machine, mut now) = (registered(), SECOND);
        machine.handle_deregister(now);
        machine.poll_call(now);
        machine.handle_answer(now, &Ok(()));
        now += AGAIN / 2;
        machine.handle_timeout(now);
        assert!(machine.is_deregistered());
        // It was asked once more.
        machine.handle_deregister(now);
        now += AGAIN * 3 / 4;
        machine.handle_timeout(now);
        assert!(machine.is_deregistered());
        assert_eq!(next_call(&mut machine, &mut now, AGAIN), SyncKind::Register);
        let mut never = Machine::new(SECOND, None, 7);
        never.handle_deregister(now);
        never.poll_call(now);
        never.handle_answer(now, &Ok(()));
        assert_eq!(never.next_timeout(), None);
    }

    #[test]
    fn one_that_nobody_knows_of_ends_at_once() {
        let mut alone = machine();
        alone.poll_call(Moment::ZERO);
        alone.handle_answer(Moment::ZERO, &unavailable());
        alone.handle_stop(Moment::ZERO);
        assert!(alone.ended(Moment::ZERO));
    }

    #[test]
    fn one_that_the_daemon_may_know_of_is_deregistered_for_five_seconds() {
        for answer in [None, Some(not_ready())] {
            let (mut machine, mut now) = (machine(), Moment::ZERO);
            machine.poll_call(now);
            if let Some(answer) = answer {
                machine.handle_answer(now, &answer);
            }
            machine.handle_stop(now);
            while !machine.ended(now) {
                if machine.poll_call(now).is_some() {
                    machine.handle_answer(now, &unavailable());
                }
                now = machine.next_timeout().unwrap();
            }
            assert_eq!(now, UNSEEN);
        }
    }
}
