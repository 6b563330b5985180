//! From a Service that may have changed to what is written of it now, and why the rest waits.
//!
//! Planning looks and changes nothing; `apply` takes the plan. Writes are the difference between
//! what is desired and what is known (equal means silent); a record with a write in flight is left
//! alone until its answer (newer wins).
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::Moment;
use crate::domain::consul::ptr::ptr_key;
use crate::domain::consul::record::{Check, Fingerprint, RecordKey, Write};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::map::HashMap;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::PtrRank;
use crate::domain::services::desired::{Awaited, Desired};
use crate::domain::sync::action::Planned;
use crate::domain::sync::grace::BALANCER_APPEARS;
use crate::domain::sync::hold::Cause;
use crate::domain::sync::ledger::KnownRegistration;
use crate::domain::sync::view::View;
use crate::domain::sync::wait::{Outlook, Wait};

/// Problems of one Service that are told of each reason.
const MAX_PROBLEMS: usize = 8;

/// What is done for one Service now.
#[derive(Debug, Default)]
pub struct Plan {
    /// What is sent, in order.
    pub actions: Vec<Planned>,
    /// What is not as it ought to be and not written now, and why.
    pub waits: BTreeMap<RecordKey, Wait>,
    /// What else follows; `None`: everything stays as it is until the waits are over.
    pub(super) outcome: Option<Outcome>,
    /// Whether it is planned once more, after those that wait for their turn now.
    pub(super) again: bool,
    /// Whether the Service is in sync once the actions are done, and what is registered of each of its
    /// slices follows from that slice.
    pub(super) by_slice: bool,
}

/// What follows from a plan beside its actions.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) problems: BTreeSet<Problem>,
    /// The PTR keys that the Service claims.
    pub(super) ptr_claims: BTreeMap<Arc<str>, PtrRank>,
    /// The PTR keys that it has yet to remove.
    pub(super) released: BTreeSet<Box<str>>,
    /// PTR keys that are nothing to us any more.
    pub(super) forgotten: Vec<Box<str>>,
    /// Records that are as they ought to be, or not to be written: their failures are past.
    pub(super) cleared: Vec<RecordKey>,
    /// The PTR keys that it holds and others have.
    pub(super) awaited_ptr: BTreeSet<Box<str>>,
    /// Names of which it is not known whether others hold them.
    pub(super) unknown_names: BTreeSet<Box<str>>,
    /// Its ports that no endpoint serves, although some are ready.
    pub(super) unserved: BTreeSet<Box<str>>,
    /// Its load balancer, if that has no address yet.
    pub(super) awaited_balancer: BTreeSet<Box<str>>,
    /// Nothing is held any longer for the Service.
    pub(super) releases_hold: bool,
    /// Whether the answers may leave something to do or to tell.
    pub(super) follow_up: bool,
    /// Whether there is more to do than one step.
    pub(super) is_step: bool,
}

/// A plan in the making.
#[derive(Default)]
pub(super) struct Draft {
    /// How many groups, and how many reads, there may be.
    pub(super) step: usize,
    pub(super) groups: Vec<Vec<Write>>,
    pub(super) reads: Vec<Box<str>>,
    /// PTR keys that can be decided about soon: what goes with them waits.
    pub(super) awaited: BTreeSet<Box<str>>,
    /// PTR records to write, by key.
    pub(super) puts: BTreeMap<Box<str>, Write>,
    /// Whether an instance is still to come: removals wait for it.
    pub(super) adding: bool,
    pub(super) waits: BTreeMap<RecordKey, Wait>,
    pub(super) outcome: Outcome,
    pub(super) again: bool,
}

// === impl View ===

