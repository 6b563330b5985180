//! `bridge`: keeps Consul in sync with the Services of the cluster.
//!
//! One task owns the whole state and runs one loop over what the watches say, what Consul answers,
//! one timer and the admin server's questions. What is done and when is decided by the core
//! ([`Core`]); the loop hands events in and starts the actions that come out. Requests are futures
//! that the same loop polls: there is no lock around the state and no queue of work.
//!
//! | file | what it is |
//! |---|---|
//! | `leadership` | which of several bridges writes |
//! | `work` | what is asked of Consul by the one that writes |
//! | `watches` | the watches of the Kubernetes API |
//! | `jobs` | what is under way beside the loop, and what it finds out |
//! | `answers` | what follows from that |
//! | `seen_ids` | which service IDs a listing has shown |
//! | `reporting` | logs, Events, metrics, readiness |
//! | `status` | the pages of `/status` |

mod answers;
mod jobs;
mod leadership;
mod reporting;
mod seen_ids;
pub mod status;
mod watches;
mod work;

use std::hash::{BuildHasher as _, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::OptionFuture;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use self::jobs::{Done, Job};
use self::leadership::Leadership;
use self::reporting::{Reporting, bridge_metrics, reason};
use self::status::{Surroundings, page};
use self::watches::Watches;
use crate::admin::Question;
use crate::admin::status::{Peer as PeerStatus, Readiness};
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::read::agent::AgentInfo;
use crate::domain::kube::object::Kind;
use crate::domain::sync::{
    Action, Capacity, Config, Core, Moment, NotReady, Once, Readiness as CoreReadiness, Target,
};
use crate::domain::text::counted;
use crate::kubernetes::client::{Connected, EndpointSource, endpoint_source};
use crate::kubernetes::watch::{Error as WatchError, Notice, Scope, Watcher};
use crate::run::Error;
use crate::run::daemon::admin::{listen, listens_at};
use crate::run::daemon::connect::{consul, count_requests, instance, kubernetes, log_out, runtime};
use crate::run::daemon::first_line::FirstLine;
use crate::run::daemon::frame::{self, Inside};
use crate::run::daemon::handshake::{Handshake, PeerInfo};
use crate::run::daemon::options::{Common, SyncOptions};
use crate::run::daemon::retry::{PendingDependencies, retry_forever};
use crate::run::daemon::signals::{Stop, signals};

/// What the bridge needs to know.
#[derive(Debug)]
pub struct Options {
    /// How both sides are reached.
    pub common: Common,
    /// What is registered, and where.
    pub sync: SyncOptions,
    /// Least time between two resyncs.
    pub resync: Duration,
    /// Synchronize once, and reach each side within this time.
    pub once: Option<Duration>,
}

/// Runs until a signal, or until all is in sync with `--once`.
pub fn main(options: Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let listener = match options.once {
            Some(_) => None,
            None => Some(listen(options.common.admin_addr).await?),
        };
        Box::pin(run(options, listener, signals()?)).await
    })
}

/// Connects both sides and runs the loop beside the admin server and the writer of Events.
async fn run(
    options: Options,
    listener: Option<TcpListener>,
    stop: impl Future<Output = Stop>,
) -> Result<(), Error> {
    let kubernetes = kubernetes(&options.common).await?;
    let consul = consul(&options.common.consul)?;
    let admin = listener.as_ref().map(listens_at);
    let first = FirstLine {
        cluster: Some(options.sync.settings.cluster.as_str()),
        sink: Some(&options.sync.sink),
        kubernetes: Some(&kubernetes.url),
        consul: consul.url(),
        admin: admin.as_deref(),
        ..FirstLine::default()
    };
    first.log("bridge");
    let metrics = Arc::new(bridge_metrics(options.sync.is_elected()));
    count_requests(&consul, &metrics.daemon.requests);
    let shown = metrics.clone();
    let client = Some(kubernetes.client.clone());
    frame::run(listener, shown, client, |Inside { readiness, asked, reporter }| {
        let reporting = Reporting::new(metrics, readiness, reporter);
        Bridge::new(options, kubernetes, consul, reporting).run(asked, stop)
    })
    .await
}

