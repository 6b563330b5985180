//! Removals that a list alone asks for are held back until a second list agrees. Lists without any pod
//! remove nothing at all: a node has pods, its daemon's own for one, so that is most likely another
//! node's name, or a kubelet that has not begun. Their checks turn critical then.

use std::time::Duration;

use super::Core;
use super::state::Hold;
use crate::domain::Moment;
use crate::domain::node::exchange::Report;

/// How long a list that lost more than half is not believed: the second one is another quorum read.
const HOLD: Duration = Duration::from_secs(10);

// === impl Core ===

impl Core {
    /// The pods are listed completely.
    pub(super) fn listed(&mut self, now: Moment) {
        let was_started = self.is_started();
        for key in self.pods.list_completed() {
            // One that was going when it was seen last has gone.
            let was_going = self.pods.get(&key).is_some_and(|pod| pod.is_terminating);
            self.pod_gone(&key, !was_going, now);
        }
        if !was_started && self.is_started() {
            self.start(now);
        }
        if !self.is_started() {
            return;
        }
        if self.is_empty && !self.pods.is_empty() {
            self.is_empty = false;
            self.touch_all(now);
        }
        if self.hold.as_ref().is_some_and(|hold| self.list_began >= hold.since + HOLD) {
            self.hold = None;
            self.is_empty = self.pods.is_empty();
            if self.is_empty {
                self.reports.push_back(Report::Empty);
            } else {
                for record in self.records.values_mut() {
                    record.is_missing = false;
                }
                self.reports.push_back(Report::Released);
            }
            self.touch_all(now);
        }
        self.evaluate_hold(now);
    }

    /// Holds removals back where a list lost more than half of what the agent has.
    pub(super) fn evaluate_hold(&mut self, now: Moment) {
        if self.is_empty {
            return;
        }
        let known = self.records.values().filter(|record| record.known.is_some());
        let total = known.clone().count();
        let missing = known.filter(|it| it.wanted.is_none() && it.is_missing).count();
        if missing * 2 > total {
            if self.hold.is_none() {
                self.hold = Some(Hold { since: now, ask: now + HOLD });
                self.reports.push_back(Report::Held(missing, total));
            }
        } else if self.hold.take().is_some() {
            self.reports.push_back(Report::Released);
            self.touch_all(now);
        }
    }

    /// Asks for the second list once enough time has passed.
    pub(super) fn ask_again(&mut self, now: Moment) {
        if let Some(hold) = &mut self.hold
            && hold.ask <= now
        {
            // Should the list not come it is asked for again.
            hold.ask = now + HOLD;
            self.is_relist_wanted = true;
        }
    }
}
