//! What the core decides in its own time: when to look, and whether the work is being done.

use super::*;
use crate::domain::sync::{NotReady, Once, Readiness, Written};

fn not_ready(why: NotReady) -> Readiness {
    Readiness::NotReady(why)
}

/// What is asked now beside writes, which are applied.
fn asked(simulation: &mut Simulation) -> Vec<Action> {
    simulation.step(&mut |_| Fate::Applied);
    std::mem::take(&mut simulation.asked)
}

#[test]
fn readiness_goes_from_the_handshake_to_what_the_catalog_shows() {
    let mut core = Core::new(Config::new(settings(), Target::Agent));
    let now = Moment::from_secs(1);
    assert_eq!(core.readiness(now), not_ready(NotReady::Connecting));
    assert_eq!(core.poll_action(now), None);
    core.handle_connected(Peer { domain: Some(domain()), shows_catalog: true }, now);
    assert_eq!(core.readiness(now), not_ready(NotReady::Listing));
    let mut simulation = Simulation { bridge: core, now, ..Simulation::new(settings()) };
    simulation.list(Kind::Service, [service_seen(1)]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    assert_eq!(simulation.readiness(), not_ready(NotReady::Standby));
    simulation.acquire();
    assert_eq!(simulation.readiness(), not_ready(NotReady::WaitingForConsul));
    simulation.names = None;
    simulation.resync();
    assert_eq!(asked(&mut simulation), [], "no names, no catalog");
    assert_eq!(simulation.readiness(), not_ready(NotReady::WaitingForConsul));
    simulation.others_hold(ForeignNames::default());
    assert_eq!(simulation.readiness(), not_ready(NotReady::Syncing { services: 1 }));
    assert_eq!(asked(&mut simulation), [Action::ReadCatalog]);
    assert_eq!(simulation.readiness(), not_ready(NotReady::WaitingForCatalog));
    simulation.bridge.handle_catalog(Ok(&|_| false), simulation.now);
    assert_eq!(asked(&mut simulation), [], "a moment later");
    simulation.now = simulation.bridge.next_timeout().unwrap();
    assert_eq!(asked(&mut simulation), [Action::ReadCatalog]);
    simulation.bridge.handle_catalog(Ok(&|_| true), simulation.now);
    assert_eq!(asked(&mut simulation), []);
    assert_eq!(simulation.readiness(), Readiness::Ready);
    // What changes later makes nobody unready.
    simulation.seen(service_seen(2));
    assert_eq!(simulation.readiness(), Readiness::Ready);
}

#[test]
fn resyncs_that_fail_five_times_in_a_row_are_told_though_consul_answers() {
    let mut simulation = in_sync(1);
    assert_eq!(simulation.readiness(), Readiness::Ready);
    for failures in 1..=6 {
        simulation.begin_resync();
        simulation.bridge.handle_heartbeat(Ok(()), simulation.now);
        simulation.bridge.handle_resync(Err("it broke off".to_owned()), simulation.now);
        let told = if failures < 5 { Readiness::Ready } else { not_ready(NotReady::ResyncsFail) };
        assert_eq!(simulation.readiness(), told, "after {failures}");
    }
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.readiness(), Readiness::Ready);
}

impl Simulation {
    fn readiness(&self) -> Readiness {
        self.bridge.readiness(self.now)
    }
}

#[test]
fn what_the_catalog_lacks_for_long_is_a_problem_and_settled() {
    let mut simulation = Simulation::new(settings());
    simulation
        .bridge
        .handle_connected(Peer { domain: Some(domain()), shows_catalog: true }, simulation.now);
    simulation.resync();
    simulation.list(Kind::Service, [service_seen(1), service_seen(2)]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true), slice_seen(2, true)]);
    let began = simulation.now;
    let shows = |id: &str| id.contains("_s1_");
    while simulation.readiness() != Readiness::Ready {
        if asked(&mut simulation).contains(&Action::ReadCatalog) {
            simulation.bridge.handle_catalog(Ok(&shows), simulation.now);
        } else {
            simulation.now = simulation.bridge.next_timeout().unwrap();
        }
        assert!(simulation.now < began + Duration::from_mins(3), "it never gives up");
    }
    assert!(simulation.now >= began + Duration::from_secs(90), "{:?}", simulation.now);
    let problems = simulation.bridge.problems();
    let [(Subject::Service, object, problem)] = *problems else { panic!("{problems:?}") };
    assert_eq!((object, problem.reason), (&key("s2"), Reason::NotInCatalog));
    // It goes with the record.
    simulation.deleted(Kind::Service, "s2");
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.bridge.counts().problems, 0);
}

