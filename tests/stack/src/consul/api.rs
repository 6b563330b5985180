//! A raw client of Consul's HTTP API, for what a test looks at and puts there.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::Value;

use crate::certificates;

/// Without a leader Consul answers after 7 s.
const REQUEST_DEADLINE: Duration = Duration::from_secs(15);

/// How a transaction says that something is not there: a key, a service or a check, a node.
const ABSENT: [&str; 3] = ["doesn't exist", "not found", "does not exist"];

/// A client of one agent. Belongs to the runtime of its test: its connections
/// end there.
#[derive(Clone)]
pub struct ConsulApi {
    client: Client,
    url: String,
    token: Option<String>,
}

impl std::fmt::Debug for ConsulApi {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("ConsulApi").field(&self.url).finish()
    }
}

impl ConsulApi {
    /// A client of the agent at `url` with a token, trusting an authority (PEM).
    pub fn new(url: &str, token: Option<&str>, ca: Option<&str>) -> Result<Self> {
        let authority = ca.map(|pem| Certificate::from_pem(pem.as_bytes())).transpose()?;
        let client = Client::builder()
            .no_proxy()
            .timeout(REQUEST_DEADLINE)
            .tls_certs_only(authority)
            .build()
            .context("make a client for Consul")?;
        Ok(Self { client, url: url.to_owned(), token: token.map(ToOwned::to_owned) })
    }

    /// A client of an agent with TLS whose certificate has another name than its address.
    pub fn named(name: &str, address: SocketAddr, token: Option<&str>, ca: &str) -> Result<Self> {
        certificates::install_provider();
        // All of a bundle: while an authority is replaced both are trusted.
        let client = Client::builder()
            .no_proxy()
            .timeout(REQUEST_DEADLINE)
            .tls_certs_only(Certificate::from_pem_bundle(ca.as_bytes())?)
            .resolve(name, address)
            .build()
            .context("make a client for Consul")?;
        let url = format!("https://{name}:{}", address.port());
        Ok(Self { client, url, token: token.map(ToOwned::to_owned) })
    }

    /// The agent's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The same client with another token, or none.
    #[must_use]
    pub fn with_token(&self, token: Option<&str>) -> Self {
        Self { token: token.map(ToOwned::to_owned), ..self.clone() }
    }

    /// GET; null for an answer without a body and for 404.
    pub async fn get(&self, path: &str) -> Result<Value> {
        match self.send(Method::GET, path, String::new()).await? {
            (StatusCode::NOT_FOUND, _) => Ok(Value::Null),
            answer => parse(&format!("GET {path}"), &answer),
        }
    }

    /// GET of a key's value; none when it does not exist.
    pub async fn key(&self, key: &str) -> Result<Option<String>> {
        let path = format!("/v1/kv/{key}?raw");
        match self.send(Method::GET, &path, String::new()).await? {
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, value) if status.is_success() => Ok(Some(value)),
            (status, text) => bail!("GET {path} was answered {status}: {text}"),
        }
    }

    /// GET, for the status alone.
    pub async fn status(&self, path: &str) -> Result<u16> {
        let (status, _) = self.send(Method::GET, path, String::new()).await?;
        Ok(status.as_u16())
    }

    /// PUT of JSON (null: an empty body).
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.send(Method::PUT, path, body).await?;
        parse(&format!("PUT {path}"), &answer)
    }

    /// Which of these reads found something, all at one moment: one read-only transaction. A
    /// read of what is absent fails, and with it the transaction.
    pub async fn found(&self, reads: &[Value]) -> Result<Vec<bool>> {
        let answer = self.send(Method::PUT, "/v1/txn", Value::from(reads).to_string()).await?;
        let mut found = vec![true; reads.len()];
        if answer.0 != StatusCode::CONFLICT {
            return parse("PUT /v1/txn", &answer).map(|_| found);
        }
        let answer: Value = serde_json::from_str(&answer.1)?;
        for error in answer["Errors"].as_array().into_iter().flatten() {
            let what = error["What"].as_str().unwrap_or_default();
            if !ABSENT.iter().any(|text| what.contains(text)) {
                bail!("a read failed: {error}");
            }
            let index = error["OpIndex"].as_u64().and_then(|index| usize::try_from(index).ok());
            let place = index.and_then(|index| found.get_mut(index));
            *place.context("an error of no read")? = false;
        }
        Ok(found)
    }

    /// PUT of text as it is: a key's value.
    pub async fn put_text(&self, path: &str, body: &str) -> Result<Value> {
        let answer = self.send(Method::PUT, path, body.to_owned()).await?;
        parse(&format!("PUT {path}"), &answer)
    }

    /// DELETE.
    pub async fn delete(&self, path: &str) -> Result<Value> {
        let answer = self.send(Method::DELETE, path, String::new()).await?;
        parse(&format!("DELETE {path}"), &answer)
    }

    async fn send(&self, method: Method, path: &str, body: String) -> Result<(StatusCode, String)> {
        let what = format!("{method} {}{path}", self.url);
        let mut request = self.client.request(method, format!("{}{path}", self.url)).body(body);
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        let answer = request.send().await.context(what.clone())?;
        let status = answer.status();
        Ok((status, answer.text().await.context(what)?))
    }
}

fn parse(what: &str, (status, text): &(StatusCode, String)) -> Result<Value> {
    if !status.is_success() {
        bail!("{what} was answered {status}: {text}");
    }
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).with_context(|| format!("{what} was answered with no JSON: {text}"))
}
