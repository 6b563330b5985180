//! The watch of nodes, which goes on only while a Service uses node ports, or pods get PTR records,
//! which those with the address of their node do not.
//!
//! Nothing is decided for a Service with node ports before the nodes are known (nothing is removed out of
//! ignorance), and nothing else waits for them once it turns out that they cannot be listed (one bad
//! object harms only itself).

/// How the watch of nodes goes.
#[derive(Debug, Default)]
pub(super) struct NodeWatch {
    /// Whether it was asked for.
    is_on: bool,
    state: State,
}

/// How its first list goes.
#[derive(Debug, Default)]
enum State {
    /// Well, or nobody asked for it.
    #[default]
    Going,
    /// It fails for a reason that may pass.
    Failing,
    /// They may not be listed; what the watch said.
    Denied(String),
}

// === impl NodeWatch ===

impl NodeWatch {
    /// Takes whether nodes are wanted; gives whether that is news.
    pub(super) fn set(&mut self, is_on: bool) -> bool {
        std::mem::replace(&mut self.is_on, is_on) != is_on
    }

    /// Nodes are watched no longer.
    pub(super) fn stopped(&mut self) {
        self.state = State::Going;
    }

    /// A list of nodes is complete.
    pub(super) fn listed(&mut self) {
        self.state = State::Going;
    }

    /// The first list fails; `denied`: because a permission is missing, in these words. Whether that
    /// changes anything.
    pub(super) fn failed(&mut self, denied: Option<String>) -> bool {
        match (denied, &self.state) {
            (Some(why), State::Denied(before)) if why == *before => return false,
            // A permission that was missing a moment ago is still missing.
            (None, State::Denied(_)) => return false,
            (Some(why), _) => self.state = State::Denied(why),
            (None, _) => self.state = State::Failing,
        }
        true
    }

    /// Why they may not be listed.
    pub(super) fn denied(&self) -> Option<&str> {
        match &self.state {
            State::Denied(why) => Some(why),
            State::Going | State::Failing => None,
        }
    }

    /// Whether the first list may come any moment.
    pub(super) fn may_still_come(&self) -> bool {
        matches!(self.state, State::Going)
    }
}
