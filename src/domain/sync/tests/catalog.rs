//! What only the catalog sink needs: namespace nodes, and leadership that is lost.

use super::*;
use crate::domain::sync::Group;
use crate::domain::testing::port;

/// As [`in_sync`], in the catalog.
fn in_catalog(count: u8) -> Simulation {
    filled(Simulation::of_catalog(), count)
}

fn namespace_nodes(simulation: &Simulation) -> Vec<&str> {
    simulation.namespace_nodes.iter().map(|node| &**node).collect()
}

#[test]
fn the_node_of_a_namespace_goes_with_the_last_record_on_it() {
    let mut simulation = in_catalog(2);
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    assert_eq!(namespace_nodes(&simulation), ["ns"]);
    simulation.deleted(Kind::Service, "s2");
    simulation.settle();
    assert_eq!(namespace_nodes(&simulation), [""; 0]);
    assert!(simulation.bridge.is_settled());
    simulation.seen(service_seen(1));
    simulation.settle();
    assert_eq!((namespace_nodes(&simulation).len(), simulation.registrations.len()), (1, 1));
}

#[test]
fn an_empty_node_that_a_reading_shows_is_removed() {
    let mut simulation = in_catalog(1);
    simulation.namespace_nodes.insert("left-behind".into());
    simulation.resync();
    simulation.settle();
    assert_eq!(namespace_nodes(&simulation), ["ns"]);
}

#[test]
fn a_node_stays_while_a_write_to_it_is_uncertain() {
    let mut simulation = in_catalog(1);
    simulation.deleted(Kind::Service, "s1");
    simulation.step(&mut |_| Fate::Lost);
    let asked = simulation.next_actions();
    assert!(asked.is_empty(), "{asked:?}");
    simulation.settle();
    assert_eq!(namespace_nodes(&simulation), [""; 0]);
}

/// Up to the removal of the node `ns`, whose last record is gone.
fn until_node_goes(simulation: &mut Simulation) -> FlightId {
    simulation.deleted(Kind::Service, "s1");
    let removal = simulation.step_until_node(&mut |_| Fate::Applied);
    let Some((flight, namespace)) = removal else { panic!("no node is removed") };
    assert_eq!(&*namespace, "ns");
    flight
}

impl Simulation {
    fn answer_node(&mut self, flight: FlightId, answer: NamespaceNodeAnswer) {
        self.bridge.handle_namespace_node(flight, answer, self.now);
    }
}

#[test]
fn nothing_is_written_to_a_node_that_is_being_removed() {
    let mut simulation = in_catalog(1);
    let flight = until_node_goes(&mut simulation);
    simulation.seen(service_seen(2));
    assert_eq!(simulation.next_actions(), []);
    assert!(!simulation.bridge.is_settled());
    let plan = simulation.bridge.plan_of(&key("s2"), simulation.now).unwrap();
    let node = RecordKey::NamespaceNode("ns".into());
    assert_eq!(plan.waits, [(node, Wait::NodeGoing)].into());
    simulation.answer_node(flight, NamespaceNodeAnswer::Removed);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 Critical"]);
}

fn foreign_on_node() -> NamespaceNodeAnswer {
    NamespaceNodeAnswer::Foreign { node: "k8s-kubernetes.ns".into(), ids: vec!["db".into()] }
}

#[test]
fn what_others_put_on_a_node_keeps_it_and_is_a_problem() {
    let mut simulation = in_catalog(1);
    let flight = until_node_goes(&mut simulation);
    simulation.answer_node(flight, foreign_on_node());
    let namespace = ObjectKey::new("", "ns");
    let problems = simulation.bridge.problems();
    let [(Subject::Namespace, object, problem)] = *problems else { panic!("{problems:?}") };
    assert_eq!((object, problem.reason), (&namespace, Reason::ForeignOnNode));
    assert!(problem.message.contains("found db"), "{problem}");
    assert_eq!(simulation.next_actions(), [], "until it is shown again");
    simulation.resync();
    simulation.settle();
    assert_eq!((simulation.bridge.counts().problems, namespace_nodes(&simulation).len()), (0, 0));
}

