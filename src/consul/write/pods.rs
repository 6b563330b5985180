//! What a node daemon writes to its agent: registrations with a TTL check, and what the checks say.

use std::time::Duration;

use serde::Serialize;

use crate::consul::http::client::Client;
use crate::consul::http::error::{Error, Reach};
use crate::consul::http::request::{Request, encode};
use crate::consul::write::agent::done;
use crate::consul::write::registration::{
    AgentCheck, AgentService, CheckKind, CheckStatus, MetaBody,
};
use crate::domain::consul::record;
use crate::domain::node::exchange::{Action, Answer};
use crate::domain::node::wanted::{self, Registration, State};

/// TTL of a registration that names none, which the core never sends.
const DEFAULT_TTL: Duration = Duration::from_secs(10);

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CheckUpdate<'a> {
    status: &'static str,
    output: &'a str,
}

/// Does what the core wants done in the agent.
pub async fn write(client: &Client, action: &Action) -> Answer {
    let result = match action {
        Action::Register(registration, state) => register(client, registration, state).await,
        Action::Update { id, state, deadline } => update(client, id, state, *deadline).await,
        Action::RemoveCheck(id) => remove_check(client, id).await,
        Action::Deregister(id) => client.deregister(id).await,
        _ => return Answer::Done,
    };
    let Err(error) = result else { return Answer::Done };
    if matches!(action, Action::Update { .. }) && is_unknown_check(&error) {
        return Answer::UnknownCheck(error.chain());
    }
    match error.answer(Reach::Agent) {
        record::Answer::Refused(why) => Answer::Refused(why),
        record::Answer::Denied(why) => Answer::Denied(why),
        _ if error.is_silence() => Answer::Unanswered(error.chain()),
        _ => Answer::Failed(error.chain()),
    }
}

/// Checks of others on the service stay: maintenance mode is one.
async fn register(
    client: &Client,
    registration: &Registration,
    state: &State,
) -> Result<(), Error> {
    let service = AgentService {
        id: &registration.id,
        name: &registration.name,
        address: &registration.address,
        port: registration.port,
        tags: &registration.tags,
        meta: Some(MetaBody::Own(&registration.meta)),
        weights: None,
        check: Some(AgentCheck {
            id: Some((&*registration.id).into()),
            name: None,
            notes: Some((&*state.output).into()),
            status: Some(match state.status {
                wanted::CheckStatus::Passing => CheckStatus::Passing,
                wanted::CheckStatus::Warning => CheckStatus::Warning,
                wanted::CheckStatus::Critical => CheckStatus::Critical,
            }),
            deregister_critical_after: registration.deregister_critical_after,
            kind: CheckKind::Ttl {
                ttl: registration.ttl.unwrap_or(DEFAULT_TTL),
                shown: registration.ttl,
            },
        }),
    };
    done(client, &Request::put("/v1/agent/service/register").json(&service)).await
}

async fn update(client: &Client, id: &str, state: &State, deadline: Duration) -> Result<(), Error> {
    let body = CheckUpdate { status: state.status.as_str(), output: &state.output };
    let request = Request::put(format!("/v1/agent/check/update/{}", encode(id)));
    done(client, &request.json(&body).deadline(deadline)).await
}

/// One that is not there is removed already.
async fn remove_check(client: &Client, id: &str) -> Result<(), Error> {
    let request = Request::put(format!("/v1/agent/check/deregister/{}", encode(id)));
    match done(client, &request).await {
        Err(error) if error.is_unknown_check() => Ok(()),
        other => other,
    }
}

/// Whether the agent has no check of ours under this ID: none, or one of another kind.
fn is_unknown_check(error: &Error) -> bool {
    error.is_unknown_check()
        || error.message().is_some_and(|it| it.contains("does not have associated TTL"))
}
