//! A bridge: its core, what it was told, and what it may believe of that.

use super::*;

/// Fewer changes by others are no fight.
const FIGHT: usize = 4;

/// A process, in the place of one that may have been there before.
pub(super) struct Process {
    pub(super) core: Core,
    pub(super) capacity: Capacity,
    /// Problems that it has told and not taken back.
    pub(super) told: BTreeSet<(Subject, ObjectKey, Problem)>,
    pub(super) number: u64,
    pub(super) is_connected: bool,
    pub(super) lead: Lead,
    pub(super) terms: u64,
    pub(super) term: Term,
    pub(super) reading: Option<Reading>,
    /// When the last reading of this term began that ended well.
    pub(super) read: Option<Moment>,
    /// When the first one ended that began later than anybody else had changed anything.
    pub(super) read_all: Option<(Moment, Moment)>,
    /// When something was last asked, answered or said.
    pub(super) busy: Moment,
    pub(super) watches: BTreeMap<Kind, Watch>,
    pub(super) view: View,
    /// By kind, Services that lose by a list that was rightly believed.
    pub(super) excused: BTreeMap<Kind, BTreeSet<ObjectKey>>,
    /// What its lists lack although it exists, since when, if it is more than may be believed.
    pub(super) lacking_since: BTreeMap<Kind, BTreeMap<ObjectKey, Moment>>,
    /// Services that lose by what a second list has confirmed, and since when the first lacked it.
    pub(super) confirmed: BTreeMap<ObjectKey, Moment>,
    /// When the cluster was last known to be the same.
    pub(super) identified: Option<Moment>,
    /// Whether it follows PTR keys, in this term.
    pub(super) follows_ptr: bool,
}

// === impl Process ===

impl Process {
    /// A reading that began then is over.
    pub(super) fn has_read(&mut self, began: Option<Moment>, disturbed: Moment, now: Moment) {
        self.read = began;
        let is_new = self.read_since(disturbed).is_none();
        if is_new && began.is_some_and(|began| began > disturbed) {
            self.read_all = Some((disturbed, now));
        }
    }

    /// Since when it has read all that had been disturbed by then.
    pub(super) fn read_since(&self, disturbed: Moment) -> Option<Moment> {
        self.read_all.filter(|(of, _)| *of == disturbed).map(|(_, since)| since)
    }

    /// Whether it knows of something of the Service under the name, or somebody removed that.
    pub(super) fn has_name(&self, service: &ObjectKey, name: &str) -> bool {
        let known = self.core.registrations_of(service).iter();
        let term = self.core.term.as_ref();
        known.map(|it| lookup_form(&it.service)).any(|it| it == name)
            || term.is_some_and(|term| term.names.has_lost(name, service))
    }

    /// Whether it is certain that something of the Service is there under the name.
    pub(super) fn certainly_has_name(&self, service: &ObjectKey, name: &str) -> bool {
        let mut known = self.core.registrations_of(service).iter();
        known.any(|it| it.fingerprint.is_some() && lookup_form(&it.service) == name)
    }

    /// The name under which it knows this registration of the Service.
    pub(super) fn name_of(&self, service: &ObjectKey, id: &str) -> Option<Box<str>> {
        let mut known = self.core.registrations_of(service).iter();
        let known = known.find(|it| *it.id(&cluster(), service) == *id)?;
        Some(lookup_form(&known.service).into())
    }

    /// A Service that changes, or is seen to go, is as any other from then on.
    pub(super) fn note_change(&mut self, event: &WatchEvent) {
        match event {
            WatchEvent::Seen(object) => {
                if let Some(service) = service_of(object) {
                    self.confirmed.remove(&service);
                }
            }
            WatchEvent::Deleted(_, key) => {
                self.confirmed.remove(&service_of_slice(key));
            }
            _ => {}
        }
        match event {
            WatchEvent::Seen(SeenObject::Service(key, service)) => {
                let known = self.view.objects.get(&(Kind::Service, key.clone()));
                let same = SeenObject::Service(key.clone(), service.clone());
                if known != Some(&same) {
                    self.term.deselected.remove(key);
                }
                if known.is_none() && self.view.unread.contains(&(Kind::Service, key.clone())) {
                    // While it could not be read, a list that lacked its slices lost nothing: nobody has
                    // looked a second time.
                    let lacking = self.lacking_since.entry(Kind::EndpointSlice).or_default();
                    let before = lacking.len();
                    lacking.retain(|slice, _| service_of_slice(slice) != *key);
                    if lacking.len() < before {
                        self.excused.entry(Kind::EndpointSlice).or_default().insert(key.clone());
                    }
                }
            }
            WatchEvent::Deleted(Kind::Service, key) => drop(self.term.deselected.remove(key)),
            _ => {}
        }
    }

