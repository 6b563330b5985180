//! What ought to be registered for one Service.
//!
//! | file | what it is |
//! |---|---|
//! | `selection` | whether the Service is registered at all |
//! | `wanted` | the names, ports and kind of address that it asks for |
//! | `permit` | whether it may use a name, and what people are told when not |
//! | `instances` | the instances of its ports, with their tags, meta and checks |
//! | `records` | what comes of it |

mod instances;
mod permit;
mod records;
mod selection;
mod wanted;

use self::instances::Builder;
use self::permit::{Advice, permitted_name};
pub use self::permit::{First, Keeps, Neighbours, Permit};
pub use self::records::{Awaited, Blocked, Desired, WantedPtr};
pub use self::selection::{is_read_label, not_selected};
pub use self::wanted::{AddressSource, Wanted, WantedPort, left_out, wanted};
use crate::domain::kube::names::ObjectKey;
use crate::domain::kube::object::{EndpointSlice, Node, Service};
use crate::domain::kube::route::Route;
use crate::domain::services::routes::Places;
use crate::domain::services::settings::{JoinExisting, Settings};

/// What ought to be registered for `service` with these slices, nodes (by name; `None`: not
/// known) and routes; `permit` says which of the wanted names it may use.
pub fn desired<'a>(
    settings: &Settings,
    key: &ObjectKey,
    service: &'a Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    nodes: Option<impl Iterator<Item = (&'a str, &'a Node)> + Clone>,
    routes: &[Route<'_>],
    permit: &impl Fn(&str, JoinExisting) -> Permit,
) -> Desired {
    let mut wanted = wanted(settings, key, service);
    let mut problems = std::mem::take(&mut wanted.problems);
    if wanted.uses_nodes() && nodes.is_none() {
        return Desired { awaits: Some(Awaited::Nodes), problems, ..Desired::default() };
    }
    let nodes = nodes.into_iter().flatten();
    let join_of = |name: &str| wanted.join(settings, name);
    let advice = Advice::new(settings, key);
    let routes = if wanted.takes_routes(settings) { routes } else { &[] };
    let ports = wanted.ports.iter().map(|port| port.port);
    let mut places = Places::new(settings.route_address, service, ports, routes);
    problems.append(&mut places.problems);
    let mut places = places.of_port.into_iter();
    let mut builder = Builder::new(settings, key, service, &wanted);
    for port in &wanted.ports {
        let name = permitted_name(port, &join_of, advice, permit, &mut problems);
        let places = places.next().unwrap_or_default();
        builder.port(name, port, places, slices.clone(), nodes.clone());
    }
    let mut desired = builder.finish();
    if !wanted.ports.is_empty() {
        problems.extend(slices.flat_map(|slice| left_out(&slice.left_out)));
    }
    problems.append(&mut desired.problems);
    problems.sort();
    problems.dedup();
    desired.problems = problems;
    desired
}

#[cfg(test)]
mod tests;
