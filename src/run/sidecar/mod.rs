//! `sidecar`: holds its pod unready until it is in Consul's catalog, and takes it out of there before
//! the application ends.
//!
//! It talks to the daemon of its node alone. What it does when is decided by [`Machine`]; the loop
//! here makes its calls, listens for signals, and answers `pages`.

mod pages;

use std::future::{pending, ready};
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::admin;
use crate::domain::Moment;
use crate::domain::sidecar::machine::Machine;
use crate::domain::sidecar::{Caller, SyncError, SyncKind};
use crate::grpc::client::Client;
use crate::run::Error;
use crate::run::daemon::connect::runtime;
use crate::run::daemon::retry::LogThrottle;
use crate::run::daemon::signals::{Signals, Stop};

/// How long a registration may take: beyond that the daemon, or what is between, hangs.
const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// How long a deregistration may take before it is asked for again. A daemon of katalog-sync answers
/// minutes late unless it is asked again once the check is critical.
const DEREGISTER_DEADLINE: Duration = Duration::from_secs(5);
/// How long answers under way may take at the end, as with a daemon's.
const LAST_ANSWERS: Duration = Duration::from_secs(1);
/// How long a call of `/deregister` may last: longer than most grace periods.
const LIFETIME: Duration = Duration::from_mins(10);
/// Calls of `/deregister` that are on their way to the loop.
const QUESTIONS: usize = 4;

/// What the sidecar needs to know.
#[derive(Debug)]
pub struct Options {
    /// The daemon of its node, or why there is none to ask.
    pub daemon: Result<Client, String>,
    /// The pod, and its own container.
    pub caller: Caller,
    /// Where `/ready` is answered: HOST:PORT, or :PORT at all addresses.
    pub bind_address: String,
    /// Longest time between two calls of the daemon.
    pub max_backoff: Duration,
    /// How long after a deregistration that no signal follows it registers again.
    pub register_again_after: Option<Duration>,
    /// Whether it is called as katalog-sync-sidecar: it ends with 0 then, however it ends, and answers
    /// nothing but `/ready`.
    pub is_old_name: bool,
}

/// Runs until a signal.
pub fn main(options: Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let signals = Signals::listen()?;
        // By default it would end the process without a deregistration.
        let _ignored = signal(SignalKind::hangup())
            .map_err(|error| Error::Failed(format!("cannot listen for signals: {error}")))?;
        let address = &options.bind_address;
        let listener = listen(address).await.map_err(|error| {
            Error::Usage(format!(
                "--bind-address: cannot listen at {address}: {error}; choose another address"
            ))
        })?;
        run(options, listener, signals).await
    })
}

/// Without a host at all addresses, also where there is no IPv6.
async fn listen(address: &str) -> io::Result<TcpListener> {
    let Some(port) = address.strip_prefix(':') else { return TcpListener::bind(address).await };
    match TcpListener::bind(format!("[::]:{port}")).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind(format!("0.0.0.0:{port}")).await
        }
        other => other,
    }
}

async fn run(options: Options, listener: TcpListener, signals: Signals) -> Result<(), Error> {
    let is_old_name = options.is_old_name;
    let (state, seen) = watch::channel(pages::State::NotReady("starting".to_owned()));
    let (ask, asked) = mpsc::channel(QUESTIONS);
    let (quit, quits) = oneshot::channel::<()>();
    let router = if is_old_name { pages::old(seen) } else { pages::own(seen, ask) };
    if let Ok(address) = listener.local_addr() {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            pod = %options.caller.pod,
            %address,
            "holding the pod until it is registered"
        );
    }
    let shutdown = async { quits.await.unwrap_or_default() };
    let mut served = tokio::spawn(admin::serve_router(listener, router, LIFETIME, shutdown));
    let result = Sidecar::new(options, state).run(asked, signals).await;
    drop(quit);
    if timeout(LAST_ANSWERS, &mut served).await.is_err() {
        served.abort();
    }
    if is_old_name { Ok(()) } else { result }
}

/// The owner of the state.
struct Sidecar {
    options: Options,
    began: Instant,
    machine: Machine,
    call: BoxFuture<'static, Result<(), SyncError>>,
    /// Whoever wants to know when it is deregistered.
    waiting: Vec<oneshot::Sender<()>>,
    state: watch::Sender<pages::State>,
    throttle: LogThrottle,
    /// What the daemon said last.
    refusal: Option<SyncError>,
}

// === impl Sidecar ===

impl Sidecar {
    fn new(options: Options, state: watch::Sender<pages::State>) -> Self {
        let seed = RandomState::new().hash_one(&options.caller);
        Self {
            machine: Machine::new(options.max_backoff, options.register_again_after, seed),
            options,
            began: Instant::now(),
            call: pending().boxed(),
            waiting: Vec::new(),
            state,
            throttle: LogThrottle::default(),
            refusal: None,
        }
    }

