//! Readings: what they prove, and what they do not.

use super::*;

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
async fn the_agent_says_what_it_is() {
    let options = ConsulOptions::dev().node("me").datacenter("dc9");
    let consul = Consul::start(options.configuration("domain = \"example.\"")).await.unwrap();
    let info = client(consul.url()).agent_self().await.unwrap();
    assert_eq!((info.node.as_str(), info.datacenter.as_str()), ("me", "dc9"));
    assert_eq!(info.dns_domain, "example");
    assert!(info.version.starts_with("1."), "{}", info.version);
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
        removes_strays: true,
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

/// Whoever has had a name for longer, by Consul's index, is known: later changes leave that.
#[tokio::test]
async fn a6_a_look_up_says_who_was_there_first() {
    let consul = consul().await;
    let client = client(consul.url());
    let register = async |id: &str, name: &str, port: u16, meta: serde_json::Value| {
        let service =
            json!({ "ID": id, "Service": name, "Address": "10.0.0.1", "Port": port, "Meta": meta });
        let node = json!({ "Node": "names", "Address": "192.0.2.9", "Service": service });
        consul.api().put("/v1/catalog/register", &node).await.unwrap();
    };
    let of = |cluster: &str| json!({ CLUSTER_META: cluster });
    let came_first = async |name: &str| {
        client.holders(name, &cluster()).await.unwrap().map(|found| found.came_first)
    };
    register("ours", "one", 80, of("c")).await;
    assert_eq!(came_first("one").await, None);
    register("theirs", "one", 80, of("eu")).await;
    assert_eq!(came_first("one").await, Some(false));
    register("ours", "one", 81, of("c")).await;
    assert_eq!(came_first("one").await, Some(false), "it was only changed");
    register("machine", "two", 80, json!({})).await;
    assert_eq!(came_first("two").await, Some(true), "there is none of ours");
    register("ours-2", "two", 80, of("c")).await;
    assert_eq!(came_first("two").await, Some(true));
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
        let meta = registration.meta.get("(larger than can be read)").is_some();
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
        let found = client.holders("foreign", &cluster()).await?;
        let holders = found.map(|found| found.holders);
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
