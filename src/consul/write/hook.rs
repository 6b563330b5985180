//! What the registration hook asks of the agent and of the catalog.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::consul::http::client::{Client, Request, encode};
use crate::consul::http::error::Error;
use crate::consul::http::stream::Layout;
use crate::consul::http::wire::{ServiceEntry, decode};
use crate::consul::read::{CATALOG_SERVICES, Unknown, certain, failed};
use crate::consul::write::agent::{RegisterBody, done, register_request};
use crate::domain::hook::{HookCheck, HookRegistration, Target};

/// After so long in a critical state the agent removes an instance whose pod ended without a
/// word: consul-registration-hook's value.
const DEREGISTER_CRITICAL_AFTER: &str = "15m";

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CheckBody<'a> {
    interval: String,
    timeout: String,
    deregister_critical_service_after: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(flatten)]
    target: TargetBody<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum TargetBody<'a> {
    Http {
        #[serde(rename = "HTTP")]
        url: &'a str,
        #[serde(rename = "Method")]
        method: &'static str,
        #[serde(rename = "Header", skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<&'a str, Vec<&'a str>>,
        #[serde(rename = "TLSSkipVerify", skip_serializing_if = "std::ops::Not::not")]
        skip_verify: bool,
    },
    Tcp {
        #[serde(rename = "TCP")]
        address: &'a str,
    },
    Grpc {
        #[serde(rename = "GRPC")]
        address: String,
    },
}

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

/// Registers an instance with the agent; one of the same ID is overwritten, checks included.
pub async fn register(client: &Client, registration: &HookRegistration) -> Result<(), Error> {
    done(client, &register_request(&body(registration))).await
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
    let mut request = Request::get(format!("/v1/catalog/service/{}", encode(name))).listing();
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

fn body(registration: &HookRegistration) -> RegisterBody<'_, CheckBody<'_>> {
    RegisterBody {
        id: &registration.id,
        name: &registration.name,
        address: &registration.address,
        port: registration.port,
        tags: &registration.tags,
        meta: None,
        weights: None,
        check: registration.check.as_ref().map(check_body),
    }
}

fn check_body(check: &HookCheck) -> CheckBody<'_> {
    let target = match &check.target {
        Target::Http { url, headers } => {
            let mut by_name = BTreeMap::<&str, Vec<&str>>::new();
            for (name, value) in headers {
                by_name.entry(name).or_default().push(value);
            }
            let skip_verify = url.starts_with("https:");
            TargetBody::Http { url, method: "GET", headers: by_name, skip_verify }
        }
        Target::Tcp(address) => TargetBody::Tcp { address },
        Target::Grpc { address, service } => TargetBody::Grpc {
            address: match service {
                Some(service) => format!("{address}/{service}"),
                None => address.clone(),
            },
        },
    };
    CheckBody {
        interval: seconds(check.interval),
        timeout: seconds(check.timeout),
        deregister_critical_service_after: DEREGISTER_CRITICAL_AFTER,
        status: check.begins_passing.then_some("passing"),
        target,
    }
}

/// As Go reads durations. Probes have whole seconds.
fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sent(target: Target, begins_passing: bool) -> Value {
        let check = HookCheck {
            target,
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(3),
            begins_passing,
        };
        let registration = HookRegistration {
            id: "10.0.0.1_80".into(),
            name: "web".into(),
            address: "10.0.0.1".into(),
            port: 80,
            tags: vec!["k8sPodName: pod".into()],
            check: Some(check),
        };
        let mut sent = serde_json::to_value(body(&registration)).unwrap();
        let check = sent["Check"].take();
        assert_eq!(
            sent,
            json!({"ID": "10.0.0.1_80", "Name": "web", "Address": "10.0.0.1", "Port": 80,
                "Tags": ["k8sPodName: pod"], "Check": null})
        );
        check
    }

    #[test]
    fn checks_are_sent_as_consul_has_them() {
        let http = |url: &str, headers: &[(&str, &str)]| Target::Http {
            url: url.into(),
            headers: headers.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect(),
        };
        let grpc = |service: Option<&str>| Target::Grpc {
            address: "10.0.0.1:9".into(),
            service: service.map(Into::into),
        };
        for (target, expected) in [
            (http("http://10.0.0.1/", &[]), json!({"HTTP": "http://10.0.0.1/", "Method": "GET"})),
            (
                http("https://10.0.0.1/", &[("a", "1"), ("Host", "h"), ("a", "2")]),
                json!({"HTTP": "https://10.0.0.1/", "Method": "GET", "TLSSkipVerify": true,
                    "Header": {"a": ["1", "2"], "Host": ["h"]}}),
            ),
            (Target::Tcp("10.0.0.1:9".into()), json!({"TCP": "10.0.0.1:9"})),
            (grpc(None), json!({"GRPC": "10.0.0.1:9"})),
            (grpc(Some("x.Y")), json!({"GRPC": "10.0.0.1:9/x.Y"})),
        ] {
            let mut expected = expected;
            expected["Interval"] = json!("10s");
            expected["Timeout"] = json!("3s");
            expected["DeregisterCriticalServiceAfter"] = json!("15m");
            assert_eq!(sent(target.clone(), false), expected);
            expected["Status"] = json!("passing");
            assert_eq!(sent(target, true), expected);
        }
    }
}
