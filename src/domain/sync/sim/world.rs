//! One Kubernetes, one Consul, some bridges, and the time that passes between them.

mod actions;
mod election;
mod end;
mod outside;
mod process;
mod readings;
mod requests;

use self::process::Process;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::domain::consul::names::{Found, lookup_form};
use crate::domain::consul::ptr::{ConsulDomain, ptr_key};
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, Observation, ObservedPtr, PtrOwner, RecordKey, Registration, Write,
};
use crate::domain::consul::registration_id::service_of_id;
use crate::domain::flights::FlightId;
use crate::domain::kube::names::{ClusterName, ObjectKey};
use crate::domain::kube::object::{Kind, SeenObject, Service, Subject, WatchEvent};
use crate::domain::problem::Problem;
use crate::domain::services::desired::wanted;
use crate::domain::services::settings::{PtrScope, Settings};
use crate::domain::sync::sim::consul::{Consul, FAILING_TAG, REFUSED_TAG, registered_by};
use crate::domain::sync::sim::invariants::{Addresses, Checked, MAY_STILL_APPLY, Term, Wanted};
use crate::domain::sync::sim::kubernetes::{
    JOIN, Kubernetes, MACHINES, Said, View, Watch, address, key_of, service_of, service_of_slice,
};
use crate::domain::sync::sim::ops::{Crowd, Drift, Fate, Foreign, Op, Pace, Scenario, Target};
use crate::domain::sync::{
    Action, Capacity, Cause, Config, Core, Group, Moment, Peer, Readiness, Report,
    Target as CoreTarget, Wait,
};
use crate::domain::testing::ip;

/// How many bridges elect a leader.
const BRIDGES: usize = 2;
/// Between two tries for the lock.
const CAMPAIGN: Duration = Duration::from_millis(200);
const CAMPAIGN_RETRY: Duration = Duration::from_secs(1);
/// Until a leader hears that its session is over.
const RENEWAL: Duration = Duration::from_secs(3);
/// Until the session of a process that is gone runs out.
const SESSION: Duration = Duration::from_secs(15);
/// So much later a second list confirms what the first one lacked.
const SECOND_LIST: Duration = Duration::from_secs(10);
/// Longer than whatever waits by itself, but for what people have to fix and for readings.
const QUIET: Duration = Duration::from_secs(32);
const TICK: Duration = Duration::from_millis(1);
/// More steps than any sequence takes that comes to rest.
const MOST_STEPS: usize = 200_000;
/// More actions than there may be at one moment.
const MOST_ACTIONS: usize = 1000;

pub(super) struct World {
    pub(super) now: Moment,
    pub(super) scenario: Scenario,
    settings: Settings,
    pub(super) kubernetes: Kubernetes,
    pub(super) consul: Consul,
    processes: Vec<Process>,
    events: BTreeMap<(Moment, u64), Event>,
    serial: u64,
    requests: BTreeMap<u64, Request>,
    fates: VecDeque<(Fate, Pace)>,
    /// The same for removals of nodes.
    node_fates: VecDeque<(Fate, Pace)>,
    /// What becomes of each request, and until when.
    outage: Option<(Fate, Moment)>,
    /// How long each request takes, and until when.
    slow: Option<(Pace, Moment)>,
    /// How long each request of a reading takes, and which fails.
    readings: (Duration, Option<u8>),
    /// Names that machines have ever had.
    pub(super) machines: BTreeSet<Box<str>>,
    /// Records that writes of ours have changed.
    pub(super) applied: Vec<RecordKey>,
    /// Records that were written with a former token, late, which no reading can show.
    pub(super) old_tokens: BTreeSet<RecordKey>,
    /// How many changes of PTR records those that follow them were told of.
    ptr_told: u64,
    /// When somebody else changed something, or a process that is gone.
    disturbed: Moment,
    /// How often a record was changed behind the back of whoever leads, but for what was lost with the
    /// marker.
    tampered: usize,
    steps: usize,
    trace: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lead {
    Alone,
    /// It has to end this session before it tries again.
    Candidate {
        ending: Option<u32>,
    },
    Leading {
        session: u32,
    },
}

/// Whom an event is for: nobody any more, once that process or its term is over.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Of {
    place: usize,
    process: u64,
    term: u64,
}

