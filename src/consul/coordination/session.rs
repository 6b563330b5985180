//! Sessions: what holds the leader's lock, and runs out with its process (invariant 9).

use serde::Deserialize;

use crate::consul::http::client::{Client, Request, encode};
use crate::consul::http::error::Error;

/// How long a session lasts without renewal: the shortest that Consul allows. Consul may take
/// up to twice as long to end it.
pub const TTL_SECONDS: u64 = 10;

/// A session on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionId(Box<str>);

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "ID")]
    id: Box<str>,
}

// === impl SessionId ===

impl SessionId {
    /// The ID as text, for [`crate::consul::write::txn::Operation::CheckSession`].
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Client {
    /// Creates a session on this node, which must exist. No check can end it, only time: the
    /// node is ours and no agent runs on it. Without lock delay: every transaction is fenced.
    pub async fn create_session(&self, node: &str) -> Result<SessionId, Error> {
        let body = serde_json::json!({
            "Name": "kube-consul", "Node": node, "NodeChecks": [], "LockDelay": "0s",
            "TTL": format!("{TTL_SECONDS}s"), "Behavior": "release"
        });
        let request = Request::put("/v1/session/create").json(&body);
        let created: Created = self.send(&request).await?.into_found().await?.json().await?;
        Ok(SessionId(created.id))
    }

    /// Renews the session for another TTL; false: it is gone, and the lock with it.
    pub async fn renew_session(&self, session: &SessionId) -> Result<bool, Error> {
        let path = format!("/v1/session/renew/{}", encode(session.as_str()));
        let reply = self.send(&Request::put(path)).await?;
        if reply.is_found() {
            return Ok(true);
        }
        match reply.into_error().await {
            Error::Unexpected { status: 404, message, .. } if message.contains("not found") => {
                Ok(false)
            }
            error => Err(error),
        }
    }

    /// Ends the session and releases its lock; one that is gone is no failure.
    pub async fn destroy_session(&self, session: &SessionId) -> Result<(), Error> {
        let path = format!("/v1/session/destroy/{}", encode(session.as_str()));
        let destroyed = match self.send(&Request::put(path)).await {
            Ok(reply) => reply.into_found().await.map(drop),
            Err(error) => Err(error),
        };
        destroyed.or_else(|error| if is_gone(&error) { Ok(()) } else { Err(error) })
    }
}

/// Whether there is no such session. With ACLs older servers (up to 1.7 at least, not 1.20) answer
/// so with a 500, which comes through another server as one of its own.
fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Refused { message, .. } | Error::NoQuorum { message, .. }
        if message.contains("Unknown session"))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::put;

    use super::*;
    use crate::consul::http::config::Config;

    #[tokio::test]
    async fn a_session_that_is_gone_needs_no_end() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for (status, answer, is_over) in [
            (200, "true", true),
            (500, "Unknown session \"s\"", true),
            (500, "rpc error making call: Unknown session \"s\"", true),
            (500, "No cluster leader", false),
            (403, "Permission denied", false),
        ] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let answers =
                move || std::future::ready((StatusCode::from_u16(status).unwrap(), answer));
            let router = Router::new().route("/v1/session/destroy/s", put(answers));
            tokio::spawn(async move { axum::serve(listener, router).await });
            let config = Config { address: address.parse().unwrap(), ..Config::default() };
            let client = Client::new(&config).unwrap();
            let ended = client.destroy_session(&SessionId("s".into())).await;
            assert_eq!(ended.is_ok(), is_over, "{answer}: {ended:?}");
        }
    }
}
