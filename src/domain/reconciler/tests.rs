mod catalog;
mod nodes;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::domain::object::{Kind, Service};
use crate::domain::record::{
    Answer, NamespaceNodeAnswer, ObservedRegistration, ObservedReverse, Registration, ReverseOwner,
    ReverseRecord,
};
use crate::domain::settings::AddressMode;
use crate::domain::testing::{ip, service, slice};
use crate::domain::world::WATCHED;

/// What becomes of a write in the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Applied,
    Failed,
    Denied,
    /// No answer, and never applied.
    Lost,
    /// No answer, and applied all the same.
    AppliedUnanswered,
    /// No answer, and applied 20 s later.
    AppliedLate,
}

/// A bridge beside a Consul that exists in memory only.
struct Simulation {
    bridge: Reconciler,
    now: Moment,
    registrations: BTreeMap<Box<str>, Registration>,
    kv: BTreeMap<Box<str>, ObservedReverse>,
    /// Namespaces that have a node.
    nodes: BTreeSet<Box<str>>,
    index: u64,
    late: Vec<(Moment, Write)>,
    /// Writes that were sent.
    sent: Vec<Write>,
}

impl Simulation {
    fn new(settings: Settings) -> Self {
        let mut bridge = Reconciler::new(settings);
        bridge.set_reverse_zone(Some(ReverseZone {
            datacenter: "dc1".into(),
            domain: "consul".into(),
        }));
        bridge.set_foreign_names(HashSet::new());
        Self {
            bridge,
            now: Moment::ZERO,
            registrations: BTreeMap::new(),
            kv: BTreeMap::new(),
            nodes: BTreeSet::new(),
            index: 0,
            late: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// One whose namespaces have nodes.
    fn with_nodes() -> Self {
        let new = Self::new(settings());
        Self { bridge: new.bridge.with_nodes(true), ..new }
    }

    /// A new process with other settings beside the same Consul.
    fn restarted(self, settings: Settings) -> Self {
        Self {
            registrations: self.registrations,
            kv: self.kv,
            nodes: self.nodes,
            index: self.index,
            ..Self::new(settings)
        }
    }

    fn list(&mut self, kind: Kind, objects: impl IntoIterator<Item = SeenObject>) {
        self.bridge.watch(WatchEvent::ListStarted(kind), self.now);
        for object in objects {
            self.bridge.watch(WatchEvent::Seen(object), self.now);
        }
        self.bridge.watch(WatchEvent::ListCompleted(kind), self.now);
    }

    fn seen(&mut self, object: SeenObject) {
        self.bridge.watch(WatchEvent::Seen(object), self.now);
    }

    fn deleted(&mut self, kind: Kind, name: &str) {
        self.bridge.watch(WatchEvent::Deleted(kind, key(name)), self.now);
    }

    fn read_back(&mut self) {
        self.bridge.begin_read_back(self.now);
        for registration in self.registrations.values() {
            let observed = ObservedRegistration { registration: registration.clone(), index: 0 };
            self.bridge.observed_registration(&observed);
        }
        for entry in self.kv.values() {
            self.bridge.observed_reverse(entry);
        }
        for namespace in &self.nodes {
            self.bridge.observed_node(namespace);
        }
        self.bridge.finish_read_back(self.now);
    }

    /// A reading, and after it the names that others hold: none.
    fn read_all(&mut self) {
        self.read_back();
        self.bridge.set_foreign_names(HashSet::new());
    }

    /// Sends what is to be sent until nothing is, without letting time pass.
    fn step(&mut self, fate: &mut impl FnMut(&Write) -> Fate) {
        while let Some(namespace) = self.step_until_node(fate) {
            let stands = |id: &str| id.starts_with(&format!("kubernetes_{namespace}_"));
            let answer = if self.registrations.keys().any(|id| stands(id)) {
                NamespaceNodeAnswer::InUse
            } else {
                self.nodes.remove(&namespace);
                NamespaceNodeAnswer::Removed
            };
            self.bridge.node_answered(&namespace, answer, self.now);
        }
    }

    /// As [`Self::step`], up to the first node that is to be removed.
    fn step_until_node(&mut self, fate: &mut impl FnMut(&Write) -> Fate) -> Option<Box<str>> {
        loop {
            let actions = self.bridge.next_actions(self.now, 3);
            if actions.is_empty() {
                return None;
            }
            for action in actions {
                match action {
                    Action::ReadReverse(key) => {
                        let found = self.kv.get(&key).cloned();
                        self.bridge.reverse_read(&key, Ok(found), self.now);
                    }
                    Action::Write(writes) => self.send(writes, fate),
                    // Always the last one: nothing else is left to send.
                    Action::RemoveNode(namespace) => return Some(namespace),
                }
            }
        }
    }

    fn send(&mut self, writes: Vec<Write>, fate: &mut impl FnMut(&Write) -> Fate) {
        let mut failed = false;
        for write in writes {
            let record = write.key();
            let answer = if failed { Answer::NotSent } else { self.answer(write, fate) };
            failed |= !matches!(answer, Answer::Applied { .. });
            self.bridge.answered(&record, answer, self.now);
        }
    }

    fn answer(&mut self, write: Write, fate: &mut impl FnMut(&Write) -> Fate) -> Answer {
        self.sent.push(write.clone());
        match fate(&write) {
            Fate::Applied => self.apply(write),
            Fate::Failed => Answer::Failed("no leader".to_owned()),
            Fate::Denied => Answer::Denied("no right".to_owned()),
            Fate::Lost => Answer::Unanswered("timeout".to_owned()),
            Fate::AppliedUnanswered => {
                self.apply(write);
                Answer::Unanswered("timeout".to_owned())
            }
            Fate::AppliedLate => {
                self.late.push((self.now + Duration::from_secs(20), write));
                Answer::Unanswered("timeout".to_owned())
            }
        }
    }

    fn apply(&mut self, write: Write) -> Answer {
        self.index += 1;
        let index = self.index;
        let there = |kv: &BTreeMap<Box<str>, ObservedReverse>, key: &str| {
            kv.get(key).map_or(0, |e| e.index)
        };
        match write {
            Write::Register(registration) | Write::Replace(registration) => {
                self.nodes.insert(registration.namespace.clone());
                self.registrations.insert(registration.id.clone(), registration);
            }
            Write::Deregister { id, .. } => {
                self.registrations.remove(&id);
            }
            Write::PutReverse { record, cas } => {
                if there(&self.kv, &record.key) != cas {
                    return Answer::Conflict;
                }
                let flags = ReverseOwner::flags(&cluster());
                self.kv.insert(record.key.clone(), ObservedReverse { record, flags, index });
            }
            Write::DeleteReverse { key, cas } => {
                if there(&self.kv, &key) != cas {
                    return Answer::Conflict;
                }
                self.kv.remove(&key);
            }
        }
        Answer::Applied { index }
    }

    /// Lets time pass until nothing is left to do, reading back where that is due.
    fn settle_with(&mut self, mut fate: impl FnMut(&Write) -> Fate) {
        for _ in 0..10_000 {
            self.bridge.wake(self.now);
            self.step(&mut fate);
            let late: Vec<Moment> = self.late.iter().map(|(due, _)| *due).collect();
            let next =
                [self.bridge.next_timer(), self.bridge.uncertain_until(), late.into_iter().min()];
            let Some(next) = next.into_iter().flatten().min() else { return };
            self.now = next.max(self.now + Duration::from_millis(1));
            let due: Vec<Write>;
            (due, self.late) = {
                let (due, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.late)
                    .into_iter()
                    .partition(|(due, _)| *due <= self.now);
                (due.into_iter().map(|(_, write)| write).collect(), rest)
            };
            for write in due {
                self.apply(write);
            }
            if self.bridge.uncertain_until().is_some_and(|due| due <= self.now) {
                self.read_back();
            }
        }
        panic!("it does not come to rest");
    }

    fn settle(&mut self) {
        self.settle_with(|_| Fate::Applied);
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

fn cluster() -> crate::domain::names::ClusterName {
    "kubernetes".parse().unwrap()
}

fn settings() -> Settings {
    Settings::new(cluster())
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

fn slice_seen(n: u8, ready: bool) -> SeenObject {
    let endpoints = [(format!("10.1.0.{n}"), ready)];
    let endpoints: Vec<(&str, bool)> = endpoints.iter().map(|(a, r)| (a.as_str(), *r)).collect();
    SeenObject::EndpointSlice(
        key(&format!("s{n}-x")),
        slice(&format!("s{n}"), &[("http", 8080)], &endpoints),
    )
}

/// A bridge in step with Services `s1` to `s<count>`, all ready.
fn in_step(count: u8) -> Simulation {
    filled(Simulation::new(settings()), count)
}

fn filled(mut simulation: Simulation, count: u8) -> Simulation {
    simulation.read_back();
    simulation.list(Kind::Service, (1..=count).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=count).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), usize::from(count));
    assert_eq!(simulation.kv.len(), usize::from(count));
    simulation.take_sent();
    simulation.bridge.take_reports();
    simulation
}

fn confirm(simulation: &mut Simulation, services: Vec<SeenObject>, slices: Vec<SeenObject>) {
    simulation.now += Duration::from_secs(11);
    assert!(simulation.bridge.begin_confirmation(simulation.now), "a confirmation is due");
    assert!(!simulation.bridge.begin_confirmation(simulation.now), "it is asked for once");
    simulation.list(Kind::Service, services);
    simulation.list(Kind::EndpointSlice, slices);
    simulation.bridge.cluster_confirmed();
    simulation.settle();
}

#[test]
fn nothing_is_written_before_all_is_listed_and_read() {
    let mut simulation = Simulation::new(settings());
    simulation.list(Kind::Service, [service_seen(1)]);
    simulation.settle();
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "Consul was not read");
    simulation.read_back();
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
    let mut simulation = in_step(30);
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "after a resync");
    let mut simulation = simulation.restarted(settings());
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "after a restart");
}

