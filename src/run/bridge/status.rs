//! The pages of `/status`.

use crate::admin::Selection;
use crate::admin::history::Series;
use crate::admin::status::{
    Counts, InstanceStatus, MAX_PROBLEMS, ObjectProblem, PAGE, Page, PageHead, Peer, Readiness,
    ServiceProblem, ServiceStatus, TAGS, WaitingRecord, WatchStatus,
};
use crate::domain::Moment;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::services::desired::not_selected;
use crate::domain::services::settings::Settings;
use crate::domain::sync::{Cause, Core, Wait};

/// Instances and waiting records on one page, but for what its last Service has more: with IDs of
/// some 150 bytes, and at most [`PAGE`] problems, a page is about a megabyte.
const MAX_ITEMS: usize = 2_000;

/// A state that is normal at first.
const NO_BALANCER: &str =
    "it has no address yet (status.loadBalancer), which is normal while it is made";

/// A list lacks it.
const MISSING: &str =
    "a list of Kubernetes lacks it; nothing is removed until a second list agrees";
/// It is told of nevertheless: records of it stay.
const DEPARTED: &str = "Kubernetes shows no such Service";

/// What a page says beside what the core knows.
pub struct Surroundings {
    /// The cluster's uid, once it is known.
    pub cluster_uid: Option<String>,
    /// Who leads, where there is an election.
    pub leadership: Option<String>,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// The charts.
    pub history: Vec<Series>,
    /// The API server.
    pub kubernetes: Peer,
    /// Consul.
    pub consul: Peer,
    /// The watches of the API server.
    pub watches: Vec<WatchStatus>,
    /// The core's time.
    pub now: Moment,
}

/// The page of the Services that are selected.
pub fn page(
    core: &Core,
    settings: &Settings,
    selection: &Selection,
    surroundings: Surroundings,
) -> Page {
    let Surroundings {
        cluster_uid,
        leadership,
        readiness,
        history,
        kubernetes,
        consul,
        watches,
        now,
    } = surroundings;
    let after = selection.after.as_ref();
    let services = core.cache().services_after(after).map(|(key, _)| key);
    let registered = services.filter(|key| settings.includes_namespace(&key.namespace));
    let departed = core.departed().into_iter().filter(|key| after.is_none_or(|it| *key > it));
    let (found, mut next) = selection.page(merge(registered, departed).map(|key| (key, ())));
    let mut services: Vec<ServiceStatus> = Vec::new();
    let mut items = 0;
    for (key, ()) in found {
        if items >= MAX_ITEMS {
            next = services.last().map(|last| format!("{}/{}", last.namespace, last.name));
            break;
        }
        let status = service(core, settings, key, now);
        items += status.instances.len() + status.waiting.len();
        services.push(status);
    }
    let counts = core.counts();
    let reason = match readiness {
        Readiness::Ready => None,
        Readiness::NotReady(why) => Some(why),
    };
    Page {
        head: PageHead::new("bridge", reason, kubernetes, consul, watches),
        cluster: settings.cluster.to_string(),
        cluster_uid,
        leadership,
        counts: Counts {
            services: counts.services,
            registrations: counts.registrations,
            critical: counts.critical,
            ptr_records: counts.ptr_records,
            backlog: counts.backlog,
            problems: counts.problems,
        },
        holding: core.is_holding(),
        removals_held: core.removals_held(),
        history,
        problems: core.first_problems(PAGE).into_iter().map(ObjectProblem::new).collect(),
        services,
        next,
    }
}

/// Both in one order, each being in it.
fn merge<'k>(
    one: impl Iterator<Item = &'k ObjectKey>,
    other: impl Iterator<Item = &'k ObjectKey>,
) -> impl Iterator<Item = &'k ObjectKey> {
    let (mut one, mut other) = (one.peekable(), other.peekable());
    std::iter::from_fn(move || match (one.peek(), other.peek()) {
        (Some(first), Some(second)) if first > second => other.next(),
        (Some(_), _) => one.next(),
        (None, _) => other.next(),
    })
}

