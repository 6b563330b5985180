//! The catalog sink: synthetic nodes, written in transactions.
//!
//! An instance with its check and its reverse record is one group and is never split. When
//! Consul rolls a transaction back, the groups at fault are answered and the rest is sent again
//! at once: one refused record harms only itself (invariant 7). With a [`Fence`] no transaction
//! of a deposed leader gets in (invariant 9).

use std::collections::BTreeSet;

use super::client::Client;
use super::error::{Error, OperationError, Reach};
use super::nodes::{NodeNames, Occupied, body};
use super::session::SessionId;
use super::txn::{MAX_BODY, MAX_OPERATIONS, Operation, WrittenKey};
use super::wire::{CheckBody, ServiceBody, readiness_check_id};
use crate::domain::names::ClusterName;
use crate::domain::record::{
    Answer, NamespaceNodeAnswer, RecordKey, Registration, ReverseOwner, Write,
};

/// Room that is left in a body for its brackets and for the fence.
const BODY_MARGIN: usize = 1 << 10;

/// Writes records to the catalog. A clone shares the client.
#[derive(Clone, Debug)]
pub struct CatalogSink {
    client: Client,
    cluster: ClusterName,
    nodes: NodeNames,
    flags: u64,
    fence: Option<Fence>,
}

/// The lock that every transaction asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    /// Its KV key.
    pub key: Box<str>,
    /// The session that has to hold it.
    pub session: SessionId,
}

/// Writes that are applied together or not at all.
struct Group {
    writes: Vec<Write>,
    /// The operations of each write.
    operations: Vec<Vec<Operation>>,
    /// The node that has to be there.
    node: Option<Box<str>>,
    bytes: usize,
}

/// Groups that go into one transaction.
#[derive(Default)]
struct Batch {
    groups: Vec<Group>,
    nodes: BTreeSet<Box<str>>,
    operations: usize,
    bytes: usize,
}

/// Whose an operation of a transaction is.
#[derive(Clone, Copy)]
enum Origin<'a> {
    Fence,
    Node(&'a str),
    Write { group: usize, write: usize },
}

// === impl CatalogSink ===

impl CatalogSink {
    /// A sink for the records of this cluster, on nodes of these names.
    pub fn new(client: Client, cluster: ClusterName, nodes: NodeNames) -> Self {
        let flags = ReverseOwner::flags(&cluster);
        Self { client, cluster, nodes, flags, fence: None }
    }

    /// The same sink, whose transactions apply only while the fence holds.
    #[must_use]
    pub fn fenced(self, fence: Option<Fence>) -> Self {
        Self { fence, ..self }
    }

    /// Makes these changes, each group whole or not at all, and says what became of each. The
    /// future owns what it needs.
    pub async fn write(self, groups: Vec<Vec<Write>>) -> Vec<(RecordKey, Answer)> {
        let mut waiting: Vec<Group> =
            groups.into_iter().map(|writes| self.group(writes)).rev().collect();
        let mut answers = Vec::new();
        while !waiting.is_empty() {
            let mut batch = Batch::default();
            while let Some(group) = waiting.pop() {
                if let Err(group) = batch.add(group, &self) {
                    waiting.push(*group);
                    break;
                }
            }
            let mut batches = vec![batch];
            while let Some(batch) = batches.pop() {
                batches.extend(self.send(batch, &mut answers).await);
            }
        }
        answers
    }

