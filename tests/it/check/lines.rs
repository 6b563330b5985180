//! Each line of `check`, made to fail.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use http::StatusCode;
use kube_consul_stack::documentation::pages;
use kube_consul_stack::{
    Authority, Certificate, ConsulCluster, ConsulOptions, Fault, HttpRecorder, KubectlProxy,
    Kubernetes, Port, ProgramOptions, data_folder, eventually,
};
use serde_json::{Value, json};

use crate::acl::{MANAGEMENT, policy, token, without};
use crate::support::{
    DEADLINE, Fixture, ends_with, kube_consul, kubeconfig_with, kubeconfig_without, says,
    shared_token, shipped_kubeconfig, shipped_rules,
};

/// What a check says, in JSON; it ends with `code`.
async fn check(code: i32, command: ProgramOptions) -> Result<Vec<Value>> {
    let said = says(code, command.args(["--output", "json", "--timeout", "20s"])).await?;
    let said: Value = serde_json::from_str(&said)?;
    ensure!(said["ok"] == (code == 0), "{said:#}");
    said["checks"].as_array().cloned().context("no checks")
}

/// The lines of this name, or that begin with it.
fn lines<'a>(checks: &'a [Value], name: &str) -> Vec<&'a Value> {
    let exact: Vec<&Value> = checks.iter().filter(|it| it["check"] == name).collect();
    let begins = |it: &&Value| it["check"].as_str().is_some_and(|it| it.starts_with(name));
    if exact.is_empty() { checks.iter().filter(begins).collect() } else { exact }
}

fn ensure_status(checks: &[Value], name: &str, status: &str) -> Result<Value> {
    let found = lines(checks, name);
    let [line] = found.as_slice() else { anyhow::bail!("{name}: {checks:#?}") };
    ensure!(line["status"] == status, "{name}: want {status}: {line}");
    let has_remedy = line["remedy"].is_string();
    ensure!(has_remedy == ["failed", "warning"].contains(&status), "{line}");
    Ok((*line).clone())
}

#[tokio::test]
async fn with_all_well_nothing_fails_and_nothing_is_written() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    fixture.web("web", &[("http", 80)]).await?;
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let command = fixture.subcommand("check").await?.env("CONSUL_HTTP_ADDR", recorder.url());
    let checks = check(0, command).await?;
    for name in ["kubernetes", "cluster identity", "consul leader", "owner key", "acl", "names"] {
        ensure_status(&checks, name, "ok")?;
    }
    ensure!(lines(&checks, "permission").len() == 6, "{checks:#?}");
    ensure!(lines(&checks, "permission").iter().all(|it| it["status"] == "ok"), "{checks:#?}");
    ensure!(lines(&checks, "clock").iter().all(|it| it["status"] == "ok"), "{checks:#?}");
    // What is asked of the ACLs is asked by POST.
    let mut writes = recorder.writes();
    writes.retain(|it| !it.path.starts_with("/v1/internal/acl/authorize"));
    ensure!(writes.is_empty(), "{writes:?}");
    // The alias, for people.
    let text = says(0, fixture.subcommand("doctor").await?).await?;
    ensure!(text.lines().any(|line| line.starts_with("ok       kubernetes")), "{text}");
    Ok(())
}

#[tokio::test]
async fn each_side_that_does_not_answer_is_named_with_what_to_do() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    let nobody = format!("http://127.0.0.1:{}", Port::pick()?.number());
    let command = fixture.subcommand("check").await?.env("CONSUL_HTTP_ADDR", &nobody);
    let checks = check(1, command).await?;
    ensure_status(&checks, "consul", "failed")?;
    ensure_status(&checks, "consul leader", "skipped")?;
    ensure_status(&checks, "names", "skipped")?;
    let command = kube_consul()
        .args(["check", "--kube-url", &nobody])
        .env("CONSUL_HTTP_ADDR", fixture.consul.url());
    let checks = check(1, command).await?;
    ensure_status(&checks, "kubernetes", "failed")?;
    ensure_status(&checks, "cluster identity", "skipped")?;
    ensure_status(&checks, "consul leader", "ok").map(drop)
}

