//! The flags of `bridge`.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use crate::cli::{ConsulArgs, KubernetesArgs, duration, word};
use crate::domain::kube::names::{ClusterName, is_label};
use crate::domain::kube::selector::Selector;
use crate::domain::services::settings::{
    AddressMode, Annotation, AnnotationPolicy, HealthMode, JoinExisting, NodeAddress, OnConflict,
    PtrScope, Settings,
};
use crate::domain::services::template::NameTemplate;
use crate::kubernetes::client::Environment;
use crate::run::bridge::Options;
use crate::run::daemon::options::{Common, SinkOptions, SyncOptions};
use crate::run::plan;

pub(super) const EXAMPLES: &str = "Examples:
  # beside a kubectl proxy and a Consul agent, as in the pod
  kube-consul bridge --kube-url http://127.0.0.1:8001

  # one namespace, names such as web-shop, once, from a workstation
  kube-consul bridge --namespace shop --name-template '{service}-{namespace}' --once

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 refused for safety,
130 interrupted.";

/// `bridge`.
#[derive(Clone, Debug, Args)]
pub struct BridgeArgs {
    /// Name of this cluster: marks its records in Consul
    #[arg(long, env = "KUBE_CONSUL_CLUSTER", default_value = "kubernetes", value_name = "NAME")]
    cluster: ClusterName,
    /// Identity of the cluster, where the namespace kube-system may not be read
    #[arg(long, env = "KUBE_CONSUL_CLUSTER_UID", value_name = "UID")]
    cluster_uid: Option<String>,
    /// Take over the records of the cluster of this uid (and of no other)
    #[arg(long, env = "KUBE_CONSUL_ADOPT", value_name = "UID")]
    adopt: Option<String>,
    /// Where registrations are kept
    #[arg(long, env = "KUBE_CONSUL_SINK", default_value = "agent", value_enum)]
    sink: SinkKind,
    /// With --sink catalog: several processes elect the one that writes
    #[arg(long, env = "KUBE_CONSUL_LEADER_ELECT")]
    leader_elect: bool,
    /// With --sink catalog: name of the base node [default: k8s-<cluster>]
    #[arg(long, env = "KUBE_CONSUL_NODE_NAME", value_name = "NAME")]
    node_name: Option<String>,

    #[command(flatten)]
    registered: RegisteredArgs,
    #[command(flatten)]
    running: RunningArgs,
    #[command(flatten)]
    kubernetes: KubernetesArgs,
    #[command(flatten)]
    consul: ConsulArgs,
}

/// What is registered.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What is registered")]
pub struct RegisteredArgs {
    /// Which addresses are registered
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
    health: HealthMode,
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
    /// With --annotations: a namespace in which all annotations count (repeatable)
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
    datacenter: Option<String>,
    /// DNS domain in PTR records [default: the agent's]
    #[arg(long, env = "KUBE_CONSUL_DNS_DOMAIN", value_name = "DOMAIN")]
    dns_domain: Option<String>,
}

/// How it runs. Under no heading: that of the flags before would go on.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = None::<&'static str>)]
pub struct RunningArgs {
    /// Make removals at the start that options ask for, however many (no variable consents to this)
    #[arg(long)]
    allow_removals: bool,
    /// Least time between two resyncs, which read Consul back and fix what drifted
    #[arg(long, env = "KUBE_CONSUL_RESYNC", default_value = "60s", value_parser = duration, value_name = "DURATION")]
    resync: Duration,
    /// Synchronize once and exit: 0 when all is in sync, 1 when not
    #[arg(long, env = "KUBE_CONSUL_ONCE")]
    once: bool,
    /// With --once: how long each side may take to be reached
    #[arg(long, env = "KUBE_CONSUL_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "DURATION")]
    timeout: Duration,
    /// Where /livez, /readyz, /metrics and /status are served
    /// [default: [::]:9655, or 0.0.0.0:9655 without IPv6]
    #[arg(long, env = "KUBE_CONSUL_ADMIN_ADDR", value_name = "ADDRESS")]
    admin_addr: Option<SocketAddr>,
}

/// Where registrations are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SinkKind {
    /// In the co-located Consul agent: they live as long as it
    Agent,
    /// In the catalog, on nodes of their own: for large clusters, without an agent
    Catalog,
}

/// Options that do not go together.
#[derive(Debug, thiserror::Error)]
enum Conflict {
    #[error(
        "--health always: expected unready or none with --sink agent, where a passing check would have to be refreshed for ever"
    )]
    PassingCheckInAgent,
    #[error(
        "{0}: expected --sink catalog beside it, found --sink agent: an agent's registrations are \
         its own, so every bridge fills its own agent"
    )]
    OnlyWithCatalog(&'static str),
    #[error("--leader-elect: expected a long-running bridge, found --once; leave one of them out")]
    ElectedOnce,
    #[error(
        "--node-name: expected 1 to 128 letters, digits, dots, dashes or underscores, found {0:?}"
    )]
    NodeName(String),
    #[error("--dns-domain: expected a DNS name such as consul, found {0:?}")]
    Domain(String),
    #[error(
        "--annotations: expected all, none, or some of {words}, found {0:?}",
        words = Annotation::WORDS.join(", ")
    )]
    Annotations(String),
    #[error(
        "--trusted-namespace: expected --annotations beside it: without, all annotations count in \
         every namespace"
    )]
    TrustedAnyway,
    #[error(
        "--trusted-namespace {0}: expected a namespace that is registered, found it left out by \
         --namespace or --deny-namespace"
    )]
    TrustedNotRegistered(Box<str>),
    #[error(
        "--node-address: expected --address node-port, or the annotation address to count, found \
         neither: no node is registered"
    )]
    NoNodes,
}

