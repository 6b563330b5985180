//! Services that ask for an import.

use super::*;

#[test]
fn the_slices_follow_the_instances() {
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "pg")]));
    assert_eq!(harness.log(), [""; 0], "nothing is known yet");
    let pg = source("pg", None);
    assert_eq!(
        harness.answer(&pg, &["10.0.0.1", "!10.0.0.2"]).endpoints(),
        ["10.0.0.1", "!10.0.0.2"]
    );
    assert_eq!(harness.log(), ["write 2"]);
    harness.answer(&pg, &["!10.0.0.2", "10.0.0.1"]);
    assert_eq!(harness.log(), [""; 0], "the order does not matter");
    assert_eq!(harness.answer(&pg, &["10.0.0.2"]).endpoints(), ["10.0.0.2"]);
    assert_eq!(harness.answer(&pg, &[]).endpoints(), [""; 0], "a true empty answer is believed");
    assert_eq!(harness.log(), ["write 1", "delete"]);
    assert!(harness.import.is_settled());
}

#[test]
fn nothing_is_written_before_both_kinds_are_listed() {
    let mut import = Importer::new(None, None);
    import.handle_services_list();
    import.handle_service(key(DB), service("u1", &[(IMPORT, "pg")]));
    import.handle_services_listed();
    assert_eq!(import.poll_action(Moment::ZERO), None);
    import.handle_slices_list();
    import.handle_slices_listed();
    assert_eq!(
        import.poll_action(Moment::ZERO),
        Some(Action::Follow(source("pg", None), "shop".into()))
    );
}

#[test]
fn i11_another_service_is_in_place_before_the_old_one_goes() {
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "old")])).answer(&source("old", None), &["10.0.0.1"]);
    harness.log();
    harness.service(service("u1", &[(IMPORT, "new")]));
    assert_eq!(harness.endpoints(), ["10.0.0.1"], "nothing is known of the new one yet");
    assert_eq!(harness.followed.iter().collect::<Vec<_>>(), [&source("new", None)]);
    assert_eq!(harness.answer(&source("new", None), &["10.0.0.2"]).endpoints(), ["10.0.0.2"]);
    assert_eq!(harness.log(), ["write 1"]);
}

#[test]
fn i11_a_mark_that_goes_takes_the_slices_once() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    harness.log();
    harness.service(service("u1", &[]));
    assert_eq!((harness.endpoints(), harness.log()), (vec![], vec!["delete".to_owned()]));
    assert!(harness.followed.is_empty());
    harness.answer(&pg, &["10.0.0.2"]);
    assert_eq!(harness.log(), [""; 0], "and nothing brings them back");
}

#[test]
fn i7_a_selector_is_a_problem_and_takes_our_slices() {
    let mut harness = Harness::new();
    let mut db = service("u1", &[(IMPORT, "pg")]);
    harness.service(db.clone()).answer(&source("pg", None), &["10.0.0.1"]);
    db.has_selector = true;
    harness.service(db.clone());
    assert_eq!(harness.endpoints(), [""; 0]);
    assert!(harness.problems().contains("expected a Service without a selector"));
    // The slices of the cluster stay, and are told once the selector is gone.
    let slice = Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
    harness.show(&key(DB), "db-abcde", "u1", "endpointslice-controller.k8s.io", slice);
    db.has_selector = false;
    harness.service(db).answer(&source("pg", None), &["10.0.0.1"]);
    let problems = harness.problems();
    assert!(
        problems.contains("kubectl delete endpointslice db-abcde --namespace shop"),
        "{problems}"
    );
    assert_eq!(harness.endpoints(), ["10.0.0.1"]);
}

#[test]
fn i10_a_service_that_was_made_again_starts_anew() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    // Deleted and made again before any watch event of the deletion.
    harness.service(service("u2", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.endpoints(), ["10.0.0.1"]);
    assert!(harness.slices.values().all(|(owner, _)| &**owner == "u2"));
    assert_eq!(harness.log(), ["write 1", "write 1", "delete"]);
}

#[test]
fn i10_nothing_is_made_for_a_service_that_is_going() {
    let mut harness = Harness::new();
    let mut going = service("u1", &[(IMPORT, "pg")]);
    going.is_going = true;
    harness.service(going).answer(&source("pg", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), [""; 0]);
}

