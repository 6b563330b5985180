//! The edge to Consul, against real agents.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use kube_consul::consul::coordination::election::Election;
use kube_consul::consul::coordination::marker::Marker;
use kube_consul::consul::coordination::owner::{Owner, OwnerKey};
use kube_consul::consul::coordination::resync::Reader;
use kube_consul::consul::coordination::sentinel::{Lost, Sentinel};
use kube_consul::consul::http::client::Client;
use kube_consul::consul::http::config::{Address, Config, TokenSource};
use kube_consul::consul::http::error::{Error, OperationFailure, Reach};
use kube_consul::consul::read::evidence::{Consistency, Unknown};
use kube_consul::consul::read::instances::is_in_catalog;
use kube_consul::consul::read::marks::Mark;
use kube_consul::consul::read::registrations::Listing;
use kube_consul::consul::write::agent::AgentSink;
use kube_consul::consul::write::registration::{CheckBody, ServiceBody};
use kube_consul::consul::write::txn::{Encoded, NodeBody, Operation};
use kube_consul::domain::consul::names::{Holder, Holders};
use kube_consul::domain::consul::node_names::NodeNames;
use kube_consul::domain::consul::record::{
    Answer, CLUSTER_META, Check, ObservedPtr, ObservedRegistration, PtrOwner, PtrRecord,
    Registration, Write,
};
use kube_consul::domain::consul::registration_id::readiness_check_id;
use kube_consul::domain::kube::names::ClusterName;
use kube_consul_stack::{
    Authority, Consul, ConsulOptions, Data, Fault, HttpRecorder, Port, eventually, install_provider,
};
use serde_json::{Value, json};

const MANAGEMENT: &str = "11111111-1111-1111-1111-111111111111";
const LIMITED: &str = "22222222-2222-2222-2222-222222222222";
const SECOND: &str = "33333333-3333-3333-3333-333333333333";
const APPLIED: Answer = Answer::Applied { index: 0 };
const PATIENCE: Duration = Duration::from_secs(20);

fn cluster() -> ClusterName {
    "c".parse().unwrap()
}

fn config(url: &str, token: TokenSource) -> Config {
    install_provider();
    Config { address: url.parse().unwrap(), token, ..Config::default() }
}

fn client(url: &str) -> Client {
    Client::new(&config(url, TokenSource::Anonymous)).unwrap()
}

fn client_with(url: &str, token: &str) -> Client {
    Client::new(&config(url, TokenSource::Fixed(token.into()))).unwrap()
}

async fn consul() -> Consul {
    Consul::start(ConsulOptions::dev()).await.unwrap()
}

/// An agent that denies by default, with a token that may do this.
async fn consul_with_acl(rules: &str) -> Consul {
    let consul = Consul::start(ConsulOptions::dev().acl(MANAGEMENT)).await.unwrap();
    let policy = json!({ "Name": "limited", "Rules": rules });
    consul.api().put("/v1/acl/policy", &policy).await.unwrap();
    put_token(&consul, LIMITED).await;
    consul
}

async fn put_token(consul: &Consul, secret: &str) {
    let token = json!({
        "SecretID": secret, "AccessorID": secret, "Policies": [{ "Name": "limited" }]
    });
    consul.api().put("/v1/acl/token", &token).await.unwrap();
}

fn registration(id: &str, check: Check) -> Registration {
    let meta = [(CLUSTER_META, "c"), ("external-k8s-ns", "ns"), ("external-source", "kubernetes")];
    Registration {
        id: id.into(),
        service: "svc".into(),
        namespace: "ns".into(),
        address: "10.0.0.1".into(),
        port: 80,
        tags: vec!["ns".into(), "http".into()],
        meta: meta.map(|(key, value)| (key.into(), value.into())).into(),
        weight: 3,
        check,
    }
}

async fn agent(client: &Client) -> Result<(Listing, Vec<ObservedRegistration>), Unknown> {
    let mut found = Vec::new();
    let listing = client.agent_registrations(&cluster(), |one| found.push(one)).await?;
    Ok((listing, found))
}

async fn reverse(client: &Client) -> Result<Vec<ObservedPtr>, Unknown> {
    let mut found = Vec::new();
    client.ptr_records(Consistency::Leader, |one| found.push(one)).await?;
    Ok(found)
}

fn encoded(operations: &[Operation]) -> Vec<Encoded> {
    operations.iter().map(Operation::encode).collect()
}

fn path_begins(path: &'static str) -> impl Fn(&kube_consul_stack::Recorded) -> bool {
    move |request| request.path.starts_with(path)
}

