//! Writes and readings that fail.

use super::*;

#[test]
fn what_others_changed_or_removed_is_repaired_and_counted() {
    let mut simulation = in_sync(5);
    simulation.registrations.remove("kubernetes_ns_s1_http_10.0.0.1");
    simulation.registrations.get_mut("kubernetes_ns_s2_http_10.0.0.2").unwrap().port = 1;
    simulation.kv.remove("0.0.0.10.IN-ADDR.ARPA/10.0.0.3");
    let orphan = Registration {
        id: "kubernetes_ns_gone_http_10.0.0.99".into(),
        ..simulation.registrations["kubernetes_ns_s4_http_10.0.0.4"].clone()
    };
    simulation.registrations.insert(orphan.id.clone(), orphan);
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 4);
    assert_eq!((simulation.registrations.len(), simulation.kv.len()), (5, 5));
    assert!(
        simulation.bridge.take_reports().contains(&Report::Fixed { records: 4, state_lost: false })
    );
}

#[test]
fn an_agent_that_lost_its_state_is_filled_again() {
    let mut simulation = in_sync(30);
    simulation.registrations.clear();
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 30);
    assert_eq!(simulation.take_sent(), 30);
}

#[test]
fn a_reading_that_broke_off_removes_nothing() {
    let mut simulation = in_sync(30);
    simulation.begin_resync();
    simulation.bridge.handle_resync(Err("it broke off".to_owned()), simulation.now);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert_eq!(simulation.bridge.counts().registrations, 30);
}

