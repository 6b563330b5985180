//! The state of an import, as a machine without I/O: Services and slices as Kubernetes shows them
//! and what Consul answers go in; what to follow in Consul and what to write in Kubernetes come
//! out.
//!
//! Kept here:
//! - **Nothing is removed out of ignorance.** Endpoints change only by an answer that the edge takes
//!   for true; until a source has answered, and whatever it fails with later, what is there stays.
//!   Nothing is written before Services and slices are listed.
//! - **Only our own slices are touched**: those with our managed-by label that the Service owns, by
//!   its uid.
//! - **Only our own Services are written**: those that were made here, by their label, and with
//!   `--adopt-consul-k8s` those that consul-k8s made. One that is there is never made anew.
//! - **Equal means silent**, and of what differs only the slices that do are written; what adds
//!   endpoints is written before what removes them.
//! - **One bad object harms only itself**: what cannot be imported is a problem on its Service.
//!
//! Order of the calls: after any `handle_*` call, [`Importer::poll_action`] until it gives none, and
//! [`Importer::handle_timeout`] at [`Importer::next_timeout`].

mod action;
mod create;
mod creation;
mod failures;
mod plan;
mod report;
mod shown;
mod versions;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub use self::action::{Action, Failure, Namespace, Write};
use self::creation::Creation;
use self::failures::Failures;
pub use self::report::{Report, Summary};
use self::versions::Versions;
use crate::domain::Moment;
use crate::domain::import::addresses::Addresses;
use crate::domain::import::create::Create;
use crate::domain::import::instance::{Endpoints, Instance};
use crate::domain::import::layout::Slices;
use crate::domain::import::object::{OwnedSlice, Service};
use crate::domain::import::source::Source;
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::kube::store::Store;
use crate::domain::map::HashMap;
use crate::domain::problem::{Problem, Reason};

/// How long slices may mirror Endpoints that are gone: their controller takes less than a second,
/// and one that lags catches up within this.
const MIRRORED: Duration = Duration::from_secs(10);

/// Sources that the marked Services of one namespace may have together: each is a task and a share of
/// the reads, some kilobytes of the memory that all imports share.
const MAX_SOURCES_OF_NAMESPACE: usize = 2_000;

/// The state of an import.
#[derive(Debug)]
pub struct Importer {
    /// Whose registrations are not imported, because they come from this cluster.
    cluster: Option<ClusterName>,
    /// Where the operator lets an import lead.
    addresses: Addresses,
    services: Store<Service>,
    slices: Store<OwnedSlice>,
    /// The slices of each Service, by their names.
    slices_of: HashMap<ObjectKey, BTreeSet<Box<str>>>,
    sources: BTreeMap<Source, Followed>,
    /// Services with the label of consul8s for the other direction, which is the bridge's.
    exported: BTreeSet<ObjectKey>,
    /// How many sources the Services of each namespace have together.
    sources_in: HashMap<Box<str>, usize>,
    /// Services that have none because their namespace has too many.
    without_room: BTreeSet<ObjectKey>,
    /// What is known of each Service that asks for an import, or whose slices have to go.
    states: BTreeMap<ObjectKey, State>,
    dirty: BTreeSet<ObjectKey>,
    failures: Failures,
    /// When Services have to be planned again, by [`State::timer`].
    timers: BTreeSet<(Moment, ObjectKey)>,
    /// Which Services are made, if any.
    creation: Option<Creation>,
    service_versions: Versions,
    slice_versions: Versions,
    problems: BTreeMap<ObjectKey, Vec<Problem>>,
    actions: Vec<Action>,
    reports: VecDeque<Report>,
}

/// A Consul service that is followed.
#[derive(Debug, Default)]
struct Followed {
    /// The newest true answer.
    instances: Option<Arc<[Instance]>>,
    /// Why the newest answer was none.
    unknown: Option<Problem>,
    /// Who asks for it.
    users: BTreeSet<ObjectKey>,
    /// When the newest true answer was asked for.
    asked: Moment,
    /// Whether it is asked anew, so that a removal is confirmed.
    is_confirmed: bool,
}

