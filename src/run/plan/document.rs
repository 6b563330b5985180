//! What a plan says, and its form as JSON.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

use crate::admin::status::ObjectProblem;
use crate::domain::consul::record::RecordKey;
use crate::domain::kube::names::ObjectKey;
use crate::domain::report::difference::{FieldChange, FieldValue};
use crate::domain::report::forecast::{Change, Verb};
use crate::domain::sync::Cause;

/// A plan. Its JSON (`--output json`) is one object with the fields of these types; new ones may
/// be added, none changes its meaning. Everything is in a fixed order: two plans of the same
/// state are equal, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// The cluster's name.
    pub cluster: String,
    /// Its identity.
    pub cluster_uid: String,
    /// `agent` or `catalog`.
    pub sink: &'static str,
    /// What is known of the records that were written before.
    pub state: State,
    /// How many changes there are.
    pub summary: Summary,
    /// What the bridge keeps for itself: the owner key, the marker, the catalog's nodes.
    pub own: Vec<OwnChange>,
    /// The changes of records, by namespace and name of the Service that they are made for.
    pub services: Vec<ServiceChanges>,
    /// Problems of objects: no change, but what people have to fix.
    pub problems: Vec<ObjectProblem>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
    /// Whether a Service is selected, or no option limits which are.
    #[serde(skip)]
    pub selects_any: bool,
}

/// What is known of the records that were written before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The marker is there: what is not shown does not exist.
    Known,
    /// The owner key is there and the marker is not: Consul or its agent lost what was written,
    /// or another sink was used before.
    Lost,
    /// No bridge of this cluster has written anything yet.
    New,
}

/// How many changes there are, those of `own` counted too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Records that would be created.
    pub add: usize,
    /// Records that would be replaced.
    pub change: usize,
    /// Records that would be removed.
    pub remove: usize,
    /// Changes that the bridge would hold back; they count nowhere else.
    pub held: usize,
    /// Records that `--policy upsert-only` keeps; likewise.
    pub kept: usize,
}

/// A change of what the bridge keeps for itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OwnChange {
    /// `add`, `change` or `remove`.
    #[serde(serialize_with = "verb")]
    pub action: Verb,
    /// What it is, for people.
    pub what: String,
    /// As [`RecordChange::held`].
    pub held: Option<&'static str>,
}

/// The changes for one Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceChanges {
    /// Its namespace; empty for records that belong to no Service.
    pub namespace: String,
    /// Its name; likewise.
    pub name: String,
    /// What would be changed, by kind and key of the record.
    pub changes: Vec<RecordChange>,
}

/// The change of one record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordChange {
    /// `add`, `change` or `remove`.
    #[serde(serialize_with = "verb")]
    pub action: Verb,
    /// `registration` or `reverse`.
    pub record: &'static str,
    /// The service ID or the KV key.
    pub key: String,
    /// The Consul service name of a registration.
    pub service: Option<String>,
    /// The fields that differ, each with its old and its new value; null: it has none.
    #[serde(serialize_with = "fields")]
    pub fields: Vec<FieldChange>,
    /// Why the bridge would hold it back, if it would: `absence` until a second list agrees,
    /// `selection` until `--allow-removals`, `policy` for ever by `--policy upsert-only`.
    pub held: Option<&'static str>,
}

// === impl Plan ===

impl Plan {
    /// Whether anything would be changed, now or once it is no longer held back.
    pub fn has_changes(&self) -> bool {
        let Summary { add, change, remove, held, kept: _ } = self.summary;
        add + change + remove + held > 0
    }
}

// === impl Summary ===

impl Summary {
    /// Counts all changes.
    pub(super) fn of(own: &[OwnChange], services: &[ServiceChanges]) -> Self {
        let records = services.iter().flat_map(|it| &it.changes).map(|it| (it.action, it.held));
        let mut summary = Self::default();
        for (action, held) in own.iter().map(|it| (it.action, it.held)).chain(records) {
            let count = match (held, action) {
                (Some(KEPT), _) => &mut summary.kept,
                (Some(_), _) => &mut summary.held,
                (None, Verb::Add) => &mut summary.add,
                (None, Verb::Change) => &mut summary.change,
                (None, Verb::Remove) => &mut summary.remove,
            };
            *count += 1;
        }
        summary
    }
}

/// The word for what would happen.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn verb<S: Serializer>(verb: &Verb, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(match verb {
        Verb::Add => "add",
        Verb::Change => "change",
        Verb::Remove => "remove",
    })
}

fn fields<S: Serializer>(changes: &[FieldChange], to: S) -> Result<S::Ok, S::Error> {
    /// A number, a text or a list, as it is.
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Value<'a> {
        Number(u16),
        Text(&'a str),
        List(&'a [String]),
    }
    #[derive(Serialize)]
    struct Changed<'a> {
        field: &'a str,
        old: Option<Value<'a>>,
        new: Option<Value<'a>>,
    }
    fn value(value: &FieldValue) -> Value<'_> {
        match value {
            FieldValue::Number(number) => Value::Number(*number),
            FieldValue::Text(text) => Value::Text(text),
            FieldValue::List(texts) => Value::List(texts),
        }
    }
    to.collect_seq(changes.iter().map(|FieldChange { field, old, new }| Changed {
        field,
        old: old.as_ref().map(value),
        new: new.as_ref().map(value),
    }))
}

/// The word for what `--policy upsert-only` keeps.
pub(super) const KEPT: &str = "policy";

/// The word for what holds a change back.
pub(super) fn held(cause: Cause) -> &'static str {
    match cause {
        Cause::Absence => "absence",
        Cause::Selection => "selection",
        Cause::Policy => KEPT,
    }
}

/// The changes of a forecast in the plan's form.
pub(super) fn services(changes: BTreeMap<ObjectKey, Vec<Change<Cause>>>) -> Vec<ServiceChanges> {
    let services = changes.into_iter().map(|(key, changes)| ServiceChanges {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        changes: changes.into_iter().map(record).collect(),
    });
    services.collect()
}

fn record(change: Change<Cause>) -> RecordChange {
    let (record, key) = match change.record {
        RecordKey::Registration(id) => ("registration", id),
        RecordKey::Ptr(key) => ("reverse", key),
        RecordKey::NamespaceNode(namespace) => ("node", namespace),
    };
    RecordChange {
        action: change.verb,
        record,
        key: key.into(),
        service: change.name.map(Into::into),
        fields: change.fields,
        held: change.held.map(held),
    }
}
