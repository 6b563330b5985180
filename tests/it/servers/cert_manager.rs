//! cert-manager in the place of the certificates that `make consul-secrets` makes.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{
    Kubernetes, Pod, PodOptions, Program, ProgramOptions, data_folder, eventually, program_path,
};
use serde_json::{Value, json};

use super::rotation::{RELOAD, shown};
use super::scenarios;
use super::support::{
    START_DEADLINE, Servers, installed, object, options, rendered, run, run_with,
};
use crate::support::manifest;

/// The Secrets that cert-manager makes.
const SECRETS: [&str; 3] = ["consul-ca", "consul-server-tls", "consul-agent-tls"];
const GROUP: &str = "certificates.cert-manager.io";

#[tokio::test]
async fn servers_and_agents_run_with_the_certificates_of_a_real_cert_manager() -> Result<()> {
    scenarios::run("cert-manager").await
}

/// What kustomize makes of the component beside some resources.
async fn beside(resources: &str) -> Result<String> {
    let folder = data_folder("cert-manager")?;
    symlink(manifest(""), folder.join("manifests"))?;
    let text = format!("{resources}\ncomponents: [manifests/consul-cert-manager]\n");
    fs::write(folder.join("kustomization.yaml"), text)?;
    let folder = folder.display().to_string();
    run(&["kubectl", "kustomize", &folder, "--load-restrictor=LoadRestrictionsNone"]).await
}

/// Starts cert-manager's controllers, with what they watch.
async fn controllers(cluster: &Kubernetes) -> Result<Program> {
    let program = program_path("cert-manager")?;
    let crds = Program::start("crds", ProgramOptions::new(&program).arg("crds")).await?;
    crds.wait_for_code(0, START_DEADLINE).await?;
    let file = data_folder("cert-manager-crds")?.join("crds.yaml");
    fs::write(&file, crds.stdout())?;
    let file = file.display().to_string();
    // Too large for the annotation of a client-side apply.
    cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "--filename", &file]).await?;
    let wait = ["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"];
    cluster.kubectl(&wait).await?;
    let options = ProgramOptions::new(&program).env("KUBECONFIG", cluster.kubeconfig());
    let controllers = Program::start("cert-manager", options).await?;
    controllers.wait_for_line("that it runs", START_DEADLINE, |line| line == "started").await?;
    Ok(controllers)
}

/// Waits until cert-manager says of each Certificate that it is ready.
async fn wait_issued(cluster: &Kubernetes, namespace: &str) -> Result<()> {
    let list = ["get", GROUP, "--namespace", namespace, "--output=json"];
    eventually(START_DEADLINE, || async {
        let found: Value = serde_json::from_str(&cluster.kubectl(&list).await?)?;
        let all = found["items"].as_array().context("no list")?;
        for certificate in all {
            let conditions = certificate["status"]["conditions"].as_array();
            let mut conditions = conditions.into_iter().flatten();
            let ready = conditions.any(|it| it["type"] == "Ready" && it["status"] == "True");
            ensure!(ready, "{certificate:#}");
        }
        ensure!(all.len() == SECRETS.len(), "{found:#}");
        Ok(())
    })
    .await
}

