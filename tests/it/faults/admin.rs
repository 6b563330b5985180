//! What clients of the admin server may do to the bridge.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::{numbered, oversized::memory};
use crate::support::{Bridge, Fixture};

/// How soon a bridge with nothing in flight has ended: the admin server's last answers have a
/// second.
const END: Duration = Duration::from_secs(3);

/// How long a probe may take on a machine with other things to do; a kubelet's default is a second.
const PROBE: Duration = Duration::from_secs(2);

/// What half requests and slow readers may cost.
const COST: u64 = 10 << 20;

/// A client that has sent this and does nothing more.
async fn client(bridge: &Bridge, text: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(bridge.admin_address()).await?;
    stream.write_all(text.as_bytes()).await?;
    Ok(stream)
}

/// A probe on a connection of its own, as the kubelet's are.
async fn alive(bridge: &Bridge) -> Result<()> {
    let began = Instant::now();
    let ask = "GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let mut stream = client(bridge, ask).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let took = began.elapsed();
    ensure!(answer.starts_with("HTTP/1.1 200") && took < PROBE, "{answer} after {took:?}");
    Ok(())
}

#[tokio::test]
async fn l9_half_a_request_does_not_keep_the_bridge_from_ending() -> Result<()> {
    let fixture = Fixture::new("half").await?;
    let bridge = fixture.bridge().await?;
    let _half = client(&bridge, "GET /status HTTP/1.1\r\nHost").await?;
    let began = Instant::now();
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, END).await?;
    println!("ended {:?} after SIGTERM", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn l9_half_requests_and_slow_readers_cost_little_and_livez_waits_for_none() -> Result<()> {
    let fixture = Fixture::new("slow").await?;
    fixture.create(numbered("svc", 0..12)).await?;
    // A page of the status is long: many instances, each with an ID, more than one page may have.
    for (third, name) in numbered("svc", 0..12).iter().enumerate() {
        let addresses: Vec<String> = (1..=200).map(|n| format!("10.9.{third}.{n}")).collect();
        fixture.patch(name, &json!({"spec": {"externalIPs": addresses}})).await?;
        fixture.annotate(name, json!({"kube-consul.io/address": "external-ip"})).await?;
    }
    let bridge = Bridge::start(fixture.command().await?.args(["--sink", "catalog"])).await?;
    bridge.wait_ready().await?;
    let (_, page) = bridge.get("/status").await?;
    println!("a page of the status has {} bytes", page.len());
    ensure!((200 << 10..2 << 20).contains(&page.len()), "{} bytes", page.len());
    let page: Value = serde_json::from_str(&page)?;
    ensure!(page["next"].is_string(), "more than one page may have: {}", page["next"]);
    let before = memory(&bridge, "RssAnon")?;

    let half = "GET /livez HTTP/1.1\r\nHost: a\r\nX: ";
    let mut halves = Vec::new();
    for _ in 0..25 {
        halves.extend(try_join_all((0..100).map(|_| client(&bridge, half))).await?);
        alive(&bridge).await?;
    }
    let held = memory(&bridge, "RssAnon")?;
    println!("{} half requests: {} KiB, before {} KiB", halves.len(), held >> 10, before >> 10);
    ensure!(held < before + COST, "half requests cost {} bytes", held - before);
    drop(halves);

    let whole = "GET /status HTTP/1.1\r\nHost: a\r\n\r\n";
    let readers = try_join_all((0..10).map(|_| client(&bridge, whole))).await?;
    for _ in 0..10 {
        alive(&bridge).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let held = memory(&bridge, "RssAnon")?;
    println!("{} slow readers: {} KiB", readers.len(), held >> 10);
    ensure!(held < before + COST, "slow readers cost {} bytes", held - before);
    bridge.program.terminate().await;
    bridge.program.wait_for_code(0, END).await
}
