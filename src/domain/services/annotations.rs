//! What the annotations of a Service ask for.
//!
//! Each setting may be written in several dialects ([`ANNOTATION_PREFIXES`]); ours wins. The
//! rules of `consul.hashicorp.com/` are those of consul-k8s' catalog sync. Which of them count is
//! the operator's to say ([`AnnotationPolicy`](super::settings::AnnotationPolicy)).
//!
//! Whatever goes to Consul from here has no control characters: others print it, and build
//! configuration files from it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::str::FromStr;

use crate::domain::consul::meta::{RESERVED_META, is_meta_key, is_meta_value, is_reserved_meta};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{ANNOTATION_PREFIXES, Service};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::consul8s;
use crate::domain::services::overrides::{NameOverride, Overrides, is_service_name};
use crate::domain::services::settings::{AddressMode, Annotation, NodeAddress, Settings};
use crate::domain::text::{excerpt, parse_bool};

/// Smallest weight that consul-k8s takes: 1 is Consul's default already.
const MIN_WEIGHT: u16 = 2;

/// Whether the annotations ask that the Service is registered, or not; and what is wrong with
/// that.
pub fn sync(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
) -> (Option<bool>, Vec<Problem>) {
    let mut reader = Reader::new(settings, key, service);
    (reader.flag(Annotation::Sync), reader.problems)
}

/// Reads all other annotations of `service`. What cannot be read is a problem and has no effect.
pub fn overrides(
    settings: &Settings,
    key: &ObjectKey,
    service: &Service,
) -> (Overrides, Vec<Problem>) {
    let mut reader = Reader::new(settings, key, service);
    let mut overrides = Overrides {
        name: reader.name(),
        port: reader.get(Annotation::ServicePort).map(|(_, value)| value.trim().into()),
        tags: reader.tags(),
        meta: reader.meta(),
        weight: reader.weight(),
        address: reader.word(Annotation::Address, AddressMode::WORDS, settings.address),
        node_address: reader.word(
            Annotation::NodeAddress,
            NodeAddress::WORDS,
            settings.node_address,
        ),
        join: reader.flag(Annotation::Join),
        domain_name: None,
        only_primary_port: false,
    };
    reader.unknown_keys();
    if reader.is_consul8s() {
        consul8s::read(service, &mut overrides, &mut reader.problems);
    }
    (overrides, reader.problems)
}

/// Whether the Service asks to be registered in the dialect of consul8s, and may: it says name and
/// address.
pub fn is_consul8s(settings: &Settings, key: &ObjectKey, service: &Service) -> bool {
    Reader::new(settings, key, service).is_consul8s()
}

