mod balancers;
mod by_slice;
mod cases;
mod catalog;
mod decisions;
mod faults;
mod hold;
mod large;
mod names;
mod namespaces;
mod nodes;
mod policy;
mod precedence;
mod routes;
mod shared_ptr;
mod slices;
mod table;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::domain::consul::names::{ForeignNames, Found, Holder, Holders};
use crate::domain::consul::ptr::ConsulDomain;
use crate::domain::consul::record::{
    Answer, NamespaceNodeAnswer, Observation, ObservedPtr, ObservedRegistration, PtrOwner,
    PtrRecord, RecordKey, Registration, Write,
};
use crate::domain::flights::FlightId;
use crate::domain::kube::cache::WATCHED;
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{Kind, SeenObject, Service, Subject, WatchEvent};
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::settings::{AddressMode, Settings};
use crate::domain::sync::{
    Action, Cause, Config, Core, Counts, Moment, Peer, Report, Target, Wait,
};
use crate::domain::testing::{ip, service, slice};

/// Longer than anything that is tried again waits: after so long without a write all is at rest.
const QUIET: Duration = Duration::from_secs(200);

/// What becomes of a write in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Applied,
    Failed,
    Denied,
    /// No answer, and never applied.
    Lost,
}

/// A bridge beside a Consul that exists in memory only.
struct Simulation {
    bridge: Core,
    now: Moment,
    registrations: BTreeMap<Box<str>, Registration>,
    kv: BTreeMap<Box<str>, ObservedPtr>,
    /// Namespaces that have a node.
    namespace_nodes: BTreeSet<Box<str>>,
    /// The names that others hold; `None`: they cannot be read for now.
    names: Option<ForeignNames>,
    /// Whether look-ups of names are answered by themselves.
    answers_look_ups: bool,
    /// The names that were looked up.
    looked_up: Vec<String>,
    /// Whether what a look-up shows of others came before what is there of ours.
    others_came_first: bool,
    index: u64,
    /// Writes that were sent.
    sent: Vec<Write>,
    /// What was asked and is answered by the test.
    asked: Vec<Action>,
    /// Whether resyncs are answered by themselves: once the first of a term was.
    resyncs: bool,
}

impl Simulation {
    fn new(settings: Settings) -> Self {
        Self::to(settings, Target::Agent)
    }

    /// One that writes to the catalog.
    fn of_catalog() -> Self {
        Self::to(settings(), Target::Catalog)
    }

    fn to(settings: Settings, target: Target) -> Self {
        let mut bridge = Core::new(Config::new(settings, target));
        bridge.handle_connected(peer(Some(domain())), Moment::ZERO);
        bridge.handle_acquired(Moment::ZERO);
        Self {
            bridge,
            now: Moment::ZERO,
            registrations: BTreeMap::new(),
            kv: BTreeMap::new(),
            namespace_nodes: BTreeSet::new(),
            names: Some(ForeignNames::default()),
            answers_look_ups: true,
            looked_up: Vec::new(),
            others_came_first: false,
            index: 0,
            sent: Vec::new(),
            asked: Vec::new(),
            resyncs: false,
        }
    }

    /// A new process with other settings beside the same Consul.
    fn restarted(self, settings: Settings) -> Self {
        let target = self.bridge.config.target;
        Self {
            registrations: self.registrations,
            kv: self.kv,
            namespace_nodes: self.namespace_nodes,
            names: self.names,
            index: self.index,
            ..Self::to(settings, target)
        }
    }

    /// The same of a copy of that Consul.
    fn restarted_beside(&self, settings: Settings) -> Self {
        Self {
            registrations: self.registrations.clone(),
            kv: self.kv.clone(),
            namespace_nodes: self.namespace_nodes.clone(),
            names: self.names.clone(),
            index: self.index,
            ..Self::to(settings, self.bridge.config.target)
        }
    }

