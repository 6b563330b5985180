//! The connections of the server. Whoever reaches the port may open them, so that they are bounded in
//! number, by address, and in how long they may keep silent before they speak HTTP/2.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::stream::{self, Stream};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::{Sleep, sleep};
use tonic::transport::server::Connected;

use super::address::Address;

/// Connections at a time, each of which holds some 20 kB: four for each of the 250 pods that a node
/// has at most.
pub(super) const MAX_CONNECTIONS: usize = 1024;
/// Connections at a time from one address: one for each of those pods, which come from the node's
/// address where the network hides theirs, and so that one pod cannot keep all others out.
pub(super) const MAX_BY_ADDRESS: usize = 256;
/// How long a connection may take to say that it speaks HTTP/2: that comes with its first packet.
pub(super) const PREFACE_DEADLINE: Duration = Duration::from_secs(5);
/// The bytes that say so (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// After an error of `accept`, for example because there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Sidecars run as users that the daemon does not know.
const SOCKET_MODE: u32 = 0o666;

/// Where it cannot listen, and why.
#[derive(Debug, Error)]
pub enum BindError {
    /// A TCP address, or a socket that cannot be made.
    #[error("cannot listen at {address}: {error}; choose another address")]
    Refused {
        /// What was asked for.
        address: Address,
        /// What the system says.
        #[source]
        error: io::Error,
    },
    /// Another process listens there.
    #[error(
        "cannot listen at {0}: another process does; is a second daemon running on this node? End it, or choose another path"
    )]
    Taken(Address),
    /// Something that is no socket has the name.
    #[error(
        "cannot listen at {0}: expected a socket or nothing, found another file; remove it, or choose another path"
    )]
    NoSocket(Address),
}

/// Where clients connect. Dropping it removes its socket's file.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    counts: Counts,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf, inode: u64 },
}

/// Connections by address; those of a unix socket have none.
type Counts = Arc<Mutex<HashMap<Option<IpAddr>, usize>>>;

/// Counts one connection while it lasts.
struct Slot {
    counts: Counts,
    peer: Option<IpAddr>,
}

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// One connection.
pub(super) struct Connection {
    stream: Box<dyn Duplex>,
    slot: Slot,
    preface: Option<(usize, Pin<Box<Sleep>>)>,
}

/// The client's address, if it has one: an extension of each of its requests.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) Option<IpAddr>);

// === impl Listener ===

impl Listener {
    /// Listens at `address`. The file of a socket that nobody listens at any more is replaced.
    pub async fn bind(address: &Address) -> Result<Self, BindError> {
        let refused = |error| BindError::Refused { address: address.clone(), error };
        let socket = match address {
            Address::Tcp { host, port } => {
                Socket::Tcp(bind_tcp(host, *port).await.map_err(refused)?)
            }
            Address::Unix(path) => {
                if is_left_behind(address, path).await? {
                    fs::remove_file(path).map_err(refused)?;
                }
                bind_unix(path).map_err(refused)?
            }
        };
        Ok(Self { socket, counts: Counts::default() })
    }

    /// Where it listens, with the port that the system chose.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match &self.socket {
            Socket::Tcp(listener) => {
                let address = listener.local_addr()?;
                Address::Tcp { host: address.ip().to_string(), port: address.port() }
            }
            Socket::Unix { path, .. } => Address::Unix(path.clone()),
        })
    }

    /// All connections from now on.
    pub(super) fn incoming(self) -> impl Stream<Item = Result<Connection, Infallible>> {
        stream::unfold(self, async |listener| Some((Ok(listener.accept().await), listener)))
    }

    async fn accept(&self) -> Connection {
        loop {
            let accepted = match &self.socket {
                Socket::Tcp(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, peer)| (nodelay(stream), Some(peer.ip().to_canonical()))),
                Socket::Unix { listener, .. } => {
                    listener.accept().await.map(|(stream, _)| (boxed(stream), None))
                }
            };
            match accepted {
                Ok((stream, peer)) => {
                    if let Some(slot) = Slot::take(&self.counts, peer) {
                        return Connection::new(stream, slot);
                    }
                    tracing::debug!(?peer, "a connection too many is closed");
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection to the gRPC server");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Socket::Unix { path, inode, .. } = self
            && fs::symlink_metadata(&*path).is_ok_and(|file| file.ino() == *inode)
        {
            // Left behind it would do no harm.
            let _ = fs::remove_file(path);
        }
    }
}

fn boxed(stream: UnixStream) -> Box<dyn Duplex> {
    Box::new(stream)
}

fn nodelay(stream: TcpStream) -> Box<dyn Duplex> {
    // Answers are then 40 ms late, and right.
    let _ = stream.set_nodelay(true);
    Box::new(stream)
}

async fn bind_tcp(host: &str, port: u16) -> io::Result<TcpListener> {
    if !host.is_empty() {
        return TcpListener::bind((host, port)).await;
    }
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await
        }
        other => other,
    }
}

