//! What a list no longer shows, and what changed options would remove.

use super::*;
use crate::domain::sync::Once;

#[test]
fn a_few_missing_objects_are_removed_at_once() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, (11..=30).map(service_seen));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 20);
}

#[test]
fn an_empty_list_beside_a_full_one_removes_nothing_and_turns_nothing_critical() {
    for kind in WATCHED {
        let mut simulation = in_sync(30);
        simulation.list(kind, []);
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{kind:?} while running");
        assert!(simulation.bridge.is_holding());

        let mut simulation = simulation.restarted(settings());
        simulation.resync();
        for other in WATCHED {
            match other {
                _ if other == kind => simulation.list(other, []),
                Kind::Service => simulation.list(other, (1..=30).map(service_seen)),
                Kind::EndpointSlice => {
                    simulation.list(other, (1..=30).map(|n| slice_seen(n, true)));
                }
                _ => unreachable!("nobody asks for them"),
            }
        }
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{kind:?} at the start");
        assert!(simulation.bridge.is_holding());
    }
}

#[test]
fn headless_services_without_their_slices_keep_their_instances() {
    let headless = |n: u8| {
        SeenObject::Service(
            key(&format!("s{n}")),
            service().with(|s| s.cluster_ips.clear()).build(),
        )
    };
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(headless));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 30);
    let mut simulation = simulation.restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(headless));
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    confirm(&mut simulation, (1..=30).map(headless).collect(), Vec::new());
    assert_eq!(simulation.registrations.len(), 0, "a second list agreed");
}

#[test]
fn l10_what_is_absent_since_its_namespace_is_not_selected_is_never_confirmed() {
    let mut elsewhere = settings();
    elsewhere.namespaces.insert("typo".into());
    let mut simulation = in_sync(30).restarted(elsewhere);
    simulation.resync();
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 30);
    assert!(simulation.bridge.is_holding());
    let relist = simulation.is_asked(&Action::Relist);
    assert!(!relist, "only --allow-removals says it is meant");
}

#[test]
fn l10_any_number_that_is_absent_is_confirmed_first() {
    for (total, gone) in [(1, 1), (3, 2), (7, 7)] {
        let left = || (gone + 1..=total).map(service_seen);
        let slices = || (1..=total).map(|n| slice_seen(n, true));
        for is_start in [false, true] {
            let mut simulation = in_sync(total);
            if is_start {
                simulation = simulation.restarted(settings());
                simulation.resync();
                simulation.list(Kind::EndpointSlice, slices());
            }
            simulation.list(Kind::Service, left());
            simulation.settle();
            assert_eq!(simulation.registrations.len(), usize::from(total), "{gone} of {total}");
            confirm(&mut simulation, left().collect(), slices().collect());
            assert_eq!(simulation.registrations.len(), usize::from(total - gone), "{is_start}");
        }
    }
}

#[test]
fn l10_a_selection_that_would_remove_everything_is_held_and_warned_of() {
    for (total, selected, held) in [(7, 0, true), (1, 0, true), (7, 1, false)] {
        let mut narrow = settings();
        narrow.selector = "team=a".parse().unwrap();
        let mut simulation = in_sync(total).restarted(narrow);
        simulation.resync();
        let services = (1..=total).map(|n| {
            let labels =
                |it: &mut Service| it.labels.insert("team".into(), "a".into()).map_or((), drop);
            let service = service().with(|it| it.cluster_ips = vec![ip(&format!("10.0.0.{n}"))]);
            let service = if n <= selected { service.with(labels) } else { service };
            SeenObject::Service(key(&format!("s{n}")), service.build())
        });
        simulation.list(Kind::Service, services);
        simulation.list(Kind::EndpointSlice, (1..=total).map(|n| slice_seen(n, true)));
        simulation.settle();
        let left = if held { total } else { selected };
        assert_eq!(simulation.registrations.len(), usize::from(left), "{selected} of {total}");
        let reports = simulation.bridge.take_reports();
        assert_eq!(reports.contains(&Report::NothingSelected), selected == 0, "{reports:?}");
        // Not again and again, and it is over when one is.
        simulation.seen(slice_seen(1, false));
        assert!(!simulation.bridge.take_reports().contains(&Report::NothingSelected));
        let labels = |it: &mut Service| drop(it.labels.insert("team".into(), "a".into()));
        simulation.seen(SeenObject::Service(key("s9"), service().with(labels).build()));
        let reports = simulation.bridge.take_reports();
        assert_eq!(reports.contains(&Report::SelectedAgain), selected == 0, "{reports:?}");
    }
}

