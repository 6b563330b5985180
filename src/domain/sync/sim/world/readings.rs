//! Readings of Consul, which go on step by step.

use super::*;

// === impl World ===

impl World {
    pub(super) fn begin_reading(&mut self, of: Of, consistent: bool) -> Checked {
        let process = &mut self.processes[of.place];
        if process.term.readings == 0 && !consistent {
            return Err("the first reading of a term may be outdated".to_owned());
        }
        if process.reading.is_some() {
            return Err("a second reading while one goes on".to_owned());
        }
        process.term.begin_reading(self.now)?;
        process.term.readings += 1;
        let first = if self.consul.is_catalog { Part::Nodes } else { Part::Agent };
        process.reading = Some(Reading { began: self.now, left: [first, Part::Kv].into(), at: 0 });
        let (each, _) = self.readings;
        self.after(each, Event::ReadingReads(of));
        Ok(())
    }

    pub(super) fn reading_reads(&mut self, of: Of) -> Checked {
        let (each, fails_at) = self.readings;
        let Some(reading) = &mut self.processes[of.place].reading else { return Ok(()) };
        let Some(part) = reading.left.pop_front() else { return Ok(()) };
        if fails_at == Some(reading.at) {
            return self.reading_ends(of, Err("told by the simulation".to_owned()));
        }
        reading.at += 1;
        let shown = match part {
            Part::Kv => self.consul.show_kv(),
            _ if !self.consul.marker => {
                // Once it is written and shows again, the rest of the reading is true.
                self.consul.marker = true;
                reading.left.push_front(part);
                vec![Observation::MarkerMissing]
            }
            Part::Agent => self.consul.show_registrations(None),
            Part::Node(namespace) => self.consul.show_registrations(Some(&namespace)),
            Part::Nodes => {
                let nodes = self.consul.marked_nodes();
                for namespace in nodes.iter().rev() {
                    reading.left.push_front(Part::Node(namespace.clone()));
                }
                nodes.into_iter().map(Observation::NamespaceNode).collect()
            }
        };
        self.after(each, Event::ReadingShows(of, shown));
        Ok(())
    }

    pub(super) fn reading_shows(&mut self, of: Of, shown: &[Observation]) -> Checked {
        let Some(reading) = &self.processes[of.place].reading else { return Ok(()) };
        let is_over = reading.left.is_empty();
        for seen in shown {
            if let Observation::Registration(seen) = seen {
                // A former process may have written it late.
                self.processes[of.place].term.held.extend(held_by(&seen.registration));
            }
            self.processes[of.place].core.handle_observation(seen.clone());
        }
        if is_over {
            return self.reading_ends(of, Ok(()));
        }
        self.after(Duration::ZERO, Event::ReadingReads(of));
        self.turn(of.place)
    }

    pub(super) fn reading_ends(&mut self, of: Of, result: Result<(), String>) -> Checked {
        let now = self.now;
        let process = &mut self.processes[of.place];
        let began = process.reading.take().map(|reading| reading.began);
        if result.is_ok() {
            process.has_read(began, self.disturbed, now);
        }
        process.term.read += usize::from(result.is_ok());
        process.term.reading_ended = now;
        process.core.handle_resync(result, now);
        self.turn(of.place)
    }

    /// The names that others hold are read.
    pub(super) fn names_read(&mut self, of: Of) -> Checked {
        let names = self.consul.foreign_names();
        let (result, now) = (self.told_to_fail(3).map(|()| names), self.now);
        let process = &mut self.processes[of.place];
        if let Ok(names) = &result {
            process.term.names = Some(names.clone());
        }
        process.core.handle_names(result, now);
        self.turn(of.place)
    }

    /// Who else holds this name is read.
    pub(super) fn name_read(&mut self, of: Of, name: Arc<str>) {
        let found = self.consul.look_up(&name);
        let result = self.told_to_fail(3).map(|()| found);
        let (each, _) = self.readings;
        self.after(each, Event::NameShown(of, name, result));
    }

    pub(super) fn name_shown(
        &mut self,
        of: Of,
        name: &str,
        result: Result<Option<Found>, String>,
    ) -> Checked {
        let now = self.now;
        let process = &mut self.processes[of.place];
        if let (Ok(found), Some(names)) = (&result, &mut process.term.names) {
            names.remove(name);
            names.extend(found.clone().map(|found| (name.into(), found.holders)));
        }
        process.core.handle_name(name, result, now);
        self.turn(of.place)
    }

    /// What the catalog shows is read.
    pub(super) fn catalog_read(&mut self, of: Of) -> Checked {
        let (registrations, now) = (&self.consul.registrations, self.now);
        let shown = |id: &str| registrations.contains_key(id);
        let result = self.told_to_fail(4).map(|()| &shown as &dyn Fn(&str) -> bool);
        self.processes[of.place].core.handle_catalog(result, now);
        self.turn(of.place)
    }

    /// Whether it still is the same cluster is read.
    pub(super) fn identity_read(&mut self, of: Of) -> Checked {
        let result = self.told_to_fail(4);
        if result.is_ok() {
            self.processes[of.place].identified = Some(self.now);
        }
        self.processes[of.place].core.handle_identity(result, self.now);
        self.turn(of.place)
    }

    /// The PTR keys that are followed have changed.
    pub(super) fn ptr_keys_shown(&mut self, of: Of) -> Checked {
        // Of a Consul that is out of order a streamed answer may lack what is there.
        let lies = self.outage.is_some_and(|(_, until)| self.now < until);
        let (kv, now) = (&self.consul.kv, self.now);
        let is_shown = |key: &str| !lies && kv.contains_key(key);
        self.processes[of.place].core.handle_ptr_keys(&is_shown, now);
        self.turn(of.place)
    }
}
