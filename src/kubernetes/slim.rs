//! Objects decoded to the fields that can change a registration.
//!
//! An object is decoded once, straight from the response's text; `managedFields` and the rest are
//! skipped without being stored. One that does not decode keeps its identity and becomes
//! [`Content::Undecodable`]: it never fails its page. One without even a name fails the page, since a
//! list with an unknown object in it is no evidence that another one is gone.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::value::RawValue;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{
    Endpoint, EndpointPort, EndpointSlice, Kind, Namespace, Node, NodeAddressType, Protocol,
    SeenObject, Service, ServicePort, ServiceType,
};
use crate::domain::text::one_line;
use crate::kubernetes::pool::Pool;
use crate::kubernetes::wire::{self, Text};

/// How many left-out parts of one object are reported: the first few show what is wrong, and an
/// object may have a thousand endpoints.
const LEFT_OUT_REPORTED: usize = 8;

/// Longest quotation of a value that is wrong: more than any address or number needs.
pub(super) const QUOTED_BYTES: usize = 64;

/// One kind of object: where it is served, how it is decoded, and what its watch shows of it.
pub trait Watched: fmt::Debug + Send + Sync + 'static {
    /// What is left of an object.
    type Object: fmt::Debug + Send + 'static;
    /// An object with its identity, as the watch shows it.
    type Seen: Undecodable + fmt::Debug + Send + 'static;
    /// The kind that the events speak of.
    const KIND: Kind;
    /// The API group; empty for the core. The version is `v1`.
    const GROUP: &'static str;
    /// `kind` of the objects.
    const NAME: &'static str;
    /// The resource, as URLs and RBAC rules name it.
    const PLURAL: &'static str;
    /// Whether each object is in a namespace.
    const NAMESPACED: bool = true;
    /// Whether those of all namespaces are watched, whichever are asked for.
    const OF_ALL_NAMESPACES: bool = false;
    /// Whether an API server need not have the kind: it is a custom resource.
    const MAY_BE_ABSENT: bool = false;
    /// The file that grants the right to read them.
    const GRANTED_BY: &'static str = "manifests/base/rbac.yaml";

    /// `apiVersion` of the objects.
    fn api_version() -> String {
        if Self::GROUP.is_empty() { "v1".to_owned() } else { format!("{}/v1", Self::GROUP) }
    }

    /// Decodes one object.
    fn decode(json: &str) -> Result<(Identity, Content<Self::Object>), serde_json::Error>;

    /// What is said of an object as it is now.
    fn seen(key: ObjectKey, object: Self::Object) -> Self::Seen;

    /// What is said of an object that could not be read.
    fn undecodable(key: ObjectKey, why: String) -> Self::Seen {
        Self::Seen::undecodable(Self::KIND, key, why)
    }

    /// Shares the text of names that many objects have in common.
    fn share(_object: &mut Self::Object, _names: &mut Pool) {}
}

/// What can say that an object is there and could not be read.
pub trait Undecodable {
    /// Says it of this object of that kind, and why.
    fn undecodable(kind: Kind, key: ObjectKey, why: String) -> Self;
}

/// Who an object is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Namespace (empty where there is none) and name.
    pub key: ObjectKey,
    /// `metadata.resourceVersion`, empty when absent.
    pub resource_version: String,
}

/// What was found in an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content<T> {
    /// What is used of it.
    Object(T),
    /// It is of no interest, as a slice without the label that names its Service.
    Nothing,
    /// It counts as several objects, as the subsets of Endpoints do.
    Parts(Vec<T>),
    /// Why it could not be decoded.
    Undecodable(String),
}

/// An object of the kind `P` with its identity.
pub struct Slim<P: Watched> {
    /// Who it is.
    pub identity: Identity,
    /// What was found in it.
    pub content: Content<P::Object>,
}

/// `v1` Services.
#[derive(Clone, Copy, Debug)]
pub struct Services;

/// `discovery.k8s.io/v1` EndpointSlices.
#[derive(Clone, Copy, Debug)]
pub struct EndpointSlices;