/// The owner of the state.
struct Bridge {
    options: Options,
    /// The beginning of the core's time.
    began: Instant,
    core: Core,
    leadership: Leadership,
    watches: Watches,
    jobs: Jobs,
    kubernetes: Connected,
    consul: ConsulClient,
    /// Number of the token in use.
    token: u64,
    /// Number of the address in use.
    address: u64,
    peers: Option<PeerInfo>,
    waits: PendingDependencies,
    reporting: Reporting,
}

/// What is asked whoever leads, each once at a time.
#[derive(Default)]
struct Jobs {
    handshake: Option<Job>,
    /// Watching the sentinel, or writing it.
    sentinel: Option<Job>,
    heartbeat: Option<Job>,
    agent: Option<Job>,
    identity: Option<Job>,
}

// === impl Jobs ===

impl Jobs {
    async fn next(&mut self) -> Done {
        tokio::select! {
            done = jobs::end_of(&mut self.handshake) => done,
            done = jobs::end_of(&mut self.sentinel) => done,
            done = jobs::end_of(&mut self.heartbeat) => done,
            done = jobs::end_of(&mut self.agent) => done,
            done = jobs::end_of(&mut self.identity) => done,
        }
    }
}

// === impl Bridge ===

impl Bridge {
    fn new(
        options: Options,
        kubernetes: Connected,
        consul: ConsulClient,
        reporting: Reporting,
    ) -> Self {
        let sink = options.sync.sink(&consul);
        let config = Config {
            settings: options.sync.settings.clone(),
            target: options.sync.sink.target(),
            capacity: Capacity { flights: sink.requests(), groups: sink.groups() },
            resync: options.resync,
            seed: RandomState::new().hash_one(()),
            once: options.once,
        };
        let election = options.sync.election(&consul, &instance());
        let settings = &options.sync.settings;
        let scopes = Scope::of(&settings.namespaces, &settings.deny_namespaces);
        Self {
            options,
            began: Instant::now(),
            core: Core::new(config),
            leadership: Leadership::Connecting(election),
            watches: Watches::new(Watcher::within(kubernetes.client.clone(), scopes)),
            jobs: Jobs::default(),
            kubernetes,
            token: consul.token_generation(),
            address: consul.address_generation(),
            consul,
            peers: None,
            waits: PendingDependencies::default(),
            reporting,
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Runs until it is over. Whatever ends it, the lock is released, and then the login is
    /// ended: but for that of the agent sink, because an agent goes on using the token of each
    /// registration, to keep the catalog in sync with it.
    async fn run(
        mut self,
        asked: mpsc::Receiver<Question>,
        stop: impl Future<Output = Stop>,
    ) -> Result<(), Error> {
        let result = self.run_loop(asked, stop).await;
        // Nothing that is under way keeps the token to itself or asks for another one.
        let Self { leadership, consul, options, .. } = self;
        leadership.resign().await;
        if options.sync.sink.target() == Target::Catalog {
            log_out(&consul).await;
        }
        result
    }

    async fn run_loop(
        &mut self,
        mut asked: mpsc::Receiver<Question>,
        stop: impl Future<Output = Stop>,
    ) -> Result<(), Error> {
        let mut stop = pin!(stop);
        self.start_handshake();
        let mut source = pin!(OptionFuture::from(Some(self.find_endpoints())).fuse());
        let mut waits = self.waits.subscribe();
        loop {
            self.start_due_work();
            self.report();
            if let Some(ended) = self.ended_once() {
                self.finish().await;
                return ended;
            }
            let timer = self.core.next_timeout().map(|due| sleep_until(self.began + due));
            tokio::select! {
                stopped = &mut stop => {
                    tracing::info!("stopping; what is registered stays");
                    self.finish().await;
                    return stopped.outcome();
                }
                Some(source) = &mut source => {
                    let settings = &self.options.sync.settings;
                    let by_labels = !settings.namespace_selector.is_empty();
                    self.watches.start(source, settings.routes, by_labels);
                }
                notices = self.watches.next() => self.handle_notices(notices),
                done = self.leadership.next() => self.handle(done)?,
                done = self.jobs.next() => self.handle(done)?,
                // Only to report it: the sender is this bridge's.
                Ok(()) = waits.changed() => {}
                Some(question) = asked.recv() => self.answer(question),
                Some(()) = OptionFuture::from(timer) => self.core.handle_timeout(self.began.elapsed()),
            }
            self.notice_token();
            self.notice_address();
        }
    }

    fn start_handshake(&mut self) {
        let Options { common, sync, .. } = &self.options;
        let handshake = Handshake::new(common, sync, &self.kubernetes, &self.consul, &self.waits);
        self.jobs.handshake = Some(handshake.run().map(Done::Connected).boxed());
    }

    /// Finds out which kind tells the endpoints.
    fn find_endpoints(&self) -> impl Future<Output = EndpointSource> + use<> {
        let (client, waits) = (self.kubernetes.client.clone(), self.waits.clone());
        async move {
            let ask = || endpoint_source(&client);
            retry_forever("for the Kubernetes API to say what it has", &waits, ask).await
        }
    }

    /// Starts what the core wants done.
    fn start_due_work(&mut self) {
        if self.leadership.is_expired() {
            self.lose("its time is over");
        }
        while let Some(action) = self.core.poll_action(self.now()) {
            self.start(action);
        }
    }

    fn start(&mut self, action: Action) {
        match action {
            Action::Relist => {
                tracing::info!("relist: looking a second time at what is missing");
                self.watches.relist();
            }
            Action::ReadIdentity => {
                self.jobs.identity = Some(jobs::identity(self.kubernetes.client.clone()).boxed());
            }
            Action::WatchNodes => {
                tracing::info!("a Service uses node ports: watching nodes");
                self.watches.watch_nodes();
            }
            Action::StopWatchingNodes => {
                tracing::info!("no Service uses node ports any more: nodes are watched no longer");
                self.watches.stop_watching_nodes();
                self.reporting.watch_ended(Kind::Node);
            }
            Action::WriteMarker => {
                let sentinel = self.sentinel();
                let write = sentinel.map(|sentinel| jobs::write_sentinel(sentinel).boxed());
                self.jobs.sentinel = write;
            }
            Action::Heartbeat => {
                self.jobs.heartbeat = Some(jobs::heartbeat(self.consul.clone()).boxed());
                // As often as that, while it may not be read.
                if self.peers.as_ref().is_some_and(|peers| peers.agent.is_none()) {
                    self.jobs.agent = Some(jobs::agent(self.consul.clone()).boxed());
                }
            }
            of_consul => self.start_work(of_consul),
        }
    }

    /// Starts what only the one that leads may do.
    fn start_work(&mut self, action: Action) {
        let Some(work) = self.leadership.work() else { return };
        match action {
            Action::Write { flight, groups } => {
                work.write(flight, groups.into_iter().map(|group| group.writes).collect());
            }
            Action::ReadPtr { flight, key } => work.read_ptr(flight, key),
            Action::RemoveNamespaceNode { flight, namespace } => {
                work.remove_namespace_node(flight, namespace);
            }
            Action::Resync { consistent } => work.resync(consistent),
            Action::ReadNames => work.read_names(self.core.held_names()),
            Action::ReadName(name) => work.read_name(name),
            Action::FollowPtr { prefix } => work.follow_ptr(prefix.as_deref()),
            Action::ReadCatalog => work.read_catalog(),
            Action::Relist
            | Action::ReadIdentity
            | Action::WatchNodes
            | Action::StopWatchingNodes
            | Action::WriteMarker
            | Action::Heartbeat => {}
        }
    }

    fn handle_notices(&mut self, notices: Vec<Notice>) {
        let now = self.now();
        for notice in notices {
            match notice {
                Notice::Event(event) => {
                    self.reporting.watched(&event);
                    self.core.handle_watch(event, now);
                }
                Notice::Trouble(trouble) => {
                    self.reporting.watch_failed(&trouble);
                    let denied = matches!(trouble.error, WatchError::Denied { .. });
                    let denied = denied.then(|| trouble.error.to_string());
                    self.core.handle_watch_failure(trouble.kind, denied, now);
                }
                Notice::Recovered(kind) => self.reporting.watch_recovered(kind),
                Notice::Heard(kind) => self.reporting.heard(kind),
                Notice::NotServed(kind) => {
                    self.reporting.not_served(kind);
                    self.core.handle_not_served(kind, now);
                }
            }
        }
    }

    /// An agent keeps the token of each registration; the catalog does not.
    fn notice_token(&mut self) {
        let token = self.consul.token_generation();
        if self.peers.is_none() || std::mem::replace(&mut self.token, token) == token {
            return;
        }
        if self.sentinel().is_some() {
            tracing::info!("another token is in use: registrations are sent once more");
        }
        self.core.handle_token_changed(self.began.elapsed());
    }

    /// At another address there may be another Consul after all: whose records are there is read first of
    /// all in a resync.
    fn notice_address(&mut self) {
        let address = self.consul.address_generation();
        if std::mem::replace(&mut self.address, address) != address {
            self.core.handle_address_changed(self.began.elapsed());
        }
    }

    /// Reports what happened since the last time.
    fn report(&mut self) {
        let reports = self.core.take_reports();
        let target = self.options.sync.sink.target();
        self.reporting.update(&self.core, reports, target, self.now());
        let readiness = match self.core.readiness(self.now()) {
            CoreReadiness::Ready => {
                self.reporting.silence().map_or(Readiness::Ready, Readiness::NotReady)
            }
            CoreReadiness::NotReady(why) => Readiness::NotReady(self.reason(why)),
        };
        self.reporting.set_readiness(readiness, &self.core);
    }

    fn reason(&self, why: NotReady) -> String {
        let (pending, leadership) = (self.waits.reason(), self.leadership.describe());
        reason(why, &self.core, pending, self.reporting.watch_failure(), leadership)
    }

    /// Answers; whoever asked may have gone.
    fn answer(&mut self, question: Question) {
        match question {
            Question::Alive(reply) => drop(reply.send(())),
            Question::Page(selection, reply) => {
                let surroundings = self.surroundings();
                let settings = &self.options.sync.settings;
                let page = page(&self.core, settings, &selection, surroundings);
                drop(reply.send(page));
            }
        }
    }

    fn surroundings(&mut self) -> Surroundings {
        let peers = self.peers.as_ref();
        let agent: Option<&AgentInfo> = peers.and_then(|peers| peers.agent.as_ref());
        Surroundings {
            cluster_uid: peers.map(|peers| peers.uid.clone()),
            leadership: self.leadership.describe(),
            readiness: self.reporting.readiness(),
            history: self.reporting.history(),
            kubernetes: PeerStatus {
                url: self.kubernetes.url.clone(),
                version: peers.map(|peers| peers.kubernetes_version.clone()),
                datacenter: None,
                trouble: self.reporting.watch_failure(),
            },
            consul: PeerStatus {
                url: self.consul.url().to_owned(),
                version: agent.map(|agent| agent.version.clone()),
                datacenter: agent.map(|agent| agent.datacenter.clone()),
                trouble: self.core.consul_failure().map(ToOwned::to_owned),
            },
            watches: self.reporting.watches(),
            now: self.now(),
        }
    }

    /// Whether `--once` is over, and how.
    fn ended_once(&self) -> Option<Result<(), Error>> {
        let (what, why) = match self.core.once(self.options.once?, self.now()) {
            Once::Pending => return None,
            Once::InSync => {
                let (problems, holds) = (self.core.counts().problems, self.core.is_holding());
                if problems == 0 && !holds {
                    return Some(Ok(()));
                }
                let held = if holds { " and removals that are held back" } else { "" };
                let problems = counted(problems, "problem");
                let why = format!("{problems}{held}, as logged above; the rest is in sync");
                return Some(Err(Error::Failed(why)));
            }
            Once::NotReached(why) => ("not reached", why),
            Once::Stuck(why) => ("no progress", why),
        };
        let why = self.reason(why);
        Some(Err(Error::Failed(format!("{what} within --timeout: {why}"))))
    }

    /// Lets the writes in flight finish.
    async fn finish(&mut self) {
        if let Some(work) = self.leadership.work() {
            work.finish().await;
        }
    }
}