impl View<'_> {
    /// What is done for the Service now.
    pub(super) fn plan(&self, key: &ObjectKey, now: Moment) -> Plan {
        if self.target.has_namespace_nodes() {
            let node = RecordKey::NamespaceNode(key.namespace.clone());
            if self.term.flights.carries(&node) {
                return Plan { waits: [(node, Wait::NodeGoing)].into(), ..Plan::default() };
            }
        }
        let cache = &self.cluster.cache;
        if cache.service(key).is_none() && cache.undecodable(Kind::Service, key).is_some() {
            // It exists, and nobody knows how: what is registered stays.
            let ids = self.known_ids(key);
            let waits = ids.map(|id| (RecordKey::Registration(id), Wait::Unread)).collect();
            return Plan { waits, ..Plan::default() };
        }
        let desired = self.desired(key, &|_, _| false);
        let by_slice = self.is_by_slice(key, &desired);
        let mut draft = self.draft(key, &desired);
        self.draft_ptr(key, &desired, now, &mut draft);
        self.draft_registrations(key, &desired, now, &mut draft);
        self.draft_removals(key, &desired, now, &mut draft);
        self.draft_names(&desired, &mut draft);
        self.clear_old_failures(key, &desired, &mut draft);
        self.gather_problems(key, desired, now, &mut draft);
        let plan = draft.finish();
        Plan { by_slice: by_slice && plan.leaves_nothing(), ..plan }
    }

    /// What the Service claims, whatever Consul has.
    fn draft(&self, key: &ObjectKey, desired: &Desired) -> Draft {
        let ptr_claims = if desired.is_unknown() {
            // What is registered stays, and nobody else may end what leads to it.
            self.term.ptr.claims.of(key)
        } else {
            View::ptr_claims(desired)
        };
        let mut released = self.term.ptr.released.get(key).cloned().unwrap_or_default();
        let handovers = self.term.ptr.claims.handovers(key, &ptr_claims).into_iter();
        let left = handovers.filter(|it| it.to.is_none() && it.from.as_ref() == Some(key));
        released.extend(left.map(|handover| (&*handover.thing).into()));
        // Whoever claims a key now has it.
        let claims = &self.term.ptr.claims;
        released.retain(|ptr| claims.holder_if(ptr, key, ptr_claims.get(&**ptr)).is_none());
        let outcome = Outcome {
            ptr_claims,
            released,
            unknown_names: desired.unknown_names.clone(),
            unserved: desired.unserved.clone(),
            awaited_balancer: awaited_balancer(desired),
            releases_hold: self.term.holds.of(key).is_some()
                && self.has_nothing_to_lose(key, desired),
            ..Outcome::default()
        };
        let names = &mut desired.unknown_names.iter();
        let adding = names.any(|name| self.term.names.comes_soon(name));
        Draft { adding, step: self.step, outcome, ..Draft::default() }
    }

    /// Whether nothing is left to be held for the Service, or for the records of none.
    fn has_nothing_to_lose(&self, key: &ObjectKey, desired: &Desired) -> bool {
        if key.is_orphaned() {
            return !self.loses(key);
        }
        self.cluster.cache.service(key).is_some() && self.lost(key, desired).next().is_none()
    }

    /// Why what is undecided waits.
    pub(super) fn wait_for_names(&self, desired: &Desired) -> Wait {
        let soon = desired.unknown_names.iter().all(|name| self.term.names.comes_soon(name));
        if soon { Wait::NameNotLookedUp } else { Wait::NameUnknown }
    }

    /// What waits for a Consul name. Whatever else is known to keep such a record comes first.
    fn draft_names(&self, desired: &Desired, draft: &mut Draft) {
        let unknown = self.wait_for_names(desired);
        let unknown = desired.undecided.iter().map(|id| (id, unknown.clone()));
        let taken = desired.taken.iter().map(|id| (id, Wait::NameConflict));
        let foreign = desired.blocked.iter().map(|it| (&it.registration.id, Wait::NameForeign));
        for (id, wait) in unknown.chain(taken).chain(foreign) {
            draft.wait(RecordKey::Registration(id.clone()), wait);
        }
    }

    pub(super) fn draft_registrations(
        &self,
        key: &ObjectKey,
        desired: &Desired,
        now: Moment,
        draft: &mut Draft,
    ) {
        let keeps_health = self.keeps(key, draft);
        let writes_whole = self.target.writes_groups_whole();
        let has_failures = !self.term.retries.is_empty();
        for registration in desired.registrations.values() {
            let known = self.term.known.registration(key, &registration.id);
            let fingerprint = registration.fingerprint();
            let ptr = draft.has_ptr().then(|| ptr_key_of(&registration.address)).flatten();
            let record = || RecordKey::Registration(registration.id.clone());
            if desired.keep_their_name.contains(&registration.id) {
                draft.wait(record(), Wait::Held(Cause::Policy));
            }
            if known.is_some_and(|known| known.fingerprint == Some(fingerprint) && !known.resend) {
                draft.outcome.cleared.extend(has_failures.then(record));
                if let Some(put) = ptr.and_then(|ptr| draft.puts.remove(&*ptr)) {
                    draft.send(vec![put]);
                }
                continue;
            }
            let record = record();
            let keeps_health = keeps_health.clone().or_else(|| {
                let known = known.filter(|_| registration.check == Check::Critical)?;
                self.slices_behind(key, known, desired, now)
            });
            if let Some(wait) = keeps_health
                && registration.check == Check::Critical
                && known.is_some_and(|known| !known.critical)
            {
                draft.wait(record, wait);
                continue;
            }
            let mut wait = self.gate(&record, Some(fingerprint), now);
            if wait.is_none() && writes_whole && draft.awaits(ptr.as_deref()) {
                wait = Some(Wait::WithPtr);
            }
            let Some(wait) = wait else {
                draft.adding = true;
                let put = ptr.and_then(|ptr| draft.puts.remove(&*ptr));
                if draft.is_full() {
                    // Not copied: that would be much.
                    let ptr = put.map(|put| put.key());
                    draft.later(std::iter::once(record).chain(ptr));
                    continue;
                }
                let registration = registration.clone();
                let register = if known.is_some_and(|it| self.target.may_have_check(it)) {
                    Write::Replace(registration)
                } else {
                    Write::Register(registration)
                };
                draft.send(std::iter::once(register).chain(put).collect());
                continue;
            };
            draft.adding |= wait == Wait::WithPtr || wait.outlook() == Outlook::Soon;
            draft.wait(record, wait);
        }
        for ptr in std::mem::take(&mut draft.puts).into_keys() {
            draft.outcome.cleared.push(RecordKey::Ptr(ptr.clone()));
            draft.wait(RecordKey::Ptr(ptr), Wait::WithInstance);
        }
    }

    fn draft_removals(&self, key: &ObjectKey, desired: &Desired, now: Moment, draft: &mut Draft) {
        let keeps = self.keeps_all(key, desired, draft);
        if let Some(wait) = keeps.or(draft.adding.then_some(Wait::AfterReplacement)) {
            draft.outcome.follow_up |= wait == Wait::AfterReplacement && {
                let gone = self.gone(key, desired).next().is_some();
                gone || !draft.outcome.released.is_empty()
            };
            let gone = self.gone(key, desired).map(|(id, _)| id);
            let kept = desired.is_unknown().then(|| self.known_ids(key));
            let ids = gone.chain(kept.into_iter().flatten()).map(RecordKey::Registration);
            let ptr: Vec<Box<str>> = draft.outcome.released.iter().cloned().collect();
            for record in ids.chain(ptr.into_iter().map(RecordKey::Ptr)) {
                draft.wait(record, wait.clone());
            }
            return;
        }
        let writes_whole = self.target.writes_groups_whole();
        let mut deletes = self.ptr_deletes(key, now, draft);
        let mut last = self.last_at_addresses(key, desired, now, &mut deletes, draft);
        for (id, service) in self.gone(key, desired) {
            let has_ptr = !deletes.is_empty() || !draft.awaited.is_empty();
            let ptr = has_ptr.then(|| ptr_key_of_id(&id)).flatten();
            let record = RecordKey::Registration(id.clone());
            let mut wait = self.removal_wait(key, &id, desired, now);
            if wait.is_none() && writes_whole && draft.awaits(ptr.as_deref()) {
                wait = Some(Wait::WithPtr);
            }
            if let Some(wait) = wait {
                draft.wait(record, wait);
                continue;
            }
            let is_last = |ptr: &String| {
                let left = last.get_mut(&**ptr);
                left.is_some_and(|left| {
                    *left -= 1;
                    *left == 0
                })
            };
            let delete = ptr.filter(is_last).and_then(|ptr| deletes.remove_entry(&*ptr));
            let delete = delete.and_then(|delete| self.leave_to_last(key, delete, draft));
            let deregister = Write::Deregister { id, service, namespace: key.namespace.clone() };
            draft.send(std::iter::once(deregister).chain(delete).collect());
        }
        for delete in deletes {
            if let Some(delete) = self.leave_to_last(key, delete, draft) {
                draft.send(vec![delete]);
            }
        }
    }

    /// The removal of a PTR record, unless another Service goes from its address after this one.
    fn leave_to_last(
        &self,
        key: &ObjectKey,
        (ptr, delete): (Box<str>, Write),
        draft: &mut Draft,
    ) -> Option<Write> {
        if !self.term.ptr.is_anothers_too(&ptr, key) {
            return Some(delete);
        }
        draft.outcome.released.remove(&ptr);
        None
    }

    /// How many instances go at each address whose PTR record goes: it goes with the last one. It stays
    /// where one of them does, and while one is on its way out the others wait for that.
    fn last_at_addresses(
        &self,
        key: &ObjectKey,
        desired: &Desired,
        now: Moment,
        deletes: &mut BTreeMap<Box<str>, Write>,
        draft: &mut Draft,
    ) -> HashMap<Box<str>, usize> {
        let mut last = HashMap::default();
        if deletes.is_empty() {
            return last;
        }
        for (id, _) in self.gone(key, desired) {
            let ptr = ptr_key_of_id(&id).map(Box::<str>::from);
            let Some(ptr) = ptr.filter(|ptr| deletes.contains_key(ptr)) else { continue };
            match self.removal_wait(key, &id, desired, now) {
                None => *last.entry(ptr).or_insert(0) += 1,
                Some(wait) => {
                    last.remove(&ptr);
                    deletes.remove(&ptr);
                    draft.wait(RecordKey::Ptr(ptr.clone()), Wait::WithInstance);
                    if wait == Wait::InFlight {
                        draft.awaited.insert(ptr);
                    }
                }
            }
        }
        last
    }

    /// Why a registration that is not wanted cannot go now, whatever becomes of its PTR record.
    fn removal_wait(
        &self,
        key: &ObjectKey,
        id: &str,
        desired: &Desired,
        now: Moment,
    ) -> Option<Wait> {
        let known = self.term.known.registration(key, id);
        let behind = known.and_then(|known| self.slices_behind(key, known, desired, now));
        behind.or_else(|| self.gate(&RecordKey::Registration(id.into()), None, now))
    }

    /// The known registrations that are not wanted, by ID and Consul name.
    fn gone<'v>(
        &'v self,
        key: &'v ObjectKey,
        desired: &'v Desired,
    ) -> impl Iterator<Item = (Box<str>, Box<str>)> + 'v {
        let known = self.term.known.of(key).iter();
        let known = known.map(|known| (known.id(&self.settings.cluster, key), known));
        let gone = known.filter(|(id, _)| !desired.keeps(id));
        gone.map(|(id, known)| (id, (&*known.service).into()))
    }

    fn known_ids(&self, key: &ObjectKey) -> impl Iterator<Item = Box<str>> {
        self.term.known.of(key).iter().map(|known| known.id(&self.settings.cluster, key))
    }

    /// Why no record of the Service may be removed or turn critical, if so: that is held back, or
    /// not all of its endpoints and nodes could be read.
    fn keeps(&self, key: &ObjectKey, draft: &Draft) -> Option<Wait> {
        let held = self.term.holds.of(key).filter(|_| !draft.outcome.releases_hold);
        let cache = &self.cluster.cache;
        let unread =
            || cache.has_unread_slice(key) || cache.may_miss_node(key) || cache.may_miss_route(key);
        let unread = || cache.service(key).is_some() && unread();
        held.map(Wait::Held).or_else(|| unread().then_some(Wait::Unread))
    }

    /// Whether a registration is one of a port that nothing serves any more, or that the Service
    /// does not have any more, and what takes its place may still come.
    fn slices_behind(
        &self,
        key: &ObjectKey,
        known: &KnownRegistration,
        desired: &Desired,
        now: Moment,
    ) -> Option<Wait> {
        let until = self.term.unserved.until(key, &desired.unserved, now)?;
        (!desired.served.contains(known.port())).then_some(Wait::SlicesBehind { until })
    }

    /// Why nothing of the Service may be removed, if so.
    fn keeps_all(&self, key: &ObjectKey, desired: &Desired, draft: &Draft) -> Option<Wait> {
        match desired.awaits {
            Some(Awaited::Nodes) => return Some(Wait::NodesUnknown),
            Some(Awaited::Routes) => return Some(Wait::RoutesUnknown),
            None => {}
        }
        if self.settings.never_removes() {
            return Some(Wait::Held(Cause::Policy));
        }
        let keeps = self.keeps(key, draft);
        if keeps.is_some() || !key.is_orphaned() {
            return keeps;
        }
        // What nobody claims may be a Service's that could not be read.
        self.cluster.cache.has_unread_service().then_some(Wait::Unread)
    }

    /// PTR keys of addresses that are registered for Services of which nothing may be removed, and
    /// why: they stay as long. The nodes are not known yet, or a slice could not be read.
    pub(super) fn ptr_keys_kept(&self) -> BTreeMap<String, Wait> {
        let cache = &self.cluster.cache;
        let awaits_nodes = !self.cluster.needed_nodes_are_listed();
        let users = cache.node_users().iter().filter(|_| awaits_nodes);
        let users = users.map(|user| (user.clone(), Wait::NodesUnknown));
        let unread = cache.services_with_unread_slices().into_iter();
        let unread = unread.chain(cache.services_with_unread_routes());
        let routed = self.term.known.services().filter(|_| cache.lacks_routes());
        let may_be_routed = |it: &KnownRegistration| it.may_be_routed(self.settings.route_address);
        let routed = routed.filter(|(_, known)| known.iter().any(may_be_routed));
        let routed = routed.map(|(service, _)| (service.clone(), Wait::RoutesUnknown));
        let services = users.chain(unread.map(|service| (service, Wait::Unread))).chain(routed);
        let keys = services.flat_map(|(service, wait)| {
            let known = self.term.known.of(&service).iter();
            known.filter_map(move |known| Some((known.ptr_key()?, wait.clone())))
        });
        keys.collect()
    }

    /// Why this content of a record may not be written now; `None` as content: its removal.
    pub(super) fn gate(
        &self,
        record: &RecordKey,
        content: Option<Fingerprint>,
        now: Moment,
    ) -> Option<Wait> {
        if self.term.flights.carries(record) {
            return Some(Wait::InFlight);
        }
        self.term.retries.failure(record, content.as_ref(), now).map(Wait::of_failure)
    }

    /// The failures of records that are neither wanted nor there are past.
    fn clear_old_failures(&self, key: &ObjectKey, desired: &Desired, draft: &mut Draft) {
        // One that another Service is writing by now is no longer this one's, either.
        let old = self.term.retries.of(key).filter(|it| !self.concerns(key, it, desired, draft));
        let old: Vec<RecordKey> = old.cloned().collect();
        draft.outcome.cleared.extend(old);
    }

    /// Whether the Service wants the record, or has it.
    fn concerns(
        &self,
        key: &ObjectKey,
        record: &RecordKey,
        desired: &Desired,
        draft: &Draft,
    ) -> bool {
        match record {
            RecordKey::Registration(id) => {
                desired.registrations.contains_key(id)
                    || self.term.known.registration(key, id).is_some()
            }
            RecordKey::Ptr(ptr) => {
                self.holds_ptr(key, ptr, draft) || draft.outcome.released.contains(ptr)
            }
            RecordKey::NamespaceNode(_) => true,
        }
    }

    /// What is wrong with the Service.
    fn gather_problems(&self, key: &ObjectKey, desired: Desired, now: Moment, draft: &mut Draft) {
        let contested = self.term.contention.problems(key);
        let contested = contested.filter(|(it, _)| self.concerns(key, it, &desired, draft));
        let contested: Vec<Problem> = contested.map(|(_, problem)| problem).collect();
        let outcome = &mut draft.outcome;
        if desired.awaits == Some(Awaited::Nodes)
            && let Some(why) = self.cluster.node_watch.denied()
        {
            outcome.problems.insert(Problem::new(
                Reason::Denied,
                format!("node ports cannot be registered: {why}; what is registered stays"),
            ));
        }
        let balancer = awaited_balancer(&desired);
        if desired.awaits_balancer && self.term.balancers.until(key, &balancer, now).is_none() {
            outcome.problems.insert(no_balancer());
        }
        outcome.problems.extend(desired.problems);
        for name in &desired.unknown_names {
            if let Some(why) = self.term.names.failure(name) {
                outcome.problems.insert(unknown_name(name, why));
            }
        }
        let past: BTreeSet<&RecordKey> = outcome.cleared.iter().collect();
        let failed = self.term.retries.problems(key);
        let failed = failed.filter(|(record, _)| !past.contains(record));
        let failed: Vec<Problem> = failed.map(|(_, problem)| problem.clone()).collect();
        let missing = self.missing_in_catalog(key);
        // Both end with an answer.
        outcome.follow_up |= !failed.is_empty() || !missing.is_empty();
        outcome.problems.extend(failed.into_iter().chain(missing));
        outcome.problems.extend(contested);
        outcome.problems = bounded(std::mem::take(&mut outcome.problems));
    }

    /// Records that the agent could not pass on.
    fn missing_in_catalog(&self, key: &ObjectKey) -> Vec<Problem> {
        if self.term.missing_in_catalog.is_empty() {
            return Vec::new();
        }
        let missing = self.known_ids(key).filter(|id| self.term.missing_in_catalog.contains(id));
        let problem = |id: Box<str>| {
            Problem::new(
                Reason::NotInCatalog,
                format!(
                    "the agent has service ID {id} and the catalog does not: its servers refused \
                     it; look at the agent's log, most often its token lacks service write",
                ),
            )
        };
        missing.map(problem).collect()
    }
}