/// `v1` Nodes.
#[derive(Clone, Copy, Debug)]
pub struct Nodes;

/// `v1` Namespaces.
#[derive(Clone, Copy, Debug)]
pub struct Namespaces;

// === impl Slim ===

impl<P: Watched> Slim<P> {
    /// An object that was read.
    pub fn new(identity: Identity, content: Content<P::Object>) -> Self {
        Self { identity, content }
    }

    /// Decodes the text of an object. It fails only where that tells no name.
    pub fn of_text(json: &str) -> Result<Self, serde_json::Error> {
        let (identity, content) = match P::decode(json) {
            Ok(decoded) => decoded,
            Err(why) => (named::<P>(json)?, Content::Undecodable(undecodable(&why))),
        };
        Ok(Self { identity, content })
    }
}

impl<P: Watched> fmt::Debug for Slim<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {:?}", P::NAME, self.identity.key, self.content)
    }
}

impl<'de, P: Watched> Deserialize<'de> for Slim<P> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?.get();
        Self::of_text(raw).map_err(D::Error::custom)
    }
}

/// Who an object is of which no more can be read.
fn named<P: Watched>(json: &str) -> Result<Identity, serde_json::Error> {
    let fail = |what: &str| serde_json::Error::custom(format_args!("a {} {what}", P::NAME));
    let object = serde_json::from_str::<wire::Named<'_>>(json);
    let metadata = object.map_err(|_| fail("without a name in the response"))?.metadata;
    if P::NAMESPACED && metadata.namespace.is_none() {
        return Err(fail("without a namespace"));
    }
    Ok(identity(metadata.namespace.unwrap_or_default(), metadata.name, metadata.resource_version))
}

pub(super) fn identity(
    namespace: Text<'_>,
    name: Text<'_>,
    resource_version: Option<Text<'_>>,
) -> Identity {
    Identity {
        key: ObjectKey::new(namespace.into_box(), name.into_box()),
        resource_version: resource_version.unwrap_or_default().0.into_owned(),
    }
}

fn undecodable(why: &serde_json::Error) -> String {
    one_line(&format!("does not decode: {why}"), 256)
}

// === impl Undecodable ===

impl Undecodable for SeenObject {
    fn undecodable(kind: Kind, key: ObjectKey, why: String) -> Self {
        SeenObject::Undecodable(kind, key, why)
    }
}

// === impl Watched ===

impl Watched for Services {
    type Object = Service;
    type Seen = SeenObject;
    const KIND: Kind = Kind::Service;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Service";
    const PLURAL: &'static str = "services";

    fn decode(json: &str) -> Result<(Identity, Content<Service>), serde_json::Error> {
        let object: wire::Service<'_> = serde_json::from_str(json)?;
        let kind = service_type(object.spec.r#type.as_ref())?;
        let (metadata, spec) = (object.metadata, object.spec);
        let mut left_out = LeftOut::default();
        let external_ips = spec.external_ips.unwrap_or_default();
        let mut service = Service {
            uid: metadata.uid.unwrap_or_default().0.into(),
            created: metadata.creation_timestamp.as_ref().map_or(0, unix_seconds),
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default().0,
            kind,
            cluster_ips: cluster_ips(spec.cluster_ips, spec.cluster_ip, &mut left_out),
            external_ips: addresses(&external_ips, "spec.externalIPs", &mut left_out),
            external_name: spec.external_name.map(Text::into_box),
            load_balancer: object.status.unwrap_or_default().addresses(),
            ports: service_ports(spec.ports.unwrap_or_default(), &mut left_out),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            external_traffic_local: spec
                .external_traffic_policy
                .is_some_and(|policy| policy.0 == "Local"),
            namespace_selected: true,
            left_out: left_out.into_box(),
        };
        // What is collected from the text's parts takes up their room: here four ports'.
        service.cluster_ips.shrink_to_fit();
        service.external_ips.shrink_to_fit();
        service.ports.shrink_to_fit();
        let identity = identity(metadata.namespace, metadata.name, metadata.resource_version);
        Ok((identity, Content::Object(service)))
    }

    fn seen(key: ObjectKey, object: Service) -> SeenObject {
        SeenObject::Service(key, object)
    }
}

impl Watched for EndpointSlices {
    type Object = EndpointSlice;
    type Seen = SeenObject;
    const KIND: Kind = Kind::EndpointSlice;
    const GROUP: &'static str = "discovery.k8s.io";
    const NAME: &'static str = "EndpointSlice";
    const PLURAL: &'static str = "endpointslices";

