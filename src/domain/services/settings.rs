//! What the operator chose for the bridge.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::domain::kube::names::ClusterName;
use crate::domain::kube::selector::Selector;
use crate::domain::services::template::NameTemplate;

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
    /// What to do when two Services want one name.
    pub on_conflict: OnConflict,
    /// Which addresses get a PTR record.
    pub reverse: PtrScope,
    /// Whether names that others hold are joined.
    pub join_existing: bool,
    /// Whether many removals of objects that still exist are made at the first reconciliation.
    pub allow_removals: bool,
}

/// Which addresses of a Service are registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressMode {
    /// The cluster IPs; the endpoints of a headless Service.
    Auto,
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

/// A word that is none of those expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected one of {expected}, found {found:?}")]
pub struct UnknownWord {
    expected: String,
    found: String,
}

/// Gives an enumeration its words: parsing, `Display` and the list for help texts.
macro_rules! words {
    ($type:ident { $($word:literal => $variant:ident),+ $(,)? }) => {
        impl $type {
            /// The words that users write, in the order of the documentation.
            pub const WORDS: &'static [&'static str] = &[$($word),+];
        }

        impl FromStr for $type {
            type Err = UnknownWord;

            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(UnknownWord { expected: Self::WORDS.join(", "), found: text.to_owned() }),
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }
    };
}

words!(AddressMode {
    "auto" => Auto,
    "cluster-ip" => ClusterIp,
    "endpoints" => Endpoints,
    "node-port" => NodePort,
    "load-balancer" => LoadBalancer,
    "external-ip" => ExternalIp,
});
words!(HealthMode { "unready" => Unready, "always" => Always, "none" => None });
words!(OnConflict { "first" => First, "merge" => Merge, "suffix" => Suffix });
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
            on_conflict: OnConflict::First,
            reverse: PtrScope::Services,
            join_existing: false,
            allow_removals: false,
        }
    }

    /// Whether Services of this namespace may be registered; deny wins.
    pub fn includes_namespace(&self, namespace: &str) -> bool {
        !self.deny_namespaces.contains(namespace)
            && (self.namespaces.is_empty() || self.namespaces.contains(namespace))
    }
}
