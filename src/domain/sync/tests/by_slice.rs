//! Changes of a Service with several slices, of which only those that changed are planned. Each such plan
//! is compared with that of the whole Service where it is made, in the simulator too.

use proptest::prelude::*;

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

/// What happens in [`any_order_of_changes_is_planned_as_a_whole`].
#[derive(Clone, Debug)]
enum Step {
    /// A slice says of its two endpoints which are there, which are ready, and one of them may be that
    /// of the next slice.
    Slice {
        n: u8,
        present: [bool; 2],
        ready: [bool; 2],
        shared: bool,
    },
    DeleteSlice(u8),
    Unread(u8),
    Service {
        tag: u8,
    },
    DeleteService,
    /// A third of the writes fail, or nobody knows of them.
    Send(Vec<Fate>),
    SendOne,
    Token,
    Domain(bool),
    /// Others remove what one instance is registered as; a resync shows that.
    Removed(usize),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let n = || 0..3_u8;
    let both = || any::<[bool; 2]>();
    let fate = prop_oneof![
        4 => Just(Fate::Applied),
        1 => Just(Fate::Failed),
        1 => Just(Fate::Denied),
        1 => Just(Fate::Lost)
    ];
    let flip = (n(), both()).prop_map(|(n, ready)| Step::Slice {
        n,
        present: [true; 2],
        ready,
        shared: false,
    });
    let slice = (n(), both(), both(), any::<bool>())
        .prop_map(|(n, present, ready, shared)| Step::Slice { n, present, ready, shared });
    let step = prop_oneof![
        12 => flip,
        2 => slice,
        1 => n().prop_map(Step::DeleteSlice),
        1 => n().prop_map(Step::Unread),
        1 => (0..2_u8).prop_map(|tag| Step::Service { tag }),
        1 => Just(Step::DeleteService),
        6 => Just(Step::Send(Vec::new())),
        2 => prop::collection::vec(fate, 1..4).prop_map(Step::Send),
        2 => Just(Step::SendOne),
        1 => Just(Step::Token),
        1 => any::<bool>().prop_map(Step::Domain),
        1 => (0..6_usize).prop_map(Step::Removed),
        1 => (1..40_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..40)
}

fn take(simulation: &mut Simulation, step: Step) {
    match step {
        Step::Slice { n, present, ready, shared } => {
            let addresses = [format!("10.1.{n}.1"), format!("10.1.{}.2", n + u8::from(shared))];
            let endpoints = [0, 1].map(|it| (&*addresses[it], ready[it]));
            let endpoints = endpoints.iter().zip(present).filter(|(_, present)| *present);
            let endpoints: Vec<_> = endpoints.map(|(endpoint, _)| *endpoint).collect();
            let slice = slice("web", &[("http", 8080)], &endpoints);
            simulation.seen(SeenObject::EndpointSlice(key(&format!("web-{n}")), slice));
        }
        Step::DeleteSlice(n) => simulation.deleted(Kind::EndpointSlice, &format!("web-{n}")),
        Step::Unread(n) => simulation.seen(SeenObject::Undecodable(
            Kind::EndpointSlice,
            key(&format!("web-{n}")),
            "no ports".to_owned(),
        )),
        Step::Service { tag } => {
            let tag = format!("tag-{tag}");
            let service = service().annotations(&[("kube-consul.io/service-tags", &tag)]);
            simulation.seen(SeenObject::Service(key("web"), service.build()));
        }
        Step::DeleteService => simulation.deleted(Kind::Service, "web"),
        Step::Send(fates) => {
            let mut fates = fates.into_iter();
            simulation.step(&mut |_| fates.next().unwrap_or(Fate::Applied));
        }
        Step::SendOne => {
            if let Some(action @ Action::Write { .. }) = simulation.next_action() {
                simulation.deliver(action, &mut |_| Fate::Applied);
            }
        }
        Step::Token => simulation.bridge.handle_token_changed(simulation.now),
        Step::Domain(is_known) => simulation.set_domain(is_known.then(domain)),
        Step::Removed(nth) => {
            let id = simulation.registrations.keys().nth(nth).cloned();
            if let Some(id) = id {
                simulation.registrations.remove(&id);
                simulation.step(&mut |_| Fate::Applied);
                simulation.resync();
            }
        }
        Step::Pass(seconds) => simulation.now += Duration::from_secs(seconds),
    }
}

proptest! {
    /// Each plan of some slices is compared with that of the whole Service where it is made. At the end
    /// what is registered is what a bridge would register that sees all for the first time.
    #[test]
    fn any_order_of_changes_is_planned_as_a_whole(steps in steps()) {
        let mut simulation = running([0, 1, 2].map(|n| of_web(n, [true, true])));
        for step in steps {
            take(&mut simulation, step);
        }
        simulation.settle();
        let desired = simulation.bridge.desired_of(&key("web")).unwrap();
        if simulation.bridge.cache().has_unread_slice(&key("web")) {
            return Ok(());
        }
        prop_assert_eq!(&simulation.registrations, &desired.registrations);
    }
}
