//! The annotations of a pod, in both dialects: `kube-consul.io/` and `katalog-sync.wish.com/`.
//!
//! What the original took is taken, word for word: tags are exact, ports are Go's `Atoi`, durations
//! Go's. Where it logged an error and went on there is a [`Problem`], and the same default. Whatever a
//! pod's annotations are, they make one problem each, and what their names share is kept once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::consul::meta::{CONSULS_META, is_meta_key, is_meta_value};
use crate::domain::hook::duration;
use crate::domain::node::pod::{PREFIXES, Pod};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::annotations::split_tags;
use crate::domain::text::excerpt;

/// Most names of one pod: more than any has, so that one annotation cannot fill an agent.
pub const MAX_NAMES: usize = 64;
/// Longest name, in characters: Consul's.
const MAX_NAME: usize = 255;
/// Bytes of all annotations of a pod that are read, their keys included. Most pods have a few hundred;
/// at 250 pods of a node it is a quarter of the daemon's memory.
pub const MAX_BYTES: usize = 64 << 10;
/// Most tags of one name: each costs 24 bytes beside its text, so 64 names as much as [`MAX_BYTES`]
/// several times at most.
const MAX_TAGS: usize = 256;
/// Pairs of meta that Consul takes, less those that are ours.
const MAX_META: usize = 64 - 5;

/// A status that an annotation fixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Passing.
    Passing,
    /// Warning.
    Warning,
    /// Critical.
    Critical,
}

/// What a pod says of its sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedSidecar<'a> {
    /// It has none.
    None,
    /// The container of this name.
    Container(&'a str),
    /// One that the pod does not have: the pod is not registered, as it never was.
    Unknown,
}

/// Reads the annotations of one pod and gathers what is wrong with them.
#[derive(Debug)]
pub struct Reader<'a> {
    pod: &'a Pod,
    /// Of each annotation the first thing that is wrong, and how much more is.
    wrong: BTreeMap<&'a str, (String, usize)>,
    incomplete: Vec<String>,
    /// Meta that every name has.
    our_meta: BTreeMap<String, String>,
    /// What annotations were read as already, by their keys.
    tags: BTreeMap<&'a str, Arc<[String]>>,
    meta: BTreeMap<&'a str, Arc<BTreeMap<String, String>>>,
}

// === impl Reader ===

impl<'a> Reader<'a> {
    /// Nothing is read yet. Nothing of `our_meta` can be overridden.
    pub fn new(pod: &'a Pod, our_meta: impl IntoIterator<Item = (String, String)>) -> Self {
        Self {
            pod,
            wrong: BTreeMap::new(),
            incomplete: Vec::new(),
            our_meta: our_meta.into_iter().collect(),
            tags: BTreeMap::new(),
            meta: BTreeMap::new(),
        }
    }

    /// What is wrong: one problem for each annotation.
    pub fn problems(self) -> Vec<Problem> {
        let wrong = self.wrong.into_values().map(|(message, more)| {
            let more = if more == 0 { String::new() } else { format!(" (and {more} more)") };
            Problem::new(Reason::InvalidAnnotation, format!("{message}{more}"))
        });
        let incomplete = self.incomplete.into_iter();
        let incomplete = incomplete.map(|message| Problem::new(Reason::Incomplete, message));
        let mut all: Vec<_> = wrong.chain(incomplete).collect();
        all.sort();
        all.dedup();
        all
    }

    /// Something is missing that is not an annotation's fault.
    pub fn incomplete(&mut self, message: impl Into<String>) {
        self.incomplete.push(message.into());
    }

    /// The annotation in the first dialect that has it: its whole key and its value.
    fn get(&self, word: &str) -> Option<(&'a str, &'a str)> {
        PREFIXES.iter().find_map(|prefix| {
            let found = self.pod.annotations.get_key_value(format!("{prefix}{word}").as_str());
            found.map(|(key, value)| (&**key, &**value))
        })
    }

    fn problem(&mut self, key: &'a str, expected: &str, found: &str) {
        if let Some((_, more)) = self.wrong.get_mut(key) {
            *more += 1;
            return;
        }
        let message = format!("annotation {key}: expected {expected}, found {:?}", excerpt(found));
        self.wrong.insert(key, (message, 0));
    }

