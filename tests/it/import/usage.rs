//! The command line, ours and that of consul8s.

use std::path::Path;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::{Api, ListParams, PostParams};
use kube_consul_stack::{Program, ProgramOptions};
use serde_json::json;

use super::support::{Site, shipped_kubeconfig};
use crate::support::{DEADLINE, ends_with};

#[tokio::test]
async fn once_is_done_or_says_what_is_left() -> Result<()> {
    let site = Site::new("import-once").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.service("db", json!({"kube-consul.io/import": "pg"})).await?;
    let once = site.command().await?.arg("--run-once");
    ends_with(0, once.clone()).await?;
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    site.service("bad", json!({"kube-consul.io/import": ""})).await?;
    let said = ends_with(1, once).await?;
    ensure!(said.contains("1 problem stands"), "{said}");
    Ok(())
}

/// Each line as users of consul8s have it, under its name.
#[tokio::test]
async fn the_old_command_line_works_word_for_word() -> Result<()> {
    let site = Site::new("import-old").await?;
    site.register("pg", "10.1.0.1", "passing").await?;
    site.object(json!({
        "metadata": {
            "name": "db", "labels": {"consul8s_source": "consul"},
            "annotations": {"consul8s/service.name": "pg"},
        },
        "spec": {"ports": [{"name": "pg", "port": 5432}]},
    }))
    .await?;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("consul8s");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kube-consul"), &program)?;
    let kubeconfig = shipped_kubeconfig().await?.display().to_string();
    let consul = site.fixture.consul.address().to_string();
    let namespace = &site.fixture.namespace;
    for line in [
        format!("-k {kubeconfig} -n {namespace} -c {consul} -1"),
        format!("-1 -k{kubeconfig} -n{namespace} -c{consul} -i5"),
        format!(
            "--kube-config-path {kubeconfig} --namespace {namespace} --consul {consul} --run-once"
        ),
        format!(
            "--kube-config-path={kubeconfig} --namespace={namespace} --consul={consul} --interval=30 --run-once"
        ),
        format!("-1pk {kubeconfig} -n x -n {namespace} -c {consul}"),
        format!("-1 -i abc -k {kubeconfig} -n {namespace} -c {consul}"),
    ] {
        let options = ProgramOptions::new(&program).args(line.split_whitespace());
        ends_with(0, options).await.map_err(|error| error.context(line))?;
    }
    site.wait_for("db", &["10.1.0.1:5432"]).await?;
    // What went into a URL, and what Python's int() takes.
    let options = ProgramOptions::new(&program)
        .args(["-1", "-i", " 1 ", "-n", namespace, "-k", &kubeconfig])
        .args(["-c", &format!("user:pw@{consul}/")]);
    ends_with(0, options).await?;
    // Its variable, and no variable of Consul's.
    let options = ProgramOptions::new(&program)
        .args(["-1", "-n", namespace, "-c", &consul])
        .env("KUBECONFIG", &kubeconfig)
        .env("CONSUL_HTTP_ADDR", "127.0.0.1:1")
        .env("CONSUL_HTTP_TOKEN", "no");
    ends_with(0, options).await?;
    for wrong in ["-namespace x", "--unknown", "-i"] {
        ends_with(2, ProgramOptions::new(&program).args(wrong.split_whitespace())).await?;
    }
    let help = Program::start("consul8s", ProgramOptions::new(&program).arg("--help")).await?;
    help.wait_for_code(0, DEADLINE).await?;
    ensure!(Path::new(&program).exists());
    Ok(())
}

