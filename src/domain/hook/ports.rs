//! `PORT_DEFINITIONS`: which ports of a pod are services, by labels on the ports.
//!
//! Read as consul-registration-hook reads it, which is Go's `encoding/json`: `null` is unset, a
//! field's name has no case, of a repeated key the last value counts, a `null` leaves what was
//! there. Each element is judged on its own: what is wrong with one matters only if it would be
//! registered.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::domain::hook::{Invalid, quoted};

/// The variable.
pub const PORT_DEFINITIONS: &str = "PORT_DEFINITIONS";

const EXPECTED: &str =
    "a JSON array of {\"port\": 31000, \"labels\": {\"service\": \"true\", \"my-tag\": \"tag\"}}";

/// The ports that the variable defines, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDefinitions(Vec<PortDefinition>);

/// One port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PortDefinition {
    /// As it was written; 0 where it was not.
    port: i64,
    /// In the order of the text, each key once.
    labels: Vec<(String, String)>,
    /// What of it could not be read.
    wrong: Option<String>,
}

/// A port that is a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ServicePort<'a> {
    pub port: u16,
    /// The service's name.
    pub name: &'a str,
    /// The port's own tags, as they were written.
    pub tags: Vec<&'a str>,
}

/// The members of a JSON object in the order of the text, repeated ones too; none of `null`.
struct Members<V>(Vec<(String, V)>);

// === impl PortDefinitions ===

impl PortDefinitions {
    /// Parses the variable's text; none where it is `null`. Single quotes around it are dropped:
    /// some deployers put them there.
    pub fn parse(text: &str) -> Result<Option<Self>, Invalid> {
        let json = text.trim().trim_matches('\'');
        let elements: Option<Vec<&RawValue>> = serde_json::from_str(json)
            .map_err(|error| invalid(format!("{} ({error})", quoted(json))))?;
        Ok(elements.map(|elements| {
            Self(elements.iter().map(|element| PortDefinition::read(element.get())).collect())
        }))
    }

    /// The ports that are services, where `name` is the pod's own: those marked as service,
    /// those with a name of their own, and the first where none is marked. A port's own name
    /// stays in force for the ports after it. What is left out although it is wrong is reported in
    /// `warnings`.
    pub(super) fn services<'a>(
        &'a self,
        name: &'a str,
        warnings: &mut Vec<String>,
    ) -> Result<Vec<ServicePort<'a>>, Invalid> {
        let marked = self.0.iter().any(PortDefinition::is_service);
        let mut name = name;
        let mut services = Vec::new();
        for (index, definition) in self.0.iter().enumerate() {
            let own = definition.own_name();
            name = own.unwrap_or(name);
            let port = definition.checked_port();
            if definition.is_service() || own.is_some() || (index == 0 && !marked) {
                let port = port.map_err(|wrong| invalid(format!("in element {index}: {wrong}")))?;
                services.push(ServicePort { port, name, tags: definition.tags().collect() });
            } else if let Err(wrong) = port {
                warnings.push(format!(
                    "{PORT_DEFINITIONS}: element {index} is left out, which would not be \
                     registered: {wrong}"
                ));
            }
        }
        Ok(services)
    }
}

fn invalid(found: String) -> Invalid {
    Invalid::Variable { variable: PORT_DEFINITIONS, expected: EXPECTED, found }
}

// === impl PortDefinition ===

impl PortDefinition {
    /// Reads an element, as far as it can be read.
    fn read(json: &str) -> Self {
        let mut definition = Self::default();
        let fields = definition.parsed::<Members<Box<RawValue>>>(json, json);
        for (name, value) in fields.map(|it| it.0).unwrap_or_default() {
            if name.eq_ignore_ascii_case("port") {
                if let Some(port) = definition.parsed::<Option<i64>>(value.get(), json).flatten() {
                    definition.port = port;
                }
            } else if name.eq_ignore_ascii_case("labels") {
                definition.read_labels(value.get(), json);
            }
        }
        definition
    }

    fn read_labels(&mut self, labels: &str, element: &str) {
        if labels == "null" {
            self.labels.clear();
        }
        let members = self.parsed::<Members<Box<RawValue>>>(labels, element);
        for (key, value) in members.map(|it| it.0).unwrap_or_default() {
            let Some(value) = self.parsed::<Option<String>>(value.get(), element) else { continue };
            let value = value.unwrap_or_default();
            match self.labels.iter_mut().find(|(name, _)| *name == key) {
                Some((_, earlier)) => *earlier = value,
                None => self.labels.push((key, value)),
            }
        }
    }

