use super::*;
use crate::domain::testing::{port, service};

/// Hosts of a route to port 80, as `host:port`, with `s` for TLS.
fn routed(at: RouteAddress, routes: &[(&str, &[&str])]) -> (Vec<Place>, usize) {
    let http = BackendPort::Number(80);
    let addresses: Vec<Vec<Box<str>>> =
        routes.iter().map(|(_, all)| all.iter().map(|it| (*it).into()).collect()).collect();
    let routes: Vec<Route<'_>> = routes
        .iter()
        .zip(&addresses)
        .map(|((host, _), addresses)| {
            let (host, port) = host.split_once(':').unwrap();
            let tls = port.ends_with('s');
            let port = port.trim_end_matches('s').parse().unwrap();
            let host = Some(host).filter(|host| !host.is_empty());
            Route { backend: &http, host, addresses, port, tls }
        })
        .collect();
    let service = service().build();
    let mut places = Places::new(at, &service, service.ports.iter(), &routes);
    (places.of_port.pop().unwrap_or_default(), places.problems.len())
}

#[test]
fn one_address_is_one_instance_and_tls_is_preferred() {
    let place = |address: &str, port| (address.into(), port);
    let host = RouteAddress::Host;
    let balancer = RouteAddress::LoadBalancer;
    for (at, routes, expected, problems) in [
        (host, &[][..], vec![], 0),
        (host, &[("a.x:80", &[][..]), ("a.x:443s", &[])], vec![place("a.x", 443)], 0),
        (host, &[("a.x:443s", &[]), ("a.x:80", &[])], vec![place("a.x", 443)], 0),
        (host, &[("a.x:8080", &[]), ("a.x:80", &[])], vec![place("a.x", 80)], 0),
        (host, &[("*.x:80", &["192.0.2.1"]), (":80", &[])], vec![], 0),
        (host, &[("web.service.CONSUL:80", &[])], vec![], 0),
        (balancer, &[("a.x:80", &["192.0.2.1"])], vec![place("192.0.2.1", 80)], 0),
        (balancer, &[(":443s", &["lb.x"])], vec![place("lb.x", 443)], 0),
        (balancer, &[("a.x:80", &["web.service.consul"])], vec![], 0),
        (
            balancer,
            &[("a.x:80", &["lb.x"]), ("b.x:80", &["192.0.2.1", "192.0.2.2"])],
            vec![place("192.0.2.1", 80), place("192.0.2.2", 80)],
            1,
        ),
    ] {
        assert_eq!(routed(at, routes), (expected, problems), "{at:?} {routes:?}");
    }
}

#[test]
fn a_route_to_a_port_that_is_not_wanted_is_the_primary_ones() {
    let service = service().with(|it| it.ports = vec![port("http", 80), port("", 81)]).build();
    let routes = [BackendPort::Number(81), BackendPort::Name("http".into())];
    let route =
        |backend| Route { backend, host: Some("a.x"), addresses: &[], port: 80, tls: false };
    let places = |wanted: &[ServicePort], n: usize| {
        let found = Places::new(RouteAddress::Host, &service, wanted.iter(), &[route(&routes[n])]);
        found.of_port.iter().map(Vec::len).collect::<Vec<_>>()
    };
    assert_eq!(places(&service.ports, 0), [0, 1]);
    assert_eq!(places(&service.ports, 1), [1, 0]);
    assert_eq!(places(&service.ports[..1], 0), [1]);
    assert_eq!(places(&[], 0), [0; 0]);
}
