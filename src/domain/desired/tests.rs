use super::instances::MAX_META_PAIRS;
use super::*;
use crate::domain::record::Check;
use crate::domain::settings::{HealthMode, ReverseScope};
use crate::domain::testing::{ip, port, service, slice};

const NO_NODES: Option<std::iter::Empty<(&str, &Node)>> = None;

fn settings() -> Settings {
    Settings::new("kubernetes".parse().unwrap())
}

fn key() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

fn build(settings: &Settings, service: &Service, slices: &[EndpointSlice]) -> Desired {
    desired(settings, &key(), service, slices.iter(), NO_NODES, &|_, _| Permit::Granted)
}

/// One line an instance: `name address:port [tags] check`.
fn lines(desired: &Desired) -> Vec<String> {
    desired
        .registrations
        .values()
        .map(|r| {
            format!("{} {}:{} [{}] {:?}", r.service, r.address, r.port, r.tags.join(","), r.check)
        })
        .collect()
}

fn ready_slice() -> EndpointSlice {
    slice("web", &[("http", 8080), ("metrics", 9090)], &[("10.1.0.1", true), ("10.1.0.2", false)])
}

#[test]
fn an_ordinary_service_with_all_its_fields() {
    let desired = build(&settings(), &service().build(), &[ready_slice()]);
    let registration = &desired.registrations["kubernetes_shop_web_http_10.0.0.1"];
    let meta = [
        ("external-k8s-ns", "shop"),
        ("external-k8s-service", "web"),
        ("external-source", "kubernetes"),
        ("kube-consul-cluster", "kubernetes"),
        ("port-http", "80"),
    ];
    assert_eq!(
        *registration,
        Registration {
            id: "kubernetes_shop_web_http_10.0.0.1".into(),
            service: "web".into(),
            namespace: "shop".into(),
            address: "10.0.0.1".into(),
            port: 80,
            tags: vec!["shop".to_owned(), "http".to_owned()],
            meta: meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            weight: 1,
            check: Check::None,
        }
    );
    assert_eq!(desired.reverse, [("0.0.0.10.IN-ADDR.ARPA/10.0.0.1".into(), "web".into())].into());
    assert_eq!(desired.problems, []);
}

type Change = fn(&mut Service);
type Choice = fn(&mut Settings);

