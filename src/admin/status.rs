//! What `/status` and `/readyz` say.

use serde::Serialize;

use super::history::Series;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::problem::Problem;

/// Most Services and most problems on one page: bounds what one request costs the loop.
pub const PAGE: usize = 200;

/// Most tags that are shown of an instance.
pub const TAGS: usize = 20;

/// Most problems of one Service on a page: more of them are no easier to fix.
pub const MAX_PROBLEMS: usize = 20;

/// Whether the work is being done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It is.
    Ready,
    /// It is not, and why.
    NotReady(String),
}

/// What every daemon's page of `/status` begins with.
#[derive(Clone, Debug, Serialize)]
pub struct PageHead {
    /// The subcommand.
    command: &'static str,
    /// Version of this program.
    version: &'static str,
    /// Whether `/readyz` says 200.
    ready: bool,
    /// Why not.
    reason: Option<String>,
    /// The Kubernetes API, or the kubelet, wherever the objects come from.
    kubernetes: Peer,
    /// The Consul agent.
    consul: Peer,
    /// The watches of the Kubernetes API.
    watches: Vec<WatchStatus>,
}

/// One page of the bridge's `/status`; `node` and `import` have their own.
#[derive(Clone, Debug, Serialize)]
pub struct Page {
    /// What every daemon says.
    #[serde(flatten)]
    pub head: PageHead,
    /// Name of the cluster.
    pub cluster: String,
    /// Its identity, once it is known.
    pub cluster_uid: Option<String>,
    /// With an election: `leader`, or `standby` and who leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leadership: Option<String>,
    /// How many of what there are.
    pub counts: Counts,
    /// Whether removals are held back until they are confirmed.
    pub holding: bool,
    /// The last 15 minutes.
    pub history: Vec<Series>,
    /// Of how many objects and Services removals are held back.
    pub removals_held: usize,
    /// The first [`PAGE`] problems.
    pub problems: Vec<ObjectProblem>,
    /// At most [`PAGE`] Services of the namespaces that are registered, by namespace and name.
    pub services: Vec<ServiceStatus>,
    /// What `?after=` has to be for the next page; none: this is the last.
    pub next: Option<String>,
}

/// One of the two sides.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Peer {
    /// Where it is.
    pub url: String,
    /// Its version, once it is known.
    pub version: Option<String>,
    /// Consul's datacenter, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datacenter: Option<String>,
    /// The newest failure, while it fails.
    pub trouble: Option<String>,
}

/// How many of what there are.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Counts {
    /// Services in the cluster.
    pub services: usize,
    /// Our registrations in Consul.
    pub registrations: usize,
    /// Those of them whose check is critical.
    pub critical: usize,
    /// Our PTR records in Consul.
    pub ptr_records: usize,
    /// Services that are being brought in sync.
    pub backlog: usize,
    /// Problems.
    pub problems: usize,
}

/// A problem and the object that has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ObjectProblem {
    /// Kind of the object.
    pub kind: &'static str,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What kind of problem.
    pub reason: &'static str,
    /// What was expected, what was found and what to do.
    pub message: String,
}

// === impl PageHead ===

impl PageHead {
    /// That of `command`, which is ready unless there is a `reason` why not.
    pub fn new(
        command: &'static str,
        reason: Option<String>,
        kubernetes: Peer,
        consul: Peer,
        watches: Vec<WatchStatus>,
    ) -> Self {
        let (version, ready) = (env!("CARGO_PKG_VERSION"), reason.is_none());
        Self { command, version, ready, reason, kubernetes, consul, watches }
    }
}

// === impl ObjectProblem ===

impl ObjectProblem {
    /// This problem of this object.
    pub fn new((kind, key, problem): (Subject, &ObjectKey, &Problem)) -> Self {
        Self {
            kind: kind.as_str(),
            namespace: key.namespace.to_string(),
            name: key.name.to_string(),
            reason: problem.reason.as_str(),
            message: problem.message.clone(),
        }
    }
}

/// A Service and what is registered for it.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Why it is not to be registered, where it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_selected: Option<String>,
    /// Its instances in Consul, at most [`PAGE`].
    pub instances: Vec<InstanceStatus>,
    /// What is wrong with it, at most [`MAX_PROBLEMS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<ServiceProblem>,
    /// Records that are not as they ought to be and not written now.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub waiting: Vec<WaitingRecord>,
}

/// A problem of a Service.
#[derive(Clone, Debug, Serialize)]
pub struct ServiceProblem {
    /// What kind of problem.
    pub reason: &'static str,
    /// What was expected, what was found and what to do.
    pub message: String,
}

/// One watch of the Kubernetes API.
#[derive(Clone, Debug, Serialize)]
pub struct WatchStatus {
    /// What is watched.
    pub kind: &'static str,
    /// How long ago the API server was last heard of on it.
    pub seconds_since_heard: u64,
    /// The newest failure, while it fails.
    pub trouble: Option<String>,
}

/// A record that is not as it ought to be and not written now.
#[derive(Clone, Debug, Serialize)]
pub struct WaitingRecord {
    /// Which.
    pub record: String,
    /// What it waits for.
    pub reason: String,
}

/// One instance in Consul.
#[derive(Clone, Debug, Serialize)]
pub struct InstanceStatus {
    /// The service ID.
    pub id: String,
    /// The Consul service name.
    pub service: String,
    /// Whether it has a critical check.
    pub critical: bool,
    /// Where it is reached; of an instance that is not wanted any more, this is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The port, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its tags, likewise; the first [`TAGS`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<String>,
}
