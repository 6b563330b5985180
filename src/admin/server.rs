//! The connections of the admin server: bounded in number, in time and in what they hold, because
//! anybody who reaches the port may open them.

use std::collections::VecDeque;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

/// Connections at a time: a kubelet's probes, a scraper and a few people need ten. Each holds some 20
/// kB, so that all hold a megabyte. When one more comes the oldest goes, so that a probe is let in
/// whatever the others do.
pub(super) const MAX_CONNECTIONS: usize = 48;

/// How long a request's head may take: it comes in one packet.
pub(super) const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection may last: an answer takes at most ten seconds to be made, and whoever reads
/// it more slowly than this has to ask again.
pub(super) const LIFETIME: Duration = Duration::from_secs(30);

/// Largest head of a request, in bytes: hyper's least.
const MAX_HEAD: usize = 8 << 10;

/// After an error of `accept`, for example because there are no file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown`; then answers under way are finished. `lifetime`: of a connection.
pub(super) async fn serve(
    listener: TcpListener,
    router: Router,
    lifetime: Duration,
    shutdown: impl Future<Output = ()>,
) {
    let (quit, quits) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    oldest.retain(|connection| !connection.is_finished());
                    if oldest.len() >= MAX_CONNECTIONS
                        && let Some(connection) = oldest.pop_front()
                    {
                        connection.abort();
                    }
                    let connection = connection(stream, router.clone(), lifetime, quits.clone());
                    oldest.push_back(connections.spawn(connection));
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection to the admin server");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    quit.send_replace(());
    while connections.join_next().await.is_some() {}
}

async fn connection(
    stream: TcpStream,
    router: Router,
    lifetime: Duration,
    mut quits: watch::Receiver<()>,
) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut served = std::pin::pin!(served);
    let whole = async {
        tokio::select! {
            ended = served.as_mut() => return ended,
            _ = quits.changed() => served.as_mut().graceful_shutdown(),
        }
        served.await
    };
    match timeout(lifetime, whole).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the admin server failed"),
        Err(_) => tracing::debug!("a connection to the admin server lasted too long"),
    }
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::oneshot;
    use tokio::time::Instant;

    use super::*;

    async fn start() -> (std::net::SocketAddr, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (quit, quits) = oneshot::channel::<()>();
        let router = Router::new().route("/livez", get(|| async { "ok" }));
        let served = tokio::spawn(serve(listener, router, LIFETIME, async { drop(quits.await) }));
        (address, quit, served)
    }

    async fn ask(address: std::net::SocketAddr) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Half a request: its head never ends.
    async fn half(address: std::net::SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost").await.unwrap();
        stream
    }

    #[tokio::test]
    async fn l9_half_requests_keep_no_probe_out() {
        let (address, _quit, _served) = start().await;
        let mut halves = Vec::new();
        for _ in 0..3 * MAX_CONNECTIONS {
            halves.push(half(address).await);
        }
        let began = Instant::now();
        assert!(ask(address).await.ends_with("ok"));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        let mut closed = 0;
        for stream in &mut halves {
            let mut byte = [0];
            let read = timeout(Duration::from_millis(20), stream.read(&mut byte)).await;
            closed += usize::from(matches!(read, Ok(Ok(0) | Err(_))));
        }
        assert!(closed >= 2 * MAX_CONNECTIONS, "{closed} of {} are closed", halves.len());
    }

    #[tokio::test]
    async fn l9_a_head_that_does_not_end_is_not_waited_for() {
        let (address, quit, served) = start().await;
        let mut stream = half(address).await;
        let began = Instant::now();
        let mut answer = Vec::new();
        drop(stream.read_to_end(&mut answer).await);
        let took = began.elapsed();
        assert!(took >= HEAD_DEADLINE / 2 && took < HEAD_DEADLINE * 2, "{took:?}");
        drop(quit);
        timeout(HEAD_DEADLINE, served).await.unwrap().unwrap();
    }
}
