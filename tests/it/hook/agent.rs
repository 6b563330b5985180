//! The agent and the catalog: failures, rights, deadlines.

use std::time::Duration;

use anyhow::{Result, ensure};
use http::{Method, StatusCode};
use kube_consul_stack::{
    Certificate, Consul, ConsulOptions, Data, Fault, HttpRecorder, Port, Program, Recorded,
    eventually,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::support::{
    BEFORE_DEFAULTS, LIMITED, MANAGEMENT, PATIENCE, Shop, UNKNOWN, catalog, consul, ended, hook,
    hook_at, pod_at, serve, services,
};

#[tokio::test]
async fn every_instance_is_tried_to_be_removed() -> Result<()> {
    let consul = consul().await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let pod = pod_at("10.9.9.9:80".parse()?, &Value::Null);
    let api = serve(([127, 0, 0, 1], 0).into(), 200, pod).await?;
    let definitions =
        json!([1, 2, 3].map(|port| json!({"port": port, "labels": {"service": "true"}})));
    let hook = |arguments: &str| {
        hook_at(api, &consul, arguments)
            .env("CONSUL_HTTP_ADDR", recorder.url())
            .env("PORT_DEFINITIONS", definitions.to_string())
    };
    let denied = || Fault::Answer(StatusCode::FORBIDDEN, "Permission denied".into());
    ended(hook("register k8s"), 0).await?;
    for (kept, told_last) in [
        (&["_1", "_3"][..], "cannot deregister 2 of 3 instances: 10.9.9.9_1, 10.9.9.9_3"),
        (&["_1"][..], "cannot deregister 10.9.9.9_1: "),
    ] {
        recorder.fault(denied(), move |it| kept.iter().any(|end| it.path.ends_with(end)));
        let told = ended(hook("deregister k8s"), 1).await?.stderr();
        ensure!(told.contains(told_last) && told.contains("Permission denied"), "{told}");
        let left: Vec<_> = kept.iter().map(|end| format!("10.9.9.9{end}")).collect();
        ensure!(services(&consul).await? == left, "{told}");
        recorder.mend();
    }
    // One that cannot be registered is an error, whatever became of the others.
    recorder.fault(denied(), |it| it.body.windows(12).any(|text| text == b"\"10.9.9.9_2\""));
    let told = ended(hook("register k8s"), 1).await?.stderr();
    ensure!(told.contains("cannot register 10.9.9.9_2: ") && told.contains("denied"), "{told}");
    Ok(())
}

#[tokio::test]
async fn consul_may_be_down_at_first_but_not_for_ever() -> Result<()> {
    let mut consul = consul().await?;
    consul.kill().await?;
    let flags = "--service-name web --pod-ip 10.0.0.1 --container-port 80";
    let start = Instant::now();
    let short = hook(consul.url(), &format!("register cli {flags} --timeout 1s"));
    let told = ended(short, 1).await?.stderr();
    ensure!(told.contains("given up at the deadline") && told.contains("refused"), "{told}");
    ensure!(start.elapsed() < BEFORE_DEFAULTS, "{:?}", start.elapsed());

    let program =
        Program::start("hook", hook(consul.url(), &format!("register cli {flags}"))).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(program.exit_status().is_none());
    consul.restart(Data::Lost).await?;
    program.wait_for_code(0, PATIENCE).await?;
    consul.wait_ready().await?;
    ensure!(services(&consul).await? == ["10.0.0.1_80"]);

    // One that takes the connection and says nothing.
    consul.pause().await;
    let start = Instant::now();
    let hung = hook(consul.url(), "deregister cli --service-id 10.0.0.1_80 --timeout 1s");
    ended(hung, 1).await?;
    ensure!(start.elapsed() < BEFORE_DEFAULTS, "{:?}", start.elapsed());
    consul.resume().await;
    Ok(())
}

#[tokio::test]
async fn an_instance_whose_name_cannot_be_told_is_removed() -> Result<()> {
    let consul = consul().await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let failure = Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "rpc error".into());
    for fault in [failure, Fault::Delay(PATIENCE), Fault::DropBefore] {
        let body = json!({"ID": "10.0.0.1_80", "Name": "web"});
        consul.api().put("/v1/agent/service/register", &body).await?;
        recorder.fault(fault, |it| it.path.starts_with("/v1/agent/service/10.0.0.1_80"));
        let arguments = "deregister cli --service-id 10.0.0.1_80 --timeout 4s";
        let told = ended(hook(&recorder.url(), arguments), 0).await?.stderr();
        ensure!(told.contains("cannot tell when the catalog no longer has it"), "{told}");
        ensure!(services(&consul).await?.is_empty());
        recorder.mend();
    }
    Ok(())
}

