use super::*;
use crate::domain::kube::pod::{Action, ContainerPort, Port, Probe};

const IP: &str = "10.0.0.1";

fn container(name: &str, ports: &[(&str, u16)]) -> Container {
    let ports = ports.iter().map(|(name, port)| ContainerPort {
        name: (!name.is_empty()).then(|| (*name).to_owned()),
        port: *port,
    });
    Container { name: name.to_owned(), ports: ports.collect(), ..Container::default() }
}

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// `ns/pod` with the label `consul: web` and these containers.
fn pod(containers: Vec<Container>) -> Pod {
    Pod {
        namespace: "ns".to_owned(),
        name: "pod".to_owned(),
        labels: texts(&[("consul", "web")]),
        containers,
        ..Pod::default()
    }
}

fn one_port() -> Pod {
    pod(vec![container("app", &[("http", 80)])])
}

fn variables(definitions: &str, port_service: &str) -> Variables {
    let set = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Variables {
        port_definitions: set(definitions),
        port_service: set(port_service),
        default_check: DefaultCheck::None,
    }
}

fn decide_with(pod: &Pod, node: &[(&str, &str)], variables: &Variables) -> Decision {
    decide(pod, IP.parse().unwrap(), &texts(node), variables).unwrap()
}

fn decided(pod: &Pod) -> Decision {
    decide_with(pod, &[], &Variables::default())
}

/// Each registration as `name@id:port`.
fn shown(decision: &Decision) -> Vec<String> {
    decision
        .registrations
        .iter()
        .map(|it| {
            assert_eq!(it.address, IP);
            format!("{}@{}:{}", it.name, it.id, it.port)
        })
        .collect()
}

#[test]
fn the_container_is_the_one_that_is_named_or_the_first_with_ports() {
    let none = || container("none", &[]);
    let app = || container("app", &[("http", 80), ("admin", 81)]);
    let side = || container("side", &[("", 90)]);
    for (containers, named, expected) in [
        (vec![app()], None, "web@10.0.0.1_80:80"),
        (vec![app(), side()], None, "web@10.0.0.1_80:80"),
        (vec![none(), side(), app()], None, "web@10.0.0.1_90:90"),
        (vec![app(), side()], Some("side"), "web@10.0.0.1_90:90"),
        (vec![none(), side(), app()], Some("app"), "web@10.0.0.1_80:80"),
        (vec![none(), app()], Some("proxy"), "web@10.0.0.1_70:70"),
    ] {
        let mut pod = pod(containers);
        pod.sidecars = vec![container("proxy", &[("", 70)])];
        pod.labels.extend(named.map(|name| ("consulContainer".to_owned(), name.to_owned())));
        assert_eq!(shown(&decided(&pod)), [expected], "{pod:?}");
    }
}

/// What else is wrong does not matter to it: nobody asked for its registration.
#[test]
fn h3_a_pod_without_the_label_or_with_an_empty_one_is_not_registered() {
    for labels in [vec![("app", "web")], vec![("consul", "")], vec![("consul", "  ")]] {
        for definitions in ["", "[{", "null", r#"[{"port": 0}]"#] {
            let mut pod = one_port();
            pod.containers[0].readiness = Some(probe(http(Port::Name("nope".to_owned()), "/")));
            pod.labels = texts(&labels);
            let variables = variables(definitions, "");
            assert_eq!(decide_with(&pod, &[], &variables), Decision::default());
            assert_eq!(registered(&pod, IP.parse().unwrap(), &variables), Ok(vec![]));
        }
    }
}

#[test]
fn h4_definitions_that_are_null_are_none() {
    for definitions in ["null", "'null'"] {
        let decision = decide_with(&one_port(), &[], &variables(definitions, ""));
        assert_eq!(shown(&decision), ["web@10.0.0.1_80:80"], "{definitions}");
    }
    let wrong = variables("[{", "");
    let error = decide(&one_port(), IP.parse().unwrap(), &BTreeMap::new(), &wrong).unwrap_err();
    assert!(error.to_string().starts_with("PORT_DEFINITIONS"), "{error}");
}

