//! `--policy upsert-only`: nothing is removed.

use super::*;
use crate::domain::consul::record::Check;
use crate::domain::services::settings::{AddressMode, Policy};
use crate::domain::sync::Cause;
use crate::domain::sync::wait::Wait;

fn upsert_only() -> Settings {
    Settings { policy: Policy::UpsertOnly, ..settings() }
}

/// A bridge of this policy with so many Services `s1`, `s2`, ..., each with a PTR record.
fn running(services: u8) -> Simulation {
    let mut simulation = Simulation::new(upsert_only());
    simulation.resync();
    simulation.list(Kind::Service, (1..=services).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=services).map(|n| slice_seen(n, true)));
    simulation.settle();
    simulation
}

#[test]
fn what_is_deleted_stays_and_is_counted() {
    let mut simulation = running(3);
    let (registrations, ptr) = (simulation.registrations.clone(), simulation.kv.clone());
    assert_eq!(registrations.len(), 3);
    simulation.take_sent();
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert_eq!(simulation.registrations, registrations);
    assert_eq!(simulation.kv, ptr);
    let now = simulation.now;
    let waits = simulation.bridge.plan_of(&key("s1"), now).unwrap().waits;
    assert!(waits.values().all(|wait| *wait == Wait::Held(Cause::Policy)), "{waits:?}");
    // The instance and its PTR record.
    assert_eq!(waits.len(), 2);
    assert_eq!(simulation.bridge.counts().kept, 2);
    assert!(!simulation.bridge.is_holding(), "nothing waits for anybody");
    // One that comes back is its old self, and costs nothing.
    simulation.seen(service_seen(1));
    simulation.seen(slice_seen(1, true));
    simulation.settle();
    assert_eq!(simulation.bridge.counts().kept, 0);
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn after_a_restart_nothing_is_removed_or_held_either() {
    for (what, settings) in [
        ("nothing is left", upsert_only()),
        ("nothing is selected", Settings { default_sync: false, ..upsert_only() }),
        ("other addresses", Settings { address: AddressMode::ExternalIp, ..upsert_only() }),
    ] {
        let simulation = running(30);
        let registrations = simulation.registrations.clone();
        let mut simulation = simulation.restarted(settings);
        simulation.resync();
        let services = if what == "nothing is left" { 0 } else { 30 };
        simulation.list(Kind::Service, (1..=services).map(service_seen));
        simulation.list(Kind::EndpointSlice, (1..=services).map(|n| slice_seen(n, true)));
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{what}");
        assert_eq!(simulation.registrations, registrations, "{what}");
        assert!(!simulation.bridge.is_holding(), "{what}");
        assert_eq!(simulation.bridge.counts().kept, 60, "{what}");
        assert!(simulation.bridge.is_settled(), "{what}");
    }
}

#[test]
fn a_rename_takes_no_instance_from_its_name() {
    for renamed in ["another name", "another template"] {
        let mut simulation = running(2);
        let (registrations, ptr) = (simulation.registrations.clone(), simulation.kv.clone());
        simulation.take_sent();
        let SeenObject::Service(_, service) = service_seen(1) else { unreachable!() };
        let renamed_to = |it: &mut Service, name: &str| {
            drop(it.annotations.insert("kube-consul.io/service-name".into(), name.into()));
        };
        if renamed == "another name" {
            let mut service = service;
            renamed_to(&mut service, "other");
            simulation.seen(SeenObject::Service(key("s1"), service));
        } else {
            let name_template = "p-{service}".parse().unwrap();
            let settings = Settings { name_template, ..upsert_only() };
            simulation = simulation.restarted(settings);
            simulation.resync();
            simulation.list(Kind::Service, (1..=2).map(service_seen));
            simulation.list(Kind::EndpointSlice, (1..=2).map(|n| slice_seen(n, true)));
        }
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{renamed}");
        assert_eq!(
            (&simulation.registrations, &simulation.kv),
            (&registrations, &ptr),
            "{renamed}"
        );
        let now = simulation.now;
        let waits = simulation.bridge.plan_of(&key("s1"), now).unwrap().waits;
        assert!(waits.values().any(|wait| *wait == Wait::Held(Cause::Policy)), "{waits:?}");
        assert_ne!(simulation.bridge.counts().kept, 0, "{renamed}");
        assert!(simulation.bridge.is_settled(), "{renamed}");
        // All else of it is changed.
        let mut changed = numbered(2);
        renamed_to(&mut changed, "another");
        let tags = ("kube-consul.io/service-tags".into(), "new".into());
        changed.annotations.extend([tags]);
        simulation.seen(SeenObject::Service(key("s2"), changed));
        simulation.settle();
        let of_s2 = simulation.registrations.values().find(|it| it.id.contains("_s2_")).unwrap();
        assert_eq!(&*of_s2.service, "s2");
        assert!(of_s2.tags.iter().any(|tag| tag == "new"), "{of_s2:?}");
    }
}

#[test]
fn a_lost_lead_a_namespace_without_its_label_and_a_changed_address_remove_nothing() {
    let by_label = Settings { namespace_selector: "consul=sync".parse().unwrap(), ..upsert_only() };
    let namespace = |labelled: bool| {
        let label = labelled.then(|| ("consul".into(), "sync".into()));
        let namespace =
            crate::domain::kube::object::Namespace { labels: label.into_iter().collect() };
        SeenObject::Namespace(ObjectKey::new("", "ns"), namespace)
    };
    let mut simulation = Simulation::new(by_label);
    simulation.resync();
    simulation.list(Kind::Namespace, [namespace(true)]);
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.settle();
    let ids: BTreeSet<_> = simulation.registrations.keys().cloned().collect();
    let ptr: BTreeSet<_> = simulation.kv.keys().cloned().collect();
    assert_eq!((ids.len(), ptr.len()), (3, 3));
    let keeps = |simulation: &Simulation| {
        ids.iter().all(|id| simulation.registrations.contains_key(id))
            && ptr.iter().all(|key| simulation.kv.contains_key(key))
    };
    let mut moved = numbered(1);
    moved.cluster_ips = vec![ip("10.0.0.99")];
    simulation.seen(SeenObject::Service(key("s1"), moved));
    simulation.settle();
    assert!(keeps(&simulation) && simulation.registrations.len() == 4);
    simulation.lose();
    simulation.deleted(Kind::Service, "s2");
    simulation.acquire();
    simulation.resync();
    simulation.settle();
    assert!(keeps(&simulation));
    simulation.seen(namespace(false));
    simulation.settle();
    assert!(keeps(&simulation));
}

#[test]
fn what_changes_is_written_and_an_address_goes_to_its_next_holder() {
    let mut simulation = running(3);
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    // Kubernetes gives the address to another Service.
    let SeenObject::Service(_, service) = service_seen(1) else { unreachable!() };
    simulation.seen(SeenObject::Service(key("other"), service));
    simulation.seen(slice_seen(2, false));
    simulation.settle();
    let critical = simulation.registrations.values().filter(|it| it.check == Check::Critical);
    // The one without an endpoint, and the newcomer, which has none.
    assert_eq!(critical.count(), 2);
    assert_eq!(simulation.registrations.len(), 4);
    assert!(simulation.kv.values().any(|it| it.record.value.starts_with("other.")));
}

#[test]
fn a9_what_is_kept_holds_its_name() {
    let mut simulation = running(0);
    let mut named = numbered(1);
    named.annotations.insert("kube-consul.io/service-name".into(), "upay".into());
    simulation.seen(SeenObject::Service(key("s1"), named));
    simulation.settle();
    // Its own name comes before an annotation.
    let upay = ObjectKey::new("upe", "upay");
    simulation.seen(SeenObject::Service(upay.clone(), numbered(2)));
    simulation.settle();
    assert_eq!(simulation.registered(), ["upay 10.0.0.1 Critical"]);
    let told = |simulation: &Simulation| {
        let problems = simulation.bridge.problems().into_iter();
        let of = problems.filter(|it| *it.1 == upay);
        of.map(|(_, _, problem)| problem.message.clone()).collect::<Vec<_>>()
    };
    let expected = "registered for Service ns/s1, which --policy upsert-only keeps";
    assert!(told(&simulation)[0].contains(expected), "{:?}", told(&simulation));
    // What is left of one that is gone, too, after a restart as well.
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    let mut simulation = simulation.restarted(upsert_only());
    simulation.resync();
    simulation.list(Kind::Service, [SeenObject::Service(upay.clone(), numbered(3))]);
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    assert_eq!(simulation.registered(), ["upay 10.0.0.1 Critical"]);
    assert!(told(&simulation)[0].contains(expected), "{:?}", told(&simulation));
    // Once somebody has removed it, the name is free.
    simulation.registrations.clear();
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registered(), ["upay 10.0.0.3 Critical"]);
    assert_eq!(told(&simulation), [""; 0]);
}

#[test]
fn a9_a_write_that_was_never_applied_holds_no_name() {
    let mut simulation = running(0);
    let mut named = numbered(1);
    named.annotations.insert("kube-consul.io/service-name".into(), "upay".into());
    simulation.seen(SeenObject::Service(key("s1"), named));
    simulation.step(&mut |_| Fate::Lost);
    let upay = ObjectKey::new("upe", "upay");
    simulation.seen(SeenObject::Service(upay.clone(), numbered(2)));
    simulation.step(&mut |_| Fate::Lost);
    let is_told = simulation.bridge.problems_of(&upay).any(|it| it.reason == Reason::NameConflict);
    assert!(is_told, "the other one may be there");
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    assert_eq!(simulation.registered(), ["upay 10.0.0.2 Critical"]);
    assert_eq!(simulation.bridge.counts().problems, 0);
}
