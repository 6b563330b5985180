//! `import`: keeps the EndpointSlices of Services as Consul has the instances.
//!
//! One task owns the state ([`Importer`], which decides everything) and runs one loop over what the
//! watches say, what Consul answers, what became of writes, timers and the admin server's questions.
//!
//! | file | what it is |
//! |---|---|
//! | `follow` | the Consul services that are followed, within a bound of connections |
//! | `apply` | writes in Kubernetes |
//! | `reporting` | logs, Events, readiness |
//! | `metrics` | metrics, those of consul8s among them |
//! | `page` | `/status` |

mod apply;
mod follow;
mod metrics;
mod page;
mod reporting;

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};
use std::net::Ipv4Addr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, FuturesUnordered, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::StreamMap;

use self::apply::{Applied, Outcome};
use self::follow::{Answer, Follower, asked_to_wait};
use self::metrics::Metrics;
use self::page::ImportPage;
use self::reporting::Reporting;
use crate::admin::{self, Question};
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::read::evidence::Unknown;
use crate::consul::read::followed::FollowedNames;
use crate::domain::Moment;
use crate::domain::backoff::Backoff;
use crate::domain::import::addresses::Addresses;
use crate::domain::import::core::{Action, Importer};
use crate::domain::import::create::Create;
use crate::domain::import::object::Seen;
use crate::domain::import::source::Source;
use crate::domain::kube::names::ClusterName;
use crate::domain::kube::object::{Kind, WatchEvent};
use crate::domain::problem::{Problem, Reason};
use crate::domain::text::chain;
use crate::kubernetes::client::Connected;
use crate::kubernetes::import::{ImportServices, ImportSlices};
use crate::kubernetes::watch::{Notice, Relist, Scope, Watcher};
use crate::run::Error;
use crate::run::daemon::admin::{listen, listens_at};
use crate::run::daemon::connect::{consul, count_requests, kubernetes, log_out, runtime};
use crate::run::daemon::first_line::FirstLine;
use crate::run::daemon::frame::{self, Inside};
use crate::run::daemon::options::Common;
use crate::run::daemon::signals::{Stop, signals};

/// Watch events taken in one turn: a long list must not keep writes waiting, nor each event cost a
/// turn.
const EVENTS_A_TURN: usize = 256;
/// How long writes under way may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);
/// Writes under way: an API server on two cores takes no more at a time any faster.
const MAX_WRITES: usize = 16;
/// The port of the metrics of consul8s.
const PROMETHEUS_PORT: u16 = 8000;
/// After a list of names that failed.
const RETRY: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
/// Between two signs of life: three fit into the minute after which it is not ready.
const HEARTBEAT: Duration = Duration::from_secs(20);

/// What the import needs to know.
#[derive(Debug)]
pub struct Options {
    /// How both sides are reached.
    pub common: Common,
    /// The cluster whose registrations are not imported, because they come from here.
    pub cluster: Option<ClusterName>,
    /// The namespaces whose Services are looked at; none: all. An empty name is that of the
    /// kubeconfig's context.
    pub namespaces: BTreeSet<Box<str>>,
    /// Which Services are made, if any.
    pub create: Option<CreateOptions>,
    /// Where an import may lead.
    pub addresses: Addresses,
    /// Longest time between two readings of a Consul service.
    pub resync: Duration,
    /// Import once, and end when all is in sync within this time.
    pub once: Option<Duration>,
    /// Whether there is an admin server.
    pub serves_admin: bool,
    /// Whether metrics are served on port 8000 too, at every path, as consul8s did.
    pub serves_prometheus: bool,
}

/// Which Services are made for Consul services.
#[derive(Debug)]
pub struct CreateOptions {
    /// What is made.
    pub create: Create,
    /// A filter expression that chooses the services, as `/v1/catalog/service` takes it.
    pub filter: Option<String>,
}

/// Runs until a signal, or until all is in sync with `--run-once`.
pub fn main(options: Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let listener = match options.once {
            None if options.serves_admin => Some(listen(options.common.admin_addr).await?),
            _ => None,
        };
        run(options, listener, signals()?).await
    })
}