/// How a pod leaves does not depend on its probes.
#[test]
fn what_is_wrong_with_a_probe_keeps_nothing_from_being_deregistered() {
    let mut pod = one_port();
    pod.containers[0].readiness = Some(probe(http(Port::Name("nope".to_owned()), "/")));
    let found = registered(&pod, IP.parse().unwrap(), &Variables::default()).unwrap();
    assert_eq!(found[0].id, "10.0.0.1_80");
}

#[test]
fn what_cannot_be_registered_says_why() {
    for (labels, containers, expected) in [
        (vec![("consul", "web")], vec![], "pod ns/pod: expected a container with a port"),
        (vec![("consul", "web")], vec![container("app", &[])], "expected a container with a port"),
        (
            vec![("consul", "web"), ("consulContainer", "side")],
            vec![container("app", &[("", 80)]), container("side", &[])],
            "expected a container with a port",
        ),
        (
            vec![("consul", "web"), ("consulContainer", "nope")],
            vec![container("app", &[("", 80)]), container("side", &[])],
            "label consulContainer of pod ns/pod: expected one of its containers (app, side), \
             found \"nope\"",
        ),
    ] {
        let mut pod = pod(containers);
        pod.labels = texts(&labels);
        let result = decide(&pod, IP.parse().unwrap(), &BTreeMap::new(), &Variables::default());
        let error = result.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn tags_are_in_the_order_that_users_know() {
    const NAMES: [&str; 2] = ["k8sPodName: pod", "k8sPodNamespace: ns"];
    let old_zone = ("failure-domain.beta.kubernetes.io/zone", "old-z");
    let old_region = ("failure-domain.beta.kubernetes.io/region", "old-r");
    let zone = ("topology.kubernetes.io/zone", "z");
    let region = ("topology.kubernetes.io/region", "r");
    for (node, annotations, port_service, expected) in [
        (vec![], vec![], "", vec!["instance:pod_80"]),
        (vec![old_zone], vec![], "", vec!["zone:old-z", "instance:pod_80"]),
        (vec![region], vec![], "", vec!["region:r", "instance:pod_80"]),
        (
            vec![old_region, old_zone],
            vec![],
            "",
            vec!["zone:old-z", "region:old-r", "instance:pod_80"],
        ),
        // Old and new: the old one, once, as in the original.
        (
            vec![old_region, old_zone, region, zone, ("other", "x")],
            vec![],
            "",
            vec!["zone:old-z", "region:old-r", "instance:pod_80"],
        ),
        (vec![old_zone, region], vec![], "", vec!["zone:old-z", "region:r", "instance:pod_80"]),
        (
            vec![],
            vec![
                ("CONSUL_TAG_1", "b: 2"),
                ("CONSUL_TAG_0", "a"),
                ("CONSUL_TAG_2", ""),
                ("CONSUL_TAG_", "a"),
                ("OTHER", "x"),
            ],
            "",
            vec!["a", "a", "b: 2", "instance:pod_80"],
        ),
        (vec![], vec![], "31000", vec!["service-port:31000", "instance:pod_80"]),
        (
            vec![zone],
            vec![("CONSUL_TAG_0", "a")],
            "31000",
            vec!["zone:z", "a", "service-port:31000", "instance:pod_80"],
        ),
    ] {
        let mut pod = one_port();
        pod.annotations = texts(&annotations);
        let decision = decide_with(&pod, &node, &variables("", port_service));
        assert_eq!(decision.registrations[0].tags, [&NAMES[..], &expected].concat());
    }
}

#[test]
fn h10_each_failure_domain_label_is_a_tag() {
    for (labels, expected) in [
        (
            vec![
                ("failure-domain.beta.kubernetes.io/rack", "r1"),
                ("failure-domain.beta.kubernetes.io/zone", "z"),
                ("failure-domain.beta.kubernetes.io/aisle", ""),
            ],
            vec!["zone:z", "aisle:", "rack:r1"],
        ),
        (
            vec![
                ("example.com.failure-domain.beta.kubernetes.io/zone", "y"),
                ("failure-domain.beta.kubernetes.io/zone", "z"),
                ("topology.kubernetes.io/zone", "w"),
            ],
            vec!["zone:y", "zone:z"],
        ),
        // There the hook died of this one.
        (vec![("failure-domain.beta.kubernetes.io", "x")], vec![]),
    ] {
        assert_eq!(failure_domain_tags(&texts(&labels)), expected);
    }
}

#[test]
fn defined_ports_have_ids_names_and_tags_of_their_own() {
    const NAMES: [&str; 2] = ["k8sPodName: pod", "k8sPodNamespace: ns"];
    for (definitions, port_service, expected) in [
        (r#"[{"port": 1}]"#, "", vec![("web@10.0.0.1_1:1", vec!["lbaas:x", "instance:pod_1"])]),
        (
            r#"[{"port": 1, "labels": {"b": "tag", "a": "tag"}}]"#,
            "7",
            vec![(
                "web@10.0.0.1_1:1",
                vec!["lbaas:x", "b", "a", "instance:pod_1", "service-port:7"],
            )],
        ),
        (
            r#"[{"port": 1, "labels": {"service-port:9": "tag"}}]"#,
            "7",
            vec![("web@10.0.0.1_1:1", vec!["lbaas:x", "service-port:9", "instance:pod_1"])],
        ),
        (
            r#"[{"port": 1, "labels": {"consul": "web-secured", "lbaas:own": "tag"}}]"#,
            "",
            vec![("web-secured@10.0.0.1_1-secured:1", vec!["lbaas:own", "instance:pod_1"])],
        ),
        (
            r#"'[{"port": 1, "labels": {"service": "true"}}, {"port": 2, "labels": {"consul": "web-secured-x"}}]'"#,
            "",
            vec![
                ("web@10.0.0.1_1:1", vec!["lbaas:x", "instance:pod_1"]),
                ("web-secured-x@10.0.0.1_2-secured:2", vec!["instance:pod_2"]),
            ],
        ),
        ("[]", "7", vec![]),
    ] {
        let mut pod = one_port();
        pod.annotations = texts(&[("CONSUL_TAG_0", "lbaas:x")]);
        let decision = decide_with(&pod, &[], &variables(definitions, port_service));
        let (ids, tags): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
        assert_eq!(shown(&decision), ids, "{definitions}");
        for (registration, tags) in decision.registrations.iter().zip(tags) {
            assert_eq!(registration.tags, [&NAMES[..], &tags].concat(), "{definitions}");
        }
        let warned = decision.warnings.iter().any(|it| it.starts_with("PORT_DEFINITIONS"));
        assert_eq!(warned, definitions == "[]", "{:?}", decision.warnings);
    }
}

#[test]
fn defined_ports_need_no_container_port() {
    let pod = pod(vec![]);
    let decision = decide_with(&pod, &[], &variables(r#"[{"port": 5}]"#, ""));
    assert_eq!(shown(&decision), ["web@10.0.0.1_5:5"]);
}

#[test]
fn secured_twins_are_stale_unless_they_are_registered() {
    for (definitions, stale) in [
        ("", vec!["10.0.0.1_80-secured"]),
        (r#"[{"port": 1}]"#, vec!["10.0.0.1_1-secured"]),
        (r#"[{"port": 1, "labels": {"consul": "a-secured"}}]"#, vec![]),
        (
            r#"[{"port": 1}, {"port": 2, "labels": {"consul": "a-secured"}}]"#,
            vec!["10.0.0.1_1-secured"],
        ),
        (r#"[{"port": 1}, {"port": 1, "labels": {"consul": "a-secured"}}]"#, vec![]),
    ] {
        let decision = decide_with(&one_port(), &[], &variables(definitions, ""));
        assert_eq!(decision.stale, stale, "{definitions}");
    }
}

#[test]
fn a_port_defined_twice_is_registered_once_and_told() {
    let definitions = r#"[{"port": 1}, {"port": 1, "labels": {"consul": "b"}}]"#;
    let decision = decide_with(&one_port(), &[], &variables(definitions, ""));
    assert_eq!(shown(&decision), ["b@10.0.0.1_1:1"]);
    assert!(decision.warnings[0].contains("found \"web\" and \"b\""), "{:?}", decision.warnings);
}

fn probe(action: Action) -> Probe {
    let [initial_delay, period, timeout] = [1, 10, 3].map(Duration::from_secs);
    Probe { action, initial_delay, period, timeout }
}

fn http(port: Port, path: &str) -> Action {
    Action::Http { https: false, host: None, port, path: path.to_owned(), headers: Vec::new() }
}

fn tcp(port: u16) -> Action {
    Action::Tcp { host: None, port: Port::Number(port) }
}

fn to_url(url: &str) -> Target {
    Target::Http { url: url.to_owned(), headers: Vec::new() }
}

/// The readiness probe as Consul's check and as what is tried before.
#[test]
fn each_kind_of_probe_becomes_a_check_and_is_tried() {
    let name = |name: &str| Port::Name(name.to_owned());
    let host = || Some("localhost".to_owned());
    let header = || vec![("Host".to_owned(), "a.example".to_owned())];
    let grpc =
        |service: Option<&str>| Action::Grpc { port: 9, service: service.map(str::to_owned) };
    let to_grpc = |service: Option<&str>| Target::Grpc {
        address: "10.0.0.1:9".to_owned(),
        service: service.map(str::to_owned),
    };
    for (action, check, tried) in [
        (http(Port::Number(8080), "/ping"), to_url("http://10.0.0.1:8080/ping"), None),
        (http(name("http"), "/ping?a=b"), to_url("http://10.0.0.1:80/ping?a=b"), None),
        (http(name("admin"), ""), to_url("http://10.0.0.1:81/"), None),
        (
            Action::Http {
                https: true,
                host: host(),
                port: name("http"),
                path: "/".to_owned(),
                headers: header(),
            },
            Target::Http { url: "https://10.0.0.1:80/".to_owned(), headers: header() },
            Some(Target::Http { url: "https://localhost:80/".to_owned(), headers: header() }),
        ),
        (tcp(90), Target::Tcp("10.0.0.1:90".to_owned()), None),
        (
            Action::Tcp { host: host(), port: name("admin") },
            Target::Tcp("10.0.0.1:81".to_owned()),
            Some(Target::Tcp("localhost:81".to_owned())),
        ),
        (grpc(None), to_grpc(None), None),
        (grpc(Some("")), to_grpc(None), None),
        (grpc(Some("x.Y")), to_grpc(Some("x.Y")), None),
    ] {
        let mut pod = pod(vec![container("app", &[("http", 80), ("admin", 81)])]);
        pod.containers[0].readiness = Some(probe(action));
        let decision = decided(&pod);
        let [interval, timeout] = [10, 3].map(Duration::from_secs);
        let target = check.clone();
        let expected = HookCheck { target, interval, timeout, begins_passing: false };
        assert_eq!(decision.registrations[0].check, Some(expected));
        let target = Some(tried.unwrap_or(check));
        let attempt = Attempt { target, initial_delay: Duration::from_secs(1), period: interval };
        assert_eq!(decision.probe, Some(attempt));
        assert_eq!(decision.warnings, Vec::<String>::new());
    }
}

/// Of an exec probe only the initial delay is waited for, as there.
#[test]
fn h1_probes_that_only_a_container_can_ask_are_told_and_their_delay_is_kept() {
    for (action, expected) in [(Action::Exec, "found a command"), (Action::Unknown, "another")] {
        for startup in [false, true] {
            let mut pod = one_port();
            let app = &mut pod.containers[0];
            app.startup = startup.then(|| probe(action.clone()));
            app.readiness = Some(probe(action.clone()));
            let decision = decided(&pod);
            assert_eq!(decision.registrations[0].check, None);
            let [initial_delay, period] = [1, 10].map(Duration::from_secs);
            assert_eq!(decision.probe, Some(Attempt { target: None, initial_delay, period }));
            let [check, none] = &decision.warnings[..] else { panic!("{:?}", decision.warnings) };
            assert!(
                check.starts_with("readiness probe of container \"app\"")
                    && check.contains(expected)
            );
            assert!(none.contains("until it is deregistered"), "{none}");
        }
    }
}

#[test]
fn h6_a_port_that_the_container_does_not_name_is_an_error_where_it_would_never_be_ready() {
    let nope = || Some(probe(http(Port::Name("nope".to_owned()), "/")));
    let good = || Some(probe(tcp(80)));
    for (probes, wrong) in [
        ([nope(), None, None], Some("startup")),
        ([nope(), good(), None], Some("startup")),
        ([None, nope(), None], Some("readiness")),
        ([good(), nope(), None], Some("readiness")),
        // The kubelet does not fail anything for it.
        ([None, None, nope()], None),
        ([None, good(), nope()], None),
    ] {
        // Another container that has a port of this name does not matter, to the kubelet neither.
        let mut pod = pod(vec![container("app", &[("http", 80)]), container("b", &[("nope", 1)])]);
        let [startup, readiness, liveness] = probes.clone();
        let app = &mut pod.containers[0];
        (app.startup, app.readiness, app.liveness) = (startup, readiness, liveness);
        let result = decide(&pod, IP.parse().unwrap(), &BTreeMap::new(), &Variables::default());
        let found = result.map_err(|error| error.to_string());
        match (wrong, found) {
            (Some(kind), Err(error)) => assert_eq!(
                error,
                format!(
                    "pod ns/pod: {kind} probe of container \"app\": expected the name of a port of \
                     the container, found \"nope\"; correct it"
                )
            ),
            (None, Ok(decision)) => {
                let liveness_alone = probes[1].is_none();
                assert_eq!(decision.registrations[0].check.is_none(), liveness_alone);
                assert_eq!(decision.warnings.len(), if liveness_alone { 2 } else { 0 });
            }
            (_, found) => panic!("{probes:?}: {found:?}"),
        }
    }
}

#[test]
fn h15_an_instance_without_a_check_is_told_and_may_have_one_of_its_port() {
    let definitions =
        r#"[{"port": 1, "labels": {"service": "true"}}, {"port": 2, "labels": {"consul": "b"}}]"#;
    for (readiness, default_check, checks) in [
        (None, DefaultCheck::None, [None, None]),
        (None, DefaultCheck::Tcp, [Some("10.0.0.1:1"), Some("10.0.0.1:2")]),
        (Some(probe(Action::Exec)), DefaultCheck::Tcp, [Some("10.0.0.1:1"), Some("10.0.0.1:2")]),
        (Some(probe(tcp(9))), DefaultCheck::Tcp, [Some("10.0.0.1:9"), Some("10.0.0.1:9")]),
    ] {
        let mut pod = one_port();
        pod.containers[0].readiness = readiness;
        let variables = Variables { default_check, ..variables(definitions, "") };
        let decision = decide_with(&pod, &[], &variables);
        let expected = checks.map(|to| to.map(|to| Target::Tcp(to.to_owned())));
        let found = |index: usize| decision.registrations[index].check.clone().map(|it| it.target);
        assert_eq!([found(0), found(1)], expected);
        let told = decision.warnings.iter().any(|it| it.contains("--default-check tcp"));
        assert_eq!(told, checks[0].is_none(), "{:?}", decision.warnings);
    }
}

#[test]
fn h15_an_instance_is_of_another_pod_only_if_it_says_so() {
    let identity = one_port().identity_tags();
    for (tags, expected) in [
        (vec![], false),
        (vec!["team: shop"], false),
        (vec!["k8sPodName: other"], false),
        (vec!["k8sPodName: pod", "k8sPodNamespace: ns"], false),
        (vec!["k8sPodName: pod-2", "k8sPodNamespace: ns"], true),
        (vec!["k8sPodName: pod", "k8sPodNamespace: ns-2"], true),
        // The first is the hook's own, the rest may be annotations.
        (vec!["k8sPodName: pod", "k8sPodNamespace: ns", "k8sPodName: other"], false),
        (vec!["k8sPodName: other", "k8sPodNamespace: ns", "k8sPodName: pod"], true),
    ] {
        assert_eq!(is_of_another_pod(&tags, &identity), expected, "{tags:?}");
    }
}

/// Only what was just asked with success begins as passing.
#[test]
fn h14_the_checks_own_targets_are_tried_each_once() {
    let to = |port: u16| Target::Tcp(format!("10.0.0.1:{port}"));
    let definitions =
        r#"[{"port": 1, "labels": {"service": "true"}}, {"port": 2, "labels": {"consul": "b"}}]"#;
    let mut pod = one_port();
    pod.containers[0].liveness = Some(probe(tcp(9)));
    let mut decision = decide_with(&pod, &[], &variables(definitions, ""));
    let period = Duration::from_secs(10);
    assert_eq!(decision.targets_to_try(None), [(to(9), period)]);
    assert_eq!(decision.targets_to_try(Some(&to(9))), []);
    let passing = |decision: &Decision| {
        let checks = decision.registrations.iter().filter_map(|it| it.check.as_ref());
        checks.filter(|check| check.begins_passing).count()
    };
    decision.mark_passing(&to(8));
    assert_eq!(passing(&decision), 0);
    decision.mark_passing(&to(9));
    assert_eq!(passing(&decision), 2);
    // That a port of gRPC is open proves nothing.
    pod.containers[0].liveness = Some(probe(Action::Grpc { port: 9, service: None }));
    let mut decision = decided(&pod);
    let [(target, _)] = &decision.targets_to_try(None)[..] else { panic!() };
    decision.mark_passing(target);
    assert_eq!(passing(&decision), 0);
}

#[test]
fn the_check_is_of_readiness_and_what_is_tried_of_startup() {
    let [startup, readiness, liveness] = [1, 2, 3].map(|port| Some(probe(tcp(port))));
    for (probes, check, tried) in [
        ([&startup, &readiness, &liveness], Some(2), Some(1)),
        ([&startup, &None, &liveness], Some(3), Some(1)),
        ([&startup, &None, &None], None, Some(1)),
        ([&None, &readiness, &liveness], Some(2), Some(2)),
        ([&None, &None, &liveness], Some(3), None),
        ([&None, &None, &None], None, None),
    ] {
        let mut pod = one_port();
        let [startup, readiness, liveness] = probes.map(Clone::clone);
        let app = &mut pod.containers[0];
        (app.startup, app.readiness, app.liveness) = (startup, readiness, liveness);
        let decision = decided(&pod);
        let to = |port: u16| Target::Tcp(format!("10.0.0.1:{port}"));
        let made = decision.registrations[0].check.as_ref();
        assert_eq!(made.map(|made| made.target.clone()), check.map(to));
        assert_eq!(decision.probe.and_then(|probe| probe.target), tried.map(to));
    }
}

#[test]
fn the_check_is_of_the_registered_container_or_with_definitions_of_the_first() {
    let mut pod = pod(vec![container("app", &[("", 80)]), container("side", &[("", 90)])]);
    pod.labels.insert("consulContainer".to_owned(), "side".to_owned());
    for (index, port) in [(0, 1), (1, 2)] {
        pod.containers[index].readiness = Some(probe(tcp(port)));
    }
    for (definitions, expected) in [("", "10.0.0.1:2"), (r#"[{"port": 5}]"#, "10.0.0.1:1")] {
        let decision = decide_with(&pod, &[], &variables(definitions, ""));
        let check = decision.registrations[0].check.as_ref().unwrap();
        assert_eq!(check.target, Target::Tcp(expected.to_owned()));
        let target = Target::Tcp("10.0.0.1:1".to_owned());
        assert_eq!(decision.probe.unwrap().target, Some(target));
    }
}

#[test]
fn an_ipv6_pod_has_brackets_in_urls_only() {
    let mut pod = one_port();
    pod.containers[0].readiness = Some(probe(http(Port::Number(8080), "/")));
    let ip = "fd00::1".parse().unwrap();
    let decision = decide(&pod, ip, &BTreeMap::new(), &Variables::default()).unwrap();
    let registration = &decision.registrations[0];
    assert_eq!(
        (registration.id.as_str(), registration.address.as_str()),
        ("fd00::1_80", "fd00::1")
    );
    assert_eq!(registration.check.as_ref().unwrap().target, to_url("http://[fd00::1]:8080/"));
}
