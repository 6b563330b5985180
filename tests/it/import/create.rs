//! Services that are made for Consul services.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube_consul_stack::{
    Consul, ConsulOptions, Kubernetes, KubernetesOptions, ProgramOptions, eventually,
};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::scenarios;
use super::support::{OURS, Site};
use crate::support::{Bridge, DEADLINE, InvariantMonitor, kube_consul, manifest};

/// The label of Services that were made.
const CREATED: &str = "app.kubernetes.io/managed-by=kube-consul-import";
/// What a removal takes: it is held for 10 s, and then confirmed.
const REMOVAL: Duration = Duration::from_secs(30);

/// A cluster with a namespace in which Services are made, and a kubeconfig with the rights that are
/// shipped for that.
struct Target<'a> {
    cluster: &'a Kubernetes,
    namespace: String,
    kubeconfig: PathBuf,
}

impl<'a> Target<'a> {
    async fn new(cluster: &'a Kubernetes) -> Result<Self> {
        let namespace = cluster.namespace("made").await?;
        cluster.apply_file(&manifest("import/namespace.yaml")).await?;
        cluster.apply_file(&manifest("import/rbac.yaml")).await?;
        let role = std::fs::read_to_string(manifest("import-create/rbac.yaml"))?;
        let role = role.replace("namespace: consul-services", &format!("namespace: {namespace}"));
        cluster.apply_yaml(&role).await?;
        let token = cluster.service_account_token("kube-consul", "kube-consul-import").await?;
        Ok(Self { cluster, namespace, kubeconfig: cluster.kubeconfig_for(&token)? })
    }

    fn command(&self, consul: &Consul, cluster: &str, flags: &[&str]) -> ProgramOptions {
        kube_consul()
            .args(["import", "--create", "--cluster", cluster])
            .args(["--namespace", &self.namespace, "--target-namespace", &self.namespace])
            .args(flags)
            .args([std::path::Path::new("--kubeconfig"), &self.kubeconfig])
            .env("CONSUL_HTTP_ADDR", consul.url())
    }

    async fn import(&self, consul: &Consul, cluster: &str, flags: &[&str]) -> Result<Bridge> {
        let import = Bridge::start(self.command(consul, cluster, flags)).await?;
        import.wait_ready().await?;
        Ok(import)
    }

    fn services(&self) -> Result<Api<Service>> {
        Ok(Api::namespaced(self.cluster.client()?, &self.namespace))
    }

    /// The Services that were made, each with its kind and its ready endpoints.
    async fn made(&self) -> Result<BTreeMap<String, String>> {
        let services = self.services()?.list(&ListParams::default().labels(CREATED)).await?;
        let slices: Api<EndpointSlice> = Api::namespaced(self.cluster.client()?, &self.namespace);
        let slices = slices.list(&ListParams::default().labels(OURS)).await?;
        let of = |name: &str| {
            let own = slices.items.iter().filter(|it| {
                let labels = it.metadata.labels.as_ref();
                labels.is_some_and(|it| it["kubernetes.io/service-name"] == name)
            });
            let endpoints = own.flat_map(|it| it.endpoints.iter().flatten());
            let ready = endpoints
                .filter(|it| it.conditions.as_ref().and_then(|it| it.ready).unwrap_or(true));
            let mut all: Vec<_> = ready.flat_map(|it| it.addresses.clone()).collect();
            all.sort();
            all.join(",")
        };
        let shown = |service: Service| {
            let (name, spec) = (service.metadata.name.unwrap_or_default(), service.spec);
            let spec = spec.unwrap_or_default();
            let kind = match (spec.external_name, spec.cluster_ip.as_deref()) {
                (Some(name), _) => name,
                (None, Some("None")) => "headless".to_owned(),
                (None, _) => "cluster-ip".to_owned(),
            };
            let ports = spec.ports.unwrap_or_default();
            let port = ports.first().map_or(0, |it| it.port);
            let shown = format!("{kind}:{port} {}", of(&name));
            (name, shown)
        };
        Ok(services.items.into_iter().map(shown).collect())
    }

    async fn wait_for(&self, deadline: Duration, wanted: &[(&str, &str)]) -> Result<()> {
        let wanted: BTreeMap<String, String> =
            wanted.iter().map(|&(name, it)| (name.to_owned(), it.to_owned())).collect();
        eventually(deadline, || async {
            let made = self.made().await?;
            ensure!(made == wanted, "made are {made:?}, want {wanted:?}");
            Ok(())
        })
        .await
    }

