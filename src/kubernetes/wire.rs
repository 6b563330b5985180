//! The objects as the API sends them, without what is not used.
//!
//! Everything that the API may leave out or send as `null` is an `Option`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::domain::kube::object::is_read_annotation;

/// Addresses of a Service that are kept of one field: as many as endpoints in a slice. Without a
/// bound one tenant's `externalIPs`, of which 82,000 fit into an object, are 1.4 MB of ours.
pub const MAX_ADDRESSES: usize = 1_000;

/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Label of a Node that names its zone.
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Label of a Node that load balancers must not lead to, whatever its value.
const EXCLUDED_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Annotation of an Endpoints object that holds no more than 1,000 addresses of a Service that has
/// more.
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";

/// Any object, as far as it has to be known to be told apart.
#[derive(Deserialize)]
pub struct Named<'a> {
    #[serde(borrow)]
    pub metadata: Identified<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identified<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
}

#[derive(Deserialize)]
pub struct Service<'a> {
    #[serde(borrow)]
    pub metadata: ServiceMetadata<'a>,
    #[serde(borrow, default)]
    pub spec: ServiceSpec<'a>,
    #[serde(borrow)]
    pub status: Option<ServiceStatus<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceMetadata<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub namespace: Text<'a>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    #[serde(borrow)]
    pub uid: Option<Text<'a>>,
    #[serde(borrow)]
    pub creation_timestamp: Option<Text<'a>>,
    pub labels: Option<BTreeMap<Box<str>, Box<str>>>,
    pub annotations: Option<Annotations>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSpec<'a> {
    #[serde(borrow)]
    pub r#type: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIP")]
    pub cluster_ip: Option<Text<'a>>,
    #[serde(borrow, rename = "clusterIPs")]
    pub cluster_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow, rename = "externalIPs")]
    pub external_ips: Option<Vec<Text<'a>>>,
    #[serde(borrow)]
    pub external_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub ports: Option<Vec<ServicePort<'a>>>,
    pub publish_not_ready_addresses: Option<bool>,
    #[serde(borrow)]
    pub external_traffic_policy: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    pub port: i64,
    pub node_port: Option<i64>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus<'a> {
    #[serde(borrow)]
    load_balancer: Option<LoadBalancer<'a>>,
}

#[derive(Default, Deserialize)]
struct LoadBalancer<'a> {
    #[serde(borrow)]
    ingress: Option<Vec<Ingress<'a>>>,
}

#[derive(Deserialize)]
struct Ingress<'a> {
    #[serde(borrow)]
    ip: Option<Text<'a>>,
    #[serde(borrow)]
    hostname: Option<Text<'a>>,
}

impl ServiceStatus<'_> {
    /// Of each load-balancer ingress the address or else the host name.
    pub fn addresses(self) -> Box<[Box<str>]> {
        let ingress = self.load_balancer.unwrap_or_default().ingress.unwrap_or_default();
        let given = |text: &Text<'_>| !text.0.is_empty();
        ingress
            .into_iter()
            .take(MAX_ADDRESSES)
            .filter_map(|it| it.ip.filter(given).or(it.hostname.filter(given)))
            .map(Text::into_box)
            .collect()
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointSlice<'a> {
    #[serde(borrow)]
    pub metadata: SliceMetadata<'a>,
    #[serde(borrow)]
    pub address_type: Option<Text<'a>>,
    #[serde(borrow)]
    pub ports: Option<Vec<EndpointPort<'a>>>,
    #[serde(borrow)]
    pub endpoints: Option<Vec<Endpoint<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SliceMetadata<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub namespace: Text<'a>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    pub labels: Option<ServiceLabel>,
    pub annotations: Option<OverCapacity>,
}

#[derive(Deserialize)]
pub struct Node<'a> {
    #[serde(borrow)]
    pub metadata: NodeMetadata<'a>,
    #[serde(borrow)]
    pub status: Option<NodeStatus<'a>>,
}

#[derive(Deserialize)]
pub struct Namespace<'a> {
    #[serde(borrow)]
    pub metadata: NamespaceMetadata<'a>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamespaceMetadata<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    pub labels: Option<BTreeMap<Box<str>, Box<str>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeMetadata<'a> {
    #[serde(borrow)]
    pub name: Text<'a>,
    #[serde(borrow)]
    pub resource_version: Option<Text<'a>>,
    pub labels: Option<NodeLabels>,
}

#[derive(Default, Deserialize)]
pub struct NodeStatus<'a> {
    #[serde(borrow)]
    pub addresses: Option<Vec<NodeAddress<'a>>>,
    #[serde(borrow)]
    pub conditions: Option<Vec<Condition<'a>>>,
}

#[derive(Deserialize)]
pub struct NodeAddress<'a> {
    #[serde(borrow)]
    pub r#type: Text<'a>,
    #[serde(borrow)]
    pub address: Text<'a>,
}

#[derive(Deserialize)]
pub struct Condition<'a> {
    #[serde(borrow)]
    pub r#type: Text<'a>,
    #[serde(borrow)]
    pub status: Text<'a>,
}

