use std::collections::VecDeque;

use super::failures::RETRY;
use super::*;
use crate::domain::import::create::CreateAs;
use crate::domain::import::instance::Health;
use crate::domain::import::object::{Form, MANAGED_BY};
use crate::domain::import::source::{
    CONSUL8S_NAME, CONSUL8S_SOURCE, CREATED, DATACENTERS, IMPORT, KEEP, SERVICE_SYNC,
};

const DB: &str = "shop/db";

/// An import with an API server that takes what it is sent, and a Consul that answers what it is
/// told to.
struct Harness {
    import: Importer,
    now: Moment,
    followed: BTreeSet<Source>,
    /// What the API server has: the uid of the owner and the slice.
    slices: BTreeMap<Box<str>, (Box<str>, Slice)>,
    log: Vec<String>,
    /// Writes that are refused.
    refuse: usize,
    pending: VecDeque<Action>,
    hold: bool,
    /// Whether Endpoints are those that consul8s left.
    endpoints_are_old: bool,
    /// How many Services were made.
    uid: usize,
}

fn key(name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap();
    ObjectKey::new(namespace, name)
}

fn service(uid: &str, annotations: &[(&str, &str)]) -> Service {
    Service {
        uid: uid.into(),
        labels: BTreeMap::new(),
        annotations: annotations.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
        ports: vec![("pg".into(), "TCP".into())],
        has_selector: false,
        form: Form::ClusterIp,
        is_going: false,
        port: Some(5432),
        version: Version::default(),
    }
}

fn instances(addresses: &[&str]) -> Vec<Instance> {
    let of = |address: &&str| {
        let (address, health) = match address.strip_prefix('!') {
            Some(address) => (address, Health::Critical),
            None => (*address, Health::Passing),
        };
        Instance {
            address: address.into(),
            node_address: "10.9.9.9".into(),
            port: 5432,
            health,
            cluster: None,
            protocol: crate::domain::kube::object::Protocol::Tcp,
            is_proxy: false,
            origin: None,
        }
    };
    addresses.iter().map(of).collect()
}

fn source(service: &str, datacenter: Option<&str>) -> Source {
    Source {
        service: service.into(),
        datacenter: datacenter.map(Into::into),
        tags: [].into(),
        filter: None,
    }
}

fn owned(service: &ObjectKey, owner: &str, manager: &str, slice: Slice) -> OwnedSlice {
    OwnedSlice {
        service: service.name.clone(),
        managed_by: manager.into(),
        owner: owner.into(),
        uid: "slice-uid".into(),
        slice,
        is_canonical: true,
        version: Version::default(),
    }
}

/// A Service as the API server makes it.
fn made(wanted: &Wanted, uid: &str) -> Service {
    Service {
        labels: [(CREATED.0.into(), CREATED.1.into())].into(),
        annotations: wanted.annotations.clone(),
        ports: wanted.ports(),
        port: wanted.port.as_ref().map(|(number, _)| *number),
        form: wanted.form.clone(),
        ..service(uid, &[])
    }
}

impl Harness {
    fn new() -> Self {
        Self::with(None)
    }

    fn with(create: Option<Create>) -> Self {
        let mut import = Importer::new(Some("here".parse().unwrap()), create);
        import.handle_services_list();
        import.handle_slices_list();
        import.handle_slices_listed();
        import.handle_services_listed();
        Self {
            import,
            now: Moment::ZERO,
            followed: BTreeSet::new(),
            slices: BTreeMap::new(),
            log: Vec::new(),
            refuse: 0,
            pending: VecDeque::new(),
            hold: false,
            endpoints_are_old: true,
            uid: 0,
        }
    }

    fn service(&mut self, service: Service) -> &mut Self {
        self.import.handle_service(key(DB), service);
        self.run()
    }

    fn answer(&mut self, source: &Source, addresses: &[&str]) -> &mut Self {
        self.import.handle_instances(source, instances(addresses), self.now);
        self.run()
    }

