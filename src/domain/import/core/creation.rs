//! Which Services are made for Consul services.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::consul::names::lookup_form;
use crate::domain::import::create::Create;
use crate::domain::import::object::Service;
use crate::domain::import::source::IMPORT;
use crate::domain::kube::names::ObjectKey;

/// Between the answer that a Consul service is gone and the one that confirms it: what a rolling
/// restart of its last instance takes to register again.
pub(super) const HOLD: Duration = Duration::from_secs(10);
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
/// Which Services are made.
#[derive(Debug)]
pub(super) struct Creation {
    pub(super) options: Create,
    /// Whether the names are known.
    pub(super) is_listed: bool,
    /// By the name of the Service: the Consul services that want it, by the newest list.
    pub(super) listed: BTreeMap<Box<str>, Vec<Box<str>>>,
    /// The Services that were made here.
    pub(super) created: BTreeSet<ObjectKey>,
    /// Those whose Consul service is gone, and since when that is known.
    pub(super) gone: BTreeMap<ObjectKey, Moment>,
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
    pub(super) fn list(&mut self, names: BTreeSet<Box<str>>) -> BTreeSet<ObjectKey> {
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
    pub(super) fn name_for(&self, key: &ObjectKey, service: Option<&Service>) -> Option<Box<str>> {
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
    pub(super) fn losers(&self, key: &ObjectKey, name: &str) -> impl Iterator<Item = &Box<str>> {
        let all = self.listed.get(&key.name).filter(|_| key.namespace == self.options.namespace);
        let name = lookup_form(name).into_owned();
        all.into_iter().flatten().filter(move |it| *lookup_form(it) != name)
    }

    /// How long a removal is held.
    pub(super) fn hold(&self) -> Duration {
        let is_mass = self.gone.len() > FEW && self.gone.len() * 2 > self.created.len();
        if is_mass { MASS_HOLD } else { HOLD }
    }
}
