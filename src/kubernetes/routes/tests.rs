#![expect(clippy::needless_pass_by_value, reason = "they are written where they are passed")]

use serde_json::{Value, json};

use super::*;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::route::{BackendPort, HttpRoute, Ingress};
use crate::kubernetes::routes::gateway::GATEWAY_GROUP;
use crate::kubernetes::routes::kept::MAX_RULES;
use crate::kubernetes::slim::{Content, Slim, Watched};

fn decode<P: Watched>(object: &Value) -> P::Object {
    let text = object.to_string();
    let slim: Slim<P> = serde_json::from_str(&text).unwrap();
    assert_eq!(slim.identity.key, ObjectKey::new("shop", "it"));
    match slim.content {
        Content::Object(object) => object,
        other => panic!("{other:?}"),
    }
}

fn metadata() -> Value {
    json!({"name": "it", "namespace": "shop", "resourceVersion": "7"})
}

fn ingress(spec: Value, status: Value) -> Ingress {
    decode::<Ingresses>(&json!({"metadata": metadata(), "spec": spec, "status": status}))
}

fn to(service: &str, port: Value) -> Value {
    json!({"service": {"name": service, "port": port}})
}

fn paths(backends: &[Value]) -> Value {
    let path = |backend: &Value| json!({"path": "/x", "pathType": "Prefix", "backend": backend});
    json!({"paths": backends.iter().map(path).collect::<Vec<_>>()})
}

/// The rules, as `service:port host`, with `s` for TLS.
fn shown(ingress: &Ingress) -> Vec<String> {
    let rules = ingress.rules.iter();
    rules
        .map(|rule| {
            let port = match &rule.backend.port {
                BackendPort::Name(name) => name.to_string(),
                BackendPort::Number(number) => number.to_string(),
            };
            let host = rule.host.as_deref().unwrap_or("any");
            let tls = if rule.tls { " s" } else { "" };
            format!("{}:{port} {host}{tls}", rule.backend.service)
        })
        .collect()
}

#[test]
fn an_ingress_leads_where_its_rules_say() {
    let (web, api) = (to("web", json!({"number": 80})), to("api", json!({"name": "http"})));
    let bucket = json!({"resource": {"apiGroup": "x", "kind": "Bucket", "name": "b"}});
    let rules = json!([
        {"host": "a.example", "http": paths(&[web.clone(), api.clone(), web.clone(), bucket])},
        {"host": "b.example"},
        {"host": "*.c.example", "http": paths(std::slice::from_ref(&api))},
        {"http": paths(std::slice::from_ref(&api))},
    ]);
    let tls = json!([{"hosts": ["a.example", "*.c.example"], "secretName": "s"}]);
    let found = ingress(json!({"rules": rules, "tls": tls, "defaultBackend": web}), json!({}));
    assert_eq!(
        shown(&found),
        [
            "api:http any",
            "api:http *.c.example s",
            "api:http a.example s",
            "web:80 any",
            "web:80 a.example s",
            "web:80 b.example",
        ]
    );
    assert!(found.addresses.is_empty() && found.left_out.is_empty());
}

#[test]
fn tls_covers_what_it_names_and_a_wildcard_one_label() {
    let covered = |tls: Value, host: &str| {
        let rules = json!([{"host": host, "http": paths(&[to("web", json!({"number": 80}))])}]);
        ingress(json!({"rules": rules, "tls": tls}), Value::Null).rules[0].tls
    };
    let wildcard = json!([{"hosts": ["*.x"]}]);
    assert!(covered(wildcard.clone(), "a.x") && !covered(wildcard.clone(), "a.b.x"));
    assert!(!covered(wildcard, "x") && !covered(Value::Null, "a.x"));
    assert!(covered(json!([{"secretName": "s"}]), "a.x"), "without hosts: all");
    assert!(!covered(json!([{"hosts": ["b.x"]}]), "a.x"));
}

#[test]
fn addresses_are_ips_or_names() {
    let status = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1"}, {"hostname": "lb.example"}, {"ip": ""}, {"hostname": "a_b"},
    ]}});
    let found = ingress(json!({}), status);
    assert_eq!(&*found.addresses, ["192.0.2.1".into(), "lb.example".into()]);
    assert!(found.rules.is_empty());
    assert!(found.left_out[0].contains("\"a_b\""), "{:?}", found.left_out);
}

#[test]
fn what_cannot_be_is_left_out_and_told() {
    let rule =
        |host: &str| json!({"host": host, "http": paths(&[to("web", json!({"number": 80}))])});
    let hosts = ["10.0.0.1", "a_b.example", "-a.example", "a..example", "*", "ok.example"];
    let found = ingress(json!({"rules": hosts.map(rule)}), Value::Null);
    assert_eq!(shown(&found), ["web:80 ok.example"]);
    assert_eq!(found.left_out.len(), 5, "{:?}", found.left_out);
    let ports = [json!({"number": 0}), json!({"number": 70_000}), json!({}), Value::Null];
    let rules = ports.map(|port| json!({"host": "a.x", "http": paths(&[to("web", port)])}));
    assert!(ingress(json!({"rules": rules}), Value::Null).rules.is_empty());
}