    fn run(&mut self) -> &mut Self {
        loop {
            while let Some(action) = self.import.poll_action(self.now) {
                self.pending.push_back(action);
            }
            if self.hold {
                return self;
            }
            let Some(action) = self.pending.pop_front() else { return self };
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Follow(source) => assert!(self.followed.insert(source), "followed twice"),
            Action::Unfollow(source) => assert!(self.followed.remove(&source)),
            Action::Write(Write::Put { service, uid, name, slice }) => {
                if self.refuse > 0 {
                    self.refuse -= 1;
                    let problem = Problem::new(Reason::Refused, "no");
                    self.log.push("refused".to_owned());
                    let refused = Err(Failure { problem, retry_after: Duration::ZERO });
                    let now = self.now;
                    return self.import.handle_slice_written(&service, &uid, &name, refused, now);
                }
                self.log.push(format!("write {}", slice.endpoints.len()));
                self.slices.insert(name.clone(), ((*uid).into(), slice.clone()));
                let written = owned(&service, &uid, MANAGED_BY, slice);
                self.import.handle_slice_written(
                    &service,
                    &uid,
                    &name,
                    Ok(Some(written)),
                    self.now,
                );
            }
            Action::Write(Write::Delete { service, owner, name, .. }) => {
                if self.refuse > 0 {
                    self.refuse -= 1;
                    let problem = Problem::new(Reason::Denied, "no");
                    self.log.push("refused".to_owned());
                    let refused = Err(Failure { problem, retry_after: Duration::ZERO });
                    let now = self.now;
                    return self.import.handle_slice_written(&service, &owner, &name, refused, now);
                }
                self.log.push("delete".to_owned());
                self.slices.remove(&name);
                self.import.handle_slice_written(&service, &owner, &name, Ok(None), self.now);
            }
            Action::Write(Write::DeleteEndpoints { service, uid }) => {
                self.log.push("delete endpoints".to_owned());
                let answer = Ok(self.endpoints_are_old);
                self.import.handle_endpoints_deleted(&service, &uid, answer);
            }
            Action::Confirm(source) => self.log.push(format!("confirm {}", source.service)),
            Action::Write(Write::CreateService { service, wanted }) => {
                self.uid += 1;
                self.log.push(format!("create {service} {:?}", wanted.form));
                let made = made(&wanted, &format!("made-{}", self.uid));
                self.import.handle_service_written(&service, Ok(Some(made)), self.now);
            }
            Action::Write(Write::UpdateService { service, uid, wanted, .. }) => {
                self.log.push(format!("update {service} {:?}", wanted.form));
                let made = made(&wanted, &uid);
                self.import.handle_service_written(&service, Ok(Some(made)), self.now);
            }
            Action::Write(Write::DeleteService { service, .. }) => {
                self.log.push(format!("delete {service}"));
                self.import.handle_service_written(&service, Ok(None), self.now);
            }
        }
    }

    fn show(&mut self, service: &ObjectKey, name: &str, owner: &str, manager: &str, slice: Slice) {
        let slice = owned(service, owner, manager, slice);
        self.import.handle_slice(ObjectKey::new(service.namespace.clone(), name), slice);
    }

    fn later(&mut self, seconds: u64) -> &mut Self {
        self.now += Duration::from_secs(seconds);
        self.import.handle_timeout(self.now);
        self.run()
    }

    /// The addresses in all slices; those that are not ready with a mark.
    fn endpoints(&self) -> Vec<String> {
        let all = self.slices.values().flat_map(|(_, slice)| &slice.endpoints);
        all.map(|(address, ready)| format!("{}{address}", if *ready { "" } else { "!" })).collect()
    }

