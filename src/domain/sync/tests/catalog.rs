//! What only the catalog sink needs: namespace nodes, and a leader that steps down.

use super::*;
use crate::domain::consul::record::{Check, NamespaceNodeAnswer};
use crate::domain::problem::Reason;

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
    simulation.read_back();
    simulation.settle();
    assert_eq!(namespace_nodes(&simulation), ["ns"]);
}

#[test]
fn a_node_stays_while_a_write_to_it_is_uncertain() {
    let mut simulation = in_catalog(1);
    simulation.deleted(Kind::Service, "s1");
    simulation.step(&mut |_| Fate::Lost);
    let asked = simulation.bridge.next_actions(simulation.now, 9);
    assert!(asked.is_empty(), "{asked:?}");
    simulation.settle();
    assert_eq!(namespace_nodes(&simulation), [""; 0]);
}

#[test]
fn nothing_is_written_to_a_node_that_is_being_removed() {
    let mut simulation = in_catalog(1);
    simulation.deleted(Kind::Service, "s1");
    simulation.step_until_node(&mut |_| Fate::Applied);
    simulation.seen(service_seen(2));
    assert_eq!(simulation.bridge.next_actions(simulation.now, 9), []);
    assert!(!simulation.bridge.is_settled());
    simulation.bridge.namespace_node_answered("ns", NamespaceNodeAnswer::Removed, simulation.now);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 Critical"]);
}

#[test]
fn what_others_put_on_a_node_keeps_it_and_is_a_problem() {
    let mut simulation = in_catalog(1);
    simulation.deleted(Kind::Service, "s1");
    simulation.step_until_node(&mut |_| Fate::Applied);
    let foreign =
        NamespaceNodeAnswer::Foreign { node: "k8s-kubernetes.ns".into(), ids: vec!["db".into()] };
    simulation.bridge.namespace_node_answered("ns", foreign, simulation.now);
    let namespace = ObjectKey::new("", "ns");
    let problems: Vec<_> =
        simulation.bridge.problems().of(Kind::Namespace, &namespace).cloned().collect();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].reason, Reason::ForeignOnNode);
    assert!(problems[0].message.contains("found db"), "{}", problems[0]);
    assert_eq!(simulation.bridge.next_actions(simulation.now, 9), [], "until it is shown again");
    simulation.read_back();
    simulation.settle();
    assert_eq!((simulation.bridge.problems().count(), namespace_nodes(&simulation).len()), (0, 0));
}

#[test]
fn one_that_steps_down_writes_nothing_until_consul_is_read_again() {
    let mut simulation = in_sync(3);
    simulation.take_sent();
    simulation.bridge.step_down();
    simulation.deleted(Kind::Service, "s1");
    simulation.seen(slice_seen(2, false));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_settled());
    // Meanwhile the other one has done a part of it.
    simulation.registrations.retain(|id, _| !id.contains("_s1_"));
    simulation.kv.retain(|key, _| !key.ends_with("/10.0.0.1"));
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 1, "s2 turns critical");
    assert!(simulation.bridge.is_settled());
}

#[test]
fn a_fenced_write_is_made_by_whoever_leads_next() {
    let mut simulation = in_sync(1);
    simulation.seen(slice_seen(1, false));
    let writes = simulation.next_writes();
    simulation.bridge.answered(&writes[0].key(), Answer::Fenced, simulation.now);
    simulation.bridge.step_down();
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 Critical"]);
}

/// A new instance whose first write is answered so, and the PTR key that goes with it.
fn new_instance(answers: [Answer; 2]) -> (Simulation, Box<str>) {
    let mut simulation = in_catalog(1);
    simulation.seen(service_seen(2));
    simulation.seen(slice_seen(2, true));
    let writes = simulation.next_writes();
    for (write, answer) in writes.iter().zip(answers) {
        simulation.bridge.answered(&write.key(), answer, simulation.now);
    }
    let RecordKey::Ptr(key) = writes[1].key() else { panic!("{writes:?}") };
    (simulation, key)
}

