//! The pages of `/status`.

use crate::admin::status::{
    Counts, InstanceStatus, ObjectProblem, PAGE, Page, Peer, Readiness, ServiceStatus,
};
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::services::settings::Settings;
use crate::domain::sync::Core;

/// What a page says beside what the core knows.
pub(super) struct Surroundings {
    pub(super) cluster_uid: Option<String>,
    pub(super) leadership: Option<String>,
    pub(super) readiness: Readiness,
    pub(super) kubernetes: Peer,
    pub(super) consul: Peer,
}

/// The page of the Services after this one.
pub(super) fn page(
    core: &Core,
    settings: &Settings,
    after: Option<&ObjectKey>,
    surroundings: Surroundings,
) -> Page {
    let Surroundings { cluster_uid, leadership, readiness, kubernetes, consul } = surroundings;
    let services = core.cache().services_after(after);
    let mut rest = services.filter(|(key, _)| settings.includes_namespace(&key.namespace));
    let services = rest.by_ref().take(PAGE);
    let services: Vec<ServiceStatus> =
        services.map(|(key, _)| service(core, &settings.cluster, key)).collect();
    let last = services.last().map(|last| format!("{}/{}", last.namespace, last.name));
    let next = rest.next().and(last);
    let counts = core.counts();
    Page {
        cluster: settings.cluster.to_string(),
        cluster_uid,
        version: env!("CARGO_PKG_VERSION"),
        leadership,
        ready: readiness == Readiness::Ready,
        reason: match readiness {
            Readiness::Ready => None,
            Readiness::NotReady(why) => Some(why),
        },
        kubernetes,
        consul,
        counts: Counts {
            services: counts.services,
            registrations: counts.registrations,
            ptr_records: counts.ptr_records,
            backlog: counts.backlog,
            problems: counts.problems,
        },
        holding: core.is_holding(),
        problems: core.problems().into_iter().take(PAGE).map(ObjectProblem::new).collect(),
        services,
        next,
    }
}

fn service(core: &Core, cluster: &ClusterName, key: &ObjectKey) -> ServiceStatus {
    let instances = core.registrations_of(key).iter().take(PAGE).map(|known| InstanceStatus {
        id: known.id(cluster, key).into(),
        service: known.service.to_string(),
        critical: known.critical,
    });
    ServiceStatus {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        instances: instances.collect(),
    }
}