/// What is under way for one Service.
#[derive(Debug, Default)]
struct State {
    sources: Vec<Source>,
    /// Writes that were not answered.
    in_flight: usize,
    /// What became of the Endpoints that consul8s may have left.
    old_endpoints: OldEndpoints,
    /// Whether one of them is the Service itself.
    is_writing_service: bool,
    /// When the Service is taken over from consul-k8s.
    adopt_at: Option<Moment>,
    /// When the Service is removed, if its Consul service is still gone.
    remove_at: Option<Moment>,
    /// The endpoints that were usable last, and since when none is any more.
    last_usable: Option<Endpoints>,
    unusable_since: Option<Moment>,
    /// Until when the last ones stay.
    keep_until: Option<Moment>,
    /// Whether it was looked what a former process had left.
    looked_back: bool,
    /// Until when slices that mirror deleted Endpoints may still be there; none: they are gone.
    mirrored_until: Option<Moment>,
    /// When it has to be planned again.
    timer: Option<Moment>,
    /// Whether a write of this round was made: told once all are answered.
    wrote: bool,
}

/// The Endpoints that consul8s may have left.
#[derive(Debug, Default)]
enum OldEndpoints {
    /// They were not looked at yet.
    #[default]
    Unknown,
    /// They were: whatever they are now is not asked again. A problem where that failed.
    Asked(Option<Problem>),
    /// They were, and are deleted: until then the slices that mirror them may still be there.
    Deleted(Moment),
}

// === impl Followed ===

impl Followed {
    fn is_used_in(&self, namespace: &str) -> bool {
        // They are sorted by namespace.
        let first = self.users.range(ObjectKey::new(namespace, "")..).next();
        first.is_some_and(|user| &*user.namespace == namespace)
    }
}

// === impl Importer ===

impl Importer {
    /// An import that has seen nothing yet. What `cluster` registered in Consul is left out.
    /// Services are made as `create` says.
    pub fn new(cluster: Option<ClusterName>, create: Option<Create>) -> Self {
        Self {
            cluster,
            addresses: Addresses::default(),
            failures: Failures::default(),
            timers: BTreeSet::new(),
            creation: create.map(Creation::new),
            service_versions: Versions::default(),
            slice_versions: Versions::default(),
            services: Store::default(),
            slices: Store::default(),
            slices_of: HashMap::default(),
            sources: BTreeMap::new(),
            exported: BTreeSet::new(),
            sources_in: HashMap::default(),
            without_room: BTreeSet::new(),
            states: BTreeMap::new(),
            dirty: BTreeSet::new(),
            problems: BTreeMap::new(),
            actions: Vec::new(),
            reports: VecDeque::new(),
        }
    }

    /// Leads only where the operator lets it.
    #[must_use]
    pub fn within(self, addresses: Addresses) -> Self {
        Self { addresses, ..self }
    }

    /// A list of Services begins.
    pub fn handle_services_list(&mut self) {
        self.service_versions.clear();
        self.services.list_started();
    }

    /// A Service as a watch shows it.
    pub fn handle_service(&mut self, key: ObjectKey, service: Service) {
        if self.service_versions.is_news(&key, &service.version) {
            self.take_service(key, service);
        }
    }

    fn take_service(&mut self, key: ObjectKey, service: Service) {
        if let Some(creation) = &mut self.creation {
            creation.note(&key, Some(&service));
        }
        if service.is_exported() {
            self.exported.insert(key.clone());
        } else {
            self.exported.remove(&key);
        }
        let replaced = self.services.get(&key).is_some_and(|before| before.uid != service.uid);
        if replaced {
            self.forget(&key);
        }
        if self.services.seen(key.clone(), service) {
            self.dirty.insert(key);
        }
    }

    /// A Service that cannot be read: what is there of it stays.
    pub fn handle_undecodable(&mut self, key: &ObjectKey, why: &str) {
        self.services.undecodable(key.clone(), why.to_owned());
        let problem = Problem::new(Reason::Undecodable, why);
        self.set_problems(key, vec![problem]);
    }

    /// A slice that cannot be read: what was known of it stays.
    pub fn handle_undecodable_slice(&mut self, key: &ObjectKey) {
        self.slices.undecodable(key.clone(), String::new());
    }

