use super::*;

#[derive(Debug, Deserialize)]
struct Items {
    items: Vec<Slim<Services>>,
}

fn service(json: &str) -> Service {
    match Services::decode(json).unwrap().1 {
        Content::Object(service) => service,
        other => panic!("expected a Service, found {other:?}"),
    }
}

fn slice(json: &str) -> EndpointSlice {
    match EndpointSlices::decode(json).unwrap().1 {
        Content::Object(slice) => slice,
        other => panic!("expected a slice, found {other:?}"),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const SERVICE: &str = r#"{"apiVersion":"v1","kind":"Service","metadata":{
    "name":"web","namespace":"shop","uid":"u-1","resourceVersion":"42",
    "creationTimestamp":"2024-05-01T10:00:00Z",
    "labels":{"app":"web","quoted":"a\"b"},
    "annotations":{"kube-consul.io/service-name":"shop-web","kubectl.kubernetes.io/last-applied-configuration":"{}",
        "consul.hashicorp.com/service-tags":"a,b"},
    "managedFields":[{"manager":"kubectl","fieldsV1":{"f:spec":{}}}]},
  "spec":{"type":"LoadBalancer","clusterIP":"10.0.0.7","clusterIPs":["10.0.0.7","fd00::7"],
    "externalIPs":["192.0.2.9"],"publishNotReadyAddresses":true,"externalTrafficPolicy":"Local",
    "ports":[{"name":"http","port":80,"nodePort":30080,"protocol":"TCP"},{"name":"dns","port":53,"protocol":"UDP"}]},
  "status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.1"},{"hostname":"lb.example.com"},{}]}}}"#;

#[test]
fn a_service_keeps_what_can_change_a_registration() {
    let service = service(SERVICE);
    assert_eq!((&*service.uid, service.created), ("u-1", 1_714_557_600));
    assert_eq!(service.labels.get("quoted").map(|text| &**text), Some("a\"b"));
    let annotations: Vec<_> = service.annotations.keys().map(|key| &**key).collect();
    assert_eq!(annotations, ["consul.hashicorp.com/service-tags", "kube-consul.io/service-name"]);
    assert_eq!(service.kind, ServiceType::LoadBalancer);
    assert_eq!(service.cluster_ips, [ip("10.0.0.7"), ip("fd00::7")]);
    assert_eq!(service.external_ips, [ip("192.0.2.9")]);
    assert_eq!(*service.load_balancer, ["192.0.2.1".into(), "lb.example.com".into()]);
    let ports: Vec<_> =
        service.ports.iter().map(|it| (it.name.as_deref(), it.port, it.node_port)).collect();
    assert_eq!(ports, [(Some("http"), 80, Some(30080)), (Some("dns"), 53, None)]);
    let protocols: Vec<_> = service.ports.iter().map(|it| it.protocol).collect();
    assert_eq!(protocols, [Protocol::Tcp, Protocol::Udp]);
    assert!(service.publish_not_ready && service.external_traffic_local);
    assert!(service.left_out.is_empty());
}

const NODE: &str = r#"{"apiVersion":"v1","kind":"Node","metadata":{
    "name":"n1","uid":"u-1","resourceVersion":"42",
    "labels":{"kubernetes.io/arch":"amd64","topology.kubernetes.io/zone":"eu-1a"},
    "annotations":{"node.alpha.kubernetes.io/ttl":"0"}},
  "spec":{"podCIDR":"10.1.0.0/24"},
  "status":{"capacity":{"cpu":"4"},"addresses":[{"type":"InternalIP","address":"10.0.0.7"},
      {"type":"InternalIP","address":"fd00::7"},{"type":"ExternalIP","address":"192.0.2.7"},
      {"type":"InternalIP","address":"10.0.0.8"},{"type":"Hostname","address":"n1"}],
    "conditions":[{"type":"MemoryPressure","status":"False","lastHeartbeatTime":"2026-01-01T00:00:00Z"},
      {"type":"Ready","status":"True","lastHeartbeatTime":"2026-01-01T00:00:00Z","reason":"KubeletReady"}],
    "images":[{"names":["example.org/app:1"],"sizeBytes":1}]}}"#;

fn node(json: &str) -> Node {
    match Nodes::decode(json).unwrap().1 {
        Content::Object(node) => node,
        other => panic!("expected a Node, found {other:?}"),
    }
}

