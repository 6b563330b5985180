//! Instances of Consul services, and the endpoints that they are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::domain::address::is_reachable;
use crate::domain::import::addresses::Addresses;
use crate::domain::import::source::{Import, SERVICE_SYNC};
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::kube::object::Protocol;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::excerpt;

/// Instances of one Consul service that are taken: ten times what the Endpoints API took, and some
/// megabytes here. Whoever may register in Consul could otherwise fill the memory.
pub const MAX_INSTANCES: usize = 10_000;
/// Addresses that a problem names: a line's worth.
const NAMED: usize = 3;

/// One instance, as `/v1/health/service` answers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The service's own address; empty where it has none.
    pub address: Box<str>,
    /// The address of its node, which counts where the service has none.
    pub node_address: Box<str>,
    /// Its port; 0 where it has none.
    pub port: u16,
    /// The worst of its checks.
    pub health: Health,
    /// Which bridge registered it: meta `kube-consul-cluster`.
    pub cluster: Option<Box<str>>,
    /// Its protocol: TCP, unless a bridge says otherwise by a tag.
    pub protocol: Protocol,
    /// Whether it is a proxy or gateway of Consul's service mesh.
    pub is_proxy: bool,
    /// The Service that another sync of Kubernetes, such as consul-k8s, says that it comes from.
    pub origin: Option<ObjectKey>,
}

/// The worst of an instance's checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Health {
    /// None warns and none is critical.
    Passing,
    /// One warns.
    Warning,
    /// One is critical; maintenance mode is that too.
    Critical,
}

/// Where an endpoint is: the group of slices that it belongs to, by the API's rule that a slice
/// has one family and one set of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group {
    /// Whether the addresses are IPv6.
    pub is_ipv6: bool,
    /// The port of the instances.
    pub port: u16,
}

/// Endpoints by group and address: whether each is ready.
pub type Endpoints = BTreeMap<Group, BTreeMap<IpAddr, bool>>;

/// What an import makes of the instances of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// The endpoints.
    pub endpoints: Endpoints,
    /// Whether any of them is ready.
    pub is_usable: bool,
    /// What could not be taken.
    pub problems: Vec<Problem>,
}

// === impl Imported ===

impl Imported {
    /// The endpoints that `instances` are, but for those which our own cluster registered.
    ///
    /// `is_import` says whether a Service of this cluster is itself imported, and not kept from
    /// consul-k8s: what that registered of it must not come back, or it would stay for ever.
    /// `addresses` says where the operator lets an import lead.
    pub fn of(
        import: &Import,
        ours: Option<&ClusterName>,
        addresses: &Addresses,
        is_import: impl Fn(&ObjectKey) -> bool,
        instances: &[Instance],
    ) -> Self {
        let mut imported = Self::default();
        let (mut unusable, mut forbidden) = (Vec::new(), Vec::new());
        let (mut without_port, mut echo) = (0, None);
        let mut critical = Vec::new();
        if instances.len() > MAX_INSTANCES {
            imported.problems.push(too_many());
        }
        for instance in instances.iter().take(MAX_INSTANCES) {
            if instance.is_of(ours) {
                continue;
            }
            if let Some(origin) = instance.origin.as_ref().filter(|it| is_import(it)) {
                echo = Some(origin);
                continue;
            }
            let Some(address) = instance.usable_address(import.node_address_counts) else {
                unusable.push(instance.shown_address());
                continue;
            };
            if !addresses.permit(address) {
                forbidden.push(instance.shown_address());
                continue;
            }
            if instance.port == 0 {
                without_port += 1;
                continue;
            }
            let ready = match instance.health {
                Health::Passing => true,
                Health::Warning => import.warning_is_ready,
                Health::Critical => false,
            };
            imported.add(address, instance.port, ready);
            if instance.health == Health::Critical {
                critical.push((address, instance.port));
            }
        }
        if import.last_resort && !imported.is_usable {
            for (address, port) in critical {
                imported.add(address, port, true);
            }
        }
        imported.problems.extend(echo.map(echoed));
        imported.problems.extend(unusable_addresses(&unusable));
        imported.problems.extend(forbidden_addresses(&forbidden));
        imported.problems.extend(instances_without_port(without_port));
        imported
    }

    /// Two instances at one address and port are one endpoint, ready while one of them is.
    fn add(&mut self, address: IpAddr, port: u16, ready: bool) {
        let group = Group { is_ipv6: address.is_ipv6(), port };
        *self.endpoints.entry(group).or_default().entry(address).or_default() |= ready;
        self.is_usable |= ready;
    }
}

// === impl Instance ===

impl Instance {
    /// Whether a bridge of this cluster registered it.
    pub fn is_of(&self, cluster: Option<&ClusterName>) -> bool {
        cluster.is_some_and(|ours| self.cluster.as_deref() == Some(ours.as_str()))
    }

    /// The address that an EndpointSlice takes: the service's, else its node's. The API refuses a
    /// whole slice for one that it does not take.
    fn usable_address(&self, node_address_counts: bool) -> Option<IpAddr> {
        let own = self.address.parse::<IpAddr>().ok();
        let address = match own {
            Some(address) => address,
            None if self.address.is_empty() || node_address_counts => {
                self.node_address.parse().ok()?
            }
            None => return None,
        };
        Some(address.to_canonical()).filter(|it| is_reachable(*it))
    }