#[tokio::test]
async fn a_hook_ends_when_the_catalog_shows_the_change() -> Result<()> {
    let consul = consul().await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let looks = |it: &Recorded| it.path.starts_with("/v1/catalog/service/web");
    let elsewhere = json!([{"Node": "other", "ServiceID": "10.0.0.1_80"}]).to_string();
    let here = json!([{"Node": consul.node(), "ServiceID": "10.0.0.1_80"}]).to_string();
    for (arguments, stale, expected) in [
        (
            "register cli --service-name web --pod-ip 10.0.0.1 --container-port 80",
            elsewhere,
            "expected the catalog to show it within 1s",
        ),
        (
            "deregister cli --service-id 10.0.0.1_80",
            here,
            "expected the catalog to no longer show it within 1s",
        ),
    ] {
        let outdated = Fault::Answer(StatusCode::OK, stale);
        recorder.fault(outdated.clone(), looks);
        let late = format!("{arguments} --wait-catalog 1s");
        let told = ended(hook(&recorder.url(), &late), 0).await?.stderr();
        ensure!(told.contains(expected), "{told}");
        // Whoever does not want to wait does not.
        recorder.mend();
        recorder.clear();
        ended(hook(&recorder.url(), &format!("{arguments} --wait-catalog 0s")), 0).await?;
        ensure!(!recorder.requests().iter().any(looks));

        recorder.clear();
        let failure = || Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "rpc error".into());
        if arguments.starts_with("deregister") {
            // It is gone already; the name, by which the catalog is asked, would be unknown.
            let name = Fault::Answer(StatusCode::OK, json!({"Service": "web"}).to_string());
            recorder.fault(name, |it| it.path.starts_with("/v1/agent/service/10.0.0.1_80"));
        }
        recorder.fault_times(2, failure(), |it| it.method == Method::PUT);
        recorder.fault_times(2, failure(), looks);
        recorder.fault_times(2, outdated, looks);
        let told = ended(hook(&recorder.url(), arguments), 0).await?.stderr();
        ensure!(!told.contains("WARN"), "{told}");
        let requests = recorder.requests();
        let count = |of: &dyn Fn(&Recorded) -> bool| requests.iter().filter(|it| of(it)).count();
        ensure!(count(&looks) == 5 && count(&|it| it.method == Method::PUT) == 3, "{requests:?}");
        recorder.mend();
    }
    Ok(())
}

#[tokio::test]
async fn the_token_file_is_used_and_a_wrong_token_says_consuls_reason() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev().acl(MANAGEMENT)).await?;
    limited_token(&consul, &shipped_policy()?).await?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let [good, wrong] =
        [file("good", &format!("{LIMITED}\n"))?, file("wrong", &format!("{UNKNOWN}\n"))?];
    let flags = "--pod-ip 10.0.0.1 --container-port 80 --service-name";
    let register = |file: &str, name: &str| {
        hook(consul.url(), &format!("--consul-acl-file {file} register cli {flags} {name}"))
    };

    let told = ended(register(&wrong, "web"), 1).await?.stderr();
    ensure!(told.contains("ACL not found") && !told.contains(UNKNOWN), "{told}");
    let told = ended(register(&good, "other"), 1).await?.stderr();
    ensure!(told.contains("service:write"), "{told}");
    ensure!(services(&consul).await?.is_empty());
    // H10: one that cannot be read is passed over, as there: the agent says what that is worth.
    let told = ended(register("/nope/token", "web"), 1).await?.stderr();
    ensure!(told.contains("/nope/token") && told.contains("ermission denied"), "{told}");
    let other = register("/nope/token", "web").env("CONSUL_HTTP_TOKEN", LIMITED);
    ended(other.env("CONSUL_HTTP_TOKEN_FILE", &wrong), 0).await?;
    ended(
        hook(consul.url(), "deregister cli --service-id 10.0.0.1_80")
            .env("CONSUL_HTTP_TOKEN_FILE", &good),
        0,
    )
    .await?;
    ensure!(services(&consul).await?.is_empty());

    // The file wins over the variable.
    let told = ended(register(&good, "web").env("CONSUL_HTTP_TOKEN", UNKNOWN), 0).await?.stderr();
    ensure!(!told.contains("WARN"), "{told}");
    ensure!(catalog(&consul, "web").await?.len() == 1);
    let deregister = hook(consul.url(), "deregister cli --service-id 10.0.0.1_80");
    ended(deregister.clone().env("CONSUL_HTTP_TOKEN", UNKNOWN), 1).await?;
    let told = ended(deregister.env("CONSUL_HTTP_TOKEN", LIMITED), 0).await?.stderr();
    ensure!(!told.contains("WARN"), "{told}");
    ensure!(catalog(&consul, "web").await?.is_empty());
    Ok(())
}

