//! Services that are made for Consul services.
//!
//! Kept here:
//! - **A list of names proves no absence**: it says what to look at. Whether a Consul service is gone
//!   says a read of its instances, and once more after a while: see [`HOLD`].
//! - **A Service that is not ours is never touched**: one that was made here has our label, and with
//!   `--adopt-consul-k8s` one that consul-k8s made is taken over by one write, once the slices that
//!   it is to have are there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use super::{Action, Failure, Importer, Moment, Report, Write};
use crate::domain::consul::names::lookup_form;
use crate::domain::import::create::{Create, Wanted};
use crate::domain::import::instance::Instance;
use crate::domain::import::object::{Form, Service};
use crate::domain::import::source::{IMPORT, Import, Source};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::excerpt;

/// Between the answer that a Consul service is gone and the one that confirms it: what a rolling
/// restart of its last instance takes to register again.
const HOLD: Duration = Duration::from_secs(10);
/// The same where most Services would go at once: a Consul that lost its state is filled again by
/// its agents within minutes.
const MASS_HOLD: Duration = Duration::from_mins(5);
/// As few as that are no mass.
const FEW: usize = 2;
/// Services that are made at most: each costs a query or a share of the reads, and a kilobyte here
/// and in the API server. Whoever may register in Consul could otherwise fill both.
const MAX_CREATED: usize = 5_000;
/// Consul services that may want one Service: each but one is a problem, and whoever registers in
/// Consul makes as many as they like.
const MAX_RIVALS: usize = 4;
/// Between the slices of a Service that is taken over and its new type: what a DNS server takes to
/// see them.
const SETTLE: Duration = Duration::from_secs(2);

/// Which Services are made.
#[derive(Debug)]
pub(super) struct Creation {
    options: Create,
    /// Whether the names are known.
    is_listed: bool,
    /// By the name of the Service: the Consul services that want it, by the newest list.
    listed: BTreeMap<Box<str>, Vec<Box<str>>>,
    /// The Services that were made here.
    created: BTreeSet<ObjectKey>,
    /// Those whose Consul service is gone, and since when that is known.
    gone: BTreeMap<ObjectKey, Moment>,
}

// === impl Creation ===

impl Creation {
    pub(super) fn new(options: Create) -> Self {
        Self {
            options,
            is_listed: false,
            listed: BTreeMap::new(),
            created: BTreeSet::new(),
            gone: BTreeMap::new(),
        }
    }

    /// A Service as it is now; none: it is gone.
    pub(super) fn note(&mut self, key: &ObjectKey, service: Option<&Service>) {
        let is_created = service.is_some_and(Service::is_created);
        if is_created && key.namespace == self.options.namespace {
            self.created.insert(key.clone());
        } else if self.created.remove(key) {
            self.gone.remove(key);
        }
    }

    /// How many Services may be made in the namespace.
    pub(super) fn room_in(&self, namespace: &str) -> usize {
        if *self.options.namespace == *namespace { MAX_CREATED } else { 0 }
    }

    /// Whether the names are known, and no Service waits for its deletion.
    pub(super) fn is_settled(&self) -> bool {
        self.is_listed && self.gone.is_empty()
    }

    /// Takes the names that Consul has. Gives the Services of which something changed.
    fn list(&mut self, names: BTreeSet<Box<str>>) -> BTreeSet<ObjectKey> {
        self.is_listed = true;
        let mut listed: BTreeMap<Box<str>, Vec<Box<str>>> = BTreeMap::new();
        for name in names.into_iter().filter(|name| self.options.selects(name)) {
            let Some(service) = self.options.service_name(&name) else { continue };
            if listed.len() == MAX_CREATED && !listed.contains_key(&service) {
                continue;
            }
            let all = listed.entry(service.clone()).or_default();
            if all.iter().any(|it| lookup_form(it) == lookup_form(&name)) {
                continue;
            }
            if all.len() == MAX_RIVALS {
                if *name != *service {
                    continue;
                }
                all.pop();
            }
            all.push(name);
            // What has the very name comes first.
            all.sort_by_cached_key(|it| (**it != *service, it.clone()));
        }
        let before = std::mem::replace(&mut self.listed, listed);
        let names = before.keys().chain(self.listed.keys());
        let changed = names.filter(|it| before.get(*it) != self.listed.get(*it));
        changed.map(|it| ObjectKey::new(self.options.namespace.clone(), it.clone())).collect()
    }

