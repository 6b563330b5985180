//! The dialect of consul8s: label `consul8s_source: kubernetes` asks that the Service is registered
//! at a name made elsewhere (annotation `domainName`), under the name, tags and port of annotations
//! `consul8s/service.…`.
//!
//! What it registered on a node of its own, `kubernetes-<id>`, which no mark told from anybody else's,
//! is registered as every other Service is: that has an owner, is held when it would go by mistake,
//! and goes with its Service, which there stayed for ever.

use std::collections::BTreeMap;

use crate::domain::address::fault_of;
use crate::domain::consul::meta::is_meta_value;
use crate::domain::consul::names::is_name_in_consul;
use crate::domain::kube::object::{CONSUL8S_PREFIX, DOMAIN_NAME, Service, ServicePort};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::overrides::{NameOverride, Overrides, is_service_name};
use crate::domain::text::excerpt;

/// The label that asks for it.
pub const LABEL: (&str, &str) = ("consul8s_source", "kubernetes");
/// The meta key that has its `service.id`: the ID itself is one that tells the cluster and the
/// Service.
pub const ID_META: &str = "consul8s-service-id";

const AN_ADDRESS: &str =
    "a host name that is none of Consul's, or an IP address that others can reach";

/// Whether the Service asks for it.
pub fn is_marked(service: &Service) -> bool {
    let (name, value) = LABEL;
    service.labels.get(name).is_some_and(|found| **found == *value)
}

/// Whether it asks that its registration is removed. There it was compared without regard to case,
/// and nothing else was true.
pub fn asks_for_removal(service: &Service) -> bool {
    annotation(service, "remove_registration").is_some_and(|it| it.eq_ignore_ascii_case("true"))
}

/// Adds what it asks for to what the annotations of other dialects say, which win. Where it cannot
/// be registered as it asks for, it is not registered.
pub fn read(service: &Service, overrides: &mut Overrides, problems: &mut Vec<Problem>) {
    let mut is_complete = true;
    let mut lacks = |key: &str, expected: &str, found: Option<&str>| {
        let found = found.map_or_else(|| "none".to_owned(), |it| format!("{:?}", excerpt(it)));
        let message = format!(
            "annotation {key}: expected {expected}, because label consul8s_source is kubernetes; \
             found {found}; the Service is not registered"
        );
        problems.push(Problem::new(Reason::InvalidAnnotation, message));
        is_complete = false;
    };
    if overrides.name == NameOverride::Absent {
        let name = annotation(service, "name");
        match name.map(str::trim).filter(|name| is_service_name(name)) {
            Some(name) => overrides.name = NameOverride::Name(name.into()),
            None => lacks(&key("name"), "a Consul name of 1 to 255 characters", name),
        }
    }
    if overrides.address.is_none() {
        let found = service.annotations.get(DOMAIN_NAME).map(|it| &**it);
        match found.and_then(domain_name) {
            Some(name) => overrides.domain_name = Some(name.into()),
            None => lacks(DOMAIN_NAME, AN_ADDRESS, found),
        }
    }
    if overrides.port.is_none() {
        let asked = annotation(service, "port_name");
        let of_name = |it: &&ServicePort| asked.is_some() && it.name.as_deref() == asked;
        match (&*service.ports, service.ports.iter().find(of_name)) {
            (_, Some(port)) => overrides.port.clone_from(&port.name),
            ([_], None) if asked.is_none() => {}
            _ => lacks(&key("port_name"), "the name of one of the Service's ports", asked),
        }
    }
    if overrides.tags.is_empty() {
        // As they are: neither trimmed nor without empty ones.
        let tags = annotation(service, "tags").into_iter().flat_map(|tags| tags.split(','));
        overrides.tags =
            tags.filter(|tag| !tag.contains(char::is_control)).map(Into::into).collect();
    }
    if let Some(id) = annotation(service, "id").filter(|id| is_meta_value(id)) {
        overrides.meta.entry(ID_META.to_owned()).or_insert_with(|| id.to_owned());
    }
    overrides.only_primary_port = true;
    if !is_complete {
        overrides.name = NameOverride::Invalid;
    }
}

fn key(name: &str) -> String {
    format!("{CONSUL8S_PREFIX}{name}")
}

fn annotation<'a>(service: &'a Service, name: &str) -> Option<&'a str> {
    let annotations: &BTreeMap<Box<str>, Box<str>> = &service.annotations;
    annotations.get(&*key(name)).map(|value| &**value)
}