#[test]
fn l10_one_that_synchronizes_once_waits_for_the_second_list() {
    let mut simulation = in_sync(2);
    let limit = simulation.now + Duration::from_secs(30);
    simulation.list(Kind::Service, []);
    simulation.next_actions();
    assert_eq!(simulation.bridge.once(limit, simulation.now), Once::Pending);
    confirm(&mut simulation, Vec::new(), (1..=2).map(|n| slice_seen(n, true)).collect());
    assert_eq!(simulation.bridge.once(limit, simulation.now), Once::InSync);
    assert_eq!(simulation.registrations.len(), 0);
}

#[test]
fn l11_a_second_list_that_shows_all_again_says_so_though_nothing_is_planned_yet() {
    let mut simulation = in_sync(3).restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.settle();
    begin_confirmation(&mut simulation);
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    simulation.bridge.take_reports();
    // All in one go: no Service has claimed its PTR key again when the lists are complete.
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    let reports = simulation.bridge.take_reports();
    assert!(reports.contains(&Report::Released { confirmed: false }), "{reports:?}");
    simulation.settle();
    assert_eq!((simulation.take_sent(), simulation.kv.len()), (0, 3));
}

#[test]
fn a_second_list_that_agrees_releases_what_is_held() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    simulation.settle();
    confirm(&mut simulation, Vec::new(), (1..=30).map(|n| slice_seen(n, true)).collect());
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0));
    assert!(!simulation.bridge.is_holding());
    assert!(simulation.bridge.take_reports().contains(&Report::Released { confirmed: true }));
}

#[test]
fn a_second_list_that_disagrees_removes_nothing() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    simulation.settle();
    let slices: Vec<_> = (1..=30).map(|n| slice_seen(n, true)).collect();
    confirm(&mut simulation, (1..=30).map(service_seen).collect(), slices);
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_holding());
    let unconfirmed = Report::Released { confirmed: false };
    assert!(simulation.bridge.take_reports().contains(&unconfirmed));

    // At the start, too.
    let mut simulation = simulation.restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    let slices: Vec<_> = (1..=30).map(|n| slice_seen(n, true)).collect();
    confirm(&mut simulation, (1..=30).map(service_seen).collect(), slices);
    assert_eq!(simulation.take_sent(), 0);
    assert!(simulation.bridge.take_reports().contains(&unconfirmed), "at the start");
}

#[test]
fn a_second_list_that_lacks_still_more_wants_a_third() {
    // At the start what is held counts as well as what is newly missing.
    for (total, left, is_start) in [(60, 20, false), (100, 40, true)] {
        let mut simulation = in_sync(total);
        if is_start {
            simulation = simulation.restarted(settings());
            simulation.resync();
        }
        let slices = || (1..=total).map(|n| slice_seen(n, true)).collect::<Vec<_>>();
        simulation.list(Kind::Service, (total - left + 1..=total).map(service_seen));
        simulation.list(Kind::EndpointSlice, slices());
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{total}");
        confirm(&mut simulation, Vec::new(), slices());
        assert_eq!(simulation.take_sent(), 0, "{left} more are missing now");
        confirm(&mut simulation, Vec::new(), slices());
        assert_eq!(simulation.registrations.len(), 0, "{total}");
    }
}

