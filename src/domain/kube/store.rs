//! The objects of one kind, as lists and watches show them.
//!
//! Absence is evidence only in a complete list: [`Store::list_completed`] reports what a list did
//! not show, and only [`Store::remove`] removes.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use crate::domain::kube::names::ObjectKey;

/// The objects of one kind, by namespace and name.
#[derive(Debug)]
pub struct Store<T> {
    /// Boxed: a node of the tree has room for eleven, and half of that stays empty.
    objects: BTreeMap<ObjectKey, Box<Listed<T>>>,
    listing: Listing,
}

/// How far the lists of one kind are, and which of its objects could not be read.
#[derive(Debug, Default)]
pub struct Listing {
    /// Number of the list that is under way or was the last.
    current: ListNumber,
    /// Whether one was ever complete.
    complete: bool,
    /// Objects that could not be read, and why.
    undecodable: BTreeMap<ObjectKey, Listed<String>>,
}

/// The lists of one kind are numbered.
pub type ListNumber = u32;

/// An object, and the number of the list that showed it last.
#[derive(Debug)]
pub struct Listed<T> {
    /// The object.
    pub object: T,
    /// The list that showed it, or that preceded the change which did.
    pub list: ListNumber,
}

// === impl Store ===

impl<T> Default for Store<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listing: Listing::default() }
    }
}

impl<T: PartialEq> Store<T> {
    /// Whether a list was ever complete.
    pub fn is_complete(&self) -> bool {
        self.listing.is_complete()
    }

    /// How far the lists are.
    pub fn listing(&self) -> &Listing {
        &self.listing
    }

    /// A list begins. One that had begun before and was not completed counts no more.
    pub fn list_started(&mut self) {
        self.listing.start();
    }

    /// The list is complete: returns the objects that it did not show, sorted.
    pub fn list_completed(&mut self) -> Vec<ObjectKey> {
        let shown = self.objects.iter().map(|(key, listed)| (key, listed.list));
        self.listing.complete(shown)
    }

    /// Takes an object as it is now. Returns whether it is new, differs from what was known, or
    /// could not be read before.
    pub fn seen(&mut self, key: ObjectKey, object: T) -> bool {
        let was_undecodable = self.listing.decoded(&key);
        let list = self.listing.current();
        if let Some(known) = self.objects.get_mut(&key) {
            let differs = known.object != object;
            **known = Listed { object, list };
            differs || was_undecodable
        } else {
            self.objects.insert(key, Box::new(Listed { object, list }));
            true
        }
    }

    /// The object exists but could not be read: what was known of it stays.
    pub fn undecodable(&mut self, key: ObjectKey, reason: String) {
        let list = self.listing.current();
        if let Some(known) = self.objects.get_mut(&key) {
            known.list = list;
        }
        self.listing.undecodable(key, reason);
    }

    /// Forgets an object. Returns whether it was known.
    pub fn remove(&mut self, key: &ObjectKey) -> bool {
        self.listing.decoded(key);
        self.objects.remove(key).is_some()
    }

    /// Forgets everything: the kind is watched no longer.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The object of this key, to note what is not of its own.
    pub fn get_mut(&mut self, key: &ObjectKey) -> Option<&mut T> {
        self.objects.get_mut(key).map(|listed| &mut listed.object)
    }

    /// The object of this key.
    pub fn get(&self, key: &ObjectKey) -> Option<&T> {
        self.objects.get(key).map(|listed| &listed.object)
    }

    /// The key that is kept already, so that there is one of it in memory.
    pub fn kept_key(&self, key: &ObjectKey) -> Option<&ObjectKey> {
        self.objects.get_key_value(key).map(|(kept, _)| kept)
    }

    /// All objects by namespace and name, those after `after` only.
    pub fn iter_after(
        &self,
        after: Option<&ObjectKey>,
    ) -> impl Iterator<Item = (&ObjectKey, &T)> + Clone {
        self.objects
            .range((after.map_or(Unbounded, Excluded), Unbounded))
            .map(|(key, listed)| (key, &listed.object))
    }