#[derive(Debug)]
enum Event {
    Connect(Of),
    Campaign(Of),
    Renewal(Of, u32),
    SessionOver(u32),
    /// Somebody changes something once more.
    Drifts(Drift, u8),
    Arrives(u64),
    AppliedLate(Late),
    NodeGoes(u64),
    Answered(u64),
    ReadingReads(Of),
    ReadingShows(Of, Vec<Observation>),
    Names(Of),
    Name(Of, Arc<str>),
    NameShown(Of, Arc<str>, Result<Option<Found>, String>),
    Catalog(Of),
    Identity(Of),
    /// What a process is told of the PTR keys that it follows.
    PtrKeys(Of),
    MarkerLost(Of),
    MarkerWritten(Of),
    Heartbeat(Of),
}

struct Request {
    of: Of,
    flight: FlightId,
    session: Option<u32>,
    token: u32,
    what: What,
    fate: Fate,
    back: Duration,
    reply: Option<Reply>,
}

/// What a request that was given up may still do.
#[derive(Debug)]
struct Late {
    of: Of,
    session: Option<u32>,
    token: u32,
    what: What,
}

#[derive(Debug)]
enum What {
    Write(Vec<Vec<Write>>),
    ReadPtr(Box<str>),
    RemoveNode(Box<str>),
}

enum Reply {
    /// With how often each record had been changed when its write was applied.
    Answers(Vec<(RecordKey, Answer)>, BTreeMap<RecordKey, u64>),
    Ptr(Result<Option<ObservedPtr>, String>),
    Node(NamespaceNodeAnswer),
}

/// A reading of Consul that goes on.
struct Reading {
    began: Moment,
    left: VecDeque<Part>,
    at: u8,
}

#[derive(Debug)]
enum Part {
    Nodes,
    Node(Box<str>),
    Agent,
    Kv,
}

pub(super) fn cluster() -> ClusterName {
    "kubernetes".parse().expect("it is a label")
}

