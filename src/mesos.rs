//! The edge to a Mesos agent: asks for its state, of which [`State`] is what matters.

use std::str::FromStr;
use std::time::Duration;

use crate::domain::hook::mesos::State;
use crate::domain::text::excerpt;

/// Time to connect: the agent is on the same host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Largest state that is read. One task is about 3 kB; an agent keeps up to 50 completed
/// frameworks with 150 executors each, most of one task, so some 20 MB at the very most.
const MAX_STATE: usize = 64 << 20;

/// Why the state could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The URL is none.
    #[error(
        "--mesos-agent-url (MESOS_AGENT_ENDPOINT): expected http://HOST:PORT or HOST:PORT, found {0}"
    )]
    Url(String),
    /// No client could be made.
    #[error("cannot set up the client for the Mesos agent")]
    Client(#[source] reqwest::Error),
    /// No answer, or one that broke off.
    #[error("GET {url}: no whole answer from the Mesos agent")]
    Unanswered {
        /// The state's URL.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// Another status than 200.
    #[error("GET {url}: expected the Mesos agent's state, found HTTP {status}")]
    Status {
        /// The state's URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// More than is read.
    #[error("GET {url}: expected a state of at most {MAX_STATE} bytes, found more")]
    Size {
        /// The state's URL.
        url: String,
    },
    /// Not what Mesos answers.
    #[error("GET {url}: expected the JSON of a Mesos agent's state, found something else")]
    Garbled {
        /// The state's URL.
        url: String,
        /// Where it differs.
        source: serde_json::Error,
    },
}

/// The URL of a Mesos agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentUrl(String);

/// A Mesos agent.
#[derive(Clone, Debug)]
pub struct Agent {
    http: reqwest::Client,
    url: String,
}

// === impl Error ===

impl Error {
    /// Whether the same request may succeed in a while.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unanswered { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::Url(_) | Self::Client(_) | Self::Size { .. } | Self::Garbled { .. } => false,
        }
    }
}

// === impl AgentUrl ===

impl FromStr for AgentUrl {
    type Err = Error;

    /// Mesos gives its executors `host:port` alone.
    fn from_str(url: &str) -> Result<Self, Error> {
        let invalid = || {
            Error::Url(if url.contains('@') {
                "one with credentials, which would show in logs".to_owned()
            } else {
                format!("{:?}", excerpt(url))
            })
        };
        let text = url.trim();
        let text = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let text = text.trim_end_matches('/').to_owned();
        let parsed = reqwest::Url::parse(&text).map_err(|_| invalid())?;
        let usable = matches!(parsed.scheme(), "http" | "https")
            && parsed.has_host()
            && parsed.query().is_none()
            && parsed.fragment().is_none()
            && !url.contains('@');
        if usable { Ok(Self(text.trim_end_matches('/').to_owned())) } else { Err(invalid()) }
    }
}

// === impl Agent ===

impl Agent {
    /// The agent at this URL. Connects to nothing yet.
    pub fn new(AgentUrl(url): &AgentUrl) -> Result<Self, Error> {
        let mut http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            // Nothing secret is sent; the original follows as many.
            .redirect(reqwest::redirect::Policy::limited(10))
            .no_proxy();
        if url.starts_with("http:") {
            // A host without CA certificates must do for plain HTTP.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(Error::Client)?;
        Ok(Self { http, url: format!("{url}/state") })
    }

    /// Its state now. The caller bounds the time.
    pub async fn state(&self) -> Result<State, Error> {
        let url = || self.url.clone();
        let unanswered =
            |error: reqwest::Error| Error::Unanswered { url: url(), source: error.without_url() };
        let mut response = self.http.get(&self.url).send().await.map_err(unanswered)?;
        let status = response.status().as_u16();
        if status != 200 {
            return Err(Error::Status { url: url(), status });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
            if body.len() + chunk.len() > MAX_STATE {
                return Err(Error::Size { url: url() });
            }
            body.extend_from_slice(&chunk);
        }
        serde_json::from_slice(&body).map_err(|source| Error::Garbled { url: url(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_url_may_lack_its_scheme() {
        for (text, expected) in [
            ("http://localhost:5050", "http://localhost:5050"),
            ("10.0.0.1:5051", "http://10.0.0.1:5051"),
            ("https://proxy/agent/", "https://proxy/agent"),
        ] {
            assert_eq!(text.parse::<AgentUrl>().unwrap().0, expected);
        }
        for bad in ["", "ftp://x", "http://", "http://a:b", "http://me:secret@x", "x?y=z"] {
            let error = bad.parse::<AgentUrl>().unwrap_err();
            assert!(matches!(error, Error::Url(_)), "{bad}");
            assert!(!error.to_string().contains("secret"), "{error}");
        }
    }
}
