//! Services and their endpoints, one or many.

use anyhow::{Context as _, Result};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube_consul_stack::eventually;
use serde_json::{Value, json};

use super::DEADLINE;

/// Requests at a time when many objects are made.
const AT_A_TIME: usize = 16;

/// The objects of one namespace.
#[derive(Clone)]
pub struct Objects {
    pub namespace: String,
    services: Api<Service>,
    slices: Api<EndpointSlice>,
}

/// The endpoints of one Service, ready or not.
pub type Addresses = (Vec<String>, bool);

// === impl Objects ===

impl Objects {
    pub fn new(client: &kube::Client, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            services: Api::namespaced(client.clone(), namespace),
            slices: Api::namespaced(client.clone(), namespace),
        }
    }

    /// Creates a Service without a selector after its slice, so that it is first seen with its
    /// endpoints.
    pub async fn create(&self, name: &str, addresses: &Addresses, spec: Value) -> Result<Service> {
        let slice = serde_json::from_value(slice(name, addresses))?;
        self.slices.create(&PostParams::default(), &slice).await?;
        self.create_service(name, spec).await
    }

    /// Creates a Service whose slice is there; `spec` is what is special about it.
    pub async fn create_service(&self, name: &str, spec: Value) -> Result<Service> {
        let mut object = service(name);
        for (key, value) in spec.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        let object = serde_json::from_value(object)?;
        let created = self.services.create(&PostParams::default(), &object).await;
        created.with_context(|| format!("create Service {name}"))
    }

    /// Creates a Service at the address that it had before, once that is free.
    pub async fn create_at(&self, name: &str, address: &str) -> Result<()> {
        eventually(DEADLINE, || self.create_service(name, json!({"clusterIP": address}))).await?;
        Ok(())
    }

    /// Creates many Services, each with a `ClusterIP` and one ready endpoint.
    pub async fn create_all(&self, names: &[String]) -> Result<()> {
        let addresses = &(vec!["10.1.0.1".to_owned()], true);
        for_each(
            names,
            |name| async move { self.create(name, addresses, Value::Null).await.map(drop) },
        )
        .await
    }

    /// Changes whether the endpoints of a Service are ready.
    pub async fn set_ready(&self, name: &str, addresses: &Addresses) -> Result<()> {
        self.set_endpoints(name, &endpoints(addresses)).await
    }

    pub async fn set_endpoints(&self, name: &str, endpoints: &[Value]) -> Result<()> {
        let patch = json!({"endpoints": endpoints});
        self.slices.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Sets the annotation of a Service that becomes one of its tags.
    pub async fn tag(&self, name: &str, tag: &str) -> Result<()> {
        self.annotate(name, json!({"kube-consul.io/service-tags": tag})).await
    }

    /// Sets annotations of a Service; null removes one.
    pub async fn annotate(&self, name: &str, annotations: Value) -> Result<()> {
        self.patch(name, &json!({"metadata": {"annotations": annotations}})).await
    }

    /// Changes a Service by a merge patch.
    pub async fn patch(&self, name: &str, patch: &Value) -> Result<()> {
        self.services.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Deletes the namespace with all that is in it, without waiting for it.
    pub async fn delete_namespace(&self, client: &kube::Client) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await?;
        Ok(())
    }

    pub async fn delete(&self, name: &str) -> Result<()> {
        self.services.delete(name, &DeleteParams::default()).await?;
        Ok(())
    }
}

/// A Service with port 80, as the API server takes it.
pub fn service(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80}]}})
}

/// Its `EndpointSlice`.
pub fn slice(name: &str, addresses: &Addresses) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": endpoints(addresses),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn endpoints((addresses, ready): &Addresses) -> Vec<Value> {
    let endpoint = |it| json!({"addresses": [it], "conditions": {"ready": ready}});
    addresses.iter().map(endpoint).collect()
}

/// Does something with each name, several at a time.
pub async fn for_each<'a, F>(names: &'a [String], each: impl FnMut(&'a String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    stream::iter(names.iter().map(each)).buffer_unordered(AT_A_TIME).try_collect().await
}

/// `<prefix>-000` and so on.
pub fn numbered(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number:03}")).collect()
}
