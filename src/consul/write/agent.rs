//! The agent sink: one record a request, to the agent beside us.
//!
//! The critical check of an instance that is not ready is a TTL check that nobody updates: it
//! stays critical when its TTL runs out, so it needs no heartbeat.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::consul::http::client::{Client, Request, encode};
use crate::consul::http::error::{Error, Reach};
use crate::consul::http::wire::{Weights, readiness_check_id};
use crate::consul::write::txn::Operation;
use crate::domain::consul::record::{
    Answer, Check, PtrOwner, PtrRecord, READINESS_CHECK, RecordKey, Registration, Write,
};
use crate::domain::kube::names::ClusterName;

/// TTL of the readiness check: ten years. It never matters, but when it ran out the agent
/// would change the check's output, which is a catalog write for each instance.
const CHECK_TTL: &str = "87600h";

/// Writes records to one agent.
#[derive(Clone, Debug)]
pub struct AgentSink {
    client: Client,
    flags: u64,
}

/// A service as the agent's register call takes it, with a check of kind `C`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
pub(in crate::consul) struct RegisterBody<'a, C> {
    #[serde(rename = "ID")]
    pub id: &'a str,
    pub name: &'a str,
    pub address: &'a str,
    pub port: u16,
    pub tags: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta: Option<&'a BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights<u16>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub check: Option<C>,
}

#[derive(Serialize)]
struct RegisterCheck {
    #[serde(rename = "CheckID")]
    check_id: String,
    #[serde(rename = "Name")]
    name: &'static str,
    #[serde(rename = "Status")]
    status: &'static str,
    #[serde(rename = "TTL")]
    ttl: &'static str,
}

// === impl AgentSink ===

impl AgentSink {
    /// A sink for the records of this cluster.
    pub fn new(client: Client, cluster: &ClusterName) -> Self {
        Self { client, flags: PtrOwner::flags(cluster) }
    }

    /// Makes one change and says what became of it.
    pub async fn write(&self, write: Write) -> Answer {
        match write {
            Write::Register(registration) | Write::Replace(registration) => {
                self.register(&registration).await
            }
            Write::Deregister { id, .. } => applied(self.client.deregister(&id).await),
            Write::PutPtr { record, cas } => self.put(record, cas).await,
            Write::DeletePtr { key, cas } => {
                self.transact(Operation::DeleteKey { key, index: cas }).await
            }
        }
    }

    /// Makes the changes of one group, one after the other. After one that fails none is sent.
    pub(in crate::consul) async fn write_group(
        &self,
        writes: Vec<Write>,
        answers: &mut Vec<(RecordKey, Answer)>,
    ) {
        let mut failed = false;
        for write in writes {
            let key = write.key();
            let answer = if failed { Answer::NotSent } else { self.write(write).await };
            failed |= !matches!(answer, Answer::Applied { .. });
            answers.push((key, answer));
        }
    }

    async fn register(&self, registration: &Registration) -> Answer {
        let check = match registration.check {
            Check::None => None,
            Check::Critical => Some(RegisterCheck {
                check_id: readiness_check_id(&registration.id),
                name: READINESS_CHECK,
                status: "critical",
                ttl: CHECK_TTL,
            }),
            // The command line rules it out. Registered without a check it would be read back
            // as another than was asked for and be written for ever.
            Check::Passing => {
                return Answer::Refused(
                    "expected no passing check, which an agent would have to be reminded of: \
                     use --health unready or --sink catalog"
                        .to_owned(),
                );
            }
        };
        let body = RegisterBody {
            id: &registration.id,
            name: &registration.service,
            address: &registration.address,
            port: registration.port,
            tags: &registration.tags,
            meta: Some(&registration.meta),
            weights: Some(Weights::of(registration)),
            check,
        };
        let request = register_request(&body);
        let result = match (done(&self.client, &request).await, &body.check) {
            (Ok(()), Some(check)) => self.fail_check(&check.check_id).await,
            (result, _) => result,
        };
        applied(result)
    }

    /// An agent keeps the status of a check that is registered again: if another made it
    /// passing, only this makes it critical. It changes nothing when it is.
    async fn fail_check(&self, check_id: &str) -> Result<(), Error> {
        let path = format!("/v1/agent/check/fail/{}", encode(check_id));
        done(&self.client, &Request::put(path)).await
    }

    async fn put(&self, record: PtrRecord, index: u64) -> Answer {
        let PtrRecord { key, value } = record;
        self.transact(Operation::SetKey { key, value, flags: self.flags, index }).await
    }

    /// A transaction rather than `PUT /v1/kv`, because its answer tells the new `ModifyIndex`.
    async fn transact(&self, operation: Operation) -> Answer {
        match self.client.transaction(&[operation.encode()]).await {
            Ok(written) => {
                Answer::Applied { index: written.first().map_or(0, |written| written.index) }
            }
            Err(error) => error.answer(Reach::Servers),
        }
    }
}

// === impl Client ===

impl Client {
    /// Removes a service from the agent; one that it does not know is removed already.
    pub async fn deregister(&self, id: &str) -> Result<(), Error> {
        let request = Request::put(format!("/v1/agent/service/deregister/{}", encode(id)));
        let reply = self.send(&request).await?;
        if reply.is_found() {
            return Ok(());
        }
        match reply.into_error().await {
            error if error.is_unknown_service() => Ok(()),
            error => Err(error),
        }
    }
}

/// Registers anything with the agent. The caller's checks are the only ones afterwards.
pub(in crate::consul) fn register_request(body: &impl Serialize) -> Request {
    Request::put("/v1/agent/service/register")
        .parameter("replace-existing-checks", "true")
        .json(body)
}

/// Sends a request whose answer has no body that matters.
pub(in crate::consul) async fn done(client: &Client, request: &Request) -> Result<(), Error> {
    client.send(request).await?.into_found().await.map(drop)
}

fn applied(result: Result<(), Error>) -> Answer {
    match result {
        Ok(()) => Answer::Applied { index: 0 },
        Err(error) => error.answer(Reach::Agent),
    }
}
