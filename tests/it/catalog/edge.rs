//! The catalog sink itself, against a real Consul.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::StatusCode;
use kube_consul::consul::http::client::Client;
use kube_consul::consul::http::config::Config;
use kube_consul::consul::read::evidence::Consistency;
use kube_consul::consul::write::catalog::CatalogSink;
use kube_consul::consul::write::fence::Fence;
use kube_consul::domain::consul::node_names::NodeNames;
use kube_consul::domain::consul::record::{
    Answer, Check, NamespaceNodeAnswer, PtrRecord, RecordKey, Registration, Write,
};
use kube_consul::domain::kube::names::ClusterName;
use kube_consul_stack::{Consul, ConsulOptions, Fault, HttpRecorder, install_provider};
use serde_json::{Value, json};

use super::registration;
use super::support::operations;

const APPLIED: Answer = Answer::Applied { index: 0 };
/// What Consul takes at most in one transaction.
const MOST_OPERATIONS: usize = 64;
const MOST_BYTES: usize = 512 << 10;

fn cluster() -> ClusterName {
    "c".parse().unwrap()
}

fn client(url: &str) -> Client {
    install_provider();
    Client::new(&Config { address: url.parse().unwrap(), ..Config::default() }).unwrap()
}

fn sink(url: &str) -> CatalogSink {
    CatalogSink::new(client(url), cluster(), NodeNames::new(&cluster(), None))
}

async fn consul() -> Consul {
    Consul::start(ConsulOptions::dev()).await.unwrap()
}

/// Every other one is not ready.
fn registration(namespace: &str, number: usize) -> Registration {
    let check = if number.is_multiple_of(2) { Check::None } else { Check::Critical };
    registration::registration(namespace, number, check)
}

fn reverse(registration: &Registration, cas: u64) -> Write {
    let key = format!("0.0.0.10.IN-ADDR.ARPA/{}", registration.address);
    Write::PutPtr { record: PtrRecord { key: key.into(), value: "svc".into() }, cas }
}

/// An instance with its PTR record.
fn group(registration: Registration, cas: u64) -> Vec<Write> {
    let reverse = reverse(&registration, cas);
    vec![Write::Register(registration), reverse]
}

async fn write(sink: &CatalogSink, groups: Vec<Vec<Write>>) -> BTreeMap<RecordKey, Answer> {
    let count: usize = groups.iter().map(Vec::len).sum();
    let answers: BTreeMap<_, _> = sink.write(groups).await.into_iter().collect();
    assert_eq!(answers.len(), count, "each is answered once");
    answers
}

fn key(registration: &Registration) -> RecordKey {
    RecordKey::Registration(registration.id.clone())
}

/// What is registered on the node of a namespace, with its checks.
async fn on(consul: &Consul, namespace: &str) -> Vec<Registration> {
    let mut found = Vec::new();
    let client = client(consul.url());
    let node = format!("k8s-c.{namespace}");
    let each = |one: kube_consul::domain::consul::record::ObservedRegistration| {
        found.push(one.registration);
    };
    client.catalog_registrations(&node, &cluster(), Consistency::Consistent, each).await.unwrap();
    found.sort_by(|a, b| a.id.cmp(&b.id));
    found
}

fn sorted(mut registrations: Vec<Registration>) -> Vec<Registration> {
    registrations.sort_by(|a, b| a.id.cmp(&b.id));
    registrations
}

