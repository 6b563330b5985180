//! `node`: keeps the pods of one node registered with that node's agent.
//!
//! One task owns the state ([`Core`], which decides everything) and runs one loop over what the watch
//! of the pods says (or the kubelet), what the agent answers, one timer and the admin server's
//! questions.
//!
//! | file | what it is |
//! |---|---|
//! | `reporting` | logs, Events, metrics, readiness, `/status` |

mod reporting;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::{BoxStream, FuturesUnordered, StreamExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::reporting::{Metrics, NodePage, Reporting};
use crate::admin::{self, Question};
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::read::pods as read;
use crate::consul::write::pods as write;
use crate::domain::Moment;
use crate::domain::node::core::{Action, Answer, Core, Found};
use crate::domain::node::pod::Seen;
use crate::domain::node::wanted::Defaults;
use crate::domain::text::chain;
use crate::kubernetes::client::Connected;
use crate::kubernetes::node::NodePods;
use crate::kubernetes::watch::{Notice, Relist, Scope, Watcher};
use crate::run::Error;
use crate::run::daemon::admin::listen;
use crate::run::daemon::connect::{consul, kubernetes, runtime};
use crate::run::daemon::frame::{self, Inside};
use crate::run::daemon::options::Common;
use crate::run::daemon::signals::{Stop, signals};

/// Watch events taken in one turn.
const EVENTS_A_TURN: usize = 256;
/// How long writes under way may take at the end.
const LAST_WRITES: Duration = Duration::from_secs(5);
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
    /// Whether there is an admin server.
    pub serves_admin: bool,
    /// Where the metrics are served too, as katalog-sync served them.
    pub metrics_address: Option<String>,
}

/// Where the pods come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodSource {
    /// The API server: the pods of this node.
    Node(String),
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
    let kubernetes = kubernetes(&options.common).await?;
    let consul = consul(&options.common.consul)?;
    let metrics = Arc::new(Metrics::default());
    if let Some(address) = &options.metrics_address {
        serve_metrics(address, Arc::<Metrics>::clone(&metrics)).await?;
    }
    let PodSource::Node(node) = &options.pods;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node,
        kubernetes = kubernetes.url,
        consul = consul.url(),
        "registering the pods of this node"
    );
    let shown = Arc::<Metrics>::clone(&metrics);
    let client = Some(kubernetes.client.clone());
    frame::run(listener, shown, client, |Inside { readiness, asked, reporter }| async {
        let reporting = Reporting::new(metrics, readiness, reporter);
        let daemon = Daemon::new(options, &kubernetes, consul.clone(), reporting);
        // A login is not ended: an agent goes on using the token of each registration.
        Box::pin(daemon.run(asked, stop)).await
    })
    .await
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

type Reading = Result<(Vec<Found>, Option<Box<str>>), String>;

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
    reporting: Reporting,
}

/// A write that was answered.
struct Written {
    id: Box<str>,
    action: Action,
    answer: Answer,
    took: Duration,
}

// === impl Daemon ===

impl Daemon {
    fn new(
        options: Options,
        kubernetes: &Connected,
        consul: ConsulClient,
        reporting: Reporting,
    ) -> Self {
        let relist = Relist::default();
        let PodSource::Node(node) = options.pods;
        let fields = Some(format!("spec.nodeName={node}"));
        let scope = Scope { fields, ..Scope::default() };
        let watcher = Watcher::within(kubernetes.client.clone(), vec![scope]);
        Self {
            began: Instant::now(),
            core: Core::new(options.defaults),
            pods: watcher.watch::<NodePods>(relist.clone()),
            relist,
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
                Some(question) = asked.recv() => {
                    let now = self.now();
                    self.reporting.answer(&self.core, question, now);
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
                    self.reading = Some(read_agent(self.consul.clone()).boxed());
                    continue;
                }
                Action::Relist => {
                    tracing::info!("relist: looking a second time at what is missing");
                    self.relist.request();
                    continue;
                }
                Action::Register(registration, _) => registration.id.clone(),
                Action::Update { id, .. } | Action::Deregister(id) => id.clone(),
            };
            let client = self.consul.clone();
            let work = async move {
                let began = Instant::now();
                let answer = write::write(&client, &action).await;
                Written { id, action, answer, took: began.elapsed() }
            };
            self.writes.push(work.boxed());
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
        if let Notice::Event(event) = notice {
            self.core.handle_watch(event, now);
        }
    }

    fn take_agent(&mut self, read: Reading) {
        self.reading = None;
        self.reporting.read_agent(&read);
        let now = self.now();
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

/// What the agent has, and its node's name where the token may ask.
async fn read_agent(client: ConsulClient) -> Reading {
    let found = read::agent(&client).await.map_err(|why| chain(&why))?;
    let node = client.agent_self().await.ok().map(|info| info.node.into());
    Ok((found, node))
}
