//! Services that are made for Consul services.
//!
//! Kept here:
//! - **A list of names proves no absence**: it says what to look at. Whether a Consul service is gone
//!   says a read of its instances, and once more after a while: see `HOLD` in `creation`.
//! - **A Service that is not ours is never touched**: one that was made here has our label, and with
//!   `--adopt-consul-k8s` one that consul-k8s made is taken over by one write, once the slices that
//!   it is to have are there.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::Importer;
use super::action::{Action, Failure, Write};
use super::creation::HOLD;
use super::report::Report;
use crate::domain::Moment;
use crate::domain::import::create::Wanted;
use crate::domain::import::instance::Instance;
use crate::domain::import::object::{Form, Service};
use crate::domain::import::source::{IMPORT, Import, Source};
use crate::domain::kube::names::ObjectKey;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::excerpt;

/// Between the slices of a Service that is taken over and its new type: what a DNS server takes to
/// see them.
const SETTLE: Duration = Duration::from_secs(2);

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
