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
mod requests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::stream::{self, BoxStream, StreamExt};
use kube::Client;
use tokio::sync::Notify;

use self::machine::{LIST_TIMEOUT, Machine};
use self::requests::{Memory, Requests};
use crate::domain::kube::object::{Kind, SeenObject, WatchEvent};
use crate::kubernetes::client::EndpointSource;
use crate::kubernetes::endpoints::Endpoints;
use crate::kubernetes::slim::{EndpointSlices, Nodes, Services, Watched};

/// Namespaces that are watched each by itself, so that a Role in each is enough. Each costs a
/// connection's share and a request per kind every three minutes; with more, the cluster is watched
/// as a whole, which wants a ClusterRole.
pub const MAX_NAMESPACES: usize = 16;

/// What the stream says. `T` is an object with its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice<T = SeenObject> {
    /// Something was seen in the cluster.
    Event(WatchEvent<T>),
    /// The server showed that it is there: it accepted a watch, or sent a bookmark.
    Heard(Kind),
    /// The watch fails, and is tried again.
    Trouble(Trouble),
    /// The watch that was in trouble has not failed for a minute.
    Recovered(Kind),
}

/// A watch that fails. Reported at the first failure and then at most every ten seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is watched.
    pub kind: Kind,
    /// The newest failure.
    pub error: Error,
    /// How many there were since the watch was last without trouble.
    pub failures: u32,
    /// When it is tried again.
    pub retry_in: Duration,
}

/// What is watched: the resource as RBAC rules name it, and the namespace if it is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The resource.
    pub resource: &'static str,
    /// The namespace; none for all.
    pub namespace: Option<Box<str>>,
}

/// Why a watch failed. All of these are tried again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No permission to list or watch.
    #[error(
        "expected the right to list and watch {target}, found none ({cause}); \
         {manifest} grants it"
    )]
    Denied {
        /// What is watched.
        target: Target,
        /// The file that grants the permission.
        manifest: &'static str,
        /// The API server's words.
        cause: String,
    },
    /// A page of the list could not be read.
    #[error("cannot list {target}: {cause}")]
    List {
        /// What is watched.
        target: Target,
        /// What failed.
        cause: String,
    },
    /// The list took too long.
    #[error("expected the whole list of {0} within {LIST_TIMEOUT:?}, found it unfinished")]
    ListTimeout(Target),
    /// The watch could not be started.
    #[error("cannot watch {target}: {cause}")]
    Start {
        /// What is watched.
        target: Target,
        /// What failed.
        cause: String,
    },
    /// The watch was ended by the server or the connection.
    #[error("the watch of {target} broke off: {cause}")]
    Watch {
        /// What is watched.
        target: Target,
        /// What failed.
        cause: String,
    },
    /// The server ends each watch at once.
    #[error(
        "expected watches of {target} that last, found {count} in a row that ended at once \
         without an event; is a proxy in between that cuts long responses?"
    )]
    EndedAtOnce {
        /// What is watched.
        target: Target,
        /// How many.
        count: u32,
    },
    /// The server's storage is older than what it has shown before.
    #[error(
        "expected {target} at version {expected} or newer, found {found}: the storage of the \
         Kubernetes API was set back, as by restoring etcd from a backup; relisting"
    )]
    SetBack {
        /// What is watched.
        target: Target,
        /// Our version.
        expected: String,
        /// The server's newest.
        found: String,
    },
}

/// Asks a watch for a relist.
#[derive(Clone, Debug, Default)]
pub struct Relist(Arc<Notify>);

/// Which objects of a kind are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    /// Only those of this namespace.
    pub namespace: Option<Box<str>>,
    /// Only those whose labels match this selector.
    pub labels: Option<String>,
    /// Only those whose fields match this selector.
    pub fields: Option<String>,
}

/// Makes watches of one cluster.
#[derive(Clone)]
pub struct Watcher {
    client: Client,
    /// At least one. Of kinds without namespaces all are watched.
    scopes: Vec<Scope>,
    memory: Memory,
}

// === impl Relist ===

impl Relist {
    /// Asks for a relist: the next `ListCompleted` of this watch is that of a list which began
    /// after this call. One that is going on is broken off. Asked twice, it is one list.
    pub fn request(&self) {
        self.0.notify_one();
    }

    /// Waits until a relist is asked for, and takes the request.
    async fn requested(&self) {
        self.0.notified().await;
    }

    /// Takes a request that is there.
    fn take(&self) -> bool {
        self.requested().now_or_never().is_some()
    }
}

// === impl Scope ===

impl Scope {
    /// The scopes that together have all objects of these namespaces (empty: of all) but the denied
    /// ones. The API leaves the denied ones out where it is asked for the whole cluster.
    ///
    /// A selection of nothing, or of more than [`MAX_NAMESPACES`], is the whole cluster.
    pub fn of(namespaces: &BTreeSet<Box<str>>, denied: &BTreeSet<Box<str>>) -> Vec<Self> {
        let wanted: Vec<_> = namespaces.difference(denied).collect();
        if (1..=MAX_NAMESPACES).contains(&wanted.len()) {
            let within = |namespace| Self { namespace: Some(namespace), ..Self::default() };
            return wanted.into_iter().cloned().map(within).collect();
        }
        let without: Vec<_> =
            denied.iter().map(|namespace| format!("metadata.namespace!={namespace}")).collect();
        let fields = (!without.is_empty() && namespaces.is_empty()).then(|| without.join(","));
        vec![Self { fields, ..Self::default() }]
    }
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

    /// Watches objects of the kind `P`. Several namespaces are one stream, whose list is complete
    /// when that of each is.
    pub fn watch<P: Watched>(&self, relist: Relist) -> BoxStream<'static, Notice<P::Seen>> {
        match &self.scopes[..] {
            _ if !P::NAMESPACED => self.one::<P>(Scope::default(), relist),
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

// === impl Target ===

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.resource)?;
        match &self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
