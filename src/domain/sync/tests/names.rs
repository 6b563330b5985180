//! Names that several want, or that others hold.

use super::*;

/// A Service that wants the name `shared`.
fn sharing(uid: &str, created: i64) -> SeenObject {
    let service = service()
        .annotations(&[("kube-consul.io/service-name", "shared")])
        .with(|s| {
            s.uid = uid.into();
            s.created = created;
        })
        .build();
    SeenObject::Service(key(uid), service)
}

#[test]
fn the_runner_up_takes_over_a_name_and_an_address() {
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    simulation.list(Kind::Service, [sharing("young", 2), sharing("old", 1)]);
    simulation.list(
        Kind::EndpointSlice,
        [SeenObject::EndpointSlice(
            key("a"),
            slice("young", &[("http", 1)], &[("10.1.0.1", true)]),
        )],
    );
    simulation.settle();
    assert!(simulation.registrations.contains_key("kubernetes_ns_old_http_10.0.0.1"));
    assert_eq!(simulation.registrations.len(), 1);
    let reasons: Vec<_> = simulation
        .bridge
        .problems()
        .into_iter()
        .map(|(_, key, p)| (key.clone(), p.reason))
        .collect();
    assert_eq!(reasons, [(key("young"), Reason::NameConflict)]);
    simulation.deleted(Kind::Service, "old");
    simulation.settle();
    assert_eq!(simulation.registered(), ["shared 10.0.0.1 None"]);
    assert_eq!(simulation.kv.len(), 1);
    assert_eq!(simulation.bridge.counts().problems, 0);
}

fn named(n: u8, name: &str) -> SeenObject {
    let mut service = numbered(n);
    service.annotations.insert("kube-consul.io/service-name".into(), name.into());
    SeenObject::Service(key(&format!("s{n}")), service)
}

#[test]
fn names_that_differ_in_case_only_are_one() {
    let mut simulation = in_sync(2);
    simulation.others_hold(foreign(&["postgres"]));
    simulation.seen(named(3, "S1"));
    simulation.seen(named(4, "Postgres"));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2, "{:?}", simulation.registered());
    assert!(messages(&simulation, 3)[0].contains("Service ns/s1"));
    assert_eq!(messages(&simulation, 4).len(), 1);

    // One that is held already stays.
    simulation.others_hold(ForeignNames::new());
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 3);
    simulation.others_hold(foreign(&["postgres"]));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 3);
    assert!(messages(&simulation, 4)[0].contains("stays"));
}

#[test]
fn a_name_that_another_replica_holds_is_taken_although_others_joined_it() {
    let mut simulation = in_sync(1);
    simulation.others_hold(foreign(&["s2", "s3"]));
    simulation.seen(service_seen(2));
    simulation.seen(service_seen(3));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 1);
    let mut names = foreign(&["s2", "s3"]);
    names.insert("s2".into(), Holders { others: Holder::Other, ours: true });
    simulation.others_hold(names);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    assert!(messages(&simulation, 2)[0].contains("stays"));
    assert!(messages(&simulation, 3)[0].contains("not registered under it"));
}

#[test]
fn a_service_renamed_to_a_name_of_others_keeps_the_one_it_has() {
    let mut simulation = in_sync(2);
    simulation.others_hold(foreign(&["postgres"]));
    simulation.seen(named(1, "postgres"));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert_eq!(messages(&simulation, 1).len(), 1);
    simulation.seen(slice_seen(1, false));
    simulation.settle();
    assert_eq!(simulation.registered()[0], "s1 10.0.0.1 Critical", "its health is followed");

    // Another Service wants the name that it keeps.
    simulation.seen(named(3, "s1"));
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 None", "s1 10.0.0.3 Critical"]);
    simulation.deleted(Kind::Service, "s3");
    simulation.others_hold(ForeignNames::new());
    simulation.settle();
    assert_eq!(simulation.registered(), ["postgres 10.0.0.1 Critical", "s2 10.0.0.2 None"]);
}