#[test]
fn without_the_clusters_identity_nothing_is_confirmed() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    begin_confirmation(&mut simulation);
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 0);
}

#[test]
fn reported_deletions_are_made_at_once_however_many() {
    let mut simulation = in_sync(30);
    for n in 1..=30 {
        simulation.deleted(Kind::Service, &format!("s{n}"));
    }
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0));
    // Those that were missing from a list, too.
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    for n in 1..=30 {
        simulation.deleted(Kind::Service, &format!("s{n}"));
    }
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 0);
}

#[test]
fn changed_options_remove_many_only_when_that_is_allowed() {
    let rows: Vec<(&str, Choice, usize)> = vec![
        ("selector", |s| s.selector = "app=web".parse().unwrap(), 0),
        ("namespace", |s| s.namespaces = ["other".into()].into(), 0),
        ("opt-in", |s| s.default_sync = false, 0),
        ("address mode", |s| s.address = AddressMode::ExternalIp, 0),
    ];
    for (what, choose, left) in rows {
        for (allowed, expected) in [(false, 30), (true, left)] {
            let mut changed = settings();
            choose(&mut changed);
            changed.allow_removals = allowed;
            let mut simulation = in_sync(30).restarted(changed);
            simulation.resync();
            simulation.list(Kind::Service, (1..=30).map(service_seen));
            simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
            simulation.settle();
            let counts = (simulation.registrations.len(), simulation.kv.len());
            assert_eq!(counts, (expected, expected), "{what}, allowed: {allowed}");
            assert_eq!(simulation.bridge.is_holding(), !allowed, "{what}");
        }
    }
}

#[test]
fn a_plan_sees_all_that_is_held_and_why() {
    let mut changed = settings();
    changed.selector = "app=web".parse().unwrap();
    for (settings, services, cause) in
        [(changed, 30, Cause::Selection), (settings(), 0, Cause::Absence)]
    {
        let mut simulation = in_sync(30).restarted(settings);
        simulation.resync();
        simulation.list(Kind::Service, (1..=services).map(service_seen));
        simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!(simulation.registrations.len(), 30);
        let held = simulation.bridge.release_holds();
        // The Services: their PTR records go with their instances.
        assert_eq!(held.len(), 30, "{cause:?}");
        assert!(held.values().all(|it| *it == cause), "{cause:?}: {held:?}");
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0), "{cause:?}");
        assert!(simulation.bridge.release_holds().is_empty());
    }
}

#[test]
fn a_changed_template_is_a_move_and_not_held() {
    let mut changed = settings();
    changed.name_template = "{service}-{namespace}".parse().unwrap();
    let mut simulation = in_sync(30).restarted(changed);
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert!(simulation.registrations.values().all(|r| r.service.ends_with("-ns")));
    assert!(simulation.kv.values().all(|e| e.record.value.contains("-ns.service.")));
}

#[test]
fn a_slice_that_cannot_be_read_at_the_start_turns_nothing_critical() {
    let mut simulation = in_sync(3).restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    let unread = SeenObject::Undecodable(Kind::EndpointSlice, key("s2-x"), "no".to_owned());
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true), unread, slice_seen(3, false)]);
    simulation.settle();
    let registered = simulation.registered();
    assert!(registered.contains(&"s2 10.0.0.2 None".to_owned()), "{registered:?}");
    simulation.seen(slice_seen(2, false));
    simulation.settle();
    assert!(simulation.registered().contains(&"s2 10.0.0.2 Critical".to_owned()));
    assert!(simulation.registered().contains(&"s3 10.0.0.3 Critical".to_owned()));
}

