//! Sequences that have failed, each shrunk and named.

use super::ops::{
    ALL, Crowd, Drift, Endpoints, Fate, Foreign, Mode, Name, Op, Pace, Scenario, Second, Shape,
    Target, WatchedKind,
};
use super::run;

const SHAPE: Shape = Shape {
    address: 0,
    mode: Mode::ClusterIp,
    name: Name::Own,
    second: Second::None,
    tag: 0,
    joins: false,
};

const SCENARIO: Scenario = Scenario {
    target: Target::Agent,
    crowd: false,
    pods_have_ptr: false,
    reads_often: false,
    trusts: false,
};

/// In several orders of hash maps: what failed once did so in one of them.
fn assert_all_run(scenario: Scenario, ops: Vec<Op>) {
    let sequence = (scenario, ops);
    for order in 0..8 {
        assert_eq!(run(&sequence, order, false), Ok(()), "order {order}");
    }
}

fn assert_runs(target: Target, ops: &[Op]) {
    let scenario = Scenario { target, ..SCENARIO };
    assert_all_run(scenario, ops.to_vec());
}

#[test]
fn a_service_that_decodes_again_as_it_was_has_no_problem_any_more() {
    assert_runs(
        Target::Agent,
        &[Op::Service(0, SHAPE), Op::Undecodable(WatchedKind::Services, 0), Op::Pass(6)],
    );
}

#[test]
fn a_name_that_changes_hands_is_kept_until_it_is_known_who_else_has_it() {
    let sharing = Shape { address: 2, name: Name::OfAnother, ..SHAPE };
    let two_ports = Shape { address: 2, second: Second::Tcp, ..SHAPE };
    let ops = [
        Op::Service(0, sharing),
        Op::Pass(7),
        Op::Service(1, two_ports),
        Op::LeaseEnds(188),
        Op::WatchEnds(0, WatchedKind::Services, 1),
    ];
    assert_runs(Target::Elected, &ops);
}

#[test]
fn what_others_have_on_a_node_keeps_it_beside_what_is_ours() {
    let service = Op::Service(3, SHAPE);
    let ops = [Op::Foreign(Foreign::OnNode, 65), Op::Pass(84_009), service, Op::DeleteService(3)];
    assert_runs(Target::Catalog, &ops);
}

#[test]
fn a_registration_applied_late_is_followed_by_the_newer_one() {
    let ready = Op::Slice(0, 0, Endpoints { present: 1, ready: 1, moved: false });
    let late = Op::Next(Fate::AppliedLate(20_000), Pace(1, 1));
    assert_runs(Target::Agent, &[late, Op::Service(0, SHAPE), Op::Pass(5), ready, Op::Pass(500)]);
}

