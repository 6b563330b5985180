//! Ingresses and Gateways: what they change, in which order, and what their absence means.

use super::*;
use crate::domain::kube::route::{
    Backend, BackendPort, Gateway, HttpRoute, Ingress, IngressRule, Listener, Parent,
};
use crate::domain::kube::routes::RouteKinds;
use crate::domain::services::settings::{AddressMode, RouteAddress};

fn with(ingress: bool, gateway: bool) -> Settings {
    Settings { routes: RouteKinds { ingress, gateway }, ..settings() }
}

fn backend(service: &str) -> Backend {
    Backend { service: service.into(), port: BackendPort::Name("http".into()) }
}

fn rule(service: &str, host: &str, tls: bool) -> IngressRule {
    let host = (!host.is_empty()).then(|| host.into());
    IngressRule { backend: backend(service), host, tls }
}

fn ingress(name: &str, rules: &[IngressRule]) -> SeenObject {
    let mut rules = rules.to_vec();
    rules.sort();
    let addresses = ["192.0.2.80".into()].into();
    SeenObject::Ingress(key(name), Ingress { rules: rules.into(), addresses, ..Ingress::default() })
}

/// Of Service `s<n>` at `s<n>.example`.
fn ingress_of(n: u8) -> SeenObject {
    ingress(&format!("i{n}"), &[rule(&format!("s{n}"), &format!("s{n}.example"), false)])
}

fn http_route(name: &str, service: &str, host: &str, is_accepted: bool) -> SeenObject {
    let parent = Parent { gateway: ObjectKey::new("infra", "gate"), section: None, port: None };
    let route = HttpRoute {
        hostnames: [host.into()].into(),
        parents: is_accepted.then_some(parent).into_iter().collect(),
        backends: [backend(service)].into(),
        left_out: Box::default(),
    };
    SeenObject::HttpRoute(key(name), route)
}

fn gateway(ports: &[(u16, bool)]) -> SeenObject {
    let listener = |(port, tls): &(u16, bool)| Listener {
        name: format!("l{port}").into(),
        hostname: Some("*.example".into()),
        port: *port,
        tls: *tls,
        same_namespace: false,
        is_idle: false,
    };
    let gateway = Gateway {
        listeners: ports.iter().map(listener).collect(),
        addresses: ["192.0.2.90".into(), "192.0.2.91".into()].into(),
        left_out: Box::default(),
    };
    SeenObject::Gateway(ObjectKey::new("infra", "gate"), gateway)
}

/// What is registered, as `name address:port`, with `!` for a critical one.
fn places(simulation: &Simulation) -> Vec<String> {
    let mark = |r: &Registration| if format!("{:?}", r.check) == "Critical" { "!" } else { "" };
    let all = simulation.registrations.values();
    all.map(|r| format!("{} {}:{}{}", r.service, r.address, r.port, mark(r))).collect()
}

/// A bridge that has listed nothing, and read Consul.
fn empty(settings: Settings) -> Simulation {
    let kinds: Vec<Kind> = WATCHED.into_iter().chain(settings.routes.iter()).collect();
    let mut simulation = Simulation::new(settings);
    simulation.resync();
    for kind in kinds {
        simulation.list(kind, []);
    }
    simulation.settle();
    simulation
}

/// All orders of these places.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let Some(last) = count.checked_sub(1) else { return vec![Vec::new()] };
    let shorter = orders(last);
    let longer = |order: Vec<usize>| {
        (0..=last).map(move |at| {
            let mut order = order.clone();
            order.insert(at, last);
            order
        })
    };
    shorter.into_iter().flat_map(longer).collect()
}

