//! Services that are made here.

use super::*;

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
fn many_that_want_one_name_are_a_few_problems() {
    let mut harness = Harness::with(Some(create()));
    let rivals: Vec<String> = (33..127_u8)
        .map(char::from)
        .filter(|c| !c.is_alphanumeric())
        .map(|c| format!("a{c}b"))
        .collect();
    let rivals: Vec<&str> = rivals.iter().map(|it| &**it).collect();
    harness.names(&rivals).answer(&source("a-b", None), &["10.0.0.1"]);
    assert_eq!(harness.log(), ["create consul/a-b Headless", "write 1"], "whose very name it is");
    assert!((1..4).contains(&harness.problems().lines().count()), "{}", harness.problems());
}
