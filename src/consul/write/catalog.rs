//! The catalog sink: synthetic nodes, written in transactions.
//!
//! An instance with its check and its PTR record is one group and is never split. When Consul rolls
//! a transaction back, the groups at fault are answered and the rest is sent again at once: one
//! refused record harms only itself (invariant: isolation). With a [`Fence`] no transaction of a
//! deposed leader gets in (invariant: fencing). A node that the cluster did not make is never
//! written to (invariant: ownership).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::consul::http::client::Client;
use crate::consul::http::error::{Error, OperationError, Reach};
use crate::consul::read::evidence::Unknown;
use crate::consul::read::marks::{Mark, OnNode};
use crate::consul::write::fence::Fence;
use crate::consul::write::nodes::{NodeError, body};
use crate::consul::write::registration::{CheckBody, ServiceBody};
use crate::consul::write::txn::{Encoded, MAX_BODY, MAX_OPERATIONS, Operation, WrittenKey};
use crate::domain::consul::node_names::NodeNames;
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, PtrOwner, RecordKey, Registration, Write,
};
use crate::domain::consul::registration_id::readiness_check_id;
use crate::domain::kube::names::ClusterName;
use crate::domain::text::chain;

/// Room that is left in a body for its brackets and for the fence.
const BODY_MARGIN: usize = 1 << 10;

/// HTTP status of a rollback.
const CONFLICT: u16 = 409;
/// HTTP status of a body that cannot be read, or of a proxy that takes none.
const BAD_REQUEST: u16 = 400;

/// Writes records to the catalog. A clone shares the client.
#[derive(Clone, Debug)]
pub struct CatalogSink {
    client: Client,
    cluster: ClusterName,
    nodes: NodeNames,
    flags: u64,
    /// What rolls a transaction back unless the lock is held.
    fence: Option<Encoded>,
    /// Nodes that were seen to be the cluster's, at most one for each namespace: no other is
    /// written to (invariant: ownership).
    trusted: Arc<Mutex<BTreeSet<Box<str>>>>,
}

/// Writes that are applied together or not at all.
struct Group {
    writes: Vec<Write>,
    /// The operations of each write.
    operations: Vec<Vec<Encoded>>,
    /// The node that has to be there.
    node: Option<Box<str>>,
    bytes: usize,
}

