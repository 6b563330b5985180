//! Single instances, for the registration hook.

use std::borrow::Cow;

use serde::Deserialize;

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode};
use crate::consul::http::stream::Layout;
use crate::consul::read::evidence::{Consistency, Unknown, certain, failed};
use crate::consul::read::registrations::CATALOG_SERVICES;
use crate::consul::read::wire::{ServiceEntry, decode};

#[derive(Deserialize)]
struct AgentService {
    #[serde(rename = "Service")]
    name: String,
}

#[derive(Deserialize)]
struct Instance<'a> {
    #[serde(rename = "Node", borrow)]
    node: Cow<'a, str>,
    #[serde(rename = "ServiceID", borrow)]
    id: Cow<'a, str>,
}

#[derive(Deserialize)]
struct CheckState<'a> {
    #[serde(rename = "ServiceID", borrow)]
    service_id: Cow<'a, str>,
    #[serde(rename = "Status", borrow)]
    status: Cow<'a, str>,
}

/// The name of the service that the agent has under this ID.
pub async fn service_name(client: &Client, id: &str) -> Result<Option<String>, Error> {
    let reply = client.send(&Request::get(format!("/v1/agent/service/{}", encode(id)))).await?;
    if !reply.is_found() {
        let error = reply.into_error().await;
        return if error.is_unknown_service() { Ok(None) } else { Err(error) };
    }
    let service: AgentService = reply.json().await?;
    Ok(Some(service.name))
}

/// The hook's instances at an address whose tags are such, each with its ID and its service's
/// name. What the token may not see is not among them.
pub async fn at_address(
    client: &Client,
    address: &str,
    mut is_wanted: impl FnMut(&[String]) -> bool + Send,
) -> Result<Vec<(String, String)>, Error> {
    let filter = format!("Address == {address:?}");
    let request = Request::get("/v1/agent/services").parameter("filter", &filter);
    let reply = client.send(&request.listing()).await?.into_found().await?;
    let mark = format!("{address}_");
    let mut found = Vec::new();
    let services = reply.items(Layout::Members, |item| {
        let service: ServiceEntry = decode("a service", item.value)?;
        // Filtered here too: a Consul that does not know the filter ignores it.
        let has = service.tags.unwrap_or_default();
        let is_hooks = service.id.starts_with(&mark) && *service.address == *address;
        if is_hooks && is_wanted(&has) {
            found.push((service.id.into(), service.service.into()));
        }
        Ok(())
    });
    services.await?;
    Ok(found)
}

/// Whether the agent's checks of the instance pass; none where it shows no check.
pub async fn is_passing(client: &Client, id: &str) -> Result<Option<bool>, Error> {
    let filter = format!("ServiceID == {id:?}");
    let request = Request::get("/v1/agent/checks").parameter("filter", &filter);
    let reply = client.send(&request.listing()).await?.into_found().await?;
    let mut passing = None;
    let checks = reply.items(Layout::Members, |item| {
        let check: CheckState<'_> = decode("a check", item.value)?;
        // Filtered here too: a Consul that does not know the filter ignores it.
        if check.service_id == id {
            passing = Some(passing != Some(false) && check.status == "passing");
        }
        Ok(())
    });
    checks.await?;
    Ok(passing)
}

/// Whether the catalog has the instance; `node` is where, if that is known: an earlier owner of
/// the address may have left one of the same ID on another node.
pub async fn is_in_catalog(
    client: &Client,
    name: &str,
    id: &str,
    node: Option<&str>,
) -> Result<bool, Unknown> {
    let path = format!("/v1/catalog/service/{}", encode(name));
    let mut request = Consistency::Leader.of_path(path).listing();
    // Anything else would have to be quoted; without a filter the answer is only longer.
    if !id.contains(['"', '\\']) {
        request = request.parameter("filter", &format!("ServiceID == \"{id}\""));
    }
    let (reply, evidence) = client.open(&request, CATALOG_SERVICES).await?;
    let mut found = false;
    let instances = reply.items(Layout::Elements, |item| {
        let instance: Instance<'_> = decode("an instance", item.value)?;
        found |= instance.id == id && node.is_none_or(|node| instance.node == node);
        Ok(())
    });
    instances.await.map_err(failed(CATALOG_SERVICES))?;
    certain(evidence, !found, CATALOG_SERVICES).map(|()| found)
}
