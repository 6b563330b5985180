//! What is left when all is over.

use super::*;

// === impl World ===

impl World {
    /// Whether nothing is left to do, neither here nor on the way.
    pub(in crate::domain::sync::sim) fn is_at_rest(&self) -> bool {
        let is_settled =
            self.leader().is_some_and(|it| it.core.is_settled() && !it.core.is_holding());
        let is_late = |event: &Event| matches!(event, Event::AppliedLate(_));
        is_settled && self.requests.is_empty() && !self.events.values().any(is_late)
    }

    /// Whether what is there must be right by now: the leader has had nothing to do for a while,
    /// and has read all since somebody else changed anything. `for_good`: what people have to fix.
    pub(in crate::domain::sync::sim) fn must_be_right(&self, for_good: &[&str]) -> bool {
        let Some(leader) = self.leader() else { return false };
        let is_read = leader.read.is_some_and(|began| began > self.disturbed);
        let is_quiet = self.now >= leader.busy + QUIET;
        let is_for_good = |reason: &str| for_good.contains(&reason);
        is_read
            && is_quiet
            && self.is_at_rest()
            && !self.problems().iter().any(|(_, _, reason)| is_for_good(reason))
    }

    /// Whether the leader has read all for that long, since somebody else changed anything.
    pub(in crate::domain::sync::sim) fn read_for(&self, time: Duration) -> bool {
        let since = self.leader().and_then(|it| it.read_since(self.disturbed));
        since.is_some_and(|since| self.now >= since + time)
    }

    pub(super) fn leader(&self) -> Option<&Process> {
        self.processes.iter().find(|it| !matches!(it.lead, Lead::Candidate { .. }))
    }

    /// Whether something is left behind that is never done.
    pub(in crate::domain::sync::sim) fn has_backlog(&self) -> bool {
        self.processes.iter().any(|it| it.core.counts().backlog > 0)
    }

    pub(in crate::domain::sync::sim) fn backlog(&self) -> String {
        let each = self.processes.iter().map(|it| {
            format!(
                "{:?}, {} to do, settled: {}, holding: {}",
                it.lead,
                it.core.counts().backlog,
                it.core.is_settled(),
                it.core.is_holding()
            )
        });
        format!("{}; {} requests", each.collect::<Vec<_>>().join("; "), self.requests.len())
    }

    /// Why records of the Service of this registration wait, as the leader says.
    pub(in crate::domain::sync::sim) fn waits_of(&self, id: &str) -> BTreeMap<RecordKey, Wait> {
        let service = service_of_id(&self.settings.cluster, id);
        let plan = service.zip(self.leader()).and_then(|(it, of)| of.core.plan_of(&it, self.now));
        plan.unwrap_or_default().waits
    }

    /// Whether only people can say what becomes of what is held back: a selection that would remove
    /// most is done once they allow it. Nothing else may be held when all else is done.
    pub(in crate::domain::sync::sim) fn awaits_allowance(&self) -> Result<bool, String> {
        let Some(leader) = self.leader() else { return Ok(false) };
        let core = &leader.core;
        let is_quiet = core.is_settled() && self.now >= leader.busy + QUIET;
        // What it holds may be gone, and it has yet to read that.
        if !core.is_holding() || !is_quiet || leader.read_since(self.disturbed).is_none() {
            return Ok(false);
        }
        let registered = self.consul.registrations.keys();
        let services = registered.filter_map(|id| service_of_id(&self.settings.cluster, id));
        let services: BTreeSet<ObjectKey> = services.chain([ObjectKey::orphaned()]).collect();
        let mut awaits = false;
        for service in services {
            let plan = core.plan_of(&service, self.now).unwrap_or_default();
            let held = plan.waits.into_values().filter_map(|wait| match wait {
                Wait::Held(cause) => Some(cause),
                _ => None,
            });
            for cause in held {
                let exists = leader.view.objects.contains_key(&(Kind::Service, service.clone()));
                if cause == Cause::Absence || !exists && !service.is_orphaned() {
                    return Err(format!("what {service} has is held back for good: {cause:?}"));
                }
                awaits = true;
            }
        }
        if awaits { Ok(true) } else { Err("something is held, and nothing waits".to_owned()) }
    }

