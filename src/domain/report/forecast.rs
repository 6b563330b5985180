//! What a bridge would change: the writes of the core, none of which is sent, against what
//! Consul has.
//!
//! Several writes to one record count as the last: what is shown is where it leads to.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::consul::record::{RecordKey, Registration, Write};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::report::difference::{FieldChange, ptr_difference, registration_difference};

/// What Consul has, whole: the core keeps fingerprints only.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Our registrations, by service ID.
    pub registrations: BTreeMap<Box<str>, Registration>,
    /// The values of the PTR keys, ours or not.
    pub reverse: BTreeMap<Box<str>, Box<str>>,
    /// The namespaces that have a node in the catalog.
    pub nodes: BTreeSet<Box<str>>,
}

/// Writes that would be made; `H`: why one is held back.
#[derive(Debug)]
pub struct Forecast<H> {
    cluster: ClusterName,
    writes: BTreeMap<RecordKey, Outcome<H>>,
}

/// What a record would be.
#[derive(Debug)]
struct Outcome<H> {
    service: ObjectKey,
    record: Option<Record>,
    held: Option<H>,
}

#[derive(Debug)]
enum Record {
    Registration(Registration),
    Ptr(Box<str>),
}

/// One record that would be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change<H> {
    /// Which.
    pub record: RecordKey,
    /// What would happen to it.
    pub verb: Verb,
    /// The name by which it is looked up; none for a PTR record.
    pub name: Option<Box<str>>,
    /// The fields that differ.
    pub fields: Vec<FieldChange>,
    /// Why it is held back, if it is.
    pub held: Option<H>,
}

/// What would happen to a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// It would be created.
    Add,
    /// It would be replaced.
    Change,
    /// It would be removed.
    Remove,
}

// === impl Forecast ===

impl<H> Forecast<H> {
    /// Nothing yet.
    pub fn new(cluster: ClusterName) -> Self {
        Self { cluster, writes: BTreeMap::new() }
    }

    /// Takes a write for this Service, as if it had been applied.
    pub fn applied(&mut self, service: ObjectKey, write: Write, held: Option<H>) {
        let key = write.key();
        let record = match write {
            Write::Register(it) | Write::Replace(it) => Some(Record::Registration(it)),
            Write::PutPtr { record, .. } => Some(Record::Ptr(record.value)),
            Write::Deregister { .. } | Write::DeletePtr { .. } => None,
        };
        self.writes.insert(key, Outcome { service, record, held });
    }

    /// The changes by Service, in a fixed order; those of records that belong to none by
    /// [`ObjectKey::orphaned`].
    pub fn changes(self, snapshot: &Snapshot) -> BTreeMap<ObjectKey, Vec<Change<H>>> {
        let mut changes: BTreeMap<ObjectKey, Vec<Change<H>>> = BTreeMap::new();
        for (key, outcome) in self.writes {
            let service = match &key {
                RecordKey::Ptr(reverse) if outcome.service.is_orphaned() => {
                    snapshot.service_at(&self.cluster, reverse).unwrap_or(outcome.service)
                }
                _ => outcome.service,
            };
            let change = snapshot.change(key, outcome.record.as_ref(), outcome.held);
            changes.entry(service).or_default().extend(change);
        }
        changes.retain(|_, changes| !changes.is_empty());
        changes
    }
}

// === impl Snapshot ===

impl Snapshot {
    /// The Service that had an instance at a PTR key's address.
    fn service_at(&self, cluster: &ClusterName, reverse: &str) -> Option<ObjectKey> {
        let (_, address) = reverse.rsplit_once('/')?;
        let at = self.registrations.values().find(|it| *it.address == *address)?;
        service_of_id(cluster, &at.id)
    }