    fn log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    fn problems(&self) -> String {
        let all = self.import.problems().map(|(_, problem)| problem.message.clone());
        all.collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn the_slices_follow_the_instances() {
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "pg")]));
    assert_eq!(harness.log(), [""; 0], "nothing is known yet");
    let pg = source("pg", None);
    assert_eq!(
        harness.answer(&pg, &["10.0.0.1", "!10.0.0.2"]).endpoints(),
        ["10.0.0.1", "!10.0.0.2"]
    );
    assert_eq!(harness.log(), ["write 2"]);
    harness.answer(&pg, &["!10.0.0.2", "10.0.0.1"]);
    assert_eq!(harness.log(), [""; 0], "the order does not matter");
    assert_eq!(harness.answer(&pg, &["10.0.0.2"]).endpoints(), ["10.0.0.2"]);
    assert_eq!(harness.answer(&pg, &[]).endpoints(), [""; 0], "a true empty answer is believed");
    assert_eq!(harness.log(), ["write 1", "delete"]);
    assert!(harness.import.is_settled());
}

#[test]
fn nothing_is_written_before_both_kinds_are_listed() {
    let mut import = Importer::new(None, None);
    import.handle_services_list();
    import.handle_service(key(DB), service("u1", &[(IMPORT, "pg")]));
    import.handle_services_listed();
    assert_eq!(import.poll_action(Moment::ZERO), None);
    import.handle_slices_list();
    import.handle_slices_listed();
    assert_eq!(import.poll_action(Moment::ZERO), Some(Action::Follow(source("pg", None))));
}

#[test]
fn i11_another_service_is_in_place_before_the_old_one_goes() {
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "old")])).answer(&source("old", None), &["10.0.0.1"]);
    harness.log();
    harness.service(service("u1", &[(IMPORT, "new")]));
    assert_eq!(harness.endpoints(), ["10.0.0.1"], "nothing is known of the new one yet");
    assert_eq!(harness.followed.iter().collect::<Vec<_>>(), [&source("new", None)]);
    assert_eq!(harness.answer(&source("new", None), &["10.0.0.2"]).endpoints(), ["10.0.0.2"]);
    assert_eq!(harness.log(), ["write 1"]);
}

#[test]
fn i11_a_mark_that_goes_takes_the_slices_once() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    harness.log();
    harness.service(service("u1", &[]));
    assert_eq!((harness.endpoints(), harness.log()), (vec![], vec!["delete".to_owned()]));
    assert!(harness.followed.is_empty());
    harness.answer(&pg, &["10.0.0.2"]);
    assert_eq!(harness.log(), [""; 0], "and nothing brings them back");
}

#[test]
fn i7_a_selector_is_a_problem_and_takes_our_slices() {
    let mut harness = Harness::new();
    let mut db = service("u1", &[(IMPORT, "pg")]);
    harness.service(db.clone()).answer(&source("pg", None), &["10.0.0.1"]);
    db.has_selector = true;
    harness.service(db.clone());
    assert_eq!(harness.endpoints(), [""; 0]);
    assert!(harness.problems().contains("expected a Service without a selector"));
    // The slices of the cluster stay, and are told once the selector is gone.
    let slice = Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
    harness.show(&key(DB), "db-abcde", "u1", "endpointslice-controller.k8s.io", slice);
    db.has_selector = false;
    harness.service(db).answer(&source("pg", None), &["10.0.0.1"]);
    let problems = harness.problems();
    assert!(
        problems.contains("kubectl delete endpointslice db-abcde --namespace shop"),
        "{problems}"
    );
    assert_eq!(harness.endpoints(), ["10.0.0.1"]);
}

#[test]
fn i10_a_service_that_was_made_again_starts_anew() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    // Deleted and made again before any watch event of the deletion.
    harness.service(service("u2", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.endpoints(), ["10.0.0.1"]);
    assert!(harness.slices.values().all(|(owner, _)| &**owner == "u2"));
    assert_eq!(harness.log(), ["write 1", "write 1", "delete"]);
}

#[test]
fn i10_nothing_is_made_for_a_service_that_is_going() {
    let mut harness = Harness::new();
    let mut going = service("u1", &[(IMPORT, "pg")]);
    going.is_going = true;
    harness.service(going).answer(&source("pg", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), [""; 0]);
}

