//! The daemon's side: each call is a [`SyncRequest`] that the loop which owns the state answers.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::connections::Peer;
pub use super::connections::{BindError, Listener};
use super::generated::katalog_sync_server::{KatalogSync, KatalogSyncServer};
use super::generated::{DeregisterQuery, DeregisterResult, RegisterQuery, RegisterResult};
use crate::domain::sidecar::{Caller, SyncError, SyncKind};

/// Requests under way at a time: two for each of the 250 pods that a node has at most, one that waits
/// and one that came after it. Each holds some 2 kB.
pub const MAX_REQUESTS: usize = 512;
/// Requests that are on their way to the loop, which takes all that are there in each turn.
pub const QUEUE: usize = 64;
/// How long a request may wait for its answer. A registration reaches the catalog within a second, or
/// when the servers have a leader again; a sidecar asks again.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// Requests at a time on one connection: a sidecar has one.
const STREAMS: u32 = 8;
/// How long a connection may last, and then for the request that it still has.
const LIFETIME: Duration = Duration::from_mins(10);
/// A client that vanished without a word is noticed after both together, within [`DEADLINE`].
const PING_EVERY: Duration = Duration::from_secs(15);
const PING_DEADLINE: Duration = Duration::from_secs(10);
/// Largest query in bytes: its names have at most 63, 253 and 63, and what newer clients may add.
const MAX_QUERY: usize = 4 << 10;
/// Largest head of a request in bytes.
const MAX_HEAD: u32 = 8 << 10;
/// Bytes of one request, and of a connection, that may wait to be read.
const WINDOW: u32 = 64 << 10;

/// One call of a sidecar.
#[derive(Debug)]
pub struct SyncRequest {
    /// What is wanted.
    pub kind: SyncKind,
    /// For which pod.
    pub caller: Caller,
    /// From which address, for the log; none over a unix socket. A network may hide the pod's.
    pub peer: Option<IpAddr>,
    /// Takes the answer. It is closed once nobody waits for one any more.
    pub reply: oneshot::Sender<Result<(), SyncError>>,
}

/// The server ended by itself.
#[derive(Debug, Error)]
#[error("the gRPC server failed")]
pub struct ServeError(#[source] tonic::transport::Error);

/// Serves until `shutdown` and then until the last connection is closed, which the caller has to
/// bound. Requests go to `requests`; once nobody receives them each is answered with `Unavailable`.
pub async fn serve(
    listener: Listener,
    requests: mpsc::Sender<SyncRequest>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let service = Service { requests, slots: Arc::new(Semaphore::new(MAX_REQUESTS)) };
    Server::builder()
        .max_concurrent_streams(STREAMS)
        .max_connection_age(LIFETIME)
        .max_connection_age_grace(DEADLINE)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_DEADLINE))
        .http2_max_header_list_size(MAX_HEAD)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .serve_with_incoming_shutdown(
            KatalogSyncServer::new(service).max_decoding_message_size(MAX_QUERY),
            listener.incoming(),
            shutdown,
        )
        .await
        .map_err(ServeError)
}

/// Turns calls into requests.
struct Service {
    requests: mpsc::Sender<SyncRequest>,
    slots: Arc<Semaphore>,
}

// === impl Service ===

impl Service {
    /// The loop's answer. Dropping it, as happens when the client goes, frees its slot and closes the
    /// reply.
    async fn ask(
        &self,
        kind: SyncKind,
        caller: Caller,
        peer: Option<Peer>,
    ) -> Result<(), SyncError> {
        let _slot = self.slots.try_acquire().map_err(|_| {
            let why = format!("{MAX_REQUESTS} requests are under way, ask again later");
            SyncError::Exhausted(why)
        })?;
        let ending = |()| SyncError::Unavailable("the daemon is ending".to_owned());
        let (reply, answer) = oneshot::channel();
        let peer = peer.and_then(|peer| peer.0);
        let request = SyncRequest { kind, caller, peer, reply };
        let answered = async {
            self.requests.send(request).await.map_err(|_| ending(()))?;
            answer.await.map_err(|_| ending(()))?
        };
        timeout(DEADLINE, answered).await.unwrap_or_else(|_| {
            let why = format!("no answer within {} s, ask again", DEADLINE.as_secs());
            Err(SyncError::DeadlineExceeded(why))
        })
    }
}

#[tonic::async_trait]
impl KatalogSync for Service {
    async fn register(
        &self,
        request: Request<RegisterQuery>,
    ) -> Result<Response<RegisterResult>, Status> {
        let peer = request.extensions().get::<Peer>().copied();
        let query = request.into_inner();
        let caller = Caller::new(&query.namespace, &query.pod_name, &query.container_name);
        self.ask(SyncKind::Register, caller, peer).await?;
        Ok(Response::new(RegisterResult {}))
    }

    async fn deregister(
        &self,
        request: Request<DeregisterQuery>,
    ) -> Result<Response<DeregisterResult>, Status> {
        let peer = request.extensions().get::<Peer>().copied();
        let query = request.into_inner();
        let caller = Caller::new(&query.namespace, &query.pod_name, &query.container_name);
        self.ask(SyncKind::Deregister, caller, peer).await?;
        Ok(Response::new(DeregisterResult {}))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service() -> (Arc<Service>, mpsc::Receiver<SyncRequest>) {
        let (requests, asked) = mpsc::channel(QUEUE);
        let slots = Arc::new(Semaphore::new(MAX_REQUESTS));
        (Arc::new(Service { requests, slots }), asked)
    }

    async fn ask(service: Arc<Service>) -> Result<(), SyncError> {
        service.ask(SyncKind::Register, Caller::new("shop", "web-0", ""), None).await
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_bounded_in_number_and_each_that_ends_makes_room() {
        let (service, mut asked) = service();
        let mut calls: Vec<_> =
            (0..MAX_REQUESTS).map(|_| tokio::spawn(ask(Arc::clone(&service)))).collect();
        let mut waiting = Vec::new();
        for _ in 0..MAX_REQUESTS {
            waiting.push(asked.recv().await.unwrap());
        }
        let refused = ask(Arc::clone(&service)).await;
        assert!(matches!(refused, Err(SyncError::Exhausted(_))), "{refused:?}");
        // One client goes, another takes its place.
        calls[0].abort();
        assert!((&mut calls[0]).await.unwrap_err().is_cancelled());
        let next = tokio::spawn(ask(Arc::clone(&service)));
        asked.recv().await.unwrap().reply.send(Ok(())).unwrap();
        assert_eq!(next.await.unwrap(), Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_the_loop_leaves_unanswered_ends_by_itself() {
        let (service, mut asked) = service();
        let began = tokio::time::Instant::now();
        let call = tokio::spawn(ask(Arc::clone(&service)));
        let request = asked.recv().await.unwrap();
        let answer = call.await.unwrap();
        assert!(matches!(answer, Err(SyncError::DeadlineExceeded(_))), "{answer:?}");
        assert!(request.reply.is_closed() && began.elapsed() >= DEADLINE);
        assert_eq!(service.slots.available_permits(), MAX_REQUESTS);
    }
}
