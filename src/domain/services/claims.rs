//! Who has a Consul name that several Services want.
//!
//! The holder depends on the claims alone, never on the order in which they arrived, so a
//! restart changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::domain::kube::names::ObjectKey;

/// How strong a claim to a name is; the smallest wins. Derived `Ord`: first whether the namespace is
/// trusted, then the class, then the older Service. Of two that are equal the first by namespace and name wins: a creation time
/// has seconds only, and anything random would let a newcomer take what another one has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// Whether the Service's namespace is trusted with names.
    pub trust: Trust,
    /// Where the name comes from.
    pub class: Class,
    /// Creation of the Service, seconds since 1970.
    pub created: i64,
}

/// Whether a claim comes from a namespace that is trusted with names, the stronger first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Trust {
    /// From one of `--trusted-namespace`.
    Trusted,
    /// From any other.
    Usual,
}

/// How strong a claim to a PTR key is, likewise: first what the address is to the Service, then
/// the older Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PtrRank {
    /// What the address is.
    pub kind: AddressKind,
    /// Creation of the Service, seconds since 1970.
    pub created: i64,
}

/// What an address is to a Service, by how hard it is to claim another's: Kubernetes gives out
/// cluster IPs, and anybody may write an external IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressKind {
    /// One of its cluster IPs.
    ClusterIp,
    /// One of its load balancer's.
    LoadBalancer,
    /// One of its external IPs.
    ExternalIp,
    /// A pod's.
    Pod,
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
pub struct Claims<C> {
    /// Sorted lists, as in `of`: most have one element, for which the node of a B-tree has ten
    /// times the size.
    claimants: HashMap<Arc<str>, Vec<(C, ObjectKey)>>,
    of: HashMap<ObjectKey, Box<[Claim<C>]>>,
}

/// A thing that is claimed, and how.
type Claim<C> = (Arc<str>, C);

/// Up to this many claimants a list has no room to spare.
const FEW_CLAIMANTS: usize = 4;

/// Claims to Consul names.
pub type NameClaims = Claims<Rank>;

/// Claims to PTR keys.
pub type PtrClaims = Claims<PtrRank>;

// === impl Claims ===

impl<C> Default for Claims<C> {
    fn default() -> Self {
        Self { claimants: HashMap::new(), of: HashMap::new() }
    }
}

impl<C: Clone + Ord> Claims<C> {
    /// Replaces all claims of `owner`. Returns what changed hands, with the old and the new
    /// holder, and what gained or lost a claimant of another namespace than those before: its
    /// holder's tags may follow from that.
    pub fn set(&mut self, owner: &ObjectKey, claims: BTreeMap<Arc<str>, C>) -> Vec<Handover> {
        if self.claims_are(owner, &claims) {
            return Vec::new();
        }
        let handovers = self.handovers(owner, &claims);
        let before: BTreeMap<Arc<str>, C> =
            self.of.remove(owner).unwrap_or_default().into_iter().collect();
        let touched: BTreeSet<Arc<str>> = before.keys().chain(claims.keys()).cloned().collect();
        for thing in touched {
            let claimants = self.claimants.entry(thing.clone()).or_default();
            if let Some(claim) = before.get(&thing)
                && let Ok(place) = claimants.binary_search(&(claim.clone(), owner.clone()))
            {
                claimants.remove(place);
            }
            if let Some(claim) = claims.get(&thing) {
                let claim = (claim.clone(), owner.clone());
                if let Err(place) = claimants.binary_search(&claim) {
                    if claimants.len() < FEW_CLAIMANTS {
                        claimants.reserve_exact(1);
                    }
                    claimants.insert(place, claim);
                }
            }
            if claimants.is_empty() {
                self.claimants.remove(&thing);
            }
        }
        if !claims.is_empty() {
            self.of.insert(owner.clone(), claims.into_iter().collect());
        }
        handovers
    }

    /// Whether nobody claims anything.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// What [`Claims::set`] would return.
    pub fn handovers(&self, owner: &ObjectKey, claims: &BTreeMap<Arc<str>, C>) -> Vec<Handover> {
        if self.claims_are(owner, claims) {
            return Vec::new();
        }
        let before: BTreeSet<&Arc<str>> =
            self.of.get(owner).into_iter().flatten().map(|(thing, _)| thing).collect();
        let touched: BTreeSet<&Arc<str>> = before.iter().copied().chain(claims.keys()).collect();
        let handover = |thing: &Arc<str>| {
            let (from, to) = (self.holder(thing), self.holder_if(thing, owner, claims.get(thing)));
            let is_of_namespace =
                |(_, other): &(C, ObjectKey)| other != owner && other.namespace == owner.namespace;
            let mut claimants = self.claimants.get(thing).into_iter().flatten();
            let neighbours_change = before.contains(thing) != claims.contains_key(thing)
                && !claimants.any(is_of_namespace);
            let handover =
                || Handover { thing: thing.clone(), from: from.cloned(), to: to.cloned() };
            (from != to || neighbours_change).then(handover)
        };
        touched.into_iter().filter_map(handover).collect()
    }

