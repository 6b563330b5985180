use std::time::Duration;

use super::testing::{documented, served};
use super::*;
use crate::domain::problem::Reason;

const OPERATIONS: [&str; 13] =
    ["kv_read", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m"];

/// As the bridge makes them.
fn metrics(is_elected: bool) -> Metrics {
    let words =
        Words { reasons: &Reason::ALL.map(Reason::as_str), operations: &OPERATIONS, is_elected };
    Metrics::new(&words)
}

#[test]
fn the_documented_table_is_what_is_served_from_the_start() {
    let page = include_str!("../../../docs/metrics.md");
    let served = served(&metrics(true).render().unwrap());
    assert!(served.len() > 25, "{served:?}");
    assert_eq!(documented(page), served);
}

#[test]
fn every_problem_is_explained() {
    let page = include_str!("../../../docs/problems.md");
    for reason in Reason::ALL {
        assert!(page.contains(&format!("\n| `{reason}` |")), "{reason}");
    }
    let source = include_str!("../../domain/problem.rs");
    assert_eq!(source.matches("=> \"").count(), Reason::ALL.len(), "ALL lacks one");
}

#[test]
fn a_bridge_without_an_election_has_no_leader() {
    assert!(!metrics(false).render().unwrap().contains("leader"));
    assert!(metrics(true).render().unwrap().contains("\nkube_consul_leader 0\n"));
}

#[test]
fn labels_take_a_bounded_number_of_values() {
    let metrics = metrics(true);
    let before = metrics.render().unwrap().lines().count();
    for (record, result) in [("registration", "applied"), ("ptr", "foreign")] {
        metrics.wrote(record, result);
    }
    for operation in OPERATIONS {
        metrics.daemon.requests.asked(operation, Duration::from_millis(2), false);
    }
    let text = metrics.render().unwrap();
    assert_eq!(text.lines().count(), before, "every series was there");
    assert!(before < 600, "{before}");
    let count = "kube_consul_consul_request_duration_seconds_count{operation=\"kv_read\"} 1\n";
    assert!(text.contains(count), "{text}");
}

#[test]
fn what_is_watched_no_longer_has_no_age() {
    let metrics = metrics(false);
    let node = "kube_consul_watch_last_heard_timestamp_seconds{kind=\"Node\"}";
    metrics.daemon.heard(Kind::Node);
    assert!(metrics.render().unwrap().contains(node));
    metrics.daemon.unwatched(Kind::Node);
    assert!(!metrics.render().unwrap().contains(node));
}
