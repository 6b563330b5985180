//! A Kubernetes API: objects, what their watches say, and lists that may show nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{
    EndpointPort, Kind, Protocol, SeenObject, Service, ServicePort, WatchEvent,
};
use crate::domain::sync::Moment;
use crate::domain::sync::sim::ops::{
    ALL, Aspect, Crowd, Endpoints, Mode, Name, Second, Shape, WatchedKind,
};
use crate::domain::testing::{ip, node, port, service, slice};

/// The name of [`Name::OfMachines`].
pub(super) const MACHINES: &str = "postgres";

/// The annotation of a Service that may join a name that others hold.
pub(super) const JOIN: &str = "kube-consul.io/join";

/// How many Services a crowd has, and how many endpoints each of them: together more than a half of
/// all that there may ever be.
const CROWD: u8 = 6;
const CROWD_ENDPOINTS: u8 = 8;

/// The objects of a cluster, and all that has ever happened to them.
#[derive(Clone, Debug, Default)]
pub(super) struct Kubernetes {
    objects: BTreeMap<(Kind, ObjectKey), Object>,
    /// What Services are, or were.
    shapes: BTreeMap<ObjectKey, Shape>,
    log: BTreeMap<Kind, Vec<Change>>,
    created: i64,
    pub(super) nodes_denied: bool,
}

#[derive(Clone, Debug)]
struct Object {
    object: SeenObject,
    is_decodable: bool,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Seen(SeenObject),
    Deleted(ObjectKey),
}

/// One watch, which lists first.
#[derive(Debug)]
pub(super) struct Watch {
    state: State,
    /// Until when it says nothing.
    pub(super) stalled_until: Moment,
    /// Whether it then says all that has happened at once.
    pub(super) says_all: bool,
    /// How many of its next lists do not show all, and what they hide: see [`Op::Lists`].
    ///
    /// [`Op::Lists`]: crate::domain::sync::sim::ops::Op::Lists
    pub(super) lying_lists: u8,
    pub(super) hides: u8,
}

#[derive(Debug)]
enum State {
    ToList,
    /// What is left of a list, and where in the log the watch goes on.
    Listing {
        left: Vec<SeenObject>,
        then: usize,
        /// What it does not show although it is there.
        hidden: Vec<SeenObject>,
    },
    Watching {
        next: usize,
    },
}

/// What a watch says next.
#[derive(Debug)]
pub(super) enum Said {
    Events(Vec<WatchEvent>),
    /// A list is over that did not show these objects, which exist.
    Listed(Vec<WatchEvent>, Vec<SeenObject>),
    Denied,
    Nothing,
}

pub(super) fn key(n: u8) -> ObjectKey {
    let n = n % 5;
    ObjectKey::new(if n < 3 { "a" } else { "b" }, format!("s{n}"))
}

fn slice_key(n: u8, of: u8) -> ObjectKey {
    let service = key(n);
    ObjectKey::new(service.namespace.clone(), format!("{}-{}", service.name, of % 2))
}

pub(super) fn node_key(n: u8) -> ObjectKey {
    ObjectKey::new("", format!("n{}", n % 3))
}

/// The addresses that Services share.
pub(super) fn address(n: u8) -> String {
    format!("10.0.0.{}", 1 + n % 4)
}

impl WatchedKind {
    pub(super) fn kind(self) -> Kind {
        match self {
            WatchedKind::Services => Kind::Service,
            WatchedKind::Slices => Kind::EndpointSlice,
            WatchedKind::Nodes => Kind::Node,
        }
    }
}

// === impl Kubernetes ===

impl Kubernetes {
    /// One that has these objects, as if it had never had others.
    pub(super) fn with_objects_of(other: &Self) -> Self {
        let (objects, created) = (other.objects.clone(), other.created);
        Self { objects, created, ..Self::default() }
    }

