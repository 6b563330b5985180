//! `bridge`: keeps Consul in sync with the Services of the cluster.
//!
//! One task owns the whole state and runs one loop over what the watches say, what Consul
//! answers, timers and the admin server's questions. Writes and readings are futures that the
//! same loop polls: there is no lock around the state and no queue of work.
//!
//! | file | what it is |
//! |---|---|
//! | `leadership` | which of several bridges writes (invariant 9) |
//! | `writing` | sends writes and takes their answers |
//! | `drift` | when Consul was heard, and when it is looked at again |
//! | `reading` | looks whether Consul is as it was left |
//! | `signs` | the token, the sentinel, Consul's leader, the cluster's identity |
//! | `jobs` | what is under way beside the loop: requests to both sides |
//! | `seen_ids` | which service IDs a listing has shown |
//! | `telling` | logs, Events, metrics, readiness, `/status` |

mod drift;
mod jobs;
mod leadership;
mod reading;
mod seen_ids;
mod signs;
mod telling;
mod writing;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::stream::{BoxStream, FuturesUnordered, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamMap;

use self::drift::{Drift, Progress};
use self::jobs::{Done, Job};
use self::leadership::{Leadership, Term};
use self::writing::Requests;
use crate::admin::metrics::Metrics;
use crate::admin::status::Readiness;
use crate::admin::{Admin, QUESTIONS, Question};
use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::owner::OwnerKey;
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::read::agent::AgentInfo;
use crate::consul::write::sink::Sink;
use crate::domain::consul::record::Observation;
use crate::domain::kube::object::Kind;
use crate::domain::sync::{Moment, Reconciler};
use crate::kubernetes::client::{Connected, EndpointSource, endpoint_source};
use crate::kubernetes::events::{Reporter, reporter};
use crate::kubernetes::watch::{Error as WatchError, Notice, Relist, Scope, Watcher};
use crate::run::Error;
use crate::run::daemon::admin::{AdminServer, listen};
use crate::run::daemon::connect::{consul, instance, kubernetes, log_out, runtime};
use crate::run::daemon::handshake::{Handshake, PeerInfo};
use crate::run::daemon::options::{Common, SyncOptions};
use crate::run::daemon::retry::{PendingDependencies, retry_forever};
use crate::run::daemon::signals::{Stop, signals};

/// Watch events taken in one turn before writes are looked at again: a long list must not keep
/// writes waiting, nor each event cost a turn.
const EVENTS_A_TURN: usize = 256;
/// How long the last Events may take to be written at the end.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// What the bridge needs to know.
#[derive(Debug)]
pub struct Options {
    /// How both sides are reached.
    pub common: Common,
    /// What is registered, and where.
    pub sync: SyncOptions,
    /// Least time between two readings of Consul.
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
        run(options, listener, signals()?).await
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
    let (readiness, ready) = watch::channel(Readiness::NotReady("starting".to_owned()));
    let (questions, asked) = mpsc::channel(QUESTIONS);
    let metrics = Arc::new(Metrics::default());
    let admin = Admin { metrics: Arc::<Metrics>::clone(&metrics), readiness: ready, questions };
    let server = listener.map(|listener| AdminServer::start(listener, admin));
    let (reporter, events) = reporter(kubernetes.client.clone(), &instance());
    let events = tokio::spawn(events);

    let bridge = Bridge::new(options, kubernetes, consul, Told { metrics, readiness, reporter });
    let result = bridge.run(asked, stop).await;

