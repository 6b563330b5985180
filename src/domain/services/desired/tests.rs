//! What a row of the reconciler's table of Services and options cannot show.

use super::*;
use crate::domain::consul::names::Holder;
use crate::domain::consul::record::{Check, Registration};
use crate::domain::kube::object::IMPORT_ANNOTATION;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::claims::{AddressKind, PtrRank};
use crate::domain::services::desired::instances::MAX_META_PAIRS;
use crate::domain::services::settings::AddressMode;
use crate::domain::testing::{service, slice};

const NO_NODES: Option<std::iter::Empty<(&str, &Node)>> = None;

fn settings() -> Settings {
    Settings::new("kubernetes".parse().unwrap())
}

fn key() -> ObjectKey {
    ObjectKey::new("shop", "web")
}

fn build(settings: &Settings, service: &Service, slices: &[EndpointSlice]) -> Desired {
    desired(settings, &key(), service, slices.iter(), NO_NODES, &[], &|_, _| {
        Permit::Granted(Neighbours::default())
    })
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
            tags: vec!["shop".to_owned(), "http".to_owned()].into(),
            meta: meta.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            weight: 1,
            check: Check::None,
        }
    );
    let rank = PtrRank { kind: AddressKind::ClusterIp, created: 1 };
    let record = WantedPtr { service: "web".into(), rank };
    assert_eq!(desired.reverse, [("0.0.0.10.IN-ADDR.ARPA/10.0.0.1".into(), record)].into());
    assert_eq!(desired.problems, []);
}

#[test]
fn a_service_whose_endpoints_are_consuls_is_not_registered() {
    let mut imported = service().build();
    imported.annotations.insert(IMPORT_ANNOTATION.into(), "postgres".into());
    // Whatever else it asks for.
    for (annotation, value) in [("import-keep", "1m"), ("sync", "true"), ("address", "endpoints")] {
        imported.annotations.insert(format!("kube-consul.io/{annotation}").into(), value.into());
        let mut wanted = super::wanted(&settings(), &key(), &imported);
        assert!(wanted.ports.is_empty(), "{annotation}");
        assert_eq!(std::mem::take(&mut wanted.problems), [], "{annotation}");
        let desired = build(&settings(), &imported, &[ready_slice()]);
        assert!(desired.registrations.is_empty() && desired.reverse.is_empty(), "{annotation}");
    }
}

#[test]
fn there_is_no_more_meta_than_consul_takes() {
    let many = (0..70).map(|n| (format!("kube-consul.io/service-meta-m{n}").into(), "x".into()));
    let service = service().with(|s| s.annotations = many.collect()).build();
    let desired = build(&settings(), &service, &[ready_slice()]);
    let reasons: Vec<Reason> = desired.problems.iter().map(|problem| problem.reason).collect();
    assert_eq!(reasons, [Reason::InvalidAnnotation]);
    let registration = desired.registrations.values().next().unwrap();
    assert_eq!(registration.meta.len(), MAX_META_PAIRS);
    assert_eq!(registration.meta.get("external-source"), Some("kubernetes"));
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
    let opted_out = crate::domain::testing::service()
        .annotations(&[("kube-consul.io/sync", "false")])
        .with(|s| s.left_out = ["of the Service".into()].into());
    assert_eq!(build(&settings(), &opted_out.build(), &[slice]).problems, []);
}

#[test]
fn a_name_that_it_may_not_use_is_not_registered() {
    for (permit, reason, instances) in [
        (Permit::Taken(First::Told(ObjectKey::new("other", "web"))), Some(Reason::NameConflict), 0),
        (Permit::Foreign(Holder::Other), Some(Reason::ForeignName), 0),
        (Permit::ForeignToo(Holder::Other, Neighbours::default()), Some(Reason::ForeignName), 1),
        (Permit::Unknown, None, 0),
    ] {
        let desired = desired(
            &settings(),
            &key(),
            &service().build(),
            [ready_slice()].iter(),
            NO_NODES,
            &[],
            &|_, _| permit.clone(),
        );
        assert_eq!(desired.registrations.len(), instances, "{permit:?}");
        assert_eq!(desired.problems.first().map(|p| p.reason), reason, "{permit:?}");
    }
}

#[test]
fn where_an_endpoint_runs_is_meta_of_its_instance() {
    let mut slice = ready_slice();
    slice.endpoints[0].pod = Some("web-0".into());
    slice.endpoints[0].node = Some("n1".into());
    slice.endpoints[0].zone = Some("z1".into());
    let headless = service().with(|s| s.cluster_ips.clear()).build();
    let desired = build(&settings(), &headless, &[slice]);
    let meta = &desired.registrations["kubernetes_shop_web_http_8080_10.1.0.1"].meta;
    for (key, value) in [
        ("external-k8s-ref-kind", "Pod"),
        ("external-k8s-ref-name", "web-0"),
        ("external-k8s-node-name", "n1"),
        ("external-k8s-topology-zone", "z1"),
    ] {
        assert_eq!(meta.get(key), Some(value));
    }
}

#[test]
fn l4_many_ports_are_no_fault_of_the_annotations() {
    let ports =
        (0..64).map(|n| crate::domain::testing::port(&format!("p{n}"), 1_000 + n)).collect();
    let service = service().with(|it| it.ports = ports).build();
    let desired = build(&settings(), &service, &[]);
    assert_eq!(desired.registrations.len(), 64);
    assert!(desired.registrations.values().all(|it| it.meta.len() == MAX_META_PAIRS));
    assert_eq!(desired.problems, []);
}

#[test]
fn l3_tags_and_meta_are_bounded_for_one_and_for_all_instances() {
    let tags: Vec<String> = (0..60_000).map(|n| n.to_string()).collect();
    let tags = tags.join(",");
    let annotated = service().annotations(&[("kube-consul.io/service-tags", &tags)]);
    let ports =
        (0..20).map(|n| crate::domain::testing::port(&format!("p{n}"), 1_000 + n)).collect();
    let service = annotated.with(|it| it.ports = ports).build();
    let began = std::time::Instant::now();
    let desired = build(&settings(), &service, &[]);
    assert!(began.elapsed() < std::time::Duration::from_secs(5), "{:?}", began.elapsed());
    let of_one = |it: &Registration| it.tags.iter().map(String::len).sum::<usize>();
    assert!(desired.registrations.values().all(|it| of_one(it) > 1_000 && of_one(it) < 64 << 10));
    let [problem] = &*desired.problems else { panic!("{:?}", desired.problems) };
    assert_eq!(problem.reason, Reason::TooLarge);
    assert!(problem.message.contains("at most 64 KiB in each instance"), "{problem}");

    // With very many instances each may have less.
    let addresses =
        (0..4_000).map(|n| crate::domain::testing::ip(&format!("10.1.{}.{}", n / 200, n % 200)));
    let service = crate::domain::testing::service()
        .annotations(&[("kube-consul.io/service-tags", &tags)])
        .with(|it| it.external_ips = addresses.collect())
        .build();
    let mut settings = settings();
    settings.address = AddressMode::ExternalIp;
    let desired = build(&settings, &service, &[]);
    assert_eq!(desired.registrations.len(), 4_000);
    let all: usize = desired.registrations.values().map(of_one).sum();
    assert!(all < 4 << 20, "{all} bytes");
    assert_eq!(desired.problems.len(), 1, "{:?}", desired.problems);
}
