//! Requests to Consul's HTTP API: deadlines, bounded bodies, the token, the error classes.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::ExposeSecret;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::consul::http::config::{Address, Config};
use crate::consul::http::error::Error;
use crate::consul::http::setup::{BuildError, basic, trust, with_server_name};
use crate::consul::http::stream::{Item, Layout, Malformed, Splitter};
use crate::consul::http::token::{Token, Tokens};

/// A connection within a datacenter takes about 1 ms, with TLS and a lost SYN 3 s: past 5 s it
/// is not coming. Less than every deadline, so that what ends by it was surely not sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A request with a short answer: without a leader Consul itself answers after 7 s; twice that.
const DEADLINE: Duration = Duration::from_secs(15);

/// A listing: 100,000 services took Consul under 2 s; a slow server and network get 60 times that.
const LISTING_DEADLINE: Duration = Duration::from_mins(2);

/// Between two pieces of a listing: Consul sends it in one go once it is there.
const LISTING_PAUSE: Duration = Duration::from_secs(30);

/// Idle connections that are kept. Four transactions in flight are the fastest (measured on Consul
/// 1.8.7: 17,400 services a second, 10,200 with one and 14,100 with 16), the watch, the read-back
/// and a probe make 7; Consul allows 200 a client.
const MAX_IDLE_CONNECTIONS: usize = 8;

/// Shorter than what load balancers between (350 s and more) forget a connection after.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Finds a peer that is gone without a word within [`IDLE_TIMEOUT`].
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Largest short answer: `/v1/agent/self` is 12 kB, a transaction's results of 64 operations
/// with full meta (64 pairs of 640 bytes) stay below 4 MiB.
const MAX_BODY: usize = 4 << 20;

/// As much of an error's body as is read: rollbacks of 128 operations with a sentence each.
const MAX_ERROR_BODY: usize = 64 << 10;

/// What stays as it is in a path's segment (RFC 3986 "unreserved").
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The same in a KV key.
const KEY: &AsciiSet = &SEGMENT.remove(b'/');

/// A Consul client. Clones share connections and token.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    transport: Transport,
    tokens: Tokens,
}

/// Requests without the token: the connection pool and what goes into each URL.
#[derive(Debug)]
pub(in crate::consul) struct Transport {
    http: reqwest::Client,
    base: String,
    display: String,
    /// Namespace and partition, encoded, where set.
    tenancy: String,
    /// `dc`, encoded, where set.
    datacenter: String,
}

/// One request.
#[derive(Clone, Debug)]
pub(in crate::consul) struct Request {
    method: Method,
    path: String,
    query: String,
    body: Option<bytes::Bytes>,
    deadline: Duration,
}

/// A success, or a 404, which several calls give a meaning to. Its body is yet to be read.
#[derive(Debug)]
pub(in crate::consul) struct Reply {
    request: String,
    response: reqwest::Response,
    token: Option<Token>,
}

/// What an answer's headers say about its completeness (invariant 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consul) struct Evidence {
    /// The token's rights hid something.
    pub filtered: bool,
    /// Whoever has no right sees nothing, and Consul does not say so to one without a token.
    deny_by_default: bool,
    token_sent: bool,
}

// === impl Client ===

impl Client {
    /// A client for this configuration. Reads the certificate files; connects to nothing.
    pub fn new(config: &Config) -> Result<Self, BuildError> {
        let transport = Transport::new(config)?;
        let tokens = Tokens::new(config.token.clone());
        Ok(Self { inner: Arc::new(Inner { transport, tokens }) })
    }

    /// Where requests go, for people.
    pub fn url(&self) -> &str {
        &self.inner.transport.display
    }

    /// Moves whenever another token than before comes into use. An agent keeps the token of
    /// each registration, so its registrations have to be sent once more then.
    pub fn token_generation(&self) -> u64 {
        self.inner.tokens.generation()
    }

    /// Ends the login, where there was one, so that its token does not outlive the process. Not
    /// after registering with an agent, which goes on using the token of each registration.
    pub async fn logout(&self) -> Result<(), Error> {
        let Some(token) = self.inner.tokens.take_login().await else { return Ok(()) };
        let request = Request::post("/v1/acl/logout");
        self.inner.transport.send(&request, Some(&token)).await.map(drop)
    }

