//! The agent sink: one record a request, to the agent beside us.

use crate::consul::http::client::Client;
use crate::consul::http::error::{Error, Reach};
use crate::consul::http::request::{Request, encode};
use crate::consul::write::registration::AgentService;
use crate::consul::write::txn::Operation;
use crate::domain::consul::record::{
    Answer, Check, PtrOwner, PtrRecord, RecordKey, Registration, Write,
};
use crate::domain::consul::registration_id::readiness_check_id;
use crate::domain::kube::names::ClusterName;

/// Writes records to one agent.
#[derive(Clone, Debug)]
pub struct AgentSink {
    client: Client,
    flags: u64,
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
            Write::Register(registration) => self.register(&registration, false).await,
            Write::Replace(registration) => self.register(&registration, true).await,
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

    /// Registers an instance; `replaces`: the one that it replaces may have our check. Checks of
    /// others on it stay: maintenance mode is one.
    async fn register(&self, registration: &Registration, replaces: bool) -> Answer {
        // The command line rules it out. The agent would turn it critical when its TTL ran out,
        // and it would be written for ever.
        if registration.check == Check::Passing {
            return Answer::Refused(
                "expected no passing check, which an agent would have to be reminded of: \
                 use --health unready or --sink catalog"
                    .to_owned(),
            );
        }
        let service = AgentService::from(registration);
        let check = service.check.as_ref().and_then(|check| check.id.as_deref());
        let request = Request::put("/v1/agent/service/register").json(&service);
        let result = match (done(&self.client, &request).await, check) {
            (Ok(()), Some(check)) => self.fail_check(check).await,
            (Ok(()), None) if replaces => {
                self.remove_check(&readiness_check_id(&registration.id)).await
            }
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

    /// Removes a check; one that is not there is removed already.
    async fn remove_check(&self, check_id: &str) -> Result<(), Error> {
        let path = format!("/v1/agent/check/deregister/{}", encode(check_id));
        match done(&self.client, &Request::put(path)).await {
            Err(error) if error.is_unknown_check() => Ok(()),
            result => result,
        }
    }

    async fn put(&self, record: PtrRecord, index: u64) -> Answer {
        let PtrRecord { key, value } = record;
        self.transact(Operation::SetKey { key, value, flags: self.flags, index }).await
    }

    /// A transaction rather than `PUT /v1/kv`, because its answer tells the new `ModifyIndex`.
    async fn transact(&self, operation: Operation<'_>) -> Answer {
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
    /// Registers a service with the agent, as the hook does; one of the same ID is overwritten. Its
    /// check is the only one afterwards.
    pub async fn register(&self, service: &AgentService<'_>) -> Result<(), Error> {
        let request = Request::put("/v1/agent/service/register")
            .parameter("replace-existing-checks", "true")
            .json(service);
        done(self, &request).await
    }

    /// Removes a service from the agent; one that it does not know is removed already.
    pub async fn deregister(&self, id: &str) -> Result<(), Error> {
        let request = Request::put(format!("/v1/agent/service/deregister/{}", encode(id)));
        let reply = self.send(&request).await?;
        if reply.is_found() {
            return reply.empty().await;
        }
        match reply.into_error().await {
            error if error.is_unknown_service() => Ok(()),
            error => Err(error),
        }
    }
}

/// Sends a request that an agent answers without a body. One with a body is somebody else's: of a
/// proxy that has everybody log in, say, behind which nothing was registered.
pub(in crate::consul) async fn done(client: &Client, request: &Request) -> Result<(), Error> {
    client.send(request).await?.into_found().await?.empty().await
}

fn applied(result: Result<(), Error>) -> Answer {
    match result {
        Ok(()) => Answer::Applied { index: 0 },
        Err(error) => error.answer(Reach::Agent),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::Router;
    use axum::routing::put;

    use super::*;
    use crate::consul::http::config::Config;

    /// A proxy that has everybody log in answers whatever it is asked with 200 and a page.
    #[tokio::test]
    async fn b1_only_an_empty_answer_means_that_it_is_registered() {
        crate::tls::install_provider();
        for (answer, is_applied) in [("", true), ("\n", true), ("<html>Log in</html>", false)] {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            let router = Router::new()
                .route("/v1/agent/service/register", put(async move || answer))
                .route("/v1/agent/service/deregister/{id}", put(async move || answer));
            tokio::spawn(async move { axum::serve(listener, router).await });
            let config = Config { address: address.parse().unwrap(), ..Config::default() };
            let sink = AgentSink::new(
                Client::new(&config).unwrap(),
                &"eu".parse::<ClusterName>().unwrap(),
            );
            let registration = Registration {
                id: "eu_shop_web_http_10.0.0.1".into(),
                service: "web".into(),
                namespace: "shop".into(),
                address: "10.0.0.1".into(),
                port: 80,
                tags: Vec::new().into(),
                meta: BTreeMap::new().into(),
                weight: 1,
                check: Check::None,
            };
            let ended = sink.client.deregister(&registration.id).await;
            assert_eq!(ended.is_ok(), is_applied, "{answer}: {ended:?}");
            match sink.write(Write::Register(registration)).await {
                Answer::Applied { .. } => assert!(is_applied, "{answer}"),
                Answer::Unanswered(why) => assert!(!is_applied && why.contains("Log in"), "{why}"),
                other => panic!("{answer}: {other:?}"),
            }
        }
    }
}
