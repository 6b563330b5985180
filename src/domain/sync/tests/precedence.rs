//! Names that several Services want: who has one, who gets it, and when it is left.

use super::*;
use crate::domain::services::settings::OnConflict;

/// `victim/payments` has the name `pay` by annotation.
fn victim() -> (ObjectKey, Service) {
    let service = service().annotations(&[("kube-consul.io/service-name", "pay")]).build();
    (ObjectKey::new("victim", "payments"), service)
}

/// Headless Service `evil/pay`: its own name comes before an annotation.
pub(super) fn evil() -> (ObjectKey, Service) {
    let with = |it: &mut Service| {
        (it.uid, it.created) = ("uid-2".into(), 9);
        it.cluster_ips.clear();
    };
    (ObjectKey::new("evil", "pay"), service().with(with).build())
}

fn evil_slice(count: usize) -> SeenObject {
    let addresses: Vec<String> = (1..=count).map(|n| format!("10.1.0.{n}")).collect();
    let addresses: Vec<(&str, bool)> = addresses.iter().map(|it| (it.as_str(), true)).collect();
    let key = ObjectKey::new("evil", "pay-1");
    SeenObject::EndpointSlice(key, slice("pay", &[("http", 80)], &addresses))
}

fn see((key, service): (ObjectKey, Service)) -> SeenObject {
    SeenObject::Service(key, service)
}

/// `victim` is registered as `pay`.
fn with_victim(settings: Settings, target: Target) -> Simulation {
    let mut simulation = Simulation::to(settings, target);
    simulation.resync();
    simulation.list(Kind::Service, [see(victim())]);
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    assert_eq!(simulation.registered(), [VICTIMS]);
    simulation.take_sent();
    simulation
}

const VICTIMS: &str = "pay 10.0.0.1 Critical";

fn reasons(simulation: &Simulation, (service, _): &(ObjectKey, Service)) -> Vec<Reason> {
    let problems = simulation.bridge.problems().into_iter();
    problems.filter(|(_, key, _)| *key == service).map(|(_, _, it)| it.reason).collect()
}

fn is_evil(write: &Write) -> bool {
    format!("{:?}", write.key()).contains("_evil_")
}

#[test]
fn a1_who_comes_first_and_registers_nothing_takes_no_name() {
    for policy in [OnConflict::First, OnConflict::Suffix] {
        for target in [Target::Agent, Target::Catalog] {
            let settings = Settings { on_conflict: policy, ..settings() };
            let mut simulation = with_victim(settings, target);
            simulation.seen(see(evil()));
            simulation.settle();
            assert_eq!(simulation.take_sent(), 0, "{policy:?} {target:?}");
            let told: &[Reason] =
                if policy == OnConflict::First { &[Reason::NameConflict] } else { &[] };
            assert_eq!(reasons(&simulation, &victim()), told);
            assert_eq!(reasons(&simulation, &evil()), []);
            // What the victim has is followed as ever.
            let slice = slice("payments", &[("http", 80)], &[("10.2.0.1", true)]);
            simulation.seen(SeenObject::EndpointSlice(ObjectKey::new("victim", "x"), slice));
            simulation.settle();
            assert_eq!(simulation.registered(), ["pay 10.0.0.1 None"]);
            simulation.take_sent();

            // It takes the name with what it has, before the victim leaves it.
            simulation.seen(evil_slice(1));
            simulation.settle();
            let sent: Vec<bool> = simulation.sent.iter().map(is_evil).collect();
            assert!(sent[0] && !sent[1..].contains(&true), "{:?}", simulation.sent);
            let left: &[&str] = match policy {
                OnConflict::First => &["pay 10.1.0.1 None"],
                _ => &["pay 10.1.0.1 None", "pay-victim 10.0.0.1 None"],
            };
            assert_eq!(simulation.registered(), left);
            // Nobody waits behind it.
            simulation.seen(evil_slice(0));
            simulation.settle();
            assert_eq!(simulation.registered(), left[1..]);
            simulation
                .bridge
                .handle_watch(WatchEvent::Deleted(Kind::Service, evil().0), simulation.now);
            simulation.settle();
            assert_eq!(simulation.registered(), ["pay 10.0.0.1 None"]);
            assert_eq!(simulation.bridge.counts().problems, 0);
        }
    }
}

