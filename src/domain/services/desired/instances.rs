//! The instances of one Service: each address of each of its ports, in the mode that is asked for.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::domain::consul::meta::is_meta_value;
use crate::domain::consul::names::{lookup_form, resolves};
use crate::domain::consul::ptr::ptr_key;
use crate::domain::consul::record::{
    CLUSTER_META, Check, NAMESPACE_META, Registration, SERVICE_META, SOURCE, SOURCE_META,
};
use crate::domain::consul::registration_id::registration_id;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Endpoint, EndpointSlice, Node, Service, ServicePort};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::{AddressKind, PtrRank};
use crate::domain::services::desired::{
    AddressSource, Blocked, Desired, NO_PORT, Name, Standing, Wanted, WantedPort, WantedPtr,
    port_label,
};
use crate::domain::services::overrides::Overrides;
use crate::domain::services::settings::{HealthMode, PtrScope, Settings};
use crate::domain::text::excerpt;

/// Consul takes at most this many meta pairs.
pub(super) const MAX_META_PAIRS: usize = 64;
/// How many of the ports that endpoints have are shown where none is the wanted one: those of a
/// pod or two.
const MAX_PORTS_SHOWN: usize = 8;
/// Consul's weight of a service that asks for none.
const DEFAULT_WEIGHT: u16 = 1;

pub(super) struct Builder<'a> {
    settings: &'a Settings,
    key: &'a ObjectKey,
    service: &'a Service,
    overrides: &'a Overrides,
    addresses: AddressSource,
    out: Desired,
}

/// One address of a port with what is particular to it.
struct Target<'a> {
    address: Box<str>,
    port: u16,
    ready: bool,
    /// What the address is, where it may have a PTR record: a node's is not the Service's.
    kind: Option<AddressKind>,
    /// The endpoint, where it is one.
    endpoint: Option<&'a Endpoint>,
    /// Where it runs, as far as that can be told.
    node: Option<&'a str>,
    zone: Option<&'a str>,
}

/// An endpoint that serves a port, with its number there: what is registered of an endpoint is an
/// address and a port.
type Serving<'a> = (&'a Endpoint, u16);

// === impl Builder ===

