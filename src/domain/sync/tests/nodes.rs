//! Services that use node ports.

use super::*;
use crate::domain::kube::object::Node;
use crate::domain::testing::node;

fn by_node_port() -> Settings {
    Settings { address: AddressMode::NodePort, ..settings() }
}

/// Service `s<n>` with node port 30000 + n.
fn with_node_port(n: u8) -> SeenObject {
    let mut service = numbered(n);
    service.ports[0].node_port = Some(30_000 + u16::from(n));
    SeenObject::Service(key(&format!("s{n}")), service)
}

/// The same, asked for by its annotation.
fn annotated(n: u8) -> SeenObject {
    let SeenObject::Service(key, mut service) = with_node_port(n) else { unreachable!() };
    service.annotations = [("kube-consul.io/address".into(), "node-port".into())].into();
    SeenObject::Service(key, service)
}

fn node_key(name: &str) -> ObjectKey {
    ObjectKey::new("", name)
}

/// Node `n<n>` at 192.0.2.<n>.
fn node_seen(n: u8, ready: bool) -> SeenObject {
    SeenObject::Node(node_key(&format!("n{n}")), node(&[&format!("192.0.2.{n}")], ready))
}

fn slices(count: u8) -> Vec<SeenObject> {
    (1..=count).map(|n| slice_seen(n, true)).collect()
}

/// A bridge that has listed these Services with their slices, and nodes if some are given.
fn listed(
    settings: Settings,
    services: impl IntoIterator<Item = SeenObject>,
    nodes: Option<Vec<SeenObject>>,
) -> Simulation {
    relisted(Simulation::new(settings), services, nodes)
}

fn relisted(
    mut simulation: Simulation,
    services: impl IntoIterator<Item = SeenObject>,
    nodes: Option<Vec<SeenObject>>,
) -> Simulation {
    simulation.resync();
    simulation.list(Kind::Service, services);
    simulation.list(Kind::EndpointSlice, slices(30));
    if let Some(nodes) = nodes {
        simulation.list(Kind::Node, nodes);
    }
    simulation.settle();
    simulation
}

fn remove_node(simulation: &mut Simulation, name: &str) {
    simulation.bridge.handle_watch(WatchEvent::Deleted(Kind::Node, node_key(name)), simulation.now);
    simulation.settle();
}

fn problems(simulation: &Simulation) -> Vec<(Subject, Reason)> {
    simulation
        .bridge
        .problems()
        .into_iter()
        .map(|(kind, _, problem)| (kind, problem.reason))
        .collect()
}

#[test]
fn nodes_are_asked_for_only_while_a_service_uses_them() {
    let mut simulation = listed(settings(), (1..=3).map(service_seen), None);
    let asked = |simulation: &mut Simulation| {
        simulation.next_actions();
        let asked = std::mem::take(&mut simulation.asked);
        (asked, simulation.bridge.is_listed())
    };
    assert_eq!(asked(&mut simulation), (vec![], true));
    simulation.seen(annotated(2));
    assert_eq!(asked(&mut simulation), (vec![Action::WatchNodes], false));
    assert_eq!(asked(&mut simulation), (vec![], false), "once");
    simulation.seen(with_node_port(2));
    assert_eq!(asked(&mut simulation), (vec![Action::StopWatchingNodes], true));
    simulation.seen(annotated(2));
    assert_eq!(asked(&mut simulation), (vec![Action::WatchNodes], false));
    simulation.deleted(Kind::Service, "s2");
    assert_eq!(asked(&mut simulation), (vec![Action::StopWatchingNodes], true));
}

#[test]
fn each_node_is_an_instance_from_its_first_to_its_last_moment() {
    let nodes = vec![node_seen(1, true), node_seen(2, false)];
    let mut simulation = listed(by_node_port(), [with_node_port(1)], Some(nodes));
    assert_eq!(simulation.registered(), ["s1 192.0.2.1 None", "s1 192.0.2.2 Critical"]);
    assert!(simulation.kv.is_empty(), "no PTR record");
    simulation.take_sent();
    simulation.seen(node_seen(1, true));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "a heartbeat");
    simulation.seen(node_seen(1, false));
    simulation.seen(node_seen(3, true));
    simulation.settle();
    assert_eq!(
        simulation.registered(),
        ["s1 192.0.2.1 Critical", "s1 192.0.2.2 Critical", "s1 192.0.2.3 None"]
    );
    remove_node(&mut simulation, "n1");
    assert_eq!(simulation.registered(), ["s1 192.0.2.2 Critical", "s1 192.0.2.3 None"]);
}

#[test]
fn a_node_that_changes_costs_only_the_services_that_use_nodes() {
    let services = (1..=20).map(service_seen).chain([annotated(21)]);
    let mut simulation = listed(settings(), services, Some(vec![node_seen(1, true)]));
    simulation.seen(node_seen(1, false));
    assert_eq!(simulation.bridge.counts().backlog, 1);
}

