//! What ought to be registered for one Service.

mod instances;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::instances::Builder;
use crate::domain::consul::names::lookup_form;
use crate::domain::consul::record::Registration;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{EndpointSlice, Node, Service, ServicePort, ServiceType};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::annotations::{NameOverride, Overrides, overrides};
use crate::domain::services::claims::{Class, Rank};
use crate::domain::services::settings::{AddressMode, OnConflict, Settings};
use crate::domain::text::excerpt;

/// The name of Consul's own servers in its catalog.
const CONSULS_OWN_NAME: &str = "consul";
/// Services with such a label mirror Consul services (consul-k8s, consul8s): sending them back
/// would make a loop.
const IMPORTED: [(&str, &str); 3] =
    [("consul", "true"), ("consul8s_source", "consul"), ("registration", "consul")];

/// The names that one Service wants, and what else its ports and annotations say.
#[derive(Debug)]
pub struct Wanted {
    /// Its annotations.
    pub overrides: Overrides,
    /// The ports to register, the primary one first; empty when it is not to be registered.
    pub ports: Vec<WantedPort>,
    /// Which addresses are registered; never [`AddressMode::Auto`].
    pub address: AddressMode,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// A port and the name that it wants.
#[derive(Debug)]
pub struct WantedPort {
    /// Its place among the Service's ports.
    pub index: usize,
    /// The Consul name.
    pub name: Box<str>,
    /// How strong the claim to the name is.
    pub class: Class,
    /// The name to take when another has it, and policies allow that.
    pub fallback: Option<Box<str>>,
}

/// Whether a Service may use a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may.
    Granted,
    /// The name is that Service's.
    Taken(ObjectKey),
    /// Others than a bridge hold instances under it.
    Foreign,
    /// So do they, but this cluster's registrations were there first and stay.
    ForeignToo,
    /// Not known yet.
    Unknown,
}

/// An instance that may not have the name that it wants.
#[derive(Debug)]
pub struct Blocked {
    /// The instance, under the name that it wants.
    pub registration: Registration,
    /// The PTR key of its address, where that has one.
    pub reverse: Option<Box<str>>,
}

/// What ought to be in Consul for one Service.
#[derive(Debug, Default)]
pub struct Desired {
    /// Its instances, by ID.
    pub registrations: BTreeMap<Box<str>, Registration>,
    /// Instances that wait until it is known whether others hold their name: neither written
    /// nor removed.
    pub undecided: BTreeSet<Box<str>>,
    /// Instances whose name others hold. What is registered of them already stays under the name
    /// that it has.
    pub blocked: Vec<Blocked>,
    /// Whether some stay so.
    pub keeps_former_name: bool,
    /// Its PTR keys, each with the Consul service name that the record would point to.
    pub reverse: BTreeMap<Box<str>, Box<str>>,
    /// Whether it cannot be told before the nodes are known: until then nothing is written, and
    /// nothing that is there removed.
    pub awaits_nodes: bool,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

// === impl Desired ===

impl Desired {
    /// Whether a registration of this ID is wanted, or may turn out to be.
    pub fn keeps(&self, id: &str) -> bool {
        self.awaits_nodes || self.registrations.contains_key(id) || self.undecided.contains(id)
    }

    /// How many instances are wanted, or may turn out to be.
    pub fn instances(&self) -> usize {
        self.registrations.len() + self.undecided.len()
    }
}

/// Whether the label of this key can change a registration.
pub fn is_read_label(settings: &Settings, key: &str) -> bool {
    IMPORTED.iter().any(|(read, _)| *read == key) || settings.selector.reads(key)
}

/// The names that `service` wants.
pub fn wanted(settings: &Settings, key: &ObjectKey, service: &Service) -> Wanted {
    let (overrides, mut problems) = overrides(service);
    let mut ports = Vec::new();
    if is_selected(settings, key, service, &overrides) {
        problems.extend(left_out(&service.left_out));
        if overrides.name != NameOverride::Invalid {
            ports = wanted_ports(settings, key, service, &overrides, &mut problems);
        }
    } else {
        problems.clear();
    }
    let address = match overrides.address.unwrap_or(settings.address) {
        AddressMode::Auto if service.cluster_ips.is_empty() => AddressMode::Endpoints,
        AddressMode::Auto => AddressMode::ClusterIp,
        mode => mode,
    };
    Wanted { overrides, ports, address, problems }
}

impl Wanted {
    /// Whether what is registered follows from the nodes.
    pub fn uses_nodes(&self) -> bool {
        !self.ports.is_empty() && self.address == AddressMode::NodePort
    }

