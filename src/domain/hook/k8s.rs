//! Registration from a pod, its node and the environment.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::domain::hook::ports::{PortDefinitions, ServicePort};
use crate::domain::hook::{
    HookCheck, HookRegistration, Invalid, Target, authority, id, quoted, url,
};

/// Label that names the service; a pod without it is not registered.
pub const SERVICE_LABEL: &str = "consul";

/// Label that names the container whose port is registered.
const CONTAINER_LABEL: &str = "consulContainer";

/// Annotations with keys that begin so are tags.
const TAG_ANNOTATION: &str = "CONSUL_TAG_";

/// In a service's name: the instance has an ID of its own, beside that of its plain port.
const SECURED: &str = "-secured";

/// Tags of a load balancer, which a secured instance does not get.
const LOAD_BALANCER_TAG: &str = "lbaas:";

const SERVICE_PORT_TAG: &str = "service-port:";

/// Node labels by the tag that they become; the first that is there is taken.
const ZONE_LABELS: [(&str, [&str; 2]); 2] = [
    ("zone", ["topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone"]),
    ("region", ["topology.kubernetes.io/region", "failure-domain.beta.kubernetes.io/region"]),
];

/// The parts of a pod that a registration is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its first address, once it has one.
    pub ip: Option<IpAddr>,
    /// The node that it was assigned to.
    pub node: Option<String>,
    /// Whether it has a deletion timestamp.
    pub terminating: bool,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its containers, in their order.
    pub containers: Vec<Container>,
    /// Its init containers that run beside them (`restartPolicy: Always`). They are registered
    /// only where they are named: the first container is an application's.
    pub sidecars: Vec<Container>,
}

/// A container of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its declared ports, in their order.
    pub ports: Vec<ContainerPort>,
    /// Whether it has started.
    pub startup: Option<Probe>,
    /// Whether it is to get traffic.
    pub readiness: Option<Probe>,
    /// Whether it is to be restarted.
    pub liveness: Option<Probe>,
}

/// A declared port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContainerPort {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its number.
    pub port: u16,
}

/// A probe, with Kubernetes' defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What it does.
    pub action: Action,
    /// Time from the container's start to the first try.
    pub initial_delay: Duration,
    /// Time from one try to the next.
    pub period: Duration,
    /// Time that an answer may take.
    pub timeout: Duration,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// GET.
    Http {
        /// Whether by HTTPS.
        https: bool,
        /// Another host than the pod's address.
        host: Option<String>,
        /// The port.
        port: Port,
        /// Path and query.
        path: String,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// A connection.
    Tcp {
        /// Another host than the pod's address.
        host: Option<String>,
        /// The port.
        port: Port,
    },
    /// gRPC's health protocol.
    Grpc {
        /// The port.
        port: u16,
        /// The service to ask about.
        service: Option<String>,
    },
    /// A command in the container.
    Exec,
    /// Nothing that this program knows.
    Unknown,
}

/// A probe's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Its number.
    Number(u16),
    /// The name of a port of the probe's container.
    Name(String),
}

/// What the environment adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// `PORT_DEFINITIONS`, unless it is empty.
    pub port_definitions: Option<PortDefinitions>,
    /// `PORT_SERVICE`, unless it is empty.
    pub port_service: Option<String>,
}

/// What to register, and what to do before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The instances, each with an ID of its own.
    pub registrations: Vec<HookRegistration>,
    /// IDs of secured instances that an earlier owner of the address may have left.
    pub stale: Vec<String>,
    /// What has to succeed before anything is registered.
    pub probe: Option<Attempt>,
    /// What is odd about the pod, for its owner.
    pub warnings: Vec<String>,
}

/// A probe to try until it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What is asked.
    pub target: Target,
    /// Time to the first try.
    pub initial_delay: Duration,
    /// Time from one try to the next.
    pub period: Duration,
}

// === impl Pod ===

impl Pod {
    /// Whether it has a label that names a service.
    pub fn is_labelled(&self) -> bool {
        self.labels.get(SERVICE_LABEL).is_some_and(|name| !name.trim().is_empty())
    }

    /// The service's name, if the pod is to be registered.
    pub fn service_name(&self) -> Result<Option<&str>, Invalid> {
        let Some(name) = self.labels.get(SERVICE_LABEL) else { return Ok(None) };
        if name.trim().is_empty() {
            return Err(Invalid::Label {
                label: SERVICE_LABEL,
                object: self.described(),
                expected: "a service name".to_owned(),
                found: quoted(name),
            });
        }
        Ok(Some(name))
    }

    /// The tags by which its instances are known.
    pub fn identity_tags(&self) -> [String; 2] {
        [format!("k8sPodName: {}", self.name), format!("k8sPodNamespace: {}", self.namespace)]
    }