    /// A watch shows that a Service is gone. Its slices go with it: it owns them.
    pub fn handle_service_gone(&mut self, key: &ObjectKey) {
        if self.service_versions.is_news_of_deletion(key) {
            self.remove_service(key);
        }
    }

    fn remove_service(&mut self, key: &ObjectKey) {
        self.services.remove(key);
        self.exported.remove(key);
        self.forget(key);
        self.set_problems(key, Vec::new());
        if let Some(creation) = &mut self.creation {
            creation.note(key, None);
            self.dirty.insert(key.clone());
        }
    }

    /// All Services are listed.
    pub fn handle_services_listed(&mut self) {
        let first = !self.services.is_complete();
        for gone in self.services.list_completed() {
            self.remove_service(&gone);
        }
        if first {
            self.mark_all();
        }
    }

    /// A list of slices begins.
    pub fn handle_slices_list(&mut self) {
        self.slice_versions.clear();
        self.slices.list_started();
    }

    /// A slice as a watch shows it.
    pub fn handle_slice(&mut self, key: ObjectKey, slice: OwnedSlice) {
        if self.slice_versions.is_news(&key, &slice.version) {
            self.take_slice(key, slice);
        }
    }

    fn take_slice(&mut self, key: ObjectKey, slice: OwnedSlice) {
        let service = ObjectKey::new(key.namespace.clone(), slice.service.clone());
        if let Some(before) = self.slices.get(&key)
            && before.service != slice.service
        {
            self.remove_slice(&key);
        }
        self.slices_of.entry(service.clone()).or_default().insert(key.name.clone());
        if self.slices.seen(key, slice) {
            self.dirty.insert(service);
        }
    }

    /// A watch shows that a slice is gone.
    pub fn handle_slice_gone(&mut self, key: &ObjectKey) {
        if self.slice_versions.is_news_of_deletion(key) {
            self.remove_slice(key);
        }
    }

    fn remove_slice(&mut self, key: &ObjectKey) {
        let Some(slice) = self.slices.get(key) else { return };
        let service = ObjectKey::new(key.namespace.clone(), slice.service.clone());
        self.slices.remove(key);
        if let Some(names) = self.slices_of.get_mut(&service) {
            names.remove(&key.name);
            if names.is_empty() {
                self.slices_of.remove(&service);
            }
        }
        self.dirty.insert(service);
    }

    /// All slices are listed.
    pub fn handle_slices_listed(&mut self) {
        let first = !self.slices.is_complete();
        for gone in self.slices.list_completed() {
            self.remove_slice(&gone);
        }
        if first {
            self.mark_all();
        }
    }

    /// A true answer of Consul's to what was asked at that moment: these are all instances of the
    /// source. Gives whether they are others than before.
    pub fn handle_instances(
        &mut self,
        source: &Source,
        instances: Vec<Instance>,
        asked: Moment,
    ) -> bool {
        let Some(followed) = self.sources.get_mut(source) else { return false };
        let is_news =
            followed.unknown.take().is_some() | std::mem::take(&mut followed.is_confirmed);
        followed.asked = asked;
        let changes = followed.instances.as_deref() != Some(&*instances);
        if changes {
            followed.instances = Some(instances.into());
        }
        if changes || is_news {
            self.dirty.extend(followed.users.iter().cloned());
        }
        changes
    }

    /// A source gave no answer that tells what there is: what it gave before stays true.
    pub fn handle_unknown(&mut self, source: &Source, problem: Problem) {
        let Some(followed) = self.sources.get_mut(source) else { return };
        if followed.unknown.as_ref() != Some(&problem) {
            followed.unknown = Some(problem);
            self.dirty.extend(followed.users.iter().cloned());
        }
    }

    /// The answer to the write of a slice of a Service of this uid: the slice as the API server has
    /// it now, none after its deletion; an error is what the API server said.
    pub fn handle_slice_written(
        &mut self,
        service: &ObjectKey,
        uid: &str,
        name: &str,
        result: Result<Option<OwnedSlice>, Failure>,
        now: Moment,
    ) {
        let key = ObjectKey::new(service.namespace.clone(), name);
        let before = self.slices.get(&key).map(|it| it.version.clone());
        let result = result.map(|slice| {
            if let Some(slice) = slice {
                self.slice_versions.written(&key, &slice.version, before.as_ref());
                self.take_slice(key, slice);
            } else {
                if let Some(before) = before {
                    self.slice_versions.deleted(&key, &before);
                }
                self.remove_slice(&key);
            }
        });
        if self.services.get(service).is_none_or(|it| *it.uid != *uid) {
            // Of an earlier Service of this name, of which nothing is kept.
            return;
        }
        let Some(state) = self.states.get_mut(service) else { return };
        state.in_flight -= 1;
        state.wrote |= result.is_ok();
        if let Err(failure) = result {
            self.failures.failed(service, failure, now);
        }
        self.dirty.insert(service.clone());
    }

