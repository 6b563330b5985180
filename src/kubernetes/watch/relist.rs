//! The handle that asks a watch for a relist.

use std::sync::Arc;

use futures::FutureExt as _;
use tokio::sync::Notify;

/// Asks a watch for a relist.
#[derive(Clone, Debug, Default)]
pub struct Relist(Arc<Notify>);

// === impl Relist ===

impl Relist {
    /// Asks for a relist: the next `ListCompleted` of this watch is that of a list which began
    /// after this call. One that is going on is broken off. Asked twice, it is one list.
    pub fn request(&self) {
        self.0.notify_one();
    }

    /// Waits until a relist is asked for, and takes the request.
    pub async fn requested(&self) {
        self.0.notified().await;
    }

    /// Takes a request that is there.
    pub fn take(&self) -> bool {
        self.requested().now_or_never().is_some()
    }
}
