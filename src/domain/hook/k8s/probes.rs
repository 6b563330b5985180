//! What a container's probes give: Consul's check, and what is tried before registering.

use std::time::Duration;

use crate::domain::hook::{HookCheck, Invalid, Target, authority, quoted, url};
use crate::domain::kube::pod::{Action, Container, Pod, Port};

/// A probe to try until it succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// What is asked; none: only the container can ask, and only its initial delay is waited for.
    pub target: Option<Target>,
    /// Time to the first try.
    pub initial_delay: Duration,
    /// Time from one try to the next.
    pub period: Duration,
}

/// Consul's check: the readiness probe, else the liveness probe, at the pod's address.
pub(super) fn check(
    pod: &Pod,
    container: &Container,
    address: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<HookCheck>, Invalid> {
    let (kind, probe) = match (&container.readiness, &container.liveness) {
        (Some(probe), _) => ("readiness", probe),
        (None, Some(probe)) => ("liveness", probe),
        (None, None) => return Ok(None),
    };
    let why = match target(container, &probe.action, address, Asker::Agent) {
        Ok(target) => {
            return Ok(Some(HookCheck {
                target,
                interval: probe.period,
                timeout: probe.timeout,
                begins_passing: false,
            }));
        }
        // The kubelet would never call the pod ready.
        Err(why @ Unusable::Port(_)) if kind == "readiness" => {
            return Err(why.of(pod, container, kind));
        }
        Err(why) => why,
    };
    warnings.push(format!("{kind} probe of container {:?}: {why}", container.name));
    Ok(None)
}

/// What is tried before registering: the startup probe, else the readiness probe.
pub(super) fn attempt(
    pod: &Pod,
    container: &Container,
    address: &str,
) -> Result<Option<Attempt>, Invalid> {
    let (kind, probe) = match (&container.startup, &container.readiness) {
        (Some(probe), _) => ("startup", probe),
        (None, Some(probe)) => ("readiness", probe),
        (None, None) => return Ok(None),
    };
    let target = match target(container, &probe.action, address, Asker::Hook) {
        Ok(target) => Some(target),
        Err(why @ Unusable::Port(_)) => return Err(why.of(pod, container, kind)),
        Err(Unusable::Action(_)) => None,
    };
    Ok(Some(Attempt { target, initial_delay: probe.initial_delay, period: probe.period }))
}

/// Why a probe gives nothing to ask.
#[derive(Debug, thiserror::Error)]
enum Unusable {
    /// Its port is a name that its container does not have: nobody can ask, the kubelet neither.
    #[error("expected the name of a port of the container, found {}", quoted(.0))]
    Port(String),
    /// Only the kubelet can ask.
    #[error("expected one by HTTP, TCP or gRPC, found {0}")]
    Action(&'static str),
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
) -> Result<Target, Unusable> {
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
        Action::Exec => Err(Unusable::Action("a command, which runs only in its container")),
        Action::Unknown => Err(Unusable::Action("another")),
    }
}

// === impl Unusable ===

impl Unusable {
    fn of(&self, pod: &Pod, container: &Container, kind: &'static str) -> Invalid {
        Invalid::Probe {
            object: pod.described(),
            probe: format!("{kind} probe of container {:?}", container.name),
            wrong: self.to_string(),
        }
    }
}

// === impl Container ===

impl Container {
    fn resolve(&self, port: &Port) -> Result<u16, Unusable> {
        match port {
            Port::Number(number) => Ok(*number),
            Port::Name(name) => self
                .ports
                .iter()
                .find(|port| port.name.as_ref() == Some(name))
                .map(|port| port.port)
                .ok_or_else(|| Unusable::Port(name.clone())),
        }
    }
}