async fn run(
    options: Options,
    listener: Option<TcpListener>,
    stop: impl Future<Output = Stop>,
) -> Result<(), Error> {
    let kubernetes = kubernetes(&options.common).await?;
    let consul = consul(&options.common.consul)?;
    let metrics = Arc::new(Metrics::default());
    count_requests(&consul, &metrics.daemon.requests);
    if options.serves_prometheus {
        serve_prometheus(Arc::<Metrics>::clone(&metrics));
    }
    let admin = listener.as_ref().map(listens_at);
    let first = FirstLine {
        cluster: options.cluster.as_ref().map(ClusterName::as_str),
        kubernetes: Some(&kubernetes.url),
        consul: consul.url(),
        admin: admin.as_deref(),
        ..FirstLine::default()
    };
    first.log("import");
    let shown = Arc::<Metrics>::clone(&metrics);
    let client = Some(kubernetes.client.clone());
    frame::run(listener, shown, client, |Inside { readiness, asked, reporter }| async {
        let reporting = Reporting::new(metrics, readiness, reporter);
        let import = Import::new(options, kubernetes, consul.clone(), reporting);
        let result = Box::pin(import.run(asked, stop)).await;
        log_out(&consul).await;
        result
    })
    .await
}

/// Serves the metrics where consul8s did. It went on without where the port was taken.
fn serve_prometheus(metrics: Arc<Metrics>) {
    tokio::spawn(async move {
        let served = match TcpListener::bind((Ipv4Addr::UNSPECIFIED, PROMETHEUS_PORT)).await {
            Ok(listener) => admin::serve_metrics(listener, metrics).await,
            Err(error) => Err(error),
        };
        if let Err(error) = served {
            tracing::warn!(%error, "--prometheus: no metrics on port {PROMETHEUS_PORT}");
        }
    });
}

/// The owner of the state.
struct Import {
    options: Options,
    began: Instant,
    state: Importer,
    watches: StreamMap<Kind, BoxStream<'static, Notice<Seen>>>,
    follower: Follower,
    writes: FuturesUnordered<BoxFuture<'static, Applied>>,
    kubernetes: Connected,
    consul: ConsulClient,
    names: BoxStream<'static, Result<BTreeSet<Box<str>>, Unknown>>,
    heartbeat: BoxFuture<'static, Result<(), String>>,
    reporting: Reporting,
}

// === impl Import ===