    /// Sends a request with the token; a refused token is renewed once and the request sent again.
    pub(in crate::consul) async fn send(&self, request: &Request) -> Result<Reply, Error> {
        let Inner { transport, tokens } = &*self.inner;
        let token = tokens.current(transport).await.map_err(Error::Token)?;
        match transport.send(request, Some(&token)).await {
            Err(error) if error.is_denied() => {
                let unknown = error.is_unknown_token();
                match tokens.renew(transport, &token, unknown).await.map_err(Error::Token)? {
                    Some(token) => transport.send(request, Some(&token)).await,
                    None => Err(error),
                }
            }
            result => result,
        }
    }

    /// As [`Client::send`], for a read whose completeness matters: where the answer is filtered
    /// or may be, a token file is read again too.
    pub(in crate::consul) async fn send_read(&self, request: &Request) -> Result<Reply, Error> {
        let reply = self.send(request).await?;
        let evidence = reply.evidence();
        if !evidence.filtered && evidence.empty_is_true() {
            return Ok(reply);
        }
        let Inner { transport, tokens } = &*self.inner;
        let Some(token) = &reply.token else { return Ok(reply) };
        match tokens.renew(transport, token, false).await.map_err(Error::Token)? {
            Some(token) => transport.send(request, Some(&token)).await,
            None => Ok(reply),
        }
    }
}

// === impl Transport ===

impl Transport {
    fn new(config: &Config) -> Result<Self, BuildError> {
        let mut base = config.base_url();
        let mut headers = HeaderMap::new();
        if let Some(auth) = &config.http_auth {
            headers.insert(AUTHORIZATION, basic(auth)?);
        }
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_max_idle_per_host(MAX_IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .tcp_keepalive(KEEPALIVE)
            // Consul's API redirects nothing, and a token must not follow to another host.
            .redirect(reqwest::redirect::Policy::none())
            // Consul is a neighbour: never through a proxy for the outside world.
            .no_proxy();
        if let Address::Unix(path) = &config.address {
            builder = builder.unix_socket(path.as_path());
        }
        if config.uses_tls() {
            builder = trust(builder, config)?;
            if let Some(name) = &config.tls_server_name {
                (builder, base) = with_server_name(builder, &mut headers, name, &base)?;
            }
        } else {
            // An image without CA certificates must do for plain HTTP.
            builder = builder.tls_certs_only([]);
        }
        let http = builder.default_headers(headers).build().map_err(BuildError::Http)?;
        let parameter = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("&{name}={}", encode(value))).unwrap_or_default()
        };
        Ok(Self {
            http,
            base,
            display: config.display_url(),
            tenancy: parameter("ns", &config.namespace)
                + &parameter("partition", &config.partition),
            datacenter: parameter("dc", &config.datacenter),
        })
    }

    /// Sends a request with this token.
    pub(in crate::consul) async fn send(
        &self,
        request: &Request,
        token: Option<&Token>,
    ) -> Result<Reply, Error> {
        let mut builder =
            self.http.request(request.method.clone(), self.url(request)).timeout(request.deadline);
        if let Some(secret) = token.and_then(|token| token.secret.as_ref()) {
            // A token that no header can carry becomes a builder error, without its text.
            let value = HeaderValue::from_str(secret.expose_secret()).map(|mut value| {
                value.set_sensitive(true);
                value
            });
            builder = match value {
                Ok(value) => builder.header("X-Consul-Token", value),
                Err(_) => {
                    return Err(Error::Denied {
                        request: request.name(),
                        message: "expected a token of printable ASCII characters, found others"
                            .to_owned(),
                    });
                }
            };
        }
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        let name = request.name();
        let failed = |error| Error::of_exchange(request.name(), self.display.clone(), error);
        let mut response = builder.send().await.map_err(failed)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(Reply { request: name, response, token: token.cloned() });
        }
        // The status alone says a lot: a body that breaks off does not change it.
        let body = read_body(&mut response, MAX_ERROR_BODY).await.unwrap_or_default();
        Err(Error::of_answer(name, status.as_u16(), &body))
    }

    fn url(&self, request: &Request) -> String {
        // An agent answers for itself: it has no `dc`.
        let datacenter =
            if request.path.starts_with("/v1/agent/") { "" } else { self.datacenter.as_str() };
        let query = format!("{}{}{datacenter}", request.query, self.tenancy);
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{}{mark}{}", self.base, request.path, query.trim_start_matches('&'))
    }
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
    fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