    /// The answer to [`Write::DeleteEndpoints`]: whether they were consul8s's, and are gone.
    pub fn handle_endpoints_deleted(
        &mut self,
        service: &ObjectKey,
        uid: &str,
        result: Result<bool, Failure>,
        now: Moment,
    ) {
        if self.services.get(service).is_none_or(|it| *it.uid != *uid) {
            return;
        }
        let Some(state) = self.states.get_mut(service) else { return };
        state.in_flight -= 1;
        state.old_endpoints = match result {
            Ok(true) => {
                self.reports.push_back(Report::EndpointsDeleted(service.clone()));
                OldEndpoints::Deleted(now + MIRRORED)
            }
            Ok(false) => OldEndpoints::Asked(None),
            // Nothing of ours waits for it: roles that were written for consul8s lack the right.
            Err(failure) => OldEndpoints::Asked(Some(failure.problem)),
        };
        self.dirty.insert(service.clone());
    }

    /// When [`Importer::handle_timeout`] has to be called at the latest.
    pub fn next_timeout(&self) -> Option<Moment> {
        let timer = self.timers.first().map(|(at, _)| *at);
        [timer, self.failures.next()].into_iter().flatten().min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Moment) {
        while self.timers.first().is_some_and(|(at, _)| *at <= now)
            && let Some((at, key)) = self.timers.pop_first()
        {
            if let Some(state) = self.states.get_mut(&key) {
                state.timer.take_if(|it| *it == at);
            }
            self.dirty.insert(key);
        }
        self.dirty.extend(self.failures.due(now));
    }

    /// What has to be done next.
    pub fn poll_action(&mut self, now: Moment) -> Option<Action> {
        while self.actions.is_empty() && self.is_listed() {
            let service = self.dirty.pop_first()?;
            self.plan(&service, now);
            self.actions.reverse();
        }
        self.actions.pop()
    }

    /// What people want to know next.
    pub fn poll_report(&mut self) -> Option<Report> {
        self.reports.pop_front()
    }

    /// Whether Services and slices are listed.
    pub fn is_listed(&self) -> bool {
        self.services.is_complete() && self.slices.is_complete()
    }

    /// Whether every source that is followed has answered, and nothing is left to be written.
    pub fn is_settled(&self) -> bool {
        self.is_listed()
            && self.dirty.is_empty()
            && self.unanswered().next().is_none()
            && self.creation.as_ref().is_none_or(Creation::is_settled)
            && self.failures.is_empty()
            && self
                .states
                .values()
                .all(|state| state.in_flight == 0 && state.mirrored_until.is_none())
    }

    /// The sources that have not answered yet.
    pub fn unanswered(&self) -> impl Iterator<Item = &Source> {
        let waits = |it: &Followed| it.instances.is_none() && it.unknown.is_none();
        self.sources.iter().filter(move |(_, it)| waits(it)).map(|(source, _)| source)
    }

    /// How many sources are followed.
    pub fn followed(&self) -> usize {
        self.sources.len()
    }

    /// The uid of a Service.
    pub fn uid(&self, key: &ObjectKey) -> Option<Arc<str>> {
        self.services.get(key).map(|service| Arc::clone(&service.uid))
    }

    fn mark_all(&mut self) {
        self.dirty.extend(self.services.iter_after(None).map(|(key, _)| key.clone()));
    }

    /// Forgets what is under way for a Service that is gone or asks for nothing.
    fn forget(&mut self, key: &ObjectKey) {
        self.failures.clear(key);
        self.without_room.remove(key);
        if let Some(state) = self.states.remove(key) {
            if let Some(at) = state.timer {
                self.timers.remove(&(at, key.clone()));
            }
            self.unfollow(key, state.sources);
        }
    }

