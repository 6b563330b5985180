//! What planning looks at, and what ought to be registered in view of it.

use std::borrow::Cow;
use std::sync::Arc;

use crate::domain::consul::names::{Holder, Holders, lookup_form};
use crate::domain::consul::ptr::{ConsulDomain, ptr_address, ptr_key};
use crate::domain::consul::record::Registration;
use crate::domain::consul::registration_id::local_part;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{EndpointSlice, Kind, Service};
use crate::domain::kube::routes::MAX_ROUTES;
use crate::domain::map::HashSet;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::AddressKind;
use crate::domain::services::desired::{
    Awaited, Blocked, Desired, Neighbours, Permit, WantedPtr, desired, wanted,
};
use crate::domain::services::settings::{JoinExisting, Settings};
use crate::domain::sync::cluster::Cluster;
use crate::domain::sync::config::{Config, Target};
use crate::domain::sync::ledger::KnownRegistration;
use crate::domain::sync::names::Others;
use crate::domain::sync::term::Term;
use crate::domain::text::excerpt;

/// What planning looks at.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) settings: &'a Settings,
    pub(super) target: Target,
    /// How many groups of writes, and how many reads, one plan has at most.
    pub(super) step: usize,
    /// What PTR records end with, if that is known.
    pub(super) domain: Option<&'a ConsulDomain>,
    pub(super) cluster: &'a Cluster,
    pub(super) term: &'a Term,
}

// === impl View ===

impl<'a> View<'a> {
    /// `domain`: what PTR records end with, if that is known.
    pub(super) fn new(
        config: &'a Config,
        domain: Option<&'a ConsulDomain>,
        cluster: &'a Cluster,
        term: &'a Term,
    ) -> Self {
        Self {
            settings: &config.settings,
            target: config.target,
            step: config.capacity.step(),
            domain,
            cluster,
            term,
        }
    }
}

