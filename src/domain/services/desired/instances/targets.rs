//! The addresses of a port, by where they are to come from, and which of them are ready.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Builder, Serving, Target};
use crate::domain::kube::object::{Endpoint, Node, ServicePort, ServiceType};
use crate::domain::services::claims::AddressKind;
use crate::domain::services::desired::wanted::{AddressSource, MAX_SHOWN, WantedPort, port_label};
use crate::domain::services::routes::Place;

// === impl Builder ===

impl Builder<'_> {
    /// Each address of the port with what is particular to it; `places`: where it is routed to, if it is.
    pub(super) fn targets<'s>(
        &mut self,
        port: &WantedPort<'_>,
        places: Vec<Place>,
        serving: &[Serving<'s>],
        nodes: impl Iterator<Item = (&'s str, &'s Node)>,
    ) -> Vec<Target<'s>> {
        match self.addresses {
            _ if !places.is_empty() => self.routed_targets(places, serving),
            AddressSource::Endpoints => self.endpoint_targets(port, serving),
            AddressSource::Nodes { with_endpoints } => {
                self.node_targets(port.port, serving, nodes, with_endpoints)
            }
            AddressSource::ExternalName => alias(self.service.external_name.as_deref(), port.port),
            AddressSource::DomainName => alias(self.overrides.domain_name.as_deref(), port.port),
            AddressSource::ClusterIps => {
                let addresses = texts(&self.service.cluster_ips);
                self.address_targets(AddressKind::ClusterIp, addresses, port.port, serving)
            }
            AddressSource::LoadBalancer => {
                let addresses = self.balancer_addresses();
                self.address_targets(AddressKind::LoadBalancer, addresses, port.port, serving)
            }
            AddressSource::ExternalIps => {
                let addresses = texts(&self.service.external_ips);
                self.address_targets(AddressKind::ExternalIp, addresses, port.port, serving)
            }
        }
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
            if kind == AddressKind::LoadBalancer && self.service.kind == ServiceType::LoadBalancer {
                self.out.awaits_balancer = true;
            } else {
                self.lacks("an address that the Service does not have");
            }
        }
        let ready = !self.routed(serving).is_empty();
        let admitted = self.admit(addresses.len());
        let target = |address| Target {
            address,
            port: port.port,
            ready,
            kind: Some(kind),
            endpoint: None,
            node: None,
            zone: None,
        };
        addresses.into_iter().take(admitted).map(target).collect()
    }

    /// Where Ingresses and Gateways lead to the port. Their addresses get no PTR record: those are of
    /// many Services.
    fn routed_targets<'s>(
        &mut self,
        places: Vec<Place>,
        serving: &[Serving<'s>],
    ) -> Vec<Target<'s>> {
        let ready = !self.routed(serving).is_empty();
        let admitted = self.admit(places.len());
        let target = |(address, port)| Target {
            address,
            port,
            ready,
            kind: None,
            endpoint: None,
            node: None,
            zone: None,
        };
        places.into_iter().take(admitted).map(target).collect()
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
                names.into_iter().take(MAX_SHOWN).collect::<Vec<_>>().join(", "),
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
        let admitted = self.admit(found.len());
        found
            .into_iter()
            .take(admitted)
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
        &mut self,
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
        self.by_slice &= found.len() == serving.len();
        let admitted = self.admit(found.len());
        found
            .into_iter()
            .take(admitted)
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

    /// An annotation asks for what is not there. (The option asks every Service, and many
    /// rightly have none.)
    fn lacks(&mut self, what: &str) {
        if let Some(mode) = self.overrides.address {
            self.problem(format!("annotation address: {mode} asks for {what}"));
        }
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
