//! `plan`: what `bridge` would change now. It asks both sides what a bridge asks, has the same
//! core decide, and sends nothing: no record, no owner key, no marker.

mod document;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write as _};
use std::pin::pin;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, OptionFuture};
use futures::stream::{BoxStream, StreamExt as _};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamMap;

pub use self::document::Plan;
use self::document::{OwnChange, State, Summary, held, services};
use crate::admin::status::ObjectProblem;
use crate::consul::coordination::marker::Marker;
use crate::consul::coordination::owner::{Owner, OwnerKey};
use crate::consul::coordination::resync::Reader;
use crate::consul::http::client::Client as ConsulClient;
use crate::consul::read::evidence::Consistency;
use crate::consul::read::marks::Mark;
use crate::domain::consul::names::{ForeignNames, lookup_form};
use crate::domain::consul::node_names::NodeNames;
use crate::domain::consul::record::{Answer, NamespaceNodeAnswer, Observation, Write};
use crate::domain::flights::FlightId;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::Kind;
use crate::domain::report::forecast::{Forecast, Snapshot, Verb};
use crate::domain::services::settings::{Policy, Settings};
use crate::domain::sync::{Action, Cause, Config, Core, Group, Moment, Peer};
use crate::domain::text::{chain, escape_unseen};
use crate::kubernetes::client::{Connected, endpoint_source};
use crate::kubernetes::watch::{Error as WatchError, Notice, Relist, Scope, Watcher};
use crate::run::Error;
use crate::run::daemon::checks::NOTHING_SELECTED;
use crate::run::daemon::connect::{consul, kubernetes, log_out, runtime};
use crate::run::daemon::handshake::{Handshake, PeerInfo};
use crate::run::daemon::options::{Common, SinkOptions, SyncOptions};
use crate::run::daemon::retry::PendingDependencies;
use crate::run::daemon::signals::signals;

/// A plan is of one moment.
const NOW: Moment = Moment::ZERO;
/// By then a bridge waits no longer for EndpointSlices that have not followed their Service.
const SLICES_FOLLOWED: Moment = Moment::from_secs(6);
/// Between two looks of the spinner: often enough to be seen turning.
const TICK: Duration = Duration::from_millis(100);

/// How a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// One JSON object, for programs
    Json,
}

/// What a plan is made of.
#[derive(Debug)]
pub struct Options {
    /// How both sides are reached.
    pub common: Common,
    /// What a bridge would register, and where.
    pub sync: SyncOptions,
    /// How long each side may be silent.
    pub timeout: Duration,
}

/// Prints what a bridge with these options would change. Whether there is anything.
pub fn main(options: &Options, output: Output) -> Result<bool, Error> {
    let plan = runtime()?.block_on(async {
        let mut stop = pin!(signals()?);
        let consul = consul(&options.common.consul)?;
        let plan = tokio::select! {
            plan = make(options, &consul) => plan,
            _ = &mut stop => Err(Error::Interrupted),
        };
        log_out(&consul).await;
        plan
    })?;
    let text = match output {
        Output::Text => text::text(&plan),
        Output::Json => {
            let json = serde_json::to_string_pretty(&plan);
            json.map_err(|error| Error::Failed(format!("cannot write the plan: {error}")))? + "\n"
        }
    };
    match anstream::stdout().write_all(escape_unseen(&text).as_bytes()) {
        // Whoever reads may have seen enough before its end, as `head` does.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Error::Failed(format!("cannot write the plan: {error}")))
        }
        Ok(()) | Err(_) => Ok(plan.has_changes()),
    }
}

/// Reads both sides and makes the plan.
pub(in crate::run) async fn make(options: &Options, consul: &ConsulClient) -> Result<Plan, Error> {
    let Options { common, sync, timeout: limit } = options;
    let kubernetes = kubernetes(common).await?;
    let waits = PendingDependencies::default();
    let handshake = Handshake::new(common, sync, &kubernetes, consul, &waits);
    let (peers, holder) = timeout(*limit, handshake.look()).await.map_err(|_| {
        let why = waits.reason().unwrap_or_else(|| "no answer yet".to_owned());
        Error::Failed(format!("not reached within --timeout: {why}"))
    })??;
    Planner::new(sync, consul.clone(), &peers).run(&kubernetes, *limit, peers, holder).await
}

/// Collects what both sides show.
struct Planner<'a> {
    options: &'a SyncOptions,
    consul: ConsulClient,
    marker: Marker,
    owner: OwnerKey,
    core: Core,
    snapshot: Snapshot,
    forecast: Forecast<Cause>,
    /// The catalog's nodes that come or go, by namespace.
    nodes: BTreeMap<Box<str>, OwnChange>,
    notes: BTreeSet<String>,
    progress: ProgressBar,
    /// Newest failure of a watch.
    trouble: Option<String>,
}

