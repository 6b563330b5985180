//! The meta of an instance.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Meta of an instance: what the instances of a port share, and what is particular to this one. It is
/// equal to any other with the same pairs, however they are shared.
#[derive(Clone, Debug, Default)]
pub struct Meta {
    shared: Arc<BTreeMap<String, String>>,
    /// Sorted by key. None of the keys is shared.
    own: Arc<[Pair]>,
}

/// A pair that is an instance's own.
pub type Pair = (&'static str, Box<str>);

// === impl Meta ===

impl Meta {
    /// What is shared, and what is not: its keys are sorted, and none of them is shared.
    pub fn new(shared: Arc<BTreeMap<String, String>>, own: Vec<Pair>) -> Self {
        debug_assert!(own.is_sorted_by(|(a, _), (b, _)| a < b), "{own:?}");
        debug_assert!(own.iter().all(|(key, _)| !shared.contains_key(*key)), "{own:?} {shared:?}");
        Self { shared, own: own.into() }
    }

    /// The pairs, sorted by key.
    pub fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut shared = self.shared.iter().map(|(key, value)| (&**key, &**value)).peekable();
        let mut own = self.own.iter().map(|(key, value)| (*key, &**value)).peekable();
        std::iter::from_fn(move || match (shared.peek(), own.peek()) {
            (Some(a), Some(b)) if b < a => own.next(),
            (None, _) => own.next(),
            _ => shared.next(),
        })
    }

    /// What it says under a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let own = self.own.iter().find(|(own, _)| *own == key).map(|(_, value)| &**value);
        own.or_else(|| self.shared.get(key).map(String::as_str))
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.shared.len() + self.own.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl PartialEq for Meta {
    fn eq(&self, other: &Self) -> bool {
        self.pairs().eq(other.pairs())
    }
}

impl Eq for Meta {}

impl Hash for Meta {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.len());
        self.pairs().for_each(|pair| pair.hash(state));
    }
}

impl From<BTreeMap<String, String>> for Meta {
    fn from(pairs: BTreeMap<String, String>) -> Self {
        Self { shared: Arc::new(pairs), own: Arc::default() }
    }
}

impl<const N: usize> From<[(String, String); N]> for Meta {
    fn from(pairs: [(String, String); N]) -> Self {
        BTreeMap::from(pairs).into()
    }
}

impl Extend<(String, String)> for Meta {
    fn extend<I: IntoIterator<Item = (String, String)>>(&mut self, pairs: I) {
        let own = std::mem::take(&mut self.own);
        let own = own.iter().map(|(key, value)| ((*key).to_owned(), value.to_string()));
        Arc::make_mut(&mut self.shared).extend(own.chain(pairs));
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;
    use std::hash::RandomState;

    use super::*;

    #[test]
    fn the_same_pairs_are_equal_however_they_are_shared() {
        let pair = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let all = [("a", "1"), ("b", "2"), ("c", "3")];
        let whole = Meta::from(all.map(pair));
        let shared = BTreeMap::from([all[0], all[2]].map(pair));
        let split = Meta::new(Arc::new(shared), vec![("b", "2".into())]);
        assert_eq!(split.pairs().collect::<Vec<_>>(), all);
        assert_eq!((&split, split.len(), split.get("b")), (&whole, 3, Some("2")));
        let state = RandomState::new();
        assert_eq!(state.hash_one(&split), state.hash_one(&whole));
        let mut other = split.clone();
        other.extend([pair(("b", "4"))]);
        assert_eq!((other.get("b"), split.get("b")), (Some("4"), Some("2")));
        assert_ne!(other, split);
    }
}
