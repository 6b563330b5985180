//! What a Service asks to have imported: by its labels and annotations.
//!
//! The dialect of consul8s is read as its users wrote it (label `consul8s_source: consul` or
//! `registration: consul` with annotation `consul8s/service.name`); ours is the annotation
//! `kube-consul.io/import` and those that begin with `kube-consul.io/import-`.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr as _;
use std::time::Duration;

use crate::domain::kube::object::IMPORT_ANNOTATION;
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::{excerpt, parse_bool};

/// Names the Consul service whose instances become the Service's endpoints.
pub const IMPORT: &str = IMPORT_ANNOTATION;
/// Datacenters in order of preference: the first that has a usable instance is taken.
pub const DATACENTERS: &str = "kube-consul.io/import-datacenters";
/// Tags each of which an instance has to have.
pub const TAGS: &str = "kube-consul.io/import-tags";
/// A filter expression of Consul's, as `/v1/health/service` takes it.
pub const FILTER: &str = "kube-consul.io/import-filter";
/// `passing` (the default), or `warning`, which counts as ready too.
pub const HEALTH: &str = "kube-consul.io/import-health";
/// `true`: while no instance is usable, critical ones are ready as a last resort.
pub const LAST_RESORT: &str = "kube-consul.io/import-last-resort";
/// How long the last endpoints stay once Consul has none any more, for example `5m`.
pub const KEEP: &str = "kube-consul.io/import-keep";
/// Consul services that are taken while the first one has no usable instance, in this order.
pub const FAILOVER: &str = "kube-consul.io/import-failover";
/// Names the Consul service in the dialect of consul8s.
pub const CONSUL8S_NAME: &str = "consul8s/service.name";
/// The label that marks a Service in that dialect.
pub const CONSUL8S_SOURCE: &str = "consul8s_source";
/// That label, where the Service is to be registered in Consul.
pub const TO_CONSUL: (&str, &str) = (CONSUL8S_SOURCE, "kubernetes");
/// The label that its README names.
pub const REGISTRATION: &str = "registration";
/// The label of Services that were made here.
pub const CREATED: (&str, &str) = ("app.kubernetes.io/managed-by", "kube-consul-import");
/// The label of Services that consul-k8s made.
pub const OF_CONSUL_K8S: (&str, &str) = ("consul", "true");
/// Keeps consul-k8s from registering a Service.
pub const SERVICE_SYNC: &str = "consul.hashicorp.com/service-sync";

/// Longest name of a Consul service or datacenter: what Consul registers.
pub const MAX_NAME: usize = 255;
/// Longest filter, and longest list of tags. Both go into the URL of each query; 4 KiB are a screen
/// full, and Consul takes a header of 1 MiB. All names of [`MAX_SOURCES`] services fit as well.
pub const MAX_TEXT: usize = 4 << 10;
/// Consul names that one Service may follow: each costs a connection to Consul, of which all
/// Services together have 150.
const MAX_SOURCES: usize = 16;
/// The longest time that endpoints may outlive their instances: a week. Whoever needs more wants a
/// Service of its own.
const MAX_KEEP: Duration = Duration::from_hours(168);

/// Which instances of one Consul service are asked for. Equal ones are asked for once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// The Consul service.
    pub service: Box<str>,
    /// Its datacenter, if not the agent's.
    pub datacenter: Option<Box<str>>,
    /// Tags that an instance has to have, sorted and each once.
    pub tags: Box<[Box<str>]>,
    /// A filter expression.
    pub filter: Option<Box<str>>,
}

/// What a Service asks to have imported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// In order of preference; at least one.
    pub sources: Vec<Source>,
    /// Whether an instance whose checks warn is ready.
    pub warning_is_ready: bool,
    /// Whether critical instances are ready while no other is.
    pub last_resort: bool,
    /// How long endpoints stay once no instance is left.
    pub keep: Duration,
    /// Whether the node's address counts where the service's is no IP address: consul8s took the
    /// node's always, so that what worked there goes on working.
    pub node_address_counts: bool,
}

