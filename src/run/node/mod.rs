//! `node`: keeps the pods of one node registered with that node's agent.
//!
//! One task owns the state ([`Core`], which decides everything) and runs one loop over what the watch
//! of the pods says (or the kubelet), what the agent answers, one timer and the admin server's
//! questions.
//!
//! | file | what it is |
//! |---|---|
//! | `agent` | requests to the agent, and what comes of them |
//! | `follow` | services whose entries in the catalog somebody waits for |
//! | `metrics` | what `/metrics` shows |
//! | `page` | the pages of `/status` |
//! | `reporting` | logs, Events, metrics, readiness |

mod agent;
mod follow;
mod metrics;
mod page;
mod reporting;

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::{self, BoxStream, FuturesUnordered, StreamExt as _};
use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::agent::{Reading, Written};
use self::follow::Follower;
use self::metrics::Metrics;
use self::page::{NodePage, page};
use self::reporting::Reporting;
use crate::admin::{self, Question};
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::read::pods as read;
use crate::domain::Moment;
use crate::domain::node::core::Core;
use crate::domain::node::exchange::{Action, GatePatch, PatchError};
use crate::domain::node::pod::Seen;
use crate::domain::node::wanted::Defaults;
use crate::domain::sidecar::SyncError;
use crate::domain::text::chain;
use crate::grpc::address::Address;
use crate::grpc::server::{self, Listener, SyncRequest};
use crate::kubernetes::kubelet::Kubelet;
use crate::kubernetes::node::{NodePods, patch_gates};
use crate::kubernetes::watch::{Notice, Relist, Scope, Watcher};
use crate::run::Error;
use crate::run::daemon::admin::{listen, listens_at};
use crate::run::daemon::connect::{consul, count_requests, kubernetes, runtime};
use crate::run::daemon::first_line::FirstLine;
use crate::run::daemon::frame::{self, Inside};
use crate::run::daemon::options::Common;
use crate::run::daemon::signals::{Stop, signals};

/// Watch events taken in one turn.
const EVENTS_A_TURN: usize = 256;
/// How long writes under way may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// How long the last sidecars may take to read their answers: they ask the next daemon again.
const LAST_ANSWERS: Duration = Duration::from_millis(500);
/// Before the next query that notices a lost agent, after one that failed.
const CANARY_PAUSE: Duration = Duration::from_millis(500);
/// The longest turn without anything: readiness depends on time too.
const TURN: Duration = Duration::from_secs(5);

/// What the daemon needs to know.
#[derive(Debug)]
pub struct Options {
    /// How both sides are reached.
    pub common: Common,
    /// Where the pods come from.
    pub pods: PodSource,
    /// What is wanted where annotations say nothing.
    pub defaults: Defaults,
    /// Where sidecars are answered, if anywhere.
    pub sidecars: Option<Address>,
    /// Whether there is an admin server.
    pub serves_admin: bool,
    /// Where the metrics are served too, as katalog-sync served them.
    pub metrics_address: Option<String>,
    /// Whether a profiler was asked for, which there is not.
    pub has_pprof: bool,
}

/// Where the pods come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// The API server: the pods of this node.
    Node(String),
    /// The node's kubelet.
    Kubelet(Kubelet),
}

/// Runs until a signal.
pub fn main(options: Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let listener = if options.serves_admin {
            Some(listen(options.common.admin_addr).await?)
        } else {
            None
        };
        Box::pin(run(options, listener, signals()?)).await
    })
}

