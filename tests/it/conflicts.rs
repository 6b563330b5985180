//! Names that several Services want, and names that others hold.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType::A;
use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use kube_consul_stack::{Endpoint, ServiceKind};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::support::{Bridge, DEADLINE, Fixture};

const NAME: &str = "kube-consul.io/service-name";

/// A reader that polls who has a name.
struct Reader<'a> {
    fixture: &'a Fixture,
    name: &'a str,
    /// Each change of what it saw.
    seen: watch::Sender<Vec<Vec<String>>>,
}

impl Reader<'_> {
    /// Polls without end.
    async fn poll(&self) -> Result<()> {
        loop {
            let instances = self.fixture.instances(self.name).await?;
            let owner = |it: &Value| {
                let meta = &it["Service"]["Meta"];
                meta["external-k8s-service"].as_str().unwrap_or_default().to_owned()
            };
            let mut owners: Vec<String> = instances.iter().map(owner).collect();
            owners.sort();
            self.seen.send_if_modified(|seen| {
                let changed = seen.last() != Some(&owners);
                if changed {
                    seen.push(owners);
                }
                changed
            });
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until it has seen that a Service alone has the name.
    async fn wait_for(&self, owner: &str) -> Result<()> {
        let mut seen = self.seen.subscribe();
        let its = seen.wait_for(|seen| seen.last().is_some_and(|last| *last == [owner]));
        tokio::time::timeout(DEADLINE, its)
            .await
            .with_context(|| format!("{owner} not seen"))??;
        Ok(())
    }
}

#[tokio::test]
async fn a_name_changes_hands_with_its_first_claimant_and_stays_there() -> Result<()> {
    let fixture = Fixture::new("conflict").await?;
    let bridge = fixture.bridge().await?;
    let (namespace, dns) = (fixture.namespace.as_str(), fixture.dns()?);
    let reader = Reader { fixture: &fixture, name: "api", seen: watch::Sender::default() };
    let script = async {
        // The one that asks by annotation comes first and has the name until its owner comes.
        fixture.web("late", &[("http", 80)]).await?;
        fixture.annotate("late", json!({NAME: "api"})).await?;
        let late = fixture.cluster_ip("late").await?;
        reader.wait_for("late").await?;
        for _ in 0..3 {
            fixture.web("api", &[("http", 80)]).await?;
            let address = fixture.cluster_ip("api").await?;
            reader.wait_for("api").await?;
            dns.wait_for("api.service.consul", A, &[&address]).await?;
            let told = bridge.wait_for_problem(namespace, "late", "NameConflict").await?;
            ensure!(told.contains(&format!("{namespace}/api")), "{told}");
            fixture.delete("api").await?;
            reader.wait_for("late").await?;
            dns.wait_for("api.service.consul", A, &[&late]).await?;
            bridge.wait_for_no_problem(namespace, "late").await?;
        }
        Ok(())
    };
    tokio::select! {
        outcome = reader.poll() => outcome?,
        outcome = script => outcome?,
    }
    // Between two holders both may be seen for a moment, or none. Whoever has got it keeps it.
    let seen = reader.seen.borrow().clone();
    let mut holders: Vec<&str> = Vec::new();
    for owners in seen.iter().filter(|owners| owners.len() == 1) {
        if holders.last() != Some(&owners[0].as_str()) {
            holders.push(&owners[0]);
        }
    }
    ensure!(holders == ["late", "api", "late", "api", "late", "api", "late"], "{seen:?}");
    ensure!(bridge.status().await?["problems"] == json!([]));
    Ok(())
}

/// A Service `api` in a namespace; gives its address and what decides who is first.
async fn api_in(fixture: &Fixture, namespace: &str) -> Result<(String, (i64, String))> {
    let ports = [("http", 80)];
    let endpoints = [Endpoint::ready("10.1.0.1")];
    fixture.kubernetes.endpoint_slice(namespace, "api", "api-1", &endpoints, &ports).await?;
    fixture.kubernetes.service(namespace, "api", ServiceKind::Selectorless, &ports).await?;
    let made =
        Api::<Service>::namespaced(fixture.kubernetes.client()?, namespace).get("api").await?;
    let address = made.spec.and_then(|spec| spec.cluster_ip).context("no ClusterIP")?;
    let created = made.metadata.creation_timestamp.context("no time")?.0.as_second();
    Ok((address, (created, namespace.to_owned())))
}

#[tokio::test]
async fn a1_a_service_that_registers_nothing_takes_no_name_from_another() -> Result<()> {
    for sink in ["--sink=agent", "--sink=catalog"] {
        keeps_its_name(sink).await?;
    }
    Ok(())
}

async fn keeps_its_name(sink: &str) -> Result<()> {
    let fixture = Fixture::new("claim").await?;
    fixture.web("payments", &[("http", 80)]).await?;
    fixture.annotate("payments", json!({NAME: "pay"})).await?;
    let bridge = Bridge::start(fixture.command().await?.arg(sink)).await?;
    bridge.wait_ready().await?;
    let reader = Reader { fixture: &fixture, name: "pay", seen: watch::Sender::default() };
    let dns = fixture.dns()?;
    let address = fixture.cluster_ip("payments").await?;
    let script = async {
        reader.wait_for("payments").await?;
        // Its own name comes first, and there is nothing to register.
        let headless = json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]});
        fixture.objects()?.create_service("pay", headless).await?;
        let told = bridge.wait_for_problem(&fixture.namespace, "payments", "NameConflict").await?;
        ensure!(told.contains(&format!("Service {}/pay comes first", fixture.namespace)), "{told}");
        // Nobody gets it behind that one.
        fixture.web("next", &[("http", 80)]).await?;
        fixture.wait_for_instances("next", 1).await?;
        fixture.annotate("next", json!({NAME: "pay"})).await?;
        bridge.wait_for_problem(&fixture.namespace, "next", "NameConflict").await?;
        ensure!(dns.ask("pay.service.consul", A).await? == [address.as_str()]);
        reader.wait_for("payments").await?;
        // As soon as it has something it has the name.
        fixture.endpoints("pay", &[Endpoint::ready("10.1.0.7")], &[("http", 80)]).await?;
        reader.wait_for("pay").await?;
        dns.wait_for("pay.service.consul", A, &["10.1.0.7"]).await
    };
    tokio::select! {
        outcome = reader.poll() => outcome?,
        outcome = script => outcome?,
    }
    let seen = reader.seen.borrow().clone();
    let first = seen.iter().position(|owners| !owners.is_empty()).context("nothing seen")?;
    ensure!(seen[first..].iter().all(|owners| !owners.is_empty()), "{sink}: {seen:?}");
    let is_next = |owners: &Vec<String>| owners.iter().any(|owner| owner == "next");
    ensure!(!seen.iter().any(is_next), "{sink}: {seen:?}");
    bridge.stop().await
}

