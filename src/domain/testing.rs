//! Short ways to make the inputs of tests.

use std::net::IpAddr;

use crate::domain::kube::object::{
    Endpoint, EndpointPort, EndpointSlice, Node, NodeAddressType, Protocol, Service, ServicePort,
    ServiceType,
};

/// A ClusterIP Service at 10.0.0.1 with one port `http` 80.
pub(crate) fn service() -> ServiceBuilder {
    ServiceBuilder(Service {
        uid: "uid-1".into(),
        created: 1,
        labels: [].into(),
        annotations: [].into(),
        kind: ServiceType::ClusterIp,
        cluster_ips: vec![ip("10.0.0.1")],
        external_ips: Vec::new(),
        external_name: None,
        load_balancer: Box::default(),
        ports: vec![port("http", 80)],
        publish_not_ready: false,
        external_traffic_local: false,
        namespace_selected: true,
        left_out: [].into(),
    })
}

pub(crate) struct ServiceBuilder(Service);

impl ServiceBuilder {
    pub(crate) fn annotations(mut self, pairs: &[(&str, &str)]) -> Self {
        self.0
            .annotations
            .extend(pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())));
        self
    }

    pub(crate) fn with(mut self, change: impl FnOnce(&mut Service)) -> Self {
        change(&mut self.0);
        self
    }

    pub(crate) fn build(self) -> Service {
        self.0
    }
}

/// A Service port; an empty name is none.
pub(crate) fn port(name: &str, number: u16) -> ServicePort {
    ServicePort {
        name: (!name.is_empty()).then(|| name.into()),
        port: number,
        node_port: None,
        protocol: Protocol::Tcp,
    }
}

/// An endpoint.
pub(crate) fn endpoint(address: &str, ready: bool) -> Endpoint {
    Endpoint {
        address: ip(address),
        ready,
        draining: false,
        pod: None,
        hostname: None,
        node: None,
        zone: None,
    }
}

/// A slice of `service` with these ports and endpoints.
pub(crate) fn slice(
    service: &str,
    ports: &[(&str, u16)],
    endpoints: &[(&str, bool)],
) -> EndpointSlice {
    EndpointSlice {
        service: service.into(),
        ports: ports
            .iter()
            .map(|(name, number)| EndpointPort {
                name: (*name).into(),
                port: *number,
                protocol: Protocol::Tcp,
            })
            .collect(),
        endpoints: endpoints.iter().map(|(address, ready)| endpoint(address, *ready)).collect(),
        left_out: [].into(),
    }
}

/// A node with these internal addresses.
pub(crate) fn node(addresses: &[&str], ready: bool) -> Node {
    Node {
        addresses: addresses.iter().map(|it| (NodeAddressType::Internal, ip(it))).collect(),
        ready,
        excluded: false,
        zone: None,
        left_out: [].into(),
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().expect("the test's address is one")
}