#[test]
fn a_conflict_names_the_holder_of_today() {
    let mut simulation = in_sync(1);
    for (n, created) in [(2, 9), (3, 8), (4, 7)] {
        let SeenObject::Service(key, mut service) = named(n, "shared") else { return };
        service.created = created;
        simulation.seen(SeenObject::Service(key, service));
        simulation.settle();
    }
    for n in [2, 3] {
        assert!(
            messages(&simulation, n)[0].contains("Service ns/s4"),
            "{:?}",
            messages(&simulation, n)
        );
    }
}

#[test]
fn new_names_wait_for_the_listing_of_foreign_ones() {
    let mut simulation = in_sync(2).restarted(settings());
    simulation.names = None;
    simulation.resync();
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true), slice_seen(2, false)]);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None", "s2 10.0.0.2 Critical"]);
    simulation.others_hold(foreign(&["s1", "s3"]));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2, "s3 is others', s1 stays");
    let problems: Vec<_> =
        simulation.bridge.problems().into_iter().map(|(_, k, p)| (k.clone(), p.reason)).collect();
    assert_eq!(problems, [(key("s1"), Reason::ForeignName), (key("s3"), Reason::ForeignName)]);
    simulation.others_hold(ForeignNames::new());
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 3);
    assert_eq!(simulation.bridge.counts().problems, 0);
}

/// As when a process starts: the names that others hold are read after all else.
fn not_yet_read(simulation: &mut Simulation) {
    simulation.names = None;
}

#[test]
fn a_new_name_waits_for_the_listing_and_keeps_what_is_registered() {
    let mut simulation = in_sync(3).restarted(settings());
    not_yet_read(&mut simulation);
    simulation.resync();
    let renamed = numbered(2);
    let mut renamed = SeenObject::Service(key("s2"), renamed);
    if let SeenObject::Service(_, service) = &mut renamed {
        service.annotations.insert("kube-consul.io/service-name".into(), "new".into());
    }
    simulation.list(Kind::Service, [service_seen(1), renamed, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "whether the name is free is not known");
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (3, 3));
    simulation.others_hold(ForeignNames::new());
    let mut removed = 0;
    simulation.settle_with(|write| {
        removed += usize::from(matches!(write, Write::Deregister { .. } | Write::DeletePtr { .. }));
        Fate::Applied
    });
    assert_eq!(removed, 0);
    assert!(simulation.registered().contains(&"new 10.0.0.2 None".to_owned()));
}

#[test]
fn a_changed_template_is_a_move_before_the_names_of_others_are_known() {
    let mut changed = settings();
    changed.name_template = "{service}-{namespace}".parse().unwrap();
    let mut simulation = in_sync(30).restarted(changed);
    not_yet_read(&mut simulation);
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_holding());
    simulation.others_hold(ForeignNames::new());
    simulation.settle();
    assert_eq!(simulation.take_sent(), 60, "each instance and its PTR record once");
    assert!(simulation.registrations.values().all(|r| r.service.ends_with("-ns")));
}

#[test]
fn a_name_that_changes_hands_is_taken_before_it_is_left() {
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    simulation.list(Kind::Service, [sharing("young", 2)]);
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    simulation.take_sent();
    simulation.seen(sharing("old", 1));
    simulation.settle();
    let first = &simulation.sent[0];
    assert!(
        matches!(first, Write::Register(r) if &*r.id == "kubernetes_ns_old_http_10.0.0.1"),
        "{first:?}"
    );
}

#[test]
fn n3_a_name_that_was_never_held_is_looked_up_before_its_first_write() {
    let mut simulation = in_sync(2);
    assert_eq!(simulation.looked_up, [""; 0], "the listing at the start shows these");
    simulation.answers_look_ups = false;
    // Somebody took it after the listing.
    simulation.names = Some(foreign(&["s3"]));
    simulation.seen(service_seen(3));
    simulation.seen(service_seen(4));
    simulation.seen(slice_seen(1, false));
    simulation.step(&mut |_| Fate::Applied);
    let mut looked_up = std::mem::take(&mut simulation.asked);
    looked_up.retain(|it| matches!(it, Action::ReadName(_)));
    assert_eq!(looked_up, [Action::ReadName("s3".into()), Action::ReadName("s4".into())]);
    assert_eq!(simulation.registered()[0], "s1 10.0.0.1 Critical", "nothing else waits for it");
    assert_eq!(simulation.registrations.len(), 2);
    let plan = simulation.bridge.plan_of(&key("s4"), simulation.now).unwrap();
    assert!(plan.waits.values().all(|wait| *wait == Wait::NameNotLookedUp), "{:?}", plan.waits);
    assert!(!simulation.bridge.is_settled());
    simulation.answers_look_ups = true;
    for action in looked_up {
        simulation.take(action);
    }
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 3);
    assert!(messages(&simulation, 3)[0].contains("it is not registered under it"));

    // One that is held is not looked up for a change, and one that was given up is.
    simulation.looked_up.clear();
    simulation.seen(slice_seen(4, false));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.looked_up, [""; 0]);
    simulation.deleted(Kind::Service, "s4");
    simulation.step(&mut |_| Fate::Applied);
    simulation.seen(service_seen(4));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(
        (&*simulation.looked_up, simulation.registrations.len()),
        (&["s4".to_owned()][..], 3)
    );
}

