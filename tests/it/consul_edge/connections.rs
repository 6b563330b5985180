//! Connections: tokens, logins, TLS, sockets.

use super::*;

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
    let source = TokenSource::Login(Login {
        auth_method: "kubernetes".into(),
        bearer_token_file: bearer,
        datacenter: Some("dc9".into()),
        meta: [("pod".into(), "shop/web".into())].into(),
    });
    let client = Client::new(&config(&recorder.url(), source)).unwrap();
    reverse(&client).await.unwrap();
    let logins = || {
        let requests = recorder.requests();
        requests.into_iter().filter(path_begins("/v1/acl/login")).collect::<Vec<_>>()
    };
    assert_eq!(logins().len(), 1);
    let body: Value = serde_json::from_slice(&logins()[0].body).unwrap();
    let sent = json!({ "AuthMethod": "kubernetes", "BearerToken": "service-account",
        "Meta": { "pod": "shop/web" } });
    assert_eq!(body, sent);
    assert!(logins()[0].path.contains("?dc=dc9"), "{}", logins()[0].path);

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
        ("/v1/acl/logout?dc=dc9", &SECOND.parse().unwrap())
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
    let source = TokenSource::Login(Login {
        auth_method: "wrong".into(),
        bearer_token_file: bearer,
        datacenter: None,
        meta: [].into(),
    });
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
