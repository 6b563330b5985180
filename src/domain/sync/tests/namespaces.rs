//! `--namespace-selector`: Services come and go with the labels of their namespace.

use super::*;
use crate::domain::kube::object::Namespace;

fn by_label() -> Settings {
    Settings { namespace_selector: "consul=sync".parse().unwrap(), ..settings() }
}

/// A namespace, with the label that is asked for or without.
fn namespace(name: &str, labelled: bool) -> SeenObject {
    let label = labelled.then(|| ("consul".into(), "sync".into()));
    let labels = label.into_iter().collect();
    SeenObject::Namespace(ObjectKey::new("", name), Namespace { labels })
}

/// That of all Services here.
fn own(labelled: bool) -> SeenObject {
    namespace(&key("any").namespace, labelled)
}

fn list_services(simulation: &mut Simulation, services: u8) {
    simulation.list(Kind::Service, (1..=services).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=services).map(|n| slice_seen(n, true)));
}

/// A bridge that has all in sync, whose Consul has these Services.
fn running(services: u8) -> Simulation {
    let mut simulation = Simulation::new(by_label());
    simulation.resync();
    simulation.list(Kind::Namespace, [own(true)]);
    list_services(&mut simulation, services);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), usize::from(services));
    simulation
}

#[test]
fn services_come_and_go_with_the_label_of_their_namespace() {
    let mut simulation = Simulation::new(by_label());
    simulation.resync();
    list_services(&mut simulation, 3);
    simulation.list(Kind::Namespace, [own(false), namespace("empty", true)]);
    simulation.settle();
    assert!(simulation.registrations.is_empty());
    simulation.seen(own(true));
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (3, 3));
    simulation.take_sent();
    // The same again, as each heartbeat of a controller's annotation would be.
    simulation.seen(own(true));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    simulation.seen(own(false));
    simulation.settle();
    assert!(simulation.registrations.is_empty() && simulation.kv.is_empty());
}

#[test]
fn nothing_is_decided_before_namespaces_are_listed() {
    let mut simulation = running(3).restarted(by_label());
    let registrations = simulation.registrations.clone();
    simulation.resync();
    list_services(&mut simulation, 3);
    simulation.settle();
    assert!(!simulation.bridge.is_listed());
    // A cluster without namespaces is none: a list that says so says nothing.
    simulation.list(Kind::Namespace, []);
    simulation.settle();
    assert!(!simulation.bridge.is_listed());
    assert_eq!(simulation.registrations, registrations);
    simulation.list(Kind::Namespace, [own(true)]);
    simulation.settle();
    assert!(simulation.bridge.is_listed());
    assert_eq!(simulation.take_sent(), 0, "all is as it was");
}

#[test]
fn the_absence_of_a_namespace_removes_nothing() {
    let mut simulation = running(3);
    simulation.take_sent();
    simulation.list(Kind::Namespace, []);
    simulation.list(Kind::Namespace, [namespace("other", true)]);
    let gone = ObjectKey::new("", &*key("any").namespace);
    simulation.bridge.handle_watch(WatchEvent::Deleted(Kind::Namespace, gone), simulation.now);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_holding());
    // Its Services say themselves that they go.
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    // Nor is what changes meanwhile left.
    simulation.seen(slice_seen(2, false));
    simulation.settle();
    assert_ne!(simulation.take_sent(), 0);
}

#[test]
fn a_service_of_a_namespace_that_was_not_seen_yet_keeps_what_it_has_and_waits() {
    let mut simulation = running(3).restarted(by_label());
    let (registrations, ptr) = (simulation.registrations.clone(), simulation.kv.clone());
    simulation.resync();
    list_services(&mut simulation, 4);
    simulation.list(Kind::Namespace, [namespace("other", true)]);
    simulation.settle();
    assert!(simulation.bridge.is_listed());
    assert_eq!((&simulation.registrations, &simulation.kv), (&registrations, &ptr));
    assert_eq!(simulation.bridge.counts().problems, 0, "it comes in a moment");
    simulation.seen(own(true));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 4);
    // One that goes before its namespace is seen is gone.
    let mut simulation = running(3).restarted(by_label());
    simulation.resync();
    list_services(&mut simulation, 3);
    simulation.list(Kind::Namespace, [namespace("other", true)]);
    simulation.deleted(Kind::Service, "s1");
    simulation.seen(own(true));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
}

#[test]
fn a_label_that_is_gone_at_the_start_takes_nothing_away_before_that_is_allowed() {
    for allowed in [false, true] {
        let settings = Settings { allow_removals: allowed, ..by_label() };
        let mut simulation = running(3).restarted(settings);
        simulation.resync();
        list_services(&mut simulation, 3);
        simulation.list(Kind::Namespace, [own(false)]);
        simulation.settle();
        assert_eq!(simulation.registrations.len(), if allowed { 0 } else { 3 });
        // PTR records without an owner wait for a second list all the same.
        assert!(allowed || simulation.bridge.is_holding());
    }
}

#[test]
fn a_name_goes_to_whoever_is_selected() {
    let mut settings = by_label();
    settings.namespaces.clear();
    let mut simulation = Simulation::new(settings);
    simulation.resync();
    let SeenObject::Service(_, service) = service_seen(1) else { unreachable!() };
    let other = ObjectKey::new("aaa", "s1");
    let both = [SeenObject::Service(other.clone(), service), service_seen(1)];
    simulation.list(Kind::Service, both);
    simulation.list(Kind::EndpointSlice, []);
    simulation.list(Kind::Namespace, [own(true), namespace("aaa", false)]);
    simulation.settle();
    let of = |simulation: &Simulation| -> Vec<String> {
        simulation.registrations.values().map(|it| it.namespace.to_string()).collect()
    };
    assert_eq!(of(&simulation), [key("any").namespace.to_string()]);
    // Neither of them before the other: the older name is the first by namespace.
    simulation.seen(namespace("aaa", true));
    simulation.settle();
    assert_eq!(of(&simulation), ["aaa"]);
    simulation.seen(namespace("aaa", false));
    simulation.settle();
    assert_eq!(of(&simulation), [key("any").namespace.to_string()]);
}
