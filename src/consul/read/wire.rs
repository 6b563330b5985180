//! Services, checks and keys as Consul's JSON has them.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::consul::http::stream::Malformed;
use crate::domain::consul::names::Holder;
use crate::domain::consul::record::{
    CLUSTER_META, Check, NAMESPACE_META, ObservedPtr, ObservedRegistration, PtrRecord,
    READINESS_CHECK, Registration, SOURCE, SOURCE_META,
};
use crate::domain::consul::registration_id::{readiness_check_id, service_of_id};
use crate::domain::kube::names::ClusterName;

/// Weight while a check warns: Consul's default. We never have a warning check.
pub(in crate::consul) const WARNING_WEIGHT: u16 = 1;

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Weights {
    passing: i64,
    warning: i64,
}

/// A service as `/v1/agent/services` and `/v1/catalog/node-services` show it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::consul) struct ServiceEntry {
    #[serde(rename = "ID")]
    pub id: Box<str>,
    pub service: Box<str>,
    pub tags: Option<Vec<String>>,
    meta: Option<BTreeMap<String, String>>,
    // Left out by the catalog where it is 0.
    #[serde(default)]
    port: i64,
    #[serde(default)]
    pub address: Box<str>,
    tagged_addresses: Option<BTreeMap<String, TaggedAddress>>,
    weights: Option<Weights>,
    #[serde(default)]
    enable_tag_override: bool,
    #[serde(default)]
    kind: Box<str>,
    #[serde(default)]
    socket_path: Box<str>,
    #[serde(default)]
    modify_index: u64,
}

/// An instance as `/v1/catalog/service` shows it, as far as it tells who made it.
#[derive(Debug, Deserialize)]
pub(in crate::consul) struct NamedInstance {
    #[serde(rename = "ServiceID", default)]
    id: Box<str>,
    #[serde(rename = "ServiceMeta")]
    meta: Option<BTreeMap<Box<str>, Box<str>>>,
    /// Consul's index when its ID was registered: later changes, of its name too, leave it as it is.
    #[serde(rename = "CreateIndex")]
    pub created: Option<u64>,
}

impl NamedInstance {
    /// Who made it; `None`: a bridge of `cluster`.
    pub(in crate::consul) fn holder(&self, cluster: &ClusterName) -> Option<Holder> {
        let meta = |key: &str| self.meta.as_ref()?.get(key).map(|value| &**value);
        match meta(CLUSTER_META) {
            Some(other) if other == cluster.as_str() => None,
            Some(other) => Some(Holder::Kubernetes { cluster: Some(other.into()) }),
            // Too large to be read as far as its meta.
            None if self.meta.is_none() && service_of_id(cluster, &self.id).is_some() => None,
            None if meta(SOURCE_META) == Some(SOURCE) => Some(Holder::Kubernetes { cluster: None }),
            None => Some(Holder::Other),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaggedAddress {
    address: Box<str>,
    port: i64,
}

/// A check as `/v1/agent/checks` and `/v1/health/node` show it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::consul) struct CheckEntry<'a> {
    #[serde(rename = "CheckID", borrow)]
    pub check_id: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(rename = "ServiceID", borrow)]
    pub service_id: Cow<'a, str>,
}

/// An entry of `/v1/kv`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::consul) struct KeyEntry {
    key: Box<str>,
    /// Decoded; bytes that are not UTF-8 are replaced.
    #[serde(default, deserialize_with = "deserialize_value")]
    pub value: Box<str>,
    flags: u64,
    /// The session that holds it as a lock, if one does.
    session: Option<Box<str>>,
    /// 0 of an entry that is too large to be read whole.
    #[serde(default)]
    pub modify_index: u64,
}

/// Meta key, one that Consul cannot have, of what was too large to be read whole.
const CUT: &str = "(larger than can be read)";

/// Decodes one item of a listing.
pub(in crate::consul) fn decode<'a, T: Deserialize<'a>>(
    expected: &'static str,
    json: &'a [u8],
) -> Result<T, Malformed> {
    serde_json::from_slice(json)
        .map_err(|error| Malformed::Item { expected, reason: error.to_string() })
}

/// The value of a KV entry, which is in base64, or null where it is empty.
fn deserialize_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Box<str>, D::Error> {
    let encoded = Option::<Cow<'de, str>>::deserialize(deserializer)?;
    let bytes =
        STANDARD.decode(encoded.as_deref().unwrap_or_default()).map_err(D::Error::custom)?;
    Ok(String::from_utf8_lossy(&bytes).into())
}