/// What is told of a row, how it differs from the ordinary Service and options, its slices, and
/// its instances.
type Row = (&'static str, Change, Choice, Vec<EndpointSlice>, Vec<&'static str>);

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn services_and_options_give_these_instances() {
    let two_ports: Change = |s| s.ports = vec![port("http", 80), port("metrics", 9100)];
    let rows: Vec<Row> = vec![
        ("ready", |_| {}, |_| {}, vec![ready_slice()], vec!["web 10.0.0.1:80 [shop,http] None"]),
        ("no slices", |_| {}, |_| {}, vec![], vec!["web 10.0.0.1:80 [shop,http] Critical"]),
        (
            "all unready",
            |_| {},
            |_| {},
            vec![slice("web", &[("http", 8080)], &[("10.1.0.1", false)])],
            vec!["web 10.0.0.1:80 [shop,http] Critical"],
        ),
        (
            "not ready addresses published",
            |s| s.publish_not_ready = true,
            |_| {},
            vec![slice("web", &[("http", 8080)], &[("10.1.0.1", false)])],
            vec!["web 10.0.0.1:80 [shop,http] None"],
        ),
        (
            "a slice of another port does not make it ready",
            |_| {},
            |_| {},
            vec![slice("web", &[("other", 8080)], &[("10.1.0.1", true)])],
            vec!["web 10.0.0.1:80 [shop,http] Critical"],
        ),
        (
            "further ports have their own names and readiness",
            two_ports,
            |_| {},
            vec![slice("web", &[("metrics", 9090)], &[("10.1.0.1", true)])],
            vec![
                "web 10.0.0.1:80 [shop,http] Critical",
                "web-metrics 10.0.0.1:9100 [shop,metrics] None",
            ],
        ),
        (
            "the primary port by annotation",
            |s| {
                s.ports = vec![port("http", 80), port("metrics", 9100)];
                s.annotations = [("kube-consul.io/service-port".into(), "metrics".into())].into();
            },
            |_| {},
            vec![ready_slice()],
            vec!["web-http 10.0.0.1:80 [shop,http] None", "web 10.0.0.1:9100 [shop,metrics] None"],
        ),
        (
            "the primary port by number",
            |s| {
                s.ports = vec![port("http", 80), port("metrics", 9100)];
                s.annotations =
                    [("consul.hashicorp.com/service-port".into(), "9100".into())].into();
            },
            |_| {},
            vec![ready_slice()],
            vec!["web-http 10.0.0.1:80 [shop,http] None", "web 10.0.0.1:9100 [shop,metrics] None"],
        ),
        (
            "an unnamed port",
            |s| s.ports = vec![port("", 80)],
            |_| {},
            vec![slice("web", &[("", 8080)], &[("10.1.0.1", true)])],
            vec!["web 10.0.0.1:80 [shop] None"],
        ),
        (
            "headless: its endpoints",
            |s| s.cluster_ips.clear(),
            |_| {},
            vec![ready_slice()],
            vec!["web 10.1.0.1:8080 [shop,http] None", "web 10.1.0.2:8080 [shop,http] Critical"],
        ),
        (
            "endpoints asked for by option",
            |_| {},
            |o| o.address = AddressMode::Endpoints,
            vec![ready_slice()],
            vec!["web 10.1.0.1:8080 [shop,http] None", "web 10.1.0.2:8080 [shop,http] Critical"],
        ),
        (
            "the annotation wins over the option",
            |s| s.annotations = [("kube-consul.io/address".into(), "endpoints".into())].into(),
            |o| o.address = AddressMode::ClusterIp,
            vec![slice("web", &[("http", 8080)], &[("10.1.0.1", true)])],
            vec!["web 10.1.0.1:8080 [shop,http] None"],
        ),
        (
            "an endpoint in two slices is one instance, ready wins",
            |s| s.cluster_ips.clear(),
            |_| {},
            vec![
                slice("web", &[("http", 8080)], &[("10.1.0.1", false)]),
                slice("web", &[("http", 8080)], &[("10.1.0.1", true)]),
            ],
            vec!["web 10.1.0.1:8080 [shop,http] None"],
        ),
        (
            "IPv6 endpoints",
            |s| s.cluster_ips.clear(),
            |_| {},
            vec![slice("web", &[("http", 8080)], &[("fd00::1", true)])],
            vec!["web fd00::1:8080 [shop,http] None"],
        ),
        (
            "dual stack: an instance for each family",
            |s| s.cluster_ips.push(ip("fd00::7")),
            |_| {},
            vec![ready_slice()],
            vec!["web 10.0.0.1:80 [shop,http] None", "web fd00::7:80 [shop,http] None"],
        ),
        (
            "load balancer: addresses and host names",
            |s| s.load_balancer = vec!["203.0.113.1".into(), "lb.example.org".into()],
            |o| o.address = AddressMode::LoadBalancer,
            vec![ready_slice()],
            vec!["web 203.0.113.1:80 [shop,http] None", "web lb.example.org:80 [shop,http] None"],
        ),
        (
            "load balancer without an address yet",
            |_| {},
            |o| o.address = AddressMode::LoadBalancer,
            vec![ready_slice()],
            vec![],
        ),
        (
            "external IPs",
            |s| s.external_ips = vec![ip("198.51.100.1")],
            |o| o.address = AddressMode::ExternalIp,
            vec![ready_slice()],
            vec!["web 198.51.100.1:80 [shop,http] None"],
        ),
        (
            "tags by annotation, without repetition",
            |s| s.annotations = [("kube-consul.io/service-tags".into(), "a,shop,b".into())].into(),
            |_| {},
            vec![ready_slice()],
            vec!["web 10.0.0.1:80 [shop,http,a,b] None"],
        ),
        (
            "a name by annotation",
            |s| s.annotations = [("kube-consul.io/service-name".into(), " api ".into())].into(),
            |_| {},
            vec![ready_slice()],
            vec!["api 10.0.0.1:80 [shop,http] None"],
        ),
        (
            "a name by template",
            two_ports,
            |o| o.name_template = "{service}-{namespace}".parse().unwrap(),
            vec![ready_slice()],
            vec![
                "web-shop 10.0.0.1:80 [shop,http] None",
                "web-shop-metrics 10.0.0.1:9100 [shop,metrics] None",
            ],
        ),
        (
            "a template with the port",
            two_ports,
            |o| o.name_template = "{service}-{port}".parse().unwrap(),
            vec![ready_slice()],
            vec![
                "web-http 10.0.0.1:80 [shop,http] None",
                "web-metrics 10.0.0.1:9100 [shop,metrics] None",
            ],
        ),
        (
            "health none",
            |_| {},
            |o| o.health = HealthMode::None,
            vec![],
            vec!["web 10.0.0.1:80 [shop,http] None"],
        ),
        (
            "health always",
            |_| {},
            |o| o.health = HealthMode::Always,
            vec![ready_slice()],
            vec!["web 10.0.0.1:80 [shop,http] Passing"],
        ),
        ("ExternalName", |s| s.kind = ServiceType::ExternalName, |_| {}, vec![], vec![]),
        (
            "imported by consul-k8s",
            |s| s.labels = [("consul".into(), "true".into())].into(),
            |_| {},
            vec![],
            vec![],
        ),
        (
            "imported by consul8s",
            |s| s.labels = [("consul8s_source".into(), "consul".into())].into(),
            |_| {},
            vec![],
            vec![],
        ),
        (
            "opted out",
            |s| s.annotations = [("kube-consul.io/sync".into(), "false".into())].into(),
            |_| {},
            vec![],
            vec![],
        ),
        ("not opted in", |_| {}, |o| o.default_sync = false, vec![], vec![]),
        (
            "opted in",
            |s| s.annotations = [("consul.hashicorp.com/service-sync".into(), "t".into())].into(),
            |o| o.default_sync = false,
            vec![ready_slice()],
            vec!["web 10.0.0.1:80 [shop,http] None"],
        ),
        (
            "another namespace asked for",
            |_| {},
            |o| o.namespaces = ["other".into()].into(),
            vec![],
            vec![],
        ),
        (
            "deny wins",
            |_| {},
            |o| {
                o.namespaces = ["shop".into()].into();
                o.deny_namespaces = ["shop".into()].into();
            },
            vec![],
            vec![],
        ),
        ("not selected", |_| {}, |o| o.selector = "app=web".parse().unwrap(), vec![], vec![]),
        ("no ports", |s| s.ports.clear(), |_| {}, vec![], vec![]),
    ];
    for (what, change, choose, slices, expected) in rows {
        let mut settings = settings();
        choose(&mut settings);
        let desired = build(&settings, &service().with(change).build(), &slices);
        assert_eq!(lines(&desired), expected, "{what}");
    }
}

