//! What users apply: the real API server takes it without a warning, the real programs take
//! their flags and their configuration from it.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::{
    KubectlProxy, Kubernetes, Port, Program, ProgramOptions, data_folder, program_path,
};
use serde_json::{Value, json};

use crate::support::{
    Bridge, DEADLINE, Fixture, ends_with, kube_consul, manifest, numbered, shipped_kubeconfig,
};

const NAMESPACE: &str = "kube-consul";
const SERVER_SIDE: [&str; 2] = ["--server-side", "--force-conflicts"];

/// Runs kubectl and gives how it ended and all that it said: a warning goes to standard error.
async fn kubectl(arguments: &[&str]) -> Result<Program> {
    let cluster = Kubernetes::shared().await?;
    let kubeconfig = format!("--kubeconfig={}", cluster.kubeconfig().display());
    let options = ProgramOptions::new(program_path("kubectl")?).arg(kubeconfig).args(arguments);
    let program = Program::start("kubectl", options).await?;
    program.wait(DEADLINE).await?;
    Ok(program)
}

/// Runs kubectl, which has to succeed without a warning.
async fn without_warning(arguments: &[&str]) -> Result<String> {
    let program = kubectl(arguments).await?;
    let succeeded = program.exit_status().is_some_and(|status| status.success());
    let said = program.stderr();
    ensure!(succeeded && !said.contains("Warning"), "kubectl {arguments:?}: {said}");
    Ok(program.stdout())
}

fn path(overlay: &str) -> String {
    manifest(overlay).display().to_string()
}

/// The objects of an overlay, as kustomize makes them.
async fn objects(overlay: &str) -> Result<Vec<Value>> {
    let path = path(overlay);
    let text = without_warning(&[
        "apply",
        "--kustomize",
        &path,
        "--dry-run=client",
        "--validate=false",
        "--output=json",
    ])
    .await?;
    let mut list: Value = serde_json::from_str(&text)?;
    serde_json::from_value(list["items"].take()).context("no list")
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> Result<&'a Value> {
    objects.iter().find(|it| it["kind"] == kind).with_context(|| format!("no {kind}"))
}

/// A container of the Deployment, sidecars among them.
fn container<'a>(deployment: &'a Value, name: &str) -> Result<&'a Value> {
    let pod = &deployment["spec"]["template"]["spec"];
    let lists = [&pod["containers"], &pod["initContainers"]];
    let mut containers = lists.into_iter().filter_map(Value::as_array).flatten();
    containers.find(|it| it["name"] == name).with_context(|| format!("no container {name}"))
}

fn strings(list: &Value) -> Vec<String> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
}

/// A file for kubectl.
fn file(object: &Value) -> Result<String> {
    let path = data_folder("manifests")?.join("object.json");
    fs::write(&path, object.to_string())?;
    Ok(path.display().to_string())
}

#[tokio::test]
async fn the_base_is_taken_without_a_warning_and_its_pods_run() -> Result<()> {
    let base = path("base");
    without_warning(&[&["apply", "--kustomize", &base][..], &SERVER_SIDE].concat()).await?;
    let status = ["rollout", "status", "deployment/kube-consul", "--timeout=60s"];
    without_warning(&[&status[..], &["--namespace", NAMESPACE]].concat()).await?;
    let list = ["get", "pods", "--selector=app.kubernetes.io/name=kube-consul", "--output=json"];
    let list = without_warning(&[&list[..], &["--namespace", NAMESPACE]].concat()).await?;
    let list: Value = serde_json::from_str(&list)?;
    let pods = list["items"].as_array().context("no list")?;
    ensure!(pods.len() == 2, "{} pods", pods.len());
    for pod in pods {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready =
            conditions.into_iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
        ensure!(ready && pod["status"]["phase"] == "Running", "{}", pod["status"]);
    }

    // Pod Security says of a Deployment only what it would say of its pods.
    let deployment = of_kind(&objects("base").await?, "Deployment")?.clone();
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "as-shipped", "namespace": NAMESPACE},
        "spec": deployment["spec"]["template"]["spec"],
    });
    without_warning(&["create", "--filename", &file(&pod)?]).await?;
    without_warning(&["delete", "pod", "as-shipped", "--namespace", NAMESPACE]).await?;

    // It would say so.
    pod["spec"]["hostNetwork"] = json!(true);
    let refused = kubectl(&["create", "--filename", &file(&pod)?]).await?;
    ensure!(refused.stderr().contains("violates PodSecurity \"restricted"), "{}", refused.stderr());
    let mut lax = deployment;
    lax["spec"]["template"]["spec"]["hostNetwork"] = json!(true);
    let lax = file(&lax)?;
    let dry = [&["apply", "--filename", &lax, "--dry-run=server"][..], &SERVER_SIDE].concat();
    let warned = kubectl(&dry).await?;
    ensure!(warned.stderr().contains("Warning: would violate PodSecurity"), "{}", warned.stderr());
    without_warning(&["delete", "deployment", "kube-consul", "--namespace", NAMESPACE])
        .await
        .map(drop)
}

