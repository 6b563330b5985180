//! A TCP link that a test can cut, silence and mend.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::background;
use crate::port::Port;

/// One read of a connection: a page of a list comes in a few of these.
const CHUNK: usize = 64 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Cut,
    Silent,
    /// The handle was dropped.
    Gone,
}

/// A link to one address: connect to [`TcpLink::address`] instead.
#[derive(Debug)]
pub struct TcpLink {
    port: Arc<Port>,
    state: watch::Sender<State>,
    /// Whether the listener is there, as the state wants it.
    listening: watch::Receiver<bool>,
}

impl TcpLink {
    /// Opens a link to `target`.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        let port = Arc::new(Port::pick()?);
        let state = watch::Sender::new(State::Open);
        let (listening_sender, listening) = watch::channel(false);
        let task = run(Arc::clone(&port), target, state.subscribe(), listening_sender);
        background::runtime().spawn(task);
        let link = Self { port, state, listening };
        link.wait_listening(true).await?;
        Ok(link)
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port.number()).into()
    }

    /// Closes every connection and refuses new ones.
    pub async fn cut(&self) -> Result<()> {
        self.state.send_replace(State::Cut);
        self.wait_listening(false).await
    }

    /// Keeps every connection open and accepts new ones, but forwards nothing:
    /// a peer that does not answer, a firewall that drops.
    pub async fn blackhole(&self) -> Result<()> {
        self.state.send_replace(State::Silent);
        self.wait_listening(true).await
    }

    /// Works again. Connections that a black hole kept go on where they were.
    pub async fn restore(&self) -> Result<()> {
        self.state.send_replace(State::Open);
        self.wait_listening(true).await
    }

    async fn wait_listening(&self, wanted: bool) -> Result<()> {
        let mut listening = self.listening.clone();
        listening
            .wait_for(|listening| *listening == wanted)
            .await
            .with_context(|| format!("the link at {} could not listen", self.address()))?;
        Ok(())
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        self.state.send_replace(State::Gone);
    }
}

async fn run(
    port: Arc<Port>,
    target: SocketAddr,
    mut state: watch::Receiver<State>,
    listening: watch::Sender<bool>,
) {
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Gone => return,
            State::Cut => {
                listening.send_replace(false);
                if state.changed().await.is_err() {
                    return;
                }
            }
            State::Open | State::Silent => {
                // The port is reserved for this link, so this fails only when
                // the system refuses; dropping `listening` reports it.
                let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port.number())).await
                else {
                    return;
                };
                listening.send_replace(true);
                serve(&listener, target, &mut state).await;
            }
        }
    }
}

/// Accepts until the link is cut; then all connections are dropped, and closed
/// by that.
async fn serve(listener: &TcpListener, target: SocketAddr, state: &mut watch::Receiver<State>) {
    let mut connections = JoinSet::new();
    let forwarding = state.clone();
    loop {
        tokio::select! {
            closed = state.wait_for(|state| matches!(state, State::Cut | State::Gone)) => {
                drop(closed);
                break;
            }
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    connections.spawn(forward(client, target, forwarding.clone()));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

async fn forward(client: TcpStream, target: SocketAddr, mut state: watch::Receiver<State>) {
    if !open(&mut state).await {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    tokio::join!(
        pump(client_read, server_write, state.clone()),
        pump(server_read, client_write, state),
    );
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(length) = from.read(&mut chunk).await {
        if !open(&mut state).await || length == 0 {
            break;
        }
        if to.write_all(&chunk[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Waits while the link is silent; false when it is gone.
async fn open(state: &mut watch::Receiver<State>) -> bool {
    state.wait_for(|state| *state != State::Silent).await.is_ok_and(|state| *state == State::Open)
}
