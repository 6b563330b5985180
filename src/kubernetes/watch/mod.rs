//! Lists and watches as one stream of [`WatchEvent`]s, which recovers by itself.
//!
//! The protocol is the API's: a list in pages, read from the API server's storage by quorum, then a
//! watch from the version where the list ended. [`machine`] is its state machine; each variant of its
//! `State` is a position in the protocol. On top of the protocol is:
//!
//! - a relist wherever an event may have been lost, or the server may have lost some: it was away, its
//!   newest version is older than ours (an etcd that was restored from a backup), or it ends
//!   each watch at once;
//! - pages that are halved when they are too large, and objects that are skipped when they are;
//! - a back-off that grows with every failure and heals by quiet time only;
//! - kinds that the server does not serve, and may serve later;
//! - deadlines on the whole list and, in [`limits`](super::limits), on each response;
//! - a handle that asks for a relist ([`Relist`]).
//!
//! What is kept: `ListCompleted` is never said of a list that broke off, and a list that was asked
//! for begins after it was asked for. Nothing is buffered but one page and the parts of one object,
//! and nothing is spawned: whoever polls the stream does the work.

mod beginning;
mod health;
mod machine;
mod merge;
mod notice;
mod relist;
mod requests;
mod scope;

use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;

use self::machine::Machine;
pub use self::notice::{Error, NOT_SERVED_RETRY, Notice, Target, Trouble};
pub use self::relist::Relist;
use self::requests::{Memory, Requests};
pub use self::scope::{MAX_NAMESPACES, Scope};
use crate::domain::kube::object::Kind;
#[cfg(doc)]
use crate::domain::kube::routes::RouteKinds;
use crate::kubernetes::client::EndpointSource;
use crate::kubernetes::endpoints::Endpoints;
use crate::kubernetes::routes::{Gateways, HttpRoutes, Ingresses};
use crate::kubernetes::slim::{EndpointSlices, Namespaces, Nodes, Services, Watched};

/// Makes watches of one cluster.
#[derive(Clone)]
pub struct Watcher {
    client: Client,
    /// At least one. Of kinds without namespaces all are watched.
    scopes: Vec<Scope>,
    memory: Memory,
}

// === impl Watcher ===

impl Watcher {
    /// Watches the whole cluster.
    pub fn new(client: Client) -> Self {
        Self::within(client, vec![Scope::default()])
    }

    /// Watches these scopes, as [`Scope::of`] makes them.
    pub fn within(client: Client, scopes: Vec<Scope>) -> Self {
        Self { client, scopes, memory: Memory::default() }
    }

    /// Watches Services.
    pub fn services(&self, relist: Relist) -> BoxStream<'static, Notice> {
        self.watch::<Services>(relist)
    }

    /// Watches the endpoints of Services.
    pub fn endpoints(&self, source: EndpointSource, relist: Relist) -> BoxStream<'static, Notice> {
        match source {
            EndpointSource::EndpointSlices => self.watch::<EndpointSlices>(relist),
            EndpointSource::Endpoints => self.watch::<Endpoints>(relist),
        }
    }

    /// Watches nodes.
    pub fn nodes(&self, relist: Relist) -> BoxStream<'static, Notice> {
        self.watch::<Nodes>(relist)
    }

    /// Watches what routes to Services, of this kind of [`RouteKinds`].
    ///
    /// # Panics
    /// For any other kind.
    pub fn routes(&self, kind: Kind, relist: Relist) -> BoxStream<'static, Notice> {
        match kind {
            Kind::Ingress => self.watch::<Ingresses>(relist),
            Kind::HttpRoute => self.watch::<HttpRoutes>(relist),
            Kind::Gateway => self.watch::<Gateways>(relist),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::Namespace | Kind::Pod => {
                unreachable!("{} routes to no Service", kind.as_str())
            }
        }
    }

    /// Watches namespaces.
    pub fn namespaces(&self, relist: Relist) -> BoxStream<'static, Notice> {
        self.watch::<Namespaces>(relist)
    }

    /// Watches objects of the kind `P`. Several namespaces are one stream, whose list is complete
    /// when that of each is.
    pub fn watch<P: Watched>(&self, relist: Relist) -> BoxStream<'static, Notice<P::Seen>> {
        match &self.scopes[..] {
            _ if !P::NAMESPACED || P::OF_ALL_NAMESPACES => self.one::<P>(Scope::default(), relist),
            [scope] => self.one::<P>(scope.clone(), relist),
            scopes => {
                let members = scopes.iter().map(|scope| {
                    let relist = Relist::default();
                    (self.one::<P>(scope.clone(), relist.clone()), relist)
                });
                merge::merge(P::KIND, members, relist)
            }
        }
    }

    fn one<P: Watched>(&self, scope: Scope, relist: Relist) -> BoxStream<'static, Notice<P::Seen>> {
        let target = Target { resource: P::PLURAL, namespace: scope.namespace.clone() };
        let requests = Requests::new::<P>(self.client.clone(), scope, self.memory.clone());
        let machine = Machine::<P>::new(requests, target, relist);
        stream::unfold(machine, |mut machine| async move {
            let notice = machine.next().await;
            Some((notice, machine))
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests;
