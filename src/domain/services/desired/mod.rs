//! What ought to be registered for one Service.

mod instances;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::instances::{Builder, MAX_SHOWN};
use crate::domain::consul::names::{
    Holder, SENTINEL_NAME, is_name_in_consul, lookup_form, resolves,
};
use crate::domain::consul::record::Registration;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{
    EndpointSlice, IMPORT_ANNOTATION, Node, Protocol, Service, ServicePort, ServiceType,
};
use crate::domain::kube::route::Route;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::annotations::{is_consul8s, overrides, sync};
use crate::domain::services::claims::{Class, PtrRank, Rank, Trust};
use crate::domain::services::consul8s::asks_for_removal;
use crate::domain::services::overrides::{NameOverride, Overrides};
use crate::domain::services::routes::Places;
use crate::domain::services::settings::{
    AddressMode, Annotation, ExtraPorts, JoinExisting, NodePortNodes, OnConflict, Settings,
};
use crate::domain::text::excerpt;

/// The name of Consul's own servers in its catalog.
const CONSULS_OWN_NAME: &str = "consul";
/// Services with such a label mirror Consul services (consul-k8s, consul8s): sending them back
/// would make a loop.
const IMPORTED: [(&str, &str); 3] =
    [("consul", "true"), ("consul8s_source", "consul"), LABEL_OF_README];
/// What consul8s' README asks for and its code never reads: of these three a Service may have it
/// for another reason.
const LABEL_OF_README: (&str, &str) = ("registration", "consul");
/// What a headless Service without ports has in the place of a port: addresses are registered with
/// port 0.
static NO_PORT: ServicePort =
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

/// Whether a Service may use a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It may, beside these.
    Granted(Neighbours),
    /// It may not: another Service comes first.
    Taken(First),
    /// It may not: what that Service has registered under it is not removed now.
    Kept(ObjectKey, Keeps),
    /// These hold instances under it, and it is not to be joined.
    Foreign(Holder),
    /// So do they, but what is registered already stays.
    ForeignToo(Holder, Neighbours),
    /// Not known yet.
    Unknown,
}

/// Why what a Service has registered is not removed, whatever is known of others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// By `--policy upsert-only`.
    Policy,
    /// A list lacks the Service, or it could not be read: whether it still claims the name is not known.
    Unseen,
}

/// The Service that comes first for a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum First {
    /// This one.
    Told(ObjectKey),
    /// There are too many others for each to be told which it is.
    Untold,
}

/// Who else is, or wants to be, under a name: a tag must not pass for one of theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// Whether it is joined to instances that do not come from Kubernetes.
    pub joined: bool,
    /// Namespaces of the other Services that claim it.
    pub namespaces: Vec<Box<str>>,
    /// The Service that comes first and has registered nothing under it yet, if another one does.
    pub first: Option<First>,
}

// === impl Neighbours ===

impl Neighbours {
    /// Whether an instance may have the tag: `<tag>.<name>` must not lead to it where people mean
    /// a neighbour. Where those are not from Kubernetes nobody knows which tags they mean.
    fn allow(&self, tag: &str) -> bool {
        let tag = lookup_form(tag);
        !self.joined && !self.namespaces.iter().any(|namespace| **namespace == *tag)
    }
}

/// An instance that may not have the name that it wants.
#[derive(Debug)]
pub struct Blocked {
    /// The instance, under the name that it wants.
    pub registration: Registration,
    /// The PTR key of its address, where that has one, and how strong the claim to it is.
    pub reverse: Option<(Box<str>, PtrRank)>,
}

/// A PTR record that a Service wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedPtr {
    /// The Consul service name that it points to.
    pub service: Box<str>,
    /// How strong the claim to the key is.
    pub rank: PtrRank,
}

/// What has to be known before it can be told what ought to be in Consul for a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Awaited {
    /// The nodes of the cluster.
    Nodes,
    /// What routes to it: something is registered that may be there.
    Routes,
}

