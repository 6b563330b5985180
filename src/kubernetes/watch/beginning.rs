//! What the beginning of a JSON text says that is too long to be read as a whole.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::domain::kube::names::ObjectKey;
use crate::kubernetes::slim::{Identity, Watched};

/// What was found before the text broke off: of a list with one object, or of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beginning {
    /// `metadata.resourceVersion` of a list.
    pub list_version: Option<String>,
    /// `metadata.continue` of a list.
    pub next: Option<String>,
    /// `type` of an event.
    pub event_type: Option<String>,
    /// `metadata.name` of the object.
    pub name: Option<String>,
    /// `metadata.namespace` of the object.
    pub namespace: Option<String>,
    /// `metadata.resourceVersion` of the object.
    pub version: Option<String>,
}

/// Where in the text a value is.
#[derive(Clone, Copy)]
enum Place {
    Document,
    ListMetadata,
    /// The array of a list's objects.
    Items,
    Object,
    Metadata,
}

struct Reader<'a> {
    place: Place,
    found: &'a mut Beginning,
}

// === impl Beginning ===

impl Beginning {
    /// Reads as far as `text` goes. What comes later, or is no JSON, is missing.
    pub fn of(text: &[u8]) -> Self {
        let mut found = Self::default();
        // A character that was cut through must not hide what stands before it.
        let whole = match std::str::from_utf8(text) {
            Ok(text) => text,
            Err(error) => std::str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default(),
        };
        let mut deserializer = serde_json::Deserializer::from_str(whole);
        // It ends with an error, since the text breaks off.
        let _ = Reader { place: Place::Document, found: &mut found }.deserialize(&mut deserializer);
        found
    }

    /// Who the object is, if that could be read.
    pub fn identity<P: Watched>(self) -> Option<Identity> {
        let namespace = if P::NAMESPACED { self.namespace? } else { String::new() };
        let resource_version = self.version.unwrap_or_default();
        Some(Identity { key: ObjectKey::new(namespace, self.name?), resource_version })
    }
}

// === impl Place ===

impl Place {
    /// The place of the member `key`, if anything is looked for there.
    fn within(self, key: &str) -> Option<Place> {
        match (self, key) {
            (Place::Document, "metadata") => Some(Place::ListMetadata),
            (Place::Document, "items") => Some(Place::Items),
            (Place::Document, "object") => Some(Place::Object),
            (Place::Object, "metadata") => Some(Place::Metadata),
            _ => None,
        }
    }
}

// === impl Reader ===

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let found = self.found;
        while let Some(key) = map.next_key::<String>()? {
            let text = match (self.place, key.as_str()) {
                (Place::Document, "type") => &mut found.event_type,
                (Place::ListMetadata, "resourceVersion") => &mut found.list_version,
                (Place::ListMetadata, "continue") => &mut found.next,
                (Place::Metadata, "name") => &mut found.name,
                (Place::Metadata, "namespace") => &mut found.namespace,
                (Place::Metadata, "resourceVersion") => &mut found.version,
                (place, key) => {
                    match Place::within(place, key) {
                        Some(place) => map.next_value_seed(Reader { place, found: &mut *found })?,
                        None => drop(map.next_value::<IgnoredAny>()?),
                    }
                    continue;
                }
            };
            *text = Some(map.next_value()?).filter(|text: &String| !text.is_empty());
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        // The first is the only one that a page of one object can have.
        seq.next_element_seed(Reader { place: Place::Object, found: self.found })?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kubernetes::slim::{Nodes, Services};

    #[test]
    fn what_stands_before_the_break_is_found() {
        let list = r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"9","continue":"c","remainingItemCount":3},
            "items":[{"metadata":{"name":"web","namespace":"shop","uid":"u","resourceVersion":"7","annotations":{"a":"<<<ä"#;
        for cut in [list.len(), list.len() - 1, list.len() - 12] {
            let found = Beginning::of(&list.as_bytes()[..cut]);
            assert_eq!(
                (found.list_version.as_deref(), found.next.as_deref()),
                (Some("9"), Some("c"))
            );
            let identity = found.identity::<Services>().unwrap();
            assert_eq!(
                (identity.key, identity.resource_version),
                (ObjectKey::new("shop", "web"), "7".into())
            );
        }
        let event =
            br#"{"type":"DELETED","object":{"kind":"Node","metadata":{"name":"n1","labels":{"#;
        let found = Beginning::of(event);
        assert_eq!(found.event_type.as_deref(), Some("DELETED"));
        assert!(found.clone().identity::<Services>().is_none(), "a Service has a namespace");
        assert_eq!(found.identity::<Nodes>().unwrap().key, ObjectKey::new("", "n1"));
    }

    #[test]
    fn what_comes_after_the_break_is_missing() {
        for text in ["", "{", r#"{"metadata":{"resourceVersion":"#, "<html>", "[]", "7"] {
            assert_eq!(Beginning::of(text.as_bytes()), Beginning::default(), "{text}");
        }
    }
}