/// An earlier owner of the address left it, under a name that is not the pod's.
#[tokio::test]
async fn a_stale_twin_that_may_not_be_removed_keeps_no_pod_from_registering() -> Result<()> {
    let (shop, consul) =
        tokio::try_join!(Shop::open(), Consul::start(ConsulOptions::dev().acl(MANAGEMENT)))?;
    limited_token(&consul, WRITE).await?;
    let stale = json!({"ID": "10.9.9.9_8080-secured", "Name": "other-secured"});
    consul.api().put("/v1/agent/service/register", &stale).await?;
    shop.pod(8080, "", false).await?;
    shop.address("10.9.9.9").await?;
    let register = shop.hook(consul.url(), "register k8s --wait-catalog 0s");
    let told = ended(register.clone().env("CONSUL_HTTP_TOKEN", LIMITED), 0).await?.stderr();
    ensure!(told.contains("10.9.9.9_8080-secured") && told.contains("service:write"), "{told}");
    ensure!(services(&consul).await? == ["10.9.9.9_8080", "10.9.9.9_8080-secured"]);
    let told = ended(register.env("CONSUL_HTTP_TOKEN", UNKNOWN), 1).await?.stderr();
    ensure!(told.contains("cannot register 10.9.9.9_8080: "), "{told}");
    Ok(())
}

/// What the example for the service `web` gives its token.
fn shipped_policy() -> Result<String> {
    Ok(std::fs::read_to_string(crate::support::manifest("consul").join("hook.hcl"))?)
}

/// What the original needed.
const WRITE: &str = r#"service "web" { policy = "write" }"#;

/// Makes the token [`LIMITED`] with these rules.
async fn limited_token(consul: &Consul, rules: &str) -> Result<()> {
    consul.api().put("/v1/acl/policy", &json!({"Name": "hook", "Rules": rules})).await?;
    let token = json!({"SecretID": LIMITED, "Policies": [{"Name": "hook"}]});
    consul.api().put("/v1/acl/token", &token).await.map(drop)
}