    fn now(&self) -> Moment {
        self.began.elapsed()
    }

    async fn run(
        mut self,
        mut asked: mpsc::Receiver<oneshot::Sender<()>>,
        mut signals: Signals,
    ) -> Result<(), Error> {
        let mut stop: Option<Stop> = None;
        loop {
            self.act();
            if let Some(stop) = stop
                && self.machine.ended(self.now())
            {
                return self.end(stop);
            }
            let due = self.machine.next_timeout().map(|due| self.began + due);
            tokio::select! {
                signal = signals.next() => {
                    if stop.is_some() {
                        return Err(Error::Failed(format!(
                            "a second signal came before {} was deregistered", self.options.caller.pod
                        )));
                    }
                    tracing::info!("Got signal to stop, starting deregister");
                    stop = Some(signal);
                    self.machine.handle_stop(self.now());
                }
                Some(waiting) = asked.recv() => {
                    tracing::info!("asked to deregister");
                    self.waiting.retain(|waiting| !waiting.is_closed());
                    self.waiting.push(waiting);
                    self.machine.handle_deregister(self.now());
                }
                answer = &mut self.call => self.take_answer(answer),
                () = at(due) => self.machine.handle_timeout(self.now()),
            }
        }
    }

    /// The call, which is under way from now on.
    fn ask(&self, kind: SyncKind) -> BoxFuture<'static, Result<(), SyncError>> {
        let client = match &self.options.daemon {
            Ok(client) => client.clone(),
            Err(why) => return ready(Err(SyncError::Unavailable(why.clone()))).boxed(),
        };
        let deadline = match kind {
            SyncKind::Register => REGISTER_DEADLINE,
            SyncKind::Deregister => DEREGISTER_DEADLINE,
        };
        tracing::debug!(?kind, "asking the daemon");
        let caller = self.options.caller.clone();
        async move { client.call(kind, &caller, deadline).await }.boxed()
    }

    fn take_answer(&mut self, answer: Result<(), SyncError>) {
        self.call = pending().boxed();
        let before = self.machine.is_ready();
        self.machine.handle_answer(self.now(), &answer);
        if self.machine.is_ready() && !before {
            tracing::info!("register complete, waiting for signals");
        } else if self.machine.is_deregistered() {
            tracing::info!("deregister succeed");
        }
        let refusal = answer.err();
        if let Some(error) = &refusal
            && (self.throttle.should_log()
                || kind_of(self.refusal.as_ref()) != kind_of(Some(error)))
        {
            let pod = &self.options.caller.pod;
            tracing::warn!(%pod, %error, "the daemon of this node refuses{}", advice(error));
        }
        self.refusal = refusal;
    }

    fn end(&self, stop: Stop) -> Result<(), Error> {
        if !self.machine.is_deregistered() {
            let why = self.refusal.as_ref().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(error = why, "ended before the daemon has answered");
        }
        stop.outcome()
    }

    /// Makes the call that is due, and shows how things stand.
    fn act(&mut self) {
        if let Some(kind) = self.machine.poll_call(self.now()) {
            self.call = self.ask(kind);
        }
        let state = if self.machine.is_ready() {
            pages::State::Ready
        } else {
            let why =
                self.refusal.as_ref().map_or("not registered yet".to_owned(), ToString::to_string);
            pages::State::NotReady(why)
        };
        self.state.send_if_modified(|shown| {
            let is_new = *shown != state;
            *shown = state;
            is_new
        });
        if self.machine.is_deregistered() {
            for waiting in self.waiting.drain(..) {
                // It may have gone.
                let _ = waiting.send(());
            }
        }
    }
}

/// Two refusals of one kind say the same.
fn kind_of(refusal: Option<&SyncError>) -> Option<Discriminant<SyncError>> {
    refusal.map(discriminant)
}

/// What somebody can do about it.
fn advice(error: &SyncError) -> &'static str {
    match error {
        SyncError::UnknownPod(_) => {
            ": check --namespace and --pod-name, and the annotation kube-consul.io/service-names or \
             katalog-sync.wish.com/service-names of the pod"
        }
        SyncError::NoSidecar(_) => {
            ": annotate the pod with kube-consul.io/sidecar or katalog-sync.wish.com/sidecar, the name \
             of this container"
        }
        SyncError::NotReady(_) => ", as it does until the other containers are ready",
        SyncError::Unavailable(_) => ": is `kube-consul node` running on this node?",
        SyncError::Exhausted(_) | SyncError::DeadlineExceeded(_) | SyncError::Other(_) => "",
    }
}

/// Never, where there is nothing to wait for.
async fn at(due: Option<Instant>) {
    match due {
        Some(due) => sleep_until(due).await,
        None => pending().await,
    }
}
