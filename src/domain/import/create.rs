//! Which Services are made for Consul services, and how each of them ought to be.

use crate::domain::consul::names::lookup_form;
use crate::domain::hash::fnv1a_32;
use crate::domain::import::instance::Instance;
use crate::domain::import::layout::ServicePort;
use crate::domain::import::object::{Form, Service};
use crate::domain::import::source::{
    IMPORT, MAX_NAME as MAX_CONSUL_NAME, Pairs, SERVICE_SYNC, Source, TAGS, is_name,
};
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::excerpt;

/// The longest name of a Service: one DNS label.
const MAX_NAME: usize = 63;
/// The name of the API server's own Service. One beside it would be taken for it.
const API_SERVER: &str = "kubernetes";
/// The name of Consul's own servers in its catalog.
const CONSULS_OWN: &str = "consul";
/// Put before a name that is none without it.
const BEGINNING: &str = "svc-";

/// Which Services are made, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Create {
    /// Where they are made.
    pub namespace: Box<str>,
    /// The names that are wanted; none: all but Consul's own, proxies and gateways.
    pub patterns: Vec<Pattern>,
    /// Tags each of which an instance has to have.
    pub tags: Vec<Box<str>>,
    /// What each name begins with.
    pub prefix: Box<str>,
    /// What kind of Service.
    pub form: CreateAs,
    /// Consul's DNS domain, of which an `ExternalName` is.
    pub domain: Box<str>,
    /// Whether Services that consul-k8s made are taken over.
    pub adopts: bool,
}

/// What kind of Service is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateAs {
    /// Without a cluster IP: its name is answered with the instances' addresses.
    Headless,
    /// With a cluster IP.
    ClusterIp,
    /// A CNAME record of Consul's DNS, as consul-k8s makes it.
    ExternalName,
}

/// A name in which `*` stands for any characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Box<str>);

/// A Service as it ought to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The annotations that it has to have.
    pub annotations: Pairs,
    /// Its kind.
    pub form: Form,
    /// The number of its port, with protocol; none of one without ports.
    pub port: Option<(u16, Box<str>)>,
}

// === impl Create ===

impl Create {
    /// Whether a name is wanted, whatever its instances are.
    pub fn selects(&self, name: &str) -> bool {
        if self.patterns.is_empty() {
            return *lookup_form(name) != *CONSULS_OWN;
        }
        self.patterns.iter().any(|pattern| pattern.matches(name))
    }

    /// Whether proxies and gateways are wanted as well: only by name.
    pub fn takes_proxies(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// The name of the Service that is made for a Consul service; none for one that cannot be asked
    /// for, and for the API server's own.
    pub fn service_name(&self, name: &str) -> Option<Box<str>> {
        // The annotation that names it is trimmed: one with blanks around it would be another's.
        if !is_name(name) || name.len() > MAX_CONSUL_NAME || name.trim() != name {
            return None;
        }
        let valid = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let text: String = self.prefix.chars().chain(name.chars().map(valid)).collect();
        let mut text = text.trim_matches('-').to_owned();
        let hash = || format!("{:08x}", fnv1a_32(lookup_form(name).bytes()));
        if text.is_empty() {
            text = format!("{BEGINNING}{}", hash());
        }
        if !text.starts_with(|c: char| c.is_ascii_lowercase()) {
            text.insert_str(0, BEGINNING);
        }
        if text.len() > MAX_NAME {
            // With a hash, or two long names would be one.
            let hash = hash();
            text.truncate(MAX_NAME - 1 - hash.len());
            text = format!("{}-{hash}", text.trim_end_matches('-'));
        }
        (text != API_SERVER).then(|| text.into())
    }

    /// What is followed for a Consul service.
    pub fn source(&self, name: &str) -> Source {
        let mut tags = self.tags.clone();
        tags.sort();
        tags.dedup();
        Source { service: name.into(), datacenter: None, tags: tags.into(), filter: None }
    }

    /// How the Service ought to be for a Consul service with these instances, given how it is.
    pub fn wanted(
        &self,
        name: &str,
        instances: &[&Instance],
        is: Option<&Service>,
    ) -> Result<Wanted, Problem> {
        let mut annotations: Pairs =
            [(IMPORT.into(), name.into()), (SERVICE_SYNC.into(), "false".into())].into();
        if !self.tags.is_empty() {
            annotations.insert(TAGS.into(), self.tags.join(",").into());
        }
        let form = match self.form {
            CreateAs::Headless => Form::Headless,
            CreateAs::ClusterIp => Form::ClusterIp,
            CreateAs::ExternalName => Form::ExternalName(self.external_name(name)?),
        };
        let port = match form {
            Form::ExternalName(_) => None,
            _ => Some(port(name, instances, is)?),
        };
        Ok(Wanted { annotations, form, port })
    }

    /// The name in Consul's DNS.
    fn external_name(&self, name: &str) -> Result<Box<str>, Problem> {
        let label = name.to_lowercase();
        let is_valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
        let is_label = label.bytes().all(is_valid)
            && (1..=MAX_NAME).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-');
        if is_label {
            return Ok(format!("{label}.service.{}", self.domain).into());
        }
        let message = format!(
            "Consul service {:?}: expected a name that DNS and an ExternalName can carry, found one \
             that they cannot; use --create-as headless or cluster-ip",
            excerpt(name),
        );
        Err(Problem::new(Reason::InvalidName, message))
    }
}

/// The port of the Service: the one that it has while an instance has it too, so that it does not
/// change with each instance that comes; else the lowest.
fn port(
    name: &str,
    instances: &[&Instance],
    is: Option<&Service>,
) -> Result<(u16, Box<str>), Problem> {
    let has = is.and_then(|service| service.port);
    let all = || instances.iter().filter(|it| it.port > 0);
    let found = all().find(|it| Some(it.port) == has).or_else(|| all().min_by_key(|it| it.port));
    let Some(found) = found else {
        let message = format!(
            "Consul service {:?}: expected an instance with a port, found none; a Service needs one",
            excerpt(name),
        );
        return Err(Problem::new(Reason::Incomplete, message));
    };
    Ok((found.port, found.protocol.as_str().into()))
}

// === impl Wanted ===

impl Wanted {
    /// Whether the Service is so.
    pub fn is_met_by(&self, service: &Service) -> bool {
        let has = |(key, value)| service.annotations.get(key) == Some(value);
        let ports = match &self.port {
            None => true,
            Some((number, protocol)) => {
                service.port == Some(*number)
                    && matches!(&service.ports[..], [(_, it)] if it == protocol)
            }
        };
        service.is_created()
            && self.annotations.iter().all(has)
            && service.form == self.form
            && ports
    }