#[tokio::test]
async fn a_missing_permission_is_named() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    let kubeconfig = kubeconfig_without(fixture.kubernetes, "endpointslices", "watch").await?;
    let checks = check(1, fixture.command_with("check", &kubeconfig)).await?;
    let failed: Vec<&Value> = checks.iter().filter(|it| it["status"] == "failed").collect();
    let named = |it: &&Value| it["check"].as_str().is_some_and(|it| it.contains("endpointslices"));
    ensure!(failed.len() == 1 && failed.iter().all(named), "{failed:#?}");
    Ok(())
}

#[tokio::test]
async fn a_name_of_another_cluster_and_names_that_others_hold_are_told() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    fixture.web("db", &[("http", 80)]).await?;
    let api = fixture.consul.api();
    let service = json!({"Name": "db", "ID": "db-1", "Address": "192.0.2.7", "Port": 1});
    api.put("/v1/agent/service/register", &service).await?;
    let checks = check(0, fixture.subcommand("check").await?).await?;
    let line = ensure_status(&checks, "names", "warning")?;
    let db = format!("{}/db", fixture.namespace);
    ensure!(line["found"].as_str().is_some_and(|it| it.contains(&db)), "{line}");

    api.put_text("/v1/kv/kube-consul/kubernetes/owner", "another-uid").await?;
    let checks = check(1, fixture.subcommand("check").await?).await?;
    let line = ensure_status(&checks, "owner key", "failed")?;
    ensure!(line["remedy"].as_str().is_some_and(|it| it.contains("--adopt")), "{line}");
    ensure_status(&checks, "names", "skipped").map(drop)
}

#[tokio::test]
async fn wrong_usage_is_no_failed_check() -> Result<()> {
    let command = kube_consul().args(["check", "--leader-elect"]);
    let said = ends_with(2, command).await?;
    ensure!(said.contains("--sink catalog"), "{said}");
    Ok(())
}

/// What a line says, in one text.
fn words(line: &Value) -> String {
    format!("{} -> {}", line["found"].as_str().unwrap_or(""), line["remedy"].as_str().unwrap_or(""))
}

fn ensure_says(checks: &[Value], name: &str, status: &str, texts: &[&str]) -> Result<()> {
    let said = words(&ensure_status(checks, name, status)?);
    for text in texts {
        ensure!(said.contains(text), "{name}: want '{text}' in: {said}");
    }
    Ok(())
}

/// The lines that failed.
fn failed(checks: &[Value]) -> Vec<&str> {
    let failed = checks.iter().filter(|it| it["status"] == "failed");
    failed.filter_map(|it| it["check"].as_str()).collect()
}

#[tokio::test]
async fn permissions_that_only_some_options_need_are_asked_for_with_them() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    // Nodes are read by node-port alone, and the shipped role has no right to them. An identity of
    // its own: other tests add the optional right to that of the shipped one.
    let cluster = fixture.kubernetes;
    let limited = cluster.namespace("limited").await?;
    let kubeconfig = kubeconfig_with(cluster, &limited, &shipped_rules(cluster).await?).await?;
    let command = fixture.command_with("check", &kubeconfig).args(["--address", "node-port"]);
    let checks = check(1, command).await?;
    ensure!(failed(&checks) == ["permission list nodes", "permission watch nodes"], "{checks:#?}");
    // Without Events everything else works.
    let kubeconfig = kubeconfig_without(fixture.kubernetes, "events", "create").await?;
    let checks = check(0, fixture.command_with("check", &kubeconfig)).await?;
    let line = format!("permission create events.events.k8s.io in {}", fixture.namespace);
    ensure_says(&checks, &line, "warning", &["not granted", "not written as Events", "rbac.yaml"])
}

#[tokio::test]
async fn an_identity_that_is_hidden_or_another_one_fails() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    let kubeconfig = kubeconfig_without(fixture.kubernetes, "namespaces", "get").await?;
    let checks = check(1, fixture.command_with("check", &kubeconfig)).await?;
    let name = "permission get namespaces kube-system";
    ensure!(failed(&checks) == [name, "cluster identity"], "{checks:#?}");
    ensure_says(&checks, "cluster identity", "failed", &["forbidden", "--cluster-uid"])?;
    ensure_status(&checks, "owner key", "skipped")?;
    // With what the remedy says it is known, and the permission is not asked for.
    let command = fixture.command_with("check", &kubeconfig).args(["--cluster-uid", "given"]);
    let checks = check(0, command).await?;
    ensure_says(&checks, "cluster identity", "ok", &["given"])?;

    let command = fixture.subcommand("check").await?.args(["--cluster-uid", "another"]);
    let checks = check(1, command).await?;
    let texts = ["--cluster-uid says another, kube-system has ", "Kubernetes flags"];
    ensure_says(&checks, "cluster identity", "failed", &texts)
}

