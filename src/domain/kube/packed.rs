//! EndpointSlices as they are kept: in about a fifth of the room.
//!
//! At 100,000 endpoints they are most of what the bridge keeps, and one is looked at only when its
//! Service is planned. The names of pods are nearly equal, so each is kept as its difference from
//! the one before.

use std::net::IpAddr;
use std::sync::Arc;

use crate::domain::kube::object::{Endpoint, EndpointPort, EndpointSlice, Protocol};
use crate::domain::map::HashMap;

/// An [`EndpointSlice`] but for the name of its Service. Two are equal when what was packed is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedSlice {
    bytes: Box<[u8]>,
    /// Names of nodes and zones, which the bytes refer to by their place.
    shared: Box<[Arc<str>]>,
}

const READY: u8 = 1;
const IPV6: u8 = 2;
const POD: u8 = 4;
const DRAINING: u8 = 8;
const HOSTNAME: u8 = 16;
/// The host name is the pod's name, as in a `StatefulSet`.
const HOSTNAME_OF_POD: u8 = 32;

// === impl PackedSlice ===

impl PackedSlice {
    /// Packs `slice`.
    pub fn new(slice: &EndpointSlice) -> Self {
        let EndpointSlice { service: _, ports, endpoints, left_out } = slice;
        let mut packer = Packer::default();
        packer.number(ports.len());
        for port in ports {
            packer.port(port);
        }
        packer.number(left_out.len());
        for sentence in left_out {
            packer.text(sentence);
        }
        packer.number(endpoints.len());
        let mut pod_before = "";
        for endpoint in endpoints {
            packer.endpoint(endpoint, pod_before);
            pod_before = endpoint.pod.as_deref().unwrap_or(pod_before);
        }
        Self { bytes: packer.bytes.into(), shared: packer.shared.into() }
    }

    /// Whether one of its endpoints is on the node, or in the zone, of this name.
    pub fn names(&self, name: &str) -> bool {
        self.shared.iter().any(|shared| **shared == *name)
    }

    /// What was packed, as the slice of this Service.
    pub fn unpack(&self, service: &str) -> EndpointSlice {
        let mut rest = Rest { bytes: &self.bytes, shared: &self.shared };
        let ports = (0..rest.number()).map(|_| rest.port()).collect();
        let left_out = (0..rest.number()).map(|_| rest.text().into()).collect();
        let mut pod_before = String::new();
        let endpoints = (0..rest.number()).map(|_| rest.endpoint(&mut pod_before)).collect();
        EndpointSlice { service: service.into(), ports, endpoints, left_out }
    }
}

#[derive(Default)]
struct Packer<'a> {
    bytes: Vec<u8>,
    shared: Vec<Arc<str>>,
    places: HashMap<&'a str, usize>,
}

// === impl Packer ===

impl<'a> Packer<'a> {
    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn number(&mut self, mut number: usize) {
        while number > 0x7f {
            self.bytes.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.bytes.push(number.to_le_bytes()[0]);
    }

    fn text(&mut self, text: &str) {
        self.number(text.len());
        self.bytes.extend(text.as_bytes());
    }

    fn port(&mut self, EndpointPort { name, port, protocol }: &EndpointPort) {
        self.text(name);
        self.bytes.extend(port.to_le_bytes());
        self.bytes.push(match protocol {
            Protocol::Tcp => 0,
            Protocol::Udp => 1,
            Protocol::Sctp => 2,
        });
    }

    /// 0, or one more than its place among the shared names.
    fn shared(&mut self, name: Option<&'a Arc<str>>) {
        let place = name.map_or(0, |name| {
            *self.places.entry(name).or_insert_with(|| {
                self.shared.push(Arc::clone(name));
                self.shared.len()
            })
        });
        self.number(place);
    }

    fn endpoint(&mut self, endpoint: &'a Endpoint, pod_before: &str) {
        let Endpoint { address, ready, draining, pod, hostname, node, zone } = endpoint;
        let of_pod = hostname.is_some() && hostname == pod;
        let flags = [
            (*ready, READY),
            (address.is_ipv6(), IPV6),
            (pod.is_some(), POD),
            (*draining, DRAINING),
            (hostname.is_some() && !of_pod, HOSTNAME),
            (of_pod, HOSTNAME_OF_POD),
        ];
        self.bytes.push(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag).sum());
        match address {
            IpAddr::V4(v4) => self.bytes.extend(v4.octets()),
            IpAddr::V6(v6) => self.bytes.extend(v6.octets()),
        }
        if let Some(pod) = pod {
            let pairs = pod.chars().zip(pod_before.chars());
            let common = pairs.take_while(|(a, b)| a == b).map(|(c, _)| c.len_utf8()).sum();
            self.number(common);
            self.text(&pod[common..]);
        }
        if let Some(hostname) = hostname.as_ref().filter(|_| !of_pod) {
            self.text(hostname);
        }
        self.shared(node.as_ref());
        self.shared(zone.as_ref());
    }
}