    /// Leadership is lost: what was asked is never answered.
    fn lose(&mut self) {
        self.bridge.handle_lost(self.now);
        self.asked.clear();
        self.resyncs = false;
    }

    /// Leadership is acquired again; Consul is not read yet.
    fn acquire(&mut self) {
        self.bridge.handle_acquired(self.now);
    }

    fn list(&mut self, kind: Kind, objects: impl IntoIterator<Item = SeenObject>) {
        self.bridge.handle_watch(WatchEvent::ListStarted(kind), self.now);
        for object in objects {
            self.bridge.handle_watch(WatchEvent::Seen(object), self.now);
        }
        self.bridge.handle_watch(WatchEvent::ListCompleted(kind), self.now);
    }

    fn seen(&mut self, object: SeenObject) {
        self.bridge.handle_watch(WatchEvent::Seen(object), self.now);
    }

    fn deleted(&mut self, kind: Kind, name: &str) {
        self.bridge.handle_watch(WatchEvent::Deleted(kind, key(name)), self.now);
    }

    fn set_domain(&mut self, domain: Option<ConsulDomain>) {
        self.bridge.handle_connected(peer(domain), self.now);
    }

    /// From now on, others hold these names, which a listing shows.
    fn others_hold(&mut self, names: ForeignNames) {
        self.names = Some(names.clone());
        self.bridge.term.as_mut().unwrap().names.begin_listing();
        self.bridge.handle_names(Ok(names), self.now);
    }

    /// A resync begins, hurried if none was asked for.
    fn begin_resync(&mut self) {
        self.resyncs = false;
        if !self.is_asked(&Action::Resync { consistent: false }) {
            // As if its time had come.
            self.bridge.term.as_mut().unwrap().schedule.hurry_resync(self.now);
            while !self.is_asked(&Action::Resync { consistent: false }) {
                let action = self.bridge.poll_action(self.now).expect("a resync is due");
                assert!(!is_write(&action), "a resync comes before any write: {action:?}");
                self.take(action);
            }
        }
        self.asked.retain(|it| !matches!(it, Action::Resync { .. }));
    }

    /// The resync under way has shown everything.
    fn finish_resync(&mut self) {
        self.bridge.handle_resync(Ok(()), self.now);
        self.resyncs = true;
    }

    fn resync(&mut self) {
        self.begin_resync();
        self.show();
        self.finish_resync();
    }

    /// Whether something is asked and not answered yet.
    fn is_asked(&self, action: &Action) -> bool {
        let kind = std::mem::discriminant(action);
        self.asked.iter().any(|asked| std::mem::discriminant(asked) == kind)
    }

