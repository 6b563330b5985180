//! What is kept of an object that routes to Services.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;

use crate::domain::kube::names::is_label;
use crate::domain::text::one_line;
use crate::kubernetes::slim::{Identity, LeftOut, QUOTED_BYTES, identity, parse_address};
use crate::kubernetes::wire::{MAX_ADDRESSES, Text};

/// Rules of an Ingress, and backends of an HTTPRoute, that are kept: an object has room for 20,000,
/// of some 150 bytes each. Whoever writes them by hand has tens; an HTTPRoute may have 256.
pub(super) const MAX_RULES: usize = 1_000;

/// Longest name that DNS can carry.
const MAX_HOST: usize = 253;

#[derive(Deserialize)]
#[serde(bound(deserialize = "S: Deserialize<'de>, T: Deserialize<'de>"))]
struct Object<'a, S, T> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    spec: Option<S>,
    status: Option<T>,
}

/// Which object it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    namespace: Text<'a>,
    #[serde(borrow)]
    resource_version: Option<Text<'a>>,
}

/// What is kept of many, each once.
pub(super) struct Kept<T> {
    kept: BTreeSet<T>,
    more: usize,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { kept: BTreeSet::new(), more: 0 }
    }
}

impl<T: Ord> Kept<T> {
    /// One more, unless there are too many.
    pub(super) fn add(&mut self, rule: T) {
        if self.kept.len() < MAX_RULES {
            self.kept.insert(rule);
        } else if !self.kept.contains(&rule) {
            self.more += 1;
        }
    }

    /// All of them; `what` they are, for a problem that says that there were more.
    pub(super) fn into_box(self, what: &str, left_out: &mut LeftOut) -> Box<[T]> {
        if self.more > 0 {
            let found = MAX_RULES + self.more;
            left_out.tell(|| {
                format!(
                    "expected at most {MAX_RULES} {what}, found {found}; those beyond are left out: \
                     split the object"
                )
            });
        }
        self.kept.into_iter().collect()
    }
}

/// Which object the JSON is, with its `spec` and `status`: an absent one is as an empty one.
pub(super) fn parts<'a, S, T>(json: &'a str) -> Result<(Identity, S, T), serde_json::Error>
where
    S: Default + Deserialize<'a>,
    T: Default + Deserialize<'a>,
{
    let Object { metadata, spec, status } = serde_json::from_str(json)?;
    let identity = identity(metadata.namespace, metadata.name, metadata.resource_version);
    Ok((identity, spec.unwrap_or_default(), status.unwrap_or_default()))
}

/// Whether it is a name that DNS can carry, or a wildcard of such, and no IP address. What has only
/// these characters cannot pass for another part of a registration's ID.
pub(super) fn is_host(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    text.len() <= MAX_HOST && name.split('.').all(is_label) && name.parse::<IpAddr>().is_err()
}

/// The addresses that an instance can have.
pub(super) fn usable(
    addresses: impl Iterator<Item = Box<str>>,
    field: &str,
    left_out: &mut LeftOut,
) -> Box<[Box<str>]> {
    addresses
        .take(MAX_ADDRESSES)
        .filter_map(|text| {
            if let Some(address) = parse_address(&text) {
                return Some(address.to_string().into());
            }
            let is_name = is_host(&text) && !text.starts_with('*');
            if !is_name {
                left_out.host(|| format!("an address of {field}"), &text);
            }
            is_name.then_some(text)
        })
        .collect()
}

impl LeftOut {
    /// A host name that DNS cannot carry.
    pub(super) fn host(&mut self, field: impl FnOnce() -> String, found: impl fmt::Display) {
        self.tell(|| {
            let found = one_line(&found.to_string(), QUOTED_BYTES);
            format!("{}: expected a DNS name, found {found:?}; it is left out", field())
        });
    }
}