/// Labels or annotations.
pub type Pairs = BTreeMap<Box<str>, Box<str>>;

// === impl Import ===

impl Import {
    /// Reads what a Service asks for. None: it asks for nothing. What cannot be read is a problem
    /// and is left out.
    pub fn of(labels: &Pairs, annotations: &Pairs) -> (Option<Self>, Vec<Problem>) {
        let mut problems = Vec::new();
        let annotation = |key: &str| annotations.get(key).map(|value| value.trim());
        let is_consul8s = !annotations.contains_key(IMPORT);
        let base = match annotation(IMPORT) {
            Some("") => {
                problems.push(invalid(IMPORT, "", "the name of a Consul service"));
                return (None, problems);
            }
            Some(name) => plain(name),
            None => match consul8s(labels, annotations, &mut problems) {
                Some(source) => source,
                None => return (None, problems),
            },
        };
        let names = std::iter::once(&*base.service);
        let failovers: Vec<Box<str>> = list(annotation(FAILOVER)).take(MAX_SOURCES).collect();
        if let Some(name) = names.chain(failovers.iter().map(|it| &**it)).find(|it| !is_name(it)) {
            let key = if *name == *base.service { IMPORT } else { FAILOVER };
            problems.push(invalid(key, name, "the name of a Consul service; nothing is imported"));
            return (None, problems);
        }
        if let Some(problem) = too_long(&base, annotations) {
            problems.push(problem);
            return (None, problems);
        }
        let tags: BTreeSet<Box<str>> =
            base.tags.into_iter().chain(list(annotation(TAGS))).collect();
        let base = Source {
            tags: tags.into_iter().collect(),
            filter: annotation(FILTER).filter(|text| !text.is_empty()).map(Into::into),
            ..base
        };
        let names = std::iter::once(base.service.clone()).chain(list(annotation(FAILOVER)));
        let mut datacenters: Vec<Option<Box<str>>> =
            list(annotation(DATACENTERS)).take(MAX_SOURCES + 1).map(Some).collect();
        if datacenters.is_empty() {
            datacenters.push(base.datacenter.clone());
        }
        let pairs = names.flat_map(|service| {
            datacenters.iter().map(move |datacenter| (service.clone(), datacenter.clone()))
        });
        // One more than there may be: that there are too many is told, not how many.
        let mut seen = BTreeSet::new();
        let mut sources: Vec<Source> = pairs
            .filter(|pair| seen.insert(pair.clone()))
            .take(MAX_SOURCES + 1)
            .map(|(service, datacenter)| Source { service, datacenter, ..base.clone() })
            .collect();
        if sources.len() > MAX_SOURCES {
            problems.push(Problem::new(
                Reason::InvalidAnnotation,
                format!(
                    "expected at most {MAX_SOURCES} pairs of Consul service and datacenter, \
                     found more: the rest is left out; shorten {DATACENTERS} or {FAILOVER}",
                ),
            ));
            sources.truncate(MAX_SOURCES);
        }
        let import = Self {
            sources,
            warning_is_ready: health(annotation(HEALTH), &mut problems),
            last_resort: truth(LAST_RESORT, annotation(LAST_RESORT), &mut problems),
            keep: keep(annotation(KEEP), &mut problems),
            node_address_counts: is_consul8s,
        };
        (Some(import), problems)
    }
}

/// Whether a service of this name can be asked for: neither a control character, which Consul
/// refuses in a URL, nor what every URL's parser takes for a step in its path.
pub fn is_name(name: &str) -> bool {
    !name.contains(char::is_control) && !matches!(name, "." | "..")
}

fn plain(name: &str) -> Source {
    Source { service: name.into(), datacenter: None, tags: [].into(), filter: None }
}