    /// Takes an action that is not a write: answers what answers itself, and keeps the others.
    fn take(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Heartbeat => self.bridge.handle_heartbeat(Ok(()), now),
            Action::WriteMarker => self.bridge.handle_marker_written(Ok(()), now),
            Action::ReadNames if self.names.is_some() => {
                let names = self.names.clone().unwrap_or_default();
                self.bridge.handle_names(Ok(names), now);
            }
            Action::ReadNames => self.bridge.handle_names(Err("no answer".to_owned()), now),
            Action::ReadName(name) if self.answers_look_ups => {
                let names = self.names.as_ref().ok_or_else(|| "no answer".to_owned());
                let came_first = self.others_came_first;
                let found = |holders: &Holders| Found { holders: holders.clone(), came_first };
                let found = names.map(|names| names.get(&*name).map(found));
                self.looked_up.push((&*name).into());
                self.bridge.handle_name(&name, found, now);
            }
            Action::Resync { .. } if self.resyncs => {
                self.show();
                self.bridge.handle_resync(Ok(()), now);
            }
            other => self.asked.push(other),
        }
    }

    /// The next action that is a write or belongs to one.
    fn next_action(&mut self) -> Option<Action> {
        loop {
            let action = self.bridge.poll_action(self.now);
            let Some(action) = action else {
                let next = self.bridge.next_timeout();
                assert!(next.is_none_or(|next| next > self.now), "it spins at {:?}", self.now);
                return None;
            };
            if is_write(&action) {
                return Some(action);
            }
            self.take(action);
        }
    }

    /// All actions that are writes or belong to one.
    fn next_actions(&mut self) -> Vec<Action> {
        std::iter::from_fn(|| self.next_action()).collect()
    }

    /// The writes that are to be sent now, in one group and with nothing beside them.
    fn next_writes(&mut self) -> (FlightId, Vec<Write>) {
        let actions = self.next_actions();
        let [Action::Write { flight, groups }] = &*actions else { panic!("{actions:?}") };
        let [group] = &**groups else { panic!("{groups:?}") };
        (*flight, group.writes.clone())
    }

    /// Answers the writes of a flight, in their order.
    fn answer_all(&mut self, flight: FlightId, writes: &[Write], answers: &[Answer]) {
        let answers = writes.iter().map(Write::key).zip(answers.iter().cloned()).collect();
        self.bridge.handle_answers(flight, answers, self.now);
    }

    /// What a resync under way shows.
    fn show(&mut self) {
        for registration in self.registrations.values() {
            let observed = ObservedRegistration { registration: registration.clone(), index: 0 };
            self.bridge.handle_observation(Observation::Registration(observed));
        }
        for entry in self.kv.values() {
            self.bridge.handle_observation(Observation::Ptr(entry.clone()));
        }
        for namespace in &self.namespace_nodes {
            self.bridge.handle_observation(Observation::NamespaceNode(namespace.clone()));
        }
    }

    /// Sends what is to be sent until nothing is, without letting time pass.
    fn step(&mut self, fate: &mut impl FnMut(&Write) -> Fate) {
        while let Some((flight, namespace)) = self.step_until_node(fate) {
            let stands = |id: &str| id.starts_with(&format!("kubernetes_{namespace}_"));
            let answer = if self.registrations.keys().any(|id| stands(id)) {
                NamespaceNodeAnswer::InUse
            } else {
                self.namespace_nodes.remove(&namespace);
                NamespaceNodeAnswer::Removed
            };
            self.bridge.handle_namespace_node(flight, answer, self.now);
        }
    }

    /// As [`Self::step`], up to the first node that is to be removed.
    fn step_until_node(
        &mut self,
        fate: &mut impl FnMut(&Write) -> Fate,
    ) -> Option<(FlightId, Box<str>)> {
        while let Some(action) = self.next_action() {
            match action {
                Action::RemoveNamespaceNode { flight, namespace } => {
                    return Some((flight, namespace));
                }
                action => self.deliver(action, fate),
            }
        }
        None
    }

    /// Answers a write or the reading of a key.
    fn deliver(&mut self, action: Action, fate: &mut impl FnMut(&Write) -> Fate) {
        match action {
            Action::ReadPtr { flight, key } => {
                let found = self.kv.get(&key).cloned();
                self.bridge.handle_ptr_read(flight, &Ok(found), self.now);
            }
            Action::Write { flight, groups } => {
                let mut answers = Vec::new();
                for group in groups {
                    let mut failed = false;
                    for write in group.writes {
                        let record = write.key();
                        let answer =
                            if failed { Answer::NotSent } else { self.answer(write, fate) };
                        failed |= !matches!(answer, Answer::Applied { .. });
                        answers.push((record, answer));
                    }
                }
                self.bridge.handle_answers(flight, answers, self.now);
            }
            other => panic!("{other:?}"),
        }
    }

    fn answer(&mut self, write: Write, fate: &mut impl FnMut(&Write) -> Fate) -> Answer {
        self.sent.push(write.clone());
        match fate(&write) {
            Fate::Applied => self.apply(write),
            Fate::Failed => Answer::Failed("no leader".to_owned()),
            Fate::Denied => Answer::Denied("no right".to_owned()),
            Fate::Lost => Answer::Unanswered("timeout".to_owned()),
        }
    }

    fn apply(&mut self, write: Write) -> Answer {
        self.index += 1;
        let index = self.index;
        let there =
            |kv: &BTreeMap<Box<str>, ObservedPtr>, key: &str| kv.get(key).map_or(0, |e| e.index);
        match write {
            Write::Register(registration) | Write::Replace(registration) => {
                self.namespace_nodes.insert(registration.namespace.clone());
                self.registrations.insert(registration.id.clone(), registration);
            }
            Write::Deregister { id, .. } => {
                self.registrations.remove(&id);
            }
            Write::PutPtr { record, cas } => {
                if there(&self.kv, &record.key) != cas {
                    return Answer::Conflict;
                }
                let flags = PtrOwner::flags(&cluster());
                self.kv.insert(record.key.clone(), ObservedPtr { record, flags, index });
            }
            Write::DeletePtr { key, cas } => {
                if there(&self.kv, &key) != cas {
                    return Answer::Conflict;
                }
                self.kv.remove(&key);
            }
        }
        Answer::Applied { index }
    }

    /// Lets time pass until nothing was sent for long, reading Consul where that is due. Gives when
    /// the last write was sent.
    fn settle_with(&mut self, mut fate: impl FnMut(&Write) -> Fate) -> Moment {
        let mut last = self.now;
        for _ in 0..10_000 {
            let sent = self.sent.len();
            self.step(&mut fate);
            if self.sent.len() > sent {
                last = self.now;
            }
            if self.now >= last + QUIET {
                return last;
            }
            let next = [self.bridge.next_timeout(), Some(last + QUIET)];
            self.now = next.into_iter().flatten().min().unwrap_or(self.now).max(self.now);
        }
        panic!("it does not come to rest");
    }

    fn settle(&mut self) -> Moment {
        self.settle_with(|_| Fate::Applied)
    }

    /// What was registered, as `name address check`.
    fn registered(&self) -> Vec<String> {
        self.registrations
            .values()
            .map(|r| format!("{} {} {:?}", r.service, r.address, r.check))
            .collect()
    }

    fn take_sent(&mut self) -> usize {
        std::mem::take(&mut self.sent).len()
    }
}