fn bind_unix(path: &Path) -> io::Result<Socket> {
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    let inode = fs::symlink_metadata(path)?.ino();
    Ok(Socket::Unix { listener, path: path.to_owned(), inode })
}

/// Whether a socket's file is there at which nobody listens.
async fn is_left_behind(address: &Address, path: &Path) -> Result<bool, BindError> {
    let refused = |error| BindError::Refused { address: address.clone(), error };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(refused(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(BindError::NoSocket(address.clone()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(BindError::Taken(address.clone())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(true),
        Err(error) => Err(refused(error)),
    }
}

// === impl Slot ===

impl Slot {
    /// None: there are as many as there may be.
    fn take(counts: &Counts, peer: Option<IpAddr>) -> Option<Self> {
        let mut held = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_peer = held.get(&peer).copied().unwrap_or(0);
        let is_free = peer.is_none() || of_peer < MAX_BY_ADDRESS;
        if !is_free || held.values().sum::<usize>() >= MAX_CONNECTIONS {
            return None;
        }
        held.insert(peer, of_peer + 1);
        Some(Self { counts: Arc::clone(counts), peer })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.peer);
            }
        }
    }
}

// === impl Connection ===

impl Connection {
    fn new(stream: Box<dyn Duplex>, slot: Slot) -> Self {
        let preface = Some((0, Box::pin(sleep(PREFACE_DEADLINE))));
        Self { stream, slot, preface }
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer(self.slot.peer)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        match Pin::new(&mut this.stream).poll_read(context, buffer) {
            Poll::Ready(read) => {
                if let Some((bytes, _)) = &mut this.preface {
                    *bytes += buffer.filled().len() - before;
                    if *bytes >= PREFACE {
                        this.preface = None;
                    }
                }
                Poll::Ready(read)
            }
            Poll::Pending => {
                let Some((_, deadline)) = &mut this.preface else { return Poll::Pending };
                ready!(deadline.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;

    #[test]
    fn one_address_keeps_no_other_out() {
        let counts = Counts::default();
        let take = |last: u8| Slot::take(&counts, Some(IpAddr::from([10, 0, 0, last])));
        let mut held: Vec<Slot> = (0..MAX_BY_ADDRESS).map_while(|_| take(1)).collect();
        assert_eq!(held.len(), MAX_BY_ADDRESS);
        assert!(take(1).is_none());
        let mut others: Vec<Slot> = (2..=250).map_while(take).collect();
        assert_eq!(others.len(), 249);
        // What ends makes room, and leaves nothing behind.
        drop(held.pop());
        assert!(take(1).is_some());
        others.extend((0..MAX_CONNECTIONS).map_while(|_| Slot::take(&counts, None)));
        assert_eq!(held.len() + others.len(), MAX_CONNECTIONS);
        assert!(take(251).is_none());
        drop((held, others));
        assert!(counts.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_keeps_silent_is_closed() {
        let connection = |stream| {
            let slot = Slot::take(&Counts::default(), None).unwrap();
            Connection::new(Box::new(stream), slot)
        };
        let (mut client, server) = tokio::io::duplex(64);
        let (mut server, began) = (connection(server), Instant::now());
        client.write_all(b"PRI * HTTP").await.unwrap();
        let mut bytes = Vec::new();
        let error = server.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!((error.kind(), bytes.len()), (io::ErrorKind::TimedOut, 10));
        assert!(began.elapsed() >= PREFACE_DEADLINE);
        // One that has said what it speaks may be silent.
        let (mut client, server) = tokio::io::duplex(64);
        let mut server = connection(server);
        client.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut bytes = [0; PREFACE];
        server.read_exact(&mut bytes).await.unwrap();
        sleep(PREFACE_DEADLINE * 2).await;
        client.write_all(b"!").await.unwrap();
        assert_eq!(server.read_u8().await.unwrap(), b'!');
    }
}
