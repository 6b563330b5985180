//! The pages of `/status`.

use serde::Serialize;

use super::reporting::{Reporting, name_of};
use crate::admin::Selection;
use crate::admin::history::Series;
use crate::admin::status::{MAX_PROBLEMS, ObjectProblem, PAGE, PageHead};
use crate::domain::import::core::{Importer, Summary};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Subject;

/// Endpoints of a Service that a page shows: a screen full. How many there are is said beside them.
const MAX_ENDPOINTS: usize = 50;

/// One page of `/status`.
#[derive(Debug, Serialize)]
pub(super) struct ImportPage {
    #[serde(flatten)]
    head: PageHead,
    counts: Counts,
    /// The last 15 minutes.
    history: Vec<Series>,
    /// The first problems.
    problems: Vec<ObjectProblem>,
    services: Vec<ServiceStatus>,
    /// `namespace/name` with which the next page is asked for; none on the last.
    next: Option<String>,
}

/// How many of what there are.
#[derive(Debug, Serialize)]
struct Counts {
    /// Services that ask for an import.
    services: usize,
    /// Those of them that were made here.
    created: usize,
    /// Consul services that are followed.
    followed: usize,
    /// Those of them that are read in turn, for want of a connection.
    polled: usize,
    problems: usize,
}

#[derive(Debug, Serialize)]
struct ServiceStatus {
    namespace: String,
    name: String,
    /// Consul services, in order of preference.
    sources: Vec<String>,
    endpoints: usize,
    ready: usize,
    slices: usize,
    /// Where the first of its endpoints are.
    addresses: Vec<EndpointStatus>,
    problems: Vec<String>,
}

#[derive(Debug, Serialize)]
struct EndpointStatus {
    address: String,
    port: u16,
    ready: bool,
}

/// The page of the Services that are selected; `peers`: the URLs of Kubernetes and Consul.
pub(super) fn page(
    state: &Importer,
    reporting: &mut Reporting,
    selection: &Selection,
    (kubernetes, consul): (String, String),
    polled: usize,
) -> ImportPage {
    let summaries = state.summaries(selection.after.as_ref());
    let (services, next) = selection.page(summaries);
    let services = services.into_iter().map(|(key, summary)| service(state, key, &summary));
    let problem = |(key, it)| ObjectProblem::new((Subject::Service, key, it));
    ImportPage {
        head: reporting.head(state, kubernetes, consul),
        counts: Counts {
            services: state.imported_count(),
            created: state.created_count(),
            followed: state.followed(),
            polled,
            problems: state.problems().count(),
        },
        history: reporting.history(),
        problems: state.problems().take(PAGE).map(problem).collect(),
        services: services.collect(),
        next,
    }
}

fn service(state: &Importer, key: &ObjectKey, summary: &Summary) -> ServiceStatus {
    let shown = state.endpoints_of(key).take(MAX_ENDPOINTS);
    let endpoint = |(address, port, ready): (std::net::IpAddr, u16, bool)| EndpointStatus {
        address: address.to_string(),
        port,
        ready,
    };
    ServiceStatus {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        sources: summary.sources.iter().map(name_of).collect(),
        endpoints: summary.endpoints,
        ready: summary.ready,
        slices: summary.slices,
        addresses: shown.map(endpoint).collect(),
        problems: state.problems_of(key).take(MAX_PROBLEMS).map(ToString::to_string).collect(),
    }
}
