//! A registration as it is sent: [`AgentService`] to an agent, whoever registers it, and
//! [`ServiceBody`] with [`CheckBody`] in a transaction.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::consul::read::wire::WARNING_WEIGHT;
use crate::domain::consul::pairs::Meta;
use crate::domain::consul::record::{Check, READINESS_CHECK, Registration};
use crate::domain::consul::registration_id::readiness_check_id;
use crate::domain::hook::{HookCheck, HookRegistration, Target};

/// TTL of the bridge's readiness check: ten years. It never matters, but when it ran out the agent
/// would change the check's output, which is a catalog write for each instance.
const READINESS_TTL: Duration = Duration::from_hours(87_600);

/// After so long in a critical state the agent removes an instance of the hook's whose pod ended
/// without a word: consul-registration-hook's value.
const DEREGISTER_CRITICAL_AFTER: Duration = Duration::from_mins(15);

/// A service with its check, as an agent takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentService<'a> {
    /// The service ID.
    #[serde(rename = "ID")]
    pub id: &'a str,
    /// The name by which clients look it up.
    pub name: &'a str,
    /// Its address; an empty one is the agent's own.
    pub address: &'a str,
    /// Its port.
    pub port: u16,
    /// Its tags.
    pub tags: &'a [String],
    /// Its meta, if it has any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<MetaBody<'a>>,
    /// Its weights, if they are not Consul's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// Its only check.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<AgentCheck<'a>>,
}

/// The meta of an [`AgentService`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum MetaBody<'a> {
    /// Of one that shares it with others.
    #[serde(serialize_with = "pairs")]
    Shared(&'a Meta),
    /// Of one alone.
    Own(&'a BTreeMap<String, String>),
}

/// A check of an [`AgentService`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AgentCheck<'a> {
    /// Its ID, if it is not the one that Consul makes of the service's.
    #[serde(rename = "CheckID", skip_serializing_if = "Option::is_none")]
    pub id: Option<Cow<'a, str>>,
    /// Its name, if it is not the one that Consul makes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// What people read beside it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub notes: Option<Cow<'a, str>>,
    /// How it begins; none: critical, as Consul has it. An agent keeps the status of a check that it
    /// has already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<CheckStatus>,
    /// Critical for so long, the agent removes the service. At least a minute.
    #[serde(
        rename = "DeregisterCriticalServiceAfter",
        skip_serializing_if = "Option::is_none",
        serialize_with = "go_duration_or_none"
    )]
    pub deregister_critical_after: Option<Duration>,
    /// What decides about it.
    #[serde(flatten)]
    pub kind: CheckKind<'a>,
}

/// The status of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Answers show the service.
    Passing,
    /// Answers show it, those for passing services alone do not.
    Warning,
    /// DNS answers leave it out.
    Critical,
}

/// What decides about a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum CheckKind<'a> {
    /// Whoever registered it: critical unless it is told otherwise within this time.
    Ttl {
        /// The time.
        #[serde(rename = "TTL", serialize_with = "go_duration")]
        ttl: Duration,
        /// The same where it is to be read back: the agent shows no TTL, and has no other use for this.
        #[serde(
            rename = "Timeout",
            skip_serializing_if = "Option::is_none",
            serialize_with = "go_duration_or_none"
        )]
        shown: Option<Duration>,
    },
    /// The agent, which tries a target again and again.
    Active {
        /// Between two tries.
        #[serde(rename = "Interval", serialize_with = "go_duration")]
        interval: Duration,
        /// How long one may take.
        #[serde(rename = "Timeout", serialize_with = "go_duration")]
        timeout: Duration,
        /// What is tried.
        #[serde(flatten)]
        target: CheckTarget<'a>,
    },
}

/// What an agent tries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum CheckTarget<'a> {
    /// A request: passing by a status of 2xx, warning by 429.
    Http {
        /// Where.
        #[serde(rename = "HTTP")]
        url: &'a str,
        /// Its method.
        #[serde(rename = "Method")]
        method: &'static str,
        /// Its headers.
        #[serde(rename = "Header", skip_serializing_if = "BTreeMap::is_empty")]
        headers: BTreeMap<&'a str, Vec<&'a str>>,
        /// Whatever certificate the server shows.
        #[serde(rename = "TLSSkipVerify", skip_serializing_if = "std::ops::Not::not")]
        skip_verify: bool,
    },
    /// A connection.
    Tcp {
        /// `host:port`.
        #[serde(rename = "TCP")]
        address: &'a str,
    },
    /// The health service of gRPC.
    Grpc {
        /// `host:port`, or `host:port/service`.
        #[serde(rename = "GRPC")]
        address: Cow<'a, str>,
    },
}

/// A service in the catalog's form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ServiceBody<'a> {
    #[serde(rename = "ID")]
    id: &'a str,
    service: &'a str,
    address: &'a str,
    port: u16,
    tags: &'a [String],
    #[serde(serialize_with = "pairs")]
    meta: &'a Meta,
    weights: Weights,
}