    fn decode(json: &str) -> Result<(Identity, Content<EndpointSlice>), serde_json::Error> {
        let object: wire::EndpointSlice<'_> = serde_json::from_str(json)?;
        let metadata = object.metadata;
        let identity = identity(metadata.namespace, metadata.name, metadata.resource_version);
        let Some(service) = metadata.labels.unwrap_or_default().0 else {
            return Ok((identity, Content::Nothing));
        };
        let mut left_out = LeftOut::default();
        let ports = endpoint_ports(object.ports.unwrap_or_default(), "", &mut left_out);
        let endpoints = if object.address_type.is_some_and(|kind| kind.0 == "FQDN") {
            left_out.tell(|| {
                "addressType: expected IPv4 or IPv6, found FQDN; its endpoints are left out, since \
                 a registration needs an IP address"
                    .to_owned()
            });
            Box::default()
        } else {
            endpoints(object.endpoints.unwrap_or_default(), &mut left_out)
        };
        let slice = EndpointSlice { service, ports, endpoints, left_out: left_out.into_box() };
        Ok((identity, Content::Object(slice)))
    }

    fn seen(key: ObjectKey, object: EndpointSlice) -> SeenObject {
        SeenObject::EndpointSlice(key, object)
    }

    fn share(slice: &mut EndpointSlice, names: &mut Pool) {
        names.share(slice);
    }
}

impl Watched for Nodes {
    type Object = Node;
    type Seen = SeenObject;
    const KIND: Kind = Kind::Node;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Node";
    const PLURAL: &'static str = "nodes";
    const NAMESPACED: bool = false;
    const GRANTED_BY: &'static str = "manifests/optional/nodes-rbac.yaml";

    fn decode(json: &str) -> Result<(Identity, Content<Node>), serde_json::Error> {
        let object: wire::Node<'_> = serde_json::from_str(json)?;
        let (metadata, status) = (object.metadata, object.status.unwrap_or_default());
        let mut left_out = LeftOut::default();
        let mut addresses: Vec<(NodeAddressType, IpAddr)> = Vec::new();
        for (index, found) in status.addresses.unwrap_or_default().into_iter().enumerate() {
            // The others are host names.
            let kind = match &*found.r#type.0 {
                "ExternalIP" => NodeAddressType::External,
                "InternalIP" => NodeAddressType::Internal,
                _ => continue,
            };
            let Some(address) = parse_address(&found.address.0) else {
                let field = || format!("status.addresses[{index}].address");
                left_out.address(field, &found.address.0);
                continue;
            };
            let is_such = |(of, ip): &(_, IpAddr)| *of == kind && ip.is_ipv4() == address.is_ipv4();
            if !addresses.iter().any(is_such) {
                addresses.push((kind, address));
            }
        }
        let is_ready = |it: wire::Condition<'_>| it.r#type.0 == "Ready" && it.status.0 == "True";
        let labels = metadata.labels.unwrap_or_default();
        let node = Node {
            addresses,
            ready: status.conditions.unwrap_or_default().into_iter().any(is_ready),
            excluded: labels.excluded,
            zone: labels.zone,
            left_out: left_out.into_box(),
        };
        let identity = identity(Text::default(), metadata.name, metadata.resource_version);
        Ok((identity, Content::Object(node)))
    }

    fn seen(key: ObjectKey, object: Node) -> SeenObject {
        SeenObject::Node(key, object)
    }
}