#[test]
fn an_ingress_of_thousands_of_rules_is_cut_and_told() {
    let rule = |n: usize| {
        let backend = to(&format!("web-{}", n % 7), json!({"number": 80}));
        json!({"host": format!("h{n}.example"), "http": paths(&[backend])})
    };
    let rules: Vec<Value> = (0..20_000).map(rule).collect();
    let hosts: Vec<String> = (0..20_000).map(|n| format!("h{n}.example")).collect();
    let tls = json!([{"hosts": hosts}]);
    let began = std::time::Instant::now();
    let found = ingress(json!({"rules": rules, "tls": tls}), Value::Null);
    assert!(began.elapsed().as_secs() < 30, "{:?}: it is quadratic", began.elapsed());
    assert_eq!(found.rules.len(), MAX_RULES);
    assert!(found.rules.iter().all(|rule| rule.tls));
    assert!(found.left_out[0].contains("at most 1000"), "{:?}", found.left_out);
}

fn route(spec: Value, status: Value) -> HttpRoute {
    decode::<HttpRoutes>(&json!({"metadata": metadata(), "spec": spec, "status": status}))
}

fn status_of(parent: Value, accepted: &str) -> Value {
    let condition = json!({"type": "Accepted", "status": accepted, "reason": "x", "message": ""});
    json!({"parents": [{"parentRef": parent, "controllerName": "c", "conditions": [condition]}]})
}

#[test]
fn a_route_has_the_parents_that_it_asks_for_and_that_accept_it() {
    let gate = json!({"name": "gate", "namespace": "infra", "sectionName": "https"});
    let other = json!({"name": "gate", "namespace": "infra", "sectionName": "http"});
    let mesh = json!({"name": "web", "kind": "Service", "group": ""});
    for (asked, answered, accepted, expected) in [
        (&gate, &gate, "True", 1),
        (&gate, &gate, "False", 0),
        (&gate, &gate, "Unknown", 0),
        (&gate, &other, "True", 0),
        (&mesh, &mesh, "True", 0),
    ] {
        let spec = json!({"parentRefs": [asked]});
        let found = route(spec, status_of(answered.clone(), accepted));
        assert_eq!(found.parents.len(), expected, "{asked} {answered} {accepted}");
    }
    // Defaults stand for what they are.
    let spec = json!({"parentRefs": [{"name": "gate"}]});
    let full =
        json!({"group": GATEWAY_GROUP, "kind": "Gateway", "namespace": "shop", "name": "gate"});
    let found = route(spec, status_of(full, "True"));
    assert_eq!(found.parents[0].gateway, ObjectKey::new("shop", "gate"));
}

#[test]
fn a_route_leads_to_services_of_its_own_namespace() {
    let refs = json!([
        {"name": "web", "port": 80},
        {"name": "web", "port": 80, "weight": 5},
        {"name": "api", "namespace": "shop", "port": 81, "kind": "Service", "group": ""},
        {"name": "idle", "port": 80, "weight": 0},
        {"name": "other", "port": 80, "namespace": "bank"},
        {"name": "bucket", "kind": "Bucket", "group": "x"},
        {"name": "portless"},
    ]);
    let spec = json!({"hostnames": ["a.example", "*.b.example", "10.0.0.1"],
        "rules": [{"backendRefs": refs}, {}, {"backendRefs": null}]});
    let found = route(spec, Value::Null);
    let backends: Vec<&str> = found.services().collect();
    assert_eq!(backends, ["api", "web"]);
    assert_eq!(&*found.hostnames, ["a.example".into(), "*.b.example".into()]);
    let told = found.left_out.join("\n");
    assert!(told.contains("bank/other") && told.contains("\"10.0.0.1\""), "{told}");
    assert_eq!(found.left_out.len(), 2, "{told}");
}

#[test]
fn a_gateway_has_listeners_of_http_and_its_addresses() {
    let spec = json!({"gatewayClassName": "c", "listeners": [
        {"name": "http", "port": 80, "protocol": "HTTP"},
        {"name": "https", "port": 443, "protocol": "HTTPS", "hostname": "*.example",
         "allowedRoutes": {"namespaces": {"from": "All"}}},
        {"name": "idle", "port": 81, "protocol": "HTTP"},
        {"name": "tcp", "port": 5432, "protocol": "TCP"},
        {"name": "odd", "port": 82, "protocol": "HTTP", "hostname": "a_b"},
    ]});
    let status = json!({
        "addresses": [{"value": "192.0.2.1"}, {"type": "Hostname", "value": "gate.example"},
                      {"type": "x.io/Named", "value": "n"}],
        "listeners": [{"name": "http", "attachedRoutes": 2}, {"name": "idle", "attachedRoutes": 0}],
    });
    let object = json!({"metadata": metadata(), "spec": spec, "status": status});
    let found = decode::<Gateways>(&object);
    let listeners: Vec<_> =
        found.listeners.iter().map(|it| (&*it.name, it.port, it.tls, it.same_namespace)).collect();
    assert_eq!(
        listeners.iter().filter(|it| it.0 != "idle").collect::<Vec<_>>(),
        [&("http", 80, false, true), &("https", 443, true, false)]
    );
    let idle = found.listeners.iter().filter(|it| it.is_idle).map(|it| &*it.name);
    assert_eq!(idle.collect::<Vec<_>>(), ["idle"]);
    assert_eq!(&*found.addresses, ["192.0.2.1".into(), "gate.example".into()]);
    assert!(found.left_out.len() == 1 && found.left_out[0].contains("a_b"));
}

#[test]
fn one_that_does_not_decode_keeps_its_name() {
    let object = json!({"metadata": metadata(), "spec": {"rules": 7}});
    let slim: Slim<Ingresses> = serde_json::from_str(&object.to_string()).unwrap();
    assert!(matches!(slim.content, Content::Undecodable(_)), "{slim:?}");
}