    /// Removes the node of a namespace if a reading just before shows nothing on it. The caller
    /// sees to it that no write to it is under way or uncertain.
    pub async fn remove_node(self, namespace: Box<str>) -> NamespaceNodeAnswer {
        let node = self.nodes.of_namespace(&namespace);
        match self.client.occupied(&node, &self.cluster).await {
            Ok(Occupied::No) => {}
            Ok(Occupied::ByOurs) => return NamespaceNodeAnswer::InUse,
            Ok(Occupied::ByOthers(ids)) => return NamespaceNodeAnswer::Foreign { node, ids },
            Err(unknown) => return NamespaceNodeAnswer::Failed(super::error::chain(&unknown)),
        }
        let fence = self.fence.as_ref().map(Fence::operation);
        let delete = Operation::DeleteNode { node };
        let operations: Vec<Operation> = fence.into_iter().chain([delete]).collect();
        match self.client.transaction(&operations).await {
            Ok(_) => NamespaceNodeAnswer::Removed,
            Err(error) => match error.answer(Reach::Servers) {
                Answer::Fenced => NamespaceNodeAnswer::Fenced,
                Answer::Unanswered(why) => NamespaceNodeAnswer::Unanswered(why),
                _ => NamespaceNodeAnswer::Failed(error.chain()),
            },
        }
    }

    fn group(&self, writes: Vec<Write>) -> Group {
        let node = writes.iter().find_map(|write| match write {
            Write::Register(registration) | Write::Replace(registration) => {
                Some(self.nodes.of_namespace(&registration.namespace))
            }
            _ => None,
        });
        let operations: Vec<Vec<Operation>> =
            writes.iter().map(|write| self.operations(write)).collect();
        let bytes = operations.iter().flatten().map(Operation::json_len).sum();
        Group { writes, operations, node, bytes }
    }

    fn operations(&self, write: &Write) -> Vec<Operation> {
        match write {
            Write::Register(registration) => self.register(registration).collect(),
            Write::Replace(registration) => {
                let check = self.check(registration).is_none().then(|| Operation::DeleteCheck {
                    node: self.nodes.of_namespace(&registration.namespace),
                    id: readiness_check_id(&registration.id).into(),
                    service: registration.service.clone(),
                });
                // Deleted first: a service that changes its name takes its checks along.
                check.into_iter().chain(self.register(registration)).collect()
            }
            Write::Deregister { id, service, namespace } => vec![Operation::DeleteService {
                node: self.nodes.of_namespace(namespace),
                id: id.clone(),
                name: service.clone(),
            }],
            Write::PutReverse { record, cas } => vec![Operation::SetKey {
                key: record.key.clone(),
                value: record.value.clone(),
                flags: self.flags,
                index: *cas,
            }],
            Write::DeleteReverse { key, cas } => {
                vec![Operation::DeleteKey { key: key.clone(), index: *cas }]
            }
        }
    }

    fn register(&self, registration: &Registration) -> impl Iterator<Item = Operation> + use<> {
        let node = self.nodes.of_namespace(&registration.namespace);
        let set = Operation::SetService { node, service: ServiceBody::new(registration) };
        std::iter::once(set).chain(self.check(registration).map(Operation::SetCheck))
    }

    fn check(&self, registration: &Registration) -> Option<CheckBody> {
        CheckBody::new(&self.nodes.of_namespace(&registration.namespace), registration)
    }

    /// Sends one transaction. Returns what has to be sent again, the last one first: the groups
    /// that are not at fault, or each half, where Consul does not say which ones are.
    async fn send(&self, batch: Batch, answers: &mut Vec<(RecordKey, Answer)>) -> Vec<Batch> {
        let fence = self.fence.as_ref().map(Fence::operation);
        let nodes = batch.nodes.iter().map(|node| Operation::SetNode(body(node, &self.cluster)));
        let written = batch.groups.iter().flat_map(|group| group.operations.iter().flatten());
        let operations: Vec<Operation> =
            fence.into_iter().chain(nodes).chain(written.cloned()).collect();
        let error = match self.client.transaction(&operations).await {
            Ok(keys) => {
                batch.groups.iter().for_each(|group| group.applied(&keys, answers));
                return Vec::new();
            }
            Err(Error::RolledBack { errors, .. }) => {
                let rest = batch.without_failed(&errors, self, answers);
                return Some(rest).filter(|rest| !rest.groups.is_empty()).into_iter().collect();
            }
            Err(error) => error,
        };
        let answer = error.answer(Reach::Servers);
        if matches!(answer, Answer::Refused(_)) && batch.groups.len() > 1 {
            return batch.halves(self).into();
        }
        batch.groups.iter().for_each(|group| group.all(&answer, answers));
        Vec::new()
    }
}