    /// The Consul service for which the Service is, or is to be made.
    fn name_for(&self, key: &ObjectKey, service: Option<&Service>) -> Option<Box<str>> {
        if key.namespace != self.options.namespace {
            return None;
        }
        // Who has the Service keeps it until it is known to be gone.
        let holder = service
            .filter(|it| it.is_created())
            .and_then(|it| it.annotations.get(IMPORT))
            .filter(|it| self.options.service_name(it).is_some_and(|name| name == key.name));
        let first = || self.listed.get(&key.name)?.first();
        holder.or_else(first).cloned()
    }

    /// The Consul services that want the name of another's Service.
    fn losers(&self, key: &ObjectKey, name: &str) -> impl Iterator<Item = &Box<str>> {
        let all = self.listed.get(&key.name).filter(|_| key.namespace == self.options.namespace);
        let name = lookup_form(name).into_owned();
        all.into_iter().flatten().filter(move |it| *lookup_form(it) != name)
    }

    /// How long a removal is held.
    fn hold(&self) -> Duration {
        let is_mass = self.gone.len() > FEW && self.gone.len() * 2 > self.created.len();
        if is_mass { MASS_HOLD } else { HOLD }
    }
}

/// What is to be done for a Service that may have been made here.
pub(super) enum Step {
    /// It is no such Service: as any other.
    Other,
    /// It is done for now.
    Done,
    /// It is as it ought to be, or will be: its endpoints are next.
    Endpoints,
    /// It is to be taken over: first come its endpoints, as if it were this Service.
    Adopt(Box<Service>, Import),
}

// === impl Importer ===

impl Importer {
    /// The names of the services that Consul has. That one is missing proves nothing.
    pub fn handle_names(&mut self, names: BTreeSet<Box<str>>) {
        if let Some(creation) = &mut self.creation {
            self.dirty.extend(creation.list(names));
        }
    }

    /// How many Services there are that were made here.
    pub fn created_count(&self) -> usize {
        self.creation.as_ref().map_or(0, |it| it.created.len())
    }

    /// Whether Services are made, and the names for that are not known yet.
    pub fn waits_for_names(&self) -> bool {
        self.creation.as_ref().is_some_and(|it| !it.is_listed)
    }

    /// Plans the Service itself.
    pub(super) fn plan_service(
        &mut self,
        key: &ObjectKey,
        service: Option<&Service>,
        problems: &mut Vec<Problem>,
        now: Moment,
    ) -> Step {
        let Some(creation) = &self.creation else { return Step::Other };
        let Some(name) = creation.name_for(key, service) else {
            return Step::Other;
        };
        problems.extend(creation.losers(key, &name).map(|loser| collision(loser, &name)));
        let adopts = creation.options.adopts && creation.listed.contains_key(&key.name);
        let source = match service {
            Some(service) if service.is_going => return Step::Done,
            Some(service) if service.is_created() => creation.options.source(&name),
            // What has no instance but ours is not wanted: consul-k8s made it of our registrations.
            Some(service) if service.is_of_consul_k8s() && adopts => creation.options.source(&name),
            Some(_) => {
                if creation.listed.contains_key(&key.name) {
                    problems.push(taken(&name));
                }
                return Step::Other;
            }
            None => creation.options.source(&name),
        };
        self.follow(key, std::slice::from_ref(&source));
        let Some(instances) = self.sources.get(&source).and_then(|it| it.instances.clone()) else {
            problems.extend(self.sources.get(&source).and_then(|it| it.unknown.clone()));
            return if service.is_some_and(Service::is_created) {
                Step::Endpoints
            } else {
                Step::Done
            };
        };
        let Some(creation) = &mut self.creation else { return Step::Other };
        let takes_proxies = creation.options.takes_proxies();
        let cluster = self.cluster.as_ref();
        let is_wanted = |it: &&Instance| !it.is_of(cluster) && (takes_proxies || !it.is_proxy);
        let found: Vec<&Instance> = instances.iter().filter(is_wanted).collect();
        if found.is_empty() {
            return self.plan_gone(key, service, &source, problems, now);
        }
        creation.gone.remove(key);
        let wanted = match creation.options.wanted(&name, &found, service) {
            Ok(wanted) => wanted,
            Err(problem) => {
                problems.push(problem);
                return Step::Done;
            }
        };
        self.plan_wanted(key, service, wanted, problems, now)
    }

