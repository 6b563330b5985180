//! The cases of issues in the field, by the IDs that tests carry: each has a row in the table of
//! Services and options, or a test of its own where a row cannot show it, and one on the real servers.

use std::fs;
use std::path::Path;

use super::table::ROWS;

/// ID, the test here (`row`: of the table, in every order of arrival; `-`: nothing is decided here),
/// the test on the real servers.
const CASES: &str = "
O1  | row | o1_an_endpoint_is_an_address_and_a_port
O2  | row | o2_a_protocol_is_a_tag
O3  | row | o3_any_number_is_registered_as_it_is
O4  | row | o4_a_headless_service_needs_no_port
O5  | row | o5_ready_endpoints_that_serve_no_port_are_told
O6  | row | o6_names_that_resolve_are_known
O7  | row | an_annotation_chooses_the_addresses
O8  | row | each_policy_decides_the_same_in_whatever_order_services_come
O9  | row | o9_a_host_name_is_a_tag
O10 | row | o10_nodes_are_registered_at_the_address_that_is_asked_for
O11 | row | o11_what_kube_proxy_does_decides_health
O12 | o12_a_renamed_port_leaves_no_gap_whatever_comes_first | o12_a_renamed_port_leaves_no_gap
O13 | row | o13_what_is_not_registered_is_told
O14 | row | o14_meta_of_consuls_own_is_left_out
O15 | o15_new_pods_of_a_service_renamed_to_a_name_of_others_have_its_former_name | o15_pods_of_a_service_renamed_to_a_name_of_others_have_its_former_name
N1  | row | n1_two_clusters_do_not_share_a_name_unasked
N2  | n2_a_key_that_its_holder_gives_up_is_written_at_once | n2_a_shared_ptr_record_is_handed_over_at_once
N3  | n3_a_name_that_was_never_held_is_looked_up_before_its_first_write | n3_a_new_name_is_looked_up_before_its_first_write
N4  | row | beside_machines_a_tenant_gets_what_is_not_theirs
N5  | row | beside_machines_a_tenant_gets_what_is_not_theirs
N6  | n6_a_record_that_others_keep_changing_is_told_and_fixed_every_minute | n6_a_fight_delays_nothing_else_and_ends_by_itself
N7  | n7_what_was_lost_with_the_marker_counts_for_nobody | n7_an_agent_that_loses_its_data_six_times_is_filled_each_time
N8  | n8_only_our_own_check_is_taken_away | n8_maintenance_mode_outlives_our_writes
N9  | row | n9_a_cluster_ip_keeps_its_ptr_record
N10 | row | beside_machines_a_tenant_gets_what_is_not_theirs
N11 | what_others_have_on_a_node_keeps_it_beside_what_is_ours | n11_n12_what_is_on_a_node_that_lost_its_mark_is_followed
N12 | n12_a_stray_is_reported_and_concerns_no_service | n11_n12_what_is_on_a_node_that_lost_its_mark_is_followed
N13 | row | beside_machines_a_tenant_gets_what_is_not_theirs
N14 | - | what_consul_k8s_left_goes_from_one_node
";

/// Every Rust source below a folder, as one text.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text.push_str(&sources(&path));
        } else if path.extension().is_some_and(|it| it == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    text
}

#[test]
fn each_case_has_a_test_here_and_one_on_the_real_servers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (here, servers) = (sources(&root.join("src")), sources(&root.join("tests/it")));
    let rows = CASES.lines().filter(|line| !line.is_empty());
    let mut ids = Vec::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [id, test, server] = cells[..] else { panic!("not a row: {row}") };
        let has = |sources: &str, test: &str| sources.contains(&format!("fn {test}("));
        let is_here = match test {
            "row" => ROWS.lines().any(|row| row.split(' ').next() == Some(id)),
            "-" => true,
            test => has(&here, test),
        };
        assert!(is_here, "{id}: {test}");
        assert!(has(&servers, server), "{id}: {server}");
        ids.push(id);
    }
    let numbered = |letter: char, count: u8| (1..=count).map(move |n| format!("{letter}{n}"));
    assert!(numbered('O', 15).chain(numbered('N', 14)).eq(ids));
}