// === impl Reply ===

impl Reply {
    /// Whether it is there (the status is not 404).
    pub(in crate::consul) fn is_found(&self) -> bool {
        self.response.status() != StatusCode::NOT_FOUND
    }

    /// What its headers say about its completeness.
    pub(in crate::consul) fn evidence(&self) -> Evidence {
        let token_sent = self.token.as_ref().is_some_and(|token| token.secret.is_some());
        Evidence::of_headers(self.response.headers(), token_sent)
    }

    /// A header's text.
    pub(in crate::consul) fn header(&self, name: &str) -> Option<&str> {
        self.response.headers().get(name)?.to_str().ok()
    }

    /// Decodes a short answer.
    pub(in crate::consul) async fn json<T: DeserializeOwned>(self) -> Result<T, Error> {
        let request = self.request.clone();
        let body = self.body().await?;
        serde_json::from_slice(&body)
            .map_err(|error| Error::Garbled { request, reason: error.to_string() })
    }

    /// A 404 where there is no reason for one, as the error that it is.
    pub(in crate::consul) async fn into_found(self) -> Result<Self, Error> {
        if self.is_found() { Ok(self) } else { Err(self.into_error().await) }
    }

    /// A 404 as an error with Consul's words.
    pub(in crate::consul) async fn into_error(mut self) -> Error {
        let status = self.response.status().as_u16();
        let body = read_body(&mut self.response, MAX_ERROR_BODY).await.unwrap_or_default();
        Error::of_answer(self.request, status, &body)
    }

    /// Hands on the items of a listing as they arrive. Success means that it was whole.
    pub(in crate::consul) async fn items(
        mut self,
        layout: Layout,
        mut each: impl FnMut(Item<'_>) -> Result<(), Malformed> + Send,
    ) -> Result<(), Error> {
        let garbled = |request: &str, error: &Malformed| Error::Garbled {
            request: request.to_owned(),
            reason: error.to_string(),
        };
        let mut splitter = Splitter::new(layout);
        loop {
            let chunk = match tokio::time::timeout(LISTING_PAUSE, self.response.chunk()).await {
                Ok(Ok(chunk)) => chunk,
                Ok(Err(error)) => return Err(Error::of_broken(self.request, error)),
                Err(_) => {
                    return Err(Error::Garbled {
                        request: self.request,
                        reason: format!("expected more within {LISTING_PAUSE:?}, found nothing"),
                    });
                }
            };
            let Some(chunk) = chunk else { break };
            splitter.feed(&chunk, &mut each).map_err(|error| garbled(&self.request, &error))?;
            // A listing that arrives faster than it is read must not keep its task's other work
            // waiting, nor heap up what it handed on.
            tokio::task::yield_now().await;
        }
        splitter.finish().map_err(|error| garbled(&self.request, &error))
    }

    async fn body(mut self) -> Result<Vec<u8>, Error> {
        match read_body(&mut self.response, MAX_BODY).await {
            Ok(body) if body.len() < MAX_BODY => Ok(body),
            Ok(_) => Err(Error::Garbled {
                request: self.request,
                reason: format!("expected less than {MAX_BODY} bytes, found more"),
            }),
            Err(error) => Err(Error::of_broken(self.request, error)),
        }
    }
}

/// The body, or its first `limit` bytes.
async fn read_body(response: &mut reqwest::Response, limit: usize) -> reqwest::Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        let room = limit - body.len();
        body.extend_from_slice(&chunk[..chunk.len().min(room)]);
        if body.len() == limit {
            break;
        }
    }
    Ok(body)
}

// === impl Evidence ===

impl Evidence {
    fn of_headers(headers: &HeaderMap, token_sent: bool) -> Self {
        let text = |name: &str| headers.get(name).map(HeaderValue::as_bytes);
        Self {
            filtered: text("X-Consul-Results-Filtered-By-ACLs")
                .is_some_and(|value| !value.eq_ignore_ascii_case(b"false")),
            deny_by_default: text("X-Consul-Default-ACL-Policy")
                .is_some_and(|value| value != b"allow"),
            token_sent,
        }
    }

    /// Whether an empty answer with this evidence means that there is nothing (invariant 1).
    pub(in crate::consul) fn empty_is_true(self) -> bool {
        !self.deny_by_default || (self.token_sent && !self.filtered)
    }
}

#[cfg(test)]
mod tests;