/// What Consul is asked, one after the other.
enum Asked {
    /// All that is ours; whether the marker is there.
    Records(Result<bool, String>),
    /// The names that others hold.
    Names(Result<ForeignNames, String>),
}

// === impl Planner ===

impl<'a> Planner<'a> {
    fn new(options: &'a SyncOptions, consul: ConsulClient, peers: &PeerInfo) -> Self {
        // What the policy keeps is shown, so it is planned, and marked in `held_by`.
        let settings = Settings { policy: Policy::Sync, ..options.settings.clone() };
        let mut core = Core::new(Config::new(settings, options.sink.target()));
        let domain = options.consul_domain(peers.agent.as_ref());
        let mut notes = BTreeSet::new();
        if domain.is_none() {
            notes.insert(
                "no PTR record can be written: the datacenter or the DNS domain is not known; \
                 set --datacenter and --dns-domain"
                    .to_owned(),
            );
        }
        // Whether the catalog shows what an agent has is nothing to a plan.
        core.handle_connected(Peer { domain, shows_catalog: false }, NOW);
        core.handle_acquired(NOW);
        // Nothing is drawn where standard error is no terminal.
        let progress = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        // How much there is nobody knows before it is read.
        progress.set_style(ProgressStyle::default_spinner());
        progress.enable_steady_tick(TICK);
        Self {
            options,
            marker: options.marker(&consul),
            owner: OwnerKey::new(consul.clone(), &options.settings.cluster),
            consul,
            core,
            snapshot: Snapshot::default(),
            forecast: Forecast::new(options.settings.cluster.clone()),
            nodes: BTreeMap::new(),
            notes,
            progress,
            trouble: None,
        }
    }

    async fn run(
        mut self,
        kubernetes: &Connected,
        limit: Duration,
        peers: PeerInfo,
        holder: Option<Owner>,
    ) -> Result<Plan, Error> {
        let marked = self.read(kubernetes, limit).await?;
        self.progress.finish_and_clear();
        self.drain(&BTreeMap::new(), NOW).await?;
        let held = self.core.release_holds();
        if !held.is_empty() {
            self.drain(&held, NOW).await?;
        }
        self.drain(&held, SLICES_FOLLOWED).await?;
        let mut own = self.marks(marked, holder.as_ref(), &peers.uid);
        own.extend(self.nodes.into_values());
        let services = services(self.forecast.changes(&self.snapshot));
        let selects_any = self.core.selects_any();
        if !selects_any {
            self.notes.insert(NOTHING_SELECTED.to_owned());
        }
        let problems = self.core.problems().into_iter().map(ObjectProblem::new);
        Ok(Plan {
            cluster: self.options.settings.cluster.to_string(),
            cluster_uid: peers.uid,
            sink: match self.options.sink {
                SinkOptions::Agent => "agent",
                SinkOptions::Catalog { .. } => "catalog",
            },
            state: match (marked, holder) {
                (true, _) => State::Known,
                (false, Some(_)) => State::Lost,
                (false, None) => State::New,
            },
            summary: Summary::of(&own, &services),
            own,
            services,
            problems: problems.collect(),
            notes: self.notes.into_iter().collect(),
            selects_any,
        })
    }

