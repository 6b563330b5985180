//! What the annotations of a Service ask for.
//!
//! Each setting may be written in several dialects ([`ANNOTATION_PREFIXES`]); ours wins. The
//! rules of `consul.hashicorp.com/` are those of consul-k8s' catalog sync.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::consul::record::{CLUSTER_META, NAMESPACE_META, SERVICE_META, SOURCE_META};
use crate::domain::kube::object::{ANNOTATION_PREFIXES, Service};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::settings::AddressMode;
use crate::domain::text::{excerpt, parse_bool};

/// Longest Consul service name that is registered, in characters.
const MAX_NAME: usize = 255;
/// Longest meta key that Consul takes.
const MAX_META_KEY: usize = 128;
/// Longest meta value that Consul takes.
const MAX_META_VALUE: usize = 512;
/// Smallest weight that consul-k8s takes: 1 is Consul's default already.
const MIN_WEIGHT: u16 = 2;

/// Meta keys that say whose and what a registration is: no annotation may change them.
const RESERVED_META: [&str; 4] = [CLUSTER_META, SOURCE_META, NAMESPACE_META, SERVICE_META];

/// The settings of one Service that its annotations override.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `sync`: registered or not, whatever `--default-sync` says.
    pub sync: Option<bool>,
    /// `service-name`: what was asked for, or that it cannot be a name (nothing is registered).
    pub name: NameOverride,
    /// `service-port`: name or number of the primary port.
    pub port: Option<Box<str>>,
    /// `service-tags`, in their order, without duplicates.
    pub tags: Vec<String>,
    /// `service-meta-<key>`.
    pub meta: BTreeMap<String, String>,
    /// `service-weight`.
    pub weight: Option<u16>,
    /// `address`: which addresses are registered.
    pub address: Option<AddressMode>,
    /// `join`: whether a name that others hold is joined.
    pub join: Option<bool>,
}

/// The Consul name that an annotation asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NameOverride {
    /// None: the name comes from the template.
    #[default]
    Absent,
    /// This name.
    Name(Box<str>),
    /// One that cannot be a name.
    Invalid,
}

/// Reads the annotations of `service`. What cannot be read is a problem and has no effect.
pub fn overrides(service: &Service) -> (Overrides, Vec<Problem>) {
    let mut reader = Reader { service, problems: Vec::new() };
    let overrides = Overrides {
        sync: reader.flag(&["sync", "service-sync"]),
        name: reader.name(),
        port: reader.get(&["service-port"]).map(|(_, value)| value.trim().into()),
        tags: reader.get(&["service-tags"]).map_or_else(Vec::new, |(_, value)| split_tags(value)),
        meta: reader.meta(),
        weight: reader.weight(),
        address: reader.address(),
        join: reader.flag(&["join"]),
    };
    reader.unknown_keys();
    (overrides, reader.problems)
}

struct Reader<'a> {
    service: &'a Service,
    problems: Vec<Problem>,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// The value of the first of `names` in the first dialect that has one, and its whole key.
    fn get(&self, names: &[&str]) -> Option<(&'a str, &'a str)> {
        ANNOTATION_PREFIXES.iter().find_map(|prefix| {
            names.iter().find_map(|name| {
                let (key, value) =
                    self.service.annotations.get_key_value(format!("{prefix}{name}").as_str())?;
                Some((&**key, &**value))
            })
        })
    }

    fn problem(&mut self, key: &str, expected: &str, found: &str) {
        let message = format!("annotation {key}: expected {expected}, found {:?}", excerpt(found));
        self.problems.push(Problem::new(Reason::InvalidAnnotation, message));
    }

    /// A boolean as Go's `strconv.ParseBool` reads it.
    fn flag(&mut self, names: &[&str]) -> Option<bool> {
        let (key, value) = self.get(names)?;
        let flag = parse_bool(value.trim());
        if flag.is_none() {
            self.problem(key, "true or false; the default applies", value);
        }
        flag
    }

    fn name(&mut self) -> NameOverride {
        let Some((key, value)) = self.get(&["service-name"]) else { return NameOverride::Absent };
        let name = value.trim();
        if (1..=MAX_NAME).contains(&name.chars().count()) {
            return NameOverride::Name(name.into());
        }
        self.problem(key, "a name of 1 to 255 characters; the Service is not registered", value);
        NameOverride::Invalid
    }

    fn weight(&mut self) -> Option<u16> {
        let (key, value) = self.get(&["service-weight"])?;
        match value.trim().parse() {
            Ok(weight) if weight >= MIN_WEIGHT => Some(weight),
            _ => {
                self.problem(key, "a whole number from 2 to 65535; no weight is set", value);
                None
            }
        }
    }

    fn address(&mut self) -> Option<AddressMode> {
        let (key, value) = self.get(&["address"])?;
        let mode = value.trim().parse().ok();
        if mode.is_none() {
            let expected = format!("one of {}; the default applies", AddressMode::WORDS.join(", "));
            self.problem(key, &expected, value);
        }
        mode
    }

    fn meta(&mut self) -> BTreeMap<String, String> {
        let mut meta = BTreeMap::new();
        // The first dialect comes last, so that it wins.
        for prefix in ANNOTATION_PREFIXES.iter().rev() {
            let prefix = format!("{prefix}service-meta-");
            for (key, value) in &self.service.annotations {
                let Some(name) = key.strip_prefix(prefix.as_str()) else { continue };
                if RESERVED_META.contains(&name) {
                    self.problem(
                        key,
                        "a meta key that does not mark ownership; it is left out",
                        name,
                    );
                } else if !is_meta_key(name) {
                    let expected =
                        "a meta key of at most 128 of A-Z, a-z, 0-9, '-' and '_'; it is left out";
                    self.problem(key, expected, name);
                } else if value.len() > MAX_META_VALUE {
                    self.problem(key, "a value of at most 512 bytes; it is left out", value);
                } else {
                    meta.insert(name.to_owned(), value.to_string());
                }
            }
        }
        meta
    }

    /// An annotation of ours that does not exist is most likely a typing error.
    fn unknown_keys(&mut self) {
        const KNOWN: [&str; 7] = [
            "sync",
            "service-name",
            "service-port",
            "service-tags",
            "service-weight",
            "address",
            "join",
        ];
        for key in self.service.annotations.keys() {
            let Some(name) = key.strip_prefix(ANNOTATION_PREFIXES[0]) else { continue };
            if !KNOWN.contains(&name) && !name.starts_with("service-meta-") {
                let expected = "sync, service-name, service-port, service-tags, service-meta-<key>, \
                                service-weight, address or join after the prefix; it has no effect";
                self.problem(key, expected, name);
            }
        }
    }
}

