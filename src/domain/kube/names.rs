//! Names of Kubernetes objects and of the cluster: parsed once, at the edge, and valid from then on.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::sync::Arc;

/// Namespace and name of a Kubernetes object. Shared: a Service's stands in many places, each of
/// which needs one word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey(Arc<Names>);

/// What an [`ObjectKey`] says.
#[derive(Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Names {
    /// The namespace.
    pub namespace: Box<str>,
    /// The name within it.
    pub name: Box<str>,
}

/// Name of the Kubernetes cluster whose records these are: one RFC 1123 label.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterName(Box<str>);

/// A string that is not an RFC 1123 label.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a DNS label (1 to 63 of a-z, 0-9 and '-', beginning and ending with a letter or digit), found {found:?}"
)]
pub struct NotALabel {
    found: String,
}

// === impl ObjectKey ===

impl ObjectKey {
    /// The object `name` in `namespace`.
    pub fn new(namespace: impl Into<Box<str>>, name: impl Into<Box<str>>) -> Self {
        Self(Arc::new(Names { namespace: namespace.into(), name: name.into() }))
    }

    /// Stands for the Service of records that are ours and belong to none.
    pub fn orphaned() -> Self {
        Self::new("", "")
    }

    /// Whether it is [`ObjectKey::orphaned`].
    pub fn is_orphaned(&self) -> bool {
        self.namespace.is_empty() && self.name.is_empty()
    }
}

impl Deref for ObjectKey {
    type Target = Names;

    fn deref(&self) -> &Names {
        &self.0
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

// === impl ClusterName ===

impl ClusterName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = NotALabel;

    fn from_str(text: &str) -> Result<Self, NotALabel> {
        if is_label(text) {
            Ok(Self(text.into()))
        } else {
            Err(NotALabel { found: text.to_owned() })
        }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `text` is a label by RFC 1123 as Kubernetes reads it: lower case, at most 63 bytes.
pub fn is_label(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().all(|c| inner(*c) || *c == b'-')
        && bytes.first().is_some_and(|c| inner(*c))
        && bytes.last().is_some_and(|c| inner(*c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_name_is_one_label() {
        for good in ["a", "kubernetes", "eu-1", "0", &"x".repeat(63)] {
            assert_eq!(
                good.parse::<ClusterName>().map(|name| name.to_string()),
                Ok(good.to_owned())
            );
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "a b", &"x".repeat(64), "ä"] {
            assert!(bad.parse::<ClusterName>().is_err(), "{bad:?} was accepted");
        }
    }
}
