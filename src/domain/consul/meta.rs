//! Which meta Consul takes for an instance.

use crate::domain::consul::record::{
    CLUSTER_META, KATALOG_SYNC_META, NAMESPACE_META, SERVICE_META, SOURCE_META,
};

/// Longest key that Consul takes.
const MAX_META_KEY: usize = 128;
/// Longest value that Consul takes.
const MAX_META_VALUE: usize = 512;
/// Keys that begin so are Consul's own: it refuses the whole registration.
pub const CONSULS_META: &str = "consul-";

/// Keys that say whose and what a registration is: nothing else may set them.
/// So does katalog-sync's, which it shares with our node daemon: either removes what carries it and
/// is no pod's.
pub const RESERVED_META: [&str; 5] =
    [CLUSTER_META, SOURCE_META, NAMESPACE_META, SERVICE_META, KATALOG_SYNC_META];

/// Whether Consul takes `name` as a meta key.
pub fn is_meta_key(name: &str) -> bool {
    (1..=MAX_META_KEY).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
}

/// Whether Consul keeps the meta key for itself, or it says whose an instance is.
pub fn is_reserved_meta(name: &str) -> bool {
    name.starts_with(CONSULS_META) || RESERVED_META.contains(&name)
}

/// Whether Consul takes `value` as a meta value, and others can show it: control characters it
/// would take.
pub fn is_meta_value(value: &str) -> bool {
    value.len() <= MAX_META_VALUE && !value.contains(char::is_control)
}
