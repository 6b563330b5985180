//! The ACL token in use: read, or got by logging in, and renewed when Consul refuses it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::consul::http::config::{Login, TokenSource};
use crate::consul::http::error::{Error, MAX_TOKEN_FILE, MIN_RENEWAL_INTERVAL, TokenError};
use crate::consul::http::request::Request;
use crate::consul::http::transport::Transport;

/// A token as it was at one time.
#[derive(Clone, Debug)]
pub(in crate::consul) struct Token {
    /// What is sent; none: no header.
    pub secret: Option<SecretString>,
    generation: u64,
}

/// The source and what came from it last.
#[derive(Debug)]
pub(in crate::consul) struct Tokens {
    source: TokenSource,
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Token>,
    tried: Option<Instant>,
}

#[derive(Deserialize)]
struct LoginAnswer {
    #[serde(rename = "SecretID")]
    secret: String,
}

// === impl Tokens ===

impl Tokens {
    pub(in crate::consul) fn new(source: TokenSource) -> Self {
        Self { source, generation: AtomicU64::new(0), state: Mutex::default() }
    }

    /// Moves whenever another token than before comes into use.
    pub(in crate::consul) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// The token in use; the first call gets it.
    pub(in crate::consul) async fn current(
        &self,
        transport: &Transport,
    ) -> Result<Token, TokenError> {
        // Held while a token is fetched: the others wait for it instead of fetching their own.
        let mut state = self.state.lock().await;
        if let Some(token) = &state.current {
            return Ok(token.clone());
        }
        state.begin_attempt().ok_or(TokenError::TooSoon)?;
        let secret = self.fetch(transport).await?;
        let token = Token { secret, generation: self.generation() };
        state.current = Some(token.clone());
        Ok(token)
    }

    /// Gets a token anew after Consul refused `refused`, and returns it if it is another one.
    /// `unknown` says that Consul does not know the old one at all: only then logging in again
    /// can help, a missing right is not mended by it.
    pub(in crate::consul) async fn renew(
        &self,
        transport: &Transport,
        refused: &Token,
        unknown: bool,
    ) -> Result<Option<Token>, TokenError> {
        let renewable = match self.source {
            TokenSource::Anonymous | TokenSource::Fixed(_) => false,
            TokenSource::File(_) => true,
            TokenSource::Login(_) => unknown,
        };
        if !renewable {
            return Ok(None);
        }
        let mut state = self.state.lock().await;
        // Another request was faster.
        if let Some(token) = state.current.as_ref().filter(|t| t.generation > refused.generation) {
            return Ok(Some(token.clone()));
        }
        if state.begin_attempt().is_none() {
            return Ok(None);
        }
        let secret = self.fetch(transport).await?;
        if same(secret.as_ref(), refused.secret.as_ref()) {
            return Ok(None);
        }
        let token = Token { secret, generation: refused.generation + 1 };
        self.generation.store(token.generation, Ordering::Relaxed);
        state.current = Some(token.clone());
        Ok(Some(token))
    }

    /// Ends what a login began, if one did.
    pub(in crate::consul) async fn logout(&self, transport: &Transport) -> Result<(), Error> {
        let TokenSource::Login(Login { datacenter, .. }) = &self.source else { return Ok(()) };
        let Some(token) = self.state.lock().await.current.take() else { return Ok(()) };
        let request = in_datacenter("/v1/acl/logout", datacenter.as_deref());
        transport.send(&request, token.secret.as_ref()).await.map(drop)
    }

    async fn fetch(&self, transport: &Transport) -> Result<Option<SecretString>, TokenError> {
        match &self.source {
            TokenSource::Anonymous => Ok(None),
            TokenSource::Fixed(token) => Ok(Some(token.clone())),
            TokenSource::File(path) => read(path).await,
            TokenSource::Login(login) => log_in(transport, login).await.map(Some),
        }
    }
}

fn in_datacenter(path: &str, datacenter: Option<&str>) -> Request {
    let request = Request::post(path);
    // The first one counts where the configuration has one, too.
    match datacenter {
        Some(name) => request.parameter("dc", name),
        None => request,
    }
}

async fn log_in(transport: &Transport, login: &Login) -> Result<SecretString, TokenError> {
    let Login { auth_method, bearer_token_file, datacenter, meta } = login;
    let bearer = read(bearer_token_file)
        .await?
        .ok_or_else(|| TokenError::Content { path: bearer_token_file.clone(), found: "nothing" })?;
    let body = serde_json::json!({
        "AuthMethod": auth_method, "BearerToken": bearer.expose_secret(), "Meta": meta,
    });
    let failed =
        |source| TokenError::Login { auth_method: auth_method.clone(), source: Box::new(source) };
    let request = in_datacenter("/v1/acl/login", datacenter.as_deref()).json(&body);
    let reply = transport.send(&request, None).await.map_err(failed)?;
    let answer: LoginAnswer = reply.json().await.map_err(failed)?;
    Ok(answer.secret.into())
}

// === impl State ===

impl State {
    /// Notes an attempt to get a token; none: it is too soon for one.
    fn begin_attempt(&mut self) -> Option<()> {
        if self.tried.is_some_and(|tried| tried.elapsed() < MIN_RENEWAL_INTERVAL) {
            return None;
        }
        self.tried = Some(Instant::now());
        Some(())
    }
}

/// Whether a token file can be read and holds one.
pub async fn is_in_file(path: &Path) -> Result<bool, TokenError> {
    read(path).await.map(|token| token.is_some())
}

/// The trimmed content of a token file; an empty one is no token, as for Consul's own command.
async fn read(path: &Path) -> Result<Option<SecretString>, TokenError> {
    let failed = |source| TokenError::Read { path: path.to_owned(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut content = Vec::new();
    file.take(MAX_TOKEN_FILE + 1).read_to_end(&mut content).await.map_err(failed)?;
    let invalid = |found| TokenError::Content { path: path.to_owned(), found };
    if content.len() as u64 > MAX_TOKEN_FILE {
        return Err(invalid("more"));
    }
    let text = String::from_utf8(content).map_err(|_| invalid("bytes that are not UTF-8"))?;
    let token = text.trim();
    if token.chars().any(|c| !c.is_ascii_graphic()) {
        return Err(invalid("characters that no token has"));
    }
    Ok((!token.is_empty()).then(|| token.into()))
}

fn same(a: Option<&SecretString>, b: Option<&SecretString>) -> bool {
    a.map(ExposeSecret::expose_secret) == b.map(ExposeSecret::expose_secret)
}