#[test]
fn in_every_order_of_arrival_the_same_is_registered_and_nothing_else_is_left() {
    let by_ingress = [service_seen(1), slice_seen(1, true), ingress_of(1)];
    let by_gateway = [
        service_seen(1),
        slice_seen(1, true),
        http_route("r1", "s1", "s1.example", true),
        gateway(&[(80, false), (8443, true)]),
    ];
    for (objects, expected) in
        [(&by_ingress[..], "s1 s1.example:80"), (&by_gateway[..], "s1 s1.example:8443")]
    {
        for order in orders(objects.len()) {
            let mut simulation = empty(with(true, true));
            for place in &order {
                simulation.seen(objects[*place].clone());
                simulation.settle();
            }
            assert_eq!(places(&simulation), [expected], "{order:?}");
            assert!(simulation.kv.is_empty(), "{order:?}: a host has no PTR record");
            assert_eq!(simulation.bridge.counts().problems, 0, "{order:?}");
            // And all at once, as a list shows them.
            let mut at_once = empty(with(true, true));
            for place in &order {
                at_once.seen(objects[*place].clone());
            }
            at_once.settle();
            assert_eq!(places(&at_once), [expected], "{order:?}");
            // Each goes, in the same order.
            for place in &order {
                let object = &objects[*place];
                let gone = WatchEvent::Deleted(object.kind(), object.key().clone());
                simulation.bridge.handle_watch(gone, simulation.now);
                simulation.settle();
            }
            assert!(simulation.registrations.is_empty() && simulation.kv.is_empty(), "{order:?}");
        }
    }
}

#[test]
fn a_deleted_ingress_gives_the_service_its_own_address_back() {
    let mut simulation = empty(with(true, false));
    for object in [service_seen(1), slice_seen(1, false), ingress_of(1)] {
        simulation.seen(object);
    }
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 s1.example:80!"], "its health is the Service's");
    simulation.take_sent();
    simulation.seen(ingress_of(1));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "equal means silent");
    simulation.seen(slice_seen(1, true));
    simulation.settle();
    assert_eq!(
        (places(&simulation), simulation.take_sent()),
        (vec!["s1 s1.example:80".to_owned()], 1)
    );
    let mut order = Vec::new();
    simulation.deleted(Kind::Ingress, "i1");
    simulation.settle_with(|write| {
        order.push(!matches!(write, Write::Deregister { .. }));
        Fate::Applied
    });
    assert_eq!(places(&simulation), ["s1 10.0.0.1:80"]);
    assert_eq!(order, [true, true, false], "instance and PTR record before the old one goes");
}

#[test]
fn hosts_and_addresses_follow_from_rules_tls_and_the_option() {
    let rules = [
        rule("s1", "a.example", true),
        rule("s1", "b.example", false),
        rule("s1", "*.c.example", true),
        rule("s1", "pay.service.consul", true),
        rule("s1", "", false),
    ];
    for (at, expected, problems) in [
        (RouteAddress::Host, &["s1 a.example:443", "s1 b.example:80"][..], 2),
        (RouteAddress::LoadBalancer, &["s1 192.0.2.80:443"], 0),
    ] {
        let mut simulation = empty(Settings { route_address: at, ..with(true, false) });
        for object in [service_seen(1), slice_seen(1, true), ingress("i1", &rules)] {
            simulation.seen(object);
        }
        simulation.settle();
        assert_eq!(places(&simulation), expected);
        assert!(simulation.kv.is_empty(), "the Ingress's address is not the Service's");
        let all = simulation.bridge.problems();
        let of_ingress = all.iter().filter(|it| it.0 == Subject::Ingress && *it.1 == key("i1"));
        assert_eq!((of_ingress.count(), all.len()), (problems, problems), "{all:?}");
    }
}

#[test]
fn a_route_counts_while_its_gateway_accepts_it() {
    let mut simulation = empty(with(false, true));
    let own = ["s1 10.0.0.1:80"];
    for object in [service_seen(1), slice_seen(1, true), gateway(&[(443, true)])] {
        simulation.seen(object);
    }
    simulation.seen(http_route("r1", "s1", "s1.example", false));
    simulation.settle();
    assert_eq!(places(&simulation), own, "not accepted");
    simulation.seen(http_route("r1", "s1", "s1.example", true));
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 s1.example:443"]);
    simulation.seen(http_route("r1", "s1", "s1.other", true));
    simulation.settle();
    assert_eq!(places(&simulation), own, "no listener has the host");
    simulation.seen(http_route("r1", "s1", "s1.example", true));
    simulation.seen(gateway(&[(80, false)]));
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 s1.example:80"], "the listener is another");
    simulation.seen(http_route("r1", "s1", "s1.example", false));
    simulation.settle();
    assert_eq!(places(&simulation), own, "detached");
}