#[test]
fn a_node_keeps_what_can_change_a_registration() {
    let expected = Node {
        addresses: vec![
            (NodeAddressType::Internal, ip("10.0.0.7")),
            (NodeAddressType::Internal, ip("fd00::7")),
            (NodeAddressType::External, ip("192.0.2.7")),
        ],
        ready: true,
        excluded: false,
        zone: Some("eu-1a".into()),
        left_out: [].into(),
    };
    assert_eq!(node(NODE), expected);
    let (identity, _) = Nodes::decode(NODE).unwrap();
    assert_eq!(identity.key, ObjectKey::new("", "n1"));
    assert_eq!(identity.resource_version, "42");
}

#[test]
fn o10_a_node_is_excluded_by_its_label_whatever_that_says() {
    for value in ["", "true", "false"] {
        let label = "node.kubernetes.io/exclude-from-external-load-balancers";
        let json =
            NODE.replace(r#""kubernetes.io/arch":"amd64""#, &format!(r#""{label}":"{value}""#));
        assert!(node(&json).excluded, "{value:?}");
    }
}

#[test]
fn what_a_kubelet_reports_all_the_time_leaves_a_node_equal() {
    for (part, later) in [
        ("2026-01-01T00:00:00Z", "2026-01-01T00:05:00Z"),
        (r#""resourceVersion":"42""#, r#""resourceVersion":"43""#),
        (r#"["example.org/app:1"]"#, r#"["example.org/app:2"]"#),
        (r#""MemoryPressure","status":"False""#, r#""MemoryPressure","status":"True""#),
        (r#""cpu":"4""#, r#""cpu":"5""#),
        (r#""address":"10.0.0.8""#, r#""address":"10.0.0.9""#),
    ] {
        assert!(NODE.contains(part));
        assert_eq!(node(&NODE.replace(part, later)), node(NODE), "{part}");
    }
}

#[test]
fn a_node_is_ready_only_where_it_says_so() {
    for status in ["False", "Unknown", "true"] {
        let json =
            NODE.replace(r#""Ready","status":"True""#, &format!(r#""Ready","status":"{status}""#));
        assert!(!node(&json).ready, "{status}");
    }
    let bare = node(
        r#"{"metadata":{"name":"n"},"status":{"addresses":[
        {"type":"InternalIP","address":"x"},{"type":"InternalDNS","address":"n.internal"}]}}"#,
    );
    assert_eq!((bare.ready, bare.addresses.len(), bare.left_out.len()), (false, 0, 1));
    assert!(!node(r#"{"metadata":{"name":"n"}}"#).ready);
}

#[test]
fn only_what_has_no_namespace_may_lack_one() {
    let broken = r#"{"metadata":{"name":"n"},"status":7,"spec":7}"#;
    let node: Slim<Nodes> = serde_json::from_str(broken).unwrap();
    assert!(matches!(node.content, Content::Undecodable(_)), "{:?}", node.content);
    assert_eq!(node.identity.key, ObjectKey::new("", "n"));
    let error = serde_json::from_str::<Slim<Services>>(broken).unwrap_err();
    assert!(error.to_string().contains("a Service without a namespace"), "{error}");
}

#[test]
fn a_headless_service_has_no_cluster_address() {
    for spec in [r#"{"clusterIP":"None"}"#, r#"{"clusterIP":"None","clusterIPs":["None"]}"#, "{}"] {
        let json = format!(r#"{{"metadata":{{"name":"a","namespace":"b"}},"spec":{spec}}}"#);
        let service = service(&json);
        assert_eq!((service.cluster_ips.len(), service.left_out.len()), (0, 0), "{spec}");
    }
    let old = r#"{"metadata":{"name":"a","namespace":"b"},"spec":{"clusterIP":"10.0.0.1"}}"#;
    assert_eq!(service(old).cluster_ips, [ip("10.0.0.1")]);
}

#[test]
fn values_that_cannot_be_are_left_out_and_told() {
    let service = service(
        r#"{"metadata":{"name":"a","namespace":"b"},"spec":{"clusterIPs":["10.0.0.1","x\ny"],
            "ports":[{"port":0},{"port":70000},{"port":-1},{"port":80,"nodePort":99999},{"port":81,"nodePort":0}]}}"#,
    );
    assert_eq!(service.cluster_ips, [ip("10.0.0.1")]);
    let ports: Vec<_> = service.ports.iter().map(|it| (it.port, it.node_port)).collect();
    assert_eq!(ports, [(80, None), (81, None)]);
    assert_eq!(
        &*service.left_out[0],
        "spec.clusterIPs[1]: expected an IP address, found \"x y\"; it is left out"
    );
    assert_eq!(
        &*service.left_out[1],
        "spec.ports[0].port: expected 1 to 65535, found 0; it is left out"
    );
    assert_eq!(service.left_out.len(), 5);
}

#[test]
fn what_is_left_out_is_told_for_the_first_few_only() {
    let ports: Vec<_> = (0..20).map(|_| r#"{"port":0}"#).collect();
    let json = format!(
        r#"{{"metadata":{{"name":"a","namespace":"b"}},"spec":{{"ports":[{}]}}}}"#,
        ports.join(",")
    );
    let service = service(&json);
    assert_eq!(service.left_out.len(), LEFT_OUT_REPORTED + 1);
    assert_eq!(service.left_out.last().map(|it| &**it), Some("12 more parts are left out"));
}

#[test]
fn an_endpoint_is_ready_unless_it_says_otherwise() {
    let slice = slice(
        r#"{"metadata":{"name":"web-x","namespace":"shop","labels":{"a":"b","kubernetes.io/service-name":"web"}},
        "addressType":"IPv4","ports":[{"name":"http","port":8080},{"name":null,"port":null},{"port":0}],
        "endpoints":[
          {"addresses":["10.0.0.1","10.0.0.9"],"conditions":{"ready":true},"nodeName":"n1","zone":"z1","hostname":"",
           "targetRef":{"kind":"Pod","name":"web-0"}},
          {"addresses":["10.0.0.2"],"conditions":{"ready":false,"serving":true},"targetRef":{"kind":"Node","name":"x"},"hostname":"web-2"},
          {"addresses":["10.0.0.3"],"conditions":{"ready":null}},
          {"addresses":["10.0.0.4"],"conditions":{}},
          {"addresses":["10.0.0.5"]},
          {"addresses":[]},{"addresses":null},{"addresses":["web.example.com"]}]}"#,
    );
    assert_eq!(&*slice.service, "web");
    let seen: Vec<_> =
        slice.endpoints.iter().map(|it| (it.address.to_string(), it.ready)).collect();
    let expected = [("1", true), ("2", false), ("3", true), ("4", true), ("5", true)];
    assert_eq!(seen, expected.map(|(last, ready)| (format!("10.0.0.{last}"), ready)));
    let first = &slice.endpoints[0];
    assert_eq!(
        (first.pod.as_deref(), first.node.as_deref(), first.zone.as_deref()),
        (Some("web-0"), Some("n1"), Some("z1"))
    );
    assert_eq!(slice.endpoints[1].pod, None);
    assert_eq!((&first.hostname, slice.endpoints[1].hostname.as_deref()), (&None, Some("web-2")));
    let ports: Vec<_> = slice.ports.iter().map(|it| (&*it.name, it.port)).collect();
    assert_eq!(ports, [("http", 8080)]);
    assert_eq!(slice.left_out.len(), 5);
    assert_eq!(
        &*slice.left_out[0],
        "ports[1].port: expected 1 to 65535, found none; it is left out"
    );
}

#[test]
fn o11_an_endpoint_that_terminates_may_still_serve() {
    for (conditions, draining) in [
        (r#"{"ready":false,"serving":true,"terminating":true}"#, true),
        (r#"{"ready":false,"serving":false,"terminating":true}"#, false),
        (r#"{"ready":false,"serving":true,"terminating":false}"#, false),
        (r#"{"ready":false,"serving":true}"#, false),
        // Before Kubernetes 1.22 there is no `serving`: it is as `ready`.
        (r#"{"ready":false,"terminating":true}"#, false),
        (r#"{"ready":true,"serving":true,"terminating":true}"#, false),
    ] {
        let slice = slice(&format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","labels":{{"kubernetes.io/service-name":"s"}}}},
            "addressType":"IPv4","endpoints":[{{"addresses":["10.0.0.1"],"conditions":{conditions}}}]}}"#
        ));
        assert_eq!(slice.endpoints[0].draining, draining, "{conditions}");
    }
}

#[test]
fn o2_a_port_without_a_protocol_is_tcp() {
    for (protocol, expected) in [
        ("", Protocol::Tcp),
        (r#","protocol":null"#, Protocol::Tcp),
        (r#","protocol":"TCP""#, Protocol::Tcp),
        (r#","protocol":"UDP""#, Protocol::Udp),
        (r#","protocol":"SCTP""#, Protocol::Sctp),
    ] {
        let slice = slice(&format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","labels":{{"kubernetes.io/service-name":"s"}}}},
            "addressType":"IPv4","ports":[{{"name":"x","port":1{protocol}}}],"endpoints":null}}"#
        ));
        assert_eq!(slice.ports[0].protocol, expected, "{protocol}");
    }
}

#[test]
fn o4_no_ports_are_no_ports_however_they_are_written() {
    let decoded = ["null", "[]"].map(|ports| {
        slice(&format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","labels":{{"kubernetes.io/service-name":"s"}}}},
            "addressType":"IPv4","ports":{ports},"endpoints":[{{"addresses":["10.0.0.1"]}}]}}"#
        ))
    });
    assert_eq!(decoded[0], decoded[1]);
    assert_eq!((decoded[0].ports.len(), decoded[0].left_out.len()), (0, 0));
}

#[test]
fn o13_a_slice_of_host_names_has_no_endpoints_and_says_so() {
    let slice = slice(
        r#"{"metadata":{"name":"a","namespace":"b","labels":{"kubernetes.io/service-name":"s"}},
        "addressType":"FQDN","endpoints":[{"addresses":["web.example.com"]}],"ports":null}"#,
    );
    assert_eq!((slice.endpoints.len(), slice.left_out.len()), (0, 1));
    assert!(slice.left_out[0].contains("found FQDN"), "{:?}", slice.left_out);
}

#[test]
fn a_slice_without_its_label_belongs_to_no_service() {
    for labels in ["null", "{}", r#"{"kubernetes.io/service-name":""}"#, r#"{"a":"b"}"#] {
        let json = format!(
            r#"{{"metadata":{{"name":"a","namespace":"b","labels":{labels}}},"endpoints":null}}"#
        );
        assert_eq!(EndpointSlices::decode(&json).unwrap().1, Content::Nothing, "{labels}");
    }
}

#[test]
fn addresses_are_read_as_kubernetes_reads_them() {
    assert_eq!(parse_address("010.001.0.08"), Some(ip("10.1.0.8")));
    assert_eq!(parse_address("fd00::1"), Some(ip("fd00::1")));
    for bad in ["", "None", "1.2.3", "1.2.3.4.5", "1.2.3.256", "1.2.3.+4", "1.2.3.", "a.b.c.d"] {
        assert_eq!(parse_address(bad), None, "{bad:?}");
    }
}

#[test]
fn an_object_that_does_not_decode_keeps_its_page_and_its_name() {
    let page = format!(
        r#"{{"kind":"ServiceList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":[
        {SERVICE},
        {{"metadata":{{"name":"odd","namespace":"shop","resourceVersion":"8"}},"spec":{{"ports":"none"}}}},
        {{"metadata":{{"name":"new","namespace":"shop"}},"spec":{{"type":"Teleport"}}}}]}}"#
    );
    let list: Items = serde_json::from_str(&page).unwrap();
    assert_eq!(list.items.len(), 3);
    assert!(matches!(list.items[0].content, Content::Object(_)));
    assert_eq!(list.items[1].identity.key, ObjectKey::new("shop", "odd"));
    assert_eq!(list.items[1].identity.resource_version, "8");
    let Content::Undecodable(why) = &list.items[1].content else { panic!("it was decoded") };
    assert!(why.contains("invalid type: string \"none\""), "{why}");
    let Content::Undecodable(why) = &list.items[2].content else { panic!("it was decoded") };
    assert!(why.contains("spec.type: expected one of ClusterIP"), "{why}");
}

#[test]
fn an_object_without_a_name_fails_its_page() {
    let page =
        r#"{"metadata":{"resourceVersion":"9"},"items":[{"metadata":{"namespace":"shop"}}]}"#;
    let error = serde_json::from_str::<Items>(page).unwrap_err();
    assert!(error.to_string().starts_with("a Service without a name"), "{error}");
    assert!(!error.is_eof());
}

#[test]
fn l6_addresses_beyond_the_bound_are_left_out_and_reported_once() {
    let addresses: Vec<_> =
        (0..82_000).map(|n| format!("\"10.1.{}.{}\"", n / 256 % 256, n % 256)).collect();
    let json = format!(
        r#"{{"metadata":{{"name":"a","namespace":"b"}},"spec":{{"externalIPs":[{}]}}}}"#,
        addresses.join(",")
    );
    let service = service(&json);
    assert_eq!((service.external_ips.len(), service.left_out.len()), (wire::MAX_ADDRESSES, 1));
    assert_eq!(
        &*service.left_out[0],
        "spec.externalIPs: expected at most 1000 addresses, found 82000; those beyond are left out"
    );
}
