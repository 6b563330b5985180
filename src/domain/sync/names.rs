//! Who else holds the Consul names that we want.
//!
//! A listing shows all names that others hold: once it is known at the start which names are wanted,
//! and with each resync. A name that is wanted later, and that we do not hold, is looked up before
//! its first write: who took it a moment ago is not joined. That is one request for each such name,
//! several at a time, and nothing else waits for it. Where many names come at once, a listing takes
//! the place of their look-ups.
//!
//! While it is not known who holds a name, it is not registered (and what is registered under a
//! former name stays). A look-up that fails leaves its name to the next listing, which then comes
//! within seconds: a name waits no longer than Consul can be read neither way, and its Service has a
//! problem until then.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use crate::domain::consul::names::{ForeignNames, Holders};
use crate::domain::kube::names::ObjectKey;

/// Look-ups under way at a time: at a millisecond each, thousands of names a second, and a small
/// part of the connections that Consul lets one address have (200).
const LOOK_UPS: usize = 8;
/// From so many names on one listing is cheaper: it takes four requests, whose answers grow with
/// the number of names in Consul.
const LISTING_PAYS: usize = 64;

/// Who else holds which names.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Names that others hold; `None` while that was not listed.
    foreign: Option<ForeignNames>,
    /// Names that we do not hold, may take, and have not taken yet.
    free: HashSet<Arc<str>>,
    /// Names to look up.
    due: BTreeSet<Arc<str>>,
    /// Names being looked up.
    under_way: BTreeSet<Arc<str>>,
    /// Names whose look-up failed, and why: the next listing tells.
    failed: BTreeMap<Arc<str>, String>,
    /// Names that the listing under way tells.
    listing: BTreeSet<Arc<str>>,
    /// Names that we have left since the last listing began: what it shows there of ours may be what
    /// we have removed meanwhile.
    left: HashSet<Arc<str>>,
    /// Services whose instances under a name somebody else removed: they have not given it up.
    lost: BTreeMap<Arc<str>, BTreeSet<ObjectKey>>,
}

/// Who else holds a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others<'n> {
    /// Nothing was listed yet.
    NotListed,
    /// Nobody was there when all were listed; who is there now is not known.
    NotLookedUp,
    /// Nobody.
    Nobody,
    /// These.
    Hold(&'n Holders),
}

// === impl Names ===

impl Names {
    /// Whether the names that others hold were listed.
    pub(super) fn are_listed(&self) -> bool {
        self.foreign.is_some()
    }

