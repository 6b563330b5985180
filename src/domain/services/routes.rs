//! Where the ports of a Service are reached through Ingresses and Gateways.
//!
//! An Ingress leads to Services of its own namespace alone, and so do the HTTPRoutes that are taken
//! here: nobody's routes can move another namespace's Service, and no route gives a Service another
//! name than its own, nor an address a PTR record.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::domain::consul::names::is_name_in_consul;
use crate::domain::kube::object::{Protocol, SeenObject, Service, ServicePort};
use crate::domain::kube::route::{BackendPort, Route, is_wildcard};
use crate::domain::map::HashMap;
use crate::domain::problem::{Problem, Reason};
use crate::domain::services::settings::{RouteAddress, Settings};
use crate::domain::text::excerpt;

/// How many hosts or ports a problem shows.
const MAX_SHOWN: usize = 8;

/// An address of a routed port, and the port there.
pub type Place = (Box<str>, u16);

/// Where the ports of one Service are reached.
#[derive(Debug, Default)]
pub struct Places {
    /// Of each wanted port, in their order; none: it is not routed to.
    pub of_port: Vec<Vec<Place>>,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Of one address the port, and whether it speaks TLS; the better one sorts first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct At {
    is_plain: bool,
    port: u16,
}

// === impl Places ===

impl Places {
    /// Where the wanted ports, the primary one first, are reached by these routes. A route to a port
    /// that the Service has and that is not wanted is the primary port's.
    pub fn new<'s>(
        at: RouteAddress,
        service: &'s Service,
        wanted: impl Iterator<Item = &'s ServicePort>,
        routes: &[Route<'_>],
    ) -> Self {
        let wanted: Vec<&ServicePort> = wanted.collect();
        if routes.is_empty() || wanted.is_empty() {
            return Self::default();
        }
        let mut places_of: HashMap<BackendPort, usize> = HashMap::default();
        let of_wanted = wanted.iter().enumerate().map(|(place, port)| (*port, place));
        let of_others = service.ports.iter().map(|port| (port, 0));
        let is_tcp = |(port, _): &(&ServicePort, usize)| port.protocol == Protocol::Tcp;
        for (port, place) in of_wanted.chain(of_others).filter(is_tcp) {
            let number = BackendPort::Number(port.port);
            let name = port.name.clone().map(BackendPort::Name);
            for named in name.into_iter().chain([number]) {
                places_of.entry(named).or_insert(place);
            }
        }
        let mut found: Vec<BTreeMap<&str, At>> = vec![BTreeMap::new(); wanted.len()];
        let mut unknown = BTreeSet::new();
        for route in routes {
            let Some(&place) = places_of.get(route.backend) else {
                unknown.insert(route.backend);
                continue;
            };
            let at_host = at == RouteAddress::Host;
            let host = route.host.filter(|host| at_host && unusable(host).is_none());
            let addresses = route.addresses.iter().filter(|it| !at_host && !is_name_in_consul(it));
            let new = At { is_plain: !route.tls, port: route.port };
            for address in addresses.map(|it| &**it).chain(host) {
                let best = found[place].entry(address).or_insert(new);
                *best = new.min(*best);
            }
        }
        let mut problems: Vec<Problem> = Vec::new();
        problems.extend(no_such_port(&unknown));
        let of_port = found.into_iter().map(|found| chosen(found, &mut problems)).collect();
        Self { of_port, problems }
    }
}

/// What is wrong with an object that routes to Services.
pub fn route_problems(settings: &Settings, object: &SeenObject) -> BTreeSet<Problem> {
    let (left_out, hosts): (_, BTreeSet<&str>) = match object {
        SeenObject::Ingress(_, it) => (&it.left_out, it.hosts().collect()),
        SeenObject::HttpRoute(_, it) => {
            (&it.left_out, it.hostnames.iter().map(|host| &**host).collect())
        }
        SeenObject::Gateway(_, it) => (&it.left_out, BTreeSet::new()),
        _ => return BTreeSet::new(),
    };
    let mut problems: BTreeSet<Problem> =
        left_out.iter().map(|sentence| Problem::new(Reason::Incomplete, &**sentence)).collect();
    if settings.route_address == RouteAddress::LoadBalancer {
        return problems;
    }
    let mut by_why: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (why, host) in hosts.into_iter().filter_map(|host| Some((unusable(host)?, host))) {
        by_why.entry(why).or_default().push(format!("{:?}", excerpt(host)));
    }
    for (why, hosts) in by_why {
        let shown = hosts.iter().take(MAX_SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = hosts.len().saturating_sub(MAX_SHOWN);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let message = format!("no Service is registered at the host {shown}{more}: {why}");
        problems.insert(Problem::new(Reason::Incomplete, message));
    }
    problems
}

/// Why no Service can be registered at this host, if so.
fn unusable(host: &str) -> Option<&'static str> {
    if is_wildcard(host) {
        Some(
            "a wildcard is no address; name the host in a rule of its own, or see \
             --ingress-addresses",
        )
    } else if is_name_in_consul(host) {
        Some("it is one of Consul's own names, and would lead back into Consul")
    } else {
        None
    }
}

fn no_such_port(unknown: &BTreeSet<&BackendPort>) -> Option<Problem> {
    let show = |port: &&BackendPort| match port {
        BackendPort::Name(name) => excerpt(name),
        BackendPort::Number(number) => number.to_string(),
    };
    let shown: Vec<String> = unknown.iter().take(MAX_SHOWN).map(show).collect();
    (!shown.is_empty()).then(|| {
        let message = format!(
            "an Ingress or HTTPRoute leads to a port that the Service does not have ({}): expected \
             the name or number of one of its TCP ports; nothing is registered there",
            shown.join(", ")
        );
        Problem::new(Reason::Incomplete, message)
    })
}

/// IP addresses, or else host names: DNS cannot answer one name with both.
fn chosen(found: BTreeMap<&str, At>, problems: &mut Vec<Problem>) -> Vec<Place> {
    let is_address = |(address, _): &(&str, At)| address.parse::<IpAddr>().is_ok();
    let (addresses, names): (Vec<_>, Vec<_>) = found.into_iter().partition(is_address);
    let mixed = !addresses.is_empty() && !names.is_empty();
    if mixed {
        let shown: Vec<&str> = names.iter().take(MAX_SHOWN).map(|(name, _)| *name).collect();
        problems.push(Problem::new(
            Reason::Incomplete,
            format!(
                "what routes to it is reached at IP addresses and at host names; the host names \
                 are left out, since DNS cannot answer with both: {}",
                shown.join(", ")
            ),
        ));
    }
    let chosen = if addresses.is_empty() { names } else { addresses };
    chosen.into_iter().map(|(address, at)| (address.into(), at.port)).collect()
}

#[cfg(test)]
mod tests;
