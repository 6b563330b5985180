//! Writes: registrations, PTR records, transactions, and what their failures mean.

use super::*;

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
    let other = client.create_session("k8s-c").await.unwrap().id;
    assert!(client.acquire_lock(lock, &session, "me").await.unwrap());
    assert!(!client.acquire_lock(lock, &other, "it").await.unwrap());
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
    let stale = client.transaction(&encoded(&write(other.as_str()))).await.unwrap_err();
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
    bad.meta.extend([("a b".into(), "c".into())]);
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
    assert!(client.acquire_lock(lock, &other, "it").await.unwrap(), "it went with the session");
    let delete = Operation::DeleteNode { node: "k8s-c".into() };
    client.transaction(&[delete.encode()]).await.unwrap();
    assert!(!client.renew_session(&other).await.unwrap(), "a node's sessions go with it");
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
