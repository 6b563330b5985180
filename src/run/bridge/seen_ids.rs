//! Which service IDs a listing has shown.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// A set of service IDs, of which hashes are kept: 100,000 IDs as text would be a fifth of all the
/// memory that the bridge may have.
///
/// That an ID which was not shown has the hash of another is as likely as one in 10^14 for so
/// many, and means only that one record is not reported as missing until the next listing, which
/// hashes otherwise.
#[derive(Debug, Default)]
pub(super) struct SeenIds {
    hashes: HashSet<u64>,
    hasher: RandomState,
}

// === impl SeenIds ===

impl SeenIds {
    pub(super) fn insert(&mut self, id: &str) {
        self.hashes.insert(self.hasher.hash_one(id));
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        self.hashes.contains(&self.hasher.hash_one(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_what_was_shown() {
        let mut shown = SeenIds::default();
        shown.insert("eu_ns_web_http_10.0.0.1");
        assert!(shown.contains("eu_ns_web_http_10.0.0.1"));
        assert!(!shown.contains("eu_ns_web_http_10.0.0.2"));
    }
}
