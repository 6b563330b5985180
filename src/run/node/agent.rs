//! Requests to the agent, and what comes of them.

use std::time::Duration;

use tokio::time::Instant;

use crate::consul::http::client::Client;
use crate::consul::read::agent::AgentInfo;
use crate::consul::read::pods;
use crate::consul::write::pods as write;
use crate::domain::node::exchange::{Action, Answer, Found};
use crate::domain::text::chain;

/// What the agent has, and what it says of itself where the token may ask; or why it is not known.
pub(super) type Reading = Result<(Vec<Found>, Option<AgentInfo>), String>;

/// A write that was answered.
pub(super) struct Written {
    pub(super) id: Box<str>,
    pub(super) action: Action,
    pub(super) answer: Answer,
    pub(super) took: Duration,
}

/// Reads it.
pub(super) async fn read(client: Client) -> Reading {
    let found = pods::agent(&client).await.map_err(|why| chain(&why))?;
    Ok((found, client.agent_self().await.ok()))
}

/// Does what the core wants done to the registration of this ID.
pub(super) async fn write(client: Client, id: Box<str>, action: Action) -> Written {
    let began = Instant::now();
    let answer = write::write(&client, &action).await;
    Written { id, action, answer, took: began.elapsed() }
}