#[test]
fn a_change_costs_the_records_that_it_changes() {
    let mut simulation = in_step(30);
    simulation.seen(slice_seen(7, false));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 1);
    assert!(simulation.registered().contains(&"s7 10.0.0.7 Critical".to_owned()));
    simulation.deleted(Kind::Service, "s7");
    simulation.settle();
    assert_eq!(simulation.take_sent(), 2, "the instance and its reverse record");
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (29, 29));
}

#[test]
fn an_address_moves_new_before_old() {
    let mut simulation = in_step(1);
    simulation.seen(SeenObject::Service(key("s1"), numbered(9)));
    let mut order = Vec::new();
    simulation.settle_with(|write| {
        order.push(matches!(
            write,
            Write::Register(_) | Write::Replace(_) | Write::PutReverse { .. }
        ));
        Fate::Applied
    });
    assert_eq!(order, [true, true, false, false]);
    assert_eq!(simulation.registered(), ["s1 10.0.0.9 None"]);
    assert_eq!(simulation.kv.len(), 1);
}

#[test]
fn the_runner_up_takes_over_a_name_and_an_address() {
    let mut simulation = Simulation::new(settings());
    simulation.read_back();
    let named = |uid: &str, created| {
        let service = service()
            .annotations(&[("kube-consul.io/service-name", "shared")])
            .with(|s| {
                s.uid = uid.into();
                s.created = created;
            })
            .build();
        SeenObject::Service(key(uid), service)
    };
    simulation.list(Kind::Service, [named("young", 2), named("old", 1)]);
    simulation.list(
        Kind::EndpointSlice,
        [SeenObject::EndpointSlice(
            key("a"),
            slice("young", &[("http", 1)], &[("10.1.0.1", true)]),
        )],
    );
    simulation.settle();
    assert!(simulation.registrations.contains_key("kubernetes_ns_old_http_10.0.0.1"));
    assert_eq!(simulation.registrations.len(), 1);
    let reasons: Vec<_> =
        simulation.bridge.problems().iter().map(|(_, key, p)| (key.clone(), p.reason)).collect();
    assert_eq!(reasons, [(key("young"), Reason::NameConflict)]);
    simulation.deleted(Kind::Service, "old");
    simulation.settle();
    assert_eq!(simulation.registered(), ["shared 10.0.0.1 None"]);
    assert_eq!(simulation.kv.len(), 1);
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn foreign_reverse_keys_are_left_alone() {
    let reverse = "0.0.0.10.IN-ADDR.ARPA/10.0.0.1";
    let other = ReverseOwner::flags(&"other".parse().unwrap());
    for (value, flags, problems) in [
        ("s1.service.dc1.consul", 0, 0),
        ("printer.example.org", 0, 1),
        ("printer.example.org", 42, 1),
        ("s1.service.dc1.consul", other, 0),
        ("s9.service.dc1.consul", other, 0),
    ] {
        for known_at_start in [true, false] {
            let mut simulation = Simulation::new(settings());
            let record = ReverseRecord { key: reverse.into(), value: value.into() };
            let entry = ObservedReverse { record, flags, index: 7 };
            if !known_at_start {
                simulation.read_back();
            }
            simulation.kv.insert(reverse.into(), entry.clone());
            if known_at_start {
                simulation.read_back();
            }
            simulation.list(Kind::Service, [service_seen(1)]);
            simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
            simulation.settle();
            let row = format!("{value} {flags} {known_at_start}");
            if known_at_start {
                assert_eq!(simulation.take_sent(), 1, "{row}: the instance only");
            }
            assert_eq!(simulation.kv[reverse], entry, "{row}");
            assert_eq!(simulation.bridge.problems().count(), problems, "{row}");
            simulation.deleted(Kind::Service, "s1");
            simulation.settle();
            assert_eq!(simulation.kv[reverse], entry, "{row}: left when the Service goes");
        }
    }
}

#[test]
fn a_foreign_reverse_key_that_goes_away_is_written() {
    let reverse = "0.0.0.10.IN-ADDR.ARPA/10.0.0.1";
    let mut simulation = in_step(1);
    let entry = simulation.kv.get_mut(reverse).unwrap();
    entry.flags = 0;
    entry.record.value = "mine".into();
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.bridge.problems().count(), 1);
    simulation.kv.clear();
    simulation.read_back();
    simulation.settle();
    assert_eq!(&*simulation.kv[reverse].record.value, "s1.service.dc1.consul");
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn what_others_changed_or_removed_is_repaired_and_counted() {
    let mut simulation = in_step(5);
    simulation.registrations.remove("kubernetes_ns_s1_http_10.0.0.1");
    simulation.registrations.get_mut("kubernetes_ns_s2_http_10.0.0.2").unwrap().port = 1;
    simulation.kv.remove("0.0.0.10.IN-ADDR.ARPA/10.0.0.3");
    let orphan = Registration {
        id: "kubernetes_ns_gone_http_10.0.0.99".into(),
        ..simulation.registrations["kubernetes_ns_s4_http_10.0.0.4"].clone()
    };
    simulation.registrations.insert(orphan.id.clone(), orphan);
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 4);
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (5, 5));
    assert!(simulation.bridge.take_reports().contains(&Report::Repaired(4)));
}

