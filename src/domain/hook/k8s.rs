//! Registration from a pod, its node and the environment.

pub mod probes;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::domain::hook::k8s::probes::{Attempt, attempt, check};
use crate::domain::hook::ports::{PortDefinitions, ServicePort};
use crate::domain::hook::{HookCheck, HookRegistration, Invalid, Target, authority, id, quoted};
use crate::domain::kube::pod::{Container, Pod};

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

/// Node labels with this in their key are tags, under what follows its first slash: zone, region,
/// and whatever else an operator put there.
const FAILURE_DOMAIN: &str = "failure-domain.beta.kubernetes.io";

/// Today's labels for the same, by tag, where the node has none of those.
const TOPOLOGY_LABELS: [(&str, &str); 2] =
    [("zone", "topology.kubernetes.io/zone"), ("region", "topology.kubernetes.io/region")];

/// What begins the tags that say whose an instance is.
const POD_NAME_TAG: &str = "k8sPodName: ";
const POD_NAMESPACE_TAG: &str = "k8sPodNamespace: ";

/// Interval and timeout of [`DefaultCheck::Tcp`]: Kubernetes' defaults of a probe.
const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_secs(10);
const DEFAULT_CHECK_TIMEOUT: Duration = Duration::from_secs(1);

/// What the environment and the flags add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// The text of `PORT_DEFINITIONS`, unless it is empty. It is read only for a pod that has the
    /// label [`SERVICE_LABEL`].
    pub port_definitions: Option<String>,
    /// `PORT_SERVICE`, unless it is empty.
    pub port_service: Option<String>,
    /// The check of an instance that no probe gives one.
    pub default_check: DefaultCheck,
}

/// The check of an instance that no probe gives one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DefaultCheck {
    /// None, as in consul-registration-hook: it passes until it is deregistered.
    #[default]
    None,
    /// A connection to its port.
    Tcp,
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

// === impl Pod ===

impl Pod {
    /// The service's name, if the pod is to be registered: an empty label is none.
    pub fn service_name(&self) -> Option<&str> {
        self.labels.get(SERVICE_LABEL).map(String::as_str).filter(|name| !name.trim().is_empty())
    }

    /// The tags by which its instances are known.
    pub fn identity_tags(&self) -> [String; 2] {
        [format!("{POD_NAME_TAG}{}", self.name), format!("{POD_NAMESPACE_TAG}{}", self.namespace)]
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
        tags.extend(failure_domain_tags(node_labels));
        let annotated = self.annotations.iter().filter(|(key, _)| key.starts_with(TAG_ANNOTATION));
        tags.extend(annotated.map(|(_, value)| value.clone()).filter(|value| !value.is_empty()));
        tags
    }
}

/// Zone and region first, then the others by their names.
fn failure_domain_tags(node_labels: &BTreeMap<String, String>) -> Vec<String> {
    let mut domains: Vec<(&str, &str)> = node_labels
        .iter()
        .filter(|(key, _)| key.contains(FAILURE_DOMAIN))
        .filter_map(|(key, value)| Some((key.split('/').nth(1)?, value.as_str())))
        .collect();
    for (tag, label) in TOPOLOGY_LABELS {
        if let Some(value) = node_labels.get(label)
            && domains.iter().all(|(name, _)| *name != tag)
        {
            domains.push((tag, value));
        }
    }
    let rank = |name: &str| TOPOLOGY_LABELS.iter().position(|(tag, _)| *tag == name);
    domains.sort_by_key(|(name, _)| (rank(name).unwrap_or(TOPOLOGY_LABELS.len()), *name));
    domains.into_iter().map(|(name, value)| format!("{name}:{value}")).collect()
}