fn service(core: &Core, settings: &Settings, key: &ObjectKey, now: Moment) -> ServiceStatus {
    let desired = core.desired_of(key);
    let instances = core.registrations_of(key).iter().take(PAGE).map(|known| {
        let id = known.id(&settings.cluster, key);
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
    let problems = core.problems_of(key).take(MAX_PROBLEMS).map(|problem| {
        let message = problem.message.clone();
        ServiceProblem { reason: problem.reason.as_str(), message }
    });
    let object = core.cache().service(key);
    let mut waiting = waiting(core, key, now);
    if core.is_holding() && core.is_missing(key) {
        waiting
            .push(WaitingRecord { record: "the Service".to_owned(), reason: MISSING.to_owned() });
    }
    if desired.as_ref().is_some_and(|it| it.awaits_balancer) {
        waiting.push(WaitingRecord {
            record: "load balancer".to_owned(),
            reason: NO_BALANCER.to_owned(),
        });
    }
    ServiceStatus {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        not_selected: match object {
            Some(service) => not_selected(settings, key, service),
            None => Some(match core.cache().undecodable(Kind::Service, key) {
                Some(why) => format!("it could not be read: {why}"),
                None => DEPARTED.to_owned(),
            }),
        },
        instances: instances.collect(),
        problems: problems.collect(),
        waiting,
    }
}

/// What of a Service waits, and for what. Where nothing is under way, held or wrong nothing does.
fn waiting(core: &Core, key: &ObjectKey, now: Moment) -> Vec<WaitingRecord> {
    let counts = core.counts();
    if core.is_settled() && !core.is_holding() && counts.problems + counts.kept == 0 {
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
        Wait::Held(Cause::Policy) => "no longer wanted, and kept by --policy upsert-only",
        Wait::InFlight => "a write of it is in flight",
        Wait::Backoff { until } => return again("its write failed", *until),
        Wait::Denied { until } => return again("its write was denied", *until),
        Wait::Failing { until } => return again("its write fails again and again", *until),
        Wait::Contested { until } => return again("somebody else keeps it otherwise", *until),
        Wait::Refused => "Consul refuses its content",
        Wait::NameUnknown => "it is not known yet whether others hold its Consul name",
        Wait::NameNotLookedUp => "it is being looked up whether others hold its Consul name",
        Wait::NameConflict => "another Service comes first for its Consul name, or keeps it",
        Wait::NameForeign => "others hold its Consul name",
        Wait::NodesUnknown => "the nodes of the cluster are not known",
        Wait::RoutesUnknown => "the API server does not serve what routes to its Service",
        Wait::SlicesBehind { .. } => "the EndpointSlices have not followed the Service's ports yet",
        Wait::Unread => "an object that it follows from could not be read",
        Wait::NodeGoing => "it is being removed from the catalog",
        Wait::Turn => "its Service has much to be written, and others have their turn in between",
        Wait::AfterReplacement => "it goes once what takes its place is written",
        Wait::WithPtr => "it waits for its PTR record",
        Wait::WithInstance => "it is written with its instance",
        Wait::DomainUnknown => "the Consul datacenter or DNS domain is not known",
        Wait::PtrForeign => "somebody else has this PTR record",
    };
    words.to_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_to_wait_is_told_in_its_own_words() {
        let until = Moment::from_secs(70);
        let all = [
            Wait::Held(Cause::Absence),
            Wait::Held(Cause::Selection),
            Wait::Held(Cause::Policy),
            Wait::InFlight,
            Wait::Backoff { until },
            Wait::Denied { until },
            Wait::Failing { until },
            Wait::Contested { until },
            Wait::Refused,
            Wait::NameUnknown,
            Wait::NameNotLookedUp,
            Wait::NameConflict,
            Wait::SlicesBehind { until },
            Wait::NameForeign,
            Wait::NodesUnknown,
            Wait::RoutesUnknown,
            Wait::Unread,
            Wait::NodeGoing,
            Wait::AfterReplacement,
            Wait::WithPtr,
            Wait::WithInstance,
            Wait::DomainUnknown,
            Wait::PtrForeign,
        ];
        let told: BTreeSet<String> =
            all.iter().map(|it| words(it, Moment::from_secs(10))).collect();
        assert_eq!(told.len(), all.len(), "{told:?}");
        let timed = told.iter().filter(|it| it.ends_with("tried again in 60 s")).count();
        assert_eq!(timed, 4, "{told:?}");
    }
}