struct Reader<'a> {
    settings: &'a Settings,
    key: &'a ObjectKey,
    service: &'a Service,
    problems: Vec<Problem>,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    fn new(settings: &'a Settings, key: &'a ObjectKey, service: &'a Service) -> Self {
        Self { settings, key, service, problems: Vec::new() }
    }

    /// The annotation in the first dialect that has it, if it counts: its whole key and its value.
    fn get(&mut self, annotation: Annotation) -> Option<(&'a str, &'a str)> {
        // Most Services have none, and each is read for every plan.
        if self.service.annotations.is_empty() {
            return None;
        }
        let words = [Some(annotation.word()), annotation.word_of_consul_k8s()];
        let found = ANNOTATION_PREFIXES.iter().find_map(|prefix| {
            words.into_iter().flatten().find_map(|word| {
                let key = format!("{prefix}{word}");
                self.service.annotations.get_key_value(key.as_str())
            })
        });
        let (key, value) = found?;
        self.counts(annotation, key).then_some((&**key, &**value))
    }

    /// Whether an annotation that is there counts; if not, that is a problem.
    fn counts(&mut self, annotation: Annotation, key: &str) -> bool {
        let counts = self.settings.annotations.counts(&self.key.namespace, annotation);
        if !counts {
            let kind = if key == consul8s::LABEL.0 { "label" } else { "annotation" };
            let message = format!(
                "{kind} {key} has no effect: the bridge was started with --annotations \
                 without {annotation}, and {} is none of its trusted namespaces",
                self.key.namespace
            );
            self.problems.push(Problem::new(Reason::IgnoredAnnotation, message));
        }
        counts
    }

    fn is_consul8s(&mut self) -> bool {
        const WANTED: [Annotation; 2] = [Annotation::ServiceName, Annotation::Address];
        consul8s::is_marked(self.service)
            && WANTED.into_iter().all(|it| self.counts(it, consul8s::LABEL.0))
    }

    /// In the form of the API server's own validation.
    fn problem(&mut self, key: &str, expected: &str, found: &str) {
        let found = excerpt(found);
        let message = format!("invalid value {found:?} for annotation {key}: must be {expected}");
        self.problems.push(Problem::new(Reason::InvalidAnnotation, message));
    }

    /// A boolean as Go's `strconv.ParseBool` reads it.
    fn flag(&mut self, annotation: Annotation) -> Option<bool> {
        let (key, value) = self.get(annotation)?;
        let flag = parse_bool(value.trim());
        if flag.is_none() {
            self.problem(key, "true or false; using the default", value);
        }
        flag
    }

    /// One of some words.
    fn word<T: FromStr>(
        &mut self,
        annotation: Annotation,
        words: &[&str],
        default: impl Display,
    ) -> Option<T> {
        let (key, value) = self.get(annotation)?;
        let word = value.trim().parse().ok();
        if word.is_none() {
            let expected = format!(
                "one of {}; using {default:?}",
                words.join(", "),
                default = default.to_string()
            );
            self.problem(key, &expected, value);
        }
        word
    }

    fn name(&mut self) -> NameOverride {
        let Some((key, value)) = self.get(Annotation::ServiceName) else {
            return NameOverride::Absent;
        };
        let name = value.trim();
        if is_service_name(name) {
            return NameOverride::Name(name.into());
        }
        let expected = "a name of 1 to 255 characters, none of them a control or format character; \
                        the Service is not registered";
        self.problem(key, expected, value);
        NameOverride::Invalid
    }

    fn weight(&mut self) -> Option<u16> {
        let (key, value) = self.get(Annotation::ServiceWeight)?;
        match value.trim().parse() {
            Ok(weight) if weight >= MIN_WEIGHT => Some(weight),
            _ => {
                self.problem(key, "a whole number from 2 to 65535; no weight is set", value);
                None
            }
        }
    }

    fn tags(&mut self) -> Vec<String> {
        let Some((key, value)) = self.get(Annotation::ServiceTags) else { return Vec::new() };
        let mut tags = split_tags(value);
        if let Some(odd) = tags.iter().find(|tag| !is_printable(tag)) {
            self.problem(key, "tags without control characters; such are left out", odd);
            tags.retain(|tag| is_printable(tag));
        }
        tags
    }

    fn meta(&mut self) -> BTreeMap<String, String> {
        let mut meta = BTreeMap::new();
        // The first dialect comes last, so that it wins.
        for prefix in ANNOTATION_PREFIXES.iter().rev() {
            let prefix = format!("{prefix}{}-", Annotation::ServiceMeta);
            for (key, value) in &self.service.annotations {
                let Some(name) = key.strip_prefix(prefix.as_str()) else { continue };
                if !self.counts(Annotation::ServiceMeta, key) {
                    continue;
                }
                let expected = if RESERVED_META.contains(&name) {
                    "a meta key that does not mark ownership"
                } else if is_reserved_meta(name) {
                    "a meta key that does not begin with \"consul-\", which Consul keeps for itself"
                } else if !is_meta_key(name) {
                    "a meta key of at most 128 of A-Z, a-z, 0-9, '-' and '_'"
                } else if !is_meta_value(value) {
                    "a value of at most 512 bytes without control characters"
                } else {
                    meta.insert(name.to_owned(), value.to_string());
                    continue;
                };
                let found = if is_meta_value(value) { name } else { &**value };
                self.problem(key, &format!("{expected}; it is left out"), found);
            }
        }
        meta
    }

    /// An annotation of ours that does not exist is most likely a typing error.
    fn unknown_keys(&mut self) {
        let meta = format!("{}-", Annotation::ServiceMeta);
        for key in self.service.annotations.keys() {
            let Some(name) = key.strip_prefix(ANNOTATION_PREFIXES[0]) else { continue };
            let is_known = name.parse::<Annotation>().is_ok_and(|it| it != Annotation::ServiceMeta);
            if !is_known && !name.starts_with(&meta) {
                let words = Annotation::WORDS.join(", ");
                let words = words.replace("service-meta", "service-meta-<key>");
                let meant = closest(name).map_or_else(
                    || format!("known are {words}"),
                    |word| format!("did you mean {}{word}?", ANNOTATION_PREFIXES[0]),
                );
                let message =
                    format!("unknown annotation {:?} has no effect: {meant}", excerpt(key));
                self.problems.push(Problem::new(Reason::InvalidAnnotation, message));
            }
        }
    }
}

// === impl Annotation ===

impl Annotation {
    /// What consul-k8s calls it, where that is something else.
    fn word_of_consul_k8s(self) -> Option<&'static str> {
        (self == Annotation::Sync).then_some("service-sync")
    }
}

/// The annotation that was most likely meant: one of which it takes few changes to be it.
fn closest(name: &str) -> Option<&'static str> {
    // Swapped, missing, doubled letters; more than a third of the word is another word.
    let distances = Annotation::WORDS.iter().map(|word| (strsim::osa_distance(name, word), *word));
    distances.min().filter(|(distance, word)| distance * 3 <= word.len()).map(|(_, word)| word)
}

fn is_printable(text: &str) -> bool {
    !text.contains(char::is_control)
}