// === impl ServiceEntry ===

impl ServiceEntry {
    /// Whether a bridge of this cluster made it.
    pub(in crate::consul) fn is_of(&self, cluster: &str) -> bool {
        self.meta(CLUSTER_META) == Some(cluster)
    }

    /// Takes for ours what is too large to be read whole, mark included, if its ID says so: the
    /// listing was of marked ones only. It differs from whatever we wrote, so it is written again or
    /// removed like any other.
    pub(in crate::consul) fn mark_cut(&mut self, cluster: &ClusterName) {
        if let Some(service) = service_of_id(cluster, &self.id) {
            let meta = [
                (CLUSTER_META, cluster.as_str()),
                (NAMESPACE_META, &service.namespace),
                (CUT, "true"),
            ];
            let meta = meta.map(|(key, value)| (key.to_owned(), value.to_owned()));
            self.meta.get_or_insert_default().extend(meta);
        }
    }

    /// What its meta says under this key.
    pub(in crate::consul) fn meta(&self, key: &str) -> Option<&str> {
        self.meta.as_ref()?.get(key).map(String::as_str)
    }

    /// In our form, with the check that was found for it.
    pub(in crate::consul) fn observed(self, check: Check) -> ObservedRegistration {
        let differences = self.differences();
        let mut meta = self.meta.unwrap_or_default();
        let namespace = meta.get(NAMESPACE_META).map(|text| text.as_str().into());
        meta.extend(differences);
        let registration = Registration {
            id: self.id,
            service: self.service,
            namespace: namespace.unwrap_or_default(),
            address: self.address,
            port: u16::try_from(self.port).unwrap_or(0),
            tags: Arc::new(self.tags.unwrap_or_default()),
            meta: meta.into(),
            weight: self.weights.map_or(1, |w| u16::try_from(w.passing).unwrap_or(0)),
            check,
        };
        ObservedRegistration { registration, index: self.modify_index }
    }

    /// What others changed in fields that a [`Registration`] has no place for, as meta whose
    /// keys are in parentheses, which Consul's own keys cannot contain: so it differs from
    /// what we wrote, and `plan` shows why.
    fn differences(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        let mut note = |field: &str, differs: bool, value: String| {
            if differs {
                found.insert(format!("({field})"), value);
            }
        };
        note("Kind", !self.kind.is_empty(), self.kind.to_string());
        note("SocketPath", !self.socket_path.is_empty(), self.socket_path.to_string());
        note("EnableTagOverride", self.enable_tag_override, "true".to_owned());
        note("Port", u16::try_from(self.port).is_err(), self.port.to_string());
        if let Some(weights) = self.weights {
            let differs = weights.warning != i64::from(WARNING_WEIGHT);
            note("Weights.Warning", differs, weights.warning.to_string());
        }
        for (tag, tagged) in self.tagged_addresses.iter().flatten() {
            // An agent adds these by itself, equal to the service's own.
            let differs = tagged.address != self.address || tagged.port != self.port;
            let value = format!("{} port {}", tagged.address, tagged.port);
            note(&format!("TaggedAddresses.{tag}"), differs, value);
        }
        found
    }
}

// === impl CheckEntry ===

impl CheckEntry<'_> {
    /// Which check of ours it is; none if it is not one. A status that we never set counts as
    /// passing, so that it differs from critical and from none.
    pub(in crate::consul) fn readiness(&self) -> Option<Check> {
        let ours =
            self.name == READINESS_CHECK && *self.check_id == *readiness_check_id(&self.service_id);
        ours.then(|| if self.status == "critical" { Check::Critical } else { Check::Passing })
    }
}

// === impl KeyEntry ===

