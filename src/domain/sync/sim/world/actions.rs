//! What a core wants done, and whether it may.

use super::*;

// === impl World ===

impl World {
    /// Lets the core do what is due, and does what it wants.
    pub(super) fn turn(&mut self, place: usize) -> Checked {
        let now = self.now;
        self.note_start(place);
        let core = &mut self.processes[place].core;
        if core.next_timeout().is_some_and(|due| due <= now) {
            core.handle_timeout(now);
        }
        let mut actions = 0;
        while let Some(action) = self.processes[place].core.poll_action(now) {
            // Before the view is another one.
            self.note_start(place);
            actions += 1;
            if actions > MOST_ACTIONS {
                return Err(format!("more and more is to be done at once: {action:?}"));
            }
            // A node that others keep is looked at with each reading.
            let looks = matches!(
                action,
                Action::Heartbeat
                    | Action::ReadCatalog
                    | Action::ReadNames
                    | Action::RemoveNamespaceNode { .. }
                    | Action::Resync { .. }
            );
            if !looks {
                self.processes[place].busy = now;
            }
            self.act(place, action)?;
        }
        self.note_start(place);
        let process = &mut self.processes[place];
        if process.core.next_timeout().is_some_and(|due| due <= now) {
            return Err("all is done, and it wants to be woken at once".to_owned());
        }
        process.take_reports(self.tampered)
    }

    /// Looks at what there was at the first reconciliation of a term.
    fn note_start(&mut self, place: usize) {
        let process = &mut self.processes[place];
        let is_running = || process.core.plan_of(&ObjectKey::orphaned(), self.now).is_some();
        if process.term.is_started || !is_running() {
            return;
        }
        process.term.is_started = true;
        // What it holds back waits for a second list from now on.
        process.busy = self.now;
        let is_undisturbed = process.read.is_some_and(|began| began > self.disturbed);
        if is_undisturbed && !self.settings.allow_removals {
            let none = BTreeSet::new();
            let wanted = Wanted::new(&self.settings, &process.view, &self.machines, &none);
            process.term.deselected = wanted.deselected(&self.consul);
        }
    }

    pub(super) fn act(&mut self, place: usize, action: Action) -> Checked {
        if self.trace {
            eprintln!("{:>9.3}     {place}: {action:?}", self.now.as_secs_f64());
        }
        let of = self.of(place);
        let leads = !matches!(self.processes[place].lead, Lead::Candidate { .. });
        let is_of_consul = !matches!(
            action,
            Action::Relist
                | Action::ReadIdentity
                | Action::WatchNodes
                | Action::StopWatchingNodes
                | Action::Heartbeat
                | Action::WriteMarker
        );
        if is_of_consul && !(leads && self.processes[place].is_connected) {
            return Err(format!("one that does not lead: {action:?}"));
        }
        match action {
            Action::Write { flight, groups } => {
                self.check_writes(place, flight, &groups)?;
                let groups = groups.into_iter().map(|group| group.writes).collect();
                self.send(of, flight, What::Write(groups))?;
            }
            Action::ReadPtr { flight, key } => {
                self.processes[place].term.begin(&RecordKey::Ptr(key.clone()), flight)?;
                self.send(of, flight, What::ReadPtr(key))?;
            }
            Action::RemoveNamespaceNode { flight, namespace } => {
                let (now, settings) = (self.now, &self.settings);
                let term = &mut self.processes[place].term;
                term.check_node_removal(&namespace, settings, now)?;
                term.removing.insert(namespace.clone());
                self.send(of, flight, What::RemoveNode(namespace))?;
            }
            Action::Resync { consistent } => self.begin_reading(of, consistent)?,
            Action::ReadNames => self.after(TICK, Event::Names(of)),
            Action::ReadName(name) => {
                let (each, _) = self.readings;
                self.after(each, Event::Name(of, name));
            }
            Action::FollowPtr { prefix } => {
                self.processes[place].follows_ptr = prefix.is_some();
                if prefix.is_some() {
                    self.after(TICK, Event::PtrKeys(of));
                }
            }
            Action::ReadCatalog => self.after(TICK, Event::Catalog(of)),
            Action::ReadIdentity => self.after(TICK, Event::Identity(of)),
            Action::WriteMarker => self.after(TICK, Event::MarkerWritten(of)),
            Action::Heartbeat => self.after(TICK, Event::Heartbeat(of)),
            Action::Relist => self.processes[place].watches.values_mut().for_each(Watch::ends),
            Action::WatchNodes => {
                self.processes[place].watches.insert(Kind::Node, Watch::new());
            }
            Action::StopWatchingNodes => {
                let process = &mut self.processes[place];
                process.watches.remove(&Kind::Node);
                process.excused.remove(&Kind::Node);
                process.view.forget_nodes();
            }
        }
        Ok(())
    }