#[test]
fn a_service_that_is_gone_is_followed_no_longer_and_leaves_its_slices_to_their_owner() {
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    harness.log();
    harness.import.handle_service_gone(&key(DB));
    harness.run();
    assert!(harness.followed.is_empty() && harness.log().is_empty());
}

#[test]
fn slices_of_others_are_never_touched() {
    let mut harness = Harness::new();
    let slice = || Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
    harness.show(&key(DB), "db-1", "u1", "somebody", slice());
    harness.show(&key(DB), "db-2", "u1", "", slice());
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    harness.service(service("u1", &[]));
    assert_eq!(harness.log(), ["write 1", "delete"]);
}

#[test]
fn the_first_datacenter_that_is_usable_is_taken() {
    let mut harness = Harness::new();
    let (east, west) = (source("pg", Some("east")), source("pg", Some("west")));
    harness.service(service("u1", &[(IMPORT, "pg"), (DATACENTERS, "east,west")]));
    assert_eq!(
        harness.answer(&west, &["10.2.0.1"]).endpoints(),
        [""; 0],
        "the first may yet answer"
    );
    assert_eq!(harness.answer(&east, &["10.1.0.1"]).endpoints(), ["10.1.0.1"]);
    assert_eq!(harness.answer(&east, &["!10.1.0.1"]).endpoints(), ["10.2.0.1"]);
    assert_eq!(harness.answer(&west, &[]).endpoints(), ["!10.1.0.1"], "none is: the preferred one");
    assert_eq!(harness.answer(&east, &["10.1.0.1"]).endpoints(), ["10.1.0.1"]);
}

#[test]
fn the_last_endpoints_stay_for_as_long_as_it_is_asked_for() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "1m")])).answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.answer(&pg, &[]).endpoints(), ["10.0.0.1"]);
    assert_eq!(harness.later(59).endpoints(), ["10.0.0.1"]);
    assert_eq!(harness.later(1).endpoints(), [""; 0]);
    harness.answer(&pg, &["10.0.0.2"]).later(100);
    assert_eq!(harness.answer(&pg, &["!10.0.0.2"]).endpoints(), ["10.0.0.2"], "a new minute");
    assert_eq!(harness.import.next_timeout(), Some(harness.now + Duration::from_mins(1)));
}

#[test]
fn what_is_refused_is_told_and_tried_again_with_a_growing_delay() {
    let mut harness = Harness::new();
    harness.refuse = 2;
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    assert_eq!((harness.log(), harness.problems()), (vec!["refused".to_owned()], "no".to_owned()));
    assert!(harness.import.next_timeout().is_some_and(|at| at <= RETRY.first));
    harness.later(1);
    assert_eq!(harness.log(), ["refused"]);
    harness.later(2);
    assert_eq!((harness.log(), harness.problems()), (vec!["write 1".to_owned()], String::new()));
    assert_eq!(harness.import.next_timeout(), None);
}

#[test]
fn a_change_while_a_write_is_under_way_waits_for_its_answer() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")]));
    harness.hold = true;
    harness.answer(&pg, &["10.0.0.1"]).answer(&pg, &["10.0.0.2"]).answer(&pg, &["10.0.0.3"]);
    assert_eq!(harness.pending.len(), 1);
    harness.hold = false;
    assert_eq!(harness.run().endpoints(), ["10.0.0.3"]);
    assert_eq!(harness.log(), ["write 1", "write 1"]);
}

#[test]
fn two_services_share_a_source() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")]));
    harness.import.handle_service(key("shop/db-2"), service("u2", &[(IMPORT, "pg")]));
    harness.run().answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.endpoints(), ["10.0.0.1", "10.0.0.1"]);
    assert_eq!(harness.followed.len(), 1);
    harness.service(service("u1", &[]));
    assert_eq!(harness.followed.len(), 1, "the other one still asks for it");
}