    fn plan_wanted(
        &mut self,
        key: &ObjectKey,
        service: Option<&Service>,
        wanted: Wanted,
        problems: &mut Vec<Problem>,
        now: Moment,
    ) -> Step {
        let waits = self.failures.waits(key, now);
        let Some(service) = service else {
            if !waits {
                self.write_service(key, Write::CreateService { service: key.clone(), wanted });
            }
            return Step::Done;
        };
        if wanted.is_met_by(service) {
            return match wanted.form {
                Form::ExternalName(_) => Step::Done,
                _ => Step::Endpoints,
            };
        }
        if service.form != wanted.form && !matches!(service.form, Form::ExternalName(_)) {
            // A cluster IP can neither be given to a Service nor taken from it.
            problems.push(other_form(key));
            return Step::Endpoints;
        }
        if !service.is_created() && !matches!(wanted.form, Form::ExternalName(_)) {
            let (import, _) = Import::of(&service.labels, &wanted.annotations);
            let Some(import) = import else { return Step::Done };
            let ports = wanted.ports();
            return Step::Adopt(Box::new(Service { ports, ..service.clone() }), import);
        }
        if !waits {
            self.update(key, service, wanted);
        }
        Step::Done
    }

    /// The slices of a Service of consul-k8s are there: it is taken over.
    pub(super) fn plan_adoption(&mut self, key: &ObjectKey, service: &Service, now: Moment) {
        let is_usable = self.usable_endpoints(key, &service.uid).is_some();
        let Some(state) = self.states.get_mut(key) else { return };
        if state.in_flight > 0 || !is_usable || self.failures.waits(key, now) {
            return;
        }
        let at = *state.adopt_at.get_or_insert(now + SETTLE);
        if at > now {
            return;
        }
        let Some(creation) = &self.creation else { return };
        let Some(name) = creation.name_for(key, Some(service)) else { return };
        let source = creation.options.source(&name);
        let instances = self.sources.get(&source).and_then(|it| it.instances.clone());
        let instances = instances.unwrap_or_default();
        let cluster = self.cluster.as_ref();
        let found: Vec<&Instance> = instances.iter().filter(|it| !it.is_of(cluster)).collect();
        if let Ok(wanted) = creation.options.wanted(&name, &found, Some(service)) {
            self.update(key, service, wanted);
        }
    }

    fn update(&mut self, key: &ObjectKey, service: &Service, wanted: Wanted) {
        let (uid, version) = (Arc::clone(&service.uid), service.version.clone());
        let service = key.clone();
        self.write_service(key, Write::UpdateService { service, uid, version, wanted });
    }

    fn write_service(&mut self, key: &ObjectKey, write: Write) {
        let state = self.states.entry(key.clone()).or_default();
        state.in_flight += 1;
        state.is_writing_service = true;
        self.actions.push(Action::Write(write));
    }

