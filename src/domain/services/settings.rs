//! What the operator chose for the bridge.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::domain::consul::names::Holder;
use crate::domain::kube::names::ClusterName;
use crate::domain::kube::object::{NodeAddressType, ServiceType};
use crate::domain::kube::routes::RouteKinds;
use crate::domain::kube::selector::Selector;
use crate::domain::services::labels::{LabelMeta, LabelTag};
use crate::domain::services::template::NameTemplate;
use crate::domain::words::words;

/// The options that decide what is registered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the cluster: the mark of its records.
    pub cluster: ClusterName,
    /// How Consul names are made.
    pub name_template: NameTemplate,
    /// Which addresses are registered, unless an annotation says otherwise.
    pub address: AddressMode,
    /// How readiness is mirrored.
    pub health: HealthMode,
    /// Whether a Service without annotation is registered.
    pub default_sync: bool,
    /// Namespaces to register; empty: all.
    pub namespaces: BTreeSet<Box<str>>,
    /// Namespaces never to register.
    pub deny_namespaces: BTreeSet<Box<str>>,
    /// Labels that a Service must have.
    pub selector: Selector,
    /// Labels that its namespace must have.
    pub namespace_selector: Selector,
    /// Types of Services to register; empty: all.
    pub service_types: BTreeSet<ServiceType>,
    /// Whether Services of type ExternalName are registered.
    pub external_name: bool,
    /// Whether ports other than the primary one are registered.
    pub extra_ports: ExtraPorts,
    /// Tags that every instance has.
    pub tags: Vec<String>,
    /// Tags that come from labels.
    pub label_tags: Vec<LabelTag>,
    /// Meta pairs that come from labels.
    pub label_meta: Vec<LabelMeta>,
    /// What to do when two Services want one name.
    pub on_conflict: OnConflict,
    /// Which addresses get a PTR record.
    pub reverse: PtrScope,
    /// Which names that others hold are joined.
    pub join_existing: JoinExisting,
    /// Which annotations count.
    pub annotations: AnnotationPolicy,
    /// Which address of a node is registered.
    pub node_address: NodeAddress,
    /// Which nodes are registered; `None`: as the address mode says.
    pub node_port_nodes: Option<NodePortNodes>,
    /// Which Ingresses and Gateways give Services their addresses.
    pub routes: RouteKinds,
    /// Which addresses those are.
    pub route_address: RouteAddress,
    /// Whether records are removed.
    pub policy: Policy,
    /// Whether many removals of objects that still exist are made at the first reconciliation.
    pub allow_removals: bool,
}

/// Which addresses of a Service are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressMode {
    /// The cluster IPs; the endpoints of a headless Service.
    Auto,
    /// What consul-k8s' catalog sync registers: `spec.externalIPs`, else by the Service's type its
    /// load balancer, its nodes, or its endpoints.
    ByType,
    /// The cluster IPs.
    ClusterIp,
    /// Each endpoint.
    Endpoints,
    /// The nodes, at the port's number there.
    NodePort,
    /// The addresses of the Service's load balancer.
    LoadBalancer,
    /// `spec.externalIPs`.
    ExternalIp,
}

/// How readiness becomes checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthMode {
    /// A critical check while not ready, none while ready.
    Unready,
    /// A check always, passing while ready.
    Always,
    /// Never a check.
    None,
}

/// What to do when two Services want one Consul name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnConflict {
    /// The first by rank has it, the others are a problem.
    First,
    /// All are registered under it.
    Merge,
    /// The first has it, the others are `<name>-<namespace>`.
    Suffix,
}

/// Which addresses get a reverse-DNS record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PtrScope {
    /// Cluster, load-balancer and external IPs as registered.
    Services,
    /// Those, and the addresses of pods.
    All,
    /// None.
    Off,
}

/// Which names are registered under that others hold, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinExisting {
    /// None.
    Never,
    /// Those that only other syncs of Kubernetes hold: another cluster's bridge, consul-k8s.
    Kubernetes,
    /// All.
    Always,
}

/// Which address of a node is registered, of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeAddress {
    /// Its first external one, else its first internal one: consul-k8s' `ExternalFirst`.
    ExternalFirst,
    /// Its first internal one, or none.
    Internal,
    /// Its first external one, or none.
    External,
}