#[test]
fn a1_a_name_is_kept_until_consul_takes_what_the_first_writes() {
    for fate in [Fate::Denied, Fate::Failed, Fate::Lost] {
        let mut simulation = with_victim(settings(), Target::Agent);
        simulation.seen(evil_slice(2));
        simulation.seen(see(evil()));
        simulation.step(&mut |write| if is_evil(write) { fate } else { Fate::Applied });
        assert_eq!(simulation.registered(), [VICTIMS], "{fate:?}");
        assert_eq!(reasons(&simulation, &victim()), [Reason::NameConflict]);
        simulation.settle();
        assert_eq!(simulation.registered(), ["pay 10.1.0.1 None", "pay 10.1.0.2 None"]);
        assert_eq!(reasons(&simulation, &victim()), [Reason::NameConflict]);
    }
}

#[test]
fn a1_nobody_gets_a_name_behind_a_first_that_has_nothing() {
    let mut simulation = with_victim(settings(), Target::Catalog);
    simulation.seen(see(evil()));
    // One that comes before the victim, and after the first.
    let (_, mut second) = victim();
    (second.created, second.cluster_ips) = (-1, vec![ip("10.0.0.2")]);
    let second = (ObjectKey::new("other", "second"), second);
    simulation.seen(see(second.clone()));
    simulation.settle();
    assert_eq!(simulation.registered(), [VICTIMS]);
    assert_eq!(reasons(&simulation, &second), [Reason::NameConflict]);
    // Not even when the one that has it goes, or has nothing left.
    simulation.bridge.handle_watch(WatchEvent::Deleted(Kind::Service, victim().0), simulation.now);
    simulation.settle();
    assert_eq!(simulation.registered(), [""; 0]);
    // The first may take it at any time.
    simulation.seen(evil_slice(1));
    simulation.settle();
    assert_eq!(simulation.registered(), ["pay 10.1.0.1 None"]);
    simulation.bridge.handle_watch(WatchEvent::Deleted(Kind::Service, evil().0), simulation.now);
    simulation.settle();
    assert_eq!(simulation.registered(), ["pay 10.0.0.2 Critical"]);
}

#[test]
fn a1_what_stands_in_consul_says_who_has_a_name_after_a_restart() {
    for listed in [false, true] {
        let simulation = with_victim(settings(), Target::Catalog);
        let mut simulation = simulation.restarted(settings());
        simulation.names = listed.then(ForeignNames::default);
        simulation.resync();
        simulation.list(Kind::Service, [see(evil()), see(victim())]);
        simulation.list(Kind::EndpointSlice, []);
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0);
        assert_eq!(simulation.registered(), [VICTIMS]);
        // A process ended before it was left.
        simulation.others_hold(ForeignNames::default());
        simulation.seen(evil_slice(1));
        simulation.step(&mut |write| if is_evil(write) { Fate::Applied } else { Fate::Failed });
        assert_eq!(simulation.registrations.len(), 2);
        let mut simulation = simulation.restarted(settings());
        simulation.resync();
        simulation.list(Kind::Service, [see(evil()), see(victim())]);
        simulation.list(Kind::EndpointSlice, [evil_slice(1)]);
        simulation.settle();
        assert_eq!(simulation.registered(), ["pay 10.1.0.1 None"]);
    }
}

