//! Writes under way: each flight is one request, with the records that it writes.
//!
//! A record is in one flight at most, so that a newer state waits for the answer to an older one
//! (newer wins), and everything that is in flight is counted in one place.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::Hash;

use crate::domain::map::HashMap;

/// The number of a flight: never given twice by one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlightId(u64);

/// Flights of writes of records `K` for owners `O`, with what has to be remembered of each, `T`.
#[derive(Debug)]
pub struct Flights<K, O, T> {
    next: FlightId,
    under_way: HashMap<FlightId, Vec<InFlight<K, O, T>>>,
    /// The records in flight, each with those who wait for its answer.
    records: HashMap<K, BTreeSet<O>>,
    /// How many records are in flight for each owner.
    owners: HashMap<O, usize>,
}

/// A record in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight<K, O, T> {
    /// The record.
    pub record: K,
    /// For whom it is written.
    pub owner: O,
    /// What has to be remembered of it.
    pub sent: T,
}

/// A record whose flight is over.
#[derive(Debug)]
pub struct Completed<K, O, T> {
    /// What was in flight.
    pub write: InFlight<K, O, T>,
    /// Who waits for its answer.
    pub waiting: BTreeSet<O>,
}

// === impl FlightId ===

impl fmt::Display for FlightId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FlightId {
    /// The first of all.
    pub const FIRST: Self = Self(0);
}

// === impl Flights ===

impl<K: Clone + Eq + Hash, O: Clone + Eq + Hash + Ord, T> Flights<K, O, T> {
    /// None yet; the first gets the number `next`, so that no answer of an earlier life is taken for
    /// one of these.
    pub fn starting_at(next: FlightId) -> Self {
        Self {
            next,
            under_way: HashMap::default(),
            records: HashMap::default(),
            owners: HashMap::default(),
        }
    }

    /// The number that the next flight gets.
    pub fn next_id(&self) -> FlightId {
        self.next
    }

    /// A request is about to be sent.
    pub fn begin(&mut self) -> FlightId {
        let id = self.next;
        self.next = FlightId(id.0 + 1);
        self.under_way.insert(id, Vec::new());
        id
    }

    /// A flight that was begun carries this write too. Its record may not be in flight already.
    pub fn add(&mut self, id: FlightId, write: InFlight<K, O, T>) {
        let Some(writes) = self.under_way.get_mut(&id) else { return };
        let before = self.records.insert(write.record.clone(), BTreeSet::new());
        debug_assert!(before.is_none(), "two writes of one record in flight");
        *self.owners.entry(write.owner.clone()).or_default() += 1;
        writes.push(write);
    }

    /// The flight is answered: what it carried, in order. `None`: there is none of this number.
    pub fn complete(&mut self, id: FlightId) -> Option<Vec<Completed<K, O, T>>> {
        let writes = self.under_way.remove(&id)?;
        let completed = writes.into_iter().map(|write| {
            let waiting = self.records.remove(&write.record).unwrap_or_default();
            if let Some(count) = self.owners.get_mut(&write.owner) {
                *count -= 1;
                if *count == 0 {
                    self.owners.remove(&write.owner);
                }
            }
            Completed { write, waiting }
        });
        Some(completed.collect())
    }

    /// Notes that `owner` waits for the answer to the record, which is in flight.
    pub fn wait_for(&mut self, record: &K, owner: O) {
        if let Some(waiting) = self.records.get_mut(record) {
            waiting.insert(owner);
        }
    }

    /// Whether a write of the record is in flight.
    pub fn carries(&self, record: &K) -> bool {
        self.records.contains_key(record)
    }

    /// The records in flight.
    pub fn records(&self) -> impl Iterator<Item = &K> {
        self.records.keys()
    }

    /// Whether anything is in flight for this owner.
    pub fn has(&self, owner: &O) -> bool {
        self.owners.contains_key(owner)
    }

    /// Everyone for whom something is in flight.
    pub fn owners(&self) -> impl Iterator<Item = &O> {
        self.owners.keys()
    }

    /// What is remembered of all that is in flight.
    pub fn sent_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.under_way.values_mut().flatten().map(|write| &mut write.sent)
    }

    /// How many flights are under way.
    pub fn len(&self) -> usize {
        self.under_way.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.under_way.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(
        record: &'static str,
        owner: &'static str,
    ) -> InFlight<&'static str, &'static str, ()> {
        InFlight { record, owner, sent: () }
    }

    #[test]
    fn what_is_in_flight_is_counted_once_and_ends_with_its_flight() {
        let mut flights = Flights::starting_at(FlightId::FIRST);
        let first = flights.begin();
        flights.add(first, write("a", "x"));
        flights.add(first, write("b", "x"));
        let second = flights.begin();
        flights.add(second, write("c", "x"));
        flights.add(second, write("d", "y"));
        assert!(flights.carries(&"a") && flights.carries(&"d") && !flights.carries(&"e"));
        assert_eq!((flights.len(), flights.has(&"x"), flights.has(&"y")), (2, true, true));
        flights.wait_for(&"d", "z");
        flights.wait_for(&"e", "z");
        let completed = flights.complete(second).unwrap();
        let completed: Vec<_> =
            completed.iter().map(|it| (it.write.record, it.waiting.len())).collect();
        assert_eq!(completed, [("c", 0), ("d", 1)]);
        assert!(flights.complete(second).is_none(), "it is answered once");
        assert!(flights.has(&"x") && !flights.has(&"y") && !flights.carries(&"c"));
        flights.complete(first).unwrap();
        assert!(flights.is_empty() && !flights.has(&"x"));
        assert!(flights.next_id() > second);
    }
}
