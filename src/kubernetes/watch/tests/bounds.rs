//! Pages and objects that are too large, and namespaces each by itself.

use super::*;

/// A Service of about as many bytes.
fn sized(name: &str, bytes: usize) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"11","annotations":{{"a":"{}"}}}}}}"#,
        "x".repeat(bytes)
    )
}

#[tokio::test(start_paused = true)]
async fn l6_a_page_that_is_too_large_is_halved() {
    let mut objects: Vec<_> = (0..13).map(|n| sized(&format!("l{n}"), 2_700_000)).collect();
    objects.extend((0..200).map(|n| service(&format!("s{n}"))));
    let server = Server::new(Lists::Objects(objects), Watches::Healthy(Vec::new()));
    let notices = collect(&mut start(&server), 10).await;
    assert_eq!(events(&notices).len(), 215, "{:?}", troubles(&notices));
    assert_eq!((completed(&notices), troubles(&notices).len()), (1, 0));
    assert_within("pages", server.count(Asked::List), 15..=30);
}

#[tokio::test(start_paused = true)]
async fn l6_an_object_that_is_too_large_is_undecodable_by_name_and_costs_nobody_a_relist() {
    let huge = || sized("huge", OBJECT_BYTES);
    let objects = vec![service("a"), huge(), service("b"), service("c")];
    let changes = vec![
        event("MODIFIED", &huge()),
        event("MODIFIED", &service("a")),
        event("DELETED", &huge()),
        event("ADDED", &service("d")),
    ];
    let server = Server::new(Lists::Objects(objects), Watches::Healthy(changes));
    let notices = collect(&mut start(&server), 10).await;
    let expected =
        ["started", "+a", "?huge", "+b", "+c", "completed", "?huge", "+a", "-huge", "+d"];
    assert_eq!(events(&notices), expected, "{:?}", troubles(&notices));
    let why = notices.iter().find_map(|notice| match notice {
        Notice::Event(WatchEvent::Seen(SeenObject::Undecodable(_, _, why))) => Some(why.as_str()),
        _ => None,
    });
    assert_eq!(why, Some("expected at most 6291456 bytes of JSON, found more"));
}

#[tokio::test(start_paused = true)]
async fn l6_a_slow_page_is_asked_for_with_fewer_objects() {
    let server = Server::new(Lists::Stalled, Watches::Healthy(Vec::new()));
    let mut stream = start(&server);
    collect(&mut stream, 100).await;
    let objects: Vec<_> = (0..40).map(|n| service(&format!("s{n}"))).collect();
    server.set(Lists::Objects(objects), Watches::Healthy(Vec::new()));
    let before = server.count(Asked::List);
    assert_eq!(completed(&collect(&mut stream, 70).await), 1);
    assert_within("pages", server.count(Asked::List) - before, 2..=3);
}

#[tokio::test(start_paused = true)]
async fn l7_each_namespace_is_asked_for_by_itself() {
    let paths = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&paths);
    let server = Server::new(one_page(), Watches::Healthy(Vec::new()));
    let answering = server.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().unwrap().insert(request.uri().path().to_owned());
        let server = answering.clone();
        async move { Ok::<_, std::io::Error>(server.answer(request.uri().query()).await) }
    });
    let client = with_limits(Client::new(service, "default"));
    let set = |names: &[&str]| names.iter().map(|name| Box::from(*name)).collect();
    let watcher = Watcher::within(client, Scope::of(&set(&["a", "b", "c"]), &set(&["c"])));
    let mut services = watcher.services(Relist::default());
    let notices = collect(&mut services, 10).await;
    assert_eq!(completed(&notices), 1);
    assert_eq!(events(&notices).len(), 4, "{notices:?}");
    collect(&mut watcher.nodes(Relist::default()), 1).await;
    let expected =
        ["/api/v1/namespaces/a/services", "/api/v1/namespaces/b/services", "/api/v1/nodes"];
    assert!(paths.lock().unwrap().iter().eq(expected), "{paths:?}");
}

#[test]
fn l7_up_to_sixteen_namespaces_are_watched_each_by_itself() {
    let set = |names: std::ops::Range<usize>| -> BTreeSet<Box<str>> {
        names.map(|n| format!("n{n:02}").into()).collect()
    };
    let none = BTreeSet::new();
    assert_eq!(Scope::of(&none, &none), [Scope::default()]);
    let of_16 = Scope::of(&set(0..16), &none);
    assert!(of_16.len() == 16 && of_16.iter().all(|scope| scope.namespace.is_some()));
    assert_eq!(Scope::of(&set(0..17), &none), [Scope::default()]);
    assert_eq!(Scope::of(&set(0..1), &set(0..1)), [Scope::default()], "nothing is selected");
    let denied = Scope::of(&none, &set(0..2));
    let fields = Some("metadata.namespace!=n00,metadata.namespace!=n01".to_owned());
    assert_eq!(denied, [Scope { fields, ..Scope::default() }]);
}