/// What is not unpacked yet. It was packed by this process, so that it is whole.
struct Rest<'a> {
    bytes: &'a [u8],
    shared: &'a [Arc<str>],
}

// === impl Rest ===

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(length);
        self.bytes = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N));
        array
    }

    fn number(&mut self) -> usize {
        let mut number = 0;
        for shift in (0..usize::BITS).step_by(7) {
            let [byte] = self.array();
            number |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        number
    }

    fn text(&mut self) -> &'a str {
        let length = self.number();
        std::str::from_utf8(self.take(length)).expect("it was packed from a str, at its bounds")
    }

    fn port(&mut self) -> EndpointPort {
        let name = self.text().into();
        let port = u16::from_le_bytes(self.array());
        let protocol = match self.array() {
            [1] => Protocol::Udp,
            [2] => Protocol::Sctp,
            _ => Protocol::Tcp,
        };
        EndpointPort { name, port, protocol }
    }

    fn shared(&mut self) -> Option<Arc<str>> {
        let place = self.number().checked_sub(1)?;
        Some(Arc::clone(&self.shared[place]))
    }

    fn endpoint(&mut self, pod_before: &mut String) -> Endpoint {
        let [flags] = self.array();
        let address = if flags & IPV6 == 0 {
            IpAddr::from(self.array::<4>())
        } else {
            IpAddr::from(self.array::<16>())
        };
        let pod: Option<Box<str>> = (flags & POD != 0).then(|| {
            pod_before.truncate(self.number());
            pod_before.push_str(self.text());
            pod_before.as_str().into()
        });
        let hostname = match flags & (HOSTNAME | HOSTNAME_OF_POD) {
            HOSTNAME => Some(self.text().into()),
            HOSTNAME_OF_POD => pod.clone(),
            _ => None,
        };
        let (ready, draining) = (flags & READY != 0, flags & DRAINING != 0);
        let (node, zone) = (self.shared(), self.shared());
        Endpoint { address, ready, draining, pod, hostname, node, zone }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name() -> impl Strategy<Value = String> {
        prop_oneof!["[ab]{0,3}", "web-7d4b9c6f5d-[ab]{2}", "[aäß]{0,3}", "x{120,300}"]
    }

    fn endpoints() -> impl Strategy<Value = Vec<Endpoint>> {
        let shared = || prop::option::of(name().prop_map(Arc::from));
        let pod = prop::option::of(name().prop_map(Box::from));
        // None, the pod's name, or another one.
        let hostname = prop::option::of(prop::option::of(name().prop_map(Box::from)));
        let state = (any::<bool>(), any::<bool>());
        let endpoint = (any::<IpAddr>(), state, pod, hostname, shared(), shared());
        prop::collection::vec(endpoint, 0..5).prop_map(|endpoints| {
            let all = endpoints.into_iter();
            all.map(|(address, (ready, draining), pod, hostname, node, zone)| Endpoint {
                address,
                ready,
                draining,
                hostname: hostname.and_then(|other| other.or_else(|| pod.clone())),
                pod,
                node,
                zone,
            })
            .collect()
        })
    }

    fn slices() -> impl Strategy<Value = EndpointSlice> {
        let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp), Just(Protocol::Sctp)];
        let ports = prop::collection::vec((name(), 1..=u16::MAX, protocol), 0..3);
        let left_out = prop::collection::vec(name(), 0..2);
        (ports, endpoints(), left_out).prop_map(|(ports, endpoints, left_out)| EndpointSlice {
            service: "web".into(),
            ports: ports
                .into_iter()
                .map(|(name, port, protocol)| EndpointPort { name: name.into(), port, protocol })
                .collect(),
            endpoints: endpoints.into(),
            left_out: left_out.into_iter().map(Box::from).collect(),
        })
    }

    proptest! {
        #[test]
        fn unpacking_gives_what_was_packed(slice in slices()) {
            prop_assert_eq!(PackedSlice::new(&slice).unpack("web"), slice);
        }

        #[test]
        fn equal_means_equal(a in slices(), b in slices()) {
            prop_assert_eq!(PackedSlice::new(&a) == PackedSlice::new(&b), a == b);
        }
    }
}
