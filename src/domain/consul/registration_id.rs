//! The IDs of what a bridge registers: services, their checks, the sentinel.

use crate::domain::kube::names::{ClusterName, ObjectKey};

/// `<cluster>_<namespace>_<service>_<port>_<address>`, and for an endpoint, which is an address and
/// a port, `<cluster>_<namespace>_<service>_<port>_<number>_<address>`: readable, and injective,
/// because `_` stands in none of the parts, which are DNS labels, numbers and addresses.
pub fn registration_id(
    cluster: &ClusterName,
    service: &ObjectKey,
    port: &str,
    number: Option<u16>,
    address: &str,
) -> Box<str> {
    // Joined rather than formatted, which takes ten times as long: each plan makes all of a Service's.
    let number = number.map(|number| number.to_string());
    let service = [cluster.as_str(), &service.namespace, &service.name, port];
    let parts = service.into_iter().chain(number.as_deref()).chain([address]);
    parts.collect::<Vec<_>>().join("_").into()
}

/// The Service that a registration of this ID belongs to, if the ID is one of `cluster`'s.
pub fn service_of_id(cluster: &ClusterName, id: &str) -> Option<ObjectKey> {
    let mut parts = id.splitn(5, '_');
    if parts.next()? != cluster.as_str() {
        return None;
    }
    let (namespace, name) = (parts.next()?, parts.next()?);
    let (_port, _address) = (parts.next()?, parts.next()?);
    (!namespace.is_empty() && !name.is_empty()).then(|| ObjectKey::new(namespace, name))
}

/// What a Service's ID says beyond its Service, `<port>_<address>` or
/// `<port>_<number>_<address>`; `None` if it is not one of the Service's.
pub fn local_part<'i>(cluster: &ClusterName, service: &ObjectKey, id: &'i str) -> Option<&'i str> {
    [cluster.as_str(), &service.namespace, &service.name]
        .into_iter()
        .try_fold(id, |rest, part| rest.strip_prefix(part)?.strip_prefix('_'))
}

/// Whether the registration of this ID is that of an endpoint, of which it has the number.
pub fn is_of_endpoint(id: &str) -> bool {
    id.splitn(6, '_').count() == 6
}

/// ID of the readiness check of the registration with this ID.
pub fn readiness_check_id(service_id: &str) -> String {
    format!("{service_id}:readiness")
}

/// ID of the cluster's sentinel. No registration's ID begins with an underscore: those begin
/// with the cluster's name.
pub fn sentinel_id(cluster: &ClusterName) -> String {
    format!("_kube-consul_{cluster}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?";
    const ADDRESS: &str = "[0-9.]{1,9}|[0-9a-f:]{2,9}|[a-z]([a-z0-9.-]{0,6}[a-z0-9])?";

    proptest! {
        #[test]
        fn ids_are_injective(
            a in (LABEL, LABEL, LABEL, LABEL, any::<Option<u16>>(), ADDRESS),
            b in (LABEL, LABEL, LABEL, LABEL, any::<Option<u16>>(), ADDRESS),
        ) {
            type Parts = (String, String, String, String, Option<u16>, String);
            let id = |(cluster, namespace, service, port, number, address): &Parts| {
                let key = ObjectKey::new(&**namespace, &**service);
                registration_id(&cluster.parse().unwrap(), &key, port, *number, address)
            };
            prop_assert_eq!(id(&a) == id(&b), a == b);
        }

        #[test]
        fn an_id_tells_its_service(cluster in LABEL, namespace in LABEL, service in LABEL, port in LABEL, number: u16, address in ADDRESS) {
            let cluster: ClusterName = cluster.parse().unwrap();
            let key = ObjectKey::new(namespace, service);
            for (number, local) in [
                (None, format!("{port}_{address}")),
                (Some(number), format!("{port}_{number}_{address}")),
            ] {
                let id = registration_id(&cluster, &key, &port, number, &address);
                prop_assert_eq!(local_part(&cluster, &key, &id), Some(&*local));
                prop_assert_eq!(service_of_id(&cluster, &id), Some(key.clone()));
            }
        }
    }

    #[test]
    fn other_ids_belong_to_no_service() {
        let cluster: ClusterName = "eu".parse().unwrap();
        for id in ["", "web", "eu_a_b_c", "us_a_b_c_d", "_kube-consul_eu", "eu___c_d"] {
            assert_eq!(service_of_id(&cluster, id), None, "{id}");
        }
    }
}