#[test]
fn an_agent_that_lost_its_state_is_filled_again() {
    let mut simulation = in_step(30);
    simulation.registrations.clear();
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 30);
    assert_eq!(simulation.take_sent(), 30);
}

#[test]
fn a_reading_that_broke_off_removes_nothing() {
    let mut simulation = in_step(30);
    simulation.bridge.begin_read_back(simulation.now);
    simulation.bridge.abort_read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert_eq!(simulation.bridge.ledger().registration_count(), 30);
}

#[test]
fn a_service_that_cannot_be_read_keeps_what_it_has() {
    let simulation = in_step(3);
    let mut simulation = simulation.restarted(settings());
    let unread =
        SeenObject::Undecodable(Kind::Service, key("s2"), "spec.ports: expected a list".to_owned());
    simulation.list(Kind::Service, [service_seen(1), unread, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    let problems: Vec<_> =
        simulation.bridge.problems().iter().map(|(_, k, p)| (k.clone(), p.reason)).collect();
    assert_eq!(problems, [(key("s2"), Reason::Undecodable)]);
    simulation.deleted(Kind::Service, "s2");
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn a_few_missing_objects_are_removed_at_once() {
    let mut simulation = in_step(30);
    simulation.list(Kind::Service, (11..=30).map(service_seen));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 20);
}

#[test]
fn an_empty_list_beside_a_full_one_removes_nothing_and_turns_nothing_critical() {
    for kind in WATCHED {
        let mut simulation = in_step(30);
        simulation.list(kind, []);
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{kind:?} while running");
        assert!(simulation.bridge.is_holding());

        let mut simulation = simulation.restarted(settings());
        simulation.read_back();
        for other in WATCHED {
            match other {
                _ if other == kind => simulation.list(other, []),
                Kind::Service => simulation.list(other, (1..=30).map(service_seen)),
                Kind::EndpointSlice => {
                    simulation.list(other, (1..=30).map(|n| slice_seen(n, true)));
                }
                Kind::Node | Kind::Namespace => unreachable!("nobody asks for them"),
            }
        }
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{kind:?} at the start");
        assert!(simulation.bridge.is_holding());
    }
}

#[test]
fn headless_services_without_their_slices_keep_their_instances() {
    let headless = |n: u8| {
        SeenObject::Service(
            key(&format!("s{n}")),
            service().with(|s| s.cluster_ips.clear()).build(),
        )
    };
    let mut simulation = Simulation::new(settings());
    simulation.read_back();
    simulation.list(Kind::Service, (1..=30).map(headless));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 30);
    let mut simulation = simulation.restarted(settings());
    simulation.read_back();
    simulation.list(Kind::Service, (1..=30).map(headless));
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    confirm(&mut simulation, (1..=30).map(headless).collect(), Vec::new());
    assert_eq!(simulation.registrations.len(), 0, "a second list agreed");
}

#[test]
fn a_second_list_that_agrees_releases_what_is_held() {
    let mut simulation = in_step(30);
    simulation.list(Kind::Service, []);
    simulation.settle();
    confirm(&mut simulation, Vec::new(), (1..=30).map(|n| slice_seen(n, true)).collect());
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0));
    assert!(!simulation.bridge.is_holding());
    assert!(simulation.bridge.take_reports().contains(&Report::Released));
}