// === impl Fence ===

impl Fence {
    /// The operation that rolls a transaction back unless the fence holds.
    pub(super) fn operation(&self) -> Operation {
        Operation::CheckSession { key: self.key.clone(), session: self.session.as_str().into() }
    }
}

// === impl Group ===

impl Group {
    fn operation_count(&self) -> usize {
        self.operations.iter().map(Vec::len).sum()
    }

    fn all(&self, answer: &Answer, answers: &mut Vec<(RecordKey, Answer)>) {
        answers.extend(self.writes.iter().map(|write| (write.key(), answer.clone())));
    }

    fn applied(&self, keys: &[WrittenKey], answers: &mut Vec<(RecordKey, Answer)>) {
        for write in &self.writes {
            let index = match write {
                Write::PutReverse { record, .. } => {
                    keys.iter().find(|written| written.key == record.key)
                }
                _ => None,
            };
            let index = index.map_or(0, |written| written.index);
            answers.push((write.key(), Answer::Applied { index }));
        }
    }

    /// One write of the group is at fault: the others were not applied because of it.
    fn failed(&self, at_fault: usize, answer: &Answer, answers: &mut Vec<(RecordKey, Answer)>) {
        for (place, write) in self.writes.iter().enumerate() {
            let answer = if place == at_fault { answer.clone() } else { Answer::NotSent };
            answers.push((write.key(), answer));
        }
    }
}

// === impl Batch ===

impl Batch {
    /// Adds a group, or gives it back when the transaction would be larger than Consul allows. A
    /// group that is too large by itself is added to an empty batch: Consul says so then.
    fn add(&mut self, group: Group, sink: &CatalogSink) -> Result<(), Box<Group>> {
        let node = group.node.as_ref().filter(|node| !self.nodes.contains(*node));
        let (mut operations, mut bytes) = (group.operation_count(), group.bytes);
        if let Some(node) = node {
            operations += 1;
            bytes += Operation::SetNode(body(node, &sink.cluster)).json_len();
        }
        let most = MAX_OPERATIONS - usize::from(sink.fence.is_some());
        let fits =
            self.operations + operations <= most && self.bytes + bytes <= MAX_BODY - BODY_MARGIN;
        if !fits && !self.groups.is_empty() {
            return Err(Box::new(group));
        }
        self.nodes.extend(group.node.clone());
        self.operations += operations;
        self.bytes += bytes;
        self.groups.push(group);
        Ok(())
    }

    /// Answers the groups at fault, and returns the others. The first error of a group counts;
    /// one of a node is one of every group on it.
    fn without_failed(
        self,
        errors: &[OperationError],
        sink: &CatalogSink,
        answers: &mut Vec<(RecordKey, Answer)>,
    ) -> Self {
        let origins = self.origins(sink);
        let mut at_fault: Vec<Option<(usize, Answer)>> = vec![None; self.groups.len()];
        let mut of_all = None;
        for error in errors {
            let answer = error.answer();
            match origins.get(error.index) {
                Some(Origin::Fence) => of_all = Some(answer),
                Some(Origin::Node(node)) => {
                    for (group, fault) in self.groups.iter().zip(&mut at_fault) {
                        if group.node.as_deref() == Some(*node) {
                            // Rather than what follows from it.
                            *fault = Some((0, answer.clone()));
                        }
                    }
                }
                Some(Origin::Write { group, write }) => {
                    at_fault[*group].get_or_insert((*write, answer));
                }
                None => of_all = of_all.or(Some(Answer::Failed(error.message.clone()))),
            }
        }
        if of_all.is_none() && at_fault.iter().all(Option::is_none) {
            of_all = Some(Answer::Failed("rolled back without a reason".to_owned()));
        }
        let mut rest = Vec::new();
        for (group, fault) in self.groups.into_iter().zip(at_fault) {
            match (&of_all, fault) {
                (Some(answer), _) => group.all(answer, answers),
                (None, Some((write, answer))) => group.failed(write, &answer, answers),
                (None, None) => rest.push(group),
            }
        }
        Self::of_part(rest, sink)
    }

