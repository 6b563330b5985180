//! What `import` reads and writes: Services that ask for it, and their EndpointSlices.
//!
//! Slices are written by server-side apply under our own field manager and without force: a field
//! that somebody else owns is a conflict, which is told, and never overwritten.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Service as ServiceObject};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ManagedFieldsEntry, ObjectMeta};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Client, Error as KubeError};
use serde_json::{Value, json};

use crate::domain::backoff::respected;
use crate::domain::import::create::Wanted;
use crate::domain::import::layout::{Slice, SlicePort};
use crate::domain::import::object::{Form, MANAGED_BY, OwnedSlice, Seen, Service, Version};
use crate::domain::import::source::{
    CONSUL8S_NAME, CONSUL8S_SOURCE, CREATED, DATACENTERS, FAILOVER, FILTER, HEALTH, IMPORT, KEEP,
    LAST_RESORT, MAX_TEXT, OF_CONSUL_K8S, Pairs, REGISTRATION, SERVICE_SYNC, TAGS,
};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::kubernetes::errors::failure;
use crate::kubernetes::slim::{Content, Identity, Undecodable, Watched};

/// Owner of the fields that we set.
const FIELD_MANAGER: &str = "kube-consul-import";
/// Label of an EndpointSlice that names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Label of an EndpointSlice that names who manages it.
const MANAGED_BY_LABEL: &str = "endpointslice.kubernetes.io/managed-by";
/// Annotations that are read.
const ANNOTATIONS: [&str; 10] = [
    IMPORT,
    DATACENTERS,
    TAGS,
    FILTER,
    HEALTH,
    LAST_RESORT,
    KEEP,
    FAILOVER,
    CONSUL8S_NAME,
    SERVICE_SYNC,
];
/// As much of each as is kept: a character more than the longest that counts, so that it is told as
/// too long.
/// An object may have 256 KiB of annotations, and anybody may make many objects.
const MAX_ANNOTATION: usize = MAX_TEXT + 4;
/// Labels that are read.
const LABELS: [&str; 4] = [CONSUL8S_SOURCE, REGISTRATION, CREATED.0, OF_CONSUL_K8S.0];
/// The file that grants the rights.
const GRANTED_BY: &str = "manifests/import/rbac.yaml";
/// The file that grants the rights to make Services.
const CREATE_GRANTED_BY: &str = "manifests/import-create/rbac.yaml";
/// Kinds, as people call them.
const SLICE: &str = "EndpointSlice";
const SERVICE: &str = "Service";
const ENDPOINTS: &str = "Endpoints";
/// What the API server calls the client of consul8s: its user agent up to the slash.
const CONSUL8S_MANAGER: &str = "python-requests";

/// Services, as far as an import reads them.
#[derive(Clone, Copy, Debug)]
pub struct ImportServices;

/// EndpointSlices of all Services: ours, and others of which only the manager matters.
#[derive(Clone, Copy, Debug)]
pub struct ImportSlices;

/// Why an object was not written or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// A right is missing.
    #[error(
        "expected the right to {verb} {}, found none ({cause}); {} grants it",
        resource(kind),
        if *kind == SERVICE { CREATE_GRANTED_BY } else { GRANTED_BY },
    )]
    Denied {
        /// `create`, `patch` or `delete`.
        verb: &'static str,
        /// The kind of the object.
        kind: &'static str,
        /// The API server's words.
        cause: String,
    },
    /// Another manager owns fields of it, or it changed in the meantime.
    #[error("somebody else writes {kind} {name}: {cause}")]
    Conflict {
        /// The kind of the object.
        kind: &'static str,
        /// Its name.
        name: Box<str>,
        /// The API server's words, which name the manager and the fields.
        cause: String,
    },
    /// It failed for another reason.
    #[error("cannot {verb} {kind} {name}: {cause}")]
    Failed {
        /// `create`, `patch` or `delete`.
        verb: &'static str,
        /// The kind of the object.
        kind: &'static str,
        /// Its name.
        name: Box<str>,
        /// Why.
        cause: String,
        /// How long the API server asks to wait.
        retry_after: Option<Duration>,
    },
}

// === impl Watched ===

impl Watched for ImportServices {
    type Object = Service;
    type Seen = Seen;
    const KIND: Kind = Kind::Service;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Service";
    const PLURAL: &'static str = "services";
    const GRANTED_BY: &'static str = GRANTED_BY;

