//! The links between the programs, on loopback.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_consul_stack::{Consul, ConsulOptions, Fault, HttpRecorder, Recorded, TcpLink};
use reqwest::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SHORT: Duration = Duration::from_millis(200);

/// A server that sends back what it gets.
async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.into_split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    Ok(address)
}

async fn answers(stream: &mut TcpStream) -> bool {
    let mut answer = [0; 4];
    stream.write_all(b"ping").await.is_ok()
        && timeout(SHORT, stream.read_exact(&mut answer)).await.is_ok_and(|read| read.is_ok())
}

#[tokio::test]
async fn a_link_is_cut_and_restored() -> Result<()> {
    let link = TcpLink::start(echo().await?).await?;
    let mut stream = TcpStream::connect(link.address()).await?;
    ensure!(answers(&mut stream).await, "an open link does not forward");
    link.cut().await?;
    let read = timeout(SHORT, stream.read_u8()).await?;
    ensure!(read.is_err(), "a cut link leaves its connection open");
    ensure!(TcpStream::connect(link.address()).await.is_err(), "a cut link accepts");
    link.restore().await?;
    let mut stream = TcpStream::connect(link.address()).await?;
    ensure!(answers(&mut stream).await, "a restored link does not forward");
    Ok(())
}

#[tokio::test]
async fn a_black_hole_keeps_connections() -> Result<()> {
    let link = TcpLink::start(echo().await?).await?;
    let mut old = TcpStream::connect(link.address()).await?;
    ensure!(answers(&mut old).await);
    link.blackhole().await?;
    let mut new = TcpStream::connect(link.address()).await?;
    ensure!(!answers(&mut old).await, "a black hole forwards an old connection");
    ensure!(!answers(&mut new).await, "a black hole forwards a new connection");
    link.restore().await?;
    // The answers to what was sent meanwhile come first.
    let mut answer = [0; 4];
    timeout(SHORT, old.read_exact(&mut answer)).await??;
    timeout(SHORT, new.read_exact(&mut answer)).await??;
    Ok(())
}

#[tokio::test]
async fn a_recorder_counts_writes_and_streams_reads() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev()).await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let api = kube_consul_stack::ConsulApi::new(&recorder.url(), Some("secret"), None)?;
    api.put_text("/v1/kv/a?flags=7", "one").await?;
    api.put("/v1/txn", &json!([{"KV": {"Verb": "get", "Key": "a"}}])).await?;
    ensure!(api.key("a").await?.as_deref() == Some("one"));
    ensure!(recorder.requests().len() == 3);
    let writes = recorder.writes();
    ensure!(writes.len() == 1, "a read counts as a write: {writes:?}");
    ensure!(writes[0].path == "/v1/kv/a?flags=7" && &writes[0].body[..] == b"one");
    ensure!(writes[0].status == Some(StatusCode::OK));
    ensure!(writes[0].headers["x-consul-token"] == "secret");
    recorder.clear();
    let set = json!([{"KV": {"Verb": "set", "Key": "a", "Value": "dHdv"}}]);
    api.put("/v1/txn", &set).await?;
    ensure!(recorder.writes().len() == 1, "a transaction that sets is no write");

    // A blocking query is answered when the key changes, not before.
    let index = api.get("/v1/kv/a").await?[0]["ModifyIndex"].clone();
    let path = format!("/v1/kv/a?wait=10s&index={index}");
    let change = async {
        tokio::time::sleep(SHORT).await;
        consul.api().put_text("/v1/kv/a", "three").await
    };
    let asked = Instant::now();
    let (read, _) = tokio::try_join!(api.get(&path), change)?;
    ensure!(read[0]["Value"] == "dGhyZWU=" && asked.elapsed() >= SHORT, "{read}");
    Ok(())
}

#[tokio::test]
async fn a_recorder_spoils_requests() -> Result<()> {
    let consul = Consul::start(ConsulOptions::dev()).await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let api = kube_consul_stack::ConsulApi::new(&recorder.url(), None, None)?;

    let refusal = Fault::Answer(StatusCode::INTERNAL_SERVER_ERROR, "No cluster leader".into());
    recorder.fault_times(1, refusal, |request| request.path.starts_with("/v1/kv/a"));
    let error = format!("{:#}", api.put_text("/v1/kv/a", "1").await.unwrap_err());
    ensure!(error.contains("500") && error.contains("No cluster leader"), "{error}");
    api.put_text("/v1/kv/a", "2").await?;

    recorder.fault(Fault::DropBefore, Recorded::is_write);
    ensure!(api.put_text("/v1/kv/b", "1").await.is_err());
    ensure!(api.key("b").await?.is_none(), "a request that was dropped arrived");
    recorder.mend();

    recorder.fault_times(1, Fault::DropAfter, Recorded::is_write);
    ensure!(api.put_text("/v1/kv/c", "1").await.is_err());
    ensure!(api.key("c").await?.is_some(), "a request whose answer was dropped is lost");

    recorder.fault_times(1, Fault::Delay(SHORT), |_| true);
    let asked = Instant::now();
    api.key("c").await?;
    ensure!(asked.elapsed() >= SHORT, "a delayed request was not");
    Ok(())
}

#[tokio::test]
async fn a_recorder_before_nothing_answers_nothing() -> Result<()> {
    let mut consul = Consul::start(ConsulOptions::dev()).await?;
    let recorder = HttpRecorder::start(consul.url()).await?;
    let api = kube_consul_stack::ConsulApi::new(&recorder.url(), None, None)?;
    consul.kill().await?;
    ensure!(api.key("a").await.is_err(), "a recorder before a dead agent answers");
    consul.restart(kube_consul_stack::Data::Lost).await?;
    consul.wait_ready().await?;
    ensure!(api.key("a").await?.is_none());
    Ok(())
}
