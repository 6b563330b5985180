use std::collections::{BTreeMap, BTreeSet};

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

/// Each metric that has a sample, with its labels, as a query names it; histograms by their
/// name alone.
fn served(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut types = BTreeMap::new();
    let mut metrics: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        if let Some(line) = line.strip_prefix("# TYPE ") {
            let (name, kind) = line.split_once(' ').unwrap();
            types.insert(name.to_owned(), kind.to_owned());
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).unwrap();
            let is_histogram =
                |name: &&str| types.get(*name).is_some_and(|kind| kind == "histogram");
            let endings = ["_bucket", "_sum", "_count"];
            let name = endings.iter().filter_map(|it| line[..end].strip_suffix(it));
            let name = name.clone().find(is_histogram).unwrap_or(&line[..end]);
            let labels =
                line.split_once('{').map_or("", |(_, rest)| rest.split('}').next().unwrap());
            let labels = labels.split(',').filter_map(|label| Some(label.split_once('=')?.0));
            let labels = labels.filter(|label| *label != "le").map(str::to_owned);
            metrics.entry(name.to_owned()).or_default().extend(labels);
        }
    }
    metrics
}

/// The words in backticks.
fn words(text: &str) -> BTreeSet<String> {
    text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The metrics that the page explains, with their labels.
fn documented(page: &str) -> BTreeMap<String, BTreeSet<String>> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let rows = rows.filter(|row| row.starts_with(PREFIX) || row.starts_with("process_"));
    let row = |row: &str| {
        let mut cells = row.split('|');
        let names = words(&format!("`{}", cells.next().unwrap()));
        let labels = words(cells.next().unwrap());
        names.into_iter().map(move |name| (name, labels.clone())).collect::<Vec<_>>()
    };
    rows.flat_map(row).collect()
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
        metrics.requests.asked(operation, Duration::from_millis(2), false);
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
    metrics.heard("Node");
    assert!(metrics.render().unwrap().contains(node));
    metrics.unwatched("Node");
    assert!(!metrics.render().unwrap().contains(node));
}