    fn shown_address(&self) -> &str {
        if self.address.is_empty() { &self.node_address } else { &self.address }
    }
}

fn too_many() -> Problem {
    let message = format!(
        "expected at most {MAX_INSTANCES} instances, found more: the rest is left out; choose fewer by \
         tags or a filter",
    );
    Problem::new(Reason::Incomplete, message)
}

fn unusable_addresses(found: &[&str]) -> Option<Problem> {
    (!found.is_empty()).then(|| {
        Problem::new(
            Reason::Incomplete,
            format!(
                "{} left out: expected IP addresses that are reached over the network, found {}; \
                 register the services with such an address",
                instances(found.len()),
                named(found),
            ),
        )
    })
}

fn forbidden_addresses(found: &[&str]) -> Option<Problem> {
    (!found.is_empty()).then(|| {
        Problem::new(
            Reason::Denied,
            format!(
                "{} left out: expected addresses that --allow-cidr and --deny-cidr permit, found {}; \
                 whoever runs the import can permit them",
                instances(found.len()),
                named(found),
            ),
        )
    })
}

/// The first addresses of some.
fn named(addresses: &[&str]) -> String {
    let first = addresses.iter().take(NAMED);
    let named: Vec<String> = first.map(|it| format!("{:?}", excerpt(it))).collect();
    let more = if addresses.len() > NAMED { ", …" } else { "" };
    format!("{}{more}", named.join(", "))
}

fn echoed(origin: &ObjectKey) -> Problem {
    Problem::new(
        Reason::Contested,
        format!(
            "instances are left out that come from Service {origin}, which is imported itself: \
             consul-k8s registers it; annotate that Service with {SERVICE_SYNC}=false, and remove what is \
             left of it from Consul",
        ),
    )
}

fn instances_without_port(count: usize) -> Option<Problem> {
    (count > 0).then(|| {
        let message = format!(
            "{} left out: expected a port from 1 to 65535, found none; register the services with \
             their port",
            instances(count),
        );
        Problem::new(Reason::Incomplete, message)
    })
}