/// Whether records that are no longer wanted are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// They are.
    Sync,
    /// They stay; only [`purge`](crate::run::purge) removes them.
    UpsertOnly,
}

/// Which nodes are registered at a node port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortNodes {
    /// All that lead to it: with `externalTrafficPolicy: Local` those that have an endpoint.
    All,
    /// Those that kube-proxy finds an endpoint on.
    WithEndpoints,
}

/// Where a Service is registered that an Ingress or HTTPRoute leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteAddress {
    /// At the hosts of the rules.
    Host,
    /// At the addresses of the Ingress's load balancer, or of the Gateway.
    LoadBalancer,
}

/// Whether ports other than the primary one are registered, each under a name of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtraPorts {
    /// They are.
    On,
    /// They are not.
    Off,
}

/// An annotation that the bridge reads, by its name after the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Annotation {
    /// `sync` (consul-k8s: `service-sync`).
    Sync,
    /// `service-name`.
    ServiceName,
    /// `service-port`.
    ServicePort,
    /// `service-tags`.
    ServiceTags,
    /// `service-meta-<key>`, all of them.
    ServiceMeta,
    /// `service-weight`.
    ServiceWeight,
    /// `address`.
    Address,
    /// `node-address`.
    NodeAddress,
    /// `join`.
    Join,
}

/// Which annotations count: what a tenant may do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnotationPolicy {
    /// Those that count everywhere; `None`: all.
    pub allowed: Option<BTreeSet<Annotation>>,
    /// Namespaces in which all count.
    pub trusted_namespaces: BTreeSet<Box<str>>,
}

words!(AddressMode {
    "auto" => Auto,
    "by-type" => ByType,
    "cluster-ip" => ClusterIp,
    "endpoints" => Endpoints,
    "node-port" => NodePort,
    "load-balancer" => LoadBalancer,
    "external-ip" => ExternalIp,
});
words!(HealthMode { "unready" => Unready, "always" => Always, "none" => None });
words!(OnConflict { "first" => First, "merge" => Merge, "suffix" => Suffix });
words!(JoinExisting { "never" => Never, "kubernetes" => Kubernetes, "always" => Always });
words!(NodeAddress {
    "external-first" => ExternalFirst,
    "internal" => Internal,
    "external" => External,
});
words!(NodePortNodes { "all" => All, "with-endpoints" => WithEndpoints });
words!(Policy { "sync" => Sync, "upsert-only" => UpsertOnly });
words!(ExtraPorts { "on" => On, "off" => Off });
words!(Annotation {
    "sync" => Sync,
    "service-name" => ServiceName,
    "service-port" => ServicePort,
    "service-tags" => ServiceTags,
    "service-meta" => ServiceMeta,
    "service-weight" => ServiceWeight,
    "address" => Address,
    "node-address" => NodeAddress,
    "join" => Join,
});
words!(PtrScope { "services" => Services, "all" => All, "off" => Off });

// === impl Settings ===

impl Settings {
    /// The defaults of the command line, for this cluster.
    pub fn new(cluster: ClusterName) -> Self {
        Self {
            cluster,
            name_template: NameTemplate::default(),
            address: AddressMode::Auto,
            health: HealthMode::Unready,
            default_sync: true,
            namespaces: BTreeSet::new(),
            deny_namespaces: BTreeSet::new(),
            selector: Selector::default(),
            namespace_selector: Selector::default(),
            service_types: BTreeSet::new(),
            external_name: false,
            extra_ports: ExtraPorts::On,
            tags: Vec::new(),
            label_tags: Vec::new(),
            label_meta: Vec::new(),
            on_conflict: OnConflict::First,
            reverse: PtrScope::Services,
            join_existing: JoinExisting::Never,
            annotations: AnnotationPolicy::default(),
            node_address: NodeAddress::ExternalFirst,
            node_port_nodes: None,
            routes: RouteKinds::default(),
            route_address: RouteAddress::Host,
            policy: Policy::Sync,
            allow_removals: false,
        }
    }

    /// Whether records that are no longer wanted stay.
    pub fn never_removes(&self) -> bool {
        self.policy == Policy::UpsertOnly
    }