#[test]
fn a_second_list_that_disagrees_removes_nothing() {
    let mut simulation = in_step(30);
    simulation.list(Kind::Service, []);
    simulation.settle();
    let slices: Vec<_> = (1..=30).map(|n| slice_seen(n, true)).collect();
    confirm(&mut simulation, (1..=30).map(service_seen).collect(), slices);
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_holding());

    // At the start, too.
    let mut simulation = simulation.restarted(settings());
    simulation.read_back();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    let slices: Vec<_> = (1..=30).map(|n| slice_seen(n, true)).collect();
    confirm(&mut simulation, (1..=30).map(service_seen).collect(), slices);
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn a_second_list_that_lacks_still_more_wants_a_third() {
    let mut simulation = in_step(60);
    simulation.list(Kind::Service, (41..=60).map(service_seen));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    let slices = || (1..=60).map(|n| slice_seen(n, true)).collect::<Vec<_>>();
    confirm(&mut simulation, Vec::new(), slices());
    assert_eq!(simulation.take_sent(), 0, "20 more are missing now");
    confirm(&mut simulation, Vec::new(), slices());
    assert_eq!(simulation.registrations.len(), 0);
}

#[test]
fn without_the_clusters_identity_nothing_is_confirmed() {
    let mut simulation = in_step(30);
    simulation.list(Kind::Service, []);
    simulation.now += Duration::from_secs(11);
    assert!(simulation.bridge.begin_confirmation(simulation.now));
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    simulation.bridge.cluster_confirmed();
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 0);
}

#[test]
fn reported_deletions_are_made_at_once_however_many() {
    let mut simulation = in_step(30);
    for n in 1..=30 {
        simulation.deleted(Kind::Service, &format!("s{n}"));
    }
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (0, 0));
    // Those that were missing from a list, too.
    let mut simulation = in_step(30);
    simulation.list(Kind::Service, []);
    for n in 1..=30 {
        simulation.deleted(Kind::Service, &format!("s{n}"));
    }
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 0);
}

type Choice = fn(&mut Settings);

#[test]
fn changed_options_remove_many_only_when_that_is_allowed() {
    let rows: Vec<(&str, Choice, usize)> = vec![
        ("selector", |s| s.selector = "app=web".parse().unwrap(), 0),
        ("namespace", |s| s.namespaces = ["other".into()].into(), 0),
        ("opt-in", |s| s.default_sync = false, 0),
        ("address mode", |s| s.address = AddressMode::ExternalIp, 0),
    ];
    for (what, choose, left) in rows {
        for (allowed, expected) in [(false, 30), (true, left)] {
            let mut changed = settings();
            choose(&mut changed);
            changed.allow_removals = allowed;
            let mut simulation = in_step(30).restarted(changed);
            simulation.read_back();
            simulation.list(Kind::Service, (1..=30).map(service_seen));
            simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
            simulation.settle();
            if allowed {
                // Reverse records that nobody claims wait for a second list in any case.
                assert_eq!(simulation.registrations.len(), expected, "{what}");
                let slices = (1..=30).map(|n| slice_seen(n, true)).collect();
                confirm(&mut simulation, (1..=30).map(service_seen).collect(), slices);
            }
            let counts = (simulation.registrations.len(), simulation.kv.len());
            assert_eq!(counts, (expected, expected), "{what}, allowed: {allowed}");
            assert_eq!(simulation.bridge.is_holding(), !allowed, "{what}");
        }
    }
}