/// Splits at commas; `\,` is a comma within a tag. Trimmed, empty ones and repetitions dropped.
pub fn split_tags(text: &str) -> Vec<String> {
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

    fn settings() -> Settings {
        Settings::new("kubernetes".parse().unwrap())
    }

    fn key() -> ObjectKey {
        ObjectKey::new("shop", "web")
    }

    fn read_with(
        settings: &Settings,
        annotations: &[(&str, &str)],
    ) -> (Option<bool>, Overrides, Vec<Problem>) {
        let service = service().annotations(annotations).build();
        let (sync, mut problems) = sync(settings, &key(), &service);
        let (overrides, others) = overrides(settings, &key(), &service);
        problems.extend(others);
        (sync, overrides, problems)
    }

    fn read(annotations: &[(&str, &str)]) -> (Option<bool>, Overrides, Vec<String>) {
        let (sync, overrides, problems) = read_with(&settings(), annotations);
        (sync, overrides, problems.into_iter().map(|problem| problem.message).collect())
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
        let (sync, both, problems) = read(&[
            ("kube-consul.io/service-name", "ours"),
            ("consul.hashicorp.com/service-name", "theirs"),
            ("consul.hashicorp.com/service-sync", "f"),
            ("kube-consul.io/service-meta-a", "1"),
            ("consul.hashicorp.com/service-meta-a", "2"),
            ("consul.hashicorp.com/service-meta-b", "3"),
        ]);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(both.name, NameOverride::Name("ours".into()));
        assert_eq!(sync, Some(false));
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
            ("kube-consul.io/service-meta-consul-x", "o14"),
            ("kube-consul.io/service-meta-a", "two\nlines"),
            ("kube-consul.io/service-tags", "a\u{1b}[31m"),
            ("kube-consul.io/node-address", "moon"),
            ("kube-consul.io/service-meta", "no key"),
            ("kube-consul.io/servce-name", "typo"),
        ] {
            let (sync, overrides, problems) = read(&[(annotation, value)]);
            assert_eq!((sync, overrides), (None, Overrides::default()), "{annotation}={value}");
            assert_eq!(problems.len(), 1, "{annotation}={value}: {problems:?}");
            assert!(problems[0].contains(annotation), "{problems:?}");
            assert!(problems[0].len() < 400, "{problems:?}");
        }
    }

    #[test]
    fn messages_have_the_form_of_kubernetes_and_name_what_was_meant() {
        for (annotation, value, message) in [
            (
                "kube-consul.io/address",
                "clusterip",
                "invalid value \"clusterip\" for annotation kube-consul.io/address: must be one of \
                 auto, by-type, cluster-ip, endpoints, node-port, load-balancer, \
                 external-ip; using \"auto\"",
            ),
            (
                "kube-consul.io/sync",
                "maybe",
                "invalid value \"maybe\" for annotation kube-consul.io/sync: must be true or false; \
                 using the default",
            ),
            (
                "kube-consul.io/servce-name",
                "x",
                "unknown annotation \"kube-consul.io/servce-name\" has no effect: did you mean \
                 kube-consul.io/service-name?",
            ),
        ] {
            assert_eq!(read(&[(annotation, value)]).2, [message]);
        }
        let (_, _, unknown) = read(&[("kube-consul.io/moon", "x")]);
        assert!(unknown[0].contains("has no effect: known are "), "{unknown:?}");
    }

    #[test]
    fn a_name_that_cannot_be_one_is_told_from_none() {
        for (value, expected) in [
            (" web ", NameOverride::Name("web".into())),
            ("", NameOverride::Invalid),
            ("   ", NameOverride::Invalid),
            (&"x".repeat(255), NameOverride::Name("x".repeat(255).into())),
            (&"x".repeat(256), NameOverride::Invalid),
            ("two\nlines", NameOverride::Invalid),
            ("\u{1b}[31m", NameOverride::Invalid),
            ("one line\n", NameOverride::Name("one line".into())),
        ] {
            assert_eq!(read(&[("kube-consul.io/service-name", value)]).1.name, expected, "{value}");
        }
    }

    #[test]
    fn n13_what_does_not_count_is_told_and_has_no_effect() {
        let annotations = [
            ("consul.hashicorp.com/service-sync", "true"),
            ("kube-consul.io/join", "true"),
            ("kube-consul.io/service-name", "postgres"),
            ("kube-consul.io/service-meta-a", "1"),
            ("kube-consul.io/service-weight", "65535"),
        ];
        let mut settings = settings();
        settings.annotations.allowed = Some([Annotation::ServiceMeta].into());
        let (sync, overrides, problems) = read_with(&settings, &annotations);
        assert_eq!((sync, overrides.join, overrides.weight), (None, None, None));
        assert_eq!(overrides.name, NameOverride::Absent);
        assert_eq!(overrides.meta["a"], "1");
        assert_eq!(problems.len(), 4);
        assert!(problems.iter().all(|it| it.reason == Reason::IgnoredAnnotation), "{problems:?}");
        settings.annotations.trusted_namespaces.insert("shop".into());
        let (sync, overrides, problems) = read_with(&settings, &annotations);
        assert_eq!((sync, overrides.join, problems.len()), (Some(true), Some(true), 0));
    }
}