/// Each row: what differs; the reason of the one problem; how many instances remain.
#[test]
fn bad_input_is_a_problem_and_harms_only_itself() {
    let rows: Vec<(&str, Change, Reason, usize)> = vec![
        ("no ports", |s| s.ports.clear(), Reason::Incomplete, 0),
        (
            "unknown port",
            |s| s.annotations = [("kube-consul.io/service-port".into(), "nope".into())].into(),
            Reason::InvalidAnnotation,
            1,
        ),
        (
            "bad name",
            |s| s.annotations = [("kube-consul.io/service-name".into(), " ".into())].into(),
            Reason::InvalidAnnotation,
            0,
        ),
        (
            "a name that DNS cannot carry",
            |s| s.annotations = [("kube-consul.io/service-name".into(), "a.b".into())].into(),
            Reason::InvalidName,
            1,
        ),
        (
            "a derived name that DNS cannot carry",
            |s| {
                s.annotations =
                    [("kube-consul.io/service-name".into(), "x".repeat(60).into())].into();
                s.ports.push(port("metrics", 90));
            },
            Reason::InvalidName,
            2,
        ),
        (
            "an address that it does not have",
            |s| s.annotations = [("kube-consul.io/address".into(), "external-ip".into())].into(),
            Reason::Incomplete,
            0,
        ),
        (
            "more meta than Consul takes",
            |s| {
                s.annotations = (0..70)
                    .map(|n| (format!("kube-consul.io/service-meta-m{n}").into(), "x".into()))
                    .collect();
            },
            Reason::InvalidAnnotation,
            1,
        ),
    ];
    for (what, change, reason, instances) in rows {
        let desired = build(&settings(), &service().with(change).build(), &[ready_slice()]);
        let reasons: Vec<Reason> = desired.problems.iter().map(|problem| problem.reason).collect();
        assert_eq!(reasons, [reason], "{what}");
        assert_eq!(desired.registrations.len(), instances, "{what}");
        assert!(desired.registrations.values().all(|r| r.meta.len() <= MAX_META_PAIRS), "{what}");
    }
}

#[test]
fn an_endpoint_without_a_port_number_is_left_out() {
    let mut no_port = ready_slice();
    no_port.ports[0].port = None;
    let headless = service().with(|s| s.cluster_ips.clear()).build();
    let desired = build(&settings(), &headless, &[no_port]);
    assert_eq!(lines(&desired), Vec::<String>::new());
    assert_eq!(desired.problems[0].reason, Reason::Incomplete);
}

#[test]
fn what_the_edge_left_out_is_a_problem_of_a_registered_service() {
    let service = service().with(|s| s.left_out = ["of the Service".into()].into());
    let mut slice = ready_slice();
    slice.left_out = ["of the slice".into()].into();
    let desired = build(&settings(), &service.build(), &[slice.clone()]);
    let told = ["of the Service", "of the slice"].map(|it| Problem::new(Reason::Incomplete, it));
    assert_eq!(desired.problems, told);
    assert_eq!(desired.registrations.len(), 1);
    let opted_out = super::super::testing::service()
        .annotations(&[("kube-consul.io/sync", "false")])
        .with(|s| s.left_out = ["of the Service".into()].into());
    assert_eq!(build(&settings(), &opted_out.build(), &[slice]).problems, []);
}

