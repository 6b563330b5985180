//! Cluster DNS in front of the servers: a real `CoreDNS` with the block of docs/consul/dns.md.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hickory_resolver::proto::rr::RecordType;
use kube_consul_stack::documentation::blocks;
use kube_consul_stack::{Program, ProgramOptions, data_folder, program_path};
use serde_json::json;

use super::scenarios;
use super::support::{START_DEADLINE, Servers, object, rendered, shared_secrets};
use crate::support::Dns;

/// A port that needs no rights.
const DNS: u16 = 1053;
/// As the page has it (`cache 5`), and a look more.
const CACHED: Duration = Duration::from_secs(8);

/// What the cluster's own DNS answers, and what it asks others for.
const OWN: &str = "
.:1053 {
    bind @CLUSTER@
    errors
    loop
    cache 30
    forward . @OUTSIDE@:1053
}
.:1053 {
    bind @OUTSIDE@
    log
    hosts {
        192.0.2.80 example.test
        192.0.2.81 pod.cluster.test
    }
    template ANY ANY {
        match ^(none|7)[.]
        rcode NXDOMAIN
        fallthrough
    }
}
";

#[tokio::test]
async fn s14_a_real_coredns_forwards_consuls_names_alone_and_in_no_circle() -> Result<()> {
    scenarios::run("dns").await
}

/// The Corefile: what the page adds, and what is there before, on the test's addresses.
async fn corefile(servers: &Servers, server: SocketAddr) -> Result<String> {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/consul/dns.md"))?;
    let blocks = blocks(&page)?;
    let zone = |it: &&String| it.starts_with("consul:53 {");
    let block = blocks.iter().find(|it| it.lines.iter().any(|line| zone(&line)));
    let block = block.context("the page has no block for CoreDNS")?.lines.join("\n");
    let service = rendered("consul-dns").await?;
    let service = object(&service, "Service", "consul-dns")?["spec"].clone();
    let address = service["clusterIP"].as_str().context("no fixed address")?;
    let forward = format!("forward . {address}\n");
    ensure!(block.contains(&forward), "another address than {address}: {block}");
    let block = block
        .replace("consul:53 {", &format!("consul:{DNS} {{\n    bind @CLUSTER@"))
        .replace(&forward, &format!("forward . {server}\n"));
    let cluster = servers.network.address(250).to_string();
    let outside = servers.network.address(251).to_string();
    Ok(format!("{block}\n{OWN}").replace("@CLUSTER@", &cluster).replace("@OUTSIDE@", &outside))
}

pub async fn forwarded() -> Result<()> {
    let mut servers = Servers::new("consul-servers-single", shared_secrets().await?).await?;
    servers.boot(0).await?;
    servers.run_acl_job().await?;
    servers.wait_started(0, START_DEADLINE).await?;
    let server = SocketAddr::from((servers.member(0)?.pod.address(), 8600));

    let file = data_folder("coredns")?.join("Corefile");
    fs::write(&file, corefile(&servers, server).await?)?;
    let options = ProgramOptions::new(program_path("coredns")?).arg("-conf").arg(&file);
    let program = Program::start("coredns", options).await?;
    let cluster = Dns::new((servers.network.address(250), DNS).into())?;
    program
        .wait_for_line("that it serves", START_DEADLINE, |line| line.starts_with("CoreDNS-"))
        .await?;

    // Consul's names, by the one address that pods have.
    let at = server.ip().to_string();
    cluster.wait_for("consul.service.consul", RecordType::A, &[&at]).await?;
    let api = servers.api(0)?;
    let web = json!({"Node": "machine", "Address": "192.0.2.1",
        "Service": {"Service": "web", "Address": "192.0.2.7", "Port": 8080}});
    api.put("/v1/catalog/register", &web).await?;
    cluster.wait_for("web.service.consul", RecordType::A, &["192.0.2.7"]).await?;
    let srv = cluster.ask("_web._tcp.service.consul", RecordType::SRV).await?;
    ensure!(srv == ["port 8080 weight 1"], "{srv:?}");

    // All others, and addresses, are the cluster's.
    let other = cluster.ask("example.test", RecordType::A).await?;
    ensure!(other == ["192.0.2.80"], "{other:?}");
    let address = cluster.ask("81.2.0.192.in-addr.arpa", RecordType::PTR).await?;
    ensure!(format!("{address:?}").contains("pod.cluster.test"), "{address:?}");

    // A name that Consul does not have ends there, and one that nobody has ends outside.
    for name in ["none.service.consul", "none.test", "7.2.0.192.in-addr.arpa"] {
        let began = Instant::now();
        let found = cluster.ask(name, RecordType::A).await?;
        ensure!(found.is_empty() && began.elapsed() < Duration::from_secs(2), "{name}: {found:?}");
    }
    let asked_outside = program.stdout();
    ensure!(asked_outside.contains("example.test."), "nothing is logged: {asked_outside}");
    ensure!(!asked_outside.contains("consul. udp"), "a name of Consul's: {asked_outside}");

    // What is gone is answered as long as the page says, and no longer.
    api.put("/v1/catalog/deregister", &json!({"Node": "machine"})).await?;
    let began = Instant::now();
    cluster.wait_for("web.service.consul", RecordType::A, &[]).await?;
    ensure!(began.elapsed() < CACHED, "answered for {:?} more", began.elapsed());

    // The server is away: its names fail, the others do not.
    servers.lose(0).await?;
    ensure!(cluster.ask("fresh.service.consul", RecordType::A).await.is_err(), "who answers?");
    ensure!(cluster.ask("example.test", RecordType::A).await? == ["192.0.2.80"], "it is lost");
    ensure!(program.exit_status().is_none(), "it has found a loop: {}", program.stderr());
    Ok(())
}
