use std::sync::Mutex;

use http::{Request, Response};
use kube::client::Body;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::{advance, sleep};

use super::*;
use crate::domain::kube::object::Subject;
use crate::domain::problem::Reason;

/// Method, path and body of a request.
type Asked = (String, String, Value);

struct Server {
    asked: Arc<Mutex<Vec<Asked>>>,
    code: Arc<Mutex<u16>>,
    reporter: Reporter,
    work: JoinHandle<()>,
}

impl Server {
    fn start() -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let code = Arc::new(Mutex::new(201));
        let (log, answer) = (Arc::clone(&asked), Arc::clone(&code));
        let service = tower::service_fn(move |request: Request<Body>| {
            let (log, code) = (Arc::clone(&log), *answer.lock().unwrap());
            async move {
                let (parts, body) = request.into_parts();
                let bytes = body.collect_bytes().await.unwrap();
                let value: Value = serde_json::from_slice(&bytes).unwrap();
                let path = parts.uri.path().to_owned();
                log.lock().unwrap().push((parts.method.to_string(), path, value));
                let text = if code < 300 {
                    bytes.to_vec()
                } else {
                    format!(r#"{{"kind":"Status","status":"Failure","message":"no","reason":"No","code":{code}}}"#)
                        .into_bytes()
                };
                let text = if parts.method == "PATCH" && code < 300 {
                    b"{\"metadata\":{}}".to_vec()
                } else {
                    text
                };
                let mut response = Response::new(Body::from(text));
                *response.status_mut() = code.try_into().unwrap();
                Ok::<_, std::io::Error>(response)
            }
        });
        let (reporter, work) = reporter(Client::new(service, "default"), "pod-1");
        Self { asked, code, reporter, work: tokio::spawn(work) }
    }

    fn report(&self, name: &str, message: &str) {
        let key = ObjectKey::new("shop", name);
        let regarding = Regarding { kind: Subject::Service, key, uid: Some("u-1".into()) };
        self.reporter.report(regarding, Problem::new(Reason::InvalidAnnotation, message));
    }

    fn answer(&self, code: u16) {
        *self.code.lock().unwrap() = code;
    }

    async fn asked(&self) -> Vec<Asked> {
        sleep(Duration::from_millis(1)).await;
        self.asked.lock().unwrap().clone()
    }

    async fn methods(&self) -> Vec<String> {
        self.asked().await.into_iter().map(|(method, _, _)| method).collect()
    }

    fn counted(&self) -> (u64, u64, u64) {
        let counts = self.reporter.counts();
        let count = |it: &AtomicU64| it.load(Ordering::Relaxed);
        (count(&counts.written), count(&counts.dropped), count(&counts.failed))
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_is_about_its_object() {
    let server = Server::start();
    server.report("web", &format!("expected\na port, {}", "ü".repeat(1000)));
    let asked = server.asked().await;
    let (method, path, event) = &asked[0];
    assert_eq!(method, "POST");
    assert_eq!(path, "/apis/events.k8s.io/v1/namespaces/shop/events");
    let regarding = json!({"apiVersion": "v1", "kind": "Service", "namespace": "shop",
        "name": "web", "uid": "u-1"});
    assert_eq!(event["regarding"], regarding);
    assert_eq!(event["type"], "Warning");
    assert_eq!(event["reason"], "InvalidAnnotation");
    assert_eq!(event["reportingController"], "kube-consul.io/bridge");
    assert_eq!(event["reportingInstance"], "pod-1");
    let note = event["note"].as_str().unwrap();
    assert!(note.starts_with("expected a port, ü") && note.ends_with("ü…"), "{note}");
    assert!((1020..=1024).contains(&note.len()), "{}", note.len());
    let name = event["metadata"]["name"].as_str().unwrap();
    assert!(name.starts_with("web.") && name.len() == "web.".len() + 16, "{name}");
    assert_eq!(server.counted(), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_repetition_is_counted_in_the_same_event() {
    let server = Server::start();
    for _ in 0..3 {
        server.report("web", "same");
    }
    server.report("web", "other");
    assert_eq!(server.methods().await, ["POST", "POST"]);
    advance(REPEAT_INTERVAL).await;
    server.report("web", "same");
    let asked = server.asked().await;
    let (method, path, body) = &asked[2];
    let name = asked[0].2["metadata"]["name"].as_str().unwrap();
    assert_eq!(
        (method.as_str(), path.as_str()),
        ("PATCH", format!("/apis/events.k8s.io/v1/namespaces/shop/events/{name}").as_str())
    );
    assert_eq!(body["series"]["count"], 4);
    assert!(body["series"]["lastObservedTime"].is_string());
    assert_eq!(body.as_object().unwrap().len(), 1);
    advance(SERIES_TIMEOUT).await;
    server.report("web", "same");
    assert_eq!(server.methods().await, ["POST", "POST", "PATCH", "POST"]);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_the_api_forgot_is_made_again() {
    let server = Server::start();
    server.report("web", "same");
    assert_eq!(server.methods().await, ["POST"]);
    advance(REPEAT_INTERVAL).await;
    server.answer(404);
    server.report("web", "same");
    assert_eq!(server.methods().await, ["POST", "PATCH", "POST"]);
    assert_eq!(server.counted(), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn many_problems_are_written_slowly_and_what_is_too_much_is_counted() {
    let server = Server::start();
    for number in 0..400 {
        server.report(&format!("web-{number}"), "bad");
    }
    assert_eq!(server.counted().1, 400 - 256);
    assert_eq!(server.asked().await.len(), 25);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(server.asked().await.len(), 35);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(server.counted(), (256, 144, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refusal_disturbs_nothing() {
    let server = Server::start();
    server.answer(403);
    server.report("web", "bad");
    assert_eq!(server.methods().await, ["POST"]);
    server.answer(201);
    server.report("web", "bad");
    assert_eq!(server.methods().await, ["POST", "POST"]);
    assert_eq!(server.counted(), (1, 0, 1));
    drop(server.reporter);
    server.work.await.unwrap();
}