    /// The keys of the objects in this namespace.
    pub fn of_namespace(&self, namespace: &str) -> impl Iterator<Item = &ObjectKey> {
        let first = ObjectKey::new(namespace, "");
        let from_it = self.objects.range(first.clone()..).map(|(key, _)| key);
        from_it.take_while(move |key| key.namespace == first.namespace)
    }

    /// How many objects there are.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Whether it is an object of which nothing could ever be read.
    pub fn is_never_read(&self, key: &ObjectKey) -> bool {
        self.listing.reason(key).is_some() && !self.objects.contains_key(key)
    }

    /// The objects of which nothing could ever be read.
    pub fn never_read(&self) -> impl Iterator<Item = &ObjectKey> {
        self.listing.undecodable.keys().filter(|key| !self.objects.contains_key(*key))
    }
}

// === impl Listing ===

impl Listing {
    /// Whether a list was ever complete.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Number of the list that is under way or was the last.
    pub fn current(&self) -> ListNumber {
        self.current
    }

    /// A list begins.
    pub fn start(&mut self) {
        self.current = self.current.wrapping_add(1);
    }

    /// The list is complete: returns the objects that it did not show, sorted, of `known` and of
    /// those that could not be read.
    pub fn complete<'a>(
        &'a mut self,
        known: impl Iterator<Item = (&'a ObjectKey, ListNumber)>,
    ) -> Vec<ObjectKey> {
        self.complete = true;
        let undecodable = self.undecodable.iter().map(|(key, listed)| (key, listed.list));
        let mut missing: Vec<ObjectKey> = known
            .chain(undecodable)
            .filter(|(_, list)| *list != self.current)
            .map(|(key, _)| key.clone())
            .collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// The object was read, or is gone. Returns whether it could not be read before.
    pub fn decoded(&mut self, key: &ObjectKey) -> bool {
        self.undecodable.remove(key).is_some()
    }

    /// The object could not be read.
    pub fn undecodable(&mut self, key: ObjectKey, reason: String) {
        let list = self.current;
        self.undecodable.insert(key, Listed { object: reason, list });
    }

    /// Why the object could not be read, if it could not: what is known of it may be outdated.
    pub fn reason(&self, key: &ObjectKey) -> Option<&str> {
        self.undecodable.get(key).map(|listed| listed.object.as_str())
    }

    /// The objects that could not be read.
    pub fn all_undecodable(&self) -> impl Iterator<Item = &ObjectKey> {
        self.undecodable.keys()
    }

    /// The objects that could not be read, from `first` on.
    pub fn undecodable_from(&self, first: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        self.undecodable.range(first..).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    /// A store of which these were listed.
    fn listed(names: &[&str]) -> Store<u8> {
        let mut store = Store::default();
        store.list_started();
        for name in names {
            assert!(store.seen(key(name), 1));
        }
        assert_eq!(store.list_completed(), []);
        store
    }

    #[test]
    fn only_a_complete_list_says_what_is_missing_and_it_removes_nothing() {
        let mut store = listed(&["a", "b", "c"]);
        store.list_started();
        store.seen(key("b"), 1);
        // It breaks off: what it had shown counts no more.
        store.list_started();
        store.seen(key("a"), 1);
        assert_eq!(store.list_completed(), [key("b"), key("c")]);
        assert_eq!((store.len(), store.get(&key("b"))), (3, Some(&1)));
        assert!(store.remove(&key("b")) && !store.remove(&key("b")));
    }

    #[test]
    fn an_equal_object_is_no_change() {
        let mut store = listed(&["a"]);
        assert!(!store.seen(key("a"), 1));
        assert!(store.seen(key("a"), 2));
    }

    #[test]
    fn an_object_that_could_not_be_read_exists() {
        let mut store = listed(&["a"]);
        store.list_started();
        store.undecodable(key("a"), "no spec".to_owned());
        store.undecodable(key("b"), "no spec".to_owned());
        assert_eq!(store.list_completed(), []);
        assert_eq!(store.get(&key("a")), Some(&1));
        assert_eq!(store.never_read().collect::<Vec<_>>(), [&key("b")]);
        assert!(store.seen(key("a"), 1), "it may have changed meanwhile");
        assert_eq!(store.listing().reason(&key("a")), None);
        store.list_started();
        assert_eq!(store.list_completed(), [key("a"), key("b")]);
    }
}
