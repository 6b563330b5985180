//! Names of the catalog's services, without their instances.

use std::borrow::Cow;

use crate::consul::http::client::Client;
use crate::consul::http::request::encode;
use crate::consul::http::stream::Layout;
use crate::consul::http::transport::Evidence;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed};
use crate::consul::read::registrations::{CATALOG_SERVICES, cluster_filter};
use crate::consul::read::wire::{NamedInstance, decode};
use crate::domain::consul::names::{ForeignNames, Found, Holder, Holders, lookup_form};
use crate::domain::consul::record::{CLUSTER_META, SOURCE, SOURCE_META};
use crate::domain::kube::names::ClusterName;

// === impl Client ===

impl Client {
    /// The names under which others than the bridges of `cluster` hold instances, and whether
    /// these hold some there too. `is_held` are the names that need no answer: those that we hold
    /// already.
    ///
    /// A Consul that does not know the filter ignores it and lists all names: these are then
    /// looked up one by one, but for those held.
    pub async fn foreign_names(
        &self,
        cluster: &ClusterName,
        is_held: impl Fn(&str) -> bool + Send + Sync,
    ) -> Result<ForeignNames, Unknown> {
        let mut foreign = ForeignNames::default();
        if self.heeds_filters().await? {
            let evidence = self
                .service_names(&others_filter(cluster), |name| {
                    let others = Holder::Kubernetes { cluster: None };
                    foreign.insert(lookup_form(name).into(), Holders { others, ours: false });
                })
                .await?;
            certain(evidence, foreign.is_empty(), CATALOG_SERVICES)?;
            let mut note = |name: &str, change: fn(&mut Holders)| {
                if let Some(holders) = foreign.get_mut(&*lookup_form(name)) {
                    change(holders);
                }
            };
            let not_kubernetes = |name: &str| note(name, |it| it.others = Holder::Other);
            self.service_names(&not_kubernetes_filter(), not_kubernetes).await?;
            let ours = |name: &str| note(name, |it| it.ours = true);
            self.service_names(&cluster_filter("ServiceMeta", cluster), ours).await?;
            return Ok(foreign);
        }
        let mut names: Vec<String> = Vec::new();
        self.service_names("", |name| {
            if !is_held(name) {
                names.push(name.to_owned());
            }
        })
        .await?;
        for name in names {
            if let Some(found) = self.holders(&name, cluster).await? {
                foreign.insert(lookup_form(&name).into(), found.holders);
            }
        }
        Ok(foreign)
    }

    /// Who else than the bridges of `cluster` holds instances under a name.
    pub async fn holders(
        &self,
        name: &str,
        cluster: &ClusterName,
    ) -> Result<Option<Found>, Unknown> {
        let path = format!("/v1/catalog/service/{}", encode(name));
        let (reply, evidence) =
            self.open(&Consistency::Leader.of_path(path).listing(), CATALOG_SERVICES).await?;
        let (mut others, mut ours) = (None, false);
        let (mut first_of_others, mut first_of_ours) = (u64::MAX, u64::MAX);
        let mut count = 0;
        let instances = reply.items(Layout::Elements, |item| {
            let instance: NamedInstance = decode("an instance", item.value)?;
            count += 1;
            match instance.holder(cluster) {
                None => {
                    ours = true;
                    // Of one that is not known it is not known that it came second.
                    first_of_ours = first_of_ours.min(instance.created.unwrap_or(0));
                }
                holder => {
                    others = others.take().max(holder);
                    first_of_others = first_of_others.min(instance.created.unwrap_or(u64::MAX));
                }
            }
            Ok(())
        });
        instances.await.map_err(failed(CATALOG_SERVICES))?;
        certain(evidence, count == 0, CATALOG_SERVICES)?;
        let came_first = first_of_others < first_of_ours;
        Ok(others.map(|others| Found { holders: Holders { others, ours }, came_first }))
    }

    /// Whether Consul filters the names of services: a filter that no service passes shows it.
    pub(in crate::consul) async fn heeds_filters(&self) -> Result<bool, Unknown> {
        let mut heeded = true;
        self.service_names(r#"ServiceName == """#, |_| heeded = false).await?;
        Ok(heeded)
    }

    /// Service names that pass the filter.
    pub(in crate::consul) async fn service_names(
        &self,
        filter: &str,
        mut each: impl FnMut(&str) + Send,
    ) -> Result<Evidence, Unknown> {
        let mut request = Consistency::Leader.of_path("/v1/catalog/services").listing();
        if !filter.is_empty() {
            request = request.parameter("filter", filter);
        }
        let (reply, evidence) = self.open(&request, CATALOG_SERVICES).await?;
        let names = reply.items(Layout::Members, |item| {
            let name: Cow<str> = decode("a service name", item.name.unwrap_or_default())?;
            each(&name);
            Ok(())
        });
        names.await.map_err(failed(CATALOG_SERVICES))?;
        Ok(evidence)
    }
}

/// Instances that no bridge of the cluster made.
fn others_filter(cluster: &ClusterName) -> String {
    format!("ServiceMeta[{CLUSTER_META:?}] != \"{cluster}\"")
}

/// Instances that no sync of Kubernetes made: neither a bridge nor consul-k8s.
fn not_kubernetes_filter() -> String {
    format!("{CLUSTER_META:?} not in ServiceMeta and ServiceMeta[{SOURCE_META:?}] != {SOURCE:?}")
}
