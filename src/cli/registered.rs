//! The flags that say what is registered; `plan` and `check` have them too.

#![allow(clippy::doc_markdown, reason = "doc comments are help texts here")]

use std::collections::BTreeSet;

use clap::{ArgAction, Args};

use crate::cli::values::word;
use crate::domain::kube::names::{ClusterName, is_label};
use crate::domain::kube::object::ServiceType;
use crate::domain::kube::routes::RouteKinds;
use crate::domain::kube::selector::Selector;
use crate::domain::services::labels::{LabelMeta, LabelTag};
use crate::domain::services::settings::{
    AddressMode, Annotation, AnnotationPolicy, ExtraPorts, HealthMode, JoinExisting, NodeAddress,
    NodePortNodes, OnConflict, PtrScope, RouteAddress, Settings,
};
use crate::domain::services::template::NameTemplate;

/// What is registered.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What is registered")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub struct RegisteredArgs {
    /// Which addresses are registered; by-type is what consul-k8s' catalog sync registers
    #[arg(
        long,
        env = "KUBE_CONSUL_ADDRESS",
        default_value_t = AddressMode::Auto,
        value_parser = word::<AddressMode>(AddressMode::WORDS),
        value_name = "MODE"
    )]
    address: AddressMode,
    /// How names are made; of {service}, {namespace}, {cluster} and {port}
    #[arg(long, env = "KUBE_CONSUL_NAME_TEMPLATE", default_value_t = NameTemplate::default(), value_name = "TEMPLATE")]
    name_template: NameTemplate,
    /// Which instances have a check: those that are not ready (critical), always all (with --sink
    /// catalog only), or none
    #[arg(
        long,
        env = "KUBE_CONSUL_HEALTH",
        default_value_t = HealthMode::Unready,
        value_parser = word::<HealthMode>(HealthMode::WORDS),
        value_name = "MODE"
    )]
    pub(super) health: HealthMode,
    /// Whether Services without an annotation are registered
    #[arg(long, env = "KUBE_CONSUL_DEFAULT_SYNC", default_value_t = true, action = ArgAction::Set, value_name = "BOOL")]
    default_sync: bool,
    /// Only this namespace (repeatable); '*' is all [default: all]
    #[arg(short = 'n', long, env = "KUBE_CONSUL_NAMESPACE", value_delimiter = ',', value_parser = namespace_or_all, value_name = "NAMESPACE")]
    namespace: Vec<Box<str>>,
    /// Not this namespace (repeatable, wins)
    #[arg(long, env = "KUBE_CONSUL_DENY_NAMESPACE", value_delimiter = ',', value_parser = namespace, value_name = "NAMESPACE")]
    deny_namespace: Vec<Box<str>>,
    /// Only Services with these labels, for example 'app=web,tier in (front,back)'
    #[arg(
        short = 'l',
        long,
        env = "KUBE_CONSUL_SELECTOR",
        default_value = "",
        hide_default_value = true,
        value_name = "SELECTOR"
    )]
    selector: Selector,
    /// Only namespaces with these labels, for example 'consul=sync'; namespaces are watched then
    #[arg(
        long,
        env = "KUBE_CONSUL_NAMESPACE_SELECTOR",
        default_value = "",
        hide_default_value = true,
        value_name = "SELECTOR"
    )]
    namespace_selector: Selector,
    /// Only Services of this type (repeatable) [default: all but ExternalName]
    #[arg(
        long,
        env = "KUBE_CONSUL_SERVICE_TYPE",
        value_delimiter = ',',
        value_parser = word::<ServiceType>(ServiceType::WORDS),
        value_name = "TYPE"
    )]
    service_type: Vec<ServiceType>,
    /// Register ExternalName Services too, as aliases (CNAME)
    #[arg(long, env = "KUBE_CONSUL_EXTERNAL_NAME")]
    external_name: bool,
    /// Whether further ports are registered, each under a name of its own
    #[arg(
        long,
        env = "KUBE_CONSUL_EXTRA_PORTS",
        default_value_t = ExtraPorts::On,
        value_parser = word::<ExtraPorts>(ExtraPorts::WORDS),
        value_name = "WHETHER"
    )]
    extra_ports: ExtraPorts,
    /// A tag that every instance has (repeatable)
    #[arg(
        long,
        env = "KUBE_CONSUL_TAG",
        value_delimiter = ',',
        value_parser = tag,
        value_name = "TAG"
    )]
    tag: Vec<String>,
    /// A tag that comes from a label (repeatable): its value, or TAG with {value} in it
    #[arg(
        long,
        env = "KUBE_CONSUL_TAG_FROM_LABEL",
        value_delimiter = ',',
        value_name = "LABEL[=TAG]"
    )]
    tag_from_label: Vec<LabelTag>,
    /// A meta pair that comes from a label (repeatable): its value, under the label's key or META
    #[arg(
        long,
        env = "KUBE_CONSUL_META_FROM_LABEL",
        value_delimiter = ',',
        value_name = "LABEL[=META]"
    )]
    meta_from_label: Vec<LabelMeta>,
    /// When two Services want one name: the first has it, all share it (merge), or the others are
    /// NAME-NAMESPACE (suffix)
    #[arg(
        long,
        env = "KUBE_CONSUL_ON_CONFLICT",
        default_value_t = OnConflict::First,
        value_parser = word::<OnConflict>(OnConflict::WORDS),
        value_name = "POLICY"
    )]
    on_conflict: OnConflict,
    /// Which names that others hold are joined: none (never), those of other syncs of Kubernetes,
    /// another cluster's bridge among them (kubernetes), or all (always)
    #[arg(
        long,
        env = "KUBE_CONSUL_JOIN_EXISTING",
        default_value_t = JoinExisting::Never,
        value_parser = word::<JoinExisting>(JoinExisting::WORDS),
        value_name = "POLICY"
    )]
    join_existing: JoinExisting,
    /// Which annotations count, by their names after the prefix, comma-separated; or none
    /// [default: all]
    #[arg(long, env = "KUBE_CONSUL_ANNOTATIONS", value_delimiter = ',', value_name = "LIST")]
    annotations: Vec<String>,
    /// A namespace in which all annotations count, and whose Services come first for a name (repeatable)
    #[arg(
        long,
        env = "KUBE_CONSUL_TRUSTED_NAMESPACE",
        value_delimiter = ',',
        value_parser = namespace,
        value_name = "NAMESPACE"
    )]
    trusted_namespace: Vec<Box<str>>,
    /// Which address of a node is registered [default: external-first]
    #[arg(
        long,
        env = "KUBE_CONSUL_NODE_ADDRESS",
        value_parser = word::<NodeAddress>(NodeAddress::WORDS),
        value_name = "TYPE"
    )]
    node_address: Option<NodeAddress>,
    /// Which nodes are registered at a node port: all that lead there, or those with an endpoint
    /// that traffic is routed to [default: all; with --address by-type with-endpoints]
    #[arg(
        long,
        env = "KUBE_CONSUL_NODE_PORT_NODES",
        value_parser = word::<NodePortNodes>(NodePortNodes::WORDS),
        value_name = "NODES"
    )]
    node_port_nodes: Option<NodePortNodes>,
    /// Register a Service that an Ingress leads to at the rule's host: at 443 where TLS covers it, else
    /// at 80
    #[arg(long, env = "KUBE_CONSUL_INGRESS")]
    ingress: bool,
    /// Register a Service that an HTTPRoute leads to at the route's host names, at the ports of its
    /// Gateway's listeners
    #[arg(long, env = "KUBE_CONSUL_GATEWAY")]
    gateway: bool,
    /// With --ingress or --gateway: at the addresses of the Ingress's load balancer, or of the
    /// Gateway, in the place of hosts
    #[arg(long, env = "KUBE_CONSUL_INGRESS_ADDRESSES")]
    ingress_addresses: bool,
    /// Which addresses get a PTR record: those of Services, all (pods' too), or none (off)
    #[arg(
        long,
        env = "KUBE_CONSUL_REVERSE_DNS",
        default_value_t = PtrScope::Services,
        value_parser = word::<PtrScope>(PtrScope::WORDS),
        value_name = "SCOPE"
    )]
    reverse_dns: PtrScope,
    /// Datacenter in PTR records, and with --sink catalog the one that is written to
    /// [default: the agent's]
    #[arg(long, env = "KUBE_CONSUL_DATACENTER", value_name = "NAME")]
    pub(super) datacenter: Option<String>,
    /// DNS domain in PTR records [default: the agent's]
    #[arg(long, env = "KUBE_CONSUL_DNS_DOMAIN", value_name = "DOMAIN")]
    pub(super) dns_domain: Option<String>,
}