impl Import {
    fn new(
        mut options: Options,
        kubernetes: Connected,
        consul: ConsulClient,
        reporting: Reporting,
    ) -> Self {
        if options.namespaces.remove("") {
            options.namespaces.insert(kubernetes.client.default_namespace().into());
        }
        let (create, names) = match options.create.take() {
            Some(CreateOptions { create, filter }) => {
                if !options.namespaces.is_empty() {
                    options.namespaces.insert(create.namespace.clone());
                }
                let (tags, proxies) = (&create.tags, create.takes_proxies());
                let cluster = options.cluster.as_ref();
                let followed = FollowedNames::new(cluster, proxies, tags, filter.as_deref());
                (Some(create), names(followed, consul.clone()))
            }
            None => (None, stream::pending().boxed()),
        };
        let watcher = Watcher::within(
            kubernetes.client.clone(),
            Scope::of(&options.namespaces, &BTreeSet::new()),
        );
        let mut streams = StreamMap::new();
        streams.insert(Kind::Service, watcher.watch::<ImportServices>(Relist::default()));
        streams.insert(Kind::EndpointSlice, watcher.watch::<ImportSlices>(Relist::default()));
        Self {
            state: Importer::new(options.cluster.clone(), create)
                .within(std::mem::take(&mut options.addresses)),
            names,
            began: Instant::now(),
            watches: streams,
            follower: Follower::new(consul.clone(), options.resync),
            writes: FuturesUnordered::new(),
            heartbeat: heartbeat(consul.clone(), Duration::ZERO).boxed(),
            options,
            kubernetes,
            consul,
            reporting,
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    async fn run(
        mut self,
        mut asked: mpsc::Receiver<Question<ImportPage>>,
        stop: impl Future<Output = Stop>,
    ) -> Result<(), Error> {
        let mut stop = pin!(stop);
        let deadline = self.options.once.map(|limit| self.began + limit);
        loop {
            self.act();
            self.reporting.report(&mut self.state, self.follower.in_turn());
            if let Some(ended) = self.ended_once(deadline) {
                return ended;
            }
            let timer = self.state.next_timeout().map(|at| self.began + at);
            let wake = [timer, deadline, Some(Instant::now() + HEARTBEAT)];
            let wake = wake.into_iter().flatten().min().unwrap_or_else(Instant::now);
            tokio::select! {
                stopped = &mut stop => {
                    tracing::info!("stopping; the endpoints stay as they are");
                    self.finish_writes().await;
                    return stopped.outcome();
                }
                Some((_, notice)) = self.watches.next() => self.take_notices(notice),
                Some(answer) = self.follower.next() => self.take_answer(answer),
                Some(names) = self.names.next() => self.take_names(names),
                Some(applied) = self.writes.next() => self.take_applied(applied),
                alive = &mut self.heartbeat => {
                    self.reporting.heartbeat(alive);
                    self.heartbeat = heartbeat(self.consul.clone(), HEARTBEAT).boxed();
                }
                Some(question) = asked.recv() => self.answer(question),
                () = sleep_until(wake) => {}
            }
            let now = self.now();
            self.state.handle_timeout(now);
        }
    }

    /// Starts what the state wants done.
    fn act(&mut self) {
        let now = self.now();
        while self.writes.len() < MAX_WRITES
            && let Some(action) = self.state.poll_action(now)
        {
            match action {
                Action::Follow(source, namespace) => self.follower.follow(source, namespace),
                Action::Confirm(source) => self.follower.confirm(&source),
                Action::Unfollow(source, namespace) => {
                    self.follower.unfollow(&source, &namespace);
                }
                Action::Write(write) => {
                    let client = self.kubernetes.client.clone();
                    self.writes.push(apply::apply(client, write).boxed());
                }
            }
        }
    }

    fn take_notices(&mut self, first: Notice<Seen>) {
        self.take_notice(first);
        for _ in 1..EVENTS_A_TURN {
            match self.watches.next().now_or_never() {
                Some(Some((_, notice))) => self.take_notice(notice),
                _ => return,
            }
        }
    }

    fn take_notice(&mut self, notice: Notice<Seen>) {
        match notice {
            Notice::Event(event) => {
                self.reporting.shown(kind_of(&event));
                if self.is_selected(&event) {
                    take_event(&mut self.state, event);
                }
            }
            other => self.reporting.watch(other),
        }
    }

    /// More namespaces than can be watched by themselves are watched with all others.
    fn is_selected(&self, event: &WatchEvent<Seen>) -> bool {
        let selected = &self.options.namespaces;
        let namespace = match event {
            WatchEvent::Seen(seen) => Some(&seen.key().namespace),
            WatchEvent::Deleted(_, key) => Some(&key.namespace),
            WatchEvent::ListStarted(_) | WatchEvent::ListCompleted(_) => None,
        };
        selected.is_empty() || namespace.is_none_or(|namespace| selected.contains(namespace))
    }

    fn take_answer(&mut self, answer: Answer) {
        match answer.result {
            Ok(instances) => {
                self.reporting.heard();
                let asked = answer.asked.saturating_duration_since(self.began);
                if self.state.handle_instances(&answer.source, instances, asked) {
                    self.reporting.changed();
                }
            }
            Err(why) => {
                self.reporting.unanswered(&answer.source, &why);
                self.state.handle_unknown(&answer.source, unknown(&answer.source, &why));
            }
        }
        if let Some(note) = self.follower.note() {
            tracing::warn!("{note}");
        }
    }

    fn take_names(&mut self, names: Result<BTreeSet<Box<str>>, Unknown>) {
        match names {
            Ok(names) => {
                self.reporting.heard();
                self.state.handle_names(names);
            }
            Err(why) => self.reporting.no_names(&why),
        }
    }

    fn take_applied(&mut self, applied: Applied) {
        let now = self.now();
        self.reporting.applied(&applied);
        let Applied { service, outcome, .. } = applied;
        match outcome {
            Outcome::Slice { owner, name, result } => {
                self.state.handle_slice_written(&service, &owner, &name, result, now);
            }
            Outcome::Service(result) => self.state.handle_service_written(&service, result, now),
            Outcome::Endpoints(uid, result) => {
                self.state.handle_endpoints_deleted(&service, &uid, result, now);
            }
        }
    }

    /// Answers what the admin server asks.
    fn answer(&mut self, question: Question<ImportPage>) {
        match question {
            Question::Alive(reply) => drop(reply.send(())),
            Question::Page(selection, reply) => {
                let peers = (self.kubernetes.url.clone(), self.consul.url().to_owned());
                let polled = self.follower.in_turn();
                let page = page::page(&self.state, &mut self.reporting, &selection, peers, polled);
                drop(reply.send(page));
            }
        }
    }

    /// With `--run-once`: how it ends, when it does.
    fn ended_once(&self, deadline: Option<Instant>) -> Option<Result<(), Error>> {
        let deadline = deadline?;
        if self.state.is_settled() {
            let problems = self.state.problems().count();
            return Some(match problems {
                0 => Ok(()),
                1 => Err(Error::Failed("1 problem stands: see the log".to_owned())),
                n => Err(Error::Failed(format!("{n} problems stand: see the log"))),
            });
        }
        (Instant::now() >= deadline).then(|| {
            let why = self.reporting.why_not_ready(&self.state);
            let why = why.unwrap_or_else(|| "writes are under way".to_owned());
            Err(Error::Failed(format!("not in sync in time: {why}; give it longer with --timeout")))
        })
    }

    async fn finish_writes(&mut self) {
        let rest = async { while self.writes.next().await.is_some() {} };
        if timeout(LAST_WRITES, rest).await.is_err() {
            tracing::warn!("{} writes were not answered in time", self.writes.len());
        }
    }
}

fn kind_of(event: &WatchEvent<Seen>) -> Kind {
    match event {
        WatchEvent::ListStarted(kind)
        | WatchEvent::ListCompleted(kind)
        | WatchEvent::Deleted(kind, _) => *kind,
        WatchEvent::Seen(Seen::Service(..) | Seen::UndecodableService(..)) => Kind::Service,
        WatchEvent::Seen(Seen::Slice(..) | Seen::UndecodableSlice(_)) => Kind::EndpointSlice,
    }
}

fn take_event(state: &mut Importer, event: WatchEvent<Seen>) {
    match event {
        WatchEvent::ListStarted(Kind::Service) => state.handle_services_list(),
        WatchEvent::ListCompleted(Kind::Service) => state.handle_services_listed(),
        WatchEvent::Deleted(Kind::Service, key) => state.handle_service_gone(&key),
        WatchEvent::ListStarted(_) => state.handle_slices_list(),
        WatchEvent::ListCompleted(_) => state.handle_slices_listed(),
        WatchEvent::Deleted(_, key) => state.handle_slice_gone(&key),
        WatchEvent::Seen(Seen::Service(key, service)) => state.handle_service(key, service),
        WatchEvent::Seen(Seen::Slice(key, slice)) => state.handle_slice(key, slice),
        WatchEvent::Seen(Seen::UndecodableService(key, why)) => {
            state.handle_undecodable(&key, &why);
        }
        WatchEvent::Seen(Seen::UndecodableSlice(key)) => state.handle_undecodable_slice(&key),
    }
}

/// What is wrong with a source that gives no answer that counts.
fn unknown(source: &Source, why: &Unknown) -> Problem {
    let reason = match why {
        Unknown::Failed { source, .. } if source.is_refusal() => Reason::Refused,
        Unknown::Filtered { .. } | Unknown::NotAuthoritative { .. } => Reason::Denied,
        Unknown::Failed { .. } | Unknown::MarkerMissing { .. } => Reason::Failing,
    };
    let service = reporting::name_of(source);
    Problem::new(reason, format!("Consul service {service}: {}; the endpoints stay", chain(why)))
}

/// The names of Consul's services, again and again.
fn names(
    followed: FollowedNames,
    client: ConsulClient,
) -> BoxStream<'static, Result<BTreeSet<Box<str>>, Unknown>> {
    let delays = RETRY.delays(RandomState::new().hash_one("names"));
    let begin = (followed, client, delays);
    stream::unfold(begin, |(mut followed, client, mut delays)| async move {
        let names = followed.next(&client).await;
        match &names {
            Ok(_) => delays.reset(),
            Err(why) => sleep(delays.advance().max(asked_to_wait(why))).await,
        }
        Some((names, (followed, client, delays)))
    })
    .boxed()
}

/// Asks Consul for a sign of life after `delay`. A streamed answer is none: an agent gives such
/// with all servers gone.
async fn heartbeat(client: ConsulClient, delay: Duration) -> Result<(), String> {
    sleep(delay).await;
    match client.leader().await {
        Ok(Some(_)) => Ok(()),
        Ok(None) => Err("Consul has no leader".to_owned()),
        Err(error) => Err(error.chain()),
    }
}