// === impl Draft ===

impl Draft {
    /// Has a PTR key read first, and what goes with it wait for that.
    pub(super) fn read(&mut self, ptr: Box<str>) {
        self.awaited.insert(ptr.clone());
        if self.reads.len() < self.step {
            self.reads.push(ptr);
        } else {
            self.later([RecordKey::Ptr(ptr)]);
        }
    }

    /// Has these writes sent together, now or with a later step.
    fn send(&mut self, writes: Vec<Write>) {
        if self.is_full() {
            self.later(writes.iter().map(Write::key));
        } else {
            self.groups.push(writes);
        }
    }

    fn is_full(&self) -> bool {
        self.groups.len() >= self.step
    }

    /// These records are left to a later step.
    fn later(&mut self, records: impl IntoIterator<Item = RecordKey>) {
        self.outcome.is_step = true;
        for record in records {
            self.wait(record, Wait::Turn);
        }
    }

    /// Notes why a record waits; the first reason counts.
    pub(super) fn wait(&mut self, record: RecordKey, wait: Wait) {
        self.waits.entry(record).or_insert(wait);
    }

    /// Whether any PTR record is to be written with its instance, or has to be read before.
    fn has_ptr(&self) -> bool {
        !self.puts.is_empty() || !self.awaited.is_empty()
    }