/// Options that do not go together.
#[derive(Debug, thiserror::Error)]
pub(super) enum Conflict {
    #[error("--dns-domain: expected a DNS name such as consul, found {0:?}")]
    Domain(String),
    #[error(
        "--annotations: expected all, none, or some of {words}, found {0:?}",
        words = Annotation::WORDS.join(", ")
    )]
    Annotations(String),
    #[error(
        "--trusted-namespace {0}: expected a namespace that is registered, found it left out by \
         --namespace or --deny-namespace"
    )]
    TrustedNotRegistered(Box<str>),
    #[error(
        "--namespace {0} and --deny-namespace {0}: expected one of them, found both, by which nothing \
         of the namespace is registered"
    )]
    SelectedAndDenied(Box<str>),
    #[error(
        "{0}: expected --address node-port or by-type, or the annotation address to count, found \
         neither: no node is registered"
    )]
    NoNodes(&'static str),
    #[error(
        "--service-type ExternalName: expected --external-name beside it: without, no such Service \
         is registered"
    )]
    NoExternalNames,
    #[error(
        "--ingress-addresses: expected --ingress or --gateway beside it: without, nothing that \
         routes to a Service is watched"
    )]
    NoRoutes,
}

// === impl RegisteredArgs ===

impl RegisteredArgs {
    /// What follows for the bridge.
    pub(super) fn settings(self, cluster: ClusterName) -> Result<Settings, Conflict> {
        if let Some(domain) = &self.dns_domain
            && !domain.split('.').all(is_label)
        {
            return Err(Conflict::Domain(domain.clone()));
        }
        if self.service_type.contains(&ServiceType::ExternalName) && !self.external_name {
            return Err(Conflict::NoExternalNames);
        }
        let routes = RouteKinds { ingress: self.ingress, gateway: self.gateway };
        if self.ingress_addresses && routes == RouteKinds::default() {
            return Err(Conflict::NoRoutes);
        }
        if let Some(both) = self.namespace.iter().find(|it| self.deny_namespace.contains(it)) {
            return Err(Conflict::SelectedAndDenied(both.clone()));
        }
        let annotations = self.annotation_policy()?;
        let mut tags = self.tag;
        let mut seen = BTreeSet::new();
        tags.retain(|tag| seen.insert(tag.clone()));
        Ok(Settings {
            name_template: self.name_template,
            address: self.address,
            health: self.health,
            default_sync: self.default_sync,
            namespaces: selected(self.namespace),
            deny_namespaces: self.deny_namespace.into_iter().collect(),
            selector: self.selector,
            namespace_selector: self.namespace_selector,
            service_types: self.service_type.into_iter().collect(),
            external_name: self.external_name,
            extra_ports: self.extra_ports,
            tags,
            label_tags: self.tag_from_label,
            label_meta: self.meta_from_label,
            on_conflict: self.on_conflict,
            reverse: self.reverse_dns,
            join_existing: self.join_existing,
            annotations,
            node_address: self.node_address.unwrap_or(NodeAddress::ExternalFirst),
            node_port_nodes: self.node_port_nodes,
            routes,
            route_address: if self.ingress_addresses {
                RouteAddress::LoadBalancer
            } else {
                RouteAddress::Host
            },
            ..Settings::new(cluster)
        })
    }