    /// A list is over, maybe an empty one, that lacks these objects, which exist. Gives those of which it
    /// may not be believed: they are most of what is registered, or all that there is, and no second list
    /// has confirmed it.
    pub(super) fn weigh(
        &mut self,
        settings: &Settings,
        consul: &Consul,
        (kind, is_empty): (Kind, bool),
        hidden: Vec<SeenObject>,
        now: Moment,
    ) -> Vec<SeenObject> {
        let list = (kind, is_empty);
        let is_most = Wanted::loses_most(settings, consul, &self.term, list, &hidden);
        let before = self.lacking_since.remove(&kind).unwrap_or_default();
        let excused = self.excused.entry(kind).or_default();
        let mut lacking = BTreeMap::new();
        let mut unbelieved = Vec::new();
        for object in hidden {
            let key = key_of(&object);
            let since = before.get(&key).copied();
            if is_most && since.is_none_or(|since| now < since + SECOND_LIST) {
                lacking.insert(key, since.unwrap_or(now));
                unbelieved.push(object);
            } else {
                if is_most {
                    let confirmed = service_of(&object).into_iter().zip(since);
                    self.confirmed.extend(confirmed);
                }
                excused.extend(service_of(&object));
            }
        }
        self.lacking_since.insert(kind, lacking);
        unbelieved
    }

    /// Services that may lose by a list that was rightly believed, or of which neither the last list nor
    /// Consul shows anything.
    pub(super) fn all_excused(&self, consul: &Consul) -> BTreeSet<ObjectKey> {
        let mut all: BTreeSet<ObjectKey> = self.excused.values().flatten().cloned().collect();
        let lacking = self.lacking_since.get(&Kind::Service).into_iter().flatten();
        let lacking = lacking.map(|(service, _)| service);
        let is_there = |service: &ObjectKey| consul.has_instances_of(service);
        all.extend(lacking.filter(|service| !is_there(service)).cloned());
        if self.excused.get(&Kind::Node).is_some_and(|it| !it.is_empty()) {
            all.extend(self.view.objects.values().map(key_of));
        }
        all
    }

    /// A list is over that showed all there is: what earlier ones lacked is known again, but for
    /// what cannot be read. Of that an older state may be known, or nothing.
    pub(super) fn shown_all(&mut self, kind: Kind) {
        let excused = self.excused.entry(kind).or_default();
        self.confirmed.retain(|service, _| !excused.contains(service));
        let unread: BTreeSet<ObjectKey> = self.view.unread_services().collect();
        excused.retain(|service| unread.contains(service));
    }

    /// What it tells must be what it says when it is asked. `tampered`: how often others have changed
    /// something.
    pub(super) fn take_reports(&mut self, tampered: usize) -> Checked {
        for report in self.core.take_reports() {
            let (is_right, told) = match report {
                Report::Problem(_, key, problem)
                    if tampered < FIGHT
                        && problem.message.contains("changed again by somebody") =>
                {
                    return Err(format!("{key}: a fight that there was not: {problem:?}"));
                }
                Report::Problem(subject, key, problem) => {
                    let told = (subject, key, problem);
                    (self.told.insert(told.clone()), told)
                }
                Report::Solved(subject, key, problem)
                | Report::Withdrawn(subject, key, problem) => {
                    let told = (subject, key, problem);
                    (self.told.remove(&told), told)
                }
                _ => continue,
            };
            if !is_right {
                return Err(format!("a problem is told, or taken back, twice: {told:?}"));
            }
        }
        let count = self.core.problems().len();
        if count != self.told.len() {
            return Err(format!("{} problems are told, and {count} are there", self.told.len()));
        }
        Ok(())
    }
}