    fn change<H>(
        &self,
        record: RecordKey,
        outcome: Option<&Record>,
        held: Option<H>,
    ) -> Option<Change<H>> {
        let (existed, fields, name) = match (&record, outcome) {
            (RecordKey::Registration(id), outcome) => {
                let old = self.registrations.get(id);
                let new = match outcome {
                    Some(Record::Registration(new)) => Some(new),
                    _ => None,
                };
                let name = new.or(old).map(|it| it.service.clone());
                (old.is_some(), registration_difference(old, new), name)
            }
            (RecordKey::Ptr(key), outcome) => {
                let old = self.reverse.get(key).map(|value| &**value);
                let new = match outcome {
                    Some(Record::Ptr(value)) => Some(&**value),
                    _ => None,
                };
                (old.is_some(), ptr_difference(old, new), None)
            }
            // No write changes one.
            (RecordKey::NamespaceNode(_), _) => return None,
        };
        let verb = match (existed, outcome.is_some()) {
            (false, _) => Verb::Add,
            (true, true) => Verb::Change,
            (true, false) => Verb::Remove,
        };
        (!fields.is_empty()).then_some(Change { record, verb, name, fields, held })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::consul::record::{Check, PtrRecord};

    const ID: &str = "c_shop_web_http_10.0.0.1";
    const KEY: &str = "0.0.0.10.IN-ADDR.ARPA/10.0.0.1";

    fn registration(port: u16) -> Registration {
        Registration {
            id: ID.into(),
            service: "web".into(),
            namespace: "shop".into(),
            address: "10.0.0.1".into(),
            port,
            tags: std::sync::Arc::default(),
            meta: [].into(),
            weight: 1,
            check: Check::None,
        }
    }

    fn web() -> ObjectKey {
        ObjectKey::new("shop", "web")
    }

    fn put(value: &str) -> Write {
        let record = PtrRecord { key: KEY.into(), value: value.into() };
        Write::PutPtr { record, cas: 0 }
    }

    fn deregister() -> Write {
        Write::Deregister { id: ID.into(), service: "web".into(), namespace: "shop".into() }
    }

    fn delete() -> Write {
        Write::DeletePtr { key: KEY.into(), cas: 1 }
    }

    /// `service verb fields` of each change.
    fn told(snapshot: &Snapshot, writes: Vec<(ObjectKey, Write)>) -> Vec<String> {
        let mut forecast: Forecast<()> = Forecast::new("c".parse().unwrap());
        for (service, write) in writes {
            forecast.applied(service, write, None);
        }
        let changes = forecast.changes(snapshot).into_iter();
        changes
            .flat_map(|(service, changes)| {
                changes.into_iter().map(move |it| {
                    let fields: Vec<String> = it.fields.into_iter().map(|it| it.field).collect();
                    format!("{service} {:?} {}", it.verb, fields.join(","))
                })
            })
            .collect()
    }

    #[test]
    fn the_last_write_to_a_record_counts_against_what_there_is() {
        let empty = Snapshot::default();
        let full = Snapshot {
            registrations: [(ID.into(), registration(80))].into(),
            reverse: [(KEY.into(), "web.service.dc1.consul".into())].into(),
            nodes: BTreeSet::new(),
        };
        let register = |port| (web(), Write::Register(registration(port)));
        for (snapshot, writes, expected) in [
            (&empty, vec![], vec![]),
            (&empty, vec![register(80)], vec!["shop/web Add service,address,port,tags"]),
            (&empty, vec![register(80), (web(), deregister())], vec![]),
            (&full, vec![register(80)], vec![]),
            (&full, vec![register(81)], vec!["shop/web Change port"]),
            (&full, vec![register(81), register(80)], vec![]),
            (
                &full,
                vec![(web(), deregister()), (ObjectKey::orphaned(), delete())],
                vec!["shop/web Remove service,address,port,tags", "shop/web Remove value"],
            ),
            (&full, vec![(web(), put("b"))], vec!["shop/web Change value"]),
            (&empty, vec![(ObjectKey::orphaned(), delete())], vec![]),
            (&empty, vec![(web(), put("b"))], vec!["shop/web Add value"]),
        ] {
            assert_eq!(told(snapshot, writes), expected);
        }
        let orphan = Snapshot { registrations: BTreeMap::new(), ..full };
        assert_eq!(told(&orphan, vec![(ObjectKey::orphaned(), delete())]), ["/ Remove value"]);
    }
}
