//! The local cluster itself, on the real programs (`make tools`).

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Endpoints;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ListParams};
use kube_consul_stack::{
    Consul, ConsulCluster, ConsulOptions, Data, Endpoint, KubectlProxy, Kubernetes,
    KubernetesOptions, ServiceKind, eventually,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

/// The ready addresses in a Service's `EndpointSlices`, sorted.
async fn addresses(slices: &Api<EndpointSlice>, service: &str) -> Result<Vec<String>> {
    let of = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut addresses = Vec::new();
    for slice in slices.list(&of).await? {
        for endpoint in slice.endpoints.unwrap_or_default() {
            let conditions = endpoint.conditions.unwrap_or_default();
            if conditions.ready != Some(false) {
                addresses.extend(endpoint.addresses);
            }
        }
    }
    addresses.sort();
    Ok(addresses)
}

async fn wait_addresses(slices: &Api<EndpointSlice>, service: &str, want: usize) -> Result<()> {
    eventually(DEADLINE, || async {
        let found = addresses(slices, service).await?;
        ensure!(found.len() == want, "want {want} addresses, found {found:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_node_sends_heartbeats() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let leases = Api::<Lease>::namespaced(cluster.client()?, "kube-node-lease");
    let renewed = || async {
        let lease = leases.get("node-1").await?;
        lease.spec.and_then(|spec| spec.renew_time).context("it was never renewed")
    };
    let first = eventually(DEADLINE, renewed).await?;
    // Each quarter of its 40 s.
    eventually(DEADLINE, || async {
        let latest = renewed().await?;
        ensure!(latest > first, "renewed at {latest:?} and not since");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_deployment_scales_and_its_services_follow() -> Result<()> {
    let started = Instant::now();
    let cluster = Kubernetes::shared().await?;
    println!("Kubernetes answered after {:?}", started.elapsed());
    let namespace = cluster.namespace("scale").await?;
    cluster.deployment(&namespace, "web", 1).await?;
    let service =
        cluster.service(&namespace, "web", ServiceKind::ClusterIp, &[("http", 80)]).await?;
    let ip = service.spec.unwrap_or_default().cluster_ip.unwrap_or_default();
    ensure!(ip.starts_with("10."), "its ClusterIP is {ip:?}");
    let slices = Api::<EndpointSlice>::namespaced(cluster.client()?, &namespace);
    for replicas in [1, 5, 0, 2] {
        let asked = Instant::now();
        cluster.scale(&namespace, "web", replicas).await?;
        wait_addresses(&slices, "web", replicas as usize).await?;
        println!("{replicas} pods after {:?}", asked.elapsed());
    }
    let pods = Api::<k8s_openapi::api::core::v1::Pod>::namespaced(cluster.client()?, &namespace);
    let pod = pods.list(&ListParams::default().labels("app=web")).await?.items.remove(0);
    let pod = pod.metadata.name.unwrap_or_default();
    cluster.set_pod_ready(&namespace, &pod, false).await?;
    wait_addresses(&slices, "web", 1).await?;
    cluster.set_pod_ready(&namespace, &pod, true).await?;
    wait_addresses(&slices, "web", 2).await
}

#[tokio::test]
async fn a_test_writes_endpoints_itself() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let namespace = cluster.namespace("endpoints").await?;
    cluster.service(&namespace, "db", ServiceKind::HeadlessSelectorless, &[("sql", 5432)]).await?;
    let slices = Api::<EndpointSlice>::namespaced(cluster.client()?, &namespace);
    let both = [Endpoint::ready("10.1.0.1"), Endpoint::unready("10.1.0.2")];
    cluster.endpoint_slice(&namespace, "db", "db-1", &both, &[("sql", 5432)]).await?;
    ensure!(addresses(&slices, "db").await? == ["10.1.0.1"]);
    let other = [Endpoint::ready("10.1.0.2")];
    cluster.endpoint_slice(&namespace, "db", "db-1", &other, &[("sql", 5432)]).await?;
    ensure!(addresses(&slices, "db").await? == ["10.1.0.2"]);
    Ok(())
}

#[tokio::test]
async fn an_api_server_without_endpoint_slices() -> Result<()> {
    let cluster = Kubernetes::start(KubernetesOptions::without_endpoint_slices()).await?;
    let namespace = cluster.namespace("old").await?;
    cluster.deployment(&namespace, "web", 2).await?;
    cluster.service(&namespace, "web", ServiceKind::ClusterIp, &[("http", 80)]).await?;
    let client = cluster.client()?;
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), &namespace);
    let error = slices.list(&ListParams::default()).await.unwrap_err().to_string();
    ensure!(error.contains("404"), "EndpointSlices are there: {error}");
    // The controller still writes Endpoints.
    let endpoints = Api::<Endpoints>::namespaced(client, &namespace);
    eventually(DEADLINE, || async {
        let subsets = endpoints.get("web").await?.subsets.unwrap_or_default();
        let addresses = subsets.into_iter().filter_map(|subset| subset.addresses).flatten();
        ensure!(addresses.count() == 2, "Endpoints lack addresses");
        anyhow::Ok(())
    })
    .await
}

const READER: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: NAMESPACE}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: reader, namespace: NAMESPACE}
rules: [{apiGroups: [''], resources: [services], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: reader, namespace: NAMESPACE}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: NAMESPACE}]
";

#[tokio::test]
async fn a_proxy_has_the_rights_of_its_service_account() -> Result<()> {
    let cluster = Kubernetes::shared().await?;
    let namespace = cluster.namespace("rights").await?;
    cluster.apply_yaml(&READER.replace("NAMESPACE", &namespace)).await?;
    let token = cluster.service_account_token(&namespace, "reader").await?;
    let proxy = KubectlProxy::start(&cluster.kubeconfig_for(&token)?).await?;
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let status = |resource: &str| {
        let url = format!("{}/api/v1/namespaces/{namespace}/{resource}", proxy.url());
        let request = client.get(url);
        async move { request.send().await.map(|answer| answer.status().as_u16()) }
    };
    eventually(DEADLINE, || async {
        let status = status("services").await?;
        ensure!(status == 200, "listing Services is answered {status}");
        Ok(())
    })
    .await?;
    ensure!(status("secrets").await? == 403);
    Ok(())
}

async fn register(consul: &Consul, name: &str) -> Result<()> {
    let service = json!({"Name": name, "Address": "10.2.3.4", "Port": 80});
    consul.api().put("/v1/agent/service/register", &service).await?;
    Ok(())
}

async fn wait_service(consul: &Consul, name: &str, instances: usize) -> Result<()> {
    let path = format!("/v1/catalog/service/{name}");
    eventually(DEADLINE, || async {
        let found = consul.api().get(&path).await?;
        let count = found.as_array().map_or(0, Vec::len);
        ensure!(count == instances, "want {instances} of {name}, found {found}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn one_agent_answers_and_restarts_empty() -> Result<()> {
    let started = Instant::now();
    let mut consul = Consul::start(ConsulOptions::dev()).await?;
    println!("one agent answered after {:?}", started.elapsed());
    register(&consul, "web").await?;
    wait_service(&consul, "web", 1).await?;
    consul.restart(Data::Kept).await?;
    consul.wait_ready().await?;
    wait_service(&consul, "web", 0).await
}

#[tokio::test]
async fn an_agent_with_data_keeps_it_unless_told_otherwise() -> Result<()> {
    let mut consul = Consul::start(ConsulOptions::server()).await?;
    register(&consul, "web").await?;
    wait_service(&consul, "web", 1).await?;
    consul.kill().await?;
    consul.restart(Data::Kept).await?;
    consul.wait_ready().await?;
    wait_service(&consul, "web", 1).await?;
    consul.stop().await?;
    consul.restart(Data::Lost).await?;
    consul.wait_ready().await?;
    wait_service(&consul, "web", 0).await
}

#[tokio::test]
async fn acl_and_tls() -> Result<()> {
    let management = "6a1253d2-1785-24fd-91c2-f8e78c745511";
    let authority = kube_consul_stack::Authority::new("tests")?;
    let options = ConsulOptions::dev().acl(management).tls(&authority, false)?;
    let consul = Consul::start(options).await?;
    ensure!(consul.url().starts_with("https://"));
    consul.api().put_text("/v1/kv/a", "b").await?;
    ensure!(consul.api().key("a").await?.as_deref() == Some("b"));
    let stranger = consul.api().with_token(None);
    ensure!(stranger.put_text("/v1/kv/a", "c").await.is_err());
    Ok(())
}

#[tokio::test]
async fn three_servers_elect_another_leader_and_a_client_follows() -> Result<()> {
    let started = Instant::now();
    let mut cluster = ConsulCluster::start().await?;
    println!("three servers answered after {:?}", started.elapsed());
    let mut client = Consul::start(ConsulOptions::client(&cluster.servers)).await?;
    println!("and a client after {:?}", started.elapsed());
    register(&client, "web").await?;
    wait_service(&client, "web", 1).await?;
    let leader = cluster.leader().await?;
    cluster.servers[leader].kill().await?;
    let killed = Instant::now();
    eventually(DEADLINE, || async {
        let next = cluster.leader().await?;
        ensure!(next != leader, "server {leader} is still said to lead");
        anyhow::Ok(())
    })
    .await?;
    println!("another leader after {:?}", killed.elapsed());
    wait_service(&client, "web", 1).await?;
    cluster.servers[leader].restart(Data::Kept).await?;
    cluster.servers[leader].wait_ready().await?;

    let restarted = Instant::now();
    client.restart(Data::Lost).await?;
    client.wait_ready().await?;
    wait_service(&client, "web", 0).await?;
    println!("an empty client lost its service after {:?}", restarted.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_paused_agent_does_not_answer() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev()).await?;
    consul.pause().await;
    let answer =
        tokio::time::timeout(Duration::from_millis(300), consul.api().get("/v1/status/leader"));
    ensure!(answer.await.is_err(), "a paused agent answered");
    consul.resume().await;
    let leader = consul.api().get("/v1/status/leader").await?;
    ensure!(leader != Value::Null && leader != "", "leader: {leader}");
    Ok(())
}
