//! How many addresses a name has, asked over DNS: a program that looks names up
//! is not installed everywhere.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// Consul answers in a millisecond; a lost datagram is asked for again.
const DEADLINE: Duration = Duration::from_secs(1);

/// A UDP answer without EDNS has no more.
const LONGEST: usize = 512;

/// An A query with one question (RFC 1035, section 4.1).
fn query(name: &str) -> Result<Vec<u8>> {
    // ID 1, one question, nothing else.
    let mut query = vec![0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        ensure!(!label.is_empty() && label.len() < 64, "'{label}' is no label of a DNS name");
        query.push(u8::try_from(label.len())?);
        query.extend(label.as_bytes());
    }
    // The root, type A, class IN.
    query.extend([0, 0, 1, 0, 1]);
    Ok(query)
}

/// The number of answers to an A query.
pub async fn addresses(server: SocketAddr, name: &str) -> Result<u16> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.context("open a UDP socket")?;
    socket.connect(server).await?;
    socket.send(&query(name)?).await?;
    let mut answer = [0; LONGEST];
    let length = timeout(DEADLINE, socket.recv(&mut answer))
        .await
        .with_context(|| format!("{server} does not answer"))??;
    match &answer[..length] {
        [0, 1, _, code, _, _, high, low, ..] if code % 16 == 0 => {
            Ok(u16::from_be_bytes([*high, *low]))
        }
        [_, _, _, code, ..] => bail!("{server} answers {name} with code {}", code % 16),
        _ => bail!("{server} answers {length} bytes"),
    }
}
