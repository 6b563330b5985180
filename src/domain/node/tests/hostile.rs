//! Pods that ask for as much as an API server lets them.

use std::sync::Arc;

use super::agent::Agent;
use super::*;
use crate::domain::node::annotations::{MAX_BYTES, MAX_NAMES};
use crate::domain::node::sidecar::Sidecar;
use crate::domain::node::wanted::{Wanted, wanted};
use crate::domain::sidecar::SyncKind;

fn of(annotations: &[(&str, &str)]) -> Wanted {
    wanted(&key("web-0"), &pod(annotations), Sidecar::Silent, &defaults())
}

/// As many as fit.
fn filled(text: &str) -> String {
    text.repeat(MAX_BYTES / text.len())
}

#[test]
fn whatever_an_annotation_says_it_makes_one_problem_and_is_kept_once() {
    let names: Vec<_> = (0..MAX_NAMES + 9).map(|n| format!("web-{n}")).collect();
    let names = names.join(",");
    for (word, text) in [
        ("service-tags", ","),
        ("service-tags", "<,"),
        ("service-meta", "a b:1,"),
        ("service-meta", "x,"),
        ("service-meta", ":::,"),
        ("container-exclude", "nope,"),
        ("service-names", "a\tb,"),
        ("service-port", "x"),
        ("service-health", "x"),
        ("sync-interval", "1h"),
        ("service-check-ttl", "9"),
    ] {
        let text = filled(text);
        let both = [("service-names", names.as_str()), (word, text.as_str())];
        let found = of(&both[usize::from(word == "service-names")..]);
        let expected = if word == "service-names" { 1 } else { 2 };
        assert!((1..=expected).contains(&found.problems.len()), "{word}: {:?}", found.problems);
        let all: usize = found.problems.iter().map(|problem| problem.message.len()).sum();
        assert!(all < 2000, "{word}: {all} bytes of problems");
        assert!(found.registrations.len() <= MAX_NAMES);
        for (registration, _) in &found.registrations {
            let (first, _) = &found.registrations[0];
            assert!(registration.tags.len() <= 256 && registration.meta.len() <= 64, "{word}");
            assert!(Arc::ptr_eq(&registration.tags, &first.tags), "{word}: tags of each name");
            assert!(Arc::ptr_eq(&registration.meta, &first.meta), "{word}: meta of each name");
        }
    }
}

#[test]
fn no_pod_has_an_id_of_another_pod() {
    // Names of services may hold what separates; names of pods and namespaces may not.
    let id = |name: &str, namespace: &str, pod: &str| {
        let key = ObjectKey::new(namespace, pod);
        let pod = super::pod(&[("service-names", name)]);
        let found = wanted(&key, &pod, Sidecar::Silent, &defaults());
        found.registrations[0].0.id.to_string()
    };
    let victim = id("web", "shop", "web-0");
    for name in ["web_shop_web-0", "web_shop", "web", "_shop_web-0", "katalog-sync_web_shop_web-0"]
    {
        for (namespace, pod) in [("evil", "web-0"), ("shop", "evil"), ("evil", "evil")] {
            assert_ne!(id(name, namespace, pod), victim, "{name} {namespace} {pod}");
        }
    }
}

#[test]
fn durations_are_whole_milliseconds_and_no_longer_than_consul_takes() {
    for (text, millis) in [
        ("20000000001ns", 20_000),
        ("20.0005s", 20_000),
        ("2562047h47m", 365 * 24 * 3_600_000),
        ("-2562047h", 11_000),
        ("1ns", 11_000),
    ] {
        let found = of(&[("service-names", "web"), ("service-check-ttl", text)]);
        assert_eq!(found.registrations[0].0.ttl.unwrap().as_millis(), millis, "{text}");
    }
}

/// Whoever calls again and again in one pod's name has the oldest of its calls refused, and takes no
/// place from the sidecar of another pod.
#[test]
fn calls_in_one_pods_name_are_bounded() {
    let with_sidecar = || {
        let mut pod = pod(&[("service-names", "web"), ("sidecar", "sync")]);
        pod.containers.push(container("sync", Some(false)));
        pod
    };
    let mut agent = Agent::new();
    agent.list(&[("web-0", with_sidecar()), ("web-1", with_sidecar())]);
    agent.log.clear();
    agent.core.handle_request(1, SyncKind::Register, &key("web-1"), agent.now);
    for number in 10..16 {
        agent.core.handle_request(number, SyncKind::Register, &key("web-0"), agent.now);
    }
    agent.settle();
    let answers: Vec<_> = agent.log.iter().filter(|it| it.contains("Exhausted")).collect();
    assert_eq!(answers.len(), 2, "{:?}", agent.log);
    assert!(answers[0].starts_with("10 ") && answers[1].starts_with("11 "), "{answers:?}");
    for number in [1, 12, 15] {
        assert!(agent.log.contains(&format!("{number} ok")), "{number} in {:?}", agent.log);
    }
}
