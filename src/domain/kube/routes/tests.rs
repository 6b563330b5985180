use super::*;
use crate::domain::kube::route::{Backend, BackendPort, IngressRule, Listener};

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

fn all() -> Routes {
    Routes::new(RouteKinds { ingress: true, gateway: true })
}

fn ingress(services: &[&str], hosts: usize) -> Ingress {
    let rules = services.iter().flat_map(|service| {
        (0..hosts).map(|n| IngressRule {
            backend: Backend { service: (*service).into(), port: BackendPort::Number(80) },
            host: Some(format!("h{n}.example").into()),
            tls: false,
        })
    });
    let mut rules: Vec<IngressRule> = rules.collect();
    rules.sort();
    Ingress { rules: rules.into(), ..Ingress::default() }
}

fn hosts(routes: &Routes, service: &str) -> usize {
    routes.of(&key(service), &|_, _| false).0.len()
}

#[test]
fn the_index_follows_what_an_ingress_leads_to() {
    let mut routes = all();
    assert_eq!(
        routes.seen_ingress(&key("i"), ingress(&["a", "b"], 1)),
        [key("a"), key("b")].into()
    );
    assert_eq!(routes.seen_ingress(&key("i"), ingress(&["a", "b"], 1)), [].into(), "equal");
    assert_eq!(
        routes.seen_ingress(&key("i"), ingress(&["b", "c"], 1)),
        [key("a"), key("c")].into()
    );
    assert_eq!(["a", "b", "c"].map(|it| hosts(&routes, it)), [0, 1, 1]);
    routes.remove(Kind::Ingress, &key("i"));
    assert!(routes.of_service.is_empty(), "nothing is left in the index");
}

#[test]
fn many_hosts_of_one_service_are_cut() {
    let mut routes = all();
    for n in 0..11 {
        routes.seen_ingress(&key(&format!("i{n}")), ingress(&["a", "b"], 1_000));
    }
    let service = key("a");
    let (found, are_cut) = routes.of(&service, &|_, _| false);
    assert_eq!((found.len(), are_cut), (MAX_ROUTES, true));
    let absent = |_: Kind, of: &ObjectKey| *of.name != *"i0";
    assert_eq!(routes.of(&service, &absent).0.len(), 1_000);
}

#[test]
fn a_gateway_concerns_the_services_of_its_routes() {
    let gate = ObjectKey::new("infra", "gate");
    let parent =
        |gateway: &ObjectKey| Parent { gateway: gateway.clone(), section: None, port: None };
    let route = |gateway: &ObjectKey| HttpRoute {
        hostnames: ["a.example".into()].into(),
        parents: [parent(gateway)].into(),
        backends: [Backend { service: "a".into(), port: BackendPort::Number(80) }].into(),
        left_out: Box::default(),
    };
    let listener = |same_namespace| Listener {
        name: "http".into(),
        hostname: None,
        port: 80,
        tls: false,
        same_namespace,
        is_idle: false,
    };
    let gateway = |same| Gateway { listeners: [listener(same)].into(), ..Gateway::default() };
    let mut routes = all();
    assert_eq!(routes.seen_gateway(&gate, gateway(false)), [].into());
    assert_eq!(routes.seen_http_route(&key("r"), route(&gate)), [key("a")].into());
    assert_eq!(hosts(&routes, "a"), 1);
    assert_eq!(routes.seen_gateway(&gate, gateway(true)), [key("a")].into());
    assert_eq!(hosts(&routes, "a"), 0, "it takes routes of its own namespace only");
    assert_eq!(routes.seen_http_route(&key("r"), route(&key("gate"))), [key("a")].into());
    assert_eq!(routes.services_concerned(Kind::Gateway, &gate), [].into());
    routes.remove(Kind::HttpRoute, &key("r"));
    assert!(routes.of_service.is_empty() && routes.of_gateway.is_empty());
}

#[test]
fn a_kind_that_is_not_served_is_complete_and_no_evidence() {
    let mut routes = all();
    routes.list_started(Kind::Ingress);
    routes.list_completed(Kind::Ingress);
    assert!(!routes.is_complete());
    routes.not_served(Kind::HttpRoute);
    routes.not_served(Kind::Gateway);
    assert!(routes.is_complete());
    assert_eq!(routes.evidence().collect::<Vec<_>>(), [Kind::Ingress]);
    routes.list_started(Kind::Gateway);
    assert!(!routes.is_complete(), "it is served now");
}

#[test]
fn what_was_never_read_may_lead_anywhere_in_its_namespace() {
    let mut routes = all();
    let other = ObjectKey::new("other", "a");
    routes.undecodable(Kind::HttpRoute, key("r"), "no".to_owned());
    assert!(routes.may_miss(&key("a")) && !routes.may_miss(&other));
    assert!(routes.is_never_read(Kind::HttpRoute, &key("r")) && routes.has_never_read());
    routes.seen_http_route(&key("r"), HttpRoute::default());
    assert!(!routes.may_miss(&key("a")) && !routes.has_never_read());
}
