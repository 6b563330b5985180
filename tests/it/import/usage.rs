//! The command line, ours and that of consul8s.

use std::path::Path;

use anyhow::{Result, ensure};
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
