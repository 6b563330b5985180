//! The pages of `/status`.

use serde::Serialize;

use super::reporting::Reporting;
use crate::admin::Selection;
use crate::admin::history::Series;
use crate::admin::status::{MAX_PROBLEMS, ObjectProblem, PAGE, PageHead};
use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;
use crate::domain::node::core::{Core, Counts as CoreCounts};
use crate::domain::node::exchange::PodView;
use crate::domain::node::wanted::CheckStatus;

/// One page of `/status`.
#[derive(Debug, Serialize)]
pub(super) struct NodePage {
    #[serde(flatten)]
    head: PageHead,
    counts: Counts,
    /// Whether removals are held back until they are confirmed.
    holding: bool,
    /// How long ago the agent answered last, in seconds.
    last_sync_seconds: Option<f64>,
    /// The last 15 minutes.
    history: Vec<Series>,
    /// The first problems.
    problems: Vec<ObjectProblem>,
    pods: Vec<PodStatus>,
    /// `namespace/name` with which the next page is asked for; none on the last.
    next: Option<String>,
}

/// How many of what there are.
#[derive(Debug, Serialize)]
struct Counts {
    /// Pods that ask to be registered.
    pods: usize,
    /// Registrations in the agent.
    registrations: usize,
    /// Those of them whose check is passing.
    passing: usize,
    /// Registrations that are being written.
    backlog: usize,
    problems: usize,
}

#[derive(Debug, Serialize)]
struct PodStatus {
    namespace: String,
    name: String,
    ready: bool,
    /// What its sidecar said last, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    sidecar: Option<&'static str>,
    registrations: Vec<RegistrationStatus>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct RegistrationStatus {
    id: String,
    /// The check's status in the agent; none: it is not registered.
    status: Option<&'static str>,
    /// In how many seconds the check is refreshed; a critical one never is.
    next_heartbeat_seconds: Option<f64>,
}

/// The page of the pods that are selected.
pub(super) fn page(
    core: &Core,
    reporting: &mut Reporting,
    selection: &Selection,
    now: Moment,
) -> NodePage {
    let CoreCounts { pods, registrations, passing, backlog, problems, .. } = core.counts();
    let (selected, next) = selection.page(core.pods(selection.after.as_ref()));
    let problem = |(key, it)| ObjectProblem::new((Subject::Pod, key, it));
    NodePage {
        head: reporting.head(core, now),
        counts: Counts { pods, registrations, passing, backlog, problems: problems.values().sum() },
        holding: core.is_holding(),
        last_sync_seconds: core.agent().0.map(|at| now.saturating_sub(at).as_secs_f64()),
        history: reporting.history(),
        problems: core.problems().take(PAGE).map(problem).collect(),
        pods: selected.into_iter().map(|(key, view)| pod(key, &view, now)).collect(),
        next,
    }
}

fn pod(key: &ObjectKey, view: &PodView<'_>, now: Moment) -> PodStatus {
    let registrations = view.registrations.iter().map(|(id, status, beat)| RegistrationStatus {
        id: (*id).to_owned(),
        status: status.map(CheckStatus::as_str),
        next_heartbeat_seconds: beat.map(|at| at.saturating_sub(now).as_secs_f64()),
    });
    PodStatus {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        ready: view.is_ready,
        sidecar: view.sidecar,
        registrations: registrations.collect(),
        problems: view.problems.iter().take(MAX_PROBLEMS).map(ToString::to_string).collect(),
    }
}
