//! Whoever reaches the daemon's port may do what it wants: others are served meanwhile, and what it held
//! is free again.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures::stream::{self, StreamExt as _};
use kube_consul::domain::sidecar::{Caller, SyncError, SyncKind};
use kube_consul::grpc::address::Address;
use kube_consul::grpc::client::Client;
use kube_consul_stack::{Port, eventually};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};

use super::support::{Site, WISH};
use crate::support::{Bridge, DEADLINE};

/// From where the flood comes; sidecars come from another address.
const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// Connections that are tried: more than one address may have.
const CONNECTIONS: usize = 400;
/// The most that one address may have.
const MAX_BY_ADDRESS: usize = 256;
/// The most that the metrics have.
const MAX_HTTP: usize = 48;
/// What an HTTP/2 client says first, with settings that are empty.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

/// A connection that has said what it speaks, unless the daemon closed it.
async fn connect(daemon: SocketAddr, first: &[u8]) -> Option<TcpStream> {
    let socket = TcpSocket::new_v4().ok()?;
    socket.bind(SocketAddr::from((ATTACKER, 0))).ok()?;
    let mut stream = socket.connect(daemon).await.ok()?;
    stream.write_all(first).await.ok()?;
    Some(stream)
}

/// Whether the daemon has it open still, whatever it said.
async fn is_open(stream: &mut TcpStream) -> bool {
    let mut bytes = [0; 512];
    loop {
        match timeout(Duration::from_millis(1), stream.read(&mut bytes)).await {
            Err(_) => return true,
            Ok(Ok(0) | Err(_)) => return false,
            Ok(Ok(_)) => {}
        }
    }
}

async fn open(streams: &mut [TcpStream]) -> usize {
    let mut count = 0;
    for stream in streams {
        count += usize::from(is_open(stream).await);
    }
    count
}

fn files(pid: i32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

fn resident(pid: i32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("its memory")?;
    Ok(line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
}

/// A call is answered well, as its sidecar's would be: it asks again where it is refused.
async fn registers(client: &Client, caller: &Caller) -> Result<()> {
    eventually(DEADLINE, || async {
        let answer = client.call(SyncKind::Register, caller, Duration::from_secs(10)).await;
        ensure!(answer.is_ok(), "{}: {answer:?}", caller.pod);
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_flood_keeps_no_sidecar_out_and_leaves_nothing_behind() -> Result<()> {
    let site = Site::new("node-flood").await?;
    for name in ["web-0", "web-1"] {
        let annotations =
            json!({format!("{WISH}/service-names"): "web", format!("{WISH}/sidecar"): "sync"});
        site.object(json!({"metadata": {"name": name, "annotations": annotations},
            "spec": {"containers": [{"name": "app", "ports": [{"containerPort": 80}]}, {"name": "sync"}]}}))
            .await?;
        site.ip(name).await?;
    }
    let port = Port::pick()?;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port.number()));
    let metrics = Port::pick()?;
    let metrics = SocketAddr::from((Ipv4Addr::LOCALHOST, metrics.number()));
    let command = site.command().arg(format!("--bind-address={address}"));
    let command = command.arg(format!("--metrics-bind-address={metrics}"));
    let daemon = Bridge::start(command).await?;
    daemon.wait_ready().await?;
    let client = Client::new(&address.to_string().parse::<Address>()?)?;
    let web = |number: usize| Caller::new(&site.namespace, &format!("web-{number}"), "sync");
    let (before, pid) = (files(daemon.program.pid())?, daemon.program.pid());
    println!("before: {before} files, {}", resident(pid)?);

    // Connections that say a word and nothing more: so many are held, the rest is closed.
    let mut held = Vec::new();
    for number in 0..CONNECTIONS {
        let first = if number % 2 == 0 { PREFACE } else { &PREFACE[..10] };
        held.extend(connect(address, first).await);
    }
    eventually(DEADLINE, || async {
        let count = files(pid)?.saturating_sub(before);
        ensure!(count <= MAX_BY_ADDRESS + 8, "{count} connections of one address");
        let ready = daemon.metric("kube_consul_ready").await?;
        ensure!(ready.is_some_and(|it| it > 0.5), "it is not ready: {ready:?}");
        Ok(())
    })
    .await?;
    println!("flooded: {} files, {}", files(pid)?, resident(pid)?);
    registers(&client, &web(0)).await?;

    // Half a request to the metrics, so many times.
    let flooded = files(pid)?;
    let mut halves = Vec::new();
    for _ in 0..CONNECTIONS {
        halves.extend(connect(metrics, b"GET / HTTP/1.1\r\n").await);
    }
    let scraper = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    eventually(DEADLINE, || async {
        let answer = scraper.get(format!("http://{metrics}/")).send().await?;
        ensure!(answer.status() == 200, "{}", answer.status());
        let count = files(pid)?.saturating_sub(flooded);
        ensure!(count <= MAX_HTTP + 8, "{count} connections to the metrics");
        Ok(())
    })
    .await?;
    drop(halves);

    // Calls in one pod's name, while the catalog cannot be read: a few wait, the others are refused.
    site.server.program().pause().await;
    let calls = stream::iter(0..300)
        .map(|_| async { client.call(SyncKind::Register, &web(0), Duration::from_secs(5)).await });
    let answers: Vec<_> = calls.buffer_unordered(64).collect().await;
    let refused = answers.iter().filter(|it| matches!(it, Err(SyncError::Exhausted(_)))).count();
    println!("{refused} of 300 calls in one pod's name were refused; {}", resident(pid)?);
    ensure!(daemon.program.exit_status().is_none(), "{}", daemon.program.stderr());
    site.server.program().resume().await;
    registers(&client, &web(1)).await?;
    site.wait_for("web", &["web-0:80 passing", "web-1:80 passing"]).await?;

    // Those that go are forgotten, and those that keep silent are closed.
    held.truncate(CONNECTIONS / 2);
    let mut count = usize::MAX;
    for _ in 0..120 {
        count = open(&mut held).await;
        if count == 0 {
            break;
        }
        sleep(Duration::from_secs(1)).await;
    }
    ensure!(count == 0, "{count} connections that never answer are open");
    eventually(DEADLINE, || async {
        let left = files(pid)?.saturating_sub(before);
        ensure!(left <= 8, "{left} files are left open");
        Ok(())
    })
    .await?;
    println!("after: {} files, {}", files(pid)?, resident(pid)?);
    ensure!(client.call(SyncKind::Deregister, &web(1), DEADLINE).await.is_ok(), "it is not served");
    site.wait_for("web", &["web-0:80 passing", "web-1:80 critical"]).await?;
    daemon.stop().await
}