#[test]
fn an_instance_waits_for_the_ptr_key_that_is_read() {
    let (mut simulation, key) = new_instance([Answer::NotSent, Answer::Conflict]);
    let actions = simulation.bridge.next_actions(simulation.now, 9);
    assert_eq!(actions, [Action::ReadPtr(key.clone())]);
    assert_eq!(simulation.bridge.next_actions(simulation.now, 9), [], "while it is read");
    simulation.bridge.ptr_read(&key, Ok(None), simulation.now);
    let actions = simulation.bridge.next_actions(simulation.now, 9);
    assert!(matches!(&*actions, [Action::Write(writes)] if writes.len() == 2), "{actions:?}");
}

#[test]
fn an_instance_and_its_ptr_record_are_tried_again_together() {
    let failed = || Answer::Failed("busy".to_owned());
    let (mut simulation, _) = new_instance([failed(), failed()]);
    let mut actions = Vec::new();
    while actions.is_empty() {
        simulation.now = simulation.bridge.next_timer().unwrap();
        simulation.bridge.wake(simulation.now);
        actions = simulation.bridge.next_actions(simulation.now, 9);
    }
    assert!(matches!(&*actions, [Action::Write(writes)] if writes.len() == 2), "{actions:?}");
}

#[test]
fn an_instance_does_not_wait_for_a_ptr_key_that_keeps_failing() {
    let (mut simulation, key) = new_instance([Answer::NotSent, Answer::Conflict]);
    let mut reads = 0;
    let writes = 'writes: loop {
        while let Some(action) = simulation.bridge.next_actions(simulation.now, 1).pop() {
            match action {
                Action::Write(writes) => break 'writes writes,
                read => assert_eq!(read, Action::ReadPtr(key.clone())),
            }
            reads += 1;
            assert!(reads < 10, "it is read again and again");
            let denied = Err("no right to read it".to_owned());
            simulation.bridge.ptr_read(&key, denied, simulation.now);
        }
        simulation.now = simulation.bridge.next_timer().unwrap_or(simulation.now);
        simulation.bridge.wake(simulation.now);
    };
    assert!(matches!(&*writes, [Write::Register(_)]), "{writes:?}");
    assert!(reads > 1, "it did not wait at all");
}

#[test]
fn a_ptr_record_does_not_go_before_its_instance() {
    let mut simulation = in_catalog(1);
    simulation.seen(slice_seen(1, false));
    let in_flight = simulation.bridge.next_actions(simulation.now, 9);
    simulation.deleted(Kind::Service, "s1");
    assert_eq!(simulation.bridge.next_actions(simulation.now, 9), [], "the instance is written");
    for action in in_flight {
        let Action::Write(writes) = action else { panic!("{action:?}") };
        simulation.send(writes, &mut |_| Fate::Applied);
    }
    let actions = simulation.bridge.next_actions(simulation.now, 9);
    assert!(matches!(&*actions, [Action::Write(writes)] if writes.len() == 2), "{actions:?}");
}

/// The node `ns` was to be removed, and that got no answer.
fn after_a_removal_without_an_answer() -> Simulation {
    let mut simulation = in_catalog(1);
    simulation.deleted(Kind::Service, "s1");
    simulation.step_until_node(&mut |_| Fate::Applied);
    let lost = NamespaceNodeAnswer::Unanswered("no answer".to_owned());
    simulation.bridge.namespace_node_answered("ns", lost, simulation.now);
    simulation
}

#[test]
fn a_node_that_may_still_be_removed_is_looked_at_again() {
    let mut simulation = after_a_removal_without_an_answer();
    assert!(simulation.bridge.uncertain_until().is_some_and(|it| it > simulation.now));
    simulation.seen(service_seen(2));
    simulation.settle();
    // The removal comes late, and takes along what was written since.
    simulation.registrations.clear();
    simulation.namespace_nodes.clear();
    simulation.now += Duration::from_secs(31);
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 Critical"]);
    assert!(simulation.bridge.uncertain_until().is_none());
}

#[test]
fn what_stands_in_the_way_is_a_problem_until_it_is_gone() {
    let foreign = || Answer::Foreign("node k8s-c.ns is somebody else's".to_owned());
    let (mut simulation, _) = new_instance([foreign(), Answer::NotSent]);
    simulation.step(&mut |_| Fate::Applied);
    let problems: Vec<_> = simulation.bridge.problems().iter().collect();
    assert!(matches!(&*problems, [(_, _, it)] if it.reason == Reason::Contested), "{problems:?}");
    simulation.settle();
    assert_eq!((simulation.bridge.problems().count(), simulation.registrations.len()), (0, 2));
}