    /// The names to register, each once; `None`: the pod does not ask to be registered.
    pub fn names(&mut self) -> Option<Vec<Box<str>>> {
        let (key, value) = self.get("service-names")?;
        let mut names: Vec<Box<str>> = Vec::new();
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if names.iter().any(|it| **it == *name) {
                continue;
            }
            if name.chars().count() > MAX_NAME || name.contains(char::is_control) {
                let expected = "names of at most 255 characters, none of them a control character; \
                                this one is left out";
                self.problem(key, expected, name);
            } else if names.len() == MAX_NAMES {
                self.problem(key, "at most 64 names; the rest is left out", value);
                break;
            } else {
                names.push(name.into());
            }
        }
        Some(names)
    }

    /// The port of a service: its own, else that of all, else the first of the pod's containers, else 0.
    pub fn port(&mut self, service: &str) -> u16 {
        for word in [format!("service-port-{service}"), "service-port".to_owned()] {
            let Some((key, value)) = self.get(&word) else { continue };
            let ports = self.pod.containers.iter().flat_map(|container| &container.ports);
            let named = ports.clone().find(|(name, _)| !name.is_empty() && **name == *value);
            match (atoi(value).and_then(|number| u16::try_from(number).ok()), named) {
                (Some(number), _) => return number,
                (None, Some((_, number))) if key.starts_with(PREFIXES[0]) => return *number,
                _ => {
                    let expected = if key.starts_with(PREFIXES[0]) {
                        "a number from 0 to 65535 or the name of a container's port; the default is \
                         registered"
                    } else {
                        "a number from 0 to 65535; the default is registered"
                    };
                    self.problem(key, expected, value);
                }
            }
        }
        // Native sidecars are init containers, whose ports do not count.
        let mut containers = self.pod.containers.iter().filter(|it| !it.is_native_sidecar);
        if let Some((_, number)) = containers.find_map(|container| container.ports.first()) {
            return *number;
        }
        let message = format!(
            "no container names a port, and no annotation does: {:?} is registered with port 0",
            excerpt(service)
        );
        self.incomplete(message);
        0
    }

    /// The tags of a service: its own, or those of all.
    pub fn tags(&mut self, service: &str) -> Arc<[String]> {
        let own = self.get(&format!("service-tags-{service}"));
        let Some((key, value)) = own.or_else(|| self.get("service-tags")) else {
            return Arc::default();
        };
        if let Some(known) = self.tags.get(key) {
            return Arc::clone(known);
        }
        let mut tags = if key.starts_with(PREFIXES[0]) {
            split_tags(value)
        } else {
            value.split(',').take(MAX_TAGS + 1).map(str::to_owned).collect()
        };
        if tags.len() > MAX_TAGS {
            self.problem(key, "at most 256 tags; the rest is left out", value);
            tags.truncate(MAX_TAGS);
        }
        let tags: Arc<[String]> = tags.into();
        self.tags.insert(key, Arc::clone(&tags));
        tags
    }

    /// The meta of a service: its own, or that of all, and ours.
    pub fn meta(&mut self, service: &str) -> Arc<BTreeMap<String, String>> {
        let own = self.get(&format!("service-meta-{service}"));
        let (key, value) = own.or_else(|| self.get("service-meta")).unwrap_or_default();
        if let Some(known) = self.meta.get(key) {
            return Arc::clone(known);
        }
        let mut meta = self.own_meta(key, value);
        meta.extend(self.our_meta.clone());
        let meta = Arc::new(meta);
        self.meta.insert(key, Arc::clone(&meta));
        meta
    }

    fn own_meta(&mut self, key: &'a str, value: &str) -> BTreeMap<String, String> {
        let mut meta = BTreeMap::new();
        for pair in value.split(',').filter(|pair| !pair.trim().is_empty()) {
            let (name, text) = match pair.split_once(':') {
                Some((name, text)) if !text.contains(':') => (name.trim(), text.trim()),
                _ => {
                    self.problem(key, "pairs key:value with one colon; this one is left out", pair);
                    continue;
                }
            };
            if !is_meta_key(name) || name.starts_with(CONSULS_META) || !is_meta_value(text) {
                let expected = "keys of A-Z, a-z, 0-9, '-' and '_' that do not begin with consul-, \
                                at most 128, and values of at most 512 bytes; this pair is left out";
                self.problem(key, expected, pair);
            } else if meta.len() == MAX_META && !meta.contains_key(name) {
                self.problem(key, "at most 59 pairs; the rest is left out", value);
                break;
            } else {
                meta.insert(name.to_owned(), text.to_owned());
            }
        }
        meta
    }

    /// The fixed status of a service, if it has one. An override that is no status does not fall back.
    pub fn health(&mut self, service: &str) -> Option<Health> {
        let own = self.get(&format!("service-health-{service}")).filter(|(_, it)| !it.is_empty());
        let general = || self.get("service-health").filter(|(_, it)| !it.is_empty());
        let (key, value) = own.or_else(general)?;
        match value {
            "passing" => Some(Health::Passing),
            "warning" => Some(Health::Warning),
            "critical" => Some(Health::Critical),
            other => {
                self.problem(key, "passing, warning or critical; readiness counts", other);
                None
            }
        }
    }

    /// The container that the pod names as its sidecar, if it does.
    pub fn sidecar(&mut self) -> NamedSidecar<'a> {
        let Some((key, value)) = self.get("sidecar") else { return NamedSidecar::None };
        if self.pod.container(value).is_some() {
            return NamedSidecar::Container(value);
        }
        self.problem(key, "the name of a container of the pod; the pod is not registered", value);
        NamedSidecar::Unknown
    }

    /// The containers that do not count.
    pub fn excluded(&mut self) -> Vec<&'a str> {
        let Some((key, value)) = self.get("container-exclude") else { return Vec::new() };
        let excluded: Vec<_> = value.split(',').collect();
        for name in excluded.iter().filter(|name| !name.is_empty()) {
            if self.pod.container(name).is_none() {
                self.problem(key, "names of the pod's containers", name);
            }
        }
        excluded
    }

    /// A duration, or none where it is absent or no duration.
    pub fn duration(&mut self, word: &str) -> Option<Duration> {
        let (key, value) = self.get(word)?;
        let parsed = duration::parse(value);
        if parsed.is_none() {
            self.problem(key, "a duration such as 500ms or 1m30s; the default counts", value);
        }
        parsed
    }
}

/// A number as Go's `strconv.Atoi` reads it.
fn atoi(text: &str) -> Option<i64> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|c| c.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}
