//! N2: PTR keys that another cluster has.

use super::*;

const KEY: &str = "0.0.0.10.IN-ADDR.ARPA/10.0.0.1";

/// `s1`, whose key another cluster has.
fn shared() -> Simulation {
    let mut simulation = Simulation::new(settings());
    let record = PtrRecord { key: KEY.into(), value: "web.service.dc1.consul".into() };
    let flags = PtrOwner::flags(&"eu".parse().unwrap());
    simulation.kv.insert(KEY.into(), ObservedPtr { record, flags, index: 3 });
    simulation.resync();
    simulation.list(Kind::Service, [service_seen(1)]);
    simulation.list(Kind::EndpointSlice, [slice_seen(1, true)]);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.registrations.len(), 1);
    assert_eq!(simulation.bridge.counts().ptr_records, 0);
    simulation
}

#[test]
fn n2_a_key_that_its_holder_gives_up_is_written_at_once() {
    let mut simulation = shared();
    let follow = |prefix: Option<&str>| Action::FollowPtr { prefix: prefix.map(Into::into) };
    assert_eq!(std::mem::take(&mut simulation.asked), [follow(Some(KEY))]);
    // A change of something else.
    simulation.bridge.handle_ptr_keys(&|_| true, simulation.now);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!((simulation.asked.len(), simulation.bridge.counts().ptr_records), (0, 0));
    // Not there by what is followed, and there by what is read: it is followed further on.
    simulation.bridge.handle_ptr_keys(&|_| false, simulation.now);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!((simulation.asked.len(), simulation.bridge.counts().ptr_records), (0, 0));
    simulation.bridge.take_reports();
    simulation.kv.clear();
    simulation.bridge.handle_ptr_keys(&|_| false, simulation.now);
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(&*simulation.kv[KEY].record.value, "s1.service.dc1.consul");
    assert_eq!(simulation.asked, [follow(None)]);
    let taken = Report::PtrTakenOver(key("s1"), KEY.into());
    assert!(simulation.bridge.take_reports().contains(&taken));
}

#[test]
fn n2_a_key_that_is_not_wanted_any_more_is_not_followed() {
    let mut simulation = shared();
    simulation.asked.clear();
    simulation.deleted(Kind::Service, "s1");
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.asked, [Action::FollowPtr { prefix: None }]);
    assert_eq!(simulation.kv.len(), 1, "it is theirs");
}

#[test]
fn n2_without_that_the_next_resync_shows_it() {
    let mut simulation = shared();
    simulation.kv.clear();
    simulation.resync();
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(simulation.bridge.counts().ptr_records, 1);
}