    /// Plans the Service again at that moment.
    fn set_timer(&mut self, key: &ObjectKey, at: Option<Moment>) {
        let Some(state) = self.states.get_mut(key) else { return };
        if let Some(before) = std::mem::replace(&mut state.timer, at) {
            self.timers.remove(&(before, key.clone()));
        }
        if let Some(at) = at {
            self.timers.insert((at, key.clone()));
        }
    }

    /// Whether the namespace may have so many sources more: whoever writes its Services must not take
    /// the memory that all imports share.
    fn has_room(&self, key: &ObjectKey, wanted: &[Source]) -> bool {
        let has = self.states.get(key).map_or(0, |it| it.sources.len());
        let all = self.sources_in.get(&key.namespace).copied().unwrap_or(0);
        let created = self.creation.as_ref().map_or(0, |it| it.room_in(&key.namespace));
        wanted.len() <= has || all - has + wanted.len() <= MAX_SOURCES_OF_NAMESPACE + created
    }

    fn unfollow(&mut self, key: &ObjectKey, sources: Vec<Source>) {
        let mut left = self.sources_in.get(&key.namespace).copied().unwrap_or(0);
        left = left.saturating_sub(sources.len());
        if left > 0 {
            self.sources_in.insert(key.namespace.clone(), left);
        } else {
            self.sources_in.remove(&key.namespace);
        }
        if !sources.is_empty() && !self.without_room.is_empty() {
            let others = self.without_room.iter().filter(|it| it.namespace == key.namespace);
            self.dirty.extend(others.cloned());
        }
        for source in sources {
            let Some(followed) = self.sources.get_mut(&source) else { continue };
            followed.users.remove(key);
            let is_left = followed.is_used_in(&key.namespace);
            if followed.users.is_empty() {
                self.sources.remove(&source);
            }
            if !is_left {
                self.actions.push(Action::Unfollow(source, key.namespace.clone()));
            }
        }
    }

    fn follow(&mut self, key: &ObjectKey, wanted: &[Source]) {
        let before = self.states.get(key).map(|it| it.sources.clone()).unwrap_or_default();
        for source in wanted {
            let followed = self.sources.entry(source.clone()).or_default();
            if !followed.is_used_in(&key.namespace) {
                self.actions.push(Action::Follow(source.clone(), key.namespace.clone()));
            }
            followed.users.insert(key.clone());
        }
        *self.sources_in.entry(key.namespace.clone()).or_default() +=
            wanted.iter().filter(|it| !before.contains(it)).count();
        let (kept, gone): (Vec<_>, Vec<_>) =
            before.into_iter().partition(|source| wanted.contains(source));
        let state = self.states.entry(key.clone()).or_default();
        if kept.is_empty() && !gone.is_empty() {
            // What another service had last is nothing to keep.
            state.last_usable = None;
            state.looked_back = true;
        }
        state.sources = wanted.to_vec();
        self.unfollow(key, gone);
    }

    /// The slices of the Service that are ours.
    fn own_slices(&self, key: &ObjectKey) -> Slices {
        self.named_slices(key).map(|(name, it)| (name.clone(), it.slice.clone())).collect()
    }

    fn named_slices(&self, key: &ObjectKey) -> impl Iterator<Item = (&Box<str>, &OwnedSlice)> {
        let names = self.slices_of.get(key).into_iter().flatten();
        names.filter_map(move |name| {
            let slice = self.slices.get(&ObjectKey::new(key.namespace.clone(), name.clone()))?;
            slice.is_ours().then_some((name, slice))
        })
    }

    fn set_problems(&mut self, key: &ObjectKey, problems: Vec<Problem>) {
        let before = self.problems.remove(key).unwrap_or_default();
        for problem in problems.iter().filter(|it| !before.contains(it)) {
            self.reports.push_back(Report::Problem(key.clone(), problem.clone()));
        }
        for problem in before.iter().filter(|it| !problems.contains(it)) {
            self.reports.push_back(Report::Solved(key.clone(), problem.clone()));
        }
        if !problems.is_empty() {
            self.problems.insert(key.clone(), problems);
        }
    }
}

#[cfg(test)]
mod tests;