#[test]
fn gateway_addresses_take_the_place_of_hosts_when_asked_for() {
    let at = Settings { route_address: RouteAddress::LoadBalancer, ..with(false, true) };
    let mut simulation = empty(at);
    let route = http_route("r1", "s1", "s1.example", true);
    for object in [service_seen(1), slice_seen(1, true), route, gateway(&[(443, true)])] {
        simulation.seen(object);
    }
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 192.0.2.90:443", "s1 192.0.2.91:443"]);
}

#[test]
fn a_list_of_ingresses_that_lacks_most_is_confirmed_first() {
    let mut simulation = empty(with(true, false));
    for n in 1..=3 {
        for object in [service_seen(n), slice_seen(n, true), ingress_of(n)] {
            simulation.seen(object);
        }
    }
    simulation.settle();
    let hosts = ["s1 s1.example:80", "s2 s2.example:80", "s3 s3.example:80"];
    assert_eq!(places(&simulation), hosts);
    simulation.take_sent();
    // One breaks off, one is empty: none is evidence.
    simulation.bridge.handle_watch(WatchEvent::ListStarted(Kind::Ingress), simulation.now);
    simulation.settle();
    simulation.list(Kind::Ingress, []);
    simulation.next_actions();
    assert!(simulation.bridge.is_holding());
    assert_eq!(simulation.take_sent(), 0);
    simulation.list(Kind::Ingress, (1..=3).map(ingress_of));
    simulation.settle();
    assert_eq!(
        (places(&simulation), simulation.take_sent()),
        (hosts.map(str::to_owned).to_vec(), 0)
    );

    // The same at the start of another process, where a failed or denied list begins nothing.
    let mut simulation = simulation.restarted(with(true, false));
    simulation.resync();
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    let denied = Some("no right".to_owned());
    simulation.bridge.handle_watch_failure(Kind::Ingress, denied, simulation.now);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "a 403 is no evidence");
    simulation.list(Kind::Ingress, []);
    assert!(simulation.bridge.is_holding());
    simulation.step(&mut |_| Fate::Applied);
    let removed = |write: &Write| matches!(write, Write::Deregister { .. });
    assert!(!simulation.sent.iter().any(removed), "{:?}", simulation.sent);
    for host in hosts {
        assert!(places(&simulation).iter().any(|it| it == host), "{host}");
    }
    // A second list agrees.
    begin_confirmation(&mut simulation);
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.list(Kind::Ingress, []);
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 10.0.0.1:80", "s2 10.0.0.2:80", "s3 10.0.0.3:80"]);
}

#[test]
fn a_kind_that_is_not_served_shows_nothing_and_hinders_nobody() {
    let mut simulation = Simulation::new(with(false, true));
    simulation.resync();
    simulation.list(Kind::Service, [service_seen(1)]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "HTTPRoutes may still come");
    for kind in [Kind::HttpRoute, Kind::Gateway] {
        simulation.bridge.handle_not_served(kind, simulation.now);
    }
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 10.0.0.1:80"]);
    // It is installed.
    simulation.list(Kind::HttpRoute, [http_route("r1", "s1", "s1.example", true)]);
    simulation.list(Kind::Gateway, [gateway(&[(443, true)])]);
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 s1.example:443"]);
    simulation.take_sent();
    // A list that is a 404 is no evidence, even of what an empty one made suspicious.
    simulation.list(Kind::HttpRoute, []);
    assert!(simulation.bridge.is_holding());
    simulation.bridge.handle_not_served(Kind::HttpRoute, simulation.now);
    simulation.bridge.handle_not_served(Kind::Gateway, simulation.now);
    confirm(&mut simulation, vec![service_seen(1)], vec![slice_seen(1, true)]);
    assert_eq!(simulation.take_sent(), 0);
    // Its objects were deleted with it.
    simulation.deleted(Kind::HttpRoute, "r1");
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 10.0.0.1:80"]);
}