    fn decode(json: &str) -> Result<(Identity, Content<Service>), serde_json::Error> {
        let object: ServiceObject = serde_json::from_str(json)?;
        let identity = Identity {
            key: ObjectKey::new(
                object.metadata.namespace.clone().unwrap_or_default(),
                object.metadata.name.clone().unwrap_or_default(),
            ),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
        };
        Ok((identity, Content::Object(read_service(object))))
    }

    fn seen(key: ObjectKey, object: Service) -> Seen {
        Seen::Service(key, object)
    }
}

/// What an import has to know of a Service.
fn read_service(object: ServiceObject) -> Service {
    let (metadata, spec) = (object.metadata, object.spec.unwrap_or_default());
    let kept = |all: Option<BTreeMap<String, String>>, keep: fn(&str) -> bool| -> Pairs {
        let kept = all.unwrap_or_default().into_iter().filter(|(key, _)| keep(key));
        kept.map(|(key, value)| (key.into(), value.into())).collect()
    };
    let cut = |(key, mut value): (Box<str>, Box<str>)| {
        if value.len() > MAX_ANNOTATION {
            value = value[..value.floor_char_boundary(MAX_ANNOTATION)].into();
        }
        (key, value)
    };
    let port = |port: k8s_openapi::api::core::v1::ServicePort| {
        let protocol = port.protocol.unwrap_or_else(|| "TCP".to_owned());
        (port.name.unwrap_or_default().into(), protocol.into())
    };
    let ports = spec.ports.unwrap_or_default();
    Service {
        uid: metadata.uid.unwrap_or_default().into(),
        labels: kept(metadata.labels, |key| LABELS.contains(&key)),
        annotations: kept(metadata.annotations, |key| ANNOTATIONS.contains(&key))
            .into_iter()
            .map(cut)
            .collect(),
        port: ports.first().and_then(|it| it.port.try_into().ok()),
        ports: ports.into_iter().map(port).collect(),
        has_selector: spec.selector.is_some_and(|selector| !selector.is_empty()),
        form: match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => {
                Form::ExternalName(spec.external_name.unwrap_or_default().into())
            }
            (_, Some("None")) => Form::Headless,
            _ => Form::ClusterIp,
        },
        is_going: metadata.deletion_timestamp.is_some(),
        version: Version(metadata.resource_version.unwrap_or_default().into()),
    }
}

impl Watched for ImportSlices {
    type Object = OwnedSlice;
    type Seen = Seen;
    const KIND: Kind = Kind::EndpointSlice;
    const GROUP: &'static str = "discovery.k8s.io";
    const NAME: &'static str = "EndpointSlice";
    const PLURAL: &'static str = "endpointslices";
    const GRANTED_BY: &'static str = GRANTED_BY;

    fn decode(json: &str) -> Result<(Identity, Content<OwnedSlice>), serde_json::Error> {
        let object: EndpointSlice = serde_json::from_str(json)?;
        let identity = Identity {
            key: key_of(&object),
            resource_version: object.metadata.resource_version.clone().unwrap_or_default(),
        };
        Ok((identity, owned(object).map_or(Content::Nothing, Content::Object)))
    }

    fn seen(key: ObjectKey, object: OwnedSlice) -> Seen {
        Seen::Slice(key, object)
    }
}

// === impl Undecodable ===

impl Undecodable for Seen {
    fn undecodable(kind: Kind, key: ObjectKey, why: String) -> Self {
        match kind {
            Kind::EndpointSlice => Seen::UndecodableSlice(key),
            _ => Seen::UndecodableService(key, why),
        }
    }
}

fn key_of(object: &EndpointSlice) -> ObjectKey {
    let metadata = &object.metadata;
    ObjectKey::new(
        metadata.namespace.clone().unwrap_or_default(),
        metadata.name.clone().unwrap_or_default(),
    )
}