#[test]
fn nothing_is_decided_before_the_nodes_are_known() {
    let before = listed(settings(), (1..=3).map(with_node_port), None);
    assert_eq!(before.registrations.len(), 3);
    // The first reconciliation waits for the list.
    let mut simulation = before.restarted(by_node_port());
    simulation.bridge.handle_watch(WatchEvent::ListStarted(Kind::Node), Moment::ZERO);
    let mut simulation = relisted(simulation, (1..=3).map(with_node_port), None);
    assert!(!simulation.bridge.is_listed());
    simulation.seen(node_seen(1, true));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    simulation.bridge.handle_watch(WatchEvent::ListCompleted(Kind::Node), simulation.now);
    simulation.settle();
    assert_eq!(
        simulation.registered(),
        ["s1 192.0.2.1 None", "s2 192.0.2.1 None", "s3 192.0.2.1 None"]
    );
}

#[test]
fn an_annotation_at_run_time_waits_for_nodes_alone() {
    let mut simulation = listed(settings(), (1..=3).map(with_node_port), None);
    simulation.take_sent();
    simulation.seen(annotated(2));
    simulation.deleted(Kind::Service, "s3");
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None", "s2 10.0.0.2 None"]);
    assert_eq!(simulation.kv.len(), 2, "its PTR record stays too");
    simulation.list(Kind::Node, [node_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None", "s2 192.0.2.1 None"]);
    assert_eq!(simulation.kv.len(), 1);
}

#[test]
fn where_nodes_may_not_be_listed_only_their_services_are_a_problem() {
    let mut simulation = Simulation::new(settings());
    simulation.resync();
    simulation.list(Kind::Service, [service_seen(1), annotated(2), service_seen(3)]);
    simulation.list(Kind::EndpointSlice, slices(3));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "the nodes may come any moment");
    simulation.bridge.handle_watch_failure(Kind::Node, None, simulation.now);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    assert_eq!(problems(&simulation), [], "it may pass");
    assert!(!simulation.bridge.is_listed());
    simulation.bridge.handle_watch_failure(Kind::Node, Some("no right".to_owned()), simulation.now);
    simulation.bridge.handle_watch_failure(Kind::Node, None, simulation.now);
    simulation.settle();
    assert_eq!(problems(&simulation), [(Subject::Service, Reason::Denied)]);
    assert!(simulation.bridge.is_listed(), "they do not come");
    simulation.list(Kind::Node, [node_seen(1, true)]);
    simulation.settle();
    assert_eq!(problems(&simulation), []);
    assert_eq!(simulation.registrations.len(), 3);
    // What is known by then stays known.
    simulation.bridge.handle_watch_failure(Kind::Node, Some("no right".to_owned()), simulation.now);
    simulation.settle();
    assert_eq!(problems(&simulation), []);
}

#[test]
fn services_that_wait_for_nodes_keep_what_they_have() {
    let services = || (1..=30).map(with_node_port);
    let before = listed(by_node_port(), services(), Some(vec![node_seen(1, true)]));
    assert_eq!(before.registrations.len(), 30);
    let mut simulation = before.restarted(by_node_port());
    simulation.bridge.handle_watch_failure(Kind::Node, Some("no right".to_owned()), Moment::ZERO);
    let mut simulation = relisted(simulation, services(), None);
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_holding(), "nothing is to be removed");
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 29, "but what is gone is gone");
    simulation.take_sent();
    // A first list that shows none is not believed at once.
    simulation.list(Kind::Node, []);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(simulation.bridge.is_holding());
    look_again(&mut simulation, services().skip(1).collect(), vec![node_seen(1, true)]);
    assert_eq!(simulation.take_sent(), 0, "the second list has it");
    assert!(!simulation.bridge.is_holding());
}

/// All that there is, once more.
fn look_again(simulation: &mut Simulation, services: Vec<SeenObject>, nodes: Vec<SeenObject>) {
    begin_confirmation(simulation);
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    simulation.list(Kind::Service, services);
    simulation.list(Kind::EndpointSlice, slices(30));
    assert!(simulation.bridge.is_holding(), "the nodes are not listed again yet");
    simulation.list(Kind::Node, nodes);
    simulation.settle();
}