    /// Makes or changes a Service as a user does.
    async fn apply(&self, name: &str, mut object: Value) -> Result<()> {
        object["apiVersion"] = json!("v1");
        object["kind"] = json!("Service");
        object["metadata"]["name"] = json!(name);
        let params = PatchParams::apply("test").force();
        self.services()?.patch(name, &params, &Patch::Apply(object)).await?;
        Ok(())
    }
}

#[tokio::test]
async fn a_service_is_made_for_each_consul_service_and_goes_with_it() -> Result<()> {
    scenarios::run("created").await
}

pub async fn made_and_removed() -> Result<()> {
    let site = Site::new("create").await?;
    let target = Target::new(site.fixture.kubernetes).await?;
    let consul = &site.fixture.consul;
    site.register("ORDER-API", "10.1.0.1", "passing").await?;
    site.register("mine", "10.1.0.2", "passing").await?;
    target.apply("mine", json!({"spec": {"ports": [{"port": 1}]}})).await?;
    let before = target.services()?.get("mine").await?.metadata.resource_version;
    let import = target.import(consul, "here", &[]).await?;
    target.wait_for(DEADLINE, &[("order-api", "headless:5432 10.1.0.1")]).await?;
    site.wait_for_problem(&import, "mine", "found another: it is not touched").await?;

    let began = Instant::now();
    site.register("web", "10.1.0.3", "passing").await?;
    let both = [("order-api", "headless:5432 10.1.0.1"), ("web", "headless:5432 10.1.0.3")];
    target.wait_for(DEADLINE, &both).await?;
    println!("registered in Consul: Service and slice are there after {:?}", began.elapsed());

    // Known to be gone only once that is confirmed; what comes back in between stays.
    site.deregister("web", "10.1.0.3").await?;
    sleep(Duration::from_secs(3)).await;
    ensure!(target.made().await?.contains_key("web"), "removed at once");
    site.register("web", "10.1.0.4", "passing").await?;
    sleep(Duration::from_secs(12)).await;
    let both = [("order-api", "headless:5432 10.1.0.1"), ("web", "headless:5432 10.1.0.4")];
    target.wait_for(DEADLINE, &both).await?;
    let began = Instant::now();
    site.deregister("web", "10.1.0.4").await?;
    target.wait_for(REMOVAL, &both[..1]).await?;
    println!("gone from Consul: the Service is removed after {:?}", began.elapsed());

    // Made again by a user's mistake, it comes back; and the user's own is untouched.
    target.services()?.delete("order-api", &DeleteParams::default()).await?;
    target.wait_for(DEADLINE, &both[..1]).await?;
    let after = target.services()?.get("mine").await?.metadata.resource_version;
    ensure!(before == after, "the user's Service was written");
    import.stop().await?;

    // A restart writes nothing.
    let import = target.import(consul, "here", &[]).await?;
    sleep(Duration::from_secs(1)).await;
    for verb in ["write", "create_service", "update_service", "delete_service"] {
        let series = format!("kube_consul_import_writes_total{{verb=\"{verb}\",result=\"done\"}}");
        let written = import.metric(&series).await?;
        ensure!(written.is_some_and(|it| it < 1.0), "{verb} after a restart: {written:?}");
    }
    import.stop().await
}