    /// People allow what is held back, and start all bridges again.
    pub(in crate::domain::sync::sim) fn allow_removals(&mut self) {
        self.settings.allow_removals = true;
        for place in 0..self.processes.len() {
            self.restart(place, true, TICK);
        }
    }

    /// What is wrong, as the leader says.
    pub(in crate::domain::sync::sim) fn problems(&self) -> BTreeSet<(String, String, String)> {
        let problems = self.leader().map(|it| it.core.problems()).unwrap_or_default();
        let words = |(subject, key, problem): (Subject, &ObjectKey, &Problem)| {
            (subject.as_str().to_owned(), key.to_string(), problem.reason.to_string())
        };
        problems.into_iter().map(words).collect()
    }

    /// No two Services have one name when all is done, and none has one that others took before it. One
    /// that Consul does not take as it is now may stand under a former name.
    pub(in crate::domain::sync::sim) fn check_names(&self) -> Checked {
        let mut holders: BTreeMap<Box<str>, ObjectKey> = BTreeMap::new();
        let registered = self.consul.registrations.values();
        let refused = self.refused();
        let registered = registered.filter_map(|it| held_by(&it.registration));
        for (service, name) in registered.filter(|(service, _)| !refused.contains(service)) {
            let joins = |of: &(&ObjectKey, &Service)| {
                *of.0 == service && of.1.annotations.contains_key(JOIN)
            };
            let is_second = self.consul.first_theirs.contains(&name);
            if is_second && !self.kubernetes.services().any(|it| joins(&it)) {
                return Err(format!("{service} has the name {name}, which others took before it"));
            }
            let holder = holders.entry(name.clone()).or_insert_with(|| service.clone());
            if *holder != service {
                return Err(format!("{holder} and {service} have the name {name}"));
            }
        }
        Ok(())
    }

    /// Who is not ready although all is done.
    pub(in crate::domain::sync::sim) fn check_readiness(&self) -> Checked {
        for process in &self.processes {
            let readiness = process.core.readiness(self.now);
            if readiness != Readiness::Ready {
                return Err(format!("{:?}: {readiness:?}", process.lead));
            }
        }
        Ok(())
    }

    /// Services that Consul does not take as they are.
    fn refused(&self) -> BTreeSet<ObjectKey> {
        let is_odd = |value: &str| [REFUSED_TAG, FAILING_TAG].contains(&value);
        let refused = self
            .kubernetes
            .services()
            .filter(|(_, service)| service.annotations.values().any(|value| is_odd(value)));
        refused.map(|(key, _)| key.clone()).collect()
    }

    /// Services of which more may be there, or less, by what was there before: machines have had
    /// the name that they want, or Consul refuses what they are now, or the one that comes first for
    /// the name has nothing there.
    pub(in crate::domain::sync::sim) fn depends_on_the_past(&self) -> Past {
        let mut past = Past::default();
        // Who was first there has it.
        past.ptr.extend(self.consul.claimed_by_others.iter().cloned());
        let nobody = BTreeSet::new();
        let behind_idle = self.leader().map(|leader| {
            let wanted = Wanted::new(&self.settings, &leader.view, &self.machines, &nobody);
            wanted.behind_idle(&self.consul)
        });
        let behind_idle = behind_idle.unwrap_or_default();
        let refused = self.refused();
        for (key, service) in self.kubernetes.services() {
            let wanted = wanted(&self.settings, key, service);
            let mut names = wanted.claims(&self.settings, key, service).into_keys();
            let is_refused = refused.contains(key);
            let is_in_the_way = self.consul.nodes_of_others.contains(&key.namespace);
            let is_disputed =
                names.any(|name| self.machines.contains(&*name)) || behind_idle.contains(key);
            if is_refused || is_disputed {
                past.services.insert(key.clone());
                past.namespaces.insert(key.namespace.clone());
            }
            if is_refused || is_disputed || is_in_the_way {
                // The PTR record of its address waits for its instance.
                let addresses = service.cluster_ips.iter().copied();
                let addresses = addresses.chain(self.kubernetes.endpoints(key));
                past.ptr.extend(addresses.map(|address| ptr_key(address).into()));
            }
        }
        past
    }
}
