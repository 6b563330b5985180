//! How endpoints are laid out in EndpointSlices: at most 100 in each, and where one changes no
//! other slice is written.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::domain::hash::fnv1a_32;
use crate::domain::import::instance::{Endpoints, Group};

/// Endpoints in one slice: the EndpointSlice controller's own default.
pub const MAX_ENDPOINTS: usize = 100;

/// One of a slice's ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlicePort {
    /// The name of the Service's port; empty for the only one without a name.
    pub name: Box<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
    /// The number at the endpoints.
    pub port: u16,
}

/// An EndpointSlice of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Whether its addresses are IPv6.
    pub is_ipv6: bool,
    /// Its ports, sorted.
    pub ports: Vec<SlicePort>,
    /// Its endpoints by address, and whether each is ready.
    pub endpoints: BTreeMap<IpAddr, bool>,
}

/// The slices of one Service by name.
pub type Slices = BTreeMap<Box<str>, Slice>;

/// The name and protocol of one of the Service's ports.
pub type ServicePort = (Box<str>, Box<str>);

/// How the slices of the Service `name` with this uid ought to be, given how they are: an endpoint
/// stays in the slice in which it is.
pub fn lay_out(
    (name, uid): (&str, &str),
    ports: &[ServicePort],
    endpoints: &Endpoints,
    existing: &Slices,
) -> Slices {
    let mut wanted = Slices::new();
    for (group, all) in endpoints {
        let ports = ports_at(ports, group.port);
        let mut left: BTreeMap<IpAddr, bool> = all.clone();
        let mut slices: Slices = existing
            .iter()
            .filter(|(_, slice)| slice.is_of(*group))
            .map(|(name, slice)| {
                let kept = slice.endpoints.keys().filter_map(|it| left.remove_entry(it)).collect();
                let slice = Slice { is_ipv6: group.is_ipv6, ports: ports.clone(), endpoints: kept };
                (name.clone(), slice)
            })
            .collect();
        let mut left = left.into_iter().peekable();
        for slice in slices.values_mut() {
            let room = MAX_ENDPOINTS.saturating_sub(slice.endpoints.len());
            slice.endpoints.extend(left.by_ref().take(room));
        }
        let mut number = 0;
        while left.peek().is_some() {
            let slice_name = loop {
                let slice_name = slice_name(name, uid, *group, number);
                number += 1;
                if !existing.contains_key(&slice_name) {
                    break slice_name;
                }
            };
            let endpoints = left.by_ref().take(MAX_ENDPOINTS).collect();
            let slice = Slice { is_ipv6: group.is_ipv6, ports: ports.clone(), endpoints };
            slices.insert(slice_name, slice);
        }
        wanted.extend(slices.into_iter().filter(|(_, slice)| !slice.endpoints.is_empty()));
    }
    wanted
}

/// What brings `existing` to `wanted`, in two steps so that no endpoint is missing in between: what
/// adds endpoints comes first, and only once that is done what removes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Slices to write.
    pub write: BTreeSet<Box<str>>,
    /// Slices to delete, once there is nothing left to write.
    pub delete: BTreeSet<Box<str>>,
}

impl Changes {
    /// The next step.
    pub fn between(existing: &Slices, wanted: &Slices) -> Self {
        let differs = |name: &str, slice: &Slice| existing.get(name) != Some(slice);
        let all: Vec<_> = wanted.iter().filter(|(name, slice)| differs(name, slice)).collect();
        let adding = all.iter().filter(|(name, slice)| slice.adds_to(existing.get(*name)));
        let mut write: BTreeSet<Box<str>> = adding.map(|(name, _)| (*name).clone()).collect();
        if write.is_empty() {
            write = all.iter().map(|(name, _)| (*name).clone()).collect();
        }
        let mut delete = BTreeSet::new();
        if write.is_empty() {
            let gone = existing.keys().filter(|name| !wanted.contains_key(*name));
            delete = gone.cloned().collect();
        }
        Self { write, delete }
    }
}

// === impl Slice ===

impl Slice {
    /// Whether it holds what belongs into this group.
    fn is_of(&self, group: Group) -> bool {
        self.is_ipv6 == group.is_ipv6 && self.ports.iter().all(|port| port.port == group.port)
    }

    /// Whether it has an endpoint, a ready one or a port that it had not before.
    fn adds_to(&self, before: Option<&Self>) -> bool {
        let Some(before) = before else { return true };
        let is_new = |(address, ready): (&IpAddr, &bool)| match before.endpoints.get(address) {
            None => true,
            Some(was_ready) => *ready && !was_ready,
        };
        self.ports != before.ports || self.endpoints.iter().any(is_new)
    }
}

/// All ports of the Service at the instances' port, as consul8s had it: Consul knows one port of an
/// instance.
fn ports_at(ports: &[ServicePort], number: u16) -> Vec<SlicePort> {
    let at = |(name, protocol): &ServicePort| SlicePort {
        name: name.clone(),
        protocol: protocol.clone(),
        port: number,
    };
    let mut ports: Vec<SlicePort> = ports.iter().map(at).collect();
    ports.sort();
    ports
}