#[test]
fn nodes_that_a_list_lacks_are_looked_for_a_second_time() {
    let services = || (1..=15).map(with_node_port);
    let nodes = vec![node_seen(1, true), node_seen(2, true)];
    let mut simulation = listed(by_node_port(), services(), Some(nodes));
    assert_eq!(simulation.registrations.len(), 30);
    simulation.take_sent();
    simulation.list(Kind::Node, []);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "while running");
    look_again(&mut simulation, services().collect(), vec![node_seen(1, true)]);
    assert_eq!(simulation.registrations.len(), 15, "n2 is gone indeed");

    let services = || (1..=30).map(with_node_port);
    let simulation = listed(by_node_port(), services(), Some(vec![node_seen(1, true)]));
    let simulation = simulation.restarted(by_node_port());
    let mut simulation = relisted(simulation, services(), Some(Vec::new()));
    assert_eq!(simulation.take_sent(), 0, "at the start");
    look_again(&mut simulation, services().collect(), Vec::new());
    assert!(simulation.registrations.is_empty());
}

#[test]
fn one_node_of_three_may_be_missing() {
    let nodes = |count: u8| (1..=count).map(|n| node_seen(n, true)).collect::<Vec<_>>();
    let mut simulation = listed(by_node_port(), (1..=10).map(with_node_port), Some(nodes(3)));
    assert_eq!(simulation.registrations.len(), 30);
    simulation.list(Kind::Node, nodes(2));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 20);
}

#[test]
fn a_node_that_cannot_be_read_exists() {
    let unread = |name: &str| SeenObject::Undecodable(Kind::Node, node_key(name), "no".to_owned());
    let nodes = vec![node_seen(1, true), node_seen(2, true)];
    let before = listed(by_node_port(), [with_node_port(1)], Some(nodes));
    let nodes = vec![node_seen(1, true), unread("n2")];
    let simulation = before.restarted(by_node_port());
    let mut simulation = relisted(simulation, [with_node_port(1)], Some(nodes));
    assert_eq!(simulation.take_sent(), 0);
    assert_eq!(problems(&simulation), [(Subject::Node, Reason::Undecodable)]);
    remove_node(&mut simulation, "n2");
    assert_eq!(simulation.registered(), ["s1 192.0.2.1 None"]);
    assert_eq!(problems(&simulation), []);
}

#[test]
fn what_is_wrong_with_a_node_is_told_until_nobody_asks() {
    let mut wrong: Node = node(&["192.0.2.1"], true);
    wrong.left_out = ["status.addresses[1].address: x".into()].into();
    let nodes = vec![SeenObject::Node(node_key("n1"), wrong)];
    let mut simulation = listed(settings(), [annotated(1)], Some(nodes));
    assert_eq!(problems(&simulation), [(Subject::Node, Reason::Incomplete)]);
    simulation.seen(with_node_port(1));
    simulation.settle();
    assert_eq!(simulation.asked.last(), Some(&Action::StopWatchingNodes));
    assert_eq!(problems(&simulation), []);
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
    simulation.seen(annotated(1));
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"], "they have to be listed again");
}

#[test]
fn without_the_nodes_a_former_ptr_record_stays_as_its_instance_does() {
    let before = in_sync(1);
    let settings = Settings { allow_removals: true, ..by_node_port() };
    let mut simulation = relisted(before.restarted(settings), [with_node_port(1)], None);
    simulation.bridge.handle_watch_failure(Kind::Node, Some("no right".to_owned()), simulation.now);
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (1, 1));
    simulation.list(Kind::Node, [node_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 192.0.2.1 None"]);
    assert_eq!(simulation.kv.len(), 0, "a node has none");
}

#[test]
fn without_the_nodes_a_ptr_record_of_no_service_stays_as_an_instance_there_does() {
    let mut before = in_sync(3);
    let late = before.kv.remove("0.0.0.10.IN-ADDR.ARPA/10.0.0.1").unwrap();
    let mut simulation = before.restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, [annotated(1), service_seen(2), service_seen(3)]);
    simulation.list(Kind::EndpointSlice, slices(3));
    simulation.bridge.handle_watch_failure(Kind::Node, Some("no right".to_owned()), simulation.now);
    simulation.settle();
    written_late(&mut simulation, late);
    assert_eq!(simulation.take_sent(), 0);
    simulation.list(Kind::Node, [node_seen(1, true)]);
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (3, 2), "a node has none");
}

#[test]
fn l15_without_the_nodes_only_what_they_decide_waits() {
    let mut before = in_sync(4);
    // A PTR record that nobody claims any more, of a Service that went while nobody looked.
    before.registrations.retain(|id, _| !id.contains("_s4_"));
    let settings = Settings { allow_removals: true, ..settings() };
    let mut simulation = before.restarted(settings);
    simulation.resync();
    simulation.list(Kind::Service, [with_node_port(1), service_seen(2), service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    let denied = Some("no right".to_owned());
    simulation.bridge.handle_watch_failure(Kind::Node, denied, simulation.now);
    simulation.settle();
    assert_eq!(
        (simulation.registrations.len(), simulation.kv.len()),
        (3, 3),
        "{:?}",
        simulation.kv
    );
}