    pub(super) fn check_writes(
        &mut self,
        place: usize,
        flight: FlightId,
        groups: &[Group],
    ) -> Checked {
        // What a leader writes that was deposed is refused, and what it knows is outdated.
        let is_refused = !self.consul.admits(self.session(place));
        let process = &mut self.processes[place];
        if groups.len() > process.capacity.groups {
            return Err(format!("{} groups in one request", groups.len()));
        }
        if process.term.read == 0 {
            return Err("a write before Consul was read".to_owned());
        }
        let listed = [Kind::Service, Kind::EndpointSlice];
        if !listed.iter().all(|kind| process.view.listed.contains(kind)) {
            return Err("a write before all is listed".to_owned());
        }
        let excused = process.all_excused(&self.consul);
        let wanted = Wanted::new(&self.settings, &process.view, &self.machines, &excused);
        let is_holding = process.core.is_holding();
        let is_certain = process.read_since(self.disturbed).is_some()
            && !process.term.has_failures
            && !is_holding;
        if self.consul.is_catalog && is_certain && !is_refused {
            let mut addresses = Addresses::of(&self.consul);
            let admitted = self.requests.values().filter(|it| self.consul.admits(it.session));
            for under_way in admitted.flat_map(Request::groups) {
                addresses.apply(under_way);
            }
            let plan_of = |service: &ObjectKey| process.core.plan_of(service, self.now);
            let are_named = process.term.names.is_some();
            wanted.check_groups(groups, addresses, &self.consul, are_named, plan_of)?;
        }
        let mut sent: Vec<&Registration> = registered_by_all(self.requests.values()).collect();
        let writes = groups.iter().flat_map(|group| &group.writes);
        sent.extend(writes.filter_map(registered_by));
        let of = groups.iter().flat_map(|it| it.writes.iter().map(|write| (&it.service, write)));
        for (writer, write) in of {
            process.term.begin(&write.key(), flight)?;
            process.term.check_silent(write, &self.consul)?;
            if is_refused {
                continue;
            }
            match write {
                Write::Register(registration) | Write::Replace(registration) => {
                    process.term.check_node(&registration.namespace)?;
                    let stands = self.consul.registrations.get(&registration.id);
                    let is_renamed = stands.is_some_and(|it| {
                        lookup_form(&it.registration.service) != lookup_form(&registration.service)
                    });
                    if is_renamed && !process.term.has_failures {
                        let plan_of = |service: &ObjectKey| process.core.plan_of(service, self.now);
                        let id = &registration.id;
                        wanted.check_name_left(id, &self.consul, &sent, plan_of)?;
                    }
                    let service = service_of_id(&self.settings.cluster, &registration.id);
                    let service = service.unwrap_or_else(ObjectKey::orphaned);
                    let joins = wanted.joins(&service);
                    process.term.check_name(&service, &registration.service, joins)?;
                    let name = lookup_form(&registration.service);
                    let has = process.has_name(&service, &name);
                    // One that a list lacked counts as there until a second one agrees.
                    if !process.core.is_missing(&service) {
                        wanted.check_taken(&service, &name, has)?;
                    }
                    if !is_holding {
                        wanted.check_register(registration, stands)?;
                    }
                }
                Write::Deregister { id, namespace, .. } => {
                    process.term.check_node(namespace)?;
                    wanted.check_deregister(id, self.consul.registrations.get(id))?;
                    let names = process.term.names.as_ref();
                    wanted.check_former_name(id, &self.consul, names)?;
                    if let Some(name) = process.name_of(writer, id) {
                        let has = |other: &ObjectKey| process.certainly_has_name(other, &name);
                        wanted.check_evicted(writer, id, &name, has)?;
                    }
                    if process.term.deselected.contains(writer) {
                        return Err(format!("{id} is removed, and nobody has allowed that"));
                    }
                    let lacking_since = process.confirmed.get(writer);
                    if lacking_since.is_some_and(|since| process.identified < Some(*since)) {
                        return Err(format!("{id} is removed, maybe of another cluster"));
                    }
                    let plan_of = |service: &ObjectKey| process.core.plan_of(service, self.now);
                    if is_certain {
                        wanted.check_replaced(id, &self.consul, plan_of)?;
                    }
                    // What has failed is tried again by itself, and may be overtaken.
                    if !process.term.has_failures {
                        wanted.check_name_left(id, &self.consul, &sent, plan_of)?;
                    }
                }
                Write::PutPtr { record, .. } if !is_holding => {
                    wanted.check_put_ptr(record, writer)?;
                }
                Write::DeletePtr { key, .. } => {
                    let is_prompt = !process.term.has_failures;
                    wanted.check_delete_ptr(key, writer, &self.consul, is_prompt)?;
                }
                Write::PutPtr { .. } => {}
            }
        }
        Ok(())
    }

    /// The session with which the process writes.
    fn session(&self, place: usize) -> Option<u32> {
        match self.processes[place].lead {
            Lead::Leading { session } => Some(session),
            Lead::Alone | Lead::Candidate { .. } => None,
        }
    }

    pub(super) fn send(&mut self, of: Of, flight: FlightId, what: What) -> Checked {
        let under_way = self.requests.values().filter(|it| it.of == of).count();
        if under_way >= self.processes[of.place].capacity.flights {
            return Err(format!("{under_way} requests are under way, and one more is sent"));
        }
        let outage = self.outage.filter(|(_, until)| self.now < *until);
        let usual = outage.map_or(Fate::Applied, |(fate, _)| fate);
        let slow = self.slow.filter(|(_, until)| self.now < *until);
        let pace = slow.map_or(Pace(1, 1), |(pace, _)| pace);
        let of_nodes = &mut self.node_fates;
        let next = if matches!(what, What::RemoveNode(_)) { of_nodes.pop_front() } else { None };
        let next = next.or_else(|| self.fates.pop_front());
        let (fate, Pace(there, back)) = next.unwrap_or((usual, pace));
        let session = self.session(of.place);
        self.serial += 1;
        let (number, token) = (self.serial, self.consul.token);
        let back = Duration::from_millis(back.into());
        let request = Request { of, flight, session, token, what, fate, back, reply: None };
        self.requests.insert(number, request);
        self.after(Duration::from_millis(there.into()), Event::Arrives(number));
        Ok(())
    }
}

/// What is registered by requests that are under way.
fn registered_by_all<'r>(
    requests: impl Iterator<Item = &'r Request>,
) -> impl Iterator<Item = &'r Registration> {
    requests.flat_map(Request::groups).flatten().filter_map(registered_by)
}
