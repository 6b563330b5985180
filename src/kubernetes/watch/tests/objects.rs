//! Objects that do not decode, and kinds of their own.

use super::*;
use crate::kubernetes::slim::Undecodable;

#[tokio::test(start_paused = true)]
async fn an_undecodable_object_harms_no_other() {
    let odd = |name: &str| {
        format!(
            r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"12"}},"spec":{{"ports":7}}}}"#
        )
    };
    let items = [service("a"), odd("b"), service("c")].join(",");
    let changes = vec![event("MODIFIED", &odd("d")), event("ADDED", &service("e"))];
    let server = Server::new(Lists::Pages(vec![items]), Watches::Healthy(changes));
    let notices = collect(&mut start(&server), 1).await;
    let expected = ["started", "+a", "?b", "+c", "completed", "?d", "+e"];
    assert_eq!(events(&notices), expected);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_read_is_made_good_by_a_list() {
    let nameless = event("ADDED", r#"{"metadata":{"resourceVersion":"12"}}"#);
    let server = Server::new(one_page(), Watches::Silent(vec![nameless]));
    let mut stream = start(&server);
    let notices = collect(&mut stream, 10).await;
    assert!(completed(&notices) >= 3, "{notices:?}");
    assert_within("lists in 10 s", server.count(Asked::List), 3..=5);
    recovers(&server, &mut stream, 45).await;
}

fn slice(name: &str, labels: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"12","labels":{labels}}},
        "endpoints":[{{"addresses":["10.0.0.1"],"nodeName":"node-1","zone":"zone-1"}}]}}"#
    )
    .replace('\n', "")
}

#[tokio::test(start_paused = true)]
async fn a_slice_that_loses_its_label_is_gone() {
    let labelled = r#"{"kubernetes.io/service-name":"web"}"#;
    let items = [slice("a", labelled), slice("b", "{}")].join(",");
    let changes = vec![event("MODIFIED", &slice("a", "{}"))];
    let server = Server::new(Lists::Pages(vec![items]), Watches::Healthy(changes));
    let source = EndpointSource::EndpointSlices;
    let mut stream = Watcher::new(server.client()).endpoints(source, Relist::default());
    let notices = collect(&mut stream, 1).await;
    assert_eq!(events(&notices), ["started", "+a", "completed", "-a"]);
}

fn subsets(name: &str, subsets: &str) -> String {
    format!(
        r#"{{"metadata":{{"name":"{name}","namespace":"shop","resourceVersion":"12"}},"subsets":{subsets}}}"#
    )
}

#[tokio::test(start_paused = true)]
async fn the_parts_of_endpoints_come_and_go_together() {
    let two = subsets("web", r#"[{"addresses":[{"ip":"10.0.0.1"}]},{"addresses":[]}]"#);
    let changes = vec![
        event("MODIFIED", &subsets("web", "7")),
        event("MODIFIED", &subsets("web", "[{}]")),
        event("MODIFIED", &two),
        event("DELETED", &two),
        event("ADDED", &two),
    ];
    let server = Server::new(Lists::Pages(vec![two.clone()]), Watches::Healthy(changes));
    let relist = Relist::default();
    let mut stream =
        Watcher::new(server.client()).endpoints(EndpointSource::Endpoints, relist.clone());
    let listed = ["started", "+web", "+web/1", "completed"];
    let after =
        ["?web", "?web/1", "+web", "-web/1", "+web", "+web/1", "-web", "-web/1", "+web", "+web/1"];
    let notices = collect(&mut stream, 1).await;
    assert_eq!(events(&notices), [&listed[..], &after[..]].concat());
    // In a new list an undecodable one keeps the parts that it had before.
    server.set(Lists::Pages(vec![subsets("web", "7")]), Watches::Healthy(Vec::new()));
    relist.request();
    let notices = collect(&mut stream, 2).await;
    assert_eq!(events(&notices), ["started", "?web", "?web/1", "completed"]);
    server.set(Lists::Pages(vec![String::new()]), Watches::Healthy(Vec::new()));
    relist.request();
    assert_eq!(events(&collect(&mut stream, 2).await), ["started", "completed"]);
}

/// A kind whose objects are no Services.
#[derive(Debug)]
struct Names;

impl Watched for Names {
    type Object = usize;
    type Seen = (String, Result<usize, String>);
    const KIND: Kind = Kind::Node;
    const GROUP: &'static str = "";
    const NAME: &'static str = "Pod";
    const PLURAL: &'static str = "pods";

    fn decode(json: &str) -> Result<(Identity, Content<usize>), serde_json::Error> {
        let object: serde_json::Value = serde_json::from_str(json)?;
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let identity =
            Identity { key: ObjectKey::new("shop", name), resource_version: "11".to_owned() };
        Ok((identity, Content::Object(name.len())))
    }

    fn seen(key: ObjectKey, length: usize) -> Self::Seen {
        (key.to_string(), Ok(length))
    }
}

impl Undecodable for (String, Result<usize, String>) {
    fn undecodable(_: Kind, key: ObjectKey, why: String) -> Self {
        (key.to_string(), Err(why))
    }
}

#[tokio::test(start_paused = true)]
async fn any_kind_is_watched_by_selectors_with_objects_of_its_own() {
    let server = Server::new(one_page(), Watches::Healthy(vec![event("ADDED", &service("a"))]));
    let queries = Arc::new(Mutex::new(Vec::new()));
    let (seen, answering) = (Arc::clone(&queries), server.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        seen.lock().unwrap().push(request.uri().to_string());
        let server = answering.clone();
        async move { Ok::<_, std::io::Error>(server.answer(request.uri().query()).await) }
    });
    let scope = Scope { fields: Some("spec.nodeName=n1".to_owned()), ..Scope::default() };
    let client = with_limits(Client::new(service, "default"));
    let mut stream = Watcher::within(client, vec![scope]).watch::<Names>(Relist::default());
    let mut found = Vec::new();
    while found.len() < 2 {
        if let Notice::Event(WatchEvent::Seen(seen)) = stream.next().await.unwrap() {
            found.push(seen);
        }
    }
    assert_eq!(found, [("shop/web".to_owned(), Ok(3)), ("shop/a".to_owned(), Ok(1))]);
    let queries = queries.lock().unwrap();
    let wanted = |uri: &String| {
        uri.starts_with("/api/v1/pods?") && uri.contains("fieldSelector=spec.nodeName%3Dn1")
    };
    assert!(queries.len() == 2 && queries.iter().all(wanted), "{queries:?}");
}