/// Registered at a host by a Gateway, and at its own address; then another process begins.
fn restarted_with_hosts(at: RouteAddress) -> Simulation {
    let settings = Settings { route_address: at, ..with(false, true) };
    let mut simulation = empty(settings.clone());
    for n in [1, 2] {
        simulation.seen(service_seen(n));
        simulation.seen(slice_seen(n, true));
    }
    simulation.seen(http_route("r1", "s1", "s1.example", true));
    simulation.seen(gateway(&[(443, true)]));
    simulation.settle();
    let mut simulation = simulation.restarted(settings);
    simulation.resync();
    simulation.list(Kind::Service, [service_seen(1), service_seen(2), service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation
}

#[test]
fn what_was_never_listed_is_unknown_and_hosts_stay_until_it_is() {
    for (at, places_of_1) in [
        (RouteAddress::Host, &["s1 s1.example:443"][..]),
        (RouteAddress::LoadBalancer, &["s1 192.0.2.90:443", "s1 192.0.2.91:443"]),
    ] {
        let with_others = |of_1: &[&str]| {
            let others = ["s2 10.0.0.2:80", "s3 10.0.0.3:80"];
            of_1.iter().chain(&others).map(|it| (*it).to_owned()).collect::<Vec<_>>()
        };
        let mut simulation = restarted_with_hosts(at);
        for kind in [Kind::HttpRoute, Kind::Gateway] {
            simulation.bridge.handle_not_served(kind, simulation.now);
        }
        simulation.settle();
        assert_eq!(places(&simulation), with_others(places_of_1), "a 404 is no evidence");
        let all = simulation.bridge.problems();
        assert!(matches!(&all[..], [(Subject::Service, of, _)] if **of == key("s1")), "{all:?}");
        // What is the Service's own follows it, and the others' records go.
        simulation.seen(slice_seen(2, false));
        simulation.deleted(Kind::Service, "s3");
        simulation.settle();
        let changed: Vec<String> =
            places_of_1.iter().copied().chain(["s2 10.0.0.2:80!"]).map(str::to_owned).collect();
        assert_eq!(places(&simulation), changed);
        simulation.seen(slice_seen(2, true));
        simulation.seen(service_seen(3));
        simulation.settle();
        // It is served again.
        simulation.take_sent();
        simulation.list(Kind::Gateway, [gateway(&[(443, true)])]);
        simulation.list(Kind::HttpRoute, [http_route("r1", "s1", "s1.example", true)]);
        simulation.settle();
        assert_eq!(places(&simulation), with_others(places_of_1));
        assert_eq!((simulation.take_sent(), simulation.bridge.counts().problems), (0, 0));
        // Or it is deleted altogether, by an object that is there.
        simulation.deleted(Kind::HttpRoute, "r1");
        simulation.settle();
        assert_eq!(places(&simulation), with_others(&["s1 10.0.0.1:80"]));
    }
}

#[test]
fn a_first_list_after_a_404_that_is_empty_is_confirmed() {
    let mut simulation = restarted_with_hosts(RouteAddress::Host);
    simulation.deleted(Kind::Service, "s2");
    simulation.deleted(Kind::Service, "s3");
    for kind in [Kind::HttpRoute, Kind::Gateway] {
        simulation.bridge.handle_not_served(kind, simulation.now);
    }
    simulation.settle();
    simulation.take_sent();
    simulation.list(Kind::HttpRoute, []);
    simulation.list(Kind::Gateway, []);
    assert!(simulation.bridge.is_holding());
    simulation.step(&mut |_| Fate::Applied);
    let removed = |write: &Write| matches!(write, Write::Deregister { .. });
    assert!(!simulation.sent.iter().any(removed), "{:?}", simulation.sent);
    begin_confirmation(&mut simulation);
    simulation.list(Kind::Service, [service_seen(1)]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.list(Kind::HttpRoute, []);
    simulation.list(Kind::Gateway, []);
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 10.0.0.1:80"]);
}

#[test]
fn a_kind_that_shows_no_object_is_confirmed_whatever_another_shows() {
    let mut simulation = empty(with(true, true));
    for object in [service_seen(1), slice_seen(1, true), ingress_of(1)] {
        simulation.seen(object);
    }
    simulation.settle();
    let route = || http_route("r2", "s2", "s2.example", true);
    for (ingresses, routes, gateways) in [
        (vec![], vec![route()], vec![gateway(&[(443, true)])]),
        (vec![], vec![], vec![gateway(&[(443, true)])]),
    ] {
        let mut simulation = simulation.restarted_beside(with(true, true));
        simulation.resync();
        simulation.list(Kind::Service, [service_seen(1)]);
        simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
        simulation.list(Kind::Ingress, ingresses);
        simulation.list(Kind::HttpRoute, routes);
        simulation.list(Kind::Gateway, gateways);
        assert!(simulation.bridge.is_holding());
    }
}

#[test]
fn an_ingress_that_was_never_read_removes_nothing_of_its_namespace() {
    let mut simulation = empty(with(true, false));
    for n in [1, 2] {
        for object in [service_seen(n), slice_seen(n, true)] {
            simulation.seen(object);
        }
    }
    simulation.seen(ingress_of(1));
    simulation.settle();
    let mut simulation = simulation.restarted(with(true, false));
    simulation.resync();
    simulation.list(Kind::Service, [service_seen(1), service_seen(2)]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true), slice_seen(2, true)]);
    let unread = SeenObject::Undecodable(Kind::Ingress, key("i1"), "no".to_owned());
    simulation.list(Kind::Ingress, [unread]);
    simulation.settle();
    assert!(places(&simulation).contains(&"s1 s1.example:80".to_owned()));
    simulation.seen(ingress_of(1));
    simulation.settle();
    assert_eq!(places(&simulation), ["s1 s1.example:80", "s2 10.0.0.2:80"]);
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn an_ingress_that_changes_concerns_the_services_whose_rules_did() {
    let mut simulation = empty(with(true, false));
    let rules = |host: &str| {
        let rules: Vec<IngressRule> = (1..=100)
            .map(|n| rule(&format!("s{n}"), if n == 7 { host } else { "x.example" }, false))
            .collect();
        ingress("i1", &rules)
    };
    simulation.seen(rules("x.example"));
    (1..=100).for_each(|n| simulation.seen(service_seen(n)));
    simulation.settle();
    simulation.seen(rules("y.example"));
    assert_eq!(simulation.bridge.counts().backlog, 1);
    // Another's Ingress in another namespace is about Services there, whatever it names.
    let SeenObject::Ingress(_, other) = rules("z.example") else { unreachable!() };
    simulation.seen(SeenObject::Ingress(ObjectKey::new("tenant", "i1"), other));
    simulation.settle();
    assert!(!places(&simulation).iter().any(|it| it.contains("z.example")));
}

#[test]
fn an_annotation_comes_before_routes_and_by_type_registers_what_consul_k8s_does() {
    let seen = |change: &dyn Fn(&mut Service)| {
        let mut service = numbered(1);
        change(&mut service);
        SeenObject::Service(key("s1"), service)
    };
    let annotated = |s: &mut Service| {
        s.annotations.insert("kube-consul.io/address".into(), "cluster-ip".into());
    };
    let external = |s: &mut Service| s.external_ips = vec![ip("192.0.2.1")];
    for (mode, service, expected) in [
        (AddressMode::Auto, seen(&annotated), "s1 10.0.0.1:80"),
        (AddressMode::Auto, seen(&external), "s1 s1.example:80"),
        (AddressMode::Endpoints, seen(&|_| {}), "s1 s1.example:80"),
        (AddressMode::ByType, seen(&|_| {}), "s1 s1.example:80"),
        (AddressMode::ByType, seen(&external), "s1 192.0.2.1:80"),
    ] {
        let mut simulation = empty(Settings { address: mode, ..with(true, false) });
        for object in [service, slice_seen(1, true), ingress_of(1)] {
            simulation.seen(object);
        }
        simulation.settle();
        assert_eq!(places(&simulation), [expected], "{mode}");
    }
}

#[test]
fn of_several_ports_those_that_are_routed_to_move() {
    let mut service = numbered(1);
    service.ports.push(crate::domain::testing::port("admin", 81));
    let to = |port: BackendPort, host: &str| IngressRule {
        backend: Backend { service: "s1".into(), port },
        host: Some(host.into()),
        tls: false,
    };
    let rules =
        [to(BackendPort::Number(81), "admin.example"), to(BackendPort::Number(99), "none.example")];
    let mut simulation = empty(with(true, false));
    for object in [SeenObject::Service(key("s1"), service), ingress("i1", &rules)] {
        simulation.seen(object);
    }
    simulation.settle();
    assert_eq!(places(&simulation), ["s1-admin admin.example:80!", "s1 10.0.0.1:80!"]);
    let told = messages(&simulation, 1);
    assert!(matches!(&told[..], [one] if one.contains("(99)")), "{told:?}");
}
