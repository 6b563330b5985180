//! When Consul was heard.
use std::time::Duration;

use crate::domain::Moment;

/// Between two heartbeats: three fit into the minute after which the bridge is not ready.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// Consul that has not answered for this long makes the bridge unready.
const SILENCE: Duration = Duration::from_mins(1);
/// Between two tries to write the marker again.
const MARKER_RETRY: Duration = Duration::from_secs(5);

/// When Consul was heard, and what is asked of it whoever leads.
#[derive(Debug, Default)]
pub(super) struct Contact {
    last: Option<Moment>,
    next_heartbeat: Option<Moment>,
    /// When the marker, which was lost, has to be written.
    marker_due: Option<Moment>,
    /// Newest failure, while it fails.
    failure: Option<String>,
}

// === impl Contact ===

impl Contact {
    /// The handshake is over.
    pub(super) fn connected(&mut self, now: Moment) {
        self.heard(now);
        self.next_heartbeat = Some(now + HEARTBEAT);
    }

    /// Consul answered.
    pub(super) fn heard(&mut self, now: Moment) {
        self.last = Some(now);
        self.failure = None;
    }

    /// Consul did not do what it was asked for.
    pub(super) fn failed(&mut self, why: &str) {
        self.failure = Some(why.to_owned());
    }

    /// Whether Consul answered lately.
    pub(super) fn is_heard(&self, now: Moment) -> bool {
        self.last.is_some_and(|last| now < last + SILENCE)
    }

    /// The newest failure, while it fails.
    pub(super) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// A heartbeat was answered.
    pub(super) fn heartbeat_over(&mut self, now: Moment) {
        self.next_heartbeat = Some(now + HEARTBEAT);
    }

    /// The marker has to be written at once.
    pub(super) fn write_marker(&mut self, now: Moment) {
        self.marker_due = Some(now);
    }

    /// Writing the marker failed: once more, later.
    pub(super) fn marker_failed(&mut self, now: Moment) {
        self.marker_due = Some(now + MARKER_RETRY);
    }

    /// Whether to send a heartbeat now; asked for once.
    pub(super) fn takes_heartbeat(&mut self, now: Moment) -> bool {
        take_if_due(&mut self.next_heartbeat, now)
    }

    /// Whether to write the marker now; asked for once.
    pub(super) fn takes_marker(&mut self, now: Moment) -> bool {
        take_if_due(&mut self.marker_due, now)
    }

    /// When something is due, or Consul has been silent for too long.
    pub(super) fn next(&self) -> impl Iterator<Item = Moment> {
        let silent = self.last.map(|last| last + SILENCE);
        [self.next_heartbeat, self.marker_due, silent].into_iter().flatten()
    }
}

fn take_if_due(due: &mut Option<Moment>, now: Moment) -> bool {
    due.take_if(|due| *due <= now).is_some()
}