#[test]
fn one_that_lost_the_lead_writes_nothing_until_consul_is_read_again() {
    let mut simulation = in_sync(3);
    simulation.take_sent();
    simulation.lose();
    simulation.deleted(Kind::Service, "s1");
    simulation.seen(slice_seen(2, false));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_settled());
    // Meanwhile the other one has done a part of it.
    simulation.registrations.retain(|id, _| !id.contains("_s1_"));
    simulation.kv.retain(|key, _| !key.ends_with("/10.0.0.1"));
    simulation.acquire();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "it is not read yet");
    assert!(simulation.is_asked(&Action::Resync { consistent: true }));
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 1, "s2 turns critical");
    assert!(simulation.bridge.is_settled());
}

#[test]
fn the_first_resync_of_a_term_is_consistent_and_no_other() {
    let mut simulation = Simulation::of_catalog();
    for _ in 0..2 {
        assert_eq!(simulation.next_actions(), []);
        assert_eq!(simulation.asked, [Action::Resync { consistent: true }]);
        simulation.bridge.handle_resync(Err("no leader".to_owned()), simulation.now);
        simulation.asked.clear();
        simulation.now = simulation.bridge.next_timeout().unwrap();
        assert_eq!(simulation.next_actions(), []);
        assert_eq!(simulation.asked, [Action::Resync { consistent: true }], "it failed");
        simulation.resync();
        simulation.resyncs = false;
        simulation.now += Duration::from_mins(2);
        assert_eq!(simulation.next_actions(), []);
        assert_eq!(simulation.asked, [Action::Resync { consistent: false }]);
        simulation.lose();
        simulation.acquire();
    }
}

#[test]
fn a_fenced_write_is_made_by_whoever_leads_next() {
    let mut simulation = in_sync(1);
    simulation.seen(slice_seen(1, false));
    let (flight, writes) = simulation.next_writes();
    simulation.answer_all(flight, &writes, &[Answer::Fenced]);
    simulation.lose();
    simulation.acquire();
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 Critical"]);
}

/// A new instance whose first write is answered so, and the PTR key that goes with it.
fn new_instance(answers: &[Answer; 2]) -> (Simulation, Box<str>) {
    let mut simulation = in_catalog(1);
    simulation.seen(service_seen(2));
    simulation.seen(slice_seen(2, true));
    let (flight, writes) = simulation.next_writes();
    simulation.answer_all(flight, &writes, answers);
    let RecordKey::Ptr(key) = writes[1].key() else { panic!("{writes:?}") };
    (simulation, key)
}

/// Whether this is one group of two writes.
fn is_pair(actions: &[Action]) -> bool {
    matches!(actions, [Action::Write { groups, .. }] if groups.len() == 1 && groups[0].writes.len() == 2)
}

#[test]
fn an_instance_waits_for_the_ptr_key_that_is_read() {
    let (mut simulation, key) = new_instance(&[Answer::NotSent, Answer::Conflict]);
    let actions = simulation.next_actions();
    let [Action::ReadPtr { flight, key: read }] = &*actions else { panic!("{actions:?}") };
    assert_eq!(*read, key);
    assert_eq!(simulation.next_actions(), [], "while it is read");
    let plan = simulation.bridge.plan_of(&super::key("s2"), simulation.now).unwrap();
    let waits: Vec<&Wait> = plan.waits.values().collect();
    assert_eq!(waits, [&Wait::WithPtr, &Wait::InFlight]);
    simulation.bridge.handle_ptr_read(*flight, &Ok(None), simulation.now);
    let actions = simulation.next_actions();
    assert!(is_pair(&actions), "{actions:?}");
}

#[test]
fn an_instance_and_its_ptr_record_wait_for_no_name_but_their_own() {
    let mut simulation = in_catalog(1);
    simulation.answers_look_ups = false;
    let mut service = numbered(1);
    service.cluster_ips.push("10.0.0.9".parse().unwrap());
    service.ports.push(port("admin", 81));
    simulation.seen(SeenObject::Service(key("s1"), service));
    let actions = simulation.next_actions();
    let [Action::Write { groups, .. }] = &*actions else { panic!("{actions:?}") };
    let is_pair = |it: &Group| matches!(&*it.writes, [Write::Register(it), Write::PutPtr { .. }] if &*it.address == "10.0.0.9");
    assert!(groups.iter().any(is_pair), "{groups:?}");
    assert!(simulation.asked.contains(&Action::ReadName("s1-admin".into())));
}