#[tokio::test]
async fn i13_names_and_kinds() -> Result<()> {
    let site = Site::new("create-names").await?;
    let target = Target::new(site.fixture.kubernetes).await?;
    let consul = &site.fixture.consul;
    let long = "x".repeat(70);
    for name in ["echo_default", "echo-default", "1st", "kubernetes", &long] {
        site.register(name, "10.1.0.1", "passing").await?;
    }
    let proxy = json!({
        "Node": "proxies", "Address": "10.1.0.9",
        "Service": {"ID": "p", "Kind": "connect-proxy", "Service": "web-sidecar-proxy", "Port": 20000,
                    "Proxy": {"DestinationServiceName": "web"}},
    });
    consul.api().put("/v1/catalog/register", &proxy).await?;
    let import = target.import(consul, "here", &["--create-as", "cluster-ip"]).await?;
    eventually(DEADLINE, || async {
        let made = target.made().await?;
        let names: Vec<_> = made.keys().map(|it| &it[..it.len().min(12)]).collect();
        ensure!(names == ["echo-default", "svc-1st", "xxxxxxxxxxxx"], "{made:?}");
        ensure!(made.values().all(|it| it == "cluster-ip:5432 10.1.0.1"), "{made:?}");
        Ok(())
    })
    .await?;
    site.wait_for_problem(&import, "echo-default", "want a Service of this name").await?;
    import.stop().await?;

    // By name also what is left out else, here beside the others by its prefix.
    let target = Target::new(site.fixture.kubernetes).await?;
    let flags = ["--match", "*-proxy,consul", "--name-prefix", "c-"];
    let import = target
        .import(consul, "here", &[&flags[..], &["--create-as", "external-name"]].concat())
        .await?;
    target
        .wait_for(
            DEADLINE,
            &[
                ("c-consul", "consul.service.consul:0 "),
                ("c-web-sidecar-proxy", "web-sidecar-proxy.service.consul:0 "),
            ],
        )
        .await?;
    import.stop().await
}

/// Two clusters with an API server each, one Consul. `web` is in both, `only-a` in one.
#[tokio::test]
async fn i12_clusters_find_each_other_through_one_consul_without_a_loop() -> Result<()> {
    scenarios::run("clusters").await
}

pub async fn two_clusters() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev()).await?;
    let (a, b) = tokio::try_join!(
        Kubernetes::start(KubernetesOptions::default()),
        Kubernetes::start(KubernetesOptions::default()),
    )?;
    let (target_a, target_b) = tokio::try_join!(Target::new(&a), Target::new(&b))?;
    let mut running = Vec::new();
    let mut namespaces = Vec::new();
    for (cluster, name, target) in [(&a, "a", &target_a), (&b, "b", &target_b)] {
        let apps = cluster.namespace("apps").await?;
        cluster.apply_file(&manifest("base/namespace.yaml")).await?;
        cluster.apply_file(&manifest("base/rbac.yaml")).await?;
        let token = cluster.service_account_token("kube-consul", "kube-consul").await?;
        let bridge = kube_consul()
            .args(["bridge", "--sink", "catalog", "--cluster", name])
            .args(["--join-existing", "kubernetes"])
            .args([std::path::Path::new("--kubeconfig"), &cluster.kubeconfig_for(&token)?])
            .env("CONSUL_HTTP_ADDR", consul.url())
            .args(["--namespace", &apps, "--namespace", &target.namespace]);
        running.push(Bridge::start(bridge).await?);
        running.push(target.import(&consul, name, &[]).await?);
        namespaces.push(apps);
    }
    let service = |cluster: &'static str, name: &'static str, address: &'static str| {
        let (cluster, apps) =
            if cluster == "a" { (&a, &namespaces[0]) } else { (&b, &namespaces[1]) };
        async move {
            let ports = [("", 80)];
            let ready = [kube_consul_stack::Endpoint::ready(address)];
            let slice = format!("{name}-1");
            cluster.endpoint_slice(apps, name, &slice, &ready, &ports).await?;
            let kind = kube_consul_stack::ServiceKind::HeadlessSelectorless;
            cluster.service(apps, name, kind, &ports).await.map(drop)
        }
    };
    let began = Instant::now();
    service("a", "only-a", "10.11.0.1").await?;
    target_b.wait_for(DEADLINE, &[("only-a", "headless:80 10.11.0.1")]).await?;
    println!("a Service of A: by name in B after {:?}", began.elapsed());
    service("a", "web", "10.11.0.2").await?;
    service("b", "web", "10.12.0.2").await?;
    let in_b = [("only-a", "headless:80 10.11.0.1"), ("web", "headless:80 10.11.0.2")];
    target_b.wait_for(DEADLINE, &in_b).await?;
    target_a.wait_for(DEADLINE, &[("web", "headless:80 10.12.0.2")]).await?;

    // No loop: what is made is registered by nobody.
    sleep(Duration::from_secs(3)).await;
    let instances = consul.api().get("/v1/health/service/web").await?;
    ensure!(instances.as_array().is_some_and(|all| all.len() == 2), "{instances}");

    // B's bridge stops: A keeps what it has of B. A's deletion takes only A's.
    running[2].stop().await?;
    let began = Instant::now();
    let services: Api<Service> = Api::namespaced(a.client()?, &namespaces[0]);
    services.delete("web", &DeleteParams::default()).await?;
    target_b.wait_for(REMOVAL, &in_b[..1]).await?;
    println!("deleted in A: gone in B after {:?}", began.elapsed());
    target_a.wait_for(DEADLINE, &[("web", "headless:80 10.12.0.2")]).await
}

