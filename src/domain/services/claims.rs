//! Who comes first for a Consul name, or a PTR record, that several Services want.
//!
//! That depends on the claims alone, never on the order in which they arrived, so a restart changes
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::kube::names::ObjectKey;
use crate::domain::map::HashMap;

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

/// Claims of Services to things, of which the one that sorts first comes first. Who has a PTR record
/// follows from that alone; who has a name, from what is registered, too.
#[derive(Debug)]
pub struct Claims<C> {
    /// Sorted lists, as in `of`: most have one element, for which the node of a B-tree has ten
    /// times the size.
    claimants: HashMap<Arc<str>, Vec<(C, ObjectKey)>>,
    of: HashMap<ObjectKey, Box<[Claim<C>]>>,
}

/// A thing that is claimed, and how.
type Claim<C> = (Arc<str>, C);

/// Up to so many claimants of a thing each is told who comes first; if there are more, telling all of
/// them each time that it is another one would cost the square of their number. Each is told, too, when
/// one more comes or goes at this limit: as many plans as without it.
pub const TOLD: usize = 32;

/// Up to this many claimants a list has no room to spare.
const FEW_CLAIMANTS: usize = 4;

/// Claims to Consul names.
pub type NameClaims = Claims<Rank>;

/// Claims to PTR keys.
pub type PtrClaims = Claims<PtrRank>;

// === impl Claims ===

impl<C> Default for Claims<C> {
    fn default() -> Self {
        Self { claimants: HashMap::default(), of: HashMap::default() }
    }
}

impl<C: Clone + Ord> Claims<C> {
    /// Replaces all claims of `owner`. Returns for what another one comes first now, with the old and the
    /// new one; what gained or lost a claimant of another namespace than those before, since the tags of
    /// whoever has it may follow from that; and what has [`TOLD`] claimants now and had one more, or the
    /// other way round.
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

    /// What it claims otherwise than this, or no longer, or only by this.
    pub fn differing(&self, owner: &ObjectKey, claims: &BTreeMap<Arc<str>, C>) -> Vec<Arc<str>> {
        if self.claims_are(owner, claims) {
            return Vec::new();
        }
        let before = self.of(owner);
        let touched: BTreeSet<&Arc<str>> = before.keys().chain(claims.keys()).collect();
        let differs = |thing: &&Arc<str>| before.get(*thing) != claims.get(*thing);
        touched.into_iter().filter(differs).cloned().collect()
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
            let number_changes = before.contains(thing) != claims.contains_key(thing);
            let neighbours_change = number_changes
                && (self.is_limit_of_told(thing, owner) || !claimants.any(is_of_namespace));
            let handover =
                || Handover { thing: thing.clone(), from: from.cloned(), to: to.cloned() };
            (from != to || neighbours_change).then(handover)
        };
        touched.into_iter().filter_map(handover).collect()
    }

    /// Who would come first if this were the claim of `owner` to it.
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

    /// Whether it depends on the owner whether each claimant is told who comes first.
    fn is_limit_of_told(&self, thing: &str, owner: &ObjectKey) -> bool {
        let claimants = self.claimants.get(thing).into_iter().flatten();
        claimants.filter(|(_, other)| other != owner).take(TOLD + 1).count() == TOLD
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

    /// Who comes first.
    pub fn holder(&self, thing: &str) -> Option<&ObjectKey> {
        self.claimants.get(thing)?.first().map(|(_, owner)| owner)
    }

    /// How many claim it.
    pub fn count(&self, thing: &str) -> usize {
        self.claimants.get(thing).map_or(0, Vec::len)
    }

    /// Whether the first one claims it, and comes before the other, which may not claim it at all.
    pub fn is_before(&self, thing: &str, one: &ObjectKey, other: &ObjectKey) -> bool {
        match (self.claim(thing, one), self.claim(thing, other)) {
            (Some(first), Some(second)) => (first, one) < (second, other),
            (claim, _) => claim.is_some(),
        }
    }

    /// Whether it claims it.
    pub fn claims(&self, thing: &str, owner: &ObjectKey) -> bool {
        self.claim(thing, owner).is_some()
    }

    fn claim(&self, thing: &str, owner: &ObjectKey) -> Option<&C> {
        let all = self.of.get(owner)?;
        let place = all.binary_search_by(|(other, _)| (**other).cmp(thing)).ok()?;
        Some(&all[place].1)
    }

    /// Everyone who claims anything.
    pub fn owners(&self) -> impl Iterator<Item = &ObjectKey> {
        self.of.keys()
    }

    /// Everyone who claims it, in the order in which they come.
    pub fn claimants(&self, thing: &str) -> impl Iterator<Item = ObjectKey> {
        self.claimants.get(thing).into_iter().flatten().map(|(_, owner)| owner.clone())
    }
}

/// Something for which another one comes first, or whose claimants changed otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// What.
    pub thing: Arc<str>,
    /// Who came first.
    pub from: Option<ObjectKey>,
    /// Who comes first now.
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
    fn one_comes_before_another_that_claims_later_or_not_at_all() {
        let mut claims = NameClaims::default();
        claims.set(&key("a"), claim("web", rank(Class::Own, 2)));
        claims.set(&key("b"), claim("web", rank(Class::Own, 1)));
        for (one, other, is_before) in
            [("a", "b", false), ("b", "a", true), ("a", "c", true), ("c", "a", false)]
        {
            assert_eq!(claims.is_before("web", &key(one), &key(other)), is_before, "{one} {other}");
        }
        assert!(!claims.is_before("api", &key("b"), &key("a")));
    }

    #[test]
    fn all_are_told_when_there_are_too_many_to_be_told_and_when_there_no_longer_are() {
        let mut claims = NameClaims::default();
        let changes = |claims: &mut NameClaims, n: usize, claimed: bool| {
            let wanted = if claimed { claim("web", rank(Class::Own, 1)) } else { BTreeMap::new() };
            claims.set(&key(&format!("s{n:03}")), wanted).len()
        };
        let of = |range: std::ops::Range<usize>| range;
        let mut told: Vec<usize> = Vec::new();
        for n in of(0..TOLD + 3) {
            if changes(&mut claims, n, true) > 0 {
                told.push(n);
            }
        }
        assert_eq!(told, [0, TOLD], "the first one, and the first that is too much");
        told.clear();
        for n in of(1..TOLD + 3).rev() {
            if changes(&mut claims, n, false) > 0 {
                told.push(n);
            }
        }
        assert_eq!(told, [TOLD]);
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
