//! Objects with the fields that matter here.

use anyhow::Result;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{Bridge, Fixture};

impl Fixture {
    /// A bridge with these flags that is ready.
    pub async fn bridge_with(&self, flags: &[&str]) -> Result<Bridge> {
        let bridge = Bridge::start(self.command().await?.args(flags)).await?;
        bridge.wait_ready().await?;
        Ok(bridge)
    }

    /// A Service with these annotations and this spec.
    pub async fn service(&self, name: &str, annotations: Value, spec: Value) -> Result<Service> {
        let metadata = json!({"name": name, "annotations": annotations});
        let object = json!({"metadata": metadata, "spec": spec});
        self.kubernetes.create(&self.namespace, object).await
    }

    /// Creates or replaces a slice `<service>-<number>` with these ports and endpoints.
    pub async fn slice(
        &self,
        service: &str,
        number: u8,
        ports: Value,
        endpoints: Value,
    ) -> Result<()> {
        self.slice_of(service, number, "IPv4", ports, endpoints).await
    }

    /// The same with addresses of this type.
    pub async fn slice_of(
        &self,
        service: &str,
        number: u8,
        kind: &str,
        ports: Value,
        endpoints: Value,
    ) -> Result<()> {
        let name = format!("{service}-{number}");
        let labels = json!({"kubernetes.io/service-name": service});
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": labels},
            "addressType": kind, "endpoints": endpoints, "ports": ports,
        });
        let api: Api<EndpointSlice> = Api::namespaced(self.kubernetes.client()?, &self.namespace);
        let patch = PatchParams::apply("kube-consul-tests").force();
        api.patch(&name, &patch, &Patch::Apply(object)).await?;
        Ok(())
    }
}

/// One endpoint.
pub fn endpoint(address: &str, ready: bool) -> Value {
    json!({"addresses": [address], "conditions": {"ready": ready}})
}

/// The port `http`, TCP.
pub fn http(number: u16) -> Value {
    json!([{"name": "http", "port": number, "protocol": "TCP"}])
}

/// The spec of a headless Service with these ports.
pub fn headless(ports: &Value) -> Value {
    json!({"clusterIP": "None", "ports": ports})
}
