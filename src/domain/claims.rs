//! Who has a Consul name that several Services want.
//!
//! The holder depends on the claims alone, never on the order in which they arrived, so a
//! restart changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;

use super::names::ObjectKey;

/// How strong a claim to a name is; the smallest wins. Derived `Ord`: first the class, then
/// the older Service, then the uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Where the name comes from.
    pub class: Class,
    /// Creation of the Service, seconds since 1970.
    pub created: i64,
    /// Its uid, where two were created in one second.
    pub uid: Box<str>,
}

/// Where a wanted name comes from, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// The Service's own name, through the template.
    Own,
    /// An annotation.
    Annotated,
    /// `<name>-<port>` of a further port.
    Derived,
    /// `<name>-<namespace>`, with `--on-conflict suffix`.
    Suffixed,
}

/// Claims of Services to things of which each has one holder: the claim that sorts first.
#[derive(Debug)]
pub struct Claims<T, C> {
    claimants: HashMap<T, BTreeSet<(C, ObjectKey)>>,
    of: HashMap<ObjectKey, BTreeMap<T, C>>,
}

/// Claims to Consul names.
pub type NameClaims = Claims<Box<str>, Rank>;

/// Claims to reverse keys, by the name that the record would have: the smallest wins.
pub type ReverseClaims = Claims<Box<str>, Box<str>>;

// === impl Claims ===

impl<T, C> Default for Claims<T, C> {
    fn default() -> Self {
        Self { claimants: HashMap::new(), of: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash + Ord, C: Clone + Ord> Claims<T, C> {
    /// Replaces all claims of `owner`. Returns what changed hands, with the old and the new
    /// holder.
    pub fn set(&mut self, owner: &ObjectKey, claims: BTreeMap<T, C>) -> Vec<Handover<T>> {
        let before = self.of.remove(owner).unwrap_or_default();
        if before == claims {
            if !claims.is_empty() {
                self.of.insert(owner.clone(), claims);
            }
            return Vec::new();
        }
        let touched: BTreeSet<T> = before.keys().chain(claims.keys()).cloned().collect();
        let mut handovers = Vec::new();
        for thing in touched {
            let from = self.holder(&thing).cloned();
            let claimants = self.claimants.entry(thing.clone()).or_default();
            if let Some(claim) = before.get(&thing) {
                claimants.remove(&(claim.clone(), owner.clone()));
            }
            if let Some(claim) = claims.get(&thing) {
                claimants.insert((claim.clone(), owner.clone()));
            }
            if claimants.is_empty() {
                self.claimants.remove(&thing);
            }
            let to = self.holder(&thing).cloned();
            if from != to {
                handovers.push(Handover { thing, from, to });
            }
        }
        if !claims.is_empty() {
            self.of.insert(owner.clone(), claims);
        }
        handovers
    }

    /// Who has it.
    pub fn holder(&self, thing: &T) -> Option<&ObjectKey> {
        self.claimants.get(thing)?.first().map(|(_, owner)| owner)
    }

    /// What `owner` claims.
    pub fn of(&self, owner: &ObjectKey) -> impl Iterator<Item = &T> {
        self.of.get(owner).into_iter().flat_map(BTreeMap::keys)
    }
}

/// Something that changed hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover<T> {
    /// What.
    pub thing: T,
    /// Who had it.
    pub from: Option<ObjectKey>,
    /// Who has it now.
    pub to: Option<ObjectKey>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("ns", name)
    }

    fn rank(class: Class, created: i64) -> Rank {
        Rank { class, created, uid: "u".into() }
    }

    fn claim(name: &str, rank: Rank) -> BTreeMap<Box<str>, Rank> {
        [(name.into(), rank)].into()
    }

    #[test]
    fn own_name_before_annotation_before_derived_then_age() {
        let mut claims = NameClaims::default();
        claims.set(&key("derived"), claim("web", rank(Class::Derived, 1)));
        assert_eq!(claims.holder(&"web".into()), Some(&key("derived")));
        claims.set(&key("annotated"), claim("web", rank(Class::Annotated, 9)));
        assert_eq!(claims.holder(&"web".into()), Some(&key("annotated")));
        claims.set(&key("young"), claim("web", rank(Class::Own, 5)));
        let handovers = claims.set(&key("old"), claim("web", rank(Class::Own, 4)));
        assert_eq!(
            handovers,
            [Handover { thing: "web".into(), from: Some(key("young")), to: Some(key("old")) }]
        );
        claims.set(&key("old"), BTreeMap::new());
        assert_eq!(claims.holder(&"web".into()), Some(&key("young")));
    }

    #[test]
    fn equal_claims_change_nothing() {
        let mut claims = NameClaims::default();
        assert_eq!(claims.set(&key("a"), claim("web", rank(Class::Own, 1))).len(), 1);
        assert_eq!(claims.set(&key("a"), claim("web", rank(Class::Own, 1))), []);
        assert_eq!(claims.of(&key("a")).collect::<Vec<_>>(), [&Box::from("web")]);
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_never_matters(ranks in prop::collection::vec((0..4_u8, 0..3_i64), 1..8), seed in any::<u64>()) {
            let class = |n| [Class::Own, Class::Annotated, Class::Derived, Class::Suffixed][usize::from(n)];
            let owners: Vec<_> = ranks.iter().enumerate()
                .map(|(i, (c, created))| (key(&format!("s{i}")), rank(class(*c), *created)))
                .collect();
            let mut forwards = NameClaims::default();
            for (owner, rank) in &owners { forwards.set(owner, claim("web", rank.clone())); }
            let mut shuffled = owners.clone();
            let places = shuffled.len();
            for i in 0..places { shuffled.swap(i, (usize::try_from(seed % 1000).unwrap() * (i + 7)) % places); }
            let mut backwards = NameClaims::default();
            for (owner, rank) in &shuffled { backwards.set(owner, claim("web", rank.clone())); }
            prop_assert_eq!(forwards.holder(&"web".into()), backwards.holder(&"web".into()));
        }
    }
}
