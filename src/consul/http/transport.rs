//! Sending requests without knowing where tokens come from: connections, bounded bodies, and what
//! an answer's headers say.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use http::{Method, StatusCode};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;

use crate::consul::http::addresses::{Addresses, AgentSelf};
use crate::consul::http::config::{Address, Config};
use crate::consul::http::error::Error;
use crate::consul::http::operation::{Observed, Operation};
use crate::consul::http::request::{Request, encode};
use crate::consul::http::setup::{BuildError, basic, trust, with_server_name};
use crate::consul::http::stream::{Item, Layout, Malformed, Splitter};
use crate::domain::text::{chain, one_line};

/// A connection within a datacenter takes about 1 ms, with TLS and a lost SYN 3 s: past 5 s it
/// is not coming. Less than every deadline, so that what ends by it was surely not sent.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two pieces of a listing: Consul sends it in one go once it is there.
const LISTING_PAUSE: Duration = Duration::from_secs(30);

/// Idle connections that are kept. Four transactions in flight are the fastest (measured on Consul
/// 1.8.7: 17,400 services a second, 10,200 with one and 14,100 with 16), the watch, the resync
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

/// As much of a body that ought not to be there as is shown: it begins with what it is.
const SHOWN_OF_BODY: usize = 80;

/// How often the certificate files are looked at, when there is something to send: a kubelet takes a
/// minute and more to bring a renewed Secret, which is renewed days before it is needed.
const LOOK_AT_FILES: Duration = Duration::from_secs(2);

/// Requests without the token: the addresses and what goes into each URL.
#[derive(Debug)]
pub(in crate::consul) struct Transport {
    /// At least one.
    peers: Vec<Peer>,
    addresses: Addresses,
    /// Where requests go, for people.
    pub display: String,
    /// Told how long each request took.
    pub observed: Observed,
    /// Namespace and partition, encoded, where set.
    tenancy: String,
    /// `dc`, encoded, where set.
    datacenter: String,
}

/// One address of Consul's, with its connection pool.
#[derive(Debug)]
struct Peer {
    http: Mutex<Connections>,
    config: Config,
    base: String,
    /// The address, for people.
    display: String,
}

/// The connection pool, and the certificate files that it was made from.
#[derive(Debug)]
struct Connections {
    http: reqwest::Client,
    stamp: Stamp,
    /// When the files were looked at.
    looked: Instant,
}

/// What tells that a file is another one: its path, change time, size and inode. A Secret's volume
/// swaps a link, which a look through it shows.
type Stamp = Vec<(PathBuf, Option<(SystemTime, u64, u64)>)>;

/// A success, or a 404, which several calls give a meaning to. Its body is yet to be read.
#[derive(Debug)]
pub(in crate::consul) struct Reply {
    request: String,
    response: reqwest::Response,
    token_sent: bool,
}

/// What an answer's headers say about its completeness (invariant: evidence).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::consul) struct Evidence {
    /// The token's rights hid something.
    pub filtered: bool,
    /// Whoever has no right sees nothing, and Consul does not say so to one without a token.
    deny_by_default: bool,
    token_sent: bool,
}

// === impl Transport ===

impl Transport {
    /// Reads the certificate files; connects to nothing.
    pub(in crate::consul) fn new(config: &Config) -> Result<Self, BuildError> {
        let peers: Vec<Peer> = config.each().map(Peer::new).collect::<Result<_, _>>()?;
        let displays: Vec<String> = peers.iter().map(|peer| peer.display.clone()).collect();
        let display = displays.join(", ");
        let parameter = |name: &str, value: &Option<String>| {
            value.as_ref().map(|value| format!("&{name}={}", encode(value))).unwrap_or_default()
        };
        Ok(Self {
            peers,
            addresses: Addresses::new(displays),
            display,
            observed: Observed::default(),
            tenancy: parameter("ns", &config.namespace)
                + &parameter("partition", &config.partition),
            datacenter: parameter("dc", &config.datacenter),
        })
    }

