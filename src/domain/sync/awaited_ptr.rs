//! PTR keys that Services hold and that another cluster's bridge or somebody else has in Consul.
//! They are followed: once one goes, its Service writes it within a second. Without that, and where
//! the keys cannot be followed, the next resync shows it.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::kube::names::ObjectKey;
use crate::domain::map::HashMap;
use crate::domain::sync::action::Action;

/// The keys, and those that are followed.
#[derive(Debug, Default)]
pub(super) struct AwaitedPtr {
    of: HashMap<ObjectKey, BTreeSet<Box<str>>>,
    keys: BTreeMap<Box<str>, ObjectKey>,
    /// What all keys that are followed begin with.
    followed: Option<Box<str>>,
}

// === impl AwaitedPtr ===

impl AwaitedPtr {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the Service waits for this key.
    pub(super) fn has(&self, service: &ObjectKey, key: &str) -> bool {
        self.keys.get(key) == Some(service)
    }

    /// Sets the keys that the Service waits for. Gives those that it waits for no longer.
    pub(super) fn set(
        &mut self,
        service: &ObjectKey,
        keys: BTreeSet<Box<str>>,
    ) -> BTreeSet<Box<str>> {
        let before = self.of.remove(service).unwrap_or_default();
        for key in before.difference(&keys) {
            if self.has(service, key) {
                self.keys.remove(key);
            }
        }
        self.keys.extend(keys.iter().map(|key| (key.clone(), service.clone())));
        let over = before.difference(&keys).cloned().collect();
        if !keys.is_empty() {
            self.of.insert(service.clone(), keys);
        }
        over
    }

    /// Those of the keys that are not among what Consul shows, with their Services.
    pub(super) fn missing(&self, is_shown: impl Fn(&str) -> bool) -> BTreeMap<Box<str>, ObjectKey> {
        let missing = self.keys.iter().filter(|(key, _)| !is_shown(key));
        missing.map(|(key, service)| (key.clone(), service.clone())).collect()
    }

    /// Has the keys followed, if others are than before.
    pub(super) fn next_action(&mut self) -> Option<Action> {
        let prefix = self.prefix();
        if prefix == self.followed {
            return None;
        }
        self.followed.clone_from(&prefix);
        Some(Action::FollowPtr { prefix })
    }

    /// In sorted order all lie between the first and the last.
    fn prefix(&self) -> Option<Box<str>> {
        let (first, _) = self.keys.first_key_value()?;
        let (last, _) = self.keys.last_key_value()?;
        let same = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
        // Keys are ASCII.
        first.get(..same).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_followed_covers_all_keys_and_no_more_than_it_has_to() {
        let mut awaited = AwaitedPtr::default();
        let [a, b] = ["a", "b"].map(|name| ObjectKey::new("ns", name));
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).into()).collect::<BTreeSet<_>>();
        let follow = |prefix: &str| Some(Action::FollowPtr { prefix: Some(prefix.into()) });
        assert_eq!(awaited.next_action(), None);
        awaited.set(&a, keys(&["0.1.2.10.IN-ADDR.ARPA/10.2.1.7"]));
        assert_eq!(awaited.next_action(), follow("0.1.2.10.IN-ADDR.ARPA/10.2.1.7"));
        awaited.set(&b, keys(&["0.1.2.10.IN-ADDR.ARPA/10.2.1.9"]));
        assert_eq!(awaited.next_action(), follow("0.1.2.10.IN-ADDR.ARPA/10.2.1."));
        awaited.set(&b, keys(&["0.8.2.10.IN-ADDR.ARPA/10.2.8.9"]));
        assert_eq!(awaited.next_action(), follow("0."));
        let missing = awaited.missing(|key| key.contains(".1."));
        assert_eq!(missing.into_values().collect::<Vec<_>>(), std::slice::from_ref(&b));
        assert_eq!(awaited.set(&b, keys(&[])).len(), 1);
        awaited.set(&a, keys(&[]));
        assert_eq!(awaited.next_action(), Some(Action::FollowPtr { prefix: None }));
        assert_eq!(awaited.next_action(), None);
    }
}