    pub(super) fn alter_service(&mut self, n: u8, aspect: Aspect) {
        let is_there = self.objects.contains_key(&(Kind::Service, key(n)));
        let Some(mut shape) = self.shapes.get(&key(n)).filter(|_| is_there).cloned() else {
            return;
        };
        match aspect {
            Aspect::Address(address) => shape.address = address,
            Aspect::Mode(mode) => shape.mode = mode,
            Aspect::Name(name) => shape.name = name,
            Aspect::Second(second) => shape.second = second,
            Aspect::Tag(tag) => shape.tag = tag,
        }
        self.put_service(n, &shape);
    }

    pub(super) fn put_service(&mut self, n: u8, shape: &Shape) {
        let key = key(n);
        self.shapes.insert(key.clone(), shape.clone());
        let before = self.objects.get(&(Kind::Service, key.clone())).map(|it| it.object.clone());
        let (uid, created) = if let Some(SeenObject::Service(_, service)) = before {
            (service.uid.clone(), service.created)
        } else {
            self.created += 1;
            // Kubernetes has seconds only: some are of one age.
            (format!("uid-{}", self.created).into(), self.created / 2)
        };
        let tag = format!("t{}", shape.tag);
        let mut annotations = vec![("kube-consul.io/service-tags", tag.as_str())];
        match shape.name {
            Name::Own => {}
            Name::Shared => annotations.push(("kube-consul.io/service-name", "shared")),
            Name::OfAnother => annotations.push(("kube-consul.io/service-name", "s1")),
            Name::OfMachines => annotations.push(("kube-consul.io/service-name", MACHINES)),
        }
        if shape.joins {
            annotations.push((JOIN, "true"));
        }
        match shape.mode {
            Mode::ClusterIp | Mode::Headless => {}
            Mode::NodePort => annotations.push(("kube-consul.io/address", "node-port")),
            Mode::Off => annotations.push(("kube-consul.io/sync", "false")),
        }
        let object = service()
            .annotations(&annotations)
            .with(|it| {
                (it.uid, it.created) = (uid, created);
                it.cluster_ips = match shape.mode {
                    Mode::Headless => Vec::new(),
                    _ => vec![ip(&address(shape.address))],
                };
                it.ports[0].node_port = Some(30_000 + u16::from(n % 5));
                match shape.second {
                    Second::None => {}
                    Second::Tcp => it.ports.push(port("admin", 81)),
                    Second::Udp => {
                        it.ports.push(ServicePort { protocol: Protocol::Udp, ..port("quic", 80) });
                    }
                }
            })
            .build();
        self.put(SeenObject::Service(key, object));
    }

    pub(super) fn put_slice(&mut self, n: u8, of: u8, endpoints: &Endpoints) {
        let addresses: Vec<(String, bool)> = (0..3)
            .filter(|bit| endpoints.present & (1 << bit) != 0)
            .map(|bit| (format!("10.1.{}.{bit}", n % 2), endpoints.ready & (1 << bit) != 0))
            .collect();
        let addresses: Vec<(&str, bool)> =
            addresses.iter().map(|(address, ready)| (address.as_str(), *ready)).collect();
        let number = 8080 + u16::from(of % 2) + if endpoints.moved { 100 } else { 0 };
        let mut slice = slice(&key(n).name, &[("http", number), ("admin", 9090)], &addresses);
        for endpoint in &mut slice.endpoints {
            let is_on_it = endpoint.address.to_string().ends_with(".2");
            endpoint.node = is_on_it.then(|| "n2".into());
        }
        let ports = slice.ports.iter().cloned();
        let quic = EndpointPort { name: "quic".into(), port: number, protocol: Protocol::Udp };
        slice.ports = ports.chain([quic]).collect();
        self.put(SeenObject::EndpointSlice(slice_key(n, of), slice));
    }

