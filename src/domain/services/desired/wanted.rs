//! What a Service asks for: names, ports and the kind of address.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::domain::consul::names::{SENTINEL_NAME, lookup_form, resolves};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Protocol, Service, ServicePort, ServiceType};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::annotations::overrides;
use crate::domain::services::claims::{Class, Rank, Trust};
use crate::domain::services::desired::selection::selection;
use crate::domain::services::overrides::{NameOverride, Overrides};
use crate::domain::services::settings::{
    AddressMode, ExtraPorts, JoinExisting, NodePortNodes, OnConflict, Settings,
};
use crate::domain::text::excerpt;

/// The name of Consul's own servers in its catalog.
pub(super) const CONSULS_OWN_NAME: &str = "consul";
/// How many ports, host names or tags a problem shows: those of a pod or two.
pub(super) const MAX_SHOWN: usize = 8;
/// What a headless Service without ports has in the place of a port: addresses are registered with
/// port 0.
pub(super) static NO_PORT: ServicePort =
    ServicePort { name: None, port: 0, node_port: None, protocol: Protocol::Tcp };

/// The names that one Service wants, and what else its ports and annotations say.
#[derive(Debug)]
pub struct Wanted<'s> {
    /// Its annotations.
    pub overrides: Overrides,
    /// The ports to register, the primary one first; empty when it is not to be registered.
    pub ports: Vec<WantedPort<'s>>,
    /// Which addresses are registered.
    pub addresses: AddressSource,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Where the addresses of a Service's instances come from: what an [`AddressMode`] comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSource {
    /// `spec.clusterIPs`.
    ClusterIps,
    /// Its endpoints.
    Endpoints,
    /// The nodes that lead to it.
    Nodes {
        /// Only those that kube-proxy finds an endpoint on.
        with_endpoints: bool,
    },
    /// `status.loadBalancer`.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIps,
    /// `spec.externalName`.
    ExternalName,
    /// What annotation `domainName` of consul8s says.
    DomainName,
}

/// A port and the name that it wants.
#[derive(Debug)]
pub struct WantedPort<'s> {
    /// The Service's port.
    pub port: &'s ServicePort,
    /// The number to register whatever the port's is, where an annotation asks for one.
    pub number: Option<u16>,
    /// The Consul name.
    pub name: Box<str>,
    /// How strong the claim to the name is.
    pub class: Class,
    /// The name to take when another has it, and policies allow that.
    pub fallback: Option<Box<str>>,
}

/// The names that `service` wants.
pub fn wanted<'s>(settings: &Settings, key: &ObjectKey, service: &'s Service) -> Wanted<'s> {
    let mut wanted = Wanted {
        overrides: Overrides::default(),
        ports: Vec::new(),
        addresses: AddressSource::ClusterIps,
        problems: Vec::new(),
    };
    let selected;
    (selected, wanted.problems) = selection(settings, key, service);
    if selected {
        let (overrides, problems) = overrides(settings, key, service);
        wanted.addresses = match overrides.domain_name {
            Some(_) => AddressSource::DomainName,
            None => AddressSource::of(settings, overrides.address, service),
        };
        wanted.problems.extend(problems);
        wanted.problems.extend(left_out(&service.left_out));
        wanted.overrides = overrides;
        if wanted.overrides.name != NameOverride::Invalid {
            wanted.ports =
                wanted_ports(settings, key, service, &wanted.overrides, &mut wanted.problems);
        }
    }
    wanted
}

// === impl AddressSource ===

