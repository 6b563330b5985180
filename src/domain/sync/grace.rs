//! What a Service may lack for a while, and when that is over.
//!
//! - A port is served by no endpoint although endpoints are ready. Most often the EndpointSlices have not
//!   followed a port that was renamed: for a moment what is registered stays.
//! - The load balancer has no address: somebody is making it. Told only when that takes long.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::map::HashMap;

/// How long slices may take to follow a port: the EndpointSlice controller batches changes of pods
/// for a second at most by default, and those of a Service not at all.
pub(super) const SLICES_FOLLOW: Duration = Duration::from_secs(5);

/// How long a load balancer may take to get its address: those of clouds take one to four minutes.
pub(super) const BALANCER_APPEARS: Duration = Duration::from_mins(5);

/// The Services that lack something, and until when that is normal.
#[derive(Debug)]
pub(super) struct Grace {
    /// How long it is.
    time: Duration,
    services: HashMap<ObjectKey, Since>,
    /// Those for which it is normal still, by the end of that.
    waiting: BTreeSet<(Moment, ObjectKey)>,
}

#[derive(Debug)]
struct Since {
    /// What is lacking: the ports' labels.
    lacking: BTreeSet<Box<str>>,
    /// Until when that is normal.
    until: Moment,
}

// === impl Grace ===

impl Grace {
    /// Nothing lacks anything.
    pub(super) fn new(time: Duration) -> Self {
        Self { time, services: HashMap::default(), waiting: BTreeSet::new() }
    }

    /// Until when it is normal that a Service lacks this. Something that joins it begins it anew.
    pub(super) fn until(
        &self,
        service: &ObjectKey,
        lacking: &BTreeSet<Box<str>>,
        now: Moment,
    ) -> Option<Moment> {
        if lacking.is_empty() {
            return None;
        }
        let since = self.services.get(service).filter(|since| lacking.is_subset(&since.lacking));
        let until = since.map_or(now + self.time, |since| since.until);
        Some(until).filter(|until| *until > now)
    }

    /// Notes what a Service lacks.
    pub(super) fn note(&mut self, service: &ObjectKey, lacking: BTreeSet<Box<str>>, now: Moment) {
        let until = self.until(service, &lacking, now);
        if let Some(before) = self.services.remove(service) {
            self.waiting.remove(&(before.until, service.clone()));
        }
        if lacking.is_empty() {
            return;
        }
        if let Some(until) = until {
            self.waiting.insert((until, service.clone()));
        }
        let until = until.unwrap_or(now);
        self.services.insert(service.clone(), Since { lacking, until });
    }

    /// When the next one's time is over.
    pub(super) fn next(&self) -> Option<Moment> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Those whose time is over by now.
    pub(super) fn due(&mut self, now: Moment) -> Vec<ObjectKey> {
        let mut due = Vec::new();
        while self.next().is_some_and(|until| until <= now) {
            due.extend(self.waiting.pop_first().map(|(_, service)| service));
        }
        due
    }
}