#[test]
fn a1_a_record_that_was_lost_is_no_claim_to_a_name_that_was_taken_since() {
    let mut simulation = with_victim(settings(), Target::Agent);
    simulation.seen(see(evil()));
    simulation.settle();
    // Somebody removes the victim's, and Consul does not take it back.
    let mut denied = |write: &Write| if is_evil(write) { Fate::Applied } else { Fate::Denied };
    simulation.registrations.clear();
    simulation.resync();
    simulation.step(&mut denied);
    assert_eq!(simulation.registered(), [""; 0]);
    simulation.seen(evil_slice(1));
    simulation.step(&mut denied);
    assert_eq!(simulation.registered(), ["pay 10.1.0.1 None"]);
    simulation.seen(evil_slice(0));
    simulation.settle();
    let ready = slice("payments", &[("http", 80)], &[("10.2.0.1", true)]);
    simulation.seen(SeenObject::EndpointSlice(ObjectKey::new("victim", "x"), ready));
    simulation.settle();
    assert_eq!(simulation.registered(), [""; 0]);
    // While nobody has taken it, it may.
    let mut simulation = with_victim(settings(), Target::Agent);
    simulation.seen(see(evil()));
    simulation.settle();
    simulation.registrations.clear();
    simulation.resync();
    simulation.step(&mut denied);
    simulation.settle();
    assert_eq!(simulation.registered(), [VICTIMS]);
}

/// Both instances stand for a moment, whoever's write is answered first; in the end the first one's alone.
#[test]
fn a1_a_record_that_is_written_again_while_the_first_takes_its_name_goes() {
    for is_late in [false, true] {
        let mut simulation = with_victim(settings(), Target::Agent);
        simulation.seen(see(evil()));
        simulation.settle();
        simulation.registrations.clear();
        simulation.resync();
        let again = simulation.next_actions();
        simulation.seen(evil_slice(1));
        let takes = simulation.next_actions();
        assert!(!again.is_empty() && !takes.is_empty());
        let (one, other) = if is_late { (takes, again) } else { (again, takes) };
        for action in one {
            simulation.deliver(action, &mut |_| Fate::Applied);
        }
        let more = simulation.next_actions();
        for action in other.into_iter().chain(more) {
            simulation.deliver(action, &mut |_| Fate::Applied);
        }
        simulation.settle();
        assert_eq!(simulation.registered(), ["pay 10.1.0.1 None"], "{is_late}");
    }
}

#[test]
fn a1_who_cannot_write_what_it_has_lost_learns_at_once_that_it_is_taken() {
    let settings = Settings { on_conflict: OnConflict::Suffix, ..settings() };
    let mut simulation = with_victim(settings, Target::Agent);
    simulation.seen(see(evil()));
    simulation.settle();
    simulation.registrations.clear();
    simulation.resync();
    let mut denied = |write: &Write| match write {
        Write::Register(it) if &*it.service == "pay" && !is_evil(write) => Fate::Denied,
        _ => Fate::Applied,
    };
    simulation.step(&mut denied);
    assert_eq!(simulation.registered(), [""; 0]);
    simulation.seen(evil_slice(1));
    simulation.step(&mut denied);
    assert_eq!(simulation.registered(), ["pay 10.1.0.1 None", "pay-victim 10.0.0.1 Critical"]);
}

/// Of two that stand behind one that has nothing, the later one is no longer behind the other one once
/// that no longer wants the name.
#[test]
fn a1_who_stands_behind_another_is_planned_when_that_one_gives_its_claim_up() {
    let mut simulation = with_victim(settings(), Target::Catalog);
    let (_, mut second) = victim();
    (second.created, second.cluster_ips) = (-1, vec![ip("10.0.0.2")]);
    let second = (ObjectKey::new("other", "second"), second);
    // The removal of the victim's is refused for as long as that matters.
    let mut stuck = |write: &Write| match write {
        Write::Deregister { .. } if format!("{:?}", write.key()).contains("_victim_") => {
            Fate::Denied
        }
        _ => Fate::Applied,
    };
    simulation.seen(see(second.clone()));
    simulation.step(&mut stuck);
    simulation.seen(see(evil()));
    simulation.step(&mut stuck);
    assert_eq!(simulation.registrations.len(), 2);
    simulation.bridge.handle_watch(WatchEvent::Deleted(Kind::Service, second.0), simulation.now);
    let planned = simulation.bridge.term.as_ref().unwrap().plans;
    simulation.step(&mut stuck);
    assert_eq!(simulation.registered(), [VICTIMS]);
    let plan = simulation.bridge.plan_of(&victim().0, simulation.now).unwrap();
    assert!(plan.actions.is_empty() && plan.waits.is_empty(), "{plan:?}");
    let problems: Vec<Reason> = reasons(&simulation, &victim());
    assert_eq!(problems, [Reason::NameConflict], "the removal is nobody's problem any more");
    assert!(simulation.bridge.term.as_ref().unwrap().plans > planned + 1);
}