/// What is longer than it may be. Nothing of it is used: it would be held for each pair.
fn too_long(base: &Source, annotations: &Pairs) -> Option<Problem> {
    let text = |key: &str| annotations.get(key).map_or("", |text| &**text);
    let longest = |key| list(Some(text(key))).map(|item| item.len()).max().unwrap_or(0);
    let name = [base.service.len(), base.datacenter.as_ref().map_or(0, |it| it.len())];
    let found = [
        (IMPORT, name.into_iter().max().unwrap_or(0), MAX_NAME),
        (FAILOVER, longest(FAILOVER), MAX_NAME),
        (FAILOVER, text(FAILOVER).len(), MAX_TEXT),
        (DATACENTERS, longest(DATACENTERS), MAX_NAME),
        (DATACENTERS, text(DATACENTERS).len(), MAX_TEXT),
        (TAGS, text(TAGS).len() + base.tags.iter().map(|tag| tag.len()).sum::<usize>(), MAX_TEXT),
        (FILTER, text(FILTER).len(), MAX_TEXT),
        (CONSUL8S_NAME, text(CONSUL8S_NAME).len(), MAX_TEXT),
    ];
    let (key, _, limit) = found.into_iter().find(|(_, length, limit)| length > limit)?;
    let message = format!(
        "annotation {key}: expected at most {limit} bytes, found more; nothing is imported",
    );
    Some(Problem::new(Reason::InvalidAnnotation, message))
}

/// The dialect of consul8s. It put the name into a URL, so that `web?tag=blue&dc=east` was a filter
/// that worked.
fn consul8s(labels: &Pairs, annotations: &Pairs, problems: &mut Vec<Problem>) -> Option<Source> {
    let label = |key: &str| labels.get(key).is_some_and(|value| &**value == "consul");
    let name = annotations.get(CONSUL8S_NAME).map(|name| name.trim());
    let marked = label(CONSUL8S_SOURCE) || (label(REGISTRATION) && name.is_some());
    if !marked {
        return None;
    }
    let Some(name) = name.filter(|name| !name.is_empty()) else {
        problems.push(Problem::new(
            Reason::InvalidAnnotation,
            format!(
                "expected annotation {CONSUL8S_NAME} with the name of a Consul service, because \
                 label {CONSUL8S_SOURCE} is consul; found none",
            ),
        ));
        return None;
    };
    let (name, query) = name.split_once('?').unwrap_or((name, ""));
    let mut source = plain(name);
    let (mut tags, mut ignored) = (Vec::new(), None);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=').unwrap_or((pair, "")) {
            ("tag", tag) => tags.push(tag.into()),
            ("dc", datacenter) => source.datacenter = Some(datacenter.into()),
            // What users put at the end, so that the path that followed became its value.
            (_, "") => {}
            (other, _) => ignored = ignored.or(Some(other)),
        }
    }
    problems.extend(ignored.map(|other| {
        let message = format!(
            "annotation {CONSUL8S_NAME}: expected tag or dc behind the question mark, found {:?}, \
             which is ignored; use {FILTER}",
            excerpt(other),
        );
        Problem::new(Reason::InvalidAnnotation, message)
    }));
    source.tags = tags.into();
    Some(source)
}

/// The items of a comma-separated list, without blanks around them and without empty ones.
fn list(text: Option<&str>) -> impl Iterator<Item = Box<str>> {
    text.unwrap_or_default().split(',').map(str::trim).filter(|it| !it.is_empty()).map(Into::into)
}

fn health(text: Option<&str>, problems: &mut Vec<Problem>) -> bool {
    match text {
        None | Some("passing") => false,
        Some("warning") => true,
        Some(other) => {
            problems.push(invalid(HEALTH, other, "passing or warning; passing is taken"));
            false
        }
    }
}

fn truth(key: &str, text: Option<&str>, problems: &mut Vec<Problem>) -> bool {
    let Some(text) = text else { return false };
    parse_bool(text).unwrap_or_else(|| {
        problems.push(invalid(key, text, "true or false; false is taken"));
        false
    })
}