/// What ought to be in Consul for one Service.
#[derive(Debug, Default)]
pub struct Desired {
    /// Its instances, by ID.
    pub registrations: BTreeMap<Box<str>, Registration>,
    /// Instances that wait until it is known whether others hold their name: neither written
    /// nor removed.
    pub undecided: BTreeSet<Box<str>>,
    /// The names of those, as [`lookup_form`] has them.
    pub unknown_names: BTreeSet<Box<str>>,
    /// Instances whose name another Service comes first for, or keeps: they are not to be registered.
    pub taken: BTreeSet<Box<str>>,
    /// Instances whose name others hold. What is registered of them already stays under the name
    /// that it has.
    pub blocked: Vec<Blocked>,
    /// Instances that are to be renamed, and keep their name by `--policy upsert-only`.
    pub keep_their_name: BTreeSet<Box<str>>,
    /// Its PTR records, by KV key.
    pub reverse: BTreeMap<Box<str>, WantedPtr>,
    /// Ports that no endpoint serves although some are ready, by their labels: the slices may not
    /// have followed the Service yet.
    pub unserved: BTreeSet<Box<str>>,
    /// The other ports, while there are such.
    pub served: BTreeSet<Box<str>>,
    /// What it cannot be told without: until then nothing is written, and nothing that is there
    /// removed.
    pub awaits: Option<Awaited>,
    /// Whether its load balancer has no address yet: somebody is making it.
    pub awaits_balancer: bool,
    /// Whether each instance follows from its own slice and the Service alone, whatever other slices
    /// show.
    pub by_slice: bool,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

// === impl Desired ===

impl Desired {
    /// Whether a registration of this ID is wanted, or may turn out to be.
    pub fn keeps(&self, id: &str) -> bool {
        self.is_unknown() || self.registrations.contains_key(id) || self.undecided.contains(id)
    }

    /// Whether it cannot be told yet: nothing is written, and nothing that is there removed.
    pub fn is_unknown(&self) -> bool {
        self.awaits.is_some()
    }