#[test]
fn a_service_that_is_gone_is_followed_no_longer_and_leaves_its_slices_to_their_owner() {
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    harness.log();
    harness.import.handle_service_gone(&key(DB));
    harness.run();
    assert!(harness.followed.is_empty() && harness.log().is_empty());
}

#[test]
fn slices_of_others_are_never_touched() {
    let mut harness = Harness::new();
    let slice = || Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
    harness.show(&key(DB), "db-1", "u1", "somebody", slice());
    harness.show(&key(DB), "db-2", "u1", "", slice());
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    harness.service(service("u1", &[]));
    assert_eq!(harness.log(), ["write 1", "delete"]);
}

#[test]
fn the_first_datacenter_that_is_usable_is_taken() {
    let mut harness = Harness::new();
    let (east, west) = (source("pg", Some("east")), source("pg", Some("west")));
    harness.service(service("u1", &[(IMPORT, "pg"), (DATACENTERS, "east,west")]));
    assert_eq!(
        harness.answer(&west, &["10.2.0.1"]).endpoints(),
        [""; 0],
        "the first may yet answer"
    );
    assert_eq!(harness.answer(&east, &["10.1.0.1"]).endpoints(), ["10.1.0.1"]);
    assert_eq!(harness.answer(&east, &["!10.1.0.1"]).endpoints(), ["10.2.0.1"]);
    assert_eq!(harness.answer(&west, &[]).endpoints(), ["!10.1.0.1"], "none is: the preferred one");
    assert_eq!(harness.answer(&east, &["10.1.0.1"]).endpoints(), ["10.1.0.1"]);
}

#[test]
fn the_last_endpoints_stay_for_as_long_as_it_is_asked_for() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "1m")])).answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.answer(&pg, &[]).endpoints(), ["10.0.0.1"]);
    assert_eq!(harness.later(59).endpoints(), ["10.0.0.1"]);
    assert_eq!(harness.later(1).endpoints(), [""; 0]);
    harness.answer(&pg, &["10.0.0.2"]).later(100);
    assert_eq!(harness.answer(&pg, &["!10.0.0.2"]).endpoints(), ["10.0.0.2"], "a new minute");
    assert_eq!(harness.import.next_timeout(), Some(harness.now + Duration::from_mins(1)));
}

#[test]
fn what_is_refused_is_told_and_tried_again_with_a_growing_delay() {
    let mut harness = Harness::new();
    harness.refuse = 2;
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    assert_eq!((harness.log(), harness.problems()), (vec!["refused".to_owned()], "no".to_owned()));
    assert!(harness.import.next_timeout().is_some_and(|at| at <= RETRY.first));
    harness.later(1);
    assert_eq!(harness.log(), ["refused"]);
    harness.later(2);
    assert_eq!((harness.log(), harness.problems()), (vec!["write 1".to_owned()], String::new()));
    assert_eq!(harness.import.next_timeout(), None);
}

#[test]
fn a_change_while_a_write_is_under_way_waits_for_its_answer() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")]));
    harness.hold = true;
    harness.answer(&pg, &["10.0.0.1"]).answer(&pg, &["10.0.0.2"]).answer(&pg, &["10.0.0.3"]);
    assert_eq!(harness.pending.len(), 1);
    harness.hold = false;
    assert_eq!(harness.run().endpoints(), ["10.0.0.3"]);
    assert_eq!(harness.log(), ["write 1", "write 1"]);
}

#[test]
fn two_services_share_a_source() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")]));
    harness.import.handle_service(key("shop/db-2"), service("u2", &[(IMPORT, "pg")]));
    harness.run().answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.endpoints(), ["10.0.0.1", "10.0.0.1"]);
    assert_eq!(harness.followed.len(), 1);
    harness.service(service("u1", &[]));
    assert_eq!(harness.followed.len(), 1, "the other one still asks for it");
    let namespaces = |harness: &Harness| -> Vec<Box<str>> {
        harness.followed_for.iter().map(|(_, namespace)| namespace.clone()).collect()
    };
    harness.import.handle_service(key("bank/db"), service("u3", &[(IMPORT, "pg")]));
    assert_eq!(namespaces(harness.run()), ["bank".into(), "shop".into()]);
    harness.import.handle_service_gone(&key("shop/db-2"));
    assert_eq!(namespaces(harness.run()), ["bank".into()]);
    harness.import.handle_service_gone(&key("bank/db"));
    assert!(harness.run().followed.is_empty());
}