#[tokio::test]
async fn a2_a_trusted_namespace_comes_first() -> Result<()> {
    let fixture = Fixture::new("trusted").await?;
    let other = fixture.kubernetes.namespace("trusted").await?;
    let command = fixture.command().await?.args(["--namespace", &other]);
    let command = command.args(["--trusted-namespace", &fixture.namespace]);
    let bridge = Bridge::start(command).await?;
    bridge.wait_ready().await?;
    let dns = fixture.dns()?;
    // The older one, whose own name it is.
    let (address, _) = api_in(&fixture, &other).await?;
    dns.wait_for("api.service.consul", A, &[&address]).await?;
    fixture.web("gateway", &[("http", 80)]).await?;
    fixture.annotate("gateway", json!({NAME: "api"})).await?;
    let trusted = fixture.cluster_ip("gateway").await?;
    dns.wait_for("api.service.consul", A, &[&trusted]).await?;
    let told = bridge.wait_for_problem(&other, "api", "NameConflict").await?;
    ensure!(told.contains(&format!("{}/gateway", fixture.namespace)), "{told}");
    // Restarted, too.
    bridge.stop().await?;
    let command = fixture.command().await?.args(["--namespace", &other]);
    let bridge = Bridge::start(command.args(["--trusted-namespace", &fixture.namespace])).await?;
    bridge.wait_ready().await?;
    bridge.wait_for_problem(&other, "api", "NameConflict").await?;
    dns.wait_for("api.service.consul", A, &[&trusted]).await
}