    /// How many instances are wanted, or may turn out to be.
    pub fn instances(&self) -> usize {
        self.registrations.len() + self.undecided.len()
    }
}

/// Whether the label of this key can change a registration.
pub fn is_read_label(settings: &Settings, key: &str) -> bool {
    IMPORTED.iter().any(|(read, _)| *read == key)
        || settings.selector.reads(key)
        || settings.label_tags.iter().any(|it| it.label() == key)
        || settings.label_meta.iter().any(|it| it.label() == key)
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

    /// The claims to names that follow, for [`super::claims::NameClaims`], in the form in which
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

/// What ought to be registered for `service` with these slices, nodes (by name; `None`: not
/// known) and routes; `permit` says which of the wanted names it may use.
pub fn desired<'a>(
    settings: &Settings,
    key: &ObjectKey,
    service: &'a Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    nodes: Option<impl Iterator<Item = (&'a str, &'a Node)> + Clone>,
    routes: &[Route<'_>],
    permit: &impl Fn(&str, JoinExisting) -> Permit,
) -> Desired {
    let mut wanted = wanted(settings, key, service);
    let mut problems = std::mem::take(&mut wanted.problems);
    if wanted.uses_nodes() && nodes.is_none() {
        return Desired { awaits: Some(Awaited::Nodes), problems, ..Desired::default() };
    }
    let nodes = nodes.into_iter().flatten();
    let join_of = |name: &str| wanted.join(settings, name);
    let advice = Advice::new(settings, key);
    let routes = if wanted.takes_routes(settings) { routes } else { &[] };
    let ports = wanted.ports.iter().map(|port| port.port);
    let mut places = Places::new(settings.route_address, service, ports, routes);
    problems.append(&mut places.problems);
    let mut places = places.of_port.into_iter();
    let mut builder = Builder::new(settings, key, service, &wanted);
    for port in &wanted.ports {
        let name = permitted_name(port, &join_of, advice, permit, &mut problems);
        let places = places.next().unwrap_or_default();
        builder.port(name, port, places, slices.clone(), nodes.clone());
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

/// Whether the Service is to be registered, and what is wrong with what says so.
fn selection(settings: &Settings, key: &ObjectKey, service: &Service) -> (bool, Vec<Problem>) {
    let (why, problems) = unselected(settings, key, service);
    (why.is_none(), problems)
}

/// Why the Service is not to be registered, in words; none: it is.
pub fn not_selected(settings: &Settings, key: &ObjectKey, service: &Service) -> Option<String> {
    unselected(settings, key, service).0
}

/// Why the Service is not to be registered, and what is wrong with what says so.
fn unselected(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
) -> (Option<String>, Vec<Problem>) {
    let because = |why: &str| (Some(why.to_owned()), Vec::new());
    let is_consul8s = is_consul8s(settings, key, service);
    if service.kind == ServiceType::ExternalName && !settings.external_name && !is_consul8s {
        return because("its type is ExternalName, and --external-name is not given");
    }
    if !(settings.service_types.is_empty() || settings.service_types.contains(&service.kind)) {
        return because("its type is none of --service-type");
    }
    if service.external_name.as_deref().is_some_and(is_name_in_consul) {
        return because("its external name is one of Consul's");
    }
    if !settings.includes_namespace(&key.namespace) {
        return because("its namespace is left out by --namespace or --deny-namespace");
    }
    if !service.namespace_selected {
        return because("the labels of its namespace do not match --namespace-selector");
    }
    if !settings.selector.selects(&service.labels) {
        return because("its labels do not match --selector");
    }
    if service.annotations.contains_key(IMPORT_ANNOTATION) {
        // Its endpoints are Consul's: sending them back would make a loop.
        return because("its endpoints are imported from Consul");
    }
    let (sync, mut problems) = sync(settings, key, service);
    if sync.is_none() && is_consul8s && asks_for_removal(service) {
        return because("annotation consul8s/service.remove_registration says that it is not");
    }
    if !sync.unwrap_or(settings.default_sync || is_consul8s) {
        let why = match sync {
            Some(_) => "an annotation says that it is not (sync: \"false\")",
            None => "no annotation asks for it, and --default-sync is false",
        };
        return (Some(why.to_owned()), problems);
    }
    let has_label =
        |(name, value): &(&str, &str)| service.labels.get(*name).is_some_and(|v| &**v == *value);
    let means_it = |label: &&(&str, &str)| **label != LABEL_OF_README || !is_consul8s;
    let Some(label) = IMPORTED.iter().filter(means_it).find(|label| has_label(label)) else {
        return (None, problems);
    };
    let (name, value) = label;
    if *label == LABEL_OF_README {
        problems.push(Problem::new(
            Reason::ImportLabel,
            format!(
                "the label {name}: {value} says that the Service mirrors one of Consul (consul8s), \
                 so it is not registered; remove the label to have it registered",
            ),
        ));
    }
    (Some(format!("the label {name}: {value} says that it mirrors one of Consul")), problems)
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

/// The name under which a port is registered.
struct Name<'w> {
    text: &'w str,
    standing: Standing,
    neighbours: Neighbours,
}

/// Whether a port may be registered under its name, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Granted,
    Undecided,
    Blocked,
    Taken,
}

/// The name that a wanted port is to have, and whether it may.
fn permitted_name<'w>(
    wanted: &'w WantedPort<'_>,
    join_of: &impl Fn(&str) -> JoinExisting,
    advice: Advice,
    permit: &impl Fn(&str, JoinExisting) -> Permit,
    problems: &mut Vec<Problem>,
) -> Name<'w> {
    let foreign =
        |name: &str, holder: &Holder, then: &str| foreign_name(name, holder, then, advice);
    let candidates = std::iter::once(&wanted.name).chain(&wanted.fallback);
    for name in candidates {
        let is_last = wanted.fallback.as_ref().is_none_or(|last| last == name);
        let (standing, neighbours) = match permit(name, join_of(name)) {
            Permit::Granted(neighbours) => {
                if let Some(first) = neighbours.first.as_ref().filter(|_| is_last) {
                    problems.push(name_conflict(name, first, advice));
                }
                (Standing::Granted, neighbours)
            }
            Permit::Unknown => (Standing::Undecided, Neighbours::default()),
            Permit::ForeignToo(holder, neighbours) => {
                problems.push(foreign(name, &holder, "what this Service has registered stays"));
                (Standing::Granted, neighbours)
            }
            Permit::Foreign(holder) => {
                problems.push(foreign(name, &holder, "it is not registered under it"));
                (Standing::Blocked, Neighbours::default())
            }
            Permit::Taken(first) => {
                if is_last {
                    problems.push(name_conflict(name, &first, advice));
                }
                continue;
            }
            Permit::Kept(holder, keeps) => {
                if is_last {
                    problems.push(name_kept(name, &holder, keeps, advice));
                }
                continue;
            }
        };
        return Name { text: name, standing, neighbours };
    }
    let neighbours = Neighbours::default();
    Name { text: &wanted.name, standing: Standing::Taken, neighbours }
}

/// What whoever owns the Service can do about its name: an annotation that does not count there is
/// not suggested.
#[derive(Clone, Copy, Debug)]
struct Advice {
    may_rename: bool,
    may_join: bool,
}

// === impl Advice ===

impl Advice {
    fn new(settings: &Settings, key: &ObjectKey) -> Self {
        let counts = |it| settings.annotations.counts(&key.namespace, it);
        Self { may_rename: counts(Annotation::ServiceName), may_join: counts(Annotation::Join) }
    }