    /// Headless Services of many endpoints, those of which `mask` has the bit.
    pub(super) fn put_crowd(&mut self, mask: u8, state: Crowd) {
        for n in (0..CROWD).filter(|n| mask & (1 << n) != 0) {
            let name = format!("crowd{n}");
            let (key, slice_key) =
                (ObjectKey::new("c", &*name), ObjectKey::new("c", format!("{name}-0")));
            if state == Crowd::Gone {
                self.delete(Kind::Service, &key);
                self.delete(Kind::EndpointSlice, &slice_key);
                continue;
            }
            let sync = if state == Crowd::Off { "false" } else { "true" };
            let crowd = service()
                .annotations(&[("kube-consul.io/sync", sync)])
                .with(|it| it.cluster_ips.clear())
                .build();
            self.put(SeenObject::Service(key, crowd));
            let count = if state == Crowd::Few { 2 } else { CROWD_ENDPOINTS };
            let addresses: Vec<String> = (0..count).map(|of| format!("10.2.{n}.{of}")).collect();
            let is_ready = state != Crowd::NotReady;
            let endpoints: Vec<(&str, bool)> =
                addresses.iter().map(|it| (it.as_str(), is_ready)).collect();
            self.put(SeenObject::EndpointSlice(
                slice_key,
                slice(&name, &[("http", 8080)], &endpoints),
            ));
        }
    }

    pub(super) fn put_node(&mut self, n: u8, ready: bool) {
        // The last one has the address of a pod, as with `hostNetwork`.
        let (own, of_pod) = (format!("192.0.2.{}", 10 + n % 3), "10.1.0.2");
        let addresses: &[&str] = if n % 3 == 2 { &[&own, of_pod] } else { &[&own] };
        let node = node(addresses, ready);
        self.put(SeenObject::Node(node_key(n), node));
    }

    pub(super) fn delete_service(&mut self, n: u8) {
        self.delete(Kind::Service, &key(n));
    }

    pub(super) fn delete_slice(&mut self, n: u8, of: u8) {
        self.delete(Kind::EndpointSlice, &slice_key(n, of));
    }

    pub(super) fn delete_node(&mut self, n: u8) {
        self.delete(Kind::Node, &node_key(n));
    }

    /// The object does not decode until it changes, or none of its kind does.
    pub(super) fn spoil(&mut self, kind: WatchedKind, n: u8) {
        let key = match kind {
            WatchedKind::Services => key(n),
            WatchedKind::Slices => slice_key(n, 0),
            WatchedKind::Nodes => node_key(n),
        };
        let is_meant =
            |(of, it): &(Kind, ObjectKey)| *of == kind.kind() && (n == ALL || *it == key);
        for (_, object) in self.objects.iter_mut().filter(|(it, _)| is_meant(it)) {
            object.is_decodable = false;
            let shown = object.shown();
            self.log.entry(kind.kind()).or_default().push(Change::Seen(shown));
        }
    }

    /// All decodes again.
    pub(super) fn heal(&mut self) {
        self.nodes_denied = false;
        let spoilt = self.objects.values().filter(|object| !object.is_decodable);
        let spoilt: Vec<SeenObject> = spoilt.map(|object| object.object.clone()).collect();
        for object in spoilt {
            self.put(object);
        }
    }

    pub(super) fn services(&self) -> impl Iterator<Item = (&ObjectKey, &Service)> {
        self.objects.values().filter_map(|object| match &object.object {
            SeenObject::Service(key, service) => Some((key, service)),
            _ => None,
        })
    }

    /// The addresses of a Service's endpoints.
    pub(super) fn endpoints(&self, service: &ObjectKey) -> impl Iterator<Item = IpAddr> {
        let slices = self.objects.values().filter_map(|object| match &object.object {
            SeenObject::EndpointSlice(key, slice) => Some((key, slice)),
            _ => None,
        });
        slices
            .filter(|(key, slice)| {
                key.namespace == service.namespace && slice.service == service.name
            })
            .flat_map(|(_, slice)| slice.endpoints.iter().map(|endpoint| endpoint.address))
    }

    fn put(&mut self, object: SeenObject) {
        let (kind, key) = (object.kind(), key_of(&object));
        self.log.entry(kind).or_default().push(Change::Seen(object.clone()));
        self.objects.insert((kind, key), Object { object, is_decodable: true });
    }