/// Whether an instance at the address of the pod with these [`Pod::identity_tags`] is an earlier
/// pod's: it says whose it is, and it is another's.
pub fn is_of_another_pod(tags: &[impl AsRef<str>], identity: &[String; 2]) -> bool {
    let first = |prefix| tags.iter().map(AsRef::as_ref).find(|tag: &&str| tag.starts_with(prefix));
    let [name, namespace] = [first(POD_NAME_TAG), first(POD_NAMESPACE_TAG)];
    match (name, namespace) {
        (Some(name), Some(namespace)) => [name, namespace] != identity.each_ref().map(|it| &**it),
        _ => false,
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
    let mut warnings = Vec::new();
    let found = instances(pod, ip, node_labels, variables, &mut warnings)?;
    let Some(Instances { mut registrations, checked }) = found else {
        return Ok(Decision::default());
    };
    let address = ip.to_string();
    let check = checked.map(|it| check(pod, it, &address, &mut warnings)).transpose()?.flatten();
    for registration in &mut registrations {
        registration.check = match (&check, variables.default_check) {
            (Some(check), _) => Some(check.clone()),
            (None, DefaultCheck::Tcp) => Some(HookCheck {
                target: Target::Tcp(authority(&address, registration.port)),
                interval: DEFAULT_CHECK_INTERVAL,
                timeout: DEFAULT_CHECK_TIMEOUT,
                begins_passing: false,
            }),
            (None, DefaultCheck::None) => None,
        };
    }
    if registrations.iter().any(|registration| registration.check.is_none()) {
        warnings.push(
            "no probe gives a check that Consul can run: the instance passes until it is \
             deregistered, also when the pod dies without its preStop hook; --default-check tcp \
             checks its port"
                .to_owned(),
        );
    }
    let probe = pod.containers.first().map(|it| attempt(pod, it, &address)).transpose()?.flatten();
    Ok(Decision { stale: stale(&registrations), probe, registrations, warnings })
}

/// The instances of a pod that has this address, for whom only their IDs and names matter: none
/// of what is wrong with a probe keeps them from being deregistered.
pub fn registered(
    pod: &Pod,
    ip: IpAddr,
    variables: &Variables,
) -> Result<Vec<HookRegistration>, Invalid> {
    let found = instances(pod, ip, &BTreeMap::new(), variables, &mut Vec::new())?;
    Ok(found.map(|found| found.registrations).unwrap_or_default())
}

/// The instances of a pod, without their checks.
struct Instances<'a> {
    registrations: Vec<HookRegistration>,
    /// The container whose probes give their checks.
    checked: Option<&'a Container>,
}

/// None for a pod without the label.
fn instances<'a>(
    pod: &'a Pod,
    ip: IpAddr,
    node_labels: &BTreeMap<String, String>,
    variables: &Variables,
    warnings: &mut Vec<String>,
) -> Result<Option<Instances<'a>>, Invalid> {
    let Some(name) = pod.service_name() else { return Ok(None) };
    let address = ip.to_string();
    let tags = pod.tags(node_labels);
    let definitions = variables.port_definitions.as_deref().map(PortDefinitions::parse);
    if let Some(definitions) = definitions.transpose()?.flatten() {
        let services = definitions.services(name, warnings)?;
        if services.is_empty() {
            warnings.push("PORT_DEFINITIONS has no port: nothing is registered".to_owned());
        }
        let instance = |service| defined(pod, &address, service, &tags, variables);
        let mut registrations = services.iter().map(instance).collect();
        drop_repeated(&mut registrations, warnings);
        return Ok(Some(Instances { registrations, checked: pod.containers.first() }));
    }
    let (container, port) = pod.registered_port()?;
    let mut tags = tags;
    tags.extend(variables.service_port_tag());
    tags.push(instance_tag(pod, port));
    let registration = HookRegistration {
        id: id(&address, port),
        name: name.to_owned(),
        port,
        tags,
        check: None,
        address,
    };
    Ok(Some(Instances { registrations: vec![registration], checked: Some(container) }))
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

// === impl Decision ===

impl Decision {
    /// What the checks ask, each once, but for `proven`, which was just asked with success or at
    /// length in vain.
    pub fn targets_to_try(&self, proven: Option<&Target>) -> Vec<(Target, Duration)> {
        let mut targets: Vec<(Target, Duration)> = Vec::new();
        for check in self.registrations.iter().filter_map(|it| it.check.as_ref()) {
            let is_known = |target: &Target| *target == check.target;
            if !proven.is_some_and(is_known) && !targets.iter().any(|(it, _)| is_known(it)) {
                targets.push((check.target.clone(), check.interval));
            }
        }
        targets
    }

    /// IDs of the instances whose check cannot be tried but by the agent.
    pub fn unproven(&self) -> Vec<&str> {
        let is_grpc = |check: &HookCheck| matches!(check.target, Target::Grpc { .. });
        let registrations = self.registrations.iter();
        registrations
            .filter(|it| it.check.as_ref().is_some_and(is_grpc))
            .map(|it| &*it.id)
            .collect()
    }

    /// Notes that this was asked with success: the checks that ask the same begin as passing. Of
    /// gRPC only the connection is tried, which proves nothing.
    pub fn mark_passing(&mut self, target: &Target) {
        if matches!(target, Target::Grpc { .. }) {
            return;
        }
        let checks = self.registrations.iter_mut().filter_map(|it| it.check.as_mut());
        for check in checks.filter(|check| check.target == *target) {
            check.begins_passing = true;
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