    fn described(&self) -> String {
        format!("pod {}/{}", self.namespace, self.name)
    }

    /// The container whose first port is registered, and that port.
    fn registered_port(&self) -> Result<(&Container, u16), Invalid> {
        let container = match self.labels.get(CONTAINER_LABEL) {
            Some(name) => {
                let all = || self.containers.iter().chain(&self.sidecars);
                Some(all().find(|container| container.name == *name).ok_or_else(|| {
                    let names: Vec<_> = all().map(|it| it.name.as_str()).collect();
                    Invalid::Label {
                        label: CONTAINER_LABEL,
                        object: self.described(),
                        expected: format!("one of its containers ({})", names.join(", ")),
                        found: quoted(name),
                    }
                })?)
            }
            None => self.containers.iter().find(|container| !container.ports.is_empty()),
        };
        container
            .and_then(|container| Some((container, container.ports.first()?.port)))
            .ok_or_else(|| Invalid::NoPort { object: self.described() })
    }

    /// The tags of every instance, in the order that users know.
    fn tags(&self, node_labels: &BTreeMap<String, String>) -> Vec<String> {
        let mut tags = self.identity_tags().to_vec();
        for (tag, labels) in ZONE_LABELS {
            let value = labels.iter().find_map(|label| node_labels.get(*label));
            tags.extend(value.map(|value| format!("{tag}:{value}")));
        }
        let annotated = self.annotations.iter().filter(|(key, _)| key.starts_with(TAG_ANNOTATION));
        tags.extend(annotated.map(|(_, value)| value.clone()).filter(|value| !value.is_empty()));
        tags
    }
}

/// Decides for a pod that has this address. A pod without the label [`SERVICE_LABEL`] gets an
/// empty decision.
pub fn decide(
    pod: &Pod,
    ip: IpAddr,
    node_labels: &BTreeMap<String, String>,
    variables: &Variables,
) -> Result<Decision, Invalid> {
    let Some(name) = pod.service_name()? else { return Ok(Decision::default()) };
    let address = ip.to_string();
    let tags = pod.tags(node_labels);
    let mut warnings = Vec::new();
    let mut registrations = if let Some(definitions) = &variables.port_definitions {
        let check = pod.containers.first().and_then(|it| check(it, &address, &mut warnings));
        let services = definitions.services(name);
        if services.is_empty() {
            warnings.push("PORT_DEFINITIONS has no port: nothing is registered".to_owned());
        }
        let instance = |service| HookRegistration {
            check: check.clone(),
            ..defined(pod, &address, service, &tags, variables)
        };
        services.iter().map(instance).collect()
    } else {
        let (container, port) = pod.registered_port()?;
        let mut tags = tags;
        tags.extend(variables.service_port_tag());
        tags.push(instance_tag(pod, port));
        vec![HookRegistration {
            id: id(&address, port),
            name: name.to_owned(),
            port,
            tags,
            check: check(container, &address, &mut warnings),
            address: address.clone(),
        }]
    };
    drop_repeated(&mut registrations, &mut warnings);
    let probe = pod.containers.first().and_then(|it| attempt(it, &address, &mut warnings));
    if let Some(probe) = &probe {
        for check in registrations.iter_mut().filter_map(|it| it.check.as_mut()) {
            check.begins_passing = probe.proves(&check.target);
        }
    }
    Ok(Decision { stale: stale(&registrations), probe, registrations, warnings })
}

/// The instance of a defined port, without its check.
fn defined(
    pod: &Pod,
    address: &str,
    service: &ServicePort<'_>,
    tags: &[String],
    variables: &Variables,
) -> HookRegistration {
    let secured = service.name.contains(SECURED);
    let suffix = if secured { SECURED } else { "" };
    let dropped = |tag: &String| secured && tag.starts_with(LOAD_BALANCER_TAG);
    let mut tags: Vec<String> = tags.iter().filter(|tag| !dropped(tag)).cloned().collect();
    tags.extend(service.tags.iter().map(|tag| (*tag).to_owned()));
    tags.push(instance_tag(pod, service.port));
    if !tags.iter().any(|tag| tag.contains(SERVICE_PORT_TAG)) {
        tags.extend(variables.service_port_tag());
    }
    HookRegistration {
        id: id(address, service.port) + suffix,
        name: service.name.to_owned(),
        address: address.to_owned(),
        port: service.port,
        tags,
        check: None,
    }
}

fn instance_tag(pod: &Pod, port: u16) -> String {
    format!("instance:{}_{port}", pod.name)
}