fn keep(text: Option<&str>, problems: &mut Vec<Problem>) -> Duration {
    let Some(text) = text else { return Duration::ZERO };
    let parsed = jiff::SignedDuration::from_str(text).ok().and_then(|it| it.try_into().ok());
    match parsed {
        Some(keep) if keep <= MAX_KEEP => keep,
        _ => {
            problems.push(invalid(
                KEEP,
                text,
                "a duration of at most 168h, such as 5m; 0s is taken",
            ));
            Duration::ZERO
        }
    }
}

fn invalid(key: &str, found: &str, expected: &str) -> Problem {
    let found = excerpt(found);
    Problem::new(
        Reason::InvalidAnnotation,
        format!("invalid value {found:?} for annotation {key}: expected {expected}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(all: &[(&str, &str)]) -> Pairs {
        all.iter().map(|&(key, value)| (key.into(), value.into())).collect()
    }

    fn of(labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> (Option<Import>, String) {
        let (import, problems) = Import::of(&pairs(labels), &pairs(annotations));
        let messages: Vec<_> = problems.into_iter().map(|it| it.message).collect();
        (import, messages.join("\n"))
    }

    /// The sources as `service@datacenter+tag`.
    fn sources(import: Option<&Import>) -> Vec<String> {
        let shown = |it: &Source| {
            let datacenter = it.datacenter.as_ref().map_or(String::new(), |dc| format!("@{dc}"));
            let tags = it.tags.iter().fold(String::new(), |all, tag| all + "+" + tag);
            format!("{}{datacenter}{tags}", it.service)
        };
        import.map_or(Vec::new(), |it| it.sources.iter().map(shown).collect())
    }

    #[test]
    fn marks_of_both_dialects() {
        let name = (CONSUL8S_NAME, "db");
        for (labels, annotations, wanted) in [
            (&[][..], &[][..], &[][..]),
            (&[], &[(IMPORT, " db ")], &["db"]),
            (&[(CONSUL8S_SOURCE, "consul")], &[name], &["db"]),
            (&[(REGISTRATION, "consul")], &[name], &["db"]),
            (&[(CONSUL8S_SOURCE, "consul"), (REGISTRATION, "consul")], &[name], &["db"]),
            (&[(CONSUL8S_SOURCE, "kubernetes")], &[name], &[]),
            (&[(REGISTRATION, "consul")], &[], &[]),
            (&[], &[name], &[]),
            (&[(CONSUL8S_SOURCE, "consul")], &[name, (IMPORT, "api")], &["api"]),
            (&[(CONSUL8S_SOURCE, "consul")], &[(CONSUL8S_NAME, "db?tag=a&x=")], &["db+a"]),
            (&[(CONSUL8S_SOURCE, "consul")], &[(CONSUL8S_NAME, "db?dc=dc2&x=")], &["db@dc2"]),
            (&[], &[(IMPORT, "db?x")], &["db?x"]),
        ] {
            let (import, problems) = of(labels, annotations);
            assert_eq!(sources(import.as_ref()), wanted, "{labels:?} {annotations:?}");
            assert_eq!(problems, "", "{labels:?} {annotations:?}");
        }
    }

    #[test]
    fn a_mark_without_a_name_is_a_problem() {
        let (import, problems) = of(&[(CONSUL8S_SOURCE, "consul")], &[]);
        assert_eq!(import, None);
        assert!(problems.contains("expected annotation consul8s/service.name"), "{problems}");
        let (import, problems) = of(&[], &[(IMPORT, " ")]);
        assert!(import.is_none() && problems.contains("kube-consul.io/import"), "{problems}");
        let (_, problems) = of(&[(CONSUL8S_SOURCE, "consul")], &[(CONSUL8S_NAME, "db?near=x")]);
        assert!(problems.contains("\"near\""), "{problems}");
    }

    #[test]
    fn a_name_that_no_url_can_carry_is_a_problem() {
        for name in [".", "..", "a\u{7}b", "two\nlines"] {
            for (key, other) in [(IMPORT, (FAILOVER, "db")), (FAILOVER, (IMPORT, "db"))] {
                let (import, problems) = of(&[], &[(key, name), other]);
                assert_eq!(import, None, "{key} {name:?}");
                assert!(problems.contains(key), "{problems}");
            }
        }
        for name in ["...", "a/../b", "a?b#c", "\u{202e}"] {
            assert!(of(&[], &[(IMPORT, name)]).0.is_some(), "{name:?}");
        }
    }

    #[test]
    fn services_and_datacenters_come_in_their_order_of_preference() {
        let (import, problems) = of(
            &[],
            &[(IMPORT, "db"), (FAILOVER, "db-old"), (DATACENTERS, "east, west"), (TAGS, "b,a")],
        );
        let wanted = ["db@east+a+b", "db@west+a+b", "db-old@east+a+b", "db-old@west+a+b"];
        assert_eq!(
            (sources(import.as_ref()), problems),
            (wanted.map(String::from).into(), String::new())
        );
        let (import, _) = of(&[], &[(IMPORT, "db"), (FAILOVER, "db,x,x"), (DATACENTERS, "e,e")]);
        assert_eq!(sources(import.as_ref()), ["db@e", "x@e"], "each once");
        let many = (0..40).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let (import, problems) = of(&[], &[(IMPORT, "db"), (FAILOVER, &many)]);
        assert_eq!(sources(import.as_ref()).len(), MAX_SOURCES);
        assert!(problems.contains("at most 16"), "{problems}");
    }

    #[test]
    fn no_text_of_a_tenants_takes_more_memory_than_a_line() {
        let many = (0..500).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        let (import, problems) =
            of(&[], &[(IMPORT, "db"), (FAILOVER, &many), (DATACENTERS, &many)]);
        assert_eq!(sources(import.as_ref()).len(), MAX_SOURCES);
        assert!(problems.contains("at most 16"), "{problems}");
        let long = "x".repeat(5_000);
        let list = "a,".repeat(3_000);
        for (key, text) in [IMPORT, FAILOVER, DATACENTERS, TAGS, FILTER]
            .map(|key| (key, &long))
            .into_iter()
            .chain([FAILOVER, DATACENTERS, TAGS].map(|key| (key, &list)))
        {
            let (import, problems) = of(&[], &[(IMPORT, "db"), (key, text)]);
            assert!(import.is_none() && problems.contains(key), "{key}: {problems}");
        }
        let label = [(CONSUL8S_SOURCE, "consul")];
        let (import, _) = of(&label, &[(CONSUL8S_NAME, &format!("db?{}", "tag=a&".repeat(1_000)))]);
        assert!(import.is_none());
        let (import, problems) =
            of(&label, &[(CONSUL8S_NAME, &format!("db?{}", "x=1&".repeat(900)))]);
        assert!(import.is_some() && problems.lines().count() == 1, "{problems}");
    }

    #[test]
    fn options_that_cannot_be_read_are_told_and_the_default_is_taken() {
        let (import, problems) =
            of(&[], &[(IMPORT, "db"), (HEALTH, "warning"), (LAST_RESORT, "true"), (KEEP, "1h30m")]);
        let import = import.unwrap();
        assert!(import.warning_is_ready && import.last_resort && problems.is_empty());
        assert_eq!(import.keep, Duration::from_mins(90));
        for (key, value) in [
            (HEALTH, "critical"),
            (LAST_RESORT, "maybe"),
            (KEEP, "5"),
            (KEEP, "200h"),
            (KEEP, "-1s"),
        ] {
            let (import, problems) = of(&[], &[(IMPORT, "db"), (key, value)]);
            let import = import.unwrap();
            assert!(!import.warning_is_ready && !import.last_resort && import.keep.is_zero());
            assert!(problems.contains(key) && problems.contains(value), "{problems}");
        }
    }
}