#[tokio::test]
async fn without_a_leader_and_with_few_connections_it_says_so() -> Result<()> {
    let options =
        ConsulOptions::server().configuration("limits { http_max_conns_per_client = 12 }");
    let (kubernetes, servers) =
        tokio::try_join!(Kubernetes::shared(), ConsulCluster::start_with(options))?;
    let namespace = kubernetes.namespace("check").await?;
    let command = || async {
        let command = kube_consul().args(["check", "--namespace", &namespace]);
        let command = command.arg("--kubeconfig").arg(shipped_kubeconfig().await?);
        anyhow::Ok(command.env("CONSUL_HTTP_ADDR", servers.servers[0].url()))
    };
    let checks = check(0, command().await?).await?;
    let texts = ["12 connections", "limits.http_max_conns_per_client to 32 or more"];
    ensure_says(&checks, "consul limits", "warning", &texts)?;

    tokio::try_join!(servers.servers[1].kill(), servers.servers[2].kill())?;
    eventually(DEADLINE, || async {
        let leader = servers.servers[0].api().get("/v1/status/leader").await?;
        ensure!(leader == "", "there is one: {leader}");
        Ok(())
    })
    .await?;
    let checks = check(1, command().await?).await?;
    ensure_status(&checks, "consul", "ok")?;
    ensure_says(&checks, "consul leader", "failed", &["none", "most of them have to be there"])?;
    ensure_says(&checks, "owner key", "failed", &["that Consul has a leader"])
}

/// A Consul that denies by default, and a command with a token of these rules.
async fn with_token(fixture: &Fixture, secret: &str, rules: &str) -> Result<ProgramOptions> {
    token(fixture.consul.api(), secret, rules).await?;
    let command = fixture.subcommand("check").await?.args(["--sink", "catalog", "--leader-elect"]);
    Ok(command.env("CONSUL_HTTP_TOKEN", secret))
}

#[tokio::test]
async fn a_token_that_lacks_a_rule_or_is_unknown_is_told_by_the_rule() -> Result<()> {
    let fixture = Fixture::with_consul("check", ConsulOptions::dev().acl(MANAGEMENT)).await?;
    let secret = |number: u8| format!("44444444-4444-4444-4444-44444444444{number}");
    let shipped = policy("bridge-catalog.hcl")?;
    let checks = check(0, with_token(&fixture, &secret(0), &shipped).await?).await?;
    let rules = lines(&checks, "acl ");
    ensure!(rules.len() == 8 && rules.iter().all(|it| it["status"] == "ok"), "{rules:#?}");
    // Under default deny DNS answers nothing without a token of its own.
    ensure_says(&checks, "consul dns", "warning", &["0 records", "acl.tokens.dns"])?;

    for (number, rule, told) in [
        (1, "service_prefix \"\" { policy = \"write\" }", &["acl service:write "][..]),
        (2, "node_prefix \"\" { policy = \"read\" }", &["acl node:read "]),
        (3, "node \"k8s-kubernetes\" { policy = \"write\" }", &["acl node:write k8s-kubernetes"]),
        (
            4,
            "node_prefix \"k8s-kubernetes.\" { policy = \"write\" }",
            &["acl node:write k8s-kubernetes."],
        ),
        (
            5,
            "session \"k8s-kubernetes\" { policy = \"write\" }",
            &["acl session:write k8s-kubernetes"],
        ),
        (6, "key_prefix \"0.\" { policy = \"write\" }", &["acl key:write 0."]),
        (
            7,
            "key_prefix \"kube-consul/kubernetes/\" { policy = \"write\" }",
            // Neither can the keys be read: nobody knows whose they are, or who leads.
            &[
                "acl key:write kube-consul/kubernetes/owner",
                "acl key:write kube-consul/kubernetes/leader",
                "owner key",
                "election",
            ],
        ),
    ] {
        let command = with_token(&fixture, &secret(number), &without(&shipped, rule)?).await?;
        let checks = check(1, command).await?;
        let found = failed(&checks);
        // The token may read some of it nevertheless: what is told first is the rule.
        let all = told.iter().all(|told| found.iter().any(|it| it.starts_with(told)));
        ensure!(all && found.len() == told.len(), "without {rule}: {found:?}, want {told:?}");
        let line = lines(&checks, found[0])[0];
        ensure!(
            words(line) == "not granted -> give the token the policy of docs/acls.md",
            "{line}"
        );
    }

    // The agent itself may not be read: PTR records have no end, and what it limits is not known.
    let rules = without(&shipped, "agent_prefix \"\" { policy = \"read\" }")?;
    let checks = check(0, with_token(&fixture, &secret(8), &rules).await?).await?;
    ensure_says(&checks, "consul", "warning", &["may not read the agent", "agent:read"])?;
    let texts = ["no PTR record can be written", "--datacenter and --dns-domain"];
    ensure_says(&checks, "consul datacenter", "warning", &texts)?;
    for name in ["consul limits", "consul dns"] {
        ensure_says(&checks, name, "skipped", &["the agent may not be read"])?;
    }

    let command = fixture.subcommand("check").await?.env("CONSUL_HTTP_TOKEN", secret(9));
    let checks = check(1, command).await?;
    ensure_says(&checks, "consul", "failed", &["ACL not found", "the token"])
}