#[test]
fn the_name_consul_is_registered_only_by_annotation() {
    let consul = ObjectKey::new("infra", "consul");
    let granted = |_: &str, _: bool| Permit::Granted;
    let plain =
        desired(&settings(), &consul, &service().build(), std::iter::empty(), NO_NODES, &granted);
    assert!(plain.registrations.is_empty());
    assert_eq!(plain.problems[0].reason, Reason::InvalidName);
    let annotated = service().annotations(&[("kube-consul.io/service-name", "consul")]).build();
    let asked = desired(&settings(), &consul, &annotated, std::iter::empty(), NO_NODES, &granted);
    assert_eq!(asked.registrations.len(), 1);
}

#[test]
fn a_name_that_it_may_not_use_is_not_registered() {
    for (permit, reason, instances) in [
        (Permit::Taken(ObjectKey::new("other", "web")), Some(Reason::NameConflict), 0),
        (Permit::Foreign, Some(Reason::ForeignName), 0),
        (Permit::ForeignToo, Some(Reason::ForeignName), 1),
        (Permit::Unknown, None, 0),
    ] {
        let desired = desired(
            &settings(),
            &key(),
            &service().build(),
            [ready_slice()].iter(),
            NO_NODES,
            &|_, _| permit.clone(),
        );
        assert_eq!(desired.registrations.len(), instances, "{permit:?}");
        assert_eq!(desired.problems.first().map(|p| p.reason), reason, "{permit:?}");
    }
}

#[test]
fn with_suffixes_the_second_takes_its_namespace_along() {
    let mut settings = settings();
    settings.on_conflict = OnConflict::Suffix;
    let holder = ObjectKey::new("other", "web");
    let service = service().build();
    let slices = [ready_slice()];
    let one_taken = |name: &str, _: bool| match name {
        "web" => Permit::Taken(holder.clone()),
        _ => Permit::Granted,
    };
    let second = desired(&settings, &key(), &service, slices.iter(), NO_NODES, &one_taken);
    assert_eq!(lines(&second), ["web-shop 10.0.0.1:80 [shop,http] None"]);
    assert_eq!(second.problems, []);
    let both_taken = |_: &str, _: bool| Permit::Taken(holder.clone());
    let none = desired(&settings, &key(), &service, slices.iter(), NO_NODES, &both_taken);
    assert_eq!(none.problems.len(), 1);
}

#[test]
fn where_an_endpoint_runs_is_meta_of_its_instance() {
    let mut slice = ready_slice();
    slice.endpoints[0].pod = Some("web-0".into());
    slice.endpoints[0].node = Some("n1".into());
    slice.endpoints[0].zone = Some("z1".into());
    let headless = service().with(|s| s.cluster_ips.clear()).build();
    let desired = build(&settings(), &headless, &[slice]);
    let meta = &desired.registrations["kubernetes_shop_web_http_10.1.0.1"].meta;
    for (key, value) in [
        ("external-k8s-ref-kind", "Pod"),
        ("external-k8s-ref-name", "web-0"),
        ("external-k8s-node-name", "n1"),
        ("external-k8s-topology-zone", "z1"),
    ] {
        assert_eq!(meta[key], value);
    }
}

#[test]
fn reverse_records_follow_their_scope() {
    let headless = service().with(|s| s.cluster_ips.clear()).build();
    for (scope, with_cluster_ip, with_pods) in
        [(ReverseScope::Services, 1, 0), (ReverseScope::All, 1, 2), (ReverseScope::Off, 0, 0)]
    {
        let mut settings = settings();
        settings.reverse = scope;
        assert_eq!(
            build(&settings, &service().build(), &[ready_slice()]).reverse.len(),
            with_cluster_ip
        );
        assert_eq!(
            build(&settings, &headless, &[ready_slice()]).reverse.len(),
            with_pods,
            "{scope}"
        );
    }
}

#[test]
fn the_order_of_slices_never_matters() {
    let headless = service().with(|s| s.cluster_ips.clear()).build();
    let a = slice("web", &[("http", 8080)], &[("10.1.0.1", true), ("10.1.0.2", true)]);
    let b = slice("web", &[("http", 8081)], &[("10.1.0.2", true), ("10.1.0.3", false)]);
    let forwards = build(&settings(), &headless, &[a.clone(), b.clone()]);
    let backwards = build(&settings(), &headless, &[b, a]);
    assert_eq!(forwards.registrations, backwards.registrations);
    assert_eq!(forwards.registrations.len(), 3);
}
