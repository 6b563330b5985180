//! Services at the hosts of Ingresses and HTTPRoutes, and at what takes their traffic.

use anyhow::{Result, ensure};
use hickory_resolver::proto::rr::RecordType::{A, CNAME};
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use kube_consul_stack::{Endpoint, Kubernetes, eventually};
use serde_json::{Value, json};

use crate::support::{
    Bridge, DEADLINE, Fixture, kube_consul, kubeconfig_with, manifest, says, shipped_rules,
    shipped_token,
};

/// The custom resources of the Gateway API, with the fields that are used.
const CRDS: [(&str, &str); 2] = [("HTTPRoute", "httproutes"), ("Gateway", "gateways")];
const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";

impl Fixture {
    async fn grant_routes(&self) -> Result<()> {
        shipped_token(self.kubernetes).await?;
        for file in ["optional/ingress-rbac.yaml", "optional/gateway-rbac.yaml"] {
            self.kubernetes.apply_file(&manifest(file)).await?;
        }
        Ok(())
    }

    fn ingresses(&self) -> Result<Api<Ingress>> {
        Ok(Api::namespaced(self.kubernetes.client()?, &self.namespace))
    }

    async fn ingress(&self, name: &str, spec: Value) -> Result<()> {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        self.kubernetes.create::<Ingress>(&self.namespace, object).await.map(drop)
    }

