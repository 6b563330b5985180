//! The instances of one Service: each address of each of its ports, in the mode that is asked for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::domain::consul::ptr::ptr_key;
use crate::domain::consul::record::{
    CLUSTER_META, Check, NAMESPACE_META, Registration, SERVICE_META, SOURCE, SOURCE_META,
};
use crate::domain::consul::registration_id::registration_id;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{
    Endpoint, EndpointPort, EndpointSlice, Node, Service, ServicePort,
};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::annotations::Overrides;
use crate::domain::services::desired::{Blocked, Desired, Standing, Wanted, port_label};
use crate::domain::services::settings::{AddressMode, HealthMode, PtrScope, Settings};

/// Consul takes at most this many meta pairs.
pub(super) const MAX_META_PAIRS: usize = 64;
/// Consul's weight of a service that asks for none.
const DEFAULT_WEIGHT: u16 = 1;

pub(super) struct Builder<'a> {
    settings: &'a Settings,
    key: &'a ObjectKey,
    service: &'a Service,
    overrides: &'a Overrides,
    mode: AddressMode,
    /// Whether the port at hand may be registered under its name.
    standing: Standing,
    out: Desired,
}

/// One address of a port with what is particular to it.
struct Target<'a> {
    address: Box<str>,
    port: u16,
    ready: bool,
    place: Place<'a>,
    /// The address, where it gets a PTR record.
    reverse: Option<IpAddr>,
}

/// Where an instance runs, as far as that can be told.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    pod: Option<&'a str>,
    node: Option<&'a str>,
    zone: Option<&'a str>,
}

// === impl Builder ===