pub async fn certificates() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let _controllers = controllers(cluster).await?;
    let namespace = cluster.namespace("cert-manager").await?;
    let make = format!("NAMESPACE={namespace}");
    let root = env!("CARGO_MANIFEST_DIR");
    let words = ["make", "-C", root, "consul-secrets", &make, "TLS=cert-manager"];
    run_with(cluster, &words).await?;
    // Fields that its schemas do not have are errors.
    let file = data_folder("certificates")?.join("all.yaml");
    fs::write(&file, beside("resources: []").await?)?;
    let file = file.display().to_string();
    let apply = ["apply", "--server-side", "--validate=strict", "--namespace", &namespace];
    cluster.kubectl(&[&apply[..], &["--filename", &file]].concat()).await?;
    wait_issued(cluster, &namespace).await?;

    let mut objects = installed(&namespace, &["consul-servers", "consul-agents"]).await?;
    for secret in SECRETS {
        objects.secret(secret, "tls.crt").with_context(|| secret.to_owned())?;
    }
    let mut servers = Servers::new("consul-servers-single", &objects).await?;
    servers.boot(0).await?;
    servers.run_acl_job().await?;
    servers.wait_started(0, START_DEADLINE).await?;

    let set = rendered("consul-agents").await?;
    let spec = object(&set, "DaemonSet", "consul-agent")?["spec"]["template"]["spec"].clone();
    let address = servers.new_address();
    let options = PodOptions {
        storage: data_folder("cert-manager-agent")?,
        names: servers.names(&[]),
        token: "e30.e30.".to_owned(),
        ..options("agent-1", address)
    };
    let mut agent = Pod::new(&spec, &objects, options)?;
    agent.init().await?;
    let program = agent.start("consul").await?;
    let api = servers.api(0)?;
    eventually(START_DEADLINE, || async {
        let found = api.get("/v1/catalog/nodes").await?;
        let is_there = found.to_string().contains(&address.to_string());
        ensure!(is_there && program.exit_status().is_none(), "it has not joined: {found}");
        Ok(())
    })
    .await?;
    let at = format!("{address}:8501");
    let old = objects.secret("consul-agent-tls", "tls.crt")?;
    ensure!(shown(&at).await?.contains(&old), "another certificate than cert-manager's");

    // Renewed as when it is due: with another key, and taken up without a restart.
    let issuing = json!({"status": {"conditions": [{"type": "Issuing", "status": "True",
        "reason": "ManuallyTriggered", "message": "renewed by a test", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}).to_string();
    let patch = ["patch", GROUP, "consul-agent", "--subresource=status", "--type=merge"];
    let patch = [&patch[..], &["--namespace", &namespace, "--patch", &issuing]].concat();
    cluster.kubectl(&patch).await?;
    eventually(START_DEADLINE, || async {
        let now = installed(&namespace, &[]).await?.secret("consul-agent-tls", "tls.crt")?;
        ensure!(now != old, "it is not renewed");
        Ok(())
    })
    .await?;
    objects = installed(&namespace, &["consul-servers", "consul-agents"]).await?;
    agent.update(&objects)?;
    let new = objects.secret("consul-agent-tls", "tls.crt")?;
    eventually(RELOAD, || async {
        ensure!(shown(&at).await?.contains(&new), "the old one is shown");
        Ok(())
    })
    .await?;
    ensure!(program.exit_status().is_none(), "the agent has ended");
    Ok(())
}

#[tokio::test]
async fn cert_managers_certificates_are_where_the_pods_take_them_from() -> Result<()> {
    let component = fs::read_to_string(manifest("consul-cert-manager/certificates.yaml"))?;
    for (folder, kind, name) in [
        ("consul-servers", "StatefulSet", "consul-server"),
        ("consul-agents", "DaemonSet", "consul-agent"),
    ] {
        let objects = rendered(folder).await?;
        let object = object(&objects, kind, name)?;
        let volumes = object["spec"]["template"]["spec"]["volumes"].as_array();
        let tls = volumes.into_iter().flatten().find(|it| it["name"] == "tls");
        let sources = tls.context("no volume tls")?["projected"]["sources"].clone();
        for source in sources.as_array().context("no sources")? {
            let secret = source["secret"]["name"].as_str().context("no Secret")?;
            ensure!(component.contains(&format!("secretName: {secret}\n")), "no {secret}");
        }
    }
    // kustomize takes it beside the servers.
    let all = beside("resources: [manifests/consul-servers]").await?;
    ensure!(all.matches("kind: Certificate\n").count() == 3, "{all}");
    Ok(())
}
