//! An import beside a Consul of its own, and what it makes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube_consul_stack::{ConsulOptions, Kubernetes, ProgramOptions, eventually};
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tokio::time::sleep;

use crate::support::{Bridge, DEADLINE, Fixture, InvariantMonitor, kube_consul, manifest};

/// The label of slices that are ours.
pub const OURS: &str = "endpointslice.kubernetes.io/managed-by=import.kube-consul.io";

/// A kubeconfig with the rights that are shipped for the import.
pub async fn shipped_kubeconfig() -> Result<&'static Path> {
    static SHARED: OnceCell<PathBuf> = OnceCell::const_new();
    let path = SHARED.get_or_try_init(|| async {
        let cluster = Kubernetes::shared().await?;
        cluster.apply_file(&manifest("import/namespace.yaml")).await?;
        cluster.apply_file(&manifest("import/rbac.yaml")).await?;
        let token = cluster.service_account_token("kube-consul", "kube-consul-import").await?;
        cluster.kubeconfig_for(&token)
    });
    Ok(path.await?)
}

/// An import in a namespace of its own.
pub struct Site {
    pub fixture: Fixture,
}

impl Site {
    pub async fn new(prefix: &str) -> Result<Self> {
        Self::with_consul(prefix, ConsulOptions::dev()).await
    }

    pub async fn with_consul(prefix: &str, options: ConsulOptions) -> Result<Self> {
        Ok(Self { fixture: Fixture::with_consul(prefix, options).await? })
    }

    /// `import` for the namespace, with the shipped rights.
    pub async fn command(&self) -> Result<ProgramOptions> {
        Ok(kube_consul()
            .args(["import", "--namespace", &self.fixture.namespace])
            .args([Path::new("--kubeconfig"), shipped_kubeconfig().await?])
            .env("CONSUL_HTTP_ADDR", self.fixture.consul.url()))
    }

    /// An import that is ready.
    pub async fn import(&self) -> Result<Bridge> {
        let import = Bridge::start(self.command().await?).await?;
        import.wait_ready().await?;
        Ok(import)
    }

    /// A Service without a selector that has these annotations, with one port `pg`.
    pub async fn service(&self, name: &str, annotations: Value) -> Result<()> {
        self.object(json!({
            "metadata": {"name": name, "annotations": annotations},
            "spec": {"ports": [{"name": "pg", "port": 5432}]},
        }))
        .await
    }

    pub async fn object(&self, mut object: Value) -> Result<()> {
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Service");
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let params = PatchParams::apply("test").force();
        self.fixture.services()?.patch(&name, &params, &Patch::Apply(object)).await?;
        Ok(())
    }

    /// Registers an instance of a Consul service in the catalog, on a node that is called by its
    /// address.
    pub async fn register(&self, service: &str, address: &str, status: &str) -> Result<()> {
        self.register_at(service, address, 5432, status).await
    }

    pub async fn register_at(
        &self,
        service: &str,
        address: &str,
        port: u16,
        status: &str,
    ) -> Result<()> {
        let id = format!("{service}-{address}-{port}");
        let body = json!({
            "Node": format!("node-{address}"), "Address": "10.200.0.1", "SkipNodeUpdate": false,
            "Service": {"ID": id, "Service": service, "Address": address, "Port": port},
            "Check": {"CheckID": id, "ServiceID": id, "Name": "up", "Status": status},
        });
        self.fixture.consul.api().put("/v1/catalog/register", &body).await.map(drop)
    }

    pub async fn deregister(&self, service: &str, address: &str) -> Result<()> {
        let body = json!({
            "Node": format!("node-{address}"), "ServiceID": format!("{service}-{address}-5432"),
        });
        self.fixture.consul.api().put("/v1/catalog/deregister", &body).await.map(drop)
    }

    pub fn slices(&self) -> Result<Api<EndpointSlice>> {
        Ok(Api::namespaced(self.fixture.kubernetes.client()?, &self.fixture.namespace))
    }

    /// The endpoints of a Service in our slices, `address:port`, with a mark where not ready.
    pub async fn endpoints(&self, service: &str) -> Result<Vec<String>> {
        let labels = format!("kubernetes.io/service-name={service},{OURS}");
        let slices = self.slices()?.list(&ListParams::default().labels(&labels)).await?;
        let mut found = BTreeMap::new();
        for slice in slices {
            let ports = slice.ports.unwrap_or_default();
            let port = ports.first().and_then(|port| port.port).unwrap_or_default();
            for endpoint in slice.endpoints.unwrap_or_default() {
                let ready = endpoint.conditions.and_then(|it| it.ready).unwrap_or(true);
                for address in endpoint.addresses {
                    found.insert(format!("{address}:{port}"), ready);
                }
            }
        }
        let shown = |(at, ready)| if ready { at } else { format!("!{at}") };
        Ok(found.into_iter().map(shown).collect())
    }

    /// Looks until it is finished whether a Service is ever without a ready endpoint.
    pub fn never_empty(&self, service: &str) -> Result<InvariantMonitor> {
        self.never_empty_within(service, Duration::ZERO)
    }

    /// The same with a pause before each look, where it goes on for long.
    pub fn never_empty_within(&self, service: &str, pause: Duration) -> Result<InvariantMonitor> {
        let slices = self.slices()?;
        let labels = format!("kubernetes.io/service-name={service},{OURS}");
        Ok(InvariantMonitor::start(move || {
            let (slices, labels) = (slices.clone(), labels.clone());
            async move {
                sleep(pause).await;
                let found = slices.list(&ListParams::default().labels(&labels)).await?;
                let ready = found
                    .into_iter()
                    .flat_map(|it| it.endpoints.unwrap_or_default())
                    .any(|it| it.conditions.and_then(|it| it.ready).unwrap_or(true));
                Ok(if ready { vec![] } else { vec!["no ready endpoint".to_owned()] })
            }
        }))
    }

    /// Waits until a Service has exactly these endpoints.
    pub async fn wait_for(&self, service: &str, wanted: &[&str]) -> Result<()> {
        eventually(DEADLINE, || async {
            let found = self.endpoints(service).await?;
            ensure!(found == wanted, "{service} has {found:?}, want {wanted:?}");
            Ok(())
        })
        .await
    }

    /// Waits until a Service has a problem that says this.
    pub async fn wait_for_problem(&self, import: &Bridge, service: &str, text: &str) -> Result<()> {
        eventually(DEADLINE, || async {
            let found = problems(import, service).await?;
            ensure!(found.contains(text), "the problems are {found:?}, want {text:?}");
            Ok(())
        })
        .await
    }
}

/// The problems of a Service, by `/status`.
pub async fn problems(import: &Bridge, service: &str) -> Result<String> {
    let status = import.status().await?;
    let all = status["services"].as_array().cloned().unwrap_or_default();
    let of = all.iter().find(|it| it["name"] == service).map(|it| it["problems"].to_string());
    Ok(of.unwrap_or_default())
}