    /// Sends a request with this token.
    pub(in crate::consul) async fn send(
        &self,
        request: &Request,
        token: Option<&SecretString>,
    ) -> Result<Reply, Error> {
        let began = Instant::now();
        let result = self.exchange(request, token).await;
        if let Some(observer) = self.observed.0.get()
            && !request.is_blocking()
        {
            let operation = Operation::of(&request.method, &request.path);
            observer(operation, began.elapsed(), result.is_ok());
        }
        result
    }

    /// Moves whenever another address than before answers.
    pub(in crate::consul) fn moves(&self) -> u64 {
        self.addresses.moves()
    }

    /// Asks at the address in use. Where that was surely not sent, or is a read that no server could
    /// serve, it goes to the others, each once. Whatever else was not served may have been applied: only
    /// what is asked after it goes elsewhere.
    async fn exchange(
        &self,
        request: &Request,
        token: Option<&SecretString>,
    ) -> Result<Reply, Error> {
        if let [only] = &*self.peers {
            return self.exchange_with(only, request, token).await;
        }
        let mut last = None;
        for place in self.addresses.turn() {
            let is_next = last.is_some();
            if let Err(error) = self.introduce(place, token).await {
                self.addresses.leave(place, &error);
                // That nobody is at the right ones tells more.
                last = last.or(Some(error));
                continue;
            }
            match self.exchange_with(&self.peers[place], request, token).await {
                Err(error) if error.is_silence() || lacks_quorum(request, &error) => {
                    self.addresses.leave(place, &error);
                    let is_unsent = matches!(error, Error::Unreachable { .. });
                    let is_read = request.method == Method::GET && !error.is_unanswered();
                    if !is_unsent && !is_read {
                        return Err(error);
                    }
                    last = Some(error);
                }
                result => {
                    self.addresses.answered(place, is_next);
                    return result;
                }
            }
        }
        Err(last.expect("there is an address, and each sets it"))
    }

    /// Makes sure that the address is of the datacenter of the others.
    async fn introduce(&self, place: usize, token: Option<&SecretString>) -> Result<(), Error> {
        let has_token = token.is_some();
        if !self.datacenter.is_empty() || !self.addresses.is_unknown(place, has_token) {
            return Ok(());
        }
        let request = AgentSelf::request();
        let answer = match self.exchange_with(&self.peers[place], &request, token).await {
            Ok(reply) if reply.is_found() => reply.json().await,
            Ok(reply) => Err(reply.into_error().await),
            Err(error) => Err(error),
        };
        self.addresses.introduced(place, has_token, answer)
    }

    async fn exchange_with(
        &self,
        peer: &Peer,
        request: &Request,
        token: Option<&SecretString>,
    ) -> Result<Reply, Error> {
        let mut builder = peer
            .http()
            .request(request.method.clone(), self.url(peer, request))
            .timeout(request.deadline);
        if let Some(secret) = token {
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
        let failed = |error| Error::of_exchange(request.name(), peer.display.clone(), error);
        let mut response = builder.send().await.map_err(failed)?;
        let status = response.status();
        if status.is_success() || status == StatusCode::NOT_FOUND {
            return Ok(Reply { request: name, response, token_sent: token.is_some() });
        }
        // The status alone says a lot: a body that breaks off does not change it.
        let body = read_body(&mut response, MAX_ERROR_BODY).await.unwrap_or_default();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|it| it.to_str().ok());
        Err(Error::of_answer(name, status.as_u16(), &body).with_retry_after(retry_after))
    }

    fn url(&self, peer: &Peer, request: &Request) -> String {
        // An agent answers for itself: it has no `dc`.
        let datacenter =
            if request.path.starts_with("/v1/agent/") { "" } else { self.datacenter.as_str() };
        let query = format!("{}{}{datacenter}", request.query, self.tenancy);
        let mark = if query.is_empty() { "" } else { "?" };
        format!("{}{}{mark}{}", peer.base, request.path, query.trim_start_matches('&'))
    }
}