    /// Lists Kubernetes and reads Consul. Whether our marker is there.
    async fn read(&mut self, kubernetes: &Connected, limit: Duration) -> Result<bool, Error> {
        let source = endpoint_source(&kubernetes.client).await;
        let source = source.map_err(|error| Error::Failed(error.to_string()))?;
        let mut watches: StreamMap<Kind, BoxStream<'static, Notice>> = StreamMap::new();
        let settings = &self.options.settings;
        let scopes = Scope::of(&settings.namespaces, &settings.deny_namespaces);
        let kinds = Watcher::within(kubernetes.client.clone(), scopes);
        if !settings.namespace_selector.is_empty() {
            watches.insert(Kind::Namespace, kinds.namespaces(Relist::default()));
        }
        watches.insert(Kind::Service, kinds.services(Relist::default()));
        watches.insert(Kind::EndpointSlice, kinds.endpoints(source, Relist::default()));
        for kind in settings.routes.iter() {
            watches.insert(kind, kinds.routes(kind, Relist::default()));
        }
        let (seen, mut observations) = mpsc::unbounded_channel();
        let mut asked: Option<BoxFuture<'static, Asked>> = None;
        let (mut marked, mut has_names) = (None, false);
        let (mut heard, mut objects) = (Instant::now(), 0_usize);
        loop {
            while let Some(action) = self.core.poll_look(NOW) {
                match action {
                    Action::Resync { .. } => asked = Some(self.read_records(seen.clone())),
                    Action::ReadNames => asked = Some(self.read_names()),
                    Action::WatchNodes => {
                        drop(watches.insert(Kind::Node, kinds.nodes(Relist::default())));
                    }
                    Action::StopWatchingNodes => drop(watches.remove(&Kind::Node)),
                    // What a bridge asks later, and again and again, is nothing to a plan.
                    _ => {}
                }
            }
            if has_names && self.core.is_listed() {
                return Ok(marked.unwrap_or(false));
            }
            tokio::select! {
                Some((_, notice)) = watches.next() => {
                    if let Notice::Event(_) = &notice {
                        (heard, objects) = (Instant::now(), objects + 1);
                    }
                    self.notice(notice);
                }
                Some(observation) = observations.recv() => {
                    (heard, objects) = (Instant::now(), objects + 1);
                    self.observe(observation);
                }
                Some(answer) = OptionFuture::from(asked.as_mut()) => {
                    (heard, asked) = (Instant::now(), None);
                    match answer {
                        Asked::Records(result) => {
                            while let Ok(observation) = observations.try_recv() {
                                self.observe(observation);
                            }
                            marked = Some(result.map_err(|why| unreadable(&why))?);
                            self.core.handle_resync(Ok(()), NOW);
                        }
                        Asked::Names(result) => {
                            let names = result.map_err(|why| unreadable(&why))?;
                            self.core.handle_names(Ok(names), NOW);
                            has_names = true;
                        }
                    }
                }
                () = sleep_until(heard + limit) => return Err(self.silent(has_names)),
            }
            self.progress.set_message(format!("{objects} objects and records"));
        }
    }