async fn run(
    options: Options,
    listener: Option<TcpListener>,
    stop: impl Future<Output = Stop>,
) -> Result<(), Error> {
    let kubernetes = match (kubernetes(&options.common).await, &options.pods) {
        (Err(error), PodSource::Kubelet(_)) => {
            tracing::info!("without the Kubernetes API: no readiness gates, no Events ({error})");
            None
        }
        (found, _) => Some(found?),
    };
    let sidecars = match &options.sidecars {
        Some(address) => Some(listen_for_sidecars(address).await?),
        None => None,
    };
    let consul = consul(&options.common.consul)?;
    let metrics = Arc::new(Metrics::default());
    if let Some(address) = &options.metrics_address {
        serve_metrics(address, Arc::<Metrics>::clone(&metrics)).await?;
    }
    if options.has_pprof {
        tracing::info!("--pprof-bind-address: there is no Go profiler; nothing listens there");
    }
    count_requests(&consul, &metrics.daemon.requests);
    let api = kubernetes.as_ref().map(|it| it.url.clone());
    let admin = listener.as_ref().map(listens_at);
    let (node, kubelet) = match &options.pods {
        PodSource::Node(node) => (Some(node.as_str()), None),
        PodSource::Kubelet(kubelet) => (None, Some(kubelet.shown_url())),
    };
    let first = FirstLine {
        node,
        kubelet: kubelet.as_deref(),
        kubernetes: api.as_deref(),
        consul: consul.url(),
        admin: admin.as_deref(),
        ..FirstLine::default()
    };
    first.log("node");
    let pods_from = kubelet.or(api).unwrap_or_default();
    let shown = Arc::<Metrics>::clone(&metrics);
    let client = kubernetes.map(|it| it.client);
    let events = client.clone();
    frame::run(listener, shown, events, |Inside { readiness, asked, reporter }| async {
        let (requests, calls) = mpsc::channel(server::QUEUE);
        let (quit, quits) = oneshot::channel::<()>();
        let served = sidecars.map(|listener| {
            let quits = async { quits.await.unwrap_or_default() };
            tokio::spawn(server::serve(listener, requests, quits))
        });
        let reporting =
            Reporting::new(metrics, readiness, reporter, pods_from, consul.url().into());
        let daemon = Daemon::new(options, client, consul.clone(), reporting);
        // A login is not ended: an agent goes on using the token of each registration.
        let result = Box::pin(daemon.run(asked, calls, stop)).await;
        drop(quit);
        if let Some(mut served) = served
            && timeout(LAST_ANSWERS, &mut served).await.is_err()
        {
            served.abort();
        }
        result
    })
    .await
}

async fn listen_for_sidecars(address: &Address) -> Result<Listener, Error> {
    let listener = Listener::bind(address).await;
    listener.map_err(|error| Error::Usage(format!("--bind-address: {}", chain(&error))))
}

/// Serves the metrics where katalog-sync did.
async fn serve_metrics(address: &str, metrics: Arc<Metrics>) -> Result<(), Error> {
    let address =
        if address.starts_with(':') { format!("[::]{address}") } else { address.to_owned() };
    let listener = match TcpListener::bind(&address).await {
        Err(_) if address.starts_with("[::]") => {
            TcpListener::bind(address.replacen("[::]", "0.0.0.0", 1)).await
        }
        other => other,
    };
    let listener = listener.map_err(|error| {
        Error::Usage(format!(
            "--metrics-bind-address {address}: cannot listen: {error}; choose another address"
        ))
    })?;
    tokio::spawn(async move {
        if let Err(error) = admin::serve_metrics(listener, metrics).await {
            tracing::warn!(%error, "--metrics-bind-address: the server failed");
        }
    });
    Ok(())
}

/// The owner of the state.
struct Daemon {
    began: Instant,
    core: Core,
    pods: BoxStream<'static, Notice<Seen>>,
    relist: Relist,
    consul: ConsulClient,
    reading: Option<BoxFuture<'static, Reading>>,
    /// Waits until the agent may have lost what it had.
    canary: Option<BoxFuture<'static, ()>>,
    writes: FuturesUnordered<BoxFuture<'static, Written>>,
    follower: Follower,
    kubernetes: Option<Client>,
    patches: FuturesUnordered<BoxFuture<'static, Patched>>,
    calls: Calls,
    reporting: Reporting,
}

/// A patch that was answered.
type Patched = (GatePatch, Result<(), PatchError>);

