//! Pods and what becomes of them.

use super::*;
use crate::domain::node::sidecar::Sidecar;
use crate::domain::node::wanted::{Wanted, wanted};

/// `name:port status [tags] {meta}` of each registration but our own meta, then problems by `!reason`.
fn shown(pod: &Pod, sidecar: Sidecar) -> String {
    let Wanted { registrations, problems, .. } = wanted(&key("web-0"), pod, sidecar, &defaults());
    let mut parts: Vec<String> = Vec::new();
    for (registration, state) in registrations {
        assert_eq!(*registration.id, *format!("katalog-sync_{}_shop_web-0", registration.name));
        assert_eq!(registration.meta["external-sync-source"], "katalog-sync");
        assert_eq!(registration.meta["external-k8s-link"], "shop/web-0");
        let own = registration.meta.iter().filter(|(key, _)| !key.starts_with("external-"));
        let own: Vec<_> = own.map(|(key, value)| format!("{key}={value}")).collect();
        let mut part =
            format!("{}:{} {}", registration.name, registration.port, state.status.as_str());
        if !registration.tags.is_empty() {
            part.extend([" ".to_owned(), format!("{:?}", registration.tags)]);
        }
        if !own.is_empty() {
            part.extend([" {", &own.join(","), "}"]);
        }
        parts.push(part);
    }
    parts.extend(problems.iter().map(|problem| format!("!{}", problem.reason)));
    parts.join("; ")
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn pods_become_registrations() {
    for (annotations, expected) in [
        (&[] as &[(&str, &str)], ""),
        (&[("service-names", "")], ""),
        (&[("service-names", "web")], "web:8080 passing"),
        // Names: trimmed, once each; case and anything printable count.
        (&[("service-names", "web,web")], "web:8080 passing"),
        (&[("service-names", "web,WEB")], "web:8080 passing; WEB:8080 passing"),
        (&[("service-names", "web, api")], "web:8080 passing; api:8080 passing"),
        (&[("service-names", "web,\n")], "web:8080 passing"),
        (&[("service-names", ",web,")], "web:8080 passing"),
        (&[("service-names", "a/b?c%d ü")], "a/b?c%d ü:8080 passing"),
        (&[("service-names", "a\tb,web")], "web:8080 passing; !InvalidAnnotation"),
        // Ports: Go's Atoi; what is none falls back.
        (&[("service-names", "web"), ("service-port", "+81")], "web:81 passing"),
        (&[("service-names", "web"), ("service-port", "0080")], "web:80 passing"),
        (&[("service-names", "web"), ("service-port", "0")], "web:0 passing"),
        (
            &[("service-names", "web"), ("service-port", " 9090")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web"), ("service-port", "0x50")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (&[("service-names", "web"), ("service-port", "")], "web:8080 passing; !InvalidAnnotation"),
        (
            &[("service-names", "web"), ("service-port", "-1")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web"), ("service-port", "70000")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web"), ("service-port", "http")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (&[("+service-names", "web"), ("+service-port", "http")], "web:8080 passing"),
        (&[("service-names", "web"), ("+service-port", "http")], "web:8080 passing"),
        (
            &[("service-names", "web"), ("+service-port", "nope")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web,api"), ("service-port", "81"), ("service-port-api", "82")],
            "web:81 passing; api:82 passing",
        ),
        (
            &[("service-names", "web"), ("service-port", "81"), ("service-port-web", "x")],
            "web:81 passing; !InvalidAnnotation",
        ),
        (&[("service-names", "web"), ("service-port-other", "x")], "web:8080 passing"),
        // Tags: exact. Under ours as everywhere under ours.
        (
            &[("service-names", "web"), ("service-tags", "a, b,")],
            "web:8080 passing [\"a\", \" b\", \"\"]",
        ),
        (
            &[("service-names", "web"), ("service-tags", "b,a,a")],
            "web:8080 passing [\"b\", \"a\", \"a\"]",
        ),
        (
            &[("service-names", "web"), ("service-tags", "a"), ("service-tags-web", "")],
            "web:8080 passing [\"\"]",
        ),
        (
            &[("service-names", "web"), ("+service-tags", "a, b\\,c,")],
            "web:8080 passing [\"a\", \"b,c\"]",
        ),
        // Meta: trimmed; overrides replace; nothing of ours can be overridden.
        (&[("service-names", "web"), ("service-meta", "k: v,l:,k:w")], "web:8080 passing {k=w,l=}"),
        (
            &[("service-names", "web"), ("service-meta", "a:b:c,nope,k:v")],
            "web:8080 passing {k=v}; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web"), ("service-meta", "k:v"), ("service-meta-web", "")],
            "web:8080 passing",
        ),
        (
            &[("service-names", "web"), ("service-meta", "k:v"), ("service-meta-web", "l:w")],
            "web:8080 passing {l=w}",
        ),
        (
            &[("service-names", "web"), ("service-meta", "a b:1,a.b:1,consul-x:1,:1,k:v")],
            "web:8080 passing {k=v}; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web"), ("service-meta", "external-k8s-link:a/b")],
            "web:8080 passing",
        ),
        // Health: by non-emptiness.
        (&[("service-names", "web"), ("service-health", "critical")], "web:8080 critical"),
        (&[("service-names", "web"), ("service-health", "warning")], "web:8080 warning"),
        (
            &[("service-names", "web"), ("service-health", "Passing")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web"), ("service-health", "critical"), ("service-health-web", "")],
            "web:8080 critical",
        ),
        (
            &[
                ("service-names", "web"),
                ("service-health", "critical"),
                ("service-health-web", "x"),
            ],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (&[("service-names", "web"), ("serivce-health-web", "critical")], "web:8080 passing"),
        // Sidecars that are none, containers that are left out.
        (&[("service-names", "web"), ("sidecar", "nope")], "!InvalidAnnotation"),
        (&[("service-names", "web"), ("sidecar", "")], "!InvalidAnnotation"),
        (&[("service-names", "web"), ("container-exclude", "app")], "web:8080 passing"),
        (
            &[("service-names", "web"), ("container-exclude", "zzz")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        (
            &[("service-names", "web"), ("sync-interval", "5")],
            "web:8080 passing; !InvalidAnnotation",
        ),
        // Ours wins where both say something.
        (&[("service-names", "web"), ("+service-names", "api")], "api:8080 passing"),
    ] {
        assert_eq!(shown(&pod(annotations), Sidecar::Silent), expected, "{annotations:?}");
    }
}

#[test]
fn ttls_are_as_long_as_the_interval_asks_for() {
    for (annotations, seconds) in [
        (&[] as &[(&str, &str)], 11),
        (&[("sync-interval", "0")], 10),
        (&[("sync-interval", "-5s")], 10),
        (&[("service-check-ttl", "0")], 11),
        (&[("service-check-ttl", "1m30s")], 90),
        (&[("sync-interval", "1h")], 3610),
        (&[("sync-interval", "1s1s"), ("service-check-ttl", "+2s")], 12),
        (&[("sync-interval", "5"), ("service-check-ttl", "x")], 11),
    ] {
        let mut all = vec![("service-names", "web")];
        all.extend(annotations);
        let found = wanted(&key("web-0"), &pod(&all), Sidecar::Silent, &defaults());
        let ttl = found.registrations[0].0.ttl.unwrap();
        assert_eq!(ttl.as_secs(), seconds, "{annotations:?}");
    }
}

#[test]
fn p2_each_container_of_the_spec_needs_a_ready_status() {
    for (containers, expected) in [
        (vec![container("a", Some(true)), container("b", Some(true))], "web:8080 passing"),
        (vec![container("a", Some(true)), container("b", Some(false))], "web:8080 critical"),
        (vec![container("a", Some(true)), container("b", None)], "web:8080 critical"),
        (vec![container("a", None), container("b", None)], "web:8080 critical"),
    ] {
        let pod = Pod { containers, ..pod(&[("service-names", "web")]) };
        assert_eq!(shown(&pod, Sidecar::Silent), expected);
    }
}

#[test]
fn p3_a_native_sidecar_counts_unless_it_is_excluded() {
    let envoy = |ready| {
        let container = container("envoy", Some(ready));
        super::Container { is_native_sidecar: true, ports: vec![("x".into(), 1)], ..container }
    };
    for (annotations, ready, expected) in [
        (&[("service-names", "web")] as &[(&str, &str)], false, "web:8080 critical"),
        (&[("service-names", "web")], true, "web:8080 passing"),
        (&[("service-names", "web"), ("container-exclude", "envoy")], false, "web:8080 passing"),
    ] {
        let mut pod = pod(annotations);
        // Its port is not the default, wherever it stands.
        pod.containers.insert(0, envoy(ready));
        assert_eq!(shown(&pod, Sidecar::Silent), expected, "{annotations:?} {ready}");
    }
}

#[test]
fn a_sidecar_holds_the_pod_until_it_registers_but_no_fixed_health() {
    let with = |health: &[(&'static str, &'static str)]| {
        let mut all = vec![("service-names", "web"), ("sidecar", "sync")];
        all.extend(health);
        let mut pod = pod(&all);
        pod.containers.push(container("sync", Some(false)));
        pod
    };
    let deregistered = Sidecar::Deregistered { restarts: 0 };
    assert_eq!(shown(&with(&[]), Sidecar::Silent), "web:8080 critical");
    assert_eq!(shown(&with(&[]), Sidecar::Registered), "web:8080 passing");
    assert_eq!(shown(&with(&[]), deregistered), "web:8080 critical");
    let passing = with(&[("service-health", "passing")]);
    assert_eq!(shown(&passing, Sidecar::Silent), "web:8080 passing");
    let mut alone = with(&[]);
    alone.containers.remove(0);
    assert_eq!(shown(&alone, Sidecar::Registered), "web:8080 passing");
    let going = Pod { is_terminating: true, ..pod(&[("service-names", "web")]) };
    assert_eq!(shown(&going, Sidecar::Silent), "web:8080 critical");
    let going = Pod { is_terminating: true, ..passing };
    assert_eq!(shown(&going, Sidecar::Silent), "web:8080 passing");
}

#[test]
fn p6_p8_only_what_runs_and_has_an_address_is_registered() {
    let web = || pod(&[("service-names", "web")]);
    assert_eq!(shown(&Pod { phase: Phase::Ended, ..web() }, Sidecar::Silent), "");
    assert_eq!(shown(&Pod { phase: Phase::Pending, ..web() }, Sidecar::Silent), "");
    assert_eq!(shown(&Pod { ip: None, ..web() }, Sidecar::Silent), "!Incomplete");
    let without_ports = Pod {
        containers: vec![super::Container { ports: vec![], ..container("app", Some(true)) }],
        ..web()
    };
    assert_eq!(shown(&without_ports, Sidecar::Silent), "web:0 passing; !Incomplete");
    let v6 = Pod { ip: Some("fd00::1".into()), ..web() };
    let found = wanted(&key("web-0"), &v6, Sidecar::Silent, &defaults());
    assert_eq!(&*found.registrations[0].0.address, "fd00::1");
}

#[test]
fn the_output_is_the_map_that_go_prints() {
    let output = |pod: &Pod, sidecar| {
        let found = wanted(&key("web-0"), pod, sidecar, &defaults());
        found.registrations[0].1.output.to_string()
    };
    let mut web = pod(&[("service-names", "web")]);
    web.containers.push(container("aux", Some(false)));
    assert_eq!(output(&web, Sidecar::Silent), "{\n  \"app\": true,\n  \"aux\": false\n}");
    web.is_terminating = true;
    assert_eq!(output(&web, Sidecar::Silent), "null");
    let excluded = pod(&[("service-names", "web"), ("container-exclude", "app")]);
    assert_eq!(output(&excluded, Sidecar::Silent), "{}");
    let held = pod(&[("service-names", "web"), ("sidecar", "app")]);
    assert_eq!(output(&held, Sidecar::Silent), "null");
}