#[test]
fn an_instance_and_its_ptr_record_are_tried_again_together() {
    let failed = || Answer::Failed("busy".to_owned());
    let (mut simulation, _) = new_instance(&[failed(), failed()]);
    let mut actions = Vec::new();
    while actions.is_empty() {
        simulation.now = simulation.bridge.next_timeout().unwrap();
        actions = simulation.next_actions();
    }
    assert!(is_pair(&actions), "{actions:?}");
}

#[test]
fn an_instance_does_not_wait_for_a_ptr_key_that_keeps_failing() {
    let (mut simulation, key) = new_instance(&[Answer::NotSent, Answer::Conflict]);
    let mut reads = 0;
    let writes = 'writes: loop {
        while let Some(action) = simulation.next_action() {
            match action {
                Action::Write { groups, .. } => break 'writes groups[0].writes.clone(),
                Action::ReadPtr { flight, key: read } => {
                    assert_eq!(read, key);
                    reads += 1;
                    assert!(reads < 10, "it is read again and again");
                    let denied = Err("no permission to read it".to_owned());
                    simulation.bridge.handle_ptr_read(flight, &denied, simulation.now);
                }
                other => panic!("{other:?}"),
            }
        }
        simulation.now = simulation.bridge.next_timeout().unwrap_or(simulation.now);
    };
    assert!(matches!(&*writes, [Write::Register(_)]), "{writes:?}");
    assert!(reads > 1, "it did not wait at all");
}

#[test]
fn an_instance_goes_together_with_its_ptr_record_while_others_wait_for_their_turn() {
    let mut simulation = in_catalog(3);
    for name in ["s1", "s2", "s3"] {
        simulation.deleted(Kind::Service, name);
    }
    let actions = simulation.next_actions();
    let groups: Vec<&Group> = actions
        .iter()
        .flat_map(|action| match action {
            Action::Write { groups, .. } => groups.as_slice(),
            _ => &[],
        })
        .collect();
    assert_eq!(groups.len(), 3, "{actions:?}");
    for Group { writes, .. } in groups {
        let [Write::Deregister { .. }, Write::DeletePtr { .. }] = &**writes else {
            panic!("{writes:?}")
        };
    }
}

#[test]
fn after_a_restart_a_ptr_record_goes_with_the_last_of_several_services_at_its_address() {
    let mut simulation = in_catalog(6);
    // `s1` had the address of `s2` once.
    let at_2 = Registration {
        id: "kubernetes_ns_s1_http_10.0.0.2".into(),
        address: "10.0.0.2".into(),
        ..simulation.registrations["kubernetes_ns_s1_http_10.0.0.1"].clone()
    };
    simulation.registrations.insert(at_2.id.clone(), at_2);
    let mut simulation = simulation.restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, (3..=6).map(service_seen));
    simulation.list(Kind::EndpointSlice, (3..=6).map(|n| slice_seen(n, true)));
    let mut groups: Vec<usize> = Vec::new();
    for action in simulation.next_actions() {
        let Action::Write { groups: all, .. } = &action else { panic!("{action:?}") };
        for Group { writes, .. } in all {
            assert!(matches!(writes[0], Write::Deregister { .. }), "{writes:?}");
            groups.push(writes.len());
        }
    }
    groups.sort_unstable();
    assert_eq!(groups, [1, 2, 2], "one of two goes first");
}

#[test]
fn a_ptr_record_does_not_go_before_its_instance() {
    let mut simulation = in_catalog(1);
    simulation.seen(slice_seen(1, false));
    let in_flight = simulation.next_actions();
    simulation.deleted(Kind::Service, "s1");
    assert_eq!(simulation.next_actions(), [], "the instance is written");
    for action in in_flight {
        simulation.deliver(action, &mut |_| Fate::Applied);
    }
    let actions = simulation.next_actions();
    assert!(is_pair(&actions), "{actions:?}");
}

