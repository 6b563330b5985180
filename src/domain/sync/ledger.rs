//! What Consul is known to have of ours: a fingerprint of each record, not a copy.

use std::net::IpAddr;
use std::sync::Arc;

use crate::domain::consul::names::lookup_form;
use crate::domain::consul::ptr::ptr_key;
use crate::domain::consul::record::Fingerprint;
use crate::domain::consul::registration_id::local_part;
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::map::HashMap;
use crate::domain::services::settings::RouteAddress;

/// Up to this many instances a Service's list has no room to spare.
const FEW_INSTANCES: usize = 16;

/// The known records.
#[derive(Debug)]
pub struct Ledger {
    cluster: ClusterName,
    /// The registrations of each Service, sorted by ID.
    registrations: HashMap<ObjectKey, Vec<KnownRegistration>>,
    /// PTR keys that are ours, or that we want and others have.
    ptr: HashMap<Box<str>, KnownPtr>,
    /// Who has registrations under each Consul name, in the form in which Consul looks it up. Sorted
    /// lists: nearly all have one element.
    names: HashMap<Arc<str>, Vec<Holding>>,
    /// Who began or ceased to have something under a name that is there for certain, or ceased to have
    /// anything there.
    moved: Vec<(Arc<str>, ObjectKey)>,
    registration_count: usize,
    /// How many of them have a critical check.
    critical_count: usize,
    /// Registrations of each namespace.
    namespaces: HashMap<Box<str>, usize>,
    /// How many of the PTR keys are ours.
    ptr_count: usize,
    /// Number of the resync that is under way or was the last.
    pub(super) resync: u32,
}

/// What a Service has under a name.
#[derive(Debug)]
struct Holding {
    service: ObjectKey,
    registrations: u32,
    /// How many of them are there for certain: no write without an answer may have taken them away, or
    /// not have made them.
    certain: u32,
}

/// A registration that Consul has.
#[derive(Clone, Debug)]
pub struct KnownRegistration {
    /// Its service ID, without what its Service tells of it: half of the room that it takes.
    local_id: Box<str>,
    /// The Consul service name that it was registered under.
    pub service: Arc<str>,
    /// Its content; `None` while a write that got no answer may have changed it.
    pub fingerprint: Option<Fingerprint>,
    /// Whether its check is critical.
    pub critical: bool,
    /// Whether it has to be written once more whatever it says: with a new token.
    pub resend: bool,
    /// The resync that showed it last, or during which it was written.
    pub(super) resync: u32,
}

/// What is known of a PTR key.
#[derive(Clone, Debug)]
pub struct KnownPtr {
    /// Whose it is and what it says.
    pub state: PtrState,
    /// ModifyIndex, for the next check-and-set; 0 when it does not exist.
    pub index: u64,
    /// The resync that showed it last, or during which it was written.
    pub(super) resync: u32,
}

/// Whose a PTR key is and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PtrState {
    /// Ours, with this content.
    Ours(Fingerprint),
    /// Another cluster's.
    OtherCluster,
    /// Nobody's that we know, with this value.
    Foreign(Box<str>),
    /// It has to be read before it can be written.
    Unknown,
}

// === impl KnownRegistration ===

impl KnownRegistration {
    /// The service ID; `service` is the Service that it was noted with.
    pub fn id(&self, cluster: &ClusterName, service: &ObjectKey) -> Box<str> {
        if service.is_orphaned() {
            return self.local_id.clone();
        }
        [cluster.as_str(), &service.namespace, &service.name, &self.local_id].join("_").into()
    }

    /// The PTR key of its address, if that is an IP address.
    pub(super) fn ptr_key(&self) -> Option<String> {
        self.local_id.rsplit('_').next()?.parse().ok().map(ptr_key)
    }

