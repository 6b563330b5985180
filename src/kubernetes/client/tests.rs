use std::sync::{Arc, Mutex};

use http::{Request, Response};
use kube::client::Body;

use super::*;

fn access(url: Option<&str>, kubeconfig: Option<&str>, context: Option<&str>) -> Access {
    Access {
        kube_url: url.map(|text| text.parse().unwrap()),
        kubeconfig: kubeconfig.map(PathBuf::from),
        context: context.map(str::to_owned),
    }
}

fn way(access: &Access, environment: &Environment) -> Way {
    choose(access, environment).unwrap()
}

fn environment(in_cluster: bool, variable: bool, home: bool) -> Environment {
    Environment {
        in_cluster,
        kubeconfig: variable.then(|| PathBuf::from("/var.yaml")),
        home_kubeconfig: home.then(|| PathBuf::from("/home.yaml")),
    }
}

#[test]
fn the_ways_are_tried_in_their_order() {
    let all = environment(true, true, true);
    let none = Environment::default();
    let url = access(Some("http://127.0.0.1:8001"), None, None);
    assert!(matches!(way(&url, &all), Way::Url(_)));
    let file = access(None, Some("/f.yaml"), Some("ctx"));
    assert_eq!(way(&file, &all), Way::Kubeconfig(Some("/f.yaml".into())));
    let context = access(None, None, Some("ctx"));
    assert_eq!(way(&context, &all), Way::Kubeconfig(None));
    let nothing = Access::default();
    assert_eq!(way(&nothing, &all), Way::InCluster);
    assert_eq!(way(&nothing, &environment(false, true, false)), Way::Kubeconfig(None));
    assert_eq!(way(&nothing, &environment(false, false, true)), Way::Kubeconfig(None));
    for (access, environment) in
        [(&nothing, &none), (&context, &none), (&context, &environment(true, false, false))]
    {
        let error = choose(access, environment).unwrap_err();
        assert!(matches!(error, Error::NoConfiguration) && error.is_configuration(), "{error}");
    }
    let both = access(Some("http://127.0.0.1:8001"), Some("/f.yaml"), None);
    assert!(matches!(choose(&both, &none), Err(Error::Ambiguous)));
}

#[test]
fn a_url_has_a_scheme_and_a_host_and_no_secret() {
    let check = |text: &str| check_url(&text.parse().unwrap());
    assert!(check("http://127.0.0.1:8001").is_ok());
    assert!(check("https://api.example.com/clusters/one").is_ok());
    for bad in ["127.0.0.1:8001", "/api", "ftp://host", "http://host/?a=b"] {
        let error = check(bad).unwrap_err().to_string();
        assert!(error.contains("expected http://HOST:PORT"), "{bad}: {error}");
    }
    let error = check("http://me:hunter2@host").unwrap_err().to_string();
    assert!(!error.contains("hunter2"), "{error}");
}

#[tokio::test]
async fn plain_http_needs_no_certificates() {
    let access = access(Some("http://127.0.0.1:8001"), None, None);
    let connected = connect(&access, &Environment::default()).await.unwrap();
    assert_eq!(
        (connected.url.as_str(), connected.source.as_str()),
        ("http://127.0.0.1:8001/", "--kube-url")
    );
}

#[tokio::test]
async fn a_kubeconfig_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config");
    let fail = async |context: Option<&str>| {
        let access = access(None, path.to_str(), context);
        let Err(error) = connect(&access, &Environment::default()).await else {
            panic!("it was used")
        };
        assert!(error.is_configuration());
        let text = error.to_string();
        assert!(text.contains(path.to_str().unwrap()), "{text}");
        text
    };
    assert!(fail(None).await.contains("No such file"));
    std::fs::write(&path, "{").unwrap();
    fail(None).await;
    let config = "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
        contexts: [{name: a, context: {cluster: c, user: u}}]\n\
        clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]\nusers: [{name: u, user: {}}]\n";
    std::fs::write(&path, config).unwrap();
    assert!(fail(Some("b")).await.contains('b'));
    let good = connect(&access(None, path.to_str(), None), &Environment::default()).await.unwrap();
    assert_eq!(good.url, "http://127.0.0.1:1/");
    let home = Environment { home_kubeconfig: Some(path.clone()), ..Environment::default() };
    let good = connect(&Access::default(), &home).await.unwrap();
    assert_eq!(good.source, format!("the kubeconfig of {}", path.display()));
}

/// A client that is always answered thus, and the paths that it asked for.
fn answered(code: u16, text: &str) -> (Client, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (log, text) = (Arc::clone(&asked), text.to_owned());
    let service = tower::service_fn(move |request: Request<Body>| {
        log.lock().unwrap().push(request.uri().path().to_owned());
        let mut response = Response::new(Body::from(text.clone().into_bytes()));
        *response.status_mut() = code.try_into().unwrap();
        async move { Ok::<_, std::io::Error>(response) }
    });
    (with_limits(Client::new(service, "default")), asked)
}

fn status(code: u16) -> String {
    format!(
        r#"{{"kind":"Status","status":"Failure","reason":"Scripted","message":"scripted\nmessage","code":{code}}}"#
    )
}

#[tokio::test]
async fn the_uid_is_known_denied_or_an_error() {
    let (client, asked) = answered(200, r#"{"metadata":{"name":"kube-system","uid":"u-1"}}"#);
    assert_eq!(kube_system_uid(&client).await.unwrap(), ClusterUid::Known("u-1".to_owned()));
    assert_eq!(*asked.lock().unwrap(), ["/api/v1/namespaces/kube-system"]);
    let (client, _) = answered(403, &status(403));
    let denied = ClusterUid::Denied("HTTP 403 Scripted: scripted message".to_owned());
    assert_eq!(kube_system_uid(&client).await.unwrap(), denied);
    for (code, text) in [(404, status(404)), (500, status(500)), (200, "{}".to_owned())] {
        let (client, _) = answered(code, &text);
        let error = kube_system_uid(&client).await.unwrap_err();
        assert!(matches!(error, Error::ClusterUid(_)) && !error.is_configuration(), "{error}");
    }
}

#[tokio::test]
async fn only_a_404_says_that_there_are_no_endpoint_slices() {
    let list = r#"{"kind":"APIResourceList","apiVersion":"v1","groupVersion":"discovery.k8s.io/v1","resources":[]}"#;
    let source = async |code, text: &str| {
        let (client, asked) = answered(code, text);
        let source = endpoint_source(&client).await;
        assert_eq!(*asked.lock().unwrap(), ["/apis/discovery.k8s.io/v1"]);
        source
    };
    assert_eq!(source(200, list).await.unwrap(), EndpointSource::EndpointSlices);
    assert_eq!(source(404, &status(404)).await.unwrap(), EndpointSource::Endpoints);
    assert_eq!(source(404, "404 page not found").await.unwrap(), EndpointSource::Endpoints);
    assert_eq!(source(403, &status(403)).await.unwrap(), EndpointSource::EndpointSlices);
    assert!(source(503, &status(503)).await.is_err());
}

#[tokio::test]
async fn the_version_is_asked() {
    let text = r#"{"major":"1","minor":"36","gitVersion":"v1.36.1","gitCommit":"","gitTreeState":"","buildDate":"","goVersion":"","compiler":"","platform":""}"#;
    let (client, _) = answered(200, text);
    assert_eq!(server_version(&client).await.unwrap(), "v1.36.1");
    let (client, _) = answered(500, &status(500));
    let error = server_version(&client).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "cannot ask the Kubernetes API for its version: HTTP 500 Scripted: scripted message"
    );
}
