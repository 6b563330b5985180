//! The Consul services whose entries in the catalog somebody waits for.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use tokio::time::sleep;
use tokio_stream::StreamMap;

use crate::consul::http::client::Client;
use crate::consul::read::pods::CatalogService;
use crate::domain::node::exchange::Entry;
use crate::domain::text::chain;

/// Blocking queries at a time, beside the requests of the same agent: it takes 200 connections.
const MAX_QUERIES: usize = 64;
/// Between two reads of a service beyond these, and after a read that failed.
const PAUSE: Duration = Duration::from_secs(1);
/// Reads a second of all services beyond these together: whoever asks for thousands waits for longer.
const READS: usize = 50;

/// What the catalog has of a service, or why that is not known.
pub(super) type Shown = (Box<str>, Result<Vec<Entry>, String>);

/// Follows services.
pub(super) struct Follower {
    client: Client,
    followed: StreamMap<Box<str>, BoxStream<'static, Result<Vec<Entry>, String>>>,
    queries: HashSet<Box<str>>,
    /// How many are followed.
    count: Arc<AtomicUsize>,
}

// === impl Follower ===

impl Follower {
    pub(super) fn new(client: Client) -> Self {
        Self { client, followed: StreamMap::new(), queries: HashSet::new(), count: Arc::default() }
    }

    pub(super) fn follow(&mut self, name: Box<str>) {
        let blocks = self.queries.len() < MAX_QUERIES;
        if blocks {
            self.queries.insert(name.clone());
        }
        let service = CatalogService::new(self.client.clone(), &name);
        let followed = Arc::clone(&self.count);
        followed.fetch_add(1, Relaxed);
        let entries = stream::unfold((service, false), move |(mut service, failed)| {
            let pause = PAUSE
                .max(PAUSE * u32::try_from(followed.load(Relaxed) / READS).unwrap_or(u32::MAX));
            async move {
                if failed || !blocks {
                    sleep(pause).await;
                }
                let read = if blocks { service.next().await } else { service.read().await };
                let failed = read.is_err();
                Some((read.map_err(|why| chain(&why)), (service, failed)))
            }
        });
        self.followed.insert(name, entries.boxed());
    }

    pub(super) fn unfollow(&mut self, name: &str) {
        if self.followed.remove(name).is_some() {
            self.count.fetch_sub(1, Relaxed);
        }
        self.queries.remove(name);
    }

    /// The next answer; none while nothing is followed.
    pub(super) async fn next(&mut self) -> Option<Shown> {
        self.followed.next().await
    }
}