    /// The claims to names that follow, for [`super::claims::NameClaims`], in the form in which
    /// Consul looks them up.
    pub fn claims(&self, service: &Service) -> BTreeMap<Arc<str>, Rank> {
        let rank = |class| Rank { class, created: service.created, uid: service.uid.clone() };
        let mut claims = BTreeMap::new();
        for port in &self.ports {
            if let Some(fallback) = &port.fallback {
                claims.entry(lookup_form(fallback).into()).or_insert_with(|| rank(Class::Suffixed));
            }
        }
        for port in self.ports.iter().rev() {
            claims.insert(lookup_form(&port.name).into(), rank(port.class));
        }
        claims
    }
}

/// What ought to be registered for `service` with these slices and nodes (by name; `None`: not
/// known); `permit` says which of the wanted names it may use.
pub fn desired<'a>(
    settings: &Settings,
    key: &ObjectKey,
    service: &'a Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    nodes: Option<impl Iterator<Item = (&'a str, &'a Node)> + Clone>,
    permit: &impl Fn(&str, bool) -> Permit,
) -> Desired {
    let mut wanted = wanted(settings, key, service);
    let mut problems = std::mem::take(&mut wanted.problems);
    if wanted.uses_nodes() && nodes.is_none() {
        return Desired { awaits_nodes: true, problems, ..Desired::default() };
    }
    let nodes = nodes.into_iter().flatten();
    let join = wanted.overrides.join.unwrap_or(settings.join_existing);
    let mut builder = Builder::new(settings, key, service, &wanted);
    for port in &wanted.ports {
        if let Some(named) = permitted_name(port, join, permit, &mut problems) {
            builder.port(named, &service.ports[port.index], slices.clone(), nodes.clone());
        }
    }
    let mut desired = builder.finish();
    if !wanted.ports.is_empty() {
        problems.extend(slices.flat_map(|slice| left_out(&slice.left_out)));
    }
    problems.append(&mut desired.problems);
    problems.sort();
    problems.dedup();
    desired.problems = problems;
    desired
}

/// What the edge could not take from an object.
pub fn left_out(sentences: &[Box<str>]) -> impl Iterator<Item = Problem> {
    sentences.iter().map(|sentence| Problem::new(Reason::Incomplete, &**sentence))
}

fn is_selected(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
    overrides: &Overrides,
) -> bool {
    let has_label =
        |(name, value): &(&str, &str)| service.labels.get(*name).is_some_and(|v| &**v == *value);
    service.kind != ServiceType::ExternalName
        && settings.includes_namespace(&key.namespace)
        && settings.selector.selects(&service.labels)
        && !IMPORTED.iter().any(has_label)
        && overrides.sync.unwrap_or(settings.default_sync)
}

