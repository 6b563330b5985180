//! From a pod to its registrations, and whether it is ready.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::consul::record::KATALOG_SYNC_META;
use crate::domain::kube::names::ObjectKey;
use crate::domain::node::annotations::{Health, NamedSidecar, Reader};
use crate::domain::node::pod::{Phase, Pod};
use crate::domain::node::sidecar::Sidecar;
use crate::domain::problem::Problem;

/// Meta by which katalog-sync, and this, know their own registrations.
pub const MARK: (&str, &str) = (KATALOG_SYNC_META, "katalog-sync");
/// Meta that names the pod of a registration: `namespace/name`.
pub const LINK: &str = "external-k8s-link";
/// Less would be more than a heartbeat a second.
const MIN_TTL: Duration = Duration::from_secs(1);
/// More is as good as none, and Consul takes at most 292 years.
const MAX_TTL: Duration = Duration::from_hours(365 * 24);
/// Begins the output of a check that a sidecar deregistered; the sidecar's restarts follow. It is how
/// a daemon knows after its own restart.
const DEREGISTERED: &str = "deregistered by its sidecar, restart ";

/// What is wanted where annotations say nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// Of `sync-interval`: only the TTL depends on it.
    pub sync_interval: Duration,
    /// Of `service-check-ttl`.
    pub check_ttl: Duration,
    /// By how much a TTL exceeds the interval at least.
    pub ttl_buffer: Duration,
    /// After so long in a critical state the agent removes a registration.
    pub deregister_critical_after: Option<Duration>,
}

/// A registration as it is wanted, but for the status of its check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The service ID, which is the check's too.
    pub id: Box<str>,
    /// The Consul service.
    pub name: Box<str>,
    /// The pod's address.
    pub address: Box<str>,
    /// Its port.
    pub port: u16,
    /// Its tags, kept once for all names of a pod that share them.
    pub tags: Arc<[String]>,
    /// Its meta, ours included, kept once likewise.
    pub meta: Arc<BTreeMap<String, String>>,
    /// Within which the check has to be refreshed. None in what others registered: the agent does not
    /// say.
    pub ttl: Option<Duration>,
    /// After so long in a critical state the agent removes it. None in what the agent shows.
    pub deregister_critical_after: Option<Duration>,
}

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CheckStatus {
    /// Answers show the service.
    Passing,
    /// Answers show it, those for passing services alone do not.
    Warning,
    /// DNS answers leave it out.
    Critical,
}

/// A check's status with its output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// The status.
    pub status: CheckStatus,
    /// Whether annotations fix it.
    pub is_fixed: bool,
    /// The output: which container is ready.
    pub output: Arc<str>,
}

/// All that a pod wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its registrations.
    pub registrations: Vec<(Registration, State)>,
    /// Whether its containers are ready, the sidecar not counted.
    pub is_ready: bool,
    /// Whether it asks to be registered at all.
    pub is_ours: bool,
    /// The container of its sidecar.
    pub sidecar: Option<Box<str>>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// What this pod wants. `sidecar`: what is known of its sidecar.