    fn delete(&mut self, kind: Kind, key: &ObjectKey) {
        if self.objects.remove(&(kind, key.clone())).is_some() {
            self.log.entry(kind).or_default().push(Change::Deleted(key.clone()));
        }
    }

    fn list(&self, kind: Kind) -> Vec<SeenObject> {
        let of_kind = self.objects.iter().filter(|((of, _), _)| *of == kind);
        of_kind.map(|(_, object)| object.shown()).collect()
    }
}

impl Object {
    fn shown(&self) -> SeenObject {
        if self.is_decodable {
            return self.object.clone();
        }
        SeenObject::Undecodable(self.object.kind(), key_of(&self.object), "odd".to_owned())
    }
}

pub(super) fn key_of(object: &SeenObject) -> ObjectKey {
    object.key().clone()
}

/// The Service that the object is, or belongs to.
pub(super) fn service_of(object: &SeenObject) -> Option<ObjectKey> {
    match object {
        SeenObject::Service(key, _) | SeenObject::Undecodable(Kind::Service, key, _) => {
            Some(key.clone())
        }
        SeenObject::EndpointSlice(key, slice) => {
            Some(ObjectKey::new(key.namespace.clone(), slice.service.clone()))
        }
        SeenObject::Undecodable(Kind::EndpointSlice, key, _) => Some(service_of_slice(key)),
        _ => None,
    }
}

/// The Service after which a slice is named.
pub(super) fn service_of_slice(slice: &ObjectKey) -> ObjectKey {
    let service = slice.name.rsplit_once('-').map_or(&*slice.name, |(service, _)| service);
    ObjectKey::new(slice.namespace.clone(), service)
}

// === impl Watch ===

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            state: State::ToList,
            stalled_until: Moment::ZERO,
            says_all: false,
            lying_lists: 0,
            hides: 0,
        }
    }

    /// It ends, and lists again.
    pub(super) fn ends(&mut self) {
        self.state = State::ToList;
    }

    /// When it has something to say.
    pub(super) fn due(&self, kind: Kind, kubernetes: &Kubernetes) -> Option<Moment> {
        let waits = match &self.state {
            State::Watching { next } => {
                kubernetes.log.get(&kind).is_some_and(|log| log.len() > *next)
            }
            State::ToList | State::Listing { .. } => true,
        };
        waits.then_some(self.stalled_until)
    }

    /// What it says now. A list comes in two parts.
    pub(super) fn says(&mut self, kind: Kind, kubernetes: &Kubernetes) -> Said {
        let end = kubernetes.log.get(&kind).map_or(0, Vec::len);
        match &mut self.state {
            State::ToList if kind == Kind::Node && kubernetes.nodes_denied => Said::Denied,
            State::ToList => {
                let mut left = kubernetes.list(kind);
                let mut hidden = Vec::new();
                if self.lying_lists > 0 {
                    self.lying_lists -= 1;
                    let all = std::mem::take(&mut left).into_iter().enumerate();
                    let is_hidden = |place: usize| self.hides & (1 << (place % 8)) != 0;
                    let (lacked, shown): (Vec<_>, Vec<_>) =
                        all.partition(|(place, _)| is_hidden(*place));
                    left = shown.into_iter().map(|(_, object)| object).collect();
                    hidden = lacked.into_iter().map(|(_, object)| object).collect();
                }
                let rest = left.split_off(left.len() / 2);
                let shown = left.into_iter().map(WatchEvent::Seen);
                let events = std::iter::once(WatchEvent::ListStarted(kind)).chain(shown).collect();
                self.state = State::Listing { left: rest, then: end, hidden };
                Said::Events(events)
            }
            State::Listing { left, then, hidden } => {
                let shown = std::mem::take(left).into_iter().map(WatchEvent::Seen);
                let events = shown.chain([WatchEvent::ListCompleted(kind)]).collect();
                let said = Said::Listed(events, std::mem::take(hidden));
                self.state = State::Watching { next: *then };
                said
            }
            State::Watching { next } => {
                let says_all = std::mem::take(&mut self.says_all);
                let changes = kubernetes.log.get(&kind).and_then(|log| log.get(*next..));
                let changes = changes.unwrap_or_default();
                let most = if says_all { changes.len() } else { 1 };
                let events = changes.iter().take(most).map(|change| match change.clone() {
                    Change::Seen(object) => WatchEvent::Seen(object),
                    Change::Deleted(key) => WatchEvent::Deleted(kind, key),
                });
                let events: Vec<WatchEvent> = events.collect();
                *next += events.len();
                if events.is_empty() { Said::Nothing } else { Said::Events(events) }
            }
        }
    }
}