/// What an import has to know of a slice; none of one that belongs to no Service.
fn owned(object: EndpointSlice) -> Option<OwnedSlice> {
    let metadata = object.metadata;
    let mut labels = metadata.labels.unwrap_or_default();
    let service = labels.remove(SERVICE_NAME)?;
    let managed_by = labels.remove(MANAGED_BY_LABEL).unwrap_or_default();
    let mut slice = Slice {
        is_ipv6: object.address_type == "IPv6",
        ports: Vec::new(),
        endpoints: BTreeMap::new(),
    };
    let mut is_canonical = true;
    if managed_by == MANAGED_BY {
        for port in object.ports.unwrap_or_default() {
            let number = port.port.and_then(|number| u16::try_from(number).ok());
            is_canonical &= number.is_some() && port.app_protocol.is_none();
            slice.ports.push(SlicePort {
                name: port.name.unwrap_or_default().into(),
                protocol: port.protocol.unwrap_or_else(|| "TCP".to_owned()).into(),
                port: number.unwrap_or(0),
            });
        }
        slice.ports.sort();
        for endpoint in object.endpoints.unwrap_or_default() {
            let conditions = endpoint.conditions.unwrap_or_default();
            let ready = conditions.ready.unwrap_or(true);
            is_canonical &= endpoint.addresses.len() == 1
                && conditions.serving == Some(ready)
                && conditions.terminating == Some(false);
            for address in endpoint.addresses.iter().filter_map(|it| it.parse().ok()) {
                slice.endpoints.insert(address, ready);
            }
        }
    }
    let owner = metadata.owner_references.unwrap_or_default();
    let owner = owner.into_iter().find(|owner| owner.kind == "Service");
    Some(OwnedSlice {
        service: service.into(),
        managed_by: managed_by.into(),
        owner: owner.map(|owner| owner.uid).unwrap_or_default().into(),
        uid: metadata.uid.unwrap_or_default().into(),
        version: Version(metadata.resource_version.unwrap_or_default().into()),
        slice,
        is_canonical,
    })
}

/// Writes a slice of a Service with this uid, and gives it as the API server has it now.
pub async fn write_slice(
    client: &Client,
    service: &ObjectKey,
    uid: &str,
    name: &str,
    slice: &Slice,
) -> Result<OwnedSlice, WriteError> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &service.namespace);
    let body = Patch::Apply(manifest(service, uid, name, slice));
    let written = api.patch(name, &PatchParams::apply(FIELD_MANAGER), &body).await;
    let written = written.map_err(|error| WriteError::of("patch", SLICE, name, &error))?;
    owned(written).filter(|it| it.is_canonical && it.slice == *slice).ok_or_else(|| {
        WriteError::Failed {
            verb: "patch",
            kind: SLICE,
            name: name.into(),
            cause: "expected it to be kept as it was sent, found it changed: an admission webhook \
                    may do that; exclude EndpointSlices from it"
                .to_owned(),
            retry_after: None,
        }
    })
}

/// A slice as it is applied. No owner's deletion is blocked by it: that would want the right to
/// update the Service's finalizers where the admission plugin
/// `OwnerReferencesPermissionEnforcement` is on. No label or annotation of the Service is copied:
/// tools that prune what carries their marks would delete the slice.
fn manifest(service: &ObjectKey, uid: &str, name: &str, slice: &Slice) -> Value {
    let endpoint = |(address, ready): (&std::net::IpAddr, &bool)| {
        json!({
            "addresses": [address],
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
        })
    };
    let port = |it: &SlicePort| json!({"name": it.name, "protocol": it.protocol, "port": it.port});
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": service.namespace,
            "labels": {SERVICE_NAME: service.name, MANAGED_BY_LABEL: MANAGED_BY},
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": service.name, "uid": uid,
                "controller": true,
            }],
        },
        "addressType": if slice.is_ipv6 { "IPv6" } else { "IPv4" },
        "ports": slice.ports.iter().map(port).collect::<Vec<_>>(),
        "endpoints": slice.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// Deletes a slice, if it still has this uid. One that is gone is a success.