/// What may not be seen is not waited for.
#[tokio::test]
async fn h13_a_token_that_may_only_write_its_service_costs_no_time() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev().acl(MANAGEMENT)).await?;
    limited_token(&consul, WRITE).await?;
    // Others of the name, which stay hidden from the token.
    for id in ["10.0.0.2_80", "10.0.0.3_80"] {
        let body = json!({"ID": id, "Name": "web"});
        consul.api().put("/v1/agent/service/register", &body).await?;
    }
    let hook = |arguments| hook(consul.url(), arguments).env("CONSUL_HTTP_TOKEN", LIMITED);
    let register = "register cli --pod-ip 10.0.0.1 --container-port 80 --service-name web";
    let deregister = "deregister cli --service-id 10.0.0.1_80";
    for (arguments, hidden, left) in [(register, true, 3), (deregister, false, 2)] {
        let start = Instant::now();
        let told = ended(hook(arguments), 0).await?.stderr();
        ensure!(start.elapsed() < BEFORE_DEFAULTS, "{:?}: {told}", start.elapsed());
        ensure!(told.contains("hook.hcl") == hidden && !told.contains("WARN"), "{told}");
        eventually(PATIENCE, || async {
            let count = catalog(&consul, "web").await?.len();
            ensure!(count == left, "{count} instances");
            anyhow::Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Each rule of the policy is needed for what its comment says, and no other is.
#[tokio::test]
async fn h13_the_shipped_policy_is_what_the_hook_works_with() -> Result<()> {
    let (shop, consul) =
        tokio::try_join!(Shop::open(), Consul::start(ConsulOptions::dev().acl(MANAGEMENT)))?;
    shop.pod(8080, "", false).await?;
    shop.address("10.9.9.9").await?;
    let shipped = shipped_policy()?;
    let rules: Vec<&str> =
        shipped.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let needed =
        [WRITE, r#"node_prefix "" { policy = "read" }"#, r#"agent_prefix "" { policy = "read" }"#];
    ensure!(rules == needed, "{shipped}");
    let register = || shop.hook(consul.url(), "register k8s").env("CONSUL_HTTP_TOKEN", LIMITED);
    let deregister = || shop.hook(consul.url(), "deregister k8s").env("CONSUL_HTTP_TOKEN", LIMITED);
    let consuls_say = |told: &str| told.contains("ACL") || told.contains("ermission denied");

    // All of it: an earlier pod's instance of the service goes, the own one is seen to come and go.
    limited_token(&consul, &shipped).await?;
    let former = json!({"ID": "10.9.9.9_1", "Name": "web", "Address": "10.9.9.9",
        "Tags": ["k8sPodName: old", "k8sPodNamespace: ns"]});
    consul.api().put("/v1/agent/service/register", &former).await?;
    let told = ended(register(), 0).await?.stderr();
    ensure!(!consuls_say(&told) && !told.contains("not waited for"), "{told}");
    ensure!(services(&consul).await? == ["10.9.9.9_8080"], "{told}");
    let told = ended(deregister(), 0).await?.stderr();
    ensure!(!consuls_say(&told) && !told.contains("not waited for"), "{told}");

    let policy_id = consul.api().get("/v1/acl/policy/name/hook").await?["ID"].clone();
    for (lacking, code, expected) in [
        (needed[0], 1, "service:write"),
        (needed[1], 0, "not waited for"),
        (needed[2], 0, "registered"),
    ] {
        let kept: Vec<&str> = rules.iter().copied().filter(|rule| *rule != lacking).collect();
        let policy = json!({"ID": policy_id, "Name": "hook", "Rules": kept.join("\n")});
        let path = format!("/v1/acl/policy/{}", policy_id.as_str().unwrap_or_default());
        consul.api().put(&path, &policy).await?;
        let told = ended(register(), code).await?.stderr();
        ensure!(told.contains(expected), "without {lacking}: {told}");
    }
    Ok(())
}

/// As Go has it: a server may show a certificate that is itself among the given ones.
#[tokio::test]
async fn h10_a_self_signed_certificate_may_be_its_own_ca() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    };
    let arguments = "register cli --service-name web --pod-ip 10.0.0.1 --container-port 80";
    for is_ca in [true, false] {
        let own = Certificate::self_signed(&["127.0.0.1", "localhost"], is_ca)?;
        // Of the same names and another key.
        let other = Certificate::self_signed(&["127.0.0.1", "localhost"], is_ca)?;
        let [own_file, other_file] =
            [file("own.pem", &own.certificate)?, file("other.pem", &other.certificate)?];
        let https = Port::pick()?;
        let files = json!({"cert_file": own_file, "key_file": file("own.key", &own.key)?});
        let configuration = json!({"tls": {"https": files}, "ports": {"https": https.number()}});
        let consul =
            Consul::start(ConsulOptions::dev().configuration(configuration.to_string())).await?;
        let address = format!("https://127.0.0.1:{}", https.number());
        let register = |ca: &str| hook(&address, arguments).env("CONSUL_CACERT", ca);
        let told = ended(register(&own_file), 0).await?.stderr();
        ensure!(services(&consul).await?.len() == 1, "{told}");
        let refused = [
            register(&other_file),
            register(&own_file).env("CONSUL_TLS_SERVER_NAME", "server.dc1.consul"),
        ];
        for options in refused {
            let told = ended(options.args(["--timeout", "1s"]), 1).await?.stderr();
            ensure!(told.contains("certificate"), "{told}");
        }
    }
    Ok(())
}

/// It leaves the application most of the 30 s that a pod has to end.
#[tokio::test]
async fn h12_deregister_gives_a_dead_agent_ten_seconds() -> Result<()> {
    // It takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let pod = pod_at("10.9.9.9:80".parse()?, &Value::Null);
    let api = serve(([127, 0, 0, 1], 0).into(), 200, pod).await?;
    let dead = format!("http://{}", silent.local_addr()?);
    let start = Instant::now();
    let hung = hook(&dead, &format!("deregister k8s --kube-url http://{api}"))
        .env("KUBERNETES_POD_NAME", "web")
        .env("KUBERNETES_POD_NAMESPACE", "ns");
    ended(hung, 1).await?;
    let took = start.elapsed();
    ensure!((9..13).contains(&took.as_secs()), "{took:?}");
    Ok(())
}