/// What a process was told of the cluster, and has to go by.
#[derive(Debug, Default)]
pub(super) struct View {
    pub(super) objects: BTreeMap<(Kind, ObjectKey), SeenObject>,
    /// What could not be read, of which an older state may be known.
    pub(super) unread: BTreeSet<(Kind, ObjectKey)>,
    pub(super) listed: BTreeSet<Kind>,
    listing: BTreeMap<Kind, BTreeSet<ObjectKey>>,
}

// === impl View ===

impl View {
    /// Takes what a watch said. `hidden`: what exists although the list that is over lacks it.
    pub(super) fn take(&mut self, event: &WatchEvent, hidden: &[SeenObject]) {
        match event {
            WatchEvent::ListStarted(kind) => drop(self.listing.insert(*kind, BTreeSet::new())),
            WatchEvent::Seen(object) => {
                let (kind, key) = (object.kind(), key_of(object));
                if let Some(shown) = self.listing.get_mut(&kind) {
                    shown.insert(key.clone());
                }
                self.see(kind, key, object.clone());
            }
            WatchEvent::ListCompleted(kind) => {
                let mut shown = self.listing.remove(kind).unwrap_or_default();
                shown.extend(hidden.iter().map(key_of));
                let is_gone = |(of, key): &(Kind, ObjectKey)| of == kind && !shown.contains(key);
                self.objects.retain(|place, _| !is_gone(place));
                self.unread.retain(|place| !is_gone(place));
                self.listed.insert(*kind);
            }
            WatchEvent::Deleted(kind, key) => {
                self.objects.remove(&(*kind, key.clone()));
                self.unread.remove(&(*kind, key.clone()));
            }
        }
    }

    fn see(&mut self, kind: Kind, key: ObjectKey, object: SeenObject) {
        if matches!(object, SeenObject::Undecodable(..)) {
            self.unread.insert((kind, key));
        } else {
            self.unread.remove(&(kind, key.clone()));
            self.objects.insert((kind, key), object);
        }
    }

    /// Services that cannot be read, or of which a slice cannot.
    pub(super) fn unread_services(&self) -> impl Iterator<Item = ObjectKey> {
        self.unread.iter().filter_map(|(kind, key)| match kind {
            Kind::Service => Some(key.clone()),
            Kind::EndpointSlice => Some(service_of_slice(key)),
            _ => None,
        })
    }

    pub(super) fn has_service(&self, key: &ObjectKey) -> bool {
        let place = (Kind::Service, key.clone());
        self.objects.contains_key(&place) || self.unread.contains(&place)
    }

    /// Whether the list that ends with these events has shown nothing.
    pub(super) fn shows_nothing(&self, kind: Kind, events: &[WatchEvent]) -> bool {
        let shown = self.listing.get(&kind).map_or(0, BTreeSet::len);
        shown == 0 && !events.iter().any(|event| matches!(event, WatchEvent::Seen(_)))
    }

    /// Nodes are watched no longer.
    pub(super) fn forget_nodes(&mut self) {
        self.objects.retain(|(kind, _), _| *kind != Kind::Node);
        self.unread.retain(|(kind, _)| *kind != Kind::Node);
        self.listed.remove(&Kind::Node);
        self.listing.remove(&Kind::Node);
    }
}