impl<'a> Builder<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        key: &'a ObjectKey,
        service: &'a Service,
        wanted: &'a Wanted<'a>,
    ) -> Self {
        Self {
            settings,
            key,
            service,
            overrides: &wanted.overrides,
            addresses: wanted.addresses,
            out: Desired::default(),
        }
    }

    /// Adds the instances of one port under a name.
    pub(super) fn port<'s>(
        &mut self,
        name: &Name<'_>,
        port: &WantedPort<'_>,
        slices: impl Iterator<Item = &'s EndpointSlice> + Clone,
        nodes: impl Iterator<Item = (&'s str, &'s Node)>,
    ) {
        let problems = self.out.problems.len();
        let serving: Vec<Serving<'s>> = serving(slices.clone(), port.port).collect();
        if serving.is_empty() {
            self.note_unserved(port.port, slices);
        } else {
            self.out.served.insert(port_label(port.port).into());
        }
        let mut targets = match self.addresses {
            AddressSource::Endpoints => self.endpoint_targets(port, &serving),
            AddressSource::Nodes { with_endpoints } => {
                self.node_targets(port.port, &serving, nodes, with_endpoints)
            }
            AddressSource::ExternalName => alias(self.service.external_name.as_deref(), port.port),
            AddressSource::DomainName => alias(self.overrides.domain_name.as_deref(), port.port),
            AddressSource::ClusterIps => {
                let addresses = texts(&self.service.cluster_ips);
                self.address_targets(AddressKind::ClusterIp, addresses, port.port, &serving)
            }
            AddressSource::LoadBalancer => {
                let addresses = self.balancer_addresses();
                self.address_targets(AddressKind::LoadBalancer, addresses, port.port, &serving)
            }
            AddressSource::ExternalIps => {
                let addresses = texts(&self.service.external_ips);
                self.address_targets(AddressKind::ExternalIp, addresses, port.port, &serving)
            }
        };
        if let Some(number) = port.number {
            for target in &mut targets {
                target.port = number;
            }
        }
        let tags = self.tags(name, port.port);
        for target in targets {
            self.instance(name, port.port, tags.clone(), target);
        }
        if name.standing == Standing::Taken {
            // What is not to be registered lacks nothing.
            self.out.problems.truncate(problems);
        }
    }

    pub(super) fn finish(mut self) -> Desired {
        if self.out.unserved.is_empty() {
            self.out.served.clear();
        }
        self.out
    }

    /// The Service's own addresses of some kind.
    fn address_targets<'s>(
        &mut self,
        kind: AddressKind,
        addresses: Vec<Box<str>>,
        port: &ServicePort,
        serving: &[Serving<'s>],
    ) -> Vec<Target<'s>> {
        if addresses.is_empty() {
            self.lacks("an address that the Service does not have");
        }
        let ready = !self.routed(serving).is_empty();
        let target = |address| Target {
            address,
            port: port.port,
            ready,
            kind: Some(kind),
            endpoint: None,
            node: None,
            zone: None,
        };
        addresses.into_iter().map(target).collect()
    }

    /// Its load balancer's IP addresses, or else its host names: DNS cannot answer one name with
    /// addresses and with a CNAME.
    fn balancer_addresses(&mut self) -> Vec<Box<str>> {
        let all = self.service.load_balancer.iter().cloned();
        let (addresses, names): (Vec<_>, Vec<_>) =
            all.partition(|address| address.parse::<IpAddr>().is_ok());
        if addresses.is_empty() {
            return names;
        }
        if !names.is_empty() {
            self.problem(format!(
                "status.loadBalancer has IP addresses and host names; the host names are left out, \
                 since DNS cannot answer with both: {}",
                names.join(", "),
            ));
        }
        addresses
    }

    /// Each node that leads to the port: all of them, or those that kube-proxy finds an endpoint on;
    /// with `externalTrafficPolicy: Local` the others drop what comes (whatever `--health` says).
    ///
    /// A node leads to the port in the families of the Service's cluster IPs only.
    fn node_targets<'s>(
        &mut self,
        port: &ServicePort,
        serving: &[Serving<'s>],
        nodes: impl Iterator<Item = (&'s str, &'s Node)>,
        with_endpoints: bool,
    ) -> Vec<Target<'s>> {
        let Some(number) = port.node_port else {
            self.lacks(&format!("a node port, which port {} does not have", port_label(port)));
            return Vec::new();
        };
        // Where its endpoints are: the families on each node.
        let local: BTreeSet<(Option<&str>, bool)> = self
            .routed(serving)
            .into_iter()
            .map(|endpoint| (endpoint.node.as_deref(), endpoint.address.is_ipv4()))
            .collect();
        let choice = self.overrides.node_address.unwrap_or(self.settings.node_address);
        // Nodes that share an address are one instance: a ready one's, else the first's.
        let mut found: BTreeMap<IpAddr, (bool, Reverse<&str>, &Node)> = BTreeMap::new();
        let mut addressed = false;
        for (name, node) in nodes.filter(|(_, node)| !node.excluded) {
            for address in choice.choose(&node.addresses) {
                let family = address.is_ipv4();
                if !self.service.cluster_ips.iter().any(|ip| ip.is_ipv4() == family) {
                    continue;
                }
                addressed = true;
                if with_endpoints && !local.contains(&(Some(name), family)) {
                    continue;
                }
                let candidate = (node.ready, Reverse(name), node);
                let best = found.entry(address).or_insert(candidate);
                if (candidate.0, candidate.1) > (best.0, best.1) {
                    *best = candidate;
                }
            }
        }
        if !addressed {
            self.lacks(&format!(
                "nodes, of which none has a usable address ({choice}) of the Service's families",
            ));
        }
        let ready = !local.is_empty();
        found
            .into_iter()
            .map(|(address, (node_ready, Reverse(name), node))| Target {
                address: address.to_string().into(),
                port: number,
                ready: ready && node_ready,
                kind: None,
                endpoint: None,
                node: Some(name),
                zone: node.zone.as_deref(),
            })
            .collect()
    }

    /// Each endpoint that serves the port.
    fn endpoint_targets<'s>(
        &self,
        port: &WantedPort<'_>,
        serving: &[Serving<'s>],
    ) -> Vec<Target<'s>> {
        // One may stand in two slices while the controller moves it: ready wins.
        let mut found: BTreeMap<(IpAddr, u16), &Endpoint> = BTreeMap::new();
        for (endpoint, number) in serving {
            let number = port.number.unwrap_or(*number);
            let best = found.entry((endpoint.address, number)).or_insert(endpoint);
            if self.is_ready(endpoint) && !self.is_ready(best) {
                *best = endpoint;
            }
        }
        found
            .into_iter()
            .map(|((address, port), endpoint)| Target {
                address: address.to_string().into(),
                port,
                ready: self.is_ready(endpoint),
                kind: Some(AddressKind::Pod),
                endpoint: Some(endpoint),
                node: endpoint.node.as_deref(),
                zone: endpoint.zone.as_deref(),
            })
            .collect()
    }

    /// The endpoints that kube-proxy sends traffic to: those that are ready, or while none is,
    /// those that still serve while they terminate.
    fn routed<'s>(&self, serving: &[Serving<'s>]) -> Vec<&'s Endpoint> {
        let all = || serving.iter().map(|(endpoint, _)| *endpoint);
        let ready: Vec<_> = all().filter(|endpoint| self.is_ready(endpoint)).collect();
        if ready.is_empty() { all().filter(|endpoint| endpoint.draining).collect() } else { ready }
    }

    fn is_ready(&self, endpoint: &Endpoint) -> bool {
        endpoint.ready || self.service.publish_not_ready
    }

    /// No endpoint serves the port. Where some are ready, that is most likely a mistake.
    fn note_unserved<'s>(
        &mut self,
        port: &ServicePort,
        slices: impl Iterator<Item = &'s EndpointSlice>,
    ) {
        let has_ready = |slice: &&EndpointSlice| slice.endpoints.iter().any(|e| self.is_ready(e));
        let ready: Vec<&EndpointSlice> = slices.filter(has_ready).collect();
        if ready.is_empty() {
            return;
        }
        let show = |name: &str, protocol: &str, number: u16| {
            let name = if name.is_empty() { "(unnamed)" } else { name };
            format!("{name} {protocol} {number}")
        };
        let found: BTreeSet<String> = ready
            .iter()
            .flat_map(|slice| &slice.ports)
            .map(|port| show(&port.name, port.protocol.as_str(), port.port))
            .collect();
        let found = match found.len() {
            0 => "none".to_owned(),
            _ => found.into_iter().take(MAX_PORTS_SHOWN).collect::<Vec<_>>().join(", "),
        };
        let name = port.name.as_deref().unwrap_or_default();
        self.out.unserved.insert(port_label(port).into());
        self.problem(format!(
            "endpoints are ready, and none serves the port {}: expected a port of this name and \
             protocol in their EndpointSlices, found {found}",
            show(name, port.protocol.as_str(), port.port),
        ));
    }

    /// An annotation asks for what is not there. (The option asks every Service, and many
    /// rightly have none.)
    fn lacks(&mut self, what: &str) {
        if let Some(mode) = self.overrides.address {
            self.problem(format!("annotation address: {mode} asks for {what}"));
        }
    }

    fn problem(&mut self, message: String) {
        self.out.problems.push(Problem::new(Reason::Incomplete, message));
    }

    fn instance(
        &mut self,
        name: &Name<'_>,
        port: &ServicePort,
        mut tags: Vec<String>,
        target: Target<'_>,
    ) {
        let number = target.endpoint.map(|_| target.port);
        let (cluster, address) = (&self.settings.cluster, &target.address);
        let id = registration_id(cluster, self.key, &port_label(port), number, address);
        if name.standing == Standing::Taken {
            self.out.taken.insert(id);
            return;
        }
        let reverse = self.ptr_claim(name.text, &target);
        if let Some((key, rank)) = &reverse
            && name.standing != Standing::Blocked
        {
            // The primary port comes first: its name stands in the PTR record.
            let wanted = || WantedPtr { service: name.text.into(), rank: *rank };
            self.out.reverse.entry(key.clone()).or_insert_with(wanted);
        }
        if name.standing == Standing::Undecided {
            self.out.undecided.insert(id);
            let form = lookup_form(name.text);
            if !self.out.unknown_names.contains(&*form) {
                self.out.unknown_names.insert(form.into());
            }
            return;
        }
        let check = match (self.settings.health, target.ready) {
            (HealthMode::None, _) | (HealthMode::Unready, true) => Check::None,
            (HealthMode::Always, true) => Check::Passing,
            (_, false) => Check::Critical,
        };
        let hostname = target.endpoint.and_then(|endpoint| endpoint.hostname.as_deref());
        if let Some(tag) = hostname.filter(|tag| name.neighbours.allow(tag))
            && !tags.iter().any(|other| other == tag)
        {
            tags.push(tag.to_owned());
        }
        let registration = Registration {
            id: id.clone(),
            service: name.text.into(),
            namespace: self.key.namespace.clone(),
            tags,
            meta: self.meta(port, &target),
            address: target.address,
            port: target.port,
            weight: self.overrides.weight.unwrap_or(DEFAULT_WEIGHT),
            check,
        };
        if name.standing == Standing::Blocked {
            self.out.blocked.push(Blocked { registration, reverse });
        } else {
            self.out.registrations.insert(id, registration);
        }
    }

    /// The PTR key of an address, where it is to have a record, and how strong the claim to it is.
    fn ptr_claim(&self, name: &str, target: &Target<'_>) -> Option<(Box<str>, PtrRank)> {
        let kind = target.kind?;
        let wanted = match self.settings.reverse {
            PtrScope::All => true,
            PtrScope::Services => kind != AddressKind::Pod,
            PtrScope::Off => false,
        };
        let address = target.address.parse().ok().filter(|_| wanted && resolves(name))?;
        Some((ptr_key(address).into(), PtrRank { kind, created: self.service.created }))
    }

    /// The tags under a name: its namespace, port, protocol and what the annotation asks for, but
    /// for those that would pass for a neighbour's.
    fn tags(&mut self, name: &Name<'_>, port: &ServicePort) -> Vec<String> {
        let own = [port.name.as_deref(), port.protocol.tag()];
        let from_labels = self.settings.label_tags.iter();
        let mut asked: Vec<String> =
            from_labels.filter_map(|it| it.tag(&self.service.labels)).collect();
        asked.extend_from_slice(&self.overrides.tags);
        // The operator's own tags mean what they say, whoever else has the name.
        let mut tags = vec![self.key.namespace.to_string()];
        tags.extend(self.settings.tags.iter().filter(|tag| **tag != *self.key.namespace).cloned());
        let mut refused = Vec::new();
        for tag in own.into_iter().flatten().chain(asked.iter().map(String::as_str)) {
            if tags.iter().any(|other| other == tag) {
                continue;
            }
            if name.neighbours.allow(tag) {
                tags.push(tag.to_owned());
            } else if !name.neighbours.joined || asked.iter().any(|asked| asked == tag) {
                refused.push(format!("{:?}", excerpt(tag)));
            }
        }
        if !refused.is_empty() {
            let why = if name.neighbours.joined {
                "instances that do not come from Kubernetes have it too, and whoever asks for \
                 theirs by a tag must not get another"
            } else {
                "it is the namespace of another Service that wants the name"
            };
            let refused = refused.join(", ");
            self.problem(format!("under the name {:?} no tag {refused}: {why}", name.text));
        }
        tags
    }

    fn meta(&mut self, port: &ServicePort, target: &Target<'_>) -> BTreeMap<String, String> {
        let pod = target.endpoint.and_then(|endpoint| endpoint.pod.as_deref());
        let mut meta: BTreeMap<String, String> = [
            (CLUSTER_META, Some(self.settings.cluster.as_str())),
            (SOURCE_META, Some(SOURCE)),
            (NAMESPACE_META, Some(&*self.key.namespace)),
            (SERVICE_META, Some(&*self.key.name)),
            ("external-k8s-ref-kind", pod.map(|_| "Pod")),
            ("external-k8s-ref-name", pod),
            ("external-k8s-node-name", target.node),
            ("external-k8s-topology-zone", target.zone.filter(|zone| is_meta_value(zone))),
            ("external-k8s-protocol", port.protocol.tag()),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
        .collect();
        let ports = self.service.ports.iter().filter_map(|port| {
            Some((format!("port-{}", port.name.as_ref()?), port.port.to_string()))
        });
        let from_labels =
            self.settings.label_meta.iter().filter_map(|it| it.pair(&self.service.labels));
        let asked = self.overrides.meta.iter().map(|(key, value)| (key.clone(), value.clone()));
        let asked = asked.chain(from_labels);
        let mut left_out = 0;
        for (key, value) in asked.chain(ports) {
            if meta.len() < MAX_META_PAIRS || meta.contains_key(&key) {
                meta.entry(key).or_insert(value);
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 {
            // Without annotations it is the ports that are too many.
            let of_ports = self.overrides.meta.is_empty();
            self.out.problems.push(Problem::new(
                if of_ports { Reason::Incomplete } else { Reason::InvalidAnnotation },
                format!(
                    "Consul takes at most {MAX_META_PAIRS} meta pairs; {left_out} are left out"
                ),
            ));
        }
        meta
    }
}

/// The host that the Service is an alias for. Nobody watches over it, so it counts as ready.
fn alias<'s>(name: Option<&str>, port: &ServicePort) -> Vec<Target<'s>> {
    let name = name.map(|name| name.trim_end_matches('.')).filter(|name| !name.is_empty());
    let target = |name: &str| Target {
        address: name.into(),
        port: port.port,
        ready: true,
        kind: None,
        endpoint: None,
        node: None,
        zone: None,
    };
    name.into_iter().map(target).collect()
}

fn texts(addresses: &[IpAddr]) -> Vec<Box<str>> {
    addresses.iter().map(|address| address.to_string().into()).collect()
}

/// The endpoints that serve the port, as kube-proxy finds them: by its name and its protocol.
fn serving<'s>(
    slices: impl Iterator<Item = &'s EndpointSlice>,
    port: &ServicePort,
) -> impl Iterator<Item = Serving<'s>> {
    let name = port.name.as_deref().unwrap_or_default();
    slices.flat_map(move |slice| {
        let of_port = slice
            .ports
            .iter()
            .find(|it| *it.name == *name && it.protocol == port.protocol)
            .map(|it| it.port);
        // A Service without ports has all its endpoints, at none.
        let number = if *port == NO_PORT { Some(NO_PORT.port) } else { of_port };
        let endpoints = number.map(|_| slice.endpoints.iter()).into_iter().flatten();
        endpoints.zip(number.into_iter().cycle())
    })
}
