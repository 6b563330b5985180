//! The watches of the Kubernetes API.

use std::collections::BTreeMap;

use futures::FutureExt as _;
use futures::stream::{BoxStream, StreamExt as _};
use tokio_stream::StreamMap;

use crate::domain::kube::object::Kind;
use crate::domain::kube::routes::RouteKinds;
use crate::kubernetes::client::EndpointSource;
use crate::kubernetes::watch::{Notice, Relist, Watcher};

/// Watch events handled at a time before due work is started: a long list must not keep
/// writes waiting, nor each event cost a pass of the run loop.
const EVENTS_AT_A_TIME: usize = 256;

/// The watches that go on.
pub(super) struct Watches {
    watcher: Watcher,
    streams: StreamMap<Kind, BoxStream<'static, Notice>>,
    relists: BTreeMap<Kind, Relist>,
}

// === impl Watches ===

impl Watches {
    pub(super) fn new(watcher: Watcher) -> Self {
        Self { watcher, streams: StreamMap::new(), relists: BTreeMap::new() }
    }

    /// Begins with what is watched all along; `source`: which kind tells the endpoints. With
    /// `by_labels` the labels of namespaces matter.
    pub(super) fn start(&mut self, source: EndpointSource, routes: RouteKinds, by_labels: bool) {
        if by_labels {
            self.watch(Kind::Namespace, Watcher::namespaces);
        }
        self.watch(Kind::Service, Watcher::services);
        self.watch(Kind::EndpointSlice, |watcher, relist| watcher.endpoints(source, relist));
        for kind in routes.iter() {
            self.watch(kind, |watcher, relist| watcher.routes(kind, relist));
        }
    }

    pub(super) fn watch_nodes(&mut self) {
        self.watch(Kind::Node, Watcher::nodes);
    }

    pub(super) fn stop_watching_nodes(&mut self) {
        self.streams.remove(&Kind::Node);
        self.relists.remove(&Kind::Node);
    }

    /// Has every kind listed again.
    pub(super) fn relist(&self) {
        self.relists.values().for_each(Relist::request);
    }

    /// What the watches say: the next notice, and the others that are there already.
    pub(super) async fn next(&mut self) -> Vec<Notice> {
        let Some((_, first)) = self.streams.next().await else {
            return std::future::pending().await;
        };
        let mut notices = vec![first];
        while notices.len() < EVENTS_AT_A_TIME
            && let Some(Some((_, notice))) = self.streams.next().now_or_never()
        {
            notices.push(notice);
        }
        notices
    }

    fn watch(
        &mut self,
        kind: Kind,
        watch: impl FnOnce(&Watcher, Relist) -> BoxStream<'static, Notice>,
    ) {
        let relist = Relist::default();
        self.streams.insert(kind, watch(&self.watcher, relist.clone()));
        self.relists.insert(kind, relist);
    }
}