/// Beside a consul-k8s that sets each Service which has its label back to what it made.
#[tokio::test]
async fn i14_services_of_consul_k8s_are_taken_over_and_never_without_a_name() -> Result<()> {
    let site = Site::new("create-adopt").await?;
    let target = Target::new(site.fixture.kubernetes).await?;
    let consul = &site.fixture.consul;
    site.register("web", "10.1.0.1", "passing").await?;
    let theirs = json!({
        "metadata": {"labels": {"consul": "true"}},
        "spec": {"type": "ExternalName", "externalName": "web.service.consul"},
    });
    let params = kube::api::PostParams::default();
    let mut object = theirs.clone();
    object["metadata"]["name"] = json!("web");
    target.services()?.create(&params, &serde_json::from_value(object)?).await?;
    let services = target.services()?;
    let consul_k8s = tokio::spawn(async move {
        let mut set_back = 0;
        loop {
            let labelled = ListParams::default().labels("consul=true");
            for service in services.list(&labelled).await.into_iter().flatten() {
                let is_theirs = service.spec.and_then(|it| it.external_name).is_some();
                if !is_theirs && set_back < 100 {
                    set_back += 1;
                    let patch = Patch::Merge(theirs.clone());
                    let _ = services.patch("web", &PatchParams::default(), &patch).await;
                }
            }
            sleep(Duration::from_millis(5)).await;
        }
    });
    let (services, slices) = (
        target.services()?,
        Api::<EndpointSlice>::namespaced(target.cluster.client()?, &target.namespace),
    );
    // What a DNS server would answer: the CNAME, or the addresses of ready endpoints.
    let monitor = InvariantMonitor::start(move || {
        let (services, slices) = (services.clone(), slices.clone());
        async move {
            let service = services.get("web").await?;
            let slices = slices.list(&ListParams::default().labels(OURS)).await?;
            let is_cname = service.spec.and_then(|it| it.external_name).is_some();
            let has_endpoints =
                slices.items.iter().any(|it| !it.endpoints.iter().flatten().count().eq(&0));
            Ok(if is_cname || has_endpoints { vec![] } else { vec!["the name is gone".to_owned()] })
        }
    });
    // Not unless it is asked for.
    let import = target.import(consul, "here", &[]).await?;
    site.wait_for_problem(&import, "web", "it is not touched").await?;
    import.stop().await?;
    let import = target.import(consul, "here", &["--adopt-consul-k8s"]).await?;
    target.wait_for(DEADLINE, &[("web", "headless:5432 10.1.0.1")]).await?;
    sleep(Duration::from_secs(1)).await;
    target.wait_for(DEADLINE, &[("web", "headless:5432 10.1.0.1")]).await?;
    let web = target.services()?.get("web").await?;
    let labels = web.metadata.labels.unwrap_or_default();
    ensure!(!labels.contains_key("consul"), "the label is still there: {labels:?}");
    let series = "kube_consul_import_writes_total{verb=\"update_service\",result=\"done\"}";
    ensure!(import.metric(series).await? == Some(1.0), "more than one write");
    consul_k8s.abort();
    monitor.finish("the name").await?;
    import.stop().await
}