#[test]
fn a_record_that_is_changed_back_again_and_again_is_left_to_people() {
    let mut simulation = in_sync(1);
    simulation.take_sent();
    let fight = |simulation: &mut Simulation| {
        for registration in simulation.registrations.values_mut() {
            registration.meta.insert("owner".to_owned(), "terraform".to_owned());
        }
        simulation.now += Duration::from_mins(1);
        simulation.read_back();
        simulation.step(&mut |_| Fate::Applied);
        simulation.take_sent()
    };
    for round in 1..=5 {
        assert_eq!(fight(&mut simulation), 1, "round {round}");
    }
    assert_eq!(fight(&mut simulation), 0, "a fight");
    let problems: Vec<_> =
        simulation.bridge.problems().of(Kind::Service, &key("s1")).cloned().collect();
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].reason, Reason::Contested);
    assert!(problems[0].message.contains("owner=terraform"), "{}", problems[0]);
    // The other writer is gone: it heals by itself.
    simulation.settle();
    assert_eq!((simulation.take_sent(), simulation.bridge.problems().count()), (1, 0));
    assert!(!simulation.registrations.values().any(|it| it.meta.contains_key("owner")));
}

#[test]
fn a_reading_does_not_have_a_node_removed_that_is_being_removed() {
    let mut simulation = in_catalog(1);
    simulation.deleted(Kind::Service, "s1");
    simulation.step_until_node(&mut |_| Fate::Applied);
    // It shows the node: its removal is not yet made.
    simulation.read_back();
    assert_eq!(simulation.bridge.next_actions(simulation.now, 9), []);
    simulation.namespace_nodes.clear();
    simulation.bridge.namespace_node_answered("ns", NamespaceNodeAnswer::Removed, simulation.now);
    assert_eq!(simulation.bridge.next_actions(simulation.now, 9), []);
    assert!(simulation.bridge.is_settled());
}

#[test]
fn what_is_written_after_a_removal_without_an_answer_is_read_back() {
    let mut simulation = after_a_removal_without_an_answer();
    simulation.seen(service_seen(2));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 1);
    // The removal is made all the same, late, and takes along what stands on the node.
    simulation.registrations.clear();
    simulation.namespace_nodes.clear();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 Critical"]);
}

#[test]
fn one_that_stepped_down_in_an_outage_waits_without_a_timer() {
    let mut simulation = in_sync(4);
    for n in 1..=4 {
        simulation.seen(slice_seen(n, false));
    }
    simulation.step(&mut |_| Fate::Failed);
    assert!(simulation.bridge.next_timer().is_some());
    simulation.bridge.step_down();
    simulation.now += Duration::from_mins(1);
    simulation.bridge.wake(simulation.now);
    assert_eq!(simulation.bridge.next_timer(), None);
    simulation.read_back();
    simulation.settle();
    assert!(simulation.registered().iter().all(|it| it.ends_with("Critical")));
}

#[test]
fn a_name_that_others_took_meanwhile_is_not_joined_by_whoever_leads_again() {
    let mut simulation = in_sync(1);
    simulation.bridge.step_down();
    simulation.seen(service_seen(2));
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"], "it is not known who has s2");
    simulation.bridge.set_foreign_names(foreign(&["s2"]));
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
    assert_eq!(simulation.bridge.problems().count(), 1);
}

#[test]
fn what_comes_and_goes_beside_a_standby_does_not_heap_up() {
    let mut simulation = in_sync(2);
    simulation.bridge.step_down();
    let before = simulation.bridge.backlog();
    for n in 3..=9 {
        simulation.seen(service_seen(n));
        simulation.deleted(Kind::Service, &format!("s{n}"));
    }
    assert_eq!(simulation.bridge.backlog(), before);
    // One that is gone here while the other one has not yet removed it.
    simulation.deleted(Kind::Service, "s1");
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s2 10.0.0.2 None"]);
    assert_eq!((simulation.kv.len(), simulation.bridge.is_settled()), (1, true));
}