#[tokio::test]
async fn each_policy_decides_the_same_in_whatever_order_services_come() -> Result<()> {
    let fixture = Fixture::new("policy").await?;
    let other = fixture.kubernetes.namespace("policy").await?;
    let start = async |policy: &str| {
        let policy = format!("--on-conflict={policy}");
        let command = fixture.command().await?.args(["--namespace", &other]).arg(policy);
        let bridge = Bridge::start(command).await?;
        bridge.wait_ready().await?;
        anyhow::Ok(bridge)
    };
    let bridge = start("first").await?;
    let ours = api_in(&fixture, &fixture.namespace).await?;
    let theirs = api_in(&fixture, &other).await?;
    let (mine, its) = ((fixture.namespace.as_str(), ours), (other.as_str(), theirs));
    let (first, second) = if mine.1.1 < its.1.1 { (mine, its) } else { (its, mine) };
    let ((holder, (one, _)), (loser, (two, _))) = (first, second);
    let dns = fixture.dns()?;
    let api = "api.service.consul";
    let suffixed = format!("api-{loser}.service.consul");
    let both = if one < two { [one.as_str(), &two] } else { [two.as_str(), &one] };
    let mut running = Some(bridge);
    // Each one that starts finds both listed by name, not by age.
    for policy in ["first", "suffix", "merge", "first"] {
        let bridge = match running.take() {
            Some(bridge) => bridge,
            None => start(policy).await?,
        };
        match policy {
            "merge" => dns.wait_for(api, A, &both).await?,
            _ => dns.wait_for(api, A, &[&one]).await?,
        }
        let of_loser = if policy == "merge" { vec![two.as_str()] } else { vec![] };
        dns.wait_for(&format!("{holder}.{api}"), A, &[&one]).await?;
        dns.wait_for(&format!("{loser}.{api}"), A, &of_loser).await?;
        let of_suffix = if policy == "suffix" { vec![two.as_str()] } else { vec![] };
        dns.wait_for(&suffixed, A, &of_suffix).await?;
        if policy == "first" {
            let told = bridge.wait_for_problem(loser, "api", "NameConflict").await?;
            ensure!(told.contains(&format!("{holder}/api")), "{told}");
        } else {
            bridge.wait_for_no_problem(loser, "api").await?;
        }
        bridge.wait_for_no_problem(holder, "api").await?;
        bridge.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_name_that_others_hold_is_not_joined_unasked() -> Result<()> {
    let fixture = Fixture::new("postgres").await?;
    let machine = json!({"Name": "postgres", "ID": "machine", "Address": "192.0.2.7", "Port": 1});
    fixture.consul.api().put("/v1/agent/service/register", &machine).await?;
    fixture.wait_for_instances("postgres", 1).await?;
    fixture.web("postgres", &[("sql", 5432)]).await?;
    let bridge = Bridge::start(fixture.command().await?.arg("--resync=1s")).await?;
    bridge.wait_ready().await?;
    let namespace = fixture.namespace.as_str();
    let told = bridge.wait_for_problem(namespace, "postgres", "ForeignName").await?;
    ensure!(told.contains("\"postgres\"") && told.contains("kube-consul.io/join"), "{told}");
    let (dns, postgres) = (fixture.dns()?, "postgres.service.consul");
    ensure!(dns.ask(postgres, A).await? == ["192.0.2.7"]);
    fixture.annotate("postgres", json!({"kube-consul.io/join": "true"})).await?;
    fixture.wait_for_instances("postgres", 2).await?;
    bridge.wait_for_no_problem(namespace, "postgres").await?;
    fixture.delete("postgres").await?;
    dns.wait_for(postgres, A, &["192.0.2.7"]).await?;
    // It was not even touched.
    let left = fixture.consul.api().get("/v1/agent/service/machine").await?;
    ensure!(left["Port"] == 1 && left["Meta"] == json!({}), "{left}");
    // One that comes after ours is told, and ours stays.
    fixture.web("redis", &[("http", 80)]).await?;
    fixture.wait_for_instances("redis", 1).await?;
    let machine = json!({"Name": "redis", "ID": "second", "Address": "192.0.2.8", "Port": 1});
    fixture.consul.api().put("/v1/agent/service/register", &machine).await?;
    bridge.wait_for_problem(namespace, "redis", "ForeignName").await?;
    fixture.wait_for_instances("redis", 2).await
}