    if let Some(server) = server {
        server.stop().await;
    }
    // The reporter went with the bridge: the writer ends once its queue is empty.
    let mut events = events;
    if timeout(LAST_EVENTS, &mut events).await.is_err() {
        events.abort();
    }
    result
}

/// Where the bridge tells what it does.
struct Told {
    metrics: Arc<Metrics>,
    readiness: watch::Sender<Readiness>,
    reporter: Reporter,
}

/// The owner of the state.
struct Bridge {
    options: Options,
    began: Instant,
    state: Reconciler,
    jobs: FuturesUnordered<Job>,
    requests: Requests,
    watcher: Watcher,
    watches: StreamMap<Kind, BoxStream<'static, Notice>>,
    relists: BTreeMap<Kind, Relist>,
    kubernetes: Connected,
    consul: ConsulClient,
    sink: Sink,
    marker: Marker,
    /// What is under way for the sentinel: watching it or writing it. One at a time.
    sentinel_job: Option<Job>,
    /// The reading of all that is ours, while it is under way.
    reading_job: Option<Job>,
    /// The reading of the cluster's identity for a confirmation.
    identity_job: Option<Job>,
    leadership: Leadership,
    term: Term,
    /// Standing for election, or keeping the lock.
    election_job: Option<Job>,
    owner: OwnerKey,
    peers: Option<Met>,
    waits: PendingDependencies,
    observations: mpsc::UnboundedReceiver<Observation>,
    observe: mpsc::UnboundedSender<Observation>,
    /// When a write was applied last, or Consul was read for the first time.
    last_step: Instant,
    drift: Drift,
    told: Told,
    tally: telling::Tally,
}

/// What is known of both sides since the handshake.
struct Met {
    uid: String,
    kubernetes_version: String,
    agent: Option<AgentInfo>,
}

// === impl Bridge ===

impl Bridge {
    fn new(options: Options, kubernetes: Connected, consul: ConsulClient, told: Told) -> Self {
        let cluster = options.sync.settings.cluster.clone();
        // Observations are taken in the turn after the poll that produced them, by the task that
        // polls the reading: what waits is at most what one poll can parse.
        let (observe, observations) = mpsc::unbounded_channel();
        let resync = options.resync;
        let (sink, marker) = (options.sync.sink(&consul), options.sync.marker(&consul));
        let election = options.sync.election(&consul, &instance());
        let settings = &options.sync.settings;
        let scopes = Scope::of(&settings.namespaces, &settings.deny_namespaces);
        Self {
            state: Reconciler::new(options.sync.settings.clone())
                .with_target(options.sync.sink.target()),
            options,
            began: Instant::now(),
            jobs: FuturesUnordered::new(),
            requests: Requests::new(sink.requests()),
            watcher: Watcher::within(kubernetes.client.clone(), scopes),
            watches: StreamMap::new(),
            relists: BTreeMap::new(),
            kubernetes,
            sink,
            marker,
            sentinel_job: None,
            reading_job: None,
            identity_job: None,
            leadership: Leadership::new(election),
            term: 0,
            election_job: None,
            owner: OwnerKey::new(consul.clone(), &cluster),
            drift: Drift::new(resync, consul.token_generation()),
            consul,
            peers: None,
            waits: PendingDependencies::default(),
            observations,
            observe,
            last_step: Instant::now(),
            told,
            tally: telling::Tally::default(),
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    /// Runs until it is over. Whatever ends it, the lock is given back, and then the login is
    /// ended: but for that of the agent sink, because an agent goes on using the token of each
    /// registration, to keep the catalog in sync with it.
    async fn run(
        mut self,
        asked: mpsc::Receiver<Question>,
        stop: impl Future<Output = Stop>,
    ) -> Result<(), Error> {
        let result = self.turns(asked, stop).await;
        // No further try to lead goes out after the lock is given back, and nothing that is under
        // way keeps the token to itself or asks for another one.
        let (leadership, sink, consul) = self.without_jobs();
        leadership.resign().await;
        if let Sink::Catalog(_) = sink {
            log_out(&consul).await;
        }
        result
    }

    /// What is needed at the end. All that is under way is given up with the rest.
    fn without_jobs(self) -> (Leadership, Sink, ConsulClient) {
        let Self { leadership, sink, consul, .. } = self;
        (leadership, sink, consul)
    }

    async fn turns(
        &mut self,
        mut asked: mpsc::Receiver<Question>,
        stop: impl Future<Output = Stop>,
    ) -> Result<(), Error> {
        let mut stop = pin!(stop);
        self.introduce();
        let source = self.find_endpoints();
        let mut source = pin!(source);
        let mut finding = true;
        let mut waits = self.waits.subscribe();
        let mut holder = self.leadership.holders();
        let deadline = self.options.once.map(|limit| self.began + limit);
        loop {
            self.dispatch();
            self.tell();
            if let Some(ended) = self.ended_once(deadline) {
                self.finish().await;
                return ended;
            }
            let wake = self.next_turn(deadline);
            tokio::select! {
                stopped = &mut stop => {
                    tracing::info!("stopping; what is registered stays");
                    self.finish().await;
                    return stopped.outcome();
                }
                source = &mut source, if finding => {
                    finding = false;
                    self.start_watches(source);
                }
                Some((_, notice)) = self.watches.next(), if !self.watches.is_empty() => self.take_notices(notice),
                Some(seen) = self.observations.recv() => self.observe(seen),
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.take(done)?,
                Some(done) = self.requests.answered() => self.take(done)?,
                done = jobs::end_of(&mut self.sentinel_job) => self.take(done)?,
                done = jobs::end_of(&mut self.reading_job) => self.take(done)?,
                done = jobs::end_of(&mut self.identity_job) => self.take(done)?,
                done = jobs::end_of(&mut self.election_job) => self.take(done)?,
                // Only to tell it: the sender is this bridge's.
                Ok(()) = waits.changed() => {}
                Some(()) = leadership::changed(&mut holder) => {}
                Some(question) = asked.recv() => self.answer(question),
                () = sleep_until(wake) => {}
            }
            self.observe_waiting();
            self.watch_nodes_if_wanted();
            let now = self.now();
            self.state.wake(now);
            self.keep_up(now);
        }
    }

    fn introduce(&mut self) {
        let Options { common, sync, .. } = &self.options;
        let handshake = Handshake::new(common, sync, &self.kubernetes, &self.consul, &self.waits);
        self.jobs.push(handshake.run().map(Done::PeerInfo).boxed());
    }

    /// Finds out which kind tells the endpoints.
    fn find_endpoints(&self) -> impl Future<Output = EndpointSource> + use<> {
        let (client, waits) = (self.kubernetes.client.clone(), self.waits.clone());
        async move {
            let ask = || endpoint_source(&client);
            retry_forever("for the Kubernetes API to say what it has", &waits, ask).await
        }
    }

    fn start_watches(&mut self, source: EndpointSource) {
        self.start_watch(Kind::Service, Watcher::services);
        self.start_watch(Kind::EndpointSlice, |watcher, relist| watcher.endpoints(source, relist));
    }

    fn start_watch(
        &mut self,
        kind: Kind,
        watch: impl FnOnce(&Watcher, Relist) -> BoxStream<'static, Notice>,
    ) {
        let relist = Relist::default();
        self.watches.insert(kind, watch(&self.watcher, relist.clone()));
        self.relists.insert(kind, relist);
    }

    /// Watches nodes while a Service uses node ports, and only then.
    fn watch_nodes_if_wanted(&mut self) {
        let (wanted, watched) = (self.state.wants_nodes(), self.relists.contains_key(&Kind::Node));
        if wanted && !watched {
            tracing::info!("a Service uses node ports: watching nodes");
            self.start_watch(Kind::Node, Watcher::nodes);
        } else if watched && !wanted {
            tracing::info!("no Service uses node ports any more: nodes are watched no longer");
            self.watches.remove(&Kind::Node);
            self.relists.remove(&Kind::Node);
            self.tally.watch_ended(Kind::Node);
            self.state.forget_nodes(self.began.elapsed());
        }
    }

    /// Takes a notice, and the others that are there already.
    fn take_notices(&mut self, first: Notice) {
        self.take_notice(first);
        for _ in 1..EVENTS_A_TURN {
            match self.watches.next().now_or_never() {
                Some(Some((_, notice))) => self.take_notice(notice),
                _ => return,
            }
        }
    }

    fn take_notice(&mut self, notice: Notice) {
        match notice {
            Notice::Event(event) => {
                self.tally.watched(&self.told.metrics, &event);
                let now = self.now();
                self.state.watch(event, now);
            }
            Notice::Trouble(trouble) => {
                self.tally.watch_failed(&self.told.metrics, &trouble);
                if trouble.kind == Kind::Node {
                    let denied = matches!(trouble.error, WatchError::Denied { .. });
                    let now = self.now();
                    self.state.nodes_failed(denied.then(|| trouble.error.to_string()), now);
                }
            }
            Notice::Recovered(kind) => self.tally.watch_recovered(kind),
            Notice::Heard(_) => {}
        }
    }

    fn observe(&mut self, seen: Observation) {
        match seen {
            Observation::Registration(observed) => self.state.observed_registration(&observed),
            Observation::Ptr(observed) => self.state.observed_ptr(&observed),
            Observation::NamespaceNode(namespace) => self.state.observed_namespace_node(&namespace),
            Observation::Stray(what) => self.tally.stray(what),
        }
    }

    /// Takes what a reading has shown so far, before it is polled again: so no more than one
    /// poll's worth ever waits, and a long reading costs few turns.
    fn observe_waiting(&mut self) {
        while let Ok(seen) = self.observations.try_recv() {
            self.observe(seen);
        }
    }

    /// Takes what a job found out. An error ends the process.
    fn take(&mut self, done: Done) -> Result<(), Error> {
        match done {
            Done::PeerInfo(peers) => self.met(peers?),
            Done::Wrote(term, answers, took) => self.wrote(term, answers, took),
            Done::NamespaceNodeRemoved(term, namespace, answer) => {
                self.namespace_node_removed(term, &namespace, answer);
            }
            Done::Elected(lease) => self.elected(lease),
            Done::Deposed(why) => self.deposed(&why),
            Done::PtrRead(key, found) => {
                if let Err(why) = &found {
                    tracing::debug!(key, why, "a PTR record cannot be read");
                }
                let now = self.now();
                self.state.ptr_read(&key, found, now);
            }
            Done::ReadBack(result) => return self.was_read_back(result),
            Done::ForeignNames(result) => self.foreign_names(result),
            Done::Catalog(result) => self.catalog_shows(result),
            Done::SentinelLost(lost) => self.sentinel_lost(lost),
            Done::SentinelBack(result) => self.sentinel_back(result),
            Done::Heartbeat(alive) => self.heard(alive),
            Done::Identity(result) => return self.identified(result),
        }
        Ok(())
    }

    fn met(&mut self, peers: PeerInfo) {
        let PeerInfo { uid, kubernetes_version, agent, sentinel } = peers;
        let domain = self.options.sync.consul_domain(agent.as_ref());
        if domain.is_none() {
            tracing::warn!(
                "no PTR record can be written: the datacenter or the DNS domain is not known; \
                 set --datacenter and --dns-domain"
            );
        }
        self.state.set_ptr_zone(domain);
        self.peers = Some(Met { uid, kubernetes_version, agent });
        self.watch_sentinel(sentinel);
        self.drift.heard();
        self.jobs.push(jobs::heartbeat(self.consul.clone(), drift::HEARTBEAT).boxed());
        self.stand();
        if self.leadership.may_read() {
            self.begin_read_back();
        }
    }

    /// Whether `--once` is over, and how.
    fn ended_once(&self, deadline: Option<Instant>) -> Option<Result<(), Error>> {
        let deadline = deadline?;
        if self.in_sync() {
            let problems = self.state.problems().count();
            return Some(if problems == 0 && !self.state.is_holding() {
                Ok(())
            } else {
                Err(Error::Failed(format!(
                    "in sync but for {problems} problems{}",
                    if self.state.is_holding() { " and removals that are held back" } else { "" }
                )))
            });
        }
        let reached = self.is_connected()
            && self.drift.progress() >= Progress::NamesKnown
            && self.drift.is_heard();
        // That the catalog lacks a record for good takes its time to be known.
        let catalog = if self.state.is_settled() { drift::CATALOG_DELAY } else { Duration::ZERO };
        let stuck = self.last_step.elapsed() >= self.options.once? + catalog;
        let why = match (reached, stuck) {
            (false, _) => "not reached within --timeout",
            (true, true) => "no progress within --timeout",
            (true, false) => return None,
        };
        (Instant::now() >= deadline)
            .then(|| Err(Error::Failed(format!("{why}: {}", self.not_ready_reason()))))
    }
}
