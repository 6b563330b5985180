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
//!
//! Two clusters may find one name free at the same moment. So one that was free is looked up once more
//! after its first write, for which nothing waits: each sees by then whatever reached the catalog before,
//! and whoever came second leaves. An agent may not have passed our instance on yet, and of many new names
//! few are looked up: the next listing tells of all whose look-up has not. (One case is not seen: an
//! instance that was there before under another name counts as the older one. If the write that renames it
//! fails for so long that the other cluster has taken the name and listed all since, both stay.)

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::domain::consul::names::{ForeignNames, Found, Holders};
use crate::domain::kube::names::ObjectKey;
use crate::domain::map::{HashMap, HashSet};

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
    /// Names being looked up, and whether we had taken them by then: what is there of ours may be what
    /// we have removed before the answer.
    under_way: BTreeMap<Arc<str>, bool>,
    /// Names whose look-up failed, and why: the next listing tells.
    failed: BTreeMap<Arc<str>, String>,
    /// Names that the listing under way tells.
    listing: BTreeSet<Arc<str>>,
    /// Names that we have left since the last listing began: what it shows there of ours may be what
    /// we have removed meanwhile.
    left: HashSet<Arc<str>>,
    /// Names that we found free and have taken: whether a listing has begun since. It is not certain yet
    /// that nobody else did so at the same moment.
    fresh: HashMap<Arc<str>, bool>,
    /// Those of them to look up.
    fresh_due: BTreeSet<Arc<str>>,
    /// Names that we have taken second, and leave: ours no more than any other name of others, until
    /// nobody else is there.
    second: HashSet<Arc<str>>,
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

    /// Whether it is soon known who else holds the name: what is wanted at the start is told by the first
    /// listing, as long as that has not failed.
    pub(super) fn comes_soon(&self, name: &str) -> bool {
        !self.failed.contains_key(name)
    }

    /// Why it is not known who else holds the name, where asking failed.
    pub(super) fn failure(&self, name: &str) -> Option<&str> {
        self.failed.get(name).map(String::as_str)
    }

    /// Has the name looked up, unless that is under way.
    pub(super) fn ask(&mut self, name: Arc<str>) {
        let is_asked = self.under_way.contains_key(&name)
            || self.listing.contains(&name)
            || self.failed.contains_key(&name);
        if !is_asked {
            self.due.insert(name);
        }
    }

    /// Whether all that was asked is answered, or failed.
    pub(super) fn are_settled(&self) -> bool {
        self.due.is_empty()
            && self.fresh_due.is_empty()
            && self.under_way.is_empty()
            && self.listing.is_empty()
    }

    /// Whether so many names are to be looked up that a listing is cheaper.
    pub(super) fn want_listing(&self) -> bool {
        self.are_listed() && self.listing.is_empty() && self.due.len() >= LISTING_PAYS
    }

    /// Begins the next look-up.
    pub(super) fn next_look_up(&mut self) -> Option<Arc<str>> {
        let many = self.due.len() >= LISTING_PAYS;
        if !self.are_listed() || self.under_way.len() >= LOOK_UPS {
            return None;
        }
        let first = if many { None } else { self.due.pop_first() };
        let (name, is_ours) = match first {
            Some(name) => (name, false),
            None => (self.next_fresh()?, true),
        };
        self.under_way.insert(Arc::clone(&name), is_ours);
        Some(name)
    }

    /// One whose look-up is under way is looked up once more after it: that may have been too early.
    fn next_fresh(&mut self) -> Option<Arc<str>> {
        let mut due = self.fresh_due.iter();
        let next = due.find(|name| !self.under_way.contains_key(*name)).cloned()?;
        self.fresh_due.take(&next)
    }

    /// A listing begins: it tells of all that is asked by now.
    pub(super) fn begin_listing(&mut self) {
        self.left.clear();
        self.fresh.values_mut().for_each(|has_begun| *has_begun = true);
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
        let disputed = &mut self.fresh_due;
        self.fresh.retain(|name, has_begun| {
            let is_disputed = foreign.contains_key(&**name);
            if is_disputed {
                disputed.insert(Arc::clone(name));
            }
            is_disputed || !*has_begun
        });
        self.fresh.shrink_to_fit();
        self.second.retain(|name| foreign.contains_key(&**name));
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

    /// Takes the answer to a look-up; gives whether anything follows from it.
    pub(super) fn looked_up(&mut self, name: &str, found: Result<Option<Found>, String>) -> bool {
        let Some((name, was_ours)) = self.under_way.remove_entry(name) else { return false };
        let is_fresh = self.fresh.contains_key(&name);
        match (found, &mut self.foreign) {
            (Ok(Some(found)), Some(foreign)) => {
                let Found { mut holders, came_first } = found;
                // What is there of ours is this one's.
                holders.ours &= !is_fresh && !was_ours;
                if self.fresh.remove(&name).is_some() {
                    self.fresh_due.remove(&name);
                    if came_first {
                        self.second.insert(Arc::clone(&name));
                    }
                }
                foreign.insert((&*name).into(), holders);
            }
            // The next listing says so, too, or not. Nobody waits for it.
            (_, _) if was_ours && is_fresh => return false,
            (Err(_), _) if was_ours => return false,
            (Ok(_), _) => {
                self.second.remove(&name);
                self.free.insert(name);
            }
            (Err(why), _) => drop(self.failed.insert(name, why)),
        }
        true
    }

    /// Whether somebody else may have the name, too, although we hold it: a listing has to tell.
    pub(super) fn are_in_doubt(&self, name: &str) -> bool {
        self.fresh.contains_key(name) || self.second.contains(name)
    }

    /// Whether others had the name before us, who took it at the same moment.
    pub(super) fn came_second(&self, name: &str) -> bool {
        self.second.contains(name)
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
        let was_free = self.free.take(name);
        if let Some(name) = was_free.filter(|_| !self.lost.contains_key(name)) {
            if self.fresh.len() < LISTING_PAYS {
                self.fresh_due.insert(Arc::clone(&name));
            }
            self.fresh.insert(name, false);
        }
        if let Some(services) = self.lost.get_mut(name) {
            services.remove(service);
            if services.is_empty() {
                self.lost.remove(name);
            }
        }
    }

    /// A Service has taken the name: whoever else has lost it does not get it back for that. Gives those.
    pub(super) fn taken_from_all(&mut self, name: &str) -> BTreeSet<ObjectKey> {
        self.lost.remove(name).unwrap_or_default()
    }

    /// We have removed the last of what we had under the name.
    pub(super) fn left(&mut self, name: Arc<str>) {
        self.fresh.remove(&name);
        self.fresh_due.remove(&name);
        // A look-up that was answered late may have told that it is.
        if !self.lost.contains_key(&name) {
            self.free.remove(&name);
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consul::names::Holder;

    fn found(came_first: bool) -> Found {
        Found { holders: Holders { others: Holder::Other, ours: true }, came_first }
    }

    /// `web` was free, is taken, and is being looked up once more.
    fn taken() -> Names {
        let mut names = Names::default();
        names.begin_listing();
        names.listed(ForeignNames::default(), |_| false);
        names.ask("web".into());
        assert_eq!(names.next_look_up().as_deref(), Some("web"));
        assert!(names.looked_up("web", Ok(None)));
        names.taken("web", &ObjectKey::new("ns", "web"));
        assert_eq!(names.next_look_up().as_deref(), Some("web"));
        names
    }

    #[test]
    fn a6_what_we_have_left_during_a_look_up_is_no_other_replicas() {
        for begins in [false, true] {
            let mut names = taken();
            names.left("web".into());
            if begins {
                names.begin_listing();
            }
            assert!(names.looked_up("web", Ok(Some(found(true)))));
            let holders = Holders { others: Holder::Other, ours: false };
            assert_eq!(names.others("web", false), Others::Hold(&holders));
            assert!(!names.came_second("web"));
        }
        let mut names = taken();
        names.left("web".into());
        assert!(!names.looked_up("web", Err("no leader".to_owned())));
        assert!(names.comes_soon("web"), "nobody waits for it");
    }

    #[test]
    fn a6_a_disputed_name_is_looked_up_again_after_the_look_up_that_is_under_way() {
        let disputed = || {
            let mut names = taken();
            names.begin_listing();
            names.listed(ForeignNames::from_iter([("web".into(), found(true).holders)]), |_| true);
            assert_eq!(names.next_look_up(), None, "one at a time");
            assert!(!names.are_settled());
            names
        };
        let mut names = disputed();
        assert!(!names.looked_up("web", Ok(None)));
        assert_eq!(names.next_look_up().as_deref(), Some("web"));
        assert!(names.looked_up("web", Ok(Some(found(true)))) && names.came_second("web"));
        let mut names = disputed();
        assert!(names.looked_up("web", Ok(Some(found(false)))) && !names.came_second("web"));
        assert_eq!(names.next_look_up(), None, "it is told");
    }

    #[test]
    fn n3_a_name_that_is_left_is_looked_up_again_although_a_look_up_was_answered_late() {
        let mut names = Names::default();
        names.begin_listing();
        names.listed(ForeignNames::default(), |_| false);
        names.ask("web".into());
        assert_eq!(names.next_look_up().as_deref(), Some("web"));
        // A write that got no answer, tried again.
        names.taken("web", &ObjectKey::new("ns", "web"));
        assert!(names.looked_up("web", Ok(None)));
        names.left("web".into());
        assert_eq!(names.others("web", false), Others::NotLookedUp);
    }

    #[test]
    fn a6_a_name_taken_second_is_forgotten_when_nobody_else_is_there() {
        let mut names = taken();
        names.looked_up("web", Ok(Some(found(true))));
        names.left("web".into());
        assert!(names.came_second("web"), "another replica may have it");
        names.begin_listing();
        names.listed(ForeignNames::default(), |_| false);
        assert!(!names.came_second("web"));
    }
}