#[tokio::test]
async fn what_got_no_answer_is_written_again_and_costs_nothing() {
    let consul = consul().await;
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let sink = sink(&recorder.url());
    let wanted: Vec<Registration> = (0..30).map(|number| registration("ns", number)).collect();
    let first: Vec<_> = wanted.iter().map(|it| vec![Write::Register(it.clone())]).collect();
    // The node is made first, then comes what is lost.
    let is_service = |it: &kube_consul_stack::Recorded| {
        operations(it).iter().any(|it| it["Service"].is_object())
    };
    recorder.fault_times(1, Fault::DropAfter, is_service);
    let answers = write(&sink, first.clone()).await;
    assert!(answers.values().all(|it| matches!(it, Answer::Unanswered(_))), "{answers:?}");
    let index = async || {
        let services = consul.api().get("/v1/catalog/node-services/k8s-c.ns").await.unwrap();
        let services = services["Services"].as_array().cloned().unwrap_or_default();
        assert_eq!(services.len(), 30, "it was applied all the same");
        services.iter().map(|it| it["ModifyIndex"].as_u64().unwrap()).max()
    };
    let before = index().await;
    let answers = write(&sink, first).await;
    assert!(answers.values().all(|it| *it == APPLIED), "{answers:?}");
    assert_eq!(index().await, before, "nobody who watches is woken up");
    assert_eq!(on(&consul, "ns").await, sorted(wanted));

    // A PTR record that was applied conflicts, and so do only those that go with it.
    let lost = registration("ns", 100);
    recorder.fault_times(1, Fault::DropAfter, is_service);
    write(&sink, vec![group(lost.clone(), 0)]).await;
    let fresh = registration("ns", 101);
    let answers = write(&sink, vec![group(lost.clone(), 0), group(fresh.clone(), 0)]).await;
    assert_eq!(answers[&reverse(&lost, 0).key()], Answer::Conflict);
    assert_eq!(answers[&key(&lost)], Answer::NotSent);
    assert_eq!(answers[&key(&fresh)], APPLIED);
}

/// What becomes of the group of this number, in a burst of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Applied,
    /// Consul does not take such an address.
    Refused,
    /// Its PTR record is not as it was thought to be.
    Conflict,
}

// === impl Fate ===

impl Fate {
    fn of(number: usize) -> Self {
        match number % 40 {
            7 => Fate::Conflict,
            13 | 14 => Fate::Refused,
            _ => Fate::Applied,
        }
    }
}

#[tokio::test]
async fn those_at_fault_are_told_from_all_the_others() {
    let consul = consul().await;
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let sink = sink(&recorder.url());
    let namespaces = ["a", "b", "d"];
    let mut groups = Vec::new();
    let mut wanted: BTreeMap<&str, Vec<Registration>> = BTreeMap::new();
    for number in 0..200 {
        let namespace = namespaces[number % 3];
        let mut one = registration(namespace, number);
        let reverse = reverse(&one, if Fate::of(number) == Fate::Conflict { 999 } else { 0 });
        match Fate::of(number) {
            Fate::Refused => one.address = "0.0.0.0".into(),
            Fate::Applied => wanted.entry(namespace).or_default().push(one.clone()),
            Fate::Conflict => {}
        }
        groups.push(vec![Write::Register(one), reverse]);
    }
    let keys: Vec<[RecordKey; 2]> =
        groups.iter().map(|group| [group[0].key(), group[1].key()]).collect();
    let answers = write(&sink, groups).await;
    for (number, [service, reverse]) in keys.iter().enumerate() {
        let [service, reverse] = [&answers[service], &answers[reverse]];
        match Fate::of(number) {
            Fate::Applied => {
                assert_eq!(*service, APPLIED, "{number}");
                assert!(matches!(reverse, Answer::Applied { index: 1.. }), "{number}: {reverse:?}");
            }
            Fate::Refused => {
                assert!(
                    matches!(service, Answer::Refused(why) if why.contains("Invalid service address")),
                    "{number}: {service:?}"
                );
                assert_eq!(*reverse, Answer::NotSent, "{number}");
            }
            Fate::Conflict => {
                assert_eq!((service, reverse), (&Answer::NotSent, &Answer::Conflict), "{number}");
            }
        }
    }
    for (namespace, wanted) in wanted {
        assert_eq!(on(&consul, namespace).await, sorted(wanted));
    }
    for write in recorder.writes() {
        assert!(operations(&write).len() <= MOST_OPERATIONS);
    }
}

/// Instances with a tag of this many bytes: Consul has no limit for tags.
fn heavy(namespace: &str, count: usize, bytes: usize) -> Vec<Registration> {
    let heavy = |number| {
        let mut one = registration(namespace, number);
        Arc::make_mut(&mut one.tags).push("x".repeat(bytes));
        one
    };
    (0..count).map(heavy).collect()
}