#[derive(Deserialize)]
pub struct EndpointPort<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    pub port: Option<i64>,
    #[serde(borrow)]
    pub protocol: Option<Text<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint<'a> {
    #[serde(borrow)]
    pub addresses: Option<First<'a>>,
    pub conditions: Option<Conditions>,
    #[serde(borrow)]
    pub hostname: Option<Text<'a>>,
    #[serde(borrow)]
    pub target_ref: Option<TargetRef<'a>>,
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub zone: Option<Text<'a>>,
}

#[derive(Default, Deserialize)]
pub struct Conditions {
    pub ready: Option<bool>,
    pub serving: Option<bool>,
    pub terminating: Option<bool>,
}

#[derive(Deserialize)]
pub struct TargetRef<'a> {
    #[serde(borrow)]
    kind: Option<Text<'a>>,
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

impl TargetRef<'_> {
    /// The name of the pod that is referred to.
    pub fn pod(self) -> Option<Box<str>> {
        self.kind.filter(|kind| kind.0 == "Pod").and(self.name).map(Text::into_box)
    }
}

#[derive(Deserialize)]
pub struct Endpoints<'a> {
    #[serde(borrow)]
    pub metadata: SliceMetadata<'a>,
    #[serde(borrow)]
    pub subsets: Option<Vec<Subset<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Subset<'a> {
    #[serde(borrow)]
    pub addresses: Option<Vec<SubsetAddress<'a>>>,
    #[serde(borrow)]
    pub not_ready_addresses: Option<Vec<SubsetAddress<'a>>>,
    #[serde(borrow)]
    pub ports: Option<Vec<EndpointPort<'a>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubsetAddress<'a> {
    #[serde(borrow)]
    pub ip: Text<'a>,
    #[serde(borrow)]
    pub hostname: Option<Text<'a>>,
    #[serde(borrow)]
    pub node_name: Option<Text<'a>>,
    #[serde(borrow)]
    pub target_ref: Option<TargetRef<'a>>,
}

/// A string, borrowed from the response wherever it has no escapes.
#[derive(Debug, Default)]
pub struct Text<'a>(pub Cow<'a, str>);

impl Text<'_> {
    /// The string, owned.
    pub fn into_box(self) -> Box<str> {
        self.0.into()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;

        impl<'de> Visitor<'de> for TextVisitor {
            type Value = Text<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Borrowed(text)))
            }

            fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
        }

        deserializer.deserialize_str(TextVisitor)
    }
}

/// The annotations that are read; the values of all others are skipped.
#[derive(Default)]
pub struct Annotations(pub BTreeMap<Box<str>, Box<str>>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnnotationsVisitor;

        impl<'de> Visitor<'de> for AnnotationsVisitor {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut read = BTreeMap::new();
                while let Some(key) = map.next_key::<Text<'de>>()? {
                    if is_read_annotation(&key.0) {
                        read.insert(key.into_box(), map.next_value()?);
                    } else {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
                Ok(Annotations(read))
            }
        }

        deserializer.deserialize_map(AnnotationsVisitor)
    }
}

/// Of an EndpointSlice's labels, the one that names its Service.
#[derive(Default)]
pub struct ServiceLabel(pub Option<Box<str>>);

impl<'de> Deserialize<'de> for ServiceLabel {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [service] = deserializer.deserialize_map(Picked([SERVICE_NAME_LABEL]))?;
        Ok(Self(service.filter(|it| !it.is_empty())))
    }
}

/// Of a Node's labels, those that can change a registration.
#[derive(Default)]
pub struct NodeLabels {
    /// Its zone.
    pub zone: Option<Box<str>>,
    /// Whether load balancers must not lead to it.
    pub excluded: bool,
}

impl<'de> Deserialize<'de> for NodeLabels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [zone, excluded] =
            deserializer.deserialize_map(Picked([ZONE_LABEL, EXCLUDED_LABEL]))?;
        Ok(Self { zone: zone.filter(|it| !it.is_empty()), excluded: excluded.is_some() })
    }
}

/// Of an Endpoints object's annotations, the one that says that addresses are missing.
#[derive(Default)]
pub struct OverCapacity(pub bool);

impl<'de> Deserialize<'de> for OverCapacity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let [value] = deserializer.deserialize_map(Picked([OVER_CAPACITY]))?;
        Ok(Self(value.as_deref() == Some("truncated")))
    }
}

/// Takes the values of some keys of a map of strings, and skips all others.
struct Picked<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for Picked<N> {
    type Value = [Option<Box<str>>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of strings")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut picked = [const { None }; N];
        while let Some(key) = map.next_key::<Text<'de>>()? {
            match self.0.iter().position(|wanted| key.0 == *wanted) {
                Some(place) => picked[place] = Some(map.next_value()?),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(picked)
    }
}

/// The first of an endpoint's addresses: the API asks clients to use no other.
#[derive(Default)]
pub struct First<'a>(pub Option<Text<'a>>);

impl<'de: 'a, 'a> Deserialize<'de> for First<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FirstVisitor;

        impl<'de> Visitor<'de> for FirstVisitor {
            type Value = First<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of addresses")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<First<'de>, A::Error> {
                let first = seq.next_element()?;
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(First(first))
            }
        }

        deserializer.deserialize_seq(FirstVisitor)
    }
}