#[tokio::test]
async fn the_overlays_are_taken_without_a_warning() -> Result<()> {
    // The namespace has to be there for a dry run.
    let cluster = Kubernetes::shared().await?;
    cluster.apply_file(&manifest("base/namespace.yaml")).await?;
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    cluster.apply_yaml(&shop.to_string()).await?;
    for overlay in [
        "acl",
        "catalog-ha",
        "catalog-ha-acl",
        "namespaces",
        "node",
        "node-example",
        "node-kubelet",
    ] {
        let path = path(overlay);
        let dry = ["apply", "--kustomize", &path, "--dry-run=server"];
        without_warning(&[&dry[..], &SERVER_SIDE].concat()).await?;
    }
    // Its namespace allows the one thing that others forbid: a port of the node.
    let path = path("node-sidecars");
    let dry = ["apply", "--kustomize", &path, "--dry-run=server"];
    let said = kubectl(&[&dry[..], &SERVER_SIDE].concat()).await?.stderr();
    let warned = "would violate PodSecurity \"restricted:latest\": hostPort (";
    ensure!(said.contains(warned) && !said.contains("), "), "{said}");
    Ok(())
}

#[tokio::test]
async fn the_node_daemon_takes_the_flags_of_the_manifests() -> Result<()> {
    for overlay in ["node", "node-sidecars", "node-kubelet"] {
        let objects = objects(overlay).await?;
        let node = container(of_kind(&objects, "DaemonSet")?, "node")?;
        let arguments = strings(&node["args"]);
        let arguments = arguments.iter().map(|it| it.replace("$(HOST_IP)", "127.0.0.1"));
        // The last one is wrong: it is read once all before it were taken.
        let options = kube_consul().args(arguments).arg("--admin-addr=nowhere");
        let said = ends_with(2, options).await?;
        ensure!(said.contains("--admin-addr"), "{overlay}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn the_bridge_takes_the_flags_and_variables_of_the_manifests() -> Result<()> {
    for overlay in ["base", "acl", "catalog-ha", "catalog-ha-acl", "namespaces"] {
        let objects = objects(overlay).await?;
        let deployment = of_kind(&objects, "Deployment")?;
        let bridge = container(deployment, "bridge")?;
        let image = format!("kube-consul:{}", env!("CARGO_PKG_VERSION"));
        ensure!(bridge["image"] == *image, "the image is {}", bridge["image"]);
        // Neither the API nor the Consul of the machine that runs the tests may be reached.
        let (api, consul) = (Port::pick()?, Port::pick()?);
        let token = data_folder("manifests")?.join("token");
        fs::write(&token, "a token")?;
        let arguments = strings(&bridge["args"]);
        let proxy = "http://127.0.0.1:8001";
        ensure!(arguments.contains(&format!("--kube-url={proxy}")), "{arguments:?}");
        let proxy_flags = strings(&container(deployment, "kubectl-proxy")?["args"]);
        ensure!(proxy_flags.contains(&"--port=8001".to_owned()), "{proxy_flags:?}");
        let local = format!("http://127.0.0.1:{}", api.number());
        let arguments = arguments.iter().map(|it| it.replace(proxy, &local));
        let mut command = kube_consul().args(arguments);
        for variable in bridge["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("a variable without a name")?;
            command = match name {
                "CONSUL_HTTP_ADDR" => command.env(name, format!("127.0.0.1:{}", consul.number())),
                "CONSUL_HTTP_TOKEN_FILE" => command.env(name, &token),
                _ => command.env(name, "of the pod"),
            };
        }
        let bridge = Bridge::start(command).await?;
        let waits = |line: &str| line.contains("waiting: for the Kubernetes API");
        let line = bridge.program.wait_for_line("what it waits for", DEADLINE, waits).await;
        line.with_context(|| overlay.to_owned())?;
        bridge.stop().await?;
    }
    Ok(())
}

/// The files of the agent's configuration, with what its flags add.
async fn agent_configuration() -> Result<PathBuf> {
    let objects = objects("acl").await?;
    let folder = data_folder("manifests")?;
    let files = of_kind(&objects, "ConfigMap")?["data"].as_object().context("no data")?;
    ensure!(!files.is_empty(), "the ConfigMap is empty");
    for (name, text) in files {
        fs::write(folder.join(name), text.as_str().context("no text")?)?;
    }
    // As manifests/acl says.
    let acl = json!({"acl": {"enabled": true, "tokens": {"agent": "a token"}}});
    fs::write(folder.join("acl.json"), acl.to_string())?;
    fs::write(folder.join("flags.json"), json!({"data_dir": folder.join("data")}).to_string())?;
    Ok(folder)
}

#[tokio::test]
async fn consul_takes_the_agents_configuration() -> Result<()> {
    let folder = agent_configuration().await?;
    let validate = ProgramOptions::new(program_path("consul")?).arg("validate").arg(&folder);
    let consul = Program::start("consul", validate.clone()).await?;
    consul.wait_for_code(0, DEADLINE).await?;
    ensure!(consul.has_written("Configuration is valid!"), "{}", consul.stdout());
    fs::write(folder.join("wrong.json"), r#"{"leave_on_terminated": true}"#)?;
    let consul = Program::start("consul", validate).await?;
    consul.wait_for_code(1, DEADLINE).await
}

/// Endpoints as pods of a Deployment have them.
fn endpoints(service: &str, count: usize) -> Vec<Value> {
    let endpoint = |number: usize| {
        json!({
            "addresses": [format!("10.{}.{}.{}", number / 62_500, number / 250 % 250, number % 250)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
            "nodeName": format!("ip-10-0-{}-{}.eu-central-1.compute.internal", number % 7, number % 250),
            "targetRef": {
                "kind": "Pod",
                "namespace": "shop",
                "name": format!("{service}-7d4b9c6f5-{number:05}"),
                "uid": format!("7d4b9c6f-0000-4000-8000-{number:012}"),
            },
            "zone": "eu-central-1a",
        })
    };
    (0..count).map(endpoint).collect()
}

/// A quantity of memory as manifests write it, in KiB.
fn kibibytes(quantity: &Value) -> Result<u64> {
    let text = quantity.as_str().context("no memory")?;
    let number = text.strip_suffix("Mi").with_context(|| format!("{text} is no number of Mi"))?;
    Ok(number.parse::<u64>()? * 1024)
}

/// What a process has of its own at its peak, in KiB: what it maps of its file can be dropped.
fn peak_memory(program: &Program) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid()))?;
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|it| it.trim().strip_suffix(" kB"));
        anyhow::Ok(value.with_context(|| format!("no {name}"))?.trim().parse::<u64>()?)
    };
    println!("{} KiB at its peak, {} of them mapped files", of("VmHWM:")?, of("RssFile:")?);
    of("VmHWM:")
}

/// Of the size that the base is for, tenfold: 10,000 endpoints, listed again and again.
#[tokio::test]
async fn the_memory_of_the_proxy_is_enough() -> Result<()> {
    let objects = objects("base").await?;
    let container = container(of_kind(&objects, "Deployment")?, "kubectl-proxy")?.clone();
    let limit = kibibytes(&container["resources"]["limits"]["memory"])?;
    let fixture = Fixture::new("proxy").await?;
    let objects = fixture.objects()?;
    for name in numbered("large", 10) {
        objects.create(&name, &(vec!["10.1.0.1".to_owned()], true), Value::Null).await?;
        objects.set_endpoints(&name, &endpoints(&name, 1_000)).await?;
    }
    let proxy = KubectlProxy::start(shipped_kubeconfig().await?).await?;
    for _ in 0..10 {
        let command = kube_consul()
            .args(["bridge", "--once", "--namespace", &fixture.namespace])
            .args(["--kube-url", &proxy.url()])
            .env("CONSUL_HTTP_ADDR", fixture.consul.url());
        ends_with(0, command).await?;
    }
    let peak = peak_memory(proxy.program())?;
    ensure!(peak * 5 < limit * 4, "at {peak} of {limit} KiB it is near its limit");
    Ok(())
}