#[tokio::test]
async fn what_the_agent_sink_writes_reads_back_equal() {
    let consul = consul().await;
    let client = client(consul.url());
    let sink = AgentSink::new(client.clone(), &cluster());
    // Neither another cluster's record nor a foreign one is ours.
    consul
        .api()
        .put("/v1/agent/service/register", &json!({ "Name": "x", "Meta": { CLUSTER_META: "d" } }))
        .await
        .unwrap();
    let id = "c_ns_svc_80_fe80::1/ä?#";
    for (turn, check) in [Check::Critical, Check::None, Check::Critical].into_iter().enumerate() {
        let wanted = registration(id, check);
        let write = if turn == 0 { Write::Register } else { Write::Replace };
        assert_eq!(sink.write(write(wanted.clone())).await, APPLIED);
        let (listing, found) = agent(&client).await.unwrap();
        assert_eq!(listing, Listing { registrations: 1, marker: false });
        assert_eq!(found, [ObservedRegistration { registration: wanted.clone(), index: 0 }]);
        // The agent's own write to the catalog follows by itself.
        eventually(PATIENCE, || async {
            let mut found = Vec::new();
            client
                .catalog_registrations(consul.node(), &cluster(), Consistency::Leader, |one| {
                    found.push(one.registration);
                })
                .await?;
            anyhow::ensure!(found == [wanted.clone()], "the catalog has {found:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
    let gone = Write::Deregister { id: id.into(), service: "svc".into(), namespace: "ns".into() };
    assert_eq!(sink.write(gone.clone()).await, APPLIED);
    assert_eq!(sink.write(gone).await, APPLIED, "an unknown ID is removed already");
    assert_eq!(agent(&client).await.unwrap().1, []);
    let passing = sink.write(Write::Register(registration(id, Check::Passing))).await;
    assert!(matches!(passing, Answer::Refused(_)), "{passing:?}");
}

#[tokio::test]
async fn a_check_that_another_made_passing_is_made_critical_again() {
    let consul = consul().await;
    let client = client(consul.url());
    let sink = AgentSink::new(client.clone(), &cluster());
    let wanted = registration("c_ns_svc_80_10.0.0.1", Check::Critical);
    sink.write(Write::Register(wanted.clone())).await;
    let pass = format!("/v1/agent/check/pass/{}", readiness_check_id(&wanted.id));
    consul.api().put(&pass, &Value::Null).await.unwrap();
    assert_eq!(agent(&client).await.unwrap().1[0].registration.check, Check::Passing);
    assert_eq!(sink.write(Write::Register(wanted.clone())).await, APPLIED);
    assert_eq!(agent(&client).await.unwrap().1[0].registration, wanted);
}

#[tokio::test]
async fn a_refused_registration_says_why() {
    let consul = consul().await;
    let sink = AgentSink::new(client(consul.url()), &cluster());
    let mut bad = registration("c_x", Check::None);
    bad.address = "0.0.0.0".into();
    let answer = sink.write(Write::Register(bad)).await;
    assert!(matches!(&answer, Answer::Refused(why) if why.contains("Invalid service address")));
}

#[tokio::test]
async fn ptr_records_are_written_by_check_and_set() {
    let consul = consul().await;
    let client = client(consul.url());
    let sink = AgentSink::new(client.clone(), &cluster());
    assert_eq!(reverse(&client).await.unwrap(), []);
    let key: Box<str> = "0.70.254.10.IN-ADDR.ARPA/10.254.70.176".into();
    let put = |value: &str, cas| Write::PutPtr {
        record: PtrRecord { key: key.clone(), value: value.into() },
        cas,
    };
    let Answer::Applied { index } = sink.write(put("a", 0)).await else { panic!() };
    let flags = PtrOwner::flags(&cluster());
    let record = PtrRecord { key: key.clone(), value: "a".into() };
    let stored = ObservedPtr { record, flags, index };
    assert_eq!(reverse(&client).await.unwrap(), std::slice::from_ref(&stored));
    assert_eq!(client.ptr_record(&key).await.unwrap(), Some(stored));

    assert_eq!(sink.write(put("b", 0)).await, Answer::Conflict);
    assert_eq!(sink.write(put("b", index + 1)).await, Answer::Conflict);
    let Answer::Applied { index: newer } = sink.write(put("b", index)).await else { panic!() };
    assert!(newer > index);
    let delete = |cas| Write::DeletePtr { key: key.clone(), cas };
    assert_eq!(sink.write(delete(index)).await, Answer::Conflict);
    assert_eq!(sink.write(delete(newer)).await, APPLIED);
    assert_eq!(sink.write(delete(newer)).await, APPLIED, "an absent key is removed already");
    assert_eq!(client.ptr_record(&key).await.unwrap(), None);
}

#[tokio::test]
async fn without_rights_nothing_is_known_and_nothing_is_absent() {
    let consul = consul_with_acl("service \"other\" { policy = \"read\" }").await;
    consul.api().put("/v1/agent/service/register", &json!({ "Name": "x" })).await.unwrap();
    consul.api().put_text("/v1/kv/0.1/a", "x").await.unwrap();

    let blank = client(consul.url());
    assert!(matches!(agent(&blank).await, Err(Unknown::NotAuthoritative { .. })));
    assert!(matches!(reverse(&blank).await, Err(Unknown::NotAuthoritative { .. })));
    let names = blank.foreign_names(&"c".parse().unwrap(), |_| false).await;
    assert!(matches!(names, Err(Unknown::NotAuthoritative { .. })), "{names:?}");
    let key = blank.ptr_record("0.1/a").await;
    assert!(matches!(&key, Err(Unknown::Failed { source: Error::Denied { .. }, .. })), "{key:?}");

    let limited = client_with(consul.url(), LIMITED);
    assert!(matches!(reverse(&limited).await, Err(Unknown::Filtered { .. })));
    let names = limited.foreign_names(&"c".parse().unwrap(), |_| false).await;
    assert!(matches!(names, Err(Unknown::Filtered { .. })), "{names:?}");
    let node = consul.node();
    let catalog =
        limited.catalog_registrations(node, &cluster(), Consistency::Leader, |_| ()).await;
    assert!(matches!(catalog, Err(Unknown::Filtered { .. })), "{catalog:?}");

    let sink = AgentSink::new(limited, &cluster());
    let answer = sink.write(Write::Register(registration("c_x", Check::None))).await;
    assert!(matches!(&answer, Answer::Denied(why) if why.contains("service:write")), "{answer:?}");
    let record = PtrRecord { key: "0.1/b".into(), value: "x".into() };
    let answer = sink.write(Write::PutPtr { record, cas: 0 }).await;
    assert!(matches!(&answer, Answer::Denied(why) if why.contains("key:write")), "{answer:?}");

    let manager = client_with(consul.url(), MANAGEMENT);
    assert_eq!(reverse(&manager).await.unwrap().len(), 1);
    assert_eq!(agent(&manager).await.unwrap().0.registrations, 0);
}

#[tokio::test]
async fn a_token_file_is_read_again_when_consul_does_not_know_the_token() {
    let consul = consul_with_acl("key_prefix \"0.\" { policy = \"write\" }").await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, format!("  {LIMITED}\n")).unwrap();
    let client = Client::new(&config(consul.url(), TokenSource::File(file.clone()))).unwrap();
    assert_eq!(reverse(&client).await.unwrap(), []);
    assert_eq!(client.token_generation(), 0);

    put_token(&consul, SECOND).await;
    consul.api().delete(&format!("/v1/acl/token/{LIMITED}")).await.unwrap();
    let refused = || async {
        let result = reverse(&client).await;
        anyhow::ensure!(
            matches!(&result, Err(Unknown::Failed { source: Error::Denied { .. }, .. })),
            "{result:?}"
        );
        Ok(())
    };
    eventually(PATIENCE, refused).await.unwrap();
    std::fs::write(&file, SECOND).unwrap();
    eventually(PATIENCE, || async { reverse(&client).await.map(drop) }).await.unwrap();
    assert_eq!(client.token_generation(), 1);
}

#[tokio::test]
async fn a_missing_token_file_is_named() {
    let file = Path::new("/nowhere/token").to_owned();
    let client = Client::new(&config("127.0.0.1:1", TokenSource::File(file))).unwrap();
    let error = client.leader().await.unwrap_err();
    assert!(error.chain().contains("/nowhere/token"), "{}", error.chain());
    assert!(matches!(error.answer(Reach::Agent), Answer::Denied(_)));
}

/// The auth method is answered by a proxy, all the rest is Consul's.
#[tokio::test]
async fn a_login_is_made_again_when_its_token_is_gone_and_ended_by_logout() {
    let consul = consul_with_acl("key_prefix \"0.\" { policy = \"write\" }").await;
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let login = |secret: &str| {
        let answer = json!({ "SecretID": secret }).to_string();
        recorder.mend();
        recorder.fault(Fault::Answer(StatusCode::OK, answer), path_begins("/v1/acl/login"));
    };
    login(LIMITED);
    let directory = tempfile::tempdir().unwrap();
    let bearer = directory.path().join("token");
    std::fs::write(&bearer, "service-account").unwrap();
    let source = TokenSource::Login { auth_method: "kubernetes".into(), bearer_token_file: bearer };
    let client = Client::new(&config(&recorder.url(), source)).unwrap();
    reverse(&client).await.unwrap();
    let logins = || {
        let requests = recorder.requests();
        requests.into_iter().filter(path_begins("/v1/acl/login")).collect::<Vec<_>>()
    };
    assert_eq!(logins().len(), 1);
    let body: Value = serde_json::from_slice(&logins()[0].body).unwrap();
    assert_eq!(body, json!({ "AuthMethod": "kubernetes", "BearerToken": "service-account" }));

    put_token(&consul, SECOND).await;
    login(SECOND);
    consul.api().delete(&format!("/v1/acl/token/{LIMITED}")).await.unwrap();
    eventually(PATIENCE, || async {
        reverse(&client).await?;
        anyhow::ensure!(client.token_generation() == 1, "still the old token");
        Ok(())
    })
    .await
    .unwrap();
    assert_eq!(logins().len(), 2);
    recorder.fault(Fault::Answer(StatusCode::OK, String::new()), path_begins("/v1/acl/logout"));
    client.logout().await.unwrap();
    let last = recorder.requests().pop().unwrap();
    assert_eq!(
        (last.path.as_str(), &last.headers["X-Consul-Token"]),
        ("/v1/acl/logout", &SECOND.parse().unwrap())
    );
}

#[tokio::test]
async fn a_login_that_fails_is_not_tried_by_each_request() {
    let recorder = HttpRecorder::start("http://127.0.0.1:1").await.unwrap();
    let refusal = Fault::Answer(StatusCode::FORBIDDEN, "ACL not found: no such method".into());
    recorder.fault(refusal, path_begins("/v1/acl/login"));
    let directory = tempfile::tempdir().unwrap();
    let bearer = directory.path().join("token");
    std::fs::write(&bearer, "service-account").unwrap();
    let source = TokenSource::Login { auth_method: "wrong".into(), bearer_token_file: bearer };
    let client = Client::new(&config(&recorder.url(), source)).unwrap();
    let refused = client.leader().await.unwrap_err();
    assert!(matches!(refused.answer(Reach::Agent), Answer::Denied(_)), "{refused}");
    let error = refused.chain();
    assert!(error.contains("\"wrong\"") && error.contains("no such method"), "{error}");
    assert!(!error.contains("service-account"), "{error}");
    for _ in 0..20 {
        let answer = client.leader().await.unwrap_err().answer(Reach::Agent);
        assert!(matches!(answer, Answer::Failed(_)), "{answer:?}");
    }
    assert_eq!(recorder.requests().len(), 1);
}

/// The loop that owns the state may move them between threads.
#[test]
fn futures_can_be_sent() {
    fn sent(_: impl Send + 'static) {}
    let client = client("127.0.0.1:1");
    let sink = AgentSink::new(client.clone(), &cluster());
    sent(async move { sink.write(Write::Register(registration("c_x", Check::None))).await });
    let reader = client.clone();
    sent(async move { reader.agent_registrations(&cluster(), drop).await });
    let reader = client.clone();
    sent(async move { reader.ptr_records(Consistency::Leader, drop).await });
    let reader = client.clone();
    sent(async move { reader.foreign_names(&"c".parse().unwrap(), |_| true).await });
    let owner = OwnerKey::new(client.clone(), &cluster());
    sent(async move { owner.claim("uid", None).await });
    let sentinel = Sentinel::new(client, cluster());
    sent(async move { sentinel.ensure().await });
}

#[tokio::test]
async fn the_sentinel_tells_a_lost_state_from_an_agent_that_cannot_be_asked() {
    let mut consul = consul().await;
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let client = client(&recorder.url());
    let sentinel = Sentinel::new(client.clone(), cluster());
    let hash = sentinel.ensure().await.unwrap();
    recorder.clear();
    assert_eq!(sentinel.ensure().await.unwrap(), hash);
    assert_eq!(recorder.writes().len(), 0, "equal means silent");
    let (listing, found) = agent(&client).await.unwrap();
    assert_eq!((listing, found), (Listing { registrations: 0, marker: true }, vec![]));

    // Deregistered by another, it is noticed at once.
    let watch = tokio::spawn({
        let (sentinel, hash) = (sentinel.clone(), hash.clone());
        async move { sentinel.watch(&hash).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!watch.is_finished());
    let id = "/v1/agent/service/deregister/_kube-consul_c";
    consul.api().put(id, &Value::Null).await.unwrap();
    let seen = tokio::time::timeout(Duration::from_secs(5), watch).await.unwrap().unwrap();
    assert_eq!(seen.unwrap(), Lost::Vanished);

    // A changed one is a change.
    let hash = sentinel.ensure().await.unwrap();
    let changed = json!({ "ID": "_kube-consul_c", "Name": "mine" });
    consul.api().put("/v1/agent/service/register", &changed).await.unwrap();
    assert_eq!(sentinel.watch(&hash).await.unwrap(), Lost::Changed);
    let hash = sentinel.ensure().await.unwrap();

    // A proxy's 404 and a dead agent are errors; the agent that comes back empty is a loss.
    recorder.fault_times(1, Fault::Answer(StatusCode::NOT_FOUND, "nginx".into()), |_| true);
    assert!(matches!(sentinel.watch(&hash).await, Err(Error::Unexpected { status: 404, .. })));
    consul.kill().await.unwrap();
    assert!(sentinel.watch(&hash).await.is_err());
    consul.restart(Data::Lost).await.unwrap();
    consul.wait_ready().await.unwrap();
    assert_eq!(sentinel.watch(&hash).await.unwrap(), Lost::Vanished);
    let lost = Listing { registrations: 0, marker: false };
    assert_eq!(agent(&client).await.unwrap().0, lost);
    sentinel.ensure().await.unwrap();
    client.deregister(sentinel.id()).await.unwrap();
    assert_eq!(sentinel.watch(&hash).await.unwrap(), Lost::Vanished);
}

#[tokio::test]
async fn a_name_belongs_to_one_cluster() {
    let consul = consul().await;
    let owner = OwnerKey::new(client(consul.url()), &cluster());
    assert_eq!(owner.check("one").await.unwrap(), None);
    let (first, second) = tokio::join!(owner.claim("one", None), owner.claim("two", None));
    let winner = match (first.unwrap(), second.unwrap()) {
        (Owner::Ours, Owner::Other(uid)) if uid == "one" => "one",
        (Owner::Other(uid), Owner::Ours) if uid == "two" => "two",
        other => panic!("{other:?}"),
    };
    let loser = if winner == "one" { "two" } else { "one" };
    assert_eq!(owner.claim(winner, None).await.unwrap(), Owner::Ours);
    let held = Owner::Other(winner.to_owned());
    assert_eq!(owner.claim(loser, Some("another")).await.unwrap(), held);
    assert_eq!(owner.check(loser).await.unwrap(), Some(held));
    assert!(!owner.release(loser).await.unwrap());
    assert_eq!(owner.claim(loser, Some(winner)).await.unwrap(), Owner::Ours);
    assert_eq!(owner.check(loser).await.unwrap(), Some(Owner::Ours));
    assert_eq!(consul.api().key(owner.key()).await.unwrap().as_deref(), Some(loser));
    assert!(owner.release(loser).await.unwrap());
    assert_eq!(owner.check(loser).await.unwrap(), None);
}

type Expected = fn(&Answer) -> bool;

#[tokio::test]
async fn a_fault_tells_whether_the_write_may_have_been_applied() {
    let consul = consul().await;
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let sink = AgentSink::new(client(&recorder.url()), &cluster());
    let register = || Write::Register(registration("c_x", Check::None));
    let put =
        || Write::PutPtr { record: PtrRecord { key: "0.1/a".into(), value: "x".into() }, cas: 0 };
    let answer = |status: u16, text: &str| {
        Fault::Answer(StatusCode::from_u16(status).unwrap(), text.to_owned())
    };
    let failed: Expected = |answer| matches!(answer, Answer::Failed(_));
    let unanswered: Expected = |answer| matches!(answer, Answer::Unanswered(_));
    for (fault, of_register, of_put) in [
        (answer(503, "busy"), failed, failed),
        (answer(429, "slow down"), failed, failed),
        (answer(500, "No cluster leader"), failed, unanswered),
        (answer(404, "page not found"), failed, failed),
        (Fault::DropBefore, unanswered, unanswered),
        (Fault::DropAfter, unanswered, unanswered),
    ] {
        recorder.fault(fault.clone(), |_| true);
        let (register, put) = (sink.write(register()).await, sink.write(put()).await);
        assert!(of_register(&register), "{fault:?}: {register:?}");
        assert!(of_put(&put), "{fault:?}: {put:?}");
        recorder.mend();
    }
    let nobody = AgentSink::new(client("127.0.0.1:1"), &cluster());
    let answer = nobody.write(put()).await;
    assert!(
        matches!(&answer, Answer::Failed(why) if why.contains("http://127.0.0.1:1")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn a_listing_that_breaks_off_is_unknown() {
    let consul = consul().await;
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let client = client(&recorder.url());
    for broken in ["", "{", "{\"a\": {\"ID\": \"a\"}", "[]", "<html>"] {
        recorder.fault(
            Fault::Answer(StatusCode::OK, broken.to_owned()),
            path_begins("/v1/agent/services"),
        );
        let result = agent(&client).await;
        assert!(
            matches!(&result, Err(Unknown::Failed { source: Error::Garbled { .. }, .. })),
            "{broken}: {result:?}"
        );
        recorder.mend();
    }
}

#[tokio::test]
async fn foreign_names_are_told_also_by_a_consul_that_ignores_the_filter() {
    let consul = consul().await;
    for service in [
        json!({ "ID": "1", "Name": "ours", "Meta": { CLUSTER_META: "c" } }),
        json!({ "ID": "2", "Name": "k8s", "Meta": { "external-source": "kubernetes" } }),
        json!({ "ID": "3", "Name": "foreign" }),
        json!({ "ID": "4", "Name": "both", "Meta": { CLUSTER_META: "c" } }),
        json!({ "ID": "5", "Name": "both" }),
        json!({ "ID": "6", "Name": "eu", "Meta": { CLUSTER_META: "eu" } }),
        json!({ "ID": "7", "Name": "shared", "Meta": { CLUSTER_META: "eu" } }),
        json!({ "ID": "8", "Name": "shared", "Meta": { CLUSTER_META: "c" } }),
        json!({ "ID": "9", "Name": "mixed", "Meta": { CLUSTER_META: "eu" } }),
        json!({ "ID": "10", "Name": "Mixed" }),
    ] {
        consul.api().put("/v1/agent/service/register", &service).await.unwrap();
    }
    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let client = client(&recorder.url());
    let names = async |held: &'static str| {
        let names = client.foreign_names(&"c".parse().unwrap(), |name| name == held).await;
        names.map(|names| names.into_iter().collect::<BTreeMap<_, _>>())
    };
    let of = |cluster: Option<&str>| Holder::Kubernetes { cluster: cluster.map(Box::from) };
    let holders = |others: Holder, ours: bool| Holders { others, ours };
    let mut expected: BTreeMap<Box<str>, Holders> = [
        ("consul".into(), holders(Holder::Other, false)),
        ("foreign".into(), holders(Holder::Other, false)),
        ("both".into(), holders(Holder::Other, true)),
        ("mixed".into(), holders(Holder::Other, false)),
        ("k8s".into(), holders(of(None), false)),
        ("eu".into(), holders(of(None), false)),
        ("shared".into(), holders(of(None), true)),
    ]
    .into();
    eventually(PATIENCE, || async {
        let found = names("").await?;
        anyhow::ensure!(found == expected, "found {found:?}");
        Ok(())
    })
    .await
    .unwrap();

    let all = consul.api().get("/v1/catalog/services").await.unwrap().to_string();
    recorder.fault(Fault::Answer(StatusCode::OK, all), path_begins("/v1/catalog/services"));
    // A look at a name's instances tells the cluster too.
    expected.insert("eu".into(), holders(of(Some("eu")), false));
    expected.insert("shared".into(), holders(of(Some("eu")), true));
    assert_eq!(names("").await.unwrap(), expected);
    expected.remove("both");
    assert_eq!(names("both").await.unwrap(), expected);
}

#[tokio::test]
async fn tls_checks_the_server_under_the_name_that_is_asked_for() {
    let authority = Authority::new("ours").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        Some(path)
    };
    let server = authority.issue(&["localhost", "127.0.0.1"]).unwrap();
    let port = Port::pick().unwrap();
    let tls = json!({
        "ports": { "https": port.number() },
        "tls": { "https": {
            "ca_file": write("ca.pem", authority.pem()),
            "cert_file": write("server.pem", &server.certificate),
            "key_file": write("server.key", &server.key),
            "verify_incoming": true,
        }},
    });
    let options = ConsulOptions::dev().configuration(format!("{tls:#}"));
    let _consul = Consul::start(options).await.unwrap();
    let certificate = authority.issue(&["client"]).unwrap();
    let good = Config {
        ca_file: write("ca.pem", authority.pem()),
        client_certificate: write("client.pem", &certificate.certificate),
        client_key: write("client.key", &certificate.key),
        ..config(&format!("https://127.0.0.1:{}", port.number()), TokenSource::Anonymous)
    };
    let leader = async |config: &Config| Client::new(config).unwrap().leader().await;
    assert!(leader(&good).await.unwrap().is_some());
    // The certificate carries localhost, and 127.0.0.1 as an address.
    let named = |name: &str| Config { tls_server_name: Some(name.into()), ..good.clone() };
    assert!(leader(&named("localhost")).await.unwrap().is_some());
    let wrong = leader(&named("server.dc1.consul")).await.unwrap_err();
    assert!(matches!(wrong, Error::Unreachable { .. }), "{}", wrong.chain());

    let nobody = Config { client_certificate: None, client_key: None, ..good.clone() };
    assert!(leader(&nobody).await.is_err(), "the agent wants a client certificate");
    let stranger = Authority::new("stranger").unwrap();
    let other_ca = Config { ca_file: write("other.pem", stranger.pem()), ..good.clone() };
    // S12: which CA is trusted, from where, and which one the server has.
    let untrusted = leader(&other_ca).await.unwrap_err();
    assert!(matches!(untrusted, Error::Unreachable { .. }));
    let (said, path) = (untrusted.chain(), other_ca.ca_file.clone().unwrap());
    assert!(said.contains(r#"("localhost") was issued by "ours", which is not trusted"#), "{said}");
    assert!(said.ends_with(&format!(r#"trusted: "stranger" of {}"#, path.display())), "{said}");
    // A new CA of the old one's name.
    let again = Authority::new("ours").unwrap();
    let same_name = Config { ca_file: write("again.pem", again.pem()), ..good.clone() };
    let said = leader(&same_name).await.unwrap_err().chain();
    assert!(said.ends_with("(of the same name, with another key)"), "{said}");
    let of_the_machine = leader(&Config { ca_file: None, ..good.clone() }).await;
    let said = of_the_machine.unwrap_err().chain();
    assert!(said.contains(r#"issued by "ours""#) && said.contains("the machine's CA"), "{said}");
    let unverified = Config { tls_verify: false, ..other_ca };
    assert!(leader(&unverified).await.unwrap().is_some());
    let folder = directory.path().join("cas");
    std::fs::create_dir(&folder).unwrap();
    write("cas/ca.pem", authority.pem());
    let in_folder = Config { ca_file: None, ca_directory: Some(folder), ..good };
    assert!(leader(&in_folder).await.unwrap().is_some());
}

#[tokio::test]
async fn a_unix_socket_serves_as_well() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("consul.sock");
    let addresses = format!("addresses {{ http = \"127.0.0.1 unix://{}\" }}", socket.display());
    let _consul = Consul::start(ConsulOptions::dev().configuration(addresses)).await.unwrap();
    let client = client(&Address::Unix(socket).to_string());
    assert!(client.leader().await.unwrap().is_some());
}

#[tokio::test]
async fn the_agent_says_what_it_is() {
    let options = ConsulOptions::dev().node("me").datacenter("dc9");
    let consul = Consul::start(options.configuration("domain = \"example.\"")).await.unwrap();
    let info = client(consul.url()).agent_self().await.unwrap();
    assert_eq!((info.node.as_str(), info.datacenter.as_str()), ("me", "dc9"));
    assert_eq!(info.dns_domain, "example");
    assert!(info.version.starts_with("1."), "{}", info.version);
}

#[tokio::test]
async fn a_transaction_is_whole_and_fenced_by_its_session() {
    let consul = consul().await;
    let client = client(consul.url());
    let node = NodeBody {
        node: "k8s-c".into(),
        address: "192.0.2.1".into(),
        meta: [(CLUSTER_META.to_owned(), "c".to_owned())].into(),
    };
    let create = Operation::CreateNode(node.clone());
    client.transaction(&[create.encode()]).await.unwrap();
    let again = client.transaction(&[create.encode()]).await.unwrap_err();
    assert_eq!(again.answer(Reach::Servers), Answer::Conflict);

    let lock = "kube-consul/c/leader";
    let session = client.create_session("k8s-c").await.unwrap().id;
    let rival = client.create_session("k8s-c").await.unwrap().id;
    assert!(client.acquire_lock(lock, &session, "me").await.unwrap());
    assert!(!client.acquire_lock(lock, &rival, "it").await.unwrap());
    assert!(client.renew_session(&session).await.unwrap());
    let fence =
        |session: &str| Operation::CheckSession { key: lock.into(), session: session.into() };

    let wanted = registration("c_ns_svc_80_10.0.0.1", Check::Critical);
    let write = |session: &str| {
        vec![
            fence(session),
            Operation::SetNode(node.clone()),
            Operation::SetService { node: "k8s-c".into(), service: ServiceBody::new(&wanted) },
            Operation::SetCheck(CheckBody::new("k8s-c", &wanted).unwrap()),
        ]
    };
    let stale = client.transaction(&encoded(&write(rival.as_str()))).await.unwrap_err();
    assert_eq!(stale.answer(Reach::Servers), Answer::Fenced);
    client.transaction(&encoded(&write(session.as_str()))).await.unwrap();
    let catalog = async || {
        let mut found = Vec::new();
        let each = |one: ObservedRegistration| found.push(one.registration);
        client
            .catalog_registrations("k8s-c", &cluster(), Consistency::Consistent, each)
            .await
            .unwrap();
        found
    };
    assert_eq!(catalog().await, std::slice::from_ref(&wanted));

    // One bad operation rolls the others back and is reported by its position.
    let mut bad = wanted.clone();
    bad.meta.insert("a b".into(), "c".into());
    let mut operations = write(session.as_str());
    operations
        .push(Operation::SetService { node: "k8s-c".into(), service: ServiceBody::new(&bad) });
    let error = client.transaction(&encoded(&operations)).await.unwrap_err();
    let Error::RolledBack { errors, .. } = &error else { panic!("{error:?}") };
    assert_eq!((errors[0].index, errors[0].failure()), (4, OperationFailure::Refused));

    let sent = encoded(&operations);
    let size = sent.iter().map(Encoded::json_len).sum::<usize>();
    assert_eq!(
        size,
        serde_json::to_vec(&sent).unwrap().len() - 1,
        "the brackets and no last comma"
    );
    let check = readiness_check_id(&wanted.id).into();
    let removal = [
        Operation::DeleteCheck { node: "k8s-c".into(), id: check, service: "svc".into() },
        Operation::DeleteService {
            node: "k8s-c".into(),
            id: wanted.id.clone(),
            name: "svc".into(),
        },
    ];
    client.transaction(&encoded(&removal)).await.unwrap();
    assert_eq!(catalog().await, []);
    client.destroy_session(&session).await.unwrap();
    assert!(!client.renew_session(&session).await.unwrap());
    assert!(client.acquire_lock(lock, &rival, "it").await.unwrap(), "it went with the session");
    let delete = Operation::DeleteNode { node: "k8s-c".into() };
    client.transaction(&[delete.encode()]).await.unwrap();
    assert!(!client.renew_session(&rival).await.unwrap(), "a node's sessions go with it");
}

#[tokio::test]
async fn over_the_limits_nothing_is_applied() {
    let consul = consul().await;
    let client = client(consul.url());
    let key = |number: usize, value: &str| Operation::SetKey {
        key: format!("0.1/{number}").into(),
        value: value.into(),
        flags: 0,
        index: 0,
    };
    let many: Vec<_> = (0..129).map(|number| key(number, "x")).collect();
    let large: Vec<_> = (0..4).map(|number| key(number, &"x".repeat(120_000))).collect();
    for operations in [many, large] {
        let error = client.transaction(&encoded(&operations)).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{}", error.chain());
    }
    assert_eq!(reverse(&client).await.unwrap(), []);
}

/// Consul names the least that it allows, and that is taken.
#[tokio::test]
async fn l13_where_sessions_may_not_be_short_the_least_is_taken() {
    let options = ConsulOptions::dev().configuration(r#"session_ttl_min = "45s""#);
    let consul = Consul::start(options).await.unwrap();
    let client = client(consul.url());
    client.ensure_node("k8s-c", &cluster(), None).await.unwrap();
    let session = client.create_session("k8s-c").await.unwrap();
    assert_eq!(session.ttl, Duration::from_secs(45));
    let election = Election::new(client, cluster(), "k8s-c", "me");
    tokio::time::timeout(PATIENCE, election.campaign()).await.expect("a leader");
}

/// What decides about absence is asked of the leader, whatever the agent's `discovery_max_stale`.
#[tokio::test]
async fn l12_no_reading_is_stale() {
    let options = ConsulOptions::dev().configuration(r#"discovery_max_stale = "72h""#);
    let consul = Consul::start(options).await.unwrap();
    let stale = reqwest::get(format!("{}/v1/catalog/nodes", consul.url())).await.unwrap();
    let consistency = |headers: &http::HeaderMap| {
        headers
            .get("X-Consul-Effective-Consistency")
            .map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(consistency(stale.headers()).as_deref(), Some("stale"), "as the agent has it");

    let recorder = HttpRecorder::start(consul.url()).await.unwrap();
    let client = client(&recorder.url());
    let names = NodeNames::new(&cluster(), None);
    client.ensure_node(names.base(), &cluster(), None).await.unwrap();
    client.ensure_node(&names.of_namespace("ns"), &cluster(), None).await.unwrap();
    let (seen, _shown) = tokio::sync::mpsc::unbounded_channel();
    let reader = Reader {
        client: client.clone(),
        cluster: cluster(),
        marker: Marker::BaseNode(names),
        consistency: Consistency::Leader,
        fence: None,
        seen,
    };
    assert!(reader.look().await.unwrap());
    client.foreign_names(&cluster(), |_| false).await.unwrap();
    is_in_catalog(&client, "web", "web-1", None).await.unwrap();
    let mark = Mark::Cluster(cluster());
    client.on_node("k8s-c", &mark).await.unwrap();
    client.other_nodes(&cluster(), &[].into()).await.unwrap();
    let http = reqwest::Client::new();
    let requests = recorder.requests();
    assert!(requests.len() > 8, "{requests:?}");
    for request in requests.iter().filter(|request| request.method == "GET") {
        let answer = http.get(format!("{}{}", consul.url(), request.path)).send().await.unwrap();
        if let Some(found) = consistency(answer.headers()) {
            assert!(["leader", "consistent"].contains(&&*found), "{found}: {}", request.path);
        } else {
            assert!(request.path.starts_with("/v1/kv/"), "{}", request.path);
        }
    }
}

/// One registration whose JSON is over the bound, ours or not, hides nothing else: it is read by its
/// ID, differs from whatever was written, and can be removed.
#[tokio::test]
async fn l3_a_registration_over_the_bound_is_read_by_its_id() {
    let consul = consul().await;
    let client = client(consul.url());
    // Each is six bytes in an answer.
    let tags = ["<".repeat(180_000)];
    let service = |id: &str, tags: &[String]| {
        json!({ "ID": id, "Service": "svc", "Address": "10.0.0.1", "Port": 80, "Tags": tags,
            "Meta": { CLUSTER_META: "c", "external-k8s-ns": "ns" } })
    };
    let (small, large) = ("c_ns_svc_80_10.0.0.1", "c_ns_svc_80_10.0.0.2");
    let names = NodeNames::new(&cluster(), None);
    let node = names.of_namespace("ns");
    client.ensure_node(names.base(), &cluster(), None).await.unwrap();
    client.ensure_node(&node, &cluster(), None).await.unwrap();
    for (id, tags) in [(small, &[][..]), (large, &tags[..])] {
        let mut service = service(id, tags);
        let set = json!([{ "Service": { "Verb": "set", "Node": node, "Service": service } }]);
        consul.api().put("/v1/txn", &set).await.unwrap();
        service["Name"] = service["Service"].take();
        service.as_object_mut().unwrap().remove("Service");
        consul.api().put("/v1/agent/service/register", &service).await.unwrap();
    }
    // More unique tags under one name than a listing of names may have in one item.
    let many: Vec<String> =
        (0..11_000).map(|number| format!("{number:05}{}", "<".repeat(20))).collect();
    let foreign = json!({ "ID": "f", "Name": "foreign", "Tags": many });
    consul.api().put("/v1/agent/service/register", &foreign).await.unwrap();

    let mut seen = BTreeMap::new();
    let mut take = |observed: ObservedRegistration| {
        let registration = observed.registration;
        assert_eq!((&*registration.service, &*registration.namespace), ("svc", "ns"));
        let meta = registration.meta.contains_key("(larger than can be read)");
        *seen.entry((registration.id.to_string(), meta)).or_default() += 1;
    };
    client.agent_registrations(&cluster(), &mut take).await.unwrap();
    let listing =
        client.catalog_registrations(&node, &cluster(), Consistency::Leader, &mut take).await;
    assert_eq!(listing.unwrap().registrations, 2);
    let expected: BTreeMap<_, i32> =
        [((small.to_owned(), false), 2), ((large.to_owned(), true), 2)].into();
    assert_eq!(seen, expected);

    eventually(PATIENCE, || async {
        let names = client.foreign_names(&cluster(), |_| false).await?;
        anyhow::ensure!(names.contains_key("foreign"), "{names:?}");
        let holders = client.holders("foreign", &cluster()).await?;
        anyhow::ensure!(holders == Some(Holders { others: Holder::Other, ours: false }));
        anyhow::ensure!(client.holders("svc", &cluster()).await?.is_none(), "ours alone");
        Ok(())
    })
    .await
    .unwrap();

    // What `purge` needs to know of it.
    let mark = Mark::Cluster(cluster());
    let on = client.on_node(&node, &mark).await.unwrap();
    let ids: Vec<_> = on.marked.iter().map(|it| (&*it.id, &*it.name, &*it.namespace)).collect();
    assert_eq!(ids, [(small, "svc", "ns"), (large, "svc", "ns")]);
    assert!(on.others.is_empty());
    let nodes = client.other_nodes(&cluster(), &[node].into()).await.unwrap();
    assert_eq!(nodes, [consul.node().into()].into());
}

/// Certificates are taken up as soon as they are renewed on disk, and only if they are of use.
#[tokio::test]
async fn l8_renewed_certificates_are_taken_up_without_a_restart() {
    let (authority, former) = (Authority::new("ours").unwrap(), Authority::new("former").unwrap());
    let consul = Consul::start(ConsulOptions::dev().tls(&authority, false).unwrap()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("ca.pem");
    let replace = |pem: &str| {
        let next = folder.path().join("next");
        std::fs::write(&next, pem).unwrap();
        std::fs::rename(&next, &ca_file).unwrap();
    };
    replace(former.pem());
    install_provider();
    let config = Config {
        address: consul.url().parse().unwrap(),
        ca_file: Some(ca_file.clone()),
        ..Config::default()
    };
    let client = Client::new(&config).unwrap();
    assert!(matches!(client.leader().await, Err(Error::Unreachable { .. })), "another CA");
    replace(authority.pem());
    eventually(PATIENCE, || async { anyhow::Ok(client.leader().await.map(drop)?) }).await.unwrap();
    // A file that is no use changes nothing, nor does one that is gone.
    replace("nothing");
    tokio::time::sleep(Duration::from_secs(3)).await;
    client.leader().await.unwrap();
    std::fs::remove_file(&ca_file).unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    client.leader().await.unwrap();
    replace(former.pem());
    eventually(PATIENCE, || async {
        anyhow::ensure!(client.leader().await.is_err(), "the new one counts again");
        Ok(())
    })
    .await
    .unwrap();
}