/// Whether the server that was asked could not reach those that serve the request. Of another datacenter,
/// which the request itself names, that tells nothing of the address.
fn lacks_quorum(request: &Request, error: &Error) -> bool {
    error.lacks_quorum() && !request.names_datacenter()
}

// === impl Peer ===

impl Peer {
    /// Of a configuration with one address.
    fn new(config: Config) -> Result<Self, BuildError> {
        let stamp = stamp(&config);
        let (http, base) = connections(&config, false)?;
        let http = Mutex::new(Connections { http, stamp, looked: Instant::now() });
        Ok(Self { http, base, display: config.display_url(), config })
    }

    /// The connection pool. Certificate files that were renewed are taken up: those who are connected
    /// stay so, new connections show and trust what is on disk. Files that are no use change nothing.
    fn http(&self) -> reqwest::Client {
        // Each change is one step, so a panic elsewhere leaves it whole.
        let mut current = self.http.lock().unwrap_or_else(PoisonError::into_inner);
        if current.looked.elapsed() >= LOOK_AT_FILES {
            current.looked = Instant::now();
            let stamp = stamp(&self.config);
            if stamp != current.stamp {
                match connections(&self.config, false) {
                    Ok((http, _)) => {
                        tracing::info!("the certificate files for Consul were renewed");
                        current.http = http;
                    }
                    Err(error) => tracing::warn!(
                        error = chain(&error),
                        "the certificate files for Consul changed and cannot be used: those of before stay in use"
                    ),
                }
                current.stamp = stamp;
            }
        }
        current.http.clone()
    }
}

/// The connection pool that this configuration asks for, and what URLs begin with.
pub(in crate::consul) fn connections(
    config: &Config,
    shows_certificate: bool,
) -> Result<(reqwest::Client, String), BuildError> {
    let mut base = config.base_url();
    let mut headers = HeaderMap::new();
    if let Some(auth) = &config.http_auth {
        headers.insert(AUTHORIZATION, basic(auth)?);
    }
    let mut builder = reqwest::Client::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .tls_info(shows_certificate)
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
    Ok((http, base))
}

/// The certificate files as they are now.
fn stamp(config: &Config) -> Stamp {
    if !config.uses_tls() {
        return Stamp::new();
    }
    let files =
        [&config.ca_file, &config.ca_directory, &config.client_certificate, &config.client_key];
    let state = |path: &PathBuf| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.modified().ok()?, found.len(), found.ino()))
    };
    files.into_iter().flatten().map(|path| (path.clone(), state(path))).collect()
}

// === impl Reply ===

impl Reply {
    /// Whether it is there (the status is not 404).
    pub(in crate::consul) fn is_found(&self) -> bool {
        self.response.status() != StatusCode::NOT_FOUND
    }

    /// What its headers say about its completeness.
    pub(in crate::consul) fn evidence(&self) -> Evidence {
        Evidence::of_headers(self.response.headers(), self.token_sent)
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

    /// An answer that has to be without a body.
    pub(in crate::consul) async fn empty(mut self) -> Result<(), Error> {
        let body = match read_body(&mut self.response, MAX_ERROR_BODY).await {
            Ok(body) => body,
            Err(error) => return Err(Error::of_broken(self.request, error)),
        };
        if body.trim_ascii().is_empty() {
            return Ok(());
        }
        let found = one_line(&String::from_utf8_lossy(&body), SHOWN_OF_BODY);
        Err(Error::Garbled {
            request: self.request,
            reason: format!("expected an answer without a body, found {found:?}"),
        })
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

    /// Whether an empty answer with this evidence means that there is nothing (invariant:
    /// evidence).
    pub(in crate::consul) fn empty_is_true(self) -> bool {
        !self.deny_by_default || (self.token_sent && !self.filtered)
    }
}

#[cfg(test)]
mod tests;
