//! What a Service may ask for beside the operator's options, in whichever dialect.

use std::collections::BTreeMap;

use crate::domain::services::settings::{AddressMode, NodeAddress};
use crate::domain::text::is_unseen;

/// Longest Consul service name that is registered, in characters.
const MAX_NAME: usize = 255;

/// The settings of one Service that its annotations override.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `service-name`: what was asked for, or that it cannot be a name (nothing is registered).
    pub name: NameOverride,
    /// `service-port`: name or number of the primary port.
    pub port: Option<Box<str>>,
    /// `service-tags`, in their order, without duplicates.
    pub tags: Vec<String>,
    /// `service-meta-<key>`.
    pub meta: BTreeMap<String, String>,
    /// `service-weight`.
    pub weight: Option<u16>,
    /// `address`: which addresses are registered.
    pub address: Option<AddressMode>,
    /// `node-address`: which address of a node is registered.
    pub node_address: Option<NodeAddress>,
    /// `join`: whether a name that others hold is joined.
    pub join: Option<bool>,
    /// `domainName` of consul8s: it is registered there.
    pub domain_name: Option<Box<str>>,
    /// Whether further ports are left out, as consul8s did.
    pub only_primary_port: bool,
}

/// The Consul name that an annotation asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NameOverride {
    /// None: the name comes from the template.
    #[default]
    Absent,
    /// This name.
    Name(Box<str>),
    /// One that cannot be a name.
    Invalid,
}

/// Whether `name` can be that of a Consul service here. Consul takes characters that are not shown and
/// then refuses every path with such a name, so that nobody could ask for it.
pub fn is_service_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.chars().count()) && !name.contains(is_unseen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_shown_is_in_no_name() {
        for (name, wanted) in [
            ("web", true),
            ("ärger", true),
            ("a b", true),
            ("", false),
            ("a\nb", false),
            ("a\u{9b}b", false),
            ("web\u{202e}", false),
            ("web\u{200b}", false),
        ] {
            assert_eq!(is_service_name(name), wanted, "{name:?}");
        }
    }
}