// === impl World ===

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let mut settings = Settings::new(cluster());
        if scenario.pods_have_ptr {
            settings.reverse = PtrScope::All;
        }
        if scenario.trusts {
            settings.annotations.trusted_namespaces.insert("b".into());
        }
        let mut new = Self {
            now: Moment::ZERO,
            scenario,
            settings,
            kubernetes: Kubernetes::default(),
            consul: Consul::new(cluster(), scenario.target != Target::Agent),
            processes: Vec::new(),
            events: BTreeMap::new(),
            serial: 0,
            requests: BTreeMap::new(),
            fates: VecDeque::new(),
            node_fates: VecDeque::new(),
            outage: None,
            slow: None,
            readings: (TICK, None),
            machines: BTreeSet::new(),
            applied: Vec::new(),
            old_tokens: BTreeSet::new(),
            ptr_told: 0,
            disturbed: Moment::ZERO,
            tampered: 0,
            steps: 0,
            trace: false,
        };
        if scenario.crowd {
            new.kubernetes.put_crowd(255, Crowd::Ready);
        }
        let count = if scenario.target == Target::Elected { BRIDGES } else { 1 };
        for place in 0..count {
            let process = new.process();
            new.processes.push(process);
            let of = new.of(place);
            new.after(TICK, Event::Connect(of));
        }
        new
    }

    /// One undisturbed bridge beside the same cluster, and a Consul that has only what others
    /// have in it.
    pub(super) fn calm(&self) -> Self {
        let target = match self.scenario.target {
            Target::Elected => Target::Catalog,
            target => target,
        };
        let mut calm = Self::new(Scenario { target, ..self.scenario });
        calm.kubernetes = Kubernetes::with_objects_of(&self.kubernetes);
        calm.consul = Consul::without_ours(&self.consul);
        calm.machines.clone_from(&self.machines);
        calm
    }

    pub(super) fn traced(mut self) -> Self {
        self.trace = true;
        self
    }

    fn process(&mut self) -> Process {
        let target = match self.scenario.target {
            Target::Agent => CoreTarget::Agent,
            Target::Catalog | Target::Elected => CoreTarget::Catalog,
        };
        let lead = match self.scenario.target {
            Target::Elected => Lead::Candidate { ending: None },
            Target::Agent | Target::Catalog => Lead::Alone,
        };
        self.serial += 1;
        let watches = [Kind::Service, Kind::EndpointSlice].map(|kind| (kind, Watch::new()));
        Process {
            core: Core::new(Config {
                seed: self.serial,
                resync: self.scenario.resync(),
                ..Config::new(self.settings.clone(), target)
            }),
            capacity: Config::new(self.settings.clone(), target).capacity,
            told: BTreeSet::new(),
            number: self.serial,
            is_connected: false,
            lead,
            terms: 0,
            term: Term::default(),
            reading: None,
            read: None,
            read_all: None,
            busy: self.now,
            watches: watches.into(),
            view: View::default(),
            excused: BTreeMap::new(),
            lacking_since: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            identified: None,
            follows_ptr: false,
        }
    }

    fn of(&self, place: usize) -> Of {
        let process = &self.processes[place];
        Of { place, process: process.number, term: process.terms }
    }

    /// Whether the process is still there.
    fn is_there(&self, of: Of) -> bool {
        self.processes[of.place].number == of.process
    }

    /// Whether its term is, too.
    fn is_current(&self, of: Of) -> bool {
        self.of(of.place) == of
    }

    fn after(&mut self, delay: Duration, event: Event) {
        self.serial += 1;
        self.events.insert((self.now + delay, self.serial), event);
    }

    /// Lets this time pass.
    pub(super) fn pass(&mut self, time: Duration) -> Checked {
        let until = self.now + time;
        while let Some((due, next)) = self.next().filter(|(due, _)| *due <= until) {
            self.now = self.now.max(due);
            self.steps += 1;
            if self.steps > MOST_STEPS {
                return Err("it does not come to rest".to_owned());
            }
            match next {
                Next::Event => {
                    let (_, event) = self.events.pop_first().expect("one is due");
                    if self.trace {
                        eprintln!("{:>9.3}   {event:?}", self.now.as_secs_f64());
                    }
                    self.take(event)?;
                }
                Next::Watch(place, kind) => self.watch_says(place, kind)?,
                Next::Timer(place) => self.turn(place)?,
            }
            self.tell_followers();
            if let Some(entry) = self.consul.overwritten.take() {
                return Err(format!("what others have is overwritten: {entry}"));
            }
        }
        self.now = until;
        Ok(())
    }

    /// Those that follow PTR keys hear of each change a little later.
    fn tell_followers(&mut self) {
        if std::mem::replace(&mut self.ptr_told, self.consul.ptr_changes) == self.consul.ptr_changes
        {
            return;
        }
        for place in 0..self.processes.len() {
            if self.processes[place].follows_ptr {
                let of = self.of(place);
                self.after(TICK, Event::PtrKeys(of));
            }
        }
    }

    fn next(&self) -> Option<(Moment, Next)> {
        let event = self.events.first_key_value().map(|((due, _), _)| (*due, Next::Event));
        let mut first = event;
        let mut offer = |due: Moment, next: Next| {
            if first.as_ref().is_none_or(|(sooner, _)| due < *sooner) {
                first = Some((due, next));
            }
        };
        for (place, process) in self.processes.iter().enumerate() {
            if let Some(due) = process.core.next_timeout() {
                offer(due, Next::Timer(place));
            }
            for (kind, watch) in &process.watches {
                if let Some(due) = watch.due(*kind, &self.kubernetes) {
                    offer(due, Next::Watch(place, *kind));
                }
            }
        }
        first
    }

    fn watch_says(&mut self, place: usize, kind: Kind) -> Checked {
        let now = self.now;
        let process = &mut self.processes[place];
        let watch = process.watches.get_mut(&kind).expect("it is due");
        let said = watch.says(kind, &self.kubernetes);
        watch.stalled_until = now + TICK;
        process.busy = now;
        match said {
            Said::Nothing => {}
            Said::Denied => {
                watch.stalled_until = now + Duration::from_secs(5);
                process.core.handle_watch_failure(kind, Some("no right".to_owned()), now);
            }
            Said::Events(events) => {
                for event in events {
                    process.note_change(&event);
                    process.view.take(&event, &[]);
                    process.core.handle_watch(event, now);
                }
            }
            Said::Listed(events, hidden) => {
                let shows_all = hidden.is_empty();
                let is_empty = process.view.shows_nothing(kind, &events);
                let hidden =
                    process.weigh(&self.settings, &self.consul, (kind, is_empty), hidden, now);
                for event in events {
                    process.note_change(&event);
                    process.view.take(&event, &hidden);
                    process.core.handle_watch(event, now);
                }
                if shows_all {
                    process.shown_all(kind);
                }
                let view = &process.view.objects;
                let exists = |key: &ObjectKey| view.contains_key(&(Kind::Service, key.clone()));
                process.term.deselected.retain(exists);
            }
        }
        self.turn(place)
    }

    /// Whether a request of that number fails by [`Op::Readings`].
    fn told_to_fail(&self, number: u8) -> Result<(), String> {
        let (_, fails_at) = self.readings;
        if fails_at == Some(number) { Err("told by the simulation".to_owned()) } else { Ok(()) }
    }

    fn take(&mut self, event: Event) -> Checked {
        match event {
            Event::Connect(of) if self.is_current(of) => self.connect(of.place),
            Event::Campaign(of) if self.is_current(of) => self.campaign(of.place),
            Event::Renewal(of, session)
                if self.is_current(of) && self.consul.lock != Some(session) =>
            {
                self.lost(of.place, false)
            }
            Event::SessionOver(session) => {
                self.session_over(session);
                Ok(())
            }
            Event::Drifts(drift, n) => {
                self.drift(drift, n);
                Ok(())
            }
            Event::Arrives(request) => {
                self.arrives(request);
                Ok(())
            }
            Event::AppliedLate(late) => {
                self.apply_late(&late);
                Ok(())
            }
            Event::NodeGoes(request) => {
                self.node_goes(request);
                Ok(())
            }
            Event::Answered(request) => self.answered(request),
            Event::ReadingReads(of) if self.is_current(of) => self.reading_reads(of),
            Event::ReadingShows(of, shown) if self.is_current(of) => self.reading_shows(of, &shown),
            Event::Names(of) if self.is_current(of) => self.names_read(of),
            Event::Name(of, name) if self.is_current(of) => {
                self.name_read(of, name);
                Ok(())
            }
            Event::NameShown(of, name, found) if self.is_current(of) => {
                self.name_shown(of, &name, found)
            }
            Event::Catalog(of) if self.is_current(of) => self.catalog_read(of),
            Event::Identity(of) if self.is_there(of) => self.identity_read(of),
            Event::PtrKeys(of) if self.is_current(of) => self.ptr_keys_shown(of),
            Event::MarkerLost(of) if self.is_there(of) => {
                self.processes[of.place].core.handle_marker_lost(self.now);
                self.turn(of.place)
            }
            Event::MarkerWritten(of) if self.is_there(of) => {
                self.consul.marker = true;
                self.processes[of.place].core.handle_marker_written(Ok(()), self.now);
                self.turn(of.place)
            }
            Event::Heartbeat(of) if self.is_there(of) => {
                self.processes[of.place].core.handle_heartbeat(Ok(()), self.now);
                self.turn(of.place)
            }
            _ => Ok(()),
        }
    }
}

/// What depends on more than what is there now.
#[derive(Debug, Default)]
pub(super) struct Past {
    pub(super) services: BTreeSet<ObjectKey>,
    pub(super) namespaces: BTreeSet<Box<str>>,
    pub(super) ptr: BTreeSet<Box<str>>,
}

/// Which Service has which name by this registration.
fn held_by(registration: &Registration) -> Option<(ObjectKey, Box<str>)> {
    let service = service_of_id(&cluster(), &registration.id)?;
    Some((service, lookup_form(&registration.service).into()))
}

enum Next {
    Event,
    Watch(usize, Kind),
    Timer(usize),
}
