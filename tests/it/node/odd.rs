//! What katalog-sync accepted although it is odd: it goes on working, under the old name, with the API
//! server's list in the kubelet's place.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{KubectlProxy, Port, Program, eventually};
use serde_json::{Value, json};

use super::support::{DAEMON, Site, WISH, old_program};
use crate::support::{DEADLINE, for_each};

/// Its name, annotations without their prefix, containers with their port, and what the agent has:
/// `service:port status tags {meta}` for each registration, sorted.
struct Row {
    what: &'static str,
    annotations: Vec<(&'static str, String)>,
    containers: &'static [(&'static str, Option<u16>)],
    expected: Vec<String>,
}

/// One ready container `app` with port 8080.
const APP: &[(&str, Option<u16>)] = &[("app", Some(8080))];

fn row(what: &'static str, annotations: &[(&'static str, &str)], expected: &[&str]) -> Row {
    Row {
        what,
        annotations: annotations.iter().map(|(key, value)| (*key, (*value).to_owned())).collect(),
        containers: APP,
        expected: expected.iter().map(|it| (*it).to_owned()).collect(),
    }
}

fn with(containers: &'static [(&'static str, Option<u16>)], row: Row) -> Row {
    Row { containers, ..row }
}

/// In the order of its documentation.
#[expect(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let web = ("service-names", "web");
    let mut rows = vec![
        row("web,web", &[("service-names", "web,web")], &["web:8080 passing"]),
        row(
            "web,WEB (two services)",
            &[("service-names", "web,WEB")],
            &["WEB:8080 passing", "web:8080 passing"],
        ),
        row(
            "names with /, ?, %, blanks inside, umlauts",
            &[("service-names", "a/b?c%d e ü")],
            &["a/b?c%d e ü:8080 passing"],
        ),
        row("web,", &[("service-names", "web,")], &["web:8080 passing"]),
        row(",web", &[("service-names", ",web")], &["web:8080 passing"]),
        row("empty service-names (nothing)", &[("service-names", "")], &[]),
        row("Passing (ignored)", &[web, ("service-health", "Passing")], &["web:8080 passing"]),
        row(
            "the misspelt key of its README",
            &[web, ("serivce-health-web", "critical")],
            &["web:8080 passing"],
        ),
        row(
            "overrides of unlisted names",
            &[web, ("service-port-other", "81"), ("service-tags-other", "x")],
            &["web:8080 passing"],
        ),
        row(
            "tags: not trimmed, empty ones, order and doubles kept",
            &[web, ("service-tags", "b, a,b,")],
            &["web:8080 passing [\"b\",\" a\",\"b\",\"\"]"],
        ),
        row(
            "an empty override of tags is one empty tag",
            &[web, ("service-tags", "a"), ("service-tags-web", "")],
            &["web:8080 passing [\"\"]"],
        ),
        row(
            "meta: trimmed, the last of a repeated key, an empty value",
            &[web, ("service-meta", "k: v,l:,k:w")],
            &["web:8080 passing {\"k\":\"w\",\"l\":\"\"}"],
        ),
        row(
            "an empty override of meta is none",
            &[web, ("service-meta", "k:v"), ("service-meta-web", "")],
            &["web:8080 passing"],
        ),
        row(
            "an empty override of health falls back",
            &[web, ("service-health", "warning"), ("service-health-web", "")],
            &["web:8080 warning"],
        ),
        row(
            "an unknown override of health does not",
            &[web, ("service-health", "warning"), ("service-health-web", "x")],
            &["web:8080 passing"],
        ),
        row("port +81", &[web, ("service-port", "+81")], &["web:81 passing"]),
        row("port 0080", &[web, ("service-port", "0080")], &["web:80 passing"]),
        row("port 0", &[web, ("service-port", "0")], &["web:0 passing"]),
        row(
            "an invalid override of the port falls back to service-port",
            &[web, ("service-port", "81"), ("service-port-web", "x")],
            &["web:81 passing"],
        ),
        row(
            "durations 0, -5s, .5s, 1s1s",
            &[web, ("sync-interval", ".5s"), ("service-check-ttl", "1s1s")],
            &["web:8080 passing"],
        ),
        row(
            "a negative TTL",
            &[web, ("sync-interval", "-5s"), ("service-check-ttl", "0")],
            &["web:8080 passing"],
        ),
        row(
            "unknown excluded containers",
            &[web, ("container-exclude", "zzz")],
            &["web:8080 passing"],
        ),
        row(
            "all containers excluded (passing)",
            &[web, ("container-exclude", "app")],
            &["web:8080 passing"],
        ),
        with(
            &[("sync", Some(8080))],
            row(
                "sidecar as the only container",
                &[web, ("sidecar", "sync")],
                &["web:8080 critical"],
            ),
        ),
        with(
            &[("app", Some(8080)), ("sync", None)],
            row(
                "fixed passing before the sidecar registers",
                &[web, ("sidecar", "sync"), ("service-health", "passing")],
                &["web:8080 passing"],
            ),
        ),
        with(&[("app", None)], row("no port", &[web], &["web:0 passing"])),
        with(
            &[("app", None), ("more", Some(53))],
            row("the first port may be another container's", &[web], &["web:53 passing"]),
        ),
    ];
    for port in [" 9090", "9090/tcp", "0x50", "http", "", "-1", "70000"] {
        rows.push(row(
            "a port that is none",
            &[web, ("service-port", port)],
            &["web:8080 passing"],
        ));
    }
    let long = "n".repeat(200);
    let mut names = row("a name of 200 characters", &[], &[]);
    names.annotations.push(("service-names", long.clone()));
    names.expected.push(format!("{long}:8080 passing"));
    rows.push(names);
    rows
}

