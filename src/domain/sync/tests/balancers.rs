//! A load balancer that is being made: told late, and as what it is.

use super::*;
use crate::domain::kube::object::ServiceType;
use crate::domain::sync::grace::BALANCER_APPEARS;

fn balanced(addresses: &[&str]) -> SeenObject {
    let service = service().with(|s| {
        s.kind = ServiceType::LoadBalancer;
        s.load_balancer = addresses.iter().map(|it| Box::from(*it)).collect();
    });
    SeenObject::Service(key("web"), service.build())
}

fn running(mode: AddressMode, seen: SeenObject) -> Simulation {
    let mut settings = settings();
    settings.address = mode;
    let mut simulation = Simulation::new(settings);
    simulation.resync();
    simulation.list(Kind::Service, [seen]);
    let slice = slice("web", &[("http", 8080)], &[("10.1.0.1", true)]);
    simulation.list(Kind::EndpointSlice, [SeenObject::EndpointSlice(key("web-x"), slice)]);
    simulation.step(&mut |_| Fate::Applied);
    simulation
}

fn problems(simulation: &Simulation) -> Vec<String> {
    simulation.bridge.problems().into_iter().map(|(_, _, problem)| problem.to_string()).collect()
}

#[test]
fn a_load_balancer_without_an_address_is_told_when_it_takes_long() {
    for mode in [AddressMode::LoadBalancer, AddressMode::ByType] {
        told_when_it_takes_long(mode);
    }
}

fn told_when_it_takes_long(mode: AddressMode) {
    let mut simulation = running(mode, balanced(&[]));
    assert_eq!(problems(&simulation), [""; 0]);
    simulation.now += BALANCER_APPEARS * 9 / 10;
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(problems(&simulation), [""; 0], "not yet");
    // What else changes does not begin it anew.
    simulation.seen(balanced(&[]));
    simulation.now += BALANCER_APPEARS / 5;
    simulation.step(&mut |_| Fate::Applied);
    let told = problems(&simulation);
    let is_right = told.len() == 1 && told[0].contains("no address for 5 minutes");
    assert!(is_right, "{told:?}");
    simulation.seen(balanced(&["203.0.113.1"]));
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(problems(&simulation), [""; 0]);
    assert_eq!(simulation.registered().len(), 1);
}

#[test]
fn one_that_comes_in_time_is_never_told_of() {
    let mut simulation = running(AddressMode::LoadBalancer, balanced(&[]));
    simulation.now += BALANCER_APPEARS / 2;
    simulation.seen(balanced(&["203.0.113.1"]));
    simulation.step(&mut |_| Fate::Applied);
    simulation.now += BALANCER_APPEARS * 2;
    simulation.step(&mut |_| Fate::Applied);
    assert_eq!(problems(&simulation), [""; 0]);
}