#[test]
fn a_restart_writes_nothing() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1", "10.0.0.2"]);
    let there = harness.slices.clone();
    let mut again = Harness::new();
    for (name, (owner, slice)) in &there {
        again.show(&key(DB), name, owner, MANAGED_BY, slice.clone());
    }
    again.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.2", "10.0.0.1"]);
    assert_eq!(again.log(), [""; 0]);
}

#[test]
fn a_mark_that_cannot_be_read_changes_nothing() {
    let mut harness = Harness::new();
    let mut db = service("u1", &[(CONSUL8S_NAME, "pg")]);
    db.labels = [(CONSUL8S_SOURCE.into(), "consul".into())].into();
    harness.service(db.clone()).answer(&source("pg", None), &["10.0.0.1"]);
    harness.log();
    db.annotations.clear();
    harness.service(db);
    assert_eq!((harness.endpoints(), harness.log()), (vec!["10.0.0.1".to_owned()], vec![]));
    assert!(harness.problems().contains("consul8s/service.name"));
}

#[test]
fn a_deletion_that_is_refused_is_not_sent_again_at_once() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    harness.log();
    harness.refuse = 1;
    harness.service(service("u1", &[]));
    assert_eq!((harness.log(), harness.problems()), (vec!["refused".to_owned()], "no".to_owned()));
    harness.later(1);
    assert_eq!((harness.log(), harness.problems()), (vec!["delete".to_owned()], String::new()));
}

#[test]
fn a_source_that_fails_is_told_and_passed_over_but_proves_nothing() {
    let mut harness = Harness::new();
    let (east, west) = (source("pg", Some("east")), source("pg", Some("west")));
    harness.service(service("u1", &[(IMPORT, "pg"), (DATACENTERS, "east,west")]));
    harness.answer(&east, &["10.1.0.1"]).answer(&west, &["10.2.0.1"]);
    let denied = || Problem::new(Reason::Denied, "hidden");
    harness.import.handle_unknown(&east, denied());
    assert_eq!(harness.run().endpoints(), ["10.1.0.1"], "what it said before stays true");
    assert_eq!(harness.problems(), "hidden");
    harness.answer(&east, &["10.1.0.1"]);
    assert_eq!(harness.problems(), "");

    // One that has never answered: the next one is taken while it is usable.
    let mut harness = Harness::new();
    harness.service(service("u1", &[(IMPORT, "pg"), (DATACENTERS, "east,west")]));
    harness.import.handle_unknown(&east, denied());
    assert_eq!(harness.answer(&west, &["10.2.0.1"]).endpoints(), ["10.2.0.1"]);
    assert_eq!(harness.answer(&west, &[]).endpoints(), ["10.2.0.1"], "nobody knows of the first");
    assert_eq!(harness.answer(&east, &[]).endpoints(), [""; 0]);
}

#[test]
fn keeping_ends_when_the_service_asks_for_less() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "1h")])).answer(&pg, &["10.0.0.1"]);
    assert_eq!(harness.answer(&pg, &["!10.0.0.2"]).later(60).endpoints(), ["10.0.0.1"]);
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "30s")]));
    assert_eq!(harness.endpoints(), ["!10.0.0.2"]);
    // And what is gone is not found again in the slices.
    harness.service(service("u1", &[(IMPORT, "pg"), (KEEP, "1h")]));
    assert_eq!(harness.later(1).endpoints(), ["!10.0.0.2"]);
    harness.service(service("u1", &[(IMPORT, "other"), (KEEP, "1h")]));
    harness.answer(&source("other", None), &[]);
    assert_eq!(harness.endpoints(), [""; 0], "another service's are nothing to keep");
}

#[test]
fn an_answer_for_an_earlier_service_of_that_name_says_nothing() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")]));
    harness.hold = true;
    harness.answer(&pg, &["10.0.0.1"]);
    let first = harness.pending.pop_front().unwrap();
    harness.service(service("u2", &[(IMPORT, "pg")]));
    harness.pending.retain(|action| !matches!(action, Action::Unfollow(_)));
    harness.import.handle_instances(&pg, instances(&["10.0.0.1"]), harness.now);
    harness.run();
    let Action::Write(Write::Put { uid, name, slice, .. }) = first else { panic!("{first:?}") };
    let late = owned(&key(DB), &uid, MANAGED_BY, slice);
    harness.import.handle_slice_written(&key(DB), &uid, &name, Ok(Some(late)), harness.now);
    harness.run();
    let puts = harness.pending.iter().filter(|it| matches!(it, Action::Write(Write::Put { .. })));
    assert_eq!(puts.count(), 1, "one write under way for the new one");
}