#[test]
fn a1_who_stands_behind_the_first_is_planned_when_that_one_has_nothing_left() {
    let mut simulation = with_victim(settings(), Target::Catalog);
    // The removal of the victim's is refused for as long as that matters.
    let mut stuck = |write: &Write| match write {
        Write::Deregister { .. } if !is_evil(write) => Fate::Denied,
        _ => Fate::Applied,
    };
    simulation.seen(see(evil()));
    simulation.seen(evil_slice(1));
    simulation.step(&mut stuck);
    assert_eq!(simulation.registrations.len(), 2);
    assert_eq!(reasons(&simulation, &victim()), [Reason::NameConflict, Reason::Denied]);
    simulation.seen(evil_slice(0));
    simulation.step(&mut stuck);
    assert_eq!(simulation.registered(), [VICTIMS]);
    let problems = reasons(&simulation, &victim());
    assert_eq!(problems, [Reason::NameConflict], "the removal is nobody's problem any more");
}

#[test]
fn a1_what_one_service_has_lost_is_no_others_to_write_again() {
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    let at = |seen: SeenObject, n: u8| match seen {
        SeenObject::Service(key, service) => {
            let cluster_ips = vec![ip(&format!("10.0.0.{n}"))];
            SeenObject::Service(key, Service { cluster_ips, ..service })
        }
        other => other,
    };
    simulation.list(Kind::Service, [sharing("old", 1), at(sharing("young", 2), 2)]);
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    assert_eq!(simulation.registered(), ["shared 10.0.0.1 Critical"]);
    simulation.registrations.clear();
    simulation.resync();
    simulation.step(&mut |_| Fate::Denied);
    simulation.seen(at(sharing("young", 2), 3));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registered(), [""; 0], "it is the older one's");
    simulation.settle();
    assert_eq!(simulation.registered(), ["shared 10.0.0.1 Critical"]);
}

#[test]
fn a1_ports_move_between_the_names_of_one_service_whoever_else_wants_them() {
    use crate::domain::testing::port;
    for target in [Target::Agent, Target::Catalog] {
        let service = |ports: &[&str]| {
            let mut service = numbered(1);
            service.ports =
                ports.iter().zip(80..).map(|(name, number)| port(name, number)).collect();
            SeenObject::Service(key("web"), service)
        };
        let mut simulation = Simulation::to(settings(), target);
        simulation.resync();
        simulation.list(Kind::Service, [service(&["http"])]);
        simulation.list(Kind::EndpointSlice, []);
        simulation.settle();
        // One of its names is wanted by one that comes first and has nothing.
        let rival = |name: &str| {
            let with = |it: &mut Service| (it.created, it.cluster_ips) = (-9, Vec::new());
            let rival = crate::domain::testing::service().with(with).build();
            SeenObject::Service(ObjectKey::new("evil", name), rival)
        };
        simulation.seen(rival("web"));
        simulation.settle();
        simulation.seen(service(&["admin", "http"]));
        simulation.settle();
        let registered = |simulation: &Simulation| -> BTreeSet<String> {
            simulation
                .registrations
                .values()
                .map(|it| format!("{} {}", it.service, it.id))
                .collect()
        };
        let id = |port: &str| format!("kubernetes_ns_web_{port}_10.0.0.1");
        let expected = [format!("web {}", id("admin")), format!("web-http {}", id("http"))];
        assert_eq!(registered(&simulation), expected.into(), "{target:?}");
        simulation.seen(rival("web-http"));
        simulation.seen(service(&["http", "admin"]));
        simulation.settle();
        let expected = [format!("web-admin {}", id("admin")), format!("web {}", id("http"))];
        assert_eq!(registered(&simulation), expected.into(), "{target:?}");
        assert!(simulation.bridge.is_settled());
    }
}

