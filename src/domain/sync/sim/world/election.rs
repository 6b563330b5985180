//! Which process leads: the one whose session holds the lock.

use super::*;

// === impl World ===

impl World {
    pub(super) fn connect(&mut self, place: usize) -> Checked {
        let zone = ConsulDomain { datacenter: "dc1".into(), domain: "consul".into() };
        let (now, of) = (self.now, self.of(place));
        let process = &mut self.processes[place];
        process.is_connected = true;
        let shows_catalog = process.capacity.groups == 1;
        process.core.handle_connected(Peer { domain: Some(zone), shows_catalog }, now);
        if process.lead == Lead::Alone {
            return self.acquired(place);
        }
        self.after(TICK, Event::Campaign(of));
        self.turn(place)
    }

    pub(super) fn acquired(&mut self, place: usize) -> Checked {
        let names = self.consul.registrations.values();
        let held = names.filter_map(|it| held_by(&it.registration)).collect();
        let process = &mut self.processes[place];
        process.terms += 1;
        process.term = Term { held, ..Term::default() };
        process.core.handle_acquired(self.now);
        self.turn(place)
    }

    pub(super) fn campaign(&mut self, place: usize) -> Checked {
        let Lead::Candidate { ending } = self.processes[place].lead else { return Ok(()) };
        if !self.processes[place].is_connected {
            return Ok(());
        }
        let of = self.of(place);
        if let Some(session) = ending {
            // It must be known to be over: it may hold the lock.
            let fate = self.fates.pop_front().map_or(Fate::Applied, |(fate, _)| fate);
            let (is_applied, is_answered) = match fate {
                Fate::Applied => (true, true),
                Fate::AppliedUnanswered | Fate::HalfUnanswered => (true, false),
                _ => (false, false),
            };
            if is_applied {
                self.session_over(session);
            }
            if !is_answered {
                self.after(CAMPAIGN_RETRY, Event::Campaign(of));
                return Ok(());
            }
            self.processes[place].lead = Lead::Candidate { ending: None };
            self.after(5 * TICK, Event::Campaign(of));
            return Ok(());
        }
        if self.consul.lock.is_some() {
            self.processes[place].core.handle_candidacy(true);
            self.turn(place)?;
            self.after(CAMPAIGN, Event::Campaign(of));
            return Ok(());
        }
        let session = self.consul.new_session();
        self.consul.lock = Some(session);
        self.processes[place].lead = Lead::Leading { session };
        self.acquired(place)
    }

    /// A leader takes itself for deposed.
    pub(super) fn lost(&mut self, place: usize, is_quick: bool) -> Checked {
        let Lead::Leading { session } = self.processes[place].lead else { return Ok(()) };
        let now = self.now;
        let process = &mut self.processes[place];
        process.lead = Lead::Candidate { ending: Some(session) };
        process.terms += 1;
        process.term = Term::default();
        (process.reading, process.read, process.read_all) = (None, None, None);
        process.follows_ptr = false;
        process.core.handle_lost(now);
        self.consul.first_theirs.clear();
        let of = self.of(place);
        let delay = if is_quick { Duration::ZERO } else { 5 * TICK };
        self.after(delay, Event::Campaign(of));
        self.turn(place)
    }
}