    /// Parses a part of an element; notes what is wrong with it.
    fn parsed<T: DeserializeOwned>(&mut self, part: &str, element: &str) -> Option<T> {
        serde_json::from_str(part)
            .map_err(|error| {
                self.wrong.get_or_insert_with(|| format!("{} ({error})", quoted(element)));
            })
            .ok()
    }

    /// The port, if all of the element is right.
    fn checked_port(&self) -> Result<u16, String> {
        if let Some(wrong) = &self.wrong {
            return Err(wrong.clone());
        }
        u16::try_from(self.port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| format!("port {}, which is not from 1 to 65535", self.port))
    }

    fn is_service(&self) -> bool {
        self.label("service") == Some("true")
    }

    /// Its own service name; a blank one counts as none.
    fn own_name(&self) -> Option<&str> {
        self.label("consul").filter(|name| !name.trim().is_empty())
    }

    fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    fn tags(&self) -> impl Iterator<Item = &str> {
        self.labels.iter().filter(|(_, value)| value == "tag").map(|(key, _)| key.as_str())
    }
}

// === impl Members ===

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Members<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for InOrder<V> {
            type Value = Members<V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Members(Vec::new()))
            }
        }

        deserializer.deserialize_any(InOrder(PhantomData))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each service as `name:port[tags]`, and how many warnings there are.
    fn services(text: &str) -> Result<(Vec<String>, usize), Invalid> {
        let mut warnings = Vec::new();
        let definitions = PortDefinitions::parse(text)?.unwrap();
        let services = definitions.services("app", &mut warnings)?;
        let shown = services.iter().map(|it| format!("{}:{}{:?}", it.name, it.port, it.tags));
        Ok((shown.collect(), warnings.len()))
    }

    #[test]
    fn labels_say_which_ports_are_services() {
        for (text, expected) in [
            // Nothing is marked: the first.
            (r#"[{"port": 1}]"#, vec!["app:1[]"]),
            (r#"[{"port": 1, "labels": null}, {"port": 2, "labels": {}}]"#, vec!["app:1[]"]),
            (r#"[{"port": 1, "labels": {"probe": "true"}}, {"port": 2}]"#, vec!["app:1[]"]),
            // One is marked: only that.
            (r#"[{"port": 1}, {"port": 2, "labels": {"service": "true"}}]"#, vec!["app:2[]"]),
            (
                r#"[{"port": 1, "labels": {"service": "true"}}, {"port": 2, "labels": {"service": "true"}}]"#,
                vec!["app:1[]", "app:2[]"],
            ),
            // Marked as something else: as if it were not.
            (r#"[{"port": 1}, {"port": 2, "labels": {"service": "yes"}}]"#, vec!["app:1[]"]),
            // A name of its own makes a service, besides the first.
            (r#"[{"port": 1}, {"port": 2, "labels": {"consul": "b"}}]"#, vec!["app:1[]", "b:2[]"]),
            (
                r#"[{"port": 1}, {"port": 2, "labels": {"consul": "b"}}, {"port": 3, "labels": {"service": "true"}}]"#,
                vec!["b:2[]", "b:3[]"],
            ),
            // It stays in force for those after it, not for those before.
            (
                r#"[{"port": 1, "labels": {"consul": "a"}}, {"port": 2, "labels": {"service": "true"}}, {"port": 3, "labels": {"consul": "c"}}, {"port": 4, "labels": {"service": "true"}}]"#,
                vec!["a:1[]", "a:2[]", "c:3[]", "c:4[]"],
            ),
            (
                r#"[{"port": 1, "labels": {"service": "true"}}, {"port": 2, "labels": {"consul": "b"}}]"#,
                vec!["app:1[]", "b:2[]"],
            ),
            // Tags in the order that they were written in.
            (
                r#"[{"port": 1, "labels": {"z": "tag", "a": "tag", "b": "other", "m:1": "tag"}}]"#,
                vec![r#"app:1["z", "a", "m:1"]"#],
            ),
            // Quotes around it, fields that we do not know, and none at all.
            (r#"'[{"port": 1, "name": "x"}]'"#, vec!["app:1[]"]),
            ("\n '[{\"port\": 1}]'\n", vec!["app:1[]"]),
            ("[]", vec![]),
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(services(text), Ok((expected, 0)), "{text}");
        }
    }

    /// What Go's `encoding/json` makes of it, each run beside the original.
    #[test]
    fn h4_h5_definitions_are_read_as_the_original_reads_them() {
        for text in ["null", "'null'", " null\n"] {
            assert_eq!(PortDefinitions::parse(text), Ok(None), "{text}");
        }
        for (text, expected, warned) in [
            // A field's name has no case, a label's key has.
            (r#"[{"PORT": 1, "Labels": {"a": "tag"}}]"#, vec![r#"app:1["a"]"#], 0),
            (
                r#"[{"port": 1, "labels": {"Service": "true"}}, {"port": 2, "labels": {"service": "true"}}]"#,
                vec!["app:2[]"],
                0,
            ),
            // Of a repeated one the last counts; labels come together; null changes nothing.
            (r#"[{"port": 1, "PORT": 2}]"#, vec!["app:2[]"], 0),
            (r#"[{"port": 1, "port": null}]"#, vec!["app:1[]"], 0),
            (
                r#"[{"port": 1, "labels": {"a": "tag", "b": "tag", "a": "x"}}]"#,
                vec![r#"app:1["b"]"#],
                0,
            ),
            (r#"[{"port": 1, "labels": {"a": "x", "a": "tag"}}]"#, vec![r#"app:1["a"]"#], 0),
            (r#"[{"port": 1, "labels": {"consul": "x", "consul": "y"}}]"#, vec!["y:1[]"], 0),
            (
                r#"[{"port": 1, "labels": {"a": "tag"}, "labels": {"b": "tag"}}]"#,
                vec![r#"app:1["a", "b"]"#],
                0,
            ),
            (r#"[{"port": 1, "labels": {"a": "tag"}, "labels": null}]"#, vec!["app:1[]"], 0),
            (r#"[{"port": 1, "labels": {"service": null}}]"#, vec!["app:1[]"], 0),
            // An empty name is none: the pod's for the first or marked, else not registered.
            (r#"[{"port": 1, "labels": {"consul": ""}}]"#, vec!["app:1[]"], 0),
            (r#"[{"port": 1}, {"port": 2, "labels": {"consul": ""}}]"#, vec!["app:1[]"], 0),
            (r#"[{"port": 1}, {"port": 2, "labels": {"consul": "  "}}]"#, vec!["app:1[]"], 0),
            (
                r#"[{"port": 1, "labels": {"consul": "a"}}, {"port": 2, "labels": {"consul": "", "service": "true"}}]"#,
                vec!["a:1[]", "a:2[]"],
                0,
            ),
            // A bad element that is not registered.
            (r#"[{"port": 1}, {"port": 0}]"#, vec!["app:1[]"], 1),
            (r#"[{"port": 1}, {"port": 65536}, {"port": -1}]"#, vec!["app:1[]"], 2),
            (r#"[{"port": 1}, {}, null, {"port": null}]"#, vec!["app:1[]"], 3),
            (r#"[{"port": 1}, {"port": "2"}, {"port": 2.5}, 5, "x"]"#, vec!["app:1[]"], 4),
            (r#"[{"port": 1}, {"port": 99999999999999999999}]"#, vec!["app:1[]"], 1),
            (r#"[{"port": 1}, {"port": 2, "labels": ["a"]}]"#, vec!["app:1[]"], 1),
            (r#"[{"port": 1}, {"port": 2, "labels": {"x": true}}]"#, vec!["app:1[]"], 1),
            (r#"[{"port": 0}, {"port": 2, "labels": {"service": "true"}}]"#, vec!["app:2[]"], 1),
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(services(text), Ok((expected, warned)), "{text}");
        }
    }

    #[test]
    fn h4_what_would_be_registered_and_is_wrong_names_the_variable() {
        for (text, found) in [
            ("''", "EOF"),
            ("[", "EOF"),
            ("31000", "invalid type"),
            (r#"{"port": 1}"#, "invalid type"),
            (r#"[{"port": 1}] x"#, "trailing characters"),
            ("[{}]", "element 0: port 0"),
            ("[null]", "element 0: port 0"),
            ("[5]", "invalid type: integer"),
            (r#"[{"port": "1"}]"#, "invalid type"),
            (r#"[{"port": 1, "labels": {"service": true}}]"#, "invalid type: boolean"),
            (r#"[{"port": 1, "labels": ["a"]}]"#, "expected an object"),
            (r#"[{"port": 0}]"#, "port 0"),
            (r#"[{"port": -1}]"#, "port -1"),
            (
                r#"[{"port": 1}, {"port": 65536, "labels": {"consul": "b"}}]"#,
                "element 1: port 65536",
            ),
            (r#"[{"port": 1}, {"port": "2", "labels": {"service": "true"}}]"#, "element 1: "),
        ] {
            let error = services(text).unwrap_err().to_string();
            assert!(error.starts_with("PORT_DEFINITIONS: expected a JSON array"), "{error}");
            assert!(error.contains(found), "{text}: {error}");
        }
        let long = PortDefinitions::parse(&"x".repeat(5_000)).unwrap_err().to_string();
        assert!(long.len() < 400, "{long}");
    }
}
