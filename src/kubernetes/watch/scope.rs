//! Which objects of a kind are asked for.

use std::collections::BTreeSet;

/// Namespaces that are watched each by itself, so that a Role in each is enough. Each costs a
/// connection's share and a request per kind every three minutes; with more, the cluster is watched
/// as a whole, which wants a ClusterRole.
pub const MAX_NAMESPACES: usize = 16;

/// Which objects of a kind are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only those of this namespace.
    pub namespace: Option<Box<str>>,
    /// Only those whose labels match this selector.
    pub labels: Option<String>,
    /// Only those whose fields match this selector.
    pub fields: Option<String>,
}

// === impl Scope ===

impl Scope {
    /// The scopes that together have all objects of these namespaces (empty: of all) but the denied
    /// ones. The API leaves the denied ones out where it is asked for the whole cluster.
    ///
    /// A selection of nothing, or of more than [`MAX_NAMESPACES`], is the whole cluster.
    pub fn of(namespaces: &BTreeSet<Box<str>>, denied: &BTreeSet<Box<str>>) -> Vec<Self> {
        let wanted: Vec<_> = namespaces.difference(denied).collect();
        if (1..=MAX_NAMESPACES).contains(&wanted.len()) {
            let within = |namespace| Self { namespace: Some(namespace), ..Self::default() };
            return wanted.into_iter().cloned().map(within).collect();
        }
        let without: Vec<_> =
            denied.iter().map(|namespace| format!("metadata.namespace!={namespace}")).collect();
        let fields = (!without.is_empty() && namespaces.is_empty()).then(|| without.join(","));
        vec![Self { fields, ..Self::default() }]
    }
}