impl Watched for Namespaces {
    type Object = Namespace;
    type Seen = SeenObject;
    const KIND: Kind = Kind::Namespace;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Namespace";
    const PLURAL: &'static str = "namespaces";
    const NAMESPACED: bool = false;
    const GRANTED_BY: &'static str = "manifests/optional/namespaces-rbac.yaml";

    fn decode(json: &str) -> Result<(Identity, Content<Namespace>), serde_json::Error> {
        let metadata = serde_json::from_str::<wire::Namespace<'_>>(json)?.metadata;
        let namespace = Namespace { labels: metadata.labels.unwrap_or_default() };
        let identity = identity(Text::default(), metadata.name, metadata.resource_version);
        Ok((identity, Content::Object(namespace)))
    }

    fn seen(key: ObjectKey, object: Namespace) -> SeenObject {
        SeenObject::Namespace(key, object)
    }
}

fn service_type(text: Option<&Text<'_>>) -> Result<ServiceType, serde_json::Error> {
    let text = text.map_or("ClusterIP", |text| &*text.0);
    text.parse().map_err(|_| {
        serde_json::Error::custom(format_args!(
            "spec.type: expected one of {}, found {:?}",
            ServiceType::WORDS.join(", "),
            one_line(text, QUOTED_BYTES)
        ))
    })
}

fn cluster_ips(
    all: Option<Vec<Text<'_>>>,
    first: Option<Text<'_>>,
    left_out: &mut LeftOut,
) -> Vec<IpAddr> {
    let mut texts = all.unwrap_or_default();
    if texts.is_empty() {
        texts.extend(first);
    }
    texts.retain(|text| !matches!(&*text.0, "" | "None"));
    addresses(&texts, "spec.clusterIPs", left_out)
}