#[test]
fn what_the_first_reading_shows_is_sent_again_with_the_token_that_changed_meanwhile() {
    let slowly = Op::Readings { each: 360, fails_at: None };
    let ops =
        [Op::Service(0, SHAPE), slowly, Op::Pass(1084), Op::Restart(0, 1), Op::Pass(1), Op::Token];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn while_nodes_are_unknown_nobody_ends_the_ptr_record_of_what_stays() {
    let shape = |address, mode| Shape { address, mode, ..SHAPE };
    let ops = [
        Op::Service(1, shape(2, Mode::ClusterIp)),
        Op::Pass(10),
        Op::Service(3, shape(2, Mode::ClusterIp)),
        Op::DeleteService(3),
        Op::Service(1, shape(0, Mode::NodePort)),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn a_name_is_taken_by_another_before_its_holder_moves_to_a_further_one() {
    let shared = Op::Service(2, Shape { name: Name::Shared, ..SHAPE });
    let moves = Shape { mode: Mode::Headless, name: Name::OfAnother, ..SHAPE };
    let ops = [
        Op::Service(0, SHAPE),
        shared,
        Op::Pass(6),
        Op::Service(3, Shape { name: Name::Shared, ..SHAPE }),
        Op::Service(2, moves),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn the_hold_on_records_of_no_service_ends_when_none_is_left() {
    let scenario = Scenario { crowd: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(10),
        Op::Service(0, SHAPE),
        Op::Crowd(255, Crowd::Off),
        Op::Restart(0, 1),
        Op::Pass(2),
        Op::Drift(Drift::AllLost, 0),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn what_cannot_be_read_and_is_missing_from_a_list_is_held_as_it_was() {
    let scenario = Scenario { crowd: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(5),
        Op::Service(0, SHAPE),
        Op::Service(2, Shape { tag: 3, ..SHAPE }),
        Op::Pass(2),
        Op::Undecodable(WatchedKind::Services, 2),
        Op::Lists(0, WatchedKind::Services, 1, 255),
        Op::Pass(60_000),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn a_ptr_record_is_not_removed_while_the_next_claimant_waits_for_its_turn() {
    let at = |n, address| Op::Service(n, Shape { address, ..SHAPE });
    let headless = Op::Service(2, Shape { mode: Mode::Headless, ..SHAPE });
    assert_runs(Target::Catalog, &[at(2, 1), Op::Pass(10), at(0, 0), at(3, 1), headless]);
}

#[test]
fn a_name_of_others_that_one_service_leaves_is_not_joined_by_the_next() {
    let of_machines = Shape { name: Name::OfMachines, ..SHAPE };
    let ops = [
        Op::Foreign(Foreign::Machines, 1),
        Op::Service(2, SHAPE),
        Op::Foreign(Foreign::OnNode, 20),
        Op::Service(3, of_machines.clone()),
        Op::Foreign(Foreign::Machines, 1),
        Op::Drift(Drift::Deregistered, 0),
        Op::Pass(9),
        Op::Foreign(Foreign::Machines, 41),
        Op::SessionEnds,
        Op::Service(2, Shape { tag: 1, ..of_machines }),
    ];
    assert_runs(Target::Elected, &ops);
}

#[test]
fn a_node_that_others_keep_does_not_hide_that_a_hold_waits_for_people() {
    let scenario = Scenario { target: Target::Catalog, crowd: true, reads_often: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(5),
        Op::Crowd(255, Crowd::Off),
        Op::Restart(0, 1),
        Op::Foreign(Foreign::OnNode, 0),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn the_failure_of_a_ptr_record_that_another_service_writes_by_now_is_nobodys_backlog() {
    let shape = |address, name| Shape { address, name, ..SHAPE };
    let ops = [
        Op::Service(3, SHAPE),
        Op::Service(0, shape(3, Name::OfMachines)),
        Op::Service(4, shape(3, Name::Own)),
        Op::Pass(7),
        Op::Next(Fate::Lost, Pace(1, 1)),
        Op::Service(3, shape(0, Name::OfMachines)),
        Op::Service(0, shape(3, Name::Own)),
        Op::Service(3, shape(1, Name::Own)),
    ];
    assert_runs(Target::Catalog, &ops);
}

#[test]
fn the_hold_on_records_of_no_service_ends_when_services_claim_them_again() {
    let scenario =
        Scenario { target: Target::Elected, crowd: true, pods_have_ptr: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(10),
        Op::Crowd(255, Crowd::Ready),
        Op::SessionEnds,
        Op::Lists(19, WatchedKind::Services, 1, 0),
        Op::Crowd(255, Crowd::Off),
        Op::Pass(5),
        Op::Crowd(255, Crowd::Ready),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn two_lists_that_each_lack_a_part_do_not_take_most_together() {
    let scenario = Scenario { crowd: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(10),
        Op::Lists(0, WatchedKind::Services, 1, 24),
        Op::Lists(0, WatchedKind::Slices, 1, 7),
        Op::Pass(3),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn a_ptr_record_stays_with_an_instance_that_a_slice_nobody_can_read_keeps() {
    let empty = Op::Slice(4, 0, Endpoints { present: 0, ready: 0, moved: false });
    let ops = [
        empty,
        Op::Service(4, SHAPE),
        Op::Restart(0, 1),
        Op::Lists(0, WatchedKind::Services, 1, 255),
        Op::Undecodable(WatchedKind::Slices, 4),
        Op::Pass(7),
        Op::SessionEnds,
        Op::Service(4, Shape { mode: Mode::Headless, ..SHAPE }),
        Op::Restart(20, 1),
        Op::Pass(10_007),
    ];
    assert_runs(Target::Elected, &ops);
}

#[test]
fn a_ptr_record_of_a_service_that_is_read_at_last_stays() {
    let at = |address| Shape { address, ..SHAPE };
    let ops = [
        Op::Service(3, at(0)),
        Op::Service(4, at(1)),
        Op::Undecodable(WatchedKind::Services, 3),
        Op::Pass(10),
        Op::Undecodable(WatchedKind::Services, 4),
        Op::Restart(0, 1),
        Op::Pass(10),
        Op::Service(0, at(2)),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn after_a_restart_a_name_is_taken_by_the_older_service_before_the_younger_one_leaves_it() {
    let shared = |n| Op::Service(n, Shape { name: Name::Shared, ..SHAPE });
    let ops = [
        Op::Service(4, SHAPE),
        shared(4),
        Op::Lists(0, WatchedKind::Services, 1, 255),
        Op::Pass(1),
        shared(0),
        Op::Pass(4),
        Op::Restart(0, 1),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn the_ptr_record_of_what_changed_while_no_bridge_ran_goes_with_its_instance() {
    let moved = Shape { address: 0, name: Name::Shared, ..SHAPE };
    let ops = [
        Op::Service(2, Shape { address: 2, ..SHAPE }),
        Op::Service(0, SHAPE),
        Op::Pass(10),
        Op::Restart(0, 1),
        Op::Service(2, moved),
    ];
    assert_runs(Target::Catalog, &ops);
}

#[test]
fn an_instance_whose_name_is_known_to_be_free_comes_with_its_ptr_record() {
    let two_ports = Shape { second: Second::Tcp, ..SHAPE };
    assert_runs(Target::Catalog, &[Op::Pass(8), Op::Service(1, two_ports)]);
}

#[test]
fn an_instance_that_waited_for_nodes_goes_with_its_ptr_record() {
    let ops = [
        Op::NodesDenied(true),
        Op::Service(0, Shape { address: 1, second: Second::Tcp, ..SHAPE }),
        Op::Service(4, SHAPE),
        Op::Pass(5),
        Op::Service(4, Shape { mode: Mode::NodePort, ..SHAPE }),
        Op::Restart(0, 1),
        Op::Pass(72_970),
    ];
    assert_runs(Target::Catalog, &ops);
}

#[test]
fn instances_go_with_their_ptr_records_while_other_services_wait_for_their_turn() {
    let at = |n, address| Op::Service(n, Shape { address, ..SHAPE });
    let ops = [
        at(0, 0),
        at(1, 1),
        at(2, 2),
        Op::Pass(10),
        Op::WatchStalls(0, WatchedKind::Services, 10),
        Op::Lists(0, WatchedKind::Services, 1, 255),
        Op::Pass(20),
    ];
    assert_runs(Target::Catalog, &ops);
}

#[test]
fn a_write_that_was_applied_late_in_a_fight_does_not_put_the_fix_off() {
    let scenario = Scenario { target: Target::Elected, reads_often: true, ..SCENARIO };
    let ops = vec![
        Op::Foreign(Foreign::Machines, 0),
        Op::Fight(Drift::Deregistered, 156, 13_023, 22),
        Op::Pass(2066),
        Op::Next(Fate::Denied, Pace(64, 342)),
        Op::Pass(2916),
        Op::Outage(Fate::AppliedLate(11_908), 11_217),
        Op::Service(2, Shape { second: Second::Tcp, ..SHAPE }),
        Op::Pass(237_377),
        Op::Next(Fate::Applied, Pace(1, 1)),
        Op::Next(Fate::AppliedLate(1000), Pace(1, 1)),
        Op::Pass(31_124),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn a1_a_name_stays_with_its_service_while_the_one_that_comes_first_has_nothing() {
    let by_annotation = Shape { name: Name::OfAnother, ..SHAPE };
    let empty = Shape { mode: Mode::Headless, address: 1, ..SHAPE };
    let refused = Shape { tag: 3, address: 1, ..SHAPE };
    for first in [empty, refused] {
        for target in [Target::Agent, Target::Catalog] {
            let ops = [
                Op::Service(0, by_annotation.clone()),
                Op::Pass(60_000),
                Op::Service(1, first.clone()),
                Op::Service(2, by_annotation.clone()),
                Op::Pass(60_000),
                Op::Service(1, Shape { address: 1, ..SHAPE }),
                Op::Pass(10),
                Op::Service(1, first.clone()),
            ];
            assert_runs(target, &ops);
        }
    }
}

#[test]
fn a_ptr_record_that_is_being_removed_is_waited_for_by_whoever_wants_the_same() {
    let own = || Op::Service(0, SHAPE);
    let other =
        |n, mode| Op::Service(n, Shape { address: 3, mode, name: Name::OfMachines, ..SHAPE });
    let ops = [
        own(),
        own(),
        own(),
        own(),
        other(3, Mode::ClusterIp),
        own(),
        Op::Service(3, Shape { mode: Mode::Off, ..SHAPE }),
        other(0, Mode::ClusterIp),
        Op::Pass(5),
        Op::Pass(3),
    ];
    assert_runs(Target::Catalog, &ops);
}

#[test]
fn an_instance_stays_until_the_first_listing_of_names_tells_whether_its_replacement_may_come() {
    let moved = Shape { address: 1, name: Name::Shared, ..SHAPE };
    let ops = [Op::Service(2, SHAPE), Op::Pass(6), Op::Service(2, moved), Op::Restart(0, 1)];
    for target in [Target::Agent, Target::Catalog] {
        assert_runs(target, &ops);
    }
}

#[test]
fn a_ptr_record_goes_with_the_last_instance_at_its_address() {
    let scenario = Scenario { target: Target::Catalog, pods_have_ptr: true, ..SCENARIO };
    let headless = Shape { address: 1, mode: Mode::Headless, second: Second::Udp, ..SHAPE };
    let ops = vec![
        Op::Slice(1, 0, Endpoints { present: 7, ready: 5, moved: false }),
        Op::Slice(1, 1, Endpoints { present: 2, ready: 0, moved: false }),
        Op::Service(1, headless.clone()),
        Op::Pass(7),
        Op::Slice(1, 0, Endpoints { present: 4, ready: 4, moved: false }),
        Op::Service(1, Shape { mode: Mode::NodePort, second: Second::None, ..headless }),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn what_is_deselected_at_a_restart_is_held_although_its_slices_cannot_be_read() {
    let scenario = Scenario { crowd: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(3000),
        Op::Restart(0, 1),
        Op::Crowd(255, Crowd::Off),
        Op::Undecodable(WatchedKind::Slices, ALL),
        Op::Pass(3),
    ];
    assert_all_run(scenario, ops);
}

/// One that is asked for as the former name of a rename that is under way.
#[test]
fn a_name_that_is_left_while_it_is_looked_up_is_not_waited_for_for_ever() {
    let shared = Shape { address: 3, name: Name::Shared, ..SHAPE };
    let ops = [
        Op::Service(0, shared.clone()),
        Op::Pass(5),
        Op::Service(0, Shape { name: Name::Own, ..shared.clone() }),
        Op::Next(Fate::Lost, Pace(1, 1)),
        Op::Pass(94),
        Op::Service(0, Shape { address: 1, ..shared }),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn an_empty_list_says_nothing_of_a_service_that_cannot_be_read() {
    let of_machines = Shape { tag: 1, name: Name::OfMachines, ..SHAPE };
    let own = Shape { tag: 1, ..SHAPE };
    let ops = [
        Op::Service(3, of_machines.clone()),
        Op::Pass(10),
        Op::Service(1, own.clone()),
        Op::Undecodable(WatchedKind::Services, 1),
        Op::Service(3, Shape { name: Name::OfAnother, ..of_machines }),
        Op::Service(4, own),
        Op::Lists(0, WatchedKind::Services, 1, 255),
        Op::Pass(10_003),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn a_service_that_is_deleted_goes_though_a_slice_of_it_cannot_be_read() {
    let nothing = Endpoints { present: 0, ready: 0, moved: false };
    let ops = [
        Op::Pass(5),
        Op::Slice(1, 0, nothing.clone()),
        Op::Service(2, Shape { address: 1, ..SHAPE }),
        Op::Slice(2, 0, nothing),
        Op::DeleteService(2),
        Op::Lists(0, WatchedKind::Slices, 1, 240),
        Op::Undecodable(WatchedKind::Slices, 2),
        Op::Pass(10),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn an_address_that_is_gone_goes_though_the_new_name_cannot_be_looked_up() {
    let joins = Shape { address: 1, joins: true, ..SHAPE };
    let ops = [
        Op::Service(1, joins.clone()),
        Op::Pass(10),
        Op::Readings { each: 1, fails_at: Some(3) },
        Op::Service(1, Shape { address: 0, name: Name::Shared, ..joins }),
        Op::Pass(10),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn what_neither_the_last_list_nor_consul_shows_has_no_claim() {
    let scenario = Scenario { target: Target::Elected, crowd: true, ..SCENARIO };
    let of_another = Shape { name: Name::OfAnother, ..SHAPE };
    let ops = vec![
        Op::Service(0, of_another.clone()),
        Op::Pass(10),
        Op::Lists(103, WatchedKind::Services, 1, 255),
        Op::Service(2, of_another),
        Op::Pass(10),
        Op::Drift(Drift::AllLost, 0),
        Op::Pass(187),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn a_name_of_one_that_was_not_listed_while_nobody_led_is_not_taken() {
    let of_another = || Shape { name: Name::OfAnother, ..SHAPE };
    let ops = [
        Op::Service(0, of_another()),
        Op::Pass(10),
        Op::SessionEnds,
        Op::Lists(103, WatchedKind::Services, 1, 255),
        Op::Service(2, of_another()),
        Op::Pass(10),
    ];
    assert_runs(Target::Elected, &ops);
}

#[test]
fn slices_that_could_not_be_read_and_that_a_list_lacks_take_nothing_with_them() {
    let scenario = Scenario { crowd: true, ..SCENARIO };
    let ops = vec![
        Op::Next(Fate::Failed, Pace(1, 1)),
        Op::Pass(7),
        Op::Restart(0, 1),
        Op::Undecodable(WatchedKind::Slices, 255),
        Op::Pass(6),
        Op::Lists(0, WatchedKind::Slices, 1, 255),
        Op::Pass(1),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn a_name_is_taken_before_a_service_that_has_waited_for_longer_leaves_it() {
    let of_another = |mode| Shape { mode, name: Name::OfAnother, ..SHAPE };
    let scenario = Scenario { crowd: true, trusts: true, ..SCENARIO };
    let ops = vec![
        Op::Service(2, of_another(Mode::NodePort)),
        Op::Pass(1),
        Op::WatchStalls(0, WatchedKind::Slices, 6),
        Op::Node(0, false),
        Op::Service(3, of_another(Mode::NodePort)),
        Op::Pass(11),
        Op::Token,
        Op::Service(3, of_another(Mode::ClusterIp)),
        Op::WatchStalls(0, WatchedKind::Slices, 1),
        Op::DeleteService(3),
        Op::Pass(6),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn a_name_that_one_wants_as_another_is_deleted_is_taken_first() {
    let shared = |n| Op::Service(n, Shape { name: Name::Shared, joins: true, ..SHAPE });
    let ops = [
        shared(1),
        Op::Pass(10),
        Op::WatchStalls(0, WatchedKind::Services, 1),
        Op::DeleteService(1),
        shared(4),
        Op::Pass(6),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn who_has_left_a_name_learns_that_another_comes_first_for_it() {
    let scenario = Scenario { pods_have_ptr: true, trusts: true, ..SCENARIO };
    let shared =
        |address, mode| Shape { address, mode, name: Name::Shared, second: Second::Tcp, ..SHAPE };
    let ops = vec![
        Op::Pass(10),
        Op::Service(2, shared(1, Mode::ClusterIp)),
        Op::Outage(Fate::Lost, 3),
        Op::Fight(Drift::Deregistered, 0, 1000, 2),
        Op::Pass(2),
        Op::Service(3, shared(1, Mode::ClusterIp)),
        Op::Service(2, shared(0, Mode::NodePort)),
        Op::Pass(2005),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn the_ptr_records_of_a_service_that_is_shown_again_stay_while_others_are_removed() {
    let scenario = Scenario { crowd: true, pods_have_ptr: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(10),
        Op::Next(Fate::Failed, Pace(100, 2)),
        Op::Service(0, SHAPE),
        Op::Pass(107),
        Op::Service(0, SHAPE),
        Op::Readings { each: 2455, fails_at: Some(0) },
        Op::Next(Fate::Failed, Pace(100, 2)),
        Op::Service(4, SHAPE),
        Op::Pass(107),
        Op::Restart(0, 1),
        Op::Undecodable(WatchedKind::Services, 4),
        Op::Pass(6),
        Op::WatchEnds(0, WatchedKind::Services, 1),
        Op::Drift(Drift::AllLost, 0),
        Op::Pass(6),
        Op::Service(0, SHAPE),
        Op::Lists(0, WatchedKind::Services, 1, 76),
        Op::Pass(656),
        Op::Readings { each: 1, fails_at: Some(2) },
        Op::Pass(1790),
    ];
    assert_all_run(scenario, ops);
}

#[test]
fn the_ptr_record_of_what_is_held_stays_although_another_service_wants_the_same() {
    let of_machines = |n| Op::Service(n, Shape { address: 2, name: Name::OfMachines, ..SHAPE });
    let ops = [
        of_machines(3),
        Op::Pass(7),
        of_machines(0),
        Op::Pass(7),
        Op::Restart(0, 1),
        Op::DeleteService(3),
        Op::Pass(6),
    ];
    assert_runs(Target::Agent, &ops);
}

#[test]
fn what_an_empty_list_lacked_while_nobody_led_is_not_removed_though_most_is_back() {
    let scenario = Scenario { target: Target::Elected, crowd: true, ..SCENARIO };
    let ops = vec![
        Op::Pass(10),
        Op::SessionEnds,
        Op::Crowd(240, Crowd::Few),
        Op::Pass(5),
        Op::Lists(128, WatchedKind::Services, 1, 255),
        Op::Pass(10),
        Op::SessionEnds,
        Op::Crowd(255, Crowd::Ready),
        Op::Pass(10),
    ];
    assert_all_run(scenario, ops);
}
