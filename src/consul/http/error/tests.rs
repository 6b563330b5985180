use super::*;

/// What becomes of a record whose write is answered so: r(efused), d(enied), f(ailed),
/// u(nanswered), by an agent and by the servers. Every text was given by Consul 1.20.1 or stands in
/// its source, or is that of the proxy or library named.
#[test]
fn l5_status_and_text_decide_what_becomes_of_a_record() {
    let rows: &[(u16, &str, &str)] = &[
        // The content of this record.
        (400, "Missing service name", "rr"),
        (400, "Invalid service address", "rr"),
        (500, "Invalid service address", "rr"),
        (500, "rpc error making call: Invalid service address", "rr"),
        (400, "Request decode failed: json: unknown field \"Foo\"", "rr"),
        (
            400,
            "Invalid Service Meta: Node metadata cannot contain more than 64 key/value pairs",
            "rr",
        ),
        (
            400,
            "Invalid Service Meta: Couldn't load metadata pair ('consul-x', '1'): Key prefix 'consul-' is reserved for internal use",
            "rr",
        ),
        (400, "Invalid Weights: DNS Weight must be between 0 and 65535", "rr"),
        (400, "Invalid check: TTL must be > 0 for TTL checks", "rr"),
        (400, "Status for checks must 'passing', 'warning', 'critical'", "rr"),
        (
            400,
            "Failed to parse body: json: cannot unmarshal string into Go struct field AgentService.Service.Service.Port of type int",
            "rr",
        ),
        (413, "Request body(2000024 bytes) too large, max size: 524288 bytes.", "rr"),
        (413, "Transaction contains too many operations (129 > 128)", "rr"),
        // A permission.
        (
            403,
            "Permission denied: anonymous token lacks permission 'service:write' on \"web\"",
            "dd",
        ),
        (403, "ACL not found", "dd"),
        (403, "<html><title>403 Forbidden</title></html>", "dd"),
        (500, "rpc error making call: Permission denied", "dd"),
        (500, "rpc error making call: ACL not found", "dd"),
        // No server: a log entry may have been appended.
        (500, "No cluster leader", "fu"),
        (500, "rpc error making call: EOF", "fu"),
        (
            500,
            "rpc error getting client: failed to get conn: dial tcp 10.0.0.1:8300: i/o timeout",
            "fu",
        ),
        (
            500,
            "rpc error making call: raft apply failed: leadership lost while committing log",
            "fu",
        ),
        (500, "leadership transfer in progress", "fu"),
        (500, "snapshot restored while committing log", "fu"),
        (500, "Raft leader not found in server lookup mapping", "fu"),
        (500, "No known Consul servers", "fu"),
        (500, "No path to datacenter", "fu"),
        (502, "<html><title>502 Bad Gateway</title></html>", "fu"),
        (504, "upstream request timeout", "fu"),
        // An agent or a server in trouble.
        (
            500,
            "failed to persist service: write /consul/data/services/tmp: no space left on device",
            "fu",
        ),
        (500, "open /consul/data/services/x: read-only file system", "fu"),
        (500, "failed writing service: something new", "fu"),
        (500, "", "fu"),
        // Limits.
        (
            429,
            "Your IP is issuing too many concurrent connections, please rate limit your calls",
            "ff",
        ),
        (503, "rate limit exceeded for this operation, try again later", "ff"),
        (503, "<html><title>503 Service Temporarily Unavailable</title></html>", "ff"),
        // Somebody else than Consul, or not this request's fault.
        (400, "Client sent an HTTP request to an HTTPS server.", "ff"),
        (400, "<html><title>400 No required SSL certificate was sent</title></html>", "ff"),
        (400, "400 Bad Request: missing required Host header", "ff"),
        (400, "Request decode failed: unexpected EOF", "ff"),
        (400, "Failed to parse body: unexpected EOF", "ff"),
        (400, "Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature", "ff"),
        (404, "Invalid URL path: not a recognized HTTP API endpoint", "ff"),
        (405, "method PUT not allowed", "ff"),
        (301, "", "ff"),
        (401, "Unauthorized", "ff"),
        (407, "Proxy Authentication Required", "ff"),
        (408, "Request Time-out", "ff"),
        (409, "a proxy's own", "ff"),
        (421, "Misdirected Request", "ff"),
        (431, "Request Header Fields Too Large", "ff"),
    ];
    assert!(rows.len() >= 30);
    for (status, text, expected) in rows {
        let error = Error::of_answer("PUT /".into(), *status, text.as_bytes());
        let became = [Reach::Agent, Reach::Servers].map(|reach| match error.answer(reach) {
            Answer::Refused(_) => 'r',
            Answer::Denied(_) => 'd',
            Answer::Failed(_) => 'f',
            Answer::Unanswered(_) => 'u',
            other => panic!("{status} {text}: {other:?}"),
        });
        assert_eq!(String::from_iter(became), *expected, "{status} {text}");
    }
}