#[test]
fn a_restart_writes_nothing() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1", "10.0.0.2"]);
    let there = harness.slices.clone();
    let mut again = Harness::new();
    for (name, (owner, slice)) in &there {
        again.show(&key(DB), name, owner, MANAGED_BY, slice.clone());
    }
    again.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.2", "10.0.0.1"]);
    assert_eq!(again.log(), [""; 0]);
}

#[test]
fn a_mark_that_cannot_be_read_changes_nothing() {
    let mut harness = Harness::new();
    let mut db = service("u1", &[(CONSUL8S_NAME, "pg")]);
    db.labels = [(CONSUL8S_SOURCE.into(), "consul".into())].into();
    harness.service(db.clone()).answer(&source("pg", None), &["10.0.0.1"]);
    harness.log();
    db.annotations.clear();
    harness.service(db);
    assert_eq!((harness.endpoints(), harness.log()), (vec!["10.0.0.1".to_owned()], vec![]));
    assert!(harness.problems().contains("consul8s/service.name"));
}

#[test]
fn a_deletion_that_is_refused_is_not_sent_again_at_once() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    harness.log();
    harness.refuse = 1;
    harness.service(service("u1", &[]));
    assert_eq!((harness.log(), harness.problems()), (vec!["refused".to_owned()], "no".to_owned()));
    harness.later(1);
    assert_eq!((harness.log(), harness.problems()), (vec!["delete".to_owned()], String::new()));
}

#[test]
fn a_source_that_fails_is_told_and_passed_over_but_proves_nothing() {
    let mut harness = Harness::new();
    let (east, west) = (source("pg", Some("east")), source("pg", Some("west")));
    harness.service(service("u1", &[(IMPORT, "pg"), (DATACENTERS, "east,west")]));
    harness.answer(&east, &["10.1.0.1"]).answer(&west, &["10.2.0.1"]);
    let denied = || Problem::new(Reason::Denied, "hidden");
    harness.import.handle_unknown(&east, denied());
    assert_eq!(harness.run().endpoints(), ["10.1.0.1"], "what it said before stays true");
    assert_eq!(harness.problems(), "hidden");
    harness.answer(&east, &["10.1.0.1"]);
    assert_eq!(harness.problems(), "");

    // One that has never answered: the next one is taken while it is usable.
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "pg"), (DATACENTERS, "east,west")]));
    harness.import.handle_unknown(&east, denied());
    assert_eq!(harness.answer(&west, &["10.2.0.1"]).endpoints(), ["10.2.0.1"]);
    assert_eq!(harness.answer(&west, &[]).endpoints(), ["10.2.0.1"], "nobody knows of the first");
    assert_eq!(harness.answer(&east, &[]).endpoints(), [""; 0]);
}

#[test]
fn what_a_former_process_wrote_is_not_kept_where_the_operator_forbids_it() {
    let mut harness = Harness::new();
    harness.import = std::mem::replace(&mut harness.import, Importer::new(None, None))
        .within(Addresses { denied: vec!["10.0.0.0/24".parse().unwrap()], ..Default::default() });
    let endpoints: BTreeMap<IpAddr, bool> =
        ["10.0.0.1", "10.0.1.1"].iter().map(|it| (it.parse().unwrap(), true)).collect();
    let ports = vec![SlicePort { name: "pg".into(), protocol: "TCP".into(), port: 5432 }];
    let slice = Slice { is_ipv6: false, ports, endpoints };
    harness.show(&key(DB), "db-former", "u1", MANAGED_BY, slice);
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "1h")]));
    assert_eq!(harness.log(), [""; 0], "nothing is known yet");
    assert_eq!(harness.answer(&source("pg", None), &["!10.0.0.1"]).endpoints(), ["10.0.1.1"]);
    assert!(harness.problems().contains("--deny-cidr permit, found \"10.0.0.1\""));
}

#[test]
fn keeping_ends_when_the_service_asks_for_less() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "1h")])).answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.answer(&pg, &["!10.0.0.2"]).later(60).endpoints(), ["10.0.0.1"]);
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "30s")]));
    assert_eq!(harness.endpoints(), ["!10.0.0.2"]);
    // And what is gone is not found again in the slices.
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "1h")]));
    assert_eq!(harness.later(1).endpoints(), ["!10.0.0.2"]);
    harness.service(service("u1", &[(IMPORT, "other"), (KEEP, "1h")]));
    harness.answer(&source("other", None), &[]);
    assert_eq!(harness.endpoints(), [""; 0], "another service's are nothing to keep");
}