#[test]
fn a_silent_consul_makes_unready_until_it_is_heard_again() {
    for leads in [true, false] {
        let mut simulation = in_sync(1);
        if !leads {
            simulation.lose();
            simulation.bridge.handle_candidacy(true);
        }
        assert_eq!(simulation.readiness(), Readiness::Ready, "{leads}");
        let mut heartbeats = 0;
        let silent_since = simulation.now;
        while simulation.readiness() == Readiness::Ready {
            simulation.now = simulation.bridge.next_timeout().unwrap();
            while let Some(action) = simulation.bridge.poll_action(simulation.now) {
                let (why, now) = (Err("no answer".to_owned()), simulation.now);
                match action {
                    Action::Heartbeat => {
                        heartbeats += 1;
                        simulation.bridge.handle_heartbeat(why, now);
                    }
                    Action::Resync { .. } => simulation.bridge.handle_resync(why, now),
                    Action::ReadNames => simulation.bridge.handle_names(Err(String::new()), now),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(heartbeats >= 3, "{leads}: {heartbeats}");
        assert!(simulation.now <= silent_since + Duration::from_mins(1), "{leads}");
        assert_eq!(simulation.bridge.consul_failure(), Some("no answer"), "{leads}");
        simulation.bridge.handle_heartbeat(Ok(()), simulation.now);
        assert_eq!(simulation.readiness(), Readiness::Ready, "{leads}");
        assert_eq!(simulation.bridge.consul_failure(), None, "{leads}");
    }
}

#[test]
fn a_standby_is_ready_while_another_one_is_known_to_lead() {
    let mut simulation = in_sync(1);
    simulation.lose();
    assert_eq!(simulation.readiness(), not_ready(NotReady::Standby));
    simulation.bridge.handle_candidacy(true);
    assert_eq!(simulation.readiness(), Readiness::Ready);
    simulation.bridge.handle_candidacy(false);
    assert_eq!(simulation.readiness(), not_ready(NotReady::Standby));
    simulation.acquire();
    let waiting = not_ready(NotReady::WaitingForConsul);
    assert_eq!(simulation.readiness(), waiting, "others may have written meanwhile");
    simulation.resync();
    simulation.settle();
    assert_eq!(simulation.readiness(), Readiness::Ready);
}

#[test]
fn a_lost_marker_is_written_until_it_is_there_and_everything_is_read() {
    let mut simulation = in_sync(1);
    simulation.resyncs = false;
    simulation.bridge.handle_marker_lost(simulation.now);
    let mut marker = 0;
    for _ in 0..3 {
        while let Some(action) = simulation.bridge.poll_action(simulation.now) {
            if action == Action::WriteMarker {
                marker += 1;
                let failed = Err("no leader".to_owned());
                simulation.bridge.handle_marker_written(failed, simulation.now);
            } else {
                simulation.take(action);
            }
        }
        simulation.now += Duration::from_secs(5);
    }
    assert_eq!(marker, 3);
    assert_eq!(simulation.asked, [Action::Resync { consistent: false }]);
}

#[test]
fn the_clusters_identity_is_read_again_until_it_can_be() {
    let mut simulation = in_sync(30);
    simulation.list(Kind::Service, []);
    begin_confirmation(&mut simulation);
    for _ in 0..3 {
        simulation.bridge.handle_identity(Err("no answer".to_owned()), simulation.now);
        assert_eq!(asked(&mut simulation), []);
        simulation.now += Duration::from_secs(2);
        assert_eq!(asked(&mut simulation), [Action::ReadIdentity]);
    }
    assert!(simulation.bridge.is_holding());
}

#[test]
fn one_that_synchronizes_once_ends() {
    let limit = Duration::from_secs(30);
    let mut simulation = Simulation::new(settings());
    simulation.bridge =
        Core::new(Config { once: Some(limit), ..Config::new(settings(), Target::Agent) });
    let once = |simulation: &Simulation| simulation.bridge.once(limit, simulation.now);
    assert_eq!(simulation.bridge.next_timeout(), Some(limit), "it does not wait for ever");
    simulation.now = limit;
    assert_eq!(once(&simulation), Once::NotReached(NotReady::Connecting));

    let mut simulation = filled(Simulation::new(settings()), 2);
    assert_eq!(once(&simulation), Once::InSync);
    simulation.seen(slice_seen(2, false));
    simulation.step(&mut |_| Fate::Applied);
    simulation.seen(slice_seen(1, false));
    simulation.step(&mut |_| Fate::Failed);
    assert_eq!(once(&simulation), Once::Pending, "something was written just now");
    simulation.now += limit;
    simulation.step(&mut |_| Fate::Failed);
    assert_eq!(once(&simulation), Once::Stuck(NotReady::Syncing { services: 1 }));
    simulation.settle();
    assert_eq!(once(&simulation), Once::InSync);
}

#[test]
fn a_write_that_leaves_nothing_to_do_is_not_planned_again() {
    let mut simulation = in_sync(1);
    for (change, follows) in [
        // What takes the place of another has the other removed.
        (SeenObject::Service(key("s1"), numbered(9)), true),
        (slice_seen(1, false), false),
        (slice_seen(1, true), false),
    ] {
        simulation.seen(change);
        let actions = simulation.next_actions();
        for action in actions {
            simulation.deliver(action, &mut |_| Fate::Applied);
        }
        assert_eq!(simulation.bridge.counts().backlog > 0, follows);
        let reports = simulation.bridge.take_reports();
        assert_eq!(reports.len(), usize::from(!follows), "{reports:?}");
        simulation.step(&mut |_| Fate::Applied);
        simulation.bridge.take_reports();
    }
}

#[test]
fn each_record_that_waits_says_why() {
    let waits = |simulation: &Simulation, n: u8| -> Vec<(bool, Wait)> {
        let plan = simulation.bridge.plan_of(&key(&format!("s{n}")), simulation.now).unwrap();
        let is_ptr = |record: &RecordKey| matches!(record, RecordKey::Ptr(_));
        plan.waits.into_iter().map(|(record, wait)| (is_ptr(&record), wait)).collect()
    };
    let mut simulation = in_sync(30);
    assert_eq!(waits(&simulation, 1), []);
    simulation.others_hold(foreign(&["s31"]));
    simulation.seen(service_seen(31));
    assert_eq!(waits(&simulation, 31), [(false, Wait::NameForeign)]);

    let mut younger = numbered(32);
    younger.annotations.insert("kube-consul.io/service-name".into(), "s1".into());
    simulation.seen(SeenObject::Service(key("s32"), younger));
    assert_eq!(waits(&simulation, 32), [(false, Wait::NameConflict)]);

    simulation.seen(slice_seen(1, false));
    let actions = simulation.next_actions();
    assert_eq!(waits(&simulation, 1), [(false, Wait::InFlight)]);
    for action in actions {
        simulation.deliver(action, &mut |_| Fate::Denied);
    }
    assert!(matches!(waits(&simulation, 1)[..], [(false, Wait::Denied { .. })]));

    simulation.seen(SeenObject::Service(key("s2"), numbered(99)));
    let expected = [(false, Wait::AfterReplacement), (true, Wait::AfterReplacement)];
    assert_eq!(waits(&simulation, 2), expected);
    simulation.set_domain(None);
    assert_eq!(waits(&simulation, 3), [(true, Wait::DomainUnknown)]);
    simulation.set_domain(Some(domain()));

    simulation.settle();
    simulation.list(Kind::EndpointSlice, []);
    simulation.list(Kind::Service, [service_seen(3)]);
    assert_eq!(waits(&simulation, 4), [], "it is taken to exist");
    let unread = SeenObject::Undecodable(Kind::EndpointSlice, key("s3-x"), "no".to_owned());
    simulation.seen(unread);
    let mut simulation = in_sync(3).restarted(settings());
    simulation.names = None;
    simulation.resync();
    simulation.list(Kind::Service, [service_seen(1), service_seen(9)]);
    simulation.list(Kind::EndpointSlice, []);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(waits(&simulation, 9), [(false, Wait::NameUnknown), (true, Wait::NameUnknown)]);
}

/// What was written of the Service since the last time, and since when it was to be.
fn synced(simulation: &mut Simulation) -> Vec<(Written, usize, usize, Option<Moment>)> {
    let reports = simulation.bridge.take_reports().into_iter();
    let synced = reports.filter_map(|report| match report {
        Report::InSync { written, passing, critical, since, .. } => {
            Some((written, passing, critical, since))
        }
        _ => None,
    });
    synced.collect()
}

#[test]
fn what_was_written_is_counted_from_the_change_on() {
    let mut simulation = in_sync(1);
    simulation.bridge.take_reports();
    simulation.now += Duration::from_secs(5);
    let changed = simulation.now;
    simulation.seen(slice_seen(1, false));
    simulation.now += Duration::from_secs(1);
    simulation.seen(slice_seen(1, false));
    simulation.step(&mut |_| Fate::Applied);
    let written = Written { updated: 1, ..Written::default() };
    assert_eq!(synced(&mut simulation), [(written, 0, 1, Some(changed))]);
    assert_eq!(
        (simulation.bridge.counts().registrations, simulation.bridge.counts().critical),
        (1, 1)
    );
    // What a token asks for is no change of Kubernetes.
    simulation.bridge.handle_token_changed(simulation.now);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(synced(&mut simulation), [(written, 0, 1, None)]);
}