#[test]
fn what_others_put_on_a_node_is_no_problem_once_the_node_is_needed_again() {
    let mut simulation = in_catalog(1);
    simulation.deleted(Kind::Service, "s1");
    simulation.step_until_node(&mut |_| Fate::Applied);
    let foreign =
        NamespaceNodeAnswer::Foreign { node: "k8s-kubernetes.ns".into(), ids: vec!["db".into()] };
    simulation.bridge.namespace_node_answered("ns", foreign, simulation.now);
    simulation.seen(service_seen(2));
    simulation.settle();
    assert_eq!(simulation.bridge.problems().count(), 1);
    simulation.read_back();
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn one_that_takes_over_with_empty_lists_holds_everything_back() {
    let mut simulation = in_sync(30);
    simulation.bridge.step_down();
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, []);
    simulation.read_all();
    simulation.settle();
    assert!(simulation.bridge.is_holding());
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (30, 30));
    // A second look agrees.
    confirm(&mut simulation, Vec::new(), Vec::new());
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0));
}

#[test]
fn one_that_is_deposed_while_it_holds_back_holds_back_again() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    assert!(simulation.bridge.is_holding());
    simulation.bridge.step_down();
    // The second look is over before this one leads again, and says nothing of Consul then.
    confirm(&mut simulation, Vec::new(), Vec::new());
    assert!(!simulation.bridge.is_holding());
    simulation.read_all();
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
        simulation.bridge.problems().iter().map(|(_, _, it)| it.reason).collect()
    };
    let told = [Reason::InvalidAnnotation, Reason::Undecodable, Reason::Denied];
    assert_eq!(reasons(&simulation), told);
    simulation.take_sent();
    simulation.bridge.take_reports();

    simulation.bridge.step_down();
    let reports = simulation.bridge.take_reports();
    let withdrawn: Vec<_> = reports
        .iter()
        .map(|report| match report {
            Report::Withdrawn(Kind::Service, service, it) => (&*service.name, it.reason),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(withdrawn, [("s3", Reason::InvalidAnnotation), ("s5", Reason::Denied)]);
    let ledger = simulation.bridge.ledger();
    assert_eq!((ledger.registration_count(), ledger.ptr_count()), (0, 0));
    assert_eq!((simulation.bridge.backlog(), simulation.bridge.next_timer()), (0, None));
    assert_eq!(reasons(&simulation), [Reason::Undecodable], "what it sees itself");
    simulation.seen(service_seen(4));
    assert_eq!(reasons(&simulation), []);
    simulation.seen(SeenObject::Undecodable(Kind::Service, key("s4"), "no".to_owned()));
    simulation.bridge.set_ptr_zone(None);
    assert_eq!(simulation.bridge.backlog(), 0, "it plans nothing");
    simulation.bridge.set_ptr_zone(Some(zone()));
    simulation.bridge.take_reports();

    simulation.read_all();
    simulation.step(&mut |write| if of_s5(write) { Fate::Denied } else { Fate::Applied });
    // Of s4 something is known by now.
    assert_eq!(simulation.take_sent(), 3, "s5, and s4 with its PTR record");
    assert_eq!(reasons(&simulation), told);
    let reports = simulation.bridge.take_reports();
    let news = reports.iter().filter(|report| matches!(report, Report::Problem(..)));
    assert_eq!(news.count(), 2, "{reports:?}");
}

impl Simulation {
    /// A reading that begins after a write was sent, which is answered during it or after it.
    fn read_back_answering(&mut self, moment: &str, record: &RecordKey, answer: &Answer) {
        self.bridge.begin_read_back(self.now);
        if moment == "during it" {
            self.bridge.answered(record, answer.clone(), self.now);
        }
        self.show();
        self.bridge.finish_read_back(self.now);
        if moment == "after it" {
            self.bridge.answered(record, answer.clone(), self.now);
        }
        self.bridge.set_foreign_names(ForeignNames::new());
    }
}

#[test]
fn what_is_in_flight_when_one_is_deposed_is_neither_lost_nor_taken_for_a_repair() {
    let failed = || Answer::Failed("no leader".to_owned());
    let unanswered = || Answer::Unanswered("timeout".to_owned());
    for (answer, is_applied) in [
        (None, true),
        (Some(failed()), false),
        (Some(unanswered()), true),
        (Some(unanswered()), false),
    ] {
        for moment in ["before the reading", "during it", "after it"] {
            let row = format!("{answer:?} {is_applied} {moment}");
            let mut simulation = in_catalog(1);
            simulation.seen(slice_seen(1, false));
            let writes = simulation.next_writes();
            let [write] = &*writes else { panic!("{writes:?}") };
            simulation.bridge.step_down();
            simulation.deleted(Kind::Service, "s1");
            let applied = is_applied.then(|| simulation.apply(write.clone()));
            let answer = answer.clone().or(applied).unwrap();
            if moment == "before the reading" {
                simulation.bridge.answered(&write.key(), answer.clone(), simulation.now);
                assert_eq!(simulation.bridge.ledger().registration_count(), 0, "{row}");
                assert_eq!(simulation.bridge.backlog(), 0, "{row}");
            }
            simulation.read_back_answering(moment, &write.key(), &answer);
            simulation.settle();
            assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0), "{row}");
            assert!(simulation.bridge.is_settled(), "{row}");
            let reports = simulation.bridge.take_reports();
            let repaired = reports.iter().any(|it| matches!(it, Report::Repaired(_)));
            assert!(!repaired, "{row}: {reports:?}");
        }
    }
}