/// Groups that go into one transaction.
#[derive(Default)]
struct Batch {
    groups: Vec<Group>,
    /// The operation that sets each of their nodes.
    nodes: BTreeMap<Box<str>, Encoded>,
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
        let flags = PtrOwner::flags(&cluster);
        Self { client, cluster, nodes, flags, fence: None, trusted: Arc::default() }
    }

    /// The same sink, whose transactions apply only while the fence holds.
    #[must_use]
    pub fn fenced(self, fence: Option<Fence>) -> Self {
        let fence = fence.map(|fence| fence.operation().encode());
        // Whoever led in between may have removed nodes.
        Self { fence, trusted: Arc::default(), ..self }
    }

    /// The operation that rolls a transaction back unless the lock is held.
    pub fn fence(&self) -> Option<&Encoded> {
        self.fence.as_ref()
    }

    /// Makes these changes, each group whole or not at all, and says what became of each.
    pub async fn write(&self, groups: Vec<Vec<Write>>) -> Vec<(RecordKey, Answer)> {
        let mut answers = Vec::new();
        let groups = groups.into_iter().map(|writes| self.group(writes)).collect();
        let groups = self.on_our_nodes(groups, &mut answers).await;
        // The last is sent first.
        let mut waiting = self.batches(groups);
        while let Some(batch) = waiting.pop() {
            waiting.extend(self.send(batch, &mut answers).await);
        }
        answers
    }

    /// The groups whose node is the cluster's; answers the others.
    async fn on_our_nodes(
        &self,
        groups: Vec<Group>,
        answers: &mut Vec<(RecordKey, Answer)>,
    ) -> Vec<Group> {
        let mut not_ours: BTreeMap<Box<str>, Answer> = BTreeMap::new();
        let mut on_ours = Vec::with_capacity(groups.len());
        for group in groups {
            if let Some(node) = &group.node
                && !self.trusted().contains(node)
                && !not_ours.contains_key(node)
            {
                match self.claim(node).await {
                    Ok(()) => drop(self.trusted().insert(node.clone())),
                    Err(answer) => drop(not_ours.insert(node.clone(), answer)),
                }
            }
            match group.node.as_ref().and_then(|node| not_ours.get(node)) {
                Some(answer) => group.failed(0, answer, answers),
                None => on_ours.push(group),
            }
        }
        on_ours
    }

    /// Makes sure that this node is there and the cluster's.
    async fn claim(&self, node: &str) -> Result<(), Answer> {
        let fence = self.fence.as_ref();
        let error = match self.client.ensure_node(node, &self.cluster, fence).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        let why = chain(&error);
        let answer = match &error {
            NodeError::Foreign { .. } => return Err(Answer::Foreign(why)),
            NodeError::Read(Unknown::Failed { source, .. }) | NodeError::Write(source) => {
                source.answer(Reach::Servers)
            }
            NodeError::Read(_) => Answer::Denied(why.clone()),
        };
        Err(match answer {
            // The node may come yet, but nothing of the records was sent.
            Answer::Unanswered(_) | Answer::Conflict => Answer::Failed(why),
            answer => answer,
        })
    }

    fn trusted(&self) -> MutexGuard<'_, BTreeSet<Box<str>>> {
        // Each change is one step, so a panic elsewhere leaves the set whole.
        self.trusted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Groups in transactions of the size that Consul allows, the first ones last.
    fn batches(&self, groups: Vec<Group>) -> Vec<Batch> {
        let mut batches = Vec::new();
        let mut batch = Batch::default();
        for group in groups {
            let mut next = Some(group);
            while let Some(group) = next {
                next = batch.take(group, self);
                if next.is_some() {
                    batches.push(std::mem::take(&mut batch));
                }
            }
        }
        if !batch.groups.is_empty() {
            batches.push(batch);
        }
        batches.reverse();
        batches
    }

    /// Removes the node of a namespace if a reading just before shows nothing on it. The caller
    /// sees to it that no write to it is under way or uncertain.
    pub async fn remove_namespace_node(&self, namespace: &str) -> NamespaceNodeAnswer {
        let node = self.nodes.of_namespace(namespace);
        match self.client.left_on_node(&node, &Mark::Cluster(self.cluster.clone())).await {
            Err(unknown) => return NamespaceNodeAnswer::Failed(chain(&unknown)),
            Ok(OnNode { others, .. }) if !others.is_empty() => {
                return NamespaceNodeAnswer::Foreign { node, ids: others };
            }
            Ok(OnNode { marked, .. }) if !marked.is_empty() => return NamespaceNodeAnswer::InUse,
            Ok(_) => {}
        }
        // Whoever writes to it next looks whose it is then.
        self.trusted().remove(&node);
        let delete = Operation::DeleteNode { node }.encode();
        match self.client.transaction(self.fence.iter().chain([&delete])).await {
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
        let encoded = |write| self.operations(write).iter().map(Operation::encode).collect();
        let operations: Vec<Vec<Encoded>> = writes.iter().map(encoded).collect();
        let bytes = operations.iter().flatten().map(Encoded::json_len).sum();
        Group { writes, operations, node, bytes }
    }

    fn operations<'w>(&self, write: &'w Write) -> Vec<Operation<'w>> {
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
            Write::PutPtr { record, cas } => vec![Operation::SetKey {
                key: record.key.clone(),
                value: record.value.clone(),
                flags: self.flags,
                index: *cas,
            }],
            Write::DeletePtr { key, cas } => {
                vec![Operation::DeleteKey { key: key.clone(), index: *cas }]
            }
        }
    }

    fn register<'w>(
        &self,
        registration: &'w Registration,
    ) -> impl Iterator<Item = Operation<'w>> + use<'w> {
        let node = self.nodes.of_namespace(&registration.namespace);
        let set = Operation::SetService { node, service: ServiceBody::new(registration) };
        std::iter::once(set).chain(self.check(registration).map(Operation::SetCheck))
    }

    fn check<'w>(&self, registration: &'w Registration) -> Option<CheckBody<'w>> {
        CheckBody::new(&self.nodes.of_namespace(&registration.namespace), registration)
    }

    /// Sends one transaction. Returns what has to be sent again: those not at fault where one of
    /// them was, or both halves where Consul does not say which was.
    async fn send(&self, batch: Batch, answers: &mut Vec<(RecordKey, Answer)>) -> Vec<Batch> {
        let written = batch.groups.iter().flat_map(|group| group.operations.iter().flatten());
        let operations = self.fence.iter().chain(batch.nodes.values()).chain(written);
        let error = match self.client.transaction(operations).await {
            Ok(keys) => {
                batch.groups.iter().for_each(|group| group.applied(&keys, answers));
                return Vec::new();
            }
            Err(Error::RolledBack { errors, .. }) => {
                let rest = batch.without_failed(&errors, self, answers);
                return self.batches(rest);
            }
            Err(error) => error,
        };
        let answer = error.answer(Reach::Servers);
        // A rollback that is longer than what is read of it does not tell which of them is at fault, nor
        // does a 400 in words that are not known: that may still be one record's fault alone.
        let is_unclear = matches!(error, Error::Unexpected { status: CONFLICT | BAD_REQUEST, .. });
        let is_refused = matches!(answer, Answer::Refused(_));
        if (is_refused || is_unclear) && batch.groups.len() > 1 {
            let mut first = batch.groups;
            let second = first.split_off(first.len() / 2);
            return [second, first].into_iter().flat_map(|half| self.batches(half)).collect();
        }
        for group in &batch.groups {
            if is_refused {
                // What goes with a write must not be taken for refused too.
                group.failed(0, &answer, answers);
            } else {
                group.all(&answer, answers);
            }
        }
        Vec::new()
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
                Write::PutPtr { record, .. } => {
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
    /// Takes a group, with its node, if the transaction stays as small as Consul allows; otherwise
    /// gives it back. An empty one takes a group that is too large by itself: Consul says so then.
    fn take(&mut self, group: Group, sink: &CatalogSink) -> Option<Group> {
        let new_node = group.node.as_ref().filter(|node| !self.nodes.contains_key(*node));
        let node = new_node
            .map(|node| (node.clone(), Operation::SetNode(body(node, &sink.cluster)).encode()));
        let operations = self.operations + group.operation_count() + usize::from(node.is_some());
        let bytes = self.bytes + group.bytes + node.as_ref().map_or(0, |(_, set)| set.json_len());
        let most = MAX_OPERATIONS - usize::from(sink.fence.is_some());
        let fits = operations <= most && bytes <= MAX_BODY - BODY_MARGIN;
        if !fits && !self.groups.is_empty() {
            return Some(group);
        }
        (self.operations, self.bytes) = (operations, bytes);
        self.nodes.extend(node);
        self.groups.push(group);
        None
    }

    /// Answers the groups at fault, and returns the others. The first error of a group counts;
    /// one of a node is one of every group on it.
    fn without_failed(
        self,
        errors: &[OperationError],
        sink: &CatalogSink,
        answers: &mut Vec<(RecordKey, Answer)>,
    ) -> Vec<Group> {
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
        rest
    }

    fn origins(&self, sink: &CatalogSink) -> Vec<Origin<'_>> {
        let fence = sink.fence.is_some().then_some(Origin::Fence);
        let nodes = self.nodes.keys().map(|node| Origin::Node(node));
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
    use axum::routing::{get, put};

    use super::*;
    use crate::consul::http::config::Config;
    use crate::domain::consul::record::Check;

    /// A Consul that answers a transaction by what stands in its body.
    async fn consul(
        answer: impl Fn(&str) -> (StatusCode, String) + Clone + Send + Sync + 'static,
    ) -> Client {
        crate::tls::install_provider();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let nodes = r#"[{"Node": "k8s-c.ns", "Address": "192.0.2.1", "Meta": {"kube-consul-cluster": "c"}}]"#;
        let router = Router::new()
            .route("/v1/catalog/nodes", get(move || std::future::ready(nodes)))
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
            tags: Arc::default(),
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
        let broken = "Failed to parse body: json: cannot unmarshal";
        for (status, words) in
            [(StatusCode::PAYLOAD_TOO_LARGE, "no"), (StatusCode::BAD_REQUEST, broken)]
        {
            let client = consul(move |body| {
                let bad = body.contains("c_ns_svc_80_5\"");
                if bad { (status, words.to_owned()) } else { (StatusCode::OK, "{}".to_owned()) }
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
    async fn l5_a_proxy_that_takes_nothing_refuses_no_record() {
        let client = consul(|_| {
            let words = "Client sent an HTTP request to an HTTPS server.";
            (StatusCode::BAD_REQUEST, words.to_owned())
        });
        let answers = written(client.await, 20).await;
        assert!(answers.iter().all(|it| matches!(it, Answer::Failed(_))), "{answers:?}");
    }

    #[tokio::test]
    async fn servers_in_trouble_refuse_nothing() {
        let trouble = |_: &str| (StatusCode::INTERNAL_SERVER_ERROR, "something new".to_owned());
        let answers = written(consul(trouble).await, 3).await;
        assert!(answers.iter().all(|it| matches!(it, Answer::Unanswered(_))), "{answers:?}");
    }
}
