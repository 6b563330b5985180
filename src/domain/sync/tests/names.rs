//! Names that several want, or that others hold.

use super::*;

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
    simulation.others_hold(ForeignNames::default());
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
    simulation.others_hold(ForeignNames::default());
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
    simulation.others_hold(ForeignNames::default());
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
    simulation.others_hold(ForeignNames::default());
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
    simulation.others_hold(ForeignNames::default());
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
    assert_eq!(simulation.looked_up, ["s1", "s2"], "a6: only once they are taken");
    simulation.looked_up.clear();
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
        (&["s4".to_owned(), "s4".to_owned()][..], 3),
        "before it is taken, and after"
    );
}

/// From so many new names on a listing takes the place of their look-ups.
const MANY_NAMES: usize = 64;

#[test]
fn n3_many_new_names_cost_one_listing() {
    let mut simulation = in_sync(1);
    simulation.looked_up.clear();
    (2..=200).for_each(|n| simulation.seen(service_seen(n)));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 200);
    assert!(simulation.looked_up.len() <= MANY_NAMES, "only those taken first, once more");
    // As at the start.
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    simulation.list(Kind::Service, (1..=200).map(service_seen));
    simulation.list(Kind::EndpointSlice, []);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 200);
    assert!(simulation.looked_up.len() <= MANY_NAMES, "only those taken first, once more");
}

#[test]
fn n3_a_failed_look_up_is_told_and_the_listing_takes_its_place() {
    let mut simulation = in_sync(1);
    simulation.names = None;
    simulation.seen(service_seen(2));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 1);
    assert!(messages(&simulation, 2)[0].contains("no answer"), "{:?}", messages(&simulation, 2));
    assert_eq!(simulation.looked_up, ["s1", "s2"], "it is not asked again and again");
    simulation.names = Some(ForeignNames::default());
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

/// What a listing shows there of ours may be our own, or have been.
#[test]
fn n3_a_name_of_others_that_we_have_left_is_not_joined_again() {
    for leaves_first in [false, true] {
        let mut simulation = in_sync(2);
        let holders = Holders { others: Holder::Other, ours: true };
        let shown = ForeignNames::from_iter([("s1".into(), holders)]);
        if leaves_first {
            // While the listing is under way.
            simulation.bridge.term.as_mut().unwrap().names.begin_listing();
        } else {
            simulation.others_hold(shown.clone());
            simulation.step(&mut |_| Fate::Applied);
            assert!(messages(&simulation, 1)[0].contains("stays"));
        }
        simulation.deleted(Kind::Service, "s1");
        simulation.step(&mut |_| Fate::Applied);
        if leaves_first {
            simulation.bridge.handle_names(Ok(shown), simulation.now);
        }
        simulation.names = Some(foreign(&["s1"]));
        simulation.seen(service_seen(1));
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!(simulation.registered(), ["s2 10.0.0.2 None"], "{leaves_first}");
        assert!(messages(&simulation, 1)[0].contains("it is not registered under it"));
    }
}

#[test]
fn n3_what_somebody_removed_is_written_again_at_once() {
    let mut simulation = in_sync(2);
    simulation.looked_up.clear();
    simulation.registrations.clear();
    simulation.names = None;
    simulation.begin_resync();
    simulation.show();
    simulation.finish_resync();
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!((simulation.registrations.len(), &*simulation.looked_up), (2, &[][..]));
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
    simulation.others_hold(ForeignNames::default());
    simulation.settle();
    let wanted = ["10.1.0.3", "10.1.0.4"].map(|address| format!("postgres {address} None"));
    assert_eq!(simulation.registered(), wanted);
}

/// Another cluster's bridge has instances under the name, too.
fn of_eu(came_first: bool) -> Found {
    let others = Holder::Kubernetes { cluster: Some("eu".into()) };
    Found { holders: Holders { others, ours: true }, came_first }
}

/// What a listing says of that.
fn eus() -> ForeignNames {
    let holders = of_eu(true).holders;
    ForeignNames::from_iter([("s2".into(), Holders { ours: false, ..holders })])
}

/// `s2` was just taken, and is being looked up once more.
fn just_taken(service: Service, settings: Settings) -> Simulation {
    let mut simulation = filled(Simulation::to(settings, Target::Catalog), 1);
    simulation.answers_look_ups = false;
    simulation.seen(SeenObject::Service(key("s2"), service));
    simulation.step(&mut |_| Fate::Applied);
    let asked = Action::ReadName("s2".into());
    assert!(simulation.asked.contains(&asked));
    simulation.asked.clear();
    simulation.bridge.handle_name("s2", Ok(None), simulation.now);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 2);
    assert!(simulation.asked.contains(&asked), "{:?}", simulation.asked);
    simulation.asked.clear();
    simulation.answers_look_ups = true;
    simulation
}

#[test]
fn a6_of_two_that_take_a_name_at_once_the_second_leaves() {
    let mut simulation = just_taken(numbered(2), settings());
    simulation.names = Some(eus());
    simulation.bridge.handle_name("s2", Ok(Some(of_eu(true))), simulation.now);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 1);
    assert_eq!(simulation.kv.len(), 1);
    assert!(messages(&simulation, 2)[0].contains("cluster \"eu\"; it is not registered under it"));
    simulation.take_sent();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "it does not come back");
    // Once the other one leaves, it may.
    simulation.others_hold(ForeignNames::default());
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.bridge.counts().problems), (2, 0));
}