#[test]
fn a_changed_template_is_a_move_and_not_held() {
    let mut changed = settings();
    changed.name_template = "{service}-{namespace}".parse().unwrap();
    let mut simulation = in_step(30).restarted(changed);
    simulation.read_back();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert!(simulation.registrations.values().all(|r| r.service.ends_with("-ns")));
    assert!(simulation.kv.values().all(|e| e.record.value.contains("-ns.service.")));
}

#[test]
fn a_refused_record_is_a_problem_and_is_not_sent_again() {
    let mut simulation = in_step(1);
    simulation.seen(service_seen(2));
    let actions = simulation.bridge.next_actions(simulation.now, 8);
    let [Action::Write(writes)] = actions.as_slice() else { panic!("{actions:?}") };
    simulation.bridge.answered(&writes[0].key(), Answer::Refused("bad".to_owned()), simulation.now);
    simulation.bridge.answered(&writes[1].key(), Answer::NotSent, simulation.now);
    simulation.settle();
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "neither the instance nor its reverse record");
    let reasons: Vec<_> = simulation.bridge.problems().iter().map(|(_, _, p)| p.reason).collect();
    assert_eq!(reasons, [Reason::Refused]);
    // Another content is worth a try.
    simulation.seen(slice_seen(2, true));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn a_missing_right_is_a_problem_and_heals() {
    let mut simulation = in_step(2);
    simulation.deleted(Kind::Service, "s1");
    simulation.step(&mut |_| Fate::Denied);
    assert_eq!(simulation.registrations.len(), 2);
    let reasons: Vec<_> = simulation.bridge.problems().iter().map(|(_, _, p)| p.reason).collect();
    assert_eq!(reasons, [Reason::Denied, Reason::Denied], "the instance and its reverse record");
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 1);
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn while_consul_is_down_one_write_at_a_time_probes_it() {
    let mut simulation = in_step(1);
    for n in 2..=100 {
        simulation.seen(service_seen(n));
    }
    let down_until = simulation.now + Duration::from_mins(1);
    let mut tries = 0;
    while simulation.now < down_until {
        simulation.bridge.wake(simulation.now);
        simulation.step(&mut |_| {
            tries += 1;
            Fate::Failed
        });
        simulation.now = simulation.bridge.next_timer().unwrap().max(simulation.now);
    }
    assert!((10..60).contains(&tries), "{tries} tries in a minute");
    let up = simulation.now;
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 100);
    assert!(simulation.now < up + Duration::from_secs(6), "{:?} since {up:?}", simulation.now);
}

/// Consul fails every write of `s1` and takes all others.
fn only_s1_fails(write: &Write) -> Fate {
    let RecordKey::Registration(id) = write.key() else { return Fate::Applied };
    if id.contains("_s1_") { Fate::Failed } else { Fate::Applied }
}

#[test]
fn one_record_that_always_fails_does_not_keep_the_others_waiting() {
    let mut simulation = in_step(1);
    simulation.seen(slice_seen(1, false));
    simulation.step(&mut only_s1_fails);
    for n in 2..=20 {
        simulation.seen(service_seen(n));
    }
    simulation.step(&mut only_s1_fails);
    assert_eq!(simulation.registrations.len(), 20, "no time has passed");
    assert!(!simulation.bridge.is_settled(), "it may still pass");

    for n in 21..=40 {
        simulation.now += Duration::from_secs(6);
        simulation.bridge.wake(simulation.now);
        simulation.seen(service_seen(n));
        simulation.step(&mut only_s1_fails);
    }
    let problems: Vec<Reason> =
        simulation.bridge.problems().iter().map(|(_, _, problem)| problem.reason).collect();
    assert_eq!(problems, [Reason::Failing]);
    assert!(simulation.bridge.is_settled(), "nobody waits for it any more");
    simulation.take_sent();
    for _ in 0..10 {
        simulation.now += Duration::from_secs(30);
        simulation.bridge.wake(simulation.now);
        simulation.step(&mut only_s1_fails);
    }
    let tries = simulation.take_sent();
    assert!((4..=8).contains(&tries), "{tries} tries in five minutes");
    simulation.settle();
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn a_lone_record_that_fails_is_a_problem_once_consul_is_known_to_read() {
    let mut simulation = in_step(1);
    simulation.seen(slice_seen(1, false));
    for _ in 0..100 {
        simulation.bridge.wake(simulation.now);
        simulation.step(&mut |_| Fate::Failed);
        simulation.now = simulation.bridge.next_timer().unwrap().max(simulation.now);
    }
    assert_eq!(simulation.bridge.problems().count(), 0, "nothing shows that Consul is there");
    for _ in 0..6 {
        simulation.read_back();
        simulation.bridge.wake(simulation.now);
        simulation.step(&mut |_| Fate::Failed);
        simulation.now += Duration::from_secs(60);
    }
    assert_eq!(simulation.bridge.problems().count(), 1);
    assert!(simulation.bridge.is_settled());
}

#[test]
fn a_record_in_flight_is_left_alone_until_its_answer() {
    let mut simulation = in_step(1);
    simulation.seen(slice_seen(1, false));
    let first = simulation.bridge.next_actions(simulation.now, 8);
    assert_eq!(first.len(), 1);
    simulation.seen(slice_seen(1, true));
    assert_eq!(
        simulation.bridge.next_actions(simulation.now, 8),
        [],
        "the older write is under way"
    );
    let Action::Write(writes) = &first[0] else { panic!("{first:?}") };
    simulation.apply(writes[0].clone());
    simulation.bridge.answered(&writes[0].key(), Answer::Applied { index: 1 }, simulation.now);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
}

#[test]
fn new_names_wait_for_the_listing_of_foreign_ones() {
    let mut simulation = in_step(2).restarted(settings());
    simulation.bridge.foreign = None;
    simulation.read_back();
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true), slice_seen(2, false)]);
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None", "s2 10.0.0.2 Critical"]);
    simulation.bridge.set_foreign_names(["s1".into(), "s3".into()].into());
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2, "s3 is others', s1 stays");
    let problems: Vec<_> =
        simulation.bridge.problems().iter().map(|(_, k, p)| (k.clone(), p.reason)).collect();
    assert_eq!(problems, [(key("s1"), Reason::ForeignName), (key("s3"), Reason::ForeignName)]);
    simulation.bridge.set_foreign_names(HashSet::new());
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 3);
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn a_changed_token_sends_each_registration_once_more() {
    let mut simulation = in_step(5);
    simulation.bridge.token_changed();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 5);
    simulation.bridge.take_reports();
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