#[tokio::test]
async fn what_cannot_be_asked_for_is_not_taken_for_granted() -> Result<()> {
    let fixture = Fixture::recorded("check").await?;
    let fault = |code| Fault::Answer(code, "a fault of the test".to_owned());
    let unavailable = fault(StatusCode::INTERNAL_SERVER_ERROR);
    let recorder = fixture.recorder();
    recorder.fault(unavailable.clone(), |it| it.path.starts_with("/v1/internal/acl/authorize"));
    let checks = check(0, fixture.subcommand("check").await?).await?;
    ensure_says(&checks, "acl", "warning", &["cannot be asked for", "docs/acls.md"])?;

    recorder.mend();
    recorder.fault(unavailable, |it| it.path.starts_with("/v1/catalog/services"));
    let checks = check(1, fixture.subcommand("check").await?).await?;
    ensure_says(&checks, "names", "failed", &["kube-consul plan"])
}

#[tokio::test]
async fn dns_that_nobody_answers_is_a_warning() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    // What answers HTTP here has another agent's DNS port beside it, where nobody listens.
    let port = Port::pick()?.number();
    let elsewhere = json!({"Config": {"NodeName": "n", "Datacenter": "dc1", "Version": "1.20.1"},
        "DebugConfig": {"DNSDomain": "consul.", "DNSPort": port,
            "HTTPMaxConnsPerClient": 200}, "Member": {}});
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let answer = Fault::Answer(StatusCode::OK, elsewhere.to_string());
    recorder.fault(answer, |it| it.path.starts_with("/v1/agent/self"));
    let command = fixture.subcommand("check").await?.env("CONSUL_HTTP_ADDR", recorder.url());
    let checks = check(0, command).await?;
    ensure_says(&checks, "consul dns", "warning", &["consul.service.consul", "ports.dns"])
}

/// A file with a text.
fn file(name: &str, text: &str) -> Result<PathBuf> {
    let path = data_folder("check")?.join(name);
    fs::write(&path, text)?;
    Ok(path)
}

#[tokio::test]
async fn certificates_are_told_before_they_run_out_and_after() -> Result<()> {
    const HOUR: Duration = Duration::from_hours(1);
    let authority = Authority::new("the authority of a test")?;
    let now = SystemTime::now();
    let names = ["localhost", "127.0.0.1"];
    let soon = authority.issue_until(&names, now + 73 * HOUR + HOUR / 2)?;
    let options = ConsulOptions::dev().tls_with(&authority, &soon, false)?;
    let fixture = Fixture::with_consul("check", options).await?;
    let ca = file("ca.crt", authority.pem())?;
    let command = async |ca: &PathBuf, client: &Certificate| {
        let command = fixture.subcommand("check").await?.env("CONSUL_CACERT", ca);
        let command = command.env("CONSUL_CLIENT_CERT", file("client.crt", &client.certificate)?);
        anyhow::Ok(command.env("CONSUL_CLIENT_KEY", file("client.key", &client.key)?))
    };
    let (server, client) =
        ("certificate: Consul's certificate", "certificate: the client's certificate");
    let late = authority.issue_until(&names, now - 3 * HOUR - HOUR / 2)?;
    // Consul asks for none here, and does not mind one that has run out.
    let checks = check(1, command(&ca, &late).await?).await?;
    ensure_says(&checks, client, "failed", &["expired 3 h ago", "renew it"])?;
    ensure_says(&checks, server, "warning", &["expires in 73 h", "renew it"])?;
    let good = authority.issue(&names)?;
    let checks = check(0, command(&ca, &good).await?).await?;
    ensure_says(&checks, client, "ok", &["days"])?;

    let wrong = Authority::new("another authority")?;
    let wrong = file("wrong.crt", wrong.pem())?;
    let checks = check(1, command(&wrong, &good).await?).await?;
    ensure_says(&checks, "certificate", "failed", &["was issued by", "TLS options"])?;
    ensure_says(&checks, "consul", "failed", &["was issued by"])
}