/// The service's address, that of its node, its port and its check.
type OddInstance = (&'static str, &'static str, u16, &'static str);
/// A Service, what its annotation says, the instances, and the endpoints that they are.
type Odd = (&'static str, &'static str, &'static [OddInstance], &'static [&'static str]);

/// What consul8s took, and what it made of it wrong.
const ODD: [Odd; 14] = [
    ("other-case", "ODD-OTHER-CASE", &[("10.1.0.1", "", 80, "passing")], &["10.1.0.1:80"]),
    ("tag", "odd-tag?tag=a&x=", &[("10.1.0.1", "", 80, "passing")], &["10.1.0.1:80"]),
    ("no-tag", "odd-no-tag?tag=z&x=", &[("10.1.0.1", "", 80, "passing")], &[]),
    (
        "datacenter",
        "odd-datacenter?dc=dc1&x=",
        &[("10.1.0.1", "", 80, "passing")],
        &["10.1.0.1:80"],
    ),
    ("blanks", " odd-blanks ", &[("10.1.0.1", "", 80, "passing")], &["10.1.0.1:80"]),
    ("headless", "odd-headless", &[("10.1.0.1", "", 80, "passing")], &["10.1.0.1:80"]),
    ("udp", "odd-udp", &[("10.1.0.1", "", 53, "passing")], &["10.1.0.1:53/UDP"]),
    ("both-labels", "odd-both-labels", &[("10.1.0.1", "", 80, "passing")], &["10.1.0.1:80"]),
    // The service's address, not its node's; that only where there is no other.
    (
        "service-first",
        "odd-service-first",
        &[("10.1.0.1", "10.9.0.1", 80, "passing")],
        &["10.1.0.1:80"],
    ),
    ("node-address", "odd-node-address", &[("", "10.9.0.1", 80, "passing")], &["10.9.0.1:80"]),
    ("host-name", "odd-host-name", &[("db.example", "10.9.0.1", 80, "passing")], &["10.9.0.1:80"]),
    // Each has its own port, not that of the last.
    (
        "two-ports",
        "odd-two-ports",
        &[("10.1.0.1", "", 80, "passing"), ("10.1.0.2", "", 81, "passing")],
        &["10.1.0.1:80", "10.1.0.2:81"],
    ),
    // What is critical does not serve.
    (
        "critical",
        "odd-critical",
        &[("10.1.0.1", "", 80, "critical"), ("10.1.0.2", "", 80, "passing")],
        &["!10.1.0.1:80", "10.1.0.2:80"],
    ),
    ("ipv6", "odd-ipv6", &[("fd00::1", "10.9.0.1", 80, "passing")], &["fd00::1:80"]),
];

/// All of them, and the Endpoints that consul8s left: those go, and it ends with 0.
#[tokio::test]
async fn what_is_odd_but_was_accepted_works_and_what_was_wrong_is_right() -> Result<()> {
    let site = Site::new("import-odd").await?;
    let api = site.fixture.consul.api();
    for (name, service, instances, _) in ODD {
        for (n, (address, node, port, status)) in instances.iter().enumerate() {
            let (id, node) =
                (format!("odd-{name}-{n}"), if node.is_empty() { "10.9.9.9" } else { node });
            let body = json!({"Node": id, "Address": node, "Service": {
                    "ID": id, "Service": format!("odd-{name}"), "Tags": ["a"], "Address": address, "Port": port},
                "Check": {"CheckID": id, "ServiceID": id, "Name": "up", "Status": status}});
            api.put("/v1/catalog/register", &body).await?;
        }
        let mut object = json!({
            "metadata": {
                "name": name, "labels": {"consul8s_source": "consul"},
                "annotations": {"consul8s/service.name": service},
            },
            "spec": {"ports": [{"port": 80}]},
        });
        match name {
            "headless" => object["spec"]["clusterIP"] = json!("None"),
            "udp" => object["spec"]["ports"][0]["protocol"] = json!("UDP"),
            "both-labels" => object["metadata"]["labels"]["registration"] = json!("consul"),
            _ => {}
        }
        site.object(object).await?;
        let left = json!({
            "metadata": {"name": name, "labels": {"name": name}},
            "subsets": [{"addresses": [{"ip": "10.9.9.9"}], "ports": [{"port": 80}]}],
        });
        let params =
            PostParams { field_manager: Some("python-requests".into()), ..Default::default() };
        old_endpoints(&site)?.create(&params, &serde_json::from_value(left)?).await?;
    }
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("consul8s");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_kube-consul"), &program)?;
    let kubeconfig = shipped_kubeconfig().await?.display().to_string();
    let consul = site.fixture.consul.address().to_string();
    let options = ProgramOptions::new(&program).args([
        "-1",
        "-k",
        &kubeconfig,
        "-n",
        &site.fixture.namespace,
        "-c",
        &consul,
    ]);
    // One has no instance: what is there for it stays, and that is told.
    let said = ends_with(1, options.clone()).await?;
    ensure!(said.contains("1 problem stands"), "{said}");
    site.fixture.delete("no-tag").await?;
    ends_with(0, options).await?;
    for (name, _, _, wanted) in ODD.into_iter().filter(|(name, ..)| *name != "no-tag") {
        let wanted: Vec<String> =
            wanted.iter().map(|it| it.trim_end_matches("/UDP").into()).collect();
        let found = site.endpoints(name).await?;
        ensure!(found == wanted, "{name}: {found:?}, want {wanted:?}");
        let left = old_endpoints(&site)?.get_opt(name).await?;
        ensure!(left.is_none(), "{name}: the old Endpoints are there");
    }
    let labels = ListParams::default().labels("kubernetes.io/service-name=udp");
    let slices = site.slices()?.list(&labels).await?;
    let mut ports = slices.items.iter().flat_map(|it| it.ports.iter().flatten());
    ensure!(ports.all(|it| it.protocol.as_deref() == Some("UDP")), "a UDP port is served by TCP");
    Ok(())
}

fn old_endpoints(site: &Site) -> Result<Api<Endpoints>> {
    Ok(Api::namespaced(site.fixture.kubernetes.client()?, &site.fixture.namespace))
}
