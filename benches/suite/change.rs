//! What is done to a Service so that Consul has to show it.

use serde_json::{Value, json};

use super::floor::{ADDRESSES, CHANGE, SERVICE};

/// Endpoints of a probe: one of them changes.
const ENDPOINTS: usize = 10;

/// What the floor is told of a Service with endpoints of its own that is created.
pub const SETUP: &str = "setup";

/// What is done to a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Created with ready endpoints.
    Ready,
    /// Created with endpoints that are not.
    Unready,
    /// All its endpoints turn unready.
    TurnsUnready,
    /// And ready again.
    TurnsReady,
    /// One of its endpoints has another address.
    Endpoint,
    /// Deleted.
    Delete,
}

/// What a change is made to.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Its name.
    pub service: String,
    /// Each round has Services of its own, or other endpoints of the same.
    round: usize,
    number: usize,
}

/// What Consul shows once a change is there.
pub enum Sign {
    /// A text in the answer.
    Has(String),
    /// No such text.
    Lacks(String),
}

// === impl Change ===

impl Change {
    /// In this order: each finds what the ones before have left.
    pub const ALL: [Change; 6] = [
        Change::Ready,
        Change::TurnsUnready,
        Change::TurnsReady,
        Change::Endpoint,
        Change::Unready,
        Change::Delete,
    ];

    /// As annotations name it.
    pub fn name(self) -> &'static str {
        match self {
            Change::Ready => "ready",
            Change::Unready => "unready",
            Change::TurnsUnready => "turns-unready",
            Change::TurnsReady => "turns-ready",
            Change::Endpoint => "endpoint",
            Change::Delete => "delete",
        }
    }

    /// As the table names it.
    pub fn words(self) -> &'static str {
        match self {
            Change::Ready => "new ready Service",
            Change::Unready => "new unready Service",
            Change::TurnsUnready => "Service turns unready",
            Change::TurnsReady => "Service turns ready",
            Change::Endpoint => "another endpoint",
            Change::Delete => "deleted Service (from the request on)",
        }
    }

    /// In an answer of `/v1/health/service`.
    pub fn sign(self, probe: &Probe) -> Sign {
        match self {
            Change::Ready => Sign::Has(probe.service.clone()),
            Change::Unready | Change::TurnsUnready => Sign::Has("critical".to_owned()),
            Change::TurnsReady => Sign::Lacks("critical".to_owned()),
            Change::Endpoint => Sign::Has(format!("\"{}\"", probe.address())),
            Change::Delete => Sign::Lacks(probe.service.clone()),
        }
    }

    /// Whether DNS answers after it; none where it cannot tell.
    pub fn resolves(self) -> Option<bool> {
        match self {
            Change::Ready | Change::TurnsReady => Some(true),
            Change::TurnsUnready | Change::Delete => Some(false),
            Change::Unready | Change::Endpoint => None,
        }
    }
}

// === impl Sign ===

impl Sign {
    /// Whether an answer shows it.
    pub fn is_in(&self, text: &str) -> bool {
        match self {
            Sign::Has(sign) => text.contains(sign),
            Sign::Lacks(sign) => !text.contains(sign),
        }
    }
}

// === impl Probe ===

impl Probe {
    /// The one of this number in a round of the change. Each side has names of its own: one that
    /// others hold in Consul is not joined.
    pub fn new(side: &str, change: Change, round: usize, number: usize) -> Self {
        let service = match change {
            // These stay, and one endpoint changes each round.
            Change::Endpoint => format!("{side}-ends-{number:05}"),
            Change::Unready => format!("{side}-dark-{round:02}{number:03}"),
            _ => format!("{side}-life-{round:02}{number:03}"),
        };
        Self { service, round, number }
    }

    /// Of the endpoint in this place.
    pub fn endpoint(&self, place: usize) -> String {
        format!("10.{place}.{}.{}", self.number / 250, self.number % 250 + 1)
    }

    /// Of the one that changes.
    pub fn address(&self) -> String {
        self.endpoint(100 + self.round)
    }

    /// All of them, the first in front.
    pub fn addresses(&self, first: &str) -> Vec<String> {
        let others = (1..ENDPOINTS).map(|place| self.endpoint(200 + place));
        std::iter::once(first.to_owned()).chain(others).collect()
    }

    /// Its endpoints; `told` are the addresses that the floor puts in.
    pub fn slice(&self, change: Change, is_ready: bool, first: &str, told: &[String]) -> Value {
        let endpoint = |it: String| json!({"addresses": [it], "conditions": {"ready": is_ready}});
        let endpoints: Vec<_> = self.addresses(first).into_iter().map(endpoint).collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": self.service,
                "labels": {"kubernetes.io/service-name": self.service},
                "annotations": annotations(change.name(), &self.service, told),
            },
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        })
    }

    /// The Service itself.
    pub fn object(&self, change: Change) -> Value {
        let mut annotations = annotations(change.name(), &self.service, &[]);
        if change == Change::Endpoint {
            let all = self.addresses(&self.endpoint(200));
            annotations = self::annotations(SETUP, &self.service, &all);
            annotations["kube-consul.io/address"] = "endpoints".into();
        }
        json!({
            "metadata": {"name": self.service, "annotations": annotations},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        })
    }
}

fn annotations(change: &str, service: &str, addresses: &[String]) -> Value {
    json!({CHANGE: change, SERVICE: service, ADDRESSES: addresses.join(",")})
}