    /// Its ports, as its slices name them.
    pub fn ports(&self) -> Vec<ServicePort> {
        self.port.iter().map(|(_, protocol)| ("".into(), protocol.clone())).collect()
    }
}

// === impl Pattern ===

impl Pattern {
    /// Whether a name is such, without regard to case as Consul has it.
    pub fn matches(&self, name: &str) -> bool {
        let name = lookup_form(name);
        let mut parts = self.0.split('*');
        let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else {
            return false;
        };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        rest.ends_with(last)
    }
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        Self(lookup_form(text.trim()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(prefix: &str) -> Create {
        Create {
            namespace: "consul".into(),
            patterns: vec![],
            tags: vec![],
            prefix: prefix.into(),
            form: CreateAs::Headless,
            domain: "consul".into(),
            adopts: false,
        }
    }

    #[test]
    fn i13_names_are_made_valid() {
        let long = "x".repeat(70);
        for (prefix, name, wanted) in [
            ("", "web", "web"),
            ("", "ORDER-API", "order-api"),
            ("", "echo_default", "echo-default"),
            ("", "1st", "svc-1st"),
            ("", "a.b c/d", "a-b-c-d"),
            ("", "-x-", "x"),
            ("c-", "1st", "c-1st"),
        ] {
            assert_eq!(create(prefix).service_name(name).as_deref(), Some(wanted), "{name}");
        }
        for (name, begins, length) in [("äö", "svc-", 12), (&*long, "xxxx", MAX_NAME)] {
            let found = create("").service_name(name).unwrap();
            assert!(found.starts_with(begins) && found.len() == length, "{found}");
        }
        let other = format!("{long}y");
        assert_ne!(create("").service_name(&long), create("").service_name(&other));
        for name in ["Kubernetes", "..", ".", "a\nb", " web", "web\u{a0}", &"x".repeat(256)] {
            assert_eq!(create("").service_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn i13_consuls_own_name_is_taken_only_when_it_is_asked_for() {
        let mut create = create("");
        assert!(create.selects("web") && !create.selects("consul") && !create.selects("Consul"));
        create.patterns = vec!["consul".into(), "db-*".into()];
        assert!(create.selects("consul") && create.selects("DB-1") && !create.selects("web"));
    }

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, wanted) in [
            ("*", "web", true),
            ("web", "web", true),
            ("web", "web2", false),
            ("web*", "web", true),
            ("*-db", "orders-db", true),
            ("*-db", "orders-db2", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b", "ab", true),
            ("ab*ba", "aba", false),
            ("WEB", "web", true),
        ] {
            assert_eq!(Pattern::from(pattern).matches(name), wanted, "{pattern} {name}");
        }
    }
}