fn addresses(texts: &[Text<'_>], field: &str, left_out: &mut LeftOut) -> Vec<IpAddr> {
    if texts.len() > wire::MAX_ADDRESSES {
        left_out.tell(|| {
            let (max, found) = (wire::MAX_ADDRESSES, texts.len());
            format!(
                "{field}: expected at most {max} addresses, found {found}; those beyond \
                 are left out"
            )
        });
    }
    texts
        .iter()
        .take(wire::MAX_ADDRESSES)
        .enumerate()
        .filter_map(|(index, text)| {
            let address = parse_address(&text.0);
            if address.is_none() {
                left_out.address(|| format!("{field}[{index}]"), &text.0);
            }
            address
        })
        .collect()
}

fn service_ports(ports: Vec<wire::ServicePort<'_>>, left_out: &mut LeftOut) -> Vec<ServicePort> {
    ports
        .into_iter()
        .enumerate()
        .filter_map(|(index, port)| {
            let Some(number) = port_number(port.port) else {
                left_out.port(|| format!("spec.ports[{index}].port"), port.port);
                return None;
            };
            // Absent and 0 both mean that none is allocated.
            let node_port = port.node_port.filter(|number| *number != 0);
            if let Some(wrong) = node_port.filter(|number| port_number(*number).is_none()) {
                left_out.port(|| format!("spec.ports[{index}].nodePort"), wrong);
            }
            Some(ServicePort {
                name: port.name.filter(|name| !name.0.is_empty()).map(Text::into_box),
                port: number,
                node_port: node_port.and_then(port_number),
                protocol: protocol(port.protocol.as_ref()),
            })
        })
        .collect()
}

/// The ports of a slice; `parent` is where they stand in the object. One without a number, which
/// the API takes for "all ports", is left out: kube-proxy does not route to it either.
pub(super) fn endpoint_ports(
    ports: Vec<wire::EndpointPort<'_>>,
    parent: &str,
    left_out: &mut LeftOut,
) -> Box<[EndpointPort]> {
    ports
        .into_iter()
        .enumerate()
        .filter_map(|(index, found)| {
            let Some(port) = found.port.and_then(port_number) else {
                let field = || format!("{parent}ports[{index}].port");
                match found.port {
                    Some(number) => left_out.port(field, number),
                    None => left_out.port(field, "none"),
                }
                return None;
            };
            let protocol = protocol(found.protocol.as_ref());
            let name = found.name.map(Text::into_box).unwrap_or_default();
            Some(EndpointPort { name, port, protocol })
        })
        .collect()
}

/// The API has these three, and TCP where none is given.
fn protocol(text: Option<&Text<'_>>) -> Protocol {
    match text.map_or("", |text| &*text.0) {
        "UDP" => Protocol::Udp,
        "SCTP" => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn endpoints(endpoints: Vec<wire::Endpoint<'_>>, left_out: &mut LeftOut) -> Box<[Endpoint]> {
    // Not collected, which would take the room of what was decoded, and leave what is beyond it in
    // pieces behind each slice of a page.
    let mut kept = Vec::with_capacity(endpoints.len());
    for (index, endpoint) in endpoints.into_iter().enumerate() {
        let text = endpoint.addresses.unwrap_or_default().0.unwrap_or_default();
        let Some(address) = parse_address(&text.0) else {
            left_out.address(|| format!("endpoints[{index}].addresses[0]"), &text.0);
            continue;
        };
        let conditions = endpoint.conditions.unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        // By the API's guidance an absent `serving` is as `ready`.
        let serving = conditions.serving.unwrap_or(ready);
        kept.push(Endpoint {
            address,
            ready,
            draining: !ready && serving && conditions.terminating.unwrap_or(false),
            pod: endpoint.target_ref.and_then(wire::TargetRef::pod),
            hostname: hostname(endpoint.hostname),
            node: endpoint.node_name.map(|text| text.0.into()),
            zone: endpoint.zone.map(|text| text.0.into()),
        });
    }
    kept.into()
}

/// A host name, unless it is empty.
pub(super) fn hostname(text: Option<Text<'_>>) -> Option<Box<str>> {
    text.filter(|text| !text.0.is_empty()).map(Text::into_box)
}

pub(super) fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

/// Reads an IP address as Kubernetes does, which still takes leading zeros in IPv4 (as decimal).
pub(super) fn parse_address(text: &str) -> Option<IpAddr> {
    text.parse().ok().or_else(|| {
        let mut octets = [0; 4];
        let mut parts = text.split('.');
        for octet in &mut octets {
            let part = parts.next()?;
            let digits = (1..=8).contains(&part.len()) && part.bytes().all(|c| c.is_ascii_digit());
            *octet = part.parse().ok().filter(|_| digits)?;
        }
        parts.next().is_none().then_some(IpAddr::V4(Ipv4Addr::from(octets)))
    })
}

fn unix_seconds(text: &Text<'_>) -> i64 {
    text.0.parse::<Timestamp>().map_or(0, Timestamp::as_second)
}

/// Collects what is left out of one object.
#[derive(Default)]
pub(super) struct LeftOut {
    reported: Vec<Box<str>>,
    more: usize,
}

impl LeftOut {
    pub(super) fn tell(&mut self, sentence: impl FnOnce() -> String) {
        if self.reported.len() < LEFT_OUT_REPORTED {
            self.reported.push(sentence().into());
        } else {
            self.more += 1;
        }
    }

    fn port(&mut self, field: impl FnOnce() -> String, found: impl fmt::Display) {
        self.tell(|| format!("{}: expected 1 to 65535, found {found}; it is left out", field()));
    }

    pub(super) fn address(&mut self, field: impl FnOnce() -> String, found: &str) {
        self.tell(|| {
            let (field, found) = (field(), one_line(found, QUOTED_BYTES));
            format!("{field}: expected an IP address, found {found:?}; it is left out")
        });
    }

    pub(super) fn into_box(mut self) -> Box<[Box<str>]> {
        if self.more > 0 {
            self.reported.push(format!("{} more parts are left out", self.more).into());
        }
        self.reported.into()
    }
}

#[cfg(test)]
mod tests;