    /// Who would have it if this were the claim of `owner` to it.
    pub fn holder_if<'c>(
        &'c self,
        thing: &str,
        owner: &'c ObjectKey,
        claim: Option<&C>,
    ) -> Option<&'c ObjectKey> {
        let mut others = self.claimants.get(thing).into_iter().flatten();
        let other = others.find(|(_, other)| other != owner);
        match (claim, other) {
            (Some(claim), Some((first, other))) if (first, other) < (claim, owner) => Some(other),
            (Some(_), _) => Some(owner),
            (None, other) => other.map(|(_, other)| other),
        }
    }

    fn claims_are(&self, owner: &ObjectKey, claims: &BTreeMap<Arc<str>, C>) -> bool {
        match self.of.get(owner) {
            Some(before) => before.iter().map(|(thing, claim)| (thing, claim)).eq(claims.iter()),
            None => claims.is_empty(),
        }
    }

    /// All that it claims.
    pub fn of(&self, owner: &ObjectKey) -> BTreeMap<Arc<str>, C> {
        self.of.get(owner).into_iter().flatten().cloned().collect()
    }

    /// Who has it.
    pub fn holder(&self, thing: &str) -> Option<&ObjectKey> {
        self.claimants.get(thing)?.first().map(|(_, owner)| owner)
    }

    /// Everyone who claims anything.
    pub fn owners(&self) -> impl Iterator<Item = &ObjectKey> {
        self.of.keys()
    }

    /// Everyone who claims it, the holder first.
    pub fn claimants(&self, thing: &str) -> impl Iterator<Item = ObjectKey> {
        self.claimants.get(thing).into_iter().flatten().map(|(_, owner)| owner.clone())
    }
}

/// Something that changed hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// What.
    pub thing: Arc<str>,
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
        Rank { trust: Trust::Usual, class, created }
    }

    fn claim(name: &str, rank: Rank) -> BTreeMap<Arc<str>, Rank> {
        [(name.into(), rank)].into()
    }

    #[test]
    fn own_name_before_annotation_before_derived_then_age() {
        let mut claims = NameClaims::default();
        claims.set(&key("derived"), claim("web", rank(Class::Derived, 1)));
        assert_eq!(claims.holder("web"), Some(&key("derived")));
        claims.set(&key("annotated"), claim("web", rank(Class::Annotated, 9)));
        assert_eq!(claims.holder("web"), Some(&key("annotated")));
        claims.set(&key("young"), claim("web", rank(Class::Own, 5)));
        let handovers = claims.set(&key("old"), claim("web", rank(Class::Own, 4)));
        assert_eq!(
            handovers,
            [Handover { thing: "web".into(), from: Some(key("young")), to: Some(key("old")) }]
        );
        claims.set(&key("old"), BTreeMap::new());
        assert_eq!(claims.holder("web"), Some(&key("young")));
    }

    #[test]
    fn a2_a_trusted_namespace_comes_first() {
        let mut claims = NameClaims::default();
        claims.set(&key("own"), claim("web", rank(Class::Own, 1)));
        let trusted = Rank { trust: Trust::Trusted, class: Class::Derived, created: 9 };
        claims.set(&key("trusted"), claim("web", trusted));
        assert_eq!(claims.holder("web"), Some(&key("trusted")));
    }

    #[test]
    fn n10_a_claimant_of_another_namespace_concerns_the_holder() {
        let mut claims = NameClaims::default();
        let of = |namespace: &str, name: &str| ObjectKey::new(namespace, name);
        claims.set(&of("a", "web"), claim("web", rank(Class::Own, 1)));
        for (owner, claimed, changes) in [
            (of("b", "x"), true, 1),
            (of("b", "y"), true, 0),
            (of("b", "x"), false, 0),
            (of("b", "y"), false, 1),
        ] {
            let wanted =
                if claimed { claim("web", rank(Class::Annotated, 2)) } else { BTreeMap::new() };
            let handovers = claims.set(&owner, wanted);
            assert_eq!(handovers.len(), changes, "{owner} {claimed}");
            assert!(handovers.iter().all(|it| it.from == it.to));
        }
    }

    #[test]
    fn equal_claims_change_nothing() {
        let mut claims = NameClaims::default();
        assert_eq!(claims.set(&key("a"), claim("web", rank(Class::Own, 1))).len(), 1);
        assert_eq!(claims.set(&key("a"), claim("web", rank(Class::Own, 1))), []);
    }

    proptest! {
        #[test]
        fn the_order_of_arrival_never_matters(ranks in prop::collection::vec((0..4_u8, 0..3_i64), 1..8), seed in any::<u64>()) {
            let class = |n| [Class::Own, Class::Annotated, Class::Derived, Class::Suffixed][usize::from(n)];
            let owners: Vec<_> = ranks.iter().enumerate()
                .map(|(i, (c, created))| (key(&format!("s{i}")), rank(class(*c), *created)))
                .collect();
            let mut forwards = NameClaims::default();
            for (owner, rank) in &owners { forwards.set(owner, claim("web", *rank)); }
            let mut shuffled = owners.clone();
            let places = shuffled.len();
            for i in 0..places { shuffled.swap(i, (usize::try_from(seed % 1000).unwrap() * (i + 7)) % places); }
            let mut backwards = NameClaims::default();
            for (owner, rank) in &shuffled { backwards.set(owner, claim("web", *rank)); }
            prop_assert_eq!(forwards.holder("web"), backwards.holder("web"));
            for (owner, _) in &owners {
                for claims in [BTreeMap::new(), claim("web", rank(Class::Annotated, 1))] {
                    let foretold = forwards.handovers(owner, &claims);
                    let holder = forwards.holder_if("web", owner, claims.get("web")).cloned();
                    prop_assert_eq!(foretold, forwards.set(owner, claims));
                    prop_assert_eq!(forwards.holder("web"), holder.as_ref());
                }
            }
        }
    }
}
