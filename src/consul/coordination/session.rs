//! Sessions: what holds the leader's lock, and runs out with its process (invariant: fencing).

use std::time::Duration;

use serde::Deserialize;

use crate::consul::http::client::Client;
use crate::consul::http::error::Error;
use crate::consul::http::request::{Request, encode};
use crate::consul::write::fence::SessionId;

/// How long a session lasts without renewal, unless Consul asks for more (`session_ttl_min`): the
/// shortest that it allows by itself. It may take up to twice as long to end it.
pub const TTL: Duration = Duration::from_secs(10);

/// Longest session that is made where Consul asks for a longer one: what the process that leads may
/// leave behind when it vanishes. Consul's own limit is a day.
const LONGEST_TTL: Duration = Duration::from_hours(1);

/// A session and how long it lasts without renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// Its ID.
    pub id: SessionId,
    /// Its time to live.
    pub ttl: Duration,
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "ID")]
    id: Box<str>,
}

impl Client {
    /// Creates a session on this node, which must exist. No check can end it, only time: the
    /// node is ours and no agent runs on it. Without lock delay: every transaction is fenced. It
    /// lasts for [`TTL`], or for the least that Consul allows.
    pub async fn create_session(&self, node: &str) -> Result<Session, Error> {
        let error = match self.create_session_of(node, TTL).await {
            Ok(session) => return Ok(session),
            Err(error) => error,
        };
        match least_ttl(&error) {
            Some(ttl) if ttl > TTL && ttl <= LONGEST_TTL => self.create_session_of(node, ttl).await,
            _ => Err(error),
        }
    }

    async fn create_session_of(&self, node: &str, ttl: Duration) -> Result<Session, Error> {
        let body = serde_json::json!({
            "Name": "kube-consul", "Node": node, "NodeChecks": [], "LockDelay": "0s",
            "TTL": format!("{}s", ttl.as_secs()), "Behavior": "release"
        });
        let request = Request::put("/v1/session/create").json(&body);
        let created: Created = self.send(&request).await?.into_found().await?.json().await?;
        Ok(Session { id: SessionId(created.id), ttl })
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

/// The least TTL that Consul names when it refuses a shorter one (seen on 1.20.1: `Invalid Session
/// TTL '10000000000', must be between [30s=24h0m0s]`).
fn least_ttl(error: &Error) -> Option<Duration> {
    let (_, range) = error.message()?.split_once("Invalid Session TTL")?;
    let (_, range) = range.split_once('[')?;
    let least: jiff::SignedDuration = range.split_once('=')?.0.parse().ok()?;
    let least = Duration::try_from(least).ok()?;
    // In whole seconds, which it is asked for in.
    Some(Duration::from_secs(least.as_secs() + u64::from(least.subsec_nanos() > 0)))
}

/// Whether there is no such session. With ACLs older servers (up to 1.7 at least, not 1.20) answer
/// so with a 500, which comes through another server as one of its own.
fn is_gone(error: &Error) -> bool {
    error.message().is_some_and(|message| message.contains("Unknown session"))
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::put;

    use super::*;
    use crate::consul::http::config::Config;

    #[test]
    fn l13_the_least_ttl_is_taken_from_the_refusal() {
        for (text, least) in [
            ("Invalid Session TTL '10000000000', must be between [30s=24h0m0s]", Some(30)),
            (
                "rpc error making call: Invalid Session TTL '10000000000', must be between [1m30s=24h0m0s]",
                Some(90),
            ),
            ("Invalid Session TTL '1', must be between [500ms=24h0m0s]", Some(1)),
            ("Invalid Session TTL", None),
            ("No cluster leader", None),
        ] {
            let error = Error::of_answer("PUT /v1/session/create".into(), 500, text.as_bytes());
            assert_eq!(least_ttl(&error), least.map(Duration::from_secs), "{text}");
        }
    }

    #[tokio::test]
    async fn a_session_that_is_gone_needs_no_end() {
        crate::tls::install_provider();
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