// === impl BridgeArgs ===

impl BridgeArgs {
    /// What a one-shot command that takes the bridge's flags needs to know, and how long each
    /// side may take to be reached.
    pub(super) fn options_for_plan(mut self) -> Result<plan::Options, Box<dyn std::error::Error>> {
        // A plan takes the bridge's command line as it is, and is made once whatever that says.
        self.running.once = false;
        let timeout = self.running.timeout;
        let Options { common, sync, .. } = self.options()?;
        Ok(plan::Options { common, sync, timeout })
    }

    /// What the bridge needs to know.
    pub(super) fn options(self) -> Result<Options, Box<dyn std::error::Error>> {
        if self.registered.health == HealthMode::Always && self.sink == SinkKind::Agent {
            return Err(Conflict::PassingCheckInAgent.into());
        }
        if let Some(domain) = &self.registered.dns_domain
            && !domain.split('.').all(is_label)
        {
            return Err(Conflict::Domain(domain.clone()).into());
        }
        let sink = self.sink_options()?;
        let annotations = self.registered.annotation_policy()?;
        let mut consul = self.consul.config()?;
        if self.sink == SinkKind::Catalog {
            // An agent answers for its own datacenter only.
            consul.datacenter.clone_from(&self.registered.datacenter);
        }
        let settings = Settings {
            cluster: self.cluster,
            name_template: self.registered.name_template,
            address: self.registered.address,
            health: self.registered.health,
            default_sync: self.registered.default_sync,
            namespaces: selected(self.registered.namespace),
            deny_namespaces: self.registered.deny_namespace.into_iter().collect(),
            selector: self.registered.selector,
            on_conflict: self.registered.on_conflict,
            reverse: self.registered.reverse_dns,
            join_existing: self.registered.join_existing,
            annotations,
            node_address: self.registered.node_address.unwrap_or(NodeAddress::ExternalFirst),
            allow_removals: self.running.allow_removals,
        };
        Ok(Options {
            common: Common {
                access: self.kubernetes.access(),
                environment: Environment::read(),
                consul,
                cluster_uid: self.cluster_uid,
                adopt: self.adopt,
                admin_addr: self.running.admin_addr,
            },
            sync: SyncOptions {
                settings,
                sink,
                datacenter: self.registered.datacenter,
                dns_domain: self.registered.dns_domain,
            },
            resync: self.running.resync,
            once: self.running.once.then_some(self.running.timeout),
        })
    }

    fn sink_options(&self) -> Result<SinkOptions, Conflict> {
        if self.sink == SinkKind::Agent {
            if self.leader_elect {
                return Err(Conflict::OnlyWithCatalog("--leader-elect"));
            }
            if self.node_name.is_some() {
                return Err(Conflict::OnlyWithCatalog("--node-name"));
            }
            return Ok(SinkOptions::Agent);
        }
        if self.leader_elect && self.running.once {
            return Err(Conflict::ElectedOnce);
        }
        if let Some(name) = self.node_name.as_ref().filter(|name| !is_node_name(name)) {
            return Err(Conflict::NodeName(name.clone()));
        }
        let (node_name, leader_elect) = (self.node_name.clone(), self.leader_elect);
        Ok(SinkOptions::Catalog { node_name, leader_elect })
    }
}

// === impl RegisteredArgs ===

impl RegisteredArgs {
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
        if allowed.is_none() && !self.trusted_namespace.is_empty() {
            return Err(Conflict::TrustedAnyway);
        }
        for namespace in &self.trusted_namespace {
            let is_denied = self.deny_namespace.contains(namespace);
            if is_denied || !(self.namespace.is_empty() || self.namespace.contains(namespace)) {
                return Err(Conflict::TrustedNotRegistered(namespace.clone()));
            }
        }
        let never_by_annotation = self.trusted_namespace.is_empty()
            && allowed.as_ref().is_some_and(|it| !it.contains(&Annotation::Address));
        if self.node_address.is_some()
            && self.address != AddressMode::NodePort
            && never_by_annotation
        {
            return Err(Conflict::NoNodes);
        }
        let trusted_namespaces = self.trusted_namespace.iter().cloned().collect();
        Ok(AnnotationPolicy { allowed, trusted_namespaces })
    }
}

/// What an ACL rule and a path can name without surprise.
fn is_node_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=128).contains(&name.len()) && name.bytes().all(allowed)
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