#[test]
fn a_slice_with_our_label_that_nobody_owns_is_left_alone() {
    let mut harness = Harness::new();
    let slice = Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
    harness.show(&key(DB), "db-hand", "", MANAGED_BY, slice);
    harness.service(service("u1", &[]));
    assert_eq!(harness.log(), [""; 0]);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&source("pg", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), ["write 1"]);
    assert!(harness.problems().contains("db-hand"));
}

fn create() -> Create {
    Create {
        namespace: "consul".into(),
        patterns: vec![],
        tags: vec![],
        prefix: "".into(),
        form: CreateAs::Headless,
        domain: "consul".into(),
        adopts: false,
    }
}

impl Harness {
    fn names(&mut self, names: &[&str]) -> &mut Self {
        self.import.handle_names(names.iter().map(|&name| name.into()).collect());
        self.run()
    }

    /// Instances that the bridge of a cluster registered.
    fn answer_of(&mut self, source: &Source, cluster: &str, addresses: &[&str]) -> &mut Self {
        let mut all = instances(addresses);
        for it in &mut all {
            it.cluster = Some(cluster.into());
        }
        self.import.handle_instances(source, all, self.now);
        self.run()
    }
}

#[test]
fn i12_a_service_is_made_for_what_others_registered_and_removed_once_that_is_known_to_be_gone() {
    let mut harness = Harness::with(Some(create()));
    let (web, own) = (source("web", None), source("own", None));
    harness.names(&["web", "own"]);
    assert_eq!(harness.log(), [""; 0], "nothing is known of the instances yet");
    harness.answer_of(&own, "here", &["10.0.0.9"]).answer_of(&web, "there", &["10.0.0.1"]);
    assert_eq!(harness.log(), ["create consul/web Headless", "write 1"]);
    assert_eq!(harness.endpoints(), ["10.0.0.1"]);
    // That the name is missing from a list proves nothing.
    harness.names(&["own"]).later(1000);
    assert_eq!((harness.log(), harness.endpoints()), (vec![], vec!["10.0.0.1".to_owned()]));
    // Nor does one answer: it is asked again after a while.
    harness.answer(&web, &[]);
    assert_eq!(harness.log(), ["delete"]);
    harness.later(9);
    assert_eq!(harness.log(), [""; 0]);
    harness.later(1);
    assert_eq!(harness.log(), ["confirm web"]);
    harness.answer(&web, &["10.0.0.2"]);
    assert_eq!(harness.log(), ["write 1"], "it was not gone");
    harness.answer(&web, &[]).later(10);
    harness.import.handle_unknown(&web, Problem::new(Reason::Failing, "no leader"));
    assert_eq!(harness.run().log(), ["delete", "confirm web"], "no answer is no evidence");
    harness.later(3600).answer(&web, &[]);
    assert_eq!(harness.log(), ["delete consul/web"]);
    assert!(!harness.followed.contains(&web));
}

#[test]
fn i12_many_that_are_gone_at_once_are_held_for_longer() {
    let mut harness = Harness::with(Some(create()));
    let names = ["a", "b", "c", "d"];
    harness.names(&names);
    for name in names {
        harness.answer(&source(name, None), &["10.0.0.1"]);
    }
    harness.log();
    for name in names {
        harness.answer(&source(name, None), &[]);
    }
    harness.log();
    harness.later(11);
    assert!(harness.problems().contains("deleted if that is still so"), "{}", harness.problems());
    assert!(!harness.log().iter().any(|it| it.starts_with("delete ")));
    harness.later(300);
    for name in names {
        harness.answer(&source(name, None), &[]);
    }
    assert_eq!(harness.log().iter().filter(|it| it.starts_with("delete ")).count(), 4);
}