    fn another_name(self, option: &str) -> String {
        if self.may_rename {
            let annotation = "kube-consul.io/service-name";
            format!("choose another with the annotation {annotation}, or see {option}")
        } else {
            format!("rename the Service, or see {option}")
        }
    }
}

/// Another Service comes first for the name. It is the same before and after that has taken it: people are
/// told once.
fn name_conflict(name: &str, first: &First, advice: Advice) -> Problem {
    let first = match first {
        First::Told(first) => format!("Service {first}"),
        First::Untold => "another Service".to_owned(),
    };
    let rest = advice.another_name("--on-conflict");
    let message = format!("{first} comes first for the Consul name {name:?}; {rest}");
    Problem::new(Reason::NameConflict, message)
}

/// What is registered under the name is another Service's, and stays.
fn name_kept(name: &str, holder: &ObjectKey, keeps: Keeps, advice: Advice) -> Problem {
    let holder = if holder.is_orphaned() {
        "a Service that is not known any more".to_owned()
    } else {
        format!("Service {holder}")
    };
    let rest = advice.another_name("--on-conflict");
    let why = match keeps {
        Keeps::Policy => "which --policy upsert-only keeps",
        Keeps::Unseen => "which was not listed or could not be read, so that its records stay",
    };
    let message = format!("the Consul name {name:?} is registered for {holder}, {why}; {rest}");
    Problem::new(Reason::NameConflict, message)
}

fn foreign_name(name: &str, holder: &Holder, consequence: &str, advice: Advice) -> Problem {
    let holder = match holder {
        Holder::Kubernetes { cluster: Some(cluster) } => {
            format!("were registered by the bridge of the cluster {cluster:?}")
        }
        Holder::Kubernetes { cluster: None } => {
            "were registered by another cluster's bridge or by consul-k8s".to_owned()
        }
        Holder::Other => "were not registered from Kubernetes".to_owned(),
    };
    let join = "set the annotation kube-consul.io/join: \"true\" to share the name, or ";
    let may_join = advice.may_join && lookup_form(name) != CONSULS_OWN_NAME;
    let join = if may_join { join } else { "" };
    let rest = advice.another_name("--join-existing");
    let message = format!("instances of {name:?} in Consul {holder}; {consequence}: {join}{rest}");
    Problem::new(Reason::ForeignName, message)
}

/// The name by which a port is told from its siblings.
fn port_label(port: &ServicePort) -> String {
    port.name.as_ref().map_or_else(|| port.port.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests;