    fn awaits(&self, ptr: Option<&str>) -> bool {
        ptr.is_some_and(|ptr| self.awaited.contains(ptr))
    }

    pub(super) fn finish(mut self) -> Plan {
        self.outcome.follow_up |= !self.reads.is_empty() || self.outcome.is_step;
        let reads = self.reads.into_iter().map(Planned::ReadPtr);
        let actions = reads.chain(self.groups.into_iter().map(Planned::Write)).collect();
        let (waits, outcome) = (self.waits, Some(self.outcome));
        Plan { actions, waits, outcome, again: self.again, by_slice: false }
    }
}

/// As many problems as somebody reads: those of thousands of ports would hide everybody else's, in the
/// log as well as on a page.
fn bounded(problems: BTreeSet<Problem>) -> BTreeSet<Problem> {
    let mut counts: BTreeMap<Reason, usize> = BTreeMap::new();
    problems
        .into_iter()
        .map(|problem| {
            let count = counts.entry(problem.reason).or_default();
            *count += 1;
            match *count {
                ..=MAX_PROBLEMS => problem,
                // Without a number: each change of it would be told again.
                _ => Problem::new(problem.reason, "the Service has more of these; not shown"),
            }
        })
        .collect()
}

fn unknown_name(name: &str, why: &str) -> Problem {
    Problem::new(
        Reason::Failing,
        format!(
            "whether others hold the Consul name {name:?} cannot be read: {why}. Nothing is \
             registered under it until then; it is asked again every few seconds",
        ),
    )
}

fn ptr_key_of(address: &str) -> Option<String> {
    address.parse().ok().map(ptr_key)
}

/// The PTR key of the address that a service ID ends with.
fn ptr_key_of_id(id: &str) -> Option<String> {
    ptr_key_of(id.rsplit('_').next()?)
}

/// What the Service lacks while its load balancer has no address.
fn awaited_balancer(desired: &Desired) -> BTreeSet<Box<str>> {
    desired.awaits_balancer.then(|| "load balancer".into()).into_iter().collect()
}

fn no_balancer() -> Problem {
    let minutes = BALANCER_APPEARS.as_secs() / 60;
    Problem::new(
        Reason::Incomplete,
        format!(
            "its load balancer has had no address for {minutes} minutes (status.loadBalancer is empty), so \
             it is not registered; the Events of the Service (kubectl describe service) say what the \
             controller that makes load balancers waits for"
        ),
    )
}
