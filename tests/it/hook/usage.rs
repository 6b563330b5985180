//! Command lines, old and wrong.

use anyhow::{Context as _, Result, ensure};
use kube_consul_stack::ProgramOptions;
use serde_json::json;

use super::support::{Shop, binary, catalog, consul, ended, hook, serve, services};

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
        ("register k8s", with("KUBERNETES_GET_POD_TIMEOUT", "soon"), "--get-pod-timeout"),
        ("register k8s", with("HOME", "/nowhere"), "KUBECONFIG"),
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
        (
            "register cli",
            [&flags[..], &[("CONSUL_HTTP_ADDR", "ftp://x")]].concat(),
            "CONSUL_HTTP_ADDR",
        ),
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
    for harmless in ["-v", "", "register", "help"] {
        ended(line(&format!("/hooks/consul-registration-hook {harmless}")), 0).await?;
    }
    Ok(())
}

/// What its library for flags lets pass, and variables that it did not know.
#[tokio::test]
async fn h7_h8_what_the_original_tolerated_is_tolerated_under_its_name() -> Result<()> {
    let consul = consul().await?;
    let folder = tempfile::tempdir()?;
    let program = folder.path().join("consul-registration-hook");
    std::os::unix::fs::symlink(binary(), &program)?;
    let flags = "--service-name web --pod-ip 10.7.7.7 --container-port 80";
    for (line, tags) in [
        (format!("register cli {flags} --service-tags -a,b"), json!(["-a", "b"])),
        (format!("register cli {flags} -service-tags --x"), json!(["--x"])),
        (
            format!("register cli more {flags} --service-tags a extra --service-name x"),
            json!(["a"]),
        ),
        (
            format!("register cli --service-name a {flags} --service-tags c --service-tags=d"),
            json!(["d"]),
        ),
    ] {
        let options = ProgramOptions::new(&program)
            .args(line.split_whitespace())
            .env("CONSUL_HTTP_ADDR", consul.url())
            .env("CONSUL_NAMESPACE", "consul")
            .env("CONSUL_HTTP_SSL", "maybe");
        let told = ended(options, 0).await?.stderr();
        ensure!(told.contains("CONSUL_NAMESPACE") && told.contains("CONSUL_HTTP_SSL"), "{told}");
        let [instance] = &catalog(&consul, "web").await?[..] else { panic!("not one") };
        ensure!(instance["ServiceTags"] == tags, "{line}: {instance:#}");
    }
    Ok(())
}

/// The values of flags may begin with a dash under each name; what is common is told apart.
#[tokio::test]
async fn h7_h16_values_with_a_dash_and_help() -> Result<()> {
    let consul = consul().await?;
    let line =
        "register cli --service-name web --pod-ip 10.7.7.7 --container-port 80 --service-tags -a,b";
    ended(hook(consul.url(), line), 0).await?;
    let [instance] = &catalog(&consul, "web").await?[..] else { panic!("not one") };
    ensure!(instance["ServiceTags"] == json!(["-a", "b"]), "{instance:#}");
    for source in ["k8s", "mesos", "cli"] {
        for verb in ["register", "deregister"] {
            let help = ended(hook("", &format!("{verb} {source} --help")), 0).await?.stdout();
            let (own, common) = help.split_once("Common options:").context("no heading")?;
            for flag in ["--timeout", "--wait-catalog", "--log-level", "--consul-acl-file"] {
                ensure!(common.contains(flag) && !own.contains(flag), "{flag}: {help}");
            }
            let inputs = ["consulContainer", "CONSUL_TAG_", "PORT_DEFINITIONS", "PORT_SERVICE"];
            ensure!(source != "k8s" || inputs.iter().all(|it| help.contains(it)), "{help}");
        }
    }
    Ok(())
}