    fn read_records(&self, seen: mpsc::UnboundedSender<Observation>) -> BoxFuture<'static, Asked> {
        let reader = Reader {
            client: self.consul.clone(),
            cluster: self.options.settings.cluster.clone(),
            marker: self.marker.clone(),
            consistency: Consistency::Consistent,
            // It only looks.
            fence: None,
            removes_strays: !self.options.settings.never_removes(),
            seen,
        };
        let look = async move { reader.look().await.map_err(|error| chain(&error)) };
        look.map(Asked::Records).boxed()
    }

    fn read_names(&self) -> BoxFuture<'static, Asked> {
        let held = self.core.held_names();
        let cluster = self.options.settings.cluster.clone();
        let client = self.consul.clone();
        let read = async move {
            let is_held = |name: &str| held.contains(&*lookup_form(name));
            client.foreign_names(&cluster, is_held).await.map_err(|error| chain(&error))
        };
        read.map(Asked::Names).boxed()
    }

    fn silent(&self, consul_is_read: bool) -> Error {
        let trouble = self.trouble.as_deref().unwrap_or("it did not answer");
        Error::Failed(if consul_is_read {
            format!("not listed within --timeout: waiting for the Kubernetes API: {trouble}")
        } else {
            "not read within --timeout: waiting for Consul".to_owned()
        })
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Event(event) => self.core.handle_watch(event, NOW),
            Notice::Trouble(trouble) => {
                let denied = matches!(trouble.error, WatchError::Denied { .. });
                let denied = denied.then(|| trouble.error.to_string());
                self.core.handle_watch_failure(trouble.kind, denied, NOW);
                self.trouble = Some(trouble.error.to_string());
            }
            Notice::Recovered(_) => self.trouble = None,
            Notice::NotServed(kind) => self.core.handle_not_served(kind, NOW),
            Notice::Heard(_) => {}
        }
    }

    fn observe(&mut self, seen: Observation) {
        self.core.handle_observation(seen.clone());
        match seen {
            Observation::Registration(observed) => {
                let registration = observed.registration;
                self.snapshot.registrations.insert(registration.id.clone(), registration);
            }
            Observation::Ptr(observed) => {
                let record = observed.record;
                self.snapshot.reverse.insert(record.key, record.value);
            }
            Observation::NamespaceNode(namespace) => {
                self.snapshot.nodes.insert(namespace);
            }
            Observation::MarkerMissing => {}
            Observation::Stray(what) => {
                self.notes.insert(what);
            }
        }
    }

    /// Takes all that the core would do, as if each write had been applied. `held`: what of it is
    /// held back.
    async fn drain(&mut self, held: &BTreeMap<ObjectKey, Cause>, now: Moment) -> Result<(), Error> {
        // What follows from a removal that is held back is held back by the gravest cause.
        let gravest = held.values().max().copied();
        while let Some(action) = self.core.poll_action(now) {
            match action {
                Action::Write { flight, groups } => {
                    let mut answers = Vec::new();
                    for Group { service, writes } in groups {
                        let held_by = held.get(&service).copied().or(gravest);
                        // A PTR record goes with its instance.
                        let kept = writes.iter().find_map(|write| self.keeps(write));
                        for write in writes {
                            let held_by = kept.or(held_by);
                            // Any index will do for the next write, which is not sent either.
                            answers.push((write.key(), Answer::Applied { index: 1 }));
                            self.write(&service, write, held_by);
                        }
                    }
                    self.core.handle_answers(flight, answers, now);
                }
                // Only after a write whose fate is not known, and each of these is.
                Action::ReadPtr { flight, .. } => {
                    self.core.handle_ptr_read(flight, &Ok(None), now);
                }
                // A Service that came after the names were listed.
                Action::ReadName(name) => {
                    let cluster = &self.options.settings.cluster;
                    let found = self.consul.holders(&name, cluster).await;
                    self.core.handle_name(
                        &name,
                        Ok(found.map_err(|error| unreadable(&chain(&error)))?),
                        NOW,
                    );
                }
                Action::ReadNames => match self.read_names().await {
                    Asked::Names(names) => {
                        self.core.handle_names(Ok(names.map_err(|why| unreadable(&why))?), now);
                    }
                    Asked::Records(_) => {}
                },
                Action::RemoveNamespaceNode { flight, namespace } => {
                    self.remove_namespace_node(flight, &namespace, gravest, now).await?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the policy keeps what this write would remove, from a name for another one too.
    fn keeps(&self, write: &Write) -> Option<Cause> {
        let removes = match write {
            Write::Deregister { .. } | Write::DeletePtr { .. } => true,
            Write::Register(new) | Write::Replace(new) => {
                let before = self.snapshot.registrations.get(&new.id);
                before.is_some_and(|it| lookup_form(&it.service) != lookup_form(&new.service))
            }
            Write::PutPtr { .. } => false,
        };
        (removes && self.options.settings.never_removes()).then_some(Cause::Policy)
    }

    fn write(&mut self, service: &ObjectKey, write: Write, held_by: Option<Cause>) {
        if let (Write::Register(registration), Marker::BaseNode(names)) = (&write, &self.marker)
            && !self.snapshot.nodes.contains(&registration.namespace)
        {
            let change = node(names, Verb::Add, &registration.namespace, held_by);
            self.nodes.entry(registration.namespace.clone()).or_insert(change);
        }
        self.forecast.applied(service.clone(), write, held_by);
    }

    /// A node goes with the last record on it, unless others have something there.
    async fn remove_namespace_node(
        &mut self,
        flight: FlightId,
        namespace: &str,
        held_by: Option<Cause>,
        now: Moment,
    ) -> Result<(), Error> {
        let Marker::BaseNode(names) = &self.marker else { return Ok(()) };
        let name = names.of_namespace(namespace);
        let mark = Mark::Cluster(self.options.settings.cluster.clone());
        let on = self.consul.left_on_node(&name, &mark).await;
        let others = on.map_err(|error| unreadable(&chain(&error)))?.others;
        let kept = self.options.settings.never_removes().then_some(Cause::Policy);
        let held_by = kept.or(held_by);
        let answer = if others.is_empty() {
            self.nodes.insert(namespace.into(), node(names, Verb::Remove, namespace, held_by));
            NamespaceNodeAnswer::Removed
        } else {
            NamespaceNodeAnswer::Foreign { node: name, ids: others }
        };
        self.core.handle_namespace_node(flight, answer, now);
        Ok(())
    }

    /// What a bridge writes before anything else.
    fn marks(&self, marked: bool, holder: Option<&Owner>, uid: &str) -> Vec<OwnChange> {
        let mut own = Vec::new();
        let owner = |action, said: String| OwnChange {
            action,
            what: format!("KV key {}: {said}", self.owner.key()),
            held: None,
        };
        match holder {
            Some(Owner::Ours) => {}
            Some(Owner::Other(other)) => own.push(owner(Verb::Change, format!("{other} -> {uid}"))),
            None => own.push(owner(Verb::Add, uid.to_owned())),
        }
        if !marked {
            let what = match &self.marker {
                Marker::Sentinel(sentinel) => {
                    format!("service ID {} (the sentinel)", sentinel.id())
                }
                Marker::BaseNode(names) => format!("node {}", names.base()),
            };
            own.push(OwnChange { action: Verb::Add, what, held: None });
        }
        own
    }
}

fn node(names: &NodeNames, action: Verb, namespace: &str, held_by: Option<Cause>) -> OwnChange {
    let what = format!("node {}", names.of_namespace(namespace));
    OwnChange { action, what, held: held_by.map(held) }
}

fn unreadable(why: &str) -> Error {
    Error::Failed(format!("Consul cannot be read: {why}"))
}