    /// Who else holds the name, which we hold ourselves if `is_held`.
    pub(super) fn others(&self, name: &str, is_held: bool) -> Others<'_> {
        let Some(foreign) = &self.foreign else { return Others::NotListed };
        match foreign.get(name) {
            Some(holders) => Others::Hold(holders),
            None if is_held || self.free.contains(name) => Others::Nobody,
            None => Others::NotLookedUp,
        }
    }

    /// Whether it is soon known who else holds the name.
    pub(super) fn comes_soon(&self, name: &str) -> bool {
        self.are_listed() && !self.failed.contains_key(name)
    }

    /// Why it is not known who else holds the name, where asking failed.
    pub(super) fn failure(&self, name: &str) -> Option<&str> {
        self.failed.get(name).map(String::as_str)
    }

    /// Has the name looked up, unless that is under way.
    pub(super) fn ask(&mut self, name: Arc<str>) {
        let is_asked = self.under_way.contains(&name)
            || self.listing.contains(&name)
            || self.failed.contains_key(&name);
        if !is_asked {
            self.due.insert(name);
        }
    }

    /// Whether all that was asked is answered, or failed.
    pub(super) fn are_settled(&self) -> bool {
        self.due.is_empty() && self.under_way.is_empty() && self.listing.is_empty()
    }

    /// Whether so many names are to be looked up that a listing is cheaper.
    pub(super) fn want_listing(&self) -> bool {
        self.are_listed() && self.listing.is_empty() && self.due.len() >= LISTING_PAYS
    }

    /// Begins the next look-up.
    pub(super) fn next_look_up(&mut self) -> Option<Arc<str>> {
        let many = self.due.len() >= LISTING_PAYS;
        if !self.are_listed() || many || self.under_way.len() >= LOOK_UPS {
            return None;
        }
        let name = self.due.pop_first()?;
        self.under_way.insert(Arc::clone(&name));
        Some(name)
    }

    /// A listing begins: it tells of all that is asked by now.
    pub(super) fn begin_listing(&mut self) {
        self.left.clear();
        self.listing.append(&mut self.due);
        self.listing.extend(std::mem::take(&mut self.failed).into_keys());
    }

    /// The listing failed, for this reason. Gives for which names that is news.
    pub(super) fn listing_failed(&mut self, why: &str) -> BTreeSet<Arc<str>> {
        let names = std::mem::take(&mut self.listing);
        self.failed.extend(names.iter().map(|name| (Arc::clone(name), why.to_owned())));
        names
    }

    /// Takes the listing. Gives for which names it says something new; `None`: it is the first one.
    /// `is_held`: which names we hold, so that what it shows of ours there may be no other replica's.
    pub(super) fn listed(
        &mut self,
        mut foreign: ForeignNames,
        is_held: impl Fn(&str) -> bool,
    ) -> Option<BTreeSet<Box<str>>> {
        for (name, holders) in &mut foreign {
            holders.ours &= !is_held(name) && !self.left.contains(&**name);
        }
        let told = std::mem::take(&mut self.listing);
        let news = self.foreign.as_ref().map(|before| {
            let all = before.keys().chain(foreign.keys());
            let changed = all.filter(|name| before.get(*name) != foreign.get(*name)).cloned();
            changed.chain(told.iter().map(|name| (&**name).into())).collect()
        });
        self.free.extend(told);
        self.free.retain(|name| !foreign.contains_key(&**name));
        self.free.shrink_to_fit();
        self.foreign = Some(foreign);
        news
    }

    /// Takes the answer to a look-up.
    pub(super) fn looked_up(&mut self, name: &str, found: Result<Option<Holders>, String>) {
        let Some(name) = self.under_way.take(name) else { return };
        match (found, &mut self.foreign) {
            (Ok(Some(holders)), Some(foreign)) => drop(foreign.insert((&*name).into(), holders)),
            (Ok(_), _) => drop(self.free.insert(name)),
            (Err(why), _) => drop(self.failed.insert(name, why)),
        }
    }

    /// Somebody removed what the Service had under the name: it is the Service's to write again at
    /// once, and who else holds it is told by the next listing.
    pub(super) fn lost(&mut self, name: Arc<str>, service: &ObjectKey) {
        self.lost.entry(Arc::clone(&name)).or_default().insert(service.clone());
        self.free.insert(name);
    }

    /// Whether the Service has lost what it had under the name, and may have it back.
    pub(super) fn has_lost(&self, name: &str, service: &ObjectKey) -> bool {
        self.lost.get(name).is_some_and(|services| services.contains(service))
    }

    /// The Service has taken the name: should we give it up, it is looked up before we take it again.
    pub(super) fn taken(&mut self, name: &str, service: &ObjectKey) {
        self.free.remove(name);
        if let Some(services) = self.lost.get_mut(name) {
            services.remove(service);
            if services.is_empty() {
                self.lost.remove(name);
            }
        }
    }

    /// We have removed the last of what we had under the name.
    pub(super) fn left(&mut self, name: Arc<str>) {
        self.left.insert(name);
    }

    /// Forgets which names are free, unless they are wanted and not held, and who has lost one and no
    /// longer claims it.
    pub(super) fn retain(
        &mut self,
        is_free: impl Fn(&str) -> bool,
        claims: impl Fn(&str, &ObjectKey) -> bool,
    ) {
        self.free.retain(|name| is_free(name));
        self.lost.retain(|name, services| {
            services.retain(|service| claims(name, service));
            !services.is_empty()
        });
    }
}