fn pod(name: &str, row: &Row) -> Value {
    let annotations: BTreeMap<_, _> =
        row.annotations.iter().map(|(key, value)| (format!("{WISH}/{key}"), value)).collect();
    let container = |(name, port): &(&str, Option<u16>)| match port {
        Some(port) => json!({"name": name, "ports": [{"containerPort": port}]}),
        None => json!({"name": name}),
    };
    let containers: Vec<_> = row.containers.iter().map(container).collect();
    json!({"metadata": {"name": name, "annotations": annotations}, "spec": {"containers": containers}})
}

/// All are ready but a sidecar, which has not registered yet.
fn statuses(row: &Row) -> Value {
    let status = |(name, _): &(&str, Option<u16>)| {
        json!({"name": name, "ready": *name != "sync", "restartCount": 0, "image": "a",
            "imageID": "a"})
    };
    json!({"containerStatuses": row.containers.iter().map(status).collect::<Vec<_>>()})
}

/// What the agent has of a pod, as rows expect it.
fn registered(services: &Value, checks: &Value, pod: &str) -> Vec<String> {
    let of = services.as_object().into_iter().flatten();
    let of = of.filter(|(_, service)| service["Meta"]["external-k8s-pod"] == pod);
    let mut all: Vec<_> = of
        .map(|(id, service)| {
            let mut text = format!(
                "{}:{} {}",
                service["Service"].as_str().unwrap_or("?"),
                service["Port"],
                checks[id]["Status"].as_str().unwrap_or("no check")
            );
            if service["Tags"] != json!([]) {
                text.extend([" ".to_owned(), service["Tags"].to_string()]);
            }
            let mut meta = service["Meta"].as_object().cloned().unwrap_or_default();
            meta.retain(|key, _| !key.starts_with("external-"));
            if !meta.is_empty() {
                text.extend([" ".to_owned(), Value::from(meta).to_string()]);
            }
            text
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn what_is_odd_and_was_accepted_is_accepted_row_by_row() -> Result<()> {
    let site = Site::new("node-odd").await?;
    let rows = rows();
    let names: Vec<_> = (0..rows.len()).map(|number| format!("p{number}")).collect();
    for_each(&names, |name| async {
        let number: usize = name[1..].parse()?;
        site.object(pod(name, &rows[number])).await?;
        site.ip(name).await?;
        site.status(name, statuses(&rows[number])).await
    })
    .await?;
    let proxy = KubectlProxy::start(site.kubernetes.kubeconfig()).await?;
    let list = format!("{}/api/v1/namespaces/{}/pods", proxy.url(), site.namespace);
    let (folder, grpc) = (tempfile::tempdir()?, Port::pick()?);
    // Extra arguments, `--`, a repeated flag of which the last counts, and LOG_LEVEL=DEBUG.
    let daemon = old_program(folder.path(), "katalog-sync-daemon")?
        .args(["extra", "--kubelet-api=http://127.0.0.1:1/pods", "--kubelet-api", &list])
        .args([&format!("--bind-address=127.0.0.1:{}", grpc.number()), "--", "--no-flag"])
        .env("LOG_LEVEL", "DEBUG")
        .env("CONSUL_HTTP_ADDR", site.agent.url())
        .env("CONSUL_HTTP_TOKEN", DAEMON);
    let daemon = Program::start("katalog-sync-daemon", daemon).await?;
    let api = site.agent.api();
    eventually(DEADLINE, || async {
        let services = api.get("/v1/agent/services").await?;
        let checks = api.get("/v1/agent/checks").await?;
        for (name, row) in names.iter().zip(&rows) {
            let found = registered(&services, &checks, name);
            ensure!(found == row.expected, "{}: {found:?}, expected {:?}", row.what, row.expected);
        }
        Ok(())
    })
    .await?;

    // A sidecar as the only container counts nothing: it passes once it registered, whatever
    // --container-name says.
    let alone =
        rows.iter().position(|it| it.what.starts_with("sidecar as the only")).context("row")?;
    let sidecar = old_program(folder.path(), "katalog-sync-sidecar")?
        .arg(format!("--katalog-sync-daemon=127.0.0.1:{}", grpc.number()))
        .args([format!("--namespace={}", site.namespace), format!("--pod-name=p{alone}")])
        .args(["--container-name=another", "--bind-address=127.0.0.1:0"]);
    let sidecar = Program::start("katalog-sync-sidecar", sidecar).await?;
    let status = async |pod: &str| {
        let check = site.check("web", pod).await?;
        Ok::<_, anyhow::Error>((check["Status"].clone(), check["Output"].clone()))
    };
    eventually(DEADLINE, || async {
        let found = status(&format!("p{alone}")).await?;
        ensure!(found == (json!("passing"), json!("{}")), "{found:?}");
        Ok(())
    })
    .await?;

    // A fixed health stays while its pod terminates.
    let fixed = rows.iter().position(|it| it.what.starts_with("fixed passing")).context("row")?;
    site.hold(&format!("p{fixed}")).await?;
    site.terminate(&format!("p{fixed}")).await?;
    site.hold(&format!("p{}", fixed - 2)).await?;
    site.terminate(&format!("p{}", fixed - 2)).await?;
    eventually(DEADLINE, || async {
        let found = status(&format!("p{}", fixed - 2)).await?;
        ensure!(found.0 == "critical", "it terminates: {found:?}");
        Ok(())
    })
    .await?;
    let found = status(&format!("p{fixed}")).await?;
    ensure!(found.0 == "passing", "its health is fixed: {found:?}");
    for pod in [fixed, fixed - 2] {
        site.release(&format!("p{pod}")).await?;
    }
    sidecar.kill().await?;
    daemon.terminate().await;
    daemon.wait_for_code(0, DEADLINE).await
}