fn foreign(names: &[&str]) -> ForeignNames {
    let holders = || Holders { others: Holder::Other, ours: false };
    names.iter().map(|name| ((*name).into(), holders())).collect()
}

fn cluster() -> crate::domain::kube::names::ClusterName {
    "kubernetes".parse().unwrap()
}

fn settings() -> Settings {
    Settings::new(cluster())
}

fn domain() -> ConsulDomain {
    ConsulDomain { datacenter: "dc1".into(), domain: "consul".into() }
}

fn peer(domain: Option<ConsulDomain>) -> Peer {
    Peer { domain, shows_catalog: false }
}

fn is_write(action: &Action) -> bool {
    matches!(
        action,
        Action::Write { .. } | Action::ReadPtr { .. } | Action::RemoveNamespaceNode { .. }
    )
}

fn key(name: &str) -> ObjectKey {
    ObjectKey::new("ns", name)
}

/// Service `s<n>` at 10.0.0.<n>.
fn numbered(n: u8) -> Service {
    service()
        .with(|s| {
            s.cluster_ips = vec![ip(&format!("10.0.0.{n}"))];
            s.uid = format!("uid-{n}").into();
        })
        .build()
}

fn service_seen(n: u8) -> SeenObject {
    SeenObject::Service(key(&format!("s{n}")), numbered(n))
}

/// A Service that wants the name `shared`.
fn sharing(uid: &str, created: i64) -> SeenObject {
    let service = service()
        .annotations(&[("kube-consul.io/service-name", "shared")])
        .with(|s| {
            s.uid = uid.into();
            s.created = created;
        })
        .build();
    SeenObject::Service(key(uid), service)
}