#[test]
fn what_is_in_flight_when_one_is_deposed_may_be_changed_by_whoever_leads_next() {
    let failed = || Answer::Failed("no leader".to_owned());
    // Also when it was applied: before the next one wrote.
    for answer in [Answer::Fenced, failed(), Answer::Applied { index: 1 }] {
        for moment in ["during it", "after it"] {
            let row = format!("{answer:?} {moment}");
            let mut simulation = in_catalog(1);
            simulation.seen(slice_seen(1, false));
            let writes = simulation.next_writes();
            let [write] = &*writes else { panic!("{writes:?}") };
            simulation.bridge.step_down();
            // The next one ends before it sees what changed last.
            let critical = !matches!(answer, Answer::Applied { .. });
            if critical {
                simulation.apply(write.clone());
            }
            simulation.seen(slice_seen(1, critical));
            simulation.read_back_answering(moment, &write.key(), &answer);
            simulation.settle();
            let check = if critical { Check::None } else { Check::Critical };
            assert_eq!(simulation.registered(), [format!("s1 10.0.0.1 {check:?}")], "{row}");
        }
    }
}

#[test]
fn what_the_next_leader_wrote_is_removed_also_where_the_same_write_failed_here() {
    for answer in [Answer::Fenced, Answer::Failed("no leader".to_owned())] {
        let mut simulation = in_catalog(1);
        simulation.seen(service_seen(2));
        simulation.seen(slice_seen(2, true));
        let writes = simulation.next_writes();
        simulation.bridge.step_down();
        for write in &writes {
            simulation.apply(write.clone());
        }
        simulation.deleted(Kind::Service, "s2");
        simulation.bridge.begin_read_back(simulation.now);
        simulation.show();
        simulation.bridge.finish_read_back(simulation.now);
        for write in &writes {
            simulation.bridge.answered(&write.key(), answer.clone(), simulation.now);
        }
        simulation.bridge.set_foreign_names(ForeignNames::new());
        simulation.settle();
        let left = (simulation.registered(), simulation.kv.len());
        assert_eq!(left, (vec!["s1 10.0.0.1 None".to_owned()], 1), "{answer:?}");
    }
}

/// Requests whose answers are on their way. What is applied is applied when it is sent: after that
/// the fence keeps it out.
#[derive(Default)]
struct Held(VecDeque<Answered>);

enum Answered {
    Write(RecordKey, Answer),
    Read(Box<str>, Option<ObservedPtr>),
    Removal(Box<str>, NamespaceNodeAnswer),
}

impl Held {
    fn send(&mut self, simulation: &mut Simulation, is_applied: bool) {
        for action in simulation.bridge.next_actions(simulation.now, 3) {
            match action {
                Action::ReadPtr(key) => {
                    let found = simulation.kv.get(&key).cloned();
                    self.0.push_back(Answered::Read(key, found));
                }
                Action::Write(writes) => {
                    let conflicts = writes.iter().any(|write| !cas_holds(simulation, write));
                    for write in writes {
                        let record = write.key();
                        let answer = match (is_applied, conflicts, cas_holds(simulation, &write)) {
                            (false, ..) => Answer::Fenced,
                            (true, true, true) => Answer::NotSent,
                            (true, ..) => simulation.apply(write),
                        };
                        self.0.push_back(Answered::Write(record, answer));
                    }
                }
                Action::RemoveNamespaceNode(namespace) => {
                    let answer = match (is_applied, simulation.registrations.is_empty()) {
                        (false, _) => NamespaceNodeAnswer::Fenced,
                        (true, false) => NamespaceNodeAnswer::InUse,
                        (true, true) => {
                            simulation.namespace_nodes.remove(&namespace);
                            NamespaceNodeAnswer::Removed
                        }
                    };
                    self.0.push_back(Answered::Removal(namespace, answer));
                }
            }
        }
    }