impl KeyEntry {
    /// Whether a session holds it as a lock.
    pub(in crate::consul) fn is_held(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.is_empty())
    }

    /// As a PTR record.
    pub(in crate::consul) fn observed(self) -> ObservedPtr {
        let Self { key, value, flags, modify_index: index, .. } = self;
        ObservedPtr { record: PtrRecord { key, value }, flags, index }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Consul 1.20.1 showed it in `/v1/agent/services`.
    const AGENT_SERVICE: &str = r#"{
        "ID": "c_ns_svc_80_10.0.0.1", "Service": "svc", "Tags": ["ns", "http"],
        "Meta": {"external-k8s-ns": "ns", "kube-consul-cluster": "c"},
        "Port": 80, "Address": "10.0.0.1",
        "TaggedAddresses": {
            "lan_ipv4": {"Address": "10.0.0.1", "Port": 80},
            "wan_ipv4": {"Address": "10.0.0.1", "Port": 80}
        },
        "Weights": {"Passing": 3, "Warning": 1}, "EnableTagOverride": false, "Datacenter": "dc1"
    }"#;

    /// As Consul 1.20.1 showed it in `/v1/agent/checks`.
    const AGENT_CHECK: &str = r#"{
        "Node": "plain", "CheckID": "c_ns_svc_80_10.0.0.1:readiness",
        "Name": "Kubernetes readiness", "Status": "critical", "Notes": "", "Output": "",
        "ServiceID": "c_ns_svc_80_10.0.0.1", "ServiceName": "svc", "ServiceTags": ["ns"],
        "Type": "ttl", "Interval": "", "Timeout": "", "ExposedPort": 0, "Definition": {},
        "CreateIndex": 0, "ModifyIndex": 0
    }"#;

    fn registration() -> Registration {
        Registration {
            id: "c_ns_svc_80_10.0.0.1".into(),
            service: "svc".into(),
            namespace: "ns".into(),
            address: "10.0.0.1".into(),
            port: 80,
            tags: Arc::new(vec!["ns".into(), "http".into()]),
            meta: [(NAMESPACE_META, "ns"), (CLUSTER_META, "c")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            weight: 3,
            check: Check::Critical,
        }
    }

    fn observed(json: &str) -> Registration {
        let entry: ServiceEntry = decode("a service", json.as_bytes()).unwrap();
        entry.observed(Check::Critical).registration
    }

    #[test]
    fn what_consul_adds_makes_no_difference() {
        assert_eq!(observed(AGENT_SERVICE), registration());
    }

    #[test]
    fn what_others_change_makes_a_difference_that_is_shown() {
        for (from, to, key) in [
            (
                r#""EnableTagOverride": false"#,
                r#""EnableTagOverride": true"#,
                "(EnableTagOverride)",
            ),
            (r#""Warning": 1"#, r#""Warning": 5"#, "(Weights.Warning)"),
            (r#""Port": 80, "Address""#, r#""Port": 70000, "Address""#, "(Port)"),
            (r#""Datacenter""#, r#""Kind": "connect-proxy", "Datacenter""#, "(Kind)"),
            (
                r#""wan_ipv4": {"Address": "10.0.0.1""#,
                r#""wan_ipv4": {"Address": "10.9.9.9""#,
                "(TaggedAddresses.wan_ipv4)",
            ),
        ] {
            let changed = AGENT_SERVICE.replacen(from, to, 1);
            assert_ne!(changed, AGENT_SERVICE, "{from} is not there");
            let found = observed(&changed);
            assert_ne!(found, registration());
            assert!(found.meta.get(key).is_some(), "{key}: {:?}", found.meta);
        }
    }

    #[test]
    fn a_check_is_ours_by_name_and_id() {
        for (from, to, expected) in [
            ("", "", Some(Check::Critical)),
            ("\"critical\"", "\"passing\"", Some(Check::Passing)),
            ("\"critical\"", "\"warning\"", Some(Check::Passing)),
            ("Kubernetes readiness", "mine", None),
            (":readiness", ":mine", None),
        ] {
            let json = AGENT_CHECK.replacen(from, to, 1);
            let entry: CheckEntry = decode("a check", json.as_bytes()).unwrap();
            assert_eq!(entry.readiness(), expected, "{to}");
        }
    }

    #[test]
    fn a_keys_value_is_text_whatever_is_in_it() {
        let entry = |value: &str| {
            let json = format!(
                r#"{{"LockIndex":0,"Key":"0.x/1","Flags":42,"Value":{value},"CreateIndex":21,"ModifyIndex":22}}"#
            );
            decode::<KeyEntry>("a KV entry", json.as_bytes()).map(KeyEntry::observed)
        };
        let observed = entry("\"aGVsbG8=\"").unwrap();
        assert_eq!(&*observed.record.value, "hello");
        assert_eq!((observed.flags, observed.index), (42, 22));
        assert_eq!(&*entry("null").unwrap().record.value, "");
        assert_eq!(&*entry("\"/w==\"").unwrap().record.value, "\u{fffd}");
        assert!(entry("\"?\"").is_err());
    }
}
