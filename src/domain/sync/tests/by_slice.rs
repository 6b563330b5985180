//! Changes of a Service with several slices, of which only those that changed are planned. Each such plan
//! is compared with that of the whole Service where it is made, in the simulator too.

use super::*;

/// Slice `n` of the Service, with two endpoints.
fn of_web(n: u8, ready: [bool; 2]) -> SeenObject {
    let addresses = [1, 2].map(|host| format!("10.1.{n}.{host}"));
    let endpoints = [(&*addresses[0], ready[0]), (&*addresses[1], ready[1])];
    SeenObject::EndpointSlice(key(&format!("web-{n}")), slice("web", &[("http", 8080)], &endpoints))
}

fn running(slices: impl IntoIterator<Item = SeenObject>) -> Simulation {
    let mut settings = settings();
    settings.address = AddressMode::Endpoints;
    let mut simulation = Simulation::new(settings);
    simulation.resync();
    simulation.list(Kind::Service, [SeenObject::Service(key("web"), service().build())]);
    simulation.list(Kind::EndpointSlice, slices);
    simulation.settle();
    simulation.take_sent();
    simulation
}

/// How many plans there were since, and how many of them of some slices only; what was written.
fn changes(
    simulation: &mut Simulation,
    change: impl FnOnce(&mut Simulation),
) -> (usize, usize, usize) {
    let plans = |simulation: &Simulation| {
        let term = simulation.bridge.term.as_ref().unwrap();
        (term.plans, term.slice_plans)
    };
    let before = plans(simulation);
    change(simulation);
    simulation.step(&mut |_| Fate::Applied);
    let after = plans(simulation);
    (after.0 - before.0, after.1 - before.1, simulation.take_sent())
}

#[test]
fn a_flip_plans_the_slice_that_it_is_in() {
    let mut simulation = running([1, 2, 3].map(|n| of_web(n, [true, true])));
    let one = changes(&mut simulation, |it| it.seen(of_web(2, [true, false])));
    assert_eq!(one, (1, 1, 1));
    let both = changes(&mut simulation, |it| {
        it.seen(of_web(2, [true, true]));
        it.seen(of_web(1, [false, false]));
    });
    assert_eq!(both, (1, 1, 3));
    let back = changes(&mut simulation, |it| {
        it.seen(of_web(2, [true, false]));
        it.seen(of_web(2, [true, true]));
    });
    assert_eq!(back, (1, 1, 0));
    assert_eq!(passing(&simulation), 4);
    simulation.settle();
    assert_eq!(simulation.take_sent(), 0, "nothing was left to do");
}

fn passing(simulation: &Simulation) -> usize {
    simulation.registered().iter().filter(|it| it.ends_with("None")).count()
}

#[test]
fn whatever_else_changes_has_the_whole_service_planned() {
    type Change = fn(&mut Simulation);
    let others: [(&str, Change); 6] = [
        ("the Service", |it| {
            let tags = service().annotations(&[("kube-consul.io/service-tags", "new")]);
            it.seen(SeenObject::Service(key("web"), tags.build()));
        }),
        ("another endpoint", |it| {
            let endpoints = [("10.1.3.1", true), ("10.1.3.9", true)];
            let slice = slice("web", &[("http", 8080)], &endpoints);
            it.seen(SeenObject::EndpointSlice(key("web-3"), slice));
        }),
        ("a slice fewer", |it| it.deleted(Kind::EndpointSlice, "web-3")),
        ("a slice that cannot be read", |it| {
            let unread = "no ports".to_owned();
            it.seen(SeenObject::Undecodable(Kind::EndpointSlice, key("web-4"), unread));
        }),
        ("everything", |it| it.set_domain(None)),
        ("the token", |it| it.bridge.handle_token_changed(it.now)),
    ];
    for (what, change) in others {
        for flip_first in [true, false] {
            let mut simulation = running([1, 2, 3].map(|n| of_web(n, [true, true])));
            let flip = |it: &mut Simulation| it.seen(of_web(1, [true, false]));
            let (_, of_slices, written) = changes(&mut simulation, |it| {
                if flip_first {
                    flip(it);
                    change(it);
                } else {
                    change(it);
                    flip(it);
                }
            });
            assert_eq!(of_slices, 0, "{what} {flip_first}");
            // Nothing turns critical while a slice cannot be read.
            assert_eq!(written == 0, what.ends_with("read"), "{what} {flip_first}: {written}");
        }
    }
}

#[test]
fn an_endpoint_in_two_slices_has_the_whole_service_planned() {
    let moving = slice("web", &[("http", 8080)], &[("10.1.1.1", true)]);
    let moving = SeenObject::EndpointSlice(key("web-9"), moving);
    let mut simulation = running([of_web(1, [true, true]), moving]);
    let flip = changes(&mut simulation, |it| it.seen(of_web(1, [false, true])));
    assert_eq!(flip, (1, 0, 0), "it is ready in the other one");
}

#[test]
fn a_flip_whose_write_fails_is_made_with_the_whole_service() {
    let mut simulation = running([1, 2].map(|n| of_web(n, [true, true])));
    simulation.seen(of_web(1, [false, true]));
    simulation.step(&mut |_| Fate::Failed);
    simulation.seen(of_web(2, [true, false]));
    simulation.settle();
    assert_eq!(passing(&simulation), 2);
    let term = simulation.bridge.term.as_ref().unwrap();
    assert_eq!(term.slice_plans, 1, "the first try");
}