#[test]
fn a_ptr_record_stays_with_an_instance_that_may_not_be_removed() {
    let mut simulation = in_catalog(1);
    let with_ports = |names: &[&str]| {
        let mut service = numbered(1);
        service.cluster_ips = vec!["10.0.0.1".parse().unwrap(), "10.0.0.9".parse().unwrap()];
        service.ports = names.iter().zip(80..).map(|(name, number)| port(name, number)).collect();
        SeenObject::Service(key("s1"), service)
    };
    simulation.seen(with_ports(&["admin", "http", "web"]));
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (6, 2));
    let mut denied = |write: &Write| match write {
        Write::Deregister { id, .. } if id.ends_with("_http_10.0.0.1") => Fate::Denied,
        _ => Fate::Applied,
    };
    simulation.seen(with_ports(&["admin", "web"]));
    simulation.step(&mut denied);
    simulation.deleted(Kind::Service, "s1");
    simulation.step(&mut denied);
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (1, 1));
}

/// The node `ns` was to be removed, and that got no answer.
fn after_a_removal_without_an_answer() -> Simulation {
    let mut simulation = in_catalog(1);
    let flight = until_node_goes(&mut simulation);
    simulation.answer_node(flight, NamespaceNodeAnswer::Unanswered("no answer".to_owned()));
    simulation
}

#[test]
fn a_node_removal_that_failed_is_tried_again_before_consul_is_read_again() {
    let mut simulation = in_catalog(1);
    let flight = until_node_goes(&mut simulation);
    simulation.resyncs = false;
    simulation.answer_node(flight, NamespaceNodeAnswer::Failed("no leader".to_owned()));
    let latest = simulation.now + Duration::from_secs(30);
    while simulation.step_until_node(&mut |_| Fate::Applied).is_none() {
        simulation.now = simulation.bridge.next_timeout().expect("it is tried again");
        assert!(simulation.now <= latest, "{:?}", simulation.now);
    }
    assert!(!simulation.is_asked(&Action::Resync { consistent: false }));
}

#[test]
fn a_node_that_may_still_be_removed_is_looked_at_again() {
    let mut simulation = after_a_removal_without_an_answer();
    simulation.seen(service_seen(2));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 1);
    // The removal is made all the same, late, and takes along what was written since.
    simulation.registrations.clear();
    simulation.namespace_nodes.clear();
    simulation.resyncs = false;
    let looks = simulation.now + Duration::from_secs(30);
    while !simulation.is_asked(&Action::Resync { consistent: false }) {
        simulation.now = simulation.bridge.next_timeout().unwrap();
        simulation.step(&mut |_| Fate::Applied);
    }
    assert_eq!(simulation.now, looks, "as soon as it can no longer be made");
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 Critical"]);
}

#[test]
fn what_stands_in_the_way_is_a_problem_until_it_is_gone() {
    let foreign = || Answer::Foreign("node k8s-c.ns is somebody else's".to_owned());
    let (mut simulation, _) = new_instance(&[foreign(), Answer::NotSent]);
    simulation.step(&mut |_| Fate::Applied);
    let problems = simulation.bridge.problems();
    assert!(matches!(&*problems, [(_, _, it)] if it.reason == Reason::Contested), "{problems:?}");
    simulation.settle();
    assert_eq!((simulation.bridge.counts().problems, simulation.registrations.len()), (0, 2));
}

/// Somebody changes what is registered, and a resync `after` that shows it.
fn change_by_others(simulation: &mut Simulation, after: Duration) -> usize {
    for registration in simulation.registrations.values_mut() {
        registration.meta.extend([("owner".to_owned(), "terraform".to_owned())]);
    }
    resync_after(simulation, after)
}

fn resync_after(simulation: &mut Simulation, after: Duration) -> usize {
    simulation.now += after;
    simulation.bridge.handle_timeout(simulation.now);
    simulation.resync();
    simulation.step(&mut |_| Fate::Applied);
    simulation.take_sent()
}

