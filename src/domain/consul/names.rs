//! How Consul compares service names, and which of them others hold.

use std::borrow::Cow;
use std::collections::HashMap;

/// Who holds instances under a name that others than bridges use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holders {
    /// Others only.
    Others,
    /// Others, and a bridge of our cluster: this one or another replica.
    OthersAndOurs,
}

/// Consul names, as [`lookup_form`] has them, under which others than bridges hold instances.
pub type ForeignNames = HashMap<Box<str>, Holders>;

/// The form of a service name by which Consul looks it up, over DNS and HTTP (tried on 1.20.1):
/// names that differ in case only are one, although the catalog lists each as it was registered.
pub fn lookup_form(name: &str) -> Cow<'_, str> {
    if name.chars().any(char::is_uppercase) {
        Cow::Owned(name.chars().flat_map(char::to_lowercase).collect())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consul_looks_names_up_without_regard_to_case() {
        for (name, form) in [("web", "web"), ("Web-1", "web-1"), ("ÄRGER", "ärger")] {
            assert_eq!(lookup_form(name), form);
        }
    }
}