/// Whether Consul takes `name` as a meta key.
fn is_meta_key(name: &str) -> bool {
    (1..=MAX_META_KEY).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-' || c == b'_')
}

/// Splits at commas; `\,` is a comma within a tag. Trimmed, empty ones and repetitions dropped.
fn split_tags(text: &str) -> Vec<String> {
    let mut tags = vec![String::new()];
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.next_if_eq(&',').is_some() => append(&mut tags, ','),
            ',' => tags.push(String::new()),
            _ => append(&mut tags, c),
        }
    }
    let mut seen = BTreeSet::new();
    tags.iter()
        .map(|tag| tag.trim())
        .filter(|tag| !tag.is_empty() && seen.insert(*tag))
        .map(str::to_owned)
        .collect()
}

fn append(tags: &mut [String], c: char) {
    if let Some(tag) = tags.last_mut() {
        tag.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::service;

    fn read(annotations: &[(&str, &str)]) -> (Overrides, Vec<String>) {
        let (overrides, problems) = overrides(&service().annotations(annotations).build());
        (overrides, problems.into_iter().map(|problem| problem.message).collect())
    }

    #[test]
    fn tags_split_at_commas_that_are_not_escaped() {
        for (text, expected) in [
            ("a,b", vec!["a", "b"]),
            (" a , b ,, ", vec!["a", "b"]),
            (r"a\,b,c", vec!["a,b", "c"]),
            (r"a\b", vec![r"a\b"]),
            ("a,b,a", vec!["a", "b"]),
            ("", vec![]),
        ] {
            assert_eq!(split_tags(text), expected, "{text}");
        }
    }

    #[test]
    fn our_dialect_wins_over_that_of_consul_k8s() {
        let (both, problems) = read(&[
            ("kube-consul.io/service-name", "ours"),
            ("consul.hashicorp.com/service-name", "theirs"),
            ("consul.hashicorp.com/service-sync", "f"),
            ("kube-consul.io/service-meta-a", "1"),
            ("consul.hashicorp.com/service-meta-a", "2"),
            ("consul.hashicorp.com/service-meta-b", "3"),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(both.name, NameOverride::Name("ours".into()));
        assert_eq!(both.sync, Some(false));
        assert_eq!(both.meta["a"], "1");
        assert_eq!(both.meta["b"], "3");
    }

    #[test]
    fn what_cannot_be_read_is_a_problem_and_has_no_effect() {
        let long = "x".repeat(600);
        for (annotation, value) in [
            ("kube-consul.io/sync", "maybe"),
            ("kube-consul.io/service-weight", "1"),
            ("kube-consul.io/service-weight", "-3"),
            ("kube-consul.io/service-weight", "many"),
            ("kube-consul.io/service-weight", "65536"),
            ("kube-consul.io/address", "moon"),
            ("kube-consul.io/join", ""),
            ("kube-consul.io/service-meta-a.b", "c"),
            ("kube-consul.io/service-meta-a", long.as_str()),
            ("kube-consul.io/service-meta-kube-consul-cluster", "evil"),
            ("kube-consul.io/servce-name", "typo"),
        ] {
            let (overrides, problems) = read(&[(annotation, value)]);
            assert_eq!(overrides, Overrides::default(), "{annotation}={value}");
            assert_eq!(problems.len(), 1, "{annotation}={value}: {problems:?}");
            assert!(problems[0].contains(annotation), "{problems:?}");
            assert!(problems[0].len() < 400, "{problems:?}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_one_is_told_from_none() {
        for (value, expected) in [
            (" web ", NameOverride::Name("web".into())),
            ("", NameOverride::Invalid),
            ("   ", NameOverride::Invalid),
            (&"x".repeat(255), NameOverride::Name("x".repeat(255).into())),
            (&"x".repeat(256), NameOverride::Invalid),
        ] {
            assert_eq!(read(&[("kube-consul.io/service-name", value)]).0.name, expected, "{value}");
        }
    }
}
