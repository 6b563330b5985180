//! From a Service that may have changed to the writes that bring Consul in sync.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::domain::consul::ptr::ptr_key;
use crate::domain::consul::record::{Check, Fingerprint, RecordKey, Registration, Write};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::desired::Desired;
use crate::domain::sync::outage::LONELY_FAILURES;
use crate::domain::sync::track::{Sent, Track, Trouble};
use crate::domain::sync::{Action, Moment, Phase, Reconciler, Report};

/// Whether a record may be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Open,
    /// Not yet: a write is in flight, or failed for a reason that passes.
    Later,
    /// Consul refuses it or a right is missing.
    Shut,
}

/// The writes for one Service, in the order in which they are sent.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) groups: Vec<Vec<Write>>,
    pub(super) reads: Vec<Box<str>>,
    /// PTR keys that can be decided about soon: what goes with them waits.
    pub(super) awaited: BTreeSet<Box<str>>,
    /// PTR records to write, by key.
    pub(super) puts: BTreeMap<Box<str>, Write>,
    /// Whether an instance is still to come: removals wait for it.
    pub(super) adding: bool,
    pub(super) problems: Vec<Problem>,
}

// === impl Reconciler ===

impl Reconciler {
    /// The next things to do, at most `slots` of them.
    pub fn next_actions(&mut self, now: Moment, slots: usize) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.phase == Phase::Running && actions.len() < slots {
            if self.outage.is_on() && (self.in_flight > 0 || now < self.outage.next_probe()) {
                break;
            }
            if let Some((service, action)) = self.next_planned() {
                self.note_sent(&service, &action);
                actions.push(action);
            } else if let Some(service) = self.dirty.pop() {
                if self.namespace_nodes.makes_wait(&service) {
                    continue;
                }
                let plan = self.plan(&service, now);
                if plan.is_empty() {
                    self.settle(&service);
                } else {
                    self.planned = Some((service, plan));
                }
            } else if let Some(action) = self.next_empty_namespace_node(now) {
                actions.push(action);
            } else {
                break;
            }
        }
        actions
    }

    /// When [`Reconciler::wake`] or [`Reconciler::next_actions`] has something to do.
    pub fn next_timer(&self) -> Option<Moment> {
        let first = |waiting: &BTreeSet<(Moment, ObjectKey)>| waiting.first().map(|(due, _)| *due);
        let (soon, late) = (first(&self.retry_soon), first(&self.retry_late));
        let soon = if self.outage.is_on() {
            let has_work = soon.is_some() || !self.dirty.is_empty() || self.planned.is_some();
            let may_probe = self.phase == Phase::Running && self.in_flight == 0;
            (has_work && may_probe).then_some(self.outage.next_probe())
        } else {
            soon
        };
        [soon, late, self.next_namespace_node_timer()].into_iter().flatten().min()
    }

    /// Takes up what has waited long enough.
    pub fn wake(&mut self, now: Moment) {
        let idle = self.dirty.is_empty() && self.planned.is_none();
        if self.outage.is_on() && now >= self.outage.next_probe() && idle {
            // Any write will do as a probe, however long it would have waited.
            if let Some((_, service)) = self.retry_soon.pop_first() {
                self.forgive(&service, now);
                self.mark_dirty(service);
            }
        }
        let mut due = Vec::new();
        for waiting in [&mut self.retry_soon, &mut self.retry_late] {
            // Nobody's key is the first of all.
            let after = (now + Moment::from_nanos(1), ObjectKey::orphaned());
            let later = waiting.split_off(&after);
            due.extend(std::mem::replace(waiting, later).into_iter().map(|(_, service)| service));
        }
        for service in due {
            self.mark_dirty(service);
        }
    }

    /// Lets the failed writes of `service` be tried at once.
    pub(super) fn forgive(&mut self, service: &ObjectKey, now: Moment) {
        let Some(unit) = self.units.get(service) else { return };
        for record in &unit.troubled {
            if let Some(Trouble::Transient { until }) =
                self.tracks.get_mut(record).and_then(|track| track.trouble.as_mut())
            {
                *until = now;
            }
        }
    }

    fn next_planned(&mut self) -> Option<(ObjectKey, Action)> {
        let (service, actions) = self.planned.as_mut()?;
        let next = actions.pop_front().map(|action| (service.clone(), action));
        if actions.is_empty() {
            self.planned = None;
        }
        next
    }

    fn note_sent(&mut self, service: &ObjectKey, action: &Action) {
        match action {
            Action::ReadPtr(key) => {
                self.note_in_flight(service, RecordKey::Ptr(key.clone()), Sent::Read);
            }
            // Noted where it is chosen: it is no Service's.
            Action::RemoveNamespaceNode(_) => {}
            Action::Write(writes) => {
                for write in writes {
                    let sent = match write {
                        Write::Register(registration) | Write::Replace(registration) => {
                            Sent::Register {
                                name: registration.service.clone(),
                                fingerprint: registration.fingerprint(),
                                critical: registration.check == Check::Critical,
                            }
                        }
                        Write::Deregister { .. } => Sent::Deregister,
                        Write::PutPtr { record, .. } => Sent::PutPtr(record.fingerprint()),
                        Write::DeletePtr { .. } => Sent::DeletePtr,
                    };
                    self.note_in_flight(service, write.key(), sent);
                }
            }
        }
    }

    fn note_in_flight(&mut self, service: &ObjectKey, record: RecordKey, sent: Sent) {
        let track = self.tracks.entry(record.clone()).or_insert_with(|| Track::new(service));
        track.service = service.clone();
        if track.attempt == 0 {
            track.answers = self.outage.answers();
        }
        track.sent = Some(sent);
        track.old_token = false;
        track.is_former = false;
        if let Some(touched) = &mut self.touched {
            touched.insert(record.clone());
        }
        let unit = self.units.entry(service.clone()).or_default();
        unit.troubled.insert(record);
        unit.in_flight += 1;
        self.in_flight += 1;
    }

    /// A Service whose plan is empty: it is in sync, unless something waits.
    fn settle(&mut self, service: &ObjectKey) {
        let Some(unit) = self.units.get_mut(service) else { return };
        if unit.in_flight > 0 {
            return;
        }
        let tracks = &mut self.tracks;
        unit.troubled.retain(|record| {
            // One that another Service has taken over is that one's to end.
            let Some(track) = tracks.get(record).filter(|track| track.service == *service) else {
                return false;
            };
            let in_trouble = track.trouble.is_some();
            if !in_trouble {
                tracks.remove(record);
            }
            in_trouble
        });
        let (written, removed) =
            (std::mem::take(&mut unit.written), std::mem::take(&mut unit.removed));
        if unit.troubled.is_empty() {
            self.units.remove(service);
            if self.units.is_empty() {
                // A burst must not leave its memory behind.
                self.units.shrink_to(0);
            }
        }
        if written + removed > 0 {
            let instances = self.ledger.of(service).len();
            self.reports.push(Report::InSync {
                service: service.clone(),
                written,
                removed,
                instances,
            });
        }
    }

    /// What has to be sent so that Consul has of this Service what it ought to have.
    fn plan(&mut self, key: &ObjectKey, now: Moment) -> VecDeque<Action> {
        if self.cache.service(key).is_none() && self.cache.undecodable(Kind::Service, key).is_some()
        {
            // It exists, and nobody knows how: what is registered stays.
            return VecDeque::new();
        }
        let desired = self.desired_of(key, &|_, _| false);
        if desired.keeps_former_name {
            self.keeping.insert(key.clone());
        } else {
            self.keeping.remove(key);
        }
        self.claim_ptr(key, &desired);
        self.let_go(key, &desired);
        let mut draft = Draft::default();
        self.draft_ptr(key, &desired, now, &mut draft);
        self.draft_registrations(key, &desired, now, &mut draft);
        // What nobody claims may be a Service's that could not be read, or that waits for nodes.
        let is_clear = !self.cache.has_unread_service() && self.needed_nodes_are_listed();
        let may_belong_to_others = key.is_orphaned() && !is_clear;
        let may_lose = !desired.awaits_nodes && !self.may_not_lose(key) && !may_belong_to_others;
        if !draft.adding && may_lose {
            self.draft_removals(key, &desired, now, &mut draft);
        }
        self.forget_old_tracks(key, &desired);
        draft.problems.extend(self.nodes_denied(&desired));
        let mut problems: BTreeSet<Problem> = desired.problems.into_iter().collect();
        problems.append(&mut draft.problems.into_iter().collect());
        problems.extend(self.troubles(key));
        problems.extend(self.missing_in_catalog(key));
        if let Some(why) = self.cache.undecodable(Kind::Service, key) {
            problems.insert(Problem::new(Reason::Undecodable, why));
        }
        self.set_problems(Kind::Service, key, problems);
        let reads = draft.reads.into_iter().map(Action::ReadPtr);
        reads.chain(draft.groups.into_iter().map(Action::Write)).collect()
    }

    /// Whether no record of the Service may be removed or turn critical: that is held back, or
    /// not all of its endpoints and nodes could be read.
    fn may_not_lose(&self, key: &ObjectKey) -> bool {
        let unread = || self.cache.has_unread_slice(key) || self.cache.may_miss_node(key);
        self.guard.holds(key) || (self.cache.service(key).is_some() && unread())
    }

    /// Forgets the troubles of records that are neither wanted nor there.
    fn forget_old_tracks(&mut self, key: &ObjectKey, desired: &Desired) {
        let Some(unit) = self.units.get_mut(key) else { return };
        let (tracks, ledger, reverse) = (&mut self.tracks, &self.ledger, &self.reverse);
        let released = self.released.get(key);
        unit.troubled.retain(|record| {
            let concerns_us = match record {
                RecordKey::Registration(id) => {
                    desired.registrations.contains_key(id) || ledger.registration(key, id).is_some()
                }
                RecordKey::Ptr(k) => {
                    reverse.holder(k) == Some(key) || released.is_some_and(|keys| keys.contains(k))
                }
            };
            match tracks.get(record) {
                None => false,
                Some(track) if track.service != *key => false,
                Some(track) if track.sent.is_some() => true,
                Some(_) if concerns_us => true,
                Some(_) => {
                    tracks.remove(record);
                    false
                }
            }
        });
    }

    fn draft_registrations(
        &mut self,
        key: &ObjectKey,
        desired: &Desired,
        now: Moment,
        draft: &mut Draft,
    ) {
        let held = self.may_not_lose(key);
        let writes_whole = self.target.writes_groups_whole();
        for registration in desired.registrations.values() {
            let known = self.ledger.registration(key, &registration.id);
            let fingerprint = registration.fingerprint();
            let reverse = ptr_key_of(&registration.address);
            let is_known = known.is_some();
            if known.is_some_and(|known| known.fingerprint == Some(fingerprint) && !known.resend) {
                self.forget_trouble(&RecordKey::Registration(registration.id.clone()));
                if let Some(put) = reverse.and_then(|reverse| draft.puts.remove(&*reverse)) {
                    draft.groups.push(vec![put]);
                }
                continue;
            }
            let turns_critical =
                registration.check == Check::Critical && known.is_some_and(|known| !known.critical);
            if held && turns_critical {
                continue;
            }
            match self.gate(
                key,
                &RecordKey::Registration(registration.id.clone()),
                Some(fingerprint),
                now,
            ) {
                Gate::Open if writes_whole && draft.awaits(reverse.as_deref()) => {
                    draft.adding = true;
                }
                Gate::Open => {
                    draft.adding = true;
                    let put = reverse.and_then(|reverse| draft.puts.remove(&*reverse));
                    let registration = Registration::clone(registration);
                    let register = if is_known {
                        Write::Replace(registration)
                    } else {
                        Write::Register(registration)
                    };
                    draft.groups.push(std::iter::once(register).chain(put).collect());
                }
                Gate::Later => draft.adding = true,
                Gate::Shut => {}
            }
        }
        self.forget_ptr_troubles(draft.puts.keys());
    }

    fn draft_removals(
        &mut self,
        key: &ObjectKey,
        desired: &Desired,
        now: Moment,
        draft: &mut Draft,
    ) {
        let writes_whole = self.target.writes_groups_whole();
        let mut deletes = self.ptr_deletes(key, now, draft);
        let gone: Vec<(Box<str>, Box<str>)> = self
            .ledger
            .of(key)
            .iter()
            .map(|known| (known.id(&self.settings.cluster, key), (&*known.service).into()))
            .filter(|(id, _)| !desired.keeps(id))
            .collect();
        for (id, service) in gone {
            let gate = self.gate(key, &RecordKey::Registration(id.clone()), None, now);
            let reverse = ptr_key_of_id(&id);
            if gate == Gate::Open && writes_whole && draft.awaits(reverse.as_deref()) {
                continue;
            }
            // It goes with its instance, and stays as long as that.
            let delete = reverse.and_then(|reverse| deletes.remove(&*reverse));
            if gate != Gate::Open {
                continue;
            }
            let deregister = Write::Deregister { id, service, namespace: key.namespace.clone() };
            draft.groups.push(std::iter::once(deregister).chain(delete).collect());
        }
        draft.groups.extend(deletes.into_values().map(|delete| vec![delete]));
    }

    /// Whether a record that has to wait is worth waiting for: in the catalog an instance and its
    /// PTR record are written together, but a key that keeps failing must not hold it up.
    pub(super) fn comes_soon(&self, record: &RecordKey) -> bool {
        self.tracks.get(record).is_some_and(|track| track.attempt < LONELY_FAILURES)
    }

    /// Whether a record may be written now; notes what has to be planned again when it may not.
    pub(super) fn gate(
        &mut self,
        service: &ObjectKey,
        record: &RecordKey,
        content: Option<Fingerprint>,
        now: Moment,
    ) -> Gate {
        let Some(track) = self.tracks.get_mut(record) else { return Gate::Open };
        if track.sent.is_some() {
            track.again.insert(service.clone());
            return Gate::Later;
        }
        match &track.trouble {
            Some(Trouble::Transient { until }) if *until > now => {
                self.retry_soon.insert((*until, service.clone()));
                Gate::Later
            }
            Some(Trouble::Lasting { until, .. }) if *until > now => {
                self.retry_late.insert((*until, service.clone()));
                Gate::Shut
            }
            Some(Trouble::Refused { content: refused, .. }) if content == Some(*refused) => {
                Gate::Shut
            }
            _ => Gate::Open,
        }
    }

    /// The record is as it ought to be: whatever a write ran into matters no more.
    pub(super) fn forget_trouble(&mut self, record: &RecordKey) {
        if let Some(track) = self.tracks.get_mut(record) {
            track.trouble = None;
        }
    }

    /// These PTR records are not to be written now, so that what a write ran into is past.
    pub(super) fn forget_ptr_troubles<'k>(&mut self, keys: impl Iterator<Item = &'k Box<str>>) {
        for key in keys {
            self.forget_trouble(&RecordKey::Ptr(key.clone()));
        }
    }

    /// Records that the agent could not pass on.
    fn missing_in_catalog(&self, key: &ObjectKey) -> impl Iterator<Item = Problem> {
        let ids = self.ledger.of(key).iter().map(|known| known.id(&self.settings.cluster, key));
        ids.filter(|id| self.missing_in_catalog.contains(id)).map(|id| {
            Problem::new(
                Reason::NotInCatalog,
                format!(
                    "the agent has service ID {id} and the catalog does not: its servers refused \
                     it; look at the agent's log, most often its token lacks service write",
                ),
            )
        })
    }

    /// What Consul said against records of the Service.
    fn troubles(&self, key: &ObjectKey) -> impl Iterator<Item = Problem> {
        let troubled = self.units.get(key).into_iter().flat_map(|unit| &unit.troubled);
        troubled.filter_map(|record| self.tracks.get(record)?.trouble.as_ref()?.problem().cloned())
    }
}

// === impl Draft ===

impl Draft {
    /// Has a PTR key read first, and what goes with it wait for that.
    pub(super) fn read(&mut self, reverse: Box<str>) {
        self.awaited.insert(reverse.clone());
        self.reads.push(reverse);
    }

    pub(super) fn awaits(&self, reverse: Option<&str>) -> bool {
        reverse.is_some_and(|reverse| self.awaited.contains(reverse))
    }
}

fn ptr_key_of(address: &str) -> Option<String> {
    address.parse().ok().map(ptr_key)
}

/// The PTR key of the address that a service ID ends with.
fn ptr_key_of_id(id: &str) -> Option<String> {
    ptr_key_of(id.rsplit('_').next()?)
}
