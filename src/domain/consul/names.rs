//! How Consul compares service names, which of them its DNS can carry, and who else holds them.

use std::borrow::Cow;

use crate::domain::map::HashMap;

/// Longest name that DNS can carry, in bytes: one label.
const MAX_LABEL: usize = 63;
/// Name of the service by which a bridge marks its agent. The underscore keeps it out of DNS and apart
/// from every Kubernetes Service: one named `kube-consul` must not get a share of its answers.
pub const SENTINEL_NAME: &str = "_kube-consul";
/// The domain of Consul's own names: an alias for one of them would lead back into Consul.
const CONSULS_DOMAIN: &str = ".consul";

/// Who else than this cluster's bridge holds instances under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holders {
    /// Of the others, the one that matters most.
    pub others: Holder,
    /// Whether a bridge of our cluster does too: this one or another replica.
    pub ours: bool,
}

/// What a look-up of a name shows, if others hold it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Who holds it.
    pub holders: Holders,
    /// Whether something of theirs was registered before all that is there of ours; also if nothing of ours
    /// is there (yet: an agent has not passed it on).
    pub came_first: bool,
}

/// Who holds instances under a name. Derived `Ord`: the greater one matters more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Another sync of Kubernetes: another cluster's bridge, or consul-k8s.
    Kubernetes {
        /// The other bridge's cluster, where that is known.
        cluster: Option<Box<str>>,
    },
    /// What does not come from Kubernetes.
    Other,
}

/// Consul names, as [`lookup_form`] has them, under which others than this cluster's bridge hold
/// instances.
pub type ForeignNames = HashMap<Box<str>, Holders>;

/// The form of a service name by which Consul looks it up, over DNS and HTTP (tried on 1.20.1):
/// names that differ in case only are one, although the catalog lists each as it was registered.
///
/// Consul compares by Go's `strings.ToLower`, which maps one character to one.
pub fn lookup_form(name: &str) -> Cow<'_, str> {
    if name.chars().all(|c| lower(c) == c) {
        Cow::Borrowed(name)
    } else {
        Cow::Owned(name.chars().map(lower).collect())
    }
}

/// Of the one character whose lower case has several (U+0130) Go takes the first, a plain `i`.
fn lower(c: char) -> char {
    c.to_lowercase().next().unwrap_or(c)
}

/// Whether Consul's DNS answers for a service of this name. Each character was tried on 1.20.1: a
/// blank, a dot, what zone files escape and what is not ASCII is not found.
pub fn resolves(name: &str) -> bool {
    let is_plain = |c: u8| c.is_ascii_graphic() && !br#"."'();@\"#.contains(&c);
    name.len() <= MAX_LABEL && name.bytes().all(is_plain)
}

/// Whether an external name is one that Consul answers for.
pub fn is_name_in_consul(name: &str) -> bool {
    let name = name.strip_suffix('.').unwrap_or(name);
    name.get(name.len().saturating_sub(CONSULS_DOMAIN.len())..)
        .is_some_and(|end| end.eq_ignore_ascii_case(CONSULS_DOMAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consul_looks_names_up_without_regard_to_case() {
        for (name, form) in [
            ("web", "web"),
            ("Web-1", "web-1"),
            ("ÄRGER", "ärger"),
            // A title case letter is no upper case one.
            ("\u{1c5}", "\u{1c6}"),
            ("ap\u{130}", "api"),
        ] {
            assert_eq!(lookup_form(name), form);
        }
    }

    #[test]
    fn n5_one_character_stays_one_as_in_go() {
        let several = |c: &char| c.to_lowercase().count() > 1;
        let found: Vec<char> = (char::MIN..=char::MAX).filter(several).collect();
        // Go 1.22: unicode.ToLower('\u0130') == 'i'.
        assert_eq!(found, ['\u{130}']);
        for c in found {
            assert_eq!(lookup_form(&c.to_string()), "i");
        }
    }
}