#[test]
fn n3_many_new_names_cost_one_listing() {
    let mut simulation = in_sync(1);
    (2..=200).for_each(|n| simulation.seen(service_seen(n)));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!((simulation.registrations.len(), simulation.looked_up.len()), (200, 0));
    // As at the start.
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    simulation.list(Kind::Service, (1..=200).map(service_seen));
    simulation.list(Kind::EndpointSlice, []);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!((simulation.registrations.len(), simulation.looked_up.len()), (200, 0));
}

#[test]
fn n3_a_failed_look_up_is_told_and_the_listing_takes_its_place() {
    let mut simulation = in_sync(1);
    simulation.names = None;
    simulation.seen(service_seen(2));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 1);
    assert!(messages(&simulation, 2)[0].contains("no answer"), "{:?}", messages(&simulation, 2));
    assert_eq!(simulation.looked_up, ["s2"], "it is not asked again and again");
    simulation.names = Some(ForeignNames::new());
    simulation.now += Duration::from_secs(5);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 2);
    assert_eq!(simulation.bridge.counts().problems, 0);
    // What goes while a new name cannot be looked up goes all the same.
    simulation.names = None;
    simulation.seen(named(2, "new"));
    simulation.step(&mut |_| Fate::Applied);
    simulation.deleted(Kind::Service, "s2");
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
}

#[test]
fn n3_what_somebody_removed_is_written_again_at_once() {
    let mut simulation = in_sync(2);
    simulation.registrations.clear();
    simulation.names = None;
    simulation.begin_resync();
    simulation.show();
    simulation.finish_resync();
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!((simulation.registrations.len(), simulation.looked_up.len()), (2, 0));
}

#[test]
fn o15_new_pods_of_a_service_renamed_to_a_name_of_others_have_its_former_name() {
    let pods = |addresses: &[&str]| {
        let endpoints: Vec<(&str, bool)> = addresses.iter().map(|it| (*it, true)).collect();
        SeenObject::EndpointSlice(key("db-x"), slice("db", &[("http", 8080)], &endpoints))
    };
    let named = |name: &str| {
        let annotations = [("kube-consul.io/service-name", name)];
        let service = service().annotations(&annotations).with(|s| s.cluster_ips = Vec::new());
        SeenObject::Service(key("db"), service.build())
    };
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    simulation.others_hold(foreign(&["postgres"]));
    simulation.list(Kind::Service, [named("db")]);
    simulation.list(Kind::EndpointSlice, [pods(&["10.1.0.1", "10.1.0.2"])]);
    simulation.settle();
    simulation.seen(named("postgres"));
    // Its pods are replaced one after the other.
    for addresses in [["10.1.0.2", "10.1.0.3"], ["10.1.0.3", "10.1.0.4"]] {
        simulation.seen(pods(&addresses));
        simulation.settle();
        let wanted = addresses.map(|address| format!("db {address} None"));
        assert_eq!(simulation.registered(), wanted);
    }
    assert_eq!(simulation.bridge.problems().len(), 1);
    simulation.others_hold(ForeignNames::new());
    simulation.settle();
    let wanted = ["10.1.0.3", "10.1.0.4"].map(|address| format!("postgres {address} None"));
    assert_eq!(simulation.registered(), wanted);
}
