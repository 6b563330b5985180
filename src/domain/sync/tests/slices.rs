//! O12: slices that have not followed a port of their Service.

use super::*;
use crate::domain::sync::grace::SLICES_FOLLOW;

fn with_port(mode: AddressMode, port: &str) -> SeenObject {
    let service = service().with(|s| {
        s.ports[0].name = Some(port.into());
        if mode == AddressMode::Endpoints {
            s.cluster_ips = Vec::new();
        }
        s.external_ips = vec![ip("198.51.100.1")];
        s.load_balancer = ["203.0.113.1".into()].into();
    });
    SeenObject::Service(key("web"), service.build())
}

fn serving(port: &str) -> SeenObject {
    let endpoints = [("10.1.0.1", true), ("10.1.0.2", true)];
    SeenObject::EndpointSlice(key("web-x"), slice("web", &[(port, 8080)], &endpoints))
}

fn running(mode: AddressMode) -> Simulation {
    let mut settings = settings();
    settings.address = mode;
    let mut simulation = Simulation::new(settings);
    simulation.resync();
    simulation.list(Kind::Service, [with_port(mode, "http")]);
    simulation.list(Kind::EndpointSlice, [serving("http")]);
    simulation.settle();
    simulation
}

/// How many instances clients are answered.
fn passing(simulation: &Simulation) -> usize {
    simulation.registered().iter().filter(|it| it.ends_with("None")).count()
}

const MODES: [AddressMode; 4] = [
    AddressMode::Endpoints,
    AddressMode::ClusterIp,
    AddressMode::LoadBalancer,
    AddressMode::ExternalIp,
];

#[test]
fn o12_a_renamed_port_leaves_no_gap_whatever_comes_first() {
    for mode in MODES {
        for service_first in [true, false] {
            let mut simulation = running(mode);
            let before = passing(&simulation);
            assert!(before > 0, "{mode:?}");
            let changes = [with_port(mode, "web"), serving("web")];
            let [first, second] = changes;
            let (first, second) = if service_first { (first, second) } else { (second, first) };
            simulation.seen(first);
            simulation.step(&mut |_| Fate::Applied);
            assert_eq!(passing(&simulation), before, "{mode:?} {service_first}");
            simulation.now += SLICES_FOLLOW * 4 / 5;
            simulation.step(&mut |_| Fate::Applied);
            assert_eq!(passing(&simulation), before, "{mode:?} {service_first}");
            simulation.seen(second);
            while let Some(action) = simulation.next_action() {
                simulation.deliver(action, &mut |_| Fate::Applied);
                assert!(passing(&simulation) >= before, "{mode:?} {service_first}");
            }
            assert_eq!(simulation.registrations.len(), before, "{:?}", simulation.registered());
            assert!(simulation.registrations.keys().all(|id| id.contains("_web_web_")));
        }
    }
}

#[test]
fn o12_slices_that_never_follow_are_waited_for_no_longer() {
    for mode in MODES {
        let mut simulation = running(mode);
        let before = passing(&simulation);
        simulation.seen(with_port(mode, "web"));
        simulation.step(&mut |_| Fate::Applied);
        let plan = simulation.bridge.plan_of(&key("web"), simulation.now).unwrap();
        let until = simulation.now + SLICES_FOLLOW;
        assert!(plan.waits.values().any(|it| *it == Wait::SlicesBehind { until }), "{mode:?}");
        // What touches the Service meanwhile does not prolong it.
        simulation.now += Duration::from_secs(3);
        simulation.seen(with_port(mode, "web"));
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!(passing(&simulation), before);
        simulation.now = until;
        simulation.step(&mut |_| Fate::Applied);
        assert_eq!(passing(&simulation), 0, "{mode:?} {:?}", simulation.registered());
        assert_eq!(simulation.bridge.counts().problems, 1);
    }
}

#[test]
fn o12_other_ports_do_not_wait() {
    let mut simulation = running(AddressMode::Endpoints);
    let SeenObject::Service(name, mut service) = with_port(AddressMode::Endpoints, "web") else {
        return;
    };
    let sql = service.ports[0].clone();
    let ports = [
        service.ports[0].clone(),
        crate::domain::kube::object::ServicePort { name: Some("sql".into()), ..sql },
    ];
    service.ports = ports.into();
    let sql = |endpoints: &[(&str, bool)]| {
        SeenObject::EndpointSlice(key("web-y"), slice("web", &[("sql", 1)], endpoints))
    };
    simulation.seen(sql(&[("10.1.0.5", true), ("10.1.0.6", true)]));
    simulation.seen(SeenObject::Service(name, service));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(passing(&simulation), 4);
    simulation.seen(sql(&[("10.1.0.6", true)]));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(passing(&simulation), 3, "{:?}", simulation.registered());
}