    /// Whether it may be where an Ingress or Gateway takes the traffic of its Service, by the form of its
    /// ID: it is no endpoint, and a host is no IP address.
    pub(super) fn may_be_routed(&self, at: RouteAddress) -> bool {
        let mut parts = self.local_id.splitn(3, '_').skip(1);
        let (address, more) = (parts.next().unwrap_or_default(), parts.next());
        more.is_none() && (at == RouteAddress::LoadBalancer || address.parse::<IpAddr>().is_err())
    }

    /// The label of the port that it was registered for.
    pub fn port(&self) -> &str {
        self.local_id.split('_').next().unwrap_or_default()
    }
}

// === impl KnownPtr ===

impl KnownPtr {
    fn is_ours(&self) -> bool {
        matches!(self.state, PtrState::Ours(_))
    }
}

// === impl Ledger ===

impl Ledger {
    /// Nothing is known yet of the records of this cluster.
    pub fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            registrations: HashMap::default(),
            ptr: HashMap::default(),
            names: HashMap::default(),
            moved: Vec::new(),
            registration_count: 0,
            critical_count: 0,
            namespaces: HashMap::default(),
            ptr_count: 0,
            resync: 0,
        }
    }

    /// The registrations of a Service, by ID.
    pub fn of(&self, service: &ObjectKey) -> &[KnownRegistration] {
        self.registrations.get(service).map_or(&[], Vec::as_slice)
    }

    /// One registration of a Service.
    pub fn registration(&self, service: &ObjectKey, id: &str) -> Option<&KnownRegistration> {
        let known = self.of(service);
        place(known, self.local_id(service, id)).ok().map(|place| &known[place])
    }

    /// Notes that Consul has this registration with this content. The ID is one of the Service's
    /// (or of none, and noted with nobody).
    pub fn put(
        &mut self,
        service: &ObjectKey,
        id: &str,
        name: &str,
        fingerprint: Option<Fingerprint>,
        critical: bool,
    ) {
        let before = self.registration(service, id);
        let before = before.map(|it| (Arc::clone(&it.service), it.fingerprint.is_some()));
        let is_certain = fingerprint.is_some();
        let is_same =
            |(had, was_certain): &(Arc<str>, bool)| **had == *name && *was_certain == is_certain;
        let (name, left) = match before {
            Some(same) if is_same(&same) => (same.0, None),
            before => (self.count_name(service, name, is_certain), before),
        };
        let resync = self.resync;
        let known = KnownRegistration {
            local_id: self.local_id(service, id).into(),
            service: name,
            fingerprint,
            critical,
            resend: false,
            resync,
        };
        self.critical_count += usize::from(critical);
        let all = self.registrations.entry(service.clone()).or_default();
        match place(all, &known.local_id) {
            Ok(place) => {
                let before = std::mem::replace(&mut all[place], known);
                self.critical_count -= usize::from(before.critical);
            }
            Err(place) => {
                if all.len() < FEW_INSTANCES {
                    all.reserve_exact(1);
                }
                all.insert(place, known);
                *self.namespaces.entry(service.namespace.clone()).or_default() += 1;
            }
        }
        if let Some((name, was_certain)) = left {
            self.uncount_name(service, &name, was_certain);
        }
    }

    /// Notes that Consul no longer has the registration.
    pub fn deregistered(&mut self, service: &ObjectKey, id: &str) {
        let Ok(place) = place(self.of(service), self.local_id(service, id)) else { return };
        let Some(all) = self.registrations.get_mut(service) else { return };
        let before = all.remove(place);
        self.critical_count -= usize::from(before.critical);
        if all.is_empty() {
            self.registrations.remove(service);
        }
        self.uncount_name(service, &before.service, before.fingerprint.is_some());
        if let Some(count) = self.namespaces.get_mut(&service.namespace) {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&service.namespace);
            }
        }
    }

    /// The PTR key's state.
    pub fn ptr(&self, key: &str) -> Option<&KnownPtr> {
        self.ptr.get(key)
    }

    /// Notes the PTR key's state.
    pub fn put_ptr(&mut self, key: &str, state: PtrState, index: u64) {
        let known = KnownPtr { state, index, resync: self.resync };
        self.ptr_count += usize::from(known.is_ours());
        let before = self.ptr.insert(key.into(), known);
        self.ptr_count -= usize::from(before.is_some_and(|before| before.is_ours()));
    }

    /// Notes that the PTR key does not exist, or is nothing to us.
    pub fn forget_ptr(&mut self, key: &str) {
        let before = self.ptr.remove(key);
        self.ptr_count -= usize::from(before.is_some_and(|before| before.is_ours()));
    }

    /// Every Service that has registrations, with them.
    pub fn services(&self) -> impl Iterator<Item = (&ObjectKey, &[KnownRegistration])> {
        self.registrations.iter().map(|(key, known)| (key, known.as_slice()))
    }

    /// Puts the keys that `shared` gives in the place of equal ones, so that there is one of each in
    /// memory.
    pub fn share_keys(&mut self, shared: impl Fn(&ObjectKey) -> Option<ObjectKey>) {
        let own = std::mem::take(&mut self.registrations).into_iter();
        self.registrations = own.map(|(key, known)| (shared(&key).unwrap_or(key), known)).collect();
        for holding in self.names.values_mut().flatten() {
            if let Some(key) = shared(&holding.service) {
                holding.service = key;
            }
        }
    }

    /// All PTR keys.
    pub fn ptr_keys(&self) -> impl Iterator<Item = (&Box<str>, &KnownPtr)> {
        self.ptr.iter()
    }

    /// How many Services have registrations; the records of none count as one more.
    pub fn service_count(&self) -> usize {
        self.registrations.len()
    }

    /// How many registrations there are.
    pub fn registration_count(&self) -> usize {
        self.registration_count
    }

    /// How many registrations have a critical check.
    pub fn critical_count(&self) -> usize {
        self.critical_count
    }

    /// How many PTR records are ours.
    pub fn ptr_count(&self) -> usize {
        self.ptr_count
    }

    /// How many registrations there are of one namespace's Services.
    pub fn count_in(&self, namespace: &str) -> usize {
        self.namespaces.get(namespace).copied().unwrap_or(0)
    }

    /// The Consul names that registrations are under, as [`lookup_form`] has them.
    pub fn names(&self) -> impl Iterator<Item = Arc<str>> {
        self.names.keys().cloned()
    }

    /// Whether any registration is under this Consul name, however it is written.
    pub fn holds_name(&self, name: &str) -> bool {
        self.names.contains_key(&*lookup_form(name))
    }

    /// Who has registrations under this Consul name, which is as [`lookup_form`] has it.
    pub(super) fn holders(&self, name: &str) -> impl Iterator<Item = &ObjectKey> {
        self.names.get(name).into_iter().flatten().map(|holding| &holding.service)
    }

    /// Those of [`Self::holders`] of which something is there for certain.
    pub(super) fn certain_holders(&self, name: &str) -> impl Iterator<Item = &ObjectKey> {
        let holdings = self.names.get(name).into_iter().flatten();
        holdings.filter(|holding| holding.certain > 0).map(|holding| &holding.service)
    }

    /// Whether the Service is one of [`Self::certain_holders`].
    pub(super) fn certainly_holds(&self, service: &ObjectKey, name: &str) -> bool {
        let holdings = self.names.get(name).map_or(&[][..], Vec::as_slice);
        let place = holdings.binary_search_by(|holding| holding.service.cmp(service));
        place.is_ok_and(|place| holdings[place].certain > 0)
    }

    /// Who began, or ceased, to be one of [`Self::certain_holders`] of which name since the last call, or
    /// ceased to be one of [`Self::holders`].
    pub(super) fn take_moved(&mut self) -> Vec<(Arc<str>, ObjectKey)> {
        std::mem::take(&mut self.moved)
    }

    /// Has every registration written once more, whatever it says.
    pub fn resend_registrations(&mut self) {
        for known in self.registrations.values_mut().flatten() {
            known.resend = true;
        }
    }

    /// Has one registration written once more, whatever it says.
    pub fn resend(&mut self, service: &ObjectKey, id: &str) {
        let place = place(self.of(service), self.local_id(service, id));
        if let (Ok(place), Some(all)) = (place, self.registrations.get_mut(service)) {
            all[place].resend = true;
        }
    }

    /// What is kept of an ID.
    fn local_id<'i>(&self, service: &ObjectKey, id: &'i str) -> &'i str {
        let local = local_part(&self.cluster, service, id);
        debug_assert!(local.is_some() != service.is_orphaned(), "{id} is not one of {service}");
        local.unwrap_or(id)
    }

    fn count_name(&mut self, service: &ObjectKey, name: &str, is_certain: bool) -> Arc<str> {
        let form = lookup_form(name);
        let known = self.names.get_key_value(&*form).map(|(form, _)| Arc::clone(form));
        let form = known.unwrap_or_else(|| form.into());
        let holdings = self.names.entry(Arc::clone(&form)).or_default();
        let place = holdings.binary_search_by(|holding| holding.service.cmp(service));
        let place = place.unwrap_or_else(|place| {
            if holdings.len() < FEW_INSTANCES {
                holdings.reserve_exact(1);
            }
            let holding = Holding { service: service.clone(), registrations: 0, certain: 0 };
            holdings.insert(place, holding);
            place
        });
        let holding = &mut holdings[place];
        holding.registrations += 1;
        holding.certain += u32::from(is_certain);
        if is_certain && holding.certain == 1 {
            self.moved.push((Arc::clone(&form), service.clone()));
        }
        self.registration_count += 1;
        if *form == *name { form } else { name.into() }
    }

    fn uncount_name(&mut self, service: &ObjectKey, name: &str, was_certain: bool) {
        let form = lookup_form(name);
        let Some((form, _)) = self.names.get_key_value(&*form) else { return };
        let form = Arc::clone(form);
        let Some(holdings) = self.names.get_mut(&form) else { return };
        let place = holdings.binary_search_by(|holding| holding.service.cmp(service));
        let Ok(place) = place else { return };
        let holding = &mut holdings[place];
        holding.registrations -= 1;
        holding.certain -= u32::from(was_certain);
        let is_gone = holding.registrations == 0;
        let has_left = is_gone || was_certain && holding.certain == 0;
        if is_gone {
            holdings.remove(place);
        }
        if holdings.is_empty() {
            self.names.remove(&form);
        }
        if has_left {
            self.moved.push((form, service.clone()));
        }
        self.registration_count -= 1;
    }
}

