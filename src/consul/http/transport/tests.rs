use super::*;
use crate::consul::http::request::encode_key;

fn headers(policy: Option<&'static str>, filtered: Option<&'static str>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if let Some(policy) = policy {
        headers.insert("X-Consul-Default-ACL-Policy", HeaderValue::from_static(policy));
    }
    if let Some(filtered) = filtered {
        headers.insert("X-Consul-Results-Filtered-By-ACLs", HeaderValue::from_static(filtered));
    }
    headers
}

/// Invariant 1, word for word.
#[test]
fn an_empty_answer_is_true_only_with_evidence() {
    for (policy, filtered, token_sent, is_true) in [
        (None, None, false, true),
        (Some("allow"), None, false, true),
        (Some("deny"), None, true, true),
        (Some("deny"), None, false, false),
        (Some("deny"), Some("true"), true, false),
        (Some("deny"), Some("true"), false, false),
        (Some("surprise"), None, false, false),
    ] {
        let evidence = Evidence::of_headers(&headers(policy, filtered), token_sent);
        assert_eq!(evidence.empty_is_true(), is_true, "{policy:?} {filtered:?} {token_sent}");
        assert_eq!(evidence.filtered, filtered.is_some());
    }
}

fn transport(config: &Config) -> Transport {
    crate::tls::install_provider();
    Transport::new(config).unwrap()
}

#[test]
fn a_url_carries_prefix_datacenter_and_tenancy_but_an_agent_has_no_datacenter() {
    let config = Config {
        address: "http://proxy/consul/".parse().unwrap(),
        datacenter: Some("dc 1".into()),
        namespace: Some("team".into()),
        ..Config::default()
    };
    let transport = transport(&config);
    let kv = Request::get(format!("/v1/kv/{}", encode_key("a/b c"))).flag("recurse");
    let url = |request| transport.url(&transport.peers[0], request);
    assert_eq!(url(&kv), "http://proxy/consul/v1/kv/a/b%20c?recurse&ns=team&dc=dc%201");
    let agent = Request::get("/v1/agent/self");
    assert_eq!(url(&agent), "http://proxy/consul/v1/agent/self?ns=team");
}

#[test]
fn without_settings_nothing_is_added() {
    let transport = transport(&Config::default());
    let request = Request::get("/v1/status/leader");
    assert_eq!(
        transport.url(&transport.peers[0], &request),
        "http://127.0.0.1:8500/v1/status/leader"
    );
}

#[test]
fn a_tls_server_name_has_to_be_a_dns_name() {
    crate::tls::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let config = |name: &str| Config {
        address: "https://10.0.0.1:8501".parse().unwrap(),
        tls_verify: false,
        tls_server_name: Some(name.into()),
        ..Config::default()
    };
    let base = Transport::new(&config("server.dc1.consul")).unwrap().peers[0].base.clone();
    assert_eq!(base, "https://server.dc1.consul:8501");
    for bad in ["10.0.0.2", "", "a b", "a/b", "::1"] {
        let result = Transport::new(&config(bad));
        assert!(matches!(result, Err(BuildError::ServerName(_))), "{bad:?} was accepted");
    }
    drop(directory);
}

#[test]
fn certificate_files_that_hold_none_are_named() {
    crate::tls::install_provider();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.pem");
    std::fs::write(&file, "nothing").unwrap();
    let base = Config { address: "https://consul:8501".parse().unwrap(), ..Config::default() };
    let empty = directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    for (config, path) in [
        (Config { ca_file: Some(file.clone()), ..base.clone() }, &file),
        (Config { ca_directory: Some(directory.path().into()), ..base.clone() }, &file),
        (Config { ca_directory: Some(empty.clone()), ..base.clone() }, &empty),
        (Config { ca_file: Some(empty.join("none")), ..base.clone() }, &empty),
    ] {
        let error = Transport::new(&config).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}