#[tokio::test]
async fn a_clock_that_is_another_is_a_warning_on_each_side() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    let recorder = HttpRecorder::start(fixture.consul.url()).await?;
    let proxy =
        KubectlProxy::start(&fixture.kubernetes.kubeconfig_for(shared_token().await?)?).await?;
    let api = HttpRecorder::start(&proxy.url()).await?;
    let noon = Fault::Header("Date", "Mon, 01 Jan 2024 12:00:00 GMT".to_owned());
    recorder.fault(noon.clone(), |it| it.path == "/v1/status/leader");
    api.fault(noon, |it| it.path == "/version");
    let command = kube_consul()
        .args(["check", "--namespace", &fixture.namespace, "--kube-url", &api.url()])
        .env("CONSUL_HTTP_ADDR", recorder.url());
    let checks = check(0, command).await?;
    for side in ["the Kubernetes API", "Consul"] {
        let name = format!("clock of {side}");
        ensure_says(&checks, &name, "warning", &["s apart from this machine's", "NTP"])?;
    }
    Ok(())
}

#[tokio::test]
async fn wait_goes_on_until_nothing_fails_and_says_what_it_waits_for() -> Result<()> {
    let fixture = Fixture::recorded("check").await?;
    let fault = Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader".to_owned());
    // The agent answers, and its servers do not.
    fixture.recorder().fault_times(2, fault, |it| it.path.starts_with("/v1/kv/"));
    let command = fixture.subcommand("check").await?.args(["--wait", "--timeout", "5s"]);
    let program = kube_consul_stack::Program::start("kube-consul", command).await?;
    program.wait_for_code(0, DEADLINE).await?;
    let said = program.stderr();
    ensure!(said.contains("waiting") && said.contains("owner key"), "{said}");
    ensure!(!program.stdout().contains("failed"), "{}", program.stdout());
    Ok(())
}

/// The lines of the documentation are those that are printed, and the other way round.
#[tokio::test]
async fn the_documented_lines_are_those_that_are_printed() -> Result<()> {
    let fixture = Fixture::new("check").await?;
    let command = fixture.subcommand("check").await?.args(["--sink", "catalog", "--leader-elect"]);
    // Twice the same: each address has a line.
    let twice = format!("{0},{0}", fixture.consul.url());
    let checks = check(0, command.args(["--consul-addr", &twice])).await?;
    let pages = pages(env!("CARGO_MANIFEST_DIR").as_ref())?;
    let (_, page) = pages.iter().find(|(path, _)| path.ends_with("check.md")).context("no page")?;
    let rows = page.lines().filter_map(|it| it.strip_prefix("| `")?.split_once('`'));
    let documented: Vec<&str> = rows.map(|(name, _)| name).collect();
    ensure!(documented.len() == 16, "{documented:?}");
    // Capitals stand for what differs.
    let stem = |name: &str| {
        let words = name.split(' ').take_while(|it| it.chars().any(char::is_lowercase));
        words.collect::<Vec<_>>().join(" ")
    };
    let is_of = |line: &Value, name: &str| {
        line["check"].as_str().is_some_and(|it| it == name || it.starts_with(&format!("{name} ")))
    };
    for name in &documented {
        ensure!(checks.iter().any(|it| is_of(it, &stem(name))), "{name} is not printed");
    }
    for line in &checks {
        ensure!(documented.iter().any(|name| is_of(line, &stem(name))), "{line} is not documented");
    }
    Ok(())
}