#[test]
fn what_lies_in_the_other_side_is_transient() {
    for (status, body, transient) in [
        (500, "No cluster leader", true),
        (429, "busy", true),
        (404, "not Consul", true),
        (400, "bad", true),
        (500, "no space left on device", true),
        (400, "Missing service name", false),
        (403, "ACL not found", false),
        (500, "Invalid service address", false),
    ] {
        let error = || Error::of_answer("GET /".into(), status, body.as_bytes());
        assert_eq!(error().is_transient(), transient, "{status} {body}");
        let login = TokenError::Login { auth_method: "m".into(), source: error().into() };
        assert_eq!(Error::Token(login).is_transient(), transient, "{status} {body}");
    }
    assert!(Error::Token(TokenError::TooSoon).is_transient());
}

#[test]
fn a_missing_quorum_leaves_only_replicated_writes_uncertain() {
    let error = Error::of_answer("PUT /v1/txn".into(), 500, b"No cluster leader");
    assert!(matches!(error.answer(Reach::Agent), Answer::Failed(_)));
    assert!(matches!(error.answer(Reach::Servers), Answer::Unanswered(_)));
}

#[test]
fn a_login_that_consul_could_not_serve_denies_nothing() {
    let login = |status, body: &[u8]| {
        let source = Error::of_answer("POST /v1/acl/login".into(), status, body).into();
        Error::Token(TokenError::Login { auth_method: "m".into(), source })
    };
    for reach in [Reach::Agent, Reach::Servers] {
        let away = login(500, b"No cluster leader").answer(reach);
        assert!(matches!(away, Answer::Failed(_)), "{away:?}");
        let denied = login(403, b"Permission denied").answer(reach);
        assert!(matches!(denied, Answer::Denied(_)), "{denied:?}");
    }
    let too_soon = Error::Token(TokenError::TooSoon).answer(Reach::Servers);
    assert!(matches!(too_soon, Answer::Failed(_)), "{too_soon:?}");
}

#[test]
fn a_rolled_back_operation_is_told_by_its_words() {
    for (message, answer) in [
        ("failed to set key \"0.x/1\", index is stale", Answer::Conflict),
        ("failed to delete key \"0.x/1\", index is stale", Answer::Conflict),
        ("failed to check session, key \"lk\" doesn't exist", Answer::Fenced),
        ("failed session check for key \"lk\", current session \"\" != \"a\"", Answer::Fenced),
        // It went in between: the next transaction makes it again.
        ("Missing node registration", Answer::Failed("Missing node registration".into())),
        ("Missing service registration", Answer::Failed("Missing service registration".into())),
        ("failed inserting service: something new", Answer::Failed("failed inserting service: something new".into())),
        (
            "Invalid Service Meta for node k and serviceID a: Couldn't load metadata pair",
            Answer::Refused(
                "Invalid Service Meta for node k and serviceID a: Couldn't load metadata pair".into(),
            ),
        ),
        (
            "Error while renaming Node ID: \"1\": Node name n1 is reserved by node 2 with name n1 (127.0.0.1)",
            Answer::Foreign(
                "Error while renaming Node ID: \"1\": Node name n1 is reserved by node 2 with name n1 (127.0.0.1)"
                    .into(),
            ),
        ),
        (
            "Permission denied: lacks permission 'service:write' on \"failed session check\"",
            Answer::Denied(
                "Permission denied: lacks permission 'service:write' on \"failed session check\""
                    .into(),
            ),
        ),
        (
            "Permission denied: lacks permission 'service:write' on \"index is stale\"",
            Answer::Denied(
                "Permission denied: lacks permission 'service:write' on \"index is stale\""
                    .into(),
            ),
        ),
        (
            "Permission denied: lacks permission 'key:write' on \"0.x/1\"",
            Answer::Denied(
                "Permission denied: lacks permission 'key:write' on \"0.x/1\"".into(),
            ),
        ),
    ] {
        let body = serde_json::json!({
            "Results": null, "Errors": [{ "OpIndex": 3, "What": message }]
        });
        let error = Error::of_answer("PUT /v1/txn".into(), 409, body.to_string().as_bytes());
        let Error::RolledBack { errors, .. } = &error else { panic!("{error:?}") };
        assert_eq!(errors[0].index, 3);
        assert_eq!(error.answer(Reach::Servers), answer, "{message}");
    }
}

#[test]
fn untrusted_text_is_bounded_and_printable() {
    let error = Error::of_answer("GET /".into(), 400, &[b'\n', b'a', 0x1b, b'[', 0xff]);
    let Error::Unexpected { message, .. } = error else { panic!("{error:?}") };
    assert_eq!(message, "a [\u{fffd}");
    assert_eq!(clean(&"x".repeat(9_000)).chars().count(), MAX_MESSAGE + 1);
}

#[test]
fn an_answer_without_a_body_says_so() {
    let said = |status| Error::of_answer("GET /v1/x".into(), status, b" \n").to_string();
    assert!(
        said(400).contains("found HTTP 400: an empty body; check the address"),
        "{}",
        said(400)
    );
    assert!(said(500).contains("no reason given"), "{}", said(500));
}
