//! How the Consul name of a Service's port is made.

use std::fmt;
use std::str::FromStr;

use crate::domain::kube::names::{ClusterName, ObjectKey};

/// A template of Consul names, for example `{service}-{namespace}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameTemplate(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Service,
    Namespace,
    Cluster,
    Port,
}

/// A template that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "expected a template with {{service}} in it, and {{namespace}}, {{cluster}} or {{port}} if wanted, found {0:?}"
)]
pub struct InvalidTemplate(String);

// === impl NameTemplate ===

impl NameTemplate {
    /// The name of `service`'s port `port`, by the port's name or number.
    pub fn expand(&self, cluster: &ClusterName, service: &ObjectKey, port: &str) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Field(Field::Service) => &service.name,
                Part::Field(Field::Namespace) => &service.namespace,
                Part::Field(Field::Cluster) => cluster.as_str(),
                Part::Field(Field::Port) => port,
            })
            .collect()
    }

    /// Whether each port has a name of its own by the template.
    pub fn tells_ports_apart(&self) -> bool {
        self.0.contains(&Part::Field(Field::Port))
    }
}

impl Default for NameTemplate {
    fn default() -> Self {
        Self(vec![Part::Field(Field::Service)])
    }
}

impl FromStr for NameTemplate {
    type Err = InvalidTemplate;

    fn from_str(text: &str) -> Result<Self, InvalidTemplate> {
        let invalid = || InvalidTemplate(text.to_owned());
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (field, after) = after.split_once('}').ok_or_else(invalid)?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Field(match field {
                "service" => Field::Service,
                "namespace" => Field::Namespace,
                "cluster" => Field::Cluster,
                "port" => Field::Port,
                _ => return Err(invalid()),
            }));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        let balanced =
            parts.iter().all(|part| !matches!(part, Part::Text(text) if text.contains('}')));
        if balanced && parts.contains(&Part::Field(Field::Service)) {
            Ok(Self(parts))
        } else {
            Err(invalid())
        }
    }
}

impl fmt::Display for NameTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.0 {
            f.write_str(match part {
                Part::Text(text) => text,
                Part::Field(Field::Service) => "{service}",
                Part::Field(Field::Namespace) => "{namespace}",
                Part::Field(Field::Cluster) => "{cluster}",
                Part::Field(Field::Port) => "{port}",
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_expand_and_round_trip() {
        let cluster: ClusterName = "eu".parse().unwrap();
        let key = ObjectKey::new("shop", "web");
        for (template, expected) in [
            ("{service}", "web"),
            ("{service}-{namespace}", "web-shop"),
            ("k8s-{cluster}-{namespace}-{service}", "k8s-eu-shop-web"),
            ("{service}-{port}", "web-http"),
        ] {
            let parsed: NameTemplate = template.parse().unwrap();
            assert_eq!(parsed.expand(&cluster, &key, "http"), expected);
            assert_eq!(parsed.to_string(), template);
        }
    }

    #[test]
    fn a_template_without_the_service_or_with_an_unknown_field_is_refused() {
        for text in ["", "web", "{namespace}", "{service", "{service}}", "{service}{pod}", "{}"] {
            assert!(text.parse::<NameTemplate>().is_err(), "{text:?} was accepted");
        }
    }
}