/// A readiness check in the catalog's form.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct CheckBody<'a> {
    node: Box<str>,
    #[serde(rename = "CheckID")]
    check_id: String,
    name: &'static str,
    status: CheckStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(rename = "ServiceID")]
    service_id: &'a str,
    service_name: &'a str,
}

/// Share of the traffic that an instance gets, by its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Weights {
    /// While it passes.
    pub passing: u16,
    /// While a check warns.
    pub warning: u16,
}

// === impl AgentService ===

impl<'a> From<&'a Registration> for AgentService<'a> {
    /// The readiness check is a TTL check that nobody updates: critical, it stays so when its TTL
    /// runs out, and needs no heartbeat. A passing one cannot be had so.
    fn from(registration: &'a Registration) -> Self {
        let check = match registration.check {
            Check::None => None,
            Check::Passing => Some(CheckStatus::Passing),
            Check::Critical => Some(CheckStatus::Critical),
        };
        Self {
            id: &registration.id,
            name: &registration.service,
            address: &registration.address,
            port: registration.port,
            tags: &registration.tags,
            meta: Some(MetaBody::Shared(&registration.meta)),
            weights: Some(Weights::of(registration)),
            check: check.map(|status| AgentCheck {
                id: Some(readiness_check_id(&registration.id).into()),
                name: Some(READINESS_CHECK),
                // An agent takes no output with a registration, and one more request for it would be
                // one more for each change.
                notes: why_critical(registration).map(Cow::from),
                status: Some(status),
                deregister_critical_after: None,
                kind: CheckKind::Ttl { ttl: READINESS_TTL, shown: None },
            }),
        }
    }
}

impl<'a> From<&'a HookRegistration> for AgentService<'a> {
    fn from(registration: &'a HookRegistration) -> Self {
        Self {
            id: &registration.id,
            name: &registration.name,
            address: &registration.address,
            port: registration.port,
            tags: &registration.tags,
            meta: None,
            weights: None,
            check: registration.check.as_ref().map(AgentCheck::from),
        }
    }
}

// === impl AgentCheck ===

impl<'a> From<&'a HookCheck> for AgentCheck<'a> {
    fn from(check: &'a HookCheck) -> Self {
        let target = match &check.target {
            Target::Http { url, headers } => {
                let mut by_name = BTreeMap::<&str, Vec<&str>>::new();
                for (name, value) in headers {
                    by_name.entry(name).or_default().push(value);
                }
                let skip_verify = url.starts_with("https:");
                CheckTarget::Http { url, method: "GET", headers: by_name, skip_verify }
            }
            Target::Tcp(address) => CheckTarget::Tcp { address },
            Target::Grpc { address, service } => CheckTarget::Grpc {
                address: match service {
                    Some(service) => format!("{address}/{service}").into(),
                    None => address.into(),
                },
            },
        };
        let HookCheck { interval, timeout, .. } = *check;
        Self {
            id: None,
            name: None,
            notes: None,
            status: check.begins_passing.then_some(CheckStatus::Passing),
            deregister_critical_after: Some(DEREGISTER_CRITICAL_AFTER),
            kind: CheckKind::Active { interval, timeout, target },
        }
    }
}

// === impl ServiceBody ===

impl<'a> ServiceBody<'a> {
    /// The service of this registration, without its check.
    pub fn new(registration: &'a Registration) -> Self {
        Self {
            id: &registration.id,
            service: &registration.service,
            address: &registration.address,
            port: registration.port,
            tags: &registration.tags,
            meta: &registration.meta,
            weights: Weights::of(registration),
        }
    }
}

// === impl CheckBody ===

impl<'a> CheckBody<'a> {
    /// The check that this registration has on `node`, if any.
    pub fn new(node: &str, registration: &'a Registration) -> Option<Self> {
        let status = match registration.check {
            Check::None => return None,
            Check::Passing => CheckStatus::Passing,
            Check::Critical => CheckStatus::Critical,
        };
        Some(Self {
            node: node.into(),
            check_id: readiness_check_id(&registration.id),
            name: READINESS_CHECK,
            status,
            output: why_critical(registration),
            service_id: &registration.id,
            service_name: &registration.service,
        })
    }
}

/// What a critical check says.
fn why_critical(registration: &Registration) -> Option<String> {
    (registration.check == Check::Critical).then(|| registration.why_critical())
}

// === impl Weights ===

impl Weights {
    fn of(registration: &Registration) -> Self {
        Self { passing: registration.weight, warning: WARNING_WEIGHT }
    }
}

fn pairs<S: Serializer>(meta: &Meta, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(meta.pairs())
}

/// As Go reads durations.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's interface")]
fn go_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let text = match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    };
    serializer.serialize_str(&text)
}

#[allow(clippy::ref_option, reason = "serde's interface")]
fn go_duration_or_none<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => go_duration(duration, serializer),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::domain::hook::HookCheck;

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
        let mut sent = serde_json::to_value(AgentService::from(&registration)).unwrap();
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
            expected["DeregisterCriticalServiceAfter"] = json!("900s");
            assert_eq!(sent(target.clone(), false), expected);
            expected["Status"] = json!("passing");
            assert_eq!(sent(target, true), expected);
        }
    }
}
