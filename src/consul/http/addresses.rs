//! Which of several addresses is asked, and whether the others lead to the same datacenter.
//!
//! The datacenter is that of the address which answered first, and an address of another one is passed
//! over: its records would be looked for here, and ours written there. Asking for it needs the right
//! `agent:read`; without that nothing is known, and the owner key, which is read again after each change
//! of address, is what is left. With `--datacenter` every server sends requests where they belong.

use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;

use crate::consul::http::error::Error;
use crate::consul::http::request::Request;
use crate::domain::text::chain;

/// What `/v1/agent/self` says that is of interest here.
#[derive(Deserialize)]
pub(super) struct AgentSelf {
    #[serde(rename = "Config")]
    config: AgentConfig,
}

#[derive(Deserialize)]
struct AgentConfig {
    #[serde(rename = "Datacenter")]
    datacenter: String,
}

/// Which address is asked. Addresses go by their place.
#[derive(Debug)]
pub(super) struct Addresses {
    /// Each for people.
    displays: Vec<String>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The one that is asked first.
    current: usize,
    /// The one that answered last.
    answered: usize,
    /// How often another one answered than before.
    moves: u64,
    /// Whether the last that was asked answered: what follows a failure is not told again.
    is_answering: bool,
    /// That of the first address that told it.
    datacenter: Option<String>,
    /// What is known of each.
    seen: Vec<Seen>,
}

/// What is known of who answers at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    /// Nothing, or not since it failed.
    Unasked,
    /// Whoever has no token may not ask.
    Hidden,
    /// It is of the datacenter, or does not say to this token.
    Settled,
    /// It is of another one, which was told.
    Other,
}

// === impl AgentSelf ===

impl AgentSelf {
    /// The request for it.
    pub(super) fn request() -> Request {
        Request::get("/v1/agent/self")
    }
}

// === impl Addresses ===

impl Addresses {
    /// None was asked yet.
    pub(super) fn new(displays: Vec<String>) -> Self {
        let state = State {
            current: 0,
            answered: 0,
            moves: 0,
            is_answering: true,
            datacenter: None,
            seen: vec![Seen::Unasked; displays.len()],
        };
        Self { displays, state: Mutex::new(state) }
    }

    /// Each place once, that which is asked first before the others.
    pub(super) fn turn(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, count) = (self.state().current, self.displays.len());
        (0..count).map(move |step| (first + step) % count)
    }

    /// Moves whenever another address than before answers.
    pub(super) fn moves(&self) -> u64 {
        self.state().moves
    }

    /// Whether it has to be asked for its datacenter before anything else.
    pub(super) fn is_unknown(&self, place: usize, has_token: bool) -> bool {
        match self.state().seen[place] {
            Seen::Unasked | Seen::Other => true,
            Seen::Hidden => has_token,
            Seen::Settled => false,
        }
    }

    /// Takes what the address says of itself; an error: it is not to be asked for anything.
    pub(super) fn introduced(
        &self,
        place: usize,
        has_token: bool,
        answer: Result<AgentSelf, Error>,
    ) -> Result<(), Error> {
        let mut state = self.state();
        let found = match answer {
            Ok(agent) => agent.config.datacenter,
            Err(Error::Denied { .. }) if !has_token => {
                state.seen[place] = Seen::Hidden;
                return Ok(());
            }
            // A proxy may let nobody ask.
            Err(ref error @ (Error::Denied { .. } | Error::Unexpected { .. }))
                if !error.is_unknown_token() =>
            {
                state.seen[place] = Seen::Settled;
                return Ok(());
            }
            Err(error) if error.is_silence() || error.lacks_quorum() => return Err(error),
            // What is asked for next tells more: a token that is not known is renewed.
            Err(_) => return Ok(()),
        };
        let expected = state.datacenter.get_or_insert_with(|| found.clone()).clone();
        if expected == found {
            state.seen[place] = Seen::Settled;
            return Ok(());
        }
        let address = self.displays[place].clone();
        let error = Error::OtherDatacenter { address, expected, found };
        if state.seen[place] != Seen::Other {
            state.seen[place] = Seen::Other;
            tracing::error!(
                address = self.displays[place],
                "{error}: the address is passed over; correct --consul-addr"
            );
        }
        Err(error)
    }

    /// This one is asked no more for now.
    pub(super) fn leave(&self, place: usize, error: &Error) {
        let mut state = self.state();
        if state.seen[place] != Seen::Other {
            state.seen[place] = Seen::Unasked;
        }
        if state.current != place {
            // Another request was quicker.
            return;
        }
        state.current = (place + 1) % self.displays.len();
        if std::mem::replace(&mut state.is_answering, false) {
            tracing::warn!(
                address = self.displays[place],
                error = chain(error),
                "Consul cannot be used at this address: trying the others"
            );
        }
    }

    /// This one answered; `is_next`: after others had failed.
    pub(super) fn answered(&self, place: usize, is_next: bool) {
        let mut state = self.state();
        if is_next {
            state.current = place;
        }
        if state.current != place {
            return;
        }
        if !std::mem::replace(&mut state.is_answering, true) {
            tracing::info!("Consul answers: going on at {}", self.displays[place]);
        }
        if std::mem::replace(&mut state.answered, place) != place {
            state.moves += 1;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one step, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