/// Where the registration is in a sorted list, or has to go.
fn place(all: &[KnownRegistration], local_id: &str) -> Result<usize, usize> {
    all.binary_search_by(|other| (*other.local_id).cmp(local_id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consul::record::PtrRecord;

    #[test]
    fn names_are_counted_by_their_registrations() {
        let cluster: ClusterName = "eu".parse().unwrap();
        let mut ledger = Ledger::new(cluster.clone());
        let key = ObjectKey::new("ns", "web");
        let (a, b) = ("eu_ns_web_http_10.0.0.1", "eu_ns_web_http_10.0.0.2");
        ledger.put(&key, b, "web", None, false);
        ledger.put(&key, a, "web", None, false);
        ledger.put(&key, a, "api", None, true);
        assert!(ledger.holds_name("web") && ledger.holds_name("api"));
        assert_eq!((ledger.registration_count(), ledger.critical_count()), (2, 1));
        let ids: Vec<_> = ledger.of(&key).iter().map(|known| known.id(&cluster, &key)).collect();
        assert_eq!(ids, [a.into(), b.into()]);
        ledger.deregistered(&key, b);
        ledger.deregistered(&key, "eu_ns_web_http_10.0.0.3");
        assert!(!ledger.holds_name("web"));
        ledger.deregistered(&key, a);
        assert_eq!((ledger.registration_count(), ledger.critical_count()), (0, 0));
        assert!(ledger.of(&key).is_empty());
    }

    #[test]
    fn who_has_a_name_for_certain_is_known_and_told_once() {
        let cluster: ClusterName = "eu".parse().unwrap();
        let mut ledger = Ledger::new(cluster);
        let (one, two) = (ObjectKey::new("ns", "one"), ObjectKey::new("ns", "two"));
        let content = PtrRecord { key: "".into(), value: "".into() };
        let content = Some(content.fingerprint());
        let (a, b) = ("eu_ns_one_http_10.0.0.1", "eu_ns_one_http_10.0.0.2");
        let moved = |ledger: &mut Ledger| -> Vec<String> {
            let moved = ledger.take_moved().into_iter();
            moved.map(|(name, service)| format!("{name} {}", service.name)).collect()
        };
        // Nobody knows whether it is there.
        ledger.put(&one, a, "Web", None, false);
        assert!(ledger.holders("web").eq([&one]) && !ledger.certainly_holds(&one, "web"));
        assert_eq!(moved(&mut ledger), [""; 0]);
        ledger.put(&one, a, "web", content, false);
        ledger.put(&one, b, "web", content, false);
        ledger.put(&two, "eu_ns_two_http_10.0.0.3", "WEB", content, false);
        assert!(ledger.certain_holders("web").eq([&one, &two]));
        assert_eq!(moved(&mut ledger), ["web one", "web two"]);
        ledger.put(&one, a, "web", content, true);
        ledger.deregistered(&one, a);
        assert_eq!(moved(&mut ledger), [""; 0], "there is another one");
        ledger.put(&one, b, "api", content, true);
        assert!(ledger.holders("web").eq([&two]) && ledger.certainly_holds(&one, "api"));
        assert_eq!(moved(&mut ledger), ["api one", "web one"]);
        ledger.put(&one, b, "api", None, true);
        assert_eq!(moved(&mut ledger), ["api one"]);
        ledger.deregistered(&one, b);
        assert!(ledger.holders("api").next().is_none());
        assert_eq!(moved(&mut ledger), ["api one"], "what may have been there is not");
        assert_eq!(ledger.registration_count(), 1);
    }

    #[test]
    fn the_id_of_what_is_nobodys_is_kept_whole() {
        let cluster: ClusterName = "eu".parse().unwrap();
        let mut ledger = Ledger::new(cluster.clone());
        let nobody = ObjectKey::orphaned();
        ledger.put(&nobody, "eu_odd", "web", None, false);
        assert_eq!(&*ledger.of(&nobody)[0].id(&cluster, &nobody), "eu_odd");
        assert!(ledger.registration(&nobody, "eu_odd").is_some());
    }

    #[test]
    fn a_shared_key_takes_the_place_of_an_equal_one() {
        let mut ledger = Ledger::new("eu".parse().unwrap());
        let (own, kept) = (ObjectKey::new("ns", "web"), ObjectKey::new("ns", "web"));
        ledger.put(&own, "eu_ns_web_http_10.0.0.1", "web", None, false);
        ledger.put(&ObjectKey::new("ns", "api"), "eu_ns_api_http_10.0.0.2", "api", None, false);
        ledger.share_keys(|key| (*key == kept).then(|| kept.clone()));
        assert!(ledger.services().any(|(key, _)| std::ptr::eq(&raw const **key, &raw const *kept)));
        assert!(!ledger.services().any(|(key, _)| std::ptr::eq(&raw const **key, &raw const *own)));
        assert_eq!((ledger.of(&own).len(), ledger.services().count()), (1, 2));
    }
}