#[test]
fn an_answer_for_an_earlier_service_of_that_name_says_nothing() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")]));
    harness.hold = true;
    harness.answer(&pg, &["10.0.0.1"]);
    let first = harness.pending.pop_front().unwrap();
    harness.service(service("u2", &[(IMPORT, "pg")]));
    harness.pending.retain(|action| !matches!(action, Action::Unfollow(..)));
    harness.import.handle_instances(&pg, instances(&["10.0.0.1"]), harness.now);
    harness.run();
    let Action::Write(Write::Put { uid, name, slice, .. }) = first else { panic!("{first:?}") };
    let late = owned(&key(DB), &uid, MANAGED_BY, slice);
    harness.import.handle_slice_written(&key(DB), &uid, &name, Ok(Some(late)), harness.now);
    harness.run();
    let puts = harness.pending.iter().filter(|it| matches!(it, Action::Write(Write::Put { .. })));
    assert_eq!(puts.count(), 1, "one write under way for the new one");
}

#[test]
fn a_slice_with_our_label_that_nobody_owns_is_left_alone() {
    let mut harness = Harness::new();
    let slice = Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
    harness.show(&key(DB), "db-hand", "", MANAGED_BY, slice);
    harness.service(service("u1", &[]));
    assert_eq!(harness.log(), [""; 0]);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), ["write 1"]);
    assert!(harness.problems().contains("db-hand"));
}

#[test]
fn an_older_watch_event_than_our_write_costs_no_write() {
    let mut harness = Harness::new();
    let version = |number: u64| Version(number.to_string().into());
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    let name = harness.slices.keys().next().unwrap().clone();
    let slice = |harness: &Harness| harness.slices.values().next().unwrap().1.clone();
    let first = slice(&harness);
    harness.hold = true;
    harness.answer(&pg, &["10.0.0.2"]);
    let Some(Action::Write(Write::Put { slice: second, .. })) = harness.pending.pop_front() else {
        panic!("no write")
    };
    let shown = |slice: &Slice, number| OwnedSlice {
        version: version(number),
        ..owned(&key(DB), "u1", MANAGED_BY, slice.clone())
    };
    let written = Ok(Some(shown(&second, 20)));
    harness.import.handle_slice_written(&key(DB), "u1", &name, written, harness.now);
    let at = ObjectKey::new("shop", name);
    harness.import.handle_slice(at.clone(), shown(&first, 19));
    harness.run();
    assert!(harness.pending.is_empty(), "an older event: {:?}", harness.pending);
    harness.import.handle_slice(at.clone(), shown(&second, 20));
    harness.import.handle_slice(at, shown(&first, 21));
    harness.run();
    assert_eq!(harness.pending.len(), 1, "a newer one by somebody else is");
}

#[test]
fn a_namespace_has_room_for_some_sources_and_others_are_not_harmed() {
    let mut harness = Harness::new();
    let many: Vec<String> = (0..15).map(|n| format!("s{n}")).collect();
    let put = |harness: &mut Harness, namespace: &str, n: usize| {
        let name = format!("pg{n}");
        let asks = service(&name, &[(IMPORT, &name), (FAILOVER, &many.join(","))]);
        harness.import.handle_service(key(&format!("{namespace}/{name}")), asks);
        harness.run();
    };
    // Sixteen pairs each.
    for n in 0..125 {
        put(&mut harness, "evil", n);
    }
    assert_eq!(harness.problems(), "");
    let followed = harness.followed.len();
    put(&mut harness, "evil", 125);
    assert!(harness.problems().contains("at most 2000 pairs"), "{}", harness.problems());
    assert_eq!(harness.followed.len(), followed);
    put(&mut harness, "shop", 126);
    assert_eq!(harness.followed.len(), followed + 1, "another namespace has its own room");
    harness.import.handle_service_gone(&key("evil/pg3"));
    assert_eq!(harness.run().problems(), "", "what goes gives its room to the next");
    // Who asks for less, and then for nothing, leaves nothing behind.
    for n in 0..=126 {
        for namespace in ["evil", "shop"] {
            harness.import.handle_service_gone(&key(&format!("{namespace}/pg{n}")));
        }
    }
    assert!(harness.run().followed.is_empty() && harness.import.sources_in.is_empty());
}