    /// Which annotations count; what makes no sense beside it is an error.
    fn annotation_policy(&self) -> Result<AnnotationPolicy, Conflict> {
        let allowed = match &*self.annotations {
            [] => None,
            [word] if word == "all" => None,
            [word] if word == "none" => Some(BTreeSet::new()),
            words => {
                let read = |word: &String| {
                    word.trim().parse().map_err(|_| Conflict::Annotations(word.clone()))
                };
                Some(words.iter().map(read).collect::<Result<BTreeSet<Annotation>, _>>()?)
            }
        };
        for namespace in &self.trusted_namespace {
            let is_denied = self.deny_namespace.contains(namespace);
            if is_denied || !(self.namespace.is_empty() || self.namespace.contains(namespace)) {
                return Err(Conflict::TrustedNotRegistered(namespace.clone()));
            }
        }
        let never_by_annotation = self.trusted_namespace.is_empty()
            && allowed.as_ref().is_some_and(|it| !it.contains(&Annotation::Address));
        let by_option = matches!(self.address, AddressMode::NodePort | AddressMode::ByType);
        if never_by_annotation && !by_option {
            if self.node_address.is_some() {
                return Err(Conflict::NoNodes("--node-address"));
            }
            if self.node_port_nodes.is_some() {
                return Err(Conflict::NoNodes("--node-port-nodes"));
            }
        }
        let trusted_namespaces = self.trusted_namespace.iter().cloned().collect();
        Ok(AnnotationPolicy { allowed, trusted_namespaces })
    }
}

/// What stands for all namespaces.
const ALL_NAMESPACES: &str = "*";

fn namespace_or_all(text: &str) -> Result<Box<str>, String> {
    if text == ALL_NAMESPACES { Ok(text.into()) } else { namespace(text) }
}

/// The namespaces that are selected; none: all.
fn selected<C: FromIterator<Box<str>>>(namespaces: Vec<Box<str>>) -> C {
    let all = namespaces.iter().any(|namespace| **namespace == *ALL_NAMESPACES);
    namespaces.into_iter().filter(|_| !all).collect()
}

fn namespace(text: &str) -> Result<Box<str>, String> {
    if is_label(text) {
        Ok(text.into())
    } else {
        Err(format!("expected the name of a namespace, found {text:?}"))
    }
}

fn tag(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.contains(char::is_control) {
        Err(format!("expected a tag of printable characters, found {text:?}"))
    } else {
        Ok(text.to_owned())
    }
}
