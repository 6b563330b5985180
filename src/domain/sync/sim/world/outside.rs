//! What happens from outside: to the cluster, in Consul, to the processes.

use super::*;

// === impl World ===

impl World {
    pub(in crate::domain::sync::sim) fn happen(&mut self, op: &Op) -> Checked {
        if self.trace {
            eprintln!("{:>9.3} {op:?}", self.now.as_secs_f64());
        }
        let place = |n: u8| usize::from(n) % self.processes.len();
        match op {
            Op::Service(n, shape) => self.kubernetes.put_service(*n, shape),
            Op::Alter(n, aspect) => self.kubernetes.alter_service(*n, *aspect),
            Op::DeleteService(n) => self.kubernetes.delete_service(*n),
            Op::Crowd(mask, state) if self.scenario.crowd => {
                self.kubernetes.put_crowd(*mask, *state);
            }
            Op::Crowd(..) => {}
            Op::Slice(n, of, endpoints) => self.kubernetes.put_slice(*n, *of, endpoints),
            Op::DeleteSlice(n, of) => self.kubernetes.delete_slice(*n, *of),
            Op::Node(n, ready) => self.kubernetes.put_node(*n, *ready),
            Op::DeleteNode(n) => self.kubernetes.delete_node(*n),
            Op::Undecodable(kind, n) => self.kubernetes.spoil(*kind, *n),
            Op::WatchEnds(n, kind, ms) => {
                let (place, now) = (place(*n), self.now);
                let process = &mut self.processes[place];
                if let Some(watch) = process.watches.get_mut(&kind.kind()) {
                    watch.ends();
                    let until = now + Duration::from_millis((*ms).into());
                    watch.stalled_until = watch.stalled_until.max(until);
                    process.core.handle_watch_failure(kind.kind(), None, now);
                    return self.turn(place);
                }
            }
            Op::WatchStalls(n, kind, ms) => {
                let until = self.now + Duration::from_millis((*ms).into());
                let place = place(*n);
                if let Some(watch) = self.processes[place].watches.get_mut(&kind.kind()) {
                    watch.stalled_until = watch.stalled_until.max(until);
                    watch.says_all = true;
                }
            }
            Op::Lists(n, kind, lists, hides) => {
                let place = place(*n);
                if let Some(watch) = self.processes[place].watches.get_mut(&kind.kind()) {
                    (watch.lying_lists, watch.hides) = (*lists, *hides);
                    watch.ends();
                }
            }
            Op::NodesDenied(denied) => self.kubernetes.nodes_denied = *denied,
            Op::Next(fate, times) => self.fates.push_back((*fate, *times)),
            Op::NextNode(fate, times) => self.node_fates.push_back((*fate, *times)),
            Op::Outage(fate, ms) => {
                self.outage = Some((*fate, self.now + Duration::from_millis((*ms).into())));
            }
            Op::Slow(each, ms) => {
                self.slow = Some((*each, self.now + Duration::from_millis((*ms).into())));
            }
            Op::Readings { each, fails_at } => {
                self.readings = (Duration::from_millis((*each).into()), *fails_at);
            }
            Op::Drift(drift, n) => self.drift(*drift, *n),
            Op::Fight(drift, n, each, times) => {
                for round in 0..u32::from(*times) {
                    let after = Duration::from_millis((*each).into()) * round;
                    self.after(after, Event::Drifts(*drift, *n));
                }
            }
            Op::Foreign(foreign, n) => self.foreign(*foreign, *n),
            Op::Token => return self.new_token(),
            Op::Address => {
                for place in 0..self.processes.len() {
                    self.processes[place].core.handle_address_changed(self.now);
                    self.turn(place)?;
                }
            }
            Op::SessionEnds => {
                if let Some(session) = self.consul.lock {
                    self.session_over(session);
                }
            }
            Op::LeaseEnds(n) => return self.lost(place(*n), *n & 8 != 0),
            Op::Restart(n, ms) => {
                let down = Duration::from_millis((*ms).into());
                self.restart(place(*n), *n & 8 != 0, down);
            }
            Op::Pass(ms) => return self.pass(Duration::from_millis((*ms).into())),
        }
        // What is due now is done before anything else happens.
        self.pass(Duration::ZERO)
    }

    pub(super) fn drift(&mut self, drift: Drift, n: u8) {
        self.disturbed = self.now;
        self.consul.has_lost = true;
        self.consul.first_theirs.clear();
        let is_being_read = self.processes.iter().any(|it| it.reading.is_some());
        let is_of_marker = matches!(drift, Drift::AllLost | Drift::MarkerChanged);
        self.tampered += usize::from(is_being_read || !is_of_marker);
        let ids: Vec<Box<str>> = self.consul.registrations.keys().cloned().collect();
        let id = ids.get(usize::from(n) % ids.len().max(1));
        match drift {
            Drift::Deregistered => id.into_iter().for_each(|id| self.consul.deregister(id)),
            Drift::Changed => id.into_iter().for_each(|id| self.consul.tamper(id)),
            Drift::Stray => id.into_iter().for_each(|id| self.consul.add_stray(id)),
            Drift::PtrRemoved => {
                let ours = self.consul.kv.values();
                let ours = ours.filter(|entry| self.consul.owner(entry) == PtrOwner::Ours);
                let keys: Vec<Box<str>> = ours.map(|entry| entry.record.key.clone()).collect();
                if let Some(key) = keys.get(usize::from(n) % keys.len().max(1)) {
                    self.consul.remove_ptr(key);
                }
            }
            Drift::NodeRemoved => {
                let namespace = if n.is_multiple_of(2) { "a" } else { "b" };
                if !self.consul.nodes_of_others.contains(namespace) {
                    self.consul.remove_node(namespace);
                }
            }
            Drift::MarkerChanged | Drift::AllLost => {
                if drift == Drift::AllLost {
                    self.consul.lose_all();
                }
                for place in 0..self.processes.len() {
                    if self.scenario.target == Target::Agent {
                        let of = self.of(place);
                        self.after(TICK, Event::MarkerLost(of));
                    }
                    if let Lead::Leading { session } = self.processes[place].lead {
                        let of = self.of(place);
                        self.after(RENEWAL, Event::Renewal(of, session));
                    }
                }
            }
        }
    }

