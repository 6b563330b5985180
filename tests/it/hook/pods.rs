//! `register k8s` and `deregister k8s`: what the pod says, and when.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use kube_consul_stack::{Authority, Consul, ConsulOptions, Port, Program, eventually};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::support::{
    BEFORE_DEFAULTS, PATIENCE, Shop, catalog, consul, ended, hook_at, manifest, pod_at, serve,
    serve_in_turn, services,
};

#[tokio::test]
async fn a_pod_registers_and_deregisters_itself_with_the_shipped_role() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let node = format!("zoned-{}", shop.namespace);
    shop.cluster.node(&node).await?;
    let labels = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z1"}}});
    Api::<Node>::all(shop.cluster.client()?)
        .patch(&node, &PatchParams::default(), &Patch::Merge(labels))
        .await?;
    shop.pod(8080, &node, false).await?;
    let pods = shop.pods()?;
    let ip = eventually(PATIENCE, || async {
        let pod = pods.get("web").await?;
        pod.status.and_then(|status| status.pod_ip).context("no address yet")
    })
    .await?;
    let id = format!("{ip}_8080");
    for zone in [false, true] {
        if zone {
            shop.apply("node-rbac.yaml").await?;
        }
        let program = ended(shop.hook(consul.url(), "register k8s"), 0).await?;
        // It is there once the hook has ended, without waiting.
        let [instance] = &catalog(&consul, "web").await?[..] else { panic!("not one") };
        ensure!(instance["ServiceID"] == json!(id), "{instance:#}");
        ensure!(instance["ServiceAddress"] == json!(ip) && instance["ServicePort"] == 8080);
        let mut tags = vec![
            "k8sPodName: web".to_owned(),
            format!("k8sPodNamespace: {}", shop.namespace),
            "zone:z1".to_owned(),
            "team: shop".to_owned(),
            "instance:web_8080".to_owned(),
        ];
        if !zone {
            tags.remove(2);
        }
        ensure!(instance["ServiceTags"] == json!(tags), "{instance:#}");
        let told = program.stderr();
        ensure!(told.contains("expected the right to get nodes, found none") != zone, "{told}");
    }
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    ensure!(catalog(&consul, "web").await?.is_empty(), "it is still in the catalog");
    // Again: there is nothing, and nothing fails.
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    Ok(())
}

#[tokio::test]
async fn the_examples_are_accepted_by_the_api_server() -> Result<()> {
    let shop = Shop::open().await?;
    for name in ["agent-on-host.yaml", "agent-on-host-acl.yaml", "agent-in-pod.yaml"] {
        shop.apply(name).await.with_context(|| name.to_owned())?;
    }
    let application = std::fs::read_to_string(manifest("marathon-app.json"))?;
    serde_json::from_str::<Value>(&application)?;
    Ok(())
}

#[tokio::test]
async fn a_pod_without_the_label_or_the_right_is_not_registered() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    shop.pod(8080, "", false).await?;
    let patch = Patch::Merge(json!({"metadata": {"labels": {"consul": null}}}));
    shop.pods()?.patch("web", &PatchParams::default(), &patch).await?;
    // Not even an address is waited for.
    ended(shop.hook(consul.url(), "register k8s"), 0).await?;
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;

    let other = shop.cluster.service_account_token(&shop.namespace, "default").await?;
    let kubeconfig = shop.cluster.kubeconfig_for(&other)?;
    let denied = shop.hook(consul.url(), "register k8s --get-pod-timeout 1s");
    let told = ended(denied.env("KUBECONFIG", kubeconfig), 1).await?.stderr();
    ensure!(told.contains("expected the right to get pods, found none"), "{told}");
    // A static pod's object comes after its containers; a deleted one's does not come back.
    for (arguments, least) in [("register k8s --get-pod-timeout 1s", 800), ("deregister k8s", 0)] {
        let start = Instant::now();
        let absent = shop.hook(consul.url(), arguments).env("KUBERNETES_POD_NAME", "nope");
        let told = ended(absent, 1).await?.stderr();
        ensure!(told.contains("HTTP 404"), "{told}");
        let took = start.elapsed();
        ensure!((least..5_000).contains(&took.as_millis()), "{arguments}: {took:?}");
    }
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}