/// 2,000 names, 200 changes of instances a second: Consul answers each.
#[tokio::test]
async fn i5_names_are_read_at_most_once_a_second() -> Result<()> {
    let site = Site::new("create-many").await?;
    let target = Target::new(site.fixture.kubernetes).await?;
    let api = site.fixture.consul.api();
    let set = |node: String, n: usize| {
        json!({"Service": {"Verb": "set", "Node": node, "Service": {
            "ID": format!("s-{n}"), "Service": format!("s-{n}"), "Address": "10.2.0.1", "Port": 80,
        }}})
    };
    api.put("/v1/catalog/register", &json!({"Node": "many", "Address": "10.200.0.2"})).await?;
    let ops: Vec<_> = (0..2000).map(|n| set("many".to_owned(), n)).collect();
    for ops in ops.chunks(100) {
        api.put("/v1/txn", &json!(ops)).await?;
    }
    site.register("wanted", "10.1.0.1", "passing").await?;
    let recorder = kube_consul_stack::HttpRecorder::start(site.fixture.consul.url()).await?;
    let command = target
        .command(&site.fixture.consul, "here", &["--match", "wanted"])
        .env("CONSUL_HTTP_ADDR", recorder.url());
    let import = Bridge::start(command).await?;
    import.wait_ready().await?;
    target.wait_for(DEADLINE, &[("wanted", "headless:5432 10.1.0.1")]).await?;
    let written = "kube_consul_import_writes_total{verb=\"write\",result=\"done\"}";
    let before = import.metric(written).await?;
    let lists = || {
        let all = recorder.requests();
        all.iter().filter(|it| it.path.starts_with("/v1/catalog/services")).count()
    };
    let (lists_before, began) = (lists(), Instant::now());
    for round in 0..25 {
        let body = json!([set("many".to_owned(), round), {"Service": {
            "Verb": "set", "Node": "many", "Service": {
                "ID": "s-0", "Service": "s-0", "Address": "10.2.0.1", "Port": 100 + round,
        }}}]);
        for _ in 0..8 {
            api.put("/v1/txn", &body).await?;
        }
        sleep(Duration::from_millis(100)).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let read = lists() - lists_before;
    println!("{read} lists of names in {seconds:.1} s");
    #[expect(clippy::cast_precision_loss, reason = "a few")]
    let rate = read as f64 / seconds;
    ensure!(rate <= 1.5, "{rate} lists of names a second");
    ensure!(import.metric(written).await? == before, "something was written");
    import.stop().await
}

/// What whoever may register in Consul can do: nothing but to their own names.
#[tokio::test]
async fn i13_hostile_names_and_instances_harm_only_themselves() -> Result<()> {
    let site = Site::new("made-hostile").await?;
    let target = Target::new(site.fixture.kubernetes).await?;
    let long = "n".repeat(300);
    for (n, name) in [
        "..",
        ".",
        "../v1/kv/x",
        "a/b",
        "ev\u{202e}il",
        "\u{1f4a5}",
        " web",
        "KUBERNETES",
        "kube-dns.",
        "<img src=x>",
        &long,
        "a\tb",
        "-",
        "_",
        "x?dc=moon",
        "x#y",
        "%2e%2e",
    ]
    .iter()
    .enumerate()
    {
        site.register(name, &format!("10.1.9.{n}"), "passing").await?;
    }
    for (address, port) in
        [("127.0.0.1", 80), ("169.254.169.254", 80), ("localhost", 80), ("10.1.2.1", 0)]
    {
        site.register_at("metadata", address, port, "passing").await?;
    }
    // Somebody's own Service of a name that is wanted.
    target.apply("mine", json!({"spec": {"ports": [{"port": 1}], "clusterIP": "None"}})).await?;
    site.register("mine", "10.1.3.1", "passing").await?;
    site.register("web", "10.1.0.1", "passing").await?;
    let import = target.import(&site.fixture.consul, "hostile", &[]).await?;
    eventually(3 * DEADLINE, || async {
        let made = target.made().await?;
        ensure!(made.get("web").is_some_and(|it| it.contains("10.1.0.1")), "{made:?}");
        ensure!(made.get("a-b").is_some_and(|it| it.contains("10.1.9.")), "{made:?}");
        Ok(())
    })
    .await?;
    sleep(Duration::from_secs(2)).await;
    let made = target.made().await?;
    println!("{made:#?}");
    ensure!(!made.contains_key("kubernetes") && !made.contains_key("mine"), "{made:?}");
    ensure!(made.get("metadata").is_none_or(|it| !it.contains("169.254")), "{made:?}");
    ensure!(!made["web"].contains("10.1.9."), "another's endpoints: {made:?}");
    site.register("web", "10.1.0.2", "passing").await?;
    eventually(DEADLINE, || async {
        let made = target.made().await?;
        ensure!(made["web"].contains("10.1.0.2"), "{made:?}");
        Ok(())
    })
    .await?;
    import.stop().await
}
