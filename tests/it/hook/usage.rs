//! Command lines, old and wrong.

use anyhow::{Result, ensure};
use kube_consul_stack::ProgramOptions;
use serde_json::json;

use super::support::{Shop, binary, consul, ended, hook, serve, services};

#[tokio::test]
async fn wrong_usage_names_its_variable_and_registers_nothing() -> Result<()> {
    let consul = consul().await?;
    let pod = [("KUBERNETES_POD_NAME", "web"), ("KUBERNETES_POD_NAMESPACE", "ns")];
    let with = |name, value| [&pod[..], &[(name, value)]].concat();
    let task = [("MESOS_EXECUTOR_ID", "e"), ("MESOS_FRAMEWORK_ID", "f"), ("HOST", "h")];
    let flags = [
        ("KUBERNETES_SERVICE_NAME", "web"),
        ("KUBERNETES_POD_IP", "10.0.0.1"),
        ("KUBERNETES_CONTAINER_PORT", "80"),
    ];
    let without = |all: &[(&'static str, &'static str)], name: &str| {
        all.iter().copied().filter(|(it, _)| *it != name).collect::<Vec<_>>()
    };
    let changed = |name: &'static str, value| [without(&flags, name), vec![(name, value)]].concat();
    for (arguments, variables, named) in [
        ("register k8s", without(&pod, "KUBERNETES_POD_NAME"), "KUBERNETES_POD_NAME"),
        ("deregister k8s", without(&pod, "KUBERNETES_POD_NAMESPACE"), "KUBERNETES_POD_NAMESPACE"),
        ("register k8s", with("PORT_DEFINITIONS", "[{]"), "PORT_DEFINITIONS"),
        ("deregister k8s", with("PORT_DEFINITIONS", "{}"), "PORT_DEFINITIONS"),
        ("register k8s", with("PORT_DEFINITIONS", r#"[{"port": 65536}]"#), "PORT_DEFINITIONS"),
        (
            "register k8s",
            with("PORT_DEFINITIONS", r#"[{"port": 1, "labels": {"consul": ""}}]"#),
            "PORT_DEFINITIONS",
        ),
        ("register k8s", with("KUBERNETES_GET_POD_TIMEOUT", "soon"), "--get-pod-timeout"),
        ("register k8s", with("HOME", "/nowhere"), "KUBECONFIG"),
        ("register k8s", with("CONSUL_HTTP_ADDR", "ftp://x"), "CONSUL_HTTP_ADDR"),
        ("register mesos", without(&task, "MESOS_EXECUTOR_ID"), "MESOS_EXECUTOR_ID"),
        ("register mesos", without(&task, "MESOS_FRAMEWORK_ID"), "MESOS_FRAMEWORK_ID"),
        ("deregister mesos", without(&task, "HOST"), "HOST"),
        ("register cli", without(&flags, "KUBERNETES_SERVICE_NAME"), "KUBERNETES_SERVICE_NAME"),
        ("register cli", without(&flags, "KUBERNETES_POD_IP"), "KUBERNETES_POD_IP"),
        ("register cli", without(&flags, "KUBERNETES_CONTAINER_PORT"), "KUBERNETES_CONTAINER_PORT"),
        ("register cli", changed("KUBERNETES_SERVICE_NAME", ""), "KUBERNETES_SERVICE_NAME"),
        (
            "register cli",
            changed("KUBERNETES_CONTAINER_PORT", "65536"),
            "KUBERNETES_CONTAINER_PORT",
        ),
        ("register cli", changed("KUBERNETES_CONTAINER_PORT", "0"), "KUBERNETES_CONTAINER_PORT"),
        ("deregister cli", vec![], "KUBERNETES_SERVICE_ID"),
        ("register", vec![], "k8s"),
    ] {
        let mut options = hook(consul.url(), arguments);
        for (name, value) in variables {
            options = options.env(name, value);
        }
        let told = ended(options, 2).await?.stderr();
        ensure!(told.contains(named), "{arguments}: {told}");
    }
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}

/// The lines that are in manifests today, `sh -c` included, with the program under its old name.
#[tokio::test]
async fn the_old_command_lines_work_word_for_word() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let folder = tempfile::tempdir()?;
    std::os::unix::fs::symlink(binary(), folder.path().join("consul-registration-hook"))?;
    std::fs::write(folder.path().join("token"), "")?;
    let state = json!({"frameworks": [{"id": "f", "executors": [{"id": "e", "tasks": [
        {"id": "t", "labels": [{"key": "consul", "value": "job"}],
         "discovery": {"ports": {"ports": [{"number": 31_000}]}}},
    ]}]}]});
    let mesos = serve(([127, 0, 0, 1], 0).into(), 200, state.to_string()).await?;
    shop.pod(8080, "", false).await?;
    shop.address("10.9.9.9").await?;
    let line = |line: &str| {
        let line = line.replace("/hooks/", &format!("{}/", folder.path().display()));
        let line = line.replace("/consul-acl/", &format!("{}/", folder.path().display()));
        let shell = ProgramOptions::new("/bin/sh").args(["-c", &line]);
        shop.in_pod(shell)
            .env("CONSUL_HTTP_ADDR", consul.url().trim_start_matches("http://"))
            .env("MESOS_AGENT_ENDPOINT", mesos.to_string())
            .env("MESOS_EXECUTOR_ID", "e")
            .env("MESOS_FRAMEWORK_ID", "f")
            .env("HOST", "10.8.8.8")
            .env("KUBERNETES_SERVICE_TAGS", "a,b")
            .env("KUBERNETES_CHECK_PATH", "/ping")
            // Set and empty is unset.
            .env("KUBERNETES_GET_POD_TIMEOUT", "")
            .env("PORT_DEFINITIONS", "")
    };
    for (register, deregister, id) in [
        (
            "/hooks/consul-registration-hook register k8s",
            "/hooks/consul-registration-hook deregister k8s",
            "10.9.9.9_8080",
        ),
        (
            "/hooks/consul-registration-hook --consul-acl-file /consul-acl/token register k8s",
            "/hooks/consul-registration-hook --consul-acl-file /consul-acl/token deregister k8s",
            "10.9.9.9_8080",
        ),
        (
            "/hooks/consul-registration-hook register k8s --get-pod-timeout 20s --health-check-timeout 5m0s",
            "/hooks/consul-registration-hook deregister k8s --get-pod-timeout=20s",
            "10.9.9.9_8080",
        ),
        (
            // As its library for flags allows.
            "/hooks/consul-registration-hook -consul-acl-file /consul-acl/token register k8s -get-pod-timeout 20s -health-check-timeout=5m0s",
            "/hooks/consul-registration-hook deregister k8s -get-pod-timeout=20s",
            "10.9.9.9_8080",
        ),
        (
            "/hooks/consul-registration-hook register mesos",
            "/hooks/consul-registration-hook deregister mesos",
            "10.8.8.8_31000",
        ),
        (
            "/hooks/consul-registration-hook register cli --service-name web --pod-ip 10.7.7.7 --container-port 80",
            "/hooks/consul-registration-hook deregister cli --service-id 10.7.7.7_80",
            "10.7.7.7_80",
        ),
    ] {
        ended(line(register), 0).await?;
        ensure!(services(&consul).await? == [id], "{register}");
        ended(line(deregister), 0).await?;
        ensure!(services(&consul).await?.is_empty(), "{deregister}");
    }
    // Under this name it is the hook and nothing else.
    ended(line("/hooks/consul-registration-hook bridge"), 2).await?;
    ended(line("/hooks/consul-registration-hook -v"), 0).await?;
    Ok(())
}
