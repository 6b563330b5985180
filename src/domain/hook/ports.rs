//! `PORT_DEFINITIONS`: which ports of a pod are services, by labels on the ports.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::domain::hook::{Invalid, quoted};

/// The variable.
pub const PORT_DEFINITIONS: &str = "PORT_DEFINITIONS";

const EXPECTED: &str =
    "a JSON array of {\"port\": 31000, \"labels\": {\"service\": \"true\", \"my-tag\": \"tag\"}}";

/// The ports that the variable defines, in its order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortDefinitions(Vec<PortDefinition>);

/// One port.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortDefinition {
    port: u16,
    labels: Labels,
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

#[derive(Deserialize)]
struct Wire {
    port: i64,
    #[serde(default)]
    labels: Labels,
}

/// Keys and values in the order of the text: the tags have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Labels(Vec<(String, String)>);

// === impl PortDefinitions ===

impl PortDefinitions {
    /// Parses the variable's text. Single quotes around it are dropped: some deployers put them
    /// there.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid =
            |found| Invalid::Variable { variable: PORT_DEFINITIONS, expected: EXPECTED, found };
        let json = text.trim().trim_matches('\'');
        let wire: Vec<Wire> = serde_json::from_str(json)
            .map_err(|error| invalid(format!("{} ({error})", quoted(json))))?;
        wire.into_iter()
            .map(|Wire { port, labels }| {
                let port = u16::try_from(port)
                    .ok()
                    .filter(|port| *port > 0)
                    .ok_or_else(|| invalid(format!("port {port}, which is not from 1 to 65535")))?;
                if labels.get("consul").is_some_and(|name| name.trim().is_empty()) {
                    return Err(invalid(format!("an empty service name (consul) at port {port}")));
                }
                Ok(PortDefinition { port, labels })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The ports that are services, where `name` is the pod's own: those marked as service,
    /// those with a name of their own, and the first where none is marked. A port's own name
    /// stays in force for the ports after it.
    pub(super) fn services<'a>(&'a self, name: &'a str) -> Vec<ServicePort<'a>> {
        let marked = self.0.iter().any(PortDefinition::is_service);
        let mut name = name;
        let mut services = Vec::new();
        for (index, definition) in self.0.iter().enumerate() {
            let own = definition.labels.get("consul");
            name = own.unwrap_or(name);
            if definition.is_service() || own.is_some() || (index == 0 && !marked) {
                let tags = definition.tags().collect();
                services.push(ServicePort { port: definition.port, name, tags });
            }
        }
        services
    }
}

// === impl PortDefinition ===

impl PortDefinition {
    fn is_service(&self) -> bool {
        self.labels.get("service") == Some("true")
    }

    fn tags(&self) -> impl Iterator<Item = &str> {
        self.labels.0.iter().filter(|(_, value)| value == "tag").map(|(key, _)| key.as_str())
    }
}

// === impl Labels ===

impl Labels {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder;

        impl<'de> Visitor<'de> for InOrder {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of labels whose values are strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Labels, A::Error> {
                let mut labels = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    labels.push(entry);
                }
                Ok(Labels(labels))
            }

            fn visit_unit<E>(self) -> Result<Labels, E> {
                Ok(Labels::default())
            }
        }

        deserializer.deserialize_any(InOrder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each service as `name:port[tags]`.
    fn services(text: &str) -> Vec<String> {
        let definitions = PortDefinitions::parse(text).unwrap();
        definitions
            .services("app")
            .iter()
            .map(|it| format!("{}:{}{:?}", it.name, it.port, it.tags))
            .collect()
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
            assert_eq!(services(text), expected, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_names_the_variable() {
        for (text, found) in [
            ("''", "EOF"),
            ("[", "EOF"),
            ("31000", "invalid type"),
            (r#"{"port": 1}"#, "invalid type"),
            ("[{}]", "missing field `port`"),
            (r#"[{"port": "1"}]"#, "invalid type"),
            (r#"[{"port": 1, "labels": {"service": true}}]"#, "invalid type: boolean"),
            (r#"[{"port": 1, "labels": ["a"]}]"#, "expected an object of labels"),
            (r#"[{"port": 0}]"#, "port 0"),
            (r#"[{"port": -1}]"#, "port -1"),
            (r#"[{"port": 1}, {"port": 65536}]"#, "port 65536"),
            (r#"[{"port": 1, "labels": {"consul": ""}}]"#, "empty service name (consul) at port 1"),
            (r#"[{"port": 7, "labels": {"consul": "  "}}]"#, "at port 7"),
        ] {
            let error = PortDefinitions::parse(text).unwrap_err().to_string();
            assert!(error.starts_with("PORT_DEFINITIONS: expected a JSON array"), "{error}");
            assert!(error.contains(found), "{text}: {error}");
        }
        let long = PortDefinitions::parse(&"x".repeat(5_000)).unwrap_err().to_string();
        assert!(long.len() < 400, "{long}");
    }
}
