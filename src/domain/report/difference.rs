//! What differs between a record as it is and as it ought to be, field by field.

use std::collections::BTreeSet;
use std::fmt;

use crate::domain::consul::record::{Check, Registration};

/// One field that differs. A record that does not exist has no fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldChange {
    /// The field: `service`, `address`, `port`, `tags`, `meta.<key>`, `weight` or `check` of a
    /// registration, `value` of a PTR record.
    pub field: String,
    /// As it is.
    pub old: Option<FieldValue>,
    /// As it ought to be.
    pub new: Option<FieldValue>,
}

/// What a field says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// A number.
    Number(u16),
    /// A text.
    Text(String),
    /// Texts in their order.
    List(Vec<String>),
}

/// The fields in which two registrations differ, or all that one alone has. What is the default
/// (no check, weight 1) does not count as a field.
pub fn registration_difference(
    old: Option<&Registration>,
    new: Option<&Registration>,
) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    let mut compare = |field: &str, value: &dyn Fn(&Registration) -> Option<FieldValue>| {
        let (old, new) = (old.and_then(value), new.and_then(value));
        if old != new {
            changes.push(FieldChange { field: field.to_owned(), old, new });
        }
    };
    compare("service", &|it| Some(FieldValue::text(&it.service)));
    compare("address", &|it| Some(FieldValue::text(&it.address)));
    compare("port", &|it| Some(FieldValue::Number(it.port)));
    compare("tags", &|it| Some(FieldValue::List(Vec::clone(&it.tags))));
    compare("weight", &|it| (it.weight != 1).then_some(FieldValue::Number(it.weight)));
    compare("check", &|it| {
        Some(FieldValue::text(match it.check {
            Check::None => return None,
            Check::Passing => "passing",
            Check::Critical => "critical",
        }))
    });
    let pairs = [old, new].into_iter().flatten().flat_map(|it| it.meta.pairs());
    let keys: BTreeSet<&str> = pairs.map(|(key, _)| key).collect();
    for key in keys {
        compare(&format!("meta.{key}"), &|it| it.meta.get(key).map(FieldValue::text));
    }
    changes
}

/// The field in which two PTR records' values differ.
pub fn ptr_difference(old: Option<&str>, new: Option<&str>) -> Vec<FieldChange> {
    if old == new {
        return Vec::new();
    }
    let field = "value".to_owned();
    vec![FieldChange { field, old: old.map(FieldValue::text), new: new.map(FieldValue::text) }]
}

// === impl FieldValue ===

impl FieldValue {
    fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldValue::Number(number) => write!(f, "{number}"),
            FieldValue::Text(text) => f.write_str(text),
            FieldValue::List(texts) => f.write_str(&texts.join(",")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registration() -> Registration {
        Registration {
            id: "c_shop_web_http_10.0.0.1".into(),
            service: "web".into(),
            namespace: "shop".into(),
            address: "10.0.0.1".into(),
            port: 80,
            tags: std::sync::Arc::new(vec!["shop".into(), "http".into()]),
            meta: [("team".to_owned(), "a".to_owned())].into(),
            weight: 1,
            check: Check::None,
        }
    }

    /// `field old>new` for each change, `-` for nothing.
    fn told(changes: &[FieldChange]) -> String {
        let value = |it: &Option<FieldValue>| it.as_ref().map_or("-".into(), ToString::to_string);
        let lines = changes.iter();
        let lines = lines.map(|it| format!("{} {}>{}", it.field, value(&it.old), value(&it.new)));
        lines.collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn each_field_is_compared_and_its_ptr_is_the_ptr() {
        let changed = |change: fn(&mut Registration)| {
            let mut new = registration();
            change(&mut new);
            new
        };
        for (new, forth, back) in [
            (registration(), "", ""),
            (changed(|it| it.service = "shop".into()), "service web>shop", "service shop>web"),
            (
                changed(|it| it.address = "10.0.0.2".into()),
                "address 10.0.0.1>10.0.0.2",
                "address 10.0.0.2>10.0.0.1",
            ),
            (changed(|it| it.port = 81), "port 80>81", "port 81>80"),
            (
                changed(|it| it.tags = std::sync::Arc::new(vec!["http".into(), "shop".into()])),
                "tags shop,http>http,shop",
                "tags http,shop>shop,http",
            ),
            (changed(|it| it.weight = 5), "weight ->5", "weight 5>-"),
            (changed(|it| it.check = Check::Critical), "check ->critical", "check critical>-"),
            (
                changed(|it| it.meta = [("zone".to_owned(), "b".to_owned())].into()),
                "meta.team a>-; meta.zone ->b",
                "meta.team ->a; meta.zone b>-",
            ),
            (
                changed(|it| it.meta = [("team".to_owned(), String::new())].into()),
                "meta.team a>",
                "meta.team >a",
            ),
        ] {
            let old = registration();
            assert_eq!(told(&registration_difference(Some(&old), Some(&new))), forth);
            assert_eq!(told(&registration_difference(Some(&new), Some(&old))), back);
        }
    }

    #[test]
    fn a_record_alone_is_told_whole() {
        let only = registration();
        let added = told(&registration_difference(None, Some(&only)));
        assert_eq!(
            added,
            "service ->web; address ->10.0.0.1; port ->80; tags ->shop,http; meta.team ->a"
        );
        let removed = told(&registration_difference(Some(&only), None));
        assert_eq!(
            removed,
            "service web>-; address 10.0.0.1>-; port 80>-; tags shop,http>-; meta.team a>-"
        );
    }

    #[test]
    fn a_ptr_record_has_one_field() {
        for (old, new, expected) in [
            (Some("a"), Some("a"), ""),
            (Some("a"), Some("b"), "value a>b"),
            (None, Some("b"), "value ->b"),
            (Some("a"), None, "value a>-"),
        ] {
            assert_eq!(told(&ptr_difference(old, new)), expected);
        }
    }
}