impl<'a> Builder<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        key: &'a ObjectKey,
        service: &'a Service,
        wanted: &'a Wanted,
    ) -> Self {
        Self {
            settings,
            key,
            service,
            overrides: &wanted.overrides,
            mode: wanted.address,
            standing: Standing::Granted,
            out: Desired::default(),
        }
    }

    /// Adds the instances of one port under a name, of which it says whether it may be used.
    pub(super) fn port<'s>(
        &mut self,
        (name, standing): (&str, Standing),
        port: &ServicePort,
        slices: impl Iterator<Item = &'s EndpointSlice> + Clone,
        nodes: impl Iterator<Item = (&'s str, &'s Node)>,
    ) {
        self.standing = standing;
        let targets = match self.mode {
            AddressMode::Endpoints => self.endpoint_targets(port, slices),
            AddressMode::NodePort => self.node_targets(port, slices, nodes),
            _ => self.address_targets(port, slices),
        };
        for target in targets {
            self.instance(name, port, target);
        }
    }

    pub(super) fn finish(self) -> Desired {
        self.out
    }

    fn address_targets<'s>(
        &mut self,
        port: &ServicePort,
        slices: impl Iterator<Item = &'s EndpointSlice>,
    ) -> Vec<Target<'s>> {
        let texts = |addresses: &[IpAddr]| addresses.iter().map(|a| a.to_string().into()).collect();
        let addresses: Vec<Box<str>> = match self.mode {
            AddressMode::LoadBalancer => self.service.load_balancer.clone(),
            AddressMode::ExternalIp => texts(&self.service.external_ips),
            _ => texts(&self.service.cluster_ips),
        };
        if addresses.is_empty() {
            self.lacks("an address that the Service does not have");
        }
        let ready = self.ready_endpoints(port, slices).next().is_some();
        addresses
            .into_iter()
            .map(|address| Target {
                reverse: address.parse().ok(),
                address,
                port: port.port,
                ready,
                place: Place::default(),
            })
            .collect()
    }

    /// Each node that leads to the port: all of them, or with `externalTrafficPolicy: Local` those
    /// that have a ready endpoint, since the others drop what comes (whatever `--health` says).
    /// consul-k8s registers the nodes that have an endpoint, in both cases.
    ///
    /// A node leads to the port in the families of the Service's cluster IPs only. A node's
    /// address gets no PTR record: it is not the Service's.
    fn node_targets<'s>(
        &mut self,
        port: &ServicePort,
        slices: impl Iterator<Item = &'s EndpointSlice>,
        nodes: impl Iterator<Item = (&'s str, &'s Node)>,
    ) -> Vec<Target<'s>> {
        let Some(number) = port.node_port else {
            self.lacks(&format!("a node port, which port {} does not have", port_label(port)));
            return Vec::new();
        };
        // Where its ready endpoints are: the families on each node.
        let local: BTreeSet<(Option<&str>, bool)> = self
            .ready_endpoints(port, slices)
            .map(|endpoint| (endpoint.node.as_deref(), endpoint.address.is_ipv4()))
            .collect();
        // Nodes that share an address are one instance: a ready one's, else the first's.
        let mut found: BTreeMap<IpAddr, (bool, Reverse<&str>, &Node)> = BTreeMap::new();
        let mut addressed = false;
        for (name, node) in nodes {
            for address in &node.addresses {
                let family = address.is_ipv4();
                if !self.service.cluster_ips.iter().any(|ip| ip.is_ipv4() == family) {
                    continue;
                }
                addressed = true;
                if self.service.external_traffic_local && !local.contains(&(Some(name), family)) {
                    continue;
                }
                let candidate = (node.ready, Reverse(name), node);
                let best = found.entry(*address).or_insert(candidate);
                if (candidate.0, candidate.1) > (best.0, best.1) {
                    *best = candidate;
                }
            }
        }
        if !addressed {
            self.lacks("nodes, of which none has an address of the Service's families");
        }
        let ready = !local.is_empty();
        found
            .into_iter()
            .map(|(address, (node_ready, Reverse(name), node))| Target {
                address: address.to_string().into(),
                port: number,
                ready: ready && node_ready,
                place: Place { pod: None, node: Some(name), zone: node.zone.as_deref() },
                reverse: None,
            })
            .collect()
    }

    /// An annotation asks for what is not there. (The option asks every Service, and many
    /// rightly have none.)
    fn lacks(&mut self, what: &str) {
        if self.overrides.address.is_some() {
            let mode = self.mode;
            self.out.problems.push(Problem::new(
                Reason::Incomplete,
                format!("annotation address: {mode} asks for {what}"),
            ));
        }
    }

    fn endpoint_targets<'s>(
        &mut self,
        port: &ServicePort,
        slices: impl Iterator<Item = &'s EndpointSlice> + Clone,
    ) -> Vec<Target<'s>> {
        let label = port.name.as_deref().unwrap_or_default();
        let unnumbered = slices.clone().any(|slice| {
            slice.ports.iter().any(|port| &*port.name == label && port.port.is_none())
        });
        if unnumbered {
            self.out.problems.push(Problem::new(
                Reason::Incomplete,
                format!(
                    "endpoints of port {} have no port number; they are left out",
                    port_label(port)
                ),
            ));
        }
        // An endpoint may stand in two slices while the controller moves it: ready wins.
        let mut targets: BTreeMap<IpAddr, (bool, Reverse<u16>, &Endpoint)> = BTreeMap::new();
        for (number, endpoint) in serving(slices, label) {
            let ready = self.is_ready(endpoint);
            let found = (ready, Reverse(number), endpoint);
            let best = targets.entry(endpoint.address).or_insert(found);
            if (found.0, found.1) > (best.0, best.1) {
                *best = found;
            }
        }
        let pods_too = self.settings.reverse == PtrScope::All;
        targets
            .into_iter()
            .map(|(address, (ready, Reverse(port), endpoint))| Target {
                address: address.to_string().into(),
                port,
                ready,
                place: Place {
                    pod: endpoint.pod.as_deref(),
                    node: endpoint.node.as_deref(),
                    zone: endpoint.zone.as_deref(),
                },
                reverse: pods_too.then_some(address),
            })
            .collect()
    }

    fn ready_endpoints<'s>(
        &self,
        port: &ServicePort,
        slices: impl Iterator<Item = &'s EndpointSlice>,
    ) -> impl Iterator<Item = &'s Endpoint> {
        serving(slices, port.name.as_deref().unwrap_or_default())
            .map(|(_, endpoint)| endpoint)
            .filter(|endpoint| self.is_ready(endpoint))
    }

    fn is_ready(&self, endpoint: &Endpoint) -> bool {
        endpoint.ready || self.service.publish_not_ready
    }

    fn instance(&mut self, name: &str, port: &ServicePort, target: Target<'_>) {
        let reverse = target.reverse.filter(|_| self.settings.reverse != PtrScope::Off);
        let reverse: Option<Box<str>> = reverse.map(|address| ptr_key(address).into());
        if let Some(key) = &reverse
            && self.standing != Standing::Blocked
        {
            // The primary port comes first: its name stands in the PTR record.
            self.out.reverse.entry(key.clone()).or_insert_with(|| name.into());
        }
        let id =
            registration_id(&self.settings.cluster, self.key, &port_label(port), &target.address);
        if self.standing == Standing::Undecided {
            self.out.undecided.insert(id);
            return;
        }
        let check = match (self.settings.health, target.ready) {
            (HealthMode::None, _) | (HealthMode::Unready, true) => Check::None,
            (HealthMode::Always, true) => Check::Passing,
            (_, false) => Check::Critical,
        };
        let registration = Registration {
            id: id.clone(),
            service: name.into(),
            namespace: self.key.namespace.clone(),
            address: target.address,
            port: target.port,
            tags: self.tags(port),
            meta: self.meta(target.place),
            weight: self.overrides.weight.unwrap_or(DEFAULT_WEIGHT),
            check,
        };
        if self.standing == Standing::Blocked {
            self.out.blocked.push(Blocked { registration, reverse });
        } else {
            self.out.registrations.insert(id, registration);
        }
    }

    /// Namespace and port name, for nested DNS names, then what the annotation asks for.
    fn tags(&self, port: &ServicePort) -> Vec<String> {
        let own = [Some(&self.key.namespace), port.name.as_ref()];
        let mut seen = BTreeSet::new();
        own.into_iter()
            .flatten()
            .map(|tag| &**tag)
            .chain(self.overrides.tags.iter().map(String::as_str))
            .filter(|tag| seen.insert(*tag))
            .map(str::to_owned)
            .collect()
    }

    fn meta(&mut self, place: Place<'_>) -> BTreeMap<String, String> {
        let mut meta: BTreeMap<String, String> = [
            (CLUSTER_META, Some(self.settings.cluster.as_str())),
            (SOURCE_META, Some(SOURCE)),
            (NAMESPACE_META, Some(&*self.key.namespace)),
            (SERVICE_META, Some(&*self.key.name)),
            ("external-k8s-ref-kind", place.pod.map(|_| "Pod")),
            ("external-k8s-ref-name", place.pod),
            ("external-k8s-node-name", place.node),
            ("external-k8s-topology-zone", place.zone),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
        .collect();
        let ports = self.service.ports.iter().filter_map(|port| {
            Some((format!("port-{}", port.name.as_ref()?), port.port.to_string()))
        });
        let asked = self.overrides.meta.iter().map(|(key, value)| (key.clone(), value.clone()));
        let mut left_out = 0;
        for (key, value) in asked.chain(ports) {
            if meta.len() < MAX_META_PAIRS || meta.contains_key(&key) {
                meta.entry(key).or_insert(value);
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 {
            self.out.problems.push(Problem::new(
                Reason::InvalidAnnotation,
                format!(
                    "Consul takes at most {MAX_META_PAIRS} meta pairs; {left_out} are left out"
                ),
            ));
        }
        meta
    }
}

/// The endpoints that serve the port of this name, with its number there.
fn serving<'a>(
    slices: impl Iterator<Item = &'a EndpointSlice>,
    label: &str,
) -> impl Iterator<Item = (u16, &'a Endpoint)> {
    slices.flat_map(move |slice| {
        let number = |port: &EndpointPort| (&*port.name == label).then_some(port.port).flatten();
        slice
            .ports
            .iter()
            .find_map(number)
            .into_iter()
            .flat_map(|number| slice.endpoints.iter().map(move |endpoint| (number, endpoint)))
    })
}