pub async fn delete_slice(client: &Client, key: &ObjectKey, uid: &str) -> Result<(), WriteError> {
    let api: Api<EndpointSlice> = Api::namespaced(client.clone(), &key.namespace);
    match api.delete(&key.name, &of_uid(uid)).await {
        Ok(_) => Ok(()),
        // Another one of that name, or none: the one that was meant is gone.
        Err(KubeError::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(WriteError::of("delete", SLICE, &key.name, &error)),
    }
}

/// Deletes the Endpoints of a Service if they can be shown to be those that consul8s wrote. Gives
/// whether they were.
pub async fn delete_old_endpoints(client: &Client, key: &ObjectKey) -> Result<bool, WriteError> {
    let api: Api<Endpoints> = Api::namespaced(client.clone(), &key.namespace);
    let error = |verb| move |error: KubeError| WriteError::of(verb, ENDPOINTS, &key.name, &error);
    let Some(found) = api.get_opt(&key.name).await.map_err(error("get"))? else {
        return Ok(false);
    };
    if !is_of_consul8s(&found.metadata) {
        return Ok(false);
    }
    let preconditions = Preconditions {
        uid: found.metadata.uid,
        resource_version: found.metadata.resource_version,
    };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    api.delete(&key.name, &params).await.map_err(error("delete"))?;
    Ok(true)
}

/// Whether consul8s wrote it, and nobody else: it sets the label `name`, and the API server calls its
/// Python client by its user agent. What no manager is known of may be anybody's.
fn is_of_consul8s(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    let is_named = labels.and_then(|it| it.get("name")) == metadata.name.as_ref();
    let managers = metadata.managed_fields.as_deref().unwrap_or_default();
    let is_its = |it: &ManagedFieldsEntry| it.manager.as_deref() == Some(CONSUL8S_MANAGER);
    is_named && !managers.is_empty() && managers.iter().all(is_its)
}

/// Makes a Service, unless there is one of this name. Not by server-side apply, which would change
/// one that is there.
pub async fn create_service(
    client: &Client,
    key: &ObjectKey,
    wanted: &Wanted,
) -> Result<Service, WriteError> {
    let api: Api<ServiceObject> = Api::namespaced(client.clone(), &key.namespace);
    let mut object = service_manifest(wanted);
    object["metadata"]["name"] = json!(key.name);
    let object = serde_json::from_value(object).map_err(|error| WriteError::Failed {
        verb: "create",
        kind: SERVICE,
        name: key.name.clone(),
        cause: error.to_string(),
        retry_after: None,
    })?;
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    let created = api.create(&params, &object).await;
    created.map(read_service).map_err(|error| WriteError::of("create", SERVICE, &key.name, &error))
}

/// Changes a Service by one write, if it still is the one of this uid at this version.
pub async fn update_service(
    client: &Client,
    key: &ObjectKey,
    (uid, version): (&str, &Version),
    wanted: &Wanted,
) -> Result<Service, WriteError> {
    let api: Api<ServiceObject> = Api::namespaced(client.clone(), &key.namespace);
    let mut patch = service_manifest(wanted);
    patch["metadata"]["uid"] = json!(uid);
    patch["metadata"]["resourceVersion"] = json!(version.0);
    // Or consul-k8s would go on changing it.
    patch["metadata"]["labels"][OF_CONSUL_K8S.0] = Value::Null;
    let params =
        PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
    let updated = api.patch(&key.name, &params, &Patch::Merge(patch)).await;
    updated.map(read_service).map_err(|error| WriteError::of("patch", SERVICE, &key.name, &error))
}

/// Deletes a Service, if it still is the one of this uid at this version. One that is gone is a
/// success.
pub async fn delete_service(
    client: &Client,
    key: &ObjectKey,
    (uid, version): (&str, &Version),
) -> Result<(), WriteError> {
    let api: Api<ServiceObject> = Api::namespaced(client.clone(), &key.namespace);
    let preconditions =
        Preconditions { uid: Some(uid.to_owned()), resource_version: Some(version.0.to_string()) };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&key.name, &params).await {
        Ok(_) => Ok(()),
        Err(KubeError::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(WriteError::of("delete", SERVICE, &key.name, &error)),
    }
}

/// A Service as a merge patch makes it.
fn service_manifest(wanted: &Wanted) -> Value {
    let (of_type, cluster_ip, external_name) = match &wanted.form {
        Form::ExternalName(name) => ("ExternalName", Value::Null, json!(name)),
        Form::Headless => ("ClusterIP", json!("None"), Value::Null),
        Form::ClusterIp => ("ClusterIP", Value::Null, Value::Null),
    };
    let port = |(port, protocol): &(u16, Box<str>)| json!([{"port": port, "protocol": protocol}]);
    let mut spec = json!({
        "type": of_type,
        "externalName": external_name,
        "ports": wanted.port.as_ref().map(port),
    });
    if wanted.form != Form::ClusterIp {
        // One that is there stays; of another type there is none.
        spec["clusterIP"] = cluster_ip;
    }
    json!({
        "metadata": {"labels": {CREATED.0: CREATED.1}, "annotations": wanted.annotations},
        "spec": spec,
    })
}

fn of_uid(uid: &str) -> DeleteParams {
    let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
    DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() }
}

/// The resource, as RBAC rules name it.
fn resource(kind: &str) -> &'static str {
    match kind {
        SERVICE => "services",
        ENDPOINTS => "endpoints",
        _ => "endpointslices",
    }
}

// === impl WriteError ===