/// Service `s<n>` under this name.
fn named(n: u8, name: &str) -> SeenObject {
    let mut service = numbered(n);
    service.annotations.insert("kube-consul.io/service-name".into(), name.into());
    SeenObject::Service(key(&format!("s{n}")), service)
}

fn slice_seen(n: u8, ready: bool) -> SeenObject {
    let endpoints = [(format!("10.1.0.{n}"), ready)];
    let endpoints: Vec<(&str, bool)> = endpoints.iter().map(|(a, r)| (a.as_str(), *r)).collect();
    SeenObject::EndpointSlice(
        key(&format!("s{n}-x")),
        slice(&format!("s{n}"), &[("http", 8080)], &endpoints),
    )
}

/// A former process has written this PTR record, late.
fn written_late(simulation: &mut Simulation, entry: ObservedPtr) {
    simulation.kv.insert(entry.record.key.clone(), entry);
    simulation.resync();
    simulation.settle();
}

/// A second list of everything, and the cluster is the same.
fn confirm(simulation: &mut Simulation, services: Vec<SeenObject>, slices: Vec<SeenObject>) {
    begin_confirmation(simulation);
    simulation.list(Kind::Service, services);
    simulation.list(Kind::EndpointSlice, slices);
    simulation.bridge.handle_identity(Ok(()), simulation.now);
    simulation.settle();
}

/// Waits until a second list is asked for.
fn begin_confirmation(simulation: &mut Simulation) {
    if !simulation.is_asked(&Action::Relist) {
        simulation.now += Duration::from_secs(11);
        simulation.next_actions();
    }
    for action in [Action::Relist, Action::ReadIdentity] {
        assert!(simulation.is_asked(&action), "{action:?} is due");
        simulation.asked.retain(|asked| *asked != action);
    }
    simulation.next_actions();
    assert!(!simulation.is_asked(&Action::Relist), "it is asked for once");
}

fn messages(simulation: &Simulation, n: u8) -> Vec<String> {
    let key = key(&format!("s{n}"));
    let problems = simulation.bridge.problems().into_iter();
    let of_service = problems.filter(|it| it.0 == Subject::Service && *it.1 == key);
    of_service.map(|(_, _, problem)| problem.message.clone()).collect()
}

/// A bridge in sync with Services `s1` to `s<count>`, all ready.
fn in_sync(count: u8) -> Simulation {
    filled(Simulation::new(settings()), count)
}

fn filled(mut simulation: Simulation, count: u8) -> Simulation {
    simulation.resync();
    simulation.list(Kind::Service, (1..=count).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=count).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), usize::from(count));
    assert_eq!(simulation.kv.len(), usize::from(count));
    simulation.take_sent();
    simulation.bridge.take_reports();
    simulation
}

#[test]
fn nothing_is_written_before_all_is_listed_and_read() {
    let mut simulation = Simulation::new(settings());
    simulation.list(Kind::Service, [service_seen(1)]);
    simulation.settle();
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "Consul was not read");
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
    assert_eq!(
        &*simulation.kv["0.0.0.10.IN-ADDR.ARPA/10.0.0.1"].record.value,
        "s1.service.dc1.consul"
    );
    assert!(simulation.bridge.is_settled());
}

#[test]
fn equal_means_silent() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "after a resync");
    let mut simulation = simulation.restarted(settings());
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "after a restart");
}

#[test]
fn a_change_costs_the_records_that_it_changes() {
    let mut simulation = in_sync(30);
    simulation.seen(slice_seen(7, false));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 1);
    assert!(simulation.registered().contains(&"s7 10.0.0.7 Critical".to_owned()));
    simulation.deleted(Kind::Service, "s7");
    simulation.settle();
    assert_eq!(simulation.take_sent(), 2, "the instance and its PTR record");
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (29, 29));
}