#[test]
fn a1_a_former_name_is_kept_until_another_service_has_taken_it() {
    let mut simulation = in_sync(1);
    simulation.others_hold(foreign(&["postgres"]));
    simulation.seen(named(1, "postgres"));
    simulation.settle();
    // Whose own name it is, and which has nothing to register.
    let (_, idle) = evil();
    simulation.seen(SeenObject::Service(ObjectKey::new("evil", "s1"), idle));
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
    let slice = slice("s1", &[("http", 80)], &[("10.1.0.9", true)]);
    simulation.seen(SeenObject::EndpointSlice(ObjectKey::new("evil", "s1-1"), slice));
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.1.0.9 None"]);
}

#[test]
fn a1_one_that_may_not_join_takes_no_name_from_one_that_has_joined() {
    let joining = || {
        let mut joined = numbered(1);
        for (key, value) in [("service-name", "mq2"), ("join", "true")] {
            joined.annotations.insert(format!("kube-consul.io/{key}").into(), value.into());
        }
        (key("s1"), joined)
    };
    let evil = || (ObjectKey::new("evil", "mq2"), numbered(2));
    let mut simulation = in_sync(0);
    simulation.others_hold(foreign(&["mq2"]));
    simulation.seen(see(joining()));
    simulation.settle();
    simulation.seen(see(evil()));
    simulation.settle();
    assert_eq!(simulation.registered(), ["mq2 10.0.0.1 Critical"]);
    assert_eq!(reasons(&simulation, &evil()), [Reason::ForeignName]);
    // N4: one that comes later does not get behind it.
    let mut simulation = in_sync(0);
    simulation.others_hold(foreign(&["mq2"]));
    simulation.seen(see(evil()));
    simulation.settle();
    simulation.seen(see(joining()));
    simulation.settle();
    assert_eq!(simulation.registered(), [""; 0]);
    assert_eq!(reasons(&simulation, &joining()), [Reason::NameConflict]);
}

#[test]
fn a1_a_name_that_thousands_want_costs_each_event_a_few_plans() {
    let of = |n: u32| {
        let (_, mut service) = victim();
        service.cluster_ips = vec![ip(&format!("10.{}.{}.{}", n >> 16, (n >> 8) & 255, n & 255))];
        (ObjectKey::new("many", format!("s{n:05}")), service)
    };
    let mut simulation = with_victim(settings(), Target::Catalog);
    (1..=5_000).for_each(|n| simulation.seen(see(of(n))));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 1);
    let plans = |simulation: &Simulation| simulation.bridge.term.as_ref().unwrap().plans;
    let mut most = 0;
    // Each of these comes before all others.
    for n in 0..50 {
        let (key, mut first) = of(9_000 + n);
        first.created = -i64::from(n) - 1;
        let before = plans(&simulation);
        simulation.seen(see((key, first)));
        simulation.step(&mut |_| Fate::Applied);
        most = most.max(plans(&simulation) - before);
    }
    assert!((3..=FEW_PLANS).contains(&most), "{most} plans for one");
    assert_eq!(simulation.registered(), ["pay 10.0.35.89 Critical"]);
    for n in (0..50).rev() {
        let key = of(9_000 + n).0;
        let before = plans(&simulation);
        simulation.bridge.handle_watch(WatchEvent::Deleted(Kind::Service, key), simulation.now);
        simulation.step(&mut |_| Fate::Applied);
        most = most.max(plans(&simulation) - before);
    }
    assert!(most <= FEW_PLANS, "{most} plans for one");
    assert_eq!(simulation.registered(), ["pay 10.0.0.1 Critical"]);
}

/// One takes a name and one leaves it, each before and after its writes, and what was looked up is taken.
const FEW_PLANS: usize = 10;