    async fn set_ingress_status(&self, name: &str, ingress: Value) -> Result<()> {
        let patch = Patch::Merge(json!({"status": {"loadBalancer": {"ingress": ingress}}}));
        self.ingresses()?.patch_status(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Waits until a name has these instances, as `address:port` with `!` for a critical one.
    async fn wait_for_places(&self, name: &str, wanted: &[&str]) -> Result<()> {
        eventually(DEADLINE, || async {
            let instances = self.instances(name).await?;
            let mut found: Vec<String> = instances.iter().map(shown).collect();
            found.sort();
            ensure!(found == wanted, "{name}: {found:?}, want {wanted:?}");
            Ok(())
        })
        .await
    }

    async fn own_place(&self, name: &str) -> Result<String> {
        Ok(format!("{}:80", self.cluster_ip(name).await?))
    }
}

fn shown(instance: &Value) -> String {
    let service = &instance["Service"];
    let checks = instance["Checks"].as_array().into_iter().flatten();
    let critical = checks.into_iter().any(|check| check["Status"] == "critical");
    let address = service["Address"].as_str().unwrap_or_default();
    format!("{address}:{}{}", service["Port"], if critical { "!" } else { "" })
}

/// A rule of an Ingress that leads all of a host to port 80 of a Service.
fn rule(host: &str, service: &str) -> Value {
    let backend = json!({"service": {"name": service, "port": {"number": 80}}});
    let paths = json!([{"path": "/", "pathType": "Prefix", "backend": backend}]);
    json!({"host": host, "http": {"paths": paths}})
}

#[tokio::test]
async fn an_ingress_gives_its_services_its_hosts() -> Result<()> {
    let fixture = Fixture::new("ingress").await?;
    fixture.grant_routes().await?;
    for name in ["plain", "secure", "two", "fallback", "wild", "alone"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    let wild = fixture.own_place("wild").await?;
    let spec = json!({
        "tls": [{"hosts": ["secure.example.com", "two-b.example.com"], "secretName": "tls"}],
        "rules": [
            rule("plain.example.com", "plain"),
            rule("secure.example.com", "secure"),
            rule("two-a.example.com", "two"),
            rule("two-b.example.com", "two"),
            rule("*.wild.example.com", "wild"),
            {"host": "nohttp.example.com"},
        ],
        "defaultBackend": {"service": {"name": "fallback", "port": {"name": "http"}}},
    });
    fixture.ingress("shop", spec).await?;
    let plan = fixture.subcommand("plan").await?.arg("--ingress");
    let planned = says(2, plan.args(["--output", "json"])).await?;
    ensure!(planned.contains("plain.example.com"), "{planned}");

    let command = fixture.command().await?.arg("--ingress");
    let bridge = Bridge::start(command.clone()).await?;
    bridge.wait_ready().await?;
    let namespace = fixture.namespace.as_str();
    fixture.wait_for_places("plain", &["plain.example.com:80"]).await?;
    fixture.wait_for_places("secure", &["secure.example.com:443"]).await?;
    fixture.wait_for_places("two", &["two-a.example.com:80", "two-b.example.com:443"]).await?;
    fixture.wait_for_places("fallback", &["nohttp.example.com:80"]).await?;
    fixture.wait_for_places("wild", &[&wild]).await?;
    fixture.wait_for_places("alone", &[&fixture.own_place("alone").await?]).await?;
    let told = bridge.problems_of(namespace, "shop").await?;
    ensure!(told.len() == 1 && told[0]["kind"] == "Ingress", "{told:?}");
    let message = told[0]["message"].as_str().unwrap_or_default();
    ensure!(message.contains("*.wild.example.com"), "{message}");
    let dns = fixture.dns()?;
    dns.wait_for("plain.service.consul", CNAME, &["plain.example.com."]).await?;
    let keys = fixture.consul.api().get("/v1/kv/?keys").await?;
    ensure!(!keys.to_string().contains("example.com"), "{keys}");

    // Its health is that of the Service's endpoints.
    fixture.endpoints("plain", &[Endpoint::unready("10.1.0.1")], &[("http", 80)]).await?;
    fixture.wait_for_places("plain", &["plain.example.com:80!"]).await?;
    fixture.endpoints("plain", &[Endpoint::ready("10.1.0.1")], &[("http", 80)]).await?;
    fixture.wait_for_places("plain", &["plain.example.com:80"]).await?;

    // A second Ingress adds a host, and takes it along when it goes.
    fixture.ingress("more", json!({"rules": [rule("more.example.com", "plain")]})).await?;
    fixture.wait_for_places("plain", &["more.example.com:80", "plain.example.com:80"]).await?;
    fixture.ingresses()?.delete("more", &DeleteParams::default()).await?;
    fixture.wait_for_places("plain", &["plain.example.com:80"]).await?;
    bridge.stop().await?;

    // Another process finds all as it is, and follows what is deleted.
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    fixture.ingresses()?.delete("shop", &DeleteParams::default()).await?;
    for name in ["plain", "secure", "two", "fallback"] {
        fixture.wait_for_places(name, &[&fixture.own_place(name).await?]).await?;
    }
    bridge.wait_for_no_problem(namespace, "shop").await?;
    bridge.stop().await
}

#[tokio::test]
async fn with_ingress_addresses_a_service_is_at_the_load_balancer() -> Result<()> {
    let fixture = Fixture::new("ingress-addresses").await?;
    fixture.grant_routes().await?;
    fixture.web("web", &[("http", 80)]).await?;
    let own = fixture.own_place("web").await?;
    let tls = json!([{"hosts": ["web.example.com"]}]);
    let rules = json!([rule("web.example.com", "web"), rule("*.example.com", "web")]);
    fixture.ingress("web", json!({"tls": tls, "rules": rules})).await?;
    let flags = ["--ingress", "--ingress-addresses"];
    let bridge = Bridge::start(fixture.command().await?.args(flags)).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_places("web", &[&own]).await?;
    fixture.set_ingress_status("web", json!([{"ip": "192.0.2.70"}])).await?;
    fixture.wait_for_places("web", &["192.0.2.70:443"]).await?;
    fixture.dns()?.wait_for("web.service.consul", A, &["192.0.2.70"]).await?;
    let keys = fixture.consul.api().get("/v1/kv/?keys").await?;
    ensure!(!keys.to_string().contains("192.0.2.70"), "no PTR record of its own: {keys}");
    fixture.set_ingress_status("web", json!([{"hostname": "lb.example.org"}])).await?;
    fixture.wait_for_places("web", &["lb.example.org:443"]).await?;
    fixture.set_ingress_status("web", Value::Null).await?;
    fixture.wait_for_places("web", &[&own]).await?;
    bridge.wait_for_no_problem(&fixture.namespace, "web").await?;
    bridge.stop().await
}

#[tokio::test]
async fn without_the_right_to_ingresses_nothing_is_removed() -> Result<()> {
    let fixture = Fixture::new("no-ingress").await?;
    fixture.grant_routes().await?;
    fixture.web("web", &[("http", 80)]).await?;
    fixture.ingress("web", json!({"rules": [rule("web.example.com", "web")]})).await?;
    let bridge = Bridge::start(fixture.command().await?.arg("--ingress")).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_places("web", &["web.example.com:80"]).await?;
    bridge.stop().await?;

    let (cluster, namespace) = (fixture.kubernetes, fixture.namespace.as_str());
    let limited = cluster.namespace("limited-routes").await?;
    let mut rules = shipped_rules(cluster).await?;
    let kubeconfig = kubeconfig_with(cluster, &limited, &rules).await?;
    let of = |subcommand: &str| {
        kube_consul()
            .args([subcommand, "--ingress", "--namespace", namespace, "--kubeconfig"])
            .arg(&kubeconfig)
            .env("CONSUL_HTTP_ADDR", fixture.consul.url())
    };
    let bridge = Bridge::start(of("bridge")).await?;
    bridge.wait_unready("list and watch ingresses").await?;
    bridge.wait_unready("manifests/optional/ingress-rbac.yaml").await?;
    fixture.wait_for_places("web", &["web.example.com:80"]).await?;
    let checked = says(1, of("check")).await?;
    for part in ["permission list ingresses.networking.k8s.io", "optional/ingress-rbac.yaml"] {
        ensure!(checked.contains(part), "{checked}");
    }

    let granted = json!({"apiGroups": ["networking.k8s.io"], "resources": ["ingresses"],
        "verbs": ["list", "watch"]});
    rules.push(granted);
    let group = "rbac.authorization.k8s.io";
    let role = json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole",
        "metadata": {"name": limited}, "rules": rules});
    cluster.apply_yaml(&role.to_string()).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_places("web", &["web.example.com:80"]).await?;
    bridge.stop().await
}

/// The object of this kind, to be applied.
fn custom(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": format!("{GATEWAY_GROUP}/v1"), "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

async fn install_crds(cluster: &Kubernetes) -> Result<()> {
    for (kind, plural) in CRDS {
        let loose = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
        let schema = json!({"openAPIV3Schema": {"type": "object",
            "properties": {"spec": loose, "status": loose}}});
        let version = json!({"name": "v1", "served": true, "storage": true, "schema": schema,
            "subresources": {"status": {}}});
        let names = json!({"kind": kind, "plural": plural, "singular": kind.to_lowercase()});
        let name = format!("{plural}.{GATEWAY_GROUP}");
        let approved = json!({"api-approved.kubernetes.io": "unapproved, for tests"});
        let crd = json!({"apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "annotations": approved},
            "spec": {"group": GATEWAY_GROUP, "names": names, "scope": "Namespaced",
                     "versions": [version]}});
        cluster.apply_yaml(&crd.to_string()).await?;
        let crd = format!("crd/{name}");
        cluster.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", &crd]).await?;
    }
    Ok(())
}

async fn remove_crds(cluster: &Kubernetes) -> Result<()> {
    for (_, plural) in CRDS {
        let crd = format!("crd/{plural}.{GATEWAY_GROUP}");
        cluster.kubectl(&["delete", "--ignore-not-found", "--timeout=60s", &crd]).await?;
    }
    Ok(())
}

impl Fixture {
    /// What a controller says of an object.
    async fn set_status(&self, kind: &str, name: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        let object = format!("{}/{name}", kind.to_lowercase());
        let what = ["patch", &object, "--subresource=status", "--type=merge", "-p", &patch];
        self.kubernetes.kubectl(&[&["-n", &*self.namespace], &what[..]].concat()).await.map(drop)
    }

    async fn accept(&self, route: &str, accepted: &str) -> Result<()> {
        let condition = json!({"type": "Accepted", "status": accepted});
        let parent = json!({"parentRef": {"name": "gate"}, "controllerName": "tests.example/c",
            "conditions": [condition]});
        self.set_status("HTTPRoute", route, &json!({"parents": [parent]})).await
    }
}

fn gateway(listeners: &[(u16, &str)]) -> Value {
    let listener = |(port, protocol): &(u16, &str)| {
        json!({"name": format!("l{port}"), "port": port, "protocol": protocol,
            "hostname": "*.example.com"})
    };
    let listeners: Vec<Value> = listeners.iter().map(listener).collect();
    json!({"gatewayClassName": "tests", "listeners": listeners})
}

/// The only test with custom resources of the Gateway API, which are the cluster's.
#[tokio::test]
async fn a_gateway_gives_services_the_hosts_of_their_routes() -> Result<()> {
    let fixture = Fixture::new("gateway").await?;
    let (cluster, namespace) = (fixture.kubernetes, fixture.namespace.as_str());
    fixture.grant_routes().await?;
    remove_crds(cluster).await?;
    for name in ["web", "other"] {
        fixture.web(name, &[("http", 80)]).await?;
    }
    let (own, others) = (fixture.own_place("web").await?, fixture.own_place("other").await?);
    let command = fixture.command().await?.arg("--gateway");
    let bridge = Bridge::start(command.clone()).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_places("web", &[&own]).await?;

    // Installed while it runs.
    install_crds(cluster).await?;
    let http = gateway(&[(80, "HTTP")]);
    cluster.apply_yaml(&custom("Gateway", namespace, "gate", &http).to_string()).await?;
    let addresses = json!({"addresses": [{"type": "IPAddress", "value": "192.0.2.75"}]});
    fixture.set_status("Gateway", "gate", &addresses).await?;
    let route = |hosts: &[&str]| {
        let backends = json!([{"name": "web", "port": 80},
            {"name": "other", "port": 80, "namespace": "elsewhere"}]);
        let spec = json!({"parentRefs": [{"name": "gate"}], "hostnames": hosts,
            "rules": [{"backendRefs": backends}]});
        custom("HTTPRoute", namespace, "site", &spec).to_string()
    };
    cluster.apply_yaml(&route(&["web.example.com", "web.example.org"])).await?;
    // What is of another namespace's is told; so the route was read, and nobody has accepted it.
    eventually(DEADLINE, || async {
        let told = bridge.problems_of(namespace, "site").await?;
        let [problem] = told.as_slice() else { anyhow::bail!("{told:?}") };
        let message = problem["message"].as_str().unwrap_or_default();
        ensure!(problem["kind"] == "HTTPRoute" && message.contains("elsewhere/other"), "{problem}");
        Ok(())
    })
    .await?;
    fixture.wait_for_places("web", &[&own]).await?;
    fixture.accept("site", "True").await?;
    fixture.wait_for_places("web", &["web.example.com:80"]).await?;
    fixture.wait_for_places("other", &[&others]).await?;

    let https = gateway(&[(80, "HTTP"), (8443, "HTTPS")]);
    cluster.apply_yaml(&custom("Gateway", namespace, "gate", &https).to_string()).await?;
    fixture.wait_for_places("web", &["web.example.com:8443"]).await?;
    fixture.accept("site", "False").await?;
    fixture.wait_for_places("web", &[&own]).await?;
    fixture.accept("site", "True").await?;
    fixture.wait_for_places("web", &["web.example.com:8443"]).await?;
    bridge.stop().await?;

    let bridge = Bridge::start(command.arg("--ingress-addresses")).await?;
    bridge.wait_ready().await?;
    fixture.wait_for_places("web", &["192.0.2.75:8443"]).await?;
    // With its definition each object goes.
    remove_crds(cluster).await?;
    fixture.wait_for_places("web", &[&own]).await?;
    bridge.wait_ready().await?;
    bridge.stop().await
}