/// As when a process starts: the names that others hold are read after all else.
fn not_yet_read(simulation: &mut Simulation) {
    simulation.bridge.foreign = None;
}

#[test]
fn a_new_name_waits_for_the_listing_and_keeps_what_is_registered() {
    let mut simulation = in_step(3).restarted(settings());
    not_yet_read(&mut simulation);
    simulation.read_back();
    let renamed = numbered(2);
    let mut renamed = SeenObject::Service(key("s2"), renamed);
    if let SeenObject::Service(_, service) = &mut renamed {
        service.annotations.insert("kube-consul.io/service-name".into(), "new".into());
    }
    simulation.list(Kind::Service, [service_seen(1), renamed, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "whether the name is free is not known");
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (3, 3));
    simulation.bridge.set_foreign_names(HashSet::new());
    let mut removed = 0;
    simulation.settle_with(|write| {
        removed +=
            usize::from(matches!(write, Write::Deregister { .. } | Write::DeleteReverse { .. }));
        Fate::Applied
    });
    assert_eq!(removed, 0);
    assert!(simulation.registered().contains(&"new 10.0.0.2 None".to_owned()));
}

#[test]
fn a_changed_template_is_a_move_before_the_names_of_others_are_known() {
    let mut changed = settings();
    changed.name_template = "{service}-{namespace}".parse().unwrap();
    let mut simulation = in_step(30).restarted(changed);
    not_yet_read(&mut simulation);
    simulation.read_back();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert!(!simulation.bridge.is_holding());
    simulation.bridge.set_foreign_names(HashSet::new());
    simulation.settle();
    assert_eq!(simulation.take_sent(), 60, "each instance and its reverse record once");
    assert!(simulation.registrations.values().all(|r| r.service.ends_with("-ns")));
}

#[test]
fn a_service_that_could_not_be_read_is_removed_when_a_list_lacks_it() {
    let mut simulation = in_step(3).restarted(settings());
    let unread = SeenObject::Undecodable(Kind::Service, key("s2"), "no".to_owned());
    simulation.list(Kind::Service, [service_seen(1), unread, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.read_back();
    simulation.settle();
    simulation.list(Kind::Service, [service_seen(1), service_seen(3)]);
    simulation.settle();
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (2, 2));
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn a_slice_that_could_not_be_read_has_no_problem_when_a_list_lacks_it() {
    let mut simulation = in_step(1);
    simulation.seen(SeenObject::Undecodable(Kind::EndpointSlice, key("x"), "no".to_owned()));
    assert_eq!(simulation.bridge.problems().count(), 1);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.bridge.problems().count(), 0);
}

#[test]
fn a_slice_that_cannot_be_read_at_the_start_turns_nothing_critical() {
    let mut simulation = in_step(3).restarted(settings());
    simulation.read_back();
    simulation.list(Kind::Service, (1..=3).map(service_seen));
    let unread = SeenObject::Undecodable(Kind::EndpointSlice, key("s2-x"), "no".to_owned());
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true), unread, slice_seen(3, false)]);
    simulation.settle();
    let registered = simulation.registered();
    assert!(registered.contains(&"s2 10.0.0.2 None".to_owned()), "{registered:?}");
    simulation.seen(slice_seen(2, false));
    simulation.settle();
    assert!(simulation.registered().contains(&"s2 10.0.0.2 Critical".to_owned()));
    assert!(simulation.registered().contains(&"s3 10.0.0.3 Critical".to_owned()));
}

