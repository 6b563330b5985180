//! The instances of one Service: each address of each of its ports ([`targets`]), with its tags, meta and
//! check.

mod targets;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::address::fault_of;
use crate::domain::consul::meta::is_meta_value;
use crate::domain::consul::names::{lookup_form, resolves};
use crate::domain::consul::pairs::Meta;
use crate::domain::consul::ptr::ptr_key;
use crate::domain::consul::record::{
    CLUSTER_META, Check, NAMESPACE_META, NODE_META, POD_META, Registration, SERVICE_META, SOURCE,
    SOURCE_META,
};
use crate::domain::consul::registration_id::registration_id;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Endpoint, EndpointSlice, Node, Service, ServicePort};
use crate::domain::map::HashMap;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::{AddressKind, PtrRank};
use crate::domain::services::desired::permit::{Name, Standing};
use crate::domain::services::desired::records::{Blocked, Desired, WantedPtr};
use crate::domain::services::desired::wanted::{
    AddressSource, MAX_SHOWN, NO_PORT, Wanted, WantedPort, port_label,
};
use crate::domain::services::overrides::Overrides;
use crate::domain::services::routes::Place;
use crate::domain::services::settings::{HealthMode, PtrScope, Settings};
use crate::domain::text::excerpt;

/// Consul takes at most this many meta pairs.
pub(super) const MAX_META_PAIRS: usize = 64;
/// Instances of one Service, those of all its ports together. Kubernetes is made for clusters of
/// 5,000 nodes: a `DaemonSet` there, or a node port, has as many. Planning takes about 1.5 kB for
/// each, 8 MB.
pub(super) const MAX_INSTANCES: usize = 5_000;
/// What annotations and labels may add to one registration, in bytes: a thousand tags. Whoever reads
/// the instance reads them.
const MAX_ASKED: usize = 64 << 10;
/// The same for all registrations of a Service together: as much as the instances themselves take.
const MAX_ASKED_OF_ALL: usize = 4 << 20;
/// What a tag or meta pair costs beside its text: two strings and their place.
const TEXT_OVERHEAD: usize = 64;
/// Meta pairs that name ports, in all registrations of a Service together: at 110 bytes each they
/// take as much as the instances. Ten ports of each of 5,000 instances fit; nobody asked for them, so
/// where there would be more there are none.
const MAX_PORT_PAIRS: usize = 50_000;
/// Consul's weight of a service that asks for none.
const DEFAULT_WEIGHT: u16 = 1;

/// What an instance says of itself alone, sorted: its node, what it is, its pod, its zone.
const OWN_META: [&str; 4] =
    [NODE_META, "external-k8s-ref-kind", POD_META, "external-k8s-topology-zone"];

/// Meta that the instances of a port share, by which of [`OWN_META`] they say.
type SharedMeta = HashMap<[bool; OWN_META.len()], Arc<BTreeMap<String, String>>>;

pub(super) struct Builder<'a> {
    settings: &'a Settings,
    key: &'a ObjectKey,
    service: &'a Service,
    overrides: &'a Overrides,
    addresses: AddressSource,
    /// What is to be built: that much is known of all ports before anything is.
    ports: Vec<Port<'a>>,
    /// How many instances they have.
    instances: usize,
    /// How many more they would have.
    exceeding: usize,
    /// Whether each is an endpoint that serves its port in one slice alone.
    by_slice: bool,
    out: Desired,
}

/// A port with its addresses.
struct Port<'a> {
    name: Name<'a>,
    of: &'a ServicePort,
    targets: Vec<Target<'a>>,
}