impl WriteError {
    fn of(verb: &'static str, kind: &'static str, name: &str, error: &KubeError) -> Self {
        let (name, cause) = (name.into(), failure(error));
        match error {
            KubeError::Api(status) if status.code == 403 => {
                WriteError::Denied { verb, kind, cause }
            }
            KubeError::Api(status) if status.code == 409 => {
                WriteError::Conflict { kind, name, cause }
            }
            KubeError::Api(status) => {
                let seconds = status.details.as_ref().map(|it| it.retry_after_seconds);
                let retry_after = seconds.filter(|it| *it > 0).map(|it| respected(it.into()));
                WriteError::Failed { verb, kind, name, cause, retry_after }
            }
            _ => WriteError::Failed { verb, kind, name, cause, retry_after: None },
        }
    }

    /// How long the API server asks to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            WriteError::Failed { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::import::source::Import;

    fn slice() -> Slice {
        Slice {
            is_ipv6: false,
            ports: vec![SlicePort { name: "pg".into(), protocol: "TCP".into(), port: 5432 }],
            endpoints: [("10.0.0.1".parse().unwrap(), true), ("10.0.0.2".parse().unwrap(), false)]
                .into(),
        }
    }

    #[test]
    fn what_is_written_is_read_back_as_it_was() {
        let mut written = manifest(&ObjectKey::new("shop", "db"), "u1", "db-1", &slice());
        written["metadata"]["uid"] = json!("u2");
        let (identity, content) = ImportSlices::decode(&written.to_string()).unwrap();
        assert_eq!(identity.key, ObjectKey::new("shop", "db-1"));
        let Content::Object(read) = content else { panic!("{content:?}") };
        assert_eq!((&*read.service, &*read.owner, &*read.uid), ("db", "u1", "u2"));
        assert_eq!((read.slice, read.is_canonical), (slice(), true));
    }

    #[test]
    fn a_broken_api_server_is_waited_for_as_it_asks_and_a_minute_at_most() {
        let error = |code, seconds| {
            let details = json!({"retryAfterSeconds": seconds});
            let status = json!({"code": code, "message": "no", "details": details});
            let error = KubeError::Api(serde_json::from_value(status).unwrap());
            WriteError::of("patch", SLICE, "db-1", &error)
        };
        for (code, seconds, wanted) in
            [(429, 3, Some(3)), (500, 1, Some(1)), (503, u32::MAX, Some(60)), (429, 0, None)]
        {
            let wanted = wanted.map(Duration::from_secs);
            assert_eq!(error(code, seconds).retry_after(), wanted, "{code} {seconds}");
        }
        assert!(matches!(error(409, 1), WriteError::Conflict { .. }));
        assert!(matches!(error(403, 1), WriteError::Denied { .. }));
    }

    #[test]
    fn of_annotations_only_those_are_kept_that_are_read_and_no_more_of_them_than_counts() {
        let long = "ä".repeat(100_000);
        let object = json!({"metadata": {"name": "db", "namespace": "shop", "annotations": {
            IMPORT: "pg", FILTER: long, FAILOVER: "a,b", "kube-consul.io/import-other": long,
            "kubectl.kubernetes.io/last-applied-configuration": long,
        }}});
        let Content::Object(read) = ImportServices::decode(&object.to_string()).unwrap().1 else {
            panic!("no Service")
        };
        let kept: usize = read.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(read.annotations.len() == 3 && kept < 5_000, "{kept} bytes");
        let (import, problems) = Import::of(&read.labels, &read.annotations);
        assert!(import.is_none() && problems[0].message.contains("at most 4096 bytes"));
    }

    #[test]
    fn i8_nothing_of_the_service_is_blocked_or_copied() {
        let written = manifest(&ObjectKey::new("shop", "db"), "u1", "db-1", &slice());
        let owner = &written["metadata"]["ownerReferences"][0];
        assert!(owner["blockOwnerDeletion"].is_null() && owner["controller"] == true);
        assert_eq!(written["metadata"]["labels"].as_object().unwrap().len(), 2);
        assert!(written["metadata"]["annotations"].is_null());
    }

    #[test]
    fn what_somebody_changed_is_seen() {
        let changed = |path: &str, value: Value| {
            let mut written = manifest(&ObjectKey::new("shop", "db"), "u1", "db-1", &slice());
            *written.pointer_mut(path).unwrap() = value;
            let Content::Object(read) = ImportSlices::decode(&written.to_string()).unwrap().1
            else {
                panic!("no slice")
            };
            (read.slice == slice(), read.is_canonical)
        };
        assert_eq!(changed("/endpoints/0/conditions/serving", json!(false)), (true, false));
        assert!(!changed("/endpoints/0/conditions/ready", json!(false)).0);
        assert!(!changed("/endpoints/0/addresses", json!(["10.0.0.1", "10.0.0.9"])).1);
        assert!(!changed("/ports/0/port", Value::Null).1);
    }
}