/// Whoever has nothing to register needs neither an agent nor variables that can be read.
#[tokio::test]
async fn h3_a_pod_with_an_empty_label_is_left_alone_whatever_else_is_wrong() -> Result<()> {
    let shop = Shop::open().await?;
    shop.pod(8080, "", true).await?;
    for label in [json!(""), Value::Null] {
        let patch = Patch::Merge(json!({"metadata": {"labels": {"consul": label}}}));
        shop.pods()?.patch("web", &PatchParams::default(), &patch).await?;
        for (variable, value) in [
            ("PORT_DEFINITIONS", "[{"),
            ("PORT_DEFINITIONS", r#"[{"port": 0}]"#),
            ("CONSUL_HTTP_ADDR", "ftp://x"),
            ("CONSUL_HTTP_ADDR", "127.0.0.1:1"),
            ("CONSUL_HTTP_SSL", "maybe"),
            ("CONSUL_CLIENT_CERT", "/nope"),
        ] {
            for verb in ["register", "deregister"] {
                let hook = shop.hook("http://127.0.0.1:1", &format!("{verb} k8s"));
                ended(hook.env(variable, value), 0).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pod_that_lost_its_label_deregisters_what_it_registered() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    shop.pod(8080, "", false).await?;
    shop.address("10.9.9.9").await?;
    ended(shop.hook(consul.url(), "register k8s"), 0).await?;
    // Another pod's at the same address, this pod's from another, and one that is no hook's.
    let tags = |pod: &str| {
        json!([format!("k8sPodName: {pod}"), format!("k8sPodNamespace: {}", shop.namespace)])
    };
    let others = [
        ("10.9.9.8_8080", "10.9.9.8", "web"),
        ("10.9.9.9_1", "10.9.9.9", "web-2"),
        ("web-1", "10.9.9.9", "web"),
    ];
    for (id, address, pod) in others {
        let body = json!({"ID": id, "Name": "web", "Address": address, "Tags": tags(pod)});
        consul.api().put("/v1/agent/service/register", &body).await?;
    }
    let patch = Patch::Merge(json!({"metadata": {"labels": {"consul": null}}}));
    shop.pods()?.patch("web", &PatchParams::default(), &patch).await?;
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    ensure!(services(&consul).await? == others.map(|(id, _, _)| id));
    ensure!(catalog(&consul, "web").await?.len() == others.len(), "the catalog still shows it");
    // Whoever has nothing to remove does not need an agent for it.
    let nowhere = shop.hook("http://127.0.0.1:1", "deregister k8s");
    let told = ended(nowhere, 0).await?.stderr();
    ensure!(told.contains("WARN") && told.contains("refused"), "{told}");
    Ok(())
}

#[tokio::test]
async fn kubernetes_may_fail_at_first_but_not_for_ever() -> Result<()> {
    let consul = consul().await?;
    let hook = |api, arguments: &str| hook_at(api, &consul, arguments);
    // It takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    for verb in ["register", "deregister"] {
        let start = Instant::now();
        let hung = hook(silent.local_addr()?, &format!("{verb} k8s --get-pod-timeout 1s"));
        let told = ended(hung, 1).await?.stderr();
        ensure!(told.contains("expected an answer by the deadline, found none"), "{told}");
        ensure!(start.elapsed() < BEFORE_DEFAULTS, "{:?}", start.elapsed());
    }
    let pod = pod_at("127.0.0.1:8080".parse()?, &Value::Null);
    let answers = [(500, String::new()), (429, String::new()), (200, pod)];
    let api = serve_in_turn(([127, 0, 0, 1], 0).into(), answers.to_vec()).await?;
    ended(hook(api, "deregister k8s"), 0).await?;

    // A probe that takes the connection and says nothing.
    let address = silent.local_addr()?;
    for (timeout, delay, found) in
        [("1s", 0, "found: no answer"), ("3s", 0, "operation timed out"), ("1s", 2, "no answer")]
    {
        let probe = json!({"httpGet": {"port": "main"}, "initialDelaySeconds": delay});
        let pod = pod_at(address, &probe);
        let api = serve(([127, 0, 0, 1], 0).into(), 200, pod).await?;
        let start = Instant::now();
        let hung = hook(api, &format!("register k8s --health-check-timeout {timeout}"));
        let told = ended(hung, 1).await?.stderr();
        ensure!(told.contains(found), "{told}");
        ensure!(start.elapsed() < BEFORE_DEFAULTS, "{:?}", start.elapsed());
    }
    ensure!(services(&consul).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_late_address_is_waited_for() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    shop.pod(8080, "", false).await?;
    let start = Instant::now();
    let timeout = shop.hook(consul.url(), "register k8s").env("KUBERNETES_GET_POD_TIMEOUT", "1s");
    let told = ended(timeout, 1).await?.stderr();
    ensure!(told.contains("expected an IP address within 1s, found none"), "{told}");
    ensure!(start.elapsed() < BEFORE_DEFAULTS, "{:?}", start.elapsed());

    let program = Program::start("hook", shop.hook(consul.url(), "register k8s")).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensure!(program.exit_status().is_none());
    shop.address("10.9.9.9").await?;
    program.wait_for_code(0, PATIENCE).await?;
    ensure!(services(&consul).await? == ["10.9.9.9_8080"]);
    Ok(())
}

#[tokio::test]
async fn a_terminating_pod_is_not_registered() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let port = Port::pick()?;
    shop.pod(port.number(), "", true).await?;
    shop.address("127.0.0.1").await?;
    // It was not yet when the hook began to wait for its probe.
    let program = Program::start("hook", shop.hook(consul.url(), "register k8s")).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    shop.terminate().await?;
    serve(([127, 0, 0, 1], port.number()).into(), 200, String::new()).await?;
    program.wait_for_code(0, PATIENCE).await?;
    // It is from the beginning.
    let told = ended(shop.hook(consul.url(), "register k8s"), 0).await?.stderr();
    ensure!(told.contains("the pod is terminating"), "{told}");
    ensure!(services(&consul).await?.is_empty());
    // The end still deregisters.
    ended(shop.hook(consul.url(), "deregister k8s"), 0).await?;
    Ok(())
}

#[tokio::test]
async fn the_probe_is_waited_for_and_stale_twins_are_removed() -> Result<()> {
    let (shop, consul) = tokio::try_join!(Shop::open(), consul())?;
    let port = Port::pick()?;
    shop.pod(port.number(), "", true).await?;
    shop.address("127.0.0.1").await?;
    let id = format!("127.0.0.1_{}", port.number());
    for stale in [format!("{id}-secured"), "127.0.0.1_1-secured".to_owned()] {
        let body = json!({"ID": stale, "Name": "old-secured"});
        consul.api().put("/v1/agent/service/register", &body).await?;
    }

    let start = Instant::now();
    let never =
        shop.hook(consul.url(), "register k8s").env("KUBERNETES_HEALTH_CHECK_TIMEOUT", "1s500ms");
    let told = ended(never, 1).await?.stderr();
    ensure!(told.contains("expected the pod's probe to succeed within 1.5s"), "{told}");
    ensure!(told.contains("refused"), "{told}");
    ensure!(start.elapsed() < BEFORE_DEFAULTS, "{:?}", start.elapsed());
    ensure!(services(&consul).await? == ["127.0.0.1_1-secured"], "another's was touched");

    let program = Program::start("hook", shop.hook(consul.url(), "register k8s")).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(program.exit_status().is_none() && services(&consul).await?.len() == 1);
    serve(([127, 0, 0, 1], port.number()).into(), 200, String::new()).await?;
    program.wait_for_code(0, PATIENCE).await?;
    ensure!(services(&consul).await?.contains(&id));
    let definition = consul.api().get("/v1/health/checks/web").await?[0].clone();
    ensure!(definition["Type"] == "http", "{definition:#}");
    // Clients see it at once: what the check asks was just asked with success.
    let path = format!("/v1/health/service/web?passing&filter=Service.ID==\"{id}\"");
    let passing = consul.api().get(&path).await?;
    ensure!(passing.as_array().is_some_and(|it| it.len() == 1), "{passing}");
    // From then on Consul itself asks the probe's path.
    eventually(PATIENCE, || async {
        // The catalog's copy takes up what a check says minutes later.
        let checks = consul.api().get("/v1/agent/checks").await?;
        let check = &checks[format!("service:{id}")];
        let asked = check["Output"].as_str().is_some_and(|output| output.contains("/ready"));
        ensure!(asked && check["Status"] == "passing", "{check:#}");
        anyhow::Ok(())
    })
    .await?;
    Ok(())
}

/// The application is a Consul too, with a certificate that nobody else trusts.
#[tokio::test]
async fn a_probe_by_https_takes_any_certificate() -> Result<()> {
    let application = ConsulOptions::dev().tls(&Authority::new("the application's")?, false)?;
    let (consul, application) = tokio::try_join!(consul(), Consul::start(application))?;
    let get = json!({"path": "/v1/status/leader", "port": "main", "scheme": "HTTPS"});
    let pod = pod_at(application.address(), &json!({"httpGet": get, "periodSeconds": 1}));
    let api = serve(([127, 0, 0, 1], 0).into(), 200, pod).await?;
    ended(hook_at(api, &consul, "register k8s --health-check-timeout 5s"), 0).await?;
    eventually(PATIENCE, || async {
        let passing = consul.api().get("/v1/health/service/web?passing").await?;
        ensure!(passing.as_array().is_some_and(|it| it.len() == 1), "{passing}");
        anyhow::Ok(())
    })
    .await
}
