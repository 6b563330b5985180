//! Faults and safety: what the bridge does when processes die, links break, answers lie, rights
//! are missing. The built program runs with the shipped rights beside a Consul of the test's own.

mod admin;
mod api_server;
mod burst;
mod guard;
mod outage;
mod oversized;
mod restart;
mod restore;
mod rights;
mod signals;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{Consul, ConsulApi, eventually};
use serde_json::Value;

use crate::support::{DEADLINE, InvariantMonitor};

/// So many Services, called `<prefix>-000` and so on.
fn numbered(prefix: &str, numbers: std::ops::Range<usize>) -> BTreeSet<String> {
    numbers.map(|number| format!("{prefix}-{number:03}")).collect()
}

/// What Consul has of the bridge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Shown {
    /// Registrations in the catalog, by their ID.
    instances: BTreeMap<String, Instance>,
    /// Keys of PTR records.
    reverse: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Instance {
    service: String,
    port: u64,
    tags: Vec<String>,
    critical: bool,
}

// === impl Shown ===

impl Shown {
    fn names(&self) -> BTreeSet<String> {
        self.instances.values().map(|instance| instance.service.clone()).collect()
    }

    /// IDs of the instances of these names.
    fn ids(&self, names: &BTreeSet<String>) -> BTreeSet<String> {
        let of_names = self.instances.iter().filter(|(_, it)| names.contains(&it.service));
        of_names.map(|(id, _)| id.clone()).collect()
    }
}

/// The bridge's registrations as the catalog shows them: that is what DNS answers from.
async fn instances(api: &ConsulApi, node: &str) -> Result<BTreeMap<String, Instance>> {
    let services = api.get(&format!("/v1/catalog/node-services/{node}")).await?;
    let critical = api.get("/v1/health/state/critical").await?;
    let critical: BTreeSet<&str> = critical
        .as_array()
        .context("/v1/health/state/critical answered no list")?
        .iter()
        .filter_map(|check| check["ServiceID"].as_str())
        .collect();
    let mut found = BTreeMap::new();
    for service in services["Services"].as_array().into_iter().flatten() {
        let id = service["ID"].as_str().unwrap_or_default();
        // The sentinel begins with an underscore.
        if service["Meta"]["kube-consul-cluster"].is_null() || id.starts_with('_') {
            continue;
        }
        let tags = service["Tags"].as_array().into_iter().flatten();
        let instance = Instance {
            service: service["Service"].as_str().unwrap_or_default().to_owned(),
            port: service["Port"].as_u64().unwrap_or_default(),
            tags: tags.filter_map(|tag| tag.as_str().map(ToOwned::to_owned)).collect(),
            critical: critical.contains(id),
        };
        found.insert(id.to_owned(), instance);
    }
    Ok(found)
}

async fn shown(consul: &Consul) -> Result<Shown> {
    let keys = consul.api().get("/v1/kv/?keys").await?;
    let keys = keys.as_array().into_iter().flatten().filter_map(Value::as_str);
    let reverse = keys.filter(|key| key.contains(".ARPA/")).map(ToOwned::to_owned).collect();
    Ok(Shown { instances: instances(consul.api(), consul.node()).await?, reverse })
}

async fn wait_for_names(consul: &Consul, names: &BTreeSet<String>) -> Result<Shown> {
    eventually(DEADLINE, || async {
        let shown = shown(consul).await?;
        let found = shown.names();
        ensure!(
            found == *names && shown.reverse.len() == names.len(),
            "missing {:?}, too many {:?}, {} PTR records",
            names.difference(&found).collect::<Vec<_>>(),
            found.difference(names).collect::<Vec<_>>(),
            shown.reverse.len()
        );
        Ok(shown)
    })
    .await
}

/// Looks at the catalog for names that must neither vanish nor turn critical.
fn look_after(consul: &Consul, names: BTreeSet<String>) -> InvariantMonitor {
    let (api, names) = (consul.api().clone(), Arc::new(names));
    InvariantMonitor::start(move || {
        let (api, names) = (api.clone(), Arc::clone(&names));
        async move {
            // Two small answers, so that a look takes less than the time between two.
            let (services, checks) = tokio::try_join!(
                api.get("/v1/catalog/services"),
                api.get("/v1/health/state/critical"),
            )?;
            let vanished = names.iter().filter(|name| services[name.as_str()].is_null());
            let vanished = vanished.map(|name| format!("{name} vanished"));
            let checks = checks.as_array().into_iter().flatten();
            let critical = checks.filter_map(|check| check["ServiceName"].as_str());
            let critical = critical.filter(|name| names.contains(*name));
            let critical = critical.map(|name| format!("{name} turned critical"));
            Ok(vanished.chain(critical).collect())
        }
    })
}