#[test]
fn n6_a_record_that_others_keep_changing_is_told_and_fixed_every_minute() {
    let minute = Duration::from_mins(1);
    let mut simulation = in_sync(1);
    simulation.take_sent();
    for round in 1..=12 {
        assert_eq!(change_by_others(&mut simulation, minute), 1, "round {round}");
        let problems = simulation.bridge.problems();
        let told: Vec<_> = problems.iter().map(|(_, _, it)| it.reason).collect();
        assert_eq!(told, if round > 3 { vec![Reason::Contested] } else { vec![] }, "{round}");
        let says = |it: &(Subject, &ObjectKey, &Problem)| {
            it.2.message.contains("kubernetes_ns_s1_http_10.0.0.1")
                && it.2.message.contains("owner=terraform")
        };
        assert!(problems.iter().all(says), "{problems:?}");
    }
    // It has stopped: nothing is wrong any more, and after a while nothing is told.
    for _ in 0..12 {
        assert_eq!(resync_after(&mut simulation, minute), 0);
    }
    assert_eq!(simulation.bridge.problems(), []);
}

#[test]
fn n6_a_fight_costs_a_write_a_minute_and_no_more_than_a_minute_without_the_record() {
    let mut simulation = in_sync(1);
    simulation.take_sent();
    let (mut writes, mut absent, mut longest) = (0, 0_u64, 0);
    for _ in 0..600 {
        simulation.registrations.clear();
        writes += resync_after(&mut simulation, Duration::from_secs(1));
        absent = if simulation.registrations.is_empty() { absent + 1 } else { 0 };
        longest = longest.max(absent);
    }
    assert!(longest <= 60, "{longest} s");
    assert!((10..=30).contains(&writes), "{writes} writes in ten minutes");
    // The other one has stopped: no longer than a minute.
    let mut seconds = 0;
    while simulation.registrations.is_empty() {
        resync_after(&mut simulation, Duration::from_secs(1));
        seconds += 1;
    }
    assert!(seconds <= 60, "{seconds} s");
}

#[test]
fn n6_newer_states_and_removals_do_not_wait_for_a_fight() {
    let mut simulation = in_sync(2);
    simulation.take_sent();
    while change_by_others(&mut simulation, Duration::from_secs(1)) > 0 {}
    simulation.seen(slice_seen(1, false));
    simulation.step(&mut |_| Fate::Applied);
    assert!(simulation.registered().contains(&"s1 10.0.0.1 Critical".to_owned()));
    simulation.deleted(Kind::Service, "s2");
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 Critical"]);
}

#[test]
fn n7_what_was_lost_with_the_marker_counts_for_nobody() {
    let mut simulation = in_sync(3);
    simulation.take_sent();
    for round in 1..=8 {
        simulation.registrations.clear();
        simulation.now += Duration::from_secs(20);
        simulation.bridge.handle_timeout(simulation.now);
        if round % 2 == 0 {
            simulation.bridge.handle_marker_lost(simulation.now);
            simulation.begin_resync();
        } else {
            // Only the reading itself notices.
            simulation.begin_resync();
            simulation.bridge.handle_observation(Observation::MarkerMissing);
        }
        simulation.show();
        simulation.finish_resync();
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!(simulation.take_sent(), 3, "round {round}");
        assert_eq!(simulation.bridge.problems(), [], "round {round}");
    }
}

#[test]
fn n6_a_change_by_others_is_told_with_its_fields() {
    let mut simulation = in_sync(1);
    for registration in simulation.registrations.values_mut() {
        registration.port = 1;
    }
    simulation.resync();
    let reports = simulation.bridge.take_reports();
    let told = reports.iter().find_map(|report| match report {
        Report::Drifted { service, record, fields, .. } => Some((service, record, fields)),
        _ => None,
    });
    let (service, record, fields) = told.expect("the change is told");
    assert_eq!(
        (service, record.to_string().as_str()),
        (&key("s1"), "service ID kubernetes_ns_s1_http_10.0.0.1")
    );
    let shown: Vec<_> = fields.iter().map(|it| it.field.as_str()).collect();
    assert_eq!(shown, ["port"]);
}