impl AddressSource {
    /// Which addresses of the Service are registered; `asked` is what its annotation says.
    fn of(settings: &Settings, asked: Option<AddressMode>, service: &Service) -> Self {
        let nodes = |with_endpoints: NodePortNodes| {
            let nodes = settings.node_port_nodes.unwrap_or(with_endpoints);
            let with_endpoints = nodes == NodePortNodes::WithEndpoints;
            Self::Nodes { with_endpoints: with_endpoints || service.external_traffic_local }
        };
        match asked.unwrap_or(settings.address) {
            _ if service.kind == ServiceType::ExternalName => Self::ExternalName,
            AddressMode::Auto if service.is_headless() => Self::Endpoints,
            AddressMode::Auto | AddressMode::ClusterIp => Self::ClusterIps,
            AddressMode::ByType if !service.external_ips.is_empty() => Self::ExternalIps,
            AddressMode::ByType => match service.kind {
                ServiceType::LoadBalancer => Self::LoadBalancer,
                ServiceType::NodePort => nodes(NodePortNodes::WithEndpoints),
                ServiceType::ClusterIp | ServiceType::ExternalName => Self::Endpoints,
            },
            AddressMode::Endpoints => Self::Endpoints,
            AddressMode::NodePort => nodes(NodePortNodes::All),
            AddressMode::LoadBalancer => Self::LoadBalancer,
            AddressMode::ExternalIp => Self::ExternalIps,
        }
    }
}

// === impl Wanted ===

impl Wanted<'_> {
    /// Whether what is registered follows from the nodes.
    pub fn uses_nodes(&self) -> bool {
        !self.ports.is_empty() && matches!(self.addresses, AddressSource::Nodes { .. })
    }

    /// Whose instances it may join under the name.
    pub fn join(&self, settings: &Settings, name: &str) -> JoinExisting {
        match self.overrides.join {
            // A share of what leads to Consul's own servers is for the operator alone to give.
            Some(true) if lookup_form(name) == CONSULS_OWN_NAME => settings.join_existing,
            Some(true) => JoinExisting::Always,
            Some(false) => JoinExisting::Never,
            None => settings.join_existing,
        }
    }

    /// Whether the addresses of what routes to the Service take the place of its own: not where an
    /// annotation says which those are. As with consul-k8s, by-type registers load balancers and nodes
    /// whatever routes to the Service.
    pub fn takes_routes(&self, settings: &Settings) -> bool {
        let by_itself = match self.addresses {
            AddressSource::ExternalName | AddressSource::DomainName => false,
            AddressSource::Endpoints => true,
            _ => settings.address != AddressMode::ByType,
        };
        by_itself && self.overrides.address.is_none()
    }

    /// The claims to names that follow, for [`NameClaims`](crate::domain::services::claims::NameClaims), in the form in which
    /// Consul looks them up.
    pub fn claims(
        &self,
        settings: &Settings,
        key: &ObjectKey,
        service: &Service,
    ) -> BTreeMap<Arc<str>, Rank> {
        let is_trusted = settings.annotations.trusted_namespaces.contains(&key.namespace);
        let trust = if is_trusted { Trust::Trusted } else { Trust::Usual };
        let rank = |trust, class| Rank { trust, class, created: service.created };
        let mut claims = BTreeMap::new();
        for port in &self.ports {
            if let Some(fallback) = &port.fallback {
                // Most often it is not needed: that takes no name from one whose own it is.
                let rank = || rank(Trust::Usual, Class::Suffixed);
                claims.entry(lookup_form(fallback).into()).or_insert_with(rank);
            }
        }
        for port in self.ports.iter().rev() {
            claims.insert(lookup_form(&port.name).into(), rank(trust, port.class));
        }
        claims
    }
}

/// What the edge could not take from an object.
pub fn left_out(sentences: &[Box<str>]) -> impl Iterator<Item = Problem> {
    sentences.iter().map(|sentence| Problem::new(Reason::Incomplete, &**sentence))
}