    pub(super) fn foreign(&mut self, foreign: Foreign, n: u8) {
        self.disturbed = self.now;
        self.tampered += 1;
        let ptr = ptr_key(ip(&address(n / 4)));
        let toggle = |set: &mut BTreeSet<Box<str>>, what: &str| {
            if !set.remove(what) {
                set.insert(what.into());
            }
        };
        let namespace = if n.is_multiple_of(2) { "a" } else { "b" };
        match foreign {
            Foreign::Machines => {
                let name = if n.is_multiple_of(4) { "s1" } else { MACHINES };
                self.machines.insert(name.into());
                self.consul.toggle_machines(name);
            }
            Foreign::Ptr => {
                let is_there = self.consul.kv.contains_key(&*ptr);
                match (is_there, n % 3) {
                    (true, 0) => self.consul.remove_ptr(&ptr),
                    (_, 1) => self.consul.put_ptr(&ptr, "s1.service.dc1.consul", 0),
                    _ => self.consul.put_ptr(&ptr, "printer.example.org", 0),
                }
            }
            Foreign::PtrOfOtherCluster => {
                toggle(&mut self.consul.claimed_by_others, &ptr);
                if self.consul.claimed_by_others.contains(&*ptr) {
                    self.consul.others_take(&ptr);
                } else {
                    self.consul.others_leave(&ptr);
                }
            }
            Foreign::Check => {
                let count = self.consul.registrations.len().max(1);
                let mut registered = self.consul.registrations.values_mut();
                if let Some(registered) = registered.nth(usize::from(n) % count) {
                    registered.has_check_of_others ^= true;
                }
            }
            Foreign::PtrOfOurs => {
                let flags = PtrOwner::flags(&cluster());
                self.consul.put_ptr(&ptr, "old.service.dc1.consul", flags);
            }
            Foreign::OnNode => {
                if self.consul.is_catalog {
                    toggle(&mut self.consul.others_on, namespace);
                    self.consul.nodes.insert(namespace.into());
                }
            }
            Foreign::Node => {
                let is_free = !self.consul.nodes.contains(namespace);
                if self.consul.is_catalog
                    && (is_free || self.consul.nodes_of_others.contains(namespace))
                {
                    toggle(&mut self.consul.nodes_of_others, namespace);
                }
            }
        }
    }

    pub(super) fn new_token(&mut self) -> Checked {
        self.consul.token += 1;
        let now = self.now;
        for place in 0..self.processes.len() {
            if self.processes[place].is_connected {
                self.processes[place].core.handle_token_changed(now);
                self.turn(place)?;
            } else {
                self.forgive_old_tokens();
            }
        }
        Ok(())
    }

    pub(super) fn session_over(&mut self, session: u32) {
        self.consul.end_session(session);
        for place in 0..self.processes.len() {
            let of = self.of(place);
            match self.processes[place].lead {
                Lead::Leading { session: held } if held == session => {
                    self.after(RENEWAL, Event::Renewal(of, session));
                }
                Lead::Candidate { .. } => self.after(TICK, Event::Campaign(of)),
                Lead::Leading { .. } | Lead::Alone => {}
            }
        }
    }

    pub(super) fn restart(&mut self, place: usize, is_graceful: bool, down: Duration) {
        self.forgive_old_tokens();
        // What a former process has taken is there.
        self.consul.first_theirs.clear();
        let sent = self.requests.values().filter_map(|request| match &request.what {
            What::Write(groups) => Some(groups.iter().flatten().map(Write::key)),
            _ => None,
        });
        self.old_tokens.extend(sent.flatten());
        let process = self.process();
        let former = std::mem::replace(&mut self.processes[place], process);
        if let Lead::Leading { session } | Lead::Candidate { ending: Some(session) } = former.lead {
            let after = if is_graceful { TICK } else { SESSION };
            self.after(after, Event::SessionOver(session));
        }
        let until = self.now + down;
        for watch in self.processes[place].watches.values_mut() {
            watch.stalled_until = until;
        }
        let of = self.of(place);
        self.after(down.max(TICK), Event::Connect(of));
    }

    /// No more faults. What is under way still goes its way.
    pub(in crate::domain::sync::sim) fn heal(&mut self) -> Checked {
        self.fates.clear();
        self.node_fates.clear();
        (self.outage, self.slow) = (None, None);
        self.events.retain(|_, event| !matches!(event, Event::Drifts(..)));
        self.readings = (TICK, None);
        self.kubernetes.heal();
        for process in &mut self.processes {
            for watch in process.watches.values_mut() {
                watch.lying_lists = 0;
                // A list that hid what is there is not the last one.
                watch.ends();
                watch.stalled_until = watch.stalled_until.min(self.now);
            }
        }
        self.pass(Duration::ZERO)
    }

    /// A new process cannot see with which token something was written.
    fn forgive_old_tokens(&mut self) {
        let token = self.consul.token;
        let registered = self.consul.registrations.iter().filter(|(_, it)| it.token != token);
        let registered = registered.map(|(id, _)| RecordKey::Registration(id.clone()));
        self.old_tokens.extend(registered);
    }
}