#[test]
fn an_address_moves_new_before_old() {
    let mut simulation = in_sync(1);
    simulation.seen(SeenObject::Service(key("s1"), numbered(9)));
    let mut order = Vec::new();
    simulation.settle_with(|write| {
        order.push(matches!(write, Write::Register(_) | Write::Replace(_) | Write::PutPtr { .. }));
        Fate::Applied
    });
    assert_eq!(order, [true, true, false, false]);
    assert_eq!(simulation.registered(), ["s1 10.0.0.9 None"]);
    assert_eq!(simulation.kv.len(), 1);
}

#[test]
fn foreign_ptr_keys_are_left_alone() {
    let reverse = "0.0.0.10.IN-ADDR.ARPA/10.0.0.1";
    let other = PtrOwner::flags(&"other".parse().unwrap());
    for (value, flags, problems) in [
        ("s1.service.dc1.consul", 0, 0),
        ("printer.example.org", 0, 1),
        ("printer.example.org", 42, 1),
        ("s1.service.dc1.consul", other, 0),
        ("s9.service.dc1.consul", other, 0),
    ] {
        for known_at_start in [true, false] {
            let mut simulation = Simulation::new(settings());
            let record = PtrRecord { key: reverse.into(), value: value.into() };
            let entry = ObservedPtr { record, flags, index: 7 };
            if !known_at_start {
                simulation.resync();
            }
            simulation.kv.insert(reverse.into(), entry.clone());
            if known_at_start {
                simulation.resync();
            }
            simulation.list(Kind::Service, [service_seen(1)]);
            simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
            simulation.settle();
            let row = format!("{value} {flags} {known_at_start}");
            if known_at_start {
                assert_eq!(simulation.take_sent(), 1, "{row}: the instance only");
            }
            assert_eq!(simulation.kv[reverse], entry, "{row}");
            assert_eq!(simulation.bridge.counts().problems, problems, "{row}");
            simulation.deleted(Kind::Service, "s1");
            simulation.settle();
            assert_eq!(simulation.kv[reverse], entry, "{row}: left when the Service goes");
        }
    }
}

