//! An instance for tests and measurements of the catalog sink, which know no Kubernetes.

use kube_consul::domain::consul::record::{CLUSTER_META, Check, Registration};

/// Instance `number` of cluster `c` in a namespace.
pub fn registration(namespace: &str, number: usize, check: Check) -> Registration {
    let meta = [(CLUSTER_META, "c"), ("external-k8s-ns", namespace)];
    let address = format!("10.0.{}.{}", number / 250, number % 250);
    Registration {
        id: format!("c_{namespace}_svc_http_{address}").into(),
        service: "svc".into(),
        namespace: namespace.into(),
        address: address.into(),
        port: 80,
        tags: vec![namespace.into()].into(),
        meta: meta.map(|(key, value)| (key.into(), value.into())).into(),
        weight: 1,
        check,
    }
}