#[test]
fn a_ptr_record_of_no_service_stays_with_an_instance_whose_slice_cannot_be_read() {
    let mut before = in_sync(3);
    let late = before.kv.remove("0.0.0.10.IN-ADDR.ARPA/10.0.0.1").unwrap();
    let mut simulation = before.restarted(settings());
    simulation.resync();
    // It is headless by now.
    let headless = Service { cluster_ips: Vec::new(), ..numbered(1) };
    let headless = SeenObject::Service(key("s1"), headless);
    simulation.list(Kind::Service, [headless, service_seen(2), service_seen(3)]);
    let unread = SeenObject::Undecodable(Kind::EndpointSlice, key("s1-x"), "no".to_owned());
    simulation.list(Kind::EndpointSlice, [unread, slice_seen(2, true), slice_seen(3, true)]);
    simulation.settle();
    written_late(&mut simulation, late);
    assert_eq!(simulation.take_sent(), 0);
    simulation.seen(slice_seen(1, true));
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (3, 2), "a pod has none");
}

#[test]
fn what_an_empty_list_lacked_while_nobody_led_waits_for_a_second_one_though_most_is_back() {
    for kind in WATCHED {
        let mut simulation = in_sync(30);
        simulation.lose();
        simulation.list(kind, []);
        let seen = |n| match kind {
            Kind::Service => service_seen(n),
            _ => slice_seen(n, true),
        };
        (1..=28).for_each(|n| simulation.seen(seen(n)));
        simulation.acquire();
        simulation.resync();
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!(simulation.take_sent(), 0, "{kind:?}");
        assert!(simulation.bridge.is_holding());
        let services = if kind == Kind::Service { 28 } else { 30 };
        let slices = (1..=28).map(|n| slice_seen(n, true)).collect();
        confirm(&mut simulation, (1..=services).map(service_seen).collect(), slices);
        assert_eq!(simulation.take_sent(), if kind == Kind::Service { 4 } else { 2 });
    }
}

#[test]
fn a_list_that_lacks_slices_that_could_never_be_read_removes_nothing() {
    let mut simulation = in_sync(30).restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    let unread =
        |n| SeenObject::Undecodable(Kind::EndpointSlice, key(&format!("s{n}-x")), "odd".to_owned());
    simulation.list(Kind::EndpointSlice, (1..=30).map(unread));
    simulation.settle();
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(simulation.bridge.is_holding());
    confirm(&mut simulation, (1..=30).map(service_seen).collect(), Vec::new());
    let all = simulation.registered();
    assert!(all.iter().all(|it| it.ends_with("Critical")), "a second list agrees: {all:?}");
}

#[test]
fn a_held_service_that_a_later_list_lacks_is_removed() {
    let mut changed = settings();
    changed.default_sync = false;
    let mut simulation = in_sync(30).restarted(changed);
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 30);
    simulation.list(Kind::Service, (2..=30).map(service_seen));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 29);
}

#[test]
fn a_held_service_that_loses_nothing_any_more_is_as_any_other() {
    let mut changed = settings();
    changed.default_sync = false;
    let mut simulation = in_sync(30).restarted(changed);
    simulation.resync();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    let mut service = numbered(1);
    service.annotations.insert("kube-consul.io/sync".into(), "true".into());
    simulation.seen(SeenObject::Service(key("s1"), service));
    simulation.settle();
    simulation.seen(slice_seen(1, false));
    simulation.settle();
    assert!(simulation.registered().contains(&"s1 10.0.0.1 Critical".to_owned()));
    assert_eq!(simulation.registrations.len(), 30);
}

#[test]
fn an_identity_read_before_the_second_look_confirms_nothing() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    begin_confirmation(&mut simulation);
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn a_list_that_began_before_the_second_look_confirms_nothing() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    simulation.bridge.handle_watch(WatchEvent::ListStarted(Kind::Service), simulation.now);
    begin_confirmation(&mut simulation);
    simulation.bridge.handle_watch(WatchEvent::ListCompleted(Kind::Service), simulation.now);
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.take_sent(), 0);
    assert!(simulation.bridge.is_holding());
    simulation.list(Kind::Service, []);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 0);
}