#[test]
fn a_resync_does_not_have_a_node_removed_that_is_being_removed() {
    let mut simulation = in_catalog(1);
    let flight = until_node_goes(&mut simulation);
    // It shows the node: its removal is not yet made.
    simulation.resync();
    assert_eq!(simulation.next_actions(), []);
    simulation.namespace_nodes.clear();
    simulation.answer_node(flight, NamespaceNodeAnswer::Removed);
    assert_eq!(simulation.next_actions(), []);
    assert!(simulation.bridge.is_settled());
}

#[test]
fn one_that_lost_the_lead_in_an_outage_tries_nothing() {
    let mut simulation = in_sync(4);
    for n in 1..=4 {
        simulation.seen(slice_seen(n, false));
    }
    simulation.step(&mut |_| Fate::Failed);
    simulation.take_sent();
    simulation.lose();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(simulation.asked.is_empty(), "{:?}", simulation.asked);
    simulation.acquire();
    simulation.resync();
    simulation.settle();
    assert!(simulation.registered().iter().all(|it| it.ends_with("Critical")));
}

#[test]
fn a_name_that_others_took_meanwhile_is_not_joined_by_whoever_leads_again() {
    let mut simulation = in_sync(1);
    simulation.lose();
    simulation.seen(service_seen(2));
    simulation.names = None;
    simulation.acquire();
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"], "it is not known who has s2");
    simulation.others_hold(foreign(&["s2"]));
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
    assert_eq!(simulation.bridge.counts().problems, 1);
}

#[test]
fn what_comes_and_goes_beside_a_standby_does_not_heap_up() {
    let mut simulation = in_sync(2);
    simulation.lose();
    for n in 3..=9 {
        simulation.seen(service_seen(n));
        simulation.deleted(Kind::Service, &format!("s{n}"));
    }
    let counts = simulation.bridge.counts();
    assert_eq!(counts, Counts { services: 2, ..Counts::default() });
    // One that is gone here while the other one has not yet removed it.
    simulation.deleted(Kind::Service, "s1");
    simulation.acquire();
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 None"]);
    assert_eq!((simulation.kv.len(), simulation.bridge.is_settled()), (1, true));
}

#[test]
fn what_others_put_on_a_node_is_no_problem_once_the_node_is_needed_again() {
    let mut simulation = in_catalog(1);
    let flight = until_node_goes(&mut simulation);
    simulation.answer_node(flight, foreign_on_node());
    simulation.seen(service_seen(2));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.bridge.counts().problems, 1);
    simulation.resync();
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn one_that_takes_over_with_empty_lists_holds_everything_back() {
    let mut simulation = in_sync(30);
    simulation.lose();
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, []);
    simulation.acquire();
    simulation.resync();
    simulation.settle();
    assert!(simulation.bridge.is_holding());
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (30, 30));
    // A second list agrees.
    confirm(&mut simulation, Vec::new(), Vec::new());
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0));
}

#[test]
fn one_that_is_deposed_while_it_holds_back_holds_back_again() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    assert!(simulation.bridge.is_holding());
    simulation.lose();
    // The second list is over before this one leads again, and says nothing of Consul then.
    confirm(&mut simulation, Vec::new(), Vec::new());
    assert!(!simulation.bridge.is_holding());
    simulation.acquire();
    simulation.resync();
    simulation.settle();
    assert!(simulation.bridge.is_holding());
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (30, 30));
}

