//! A request to Consul's HTTP API: method, path, parameters, body, deadline.

use std::fmt;
use std::time::Duration;

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;

/// A request with a short answer: without a leader Consul itself answers after 7 s; twice that.
const DEADLINE: Duration = Duration::from_secs(15);

/// A listing: 100,000 services took Consul under 2 s; a slow server and network get 60 times that.
const LISTING_DEADLINE: Duration = Duration::from_mins(2);

/// What stays as it is in a path's segment (RFC 3986 "unreserved").
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The same in a KV key.
const KEY: &AsciiSet = &SEGMENT.remove(b'/');

/// One request.
#[derive(Clone, Debug)]
pub(in crate::consul) struct Request {
    pub method: Method,
    pub path: String,
    /// Each parameter with a `&` before it.
    pub query: String,
    pub body: Option<bytes::Bytes>,
    pub deadline: Duration,
}

/// One path segment or query value, percent-encoded: a service ID or a key may hold anything.
pub(in crate::consul) fn encode(text: &str) -> impl fmt::Display {
    utf8_percent_encode(text, SEGMENT)
}

/// A KV key as a path: its slashes stay, for the sake of proxies that refuse encoded ones.
pub(in crate::consul) fn encode_key(key: &str) -> impl fmt::Display {
    utf8_percent_encode(key, KEY)
}

// === impl Request ===

impl Request {
    pub(in crate::consul) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    pub(in crate::consul) fn put(path: impl Into<String>) -> Self {
        Self::new(Method::PUT, path)
    }

    pub(in crate::consul) fn post(path: impl Into<String>) -> Self {
        Self::new(Method::POST, path)
    }

    fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), query: String::new(), body: None, deadline: DEADLINE }
    }

    /// Adds a query parameter.
    pub(in crate::consul) fn parameter(mut self, name: &str, value: &str) -> Self {
        self.query.extend(["&", name, "=", &encode(value).to_string()]);
        self
    }

    /// Whether its answer may wait for a change.
    pub(in crate::consul) fn is_blocking(&self) -> bool {
        self.query.contains("&wait=")
    }

    /// Whether it is itself for a datacenter that may be another one.
    pub(in crate::consul) fn names_datacenter(&self) -> bool {
        self.query.contains("&dc=")
    }

    /// Adds a query parameter without a value.
    pub(in crate::consul) fn flag(mut self, name: &str) -> Self {
        self.query.extend(["&", name]);
        self
    }

    /// Gives it a JSON body.
    pub(in crate::consul) fn json(mut self, body: &impl Serialize) -> Self {
        let body = serde_json::to_vec(body)
            .expect("our own types have string keys and no failing Serialize");
        self.body = Some(body.into());
        self
    }

    /// Gives it a body that is taken as it is.
    pub(in crate::consul) fn text(mut self, body: &str) -> Self {
        self.body = Some(bytes::Bytes::copy_from_slice(body.as_bytes()));
        self
    }

    /// Gives it another deadline than that of a short answer.
    pub(in crate::consul) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Makes it the request of a listing.
    pub(in crate::consul) fn listing(self) -> Self {
        self.deadline(LISTING_DEADLINE)
    }

    /// Method and path, for errors. The query holds nothing that helps.
    pub(in crate::consul) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}