/// The calls of sidecars that wait for their answer.
#[derive(Default)]
struct Calls {
    next: u64,
    replies: HashMap<u64, oneshot::Sender<Result<(), SyncError>>>,
}

// === impl Daemon ===

impl Daemon {
    fn new(
        options: Options,
        kubernetes: Option<Client>,
        consul: ConsulClient,
        reporting: Reporting,
    ) -> Self {
        let relist = Relist::default();
        let pods = match (options.pods, &kubernetes) {
            (PodSource::Node(node), Some(client)) => {
                let fields = Some(format!("spec.nodeName={node}"));
                let scope = Scope { fields, ..Scope::default() };
                let watcher = Watcher::within(client.clone(), vec![scope]);
                watcher.watch::<NodePods>(relist.clone())
            }
            (PodSource::Kubelet(kubelet), _) => kubelet.watch(relist.clone()),
            // There is an API wherever pods come from it.
            (PodSource::Node(_), None) => stream::pending().boxed(),
        };
        Self {
            began: Instant::now(),
            core: Core::new(options.defaults),
            pods,
            relist,
            follower: Follower::new(consul.clone()),
            kubernetes,
            patches: FuturesUnordered::new(),
            calls: Calls::default(),
            consul,
            reading: None,
            canary: None,
            writes: FuturesUnordered::new(),
            reporting,
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    async fn run(
        mut self,
        mut asked: mpsc::Receiver<Question<NodePage>>,
        mut calls: mpsc::Receiver<SyncRequest>,
        stop: impl Future<Output = Stop>,
    ) -> Result<(), Error> {
        let mut stop = std::pin::pin!(stop);
        loop {
            self.act();
            let now = self.now();
            self.reporting.report(&mut self.core, now);
            let timer =
                self.core.next_timeout().map_or(TURN, |at| at.saturating_sub(now)).min(TURN);
            tokio::select! {
                stopped = &mut stop => {
                    tracing::info!("stopping; what is registered stays");
                    self.finish_writes().await;
                    return stopped.outcome();
                }
                Some(notice) = self.pods.next() => self.take_notices(notice),
                Some(read) = OptionFuture::from(self.reading.as_mut()) => self.take_agent(read),
                Some(()) = OptionFuture::from(self.canary.as_mut()) => {
                    self.canary = None;
                    let now = self.now();
                    self.core.handle_agent_changed(now);
                }
                Some(written) = self.writes.next() => self.take_written(&written),
                Some((name, shown)) = self.follower.next() => match shown {
                    Ok(entries) => self.core.handle_catalog(&name, entries),
                    Err(why) => self.reporting.catalog_failed(&name, &why),
                },
                Some((patch, result)) = self.patches.next() => {
                    Reporting::patched(&patch, &result);
                    let now = self.now();
                    self.core.handle_patched(&patch, result, now);
                }
                Some(call) = calls.recv() => self.take_call(call),
                number = self.calls.gone() => self.core.handle_request_gone(number),
                Some(question) = asked.recv() => {
                    let now = self.now();
                    self.answer(question, now);
                }
                () = sleep_until(Instant::now() + timer) => {}
            }
        }
    }

    /// Starts what the core wants done.
    fn act(&mut self) {
        while let Some(action) = self.core.poll_action(self.now()) {
            let id = match &action {
                Action::ReadAgent => {
                    self.reporting.reading_agent();
                    self.reading = Some(agent::read(self.consul.clone()).boxed());
                    continue;
                }
                Action::Relist => {
                    tracing::info!("relist: looking a second time at what is missing");
                    self.relist.request();
                    continue;
                }
                Action::Follow(name) => {
                    self.follower.follow(name.clone());
                    continue;
                }
                Action::Unfollow(name) => {
                    self.follower.unfollow(name);
                    continue;
                }
                Action::Reply(number, result) => {
                    self.calls.reply(*number, result.clone());
                    continue;
                }
                Action::Patch(patch) => {
                    self.patch((**patch).clone());
                    continue;
                }
                Action::Register(registration, _) => registration.id.clone(),
                Action::Update { id, .. } | Action::RemoveCheck(id) | Action::Deregister(id) => {
                    id.clone()
                }
            };
            self.writes.push(agent::write(self.consul.clone(), id, action).boxed());
        }
        if self.canary.is_none()
            && let Some(id) = self.core.canary()
        {
            let (client, id) = (self.consul.clone(), id.to_owned());
            self.canary = Some(
                async move {
                    if read::agent_changed(&client, &id).await.is_err() {
                        sleep(CANARY_PAUSE).await;
                    }
                }
                .boxed(),
            );
        }
    }

    fn patch(&mut self, patch: GatePatch) {
        let client = self.kubernetes.clone();
        let work = async move {
            let result = match client {
                Some(client) => patch_gates(&client, &patch).await,
                None => Err(PatchError::Denied(
                    "readiness gate: expected a Kubernetes API to set its condition at, found none"
                        .to_owned(),
                )),
            };
            (patch, result)
        };
        self.patches.push(work.boxed());
    }

    fn take_call(&mut self, call: SyncRequest) {
        let SyncRequest { kind, caller, peer, reply } = call;
        tracing::debug!(pod = %caller.pod, container = &*caller.container, ?kind, ?peer, "asked");
        let number = self.calls.keep(reply);
        let now = self.now();
        self.core.handle_request(number, kind, &caller.pod, now);
    }

    fn take_notices(&mut self, first: Notice<Seen>) {
        self.take_notice(first);
        for _ in 1..EVENTS_A_TURN {
            match self.pods.next().now_or_never() {
                Some(Some(notice)) => self.take_notice(notice),
                _ => return,
            }
        }
    }

    fn take_notice(&mut self, notice: Notice<Seen>) {
        let now = self.now();
        self.reporting.watch(&notice);
        if let Notice::Event(event) = notice
            && self.core.handle_watch(event, now)
        {
            self.reporting.changed();
        }
    }

    /// Answers what the admin server asks.
    fn answer(&mut self, question: Question<NodePage>, now: Moment) {
        // Whoever asked may be gone.
        match question {
            Question::Page(selection, reply) => {
                drop(reply.send(page(&self.core, &mut self.reporting, &selection, now)));
            }
            Question::Alive(reply) => drop(reply.send(())),
        }
    }

    fn take_agent(&mut self, read: Reading) {
        self.reading = None;
        self.reporting.read_agent(&read);
        let now = self.now();
        let read = read.map(|(found, info)| (found, info.map(|info| info.node.into())));
        self.core.handle_agent(read, now);
    }

    fn take_written(&mut self, written: &Written) {
        self.reporting.wrote(written);
        let now = self.now();
        self.core.handle_answer(&written.id, &written.action, written.answer.clone(), now);
    }

    async fn finish_writes(&mut self) {
        let rest = async { while self.writes.next().await.is_some() {} };
        if timeout(LAST_WRITES, rest).await.is_err() {
            tracing::warn!("{} writes were not answered in time", self.writes.len());
        }
    }
}

// === impl Calls ===

impl Calls {
    fn keep(&mut self, reply: oneshot::Sender<Result<(), SyncError>>) -> u64 {
        self.next += 1;
        self.replies.insert(self.next, reply);
        self.next
    }

    fn reply(&mut self, number: u64, result: Result<(), SyncError>) {
        if let Some(reply) = self.replies.remove(&number) {
            // Whoever asked may be gone.
            let _ = reply.send(result);
        }
    }

    /// The next call for whose answer nobody waits any more.
    async fn gone(&mut self) -> u64 {
        let number = poll_fn(|context| {
            let mut closed = self.replies.iter_mut();
            let gone = closed.find_map(|(number, reply)| {
                reply.poll_closed(context).is_ready().then_some(*number)
            });
            gone.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        self.replies.remove(&number);
        number
    }
}
