//! The pages of `/status`.

use crate::admin::Selection;
use crate::admin::history::Series;
use crate::admin::status::{
    Counts, InstanceStatus, ObjectProblem, PAGE, Page, Peer, Readiness, ServiceStatus, TAGS,
    WaitingRecord,
};
use crate::domain::Moment;
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::services::settings::Settings;
use crate::domain::sync::{Cause, Core, Wait};

/// What a page says beside what the core knows.
pub(super) struct Surroundings {
    pub(super) cluster_uid: Option<String>,
    pub(super) leadership: Option<String>,
    pub(super) readiness: Readiness,
    pub(super) history: Vec<Series>,
    pub(super) kubernetes: Peer,
    pub(super) consul: Peer,
    pub(super) now: Moment,
}

/// The page of the Services that are selected.
pub(super) fn page(
    core: &Core,
    settings: &Settings,
    selection: &Selection,
    surroundings: Surroundings,
) -> Page {
    let Surroundings { cluster_uid, leadership, readiness, history, kubernetes, consul, now } =
        surroundings;
    let services = core.cache().services_after(selection.after.as_ref());
    let registered = services.filter(|(key, _)| settings.includes_namespace(&key.namespace));
    let (services, next) = selection.page(registered);
    let services =
        services.into_iter().map(|(key, _)| service(core, &settings.cluster, key, now)).collect();
    let counts = core.counts();
    Page {
        command: "bridge",
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
        history,
        problems: core.problems().into_iter().take(PAGE).map(ObjectProblem::new).collect(),
        services,
        next,
    }
}

fn service(core: &Core, cluster: &ClusterName, key: &ObjectKey, now: Moment) -> ServiceStatus {
    let desired = core.desired_of(key);
    let instances = core.registrations_of(key).iter().take(PAGE).map(|known| {
        let id = known.id(cluster, key);
        let wanted = desired.as_ref().and_then(|desired| desired.registrations.get(&id));
        let tags = wanted.map(|it| it.tags.iter().take(TAGS).cloned().collect());
        InstanceStatus {
            service: known.service.to_string(),
            critical: known.critical,
            address: wanted.map(|it| it.address.to_string()),
            port: wanted.map(|it| it.port),
            tags: tags.unwrap_or_default(),
            id: id.into(),
        }
    });
    ServiceStatus {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        instances: instances.collect(),
        waiting: waiting(core, key, now),
    }
}

/// What of a Service waits, and for what. Where nothing is under way, held or wrong nothing does.
fn waiting(core: &Core, key: &ObjectKey, now: Moment) -> Vec<WaitingRecord> {
    if core.is_settled() && !core.is_holding() && core.counts().problems == 0 {
        return Vec::new();
    }
    let waits = core.plan_of(key, now).map(|plan| plan.waits).unwrap_or_default();
    let waits = waits.into_iter().take(PAGE);
    waits
        .map(|(record, wait)| WaitingRecord {
            record: record.to_string(),
            reason: words(&wait, now),
        })
        .collect()
}

fn words(wait: &Wait, now: Moment) -> String {
    let again = |why: &str, until: Moment| {
        format!("{why}, tried again in {} s", until.saturating_sub(now).as_secs())
    };
    let words = match wait {
        Wait::Held(Cause::Absence) => "held back until a second list agrees",
        Wait::Held(Cause::Selection) => "held back until --allow-removals",
        Wait::InFlight => "a write of it is in flight",
        Wait::Backoff { until } => return again("its write failed", *until),
        Wait::Denied { until } => return again("its write was denied", *until),
        Wait::Failing { until } => return again("its write fails again and again", *until),
        Wait::Contested { until } => return again("somebody else keeps it otherwise", *until),
        Wait::Refused => "Consul refuses its content",
        Wait::NameUnknown => "it is not known yet whether others hold its Consul name",
        Wait::NameNotLookedUp => "it is being looked up whether others hold its Consul name",
        Wait::NameConflict => "its Consul name is another Service's",
        Wait::NameForeign => "others hold its Consul name",
        Wait::NodesUnknown => "the nodes of the cluster are not known",
        Wait::SlicesBehind { .. } => "the EndpointSlices have not followed the Service's ports yet",
        Wait::Unread => "an object that it follows from could not be read",
        Wait::NodeGoing => "it is being removed from the catalog",
        Wait::AfterReplacement => "it goes once what takes its place is written",
        Wait::WithPtr => "it waits for its PTR record",
        Wait::WithInstance => "it is written with its instance",
        Wait::DomainUnknown => "the Consul datacenter or DNS domain is not known",
        Wait::PtrForeign => "somebody else has this PTR record",
    };
    words.to_owned()
}
