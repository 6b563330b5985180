//! Services of which a port is served by no endpoint although endpoints are ready. Most often their
//! EndpointSlices have not followed a port that was renamed: for a moment what is registered stays.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;

/// How long slices may take to follow a port: the EndpointSlice controller batches changes of pods
/// for a second at most by default, and those of a Service not at all.
pub(super) const SLICES_FOLLOW: Duration = Duration::from_secs(5);

/// The Services with ports that nothing serves.
#[derive(Debug, Default)]
pub(super) struct Unserved {
    services: HashMap<ObjectKey, Since>,
    /// Those whose slices may still follow, by the end of that.
    waiting: BTreeSet<(Moment, ObjectKey)>,
}

#[derive(Debug)]
struct Since {
    /// The ports' labels.
    ports: BTreeSet<Box<str>>,
    /// Until when the slices may still follow.
    until: Moment,
}

// === impl Unserved ===

impl Unserved {
    /// Until when the slices may follow these ports of a Service. A port that joins them begins it
    /// anew.
    pub(super) fn until(
        &self,
        service: &ObjectKey,
        ports: &BTreeSet<Box<str>>,
        now: Moment,
    ) -> Option<Moment> {
        if ports.is_empty() {
            return None;
        }
        let since = self.services.get(service).filter(|since| ports.is_subset(&since.ports));
        let until = since.map_or(now + SLICES_FOLLOW, |since| since.until);
        Some(until).filter(|until| *until > now)
    }

    /// Notes which ports of a Service nothing serves.
    pub(super) fn note(&mut self, service: &ObjectKey, ports: BTreeSet<Box<str>>, now: Moment) {
        let until = self.until(service, &ports, now);
        if let Some(before) = self.services.remove(service) {
            self.waiting.remove(&(before.until, service.clone()));
        }
        if ports.is_empty() {
            return;
        }
        if let Some(until) = until {
            self.waiting.insert((until, service.clone()));
        }
        let until = until.unwrap_or(now);
        self.services.insert(service.clone(), Since { ports, until });
    }

    /// When the next one's slices should have followed.
    pub(super) fn next(&self) -> Option<Moment> {
        self.waiting.first().map(|(until, _)| *until)
    }

    /// Those whose slices should have followed by now.
    pub(super) fn due(&mut self, now: Moment) -> Vec<ObjectKey> {
        let mut due = Vec::new();
        while self.next().is_some_and(|until| until <= now) {
            due.extend(self.waiting.pop_first().map(|(_, service)| service));
        }
        due
    }
}