#[test]
fn l5_a_refused_record_is_tried_again_later() {
    let mut simulation = in_sync(1);
    simulation.seen(service_seen(2));
    let (flight, writes) = simulation.next_writes();
    simulation.answer_all(flight, &writes, &[Answer::Refused("bad".to_owned()), Answer::NotSent]);
    while simulation.bridge.poll_action(simulation.now).is_some() {}
    assert_eq!(simulation.bridge.counts().problems, 1);
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2, "what refused it may be over");
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn a_refused_record_is_a_problem_and_another_content_is_tried_at_once() {
    let mut simulation = in_sync(1);
    simulation.seen(service_seen(2));
    let (flight, writes) = simulation.next_writes();
    simulation.answer_all(flight, &writes, &[Answer::Refused("bad".to_owned()), Answer::NotSent]);
    while simulation.bridge.poll_action(simulation.now).is_some() {}
    let reasons: Vec<_> =
        simulation.bridge.problems().into_iter().map(|(_, _, p)| p.reason).collect();
    assert_eq!(reasons, [Reason::Refused]);
    // Another content is worth a try.
    simulation.seen(slice_seen(2, true));
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 2);
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn a_missing_right_is_a_problem_and_heals() {
    let mut simulation = in_sync(2);
    simulation.deleted(Kind::Service, "s1");
    simulation.step(&mut |_| Fate::Denied);
    assert_eq!(simulation.registrations.len(), 2);
    let reasons: Vec<_> =
        simulation.bridge.problems().into_iter().map(|(_, _, p)| p.reason).collect();
    assert_eq!(reasons, [Reason::Denied], "its PTR record stays as long as the instance");
    assert_eq!(simulation.kv.len(), 2);
    simulation.settle();
    assert_eq!(simulation.registrations.len(), 1);
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn while_consul_is_down_one_write_at_a_time_probes_it() {
    let mut simulation = in_sync(1);
    for n in 2..=100 {
        simulation.seen(service_seen(n));
    }
    let down_until = simulation.now + Duration::from_mins(1);
    let mut tries = 0;
    while simulation.now < down_until {
        simulation.step(&mut |_| {
            tries += 1;
            Fate::Failed
        });
        simulation.now = simulation.bridge.next_timeout().unwrap().max(simulation.now);
    }
    assert!((10..60).contains(&tries), "{tries} tries in a minute");
    let up = simulation.now;
    let last = simulation.settle();
    assert_eq!(simulation.registrations.len(), 100);
    assert!(last < up + Duration::from_secs(6), "{last:?} since {up:?}");
}

/// Consul fails every write of `s1` and takes all others.
fn only_s1_fails(write: &Write) -> Fate {
    let RecordKey::Registration(id) = write.key() else { return Fate::Applied };
    if id.contains("_s1_") { Fate::Failed } else { Fate::Applied }
}

#[test]
fn one_record_that_always_fails_does_not_keep_the_others_waiting() {
    let mut simulation = in_sync(1);
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
        simulation.seen(service_seen(n));
        simulation.step(&mut only_s1_fails);
    }
    let problems: Vec<Reason> =
        simulation.bridge.problems().into_iter().map(|(_, _, problem)| problem.reason).collect();
    assert_eq!(problems, [Reason::Failing]);
    assert!(simulation.bridge.is_settled(), "nobody waits for it any more");
    simulation.take_sent();
    for _ in 0..10 {
        simulation.now += Duration::from_secs(30);
        simulation.step(&mut only_s1_fails);
    }
    let tries = simulation.take_sent();
    assert!((4..=8).contains(&tries), "{tries} tries in five minutes");
    simulation.settle();
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn a_lone_record_that_fails_is_a_problem_once_consul_is_known_to_read() {
    let mut simulation = in_sync(1);
    simulation.seen(slice_seen(1, false));
    for _ in 0..100 {
        simulation.step(&mut |_| Fate::Failed);
        simulation.now = simulation.bridge.next_timeout().unwrap().max(simulation.now);
    }
    assert_eq!(simulation.bridge.counts().problems, 0, "nothing shows that Consul is there");
    for _ in 0..6 {
        simulation.resync();
        simulation.step(&mut |_| Fate::Failed);
        simulation.now += Duration::from_mins(1);
    }
    assert_eq!(simulation.bridge.counts().problems, 1);
    assert!(simulation.bridge.is_settled());
}

#[test]
fn a_denied_ptr_record_that_is_not_to_be_written_is_no_problem() {
    let denied = |write: &Write| match write {
        Write::PutPtr { .. } => Fate::Denied,
        _ => Fate::Applied,
    };
    let mut simulation = in_sync(1);
    simulation.seen(service_seen(2));
    simulation.step(&mut |write| denied(write));
    assert_eq!(messages(&simulation, 2).len(), 1);
    simulation.set_domain(None);
    simulation.step(&mut |write| denied(write));
    assert_eq!(messages(&simulation, 2).len(), 1, "{:?}", messages(&simulation, 2));
    assert!(messages(&simulation, 2)[0].contains("datacenter"));
}

#[test]
fn a_record_in_flight_is_left_alone_until_its_answer() {
    let mut simulation = in_sync(1);
    simulation.seen(slice_seen(1, false));
    let first = simulation.next_actions();
    assert_eq!(first.len(), 1);
    simulation.seen(slice_seen(1, true));
    assert_eq!(simulation.next_actions(), [], "the older write is under way");
    for action in first {
        simulation.deliver(action, &mut |_| Fate::Applied);
    }
    simulation.settle();
    assert_eq!(simulation.registered(), ["s1 10.0.0.1 None"]);
}

#[test]
fn a_changed_token_sends_each_registration_once_more() {
    let mut simulation = in_sync(5);
    simulation.bridge.handle_token_changed(simulation.now);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 5);
    simulation.bridge.take_reports();
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn a_resync_does_not_spare_a_registration_the_new_token() {
    let mut simulation = in_sync(5);
    simulation.bridge.handle_token_changed(simulation.now);
    let first = simulation.next_action().unwrap();
    simulation.resync();
    simulation.deliver(first, &mut |_| Fate::Applied);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 5);
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn a_registration_in_flight_while_the_token_changes_is_sent_once_more() {
    let mut simulation = in_sync(1);
    simulation.seen(slice_seen(1, false));
    let first = simulation.next_actions();
    simulation.bridge.handle_token_changed(simulation.now);
    for action in first {
        simulation.deliver(action, &mut |_| Fate::Applied);
    }
    simulation.settle();
    assert_eq!(simulation.take_sent(), 2);
}

#[test]
fn it_settles_when_another_takes_the_ptr_key_that_could_not_be_written() {
    let mut simulation = in_sync(1);
    simulation.seen(service_seen(2));
    simulation.step(&mut |write| match write {
        Write::PutPtr { .. } => Fate::Failed,
        _ => Fate::Applied,
    });
    let record = PtrRecord {
        key: "0.0.0.10.IN-ADDR.ARPA/10.0.0.2".into(),
        value: "printer.example.org".into(),
    };
    let entry = ObservedPtr { record, flags: 0, index: 7 };
    simulation.kv.insert(entry.record.key.clone(), entry);
    simulation.resync();
    simulation.settle();
    assert!(simulation.bridge.is_settled());
    assert_eq!(simulation.bridge.counts().backlog, 0);
}

#[test]
fn it_settles_when_another_is_writing_the_ptr_record_that_could_not_be_written() {
    let mut simulation = in_sync(1);
    simulation.seen(service_seen(2));
    simulation.step(&mut |write| match write {
        Write::PutPtr { .. } => Fate::Failed,
        _ => Fate::Applied,
    });
    // At the moment in which it is to be tried again an older Service gets the address.
    let plan = simulation.bridge.plan_of(&key("s2"), simulation.now).unwrap();
    let mut waits = plan.waits.into_values();
    let Some(Wait::Backoff { until }) = waits.next() else { panic!("it waits for its next try") };
    simulation.now = until;
    let mut older = numbered(2);
    (older.created, older.uid) = (-9, "uid-1".into());
    simulation.seen(SeenObject::Service(key("s1"), older));
    // The former holder is planned before that is answered.
    for action in simulation.next_actions() {
        simulation.deliver(action, &mut |_| Fate::Applied);
    }
    simulation.settle();
    assert_eq!(
        &*simulation.kv["0.0.0.10.IN-ADDR.ARPA/10.0.0.2"].record.value,
        "s1.service.dc1.consul"
    );
    assert!(simulation.bridge.is_settled());
    assert_eq!(simulation.bridge.counts().backlog, 0);
}

#[test]
fn a_resync_does_not_speak_of_what_is_written_since_it_began() {
    let mut simulation = in_sync(3);
    simulation.begin_resync();
    let read = (simulation.registrations.clone(), simulation.kv.clone());
    simulation.seen(slice_seen(1, false));
    simulation.deleted(Kind::Service, "s2");
    simulation.seen(service_seen(4));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.take_sent(), 5);
    let written = (simulation.registrations.clone(), simulation.kv.clone());
    (simulation.registrations, simulation.kv) = read;
    simulation.show();
    (simulation.registrations, simulation.kv) = written;
    simulation.finish_resync();
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    let reports = simulation.bridge.take_reports();
    let is_news = |it: &Report| matches!(it, Report::Drifted { .. } | Report::Fixed { .. });
    assert!(!reports.iter().any(is_news), "{reports:?}");
}

#[test]
fn it_settles_when_the_instance_is_refused_whose_ptr_record_failed() {
    let mut simulation = in_sync(1);
    simulation.seen(service_seen(2));
    simulation.step(&mut |write| match write {
        Write::PutPtr { .. } => Fate::Failed,
        _ => Fate::Applied,
    });
    simulation.seen(slice_seen(2, true));
    simulation.now += Duration::from_secs(1);
    let (flight, writes) = simulation.next_writes();
    let mut answers = vec![Answer::Refused("bad".to_owned())];
    answers.resize(writes.len(), Answer::NotSent);
    simulation.answer_all(flight, &writes, &answers);
    simulation.settle();
    assert!(simulation.bridge.is_settled());
}