fn wanted_ports(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
    overrides: &Overrides,
    problems: &mut Vec<Problem>,
) -> Vec<WantedPort> {
    if service.ports.is_empty() {
        problems.push(Problem::new(
            Reason::Incomplete,
            "expected at least one port, found none; the Service is not registered",
        ));
        return Vec::new();
    }
    let primary = primary_port(service, overrides, problems);
    let further = (0..service.ports.len()).filter(|index| *index != primary);
    let mut ports = Vec::new();
    for index in std::iter::once(primary).chain(further) {
        let Some((name, class)) = name_of_port(settings, key, service, overrides, index, primary)
        else {
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
        if let Some(problem) = dns_problem(&name) {
            problems.push(problem);
        }
        let fallback = (settings.on_conflict == OnConflict::Suffix)
            .then(|| format!("{name}-{}", key.namespace).into_boxed_str());
        ports.push(WantedPort { index, name: name.into(), class, fallback });
    }
    ports
}

/// The place of the port that is the Service itself: the annotated one, else the first.
fn primary_port(service: &Service, overrides: &Overrides, problems: &mut Vec<Problem>) -> usize {
    let Some(asked) = &overrides.port else { return 0 };
    let number = asked.parse::<u16>().ok();
    let by_name = service.ports.iter().position(|port| port.name.as_ref() == Some(asked));
    let by_number = || service.ports.iter().position(|port| Some(port.port) == number);
    by_name.or_else(by_number).unwrap_or_else(|| {
        let ports: Vec<String> = service.ports.iter().map(port_label).collect();
        problems.push(Problem::new(
            Reason::InvalidAnnotation,
            format!(
                "annotation service-port: expected one of the Service's ports ({}), found {:?}; \
                 the first is used",
                ports.join(", "),
                excerpt(asked),
            ),
        ));
        0
    })
}

fn name_of_port(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
    overrides: &Overrides,
    index: usize,
    primary: usize,
) -> Option<(String, Class)> {
    let port = &service.ports[index];
    let is_primary = index == primary;
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
            let primary = from_template(&port_label(&service.ports[primary]));
            Some((format!("{primary}-{}", port.name.as_ref()?), Class::Derived))
        }
    }
}

fn dns_problem(name: &str) -> Option<Problem> {
    let resolvable =
        name.len() <= 63 && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-');
    (!resolvable).then(|| {
        Problem::new(
            Reason::InvalidName,
            format!(
                "{:?} is registered, but DNS cannot carry it: expected at most 63 of A-Z, a-z, 0-9 and '-'",
                excerpt(name)
            ),
        )
    })
}

/// Whether a port may be registered under its name, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Granted,
    Undecided,
    Blocked,
}

/// The name that a wanted port is to have, if any, and whether it may.
fn permitted_name<'w>(
    wanted: &'w WantedPort,
    join: bool,
    permit: &impl Fn(&str, bool) -> Permit,
    problems: &mut Vec<Problem>,
) -> Option<(&'w str, Standing)> {
    let foreign = |name: &str, consequence: &str| {
        Problem::new(
            Reason::ForeignName,
            format!(
                "instances of {name:?} in Consul were not registered from Kubernetes; {consequence}. \
                 Set the annotation kube-consul.io/join: \"true\" to share the name, or choose another \
                 with kube-consul.io/service-name",
            ),
        )
    };
    let candidates = std::iter::once(&wanted.name).chain(&wanted.fallback);
    for name in candidates {
        match permit(name, join) {
            Permit::Granted => return Some((name, Standing::Granted)),
            Permit::Unknown => return Some((name, Standing::Undecided)),
            Permit::ForeignToo => {
                problems.push(foreign(name, "what is registered already stays"));
                return Some((name, Standing::Granted));
            }
            Permit::Foreign => {
                problems.push(foreign(name, "it is not registered under it"));
                return Some((name, Standing::Blocked));
            }
            Permit::Taken(holder) if wanted.fallback.as_ref().is_none_or(|last| last == name) => {
                problems.push(Problem::new(
                    Reason::NameConflict,
                    format!(
                        "the Consul name {name:?} is registered for Service {holder}; choose another with \
                         the annotation kube-consul.io/service-name, or see --on-conflict",
                    ),
                ));
            }
            Permit::Taken(_) => {}
        }
    }
    None
}

/// The name by which a port is told from its siblings.
fn port_label(port: &ServicePort) -> String {
    port.name.as_ref().map_or_else(|| port.port.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests;
