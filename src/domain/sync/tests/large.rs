//! Services with very many instances, and what they cost the others.

use super::*;
use crate::domain::sync::plan::Plan;
use crate::domain::testing::port;

/// External IP addresses, as many as are wanted.
fn large(name: &str, instances: usize) -> SeenObject {
    let address = |n: usize| ip(&format!("10.{}.{}.{}", 10 + n / 65_536, n / 256 % 256, n % 256));
    let service = service().with(|it| it.external_ips = (0..instances).map(address).collect());
    SeenObject::Service(key(name), service.build())
}

fn listed(target: Target, services: impl IntoIterator<Item = SeenObject>) -> Simulation {
    let mut settings = settings();
    settings.address = AddressMode::ExternalIp;
    let mut simulation = Simulation::to(settings, target);
    simulation.resync();
    simulation.list(Kind::Service, services);
    simulation.list(Kind::EndpointSlice, []);
    simulation.bridge.handle_names(Ok(ForeignNames::default()), simulation.now);
    simulation
}

type Groups = Vec<(ObjectKey, Vec<Write>)>;

/// What is sent next, by Service; nothing of it is answered. Nobody else holds a name.
fn next(simulation: &mut Simulation) -> Option<(FlightId, Groups)> {
    loop {
        match simulation.next_action()? {
            Action::Write { flight, groups } => {
                let groups = groups.into_iter().map(|it| (it.service, it.writes));
                return Some((flight, groups.collect()));
            }
            Action::ReadName(name) => {
                simulation.bridge.handle_name(&name, Ok(None), simulation.now);
            }
            Action::ReadNames => {
                simulation.bridge.handle_names(Ok(ForeignNames::default()), simulation.now);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn answer(simulation: &mut Simulation, flight: FlightId, groups: &[(ObjectKey, Vec<Write>)]) {
    let writes: Vec<Write> = groups.iter().flat_map(|(_, writes)| writes.clone()).collect();
    let answers = vec![Answer::Applied { index: 1 }; writes.len()];
    simulation.answer_all(flight, &writes, &answers);
}

#[test]
fn l4_a_small_services_change_never_waits_for_more_than_one_batch_of_a_large_one() {
    for target in [Target::Catalog, Target::Agent] {
        let step = Config::new(settings(), target).capacity.step();
        let small = |tag: usize| {
            let tag = format!("tag-{tag}");
            let service = service().annotations(&[("kube-consul.io/service-tags", &tag)]);
            let service = service.with(|it| it.external_ips = vec![ip("10.9.9.9")]);
            SeenObject::Service(key("small"), service.build())
        };
        let services = [large("large", 400), large("huge", 300), small(0)];
        let mut simulation = listed(target, services);
        let mut rounds = 0;
        loop {
            let flights: Vec<_> = std::iter::from_fn(|| next(&mut simulation)).collect();
            let Some((last, others)) = flights.split_last() else { break };
            // While those are under way, a small one changes.
            rounds += 1;
            simulation.seen(small(rounds));
            let mut before = 0;
            let mut is_sent = false;
            answer(&mut simulation, last.0, &last.1);
            for (flight, groups) in others {
                answer(&mut simulation, *flight, groups);
            }
            let mut under_way = Vec::new();
            while !is_sent {
                let Some((flight, groups)) = next(&mut simulation) else {
                    let (flight, groups): (FlightId, Vec<_>) =
                        under_way.pop().expect("something is sent");
                    answer(&mut simulation, flight, &groups);
                    continue;
                };
                is_sent = groups.iter().any(|(service, _)| &*service.name == "small");
                before += groups.iter().filter(|(service, _)| &*service.name != "small").count();
                under_way.push((flight, groups));
            }
            assert!(before <= 2 * step, "{target:?}: {before} groups of others came first");
            for (flight, groups) in &under_way {
                answer(&mut simulation, *flight, groups);
            }
            assert!(rounds < 5_000, "{target:?}: it never ends");
        }
        for (name, instances) in [("large", 400), ("huge", 300)] {
            let found = simulation.bridge.registrations_of(&key(name)).len();
            assert_eq!(found, instances, "{target:?}");
        }
        assert!(simulation.bridge.is_settled(), "{target:?}");
        assert!(rounds > 4, "{target:?}: {rounds} rounds");
    }
}

#[test]
fn l4_a_plan_is_a_step_and_says_what_waits_for_the_next() {
    let mut simulation = listed(Target::Catalog, [large("large", 1_000)]);
    let (_, groups) = next(&mut simulation).unwrap();
    assert_eq!(groups.len(), 60);
    let Plan { actions, waits, .. } =
        simulation.bridge.plan_of(&key("large"), simulation.now).unwrap();
    assert_eq!(actions.len(), 60);
    let waiting = waits.values().filter(|wait| **wait == Wait::Turn).count();
    // Of each the instance and its PTR record.
    assert_eq!(waiting, 2 * 880);
}

#[test]
fn l4_what_is_removed_takes_turns_too() {
    let mut simulation = listed(Target::Catalog, [large("large", 300)]);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 300);
    simulation.deleted(Kind::Service, "large");
    let (_, groups) = next(&mut simulation).unwrap();
    assert_eq!(groups.len(), 60);
    let more = next(&mut simulation);
    assert!(more.is_none(), "the rest waits for the answers: {:?}", more.map(|it| it.1.len()));
}

#[test]
fn l4_instances_over_the_bound_are_left_out_and_told() {
    let mut simulation = listed(Target::Catalog, [large("large", 5_003), large("other", 1)]);
    let plan = simulation.bridge.plan_of(&key("large"), simulation.now).unwrap();
    let is_instance = |it: &&RecordKey| matches!(it, RecordKey::Registration(_));
    assert_eq!(plan.actions.len() + plan.waits.keys().filter(is_instance).count(), 5_000);
    while next(&mut simulation).is_some() {}
    let problems = simulation.bridge.problems();
    let [(_, name, problem)] = problems[..] else { panic!("{problems:?}") };
    assert_eq!((name, problem.reason), (&key("large"), Reason::TooLarge));
    assert!(problem.message.contains("found 5003: 3 are left out"), "{problem}");
    simulation.seen(large("large", 5_000));
    while next(&mut simulation).is_some() {}
    assert!(simulation.bridge.problems().is_empty());
}

#[test]
fn a_request_carries_so_much_text_at_most() {
    let tagged = |n: usize| {
        let tags: Vec<String> = (0..600).map(|tag| format!("{tag}-{}", "x".repeat(70))).collect();
        let tags = tags.join(",");
        let pairs = [("kube-consul.io/service-tags", tags.as_str())];
        let service = service().annotations(&pairs).build();
        SeenObject::Service(key(&format!("s{n}")), service)
    };
    let mut simulation = Simulation::of_catalog();
    simulation.resync();
    simulation.list(Kind::Service, (0..50).map(tagged));
    simulation.list(Kind::EndpointSlice, []);
    let (_, groups) = next(&mut simulation).unwrap();
    let text: usize = groups.iter().flat_map(|(_, writes)| writes).map(Write::text).sum();
    assert!(text < (512 << 10) + (64 << 10) && groups.len() > 8, "{text} in {}", groups.len());
    simulation.settle();
}

#[test]
fn one_that_cannot_be_read_any_more_is_settled() {
    let mut simulation = in_sync(2);
    simulation.seen(service_seen(3));
    let (flight, writes) = simulation.next_writes();
    simulation.seen(SeenObject::Undecodable(Kind::Service, key("s3"), "broken".to_owned()));
    simulation.bridge.handle_watch(WatchEvent::ListStarted(Kind::Service), simulation.now);
    simulation.answer_all(flight, &writes, &vec![Answer::Applied { index: 1 }; writes.len()]);
    simulation.settle();
    assert_eq!(simulation.bridge.counts().backlog, 0);
    assert!(simulation.bridge.is_settled());
}

#[test]
fn thousands_of_problems_of_one_service_hide_nobody_elses() {
    let mut simulation = Simulation::of_catalog();
    simulation.resync();
    let ports = (0..500).map(|n| port(&format!("p{n}"), 1 + n)).collect();
    let service = service().with(|it| it.ports = ports).build();
    simulation.list(Kind::Service, [SeenObject::Service(key("s1"), service)]);
    // Its endpoints serve none of these ports.
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    while let Some((flight, groups)) = next(&mut simulation) {
        answer(&mut simulation, flight, &groups);
    }
    let problems = simulation.bridge.problems();
    assert_eq!(problems.len(), 9, "{problems:?}");
    assert!(problems.iter().any(|(.., problem)| problem.message.contains("more of these")));
}