#[test]
fn i13_of_two_that_want_a_name_one_has_it_and_keeps_it() {
    let mut harness = Harness::with(Some(create()));
    let (under, minus) = (source("echo_default", None), source("echo-default", None));
    harness.names(&["echo_default"]).answer(&under, &["10.0.0.1"]);
    assert_eq!(harness.log(), ["create consul/echo-default Headless", "write 1"]);
    harness.names(&["echo_default", "echo-default"]);
    assert!(harness.problems().contains("\"echo-default\" and \"echo_default\" want"));
    assert_eq!(harness.log(), [""; 0]);
    harness.names(&["echo-default"]).answer(&under, &[]).later(10).answer(&under, &[]);
    harness.answer(&minus, &["10.0.0.2"]);
    let log = harness.log();
    assert_eq!(log[log.len() - 2..], ["create consul/echo-default Headless", "write 1"]);
    assert_eq!(harness.problems(), "");
}

#[test]
fn a_service_of_a_user_is_never_touched() {
    let mut harness = Harness::with(Some(create()));
    let web = key("consul/web");
    harness.import.handle_service(web.clone(), service("u1", &[]));
    harness.names(&["web"]).answer(&source("web", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), [""; 0]);
    assert!(harness.problems().contains("found another: it is not touched"));
    // Nor one of consul-k8s, unless that is asked for.
    let mut theirs = service("u1", &[]);
    theirs.labels = [("consul".into(), "true".into())].into();
    theirs.form = Form::ExternalName("web.service.consul".into());
    harness.import.handle_service(web.clone(), theirs);
    assert_eq!(harness.run().log(), [""; 0]);
    // Once it is gone, the name is free.
    harness.import.handle_service_gone(&web);
    harness.run().answer(&source("web", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), ["create consul/web Headless", "write 1"]);
}

#[test]
fn i14_a_service_of_consul_k8s_has_its_slices_before_its_type_changes_by_one_write() {
    let mut harness = Harness::with(Some(Create { adopts: true, ..create() }));
    let mut theirs = service("u1", &[]);
    theirs.labels = [("consul".into(), "true".into())].into();
    theirs.form = Form::ExternalName("web.service.consul".into());
    theirs.ports = vec![];
    harness.import.handle_service(key("consul/web"), theirs.clone());
    harness.names(&["web"]).answer(&source("web", None), &["!10.0.0.1"]);
    assert_eq!(harness.later(10).log(), ["write 1"], "with none ready the name would be gone");
    harness.answer(&source("web", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), ["write 1"]);
    harness.later(2);
    assert_eq!(harness.log(), ["update consul/web Headless"]);
    assert_eq!(harness.endpoints(), ["10.0.0.1"]);

    // What it made of our own registrations is not wanted.
    let mut harness = Harness::with(Some(Create { adopts: true, ..create() }));
    harness.import.handle_service(key("consul/web"), theirs);
    harness.names(&["web"]).answer_of(&source("web", None), "here", &["10.0.0.1"]);
    assert_eq!(harness.later(10).log(), [""; 0]);
}