fn registers(registrations: &[Registration]) -> Vec<Vec<Write>> {
    registrations.iter().map(|it| vec![Write::Register(it.clone())]).collect()
}

#[tokio::test]
async fn what_is_too_much_for_one_transaction_goes_in_several() {
    let consul = consul().await;
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let sink = sink(&recorder.url());
    let many = heavy("many", 100, 30_000);
    let answers = write(&sink, registers(&many)).await;
    assert!(answers.values().all(|it| *it == APPLIED));
    assert_eq!(on(&consul, "many").await, sorted(many));
    for write in recorder.writes() {
        assert!(write.body.len() <= MOST_BYTES, "{} bytes", write.body.len());
        assert_eq!(write.status, Some(StatusCode::OK));
    }
    // One that is too large by itself harms only itself.
    let mut some = heavy("some", 20, 100);
    Arc::make_mut(&mut some[9].tags).push("x".repeat(600_000));
    let answers = write(&sink, registers(&some)).await;
    let refused = some.remove(9);
    assert!(matches!(answers[&key(&refused)], Answer::Refused(_)), "{:?}", answers[&key(&refused)]);
    assert!(some.iter().all(|it| answers[&key(it)] == APPLIED));
    assert_eq!(on(&consul, "some").await, sorted(some));
}

#[tokio::test]
async fn a_consul_that_takes_less_at_a_time_gets_less() {
    let limits = json!({"limits": {"txn_max_req_len": 16_384, "kv_max_value_size": 16_384}});
    let consul = Consul::start(ConsulOptions::dev().configuration(limits.to_string()));
    let consul = consul.await.unwrap();
    let sink = sink(consul.url());
    let mut some = heavy("ns", 40, 2_000);
    Arc::make_mut(&mut some[17].tags).push("x".repeat(20_000));
    let answers = write(&sink, registers(&some)).await;
    let refused = some.remove(17);
    assert!(matches!(answers[&key(&refused)], Answer::Refused(_)), "{:?}", answers[&key(&refused)]);
    assert!(some.iter().all(|it| answers[&key(it)] == APPLIED));
    assert_eq!(on(&consul, "ns").await, sorted(some));
}

#[tokio::test]
async fn a_refusal_that_is_too_long_to_be_read_is_looked_for_by_halves() {
    let consul = consul().await;
    let sink = sink(consul.url());
    let mut some = heavy("ns", 40, 10);
    // Consul quotes the value.
    some[23].meta.extend([("note".to_owned(), "x".repeat(100_000))]);
    let answers = write(&sink, registers(&some)).await;
    let refused = some.remove(23);
    assert!(!matches!(answers[&key(&refused)], Answer::Applied { .. }));
    assert!(some.iter().all(|it| answers[&key(it)] == APPLIED));
    assert_eq!(on(&consul, "ns").await, sorted(some));
}

#[tokio::test]
async fn without_the_lock_nothing_gets_in() {
    let consul = consul().await;
    let client = client(consul.url());
    let names = NodeNames::new(&cluster(), None);
    client.ensure_node(names.base(), &cluster(), None).await.unwrap();
    let session = client.create_session(names.base()).await.unwrap().id;
    let lock = "kube-consul/c/leader";
    assert!(client.acquire_lock(lock, &session, "me").await.unwrap());
    let fence = Fence { key: lock.into(), session: session.clone() };
    let sink = sink(consul.url()).fenced(Some(fence));
    let first = [registration("ns", 1)];
    assert_eq!(write(&sink, registers(&first)).await[&key(&first[0])], APPLIED);
    client.destroy_session(&session).await.unwrap();
    // On a node that is there, on one that would have to be made, and to remove one.
    for namespace in ["ns", "other"] {
        let one = [registration(namespace, 2)];
        assert_eq!(write(&sink, registers(&one)).await[&key(&one[0])], Answer::Fenced);
    }
    let gone = Write::Deregister {
        id: first[0].id.clone(),
        service: "svc".into(),
        namespace: "ns".into(),
    };
    assert_eq!(write(&sink, vec![vec![gone]]).await[&key(&first[0])], Answer::Fenced);
    assert_eq!(sink.remove_namespace_node("ns").await, NamespaceNodeAnswer::InUse);
    assert_eq!(sink.remove_namespace_node("other").await, NamespaceNodeAnswer::Fenced);
    assert_eq!(on(&consul, "ns").await, first);
    let nodes = consul.api().get("/v1/catalog/nodes").await.unwrap();
    assert_eq!(nodes.as_array().map(Vec::len), Some(3), "{nodes}");
}