#[test]
fn a_reading_does_not_spare_a_registration_the_new_token() {
    let mut simulation = in_step(5);
    simulation.bridge.token_changed();
    let first = simulation.bridge.next_actions(simulation.now, 1);
    assert_eq!(first.len(), 1);
    simulation.read_back();
    for action in first {
        let Action::Write(writes) = action else { panic!("{action:?}") };
        simulation.send(writes, &mut |_| Fate::Applied);
    }
    simulation.settle();
    assert_eq!(simulation.take_sent(), 5);
    simulation.read_back();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn a_registration_in_flight_while_the_token_changes_is_sent_once_more() {
    let mut simulation = in_step(1);
    simulation.seen(slice_seen(1, false));
    let first = simulation.bridge.next_actions(simulation.now, 1);
    simulation.bridge.token_changed();
    for action in first {
        let Action::Write(writes) = action else { panic!("{action:?}") };
        simulation.send(writes, &mut |_| Fate::Applied);
    }
    simulation.settle();
    assert_eq!(simulation.take_sent(), 2);
}

#[test]
fn it_settles_when_another_takes_the_reverse_key_that_could_not_be_written() {
    let mut simulation = in_step(1);
    simulation.seen(service_seen(2));
    simulation.step(&mut |write| match write {
        Write::PutReverse { .. } => Fate::Failed,
        _ => Fate::Applied,
    });
    let record = ReverseRecord {
        key: "0.0.0.10.IN-ADDR.ARPA/10.0.0.2".into(),
        value: "printer.example.org".into(),
    };
    let entry = ObservedReverse { record, flags: 0, index: 7 };
    simulation.kv.insert(entry.record.key.clone(), entry);
    simulation.read_back();
    simulation.settle();
    assert!(simulation.bridge.is_settled());
    assert!(simulation.bridge.tracks.is_empty());
}

#[test]
fn it_settles_when_the_instance_is_refused_whose_reverse_record_failed() {
    let mut simulation = in_step(1);
    simulation.seen(service_seen(2));
    simulation.step(&mut |write| match write {
        Write::PutReverse { .. } => Fate::Failed,
        _ => Fate::Applied,
    });
    simulation.seen(slice_seen(2, true));
    simulation.now += Duration::from_secs(1);
    simulation.bridge.wake(simulation.now);
    for action in simulation.bridge.next_actions(simulation.now, 1) {
        let Action::Write(writes) = action else { panic!("{action:?}") };
        simulation.bridge.answered(
            &writes[0].key(),
            Answer::Refused("bad".to_owned()),
            simulation.now,
        );
        for write in &writes[1..] {
            simulation.bridge.answered(&write.key(), Answer::NotSent, simulation.now);
        }
    }
    simulation.settle();
    assert!(simulation.bridge.is_settled());
}

#[test]
fn a_held_service_that_a_later_list_lacks_is_removed() {
    let mut changed = settings();
    changed.default_sync = false;
    let mut simulation = in_step(30).restarted(changed);
    simulation.read_back();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 30);
    simulation.list(Kind::Service, (2..=30).map(service_seen));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 29);
}

#[test]
fn a_held_service_that_loses_nothing_any_more_is_as_any_other() {
    let mut changed = settings();
    changed.default_sync = false;
    let mut simulation = in_step(30).restarted(changed);
    simulation.read_back();
    simulation.list(Kind::Service, (1..=30).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    let mut service = numbered(1);
    service.annotations.insert("kube-consul.io/sync".into(), "true".into());
    simulation.seen(SeenObject::Service(key("s1"), service));
    simulation.settle();
    simulation.seen(slice_seen(1, false));
    simulation.settle();
    assert!(simulation.registered().contains(&"s1 10.0.0.1 Critical".to_owned()));
    assert_eq!(simulation.registrations.len(), 30);
}

#[test]
fn what_is_held_counts_when_the_second_list_lacks_more() {
    let mut simulation = in_step(100).restarted(settings());
    simulation.read_back();
    simulation.list(Kind::Service, (61..=100).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=100).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    let slices = || (1..=100).map(|n| slice_seen(n, true)).collect::<Vec<_>>();
    confirm(&mut simulation, Vec::new(), slices());
    assert_eq!(simulation.take_sent(), 0, "40 more are missing now");
    confirm(&mut simulation, Vec::new(), slices());
    assert_eq!(simulation.registrations.len(), 0);
}

#[test]
fn an_identity_read_before_the_second_look_confirms_nothing() {
    let mut simulation = in_step(30);
    simulation.list(Kind::Service, []);
    simulation.bridge.cluster_confirmed();
    simulation.now += Duration::from_secs(11);
    assert!(simulation.bridge.begin_confirmation(simulation.now));
    simulation.list(Kind::Service, []);
    simulation.list(Kind::EndpointSlice, (1..=30).map(|n| slice_seen(n, true)));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn a_name_that_changes_hands_is_taken_before_it_is_left() {
    let mut simulation = Simulation::new(settings());
    simulation.read_back();
    let named = |uid: &str, created| {
        let service = service()
            .annotations(&[("kube-consul.io/service-name", "shared")])
            .with(|s| {
                s.uid = uid.into();
                s.created = created;
            })
            .build();
        SeenObject::Service(key(uid), service)
    };
    simulation.list(Kind::Service, [named("young", 2)]);
    simulation.list(Kind::EndpointSlice, []);
    simulation.settle();
    simulation.take_sent();
    simulation.seen(named("old", 1));
    simulation.settle();
    let first = &simulation.sent[0];
    assert!(
        matches!(first, Write::Register(r) if &*r.id == "kubernetes_ns_old_http_10.0.0.1"),
        "{first:?}"
    );
}

#[test]
fn a_service_that_is_read_again_keeps_its_reverse_record() {
    let mut simulation = in_step(3).restarted(settings());
    let unread = SeenObject::Undecodable(Kind::Service, key("s2"), "no".to_owned());
    simulation.list(Kind::Service, [service_seen(1), unread, service_seen(3)]);
    simulation.list(Kind::EndpointSlice, (1..=3).map(|n| slice_seen(n, true)));
    simulation.read_back();
    simulation.settle();
    simulation.seen(service_seen(2));
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn only_labels_that_can_change_a_registration_are_kept() {
    let mut selecting = settings();
    selecting.selector = "tier in (web)".parse().unwrap();
    let mut simulation = Simulation::new(selecting);
    simulation.read_back();
    let labelled = |labels: &[(&str, &str)]| {
        let mut service = numbered(1);
        service.labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        SeenObject::Service(key("s1"), service)
    };
    simulation.list(Kind::Service, [labelled(&[("tier", "web"), ("chart", "1.0")])]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 1);
    let kept = &simulation.bridge.world().service(&key("s1")).unwrap().labels;
    assert_eq!(kept.keys().map(|key| &**key).collect::<Vec<_>>(), ["tier"]);
    simulation.seen(labelled(&[("tier", "web"), ("chart", "1.1")]));
    assert_eq!(simulation.bridge.backlog(), 0);
    simulation.seen(labelled(&[("tier", "web"), ("consul", "true")]));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 0, "an import");
}

#[derive(Clone, Debug)]
enum Event {
    Service(u8, u8),
    Ready(u8, bool),
    Delete(u8),
    DeleteSlice(u8),
    Pass(u16),
    ReadBack,
    StepDown,
}

fn events() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1..6_u8, 1..6_u8).prop_map(|(n, address)| Event::Service(n, address)),
        2 => (1..6_u8, any::<bool>()).prop_map(|(n, ready)| Event::Ready(n, ready)),
        2 => (1..6_u8).prop_map(Event::Delete),
        2 => (1..6_u8).prop_map(Event::DeleteSlice),
        2 => (0..5000_u16).prop_map(Event::Pass),
        2 => Just(Event::ReadBack),
        1 => Just(Event::StepDown),
    ]
}