#[test]
fn i12_what_consul_k8s_made_of_an_import_is_not_imported_again() {
    let mut harness = Harness::new();
    let pg = source("pg", None);
    let echo = |harness: &mut Harness| {
        let mut all = instances(&["10.0.0.1", "10.0.0.2"]);
        all[1].origin = Some(key(DB));
        harness.import.handle_instances(&pg, all, harness.now);
        harness.run();
    };
    harness.service(service("u1", &[(IMPORT, "pg")]));
    echo(&mut harness);
    assert_eq!(harness.endpoints(), ["10.0.0.1"]);
    assert!(harness.problems().contains("consul.hashicorp.com/service-sync=false"));
    // Where consul-k8s leaves the Service alone it is another cluster's.
    harness.service(service("u1", &[(IMPORT, "pg"), (SERVICE_SYNC, "false")]));
    echo(&mut harness);
    assert_eq!(harness.endpoints(), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn an_older_watch_event_than_our_write_costs_no_write() {
    let mut harness = Harness::new();
    let version = |number: u64| Version(number.to_string().into());
    let pg = source("pg", None);
    harness.service(service("u1", &[(IMPORT, "pg")])).answer(&pg, &["10.0.0.1"]);
    let name = harness.slices.keys().next().unwrap().clone();
    let slice = |harness: &Harness| harness.slices.values().next().unwrap().1.clone();
    let first = slice(&harness);
    harness.hold = true;
    harness.answer(&pg, &["10.0.0.2"]);
    let Some(Action::Write(Write::Put { slice: second, .. })) = harness.pending.pop_front() else {
        panic!("no write")
    };
    let shown = |slice: &Slice, number| OwnedSlice {
        version: version(number),
        ..owned(&key(DB), "u1", MANAGED_BY, slice.clone())
    };
    let written = Ok(Some(shown(&second, 20)));
    harness.import.handle_slice_written(&key(DB), "u1", &name, written, harness.now);
    let at = ObjectKey::new("shop", name);
    harness.import.handle_slice(at.clone(), shown(&first, 19));
    harness.run();
    assert!(harness.pending.is_empty(), "an older event: {:?}", harness.pending);
    harness.import.handle_slice(at.clone(), shown(&second, 20));
    harness.import.handle_slice(at, shown(&first, 21));
    harness.run();
    assert_eq!(harness.pending.len(), 1, "a newer one by somebody else is");
}

#[test]
fn a_watch_that_is_faster_than_an_answer_is_believed_later_too() {
    let mut harness = Harness::with(Some(create()));
    let web = key("consul/web");
    harness.names(&["web"]);
    harness.hold = true;
    harness.answer(&source("web", None), &["10.0.0.1"]);
    let Some(Action::Write(Write::CreateService { wanted, .. })) = harness.pending.pop_back()
    else {
        panic!("{:?}", harness.pending)
    };
    harness.hold = false;
    let made = Service { version: Version("7".into()), ..made(&wanted, "u1") };
    harness.import.handle_service(web.clone(), made.clone());
    harness.import.handle_service_written(&web, Ok(Some(made)), harness.now);
    assert_eq!(harness.run().log(), ["write 1"]);
    harness.import.handle_service_gone(&web);
    harness.run().answer(&source("web", None), &["10.0.0.1"]);
    assert_eq!(harness.log()[..1], ["create consul/web Headless"]);
}

#[test]
fn what_consul8s_left_goes_once_ours_stands() {
    for (is_old, dialect) in [(true, true), (false, true), (true, false)] {
        let mut harness = Harness::new();
        harness.endpoints_are_old = is_old;
        let slice = Slice { is_ipv6: false, ports: vec![], endpoints: BTreeMap::new() };
        let mirrored = "endpointslicemirroring-controller.k8s.io";
        harness.show(&key(DB), "db-mirrored", "u1", mirrored, slice);
        let mut db = service("u1", &[(CONSUL8S_NAME, "pg")]);
        db.labels = [(CONSUL8S_SOURCE.into(), "consul".into())].into();
        if !dialect {
            db = service("u1", &[(IMPORT, "pg")]);
        }
        harness.service(db).answer(&source("pg", None), &[]);
        assert_eq!(harness.log(), [""; 0], "nothing of ours is there");
        harness.answer(&source("pg", None), &["10.0.0.1"]);
        let wanted: &[&str] = if dialect { &["write 1", "delete endpoints"] } else { &["write 1"] };
        assert_eq!(harness.log(), wanted);
        assert!(harness.problems().contains("kubectl delete endpoints db"));
        harness.answer(&source("pg", None), &["10.0.0.2"]);
        assert_eq!(harness.log(), ["write 1"], "it is asked once");
    }
}