/// Of two instances with one ID the second would overwrite the first.
fn drop_repeated(registrations: &mut Vec<HookRegistration>, warnings: &mut Vec<String>) {
    let mut kept: Vec<HookRegistration> = Vec::with_capacity(registrations.len());
    for registration in registrations.drain(..) {
        if let Some(earlier) = kept.iter_mut().find(|it| it.id == registration.id) {
            warnings.push(format!(
                "port {} is defined more than once: expected one service, found {:?} and {:?}; \
                 the last is registered",
                registration.port, earlier.name, registration.name
            ));
            *earlier = registration;
        } else {
            kept.push(registration);
        }
    }
    *registrations = kept;
}

/// The secured twins of what is registered plainly, unless they are registered too.
fn stale(registrations: &[HookRegistration]) -> Vec<String> {
    registrations
        .iter()
        .filter(|registration| !registration.id.ends_with(SECURED))
        .map(|registration| format!("{}{SECURED}", registration.id))
        .filter(|secured| registrations.iter().all(|other| other.id != *secured))
        .collect()
}

/// Consul's check: the readiness probe, else the liveness probe, at the pod's address.
fn check(container: &Container, address: &str, warnings: &mut Vec<String>) -> Option<HookCheck> {
    let (kind, probe) = match (&container.readiness, &container.liveness) {
        (Some(probe), _) => ("readiness", probe),
        (None, Some(probe)) => ("liveness", probe),
        (None, None) => return None,
    };
    match target(container, &probe.action, address, Asker::Agent) {
        Ok(target) => Some(HookCheck {
            target,
            interval: probe.period,
            timeout: probe.timeout,
            begins_passing: false,
        }),
        Err(why) => {
            let name = &container.name;
            warnings.push(format!(
                "{kind} probe of container {name:?}: {why}; the instance is registered without a \
                 check and is not removed by itself when it dies"
            ));
            None
        }
    }
}

/// What is tried before registering: the startup probe, else the readiness probe.
fn attempt(container: &Container, address: &str, warnings: &mut Vec<String>) -> Option<Attempt> {
    let (kind, probe) = match (&container.startup, &container.readiness) {
        (Some(probe), _) => ("startup", probe),
        (None, Some(probe)) => ("readiness", probe),
        (None, None) => return None,
    };
    match target(container, &probe.action, address, Asker::Hook) {
        Ok(target) => {
            Some(Attempt { target, initial_delay: probe.initial_delay, period: probe.period })
        }
        Err(why) => {
            let name = &container.name;
            warnings.push(format!(
                "{kind} probe of container {name:?}: {why}; the instance is registered without \
                 waiting for it"
            ));
            None
        }
    }
}

/// Who asks: the probe's own host is where the kubelet would ask, and may be a loopback address
/// that is another's for an agent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asker {
    Agent,
    Hook,
}

fn target(
    container: &Container,
    action: &Action,
    address: &str,
    asker: Asker,
) -> Result<Target, String> {
    let host_of = |host: &Option<String>| match (asker, host) {
        (Asker::Hook, Some(host)) => host.clone(),
        _ => address.to_owned(),
    };
    match action {
        Action::Http { https, host, port, path, headers } => {
            let scheme = if *https { "https" } else { "http" };
            let url = url(scheme, &host_of(host), container.resolve(port)?, path);
            Ok(Target::Http { url, headers: headers.clone() })
        }
        Action::Tcp { host, port } => {
            Ok(Target::Tcp(authority(&host_of(host), container.resolve(port)?)))
        }
        Action::Grpc { port, service } => Ok(Target::Grpc {
            address: authority(address, *port),
            service: service.clone().filter(|service| !service.is_empty()),
        }),
        Action::Exec => {
            Err("expected one by HTTP, TCP or gRPC, found a command, which runs only in its \
                 container"
                .to_owned())
        }
        Action::Unknown => Err("expected one by HTTP, TCP or gRPC, found another".to_owned()),
    }
}

// === impl Attempt ===

impl Attempt {
    /// Whether its success is that of a check. Of gRPC only the connection is tried.
    fn proves(&self, checked: &Target) -> bool {
        self.target == *checked && !matches!(checked, Target::Grpc { .. })
    }
}

// === impl Container ===

impl Container {
    fn resolve(&self, port: &Port) -> Result<u16, String> {
        match port {
            Port::Number(number) => Ok(*number),
            Port::Name(name) => self
                .ports
                .iter()
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| port.port)
                .ok_or_else(|| format!("expected a port of the container, found {}", quoted(name))),
        }
    }
}

// === impl Variables ===

impl Variables {
    fn service_port_tag(&self) -> Option<String> {
        self.port_service.as_ref().map(|port| format!("{SERVICE_PORT_TAG}{port}"))
    }
}

#[cfg(test)]
mod tests;