    /// The Consul service has no instance that is wanted: a Service that was made for it goes, once
    /// that is confirmed.
    fn plan_gone(
        &mut self,
        key: &ObjectKey,
        service: Option<&Service>,
        source: &Source,
        problems: &mut Vec<Problem>,
        now: Moment,
    ) -> Step {
        let Some(service) = service.filter(|it| it.is_created()) else { return Step::Done };
        let Some(creation) = &mut self.creation else { return Step::Done };
        let since = *creation.gone.entry(key.clone()).or_insert(now);
        let (due, asked) = (since + creation.hold(), self.sources.get(source).map(|it| it.asked));
        if due > now {
            if due > since + HOLD {
                problems.push(held(&source.service, due.saturating_sub(now)));
            }
            if let Some(state) = self.states.get_mut(key) {
                state.remove_at = Some(due);
            }
            return Step::Endpoints;
        }
        if asked.is_none_or(|asked| asked < due) {
            // What was said before the end of the time is not what is so after it.
            if let Some(followed) = self.sources.get_mut(source)
                && !std::mem::replace(&mut followed.is_confirmed, true)
            {
                self.actions.push(Action::Confirm(source.clone()));
            }
            return Step::Done;
        }
        if !self.failures.waits(key, now) {
            let (uid, version) = (Arc::clone(&service.uid), service.version.clone());
            let service = key.clone();
            self.write_service(key, Write::DeleteService { service, uid, version });
        }
        Step::Done
    }

    /// The answer to the write of a Service: how it is now, none after its deletion; an error is
    /// what the API server said.
    pub fn handle_service_written(
        &mut self,
        key: &ObjectKey,
        result: Result<Option<Service>, Failure>,
        now: Moment,
    ) {
        self.dirty.insert(key.clone());
        let Some(state) = self.states.get_mut(key).filter(|it| it.is_writing_service) else {
            // The Service went or was replaced in the meantime, and all that was known of it.
            return;
        };
        state.is_writing_service = false;
        state.in_flight -= 1;
        let before = self.services.get(key).cloned();
        let name = |service: &Service| service.annotations.get(IMPORT).cloned().unwrap_or_default();
        match (result, before) {
            (Ok(Some(service)), before) => {
                let report = match &before {
                    None => Some(Report::Created(key.clone(), name(&service))),
                    Some(it) if it.is_of_consul_k8s() && !it.is_created() => {
                        Some(Report::Adopted(key.clone(), name(&service)))
                    }
                    Some(_) => None,
                };
                self.reports.extend(report);
                let shown = before.as_ref().map(|it| &it.version);
                self.service_versions.written(key, &service.version, shown);
                self.take_service(key.clone(), service);
            }
            (Ok(None), Some(before)) => {
                self.reports.push_back(Report::Deleted(key.clone(), name(&before)));
                self.service_versions.deleted(key, &before.version);
                self.remove_service(key);
            }
            (Ok(None), None) => {}
            (Err(failure), _) => self.failures.failed(key, failure, now),
        }
    }
}

fn collision(loser: &str, name: &str) -> Problem {
    Problem::new(
        Reason::NameConflict,
        format!(
            "Consul services {:?} and {:?} want a Service of this name; it is the second's: rename one, \
             or import the first by a Service with annotation {IMPORT}",
            excerpt(loser),
            excerpt(name),
        ),
    )
}

fn taken(name: &str) -> Problem {
    Problem::new(
        Reason::NameConflict,
        format!(
            "expected no Service of this name, or one that was made for Consul service {:?}, found \
             another: it is not touched; take another --target-namespace or --name-prefix",
            excerpt(name),
        ),
    )
}

fn other_form(key: &ObjectKey) -> Problem {
    Problem::new(
        Reason::Incomplete,
        format!(
            "expected a Service as --create-as says, found one of another kind, which cannot be \
             changed; to have it made anew: kubectl delete service {} --namespace {}",
            key.name, key.namespace,
        ),
    )
}

fn held(name: &str, left: Duration) -> Problem {
    // Rounded to minutes: a problem that changes each second would be a new one each second.
    let minutes = left.as_secs().div_ceil(60);
    Problem::new(
        Reason::Incomplete,
        format!(
            "Consul service {:?} has no instance any more, as most others have none: the Service is \
             deleted if that is still so in {minutes} min",
            excerpt(name),
        ),
    )
}