    /// Its second half and its first.
    fn halves(mut self, sink: &CatalogSink) -> [Self; 2] {
        let second = self.groups.split_off(self.groups.len() / 2);
        [second, self.groups].map(|groups| Self::of_part(groups, sink))
    }

    /// A batch of groups that have been in one batch: what fitted before fits again.
    fn of_part(groups: Vec<Group>, sink: &CatalogSink) -> Self {
        let mut batch = Batch::default();
        for group in groups {
            drop(batch.add(group, sink));
        }
        batch
    }

    fn origins(&self, sink: &CatalogSink) -> Vec<Origin<'_>> {
        let fence = sink.fence.is_some().then_some(Origin::Fence);
        let nodes = self.nodes.iter().map(|node| Origin::Node(node));
        let writes = self.groups.iter().enumerate().flat_map(|(group, of)| {
            of.operations.iter().enumerate().flat_map(move |(write, operations)| {
                operations.iter().map(move |_| Origin::Write { group, write })
            })
        });
        fence.into_iter().chain(nodes).chain(writes).collect()
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::put;

    use super::*;
    use crate::consul::config::Config;
    use crate::domain::record::Check;

    /// A Consul that answers a transaction by what stands in its body.
    async fn consul(
        answer: impl Fn(&str) -> (StatusCode, String) + Clone + Send + Sync + 'static,
    ) -> Client {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new()
            .route("/v1/txn", put(move |body: String| std::future::ready(answer(&body))));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Client::new(&Config { address: address.parse().unwrap(), ..Config::default() }).unwrap()
    }

    fn groups(count: usize) -> Vec<Vec<Write>> {
        let registration = |number| Registration {
            id: format!("c_ns_svc_80_{number}").into(),
            service: "svc".into(),
            namespace: "ns".into(),
            address: "10.0.0.1".into(),
            port: 80,
            tags: Vec::new(),
            meta: [].into(),
            weight: 1,
            check: Check::None,
        };
        (0..count).map(|number| vec![Write::Register(registration(number))]).collect()
    }

    async fn written(client: Client, count: usize) -> Vec<Answer> {
        let cluster: ClusterName = "c".parse().unwrap();
        let nodes = NodeNames::new(&cluster, None);
        let answers = CatalogSink::new(client, cluster, nodes).write(groups(count)).await;
        let keys: Vec<_> = answers.iter().map(|(key, _)| key.clone()).collect();
        let sent: Vec<_> = groups(count).iter().map(|group| group[0].key()).collect();
        assert_eq!(keys, sent, "each is answered once, in its turn");
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    #[tokio::test]
    async fn a_body_that_is_refused_as_a_whole_harms_only_the_record_at_fault() {
        for status in [StatusCode::PAYLOAD_TOO_LARGE, StatusCode::BAD_REQUEST] {
            let client = consul(move |body| {
                let bad = body.contains("c_ns_svc_80_5\"");
                if bad { (status, "no".to_owned()) } else { (StatusCode::OK, "{}".to_owned()) }
            });
            let answers = written(client.await, 20).await;
            for (number, answer) in answers.iter().enumerate() {
                let refused = matches!(answer, Answer::Refused(_));
                assert_eq!(refused, number == 5, "{status} {number}: {answer:?}");
                assert!(refused || *answer == Answer::Applied { index: 0 }, "{answer:?}");
            }
        }
    }

    #[tokio::test]
    async fn servers_in_trouble_refuse_nothing() {
        let trouble = |_: &str| (StatusCode::INTERNAL_SERVER_ERROR, "something new".to_owned());
        let answers = written(consul(trouble).await, 3).await;
        assert!(answers.iter().all(|it| matches!(it, Answer::Unanswered(_))), "{answers:?}");
    }
}