#[test]
fn a6_the_first_stays_and_so_does_one_that_may_join() {
    let mut joins = numbered(2);
    joins.annotations.insert("kube-consul.io/join".into(), "true".into());
    for (service, came_first, told) in [(numbered(2), false, Some("stays")), (joins, true, None)] {
        let mut simulation = just_taken(service, settings());
        simulation.names = Some(eus());
        simulation.bridge.handle_name("s2", Ok(Some(of_eu(came_first))), simulation.now);
        simulation.settle();
        assert_eq!(simulation.registrations.len(), 2);
        let messages = messages(&simulation, 2);
        assert_eq!(messages.len(), told.iter().count(), "{messages:?}");
        assert!(told.is_none_or(|told| messages[0].contains(told)), "{messages:?}");
    }
}

#[test]
fn a6_a_listing_tells_what_the_look_up_was_too_early_for() {
    for answer in [Ok(None), Err("no leader".to_owned())] {
        let mut simulation = just_taken(numbered(2), settings());
        simulation.bridge.handle_name("s2", answer, simulation.now);
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!(simulation.bridge.counts().problems, 0);
        simulation.looked_up.clear();
        simulation.others_came_first = true;
        simulation.names = Some(eus());
        simulation.settle();
        assert_eq!((simulation.registrations.len(), simulation.looked_up.len()), (1, 1));
    }
    // One that was told to be alone is a name like any other from then on.
    let mut simulation = just_taken(numbered(2), settings());
    simulation.bridge.handle_name("s2", Ok(None), simulation.now);
    simulation.settle();
    simulation.looked_up.clear();
    simulation.others_came_first = true;
    simulation.others_hold(eus());
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.looked_up.len()), (2, 0));
}

#[test]
fn a6_nothing_waits_for_the_second_look_up() {
    let mut simulation = just_taken(numbered(2), settings());
    simulation.seen(slice_seen(1, false));
    simulation.seen(slice_seen(2, true));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 Critical", "s2 10.0.0.2 None"]);
}

/// The second has left; another replica of its own cluster still has the name.
#[test]
fn a6_who_has_left_as_the_second_does_not_come_back_through_another_replica() {
    let mut simulation = just_taken(numbered(2), settings());
    let holders = || ForeignNames::from_iter([("s2".into(), of_eu(true).holders)]);
    simulation.names = Some(holders());
    simulation.bridge.handle_name("s2", Ok(Some(of_eu(true))), simulation.now);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 1);
    simulation.others_hold(holders());
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 1, "nor with the next listing");
    simulation.others_hold(ForeignNames::default());
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.bridge.counts().problems), (2, 0));
}

#[test]
fn a6_one_that_may_join_keeps_the_name_behind_a_first_that_has_nothing() {
    let mut joins = numbered(2);
    joins.annotations.insert("kube-consul.io/join".into(), "true".into());
    let mut simulation = just_taken(joins, settings());
    simulation.names = Some(eus());
    simulation.bridge.handle_name("s2", Ok(Some(of_eu(true))), simulation.now);
    simulation.settle();
    let (_, mut first) = super::precedence::evil();
    first.created = -9;
    simulation.seen(SeenObject::Service(ObjectKey::new("evil", "s2"), first));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    assert!(messages(&simulation, 2)[0].contains("Service evil/s2 comes first"));
}

#[test]
fn a6_a_former_name_of_one_that_came_second_is_kept_if_it_may_join_or_nothing_is_removed() {
    use crate::domain::services::settings::{JoinExisting, Policy};
    let joining = Settings { join_existing: JoinExisting::Kubernetes, ..settings() };
    let upserting = Settings { policy: Policy::UpsertOnly, ..settings() };
    for (settings, stays) in [(joining, true), (upserting, true), (settings(), false)] {
        let mut simulation = just_taken(numbered(2), settings);
        let mut names = foreign(&["postgres"]);
        names.extend(eus());
        simulation.names = Some(names);
        simulation.bridge.handle_name("s2", Ok(Some(of_eu(true))), simulation.now);
        // It is renamed before it has left.
        simulation.seen(named(2, "postgres"));
        simulation.seen(slice_seen(2, true));
        simulation.settle();
        let expected: &[&str] = &["s1 10.0.0.1 None", "s2 10.0.0.2 None"];
        assert_eq!(simulation.registered(), expected[..=usize::from(stays)]);
    }
}

#[test]
fn a6_a_name_taken_by_a_write_without_an_answer_is_looked_up_too() {
    let mut simulation = in_sync(1);
    simulation.seen(service_seen(2));
    simulation.step(&mut |_| Fate::Lost);
    let written = simulation.sent.iter().find_map(|write| match write {
        Write::Register(it) => Some(it.clone()),
        _ => None,
    });
    // It was applied.
    let written = written.unwrap();
    simulation.registrations.insert(written.id.clone(), written);
    simulation.others_hold(ForeignNames::default());
    simulation.looked_up.clear();
    simulation.others_came_first = true;
    simulation.names = Some(eus());
    simulation.resync();
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.looked_up, ["s2"]);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
}

/// A Consul that filters no names is not asked for those that are held.
#[test]
fn a6_a_listing_leaves_out_no_name_that_others_may_have_taken_at_the_same_moment() {
    let held = |simulation: &Simulation| {
        let held: BTreeSet<String> =
            simulation.bridge.held_names().iter().map(ToString::to_string).collect();
        held.into_iter().collect::<Vec<_>>()
    };
    let mut simulation = just_taken(numbered(2), settings());
    assert_eq!(held(&simulation), ["s1"]);
    simulation.bridge.handle_name("s2", Ok(None), simulation.now);
    simulation.settle();
    assert_eq!(held(&simulation), ["s1", "s2"]);
    let mut simulation = just_taken(numbered(2), settings());
    simulation.bridge.handle_name("s2", Ok(Some(of_eu(true))), simulation.now);
    assert_eq!(held(&simulation), ["s1"]);
}