    fn answer(&mut self, simulation: &mut Simulation, count: usize) {
        let (bridge, now) = (&mut simulation.bridge, simulation.now);
        for answered in self.0.drain(..count.min(self.0.len())) {
            match answered {
                Answered::Write(record, answer) => bridge.answered(&record, answer, now),
                Answered::Read(key, found) => bridge.ptr_read(&key, Ok(found), now),
                Answered::Removal(namespace, answer) => {
                    bridge.namespace_node_answered(&namespace, answer, now);
                }
            }
        }
    }
}

fn cas_holds(simulation: &Simulation, write: &Write) -> bool {
    let index = |key: &str| simulation.kv.get(key).map_or(0, |entry| entry.index);
    match write {
        Write::PutPtr { record, cas } => index(&record.key) == *cas,
        Write::DeletePtr { key, cas } => index(key) == *cas,
        _ => true,
    }
}

/// Another one leads, and has done all that there was to do.
fn another_leads(simulation: &mut Simulation, other: &mut Simulation) {
    simulation.bridge.step_down();
    other.settle();
    simulation.registrations.clone_from(&other.registrations);
    simulation.namespace_nodes.clone_from(&other.namespace_nodes);
    simulation.kv.clone_from(&other.kv);
    for entry in simulation.kv.values_mut() {
        simulation.index += 1;
        entry.index = simulation.index;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Event(Event),
    Send(bool),
    Answer(usize),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => events().prop_map(Step::Event),
        3 => prop::bool::weighted(0.7).prop_map(Step::Send),
        2 => (1..4_usize).prop_map(Step::Answer),
    ]
}

proptest! {
    #![proptest_config(cases())]

    /// Invariants 4 and 6: whatever was in flight when others led, and whenever it is answered,
    /// the last leader leaves what one would have written that led all the time.
    #[test]
    fn it_converges_after_others_have_led(steps in prop::collection::vec(steps(), 1..40)) {
        let mut simulation = Simulation::of_catalog();
        let mut calm = Simulation::of_catalog();
        for simulation in [&mut simulation, &mut calm] {
            simulation.read_back();
            for kind in WATCHED { simulation.list(kind, []); }
        }
        let mut held = Held::default();
        for step in &steps {
            match step {
                Step::Event(Event::StepDown) => another_leads(&mut simulation, &mut calm),
                Step::Event(event) => {
                    happen(&mut simulation, event);
                    happen(&mut calm, event);
                }
                Step::Send(is_applied) => {
                    simulation.bridge.wake(simulation.now);
                    held.send(&mut simulation, *is_applied);
                }
                Step::Answer(count) => held.answer(&mut simulation, *count),
            }
        }
        if simulation.bridge.phase != Phase::Running { simulation.read_all(); }
        held.answer(&mut simulation, usize::MAX);
        for simulation in [&mut simulation, &mut calm] { simulation.settle(); }
        prop_assert_eq!(&simulation.registrations, &calm.registrations);
        let values = |simulation: &Simulation| -> BTreeMap<_, _> {
            simulation.kv.values().map(|e| (e.record.key.clone(), e.record.value.clone())).collect()
        };
        prop_assert_eq!(values(&simulation), values(&calm));
        prop_assert_eq!(&simulation.namespace_nodes, &calm.namespace_nodes);
        prop_assert!(simulation.bridge.is_settled());
        prop_assert_eq!(simulation.bridge.in_flight, 0);
        prop_assert!(simulation.bridge.units.is_empty(), "left: {:?}", simulation.bridge.units);
        prop_assert_eq!(simulation.bridge.tracks.len(), 0);
    }
}
