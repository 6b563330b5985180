//! `v1` Endpoints, for API servers without `discovery.k8s.io/v1` (before Kubernetes 1.21).
//!
//! An Endpoints object has subsets, each with its own ports, so each subset is an EndpointSlice of
//! its own: the first under the object's name, the others under `<name>/<index>`, which no object
//! can have. The object bears its Service's name.

use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Endpoint, EndpointSlice, Kind, SeenObject};
use crate::kubernetes::pool::Pool;
use crate::kubernetes::slim::{
    Content, Identity, LeftOut, Watched, endpoint_ports, hostname, identity, parse_address,
};
use crate::kubernetes::wire;

/// `v1` Endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Endpoints;

/// Under what key the subset `index` of the object `key` goes.
pub fn subset_key(key: &ObjectKey, index: usize) -> ObjectKey {
    if index == 0 {
        key.clone()
    } else {
        ObjectKey::new(key.namespace.clone(), format!("{}/{index}", key.name))
    }
}

impl Watched for Endpoints {
    type Object = EndpointSlice;
    type Seen = SeenObject;
    const KIND: Kind = Kind::EndpointSlice;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Endpoints";
    const PLURAL: &'static str = "endpoints";
    const GRANTED_BY: &'static str = "manifests/optional/endpoints-rbac.yaml";

    fn decode(json: &str) -> Result<(Identity, Content<EndpointSlice>), serde_json::Error> {
        let object: wire::Endpoints<'_> = serde_json::from_str(json)?;
        let metadata = object.metadata;
        let identity = identity(metadata.namespace, metadata.name, metadata.resource_version);
        let service = &identity.key.name;
        let is_truncated = metadata.annotations.unwrap_or_default().0;
        let subsets = object
            .subsets
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(|(index, subset)| slice(service, index, subset, is_truncated && index == 0))
            .collect();
        Ok((identity, Content::Parts(subsets)))
    }

    fn seen(key: ObjectKey, slice: EndpointSlice) -> SeenObject {
        SeenObject::EndpointSlice(key, slice)
    }

    fn share(slice: &mut EndpointSlice, names: &mut Pool) {
        names.share(slice);
    }
}

fn slice(
    service: &str,
    index: usize,
    subset: wire::Subset<'_>,
    is_truncated: bool,
) -> EndpointSlice {
    let mut left_out = LeftOut::default();
    if is_truncated {
        left_out.tell(|| {
            "the Endpoints object holds 1,000 of the Service's addresses and lacks the others \
             (annotation endpoints.kubernetes.io/over-capacity); they are not registered: \
             Kubernetes 1.21 and newer have EndpointSlices, which hold all"
                .to_owned()
        });
    }
    let parent = format!("subsets[{index}].");
    let ports = endpoint_ports(subset.ports.unwrap_or_default(), &parent, &mut left_out);
    let ready = subset.addresses.unwrap_or_default().into_iter().map(|it| (it, true));
    let unready = subset.not_ready_addresses.unwrap_or_default().into_iter().map(|it| (it, false));
    let endpoints = ready
        .chain(unready)
        .filter_map(|(endpoint, ready)| {
            let Some(address) = parse_address(&endpoint.ip.0) else {
                left_out.address(|| format!("an address of subsets[{index}]"), &endpoint.ip.0);
                return None;
            };
            Some(Endpoint {
                address,
                ready,
                // Endpoints do not tell who terminates.
                draining: false,
                hostname: hostname(endpoint.hostname),
                pod: endpoint.target_ref.and_then(wire::TargetRef::pod),
                node: endpoint.node_name.map(|text| text.0.into()),
                zone: None,
            })
        })
        .collect();
    EndpointSlice { service: service.into(), ports, endpoints, left_out: left_out.into_box() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subset_is_a_slice_with_its_own_ports() {
        let json = r#"{"metadata":{"name":"web","namespace":"shop","resourceVersion":"7"},"subsets":[
            {"addresses":[{"ip":"10.0.0.1","nodeName":"n1","targetRef":{"kind":"Pod","name":"web-0"}}],
             "notReadyAddresses":[{"ip":"10.0.0.2"}],
             "ports":[{"name":"http","port":8080},{"name":"bad","port":0}]},
            {"addresses":[{"ip":"nonsense"}],"ports":[{"port":9090,"protocol":"UDP"}]}]}"#;
        let (identity, Content::Parts(slices)) = Endpoints::decode(json).unwrap() else {
            panic!("not subsets")
        };
        assert_eq!(identity.resource_version, "7");
        assert_eq!(slices.len(), 2);
        assert_eq!(&*slices[0].service, "web");
        let seen: Vec<_> = slices[0].endpoints.iter().map(|it| (it.address, it.ready)).collect();
        assert_eq!(
            seen,
            [("10.0.0.1".parse().unwrap(), true), ("10.0.0.2".parse().unwrap(), false)]
        );
        assert_eq!(slices[0].endpoints[0].pod.as_deref(), Some("web-0"));
        assert_eq!(slices[0].ports.len(), 1);
        assert_eq!(
            &*slices[0].left_out[0],
            "subsets[0].ports[1].port: expected 1 to 65535, found 0; it is left out"
        );
        let port = &slices[1].ports[0];
        assert_eq!((&*port.name, port.port, port.protocol.as_str()), ("", 9090, "UDP"));
        assert!(slices[1].endpoints.is_empty());
        assert_eq!(slices[1].left_out.len(), 1);
    }

    #[test]
    fn o13_an_object_that_lacks_addresses_says_so_once() {
        let json = r#"{"metadata":{"name":"web","namespace":"shop","annotations":{"a":"b",
            "endpoints.kubernetes.io/over-capacity":"truncated"}},"subsets":[
            {"addresses":[{"ip":"10.0.0.1","hostname":"web-0"}],"ports":[{"port":80}]},
            {"addresses":[{"ip":"10.0.0.2"}],"ports":[{"port":81}]}]}"#;
        let left_out = |json: &str| -> Vec<usize> {
            let (_, Content::Parts(slices)) = Endpoints::decode(json).unwrap() else {
                panic!("not subsets")
            };
            assert_eq!(slices[0].endpoints[0].hostname.as_deref(), Some("web-0"));
            slices.iter().map(|slice| slice.left_out.len()).collect()
        };
        assert_eq!(left_out(json), [1, 0]);
        assert_eq!(left_out(&json.replace("truncated", "warning")), [0, 0]);
    }

    #[test]
    fn keys_of_subsets_cannot_be_those_of_objects() {
        let key = ObjectKey::new("shop", "web");
        assert_eq!(subset_key(&key, 0), key);
        assert_eq!(subset_key(&key, 2).to_string(), "shop/web/2");
    }

    #[test]
    fn an_object_without_subsets_has_no_slices() {
        let json = r#"{"metadata":{"name":"web","namespace":"shop"},"subsets":null}"#;
        assert_eq!(Endpoints::decode(json).unwrap().1, Content::Parts(Vec::new()));
    }
}