/// What annotations and labels add to each registration, as far as it fits.
struct Asked {
    /// Each once.
    tags: Vec<String>,
    meta: Vec<(String, String)>,
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
            ports: Vec::new(),
            instances: 0,
            exceeding: 0,
            by_slice: wanted.addresses == AddressSource::Endpoints,
            out: Desired::default(),
        }
    }

    /// Adds the instances of one port under a name, the primary port first; `places`: where it is
    /// routed to, if it is.
    pub(super) fn port<'s: 'a>(
        &mut self,
        name: Name<'a>,
        port: &WantedPort<'a>,
        places: Vec<Place>,
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
        let is_routed = !places.is_empty();
        self.by_slice &= !is_routed && !serving.is_empty();
        let mut targets = self.targets(port, places, &serving, nodes);
        if let Some(number) = port.number.filter(|_| !is_routed) {
            for target in &mut targets {
                target.port = number;
            }
        }
        self.leave_out_unusable(&mut targets);
        if name.standing == Standing::Taken {
            // What is not to be registered lacks nothing.
            self.out.problems.truncate(problems);
        }
        self.ports.push(Port { name, of: port.port, targets });
    }

    /// Leaves out what nobody may be led to, wherever it comes from: such an address is the problem of
    /// this Service, and must not become one of all who share its name.
    fn leave_out_unusable(&mut self, targets: &mut Vec<Target<'_>>) {
        let mut unusable: BTreeMap<&'static str, BTreeSet<Box<str>>> = BTreeMap::new();
        targets.retain(|target| {
            let Some(expected) = fault_of(&target.address) else { return true };
            unusable.entry(expected).or_default().insert(target.address.clone());
            false
        });
        for (expected, found) in unusable {
            let shown = found.iter().take(MAX_SHOWN).map(|it| format!("{:?}", excerpt(it)));
            let shown = shown.collect::<Vec<_>>().join(", ");
            let message = format!("expected {expected}, found {shown}: not registered");
            self.out.problems.push(Problem::new(Reason::InvalidAddress, message));
        }
    }

    /// Builds what fits.
    pub(super) fn finish(mut self) -> Desired {
        if self.exceeding > 0 {
            let found = self.instances + self.exceeding;
            self.too_large(format!(
                "expected at most {MAX_INSTANCES} instances of its ports together, found {found}: \
                 {} are left out; split the Service",
                self.exceeding
            ));
        }
        let asked = self.asked();
        for Port { name, of, targets } in std::mem::take(&mut self.ports) {
            let tags = Arc::new(self.tags(&name, of, &asked));
            let mut shared = SharedMeta::default();
            for target in targets {
                self.instance(&name, of, Arc::clone(&tags), &asked, &mut shared, target);
            }
        }
        if self.out.unserved.is_empty() {
            self.out.served.clear();
        }
        // With fewer instances all this fits, too: tags and meta are the same then.
        self.out.by_slice = self.by_slice
            && self.exceeding == 0
            && self.out.problems.is_empty()
            && self.names_ports();
        self.out
    }

    /// How many of these instances there is room for.
    fn admit(&mut self, instances: usize) -> usize {
        let admitted = instances.min(MAX_INSTANCES - self.instances);
        self.instances += admitted;
        self.exceeding += instances - admitted;
        admitted
    }

    /// What annotations and labels ask for, as far as there is room for it in each registration.
    fn asked(&mut self) -> Asked {
        let (settings, labels) = (self.settings, &self.service.labels);
        let of_labels = settings.label_meta.iter().filter_map(|it| it.pair(labels));
        let mut meta: Vec<(String, String)> =
            self.overrides.meta.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        meta.extend(of_labels);
        let mut tags: Vec<String> =
            settings.label_tags.iter().filter_map(|it| it.tag(labels)).collect();
        // The annotation's are all different.
        let further = self.overrides.tags.iter().filter(|tag| !tags.contains(tag));
        let further: Vec<String> = further.cloned().collect();
        tags.extend(further);
        let all = meta.len() + tags.len();

        let mut room = MAX_ASKED.min(MAX_ASKED_OF_ALL / self.instances.max(1));
        let mut fits = |text: usize| {
            let fits = text + TEXT_OVERHEAD <= room;
            room = if fits { room - text - TEXT_OVERHEAD } else { 0 };
            fits
        };
        let kept = meta.iter().take_while(|(key, value)| fits(key.len() + value.len())).count();
        meta.truncate(kept);
        let kept = tags.iter().take_while(|tag| fits(tag.len())).count();
        tags.truncate(kept);
        let left_out = all - meta.len() - tags.len();
        if left_out > 0 {
            let each = MAX_ASKED >> 10;
            let together = MAX_ASKED_OF_ALL >> 20;
            self.too_large(format!(
                "expected tags and meta that take at most {each} KiB in each instance and \
                 {together} MiB in all of them ({}) together, found more: {left_out} tags and meta \
                 pairs are left out of each instance",
                self.instances,
            ));
        }
        Asked { tags, meta }
    }

    fn too_large(&mut self, message: String) {
        self.out.problems.push(Problem::new(Reason::TooLarge, message));
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
            _ => found.into_iter().take(MAX_SHOWN).collect::<Vec<_>>().join(", "),
        };
        let name = port.name.as_deref().unwrap_or_default();
        self.out.unserved.insert(port_label(port).into());
        self.problem(format!(
            "endpoints are ready, and none serves the port {}: expected a port of this name and \
             protocol in their EndpointSlices, found {found}",
            show(name, port.protocol.as_str(), port.port),
        ));
    }

    fn problem(&mut self, message: String) {
        self.out.problems.push(Problem::new(Reason::Incomplete, message));
    }

    fn instance(
        &mut self,
        name: &Name<'_>,
        port: &ServicePort,
        mut tags: Arc<Vec<String>>,
        asked: &Asked,
        shared: &mut SharedMeta,
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
            Arc::make_mut(&mut tags).push(tag.to_owned());
        }
        let registration = Registration {
            id: id.clone(),
            service: name.text.into(),
            namespace: self.key.namespace.clone(),
            tags,
            meta: self.meta(port, asked, &target, shared),
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
        // Whoever writes a Service writes its external IPs: anybody's, of machines too.
        let is_its_own = kind != AddressKind::ExternalIp
            || self.settings.trusts_external_ips(&self.key.namespace);
        if !(wanted && is_its_own && resolves(name)) {
            return None;
        }
        let address = target.address.parse().ok()?;
        Some((ptr_key(address).into(), PtrRank { kind, created: self.service.created }))
    }

    /// The tags that all instances under a name share: its namespace, port, protocol and what is asked
    /// for, but for those that would pass for a neighbour's. One endpoint's own are added by `instance`.
    fn tags(&mut self, name: &Name<'_>, port: &ServicePort, asked: &Asked) -> Vec<String> {
        // The operator's own tags mean what they say, whoever else has the name.
        let mut tags = vec![self.key.namespace.to_string()];
        tags.extend(self.settings.tags.iter().filter(|tag| **tag != *self.key.namespace).cloned());
        let mut refused = Vec::new();
        for tag in [port.name.as_deref(), port.protocol.tag()].into_iter().flatten() {
            if tags.iter().any(|other| other == tag) {
                continue;
            }
            if name.neighbours.allow(tag) {
                tags.push(tag.to_owned());
            } else if !name.neighbours.joined || asked.tags.iter().any(|asked| asked == tag) {
                refused.push(tag);
            }
        }
        let own = tags.len();
        for tag in &asked.tags {
            // What is asked for is each there once.
            if tags[..own].contains(tag) {
                continue;
            }
            if name.neighbours.allow(tag) {
                tags.push(tag.clone());
            } else if !refused.contains(&&**tag) {
                refused.push(tag);
            }
        }
        if !refused.is_empty() {
            let why = if name.neighbours.joined {
                "instances that do not come from Kubernetes have it too, and whoever asks for \
                 theirs by a tag must not get another"
            } else {
                "it is the namespace of another Service that wants the name"
            };
            let refused = refused.iter().take(MAX_SHOWN).map(|tag| format!("{:?}", excerpt(tag)));
            let refused = refused.collect::<Vec<_>>().join(", ");
            self.problem(format!("under the name {:?} no tag {refused}: {why}", name.text));
        }
        tags
    }

    /// What an instance says of itself, and what it shares with those that say as much.
    fn meta(
        &mut self,
        port: &ServicePort,
        asked: &Asked,
        target: &Target<'_>,
        shared: &mut SharedMeta,
    ) -> Meta {
        let pod = target.endpoint.and_then(|endpoint| endpoint.pod.as_deref());
        let zone = target.zone.filter(|zone| is_meta_value(zone));
        let values = [target.node, pod.map(|_| "Pod"), pod, zone];
        let own = OWN_META.into_iter().zip(values);
        let own = own.filter_map(|(key, value)| Some((key, value?.into()))).collect();
        let said = values.map(|value| value.is_some());
        let shared = shared.entry(said).or_insert_with(|| self.shared_meta(port, asked, said));
        Meta::new(Arc::clone(shared), own)
    }

    /// Whether the meta of each instance names all ports.
    fn names_ports(&self) -> bool {
        self.service.ports.len() * self.instances <= MAX_PORT_PAIRS
    }

    /// What all instances have in common of which these of [`OWN_META`] are said.
    fn shared_meta(
        &mut self,
        port: &ServicePort,
        asked: &Asked,
        said: [bool; OWN_META.len()],
    ) -> Arc<BTreeMap<String, String>> {
        let own = OWN_META.into_iter().zip(said).filter_map(|(key, said)| said.then_some(key));
        let own: Vec<&str> = own.collect();
        let marks = [
            (CLUSTER_META, Some(self.settings.cluster.as_str())),
            (SOURCE_META, Some(SOURCE)),
            (NAMESPACE_META, Some(&*self.key.namespace)),
            (SERVICE_META, Some(&*self.key.name)),
            ("external-k8s-protocol", port.protocol.tag()),
        ];
        let marks = marks.into_iter().filter_map(|(key, value)| Some((key, value?)));
        let marks = marks.map(|(key, value)| (key.to_owned(), value.to_owned()));
        let mut meta: BTreeMap<String, String> = marks.collect();
        let mut left_out = 0;
        for (key, value) in asked.meta.iter().filter(|(key, _)| !own.contains(&&**key)) {
            if meta.len() + own.len() < MAX_META_PAIRS || meta.contains_key(key) {
                meta.entry(key.clone()).or_insert_with(|| value.clone());
            } else {
                left_out += 1;
            }
        }
        if left_out > 0 {
            let message = format!(
                "Consul takes at most {MAX_META_PAIRS} meta pairs; {left_out} are left out"
            );
            let problem = Problem::new(Reason::InvalidAnnotation, message);
            // Once for all instances.
            if !self.out.problems.contains(&problem) {
                self.out.problems.push(problem);
            }
        }
        let fit = self.names_ports();
        let room = MAX_META_PAIRS.saturating_sub(meta.len() + own.len());
        for port in self.service.ports.iter().filter(|_| fit).take(room) {
            if let Some(name) = &port.name {
                meta.entry(format!("port-{name}")).or_insert_with(|| port.port.to_string());
            }
        }
        Arc::new(meta)
    }
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