fn instances(count: usize) -> String {
    if count == 1 { "1 instance is".to_owned() } else { format!("{count} instances are") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::import::source::{IMPORT, Import};

    fn instance(address: &str, node_address: &str, port: u16, health: Health) -> Instance {
        let (address, node_address) = (address.into(), node_address.into());
        Instance {
            address,
            node_address,
            port,
            health,
            cluster: None,
            protocol: Protocol::Tcp,
            is_proxy: false,
            origin: None,
        }
    }

    fn import(options: &[(&str, &str)]) -> Import {
        let all = [(IMPORT, "db")].iter().chain(options);
        let annotations = all.map(|&(key, value)| (key.into(), value.into())).collect();
        Import::of(&BTreeMap::new(), &annotations).0.unwrap()
    }

    /// The endpoints as `address:port`, with a mark where they are not ready.
    fn shown(imported: &Imported) -> Vec<String> {
        let of = |(group, all): (&Group, &BTreeMap<IpAddr, bool>)| {
            let port = group.port;
            let one = |(address, ready): (&IpAddr, &bool)| {
                format!("{address}:{port}{}", if *ready { "" } else { " not ready" })
            };
            all.iter().map(one).collect::<Vec<_>>()
        };
        imported.endpoints.iter().flat_map(of).collect()
    }

    #[test]
    fn i6_the_address_is_the_services_else_its_nodes_and_one_that_the_api_takes() {
        for (address, node, wanted) in [
            ("10.0.0.1", "10.9.0.1", Some("10.0.0.1")),
            ("", "10.9.0.1", Some("10.9.0.1")),
            ("FD00::1", "10.9.0.1", Some("fd00::1")),
            ("::ffff:10.0.0.9", "", Some("10.0.0.9")),
            ("db.example", "10.9.0.1", None),
            ("", "db.example", None),
            ("169.254.0.2", "10.9.0.1", None),
            ("fe80::1", "10.9.0.1", None),
            ("127.0.0.1", "10.9.0.1", None),
            ("::1", "10.9.0.1", None),
            ("0.0.0.0", "10.9.0.1", None),
            ("224.0.0.5", "10.9.0.1", None),
            ("ff02::1", "10.9.0.1", None),
        ] {
            let imported = Imported::of(
                &import(&[]),
                None,
                &Addresses::default(),
                |_| false,
                &[
                    instance(address, node, 80, Health::Passing),
                    instance("10.1.1.1", "", 81, Health::Passing),
                ],
            );
            let found: Vec<_> = shown(&imported);
            let wanted: Vec<_> = wanted.map(|it| format!("{it}:80")).into_iter().collect();
            assert_eq!(
                found.iter().filter(|it| !it.contains("10.1.1.1")).cloned().collect::<Vec<_>>(),
                wanted,
                "{address:?}"
            );
            assert_eq!(
                imported.problems.is_empty(),
                !wanted.is_empty(),
                "{address:?}: {:?}",
                imported.problems
            );
        }
    }

    #[test]
    fn consul8s_took_the_address_of_the_node() {
        let import = Import { node_address_counts: true, ..import(&[]) };
        let of = |address| {
            let all = [instance(address, "10.9.0.1", 80, Health::Passing)];
            shown(&Imported::of(&import, None, &Addresses::default(), |_| false, &all))
        };
        assert_eq!(of("db.example"), ["10.9.0.1:80"]);
        assert_eq!(of("10.0.0.1"), ["10.0.0.1:80"]);
        assert_eq!(of("127.0.0.1"), [""; 0], "nobody meant the node by it");
    }

    #[test]
    fn an_address_that_the_operator_forbids_is_left_out_and_told() {
        let addresses =
            Addresses { denied: vec!["10.96.0.0/12".parse().unwrap()], ..Addresses::default() };
        let of = |address: &str, node: &str| {
            let all = [instance(address, node, 443, Health::Passing)];
            Imported::of(&import(&[]), None, &addresses, |_| false, &all)
        };
        for (address, node) in [("10.96.0.1", ""), ("::ffff:10.96.0.1", ""), ("", "10.96.0.1")] {
            let imported = of(address, node);
            assert_eq!(shown(&imported), [""; 0], "{address} {node}");
            assert!(!imported.is_usable);
            let problem = &imported.problems[0];
            assert_eq!(problem.reason, Reason::Denied);
            assert!(problem.message.contains("--deny-cidr permit, found"), "{}", problem.message);
        }
        assert_eq!(shown(&of("10.1.0.1", "")), ["10.1.0.1:443"]);
    }

    #[test]
    fn a_port_that_is_missing_is_told() {
        let all = [
            instance("10.0.0.1", "", 0, Health::Passing),
            instance("10.0.0.2", "", 0, Health::Passing),
        ];
        let imported = Imported::of(&import(&[]), None, &Addresses::default(), |_| false, &all);
        assert_eq!(shown(&imported), [""; 0]);
        assert!(
            imported.problems[0].message.starts_with("2 instances are left out: expected a port")
        );
    }

    #[test]
    fn what_is_ready() {
        let all = [
            instance("10.0.0.1", "", 80, Health::Passing),
            instance("10.0.0.2", "", 80, Health::Warning),
            instance("10.0.0.3", "", 80, Health::Critical),
        ];
        let of = |options: &[(&str, &str)], all: &[Instance]| {
            shown(&Imported::of(&import(options), None, &Addresses::default(), |_| false, all))
        };
        let wanted = ["10.0.0.1:80", "10.0.0.2:80 not ready", "10.0.0.3:80 not ready"];
        assert_eq!(of(&[], &all), wanted);
        assert_eq!(of(&[("kube-consul.io/import-last-resort", "true")], &all), wanted);
        let warning = [("kube-consul.io/import-health", "warning")];
        assert_eq!(of(&warning, &all), ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80 not ready"]);
        let last_resort = [("kube-consul.io/import-last-resort", "true")];
        assert_eq!(of(&last_resort, &all[1..]), ["10.0.0.2:80 not ready", "10.0.0.3:80"]);
    }

    #[test]
    fn there_are_no_more_endpoints_of_a_service_than_fit() {
        let all: Vec<Instance> = (0..=u32::try_from(MAX_INSTANCES).unwrap())
            .map(|n| {
                let address = std::net::Ipv4Addr::from(0x0a00_0001 + n).to_string();
                instance(&address, "", 80, Health::Passing)
            })
            .collect();
        let of = |all: &[Instance]| {
            let imported = Imported::of(&import(&[]), None, &Addresses::default(), |_| false, all);
            let count = imported.endpoints.values().map(BTreeMap::len).sum::<usize>();
            (count, imported.problems.len())
        };
        assert_eq!(of(&all), (MAX_INSTANCES, 1));
        assert_eq!(of(&all[1..]), (MAX_INSTANCES, 0));
    }

    #[test]
    fn two_instances_at_one_address_and_port_are_one_endpoint() {
        let all = [
            instance("10.0.0.1", "", 80, Health::Critical),
            instance("10.0.0.1", "", 80, Health::Passing),
            instance("10.0.0.1", "", 81, Health::Critical),
        ];
        assert_eq!(
            shown(&Imported::of(&import(&[]), None, &Addresses::default(), |_| false, &all)),
            ["10.0.0.1:80", "10.0.0.1:81 not ready"]
        );
    }

    #[test]
    fn i12_what_our_own_cluster_registered_is_left_out() {
        let ours: ClusterName = "eu".parse().unwrap();
        let of = |cluster: &str| Instance {
            cluster: Some(cluster.into()),
            ..instance("10.0.0.1", "", 80, Health::Passing)
        };
        let shown = |all: &[Instance]| {
            shown(&Imported::of(&import(&[]), Some(&ours), &Addresses::default(), |_| false, all))
        };
        assert_eq!(shown(&[of("eu")]), [""; 0]);
        assert_eq!(shown(&[of("us")]), ["10.0.0.1:80"]);
    }
}