/// The name without the final dot, if one can be registered at it.
fn domain_name(text: &str) -> Option<&str> {
    let name = text.trim();
    let name = name.strip_suffix('.').unwrap_or(name);
    (fault_of(name).is_none() && !is_name_in_consul(name)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::testing::{port, service};

    fn read_all(annotations: &[(&str, &str)]) -> (Overrides, String) {
        let service = service().annotations(annotations).build();
        let (mut overrides, mut problems) = (Overrides::default(), Vec::new());
        read(&service, &mut overrides, &mut problems);
        let messages: Vec<_> = problems.into_iter().map(|it| it.message).collect();
        (overrides, messages.join("\n"))
    }

    const NAME: (&str, &str) = ("consul8s/service.name", "api");
    const AT: (&str, &str) = (DOMAIN_NAME, "api.example.org");

    #[test]
    fn what_consul8s_took() {
        for (found, address) in [
            ("api.example.org", "api.example.org"),
            ("API.example.org.", "API.example.org"),
            ("10.1.2.3", "10.1.2.3"),
            ("fd00::1", "fd00::1"),
        ] {
            let (overrides, problems) = read_all(&[NAME, (DOMAIN_NAME, found)]);
            assert_eq!(problems, "");
            assert_eq!(overrides.name, NameOverride::Name("api".into()));
            assert_eq!(overrides.domain_name.as_deref(), Some(address), "{found}");
        }
        for (found, tags) in [
            ("a, b", &["a", " b"][..]),
            ("", &[""]),
            ("a,a", &["a", "a"]),
            ("a,,b", &["a", "", "b"]),
        ] {
            let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
            assert_eq!(read_all(&[NAME, AT, ("consul8s/service.tags", found)]).0.tags, tags);
        }
        for id in ["", "a/b", "a b"] {
            let (overrides, problems) = read_all(&[NAME, AT, ("consul8s/service.id", id)]);
            assert_eq!((&*overrides.meta[ID_META], &*problems), (id, ""));
        }
    }

    #[test]
    fn what_ended_consul8s_is_a_problem_of_that_service() {
        let of_port = |name| [NAME, AT, ("consul8s/service.port_name", name)];
        for (annotations, wanted) in [
            (&[AT][..], "consul8s/service.name"),
            (&[("consul8s/service.name", " "), AT], "consul8s/service.name"),
            (&[NAME], "domainName"),
            (&[NAME, (DOMAIN_NAME, "")], "domainName"),
            (&[NAME, (DOMAIN_NAME, "a b")], "domainName"),
            (&[NAME, (DOMAIN_NAME, "api.service.consul")], "domainName"),
            (&[NAME, (DOMAIN_NAME, "a..b")], "domainName"),
            (&[NAME, (DOMAIN_NAME, "169.254.169.254")], "domainName"),
            (&of_port("HTTP"), "consul8s/service.port_name"),
            (&of_port(""), "consul8s/service.port_name"),
        ] {
            let (overrides, problems) = read_all(annotations);
            assert_eq!(overrides.name, NameOverride::Invalid, "{annotations:?}");
            assert!(problems.contains(wanted), "{annotations:?}: {problems}");
        }
    }

    #[test]
    fn the_port_is_the_named_one_or_the_only_one() {
        let of = |ports: Vec<ServicePort>, name: Option<&str>| {
            let service = service().annotations(&[NAME, AT]).with(|it| it.ports = ports);
            let asked: Vec<_> =
                name.map(|it| ("consul8s/service.port_name", it)).into_iter().collect();
            let (mut overrides, mut problems) = (Overrides::default(), Vec::new());
            read(&service.annotations(&asked).build(), &mut overrides, &mut problems);
            (overrides.port.map(String::from), problems.len())
        };
        let two = || vec![port("", 1), port("http", 80)];
        assert_eq!(of(vec![port("http", 80)], None), (None, 0));
        assert_eq!(of(two(), Some("http")), (Some("http".to_owned()), 0), "behind an unnamed one");
        assert_eq!(of(two(), None), (None, 1));
        assert_eq!(of(vec![], None), (None, 1));
    }

    #[test]
    fn removal_is_asked_for_by_true_in_any_case_and_nothing_else() {
        for (value, wanted) in [("true", true), ("TRUE", true), ("1", false), (" true", false)] {
            let pair = ("consul8s/service.remove_registration", value);
            assert_eq!(
                asks_for_removal(&service().annotations(&[pair]).build()),
                wanted,
                "{value}"
            );
        }
    }
}
