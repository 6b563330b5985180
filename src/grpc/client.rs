//! The sidecar's side.

use std::time::Duration;

use tokio::time::timeout;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use super::address::{Address, InvalidAddress};
use super::generated::katalog_sync_client::KatalogSyncClient;
use super::generated::{DeregisterQuery, RegisterQuery};
use crate::domain::sidecar::{Caller, SyncError, SyncKind};
use crate::domain::text::chain;

/// How long connecting may take: the daemon is on the same machine.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);
/// Largest answer in bytes: it is empty.
const MAX_ANSWER: usize = 4 << 10;

/// Calls a daemon, each time over a connection of its own: no call waits for one that a restarted
/// daemon knows nothing of, and a name is resolved anew.
#[derive(Clone, Debug)]
pub struct Client {
    address: Address,
    endpoint: Endpoint,
}

// === impl Client ===

impl Client {
    /// A client for the daemon at `address`, which is not asked yet.
    pub fn new(address: &Address) -> Result<Self, InvalidAddress> {
        let uri = match address {
            Address::Unix(path) => format!("unix://{}", path.display()),
            Address::Tcp { host, port } if host.is_empty() => format!("http://localhost:{port}"),
            address @ Address::Tcp { .. } => format!("http://{address}"),
        };
        let endpoint = Endpoint::from_shared(uri).map_err(|_| address.invalid())?;
        let endpoint = endpoint.connect_timeout(CONNECT_DEADLINE).tcp_nodelay(true);
        Ok(Self { address: address.clone(), endpoint })
    }

    /// One call, which ends within `deadline`. Dropping it takes it back from the daemon, which may
    /// have done what was asked for.
    pub async fn call(
        &self,
        kind: SyncKind,
        caller: &Caller,
        deadline: Duration,
    ) -> Result<(), SyncError> {
        timeout(deadline, self.ask(kind, caller, deadline)).await.unwrap_or_else(|_| {
            let why = format!("no answer from {} within {deadline:?}", self.address);
            Err(SyncError::DeadlineExceeded(why))
        })
    }

    async fn ask(
        &self,
        kind: SyncKind,
        caller: &Caller,
        deadline: Duration,
    ) -> Result<(), SyncError> {
        let channel = self.endpoint.connect().await.map_err(|error| {
            SyncError::Unavailable(format!("cannot connect to {}: {}", self.address, chain(&error)))
        })?;
        let mut client = Self::on(channel);
        let (namespace, pod_name) = (caller.pod.namespace.to_string(), caller.pod.name.to_string());
        let container_name = caller.container.to_string();
        match kind {
            SyncKind::Register => {
                let query = RegisterQuery { namespace, pod_name, container_name };
                client.register(within(query, deadline)).await?;
            }
            SyncKind::Deregister => {
                let query = DeregisterQuery { namespace, pod_name, container_name };
                client.deregister(within(query, deadline)).await?;
            }
        }
        Ok(())
    }

    fn on(channel: Channel) -> KatalogSyncClient<Channel> {
        KatalogSyncClient::new(channel).max_decoding_message_size(MAX_ANSWER)
    }
}

/// The daemon learns how long the answer is waited for.
fn within<T>(query: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(query);
    request.set_timeout(deadline);
    request
}