fn wanted_ports<'s>(
    settings: &Settings,
    key: &ObjectKey,
    service: &'s Service,
    overrides: &Overrides,
    problems: &mut Vec<Problem>,
) -> Vec<WantedPort<'s>> {
    let all = match &*service.ports {
        // An ExternalName Service has none either, and need not have ports.
        [] if service.is_headless() => std::slice::from_ref(&NO_PORT),
        all => all,
    };
    if all.is_empty() {
        problems.push(Problem::new(
            Reason::Incomplete,
            "expected at least one port, found none; the Service is not registered",
        ));
        return Vec::new();
    }
    let (primary, number) = primary_port(all, overrides, problems);
    let has_extra = settings.extra_ports == ExtraPorts::On && !overrides.only_primary_port;
    let further = all.iter().filter(|port| has_extra && !std::ptr::eq(*port, primary));
    let mut ports = Vec::new();
    for port in std::iter::once(primary).chain(further) {
        let Some((name, class)) = name_of_port(settings, key, overrides, port, primary) else {
            continue;
        };
        if lookup_form(&name) == CONSULS_OWN_NAME && class != Class::Annotated {
            problems.push(Problem::new(
                Reason::InvalidName,
                "the name \"consul\" is that of Consul's own servers; \
                 set the annotation kube-consul.io/service-name to register the Service",
            ));
            continue;
        }
        if lookup_form(&name) == SENTINEL_NAME {
            problems.push(Problem::new(
                Reason::InvalidName,
                format!(
                    "the name {SENTINEL_NAME:?} is that of the mark of kube-consul in an agent; \
                     expected another one; the port is not registered"
                ),
            ));
            continue;
        }
        if !resolves(&name) {
            problems.push(Problem::new(
                Reason::InvalidName,
                format!(
                    "{:?} is registered, but Consul's DNS cannot answer for it: expected at most 63 \
                     printable ASCII characters, no blank and none of . \" ' ( ) ; @ \\",
                    excerpt(&name)
                ),
            ));
        }
        let fallback = (settings.on_conflict == OnConflict::Suffix)
            .then(|| format!("{name}-{}", key.namespace).into_boxed_str());
        let number = number.filter(|_| std::ptr::eq(port, primary));
        ports.push(WantedPort { port, number, name: name.into(), class, fallback });
    }
    ports
}

/// The port that is the Service itself: the first, unless an annotation names another one. A
/// number that is none of the ports' is registered in the place of the first one's, as consul-k8s
/// does.
fn primary_port<'s>(
    ports: &'s [ServicePort],
    overrides: &Overrides,
    problems: &mut Vec<Problem>,
) -> (&'s ServicePort, Option<u16>) {
    let first = &ports[0];
    let Some(asked) = &overrides.port else { return (first, None) };
    let number = asked.parse::<u16>().ok().filter(|number| *number != 0);
    let by_name = ports.iter().find(|port| port.name.as_ref() == Some(asked));
    let by_number = || ports.iter().find(|port| Some(port.port) == number);
    match by_name.or_else(by_number) {
        Some(port) => (port, None),
        None if number.is_some() => (first, number),
        None => {
            let labels: Vec<String> = ports.iter().take(MAX_SHOWN).map(port_label).collect();
            problems.push(Problem::new(
                Reason::InvalidAnnotation,
                format!(
                    "invalid value {:?} for annotation kube-consul.io/service-port: must be one of the Service's \
                     ports ({}) or a number from 1 to 65535; using the first port",
                    excerpt(asked),
                    labels.join(", "),
                ),
            ));
            (first, None)
        }
    }
}

fn name_of_port(
    settings: &Settings,
    key: &ObjectKey,
    overrides: &Overrides,
    port: &ServicePort,
    primary: &ServicePort,
) -> Option<(String, Class)> {
    let is_primary = std::ptr::eq(port, primary);
    let from_template = |label: &str| settings.name_template.expand(&settings.cluster, key, label);
    match &overrides.name {
        NameOverride::Name(name) if is_primary => Some((name.to_string(), Class::Annotated)),
        NameOverride::Name(name) => {
            Some((format!("{name}-{}", port.name.as_ref()?), Class::Derived))
        }
        _ if is_primary || settings.name_template.tells_ports_apart() => {
            Some((from_template(&port_label(port)), Class::Own))
        }
        _ => {
            let primary = from_template(&port_label(primary));
            Some((format!("{primary}-{}", port.name.as_ref()?), Class::Derived))
        }
    }
}

/// The name by which a port is told from its siblings.
pub(super) fn port_label(port: &ServicePort) -> String {
    port.name.as_ref().map_or_else(|| port.port.to_string(), ToString::to_string)
}