#[test]
fn a_foreign_ptr_key_that_goes_away_is_written() {
    let reverse = "0.0.0.10.IN-ADDR.ARPA/10.0.0.1";
    let mut simulation = in_sync(1);
    let entry = simulation.kv.get_mut(reverse).unwrap();
    entry.flags = 0;
    entry.record.value = "mine".into();
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.bridge.counts().problems, 1);
    simulation.kv.clear();
    simulation.resync();
    simulation.settle();
    assert_eq!(&*simulation.kv[reverse].record.value, "s1.service.dc1.consul");
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn a_service_that_cannot_be_read_keeps_what_it_has() {
    let simulation = in_sync(3);
    let mut simulation = simulation.restarted(settings());
    let unread =
        SeenObject::Undecodable(Kind::Service, key("s2"), "spec.ports: expected a list".to_owned());
    simulation.list(Kind::Service, [service_seen(1), unread, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    let problems: Vec<_> =
        simulation.bridge.problems().into_iter().map(|(_, k, p)| (k.clone(), p.reason)).collect();
    assert_eq!(problems, [(key("s2"), Reason::Undecodable)]);
    simulation.deleted(Kind::Service, "s2");
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    assert_eq!(simulation.bridge.counts().problems, 0);
}

type Choice = fn(&mut Settings);

#[test]
fn without_a_ptr_zone_each_service_with_an_address_has_a_problem() {
    let mut simulation = in_sync(2);
    simulation.set_domain(None);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "what is written stays");
    let reasons: Vec<Reason> =
        simulation.bridge.problems().into_iter().map(|(_, _, problem)| problem.reason).collect();
    assert_eq!(reasons, [Reason::NoDnsDomain; 2]);
}

#[test]
fn a_service_that_could_not_be_read_is_removed_when_a_list_lacks_it() {
    let mut simulation = in_sync(3).restarted(settings());
    let unread = SeenObject::Undecodable(Kind::Service, key("s2"), "no".to_owned());
    simulation.list(Kind::Service, [service_seen(1), unread, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.resync();
    simulation.settle();
    simulation.list(Kind::Service, [service_seen(1), service_seen(3)]);
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (2, 2));
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn a_slice_that_could_not_be_read_has_no_problem_when_a_list_lacks_it() {
    let mut simulation = in_sync(1);
    simulation.seen(SeenObject::Undecodable(Kind::EndpointSlice, key("x"), "no".to_owned()));
    assert_eq!(simulation.bridge.counts().problems, 1);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn a_service_that_is_read_again_keeps_its_ptr_record() {
    let mut simulation = in_sync(3).restarted(settings());
    let unread = SeenObject::Undecodable(Kind::Service, key("s2"), "no".to_owned());
    simulation.list(Kind::Service, [service_seen(1), unread, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.resync();
    simulation.settle();
    simulation.seen(service_seen(2));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn of_services_that_are_read_again_at_once_none_loses_its_ptr_record() {
    let mut before = in_sync(4);
    // All that is left of one is its PTR record.
    before.registrations.retain(|id, _| !id.contains("_s3_"));
    let mut simulation = before.restarted(settings());
    let unread = |n| SeenObject::Undecodable(Kind::Service, key(&format!("s{n}")), "no".to_owned());
    simulation.list(Kind::Service, [service_seen(1), unread(2), unread(3), service_seen(4)]);
    simulation.list(Kind::EndpointSlice, (1..=4).map(|n| slice_seen(n, true)));
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.kv.len(), 4);
    simulation.seen(service_seen(2));
    simulation.seen(service_seen(3));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 1, "the instance that was lost");
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (4, 4));
}

#[test]
fn a_service_that_is_seen_while_orphaned_ptr_records_are_removed_keeps_its_own() {
    let mut before = in_sync(50);
    // Of twenty Services that went while nobody looked the PTR records are left.
    before.registrations.retain(|_, it| (21..=50).any(|n| *it.service == *format!("s{n}")));
    let mut simulation = before.restarted(settings());
    simulation.resync();
    simulation.list(Kind::Service, (21..=50).map(service_seen));
    simulation.list(Kind::EndpointSlice, (21..=50).map(|n| slice_seen(n, true)));
    let first = simulation.next_actions();
    assert!((1..20).contains(&first.len()), "not all at once: {first:?}");
    let first_keys = format!("{first:?}");
    let is_left = |n: &u8| !first_keys.contains(&format!("/10.0.0.{n}\""));
    let left = (1..=20).find(is_left).expect("some are left");
    simulation.seen(service_seen(left));
    for action in first {
        simulation.deliver(action, &mut |_| Fate::Applied);
    }
    simulation.settle();
    assert_eq!(simulation.take_sent(), 20, "the others, and its instance");
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (31, 31));
}

#[test]
fn only_labels_that_can_change_a_registration_are_kept() {
    let mut selecting = settings();
    selecting.selector = "tier in (web)".parse().unwrap();
    let mut simulation = Simulation::new(selecting);
    simulation.resync();
    let labelled = |labels: &[(&str, &str)]| {
        let mut service = numbered(1);
        service.labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        SeenObject::Service(key("s1"), service)
    };
    simulation.list(Kind::Service, [labelled(&[("tier", "web"), ("chart", "1.0")])]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 1);
    let kept = &simulation.bridge.cache().service(&key("s1")).unwrap().labels;
    assert_eq!(kept.keys().map(|key| &**key).collect::<Vec<_>>(), ["tier"]);
    simulation.seen(labelled(&[("tier", "web"), ("chart", "1.1")]));
    assert_eq!(simulation.bridge.counts().backlog, 0);
    simulation.seen(labelled(&[("tier", "web"), ("consul", "true")]));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 0, "an import");
}