/// A name that no slice of another Service, or of an earlier one of that name, has.
fn slice_name(service: &str, uid: &str, group: Group, number: usize) -> Box<str> {
    let Group { is_ipv6, port } = group;
    let seed = format!("{uid}/{is_ipv6}/{port}/{number}");
    format!("{service}-consul-{:08x}", fnv1a_32(seed.bytes())).into()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0001 + number).into()
    }

    fn group(port: u16) -> Group {
        Group { is_ipv6: false, port }
    }

    fn endpoints(all: &[(u16, std::ops::Range<u32>)]) -> Endpoints {
        let of = |range: &std::ops::Range<u32>| range.clone().map(|n| (address(n), true)).collect();
        all.iter().map(|(port, range)| (group(*port), of(range))).collect()
    }

    fn http() -> Vec<ServicePort> {
        vec![("http".into(), "TCP".into())]
    }

    fn laid_out(endpoints: &Endpoints, existing: &Slices) -> Slices {
        lay_out(("db", "uid-1"), &http(), endpoints, existing)
    }

    #[test]
    fn each_port_has_slices_of_its_own_of_at_most_100_endpoints() {
        let slices = laid_out(&endpoints(&[(80, 0..250), (81, 0..1)]), &Slices::new());
        let mut sizes: Vec<_> =
            slices.values().map(|it| (it.ports[0].port, it.endpoints.len())).collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [(80, 50), (80, 100), (80, 100), (81, 1)]);
        assert!(slices.keys().all(|name| name.starts_with("db-consul-") && name.len() == 18));
    }

    #[test]
    fn one_change_of_a_thousand_writes_one_slice() {
        let before = laid_out(&endpoints(&[(80, 0..1000)]), &Slices::new());
        for (what, wanted) in [
            ("gone", endpoints(&[(80, 1..1000)])),
            ("new", endpoints(&[(80, 0..1001)])),
            ("another", endpoints(&[(80, 1..1001)])),
        ] {
            let changes = Changes::between(&before, &laid_out(&wanted, &before));
            assert_eq!((changes.write.len(), changes.delete.len()), (1, 0), "{what}");
        }
        let mut turned = endpoints(&[(80, 0..1000)]);
        turned.get_mut(&group(80)).unwrap().insert(address(500), false);
        let changes = Changes::between(&before, &laid_out(&turned, &before));
        assert_eq!(changes.write.len(), 1);
    }

    #[test]
    fn a_port_that_is_renumbered_has_its_new_endpoints_before_the_old_ones_go() {
        let before = laid_out(&endpoints(&[(80, 0..10)]), &Slices::new());
        let wanted = laid_out(&endpoints(&[(81, 0..10)]), &before);
        let first = Changes::between(&before, &wanted);
        assert_eq!((first.write.len(), first.delete.len()), (1, 0));
        let mut between = before.clone();
        between.extend(wanted.clone());
        let second = Changes::between(&between, &wanted);
        assert_eq!((second.write.len(), second.delete.len()), (0, 1));
        assert_eq!(Changes::between(&wanted, &wanted), Changes::default());
    }

    #[test]
    fn the_ports_of_the_service_are_followed_in_place() {
        let before = laid_out(&endpoints(&[(80, 0..10)]), &Slices::new());
        let ports = [("web".into(), "TCP".into()), ("dns".into(), "UDP".into())];
        let after = lay_out(("db", "uid-1"), &ports, &endpoints(&[(80, 0..10)]), &before);
        assert_eq!(after.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        let shown: Vec<_> = after.values().flat_map(|it| &it.ports).collect();
        assert_eq!(shown.len(), 2);
        assert!(shown.iter().any(|it| &*it.protocol == "UDP" && &*it.name == "dns"));
    }

    #[test]
    fn the_names_of_another_service_of_the_same_name_are_others() {
        let all = endpoints(&[(80, 0..1)]);
        let first = lay_out(("db", "uid-1"), &http(), &all, &Slices::new());
        let second = lay_out(("db", "uid-2"), &http(), &all, &Slices::new());
        assert!(first.keys().all(|name| !second.contains_key(name)));
    }

    proptest! {
        /// Whatever was there, the result holds each endpoint once, and the steps to it never lack an
        /// endpoint that is in both.
        #[test]
        fn nothing_is_lost_on_the_way(
            before in prop::collection::btree_set(0..400_u32, 0..300),
            after in prop::collection::btree_set(0..400_u32, 0..300),
            ports in (80..82_u16, 80..82_u16),
        ) {
            let of = |all: &BTreeSet<u32>, port| -> Endpoints {
                let all: BTreeMap<IpAddr, bool> = all.iter().map(|n| (address(*n), n % 3 > 0)).collect();
                if all.is_empty() { Endpoints::new() } else { [(group(port), all)].into() }
            };
            let mut there = laid_out(&of(&before, ports.0), &Slices::new());
            let wanted_endpoints = of(&after, ports.1);
            for step in 0..4 {
                let wanted = laid_out(&wanted_endpoints, &there);
                let changes = Changes::between(&there, &wanted);
                if changes == Changes::default() { break; }
                prop_assert!(step < 3, "it does not settle");
                for name in &changes.write { there.insert(name.clone(), wanted[name].clone()); }
                for name in &changes.delete { there.remove(name); }
                let shown: BTreeSet<IpAddr> = there.values().flat_map(|it| it.endpoints.keys().copied()).collect();
                for n in before.intersection(&after) {
                    prop_assert!(shown.contains(&address(*n)), "{n} is missing in between");
                }
            }
            let mut found: Vec<IpAddr> = there.values().flat_map(|it| it.endpoints.keys().copied()).collect();
            prop_assert!(there.values().all(|it| (1..=MAX_ENDPOINTS).contains(&it.endpoints.len())));
            found.sort_unstable();
            prop_assert_eq!(found, after.iter().map(|n| address(*n)).collect::<Vec<_>>());
        }
    }
}