fn fates() -> impl Strategy<Value = Fate> {
    prop_oneof![
        3 => Just(Fate::Applied),
        1 => Just(Fate::Failed),
        1 => Just(Fate::Denied),
        1 => Just(Fate::Lost),
        1 => Just(Fate::AppliedUnanswered),
        1 => Just(Fate::AppliedLate),
    ]
}

fn happen(simulation: &mut Simulation, event: &Event) {
    match *event {
        // Two Services may share an address, and so a reverse key.
        Event::Service(n, address) => {
            simulation.seen(SeenObject::Service(key(&format!("s{n}")), numbered(address)));
        }
        Event::Ready(n, ready) => simulation.seen(slice_seen(n, ready)),
        Event::Delete(n) => simulation.deleted(Kind::Service, &format!("s{n}")),
        Event::DeleteSlice(n) => simulation.deleted(Kind::EndpointSlice, &format!("s{n}-x")),
        Event::Pass(milliseconds) => simulation.now += Duration::from_millis(milliseconds.into()),
        Event::ReadBack => simulation.read_all(),
        Event::StepDown => simulation.bridge.step_down(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Invariants 4, 5 and 6: whatever becomes of the writes, once both sides stand still
    /// Consul has what an undisturbed bridge would have written, and nothing more is sent.
    #[test]
    fn it_converges_after_any_faults(
        events in prop::collection::vec((events(), prop::bool::weighted(0.7)), 1..30),
        fates in prop::collection::vec(fates(), 0..40),
    ) {
        let mut faulty = Simulation::with_nodes();
        let mut calm = Simulation::with_nodes();
        for simulation in [&mut faulty, &mut calm] {
            simulation.read_back();
            for kind in WATCHED { simulation.list(kind, []); }
        }
        let mut fates = fates.into_iter();
        for (event, send) in &events {
            happen(&mut faulty, event);
            happen(&mut calm, event);
            if *send {
                faulty.bridge.wake(faulty.now);
                faulty.step(&mut |_| fates.next().unwrap_or(Fate::Applied));
            }
        }
        for simulation in [&mut faulty, &mut calm] {
            if simulation.bridge.phase != Phase::Running { simulation.read_all(); }
            simulation.settle();
        }
        prop_assert_eq!(&faulty.registrations, &calm.registrations);
        let values = |simulation: &Simulation| -> BTreeMap<_, _> {
            simulation.kv.values().map(|e| (e.record.key.clone(), e.record.value.clone())).collect()
        };
        prop_assert_eq!(values(&faulty), values(&calm));
        prop_assert_eq!(&faulty.nodes, &calm.nodes);
        faulty.take_sent();
        faulty.read_back();
        faulty.settle();
        prop_assert_eq!(faulty.take_sent(), 0, "planning after applying is empty");
        prop_assert!(faulty.bridge.is_settled());
        prop_assert!(faulty.bridge.units.is_empty(), "left behind: {:?} {:?}", faulty.bridge.units, faulty.bridge.tracks);
        prop_assert_eq!(faulty.bridge.tracks.len(), 0);
    }
}