    /// Whether external IPs of Services of this namespace count as theirs: the operator has Services
    /// registered at them, or trusts the namespace. Else they are whatever their author likes.
    pub fn trusts_external_ips(&self, namespace: &str) -> bool {
        matches!(self.address, AddressMode::ExternalIp | AddressMode::ByType)
            || self.annotations.trusted_namespaces.contains(namespace)
    }

    /// Whether options limit which Services are registered.
    pub fn limits_services(&self) -> bool {
        let namespaces = !self.namespaces.is_empty() || !self.deny_namespaces.is_empty();
        let labels = !self.selector.is_empty() || !self.namespace_selector.is_empty();
        namespaces || labels || !self.service_types.is_empty() || !self.default_sync
    }

    /// Whether Services of this namespace may be registered; deny wins.
    pub fn includes_namespace(&self, namespace: &str) -> bool {
        !self.deny_namespaces.contains(namespace)
            && (self.namespaces.is_empty() || self.namespaces.contains(namespace))
    }
}

// === impl JoinExisting ===

impl JoinExisting {
    /// Whether a name is joined that this one holds.
    pub fn joins(self, holder: &Holder) -> bool {
        match self {
            JoinExisting::Never => false,
            JoinExisting::Kubernetes => matches!(holder, Holder::Kubernetes { .. }),
            JoinExisting::Always => true,
        }
    }
}

// === impl AnnotationPolicy ===

impl AnnotationPolicy {
    /// Whether the annotation counts on a Service of this namespace.
    pub fn counts(&self, namespace: &str, annotation: Annotation) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.contains(&annotation))
            || self.trusted_namespaces.contains(namespace)
    }
}

// === impl NodeAddress ===

impl NodeAddress {
    /// Of each family the address at which a node's ports are reached, IPv4 first; `found` are
    /// the node's, in their order.
    ///
    /// consul-k8s takes one address a node, whatever its family.
    pub fn choose(self, found: &[(NodeAddressType, IpAddr)]) -> impl Iterator<Item = IpAddr> {
        let order: &[NodeAddressType] = match self {
            NodeAddress::ExternalFirst => &[NodeAddressType::External, NodeAddressType::Internal],
            NodeAddress::Internal => &[NodeAddressType::Internal],
            NodeAddress::External => &[NodeAddressType::External],
        };
        [true, false].into_iter().filter_map(move |is_ipv4| {
            let first = |wanted: &NodeAddressType| {
                found.iter().find(|(kind, ip)| kind == wanted && ip.is_ipv4() == is_ipv4)
            };
            order.iter().find_map(first).map(|(_, address)| *address)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_reached_at_one_address_of_each_family() {
        use NodeAddressType::{External as Ext, Internal as Int};
        let all = [(Int, "fd00::1"), (Int, "10.0.0.1"), (Int, "10.0.0.2"), (Ext, "192.0.2.1")];
        for (found, preference, expected) in [
            (&all[..0], NodeAddress::ExternalFirst, &[][..]),
            (&all[..3], NodeAddress::ExternalFirst, &["10.0.0.1", "fd00::1"]),
            (&all[..], NodeAddress::ExternalFirst, &["192.0.2.1", "fd00::1"]),
            (&all[..], NodeAddress::Internal, &["10.0.0.1", "fd00::1"]),
            (&all[..], NodeAddress::External, &["192.0.2.1"]),
            (&all[..3], NodeAddress::External, &[]),
        ] {
            let address = |text: &str| text.parse::<IpAddr>().unwrap();
            let found: Vec<_> = found.iter().map(|(kind, ip)| (*kind, address(ip))).collect();
            let expected: Vec<_> = expected.iter().map(|ip| address(ip)).collect();
            assert_eq!(preference.choose(&found).collect::<Vec<_>>(), expected, "{preference}");
        }
    }

    #[test]
    fn n13_an_annotation_counts_where_it_is_allowed_or_trusted() {
        let mut policy = AnnotationPolicy::default();
        assert!(policy.counts("shop", Annotation::Join));
        policy.allowed = Some([Annotation::Sync].into());
        assert!(policy.counts("shop", Annotation::Sync));
        assert!(!policy.counts("shop", Annotation::Join));
        policy.trusted_namespaces.insert("shop".into());
        assert!(policy.counts("shop", Annotation::Join));
        assert!(!policy.counts("other", Annotation::Join));
    }
}
