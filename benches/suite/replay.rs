//! What the bridge sent, sent again: the same records by the same requests, as fast as they go.

use anyhow::{Result, ensure};
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use kube_consul_stack::Recorded;
use reqwest::{Client, Method, StatusCode};

/// A request of the bridge's.
#[derive(Clone, Debug)]
pub struct Request {
    method: Method,
    path: String,
    body: String,
}

/// Sends requests to one Consul.
#[derive(Clone, Debug)]
pub struct Sender {
    client: Client,
    url: String,
}

// === impl Request ===

impl Request {
    /// The same about something else: each of these texts is replaced by the other.
    pub fn about(&self, texts: &[(String, String)]) -> Self {
        let replace = |text: &str| {
            texts.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
        };
        Self { method: self.method.clone(), path: replace(&self.path), body: replace(&self.body) }
    }

    /// Whether it is a transaction.
    pub fn is_transaction(&self) -> bool {
        self.path.starts_with("/v1/txn")
    }

    /// Whether it is about something of this name.
    pub fn names(&self, name: &str) -> bool {
        self.path.contains(name) || self.body.contains(name)
    }
}

impl From<&Recorded> for Request {
    fn from(recorded: &Recorded) -> Self {
        Self {
            method: recorded.method.clone(),
            path: recorded.path.clone(),
            // An index is another one in another Consul: without it nothing is compared.
            body: String::from_utf8_lossy(&recorded.body).replace("\"delete-cas\"", "\"delete\""),
        }
    }
}

// === impl Sender ===

impl Sender {
    /// To the Consul at this URL.
    pub fn new(url: &str) -> Result<Self> {
        let client = Client::builder().no_proxy().tls_certs_only([]).build()?;
        Ok(Self { client, url: url.to_owned() })
    }

    /// Sends one, which has to succeed.
    pub async fn send(&self, request: &Request) -> Result<()> {
        let url = format!("{}{}", self.url, request.path);
        let body = request.body.clone();
        let answer = self.client.request(request.method.clone(), url).body(body).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        // What a read does not find is an answer, too.
        let is_read = request.method == Method::GET && status == StatusCode::NOT_FOUND;
        ensure!(
            status.is_success() || is_read,
            "{} {}: {status} {text}",
            request.method,
            request.path
        );
        Ok(())
    }

    /// Sends all, so many at a time.
    pub async fn send_all(&self, requests: &[Request], at_a_time: usize) -> Result<()> {
        let all = stream::iter(requests).map(|request| self.send(request));
        all.buffer_unordered(at_a_time).try_collect().await
    }
}

/// What Consul answers once it is newer than the index (0: at once), and the index of it.
pub async fn blocking(client: &Client, url: &str, index: u64) -> Result<(u64, String)> {
    let query = if index == 0 { String::new() } else { format!("?index={index}&wait=60s") };
    let answer = client.get(format!("{url}{query}")).send().await?.error_for_status()?;
    let index = answer.headers().get("X-Consul-Index").and_then(|it| it.to_str().ok());
    let index = index.and_then(|it| it.parse().ok()).unwrap_or_default();
    Ok((index, answer.text().await?))
}
