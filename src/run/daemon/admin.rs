//! Starting and stopping the admin server of a daemon.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::admin::{self, Admin};
use crate::run::Error;

/// How long answers under way may take at the end. Whoever reads slower, or has not sent its whole
/// request, must not keep the process from ending.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The admin server while it runs. Dropping it ends it at once.
pub(in crate::run) struct AdminServer {
    quit: Option<oneshot::Sender<()>>,
    served: JoinHandle<std::io::Result<()>>,
}

/// Listens at `address`, or at the default one.
pub(in crate::run) async fn listen(address: Option<SocketAddr>) -> Result<TcpListener, Error> {
    admin::listen(address).await.map_err(|error| {
        Error::Usage(format!("--admin-addr: cannot listen: {error}; choose another address"))
    })
}

/// Where a listener listens, for the log.
pub(in crate::run) fn listens_at(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|_| "unknown".to_owned(), |address| address.to_string())
}

// === impl AdminServer ===

impl AdminServer {
    pub(in crate::run) fn start<P: Serialize + Send + 'static>(
        listener: TcpListener,
        admin: Admin<P>,
    ) -> Self {
        let (quit, quits) = oneshot::channel::<()>();
        let quits = async { quits.await.unwrap_or_default() };
        Self { quit: Some(quit), served: tokio::spawn(admin::serve(listener, admin, quits)) }
    }

    /// Takes no more requests and lets the answers under way finish, for a second at most.
    pub(in crate::run) async fn stop(mut self) {
        drop(self.quit.take());
        match timeout(LAST_ANSWERS, &mut self.served).await {
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the admin server failed"),
            Ok(_) => {}
            Err(_) => tracing::debug!("requests to the admin server are cut off"),
        }
    }
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        self.served.abort();
    }
}
