//! A Consul client: requests with the token in use, which is renewed when Consul refuses it.

use std::sync::Arc;

use crate::consul::http::config::Config;
use crate::consul::http::error::Error;
use crate::consul::http::operation::Observer;
use crate::consul::http::request::Request;
use crate::consul::http::setup::BuildError;
use crate::consul::http::token::{Token, Tokens};
use crate::consul::http::transport::{Reply, Transport};

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

// === impl Client ===

impl Client {
    /// A client for this configuration. Reads the certificate files; connects to nothing.
    pub fn new(config: &Config) -> Result<Self, BuildError> {
        let transport = Transport::new(config)?;
        let tokens = Tokens::new(config.token.clone());
        Ok(Self { inner: Arc::new(Inner { transport, tokens }) })
    }

    /// Has every request from now on told to this observer, whichever clone sends it. The first one
    /// that is given stays.
    pub fn observe(&self, observer: Observer) {
        drop(self.inner.transport.observed.0.set(observer));
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

    /// Moves whenever another of several addresses than before answers: whose records are there has to be
    /// asked again.
    pub fn address_generation(&self) -> u64 {
        self.inner.transport.moves()
    }

    /// Ends the login, where there was one, so that its token does not outlive the process. Not
    /// after registering with an agent, which goes on using the token of each registration.
    pub async fn logout(&self) -> Result<(), Error> {
        self.inner.tokens.logout(&self.inner.transport).await
    }

    /// Sends a request with the token; a refused token is renewed once and the request sent again.
    pub(in crate::consul) async fn send(&self, request: &Request) -> Result<Reply, Error> {
        self.send_with_token(request).await.map(|(reply, _)| reply)
    }

    /// As [`Client::send`], for a read whose completeness matters: where the answer is filtered
    /// or may be, a token file is read again too.
    pub(in crate::consul) async fn send_read(&self, request: &Request) -> Result<Reply, Error> {
        let (reply, token) = self.send_with_token(request).await?;
        let evidence = reply.evidence();
        if !evidence.filtered && evidence.empty_is_true() {
            return Ok(reply);
        }
        let Inner { transport, tokens } = &*self.inner;
        match tokens.renew(transport, &token, false).await.map_err(Error::Token)? {
            Some(token) => transport.send(request, token.secret.as_ref()).await,
            None => Ok(reply),
        }
    }

    /// The answer, and the token that it is the answer to.
    async fn send_with_token(&self, request: &Request) -> Result<(Reply, Token), Error> {
        let Inner { transport, tokens } = &*self.inner;
        let token = tokens.current(transport).await.map_err(Error::Token)?;
        let error = match transport.send(request, token.secret.as_ref()).await {
            Ok(reply) => return Ok((reply, token)),
            Err(error) => error,
        };
        if !error.is_denied() {
            return Err(error);
        }
        let unknown = error.is_unknown_token();
        match tokens.renew(transport, &token, unknown).await.map_err(Error::Token)? {
            Some(token) => {
                let reply = transport.send(request, token.secret.as_ref()).await?;
                Ok((reply, token))
            }
            None => Err(error),
        }
    }
}