#[test]
fn a_deposed_leader_tells_no_more_than_one_that_has_never_led() {
    let mut simulation = in_catalog(2);
    let mut odd = numbered(3);
    odd.annotations.insert("kube-consul.io/service-weight".into(), "heavy".into());
    simulation.seen(SeenObject::Service(key("s3"), odd));
    simulation.seen(SeenObject::Undecodable(Kind::Service, key("s4"), "no".to_owned()));
    simulation.seen(service_seen(5));
    let of_s5 = |write: &Write| matches!(write, Write::Register(it) if it.id.contains("_s5_"));
    simulation.step(&mut |write| if of_s5(write) { Fate::Denied } else { Fate::Applied });
    let reasons = |simulation: &Simulation| -> Vec<Reason> {
        simulation.bridge.problems().into_iter().map(|(_, _, it)| it.reason).collect()
    };
    let told = [Reason::InvalidAnnotation, Reason::Undecodable, Reason::Denied];
    assert_eq!(reasons(&simulation), told);
    simulation.take_sent();
    simulation.bridge.take_reports();

    simulation.lose();
    let reports = simulation.bridge.take_reports();
    let withdrawn: Vec<_> = reports
        .iter()
        .map(|report| match report {
            Report::Withdrawn(Subject::Service, service, it) => (&*service.name, it.reason),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(withdrawn, [("s3", Reason::InvalidAnnotation), ("s5", Reason::Denied)]);
    let told_by_a_standby = Counts { services: 4, problems: 1, ..Counts::default() };
    assert_eq!(simulation.bridge.counts(), told_by_a_standby);
    assert_eq!(reasons(&simulation), [Reason::Undecodable], "what it sees itself");
    simulation.seen(service_seen(4));
    assert_eq!(reasons(&simulation), []);
    simulation.seen(SeenObject::Undecodable(Kind::Service, key("s4"), "no".to_owned()));
    simulation.set_domain(None);
    assert_eq!(simulation.bridge.counts().backlog, 0, "it plans nothing");
    simulation.set_domain(Some(domain()));
    simulation.bridge.take_reports();

    simulation.acquire();
    simulation.resync();
    simulation.step(&mut |write| if of_s5(write) { Fate::Denied } else { Fate::Applied });
    // Of s4 something is known by now.
    assert_eq!(simulation.take_sent(), 3, "s5, and s4 with its PTR record");
    assert_eq!(reasons(&simulation), told);
    let reports = simulation.bridge.take_reports();
    let news = reports.iter().filter(|report| matches!(report, Report::Problem(..)));
    assert_eq!(news.count(), 2, "{reports:?}");
}

#[test]
fn what_is_in_flight_when_the_lead_is_lost_is_neither_lost_nor_taken_for_a_fix() {
    for is_applied in [true, false] {
        let mut simulation = in_catalog(1);
        simulation.seen(slice_seen(1, false));
        let (flight, writes) = simulation.next_writes();
        simulation.lose();
        simulation.deleted(Kind::Service, "s1");
        if is_applied {
            simulation.apply(writes[0].clone());
        }
        simulation.acquire();
        simulation.resync();
        // A request that was not dropped with its term changes nothing.
        let late = [(writes[0].key(), Answer::Applied { index: 0 })];
        simulation.bridge.handle_answers(flight, late.into(), simulation.now);
        // It is all that there was, so a second list has to agree.
        confirm(&mut simulation, Vec::new(), vec![slice_seen(1, false)]);
        assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0), "{is_applied}");
        assert!(simulation.bridge.is_settled(), "{is_applied}");
        let reports = simulation.bridge.take_reports();
        let fixed = reports.iter().any(|it| matches!(it, Report::Fixed { .. }));
        assert!(!fixed, "{is_applied}: {reports:?}");
    }
}

#[test]
fn n8_only_our_own_check_is_taken_away() {
    let mut simulation = in_sync(1);
    let mut replaced = Vec::new();
    for ready in [false, true, false] {
        simulation.seen(slice_seen(1, ready));
        simulation.step(&mut |write| {
            // A write that takes our check away asks what there is; others' are not looked at.
            replaced.push(matches!(write, Write::Replace(_)));
            Fate::Applied
        });
    }
    assert_eq!(replaced, [false, true, false]);
}

#[test]
fn n12_a_stray_is_reported_and_concerns_no_service() {
    let mut simulation = in_sync(1);
    simulation.begin_resync();
    let stray = "service ID stray on base node k8s-kubernetes: it is removed".to_owned();
    simulation.bridge.handle_observation(Observation::Stray(stray.clone()));
    simulation.show();
    simulation.finish_resync();
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.take_sent(), 0);
    let reports = simulation.bridge.take_reports();
    let told = reports.iter().filter(|it| matches!(it, Report::Stray(what) if *what == stray));
    assert_eq!(told.count(), 1, "{reports:?}");
    assert_eq!(simulation.bridge.counts().registrations, 1);
}