/// `victim` has the name, and a list lacks it that shows this Service, which wants the name.
fn unseen(target: Target, shown: SeenObject) -> Simulation {
    let mut simulation = with_victim(settings(), target);
    // While nobody leads a list is believed: what is in Consul is not known.
    simulation.lose();
    simulation.list(Kind::Service, [shown]);
    simulation.list(Kind::EndpointSlice, [evil_slice(1)]);
    simulation.acquire();
    simulation.resync();
    simulation.step(&mut |_| Fate::Applied);
    assert!(simulation.bridge.is_holding());
    simulation
}

const EVILS: &str = "pay 10.1.0.1 None";

#[test]
fn nobody_takes_a_name_from_one_that_a_list_lacked() {
    for target in [Target::Agent, Target::Catalog] {
        let mut simulation = unseen(target, see(evil()));
        assert_eq!(simulation.registered(), [VICTIMS], "what it claims is not known");
        let problems: Vec<_> = simulation.bridge.problems_of(&evil().0).collect();
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].message.contains("victim/payments, which was not listed"),
            "{problems:?}"
        );

        // A second list agrees: the name is taken before it is left.
        confirm(&mut simulation, vec![see(evil())], vec![evil_slice(1)]);
        assert_eq!(simulation.registered(), [EVILS]);
        let of_victim = |write: &Write| format!("{:?}", write.key()).contains("_victim_");
        let taken = simulation.sent.iter().position(is_evil);
        let left = simulation.sent.iter().position(of_victim);
        assert!(taken < left && left.is_some(), "{:?}", simulation.sent);
        assert_eq!(simulation.bridge.counts().problems, 0);
    }
}

#[test]
fn one_that_a_list_lacked_and_that_is_seen_again_has_its_name() {
    let later = ObjectKey::new("later", "pay-too");
    let (_, mut service) = victim();
    (service.created, service.cluster_ips) = (9, vec![ip("10.0.0.9")]);
    let later = || SeenObject::Service(later.clone(), service.clone());
    let later_has = "pay 10.0.0.9 Critical".to_owned();
    let mut simulation = unseen(Target::Catalog, later());
    simulation.seen(see(victim()));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "it comes first");

    let mut simulation = unseen(Target::Catalog, later());
    let (key, mut moved) = victim();
    moved.annotations.insert("kube-consul.io/service-name".into(), "till".into());
    simulation.seen(SeenObject::Service(key, moved));
    simulation.settle();
    let is_left = |write: &Write| format!("{:?}", write.key()).contains("_victim_");
    assert!(
        simulation.sent.iter().position(is_left) > Some(0),
        "taken first: {:?}",
        simulation.sent
    );
    assert_eq!(simulation.registered(), [later_has, "till 10.0.0.1 Critical".to_owned()]);
}

#[test]
fn a_name_of_one_that_a_list_lacked_is_free_once_somebody_removed_its_records() {
    let mut simulation = unseen(Target::Catalog, see(evil()));
    simulation.registrations.clear();
    simulation.resync();
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registered(), [EVILS]);
}

#[test]
fn nobody_takes_a_name_from_one_that_could_never_be_read() {
    let mut simulation = with_victim(settings(), Target::Catalog).restarted(settings());
    simulation.resync();
    let unread = SeenObject::Undecodable(Kind::Service, victim().0, "no spec".to_owned());
    simulation.list(Kind::Service, [unread, see(evil())]);
    simulation.list(Kind::EndpointSlice, [evil_slice(1)]);
    simulation.settle();
    assert_eq!(simulation.registered(), [VICTIMS]);
    assert_eq!(reasons(&simulation, &evil()), [Reason::NameConflict]);
    simulation.bridge.handle_watch(WatchEvent::Deleted(Kind::Service, victim().0), simulation.now);
    simulation.settle();
    assert_eq!(simulation.registered(), [EVILS]);
    let removed = simulation.sent.iter().position(|it| matches!(it, Write::Deregister { .. }));
    assert!(simulation.sent.iter().position(is_evil) < removed, "{:?}", simulation.sent);
}