impl View<'_> {
    /// What ought to be registered for the Service; slices and nodes of which `absent` is true
    /// are left out.
    pub(super) fn desired(
        &self,
        key: &ObjectKey,
        absent: &impl Fn(Kind, &ObjectKey) -> bool,
    ) -> Desired {
        let cache = &self.cluster.cache;
        let Some(service) = cache.service(key) else { return Desired::default() };
        let slices = cache.slices_where(key, |slice| !absent(Kind::EndpointSlice, slice));
        let slices: Vec<EndpointSlice> = slices.map(|(_, slice)| slice).collect();
        let nodes = cache.nodes().map(|nodes| {
            nodes.filter(|(name, _)| !absent(Kind::Node, &ObjectKey::new("", &**name)))
        });
        let (routes, are_cut) = cache.routes(key, absent);
        // Collected once: a Service may have thousands of ports, each with its name.
        let known = self.term.known.of(key).chunk_by(|a, b| Arc::ptr_eq(&a.service, &b.service));
        let names: HashSet<&str> = known.map(|of_name| &*of_name[0].service).collect();
        let held = names.into_iter().map(lookup_form).collect();
        let permit = |name: &str, join| self.permit(key, name, &held, join);
        let slices_of = slices.iter();
        let mut desired = desired(self.settings, key, service, slices_of, nodes, &routes, &permit);
        desired.problems.extend(are_cut.then(too_many_routes));
        self.keep_former_names(key, service, &held, &mut desired);
        self.leave_out_consuls_own(&mut desired);
        if self.settings.never_removes() {
            self.keep_names(key, &mut desired);
        }
        if cache.lacks_routes() && self.may_lose_routed(key, service, &desired) {
            desired.problems.push(no_routes_known());
            let problems = desired.problems;
            return Desired { awaits: Some(Awaited::Routes), problems, ..Desired::default() };
        }
        // A node's address gets no PTR record: it is no Service's.
        desired.reverse.retain(|key, it| match it.rank.kind {
            AddressKind::ClusterIp | AddressKind::Pod => true,
            AddressKind::LoadBalancer | AddressKind::ExternalIp => {
                ptr_address(key).is_none_or(|address| !cache.is_nodes(address))
            }
        });
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        for endpoint in endpoints.filter(|endpoint| cache.is_on_host_network(endpoint)) {
            let key = ptr_key(endpoint.address);
            if desired.reverse.get(&*key).is_some_and(|it| it.rank.kind == AddressKind::Pod) {
                desired.reverse.remove(&*key);
            }
        }
        desired
    }

    /// Whether something registered may be where routes lead, of which nothing is known, and is not what
    /// the Service wants without them.
    fn may_lose_routed(&self, key: &ObjectKey, service: &Service, desired: &Desired) -> bool {
        let wanted = wanted(self.settings, key, service);
        let id = |known: &KnownRegistration| known.id(&self.settings.cluster, key);
        let mut known = self.term.known.of(key).iter();
        !wanted.ports.is_empty()
            && wanted.takes_routes(self.settings)
            && known
                .any(|it| it.may_be_routed(self.settings.route_address) && !desired.keeps(&id(it)))
    }

    /// A host name of Consul's own domain leads back into Consul: maybe to the very name that it is
    /// registered under.
    fn leave_out_consuls_own(&self, desired: &mut Desired) {
        let Some(domain) = self.domain else { return };
        desired.blocked.retain(|it| !domain.contains(&it.registration.address));
        let mut found = None;
        desired.registrations.retain(|_, it| {
            let leads_back = domain.contains(&it.address);
            if leads_back {
                found = Some(it.address.clone());
            }
            !leads_back
        });
        if let Some(name) = found {
            let message = format!(
                "expected an address outside of Consul's DNS domain {}, found {:?}: not registered",
                domain.domain,
                excerpt(&name),
            );
            desired.problems.push(Problem::new(Reason::InvalidAddress, message));
        }
    }

    /// Instances of a Service whose new name others hold stay under the name that its instances of
    /// the same port have, new ones too, for as long as they may have that: nothing is removed for a move
    /// that cannot be made.
    fn keep_former_names(
        &self,
        key: &ObjectKey,
        service: &Service,
        held: &HashSet<Cow<'_, str>>,
        desired: &mut Desired,
    ) {
        if desired.blocked.is_empty() {
            return;
        }
        let wanted = wanted(self.settings, key, service);
        desired.blocked.retain_mut(|Blocked { registration, reverse }| {
            let id = &registration.id;
            let known = self.term.known.registration(key, id).or_else(|| {
                let port = local_part(&self.settings.cluster, key, id)?.split('_').next();
                self.term.known.of(key).iter().find(|known| Some(known.port()) == port)
            });
            let Some(known) = known else { return true };
            let join = wanted.join(self.settings, &known.service);
            match self.permit(key, &known.service, held, join) {
                Permit::Granted(_) | Permit::ForeignToo(..) | Permit::Unknown => {}
                Permit::Foreign(_) | Permit::Taken(_) | Permit::Kept(..) => return true,
            }
            let registration =
                Registration { service: (&*known.service).into(), ..registration.clone() };
            if let Some((reverse, rank)) = reverse.take() {
                let service = registration.service.clone();
                desired.reverse.entry(reverse).or_insert(WantedPtr { service, rank });
            }
            desired.registrations.insert(registration.id.clone(), registration);
            false
        });
    }

    /// An instance is registered once, under one name: another one would take it from there. So what
    /// is never removed keeps its name, together with its PTR record.
    fn keep_names(&self, key: &ObjectKey, desired: &mut Desired) {
        for registration in desired.registrations.values_mut() {
            let Some(known) = self.term.known.registration(key, &registration.id) else { continue };
            if lookup_form(&known.service) == lookup_form(&registration.service) {
                continue;
            }
            let address = registration.address.parse().ok();
            if let Some(ptr) = address.and_then(|it| desired.reverse.get_mut(&*ptr_key(it)))
                && ptr.service == registration.service
            {
                ptr.service = (&*known.service).into();
            }
            registration.service = (&*known.service).into();
            desired.keep_their_name.insert(registration.id.clone());
        }
    }

    /// `held`: the names that the Service has, as they are looked up.
    fn permit(
        &self,
        service: &ObjectKey,
        name: &str,
        held: &HashSet<Cow<'_, str>>,
        join: JoinExisting,
    ) -> Permit {
        let name = &*lookup_form(name);
        let claims = &self.cluster.name_claims;
        // By this Service: another one's right to the name is no reason to join it.
        let held = held.contains(name) || self.term.names.has_lost(name, service);
        if let Some(permit) = self.precedence(service, name, held) {
            return permit;
        }
        let neighbours = |joined| {
            let others = claims.claimants(name).filter(|other| other != service);
            let namespaces = others.map(|it| it.namespace.clone()).collect();
            Neighbours { joined, namespaces, first: self.comes_first(service, name) }
        };
        let is_held = self.term.known.holds_name(name);
        let Holders { others, ours } = match self.term.names.others(name, is_held) {
            // Which tags one that is joined may have depends on who the others are.
            Others::NotListed if held && join != JoinExisting::Always => {
                return Permit::Granted(neighbours(false));
            }
            Others::NotListed | Others::NotLookedUp => return Permit::Unknown,
            Others::Nobody => return Permit::Granted(neighbours(false)),
            Others::Hold(holders) => holders,
        };
        // What is never removed is no less there for coming second.
        let came_second = self.term.names.came_second(name) && !self.settings.never_removes();
        if join.joins(others) {
            Permit::Granted(neighbours(*others == Holder::Other))
        } else if (held || (*ours && !is_held)) && !came_second {
            // What is ours and of no Service here is another replica's.
            Permit::ForeignToo(others.clone(), neighbours(false))
        } else {
            Permit::Foreign(others.clone())
        }
    }
}

fn no_routes_known() -> Problem {
    Problem::new(
        Reason::Incomplete,
        "expected the API server to serve HTTPRoutes and Gateways (gateway.networking.k8s.io/v1), as \
         --gateway asks for, found that it does not: whether the Service is still reached through one \
         is unknown, so what is registered stays as it is; install the Gateway API, or leave --gateway out",
    )
}

fn too_many_routes() -> Problem {
    Problem::new(
        Reason::TooLarge,
        format!(
            "expected at most {MAX_ROUTES} hosts of Ingresses and HTTPRoutes that lead to the \
             Service, found more: the others are left out"
        ),
    )
}