pub fn wanted(key: &ObjectKey, pod: &Pod, sidecar: Sidecar, defaults: &Defaults) -> Wanted {
    let mut reader = Reader::new(pod, our_meta(key));
    let Some(names) = reader.names() else { return Wanted::default() };
    let mut wanted = Wanted { is_ours: true, ..Wanted::default() };
    let container = match reader.sidecar() {
        NamedSidecar::None => None,
        NamedSidecar::Container(name) => Some(name),
        NamedSidecar::Unknown => return Wanted { problems: reader.problems(), ..wanted },
    };
    wanted.sidecar = container.map(Into::into);
    let excluded = reader.excluded();
    let counted = || {
        pod.containers.iter().filter(|it| {
            Some(&*it.name) != container && !excluded.iter().any(|name| **name == *it.name)
        })
    };
    // Each container of the spec needs a ready status: one that has none yet is not ready.
    wanted.is_ready = counted().all(|it| it.status.is_some_and(|status| status.is_ready));
    let interval = reader.duration("sync-interval").unwrap_or(defaults.sync_interval);
    let ttl = reader.duration("service-check-ttl").unwrap_or(defaults.check_ttl);
    let ttl = ttl.max(interval.saturating_add(defaults.ttl_buffer)).clamp(MIN_TTL, MAX_TTL);
    // Consul is told no less than that, and shows it again.
    let ttl = Duration::from_millis(u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
    let holds = container.is_some() && sidecar != Sidecar::Registered;
    let output: Arc<str> = match sidecar {
        Sidecar::Deregistered { restarts } if container.is_some() => {
            format!("{DEREGISTERED}{restarts}").into()
        }
        _ if holds || pod.is_terminating => "null".into(),
        _ => readiness_map(counted().map(|it| (&*it.name, it.status.unwrap_or_default().is_ready))),
    };
    let is_passing = wanted.is_ready && !holds && !pod.is_terminating;
    if pod.phase != Phase::Running {
        wanted.problems = reader.problems();
        return wanted;
    }
    let Some(address) = &pod.ip else {
        if !names.is_empty() && !pod.is_terminating {
            let message = "the pod runs and has no address yet: it is registered once it has one";
            reader.incomplete(message);
        }
        wanted.problems = reader.problems();
        return wanted;
    };
    for name in names {
        let health = reader.health(&name);
        let status = match health {
            Some(Health::Passing) => CheckStatus::Passing,
            Some(Health::Warning) => CheckStatus::Warning,
            None if is_passing => CheckStatus::Passing,
            Some(Health::Critical) | None => CheckStatus::Critical,
        };
        let is_fixed = health.is_some();
        let registration = Registration {
            id: service_id(&name, key).into(),
            address: address.clone(),
            port: reader.port(&name),
            tags: reader.tags(&name),
            meta: reader.meta(&name),
            ttl: Some(ttl),
            deregister_critical_after: defaults.deregister_critical_after,
            name,
        };
        let state = State { status, is_fixed, output: Arc::clone(&output) };
        wanted.registrations.push((registration, state));
    }
    wanted.problems = reader.problems();
    wanted
}

/// The ID of a pod's registration under a name, as katalog-sync makes it.
pub fn service_id(name: &str, pod: &ObjectKey) -> String {
    format!("katalog-sync_{name}_{}_{}", pod.namespace, pod.name)
}

/// The restarts of the sidecar that deregistered a check with this output, if one did. When the TTL
/// has run out Consul quotes the last output.
pub fn deregistered(output: &str) -> Option<i32> {
    let (_, rest) = output.split_once(DEREGISTERED)?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).map_or(rest, |end| &rest[..end]);
    digits.parse().ok()
}

/// As Go prints a map with an indent of two.
fn readiness_map<'a>(containers: impl Iterator<Item = (&'a str, bool)>) -> Arc<str> {
    let sorted: BTreeMap<_, _> = containers.collect();
    let lines: Vec<_> = sorted.iter().map(|(name, ready)| format!("  {name:?}: {ready}")).collect();
    if lines.is_empty() {
        return "{}".into();
    }
    format!("{{\n{}\n}}", lines.join(",\n")).into()
}

fn our_meta(pod: &ObjectKey) -> [(String, String); 5] {
    [
        ("external-source", "kubernetes".to_owned()),
        (MARK.0, MARK.1.to_owned()),
        (LINK, pod.to_string()),
        ("external-k8s-namespace", pod.namespace.to_string()),
        ("external-k8s-pod", pod.name.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
}

// === impl Registration ===

impl Registration {
    /// Whether the agent has it so, as far as it shows.
    pub fn equals(&self, found: &Self) -> bool {
        let after = found.deregister_critical_after;
        (found.ttl.is_none() || self.ttl == found.ttl)
            && (after.is_none() || self.deregister_critical_after == after)
            && self.name == found.name
            && self.address == found.address
            && self.port == found.port
            && self.tags == found.tags
            && self.meta == found.meta
    }
}

// === impl CheckStatus ===

impl CheckStatus {
    /// The word by which Consul knows it.
    pub fn as_str(self) -> &'static str {
        match self {
            CheckStatus::Passing => "passing",
            CheckStatus::Warning => "warning",
            CheckStatus::Critical => "critical",
        }
    }

    /// The status that Consul calls so.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical].into_iter().find(|it| it.as_str() == text)
    }
}
