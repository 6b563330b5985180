//! Ingresses.

use std::collections::{BTreeSet, HashSet};

use serde::Deserialize;

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, SeenObject};
use crate::domain::kube::route::{Backend, BackendPort, Ingress, IngressRule};
use crate::kubernetes::routes::kept::{Kept, is_host, parts, usable};
use crate::kubernetes::slim::{Content, Identity, LeftOut, Watched, port_number};
use crate::kubernetes::wire::{ServiceStatus, Text};

/// `networking.k8s.io/v1` Ingresses.
#[derive(Clone, Copy, Debug)]
pub struct Ingresses;

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct IngressSpec<'a> {
    #[serde(borrow)]
    default_backend: Option<IngressBackend<'a>>,
    #[serde(borrow)]
    tls: Option<Vec<IngressTls<'a>>>,
    #[serde(borrow)]
    rules: Option<Vec<WireRule<'a>>>,
}

/// One that leads to another object than a Service has none.
#[derive(Deserialize)]
struct IngressBackend<'a> {
    #[serde(borrow)]
    service: Option<ServiceBackend<'a>>,
}

#[derive(Deserialize)]
struct ServiceBackend<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    port: Option<ServiceBackendPort<'a>>,
}

#[derive(Deserialize)]
struct ServiceBackendPort<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
    number: Option<i64>,
}

#[derive(Deserialize)]
struct IngressTls<'a> {
    #[serde(borrow)]
    hosts: Option<Vec<Text<'a>>>,
}

#[derive(Deserialize)]
struct WireRule<'a> {
    #[serde(borrow)]
    host: Option<Text<'a>>,
    #[serde(borrow)]
    http: Option<HttpRule<'a>>,
}

#[derive(Deserialize)]
struct HttpRule<'a> {
    #[serde(borrow)]
    paths: Option<Vec<HttpPath<'a>>>,
}

#[derive(Deserialize)]
struct HttpPath<'a> {
    #[serde(borrow)]
    backend: IngressBackend<'a>,
}

// === impl Watched ===

impl Watched for Ingresses {
    type Object = Ingress;
    type Seen = SeenObject;
    const KIND: Kind = Kind::Ingress;
    const GROUP: &'static str = "networking.k8s.io";
    const NAME: &'static str = "Ingress";
    const PLURAL: &'static str = "ingresses";
    const GRANTED_BY: &'static str = "manifests/optional/ingress-rbac.yaml";

    fn decode(json: &str) -> Result<(Identity, Content<Ingress>), serde_json::Error> {
        let (identity, spec, status) = parts::<IngressSpec<'_>, ServiceStatus<'_>>(json)?;
        let mut left_out = LeftOut::default();
        let rules = spec.rules(&mut left_out);
        let addresses = status.addresses();
        let addresses = usable(addresses.into_iter(), "status.loadBalancer", &mut left_out);
        let ingress = Ingress { rules, addresses, left_out: left_out.into_box() };
        Ok((identity, Content::Object(ingress)))
    }

    fn seen(key: ObjectKey, object: Ingress) -> SeenObject {
        SeenObject::Ingress(key, object)
    }
}

// === impl IngressSpec ===

impl IngressSpec<'_> {
    /// Where the rules lead, those without paths and what no rule has to the default backend.
    fn rules(self, left_out: &mut LeftOut) -> Box<[IngressRule]> {
        let tls = self.tls.unwrap_or_default();
        let covers_all = tls.iter().any(|it| it.hosts.as_ref().is_none_or(Vec::is_empty));
        let covered: HashSet<&str> =
            tls.iter().flat_map(|it| it.hosts.iter().flatten()).map(|host| &*host.0).collect();
        // A certificate for a wildcard is one for one label in its place.
        let is_covered = |host: &str| {
            let parent = host.split_once('.').map(|(_, parent)| format!("*.{parent}"));
            covers_all
                || covered.contains(host)
                || parent.is_some_and(|parent| covered.contains(&*parent))
        };
        let default = self.default_backend.and_then(IngressBackend::backend);
        let mut kept = Kept::default();
        for (index, rule) in self.rules.unwrap_or_default().into_iter().enumerate() {
            let host = rule.host.filter(|host| !host.0.is_empty()).map(Text::into_box);
            if let Some(host) = host.as_deref().filter(|host| !is_host(host)) {
                left_out.host(|| format!("spec.rules[{index}].host"), host);
                continue;
            }
            let tls = host.as_deref().map_or(covers_all, is_covered);
            let paths = rule.http.and_then(|http| http.paths);
            let backends: BTreeSet<Backend> = match paths {
                None => default.clone().into_iter().collect(),
                Some(paths) => paths.into_iter().filter_map(|it| it.backend.backend()).collect(),
            };
            for backend in backends {
                kept.add(IngressRule { backend, host: host.clone(), tls });
            }
        }
        if let Some(backend) = default {
            kept.add(IngressRule { backend, host: None, tls: covers_all });
        }
        kept.into_box("hosts of Services in spec.rules", left_out)
    }
}

// === impl IngressBackend ===

impl IngressBackend<'_> {
    fn backend(self) -> Option<Backend> {
        let service = self.service?;
        let port = service.port?;
        let name = port.name.filter(|name| !name.0.is_empty());
        let port = match name {
            Some(name) => BackendPort::Name(name.into_box()),
            None => BackendPort::Number(port_number(port.number?)?),
        };
        Some(Backend { service: service.name.into_box(), port })
    }
}
