//! `--policy upsert-only`: nothing is removed.

use super::*;
use crate::domain::consul::record::Check;
use crate::domain::services::settings::{AddressMode, Policy};
use crate::domain::sync::Cause;
use crate::domain::sync::wait::Wait;

fn upsert_only() -> Settings {
    Settings { policy: Policy::UpsertOnly, ..settings() }
}

/// A bridge of this policy with so many Services `s1`, `s2`, ..., each with a PTR record.
fn running(services: u8) -> Simulation {
    let mut simulation = Simulation::new(upsert_only());
    simulation.resync();
    simulation.list(Kind::Service, (1..=services).map(service_seen));
    simulation.list(Kind::EndpointSlice, (1..=services).map(|n| slice_seen(n, true)));
    simulation.settle();
    simulation
}

#[test]
fn what_is_deleted_stays_and_is_counted() {
    let mut simulation = running(3);
    let (registrations, ptr) = (simulation.registrations.clone(), simulation.kv.clone());
    assert_eq!(registrations.len(), 3);
    simulation.take_sent();
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0);
    assert_eq!(simulation.registrations, registrations);
    assert_eq!(simulation.kv, ptr);
    let now = simulation.now;
    let waits = simulation.bridge.plan_of(&key("s1"), now).unwrap().waits;
    assert!(waits.values().all(|wait| *wait == Wait::Held(Cause::Policy)), "{waits:?}");
    // The instance and its PTR record.
    assert_eq!(waits.len(), 2);
    assert_eq!(simulation.bridge.counts().kept, 2);
    assert!(!simulation.bridge.is_holding(), "nothing waits for anybody");
    // One that comes back is its old self, and costs nothing.
    simulation.seen(service_seen(1));
    simulation.seen(slice_seen(1, true));
    simulation.settle();
    assert_eq!(simulation.bridge.counts().kept, 0);
    assert_eq!(simulation.take_sent(), 0);
}

#[test]
fn after_a_restart_nothing_is_removed_or_held_either() {
    for (what, settings) in [
        ("nothing is left", upsert_only()),
        ("nothing is selected", Settings { default_sync: false, ..upsert_only() }),
        ("other addresses", Settings { address: AddressMode::ExternalIp, ..upsert_only() }),
    ] {
        let simulation = running(30);
        let registrations = simulation.registrations.clone();
        let mut simulation = simulation.restarted(settings);
        simulation.resync();
        let services = if what == "nothing is left" { 0 } else { 30 };
        simulation.list(Kind::Service, (1..=services).map(service_seen));
        simulation.list(Kind::EndpointSlice, (1..=services).map(|n| slice_seen(n, true)));
        simulation.settle();
        assert_eq!(simulation.take_sent(), 0, "{what}");
        assert_eq!(simulation.registrations, registrations, "{what}");
        assert!(!simulation.bridge.is_holding(), "{what}");
        assert_eq!(simulation.bridge.counts().kept, 60, "{what}");
        assert!(simulation.bridge.is_settled(), "{what}");
    }
}

#[test]
fn what_changes_is_written_and_an_address_goes_to_its_next_holder() {
    let mut simulation = running(3);
    simulation.deleted(Kind::Service, "s1");
    simulation.settle();
    // Kubernetes gives the address to another Service.
    let SeenObject::Service(_, service) = service_seen(1) else { unreachable!() };
    simulation.seen(SeenObject::Service(key("other"), service));
    simulation.seen(slice_seen(2, false));
    simulation.settle();
    let critical = simulation.registrations.values().filter(|it| it.check == Check::Critical);
    // The one without an endpoint, and the newcomer, which has none.
    assert_eq!(critical.count(), 2);
    assert_eq!(simulation.registrations.len(), 4);
    assert!(simulation.kv.values().any(|it| it.record.value.starts_with("other.")));
}