#[tokio::test]
async fn a_node_of_somebody_elses_is_left_as_it_is() {
    let consul = consul().await;
    let sink = sink(consul.url());
    let theirs = json!({"Node": "k8s-c.theirs", "Address": "10.9.9.9", "NodeMeta": {"a": "b"},
        "Service": {"ID": "db", "Service": "db"}});
    consul.api().put("/v1/catalog/register", &theirs).await.unwrap();
    let before = consul.api().get("/v1/catalog/node/k8s-c.theirs").await.unwrap();
    let (theirs, ours) = ([registration("theirs", 1)], [registration("ours", 1)]);
    let answers = write(&sink, [registers(&theirs), registers(&ours)].concat()).await;
    assert!(
        matches!(&answers[&key(&theirs[0])], Answer::Foreign(why) if why.contains("k8s-c.theirs")),
        "{answers:?}"
    );
    assert_eq!(answers[&key(&ours[0])], APPLIED);
    assert_eq!(consul.api().get("/v1/catalog/node/k8s-c.theirs").await.unwrap(), before);
    // Once it is out of the way the node is made.
    let gone = json!({"Node": "k8s-c.theirs", "Datacenter": "dc1"});
    consul.api().put("/v1/catalog/deregister", &gone).await.unwrap();
    assert_eq!(write(&sink, registers(&theirs)).await[&key(&theirs[0])], APPLIED);
    assert_eq!(on(&consul, "theirs").await, theirs);
}

#[tokio::test]
async fn a_node_goes_only_when_nothing_stands_on_it() {
    let consul = consul().await;
    let sink = sink(consul.url());
    let one = registration("ns", 1);
    write(&sink, registers(std::slice::from_ref(&one))).await;
    assert_eq!(sink.remove_namespace_node("ns").await, NamespaceNodeAnswer::InUse);
    let gone =
        Write::Deregister { id: one.id.clone(), service: "svc".into(), namespace: "ns".into() };
    assert_eq!(write(&sink, vec![vec![gone]]).await[&key(&one)], APPLIED);
    let foreign = json!({"Node": "k8s-c.ns", "Address": "192.0.2.1", "SkipNodeUpdate": true,
        "Service": {"ID": "db", "Service": "db"}});
    consul.api().put("/v1/catalog/register", &foreign).await.unwrap();
    let kept = sink.remove_namespace_node("ns").await;
    let ids: Vec<Box<str>> = vec!["db".into()];
    assert_eq!(kept, NamespaceNodeAnswer::Foreign { node: "k8s-c.ns".into(), ids });
    let away = json!({"Node": "k8s-c.ns", "ServiceID": "db"});
    consul.api().put("/v1/catalog/deregister", &away).await.unwrap();
    assert_eq!(sink.remove_namespace_node("ns").await, NamespaceNodeAnswer::Removed);
    assert_eq!(consul.api().get("/v1/catalog/node/k8s-c.ns").await.unwrap(), Value::Null);
    // It comes back with the next record.
    assert_eq!(write(&sink, registers(std::slice::from_ref(&one))).await[&key(&one)], APPLIED);

    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    recorder.fault(Fault::DropAfter, |it| it.path.starts_with("/v1/txn"));
    let behind = self::sink(&recorder.url());
    let lost = behind.remove_namespace_node("empty").await;
    assert!(matches!(lost, NamespaceNodeAnswer::Unanswered(_)), "{lost:?}");
}
